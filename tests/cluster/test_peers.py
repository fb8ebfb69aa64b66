"""A group's chunks between real workers: in parts, verified, from another replica when a peer fails in whatever way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster, Status, Worker
from distributed.comm import connect
from distributed.protocol import to_serialize

from gpuflow.cluster import peers, scheduler_plugin, serving
from gpuflow.cluster.messages import ChunkGroup
from gpuflow.cluster.peers import Holders, Transfer
from gpuflow.cluster.serving import read_part
from gpuflow.cluster.worker_device import WorkerDevice
from gpuflow.cluster.worker_plugin import install
from gpuflow.errors import ChunkCorrupt, ChunkLost
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore
from tests.storage.stores import ARRAY, CHUNKS, content, new_store, stage

ALL = tuple(range(CHUNKS))


class Workers:
    """Workers with stores of their own, by name; `n0` takes chunks, the others serve theirs."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self.by_name = workers

    def address(self, name: str) -> str:
        return str(self.by_name[name].address)

    def store(self, name: str) -> NodeStore:
        found: NodeStore = self.by_name[name].gpuflow.store
        return found

    def transfer(self, *names: str, chunks: Sequence[int] = ALL, generation: int = 1, located: Sequence[str] = ()) -> Transfer:
        """To n0 from `names`, asked in this order; `located` is what the scheduler would say."""
        group = ChunkGroup("r", "d", ARRAY, tuple(chunks), (generation,) * len(chunks), (0,) * len(chunks), 16 * len(chunks), 1)
        order = [self.address(name) for name in (*names, *located)]
        way = self.by_name["n0"].gpuflow.peers
        way.in_order = lambda addresses: sorted(addresses, key=order.index)

        def locate(chunks: Sequence[int]) -> Holders:
            return {chunk: [self.address(name) for name in located] for chunk in chunks}

        return Transfer(way, group, chunks, dict.fromkeys(chunks, order[: len(names)]), locate)

    def answers(self, name: str, handler: Callable[..., Awaitable[Any]]) -> None:
        """Have a worker answer a question for chunks by `handler(comm, chunks)`."""

        async def get_chunks(comm: Any, chunks: Sequence[int], **others: Any) -> Any:
            return await handler(comm, chunks)

        self.by_name[name].handlers["gf_get_chunks"] = get_chunks


@asynccontextmanager
async def started(root: Path, held: Mapping[str, Sequence[int]]) -> AsyncIterator[Workers]:
    workers: dict[str, Worker] = {}
    async with LocalCluster(n_workers=0, processes=False, asynchronous=True, dashboard_address=":0", protocol="tcp://") as local:
        scheduler_plugin.install(local.scheduler)
        try:
            for name, chunks in {"n0": (), **held}.items():
                new_store(root / name, chunks).close()
                worker = Worker(local.scheduler.address, nthreads=1, name=name, memory_limit=0)
                install(worker, root / name, None, WorkerDevice())
                workers[name] = await worker
            yield Workers(workers)
        finally:
            await asyncio.gather(*(worker.close() for worker in workers.values()))


def scenario(root: Path, test: Callable[[Workers], Awaitable[None]], **held: Sequence[int]) -> None:
    async def main() -> None:
        async with started(root, held) as workers:
            await test(workers)

    asyncio.run(main())


async def take(transfer: Transfer, *chunks: int) -> list[bytes]:
    """The chunks' bytes, taken as a task's thread does."""

    def take_all() -> list[bytes]:
        try:
            return [bytes(transfer.take(chunk, f"chunk {chunk}")[1]) for chunk in chunks]
        finally:
            transfer.close()

    return await asyncio.to_thread(take_all)


def contents(chunks: Sequence[int]) -> list[bytes]:
    return [content(chunk, 1) for chunk in chunks]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "patience_seconds", lambda nbytes: 0.3)
    monkeypatch.setattr(serving, "patience_seconds", lambda nbytes: 0.3)


