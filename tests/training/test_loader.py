"""The loader over real stores: samples, windows, crops, labels, resume, damage, change, fork and spawn."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

import gpuflow
from gpuflow.errors import (
    ChunkCorrupt,
    ChunkLost,
    ConfigError,
    DatasetChanged,
    DeviceUnavailable,
    GpuflowError,
    NotFound,
    SampleError,
    StateMismatch,
)
from gpuflow.storage.node import NodeStore
from gpuflow.training.augment import Draws, Flip, Scale
from gpuflow.training.loader import Loader
from tests.training.datasets import change, make_dataset, numbered

COUNT = 37
FIELD = numbered(COUNT, 9, 14)
LABEL = np.arange(COUNT) * 10


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset `d`: `field` in shards of (4, 9, 14) with inner chunks of a sample, and `label`."""
    path = tmp_path_factory.mktemp("store")
    make_dataset(
        path,
        "d",
        {"field": FIELD, "label": LABEL},
        chunks={"field": (4, 9, 14), "label": (10,)},
        inner={"field": (1, 9, 14)},
    )
    return path


def make(root: Path, batch_size: int = 8, name: str = "d", **options: Any) -> Loader:
    return gpuflow.loader(name, batch_size, root=root, **{"device": "numpy", "number_as": "n", **options})


def check(batch: dict[str, Any], field: np.ndarray = FIELD) -> list[int]:
    """The batch is what its numbers say."""
    numbers = np.asarray(batch["n"])
    assert (np.asarray(batch["field"]) == field[numbers]).all()
    assert (np.asarray(batch["label"]) == LABEL[numbers]).all()
    return numbers.tolist()


