"""Reading weights: safetensors files to modules, with strict accounting, on several threads; and dummy weights."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from core.interfaces.errors import WeightError
from core.interfaces.model import WeightRules
from core.layers.module import NO_EXPERT, Slot, WeightModule
from core.layers.norm import RmsNorm
from core.runner.kv_scales import KvScaleReader, KvScales
from core.runner.weights_rules import Address, RuleTable

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Names listed in an error before "and N more".
NUM_LISTED = 20
DUMMY_STD = 0.02
DRAWING = (1 << 22) - 3  # numbers that large dummy parameters are made of; a prime
_DRAWN_ONE_BY_ONE = 1 << 20  # elements of a dummy parameter
# Work is handed to threads in pieces of about this many bytes: large enough to make opening a file again cheap.
PIECE_BYTES = 64 << 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What was read. ignored: (tensor name, reason) of what the model's rules leave out. kv_scales: of cached keys and
    values, if a reader asked for them."""

    num_files: int
    num_tensors: int
    num_bytes: int
    seconds: float
    ignored: tuple[tuple[str, str], ...] = ()
    kv_scales: KvScales = field(default_factory=KvScales)


@dataclass(frozen=True, slots=True)
class _Job:
    """One checkpoint tensor to read."""

    file: Path
    name: str
    module: WeightModule
    address: Address
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor as its file's header states it."""

    file: Path
    num_bytes: int


def load_weights(
    model: nn.Module,
    rules: WeightRules,
    folder: Path,
    *,
    threads: int = 4,
    progress: Progress | None = None,
    kv_scales: KvScaleReader | None = None,
) -> LoadReport:
    """Fill `model` from `folder`'s model.safetensors, or from the files that model.safetensors.index.json names.

    Names are settled before any data is read: missing and unexpected tensors are listed in one WeightError. Every
    other fault (file missing or truncated, wrong shape or dtype) is a WeightError naming file and tensor.
    progress(done_bytes, total_bytes) is called from loading threads, one at a time, first with done_bytes = 0.
    kv_scales: takes the scales of cached keys and values out of the files.
    """
    started = time.perf_counter()
    files = _weight_files(folder)
    entries = _read_headers(folder, files)
    table = RuleTable(rules)
    scales = {
        name: entries.pop(name).file
        for name in list(entries)
        if kv_scales is not None and kv_scales.place(name) is not None and table.ignored(name) is None
    }
    jobs, ignored = _assign(model, table, entries, folder)
    total = sum(job.num_bytes for job in jobs)
    _read(jobs, threads, _Counter(total, progress))
    _finish(model, folder)
    found = KvScales()
    if kv_scales is not None:
        found = kv_scales.read((file, name, _open(file).get_tensor(name)) for name, file in scales.items())
    return LoadReport(len(files), len(jobs), total, time.perf_counter() - started, ignored, found)


def dummy_weights(model: nn.Module, seed: int) -> None:
    """Random weights instead of a checkpoint: normal with standard deviation 0.02, norms 1. A parameter's numbers
    depend on `seed` and its name alone, on every device.

    Small ones are drawn one by one on the host. Large ones are cut out of one drawing, laid end to end from a place
    that the name decides: billions of numbers take as long as copying them. Its length is prime, so that rows of a
    matrix do not repeat.
    """
    seen: set[int] = set()
    drawing: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}
    for path, module in _weight_modules(model):
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:  # tied: the first name counts
                continue
            seen.add(id(parameter))
            if isinstance(module, RmsNorm):
                parameter.data.fill_(1.0)
                continue
            digest = hashlib.sha256(f"{seed}:{path}.{name}".encode()).digest()
            number = int.from_bytes(digest[:8], "little") >> 1
            if parameter.numel() <= _DRAWN_ONE_BY_ONE:
                parameter.data.copy_(_random_numbers(parameter.shape, parameter.dtype, number))
                continue
            kind = parameter.dtype, parameter.device
            if kind not in drawing:
                drawing[kind] = _random_numbers((DRAWING,), parameter.dtype, seed).to(parameter.dtype).to(kind[1])
            _tile(parameter.data, drawing[kind], number % DRAWING)
    _finish(model, None)


