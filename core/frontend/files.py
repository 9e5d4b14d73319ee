"""The small JSON and Jinja files next to a tokenizer, read directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.interfaces.errors import CheckpointError, ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, or {} if there is no such file. Raises CheckpointError if it holds something else."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    try:
        value = json.loads(raw)
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}", hint="download the checkpoint again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}, not an object")
    return value


def token_text(value: Any) -> str | None:
    """A special token as configurations write it: a string, or an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def token_ids(value: Any) -> tuple[int, ...]:
    """An id, a list of ids or nothing."""
    items = value if isinstance(value, list) else [value]
    return tuple(item for item in items if isinstance(item, int) and not isinstance(item, bool))


def special_tokens(folder: Path, tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """Named special tokens (bos_token, eos_token, ...); tokenizer_config.json wins over special_tokens_map.json."""
    named: dict[str, str] = {}
    for source in (read_json(folder / "special_tokens_map.json"), tokenizer_config):
        for name, value in source.items():
            text = token_text(value)
            if name.endswith("_token") and text is not None:
                named[name] = text
    return named


def chat_templates(folder: Path, tokenizer_config: dict[str, Any], override: str | None) -> dict[str, str]:
    """Chat templates by name; the `override` file wins, then chat_template.jinja, then the configuration.

    Raises ConfigError if the `override` file cannot be read.
    """
    if override is not None:
        return {"default": _read_override(Path(override))}
    found: dict[str, str] = {}
    listed = tokenizer_config.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(listed, str):
        found["default"] = listed
    elif isinstance(listed, list):
        found = {item["name"]: item["template"] for item in listed if isinstance(item, dict)}
    try:
        found["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            found[path.stem] = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    return found


def _read_override(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the chat template {path}: {error}",
            field="model.chat_template",
            value=str(path),
            hint="give the path of a text file with a Jinja template",
        ) from error
    if path.suffix == ".json":
        listed = read_json(path).get("chat_template")
        if not isinstance(listed, str):
            raise ConfigError(f"{path} has no text 'chat_template'", field="model.chat_template", value=str(path))
        return listed
    return text
