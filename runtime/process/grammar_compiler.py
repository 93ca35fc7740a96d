"""Makes the grammars of requests, in a thread of its own: neither a step nor another request waits for it.

llguidance needs a trie of the vocabulary, which takes 0.2 to 1 s, once, and holds Python up
meanwhile. So it is made when the worker has nothing to do, or for the first request that needs it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from ... import heap
from ...errors import RequestError
from ...protocol import Submit
from ..sampling.grammar import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

TOKENIZER = "tokenizer/tokenizer.json"
_KEPT = 32
"""Compiled grammars: agents send the same ones again and again."""


class Compiled(NamedTuple):
    """A request and its grammar, or why there is none."""

    request: Submit
    grammar: Grammar | None
    error: str | None = None


class GrammarCompiler:
    """directory: the artifact's. eos_token_ids: those that may come where a grammar ends. deliver: is handed each result."""

    def __init__(self, directory: Path, *, vocab_size: int, eos_token_ids: Collection[int], deliver: Callable[[Compiled], None]) -> None:
        self._directory = directory
        self._vocab_size = vocab_size
        self._eos = sorted(eos_token_ids)
        self._deliver = deliver
        self._wanted: SimpleQueue[Submit | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()

    @property
    def has_begun(self) -> bool:
        """Whether anything was wanted of it yet."""
        return self._thread is not None

    def prepare(self) -> None:
        """Make what all grammars need."""
        self._put(None)

    def compile(self, request: Submit) -> None:
        """`deliver` is called with the result."""
        self._put(request)

    def _put(self, request: Submit | None) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="grammars", daemon=True)
            self._thread.start()
        self._wanted.put(request)

    def _run(self) -> None:
        while True:
            request = self._wanted.get()
            if request is None:
                self._prepare_early()
            else:
                self._deliver(self._compiled(request))

    def _prepare_early(self) -> None:
        with suppress(Exception):  # whoever needs it is told
            self._vocabulary()
        heap.give_back()

    def _compiled(self, request: Submit) -> Compiled:
        try:
            return Compiled(request, self._grammar(request))
        except RequestError as error:
            return Compiled(request, None, str(error))
        except Exception as error:
            return Compiled(request, None, f"the grammar cannot be compiled: {error}\nhint: make it simpler")

    def _grammar(self, request: Submit) -> Grammar:
        matcher = self._matcher(request.params.grammar or "").deep_copy()
        matcher.consume_tokens(request.generated)
        grammar = Grammar(matcher, self._vocab_size)
        grammar.fill()  # here a grammar that takes long shows it, and no step waits
        if error := grammar.error:
            raise RequestError(error, hint="simplify the grammar or schema")
        return grammar

    def _matcher(self, text: str) -> "LLMatcher":
        """At the beginning of the grammar; to be copied."""
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._kept[text]
        from llguidance import LLMatcher, LLParserLimits

        # a step that asks too much ends the sequence after some 10 ms of work, instead of holding all others up
        limits = LLParserLimits(initial_lexer_fuel=400_000, step_lexer_fuel=50_000, step_max_items=50_000, verbose_errors=False)
        matcher = LLMatcher(self._vocabulary(), text, limits=limits, log_level=0)
        self._kept[text] = matcher
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return matcher

    def _vocabulary(self) -> "LLTokenizer":
        if self._tokenizer is None:
            from llguidance import LLTokenizer

            if not self._eos:
                raise RequestError("this model has no token that ends a text, which a grammar needs", hint="ask for stop strings instead")
            text = (self._directory / TOKENIZER).read_text(encoding="utf-8")
            try:
                self._tokenizer = LLTokenizer(text, eos_token=self._eos)
                if self._tokenizer.vocab_size < self._vocab_size:
                    self._tokenizer = LLTokenizer(text, n_vocab=self._vocab_size, eos_token=self._eos)
            except Exception as error:
                raise RequestError(f"grammars cannot be used with this model's tokenizer: {error}", hint="ask without one") from error
        return self._tokenizer
