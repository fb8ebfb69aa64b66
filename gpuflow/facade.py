"""The few functions that `import gpuflow` offers; each takes a connection, or starts an embedded cluster for the call."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpuflow.cluster.connection import Connection, connect
from gpuflow.display.progress import shown
from gpuflow.display.run_card import ReceiptCard
from gpuflow.errors import ConfigError, Problem
from gpuflow.execution.calibrate import calibrate_nodes, calibration_data
from gpuflow.execution.devices import choose_here
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.run import raise_for
from gpuflow.execution.submit import Progress
from gpuflow.execution.summary import run_statistics
from gpuflow.objectstore.append import append_sources
from gpuflow.objectstore.healing import run_and_heal
from gpuflow.objectstore.ingest import ingest_source
from gpuflow.objectstore.sources import open_source
from gpuflow.pipelines.load import load_any, writing
from gpuflow.pipelines.pipeline import Pipeline, Statistics
from gpuflow.pipelines.spec import PipelineSpec
from gpuflow.pipelines.statistics import AnyPipeline, StatisticsPipeline
from gpuflow.settings import scheduler_address
from gpuflow.triggers.chains import in_order
from gpuflow.triggers.functions import handlers_of
from gpuflow.triggers.watching import Watching

AnyForm = Pipeline | Statistics | PipelineSpec | StatisticsPipeline | str | os.PathLike[str]
"""A pipeline, or the path of its YAML file."""


@contextmanager
def _connected(connection: Connection | None, **options: Any) -> Iterator[Connection]:
    if connection is not None:
        yield connection
    else:
        with connect(**options) as own:
            yield own


def ingest(
    source: str | os.PathLike[str],
    name: str,
    *,
    connection: Connection | None = None,
    link: bool = False,
    append: bool = False,
    axis: str | int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Receipt:
    """Make dataset `name` of a Zarr (path or URL), a `.npy` file or a directory of images. Options: see `objectstore.open_source`.

    append: put it behind what the dataset holds, along `axis`: a name, or a number; by default the first axis of the largest arrays.
    RunFailed when chunks could not be read; calling it again continues."""
    opened = open_source(source, **options)
    if append and link:
        raise ConfigError([Problem("what is appended cannot be linked: its slices become parts of other chunks", "link")])
    with _connected(connection) as cluster, shown(progress, f"ingest of {name}") as bar:
        if append:
            return ReceiptCard.of(raise_for(append_sources(cluster, [opened], name, axis=axis, progress=bar)))
        return ReceiptCard.of(raise_for(ingest_source(cluster, opened, name, link=link, progress=bar)))


def run(
    pipeline: AnyForm,
    *,
    connection: Connection | None = None,
    stack: bool = False,
    allow_exec: bool = False,
    progress: Progress | None = None,
) -> Receipt:
    """Run a pipeline, given as such or as the path of its YAML file, and return the receipt.

    RunFailed when chunks failed, with the receipt; the others are done, and calling it again does only what is missing. stack: apply an
    in-place pipeline on top of another. allow_exec: `exec` steps may run programs on the embedded cluster of the call."""
    spec = as_any(pipeline)
    if connection is None and scheduler_address() is None:
        choose_here(spec)
    connected = _connected(connection, device=spec.run.device, workers=spec.run.workers, allow_exec=allow_exec)
    with connected as cluster, shown(progress, _title(spec)) as bar:
        if isinstance(spec, StatisticsPipeline):
            return ReceiptCard.of(raise_for(run_statistics(cluster, spec, progress=bar)))
        return ReceiptCard.of(raise_for(run_and_heal(cluster, spec, stack=stack, progress=bar)))


def _title(spec: AnyPipeline) -> str:
    """Of a run that is under way."""
    if isinstance(spec, StatisticsPipeline):
        return f"{spec.source.dataset} -> statistics"
    return f"{spec.source.dataset} -> {spec.output.dataset or spec.source.dataset}"


def watch(
    *pipelines: Pipeline | PipelineSpec | str | os.PathLike[str],
    functions: Sequence[Callable[..., Any]] = (),
    once: bool = False,
    refit: bool = False,
    at_once: int = 2,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = print,
    connection: Connection | None = None,
) -> bool:
    """Run pipelines on what changes in their sources, and on nothing else, until `stop` is set, or interrupted; in a notebook, in a thread.

    once: deal with what has changed by now, and return. functions: those with `@gpuflow.on` to be called beside; not with `once`. refit:
    after an edit, make all of the outputs again. at_once: so many pipelines run at a time. say: takes what is to be told.

    Whether nothing is left to do; without `once`, whether no pipeline had to be given up. ConfigError for pipelines that cannot be watched
    together; with `once`, NameTaken for one that is watched already."""
    named = {_name(one, number): (one, as_spec(one)) for number, one in enumerate(pipelines, 1)}
    given = {name: Path(one) for name, (one, _) in named.items() if isinstance(one, str | os.PathLike)}
    ordered = [(given.get(name), spec) for name, spec in in_order([(name, spec) for name, (_, spec) in named.items()])]
    if not ordered and not functions:
        raise ConfigError([Problem("there is nothing to watch", hint="give pipelines")])
    watching = Watching(ordered, lambda: _connected(connection), say, at_once, handlers_of(functions), stop or threading.Event())
    if once:
        return watching.once(refit)
    watching.forever(refit)
    return not watching.failed


def _name(pipeline: object, number: int) -> str:
    return os.fspath(pipeline) if isinstance(pipeline, str | os.PathLike) else f"pipeline {number}"


def calibrate(*, connection: Connection | None = None) -> dict[str, Any]:
    """Measure the limits of every node: disk, memory, codecs, fsync. They are kept with the node; the result is by node id, in the units
    that its keys name.

    StoreError when a root has no room for the temporary files."""
    with _connected(connection) as cluster:
        return calibration_data(calibrate_nodes(cluster))


def as_any(pipeline: AnyForm) -> AnyPipeline:
    """The spec of a pipeline in whatever form. ConfigError when it is wrong."""
    if isinstance(pipeline, PipelineSpec | StatisticsPipeline):
        return pipeline
    return pipeline.spec if isinstance(pipeline, Pipeline | Statistics) else load_any(Path(pipeline))


def as_spec(pipeline: AnyForm) -> PipelineSpec:
    """The same of one that writes a dataset. ConfigError when it computes statistics."""
    return writing(as_any(pipeline))
