"""The nodes: where they are, what they hold, how much room is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from gpuflow.cluster.connection import Connection
from gpuflow.cluster.locating import ClientLocator
from gpuflow.display.nodes import device_text
from gpuflow.display.run_card import nodes_card
from gpuflow.explore.dataset import locator_for
from gpuflow.storage.node import NodeStore
from gpuflow.units import format_nbytes


def nodes(*, connection: Connection | None = None, root: str | os.PathLike[str] | None = None) -> Nodes:
    """Of a cluster, or those below `root`: see `gpuflow.open`."""
    locator = locator_for(connection, root)
    try:
        found = locator.each_node(_look)
        workers = locator.connection.info()["workers"] if isinstance(locator, ClientLocator) else {}
    finally:
        locator.close()
    for node, told in found.items():
        mine = {address: worker for address, worker in workers.items() if worker["node"] == node}
        told |= {"node": node, "workers": sorted(mine), "threads": sum(worker["threads"] for worker in mine.values())}
        told["devices"] = [device_text(worker) for _, worker in sorted(mine.items()) if worker["device"] != "cpu"]
    return Nodes(list(found.values()))


class Nodes(Sequence[dict[str, Any]]):
    """One dict a node: its id under "node", sizes in bytes."""

    def __init__(self, found: list[dict[str, Any]]) -> None:
        self._found = found

    def __getitem__(self, number: Any) -> Any:
        return self._found[number]

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._found)

    def _repr_html_(self) -> str:
        return nodes_card(self._found)

    def __repr__(self) -> str:
        lines = (
            f"{node['node']}: {node['chunks']} chunks, {format_nbytes(node['stored_nbytes'])}, {format_nbytes(node['free_nbytes'])} free"
            for node in self._found
        )
        return "\n".join(lines)


def _look(store: NodeStore) -> dict[str, Any]:
    records = [record for record in store.manifest.records() if record.state != "removed"]
    totals = [store.manifest.totals(record.name, path) for record in records for path in record.arrays]
    disk = shutil.disk_usage(store.root)
    return {
        "root": str(store.root),
        "datasets": len(records),
        "chunks": sum(count for count, _ in totals),
        "stored_nbytes": sum(nbytes for _, nbytes in totals),
        "free_nbytes": disk.free,
        "disk_nbytes": disk.total,
    }
