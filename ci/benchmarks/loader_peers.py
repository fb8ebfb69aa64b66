"""The other loaders of `ci/bench loader`, each at the best settings that its documentation gives for local disks.

What they read is written raw, in their own format: on a local disk that is the fastest that each of them has. The zarr sides read what
gpuflow reads. Two worker processes with PyTorch's defaults (prefetch_factor 2, persistent_workers), since two cores is what there is."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch.utils.data import DataLoader, Dataset

Epoch = Callable[[], Iterable[Any]]
"""An iterable over the batches of an epoch, anew each time; a batch has a length, or is a dict of what has one."""

WORKERS = 2
_STANDS_IN = "__stands_in__"


class _ZarrDataset(Dataset[Any]):
    """What people write first: an item is a row."""

    def __init__(self, path: Path) -> None:
        self._path, self._array = path, None
        self._count = zarr.open_array(path, mode="r").shape[0]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        if self._array is None:
            self._array = zarr.open_array(self._path, mode="r")
        return torch.from_numpy(np.asarray(self._array[index]))


def zarr_loader(path: Path, batch_size: int, workers: int) -> Epoch:
    """torch DataLoader over zarr-python, shuffled."""
    loader = DataLoader(
        _ZarrDataset(path), batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=False
    )
    return lambda: loader


def xbatcher_loader(path: Path, batch_size: int) -> Epoch:
    """xbatcher's map dataset, batches made by it (its documentation: batch_size=None in DataLoader), shuffled by the DataLoader."""
    import xarray
    from xbatcher import BatchGenerator
    from xbatcher.loaders.torch import MapDataset, to_tensor

    array = zarr.open_array(path, mode="r")
    names = [f"d{axis}" for axis in range(array.ndim)]
    lazy = xarray.Dataset({"x": (names, _lazy(array))})
    sizes = dict(zip(names, (batch_size, *array.shape[1:]), strict=True))
    made = BatchGenerator(lazy, input_dims=sizes, preload_batch=False)
    loader = DataLoader(
        MapDataset(made, transform=lambda part: to_tensor(part["x"])), batch_size=None, shuffle=True, num_workers=WORKERS,
        persistent_workers=True,
    )  # fmt: skip
    return lambda: loader


def _lazy(array: Any) -> Any:
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class Rows(BackendArray):
        shape, dtype = array.shape, array.dtype

        def __getitem__(self, key: Any) -> Any:
            return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, lambda one: array[one])

    return indexing.LazilyIndexedArray(Rows())


def streaming_loader(folder: Path, values: np.ndarray[Any, Any], batch_size: int) -> Epoch:
    """MosaicML Streaming: MDS shards of 64 MiB, arrays of fixed shape, shuffle=True (py1e), StreamingDataLoader."""
    _stand_in("torchvision.datasets", "VisionDataset", "CIFAR10")
    _stand_in("torchvision.transforms.functional", "to_tensor")
    _stand_in("transformers.feature_extraction_utils", "BatchFeature")
    _stand_in("transformers.tokenization_utils_base", "BatchEncoding")
    _stand_in("transformers.models.auto.tokenization_auto", "AutoTokenizer")
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

    for name in [name for name, module in sys.modules.items() if module.__dict__.get(_STANDS_IN)]:
        del sys.modules[name]  # HF datasets would take them for the real ones
    shape = ",".join(map(str, values.shape[1:]))
    if not folder.exists():
        with MDSWriter(out=str(folder), columns={"x": f"ndarray:{values.dtype}:{shape}"}, size_limit=2**26) as writer:
            for value in values:
                writer.write({"x": value})
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=batch_size, num_canonical_nodes=1)
    loader = StreamingDataLoader(
        dataset, batch_size=batch_size, num_workers=WORKERS, persistent_workers=True, collate_fn=_stacked
    )
    return lambda: loader


def _stacked(items: list[dict[str, Any]]) -> torch.Tensor:
    return torch.from_numpy(np.stack([item["x"] for item in items]))


