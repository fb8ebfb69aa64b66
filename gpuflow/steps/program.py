"""A program that is run once, to its end: within its time, in bounded memory of its own and of ours, and nothing of it is left over.

It is the head of a process group of its own, which is killed as a whole when its time is up, and in any case at its end. Where there is
`setpriv` (util-linux) it is killed too when the process dies that started it."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

KEPT_NBYTES = 16 * 2**10
"""Of what it says: the last."""
_PIECE_NBYTES = 2**16
_LINGER_SECONDS = 1.0  # for what is in the pipes when it has ended


@dataclass(frozen=True, slots=True)
class Ended:
    """status: its exit status, or minus a signal's number; None when its time was up. output: of its stdout, if it was asked for.
    said: the end of its stderr, and of its stdout if that was not asked for. overflow: it wrote more than it might."""

    status: int | None
    output: bytes
    said: str
    overflow: bool = False


def run_program(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    *,
    given: bytes | memoryview | None = None,
    most: int | None = None,
    timeout_seconds: float,
    memory_nbytes: int | None = None,
) -> Ended:
    """Run `command` in `folder`. given: its stdin. most: bytes of its stdout that are taken; None to have it with what it says.

    OSError when it cannot be started."""
    if shutil.which(command[0], path=environment.get("PATH")) is None:
        raise FileNotFoundError(2, "there is no such program on this node", command[0])
    process = subprocess.Popen(
        [*_dying_with_us(), *_limited(memory_nbytes), *command],
        stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if most is None else subprocess.PIPE,
        env=dict(environment),
        cwd=folder,
        bufsize=0,
        start_new_session=True,
    )
    try:
        return _Watch(process, given, most).until(time.monotonic() + timeout_seconds)
    finally:
        _kill_group(process)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@lru_cache(maxsize=1)
def _dying_with_us() -> tuple[str, ...]:
    command = ("setpriv", "--pdeathsig", "KILL", "--")
    with contextlib.suppress(OSError):
        if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    return ()


def _limited(memory_nbytes: int | None) -> tuple[str, ...]:
    """RLIMIT_AS, set between fork and exec by a shell: Python code must not run there in a process with threads."""
    return () if memory_nbytes is None else ("/bin/sh", "-c", 'ulimit -v "$0" && exec "$@"', str(-(-memory_nbytes // 1024)))


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """What it started too, unless that made a session of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class _Watch:
    """Feeds and drains the pipes until the program has ended."""

    def __init__(self, process: subprocess.Popen[bytes], given: bytes | memoryview | None, most: int | None) -> None:
        self._process, self._most = process, most
        self._left = memoryview(given or b"").cast("B")
        self._output, self._said, self._dropped = bytearray(), bytearray(), 0

    def until(self, deadline: float) -> Ended:
        process, overflow = self._process, False
        descriptor = os.pidfd_open(process.pid)
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            ends = {
                process.stdin: selectors.EVENT_WRITE,
                process.stdout: selectors.EVENT_READ,
                process.stderr: selectors.EVENT_READ,
            }
            for pipe, events in ends.items():
                if pipe is not None:
                    os.set_blocking(pipe.fileno(), False)
                    selector.register(pipe, events, pipe)
            while not overflow and len(selector.get_map()) and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.data is not None and self._serve(key.fd, key.data):
                        continue
                    selector.unregister(key.fileobj)
                    if key.data is None:  # it has ended; what it left behind may hold the pipes open
                        _kill_group(process)
                        deadline = min(deadline, time.monotonic() + _LINGER_SECONDS)
                overflow = self._most is not None and len(self._output) > self._most
        os.close(descriptor)
        return Ended(process.poll(), bytes(self._output), self._text(), overflow)

    def _serve(self, descriptor: int, pipe: IO[Any]) -> bool:
        """Whether there may be more to do."""
        try:
            if pipe is self._process.stdin:
                self._left = self._left[os.write(descriptor, self._left[:_PIECE_NBYTES]) :]
                if not self._left:
                    pipe.close()
                return bool(self._left)
            data = os.read(descriptor, _PIECE_NBYTES)
        except BlockingIOError:
            return True
        except BrokenPipeError:  # it does not want to read on
            return False
        if pipe is self._process.stdout and self._most is not None:
            self._output += data
        else:
            self._say(data)
        return bool(data)

    def _say(self, data: bytes) -> None:
        self._said += data
        if (over := len(self._said) - KEPT_NBYTES) > 0:
            del self._said[:over]
            self._dropped += over

    def _text(self) -> str:
        text = self._said.decode(errors="replace")
        return f"[{self._dropped} bytes before this]\n{text}" if self._dropped else text
