"""Any program on each chunk: it gets the chunk as a file or on its stdin, and gives one of the same shape back.

It runs on a node that holds the chunk, as the user that the worker runs as; therefore only on workers that were started with
`--allow-exec`. What the program does is not known to gpuflow: change `version` when it is another one, and chunks are made again."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PlainValidator

from gpuflow.errors import ProgramFailed
from gpuflow.settings import exec_is_allowed
from gpuflow.steps.base import Array, ArraySpec, Namespace, Region, Step, StepError
from gpuflow.steps.cast import DTypeName
from gpuflow.steps.parameters import describe, memory_nbytes, number
from gpuflow.steps.place import Place, current
from gpuflow.steps.program import Ended, run_program
from gpuflow.steps.spans import Spans
from gpuflow.units import format_nbytes

ALLOW = "start the workers with --allow-exec (gpuflow node, gpuflow run, or after --preload gpuflow.cluster)"
_HEADER_NBYTES = 2**16  # of a .npy file, at most


def _command(value: Any) -> tuple[str, ...]:
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not parts or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"must be a list of a program and its arguments, all of them text, not {describe(value)}")
    if not parts[0].strip() or any("\0" in part for part in parts):
        raise ValueError("names no program")
    if isinstance(value, str) and " " in value:
        raise StepError("is one word for the program", f"write each argument on its own: [{', '.join(value.split())}]")
    if "/" in parts[0] and not parts[0].startswith("/"):
        raise StepError(f"`{parts[0]}` is a relative path", "give an absolute one, or a name on the workers' PATH")
    return tuple(parts)


def _seconds(value: Any) -> float:
    if not (seconds := float(number(value))) > 0:
        raise ValueError(f"must be more than 0, not {value}")
    return seconds


class Exec(Step, frozen=True):
    """`command`: the program and its arguments. It finds `GPUFLOW_INPUT_FILE`, `GPUFLOW_OUTPUT_FILE`, `GPUFLOW_DATASET`, `GPUFLOW_ARRAY`,
    `GPUFLOW_CHUNK`, `GPUFLOW_SHAPE` and `GPUFLOW_DTYPE` in its environment; its working directory is its own."""

    kind: ClassVar[str] = "exec"
    about: ClassVar[str] = "Any program on each chunk. Workers have to be started with --allow-exec."
    shorthand: ClassVar[tuple[str, ...]] = ("command",)
    chunkwise: ClassVar[bool] = True
    runs_programs: ClassVar[bool] = True
    examples: ClassVar[tuple[Any, ...]] = (
        {"command": ["denoise", "--strength", "3"], "timeout_seconds": 60},
        ["/opt/tools/mask-clouds", "--fast"],
    )

    command: Annotated[
        tuple[str, ...],
        PlainValidator(_command, json_schema_input_type=str | list[str]),
        Field(description="The program and its arguments, one by one. No shell is involved."),
    ]
    format: Annotated[
        Literal["npy", "raw"],
        Field(description="npy: NumPy's file format; raw: the values alone, in C order and in the byte order of the machine."),
    ] = "npy"
    via: Annotated[
        Literal["file", "pipe"],
        Field(description="file: GPUFLOW_INPUT_FILE and GPUFLOW_OUTPUT_FILE; pipe: stdin and stdout."),
    ] = "file"
    returns: Annotated[DTypeName | None, Field(description="The dtype that comes out; that of the chunk when left out.")] = None
    timeout_seconds: Annotated[
        float,
        PlainValidator(_seconds, json_schema_input_type=int | float),
        Field(description="For one chunk; then it is killed with all that it started, and the chunk has failed."),
    ] = 300.0
    memory: Annotated[
        int | None,
        PlainValidator(memory_nbytes, json_schema_input_type=int | str | None),
        Field(description="Address space that it may have (RLIMIT_AS), such as 2GiB."),
    ] = None
    program_version: Annotated[
        str, Field(description="Of the program: any text. Change it when the program is another one, and chunks are made again.")
    ] = ""

    def check(self, array: ArraySpec) -> ArraySpec:
        return array if self.returns is None else replace(array, dtype=np.dtype(self.returns))

    def pull(self, array: ArraySpec, region: Region) -> Region:
        return region

    def pull_all(self, array: ArraySpec, spans: Spans) -> Spans:
        return spans

    def cut(self, array: ArraySpec, chunks: tuple[int, ...]) -> tuple[int, ...]:
        return chunks

    def compute(self, xp: Namespace, block: Array, array: ArraySpec, region: Region) -> Array:
        if not exec_is_allowed():
            raise StepError("exec: this worker may not run programs", ALLOW)
        place = current.get() or Place("", "", "", Path(tempfile.gettempdir()))
        out_dtype = self.check(array).dtype
        folder = tempfile.mkdtemp(prefix="exec-", dir=place.scratch)
        try:
            return self._through(np.ascontiguousarray(block).reshape(block.shape), out_dtype, place, Path(folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _through(self, block: Array, dtype: np.dtype[Any], place: Place, folder: Path) -> Array:
        given, taken = folder / f"input.{self.format}", folder / f"output.{self.format}"
        environment = {**os.environ, **_about(block, dtype, place)}
        options: dict[str, Any] = {"timeout_seconds": self.timeout_seconds, "memory_nbytes": self.memory}
        nbytes = prod(block.shape) * dtype.itemsize
        if self.via == "pipe":
            most = nbytes + (_HEADER_NBYTES if self.format == "npy" else 0)
            options |= {"given": _encoded(block, self.format), "most": most}
        else:
            given.write_bytes(_encoded(block, self.format))
            environment |= {"GPUFLOW_INPUT_FILE": str(given), "GPUFLOW_OUTPUT_FILE": str(taken)}
        try:
            ended = run_program(self.command, environment, folder, **options)
        except OSError as error:
            raise self._failed(f"cannot be started: {error.strerror or error}", "") from error
        self._check_end(ended, nbytes)
        if self.via == "file" and not taken.is_file():
            raise self._failed("wrote no GPUFLOW_OUTPUT_FILE", ended.said)
        data = ended.output if self.via == "pipe" else taken.read_bytes()
        return self._decoded(data, block.shape, dtype, ended.said)

    def _check_end(self, ended: Ended, nbytes: int) -> None:
        if ended.overflow:
            raise self._failed(f"wrote more than the {format_nbytes(nbytes)} of a chunk to its stdout", ended.said)
        if ended.status is None:
            raise self._failed(f"had not ended after {self.timeout_seconds:g} s and was killed", ended.said)
        if ended.status < 0:
            raise self._failed(f"was ended by signal {-ended.status}", ended.said)
        if ended.status:
            raise self._failed(f"ended with status {ended.status}", ended.said)

    def _decoded(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], said: str) -> Array:
        if self.format == "raw":
            if len(data) != prod(shape) * dtype.itemsize:
                wanted = f"{prod(shape) * dtype.itemsize} bytes of {list(shape)} {dtype}"
                raise self._failed(f"gave {len(data)} bytes and not {wanted}", said)
            return np.frombuffer(data, dtype).reshape(shape).copy()
        try:
            out = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise self._failed(f"gave no .npy file: {error}", said) from None
        if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype:
            what = f"{list(out.shape)} {out.dtype}" if isinstance(out, np.ndarray) else "several arrays"
            raise self._failed(f"gave {what} and not {list(shape)} {dtype}", said)
        return np.ascontiguousarray(out).reshape(shape)

    def _failed(self, reason: str, said: str) -> ProgramFailed:
        return ProgramFailed(self.command[0], reason, said)


def _about(block: Array, dtype: np.dtype[Any], place: Place) -> Mapping[str, str]:
    return {
        "GPUFLOW_DATASET": place.dataset,
        "GPUFLOW_ARRAY": place.array,
        "GPUFLOW_CHUNK": place.chunk,
        "GPUFLOW_SHAPE": ",".join(map(str, block.shape)),
        "GPUFLOW_DTYPE": block.dtype.name,
        "GPUFLOW_OUTPUT_DTYPE": dtype.name,
    }


def _encoded(block: Array, form: str) -> bytes:
    if form == "raw":
        return bytes(block.tobytes())
    stream = io.BytesIO()
    np.save(stream, block, allow_pickle=False)
    return stream.getvalue()
