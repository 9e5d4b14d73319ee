"""The promises to third parties, from installed distributions to a resolution; nothing here is an object by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from registry_fakes import MakeDist, settings, write_checkpoint

from core.interfaces.errors import PluginApiError, PluginClash, PluginLoadError, PluginMismatch
from core.interfaces.kinds import KINDS
from core.registry import Catalog
from core.registry.resolve import resolve

WORLD = """
from core.interfaces.attention import AttentionBackend, AttentionCapabilities
from core.interfaces.hardware import HardwareBackend, HardwareCapabilities, ProbeResult
from core.interfaces.model import ModelArch
from core.interfaces.moe import MoeRunner
from core.interfaces.prefix_cache import PrefixCache
from core.interfaces.quant import QuantMethod
from core.interfaces.schedule import SchedulePolicy
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, LayerSpec, ModelSpec, StateKind

class Arch(ModelArch):
    @classmethod
    def spec(cls, config):
        layer = LayerSpec(AttentionSpec(4, 2, 64, 0.125))
        group = CacheGroupSpec("g", StateKind.FULL, (0,), 2, 64, 64)
        return ModelSpec("XForCausalLM", 100, 8, (layer,), (group,), 4096)
    @classmethod
    def build(cls, spec, ctx): ...
    @classmethod
    def weights(cls, spec): ...

class Host(HardwareBackend):
    capabilities = HardwareCapabilities()
    @classmethod
    def probe(cls): return ProbeResult(True)
    def initialize(self, local_rank): ...
    def memory(self): ...
    def kv_budget_bytes(self, fraction, requested_bytes): ...

class Plain(AttentionBackend):
    capabilities = AttentionCapabilities()
    def allocate(self): ...
    def plan(self, layout): ...
    def run(self, q, k, v, layer, kv, sinks=None): ...

class Cache(PrefixCache):
    state_kinds = frozenset(StateKind)
    def match(self, params): ...
    def lock(self, node): ...
    def insert(self, key, pages, *more): ...
    def evict(self, group, num_pages): ...
    def reset(self): ...
    def stats(self): ...

class None_(QuantMethod):
    @classmethod
    def recognises(cls, config): return config is None
    def linear(self, path, sources): ...

class Moe(MoeRunner):
    def run(self, x, weights, topk_ids, topk_weights): ...

class Fcfs(SchedulePolicy):
    def rank(self, waiting, match): return waiting
