"""A chain of expression trees on Torch tensors, on the CPU or a CUDA device: one operation after the other, or fused by `torch.compile`.

The result is that of NumPy within `TOLERANCE_ULP`. On the CPU a tile passes through all operations while it is in cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from gpuflow.backends.block import Block, BlockKernel, Region, check, on_host
from gpuflow.backends.cpu import TOLERANCE_ULP as _NUMPY_ULP
from gpuflow.backends.expression_tree import Node
from gpuflow.backends.operations import DType, NotExpressible, Unfit
from gpuflow.backends.program import Instruction, lower
from gpuflow.backends.torch_operations import Tensor, call, load, store, torch
from gpuflow.errors import DeviceUnavailable

TOLERANCE_ULP: dict[str, int] = _NUMPY_ULP | {"sqrt": 1}
"""Units in the last place of the operation's own dtype. Where logaddexp is close to 0, those of its larger argument.
All other operations are exact, but for the sign of a zero from `EITHER_ZERO`."""

EITHER_ZERO = ("minimum", "maximum", "clip")
"""Operations that may give either of two zeros of different signs."""

_TILE = 2**18
"""Elements that pass through all operations at a time on the CPU: 1 MiB of float32. With less, Python takes longer than Torch."""


def find_device(name: str) -> str:
    """`name` itself: cpu, cuda or cuda:N. DeviceUnavailable when it is not there."""
    if name != "cpu" and torch.device(name).index not in (None, *range(torch.cuda.device_count())):
        raise DeviceUnavailable(f"there is no device {name}", f"PyTorch sees {torch.cuda.device_count()} CUDA devices")
    if name != "cpu" and not torch.cuda.is_available():
        raise DeviceUnavailable("no CUDA device that PyTorch can use", "use device: auto or cpu")
    return name


class Compiled(BlockKernel):
    """A program on tensors. Safe in threads."""

    def __init__(self, trees: tuple[Node, ...], dtypes: tuple[DType, ...], device: str = "cpu", *, fused: bool = False) -> None:
        """dtypes: what goes into the first tree, then what comes out of each. fused: by `torch.compile`, on the first call, which takes
        seconds. NotExpressible when it would not be exact."""
        self.program, self.device, self.fused = lower(trees, dtypes), device, fused
        self.dtypes = dtypes[0], dtypes[-1]
        self._parameters = lru_cache(maxsize=16)(self._part)
        self._axes = {axis for parameter in self.program.parameters for axis in parameter.axes}
        self._constants = {
            index: self._tensor(np.array(one.value))
            for index, one in enumerate(self.program.instructions)
            if one.kind == "constant"
        }
        self._last_used = {index: number for number, one in enumerate(self.program.instructions) for index in one.arguments}
        self.on_device = device != "cpu"
        self._try()
        self._values = self._fused() if fused else self._one_by_one

    def describe(self) -> str:
        """How it runs."""
        return f"by Torch on {self.device}" + (", fused by torch.compile" if self.fused else "")

    def __call__(self, block: Block, region: Region, out: Block | None = None) -> Block:
        """A CuPy array gives one, over the same memory that Torch sees; `out` is for blocks of the host."""
        if on_host(block):
            return super().__call__(block, region, out)
        from gpuflow.backends.cuda import cupy

        check(block, region, self.dtypes)
        made: Block = cupy.empty(block.shape, self.dtypes[1])
        with torch.cuda.stream(torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)):
            self.compute(torch.from_dlpack(block), region, torch.from_dlpack(made))
        return made

    def _fill(self, out: Block, block: Block, region: Region) -> None:
        self.compute(_shared(block).to(self.device), region, torch.from_numpy(out))

    def compute(self, x: Tensor, region: Region, out: Tensor) -> None:
        """The same on tensors. x: on the kernel's device; out: anywhere, of the dtype that NumPy calls the same."""
        kept = tuple((part.start or 0, part.stop) if axis in self._axes else (0, 1) for axis, part in enumerate(region))
        parameters = self._parameters(kept)
        for index in _tiles(tuple(x.shape), _TILE if self.device == "cpu" and not self.fused else x.numel()):
            parts = [
                one[tuple(s if n > 1 else slice(None) for s, n in zip(index, one.shape, strict=False))] for one in parameters
            ]
            store(self._run(x[index], parts), out[index], self.dtypes[1])

    def _run(self, x: Tensor, parameters: list[Tensor]) -> Tensor:
        """One tile through all operations."""
        result, *checks = self._values(x, *parameters)
        if not all(bool(fits) for fits in checks):
            raise Unfit
        return result

    def _fused(self) -> Callable[..., tuple[Tensor, ...]]:
        """`_one_by_one`, recorded as operations of Torch and compiled for any size. Its intermediate values are rounded to their dtypes."""
        from torch.fx.experimental.proxy_tensor import make_fx

        nothing = [torch.from_numpy(np.empty(0, dtype)).to(self.device) for dtype in (self.dtypes[0], *self._parameter_dtypes())]
        recorded = make_fx(self._one_by_one)(*nothing)
        compiled: Callable[..., tuple[Tensor, ...]] = torch.compile(
            recorded, dynamic=True, options={"emulate_precision_casts": True}
        )
        return compiled

    def _one_by_one(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        """The result, and of each check whether all values fit."""
        code, values = self.program.instructions, dict(self._constants)
        for number, one in enumerate(code):
            if one.kind != "constant":
                values[number] = self._value(one, values, x, parameters)
            for index in one.arguments:
                if self._last_used[index] == number and index not in (self.program.result, *self.program.checks):
                    values.pop(index, None)
        return values[self.program.result], *(values[index].all() for index in self.program.checks)

    def _value(self, one: Instruction, values: dict[int, Tensor], x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        if one.kind == "load":
            return load(x, one.dtype)
        if one.kind == "parameter":
            return load(parameters[one.number], one.dtype)
        dtypes = [self.program.instructions[index].dtype for index in one.arguments]
        return call(one.name, dtypes, one.dtype, [values[index] for index in one.arguments])

    def _part(self, kept: tuple[tuple[int, int], ...]) -> list[Tensor]:
        """The parameters of a region, shaped to broadcast against its block."""
        found = []
        for parameter in self.program.parameters:
            part = parameter.values[tuple(slice(*kept[axis]) for axis in parameter.axes)]
            sizes = iter(part.shape)
            shape = [next(sizes) if axis in parameter.axes else 1 for axis in range(len(kept))]
            found.append(torch.from_numpy(np.array(part).reshape(shape)).to(self.device))
        return found

    def _tensor(self, value: Block) -> Tensor:
        return load(torch.from_numpy(value), value.dtype).to(self.device)

    def _try(self) -> None:
        """NotExpressible when this Torch lacks an operation for a dtype: found out on nothing."""
        nothing = [torch.from_numpy(np.empty(0, dtype)).to(self.device) for dtype in (self.dtypes[0], *self._parameter_dtypes())]
        try:
            self._one_by_one(*nothing)
        except (RuntimeError, TypeError) as error:
            raise NotExpressible(str(error).splitlines()[0]) from None

    def _parameter_dtypes(self) -> list[DType]:
        return [parameter.values.dtype for parameter in self.program.parameters]


def _shared(block: Block) -> Tensor:
    """A tensor over the memory of `block`, or of a copy when Torch cannot look at that: read-only, or strides of its own kind."""
    usual = all(stride >= 0 and stride % block.itemsize == 0 for stride in block.strides)
    return torch.from_numpy(block if usual and block.flags.writeable else block.copy())


def _tiles(shape: tuple[int, ...], limit: int) -> Iterator[tuple[Any, ...]]:
    """Indices of parts of at most `limit` elements, contiguous in C order, that cover an array."""
    if prod(shape) <= limit:
        yield ()
        return
    first, rest = shape[0], prod(shape[1:])
    step = max(1, limit // rest)
    for start in range(0, first, step):
        for inner in _tiles(shape[1:], limit) if rest > limit else [()]:
            yield (slice(start, start + step), *inner)
