"""KvTransport (draft): moves KV pages between engines, for prefill and decode on different machines.

The receiver owns the destination: it leases pages, hands out a ticket, and holds the lease until the transfer is
complete or cancelled, so no page is reused while somebody may write it. Cancelling has two phases: `cancel` asks,
`poll` reports the end; only then are the pages free.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from core.interfaces.context import PluginContext
from core.interfaces.step import Int32


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """layout: as in StoreConfig; both ends must have the same. page_bytes: of one page in one buffer.
    buffers: the KV memory of this rank, one writable view [num_pages * page_bytes] for each layer and tensor.
    num_pages: of each buffer."""

    layout: str
    page_bytes: int
    num_pages: int
    buffers: tuple[memoryview, ...]


@dataclass(frozen=True, slots=True)
class Ticket:
    """Permission to write into a receiver's pages, made by `expect`. peer: the receiver's `address`. transfer_id:
    unique at the receiver, never used again. pages [n] int32: destination, in order of the prefix."""

    peer: bytes
    transfer_id: int
    pages: Int32


@dataclass(frozen=True, slots=True)
class Completion:
    """A transfer is over at this end: nothing of it will be read or written any more. error: why, for "failed"."""

    transfer_id: int
    peer: bytes
    outcome: Literal["done", "cancelled", "failed"]
    error: str = ""


class KvTransport(ABC):
    """One end. All calls come from one thread and return at once; `poll` reports what has ended since."""

    def __init__(self, config: TransportConfig, ctx: PluginContext) -> None:
        self.config = config
        self.ctx = ctx

    @property
    @abstractmethod
    def address(self) -> bytes:
        """How others reach this end; opaque, at most 4 KiB."""

    @abstractmethod
    def expect(self, pages: Int32) -> Ticket:
        """Receiver: get ready for pages [n] to be written. Each ticket ends in exactly one Completion here."""

    @abstractmethod
    def send(self, ticket: Ticket, pages: Int32) -> None:
        """Sender: write local pages [n] to the ticket's, in order. Ends in exactly one Completion here, "failed" where
        the peer is gone or refuses the ticket (unknown, cancelled, other number of pages, other layout)."""

    @abstractmethod
    def cancel(self, transfer_id: int, peer: bytes) -> None:
        """Either end: stop a transfer. It may still end as "done". peer: the receiver's address."""

    @abstractmethod
    def poll(self) -> Sequence[Completion]:
        """What has ended since the last call."""

    @abstractmethod
    def close(self) -> None:
        """Stop all transfers and give back connections; buffers are not touched when this returns."""
