"""xarray's way to a dataset: `xr.open_dataset("gpuflow://era5", engine="gpuflow")`.

zarr's own engine does all of it, over a gpuflow store: dimension names, coordinates, CF decoding. A chunk is a stored object: a shard."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import xarray as xr
from xarray.backends.zarr import ZarrBackendEntrypoint

from gpuflow.explore.dataset import SCHEME, open_dataset
from gpuflow.storage.cluster_store import ClusterStore


class GpuflowBackend(ZarrBackendEntrypoint):
    """Registered as engine `gpuflow`."""

    description = "Datasets of gpuflow, read where their chunks lie"
    url = ""

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether it is `gpuflow://...` or a store of a dataset."""
        return isinstance(filename_or_obj, ClusterStore) or str(filename_or_obj).startswith(SCHEME)

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        connection: Any = None,
        root: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> xr.Dataset:
        """`gpuflow://NAME`, NAME, or a store. connection, root: as of `gpuflow.open`; options: of xarray's zarr engine."""
        store: Any = filename_or_obj
        if not isinstance(store, ClusterStore):
            name = str(filename_or_obj).rsplit("/", 1)[-1]  # xarray has made a path of it, if it looked like one
            store = open_dataset(name, connection=connection, root=root).store
        options["consolidated"] = False
        found = super().open_dataset(store, drop_variables=drop_variables, group=group, **options)
        for variable in found.variables.values():
            shards = variable.encoding.get("shards")
            if shards:
                variable.encoding["preferred_chunks"] = dict(zip(variable.dims, shards, strict=True))
        return found
