"""The tokenizer read directly does what transformers does with the same files."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import byte_level_folder, metaspace_folder, write
from transformers import AutoTokenizer

from core.frontend.codec import TransformersCodec
from core.frontend.tokenizer import CHARACTERS_PER_TOKEN, MIN_CHARACTERS, Tokenizer
from core.interfaces.errors import CheckpointError, ConfigError, RequestError

TEXTS = st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("helo wrd<|im_en>🙂é本")), max_size=60)
CHATS = [
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": "Be <brief> & 'kind'."},
        {"role": "user", "content": "  Grüße 🙂 "},
        {"role": "assistant", "content": "ok", "reasoning_content": "hm"},
        {"role": "user", "content": "a\nb"},
    ],
    [
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"ä": [1, None, "<"]}}}],
        },
        {"role": "tool", "content": "7"},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="session", params=["byte_level", "metaspace"])
def both(request: pytest.FixtureRequest) -> tuple[Tokenizer, object]:
    folder: Path = request.getfixturevalue(request.param)
    return Tokenizer.load(folder), AutoTokenizer.from_pretrained(str(folder))


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, special=st.booleans())
def test_encode_and_decode_as_transformers(both, text: str, special: bool) -> None:
    ours, theirs = both
    ids = ours.encode(text, add_special_tokens=special)
    assert ids == theirs.encode(text, add_special_tokens=special)
    for skip in (True, False):
        expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(ids, skip_special_tokens=skip) == expected


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_stream_adds_up_to_decode(both, data: st.DataObject) -> None:
    """For encoded text the stream gives the text; characters are never cut."""
    ours, _ = both
    text = data.draw(TEXTS)
    ids = ours.encode(text, add_special_tokens=False)
    stream = ours.decode_stream()
    pieces = [stream.step(token) for token in ids]
    assert "".join(pieces) + stream.flush() == ours.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_stream_of_any_tokens_never_fails(both, data: st.DataObject) -> None:
    """Models write bytes that are no characters; the stream goes on and ends with everything shown."""
    ours, _ = both
    ids = data.draw(st.lists(st.integers(3, ours.vocab_size - 1), max_size=30))
    context = data.draw(st.lists(st.integers(3, ours.vocab_size - 1), max_size=8))
    stream = ours.decode_stream(True, context)
    text = "".join(stream.step(token) for token in ids) + stream.flush()
    if "\ufffd" in ours.decode(ids):
        return  # decoders differ in how many characters broken bytes take with them
    letters = [character for character in ours.decode(ids) if character.isascii() and character.isalpha()]
    assert [c for c in text if c.isascii() and c.isalpha()] == letters


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_stream_that_got_ready_gives_the_same(both, data: st.DataObject) -> None:
    ours, _ = both
    tokens = st.integers(3, ours.vocab_size - 1)
    ids, context = data.draw(st.lists(tokens, max_size=20)), data.draw(st.lists(tokens, max_size=8))
    ready, other = ours.decode_stream(True, context), ours.decode_stream(True, context)
    ready.get_ready()
    ready.get_ready()
    assert [ready.step(token) for token in ids] == [other.step(token) for token in ids]
    assert ready.flush() == other.flush()


def test_stream_keeps_the_blank_after_a_prompt(metaspace: Path) -> None:
    ours = Tokenizer.load(metaspace)
    prompt, word = ours.encode("hello"), ours.encode("world", add_special_tokens=False)
    stream = ours.decode_stream(context=prompt)
    assert "".join(stream.step(token) for token in word) == " world"
    alone = ours.decode_stream()
    assert "".join(alone.step(token) for token in word) == "world"


def test_stream_shows_an_unfinished_character_at_the_end(byte_level: Path) -> None:
    ours = Tokenizer.load(byte_level)
    ids = ours.encode("👾")
    assert len(ids) > 1
    stream = ours.decode_stream()
    assert "".join(stream.step(token) for token in ids[:-1]) == ""
    assert set(stream.flush()) == {"\ufffd"}
    assert stream.flush() == ""


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("generation", [True, False])
def test_chat_template_as_transformers(both, chat: list, tools: list | None, generation: bool) -> None:
    ours, theirs = both
    expected = theirs.apply_chat_template(chat, tools=tools, add_generation_prompt=generation, tokenize=False)
    assert ours.apply_chat_template(chat, tools=tools, add_generation_prompt=generation) == expected


@pytest.mark.parametrize("content", ["The answer is", "ends with a blank ", "", "two\nlines\n"])
def test_continue_final_message_as_transformers(both, content: str) -> None:
    ours, theirs = both
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": content}]
    expected = theirs.apply_chat_template(chat, continue_final_message=True, tokenize=False)
    assert ours.apply_chat_template(chat, continue_final_message=True) == expected


TEMPLATE_FEATURES = [
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "{%- set ns = namespace(seen=0) %}{% for m in messages %}{% set ns.seen = ns.seen + 1 %}{% endfor %}{{ ns.seen }}",
    "{{ messages[1] | tojson }}{{ messages[:2] | tojson(indent=2) }}{{ {'b': 1, 'a': 'ü<'} | tojson(sort_keys=true) }}",
    "  {% if true %}\n  x\n  {% endif %}\n{{ strftime_now('%Y') }}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% set a = 1 %}{% endgeneration %}{% endfor %}{{ a }}",
    "{{ messages[0].content.split(' ')[-1] }}{{ messages[0]['content'][::-1] }}{{ eos_token }}{{ pad_token }}",
    "{{ colour }}{{ messages | length }}{{ messages[0].missing is defined }}{{ tools is none }}{{ documents is none }}",
    "{{ dict(a=1) }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(messages[-1].content) }}{{ ('a', 'b') | join('-') }}",
]


@pytest.mark.parametrize("template", TEMPLATE_FEATURES)
def test_template_features_as_transformers(tmp_path: Path, template: str) -> None:
    folder = byte_level_folder(tmp_path, chat_template=template)
    expected = AutoTokenizer.from_pretrained(str(folder)).apply_chat_template(
        CHATS[1], tokenize=False, colour="blue", add_generation_prompt=True
    )
    ours = Tokenizer.load(folder).apply_chat_template(CHATS[1], colour="blue", add_generation_prompt=True)
    assert ours == expected


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "messages"),
        ("{{ nothing.here.there }}", "undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set ns = namespace(__class__=1) %}", "__class__"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
    ],
)
def test_template_errors_are_the_requests(tmp_path: Path, template: str, says: str) -> None:
    ours = Tokenizer.load(byte_level_folder(tmp_path, chat_template=template))
    with pytest.raises(RequestError, match=says) as caught:
        ours.apply_chat_template(CHATS[0])
    assert caught.value.param == "messages"


def test_broken_template_is_the_checkpoints(tmp_path: Path) -> None:
    ours = Tokenizer.load(byte_level_folder(tmp_path, chat_template="{% if %}"))
    with pytest.raises(CheckpointError, match="not valid Jinja"):
        ours.apply_chat_template(CHATS[0])


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    ours = Tokenizer.load(metaspace_folder(tmp_path, chat_template=named))
    assert ours.apply_chat_template(CHATS[0]) == "plain"
    assert ours.apply_chat_template(CHATS[0], tools=TOOLS) == "with tools"


def test_template_override(byte_level: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("mine: {{ messages[0].content }}")
    assert Tokenizer.load(byte_level, chat_template=str(file)).apply_chat_template(CHATS[0]) == "mine: Hi"
    with pytest.raises(ConfigError, match="cannot read the chat template") as caught:
        Tokenizer.load(byte_level, chat_template=str(tmp_path / "none.jinja"))
    assert caught.value.field == "model.chat_template"


def test_no_template(tmp_path: Path) -> None:
    ours = Tokenizer.load(byte_level_folder(tmp_path, chat_template=None))
    with pytest.raises(RequestError, match="no chat template"):
        ours.apply_chat_template(CHATS[0])


@pytest.mark.parametrize("flags", [{"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}])
def test_begin_and_end_of_text_as_in_the_file(tmp_path: Path, flags: dict) -> None:
    folder = metaspace_folder(tmp_path, **flags)
    theirs, ours = AutoTokenizer.from_pretrained(str(folder)), Tokenizer.load(folder)
    assert ours.encode("hello world") == theirs.encode("hello world")


def test_added_tokens_of_the_configuration(tmp_path: Path) -> None:
    folder = metaspace_folder(
        tmp_path, added_tokens_decoder={"420": {"content": "<extra>", "special": True, "normalized": False}}
    )
    theirs, ours = AutoTokenizer.from_pretrained(str(folder)), Tokenizer.load(folder)
    assert ours.encode("a <extra> b") == theirs.encode("a <extra> b")
    assert ours.decode(ours.encode("a <extra> b")) == theirs.decode(
        theirs.encode("a <extra> b"), skip_special_tokens=True
    )


def test_truncation_and_padding_in_the_file_do_not_count(tmp_path: Path) -> None:
    import json

    folder = byte_level_folder(tmp_path)
    state = json.loads((folder / "tokenizer.json").read_text())
    state["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    write(folder, "tokenizer.json", state)
    assert len(Tokenizer.load(folder).encode("a b c d e f")) > 2


def test_end_of_text_ids(byte_level: Path, metaspace: Path, tmp_path: Path) -> None:
    assert set(Tokenizer.load(byte_level).eos_token_ids) == {0, 2}
    assert Tokenizer.load(metaspace).eos_token_ids == (2,)
    folder = byte_level_folder(tmp_path)
    write(folder, "generation_config.json", {"eos_token_id": 0})
    assert Tokenizer.load(folder).eos_token_ids == (0, 2)  # the tokenizer's own end counts as well


def test_pieces_have_the_true_bytes(byte_level: Path, metaspace: Path) -> None:
    for folder in (byte_level, metaspace):
        ours = Tokenizer.load(folder)
        text = "hello Grüße 👾 日本"
        ids = ours.encode(text, add_special_tokens=False)
        joined = b"".join(ours.piece(token)[1] for token in ids)
        assert joined.decode().lstrip(" ") == text
    assert ours.piece(ours.encode("")[0]) == ("<s>", b"<s>")
    assert ours.piece(10**6) == ("", b"")


def test_bad_text_and_ids(byte_level: Path) -> None:
    ours = Tokenizer.load(byte_level)
    with pytest.raises(RequestError, match="not valid Unicode"):
        ours.encode("a\ud800")
    with pytest.raises(RequestError, match="-1"):
        ours.decode([1, -1])


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_broken_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer in") as caught:
        Tokenizer.load(tmp_path)
    assert "--tokenizer" in str(caught.value.hint)


def test_without_tokenizer_json_transformers_is_asked(metaspace: Path) -> None:
    """A tokenizer that can only encode and decode whole lists gives the same stream."""
    theirs = AutoTokenizer.from_pretrained(str(metaspace))
    slow = Tokenizer(TransformersCodec(theirs))
    fast = Tokenizer.load(metaspace)
    text = "hello Grüße 👾 world"
    ids = fast.encode(text, add_special_tokens=False)
    assert slow.encode(text, add_special_tokens=False) == ids
    stream = slow.decode_stream()
    pieces = [stream.step(token) for token in ids]
    assert "".join(pieces) + stream.flush() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_old_files_through_transformers(tmp_path: Path, byte_level: Path) -> None:
    """vocab.json and merges.txt, no tokenizer.json."""
    import json

    state = json.loads((byte_level / "tokenizer.json").read_text())["model"]
    write(tmp_path, "vocab.json", state["vocab"])
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in state["merges"]))
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "chat_template": "{{ bos_token }}!"})
    ours = Tokenizer.load(tmp_path)
    assert ours.decode(ours.encode("hello world 👾")) == "hello world 👾"
    assert ours.apply_chat_template(CHATS[0]) == "<|endoftext|>!"


def test_many_threads(byte_level: Path) -> None:
    ours = Tokenizer.load(byte_level)
    texts = [f"hello {index} world 👾" * 20 for index in range(64)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: ours.decode(ours.encode(text)), texts)) == texts


async def test_long_texts_leave_the_loop_free(byte_level: Path) -> None:
    ours = Tokenizer.load(byte_level)
    text = "hello world " * 5000
    results = await asyncio.gather(*(ours.encode_async(text) for _ in range(4)))
    assert all(ids == ours.encode(text) for ids in results)


def test_long_texts_as_transformers_and_as_short_ones(both: tuple[Tokenizer, Any]) -> None:
    """They go another way into the library."""
    ours, theirs = both
    long = "Grüße 🙂 hello <|im_end|> world\n" * 400
    for special in (True, False):
        assert ours.encode(long, special) == theirs.encode(long, add_special_tokens=special)
    assert ours.encode_pair("hello", long) == theirs.encode("hello", long)


def test_while_a_long_text_is_encoded_others_go_on(byte_level: Path) -> None:
    """The library holds Python's lock for one text: streams of other clients would stand still."""
    tokenizer = Tokenizer.load(byte_level)
    with ThreadPoolExecutor(1) as pool:
        encoding = pool.submit(tokenizer.encode, "hello world " * 50_000)
        turns = 0
        while not encoding.done():
            time.sleep(0.001)
            turns += 1
    assert encoding.result()
    assert turns > 10


def test_texts_that_cannot_fit_are_refused_unread(byte_level: Path) -> None:
    tokenizer = Tokenizer.load(byte_level)
    tokenizer.limit(8)
    assert tokenizer.encode("a" * 10_000)
    for encode in (
        lambda: tokenizer.encode("a" * (MIN_CHARACTERS + 1)),
        lambda: tokenizer.encode_pair("a" * MIN_CHARACTERS, "b"),
    ):
        with pytest.raises(RequestError, match=f"at most {MIN_CHARACTERS}") as caught:
            encode()
        assert caught.value.code == "context_length_exceeded"
    tokenizer.limit(MIN_CHARACTERS)
    assert tokenizer.max_characters == CHARACTERS_PER_TOKEN * MIN_CHARACTERS


def test_loading_imports_neither_torch_nor_transformers(byte_level: Path) -> None:
    code = (
        "import sys; from core.frontend.tokenizer import Tokenizer; from core.frontend import chat, pump, parameters\n"
        f"t = Tokenizer.load({str(byte_level)!r}); t.apply_chat_template([{{'role': 'user', 'content': 'x'}}])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
