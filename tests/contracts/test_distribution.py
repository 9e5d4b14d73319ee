"""The suite of whole packages: every distribution of this repository passes, broken ones do not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.interfaces.errors import PluginError
from core.registry import Catalog
from core.registry.manifest import ManifestError
from core.testing.contracts.distribution import DistributionContract


class TestCore(DistributionContract):
    package = "core"


class TestLlama(DistributionContract):
    package = "plugin_llama"


class TestQwen(DistributionContract):
    package = "plugin_qwen"


class TestGemma(DistributionContract):
    package = "plugin_gemma"


class TestGlm4(DistributionContract):
    package = "plugin_glm4"


class TestBitsandbytes(DistributionContract):
    package = "plugin_bitsandbytes"


class TestFp8(DistributionContract):
    package = "plugin_fp8"


class TestDemo(DistributionContract):
    package = "plugin_demo"


class TestLlguidance(DistributionContract):
    package = "plugin_llguidance"


class TestThinkingBudget(DistributionContract):
    package = "plugin_thinking_budget"


class TestXgrammar(DistributionContract):
    package = "plugin_xgrammar"


class TestCpuNative(DistributionContract):
    package = "plugin_cpu_native"


class TestNvidia(DistributionContract):
    package = "plugin_nvidia"


class TestTriton(DistributionContract):
    package = "plugin_triton"


class TestFa3(DistributionContract):
    package = "plugin_fa3"


class TestFlashInfer(DistributionContract):
    package = "plugin_flashinfer"


class TestParserCohere(DistributionContract):
    package = "plugin_parser_cohere"


class TestParserDeepSeek(DistributionContract):
    package = "plugin_parser_deepseek"


class TestParserGigaChat3(DistributionContract):
    package = "plugin_parser_gigachat3"


class TestParserGptOss(DistributionContract):
    package = "plugin_parser_gpt_oss"


class TestParserGranite(DistributionContract):
    package = "plugin_parser_granite"


class TestParserHermes(DistributionContract):
    package = "plugin_parser_hermes"


class TestParserInternlm(DistributionContract):
    package = "plugin_parser_internlm"


class TestParserKimi(DistributionContract):
    package = "plugin_parser_kimi"


class TestParserLlama3(DistributionContract):
    package = "plugin_parser_llama3"


class TestParserMistral(DistributionContract):
    package = "plugin_parser_mistral"


class TestParserPhi4(DistributionContract):
    package = "plugin_parser_phi4"


class TestParserTrinity(DistributionContract):
    package = "plugin_parser_trinity"


class TestParserGlm(DistributionContract):
    package = "plugin_parser_glm"


class TestParserKimiThinking(DistributionContract):
    package = "plugin_parser_kimi_thinking"


class TestParserMimo(DistributionContract):
    package = "plugin_parser_mimo"


class TestParserMinimax(DistributionContract):
    package = "plugin_parser_minimax"


class TestParserMistralThinking(DistributionContract):
    package = "plugin_parser_mistral_thinking"


class TestParserNemotron(DistributionContract):
    package = "plugin_parser_nemotron"


class TestParserPythonic(DistributionContract):
    package = "plugin_parser_pythonic"


class TestParserQwen3(DistributionContract):
    package = "plugin_parser_qwen3"


class TestParserQwen3Coder(DistributionContract):
    package = "plugin_parser_qwen3_coder"


class TestParserStep3(DistributionContract):
    package = "plugin_parser_step3"


ROOT = Path(__file__).parents[2]
MANIFEST = """schema = 1
[[plugin]]
kind = "tool_parsers"
name = "made"
api = [1, 1]
summary = "a parser made by a test"
"""
PARSER = """from core.interfaces.parsers import ParserStream, ToolParser

class Parser(ToolParser):
    def stream(self, tools):
        return ParserStream()
