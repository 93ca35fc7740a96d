"""The manifest: everything about an artifact that is not code, weights or tokenizer.

Plain JSON, read into frozen structs with strict types. Reading it executes nothing and opens
no other file. Paths in it are relative, use `/`, and cannot leave the directory.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from ..errors import ArtifactError, Misfit, MismatchError
from .graph import GraphInfo, KernelInfo

SCHEMA_VERSION = 4
MANIFEST_NAME = "manifest.json"

KVDType = Literal["float32", "bfloat16", "int8"]
KV_SCALE_BYTES = 4
"""What a key or value of int8 takes beside its quants: a float32 scale."""
Scalar = int | float
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1, "int8": 1, "int32": 4}


class _Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ModelInfo(_Struct, frozen=True, kw_only=True):
    """What was compiled. `parameters` counts logical weights, before packing."""

    name: str
    architecture: str
    vocab_size: int
    max_context: int
    hidden_size: int
    num_layers: int
    parameters: int
    quantize: str
    source_format: str


class Toolchain(_Struct, frozen=True, kw_only=True):
    """Versions that made the code. On CPU the runtime must have the same torch. `triton` is empty where it made nothing."""

    engine: str
    torch: str
    compiler: str
    triton: str = ""


def kv_row_elements(head_dim: int, dtype: str) -> int:
    """Elements of `dtype` that a key or value of `head_dim` takes in the cache."""
    return head_dim + (KV_SCALE_BYTES if dtype == "int8" else 0)


class KVCacheSpec(_Struct, frozen=True, kw_only=True):
    """Paged KV cache: per layer two tensors [blocks, num_kv_heads, block_size, row_elements]."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: KVDType

    @property
    def row_elements(self) -> int:
        """Elements of `dtype` that one key or value takes, its scale included."""
        return kv_row_elements(self.head_dim, self.dtype)

    @property
    def bytes_per_block(self) -> int:
        """Bytes that one block takes over all layers, keys and values together."""
        return 2 * self.num_layers * self.num_kv_heads * self.block_size * self.row_elements * DTYPE_BYTES[self.dtype]


class SegmentInfo(_Struct, frozen=True, kw_only=True):
    """One compiled piece. `key` is its identity in the store, `calls` how often a step runs it."""

    key: str
    file: str
    calls: int
    nodes: int


class Call(_Struct, frozen=True, kw_only=True):
    """One line of the program: run a segment or one of our operators.

    `inputs` name values: `weight:NAME`, `input:NAME`, `kv:LAYER.k`, `kv:LAYER.v`, `value:N`.
    `scalars` follow the inputs in an operator's argument list. `frees` are the values whose
    last use this call is.
    """

    kind: Literal["segment", "operator"]
    target: str
    inputs: list[str]
    outputs: list[str]
    scalars: list[Scalar] = []
    frees: list[str] = []


class Program(_Struct, frozen=True, kw_only=True):
    """A forward step as data. `result` names the value that holds the logits [S, V]."""

    calls: list[Call]
    result: str


class WeightInfo(_Struct, frozen=True, kw_only=True):
    """A packed tensor: where it lies, and the recipe that makes it from checkpoint tensors.

    `recipe` is the list of operations applied to `sources` (names of model parameters).
    """

    file: str
    dtype: str
    shape: list[int]
    format: str
    sources: list[str]
    recipe: list[str]


class MemoryPlan(_Struct, frozen=True, kw_only=True):
    """Upper bounds for sizing, computed from the graph: a step with T tokens and S sequences
    needs at most `bytes_per_token * T + bytes_per_sequence * S` for activations and logits."""

    weight_bytes: int
    bytes_per_token: int
    bytes_per_sequence: int


class PassReport(_Struct, frozen=True, kw_only=True):
    """What one graph rewrite did."""

    name: str
    matches: int
    nodes_before: int
    nodes_after: int


