"""Whether a request can be computed at all."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..protocol import Embed, Submit, TokenRules


def check_request(request: Submit, *, vocab_size: int, max_context: int, capacity: int) -> None:
    """Raises RequestError, naming the field at fault, for a request that no schedule could serve.

    capacity: tokens that the whole KV cache holds.
    """
    length, room = len(request.prompt), max_context - (request.params.max_tokens > 0)
    if not request.prompt:
        raise RequestError("the prompt is empty", param="prompt", hint="give at least one token")
    if length > room:
        raise RequestError(
            f"the prompt has {length} tokens, but the model's context of {max_context} takes prompts of up to {room}",
            param="prompt",
            code="context_length_exceeded",
            hint="shorten the prompt",
        )
    if length > capacity:
        raise RequestError(
            f"the prompt has {length} tokens, but the whole KV cache holds {capacity}",
            param="prompt",
            code="kv_cache_exceeded",
            hint="shorten the prompt, or start the server with more --kv-memory",
        )
    _check_ids("prompt", request.prompt, vocab_size)
    _check_ids("prompt", request.generated, vocab_size)
    rules = request.params.token_rules or TokenRules()
    _check_ids("logit_bias", np.frombuffer(rules.biased, np.int32), vocab_size)
    _check_ids("allowed_token_ids", np.frombuffer(rules.allowed or b"", np.int32), vocab_size)
    if len(rules.biased) != len(rules.bias) or not np.isfinite(np.frombuffer(rules.bias, np.float32)).all():
        raise RequestError("logit_bias has numbers that are not finite", param="logit_bias", hint="-100 forbids a token")
    for word in request.params.bad_words:
        _check_ids("bad_words", word, vocab_size)
        if not word:
            raise RequestError("bad_words has an empty word", param="bad_words", hint="leave it out")
    _check_ids("stop_token_ids", request.params.stop_token_ids, vocab_size)
    _check_ids("logprob_token_ids", request.params.logprob_token_ids, vocab_size)
    _check_sampling(request)


def check_embed(request: Embed, *, vocab_size: int, longest: int, size: int) -> None:
    """Raises RequestError, naming the field at fault, for a text that cannot be computed.

    longest: tokens that the model and the caches take. size: numbers of a vector.
    """
    length = len(request.prompt)
    if not 0 < length <= longest:
        raise RequestError(
            f"the text has {length} tokens, and must have between 1 and {longest}",
            param="input",
            code="context_length_exceeded",
            hint="shorten it, or ask for truncate_prompt_tokens",
        )
    if not 0 <= request.dimensions <= size:
        raise RequestError(f"dimensions is {request.dimensions}, but a vector has {size}", param="dimensions", hint="ask for fewer")
    if not 0 <= request.pair_start < length:
        raise RequestError(f"the second text begins at token {request.pair_start} of {length}", param="input", hint="give two texts")
    _check_ids("input", tuple(request.prompt), vocab_size)


def too_large() -> RequestError:
    """Of a request that does not fit into the memory that the process may have."""
    return RequestError(
        "the request needs more memory than the worker may have", hint="ask for less: a shorter prompt or logit_bias, fewer choices"
    )


def _check_ids(param: str, ids: Sequence[int] | NDArray[np.int32], vocab_size: int) -> None:
    if len(ids) and not 0 <= np.min(ids) <= np.max(ids) < vocab_size:
        bad = next(token for token in ids if not 0 <= token < vocab_size)
        raise RequestError(
            f"{param}: token id {bad} is outside the vocabulary of {vocab_size}",
            param=param,
            hint="use the tokens of this model: POST /tokenize",
        )


def _check_sampling(request: Submit) -> None:
    params = request.params
    # written so that NaN fails every one of them
    wanted = (
        ("max_tokens", params.max_tokens, params.max_tokens >= 0, "0 or more"),
        ("temperature", params.temperature, params.temperature >= 0.0, "0 or more"),
        ("top_k", params.top_k, params.top_k >= 0, "0 (off) or more"),
        ("top_p", params.top_p, 0.0 <= params.top_p <= 1.0, "between 0 and 1"),
        ("min_p", params.min_p, 0.0 <= params.min_p <= 1.0, "between 0 and 1"),
        ("repetition_penalty", params.repetition_penalty, 0.0 < params.repetition_penalty < float("inf"), "above 0"),
        ("presence_penalty", params.presence_penalty, abs(params.presence_penalty) < float("inf"), "a finite number"),
        ("frequency_penalty", params.frequency_penalty, abs(params.frequency_penalty) < float("inf"), "a finite number"),
        ("logprobs", params.logprobs, params.logprobs is None or params.logprobs >= 0, "0 or more"),
        ("prompt_logprobs", params.prompt_logprobs, params.prompt_logprobs is None or params.prompt_logprobs >= 0, "0 or more"),
        ("routed_experts_start_len", params.routed_from, params.routed_from is None or params.routed_from >= 0, "0 or more"),
    )
    for name, value, holds, range_ in wanted:
        if not holds:
            raise RequestError(f"{name} is {value}, but must be {range_}", param=name, hint="leave it out for its default")
