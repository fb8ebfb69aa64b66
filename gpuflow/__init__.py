"""gpuflow: pipelines that run where the chunks of your Zarr data lie."""

__version__ = "0.1.0"
