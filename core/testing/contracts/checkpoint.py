"""CheckpointContract: a checkpoint shipped as a package.

class TestMine(CheckpointContract):
    name = "mine"
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.interfaces.model import ModelArch
from core.layers.moe import TorchNativeMoe
from core.layers.unquantized import Unquantized
from core.ops.reference import REFERENCES
from core.registry.checkpoint import quantization_of, read_hf_config
from core.runner.weights import load_weights
from core.runner.weights_rules import RuleTable
from core.testing.contracts.base import Contract
from core.testing.mock_runner import SingleRank

LICENSE_NAMES = ("license", "licence", "copying", "notice")


class CheckpointContract(Contract):
    """The folder is whole, its weights are taken to the last tensor, and it answers."""

    kind = "checkpoints"

    prompt: ClassVar[str] = "Hello! How are you?"
    """What it is asked, in its chat template where it has one."""

    max_tokens: ClassVar[int] = 8
    """Tokens of the answer; at least one must be text."""

    def folder(self) -> Path:
        """Where the package's files are."""
        return Path(self.plugin()())

    def test_folder_is_there(self) -> None:
        folder = self.folder()
        assert folder.is_absolute(), f"the callable returns {folder}, which depends on the current directory"
        assert folder.is_dir(), f"there is no folder {folder}; is it part of the wheel?"
        assert self.folder() == folder, "two calls return two folders"
        executables = [path.name for path in folder.rglob("*") if path.suffix in (".py", ".pkl", ".pt", ".bin")]
        assert not executables, f"a checkpoint holds data only; it has {', '.join(executables)}"

    def test_config_names_an_installed_architecture(self) -> None:
        config = read_hf_config(self.folder())
        names = config["architectures"]
        assert any(self.catalog().has("models", name) for name in names), (
            f"no installed plugin serves {names}; the distribution must depend on one that does"
        )

    def test_tokenizer(self) -> None:
        from core.frontend.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(self.folder())
        for text in (self.prompt, "Grüße, 東京 🎉\n"):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert ids, f"{text!r} has no tokens"
            assert tokenizer.decode(ids, skip_special_tokens=False).strip() == text.strip()
        vocab_size = self.arch().spec(read_hf_config(self.folder())).vocab_size
        assert tokenizer.vocab_size <= vocab_size, (
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model knows {vocab_size}"
        )

    def test_every_tensor_is_taken(self) -> None:
        """Nothing is missing, nothing is left over, and no weight is infinite."""
        config = read_hf_config(self.folder())
        self.require(quantization_of(config) is None, "unquantized weights")
        arch = self.arch()
        spec = arch.spec(config)
        rules = arch.weights(spec)
        plugin = PluginContext()
        model: Any = arch.build(
            spec,
            BuildContext(
                dtype=torch.float32,
                device=torch.device("cpu"),
                ops=REFERENCES,
                quant=Unquantized(None, plugin),
                moe=TorchNativeMoe(plugin),
                tp=SingleRank(),
                max_tokens=64,
                context_length=64,
                sources=RuleTable(rules).sources,
            ),
        )
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))
        load_weights(model, rules, self.folder(), threads=1)
        for path, parameter in model.named_parameters():
            assert parameter.isfinite().all(), f"{path} is not finite, or was filled by no tensor"

    def test_a_license_is_stated(self) -> None:
        """Weights are a work of their own: a license file beside them, or one that the distribution states."""
        record = self.record()
        beside = [path.name for path in self.folder().iterdir() if path.name.lower().startswith(LICENSE_NAMES)]
        metadata: Any = importlib.metadata.metadata(record.distribution)
        stated = metadata.get("License-Expression") or metadata.get("License") or metadata.get("License-File")
        assert beside or stated, f"neither {self.folder()} nor the metadata of {record.distribution} has a license"

    def test_wished_parsers_are_installed(self) -> None:
        for kind in ("tool_parser", "reasoning_parser"):
            wished = self.record().capabilities.get(kind)
            if wished is not None:
                assert self.catalog().has(f"{kind}s", wished), (
                    f"the manifest names {kind} {wished!r}, which is not installed; bring it or depend on it"
                )

    def test_generation_config_is_usable(self) -> None:
        from core.frontend.loading import recommended_sampling
        from core.frontend.tokenizer import Tokenizer

        path = self.folder() / "generation_config.json"
        self.require(path.is_file(), "generation_config.json")
        assert isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
        recommended_sampling(Tokenizer.load(self.folder()))

    def test_answers_and_repeats_itself(self) -> None:
        """Served by its name, greedily: the same text twice, and some text at all."""
        from core.llm import LLM

        params: dict[str, Any] = {"temperature": 0.0, "max_tokens": self.max_tokens}
        plugins = {self.record().full_name: dict(self.settings)} if self.settings else {}
        with _few_threads(), LLM(self.record().full_name, plugins=plugins) as llm:
            answers = [llm.generate(self.prompt, params)[0] for _ in range(2)]
        assert answers[0].token_ids == answers[1].token_ids, "two greedy answers to one prompt differ"
        assert answers[0].token_ids, "the answer is empty"

    def arch(self) -> type[ModelArch]:
        """The architecture that serves it."""
        names = read_hf_config(self.folder())["architectures"]
        name = next(name for name in names if self.catalog().has("models", name))
        arch: type[ModelArch] = self.catalog().load("models", name)
        return arch


@contextmanager
def _few_threads() -> Iterator[None]:
    """An engine sets the number of compute threads of the process; other tests keep theirs."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
