"""Makes `parity` importable from the tests of every plugin, and transformers quiet."""

from __future__ import annotations

from transformers.utils import logging

logging.disable_progress_bar()
