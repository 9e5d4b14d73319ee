"""Which tiles serve which number of tokens: measured tables, one JSON file for each device and shape, and a fallback.

A file lies at `tables/DEVICE/NAME.json`, as `Shape.file_name` says; the tuner (`core tune-moe`) writes it:

    {"device": "NVIDIA H200", "experts": 128, "top_k": 8, "hidden": 2048, "intermediate": 768, "weights": "bfloat16",
     "versions": {...}, "tokens": {"64": {"block_m": 16, "gate_up": {"block_n": 32, ...}, "down": {...}, "us": 160.1}}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from core.interfaces.errors import ConfigError

TABLES = Path(__file__).parent / "tables"


@dataclass(frozen=True, slots=True)
class Tile:
    """Of one kernel. group_m: blocks of rows that go through the same columns together, for the L2 cache.
    swap: weights are the left operand, so that few tokens fill the narrow side of the matrix unit.
    tma: weights come through the tensor memory accelerator, where there is one.
    stages: of the software pipeline; with block_m 1, tiles of down's weights fetched before gate_up is done."""

    block_n: int
    block_k: int
    warps: int = 4
    stages: int = 3
    group_m: int = 1
    swap: bool = False
    tma: bool = False


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """block_m: rows of a block; 1: every (token, expert) pair for itself, unsorted."""

    block_m: int
    gate_up: Tile
    down: Tile


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a layer on this rank. weights: their dtype, or the format where that is not plain."""

    experts: int
    top_k: int
    hidden: int
    intermediate: int
    weights: str

    def __str__(self) -> str:
        return f"{self.experts} x [{self.intermediate}, {self.hidden}] {self.weights}, {self.top_k} of them for a token"

    @property
    def file_name(self) -> str:
        return f"E{self.experts}-K{self.top_k}-H{self.hidden}-I{self.intermediate}-{self.weights}.json"


@dataclass(frozen=True, slots=True)
class Served:
    """What a call is computed with. tuned_for: tokens of the table's entry, None for the fallback. source: the table's
    path, or why there is none, for people."""

    config: MoeConfig
    tuned_for: int | None
    source: str


class Configs:
    """Tables of one device, read once for each shape.

    device: as the driver names it. large: as in `fallback`. folder: further tables (layout as in `TABLES`), which win
    over the bundled ones.
    """

    def __init__(self, device: str, large: bool, folder: Path | None = None) -> None:
        self.device = device
        self._large = large
        self._folders = [folder, TABLES] if folder is not None else [TABLES]
        self._tables: dict[Shape, tuple[str, dict[int, MoeConfig]]] = {}

    def pick(self, shape: Shape, tokens: int) -> Served:
        """The entry whose number of tokens is nearest, by ratio. Raises ConfigError for a file that is no table."""
        if shape not in self._tables:
            self._tables[shape] = self._read(shape)
        name, table = self._tables[shape]
        if not table:
            return Served(fallback(shape, tokens, self._large), None, name)
        nearest = min(table, key=lambda known: abs(math.log(known / tokens)))
        return Served(table[nearest], nearest, name)

    def _read(self, shape: Shape) -> tuple[str, dict[int, MoeConfig]]:
        for folder in self._folders:
            path = folder / folder_name(self.device) / shape.file_name
            if path.is_file():
                return f"tiles of {path}", read_table(path)
        command = (
            f"core tune-moe --experts {shape.experts} --top-k {shape.top_k} --hidden {shape.hidden} "
            f"--intermediate {shape.intermediate} --weights {shape.weights}"
        )
        return f"no table of tiles for {self.device}, general ones serve; `{command}` measures better ones", {}


def folder_name(device: str) -> str:
    return device.replace(" ", "_").replace("/", "_")


def read_table(path: Path) -> dict[int, MoeConfig]:
    """Raises ConfigError."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["tokens"]
        return {int(tokens): _config(entry) for tokens, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ConfigError(
            f"{path} is not a table of expert tiles: {type(exc).__name__}: {exc}",
            field="plugins.moe/triton.tables",
            value=str(path),
            hint="write it anew with `core tune-moe`, or take it away",
        ) from exc


def _config(entry: Mapping[str, Any]) -> MoeConfig:
    config = MoeConfig(_size("block_m", entry["block_m"]), _tile(entry["gate_up"]), _tile(entry["down"]))
    if config.block_m not in (1, 16, 32, 64, 128, 256):
        raise ValueError(f"block_m is {config.block_m}")
    return config


def _tile(entry: Mapping[str, Any]) -> Tile:
    known = {field.name for field in fields(Tile)}
    if set(entry) - known:
        raise ValueError(f"unknown keys {', '.join(sorted(set(entry) - known))}")
    values: dict[str, Any] = {
        name: bool(value) if name in ("swap", "tma") else _size(name, value) for name, value in entry.items()
    }
    tile = Tile(**values)
    for name in ("block_n", "block_k", "warps"):
        value = getattr(tile, name)
        if value & (value - 1):
            raise ValueError(f"{name} is {value}, not a power of two")
    return tile


def _size(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}, not a whole number of at least 1")
    return value


def write_table(
    path: Path, device: str, shape: Shape, found: Iterable[tuple[int, MoeConfig, Mapping[str, float]]],
    versions: Mapping[str, str],
) -> None:  # fmt: skip
    """found: (tokens, its best configuration, figures to keep beside it)."""
    entries = {str(tokens): {**asdict(config), **figures} for tokens, config, figures in found}
    table = {"device": device, **asdict(shape), "versions": dict(versions), "tokens": entries}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def fallback(shape: Shape, tokens: int, large: bool) -> MoeConfig:
    """Without a table: by the number of rows that an expert gets on average. large: for chips with the memory and the
    matrix units of Hopper (what did well on an H200); else what fits 64 KiB of fast memory."""
    rows = tokens * shape.top_k / shape.experts
    if tokens <= 8:
        return MoeConfig(1, Tile(2, 1024), Tile(4, 512, stages=4))
    if not large or shape.weights == "float32":
        config = _small(rows)
    elif rows <= 8:
        config = MoeConfig(16, Tile(64, 128, swap=True, tma=True), Tile(128, 128, swap=True, tma=True))
    elif rows <= 24:
        config = MoeConfig(32, Tile(64, 128, tma=True), Tile(128, 128, tma=True))
    elif shape.weights == "fp8_block128":  # has two accumulators for each product
        config = MoeConfig(64, Tile(64, 128, 4, 3, 4, tma=True), Tile(128, 128, 4, 3, 4, tma=True))
    else:
        tiles = Tile(128, 64, 8, 4, 4, tma=True), Tile(256, 64, 8, 4, 4, tma=True)
        config = MoeConfig(64 if rows <= 96 else 128, *tiles)
    if shape.weights == "float32":
        halves = (replace(tile, block_k=32) for tile in (config.gate_up, config.down))
        config = MoeConfig(config.block_m, *halves)
    return config


def _small(rows: float) -> MoeConfig:
    if rows <= 24:
        return MoeConfig(16, Tile(32, 128, 4, 2), Tile(64, 128, 4, 2))
    return MoeConfig(64, Tile(64, 64, 4, 2, 4), Tile(128, 64, 4, 2, 4))
