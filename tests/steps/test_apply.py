"""A user's function: found, checked before it runs, and held to what a step has to do."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuflow.errors import ConfigError
from gpuflow.pipelines.load import from_dict, load_pipeline
from gpuflow.pipelines.pipeline import Pipeline
from gpuflow.pipelines.plan import steps_as_data, steps_from
from gpuflow.pipelines.spec import PipelineSpec
from gpuflow.steps.apply import Apply
from gpuflow.steps.base import ArraySpec, StepError
from gpuflow.steps.fuse import compile_steps
from tests.backends.samples import whole
from tests.steps import functions

HERE = "tests.steps.functions:"


def spec_of(block: np.ndarray) -> ArraySpec:
    return ArraySpec(block.shape, block.dtype, (None,) * block.ndim)


def applied(name: str, block: np.ndarray, **parameters: Any) -> np.ndarray:
    step = from_dict({"source": "a", "steps": [{"apply": {"function": HERE + name, **parameters}}], "output": "b"}).steps[0]
    kernel = compile_steps((step,), spec_of(block))
    assert not kernel.fused
    return kernel(block, whole(block))


def refused(**value: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        from_dict({"source": "a", "steps": [{"apply": value}], "output": "b"})
    return str(caught.value)


BLOCK = np.arange(12, dtype="f4").reshape(3, 4)


def test_it_gets_the_block_and_its_parameters() -> None:
    np.testing.assert_array_equal(applied("scale", BLOCK), BLOCK * 2)
    np.testing.assert_array_equal(applied("scale", BLOCK, factor=4, mode="down", shifts=[1, 2]), BLOCK / 4 + 3)
    np.testing.assert_array_equal(applied("needs", BLOCK, low=2, high=5), BLOCK.clip(2, 5))
    np.testing.assert_array_equal(applied("anything", BLOCK, a=1, b={"c": [1, 2]}), BLOCK + 2)
    np.testing.assert_array_equal(applied("with_torch", BLOCK[:, ::2], power=3), BLOCK[:, ::2] ** 3)
    assert applied("narrow", BLOCK).dtype == np.float16
    for shape in ((), (0, 3), (5,)):
        assert applied("scale", np.ones(shape, "f4")).shape == shape


def test_it_says_what_comes_out() -> None:
    step = Apply(function=HERE + "by_value", returns="float64")
    assert step.check(ArraySpec((3, 4), np.dtype("i4"), (None, None))).dtype == np.float64
    assert Apply(function=HERE + "narrow").check(spec_of(BLOCK)).dtype == np.float16


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("first", "returned shape [4] for a block of shape [3, 4]; a step keeps the shape of its chunk"),
        ("same", "returned a view of its input; return a new array, or block.copy()"),
        ("reverse", "returned a view of its input"),
        ("changes", "raised on a block of ones of shape [3, 4]: ValueError: output array is read-only"),
        ("nothing", "returned nothing; end it with `return ...`"),
        ("a_list", "returned a builtins.list; return a plain numpy array"),
        ("masked", "returned a numpy.ma.MaskedArray"),
        ("text", "gives <U32, which cannot be stored"),
        ("raises", "raised on a block of ones of shape [3, 4]: KeyError: 'no such thing'; mend it, or say what comes out"),
        ("tensor_view", "returned a view of its input; return a new tensor"),
        ("tensor_bfloat", "returned torch.bfloat16, which cannot be stored; return it with .float()"),
        ("not_a_tensor", "returned a ndarray and not a tensor"),
        ("tensor_meta", "returned a tensor on meta; return it with .cpu()"),
        ("tensor_from_numpy", "returned a torch.Tensor; name the first parameter torch, and the block is a tensor"),
        ("device_array", "returned an array on another device"),
    ],
)
def test_what_it_may_not_do_is_found_before_it_runs(name: str, message: str) -> None:
    with pytest.raises(StepError) as caught:
        Apply(function=HERE + name).check(spec_of(BLOCK))
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_steps_before_and_behind_it_are_one_pass_each() -> None:
    steps = [{"clip": [1, 9]}, {"map": "x * 2"}, {"apply": HERE + "narrow"}, {"map": "x + 1"}, {"clip": [0, 9]}]
    chain = from_dict({"source": "a", "steps": steps, "output": "b"}).steps
    kernel = compile_steps(chain, spec_of(BLOCK))
    assert kernel.describe() == (
        "clip, map: one pass; then apply: one after the other (only apply itself knows what it computes); then map, clip: one pass"
    )
    out = np.empty(BLOCK.shape, "float16")
    assert kernel(BLOCK, whole(BLOCK), out) is out
    np.testing.assert_array_equal(out, ((BLOCK.clip(1, 9) * 2).astype("f2") + 1).clip(0, 9))


def test_a_gradient_is_left_behind() -> None:
    np.testing.assert_array_equal(applied("tensor_gradient", BLOCK), BLOCK * 2)


def test_another_dtype_for_some_chunk_is_an_error_there() -> None:
    with pytest.raises(StepError, match=r"returned float64 and not float32; return block.astype\('float32'\)"):
        applied("by_value", np.full((3, 4), 7, "i4"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"function": "functions"}, "steps[0].apply.function: must be the address of a function, not the text 'functions'; write it as"),
        ({"function": 3}, "must be the address of a function, not the number 3"),
        ({}, "steps[0].apply: `function` is missing"),
        ({"function": "no_such_module_here:f"}, "there is no module `no_such_module_here`; put no_such_module_here.py beside"),
        ({"function": HERE + "scael"}, "`tests.steps.functions` has no function `scael`; did you mean `scale`?"),
        ({"function": HERE + "NUMBER"}, "is a int and not a function"),
        ({"function": HERE + "no_block"}, "cannot be called on a chunk: its parameters are (array); write it as (xp, block"),
        ({"function": HERE + "named_otherwise"}, "its parameters are (block, xp)"),
        ({"function": HERE + "taken"}, "has a parameter `returns`, which is a key of `apply` itself"),
        ({"function": HERE + "array_parameter"}, "the annotations of `tests.steps.functions:array_parameter` cannot be read: NameError"),
        ({"function": HERE + "scale", "facto": 3}, "`tests.steps.functions:scale` has no parameter `facto`; did you mean `factor`?"),
        ({"function": HERE + "scale", "factor": "2"}, "steps[0].apply.factor: must be a valid number, not the text '2'"),
        ({"function": HERE + "scale", "mode": "sideways"}, "steps[0].apply.mode: must be 'up' or 'down', not the text 'sideways'"),
        ({"function": HERE + "scale", "shifts": [1, "a"]}, "steps[0].apply.shifts: [1] must be a valid integer, not the text 'a'"),
        ({"function": HERE + "needs", "low": 1}, "steps[0].apply: `high` is missing; `tests.steps.functions:needs` needs it"),
        ({"function": HERE + "narrow", "x": 1}, "has no parameter `x`; it has none"),
        ({"function": HERE + "untyped", "values": {1, 2}}, "steps[0].apply.values: must be plain data, not a list"),
        ({"function": HERE + "scale", "returns": "floot16"}, "steps[0].apply.returns: unknown dtype `floot16`; did you mean `float16`"),
        ({"function": "sys:exit"}, "there is no module `sys`"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_by_the_file(value: dict[str, Any], message: str) -> None:
    assert message in refused(**value)


def test_all_that_is_wrong_with_its_parameters_comes_at_once() -> None:
    lines = refused(function=HERE + "needs", low="a", hihg=3).splitlines()
    assert len(lines) == 3


def test_it_goes_where_it_is_needed_and_is_the_same_there() -> None:
    spec = Pipeline("a").apply(HERE + "scale", factor=3).apply(HERE + "narrow", returns="float16").to("b").spec
    assert spec.to_dict()["steps"][0] == {"apply": {"function": HERE + "scale", "factor": 3}}
    assert from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert steps_from(json.loads(json.dumps(steps_as_data(spec.steps)))) == spec.steps
    assert Pipeline.from_spec(spec).spec == spec
    assert Pipeline("a").apply(functions.scale, factor=3).apply(functions.narrow, returns=np.float16).to("b").spec == spec
    with pytest.raises(ConfigError, match=r"`.*lambda.*` cannot be found by its module and name; define it at the top"):
        Pipeline("a").apply(lambda xp, block: block)


# -- modules beside the file -----------------------------------------------------------------------------------------------------


def written(folder: Path, **modules: str) -> Path:
    """A pipeline that applies `mine:work`, with modules beside it."""
    folder.mkdir(exist_ok=True)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    path = folder / "p.yaml"
    path.write_text("source: a\nsteps:\n  - apply: {function: 'mine:work', by: 3}\noutput: b\n")
    return path


MINE = """\
    from dataclasses import dataclass
    import helper_of_mine

    @dataclass
    class Factor:
        value: "int"

    def work(xp, block, by: int):
        from helper_of_mine import OFFSET
        return helper_of_mine.times(block, Factor(by).value) + OFFSET
    """
HELPER = """\
    OFFSET = 1

    def times(block, factor):
        if factor > 100:
            raise OverflowError(f"{factor} is too much")
        return block * factor
    """


def computed(spec: PipelineSpec) -> float:
    return float(compile_steps(spec.steps, spec_of(BLOCK))(BLOCK, whole(BLOCK))[0, 1])


def test_they_go_along_with_what_they_import(tmp_path: Path) -> None:
    spec = load_pipeline(written(tmp_path / "one", mine=MINE, helper_of_mine=HELPER, not_needed="raise SystemExit"))
    step = spec.steps[0]
    assert isinstance(step, Apply)
    assert [name for name, _ in step.texts] == ["mine", "helper_of_mine"]
    assert computed(spec) == 4
    assert "mine" not in sys.modules
    # elsewhere, where there are no such files
    code = "import pickle, sys; import numpy as np; step = pickle.loads(bytes.fromhex(sys.argv[1]));"
    code += "print(step.compute(np, np.ones(2, 'f4'), None, ())[0]) if False else print(step._call(np.ones(2, 'f4'))[0])"
    done = subprocess.run(
        [sys.executable, "-c", code, pickle.dumps(step).hex()], cwd="/", capture_output=True, text=True, check=True
    )
    assert done.stdout == "4.0\n"


def test_an_edited_function_is_another_one(tmp_path: Path) -> None:
    first = load_pipeline(written(tmp_path / "one", mine=MINE, helper_of_mine=HELPER))
    second = load_pipeline(written(tmp_path / "one", mine=MINE, helper_of_mine=HELPER.replace("OFFSET = 1", "OFFSET = 10")))
    assert (computed(first), computed(second), computed(first)) == (4, 13, 4)
    assert first.to_dict() == second.to_dict()
    assert steps_as_data(first.steps) != steps_as_data(second.steps)


def test_the_traceback_has_its_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "one", mine=MINE, helper_of_mine=HELPER)
    path.write_text(path.read_text().replace("3", "300").replace("by:", "returns: float32, by:"))
    with pytest.raises(OverflowError) as caught:
        computed(load_pipeline(path))
    shown = "".join(traceback.format_exception(caught.value))
    assert 'helper_of_mine.py", line 5, in times' in shown
    assert 'raise OverflowError(f"{factor} is too much")' in shown


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            {"mine": "def work(xp, block, by)\n    pass\n"},
            "steps[0].apply.function: mine.py is not Python: line 1: expected ':'",
        ),
        (
            {"mine": "import no_such_thing_here\n"},
            "`mine` cannot be loaded: mine.py, line 1: ModuleNotFoundError: No module named",
        ),
        (
            {"mine": "import other\n", "other": "x = 1\ny = 1 / 0\n"},
            "cannot be loaded: other.py, line 2: ZeroDivisionError",
        ),
        ({"mine": "raise SystemExit(3)\n"}, "cannot be loaded: mine.py, line 1: SystemExit: 3"),
        ({"mine": "def wrok(xp, block, by): ...\n"}, "`mine` has no function `work`; did you mean `wrok`?"),
        ({"mien": "def work(xp, block, by): ...\n"}, "there is no module `mine`; did you mean `mien`?"),
        (
            {"mine": "x = '" + "a" * 2**20 + "'\ndef work(xp, block, by): ...\n"},
            "is larger than 1 MiB; install it on the workers",
        ),
        (
            {"mine": "def work(xp, block, by: str): ...\n"},
            "p.yaml:3:40: steps[0].apply.by: must be a valid string, not the number 3",
        ),
    ],
)
def test_what_is_wrong_with_them_is_said_with_its_line(tmp_path: Path, modules: dict[str, str], message: str) -> None:
    path = written(tmp_path / "one", **modules)
    with pytest.raises(ConfigError) as caught:
        load_pipeline(path)
    assert message in str(caught.value)


def test_an_installed_module_of_another_version_is_refused() -> None:
    step = Apply(function=HERE + "scale")
    other = Apply.model_validate({"function": HERE + "scale", "digest": step.digest})
    assert other == step
    with pytest.raises(ValueError, match="here is another than the one that the run was planned with; install the same version"):
        Apply.model_validate({"function": HERE + "scale", "digest": "0" * 32})
