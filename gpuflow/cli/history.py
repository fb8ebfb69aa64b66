"""`gpuflow log`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpuflow.cli.common import AsJson, Nodes_, Root, Scheduler, nodes_to_look_at, show

if TYPE_CHECKING:
    from gpuflow.datasets.catalog import Nodes
    from gpuflow.storage.record import DatasetRecord


def log(
    address: Annotated[
        str, typer.Argument(metavar="NAME[/ARRAY[/CHUNK]]", help="A dataset, an array of it, or a chunk of that.")
    ],
    nodes: Nodes_ = None,
    scheduler: Scheduler = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show what a dataset went through: in-place pipelines, snapshots, and how far its chunks have come.

    A chunk is given by its number, or by its key as messages show it: photos/image/c.0.1."""
    from gpuflow.datasets import catalog
    from gpuflow.display import history as display
    from gpuflow.pipelines import history

    name, _, rest = address.partition("/")
    with nodes_to_look_at(scheduler, nodes, root) as where:
        record = catalog.find(where, name)
        array, chunk = history.split_address(record, rest)
        if array is not None and chunk is not None:
            found = _chunk(where, record, array, chunk)
            return show(display.chunk_history_view(found), found, as_json)
        tables = {
            path: catalog.chunk_table(where, name, path, metadata.grid.size)
            for path, metadata in record.metadata.items()
            if array in (None, path)
        }
    details = history.dataset_history(record, tables)
    view = display.dataset_history_view(details) if array is None else display.arrays_view(details["arrays"])
    show(view, details if array is None else details["arrays"], as_json)


def _chunk(where: Nodes, record: DatasetRecord, array: str, chunk: int) -> dict[str, Any]:
    from gpuflow.datasets import catalog, snapshots
    from gpuflow.pipelines import history

    table = catalog.chunk_table(where, record.name, array, record.array(array).grid.size)
    kept = {tag: snapshots.kept_table(where, record, tag, array) for tag in record.snapshots}
    generations = catalog.generations(where, record.name, array, chunk)
    stale = history.stale_generations(generations, int(table.rows["generation"][chunk]))
    return history.chunk_history(record, array, chunk, table, kept, stale)
