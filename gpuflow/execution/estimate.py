"""How long a run will take, by what its nodes have measured of themselves, and the stage that will bound it.

Pure. On each node threads and disk work side by side: the slower of the two is what counts, and one group of commits of the other, which
nothing goes on beside. The slowest node decides; one pass follows the other. Nodes of a machine share its cores, and its disk where that
is one. Nothing is guessed: a node that is not calibrated makes the time unknown, and what is not counted is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpuflow.execution.bound import OVERHEAD, STAGES
from gpuflow.storage.calibration import Calibration

RUN_SECONDS = 0.08
"""Of a run that makes two chunks of 32 bytes on two nodes: asking them, planning, announcing, publishing. 83 to 110 ms were measured."""
PASS_SECONDS = 0.12
"""Of a pass over two small chunks that comes before: its statistics are kept with every node, and the nodes are asked again. 90 to 200 ms
more than without it were measured."""
TASK_SECONDS, TASKS = 0.0015, 11
"""Of a task, see groups.py, and how many a thread gets of a pass that is over in some seconds: 3 short ones, and 8 parts of the rest."""
BESIDE = 0.75
"""Of the calibrated `chunk_seconds`, that a run takes besides for each chunk, on its thread: calling the steps, counts, messages, its part
of a task. 0.69 to 0.83 of what reading, encoding and committing took were measured with chunks of 64 KiB, on two busy cores."""
MOMENTS_GB_S = 4.0
"""Mean, variance and extrema of float32, a thread: 4 to 9 were measured with 8 MiB chunks on two busy cores."""
GROUP_NBYTES = 16 * 2**20
"""That are waited for together: see lane.py."""
UNWRITTEN = 0.2
"""Of a machine's memory, that may be written without waiting for the disk: Linux' default for vm.dirty_ratio."""
CACHED = 0.5
"""Of a machine's memory, within which what is read may be in the page cache: the rest is left to workers and what they write."""

READ, DECODE, STEPS, ENCODE, WRITE, NETWORK = STAGES.values()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node's tasks run: threads of its workers, cores and memory of the machine, the disk of its root, and what was measured: None
    when nothing was, a text when that is damaged."""

    threads: int
    cores: int
    memory_nbytes: int
    machine: str
    disk: str
    calibration: Calibration | str | None


@dataclass(frozen=True, slots=True)
class Load:
    """What a node does in a pass. read, written, shipped: bytes as they are stored; decoded, encoded: decoded bytes by compressor; copied:
    bytes that pass through the steps, once for each pass over memory; summed: that statistics are taken of. files: chunks that are
    written; chunks: that are worked on."""

    chunks: float = 0.0
    files: float = 0.0
    read_nbytes: float = 0.0
    written_nbytes: float = 0.0
    shipped_nbytes: float = 0.0
    copied_nbytes: float = 0.0
    summed_nbytes: float = 0.0
    decoded: Mapping[str, float] = field(default_factory=dict)
    encoded: Mapping[str, float] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do; a node that works on no chunk may still read for others."""
        return not self.chunks and not self.read_nbytes

    def __add__(self, other: Load) -> Load:
        names = ("chunks", "files", "read_nbytes", "written_nbytes", "shipped_nbytes", "copied_nbytes", "summed_nbytes")
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        decoded, encoded = Counter(self.decoded), Counter(self.encoded)
        decoded.update(other.decoded)
        encoded.update(other.encoded)
        return Load(**sums, decoded=decoded, encoded=encoded)


Loads = Mapping[str, Load]
"""By node."""


