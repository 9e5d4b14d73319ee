"""Factory of a child process that notes what it finds while it is imported, before it imports anything heavy."""

from __future__ import annotations

import os
import sys

SEEN = {name: value for name, value in os.environ.items() if name.startswith("MOCK_VENDOR_")}
TORCH_FIRST = "torch" in sys.modules


def build(start, progress):
    import engine_fakes
    import msgspec

    engine = engine_fakes.build(start, progress)
    effective = {**engine.hello.effective, **SEEN, "torch": str(TORCH_FIRST)}
    engine.hello = msgspec.structs.replace(engine.hello, effective=effective)
    return engine
