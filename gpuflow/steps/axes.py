"""Parameters that belong to dimensions: `{y: 8, x: 8}`. Dimensions are given by name, or by number where they have none. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gpuflow.steps.parameters import StepError, describe


class ByAxis(dict[str | int, Any]):
    """Values by dimension, in the order in which they were given. Hashable: nobody changes one."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


def by_axis(parse: Callable[[Any], Any], example: str) -> Callable[[Any], ByAxis]:
    """A validator of such a parameter: each of its values goes through `parse`. example: how it is written."""

    def validate(value: Any) -> ByAxis:
        if not isinstance(value, Mapping) or not value:
            raise StepError(f"must name dimensions, not {describe(value)}", f"as in {example}")
        for name in value:
            if not isinstance(name, str | int) or isinstance(name, bool):
                raise StepError(f"{describe(name)} is not a dimension", f"as in {example}")
        # JSON writes numbers of axes as text.
        return ByAxis({int(name) if str(name).isdecimal() else name: parse(item) for name, item in value.items()})

    return validate


def axis_of(kind: str, name: str | int, dims: tuple[str | None, ...]) -> int:
    """The axis that `name` is among `dims`. StepError, of the step `kind`, when there is none or more than one."""
    if isinstance(name, int):
        if not -len(dims) <= name < len(dims):
            hint = f"the array has {len(dims)} axes, numbered from 0"
            raise StepError(f"{kind}: there is no axis {name}", hint)
        return name % len(dims)
    if dims.count(name) != 1:
        named = ", ".join(f"`{known}`" for known in dims if known is not None)
        problem = "two dimensions are called" if name in dims else "there is no dimension"
        hint = f"its dimensions are {named}" if named else "its dimensions have no names"
        raise StepError(f"{kind}: {problem} `{name}`", f"{hint}; an axis number from 0 to {len(dims) - 1} works too")
    return dims.index(name)


def bound(kind: str, values: Mapping[str | int, Any], dims: tuple[str | None, ...]) -> ByAxis:
    """`values` by axis number, ascending. StepError for a dimension that is not there, or given twice."""
    found: dict[int, Any] = {}
    for name, value in values.items():
        axis = axis_of(kind, name, dims)
        if axis in found:
            raise StepError(f"{kind}: axis {axis} is given twice", "give each dimension once")
        found[axis] = value
    return ByAxis(sorted(found.items()))
