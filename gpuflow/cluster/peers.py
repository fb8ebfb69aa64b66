"""A group's chunks from the peers that have them: part by part, the next part on its way while one is computed.

What a peer sends is believed when its digest and generation are right. A peer that stalls, dies or sends anything else is left for
another replica, and comes last for a while in other groups too."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any
from zlib import crc32

import numpy as np
from distributed import Worker
from distributed.protocol import to_serialize
from numpy.typing import NDArray

from gpuflow.cluster.messages import ChunkGroup
from gpuflow.cluster.ranges import RangeQuestions
from gpuflow.cluster.serving import PART_CHUNKS, PART_NBYTES, Part, patience_seconds
from gpuflow.errors import ChunkCorrupt, ChunkLost
from gpuflow.storage.blocks import Box
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.opened import Range

logger = logging.getLogger(__name__)

_SHUNNED_SECONDS = 30.0  # for which a peer that failed is asked after all others
_CONNECT_SECONDS = 1.5  # takes milliseconds; but Dask tries one that has died again and again
_BUSY_SECONDS = 0.05  # between questions to peers that have their hands full
_BUSY_PATIENCE_SECONDS = 120.0

Holders = dict[int, list[str]]
"""Addresses of workers that can serve a chunk."""
Boxes = Mapping[int, Sequence[Box]]
"""Parts of each chunk."""


class Peers:
    """A worker's way to the others, or a client's to the workers. One a worker."""

    def __init__(self, worker: Worker) -> None:
        """worker: or what else has its `rpc` pool, its `loop`, and an `address` of its own."""
        self._worker = worker
        self._shunned: dict[str, float] = {}  # address -> until when
        self._ranges = RangeQuestions(self._exchange, self.shun)

    def run(self, coroutine: Any) -> Future[Any]:
        """From a task's thread, on the event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._worker.loop.asyncio_loop)

    def in_order(self, addresses: Sequence[str]) -> list[str]:
        """Whom to ask first: each worker begins elsewhere, so that all holders serve; not itself."""
        now, own = time.monotonic(), self._worker.address
        others = sorted(address for address in addresses if address != own)
        start = crc32(own.encode()) % max(len(others), 1)
        return sorted(others[start:] + others[:start], key=lambda address: self._shunned.get(address, 0.0) > now)

    def side_by_side(self, chunks: Sequence[int], holders: Holders) -> list[int]:
        """The order in which what one peer is asked for first stands together: one question then, else one for each of neighbours that
        lie on different nodes."""
        first = {chunk: self.in_order(holders[chunk])[:1] for chunk in chunks}
        return sorted(chunks, key=lambda chunk: (first[chunk], chunk))

    def shun(self, address: str) -> None:
        """It failed."""
        self._shunned[address] = time.monotonic() + _SHUNNED_SECONDS

    async def ask(
        self, address: str, group: ChunkGroup, chunks: Sequence[int], nbytes: int, boxes: Boxes | None = None
    ) -> Part | None:
        """The beginning of `chunks`, some `nbytes` a part. None when the peer is busy. OSError when it fails."""
        question = {"op": "gf_get_chunks", "dataset": group.dataset, "array": group.array, "chunks": chunks, "run": group.run}
        if boxes is not None:
            question["boxes"] = [[[(axis.start, axis.stop) for axis in box] for box in boxes[chunk]] for chunk in chunks]
        answer = await self._exchange(address, question, nbytes)
        if "busy" in answer:
            return None
        if "count" not in answer:
            raise OSError(f"worker {address} cannot serve chunks: {answer.get('exception_text', answer)}")
        sound = [Replica(group.dataset, group.array, *row[:6]) for row in answer["sound"]]
        sent = [(row[2], row[3]) if boxes is None else (row[6], row[7]) for row in answer["sound"]]
        damaged = [(chunk, reason) for chunk, reason in answer["damaged"]]
        return Part(answer["count"], sound, sent, damaged, np.frombuffer(answer["data"], np.uint8))

    async def _exchange(self, address: str, question: dict[str, Any], nbytes: int) -> Any:
        """What a worker answers; some `nbytes`. OSError when it fails."""
        pool = self._worker.rpc
        async with asyncio.timeout(patience_seconds(nbytes)):
            async with asyncio.timeout(_CONNECT_SECONDS):
                comm = await pool.connect(address)
            try:
                await comm.write({**question, "reply": True})
                answer = await comm.read()
                if isinstance(answer, dict) and answer.get("acknowledge"):
                    await comm.write("OK")
            except BaseException:
                comm.abort()  # else the next user of the connection would get what is still to come
                raise
            finally:
                pool.reuse(address, comm)
        return answer

    def put(self, address: str, data: NDArray[np.uint8], question: dict[str, Any]) -> Sequence[Any]:
        """Have a worker commit a chunk (see `worker_plugin.put_chunk`); what it says of it. Called from a task's thread."""

        async def call() -> Any:
            async with asyncio.timeout(_BUSY_PATIENCE_SECONDS):
                return await self._worker.rpc(address).gf_put_chunk(data=to_serialize(data), **question)

        answer: Sequence[Any] = self.run(call()).result()
        return answer

    def kept(self, address: str, question: dict[str, Any]) -> tuple[Sequence[Any], bytes]:
        """A chunk of a snapshot from a worker (see `Serving.get_kept`): of its replica what follows its number, and its bytes."""

        async def call() -> Any:
            async with asyncio.timeout(_BUSY_PATIENCE_SECONDS):
                return await self._worker.rpc(address).gf_get_kept(**question)

        answer = self.run(call()).result()
        return answer["replica"], bytes(np.frombuffer(answer["data"], np.uint8))

    def ranges(self, address: str, replica: Replica, run: str, ranges: Sequence[Range]) -> NDArray[np.uint8]:
        """Ranges of a stored object from a worker, one behind the other (see `Serving.get_ranges`). OSError when it does not give them.
        Called from a task's thread."""
        found: NDArray[np.uint8] = self.run(self._ranges.ask(address, run, replica, ranges)).result()
        return found


