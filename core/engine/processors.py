"""The logit processors that the operator enabled, made when an engine is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from core.engine.set_up import context_of, set_up
from core.engine.vocabulary import TokenizerVocabulary
from core.interfaces.errors import PluginLoadError
from core.interfaces.logit_processors import LogitProcessor
from core.runner.processors import LogitProcessors

if TYPE_CHECKING:
    import torch

    from core.frontend.tokenizer import Tokenizer
    from core.registry.resolution import Resolution


def make_processors(
    resolution: Resolution, tokenizer: Callable[[], Tokenizer], device: torch.device | None = None
) -> LogitProcessors:
    """One instance each. tokenizer: the model's; it is read only if a processor is enabled, and then at once, as no
    request must wait for it. Raises PluginLoadError for one that cannot be made or is none."""
    if not resolution.logit_processors:
        return LogitProcessors()
    spec = resolution.spec
    vocabulary = TokenizerVocabulary(tokenizer(), spec.vocab_size, spec.eos_token_ids)
    made: dict[str, LogitProcessor] = {}
    full_names: dict[str, str] = {}
    for choice in resolution.logit_processors:
        assert choice.record is not None
        processor = set_up(choice, choice.target, vocabulary, context_of(resolution, choice, device))
        if not isinstance(processor, LogitProcessor):
            raise PluginLoadError(
                f"{choice.record.title} is a {type(processor).__name__}, and no LogitProcessor",
                hint=f"repair or reinstall {choice.record.distribution}, or leave it out of --logit-processors",
            )
        name = choice.name if _alone(choice.name, resolution) else choice.record.full_name
        made[name] = processor
        full_names[choice.record.full_name] = name
    return LogitProcessors(made, full_names)


def _alone(name: str, resolution: Resolution) -> bool:
    names: Sequence[str] = [choice.name for choice in resolution.logit_processors]
    return names.count(name) == 1
