"""A plan as a table: what will be done to which array, how much is left to do, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gpuflow.backends.select import Backend, select_backend
from gpuflow.execution.bound import OVERHEAD
from gpuflow.execution.estimate import Estimate
from gpuflow.pipelines.memory import Prediction
from gpuflow.pipelines.plan import ArrayPlan, ChunkPlan, Plan
from gpuflow.steps.fuse import compile_steps
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.frames import batching
from gpuflow.storage.framing import framing
from gpuflow.units import format_nbytes, format_seconds


def plan_details(
    plan: Plan, chunks: Sequence[ChunkPlan], device: str, memory: Prediction | None = None, time: Estimate | None = None
) -> dict[str, Any]:
    """A plan as plain data. read_nbytes: encoded bytes of the pending chunks; by_node: their number by holder.

    memory: peak bytes of the worker that has the least to spare, and what it may use. time: how long a run would take.
    ship_nbytes: of the array's own pass; statistics_ship_nbytes: of those before, together."""
    arrays = {}
    for part in chunks:
        array = part.array
        arrays[array.path] = {
            "steps": [] if array.carried else array.flow.operations(),
            "carried": array.carried,
            "waits_for_statistics": array.first_unresolved() is not None,
            "compute": _compute(array, select_backend(plan.spec.run.backend)),
            "slow_codecs": _slow_codecs(array),
            "decoded_by": _decoded_by(array, device),
            "encoded_by": _encoded_by(array, device),
            "gathered": array.gathered,
            "stored": [list(array.source.grid.chunks), list(array.target.grid.chunks)],
            "dtype": [str(array.source.document["data_type"]), str(array.target.document["data_type"])],
            "chunks": {
                "total": array.target.grid.size,
                "pending": len(part.pending),
                "skipped": part.skipped,
                "lost": len(part.unmade),
            },
            "chunk_nbytes": array.source.chunk_nbytes,
            "read_nbytes": part.pending_nbytes,
            "by_node": {node: count for node, count in part.by_node().items() if count},
            "ship_nbytes": (time.ship_nbytes if time is not None else {}).get(array.path, part.ship_nbytes),
        }
    target = f"{plan.source.name} in place" if plan.spec.output.in_place else plan.target
    details: dict[str, Any] = {
        "source": plan.source.name,
        "output": target,
        "device": device,
        "fingerprint": plan.fingerprint(),
        "arrays": arrays,
    }
    if plan.left_out:
        details["left_out"] = list(plan.left_out)
    if plan.refits:
        details["refits"] = list(plan.refits)
    if plan.compressor is not None:
        details["compressor"] = {"name": plan.compressor.name, "why": plan.compressor.why}
    if memory is not None:
        worker = memory.worker
        kept = {"cache_nbytes": memory.cache_nbytes} if memory.cache_nbytes else {}
        there = {"device_nbytes": memory.device_nbytes} if memory.device_nbytes else {}
        own = {"need_nbytes": memory.need_nbytes, "have_nbytes": worker.nbytes, "threads": worker.threads}
        details["memory"] = {**own, **kept, **there}
    if time is not None:
        details["time"] = time.to_dict()
        if time.statistics_ship_nbytes:
            details["statistics_ship_nbytes"] = time.statistics_ship_nbytes
    return details


def _slow_codecs(array: ArrayPlan) -> str:
    """The codec chain that is read or written through zarr-python; nothing to say where there is none."""
    codecs = [] if array.carried else [ArrayCodec(array.source), ArrayCodec(array.target)]
    return next((codec.chain for codec in codecs if not codec.is_fast), "")


def _decoded_by(array: ArrayPlan, device: str) -> str:
    """Where the chunks of an array that is computed on a device are decoded; nothing to say of others."""
    if device.startswith("cpu") or array.carried or not array.steps:
        return ""
    is_batched = not array.gathered and batching(ArrayCodec(array.source)) is not None
    return "the device, a batch of frames for each shard" if is_batched else "the CPU"


def _encoded_by(array: ArrayPlan, device: str) -> str:
    """The same of where they are encoded."""
    if device.startswith("cpu") or array.carried or not array.steps:
        return ""
    can = not array.gathered and framing(ArrayCodec(array.target)) is not None
    return "the device where it was measured to be faster, else the CPU" if can else "the CPU"


