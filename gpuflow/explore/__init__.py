"""Looking at datasets: as zarr, xarray and dask arrays, where they lie."""
