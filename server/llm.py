"""The offline API: prompts in, texts out, through the same worker and the same text code as the server."""

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

from msgspec import Meta

from ..artifacts import SamplingDefaults, check_text, load_manifest
from ..errors import RequestError
from ..options.runtime import Scheduling
from ..protocol import Ready
from .dialects.decoding import checked
from .dialects.grammars import chat_grammar, grammar_of
from .dialects.params import MAX_LOGPROBS, GenerationParams
from .dialects.planning import Ask, ModelLimits, Prompt, check_prompts, plan
from .dialects.schemas import check_template_variables
from .dialects.tools import ToolUse, tool_use
from .generation import Generation, Observer
from .loop_thread import LoopThread
from .options import GenerationConfig, WorkerOptions
from .parsing.names import FormNames
from .text.assembler import Assembler, Delta
from .text.completion import Collector, Completion
from .text.text import Text
from .texts import GENERATES, Texts, check_task
from .tokenizing import Tokenizing
from .workers.client import WorkerClient
from .workers.fleet import Fleet
from .workers.process import WorkerHandle, spawn_worker

if TYPE_CHECKING:
    from .parsing.parsing import FormsParsing

Messages: TypeAlias = Sequence[Mapping[str, Any]]
_NO_TOOLS = ToolUse()


class Params(GenerationParams, kw_only=True):
    """GenerationParams, and how many alternatives to report per token (None: no logprobs)."""

    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None


