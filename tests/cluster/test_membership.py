"""Who may join, what is remembered of who comes back, and who must not be sent away."""

from __future__ import annotations

import asyncio
import logging

import pytest
from distributed import Status, Worker

from gpuflow.cluster import members
from gpuflow.cluster.scheduler_plugin import GpuflowPlugin

from .in_process import CHUNKS, Cluster, scenario


def test_a_copy_of_a_node_is_refused_by_name(caplog: pytest.LogCaptureFixture) -> None:
    async def test(cluster: Cluster) -> None:
        copy = await cluster.start("n0-copy", range(0, CHUNKS, 3), {"root": "/copy", "place": "another disk"})
        original = cluster.workers["n0"].address
        await cluster.until(lambda: copy.status == Status.closed)
        info = await cluster.plugin.handle_info()
        assert info["refused"] == {
            copy.address: f"its root /copy says that it is node n0, and so does another one: /n0 of worker {original}; if it is a copy, "
            "delete its node.json and start it again, and it becomes a node of its own"
        }
        assert sorted(info["workers"]) == sorted(cluster.workers[f"n{i}"].address for i in range(3))
        assert info["foreign"] == []
        assert "may not join: its root /copy says that it is node n0" in caplog.text
        assert not info["broken"]
        assert await cluster.client.gather(cluster.submit(3)) == ["n0", "n1", "n2"]

    caplog.set_level(logging.ERROR, "gpuflow")
    scenario(test)


def test_more_workers_of_a_node_are_welcome_under_whatever_path() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.start("n0-b", (), {"root": "/mnt/n0"})  # a container of the same machine
        assert len((await cluster.plugin.handle_info())["workers"]) == 2
        assert not cluster.plugin.members.refused

    scenario(test, nodes=1)


def test_a_worker_of_another_version_is_refused() -> None:
    async def test(cluster: Cluster) -> None:
        old = await cluster.start("n7", (), {"version": "0.0.1", "surprise": 1})
        await cluster.until(lambda: old.status == Status.closed)
        assert "it has gpuflow 0.0.1, the scheduler has" in cluster.plugin.members.refused[old.address]
        assert not cluster.plugin.broken

    scenario(test, nodes=1)


def test_a_node_that_comes_back_with_another_disk_is_read_anew() -> None:
    async def test(cluster: Cluster) -> None:
        plugin = cluster.plugin
        await cluster.workers.pop("n0").close()
        await cluster.start("n0-restored", [0, 3], {"place": "the disk of the backup"})
        await cluster.until(lambda: "n0" in plugin._cursors)
        assert plugin.inventory.holders(("d", "x"), [0, 1, 3, 6]) == [{"n0"}, {"n1"}, {"n0"}, frozenset()]
        assert not plugin.members.refused

    scenario(test)


def test_a_machine_that_was_started_again_is_no_copy_of_itself() -> None:
    """The scheduler may learn only minutes later that the former worker is gone."""

    async def test(cluster: Cluster) -> None:
        await cluster.start("n0-b", range(CHUNKS), {"place": "the same disk after a reboot"})
        await cluster.until(lambda: "n0" in cluster.plugin._cursors)
        assert not cluster.plugin.members.refused
        assert len(cluster.plugin.members.nodes) == 2

    scenario(test, nodes=1)


