"""Events of which only the text changes are the events that encoding each of them whole gives."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.server.replies import _MARK, TextEvent, event

TEXTS = st.text() | st.sampled_from(['"', "\\", "\n", "\u2028", "</script>", _MARK, "\x00", "\ud7ff"])


@given(st.lists(TEXTS, max_size=5), TEXTS)
def test_a_template_gives_what_encoding_gives(texts: list[str], name: str) -> None:
    def made(text: str) -> dict[str, Any]:
        return {"id": name, "choices": [{"delta": {"content": text}, "finish_reason": None}], "usage": None}

    template = TextEvent(made)
    assert [template.of(text) for text in texts] == [event(made(text)) for text in texts]
