"""One worker a device: what is started, on which CPUs, and that no second one has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpuflow.backends import devices
from gpuflow.backends.devices import CudaDevice, Machine
from gpuflow.cluster import worker_device
from gpuflow.cluster.connection import connect
from gpuflow.cluster.device_claims import DeviceClaim
from gpuflow.cluster.launch import Start, end_process, on_cpus, start_process, starts
from gpuflow.cluster.worker_device import take_device
from gpuflow.errors import ConfigError, DeviceUnavailable

from .processes import GPUFLOW, LOCAL, WORKER, kill, running, scheduler, until

CARDS = tuple(CudaDevice(number, number, f"GPU-{number}", f"GPU-{number}", "A100", 2**30) for number in range(3))

CLAIM = (
    "import sys, time; from pathlib import Path; from gpuflow.cluster.device_claims import DeviceClaim\n"
    "claim = DeviceClaim('GPU-x', share='share' in sys.argv, folder=Path(sys.argv[1])); print('has it', flush=True); time.sleep(600)"
)


def holding(folder: Path, *options: str) -> subprocess.Popen[str]:
    """A process that has claimed the device."""
    process = subprocess.Popen([sys.executable, "-c", CLAIM, str(folder), *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "has it\n"
    process.stdout.close()
    return process


def test_a_device_is_one_workers_until_its_process_is_gone(tmp_path: Path) -> None:
    first = holding(tmp_path)
    try:
        with pytest.raises(
            DeviceUnavailable, match=rf"GPU-x is already that of another worker \(process {first.pid}\); .*--share-device"
        ):
            DeviceClaim("GPU-x", folder=tmp_path)
        with pytest.raises(DeviceUnavailable):
            DeviceClaim("GPU-x", share=True, folder=tmp_path)
        DeviceClaim("GPU-y", folder=tmp_path).close()
    finally:
        kill(first)  # type: ignore[arg-type]
    DeviceClaim("GPU-x", folder=tmp_path).close()


def test_those_that_share_a_device_have_it_together(tmp_path: Path) -> None:
    first = holding(tmp_path, "share")
    try:
        second = DeviceClaim("GPU-x", share=True, folder=tmp_path)
        with pytest.raises(DeviceUnavailable):
            DeviceClaim("GPU-x", folder=tmp_path)
        second.close()
    finally:
        kill(first)  # type: ignore[arg-type]


# -- what a worker takes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def three_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The driver's answers for a machine of three devices, and which of them are said to be full: choosing is what is tested."""
    full: list[str] = []
    monkeypatch.setattr(devices, "machine", lambda: Machine(CARDS, "", "550.54", (12, 4)))
    monkeypatch.setattr(devices, "installed", lambda library: {"torch": 12} if library == "torch" else {})
    monkeypatch.setattr(worker_device, "why_not_now", lambda device: f"{device} is full" if device.uuid in full else "")
    monkeypatch.setattr("gpuflow.cluster.device_claims._FOLDER", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    return full


def test_a_worker_takes_a_device_that_nobody_has(three_cards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = take_device("cuda")
    assert (first.name, first.title, first.nbytes, first.why_cpu) == ("cuda:0", "A100", 2**30, "")
    assert list(first.lacks) == ["cupy"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-0"
    with pytest.raises(DeviceUnavailable, match="GPU-0 is already"):
        take_device("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    second = take_device("auto")
    assert second.name == "cuda:1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    third = take_device("auto")
    assert (third.name, os.environ["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")
    assert third.why_cpu.startswith("CUDA device GPU-0 is already that of another worker")
    for one in (first, second):
        assert one.claim is not None
        one.claim.close()


def test_a_device_that_is_full_or_hidden(three_cards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    three_cards.append("GPU-1")
    with pytest.raises(DeviceUnavailable, match=r"cuda:1 \(A100\) is full"):
        take_device("cuda:1")
    with pytest.raises(DeviceUnavailable, match="there is no device cuda:2 for this process"):
        take_device("cuda:2")
    with pytest.raises(ConfigError):
        take_device("gpu")
    assert take_device("cpu").why_cpu == "it was started with --device cpu"


# -- what is started ---------------------------------------------------------------------------------------------------------------


def test_workers_for_devices_and_for_the_cpu() -> None:
    one, two, three = CARDS
    assert starts(16, 1, None, ()) == [[Start(4, 4)]]
    assert starts(16, 2, 2, (), "cpu") == [[Start(2, 4, "cpu")]] * 2
    assert starts(16, 1, None, [one, two]) == [[Start(1, 8, "auto", one), Start(1, 8, "auto", two)]]
    assert starts(16, 1, 2, [one, two], "cuda") == [[Start(1, 4, "cuda", one), Start(1, 4, "cuda", two), Start(2, 4, "cpu")]]
    assert starts(16, 2, None, CARDS) == [[Start(1, 4, "auto", one), Start(1, 4, "auto", three)], [Start(1, 8, "auto", two)]]
    assert starts(4, 2, None, [one], "cuda") == [[Start(1, 2, "cuda", one)], [Start(2, 1, "cpu")]]


def affinities(pid: int) -> set[frozenset[int]]:
    """Of every thread of a process."""
    return {frozenset(os.sched_getaffinity(int(task.name))) for task in Path(f"/proc/{pid}/task").iterdir()}


def test_a_process_runs_on_the_cpus_near_its_device(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    near = max(before)
    code = "import os, threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start(); "
    code += "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(600)"
    device = CudaDevice(0, 0, "GPU-7", "GPU-7", "A100", 2**30, (near, 100_000))
    process = start_process([sys.executable, "-c", code], log=tmp_path / "log", lifeline=True, device=device)
    try:
        until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text() == "GPU-7\n", "its start")
        assert affinities(process.pid) == {frozenset([near])}
    finally:
        end_process(process)
    assert os.sched_getaffinity(0) == before


def test_cpus_that_may_not_be_used_are_no_reason_to_stop(caplog: pytest.LogCaptureFixture) -> None:
    before = os.sched_getaffinity(0)
    with on_cpus([100_000]):
        assert os.sched_getaffinity(0) == before
    assert "of the CPUs near its device (100000) none may be used here" in caplog.text


# -- over the wire -----------------------------------------------------------------------------------------------------------------


def test_a_worker_reports_what_it_computes_on(tmp_path: Path) -> None:
    with scheduler(tmp_path, *GPUFLOW) as (address, _):
        command = [*WORKER, address, *LOCAL, "--no-nanny", *GPUFLOW, "--root", str(tmp_path / "root"), "--device", "cpu"]
        with running(command, tmp_path / "log"), connect(address, device="cuda") as connection:
            (worker,) = until(lambda: list(connection.info()["workers"].values()), "the worker")
            assert (worker["device"], worker["device_name"], worker["device_nbytes"]) == ("cpu", "", 0)
            assert worker["why_cpu"] == "it was started with --device cpu"
            assert worker["lacks"] == {}


@pytest.mark.skipif(bool(devices.machine().devices), reason="there are CUDA devices")
def test_a_worker_for_a_device_that_is_not_there_does_not_join(tmp_path: Path) -> None:
    command = [*WORKER, "tcp://127.0.0.1:1", *LOCAL, "--no-nanny", *GPUFLOW, "--root", str(tmp_path / "root"), "--device", "cuda"]
    with running(command, tmp_path / "log") as process:
        assert process.wait(30) == 1
    assert "error: cuda cannot be used: there is no NVIDIA driver" in (tmp_path / "log").read_text()
    assert not (tmp_path / "root").exists()
