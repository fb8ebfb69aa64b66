"""Neighbouring steps as one pass over memory.

A kernel gives what the steps' `apply` gives one after the other, on any device of the same kind; when it cannot, it calls them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.steps.base import ArraySpec, Region, Step

if TYPE_CHECKING:
    from gpuflow.backends.cpu import Compiled


class Kernel:
    """What `compile_steps` gives. Safe in threads; not for pickling: workers compile from the steps."""

    def __init__(self, steps: tuple[Step, ...], specs: tuple[ArraySpec, ...], compiled: Compiled | None, reason: str) -> None:
        """specs: what goes into each step, then what comes out of the last. reason: why it is not compiled."""
        self.steps, self.out_dtype = steps, specs[-1].dtype
        self._compiled, self._reason = compiled, reason

    @property
    def fused(self) -> bool:
        """Whether the steps run as one pass."""
        return self._compiled is not None

    def describe(self) -> str:
        """For the plan: which steps are one pass, or why they are not."""
        names = ", ".join(step.kind for step in self.steps)
        if self._compiled is None:
            return f"{names or 'nothing'}: one after the other ({self._reason})"
        left = ", ".join(sorted(set(self._compiled.numpy_names)))
        return f"{names}: one pass" + (f", with {left} by NumPy in tiles" if left else "")

    def __call__(self, block: NDArray[Any], region: Region, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The result for `block`, the part `region` of the array, of any strides.

        out: C-contiguous, of `out_dtype` and the block's shape, or None for a new array; it may be `block` itself, not overlap it."""
        if self._compiled is not None:
            return self._compiled(block, region, out)
        result = block
        for step in self.steps:
            result = step.apply(np, result, region)
        if out is None:
            return result.copy() if result is block else result
        out[...] = result
        return out


@lru_cache(maxsize=128)
def compile_steps(steps: tuple[Step, ...], array: ArraySpec) -> Kernel:
    """One kernel for steps that are bound and resolved, in the order in which they are applied to parts of `array`.

    Quick: machine code is made, or loaded, on the kernel's first call. StepError when a step does not work on what it gets."""
    specs = [array]
    for step in steps:
        specs.append(step.check(specs[-1]))
    if not steps:
        return Kernel(steps, tuple(specs), None, "there are no steps")
    from gpuflow.backends.cpu import Compiled
    from gpuflow.backends.operations import NotExpressible

    trees = []
    for step, spec in zip(steps, specs, strict=False):
        tree = step.express(spec)
        if tree is None:
            return Kernel(steps, tuple(specs), None, f"only {step.kind} itself knows what it computes")
        trees.append(tree)
    try:
        compiled = Compiled(tuple(trees), tuple(spec.dtype for spec in specs))
    except NotExpressible as reason:
        return Kernel(steps, tuple(specs), None, str(reason))
    return Kernel(steps, tuple(specs), compiled, "")
