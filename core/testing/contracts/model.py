"""ModelContract: what core relies on in a model architecture.

    class TestMine(ModelContract):
        name = "MineForCausalLM"

        def configs(self):
            return [{"model_type": "mine", "hidden_size": 32, "num_hidden_layers": 2, ...}]

That is enough where the installed transformers knows the model_type: it writes random checkpoints and is the reference.
Otherwise override `write_checkpoint` and `reference`. Each test runs for each configuration; keep them small.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import core.layers
from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.interfaces.errors import CheckpointError, ConfigError, WeightError
from core.interfaces.model import ModelArch, ModuleRule, WeightRules
from core.interfaces.quant import ExpertsMethod, LinearMethod
from core.interfaces.spec import ModelDefaults, ModelSpec, StateKind
from core.layers.embedding import VocabEmbedding
from core.layers.module import Layer, WeightModule
from core.layers.moe import TorchNativeMoe
from core.layers.unquantized import Unquantized
from core.ops.reference import REFERENCES
from core.runner.weights import LoadReport, load_weights
from core.runner.weights_rules import RuleTable
from core.testing.contracts.base import Contract
from core.testing.contracts.model_checkpoint import (
    Reference,
    one_of_each,
    read_config,
    read_tensors,
    transformers_reference,
    write_variant,
    write_with_transformers,
)
from core.testing.contracts.model_driver import DriverOptions, ModelDriver, run_ranks
from core.testing.contracts.model_driver import Sequence as Row
from core.testing.contracts.model_spec import bad_values, check_consistent, check_pure
from core.testing.mock_runner import SingleRank

_LIGHT_SPEC = """
import importlib, json, sys
module, _, name = sys.argv[1].partition(":")
target = importlib.import_module(module)
for part in name.split("."):
    target = getattr(target, part)
target.spec(json.loads(sys.stdin.read()))
sys.exit("torch" in sys.modules)
"""


class ModelCase:
    """One configuration: its checkpoint on disk, its spec, and the reference's logits (computed once a text)."""

    def __init__(self, given: Mapping[str, Any], folder: Path, arch: type[ModelArch], load: Callable[[], Reference]):
        self.given, self.folder, self.arch = dict(given), folder, arch
        self.config = read_config(folder)
        self.spec: ModelSpec = arch.spec(self.config)
        self.rules: WeightRules = arch.weights(self.spec)
        self._load = load
        self._reference: Reference | None = None
        self._known: dict[tuple[int, ...], torch.Tensor] = {}

    def reference(self, tokens: Sequence[int]) -> torch.Tensor:
        """[T, vocab_size] float32."""
        if self._reference is None:
            self._reference = self._load()
        key = tuple(tokens)
        if key not in self._known:
            logits = self._reference(tokens)
            wanted = (len(tokens), self.spec.vocab_size)
            assert tuple(logits.shape) == wanted, f"the reference gives {tuple(logits.shape)}, not {wanted}"
            self._known[key] = logits.float()
        return self._known[key]


