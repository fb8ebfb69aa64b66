"""What a doctor found, and what a rebuild came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from gpuflow.storage.findings import Finding
from gpuflow.storage.rebuild import Rebuilt

_ITEMS_SHOWN = 5


def findings_view(found: Mapping[str, Sequence[Finding]]) -> RenderableType:
    """Findings by root for `Console.print`."""
    lines: list[RenderableType] = []
    for root, findings in found.items():
        lines.append(Text(f"{root}: {'nothing is wrong' if not findings else ''}".rstrip(), style="bold"))
        for item in findings:
            count = f"{len(item.items)} " if len(item.items) > 1 else ""
            lines.append(
                Text(f"  {'wrong' if item.serious else 'note'}: {count}{item.problem}", style="red" if item.serious else "")
            )
            lines += [Text(f"    {name}") for name in item.items[:_ITEMS_SHOWN]]
            if len(item.items) > _ITEMS_SHOWN:
                lines.append(Text(f"    ... and {len(item.items) - _ITEMS_SHOWN} more; --json lists all"))
            lines.append(Text(f"    remedy: {item.remedy}"))
    return Group(*lines)


def rebuilt_view(done: Mapping[str, Sequence[Rebuilt]]) -> RenderableType:
    """Rebuilt manifests by root for `Console.print`."""
    if not done:
        return Text("every manifest is whole: nothing has to be rebuilt")
    lines: list[RenderableType] = []
    for root, parts in done.items():
        lines.append(Text(f"{root}: manifest.sqlite is made anew; the old one, if there was one, is beside it", style="bold"))
        for part in parts:
            text = f"  {part.dataset}/{part.array}: {part.alone} chunks of unknown history, {part.known} as other nodes know them"
            lines.append(Text(f"{text}, {part.absent} without a file here"))
            if part.left_out:
                shown = ", ".join(part.left_out[:_ITEMS_SHOWN]) + (", ..." if len(part.left_out) > _ITEMS_SHOWN else "")
                lines.append(Text(f"    left out, since other nodes have other bytes: {len(part.left_out)}: {shown}"))
    return Group(*lines)
