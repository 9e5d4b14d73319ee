"""The context that a plugin's factory gets: its own section, validated."""

from __future__ import annotations

from pathlib import Path

import pytest
from registry_fakes import MakeDist, record

from core.interfaces.errors import ConfigError, PluginLoadError
from core.registry import plugin_context

OPTIONS = """
from pydantic import BaseModel, ConfigDict
class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    splits: int = 2
"""


def test_plain_section_is_read_only_and_own() -> None:
    ctx = plugin_context(record("moe", "fast"), {"fast": {"a": 1, "b": 1}, "dummy:fast": {"b": 2}, "slow": {"c": 3}})
    assert dict(ctx.settings) == {"a": 1, "b": 2}
    with pytest.raises(TypeError):
        ctx.settings["a"] = 2
    assert ctx.logger.name == "core.plugin.moe.fast"
    assert ctx.device is None


def test_model_of_the_manifest_validates(make_dist: MakeDist, site: Path) -> None:
    make_dist("plugin-a", {}, None, OPTIONS)
    fast = record("moe", "fast", config="plugin_a:Options")
    assert plugin_context(fast, {}).settings.splits == 2
    assert plugin_context(fast, {"fast": {"splits": 4}}).settings.splits == 4
    with pytest.raises(ConfigError, match=r"plugins\.fast\.splits is 'x'") as caught:
        plugin_context(fast, {"fast": {"splits": "x"}})
    assert caught.value.field == "plugins.fast.splits"
    with pytest.raises(ConfigError, match=r"plugins\.fast\.split is 4") as caught:
        plugin_context(fast, {"fast": {"split": 4}})
    assert caught.value.hint == "did you mean 'splits'? settings of fast: splits (int, default 2)"


def test_model_that_cannot_be_imported() -> None:
    with pytest.raises(PluginLoadError, match="nowhere_at_all"):
        plugin_context(record("moe", "fast", config="nowhere_at_all:Options"), {})
