"""From a plan and what its nodes hold to how long it will take: what each node will read, compute and write, and where it runs.

Only metadata is read: rows of the manifests, the kept calibrations, and of each node its machine and the disk of its root."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuflow.backends.select import select_backend
from gpuflow.cluster.connection import Connection
from gpuflow.cluster.launch import share_out
from gpuflow.cluster.place import disk_of, machine
from gpuflow.datasets.catalog import ChunkTable, Nodes, merge
from gpuflow.datasets.sizes import stored_sizes
from gpuflow.datasets.survey import Survey
from gpuflow.execution.counted import compressor_of
from gpuflow.execution.estimate import Estimate, Load, Loads, Place, estimate
from gpuflow.execution.memory import rooms
from gpuflow.execution.partials import Partials
from gpuflow.execution.statistics import virtual_array
from gpuflow.pipelines.fingerprint import cut_shorts, fingerprint
from gpuflow.pipelines.flow import Apply, Flow
from gpuflow.pipelines.memory import gather_nbytes, sharing
from gpuflow.pipelines.plan import ArrayPlan, ChunkPlan, Plan, plan_chunks, steps_identity
from gpuflow.pipelines.shipping import ship_nbytes
from gpuflow.reductions.requests import Request, Several
from gpuflow.steps.base import Step
from gpuflow.steps.fuse import compile_steps
from gpuflow.storage.calibration import Calibration
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import NodeStore
from gpuflow.units import format_nbytes

_MOVING = ("crop", "pad", "transpose", "select", "drop", "one_hot")
"""Steps that only move values: no expression, and yet a copy."""


Asked = tuple[Flow, Request]
"""What is asked, and of what."""


class _Share(NamedTuple):
    """Of some chunks, what one node reads. full: those that have bytes."""

    chunks: float
    full: float
    nbytes: float


@dataclass(frozen=True)
class _Shipping:
    """How tasks are cut that gather chunks. room: bytes that one may gather."""

    places: Mapping[str, Place]
    room: int

    def nbytes(self, part: ChunkPlan) -> int:
        slots = {node: place.threads for node, place in self.places.items()}
        return ship_nbytes(part, sharing(part.array, self.room), slots)


def expected(
    nodes: Nodes, found: Survey, plan: Plan, chunks: Sequence[ChunkPlan], device: str = "cpu", workers: int | None = None
) -> Estimate:
    """How long a run of `plan` would take, of which `chunks` are left to do. workers: processes a node, where no cluster runs yet."""
    places, network = _places(nodes, found, workers or plan.spec.run.workers)
    backend = select_backend(plan.spec.run.backend)
    unknown = [f"steps on {device}"] if device != "cpu" and any(part.array.steps for part in chunks) else []
    shipping = _Shipping(places, gather_nbytes(rooms(nodes, workers, plan.spec.run.memory)))
    passes = _reducing(found, plan, [one for part in chunks for one in _asked(part.array)], unknown, shipping)
    whole: dict[str, Load] = {}
    ships: dict[str, int] = {}
    for part in chunks:
        if part.pending:
            unknown += [] if part.array.carried else _not_counted(part.array, part.array.flow, written=True)
            loads = _to_make(part, backend, places, shipping)
            if part.array.gathered:
                ships[part.array.path] = round(sum(load.shipped_nbytes for load in loads.values()))
            for node, load in loads.items():
                whole[node] = whole.get(node, Load()) + load
    passes.append(("map", _copied(whole, plan, places)))
    return replace(_estimate(passes, plan, places, network, unknown), ship_nbytes=ships)


def expected_statistics(nodes: Nodes, found: Survey, plan: Plan, asked: Sequence[Asked], workers: int | None = None) -> Estimate:
    """The same of a pipeline that ends in statistics. asked: what is not kept with the source."""
    places, network = _places(nodes, found, workers or plan.spec.run.workers)
    unknown: list[str] = []
    first = [one for array in plan.arrays if asked for one in _asked(array)]
    shipping = _Shipping(places, gather_nbytes(rooms(nodes, workers, plan.spec.run.memory)))
    passes = _reducing(found, plan, [*first, *asked], unknown, shipping)
    return _estimate([*passes, ("map", {})], plan, places, network, unknown)


def _estimate(
    passes: Sequence[tuple[str, Loads]], plan: Plan, places: Mapping[str, Place], network: float | None, unknown: list[str]
) -> Estimate:
    shipped = sum(load.shipped_nbytes for _, loads in passes for load in loads.values())
    if shipped and network is None:
        unknown.append(f"the network: {format_nbytes(shipped)} to ship, and no transfer was measured yet")
    durable = plan.spec.run.durability == "durable"
    found = estimate(passes, places, durable=durable, network_gb_s=network, not_counted=list(dict.fromkeys(unknown)))
    before = sum(load.shipped_nbytes for _, loads in passes[:-1] for load in loads.values())
    return replace(found, statistics_ship_nbytes=round(before))


# -- where ------------------------------------------------------------------------------------------------------------------------------


def _places(nodes: Nodes, found: Survey, workers: int | None) -> tuple[dict[str, Place], float | None]:
    """Every node, and GB/s of transfers between them, as far as any were measured."""
    here = nodes.each_node(_here)
    threads, network = dict.fromkeys(found.nodes, 0), None
    if isinstance(nodes, Connection):
        info = nodes.seen()
        for worker in info["workers"].values():
            threads[worker["node"]] = threads.get(worker["node"], 0) + worker["threads"]
        _, nbytes, seconds = info["transferred"]
        network = nbytes / seconds / 1e9 if nbytes and seconds else None
    else:
        processes, each = share_out(max(1, len(found.nodes)), workers)
        threads = dict.fromkeys(found.nodes, processes * each)
    places = {
        node: Place(each, *here.get(node, (each, 0, node, node)), calibration=calibration)  # one that has left since stands alone
        for node, calibration in found.calibrations.items()
        for each in [max(1, threads[node])]
    }
    return places, network


def _here(store: NodeStore) -> tuple[int, int, str, str]:
    """On a node: cores, bytes of memory, the machine, and the disk of the root."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return len(os.sched_getaffinity(0)), memory, machine(), disk_of(store.root)


