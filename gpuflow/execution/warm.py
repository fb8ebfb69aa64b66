"""What a group of chunks takes from a memory tier of its worker, and puts there.

A block is taken only for the very replica that it was made from: the one in this node's manifest when the group began. It was verified when
it was decoded. A file that is damaged after that is not seen by who finds the chunk here: the values are right all the same, and `gpuflow
scrub`, or the first read from the disk, finds the damage."""

from __future__ import annotations

from typing import Any

from gpuflow.backends.block import on_host
from gpuflow.execution.tally import Tally
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.manifest import UNKNOWN, Replica
from gpuflow.storage.node import EMPTY
from gpuflow.storage.tier_entries import Key, Version
from gpuflow.storage.tiers import Held, Tier


class Warm:
    """Of one group. A block that was taken is valid until the next one is, or `let_go`."""

    def __init__(self, tier: Tier, tally: Tally, *, fills: bool) -> None:
        self._tier, self._tally, self._fills = tier, tally, fills
        self._held: Held | None = None

    def take(self, replica: Replica, codec: ArrayCodec) -> Any:
        """The whole chunk, read-only, where it lies: a NumPy or a CuPy array. None when it is not in memory, or another generation is."""
        self.let_go()
        if not _can_be_kept(replica, codec):
            return None
        self._held = self._tier.take(_key(replica), _version(replica, codec))
        if self._held is None:
            return None
        self._tally.ram_chunks += 1
        self._tally.ram += replica.nbytes
        if not on_host(self._held.block):
            self._tally.vram_chunks += 1
            self._tally.vram += replica.nbytes
        return self._held.block

    def put(self, replica: Replica, codec: ArrayCodec, block: Any, seconds: float) -> None:
        """A whole chunk of this node's, which took `seconds` to be read, verified and decoded; kept if the run fills the tier."""
        if self._fills and _can_be_kept(replica, codec):
            self._tier.put(_key(replica), _version(replica, codec), block, seconds)

    def let_go(self) -> None:
        """What was taken last is not read any more."""
        if self._held is not None:
            self._held.close()
            self._held = None


def _can_be_kept(replica: Replica, codec: ArrayCodec) -> bool:
    """Not what has no file, nor what the manifest says is damaged, nor values that are not in the block itself."""
    return replica.digest != EMPTY and replica.recipe != UNKNOWN and codec.metadata.dtype is not None


def _key(replica: Replica) -> Key:
    return Key(replica.dataset, replica.array, replica.chunk)


def _version(replica: Replica, codec: ArrayCodec) -> Version:
    return Version(replica.generation, replica.digest, codec.form)
