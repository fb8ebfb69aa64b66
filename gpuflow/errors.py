"""Every error a user can meet, in one tree.

    GpuflowError
    |- ConfigError            a YAML file, an option or a parameter is wrong
    |- NotFound               a dataset, array or source is not there
    |- NameTaken              the dataset's name is in use
    |- SourceError            a source cannot be ingested as it is
    |- StoreError             a store root cannot be used, or is full
    |- ChunkCorrupt           a replica's bytes are not those that were committed
    |- ChunkLost              no live replica of a chunk
    |- CannotRepair           what is damaged can be made anew neither by a pipeline nor from the origin
    |- StaleChunk             a chunk changed under a task: its commit is refused
    |- SourceChanged          chunks of the source changed while others were computed from them
    |- DatasetChanged         a chunk changed under a training
    |- SampleError            a sample could not be made: a user's function raised, or shapes differ
    |- StateMismatch          the state of a training is of other data, or of another order
    |- PlanTooLarge           a worker has not the memory that the chunks need
    |- DeviceFull             a device has no memory left for a chunk
    |- StatisticsError        a statistic that a step needs is unusable
    |- ProgramFailed          a program that a step runs on a chunk failed
    |- RunFailed              chunks of a run failed; carries the receipt
    `- ClusterError           no cluster, no plugin, no node, wrong version
       `- DeviceUnavailable   a named device is not there

Each carries its data as constructor arguments, so that it survives pickling, and says in words what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuflow.units import format_nbytes

__all__ = [
    "CannotRepair",
    "ChunkCorrupt",
    "ChunkLost",
    "ClusterError",
    "ConfigError",
    "DatasetChanged",
    "DeviceFull",
    "DeviceUnavailable",
    "GpuflowError",
    "NameTaken",
    "NotFound",
    "PlanTooLarge",
    "Problem",
    "ProgramFailed",
    "RunFailed",
    "SampleError",
    "SourceChanged",
    "SourceError",
    "StaleChunk",
    "StateMismatch",
    "StatisticsError",
    "StoreError",
]


class GpuflowError(Exception):
    """Base of all errors raised on purpose by gpuflow."""


class Problem:
    """One thing that is wrong in a configuration: where it is, what it is, what to do."""

    __slots__ = ("column", "hint", "line", "message", "path")

    def __init__(self, message: str, path: str = "", line: int | None = None, column: int | None = None, hint: str = "") -> None:
        self.message, self.path, self.line, self.column, self.hint = message, path, line, column, hint

    def __reduce__(self) -> tuple[Any, ...]:
        return Problem, (self.message, self.path, self.line, self.column, self.hint)

    def render(self, file: str | None) -> str:
        """`file:line:column: path: message; hint`, leaving out what is not known."""
        place = ":".join(str(part) for part in (file, self.line, self.column) if part is not None)
        parts = [part for part in (place, self.path, self.message) if part]
        return ": ".join(parts) + (f"; {self.hint}" if self.hint else "")


class ConfigError(GpuflowError, ValueError):
    """A configuration is wrong. `problems` lists everything found, in the order of the file; or is a text, as PyTorch's DataLoader makes
    the errors of its worker processes anew."""

    def __init__(self, problems: Sequence[Problem] | str, file: str | None = None) -> None:
        super().__init__(problems, file)
        self.problems, self.file = [Problem(problems)] if isinstance(problems, str) else list(problems), file

    def __str__(self) -> str:
        return "\n".join(problem.render(self.file) for problem in self.problems)


class NotFound(GpuflowError, LookupError):
    """`kind` (dataset, array, source, ...) called `name` does not exist."""

    def __init__(self, kind: str, name: str, known: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(kind, name, known, hint)
        self.kind, self.name, self.known, self.hint = kind, name, list(known), hint

    def __str__(self) -> str:
        text = f"no {self.kind} {self.name!r}"
        if self.hint:
            text += f"; {self.hint}"
        if self.known:
            shown = ", ".join(self.known[:8]) + (", ..." if len(self.known) > 8 else "")
            text += f"; there is: {shown}"
        return text


class NameTaken(GpuflowError):
    """A dataset of that name exists and was made from something else."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"dataset {self.name!r} {self.reason}"


