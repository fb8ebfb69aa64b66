"""Programs on chunks of a real cluster: refused unless allowed, and then held to what a step has to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from gpuflow.cluster.connection import Connection, connect
from gpuflow.datasets import catalog
from gpuflow.errors import ClusterError, ProgramFailed
from gpuflow.execution.run import run_pipeline
from gpuflow.pipelines.load import from_dict
from gpuflow.steps import registry
from gpuflow.steps.base import ArraySpec, StepError
from gpuflow.steps.exec import Exec
from tests.execution.test_run import ingest, roots_of
from tests.helpers import read_back

NPY = "import numpy, os; x = numpy.load(os.environ['GPUFLOW_INPUT_FILE']); numpy.save(os.environ['GPUFLOW_OUTPUT_FILE'], {0})"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def exec_spec(source: str, output: str, command: list[str], **options: Any) -> Any:
    steps = [{"clip": {"min": 0}}, {"exec": {"command": command, **options}}, {"map": "x + 1"}]
    return from_dict({"source": {"dataset": source, "arrays": ["t2m"]}, "steps": steps, "output": output})


def test_it_is_refused_before_anything_runs_where_it_is_not_allowed(
    three_nodes: Connection, field_zarr: Path, tmp_path: Path
) -> None:
    ingest(three_nodes, field_zarr, "no-exec")
    with pytest.raises(ClusterError, match=r"`exec` runs programs, which workers of node .* do not allow; start"):
        run_pipeline(three_nodes, exec_spec("no-exec", "no-exec-out", ["touch", str(tmp_path / "ran")]))
    assert not (tmp_path / "ran").exists()
    assert "no-exec-out" not in catalog.records(three_nodes)
    spec = ArraySpec((2,), np.dtype("f4"), (None,))
    with pytest.raises(StepError, match="this worker may not run programs"):
        Exec(command=["true"]).compute(np, np.zeros(2, "f4"), spec, (slice(0, 2),))


@pytest.mark.parametrize(
    ("name", "command", "options"),
    [
        ("npy", python(NPY.format("x * 2")), {}),
        ("piped", ["cat"], {"via": "pipe"}),
        ("raw", ["sh", "-c", "cp $GPUFLOW_INPUT_FILE $GPUFLOW_OUTPUT_FILE"], {"format": "raw"}),
        ("cat", ["cat"], {"format": "raw", "via": "pipe", "memory": "1GiB"}),
    ],
)
def test_chunks_go_through_it(
    allowed: Connection, field_zarr: Path, name: str, command: list[str], options: dict[str, Any]
) -> None:
    ingest(allowed, field_zarr, f"by-{name}")
    spec = exec_spec(f"by-{name}", f"by-{name}-out", command, **options)
    receipt = run_pipeline(allowed, spec)
    assert receipt.status == "done", receipt.outcome.tally.failures
    values = zarr.open_group(field_zarr, mode="r")["t2m"][...]
    expected = values * (1 if name != "npy" else 2) + 1
    np.testing.assert_array_equal(read_back(roots_of(allowed), f"by-{name}-out", "t2m"), expected)
    assert run_pipeline(allowed, spec).to_dict()["chunks"]["skipped"] == 24
    assert not [path for root in roots_of(allowed) for path in (root / "staging").rglob("exec-*")]


def test_it_is_told_which_chunk_it_has(allowed: Connection, field_zarr: Path) -> None:
    """A program that fails for one chunk fails that one, with what it said."""
    ingest(allowed, field_zarr, "told")
    names = "DATASET $GPUFLOW_ARRAY $GPUFLOW_CHUNK $GPUFLOW_SHAPE $GPUFLOW_DTYPE"
    code = f'echo "$GPUFLOW_{names}" >&2; cp $GPUFLOW_INPUT_FILE $GPUFLOW_OUTPUT_FILE; [ $GPUFLOW_CHUNK != c/9/1/0 ] || exit 7'
    receipt = run_pipeline(allowed, exec_spec("told", "told-out", ["sh", "-c", code])).to_dict()
    assert receipt["chunks"] == {"total": 24, "done": 23, "skipped": 0, "failed": 1}
    (failure,) = receipt["failures"]
    assert failure["error"] == "the program sh ended with status 7; it said: told t2m c/9/1/0 1,8,18 float32"
    assert failure["traceback"] == "told t2m c/9/1/0 1,8,18 float32\n"


def one(folder: Path, script: str, **options: Any) -> Any:
    """What comes of [1, 2, 3] float32."""
    step, spec = Exec(command=["sh", "-c", script], **options), ArraySpec((3,), np.dtype("f4"), (None,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUFLOW_ALLOW_EXEC", "1")
        patch.setattr("tempfile.tempdir", str(folder))
        return step.compute(np, np.array([1, 2, 3], "f4"), spec, (slice(0, 3),))


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("exit 3", {}, "the program sh ended with status 3"),
        ("echo no >&2; kill -9 $$", {}, "was ended by signal 9; it said: no"),
        ("sleep 60", {"timeout_seconds": 0.2}, "had not ended after 0.2 s and was killed"),
        ("true", {}, "wrote no GPUFLOW_OUTPUT_FILE"),
        ("echo x >$GPUFLOW_OUTPUT_FILE", {}, "gave no .npy file"),
        ("echo x >$GPUFLOW_OUTPUT_FILE", {"format": "raw"}, "gave 2 bytes and not 12 bytes of [3] float32"),
        ("cp $GPUFLOW_INPUT_FILE $GPUFLOW_OUTPUT_FILE", {"returns": "uint8"}, "gave [3] float32 and not [3] uint8"),
        ("yes", {"via": "pipe"}, "wrote more than the 12 B of a chunk to its stdout"),
        ("true", {"via": "pipe"}, "gave no .npy file"),
        ("head -c 11", {"via": "pipe", "format": "raw"}, "gave 11 bytes"),
    ],
)
def test_what_it_may_do_wrong(tmp_path: Path, script: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProgramFailed) as caught:
        one(tmp_path, script, **options)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_another_dtype_may_come_out(tmp_path: Path) -> None:
    out = one(tmp_path, "printf '\\001\\002\\003'", via="pipe", format="raw", returns="uint8")
    assert (out.tolist(), out.dtype) == ([1, 2, 3], np.uint8)


def test_no_such_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUFLOW_ALLOW_EXEC", "1")
    with pytest.raises(ProgramFailed, match="cannot be started: there is no such program"):
        Exec(command="no-such-program").compute(np, np.zeros(3), ArraySpec((3,), np.dtype("f8"), (None,)), (slice(0, 3),))


def test_a_running_cluster_is_not_told_what_to_allow(allowed: Connection) -> None:
    with pytest.raises(ClusterError, match="is for its nodes to say; start each node with `gpuflow node --allow-exec`"):
        connect("tcp://127.0.0.1:1", allow_exec=True)


def test_a_step_of_another_distribution(allowed: Connection, field_zarr: Path) -> None:
    """It is installed on the workers; of a new version, chunks are made again."""
    ingest(allowed, field_zarr, "halved")
    folder = Path(str(allowed.site))  # type: ignore[attr-defined]
    values = zarr.open_group(field_zarr, mode="r")["t2m"][...]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        registry._installed.cache_clear()
        spec = from_dict({"source": "halved", "steps": [{"halve": 2}, {"map": "x + 1"}], "output": "halved-out"})
        assert run_pipeline(allowed, spec).status == "done"
        np.testing.assert_array_equal(read_back(roots_of(allowed), "halved-out", "t2m"), values / 4 + 1)
        patch.setattr(type(spec.steps[0]), "version", 2)
        assert run_pipeline(allowed, spec).to_dict()["chunks"]["done"] == 20
    registry._installed.cache_clear()
