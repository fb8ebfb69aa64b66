"""What a worker has not begun when it pauses or leaves is done by others, and only once."""

from __future__ import annotations

import asyncio
from collections import Counter

import dask
import pytest
from distributed import Status, Worker
from distributed.client import Future

from .in_process import CHUNKS, Cluster, scenario, where


async def in_hands(cluster: Cluster, name: str, tasks: int) -> Worker:
    """The worker, as soon as it has so many tasks in its hands."""
    worker = cluster.workers[name]
    await cluster.until(lambda: len(worker.state.tasks) >= tasks)
    return worker


def pause(worker: Worker) -> None:
    worker.status = Status.paused


async def results(futures: list[Future]) -> list[str]:
    return list(await asyncio.wait_for(asyncio.gather(*futures), 10))


@pytest.mark.parametrize("stealing", [True, False])
def test_what_a_paused_worker_has_not_begun_goes_to_another_of_its_node(stealing: bool) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.start("n0-b")
        futures = cluster.submit(8, node="n0", movable=False, seconds=0.15)
        worker = await in_hands(cluster, "n0", 2)
        pause(worker)
        assert await results(futures) == ["n0"] * 8
        assert len(worker.data) == 1, "what it had begun it has ended"
        assert len(cluster.workers["n0-b"].data) == 7
        assert not cluster.plugin.broken

    with dask.config.set({"distributed.scheduler.work-stealing": stealing}):
        scenario(test, nodes=1)


def test_chunks_of_a_node_that_is_wholly_paused_are_shipped() -> None:
    async def test(cluster: Cluster) -> None:
        worker = cluster.workers["n0"]
        pause(worker)
        await cluster.until(lambda: cluster.scheduler.workers[worker.address].status == Status.paused)
        futures = cluster.submit(8, node="n0", seconds=0.02)
        assert Counter(await results(futures)) == {"n1": 4, "n2": 4}
        answer = await cluster.plugin.handle_run("r")
        assert (answer["reasons"], answer["stranded"]) == ({"holder_paused": 8}, [])

    scenario(test)


def test_chunks_that_must_stay_wait_for_the_end_of_the_pause() -> None:
    async def test(cluster: Cluster) -> None:
        futures = cluster.submit(6, node="n0", movable=False, seconds=0.02)
        worker = await in_hands(cluster, "n0", 2)
        pause(worker)
        await cluster.until(lambda: not cluster.scheduler.workers[worker.address].processing)
        waiting = cluster.plugin.router.waiting
        assert waiting >= 4
        assert (await cluster.plugin.handle_run("r"))["paused"] == [(["n0"], waiting)]
        worker.status = Status.running
        assert await results(futures) == ["n0"] * 6

    scenario(test)


def test_a_worker_that_is_about_to_leave_gives_back_what_it_has_not_begun() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.start("n0-b")
        futures = cluster.submit(8, node="n0", movable=False, seconds=0.2)
        worker = await in_hands(cluster, "n0", 2)
        await cluster.client.retire_workers([worker.address], close_workers=False, remove=False)
        assert await results(futures) == ["n0"] * 8
        assert worker.address in cluster.scheduler.workers, "it was not removed, which would have released its tasks anyway"
        assert len(worker.data) <= 1

    scenario(test, nodes=1)


@pytest.mark.usefixtures("strict")
def test_strict_mode_takes_back_too() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.start("n0-b")
        futures = cluster.submit(CHUNKS, seconds=0.01)
        pause(await in_hands(cluster, "n0", 4))
        assert await results(futures) == ["n0"] * CHUNKS
        assert len(cluster.workers["n0"].data) < 10

    scenario(test, nodes=1)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUFLOW_ROUTING", "strict")


def test_stealing_goes_on_beside_it() -> None:
    """Foreign tasks are stolen from a busy worker by one that joins later, as without gpuflow."""

    async def test(cluster: Cluster) -> None:
        futures = [cluster.client.submit(where, None, 0.1, key=f"foreign-{i}") for i in range(8)]
        await in_hands(cluster, "n0", 2)
        await cluster.start("n1")
        assert set(await results(futures)) == {"n0", "n1"}
        assert not cluster.plugin.broken

    with dask.config.set(
        {"distributed.scheduler.work-stealing-interval": "20ms", "distributed.scheduler.worker-saturation": "inf"}
    ):
        scenario(test, nodes=1)


def test_an_answer_that_comes_too_late_changes_nothing() -> None:
    async def test(cluster: Cluster) -> None:
        (future,) = cluster.submit(1, node="n0", seconds=0.1)
        worker = await in_hands(cluster, "n0", 1)
        answer = {"key": future.key, "state": "ready", "stimulus_id": "gpuflow-recall-1"}
        cluster.plugin._recall._answered(**answer, worker="tcp://another")
        cluster.plugin._recall._answered(**answer | {"key": "forgotten"}, worker=worker.address)
        assert cluster.scheduler.tasks[future.key].state == "processing"
        assert await future == "n0"
        cluster.plugin._recall._answered(**answer, worker=worker.address)
        assert cluster.scheduler.tasks[future.key].state == "memory"

    scenario(test, nodes=1)
