"""f. kill -9 at random moments while pipelines follow a stream of changes: every change is processed, none twice, and the cursor is right.

A watcher runs three pipelines: two that feed each other (`source` to `middle` to `end`), and one in place, which adds what no change ever
writes, so that a chunk tells by its values whether it was done once, not at all, or twice. Changes are committed in the nodes' own stores,
whoever is dead just then. Killed are the watcher, workers and the scheduler; what is killed is started again at once."""

from __future__ import annotations

import random
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ci.proofs.cluster import CLIENT, SCHEDULER, Processes
from gpuflow.cluster.connection import connect
from gpuflow.datasets.here import NodesHere
from gpuflow.errors import GpuflowError, NameTaken
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import NodeStore
from gpuflow.storage.placing import written
from gpuflow.storage.record import DatasetRecord
from gpuflow.triggers.event import Cursor
from gpuflow.triggers.state import load_state
from gpuflow.triggers.watching import Watching, load_all

NODES, CHUNKS, WIDTH = 3, 60, 64
CHANGES_A_KILL = 50
_MARK = 1_000_000
"""What the pipeline in place adds; no change writes so much."""
_HANG_SECONDS = 180.0  # for all that was changed to be done, when nothing is killed any more
_LOOK_SECONDS = 0.05
_MOST_SECONDS = 1.0  # between kills
_AT_ONCE = 0.3  # of the kills come before anything has recovered from the one before
_VICTIMS = (CLIENT,) * 4 + ("worker",) * 4 + (SCHEDULER,) * 2

_PIPELINES = {
    "first": "source: source\nsteps:\n  - map: x * 2\noutput: middle\non: {dataset: source, batch_seconds: 0.05}\n",
    "second": "source: middle\nsteps:\n  - map: x + 1\noutput: end\non: {dataset: middle, batch_seconds: 0.05}\n",
    "place": f"source: placed\nsteps:\n  - map: x + {_MARK}\noutput: {{in_place: true}}\non: {{dataset: placed, batch_seconds: 0.05}}\n",
}


@dataclass
class Counts:
    """What was killed how often, how much was changed, and what came of it."""

    killed: dict[str, int] = field(default_factory=dict)
    changes: int = 0
    missed: int = 0
    twice: int = 0
    cursors: int = 0
    """Pipelines whose cursor does not cover what is done, or that have something left to do, or gave a chunk up."""
    hangs: int = 0
    seconds: float = 0.0
    """From the last change to all done."""

    def wrongs(self) -> dict[str, int]:
        """What should be 0, by name."""
        return {
            "changes not processed": self.missed,
            "chunks processed twice": self.twice,
            "cursors that are wrong": self.cursors,
            "hangs": self.hangs,
        }


def watcher(address: str, files: list[Path]) -> None:
    """The process that watches."""
    Watching(load_all(files), lambda: connect(address), lambda text: print(text, flush=True), at_once=3).forever()


