"""Chunks of a dataset that was put together from several sources, made on its nodes: those that are new, or those that were damaged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from gpuflow.cluster.messages import ChunkGroup
from gpuflow.datasets.growth import lengthened, unfinished
from gpuflow.datasets.placement import assign
from gpuflow.datasets.survey import Survey, survey
from gpuflow.errors import ClusterError
from gpuflow.execution.copies import keep_up
from gpuflow.execution.groups import by_holders
from gpuflow.execution.passes import Run
from gpuflow.execution.submit import Batch
from gpuflow.objectstore.growing import GrowJob, Piece
from gpuflow.objectstore.parts import Part, Recipes
from gpuflow.storage.record import DatasetRecord

Wanted = Mapping[str, Mapping[int, tuple[bytes, bytes]]]
"""By array and chunk: its recipe, and the digest of what it is made from."""


def new_chunks(record: DatasetRecord, axes: Mapping[str, int], length: int) -> dict[str, list[int]]:
    """By array, the chunks that hold anything behind `length`, up to which the dataset was there."""
    found = {}
    for path, axis in axes.items():
        after = record.becoming[path]
        found[path] = unfinished(lengthened(after, axis, length).grid, after.grid)
    return found


def wanted_recipes(
    record: DatasetRecord, axes: Mapping[str, int], parts: Sequence[Part], chunks: Mapping[str, Iterable[int]]
) -> Wanted:
    """Of `chunks` of a dataset that comes of `parts`."""
    found = {}
    for path, numbers in chunks.items():
        of = Recipes(path, record.becoming[path].grid, axes[path], parts).of
        found[path] = {chunk: of(chunk) for chunk in numbers}
    return found


def make_chunks(run: Run, axes: Mapping[str, int], pieces: Sequence[Piece], wanted: Wanted, base: int = 0) -> int:
    """Have the `wanted` chunks of the run's source made of `pieces`, in as many copies as it is to have. How many were there already.

    base: a generation that all of them are above."""
    job = GrowJob((run.source,), axes, tuple(pieces), wanted)
    work = _work(run, job, base, survey(run.connection, [run.source.name], wanted.__contains__))
    run.submit("append", work)
    keep_up(run, run.source, partial(_work, run, job, base))
    return sum(map(len, wanted.values())) - sum(len(batch.group.chunks) for batch in work)


def _work(run: Run, job: GrowJob, base: int, found: Survey) -> list[Batch]:
    """For the chunks that are not there, and have not failed. One that is there stays on its node."""
    failed = {failure.chunk for failure in run.outcome.tally.failures}
    workers = run.connection.nodes()
    if not workers:
        raise ClusterError(f"no node is there that could hold {run.source.name!r}", "run again when they are back")
    slots, work = {node: len(addresses) for node, addresses in workers.items()}, list[Batch]()
    record = run.source
    for path, recipes in job.recipes.items():
        metadata = record.becoming[path]
        table = found.table(record.name, path, metadata.grid.size)
        pending = [chunk for chunk, (wanted, _) in recipes.items() if table.rows["recipe"][chunk].tobytes() != wanted]
        pending = [chunk for chunk in pending if record.chunk_name(path, chunk) not in failed]
        if not pending:
            continue
        placed = assign(metadata.grid.size, list(workers))
        target = [min(table.holder_sets[chunk] & workers.keys(), default=placed[chunk]) for chunk in pending]
        newest, nbytes = table.rows["generation"], metadata.chunk_nbytes
        for node, chunks, _ in by_holders(pending, target, slots, sum(slots.values())):
            group = ChunkGroup(
                run=run.run_id,
                dataset=record.name,
                array=path,
                chunks=tuple(chunks),
                generations=tuple(newest[chunks].tolist()),
                newest=tuple(max(base, generation) for generation in newest[chunks].tolist()),
                nbytes=nbytes * len(chunks),
                work=nbytes * len(chunks),
                node=node,
                movable=False,
            )
            work.append(Batch(group, job, slots[node]))
    return work
