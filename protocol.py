"""What the server process and the worker process say to each other.

One Unix stream socket, created by the parent as a socketpair. Each message is a 4-byte
little-endian length and a msgpack body (msgspec, tagged unions), so that a reader never
guesses where a message ends. Nothing here imports torch.
"""

from array import array
from collections.abc import Iterable, Mapping
from typing import Literal, Self

import msgspec

FinishReason = Literal["stop", "length", "abort"]


class TokenRules(msgspec.Struct, frozen=True, array_like=True, weakref=True):
    """What a request says of many tokens at once, as native int32 and float32: as Python's numbers they would take ten times as much.

    bias: added to the logits of the tokens `biased`. allowed: the only tokens that may be chosen, None for all.
    """

    biased: bytes = b""
    bias: bytes = b""
    allowed: bytes | None = None

    @classmethod
    def of(cls, bias: Mapping[int, float], allowed: Iterable[int] | None = None) -> Self:
        return cls(
            array("i", bias.keys()).tobytes(),
            array("f", bias.values()).tobytes(),
            None if allowed is None else array("i", allowed).tobytes(),
        )


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token of one sequence is chosen. Validated by the server before it is sent.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 switch the filter off. `seed` None
    means the worker draws one. `logprobs` is the number of alternatives reported per token
    (None: no logprobs at all, 0: only the chosen token's), `prompt_logprobs` the same of the prompt's
    tokens. logprob_token_ids: tokens that are reported after the chosen one, instead of the most likely ones.
    Logprobs are those of the model's own distribution, before temperature and penalties.
    routed_from: the first token, counted from the prompt's beginning, of which it is told which experts it chose (None: of no token).
    max_tokens 0 computes the prompt and chooses nothing. bad_words: the last token of one may not follow
    the ones before it. grammar: what the answer must follow, as
    llguidance's matcher reads it (Lark, or JSON with a list of grammars); it ends where the grammar does.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    token_rules: TokenRules | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    routed_from: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    grammar: str | None = None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log probability (natural log) of the chosen token, and of the most likely ones, best first; or of it and those that were named."""

    logprob: float
    top: list[tuple[int, float]] = []


class PromptLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log probability (natural log) of a prompt's token after those before it, and of the most likely ones, best first.

    rank: the token's place among all by probability, from 1; the lower id first among equals.
    """

    logprob: float
    rank: int
    top: list[tuple[int, float]] = []


# --- server -> worker -----------------------------------------------------------------------


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Start a sequence. `prompt` is never empty; prompt + max_tokens fits the context."""

    id: str
    prompt: list[int]
    params: SamplingParams
    generated: list[int] = []
    """Tokens already produced for this id by an earlier worker: generation resumes after them."""
    scored: int = 0
    """How many of the `prompt_logprobs` an earlier worker has told."""
    routed: int = 0
    """Of how many tokens, from `routed_from` on, an earlier worker has told the experts."""


class Embed(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Compute the vector of a text, or the score of a pair of texts: one message out, whose `vector` it is.

    `prompt` is never empty and fits the context. dimensions: leading numbers of the vector that are wanted, 0 for all. pair_start:
    where the second text of a pair begins, 0 if there is none. raw: neither scaled to length 1, nor through the activation of a score.
    """

    id: str
    prompt: list[int]
    dimensions: int = 0
    pair_start: int = 0
    raw: bool = False


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Forget a sequence and free its blocks at once. Unknown ids are ignored."""

    id: str


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Finish what is running and waiting, then exit 0."""


Request = Submit | Embed
ToWorker = Request | Abort | Drain

# --- worker -> server -----------------------------------------------------------------------


class Phase(msgspec.Struct, frozen=True, tag=True):
    """A start-up phase has ended: its name and how long it took, in seconds."""

    name: str
    seconds: float


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker can take requests.

    num_blocks: of all cache groups together. max_tokens: of the longest sequence, prompt and answer together.
    """

    num_blocks: int
    max_tokens: int
    max_batch_tokens: int
    max_num_seqs: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The worker could not start; it exits after sending this. Fields as in EngineError."""

    error: str
    message: str
    hint: str | None
    exit_code: int


class Output(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of one sequence. `finish_reason` is set on its last message only.

    A token that ended the sequence (end of text, stop_token_ids) is included as the last of
    `tokens`; whether to show it is the server's business. `error` says why a request was
    refused or ended by the worker, with finish_reason "abort". prompt_logprobs: the next ones, in the
    order of the prompt, of which the first token has none; they come by themselves, before the first token. `vector` answers
    an `Embed`, with finish_reason "stop": float32, little-endian. routed_experts: of each token that was computed since the last
    message, the experts that it chose, [layers, chosen], as the narrowest of uint8 and uint16, little-endian; the first message with
    `tokens` has all of the prompt's.
    """

    id: str
    tokens: list[int]
    logprobs: list[TokenLogprob] = []
    finish_reason: FinishReason | None = None
    error: str | None = None
    cached_tokens: int = 0
    prompt_logprobs: list[PromptLogprob] = []
    vector: bytes = b""
    routed_experts: list[bytes] = []


class Stats(msgspec.Struct, frozen=True, array_like=True):
    """State of the scheduler after a step; the source of the server's /metrics.

    `*_total` only ever grow, but for blocks_total: of the cache group that is fullest, of whose blocks
    blocks_used are referenced. Step figures describe the step just finished.
    """

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks_total: int = 0
    preemptions_total: int = 0
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    prefix_hit_tokens_total: int = 0
    prefix_query_tokens_total: int = 0
    steps_total: int = 0
    jit_compilations_total: int = 0
    step_tokens: int = 0
    step_seconds: float = 0.0


class StepDone(msgspec.Struct, frozen=True, tag=True):
    """What one scheduler step produced."""

    outputs: list[Output]
    stats: Stats


ToServer = Phase | Ready | Failed | StepDone

HEADER_BYTES = 4
_encoder = msgspec.msgpack.Encoder()
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_to_server = msgspec.msgpack.Decoder(ToServer).decode


def encode(message: ToWorker | ToServer) -> bytes:
    """One framed message, ready for the socket."""
    body = _encoder.encode(message)
    return header(body) + body


def header(body: bytes) -> bytes:
    """What goes before it."""
    return len(body).to_bytes(HEADER_BYTES, "little")


def body_length(header: bytes | memoryview) -> int:
    """Length in bytes of the body that follows this 4-byte header."""
    return int.from_bytes(header, "little")
