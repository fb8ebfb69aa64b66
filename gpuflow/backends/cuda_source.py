"""The text of a CUDA kernel that computes a program in one pass: one read and one write of memory, 16 bytes at a time. Pure.

Only the program's own tables and the bits of its numbers reach the text: never a word of a pipeline."""

from __future__ import annotations

from importlib.resources import files
from string import Template

import numpy as np

from gpuflow.backends.operations import COMPARISONS, SYMBOLS, DType, NotExpressible
from gpuflow.backends.program import Instruction, Program

HEADER = "cuda_scalar.h"
"""The functions that the text calls; it stands before it."""
ENTRY = "run"
"""The kernel's name."""

_WHOLE = ("absolute", "floor", "ceil", "trunc", "rint")
_HELPERS = "cbrt exp exp2 expm1 log log1p log2 log10 sin cos tan arcsin arccos arctan sinh cosh tanh arcsinh arccosh arctanh"
_HELPERS += " arctan2 hypot power logaddexp sqrt floor ceil trunc rint"
_VECTOR_NBYTES = 16  # the widest load there is

_KERNEL = Template("""
struct alignas($in_nbytes) In { $source at[$width]; };
struct alignas($out_nbytes) Out { $target at[$width]; };

// size: elements. Element i lies in row i / span; within a row the parameters repeat every `period` elements.
// together: neither span nor period cuts the $width elements of a load. unfit: set when a check fails.
extern "C" __global__ void $entry(INDEX size, INDEX span, INDEX period, int together, u4* unfit,
    const $source* __restrict__ x, $target* out$arguments) {
    const INDEX step = (INDEX)gridDim.x * blockDim.x, first = (INDEX)blockIdx.x * blockDim.x + threadIdx.x;
    const INDEX loads = size / $width;
    bool bad = false;
    for (INDEX load = first; load < loads; load += step) {
        const In in = ((const In*)x)[load];
        Out made;
        [[maybe_unused]] INDEX row = load * $width / span, phase = load * $width % span % period;
        #pragma unroll
        for (int j = 0; j < $width; ++j) {
            if (!together) row = (load * $width + j) / span, phase = (load * $width + j) % span % period;
            made.at[j] = element(in.at[j], bad$values);
            ++phase;
        }
        ((Out*)out)[load] = made;
    }
    for (INDEX i = loads * $width + first; i < size; i += step) {
        [[maybe_unused]] const INDEX row = i / span, phase = i % span % period;
        out[i] = element(x[i], bad$values);
    }
    if (bad) *unfit = 1;
}
""")


def guard(program: Program) -> Program:
    """With a check that exponents of integers are not negative: NumPy raises an error for one that is."""
    code, checks = list(program.instructions), list(program.checks)
    for one in program.instructions:
        if one.kind == "call" and one.name == "power" and one.dtype.kind == "i":
            zero = len(code)
            code.append(Instruction("constant", one.dtype, value=one.dtype.type(0)))
            code.append(Instruction("call", np.dtype(bool), "greater_equal", (one.arguments[1], zero)))
            checks.append(zero + 1)
    return Program(code, program.parameters, program.result, checks)


def header() -> str:
    """The text of `HEADER`."""
    return (files("gpuflow.backends") / HEADER).read_text()


def write(program: Program, varying: bool) -> str:
    """The kernel, with its header. varying: parameters have one value per element of a row, else one per row; see `layout`.

    It is compiled with INDEX defined as an unsigned type that holds the number of elements. NotExpressible when it would not be exact."""
    source, target = program.instructions[0].dtype, program.instructions[program.result].dtype
    elements = width(program)
    numbers = range(len(program.parameters))
    names = [stored(parameter.values.dtype) for parameter in program.parameters]
    columns = [
        f"p{number}[(INDEX)r{number}[row] * period + phase]" if varying else f"p{number}[r{number}[row]]" for number in numbers
    ]
    kernel = _KERNEL.substitute(
        entry=ENTRY,
        width=elements,
        source=stored(source),
        target=stored(target),
        in_nbytes=elements * source.itemsize,
        out_nbytes=elements * target.itemsize,
        arguments="".join(f", const i8* __restrict__ r{n}, const {names[n]}* __restrict__ p{n}" for n in numbers),
        values="".join(f", {column}" for column in columns),
    )
    return f"{header()}\n{element(program)}\n{kernel}"


