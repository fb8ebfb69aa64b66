"""Parts of stored objects of other workers: what is asked of one of them while it has a question is the next question, together.

Readers of shuffled samples want a little of many objects. A question costs a worker and who asks it as much as some hundred kilobytes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.opened import Range, total

_UNDER_WAY = 2
"""Questions to one worker: while it reads for one, the answer to the other is on its way."""
_QUESTION_NBYTES = 8 * 2**20
_QUESTION_OBJECTS = 256

Exchange = Callable[[str, dict[str, Any], int], Awaitable[Any]]
"""(address, question, about how many bytes the answer has) -> the answer. OSError."""


@dataclass(slots=True)
class _Wanted:
    replica: Replica
    ranges: Sequence[Range]
    data: asyncio.Future[NDArray[np.uint8]]

    @property
    def nbytes(self) -> int:
        return total(self.ranges)


@dataclass(slots=True)
class _Line:
    """What is wanted of a worker and not yet asked for, and how many questions it has."""

    waiting: deque[_Wanted] = field(default_factory=deque)
    under_way: int = 0


class RangeQuestions:
    """Of one process, used on its event loop. fails: is told the address of a worker that does not answer."""

    def __init__(self, exchange: Exchange, fails: Callable[[str], None]) -> None:
        self._exchange, self._fails = exchange, fails
        self._lines: dict[tuple[str, str], _Line] = {}
        self._senders: set[asyncio.Task[None]] = set()

    async def ask(self, address: str, run: str, replica: Replica, ranges: Sequence[Range]) -> NDArray[np.uint8]:
        """Ranges of just this replica, one behind the other. OSError when the worker does not give them."""
        line = self._lines.setdefault((address, run), _Line())
        wanted = _Wanted(replica, ranges, asyncio.get_running_loop().create_future())
        line.waiting.append(wanted)
        if line.under_way < _UNDER_WAY:
            line.under_way += 1
            sender = asyncio.create_task(self._send(address, run, line))
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        return await wanted.data

    async def _send(self, address: str, run: str, line: _Line) -> None:
        try:
            while line.waiting:
                together = _next(line.waiting)
                try:
                    await self._put(address, run, together)
                except Exception as error:  # noqa: BLE001 - whoever waits has it
                    self._fails(address)
                    for one in together:
                        if not one.data.done():
                            one.data.set_exception(OSError(f"worker {address} does not send it: {error or type(error).__name__}"))
        finally:
            line.under_way -= 1

    async def _put(self, address: str, run: str, together: Sequence[_Wanted]) -> None:
        """One question. What of its objects the worker does not have fails alone."""
        objects = [(w.replica.dataset, w.replica.array, w.replica.chunk, w.replica.digest, w.ranges) for w in together]
        question = {"op": "gf_get_ranges", "objects": objects, "run": run}
        answer = await self._exchange(address, question, sum(one.nbytes for one in together))
        if "data" not in answer:
            raise OSError(answer.get("exception_text", answer))
        data, position = np.frombuffer(answer["data"], np.uint8), 0
        sent = sum(one.nbytes for one, lacks in zip(together, answer["lacks"], strict=True) if not lacks)
        if len(data) != sent or digest(data.data) != answer["digest"]:
            raise OSError("it has changed on the way")
        for one, lacks in zip(together, answer["lacks"], strict=True):
            if lacks:
                one.data.set_exception(OSError(f"worker {address} does not send it: {lacks}"))
                continue
            one.data.set_result(data[position : position + one.nbytes])
            position += one.nbytes


def _next(waiting: deque[_Wanted]) -> list[_Wanted]:
    """The first, and those behind it that go into the same question."""
    found, nbytes = [waiting.popleft()], 0
    while waiting and len(found) < _QUESTION_OBJECTS:
        nbytes += found[-1].nbytes
        if nbytes + waiting[0].nbytes > _QUESTION_NBYTES:
            break
        found.append(waiting.popleft())
    return found
