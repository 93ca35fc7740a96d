"""Log probabilities in the shapes that OpenAI's APIs and vLLM's have for them."""

from collections.abc import Sequence

from ...protocol import PromptLogprob
from ..text.assembler import Token
from ..text.token_bytes import TokenBytes
from .answers import ChatLogprobs, CompletionLogprobs, ContentLogprob, PromptLogprobs, PromptTokenLogprob, TopLogprob

_LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot write."""


class LogprobWriter:
    """as_ids: write tokens as `token_id:ID` in the lists of OpenAI's APIs, so that no two are called alike."""

    def __init__(self, token_bytes: TokenBytes, *, as_ids: bool = False) -> None:
        self._token_bytes = token_bytes
        self._as_ids = as_ids

    def chat(self, tokens: Sequence[Token]) -> ChatLogprobs:
        return ChatLogprobs([self._content(token) for token in tokens])

    def completion(self, tokens: Sequence[Token], *, begin: int = 0) -> CompletionLogprobs:
        """The chosen token is the first of `top_logprobs`: one more than were asked for, perhaps. begin: of the answer in the text."""
        result = CompletionLogprobs([], [], [], [])
        for token in tokens:
            assert token.logprob is not None
            self._append(result, token.id, begin + token.offset, token.logprob.logprob, token.logprob.top)
        return result

    def echo(self, tokens: Sequence[int], offsets: Sequence[int], scores: Sequence[PromptLogprob], count: int) -> CompletionLogprobs:
        """Of a prompt's tokens, each of which begins at one of `offsets`; with the `count` most likely ones."""
        result = CompletionLogprobs([self._name(tokens[0])], [None], [None], [offsets[0]])
        for token, offset, score in zip(tokens[1:], offsets[1:], scores, strict=True):
            self._append(result, token, offset, score.logprob, score.top[:count])
        return result

    def prompt(self, tokens: Sequence[int], scores: Sequence[PromptLogprob], count: int) -> PromptLogprobs:
        """Of a prompt's tokens as vLLM writes them; with the `count` most likely ones."""
        name, result = self._token_bytes.name, PromptLogprobs([None])
        for token, score in zip(tokens[1:], scores, strict=True):
            ranked = {token: (score.logprob, score.rank)} | {id: (value, 1 + i) for i, (id, value) in enumerate(score.top[:count])}
            result.append({id: PromptTokenLogprob(max(value, _LOWEST), rank, name(id)) for id, (value, rank) in ranked.items()})
        return result

    def _name(self, id: int) -> str:
        return f"token_id:{id}" if self._as_ids else self._token_bytes.name(id)

    def _content(self, token: Token) -> ContentLogprob:
        assert token.logprob is not None
        top = [TopLogprob(self._name(id), max(value, _LOWEST), list(self._token_bytes[id])) for id, value in token.logprob.top]
        return ContentLogprob(self._name(token.id), max(token.logprob.logprob, _LOWEST), list(self._token_bytes[token.id]), top)

    def _append(self, result: CompletionLogprobs, token: int, offset: int, logprob: float, top: Sequence[tuple[int, float]]) -> None:
        name, chosen = self._name(token), max(logprob, _LOWEST)
        result.tokens.append(name)
        result.token_logprobs.append(chosen)
        result.top_logprobs.append({name: chosen, **{other: max(value, _LOWEST) for id, value in top if (other := self._name(id)) != name}})
        result.text_offset.append(offset)


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        first.top_logprobs + second.top_logprobs,
        first.text_offset + second.text_offset,
    )