class SourceError(GpuflowError):
    """A source, or one item of it, cannot be ingested."""

    def __init__(self, source: str, reason: str, hint: str = "") -> None:
        super().__init__(source, reason, hint)
        self.source, self.reason, self.hint = source, reason, hint

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}" + (f"; {self.hint}" if self.hint else "")


class StoreError(GpuflowError, OSError):
    """A node's store root cannot be read or written."""

    def __init__(self, root: str, reason: str, hint: str = "") -> None:
        super().__init__(root, reason, hint)
        self.root, self.reason, self.hint = root, reason, hint

    def __str__(self) -> str:
        return f"store root {self.root}: {self.reason}" + (f"; {self.hint}" if self.hint else "")


class ChunkCorrupt(GpuflowError):
    """The bytes of a replica differ from those committed. They are never returned."""

    def __init__(self, chunk: str, node: str, reason: str) -> None:
        super().__init__(chunk, node, reason)
        self.chunk, self.node, self.reason = chunk, node, reason

    def __str__(self) -> str:
        return f"chunk {self.chunk} on node {self.node} is damaged: {self.reason}; ingest or run again to make it anew"


class ChunkLost(GpuflowError, LookupError):
    """No live replica of a chunk that should exist."""

    def __init__(self, chunk: str, searched: Sequence[str] = ()) -> None:
        super().__init__(chunk, searched)
        self.chunk, self.searched = chunk, list(searched)

    def __str__(self) -> str:
        where = ", ".join(self.searched) or "no node"
        return f"no live replica of chunk {self.chunk} (searched: {where}); start the node that holds it, or ingest it again"


class CannotRepair(GpuflowError):
    """Chunks of a dataset can be made again neither by the pipeline that made them nor from their origin."""

    def __init__(self, dataset: str, reason: str) -> None:
        super().__init__(dataset, reason)
        self.dataset, self.reason = dataset, reason

    def __str__(self) -> str:
        return f"dataset {self.dataset!r} cannot be repaired: {self.reason}"


class StaleChunk(GpuflowError):
    """A commit found another generation than the one it was computed from."""

    def __init__(self, chunk: str, expected: int, found: int) -> None:
        super().__init__(chunk, expected, found)
        self.chunk, self.expected, self.found = chunk, expected, found

    def __str__(self) -> str:
        return f"chunk {self.chunk} is at generation {self.found}, not {self.expected}: another run changed it; run again"


