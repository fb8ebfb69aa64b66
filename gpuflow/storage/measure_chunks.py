"""Measures what a small chunk takes beside its bytes: through a store of its own, as runs use theirs.

From the look-up of its row to the commit of what is made of it, with others of a group, it is what `execution/lane.py` does."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np

from gpuflow.storage.blocks import read_block
from gpuflow.storage.buffers import Slot
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord

_REPEATS = 5
_CHUNKS = 256
_VALUES = 2**14
"""Of float32 in a chunk: 64 KiB."""


def chunk_seconds(store: NodeStore) -> tuple[float, float]:
    """Seconds that one thread takes for a chunk on the disk of `store`: committed atomically, and durably."""
    root = Path(store.writer.temporary())
    try:
        with closing(NodeStore(root, name="measured")) as scratch:
            _lay(scratch, "in")
            _make(scratch, "in", [(chunk, bytes([chunk]) * 4 * _VALUES) for chunk in range(_CHUNKS)], False)
            found: dict[bool, list[float]] = {False: [], True: []}
            for number in range(2 * _REPEATS):
                durable = number >= _REPEATS  # those that leave nothing for the disk to do while the next is measured come first
                _lay(scratch, f"out-{number}")
                began = time.perf_counter()
                _copy(scratch, "in", f"out-{number}", durable)
                found[durable].append((time.perf_counter() - began) / _CHUNKS)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return median(found[False]), median(found[True])


def _lay(store: NodeStore, name: str) -> None:
    metadata = ArrayMetadata.create((_CHUNKS * _VALUES,), (_VALUES,), np.dtype("f4"), compressor="none")
    store.put_record(DatasetRecord(name, state="ready", arrays={"a": metadata.document}))


def _copy(store: NodeStore, source: str, target: str, durable: bool) -> None:
    slot, codec = Slot(), store.codec(source, "a")
    replicas = store.manifest.replicas_of(source, "a", range(_CHUNKS)).values()
    _make(store, target, ((one.chunk, codec.encode(read_block(store, codec, one, slot)[1], slot)) for one in replicas), durable)


def _make(store: NodeStore, dataset: str, chunks: Iterable[tuple[int, bytes | memoryview]], durable: bool) -> None:
    staged = []
    for chunk, data in chunks:
        checksum = digest(data)
        replica = Replica(dataset, "a", chunk, 1, len(data), checksum, checksum, checksum)
        staged.append(store.stage(replica, data, durable=durable))
    store.commit(staged, durable=durable)
