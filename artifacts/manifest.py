"""The manifest: everything about an artifact that is not code, weights or tokenizer.

Plain JSON, read into frozen structs with strict types. Its digest covers every other file of the
artifact, because it lists theirs. `read_manifest.py` reads it.
"""

import hashlib
import json
from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .graph import GraphInfo, KernelInfo
from .numbers import Count, Index, Seconds, Sha256, Shape, Size
from .routes import RoutesInfo

SCHEMA_VERSION = 6
"""Artifacts of another version are built again. Since 6, linears on CPUs add K in eight leaves (kernels/cpu/sum_tree.h), to other bits."""
MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"
UNDIGESTED = ("created", "digest")
"""The fields of a manifest that its digest leaves out: when a build ran says nothing of what it made."""

KVDType = Literal["float32", "float16", "bfloat16", "int8"]
CacheKind = Literal["full", "window", "chunk", "latent"]
KV_SCALE_BYTES = 4
"""What a key or value of int8 takes beside its quants: a float32 scale."""
Scalar = int | float
STEP = "step"
LOGITS = "logits"
POOLED = "pooled"
TEXT_FOLDER = "tokenizer/"
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1, "int8": 1, "int32": 4}


class _Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


WIDE_FORMATS = frozenset({"f32", "f16", "bf16"})


class ModelInfo(_Struct, frozen=True, kw_only=True):
    """What was compiled. `parameters` counts logical weights, before packing.

    calibration: what the importance of input channels was measured on when weights were quantized; empty if it was not.
    """

    name: str
    architecture: str
    vocab_size: Size
    max_context: Size
    hidden_size: Size
    num_layers: Size
    parameters: Count
    quantize: str
    calibration: str = ""
    source_format: str


class PooledInfo(_Struct, frozen=True, kw_only=True):
    """What a model makes of a text in place of tokens: a vector, or the score of a pair of texts.

    size: numbers of a vector. pooling: whether it comes of a text's last token, its first, or the mean of all. normalize: whether it
    is scaled to length 1. activation: what a score goes through. prompts: texts to put in front of others, by name.
    default_prompt: the one that is put there if none is asked for, "" for none.
    """

    task: Literal["embed", "score"]
    size: Size
    pooling: Literal["last", "cls", "mean"]
    normalize: bool = False
    activation: Literal["none", "sigmoid"] = "none"
    prompts: dict[str, str] = {}
    default_prompt: str = ""


class Toolchain(_Struct, frozen=True, kw_only=True):
    """Versions that made the code. On CPU the runtime must have the same torch. `triton` is empty where it made nothing."""

    engine: str
    torch: str
    compiler: str
    triton: str = ""


def kv_row_elements(head_dim: int, dtype: str) -> int:
    """Elements of `dtype` that a key or value of `head_dim` takes in the cache."""
    return head_dim + (KV_SCALE_BYTES if dtype == "int8" else 0)


class CacheGroup(_Struct, frozen=True, kw_only=True):
    """Layers whose keys and values live in blocks of one pool, and are freed alike.

    Per layer two tensors [blocks, num_kv_heads, block_size, row_elements]: `cache:NAME.LAYER.k` and
    `cache:NAME.LAYER.v`. kind: what a token sees. full: every token before it; window: the last
    `window` tokens, itself included; chunk: those since the last position that is a multiple of
    `window`. latent: as full, of layers that keep one latent for all heads, in one tensor,
    `cache:NAME.LAYER.latent`. window: 0 for full and latent.
    """

    name: str
    kind: CacheKind
    window: Index = 0
    layers: list[Index]
    num_kv_heads: Size
    head_dim: Size
    block_size: Size
    dtype: KVDType

    @property
    def row_elements(self) -> int:
        """Elements of `dtype` that one key or value takes, its scale included."""
        return kv_row_elements(self.head_dim, self.dtype)

    @property
    def bytes_per_block(self) -> int:
        """Bytes that one block takes over all layers, all of their tensors together."""
        return len(self.tensors) * self.num_kv_heads * self.block_size * self.row_elements * DTYPE_BYTES[self.dtype]

    @property
    def keeps_all(self) -> bool:
        """Whether a token sees every token before it, so that a sequence keeps all of its blocks."""
        return self.kind in ("full", "latent")

    def seen(self, length: int) -> int:
        """How many tokens the last of `length` tokens sees, itself included."""
        match self.kind:
            case "full" | "latent":
                return length
            case "window":
                return min(length, self.window)
            case "chunk":
                return (length - 1) % self.window + 1

    @property
    def tensors(self) -> list[str]:
        """References of the group's tensors."""
        parts = ("latent",) if self.kind == "latent" else ("k", "v")
        return [f"cache:{self.name}.{layer}.{part}" for layer in self.layers for part in parts]


