"""Which device steps run on. `auto` may fall back, and says so; a named device never does."""

from __future__ import annotations

import logging
import re

from gpuflow.errors import ConfigError, DeviceUnavailable, Problem

logger = logging.getLogger(__name__)


def select_device(asked: str) -> str:
    """`auto` or `cpu` -> `cpu`. ConfigError for a word that names no device, DeviceUnavailable for one that is not there."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", asked):
        raise ConfigError([Problem(f"device {asked!r} is unknown", hint="use auto, cpu, cuda or cuda:N")])
    if asked.startswith("cuda"):
        raise DeviceUnavailable("this version of gpuflow has no CUDA backend", "use device: auto or cpu")
    if asked == "auto":
        logger.info("device: auto is cpu")
    return "cpu"
