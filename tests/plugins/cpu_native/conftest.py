"""Whether this machine can have the kernels. Tests of what happens without them run everywhere."""

from __future__ import annotations

import pytest

from plugin_cpu_native.compiler import KernelsUnavailable
from plugin_cpu_native.library import Kernels, kernels


@pytest.fixture(scope="session")
def library() -> Kernels:
    try:
        return kernels()
    except KernelsUnavailable as error:
        pytest.skip(f"no kernels on this machine: {error}")