class SegmentInfo(_Struct, frozen=True, kw_only=True):
    """One compiled piece. `key` is its identity in the store, `calls` how often a step runs it."""

    key: str
    file: str
    calls: Count
    nodes: Count


class Call(_Struct, frozen=True, kw_only=True):
    """One line of the program: run a segment or one of our operators.

    `inputs` name values: `weight:NAME`, `input:NAME`, `cache:GROUP.LAYER.k`, `cache:GROUP.LAYER.v`,
    `cache:GROUP.LAYER.latent`, `value:N`; "" is a tensor that an operator does without. `scalars` follow the inputs in an
    operator's argument list. `frees` are the values whose last use this call is.
    """

    kind: Literal["segment", "operator"]
    target: str
    inputs: list[str]
    outputs: list[str]
    scalars: list[Scalar] = []
    frees: list[str] = []


class InputInfo(_Struct, frozen=True, kw_only=True):
    """A tensor that every run of a program brings. dims: names of its sizes; equal names are equal sizes (step_inputs.py)."""

    name: str
    dtype: str
    dims: list[str]


class Program(_Struct, frozen=True, kw_only=True):
    """A forward pass as data.

    results: by name, the value that holds each; of `step`, `logits` [R, V] or `pooled` [R, size] float32, and what `RoutesInfo` names.
    """

    inputs: list[InputInfo]
    calls: list[Call]
    results: dict[str, str]


