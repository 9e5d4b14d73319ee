"""Step3: steptml tags inside of tokens with full-width bars. Step-3.5: tags as Qwen3-Coder writes them."""

from __future__ import annotations

from core.parsing.tag_structure import TagToolParser
from core.parsing.tags import ParameterTags, TagFormat

STEP3 = TagFormat(
    section=("<｜tool_calls_begin｜>", "<｜tool_calls_end｜>"),
    open=("<｜tool_call_begin｜>function<｜tool_sep｜>", '<steptml:invoke name="'),
    name_close='">',
    parameter=ParameterTags(
        open='<steptml:parameter name="', key_closes=(('">', "schema"),), close="</steptml:parameter>"
    ),
    close=("</steptml:invoke>", "<｜tool_call_end｜>"),
    gap="",
)

STEP3P5 = TagFormat(
    section=("<tool_call>", "</tool_call>"),
    bare=True,
    open=("<function=",),
    name_close=">",
    parameter=ParameterTags(
        open="<parameter=", key_closes=((">", "schema"),), close="</parameter>", trim=True, unclosed=True
    ),
    close=("</function>",),
)


class Step3ToolParser(TagToolParser):
    """See `STEP3`."""

    form = STEP3


class Step3p5ToolParser(TagToolParser):
    """See `STEP3P5`."""

    form = STEP3P5
