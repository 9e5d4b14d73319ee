"""A request's work runs in the request's own task and ends with its client; whatever else cancels it still does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import pytest
from starlette.requests import Request

from core.server.errors import ClientGone
from core.server.replies import ClientWatch, EventStream, OpenAIStream, json_reply, while_connected

SCOPE: dict[str, Any] = {"type": "http", "headers": []}


class Connection:
    """The server's side of one: `gone` is set when the client closes it."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.waiting = 0
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        self.waiting += 1
        try:
            await self.gone.wait()
        finally:
            self.waiting -= 1
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def request(self) -> Request:
        return Request(SCOPE, self.receive, self.send)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 10))


async def turns(num: int = 5) -> None:
    for _ in range(num):
        await asyncio.sleep(0)


def test_work_runs_in_the_task_at_hand_and_the_watch_ends_with_it() -> None:
    async def main() -> None:
        connection, here, before = Connection(), asyncio.current_task(), asyncio.all_tasks()

        async def work() -> Any:
            assert asyncio.current_task() is here
            await turns()
            assert connection.waiting == 1
            return json_reply({})

        assert (await while_connected(connection.request, work())).body == b"{}"
        await turns()
        assert connection.waiting == 0
        assert asyncio.all_tasks() == before

    run(main())


@pytest.mark.parametrize("failing", [False, True])
def test_a_client_that_goes_cancels_the_work_and_waits_for_its_end(failing: bool) -> None:
    async def main() -> None:
        connection, here, ended = Connection(), asyncio.current_task(), []

        async def work() -> None:
            try:
                connection.gone.set()
                await asyncio.sleep(60)
            finally:
                await turns()
                ended.append(True)
                if failing:
                    raise ValueError("while it was put away")

        with pytest.raises(ClientGone):
            await while_connected(connection.request, work())
        assert ended == [True]
        assert here is not None
        assert here.cancelling() == 0
        await turns()  # and nothing cancels what follows

    run(main())


def test_a_client_that_goes_as_the_work_ends_cancels_nothing_after_it() -> None:
    """The watch's end and the work's end are in one turn of the loop, in either order."""

    async def main() -> None:
        for turns_before in range(6):
            connection = Connection()

            async def work(connection: Connection = connection, before: int = turns_before) -> int:
                await turns(3)
                connection.gone.set()
                await turns(before)
                return 1

            try:
                assert await while_connected(connection.request, work()) == 1  # type: ignore[arg-type]
            except ClientGone:
                assert turns_before
            here = asyncio.current_task()
            assert here is not None
            assert here.cancelling() == 0
            await turns()

    run(main())


def test_errors_of_the_work_are_its_own() -> None:
    async def main() -> None:
        connection = Connection()

        async def work() -> None:
            await turns()
            raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await while_connected(connection.request, work())
        await turns()
        assert connection.waiting == 0

    run(main())


@pytest.mark.parametrize("client_goes", [False, True])
def test_whoever_else_cancels_the_task_sees_it_cancelled(client_goes: bool) -> None:
    async def main() -> None:
        connection = Connection()

        async def serve() -> None:
            await while_connected(connection.request, asyncio.sleep(60))

        serving = asyncio.create_task(serve())
        await turns()
        if client_goes:
            connection.gone.set()
            await asyncio.sleep(0)
        serving.cancel()
        with pytest.raises((asyncio.CancelledError, ClientGone)) as caught:
            await serving
        assert client_goes or caught.type is asyncio.CancelledError
        await turns()
        assert connection.waiting == 0

    run(main())


def test_a_timeout_inside_is_a_timeout() -> None:
    async def main() -> None:
        connection = Connection()

        async def work() -> None:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)

        with pytest.raises(TimeoutError):
            await while_connected(connection.request, work())

    run(main())


