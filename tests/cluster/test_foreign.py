"""Users' own tasks that read chunks: run where these lie, and otherwise as Dask runs them, on a scheduler that checks its invariants."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from dask.task_spec import DataNode, List, Task, TaskRef
from distributed import get_worker

from gpuflow.cluster import foreign
from gpuflow.cluster.locating import Elsewhere
from gpuflow.cluster.references import ChunkRef, find_reference
from tests.cluster.in_process import CHUNKS, Cluster, scenario


def ref(chunk: int, dataset: str = "d") -> ChunkRef:
    return ChunkRef(dataset, "x", (chunk,), (1,), 2**20)


def where(*args: Any) -> str:
    time.sleep(0.01)
    return str(get_worker().name).split("-")[0]


def graph(number: int = CHUNKS, name: str = "read") -> dict[Any, Any]:
    return {(name, chunk): Task((name, chunk), where, ref(chunk)) for chunk in range(number)}


def run(cluster: Cluster, tasks: dict[Any, Any], keys: list[Any], **options: Any) -> list[Any]:
    futures: list[Any] = cluster.client.get(tasks, keys, sync=False, **options)
    return futures


def test_tasks_run_where_their_chunks_lie() -> None:
    async def test(cluster: Cluster) -> None:
        tasks = graph()
        found = await cluster.client.gather(run(cluster, tasks, list(tasks)))
        assert found == [f"n{chunk % 3}" for chunk in range(CHUNKS)]
        assert dict(cluster.plugin.reasons[foreign.RUN]) == {}  # while the futures live
        await cluster.until(lambda: not cluster.plugin.groups)
        cluster.assert_clean()
        assert dict(cluster.plugin.reasons[foreign.RUN]) == {"local": CHUNKS}

    scenario(test)


def test_what_depends_on_them_and_what_they_depend_on_runs_as_ever() -> None:
    async def test(cluster: Cluster) -> None:
        tasks: dict[Any, Any] = {"before": Task("before", time.time)}
        for chunk in range(9):
            tasks["read", chunk] = Task(("read", chunk), where, TaskRef("before"), ref(chunk))
        tasks["all"] = Task("all", sorted, List(*(TaskRef(("read", chunk)) for chunk in range(9))))
        (future,) = run(cluster, tasks, ["all"])
        assert await future == ["n0"] * 3 + ["n1"] * 3 + ["n2"] * 3
        future.release()
        await cluster.until(lambda: not cluster.plugin.groups)
        cluster.assert_clean()

    scenario(test)


def test_what_a_user_restricts_and_what_nobody_holds_is_left_alone() -> None:
    async def test(cluster: Cluster) -> None:
        only = cluster.workers["n2"].address
        pinned = run(cluster, graph(6, "pinned"), [("pinned", chunk) for chunk in range(6)], workers=[only])
        assert set(await cluster.client.gather(pinned)) == {"n2"}
        unknown = {("other", i): Task(("other", i), where, ref(i, "nowhere")) for i in range(6)}
        assert len(await cluster.client.gather(run(cluster, unknown, list(unknown)))) == 6
        plain = cluster.client.map(where, range(6), pure=False)
        assert len(await cluster.client.gather(plain)) == 6
        assert not cluster.plugin.groups

    scenario(test)


def test_cancelled_tasks_leave_nothing_behind() -> None:
    async def test(cluster: Cluster) -> None:
        tasks = {("slow", i): Task(("slow", i), lambda part: time.sleep(0.2), ref(i)) for i in range(CHUNKS)}
        futures = run(cluster, tasks, list(tasks))
        await cluster.until(lambda: cluster.states()["processing"] > 0)
        await cluster.client.cancel(futures)
        del futures
        await cluster.until(lambda: not cluster.plugin.groups)
        cluster.assert_clean()

    scenario(test)


def test_an_error_is_the_users_and_a_second_computation_goes_on() -> None:
    def fail(part: ChunkRef) -> None:
        raise ZeroDivisionError(part.chunks[0])

    async def test(cluster: Cluster) -> None:
        (future,) = run(cluster, {"fails": Task("fails", fail, ref(4))}, ["fails"])
        with pytest.raises(ZeroDivisionError, match="4"):
            await future
        future.release()
        tasks = graph(6)
        assert len(await cluster.client.gather(run(cluster, tasks, list(tasks)))) == 6

    scenario(test)


def test_results_of_a_worker_that_dies_are_computed_again_and_retired_workers_hand_theirs_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(foreign, "GRACE_SECONDS", 0.2)

    async def test(cluster: Cluster) -> None:
        tasks = graph(12)
        futures = run(cluster, tasks, list(tasks))
        await cluster.client.gather(futures)
        await cluster.workers.pop("n0").close()  # its results are lost, and nobody else has its chunks
        found = await cluster.client.gather(futures)
        assert all(found[chunk] == f"n{chunk % 3}" for chunk in range(12) if chunk % 3)
        assert all(found[chunk] in ("n1", "n2") for chunk in range(0, 12, 3))
        await cluster.client.retire_workers([cluster.workers["n1"].address])
        assert len(await cluster.client.gather(futures)) == 12

    scenario(test)


def test_tasks_whose_node_is_gone_wait_for_it_and_then_run_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "GRACE_SECONDS", 0.5)

    async def test(cluster: Cluster) -> None:
        await cluster.workers.pop("n0").close()
        began = time.monotonic()
        (future,) = run(cluster, {"stranded": Task("stranded", where, ref(0))}, ["stranded"])
        assert await future in ("n1", "n2")
        assert time.monotonic() - began >= 0.5
        assert not cluster.plugin.groups
        await cluster.start("n0-again", range(0, CHUNKS, 3))
        (again,) = run(cluster, {"again": Task("again", where, ref(3))}, ["again"])
        assert await again == "n0"

    scenario(test)


GPU_SAYS = {"device": "cuda:0", "device_name": "A100"}


def device_graph(number: int, name: str = "cupy") -> dict[Any, Any]:
    refs = (ChunkRef("d", "x", (chunk,), (1,), 2**20, "cuda") for chunk in range(number))
    return {(name, chunk): Task((name, chunk), worker_name, part) for chunk, part in enumerate(refs)}


def worker_name(*args: Any) -> str:
    time.sleep(0.02)
    return str(get_worker().name)


def test_tasks_that_make_blocks_on_a_device_run_on_workers_with_one() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.start("n0-gpu", says=GPU_SAYS)
        tasks = device_graph(12) | graph(12)
        found = await cluster.client.gather(run(cluster, tasks, list(tasks)))
        assert found[:12] == ["n0-gpu"] * 12, "wherever their chunks lie"
        assert found[12:] == [f"n{chunk % 3}" for chunk in range(12)]
        await cluster.until(lambda: not cluster.plugin.groups)
        cluster.assert_clean()

    scenario(test)


def test_when_the_last_device_goes_its_tasks_run_anywhere_and_say_so_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "GRACE_SECONDS", 0.3)

    async def test(cluster: Cluster) -> None:
        gone = await cluster.start("n0-gpu", says=GPU_SAYS)
        tasks = device_graph(20)
        futures = run(cluster, tasks, list(tasks))
        await cluster.until(lambda: cluster.states()["memory"] > 0)
        await gone.close()
        found = await asyncio.wait_for(cluster.client.gather(futures), 10)
        assert set(found) == {"n0", "n1", "n2"}
        again = device_graph(3, "later")
        assert len(await asyncio.wait_for(cluster.client.gather(run(cluster, again, list(again))), 10)) == 3

    scenario(test)


def test_when_the_plugin_breaks_users_tasks_still_run() -> None:
    async def test(cluster: Cluster) -> None:
        tasks = {("slow", i): Task(("slow", i), lambda part: time.sleep(0.05), ref(i)) for i in range(30)}
        futures = run(cluster, tasks, list(tasks))
        await cluster.until(lambda: cluster.states()["no-worker"] > 0)
        cluster.plugin._break("a test", KeyError("x"))
        assert len(await asyncio.wait_for(cluster.client.gather(futures), 10)) == 30

    scenario(test)


def test_references_are_found_in_whatever_they_are_wrapped() -> None:
    spec = Task("k", where, [{"a": (1, ref(3))}], other=Task("inner", where, ref(5)))
    assert find_reference(spec, lambda key: None) in (ref(3), ref(5))
    assert find_reference(Task("k", where, 1, "x"), lambda key: None) is None
    assert find_reference(DataNode("k", ref(3)), lambda key: None) is None
    fused = Task.fuse(Task("a", where, ref(7)), Task("b", where, TaskRef("a")))
    assert find_reference(fused, lambda key: None) == ref(7)
    many = Task("k", where, [[i] for i in range(10**5)])
    began = time.monotonic()
    assert find_reference(many, lambda key: None) is None
    assert time.monotonic() - began < 1


class Nosy:
    """What is not to be asked for anything on the scheduler."""

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"asked for {name}")


def test_users_objects_are_not_asked_for_anything() -> None:
    spec = Task("k", where, Nosy(), [Nosy(), {"a": Nosy()}], TaskRef("other"), ref(2), b=Nosy())
    assert find_reference(spec, lambda key: DataNode(key, Nosy())) == ref(2)
    with pytest.raises(AttributeError, match="args"):
        _ = Elsewhere("tcp://10.0.0.1:1").args
