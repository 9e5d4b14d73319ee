"""A server under test."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fake_engine import FakeEngine, says

from core.frontend.tokenizer import Tokenizer
from core.server.context import ServerContext


@dataclass
class Running:
    """A server that answers at `url`."""

    url: str
    ctx: ServerContext
    engine: FakeEngine
    tokenizer: Tokenizer
    loop: asyncio.AbstractEventLoop

    def says(self, text: str) -> None:
        """From now on the model answers with `text`."""
        self.engine.script = says(self.tokenizer, text)
