"""References of the operations that turn logits into tokens: noise, filters, penalties, log-probabilities.

Noise is a hash of (seed, position, token id). The Gumbel-max trick: arg max over tokens of `logit / temperature + g`,
with independent Gumbel noise g, draws from the softmax. Making g a hash instead of a random stream has three effects:
the draw does not depend on the batch or on the row; it does not depend on which candidates survived the filters (a
token keeps its noise); and a position can be drawn again, for replay or speculative verification. An implementation
for a device has to compute the same bits: a seed must give the same text wherever it runs.

The token hash is the 32-bit finaliser of MurmurHash3 (Appleby, public domain), with the second key word put in between
its two multiplications so that all 64 bits of the key count. Integer arithmetic wraps in two's complement, so CPUs and
GPUs give equal bits; the two logarithms that follow may differ in the last place.

Each filter (top-k, top-p, min-p) keeps the tokens whose scaled logit is at least some value, so together they keep
those at or above the largest of the three. Tokens equal to the threshold are kept, all of them: which of two equal
logits survives must not depend on how a sort happened to order them, or the text would depend on the batch.
"""

from __future__ import annotations

import torch

_NEG_INF = float("-inf")
_MAX_CANDIDATES = 1024  # a larger top_k ranks the whole vocabulary
_CANDIDATE_MARGIN = 64  # room for ties at the k-th logit, common in bfloat16