@dataclass(frozen=True, slots=True)
class Slowest:
    """Of a pass: the node that ends last, what bounds it, and when it ends."""

    title: str
    node: str
    stage: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """seconds: with everything read from the disk; cached_seconds: from the page cache, None where that cannot have it all. None, both,
    when it is `unknown` why. not_counted: what comes on top. ship_nbytes: by gathered array of the output; statistics_ship_nbytes: of
    the passes before the last one. They are known without calibrations."""

    seconds: float | None = None
    cached_seconds: float | None = None
    stage: str = ""
    node: str = ""
    passes: tuple[Slowest, ...] = ()
    not_counted: tuple[str, ...] = ()
    unknown: str = ""
    ship_nbytes: Mapping[str, int] = field(default_factory=dict)
    statistics_ship_nbytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `gpuflow plan --json` has it."""
        if self.seconds is None:
            return {"seconds": None, "unknown": self.unknown}
        return {
            "seconds": round(self.seconds, 4),
            "cached_seconds": None if self.cached_seconds is None else round(self.cached_seconds, 4),
            "at_least": bool(self.not_counted),
            "not_counted": list(self.not_counted),
            "stage": self.stage,
            "node": self.node,
            "passes": [
                {"title": one.title, "seconds": round(one.seconds, 4), "stage": one.stage, "node": one.node}
                for one in self.passes
            ],
        }


def estimate(
    passes: Sequence[tuple[str, Loads]],
    places: Mapping[str, Place],
    *,
    durable: bool = True,
    network_gb_s: float | None = None,
    not_counted: Sequence[str] = (),
) -> Estimate:
    """Of passes one after the other, each a title and what its nodes have to do; the last one writes. network_gb_s: what one thread gets
    from other nodes, None when it is not known. Without anything to do it takes what a run takes."""
    busy = sorted({node for _, loads in passes for node, load in loads.items() if not load.idle})
    lacking = [node for node in busy if not isinstance(places[node].calibration, Calibration)]
    if lacking:
        why = [f"{node}: its calibration.json is damaged" for node in lacking if places[node].calibration is not None]
        why = why or [f"{len(lacking)} of {len(busy)} nodes are not calibrated"]
        return Estimate(unknown=f"run `gpuflow calibrate` ({'; '.join(why)})")
    missing = {
        f"codec {name}, which is not calibrated"
        for _, loads in passes
        for node, load in loads.items()
        for name in {*load.decoded, *load.encoded} - {""}
        if not load.idle and name not in _calibration(places[node]).codecs
    }
    cold = [_slowest(title, loads, places, durable, network_gb_s, False) for title, loads in passes if loads]
    warm = [_slowest(title, loads, places, durable, network_gb_s, True) for title, loads in passes if loads]
    more = RUN_SECONDS + PASS_SECONDS * sum(loads is not passes[-1][1] for _, loads in passes if loads)
    longest = max(cold, key=lambda one: one.seconds, default=Slowest("", "", OVERHEAD, 0.0))
    return Estimate(
        seconds=more + sum(one.seconds for one in cold),
        cached_seconds=more + sum(one.seconds for one in warm) if _fits_memory(passes, places) else None,
        stage=longest.stage if longest.seconds > more else OVERHEAD,
        node=longest.node,
        passes=tuple(cold),
        not_counted=(*not_counted, *sorted(missing)),
    )


def _calibration(place: Place) -> Calibration:
    assert isinstance(place.calibration, Calibration), place
    return place.calibration


def _fits_memory(passes: Sequence[tuple[str, Loads]], places: Mapping[str, Place]) -> bool:
    return all(
        sum(load.read_nbytes for node, load in loads.items() if places[node].machine == place.machine)
        <= CACHED * place.memory_nbytes
        for _, loads in passes
        for place in places.values()
    )


def _slowest(
    title: str, loads: Loads, places: Mapping[str, Place], durable: bool, network_gb_s: float | None, cached: bool
) -> Slowest:
    found = []
    for node, load in sorted(loads.items()):
        if not load.idle:
            stages, threads = _of_threads(loads, node, places, durable, network_gb_s)
            groups = max(1.0, min(load.written_nbytes / GROUP_NBYTES, load.chunks) / threads)
            disk = _of_disk(loads, places[node].disk, places, durable, cached)
            one, other = sum(stages.values()), sum(disk.values())
            slower = disk if other > one else stages
            stage = max(slower, key=lambda name: slower[name])
            found.append(Slowest(title, node, stage, max(one, other) + min(one, other) / groups))
    return max(found, key=lambda one: one.seconds, default=Slowest(title, "", OVERHEAD, 0.0))


def _of_threads(
    loads: Loads, node: str, places: Mapping[str, Place], durable: bool, network_gb_s: float | None
) -> tuple[dict[str, float], float]:
    """Seconds that its threads spend on each stage when all have work, and how many these are."""
    load, place = loads[node], places[node]
    known = _calibration(place)
    sharing = sum(places[one].threads for one in loads if places[one].machine == place.machine and not loads[one].idle)
    threads = max(1.0, min(place.threads * min(1.0, place.cores / max(sharing, 1)), load.chunks or place.threads))
    commit = known.durable_chunk_seconds if durable else known.chunk_seconds
    decoded = sum(nbytes / known.codecs[name].decode_gb_s for name, nbytes in load.decoded.items() if name in known.codecs)
    encoded = sum(nbytes / known.codecs[name].encode_gb_s for name, nbytes in load.encoded.items() if name in known.codecs)
    seconds = {
        READ: load.read_nbytes / known.cache_read_gb_s / 1e9,
        DECODE: decoded / 1e9,
        STEPS: load.copied_nbytes / known.copy_gb_s / 1e9 + load.summed_nbytes / MOMENTS_GB_S / 1e9,
        ENCODE: encoded / 1e9,
        WRITE: load.written_nbytes / known.copy_gb_s / 1e9 + load.files * commit,
        NETWORK: load.shipped_nbytes / network_gb_s / 1e9 if network_gb_s else 0.0,
        OVERHEAD: load.chunks * BESIDE * known.chunk_seconds + TASK_SECONDS * min(load.chunks, TASKS * threads),
    }
    return {stage: value / threads for stage, value in seconds.items()}, threads


def _of_disk(loads: Loads, disk: str, places: Mapping[str, Place], durable: bool, cached: bool) -> dict[str, float]:
    """Seconds of a disk, for all nodes that share it; each has measured all of it. What is not waited for is written later."""
    there = [(load, places[node]) for node, load in loads.items() if places[node].disk == disk]
    known = [_calibration(place) for load, place in there if not load.idle]
    read = 0.0 if cached else sum(load.read_nbytes for load, _ in there)
    written = sum(load.written_nbytes for load, _ in there)
    if not durable:
        written = max(0.0, written - UNWRITTEN * max(place.memory_nbytes for _, place in there))
    return {
        READ: read / max(one.threads_read_gb_s for one in known) / 1e9,
        WRITE: written / max(one.threads_write_gb_s for one in known) / 1e9,
    }
