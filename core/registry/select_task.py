"""What the model is asked for: text, vectors or scores; and how vectors are made of hidden states.

A checkpoint says it in files that sentence-transformers writes (modules.json and the folder of its pooling module),
else the architecture does, and the operator overrides both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.interfaces.errors import CheckpointError, ConfigError
from core.interfaces.pooling import PoolingPlan
from core.interfaces.spec import ModelSpec, Pooling
from core.registry.resolution import Decision

if TYPE_CHECKING:
    from core.config.sections import ModelSettings

MODULES = "modules.json"
# Flags of a pooling module's configuration -> what they mean here.
_FLAGS: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_NAMES: Mapping[str, Pooling] = {"cls": "first", "mean": "mean", "lasttoken": "last"}


@dataclass(frozen=True, slots=True)
class _Stated:
    """What the checkpoint's files say of vectors. None: they say nothing."""

    pooling: Pooling | None = None
    normalize: bool | None = None


def choose_task(
    settings: ModelSettings, spec: ModelSpec, config: Mapping[str, Any], folder: Path
) -> tuple[PoolingPlan, tuple[Decision, ...]]:
    """The plan and the decisions to show. Raises ConfigError for a task that the architecture cannot be built for,
    CheckpointError for files that say something unknown."""
    stated = _read_modules(folder)
    asked, own = settings.task, spec.task
    if settings.is_embedding:
        if asked not in ("auto", "embed"):
            raise ConfigError(
                f"is_embedding is set, but task is {asked!r}",
                field="model.is_embedding", value=True, hint="leave one of them out",
            )  # fmt: skip
        asked = "embed"
    task, reason = own, "the architecture's"
    if asked == "auto":
        if own == "generate" and stated.pooling is not None:
            task, reason = "embed", f"{MODULES} of the checkpoint makes vectors"
    elif asked == "score":
        task, reason = own, "asked for"
        if own == "embed":
            raise _cannot(asked, spec, "it has no head that scores", "embed")
    else:
        if asked == "generate" and own != "generate":
            raise _cannot(asked, spec, "it has no language-model head", own)
        if asked == "classify" and own != "classify":
            raise _cannot(asked, spec, "it has no head that scores labels", own)
        task, reason = asked, "asked for"
    decisions = [Decision("task", asked if asked == "score" else task, reason)]
    pooling: Pooling | None
    if settings.pooling != "auto":
        pooling, why = ("first" if settings.pooling == "cls" else settings.pooling), "asked for"
    elif stated.pooling is not None:
        pooling, why = stated.pooling, f"{MODULES} of the checkpoint"
    else:
        pooling, why = spec.pooling, "the architecture's"
    if task == "generate" and settings.pooling == "auto":
        pooling, why = None, "the model generates; --pooling or --task embed makes vectors too"
    decisions.append(Decision("pooling", pooling or "none", why))
    normalize = stated.normalize if stated.normalize is not None else True
    if settings.normalize != "auto":
        normalize = settings.normalize == "on"
    plan = PoolingPlan(
        task=task,
        scores=asked == "score" and task == "generate",
        pooling=pooling,
        normalize=normalize,
        dimensions=_dimensions(settings, config, spec.hidden_size),
        size=spec.hidden_size,
        labels=spec.labels,
        activation="sigmoid" if len(spec.labels) == 1 or _several(config) else "softmax",
    )
    return plan, tuple(decisions)


def _cannot(asked: str, spec: ModelSpec, why: str, own: str) -> ConfigError:
    return ConfigError(
        f"task is {asked!r}, which {spec.architecture} cannot do: {why}",
        field="model.task",
        value=asked,
        hint=f"use --task auto or --task {own}",
    )


def _several(config: Mapping[str, Any]) -> bool:
    """Whether a text may have several labels at once, so that each is a yes or no of its own."""
    return config.get("problem_type") == "multi_label_classification"


def _dimensions(settings: ModelSettings, config: Mapping[str, Any], size: int) -> tuple[int, ...] | None:
    """Matryoshka lengths (Kusupati et al. 2022, arXiv:2205.13147) that config.json states or the operator allows."""
    if settings.matryoshka:
        return None
    listed = config.get("matryoshka_dimensions")
    if listed is not None:
        if not isinstance(listed, list) or not all(type(item) is int and 1 <= item <= size for item in listed):
            raise CheckpointError(
                f"config.json: matryoshka_dimensions = {listed!r}, but it must list lengths between 1 and {size}"
            )
        return tuple(sorted({*listed, size}))
    return None if config.get("is_matryoshka") is True else ()


def _read_modules(folder: Path) -> _Stated:
    """modules.json: the model, then a pooling module, then perhaps a normalisation. Raises CheckpointError."""
    path = folder / MODULES
    if not path.is_file():
        return _Stated()
    modules = _json(path)
    if not isinstance(modules, list) or not all(isinstance(item, dict) for item in modules):
        raise CheckpointError(f"{path} must be a list of modules")
    pooling: Pooling | None = None
    normalize = False
    for item in modules:
        kind, place = str(item.get("type", "")).rpartition(".")[2], str(item.get("path", ""))
        if kind == "Transformer":
            continue
        if kind == "Normalize":
            normalize = True
        elif kind == "Pooling" and ".." not in Path(place).parts and not Path(place).is_absolute():
            pooling = _pooling(folder / place / "config.json")
        else:
            raise CheckpointError(
                f"{path} has a module of type {item.get('type')!r} at {place!r}, which is not supported",
                hint="Transformer, Pooling and Normalize are",
            )
    return _Stated(pooling, normalize) if pooling is not None else _Stated()


def _pooling(path: Path) -> Pooling:
    config = _json(path)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    named = config.get("pooling_mode")
    chosen = [named] if isinstance(named, str) else [name for name, value in config.items() if value is True]
    modes = [name for name in chosen if isinstance(named, str) or name.startswith("pooling_mode_")]
    known = {**_FLAGS, **_NAMES}
    if len(modes) != 1 or modes[0] not in known:
        raise CheckpointError(
            f"{path} pools by {' and '.join(modes) or 'nothing'}; supported is one of {', '.join(sorted(known))}",
            hint="say how with --pooling last, mean or first, and take modules.json away",
        )
    return known[modes[0]]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint="download the checkpoint again") from error
