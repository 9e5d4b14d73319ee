"""Transfer: one packed copy, or none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.runner.transfer import Transfer

CPU = torch.device("cpu")
DTYPES = [np.int64, np.int32, np.float32, np.float64, np.uint8, np.bool_]


@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), min_size=1, max_size=3)), min_size=1),
    st.booleans(),
)
def test_uploaded_tensors_equal_their_arrays(shapes: list, direct: bool) -> None:
    rng = np.random.default_rng(0)
    arrays = [(rng.random(shape) * 100).astype(dtype) for dtype, shape in shapes]
    tensors = Transfer(CPU, direct=direct).upload(*arrays)
    for array, tensor in zip(arrays, tensors, strict=True):
        assert tensor.shape == array.shape
        np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("direct", [True, False])
def test_awkward_arrays(direct: bool) -> None:
    backwards = np.arange(6, dtype=np.int32)[::-2]
    frozen = np.arange(3)
    frozen.flags.writeable = False
    a, b = Transfer(CPU, direct=direct).upload(backwards, frozen)
    assert a.tolist() == [5, 3, 1]
    assert b.tolist() == [0, 1, 2]


def test_the_cpu_copies_nothing() -> None:
    array = np.zeros(3, np.int64)
    (tensor,) = Transfer(CPU).upload(array)
    array[1] = 7
    assert tensor.tolist() == [0, 7, 0]
    assert Transfer(CPU).download([tensor])[0] is tensor


def test_a_download_is_a_copy_elsewhere() -> None:
    tensor = torch.arange(3)
    (host,) = Transfer(CPU, direct=False).download([tensor])
    tensor[0] = 9
    assert host.tolist() == [0, 1, 2]
