"""Image files: which there are under a directory, what each holds, and its pixels. The one module that imports Pillow.

The scan and the reading decode by the same function, so they cannot disagree about the shape of an image."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow names but decodes only with a program or handler from elsewhere: to us these are other files."""
_TIFF_BITS_PER_SAMPLE = 258
_TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies under a directory. `images` is sorted by path relative to it, with "/" on every system."""

    images: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]
    """(bytes, mtime in ns) of each image file."""
    others: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """What the scan found out about a file, which is one of: an image, damaged, of a kind that Pillow does not read."""

    height: int = 0
    width: int = 0
    mode: str = ""
    """Pillow's mode before conversion; one name for all byte orders of 16-bit grey."""
    narrowed: bool = False
    """16-bit colour, of which Pillow gives the upper 8 bits."""
    bad: str = ""
    unsupported: str = ""


def list_images(root: str) -> Listing:
    """All files under `root`, links followed, hidden ones ignored; or `root` itself, if it is a file. OSError when it cannot be read."""
    if os.path.isfile(root):
        stat = os.stat(root)
        return Listing((os.path.basename(root),), ((stat.st_size, stat.st_mtime_ns),), ())
    known = _extensions()
    images: list[tuple[str, tuple[int, int]]] = []
    others: list[str] = []
    pending = [(root, "", frozenset({os.path.realpath(root)}))]
    while pending:
        directory, prefix, ancestors = pending.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real not in ancestors:  # else a link leads back up
                        pending.append((entry.path, f"{prefix}{entry.name}/", ancestors | {real}))
                elif os.path.splitext(entry.name)[1].lower() in known and entry.is_file():
                    stat = entry.stat()
                    images.append((prefix + entry.name, (stat.st_size, stat.st_mtime_ns)))
                else:
                    others.append(prefix + entry.name)
    images.sort()
    return Listing(tuple(path for path, _ in images), tuple(stamp for _, stamp in images), tuple(sorted(others)))


def is_image(path: str) -> bool:
    """By its name."""
    return os.path.splitext(path)[1].lower() in _extensions()


def probe(path: str) -> Probe:
    """Decodes the whole file and keeps what there is to know. Any error of a decoder means that the file is damaged."""
    from PIL import UnidentifiedImageError

    try:
        image, narrowed = _decode(path)
    except UnidentifiedImageError:
        kind = _unsupported_tiff(path)
        return Probe(unsupported=kind) if kind else Probe(bad="Pillow does not recognise it as an image")
    except Exception as error:
        if is_transient(error):
            raise
        return Probe(bad=f"{error}" or type(error).__name__)
    return Probe(image.height, image.width, _plain_mode(image), narrowed)


def load(path: str, color: str, fit: tuple[int, int] | None = None) -> NDArray[Any]:
    """Pixels (y, x, channel) of the first frame, upright, as `color` (rgb, gray, keep), fitted to `fit` (height, width) if given.

    Transparency is dropped by rgb and gray; `keep` gives a palette image's indices and a bilevel one's booleans, and both are
    fitted by nearest neighbour, everything else by Lanczos."""
    from PIL import Image, ImageOps

    image, _ = _decode(path)
    if color != "keep":
        if image.mode == "P":
            image = image.convert("RGBA")  # straight to RGB warns where the palette has transparency
        image = image.convert("RGB" if color == "rgb" else "L")
    if fit is not None:
        image = ImageOps.fit(image, (fit[1], fit[0]), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


def is_transient(error: Exception) -> bool:
    """Whether the disk or the process is to blame, not the file."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _TRANSIENT)


def _decode(path: str) -> tuple[Image.Image, bool]:
    """The first frame, turned as its EXIF orientation says, and whether Pillow narrowed it to 8 bits."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels are more than Pillow's limit of {limit}")
        narrowed = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) and not image.mode.startswith("I")
        image.load()
        return ImageOps.exif_transpose(image), narrowed


def _plain_mode(image: Image.Image) -> str:
    return "I;16" if image.mode.startswith("I;16") else str(image.mode)


def _extensions() -> frozenset[str]:
    """Extensions of the formats that Pillow can read on its own."""
    from PIL import Image

    registered = Image.registered_extensions()
    return frozenset(ending for ending, kind in registered.items() if kind in Image.OPEN and kind not in _NOT_DECODED)


def _unsupported_tiff(path: str) -> str:
    """What a whole TIFF holds that Pillow has no mode for ("64-bit x 3"); "" for a file that is damaged or no TIFF."""
    from PIL.TiffImagePlugin import PREFIXES, ImageFileDirectory_v2

    try:
        with open(path, "rb") as file:
            head = file.read(8)
            if head[:4] not in PREFIXES:
                return ""
            directory = ImageFileDirectory_v2(head)
            file.seek(directory.next)
            directory.load(file)
            bits = directory.get(_TIFF_BITS_PER_SAMPLE, ())
    except Exception:  # noqa: BLE001 - damaged, then
        return ""
    return f"{bits[0]}-bit x {len(bits)} TIFF" if bits else ""