def test_a_group_comes_in_parts_and_one_part_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PART_NBYTES", 40)  # two chunks of 16 bytes

    async def test(workers: Workers) -> None:
        serve, asked = workers.by_name["n1"].gpuflow.serving, []

        async def counted(comm: Any, chunks: Sequence[int]) -> Any:
            asked.append(list(chunks))
            return await serve.get_chunks(comm, "d", ARRAY, chunks, "r")

        workers.answers("n1", counted)
        transfer = workers.transfer("n1")
        assert await asyncio.to_thread(lambda: bytes(transfer.take(0, "0")[1])) == content(0, 1)
        await asyncio.sleep(0.1)
        assert [len(chunks) for chunks in asked] == [6, 4]  # the third part waits until the second is taken
        assert await take(transfer, *ALL[1:]) == contents(ALL[1:])
        assert [len(chunks) for chunks in asked] == [6, 4, 2]
        assert transfer.nbytes == serve.sent["r"] == 16 * CHUNKS
        assert transfer.seconds > 0

    scenario(tmp_path, test, n1=ALL)


def test_chunks_may_be_passed_over_or_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PART_NBYTES", 40)

    async def test(workers: Workers) -> None:
        assert await take(workers.transfer("n1"), 3, 5, 0, 3) == contents([3, 5, 0, 3])

    scenario(tmp_path, test, n1=ALL)


def test_each_chunk_comes_from_one_of_its_holders(tmp_path: Path) -> None:
    async def test(workers: Workers) -> None:
        transfer = workers.transfer("n1", "n2")
        transfer._holders = {chunk: [workers.address("n1" if chunk < 2 else "n2")] for chunk in ALL}
        assert await take(transfer, *ALL) == contents(ALL)
        sent = [workers.by_name[name].gpuflow.serving.sent["r"] for name in ("n1", "n2")]
        assert sent == [32, 64]

    scenario(tmp_path, test, n1=(0, 1), n2=(2, 3, 4, 5))


def test_what_one_peer_has_is_one_question(tmp_path: Path) -> None:
    async def test(workers: Workers) -> None:
        questions = []

        def counted(name: str) -> Any:
            serve = workers.by_name[name].gpuflow.serving.get_chunks

            async def get_chunks(comm: Any, chunks: Sequence[int], **others: Any) -> Any:
                questions.append((name, list(chunks)))
                return await serve(comm, chunks=chunks, **others)

            return get_chunks

        for name in ("n1", "n2"):
            workers.by_name[name].handlers["gf_get_chunks"] = counted(name)
        holders = {chunk: [workers.address("n1" if chunk % 2 else "n2")] for chunk in ALL}
        way = workers.by_name["n0"].gpuflow.peers
        group = ChunkGroup("r", "d", ARRAY, ALL, (1,) * CHUNKS, (0,) * CHUNKS, 16 * CHUNKS, 1)
        order = way.side_by_side(ALL, holders)
        assert await take(Transfer(way, group, order, holders, lambda chunks: {}), *order) == contents(order)
        assert sorted(questions) == [("n1", list(ALL[1::2])), ("n2", list(ALL[::2]))]

    scenario(tmp_path, test, n1=ALL[1::2], n2=ALL[::2])


def test_workers_begin_with_different_holders_and_end_with_those_that_failed() -> None:
    class Fake:
        def __init__(self, address: str) -> None:
            self.address = address

    holders = [f"tcp://10.0.0.{i}:1" for i in range(4)]
    ways = [peers.Peers(Fake(f"tcp://10.0.1.{i}:1")) for i in range(40)]  # type: ignore[arg-type]
    assert {way.in_order(holders)[0] for way in ways} == set(holders)
    own = peers.Peers(Fake(holders[2]))  # type: ignore[arg-type]
    assert sorted(own.in_order(holders)) == [holders[0], holders[1], holders[3]]
    first = own.in_order(holders)[0]
    own.shun(first)
    assert own.in_order(holders)[-1] == first


async def stall(comm: Any, chunks: Sequence[int]) -> Any:
    await asyncio.sleep(30)


async def stall_in_the_middle(comm: Any, chunks: Sequence[int]) -> Any:
    await comm.stream.write(b"\x20" + bytes(7))  # the length of a message, and never the message
    await asyncio.sleep(30)


async def die_in_the_middle(comm: Any, chunks: Sequence[int]) -> Any:
    await comm.stream.write(b"\x20" + bytes(7))
    comm.abort()
    return Status.dont_reply


