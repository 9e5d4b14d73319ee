"""Tenants that are apart: none finds out by a cached prefix what another has asked."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_fakes import VOCAB, Bench

from core.config.sections import ServerSettings
from core.interfaces.prefix_cache import Namespace
from core.server.tenants.keys import KeyEntry
from core.server.tenants.table import Tenant

PROMPTS = st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=24)


def namespace(tenant: Tenant, salt: str = "") -> bytes:
    return Namespace(salt=tenant.salt(salt)).encode()


def tenant(name: str, isolated: bool = True) -> Tenant:
    return Tenant(KeyEntry(name=name, key=f"key of {name}"), isolated)


def computed(bench: Bench, prompt: list[int], space: bytes) -> tuple[int, int]:
    """(tokens that the device computed, cached tokens) of one more request."""
    before = len(bench.plans)
    request_id = bench.add(prompt, namespace=space, max_tokens=1)
    bench.drain()
    return sum(plan.num_tokens for plan in bench.plans[before:]), bench.cached[request_id]


@settings(max_examples=40, deadline=None)
@given(mine=PROMPTS, other=PROMPTS, salt=st.sampled_from(["", "x"]))
def test_what_a_tenant_costs_does_not_depend_on_another(mine: list[int], other: list[int], salt: str) -> None:
    """The work that the device does for B is the same whatever A asked before: there is nothing to be timed."""
    a, b = tenant("a"), tenant("b")
    alone, beside = Bench(), Bench()
    for prompt in (mine, other, mine + other):
        computed(beside, prompt, namespace(a, salt))
        computed(beside, prompt, namespace(a))
    assert computed(beside, mine, namespace(b, salt)) == computed(alone, mine, namespace(b, salt)) == (len(mine), 0)


def test_its_own_prefixes_are_found_again() -> None:
    a = tenant("a")
    bench = Bench(page_size=4)
    prompt = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert computed(bench, prompt, namespace(a)) == (9, 0)
    assert computed(bench, prompt, namespace(a)) == (1, 8)
    assert computed(bench, prompt, namespace(a, "within")) == (9, 0)  # a namespace of its own below the tenant's


def test_without_isolation_prefixes_are_shared() -> None:
    bench = Bench(page_size=4)
    prompt = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    computed(bench, prompt, namespace(tenant("a", isolated=False)))
    assert computed(bench, prompt, namespace(tenant("b", isolated=False))) == (1, 8)


def test_requests_at_the_same_time_do_not_share_either() -> None:
    """Two that arrive together with one prompt are computed once, unless they are different tenants'."""
    for isolated, expected in ((True, 18), (False, 10)):
        bench = Bench(page_size=4)
        for name in "ab":
            bench.add([1, 2, 3, 4, 5, 6, 1, 2, 3], namespace=namespace(tenant(name, isolated)), max_tokens=1)
        bench.drain()
        assert sum(plan.num_tokens for plan in bench.plans) == expected


def test_the_setting_isolates_every_key(tmp_path: Path) -> None:
    from core.server.tenants.table import TenantTable

    path = tmp_path / "keys.toml"
    path.write_text('[[keys]]\nname = "a"\nkey_sha256 = "' + "0" * 64 + '"\n')
    for isolation, expected in (("off", False), ("key", True)):
        (only,) = TenantTable(ServerSettings(api_keys_file=str(path), cache_isolation=isolation))
        assert only.isolated is expected