def _random_numbers(shape: Sequence[int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.empty(tuple(shape)).normal_(0.0, DUMMY_STD, generator=generator)
    return torch.randint(0, 128, tuple(shape), generator=generator)


def _tile(target: torch.Tensor, drawing: torch.Tensor, start: int) -> None:
    """Fill target, of any shape, with `drawing` [N] from `start` on, again and again."""
    flat = target.view(-1) if target.is_contiguous() else torch.empty_like(target).view(-1)
    at = 0
    while at < len(flat):
        piece = drawing[start : start + len(flat) - at]
        flat[at : at + len(piece)].copy_(piece)
        at, start = at + len(piece), 0
    if not target.is_contiguous():
        target.copy_(flat.view(target.shape))


def _weight_modules(model: nn.Module) -> Iterator[tuple[str, WeightModule]]:
    for path, module in model.named_modules():
        if isinstance(module, WeightModule):
            yield path, module


def _finish(model: nn.Module, folder: Path | None) -> None:
    for path, module in _weight_modules(model):
        try:
            module.finish()
        except WeightError as error:
            where = f"{folder}: " if folder else ""
            raise WeightError(f"{where}{path}: {error.message}", hint=error.hint) from error


def _weight_files(folder: Path) -> dict[Path, list[str] | None]:
    """Files to read, each with the tensors that the index says it holds (None: there is no index)."""
    index = folder / INDEX_FILE
    if not index.is_file():
        single = folder / SINGLE_FILE
        if not single.is_file():
            other = (
                sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".safetensors"))
                if folder.is_dir()
                else []
            )
            found = f"; found {', '.join(other[:5])}" if other else ""
            raise WeightError(
                f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}{found}",
                hint="convert the checkpoint to safetensors, or use --load-format dummy for random weights",
            )
        return {single: None}
    try:
        content = msgspec.json.decode(index.read_bytes())
        weight_map = content["weight_map"]
        pairs = [(str(name), str(file)) for name, file in weight_map.items()]
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
        raise WeightError(f"{index}: not a weight index: {error!r}", hint="download the file again") from error
    files: dict[Path, list[str] | None] = {}
    for name, file in pairs:
        if Path(file).name != file:
            raise WeightError(f"{index}: tensor {name} is in {file!r}, which is not a file name in the same folder")
        names = files.setdefault(folder / file, [])
        assert names is not None
        names.append(name)
    if missing := sorted(path.name for path in files if not path.is_file()):
        raise WeightError(
            f"{folder}: {len(missing)} of {len(files)} weight files are missing: {_listed(missing)}",
            hint="download the checkpoint again",
        )
    return files


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(file), framework="pt", device="cpu").__enter__()
    except (SafetensorError, OSError) as error:
        raise WeightError(
            f"{file}: truncated or not a safetensors file ({error})", hint="download the file again"
        ) from error


_BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}


def _num_bytes(shape: Sequence[int], dtype: str) -> int:
    digits = "".join(c for c in dtype if c.isdigit())
    bits = _BITS.get(dtype) or int(digits or 8)
    count = 1
    for size in shape:
        count *= size
    return count * bits // 8


def _read_headers(folder: Path, files: dict[Path, list[str] | None]) -> dict[str, _Entry]:
    """Every tensor of every file, by name."""
    entries: dict[str, _Entry] = {}
    for file, indexed in files.items():
        handle = _open(file)
        names = list(handle.keys())
        if absent := sorted(set(indexed or ()) - set(names)):
            raise WeightError(
                f"{file}: {len(absent)} tensors that {INDEX_FILE} places here are not in the file: {_listed(absent)}",
                hint="download the checkpoint again",
            )
        for name in names:
            if name in entries:
                raise WeightError(f"{file}: tensor {name} is also in {entries[name].file.name}")
            view = handle.get_slice(name)
            entries[name] = _Entry(file, _num_bytes(view.get_shape(), view.get_dtype()))
    return entries


