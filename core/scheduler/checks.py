"""What a request must be to run at some time, however long it waits."""

from __future__ import annotations

from core.interfaces.errors import RequestError
from core.memory.manager import MemoryManager
from core.scheduler.facts import ModelFacts
from core.scheduler.request import Request


def check_request(request: Request, facts: ModelFacts, memory: MemoryManager) -> None:
    """Raises RequestError if it can never run."""
    length = request.num_prompt
    limit = facts.context_length + (request.pooling is not None)  # a vector needs no room for a token
    if not length:
        raise RequestError("the prompt has 0 tokens", param="prompt", hint="send at least one token")
    if length >= limit:
        raise RequestError(
            f"the prompt has {length} tokens; the context length is {facts.context_length}"
            f"{'' if request.pooling is not None else ' and must hold one more'}",
            param="prompt",
            code="context_length_exceeded",
            hint=f"send at most {limit - 1} tokens",
        )
    if not -(2**31) <= request.priority < 2**31:
        raise RequestError(f"priority is {request.priority}; it must be a 32-bit integer", param="priority")
    need = memory.num_pages_for(length + (request.pooling is None))
    if need > memory.capacity:
        raise RequestError(
            f"the prompt has {length} tokens and needs {need} KV cache pages of {facts.page_size} tokens; "
            f"there are {memory.capacity}",
            param="prompt",
            code="context_length_exceeded",
            hint=f"send at most {memory.capacity * facts.page_size - 1} tokens, or enlarge the KV cache",
        )
