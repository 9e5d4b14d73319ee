"""The plugin's own settings (`--set llguidance.whitespace=compact`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """How JSON is written, and the limits that keep one request's grammar from stopping all others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    whitespace: Literal["flexible", "compact"] = Field(
        "flexible", description="Whitespace between JSON tokens: some, or none at all."
    )
    max_whitespace: int = Field(
        32,
        ge=1,
        le=1024,
        description="flexible: characters of whitespace at one place, so that no model goes blank.",
    )
    threads: int = Field(
        0, ge=0, description="Threads that fill masks; 0: one for each processor that this process may use, 8 at most."
    )
    max_schema_bytes: int = Field(1 << 18, ge=1, description="Length of a JSON schema.")
    max_schema_depth: int = Field(64, ge=1, le=256, description="Schemas within schemas.")
    max_schema_nodes: int = Field(10_000, ge=1, description="Schemas in a schema.")
    max_repeat: int = Field(
        10_000, ge=1, description="Bounds of repetitions in expressions and EBNF; of minLength, maxItems and the like."
    )
    compile_fuel: int = Field(
        1_000_000, ge=1, description="Work on the expressions of a grammar before its first token, about 50,000 a ms."
    )
    step_fuel: int = Field(200_000, ge=1, description="Work on expressions in one step, about 14,000 a ms.")
    step_items: int = Field(50_000, ge=1, description="Parser items in one step, about 20,000 a ms.")
    row_items: int = Field(
        2_000, ge=1, description="Parser items at one place of a text: what may come next, e.g. optional properties."
    )
    max_lexer_states: int = Field(50_000, ge=1, description="States of one text's automaton, 1 to 2 kB each.")
    max_grammar_symbols: int = Field(500_000, ge=1, description="Symbols of a grammar.")
