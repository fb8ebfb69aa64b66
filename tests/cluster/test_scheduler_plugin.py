"""Chunk tasks on a real scheduler with its invariants checked at every transition: they run on holders, or visibly not at all."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import Any

import dask
import pytest
from dask.task_spec import Task, TaskRef
from distributed import Status, Worker

from gpuflow.cluster import scheduler_plugin
from gpuflow.cluster.messages import PREFIX
from gpuflow.cluster.scheduler_plugin import PARKED, GpuflowPlugin

from .in_process import CHUNKS, Cluster, fail, group, scenario, where


def test_chunk_tasks_run_on_holders() -> None:
    async def test(cluster: Cluster) -> None:
        futures = cluster.submit(CHUNKS, seconds=0.002)
        assert await cluster.client.gather(futures) == [f"n{i % 3}" for i in range(CHUNKS)]
        assert (await cluster.plugin.handle_run("r"))["reasons"] == {"local": CHUNKS}
        assert not cluster.plugin.broken
        del futures
        await cluster.until(lambda: not cluster.scheduler.tasks)
        cluster.assert_clean()

    scenario(test)


def test_a_named_node_takes_the_task() -> None:
    async def test(cluster: Cluster) -> None:
        futures = cluster.submit(6, node="n2", movable=False)
        assert set(await cluster.client.gather(futures)) == {"n2"}

    scenario(test)


def test_a_hot_node_gets_help_unless_its_chunks_must_stay() -> None:
    async def test(cluster: Cluster) -> None:
        futures = cluster.submit(CHUNKS, node="n0", seconds=0.02)
        assert set(await cluster.client.gather(futures)) == {"n0", "n1", "n2"}
        answer = await cluster.plugin.handle_run("r")
        assert set(answer["reasons"]) == {"local", "hot_node"}
        assert answer["idle_seconds"] >= 0
        stay = cluster.submit(12, run="s", node="n0", seconds=0.01, movable=False)
        assert set(await cluster.client.gather(stay)) == {"n0"}
        assert (await cluster.plugin.handle_run("s"))["idle_seconds"] > 0.05

    scenario(test)


def test_a_chunk_task_without_a_group_breaks_visibly() -> None:
    async def test(cluster: Cluster) -> None:
        keys = [(f"{PREFIX}map-r", i) for i in range(3)]
        graph = {key: Task(key, where, group(0) if key[1] == 0 else None) for key in keys}
        futures = cluster.client.get(graph, keys, sync=False)
        await cluster.until(lambda: bool(cluster.plugin.broken))
        await asyncio.sleep(0.1)
        assert "TypeError in update_graph: chunk task" in cluster.plugin.broken
        assert "holds no ChunkGroup" in (await cluster.plugin.handle_info())["broken"]
        assert cluster.states() == {"no-worker": 3}
        await cluster.client.cancel(futures)
        await cluster.until(lambda: not cluster.scheduler.tasks)
        cluster.assert_clean()

    scenario(test)


@pytest.mark.parametrize("hook", ["group_of", "_restrict", "_park", "_release", "_pin"])
def test_an_error_in_a_hook_runs_nothing_anywhere(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*args: Any) -> None:
        raise ZeroDivisionError("boom")

    async def test(cluster: Cluster) -> None:
        if hook == "_release":
            monkeypatch.setattr(cluster.plugin.router, "release", explode)
        else:
            monkeypatch.setattr(scheduler_plugin if hook == "group_of" else GpuflowPlugin, hook, explode)
        futures = cluster.submit(6)
        foreign = cluster.client.submit(sum, [1, 2])
        await cluster.until(lambda: bool(cluster.plugin.broken))
        assert await foreign == 3
        await asyncio.sleep(0.05)
        assert cluster.plugin.broken.startswith("ZeroDivisionError in ")
        assert "boom" in cluster.plugin.broken
        assert {future.status for future in futures} == {"pending"}
        assert {task.worker_restrictions for task in map(_Hashable, cluster.scheduler.tasks.values()) if task.chunk} == {PARKED}

    scenario(test)


class _Hashable:
    def __init__(self, task: Any) -> None:
        self.chunk = isinstance(task.key, tuple)
        self.worker_restrictions = frozenset(task.worker_restrictions or ())


def test_foreign_tasks_and_workers_are_left_alone() -> None:
    async def test(cluster: Cluster) -> None:
        async with Worker(cluster.scheduler.address, nthreads=1, name="foreign") as foreign:
            chunks = cluster.submit(CHUNKS, seconds=0.005)
            others = cluster.client.map(lambda i: i + 1, range(50))
            assert await cluster.client.gather(others) == list(range(1, 51))
            assert "foreign" not in await cluster.client.gather(chunks)
            assert await cluster.client.submit(where, None, workers=[foreign.address], pure=False) == "foreign"
            info = await cluster.plugin.handle_info()
            assert info["foreign"] == [foreign.address]
            assert len(info["workers"]) == 3
            del chunks, others

    scenario(test)


def test_workers_full_of_other_work_are_looked_at_when_that_ends() -> None:
    async def test(cluster: Cluster) -> None:
        others = cluster.client.map(time.sleep, [0.2 + i / 1000 for i in range(9)])
        await cluster.until(lambda: cluster.states()["processing"] >= 6)
        futures = cluster.submit(CHUNKS)
        assert len(await asyncio.wait_for(cluster.client.gather(futures), 10)) == CHUNKS
        await cluster.client.gather(others)

    scenario(test)


def test_a_worker_that_pauses_goes_on_afterwards() -> None:
    async def test(cluster: Cluster) -> None:
        worker = cluster.workers["n0"]
        worker.status = Status.paused
        await cluster.until(lambda: cluster.scheduler.workers[worker.address].status == Status.paused)
        futures = cluster.submit(CHUNKS, movable=False)
        await cluster.until(lambda: cluster.states()["memory"] == CHUNKS - len(range(0, CHUNKS, 3)))
        assert (await cluster.plugin.handle_run("r"))["stranded"] == [], "it is there"
        worker.status = Status.running
        assert set((await cluster.client.gather(futures))[::3]) == {"n0"}

    scenario(test)


def test_a_completion_is_not_held_up_by_a_later_look() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.plugin._kick(100.0)
        cluster.plugin._kick(100.0)
        assert await asyncio.wait_for(cluster.client.gather(cluster.submit(CHUNKS)), 10)
        assert cluster.plugin._timer is None

    scenario(test)


def test_results_may_be_used_by_tasks_that_run_anywhere() -> None:
    async def test(cluster: Cluster) -> None:
        key = (f"{PREFIX}map-r", 1)
        graph = {key: Task(key, where, group(1), 0.0), "then": Task("then", str.upper, TaskRef(key))}
        assert await cluster.client.get(graph, "then", sync=False) == "N1"
        again = cluster.client.get({**graph, "more": Task("more", str.title, TaskRef("then"))}, "more", sync=False)
        assert await again == "N1"

    scenario(test)


def test_a_user_error_is_final() -> None:
    async def test(cluster: Cluster) -> None:
        futures = cluster.submit(4, function=fail)
        results = await asyncio.gather(*(future.exception() for future in futures))
        assert [type(error) for error in results] == [KeyError] * 4
        assert not cluster.plugin.router._flying
        await asyncio.gather(*(future.retry() for future in futures))
        assert await futures[3].exception() is not None
        assert not cluster.plugin.broken

    scenario(test)


def test_the_same_keys_again_while_they_run() -> None:
    async def test(cluster: Cluster) -> None:
        first = cluster.submit(12, seconds=0.02)
        await cluster.until(lambda: cluster.states()["memory"] > 0)
        second = cluster.submit(12, seconds=0.02)
        assert await cluster.client.gather(second) == await cluster.client.gather(first)
        assert not cluster.plugin.broken
        del first, second
        await cluster.until(lambda: not cluster.scheduler.tasks)
        cluster.assert_clean()

    scenario(test)


def test_a_node_that_dies_and_comes_back() -> None:
    async def test(cluster: Cluster) -> None:
        futures = cluster.submit(CHUNKS, seconds=0.02, movable=False)
        await cluster.until(lambda: cluster.states()["memory"] > 6)
        await cluster.workers.pop("n0").close()
        others = [future for i, future in enumerate(futures) if i % 3]
        await cluster.client.gather(others)
        lost = [(f"{PREFIX}map-r", i) for i in range(0, CHUNKS, 3)]  # results that it had go with it
        await cluster.until(lambda: cluster.states()["no-worker"] == len(lost))
        assert sorted((await cluster.plugin.handle_run("r"))["stranded"]) == lost
        assert (await cluster.plugin.handle_run("another"))["stranded"] == []
        await cluster.start("n0-again", range(0, CHUNKS, 3))
        assert await cluster.client.gather(futures) == [f"n{i % 3}" for i in range(CHUNKS)]
        assert (await cluster.plugin.handle_run("r"))["stranded"] == []

    scenario(test)


def test_another_holder_or_another_worker_of_the_node_takes_over() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.start("n0-b")
        await cluster.start("n3", range(1, CHUNKS, 3))  # replicas of what n1 has
        futures = cluster.submit(CHUNKS, seconds=0.01, movable=False)
        await cluster.until(lambda: cluster.states()["memory"] > 4)
        await cluster.workers.pop("n0").close()
        await cluster.workers.pop("n1").close()
        answers = await cluster.client.gather(futures)
        assert [a for i, a in enumerate(answers) if i % 3 != 1] == [f"n{i % 3}" for i in range(CHUNKS) if i % 3 != 1]
        assert set(answers[1::3]) == {"n3"}

    scenario(test)


def test_retired_workers_hand_their_tasks_on() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.start("n0-b")
        futures = cluster.submit(CHUNKS, seconds=0.01, movable=False)
        await cluster.until(lambda: cluster.states()["memory"] > 4)
        await cluster.client.retire_workers([cluster.workers["n0"].address])
        assert await cluster.client.gather(futures) == [f"n{i % 3}" for i in range(CHUNKS)]

    scenario(test)


def test_cancel_leaves_nothing() -> None:
    async def test(cluster: Cluster) -> None:
        futures = cluster.submit(CHUNKS, seconds=0.02)
        await cluster.until(lambda: cluster.states()["memory"] > 2)
        await cluster.client.cancel(futures, force=True)
        await cluster.until(lambda: not cluster.scheduler.tasks)
        cluster.assert_clean()
        assert await cluster.client.gather(cluster.submit(3, run="next")) == ["n0", "n1", "n2"]
        assert not cluster.plugin.broken

    scenario(test)


def test_a_worker_that_leaves_before_it_is_asked() -> None:
    async def test(cluster: Cluster) -> None:
        worker = await cluster.start("n9", [0])
        cluster.plugin.members.nodes.pop(worker.address)
        await cluster.plugin._sync_and_kick(worker.address)
        cluster.plugin.members.nodes["tcp://127.0.0.1:1"] = cluster.plugin.members.nodes[cluster.workers["n1"].address]
        await cluster.plugin.handle_sync()  # one of n1's workers does not answer, the other one does
        assert not cluster.plugin.broken

    with dask.config.set({"distributed.comm.timeouts.connect": "300ms"}):
        scenario(test)


def test_a_report_that_makes_no_sense_stops_runs() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.plugin.handle_delta("w", "n0", [("d", "x", [1], [-5])], (0, 0, 0.0))
        assert "in handle_delta" in cluster.plugin.broken

    scenario(test, nodes=1)


def test_deltas_and_questions() -> None:
    async def test(cluster: Cluster) -> None:
        plugin, addresses = cluster.plugin, {name: worker.address for name, worker in cluster.workers.items()}
        assert await plugin.handle_holders("d", "x", 4) == [["n0"], ["n1"], ["n2"], ["n0"]]
        plugin.handle_delta("w", "n1", [("d", "x", [0, 1], [1, 2])], (9, 10**6, 0.5))
        assert await plugin.handle_holders("d", "x", 2) == [["n0", "n1"], ["n1"]]
        assert await plugin.handle_locate("d", "x", [0, 2, 99]) == [[addresses["n0"], addresses["n1"]], [addresses["n2"]], []]
        assert plugin.router.rates.transfer > 1e-8
        assert await plugin.handle_holders("other", "x", 1) == [[]]

    scenario(test)


def test_parked_tasks_follow_what_becomes_known() -> None:
    async def test(cluster: Cluster) -> None:
        futures = cluster.submit(CHUNKS + 2)
        await cluster.until(lambda: cluster.states()["memory"] == CHUNKS)
        assert len((await cluster.plugin.handle_run("r"))["stranded"]) == 2
        await cluster.start("n7", [CHUNKS, CHUNKS + 1])
        assert (await cluster.client.gather(futures))[-2:] == ["n7", "n7"]

    scenario(test)


def test_what_a_node_turns_out_not_to_have_is_done_by_other_holders() -> None:
    async def test(cluster: Cluster) -> None:
        plugin = cluster.plugin
        await cluster.start("n3", range(0, CHUNKS, 3))  # replicas of what n0 has
        await cluster.until(lambda: plugin.inventory.holders(("d", "x"), [0]) == [{"n0", "n3"}])
        futures = cluster.submit(CHUNKS, seconds=0.02, movable=False)
        await cluster.until(lambda: cluster.states()["memory"] > 4)
        lacking = list(range(9, CHUNKS, 3))
        plugin.handle_lacks("w", "n0", "d", "x", [*lacking, 1, 10**6])
        tasks = cluster.scheduler.tasks
        done_before = {i for i, future in enumerate(futures) if tasks[future.key].state == "memory"}
        answers = await cluster.client.gather(futures)
        in_hands = 2
        assert sum(answers[i] == "n0" for i in lacking if i not in done_before) <= in_hands
        assert plugin.inventory.holders(("d", "x"), [0, *lacking]) == [{"n0", "n3"}, *([{"n3"}] * len(lacking))]
        plugin.handle_lacks("w", "n1", "d", "x", [1, 4])
        assert plugin.inventory.holders(("d", "x"), [1, 4]) == [{"n1"}, {"n1"}], "nobody else has them"
        assert not plugin.broken

    scenario(test)


def test_a_holder_that_is_gone_is_no_reason_to_withdraw_another() -> None:
    async def test(cluster: Cluster) -> None:
        inventory = cluster.plugin.inventory
        await cluster.start("n2", [0, 1])
        await cluster.until(lambda: inventory.holders(("d", "x"), [0]) == [{"n0", "n2"}])
        await cluster.workers.pop("n2").close()
        cluster.plugin.handle_lacks("w", "n0", "d", "x", [0])
        assert inventory.holders(("d", "x"), [0]) == [{"n0", "n2"}]

    scenario(test, nodes=2)


def test_a_group_whose_chunks_have_come_to_lie_apart_is_done_where_most_of_it_is() -> None:
    async def test(cluster: Cluster) -> None:
        apart = replace(group(0), chunks=(0, 3, 6, 1), generations=(1,) * 4, newest=(0,) * 4)
        key = (f"{PREFIX}map-r", 0)
        assert await cluster.client.get({key: Task(key, where, apart)}, key, sync=False) == "n0"
        lost = replace(apart, run="s", chunks=(0, 1, CHUNKS + 7), generations=(1,) * 3, newest=(0,) * 3)
        key = (f"{PREFIX}map-s", 0)
        future = cluster.client.get({key: Task(key, where, lost)}, key, sync=False)
        await cluster.until(lambda: cluster.states()["no-worker"] == 1)
        assert (await cluster.plugin.handle_run("s"))["stranded"] == [key]
        del future

    scenario(test)


def test_a_short_run_does_not_wait_for_the_thousands_of_tasks_before_it() -> None:
    async def test(cluster: Cluster) -> None:
        long = cluster.submit(1500, run="long", node="n0", movable=False, seconds=0.002)
        await cluster.until(lambda: cluster.states()["memory"] > 20)
        short = cluster.submit(20, run="short", node="n0", movable=False, seconds=0.002)
        await cluster.client.gather(short)
        done = sum(future.done() for future in long)
        assert done < 300, "of two that are served in turn, the one has done about as much as the other"
        await cluster.client.cancel(long, force=True)

    scenario(test, nodes=1)


def test_restart_leaves_nothing_and_what_comes_afterwards_runs() -> None:
    async def test(cluster: Cluster) -> None:
        futures = cluster.submit(CHUNKS, seconds=0.02)
        await cluster.until(lambda: cluster.states()["memory"] > 2)
        await cluster.scheduler.restart(wait_for_workers=False, stimulus_id="test")
        await cluster.until(lambda: not cluster.scheduler.tasks)
        cluster.assert_clean()
        for i in range(3):
            await cluster.start(f"n{i}-again", range(i, CHUNKS, 3))
        assert await cluster.client.gather(cluster.submit(6, run="next")) == ["n0", "n1", "n2"] * 2
        assert {future.status for future in futures} == {"cancelled"}
        assert not cluster.plugin.broken

    scenario(test)


def test_a_report_of_a_dataset_that_nobody_knows_harms_nothing() -> None:
    async def test(cluster: Cluster) -> None:
        plugin = cluster.plugin
        plugin.handle_delta("w", "n0", [("unheard of", "x", [2**31], [7])], (0, 0, 0.0))
        plugin.handle_lacks("w", "n0", "another", "y", [3])
        assert await plugin.handle_holders("another", "y", 2) == [[], []]
        assert await cluster.client.gather(cluster.submit(3)) == ["n0", "n1", "n2"]
        await plugin.handle_drop("unheard of")
        await plugin.handle_drop("never heard of")
        assert not plugin.broken

    scenario(test)


def test_no_workers_timeout_is_refused() -> None:
    async def test(cluster: Cluster) -> None:
        assert "no-workers-timeout is set" in (await cluster.plugin.handle_info())["broken"]
        futures = cluster.submit(3)
        await asyncio.sleep(0.1)
        assert cluster.states() == {"no-worker": 3}
        await cluster.client.cancel(futures)

    with dask.config.set({"distributed.scheduler.no-workers-timeout": "1h"}):
        scenario(test)


def test_workers_that_came_before_the_plugin_are_adopted() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.scheduler.remove_plugin("gpuflow")
        cluster.plugin = scheduler_plugin.install(cluster.scheduler)
        assert len(cluster.plugin.members.nodes) == 3
        await cluster.until(lambda: len(cluster.plugin._cursors) == 3)
        assert await cluster.client.gather(cluster.submit(3)) == ["n0", "n1", "n2"]

    scenario(test)


# -- strict mode -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUFLOW_ROUTING", "strict")


@pytest.mark.usefixtures("strict")
def test_strict_mode_restricts_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def test(cluster: Cluster) -> None:
        assert "chunk tasks are restricted to their holders, nothing is shipped" in caplog.text
        assert (await cluster.plugin.handle_info())["routing"] == "strict"
        futures = cluster.submit(CHUNKS)
        assert await cluster.client.gather(futures) == [f"n{i % 3}" for i in range(CHUNKS)]
        del futures
        await cluster.until(lambda: not cluster.scheduler.tasks)
        cluster.assert_clean()

    caplog.set_level(logging.WARNING, "gpuflow")
    scenario(test)


@pytest.mark.usefixtures("strict")
def test_strict_mode_reports_stranded_tasks_and_takes_them_up_again() -> None:
    async def test(cluster: Cluster) -> None:
        futures = cluster.submit(CHUNKS, seconds=0.01)
        await cluster.until(lambda: cluster.states()["memory"] > 4)
        await cluster.workers.pop("n0").close()
        await cluster.client.gather([future for i, future in enumerate(futures) if i % 3])
        lost = [(f"{PREFIX}map-r", i) for i in range(0, CHUNKS, 3)]
        await cluster.until(lambda: cluster.states()["no-worker"] == len(lost))
        assert sorted((await cluster.plugin.handle_run("r"))["stranded"]) == lost
        await cluster.start("n0-again", range(0, CHUNKS, 3))
        assert await cluster.client.gather(futures) == [f"n{i % 3}" for i in range(CHUNKS)]
        assert (await cluster.plugin.handle_run("r"))["stranded"] == []
        assert not cluster.plugin.broken

    scenario(test)
