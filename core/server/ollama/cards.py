"""The served model as Ollama describes models."""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from core.server.context import ModelService
from core.server.ollama.replies import timestamp

_NEVER = timedelta(days=100 * 365)  # the model stays; clients want a time


def tags(service: ModelService) -> dict[str, Any]:
    """GET /api/tags."""
    return {"models": [{**_card(service), "modified_at": timestamp(service.created)}]}


def loaded(service: ModelService) -> dict[str, Any]:
    """GET /api/ps. size_vram: all of it where the device is not the host."""
    card = _card(service)
    return {
        "models": [
            {
                **card,
                "expires_at": timestamp(service.created + _NEVER.total_seconds()),
                "size_vram": 0 if service.hello.effective.get("device") == "cpu" else card["size"],
                "context_length": service.hello.context_length,
            }
        ]
    }


def shown(service: ModelService) -> dict[str, Any]:
    """POST /api/show."""
    family = _family(service)
    template = service.tokenizer.template
    capabilities = ["completion"]
    capabilities += ["tools"] if service.renderer.tool_parser is not None else []
    capabilities += ["thinking"] if service.renderer.reasoning_parser is not None else []
    return {
        "modelfile": "",
        "parameters": "\n".join(f"{name} {value}" for name, value in service.defaults.items()),
        "template": template.source() if template is not None else "",
        "details": _details(service),
        "model_info": {
            "general.architecture": family,
            f"{family}.context_length": service.hello.context_length,
            f"{family}.vocab_size": service.hello.vocab_size,
        },
        "capabilities": capabilities,
        "modified_at": timestamp(service.created),
    }


def _card(service: ModelService) -> dict[str, Any]:
    size, digest = _files(service.path)
    return {
        "name": service.name,
        "model": service.name,
        "size": size,
        "digest": digest,
        "details": _details(service),
    }


def _details(service: ModelService) -> dict[str, Any]:
    effective = service.hello.effective
    quantization = effective.get("quantization", "none")
    return {
        "parent_model": "",
        "format": "",
        "family": _family(service),
        "families": [_family(service)],
        "parameter_size": "",
        "quantization_level": effective.get("dtype", "") if quantization == "none" else quantization,
    }


def _family(service: ModelService) -> str:
    return service.hello.architecture.lower()


def _files(path: str) -> tuple[int, str]:
    """(bytes, digest) of the checkpoint's files. The digest is of names and sizes: contents would take minutes."""
    folder = Path(path)
    entries = sorted((e.name, e.stat().st_size) for e in os.scandir(folder) if e.is_file()) if folder.is_dir() else []
    told = "".join(f"{name} {size}\n" for name, size in entries)
    return sum(size for _, size in entries), hashlib.sha256(told.encode()).hexdigest()
