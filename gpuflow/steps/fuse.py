"""Neighbouring steps as one pass over memory, by one of the backends.

A kernel gives what the steps' `apply` gives one after the other, on any device of the same kind; when it cannot, it calls them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.backends.block import to_host
from gpuflow.backends.operations import NotExpressible, Unfit
from gpuflow.backends.select import Backend, Compiled, compiler
from gpuflow.steps.base import ArraySpec, Region, Step, StepError


class Kernel:
    """What `compile_steps` gives. Safe in threads; not for pickling: workers compile from the steps."""

    def __init__(
        self,
        steps: tuple[Step, ...],
        specs: tuple[ArraySpec, ...],
        compiled: Compiled | None,
        reason: str,
        parts: tuple[Kernel, ...] = (),
    ) -> None:
        """specs: what goes into each step, then what comes out of the last. reason: why it is not compiled. parts: neighbours that are one
        pass each, where not all steps are."""
        self.steps, self.out_dtype, self._specs = steps, specs[-1].dtype, specs
        self._compiled, self._reason, self._parts = compiled, reason, parts

    @property
    def fused(self) -> bool:
        """Whether the steps run as one pass."""
        return self._compiled is not None

    @property
    def on_device(self) -> bool:
        """Whether it takes a block that lies on a CUDA device, as a CuPy array, and gives one."""
        if self._parts:
            return all(part.on_device for part in self._parts)
        return self._compiled is not None and self._compiled.on_device

    def describe(self) -> str:
        """For the plan: which steps are one pass, or why they are not."""
        if self._parts:
            return "; then ".join(part.describe() for part in self._parts)
        names = ", ".join(step.kind for step in self.steps)
        if self._compiled is None:
            return f"{names or 'nothing'}: one after the other ({self._reason})"
        return f"{names}: {self._compiled.describe()}"

    def __call__(self, block: NDArray[Any], region: Region, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The result for `block`, the part `region` of the array, of any strides.

        out: C-contiguous, of `out_dtype` and the block's shape, or None for a new array; it may be `block` itself, not overlap it. None for
        a block that lies on a device; see `on_device`.
        StepError when a strict step refuses a value."""
        if self._compiled is not None:
            try:
                return self._compiled(block, region, out)
            except Unfit:
                self._one_by_one(to_host(block), region)  # says which value it is
                raise StepError("a value does not fit, by a hair: the steps one by one let it pass") from None
        result = self._one_by_one(block, region)
        if out is None:
            return result.copy() if result is block else result
        out[...] = result
        return out

    def _one_by_one(self, block: NDArray[Any], region: Region) -> NDArray[Any]:
        for part in self._parts:
            block = part(block, region)
        if self._parts:
            return block
        for step, spec in zip(self.steps, self._specs, strict=False):
            block = step.compute(np, block, spec, region)
        return block


@lru_cache(maxsize=128)
def compile_steps(steps: tuple[Step, ...], array: ArraySpec, backend: Backend = "numba", device: str = "cpu") -> Kernel:
    """One kernel for elementwise steps that are bound and resolved, in the order in which they are applied to parts of `array`.

    Quick: machine code is made, or loaded, on the kernel's first call. StepError when a step does not work on what it gets;
    DeviceUnavailable when the backend or its device is not there."""
    specs = [array]
    for step in steps:
        specs.append(step.check(specs[-1]))
    make = compiler(backend, device)
    if not steps:
        return Kernel(steps, tuple(specs), None, "there are no steps")
    trees = []
    for step, spec in zip(steps, specs, strict=False):
        tree = step.express(spec)
        if tree is None:
            reason = f"only {step.kind} itself knows what it computes"
            return Kernel(steps, tuple(specs), None, reason, _parts(steps, specs, backend, device))
        trees.append(tree)
    try:
        compiled = make(tuple(trees), tuple(spec.dtype for spec in specs))
    except NotExpressible as reason:
        return Kernel(steps, tuple(specs), None, str(reason))
    return Kernel(steps, tuple(specs), compiled, "")


def _parts(steps: tuple[Step, ...], specs: list[ArraySpec], backend: Backend, device: str) -> tuple[Kernel, ...]:
    """Kernels of neighbours that can be expressed, and of each step that cannot; none for a single step."""
    if len(steps) == 1:
        return ()
    parts: list[Kernel] = []
    expressed = [step.express(spec) is not None for step, spec in zip(steps, specs, strict=False)]
    first = 0
    for end in range(1, len(steps) + 1):
        if end == len(steps) or not (expressed[end] and expressed[end - 1]):
            parts.append(compile_steps(steps[first:end], specs[first], backend, device))
            first = end
    return tuple(parts)
