"""Where a benchmark makes its data."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder(given: Path | None) -> Iterator[Path]:
    """A new folder in `given`, or where temporary files go; it goes with the block."""
    made = Path(tempfile.mkdtemp(prefix="gpuflow-bench-", dir=given))
    try:
        yield made
    finally:
        shutil.rmtree(made)