class ProbePrompt(_Struct, frozen=True, kw_only=True):
    """Token ids and the largest logits that they must lead to, best first."""

    tokens: list[int]
    top_tokens: list[int]
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
    bytes: int
    sha256: str


class Manifest(_Struct, frozen=True, kw_only=True):
    """Everything about an artifact.

    kernel_library: on CPU, the shared object with our operators. kernels and graphs: on NVIDIA,
    what the templates launch. tuned_on: the GPU whose measurements chose among kernels, if any did.
    has_weights: whether the files that `weights` names are there.
    ingredients: what the keys of all that was compiled for it were made of (artifacts/ingredients.py).
    """

    schema: int
    created: int
    target: str
    toolchain: Toolchain
    ingredients: dict[str, dict[str, str]] = {}
    model: ModelInfo
    kv_cache: KVCacheSpec
    kernel_library: str = ""
    kernels: list[KernelInfo] = []
    graphs: list[GraphInfo] = []
    tuned_on: str = ""
    segments: list[SegmentInfo]
    program: Program
    has_weights: bool = True
    weights: dict[str, WeightInfo]
    memory: MemoryPlan
    fusion: list[PassReport]
    probe: Probe
    files: dict[str, FileInfo]

    @property
    def code_files(self) -> list[str]:
        """Every file that is executed or says what is."""
        library = [self.kernel_library] if self.kernel_library else []
        segments, kernels, graphs = (s.file for s in self.segments), (k.file for k in self.kernels), (g.file for g in self.graphs)
        return list(dict.fromkeys([*library, *segments, *kernels, *graphs]))

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def load_manifest(directory: Path) -> Manifest:
    """Read and validate DIR/manifest.json.

    Raises ArtifactError if the directory is no artifact or the manifest is damaged, and
    MismatchError if it was written in another schema version.
    """
    path = directory / MANIFEST_NAME
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"{directory} is not an artifact: it has no {MANIFEST_NAME}", hint=_not_artifact_hint(directory)) from None
    except NotADirectoryError:
        raise ArtifactError(
            f"{directory} is a file, not an artifact directory", hint="give the directory that `engine build -o DIR` wrote"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    return parse_manifest(raw, path)


def parse_manifest(raw: bytes, path: Path) -> Manifest:
    """Validate the content of a manifest.json. path: what to call it in a message. Raises as `load_manifest` does."""
    _check_schema(raw, path)
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except msgspec.ValidationError as error:
        raise ArtifactError(
            f"{path} is not a valid manifest: {error}", hint="the file was edited or damaged; build or copy the artifact again"
        ) from None
    _check_paths(manifest, path)
    return manifest


def _not_artifact_hint(directory: Path) -> str:
    if (directory / "config.json").exists():
        return f"this looks like a checkpoint; compile it first: engine build {directory} --target cpu -o DIR"
    return "a build that was stopped leaves no manifest; run `engine build` again"


def _check_schema(raw: bytes, path: Path) -> None:
    try:
        head: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is not JSON: {error}", hint="the file was cut off or damaged; build or copy the artifact again"
        ) from None
    schema = head.get("schema") if isinstance(head, dict) else None
    if schema != SCHEMA_VERSION:
        misfit = Misfit(field="schema", artifact=repr(schema), machine=str(SCHEMA_VERSION))
        raise MismatchError(f"{path} was written by another version of Engine", [misfit], hint="build the artifact again with this version")


def _check_paths(manifest: Manifest, path: Path) -> None:
    weight_files = {weight.file for weight in manifest.weights.values()}
    for name in [*manifest.files, *manifest.code_files, *weight_files]:
        pure = PurePosixPath(name)
        if not name or pure.is_absolute() or ".." in pure.parts or "\0" in name or "\\" in name:
            raise ArtifactError(
                f"{path} names a file outside the artifact: {name!r}", hint="do not use this artifact: it was not written by Engine"
            )
        if name not in manifest.files and (manifest.has_weights or name not in weight_files):
            raise ArtifactError(f"{path} uses {name!r} but lists no digest for it", hint="build or copy the artifact again")
