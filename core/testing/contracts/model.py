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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import core.layers
from core.interfaces.context import PluginContext
from core.interfaces.errors import CheckpointError, WeightError
from core.interfaces.model import ModelArch, ModuleRule
from core.interfaces.quant import ExpertsMethod, LinearMethod
from core.interfaces.spec import ModelDefaults, ModelSpec
from core.layers.embedding import VocabEmbedding
from core.layers.module import Layer, WeightModule
from core.layers.unquantized import Unquantized
from core.runner.weights_rules import RuleTable
from core.testing.contracts.model_checkpoint import (
    one_of_each,
    read_tensors,
    write_variant,
)
from core.testing.contracts.model_numbers import ModelNumbers
from core.testing.contracts.model_setup import ModelCase
from core.testing.contracts.model_spec import bad_values, check_consistent, check_pure

_LIGHT_SPEC = """
import importlib, json, sys
module, _, name = sys.argv[1].partition(":")
target = importlib.import_module(module)
for part in name.split("."):
    target = getattr(target, part)
target.spec(json.loads(sys.stdin.read()))
sys.exit("torch" in sys.modules)
"""


class ModelContract(ModelNumbers):
    """Spec, weights and numbers of one architecture. The parts an author gives are in ModelSetup."""

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
