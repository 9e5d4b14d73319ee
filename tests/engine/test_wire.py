"""Errors over the wire, the fan-out to streams, and the import rule of the parent."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import numpy as np
import pytest

from core.engine.client import EngineRequest
from core.engine.messages import ErrorInfo, FromEngine, StepOutputs
from core.engine.streams import StreamTable
from core.engine.wire_errors import describe, restore
from core.interfaces import errors
from core.interfaces.errors import CapacityError, EngineDead, EngineError, Overloaded, RequestError
from core.interfaces.params import SamplingParams


@pytest.mark.parametrize(
    "error",
    [
        RequestError("bad", param="top_p", code="x", status=422, hint="do better"),
        Overloaded("full", retry_after_s=7),
        CapacityError("small", hint="more"),
        errors.WeightError("missing a.b"),
        errors.ConfigError("wrong", hint="fix"),
    ],
)
def test_errors_survive_the_wire(error: errors.CoreError) -> None:
    message, info = describe(error)
    info = msgspec.msgpack.decode(msgspec.msgpack.encode(info), type=ErrorInfo)
    back = restore(message, info)
    assert type(back) is type(error)
    assert str(back) == str(error)
    for name in ("param", "code", "status", "retry_after_s"):
        assert getattr(back, name, None) == getattr(error, name, None)


def test_foreign_errors_become_engine_errors() -> None:
    message, info = describe(ZeroDivisionError("division by zero"))
    assert type(restore(message, info)) is EngineError
    assert message == "ZeroDivisionError: division by zero"
    assert type(restore("x", ErrorInfo("os"))) is EngineError
    assert type(restore("x", ErrorInfo("Any"))) is EngineError


def outputs(ids: list[int], tokens: list[int], finish: list[int], **more) -> StepOutputs:
    raw = StepOutputs(
        np.array(ids, np.int64).tobytes(), np.array(tokens, np.int32).tobytes(),
        np.array(finish, np.uint8).tobytes(), **more,
    )  # fmt: skip
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(raw), type=FromEngine)
    assert isinstance(decoded, StepOutputs)
    return decoded


async def test_tokens_before_a_death_are_not_lost() -> None:
    table = StreamTable(lambda request_id: None)
    stream = table.open(EngineRequest(np.zeros(1, np.int32), SamplingParams()))
    table.feed(outputs([stream.id, 99], [5, 6], [0, 0], first={0: 2}))
    table.feed(outputs([stream.id], [8], [0]))
    table.fail_all(lambda: EngineDead("gone"))
    reader = table.read(lambda: (stream, frozenset()))
    chunk = await anext(reader)
    assert (chunk.tokens, chunk.cached_tokens, chunk.finish_reason) == ([5, 8], 2, None)
    with pytest.raises(EngineDead, match="gone"):
        await anext(reader)


async def test_an_error_behind_unread_tokens_keeps_its_status() -> None:
    table = StreamTable(lambda request_id: None)
    stream = table.open(EngineRequest(np.zeros(1, np.int32), SamplingParams()))
    message, info = describe(RequestError("too slow", code="timeout", status=504))
    table.feed(outputs([stream.id], [5], [0], first={0: 0}))
    table.feed(outputs([stream.id], [-1], [4], errors={0: message}, error_info={0: info}))  # nobody has read yet
    reader = table.read(lambda: (stream, frozenset()))
    chunk = await anext(reader)
    assert (chunk.tokens, chunk.finish_reason, chunk.error) == ([5], None, None)
    with pytest.raises(RequestError, match="too slow") as caught:
        await anext(reader)
    assert (caught.value.status, caught.value.code) == (504, "timeout")


async def test_cancel_only_while_it_runs() -> None:
    cancelled: list[int] = []
    table = StreamTable(cancelled.append)
    one, two = (table.open(EngineRequest(np.zeros(1, np.int32), SamplingParams())) for _ in range(2))
    table.feed(outputs([one.id], [5], [2]))
    table.close(one)
    table.close(two)
    table.close(two)
    assert cancelled == [two.id]
    table.feed(outputs([two.id], [5], [3]))  # the engine's answer comes late
    assert len(table) == 0


def test_parent_side_needs_no_torch() -> None:
    code = (
        "import sys, core.engine.process_client, core.engine.inline_client, core.metrics.prometheus\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
