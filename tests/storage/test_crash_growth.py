"""An array that grows, killed at every step: it has its old length or its new one, and what it is long is right."""

from __future__ import annotations

import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import zarr

from gpuflow.storage.doctor import examine
from gpuflow.storage.node import NodeStore
from tests.storage.stores import ARRAY, grow, growing_record, killed_growing, new_replica


def _new(root: Path) -> None:
    store = NodeStore(root, name="n")
    store.put_record(growing_record(1, 10))
    rows = np.pad(np.arange(10, dtype="<i4"), (0, 2))
    datas = [rows[start : start + 4].tobytes() for start in (0, 4, 8)]
    store.commit([store.stage(new_replica(chunk, 1, data), data) for chunk, data in enumerate(datas)])
    store.close()


def _check(root: Path) -> int:
    """As any reader of the files sees it, and by the manifest; how long it is."""
    store = NodeStore(root)
    store.recover()
    record = store.record("d")
    assert store.manifest.intents() == []
    seen = zarr.open_array(root / "datasets/d" / ARRAY, mode="r")[...]
    np.testing.assert_array_equal(seen, np.arange(len(seen)))
    blocks = [store.read("d", ARRAY, chunk)[1] for chunk in range(record.array(ARRAY).grid.size)]
    length = record.array(ARRAY).shape[0]
    np.testing.assert_array_equal(np.frombuffer(b"".join(blocks), "<i4")[:length], np.arange(length))
    store.close()
    return length


def test_a_kill_at_every_step(memory_path: Path, processes: ProcessPoolExecutor) -> None:
    template, lengths = memory_path / "template", list[int]()
    _new(template)
    for call in range(1, 200):
        root = memory_path / str(call)
        shutil.copytree(template, root)
        status = processes.submit(killed_growing, root, call).result()
        assert status in (0, signal.SIGKILL)
        lengths.append(_check(root))
        assert [finding.problem for finding in examine(root, full=True) if "chunk" in finding.problem] == []
        store = NodeStore(root)
        grow(store)  # once more: it goes on
        store.close()
        assert _check(root) == 18
        shutil.rmtree(root)
        if status == 0:
            break
    assert len(lengths) > 20, "the kills struck nothing"
    assert lengths == sorted(lengths)
    assert set(lengths) == {10, 18}
