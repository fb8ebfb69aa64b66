"""The expression language: what NumPy would say, and nothing that Python would do."""

from __future__ import annotations

import pickle
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gpuflow.steps.base import ArraySpec, StepError
from gpuflow.steps.expression import CONSTANTS, FUNCTIONS, MAX_LENGTH, parse
from gpuflow.steps.map import Map
from tests.backends.samples import whole

from .contract import StepContract


class TestContract(StepContract):
    steps = tuple(
        Map(expression=text)
        for text in (
            "x",
            "+x",
            "x * 2.5",
            "(x > 0) & (x < 3)",
            "where(x > 1, x, 0)",
            "abs(x)",
            "log1p(abs(x)) / 2",
            "~x",
            "x ** 2",
            "x % 3",
        )
    )


@pytest.mark.parametrize(
    ("text", "dtype", "expected"),
    [
        ("x * 2.5", "f4", "f4"),
        ("x * 2.5", "f2", "f2"),
        ("x * 2", "i1", "i1"),
        ("x * 2.5", "u1", "f8"),
        ("x * pi + sqrt(2)", "f4", "f4"),
        ("x * (9 ** 9)", "f4", "f4"),
        ("minimum(x, 3 * 2)", "u1", "u1"),
        ("where(x > 0, x, 0)", "f4", "f4"),
        ("x > 0", "f4", "?"),
        ("(x > 0) & (x < 1)", "f4", "?"),
        ("x / 2", "u1", "f8"),
        ("x // 2", "u1", "u1"),
        ("x ** -1.0", "i4", "f8"),
        ("abs(x)", "c8", "f4"),
        ("isnan(x)", "f8", "?"),
        ("x > 300", "u1", "?"),
    ],
)
def test_dtypes_follow_numpy_2(text: str, dtype: str, expected: str) -> None:
    assert parse(text).dtype_of(np.dtype(dtype)) == np.dtype(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the expression is empty"),
        ("   ", "the expression is empty"),
        ("1 + 2", "does not use x"),
        ("pi", "does not use x"),
        ("x.real", "a dot after a name is not allowed (column 1)"),
        ("np.sqrt(x)", "without a module, as in sqrt(x)"),
        ("x.__class__.__bases__[0]", "not allowed (column 1)"),
        ("1 + x[0]", "indexing with [ ] is not allowed (column 5)"),
        ("(lambda: x)()", "lambda is not allowed"),
        ("[x for x in x]", "comprehensions are not allowed"),
        ("{x}", "comprehensions are not allowed"),
        ("(x, 1)", "comprehensions are not allowed"),
        ("'x'", "text is not allowed"),
        ("x + b'x'", "text is not allowed (column 5)"),
        ("f'{x}'", "text is not allowed"),
        ("clip(x, min=0)", "clip takes no named arguments"),
        ("clip(x, **x)", "clip takes no named arguments"),
        ("clip(*x)", "* before an argument is not allowed"),
        ("clip(x, 0)", "clip takes 3 arguments, not 2"),
        ("sqrt()", "sqrt takes 1 argument, not 0"),
        ("sqr(x)", "unknown function `sqr` (column 1); did you mean `sqrt`?"),
        ("y * 2", "unknown name `y` (column 1); the value of the array is called x"),
        ("X * 2", "did you mean `x`?"),
        ("x + cli", "unknown name `cli` (column 5); did you mean `clip`?"),
        ("x - mean(x)", "mean is not elementwise (column 5)"),
        ("x / max(x)", "use maximum(a, b), or a clip step"),
        ("sort(x)", "sort is not elementwise"),
        ("sqrt * x", "`sqrt` is a function (column 1); write sqrt(...)"),
        ("x(3)", "`x` is not a function (column 1); write x * (...)"),
        ("pi(x)", "`pi` is not a function"),
        ("0 < x < 1", "comparisons cannot be chained"),
        ("x > 0 & x < 1", "each comparison in its own parentheses"),
        ("x > 0 and x < 1", "use & and |"),
        ("not x", "use ~ with parentheses"),
        ("1 if x > 0 else 2", "use where(condition, a, b)"),
        ("(x := 3)", "assignment is not allowed"),
        ("x = 3", "not a valid expression"),
        ("__import__('os').system('true')", "not allowed"),
        ("__import__(x)", "unknown function `__import__`"),
        ("eval(x)", "unknown function `eval`"),
        ("x @ x", "use * for the elementwise product"),
        ("x << 2", "<< is not allowed"),
        ("x in x", "`in` is not allowed"),
        ("x is x", "use =="),
        ("x is 1", "use =="),
        ("1if x else 2", "use where"),
        ("x + 2j", "complex numbers are not allowed (column 5)"),
        ("x + None", "None is not allowed"),
        ("x + ...", "Ellipsis is not allowed"),
        ("await x", "Await is not allowed"),
        ("x # doubled", "'#' is not allowed (column 3)"),
        ("x \u00d7 2", "is not allowed (column 3); write *"),
        ("x \u2212 2", "write -"),
        ("\uff58 + 1", "use plain ASCII"),
        ("x\x00", "is not allowed (column 2)"),
        ("sqrt(x", "'(' was never closed (column 5)"),
        ("  sqrt(x", "'(' was never closed (column 7)"),
        ("x +", "not a valid expression"),
        ("x; x", "not a valid expression"),
        ("x + 9223372036854775808", "beyond 64-bit integers (column 5)"),
        ("x + 9223372036854775807 + (9223372036854775807 + 1)", "this constant is beyond 64-bit integers"),
        ("x * 9 ** 9 ** 9", "the power is beyond 64-bit integers (column 5)"),
        ("x * power(9, 999)", "the power is beyond 64-bit integers"),
        ("x * square(9223372036854775807)", "beyond 64-bit integers"),
        ("x * 9.0 ** 9999", "cannot be computed: Numerical result out of range"),
        ("x + 1e999", "too large for a float"),
        ("x / (1 / 0)", "cannot be computed: division by zero"),
        ("x * (-8) ** (1 / 3)", "it is not a real number"),
        ("x + (1.5 & 2)", "cannot be computed"),
        ("x + " * 120 + "x", "nested more than 100 deep"),
        ("-" * 1900 + "x", "nested"),
        ("(" * 1000 + "x" + ")" * 999, "too many nested parentheses"),
        ("+".join(["(x+x+x+x)"] * 90), "has more than 500 parts"),
        ("x" + " " * MAX_LENGTH, "2001 characters long; at most 2000"),
    ],
)
def test_refusals_say_where_and_what_to_do(text: str, message: str) -> None:
    with pytest.raises(StepError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("text", "dtype", "message"),
    [
        ("x & 1", "f4", "& needs integers or comparisons"),
        ("~x", "f8", "~ needs integers or comparisons; put comparisons in parentheses"),
        ("x * 300", "u1", "Python integer 300 out of bounds for uint8; put a cast to a wider dtype"),
        ("x ** -1", "i4", "an integer cannot be raised to the power -1; write -1.0"),
        ("power(x, -2)", "u1", "power -2"),
        ("-x", "?", "put cast: uint8 before it"),
        ("floor(x)", "c8", "`floor(x)` does not work on complex64 values"),
    ],
)
def test_expressions_that_do_not_work_on_a_dtype(text: str, dtype: str, message: str) -> None:
    with pytest.raises(StepError) as caught:
        Map(expression=text).check(ArraySpec((3,), np.dtype(dtype), (None,)))
    assert message in str(caught.value)


