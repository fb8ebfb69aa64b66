"""A chain of expression trees as typed instructions: which dtype each node has, and where values are converted.

Pure. The dtypes are those of NumPy's own loops (`ufunc.resolve_dtypes`), so that a backend has no promotion of its own."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpuflow.backends.expression_tree import Call, Cast, Constant, Node, Parameter, Variable
from gpuflow.backends.operations import COMPARISONS, UFUNCS, DType, NotExpressible

BOOL, HALF = np.dtype(bool), np.dtype(np.float16)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One value. kind: load, constant, parameter or call.

    name: of what is called: a ufunc, `where`, `clip` or `cast`; the arguments of a ufunc have one dtype, `where` and `clip` give that
    of theirs. number: of the parameter; value: of the constant, a NumPy scalar."""

    kind: str
    dtype: DType
    name: str = ""
    arguments: tuple[int, ...] = ()
    number: int = 0
    value: Any = None


@dataclass
class Program:
    """Instructions in an order in which they can be computed. result: the index of the last value.

    checks: indices of truth values that all have to be true, or the result is not to be used."""

    instructions: list[Instruction] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)
    result: int = 0
    checks: list[int] = field(default_factory=list)

    def uses_half(self) -> bool:
        """Whether any value is a half float."""
        return any(one.dtype == np.float16 for one in self.instructions)


def lower(trees: tuple[Node, ...], dtypes: tuple[DType, ...]) -> Program:
    """The program of trees that follow one another. dtypes: what goes into the first, then what comes out of each.

    NotExpressible when it would not be exact."""
    _check(dtypes[0])
    builder = _Builder()
    x = builder.add(Instruction("load", dtypes[0]))
    for tree, expected in zip(trees, dtypes[1:], strict=True):
        _check(expected)
        value = builder.node(tree, x)
        if isinstance(value, Constant) or builder.dtype(value) != expected:
            raise NotExpressible(f"its dtype is not {expected} in a kernel")
        x = value
    builder.program.result = x
    return builder.program


def _check(dtype: DType) -> None:
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise NotExpressible(f"{dtype} values are left to NumPy")
    if not dtype.isnative:
        raise NotExpressible(f"{dtype.str} is not in this machine's byte order")


class _Builder:
    """Adds instructions; one that is there already is not added again. A value is its index, or a constant without a dtype."""

    def __init__(self) -> None:
        self.program = Program()
        self.known: dict[Any, int] = {}

    def add(self, one: Instruction) -> int:
        key = (one.kind, one.dtype, one.name, one.arguments, one.number, None if one.value is None else one.value.tobytes())
        if key not in self.known:
            self.known[key] = len(self.program.instructions)
            self.program.instructions.append(one)
        return self.known[key]

    def dtype(self, index: int) -> DType:
        return self.program.instructions[index].dtype

    def node(self, node: Node, x: int) -> int | Constant:
        match node:
            case Variable():
                return x
            case Constant():
                return node
            case Parameter(values):
                _check(values.dtype)
                self.program.parameters.append(node)
                return self.add(Instruction("parameter", values.dtype, number=len(self.program.parameters) - 1))
            case Cast(argument, dtype, strict):
                _check(dtype)
                value = self.node(argument, x)
                result = self.convert(value, dtype)
                if strict and not isinstance(value, Constant):
                    self.program.checks.extend(self.fits(value, result))
                return result
            case Call("where" | "clip" | "round" as name, arguments):
                return self.function(name, [self.node(argument, x) for argument in arguments])
            # NumPy's operator is not always its power: that of truth values has another dtype, that of halves other zeros.
            case Call("**", (base, Constant(2))) if self._is(value := self.node(base, x), BOOL):
                return self.ufunc("square", [value])
            case Call("**", (base, Constant(0.5))) if self._is(value := self.node(base, x), HALF):
                return self.ufunc("sqrt", [value])
            case Call(name, arguments):
                return self.ufunc(UFUNCS.get(name, name), [self.node(argument, x) for argument in arguments])

    def _is(self, value: int | Constant, dtype: DType) -> bool:
        return not isinstance(value, Constant) and self.dtype(value) == dtype

    def convert(self, value: int | Constant, to: DType) -> int:
        """The value in dtype `to`, as NumPy converts arrays and Python numbers."""
        if isinstance(value, Constant):
            try:
                with np.errstate(all="ignore"):
                    return self.add(Instruction("constant", to, value=np.full((), value.value, to)[()]))
            except OverflowError as error:
                raise NotExpressible(str(error)) from None
        return value if self.dtype(value) == to else self.call(to, "cast", value)

    def call(self, dtype: DType, name: str, *arguments: int) -> int:
        return self.add(Instruction("call", dtype, name, arguments))

    def fits(self, value: int, result: int) -> list[int]:
        """Truth values: whether `value` fits the dtype of `result`, to which it was cast."""
        source, target = self.dtype(value), self.dtype(result)
        if target.kind in "iu":
            return [self.ufunc(name, [value, Constant(bound)]) for name, bound in bounds(source, target)]
        if target.kind == "f" and source.kind == "f" and target.itemsize < source.itemsize:
            # It is infinite where it was before.
            return [self.ufunc("equal", [self.ufunc("isinf", [one]) for one in (value, result)])]
        if target.kind == "f" and source.kind in "iu" and np.iinfo(source).max > float(np.finfo(target).max):
            return [self.ufunc("isfinite", [result])]
        return []

    def function(self, name: str, values: list[int | Constant]) -> int:
        """What is not a ufunc in NumPy: its dtypes are found by trying."""
        if name == "round":
            if isinstance(values[0], Constant) or self._is(values[0], BOOL):
                raise NotExpressible("round of truth values is left to NumPy")
            return self.ufunc("rint", values) if self.dtype(values[0]).kind == "f" else values[0]
        samples = [one.value if isinstance(one, Constant) else np.empty(0, self.dtype(one)) for one in values]
        out = np.asarray(getattr(np, name)(*samples)).dtype
        _check(out)
        if name == "where":
            condition = self.convert(values[0], BOOL)
            return self.call(out, name, condition, *(self.convert(_wrapped(one, out), out) for one in values[1:]))
        return self.call(out, name, *(self.convert(_limited(one, out), out) for one in values))

    def ufunc(self, name: str, values: list[int | Constant]) -> int:
        asked = [_kind(one) if isinstance(one, Constant) else self.dtype(one) for one in values]
        *loop, out = getattr(np, name).resolve_dtypes((*asked, None))
        if len(set(loop)) > 1:
            raise NotExpressible(f"{name} of {' and '.join(map(str, loop))} is left to NumPy")
        dtype = loop[0]
        _check(dtype)
        _check(out)
        if name in COMPARISONS and dtype.kind in "iu" and (always := _beyond(name, values, dtype)) is not None:
            return self.add(Instruction("constant", BOOL, value=np.bool_(always)))
        exact = not isinstance(values[0], Constant) and self.dtype(values[0]) == dtype
        arguments = [self.convert(one, dtype) for one in values]
        if name == "power" and isinstance(values[1], Constant) and exact and (shorter := _shorter(dtype, values[1].value)):
            return self.call(out, shorter, arguments[0])
        return self.call(out, name, *arguments)


