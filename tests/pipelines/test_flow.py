"""Flows: a part of the result from the parts that it pulls, however the arrays are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from gpuflow.errors import ConfigError
from gpuflow.execution.evaluate import Evaluation
from gpuflow.grid import Grid
from gpuflow.pipelines.flow import Apply, Flow
from gpuflow.pipelines.load import from_dict
from gpuflow.pipelines.table import Tables
from gpuflow.steps.base import ArraySpec, Region
from tests.backends.samples import whole

DIMS = ("time", "y", "x")
SHAPE = (7, 11, 9)


def values(dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=SHAPE) * 50 + 100).astype(dtype)


def flows(steps: list[Any], sources: dict[str, np.ndarray]) -> tuple[dict[str, Flow], dict[str, ArraySpec]]:
    spec = from_dict({"source": "d", "steps": steps, "output": "e"})
    specs = {path: ArraySpec(array.shape, array.dtype, DIMS) for path, array in sources.items()}
    return dict(Tables(specs, list(specs), []).apply(spec.steps)), specs


def taken(array: np.ndarray, box: Region) -> np.ndarray:
    """A part that may go around."""
    places = (np.arange(part.start, part.stop) % size for part, size in zip(box, array.shape, strict=True))
    return np.ascontiguousarray(array[np.ix_(*places)])


def evaluated(
    flow: Flow, specs: dict[str, ArraySpec], sources: dict[str, np.ndarray], region: Region | None = None
) -> np.ndarray:
    nodes = flow.specs(specs)
    region = region or tuple(slice(0, size) for size in nodes[-1].shape)
    boxes = {path: (box, taken(sources[path], box)) for path, box in flow.pulls(nodes, region).items()}
    out = Evaluation(flow, nodes, "numba")(boxes, region, np.empty)
    assert (out.shape, out.dtype) == (tuple(part.stop - part.start for part in region), nodes[-1].dtype)
    return out


PAD = {"reflect": "symmetric", "constant": "constant", "nearest": "edge", "mirror": "reflect", "wrap": "wrap"}
EXPECTED: dict[str, tuple[list[Any], Any]] = {
    "crop": ([{"crop": {"to": {"y": [2, -3], "x": 4}}}], lambda a: a[:, 2:8, 2:6]),
    "crop open": ([{"crop": {"to": {"time": [None, 3], "x": [-4, None]}}}], lambda a: a[:3, :, 5:]),
    "transpose": ([{"transpose": ["x", "time", "y"]}], lambda a: a.transpose(2, 0, 1)),
    "pad": (
        [{"pad": {"width": {"y": 2, "x": [0, 5]}, "value": 7}}],
        lambda a: np.pad(a, [(0, 0), (2, 2), (0, 5)], constant_values=7),
    ),
    "rolling": ([{"rolling": {"size": {"time": 3}}}], lambda a: ndimage.uniform_filter1d(a.astype("f8"), 3, 0)),
    "difference": ([{"difference": {"over": {"time": 1}}}], lambda a: np.diff(a, axis=0, prepend=a[:1])),
    "look ahead": (
        [{"difference": {"over": {"x": -2}}}],
        lambda a: a - np.pad(a, [(0, 0), (0, 0), (0, 2)], mode="edge")[..., 2:],
    ),
    "median": ([{"median": {"size": {"y": 3, "x": 4}}}], lambda a: ndimage.median_filter(a, (1, 3, 4))),
    "opening": (
        [{"minimum": {"size": {"y": 3, "x": 3}}}, {"maximum": {"size": {"y": 3, "x": 3}}}],
        lambda a: ndimage.grey_opening(a, (1, 3, 3)),
    ),
    "resize": ([{"resize": {"to": {"y": 4, "x": 18}, "method": "nearest"}}], lambda a: a[:, [1, 4, 6, 9]].repeat(2, 2)),
    "a chain": (
        [{"map": "x * 2"}, {"gaussian": {"sigma": {"y": 1}}}, {"crop": {"to": {"y": [1, 9]}}}, {"clip": [150, 250]}],
        lambda a: np.clip(ndimage.gaussian_filter1d(a * 2, 1, 1)[:, 1:9], 150, 250),
    ),
}
EXPECTED["wrap around twice"] = (
    [
        {"rolling": {"size": {"y": 3, "x": 8}, "mode": "wrap"}},
        {"map": "x * 2"},
        {"median": {"size": {"time": 2, "y": 4}, "mode": "wrap"}},
    ],
    lambda a: ndimage.median_filter(2 * ndimage.uniform_filter(a.astype("f8"), (1, 3, 8), mode="wrap"), (2, 4, 1), mode="wrap"),
)
EXPECTED["wrap around a mirror, transposed"] = (
    [
        {"median": {"size": {"y": 5}, "mode": "mirror"}},
        {"transpose": ["x", "y", "time"]},
        {"gaussian": {"sigma": {"y": 0.5, "x": 0.25}, "mode": "wrap"}},
    ],
    lambda a: ndimage.gaussian_filter(
        ndimage.median_filter(a, (1, 5, 1), mode="mirror").transpose(2, 1, 0), (0.25, 0.5, 0), mode="wrap"
    ),
)
for _mode in PAD:
    EXPECTED[f"gaussian {_mode}"] = (
        [{"gaussian": {"sigma": {"y": 1.5, "x": 1}, "mode": _mode, "value": 3}}],
        lambda a, mode=_mode: ndimage.gaussian_filter(a, (0, 1.5, 1), mode=mode, cval=3),
    )
    if _mode != "constant":
        EXPECTED[f"pad {_mode}"] = (
            [{"pad": {"width": {"y": [3, 14], "x": [10, 0]}, "mode": _mode}}],
            lambda a, mode=_mode: np.pad(a, [(0, 0), (3, 14), (10, 0)], mode=PAD[mode]),
        )


@pytest.mark.parametrize("name", EXPECTED)
def test_the_whole_is_what_numpy_and_scipy_give(name: str) -> None:
    steps, reference = EXPECTED[name]
    sources = {"a": values()}
    made, specs = flows(steps, sources)
    out = evaluated(made["a"], specs, sources)
    expected = reference(sources["a"])
    assert out.shape == expected.shape
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-3)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(EXPECTED)), st.tuples(*[st.integers(1, 6)] * 3))
def test_any_part_is_that_part_of_the_whole(name: str, chunks: tuple[int, ...]) -> None:
    steps, _ = EXPECTED[name]
    sources = {"a": values()}
    made, specs = flows(steps, sources)
    flow = made["a"]
    at_once = evaluated(flow, specs, sources)
    grid = Grid(at_once.shape, chunks)
    for chunk in range(grid.size):
        region = grid.region(chunk)
        np.testing.assert_array_equal(evaluated(flow, specs, sources, region), at_once[region], err_msg=str(region))


def test_arrays_are_stacked_and_picked() -> None:
    sources = {"u": values(), "v": values("int16", 1), "w": values(seed=2)}
    steps = [
        {"map": "x + 1"},
        {"stack": {"arrays": ["u", "v"], "along": "channel", "name": "uv"}},
        {"clip": [0, 120]},
        {"drop": "w"},
    ]
    made, specs = flows(steps, sources)
    assert list(made) == ["uv"]
    flow = made["uv"]
    assert (flow.paths, flow.steps) == (("u", "v"), None)
    assert flow.specs(specs)[-1] == ArraySpec((7, 2, 11, 9), np.dtype("float32"), ("time", "channel", "y", "x"))
    expected = np.clip(np.stack([sources["u"] + 1, sources["v"] + np.int16(1)], 1), 0, 120)
    np.testing.assert_array_equal(evaluated(flow, specs, sources), expected)
    part = (slice(2, 5), slice(1, 2), slice(0, 3), slice(4, 9))
    np.testing.assert_array_equal(evaluated(flow, specs, sources, part), expected[part])
    pulled = flow.pulls(flow.specs(specs), part)
    assert pulled["v"] == (part[0], *part[2:])
    assert all(axis.start == axis.stop for axis in pulled["u"])


def test_what_flows_have_in_common_is_read_once() -> None:
    sources = {"u": values(), "v": values(seed=1)}
    made, _ = flows([{"stack": {"arrays": ["u", "v"], "name": "uv"}}], sources)
    both = Flow.joined(made["uv"].nodes[-1].operation, "again", [made["uv"], made["uv"]])  # type: ignore[union-attr, arg-type]
    assert both.paths == ("u", "v")
    assert sum(isinstance(node, Apply) for node in both.nodes) == 2


def test_before_a_step_is_what_goes_into_it() -> None:
    sources = {"u": values(), "v": values(seed=1)}
    made, specs = flows(
        [{"gaussian": {"sigma": {"x": 1}}}, {"stack": {"arrays": ["u", "v"]}}, {"standardize": "channel"}], sources
    )
    flow = made["stacked"]
    found = flow.first_unresolved(flow.specs(specs))
    assert found is not None
    number, request = found
    assert (number, request.keep) == (len(flow.nodes) - 1, (1,))
    assert flow.before(number).nodes == flow.nodes[:-1]


@pytest.mark.parametrize(
    ("steps", "pulled"),
    [
        ([{"median": {"size": {"y": 3, "x": 5}, "mode": "wrap"}}], (slice(0, 2), slice(-1, 4), slice(-2, 5))),
        ([{"clip": [0, 1]}, {"median": {"size": {"y": 4}, "mode": "wrap"}}], (slice(0, 2), slice(-2, 4), slice(0, 3))),
        ([{"median": {"size": {"y": 9}, "mode": "wrap"}}], (slice(0, 2), slice(0, 11), slice(0, 3))),
        ([{"pad": {"width": {"y": 5}, "mode": "wrap"}}], (slice(0, 2), slice(6, 9), slice(0, 3))),
        ([{"pad": {"width": {"y": 2}, "mode": "wrap"}}], (slice(0, 2), slice(-2, 1), slice(0, 3))),
        (
            [{"median": {"size": {"x": 3}, "mode": "wrap"}}, {"clip": [0, 1]}, {"median": {"size": {"x": 3}, "mode": "wrap"}}],
            (slice(0, 2), slice(0, 3), slice(-2, 5)),
        ),
        ([{"crop": {"to": {"x": 8}}}, {"median": {"size": {"x": 3}, "mode": "wrap"}}], (slice(0, 2), slice(0, 3), slice(0, 8))),
    ],
    ids=[
        "a halo",
        "elementwise before it",
        "as long as the axis",
        "beyond the edge",
        "across it",
        "twice",
        "not of a step between",
    ],
)
def test_what_wraps_pulls_the_other_end_alone(steps: list[Any], pulled: Region) -> None:
    made, specs = flows(steps, {"a": values()})
    assert made["a"].pulls(made["a"].specs(specs), (slice(0, 2), slice(0, 3), slice(0, 3))) == {"a": pulled}


def test_parts_of_resized_images_need_the_whole_images_alone() -> None:
    sources = {"a": values("uint8")}
    made, specs = flows([{"resize": {"to": {"y": 5, "x": 6}}}], sources)
    nodes = made["a"].specs(specs)
    assert made["a"].pulls(nodes, (slice(3, 4), slice(0, 2), slice(0, 1))) == {"a": (slice(3, 4), slice(0, 11), slice(0, 9))}
    assert nodes[-1].dtype == np.uint8
    assert whole(sources["a"])[0] == slice(0, 7)


def test_arrays_are_computed_with_by_name() -> None:
    sources = {"u10": values(), "v10": values(seed=1), "n": values("int16", 2)}
    steps = [
        {"cast": "float64"},
        {"map": {"wind": "sqrt(u10**2 + v10**2)", "high": "where(n > 100, n, 0)"}},
        {"drop": ["u10", "v10"]},
    ]
    made, specs = flows(steps, sources)
    assert list(made) == ["n", "wind", "high"]
    wide = {name: one.astype("float64") for name, one in sources.items()}
    expected = {"wind": np.sqrt(wide["u10"] ** 2 + wide["v10"] ** 2), "high": np.where(wide["n"] > 100, wide["n"], 0)}
    part = (slice(2, 5), slice(1, 9), slice(4, 9))
    for name, whole_of in expected.items():
        np.testing.assert_array_equal(evaluated(made[name], specs, sources), whole_of)
        np.testing.assert_array_equal(evaluated(made[name], specs, sources, part), whole_of[part])


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"map": {"wind": "sqrt(u + w)"}}], "steps[0].map: there is no array 'w' here; known: u, v, s"),
        ([{"map": {"wind": "u + s"}}], "steps[0].map: array 'wind' cannot be made: 's' has shape [3, 3], 'u' [7, 11, 9]"),
        ([{"stack": ["u", "s"]}], "steps[0].stack: array 'stacked' cannot be made: 's' has shape [3, 3], 'u' [7, 11, 9]"),
        ([{"map": {"other": "u + v"}}], "steps[0].map: the source has an array 'other' already; choose another name"),
        ([{"drop": "*"}], "steps: no array is left; drop fewer of them"),
        ([{"select": ["u", "qq"]}], "steps[0].select: there is no array 'qq' here; there are u, v, s"),
        (
            [{"crop": {"to": {"z": 3}}}, {"stack": ["u", "v"]}],
            "steps[0].crop: cannot be applied to array 'u': crop: there is no dimension",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(steps: list[Any], message: str) -> None:
    spec = from_dict({"source": "d", "steps": steps, "output": "e"})
    field = ArraySpec(SHAPE, np.dtype("float32"), DIMS)
    specs = {"u": field, "v": field, "s": ArraySpec((3, 3), np.dtype("float32"), ("y", "x"))}
    with pytest.raises(ConfigError) as caught:
        Tables(specs, list(specs), ["other"]).apply(spec.steps)
    assert str(caught.value).splitlines()[0].startswith(message)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"map": {"wind": "sqrt(u"}}], "steps[0].map.wind: not a valid expression"),
        ([{"map": {"wind": 3}}], "steps[0].map.wind: must be an expression of arrays, not the number 3"),
        ([{"map": {"expresion": "x + 1"}}], "steps[0].map"),
        ([{"stack": ["u"]}], "steps[0].stack.arrays: must be a list of two or more arrays"),
        ([{"resize": {"to": {"y": 3}}}], "steps[0].resize: resize: names 1 dimensions"),
        ([{"gaussian": {"sigma": 2}}], "steps[0].gaussian.sigma: must name dimensions, not the number 2; as in gaussian:"),
        ([{"gaussian": {"sigma": {"y": -1}}}], "steps[0].gaussian.sigma: must be above 0"),
        ([{"median": {"size": {"y": 0}}}], "steps[0].median.size: must be a number of values from 1 to 10000"),
        ([{"crop": {"to": {"y": "a"}}}], "steps[0].crop.to: must be a length or [start, stop], not the text 'a'"),
        ([{"pad": {"width": {"y": -1}}}], "steps[0].pad.width: must be a width or [before, after]"),
    ],
)
def test_what_is_written_wrongly_is_refused(steps: list[Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict({"source": "d", "steps": steps, "output": "e"})
    assert message in str(caught.value)
