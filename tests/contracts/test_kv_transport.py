"""The suite of KV transports: one between ends of a process passes, broken ones do not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from core.interfaces.context import PluginContext
from core.interfaces.kv_transport import Completion, KvTransport, Ticket, TransportConfig
from core.interfaces.step import Int32
from core.testing.contracts.kv_transport import KvTransportContract

from .running import failures


class Local(KvTransport):
    """Copies between two ends of one process. `fault`: how it is broken."""

    fault: ClassVar[str] = ""
    ends: ClassVar[dict[bytes, Local]] = {}
    numbers: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, config: TransportConfig, ctx: PluginContext) -> None:
        super().__init__(config, ctx)
        self._address = b"end-%d" % next(self.numbers) if self.fault != "one address" else b"end"
        self.ends[self._address] = self
        self.expected: dict[int, Int32] = {}
        self._ids = itertools.repeat(7) if self.fault == "one id" else itertools.count(1)
        self._over: list[Completion] = []

    @property
    def address(self) -> bytes:
        return self._address

    def expect(self, pages: Int32) -> Ticket:
        number = next(self._ids)
        self.expected[number] = pages.copy()
        return Ticket(self._address, number, pages)

    def send(self, ticket: Ticket, pages: Int32) -> None:
        peer, number = self.ends.get(ticket.peer), ticket.transfer_id
        why = ""
        if peer is None:
            why = "the peer is gone"
        elif number not in peer.expected and self.fault != "writes after the end":
            why = "the peer knows no such transfer"
        elif peer.config.layout != self.config.layout and self.fault != "ignores layouts":
            why = "another layout"
        elif len(pages) != len(ticket.pages) and self.fault != "ignores lengths":
            why = "another number of pages"
        if why:
            self._over.append(Completion(number, ticket.peer, "failed", why))
            return
        assert peer is not None
        size = self.config.page_bytes
        target = np.sort(ticket.pages) if self.fault == "sorts pages" else ticket.pages
        for mine, theirs in zip(self.config.buffers, peer.config.buffers, strict=True):
            for i, j in zip(pages, target, strict=False):
                extra = 1 if self.fault == "writes too much" and (j + 1) * size < len(theirs) else 0
                theirs[j * size : (j + 1) * size + extra] = bytes(mine[i * size : (i + 1) * size]) + b"x" * extra
            if self.fault == "first buffer only":
                break
        peer.expected.pop(number, None)
        for end in (self, peer):
            end._over += [Completion(number, ticket.peer, "done")] * (2 if self.fault == "reports twice" else 1)

    def cancel(self, transfer_id: int, peer: bytes) -> None:
        if self.expected.pop(transfer_id, None) is not None:
            self._over.append(Completion(transfer_id, peer, "cancelled"))

    def poll(self) -> Sequence[Completion]:
        over, self._over = self._over, []
        return over

    def close(self) -> None:
        self.ends.pop(self._address, None)


class TestLocal(KvTransportContract):
    implementation = Local


FAULTS = ("one address", "one id", "writes after the end", "ignores layouts", "ignores lengths", "sorts pages",
          "writes too much", "first buffer only", "reports twice")  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_transports_fail(fault: str) -> None:
    broken: Any = type("Broken", (Local,), {"fault": fault, "ends": {}})
    assert failures(type("Suite", (TestLocal,), {"implementation": broken, "timeout_s": 0.5}))