def bounds(source: DType, target: DType) -> list[tuple[str, int | float]]:
    """What has to be true of a value, each (comparison, number), so that the integers of `target` hold it, cut off at the point.

    Compared in the dtype `source` the numbers are exact."""
    limits = np.iinfo(target)
    low, high = int(limits.min), int(limits.max)
    if source.kind == "b":
        return []
    if source.kind in "iu":
        has = np.iinfo(source)
        tests = [("greater_equal", low, low > has.min), ("less_equal", high, high < has.max)]
        return [(name, bound) for name, bound, needed in tests if needed]
    with np.errstate(all="ignore"):
        below, above = float(source.type(low - 1)), float(source.type(high + 1))
    # Too wide for a half float: what does not fit is inf then, and NaN.
    lower = ("greater", below) if below == low - 1 or np.isinf(below) else ("greater_equal", float(low))
    return [lower, ("less", above)]


def _shorter(dtype: DType, exponent: float) -> str | None:
    """What NumPy takes for `x ** exponent` instead of its power."""
    if exponent == 2:
        return "square"
    if dtype.kind == "f" and dtype.itemsize > 2:
        return {0.5: "sqrt", -1.0: "reciprocal"}.get(exponent)
    return None


def _wrapped(value: int | Constant, out: DType) -> int | Constant:
    """What `where` does with a Python integer that the dtype cannot hold: the bits that fit."""
    if isinstance(value, Constant) and isinstance(value.value, int) and out.kind in "iu":
        return Constant(int(np.asarray(value.value).astype(out)))
    return value


def _limited(value: int | Constant, out: DType) -> int | Constant:
    """What `clip` does with one: it takes it for no bound."""
    if isinstance(value, Constant) and isinstance(value.value, int) and out.kind in "iu":
        limits = np.iinfo(out)
        return Constant(min(max(value.value, int(limits.min)), int(limits.max)))
    return value


def _kind(constant: Constant) -> Any:
    return BOOL if isinstance(constant.value, bool) else type(constant.value)


def _beyond(name: str, values: list[int | Constant], dtype: DType) -> bool | None:
    """The outcome of comparing with a Python integer that the dtype cannot hold: it is the same for every value."""
    limits = np.iinfo(dtype)
    numbers = [one.value if isinstance(one, Constant) else None for one in values]
    if all(number is None or limits.min <= number <= limits.max for number in numbers):
        return None
    symbol = {"less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge", "equal": "eq", "not_equal": "ne"}[name]
    return bool(getattr(operator, symbol)(*(int(limits.min) if number is None else number for number in numbers)))
