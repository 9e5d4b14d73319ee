"""DeepSeek V3.2: DSML tags, each of which says whether its value is a string."""

from __future__ import annotations

from core.parsing.tag_structure import TagToolParser
from core.parsing.tags import ParameterTags, TagFormat

MARK = "｜DSML｜"
V32 = TagFormat(
    section=(f"<{MARK}function_calls>", f"</{MARK}function_calls>"),
    open=(f'<{MARK}invoke name="',),
    name_close='">',
    parameter=ParameterTags(
        open=f'<{MARK}parameter name="',
        key_closes=(('" string="true">', "string"), ('" string="false">', "json")),
        close=f"</{MARK}parameter>",
    ),
    close=(f"</{MARK}invoke>",),
    json_body=True,  # an object instead of parameters, which the model writes now and then
)


class DeepSeekV32ToolParser(TagToolParser):
    """See `V32`."""

    form = V32
