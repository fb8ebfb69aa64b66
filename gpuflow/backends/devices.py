"""The CUDA devices that this process may use, and why it may use none.

Asked of the driver's management library, which creates no CUDA context: a process that only looks takes no memory of a device. The only
module that imports pynvml. `cuda:N` is what `nvidia-smi` calls N, whatever CUDA_VISIBLE_DEVICES hides; MIG instances are counted along."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any, Literal

Library = Literal["cupy", "torch"]
"""What runs on a CUDA device: either does."""
LIBRARIES: tuple[Library, ...] = ("cupy", "torch")

VARIABLE = "CUDA_VISIBLE_DEVICES"
_CUPY = ("cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "cupy")
"""Distributions that hold the module cupy; the last is built on the machine, for the CUDA that is there."""
_CONTEXT_NBYTES = 512 * 2**20
"""What must be free: a CUDA context with the kernels of CuPy or Torch takes 300 to 500 MB before the first array."""


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """One device, or MIG instance. index: N of `cuda:N`; card: the physical one's number; uuid: its name for CUDA on every machine; board:
    the physical one's uuid; nbytes: its memory; cpus: numbers of those near it."""

    index: int
    card: int
    uuid: str
    board: str
    name: str
    nbytes: int
    cpus: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"cuda:{self.index} ({self.name})"


@dataclass(frozen=True, slots=True)
class Machine:
    """All devices of a machine. trouble: why the driver could not be asked; driver: its version; cuda: the newest CUDA that it can run."""

    devices: tuple[CudaDevice, ...] = ()
    trouble: str = ""
    driver: str = ""
    cuda: tuple[int, int] = (0, 0)


def cuda_devices() -> tuple[CudaDevice, ...]:
    """Those that CUDA shows to this process, in its order; see `why_no_cuda` for why there are none."""
    return visible(os.environ.get(VARIABLE), machine().devices)


def visible(listed: str | None, devices: Sequence[CudaDevice]) -> tuple[CudaDevice, ...]:
    """Those of a machine's `devices` that CUDA_VISIBLE_DEVICES names, in its order; None where it is not set: all.

    As CUDA reads it: the list ends at the first entry that names none, such as -1; one that names a device twice shows none at all."""
    if listed is None:
        return tuple(devices)
    found: list[CudaDevice] = []
    for word in listed.split(","):
        device = _named(word.strip(), devices)
        if device is None:
            break
        if device in found:
            return ()
        found.append(device)
    return tuple(found)


def _named(word: str, devices: Sequence[CudaDevice]) -> CudaDevice | None:
    """The device of an entry: a number, as far as it is one, or the beginning of a UUID that no other device's begins with."""
    if word.startswith("MIG-"):
        instances = [device for device in devices if device.uuid.startswith(word)]
        return instances[0] if len(instances) == 1 else None
    if word.startswith("GPU-"):
        whole = [device for device in devices if device.board.startswith(word)]
        return whole[0] if len({device.card for device in whole}) == 1 else None  # of a board's instances CUDA takes the first
    number = re.match(r"[+-]?[0-9]+", word)
    return next((device for device in devices if number and device.card == int(number[0])), None)


def why_no_device() -> str:
    """Why this process sees no CUDA device, with what to do; empty when it sees one."""
    known, listed = machine(), os.environ.get(VARIABLE)
    if known.trouble:
        return known.trouble
    if not known.devices:
        return f"driver {known.driver} finds no CUDA device on this machine"
    if not visible(listed, known.devices):
        return f"{VARIABLE}={listed!r} hides this machine's CUDA devices ({', '.join(map(str, known.devices))}): unset it"
    return ""


def why_no_cuda(library: Library | None = None) -> str:
    """The same, or why `library`, or none, can use it."""
    if reason := why_no_device():
        return reason
    reasons = [why_no_library(one) for one in ([library] if library else LIBRARIES)]
    return "; ".join(reasons) if all(reasons) else ""


def why_no_library(library: Library) -> str:
    """Why `library` is of no use to this machine's driver, and what to do; empty when it is, as far as metadata tell."""
    return unfit(library, installed(library), machine())


def unfit(library: Library, there: Mapping[str, int | None], known: Machine) -> str:
    """The same. there: as `installed` gives it.

    A driver runs what was built for its own major version of CUDA, and for older ones."""
    title = {"cupy": "CuPy", "torch": "PyTorch"}[library]
    newest = f"driver {known.driver} supports CUDA up to {known.cuda[0]}.{known.cuda[1]}"
    if not there:
        return f"{title} is not installed: pip install 'gpuflow[{'cuda' if library == 'cupy' else 'torch'}]'"
    if len(there) > 1:
        return f"{' and '.join(sorted(there))} are both installed and overwrite each other: uninstall all but one"
    (name, major), *_ = there.items()
    if major == 0:
        return f"{title} is installed for the CPU only: install its build for CUDA {known.cuda[0]}"
    if major is not None and major > known.cuda[0]:
        older = f"cupy-cuda{known.cuda[0]}x" if library == "cupy" else f"PyTorch for CUDA {known.cuda[0]}"
        return f"{name} wants CUDA {major}, and {newest}: install a newer driver, or {older}"
    return ""


@lru_cache(maxsize=4)
def installed(library: Library) -> dict[str, int | None]:
    """Distributions of `library` that are installed, with the major version of CUDA that each was built for; 0 for none, None when it does
    not say."""
    found: dict[str, int | None] = {}
    for name in _CUPY if library == "cupy" else ("torch",):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        built = re.search(r"cuda(\d+)x", name)
        found[name] = int(built[1]) if built else _torch_cuda(version) if library == "torch" else None
    return found


