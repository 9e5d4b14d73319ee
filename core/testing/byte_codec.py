"""ByteTokenizer in the shape that the front end takes: the tokenizer of in-memory servers without a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from core.frontend.detokenizer import TextStream, WindowStream
from core.frontend.template import ChatTemplate
from core.frontend.tokenizer import Tokenizer
from core.testing.byte_tokenizer import SPECIAL_TOKENS, ByteTokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ByteCodec:
    """A Codec (core.frontend.codec) over ByteTokenizer. Ids beyond the vocabulary have no text."""

    def __init__(self) -> None:
        self._tokenizer = ByteTokenizer()
        self.size = ByteTokenizer.vocab_size
        self.special_ids = frozenset(range(256, self.size))
        self.special_texts: tuple[str, ...] = SPECIAL_TOKENS

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def encode_pair(self, first: str, second: str) -> list[int]:
        return self.encode(first + second, True)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        known = (token for token in ids if token < self.size)
        return self._tokenizer.decode(known, skip_special_tokens=skip_special_tokens)

    def stream(self, skip_special_tokens: bool, context: Sequence[int]) -> TextStream:
        return WindowStream(lambda ids: self.decode(ids, skip_special_tokens), context)

    def id_of(self, token: str) -> int | None:
        return 256 + SPECIAL_TOKENS.index(token) if token in SPECIAL_TOKENS else None

    def bytes_of(self, token: int) -> bytes:
        if token < 256:
            return bytes([token])
        return SPECIAL_TOKENS[token - 256].encode() if token < self.size else b""


def byte_tokenizer() -> Tokenizer:
    """A front end's tokenizer: ids are bytes, ChatML as the chat template."""
    template = ChatTemplate({"default": CHAT_TEMPLATE}, {})
    return Tokenizer(ByteCodec(), template=template, eos_token_ids=ByteTokenizer.eos_token_ids)
