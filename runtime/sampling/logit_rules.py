"""Changes to one sequence's logits before a token is chosen: what is forbidden, bias, penalties. In this order, as in vLLM."""

import numpy as np
from numpy.typing import NDArray

from .state import SamplingState


def adjust(logits: NDArray[np.float32], state: SamplingState) -> None:
    """Apply the sequence's rules to `logits` [V] in place.

    - grammar: tokens that it does not allow get -inf. Where it ends, so does the sequence: min_tokens does not count then
    - allowed_token_ids: all others get -inf
    - bad_words: the last token of one gets -inf where the answer ends with the ones before it
    - min_tokens: before it is reached, tokens that would end the sequence get -inf
    - logit_bias: added
    - repetition penalty r (Keskar et al. 2019, arXiv:1909.05858, as Hugging Face applies it): tokens
      of prompt and answer, l / r if l > 0 else l * r
    - frequency and presence penalty (OpenAI): tokens of the answer, l - count * frequency - presence
    """
    _forbid(logits, state)
    params = state.params
    if len(state.biased):
        logits[state.biased] += state.bias
    if state.seen is not None:
        ids = state.seen.ids
        values = logits[ids]
        penalty = np.float32(params.repetition_penalty)
        logits[ids] = np.where(values > 0, values / penalty, values * penalty)
    if state.generated is not None:
        penalties = state.generated.counts * np.float32(params.frequency_penalty) + np.float32(params.presence_penalty)
        logits[state.generated.ids] -= penalties


def _forbid(logits: NDArray[np.float32], state: SamplingState) -> None:
    grammar = state.grammar
    if grammar is not None:
        logits[grammar.denied] = -np.inf
    if state.allowed is not None:
        allowed = logits[state.allowed]
        logits.fill(-np.inf)
        logits[state.allowed] = allowed
    if state.params.bad_words:
        logits[state.completing()] = -np.inf
    if state.bans_stop and (grammar is None or not grammar.has_ended):
        logits[state.banned] = -np.inf