def _torch_cuda(version: str) -> int | None:
    """By the label of the build, such as +cu130 or +cpu; a build without one, by the CUDA runtime that it requires."""
    label = version.partition("+")[2]
    if label:
        built = re.match(r"cu(\d+)\d$", label)
        return int(built[1]) if built else 0
    runtime = re.search(
        r"(?:nvidia-cuda-runtime(?:-cu\d+)?|cuda-toolkit(?:\[[^]]*\])?)==(\d+)", " ".join(metadata.requires("torch") or ())
    )
    return int(runtime[1]) if runtime else None


# -- the driver ------------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def machine() -> Machine:
    """What the driver says. Asked once a process: devices do not come and go while it lives."""
    try:
        import pynvml
    except ImportError:
        return Machine(trouble="nvidia-ml-py is not installed, which finds CUDA devices: pip install 'gpuflow[cuda]'")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Machine(trouble=_no_driver(pynvml, error))
    try:
        major, minor = divmod(pynvml.nvmlSystemGetCudaDriverVersion_v2(), 1000)
        devices = tuple(_devices(pynvml))
        return Machine(devices, "", pynvml.nvmlSystemGetDriverVersion(), (major, minor // 10))
    except pynvml.NVMLError as error:
        return Machine(trouble=f"the NVIDIA driver does not answer ({error}): see what nvidia-smi says")
    finally:
        pynvml.nvmlShutdown()


def _no_driver(pynvml: Any, error: Any) -> str:
    match error.value:
        case pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return "there is no NVIDIA driver (libnvidia-ml.so.1 is not found)"
        case pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
            return "the NVIDIA driver is installed and not loaded: modprobe nvidia, or start the container with its devices"
        case pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            return "the NVIDIA driver was updated and the old one still runs: reboot"
    return f"the NVIDIA driver cannot be asked ({error}): see what nvidia-smi says"


def _devices(pynvml: Any) -> Iterator[CudaDevice]:
    index = 0
    for card in range(pynvml.nvmlDeviceGetCount()):
        board = pynvml.nvmlDeviceGetHandleByIndex(card)
        uuid = pynvml.nvmlDeviceGetUUID(board)
        for handle in _parts(pynvml, board):
            yield CudaDevice(
                index,
                card,
                pynvml.nvmlDeviceGetUUID(handle),
                uuid,
                pynvml.nvmlDeviceGetName(handle),
                int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                _near(pynvml, board),
            )
            index += 1


def _parts(pynvml: Any, board: Any) -> list[Any]:
    """Handles of what processes can use of a board: itself, or its MIG instances."""
    try:
        mode, _ = pynvml.nvmlDeviceGetMigMode(board)
    except pynvml.NVMLError:  # it has no such mode
        return [board]
    if mode == 0:
        return [board]
    found = []
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(board)):
        try:
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(board, number))
        except pynvml.NVMLError:  # a place without an instance
            continue
    return found


def _near(pynvml: Any, board: Any) -> tuple[int, ...]:
    words = -(-(os.cpu_count() or 1) // 64)
    try:
        return cpus_of(list(pynvml.nvmlDeviceGetCpuAffinity(board, words)))
    except pynvml.NVMLError:  # a virtual machine may hide where its devices are
        return ()


def cpus_of(words: Sequence[int]) -> tuple[int, ...]:
    """Numbers of the bits that are set in words of 64 bits."""
    return tuple(64 * place + bit for place, word in enumerate(words) for bit in range(64) if word >> bit & 1)


def why_not_now(device: CudaDevice) -> str:
    """Why no further process can begin on `device` at this moment: it is full, or others have it for themselves; empty when one can."""
    import pynvml

    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
        board = pynvml.nvmlDeviceGetHandleByIndex(device.card)
        users = [one.pid for one in _answer(pynvml, pynvml.nvmlDeviceGetComputeRunningProcesses, handle, ())]
        alone = _answer(pynvml, pynvml.nvmlDeviceGetComputeMode, board, pynvml.NVML_COMPUTEMODE_DEFAULT)
        free = int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
        closed = alone == pynvml.NVML_COMPUTEMODE_PROHIBITED
        return occupied(device, free, users, closed=closed, exclusive=alone == pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS)
    except pynvml.NVMLError as error:
        return f"{device} does not answer ({error}): see what nvidia-smi says"
    finally:
        pynvml.nvmlShutdown()


def _answer(pynvml: Any, question: Callable[[Any], Any], handle: Any, unknown: Any) -> Any:
    """What the driver says, or `unknown`: MIG instances, containers and old drivers do not tell everything."""
    try:
        return question(handle)
    except pynvml.NVMLError:
        return unknown


def occupied(device: CudaDevice, free_nbytes: int, users: Sequence[int], *, closed: bool = False, exclusive: bool = False) -> str:
    """The same. users: processes that compute on it; closed: to all; exclusive: to one process at a time."""
    who = f"process {', '.join(map(str, users))}" if users else "nobody that can be seen"
    if closed:
        return f"{device} is closed to computing: nvidia-smi -i {device.card} -c DEFAULT opens it"
    if exclusive and users:
        return f"{device} is for one process at a time, and {who} has it: end that, or nvidia-smi -i {device.card} -c DEFAULT"
    if free_nbytes < _CONTEXT_NBYTES:
        return f"{device} is full: {free_nbytes >> 20} MiB are free of {device.nbytes >> 20} MiB, used by {who}"
    return ""
