"""What the cards of notebooks are made of: HTML and SVG in one piece, without scripts or requests, in the light and in the dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from gpuflow.palette import IN_MEMORY

_STYLE = """
.gf{font:13px/1.45 system-ui,sans-serif;color-scheme:light;color:#1b1f24;background:#fff;border:1px solid #d0d7de;border-radius:8px;
padding:10px 14px;width:fit-content;max-width:min(100%,82em);box-sizing:border-box;overflow-x:auto}
.gf h4{margin:0 0 2px;font-size:15px}.gf p{margin:2px 0;color:#57606a}.gf p.name{margin-top:8px;font-weight:600;color:inherit!important}
.gf table{border-collapse:collapse;margin:6px 0}
.gf th,.gf td{text-align:left;padding:2px 14px 2px 0;border:0;background:none;vertical-align:top;color:inherit}
.gf th{font-weight:600;color:#57606a;white-space:nowrap}
.gf td:not(:last-child){white-space:nowrap}.gf :is(th,td):last-child{padding-right:0}
.gf svg{display:block;margin:4px 0}.gf .bad{color:#d00000}
.gf .key{margin-right:12px;white-space:nowrap}
.gf .dot{display:inline-block;width:9px;height:9px;border-radius:2px;margin-right:4px}.gf details{margin:4px 0}
.gf pre{white-space:pre-wrap;margin:4px 0;background:none;color:inherit}
@media (prefers-color-scheme:dark){.gf{color-scheme:dark;color:#e6edf3;background:#161b22;border-color:#30363d}.gf p,.gf th{color:#9da7b3}
.gf .bad{color:#ff7b72}}
[data-jp-theme-light="false"] .gf{color-scheme:dark;color:#e6edf3;background:#161b22;border-color:#30363d}
[data-jp-theme-light="false"] .gf :is(p,th){color:#9da7b3}[data-jp-theme-light="false"] .gf .bad{color:#ff7b72}
[data-jp-theme-light="true"] .gf{color-scheme:light;color:#1b1f24;background:#fff;border-color:#d0d7de}
[data-jp-theme-light="true"] .gf :is(p,th){color:#57606a}[data-jp-theme-light="true"] .gf .bad{color:#d00000}
"""


def card(title: str, *parts: str) -> str:
    """The frame around `parts`, which are HTML. title: text."""
    return f'<div class="gf"><style>{_STYLE}</style><h4>{escape(title)}</h4>{"".join(parts)}</div>'


def line(text: str, *, bad: bool = False) -> str:
    """A paragraph of text."""
    return f'<p class="bad">{escape(text)}</p>' if bad else f"<p>{escape(text)}</p>"


def name(text: str) -> str:
    """What the parts that follow are of."""
    return f'<p class="name">{escape(text)}</p>'


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Rows of text; without `head`, the first column names the others."""
    lines = [f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>"] if head else []
    for first, *others in rows:
        tag = "td" if head else "th"
        cells = "".join(f"<td>{escape(other)}</td>" for other in others)
        lines.append(f"<tr><{tag}>{escape(first)}</{tag}>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def folded(title: str, content: str) -> str:
    """HTML that is shown when its title is clicked."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def legend(colours: Mapping[str, str], dot: str = "") -> str:
    """What each colour stands for, and a dot, if there is any."""
    keys = dict(colours)
    if dot:
        keys[dot] = f"linear-gradient({IN_MEMORY},{IN_MEMORY}) center/3px 3px no-repeat #999"
    drawn = (
        f'<span class="key"><span class="dot" style="background:{background}"></span>{escape(name)}</span>'
        for name, background in keys.items()
    )
    return f"<p>{''.join(drawn)}</p>"


def bar(parts: Mapping[str, float], colours: Mapping[str, str], width: int = 560) -> str:
    """A bar cut in proportion to `parts`."""
    total, position, rects = sum(parts.values()), 0.0, []
    for name, value in parts.items():
        size = value / total * width if total else 0.0
        if size >= 0.05:
            title = f"<title>{escape(name)}: {value / total:.1%}</title>"
            rects.append(f'<rect x="{position:.1f}" width="{size:.1f}" height="14" fill="{colours[name]}">{title}</rect>')
        position += size
    return f'<svg width="{width}" height="14" role="img">{"".join(rects)}</svg>'


def grid(rows: Sequence[Sequence[str]], colours: Mapping[str, str], cell: int = 8, dotted: Sequence[Sequence[bool]] = ()) -> str:
    """Cells coloured by name: one path for each colour, so that thousands of them stay small. A name of "" leaves a hole.

    cell: pixels, an even number. dotted: cells with a dot, of the same shape as `rows`."""
    paths: dict[str, list[str]] = {}
    for y, row in enumerate(rows):
        for x, name in enumerate(row):
            paths.setdefault(name, []).append(f"M{x * cell} {y * cell}h{cell - 1}v{cell - 1}h-{cell - 1}z")
    width, height = cell * max(map(len, rows), default=0), cell * len(rows)
    drawn = (
        f'<path fill="{colours[name]}" d="{"".join(steps)}"><title>{escape(name)}</title></path>'
        for name, steps in paths.items()
        if name
    )
    return f'<svg width="{width}" height="{height}" role="img">{"".join(drawn)}{_dots(dotted, cell)}</svg>'


def _dots(dotted: Sequence[Sequence[bool]], cell: int) -> str:
    """In the middle of cells, in one path, where neighbours are one step from each other."""
    size = cell // 3 | 1
    margin, steps = (cell - 1 - size) // 2, []
    for y, row in enumerate(dotted):
        for x, is_dotted in enumerate(row):
            if is_dotted and x and row[x - 1]:
                steps.append(f"m{cell - size} 0h{size}")
            elif is_dotted:
                steps.append(f"M{x * cell + margin} {y * cell + (cell - 1) / 2}h{size}")
    if not steps:
        return ""
    return f'<path pointer-events="none" stroke="{IN_MEMORY}" stroke-width="{size}" d="{"".join(steps)}"/>'
