"""ByteTokenizer: token ids are bytes. No files, no training; anything can be encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>")


class ByteTokenizer:
    """Ids 0..255 are the bytes of UTF-8; the special tokens follow. Special tokens in a text become their ids."""

    vocab_size = 256 + len(SPECIAL_TOKENS)
    bos_token_id = 256
    eos_token_id = 257
    im_start_id = 258
    im_end_id = 259
    eos_token_ids = (257, 259)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids; with a leading bos if `add_special_tokens`."""
        ids = [self.bos_token_id] if add_special_tokens else []
        raw, position = text.encode("utf-8", "replace"), 0
        marks = [(mark.encode(), 256 + index) for index, mark in enumerate(SPECIAL_TOKENS)]
        while position < len(raw):
            for mark, token in marks:
                if raw.startswith(mark, position):
                    ids.append(token)
                    position += len(mark)
                    break
            else:
                ids.append(raw[position])
                position += 1
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text; incomplete UTF-8 becomes U+FFFD. Raises ValueError for an id outside the vocabulary."""
        raw = bytearray()
        for token in ids:
            if 0 <= token < 256:
                raw.append(token)
            elif 256 <= token < self.vocab_size:
                if not skip_special_tokens:
                    raw += SPECIAL_TOKENS[token - 256].encode()
            else:
                raise ValueError(f"token id {token} is outside the vocabulary of {self.vocab_size}")
        return raw.decode("utf-8", "replace")

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """ChatML: each message between <|im_start|>role and <|im_end|>."""
        text = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
        return self.encode(text + ("<|im_start|>assistant\n" if add_generation_prompt else ""))
