"""A pipeline written in Python: the twin of the YAML file.

    Pipeline("photos").standardize(per="channel").clip(-3, 3).cast("float16").to("photos-train")

Every call returns a new pipeline. What is written is checked when `spec` is asked for, with the messages of a YAML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpuflow.pipelines.load import any_from_dict, from_dict, load_pipeline
from gpuflow.pipelines.shaping import Shaping
from gpuflow.pipelines.spec import PipelineSpec
from gpuflow.pipelines.statistics import StatisticsPipeline
from gpuflow.pipelines.yaml_text import dump_yaml
from gpuflow.steps.user_code import address_of


@dataclass(frozen=True)
class Pipeline(Shaping):
    """`source`: name of a dataset. `arrays`: names or fnmatch patterns; None for all. The methods fill the other fields."""

    source: str
    arrays: Sequence[str] | str | None = None
    steps: tuple[Mapping[str, Any], ...] = ()
    output: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None
    part: Mapping[str, Mapping[str, Any]] | None = None

    def isel(self, **parts: Sequence[int | None]) -> Pipeline:
        """Read a part of some dimensions only, by index: `isel(time=[0, 365])`."""
        return self._reading("isel", parts)

    def sel(self, **parts: Sequence[Any]) -> Pipeline:
        """The same by the values of a coordinate, both included: `sel(time=["2020-01-01", "2020-12-31"], lat=[0, 45])`."""
        return self._reading("sel", parts)

    def _reading(self, how: str, parts: Mapping[str, Any]) -> Pipeline:
        before = self.part or {}
        return replace(self, part={**before, how: {**before.get(how, {}), **parts}})

    def standardize(
        self, per: Any = None, *, mean: Any = None, std: Any = None, weights: str | None = None, refit: str | None = None
    ) -> Pipeline:
        """Subtract the mean and divide by the standard deviation. per: dimensions that keep their own.

        mean, std: numbers, or nested lists over the dimensions in `per`; from the data when left out. weights: how much values count there,
        an expression of coordinates such as "cos(radians(lat))". refit: once the source has grown, "never" (the default), "always" or
        "drift > 0.05" standard deviations."""
        return self._then("standardize", per=per, mean=mean, std=std, weights=weights, refit=refit)

    def normalize(
        self,
        per: Any = None,
        *,
        range: Sequence[float] | None = None,
        quantiles: Sequence[float] | None = None,
        min: Any = None,
        max: Any = None,
        refit: str | None = None,
    ) -> Pipeline:
        """Stretch the values from the smallest to the largest over `range`, 0 to 1 when left out. per: dimensions that keep their own.

        quantiles: two shares whose values take the place of the smallest and the largest. min, max: numbers, or nested lists over the
        dimensions in `per`; from the data when left out. refit: as for `standardize`, in units of the range."""
        return self._then("normalize", per=per, range=range, quantiles=quantiles, min=min, max=max, refit=refit)

    def unpack(
        self, scale_factor: float | None = None, add_offset: float | None = None, *, missing: float | None = None
    ) -> Pipeline:
        """Packed values as the CF conventions have them: x * scale_factor + add_offset, NaN where x is `missing`."""
        return self._then("unpack", scale_factor=scale_factor, add_offset=add_offset, missing=missing)

    def fill_nan(self, value: float) -> Pipeline:
        """Put a number in place of NaN."""
        return self._then("fill_nan", value=value)

    def clip(self, min: float | None = None, max: float | None = None) -> Pipeline:
        """Limit values to min..max; at least one of them."""
        return self._then("clip", min=min, max=max)

    def map(self, expression: str) -> Pipeline:
        """An elementwise expression of `x`, such as `"log1p(x) / 2"`."""
        return self._then("map", expression=expression)

    def apply(self, function: str | Callable[..., Any], *, returns: Any = None, **parameters: Any) -> Pipeline:
        """A function of your own on each chunk: `(xp, block, **parameters)`, or `(torch, block, **parameters)`.

        function: the function, or its address `module:name`. returns: the dtype that comes out, where it cannot be asked.
        ConfigError for a function that has no address, such as a lambda."""
        address = function if isinstance(function, str) else address_of(function)
        return self._then("apply", function=address, returns=returns, **parameters)

    def exec(self, command: str | Sequence[str], **options: Any) -> Pipeline:
        """A program on each chunk, where workers were started with --allow-exec.

        options: format, via, returns, timeout_seconds, memory, program_version: see `gpuflow.steps.exec`."""
        return self._then("exec", command=command, **options)

    def where(self, condition: str, other: float | None = None) -> Pipeline:
        """Keep the values for which `condition`, an expression of `x`, holds; put `other`, or NaN, in place of all others."""
        return self._then("where", condition=condition, other=other)

    def mask(self, condition: str, other: float | None = None) -> Pipeline:
        """Put `other`, or NaN, in place of the values for which `condition`, an expression of `x`, holds."""
        return self._then("mask", condition=condition, other=other)

    def cast(self, dtype: Any, *, strict: bool | None = None) -> Pipeline:
        """Convert to a dtype, by name or as NumPy gives it. strict: a value that does not fit is an error."""
        return self._then("cast", dtype=dtype, strict=strict)

    def step(self, kind: str, **parameters: Any) -> Pipeline:
        """Any step by its name in YAML, such as one of an installed distribution."""
        return self._then(kind, **parameters)

    def to(
        self,
        dataset: str,
        *,
        compressor: str | None = None,
        chunks: str | Sequence[int] | Mapping[str, int] | None = None,
        shards: str | Sequence[int] | Mapping[str, int] | None = None,
    ) -> Pipeline:
        """Write to a new dataset. compressor: none, zstd (the default), gzip, blosc, lz4, or auto: the soonest to finish.

        chunks: auto (the default), whole, or the shape of the inner chunks that stored objects are cut into; shards: auto (the default),
        or the shape of the stored objects. Sizes by dimension too: {"time": 1}, where the other dimensions are whole."""
        return replace(self, output=_given(dataset=dataset, compressor=compressor, chunks=chunks, shards=shards))

    def in_place(self, *, snapshot: str | None = None) -> Pipeline:
        """Write over the source. snapshot: tag of a snapshot that is taken first."""
        return replace(self, output={"in_place": True, **_given(snapshot=snapshot)})

    def statistics(
        self,
        per: Any = None,
        *,
        over: Any = None,
        where: str | None = None,
        weights: str | None = None,
        quantiles: Sequence[float] | None = None,
        histogram: int | Mapping[str, Any] | None = None,
    ) -> Statistics:
        """Count, mean, std, min, max and sum of what the steps make, in place of an output; and what else is asked for.

        per: dimensions whose indices have their own; over: the other way round. where: an expression of `x`: only values for which it
        holds count. weights: an expression of coordinates, such as "cos(radians(lat))": how much values count. histogram: a number of bins,
        or {"bins": 100, "range": [0, 1]}."""
        return Statistics(
            self, _given(per=per, over=over, where=where, weights=weights, quantiles=quantiles, histogram=histogram)
        )

    def on(
        self,
        device: str | None = None,
        workers: int | None = None,
        *,
        memory: int | str | None = None,
        cache: int | str | None = None,
        on_error: str | None = None,
    ) -> Pipeline:
        """Where and how to run. device: auto, cpu, cuda or cuda:N. workers: worker processes per node. memory: of a worker, such as "2GiB".
        cache: of that, for decoded chunks that are read again; auto or off.
        on_error: continue with the other chunks, or stop. None: as it was."""
        given = _given(device=device, workers=workers, memory=memory, cache=cache, on_error=on_error)
        return replace(self, run={**(self.run or {}), **given})

    @property
    def _source(self) -> dict[str, Any]:
        return _given(dataset=self.source, arrays=self.arrays, **(self.part or {}))

    @property
    def spec(self) -> PipelineSpec:
        """The checked pipeline. ConfigError, listing everything, when it is incomplete or wrong."""
        data = {"source": self._source, "steps": self.steps}
        return from_dict(data | _given(output=self.output, run=self.run))

    @classmethod
    def from_spec(cls, spec: PipelineSpec) -> Pipeline:
        """The pipeline that has this spec."""
        data = spec.to_dict()
        steps = tuple({step.kind: step.to_record_value()} for step in spec.steps)
        output = data["output"] if isinstance(data["output"], dict) else {"dataset": data["output"]}
        part = {name: dict(parts) for name in ("isel", "sel") if (parts := getattr(spec.source, name))}
        return cls(spec.source.dataset, spec.source.arrays, steps, output, data.get("run"), part or None)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Pipeline:
        """Read a pipeline file. ConfigError with line and column for all that is wrong."""
        return cls.from_spec(load_pipeline(path))

    def to_yaml(self) -> str:
        """The pipeline as YAML text, in canonical form."""
        return dump_yaml(self.spec.to_dict())

    def _then(self, kind: str, **params: Any) -> Pipeline:
        return replace(self, steps=(*self.steps, {kind: _given(**params)}))


@dataclass(frozen=True)
class Statistics:
    """A pipeline that ends in statistics: see `Pipeline.statistics`. `gpuflow.run` gives a receipt with `results`."""

    of: Pipeline
    asked: Mapping[str, Any]

    @property
    def spec(self) -> StatisticsPipeline:
        """The checked pipeline. ConfigError, listing everything, when it is incomplete or wrong."""
        of = self.of
        data = {"source": of._source, "steps": of.steps, "statistics": dict(self.asked)}
        pipeline = any_from_dict(data | _given(output=of.output, run=of.run))
        assert isinstance(pipeline, StatisticsPipeline), pipeline
        return pipeline

    @classmethod
    def from_spec(cls, spec: StatisticsPipeline) -> Statistics:
        """The pipeline that has this spec."""
        return cls(replace(Pipeline.from_spec(spec.mapped), output=None), spec.statistics.to_value())

    def to_yaml(self) -> str:
        """The pipeline as YAML text, in canonical form."""
        return dump_yaml(self.spec.to_dict())


def _given(**values: Any) -> dict[str, Any]:
    """What was given; a None was not."""
    return {name: value for name, value in values.items() if value is not None}
