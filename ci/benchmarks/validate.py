"""Validate: checking a pipeline's file of 200 lines, and `gpuflow validate` of it from the shell, against what Python itself takes.

The file has every kind of step that needs no module of one's own. CPU seconds, so that a busy machine does not count."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ci.benchmarks.report import Report, interleave
from gpuflow.pipelines.load import load_text

_STEPS = """\
  # packed values to what they stand for
  - unpack:
      scale_factor: 0.01
      add_offset: 273.15
      missing: -9999
  - mask: "x < 180"
  - where:
      condition: (x > 180) & (x < 400)
      other: 0
  - fill_nan: 280
  - standardize:
      mean: 280
      std: 12
  - normalize: {per: channel, quantiles: [0.01, 0.99]}
  - clip: [-3, 3]
  - map: "where(x > 0, log1p(x), x) * 0.5 + 0.5"
  - gaussian: {sigma: {y: 1, x: 1}}
  - cast: float32
"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7)


def measure(arguments: argparse.Namespace) -> Report:
    text = "source: photos\nsteps:\n" + _STEPS * 12 + "output: photos-train\nrun:\n  workers: 2\n"
    report = Report("CPU milliseconds")
    report.notes.append(f"the file has {text.count(chr(10))} lines and {len(load_text(text).steps)} steps")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "p.yaml")
        path.write_text(text)
        command = [sys.executable, "-m", "gpuflow", "validate", str(path)]
        sides = {"load": lambda: _of(lambda: load_text(text)), "gpuflow validate": lambda: _of_process(command)}
        sides["python, numpy, pydantic"] = lambda: _of_process([sys.executable, "-c", "import numpy, pydantic, ruamel.yaml"])
        interleave(report, "200 lines", sides, arguments.rounds)
    report.check("checking 200 lines, ms", report.median("200 lines", "load"), "<=", 200)
    report.check("gpuflow validate of them from the shell, ms", report.median("200 lines", "gpuflow validate"), "<=", 400)
    return report


def _of(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return (time.process_time() - began) * 1000


def _of_process(command: Sequence[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000