class ExpertsInfo(_Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A mixture of `count` experts, of which every token chooses `chosen`; `shared` more, which lie behind them, compute every token."""

    count: Size
    chosen: Size
    shared: Count = 0


class WeightInfo(_Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A packed tensor: where it lies, and the recipe that makes it from checkpoint tensors.

    `recipe` is the list of operations applied to `sources` (names of model parameters).
    `format` of a weight with bands (kernels/linear/bands.py) is FORMAT:ROWS of each source, with + between them.
    experts: the mixture of which it holds every expert's part, equal in size; a step reads those of chosen experts alone. None: all of
    it is read.
    """

    file: str
    dtype: str
    shape: Shape
    format: str
    sources: list[str]
    recipe: list[str]
    experts: ExpertsInfo | None = None


class MemoryPlan(_Struct, frozen=True, kw_only=True):
    """Upper bounds for sizing, computed from the graph.

    activations: bytes of activations and results of a step, a polynomial in the sizes of its inputs:
    {"T": 4096, "R": 128, "S*T": 4} stands for 4096 T + 128 R + 4 S T; "1" is the constant term.
    """

    weight_bytes: Count
    activations: dict[str, Count]

    def step_bytes(self, sizes: Mapping[str, int]) -> int:
        """The polynomial's value. sizes: by the names of dimensions."""
        known = {**sizes, "1": 1}
        return sum(factor * prod(known[name] for name in term.split("*")) for term, factor in self.activations.items())


class PassReport(_Struct, frozen=True, kw_only=True):
    """What one graph rewrite did."""

    name: str
    matches: Count
    nodes_before: Count
    nodes_after: Count


class ProbePrompt(_Struct, frozen=True, kw_only=True):
    """Token ids and the largest logits, or numbers of a vector, that they must lead to, best first. top_tokens: their columns."""

    tokens: list[Index]
    top_tokens: list[Index]
    top_logits: list[float]
    logits_sha256: str


class Probe(_Struct, frozen=True, kw_only=True):
    """Golden values replayed when the artifact is loaded.

    recorded_on: "target" when the artifact itself ran at build, "reference" when the build
    machine could not run it and plain PyTorch supplied the values (no digest then).
    """

    recorded_on: Literal["target", "reference"]
    prompts: list[ProbePrompt]

    @property
    def shortest(self) -> ProbePrompt | None:
        """The prompt that is replayed, None if none was recorded."""
        return min(self.prompts, key=lambda prompt: len(prompt.tokens), default=None)


class FileInfo(_Struct, frozen=True, kw_only=True):
    bytes: Count
    sha256: Sha256


class AnswerForms(_Struct, frozen=True, kw_only=True):
    """How the model writes tool calls and reasoning, by the names that `engine serve --help` lists. None: it does not, or nobody knows."""

    tools: str | None = None
    reasoning: str | None = None


class SamplingDefaults(_Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How tokens are chosen where a request does not say, as the checkpoint recommends. None: as OpenAI documents."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Index | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    max_new_tokens: Size | None = None


class Manifest(_Struct, frozen=True, kw_only=True):
    """Everything about an artifact.

    pooled: what is made of a text by a model that generates none. routes: the routers whose choices a step tells.
    caches: none of an encoder, which computes a text at once.
    kernel_library: on CPU, the shared object with our operators. kernels and graphs: on NVIDIA,
    what the templates launch. tuned_on: the GPU whose measurements chose among kernels, if any did.
    has_weights: whether the files that `weights` names are there.
    unfused: operators of PyTorch that compute for whole rows of the residual stream or wider ones, how often each is left in a step: on
    CPU every one runs on one thread. None where nobody counts them.
    ingredients: what the keys of all that was compiled for it were made of (artifacts/store/ingredients.py).
    forms: what the build found in the chat template about tool calls and reasoning; None where nobody looked.
    digest: `content_digest` of all the rest, of a manifest that has been read; `encode` writes the right one.
    """

    schema: int
    digest: str = ""
    created: Seconds
    target: str
    toolchain: Toolchain
    ingredients: dict[str, dict[str, str]] = {}
    model: ModelInfo
    pooled: PooledInfo | None = None
    routes: RoutesInfo | None = None
    caches: list[CacheGroup]
    kernel_library: str = ""
    kernels: list[KernelInfo] = []
    graphs: list[GraphInfo] = []
    tuned_on: str = ""
    segments: list[SegmentInfo]
    programs: dict[str, Program]
    has_weights: bool = True
    weights: dict[str, WeightInfo]
    memory: MemoryPlan
    fusion: list[PassReport]
    unfused: dict[str, Count] | None = None
    sampling: SamplingDefaults = SamplingDefaults()
    probe: Probe
    forms: AnswerForms | None = None
    files: dict[str, FileInfo]

    @property
    def step(self) -> Program:
        """The program that serves: new tokens of some sequences to logits."""
        return self.programs[STEP]

    @property
    def is_encoder(self) -> bool:
        """Whether tokens see those that follow: a text is computed in one step, and nothing of it is kept."""
        return not self.caches

    @property
    def result(self) -> str:
        """The name of the result of `step` that is served."""
        return LOGITS if self.pooled is None else POOLED

    @property
    def takes_first_row(self) -> bool:
        """Whether the row of a text that is wanted is that of its first token, not of its last."""
        return self.pooled is not None and self.pooled.pooling == "cls"

    @property
    def wanted_rows(self) -> list[int] | None:
        """As `wanted` of a `Piece` that is a whole text."""
        return [0] if self.takes_first_row else None

    def step_tokens(self, max_batch_tokens: int) -> int:
        """Tokens of the largest step: of an encoder, a text that is longer than a step otherwise is makes one by itself."""
        return max(max_batch_tokens, self.model.max_context) if self.is_encoder else max_batch_tokens

    @property
    def result_size(self) -> int:
        """Columns of that result."""
        return self.model.vocab_size if self.pooled is None else self.pooled.size

    @property
    def code_files(self) -> list[str]:
        """Every file that is executed or says what is."""
        library = [self.kernel_library] if self.kernel_library else []
        segments, kernels, graphs = (s.file for s in self.segments), (k.file for k in self.kernels), (g.file for g in self.graphs)
        return list(dict.fromkeys([*library, *segments, *kernels, *graphs]))

    @property
    def text_files(self) -> list[str]:
        """The tokenizer, the chat template and what belongs to them."""
        return [name for name in self.files if name.startswith(TEXT_FOLDER)]

    @property
    def weight_files(self) -> list[str]:
        """Those that are there."""
        return list(dict.fromkeys(weight.file for weight in self.weights.values())) if self.has_weights else []

    @property
    def has_wide_weights(self) -> bool:
        """Whether no weight is quantized, so that a build with --quantize has smaller ones."""
        return all(weight.format in WIDE_FORMATS for weight in self.weights.values())

    def encode(self) -> bytes:
        sealed = msgspec.structs.replace(self, digest=content_digest(msgspec.to_builtins(self)))
        return msgspec.json.format(msgspec.json.encode(sealed), indent=1) + b"\n"


def content_digest(content: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of a manifest as a JSON object: ASCII, keys sorted, no spaces, without the fields of UNDIGESTED.

    Raises ValueError for numbers that are none in JSON.
    """
    digested = {name: value for name, value in content.items() if name not in UNDIGESTED}
    return hashlib.sha256(json.dumps(digested, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()
