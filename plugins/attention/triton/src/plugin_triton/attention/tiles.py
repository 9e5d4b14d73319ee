"""Sizes: how a layer's heads lie in tiles, tile sizes by device, and in how many splits a row's keys are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core.interfaces.spec import AttentionSpec

MIN_DIM = 16  # least size of a matrix product's dimensions
MAX_QUERIES = 16  # new tokens of a row that the decode kernel may take
PREFIX_BLOCK = 128  # shared prefixes are multiples of this many tokens
MAX_PREFIXES = 4  # different ones in a step
MAX_PLACES = 32  # parts of a row's result
MIN_PREFIX_ROWS = 8
MIN_PREFIX_TOKENS = 256
_MAX_PARTS_BYTES = 128 << 20


def power_of_two(size: int) -> int:
    """The least power of two that is no less than size and MIN_DIM."""
    return max(MIN_DIM, 1 << (size - 1).bit_length())


def _floor_power(size: int) -> int:
    return 1 << (max(size, 1).bit_length() - 1)


@dataclass(frozen=True, slots=True)
class HeadShape:
    """One layer on one rank. dim + tail: width of keys, cut where `blocks` says; v_dim: of values.

    latent: values are the first `dim` elements of the keys, and all heads share one KV head.
    """

    num_heads: int
    num_kv_heads: int
    dim: int
    tail: int
    v_dim: int
    latent: bool = False

    @classmethod
    def of(cls, spec: AttentionSpec, num_heads: int, num_kv_heads: int) -> HeadShape:
        """As keys and values are cached."""
        if spec.latent_dim:
            return cls(num_heads, 1, spec.latent_dim, spec.rope_dim, spec.latent_dim, latent=True)
        return cls.cut(num_heads, num_kv_heads, spec.head_dim, spec.v_head_dim)

    @classmethod
    def cut(cls, num_heads: int, num_kv_heads: int, dim: int, v_dim: int) -> HeadShape:
        main = _floor_power(dim)
        if main < MIN_DIM:
            main = dim
        return cls(num_heads, num_kv_heads, main, dim - main, v_dim)

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def width(self) -> int:
        """Elements of a tile's key and value in the kernels."""
        own = power_of_two(self.dim) + (power_of_two(self.tail) if self.tail else 0)
        return own if self.latent else own + power_of_two(self.v_dim)

    @property
    def blocks(self) -> dict[str, int | bool]:
        """Arguments of every kernel."""
        return {
            "GROUP": self.group,
            "DIM": self.dim,
            "DIM_BLOCK": power_of_two(self.dim),
            "TAIL": self.tail,
            "TAIL_BLOCK": power_of_two(self.tail) if self.tail else MIN_DIM,
            "V_DIM": self.v_dim,
            "V_BLOCK": power_of_two(self.v_dim),
            "LATENT": self.latent,
        }


@dataclass(frozen=True, slots=True)
class Tile:
    """m rows of queries against n keys at a time."""

    m: int
    n: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Device:
    """What sizes depend on. processors: of the device. shared_bytes: memory of a program that holds tiles on their
    way. wide: matrix instructions take 64 rows from shared memory (sm_90)."""

    processors: int
    shared_bytes: int
    wide: bool

    @classmethod
    def of(cls, device: torch.device) -> Device:
        if device.type != "cuda":
            return cls(4, 64 << 10, wide=False)
        facts = torch.cuda.get_device_properties(device)
        if torch.version.hip is not None:
            return cls(facts.multi_processor_count, (160 if "gfx950" in facts.gcnArchName else 64) << 10, wide=False)
        bytes_each = int(getattr(facts, "shared_memory_per_block_optin", 96 << 10))
        return cls.nvidia(facts.major, facts.multi_processor_count, bytes_each)

    @classmethod
    def nvidia(cls, major: int, processors: int, shared_bytes: int) -> Device:
        """Of a compute capability. From 10.0 on, what goes through tensor memory takes shared memory too."""
        return cls(processors, shared_bytes - (48 << 10 if major >= 10 else 0), wide=major >= 9)


