"""CUDA kernels compiled for the CPU: the same text, run by a loop over the threads that a device would run at once."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpuflow.backends import cuda_moments, cuda_source
from gpuflow.backends.cuda_moments import PART, Passes
from gpuflow.backends.program import Program

COMPILER = shutil.which("g++") or shutil.which("c++")

_THREADS = """
#define __global__
#define __restrict__
struct { unsigned x, y; } gridDim, blockDim, blockIdx, threadIdx;
"""
_LOOP = """
extern "C" void all_threads(unsigned blocks, unsigned threads, INDEX size, INDEX span, INDEX period, int together, void** at) {
    gridDim.x = blocks; blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
            run(size, span, period, together, (u4*)at[0], ARGUMENTS);
}
"""


def build(programs: Sequence[tuple[Program, bool]], folder: Path) -> list[Any]:
    """For each (program, varying) a function of (size, span, period, together, arrays): as one library, since compilers start slowly."""
    texts = []
    for number, (program, varying) in enumerate(programs):
        code, header = cuda_source.write(program, varying), cuda_source.header()
        kinds = [f"(const {_c(program.instructions[0])}*)at[1]", f"({_c(program.instructions[program.result])}*)at[2]"]
        for index, parameter in enumerate(program.parameters):
            kinds += [
                f"(const i8*)at[{2 * index + 3}]",
                f"(const {cuda_source.stored(parameter.values.dtype)}*)at[{2 * index + 4}]",
            ]
        loop = _LOOP.replace("ARGUMENTS", ", ".join(kinds))
        text = (code.removeprefix(header) + loop).replace('extern "C" __global__', "static")
        texts.append(f"namespace n{number} {{\n{text}\n}}".replace("all_threads", f"run{number}"))
    loaded = _compile([_THREADS, "#define INDEX unsigned", cuda_source.header(), *texts], folder)
    return [_caller(getattr(loaded, f"run{number}")) for number in range(len(programs))]


def _c(one: Any) -> str:
    return cuda_source.stored(one.dtype)


def _caller(function: Any) -> Any:
    def call(size: int, span: int, period: int, together: bool, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
        pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        function(3, 32, size, span, period, int(together), pointers)

    return call


_MOMENTS_LOOP = """
#define EACH_THREAD(rows, columns, CALL) \\
    gridDim.x = columns; blockDim.x = 32; \\
    for (blockIdx.y = 0; blockIdx.y < rows; ++blockIdx.y) \\
        for (blockIdx.x = 0; blockIdx.x < columns; ++blockIdx.x) \\
            for (threadIdx.x = 0; threadIdx.x < 32; ++threadIdx.x) CALL;
extern "C" void all_moments(INDEX outer, INDEX kept, INDEX inner, INDEX threads, int flat, void* x, void* parts) {
    EACH_THREAD((flat ? 1 : kept), (threads + 31) / 32, moments(outer, kept, inner, threads, flat, (const VALUE*)x, (Part*)parts))
}
extern "C" void all_merges(INDEX kept, INDEX inner, INDEX count, INDEX groups, void* parts, void* out) {
    EACH_THREAD(1, (kept * groups + 31) / 32, merge_parts(kept, inner, count, groups, (const Part*)parts, (Part*)out))
}
"""


def build_moments(dtype: np.dtype[Any], folder: Path) -> Any:
    """A function of (C-contiguous block, passes) that gives a `PART` for each kept index."""
    header = cuda_source.header()
    text = cuda_moments.source(dtype).removeprefix(header).replace('extern "C" __global__', "static")
    library = _compile([_THREADS, "#define INDEX unsigned", header, text, _MOMENTS_LOOP], folder)

    def run(block: np.ndarray[Any, Any], passes: Passes) -> np.ndarray[Any, Any]:
        parts = np.zeros(passes.parts, PART)
        sizes = (passes.outer, passes.kept, passes.inner, passes.threads)
        library.all_moments(*sizes, int(passes.flat), _pointer(block), _pointer(parts))
        for inner, count, groups in passes.merges():
            merged = np.zeros(passes.kept * groups, PART)
            library.all_merges(passes.kept, inner, count, groups, _pointer(parts), _pointer(merged))
            parts = merged
        return parts

    return run


def _pointer(array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _compile(texts: Sequence[str], folder: Path) -> ctypes.CDLL:
    source, library = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text("\n".join(texts))
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fwrapv", "-shared", "-fPIC", "-Wno-unknown-pragmas"]
    subprocess.run([str(COMPILER), *flags, "-o", str(library), str(source)], check=True)
    return ctypes.CDLL(str(library))
