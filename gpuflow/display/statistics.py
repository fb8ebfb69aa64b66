"""Statistics as tables: a row for each index of the dimensions that have their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

_ROWS = 32
_BARS = " ▁▂▃▄▅▆▇█"
_WIDEST = 64  # bars of a histogram


def statistics_view(results: Mapping[str, Any]) -> RenderableType:
    """A receipt's `results` for `Console.print`."""
    return Group(*(part for path, found in results.items() for part in _array(path, found)))


def _array(path: str, found: Mapping[str, Any]) -> list[RenderableType]:
    shares = list(found.get("quantiles", {}))
    plain = [name for name in ("count", "weight", "mean", "std", "min", "max") if name in found]
    names = [*plain, *(f"q {share}" for share in shares)]
    table = Table(title=escape(path), title_justify="left", box=None, header_style="bold")
    for name in (*map(str, found["per"]), *names):
        table.add_column(escape(name), justify="right")
    shape = tuple(found["shape"])
    columns = [np.array(found[name], object).reshape(-1) for name in plain]
    columns += [np.array(found["quantiles"][share], object).reshape(-1) for share in shares]
    bars = np.array(found["histogram"]["counts"]).reshape(prod(shape), -1) if "histogram" in found else None
    if bars is not None:
        table.add_column(_range(found["histogram"]["edges"]))
    for number, index in enumerate(np.ndindex(shape)):
        if number == _ROWS:
            break
        cells = [*map(str, index), *(_number(column[number]) for column in columns)]
        table.add_row(*cells, *([_sketch(bars[number])] if bars is not None else []))
    more = prod(shape) - _ROWS
    return [table, *([Text(f"... and {more} more; --json has all")] if more > 0 else [])]


def _number(value: Any) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.6g}"


def _range(edges: Sequence[float]) -> str:
    return f"{edges[0]:.4g} .. {edges[-1]:.4g}"


def _sketch(counts: Any) -> str:
    """The counts as bars; neighbours together where there are many."""
    together = -(-len(counts) // _WIDEST)
    sums = np.add.reduceat(counts, np.arange(0, len(counts), together))
    most = float(sums.max()) or 1.0
    return "".join(_BARS[ceil(float(count) * (len(_BARS) - 1) / most)] for count in sums)
