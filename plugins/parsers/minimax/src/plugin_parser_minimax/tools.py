"""<invoke> and <parameter> tags inside of <minimax:tool_call>."""

from __future__ import annotations

from core.parsing.tag_structure import TagToolParser
from core.parsing.tags import ParameterTags, TagFormat

FORMAT = TagFormat(
    section=("<minimax:tool_call>", "</minimax:tool_call>"),
    open=('<invoke name="',),
    name_close='">',
    parameter=ParameterTags(open='<parameter name="', key_closes=(('">', "schema"),), close="</parameter>"),
    close=("</invoke>",),
)


class MinimaxM2ToolParser(TagToolParser):
    """See `FORMAT`."""

    form = FORMAT
