"""The heart of the runtime: requests in, steps to compute out, and what they chose in again."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self

from ..errors import RequestError
from ..options.runtime import RuntimeOptions
from ..protocol import Embed, FinishReason, Output, Ready, Request, SamplingParams, Stats, StepDone, Submit
from .batch import BatchBuilder
from .caches.caches import Caches
from .capacity.kv_memory import default_resident_blocks
from .kinds.choose import kind_of
from .loading import load_executor
from .process import import_guard
from .sampling.device_sampling import plan_draws
from .sampling.grammar import Grammar
from .sampling.masks import Masks
from .sampling.sampler import Choice
from .sampling.shared_rules import SharedRules
from .scheduler import Chunk, Scheduler
from .sequence import Sequence
from .step import Computed, Step, StepExecutor, compute
from .text_scheduler import TextScheduler
from .text_settings import read_eos_token_ids
from .validate import check_embed, check_request, too_large

_CHOOSES_NOTHING = SamplingParams(max_tokens=1)


class EngineCore:
    """Owns every sequence from submit to its last token.

    A step is planned, computed and finished; `step` does all three. While one is being computed,
    which another thread may do, the next can be planned ahead. All other methods belong to one thread.

    eos_token_ids: tokens that end a sequence unless it asks to ignore them.
    """

    def __init__(self, executor: StepExecutor, options: RuntimeOptions, *, eos_token_ids: Iterable[int] = ()) -> None:
        model, groups = executor.manifest.model, executor.manifest.caches
        self._executor = executor
        self.eos_token_ids = frozenset(token for token in eos_token_ids if 0 <= token < model.vocab_size)
        self.vocab_size = model.vocab_size
        self._masks = Masks()
        self._rules = SharedRules()
        self._max_context = model.max_context
        self._pooled = executor.manifest.pooled
        self._routes = executor.manifest.routes
        self._caches = Caches(groups, executor.pools, resident=_resident_blocks(executor, options))
        self._scheduler = (TextScheduler if executor.manifest.is_encoder else Scheduler)(
            self._caches,
            max_num_seqs=options.max_num_seqs,
            max_batch_tokens=options.max_batch_tokens,
            scheduling=options.scheduling,
        )
        self._batch = BatchBuilder(
            max_batch_tokens=executor.manifest.step_tokens(options.max_batch_tokens),
            max_num_seqs=options.max_num_seqs,
            max_context=model.max_context,
            groups=groups,
            takes_first_row=executor.manifest.takes_first_row,
        )
        self._sequences: dict[str, Sequence] = {}
        self._early: list[Output] = []
        self._changed = False
        self._generated_tokens = 0
        self._steps = 0

    @classmethod
    def load(cls, directory: Path, options: RuntimeOptions, *, on_phase: Callable[[str, float], None]) -> Self:
        """Load the artifact in `directory`; on_phase(name, seconds) is told of each phase. Raises EngineError."""
        executor = load_executor(
            directory,
            kv_memory=options.kv_memory,
            threads=options.threads,
            max_num_seqs=options.max_num_seqs,
            max_batch_tokens=options.max_batch_tokens,
            on_phase=on_phase,
        )
        return cls(executor, options, eos_token_ids=read_eos_token_ids(directory))

    @property
    def ready(self) -> Ready:
        """What the engine can hold, as the worker announces it."""
        return Ready(
            num_blocks=self._caches.num_blocks,
            max_tokens=min(self._caches.capacity, self._max_context),
            max_batch_tokens=self._scheduler.max_batch_tokens,
            max_num_seqs=self._scheduler.max_num_seqs,
        )

    def holds(self, count: int, tokens: int) -> bool:
        """Whether `count` sequences of `tokens` tokens run together without one of them having to give way."""
        return self._caches.holds(count, tokens)

    def has_work(self) -> bool:
        """Whether there is something to compute, or to tell that has not been told yet."""
        return self.has_news() or self._scheduler.has_work

    def has_news(self) -> bool:
        """Whether there is something to tell that does not come from a step."""
        return bool(self._early) or self._changed

    def submit(self, request: Request, grammar: Grammar | None = None) -> None:
        """Put a request in line. One that cannot be served is answered with an error by the next report.

        grammar: the one that it asks for, at the place after what it has generated.
        """
        try:
            sequence = self._accept_text(request) if isinstance(request, Embed) else self._accept(request, grammar)
        except RequestError as error:
            self.refuse(request.id, str(error))
            return
        except MemoryError:
            self.refuse(request.id, str(too_large()))
            return
        goes_on = isinstance(request, Submit) and request.generated
        reason = self._finish_reason(sequence, sequence.last_token) if goes_on else None
        if reason is not None:
            self._early.append(Output(request.id, [], finish_reason=reason))
            return
        self._sequences[request.id] = sequence
        self._scheduler.add(sequence)

    def abort(self, id: str) -> None:
        """Forget a sequence; its blocks are free when this returns. Unknown ids are ignored."""
        if id in self._sequences:
            self._drop(id)
            self._changed = True

    def refuse(self, id: str, error: str) -> None:
        """Answer a request that could not even be read with an error, in the next report."""
        self._early.append(Output(id, [], finish_reason="abort", error=error))

    def plan(self, *, ahead: bool = False) -> Step | None:
        """The next step, None if there is nothing to compute.

        ahead: a step is being computed, and assumed to end no sequence but those that reach their
        length; None also if that is not enough to go by. It must be computed next, or withdrawn.
        """
        chunks = self._scheduler.schedule(ahead=ahead)
        if not chunks:
            return None
        return Step(chunks, self._batch.build(chunks), plan_draws(chunks) if self._executor.can_draw else None)

    def withdraw(self, step: Step) -> None:
        """Take back the step planned last: it will not be computed."""
        self._scheduler.withdraw(step.chunks)
        self._batch.recycle(step.batch)

    def compute(self, step: Step) -> Computed:
        """Run a step and choose its tokens. Takes long; may run in another thread, one step after the other."""
        return compute(self._executor, step, self._masks)

    def finish(self, step: Step, computed: Computed) -> StepDone:
        """Take what a step chose. Returns what every sequence got that has a new token or has ended.

        Sequences that were aborted meanwhile get nothing.
        """
        self._batch.recycle(step.batch)
        sequences = self._sequences
        for chunk in step.chunks:
            if sequences.get(chunk.sequence.id) is chunk.sequence:
                self._scheduler.publish(chunk)
        self._keep_routes(step, computed)
        outputs = self._take_scores(step, computed)
        chosen = zip(step.sequences, computed.choices, strict=True)
        outputs += [self._take(sequence, choice) for sequence, choice in chosen if sequences.get(sequence.id) is sequence]
        outputs += [self._end(chunk.sequence) for chunk in step.chunks if self._ends_here(chunk)]
        self._steps += 1
        return self.report(outputs, step_tokens=sum(chunk.size for chunk in step.chunks), step_seconds=computed.seconds)

    def report(self, outputs: Iterable[Output] = (), *, step_tokens: int = 0, step_seconds: float = 0.0) -> StepDone:
        """These outputs and all other news."""
        early, self._early, self._changed = self._early, [], False
        return StepDone([*early, *outputs], self._stats(step_tokens, step_seconds))

    def step(self) -> StepDone:
        """Compute one batch, if there is one."""
        step = self.plan()
        return self.report() if step is None else self.finish(step, self.compute(step))

    def check(self) -> None:
        """Assert the invariants of the caches. For tests."""
        self._caches.check(sequence.held for sequence in self._sequences.values())

    def _drop(self, id: str) -> None:
        self._scheduler.remove(self._sequences.pop(id))

    def _check_id(self, id: str) -> None:
        if id in self._sequences:
            self._drop(id)  # two answers under one id could not be told apart
            raise RequestError(f"the id {id!r} is already in use", param="id", hint="give every request an id of its own")

    def _accept_text(self, request: Embed) -> Sequence:
        self._check_id(request.id)
        if self._pooled is None:
            raise RequestError("this model generates text, and makes no vectors", hint="ask it to complete something")
        longest = min(self._max_context, self._scheduler.capacity)
        check_embed(request, vocab_size=self.vocab_size, longest=longest, size=self._pooled.size)
        return Sequence(
            id=request.id,
            prompt=request.prompt,
            generated=[],
            params=_CHOOSES_NOTHING,
            stop_ids=frozenset(),
            max_length=len(request.prompt) + 1,  # with what would be chosen next
            block_size=self._caches.block_size,
            held=self._caches.hold_nothing(len(request.prompt) + 1),
            embed=request,
        )

    def _accept(self, request: Submit, grammar: Grammar | None) -> Sequence:
        self._check_id(request.id)
        if self._pooled is not None:
            raise RequestError("this model makes vectors or scores of texts, and generates none", hint="ask it to embed something")
        capacity = self._scheduler.capacity
        check_request(request, vocab_size=self.vocab_size, max_context=self._max_context, capacity=capacity)
        if request.params.prompt_logprobs is not None:
            kind_of(self._executor.manifest).check_scores()
        if request.params.routed_from is not None and self._routes is None:
            raise RequestError(
                "this artifact does not tell which experts tokens choose",
                param="return_routed_experts",
                hint="serve one of engine build --capture-routes",
            )
        params = self._rules.share(request.params)
        assert (grammar is None) == (params.grammar is None)
        goes_on = params.ignore_eos and grammar is None  # where a grammar ends, nothing but the end of the text may follow
        max_length = min(len(request.prompt) + params.max_tokens, self._max_context, capacity + 1)
        return Sequence(
            id=request.id,
            prompt=request.prompt,
            generated=request.generated,
            params=params,
            stop_ids=frozenset(params.stop_token_ids) | (frozenset() if goes_on else self.eos_token_ids),
            max_length=max_length,
            block_size=self._caches.block_size,
            held=self._caches.hold_nothing(max(max_length, len(request.prompt) + len(request.generated))),
            grammar=grammar,
            scored=request.scored,
            routed=request.routed,
        )

    def _keep_routes(self, step: Step, computed: Computed) -> None:
        """Of the sequences that are told their experts, what the step's tokens chose."""
        if computed.routes is None or self._routes is None:
            return
        narrow = computed.routes.astype(self._routes.typecode)
        for chunk, place in step.routed:
            if self._sequences.get(chunk.sequence.id) is chunk.sequence:
                chunk.sequence.keep_routes(chunk.start, narrow[place : place + chunk.size])

    def _take_scores(self, step: Step, computed: Computed) -> list[Output]:
        """Of the prompts that are scored, what the step has found."""
        outputs = []
        for (chunk, _), scores in zip(step.scoring, computed.scores, strict=True):
            sequence = chunk.sequence
            if self._sequences.get(sequence.id) is not sequence:
                continue
            if scores.error is not None:
                outputs.append(self._fail(sequence, scores.error))
            elif scores.logprobs:
                sequence.num_scored += len(scores.logprobs)
                outputs.append(Output(sequence.id, [], cached_tokens=sequence.num_cached, prompt_logprobs=scores.logprobs))
        return outputs

    def _ends_here(self, chunk: Chunk) -> bool:
        """Whether that was all of a prompt after which nothing is generated."""
        sequence = chunk.sequence
        is_last = not sequence.generates and chunk.start + chunk.size == sequence.num_prompt
        return is_last and self._sequences.get(sequence.id) is sequence

    def _end(self, sequence: Sequence) -> Output:
        self._drop(sequence.id)
        return Output(sequence.id, [], finish_reason="length", cached_tokens=sequence.num_cached, routed_experts=sequence.take_routes())

    def _fail(self, sequence: Sequence, error: str) -> Output:
        self._caches.forget(sequence.known_digests)
        self._drop(sequence.id)
        return Output(sequence.id, [], finish_reason="abort", error=error, cached_tokens=sequence.num_cached)

    def _take(self, sequence: Sequence, choice: Choice) -> Output:
        if choice.error is not None:
            return self._fail(sequence, choice.error)
        if choice.vector:
            self._drop(sequence.id)
            return Output(sequence.id, [], finish_reason="stop", cached_tokens=sequence.num_cached, vector=choice.vector)
        tokens = [choice.token, *choice.forced]
        for token in tokens:
            sequence.append(token)
        if choice.forced:
            self._scheduler.jump(sequence, len(choice.forced))
        self._generated_tokens += len(tokens)
        reason = self._finish_reason(sequence, tokens[-1])
        if reason is not None:
            self._drop(sequence.id)
        logprobs = [] if choice.logprob is None else [choice.logprob]
        return Output(sequence.id, tokens, logprobs, reason, None, sequence.num_cached, routed_experts=sequence.take_routes())

    @staticmethod
    def _finish_reason(sequence: Sequence, token: int) -> FinishReason | None:
        if token in sequence.sampling.stop_ids:
            return "stop"
        return "length" if sequence.length >= sequence.max_length else None

    def _stats(self, step_tokens: int, step_seconds: float) -> Stats:
        scheduler, (blocks_used, blocks_total) = self._scheduler, self._caches.fullest
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            blocks_used=blocks_used,
            blocks_total=blocks_total,
            preemptions_total=scheduler.preemptions,
            prompt_tokens_total=scheduler.prompt_tokens,
            generation_tokens_total=self._generated_tokens,
            prefix_hit_tokens_total=scheduler.prefix_hits,
            prefix_query_tokens_total=scheduler.prefix_queries,
            steps_total=self._steps,
            jit_compilations_total=import_guard.refused(),
            step_tokens=step_tokens,
            step_seconds=step_seconds,
        )


def _resident_blocks(executor: StepExecutor, options: RuntimeOptions) -> Mapping[str, int]:
    """Who says how much memory the cache gets wants it used; on a GPU it is taken in any case."""
    manifest = executor.manifest
    if options.kv_memory is not None or kind_of(manifest).commits_caches:
        return executor.pools
    return {
        group.name: default_resident_blocks(group, executor.pools[group.name], max_context=manifest.model.max_context)
        for group in manifest.caches
    }
