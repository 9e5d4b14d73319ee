"""Tags as Qwen3-Coder writes them, but all closed, and without line breaks around values."""

from __future__ import annotations

from core.parsing.tag_structure import TagToolParser
from core.parsing.tags import ParameterTags, TagFormat

FORMAT = TagFormat(
    open=("<tool_call>", "<function="),
    name_close=">",
    parameter=ParameterTags(open="<parameter=", key_closes=((">", "schema"),), close="</parameter>"),
    close=("</function>", "</tool_call>"),
)


class MimoToolParser(TagToolParser):
    """See `FORMAT`."""

    form = FORMAT
