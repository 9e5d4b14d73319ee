"""The tokenizer of a checkpoint: text, tokens, chat template, end-of-text ids.

Hugging Face files are read directly with the tokenizers library; transformers (slow to import) is only asked where
there is no tokenizer.json.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.frontend import files
from core.frontend.codec import Codec, LibraryCodec, TransformersCodec
from core.frontend.detokenizer import TextStream
from core.frontend.template import ChatTemplate
from core.interfaces.errors import CheckpointError, RequestError

INLINE_CHARACTERS = 4096  # longer texts are encoded in a thread: about a millisecond
CHARACTERS_PER_TOKEN = 32  # no text has so many throughout
MIN_CHARACTERS = 1 << 20  # that any text may have


class Tokenizer:
    """Safe to share between threads and requests."""

    def __init__(
        self,
        codec: Codec,
        *,
        template: ChatTemplate | None = None,
        eos_token_ids: Sequence[int] = (),
        generation_config: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        """eos_token_ids: ids that end a text. generation_config: generation_config.json as it stands. Texts of more
        than `max_characters` and chats of more than `max_tokens` messages are refused unread."""
        self._codec = codec
        self.template = template
        self.eos_token_ids = tuple(eos_token_ids)
        self.generation_config = dict(generation_config or {})
        self.folder = folder
        self.max_tokens: int | None = None
        self.max_characters: int | None = None
        self._pieces: dict[int, tuple[str, bytes]] = {}

    @classmethod
    def load(cls, folder: str | Path, chat_template: str | None = None, trust_remote_code: bool = False) -> Tokenizer:
        """Read the tokenizer in `folder`.

        chat_template: a file with a Jinja template to use instead of the tokenizer's own.
        trust_remote_code: let transformers run Python code shipped in `folder`.
        Raises CheckpointError if there is no usable tokenizer, ConfigError if `chat_template` cannot be read.
        """
        folder = Path(folder)
        config = files.read_json(folder / "tokenizer_config.json")
        named = files.special_tokens(folder, config)
        templates = files.chat_templates(folder, config, chat_template)
        codec: Codec
        if (folder / "tokenizer.json").is_file():
            codec = LibraryCodec.from_files(folder, config, named)
        else:
            codec, named, templates = _from_transformers(folder, templates, trust_remote_code)
        generation = files.read_json(folder / "generation_config.json")
        ends = files.token_ids(generation.get("eos_token_id")) or files.token_ids(
            files.read_json(folder / "config.json").get("eos_token_id")
        )
        own = codec.id_of(named["eos_token"]) if "eos_token" in named else None
        if own is not None and own not in ends:
            ends = (*ends, own)
        template = ChatTemplate(templates, named) if templates else None
        return cls(codec, template=template, eos_token_ids=ends, generation_config=generation, folder=folder)

    def limit(self, num_tokens: int) -> None:
        """Refuse texts that have far more characters than `num_tokens` stand for. Encoding takes seconds for each
        million characters, and a hundred bytes of memory for each token."""
        self.max_tokens = num_tokens
        self.max_characters = max(MIN_CHARACTERS, CHARACTERS_PER_TOKEN * num_tokens)

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return self._codec.size

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids left out of text when special tokens are skipped."""
        return self._codec.special_ids

    @property
    def special_texts(self) -> tuple[str, ...]:
        """How the special tokens are written."""
        return self._codec.special_texts

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids. Raises RequestError for text that is too long, or not valid Unicode (lone surrogates)."""
        self._check_length(len(text))
        try:
            return self._codec.encode(text, add_special_tokens)
        except (UnicodeEncodeError, TypeError) as error:
            raise RequestError("the text is not valid Unicode: it holds lone surrogates", param="text") from error

    def encode_pair(self, first: str, second: str) -> list[int]:
        """Ids of two texts as one, as the tokenizer joins pairs for models that judge them. Raises RequestError."""
        self._check_length(len(first) + len(second))
        try:
            return self._codec.encode_pair(first, second)
        except (UnicodeEncodeError, TypeError) as error:
            raise RequestError("the text is not valid Unicode: it holds lone surrogates", param="text") from error

    def _check_length(self, length: int) -> None:
        if self.max_characters is not None and length > self.max_characters:
            raise RequestError(
                f"a text has {length} characters, and this server reads at most {self.max_characters}",
                code="context_length_exceeded",
                hint="shorten it",
            )

    async def encode_async(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """`encode`; a long text is encoded in a thread so that the event loop goes on."""
        if len(text) <= INLINE_CHARACTERS:
            return self.encode(text, add_special_tokens)
        return await asyncio.to_thread(self.encode, text, add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of whole lists of ids. Raises RequestError if one is negative or too large."""
        for token in ids:
            if not 0 <= token < 2**32:
                raise RequestError(f"tokens holds {token}, which is no token id", param="tokens")
        return self._codec.decode(ids, skip_special_tokens)

    def decode_stream(self, skip_special_tokens: bool = True, context: Sequence[int] = ()) -> TextStream:
        """A fresh incremental decoder. context: the prompt's last ids, which decide about a leading space."""
        return self._codec.stream(skip_special_tokens, context)

    def id_of(self, token: str) -> int | None:
        """Id of a token by the text it has in the vocabulary; None if there is none."""
        return self._codec.id_of(token)

    def piece(self, token: int) -> tuple[str, bytes]:
        """One token on its own, as (text, bytes); bytes that are no whole character show as U+FFFD in the text."""
        found = self._pieces.get(token)
        if found is None:
            raw = self._codec.bytes_of(token)
            found = self._pieces[token] = (raw.decode("utf-8", errors="replace"), raw)
        return found

    def bytes_of(self, token: int) -> bytes:
        """What one token stands for, special ones too; empty for ids that stand for nothing."""
        return self._codec.bytes_of(token) if 0 <= token < self._codec.size else b""

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,  # a variable may have any name, "self" too
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt text. Raises RequestError if there is no template or it refuses the messages."""
        if self.template is None:
            raise RequestError(
                "the model has no chat template, so it takes no chat messages",
                param="messages",
                code="no_chat_template",
                hint="use /v1/completions, or start the server with --chat-template FILE",
            )
        return self.template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )


def _from_transformers(
    folder: Path, templates: dict[str, str], trust_remote_code: bool
) -> tuple[Codec, dict[str, str], dict[str, str]]:
    """(codec, named special tokens, chat templates) of a tokenizer without tokenizer.json."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise CheckpointError(
            f"no tokenizer in {folder}: there is no tokenizer.json, and transformers says: {error}",
            hint="name a folder that has one with --tokenizer",
        ) from error
    named = {name: str(value) for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    own = tokenizer.chat_template
    if not templates and own:
        templates = {"default": own} if isinstance(own, str) else dict(own)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return (LibraryCodec(backend) if backend is not None else TransformersCodec(tokenizer)), named, templates
