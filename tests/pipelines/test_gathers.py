"""Plans of all chunks at once: as if each had been asked about by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuflow.datasets.catalog import ChunkTable, merge
from gpuflow.grid import Grid
from gpuflow.pipelines import gathers
from gpuflow.pipelines.fingerprint import recipe
from gpuflow.pipelines.gathers import Wanted, at_once, one_by_one, plan_gathers
from gpuflow.pipelines.load import from_dict
from gpuflow.pipelines.table import Tables
from gpuflow.steps.base import ArraySpec, Step
from gpuflow.steps.registry import STEPS
from gpuflow.steps.spans import Inseparable
from gpuflow.storage.manifest import REPLICA_DTYPE
from gpuflow.storage.metadata import ArrayMetadata

DIMS, SHAPE, MADE_BY = ("time", "y", "x"), (3, 7, 6), "33" * 16
MODES = ("reflect", "constant", "nearest", "mirror", "wrap")
CHAINS: list[list[Any]] = [
    [],
    [{"clip": [0, 1]}],
    [{"crop": {"to": {"y": [2, 6], "x": 4}}}],
    [{"resize": {"to": {"y": 5, "x": 20}}}],
    [{"transpose": ["x", "time", "y"]}, {"median": {"size": {"x": 3, "time": 2}}}],
    *[[{"gaussian": {"sigma": {"y": 0.5, "x": 1}, "mode": mode}}, {"crop": {"to": {"y": 5}}}] for mode in MODES],
    *[[{"pad": {"width": {"time": [4, 0], "y": [3, 14]}, "mode": mode}}, {"rolling": {"size": {"y": 4}}}] for mode in MODES],
    [
        {"gaussian": {"sigma": {"y": 0.5}, "mode": "wrap"}},
        {"clip": [0, 1]},
        {"median": {"size": {"y": 2, "x": 3}, "mode": "wrap"}},
    ],
    [{"median": {"size": {"y": 3}}}, {"transpose": ["x", "y", "time"]}, {"rolling": {"size": {"y": 2, "x": 4}, "mode": "wrap"}}],
    [{"map": {"c": "a - b"}}, {"median": {"size": {"time": 2, "x": 3}, "mode": "wrap", "only": "c"}}, {"select": ["c"]}],
    [{"cast": "uint8"}, {"one_hot": 4}],
    [{"stack": {"arrays": ["a", "b"]}}],
    [{"map": {"c": "a - b"}}, {"stack": {"arrays": ["a", "c", "b"], "axis": 0}}, {"difference": {"over": {"time": 1}}}],
    [
        {"median": {"size": {"y": 3}, "only": "b"}},
        {"map": {"c": "a * b"}},
        {"stack": {"arrays": ["a", "b"], "name": "ab"}},
        {"map": {"d": "ab / 2"}},
        {"stack": {"arrays": ["ab", "d"], "along": "both", "axis": -1}},
        {"transpose": {"dims": ["both", "time", "channel", "y", "x"], "only": "stacked"}},
    ],
    [
        {"map": {"c": "a + 1"}},
        {"transpose": {"dims": ["time", "x", "y"], "only": "c"}},
        {"crop": {"to": {"y": 6, "x": 6}}},
        {"map": {"d": "a + c"}},
    ],
]


def chain_of(steps: list[Any], stored: tuple[int, ...] = (2, 4, 3), cut: tuple[int, ...] = (2,) * 5) -> Wanted:
    """The last of the arrays that the steps make, cut into chunks of the shape `cut`, or what fits of it."""
    sources = {path: ArrayMetadata.create(SHAPE, stored, np.dtype("f4"), dims=DIMS) for path in "ab"}
    specs = {path: ArraySpec(SHAPE, np.dtype("f4"), DIMS) for path in sources}
    flow = list(Tables(specs, list(specs), []).apply(from_dict({"source": "d", "steps": steps, "output": "e"}).steps).values())[
        -1
    ]
    nodes = flow.specs(specs)
    grid = Grid(nodes[-1].shape, cut[: len(nodes[-1].shape)])
    return Wanted(flow, nodes, {path: sources[path] for path in flow.paths}, grid)


def table(grid: Grid, random: np.random.Generator, *, missing: bool) -> ChunkTable:
    """Chunks on one, two, three or no nodes."""
    held = random.integers(0 if missing else 1, 8, grid.size)
    reports = {}
    for bit in range(3):
        rows = [
            (chunk, 1, 1, (1000 + chunk).to_bytes(16, "big"), bytes(16), bytes(16))
            for chunk in np.flatnonzero(held >> bit & 1).tolist()
        ]
        reports[f"n{bit}"] = np.array(rows, REPLICA_DTYPE)
    return merge(reports, grid.size)


def done(wanted: Wanted, tables: dict[str, ChunkTable], random: np.random.Generator) -> ChunkTable:
    """An output of which some chunks are made, some are out of date."""
    pending, _, known = one_by_one(wanted, MADE_BY, tables, merge({}, wanted.grid.size))
    states = random.choice(3, len(pending))
    rows = [
        (chunk, 1, 1, bytes(16), recipe(MADE_BY if state == 2 else "44" * 16, inputs), inputs)
        for chunk, state, inputs in zip(pending, states, known.rows["inputs"].tolist(), strict=True)
        if state
    ]
    return merge({"n0": np.array(rows, REPLICA_DTYPE)}, wanted.grid.size)


def same(found: gathers.Found, expected: gathers.Found) -> None:
    assert found[:2] == expected[:2]
    assert found[2].nodes == expected[2].nodes
    assert found[2].rows.tolist() == expected[2].rows.tolist()
    for path, needed in expected[2].needed.items():
        assert found[2].needed[path].tolist() == needed.tolist(), path


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(CHAINS),
    st.tuples(*[st.sampled_from([2, 3, 5, 12])] * 3),
    st.tuples(*[st.sampled_from([1, 2, 3, 12])] * 5),
    st.integers(0, 2**32),
    st.booleans(),
    st.sampled_from([(1, 3), (7, 20), (2**22, 2**20)]),
)
def test_all_at_once_is_one_by_one(
    chain: list[Any], stored: tuple[int, ...], cut: tuple[int, ...], seed: int, missing: bool, most: tuple[int, int]
) -> None:
    random = np.random.default_rng(seed)
    wanted = chain_of(chain, stored, cut)
    tables = {path: table(array.grid, random, missing=missing) for path, array in wanted.sources.items()}
    target = done(wanted, tables, random)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathers, "_CELLS", most[0])
        patch.setattr(gathers, "_DIGESTS", most[1])
        found = plan_gathers(wanted, MADE_BY, tables, target)
    same(found, one_by_one(wanted, MADE_BY, tables, target))


@pytest.mark.parametrize("chain", CHAINS[:-1], ids=lambda chain: "-".join(next(iter(step)) for step in chain) or "rechunk")
def test_these_go_at_once(chain: list[Any]) -> None:
    wanted = chain_of(chain)
    tables = {path: merge({}, metadata.grid.size) for path, metadata in wanted.sources.items()}
    assert at_once(wanted, MADE_BY, tables, merge({}, wanted.grid.size))[1] == tuple(range(wanted.grid.size))


def test_what_meets_its_own_transpose_goes_one_by_one() -> None:
    wanted = chain_of(CHAINS[-1])
    tables = {path: merge({}, metadata.grid.size) for path, metadata in wanted.sources.items()}
    with pytest.raises(Inseparable):
        at_once(wanted, MADE_BY, tables, merge({}, wanted.grid.size))


def test_every_step_of_gpuflow_says_what_all_parts_pull() -> None:
    """Else plans with it are slow."""
    kinds = {chain_step for chain in CHAINS for step in chain for chain_step in step}
    plain = {kind for kind, step in STEPS.items() if issubclass(step, Step) and step.pull_all is Step.pull_all}
    assert not plain, plain
    assert {"crop", "pad", "resize", "transpose", "one_hot", "stack", "median", "gaussian"} <= kinds
