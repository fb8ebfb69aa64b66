"""`gpuflow.connect`: a running cluster, or an embedded one, as the rest of gpuflow uses it."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from distributed import Client

from gpuflow import __version__
from gpuflow.backends.select import check_device_word
from gpuflow.cluster.launch import EmbeddedCluster, existing_roots
from gpuflow.cluster.messages import packed_column, unpacked_column
from gpuflow.cluster.results import Results
from gpuflow.cluster.worker_plugin import on_store, sent_bytes
from gpuflow.errors import ClusterError, GpuflowError
from gpuflow.settings import scheduler_address, store_root

T = TypeVar("T")

_CONNECT_SECONDS = 10.0
_MOMENT_SECONDS = 0.1  # a run asks a dozen times who is there, a round trip each
_WORKERS_SECONDS = 90.0  # for all embedded workers to join: processes that import in parallel on few cores


class Connection:
    """A cluster to work on. Close it, or use it in a `with` block; that also ends an embedded cluster.

    client: the `distributed.Client`, for whatever else you want to run there. device: what steps run on where
    their pipeline says `auto`: auto, cpu, cuda or cuda:N."""

    def __init__(self, client: Client, device: str, embedded: EmbeddedCluster | None = None) -> None:
        self.client, self.device, self.embedded = client, device, embedded
        self._seen: tuple[float, dict[str, Any]] = (-_MOMENT_SECONDS, {})
        self.results = Results(client)
        self._check()

    # -- what is there ----------------------------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """Version, routing mode and workers, as the scheduler sees them. ClusterError when it has no gpuflow plugin."""
        answer = self.ask("gf_info")
        if answer is None:  # what Dask answers to an operation that it does not know
            address = self.client.scheduler_info(n_workers=0)["address"]
            hint = "start it with `gpuflow scheduler`, or `dask scheduler --preload gpuflow.cluster`"
            raise ClusterError(f"the scheduler at {address} has no gpuflow plugin", hint)
        self._seen = time.monotonic(), answer
        return dict(answer)

    def seen(self) -> dict[str, Any]:
        """The same as it was a moment ago, at most."""
        asked, info = self._seen
        return dict(info) if time.monotonic() - asked <= _MOMENT_SECONDS else self.info()

    def nodes(self) -> dict[str, list[str]]:
        """Addresses of the live workers of each node, by node id; as they were a moment ago, at most."""
        found: dict[str, list[str]] = {}
        for address, worker in sorted(self.seen()["workers"].items()):
            found.setdefault(worker["node"], []).append(address)
        if not found:
            raise ClusterError("no node has joined the cluster", "start one with `gpuflow node --scheduler ADDRESS --root ROOT`")
        return dict(sorted(found.items()))

    def resident(self, dataset: str, array: str, among: Sequence[int] | None = None) -> dict[str, tuple[str, list[int]]]:
        """By worker: its node, and the chunks of an array that it has decoded in memory. among: of these alone."""
        asked = None if among is None else packed_column(np.array(among, np.int64))
        answer = self.ask("gf_resident", dataset=dataset, array=array, among=asked)
        return {worker: (node, unpacked_column(chunks).tolist()) for worker, node, chunks in answer}

    def ask(self, operation: str, **kwargs: Any) -> Any:
        """Call one of the plugin's handlers on the scheduler."""
        if self.client.status not in ("running", "connecting"):
            raise ClusterError(f"the connection to the scheduler is {self.client.status}", "connect again")
        try:
            return self.client.sync(getattr(self.client.scheduler, operation), **kwargs)
        except OSError as error:
            raise ClusterError(f"the scheduler does not answer ({error})", "connect again when it is back") from error

    # -- what is done there -----------------------------------------------------------------------------------------------------

    def each_node(self, function: Callable[..., T], *args: Any) -> dict[str, T]:
        """`function(store, *args)` on one worker of every node: {node id: result}. Its errors are raised here.

        Where a worker goes away meanwhile, another of its node is asked; ClusterError when none is left."""
        left, found = self.nodes(), dict[str, T]()
        while left:
            chosen = {addresses[0]: node for node, addresses in left.items()}
            answers = self.client.run(on_store, function, *args, workers=list(chosen), on_error="return")
            left = {node: left[node][1:] for address, node in chosen.items() if _is_gone(answers[address])}
            for address, node in chosen.items():
                answer = answers[address]
                if node not in left and isinstance(answer, Exception):
                    raise answer
                if node in left and not left[node]:
                    raise ClusterError(f"node {node} does not answer ({answer})", "run again when it is back") from answer
                if node not in left:
                    found[node] = answer
        return dict(sorted(found.items()))

    def sent_bytes(self, run: str) -> int:
        """Chunk bytes that left workers for `run`, by their own count, as far as they live."""
        workers = [address for addresses in self.nodes().values() for address in addresses]
        return sum(self.client.run(sent_bytes, run, workers=workers, on_error="ignore").values())

    # -- start and end ----------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        info = self.info()
        if info["broken"]:
            raise ClusterError(f"gpuflow's scheduler plugin is not working: {info['broken']}")
        versions = {info["version"], *(worker["version"] for worker in info["workers"].values())}
        if versions != {__version__}:
            raise ClusterError(
                f"this is gpuflow {__version__}, the cluster has {', '.join(sorted(versions))}", "install one version"
            )
        if info["foreign"]:
            shown = ", ".join(info["foreign"][:3])
            warnings.warn(
                f"{len(info['foreign'])} workers have no gpuflow plugin and get no chunks ({shown}); "
                "start them with `gpuflow node`, or `dask worker --preload gpuflow.cluster`",
                stacklevel=4,
            )

    def close(self) -> None:
        """Leave the cluster; an embedded one ends."""
        self.client.close()
        if self.embedded is not None:
            self.embedded.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def connect(
    address: str | None = None,
    *,
    nodes: int | None = None,
    workers: int | None = None,
    root: str | os.PathLike[str] | None = None,
    device: str = "auto",
    allow_exec: bool = False,
    allow_shell: bool = False,
) -> Connection:
    """Connect to the cluster at `address` (`tcp://host:port`; default `GPUFLOW_SCHEDULER`), or start an embedded one.

    An embedded cluster has a scheduler and `workers` processes (default: `launch.share_out`) on each of `nodes` nodes of this machine
    (default: as many as its root holds, at least 1). Its store is at `root` (default `GPUFLOW_ROOT`, else `./.gpuflow`); further nodes
    have roots below it. device: auto | cpu | cuda | cuda:N: what its workers have, one for each CUDA device (see `launch.starts`); with
    another cluster, what pipelines use that leave it open. allow_exec: `exec` steps may run programs on its workers; allow_shell: they
    open shells.

    ClusterError and StoreError say what is wrong and what to do."""
    check_device_word(device)
    address = address or scheduler_address()
    allowed = [what for what, wanted in (("exec", allow_exec), ("shell", allow_shell)) if wanted]
    if address is None:
        base = (Path(root) if root else store_root()).absolute()
        return _embedded(base, nodes or max(1, len(existing_roots(base))), workers, device, allowed)
    if nodes is not None or workers is not None or root is not None:
        raise ClusterError("nodes, workers and root are for an embedded cluster", f"leave them out, or do not name {address}")
    if allowed:
        hint = f"start each node with `gpuflow node --allow-{allowed[0]}`"
        raise ClusterError(f"whether programs may run at {address} is for its nodes to say", hint)
    try:
        _knock(address)
        client = Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no scheduler answers at {address} ({error})", "check the address, or start `gpuflow scheduler`"
        ) from error
    try:
        return Connection(client, device)
    except BaseException:
        client.close()
        raise


def _is_gone(answer: Any) -> bool:
    """Whether it is a connection's error and no answer."""
    return isinstance(answer, OSError) and not isinstance(answer, GpuflowError)


def _knock(address: str) -> None:
    """ConnectionRefusedError at once where nobody listens; Dask would try again and again until its time is up."""
    place = urlsplit(address)
    if place.scheme in ("tcp", "tls") and place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=_CONNECT_SECONDS).close()


def _embedded(root: Path, nodes: int, workers: int | None, device: str, may: Sequence[str]) -> Connection:
    cluster = EmbeddedCluster(root, nodes, workers, may=may, device=device)
    client = None
    try:
        client = Client(cluster.address, timeout=_CONNECT_SECONDS)
        deadline = time.monotonic() + _WORKERS_SECONDS
        while len(client.scheduler_info(n_workers=-1)["workers"]) < cluster.worker_count:
            if cluster.trouble or time.monotonic() > deadline:
                raise ClusterError(cluster.trouble or f"{cluster.worker_count} workers did not start in {_WORKERS_SECONDS:.0f} s")
            time.sleep(0.02)
        return Connection(client, device, cluster)
    except BaseException:
        if client is not None:
            client.close()
        cluster.close()
        raise
