"""How much memory a plan needs: which buffers a chunk passes through, and what is said when a worker has less."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from gpuflow.datasets.sizes import StoredSizes
from gpuflow.errors import PlanTooLarge
from gpuflow.pipelines.memory import PROCESS_NBYTES, WorkerRoom, check, need_to_map, need_to_read, predict
from gpuflow.pipelines.pipeline import Pipeline
from gpuflow.pipelines.plan import ArrayPlan, make_plan
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord

MIB = 2**20


def array_plan(pipeline: Pipeline, shape: tuple[int, ...] = (4, 512, 512), compressor: str = "none", **options: Any) -> ArrayPlan:
    """Of a float32 array in chunks of 1 MiB."""
    metadata = ArrayMetadata.create(shape, (1, 512, 512), np.dtype("float32"), compressor=compressor)
    source = DatasetRecord("d", state="ready", arrays={"t": metadata.document})
    return make_plan(pipeline.spec, source, **options).arrays[0]


FULL = StoredSizes(4, 0, 4 * MIB, MIB)
RAW: dict[str, Any] = {"compressor": "none", "chunks": "whole"}


@pytest.mark.parametrize(
    ("pipeline", "options", "stored", "mib"),
    [
        (Pipeline("d").map("x + 1").to("e", **RAW), {}, FULL, 2.0),  # stored, computed
        (Pipeline("d").map("x + 1").to("e", **RAW), {}, StoredSizes(4, 1, 4 * MIB, MIB), 3.0),  # a chunk of fill value is made
        (Pipeline("d").map("x + 1").cast("float16").to("e", **RAW), {}, FULL, 2.0),
        (Pipeline("d").map("x + 1").to("e", **RAW), {"compressor": "zstd"}, StoredSizes(4, 0, MIB, MIB // 4), 2.25),
        (Pipeline("d").map("x + 1").to("e", **RAW), {"shape": (4, 500, 500)}, FULL, 3.0),  # ragged: padded
        (Pipeline("d").map("x + 1").to("e", chunks="whole"), {}, FULL, 3.01),  # encoded
        (Pipeline("d").map("x + 1").to("e"), {}, FULL, 3.01),
        (Pipeline("d").to("e", chunks="whole"), {"compressor": "zstd"}, StoredSizes(4, 0, MIB, MIB // 4), 0.25),  # carried
        (Pipeline("d").standardize().to("e", **RAW), {}, FULL, 2.0),
    ],
)
def test_a_slot(pipeline: Pipeline, options: dict[str, Any], stored: StoredSizes, mib: float) -> None:
    assert need_to_map(array_plan(pipeline, **options), stored).slot_nbytes == pytest.approx(mib * MIB, rel=1e-3)


def test_reading_alone() -> None:
    source = array_plan(Pipeline("d").map("x + 1").to("e"), compressor="zstd").source
    assert need_to_read("t", source, FULL).slot_nbytes == 2 * MIB
    assert need_to_read("t", source, StoredSizes(0, 4, 0, 0)).slot_nbytes == MIB


NEED = need_to_map(array_plan(Pipeline("d").map("x + 1").to("e", **RAW)), FULL)


def test_threads_and_peers() -> None:
    one = predict([NEED], [WorkerRoom("w", 3, 10**9)])
    assert one is not None
    assert one.need_nbytes == PROCESS_NBYTES + 3 * 2 * MIB
    few = predict([NEED], [WorkerRoom("w", 64, 10**9)])
    assert few is not None
    assert few.need_nbytes == PROCESS_NBYTES + 4 * 2 * MIB, "there are but four chunks"
    two = predict([NEED], [WorkerRoom("w", 3, 10**9, node="a"), WorkerRoom("v", 3, 10**8, node="b")])
    assert two is not None
    assert two.worker.name == "v"
    assert two.need_nbytes > one.need_nbytes
    same = predict([NEED], [WorkerRoom("w", 3, 10**9, node="a"), WorkerRoom("v", 3, 10**8, node="a")])
    assert same is not None
    assert same.need_nbytes == one.need_nbytes, "workers of one node ask each other for nothing"
    assert predict([], [WorkerRoom("w", 3, 1)]) is None


def refused(room: WorkerRoom) -> PlanTooLarge:
    with pytest.raises(PlanTooLarge) as caught:
        check([NEED], [room])
    return caught.value


def test_too_large_says_what_would_fit() -> None:
    error = refused(WorkerRoom("worker w", 8, PROCESS_NBYTES + 5 * MIB))
    assert (error.fitting_threads, error.fitting_chunks) == (2, (1, 256, 256))
    assert str(error) == (
        "array 't': a chunk of 1 x 512 x 512 is 1.0 MiB; worker w with 8 threads needs 288.0 MiB and may use 285.0 MiB; "
        "workers of at most 2 threads or chunks of 1 x 256 x 256 would fit"
    )
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_too_large_for_one_thread() -> None:
    error = refused(WorkerRoom("w", 1, PROCESS_NBYTES + MIB))
    assert (error.fitting_threads, error.fitting_chunks) == (0, (1, 256, 512))
    assert "chunks of 1 x 256 x 512 would fit" in str(error)


def test_too_large_for_anything() -> None:
    assert "nothing smaller would fit" in str(refused(WorkerRoom("w", 1, PROCESS_NBYTES - 1)))


@pytest.mark.parametrize("spare", [0, 1])
def test_exactly_enough(spare: int) -> None:
    room = WorkerRoom("w", 1, PROCESS_NBYTES + 2 * MIB + spare)
    assert check([NEED], [room]) is not None


def test_a_device_has_the_chunk_stored_decoded_twice_and_computed() -> None:
    assert NEED.device_nbytes == 4 * MIB
    assert need_to_map(array_plan(Pipeline("d").to("e", chunks="whole"), compressor="zstd"), FULL).device_nbytes == 0, "carried"
    for threads, room, used in [(3, 100, 12), (8, 100, 16), (3, 9, 8), (3, 0, 0)]:  # of four chunks, and what there is room for
        found = check([NEED], [WorkerRoom("w", threads, 10**9, room * MIB)])
        assert found is not None
        assert found.device_nbytes == used * MIB


def test_a_chunk_larger_than_a_device() -> None:
    error = refused(WorkerRoom("worker w", 8, 10**9, 3 * MIB))
    assert str(error) == (
        "array 't': a chunk of 1 x 512 x 512 is 1.0 MiB; the device of worker w with 1 thread needs 4.0 MiB and may use 3.0 MiB; "
        "chunks of 1 x 256 x 512 would fit"
    )
