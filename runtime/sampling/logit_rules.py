"""Changes to one sequence's logits before a token is chosen: penalties, bias, forbidden stops. In this order."""

import numpy as np
from numpy.typing import NDArray

from .state import SamplingState


def adjust(logits: NDArray[np.float32], state: SamplingState) -> None:
    """Apply the sequence's rules to `logits` [V] in place.

    - repetition penalty r (Keskar et al. 2019, arXiv:1909.05858, as Hugging Face applies it): tokens
      of prompt and answer, l / r if l > 0 else l * r
    - frequency and presence penalty (OpenAI): tokens of the answer, l - count * frequency - presence
    - logit_bias: added
    - min_tokens: before it is reached, tokens that would end the sequence get -inf
    - grammar: tokens that it does not allow get -inf. Where it ends, so does the sequence: min_tokens does not count then
    """
    params = state.params
    if state.seen is not None:
        ids = state.seen.ids
        values = logits[ids]
        penalty = np.float32(params.repetition_penalty)
        logits[ids] = np.where(values > 0, values / penalty, values * penalty)
    if state.generated is not None:
        penalties = state.generated.counts * np.float32(params.frequency_penalty) + np.float32(params.presence_penalty)
        logits[state.generated.ids] -= penalties
    if len(state.bias_ids):
        logits[state.bias_ids] += state.bias
    grammar = state.grammar
    if state.bans_stop and (grammar is None or not grammar.has_ended):
        logits[state.banned] = -np.inf
    if grammar is not None:
        logits[grammar.denied] = -np.inf
