"""A chain of expression trees in one pass over memory on the CPU.

The result is that of NumPy, node by node; `TOLERANCE_ULP` lists what may differ. Nothing here imports numba before a kernel is
called for the first time."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np

from gpuflow.backends.block import Block, BlockKernel, Region
from gpuflow.backends.expression_tree import Node
from gpuflow.backends.layout import Layout, plan
from gpuflow.backends.operations import DType, NotExpressible, Unfit
from gpuflow.backends.program import Program, lower
from gpuflow.backends.source import divide, stages, write

_LIBRARY = "exp exp2 expm1 log log1p log2 log10 sin cos tan arcsin arccos arctan sinh cosh tanh arcsinh arccosh arctanh"
_LIBRARY += " cbrt arctan2 hypot logaddexp power"
TOLERANCE_ULP: dict[str, int] = dict.fromkeys(_LIBRARY.split(), 4)
"""Units in the last place of the operation's own dtype. NumPy computes these here as well, but its loops for contiguous arrays,
for strided ones and for single values differ from each other by so much. All other operations are exact."""

_TILE = 2**15
"""Elements that pass through all stages at a time: 128 KiB of float32, so that a few of them stay in the second-level cache."""


class Compiled(BlockKernel):
    """A program as compiled functions. Safe in threads; compiles on the first call, or loads what another process compiled."""

    def __init__(self, trees: tuple[Node, ...], dtypes: tuple[DType, ...]) -> None:
        """dtypes: what goes into the first tree, then what comes out of each. NotExpressible when it would not be exact."""
        self.program: Program = divide(lower(trees, dtypes))
        if self.program.uses_half() and not _converts_halves():
            raise NotExpressible("this processor does not convert half floats")
        self.dtypes = dtypes[0], dtypes[-1]
        self._stages = stages(self.program)
        self._by_numpy = {self.program.instructions[call].name for stage in self._stages for call in stage.calls}
        self._layout = lru_cache(maxsize=16)(self._plan)
        self._whole = lru_cache(maxsize=16)(self._find_whole)
        self._functions = lru_cache(maxsize=2)(partial(_functions, self.program))
        self._axes = {axis for parameter in self.program.parameters for axis in parameter.axes}

    def describe(self) -> str:
        """How it runs."""
        left = ", ".join(sorted(self._by_numpy))
        return "one pass" + (f", with {left} by NumPy in tiles" if left else "")

    def _fill(self, out: Block, block: Block, region: Region) -> None:
        # Where a parameter does not vary, every part of a size is the same.
        kept = tuple((part.start or 0, part.stop) if axis in self._axes else (0, 0) for axis, part in enumerate(region))
        unfit = np.zeros(1, np.uint8)
        whole = self._whole(block.shape, kept)
        if whole is not None and block.flags.c_contiguous:
            whole(unfit, _bits(block.reshape(-1)), _bits(out.reshape(-1)))
        else:
            self._in_tiles(block, kept, unfit, out)
        if unfit[0]:
            raise Unfit

    def _in_tiles(self, block: Block, kept: tuple[tuple[int, int], ...], unfit: Block, out: Block) -> None:
        layout = self._layout(block.shape, kept)
        functions = self._functions(layout.varying)
        flat, tile = out.reshape(-1), _TILE if self._by_numpy else block.size
        with np.errstate(all="ignore"):
            for first, x in _pieces(block):
                for start in range(0, x.size, tile):
                    part = x[start : start + tile]
                    self._run(functions, layout, first + start, unfit, part, flat[first + start : first + start + part.size])

    def _find_whole(
        self, shape: tuple[int, ...], kept: tuple[tuple[int, int], ...]
    ) -> Callable[[Block, Block, Block], None] | None:
        """The one function that does it all for a contiguous block, of (unfit, flat block, flat out), if there is one: looked up once, as
        for small chunks looking it up took longer than they did."""
        code = self.program.instructions
        if self._by_numpy or len(self._stages) != 1:
            return None
        stage = self._stages[0]
        if [code[index].kind for index in stage.inputs] != ["load"] or len(stage.outputs) != 1:
            return None
        layout = self._layout(shape, kept)
        (function,) = self._functions(layout.varying).values()
        lines = [_bits(one) for index in stage.parameters for one in layout.parameters[code[index].number]]
        return lambda unfit, x, out: function(0, layout.span, layout.period, unfit, x, out, *lines)

    def _plan(self, shape: tuple[int, ...], kept: tuple[tuple[int, int], ...]) -> Layout:
        parts = []
        for parameter in self.program.parameters:
            part = parameter.values[tuple(slice(*kept[axis]) for axis in parameter.axes)]
            parts.append((part, parameter.axes))
        return plan(shape, parts)

    def _run(
        self, functions: dict[int, Callable[..., None]], layout: Layout, start: int, unfit: Block, x: Block, out: Block
    ) -> None:
        """One tile through all stages."""
        code = self.program.instructions
        values: dict[int, Any] = {index: one.value for index, one in enumerate(code) if one.kind == "constant"}
        values |= {index: x for index, one in enumerate(code) if one.kind == "load"}
        for number, stage in enumerate(self._stages):
            inputs = [values[index] for index in stage.inputs]
            for index in stage.outputs:
                values[index] = np.empty(x.size, code[index].dtype) if stage.calls else out
            if stage.computes:
                arrays = [_bits(one) for one in (*inputs, *(values[index] for index in stage.outputs))]
                lines = [layout.parameters[code[index].number] for index in stage.parameters]
                functions[number](
                    start, layout.span, layout.period, unfit, *arrays, *(_bits(one) for pair in lines for one in pair)
                )
            for call in stage.calls:
                values[call] = out if call == self.program.result else np.empty(x.size, code[call].dtype)
                getattr(np, code[call].name)(*(values[index] for index in code[call].arguments), out=values[call])


def _pieces(block: Block) -> Iterator[tuple[int, Block]]:
    """(number of its first element, contiguous elements): the whole block, or copies of parts that stay in cache."""
    if block.flags.c_contiguous:
        yield 0, block.reshape(-1)
        return
    line = block.size // block.shape[0]
    step = max(1, _TILE // line)
    for first in range(0, block.shape[0], step):
        yield first * line, np.ascontiguousarray(block[first : first + step]).reshape(-1)


def _bits(array: Block) -> Block:
    return array.view(np.uint16) if array.dtype == np.float16 else array


def _functions(program: Program, varying: bool) -> dict[int, Callable[..., None]]:
    """The compiled functions by stage."""
    from gpuflow.backends.kernel_cache import load

    module = load(write(program, varying))
    names = {number: f"stage{number}" for number in range(len(program.instructions) + 1)}
    return {number: getattr(module, name) for number, name in names.items() if hasattr(module, name)}


@lru_cache(maxsize=1)
def _converts_halves() -> bool:
    """Whether a kernel may convert them: without the instruction LLVM calls a function that nobody provides."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    from llvmlite.binding import get_host_cpu_features  # type: ignore[import-untyped]

    return bool(get_host_cpu_features().get("f16c"))
