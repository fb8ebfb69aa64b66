"""`@gpuflow.on("raw")`: a function of the user's is called with each event of a dataset, on a node that holds the chunk.

The function goes along with the call, as Dask ships functions; the chunk is read there, with its digest checked, when the function asks for
it. Calls follow each other in the order of each chunk's events. What raises is tried again, and then written down, and the others go on."""

from __future__ import annotations

import importlib.util
import logging
import sys
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from distributed import CancelledError, Future, get_worker
from numpy.typing import NDArray

from gpuflow.cluster.connection import Connection
from gpuflow.errors import ChunkLost, ConfigError, Problem
from gpuflow.pipelines.spec import check_dataset_name
from gpuflow.storage.node import EMPTY, NodeStore
from gpuflow.triggers.delivery import NotTaken
from gpuflow.triggers.event import Event

logger = logging.getLogger(__name__)

Function = Callable[[Event, "Chunk | None"], Any]
_REGISTERED: list[Handler] = []
_LOOK_SECONDS = 2.0  # at whether the nodes of a call are still there


@dataclass(frozen=True)
class Handler:
    """A registered function. name: under which is kept how far it has come."""

    function: Function
    dataset: str
    name: str
    tries: int


def on(dataset: str, *, name: str | None = None, tries: int = 5) -> Callable[[Function], Function]:
    """Register a function `(event, chunk)` for the events of a dataset; `gpuflow watch FILE.py` calls it. chunk: lazy, see `Chunk`; None
    for an event of the whole dataset, or of a chunk that is gone. name: under which is kept how far it has come (default: the function's
    own). tries: calls of it for one event before that is given up. It may be called twice for one event, after a crash."""
    check_dataset_name(dataset)

    def register(function: Function) -> Function:
        known = name or f"{Path(function.__code__.co_filename).stem}.{function.__name__}"
        if any(handler.name == known for handler in _REGISTERED):
            raise ConfigError([Problem(f"two functions are called {known!r}", hint="give one of them another `name`")])
        _REGISTERED.append(Handler(function, dataset, known, tries))
        return function

    return register


def functions_of(file: Path) -> list[Handler]:
    """Those that a Python file registers when it is loaded. ConfigError when it cannot be, or registers none."""
    before = len(_REGISTERED)
    spec = importlib.util.spec_from_file_location(f"gpuflow_functions_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ConfigError([Problem("there is no such file", hint="check the path")], str(file))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    cloudpickle.register_pickle_by_value(module)  # workers need no copy of it
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        raise ConfigError([Problem(f"{type(error).__name__}: {error}", line=line)], str(file)) from error
    found = _REGISTERED[before:]
    if not found:
        raise ConfigError([Problem("registers no function", hint='write `@gpuflow.on("DATASET")` before one')], str(file))
    return found


def handlers_of(functions: Sequence[Function]) -> list[Handler]:
    """Of functions of this process. ConfigError for one that is not registered."""
    found = []
    for function in functions:
        handlers = [handler for handler in _REGISTERED if handler.function is function]
        if not handlers:
            name = getattr(function, "__name__", repr(function))
            raise ConfigError(
                [Problem(f"{name} is called with no dataset's events", hint='write `@gpuflow.on("DATASET")` before it')]
            )
        found += handlers
    return found


class Chunk:
    """A chunk of an event, on the node where the function runs; read when it is asked for."""

    def __init__(self, store: NodeStore, event: Event) -> None:
        assert event.chunk is not None, event
        self._store, self._dataset, self._array, self._number = store, event.dataset, event.array, event.chunk
        self._metadata = store.record(event.dataset).array(event.array)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the part of the array that it covers."""
        return self._metadata.grid.extent(self._number)

    @property
    def region(self) -> tuple[slice, ...]:
        """Where in the array it lies."""
        return self._metadata.grid.region(self._number)

    @property
    def key(self) -> str:
        """Its key in the Zarr array."""
        return self._metadata.key(self._number)

    def read(self) -> NDArray[Any]:
        """Its values as they are now, which may be of a later generation than the event's. ChunkLost when the node has it no more."""
        replica, data = self._store.read(self._dataset, self._array, self._number)
        codec = self._store.codec(self._dataset, self._array)
        block = codec.filled() if replica.digest == EMPTY else codec.decode(data)
        return np.array(block[tuple(slice(0, size) for size in self.shape)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.read(), dtype)


class Calling:
    """A handler's function, called on the nodes. Its `call` is what a `Delivery` hands events to."""

    def __init__(self, connection: Connection, handler: Handler) -> None:
        self._connection, self._handler = connection, handler
        self._function = cloudpickle.dumps(handler.function)  # by value, which Dask does not do where the name is known here

    def call(self, events: Sequence[Event]) -> None:
        """For each of them, those of different chunks beside each other. NotTaken says what was raised, and of which."""
        left, waiting = list[Event](), list(events)
        why = ""
        while waiting:
            wave = list({event.identity[:3]: event for event in reversed(waiting)}.values())[::-1]  # the first of each chunk
            futures = {self._submit(event): event for event in wave}
            for future, event in futures.items():
                if (reason := self._error_of(future, event)) is not None:
                    left.append(event)
                    why = why or reason
            waiting = [event for event in waiting if event not in wave]
        if left:
            raise NotTaken(why, left=left)

    def _submit(self, event: Event) -> Future:
        name = f"{event.dataset}-{event.array}-{event.chunk}-{event.generation}"
        key = f"on-{self._handler.name}-{name}-{uuid.uuid4().hex[:8]}"
        workers = self._holders(event)
        return self._connection.client.submit(_call, self._function, event, workers=workers, key=key, retries=0)

    def _error_of(self, future: Future, event: Event) -> str | None:
        """What became of a call, in words; None when it went well. A node that goes away is not waited for."""
        while True:
            try:
                error = future.exception(timeout=_LOOK_SECONDS)
                future.release()
                return None if error is None else f"{type(error).__name__}: {error}"
            except TimeoutError:
                there = {address for addresses in self._connection.nodes().values() for address in addresses}
                if not there & set(self._holders(event)):
                    future.cancel(force=True)
                    return "the nodes that it was called on went away"
            except CancelledError:
                return "the call was cancelled"

    def _holders(self, event: Event) -> list[str]:
        nodes = self._connection.nodes()
        if event.chunk is not None:
            ask = {"dataset": event.dataset, "array": event.array, "chunks": [event.chunk]}
            (held,) = self._connection.ask("gf_locate", **ask)
            if held:
                return list(held)
        return nodes.get(event.node) or [address for addresses in nodes.values() for address in addresses]


def _call(function: bytes, event: Event, /) -> None:
    """On a worker."""
    event = Event(*event)
    store: NodeStore = get_worker().gpuflow.store
    try:
        chunk = Chunk(store, event) if event.chunk is not None else None
    except (LookupError, ChunkLost):  # it was removed since
        chunk = None
    cloudpickle.loads(function)(event, chunk)