class ModelContract(Contract):
    """Spec, weights and numbers of one architecture, through core's own loader and runner, on the CPU in float32."""

    kind = "models"

    logits_tolerance: ClassVar[float] = 1e-4
    """Largest difference of logits from the reference, absolute and relative, in float32."""

    required_fields: ClassVar[Sequence[str]] = ("vocab_size",)
    """Fields of config.json that nobody can guess: without one, `spec` must raise CheckpointError naming it."""

    dtypes: ClassVar[Sequence[str]] = ("float32", "bfloat16", "float16")
    """Compute types that the model can be built in."""

    page_sizes: ClassVar[Sequence[int]] = (1, 3, 16)
    """Tokens a KV page, beside the 4 of all other tests."""

    tensor_parallel_sizes: ClassVar[Sequence[int]] = (2,)
    """Numbers of ranks to try, if the manifest claims `tensor_parallel`."""

    unquantized: ClassVar[Sequence[str]] = ()
    """Regular expressions of checkpoint tensors with two dimensions that no quantization method is asked about, beside
    embeddings: routers kept in float32 and the like."""

    imports_torch: ClassVar[bool] = False
    """True for an architecture whose `spec` cannot be had without importing torch (then `core` itself imports it)."""

    _cases: ClassVar[dict[int, ModelCase]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._cases = {}

    # -- what an author gives

    def configs(self) -> Sequence[Mapping[str, Any]]:
        """Small configurations, as in config.json; at least one. Between them: everything that changes the model."""
        raise NotImplementedError(f"{type(self).__name__} must override configs()")

    def write_checkpoint(self, config: Mapping[str, Any], folder: Path) -> None:
        """Write config.json and model.safetensors (one file, random weights that are nowhere 0 or 1) to `folder`.
        Here: transformers' model of `config["model_type"]`, with all fields that its configuration adds."""
        write_with_transformers(config, folder)

    def reference(self, config: Mapping[str, Any], folder: Path) -> Reference:
        """The same model by other means: token ids -> logits [T, vocab_size] float32. Here: transformers."""
        return transformers_reference(folder)

    # -- cases

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", range(len(self.configs())), indirect=True, ids=lambda i: f"config{i}")

    @pytest.fixture
    def case(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelCase:
        """One for each of `configs()`; written once for a class."""
        if request.param not in self._cases:
            self._cases[request.param] = self.make_case(request.param, tmp_path_factory.mktemp("model"))
        return self._cases[request.param]

    def make_case(self, index: int, folder: Path) -> ModelCase:
        config = self.configs()[index]
        self.write_checkpoint(config, folder)
        return ModelCase(config, folder, self.plugin(), lambda: self.reference(config, folder))

    # -- spec

    def test_spec_is_plain_data(self, case: ModelCase) -> None:
        config = json.loads(json.dumps(case.config))
        spec = case.arch.spec(config)
        assert isinstance(spec, ModelSpec)
        assert config == case.config, "spec() changed config.json's mapping"
        assert spec == case.spec, "two calls of spec() differ"
        assert spec.architecture == self.name.rpartition(":")[2], f"spec.architecture is {spec.architecture!r}"
        check_pure(spec)

    def test_spec_is_consistent(self, case: ModelCase) -> None:
        check_consistent(case.spec)
        stated = self.record().capabilities.get("state_kinds")
        kinds = {str(group.kind) for group in case.spec.cache_groups}
        assert stated is None or kinds <= set(stated), f"the manifest's state_kinds lack {sorted(kinds - set(stated))}"

    def test_missing_fields_are_named(self, case: ModelCase) -> None:
        for name in case.config:
            config = {key: value for key, value in case.config.items() if key != name}
            self._spec_or_error(case.arch, config, list(case.config), f"without {name}")
        for name in self.required_fields:
            config = {key: value for key, value in case.config.items() if key != name}
            with pytest.raises(CheckpointError) as caught:
                case.arch.spec(config)
            assert name in str(caught.value), f"the error without {name} does not name it: {caught.value}"

    def test_bad_fields_are_named(self, case: ModelCase) -> None:
        for name, value in case.config.items():
            for bad in bad_values(value):
                self._spec_or_error(case.arch, {**case.config, name: bad}, [name], f"{name} = {bad!r}")

    def _spec_or_error(self, arch: type[ModelArch], config: dict[str, Any], names: list[str], what: str) -> None:
        """A usable spec, or an error for people that names one of `names`."""
        problem = ""
        try:
            check_consistent(arch.spec(config))
        except CheckpointError as error:
            if not any(name in str(error) for name in names):
                problem = f"the error does not name the field: {error}"
        except AssertionError as error:
            problem = f"it was accepted, and then: {error}"
        except Exception as error:
            problem = f"spec() raised {type(error).__name__}: {error}"
        assert not problem, f"{what}: {problem}"

    def test_spec_imports_no_torch(self, case: ModelCase) -> None:
        """Core reads specs in processes that have no use for torch."""
        self.require(not self.imports_torch, "spec() without torch")
        target = f"{case.arch.__module__}:{case.arch.__qualname__}"
        done = subprocess.run(
            [sys.executable, "-c", _LIGHT_SPEC, target],
            input=json.dumps(case.config), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"importing {target} and reading a spec imported torch, or failed:\n{done.stderr}"

    def test_defaults_are_wishes(self, case: ModelCase) -> None:
        for hardware in ("cpu", "some_other_device"):
            defaults = case.arch.defaults(case.spec, hardware)
            assert isinstance(defaults, ModelDefaults)
            assert isinstance(defaults.attention, tuple)
            assert all(isinstance(name, str) and name for name in defaults.attention)
            for name in (defaults.tool_parser, defaults.reasoning_parser):
                assert name is None or (isinstance(name, str) and name)
            assert defaults.page_size is None or defaults.page_size >= 1

    # -- building

    def test_builds_in_every_dtype(self, case: ModelCase) -> None:
        """On the meta device: building computes nothing and takes no memory."""
        for name in self.dtypes:
            dtype = getattr(torch, name)
            model = self.build(case, dtype=dtype, device=torch.device("meta"))
            for path, parameter in model.named_parameters():
                assert parameter.device.type == "meta", f"{path} is not on the device that it is built for"
                assert not parameter.requires_grad, f"{path} asks for a gradient"
                if parameter.is_floating_point():
                    assert parameter.dtype in (dtype, torch.float32), f"{path} is {parameter.dtype} in a {name} model"

    def test_the_device_may_replace_layers(self, case: ModelCase) -> None:
        """Core's layers are constructed through `ctx.layer`, so that a device's own take their place."""
        own = {name: type(name, (cls,), {}) for name, cls in _core_layers().items()}
        model = self.build(case, layers=own)
        for path, module in model.named_modules():
            assert type(module) not in _core_layers().values(), (
                f"{path or 'the model'} is a {type(module).__name__} built without ctx.layer({type(module).__name__})"
            )

    def test_linear_layers_ask_the_quantization_method(self, case: ModelCase) -> None:
        """With paths that are the modules' own and sources that the checkpoint has."""
        quant = _CountingQuant()
        model = self.build(case, quant=quant)
        paths = {path for path, _ in model.named_modules()}
        modules = {name.rpartition(".")[0] for name in read_tensors(case.folder)}
        for path, sources in quant.asked.items():
            assert path in paths, f"the quantization method was asked about {path}, which is no module of the model"
            present = [s for s in sources if any(re.fullmatch(_any_expert(s), module) for module in modules)]
            assert present or _is_tied_head(model, path), f"{path}: none of its sources {sources} is in the checkpoint"
        table = RuleTable(case.rules)
        for name, tensor in read_tensors(case.folder).items():
            address = table.address(name)
            if tensor.ndim < 2 or table.ignored(name) is not None or address is None:
                continue
            module = model.get_submodule(address.target)
            if isinstance(module, VocabEmbedding) or getattr(module, "tied", False):
                continue
            if not any(re.fullmatch(pattern, name) for pattern in self.unquantized):
                assert address.target in quant.asked, f"no quantization method was asked about {name}"

    # -- weights

    def test_rules_are_well_formed(self, case: ModelCase) -> None:
        assert all(isinstance(rule, ModuleRule) for rule in case.rules.rules)
        for pattern, reason in case.rules.ignored.items():
            re.compile(pattern)
            assert reason.strip(), f"ignored pattern {pattern!r} has no reason that people can read"

    def test_every_tensor_is_taken(self, case: ModelCase) -> None:
        """By exactly one place, and no parameter keeps what it held before (NaN)."""
        tensors = read_tensors(case.folder)
        model, report = self.load(case, case.folder)
        assert report.num_tensors + len(report.ignored) == len(tensors)
        for path, parameter in model.named_parameters():
            if parameter.is_floating_point():
                assert not parameter.isnan().any(), f"parts of {path} were filled by no tensor"

    def test_missing_tensors_are_named(self, case: ModelCase, tmp_path: Path) -> None:
        tensors = read_tensors(case.folder)
        needed = self._needed(case)
        self.require(needed, "weights")
        for name in one_of_each(needed):
            kept = {other: tensor for other, tensor in tensors.items() if other != name}
            with pytest.raises(WeightError) as caught:
                self.load(case, write_variant(case.folder, tmp_path, kept))
            assert name.rpartition(".")[0] in str(caught.value), f"without {name}: {caught.value}"

    def test_unexpected_tensors_are_named(self, case: ModelCase, tmp_path: Path) -> None:
        tensors = read_tensors(case.folder)
        modules = {name.rpartition(".")[0] for name in self._needed(case)}
        for name in ("unheard_of.weight", *(f"{module}.unheard_of" for module in one_of_each(sorted(modules)))):
            with pytest.raises(WeightError) as caught:
                self.load(case, write_variant(case.folder, tmp_path, {**tensors, name: torch.ones(2)}))
            assert name in str(caught.value), f"with {name}: {caught.value}"

    def test_wrong_shapes_are_named(self, case: ModelCase, tmp_path: Path) -> None:
        tensors = read_tensors(case.folder)
        needed = self._needed(case)
        self.require(needed, "weights")
        for name in one_of_each(needed):
            tensor = tensors[name]
            longer = torch.cat([tensor, tensor[:1]]) if tensor.ndim else tensor[None].repeat(2)
            for wrong in (longer, tensor.flatten()[:-1] if tensor.numel() > 1 else longer):
                with pytest.raises(WeightError) as caught:
                    self.load(case, write_variant(case.folder, tmp_path, {**tensors, name: wrong}))
                assert name in str(caught.value), f"{name} of shape {tuple(wrong.shape)}: {caught.value}"

    # -- numbers

    def test_whole_prompt(self, case: ModelCase) -> None:
        driver = self.driver(case)
        for length in (1, 2, 19):
            seq = driver.start(driver.tokens(length))
            self.expect(case, driver.run(seq, [length]), seq)

    def test_prompt_in_chunks(self, case: ModelCase) -> None:
        driver = self.driver(case)
        for chunks in ([5, 1, 9, 4], [1] * 7, [8, 8]):
            seq = driver.start(driver.tokens(sum(chunks)))
            self.expect(case, driver.run(seq, chunks), seq)

    def test_token_by_token(self, case: ModelCase) -> None:
        """Decoding after a prompt, each token the model's own."""
        driver = self.driver(case)
        seq = driver.start(driver.tokens(6))
        self.expect(case, driver.run(seq, [6] + [1] * 12), seq)

    def test_mixed_steps(self, case: ModelCase) -> None:
        """Some sequences decode while others are in the middle of their prompts."""
        self.check_mixed(case, self.driver(case))

    def check_mixed(self, case: ModelCase, driver: ModelDriver) -> None:
        running: list[tuple[Row, list[int]]] = []
        logits: dict[int, list[torch.Tensor]] = {}
        for chunks in ([7], [2, 5, 1], [1], [3, 9], [], [], []):
            if chunks:
                seq = driver.start(driver.tokens(sum(chunks)))
                running.append((seq, list(chunks)))
            rows = [(seq, left.pop(0) if left else 1) for seq, left in running]
            for (seq, _), piece in zip(rows, driver.step(rows), strict=True):
                logits.setdefault(seq.slot, []).append(piece)
        for seq, _ in running:
            self.expect(case, torch.cat(logits[seq.slot]), seq)

    def test_after_a_prefix_hit(self, case: ModelCase) -> None:
        """The pages of a prefix were written by another sequence, which goes on using them."""
        driver = self.driver(case)
        for shared_pages, tail in ((1, 1), (3, 5)):
            prefix = driver.tokens(shared_pages * driver.options.page_size)
            parent = driver.start(prefix + driver.tokens(4))
            parent_logits = [driver.run(parent, [len(parent.tokens)])]
            child = driver.start(prefix + driver.tokens(tail), parent=parent, shared_pages=shared_pages)
            child_logits = [driver.run(child, [tail])]
            for _ in range(4):
                first, second = driver.step([(child, 1), (parent, 1)])
                child_logits.append(first)
                parent_logits.append(second)
            self.expect(case, torch.cat(child_logits), child)
            self.expect(case, torch.cat(parent_logits), parent)

    def test_page_sizes(self, case: ModelCase) -> None:
        for page_size in self.page_sizes:
            self.check_mixed(case, self.driver(case, page_size=page_size))

    def test_other_sequences_do_not_matter(self, case: ModelCase) -> None:
        """The same sequence alone, and between others."""
        alone = self.driver(case)
        prompt = alone.tokens(9)
        seq = alone.start(prompt)
        wanted = alone.run(seq, [9, 1, 1, 1])
        driver = self.driver(case, seed=1)
        others = [driver.start(driver.tokens(n)) for n in (13, 2, 5)]
        driver.step([(other, len(other.tokens)) for other in others])
        again = driver.start(prompt)
        got = [driver.step([(others[0], 1), (again, 9), (others[1], 1)])[1]]
        for _ in range(3):
            got.append(driver.step([(others[2], 1), (again, 1), (others[0], 1)])[1])
        assert again.tokens == seq.tokens, "greedy tokens depend on what else is in the batch"
        torch.testing.assert_close(torch.cat(got), wanted, atol=self.logits_tolerance / 10, rtol=self.logits_tolerance)

    def test_tokens_behind_all_windows_do_not_matter(self, case: ModelCase) -> None:
        groups = case.spec.cache_groups
        windows = [layer.attention.window for layer in case.spec.layers if layer.attention is not None]
        sliding = all(group.kind is StateKind.SLIDING_WINDOW for group in groups)
        reach = 1 + sum(window - 1 for window in windows if window is not None)
        self.require(sliding and reach + 2 <= min(case.spec.context_length, 256), "only layers with small windows")
        driver = self.driver(case)
        prompt = driver.tokens(reach + 2)
        other = [(prompt[0] + 1) % case.spec.vocab_size, *prompt[1:]]
        first, second = (driver.run(driver.start(tokens), [len(tokens)]) for tokens in (prompt, other))
        torch.testing.assert_close(first[-1], second[-1], atol=1e-6, rtol=1e-6)

    def test_ranks_equal_one(self, case: ModelCase) -> None:
        """Each rank loads its share; sums and gathers over the ranks give what one rank computes."""
        self.require(self.record().capabilities.get("tensor_parallel"), "tensor_parallel")
        whole = self.driver(case)
        prompt = whole.tokens(11)
        seq = whole.start(prompt)
        wanted = whole.run(seq, [11, 1, 1, 1])
        for size in self.tensor_parallel_sizes:

            def work(rank: Any) -> torch.Tensor:
                driver = self.driver(case, tp=rank)
                return driver.run(driver.start(prompt), [11, 1, 1, 1])

            try:
                results = run_ranks(size, work)
            except ConfigError as error:
                pytest.skip(f"refused with {size} ranks: {error.message}")
            for logits in results:
                torch.testing.assert_close(logits, wanted, atol=self.logits_tolerance, rtol=self.logits_tolerance)

    # -- helpers

    def driver(self, case: ModelCase, **options: Any) -> ModelDriver:
        """The case's model under core's runner; options as in DriverOptions."""
        return ModelDriver(case.arch, case.spec, case.folder, replace(DriverOptions(), **options))

    def expect(self, case: ModelCase, logits: torch.Tensor, seq: Row) -> None:
        """`logits` are those of the newest computed tokens of `seq`."""
        wanted = case.reference(seq.tokens[: seq.computed])[-len(logits) :]
        torch.testing.assert_close(logits, wanted, atol=self.logits_tolerance, rtol=self.logits_tolerance)

    def build(self, case: ModelCase, **changes: Any) -> nn.Module:
        """The module with empty parameters, on the CPU in float32 unless `changes` to the context say otherwise."""
        plugin = PluginContext()
        ctx = BuildContext(
            dtype=torch.float32,
            device=torch.device("cpu"),
            ops=REFERENCES,
            quant=Unquantized(None, plugin),
            moe=TorchNativeMoe(plugin),
            tp=SingleRank(),
            max_tokens=512,
            context_length=min(case.spec.context_length, 512),
            sources=RuleTable(case.rules).sources,
        )
        model: Any = case.arch.build(case.spec, ctx.replace(**changes))
        assert isinstance(model, nn.Module), f"build() returned a {type(model).__name__}"
        return model

    def load(self, case: ModelCase, folder: Path) -> tuple[nn.Module, LoadReport]:
        """A model whose parameters were NaN, filled from `folder`. Raises WeightError."""
        model = self.build(case)
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data.fill_(float("nan"))
        return model, load_weights(model, case.rules, folder, threads=1)

    def _needed(self, case: ModelCase) -> list[str]:
        """Tensors of the checkpoint that fill something (a second copy of a tied weight fills nothing)."""
        table, model = RuleTable(case.rules), self.build(case)
        needed = []
        for name in read_tensors(case.folder):
            address = table.address(name)
            if table.ignored(name) is None and address is not None:
                module = model.get_submodule(address.target)
                assert isinstance(module, WeightModule), f"{name} goes to {address.target}, which takes no tensors"
                expert = -1 if address.expert is None else address.expert
                if module.covers(address.suffix, address.part, expert):
                    needed.append(name)
        return needed


class _CountingQuant(Unquantized):
    """Unquantized, and remembers what it was asked about: path -> sources."""

    def __init__(self) -> None:
        super().__init__(None, PluginContext())
        self.asked: dict[str, tuple[str, ...]] = {}

    def linear(self, path: str, sources: Sequence[str]) -> LinearMethod:
        self.asked[path] = tuple(sources)
        return super().linear(path, sources)

    def experts(self, path: str, sources: Sequence[str]) -> ExpertsMethod:
        self.asked[path] = tuple(sources)
        return super().experts(path, sources)


def _core_layers() -> dict[str, type[Layer]]:
    """Core's own layer classes by name, of the modules that are imported."""

    def below(cls: type[Layer]) -> Iterator[type[Layer]]:
        for child in cls.__subclasses__():
            if child.__module__.startswith(f"{core.layers.__name__}."):
                yield child
                yield from below(child)

    return {cls.__name__: cls for cls in below(Layer) if cls is not WeightModule}


def _any_expert(source: str) -> str:
    return re.escape(source).replace(r"\{expert\}", r"\d+")


def _is_tied_head(model: nn.Module, path: str) -> bool:
    return bool(getattr(model.get_submodule(path), "tied", False))
