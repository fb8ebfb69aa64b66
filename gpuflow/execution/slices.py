"""The part of the source that a pipeline reads, from labels to indices (see `gpuflow.pipelines.slices`); and the coordinates for that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gpuflow.datasets import catalog
from gpuflow.datasets.catalog import Nodes
from gpuflow.datasets.survey import Survey
from gpuflow.datasets.values import array_values
from gpuflow.errors import ConfigError, Problem
from gpuflow.pipelines.plan import select
from gpuflow.pipelines.slices import coordinate_of, found_range, lengths
from gpuflow.pipelines.spec import PipelineSpec, SourceSpec
from gpuflow.steps.axes import ByAxis
from gpuflow.steps.base import StepError
from gpuflow.storage.record import DatasetRecord


def with_coordinates(nodes: Nodes, found: Survey, source: SourceSpec, further: Iterable[str] = ()) -> Survey:
    """With the values of the coordinates that `source` names labels of, as far as they are there; and of the arrays `further`."""
    record = catalog.live(found.records).get(source.dataset)
    if record is None:
        return found
    labelled = [path for dim in source.sel if (path := coordinate_of(record, str(dim))) is not None]
    paths = {*labelled, *further}
    return found if not paths else replace(found, coordinates={path: array_values(nodes, record, path) for path in paths})


def by_index(found: Survey, spec: PipelineSpec, record: DatasetRecord) -> PipelineSpec:
    """The same pipeline, without labels. ConfigError for all that cannot be found."""
    if not spec.source.sel:
        return spec
    parts, problems = dict(spec.source.isel), []
    sizes = lengths(record, sorted(select(spec, record)), [str(dim) for dim in spec.source.sel], "sel")
    for dim, size in sizes.items():
        path, where = coordinate_of(record, dim), f"source.sel.{dim}"
        if path is None or len(found.coordinates[path]) != size:
            problems.append(Problem(f"there is no coordinate `{dim}` with {size} values", where, hint="use isel, by index"))
            continue
        try:
            parts[dim] = found_range(dim, spec.source.sel[dim], found.coordinates[path], record.array(path).attributes)
        except StepError as error:
            problems.append(Problem(error.message, where, hint=error.hint))
    if problems:
        raise ConfigError(problems)
    source = spec.source.model_copy(update={"isel": ByAxis(parts), "sel": ByAxis()})
    return spec.model_copy(update={"source": source})
