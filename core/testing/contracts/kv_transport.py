"""KvTransportContract: the laws of moving KV pages between engines (draft kind)."""

from __future__ import annotations

import time
from typing import ClassVar

import numpy as np

from core.interfaces.kv_transport import Completion, KvTransport, TransportConfig
from core.interfaces.step import Int32
from core.testing.contracts.base import Contract

PAGE_BYTES = 1 << 10
NUM_PAGES = 12
NUM_BUFFERS = 3


class End:
    """A transport and its KV memory."""

    def __init__(self, transport: KvTransport, memory: list[bytearray]) -> None:
        self.transport = transport
        self.memory = memory

    def page(self, number: int) -> list[bytes]:
        """One page's bytes in every buffer."""
        return [bytes(buffer[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]) for buffer in self.memory]


class KvTransportContract(Contract):
    """Every transfer ends exactly once at each end, writes its own pages and nothing else, and a cancelled one writes
    nothing after it was reported over."""

    kind = "kv_transport"

    timeout_s: ClassVar[float] = 20.0
    """Longest wait for a transfer between two ends on this machine."""

    def end(self, seed: int, layout: str = "layout") -> End:
        rng = np.random.default_rng(seed)
        memory = [
            bytearray(rng.integers(0, 256, NUM_PAGES * PAGE_BYTES, np.uint8).tobytes()) for _ in range(NUM_BUFFERS)
        ]
        config = TransportConfig(layout, PAGE_BYTES, NUM_PAGES, tuple(memoryview(buffer) for buffer in memory))
        made = self.plugin()(config, self.context())
        assert isinstance(made, KvTransport)
        return End(made, memory)

    def until_over(self, ends: list[End], num: int) -> list[list[Completion]]:
        """Polls until `num` completions have come at each end; one more poll shows that no further ones come."""
        found: list[list[Completion]] = [[] for _ in ends]
        limit = time.monotonic() + self.timeout_s
        while any(len(got) < num for got in found):
            assert time.monotonic() < limit, f"transfers that never end; so far: {found}"
            for end, got in zip(ends, found, strict=True):
                got.extend(end.transport.poll())
            time.sleep(0.001)
        for end, got in zip(ends, found, strict=True):
            got.extend(end.transport.poll())
            assert len(got) == num, f"completed more often than there were transfers: {got}"
        return found

    def test_pages_arrive_in_order_and_nothing_else_changes(self) -> None:
        sender, receiver = self.end(1), self.end(2)
        untouched = [bytes(buffer) for buffer in receiver.memory]
        source, target = pages(7, 0, 3), pages(2, 9, 4)
        ticket = receiver.transport.expect(target)
        sender.transport.send(ticket, source)
        for [completion] in self.until_over([sender, receiver], 1):
            assert (completion.outcome, completion.transfer_id) == ("done", ticket.transfer_id), completion
        for i, j in zip(source, target, strict=True):
            assert receiver.page(int(j)) == sender.page(int(i))
        for other in set(range(NUM_PAGES)) - {int(j) for j in target}:
            start = other * PAGE_BYTES
            assert receiver.page(other) == [raw[start : start + PAGE_BYTES] for raw in untouched], f"page {other}"
        self.close(sender, receiver)

    def test_several_at_once_and_ids_are_never_used_again(self) -> None:
        sender, receiver = self.end(3), self.end(4)
        tickets = [receiver.transport.expect(pages(i)) for i in range(5)]
        for i, ticket in reversed(list(enumerate(tickets))):
            sender.transport.send(ticket, pages(i + 6))
        for got in self.until_over([sender, receiver], 5):
            assert {c.transfer_id for c in got} == {t.transfer_id for t in tickets}
            assert all(c.outcome == "done" for c in got)
        assert all(receiver.page(i) == sender.page(i + 6) for i in range(5))
        later = receiver.transport.expect(pages(0))
        assert later.transfer_id not in {t.transfer_id for t in tickets}
        self.close(sender, receiver)

    def test_cancelled_before_it_was_sent(self) -> None:
        sender, receiver = self.end(5), self.end(6)
        before = receiver.page(1)
        ticket = receiver.transport.expect(pages(1))
        receiver.transport.cancel(ticket.transfer_id, ticket.peer)
        [[over]] = self.until_over([receiver], 1)
        assert over.outcome == "cancelled"
        sender.transport.send(ticket, pages(2))
        [[refused]] = self.until_over([sender], 1)
        assert refused.outcome in ("failed", "cancelled")
        assert receiver.page(1) == before, "a page was written after its transfer was over"
        assert not list(receiver.transport.poll())
        self.close(sender, receiver)

    def test_another_number_of_pages_or_layout_is_refused(self) -> None:
        receiver = self.end(7)
        for sender, source in ((self.end(8), pages(1, 2)), (self.end(9, layout="other"), pages(1))):
            before = receiver.page(3)
            ticket = receiver.transport.expect(pages(3))
            sender.transport.send(ticket, source)
            [[refused]] = self.until_over([sender], 1)
            assert (refused.outcome, bool(refused.error)) == ("failed", True), refused
            assert receiver.page(3) == before
            receiver.transport.cancel(ticket.transfer_id, ticket.peer)
            self.until_over([receiver], 1)
            sender.transport.close()
        receiver.transport.close()

    def test_a_peer_that_is_gone(self) -> None:
        sender, receiver = self.end(10), self.end(11)
        ticket = receiver.transport.expect(pages(0))
        receiver.transport.close()
        sender.transport.send(ticket, pages(0))
        [[over]] = self.until_over([sender], 1)
        assert over.outcome == "failed"
        assert over.error
        sender.transport.close()

    def test_addresses(self) -> None:
        first, second = self.end(12), self.end(13)
        assert first.transport.address != second.transport.address
        assert 0 < len(first.transport.address) <= 4096
        self.close(first, second)

    def close(self, *ends: End) -> None:
        for end in ends:
            end.transport.close()


def pages(*numbers: int) -> Int32:
    """Page numbers as an array."""
    return np.array(numbers, np.int32)
