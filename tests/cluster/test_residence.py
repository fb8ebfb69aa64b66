"""What the scheduler knows of workers' memory, and where it sends tasks for it."""

from __future__ import annotations

import time
from typing import Any

from distributed import get_worker

from gpuflow.cluster.fleet import WorkerView
from gpuflow.cluster.inventory import ArrayName
from gpuflow.cluster.messages import ChunkGroup
from gpuflow.cluster.residence import Residence, by_chunk
from gpuflow.cluster.routing import LOCAL, Router, Waiting
from tests.cluster.in_process import Cluster, scenario

ARRAY: ArrayName = ("d", "x")


def test_reports_add_up_in_any_order_of_repetition() -> None:
    residence = Residence()
    for _ in range(2):
        residence.report("a", ARRAY, [1, 2, 3], [])
        residence.report("a", ARRAY, [4], [1])
    assert residence.of(ARRAY) == {"a": [2, 3, 4]}
    residence.changed(ARRAY, [2, 9])
    assert residence.of(ARRAY) == {"a": [3, 4]}


def test_of_some_chunks_it_tells_who_has_them_and_whether_anything_has_changed() -> None:
    residence = Residence()
    residence.report("a", ARRAY, range(0, 10**6, 2), [])
    residence.report("b", ARRAY, [3, 4], [])
    assert residence.of(ARRAY, {4, 5, 10**6}) == {"a": [4], "b": [4]}
    assert by_chunk([("n0", [4, 6]), ("n1", [4])]) == {4: {"n0", "n1"}, 6: {"n0"}}
    began = time.perf_counter()
    for _ in range(20):
        residence.of(ARRAY, frozenset(range(0, 10**6, 489)))
    assert time.perf_counter() - began < 1, "the scheduler has other things to do than to go through a million chunks"
    seen = {residence.changes}
    for change in (
        lambda: residence.report("b", ARRAY, [], [3]),
        lambda: residence.changed(ARRAY, [4]),
        lambda: residence.forget("a"),
        lambda: residence.report("b", ARRAY, [1], []),
        lambda: residence.drop("d"),
    ):
        change()
        assert residence.changes not in seen
        seen.add(residence.changes)


def test_home_is_who_has_more_than_half() -> None:
    residence = Residence()
    residence.report("a", ARRAY, [0, 1, 2], [])
    residence.report("b", ARRAY, [2, 3], [])
    assert residence.home(ARRAY, [0, 1, 2, 3]) == "a"
    assert residence.home(ARRAY, [2, 3, 4]) == "b"
    assert residence.home(ARRAY, [0, 3]) == ""
    assert residence.home(ARRAY, [7]) == ""
    assert residence.home(("d", "other"), [0]) == ""


def test_who_is_gone_has_nothing() -> None:
    residence = Residence()
    residence.report("a", ARRAY, [0], [])
    residence.report("b", ARRAY, [0], [])
    residence.forget("b")
    assert residence.of(ARRAY) == {"a": [0]}
    assert residence.drop("d") == {"a"}
    assert residence.of(ARRAY) == {}
    residence.report("a", ARRAY, [], [0])
    assert residence._chunks == {}


def views(*processing: int, threads: int = 1) -> list[WorkerView]:
    """Workers a, b, c, ... of one node."""
    return [WorkerView(name, "n", threads, busy) for name, busy in zip("abc", processing, strict=False)]


def parked(router: Router, warm: str, count: int, start: int = 0, run: str = "r") -> None:
    """Tasks of a second."""
    for number in range(start, start + count):
        router.park(Waiting(number, run, frozenset(["n"]), 1000, 200_000_000, warm=warm))


def sent(router: Router, workers: list[WorkerView]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for release in router.release(workers):
        assert release.reason == LOCAL
        found.setdefault(release.worker, []).append(release.key)
    return found


def test_tasks_go_to_the_worker_that_has_their_chunks_in_memory() -> None:
    router = Router()
    parked(router, "b", 2)
    parked(router, "a", 2, start=2)
    parked(router, "", 2, start=4)
    assert sent(router, views(0, 0)) == {"a": [2, 3], "b": [0, 1]}


def test_what_nobody_has_comes_before_what_others_have() -> None:
    router = Router()
    parked(router, "b", 20)
    parked(router, "", 1, start=20)
    assert sent(router, views(0, 0)) == {"a": [20, 19], "b": [0, 1]}


def test_a_few_are_left_to_who_has_them_and_many_are_not() -> None:
    router = Router()
    parked(router, "b", 5)
    assert sent(router, views(0, 0)) == {"b": [0, 1], "a": [4]}, "the fifth is one too many"
    assert router.waiting == 2
    assert sent(router, views(1, 2)) == {}
    router.finished(0, 0.1)
    assert sent(router, views(1, 1)) == {"b": [2]}


def test_of_tasks_that_take_no_time_more_are_left() -> None:
    router = Router()
    for number in range(40):
        router.park(Waiting(number, "r", frozenset(["n"]), 1000, 2_000_000, warm="b"))
    assert sent(router, views(0, 0)) == {"b": [0, 1], "a": [39, 38]}, "a quarter of a second are 25"
    router = Router()
    for number in range(25):
        router.park(Waiting(number, "r", frozenset(["n"]), 1000, 2_000_000, warm="b"))
    assert sent(router, views(0, 0)) == {"b": [0, 1]}


def test_nothing_is_left_to_who_takes_no_tasks_or_is_busy_with_others() -> None:
    router = Router()
    parked(router, "b", 2)
    assert sent(router, [WorkerView("a", "n", 1, 0), WorkerView("b", "n", 0, 0)]) == {"a": [1, 0]}
    router = Router()
    parked(router, "gone", 2)
    assert set(sent(router, views(0))) == {"a"}
    router = Router()
    parked(router, "b", 1)
    assert sent(router, views(0, 2)) == {"a": [0]}, "it is in the middle of somebody's tasks"


def test_nothing_is_left_while_there_is_other_work() -> None:
    """Or a run's last tasks would hold up another run."""
    router = Router()
    parked(router, "b", 1, run="r")
    parked(router, "", 4, start=1, run="s")
    released = sent(router, views(0, 2))
    assert len(released["a"]) == 2


def test_what_is_taken_back_is_forgotten() -> None:
    router = Router()
    parked(router, "a", 3)
    sent(router, views(0, 0))
    for key in range(3):
        router.discard(key)
    assert (router.waiting, router._flying, router._queues, dict(router._at)) == (0, {}, {}, {})


def who(part: ChunkGroup) -> str:
    return str(get_worker().name)


def test_a_worker_that_joins_tells_what_it_has_and_gets_the_tasks() -> None:
    """As after a restart of the scheduler, whose workers join anew."""

    async def test(cluster: Cluster) -> None:
        await cluster.start("n0-a", range(8), ram=[1, 3, 5, 7])
        await cluster.start("n0-b", range(8), ram=[0, 2, 4, 6])
        await cluster.until(lambda: len(cluster.plugin.residence.of(ARRAY)) == 2)
        names = await cluster.client.gather(cluster.submit(8, function=who, takes=True))
        assert names == ["n0-b", "n0-a"] * 4
        await cluster.workers["n0-a"].close()
        await cluster.until(lambda: len(cluster.plugin.residence.of(ARRAY)) == 1)
        names = await cluster.client.gather(cluster.submit(8, run="other", function=who, takes=True))
        assert set(names) == {"n0-b"}

    scenario(test, nodes=0)
