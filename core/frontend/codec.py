"""What turns text into token ids: the tokenizers library directly, or transformers where it has to be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from core.frontend.detokenizer import LibraryStream, TextStream, WindowStream
from core.interfaces.errors import CheckpointError

LOCKED_CHARACTERS = 4096  # about a millisecond


class Codec(Protocol):
    """Safe to call from several threads."""

    size: int
    special_ids: frozenset[int]
    special_texts: tuple[str, ...]

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    def encode_pair(self, first: str, second: str) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...

    def stream(self, skip_special_tokens: bool, context: Sequence[int]) -> TextStream: ...

    def id_of(self, token: str) -> int | None: ...

    def bytes_of(self, token: int) -> bytes: ...


class LibraryCodec:
    """Over a tokenizers.Tokenizer, which is never changed after construction."""

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token: value.content for token, value in added.items()}
        self.special_ids = frozenset(token for token, value in added.items() if value.special)
        self.special_texts = tuple(added[token].content for token in sorted(self.special_ids))
        self.size: int = max(tokenizer.get_vocab_size(), max(self._added, default=-1) + 1)
        decoder = json.loads(tokenizer.to_str())["decoder"] if tokenizer.decoder is not None else None
        self._decoder_kinds = _kinds(decoder)

    @classmethod
    def from_files(cls, folder: Path, tokenizer_config: dict[str, Any], named: dict[str, str]) -> LibraryCodec:
        """tokenizer.json, with the added tokens of tokenizer_config.json.

        Begin and end of text are as tokenizer.json's post-processor says; add_bos_token and add_eos_token do not count
        (transformers 5 does the same).
        """
        from tokenizers import AddedToken, Tokenizer

        path = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"cannot read {path}: {error}", hint="download the checkpoint again") from error
        known = tokenizer.get_added_tokens_decoder()
        extra: list[AddedToken] = []
        for _, value in sorted(
            (int(key), value) for key, value in tokenizer_config.get("added_tokens_decoder", {}).items()
        ):
            flags = {name: bool(value.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "special")}
            token = AddedToken(value["content"], normalized=bool(value.get("normalized", True)), **flags)
            if all(repr(token) != repr(other) for other in known.values()):
                extra.append(token)
        present = {token.content for token in (*known.values(), *extra)}
        extra += [AddedToken(text, special=True) for text in dict.fromkeys(named.values()) if text not in present]
        if extra:
            tokenizer.add_tokens(extra)
        return cls(tokenizer)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._encoded(text, len(text), add_special_tokens)

    def encode_pair(self, first: str, second: str) -> list[int]:
        return self._encoded((first, second), len(first) + len(second), True)

    def _encoded(self, given: str | tuple[str, str], length: int, add_special_tokens: bool) -> list[int]:
        """The library holds Python's lock while it encodes one text, but not for a batch; nobody else's answer would
        go on meanwhile."""
        if length > LOCKED_CHARACTERS:
            return self._tokenizer.encode_batch([given], add_special_tokens=add_special_tokens)[0].ids
        pair = (given,) if isinstance(given, str) else given
        return self._tokenizer.encode(*pair, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def stream(self, skip_special_tokens: bool, context: Sequence[int]) -> TextStream:
        return LibraryStream(self._tokenizer, skip_special_tokens, context)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def bytes_of(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None:
            return added.encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if "ByteLevel" in self._decoder_kinds:
            table = _byte_level_table()
            try:
                return bytes(table[character] for character in piece)
            except KeyError:
                return piece.encode()
        if "ByteFallback" in self._decoder_kinds and len(piece) == 6 and piece.startswith("<0x") and piece[-1] == ">":
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()


class TransformersCodec:
    """Over a tokenizer that only transformers can run (Python code, SentencePiece)."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.size: int = len(tokenizer)
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self.special_texts = tuple(tokenizer.all_special_tokens)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def encode_pair(self, first: str, second: str) -> list[int]:
        return list(self._tokenizer.encode(first, second, add_special_tokens=True))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return self._tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )

    def stream(self, skip_special_tokens: bool, context: Sequence[int]) -> TextStream:
        return WindowStream(lambda ids: self.decode(ids, skip_special_tokens), context)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.get_vocab().get(token)

    def bytes_of(self, token: int) -> bytes:
        return self.decode([token], False).encode()


def _kinds(decoder: Any) -> frozenset[str]:
    """Type names in a decoder's serialized form."""
    if not isinstance(decoder, dict):
        return frozenset()
    found = {decoder.get("type", "")}
    for part in decoder.get("decoders", ()):
        found |= _kinds(part)
    return frozenset(found)


@lru_cache(maxsize=1)
def _byte_level_table() -> dict[str, int]:
    """Character -> byte of byte-level vocabularies: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table
