"""A worker at work: requests from the server to the core, steps to the pipeline, tokens to the server."""

from pathlib import Path
from queue import Empty, SimpleQueue

from ...protocol import Abort, Drain, Embed, Phase, Submit, ToWorker
from ..core import EngineCore
from ..step import Computed, Step
from .channel import Channel, Unreadable
from .grammar_compiler import Compiled, GrammarCompiler
from .listener import Listener
from .pipeline import Pipeline

FLUSH_SECONDS = 0.01
IDLE_SECONDS = 1.0
"""After so long without work, what grammars need is made."""

Event = list[ToWorker | Unreadable] | Computed | Compiled | Exception


def serve(core: EngineCore, channel: Channel, directory: Path) -> None:
    """Take requests and compute them until drained. directory: the artifact's.

    Raises EOFError when the parent is gone, and what a step raises.
    """
    events: SimpleQueue[Event] = SimpleQueue()
    grammars = GrammarCompiler(directory, vocab_size=core.vocab_size, eos_token_ids=core.eos_token_ids, deliver=events.put)
    with Pipeline(core.compute, events.put) as pipeline, Listener(channel, events.put):
        _Loop(core, channel, pipeline, grammars, events).run()
    channel.finish()


class _Loop:
    """While a step is computed, the one before it is told and the one after it is planned.

    The step at hand decides when the one after it begins; nothing here is in between, unless a
    request comes or goes, or a sequence ends by a token: then the plan is made anew.
    """

    def __init__(
        self, core: EngineCore, channel: Channel, pipeline: Pipeline, grammars: GrammarCompiler, events: SimpleQueue[Event]
    ) -> None:
        self._core = core
        self._channel = channel
        self._pipeline = pipeline
        self._grammars = grammars
        self._events = events
        self._compiling: dict[str, Submit] = {}
        """Requests whose grammars are being made."""
        self._at_hand: Step | None = None
        self._planned: Step | None = None
        self._draining = False
        self._told_first_step = False

    def run(self) -> None:
        while not (self._draining and self._at_hand is None and not self._compiling and not self._core.has_work()):
            self._handle(self._next_event())
            if self._at_hand is None:
                self._begin()
            if self._core.has_news():
                self._channel.send(self._core.report())
            if self._at_hand is not None and self._planned is None and self._events.empty():
                self._plan_ahead()

    def _next_event(self) -> Event:
        while self._channel.has_left:
            try:
                return self._events.get(timeout=FLUSH_SECONDS)
            except Empty:
                self._channel.flush()
        if self._at_hand is None and not self._grammars.has_begun:
            try:
                return self._events.get(timeout=IDLE_SECONDS)
            except Empty:
                self._grammars.prepare()
        return self._events.get()

    def _handle(self, event: Event) -> None:
        match event:
            case Computed():
                self._finish(event)
            case Compiled():
                self._begin_compiled(event)
            case Exception():
                raise event
            case _:
                self._receive(event)

    def _receive(self, messages: list[ToWorker | Unreadable]) -> None:
        self._take_back()
        for message in messages:
            match message:
                case Submit() if message.params.grammar is not None:
                    self._compiling[message.id] = message
                    self._grammars.compile(message)
                case Submit() | Embed():
                    self._core.submit(message)
                case Abort():
                    self._compiling.pop(message.id, None)
                    self._core.abort(message.id)
                case Unreadable():
                    self._core.refuse(message.id, message.error)
                case Drain():
                    self._draining = True

    def _begin_compiled(self, compiled: Compiled) -> None:
        request = compiled.request
        if self._compiling.get(request.id) is not request:
            return  # nobody waits for it any more
        del self._compiling[request.id]
        self._take_back()
        if compiled.error is not None:
            self._core.refuse(request.id, compiled.error)
        else:
            self._core.submit(request, compiled.grammar)

    def _finish(self, computed: Computed) -> None:
        """Take the result of the step at hand, and tell."""
        if computed.surprises:
            self._take_back()
            self._pipeline.go_on()
        step, self._at_hand, self._planned = self._at_hand, self._planned, None
        assert step is not None, "a result without a step"
        done = self._core.finish(step, computed)
        if not self._told_first_step:
            self._told_first_step = True
            self._channel.send(Phase("first_step", computed.seconds))
        self._channel.send(done)

    def _begin(self) -> None:
        self._at_hand = self._core.plan()
        if self._at_hand is not None:
            self._pipeline.put(self._at_hand)

    def _plan_ahead(self) -> None:
        self._planned = self._core.plan(ahead=True)
        if self._planned is not None:
            self._pipeline.put(self._planned)

    def _take_back(self) -> None:
        """Undo the plan for the step after the one at hand, unless it has been begun already."""
        if self._planned is not None and self._pipeline.take_back():
            self._core.withdraw(self._planned)
            self._planned = None
