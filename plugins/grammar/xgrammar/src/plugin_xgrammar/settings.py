"""The plugin's own settings (`--set xgrammar.whitespace=compact`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """How JSON is written, and limits. The library has no limits of time of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    whitespace: Literal["flexible", "compact"] = Field(
        "flexible", description="Whitespace between JSON tokens: some, or none at all."
    )
    max_whitespace: int = Field(
        32, ge=1, le=1024, description="flexible: characters of whitespace at one place, so that no model goes blank."
    )
    threads: int = Field(
        0, ge=0, description="Threads that fill masks; 0: one for each processor that this process may use, 8 at most."
    )
    compile_threads: int = Field(1, ge=1, description="Threads that compile one grammar.")
    max_schema_bytes: int = Field(1 << 18, ge=1, description="Length of a JSON schema.")
    max_schema_depth: int = Field(32, ge=1, le=128, description="Schemas within schemas.")
    max_schema_nodes: int = Field(2_000, ge=1, description="Schemas in a schema.")
    max_repeat: int = Field(
        100,
        ge=1,
        description="Bounds of repetitions in expressions and EBNF, of maxLength, maxItems and the like. With bounds of"
        " hundreds a step of this library takes seconds for a vocabulary of 150,000 tokens.",
    )
