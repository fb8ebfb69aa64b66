"""The loader behind PyTorch's own loaders, with and without worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import gpuflow
from gpuflow.errors import ConfigError, StateMismatch
from tests.training.datasets import make_dataset, numbered

COUNT, BATCH_SIZE = 37, 4
FIELD = numbered(COUNT, 5)

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata calls what PyTorch has given up
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store")
    make_dataset(path, "d", {"field": FIELD}, chunks={"field": (8, 5)}, inner={"field": (1, 5)})
    return path


def make(root: Path, **options: Any) -> Any:
    return gpuflow.loader("d", BATCH_SIZE, root=root, number_as="n", **options)


def numbers(batches: Any) -> list[list[int]]:
    found = []
    for batch in batches:
        assert (np.asarray(batch["field"]) == FIELD[np.asarray(batch["n"])]).all()
        found.append(batch["n"].tolist())
    return found


def epochs(root: Path, count: int) -> list[list[list[int]]]:
    with make(root) as loader:
        return [numbers(loader) for _ in range(count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loader(root: Path, workers: int) -> None:
    with make(root) as loader:
        batches = DataLoader(loader.torch(), batch_size=None, num_workers=workers)
        assert len(batches) == 10
        assert [numbers(batches) for _ in range(2)] == epochs(root, 2)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes:UserWarning")
def test_more_workers_than_batches(root: Path) -> None:
    with make(root, samples=slice(0, 8)) as loader, make(root, samples=slice(0, 8)) as other:
        batches = DataLoader(loader.torch(), batch_size=None, num_workers=3)
        assert [numbers(batches) for _ in range(2)] == [numbers(other) for _ in range(2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_data_loader(root: Path, workers: int) -> None:
    expected = epochs(root, 2)
    for taken in (3, 4):
        with make(root) as loader:
            first = StatefulDataLoader(loader.torch(), batch_size=None, num_workers=workers)
            iterator = iter(first)
            before = numbers(next(iterator) for _ in range(taken))
            state = first.state_dict()
            del iterator
        with make(root) as loader:
            second = StatefulDataLoader(loader.torch(), batch_size=None, num_workers=workers)
            second.load_state_dict(state)
            assert before + numbers(second) == expected[0]


def test_a_state_goes_on_with_workers(root: Path) -> None:
    """A loader's own state, of one process, taken up by two worker processes."""
    with make(root) as loader:
        iterator = iter(loader)
        before = numbers(next(iterator) for _ in range(3))
        state = loader.state_dict()
    with make(root) as loader:
        loader.load_state_dict(state)
        batches = DataLoader(loader.torch(), batch_size=None, num_workers=2)
        assert [before + numbers(batches), numbers(batches)] == epochs(root, 2)


def test_a_workers_state_is_not_a_loaders(root: Path) -> None:
    with make(root) as loader, pytest.raises(StateMismatch, match="the worker process and their number"):
        loader.torch().load_state_dict({**loader.state_dict(), "worker": [0, 2]})


def test_cuda_tensors_in_workers(root: Path) -> None:
    """Refused before anything is read: here as on a machine with a GPU, since `meta` is no CPU either."""
    with make(root, device="meta") as loader:
        batches = DataLoader(loader.torch(), batch_size=None, num_workers=1)
        with pytest.raises(
            ConfigError, match="tensors on meta cannot be made in the worker processes of a DataLoader; use num_wor"
        ):
            next(iter(batches))
