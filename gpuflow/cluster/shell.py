"""Shells on a node: each a process of its own with one chunk of the node loaded, driven by whoever opened it.

A shell does what its worker's user may do; therefore a worker opens none unless it was started with `--allow-shell`. There are few at once,
and one whose owner has not been heard of for a while is killed with all that it started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Worker

from gpuflow.backends.select import select_device
from gpuflow.cluster import shell_child
from gpuflow.errors import ChunkLost, ClusterError
from gpuflow.settings import shell_is_allowed
from gpuflow.storage.blocks import read_block
from gpuflow.storage.buffers import Slots
from gpuflow.storage.node import NodeStore

ALLOW = "start the node's workers with --allow-shell (gpuflow node, or after --preload gpuflow.cluster)"
MOST_SHELLS = 4  # of a worker: each holds a chunk in memory
FORGOTTEN_SECONDS = 60.0  # its owner asks four times as often, also while one thinks
_PIECE_NBYTES = 2**16
_END_SECONDS = 0.5  # for what is in the pipes when it has ended


@dataclass(frozen=True, slots=True)
class Said:
    """What a shell wrote since it was last asked, and its state when it has come to one: ready for the next line, more of this one is
    wanted, or ended, with `status`."""

    out: bytes = b""
    err: bytes = b""
    state: str = ""
    status: int = 0


class Shell:
    """One. Thread-safe but for `read`, which one thread calls. close: kills it."""

    def __init__(self, store: NodeStore, dataset: str, array: str, chunk: int, device: str = "auto") -> None:
        """ChunkLost when the node has not the chunk, ChunkCorrupt when it is damaged; DeviceUnavailable."""
        chosen = select_device(device)
        self._folder = Path(tempfile.mkdtemp(prefix="shell-", dir=store.writer.folder))
        try:
            names = _write_chunk(store, dataset, array, chunk, self._folder / "chunk.npy")
            self._start(names)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self.heard = time.monotonic()
        self._ended = Said()
        self._sending, self._reading = threading.Lock(), threading.Lock()
        self._streams = [pipe.fileno() for pipe in (self._process.stdout, self._process.stderr) if pipe is not None]
        self._open = list(self._streams)
        self.send({"load": str(self._folder / "chunk.npy"), "names": names, "device": chosen})

    def _start(self, names: Mapping[str, Any]) -> None:
        self._answers, theirs = os.pipe()
        environment = {
            **os.environ,
            "GPUFLOW_INPUT_FILE": str(self._folder / "chunk.npy"),
            "GPUFLOW_DATASET": names["dataset"],
            "GPUFLOW_ARRAY": names["array"],
            "GPUFLOW_CHUNK": names["key"],
            "PYTHONUNBUFFERED": "1",
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", shell_child.__file__, str(theirs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=self._folder,
                bufsize=0,
                pass_fds=[theirs],
                start_new_session=True,
            )
        except BaseException:
            os.close(self._answers)
            raise
        finally:
            os.close(theirs)

    def send(self, request: Mapping[str, Any]) -> None:
        """A request: see `shell_child`. One after the other has been answered."""
        self.heard = time.monotonic()
        with self._sending, contextlib.suppress(BrokenPipeError):  # reading tells that it has ended
            if self._process.stdin is not None and not self._process.stdin.closed:
                self._process.stdin.write(json.dumps(dict(request)).encode() + b"\n")

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._signal(signal.SIGINT)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def read(self, wait_seconds: float) -> Said:
        """What it says within that time, as soon as it says anything; little at once: what prints without end waits for its reader."""
        self.heard = time.monotonic()
        with self._reading:
            return self._ended if self._ended.state else self._read(wait_seconds)

    def _read(self, wait_seconds: float) -> Said:
        ready = select.select([*self._open, self._answers], [], [], wait_seconds)[0]
        answered = self._answers in ready
        if answered:  # what was printed before the answer comes before it
            ready = select.select(self._open, [], [], 0)[0]
        pieces = {stream: os.read(stream, _PIECE_NBYTES) for stream in ready if stream in self._open}
        self._open = [stream for stream in self._open if pieces.get(stream) != b""]
        if any(pieces.values()):
            out, err = (pieces.get(stream, b"") for stream in self._streams)
            return Said(out, err)
        return self._answer() if answered else Said()

    def _answer(self) -> Said:
        line = bytearray()
        while not line.endswith(b"\n") and (byte := os.read(self._answers, 1)):
            line += byte
        if not line:  # killed, from inside or outside
            try:
                code = self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                return Said()
            self._ended = Said(state="ended", status=128 - code if code < 0 else code or 1)
            return self._ended
        answer = json.loads(line)
        found = Said(state=answer["state"], status=answer["status"])
        if found.state == "ended":
            self._ended = found
        return found

    def close(self) -> None:
        """Kill it, and all that it started in its group. Twice is harmless."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        with self._sending, self._reading:
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                if pipe is not None:
                    pipe.close()
            if not self._ended.state:
                self._ended = Said(state="ended", status=128 + signal.SIGKILL)
            if self._answers >= 0:
                os.close(self._answers)
                self._answers = -1
        shutil.rmtree(self._folder, ignore_errors=True)


