"""Compiled once, loaded by every other process; nothing that a user writes becomes code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuflow.backends import kernel_cache
from gpuflow.backends.program import lower
from gpuflow.backends.source import divide, write
from gpuflow.steps.base import StepError
from gpuflow.steps.expression import parse

RUN = """
import sys, time
import numpy as np, numba
from gpuflow.backends import scalar
from gpuflow.reductions.moments import Moments
from gpuflow.steps.base import ArraySpec
from gpuflow.steps.cast import Cast
from gpuflow.steps.fuse import compile_steps
from gpuflow.steps.map import Map
block = np.arange(1000, dtype="f4")
steps = (Map(expression="where(x > 7, x / 3, -x) * 2"), Cast(dtype="float16"))
started = time.perf_counter()
out = compile_steps(steps, ArraySpec((1000,), block.dtype, (None,)))(block, (slice(0, 1000),))
moments = Moments.of(block, ())
seconds = time.perf_counter() - started
assert (out == Cast(dtype="float16").apply(np, steps[0].apply(np, block, ()), ())).all()
assert moments.mean == 499.5
print(seconds)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", RUN]
    return subprocess.Popen(
        command, env={"GPUFLOW_CACHE": str(folder)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def seconds_of(process: subprocess.Popen[str]) -> float:
    out, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    assert not error
    return float(out)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A cache that two processes filled at once, and the seconds of the quicker one."""
    folder = tmp_path_factory.mktemp("cache") / "kernels"
    both = [start(folder), start(folder)]
    return folder, min(seconds_of(process) for process in both)


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")


def test_a_second_process_compiles_nothing_even_when_two_were_first(compiled: tuple[Path, float]) -> None:
    folder, first = compiled
    names = files_of(folder)
    assert seconds_of(start(folder)) < first / 4
    assert not [name for name in names if name.endswith(".tmp")]
    assert files_of(folder) == names


def test_a_damaged_cache_is_worked_around(compiled: tuple[Path, float], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(compiled[0], tmp_path / "kernels"))
    for path in folder.rglob("*.nb*"):
        path.write_bytes(b"torn")
    process = start(folder)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    assert "compiling without the kernel cache" in error
    assert "moments by NumPy" in error


def test_what_lies_in_the_file_is_not_what_runs(compiled: tuple[Path, float], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(compiled[0], tmp_path / "kernels"))
    (kernel,) = folder.glob("kernel_*.py")
    kernel.write_text("raise SystemExit(3)")
    process = start(folder)
    process.communicate(timeout=100)
    assert process.returncode == 0


def test_where_kernels_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_cache.folder.cache_clear()
    assert kernel_cache.folder(str(tmp_path / "mine"), None) == tmp_path / "mine"
    assert kernel_cache.folder(None, str(tmp_path)) == tmp_path / "gpuflow" / "kernels"
    monkeypatch.setattr(kernel_cache.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "file").write_text("")
    fallback = kernel_cache.folder(str(tmp_path / "file"), None)
    assert fallback.parent == tmp_path / "tmp"
    others = tmp_path / "others"
    others.mkdir()
    others.chmod(0o777)
    assert kernel_cache.folder(str(others), None) == fallback
    fallback.chmod(0o777)
    assert kernel_cache.folder(str(tmp_path / "file"), "again") not in (fallback, others)
    kernel_cache.folder.cache_clear()


HOSTILE = [
    "__import__('os').system('true')",
    "x\n@jit",
    'x + "\'; import os"',
    "x.__class__",
    "exec(x)",
    "c0",
    "v0 + x",
    "inf_ + x",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_does_not_parse(text: str) -> None:
    with pytest.raises(StepError):
        parse(text)


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=0), st.integers(0, 2**63 - 1))
def test_numbers_are_written_exactly_and_as_numbers_only(real: float, whole: int) -> None:
    trees = (parse(f"x * {real!r}").root, parse(f"x + {whole}").root)
    source = write(divide(lower(trees, (np.dtype("f8"),) * 3)), varying=False)
    lines = [line for line in source.splitlines() if line.startswith("c")]
    names: dict[str, object] = {"np": np}
    exec("\n".join(lines), names)
    found = [value for name, value in names.items() if name.startswith("c")]
    assert [float(value) for value in found] == list(dict.fromkeys([real, float(whole)]))  # type: ignore[arg-type]


def test_the_source_holds_no_word_of_the_pipeline() -> None:
    tree = parse("where(x > 1234.5, x ** 2, nan) + pi").root
    source = write(divide(lower((tree,), (np.dtype("f4"),) * 2)), varying=False)
    assert "1234.5" not in source
    assert "where" not in source
    assert "pi" not in [word for line in source.splitlines() if line.startswith(("c", " ")) for word in line.split()]