def _compute(array: ArrayPlan, backend: Backend) -> str:
    """How the steps will run, or why not in one pass; nothing to say before the parameters are known."""
    if not array.steps or array.first_unresolved() is not None or not array.flow.is_chunkwise:
        return ""
    return compile_steps(array.steps, array.specs[0], backend).describe()


def plan_view(details: Mapping[str, Any]) -> RenderableType:
    """`plan_details` for `Console.print`."""
    head = Text(f"{details['source']} -> {details['output']}  on {details['device']}", style="bold")
    table = Table(box=None, header_style="bold")
    for column in ("array", "what", "dtype", "chunks to do", "skipped", "to read", "on nodes"):
        table.add_column(column)
    notes = []
    for path, array in details["arrays"].items():
        names = [next(iter(step)) for step in array["steps"]] or ["stored anew"]
        before, after = array["dtype"]
        table.add_row(
            escape(path),
            "carried over unchanged" if array["carried"] else ", ".join(names),
            before if before == after else f"{before} -> {after}",
            f"{array['chunks']['pending']} of {array['chunks']['total']}",
            str(array["chunks"]["skipped"]),
            format_nbytes(array["read_nbytes"]),
            escape(", ".join(f"{node}: {count}" for node, count in array["by_node"].items())),
        )
        if array["compute"]:
            notes.append(Text(f"{path}: {array['compute']}"))
        if array["gathered"]:
            before, after = (" x ".join(map(str, shape)) for shape in array["stored"])
            ship = format_nbytes(array["ship_nbytes"])
            notes.append(Text(f"{path}: stored objects of {before} become {after}; about {ship} will be shipped"))
        if array["slow_codecs"]:
            notes.append(Text(f"{path}: codec chain {array['slow_codecs']} goes through zarr-python, slow", style="yellow"))
        if array["decoded_by"]:
            by = f"decoded by {array['decoded_by']}, encoded by {array['encoded_by']}"
            notes.append(Text(f"{path}: on a device's worker {by}"))
        if array["waits_for_statistics"]:
            notes.append(Text(f"{path}: statistics over all its chunks are computed first"))
        if array["chunks"]["lost"]:
            notes.append(Text(f"{path}: {array['chunks']['lost']} chunks are on no node that is here", style="red"))
    return Group(head, table, *notes, *_whole(details))


def _whole(details: Mapping[str, Any]) -> list[Text]:
    """What is said of the plan as a whole."""
    lines = []
    if left_out := details.get("left_out"):
        names = ", ".join(left_out)
        lines.append(Text(f"not carried over, as a dimension has another length now: {names}", style="yellow"))
    lines += [Text(said) for said in details.get("refits", ())]
    if nbytes := details.get("statistics_ship_nbytes"):
        lines.append(Text(f"statistics: about {format_nbytes(nbytes)} will be shipped before, to compute them"))
    if choice := details.get("compressor"):
        lines.append(Text(f"compressor: {choice['name']} - {choice['why']}"))
    if memory := details.get("memory"):
        need, have = format_nbytes(memory["need_nbytes"]), format_nbytes(memory["have_nbytes"])
        kept = f", {format_nbytes(memory['cache_nbytes'])} of that for decoded chunks" if "cache_nbytes" in memory else ""
        there = f"; {format_nbytes(memory['device_nbytes'])} of its device" if "device_nbytes" in memory else ""
        lines.append(Text(f"memory: {need} per worker of {have}{kept}{there}"))
    if time := details.get("time"):
        lines.append(Text(f"time: {time_text(time)}"))
    return lines


_NEARLY = 1.1
"""Where the page cache makes less of a difference, it is not worth a word."""


def time_text(time: Mapping[str, Any]) -> str:
    """An estimate's dict in one line, as in `about 2.1 s, bound by disk write on n1`."""
    if time["seconds"] is None:
        return f"unknown: {time['unknown']}"
    where = f" on {time['node']}" if time["stage"] != OVERHEAD else ""
    text = f"{'at least' if time['at_least'] else 'about'} {format_seconds(time['seconds'])}, bound by {time['stage']}{where}"
    before = [f"{one['title']} first: {format_seconds(one['seconds'])}" for one in time["passes"][:-1]]
    cached = time["cached_seconds"]
    if cached is not None and time["seconds"] > _NEARLY * cached:
        before.append(f"{format_seconds(cached)} where what is read is in the page cache")
    if time["not_counted"]:
        before.append(f"not counted: {'; '.join(time['not_counted'])}")
    return f"{text} ({'; '.join(before)})" if before else text
