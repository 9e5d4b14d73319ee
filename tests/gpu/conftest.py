"""Tests of this folder need an NVIDIA GPU and say so where there is none.

CORE_GPU_TESTS_ON=cpu runs their bodies on the CPU instead, as far as they go there: to check the tests, not the GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.gpu.engines import ON_CPU

os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("gpu")
            if not ON_CPU and not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu") if ON_CPU else torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _memory_is_given_back() -> Iterator[None]:
    yield
    if torch.cuda.is_initialized():
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.empty_cache()
