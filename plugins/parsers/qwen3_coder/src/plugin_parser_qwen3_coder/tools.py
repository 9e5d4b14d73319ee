"""<tool_call> with a <function=NAME> and <parameter=KEY> tags, each on lines of its own."""

from __future__ import annotations

from core.parsing.tag_structure import TagToolParser
from core.parsing.tags import ParameterTags, TagFormat

FORMAT = TagFormat(
    section=("<tool_call>", "</tool_call>"),
    bare=True,  # the models leave the outer tag out now and then
    open=("<function=",),
    name_close=">",
    parameter=ParameterTags(
        open="<parameter=", key_closes=((">", "schema"),), close="</parameter>", trim=True, unclosed=True
    ),
    close=("</function>",),
)


class Qwen3CoderToolParser(TagToolParser):
    """See `FORMAT`."""

    form = FORMAT
