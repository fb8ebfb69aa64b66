"""A pipeline that writes no dataset: what is asked about the arrays that its steps make of the source.

`statistics: {per: channel, quantiles: [0.01, 0.99], histogram: 100}` in place of `output`. What comes of it is kept with the source."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, SerializeAsAny, model_validator

from gpuflow.pipelines.spec import OutputSpec, PipelineSpec, RunSpec, SourceSpec
from gpuflow.reductions.quantiles import MOST_SKETCHES
from gpuflow.reductions.requests import HistogramRequest, MomentsRequest, QuantilesRequest, Request
from gpuflow.reductions.weighted import Weights
from gpuflow.steps.axes import axis_of
from gpuflow.steps.base import ArraySpec, Operation, StepError
from gpuflow.steps.expression import parse
from gpuflow.steps.map import ExpressionText, Map
from gpuflow.steps.parameters import describe, number
from gpuflow.steps.weighting import AREA, WeightsText

MOST_BINS = 10_000
MOST_NUMBERS = 2**16
"""Indices of the dimensions that are kept, and counts of a histogram: they stand in the dataset's record, which every node keeps."""


def _dims(value: Any) -> Any:
    """Names or numbers of dimensions, as a tuple; None when it is left out."""
    items = value if isinstance(value, list | tuple) else [value]
    if value is None:
        return None
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int) or item == "":
            raise ValueError(f"must be names or numbers of dimensions, not {describe(item)}")
    if len(set(items)) < len(items):
        raise ValueError("names a dimension twice")
    return tuple(items)