async def fail(comm: Any, chunks: Sequence[int]) -> Any:
    raise OSError("the disk is gone")


def lies(data: bytes) -> Callable[..., Awaitable[Any]]:
    async def lie(comm: Any, chunks: Sequence[int]) -> Any:
        sound = [(chunk, 1, 16, bytes(16), bytes(16), bytes(16)) for chunk in chunks]
        return {"count": len(chunks), "sound": sound, "damaged": [], "data": to_serialize(np.frombuffer(data, np.uint8))}

    return lie


FAULTS = {
    "stalls": stall,
    "stalls in the middle": stall_in_the_middle,
    "dies in the middle": die_in_the_middle,
    "fails": fail,
    "sends wrong bytes": lies(bytes(16 * CHUNKS)),
    "sends too few bytes": lies(bytes(20)),
    "sends nothing": lies(b""),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.usefixtures("impatient")
def test_another_replica_takes_the_place_of_a_peer_that(fault: str, tmp_path: Path) -> None:
    async def test(workers: Workers) -> None:
        workers.answers("n1", FAULTS[fault])
        began = time.monotonic()
        assert await take(workers.transfer("n1", "n2"), *ALL) == contents(ALL)
        assert time.monotonic() - began < 3  # it waits for the fault once, not once a chunk
        assert workers.by_name["n0"].gpuflow.peers._shunned.keys() == {workers.address("n1")}

    scenario(tmp_path, test, n1=ALL, n2=ALL)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.usefixtures("impatient")
def test_there_is_one_clear_error_when_the_only_peer(fault: str, tmp_path: Path) -> None:
    kind = ChunkCorrupt if fault.startswith("sends") else ChunkLost

    async def test(workers: Workers) -> None:
        workers.answers("n1", FAULTS[fault])
        transfer = workers.transfer("n1")
        began = time.monotonic()
        for chunk in ALL:
            with pytest.raises(kind, match=f"chunk {chunk}"):
                await take(transfer, chunk)
        assert time.monotonic() - began < 3

    scenario(tmp_path, test, n1=ALL)


def test_a_damaged_replica_is_left_for_another(tmp_path: Path) -> None:
    async def test(workers: Workers) -> None:
        workers.store("n1").path("d", ARRAY, 2).write_bytes(b"x" * 16)
        assert await take(workers.transfer("n1", "n2"), *ALL) == contents(ALL)
        transfer = workers.transfer("n1")
        assert await take(transfer, 0, 1) == contents([0, 1])
        with pytest.raises(ChunkCorrupt, match=r"chunk 2 on node .* committed were 16"):
            await take(transfer, 2)

    scenario(tmp_path, test, n1=ALL, n2=ALL)


def test_the_scheduler_is_asked_when_those_who_were_named_do_not_have_it(tmp_path: Path) -> None:
    async def test(workers: Workers) -> None:
        assert await take(workers.transfer("n1", located=["n2"]), *ALL) == contents(ALL)
        with pytest.raises(ChunkLost, match=f"chunk 4 .*{workers.address('n1')}"):
            await take(workers.transfer("n1", located=["n1"]), 0, 4)

    scenario(tmp_path, test, n1=(0, 1, 2), n2=(3, 4, 5))


def test_an_older_generation_than_planned_is_not_taken(tmp_path: Path) -> None:
    async def test(workers: Workers) -> None:
        workers.store("n2").commit([stage(workers.store("n2"), 0, 2)])
        assert await take(workers.transfer("n1", "n2", chunks=[0], generation=2), 0) == [content(0, 2)]
        with pytest.raises(ChunkLost):
            await take(workers.transfer("n1", chunks=[0], generation=2), 0)

    scenario(tmp_path, test, n1=ALL, n2=ALL)


def test_chunks_without_a_file_and_of_unknown_recipe_are_sent_too(tmp_path: Path) -> None:
    async def test(workers: Workers) -> None:
        store = workers.store("n1")
        store.commit([stage(store, 1, 2, b"")])
        known = store.manifest.replica("d", ARRAY, 3)
        assert known is not None
        store.manifest.mark_damaged(known)
        assert await take(workers.transfer("n1"), *ALL) == [b"" if chunk == 1 else content(chunk, 1) for chunk in ALL]

    scenario(tmp_path, test, n1=ALL)


def test_a_busy_peer_says_so_and_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_QUEUE_SECONDS", 0.02)
    monkeypatch.setattr(peers, "patience_seconds", lambda nbytes: 0.2)

    async def test(workers: Workers) -> None:
        free = workers.by_name["n1"].gpuflow.serving._free
        while not free.locked():
            await free.acquire()
        asyncio.get_running_loop().call_later(0.5, free.release)  # longer than a stalled peer would be waited for
        assert await take(workers.transfer("n1"), *ALL) == contents(ALL)

    scenario(tmp_path, test, n1=ALL)


@pytest.mark.usefixtures("impatient")
def test_a_large_part_is_in_hand_until_the_receiver_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_ACKNOWLEDGED_NBYTES", 10)

    async def test(workers: Workers) -> None:
        free = workers.by_name["n1"].gpuflow.serving._free
        assert await take(workers.transfer("n1"), *ALL) == contents(ALL)
        assert not free.locked()
        assert free._value == serving._SERVED_AT_ONCE
        comm = await connect(workers.address("n1"))
        await comm.write({"op": "gf_get_chunks", "dataset": "d", "array": ARRAY, "chunks": [0], "run": "r", "reply": True})
        assert (await comm.read())["acknowledge"]
        assert free._value == serving._SERVED_AT_ONCE - 1
        await asyncio.sleep(0.6)  # it never says that it has it
        assert free._value == serving._SERVED_AT_ONCE
        comm.abort()

    scenario(tmp_path, test, n1=ALL)


def test_a_transfer_that_is_closed_leaves_no_question_open(tmp_path: Path) -> None:
    async def test(workers: Workers) -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def slow(comm: Any, chunks: Sequence[int]) -> Any:
            begun.set()
            try:
                await comm.read()
            except OSError:
                ended.set()
            return Status.dont_reply

        workers.answers("n1", slow)
        transfer = workers.transfer("n1")
        transfer.begin()
        await begun.wait()
        transfer.close()
        await asyncio.wait_for(ended.wait(), 5)

    scenario(tmp_path, test, n1=ALL)


class TestReadPart:
    @pytest.mark.parametrize(
        ("dataset", "array"), [("..", ARRAY), ("other", ARRAY), ("d", "../b"), ("d", "a"), ("d/../d", ARRAY), ("", "")]
    )
    def test_only_what_the_manifest_names_is_read(self, tmp_path: Path, dataset: str, array: str) -> None:
        store = new_store(tmp_path)
        part = read_part(store, dataset, array, [0, 1])
        assert (part.count, part.sound, part.damaged, len(part.data)) == (2, [], [], 0)

    def test_chunks_that_are_not_here(self, tmp_path: Path) -> None:
        part = read_part(new_store(tmp_path), "d", ARRAY, [5, 1, 77, -1])
        assert part.count == 4
        assert [replica.chunk for replica in part.sound] == [1]
        assert part.data.tobytes() == content(1, 1)

    def test_bounds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = new_store(tmp_path, ALL)
        monkeypatch.setattr(serving, "PART_NBYTES", 3)
        assert read_part(store, "d", ARRAY, ALL).count == 1  # one at least
        monkeypatch.setattr(serving, "PART_NBYTES", 48)
        assert read_part(store, "d", ARRAY, ALL).count == 3
        monkeypatch.setattr(serving, "PART_CHUNKS", 2)
        assert read_part(store, "d", ARRAY, ALL).count == 2

    def test_a_chunk_that_changes_while_it_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rows were looked up, then another process commits a longer one: it is sent as it is now, whole."""
        store = new_store(tmp_path, ALL)
        before = store.manifest.replicas_of

        def overtaken(*names: Any) -> dict[int, Replica]:
            rows = before(*names)
            monkeypatch.setattr(store.manifest, "replicas_of", before)
            store.commit([stage(store, 1, 2, b"y" * 40)])
            return rows

        monkeypatch.setattr(store.manifest, "replicas_of", overtaken)
        part = read_part(store, "d", ARRAY, [0, 1, 2])
        assert [replica.generation for replica in part.sound] == [1, 2, 1]
        assert part.data.tobytes() == content(0, 1) + b"y" * 40 + content(2, 1)