def test_bombs_cost_nothing() -> None:
    started = time.perf_counter()
    for text in (
        "x+9**9**9**9",
        "x+(9**63)**63",
        "((((9**9)**9)**9)**9)+x",
        "x*" + "9" * 1900,
        "(" * 2000,
        "x" + "[" * 1999,
        "~" * 1999 + "x",
    ):
        with pytest.raises(StepError):
            parse(text)
    assert time.perf_counter() - started < 2


def test_constants_stay_weak() -> None:
    x = np.ones(3, "f4")
    assert parse("x * sqrt(2) * (1 < 2) * minimum(2, 3)").evaluate(np, x).dtype == np.float32
    assert parse("x + (3 // 2) ** 2 - ~1 + (5 & 3) + mod(7, 4)").evaluate(np, x).tolist() == [1 + 1 + 2 + 1 + 3] * 3
    assert parse("where(2 > 1, x, nan)").evaluate(np, x).tolist() == [1, 1, 1]
    assert parse("where(~(1 > 2), x, 0)").evaluate(np, x).tolist() == [1, 1, 1]


def test_an_expression_may_be_folded_over_lines() -> None:
    step = Map(expression="  where(x > 0,\n\tx,\n 0) ")
    assert step.expression == "where(x > 0, x, 0)"
    assert step.to_yaml_value() == {"expression": "where(x > 0, x, 0)"}