# -- what -------------------------------------------------------------------------------------------------------------------------------


def _asked(array: ArrayPlan) -> list[Asked]:
    """Each statistic that a pass has to compute before the array can be made."""
    found = []
    for number, node in enumerate(array.flow.nodes if array.first_unresolved() is not None else ()):
        if isinstance(node, Apply) and isinstance(node.operation, Step):
            request = node.operation.needs(array.specs[node.of[0]])
            if request is not None:
                found.append((array.flow.before(number), request))
    return found


def _reducing(
    found: Survey, plan: Plan, asked: Sequence[Asked], unknown: list[str], shipping: _Shipping
) -> list[tuple[str, Loads]]:
    """A pass for each, once. unknown: takes what cannot be counted."""
    passes: dict[str, tuple[str, Loads]] = {}
    for flow, request in asked:
        array = virtual_array(plan.source, flow)
        kinds = [one.kind for one in request.requests] if isinstance(request, Several) else [request.kind]
        key = fingerprint([flow.to_data(), request.kind, request.key()])
        passes[key] = f"{', '.join(kinds)} of {flow.name}", _to_reduce(found, plan, array, request, shipping)
        unknown += _not_counted(array, flow) + [f"taking {kind}" for kind in kinds if kind != "moments"]
    return list(passes.values())


def _to_reduce(found: Survey, plan: Plan, array: ArrayPlan, request: Request, shipping: _Shipping) -> dict[str, Load]:
    """Reading and decoding all that is not yet reduced, the steps before, and the reduction."""
    flow = array.flow
    tables = {path: found.table(plan.source.name, path, array.sources[path].grid.size) for path in flow.paths}
    if not flow.is_chunkwise:
        part = plan_chunks(array, array.made_by(None), tables, merge({}, array.target.grid.size))
        loads = _to_gather(part, shipping)
        nbytes = array.target.chunk_nbytes
        return {node: replace(load, files=0.0, summed_nbytes=load.chunks * nbytes) for node, load in loads.items()}
    table, grid = tables[flow.paths[0]], array.source.grid
    left = table.present.copy()
    if left.all():
        tokens = cut_shorts(table.rows["digest"], grid)
        kept = Partials.found(plan.source.statistics, flow, grid, request, tokens, steps_identity(flow.steps or ()))
        left[list(kept.covered())] = False
    nbytes, loads = array.source.chunk_nbytes, {}
    for node, share in _shares(table, np.flatnonzero(left)).items():
        loads[node] = _reading(array.source, share) + Load(
            chunks=share.chunks,
            copied_nbytes=share.chunks * nbytes * len(array.steps),
            summed_nbytes=share.chunks * nbytes,
        )
    return loads


def _to_make(part: ChunkPlan, backend: Any, places: Mapping[str, Place], shipping: _Shipping) -> dict[str, Load]:
    """The pending chunks of an array of the output."""
    array = part.array
    if array.gathered:
        return {node: load + _writing(part, load.files, places.get(node)) for node, load in _to_gather(part, shipping).items()}
    loads = {}
    through = (array.source.chunk_nbytes + array.target.chunk_nbytes) / 2 * _passes(array, backend)
    for node, share in _shares(part.table, np.array(part.pending, np.int64)).items():
        if array.carried:  # by a link
            loads[node] = Load(chunks=share.chunks, files=share.chunks, read_nbytes=share.nbytes)
            continue
        load = Load(chunks=share.chunks, files=share.chunks, copied_nbytes=share.chunks * through)
        loads[node] = _reading(array.source, share) + load + _writing(part, share.chunks, places.get(node))
    return loads