class TestSamples:
    @pytest.mark.parametrize("compressor", ["zstd", "none", "lz4", "gzip", "blosc"])
    @pytest.mark.parametrize(
        ("chunks", "inner"),
        [((4, 6, 14), None), ((4, 6, 14), (1, 3, 14)), ((4, 9, 14), (2, 9, 7)), ((5, 4, 5), (5, 2, 5)), ((40, 9, 14), None)],
    )
    @pytest.mark.parametrize("cache", [0, 3000, "1MiB"])
    @pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in:UserWarning")
    def test_every_form_of_storing(self, tmp_path: Path, compressor: str, chunks: Any, inner: Any, cache: Any) -> None:
        inner = {"field": inner} if inner else None
        data = {"field": FIELD, "label": LABEL}
        make_dataset(tmp_path, "d", data, chunks={"field": chunks, "label": (10,)}, inner=inner, compressor=compressor)
        with make(tmp_path, cache=cache, order="buffered", window=2) as loader:
            for _ in range(2):
                assert sorted(number for batch in loader for number in check(batch)) == list(range(COUNT))
        with make(tmp_path, sample={"time": 3, "y": 4}, split={"input": 2, "target": 1}, stride=2, step=2, cache=cache) as loader:
            assert loader.samples == (COUNT - 5) // 2 + 1
            for batch in loader:
                window = np.concatenate([batch["field.input"], batch["field.target"]], axis=1)
                assert window.shape[1:] == (3, 4, 14)
                for number, found, labels in zip(batch["n"].tolist(), window, batch["label.input"], strict=True):
                    rows = [2 * number, 2 * number + 2, 2 * number + 4]
                    assert any((found == FIELD[rows][:, at : at + 4]).all() for at in range(6))
                    assert (labels == LABEL[rows[:2]]).all()

    def test_fill_value_chunks(self, tmp_path: Path) -> None:
        """A stored object without a file, and inner chunks that a shard leaves out."""
        from gpuflow.storage.disk import digest
        from gpuflow.storage.manifest import Replica
        from gpuflow.storage.node import EMPTY

        make_dataset(tmp_path, "d", {"field": FIELD}, chunks={"field": (6, 9, 14)}, inner={"field": (1, 9, 14)})
        store = NodeStore(tmp_path)
        store.commit([store.stage_empty(Replica("d", "field", 2, 2, 0, EMPTY, digest(b"r"), digest(b"i")), replaces=1)])
        store.close()
        expected = FIELD.copy()
        expected[12:18] = 0
        with make(tmp_path) as loader:
            for batch in loader:
                assert (batch["field"] == expected[batch["n"]]).all()

    def test_tensors(self, root: Path) -> None:
        with make(root, device="cpu") as loader:
            batches = list(loader)  # kept, while others are made in memory that came free
        assert all(isinstance(batch["field"], torch.Tensor) for batch in batches)
        assert [batch["field"].dtype for batch in batches[:1]] == [torch.float32]
        assert sorted(number for batch in batches for number in check(batch)) == list(range(COUNT))

    @pytest.mark.parametrize("device", ["cpu", "numpy"])
    def test_a_batch_is_its_takers_for_as_long_as_a_part_of_it_lives(self, root: Path, device: str) -> None:
        kept = []
        with make(root, 4, device=device, cache=0) as loader:
            for _ in range(6):
                kept += [(int(batch["n"][0]), batch["field"][0][:3]) for batch in loader]
        assert all((np.asarray(part) == FIELD[number][:3]).all() for number, part in kept)

    def test_crops_belong_to_sample_and_epoch(self, root: Path) -> None:
        def crops(loader: Loader) -> dict[int, bytes]:
            return {number: found.tobytes() for b in loader for number, found in zip(b["n"].tolist(), b["field"], strict=True)}

        crop = {"y": 4, "x": 5}
        with make(root, sample=crop) as loader, make(root, 16, sample=crop, rank=0, world=1, threads=1) as other:
            first, second = crops(loader), crops(loader)
            assert first == crops(other)
            assert first != second
        with make(root, sample=crop, crop="center") as loader:
            for batch in loader:
                assert (batch["field"] == FIELD[batch["n"]][:, 2:6, 4:9]).all()

    def test_labels_selection_and_numbers(self, root: Path) -> None:
        kind = np.arange(COUNT) % 3
        with make(root, arrays=["field"], labels={"kind": kind}, samples=slice(30, None), batch_size=4) as loader:
            assert (loader.samples, len(loader)) == (7, 2)
            batches = list(loader)
            assert sorted(number for batch in batches for number in batch["n"].tolist()) == list(range(30, 37))
            assert all((batch["kind"] == kind[batch["n"]]).all() for batch in batches)
            assert "label" not in batches[0]

    def test_transform_and_collate(self, root: Path) -> None:
        def doubled(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
            return {"twice": sample["field"] * 2, "drawn": rng.random()}

        with make(root, transform=doubled) as loader, make(root, 37, transform=doubled, order="none") as other:
            drawn = next(iter(other))["drawn"]
            for batch in loader:
                assert (batch["twice"] == FIELD[batch["n"]] * 2).all()
                assert len(set(batch["drawn"])) == len(batch["drawn"])
        with make(root, 37, transform=doubled, order="none", seed=1) as other:
            assert (next(iter(other))["drawn"] != drawn).all()
        with make(root, transform=lambda sample: {"part": sample["field"][: sample["label"] // 10 % 4]}, collate=list) as loader:
            assert {len(sample["part"]) for batch in loader for sample in batch} == {0, 1, 2, 3}

    @pytest.mark.parametrize("device", ["cpu", "numpy"])
    def test_augmentations_belong_to_samples(self, root: Path, device: str) -> None:
        def flips(batch_size: int) -> dict[int, bool]:
            found = {}
            augment = [Flip(("field",)), Scale({"field": 0.5}, 1.0)]
            with make(root, batch_size, device=device, augment=augment) as loader:
                for batch in loader:
                    for number, values in zip(batch["n"].tolist(), np.asarray(batch["field"]), strict=True):
                        expected = FIELD[number] * np.float32(0.5) + 1
                        found[number] = not (values == expected).all()
                        assert (values == (expected[:, ::-1] if found[number] else expected)).all()
            return found

        assert flips(8) == flips(5)
        assert 8 < sum(flips(8).values()) < 30
        assert (Draws(1, 0, np.arange(3), "numpy").uniform("a") != Draws(1, 1, np.arange(3), "numpy").uniform("a")).all()


class TestRanks:
    @pytest.mark.parametrize("options", [{}, {"pad": True}, {"drop_last": True}])
    @pytest.mark.parametrize("world", [2, 3, 5])
    def test_global_batches_do_not_depend_on_ranks(self, root: Path, world: int, options: dict[str, Any]) -> None:
        with make(root, **options) as whole:
            loaders = [make(root, rank=rank, world=world, **options) for rank in range(world)]
            for _ in range(2):
                for batch, parts in zip(whole, zip(*loaders, strict=True), strict=True):
                    numbers = [number for part in parts for number in part["n"].tolist()]
                    assert sorted(numbers) == sorted(batch["n"].tolist())
                    sizes = [len(part["n"]) for part in parts]
                    assert max(sizes) - min(sizes) <= 1
                    for part in parts:
                        real = part["n"] >= 0
                        assert (part["field"][real] == FIELD[part["n"][real]]).all()
        for loader in loaders:
            loader.close()

    def test_padding_is_marked(self, root: Path) -> None:
        with make(root, pad=True) as loader:
            numbers = [batch["n"].tolist() for batch in loader]
        assert [len(batch) for batch in numbers] == [8] * 5
        assert sorted(number for batch in numbers for number in batch) == [-1] * 3 + list(range(COUNT))

    def test_by_locality_on_four_nodes(self, tmp_path: Path) -> None:
        """Eight ranks, each reading its own node's store: 95% of samples lie there; without one node's chunks, right all the same."""
        field = numbered(1024, 8)
        ids = make_dataset(tmp_path, "d", {"field": field}, chunks={"field": (8, 8)}, inner={"field": (1, 8)}, nodes=4)
        ranks = tuple(node for node in ids for _ in range(2))
        placement = placed(tmp_path, ranks)
        share = np.mean([placement.local_share(np.random.default_rng(at).permutation(1024)[:256]) for at in range(20)])
        assert share >= 0.95
        seen, opened = [], {"here": 0, "elsewhere": 0}
        for rank, node in enumerate(ranks):
            options = {"rank": rank, "world": 8, "placement": placement, "node": node, "cache": 0}
            with make(tmp_path, 256, **options) as loader:
                for batch in loader:
                    assert (batch["field"] == field[batch["n"]]).all()
                    seen += batch["n"].tolist()
                opened = {where: opened[where] + count for where, count in loader.reads.items()}
        assert sorted(seen) == list(range(1024))
        assert opened["elsewhere"] > 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rank": 0}, "rank and world belong together"),
            ({"rank": 2, "world": 2}, "rank 2 of 2; ranks count from 0"),
            ({"drop_last": True, "pad": True}, "cannot be dropped and filled up"),
        ],
    )
    def test_bad_ranks(self, root: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            make(root, **options)

    def test_several_processes_without_a_group(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "4")
        with pytest.raises(ConfigError, match=r"one of 4 processes .*call torch.distributed.init_process_group first"):
            make(root)


def placed(root: Path, ranks: tuple[str, ...]) -> Any:
    """The placement of `field` for ranks on these nodes."""
    from gpuflow.datasets.here import NodesHere
    from gpuflow.training.content import content, look
    from gpuflow.training.cut import cut
    from gpuflow.training.placement import place

    nodes = NodesHere.below(root)
    record = look(nodes, "d")
    found = place(content(nodes, record, ["field"]), cut(record, ["field"], None), ranks)
    nodes.close()
    return found


class TestResume:
    @pytest.mark.parametrize("first_world", [1, 2, 3])
    def test_in_the_middle_twice_with_other_ranks(self, root: Path, first_world: int) -> None:
        with make(root) as whole:
            expected = [sorted(batch["n"].tolist()) for _ in range(2) for batch in whole]
        state, seen = None, []
        for world, count in ((first_world, 3), (4, 1), (2, 6)):
            loaders = [make(root, rank=rank, world=world) for rank in range(world)]
            for loader in loaders:
                if state is not None:
                    loader.load_state_dict(state)
            streams = [endless(loader) for loader in loaders]
            seen += [sorted(number for stream in streams for number in next(stream)["n"].tolist()) for _ in range(count)]
            states = [loader.state_dict() for loader in loaders]
            assert all(one == states[0] for one in states)
            state = json.loads(json.dumps(states[0]))
            for loader in loaders:
                loader.close()
        assert seen == expected

    def test_after_a_kill(self, root: Path, tmp_path: Path) -> None:
        code = f"""
import gpuflow, json, os
loader = gpuflow.loader("d", 8, root={str(root)!r}, device="numpy", number_as="n")
for number, batch in enumerate(loader):
    print(json.dumps([batch["n"].tolist(), loader.state_dict()]), flush=True)
    if number == 2:
        os.kill(os.getpid(), 9)
"""
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ended.returncode == -9
        lines = [json.loads(line) for line in ended.stdout.splitlines()]
        seen = [number for numbers, _ in lines[:2] for number in numbers]  # the third batch's state was not saved
        with make(root, rank=0, world=1) as loader:
            loader.load_state_dict(lines[1][1])
            rest = [check(batch) for batch in loader]
        assert rest[0] == lines[2][0]
        assert sorted(seen + [number for batch in rest for number in batch]) == list(range(COUNT))

    def test_of_something_else(self, root: Path, tmp_path: Path) -> None:
        make_dataset(tmp_path, "other", {"field": FIELD + 1}, chunks={"field": (4, 9, 14)})
        with make(root) as loader, make(tmp_path, name="other") as other, make(root, seed=1) as seeded:
            with pytest.raises(StateMismatch, match="the dataset was 'd' and is 'other'"):
                other.load_state_dict(loader.state_dict())
            with pytest.raises(StateMismatch, match="the seed was 0 and is 1"):
                seeded.load_state_dict(loader.state_dict())
            with make(root, sample={"y": 4}) as other, pytest.raises(StateMismatch, match="what a sample is"):
                other.load_state_dict(loader.state_dict())

    def test_breaking_off_goes_on(self, root: Path) -> None:
        with make(root) as loader:
            seen = []
            for batch in loader:
                seen += check(batch)
                break
            for batch in loader:
                seen += check(batch)
            assert sorted(seen) == list(range(COUNT))
            assert loader.epoch == 1


def endless(loader: Loader) -> Iterator[dict[str, Any]]:
    while True:
        yield from loader


class TestDamage:
    def flip(self, root: Path, name: str = "d/field/c.1.0.0", at: int = 40) -> None:
        path = root / "datasets" / name
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(bytes(data))

    @pytest.mark.parametrize("compressor", ["zstd", "none", "lz4", "gzip"])
    @pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in:UserWarning")
    @pytest.mark.parametrize("inner", [(1, 9, 14), None])
    def test_a_flipped_bit_is_found(self, tmp_path: Path, compressor: str, inner: Any) -> None:
        make_dataset(
            tmp_path,
            "d",
            {"field": FIELD},
            chunks={"field": (4, 9, 14)},
            inner={"field": inner} if inner else None,
            compressor=compressor,
        )
        self.flip(tmp_path)
        with make(tmp_path) as loader, pytest.raises(ChunkCorrupt, match=r"d/field/c\.1\.0\.0 on node n0"):
            list(loader)

    def test_a_bit_that_flips_after_the_first_epoch(self, tmp_path: Path) -> None:
        """Without checksums of inner chunks: what was noted when the whole was verified. The open file is the one that changes."""
        make_dataset(
            tmp_path, "d", {"field": FIELD}, chunks={"field": (4, 9, 14)}, inner={"field": (1, 9, 14)}, compressor="none"
        )
        with make(tmp_path, cache=0) as loader:
            assert len(list(loader)) == 5
            self.flip_in_place(tmp_path / "datasets" / "d/field/c.1.0.0")
            batches = endless(loader)
            with pytest.raises(ChunkCorrupt):
                list(itertools.islice(batches, 15))

    @staticmethod
    def flip_in_place(path: Path) -> None:
        with open(path, "r+b") as file:
            file.seek(40)
            byte = file.read(1)[0]
            file.seek(40)
            file.write(bytes([byte ^ 1]))

    def test_another_replica_is_read(self, tmp_path: Path) -> None:
        make_dataset(
            tmp_path, "d", {"field": FIELD}, chunks={"field": (4, 9, 14)}, inner={"field": (1, 9, 14)}, nodes=2, replicas=2
        )
        self.flip(tmp_path)
        with make(tmp_path) as loader:
            for batch in loader:
                assert (batch["field"] == FIELD[batch["n"]]).all()

    def test_a_missing_chunk(self, tmp_path: Path) -> None:
        make_dataset(tmp_path, "d", {"field": FIELD}, chunks={"field": (4, 9, 14)}, inner={"field": (1, 9, 14)})
        (tmp_path / "datasets/d/field/c.1.0.0").unlink()
        with make(tmp_path) as loader, pytest.raises(ChunkCorrupt, match="its file is missing"):
            list(loader)

    def test_a_node_that_is_not_there(self, tmp_path: Path) -> None:
        make_dataset(tmp_path, "d", {"field": FIELD}, chunks={"field": (4, 9, 14)}, nodes=2)
        with pytest.raises(ChunkLost, match=r"d/field/c\.0\.0\.0"):
            make(tmp_path / "nodes" / "1")

    def test_a_change_meanwhile(self, tmp_path: Path) -> None:
        make_dataset(tmp_path, "d", {"field": FIELD}, chunks={"field": (4, 9, 14)}, inner={"field": (1, 9, 14)})
        with make(tmp_path, cache=0, prefetch=1, batch_size=4, order="none") as loader:
            batches = iter(loader)
            next(batches)
            change(tmp_path, "d", "field", 5, FIELD[20:24] + 1)
            with pytest.raises(DatasetChanged, match=r"d/field/c.5.0.0 was at generation 1 .* is at generation 2"):
                list(batches)
        with make(tmp_path) as loader:
            assert (next(iter(loader))["field"]).shape == (8, 9, 14)

    def test_open_objects_stay_as_they_were(self, tmp_path: Path) -> None:
        make_dataset(tmp_path, "d", {"field": FIELD}, chunks={"field": (40, 9, 14)}, inner={"field": (1, 9, 14)})
        with make(tmp_path, cache=0) as loader:
            batches = iter(loader)
            first = next(batches)
            change(tmp_path, "d", "field", 0, np.zeros_like(FIELD))
            change(tmp_path, "d", "field", 0, np.ones_like(FIELD))
            for batch in [first, *batches]:
                assert (batch["field"] == FIELD[batch["n"]]).all()


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 38}, "batch_size: a batch of 38, of 37 samples; give at most 37"),
            ({"batch_size": 0}, "batch_size: is 0; give 1 or more"),
            ({"batch_size": 2.5}, "batch_size: is 2.5"),
            ({"prefetch": 0}, "prefetch: is 0"),
            ({"cache": "much"}, "cache: 'much' is not a size"),
            ({"arrays": ["nothing"]}, "'d' has no array 'nothing'; it has field, label"),
            ({"sample": {"z": 2}}, "sample.z: is no dimension of these arrays; they have time, x, y"),
            ({"sample": {"y": 10}}, "sample.y: 10 of array 'field', which has 9 there"),
            ({"sample": {"time": 38}}, "has 37 rows, too few for one sample of 38"),
            ({"sample": {"time": 3}, "split": {"input": 1, "target": 1}}, "split: input: 1 . target: 1 of a window of 3 rows"),
            ({"stride": 0}, "stride: is 0"),
            ({"crop": "left"}, "crop: 'left' is unknown"),
            ({"labels": {"kind": [1, 2]}}, "labels.kind: 2 values for 37 samples"),
            ({"labels": {"label": LABEL}}, "labels.label: is the name of an array"),
            ({"samples": [1, 1]}, "names a sample twice"),
            ({"samples": [40]}, "names a sample that is not there; the dataset has samples 0 to 36"),
            ({"samples": slice(0, 0)}, "selects none"),
            ({"device": "gpu9"}, "device 'gpu9' is unknown"),
            ({"seed": "x"}, "seed: is 'x'"),
        ],
    )
    def test_options(self, root: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            make(root, **options)

    def test_arrays_of_different_lengths(self, tmp_path: Path) -> None:
        data = {"field": FIELD, "label": LABEL[:30]}
        make_dataset(tmp_path, "d", data, chunks={"field": (4, 9, 14), "label": (10,)})
        with pytest.raises(ConfigError, match="differ in the length of their first axis: field has 37, label has 30"):
            make(tmp_path, arrays=["*"])
        assert "label" not in next(iter(make(tmp_path)))

    def test_nothing_there(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="no dataset 'e'"):
            make(root, name="e")
        with pytest.raises(NotFound, match="no store"):
            make(tmp_path)

    def test_a_device_that_is_not_there(self, root: Path) -> None:
        with pytest.raises(DeviceUnavailable, match="no CUDA device; use device='cpu'"):
            make(root, device="cuda")

    def test_without_torch(self, root: Path) -> None:
        code = f"""
import sys
sys.modules["torch"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == "torch" else find(name, *args)
import gpuflow
try:
    gpuflow.loader("d", 8, root={str(root)!r})
except gpuflow.errors.DeviceUnavailable as error:
    print(error)
print(sum(len(batch["field"]) for batch in gpuflow.loader("d", 8, root={str(root)!r}, device="numpy")))
"""
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert ended.stdout.splitlines() == [
            "PyTorch is not installed; pip install 'gpuflow[torch]', or use device='numpy' for NumPy arrays",
            "37",
        ]

    def test_a_transform_that_raises_names_the_sample(self, root: Path) -> None:
        def fails(sample: dict[str, Any]) -> dict[str, Any]:
            if sample["label"] == 200:
                raise ZeroDivisionError("no")
            return sample

        with make(root, transform=fails) as loader:
            with pytest.raises(SampleError, match="sample 20 of dataset 'd': the transform raised ZeroDivisionError: no"):
                list(loader)
            state = loader.state_dict()  # the batch with it is still to come
        with make(root) as loader:
            loader.load_state_dict(state)
            assert 20 in next(iter(loader))["n"].tolist()

    @pytest.mark.parametrize(
        ("transform", "message"),
        [
            (lambda s: {"a": np.zeros(1 + int(s["label"] == 200))}, r"'a' has shape \(\d,\), that of sample \d+ \(\d,\)"),
            (lambda s: {"a": 1} if s["label"] != 200 else {"b": 1}, "has ., sample"),
            (lambda s: s["field"], "the transform returned ndarray, not a dict of arrays; return a dict, or give collate="),
        ],
    )
    def test_ragged_samples(self, root: Path, transform: Any, message: str) -> None:
        with make(root, transform=transform) as loader, pytest.raises(SampleError, match=message):
            list(loader)


class TestProcesses:
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_in_another_process(self, root: Path, method: str) -> None:
        context = multiprocessing.get_context(method)
        with make(root) as loader:
            check(next(iter(loader)))
            queue = context.Queue()
            child = context.Process(target=numbers_of, args=(loader, queue))
            child.start()
            there = queue.get(timeout=60)
            child.join()
            assert there == [check(batch) for batch in loader]

    def test_closing_releases_everything(self, root: Path) -> None:
        own = psutil.Process()
        with make(root) as loader:
            list(loader)
        threads, files = threading.active_count(), own.num_fds()
        for _ in range(3):
            with make(root) as loader:
                iterator = iter(loader)
                next(iterator)
        loader.close()
        assert (threading.active_count(), own.num_fds()) == (threads, files)
        unclosed = make(root)
        next(iter(unclosed))
        del unclosed
        assert (threading.active_count(), own.num_fds()) == (threads, files)

    def test_a_hundred_epochs(self, root: Path) -> None:
        own = psutil.Process()
        with make(root, cache=20_000, device="cpu") as loader:
            measured = []
            for _ in range(100):
                for batch in loader:
                    check(batch)
                measured.append((own.memory_info().rss, own.num_fds(), threading.active_count()))
        assert loader.epoch == 100
        early, late = measured[19], measured[-1]
        assert late[0] - early[0] < 4 * 2**20
        assert late[1:] == early[1:]

    def test_back_pressure(self, root: Path) -> None:
        """What nobody takes is not read: the batches ahead, and no more."""
        calls = []
        with make(root, 1, prefetch=3, transform=lambda sample: calls.append(1) or sample) as loader:
            iterator = iter(loader)
            next(iterator)
            for _ in range(50):
                if len(calls) == 4:
                    break
                threading.Event().wait(0.02)
            threading.Event().wait(0.1)
            assert len(calls) == 4


def numbers_of(loader: Loader, queue: Any) -> None:
    """In a child process."""
    try:
        queue.put([batch["n"].tolist() for batch in loader])
    except GpuflowError as error:
        queue.put(str(error))
    loader.close()