@dataclass(slots=True)
class _Arrived:
    """What `address` sent of a chunk, not yet verified; nothing when it has none, or when nobody answered. sent: its bytes and their
    digest, as it says. damage: what is wrong."""

    address: str = ""
    replica: Replica | None = None
    sent: tuple[int, bytes] = (0, b"")
    data: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    damage: str = ""


class Transfer:
    """The way of a group's chunks to this worker. Used by one thread; two parts are in memory at most, of which one is computed.

    boxes: only these parts of each chunk are wanted, and come decoded, one behind the other.
    nbytes, seconds: what came, and what that took, whether it was waited for or not. source: who sent the chunk that was taken last."""

    def __init__(
        self,
        peers: Peers,
        group: ChunkGroup,
        chunks: Sequence[int],
        holders: Holders,
        locate: Callable[[Sequence[int]], Holders],
        boxes: Boxes | None = None,
    ) -> None:
        self._boxes = boxes
        self._peers, self._group, self._holders, self._locate = peers, group, dict(holders), locate
        self._least = dict(zip(group.chunks, group.generations, strict=True))
        self._expected_nbytes = max(PART_NBYTES, 2 * group.nbytes // len(group.chunks))
        self._left = deque(chunks)
        self._asked: list[int] = []
        self._under_way: Future[dict[int, _Arrived]] | None = None
        self._ready: dict[int, _Arrived] = {}
        self._failed: set[str] = set()
        self._located = False
        self.nbytes, self.seconds, self.source = 0, 0.0, ""

    def begin(self) -> None:
        """Ask for the next part, unless one is under way."""
        if self._under_way is None and self._left:
            self._asked = [self._left.popleft() for _ in range(min(len(self._left), PART_CHUNKS))]
            self._under_way = self._peers.run(self._fetch(self._asked))

    def take(self, chunk: int, name: str) -> tuple[Replica, memoryview[int]]:
        """A verified chunk; they come in the order of the transfer. When no peer has it whole: ChunkCorrupt if one has it damaged,
        else ChunkLost."""
        while chunk not in self._ready:
            if self._under_way is None and chunk not in self._left:
                self._left.appendleft(chunk)
            self.begin()
            self._receive()
            self.begin()
        return self._verified(chunk, name)

    def close(self) -> None:
        """Nothing more is wanted."""
        if self._under_way is not None:
            self._under_way.cancel()
            self._under_way = None

    def _receive(self) -> None:
        """Wait for the part that is under way; what it left out is asked for next."""
        assert self._under_way is not None
        self._ready = self._under_way.result()
        self._under_way = None
        self._left.extendleft(reversed([chunk for chunk in self._asked if chunk not in self._ready]))

    def _verified(self, chunk: int, name: str) -> tuple[Replica, memoryview[int]]:
        """What has come of a chunk if it is right, else what another peer has of it."""
        arrived, tried = self._ready.pop(chunk), set[str]()
        damaged: ChunkCorrupt | None = None
        while True:
            replica = arrived.replica
            if replica is not None and replica.generation >= self._least[chunk]:
                nbytes, checksum = arrived.sent
                if len(arrived.data) == nbytes and (not nbytes or digest(arrived.data.data) == checksum):
                    self.source = arrived.address
                    return replica, arrived.data.data
                arrived.damage = "its bytes changed on the way"
                self._fails(arrived.address)
            if arrived.damage:
                damaged = ChunkCorrupt(name, arrived.address, arrived.damage)
            tried.add(arrived.address)
            if not self._others(chunk, tried):
                raise damaged or ChunkLost(name, sorted(tried - {""}))
            arrived = self._peers.run(self._fetch([chunk], tried)).result()[chunk]

    def _others(self, chunk: int, tried: Set[str]) -> list[str]:
        """Peers that may still have a chunk. When none is left the scheduler is asked, once: holders come and go."""
        while True:
            known = self._peers.in_order(self._holders.get(chunk, ()))
            others = [address for address in known if address not in tried and address not in self._failed]
            if others or self._located:
                return others
            self._located = True
            self._holders.update(self._locate(self._group.chunks))

    def _fails(self, address: str) -> None:
        self._failed.add(address)
        self._peers.shun(address)

    # -- on the event loop ------------------------------------------------------------------------------------------------------------

    async def _fetch(self, chunks: Sequence[int], tried: Set[str] = frozenset()) -> dict[int, _Arrived]:
        """What a peer has of the first of `chunks`, as many as make a part; at least one."""
        address, part = await self._answer(chunks, tried)
        arrived = {chunk: _Arrived(address) for chunk in chunks[: max(part.count, 1)]}
        data, position = part.data, 0
        for replica, sent in zip(part.sound, part.sent, strict=True):
            if replica.chunk in arrived:
                arrived[replica.chunk] = _Arrived(address, replica, sent, data[position : position + sent[0]])
            position += sent[0]
        for chunk, reason in part.damaged:
            if chunk in arrived:
                arrived[chunk].damage = reason
        return arrived

    async def _answer(self, chunks: Sequence[int], tried: Set[str]) -> tuple[str, Part]:
        """From the first peer that answers for the first chunk, and has nothing else to do; a part without anything when none does."""
        deadline = time.monotonic() + _BUSY_PATIENCE_SECONDS
        while True:
            busy = False
            for address in self._peers.in_order(self._holders.get(chunks[0], ())):
                if address in tried or address in self._failed:
                    continue
                held = list(takewhile(lambda chunk, address=address: address in self._holders.get(chunk, ()), chunks))  # type: ignore[misc]
                began = time.monotonic()
                try:
                    part = await self._peers.ask(address, self._group, held, self._expected_nbytes, self._boxes)
                except OSError as error:
                    logger.info("worker %s does not serve chunks of %s: %s", address, self._group.dataset, error or "it stalls")
                    self._fails(address)
                    continue
                if part is None:
                    busy = True
                    continue
                self.nbytes += len(part.data)
                self.seconds += time.monotonic() - began
                return address, part
            if not busy or time.monotonic() > deadline:
                return "", Part(1)
            await asyncio.sleep(_BUSY_SECONDS)
