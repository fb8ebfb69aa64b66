"""A chunk of a node's store as a block of values: read, verified and decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuflow.errors import ChunkCorrupt
from gpuflow.storage.buffers import Slot
from gpuflow.storage.codecs import ArrayCodec, Block, CodecError
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import EMPTY, NodeStore

Box = tuple[slice, ...]
"""A part of a chunk, from the chunk's beginning on: one slice with start and stop per axis."""


def decoded(
    codec: ArrayCodec, node: str, replica: Replica, data: Any, slot: Slot | None = None, boxes: Sequence[Box] | None = None
) -> Block:
    """The whole chunk, ragged edge included, out of the verified bytes that `node` has; outside `boxes` it may be anything. slot: in whose
    memory; without one, in memory of its own.

    ChunkCorrupt when they do not decode: they came damaged from the source."""
    if replica.digest == EMPTY:
        return codec.filled()
    try:
        return codec.decode(data, slot, boxes)
    except CodecError as error:
        name = f"{replica.dataset}/{replica.array}/{codec.metadata.key(replica.chunk)}"
        raise ChunkCorrupt(name, node, f"does not decode ({error})") from error


def read_block(
    store: NodeStore, codec: ArrayCodec, replica: Replica, slot: Slot, boxes: Sequence[Box] | None = None
) -> tuple[Replica, Block]:
    """A chunk of this node, as it is now: `replica` as it was looked up, and `boxes` of it decoded, in memory of the slot's.

    ChunkLost when it is not here, ChunkCorrupt when it is damaged."""
    path = f"{store.root}/datasets/{replica.dataset}/{replica.array}/{codec.metadata.key(replica.chunk)}"
    data: Any = store.read_known(path, replica, slot.stored)
    if data is None:
        replica, data = store.read(replica.dataset, replica.array, replica.chunk)
    return replica, decoded(codec, store.node_id, replica, data, slot, boxes)