def test_of_a_node_that_is_gone_what_others_have_counts_until_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It alone had the newest generation; the run that made it goes on from the one before."""

    async def test(cluster: Cluster) -> None:
        plugin, x = cluster.plugin, ("d", "x")
        await cluster.start("n3", [2, 5])
        await cluster.until(lambda: "n3" in plugin._cursors)
        plugin.handle_delta("", "n2", [("d", "x", [2], [2])], (0, 0, 0.0))
        await cluster.workers.pop("n2").close()
        futures = cluster.submit(3)
        await cluster.until(lambda: cluster.states()["no-worker"] == 1)
        assert len((await plugin.handle_run("r"))["stranded"]) == 1, "its worker may be started again"
        monkeypatch.setattr(members, "GONE_SECONDS", 0.0)
        assert (await plugin.handle_run("r"))["stranded"] == []
        assert await asyncio.wait_for(cluster.client.gather(futures), 5) == ["n0", "n1", "n3"]
        assert plugin.inventory.holders(x, [2, 5, 8]) == [{"n3"}, {"n3"}, frozenset()]
        await cluster.start("n2", [5, 8])
        await cluster.until(lambda: "n2" in plugin._cursors)
        assert plugin.inventory.holders(x, [2, 5, 8]) == [{"n3"}, {"n2", "n3"}, {"n2"}]

    scenario(test)


# -- downscaling -----------------------------------------------------------------------------------------------------------------


def closable(cluster: Cluster) -> set[str]:
    """Names of the workers that Dask would close if it could do with none."""
    addresses = cluster.scheduler.workers_to_close(n=len(cluster.workers))
    return {str(cluster.scheduler.workers[address].name) for address in addresses}


@pytest.mark.parametrize("routing", ["late", "strict"])
def test_the_last_worker_of_a_node_that_alone_has_what_a_run_needs_stays(routing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(cluster: Cluster) -> None:
        everyone = {"n0", "n0-b", "n1", "n2", "n3"}
        for name, held in (("n0-b", ()), ("n3", range(1, CHUNKS, 3))):  # n3 has replicas of what n1 has
            await cluster.start(name, held)
        await cluster.until(lambda: len(cluster.plugin._cursors) == 4)
        assert closable(cluster) == everyone
        futures = cluster.submit(3, seconds=0.5, movable=False)  # of chunks 0, 1 and 2
        await cluster.until(lambda: cluster.states()["processing"] == 3)
        busy = next(name for name in ("n0", "n0-b") if cluster.scheduler.workers[cluster.workers[name].address].processing)
        assert closable(cluster) == everyone - {busy, "n2"}
        retired = await cluster.client.retire_workers(n=5, close_workers=True)
        assert len(retired) == 3
        assert sorted(await asyncio.wait_for(cluster.client.gather([futures[0], futures[2]]), 5)) == ["n0", "n2"]
        await cluster.client.cancel(futures)
        await cluster.until(lambda: not cluster.scheduler.tasks)
        assert {str(state.name) for state in cluster.scheduler.workers.values()} == {busy, "n2"}
        assert cluster.plugin.valid_workers_downscaling(cluster.scheduler, list(cluster.scheduler.workers.values()))

    monkeypatch.setenv("GPUFLOW_ROUTING", routing)
    scenario(test)


def test_a_chunk_that_is_on_its_way_from_a_node_keeps_it() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.workers["n0"].status = Status.paused
        await cluster.until(lambda: cluster.scheduler.workers[cluster.workers["n0"].address].status == Status.paused)
        (future,) = cluster.submit(1, seconds=0.1)
        await cluster.until(lambda: cluster.states()["processing"] == 1)
        assert closable(cluster) == {"n1"}, "n0 serves the chunk, to n1"
        await future

    scenario(test, nodes=2)


def test_an_error_in_the_veto_stops_the_run_and_closes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(plugin: GpuflowPlugin) -> None:
        raise ZeroDivisionError("boom")

    async def test(cluster: Cluster) -> None:
        monkeypatch.setattr(GpuflowPlugin, "_indispensable", explode)
        assert closable(cluster) == set()
        assert cluster.plugin.broken == "ZeroDivisionError in valid_workers_downscaling: boom"

    scenario(test, nodes=1)


def test_foreign_workers_may_go() -> None:
    async def test(cluster: Cluster) -> None:
        futures = cluster.submit(1, seconds=0.1)
        async with Worker(cluster.scheduler.address, nthreads=1, name="foreign", memory_limit=0):
            assert "foreign" in closable(cluster)
        await cluster.client.gather(futures)

    scenario(test, nodes=1)
