"""MockModel: a model small enough to compute by hand, whose tokens depend on the whole paged KV cache.

Each token stores a vector of small whole numbers, a hash of its id and position, as its V. Attention with q = 0 is
the mean of the visible V, so mean times count is a sum of whole numbers, exact after rounding. The logits are a hash
of that sum. A wrong page, a stale slot or a token at a wrong position therefore gives other tokens, while chunking,
batching and reordering give the very same ones. `reference_logits` computes them without any cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from core.interfaces.batch import ForwardBatch
from core.interfaces.build import BuildContext
from core.interfaces.errors import CheckpointError, ConfigError
from core.interfaces.model import CausalLM, HfConfig, ModelArch, WeightRules
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, LayerSpec, ModelSpec, StateKind
from core.layers.config import ConfigReader

NUM_FEATURES = 16
_FEATURE_RANGE = 64  # with at most some thousand tokens, sums stay exact in float32
_PRIME = 1000003


@dataclass(frozen=True, slots=True)
class MockConfig:
    """vocab_size: tokens. windows: one layer and one cache group for each entry; None is full attention, a number a
    sliding window of so many tokens. context_length: most tokens, a few thousand at most."""

    vocab_size: int = 260
    windows: tuple[int | None, ...] = (None,)
    context_length: int = 512
    eos_token_ids: tuple[int, ...] = ()

    def hf_config(self) -> dict[str, Any]:
        """The config.json that MockModel.spec reads."""
        return {
            "architectures": ["MockForCausalLM"],
            "vocab_size": self.vocab_size,
            "windows": list(self.windows),
            "max_position_embeddings": self.context_length,
            "eos_token_id": list(self.eos_token_ids),
        }


class MockModel(ModelArch):
    """Architecture name "MockForCausalLM". It has no weights; build it in float32 or float64."""

    @classmethod
    def spec(cls, hf_config: HfConfig) -> ModelSpec:
        reader = ConfigReader(hf_config)
        vocab_size = reader.size("vocab_size")
        windows = hf_config.get("windows")
        if not isinstance(windows, list) or not windows or any(not _is_window(window) for window in windows):
            raise CheckpointError(
                f"config.json: windows = {windows!r}, but it must list a size of at least 1 or null for each layer"
            )
        config = MockConfig(
            vocab_size=vocab_size,
            windows=tuple(windows),
            context_length=reader.size("max_position_embeddings"),
            eos_token_ids=reader.eos_token_ids(),
        )
        groups = tuple(
            CacheGroupSpec(
                name=f"group{index}",
                kind=StateKind.FULL if window is None else StateKind.SLIDING_WINDOW,
                layers=(index,),
                num_kv_heads=1,
                head_dim=NUM_FEATURES,
                v_head_dim=NUM_FEATURES,
                window=window,
            )
            for index, window in enumerate(config.windows)
        )
        layers = tuple(
            LayerSpec(AttentionSpec(1, 1, NUM_FEATURES, scale=1.0, window=window), cache_group=index)
            for index, window in enumerate(config.windows)
        )
        return ModelSpec(
            architecture="MockForCausalLM",
            vocab_size=config.vocab_size,
            hidden_size=NUM_FEATURES * len(layers),
            layers=layers,
            cache_groups=groups,
            context_length=config.context_length,
            dtype="float32",
            eos_token_ids=config.eos_token_ids,
            arch=config,
        )

    @classmethod
    def build(cls, spec: ModelSpec, ctx: BuildContext) -> CausalLM:
        if ctx.dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"dtype is {ctx.dtype}; a mock model counts exactly", hint="use float32", field="dtype")
        return _MockModule(spec, ctx)

    @classmethod
    def weights(cls, spec: ModelSpec) -> WeightRules:
        return WeightRules(rules=(), ignored={})


def _is_window(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


class _MockModule(nn.Module):
    def __init__(self, spec: ModelSpec, ctx: BuildContext) -> None:
        super().__init__()
        self.spec = spec
        self.dtype = ctx.dtype

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Hidden states [T, hidden_size]: each layer's feature sums over what the token sees."""
        v = _features(batch.input_ids[:, None], batch.positions[:, None], _feature_index(batch.input_ids.device))
        v = v.to(self.dtype)[:, None]  # [T, 1, NUM_FEATURES]
        zero = torch.zeros_like(v)
        sums = []
        for index, layer in enumerate(self.spec.layers):
            assert layer.attention is not None
            mean = batch.attention[layer.cache_group].run(zero, zero, v, index, batch.kv[index])[:, 0]
            visible = batch.positions + 1
            if layer.attention.window is not None:
                visible = visible.clamp(max=layer.attention.window)
            sums.append((mean * visible[:, None]).round())
        return torch.cat(sums, dim=-1)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [S, hidden_size] -> logits [S, vocab_size] in [-4, 4); NaN where the hidden state is."""
        broken = hidden.isnan().any(dim=-1, keepdim=True)
        digest = _digest(hidden.nan_to_num().long(), torch.arange(hidden.shape[1], device=hidden.device))
        ids = torch.arange(self.spec.vocab_size, device=hidden.device)
        logits: torch.Tensor = _logits(digest[:, None], ids)
        return logits.to(self.dtype).masked_fill(broken, float("nan"))


def reference_logits(config: MockConfig, tokens: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Logits [vocab_size] of the token after `tokens`, computed without attention, pages or batches."""
    ids = np.asarray(tokens, np.int64)
    values = _features(ids[:, None], np.arange(len(ids))[:, None], np.arange(NUM_FEATURES))
    sums = [values[0 if window is None else max(0, len(ids) - window) :].sum(axis=0) for window in config.windows]
    hidden = np.concatenate(sums)
    digest = _digest(hidden[None], np.arange(len(hidden)))
    logits: npt.NDArray[np.float64] = _logits(digest[:, None], np.arange(config.vocab_size))[0]
    return logits


def reference_greedy(config: MockConfig, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """The `num_tokens` tokens that greedy decoding must give after `prompt`."""
    tokens = [int(token) for token in prompt]
    for _ in range(num_tokens):
        tokens.append(int(reference_logits(config, tokens).astype(np.float32).argmax()))
    return tokens[len(prompt) :]


def _feature_index(device: torch.device) -> torch.Tensor:
    return torch.arange(NUM_FEATURES, device=device)


# Arithmetic on int64 arrays of numpy and torch alike; nothing here comes near 2^63.


def _features(token: Any, position: Any, index: Any) -> Any:
    # Squared twice, since a linear hash gives all features of two swapped tokens equal sums at once.
    mixed = (token * 7919 + position * 104729 + index * 15485863 + 17) * 31 % _PRIME
    mixed = (mixed * mixed + index + 1) % _PRIME
    return mixed * mixed % _PRIME % _FEATURE_RANGE


def _digest(state: Any, index: Any) -> Any:
    return (state * (index * 7907 + 1)).sum(-1) % _PRIME


def _logits(digest: Any, token: Any) -> Any:
    return ((digest + 1) * (token * 2654435 + 101) % _PRIME) / _PRIME * 8.0 - 4.0