class SourceChanged(GpuflowError):
    """Chunks of dataset `name` were not what they had been when the run was planned: parts of two generations are not mixed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"dataset {self.name!r} was changed while the run read it; run again"


class DatasetChanged(GpuflowError):
    """A chunk is no longer what it was when a training began to read the dataset. Generations; None where it is not known."""

    def __init__(self, chunk: str, began: int, found: int | None) -> None:
        super().__init__(chunk, began, found)
        self.chunk, self.began, self.found = chunk, began, found

    def __str__(self) -> str:
        now = f"at generation {self.found}" if self.found is not None else "gone"
        return (
            f"chunk {self.chunk} was at generation {self.began} when this loader was made and is {now}: the dataset was changed "
            "while it was read; make a new loader, or train on an output dataset that nothing changes in place"
        )


class SampleError(GpuflowError, ValueError):
    """Sample number `sample` of a dataset could not be made."""

    def __init__(self, dataset: str, sample: int, reason: str, hint: str = "") -> None:
        super().__init__(dataset, sample, reason, hint)
        self.dataset, self.sample, self.reason, self.hint = dataset, sample, reason, hint

    def __str__(self) -> str:
        return f"sample {self.sample} of dataset {self.dataset!r}: {self.reason}" + (f"; {self.hint}" if self.hint else "")


class StateMismatch(GpuflowError, ValueError):
    """The state of a training does not fit the loader. differing: (what, in the state, here)."""

    def __init__(self, differing: Sequence[tuple[str, Any, Any]]) -> None:
        super().__init__(differing)
        self.differing = list(differing)

    def __str__(self) -> str:
        parts = ", ".join(f"{what} was {then!r} and is {now!r}" for what, then, now in self.differing)
        return f"this state is of another training: {parts}; make the loader as it was made then, or begin anew without the state"


class PlanTooLarge(GpuflowError, MemoryError):
    """The chunks of `array` need more memory than a worker has. Bytes are of one worker with `threads` threads.

    fitting_threads: with how many it would do, 0 for none; fitting_chunks: shape of chunks that would do with `threads`."""

    def __init__(
        self,
        array: str,
        chunks: Sequence[int],
        chunk_nbytes: int,
        worker: str,
        threads: int,
        need_nbytes: int,
        have_nbytes: int,
        fitting_threads: int,
        fitting_chunks: Sequence[int],
    ) -> None:
        super().__init__(array, chunks, chunk_nbytes, worker, threads, need_nbytes, have_nbytes, fitting_threads, fitting_chunks)
        self.array, self.chunks, self.chunk_nbytes, self.worker, self.threads = (
            array,
            tuple(chunks),
            chunk_nbytes,
            worker,
            threads,
        )
        self.need_nbytes, self.have_nbytes = need_nbytes, have_nbytes
        self.fitting_threads, self.fitting_chunks = fitting_threads, tuple(fitting_chunks)

    def __str__(self) -> str:
        def counted(threads: int) -> str:
            return f"{threads} thread" + ("s" if threads > 1 else "")

        ways = [f"workers of at most {counted(self.fitting_threads)}"] if self.fitting_threads else []
        ways += [f"chunks of {' x '.join(map(str, self.fitting_chunks))}"] if self.fitting_chunks else []
        return (
            f"array {self.array!r}: a chunk of {' x '.join(map(str, self.chunks))} is {format_nbytes(self.chunk_nbytes)}; "
            f"{self.worker} with {counted(self.threads)} needs {format_nbytes(self.need_nbytes)} "
            f"and may use {format_nbytes(self.have_nbytes)}; {' or '.join(ways) or 'nothing smaller'} would fit"
        )


class StatisticsError(GpuflowError, ArithmeticError):
    """A statistic over the data cannot be used by the step that asked for it."""

    def __init__(self, where: str, reason: str, hint: str = "") -> None:
        super().__init__(where, reason, hint)
        self.where, self.reason, self.hint = where, reason, hint

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f"; {self.hint}" if self.hint else "")


class ProgramFailed(GpuflowError):
    """A program that a step ran on a chunk failed. said: the end of what it wrote to its stderr."""

    def __init__(self, program: str, reason: str, said: str = "") -> None:
        super().__init__(program, reason, said)
        self.program, self.reason, self.said = program, reason, said

    def __str__(self) -> str:
        lines = self.said.strip().splitlines()
        return f"the program {self.program} {self.reason}" + (f"; it said: {lines[-1][:200]}" if lines else "")


class RunFailed(GpuflowError):
    """Some chunks failed; the others are done. `receipt` is the run's receipt as a dict."""

    def __init__(self, receipt: dict[str, Any]) -> None:
        super().__init__(receipt)
        self.receipt = receipt

    def __str__(self) -> str:
        failures = self.receipt["failures"]
        first = f": {failures[0]['chunk']}: {failures[0]['error']}" if failures else ""
        return f"{self.receipt['chunks']['failed']} of {self.receipt['chunks']['total']} chunks failed{first}"


class ClusterError(GpuflowError, RuntimeError):
    """The cluster cannot do what is asked."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason, hint)
        self.reason, self.hint = reason, hint

    def __str__(self) -> str:
        return self.reason + (f"; {self.hint}" if self.hint else "")


class DeviceUnavailable(ClusterError):
    """A device was named that is not there."""


class DeviceFull(GpuflowError, MemoryError):
    """A device has no memory left for a chunk. free, nbytes: of the device, in bytes."""

    def __init__(self, asked: str, free: int, nbytes: int) -> None:
        super().__init__(asked, free, nbytes)
        self.asked, self.free, self.nbytes = asked, free, nbytes

    def __str__(self) -> str:
        of = f"{self.free / 2**30:.1f} of {self.nbytes / 2**30:.1f} GiB are free"
        return f"the device is full: {of} ({self.asked}); write smaller chunks, or end what else uses the device"
