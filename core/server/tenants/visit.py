"""Visit: one HTTP request, as its tenant's limits see it.

It lives exactly as long as the request: whatever becomes of the answer, its end gives back what it held. Routes do
not carry it around; it is in the context of the task that serves the request, so that no route, a plugin's neither,
can forget it and get past the limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import msgspec

from core.engine.client import EngineRequest
from core.interfaces.errors import RequestError
from core.server.tenants.limits import TokenBucket
from core.server.tenants.table import Tenant

current_visit: ContextVar[Visit | None] = ContextVar("current_visit", default=None)
TIMEOUT_HEADER = "x-request-timeout"


def default_priority() -> int:
    """Of requests that name none."""
    visit = current_visit.get()
    return visit.tenant.entry.priority if visit is not None and visit.tenant is not None else 0


class Visit:
    """tenant: whose request it is; None: keys are not asked for. timeout: the header's text, if there is one."""

    def __init__(self, tenant: Tenant | None, timeout: str | None = None) -> None:
        self.tenant = tenant
        self._timeout = timeout
        self._admitted = False
        self._holders = 1
        self._retry_after_s: float | None = None
        self._prompts: dict[int, Any] = {}  # by id(), kept alive so that ids stay theirs
        self._reserved: dict[int, int] = {}

    def check_model(self, name: str) -> None:
        """Raises RequestError (403) if the key is not for this model."""
        models = self.tenant.entry.models if self.tenant is not None else None
        if models is not None and name not in models:
            raise RequestError(
                f"this key is not for the model {name!r}", param="model", code="model_not_allowed", status=403
            )

    def take(self, request: EngineRequest) -> None:
        """Count an engine request and write into it whose it is. Raises RequestError (429) over a limit, (400) for
        what the key does not allow; then nothing is held."""
        if self._timeout is not None:
            _shorten(request, _seconds(self._timeout))
        tenant = self.tenant
        if tenant is None:
            return
        self._allow(tenant, request)
        num_prompt = 0 if id(request.prompt) in self._prompts else len(request.prompt)
        self._admit(tenant, num_prompt)
        self._prompts[id(request.prompt)] = request.prompt
        if num_prompt:
            self._reserved[id(request.prompt)] = num_prompt
        request.tenant, request.weight = tenant.name, tenant.entry.weight
        request.namespace = replace(request.namespace, salt=tenant.salt(request.namespace.salt))

    def began(self, request: EngineRequest, cached_tokens: int) -> None:
        """The first token is there: what its prompt took is spent."""
        num_prompt = self._reserved.pop(id(request.prompt), 0)
        if self.tenant is not None and num_prompt:
            self.tenant.num_tokens["prompt"] += num_prompt
            self.tenant.num_tokens["cached"] += cached_tokens

    def generated(self, num_tokens: int) -> None:
        """Tokens of an answer."""
        if self.tenant is not None and num_tokens:
            self.tenant.num_tokens["generation"] += num_tokens
            if self.tenant.tokens is not None:
                self.tenant.tokens.take(num_tokens)

    def hold(self) -> None:
        """The work goes on behind the HTTP request: another `end` is due."""
        self._holders += 1

    def end(self) -> None:
        """The HTTP request is over, or what went on behind it."""
        self._holders -= 1
        tenant = self.tenant
        if tenant is None or self._holders:
            return
        if self._admitted:
            self._admitted = False
            tenant.concurrent -= 1
        if tenant.tokens is not None and self._reserved:
            tenant.tokens.give_back(sum(self._reserved.values()))  # of prompts that nobody computed
        self._reserved = {}

    def headers(self) -> Mapping[str, str]:
        """For the response: limits and what is left of them, under the names that OpenAI uses."""
        found: dict[str, str] = {}
        if self._retry_after_s is not None:
            found["retry-after"] = str(max(1, math.ceil(self._retry_after_s)))
        if self.tenant is not None and (self._admitted or self._retry_after_s is not None):
            for what, bucket in (("requests", self.tenant.requests), ("tokens", self.tenant.tokens)):
                if bucket is not None:
                    found |= _headers(what, bucket)
        return found

    def _allow(self, tenant: Tenant, request: EngineRequest) -> None:
        entry = tenant.entry
        low, high = entry.priorities
        if request.priority == 0 and not low <= 0 <= high:
            request.priority = entry.priority
        if not low <= request.priority <= high:
            raise RequestError(
                f"priority is {request.priority}; this key allows {low} to {high}",
                param="priority",
                code="priority_not_allowed",
            )
        limit, sampling = entry.max_tokens, request.sampling
        if (
            limit is not None
            and request.pooling is None
            and (sampling.max_tokens is None or sampling.max_tokens > limit)
        ):
            # Cut, not refused: where a request names none, what stands here is a route's default.
            request.sampling = msgspec.structs.replace(
                sampling, max_tokens=limit, min_tokens=min(sampling.min_tokens, limit)
            )

    def _admit(self, tenant: Tenant, num_prompt: int) -> None:
        """Requests and concurrency once a visit, tokens for each prompt. All checks come first, then all counting."""
        entry = tenant.entry
        if not self._admitted:
            if entry.max_concurrent is not None and tenant.concurrent >= entry.max_concurrent:
                raise self._over(tenant, "concurrency", f"{entry.max_concurrent} requests at a time", 1.0)
            if tenant.requests is not None and (wait_s := tenant.requests.wait_s(min(1, tenant.requests.per_minute))):
                raise self._over(tenant, "requests", f"{entry.requests_per_minute:g} requests per minute", wait_s)
        if tenant.tokens is not None and num_prompt:
            wait_s = tenant.tokens.wait_s(num_prompt)
            if math.isinf(wait_s):
                raise RequestError(
                    f"the prompt has {num_prompt} tokens; this key allows {entry.tokens_per_minute:g} per minute",
                    code="request_too_large",
                    hint="send a shorter prompt",
                )
            if wait_s:
                raise self._over(tenant, "tokens", f"{entry.tokens_per_minute:g} tokens per minute", wait_s)
            tenant.tokens.take(num_prompt)
        if not self._admitted:
            self._admitted = True
            tenant.concurrent += 1
            tenant.admitted += 1
            if tenant.requests is not None:
                tenant.requests.take(1)

    def _over(self, tenant: Tenant, limit: str, allowed: str, wait_s: float) -> RequestError:
        tenant.refused[limit] += 1
        self._retry_after_s = wait_s
        return RequestError(
            f"rate limit: this key allows {allowed}",
            code="rate_limit_exceeded",
            status=429,
            hint=f"retry after {max(1, math.ceil(wait_s))} s",
        )


def _headers(what: str, bucket: TokenBucket) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": f"{bucket.per_minute:g}" if bucket.per_minute < 1 else str(int(bucket.per_minute)),
        f"x-ratelimit-remaining-{what}": str(max(0, math.floor(bucket.level))),
        f"x-ratelimit-reset-{what}": f"{bucket.reset_s:.3f}s",
    }


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise RequestError(f"the header {TIMEOUT_HEADER} is {text!r}; it must be seconds above 0", param=TIMEOUT_HEADER)
    return seconds


def _shorten(request: EngineRequest, timeout_s: float) -> None:
    """A request has the shortest of its times."""
    request.timeout_s = timeout_s if request.timeout_s is None else min(request.timeout_s, timeout_s)
