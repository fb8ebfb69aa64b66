"""A loader as PyTorch's own loaders take it: `DataLoader(loader.torch(), batch_size=None)`.

Worker processes are not needed, and may be used: worker w of n delivers batches w, w + n, ..., which PyTorch puts into their order. Where
they are, only they know: with torchdata's StatefulDataLoader each tells the state of the last batch that it delivered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from gpuflow.errors import ConfigError, Problem, StateMismatch
from gpuflow.training.loader import Loader

_WORKER = "worker"


class BatchDataset(IterableDataset[Any]):
    """Whole batches, an epoch each time it is iterated over. state_dict, load_state_dict: those of the loader; in a worker process, its
    own."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        # Epochs that worker processes have ended: they are made anew for each.
        done: Any = torch.zeros(1, dtype=torch.int64)
        self._done = done.share_memory_()
        self._restored = False

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is None:
            yield from self._loader
            return
        if self._loader.device not in ("cpu", "numpy"):
            hint = "use num_workers=0: the loader reads in threads; or device='cpu'"
            message = f"tensors on {self._loader.device} cannot be made in the worker processes of a DataLoader"
            raise ConfigError([Problem(message, "num_workers", hint=hint)])
        ended = max(0, int(self._done) - self._loader.epoch)
        if not self._restored or ended:
            self._restored = False
            first = worker.id + (0 if ended else self._loader.state_dict()["batch"])
            if first >= len(self):
                return  # fewer batches are left than there are workers
            self._loader.skip(ended, worker.id)
        epoch = self._loader.epoch
        yield from self._loader.every(worker.num_workers)
        self._done[0] = max(int(self._done), epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Of the last batch that was delivered."""
        worker = get_worker_info()
        state = self._loader.state_dict()
        return state if worker is None else {**state, _WORKER: [worker.id, worker.num_workers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Loader.load_state_dict`. StateMismatch when it is of one of another number of workers."""
        worker = get_worker_info()
        here = [worker.id, worker.num_workers] if worker is not None else None
        if state.get(_WORKER) != here:
            raise StateMismatch([("the worker process and their number", state.get(_WORKER), here)])
        self._restored = worker is not None
        self._loader.load_state_dict(state)
