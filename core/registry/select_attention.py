"""Choose an attention backend for every cache group, and the page size they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from core.interfaces.attention import AttentionCapabilities
from core.interfaces.capabilities import StatedAttention
from core.interfaces.errors import ConfigError
from core.interfaces.spec import AttentionSpec, CacheGroupSpec, ModelSpec
from core.registry.candidates import Rejected, by_priority, listing, loadable, wrong_hardware
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord
from core.registry.resolution import Choice, Decision

KIND = "attention"


@dataclass(frozen=True, slots=True)
class GroupNeeds:
    """What one cache group asks of a backend. page_size None: still open. invariant: a request's results must not
    depend on the batch. kv_dtype: as `AttentionCapabilities.kv_dtypes` names it."""

    group: CacheGroupSpec
    layers: tuple[AttentionSpec, ...]
    dtype: str
    hardware: str
    page_size: int | None
    invariant: bool = False
    kv_dtype: str = "auto"

    def rejects(self, caps: AttentionCapabilities) -> str:
        """Why a backend with these capabilities cannot serve the group, or ""."""
        kinds = {str(kind) for kind in caps.state_kinds}
        if str(self.group.kind) not in kinds:
            return f"cannot keep state of kind {self.group.kind} (it keeps {', '.join(sorted(kinds))})"
        if caps.hardware is not None and self.hardware not in caps.hardware:
            return f"runs on {', '.join(caps.hardware)}, the device is {self.hardware}"
        if self.dtype not in caps.dtypes:
            return f"cannot compute in {self.dtype} (it can: {', '.join(caps.dtypes)})"
        if self.kv_dtype not in caps.kv_dtypes:
            able = ", ".join(sorted(set(caps.kv_dtypes) - {"auto"}))
            return f"keeps no cache of {self.kv_dtype} (it keeps {able or 'the compute type alone'})"
        if caps.head_dims is not None:
            dims = {dim for layer in self.layers for dim in (layer.head_dim, layer.v_head_dim)}
            bad = sorted(dims - set(caps.head_dims))
            if bad:
                return f"head dimension {bad[0]} is not among {', '.join(map(str, caps.head_dims))}"
        if not caps.softcap and any(layer.softcap is not None for layer in self.layers):
            return "has no logit soft-capping"
        if not caps.sinks and any(layer.has_sinks for layer in self.layers):
            return "has no attention sinks"
        if self.invariant and not caps.batch_invariant:
            return "its results depend on the batch, and deterministic is set"
        if self.page_size is not None and caps.page_sizes is not None and self.page_size not in caps.page_sizes:
            return f"page size {self.page_size} is not among {', '.join(map(str, caps.page_sizes))}"
        return ""


def choose_attention(
    asked: str,
    preferred: Mapping[str, tuple[str, ...]],
    spec: ModelSpec,
    *,
    dtype: str,
    hardware: str,
    page_size: int | None,
    wished_page_size: int,
    wish_reason: str,
    catalog: Catalog,
    invariant: bool = False,
    kv_dtype: str = "auto",
) -> tuple[tuple[Choice, ...], Decision]:
    """One choice a cache group and the page size.

    asked: the operator's backend, or "auto". preferred: who wishes ("the model", ...) -> names, best first; tried
    before any other installed backend. page_size: the operator's, or None; then `wished_page_size` is taken unless
    the first group's best backend accepts only others. invariant: only backends whose results do not depend on the
    batch. kv_dtype: as `AttentionCapabilities.kv_dtypes` names it.
    Raises ConfigError if the operator's backend cannot serve a group, or if none can.
    """
    ordered = _order(asked, preferred, catalog)
    decision = Decision("page size", str(page_size), "asked for") if page_size is not None else None
    choices = []
    for index, group in enumerate(spec.cache_groups):
        layers = tuple(
            layer.attention for layer in spec.layers if layer.cache_group == index and layer.attention is not None
        )
        fixed = int(decision.value) if decision is not None else None
        needs = GroupNeeds(group, layers, dtype, hardware, fixed, invariant, kv_dtype)
        choice = _choose(asked, ordered, needs, catalog)
        choices.append(choice)
        if decision is None:
            decision = _page_size(choice, wished_page_size, wish_reason)
    if decision is None:  # a model without cache groups
        decision = Decision("page size", str(wished_page_size), wish_reason)
    return tuple(choices), decision


def _order(asked: str, preferred: Mapping[str, tuple[str, ...]], catalog: Catalog) -> list[tuple[PluginRecord, str]]:
    """Candidates with why they stand where they stand, each once."""
    if asked != "auto":
        return [(catalog.record(KIND, asked), "asked for")]
    ordered: list[tuple[PluginRecord, str]] = []

    def add(records: Iterable[PluginRecord], reason: str) -> None:
        known = {record.full_name for record, _ in ordered}
        ordered.extend((record, reason) for record in records if record.full_name not in known)

    for who, names in preferred.items():
        for name in names:
            add((record for record in catalog.of_kind(KIND) if record.answers_to(name)), f"preferred by {who}")
    add(by_priority(catalog, KIND), "installed and able")
    return ordered


def _choose(asked: str, ordered: list[tuple[PluginRecord, str]], needs: GroupNeeds, catalog: Catalog) -> Choice:
    rejected: Rejected = []
    if asked != "auto":
        record = ordered[0][0]
        target = catalog.load(KIND, record.full_name)  # selected, so a failure stops here with its cause
        why = (
            wrong_hardware(record, needs.hardware)
            or _manifest_rejects(record, needs)
            or needs.rejects(_capabilities(target))
            or _unavailable(target)
        )
        if why:
            raise ConfigError(
                f"attention_backend is {asked!r}, but it cannot serve cache group {needs.group.name!r}: {why}",
                field="engine.attention_backend",
                value=asked,
                hint="use --attention-backend auto, or change the option named above",
            )
        return Choice(KIND, record.name, record, target, "asked for")
    for record, why_here in ordered:
        why = _manifest_rejects(record, needs)
        if why:
            rejected.append((record.name, why))
            continue
        for _, target in loadable(catalog, [record], needs.hardware, rejected):
            why = needs.rejects(_capabilities(target)) or _unavailable(target)
            if not why:
                return Choice(KIND, record.name, record, target, why_here, tuple(rejected))
            rejected.append((record.name, why))
    raise ConfigError(
        f"no attention backend can serve cache group {needs.group.name!r} ({needs.group.kind}) on {needs.hardware} "
        f"in {needs.dtype}"
        + (f" with a cache of {needs.kv_dtype}" if needs.kv_dtype != "auto" else "")
        + (f" with pages of {needs.page_size} tokens" if needs.page_size is not None else "")
        + f" ({listing(rejected)})",
        field="engine.attention_backend",
        value=asked,
        hint="install an attention plugin that can, or change --dtype, --kv-cache-dtype or --page-size",
    )


def _capabilities(target: Any) -> AttentionCapabilities:
    caps = getattr(target, "capabilities", None)
    return caps if isinstance(caps, AttentionCapabilities) else AttentionCapabilities()


def _unavailable(target: Any) -> str:
    """What the backend says of this machine. Factories that are no subclass of AttentionBackend need not say it."""
    ask = getattr(target, "unavailable", None)
    return (ask() if callable(ask) else None) or ""


def _manifest_rejects(record: PluginRecord, needs: GroupNeeds) -> str:
    """What the manifest alone rules out, so that the plugin need not be imported. Keys it lacks rule out nothing."""
    stated = _stated(record)
    everything = AttentionCapabilities(
        state_kinds=frozenset(type(needs.group.kind)),
        dtypes=(needs.dtype,),
        kv_dtypes=(needs.kv_dtype,),
        softcap=True,
        sinks=True,
        batch_invariant=True,
    )
    changes: dict[str, Any] = {
        key: getattr(stated, key)
        for key in ("page_sizes", "head_dims", "dtypes", "kv_dtypes", "hardware", "softcap", "sinks", "batch_invariant")
        if getattr(stated, key) is not None
    }
    if stated.state_kinds is not None:
        changes["state_kinds"] = frozenset(stated.state_kinds)
    return needs.rejects(replace(everything, **changes))


def _stated(record: PluginRecord) -> StatedAttention:
    return record.stated if isinstance(record.stated, StatedAttention) else StatedAttention()


def _page_size(choice: Choice, wished: int, wish_reason: str) -> Decision:
    sizes = _capabilities(choice.target).page_sizes
    if sizes is None:
        sizes = _stated(choice.record).page_sizes if choice.record is not None else None
    if sizes is None or wished in sizes:
        return Decision("page size", str(wished), wish_reason)
    # The nearest that the backend takes; of two equally near the smaller, which wastes less of a last page.
    nearest = min(sizes, key=lambda size: (abs(size - wished), size))
    return Decision(
        "page size", str(nearest), f"attention backend {choice.name} does not take {wished} ({wish_reason})"
    )
