"""Checkpoint tensor names to module slots and back, compiled once from a model's ModuleRules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from core.interfaces.model import ModuleRule, WeightRules

# "weight.quant_state.format" is the longest that formats in use write.
MAX_SUFFIX_SEGMENTS = 4
HEADS = ("lm_head", "score")  # what core's decoder calls them
_PREFIX = "model."  # of a decoder inside a model with a head
_PLACEHOLDER = re.compile(r"\\{(layer|expert)\\}")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a checkpoint tensor goes: module path in the model, suffix, part ("" if none), expert or None."""

    target: str
    suffix: str
    part: str
    expert: int | None


@dataclass(frozen=True, slots=True)
class _CompiledRule:
    rule: ModuleRule
    source: re.Pattern[str]
    target: re.Pattern[str]
    expert_in_target: bool


def _pattern(template: str) -> re.Pattern[str]:
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>[0-9]+)"

    return re.compile(_PLACEHOLDER.sub(group, re.escape(template)))


def _fill(template: str, numbers: dict[str, str]) -> str:
    for name, number in numbers.items():
        template = template.replace(f"{{{name}}}", number)
    return template


def _last_segment(path: str) -> str:
    return path.rpartition(".")[2]


def without_head(rules: WeightRules) -> WeightRules:
    """The rules of the same architecture built without its head, for vectors alone. Checkpoints of that use may leave
    "model." out of their names, and may still have the head."""
    kept = tuple(rule for rule in rules.rules if rule.target not in HEADS)
    bare = tuple(
        replace(rule, source=rule.source.removeprefix(_PREFIX)) for rule in kept if rule.source.startswith(_PREFIX)
    )
    left = [rule for rule in rules.rules if rule.target in HEADS]
    ignored = {rf"{re.escape(rule.source)}\..*": "the model is built for vectors, without a head" for rule in left}
    return WeightRules((*kept, *bare), {**rules.ignored, **ignored})


def leaving_out(rules: WeightRules, ignored: Mapping[str, str]) -> WeightRules:
    """The rules with more tensors to leave out, those that a quantization method names."""
    return WeightRules(rules.rules, {**rules.ignored, **ignored}) if ignored else rules


class RuleTable:
    """Compiled rules. The first rule that matches a name takes it."""

    def __init__(self, rules: WeightRules) -> None:
        self._ignored = [(re.compile(pattern), reason) for pattern, reason in rules.ignored.items()]
        # Indexed by the last literal segment, so that tens of thousands of names try one or two patterns each.
        self._by_segment: dict[str, list[_CompiledRule]] = {}
        self._open: list[_CompiledRule] = []
        self._all: list[_CompiledRule] = []
        for rule in rules.rules:
            compiled = _CompiledRule(rule, _pattern(rule.source), _pattern(rule.target), "{expert}" in rule.target)
            last = _last_segment(rule.source)
            place = self._open if "{" in last else self._by_segment.setdefault(last, [])
            place.append(compiled)
            self._all.append(compiled)

    def ignored(self, name: str) -> str | None:
        """Why a checkpoint tensor is left out, or None if it is not."""
        return next((reason for pattern, reason in self._ignored if pattern.fullmatch(name)), None)

    def address(self, name: str) -> Address | None:
        """Where the checkpoint tensor `name` goes, or None if no rule takes it."""
        # A suffix is most often the last segment; formats add longer ones ("weight.absmax"). The shortest that
        # leaves a known module is meant.
        module, suffix = name, ""
        for _ in range(MAX_SUFFIX_SEGMENTS):
            module, _, segment = module.rpartition(".")
            if not module:
                break
            suffix = f"{segment}.{suffix}" if suffix else segment
            if (address := self._address(module, suffix)) is not None:
                return address
        return None

    def _address(self, module: str, suffix: str) -> Address | None:
        for compiled in (*self._by_segment.get(_last_segment(module), ()), *self._open):
            match = compiled.source.fullmatch(module)
            if match is None:
                continue
            numbers = match.groupdict()
            expert = None
            if "expert" in numbers and not compiled.expert_in_target:
                expert = int(numbers["expert"])
            rule = compiled.rule
            return Address(_fill(rule.target, numbers), suffix, rule.part or "", expert)
        return None

    def sources(self, target: str) -> tuple[str, ...]:
        """The checkpoint modules that fill the model's module `target`, in the rules' order; "{expert}" stands where
        each expert is a module of its own. `target` itself if no rule names it."""
        found = []
        for compiled in self._all:
            match = compiled.target.fullmatch(target)
            if match is not None:
                found.append(_fill(compiled.rule.source, match.groupdict()))
        return tuple(found) or (target,)

    def name(self, target: str, suffix: str, part: str, expert: int | None) -> str:
        """The checkpoint name that would fill a slot, for error texts."""
        # A rule without a part gives one tensor for all parts of a fused module.
        for wanted in dict.fromkeys((part, "")):
            for compiled in self._all:
                rule = compiled.rule
                if (rule.part or "") != wanted:
                    continue
                match = compiled.target.fullmatch(target)
                if match is None:
                    continue
                numbers = match.groupdict()
                if expert is not None:
                    if "{expert}" not in rule.source:
                        continue
                    numbers["expert"] = str(expert)
                source = _fill(rule.source, numbers)
                if "{" not in source:
                    return f"{source}.{suffix}"
        return f"(no rule) {target}.{suffix}" + (f" [{part}]" if part else "")
