"""What a run finds damaged and no node has whole is made again, by its recipe or from its origin, and the run goes on with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.errors import RunFailed
from gpuflow.objectstore.repair import scrub_dataset
from gpuflow.pipelines.load import from_dict
from gpuflow.pipelines.spec import PipelineSpec
from tests.helpers import read_back
from tests.objectstore.test_repair import file_of, flip, roots_of


def pipeline(source: str, output: object) -> PipelineSpec:
    return from_dict({"source": {"dataset": source, "arrays": ["t2m"]}, "steps": [{"standardize": {}}], "output": output})


def standardized(connection: Connection, name: str) -> np.ndarray:
    values = read_back(roots_of(connection), name, "t2m").astype("float64")
    return np.asarray((values - values.mean()) / values.std())


def test_from_the_origin(three_nodes: Connection, field_zarr: Path) -> None:
    """Already the statistics cannot be taken without it."""
    gpuflow.ingest(field_zarr, "heal-in", connection=three_nodes)
    wanted = standardized(three_nodes, "heal-in")
    flip(file_of(three_nodes, "heal-in/t2m/c/3/1/0"))
    receipt = gpuflow.run(pipeline("heal-in", "heal-out"), connection=three_nodes).to_dict()
    assert [(each["chunk"], each["how"]) for each in receipt["healed"]] == [("heal-in/t2m/c/3/1/0", "fetched again")]
    assert (receipt["status"], receipt["chunks"]) == ("done", {"total": 24, "done": 24, "skipped": 0, "failed": 0})
    np.testing.assert_allclose(read_back(roots_of(three_nodes), "heal-out", "t2m"), wanted, atol=1e-5)
    assert scrub_dataset(three_nodes, "heal-in").findings == ()


def test_by_its_recipe_but_not_what_was_begun_in_place(three_nodes: Connection, field_zarr: Path) -> None:
    gpuflow.ingest(field_zarr, "heal-first", connection=three_nodes)
    gpuflow.run(pipeline("heal-first", "heal-second"), connection=three_nodes)
    before = read_back(roots_of(three_nodes), "heal-second", "t2m")
    flip(file_of(three_nodes, "heal-second/t2m/c.3.1.0"))
    receipt = gpuflow.run(pipeline("heal-second", "heal-third"), connection=three_nodes).to_dict()
    assert (receipt["status"], receipt["chunks"]["done"]) == ("done", 24)
    assert [(each["chunk"], each["how"]) for each in receipt["healed"]] == [("heal-second/t2m/c.3.1.0", "recomputed")]
    np.testing.assert_array_equal(read_back(roots_of(three_nodes), "heal-second", "t2m"), before)

    flip(file_of(three_nodes, "heal-second/t2m/c.3.1.0"))
    steps = [{"map": "x + 1"}]  # read from the disk: the healed chunk is also in memory, where the damage is not
    spec = from_dict({"source": "heal-second", "steps": steps, "output": {"in_place": True}, "run": {"cache": "off"}})
    with pytest.raises(RunFailed, match=r"chunk heal-second/t2m/c.3.1.0 .* is damaged") as error:
        gpuflow.run(spec, connection=three_nodes)
    assert error.value.receipt["chunks"]["done"] == 19
    assert "was changed in place since it was made, and no node has a sound copy" in error.value.receipt["notes"][0]
    flip(file_of(three_nodes, "heal-second/t2m/c.3.1.0"))  # as it was
    assert gpuflow.run(spec, connection=three_nodes).to_dict()["chunks"]["done"] == 1
    np.testing.assert_array_equal(read_back(roots_of(three_nodes), "heal-second", "t2m"), before + 1)
