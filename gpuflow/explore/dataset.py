"""`gpuflow.open`: a dataset to look at, as it was when it was opened."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.cluster.connection import Connection, connect
from gpuflow.cluster.locating import ClientLocator, reads_of
from gpuflow.cluster.residence import by_chunk
from gpuflow.datasets import catalog
from gpuflow.datasets.here import NodesHere
from gpuflow.datasets.kept import KeptLocator
from gpuflow.datasets.summary import ArraySummary, summarize
from gpuflow.display.dataset_card import InMemory, dataset_card, drawn_arrays
from gpuflow.display.preview import Preview, Side
from gpuflow.errors import ConfigError, NameTaken, NotFound, Problem
from gpuflow.execution.statistics import compute_moments
from gpuflow.explore.blocks import dask_array, decode_chunk
from gpuflow.pipelines.history import dataset_history, stages
from gpuflow.reductions.moments import Moments
from gpuflow.settings import scheduler_address
from gpuflow.storage.cluster_store import ClusterStore
from gpuflow.storage.locator import Whereabouts, nearest_first
from gpuflow.storage.record import DatasetRecord

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr
    import zarr

Locators = ClientLocator | NodesHere

SCHEME = "gpuflow://"


def open_dataset(
    name: str,
    *,
    connection: Connection | None = None,
    root: str | os.PathLike[str] | None = None,
    mode: str = "r",
    snapshot: str | None = None,
) -> Dataset:
    """Dataset `name`, of a cluster or, without one, of the nodes below `root` (default `GPUFLOW_ROOT`, else `./.gpuflow`).

    connection: or `GPUFLOW_SCHEDULER` names it. mode: r reads the dataset as it is now, whatever changes it later; r+ and a may write to
    it, a also makes a new one. snapshot: tag of one, to read the dataset as it was then, also while a pipeline changes it.
    NotFound offers the nearest names; NameTaken while a pipeline changes it in place, or one that died has
    left it half changed."""
    if mode not in ("r", "r+", "a"):
        raise ConfigError([Problem(f"mode {mode!r}", hint="use r, r+ or a")])
    if snapshot is not None and mode != "r":
        raise ConfigError(
            [Problem("a snapshot can only be read", "mode", hint="leave mode out, or roll the dataset back to it first")]
        )
    locator = locator_for(connection, root)
    try:
        name = name.removeprefix(SCHEME)
        if snapshot is not None:
            kept = KeptLocator.of(locator, name, snapshot)
            kept.record(name)
            return Dataset(ClusterStore(kept, name, read_only=True), snapshot)
        store = ClusterStore(locator, name, read_only=mode == "r")
        if mode != "a" or store.name in locator.records():
            _check_settled(locator, store.view.record)
        return Dataset(store)
    except BaseException:
        locator.close()
        raise


def locator_for(connection: Connection | None, root: str | os.PathLike[str] | None) -> Locators:
    """Of the connection, of the cluster that `GPUFLOW_SCHEDULER` names, or of the nodes below `root`."""
    if connection is None and root is None and scheduler_address():
        return ClientLocator(connect(), owned=True)
    if connection is not None and root is not None:
        raise ConfigError([Problem("a cluster has roots of its own", "root", hint="leave out root, or connection")])
    return NodesHere.below(root) if connection is None else ClientLocator(connection)


def _check_settled(locator: Locators, record: DatasetRecord) -> None:
    """NameTaken when some chunks are before and some after an in-place pipeline: nobody should take these for one dataset."""
    name = record.name
    if record.state != "ready":
        raise NameTaken(name, "is not complete; finish it first: run the same command again that made it")
    reason = locator.changed_by(record)
    if reason:
        raise NameTaken(name, reason)
    if not record.transforms:
        return
    for path in record.transforms[-1]["steps"]:
        table = catalog.chunk_table(locator, name, path, record.array(path).grid.size)
        last = f"in-place pipeline {len(record.transforms)}"
        done = sum(stage == last for stage in stages(record, path, table.rows))
        if done < len(table.rows):
            reason = f"is in the middle of {last}, which has done {done} of {len(table.rows)} chunks of {path!r}"
            raise NameTaken(name, f"{reason}; run it again to finish it")


class Dataset:
    """A dataset that was opened. `dataset["t2m"]` is a zarr array; `close` it, or use it in a `with` block.

    store: what zarr, and all else here, reads and writes through. snapshot: the tag of the one that it is."""

    def __init__(self, store: ClusterStore, snapshot: str | None = None) -> None:
        self.store, self.snapshot = store, snapshot
        self._stats: dict[str, dict[str, Any]] = {}  # as they were asked for, for the card

    @property
    def name(self) -> str:
        """What it is called."""
        return self.store.name

    @property
    def record(self) -> DatasetRecord:
        """All that is known of it but its chunks."""
        return self.store.view.record

    @property
    def arrays(self) -> list[str]:
        """Paths of its arrays."""
        return sorted(self.record.arrays)

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Of its root group."""
        return self.record.groups.get("", {})

    @property
    def _locator(self) -> Locators:
        locator: Any = self.store.locator
        return locator  # type: ignore[no-any-return]

    def close(self) -> None:
        """Let go of the nodes' stores. A connection that was given stays open."""
        self.store.locator.close()
        self.store.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- as arrays ------------------------------------------------------------------------------------------------------------

    @cached_property
    def group(self) -> zarr.Group:
        """The whole of it as a zarr group."""
        import zarr

        return zarr.open_group(self.store, mode="r" if self.store.read_only else "a")

    def __getitem__(self, path: str) -> zarr.Array[Any]:
        """An array, as zarr's. NotFound offers the nearest names."""
        found: Any = self.group[self._path(path)]
        return found  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __contains__(self, path: object) -> bool:
        return path in self.record.arrays

    def __len__(self) -> int:
        return len(self.record.arrays)

    def _path(self, path: str | None) -> str:
        """`path`, or by default the array with the most dimensions and values."""
        if path is None:
            if not self.record.arrays:
                raise NotFound("array", f"{self.name}/", hint="the dataset is empty")
            return max(self.arrays, key=lambda one: (len(self.record.array(one).shape), np.prod(self.record.array(one).shape)))
        if path not in self.record.arrays:
            near = nearest_first(self.arrays, path)
            hint = f"did you mean {near[0]!r}?" if near and near != self.arrays else ""
            raise NotFound("array", f"{self.name}/{path}", near, hint)
        return path

    def to_dask(self, array: str | None = None, *, device: str = "cpu") -> da.Array:
        """An array (by default the largest) as a dask array with a block for each stored object; on a cluster each is read by a worker that
        has it. device: cpu; or cuda for CuPy blocks, which workers with a device make. DeviceUnavailable when none has one, or without a
        cluster this process has none; see `blocks.dask_array`."""
        return dask_array(self.store.view, self._path(array), device)

    def to_xarray(self, *, group: str | None = None, chunks: Any = None, **options: Any) -> xr.Dataset:
        """As `xarray.open_dataset` has it: dimension names, coordinates, values decoded by the CF conventions. chunks: {} for dask arrays
        with a block for each stored object. options: of `xarray.open_dataset`."""
        import xarray as xr

        from gpuflow.explore.xarray_engine import GpuflowBackend

        return xr.open_dataset(self.store, engine=GpuflowBackend, group=group, chunks=chunks, **options)  # type: ignore[arg-type]

    # -- about it -------------------------------------------------------------------------------------------------------------

    def whereabouts(self, array: str | None = None) -> Whereabouts:
        """Generations and nodes of each chunk of an array, as they are now."""
        path = self._path(array)
        return self._locator.whereabouts(self.name, path, self.record.array(path).grid.size)

    def placement(self, array: str | None = None) -> dict[str, int]:
        """How many chunks of an array (by default the largest) each node holds. Missing ones are under ""."""
        found: dict[str, int] = {}
        lies = self.whereabouts(array)
        for number, count in zip(*np.unique(lies.holders, return_counts=True), strict=True):
            for node in lies.sets[number] or {""}:
                found[node] = found.get(node, 0) + int(count)
        return dict(sorted(found.items()))

    def tiers(self, array: str | None = None) -> dict[str, dict[str, int]]:
        """How many chunks of an array (by default the largest) each node has in "ram", decoded in its workers' memory, and on "disk": see
        `placement`."""
        path, locator = self._path(array), self._locator
        kept: dict[str, set[int]] = {}
        if isinstance(locator, ClientLocator):
            for node, chunks in locator.connection.resident(self.name, path).values():
                kept.setdefault(node, set()).update(chunks)
        return {"ram": {node: len(chunks) for node, chunks in sorted(kept.items())}, "disk": self.placement(path)}

    def history(self) -> dict[str, Any]:
        """What it was made from, what was done to it, its snapshots: as `gpuflow log --json` has it."""
        tables = {path: self._table(path, metadata.grid.size) for path, metadata in self.record.metadata.items()}
        return dataset_history(self.record, tables)

    def _table(self, path: str, count: int) -> catalog.ChunkTable:
        if isinstance(self.store.locator, KeptLocator):
            return self.store.locator.table(path, count)
        return catalog.chunk_table(self._locator, self.name, path, count)

    def stats(self, array: str | None = None) -> dict[str, Any]:
        """Count, mean, standard deviation and extrema of an array (by default the largest), NaN left out; computed where its chunks lie.
        The card of a dataset that is opened for reading shows them from then on."""
        path = self._path(array)
        dtype = self.record.array(path).dtype
        if dtype is None or dtype.kind not in "biuf":
            raise ConfigError([Problem(f"array {self.name}/{path} has no real numbers")])
        locator = self._locator
        if isinstance(locator, ClientLocator):
            moments = compute_moments(locator.connection, self.name, path)
        else:
            moments = Moments.empty(())
            for chunk in range(self.record.array(path).grid.size):
                moments = moments.merge(Moments.of(self.chunk(chunk, path), ()))
        count = int(moments.count)
        values = {"mean": moments.mean, "std": moments.std, "min": moments.minimum, "max": moments.maximum}
        found = {name: float(value) if count else None for name, value in values.items()}
        if self.store.read_only:
            self._stats[path] = {"array": path, "count": count, **found}
        return {"array": path, "count": count, **found}

    def reads(self) -> dict[str, dict[str, int]]:
        """What has been read of datasets outside of runs, by this process ("") and each worker of the cluster: chunks "local", where they
        lie, and "peer", from another node; their encoded bytes "local_nbytes", "peer_nbytes"."""
        locator = self._locator
        own = {"": dict(locator.reads)}
        return own | (locator.connection.client.run(reads_of) if isinstance(locator, ClientLocator) else {})

    def chunk(self, number: int, array: str | None = None) -> NDArray[Any]:
        """The values of one stored object."""
        path = self._path(array)
        view = self.store.view
        if not 0 <= number < view.record.array(path).grid.size:
            raise NotFound("chunk", f"{self.name}/{path}/{number}", hint=f"it has {view.record.array(path).grid.size}")
        return decode_chunk(view.locator, view.record, path, number, view.generation(path, number))

    def sample(self, count: int = 1, array: str | None = None, *, seed: int = 0) -> NDArray[Any]:
        """`count` different samples, which are indices of the first axis, drawn evenly; the same for the same seed. (count, ...)"""
        path = self._path(array)
        shape = self.record.array(path).shape
        if not shape or not 0 <= count <= shape[0]:
            raise ConfigError([Problem(f"{count} samples of {self.name}/{path}, which has shape {shape}", hint="ask for fewer")])
        chosen = np.random.default_rng((seed, shape[0])).choice(shape[0], count, replace=False, shuffle=False)
        found = np.asarray(self[path].oindex[np.sort(chosen)])
        return found[np.argsort(np.argsort(chosen))]

    def preview(self, number: int = 0, array: str | None = None) -> Preview:
        """One stored object as a picture and a histogram (needs matplotlib)."""
        path = self._path(array)
        metadata = self.record.array(path)
        block = self.chunk(number, path)
        return Preview([Side(f"{self.name}/{path}, chunk {number}", block, metadata.dims, metadata.attributes.get("units", ""))])

    def _repr_html_(self) -> str:
        locator = self.store.locator
        if isinstance(locator, KeptLocator):
            summaries = summarize(locator.inner, self.record, locator.what.identity)
            return dataset_card(self.record, summaries, locator.stores, statistics=self._stats, snapshot=self.snapshot)
        summaries = summarize(self._locator, self.record)
        here = getattr(locator, "stores", {})
        return dataset_card(self.record, summaries, here, self._in_memory(summaries), self._stats)

    def _in_memory(self, summaries: Mapping[str, ArraySummary]) -> InMemory:
        """Of the chunks that the card shows."""
        locator = self.store.locator
        if not isinstance(locator, ClientLocator):
            return {}
        asked = {path: [chunk for row in summaries[path].chunks for chunk in row] for path in drawn_arrays(self.record)}
        found = {path: locator.connection.resident(self.name, path, chunks) for path, chunks in asked.items()}
        return {path: by_chunk(of_path.values()) for path, of_path in found.items()}

    def __repr__(self) -> str:
        lines = [f"gpuflow dataset {self.name!r}" + (f", snapshot {self.snapshot!r}" if self.snapshot else "")]
        for path in self.arrays:
            metadata = self.record.array(path)
            lines.append(f"  {path}  {metadata.document['data_type']} {metadata.shape}, chunks {metadata.grid.chunks}")
        return "\n".join(lines)
