"""What the page `/gpuflow` shows: runs, watched pipelines, where an array's chunks lie and which are in memory, each node's share and
queue, bytes read and shipped.

Made for each browser that opens it, and brought up to date only while one looks. What is sent to it is bounded: some chunks of one array,
the busiest nodes, the last runs, five minutes. The only module that imports Bokeh."""

from __future__ import annotations

import time
from math import isqrt
from typing import TYPE_CHECKING, Any

from bokeh.layouts import column, row
from bokeh.models import AdaptiveTicker, BasicTicker, ColumnDataSource, CustomJS, Div, HoverTool, NumeralTickFormatter, Select
from bokeh.plotting import figure
from distributed.dashboard.components import DashboardComponent, add_periodic_callback
from distributed.dashboard.components.scheduler import env

from gpuflow import __version__
from gpuflow.cluster.dashboard_text import headline, legend, runs_table, watches_table
from gpuflow.cluster.figures import SECONDS
from gpuflow.cluster.inventory import ArrayName
from gpuflow.cluster.observed import NodeFigures, Observed
from gpuflow.cluster.residence import by_chunk
from gpuflow.palette import IN_MEMORY, MISSING, PALETTE, colours_of

if TYPE_CHECKING:
    from gpuflow.cluster.scheduler_plugin import GpuflowPlugin

UPDATE_MILLISECONDS = 500
MOST_CHUNKS, _MOST_COLUMNS = 2048, 64
"""Of an array that are drawn, evenly one in so many, and how many stand in a row."""
MOST_NODES, _MOST_ARRAYS = 24, 50
_NOBODY = "on no live node"
_OF_CHUNKS = ("x", "y", "colour", "chunk", "node", "memory", "dot")
"""Columns of the map. memory: nodes, or "none"; dot: whether one is drawn, 1 or 0."""
_ALONE, _COPIED, _RUNNING, _PARKED = PALETTE[0], PALETTE[4], PALETTE[2], PALETTE[3]
_AUTOMATIC = "the one that is worked on"

_DARK_INPUT = """@media (prefers-color-scheme: dark) {select.bk-input {
    background-color: #161b22; color: #e6edf3; border-color: #30363d;
    background-image: url('data:image/svg+xml;utf8,<svg version="1.1" viewBox="0 0 25 20" xmlns="http://www.w3.org/2000/svg">\
<path d="M 0,0 25,0 12.5,20 Z" fill="white"/></svg>') !important;
}}"""
_DRESS = """
const dark = window.matchMedia('(prefers-color-scheme: dark)');
function dress() {
    const ink = dark.matches ? '#e6edf3' : '#1b1f24', line = dark.matches ? '#30363d' : '#d0d7de';
    for (const plot of plots) {
        plot.outline_line_color = line;
        plot.title.text_color = ink;
        for (const axis of [...plot.below, ...plot.left]) {
            axis.axis_label_text_color = axis.major_label_text_color = ink;
            axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = line;
        }
        for (const grid of plot.center) if ('grid_line_color' in grid) grid.grid_line_color = line;
        for (const part of [...plot.center, ...plot.above]) if ('label_text_color' in part) {
            part.label_text_color = ink;
            part.background_fill_alpha = part.border_line_alpha = 0;
        }
    }
}
const sheet = document.createElement('style');
sheet.textContent = `@media (prefers-color-scheme: dark) {
    html, body { background: #0d1117 !important; color: #e6edf3; color-scheme: dark; }
    .navbar ul, .navbar .dropdown-content { background-color: #161b22 !important; }
    .navbar li a { color: #e6edf3 !important; }
}`;
document.head.appendChild(sheet);
dress();
dark.addEventListener('change', dress);
"""
"""What Bokeh draws on a canvas is not reached by style sheets: it is given its colours in the browser."""


def page(plugin: GpuflowPlugin, scheduler: Any, extra: dict[str, Any], doc: Any) -> None:
    """Fill a new document, and keep it up to date."""
    shown = Page(plugin)
    shown.update()
    doc.title = "gpuflow"
    doc.add_root(shown.root)
    doc.template = env.get_template("simple.html")
    doc.template_variables.update(extra)
    doc.js_on_event("document_ready", CustomJS(args={"plots": shown.plots}, code=_DRESS))
    add_periodic_callback(doc, shown, UPDATE_MILLISECONDS)