def test_no_warning_leaks() -> None:
    block = np.array([-1.0, 0.0, np.inf], "f4")
    for text in ("log(x)", "1 / x", "sqrt(x)", "x - inf", "exp(x * 1000)", "x // 0"):
        Map(expression=text).apply(np, block, whole(block))


def test_the_namespace_is_the_callers() -> None:
    class Recorder:
        called: list[str] = []  # noqa: RUF012

        def __getattr__(self, name: str) -> Any:
            self.called.append(name)
            return getattr(np, name)

    recorder = Recorder()
    parse("sqrt(abs(x)) + exp(2)").evaluate(recorder, np.ones(2))
    assert recorder.called == ["abs", "sqrt"]


@pytest.mark.parametrize("value", [3, None, ["x"], {"a": 1}])
def test_an_expression_is_text(value: Any) -> None:
    with pytest.raises(ValidationError, match="must be an expression of x"):
        Map(expression=value)


def test_all_functions_exist_in_numpy() -> None:
    for name, arity in FUNCTIONS.items():
        parse(f"{name}({', '.join(['x'] * arity)})").dtype_of(np.dtype("f4"))


def _grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    infix = st.sampled_from(["+", "-", "*", "/", "//", "%", "<", "<=", ">", ">=", "==", "!="])
    call = st.sampled_from(sorted(FUNCTIONS)).flatmap(
        lambda name: st.tuples(*[inner] * FUNCTIONS[name]).map(lambda args: f"{name}({', '.join(args)})")
    )
    return st.one_of(
        st.tuples(inner, infix, inner).map(lambda parts: f"({' '.join(parts)})"),
        st.tuples(st.sampled_from("+-"), inner).map(lambda parts: f"({parts[0]}{parts[1]})"),
        inner.map(lambda text: f"({text} ** 2)"),
        st.tuples(inner, inner).map(lambda parts: f"(({parts[0]} > 0) | ({parts[1]} < 1))"),
        call,
    )


LEAVES = st.one_of(st.sampled_from(["x", "x", "x", *CONSTANTS]), st.integers(0, 99).map(str), st.floats(0, 1e6).map(repr))


def _oracle_function(name: str) -> Any:
    def call(*values: Any) -> Any:
        out = getattr(np, name)(*values)
        return out if any(isinstance(value, np.ndarray) for value in values) else np.asarray(out).item()

    return call


ORACLE = {name: _oracle_function(name) for name in FUNCTIONS} | CONSTANTS


@settings(max_examples=300, deadline=None)
@given(st.recursive(LEAVES, _grow, max_leaves=8), st.sampled_from(["f4", "f8", "f2"]))
def test_evaluation_is_what_python_and_numpy_say(text: str, dtype: str) -> None:
    x = np.array([-2.5, -1, 0, 0.25, 1, 7], dtype)
    with np.errstate(all="ignore"):
        try:
            expected = eval(text, {"__builtins__": {}}, {**ORACLE, "x": x})
        except (TypeError, ValueError, ArithmeticError):
            expected = None
        if not isinstance(expected, np.ndarray):
            return
        try:
            ours = parse(text)
        except StepError as error:
            assert "constant" in str(error), "only constant arithmetic may be refused here"  # noqa: PT017
            return
        out = ours.evaluate(np, x)
    assert out.dtype == expected.dtype == ours.dtype_of(x.dtype)
    np.testing.assert_array_equal(out, expected)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), st.text("x0123456789.()[]{}+-*/%&|^~<>=!,:'\"\\ \n#@einfpsqrtabdo_jL", max_size=40)))
def test_any_text_is_an_expression_or_an_error(text: str) -> None:
    try:
        expression = parse(text)
    except StepError as error:
        assert str(error)  # noqa: PT017
        return
    assert parse(expression.text).root == expression.root


def test_what_numpy_calls_by_two_names() -> None:
    values = np.array([0.0, 90.0, -180.0])
    np.testing.assert_array_equal(parse("degrees(radians(x) / 2)").evaluate(np, values), np.degrees(np.radians(values) / 2))
    assert parse("radians(x)").root == parse("deg2rad(x)").root