def litdata_loader(folder: Path, values: np.ndarray[Any, Any], batch_size: int) -> Epoch:
    """LitData: chunks of 64 MB, StreamingDataset(shuffle=True) and StreamingDataLoader."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.cache import Cache

    if not folder.exists():
        cache = Cache(str(folder), chunk_bytes="64MB")
        for index, value in enumerate(values):
            cache[index] = {"x": value}
        cache.done()
        cache.merge()
    dataset = StreamingDataset(str(folder), shuffle=True)
    loader = StreamingDataLoader(
        dataset, batch_size=batch_size, num_workers=WORKERS, persistent_workers=True, collate_fn=_stacked
    )
    return lambda: loader


def webdataset_loader(folder: Path, values: np.ndarray[Any, Any], batch_size: int) -> Epoch:
    """WebDataset: tars of 64 MB, shards and then 1,000 samples shuffled, batches made in the workers, WebLoader."""
    import webdataset

    if not folder.exists():
        folder.mkdir(parents=True)
        with webdataset.ShardWriter(str(folder / "%06d.tar"), maxsize=2**26, verbose=0) as writer:
            for index, value in enumerate(values):
                writer.write({"__key__": f"{index:08d}", "x.bin": value.tobytes()})
    shards = sorted(map(str, folder.glob("*.tar")))
    shape, dtype = values.shape[1:], values.dtype

    def decoded(sample: dict[str, Any]) -> np.ndarray[Any, Any]:
        return np.frombuffer(sample["x.bin"], dtype).reshape(shape)

    buffered = max(2, min(1000, int(2**28 / values[0].nbytes)))
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), seed=1, empty_check=False)
        .shuffle(buffered)
        .map(decoded)
        .batched(batch_size, collation_fn=lambda items: torch.from_numpy(np.stack(items)))
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=min(WORKERS, len(shards)), persistent_workers=True)
    return lambda: loader


def hf_loader(folder: Path, values: np.ndarray[Any, Any], batch_size: int) -> Epoch:
    """Hugging Face datasets: Arrow on disk, memory-mapped, arrays as bytes (its own array features take many times as long), shuffled by
    the DataLoader."""
    import datasets

    datasets.disable_progress_bars()
    if not folder.exists():
        features = datasets.Features({"x": datasets.Value("large_binary")})
        made = datasets.Dataset.from_generator(
            lambda: ({"x": value.tobytes()} for value in values), features=features, cache_dir=str(folder) + ".cache"
        )
        made.save_to_disk(str(folder), max_shard_size="500MB")
    shape, dtype = values.shape[1:], values.dtype
    opened = datasets.load_from_disk(str(folder)).with_format("arrow")

    class Rows(Dataset[Any]):
        def __len__(self) -> int:
            return len(opened)

        def __getitems__(self, indices: list[int]) -> Any:
            return opened[indices]["x"]

    def collate(column: Any) -> torch.Tensor:
        rows = [np.frombuffer(value.as_buffer(), dtype).reshape(shape) for value in column]
        return torch.from_numpy(np.stack(rows))

    loader = DataLoader(Rows(), batch_size, shuffle=True, num_workers=WORKERS, persistent_workers=True, collate_fn=collate)
    return lambda: loader


PEERS: dict[str, tuple[str, Callable[[Path, np.ndarray[Any, Any], int], Epoch]]] = {
    "Streaming": ("streaming", streaming_loader),
    "LitData": ("litdata", litdata_loader),
    "WebDataset": ("webdataset", webdataset_loader),
    "HF datasets": ("datasets", hf_loader),
}
"""By name: the module that has to be there, and what makes its loader."""


def _stand_in(name: str, *classes: str) -> None:
    """A module that Streaming imports for classes which are not used here, where it cannot be installed beside this PyTorch."""
    try:
        importlib.import_module(name)
        return
    except (ImportError, RuntimeError):
        pass
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        module = sys.modules.get(path) or types.ModuleType(path)
        if path not in sys.modules:
            module.__dict__[_STANDS_IN] = True
        module.__spec__ = module.__spec__ or importlib.machinery.ModuleSpec(path, None)
        sys.modules[path] = module
    for each in classes:
        setattr(sys.modules[name], each, type(each, (), {}))
