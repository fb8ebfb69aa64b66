"""What is asked of one worker at once goes into few questions, and each who asks has what was asked for, or a reason."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gpuflow.cluster import ranges
from gpuflow.cluster.ranges import RangeQuestions
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica

STORED = {chunk: np.random.default_rng(chunk).integers(0, 256, 1000, dtype=np.uint8) for chunk in range(100)}


def replica(chunk: int) -> Replica:
    return Replica("d", "a", chunk, 1, 1000, chunk.to_bytes(16, "big"), bytes(16), bytes(16))


class Worker:
    """One that has STORED, but not the chunks in `lacks`. questions: the chunks of each."""

    def __init__(self, lacks: Sequence[int] = (), fault: Exception | None = None) -> None:
        self.lacks, self.fault = lacks, fault
        self.questions: list[list[int]] = []
        self.most = self.now = 0

    async def exchange(self, address: str, question: dict[str, Any], nbytes: int) -> Any:
        self.questions.append([chunk for _, _, chunk, _, _ in question["objects"]])
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        self.now -= 1
        if self.fault is not None:
            raise self.fault
        data, lacks = [np.empty(0, np.uint8)], []
        for _, _, chunk, committed, wanted in question["objects"]:
            assert committed == replica(chunk).digest
            lacks.append("gone" if chunk in self.lacks else "")
            data += [] if chunk in self.lacks else [STORED[chunk][start:stop] for start, stop in wanted]
        joined = np.concatenate(data)
        return {"data": joined, "digest": digest(joined.data), "lacks": lacks}


def asked(
    worker: Worker, chunks: Sequence[int], wanted: Sequence[tuple[int, int]] = ((0, 10), (500, 700))
) -> tuple[list[Any], list[str]]:
    """What came of each chunk, or the error; and the addresses that failed."""
    failed: list[str] = []

    async def all_of_them() -> list[Any]:
        questions = RangeQuestions(worker.exchange, failed.append)
        return await asyncio.gather(
            *(questions.ask("w", "r", replica(chunk), wanted) for chunk in chunks), return_exceptions=True
        )

    return asyncio.run(all_of_them()), failed


def test_many_are_few_questions_and_come_as_they_were_asked_for() -> None:
    worker = Worker()
    found, failed = asked(worker, range(100))
    for chunk, data in enumerate(found):
        np.testing.assert_array_equal(data, np.concatenate([STORED[chunk][:10], STORED[chunk][500:700]]))
    assert sorted(chunk for question in worker.questions for chunk in question) == list(range(100))
    assert len(worker.questions) <= 2
    assert not failed


def test_one_that_is_gone_fails_alone() -> None:
    found, failed = asked(Worker(lacks=[3]), range(6))
    assert [isinstance(data, OSError) for data in found] == [chunk == 3 for chunk in range(6)]
    assert str(found[3]) == "worker w does not send it: gone"
    np.testing.assert_array_equal(found[4][:10], STORED[4][:10])
    assert not failed


@pytest.mark.parametrize("fault", [OSError("it died"), TimeoutError(), ValueError("no such handler")])
def test_a_worker_that_does_not_answer_fails_all_that_wait_and_is_told_of(fault: Exception) -> None:
    found, failed = asked(Worker(fault=fault), range(6))
    assert all(isinstance(data, OSError) for data in found)
    assert set(failed) == {"w"}


@pytest.mark.parametrize("lie", [{"digest": bytes(16)}, {"data": np.empty(0, np.uint8), "digest": digest(b"")}])
def test_what_changed_on_the_way_is_not_taken(lie: dict[str, Any]) -> None:
    class Lying(Worker):
        async def exchange(self, address: str, question: dict[str, Any], nbytes: int) -> Any:
            return await super().exchange(address, question, nbytes) | lie

    found, failed = asked(Lying(), [1])
    assert "changed on the way" in str(found[0])
    assert failed == ["w"]


def test_a_question_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_QUESTION_NBYTES", 500)
    monkeypatch.setattr(ranges, "_QUESTION_OBJECTS", 3)
    small, large = Worker(), Worker()
    asked(small, range(12), [(0, 10)])
    assert max(map(len, small.questions)) == 3
    assert small.most == 2, "one is read for while the answer to the other is on its way"
    found, _ = asked(large, range(5), [(0, 900)])
    assert [len(question) for question in large.questions] == [1] * 5
    assert all(len(data) == 900 for data in found)