class Page(DashboardComponent):
    """The parts of one document, each with a source of its own."""

    def __init__(self, plugin: GpuflowPlugin) -> None:
        super().__init__()
        self.plugin = plugin
        self.head, self.runs, self.watches, self.legend = (
            Div(text="", name=name, sizing_mode="stretch_width") for name in ("head", "runs", "watches", "legend")
        )
        self.select = Select(title="chunks of", value=_AUTOMATIC, options=[_AUTOMATIC], width=320, stylesheets=[_DARK_INPUT])
        self.select.on_change("value", lambda attribute, old, new: self.update())
        self.chunks = ColumnDataSource({name: [] for name in _OF_CHUNKS}, name="chunks")
        self.nodes = ColumnDataSource({name: [] for name in ("node", "alone", "copied", "running", "parked")}, name="nodes")
        self.bytes = ColumnDataSource({name: [] for name in ("second", "local", "shipped")}, name="bytes")
        self.map, self.held, self.queue, self.rate = self._map(), self._held(), self._queue(), self._rate()
        self.plots = [self.map, self.held, self.queue, self.rate]
        self.root = column(
            self.head,
            self.runs,
            self.watches,
            row(column(self.select, self.map, self.legend, sizing_mode="stretch_width"), self.held, sizing_mode="stretch_width"),
            row(self.queue, self.rate, sizing_mode="stretch_width"),
            sizing_mode="stretch_width",
            name="gpuflow",
        )
        self._drawn: Any = None

    # -- what is drawn ----------------------------------------------------------------------------------------------------------

    def _map(self) -> Any:
        plot = _plot("where its chunks lie", height=320, x_range=(-0.5, 7.5))
        cells = plot.rect("x", "y", 0.86, 0.86, fill_color="colour", line_color=None, source=self.chunks)
        plot.rect("x", "y", 0.3, 0.3, fill_color=IN_MEMORY, fill_alpha="dot", line_color=None, source=self.chunks)
        tips = [("chunk", "@chunk"), ("on disk of", "@node"), ("in memory of", "@memory")]
        plot.add_tools(HoverTool(tooltips=tips, renderers=[cells]))
        plot.axis.visible = plot.grid.visible = False
        plot.y_range.flipped = True
        return plot

    def _held(self) -> Any:
        parts = {"only here": "alone", "on others too": "copied"}
        return _bars("chunks by node, on its disk", self.nodes, parts, (_ALONE, _COPIED))

    def _queue(self) -> Any:
        return _bars("tasks by node", self.nodes, {"running": "running", "waiting for it": "parked"}, (_RUNNING, _PARKED))

    def _rate(self) -> Any:
        plot = _plot("bytes a second", height=300, x_range=(-SECONDS, 0))
        for name, colour, label in (("local", _RUNNING, "read where they lie"), ("shipped", PALETTE[1], "shipped between nodes")):
            plot.step("second", name, color=colour, line_width=2, mode="after", legend_label=label, source=self.bytes)
        plot.y_range.start = 0
        plot.yaxis.formatter = NumeralTickFormatter(format="0.[0] ib")
        plot.yaxis.ticker = AdaptiveTicker(base=1024, mantissas=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512], num_minor_ticks=0)
        plot.xaxis.axis_label = "seconds ago"
        plot.xaxis.formatter = NumeralTickFormatter(format="0")
        plot.legend.location = "top_left"
        return plot

    # -- what it is brought up to date with -----------------------------------------------------------------------------------------

    def update(self, messages: Any = None) -> None:
        """As the plugin sees the cluster now; only what has changed is sent."""
        plugin, now = self.plugin, time.monotonic()
        observed = Observed.of(plugin)
        _put(self.head, "text", headline(observed, plugin.routing, plugin.broken, __version__))
        _put(self.runs, "text", runs_table(reversed(plugin.figures.runs.values()), now))
        _put(self.watches, "text", watches_table(reversed(plugin.figures.watches.values()), now))
        self._update_nodes(observed.nodes)
        seconds, local, shipped = plugin.figures.history(now)
        _fill(self.bytes, {"second": seconds, "local": local, "shipped": shipped})
        self._update_map(observed)

    def _update_nodes(self, nodes: tuple[NodeFigures, ...]) -> None:
        busiest = sorted(nodes, key=lambda node: (-node.parked - node.running, -node.held.alone - node.held.copied, node.name))
        shown = sorted(busiest[:MOST_NODES], key=lambda node: node.name, reverse=True)
        names = [node.name for node in shown]
        rows = [_figures(node) for node in shown]
        if rest := busiest[MOST_NODES:]:
            names.insert(0, f"{len(rest)} others")
            rows.insert(0, _sum([_figures(node) for node in rest]))
        alone, copied, running, parked = map(list, zip(*rows, strict=True)) if rows else ([], [], [], [])
        for plot in (self.held, self.queue):
            _put(plot.y_range, "factors", names)
        _fill(self.nodes, {"node": names, "alone": alone, "copied": copied, "running": running, "parked": parked})

    def _update_map(self, observed: Observed) -> None:
        largest = sorted(observed.arrays, key=lambda array: (-observed.arrays[array], array))[:_MOST_ARRAYS]
        _put(self.select, "options", [_AUTOMATIC, *map("/".join, largest)])
        array = self._chosen(largest)
        state = array, self.plugin.inventory.changes, frozenset(self.plugin.members.workers_of), self.plugin.residence.changes
        if array is None or state == self._drawn:
            return
        self._drawn = state
        colours = colours_of([node.name for node in observed.nodes]) | {_NOBODY: MISSING}
        live, sample = state[2], self.plugin.inventory.sampled(array, MOST_CHUNKS)
        warm = self._in_memory(array, frozenset(chunk for chunk, _ in sample))
        holders = [sorted(nodes & live) or [_NOBODY] for _, nodes in sample]
        soonest = [
            min(warm.get(chunk, set()).intersection(nodes) or nodes) for (chunk, _), nodes in zip(sample, holders, strict=True)
        ]
        columns = max(8, min(_MOST_COLUMNS, isqrt(2 * len(sample))))
        places = [divmod(place, columns) for place in range(len(sample))]
        source: dict[str, list[Any]] = {
            "x": [x for _, x in places],
            "y": [y for y, _ in places],
            "colour": [colours[node] for node in soonest],
            "chunk": [chunk for chunk, _ in sample],
            "node": [", ".join(nodes) for nodes in holders],
            "memory": [", ".join(sorted(warm.get(chunk, ()))) or "none" for chunk, _ in sample],
            "dot": [int(chunk in warm) for chunk, _ in sample],
        }
        _put(self.map.x_range, "end", columns - 0.5)
        _fill(self.chunks, source)
        every = sample[1][0] - sample[0][0] if len(sample) > 1 else 1
        which = "each chunk" if every == 1 else f"one in {every} chunks"
        _put(self.map.title, "text", f"{'/'.join(array)}: {which} of {observed.arrays[array]:,}")
        dot = f"decoded in a worker's memory, too: {len(warm):,} of these {len(sample):,}" if warm else ""
        _put(self.legend, "text", legend({name: colours[name] for name in sorted(set(soonest))}, dot))

    def _in_memory(self, array: ArrayName, chunks: frozenset[int]) -> dict[int, set[str]]:
        """Those of `chunks` that are decoded in the memory of live nodes' workers, with these nodes."""
        nodes, found = self.plugin.members.nodes, self.plugin.residence.of(array, chunks)
        return by_chunk((nodes[worker].node, numbers) for worker, numbers in found.items() if worker in nodes)

    def _chosen(self, largest: list[ArrayName]) -> ArrayName | None:
        """The array that was picked; else that of the run which has tasks, or had them last; else the largest."""
        by_name = {"/".join(array): array for array in largest}
        runs = sorted(self.plugin.figures.runs.values(), key=lambda run: (run.ended is None, run.ended or run.began))
        worked = runs[-1].array if runs else None
        if self.select.value in by_name:
            return by_name[self.select.value]
        return worked if worked in by_name.values() else next(iter(largest), None)


