"""What several tests need to look at a dataset with plain zarr, as any user of its files would."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from gpuflow.cluster.launch import existing_roots
from gpuflow.datasets.catalog import NodesOnDisk, chunk_table, find


def read_back(roots: Iterable[Path], dataset: str, array: str) -> NDArray[Any]:
    """The whole array, each chunk by plain zarr from the folder of a node that holds it. Fails when a chunk is on no node."""
    roots = tuple(roots)
    nodes = NodesOnDisk(roots)
    metadata = find(nodes, dataset).array(array)
    table = chunk_table(nodes, dataset, array, metadata.grid.size)
    assert table.present.all(), f"{dataset}/{array}: chunks {np.flatnonzero(~table.present)} are on no node"
    by_node = dict(zip(nodes.each_node(lambda store: store.node_id), roots, strict=True))
    opened = {node: zarr.open_array(root / "datasets" / dataset / array, mode="r") for node, root in by_node.items()}
    whole = np.zeros(metadata.shape, dtype=metadata.dtype)
    for chunk, holders in enumerate(table.holder_sets):
        region = metadata.grid.region(chunk)
        whole[region] = opened[min(holders)][region]
    return whole


def read_embedded(root: Path, dataset: str, array: str) -> NDArray[Any]:
    """`read_back` from an embedded cluster's root."""
    return read_back(existing_roots(root), dataset, array)
