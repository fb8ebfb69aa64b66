"""Errors cross Dask's wire: each survives pickling, and the tree is the one that is documented."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from gpuflow import errors
from gpuflow.errors import GpuflowError

EXAMPLES: list[GpuflowError] = [
    errors.ConfigError([errors.Problem("wrong", "steps[0].low", 3, 7, "did you mean `low`?")], "a.yaml"),
    errors.NotFound("dataset", "x", ["a", "b"], "ingest it"),
    errors.NotFound("dataset", "x", [f"d{number}" for number in range(20)]),
    errors.NameTaken("x", "exists already"),
    errors.SourceError("/data/x.npy", "is empty", "give another"),
    errors.StoreError("/root", "the disk is full", "free some space"),
    errors.StoreError("/root", "the disk is full"),
    errors.ChunkCorrupt("x/data/c/0", "n1", "its file is missing"),
    errors.ChunkLost("x/data/c/0", ["n1", "n2"]),
    errors.ChunkLost("x/data/c/0"),
    errors.StaleChunk("x/data/c/0", 1, 2),
    errors.PlanTooLarge("t", (1, 512, 512), 2**20, "worker w", 8, 2**30, 2**29, 1, (1, 256, 512)),
    errors.StatisticsError("steps[1]", "the deviation is zero", "leave it out"),
    errors.RunFailed({"failures": [{"chunk": "c", "error": "e"}], "chunks": {"failed": 1, "total": 9}}),
    errors.ClusterError("no scheduler", "start one"),
    errors.DeviceUnavailable("no CUDA device", "use device: auto or cpu"),
    errors.DeviceFull("8 MiB", 2**20, 2**34),
    errors.CannotRepair("x", "its source has changed"),
    errors.ProgramFailed("denoise", "ended with status 3", "no such model\n"),
    errors.SourceChanged("x"),
    errors.DatasetChanged("x/data/c/0", 1, 2),
    errors.DatasetChanged("x/data/c/0", 1, None),
    errors.SampleError("x", 17, "the transform raised", "mend it"),
    errors.StateMismatch([("the seed", 1, 2), ("the dataset", "a", "b")]),
    GpuflowError("plain"),
]


def _tree(base: type[GpuflowError]) -> dict[str, str]:
    """{class: its parent} for the subclasses in errors.py."""
    found = {}
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            found |= {child.__name__: base.__name__, **_tree(child)}
    return found


def _documented_tree() -> dict[str, str]:
    found, ancestors = {}, {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"( +)(?:[|` -]*[|`]- )?([A-Z]\w+)( {2,}|$)", line)
        if match is None:
            continue
        column = match.start(2)
        ancestors[column] = match[2]
        parents = [name for place, name in ancestors.items() if place < column]
        if parents:
            found[match[2]] = ancestors[max(place for place in ancestors if place < column)]
    return found


def test_the_documented_tree_is_the_tree() -> None:
    assert _documented_tree() == _tree(GpuflowError)


def test_all_names_everything_public() -> None:
    own = {name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__}
    assert sorted(errors.__all__) == errors.__all__ == sorted(own)


def test_every_error_has_an_example() -> None:
    assert {type(example).__name__ for example in EXAMPLES} == {*_tree(GpuflowError), "GpuflowError"}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error: GpuflowError) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is type(error)
        assert str(again) == str(error) != ""
        state = {name: value for name, value in vars(again).items() if name != "problems"}
        assert state == {name: value for name, value in vars(error).items() if name != "problems"}


def test_a_problem_says_where_what_and_what_to_do() -> None:
    error = EXAMPLES[0]
    assert str(error) == "a.yaml:3:7: steps[0].low: wrong; did you mean `low`?"
    assert str(errors.ConfigError([errors.Problem("one"), errors.Problem("two", hint="do")])) == "one\ntwo; do"


def test_messages_are_sentences_with_a_remedy() -> None:
    texts = [str(example) for example in EXAMPLES]
    assert texts[1] == "no dataset 'x'; ingest it; there is: a, b"
    assert texts[2].endswith("d7, ...")
    assert texts[5] == "store root /root: the disk is full; free some space"
    assert "searched: n1, n2" in texts[8]
    assert "searched: no node" in texts[9]
    assert texts[10] == "chunk x/data/c/0 is at generation 2, not 1: another run changed it; run again"
    assert texts[13] == "1 of 9 chunks failed: c: e"


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.NotFound, LookupError),
        (errors.StoreError, OSError),
        (errors.ChunkLost, LookupError),
        (errors.PlanTooLarge, MemoryError),
        (errors.DeviceFull, MemoryError),
        (errors.StatisticsError, ArithmeticError),
        (errors.ClusterError, RuntimeError),
    ],
)
def test_callers_may_catch_the_builtin_kind(kind: type[GpuflowError], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)
