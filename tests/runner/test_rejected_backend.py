from __future__ import annotations

import pytest

from core.interfaces.attention import AttentionConfig
from core.interfaces.errors import ConfigError
from core.testing.dense_attention import DenseAttention
from core.testing.mock_runner import build_mock_runner


class Choosy(DenseAttention):
    @classmethod
    def rejects(cls, config: AttentionConfig) -> str | None:
        return f"{config.num_heads} heads are not its lucky number"


def test_a_backend_that_rejects_its_group_stops_the_start_with_its_reason() -> None:
    with pytest.raises(ConfigError, match="lucky number") as caught:
        build_mock_runner(attention=Choosy)
    assert caught.value.field == "engine.attention_backend"
