"""What a generation request asks beside text: log-probabilities, ids and states of the prompt, a shorter prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from core.frontend.chat import Prompt
from core.frontend.output import OutputDelta, PromptLogprob
from core.frontend.tokenizer import Tokenizer
from core.interfaces.errors import RequestError
from core.interfaces.params import SamplingParams
from core.server.context import ModelService
from core.server.schemas import Body


def with_prompt(body: Body, sampling: SamplingParams, prompt_logprobs: int | None, start: int = 0) -> SamplingParams:
    """`sampling`, asking for log-probabilities of the prompt (alternatives each; None: no) and for hidden states."""
    if prompt_logprobs is None and body.hidden_states is None:
        return sampling
    return msgspec.structs.replace(
        sampling,
        prompt_logprobs=prompt_logprobs,
        prompt_logprobs_start=start if prompt_logprobs is not None else 0,
        hidden_states=body.hidden_states,
    )


def all_vocabulary_refused(value: int | None) -> int | None:
    """`prompt_logprobs` as typed: -1 is the whole vocabulary elsewhere. Raises RequestError."""
    if value == -1:
        raise RequestError(
            "prompt_logprobs is -1, the whole vocabulary; that is too much to send",
            param="prompt_logprobs",
            hint="give a number of alternatives",
        )
    return value


def truncated(service: ModelService, body: Body, prompt: Prompt, sampling: SamplingParams) -> Prompt:
    """The last tokens of `prompt`, if the request allows to cut it."""
    keep = body.truncate_prompt_tokens
    if keep is None:
        return prompt
    if keep == -1:
        keep = min(service.hello.max_prompt_tokens, service.hello.context_length - (sampling.max_tokens or 1))
    if keep < 1:
        raise RequestError(
            f"truncate_prompt_tokens leaves {keep} tokens of the prompt", param="truncate_prompt_tokens",
            hint="lower max_tokens, or keep at least one",
        )  # fmt: skip
    if len(prompt.token_ids) <= keep:
        return prompt
    return replace(prompt, text="", token_ids=prompt.token_ids[-keep:])


def client_ids(body: Body, num_prompts: int) -> list[str]:
    """The client's own ids, one per prompt; empty if it gave none. Raises RequestError."""
    given = body.rid if body.rid is not None else body.request_id
    if given is None:
        return []
    ids = [given] if isinstance(given, str) else list(given)
    if len(ids) != num_prompts:
        raise RequestError(f"rid lists {len(ids)} for {num_prompts} prompts", param="rid")
    if not all(ids):
        raise RequestError("rid holds an empty id", param="rid")
    return ids


def prompt_logprobs_of(deltas: Sequence[OutputDelta]) -> list[PromptLogprob]:
    """All there are of one answer's prompt, in order."""
    return [entry for delta in deltas for entry in delta.prompt_logprobs or ()]


def shown_prompt_logprobs(tokenizer: Tokenizer, entries: Sequence[PromptLogprob]) -> list[dict[str, Any] | None]:
    """For each prompt token: id -> {"logprob", "rank", "decoded_token"} of the token itself and the alternatives; None
    for the first, which nothing comes before. rank: 1 is the likeliest; null where it is past the alternatives."""
    shown: list[dict[str, Any] | None] = []
    for entry in entries:
        if entry.logprob is None:
            shown.append(None)
            continue
        ranked: dict[int, tuple[float, int | None]] = {
            token: (value, rank) for rank, (token, value) in enumerate(entry.top, 1)
        }
        ranked.setdefault(entry.token, (entry.logprob, None))
        shown.append(
            {
                str(token): {"logprob": value, "rank": rank, "decoded_token": tokenizer.piece(token)[0]}
                for token, (value, rank) in ranked.items()
            }
        )
    return shown


def hidden_of(deltas: Sequence[OutputDelta]) -> list[list[float]]:
    """All hidden states of one answer, in order of positions."""
    return [row for delta in deltas if delta.hidden is not None for row in delta.hidden.tolist()]