_Figures = tuple[int, int, int, int]


def _figures(node: NodeFigures) -> _Figures:
    return node.held.alone, node.held.copied, node.running, node.parked


def _sum(rows: list[_Figures]) -> _Figures:
    alone, copied, running, parked = map(sum, zip(*rows, strict=True))
    return alone, copied, running, parked


def _plot(title: str, **options: Any) -> Any:
    plot = figure(title=title, tools="", toolbar_location=None, sizing_mode="stretch_width", min_width=320, **options)
    plot.background_fill_alpha = plot.border_fill_alpha = 0
    return plot


def _bars(title: str, source: Any, parts: dict[str, str], colours: tuple[str, ...]) -> Any:
    """A bar a node, of `parts` one behind the other."""
    plot = _plot(title, height=300, y_range=[])
    columns = list(parts.values())
    plot.hbar_stack(columns, y="node", height=0.7, color=list(colours), legend_label=list(parts), source=source, line_color=None)
    plot.add_tools(HoverTool(tooltips=[("node", "@node"), *((name, f"@{column}{{0,0}}") for name, column in parts.items())]))
    plot.ygrid.visible = False
    plot.x_range.start = 0
    plot.xaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
    plot.add_layout(plot.legend[0], "above")
    plot.legend.location, plot.legend.padding, plot.legend.margin = "left", 0, 4
    plot.legend.background_fill_alpha = plot.legend.border_line_alpha = 0
    plot.legend.orientation = "horizontal"
    return plot


def _put(model: Any, name: str, value: Any) -> None:
    if getattr(model, name) != value:
        setattr(model, name, value)


def _fill(source: Any, columns: dict[str, list[Any]]) -> None:
    if dict(source.data) != columns:
        source.data = columns
