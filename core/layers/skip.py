"""Lists of modules to leave out, as quantized checkpoints keep them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from core.interfaces.errors import ConfigError


def names_module(entry: str, module: str) -> bool:
    """Whether a skip entry means `module` or something it lies in: the entry's dotted segments stand in the module's,
    in a row and whole. "lm_head" and "layers.1" are in "model.layers.1.mlp"; "layers.1" is not in "layers.10"."""
    wanted, path = entry.split("."), module.split(".")
    return any(path[i : i + len(wanted)] == wanted for i in range(len(path) - len(wanted) + 1))


def skips(entries: Collection[str], path: str, sources: Sequence[str], *, field: str) -> bool:
    """Whether the layer at `path`, filled from the checkpoint modules `sources`, is to be left out.

    field: name of the list, for the error. Raises ConfigError if only some of a fused layer's sources are in it.
    """
    hit = [source for source in sources if any(names_module(entry, source) for entry in entries)]
    if not hit or len(hit) == len(sources):
        return bool(hit)
    other = next(source for source in sources if source not in hit)
    raise ConfigError(
        f"{field} leaves out {hit[0]} but not {other}, and both are parts of {path}",
        field=field,
        value=list(entries),
        hint=f"leave out all of {', '.join(sources)}, or none",
    )
