"""Whether a run keeps decoded chunks in its workers' memory, and how many bytes of them.

`auto` takes what is there, and keeps more where a run reads its source more than once and decoding is what costs, in what its plan leaves
of the workers' memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from gpuflow.datasets.survey import Survey
from gpuflow.errors import ConfigError, Problem
from gpuflow.execution import statistics
from gpuflow.pipelines.memory import Caching, Prediction, is_raw
from gpuflow.pipelines.plan import Plan
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord
from gpuflow.units import format_nbytes

_LEAST_NBYTES = 2**20
_TO_SPILLING = 0.7 / 0.8
"""Of what a worker may use before Dask pauses it: where Dask begins to spill, and the tier to give back (distributed.worker.memory)."""
_AUTO = 0.9
"""Of what is left, that auto takes: what the prediction does not know is noise beside that."""


def caching(
    found: Survey, plan: Plan, prediction: Prediction | None, begun: DatasetRecord | None = None, *, again: int | None = None
) -> Caching:
    """What `run.cache` comes to. prediction: of the plan without it. begun, again: as for `again_nbytes`, and what that says, where it is
    known. ConfigError when the workers have not so much memory left."""
    wanted = plan.spec.run.cache
    if prediction is None:
        return Caching()
    spare = int(prediction.worker.nbytes * _TO_SPILLING) - prediction.need_nbytes
    if isinstance(wanted, int):
        if wanted > spare:
            raise _too_much(wanted, max(0, spare), prediction)
        return Caching(wanted, takes=True, fills=True, adds_nbytes=wanted)
    keeps = int(max(0, spare) * _AUTO)
    if wanted == "off":
        return Caching(keeps)
    adds = min(keeps, again_nbytes(found, plan, begun) if again is None else again)
    return Caching(keeps, takes=True, fills=adds > 0, adds_nbytes=adds)


def again_nbytes(found: Survey, plan: Plan, begun: DatasetRecord | None = None) -> int:
    """Decoded bytes of the arrays that have to be decoded by more than one pass: for statistics that their own steps wait for, or for
    several outputs. begun: as for `statistics.look_up`."""
    _, missing = statistics.look_up(found, plan, begun=begun)
    passes = Counter(path for array, *_ in missing for path in array.flow.paths)
    passes.update(path for array in plan.arrays if not array.carried for path in array.flow.paths)
    return decoded_nbytes(plan.source.array(path) for path, count in passes.items() if count > 1)


def decoded_nbytes(arrays: Iterable[ArrayMetadata]) -> int:
    """Of those that do not lie in the files as they are in memory."""
    return sum(array.grid.size * array.chunk_nbytes for array in arrays if not is_raw(array))


def _too_much(wanted: int, spare: int, prediction: Prediction) -> ConfigError:
    reason = f"{format_nbytes(wanted)} of decoded chunks do not fit: the plan leaves {format_nbytes(spare)} of {prediction.worker.name}"
    hint = (
        f"write at most {spare // 2**20}MiB, or auto" if spare >= _LEAST_NBYTES else "write off, or give the workers more memory"
    )
    return ConfigError([Problem(reason, "run.cache", hint=hint)])
