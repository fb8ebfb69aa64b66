"""`gpuflow doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpuflow.cli.common import AsJson, Scheduler, cluster, show
from gpuflow.errors import ClusterError, NotFound
from gpuflow.settings import scheduler_address, store_root

if TYPE_CHECKING:
    from gpuflow.datasets.catalog import Nodes


def doctor(
    root: Annotated[Path | None, typer.Argument(help="A store root (or GPUFLOW_ROOT; default .gpuflow).")] = None,
    full: Annotated[bool, typer.Option("--full", help="Read every chunk and compare its digest.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make a lost or damaged manifest anew, from the files.")] = False,
    alone: Annotated[bool, typer.Option("--alone", help="With --rebuild: no other node has these datasets.")] = False,
    scheduler: Scheduler = None,
    as_json: AsJson = False,
) -> None:
    """Check a node on this machine: manifest against files, what was left over, the disk. Exit status 1 when something is wrong.

    Nothing is changed without --rebuild. That asks the other nodes what they know: those beside it in an embedded cluster's root, or
    those of --scheduler. What made a chunk that no other node has is not known afterwards: pipelines in place refuse it."""
    from gpuflow.display.doctor import findings_view, rebuilt_view
    from gpuflow.storage.doctor import examine

    base = (root or store_root()).absolute()
    roots = _roots(base)
    if rebuild:
        done = {str(path): _rebuild(path, alone, scheduler) for path in roots if len(roots) == 1 or _is_broken(path)}
        show(rebuilt_view(done), {path: [asdict(part) for part in parts] for path, parts in done.items()}, as_json)
        return
    found = {str(path): examine(path, full=full) for path in roots}
    for path, findings in found.items():
        findings.extend(_same_id(Path(path), roots))
    show(findings_view(found), {path: [asdict(item) for item in findings] for path, findings in found.items()}, as_json)
    if any(item.serious for findings in found.values() for item in findings):
        raise typer.Exit(1)


def _roots(base: Path) -> list[Path]:
    """The stores at `base`: itself, and the further nodes of an embedded cluster."""
    names = ("node.json", "manifest.sqlite", "datasets")
    found = [path for path in [base, *sorted((base / "nodes").glob("*"))] if any((path / name).exists() for name in names)]
    if not found:
        raise NotFound("store", str(base), hint="give the root of a node on this machine")
    return found


def _same_id(root: Path, roots: Sequence[Path]) -> list[Any]:
    from gpuflow.storage.doctor import node_id_of
    from gpuflow.storage.findings import found

    mine = node_id_of(root)
    same = [str(other) for other in roots if other != root and mine is not None and node_id_of(other) == mine]
    return found(
        f"other roots have the same node id {mine}", "one is a copy: delete it, or its node.json to make it a node", same
    )


def _is_broken(root: Path) -> bool:
    from gpuflow.storage.doctor import ManifestDamaged, open_manifest

    try:
        open_manifest(root).close()
    except ManifestDamaged:
        return True
    return False


def _rebuild(root: Path, alone: bool, scheduler: str | None) -> list[Any]:
    from gpuflow.datasets.catalog import NodesOnDisk
    from gpuflow.datasets.rebuild import rebuild_node

    base = root.parent.parent if root.parent.name == "nodes" and _looks_like_store(root.parent.parent) else root
    beside = tuple(path for path in _roots(base) if path != root and not _is_broken(path))
    if not alone and not beside and not (scheduler or scheduler_address()):
        reason = f"other nodes may have chunks of {root} at newer generations"
        raise ClusterError(reason, "give --scheduler ADDRESS, or --alone when there is no other node")
    others: Nodes | None = NodesOnDisk(beside) if beside else None
    with nullcontext(others) if alone or beside else cluster(scheduler, None, None, None, None) as where:
        return rebuild_node(root, None if alone else where)


def _looks_like_store(path: Path) -> bool:
    return (path / "node.json").exists()
