"""d and e. Every call that changes the disk fails in turn, on every commit path: the disk is full, broken or read-only; the root is gone.

Whatever fails, the error names the store, each chunk is as it was or as it was to be, and once the fault is over everything works: in the
same process after a fault that passed, in the next one after a fault that stayed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ci.proofs.commit_paths import CommitPath
from ci.proofs.crash_states import CrashState
from gpuflow.errors import StoreError
from gpuflow.storage import node
from gpuflow.storage.node import NodeStore
from tests.storage.faults import SAID, Faults, patched

KINDS = {errno.ENOSPC: "ENOSPC", errno.EIO: "EIO", errno.EROFS: "EROFS", errno.ENOENT: "root gone"}


class RootGone(Faults):
    """From the `call`-th call on, the root is elsewhere: every later call finds nothing. What is open stays open."""

    def __init__(self, call: int, root: Path) -> None:
        super().__init__(call, code=errno.ENOENT)
        self.root, self.away, self._rename = root, root.with_name("away"), os.rename

    def os_error(self) -> OSError:
        return OSError(errno.EIO, "not raised")

    def sqlite_error(self) -> Exception:  # type: ignore[override]
        return OSError(errno.EIO, "not raised")

    def strike(self, error: Exception) -> None:
        if self.armed:
            self.count += 1
            if self.count == self.call:
                self._rename(self.root, self.away)

    def come_back(self) -> None:
        """AssertionError when something was made in its place."""
        self.armed = False
        if self.away.exists():
            left = [str(path.relative_to(self.root)) for path in self.root.rglob("*")]
            assert not self.root.exists(), f"made where the root had been: {left}"
            self._rename(self.away, self.root)


def prove(path: CommitPath, folder: Path, code: int, stays: bool = False) -> tuple[int, list[str]]:
    """(calls that failed in turn, what was wrong after any) of one commit path and one kind of fault."""
    with closing(NodeStore(folder / "template" / "root", name="n")) as store:
        path.prepare(store)
    wrong, call = [], 0
    while True:
        call += 1
        shutil.copytree(folder / "template", folder / str(call))
        try:
            ended = _fail(path, folder / str(call) / "root", call, code, stays)
        except Exception as error:  # noqa: BLE001 - whatever comes but the StoreError is wrong
            wrong.append(f"call {call}, {KINDS[code]}: {type(error).__name__}: {error}")
            ended = False
        shutil.rmtree(folder / str(call))
        if ended:
            shutil.rmtree(folder / "template")
            return call - 1, wrong


def _fail(path: CommitPath, root: Path, call: int, code: int, stays: bool) -> bool:
    """Let the `call`-th call fail. Whether there was none."""
    faults = RootGone(call, root) if code == errno.ENOENT else Faults(call, stays=stays, code=code)
    acknowledged: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        if not path.exchange:
            patch.setattr(node, "exchange", lambda one, other: False)
        with patched(faults):
            store = NodeStore(root)
            faults.armed = True
            try:
                path.act(store, lambda: acknowledged.append(True))
            except StoreError as error:
                said = SAID.get(code, ".")
                if str(root) not in str(error) or not re.search(said, str(error)):
                    raise AssertionError(f"says only: {error}") from error
            faults.armed = False
            if isinstance(faults, RootGone):
                faults.come_back()
            if not stays:
                _check(path, store, len(acknowledged))
            store.close()
        with closing(NodeStore(root)) as store:
            if stays:
                _check(path, store, len(acknowledged))
        left = [each.name for each in (root / "staging").iterdir()]
        assert left == [], f"left in staging: {left}"
    return faults.count < call


def _check(path: CommitPath, store: NodeStore, acknowledged: int) -> None:
    store.recover()
    path.check(store, CrashState((), (), b"", b"", acknowledged, lossy=False))


def each(report: Callable[[str, str, int, list[str]], None], paths: dict[str, CommitPath], folder: Path) -> None:
    """All kinds of faults on all of `paths`: report(path, kind, calls, what was wrong)."""
    for name, path in paths.items():
        for code, kind in KINDS.items():
            for stays in (False, True) if code != errno.ENOENT else (False,):
                calls, wrong = prove(path, folder, code, stays)
                report(name, f"{kind}{', stays' if stays else ''}", calls, wrong)
