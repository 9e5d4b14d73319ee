"""Contract: what every suite shares. The plugin is found and loaded exactly as core would find and load it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from core.interfaces.context import PluginContext
from core.interfaces.kinds import KINDS
from core.registry.candidates import wrong_hardware
from core.registry.catalog import Catalog
from core.registry.context import plugin_context
from core.registry.records import PluginRecord

if TYPE_CHECKING:
    import torch
    from hypothesis.strategies import SearchStrategy

    from core.interfaces.hardware import HardwareBackend

NOT_CLAIMED = "not claimed: "

# The same keys as `str(torch.dtype)` without "torch.". Errors are relative, see `relative_error`.
DEFAULT_TOLERANCE: Mapping[str, float] = MappingProxyType(
    {"float64": 1e-12, "float32": 2e-5, "bfloat16": 2e-2, "float16": 4e-3}
)


class Contract:
    """Base of all suites. A subclass in a test module, named Test..., says which plugin is tested.

    kind: set by the suite. name: the entry point's name, or "distribution:name".
    settings: the plugin's own section, as `--set NAME.key=value` would fill it.
    tolerance: largest relative error by dtype, see `relative_error`; a subclass may give some of the keys.
    implementation: a class or callable to test that has no entry point yet, and so no manifest to check.

    Options of the pytest plugin that comes with core: `--contract-device NAME` (a hardware plugin; default: the best
    one that this machine has and the plugin runs on) and `--contract-examples N` (N times as many random examples).
    """

    __core_contract__: ClassVar[bool] = True

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""
    settings: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    tolerance: ClassVar[Mapping[str, float]] = DEFAULT_TOLERANCE
    implementation: ClassVar[Any] = None

    # Set by the pytest plugin when tests are collected.
    _device_asked: ClassVar[str | None] = None
    _example_factor: ClassVar[float] = 1.0

    # The plugin

    @classmethod
    def catalog(cls) -> Catalog:
        """Where plugins are looked for: what is installed, plus `implementation` if that is given."""
        if cls.implementation is None:
            return _installed()
        record = PluginRecord(cls.kind, cls.name or "under_test", "not-installed", loaded=cls.implementation)
        return Catalog.from_records([*_installed().of_kind("hardware"), record])

    @classmethod
    def record(cls) -> PluginRecord:
        """The plugin's record. Raises as core would: not installed, clash, no manifest, another API version."""
        assert cls.kind in KINDS, f"{cls.__name__}.kind is {cls.kind!r}; kinds: {', '.join(KINDS)}"
        if cls.implementation is None and not cls.name:
            raise AssertionError(f"{cls.__name__}.name is empty; give the name of your entry point")
        return cls.catalog().record(cls.kind, cls.name or "under_test")

    @classmethod
    def plugin(cls) -> Any:
        """The class or callable that the entry point names, imported and checked as core would."""
        return cls.catalog().load(cls.kind, cls.record().full_name)

    def context(
        self, device: torch.device | None = None, settings: Mapping[str, Any] = MappingProxyType({})
    ) -> PluginContext:
        """What the plugin's factory gets, with `settings` of the class, overlaid by the argument's, validated by the
        plugin's own model."""
        record = self.record()
        return plugin_context(record, {record.full_name: {**self.settings, **settings}}, device=device)

    def test_plugin_is_found_and_loaded_as_core_does(self) -> None:
        """Manifest, API version, requirements, settings and interface."""
        record = self.record()
        target = self.plugin()
        assert callable(target) or inspect.isclass(target), f"{record.title} is {target!r}, not a class or callable"
        assert not inspect.isabstract(target), (
            f"{record.title} lacks {', '.join(sorted(getattr(target, '__abstractmethods__', ())))}"
        )
        self.context()

    # What is claimed

    def require(self, ok: object, what: str) -> None:
        """Skip the test unless the plugin claims `what`. Such skips are listed at the end of the run."""
        if not ok:
            pytest.skip(f"{NOT_CLAIMED}{what}")

    # Devices

    def runs_on(self, hardware: str) -> str:
        """Why the plugin does not run on the hardware plugin of that name, or "". Suites add what capabilities say."""
        return wrong_hardware(self.record(), hardware)

    def hardware(self) -> str:
        """Name of the hardware plugin whose device the tests run on: of those that are available here and that the
        plugin runs on, the one core would take. Override it to test on another."""
        found = _available()
        asked = self._device_asked
        if asked is not None:
            if asked not in found:
                pytest.fail(f"--contract-device {asked}: not available here ({', '.join(found) or 'nothing is'})")
            reason = self.runs_on(asked)
            if reason:
                pytest.skip(f"{NOT_CLAIMED}device {asked} ({reason})")
            return asked
        reasons = {name: self.runs_on(name) for name in found}
        usable = [name for name, reason in reasons.items() if not reason]
        if not usable:
            pytest.skip(f"{NOT_CLAIMED}any device of this machine ({'; '.join(reasons.values())})")
        return usable[0]

    def device(self) -> torch.device:
        """The device of `hardware()`, initialized once in this process."""
        return _initialized(self.hardware())[1]

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """The operations that layers are built with on that device."""
        from core.ops.table import build_ops

        return build_ops(_initialized(self.hardware())[0].ops())

    # Random examples

    def for_all(self, strategy: SearchStrategy[Any], check: Callable[[Any], None], *, examples: int) -> None:
        """Call `check` with values of `strategy` until one fails. A strategy made inside the test can depend on what
        the plugin claims.

        examples: how many with hypothesis' default profile; a larger profile and `--contract-examples` scale it.
        """
        from hypothesis import given

        def run(value: Any) -> None:
            check(value)

        self.example_settings(examples)(given(value=strategy)(run))()

    def example_settings(self, examples: int) -> Any:
        """hypothesis settings for `examples` examples, scaled as in `for_all`; without deadline."""
        from hypothesis import HealthCheck, settings

        factor = self._example_factor * settings().max_examples / 100
        return settings(
            max_examples=max(1, round(examples * factor)),
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
        )

    # Numbers

    def random(
        self, *shape: int, dtype: torch.dtype, device: torch.device | None = None, seed: int = 0, scale: float = 1.0
    ) -> torch.Tensor:
        """Normal values, the same on every device: drawn on the CPU in float32, rounded to `dtype`, then moved."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(device or self.device())

    def tolerance_of(self, dtype: torch.dtype | str) -> float:
        """Largest relative error for results in `dtype`."""
        name = str(dtype).removeprefix("torch.")
        return {**DEFAULT_TOLERANCE, **self.tolerance}[name]

    def assert_close(
        self,
        got: torch.Tensor,
        want: torch.Tensor,
        dtype: torch.dtype | str,
        what: str = "result",
        *,
        extra: float = 0.0,
        sizes: torch.Tensor | None = None,
    ) -> None:
        """`got` equals the float64 `want` within the tolerance of `dtype` plus `extra`; shapes equal, all finite.

        sizes [rows]: the usual norm of each row, where results may cancel out.
        """
        assert got.shape == want.shape, f"{what} has shape {tuple(got.shape)}, not {tuple(want.shape)}"
        if not got.numel():
            return
        error = relative_error(got, want, sizes)
        limit = self.tolerance_of(dtype) + extra
        assert error <= limit, (
            f"{what} is off by {error:.3g} (relative, worst row), tolerance of {dtype} is {limit:.3g}"
        )


def relative_error(got: torch.Tensor, want: torch.Tensor, sizes: torch.Tensor | None = None) -> float:
    """Largest over the rows (first dimension) of |got - want| / |want|, Euclidean; rows much smaller than the others
    count as a tenth of the mean row, since their rounding is that of what they were summed from. inf if `got` is not
    finite."""
    import torch

    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    if not bool(torch.isfinite(got).all()):
        return float("inf")
    rows = got.shape[0] if got.dim() > 1 else 1
    off = (got - want).reshape(rows, -1).norm(dim=1)
    size = want.reshape(rows, -1).norm(dim=1)
    size = size.clamp_min(max(0.1 * float(size.mean()), 1e-30))
    if sizes is not None:
        size = torch.maximum(size, sizes.detach().double().cpu())
    return float((off / size).max())


@functools.cache
def _installed() -> Catalog:
    """Every installed plugin; one scan a process, as in core."""
    return Catalog.scan()


@functools.cache
def _available() -> dict[str, type[HardwareBackend]]:
    """Hardware plugins whose device this machine has, best first, by name."""
    catalog = _installed()
    found: dict[str, tuple[int, type[HardwareBackend]]] = {}
    for record in catalog.of_kind("hardware"):
        if record.state != "available" or catalog.clashes(record):
            continue
        backend = catalog.load("hardware", record.full_name)
        probe = backend.probe()
        if probe.available:
            found[record.name] = (probe.priority, backend)
    return {name: found[name][1] for name in sorted(found, key=lambda name: -found[name][0])}


@functools.cache
def _initialized(hardware: str) -> tuple[HardwareBackend, torch.device]:
    import torch

    backend_class = _available()[hardware]
    record = _installed().record("hardware", hardware)
    # Tests share the machine with others: a device that computes on host threads keeps the number it finds.
    section = {"threads": torch.get_num_threads()} if backend_class.capabilities.threads else {}
    backend = backend_class(plugin_context(record, {record.full_name: section}))
    return backend, backend.initialize(0)
