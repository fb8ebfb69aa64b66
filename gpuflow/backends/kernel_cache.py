"""Generated kernels as files, so that a process loads what another has compiled.

A file is written once, whole or not at all, under the digest of its text, and never changes. `GPUFLOW_CACHE` names the folder;
else it is the user's cache, and when that cannot be written, a temporary folder of the user's own."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_loaded: dict[str, ModuleType] = {}


def load(source: str) -> ModuleType:
    """The module that `source` is the text of, compiled at most once per process. Safe in threads and between processes.

    source: decorates its functions with `jit(signature)`, a name that it finds in its globals."""
    digest = hashlib.blake2b(source.encode(), digest_size=16).hexdigest()
    with _lock:
        if digest not in _loaded:
            _loaded[digest] = _load(digest, source)
        return _loaded[digest]


def _load(digest: str, source: str) -> ModuleType:
    path = folder(os.environ.get("GPUFLOW_CACHE"), os.environ.get("XDG_CACHE_HOME")) / f"kernel_{digest}.py"
    try:
        _write_once(path, source)
        with _alone(path):
            return _run(path, source, cached=True)
    except Exception as error:  # noqa: BLE001  (what a damaged or full cache raises is up to pickle, numba and the system)
        logger.warning("compiling without the kernel cache %s: %s: %s", path.parent, type(error).__name__, error)
        return _run(path, source, cached=False)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While another process compiles the same, wait, and then find what it compiled. A file system without locks is not waited for."""
    with path.open("rb") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(path: Path, source: str, cached: bool) -> ModuleType:
    """Executes the text that was asked for, not what the file may hold; numba looks at the file's name and age only."""
    from gpuflow.backends.lean_numba import njit

    name = f"gpuflow_{path.stem}"
    module = ModuleType(name)
    module.__file__ = str(path)
    module.__dict__["jit"] = lambda signature: njit(signature, nogil=True, error_model="numpy", cache=cached)
    sys.modules[name] = module
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def _write_once(path: Path, text: str) -> None:
    """A file that is there is left as it is: its age is part of numba's key. OSError when it cannot be written."""
    if path.exists():
        return
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        # Unlike a rename, a link fails when another process was first.
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)


@lru_cache(maxsize=8)
def folder(asked: str | None, cache_home: str | None) -> Path:
    """The folder of kernels: the one asked for, the user's cache, or a temporary one, whichever can be written first.

    One that others may write is not used: what lies in it is run."""
    usual = Path(cache_home) if cache_home else Path.home() / ".cache"
    choices = [Path(asked)] if asked else [usual / "gpuflow" / "kernels"]
    for choice in (*choices, Path(tempfile.gettempdir()) / f"gpuflow-kernels-{os.getuid()}"):
        if _is_ours(choice):
            return choice.absolute()
    return Path(tempfile.mkdtemp(prefix="gpuflow-kernels-"))


def _is_ours(path: Path) -> bool:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = path.stat()
        with tempfile.TemporaryFile(dir=path):
            return state.st_uid == os.geteuid() and not state.st_mode & 0o022
    except OSError:
        return False
