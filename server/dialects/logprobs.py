"""Log probabilities in the two shapes that OpenAI's APIs have for them."""

from collections.abc import Sequence

from ..text.assembler import Token
from ..text.token_bytes import TokenBytes
from .responses import ChatLogprobs, CompletionLogprobs, ContentLogprob, TopLogprob

_LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot write."""


def chat_logprobs(tokens: Sequence[Token], token_bytes: TokenBytes) -> ChatLogprobs:
    return ChatLogprobs([_content_logprob(token, token_bytes) for token in tokens])


def _content_logprob(token: Token, token_bytes: TokenBytes) -> ContentLogprob:
    assert token.logprob is not None
    top = [TopLogprob(token_bytes.name(id), max(value, _LOWEST), list(token_bytes[id])) for id, value in token.logprob.top]
    return ContentLogprob(token_bytes.name(token.id), max(token.logprob.logprob, _LOWEST), list(token_bytes[token.id]), top)


def completion_logprobs(tokens: Sequence[Token], token_bytes: TokenBytes) -> CompletionLogprobs:
    """The chosen token is always among `top_logprobs`, so these may be one more than were asked for."""
    result = CompletionLogprobs([], [], [], [])
    for token in tokens:
        assert token.logprob is not None
        chosen = max(token.logprob.logprob, _LOWEST)
        result.tokens.append(token_bytes.name(token.id))
        result.token_logprobs.append(chosen)
        top = {token_bytes.name(id): max(value, _LOWEST) for id, value in token.logprob.top}
        result.top_logprobs.append({**top, token_bytes.name(token.id): chosen})
        result.text_offset.append(token.offset)
    return result