"""
PLUGINS = {
    "models": {"XForCausalLM": "Arch"},
    "hardware": {"host": "Host"},
    "attention": {"plain": "Plain"},
    "prefix_cache": {"radix": "Cache", "none": "Cache"},
    "quant": {"none": "None_"},
    "moe": {"plain": "Moe"},
    "schedule_policies": {"fcfs": "Fcfs"},
}


def manifest(plugins: dict[str, dict[str, str]], api: str = "[1, 1]") -> str:
    return "schema = 1\n" + "".join(
        f'[[plugin]]\nkind = "{kind}"\nname = "{name}"\napi = {api}\n' for kind in plugins for name in plugins[kind]
    )


def install(
    make_dist: MakeDist,
    name: str,
    plugins: dict[str, dict[str, str]],
    code: str,
    api: str = "[1, 1]",
    version: str = "1.0",
) -> None:
    module = name.replace("-", "_")
    points = {f"core.{kind}": {n: f"{module}:{c}" for n, c in entries.items()} for kind, entries in plugins.items()}
    make_dist(name, points, manifest(plugins, api), code, version)


@pytest.fixture
def world(make_dist: MakeDist) -> None:
    """A distribution with one of everything that an unquantized model needs."""
    install(make_dist, "plugin-world", PLUGINS, WORLD)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "ckpt")


ATTENTION = {"attention": {"fast": "Plain"}}


@pytest.mark.usefixtures("world")
class TestOneWorld:
    def test_two_attention_plugins_coexist_and_each_can_be_chosen(
        self, make_dist: MakeDist, site: Path, folder: Path
    ) -> None:
        install(make_dist, "plugin-fast", ATTENTION, "from plugin_world import Plain as Base\nclass Plain(Base): ...")
        for name, module in (("plain", "plugin_world"), ("fast", "plugin_fast"), ("plugin-fast:fast", "plugin_fast")):
            (choice,) = resolve(settings(folder, attention_backend=name), Catalog.scan(paths=[str(site)])).attention
            assert choice.target.__module__ == module

    def test_import_failure_selected_and_unselected(self, make_dist: MakeDist, site: Path, folder: Path) -> None:
        install(make_dist, "plugin-bad", ATTENTION, "raise RuntimeError('no driver')")
        catalog = Catalog.scan(paths=[str(site)])
        with pytest.raises(PluginLoadError, match=r"distribution plugin-bad 1\.0.*RuntimeError: no driver"):
            resolve(settings(folder, attention_backend="fast"), catalog)
        catalog = Catalog.scan(paths=[str(site)])
        (choice,) = resolve(settings(folder), catalog).attention
        assert choice.name == "plain"
        assert "RuntimeError: no driver" in dict(choice.rejected)["fast"]
        assert catalog.lookup("attention", "fast").state == "failed"

    def test_clash_names_both(self, make_dist: MakeDist, site: Path, folder: Path) -> None:
        for letter in "ab":
            install(make_dist, f"plugin-{letter}", ATTENTION, "from plugin_world import Plain")
        catalog = Catalog.scan(paths=[str(site)])
        with pytest.raises(PluginClash, match=r"plugin-a 1\.0 and plugin-b 1\.0"):
            resolve(settings(folder, attention_backend="fast"), catalog)
        assert resolve(settings(folder, attention_backend="plugin-b:fast"), catalog).attention[0].record is not None
        assert resolve(settings(folder), catalog).attention[0].name == "plain"

    @pytest.mark.parametrize(("api", "text"), [("[1, 2]", "too old"), ("[5, 6]", "needs a newer core")])
    def test_api_is_checked_before_import(
        self, make_dist: MakeDist, site: Path, folder: Path, api: str, text: str
    ) -> None:
        install(make_dist, "plugin-odd", {"ops": {"odd": "Ops"}}, "raise SystemExit(9)", api)
        kinds = {**KINDS, "ops": replace(KINDS["ops"], api=4, oldest_api=3)}
        catalog = Catalog.scan(paths=[str(site)], kinds=kinds)
        with pytest.raises(PluginApiError, match=text):
            catalog.load("ops", "odd")
        resolution = resolve(settings(folder), catalog)
        assert text in dict(resolution.ops_rejected)["odd"]
        assert "plugin_odd" not in sys.modules

    def test_a_child_whose_versions_differ_refuses_to_start(
        self, make_dist: MakeDist, site: Path, folder: Path
    ) -> None:
        lock = resolve(settings(folder), Catalog.scan(paths=[str(site)])).lock()
        upgraded = site / "plugin_world-1.0.dist-info"
        (upgraded / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-world\nVersion: 1.1\n")
        with pytest.raises(PluginMismatch, match=r"plugin-world:host 1\.0: this process has version 1\.1"):
            resolve(settings(folder), Catalog.scan(paths=[str(site)]), lock)
        (upgraded / "entry_points.txt").unlink()
        with pytest.raises(PluginMismatch, match="run all processes from the same environment"):
            resolve(settings(folder), Catalog.scan(paths=[str(site)]), lock)

    def test_a_parser_is_seen_by_another_process(self, make_dist: MakeDist, site: Path, folder: Path) -> None:
        code = (
            "from core.interfaces.parsers import ToolParser\nclass P(ToolParser):\n    def stream(self, tools): ...\n"
        )
        install(make_dist, "plugin-say", {"tool_parsers": {"say": "P"}}, code)
        asked = settings(folder, tool_call_parser="say")
        lock = resolve(asked, Catalog.scan(paths=[str(site)])).lock()
        child = (
            "import sys, msgspec\nfrom core.config.sections import Settings\n"
            "from core.registry import Catalog, LockSet\nfrom core.registry.resolve import resolve\n"
            "lock = msgspec.json.decode(sys.argv[2], type=LockSet)\n"
            "settings = Settings.model_validate_json(sys.argv[1])\n"
            f"print(resolve(settings, Catalog.scan(paths=[{str(site)!r}]), lock).tool_parser.target.__module__)"
        )
        sent = msgspec.json.encode(lock).decode()
        done = subprocess.run(
            [sys.executable, "-c", child, asked.model_dump_json(), sent],
            capture_output=True, text=True, check=False, env={"PYTHONPATH": f"{site}"},
        )  # fmt: skip
        assert done.stdout.strip() == "plugin_say", done.stderr


def test_fifty_plugins_are_listed_without_importing_one_and_scanned_once(make_dist: MakeDist, site: Path) -> None:
    for number in range(50):
        install(make_dist, f"plugin-dummy{number}", {"moe": {f"dummy{number}": "R"}}, "raise SystemExit(3)")
    code = (
        "import sys\nfrom core.registry import scan\nscans = []\nreal = scan._sources\n"
        "scan._sources = lambda *a: (scans.append(1), real(*a))[1]\n"
        "from core.cli.main import main\nassert main(['plugins', 'list', '--json', '--kind', 'moe']) == 0\n"
        "seen = [m for m in sys.modules if m.startswith('plugin_') or m in ('torch', 'pydantic')]\n"
        "print(len(scans), *seen, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"PYTHONPATH": str(site)}
    )
    assert done.stderr.split() == ["1"]
    listed = [plugin["name"] for plugin in json.loads(done.stdout)["plugins"]]
    assert len([name for name in listed if name.startswith("dummy")]) == 50
