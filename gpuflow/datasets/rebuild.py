"""A node's manifest made anew, with what the other nodes know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets import catalog
from gpuflow.datasets.catalog import Known, Nodes
from gpuflow.storage.manifest import REPLICA_DTYPE
from gpuflow.storage.rebuild import Rebuilt, rebuild


def rebuild_node(root: Path, others: Nodes | None) -> list[Rebuilt]:
    """See `storage.rebuild`. others: None when this is the only node."""
    known: Known = catalog.newest(others) if others is not None else {}

    def elsewhere(dataset: str, array: str) -> NDArray[Any]:
        record = known.get(dataset)
        if others is None or record is None or array not in record.arrays:
            return np.empty(0, REPLICA_DTYPE)
        return catalog.chunk_table(others, dataset, array, record.array(array).grid.size).rows

    return rebuild(root, known, elsewhere)
