from __future__ import annotations

import io
import os
import pathlib
import pickle
import shutil
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from gpuflow.errors import SourceError
from gpuflow.objectstore.sources import Source, open_source
from gpuflow.objectstore.sources.image_source import _DecodedImages
from gpuflow.storage.codecs import ArrayCodec

from .contract import SourceContract


def picture(height: int, width: int, seed: int, channels: int = 3) -> NDArray[np.uint8]:
    """(height, width, channels) uint8; without the last axis for one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng((seed, height, width)).integers(0, 256, shape, dtype=np.uint8)


def save(path: pathlib.Path, pixels: NDArray[Any], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def samples(source: Source, array: str = "image") -> NDArray[Any]:
    """All samples of an array, read chunk by chunk."""
    metadata = source.layout().arrays[array]
    out = np.empty(metadata.shape, metadata.dtype)
    for linear in range(metadata.grid.size):
        region = metadata.grid.region(linear)
        block = ArrayCodec(metadata).decode(source.read(array, linear) or b"")
        out[region] = block[tuple(slice(0, part.stop - part.start) for part in region)]
    return out


def tiles(pixels: NDArray[Any], height: int, width: int) -> list[NDArray[Any]]:
    """The oracle: whole tiles, row by row."""
    return [
        pixels[y : y + height, x : x + width]
        for y in range(0, pixels.shape[0] - height + 1, height)
        for x in range(0, pixels.shape[1] - width + 1, width)
    ]


class TestWholeImages(SourceContract):
    @pytest.fixture
    def root(self, tmp_path: pathlib.Path) -> pathlib.Path:
        for number in range(5):
            save(tmp_path / "in" / f"{number}.png", picture(6, 8, number))
        return tmp_path / "in"

    @pytest.fixture
    def reopen(self, root: pathlib.Path) -> Any:
        return partial(open_source, root, chunk_samples=2)

    @pytest.fixture
    def source(self, reopen: Any) -> Any:
        return reopen()

    @pytest.fixture
    def oracle(self) -> dict[str, NDArray[Any]]:
        return {"image": np.stack([picture(6, 8, number) for number in range(5)])}

    def test_dims(self, source: Source) -> None:
        assert source.layout().arrays["image"].dims == ("sample", "y", "x", "channel")
        assert source.layout().notes == ()


class TestTilesWithLabels(SourceContract):
    @pytest.fixture
    def root(self, tmp_path: pathlib.Path) -> pathlib.Path:
        save(tmp_path / "in" / "dog" / "deep" / "a.png", picture(11, 9, 1))
        save(tmp_path / "in" / "cat" / "b.png", picture(4, 4, 2))
        save(tmp_path / "in" / "cat" / "tiny.png", picture(3, 9, 3))
        save(tmp_path / "in" / "ant" / "c.png", picture(8, 4, 4))
        return tmp_path / "in"

    @pytest.fixture
    def reopen(self, root: pathlib.Path) -> Any:
        return partial(open_source, root, tile=(4, 4), chunk_samples=3)

    @pytest.fixture
    def source(self, reopen: Any) -> Any:
        return reopen()

    @pytest.fixture
    def oracle(self) -> dict[str, NDArray[Any]]:
        images = [tiles(picture(*shape), 4, 4) for shape in ((8, 4, 4), (4, 4, 2), (11, 9, 1))]
        labels = [number for number, cut in enumerate(images) for _ in cut]
        return {"image": np.stack([tile for cut in images for tile in cut]), "label": np.array(labels, np.int64)}

    def test_labels_share_the_chunks(self, source: Source) -> None:
        arrays = source.layout().arrays
        assert arrays["label"].grid.size == arrays["image"].grid.size
        assert arrays["label"].attributes["classes"] == ["ant", "cat", "dog"]
        assert arrays["label"].dims == ("sample",)

    def test_notes_say_what_is_left_out(self, source: Source) -> None:
        small, remainder = source.layout().notes
        assert "1 image smaller than one tile, left out: cat/tiny.png" in small
        assert "1 image with a remainder" in remainder


def test_fitted_to_a_size(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "a.png", picture(20, 30, 1))
    save(tmp_path / "b.png", picture(9, 7, 2))
    found = samples(open_source(tmp_path, size=(8, 6)))
    expected = [
        ImageOps.fit(Image.fromarray(picture(*shape)), (6, 8), Image.Resampling.LANCZOS) for shape in ((20, 30, 1), (9, 7, 2))
    ]
    np.testing.assert_array_equal(found, np.stack([np.asarray(image) for image in expected]))


def test_shapes_that_differ_name_the_first_two(tmp_path: pathlib.Path) -> None:
    for name, height in (("a", 4), ("b", 4), ("c", 5), ("d", 6)):
        save(tmp_path / f"{name}.png", picture(height, 4, 0))
    with pytest.raises(SourceError, match=r"a\.png is 4 x 4, c\.png is 5 x 4; give tile or size"):
        open_source(tmp_path).layout()


def test_images_in_the_root_beside_directories_are_a_class(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "a.png", picture(4, 4, 0))
    save(tmp_path / "sub" / "b.png", picture(4, 4, 1))
    source = open_source(tmp_path)
    assert source.layout().arrays["label"].attributes["classes"] == [".", "sub"]
    assert samples(source, "label").tolist() == [0, 1]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_colors(tmp_path: pathlib.Path, mode: str) -> None:
    image = Image.fromarray(picture(5, 6, 0)).convert("RGBA" if mode in ("LA", "RGBA") else "RGB").convert(mode)
    image.save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    rgb, gray = samples(open_source(tmp_path)), samples(open_source(tmp_path, color="gray"))
    np.testing.assert_array_equal(rgb[0], np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(gray[0, :, :, 0], np.asarray(image.convert("RGB" if mode == "P" else mode).convert("L")))
    kept = samples(open_source(tmp_path, color="keep"))
    expected = np.asarray(image)
    assert kept.dtype == expected.dtype
    np.testing.assert_array_equal(kept[0].reshape(expected.shape), expected)


def test_palette_with_transparency_is_read_without_a_warning(tmp_path: pathlib.Path) -> None:
    image = Image.fromarray(picture(5, 6, 0)).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(samples(open_source(tmp_path))[0], np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_deep_images_are_kept_or_refused(tmp_path: pathlib.Path, dtype: str) -> None:
    pixels = (picture(5, 6, 0, 1).astype(dtype) * 200).astype(dtype)
    save(tmp_path / "a.tif", pixels)
    found = samples(open_source(tmp_path, color="keep"))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[0, :, :, 0], pixels)
    for color in ("rgb", "gray"):
        with pytest.raises(SourceError, match=r"a\.tif.*color=keep"):
            open_source(tmp_path, color=color).layout()


def test_lab_is_kept_or_refused(tmp_path: pathlib.Path) -> None:
    image = Image.frombytes("LAB", (4, 4), bytes(range(48)))
    image.save(tmp_path / "a.tif")
    assert samples(open_source(tmp_path, color="keep")).tobytes() == bytes(range(48))
    with pytest.raises(SourceError, match=r"mode LAB.*a\.tif.*color=keep"):
        open_source(tmp_path).layout()


def test_sixteen_bit_colour_is_said_or_refused(tmp_path: pathlib.Path) -> None:
    import struct
    import zlib

    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"\0" + struct.pack(">6H", 256, 512, 768, 1024, 1280, 1536)
    head = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    source = open_source(tmp_path)
    assert source.layout().notes == ("1 image of 16-bit colour, upper 8 bits taken: a.png",)
    assert samples(source).ravel().tolist() == [1, 2, 3, 4, 5, 6]
    with pytest.raises(SourceError, match=r"a\.png is 16-bit colour"):
        open_source(tmp_path, color="keep").layout()


def test_big_endian_deep_images(tmp_path: pathlib.Path) -> None:
    pixels = (picture(5, 6, 0, 1).astype("u2") * 200).astype(">u2")
    Image.frombytes("I;16B", (6, 5), pixels.tobytes()).save(tmp_path / "a.tif")
    save(tmp_path / "b.png", pixels.astype("u2"))
    found = samples(open_source(tmp_path, color="keep"))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found[:, :, :, 0], np.stack([pixels, pixels]))


def test_kept_modes_must_agree(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "a.png", picture(4, 4, 0))
    save(tmp_path / "b.png", picture(4, 4, 0, 1))
    with pytest.raises(SourceError, match=r"a\.png is RGB, b\.png is L; use color=rgb"):
        open_source(tmp_path, color="keep").layout()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_exif_orientation(tmp_path: pathlib.Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / f"a.{ending}", picture(8, 16, 0), exif=exif)
    found = samples(open_source(tmp_path))[0]
    assert found.shape[:2] == ((16, 8) if orientation > 4 else (8, 16))
    if ending == "png":
        turned = {2: np.fliplr, 3: partial(np.rot90, k=2), 4: np.flipud, 6: partial(np.rot90, k=-1), 8: np.rot90}
        if orientation in turned:
            np.testing.assert_array_equal(found, turned[orientation](picture(8, 16, 0)))


def test_first_frame_of_many(tmp_path: pathlib.Path) -> None:
    frames = [Image.fromarray(picture(4, 4, number)) for number in range(3)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(samples(open_source(tmp_path))[0], picture(4, 4, 0))


def test_other_and_hidden_files(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "B.PNG", picture(4, 4, 0))
    save(tmp_path / ".hidden.png", picture(5, 5, 0))
    save(tmp_path / ".cache" / "x.png", picture(5, 5, 0))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "data.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    layout = open_source(tmp_path).layout()
    assert layout.arrays["image"].shape == (1, 4, 4, 3)
    assert layout.notes == ("2 other files ignored (.h5, .txt)",)
    assert "label" not in layout.arrays


def test_links_are_followed_but_not_in_circles(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "far" / "x.png", picture(4, 4, 0))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cat").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere")
    source = open_source(tmp_path / "in")
    assert source.layout().arrays["image"].shape[0] == 1
    assert source.layout().arrays["label"].attributes["classes"] == ["cat"]


@pytest.fixture
def damaged(tmp_path: pathlib.Path) -> pathlib.Path:
    for number in range(3):
        save(tmp_path / f"good{number}.png", picture(32, 32, number))
    whole = io.BytesIO()
    Image.fromarray(picture(32, 32, 9)).save(whole, "png")
    (tmp_path / "cut-body.png").write_bytes(whole.getvalue()[:-900])
    (tmp_path / "cut-head.png").write_bytes(whole.getvalue()[:11])
    (tmp_path / "empty.jpg").write_bytes(b"")
    Image.fromarray(picture(32, 32, 9)).save(whole := io.BytesIO(), "jpeg")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    return tmp_path


def test_every_unreadable_image_is_named(damaged: pathlib.Path) -> None:
    with pytest.raises(SourceError, match="4 images cannot be read") as caught:
        open_source(damaged).layout()
    assert all(name in str(caught.value) for name in ("cut-body.png", "cut-head.png", "empty.jpg", "cut.jpg", "skip_bad"))
    assert "good" not in str(caught.value)


def test_unreadable_images_are_skipped_when_asked(damaged: pathlib.Path) -> None:
    source = open_source(damaged, skip_bad=True)
    np.testing.assert_array_equal(samples(source), np.stack([picture(32, 32, number) for number in range(3)]))
    (note,) = source.layout().notes
    assert "4 images cannot be read, left out" in note
    assert "cut-body.png" in note


def test_nothing_but_damaged_images(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"no image that can be read.*a\.png"):
        open_source(tmp_path, skip_bad=True).layout()


@pytest.mark.parametrize("factor", [1.5, 3])
def test_decompression_bombs_are_unreadable(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("L", (int(1000 * factor), 1)).save(tmp_path / "bomb.png")
    with pytest.raises(SourceError, match=r"bomb\.png .*limit"):
        open_source(tmp_path).layout()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_that_only_warn(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("L", (1500, 1)).save(tmp_path / "bomb.png")
    with pytest.raises(SourceError, match="1500 x 1 pixels are more than Pillow's limit"):
        open_source(tmp_path).layout()


def test_no_images(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SourceError, match="holds no image"):
        open_source(tmp_path).layout()


def test_no_tile_fits(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "a.png", picture(4, 4, 0))
    with pytest.raises(SourceError, match="no image holds a tile of 8 x 2"):
        open_source(tmp_path, tile=(8, 2)).layout()


@pytest.mark.parametrize("tile", [None, (4, 4)])
def test_changed_or_gone_after_the_scan(tmp_path: pathlib.Path, tile: tuple[int, int] | None) -> None:
    save(tmp_path / "a.png", picture(8, 8, 0))
    pickled = pickle.dumps(open_source(tmp_path, tile=tile))
    save(tmp_path / "a.png", picture(12, 8, 0))
    with pytest.raises(SourceError, match=r"a\.png: has changed since the scan"):
        pickle.loads(pickled).read("image", 0)
    (tmp_path / "a.png").unlink()
    with pytest.raises(SourceError, match=r"a\.png: cannot be decoded any more"):
        pickle.loads(pickled).read("image", 0)


def test_a_failing_disk_is_not_a_damaged_image(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", picture(8, 8, 0))
    source = pickle.loads(pickle.dumps(open_source(tmp_path)))

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match="Input/output"):
        source.read("image", 0)
    with pytest.raises(OSError, match="Input/output"):
        open_source(tmp_path, skip_bad=True).layout()


def test_identity_hangs_on_options_and_files(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "a.png", picture(8, 8, 0))
    options: list[dict[str, Any]] = [{}, {"tile": (4, 4)}, {"size": (4, 4)}, {"color": "gray"}, {"chunk_samples": 7}]
    options.append({"skip_bad": True})
    identities = [open_source(tmp_path, **chosen).identity() for chosen in options]
    os.utime(tmp_path / "a.png", (5, 5))
    identities.append(open_source(tmp_path).identity())
    shutil.copytree(tmp_path, tmp_path / "sub")
    identities.append(open_source(tmp_path).identity())
    identities.append(open_source(tmp_path / "sub").identity())
    assert len(set(identities)) == len(identities)


def test_pickles_small_with_many_files(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "a.png", picture(2, 2, 0))
    for number in range(500):
        os.link(tmp_path / "a.png", tmp_path / f"image-with-a-long-name-{number:06}.png")
    assert len(pickle.dumps(open_source(tmp_path))) < 5000


def test_decoded_images_are_bounded() -> None:
    cache = _DecodedImages(100)
    for name in "abc":
        cache.put(name, np.zeros(40, np.uint8))
    assert [cache.get(name) is not None for name in "abc"] == [False, True, True]
    cache.put("huge", np.zeros(1000, np.uint8))
    assert cache.get("huge") is not None
    assert cache.get("c") is None


def test_default_chunk_is_about_four_mebibytes(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "a.png", np.zeros((2048, 2048, 3), np.uint8))
    image = open_source(tmp_path, tile=(128, 128)).layout().arrays["image"]
    assert image.grid.chunks == (84, 128, 128, 3)  # 85 would be nearer, and could not be cut into pairs of samples
    assert image.document["codecs"][0]["configuration"]["chunk_shape"] == [2, 128, 128, 3]


def test_scikit_image_data() -> None:
    import skimage

    root = os.path.join(os.path.dirname(skimage.__file__), "data")
    source = open_source(root, tile=(128, 128))
    layout = source.layout()
    expected = 0
    for name in sorted(os.listdir(root)):
        if name.endswith((".png", ".jpg", ".gif", "multipage.tif")):
            with Image.open(os.path.join(root, name)) as image:
                expected += (image.height // 128) * (image.width // 128)
    assert layout.arrays["image"].shape == (expected, 128, 128, 3)
    notes = "\n".join(layout.notes)
    for text in (".npy, .npz, .py", ".txt, .xml", "multipage_rgb.tif (64-bit", "no_time_for_that_tiny.gif", "chessboard_RGB.png"):
        assert text in notes
    found = samples(source)
    with Image.open(os.path.join(root, "astronaut.png")) as image:
        np.testing.assert_array_equal(found[:16], np.stack(tiles(np.asarray(image), 128, 128)))