def _write_chunk(store: NodeStore, dataset: str, array: str, chunk: int, path: Path) -> dict[str, Any]:
    """The chunk's values at `path`; the names by which the shell knows it."""
    record = store.record(dataset)
    codec, metadata, name = store.codec(dataset, array), record.array(array), record.chunk_name(array, chunk)
    replica = store.manifest.replica(dataset, array, chunk)
    if replica is None:
        raise ChunkLost(name, [store.node_id])
    with Slots().take() as slot:
        _, block = read_block(store, codec, replica, slot)
        np.save(path, block[tuple(slice(size) for size in metadata.grid.extent(chunk))], allow_pickle=True)
    about = {"dataset": dataset, "array": array, "chunk": chunk, "key": metadata.key(chunk), "node": store.node_id}
    index = metadata.grid.unravel(chunk)
    return {
        **about,
        "index": list(index),
        "dims": list(metadata.dims),
        "attrs": json.loads(json.dumps(dict(metadata.attributes))),
    }


class Shells:
    """A worker's, by number: the handlers that it has for them."""

    def __init__(self, worker: Worker, store: NodeStore) -> None:
        self._worker, self._store = worker, store
        self._shells: dict[str, Shell] = {}
        self._opening = 0
        self._watching = False

    async def open(self, dataset: str, array: str, chunk: int, device: str) -> str:
        """A new one; its name. ClusterError when this worker may not, or has too many."""
        if not shell_is_allowed():
            raise ClusterError(f"node {self._store.node_id} does not allow shells", ALLOW)
        if len(self._shells) + self._opening >= MOST_SHELLS:
            hint = "end one of them, or wait a minute after its owner was killed"
            raise ClusterError(f"a worker of node {self._store.node_id} has {MOST_SHELLS} shells already", hint)
        self._opening += 1
        try:
            shell = await asyncio.to_thread(Shell, self._store, dataset, array, chunk, device)
        finally:
            self._opening -= 1
        name = uuid.uuid4().hex
        self._shells[name] = shell
        if not self._watching:
            self._watching = True
            self._worker.loop.call_later(FORGOTTEN_SECONDS / 4, self._look)
        return name

    def _look(self) -> None:
        """End those that nobody asks after."""
        now = time.monotonic()
        for name in [name for name, shell in self._shells.items() if now - shell.heard > FORGOTTEN_SECONDS]:
            self._shells.pop(name).close()
        self._watching = bool(self._shells)
        if self._watching:
            self._worker.loop.call_later(FORGOTTEN_SECONDS / 4, self._look)

    def _of(self, name: str) -> Shell:
        if name not in self._shells:
            raise ClusterError(f"the shell on node {self._store.node_id} has ended", "open another one")
        return self._shells[name]

    async def send(self, name: str, request: dict[str, Any]) -> None:
        """See `Shell.send`."""
        await asyncio.to_thread(self._of(name).send, request)

    async def read(self, name: str, wait_seconds: float) -> tuple[bytes, bytes, str, int]:
        """See `Shell.read`."""
        said = await asyncio.to_thread(self._of(name).read, min(wait_seconds, 5.0))
        return said.out, said.err, said.state, said.status

    async def keep(self, name: str) -> None:
        """Its owner is there."""
        self._of(name).heard = time.monotonic()

    async def interrupt(self, name: str) -> None:
        """See `Shell.interrupt`."""
        self._of(name).interrupt()

    async def close(self, name: str) -> None:
        """One that has ended already is no error."""
        shell = self._shells.pop(name, None)
        if shell is not None:
            await asyncio.to_thread(shell.close)
