"""Which devices a process sees is what CUDA says; why it sees none is said with what to do."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuflow.backends import devices
from gpuflow.backends.devices import CudaDevice, Machine, cpus_of, machine, occupied, unfit, visible, why_no_cuda, why_no_device


def card(number: int, uuid: str, **options: int) -> CudaDevice:
    return CudaDevice(number, number, uuid, uuid, "NVIDIA A100", 40 * 2**30, **options)  # type: ignore[arg-type]


CARDS = (card(0, "GPU-aa11"), card(1, "GPU-aa22"), card(2, "GPU-bb33"))
SLICED = (
    card(0, "GPU-aa11"),
    CudaDevice(1, 1, "MIG-one1", "GPU-cc44", "NVIDIA A100 MIG 3g.20gb", 20 * 2**30),
    CudaDevice(2, 1, "MIG-two2", "GPU-cc44", "NVIDIA A100 MIG 3g.20gb", 20 * 2**30),
)


@pytest.mark.parametrize(
    ("listed", "numbers"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("0,1,2", [0, 1, 2]),
        ("2, 0", [2, 0]),
        ("1,-1,2", [1]),
        ("0,7,1", [0]),
        ("1gpu,2", [1, 2]),
        ("none", []),
        ("0,0", []),
        ("GPU-aa22", [1]),
        ("GPU-b,0", [2, 0]),
        ("GPU-aa", []),
        ("GPU-bb33,GPU-zz,GPU-aa11", [2]),
        ("GPU-aa11,0", []),
    ],
)
def test_what_cuda_shows(listed: str | None, numbers: list[int]) -> None:
    assert [device.index for device in visible(listed, CARDS)] == numbers


@pytest.mark.parametrize(
    ("listed", "numbers"),
    [(None, [0, 1, 2]), ("MIG-two2", [2]), ("MIG-", []), ("1", [1]), ("GPU-cc44", [1]), ("MIG-two2,MIG-one1,0", [2, 1, 0])],
)
def test_instances_of_a_sliced_card(listed: str | None, numbers: list[int]) -> None:
    assert [device.index for device in visible(listed, SLICED)] == numbers


@given(st.lists(st.integers(-2, 4), max_size=5))
def test_the_list_ends_where_it_is_wrong(numbers: list[int]) -> None:
    found = [device.index for device in visible(",".join(map(str, numbers)), CARDS)]
    good = next((place for place, number in enumerate(numbers) if number not in (0, 1, 2)), len(numbers))
    assert found == (numbers[:good] if len(set(numbers[:good])) == good else [])


def test_cpus_near_a_device() -> None:
    assert cpus_of([0b1010, 0, 1]) == (1, 3, 128)
    assert cpus_of([]) == ()


BOTH = "cupy and cupy-cuda13x are both installed and overwrite each other: uninstall all but one"
OLD = Machine(CARDS, "", "550.54", (12, 4))


@pytest.mark.parametrize(
    ("library", "there", "reason"),
    [
        ("cupy", {}, "CuPy is not installed: pip install 'gpuflow[cuda]'"),
        ("cupy", {"cupy-cuda13x": 13}, "cupy-cuda13x wants CUDA 13, and {}: install a newer driver, or cupy-cuda12x"),
        ("cupy", {"cupy-cuda12x": 12}, ""),
        ("cupy", {"cupy-cuda11x": 11}, ""),
        ("cupy", {"cupy": None}, ""),
        ("cupy", {"cupy": None, "cupy-cuda13x": 13}, BOTH),
        ("torch", {"torch": 0}, "PyTorch is installed for the CPU only: install its build for CUDA 12"),
        ("torch", {"torch": 13}, "torch wants CUDA 13, and {}: install a newer driver, or PyTorch for CUDA 12"),
        ("torch", {}, "PyTorch is not installed: pip install 'gpuflow[torch]'"),
    ],
)
def test_a_library_that_does_not_fit_the_driver(library: devices.Library, there: dict[str, int | None], reason: str) -> None:
    assert unfit(library, there, OLD) == reason.format("driver 550.54 supports CUDA up to 12.4")


@pytest.mark.parametrize(
    ("version", "major"), [("2.13.0+cpu", 0), ("2.13.0+cu130", 13), ("2.4.1+cu118", 11), ("2.13.0+rocm6.4", 0)]
)
def test_for_which_cuda_torch_was_built(version: str, major: int) -> None:
    assert devices._torch_cuda(version) == major


def test_a_device_that_cannot_take_another_process() -> None:
    device = CARDS[1]
    assert occupied(device, 30 * 2**30, [17]) == ""
    assert "cuda:1 (NVIDIA A100) is full: 100 MiB are free of 40960 MiB, used by process 17, 18" in occupied(
        device, 100 * 2**20, [17, 18]
    )
    assert "for one process at a time, and process 17 has it" in occupied(device, 30 * 2**30, [17], exclusive=True)
    assert occupied(device, 30 * 2**30, [], exclusive=True) == ""
    assert "closed to computing" in occupied(device, 30 * 2**30, [], closed=True)


def test_devices_that_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "machine", lambda: OLD)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert why_no_device().startswith("CUDA_VISIBLE_DEVICES='-1' hides this machine's CUDA devices (cuda:0 (NVIDIA A100), cuda:1")
    monkeypatch.setattr(devices, "machine", lambda: Machine((), "", "550.54", (12, 4)))
    assert why_no_device() == "driver 550.54 finds no CUDA device on this machine"


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is an NVIDIA driver")
def test_a_machine_without_a_driver() -> None:
    """Asked for real, through the driver's library that is not there."""
    assert machine().devices == ()
    assert "there is no NVIDIA driver" in why_no_cuda()
    assert devices.cuda_devices() == ()


@pytest.mark.gpu
@pytest.mark.skipif(not os.path.exists("/dev/nvidiactl"), reason="no NVIDIA driver")
def test_a_machine_with_a_device() -> None:
    assert why_no_device() == ""
    for device in machine().devices:
        assert device.uuid.startswith(("GPU-", "MIG-"))
        assert device.nbytes > 0
        assert set(device.cpus) <= set(range(os.cpu_count() or 1))
        assert isinstance(devices.why_not_now(device), str)