def _assign(
    model: nn.Module, table: RuleTable, entries: dict[str, _Entry], folder: Path
) -> tuple[list[_Job], tuple[tuple[str, str], ...]]:
    """Jobs for the tensors that are wanted. Raises WeightError on missing, unexpected and doubly given ones."""
    modules = dict(_weight_modules(model))
    wanted: dict[str, set[Slot]] = {path: module.expected() for path, module in modules.items()}
    filled: dict[tuple[str, Slot], str] = {}
    jobs: list[_Job] = []
    ignored: list[tuple[str, str]] = []
    unexpected: list[str] = []
    for name, entry in entries.items():
        if (reason := table.ignored(name)) is not None:
            ignored.append((name, reason))
            continue
        address = table.address(name)
        module = modules.get(address.target) if address is not None else None
        if address is None or module is None:
            unexpected.append(name)
            continue
        slots = module.covers(address.suffix, address.part, _number(address.expert))
        if not slots <= wanted[address.target]:
            unexpected.append(name)
            continue
        for slot in slots:
            other = filled.setdefault((address.target, slot), name)
            if other != name:
                raise WeightError(f"{folder}: {name} and {other} both give {address.target} its {slot[0]}")
        jobs.append(_Job(entry.file, name, module, address, entry.num_bytes))
    missing = [
        table.name(path, suffix, part, None if expert == NO_EXPERT else expert)
        for path, slots in wanted.items()
        for suffix, part, expert in sorted(slots)
        if (path, (suffix, part, expert)) not in filled
    ]
    missing = list(dict.fromkeys(missing))  # one tensor may be what several slots wait for
    if missing or unexpected:
        problems = []
        if missing:
            problems.append(f"{len(missing)} tensors are missing: {_listed(missing)}")
        if unexpected:
            problems.append(f"{len(unexpected)} tensors are unexpected: {_listed(sorted(unexpected))}")
        raise WeightError(
            f"{folder}: {'; '.join(problems)}", hint="config.json and the weight files are of different models"
        )
    return jobs, tuple(ignored)


def _number(expert: int | None) -> int:
    return NO_EXPERT if expert is None else expert


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(names[:NUM_LISTED])
    return text if len(names) <= NUM_LISTED else f"{text} and {len(names) - NUM_LISTED} more"


class _Counter:
    """Bytes done, reported one caller at a time."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total = total
        self.done = 0
        self.progress = progress
        self.lock = threading.Lock()
        self.add(0)

    def add(self, num_bytes: int) -> None:
        if self.progress is None:
            return
        with self.lock:
            self.done += num_bytes
            self.progress(self.done, self.total)


def _pieces(jobs: Sequence[_Job]) -> list[list[_Job]]:
    """Jobs of one file, cut into pieces of about PIECE_BYTES, in file order (readahead likes it)."""
    pieces: list[list[_Job]] = []
    size = 0
    for job in jobs:
        if not pieces or pieces[-1][0].file != job.file or size + job.num_bytes > PIECE_BYTES:
            pieces.append([])
            size = 0
        pieces[-1].append(job)
        size += job.num_bytes
    return pieces


def _read(jobs: Sequence[_Job], threads: int, counter: _Counter) -> None:
    pieces = _pieces(jobs)
    if threads <= 1 or len(pieces) <= 1:
        for piece in pieces:
            _read_piece(piece, counter)
        return
    with ThreadPoolExecutor(min(threads, len(pieces)), thread_name_prefix="load-weights") as pool:
        futures = [pool.submit(_read_piece, piece, counter) for piece in pieces]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failed = next((future for future in done if future.exception() is not None), None)
        if failed is not None:
            pool.shutdown(wait=True, cancel_futures=True)
            failed.result()


def _read_piece(piece: Sequence[_Job], counter: _Counter) -> None:
    """The file is memory-mapped: a tensor's bytes are read as they are copied into place."""
    handle = _open(piece[0].file)
    for job in piece:
        where = job.address
        try:
            job.module.load(where.suffix, where.part, handle.get_tensor(job.name), where.expert)
        except WeightError as error:
            raise WeightError(f"{job.file}: tensor {job.name}: {error.message}", hint=error.hint) from error
        except (RuntimeError, ValueError, KeyError) as error:
            raise WeightError(f"{job.file}: tensor {job.name} cannot be read: {error}") from error
        counter.add(job.num_bytes)
