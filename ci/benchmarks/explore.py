"""Looking at data: the Store against zarr's LocalStore, chunks from a peer, a million chunks opened and shown, users' graphs on four nodes.

With `--netns`, mean, standard deviation, slices and a plot's worth of data on four nodes in network namespaces, against dask.array over an
S3 server (moto's) on a fifth, at 1 Gbit/s, and beside the same graphs over data that nobody has to read; see benchmarks/network.py for what
that needs."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import dask.array as da
import numpy as np
import zarr
from distributed.protocol import to_serialize
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

import gpuflow
from ci.benchmarks import network
from ci.benchmarks.report import Report, interleave
from ci.benchmarks.routing import lay
from ci.benchmarks.scratch import folder
from gpuflow.cluster.connection import Connection, connect
from gpuflow.cluster.launch import node_roots
from gpuflow.cluster.locating import ClientLocator
from gpuflow.datasets.here import NodesHere
from gpuflow.storage import seals
from gpuflow.storage.cluster_store import ClusterStore
from gpuflow.storage.locator import read_chunk
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord

SIZES = {"8 MiB": (8 * 2**20, 8, 1.1), "64 KiB": (64 * 2**10, 64, 1.3), "4 KiB": (4096, 128, 1.3)}
"""Bytes of a chunk, how many of them, and how many times LocalStore's time reading them through the Store may take."""
NODES, CHUNKS, NBYTES = 4, 96, 8 * 2**20
MILLION = 10**6
_AT_ONCE = 4


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where to make the data (default: the system's temporary folder)")
    parser.add_argument("--netns", action="store_true", help="also over shaped links between network namespaces (root)")


def measure(arguments: argparse.Namespace) -> Report:
    report = Report("ms")
    with folder(arguments.folder) as base:
        _store(report, base / "store", arguments.rounds)
        _million(report, base / "million", arguments.rounds)
        _cluster(report, base / "cluster", arguments.rounds)
    if arguments.netns:
        _netns(report, arguments)
    return report


# -- the Store ------------------------------------------------------------------------------------------------------------------------


def _store(report: Report, root: Path, rounds: int) -> None:
    """Every chunk of an array, one after the other, as zarr asks a store for them; and the array as zarr reads it."""
    NodeStore(root, name="n").close()
    with closing(NodesHere(root)) as nodes:
        for size, (nbytes, count, bound) in SIZES.items():
            name, values = size.replace(" ", "-"), np.random.default_rng(0).random(nbytes // 4 * count, dtype="float32")
            made = zarr.create_array(
                ClusterStore(nodes, name), name="x", shape=values.shape, chunks=(nbytes // 4,), dtype="float32", compressors=None
            )
            made[:] = values
            stores = {
                "LocalStore": LocalStore(root / "datasets" / name, read_only=True),
                "gpuflow": ClusterStore(nodes, name, read_only=True),
            }
            arrays = {side: zarr.open_array(store, path="x", mode="r") for side, store in stores.items()}
            keys = [f"x/c/{chunk}" for chunk in range(count)]
            gets = {
                side: partial(_ms, lambda store=store, keys=keys: sync(_get_all(store, keys)), count)
                for side, store in stores.items()
            }
            reads = {side: partial(_ms, lambda array=array: array[:], count) for side, array in arrays.items()}
            interleave(report, f"get {size}", gets, rounds)
            interleave(report, f"array of {size}", reads, rounds)
            report.check(f"get {size}: times LocalStore", report.ratio(f"get {size}", "gpuflow", "LocalStore"), "<=", bound)
            report.check(
                f"array of {size}: times LocalStore", report.ratio(f"array of {size}", "gpuflow", "LocalStore"), "<=", bound
            )


async def _get_all(store: Any, keys: list[str]) -> None:
    for key in keys:
        assert await store.get(key, default_buffer_prototype()) is not None


def _ms(call: Callable[[], Any], count: int = 1) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000 / count


# -- a million chunks -------------------------------------------------------------------------------------------------------------------


def _million(report: Report, root: Path, rounds: int) -> None:
    _lay_rows(root, MILLION)
    cards: list[str] = []
    opened: list[Any] = []

    def open_it() -> None:
        opened.append(gpuflow.open("many", root=root))

    def show_it() -> None:
        cards.append(opened[-1]._repr_html_())

    for _ in range(rounds):
        report.add("open 10^6 chunks", "gpuflow", _ms(open_it))
        report.add("its card", "gpuflow", _ms(show_it))
        opened.pop().close()
    report.check("open 10^6 chunks, ms", report.median("open 10^6 chunks", "gpuflow"), "<=", 200)
    report.check("its card, ms", report.median("its card", "gpuflow"), "<=", 300)
    report.check("its card, kB", len(cards[-1].encode()) / 1000, "<=", 300)


def _lay_rows(root: Path, count: int) -> None:
    """A dataset of so many chunks, without their files."""
    metadata = ArrayMetadata.create((count * 4,), (4,), np.dtype("int32"), compressor="none")
    with closing(NodeStore(root, name="n")) as store:
        store.put_record(DatasetRecord("many", 1, "ready", {"x": metadata.document}))
        manifest, names = store.manifest, seals.seal_of_names("many", "x")
        with manifest.transaction(durable=False):
            number = manifest._array_id("many", "x", create=True)
            fields = ((chunk, 1, 16, chunk + 1, 0, b"d" * 16, b"r" * 16, b"i" * 16) for chunk in range(count))
            rows = ((number, *row[:3], *row[5:], row[3], 0, seals.seal_of(names, *row)) for row in fields)
            manifest._connection.executemany("INSERT INTO replica VALUES (?,?,?,?,?,?,?,?,?,?)", rows)
            manifest.set_sequence(count)


# -- four nodes on this machine -----------------------------------------------------------------------------------------------------------


def _cluster(report: Report, root: Path, rounds: int) -> None:
    lay(node_roots(root, NODES), "field", CHUNKS, NBYTES, lambda chunk: [chunk % NODES])
    with connect(nodes=NODES, workers=1, root=root) as connection, gpuflow.open("field", connection=connection) as field:
        _from_a_peer(report, connection, rounds)
        for name, work in WORK.items():
            shares = []
            for _ in range(3):
                before = _reads(field)
                report.add(f"{name}, {NODES} nodes", "gpuflow", _ms(lambda work=work: work(field.to_dask(), connection)))
                now = _reads(field)
                local, peer = now["local"] - before["local"], now["peer"] - before["peer"]
                shares.append(local / (local + peer))
            report.notes.append(
                f"{name}: shares of {local + peer} chunks read where they lie: {', '.join(f'{one:.1%}' for one in shares)}"
            )
            report.check(f"{name}: share of chunks read where they lie", median(shares), ">=", 0.95)


def _from_a_peer(report: Report, connection: Connection, rounds: int) -> None:
    """Chunks of 8 MiB, some at once as zarr asks for them, and as many bytes by Dask's comms alone, from one worker's memory."""
    locator = ClientLocator(connection)
    locator._here = {}  # as on a machine without a node
    record = locator.record("field")
    array = next(iter(record.arrays))
    (address, *_), *_ = connection.nodes().values()
    connection.client.run(_serve_raw, workers=[address])

    def chunk(number: int) -> None:
        read_chunk(locator, record, array, number * NODES, 1)

    def raw(number: int) -> None:
        connection.client.sync(connection.client.rpc(address).bench_raw)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        sides = {
            side: partial(_ms, lambda call=call: list(pool.map(call, range(16))), 16)
            for side, call in (("comm", raw), ("gpuflow", chunk))
        }
        interleave(report, "8 MiB from a peer", sides, rounds)
    report.check("from a peer: of raw comm throughput", report.ratio("8 MiB from a peer", "comm", "gpuflow"), ">=", 0.7)


def _serve_raw(dask_worker: Any) -> None:
    data = np.ones(NBYTES, np.uint8)

    async def handler() -> Any:
        await asyncio.sleep(0)
        return {"data": to_serialize(data)}

    dask_worker.handlers["bench_raw"] = handler


def _reads(field: Any) -> Counter[str]:
    total: Counter[str] = Counter()
    for worker in field.reads().values():
        total.update(worker)
    return total


def _standardize(x: da.Array, connection: Connection) -> Any:
    return connection.client.compute(((x - x.mean()) / x.std()).max()).result()


def _slices(x: da.Array, connection: Connection) -> Any:
    return connection.client.compute(x[::64].mean()).result()


def _plot(x: da.Array, connection: Connection) -> Any:
    """What a plot of the whole needs: the mean of each 4096 values."""
    return connection.client.compute(da.coarsen(np.mean, x, {0: 4096})).result()


def _made() -> da.Array:
    """As large, and read from nowhere: what Dask itself takes for the same graphs."""
    return da.ones(CHUNKS * NBYTES // 4, chunks=NBYTES // 4, dtype="float32")


WORK: dict[str, Callable[[da.Array, Connection], Any]] = {"standardize": _standardize, "slices": _slices, "plot": _plot}


# -- over a network -----------------------------------------------------------------------------------------------------------------------


def _netns(report: Report, arguments: argparse.Namespace) -> None:
    lack = network.missing() or (
        "" if shutil.which("moto_server") and find_spec("obstore") else "install obstore and moto[server]"
    )
    if lack:
        report.notes.append(f"--netns left out: {lack}")
        return
    with folder(arguments.folder) as base, network.hosts(NODES + 1) as (*nodes, s3), ExitStack() as stack:
        lay([base / str(number) for number in range(NODES)], "field", CHUNKS, NBYTES, lambda chunk: [chunk % NODES])
        connection = stack.enter_context(network.cluster(base, nodes))
        field = stack.enter_context(gpuflow.open("field", connection=connection))
        objects = network.ObjectStore(s3)
        stack.enter_context(objects.served(s3, base / "s3.log"))
        remote = objects.create("field")
        for chunk in range(CHUNKS):
            remote.blocks[chunk] = 280 + chunk % 7
        network.shape([*nodes, s3], 1)
        sent: dict[str, list[int]] = {}

        def timed(side: str, array: Callable[[], da.Array]) -> float:
            before = sum(host.wire_bytes for host in nodes)
            spent = _ms(lambda: [work(array(), connection) for work in WORK.values()])
            sent.setdefault(side, []).append(sum(host.wire_bytes for host in nodes) - before)
            return spent

        sides = {
            "gpuflow": lambda: timed("gpuflow", field.to_dask),
            "dask + S3": lambda: timed("dask + S3", lambda: da.from_zarr(remote)),
            "dask, made in memory": lambda: timed("dask, made in memory", _made),
        }
        interleave(report, "explore at 1 Gbit/s", sides, min(arguments.rounds, 3))
        share = {side: median(values) / (len(WORK) * CHUNKS * NBYTES) for side, values in sent.items()}
        report.notes.append(
            f"bytes on the nodes' links over those read: {', '.join(f'{side} {part:.2%}' for side, part in share.items())}"
        )
        report.check(
            "explore at 1 Gbit/s: dask + S3 / gpuflow", report.ratio("explore at 1 Gbit/s", "dask + S3", "gpuflow"), ">=", 5
        )
        report.check("explore at 1 Gbit/s: wire bytes / read", share["gpuflow"], "<=", 0.05)
