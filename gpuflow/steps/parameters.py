"""Values that people write as parameters: read strictly, and described in plain words when they are wrong. Pure."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gpuflow.units import parse_nbytes

_LEAST_MEMORY = 2**20
_SUGGESTION_CUTOFF = 0.6
"""difflib's own default: below it a suggestion is noise."""


class StepError(ValueError):
    """A step cannot be made or applied as it is written: what is wrong, and what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return self.message + (f"; {self.hint}" if self.hint else "")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be. Case is ignored; ties by name."""
    by_lower = {name.lower(): name for name in sorted(known, reverse=True)}
    found = difflib.get_close_matches(word.lower()[:100], by_lower, n=1, cutoff=_SUGGESTION_CUTOFF)
    return by_lower[found[0]] if found else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """A hint: the nearest known word, or all of them."""
    known = list(known)
    near = nearest(word, known)
    return f"did you mean `{near}`?" if near else f"known: {', '.join(known)}"


def describe(value: Any) -> str:
    """What `value` is, as its writer would say it."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        # Python refuses to print integers of thousands of digits.
        return "a huge number" if isinstance(value, int) and abs(value) >= 10**30 else f"the number {value!r}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}" + ("..." if len(value) > 40 else "")
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return "a list"
    return "a mapping" if isinstance(value, dict) else f"a {type(value).__name__}"


def number(value: Any) -> int | float:
    """A finite int or float, exact; NumPy scalars are taken for what they hold."""
    if isinstance(value, np.integer | np.floating):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, not {describe(value)}")
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise ValueError("is beyond the range of 64-bit integers")
        return value
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {value}")
    return value


def numbers(value: Any) -> Any:
    """A number, or lists of numbers nested to one shape; floats, lists as tuples."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return float(number(value))
    items = tuple(numbers(item) for item in value)
    if len({_shape(item) for item in items}) > 1:
        raise ValueError("must be a list whose parts have the same length")
    if len(_shape(items)) > 32:
        raise ValueError("is nested too deeply")
    return items


def patterns(value: Any) -> tuple[str, ...]:
    """Names of arrays, or fnmatch patterns: one, or a list."""
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"must be the name of an array, or a list of names, not {describe(value)}")
    return names


def plain(value: Any) -> Any:
    """Tuples as lists, all the way down: what JSON and YAML write."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def _shape(value: Any) -> tuple[int, ...]:
    shape = []
    while isinstance(value, tuple):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def memory_nbytes(value: Any) -> int | None:
    """Bytes of memory, from a number or a text such as 2GiB; None stays. ValueError for less than 1 MiB, and for anything else."""
    if value is None:
        return None
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError(f"must be a number of bytes such as 2GiB, not {describe(value)}")
    try:
        nbytes = parse_nbytes(str(value))
    except ValueError:
        nbytes = 0
    if nbytes < _LEAST_MEMORY:
        raise ValueError(f"must be a number of bytes such as 2GiB, at least 1MiB, not {describe(value)}")
    return nbytes
