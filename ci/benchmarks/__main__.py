"""`python -m ci.benchmarks NAME`: a small runner. Each benchmark is a module here with `options(parser)` and `measure(arguments)`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from ci.benchmarks.report import finish

NAMES = (
    "engine",
    "codecs",
    "memory",
    "routing",
    "scale",
    "safety",
    "rechunk",
    "loader",
    "explore",
    "steps",
    "validate",
    "plan",
    "watch",
    "halo",
    "tiers",
    "gpu",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="ci/bench", description="Run a benchmark, print its table and its checks.")
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    modules = {}
    for name in NAMES:
        module = modules[name] = importlib.import_module(f"ci.benchmarks.{name}")
        own = names.add_parser(name, help=(module.__doc__ or "").partition("\n")[0])
        own.add_argument("--json", type=Path, help="also write the figures to this file")
        module.options(own)
    arguments = parser.parse_args()
    return finish(modules[arguments.name].measure(arguments), arguments.json)


if __name__ == "__main__":
    sys.exit(main())
