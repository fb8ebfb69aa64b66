"""A node's CPU workers and its devices are places of their own; tasks for a device go to nothing else."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from distributed import get_worker

from gpuflow.cluster.fleet import WorkerView
from gpuflow.cluster.messages import ChunkGroup
from gpuflow.cluster.places import Places, fits
from gpuflow.cluster.routing import DEVICE, LOCAL, PAUSED, Router, Waiting

from .in_process import Cluster, scenario
from .simulator import Simulation, chunks, even

N1, N2 = frozenset({"n1"}), frozenset({"n2"})


@pytest.mark.parametrize(
    ("device", "wanted", "answer"),
    [
        ("cpu", "cpu", True),
        ("cpu", "auto", True),
        ("cuda:1", "cpu", True),
        ("cuda:1", "auto", True),
        ("cuda:1", "cuda", True),
        ("cuda:1", "cuda:1", True),
        ("cuda:1", "cuda:11", False),
        ("cuda:1", "cuda:0", False),
        ("cpu", "cuda", False),
    ],
)
def test_who_may_take_what(device: str, wanted: str, answer: bool) -> None:
    assert fits(device, wanted) is answer


def test_places_are_nodes_without_devices() -> None:
    places = Places()
    assert not places.add("n1", "cpu")
    assert places.of(N1, "auto") is N1
    assert places.live(N1) is N1
    assert places.node_of("n1") == "n1"


def test_places_of_a_node_with_devices() -> None:
    places = Places()
    assert places.add("n1", "cuda:0")
    assert not places.add("n1", "cuda:0")
    assert places.add("n1", "cuda:1")
    first, second = (places.of_worker("n1", f"cuda:{number}") for number in (0, 1))
    assert places.of(N1, "cpu") == places.of(N1, "auto") == {"n1", first, second}
    assert places.of(N1, "cuda") == {first, second}
    assert places.of(N1, "cuda:1") == {second}
    assert places.nodes_of({"n1", first, second}) == N1
    (nowhere,) = places.of(N2, "cuda")
    assert places.node_of(nowhere) == "n2"
    assert set(places.live({"n2"})) == {"n2", nowhere}
    (stand_in,) = places.stand_ins({"n2"}, {"n2"})
    assert (stand_in.node, stand_in.threads, stand_in.stands_in) == (nowhere, 0, True)
    assert [one.node for one in places.stand_ins({"n1"}, {"n1", second})] == [first]


# -- the router --------------------------------------------------------------------------------------------------------------------


GPU, CPU = WorkerView("g", "n1 cuda:0", 1, 0, "cuda:0"), WorkerView("c", "n1", 1, 0)
NOBODY = WorkerView("n2 cuda", "n2 cuda", 0, 0, stands_in=True)


def for_device(key: str, *holders: str, movable: bool = True) -> Waiting:
    return Waiting(key, "r", frozenset(holders), 1000, 10**7, movable, "cuda")


def test_a_task_for_a_device_is_shipped_where_there_is_one_and_says_why() -> None:
    router = Router()
    router.park(for_device("a", "n2 cuda"))
    assert router.release([CPU, NOBODY, WorkerView("d", "n2", 4, 0)]) == []
    assert router.unfit("r") == 1
    (release,) = router.release([CPU, GPU, NOBODY])
    assert (release.worker, release.reason) == ("g", DEVICE)
    assert router.unfit("r") == 0


def test_one_whose_device_is_paused_says_that() -> None:
    router = Router()
    router.park(for_device("a", "n2 cuda:0"))
    (release,) = router.release([GPU, WorkerView("p", "n2 cuda:0", 0, 0, "cuda:0")])
    assert (release.worker, release.reason) == ("g", PAUSED)


def test_one_that_must_stay_waits_for_its_own_node() -> None:
    router = Router()
    router.park(for_device("a", "n2 cuda", movable=False))
    assert router.release([GPU, NOBODY]) == []
    assert router.unfit("r") == 1


def test_a_task_for_anyone_is_not_kept_from_the_cpu() -> None:
    router = Router()
    for task in chunks(*[frozenset({"n1", "n1 cuda:0"})] * 4):
        router.park(task)
    assert Counter(release.worker for release in router.release([GPU, CPU])) == {"g": 2, "c": 1}


@pytest.mark.parametrize("factor", [10.0, 40.0, 200.0])
@pytest.mark.parametrize("count", [60, 400])
def test_slow_cpu_workers_beside_a_device_do_not_hold_up_the_end(count: int, factor: float) -> None:
    """A device alone would take `count` tasks; the CPU may only shorten that, but for the tasks that it got before it was known."""
    seconds = 0.05
    places = {"n0 cuda:0": 1, "n0": 4}
    run = Simulation(places, seconds=even, slow={"n0": factor}, devices={"n0 cuda:0": "cuda:0"})
    wall = run.run(chunks(*[frozenset(places)] * count, seconds=seconds))
    unknown = factor * seconds  # what each thread was given to find out
    best = count * seconds / (1 + 4 / factor)
    assert run.reasons == {LOCAL: count}
    assert wall <= max(1.1 * best + 2 * seconds, unknown + 1e-9)


def test_two_devices_of_different_speed_end_together() -> None:
    places = {"n0 cuda:0": 1, "n0 cuda:1": 1}
    run = Simulation(places, seconds=even, slow={"n0 cuda:1": 3.0})
    wall = run.run(chunks(*[frozenset(places)] * 100))
    assert wall <= 1.05 * 100 * 0.05 * 3 / 4 + 0.15


# -- a real scheduler --------------------------------------------------------------------------------------------------------------

GPU_SAYS = {"device": "cuda:0", "device_name": "A100"}


def worker_name(part: ChunkGroup) -> str:
    return str(get_worker().name)


def slowly(part: ChunkGroup) -> str:
    time.sleep(0.1)
    return worker_name(part)


def test_tasks_for_a_device_go_to_its_worker_alone() -> None:
    async def test(cluster: Cluster) -> None:
        device = await cluster.start("n0-gpu", says=GPU_SAYS)
        futures = cluster.submit(12, function=worker_name, device="cuda")
        assert await cluster.client.gather(futures) == [device.name] * 12
        assert cluster.plugin.reasons["r"] == {LOCAL: 4, DEVICE: 8}
        del futures
        await cluster.until(lambda: not cluster.plugin.groups)
        cluster.assert_clean()

    scenario(test)


def test_tasks_for_a_device_wait_for_one_and_take_it_when_it_joins() -> None:
    async def test(cluster: Cluster) -> None:
        futures = cluster.submit(6, function=worker_name, device="cuda")
        others = cluster.submit(6, run="s", device="auto")
        await cluster.client.gather(others)
        assert cluster.states()["no-worker"] == 6
        answer = await cluster.plugin.handle_run("r")
        assert (answer["unfit"], answer["stranded"]) == (6, [])
        await cluster.start("n1-gpu", says=GPU_SAYS)
        assert await cluster.client.gather(futures) == ["n1-gpu"] * 6
        info = await cluster.plugin.handle_info()
        assert sorted(worker["device"] for worker in info["workers"].values()) == ["cpu", "cpu", "cpu", "cuda:0"]
        del futures, others
        await cluster.until(lambda: not cluster.plugin.groups)
        cluster.assert_clean()

    scenario(test)


def test_a_device_that_dies_leaves_its_tasks_to_another() -> None:
    async def test(cluster: Cluster) -> None:
        gone = await cluster.start("n0-gpu", says=GPU_SAYS)
        futures = cluster.submit(9, function=slowly, device="cuda")
        await cluster.until(lambda: cluster.states()["processing"] > 0)
        await cluster.start("n1-gpu", says=GPU_SAYS | {"device": "cuda:1"})
        await gone.close()
        names = await cluster.client.gather(futures)
        assert set(names) == {"n1-gpu"}  # what it had done went with it

    scenario(test)