def _shares(value: Any) -> tuple[float, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    shares = tuple(float(number(item)) for item in items)
    if wrong := [share for share in shares if not 0 <= share <= 1]:
        raise StepError(f"must be shares from 0 to 1, not {wrong[0]:g}", "as in [0.01, 0.5, 0.99]")
    if len(set(shares)) < len(shares):
        raise ValueError("names a quantile twice")
    return shares


def _bins(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a whole number, not {describe(value)}")
    if not 1 <= value <= MOST_BINS:
        raise ValueError(f"must be from 1 to {MOST_BINS}, not {value}")
    return value


def _range(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"must be two numbers such as [0, 1], not {describe(value)}")
    low, high = (float(number(item)) for item in value)
    if not low < high:
        raise ValueError(f"must rise: {low:g} is not below {high:g}")
    return low, high


class HistogramSpec(BaseModel, frozen=True, extra="forbid", strict=True, defer_build=True):
    """`bins`: how many equal intervals; `range`: from where to where, the smallest and the largest value when left out."""

    bins: Annotated[int, PlainValidator(_bins, json_schema_input_type=int), Field(description="How many equal intervals.")]
    range: Annotated[
        tuple[float, float] | None,
        PlainValidator(_range, json_schema_input_type=list[float] | None),
        Field(description="Two numbers, from where to where; the smallest and the largest value when left out."),
    ] = None

    def to_value(self) -> Any:
        return self.bins if self.range is None else {"bins": self.bins, "range": list(self.range)}


def _histogram(value: Any) -> Any:
    """Of a bare number of bins, too."""
    if value is None or isinstance(value, HistogramSpec | Mapping):
        return value
    return {"bins": value}


_DIMS = str | int | list[str | int] | None


class StatisticsSpec(BaseModel, frozen=True, extra="forbid", strict=True, defer_build=True):
    """Count, mean, standard deviation, smallest and largest value, sum; and what else is asked for. NaN is skipped."""

    about: ClassVar[str] = "In place of output: count, mean, std, min, max, sum, and what else is asked for. NaN is skipped."

    per: Annotated[
        Any,
        PlainValidator(_dims, json_schema_input_type=_DIMS),
        Field(description="Dimensions whose indices each have statistics of their own, such as the channel."),
    ] = None
    over: Annotated[
        Any,
        PlainValidator(_dims, json_schema_input_type=_DIMS),
        Field(description="The other way round: dimensions that are reduced; all of them when both are left out."),
    ] = None
    where: Annotated[
        ExpressionText | None, Field(description="Only values for which it holds count: an expression of x, such as x > 0.")
    ] = None
    weights: Annotated[
        WeightsText, Field(description=f"How much values count: an expression of coordinates, by their names, such as {AREA}.")
    ] = None
    quantiles: Annotated[
        tuple[float, ...],
        PlainValidator(_shares, json_schema_input_type=float | list[float]),
        Field(description="Shares such as [0.01, 0.5, 0.99]: the values that so many are below."),
    ] = ()
    histogram: Annotated[
        HistogramSpec | None,
        BeforeValidator(_histogram, json_schema_input_type=HistogramSpec | int | None),
        Field(
            description="How many values lie in each of so many equal intervals: {bins: 100, range: [0, 1]}, or a number of bins."
        ),
    ] = None

    @model_validator(mode="after")
    def _one_way(self) -> StatisticsSpec:
        if self.per is not None and self.over is not None:
            raise StepError("has both `per` and `over`", "give the dimensions that are kept, or those that are not")
        if self.weights is not None and self.quantiles:
            raise StepError("has both `weights` and `quantiles`, which take none", "ask for the quantiles in a file of their own")
        return self

    def masked(self, array: ArraySpec) -> tuple[Map, ...]:
        """The step that makes NaN of the values that do not count. StepError when the condition is none."""
        if self.where is None:
            return ()
        if (found := parse(self.where).dtype_of(array.dtype)).kind != "b":
            raise StepError(f"where: `{self.where}` gives {found} and not true or false", "compare, as in x > 0")
        return (Map(expression=f"where({self.where}, x, nan)"),)

    def keep(self, array: ArraySpec) -> tuple[int, ...]:
        """The axes whose indices have statistics of their own. StepError when they are not there, or have too many."""
        if array.dtype.kind not in "biuf":
            raise StepError(f"there are no statistics of {array.dtype} values", "put a map step such as abs(x) before")
        axes = range(len(array.dims))
        if self.over is not None:
            over = {axis_of("over", name, array.dims) for name in self.over}
            keep = tuple(axis for axis in axes if axis not in over)
        else:
            keep = tuple(sorted({axis_of("per", name, array.dims) for name in self.per or ()}))
        kept = prod(array.shape[axis] for axis in keep)
        most = MOST_SKETCHES if self.quantiles else MOST_NUMBERS
        if kept * (self.histogram.bins if self.histogram else 1) > MOST_NUMBERS or kept > most:
            what = "quantiles" if self.quantiles and kept > most else "statistics"
            reason = f"{what} of {kept} indices are too many to keep with the dataset"
            raise StepError(reason, f"keep fewer dimensions: at most {most} indices, and {MOST_NUMBERS} counts of a histogram")
        return keep

    def requests(self, keep: tuple[int, ...], weights: Weights | None, bounds: tuple[float, float] | None) -> tuple[Request, ...]:
        """What is asked for. bounds: of the histogram; None while they are not known: then it is left for later."""
        asked: list[Request] = [MomentsRequest(keep, weights)]
        if self.quantiles:
            asked.append(QuantilesRequest(keep))
        if self.histogram is not None and (bounds := self.histogram.range or bounds) is not None:
            asked.append(HistogramRequest(keep, self.histogram.bins, bounds, weights))
        return tuple(asked)

    def to_value(self) -> dict[str, Any]:
        value: dict[str, Any] = {name: list(dims) for name in ("per", "over") if (dims := getattr(self, name)) is not None}
        value |= {name: text for name in ("where", "weights") if (text := getattr(self, name)) is not None}
        value |= {"quantiles": list(self.quantiles)} if self.quantiles else {}
        return value | ({"histogram": self.histogram.to_value()} if self.histogram is not None else {})


class StatisticsPipeline(BaseModel, frozen=True, extra="forbid", strict=True, defer_build=True):
    """A whole pipeline that ends in statistics."""

    source: SourceSpec
    steps: tuple[SerializeAsAny[Operation], ...] = ()
    statistics: StatisticsSpec
    run: RunSpec = RunSpec()

    @property
    def mapped(self) -> PipelineSpec:
        """The pipeline that would write what the statistics are of. Nobody runs it: its output is never made."""
        output = OutputSpec(dataset=f"{self.source.dataset[:80]}-statistics")
        return PipelineSpec(source=self.source, steps=self.steps, output=output, run=self.run)

    def to_dict(self) -> dict[str, Any]:
        """The canonical form: plain data as in the YAML file, without what equals its default."""
        data = self.mapped.to_dict()
        del data["output"]
        run = {"run": data.pop("run")} if "run" in data else {}
        if not self.steps:
            del data["steps"]
        return {**data, "statistics": self.statistics.to_value(), **run}


AnyPipeline = PipelineSpec | StatisticsPipeline
