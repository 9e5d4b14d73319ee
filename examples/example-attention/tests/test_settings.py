"""Wrong settings are refused at start, by name."""

from __future__ import annotations

import pytest
from example_attention.settings import Options
from pydantic import ValidationError


@pytest.mark.parametrize("wrong", [{"block_tokens": 0}, {"block_tokens": "many"}, {"blocks": 3}])
def test_wrong_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Options(**wrong)