def _signed32(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value


_GOLDEN32 = _signed32(0x9E3779B1)  # odd, close to 2^32 divided by the golden ratio: spreads consecutive ids
_MURMUR_A = _signed32(0x85EBCA6B)
_MURMUR_B = _signed32(0xC2B2AE35)
# 31 hash bits to (0, 1): v = bits * _SCALE + _HALF. Small v keep their full resolution down to 2^-33; the largest,
# after rounding to float32, is 1 - 2^-23, so log1p(-v) is finite at both ends.
_SCALE = (1.0 - 2.0**-23) * 2.0**-31
_HALF = 2.0**-33


def spread_ids(token_ids: torch.Tensor) -> torch.Tensor:
    """First stage of the hash, which depends on the token only: int32 of the same shape, `id * 0x9E3779B1`. For a
    whole vocabulary it is computed once and kept."""
    return token_ids.to(torch.int32) * _GOLDEN32


def hash_tokens(spread: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """32 hash bits for each (row, token). spread [V] or [R, K] int32, keys [R, 2] int32; returns [R, V or K] int32."""
    h = spread + keys[:, :1]
    h ^= (h >> 16).bitwise_and_(0xFFFF)  # the shift of a signed word fills with its sign: mask it away
    h *= _MURMUR_A
    h ^= keys[:, 1:]
    h ^= (h >> 13).bitwise_and_(0x7FFFF)
    h *= _MURMUR_B
    h ^= (h >> 16).bitwise_and_(0xFFFF)
    return h


def log_exponential(spread: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """log(E) with E exponentially distributed: the negative of Gumbel noise. Float32 in about [-22.9, 2.8]; shapes
    as in `hash_tokens`."""
    bits = (hash_tokens(spread, keys) >> 1).bitwise_and_(0x7FFFFFFF)
    v = bits.to(torch.float32).mul_(_SCALE).add_(_HALF)
    return v.neg_().log1p_().neg_().log_()


def best_token(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely token of each row: logits [S, V] of any float type -> (its logit [S], its id [S] int64).

    The logit is NaN if the row has a NaN anywhere, so a row is usable exactly if it is finite. Of equal logits one of
    them is taken, which one is not defined.
    """
    best, tokens = logits.max(dim=-1)
    return best, tokens


def gumbel_argmax(scaled: torch.Tensor, spread: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """One draw from the softmax of each row: arg max of scaled - log_exponential(spread, keys).

    scaled [R, K] float32, logits over temperature, -inf where filtered out (may be used up); spread [K] or [R, K]
    int32, `spread_ids` of the columns' token ids; keys [R, 2] int32, the row's key words. Returns columns [R] int64.
    """
    losses = log_exponential(spread, keys)
    return torch.sub(scaled, losses, out=losses).max(dim=-1)[1]


def sampling_threshold(
    scaled: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    *,
    max_k: int,
    any_without_k: bool,
    any_top_p: bool,
) -> torch.Tensor:
    """The smallest scaled logit that each row keeps: every token at or above it, ties included, stays in the draw.

    scaled [R, V] float32, logits over temperature. top_k [R] int64, 0 is off. top_p [R] float64, 1 is off: the smallest
    set of most likely tokens, among those top-k left, whose share reaches top_p. min_p [R] float32, 0 is off: at least
    min_p times the likelihood of the most likely token. Returns [R] float32.

    Known on the host: max_k, the largest of top_k; any_without_k, whether some top_k is 0; any_top_p, whether some
    top_p is below 1. Reads nothing back to the host.
    """
    vocab_size = scaled.shape[1]
    needs_all = any_top_p and any_without_k
    whole = needs_all or max_k > _MAX_CANDIDATES
    width = vocab_size if whole else min(vocab_size, _MAX_CANDIDATES + _CANDIDATE_MARGIN)
    ranked = rank(scaled, width)[0]
    total = row_mass(scaled, ranked[:, :1]) if needs_all else None
    return ranked_threshold(ranked, top_k, top_p, min_p, total, any_top_p)


def rank(scaled: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `width` largest of each row of [R, V], descending, and their ids: both [R, width]."""
    values, ids = scaled.sort(dim=-1, descending=True) if width == scaled.shape[1] else scaled.topk(width, dim=-1)
    return values, ids


def row_mass(scaled: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """Sum of exp(x - max) of whole rows. scaled [R, V] float32, best [R, 1]; returns [R] float64."""
    return (scaled - best).exp_().sum(1, dtype=torch.float64)


def ranked_threshold(
    ranked: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    total: torch.Tensor | None,
    any_top_p: bool,
) -> torch.Tensor:
    """`sampling_threshold` from the largest logits alone.

    ranked [R, K] float32: the K largest scaled logits of each row, descending; K covers every top_k.
    total [R] float64: sum of exp(x - max) over the row, used by rows without top_k; None if K is the vocabulary or
    no row needs it. If a row's answer equals ranked[:, -1] and K is not the whole vocabulary, there may be tokens
    below K that belong to the kept set. top-p follows Holtzman et al. 2019.
    """
    best = ranked[:, :1]
    last = ranked.shape[1] - 1
    kth = ranked.gather(1, (top_k - 1).clamp(0, last)[:, None])
    kth = kth.masked_fill((top_k == 0)[:, None], _NEG_INF)
    result = torch.maximum(kth, best + min_p.log()[:, None])
    if any_top_p:
        weights = (ranked - best).double().exp_().masked_fill_(ranked < kth, 0.0)
        mass = weights.sum(1)
        if total is not None:
            mass = torch.where(top_k == 0, total, mass)
        before = weights.cumsum(1) - weights
        kept = (before < (top_p * mass)[:, None]).sum(1, keepdim=True)
        nucleus = ranked.gather(1, (kept - 1).clamp(0, last))
        result = torch.maximum(result, nucleus.masked_fill((top_p >= 1.0)[:, None], _NEG_INF))
    return result[:, 0]


def penalize(
    logits: torch.Tensor,
    counts: torch.Tensor,
    in_prompt: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> torch.Tensor:
    """Repetition, frequency and presence penalties: logits [B, V] float32 -> [B, V] (may be used up).

    counts [B, V] int32: how often each token was generated; in_prompt [B, V] bool; repetition, frequency and presence
    [B] float32. Repetition (Keskar et al. 2019, CTRL): positive logits of tokens seen in prompt or output are divided
    by the penalty, negative ones multiplied. Frequency and presence (OpenAI): over generated tokens only, minus
    frequency times the count and minus presence once.
    """
    generated = counts > 0
    scale = repetition[:, None]
    repeated = torch.where(logits > 0, logits / scale, logits * scale)
    x = torch.where(generated | in_prompt, repeated, logits)
    x -= frequency[:, None] * counts + presence[:, None] * generated
    return x


def mask_tokens(logits: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Make tokens impossible: logits [M, V] float32 (may be used up), words [M, W] int32 with W * 32 >= V -> [M, V].
    Bit `id % 32` of word `id // 32`, counted from the lowest, is set where the token stays; others become -inf."""
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)
    bits = (words[:, :, None] >> shifts).bitwise_and_(1).flatten(1)[:, : logits.shape[1]]
    return logits.masked_fill_(bits == 0, _NEG_INF)


def token_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Natural log-probabilities: logits [B, V] of any float type, tokens [B] int64 -> (those of the tokens [B] float32,
    ids of the K most likely [B, K] int64, theirs [B, K] float32, descending); K = min(num_top, V), 0 allowed."""
    x = logits.float()
    log_total = torch.logsumexp(x, dim=-1, keepdim=True)
    top, top_ids = torch.topk(x, min(num_top, x.shape[-1]), dim=-1)
    return (x.gather(1, tokens[:, None]) - log_total)[:, 0], top_ids, top - log_total