def _to_gather(part: ChunkPlan, shipping: _Shipping) -> dict[str, Load]:
    """What the pending chunks are computed from is read and decoded where it lies; they are put together and computed at home."""
    array, gathers, loads = part.array, part.gathers, dict[str, Load]()
    assert gathers is not None, array.path
    for path, needed in gathers.needed.items():
        for node, share in _shares(part.tables[path], np.flatnonzero(needed)).items():
            loads[node] = loads.get(node, Load()) + _reading(array.sources[path], share)
    shipped = shipping.nbytes(part) / max(1, part.ship_nbytes)
    for node, places in gathers.by_home().items():
        count, nbytes, local = len(places), *(int(gathers.rows[name][places].sum()) for name in ("nbytes", "local_nbytes"))
        through = (nbytes + count * array.target.chunk_nbytes) / 2 * len(array.flow.applied)
        load = Load(chunks=count, files=count, shipped_nbytes=(nbytes - local) * shipped, copied_nbytes=nbytes + through)
        loads[node] = loads.get(node, Load()) + load
    return loads


def _reading(metadata: ArrayMetadata, share: _Share) -> Load:
    name = compressor_of(metadata)
    decoded = {name: share.full * metadata.chunk_nbytes} if name else {}
    return Load(read_nbytes=share.nbytes, decoded=decoded)


def _writing(part: ChunkPlan, count: float, place: Place | None) -> Load:
    """Encoding, and the bytes that come of it: as many as of the source where that has the same compressor, else as calibrated."""
    array, nbytes = part.array, count * part.array.target.chunk_nbytes
    name = compressor_of(array.target)
    if name is None:
        return Load(written_nbytes=nbytes)
    sizes = stored_sizes(part.table)
    ratio, known = 1.0, place.calibration if place is not None else None
    if compressor_of(array.source) == name and sizes.total_nbytes:
        ratio = sizes.count * array.source.chunk_nbytes / sizes.total_nbytes
    elif isinstance(known, Calibration) and name in known.codecs:
        ratio = known.codecs[name].ratio
    return Load(written_nbytes=nbytes / max(ratio, 1.0), encoded={name: nbytes})


def _copied(loads: dict[str, Load], plan: Plan, places: Mapping[str, Place]) -> dict[str, Load]:
    """With the further replicas that the output is to have, which come to the nodes evenly."""
    output = plan.spec.output
    wanted = int(plan.source.replicas.get("min", 1)) if output.in_place else output.replicas.min
    more = min(wanted, len(places)) - 1
    if more <= 0 or not loads:
        return loads
    nbytes, files = (sum(getattr(load, name) for load in loads.values()) for name in ("written_nbytes", "files"))
    each = more / len(places)
    copies = Load(chunks=files * each, files=files * each, written_nbytes=nbytes * each, shipped_nbytes=nbytes * each)
    return {node: loads.get(node, Load()) + copies for node in places}


def _shares(table: ChunkTable, chunks: NDArray[np.int64]) -> dict[str, _Share]:
    """What each node reads of `chunks`: holders of the same ones have equal parts of them."""
    numbers, nbytes = table.holders[chunks], table.rows["nbytes"][chunks]
    weights = (None, nbytes > 0, nbytes)
    columns = np.stack([np.bincount(numbers, one, len(table.sets)) for one in weights], axis=1).astype(np.float64)
    found: dict[str, NDArray[np.float64]] = {}
    for number in np.flatnonzero(columns[:, 0]).tolist():
        holders = table.sets[number]
        for node in holders:
            found[node] = found.get(node, np.zeros(3)) + columns[number] / len(holders)
    return {node: _Share(*values.tolist()) for node, values in found.items()}


def _passes(array: ArrayPlan, backend: Any) -> int:
    """How often the steps go through memory."""
    steps = array.steps
    if not steps or array.first_unresolved() is not None:
        return min(len(steps), 1)
    return 1 if compile_steps(steps, array.specs[0], backend).fused else len(steps)


def _not_counted(array: ArrayPlan, flow: Flow, *, written: bool = False) -> list[str]:
    """Steps and codecs of which nothing is known."""
    found = Counter[str]()
    for node in flow.nodes:
        if isinstance(node, Apply) and isinstance(node.operation, Step) and node.operation.kind not in _MOVING:
            spec = array.specs[node.of[0]]
            if node.operation.needs(spec) is None and node.operation.express(spec) is None:
                found[f"what {node.operation.kind} computes"] += 1
    for metadata in [*array.sources.values(), *([array.target] if written else [])]:
        codec = ArrayCodec(metadata)
        if not codec.is_fast or compressor_of(metadata) == "":
            found[f"codec chain {codec.chain}"] += 1
    if written and (name := compressor_of(array.target)) and not compressor_of(array.target, written=True):
        found[f"what {name} takes longer than with the settings that are calibrated"] += 1
    return list(found)
