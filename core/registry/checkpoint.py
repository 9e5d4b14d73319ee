"""Find the checkpoint's folder and read its config.json. No weights, no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.interfaces.capabilities import StatedCheckpoint
from core.interfaces.errors import CheckpointError, ConfigError, PluginLoadError
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord

KIND = "checkpoints"


@dataclass(frozen=True, slots=True)
class FoundCheckpoint:
    """folder: Hugging Face layout. record: the package it came from, or None for a folder of the operator's."""

    folder: Path
    reason: str
    record: PluginRecord | None = None
    target: Any = None


def find_checkpoint(model: str | None, catalog: Catalog) -> FoundCheckpoint:
    """`model` is a folder, the name of a bundled checkpoint, or None for the bundled default.

    Raises ConfigError if it is neither, or if no default is installed.
    """
    if model is None:
        return _bundled(_default(catalog), catalog, "no model was given and this is the bundled default")
    folder = Path(model).expanduser()
    # A folder that happens to be called like a bundled checkpoint, but holds none, does not hide it.
    if folder.is_dir() and ((folder / "config.json").exists() or not catalog.has(KIND, model)):
        return FoundCheckpoint(folder.resolve(), "given by the operator")
    if catalog.has(KIND, model):
        return _bundled(catalog.record(KIND, model), catalog, "given by the operator, by name")
    names = sorted({record.name for record in catalog.of_kind(KIND)})
    what = "it is a file, not a folder" if folder.exists() else "there is no such folder"
    raise ConfigError(
        f"model is {model!r}: {what}, and no bundled checkpoint has that name",
        field="model.model",
        value=model,
        hint="give --model the folder of a checkpoint (with config.json); "
        + (f"bundled: {', '.join(names)}" if names else "no bundled checkpoint is installed"),
    )


def _default(catalog: Catalog) -> PluginRecord:
    defaults = [r for r in catalog.of_kind(KIND) if stated_checkpoint(r).default and r.state != "disabled"]
    if len(defaults) == 1:
        return catalog.record(KIND, defaults[0].full_name)
    if defaults:
        names = ", ".join(record.full_name for record in defaults)
        raise ConfigError(
            f"model is not set, and {len(defaults)} bundled checkpoints say they are the default: {names}",
            field="model.model",
            hint="choose one with --model",
        )
    broken = [f"{r.full_name} ({r.reason})" for r in catalog.of_kind(KIND) if r.state != "available"]
    raise ConfigError(
        "model is not set, and no installed package brings a default checkpoint"
        + (f"; unusable: {'; '.join(broken)}" if broken else ""),
        field="model.model",
        hint="pass --model FOLDER, or pip install a package that provides a bundled checkpoint "
        "(`core plugins list --kind checkpoints` shows what is installed)",
    )


def stated_checkpoint(record: PluginRecord) -> StatedCheckpoint:
    """What the manifest of a bundled checkpoint states."""
    return record.stated if isinstance(record.stated, StatedCheckpoint) else StatedCheckpoint()


def _bundled(record: PluginRecord, catalog: Catalog, reason: str) -> FoundCheckpoint:
    target = catalog.load(KIND, record.full_name)
    try:
        folder = Path(target())
    except Exception as exc:
        raise PluginLoadError(
            f"{record.title} could not give its folder: {type(exc).__name__}: {exc}",
            hint=f"reinstall {record.distribution}, or pass --model FOLDER",
        ) from exc
    return FoundCheckpoint(folder, reason, record, target)


def read_hf_config(folder: Path) -> dict[str, Any]:
    """config.json as a mapping with a non-empty "architectures". Raises CheckpointError naming the file."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no config.json, so it is no checkpoint",
            hint="give the folder that holds config.json, the tokenizer and the *.safetensors files",
        ) from None
    except (OSError, UnicodeDecodeError) as exc:
        raise CheckpointError(f"{path} cannot be read: {exc}", hint="copy or download the checkpoint again") from exc
    except json.JSONDecodeError as exc:
        raise CheckpointError(
            f"{path} is not valid JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}",
            hint="copy or download the checkpoint again",
        ) from exc
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}; it must be a JSON object")
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f'{path}: "architectures" is {names!r}; it must be a list with the name of the architecture',
            hint='add it, for example "architectures": ["NameForCausalLM"], as the checkpoint\'s authors name it',
        )
    return config


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The checkpoint's quantization_config, or None. Nested text configurations are looked into as well."""
    for holder in (config, config.get("text_config")):
        if isinstance(holder, Mapping) and isinstance(holder.get("quantization_config"), Mapping):
            return holder["quantization_config"]
    return None