"""


def test_every_distribution_is_tested_here() -> None:
    packages = {path.parent.name for path in ROOT.glob("plugins/*/*/src/*/core_plugin.toml")} | {"core"}
    tested = {cls.package for cls in DistributionContract.__subclasses__() if cls.__module__ == __name__}
    assert packages <= tested, f"not tested: {packages - tested}"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DistributionContract]:
    """Installs a distribution in a folder of its own and gives its suite."""

    def make(
        *,
        manifest: str | None = MANIFEST,
        points: str = "made = plugin_made.parser:Parser",
        init: str = "",
        parser: str = PARSER,
        metadata: str = "Requires-Dist: core\nLicense-Expression: MIT\n",
        record: str = "plugin_made/core_plugin.toml,,\n",
    ) -> DistributionContract:
        folder, info = tmp_path / "plugin_made", tmp_path / "plugin_made-1.0.dist-info"
        folder.mkdir()
        info.mkdir()
        (folder / "__init__.py").write_text(init)
        (folder / "parser.py").write_text(parser)
        if manifest is not None:
            (folder / "core_plugin.toml").write_text(manifest)
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: plugin-made\nVersion: 1.0\n{metadata}")
        (info / "entry_points.txt").write_text(f"[core.tool_parsers]\n{points}\n")
        (info / "RECORD").write_text(record)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        for name in [name for name in sys.modules if name.split(".")[0] == "plugin_made"]:
            monkeypatch.delitem(sys.modules, name)
        found = Catalog.scan()

        class Suite(DistributionContract):
            package = "plugin_made"

            @classmethod
            def catalog(cls) -> Catalog:
                return found

        return Suite()

    return make


def test_a_good_one_passes(made: Callable[..., DistributionContract]) -> None:
    suite = made()
    for name in dir(suite):
        if name.startswith("test_"):
            getattr(suite, name)()


LOADED, PUBLIC = "plugin_is_found_and_loaded_as_core_does", "only_public_modules_of_core_are_imported"
SCHEMA, LIGHT = "capabilities_are_of_the_kind_s_schema", "importing_the_package_is_light"
CAPABILITIES = f"{MANIFEST}[plugin.capabilities]\n"


@pytest.mark.parametrize(
    ("change", "law", "text"),
    [
        ({"manifest": None}, "manifest_and_entry_points_agree", "missing"),
        ({"manifest": MANIFEST.replace('"made"', '"other"')}, "manifest_and_entry_points_agree", "other"),
        ({"manifest": MANIFEST.replace("[1, 1]", "[7, 8]")}, "interface_versions_meet_core", "7 to 8"),
        ({"manifest": MANIFEST.replace("a parser made by a test", "")}, "manifest_says_what_people_need", "summary"),
        ({"manifest": f"{CAPABILITIES}priority = 'high'"}, SCHEMA, "priority"),
        ({"manifest": f"{CAPABILITIES}prioritt = 1"}, SCHEMA, "prioritt"),
        ({"manifest": f'{MANIFEST}config = "plugin_made.nothing:X"'}, LOADED, "nothing"),
        ({"parser": "Parser = 3"}, LOADED, "Parser"),
        ({"record": "plugin_made/parser.py,,"}, "manifest_is_shipped", "holds no"),
        ({"metadata": "License-Expression: MIT\n"}, "metadata", "depend on core"),
        ({"metadata": "Requires-Dist: core\n"}, "metadata", "license"),
        ({"parser": f"import core.runner.runner\n{PARSER}"}, PUBLIC, "core.runner"),
        ({"parser": f"{PARSER}\ndef later():\n    from core import engine\n"}, PUBLIC, "core.engine"),
        (
            {"parser": f"{PARSER}\ndef later():\n    import plugin_llama.arch\n"},
            "other_plugins_are_declared",
            "plugin_llama",
        ),
        ({"init": "import torch"}, LIGHT, "torch"),
        ({"init": "import plugin_llama"}, LIGHT, "plugin_llama"),
    ],
)
def test_mutants_are_caught(
    made: Callable[..., DistributionContract], change: dict[str, Any], law: str, text: str
) -> None:
    suite = made(**change)
    with pytest.raises((AssertionError, ManifestError, PluginError), match=text):
        getattr(suite, f"test_{law}")()
