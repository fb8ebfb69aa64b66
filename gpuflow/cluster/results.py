"""What tasks return, sent with the news that they have ended: Dask would ask each one's worker for it, two round trips later.

The way is that of Dask's events, from worker to scheduler to client, ahead of the news on the same connections."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

from distributed import Client, Worker

_TOPIC = "gpuflow-results"
_LARGEST_NBYTES = 16 * 2**10
"""The scheduler keeps the last thousand events of a topic. What is larger is returned, and has to be asked for."""


def send(worker: Worker, key: Any, result: Any) -> Any:
    """Called in a task's thread, last. What the task has to return: None, or a result that is too large to be sent."""
    data = pickle.dumps(result)
    fits = len(data) <= _LARGEST_NBYTES
    worker.log_event(_TOPIC, {"key": key, "result": data if fits else None})
    return None if fits else result


class Results:
    """A client's side. Results of tasks that it does not wait for are not kept: all clients get all."""

    def __init__(self, client: Client) -> None:
        self._waiting: set[Any] = set()
        self._there: dict[Any, bytes] = {}
        client.subscribe_topic(_TOPIC, self._receive)

    def expect(self, keys: Iterable[Any]) -> None:
        """Keep the results of these tasks until they are taken or dropped."""
        self._waiting.update(keys)

    def take(self, key: Any) -> Any:
        """The result of a task that has ended well, once; None when it has to be asked for."""
        self._waiting.discard(key)
        data = self._there.pop(key, None)
        return None if data is None else pickle.loads(data)

    def drop(self, keys: Iterable[Any]) -> None:
        """Forget tasks."""
        for key in keys:
            self._waiting.discard(key)
            self._there.pop(key, None)

    def _receive(self, event: tuple[float, Any]) -> None:
        key, data = event[1]["key"], event[1]["result"]
        if key in self._waiting:
            self._there[key] = data
