"""The parts of the page `/gpuflow` that are text: HTML of the cluster in a line, of the last runs, of watched pipelines, of what colours
stand for.

Pure. Names come from users: all of them are escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import islice

from gpuflow.cluster.figures import RunFigures, WatchFigures
from gpuflow.cluster.foreign import RUN
from gpuflow.cluster.observed import Observed
from gpuflow.palette import IN_MEMORY
from gpuflow.units import counted, format_seconds

_RUNS, _WATCHES = 6, 20
_BAR, _WRONG = "#228833", "#e5484d"


def headline(observed: Observed, routing: str, broken: str, version: str) -> str:
    """The cluster in a line, and what is wrong with it in another."""
    nodes, chunks = observed.nodes, sum(observed.arrays.values())
    workers, threads = sum(node.workers for node in nodes), sum(node.threads for node in nodes)
    devices = [device for node in nodes for device in node.devices]
    there = [counted(len(devices), "CUDA device")] if devices else []
    parts = [
        ", ".join([counted(len(nodes), "node"), counted(workers, "worker"), counted(threads, "thread"), *there]),
        f"{counted(chunks, 'chunk')} of {counted(len(observed.arrays), 'array')}",
        f"{escape(routing)} routing",
        f"gpuflow {escape(version)}",
    ]
    text = f'<p style="margin:4px 0"><b>{parts[0]}</b> &middot; {" &middot; ".join(parts[1:])}</p>'
    if observed.away:
        text += _bad(f"{observed.away:,} chunks are on no live node")
    return text + (_bad(f"the scheduler plugin is not working: {broken}") if broken else "")


def _bad(text: str) -> str:
    return f'<p style="margin:4px 0;color:{_WRONG};font-weight:bold">{escape(text)}</p>'


def runs_table(runs: Iterable[RunFigures], now: float) -> str:
    """The last runs, the newest first: how far they are, and how much of it was done where the chunks lie."""
    rows = [_row(run, now) for run in islice(runs, _RUNS)]
    if not rows:
        return '<p style="margin:4px 0;opacity:.7">no run since the scheduler was started</p>'
    return _table(("run", "array", "chunks", "", "done where they lie", "time", ""), rows)


def watches_table(watches: Iterable[WatchFigures], now: float) -> str:
    """Watched pipelines, those that told last first; "" without any."""
    rows = [_watch(watch, now) for watch in islice(watches, _WATCHES)]
    return _table(("writes", "watches", "runs", "chunks", "due", "given up", ""), rows) if rows else ""


def _watch(watch: WatchFigures, now: float) -> str:
    state = escape(watch.problem) or "watching"
    if not watch.is_watched(now):
        state = f"no watcher for {format_seconds(now - watch.told)}"
    given_up = f'<b style="color:{_WRONG}">{watch.given_up:,}</b>' if watch.given_up else "0"
    return _cells(
        [escape(watch.name), escape(watch.source), f"{watch.runs:,}", f"{watch.chunks:,}", f"{watch.left:,}", given_up, state]
    )


def _table(names: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th style="text-align:left;padding:2px 18px 2px 0;opacity:.7">{name}</th>' for name in names)
    return f'<table style="border-collapse:collapse;margin:4px 0"><tr>{head}</tr>{"".join(rows)}</table>'


def _cells(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f'<td style="padding:2px 18px 2px 0;white-space:nowrap">{cell}</td>' for cell in cells) + "</tr>"


def _row(run: RunFigures, now: float) -> str:
    done, total = min(run.done, run.chunks), run.chunks
    share = done / total if total else 0.0
    bar = (
        '<div style="width:160px;height:10px;border-radius:3px;background:rgba(128,128,128,.3);margin-top:4px">'
        f'<div style="width:{share:.1%};height:10px;border-radius:3px;background:{_BAR}"></div></div>'
    )
    cells = [
        "your own graph" if run.run.startswith(RUN) else escape(run.run),
        escape("/".join(run.array)),
        f"{done:,} of {total:,}",
        bar,
        f"{run.local / run.done:.1%}" if run.done else "",
        format_seconds(run.seconds(now)),
        "running" if run.ended is None else "",
    ]
    return _cells(cells)


def legend(colours: Mapping[str, str], dot: str = "") -> str:
    """What each colour stands for, and a dot, if there is any."""
    keys = dict(colours)
    if dot:
        keys[dot] = f"linear-gradient({IN_MEMORY},{IN_MEMORY}) center/4px 4px no-repeat #999"
    drawn = (
        f'<span style="margin-right:14px;white-space:nowrap"><span style="display:inline-block;width:10px;height:10px;border-radius:2px;'
        f'margin-right:5px;background:{background}"></span>{escape(name)}</span>'
        for name, background in keys.items()
    )
    return f'<p style="margin:4px 0">{"".join(drawn)}</p>'
