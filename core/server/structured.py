"""Fields that ask for a text of some form, as several servers spell them; `core.frontend.structured` reads them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class StructuredFields(BaseModel):
    """At most one of them in a request."""

    response_format: dict[str, Any] | None = Field(
        None, description="OpenAI's: text, json_object, json_schema or structural_tag."
    )
    structured_outputs: dict[str, Any] | None = Field(
        None, description="One of json, regex, choice, grammar, json_object, structural_tag."
    )
    json_schema: dict[str, Any] | bool | str | None = Field(None, description="JSON schema that the text fits.")
    guided_json: dict[str, Any] | bool | str | None = Field(None, description="Another name of json_schema.")
    regex: str | None = Field(None, description="Regular expression that the whole text matches.")
    guided_regex: str | None = Field(None, description="Another name of regex.")
    ebnf: str | None = Field(None, description="Grammar (GBNF) that the text fits; its root rule is `root`.")
    guided_grammar: str | None = Field(None, description="Another name of ebnf.")
    guided_choice: list[str] | None = Field(None, description="The text is one of these.")
    structural_tag: dict[str, Any] | str | None = Field(None, description="What the text is made of.")
