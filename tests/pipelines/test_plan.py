"""What a pipeline would do, without anything being there but metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuflow.datasets.catalog import ChunkTable, merge
from gpuflow.errors import ConfigError, NameTaken
from gpuflow.pipelines.fingerprint import recipe
from gpuflow.pipelines.pipeline import Pipeline
from gpuflow.pipelines.plan import ArrayPlan, Plan, make_plan, plan_chunks, steps_as_data, steps_from
from gpuflow.steps.base import Step
from gpuflow.storage.manifest import REPLICA_DTYPE, UNKNOWN
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.placing import written_recipe
from gpuflow.storage.record import DatasetRecord

DIMS = ("time", "y", "x")


def metadata(shape: tuple[int, ...] = (8, 6, 4), dtype: str = "float32", dims: tuple[str, ...] | None = None) -> ArrayMetadata:
    chunks = tuple(min(size, 4) for size in shape)
    return ArrayMetadata.create(shape, chunks, np.dtype(dtype), dims=dims or DIMS[: len(shape)], attributes={"units": "K"})


def text_array(shape: tuple[int, ...] = (8, 2)) -> ArrayMetadata:
    document = dict(metadata(shape, "uint8", DIMS[:2]).document)
    return ArrayMetadata({**document, "data_type": "string", "codecs": [{"name": "vlen-utf8"}]})


def dataset(**arrays: ArrayMetadata) -> DatasetRecord:
    return DatasetRecord(
        "d", state="ready", arrays={path: array.document for path, array in arrays.items()}, groups={"": {"a": 1}}
    )


FIELD = dataset(t=metadata(), u=metadata(dtype="int16"), time=metadata((8,), "int64"))


def plan(pipeline: Pipeline, source: DatasetRecord = FIELD, **options: Any) -> Plan:
    return make_plan(pipeline.spec, source, **options)


def refused(pipeline: Pipeline, source: DatasetRecord = FIELD) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan(pipeline, source)
    return str(caught.value).splitlines()


# -- which arrays ----------------------------------------------------------------------------------------------------------------


def processed(made: Plan) -> set[str]:
    return {array.path for array in made.arrays if array.steps}


@pytest.mark.parametrize(
    ("arrays", "source", "expected"),
    [
        (None, FIELD, {"t", "u"}),
        (None, dataset(a=metadata((8,)), b=metadata((3,))), {"a", "b"}),
        ("t", FIELD, {"t"}),
        (["t*"], FIELD, {"t", "time"}),
        (["u", "ti?e"], FIELD, {"u", "time"}),
        ("*", FIELD, {"t", "u", "time"}),
    ],
)
def test_selection(arrays: Any, source: DatasetRecord, expected: set[str]) -> None:
    made = plan(Pipeline("d", arrays).map("x + 1").to("e"), source)
    assert processed(made) == expected
    assert [array.path for array in made.arrays] == list(source.arrays), "the others are carried over"
    assert {array.path for array in made.arrays if array.carried} == set(source.arrays) - expected


def test_with_a_snapshot_it_is_the_same_pipeline() -> None:
    pipeline = Pipeline("d", "t").map("x * 2")
    with_one, without = plan(pipeline.in_place(snapshot="before")), plan(pipeline.in_place())
    assert with_one.declared == without.declared
    assert with_one.fingerprint() == without.fingerprint()


def test_in_place_leaves_the_others_out() -> None:
    made = plan(Pipeline("d", "t").map("x * 2").in_place())
    assert [array.path for array in made.arrays] == ["t"]
    assert made.target == "d"


def test_every_unknown_name_is_told() -> None:
    lines = refused(Pipeline("d", ["t", "wind", "q*"]).map("x").to("e"))
    assert lines == [
        "source.arrays: 'd' has no array 'wind'; it has t, time, u",
        "source.arrays: 'd' has no array 'q*'; it has t, time, u",
    ]


def test_a_dataset_without_arrays() -> None:
    assert refused(Pipeline("d").map("x").to("e"), dataset()) == ["source: dataset 'd' has no arrays"]


def test_arrays_that_are_no_numbers() -> None:
    source = dataset(t=metadata(), names=text_array())
    assert refused(Pipeline("d").map("x").to("e"), source) == [
        "source.arrays: arrays of data type 'string' cannot be processed; select others"
    ]
    made = plan(Pipeline("d", "t").map("x").to("e"), source)
    assert made.arrays[1].carried


# -- whether the steps fit -------------------------------------------------------------------------------------------------------


def test_all_problems_at_once() -> None:
    lines = refused(Pipeline("d").clip(0.5, 1).standardize("channel").to("e"))
    assert len(lines) == 2
    assert lines[0].startswith(
        "steps[1].standardize: cannot be applied to array 't': standardize: there is no dimension `channel`"
    )
    assert lines[1].startswith("steps[0].clip: cannot be applied to array 'u': clip: `min` 0.5 is not a whole number")


def test_in_place_must_keep_the_dtype() -> None:
    lines = refused(Pipeline("d").map("x / 2").cast("float64").in_place())
    assert [line.split(",")[0] for line in lines] == [
        "output.in_place: would turn array 't' from float32 into float64",
        "output.in_place: would turn array 'u' from int16 into float64",
    ]
    assert all("write to a new dataset, or end with a `cast`" in line for line in lines)
    assert plan(Pipeline("d").map("x / 2").cast("float32").in_place(), dataset(t=metadata())).arrays


def test_the_target_is_laid_out_like_the_source() -> None:
    made = plan(Pipeline("d").standardize("time").cast("float16").to("e", compressor="gzip"))
    first = made.arrays[0]
    assert (first.target.shape, first.target.grid.chunks, first.target.dims) == ((8, 6, 4), (4, 4, 4), DIMS)
    assert first.target.dtype == np.dtype("float16")
    assert first.target.attributes == {"units": "K"}
    assert first.target.document["codecs"][-1]["name"] == "gzip"
    record = made.output_record()
    assert (record.name, record.version, record.state) == ("e", 1, "writing")
    assert list(record.arrays) == list(FIELD.arrays)
    assert record.groups == FIELD.groups
    assert record.origin == {"kind": "pipeline", "source": "d", "declared": made.declared, "pipeline": made.spec.to_dict()}
    assert record.is_made_like({**record.origin, "pipeline": {}})
    assert not record.is_made_like({**record.origin, "source": "e"})


LARGE = dataset(
    t=ArrayMetadata.create((8, 256, 512), (4, 256, 512), np.dtype("f4"), dims=DIMS),
    u=ArrayMetadata.create((9, 512), (9, 512), np.dtype("f4")),
    label=ArrayMetadata.create((2**17,), (2**17,), np.dtype("i8")),
)


def stored(made: Plan) -> dict[str, Any]:
    """The inner chunks of the arrays of a plan; None for an array that is not sharded."""
    codecs = {array.path: array.target.document["codecs"][0] for array in made.arrays}
    return {path: codec["configuration"].get("chunk_shape") for path, codec in codecs.items()}


def test_new_arrays_are_cut_for_samples_and_carried_ones_are_not() -> None:
    made = plan(Pipeline("d").map("x + 1").cast("float16").to("e"), LARGE)
    assert stored(made) == {"t": [1, 256, 512], "u": None, "label": None}
    assert [array.target.grid.chunks for array in made.arrays] == [(4, 256, 512), (9, 512), (2**17,)]
    assert stored(plan(Pipeline("d").map("x + 1").cast("float64").to("e"), LARGE))["t"] == [1, 64, 512]
    assert stored(plan(Pipeline("d", "label").map("x + 1").to("e"), LARGE)) == {"t": None, "u": None, "label": [2**13]}
    assert stored(plan(Pipeline("d").map("x + 1").cast("float32").in_place(), LARGE))["t"] is None


def test_chunks_as_they_are_asked_for() -> None:
    pipeline = Pipeline("d", "t").map("x + 1")
    assert stored(plan(pipeline.to("e", chunks="whole"), LARGE))["t"] is None
    assert stored(plan(pipeline.to("e", chunks=[2, 128, 256]), LARGE))["t"] == [2, 128, 256]
    assert stored(plan(pipeline.to("e", chunks=(4, 256, 512)), LARGE))["t"] is None
    inner = (
        plan(pipeline.to("e", chunks=[1, 256, 512], compressor="lz4"), LARGE)
        .arrays[0]
        .target.document["codecs"][0]["configuration"]
    )
    assert [codec["name"] for codec in inner["codecs"]] == ["bytes", "numcodecs.lz4"]
    assert ([codec["name"] for codec in inner["index_codecs"]], inner["index_location"]) == (["bytes", "crc32c"], "end")


def test_chunks_that_do_not_fit_an_array_are_refused() -> None:
    pipeline = Pipeline("d").map("x + 1")
    assert refused(pipeline.to("e", chunks=[3, 256, 512]), LARGE) == [
        "output.chunks: [3, 256, 512] does not have as many dimensions as array 'u', [9, 512]; "
        "give a size for each dimension, or name them: {time: 1}; or name other arrays under `source`"
    ]
    assert refused(pipeline.to("e", chunks={"times": 3}), LARGE) == [
        "output.chunks: array 't' has no dimension `times`; its dimensions are `time`, `y`, `x`",
        "output.chunks: array 'u' has no dimension `times`; its dimensions have no names: give a list",
    ]
    assert refused(Pipeline("d", "t").to("e", chunks=[3, 256, 512], shards=[4, 256, 512]), LARGE) == [
        "output.chunks: [3, 256, 512] does not divide the stored objects of array 't', [4, 256, 512], as `shards` has them; "
        "give a divisor for each dimension, or leave `shards` out"
    ]


def test_another_stored_form_is_another_recipe() -> None:
    pipeline = Pipeline("d", "t").map("x + 1")
    made = [plan(pipeline.to("e", **options), LARGE) for options in ({}, {"chunks": "whole"}, {"compressor": "lz4"})]
    assert len({one.arrays[0].made_by(None) for one in made}) == 3
    assert len({one.declared for one in made}) == 3


def test_no_steps_recompress_or_carry() -> None:
    assert all(array.carried for array in plan(Pipeline("d").to("e")).arrays)
    made = plan(Pipeline("d").to("e", compressor="none"))
    assert [array.carried for array in made.arrays] == [False, False, True]


def test_steps_wait_for_statistics_in_turn() -> None:
    made = plan(Pipeline("d", "t").clip(0, 1).standardize().map("x * 2").standardize("time").to("e"))
    array = made.arrays[0]
    found = array.first_unresolved()
    assert found is not None
    assert (found[0], found[1].keep) == (2, ())
    resolved = Pipeline("d").standardize(mean=0, std=1).to("e").spec.steps[0]
    assert isinstance(resolved, Step)
    array = replace(array, flow=array.flow.with_step(2, resolved))
    found = array.first_unresolved()
    assert found is not None
    assert (found[0], found[1].keep) == (4, (0,))
    assert array.specs[3].dtype == np.dtype("float32")


def test_steps_come_back_from_a_record() -> None:
    steps = (
        plan(Pipeline("d", "t").standardize(["y", "time"], mean=[[1] * 6] * 8, std=2.5).clip(0).cast("int8").to("e"))
        .arrays[0]
        .steps
    )
    assert steps_from(steps_as_data(steps)) == steps
    record = DatasetRecord("d", transforms=({"steps": {"t": steps_as_data(steps)}},))
    assert steps_from(DatasetRecord.from_json(record.to_json()).transforms[0]["steps"]["t"]) == steps


# -- fingerprints ----------------------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_of_what_decides_the_bytes() -> None:
    base = plan(Pipeline("d", "t").map("x + 1").to("e"))
    same = [plan(Pipeline("d", "t").map("x + 1").to("other")), plan(Pipeline("d", "t*", ({"map": "x + 1"},), {"dataset": "e"}))]
    assert same[0].fingerprint() == base.fingerprint()
    assert same[1].fingerprint() != base.fingerprint(), "time is processed too"
    others = [
        plan(Pipeline("d", "t").map("x + 2").to("e")),
        plan(Pipeline("d", "t").map("x + 1").to("e", compressor="none")),
        plan(Pipeline("d", "t").map("x + 1").cast("float64").to("e")),
        replace(base, level=1),
    ]
    assert len({made.fingerprint() for made in (base, *others)}) == 5
    assert len({made.declared for made in (base, *others[:3], *same)}) == 6


# -- in place, again and on top --------------------------------------------------------------------------------------------------


def applied(source: DatasetRecord, made: Plan, **steps: tuple[Any, ...]) -> DatasetRecord:
    """The record as it is once `made` has begun; steps: as they were resolved."""
    data = {array.path: steps_as_data(steps.get(array.path, array.steps)) for array in made.arrays}
    transform: Mapping[str, Any] = {"declared": made.declared, "fingerprint": made.fingerprint(), "steps": data}
    return DatasetRecord.from_json(source.next(transforms=(*source.transforms, transform)).to_json())


SCALE = Pipeline("d", "t").standardize().in_place()
SHIFT = Pipeline("d", "t").map("x + 1").in_place()


def test_the_same_pipeline_resumes_with_the_numbers_of_the_first_time() -> None:
    first = plan(SCALE)
    assert (first.level, first.arrays[0].first_unresolved() is None) == (0, False)
    resolved = Pipeline("d").standardize(mean=280.5, std=12.25).to("e").spec.steps
    again = plan(SCALE, applied(FIELD, first, t=resolved))
    assert again.level == 0
    assert again.arrays[0].steps == resolved
    assert again.arrays[0].first_unresolved() is None


def test_another_pipeline_is_refused_or_stacked() -> None:
    changed = applied(FIELD, plan(SHIFT))
    with pytest.raises(NameTaken, match="already changed in place by another pipeline; --stack applies"):
        plan(Pipeline("d", "t").map("x + 2").in_place(), changed)
    with pytest.raises(NameTaken, match="--stack"):
        plan(Pipeline("d", ["t", "u"]).map("x + 1").in_place(), changed)
    stacked = plan(Pipeline("d", "t").map("x + 2").in_place(), changed, stack=True)
    assert stacked.level == 1
    twice = applied(changed, stacked)
    assert plan(Pipeline("d", "t").map("x + 2").in_place(), twice).level == 1, "the last one resumes"
    with pytest.raises(NameTaken):
        plan(SHIFT, twice)  # it is applied already, but below


def test_the_same_pipeline_on_top_of_itself_is_another_recipe() -> None:
    first = plan(SHIFT)
    second = plan(SHIFT, applied(FIELD, first), stack=True)
    assert (first.level, second.level) == (0, 1)
    assert second.arrays[0].made_by(second.level) != first.arrays[0].made_by(first.level)
    assert plan(SHIFT, stack=True).level == 0, "there is nothing to stack on yet"


def test_a_new_dataset_may_be_made_of_a_changed_one() -> None:
    assert plan(SHIFT.to("e"), applied(FIELD, plan(SCALE))).level is None


# -- chunk by chunk --------------------------------------------------------------------------------------------------------------

ROW = ArrayPlan.mapped("t", metadata((20,)), metadata((20,)))
CHUNKS = ROW.source.grid.size
WANTED, OTHER = "11" * 16, "22" * 16


def table(rows: dict[int, tuple[bytes, bytes, bytes]], generation: int = 1) -> ChunkTable:
    """rows: chunk -> (digest, recipe, inputs)."""
    data = [(chunk, generation, 10 * (chunk + 1), *fields) for chunk, fields in sorted(rows.items())]
    return merge({"n": np.array(data, dtype=REPLICA_DTYPE)}, CHUNKS)


def content(number: int) -> bytes:
    return bytes([number + 1]) * 16


inputs_of = st.dictionaries(st.integers(0, CHUNKS - 1), st.integers(0, 2))


@given(inputs_of, st.dictionaries(st.integers(0, CHUNKS - 1), st.tuples(st.sampled_from([WANTED, OTHER]), st.integers(0, 2))))
def test_a_new_dataset_skips_what_was_made_of_the_same_bytes(source: dict[int, int], target: dict[int, tuple[str, int]]) -> None:
    there = {
        chunk: (content(9), recipe(made_by, content(made_of)), content(made_of)) for chunk, (made_by, made_of) in target.items()
    }
    rows = {chunk: (content(value), bytes(16), bytes(16)) for chunk, value in source.items()}
    made = plan_chunks(ROW, WANTED, {"t": table(rows)}, table(there, generation=3))
    assert list(made.lost["t"]) == [chunk for chunk in range(CHUNKS) if chunk not in source]
    assert list(made.pending) == [chunk for chunk in sorted(source) if target.get(chunk) != (WANTED, source[chunk])]
    assert made.skipped == CHUNKS - len(made.unmade) - len(made.pending)
    assert list(made.newest) == [3 if chunk in target else 0 for chunk in range(CHUNKS)]
    assert made.pending_nbytes == sum(10 * (chunk + 1) for chunk in made.pending)


@given(st.dictionaries(st.integers(0, CHUNKS - 1), st.tuples(st.sampled_from([WANTED, OTHER, "ingest"]), st.integers(0, 2))))
def test_in_place_skips_what_is_applied(rows: dict[int, tuple[str, int]]) -> None:
    def fields(made_by: str, made_of: int) -> tuple[bytes, bytes, bytes]:
        if made_by == "ingest":
            return content(made_of), content(77), content(88)
        return content(made_of + 10), recipe(made_by, content(made_of)), content(made_of)

    made = plan_chunks(ROW, WANTED, {"t": table({chunk: fields(*row) for chunk, row in rows.items()}, generation=2)}, None)
    assert list(made.lost["t"]) == [chunk for chunk in range(CHUNKS) if chunk not in rows]
    assert list(made.pending) == [chunk for chunk in sorted(rows) if rows[chunk][0] != WANTED]
    assert list(made.newest) == [2 if chunk in rows else 0 for chunk in range(CHUNKS)]


@given(st.dictionaries(st.integers(0, CHUNKS - 1), st.sampled_from([WANTED, OTHER, "ingest", "written", "unknown"])))
def test_in_place_goes_on_only_from_what_came_before(rows: dict[int, str]) -> None:
    """An older generation is no start: its newer one is on a node that is away."""

    def fields(made_by: str) -> tuple[bytes, bytes, bytes]:
        written = written_recipe(content(5))
        named = {"ingest": content(77), "written": written, "unknown": UNKNOWN}
        return content(5), named.get(made_by) or recipe(made_by, content(4)), content(4)

    tables = {"t": table({chunk: fields(made_by) for chunk, made_by in rows.items()}, generation=2)}
    made = plan_chunks(ROW, WANTED, tables, None, below=OTHER)
    assert list(made.behind) == [chunk for chunk in sorted(rows) if rows[chunk] == "ingest"]
    assert list(made.lost["t"]) == [chunk for chunk in range(CHUNKS) if rows.get(chunk, "ingest") == "ingest"]
    assert made.unmade == made.lost["t"]
    assert list(made.pending) == [chunk for chunk in sorted(rows) if rows[chunk] in (OTHER, "written", "unknown")]
    assert plan_chunks(ROW, WANTED, tables, None).behind == (), "the first pipeline in place starts from whatever is there"


def test_a_damaged_chunk_is_made_again() -> None:
    done = (content(9), recipe(WANTED, content(1)), content(1))
    damaged = (content(9), bytes(16), content(1))  # as `mark_damaged` leaves it
    source = table({chunk: (content(1), bytes(16), bytes(16)) for chunk in range(CHUNKS)})
    there = table({chunk: damaged if chunk == 2 else done for chunk in range(CHUNKS)})
    assert plan_chunks(ROW, WANTED, {"t": source}, there).pending == (2,)
    assert plan_chunks(ROW, WANTED, {"t": there}, None).pending == (2,)


def test_an_array_without_chunks() -> None:
    nothing = ArrayMetadata.create((0,), (4,), np.dtype("u1"))
    made = plan_chunks(ArrayPlan.mapped("t", nothing, nothing), WANTED, {"t": merge({}, 0)}, merge({}, 0))
    assert (made.pending, made.lost["t"], made.skipped, made.pending_nbytes) == ((), (), 0, 0)
