"""b. kill -9 at random moments of runs in place on three nodes, and every replica as NumPy has it at the end; e. roots that go away.

A client runs one pipeline in place after the other. Each adds a number of its own, so that every chunk tells by its values which of them
it had, and whether it had one twice. Whatever is killed is started again at once; the next kill comes when a run has ended since, and often
one more at once, before anything has recovered."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ci.proofs import hangs
from ci.proofs.cluster import CLIENT, SCHEDULER, Processes
from gpuflow.cluster.connection import connect
from gpuflow.datasets import catalog
from gpuflow.errors import ChunkCorrupt, NameTaken
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
ROOT_AWAY, ROOT_LOST = "root away", "root lost"
_VICTIMS = ("worker",) * 5 + (SCHEDULER,) * 2 + (CLIENT,) * 2 + ("all",) * 2
_AWAY_SECONDS = 1.0  # at most; a run or two fails meanwhile


@dataclass
class Counts:
    """What was killed how often, and what came of the replicas. hangs: times that no run ended."""

    killed: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    checked: int = 0
    lost: int = 0
    torn: int = 0
    wrong: int = 0
    few: int = 0
    """Chunks with fewer replicas of the last run that ended, or of the next, than they are to have."""
    hangs: int = 0
    kept: list[Path] = field(default_factory=list)
    """Folders with what was to be known of each hang."""
    wrong_ones: list[str] = field(default_factory=list)
    """What is lost, torn, wrong, or too few, one by one."""
    made: int = 0
    """Things that somebody made where a root had been."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """From a kill to the end of the first run that ended after it, by what was killed; where no other kill came between."""

    def wrongs(self) -> dict[str, int]:
        """What should be 0, by name."""
        named = {"chunks lost": self.lost, "replicas torn": self.torn, "chunks not applied exactly once": self.wrong}
        return {**named, "chunks with too few replicas": self.few, "hangs": self.hangs}


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
        run = 0
        while True:
            known = len(catalog.find(connection, "data").transforms)
            run = max(run, known - 1)  # a node that knows of a later one may have joined since
            begun = known > run
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
    """One cluster, one dataset of `replicas` copies, and the kills."""

    def __init__(self, folder: Path, seed: int, replicas: int = 1) -> None:
        self.counts = Counts()
        self._seed, self._random, self._replicas = seed, random.Random(f"kills {seed}"), replicas
        self._told, teller = Pipe(duplex=False)
        self._processes = Processes(folder, NODES, {CLIENT: (client, seed, teller)})
        self._fill()
        self._ended = -1  # number of the last run that is known to have ended

    def _fill(self) -> None:
        metadata = ArrayMetadata.create((CHUNKS, WIDTH), (1, WIDTH), np.dtype("int64"))
        copies = {"min": self._replicas, "max": self._replicas}
        record = DatasetRecord("data", state="ready", arrays={"x": metadata.document}, replicas=copies)
        values = initial()
        for number, root in enumerate(self._processes.roots):
            store = NodeStore(root)
            store.put_record(record)
            codec, staged = store.codec("data", "x"), []
            for chunk in range(CHUNKS):
                if (number - chunk) % NODES < self._replicas:
                    data = bytes(codec.encode(values[chunk : chunk + 1]))
                    replica = Replica("data", "x", chunk, 1, len(data), digest(data), digest(b"made"), digest(b"from"))
                    staged.append(store.stage(replica, data))
            store.commit(staged)
            store.close()

    def run(self, kills: int, victims: Sequence[str] = _VICTIMS) -> Counts:
        """Kill so often, then let a run end, and look at every replica."""
        try:
            self._wait_for_a_run()
            while sum(self.counts.killed.values()) < kills and not self.counts.hangs:
                self._wait(self._random.uniform(0, _MOST_SECONDS))
                what = self._random.choice(victims)
                self._kill(what)
                if what == ROOT_LOST:  # a run that was making copies may have made them there; the next makes them again
                    self._wait_for_a_run()
                if what in (ROOT_AWAY, ROOT_LOST) or self._random.random() > _AT_ONCE:
                    self.counts.seconds.setdefault(what, []).append(self._wait_for_a_run())
            self._wait_for_a_run()
        finally:
            self._processes.kill(self._processes.names)
        self.look()
        return self.counts

    def _kill(self, what: str) -> None:
        number = self._random.randrange(NODES)
        self.counts.killed[what] = self.counts.killed.get(what, 0) + 1
        if what == ROOT_AWAY:
            self._take_away(number)
        elif what == ROOT_LOST:
            self._lose(number)
        else:
            self._processes.kill({"worker": [f"worker{number}"], "all": self._processes.names}.get(what, [what]))
        if what == "all":
            self.look()
        self._processes.keep_up()

    def _take_away(self, number: int) -> None:
        """As when a disk is not mounted any more, while its worker goes on; and back."""
        root = self._processes.roots[number]
        away = root.with_name(f"{root.name} away")
        os.rename(root, away)
        until = time.monotonic() + self._random.uniform(0, _AWAY_SECONDS)
        while time.monotonic() < until:
            self._processes.keep_up(but=f"worker{number}")
            time.sleep(_LOOK_SECONDS)
        if root.exists():
            self.counts.made += 1
            shutil.rmtree(root)
        os.rename(away, root)

    def _lose(self, number: int) -> None:
        """A disk breaks for good: its machine stops, and comes back with an empty one."""
        shutil.rmtree(self._processes.roots[number], ignore_errors=True)  # its worker makes files meanwhile
        self._processes.kill([f"worker{number}"])
        shutil.rmtree(self._processes.roots[number], ignore_errors=True)

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
                self.counts.kept.append(hangs.keep(self._processes))
                break
            self._wait(_LOOK_SECONDS)
        return time.monotonic() - began

    def _hear(self) -> None:
        while self._told.poll():
            self._ended = self._told.recv()
            self.counts.runs = self._ended + 1

    # -- what came of it -------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Nothing runs. Every chunk, at its newest generation, has had all runs that ended, each once, and at most the one after them; as
        many replicas as it is to have have had all that ended; and every other one is whole, as it was after some run."""
        self._hear()
        found = [self._replicas_in(root) for root in self._processes.roots]
        states = np.cumsum(
            [0, *(addend(self._seed, run) for run in range(self._ended + 2))]
        )  # added after each run, from none on
        due = len(states) - 2  # all that ended
        for chunk, values in enumerate(initial()):
            held = [node[chunk] for node in found if chunk in node]
            had = [(generation, _runs_of(read - values, states)) for generation, read in held if read is not None]
            newest = max((generation for generation, _ in had), default=0)
            at_newest = {runs for generation, runs in had if generation == newest}
            wrongs = {
                "lost": int(not held),
                "torn": sum(runs < 0 for generation, runs in had if generation < newest),
                "wrong": int(len(at_newest) > 1 or min(at_newest, default=due) < due),
                "few": int(sum(runs >= due for _, runs in had) < self._replicas),
            }
            for name, count in wrongs.items():
                setattr(self.counts, name, getattr(self.counts, name) + count)
            if any(wrongs.values()):
                named = ", ".join(name for name, count in wrongs.items() if count)
                self.counts.wrong_ones.append(f"chunk {chunk}, after {due} runs: {named}; (generation, runs) {had}")

    def _replicas_in(self, root: Path) -> dict[int, tuple[int, NDArray[np.int64] | None]]:
        """By chunk: the generation and the values of every replica that a node has. Those that it cannot show are counted, and None."""
        store, found = NodeStore(root), dict[int, tuple[int, NDArray[np.int64] | None]]()
        store.recover()
        for row in store.manifest.replicas("data", "x"):
            chunk, values = int(row["chunk"]), None
            try:
                values = store.codec("data", "x").decode(store.read("data", "x", chunk)[1])[0]
            except ChunkCorrupt as error:
                missing = error.reason == MISSING
                self.counts.lost += missing
                self.counts.torn += not missing
                self.counts.wrong_ones.append(str(error))
            found[chunk] = int(row["generation"]), values
            self.counts.checked += 1
        store.close()
        return found


def _runs_of(added: NDArray[np.int64], states: NDArray[np.int64]) -> int:
    """How many runs a chunk has had to which `added` was added; -1 when it is no number of them, each once."""
    if (added != added[0]).any():
        return -1
    place = int(np.searchsorted(states, added[0]))
    return place if place < len(states) and states[place] == added[0] else -1
