"""Fill in the middle: a prompt and a suffix as one prompt, for tokenizers that have the markers for it.

Which markers a model was trained with shows in its vocabulary; the order of the parts belongs to the markers
(Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle", arXiv:2207.14255: prefix, suffix,
middle).
"""

from __future__ import annotations

from dataclasses import dataclass

from core.frontend.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class InfillMarkers:
    """Tokens before the prefix, before the suffix and before the middle. suffix_first: the suffix comes before the
    prefix, and the middle follows the prefix without a marker."""

    prefix: str
    suffix: str
    middle: str = ""
    suffix_first: bool = False


# As published in the tokenizers of checkpoints that were trained for it.
KNOWN_MARKERS = (
    InfillMarkers("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    InfillMarkers("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    InfillMarkers("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    InfillMarkers("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    InfillMarkers("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    InfillMarkers("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
    InfillMarkers("[PREFIX]", "[SUFFIX]", suffix_first=True),
)


def infill_markers(tokenizer: Tokenizer) -> InfillMarkers | None:
    """The markers that the vocabulary has; None if the model cannot fill in."""
    for markers in KNOWN_MARKERS:
        if all(tokenizer.id_of(text) is not None for text in (markers.prefix, markers.suffix, markers.middle) if text):
            return markers
    return None


def infill(tokenizer: Tokenizer, markers: InfillMarkers, prefix: str, suffix: str) -> list[int]:
    """Token ids of the prompt. A begin-of-text token comes first where the tokenizer writes one."""
    ends = tokenizer.encode("", add_special_tokens=True)
    begin = [token for token in ends if token not in tokenizer.eos_token_ids][:1]

    def part(marker: str, text: str) -> list[int]:
        token = tokenizer.id_of(marker)
        assert token is not None
        return [token, *(tokenizer.encode(text, add_special_tokens=False) if text else [])]

    if markers.suffix_first:
        return [*begin, *part(markers.suffix, suffix), *part(markers.prefix, prefix)]
    return [*begin, *part(markers.prefix, prefix), *part(markers.suffix, suffix), *part(markers.middle, "")]
