"""What a worker process computes on: one CUDA device, or the CPU. Chosen once, before anything of CUDA is loaded.

From then on CUDA shows the process that device alone, or none, so that whatever runs in it finds the right one: it is `cuda`."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field

from gpuflow.backends.devices import LIBRARIES, VARIABLE, CudaDevice, cuda_devices, why_no_cuda, why_no_library, why_not_now
from gpuflow.backends.select import check_device_word, find_device
from gpuflow.cluster.device_claims import DeviceClaim
from gpuflow.errors import DeviceUnavailable

logger = logging.getLogger(__name__)

CPU = "cpu"
_USED_SHARE, _KEPT_SHARE = 0.9, 0.5
"""Of a device's memory, what is used of it, the rest being for CUDA and its libraries; and of that, what decoded chunks are kept in."""


def used_nbytes(device_nbytes: int) -> int:
    """Of a device's memory, what chunks may take: those under way, and those that are kept."""
    return int(device_nbytes * _USED_SHARE)


def kept_nbytes(device_nbytes: int) -> int:
    """Of that, for those that are kept."""
    return int(used_nbytes(device_nbytes) * _KEPT_SHARE)


@dataclass(frozen=True)
class WorkerDevice:
    """name: cpu, or cuda:N. title: of the device. why_cpu: why it is none of CUDA's. lacks: libraries of no use there, and why."""

    name: str = CPU
    title: str = ""
    nbytes: int = 0
    why_cpu: str = ""
    lacks: dict[str, str] = field(default_factory=dict)
    claim: DeviceClaim | None = field(default=None, compare=False)


def take_device(asked: str, *, share: bool = False) -> WorkerDevice:
    """The device of this process. `cuda` is the first that nobody has; `auto` too, else the CPU, and says so.

    ConfigError for a word that names no device; DeviceUnavailable for a named one that is not there, is busy, or is another worker's."""
    check_device_word(asked)
    if asked == CPU:
        return _none("it was started with --device cpu")
    reason = why_no_cuda()
    if reason and asked != "auto":
        raise DeviceUnavailable(f"{asked} cannot be used: {reason}", "use --device auto or cpu")
    refused: DeviceUnavailable | None = None
    for device in () if reason else [find_device(asked)] if ":" in asked else cuda_devices():
        try:
            return _take(device, share)
        except DeviceUnavailable as error:
            refused = refused or error
    if refused is not None and asked != "auto":
        raise refused
    logger.info("device: auto is cpu: %s", reason or refused)
    return _none(reason or str(refused))


def _take(device: CudaDevice, share: bool) -> WorkerDevice:
    claim = DeviceClaim(device.uuid, share=share)
    if reason := why_not_now(device):
        claim.close()
        raise DeviceUnavailable(reason)
    os.environ[VARIABLE] = device.uuid
    lacks: dict[str, str] = {library: reason for library in LIBRARIES if (reason := why_no_library(library))}
    return WorkerDevice(f"cuda:{device.index}", device.name, device.nbytes, "", lacks, claim)


def _none(reason: str) -> WorkerDevice:
    os.environ[VARIABLE] = ""
    return WorkerDevice(why_cpu=reason)
