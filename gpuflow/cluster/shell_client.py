"""Who opens a shell: on a node of a cluster that has the chunk, or here where the chunk lies on this machine and there is no cluster.

One request is sent, then what it says is read until it has come to a state. The owner is heard of while it thinks, too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from gpuflow.cluster.connection import Connection
from gpuflow.cluster.shell import ALLOW, FORGOTTEN_SECONDS, Said, Shell
from gpuflow.datasets.here import NodesHere
from gpuflow.errors import ChunkCorrupt, ChunkLost, ClusterError, GpuflowError
from gpuflow.storage.record import DatasetRecord

_WAIT_SECONDS = 1.0  # of one question for what it says
_GRACE_SECONDS = 2.0  # between an interrupt and the end

Print = Callable[[bytes, bytes], None]
"""Takes what came of stdout and of stderr."""


class AnyShell(Protocol):
    """A shell, near or far."""

    def send(self, request: Mapping[str, Any]) -> None:
        """See `shell_child`."""

    def read(self, wait_seconds: float) -> Said:
        """See `Shell.read`."""

    def interrupt(self) -> None:
        """As Ctrl-C does."""

    def close(self) -> None:
        """End it."""


class RemoteShell:
    """One on a worker at `address`. ClusterError when that has gone: its shells ended with it."""

    def __init__(self, connection: Connection, address: str, node: str, question: Mapping[str, Any]) -> None:
        self._connection, self._address, self._node = connection, address, node
        self._name: str = self._ask("open", **question)
        self._done = threading.Event()
        threading.Thread(target=self._keep, name="gpuflow-shell", daemon=True).start()

    def _keep(self) -> None:
        while not self._done.wait(FORGOTTEN_SECONDS / 4):
            with suppress(GpuflowError):
                self._ask("keep", name=self._name)

    def _ask(self, operation: str, **question: Any) -> Any:
        client = self._connection.client
        try:
            return client.sync(getattr(client.rpc(self._address), f"gf_shell_{operation}"), **question)
        except GpuflowError:
            raise
        except OSError as error:
            raise ClusterError(f"node {self._node} does not answer ({error})", "open another shell when it is back") from error

    def send(self, request: Mapping[str, Any]) -> None:
        """See `AnyShell`."""
        self._ask("send", name=self._name, request=dict(request))

    def read(self, wait_seconds: float) -> Said:
        """See `AnyShell`."""
        return Said(*self._ask("read", name=self._name, wait_seconds=wait_seconds))

    def interrupt(self) -> None:
        """See `AnyShell`."""
        self._ask("interrupt", name=self._name)

    def close(self) -> None:
        """See `AnyShell`. Where its node has gone there is nothing to end."""
        self._done.set()
        with suppress(ClusterError):
            self._ask("close", name=self._name)


def open_shell(connection: Connection, record: DatasetRecord, array: str, chunk: int, device: str = "auto") -> RemoteShell:
    """On a live node that has the chunk whole. ChunkLost when there is none, ClusterError when none of them allows it."""
    name = record.chunk_name(array, chunk)
    (held,) = connection.ask("gf_locate", dataset=record.name, array=array, chunks=[chunk], named=True)
    workers = connection.info()["workers"]
    allowed = [(address, node) for address, node in held if workers.get(address, {}).get("allows_shell")]
    if not held:
        raise ChunkLost(name, sorted({worker["node"] for worker in workers.values()}))
    if not allowed:
        raise ClusterError(f"node {', '.join(sorted({node for _, node in held}))} has {name} and allows no shell", ALLOW)
    refused: GpuflowError | None = None
    question = {"dataset": record.name, "array": array, "chunk": chunk, "device": device}
    for address, node in allowed:
        try:
            return RemoteShell(connection, address, node, question)
        except (ChunkLost, ChunkCorrupt, ClusterError) as error:
            refused = error
    raise refused or ChunkLost(name)


def open_here(nodes: NodesHere, record: DatasetRecord, array: str, chunk: int, device: str = "auto") -> Shell:
    """Of a chunk that lies on this machine. ChunkLost, ChunkCorrupt."""
    found = nodes.local(record.name, array, chunk)
    if found is None:
        raise ChunkLost(record.chunk_name(array, chunk), sorted(nodes.stores))
    return Shell(found[0], record.name, array, chunk, device)


def converse(shell: AnyShell, request: Mapping[str, Any] | None, show: Print, timeout_seconds: float | None = None) -> Said:
    """Send a request, or none to see how it has begun; show what is said, and give the state that it comes to.

    After `timeout_seconds` it is interrupted, then ended; the status is then 124, as of `timeout`. So is a first Ctrl-C, then a second."""
    if request is not None:
        shell.send(request)
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    interrupted = late = False
    while True:
        try:
            said = shell.read(_WAIT_SECONDS if deadline is None else max(0.0, min(_WAIT_SECONDS, deadline - time.monotonic())))
            show(said.out, said.err)
            if said.state:
                return Said(state="ended", status=124) if late else said
            if deadline is not None and time.monotonic() > deadline:
                if late:
                    return Said(state="ended", status=124)
                late, deadline = True, time.monotonic() + _GRACE_SECONDS
                shell.interrupt()
        except KeyboardInterrupt:
            if interrupted:
                return Said(state="ended", status=130)
            interrupted = True
            shell.interrupt()
