"""b. kill -9 at random moments of runs in place on three nodes, and every chunk as NumPy has it at the end.

A client runs one pipeline in place after the other. Each adds a number of its own, so that every chunk tells by its values which of them
it had, and whether it had one twice. Whatever is killed is started again at once; the next kill comes when a run has ended since, and often
one more at once, before anything has recovered."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ci.proofs.cluster import CLIENT, SCHEDULER, Processes
from gpuflow.cluster.connection import connect
from gpuflow.datasets import catalog
from gpuflow.errors import ChunkCorrupt, ChunkLost, NameTaken
from gpuflow.execution.run import run_pipeline
from gpuflow.pipelines.load import from_dict
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord

NODES, CHUNKS, WIDTH = 3, 96, 512
_HANG_SECONDS = 120.0  # without one run that ended; a run takes a second, a node that is missed 30
_LOOK_SECONDS = 0.02
_MOST_SECONDS = 0.6  # from the end of a run, or from a kill, to the next kill: two or three runs
_AT_ONCE = 0.3  # of the kills come before anything has recovered from the one before
MISSING = "its file is missing"  # as the store calls it
_VICTIMS = ("worker",) * 5 + (SCHEDULER,) * 2 + (CLIENT,) * 2 + ("all",) * 2


@dataclass
class Counts:
    """What was killed how often, and what came of the chunks. hangs: times that no run ended."""

    killed: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    checked: int = 0
    lost: int = 0
    torn: int = 0
    wrong: int = 0
    hangs: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """From a kill to the end of the first run that ended after it, by what was killed; where no other kill came between."""


def addend(seed: int, run: int) -> int:
    """What pipeline number `run` adds to every value."""
    return int(np.random.default_rng((seed, run)).integers(1, 1000))


def initial() -> NDArray[np.int64]:
    """(CHUNKS, WIDTH): the values before the first run, a chunk in a row."""
    return np.arange(CHUNKS * WIDTH, dtype=np.int64).reshape(CHUNKS, WIDTH)


# -- the client process ----------------------------------------------------------------------------------------------------------------


def client(address: str, seed: int, ended: Connection) -> None:
    """Run after run, beginning with the one that is not known to have ended. Tells each run's number when it has."""
    with connect(address) as connection:
        run = max(0, len(catalog.find(connection, "data").transforms) - 1)
        while True:
            begun = len(catalog.find(connection, "data").transforms) > run
            spec = from_dict({"source": "data", "steps": [{"map": f"x + {addend(seed, run)}"}], "output": {"in_place": True}})
            try:
                receipt = run_pipeline(connection, spec, stack=not begun).to_dict()
            except NameTaken as error:  # the lease of a client that was killed
                receipt = {"failures": [error]}
            if receipt["failures"]:
                print("run again:", receipt["failures"][0], flush=True)
                time.sleep(_LOOK_SECONDS)
                continue
            ended.send(run)
            run += 1


# -- the one that kills ----------------------------------------------------------------------------------------------------------------


class Killing:
    """One cluster, one dataset, and the kills."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.counts = Counts()
        self._seed, self._random = seed, random.Random(f"kills {seed}")
        self._told, teller = Pipe(duplex=False)
        self._processes = Processes(folder, NODES, client, seed, teller)
        self._fill()
        self._ended = -1  # number of the last run that is known to have ended

    def _fill(self) -> None:
        metadata = ArrayMetadata.create((CHUNKS, WIDTH), (1, WIDTH), np.dtype("int64"))
        record = DatasetRecord("data", state="ready", arrays={"x": metadata.document})
        values = initial()
        for number, root in enumerate(self._processes.roots):
            store = NodeStore(root)
            store.put_record(record)
            codec, staged = store.codec("data", "x"), []
            for chunk in range(number, CHUNKS, NODES):
                data = bytes(codec.encode(values[chunk : chunk + 1]))
                replica = Replica("data", "x", chunk, 1, len(data), digest(data), digest(b"made"), digest(b"from"))
                staged.append(store.stage(replica, data))
            store.commit(staged)
            store.close()

    def run(self, kills: int) -> Counts:
        """Kill so often, then let a run end, and look at every chunk."""
        try:
            self._wait_for_a_run()
            while sum(self.counts.killed.values()) < kills and not self.counts.hangs:
                self._wait(self._random.uniform(0, _MOST_SECONDS))
                what = self._random.choice(_VICTIMS)
                self._kill(what)
                if self._random.random() > _AT_ONCE:
                    self.counts.seconds.setdefault(what, []).append(self._wait_for_a_run())
            self._wait_for_a_run()
        finally:
            self._processes.kill(self._processes.names)
        self.look()
        return self.counts

    def _kill(self, what: str) -> None:
        worker = f"worker{self._random.randrange(NODES)}"
        self._processes.kill({"worker": [worker], "all": self._processes.names}.get(what, [what]))
        self.counts.killed[what] = self.counts.killed.get(what, 0) + 1
        if what == "all":
            self.look()
        self._processes.keep_up()

    def _wait(self, seconds: float) -> None:
        """Keep everything up meanwhile."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._processes.keep_up()
            self._hear()
            time.sleep(_LOOK_SECONDS)

    def _wait_for_a_run(self) -> float:
        """Until one has ended that had not, so many seconds; a hang when none does."""
        self._hear()
        before, began = self._ended, time.monotonic()
        while self._ended == before:
            if time.monotonic() - began > _HANG_SECONDS:
                self.counts.hangs += 1
                break
            self._wait(_LOOK_SECONDS)
        return time.monotonic() - began

    def _hear(self) -> None:
        while self._told.poll():
            self._ended = self._told.recv()
            self.counts.runs = self._ended + 1

    def look(self) -> None:
        """Nothing runs: every chunk has had all runs that ended, each once, and at most the one after them."""
        self._hear()
        before = initial() + sum(addend(self._seed, run) for run in range(self._ended + 1))
        after = before + addend(self._seed, self._ended + 1)
        for number, root in enumerate(self._processes.roots):
            store = NodeStore(root)
            store.recover()
            codec = store.codec("data", "x")
            for chunk in range(number, CHUNKS, NODES):
                self.counts.checked += 1
                try:
                    values = codec.decode(store.read("data", "x", chunk)[1])[0]
                except ChunkLost:
                    self.counts.lost += 1
                except ChunkCorrupt as error:
                    missing = error.reason == MISSING
                    self.counts.lost += missing
                    self.counts.torn += not missing
                else:
                    self.counts.wrong += not any(np.array_equal(values, wanted[chunk]) for wanted in (before, after))
            store.close()
