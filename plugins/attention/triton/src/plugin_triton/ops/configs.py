"""Which kernel computes a product and how it is cut up: measured per device and shape, with a rule for all others.

`configs/DEVICE.json`, written by `python -m plugin_triton.ops.tune`: shape -> rows -> configuration. A shape is "NxK",
or "NxK gated" where the weight is [2N, K] and an activation joins both halves.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton

ROWS = (1, 2, 4, 8, 16)  # a call with other numbers of rows takes the next larger one's configuration
FOLDER = Path(__file__).parent / "configs"
_MIN_PROGRAMS = 256


@dataclass(frozen=True, slots=True)
class Config:
    """kind: "gemv" (one row), "skinny" (few rows) or "library" (torch). block_n, block_k: of a tile of the weight.
    split_k, num_stages, ahead: of "skinny"; ahead: tiles that are asked for before the kernel before has ended."""

    kind: str
    block_n: int = 0
    block_k: int = 0
    num_warps: int = 4
    split_k: int = 1
    num_stages: int = 1
    ahead: int = 0


LIBRARY = Config("library")


def shape_name(n: int, k: int, gated: bool) -> str:
    return f"{n}x{k} gated" if gated else f"{n}x{k}"


@functools.cache
def choose(device: torch.device, n: int, k: int, gated: bool, rows: int) -> Config:
    """For y [rows, n] = x [rows, k] @ weight.T on `device`. rows: one of ROWS."""
    found = _measured(device).get(shape_name(n, k, gated), {}).get(rows)
    if found is not None:
        return found
    return _default_gemv(n, k) if rows == 1 else LIBRARY


def _default_gemv(n: int, k: int) -> Config:
    """Blocks of 2 rows by up to 2048 columns, less of either where the matrix is small."""
    block_k = min(2048, triton.next_power_of_2(k))
    while block_k > 512 and k % block_k:
        block_k //= 2
    return Config("gemv", 2 if n >= 2 * _MIN_PROGRAMS else 1, block_k, max(1, block_k // 512))


def device_name(device: torch.device) -> str:
    """As in the names of the files: "NVIDIA_H200"."""
    return torch.cuda.get_device_name(device).replace(" ", "_") if device.type == "cuda" else device.type


@functools.cache
def _measured(device: torch.device) -> dict[str, dict[int, Config]]:
    path = FOLDER / f"{device_name(device)}.json"
    return read(path) if path.is_file() else {}


def read(path: Path) -> dict[str, dict[int, Config]]:
    """Shape -> rows -> configuration, of one file."""
    data = json.loads(path.read_text())["products"]
    return {shape: {int(rows): Config(**config) for rows, config in by_rows.items()} for shape, by_rows in data.items()}


def write(path: Path, products: dict[str, dict[int, Config]], note: str) -> None:
    """Write a file that `read` takes. note: what was measured with which versions."""
    data = {
        shape: {str(rows): _short(config) for rows, config in sorted(by_rows.items())}
        for shape, by_rows in products.items()
    }
    path.write_text(json.dumps({"note": note, "products": data}, indent=1) + "\n")


def _short(config: Config) -> dict[str, int | str]:
    """What differs from the defaults."""
    default = asdict(Config(config.kind))
    return {key: value for key, value in asdict(config).items() if key == "kind" or value != default[key]}
