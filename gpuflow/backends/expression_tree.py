"""What a step computes, as a tree over the value `x`: the common language of the steps and of what compiles them.

A tree says what NumPy would do, node by node. Python numbers are weak in NumPy 2's promotion, parameters and casts are not."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Number = int | float | bool

_ONE = "abs sqrt cbrt square exp exp2 expm1 log log1p log2 log10 sin cos tan arcsin arccos arctan sinh cosh tanh"
_ONE += " arcsinh arccosh arctanh floor ceil round trunc sign isnan isfinite isinf deg2rad rad2deg"
_TWO = "arctan2 hypot minimum maximum power mod logaddexp"
FUNCTIONS: dict[str, int] = dict.fromkeys(_ONE.split(), 1) | dict.fromkeys(_TWO.split(), 2)
FUNCTIONS |= {"where": 3, "clip": 3}
"""Functions by name, with the number of their arguments. The names are those of NumPy."""

OPERATORS: dict[str, Callable[..., Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "//": operator.floordiv, "%": operator.mod,
    "**": operator.pow, "&": operator.and_, "|": operator.or_, "^": operator.xor, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
    "unary +": operator.pos, "unary -": operator.neg, "~": operator.invert,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Constant:
    """A Python number; weak in NumPy 2's promotion."""

    value: Number


@dataclass(frozen=True, slots=True)
class Variable:
    """The value `x`; where several arrays are computed with, that of the array of this name, which backends do not compile."""

    name: str = "x"


@dataclass(frozen=True, slots=True)
class Call:
    """`name` is a key of OPERATORS or FUNCTIONS; at least one argument contains x."""

    name: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """Numbers of the whole array, one per index of `axes` (ascending). values: one axis for each of them; 0-d for a single number.

    Their dtype counts in promotion, as an array's does."""

    values: NDArray[Any]
    axes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Cast:
    """The value of `argument` as NumPy's `astype` gives it. strict: one that does not fit is an error."""

    argument: Node
    dtype: np.dtype[Any]
    strict: bool = False


Node = Constant | Variable | Call | Parameter | Cast
