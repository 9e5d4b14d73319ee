"""PromptSharing: requests that arrive together with one prompt compute it once.

The prefix cache knows a prompt once its prefill is complete. Until then a request that would gain much from it
waits for the one that computes it, its leader. Waiting is bounded: a request waits for one leader only, and a
leader is always running.
"""

from __future__ import annotations

from core.scheduler.request import Request

MAX_HELD = 64  # how many may be looked at and held in one step


class PromptSharing:
    """Leaders by namespace and first page; one leader each."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._leaders: dict[tuple[bytes, bytes], Request] = {}

    def __len__(self) -> int:
        return len(self._leaders)

    def _key(self, request: Request) -> tuple[bytes, bytes]:
        return request.namespace, request.tokens[: self._page_size].tobytes()

    def leader(self, request: Request) -> Request | None:
        """Who computes the beginning of this request's prompt now, if it may wait for them."""
        leader = self._leaders.get(self._key(request))
        if leader is None or request.leader_id not in (None, leader.id):
            return None
        return leader

    def gain(self, request: Request, leader: Request) -> int:
        """Tokens that the cache will hold for `request` once `leader` has computed its prompt."""
        limit = min(len(leader.tokens), len(request.tokens) - 1)
        if limit <= 0:
            return 0
        differ = leader.tokens[:limit] != request.tokens[:limit]
        common = int(differ.argmax())
        if not differ[common]:
            common = limit
        return common // self._page_size * self._page_size

    def started(self, request: Request) -> None:
        """`request` computes its prompt from now on."""
        if len(request.tokens) >= self._page_size:
            self._leaders.setdefault(self._key(request), request)

    def ended(self, request: Request) -> None:
        """Its prompt is computed, or it has left. Harmless if it led nobody."""
        key = self._key(request)
        if self._leaders.get(key) is request:
            del self._leaders[key]
