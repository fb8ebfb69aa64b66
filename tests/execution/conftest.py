"""A cluster whose workers may run programs, and have a distribution that adds steps."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from gpuflow.cluster.connection import Connection, connect
from tests.steps.distribution import install


@pytest.fixture(scope="session")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """Two nodes. `site`: the folder with the distribution, which this process does not see by itself."""
    site = install(tmp_path_factory.mktemp("site"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
        connection = connect(nodes=2, workers=1, root=tmp_path_factory.mktemp("allowed"), allow_exec=True)
    with connection:
        connection.site = site  # type: ignore[attr-defined]
        yield connection