class Events:
    """A stream's generator, and whether it was closed."""

    def __init__(self, num: int, then: Exception | None = None) -> None:
        self.closed = False
        self._num, self._then = num, then

    async def made(self) -> AsyncGenerator[bytes]:
        try:
            for number in range(self._num):
                yield b"%d" % number
                await asyncio.sleep(0)
            if self._then is not None:
                raise self._then
            await asyncio.sleep(60)
        finally:
            self.closed = True


def test_a_stream_takes_the_watch_over() -> None:
    async def main() -> None:
        connection, events = Connection(), Events(3)

        async def work() -> Any:
            return EventStream(events.made())

        response = await while_connected(connection.request, work())
        await turns()
        assert connection.waiting == 1
        sending = asyncio.create_task(response(SCOPE, connection.receive, connection.send))
        await turns(20)
        assert connection.waiting == 1
        assert [message.get("body") for message in connection.sent] == [None, b"0", b"1", b"2"]
        connection.gone.set()
        await sending
        assert events.closed
        assert len(connection.sent) == 4
        assert connection.waiting == 0

    run(main())


def test_a_client_that_goes_between_work_and_stream_ends_the_stream() -> None:
    async def main() -> None:
        connection, events = Connection(), Events(1)

        async def work() -> Any:
            return EventStream(events.made())

        response = await while_connected(connection.request, work())
        connection.gone.set()
        await turns()
        await response(SCOPE, connection.receive, connection.send)
        assert events.closed

    run(main())


def test_a_stream_on_its_own_watches_for_itself() -> None:
    async def main() -> None:
        connection, events = Connection(), Events(1)
        sending = asyncio.create_task(EventStream(events.made())(SCOPE, connection.receive, connection.send))
        await turns(20)
        connection.gone.set()
        await sending
        assert events.closed

    run(main())


@pytest.mark.parametrize("num", [0, 1, 2])
def test_a_stream_that_fails_tells_its_error(num: int) -> None:
    """To the client where the protocol has events for it, else to whoever serves: a connection is closed then."""

    async def main() -> None:
        connection, events = Connection(), Events(num, ValueError("broken"))
        with pytest.raises(ValueError, match="broken"):
            await EventStream(events.made())(SCOPE, connection.receive, connection.send)
        assert events.closed
        other = Connection()
        await OpenAIStream(Events(num, ValueError("broken")).made())(SCOPE, other.receive, other.send)
        assert b"internal error" in other.sent[-2]["body"]
        await turns()
        assert (connection.waiting, other.waiting) == (0, 0)

    run(main())


@pytest.mark.parametrize(
    ("made", "content_type"),
    [
        (EventStream(Events(0).made()), b"text/event-stream; charset=utf-8"),
        (OpenAIStream(Events(0).made()), b"text/event-stream; charset=utf-8"),
        (EventStream(Events(0).made(), "application/x-ndjson"), b"application/x-ndjson"),
    ],
)
def test_headers_of_a_stream(made: EventStream, content_type: bytes) -> None:
    assert dict(made.raw_headers) == {
        b"content-type": content_type, b"cache-control": b"no-cache", b"x-accel-buffering": b"no",
    }  # fmt: skip
    made.headers["x-more"] = "1"  # which is this stream's alone
    assert len(EventStream(Events(0).made()).raw_headers) == 3


def test_later_events_come_from_a_task_that_is_only_in_the_stream() -> None:
    """So that a token does not pass all the layers between server and route."""

    async def main() -> None:
        connection, tasks = Connection(), []

        async def made() -> AsyncGenerator[bytes]:
            for _ in range(4):
                tasks.append(asyncio.current_task())
                yield b"x"
                await asyncio.sleep(0)

        await EventStream(made())(SCOPE, connection.receive, connection.send)
        assert tasks[0] is asyncio.current_task()
        assert len({*tasks[1:], tasks[0]}) == 2

    run(main())


def test_a_watch_that_is_forgotten_waits_for_nothing() -> None:
    async def main() -> None:
        connection = Connection()
        watch = ClientWatch(connection.receive)
        await turns()
        assert connection.waiting == 1
        watch.forget()
        await turns()
        assert connection.waiting == 0

    run(main())
