"""Parts of the source: which indices are meant, and what is said when none are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpuflow.errors import ConfigError
from gpuflow.pipelines.load import any_from_text, load_text
from gpuflow.pipelines.pipeline import Pipeline
from gpuflow.pipelines.plan import make_plan
from gpuflow.pipelines.slices import found_range
from gpuflow.steps.base import StepError
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord

HOURS = {"units": "hours since 1900-01-01 00:00:0.0", "calendar": "gregorian"}
DAYS = np.arange("2019-12-30", "2020-01-09", dtype="M8[D]")
SINCE_1900 = (DAYS - np.datetime64("1900-01-01")).astype("i8") * 24
LATITUDE = np.linspace(90, -90, 19)


@pytest.mark.parametrize(
    ("labels", "values", "attributes", "expected"),
    [
        (("2020-01-01", "2020-01-03"), DAYS, {}, (2, 5)),
        (("2020-01-01", "2020-01-03"), SINCE_1900, HOURS, (2, 5)),
        (("2020", None), SINCE_1900, HOURS, (2, 10)),
        ((None, "2019"), SINCE_1900.astype("f4"), HOURS, (0, 2)),
        (("2019-12", "2019-12"), DAYS, {}, (0, 2)),
        (("2020-01-02T12:00", "2020-01-03T00:00"), SINCE_1900, HOURS, (4, 5)),
        ((0, 45), LATITUDE, {}, (5, 10)),
        ((45, 0), LATITUDE, {}, (5, 10)),
        ((None, -80), LATITUDE, {}, (17, 19)),
        ((1, 1e9), np.arange(5), {}, (1, 5)),
        (("1970-01-02", None), np.arange(3), {"units": "days since 1970-1-1 00:00:00 UTC"}, (1, 3)),
    ],
)
def test_labels_are_found(labels: Any, values: Any, attributes: Any, expected: Any) -> None:
    assert found_range("c", labels, values, attributes) == expected


@pytest.mark.parametrize(
    ("labels", "values", "attributes", "message"),
    [
        ((5, 6), np.array([1, 3, 2]), {}, "coordinate `c` neither rises nor falls all the way; use isel, by index"),
        ((1, 2), np.array([1, np.nan, 2]), {}, "neither rises nor falls"),
        ((1, 2), np.array([1, 1, 2]), {}, "neither rises nor falls"),
        ((11, 12), np.arange(5), {}, "coordinate `c` has no value from 11 to 12; it goes from 0 to 4"),
        (("2021", "2022"), DAYS, {}, "no value from 2021 to 2022; it goes from 2019-12-30 to 2020-01-08"),
        (("soon", None), DAYS, {}, "'soon' is not a date; write 2020, 2020-01"),
        ((1, 2), DAYS, {}, "which numbers do not name; write dates"),
        (("2020", "2021"), np.arange(5), {}, "int64 without units, which dates do not name"),
        (("2020", "2021"), np.arange(5), {"units": "days since 2000-01-01", "calendar": "noleap"}, "the calendar 'noleap'"),
    ],
)
def test_labels_that_are_nowhere(labels: Any, values: Any, attributes: Any, message: str) -> None:
    with pytest.raises(StepError) as caught:
        found_range("c", labels, values, attributes)
    assert message in str(caught.value)


def array(shape: tuple[int, ...], dims: tuple[str, ...], dtype: str = "f4") -> ArrayMetadata:
    return ArrayMetadata.create(shape, tuple(min(size, 4) for size in shape), np.dtype(dtype), dims=dims)


ARRAYS = {"t": array((8, 6), ("time", "y")), "time": array((8,), ("time",), "i8"), "y": array((6,), ("y",))}
SOURCE = DatasetRecord("d", state="ready", arrays={path: one.document for path, one in ARRAYS.items()})


def test_coordinates_are_read_as_the_arrays_are() -> None:
    made = make_plan(Pipeline("d").isel(time=[2, 7]).clip(0, 1).to("e").spec, SOURCE)
    assert {one.path: one.target.shape for one in made.arrays} == {"t": (5, 6), "time": (5,), "y": (6,)}
    assert [one.path for one in made.arrays if one.carried] == ["y"]
    assert made.left_out == ()
    other = make_plan(Pipeline("d").isel(time=[2, 8]).clip(0, 1).to("e").spec, SOURCE)
    assert other.declared != made.declared
    assert made.output_record().origin["pipeline"]["source"] == {"dataset": "d", "isel": {"time": [2, 7]}}
    shorter = make_plan(Pipeline("d").isel(time=[2, 7]).crop(time=3).to("e").spec, SOURCE)
    assert shorter.left_out == ("time",)


def test_all_of_it_is_no_part() -> None:
    made = make_plan(Pipeline("d").isel(time=[None, None], y=[-6, 6]).clip(0, 1).to("e").spec, SOURCE)
    assert not any(one.gathered for one in made.arrays)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"tme": [0, 3]}, "source.isel.tme: the arrays have no dimension `tme`; did you mean `time`?"),
        ({"time": [0, 9]}, "source.isel.time: `time` has 8 places, and 9 lies outside; give indices from 0 to 8"),
        ({"time": [-9, None]}, "and -9 lies outside"),
        ({"time": [5, 5]}, "source.isel.time: nothing is left of `time`, which has 8 places; choose a start below the stop"),
    ],
)
def test_indices_that_are_nowhere(parts: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(Pipeline("d").isel(**parts).clip(0, 1).to("e").spec, SOURCE)
    assert message in str(caught.value)


def test_round_trips() -> None:
    text = "source:\n  dataset: d\n  arrays: [t]\n  isel: {y: [null, 3]}\n  sel: {time: [2020-01-01, 2020-12-31]}\noutput: e\n"
    spec = load_text(text)
    assert spec.source.sel == {"time": ("2020-01-01", "2020-12-31")}
    twin = Pipeline("d", "t").isel(y=[None, 3]).sel(time=["2020-01-01", "2020-12-31"]).to("e")
    assert twin.spec == spec
    assert load_text(twin.to_yaml()) == spec
    assert Pipeline.from_spec(spec).spec == spec
    measured = Pipeline("d").isel(y=[1, 3]).statistics()
    assert any_from_text(measured.to_yaml()) == measured.spec
