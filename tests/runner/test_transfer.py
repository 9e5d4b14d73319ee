"""Transfer: one packed copy, or none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.runner.transfer import Packing, Transfer, pack, starts_of
from core.testing.mock_hardware import MockAsyncHardware

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


@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), min_size=0, max_size=3)), min_size=1),
)
def test_packed_tensors_come_apart_again(shapes: list) -> None:
    rng = np.random.default_rng(0)
    tensors = [torch.from_numpy(np.asarray((rng.random(shape) * 100).astype(dtype))) for dtype, shape in shapes]
    tensors.append(torch.arange(5.0).view(1, 5)[:, 3])  # one element, with a stride
    packed = pack(tensors)
    assert packed.bytes.numel() == sum(tensor.nbytes for tensor in tensors)
    for got, want in zip(packed.unpack(packed.bytes.clone()), tensors, strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


@pytest.mark.parametrize("into_buffer", [True, False])
@pytest.mark.parametrize("direct", [True, False])
@given(parts=st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(0, 9)), min_size=1))
def test_a_parcel_arrives_where_it_was_said(direct: bool, into_buffer: bool, parts: list) -> None:
    packing = Packing(*(dtype for dtype, _ in parts))
    lengths = tuple(length for _, length in parts)
    starts, size = starts_of(length * np.dtype(dtype).itemsize for dtype, length in parts)
    buffer = torch.full((size + 8,), 7, dtype=torch.uint8) if into_buffer else None
    transfer, rng = Transfer(CPU, direct=direct), np.random.default_rng(0)
    for _ in range(2):  # the second time the places are known
        parcel = transfer.parcel(packing, lengths, buffer)
        want = [(rng.random(length) * 100).astype(dtype) for dtype, length in parts]
        for array, values in zip(parcel.host, want, strict=True):
            array[:] = values
        tensors = parcel.send()
        for tensor, values, start in zip(tensors, want, starts, strict=True):
            np.testing.assert_array_equal(tensor.numpy(), values)
            assert tensor.numpy().dtype == values.dtype
            if buffer is not None and len(values):
                assert tensor.data_ptr() == buffer.data_ptr() + start
    assert buffer is None or buffer[size:].eq(7).all()
