"""Commands in this process: as `gpuflow` in a shell, but for the second that it takes to start."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from gpuflow.cli import main


def command(*arguments: object, root: Path, status: int = 0, **environment: str) -> str:
    """Output of a command (stdout, then stderr) that has to end with `status`."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["gpuflow", *map(str, arguments)])
        for name, value in {"GPUFLOW_ROOT": str(root), "COLUMNS": "200", **environment}.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
    shown = out.getvalue() + err.getvalue()
    assert (ended.value.code or 0) == status, f"{arguments} ended with {ended.value.code}\n{shown}"
    return shown