class Following:
    """One cluster, the watcher, the stream, and the kills."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.counts = Counts()
        self._random = random.Random(f"following {seed}")
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{name}.yaml" for name in _PIPELINES]
        for file in files:
            file.write_text(_PIPELINES[file.stem])
        self._folder = folder
        self._processes = Processes(folder, NODES, {CLIENT: (watcher, files)})
        self._expected = {name: np.ones(CHUNKS, np.int64) for name in ("source", "placed")}
        self._fill()

    def _fill(self) -> None:
        metadata = ArrayMetadata.create((CHUNKS, WIDTH), (1, WIDTH), np.dtype("int64"))
        for number, root in enumerate(self._processes.roots):
            with closing(NodeStore(root)) as store:
                for name in self._expected:
                    store.put_record(
                        DatasetRecord(name, state="ready", arrays={"x": metadata.document}, origin={"kind": "written"})
                    )
                    codec, staged = store.codec(name, "x"), []
                    for chunk in range(number, CHUNKS, NODES):
                        data = bytes(codec.encode(np.ones((1, WIDTH), np.int64)))
                        staged.append(store.stage(written(name, "x", chunk, 1, data), data))
                    store.commit(staged)

    def run(self, kills: int) -> Counts:
        """Kill so often during the stream; then look whether all of it comes out."""
        try:
            with closing(NodesHere(*self._processes.roots)) as here:
                self._processes.keep_up()
                self._wait_until_done(here)
                for _ in range(kills):
                    if self.counts.hangs:
                        break
                    self._change(here, CHANGES_A_KILL)
                    self._kill()
                self._change(here, CHANGES_A_KILL)
                began = time.monotonic()
                self._wait_until_done(here)
                self.counts.seconds = time.monotonic() - began
                self._look(here)
        finally:
            self._processes.kill(self._processes.names)
        return self.counts

    # -- the stream and the kills -----------------------------------------------------------------------------------------------

    def _change(self, here: NodesHere, count: int) -> None:
        """So many changes, spread over the time to the next kill."""
        pause = self._random.uniform(0, _MOST_SECONDS) / count
        for _ in range(count):
            name, chunk = self._random.choice(list(self._expected)), self._random.randrange(CHUNKS)
            value = self.counts.changes + 2
            store = here.stores[here.holders(name, "x", chunk)[0]]
            data = bytes(store.codec(name, "x").encode(np.full((1, WIDTH), value, np.int64)))
            while True:
                try:
                    here.write_on(store.node_id, name, "x", chunk, data)
                    break
                except NameTaken:  # the run in place has it just now
                    self._processes.keep_up()
                    time.sleep(_LOOK_SECONDS / 10)
            self._expected[name][chunk] = value
            self.counts.changes += 1
            time.sleep(pause)

    def _kill(self) -> None:
        what = self._random.choice(_VICTIMS)
        self.counts.killed[what] = self.counts.killed.get(what, 0) + 1
        self._processes.kill([f"worker{self._random.randrange(NODES)}"] if what == "worker" else [what])
        self._processes.keep_up()
        if self._random.random() > _AT_ONCE:
            time.sleep(self._random.uniform(0, _MOST_SECONDS))

    def _wait_until_done(self, here: NodesHere) -> None:
        began = time.monotonic()
        while self._wrong(here):
            if time.monotonic() - began > _HANG_SECONDS:
                self.counts.hangs += 1
                return
            self._processes.keep_up()
            time.sleep(5 * _LOOK_SECONDS)

    # -- what came of it ----------------------------------------------------------------------------------------------------------

    def _wrong(self, here: NodesHere) -> int:
        """Values that are not what the changes so far come to."""
        source, placed = self._expected["source"], self._expected["placed"]
        wanted = {"source": source, "middle": source * 2, "end": source * 2 + 1, "placed": placed + _MARK}
        return sum(int((self._values(here, name) != values).sum()) for name, values in wanted.items())

    def _values(self, here: NodesHere, name: str) -> NDArray[np.int64]:
        """(CHUNKS,): the value of each chunk; -1 where it is not there, or its values differ."""
        found = np.full(CHUNKS, -1, np.int64)
        if name not in here.records():
            return found
        for chunk, (store, _) in here.local_many(name, "x", range(CHUNKS)).items():
            try:
                block = store.codec(name, "x").decode(store.read(name, "x", chunk)[1])
            except GpuflowError:  # it is changed just now
                continue
            if (block == block.flat[0]).all():
                found[chunk] = int(block.flat[0])
        return found

    def _look(self, here: NodesHere) -> None:
        self.counts.missed = self._wrong(here)
        placed = self._values(here, "placed")
        self.counts.twice = int((placed >= 2 * _MARK).sum())
        generations = {
            name: here.whereabouts(name, "x", CHUNKS).generations.astype(np.int64) for name in ("source", "middle", "end")
        }
        self.counts.twice += int((generations["middle"] > generations["source"]).sum())
        self.counts.twice += int((generations["end"] > generations["middle"]).sum())
        until = time.monotonic() + _HANG_SECONDS / 6
        while (wrong := self._wrong_cursors(here)) and time.monotonic() < until:  # written down after what they cover
            self._processes.keep_up()
            time.sleep(_LOOK_SECONDS)
        self.counts.cursors = wrong

    def _wrong_cursors(self, here: NodesHere) -> int:
        newest = {node: self._last(store) for node, store in here.stores.items()}
        wrong = 0
        for name in ("middle", "end", "placed"):
            state = load_state(here, name)
            if state is None or state.left or state.whole or state.given_up:
                wrong += 1
                continue
            known = Cursor.parse(state.cursor).nodes
            source = state.source
            wrong += any(known.get(node, 0) < newest[node].get(source, 0) for node in newest if state.name != source)
            wrong += any(known.get(node, 0) > max(newest[node].values(), default=0) for node in newest)
        return wrong

    def _last(self, store: NodeStore) -> dict[str, int]:
        """By dataset, the number of the last commit of a chunk of it; under "" of anything."""
        rows = store.manifest.query(
            "SELECT dataset, max(seq) FROM replica JOIN array ON array.id = replica.array GROUP BY dataset"
        )
        last = {str(name): int(seq) for name, seq in rows}
        return {**last, "": int(store.manifest.query("SELECT value FROM meta WHERE key = 'seq'")[0][0])}
