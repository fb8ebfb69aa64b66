"""A user's function by `module:name`: where its source is, what belongs to it, and how it is loaded wherever it is needed.

A module that lies beside the pipeline's file (or anywhere outside of what is installed) goes along as text, with the modules beside it
that it imports: workers need no copy of it, and whoever has the text has the function. An installed module goes by name, with a digest
of its file, so that a worker with another version of it is found out."""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import linecache
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import xxhash

from gpuflow.errors import ConfigError, Problem
from gpuflow.steps.parameters import StepError, nearest

MAX_NBYTES = 2**20
"""Of source text that goes along; it stands in the dataset's record and in every task."""

_lock = threading.RLock()


@dataclass(frozen=True, slots=True)
class Source:
    """Of a function's module. texts: (module, source text), the function's own first, of modules that go along; () for an installed one.
    digest: of the texts, or of the installed module's file."""

    texts: tuple[tuple[str, str], ...]
    digest: str


def find_source(module: str, folder: Path | None) -> Source:
    """Of `module`, which is looked for in `folder` first. StepError when it is nowhere, or does not go along."""
    if folder is not None and (folder / f"{module}.py").is_file():
        return _collect(module, folder)
    origin = _installed_file(module, folder)
    if origin.suffix == ".py" and "." not in module and not _is_installed(origin):
        return _collect(module, origin.parent)
    return Source((), xxhash.xxh3_128_hexdigest(origin.read_bytes()))


def _installed_file(module: str, folder: Path | None) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:  # noqa: BLE001 - a parent package runs, and may raise anything
        if not isinstance(error, ModuleNotFoundError):
            raise StepError(f"the module `{module}` cannot be loaded: {_reason(error)}", "mend it") from None
        spec = None
    if spec is None or not spec.origin or spec.origin in ("built-in", "frozen"):
        beside = sorted(path.stem for path in folder.glob("*.py")) if folder else []
        near = nearest(module, beside)
        hint = (
            f"did you mean `{near}`?" if near else f"put {module.partition('.')[0]}.py beside the pipeline's file, or install it"
        )
        raise StepError(f"there is no module `{module}`", hint)
    return Path(spec.origin)


def _is_installed(path: Path) -> bool:
    """Whether workers may be taken to have it too."""
    places = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(place in path.resolve().parents for place in places)


def _collect(module: str, folder: Path) -> Source:
    """The module's text, and those of modules in `folder` that it imports, and so on."""
    texts: dict[str, str] = {}
    left = [module]
    while left:
        name = left.pop(0)
        if name not in texts:
            texts[name] = _read(folder / f"{name}.py")
            left += [other for other in _imports(name, texts[name]) if (folder / f"{other}.py").is_file()]
    if sum(map(len, texts.values())) > MAX_NBYTES:
        raise StepError(f"the source of `{module}` and what it imports is larger than 1 MiB", "install it on the workers instead")
    ordered = (module, *sorted(set(texts) - {module}))
    return _source(tuple((name, texts[name]) for name in ordered))


def _source(texts: tuple[tuple[str, str], ...]) -> Source:
    return Source(texts, xxhash.xxh3_128_hexdigest("\0".join(part for pair in texts for part in pair).encode()))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StepError(
            f"{path.name} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}", "mend it"
        ) from None


def _imports(name: str, text: str) -> Iterator[str]:
    """Top-level names of what a module imports, anywhere in it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise StepError(f"{name}.py is not Python: {_reason(error)}", "mend it") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def address_of(function: Callable[..., Any]) -> str:
    """`module:name` of a function. ConfigError when it is not to be found by that."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module == "__main__":
        file = getattr(sys.modules["__main__"], "__file__", None)
        module = Path(file).stem if file else None
    if not module or "<" in name or not name:
        hint = "define it at the top of a .py file, and give it as module:name"
        raise ConfigError([Problem(f"`{name or function!r}` cannot be found by its module and name", "apply", hint=hint)])
    return f"{module}:{name}"


@lru_cache(maxsize=64)
def load_function(address: str, source: Source) -> Callable[..., Any]:
    """The function `module:name`. StepError when its module does not load, has no such function, or is another than planned with."""
    module, _, name = address.partition(":")
    with _lock:
        found: Any = _load(module, source)
    for part in name.split("."):
        if not hasattr(found, part):
            near = nearest(
                part, [other for other in vars(found) if callable(getattr(found, other)) and not other.startswith("_")]
            )
            raise StepError(f"`{module}` has no function `{name}`", f"did you mean `{near}`?" if near else "define it there")
        found = getattr(found, part)
    if not callable(found):
        raise StepError(f"`{address}` is a {type(found).__name__} and not a function", "name a function")
    return found  # type: ignore[no-any-return]


def _load(module: str, source: Source) -> ModuleType:
    try:
        if source.texts:
            return _Texts.of(source).load(module)
        loaded = importlib.import_module(module)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # a user's module may even raise SystemExit
        raise StepError(
            f"the module `{module}` cannot be loaded: {_reason(error)}", "mend it, or install what it needs"
        ) from error
    if loaded.__file__ and xxhash.xxh3_128_hexdigest(Path(loaded.__file__).read_bytes()) != source.digest:
        raise StepError(
            f"the module `{module}` here is another than the one that the run was planned with", "install the same version"
        )
    return loaded


class _Texts:
    """Modules from their texts. They see each other by the names that they have; nobody else sees them, so that two versions of one name
    may be in use at once."""

    def __init__(self, source: Source) -> None:
        self._texts, self._mark = dict(source.texts), source.digest[:8]
        self._loaded: dict[str, ModuleType] = {}

    @classmethod
    def of(cls, source: Source) -> _Texts:
        """The one of this source: a module is run once a process."""
        return _known.setdefault(source.digest, cls(source))

    def load(self, name: str) -> ModuleType:
        if name in self._loaded:
            return self._loaded[name]
        text, file = self._texts[name], f"{name}.py"
        shown = f"<{self._mark}>/{file}"
        module = ModuleType(f"{name}@{self._mark}")
        module.__dict__.update(__file__=file, __builtins__={**vars(builtins), "__import__": self._import})
        linecache.cache[shown] = len(text), None, text.splitlines(keepends=True), shown  # for tracebacks
        sys.modules[module.__name__] = self._loaded[name] = module
        try:
            exec(compile(text, shown, "exec"), module.__dict__)
        except BaseException:
            del self._loaded[name], sys.modules[module.__name__]
            raise
        return module

    def _import(self, name: str, scope: Any = None, local: Any = None, wanted: Any = (), level: int = 0) -> Any:
        if level == 0 and name in self._texts:
            with _lock:
                return self.load(name)
        return builtins.__import__(name, scope, local, wanted, level)


_known: dict[str, _Texts] = {}


def _reason(error: BaseException) -> str:
    """What was raised, and in which line of whose file."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"line {error.lineno}: {error.msg}"
    trace, line = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith("<") and "/" in file:
            line = f"{file.rpartition('/')[2]}, line {trace.tb_lineno}: "
        trace = trace.tb_next
    return f"{line}{type(error).__name__}: {error}"