def width(program: Program) -> int:
    """Elements of one load."""
    return max(1, _VECTOR_NBYTES // max(program.instructions[index].dtype.itemsize for index in (0, program.result)))


def element(program: Program) -> str:
    """The function of one element: (stored value, whether a check failed, stored value of each parameter) -> stored result."""
    code = program.instructions
    target = code[program.result].dtype
    parameters = [f"{stored(parameter.values.dtype)} p{number}" for number, parameter in enumerate(program.parameters)]
    lines = [f"FN {stored(target)} element({', '.join([f'{stored(code[0].dtype)} x', 'bool& bad', *parameters])}) {{"]
    for number, one in enumerate(code):
        lines.append(f"    const {_held(one.dtype)} v{number} = {_value(program, one)};")
    lines += [f"    bad |= !v{index};" for index in program.checks]
    result = f"v{program.result}"
    return "\n".join([*lines, f"    return {f'store_half({result})' if target == np.float16 else result};", "}"])


def stored(dtype: DType) -> str:
    """The type of a value in memory."""
    return {"b": "bool", "f": "u2" if dtype.itemsize == 2 else f"f{dtype.itemsize}"}.get(
        dtype.kind, f"{dtype.kind}{dtype.itemsize}"
    )


def _held(dtype: DType) -> str:
    """The type of a value that is computed with."""
    return "f4" if dtype == np.float16 else stored(dtype)


def _value(program: Program, one: Instruction) -> str:
    if one.kind == "constant":
        return _constant(one)
    if one.kind in ("load", "parameter"):
        name = "x" if one.kind == "load" else f"p{one.number}"
        return f"load_half({name})" if one.dtype == np.float16 else name
    names = [f"v{index}" for index in one.arguments]
    if one.name == "power" and one.dtype.kind in "iu":
        return f"({_held(one.dtype)})power_whole((u8){names[0]}, (u8){names[1]})"
    text = _call(one, program.instructions[one.arguments[0]].dtype, names)
    if one.dtype == np.float16 and not text.startswith("round_half"):
        return f"round_half((f4)({text}))"
    return f"({_held(one.dtype)})({text})"


def _constant(one: Instruction) -> str:
    if one.dtype.kind == "f":
        wide = np.dtype(np.float64 if one.dtype == np.float64 else np.float32)
        bits = np.asarray(one.value, wide).view(f"u{wide.itemsize}")
        return f"f{wide.itemsize}_of({int(bits):#x}U{'LL' if wide.itemsize == 8 else ''})"
    return f"({_held(one.dtype)}){int(one.value) % 2 ** (8 * one.dtype.itemsize):#x}ULL"


def _call(one: Instruction, dtype: DType, names: list[str]) -> str:
    """dtype: of the first argument."""
    name, x, y = one.name, names[0], names[-1]
    if name == "cast":
        return _cast(x, dtype, one.dtype)
    if name == "where":
        return f"{x} ? {names[1]} : {y}"
    if name == "clip":
        return f"clip_({', '.join(f'({_held(dtype)}){value}' for value in names)})"
    if name in COMPARISONS:
        return f"{x} {SYMBOLS[name]} {y}"
    if name in ("minimum", "maximum"):
        return _extremum(name, x, y, dtype)
    by_kind = {"b": _on_bool, "f": _on_float}.get(dtype.kind, _on_integer)
    text = by_kind(name, x, y, dtype)
    if text is None:
        raise NotExpressible(f"{name} of {dtype} is left to NumPy")
    return text


def _cast(x: str, source: DType, target: DType) -> str:
    """`astype`."""
    if target.kind == "b":
        return f"{x} != 0"
    if source.kind == "f" and target.kind in "iu":
        wide = target.itemsize == 8 or target == np.uint32
        return f"to_{'uint64' if target == np.uint64 else 'int64' if wide else 'int32'}({x})"
    if target == np.float16:
        return f"round_half({x})" if source.kind == "f" else f"round_half((f4){x})"
    return x


def _extremum(name: str, x: str, y: str, dtype: DType) -> str:
    """The first NaN stays. Of equal values, which may be zeros of both signs, NumPy's loops take the second; of halves the first."""
    sign = (">" if name == "maximum" else "<") + ("=" if dtype == np.float16 else "")
    return f"{x} {sign} {y} || {x} != {x} ? {x} : {y}"


def _on_bool(name: str, x: str, y: str, dtype: DType) -> str | None:
    symbol = {"add": "|", "multiply": "&", "bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^"}.get(name)
    if symbol:
        return f"{x} {symbol} {y}"
    return {"isnan": "false", "isinf": "false", "isfinite": "true", "invert": f"!{x}"}.get(name) or (
        x if name in _WHOLE else None
    )


def _on_integer(name: str, x: str, y: str, dtype: DType) -> str | None:
    held, wide = _held(dtype), "u8" if dtype.itemsize == 8 else "u4"  # unsigned: integers wrap
    signed = dtype.kind == "i"
    if name in ("add", "subtract", "multiply"):
        return f"({wide}){x} {SYMBOLS[name]} ({wide}){y}"
    if name.startswith("bitwise_"):
        return f"{x} {SYMBOLS[name]} {y}"
    if name in ("floor_divide", "remainder"):
        return f"{name}_{'signed' if signed else 'unsigned'}<{held}>({x}, {y})"
    if name in _WHOLE:
        return f"{x} < 0 ? ({held})(0 - ({wide}){x}) : {x}" if name == "absolute" and signed else x
    return {
        "negative": f"0 - ({wide}){x}",
        "positive": x,
        "square": f"({wide}){x} * ({wide}){x}",
        "sign": f"({x} > 0) - ({x} < 0)" if signed else f"{x} != 0",
        "invert": f"~{x}",
        "isnan": "false",
        "isinf": "false",
        "isfinite": "true",
    }.get(name)


def _on_float(name: str, x: str, y: str, dtype: DType) -> str | None:
    held = _held(dtype)
    if name in SYMBOLS:
        return f"{x} {SYMBOLS[name]} {y}"
    if name in _HELPERS.split():
        return f"{name}_({', '.join([x, y] if name in ('arctan2', 'hypot', 'power', 'logaddexp') else [x])})"
    if name in ("floor_divide", "remainder"):
        return f"{name}_float({x}, {y})"
    if name in ("deg2rad", "rad2deg"):
        wide = np.float64 if dtype == np.float64 else np.float32
        pi, half_turn = wide(np.pi), wide(180)  # NumPy's factors: divided in the width of the loop
        factor = Instruction("constant", np.dtype(wide), value=pi / half_turn if name == "deg2rad" else half_turn / pi)
        return f"{x} * {_constant(factor)}"
    infinity = _constant(Instruction("constant", dtype, value=np.inf))
    return {
        "negative": f"-{x}",
        "positive": x,
        "square": f"{x} * {x}",
        "absolute": f"fabs_({x})",
        "reciprocal": f"1 / {x}",
        "sign": f"{x} != {x} ? {x} : ({held})(({x} > 0) - ({x} < 0))",
        "isnan": f"{x} != {x}",
        "isinf": f"fabs_({x}) == {infinity}",
        "isfinite": f"fabs_({x}) < {infinity}",
    }.get(name)