class LLM:
    """An artifact, loaded in a worker process. Use it in a `with` block, or call `close`.

    The worker's limits are those of `RuntimeOptions`; None takes the default. generation_config: "none" leaves out what
    the checkpoint recommends for params that are not given. `log` is told of start-up phases.
    Raises ArtifactError, MismatchError or WorkerError if the artifact cannot be served here.
    """

    def __init__(
        self,
        artifacts: Path | str,
        *,
        threads: int | None = None,
        kv_memory: int | None = None,
        max_num_seqs: int | None = None,
        max_batch_tokens: int | None = None,
        scheduling: Scheduling | None = None,
        generation_config: GenerationConfig = "auto",
        worker_command: tuple[str, ...] | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        asked = {
            "threads": threads,
            "kv_memory": kv_memory,
            "max_num_seqs": max_num_seqs,
            "max_batch_tokens": max_batch_tokens,
            "scheduling": scheduling,
        }
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        options = WorkerOptions(artifacts=Path(artifacts), worker_command=worker_command, **given)
        handle = spawn_worker(options)
        self._loop = LoopThread()
        try:
            self.manifest = load_manifest(options.artifacts)
            check_text(options.artifacts, self.manifest)
            self.text = Text.load(options.artifacts / "tokenizer")
            self._tokenizing = Tokenizing(self.text, options.artifacts, self.manifest.digest)
            self._limits = ModelLimits.of(self.manifest, generation_config)
            self._fleet = self._loop.call(_fleet(options, handle, log))
            self._running = self._loop.start(self._fleet.run())
            self._ready = self._until_ready()
        except BaseException:
            handle.kill()
            self._loop.close()
            raise

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @property
    def sampling(self) -> SamplingDefaults:
        """How tokens are chosen where `Params` do not say."""
        return self._limits.sampling

    def close(self) -> None:
        """Ends the worker. Safe to call twice."""
        if not self._running.done():
            self._loop.call(_stopped(self._fleet))
            self._running.exception()
            self._loop.close()

    def generate(
        self,
        prompts: Sequence[str] | Sequence[list[int]] | Sequence[Messages],
        params: Params | None = None,
        on_token: Callable[[int, str], None] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in their order, computed together. A prompt is a text, tokens or messages.

        The text is what the model writes: only `chat` reads calls and reasoning in it.
        `on_token` is called with the index of a prompt and the text that a step added to its answer.
        Raises RequestError for prompts or params that cannot be served.
        """
        return self._complete(self._plan([self._prompt(prompt) for prompt in prompts], params), on_token)

    def refusal(self, prompt: str | list[int] | Messages, params: Params | None = None) -> RequestError | None:
        """Why `generate` would refuse this prompt, and with it all others of its list; None if it would not."""
        try:
            self._plan([self._prompt(prompt)], params)
        except RequestError as error:
            return error
        return None

    def chat(
        self,
        messages: Messages,
        params: Params | None = None,
        on_token: Callable[[str], None] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> Completion:
        """The assistant's next message, read as chat completions do: its text, reasoning and calls.

        `on_token` is called with what each step added to the text. tools, tool_choice, chat_template_kwargs: as of chat completions.
        Raises RequestError for what cannot be served.
        """
        from .parsing.parsing import parsing_of

        check_template_variables(chat_template_kwargs)
        use = tool_use(tools, tool_choice, None)
        parts = self.text.render_parts(messages, tools=use.definitions, extra=chat_template_kwargs)
        forms = FormNames.chosen(self.manifest.forms)
        parsing = parsing_of(forms, use.schemas, "".join(parts), most_calls=use.most_calls)
        stream = self._stream(self._plan([Prompt(self.text.encode_parts(parts), continues=False)], params, use, parsing))
        for piece in stream:
            if on_token is not None:
                on_token(piece)
        return stream.completion

    def stream(self, prompt: str | list[int] | Messages, params: Params | None = None) -> "TextStream":
        """The completion of one prompt, or the assistant's next message as the model writes it, piece by piece."""
        return self._stream(self._plan([self._prompt(prompt)], params))

    def embed(self, texts: Sequence[str], *, dimensions: int | None = None, prompt_name: str | None = None) -> list[list[float]]:
        """A vector of each text, computed together. dimensions, prompt_name: as of /v1/embeddings; a text that is too long is cut.

        Raises RequestError for texts that cannot be served, and where the model makes no vectors.
        """
        return [array("f", vector).tolist() for vector in self._loop.call(self._embed(texts, dimensions or 0, prompt_name))]

    async def _embed(self, texts: Sequence[str], dimensions: int, prompt_name: str | None) -> list[bytes]:
        check_task(self.manifest.pooled, "embed")
        assert self.manifest.pooled is not None
        served = Texts(
            info=self.manifest.pooled,
            max_context=self._limits.max_context,
            vocab_size=self._limits.vocab_size,
            tokenizing=self._tokenizing,
            fleet=self._fleet,
            observer=Observer(),
            hold_timeout=math.inf,
        )
        served.check_dimensions(dimensions)
        tokens = await served.encode(texts, prompt=served.prompt(prompt_name), truncate=-1, param="texts")
        return await served.vectors(tokens, dimensions=dimensions) if tokens else []

    def _prompt(self, prompt: str | list[int] | Messages) -> Prompt:
        if isinstance(prompt, str):
            return Prompt(self.text.encode(prompt), continues=True)
        if prompt and isinstance(prompt[0], Mapping):
            return Prompt(self.text.encode_chat(cast(Messages, prompt)), continues=False)
        return Prompt(list(cast(list[int], prompt)), continues=True)

    def _plan(
        self, prompts: Sequence[Prompt], params: Params | None, use: ToolUse = _NO_TOOLS, parsing: "FormsParsing | None" = None
    ) -> list[Assembler]:
        """use: of the tools of a chat. parsing: how its answer is read."""
        check_task(self.manifest.pooled, GENERATES)
        valid = checked(params or Params(), Params)
        wanted = valid.wanted()
        answer = None if wanted is None else grammar_of(wanted)
        ask = Ask(
            prompts=prompts,
            params=valid,
            param="prompts",
            max_tokens=valid.max_tokens,
            logprobs=valid.logprobs,
            prompt_logprobs=valid.prompt_logprobs,
            lists_tokens=True,
            parsing=parsing,
            grammar=chat_grammar(answer, use, parsing, self.text.added_tokens()),
        )
        check_prompts(ask, self._limits)
        return plan(ask, self.text, self._limits, self._ready)

    def _stream(self, assemblers: list[Assembler]) -> "TextStream":
        """Of one prompt."""
        collector = Collector(assemblers[0], self._limits.routes)
        return TextStream((piece for _, piece in self._pieces(assemblers, [collector]) if piece), collector)

    def _complete(self, assemblers: list[Assembler], on_token: Callable[[int, str], None] | None) -> list[Completion]:
        collectors = [Collector(assembler, self._limits.routes) for assembler in assemblers]
        for index, piece in self._pieces(assemblers, collectors):
            if on_token is not None and piece:
                on_token(index, piece)
        return [collector.completion() for collector in collectors]

    def _pieces(self, assemblers: list[Assembler], collectors: list[Collector]) -> Iterator[tuple[int, str]]:
        if not assemblers:
            return
        try:
            for index, delta in self._loop.iterate(partial(self._run, assemblers)):
                collectors[index].add(delta)
                yield index, delta.content()
        except RequestError as error:
            if error.code == "worker_failed":
                self._running.result()
            raise

    async def _run(self, assemblers: list[Assembler], put: Callable[[tuple[int, Delta]], None]) -> None:
        with closing(Generation(self._fleet, assemblers, Observer(), lambda index, delta: put((index, delta)))) as generation:
            await generation.ended()

    def _until_ready(self) -> Ready:
        try:
            return self._loop.call(self._fleet.until_ready())
        except RequestError:
            self._running.result()
            raise


class TextStream:
    """Pieces of one answer as they come. `close` (or leaving its `with` block) aborts the rest."""

    def __init__(self, pieces: Iterator[str], collector: Collector) -> None:
        self._pieces = pieces
        self._collector = collector

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def completion(self) -> Completion:
        """All that has come so far."""
        return self._collector.completion()

    def __enter__(self) -> "TextStream":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        getattr(self._pieces, "close", lambda: None)()


async def _fleet(options: WorkerOptions, handle: WorkerHandle, log: Callable[[str], None]) -> Fleet:
    return Fleet([WorkerClient(options, handle, log=log)], log=log)


async def _stopped(fleet: Fleet) -> None:
    fleet.stop()
