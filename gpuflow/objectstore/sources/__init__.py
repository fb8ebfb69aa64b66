"""What can be ingested: one file per kind of source, all behind the `Source` protocol."""

from gpuflow.objectstore.sources.base import Layout, Source
from gpuflow.objectstore.sources.open import open_source

__all__ = ["Layout", "Source", "open_source"]
