"""What the suite of models is made of: what an author gives, the cases, and models built and filled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.interfaces.model import ModelArch, WeightRules
from core.interfaces.spec import ModelSpec
from core.layers.moe import TorchNativeMoe
from core.layers.unquantized import Unquantized
from core.ops.reference import REFERENCES
from core.runner.weights import LoadReport, load_weights
from core.runner.weights_rules import RuleTable
from core.testing.contracts.base import Contract
from core.testing.contracts.model_checkpoint import (
    Reference,
    read_config,
    transformers_reference,
    write_with_transformers,
)
from core.testing.contracts.model_driver import DriverOptions, ModelDriver, num_logits
from core.testing.contracts.model_driver import Sequence as Row
from core.testing.mock_runner import SingleRank


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
        """[T, vocab_size], [T, number of labels] of a classifier, or [T, hidden_size] without a head; float32."""
        if self._reference is None:
            self._reference = self._load()
        key = tuple(tokens)
        if key not in self._known:
            logits = self._reference(tokens)
            wanted = (len(tokens), num_logits(self.spec))
            assert tuple(logits.shape) == wanted, f"the reference gives {tuple(logits.shape)}, not {wanted}"
            self._known[key] = logits.float()
        return self._known[key]


class ModelSetup(Contract):
    """Attributes and methods that an author overrides, and what all tests share."""

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
        """The same model by other means: token ids -> logits [T, vocab_size] float32, or what a classifier's head makes
        of every position, [T, number of labels], or without a head the hidden states, [T, hidden_size]. Here:
        transformers."""
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
