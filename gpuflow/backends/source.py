"""The text of the functions that compute a program, one for each stage between what NumPy computes. Pure.

What vector libraries do best (exp, log, sin and the like) is left to NumPy, which a kernel hands a tile that is in cache: called one
by one they are 3 to 40 times slower.
Only the program's own tables and numbers written by `float.hex` and `int` reach the text: never a word of a pipeline."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files

import numpy as np

from gpuflow.backends.operations import DType, spell, type_name
from gpuflow.backends.program import Instruction, Program

_HELPERS = "sqrt fabs floor ceil trunc rint load_half store_half round_half round_half_double to_int32 to_int64 to_uint64"
_HELPERS += " clip_high floor_divide_signed floor_divide_unsigned remainder_signed remainder_unsigned"
_TYPES = "boolean int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64"


@dataclass(frozen=True, slots=True)
class Stage:
    """inputs: values read from memory (the load, results of NumPy); outputs: values written; checks: values that have to be true;
    calls: what NumPy computes next."""

    inputs: tuple[int, ...]
    parameters: tuple[int, ...]
    outputs: tuple[int, ...]
    checks: tuple[int, ...]
    calls: tuple[int, ...]

    @property
    def computes(self) -> bool:
        """Whether there is a function for it."""
        return bool(self.outputs or self.checks)


def divide(program: Program) -> Program:
    """The same program; calls that are left to NumPy are of the kind `numpy`. NotExpressible when another would not be exact."""
    code = [
        replace(one, kind="numpy") if one.kind == "call" and _text(program, one) is None else one for one in program.instructions
    ]
    return replace(program, instructions=code)


def _text(program: Program, one: Instruction) -> str | None:
    return spell(one.name, [program.instructions[index].dtype for index in one.arguments], one.dtype)


def stages(program: Program) -> tuple[Stage, ...]:
    """program: divided. The last stage has no calls."""
    level: list[int] = []
    for one in program.instructions:
        level.append(max((level[index] for index in one.arguments), default=0) + (one.kind == "numpy"))
    results = [program.result, *program.checks]
    needed = {index for index, _ in _needed(program, results, through_numpy=True)}
    found = []
    for depth in range(max(level[index] for index in results)):
        calls = [i for i in sorted(needed) if program.instructions[i].kind == "numpy" and level[i] == depth + 1]
        arguments = {index for call in calls for index in program.instructions[call].arguments}
        outputs = [i for i in sorted(arguments) if _is_computed(program.instructions[i])]
        found.append(_stage(program, outputs, [i for i in program.checks if level[i] == depth], calls))
    last = [] if program.instructions[program.result].kind == "numpy" else [program.result]
    return (*found, _stage(program, last, [i for i in program.checks if level[i] == len(found)], []))


def _is_computed(one: Instruction) -> bool:
    return one.kind in ("call", "parameter")


def _stage(program: Program, outputs: list[int], checks: list[int], calls: list[int]) -> Stage:
    used = _needed(program, [*outputs, *checks])
    inputs = tuple(index for index, one in used if one.kind in ("load", "numpy"))
    parameters = tuple(index for index, one in used if one.kind == "parameter")
    return Stage(inputs, parameters, tuple(outputs), tuple(checks), tuple(calls))


def _needed(program: Program, targets: Iterable[int], through_numpy: bool = False) -> list[tuple[int, Instruction]]:
    """The instructions that the targets need, in order; what NumPy has computed is taken as it is."""
    seen: set[int] = set()
    todo = list(targets)
    while todo:
        index = todo.pop()
        one = program.instructions[index]
        if index not in seen and (one.kind != "numpy" or through_numpy):
            todo.extend(one.arguments)
        seen.add(index)
    return [(index, program.instructions[index]) for index in sorted(seen)]


def write(program: Program, varying: bool) -> str:
    """The module of all stages of a divided program. varying: parameters have one value per element of a row, else one per row.

    A stage is `stageN(start, span, period, unfit, *inputs, *outputs, *(rows, values of each parameter))`; see `cpu.Compiled`. It sets
    unfit[0] when a check fails."""
    lines = [f"# numba {version('numba')}, numpy {version('numpy')}, helpers {_helpers_digest()}"]
    lines += ["from math import inf", f"from numba import {', '.join(_TYPES.split())}, types, void"]
    lines += ["import numpy as np", f"from gpuflow.backends.scalar import {', '.join(_HELPERS.split())}", ""]
    lines += [f"c{index} = {_constant(one)}" for index, one in enumerate(program.instructions) if one.kind == "constant"]
    for number, stage in enumerate(stages(program)):
        if stage.computes:
            lines += ["", "", *_function(program, stage, f"stage{number}", varying)]
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=1)
def _helpers_digest() -> str:
    """numba does not notice that a function which it has inlined is another one now."""
    return hashlib.blake2b((files("gpuflow.backends") / "scalar.py").read_bytes(), digest_size=8).hexdigest()


def _constant(one: Instruction) -> str:
    value, dtype = one.value, one.dtype
    if dtype.kind == "f":
        wide = "float64" if dtype == np.float64 else "float32"
        return f"np.{wide}(float.fromhex({float(value).hex()!r}))"
    return repr(bool(value)) if dtype.kind == "b" else f"np.{dtype.name}({int(value)})"


def _function(program: Program, stage: Stage, name: str, varying: bool) -> list[str]:
    dtype = [one.dtype for one in program.instructions]
    read = [f"m{index}" for index in stage.inputs]
    written = [f"o{index}" for index in stage.outputs]
    parameters = [(f"r{index}", f"p{index}") for index in stage.parameters]
    arguments = ["start", "span", "period", "unfit", *read, *written, *(one for pair in parameters for one in pair)]
    signature = ["int64"] * 3 + [_array(np.dtype(np.uint8), 1, False)]
    signature += [_array(dtype[index], 1, True) for index in stage.inputs]
    signature += [_array(dtype[index], 1, False) for index in stage.outputs]
    for index in stage.parameters:
        signature += [_array(np.dtype(np.int64), 1, True), _array(dtype[index], 2, True)]
    lines = [f"@jit(void({', '.join(signature)}))", f"def {name}({', '.join(arguments)}):"]
    lines += [f"    size = {(written + read)[0]}.size", "    position = 0", "    while position < size:"]
    lines += ["        row, within = (start + position) // span, (start + position) % span", "        phase = within % period"]
    lines += ["        count = min(period - phase, span - within, size - position)"]
    lines += [f"        {array}_ = {array}[position : position + count]" for array in read + written]
    columns = "phase : phase + count" if varying else "0"
    lines += [f"        {values}_ = {values}[{rows}[row], {columns}]" for rows, values in parameters]
    lines += ["        bad = False"] * bool(stage.checks)
    lines += ["        for j in range(count):"]
    lines += [f"            {line}" for line in _body(program, stage, varying)]
    lines += ["        if bad:", "            unfit[0] = 1"] * bool(stage.checks)
    return [*lines, "        position += count"]


def _body(program: Program, stage: Stage, varying: bool) -> list[str]:
    lines = []
    names = [f"c{index}" if one.kind == "constant" else f"v{index}" for index, one in enumerate(program.instructions)]
    for index, one in _needed(program, [*stage.outputs, *stage.checks]):
        if one.kind in ("load", "numpy"):
            lines.append(f"v{index} = {_load(f'm{index}_[j]', one.dtype)}")
        elif one.kind == "parameter":
            lines.append(f"v{index} = {_load(f'p{index}_[j]' if varying else f'p{index}_', one.dtype)}")
        elif one.kind == "call":
            text = str(_text(program, one)).format(*(names[argument] for argument in one.arguments))
            lines.append(f"v{index} = {_rounded(text, one.dtype)}")
    lines += [f"bad = bad | (not {names[index]})" for index in stage.checks]
    for index in stage.outputs:
        value = f"store_half({names[index]})" if program.instructions[index].dtype == np.float16 else names[index]
        lines.append(f"o{index}_[j] = {value}")
    return lines


def _load(element: str, dtype: DType) -> str:
    return f"load_half({element})" if dtype == np.float16 else element


def _rounded(text: str, dtype: DType) -> str:
    """After every operation the value is of its dtype again: integers wrap, halves are rounded."""
    if dtype.kind == "b":
        return text
    if dtype == np.float16 and not text.startswith("round_half"):
        return f"round_half(float32({text}))"
    return f"{type_name(dtype)}({text})"


def _array(dtype: DType, ndim: int, readonly: bool) -> str:
    element = {"float16": "uint16", "bool": "boolean"}.get(dtype.name, dtype.name)
    return f"types.Array({element}, {ndim}, 'C', readonly={readonly}, aligned={not readonly})"
