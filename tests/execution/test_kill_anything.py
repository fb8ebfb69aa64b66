"""kill -9 of workers, scheduler, client and all of them: the small part of `ci/faults`, and that it sees what it looks for."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from ci.proofs.kills import CHUNKS, Killing
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("replicas", [1, 2])
def test_whatever_is_killed_every_run_in_place_is_applied_exactly_once(tmp_path: Path, replicas: int) -> None:
    counts = Killing(tmp_path, 23, replicas).run(2)
    assert counts.killed == {"scheduler": 1, "all": 1}
    assert not any(counts.wrongs().values()), counts
    assert counts.checked >= 2 * CHUNKS * replicas
    assert counts.runs >= 2


def test_what_is_lost_torn_or_applied_twice_is_seen(tmp_path: Path) -> None:
    killing = Killing(tmp_path, seed=2)
    killing.look()
    assert not any(killing.counts.wrongs().values())
    with closing(NodeStore(tmp_path / "node0")) as store:
        store.path("data", "x", 0).unlink()
        store.path("data", "x", 3).write_bytes(b"torn")
        codec = store.codec("data", "x")
        data = bytes(codec.encode(codec.decode(store.read("data", "x", 6)[1]) + 10**6))
        store.commit(
            [store.stage(Replica("data", "x", 6, 2, len(data), digest(data), digest(b""), digest(b"")), data, replaces=1)]
        )
    killing.look()
    assert list(killing.counts.wrongs().values()) == [1, 1, 1, 3, 0]  # what is wrong is no replica, too
