"""CUDA kernels compiled for the CPU: the same text, run by a loop over the threads that a device would run at once."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpuflow.backends import cuda_source
from gpuflow.backends.program import Program

COMPILER = shutil.which("g++") or shutil.which("c++")

_THREADS = """
#define __global__
#define __restrict__
struct { unsigned x; } gridDim, blockDim, blockIdx, threadIdx;
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
    assert COMPILER is not None
    texts = []
    for number, (program, varying) in enumerate(programs):
        code, header = cuda_source.write(program, varying), cuda_source.header()
        kinds = [f"(const {_c(program.instructions[0])}*)at[1]", f"({_c(program.instructions[program.result])}*)at[2]"]
        for index, parameter in enumerate(program.parameters):
            kinds += [
                f"(const i8*)at[{2 * index + 3}]",
                f"(const {cuda_source._stored(parameter.values.dtype)}*)at[{2 * index + 4}]",
            ]
        loop = _LOOP.replace("ARGUMENTS", ", ".join(kinds))
        text = (code.removeprefix(header) + loop).replace('extern "C" __global__', "static")
        texts.append(f"namespace n{number} {{\n{text}\n}}".replace("all_threads", f"run{number}"))
    source, library = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text("\n".join([_THREADS, "#define INDEX unsigned", cuda_source.header(), *texts]))
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fwrapv", "-shared", "-fPIC", "-Wno-unknown-pragmas"]
    subprocess.run([COMPILER, *flags, "-o", str(library), str(source)], check=True)
    loaded = ctypes.CDLL(str(library))
    return [_caller(getattr(loaded, f"run{number}")) for number in range(len(programs))]


def _c(one: Any) -> str:
    return cuda_source._stored(one.dtype)


def _caller(function: Any) -> Any:
    def call(size: int, span: int, period: int, together: bool, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
        pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        function(3, 32, size, span, period, int(together), pointers)

    return call
