"""One question to each node tells what planning needs."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from gpuflow.datasets.catalog import NodesOnDisk, chunk_table
from gpuflow.datasets.survey import survey
from gpuflow.storage.calibration import FILE_NAME, keep
from gpuflow.storage.node import NodeStore
from tests.storage.calibrations import calibration
from tests.storage.stores import ARRAY, content, new_record, new_replica


@pytest.fixture
def nodes(tmp_path: Path) -> NodesOnDisk:
    """Two, of which the first has chunks 0 and 1 of `d` and a calibration, the second chunk 1 of a later generation and a damaged one."""
    roots = (tmp_path / "a", tmp_path / "b")
    for root, replicas in zip(roots, ([new_replica(0, 1), new_replica(1, 1)], [new_replica(1, 2)]), strict=True):
        with closing(NodeStore(root)) as store:
            store.put_record(new_record())
            for replica in replicas:
                store.commit([store.stage(replica, content(replica.chunk, replica.generation))])
    keep(roots[0], calibration(1.0))
    (roots[1] / FILE_NAME).write_text("{}")
    return NodesOnDisk(roots)


def test_records_tables_and_calibrations(nodes: NodesOnDisk) -> None:
    found = survey(nodes, ["d", "not-yet"], lambda path: True)
    assert set(found.records) == {"d"}
    table, alone = found.table("d", ARRAY, 3), chunk_table(nodes, "d", ARRAY, 3)
    assert table.rows.tobytes() == alone.rows.tobytes()
    assert table.holder_sets == alone.holder_sets
    assert found.table("d", ARRAY, 3) is table, "merged once"
    assert not found.table("not-yet", ARRAY, 3).present.any()
    first, second = found.calibrations.values()
    assert (first, second) == (calibration(1.0), "it is not of format 2")


def test_an_array_that_was_not_asked_for(nodes: NodesOnDisk) -> None:
    with pytest.raises(AssertionError, match=ARRAY):
        survey(nodes, ["d"], lambda path: False).table("d", ARRAY, 3)
