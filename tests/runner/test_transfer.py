"""Transfer: one packed copy, or none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.runner.transfer import Transfer, pack, starts_of
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


@pytest.mark.parametrize("direct", [True, False])
def test_arrays_go_into_a_buffer_where_it_was_said(direct: bool) -> None:
    arrays = [np.arange(5, dtype=np.int64), np.arange(3, dtype=np.int32)[::-1], np.zeros((0, 2), np.float32)]
    buffer = torch.full((200,), 7, dtype=torch.uint8)
    tensors = Transfer(CPU, direct=direct).upload_into(buffer, *arrays)
    starts, size = starts_of(array.nbytes for array in arrays)
    assert (starts, size) == ([0, 48, 64], 64)
    for array, tensor, start in zip(arrays, tensors, starts, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert not tensor.numel() or tensor.data_ptr() == buffer.data_ptr() + start
    assert buffer[size:].eq(7).all()


def test_several_results_are_one_copy_and_a_large_one_is_its_own() -> None:
    hardware = MockAsyncHardware()
    transfer = Transfer(CPU, hardware, direct=False)
    small, large = [torch.ones(3), torch.zeros(2, 2, dtype=torch.int64)], torch.ones(1 << 19)
    with hardware.stream():
        host = transfer.download(small)
        assert hardware.num_downloads == 1
        more = transfer.download([*small, large])
        assert hardware.num_downloads == 4
        hardware.wait_event(hardware.record_event())
    for got, want in zip([*host, *more], [*small, *small, large], strict=True):
        assert torch.equal(got, want)