def _fitting(tile: Tile, shape: HeadShape, itemsize: int, cache_itemsize: int, device: Device) -> Tile:
    """The same with fewer stages, then fewer keys, until it fits the device's memory."""
    m, n, warps, stages = tile.m, tile.n, tile.warps, tile.stages
    queries = m * (shape.width if shape.latent else shape.dim + shape.tail) * itemsize

    def taken() -> int:
        # What is widened on its way takes room in both types. Instructions that read shared memory by themselves need
        # a tile longer, and so one place more.
        widened = n * shape.width * itemsize if cache_itemsize != itemsize else 0
        places = stages if device.wide and m >= 64 else max(stages - 1, 1)
        return queries + m * n * itemsize + widened + places * n * shape.width * cache_itemsize

    while taken() > device.shared_bytes * 0.95 and (stages > 1 or n > 16):
        if stages > 2 or (n <= 16 and stages > 1):
            stages -= 1
        else:
            n //= 2
    return Tile(m, n, warps, stages)


def decode_tile(shape: HeadShape, queries: int, itemsize: int, cache_itemsize: int, device: Device) -> Tile:
    """Of few rows: reading keys is all there is to do, so several programs share a processor."""
    pack = min(shape.group, 64)
    m = min(64, power_of_two(pack * queries))
    if shape.latent:
        if queries == 1 and device.shared_bytes <= 64 << 10:
            m = min(m, 32)  # 64 queries of a latent's width fill such a memory by themselves
        return _fitting(Tile(m, 32, 8 if m > 32 else 4, 3), shape, itemsize, cache_itemsize, device)
    return _fitting(Tile(m, 32, 2 if m <= 32 else 4, 4), shape, itemsize, cache_itemsize, device)


def prefill_tile(shape: HeadShape, itemsize: int, cache_itemsize: int, device: Device, page_size: int = 0) -> Tile:
    """Of many rows: arithmetic is all there is to do. page_size 0: keys lie in order."""
    if itemsize > 2:
        tile = Tile(32 if shape.latent else 64, 32, 4, 2)
    elif shape.latent:
        tile = Tile(64, 32, 8, 3)
    elif shape.width > 256:
        tile = Tile(128, 64, 8, 3)
    elif device.wide:
        # More keys at a time pay where they lie in one page.
        wide = shape.width <= 128 or page_size % 128 == 0
        tile = Tile(128, 128 if wide else 64, 8 if shape.width > 128 else 4, 3)
    else:
        tile = Tile(128, 64, 8 if shape.width > 128 else 4, 2)
    return _fitting(tile, shape, itemsize, cache_itemsize, device)


def invariant_tile(shape: HeadShape, itemsize: int, cache_itemsize: int, device: Device) -> Tile:
    """Of rows with any number of new tokens, for which it is always the same."""
    return _fitting(Tile(64, 32 if itemsize > 2 else 64, 4, 3), shape, itemsize, cache_itemsize, device)


@dataclass(frozen=True, slots=True)
class Splits:
    """Of a row's keys. own: of what is its own, at most, of `least` tokens or more each; shared: of a common prefix,
    0 where such are not looked for."""

    own: int
    least: int
    shared: int

    @property
    def parts(self) -> int:
        return self.own + self.shared

    @classmethod
    def of(cls, rows: int, shape: HeadShape, packs: int, tile_rows: int, device: Device, *, shares: bool) -> Splits:
        """For `rows` decode rows."""
        tiles = rows * shape.num_kv_heads * packs
        own = min(MAX_PLACES, max(4, _floor_power(device.processors // tiles)))
        shared = 0
        if shares and rows >= MIN_PREFIX_ROWS:
            prefix_tiles = -(-rows // tile_rows) * shape.num_kv_heads * packs
            own = min(own, MAX_PLACES // 2)
            shared = min(MAX_PLACES // 2, _floor_power(2 * device.processors // prefix_tiles))
        part_bytes = rows * shape.num_heads * shape.v_dim * 4
        while own > 1 and (own + shared) * part_bytes > _MAX_PARTS_BYTES:
            own, shared = own // 2, shared and max(1, shared // 2)
        return cls(own, 512 if own <= 4 else 128, shared)
