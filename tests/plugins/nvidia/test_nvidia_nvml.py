"""What is read of the driver's answers, from a library that answers as NVML does."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from plugin_nvidia.nvml import Gpu, visible_gpus

UUIDS = (b"GPU-11111111-aaaa", b"GPU-22222222-bbbb", b"GPU-33333333-cccc")


class _Function:
    """A C function: its result type can be set."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.restype: Any = ctypes.c_int

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


class Library:
    """Three devices. init, count: what these calls return; shut: how often it was given back."""

    def __init__(self, *, init: int = 0, count: int = 0, devices: int = 3) -> None:
        self.shut = 0
        self.nvmlInit_v2 = _Function(lambda: init)
        self.nvmlShutdown = _Function(self._shutdown)
        self.nvmlErrorString = _Function(lambda code: b"driver not loaded" if code == 9 else None)
        self.nvmlDeviceGetCount_v2 = _Function(lambda out: self._put(out, devices) or count)
        self.nvmlDeviceGetHandleByIndex_v2 = _Function(lambda index, out: self._put(out, 100 + index) and 0)
        self.nvmlDeviceGetHandleByUUID = _Function(self._by_uuid)
        self.nvmlDeviceGetUUID = _Function(lambda handle, out, size: self._text(out, UUIDS[handle.value - 100]))
        self.nvmlDeviceGetName = _Function(
            lambda handle, out, size: self._text(out, b"NVIDIA H%d" % (handle.value + 100))
        )
        self.nvmlDeviceGetMemoryInfo = _Function(self._memory)
        self.nvmlDeviceGetCudaComputeCapability = _Function(
            lambda handle, major, minor: self._put(major, 9) or self._put(minor, 0)
        )

    def _shutdown(self) -> int:
        self.shut += 1
        return 0

    @staticmethod
    def _put(out: Any, value: int) -> int:
        out._obj.value = value
        return 0

    @staticmethod
    def _text(out: Any, value: bytes) -> int:
        out.value = value
        return 0

    def _by_uuid(self, uuid: bytes, out: Any) -> int:
        if uuid not in UUIDS:
            return 6
        return self._put(out, 100 + UUIDS.index(uuid))

    @staticmethod
    def _memory(handle: Any, out: Any) -> int:
        out._obj.total = (handle.value - 99) << 30
        return 0


def gpu(index: int) -> Gpu:
    return Gpu(f"NVIDIA H{200 + index}", (index + 1) << 30, (9, 0))


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2]),
        ("0,2", [0, 2]),
        (" 2 , 1 ", [2, 1]),
        ("1,-1,0", [1]),  # CUDA stops at the first entry that names nothing
        ("7,0", []),
        ("GPU-22222222-bbbb,0", [1, 0]),
        ("GPU-333", [2]),
        ("GPU-9", []),
        ("", []),
    ],
)
def test_devices_that_may_be_used(visible: str | None, expected: list[int]) -> None:
    library = Library()
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    gpus, reason = visible_gpus(environment, library)
    assert gpus == [gpu(index) for index in expected]
    assert bool(reason) is not bool(expected)
    if not expected:
        assert f"CUDA_VISIBLE_DEVICES={visible!r} hides every device" in reason
    assert library.shut == 1


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        (Library(init=9), "does not answer (NVML error 9: driver not loaded)"),
        (Library(init=4), "does not answer (NVML error 4)"),
        (Library(count=999), "does not list its devices (NVML error 999)"),
        (Library(devices=0), "knows no device"),
    ],
)
def test_an_absent_driver_says_why(library: Library, reason: str) -> None:
    gpus, told = visible_gpus({}, library)
    assert not gpus
    assert reason in told


def test_no_library_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert visible_gpus({}) == ([], "no NVIDIA driver: libnvidia-ml.so.1: cannot open shared object file")
