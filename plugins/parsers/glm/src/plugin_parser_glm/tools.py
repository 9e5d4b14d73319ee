"""A name, then <arg_key> and <arg_value> pairs, inside of <tool_call>."""

from __future__ import annotations

from core.parsing.tag_structure import TagToolParser
from core.parsing.tags import ParameterTags, TagFormat

GLM45 = TagFormat(
    open=("<tool_call>",),
    name_close="",
    parameter=ParameterTags(
        open="<arg_key>", key_closes=(("</arg_key>", "schema"),), value_open="<arg_value>", close="</arg_value>"
    ),
    close=("</tool_call>",),
)

GLM47 = TagFormat(open=GLM45.open, name_close="", parameter=GLM45.parameter, close=GLM45.close, gap="", section_gap="")


class Glm45ToolParser(TagToolParser):
    """GLM-4.5 and 4.6: a line for each tag."""

    form = GLM45


class Glm47ToolParser(TagToolParser):
    """GLM-4.7 and 5: no line breaks. What is read is the same; what a forced call looks like is not."""

    form = GLM47
