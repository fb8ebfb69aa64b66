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
    supports_groups = False

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether it is `gpuflow://...` or a store of a dataset."""
        return isinstance(filename_or_obj, ClusterStore) or str(filename_or_obj).startswith(SCHEME)

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: Any,
        *,
        mask_and_scale: Any = True,
        decode_times: Any = True,
        concat_characters: Any = True,
        decode_coords: Any = True,
        drop_variables: str | Iterable[str] | None = None,
        use_cftime: Any = None,
        decode_timedelta: Any = None,
        group: str | None = None,
        connection: Any = None,
        root: str | os.PathLike[str] | None = None,
        snapshot: str | None = None,
    ) -> xr.Dataset:
        """`gpuflow://NAME`, NAME, or a store. connection, root and snapshot: as of `gpuflow.open`; the others: as of xarray's zarr engine,
        spelled out since xarray takes no other engine."""
        store: Any = filename_or_obj
        if not isinstance(store, ClusterStore):
            name = str(filename_or_obj).rsplit("/", 1)[-1]  # xarray has made a path of it, if it looked like one
            store = open_dataset(name, connection=connection, root=root, snapshot=snapshot).store
        found = super().open_dataset(
            store,
            mask_and_scale=mask_and_scale,
            decode_times=decode_times,
            concat_characters=concat_characters,
            decode_coords=decode_coords,
            drop_variables=drop_variables,
            use_cftime=use_cftime,
            decode_timedelta=decode_timedelta,
            group=group,
            consolidated=False,
        )
        for variable in found.variables.values():
            shards = variable.encoding.get("shards")
            if shards:
                variable.encoding["preferred_chunks"] = dict(zip(variable.dims, shards, strict=True))
        return found
