"""What a build does differently for one kind of target than for another, decided once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..artifacts import AnyTarget, CacheGroup, NvidiaTarget
from ..artifacts.store.keys import NOT_IN_KEY
from ..artifacts.tuning import Tuned
from ..errors import BuildError, UnsupportedModelError, UsageError
from ..kernels.linear.packed import Layout
from ..models.checkpoint import Checkpoint
from ..models.parts.attention import AttentionSpec
from ..models.spec import ModelSpec
from .backend import Backend
from .interpret import reference_operators
from .lower import Lowered
from .lower_cpu import CpuBackend
from .nvidia.lower import NvidiaBackend
from .nvidia.references import reference_operators as nvidia_reference_operators
from .nvidia.write_graphs import NO_GRAPHS, Graphs, with_sample, write_graphs
from .partition import Partition
from .routes import routes_info
from .toolchain import Versions, nvidia_versions, versions

BLOCK_SIZE = 32
"""Tokens per KV block: the tile of the attention kernels, and the granularity of prefix reuse."""


NO_CACHE = "float32"
"""What stands for the dtype of keys and values that an encoder does not keep."""

_KV_OF_WEIGHTS = {"float32": {"f32"}, "float16": {"f32", "f16"}}
"""What keys and values are rounded to where all weights are in these formats, so that the cache is no coarser than they are."""


@dataclass(frozen=True, kw_only=True)
class TargetKind:
    """Ingredients of every program, but for what says otherwise.

    layout: of weights. cuts_are_segments: whether attention is compiled like the rest. one_thread: whether segments compute what no pass
    took on a single one. kv_dtypes: what the cache may be. usual_kv_dtype: what it is unless weights or options say otherwise;
    on CPUs whichever of 16 bits is multiplied fastest.
    references: what each operator computes, in plain PyTorch.
    """

    backend: Backend = field(metadata=NOT_IN_KEY)  # what it compiles has keys of its own
    toolchain: Versions
    layout: Layout
    cuts_are_segments: bool
    one_thread: bool
    kv_dtypes: tuple[str, ...] = field(metadata=NOT_IN_KEY)
    usual_kv_dtype: str = field(metadata=NOT_IN_KEY)
    references: Callable[[], Mapping[str, Callable[..., Tensor]]] = field(metadata=NOT_IN_KEY)

    def complete(self, parts: Partition, spec: ModelSpec) -> Partition:
        """The program with the calls that only this kind of target has."""
        return parts

    def check(self, spec: ModelSpec) -> None:
        """Raise UnsupportedModelError for a model that this kind of target does not serve."""

    def check_routes(self, spec: ModelSpec) -> None:
        """Raise BuildError for a model whose routes cannot be captured on this kind of target."""
        routes_info(spec)

    def write_graphs(
        self, directory: Path, parts: Partition, segments: Mapping[str, Lowered], groups: Sequence[CacheGroup], max_context: int
    ) -> Graphs:
        """The part of an artifact that only some targets have; by default none."""
        return NO_GRAPHS

    def kv_dtype(self, wanted: str, checkpoint: Checkpoint, formats: Mapping[str, str]) -> str:
        """The dtype of keys and values for `--kv-dtype wanted`. Raises UsageError for one that this kind does not have."""
        if checkpoint.spec.is_encoder:
            if wanted != "auto":
                raise UsageError(f"--kv-dtype {wanted} is for models that keep keys and values, and encoders do not", hint="leave it out")
            return NO_CACHE
        if wanted != "auto" and wanted not in self.kv_dtypes:
            raise UsageError(f"--kv-dtype {wanted} does not exist for this target", hint=f"it has {', '.join(self.kv_dtypes)}")
        if len(self.kv_dtypes) == 1:
            return self.kv_dtypes[0]
        odd = [size for size in sorted(checkpoint.spec.head_dims) if size % 2]
        if wanted == "bfloat16" and odd:
            raise UsageError(
                f"a KV cache in bfloat16 holds pairs, and heads of size {odd[0]} are odd", hint="leave --kv-dtype out, or take float16"
            )
        if wanted != "auto":
            return wanted
        of_weights = (dtype for dtype, among in _KV_OF_WEIGHTS.items() if among.issuperset(formats.values()))
        return next(of_weights, "float16" if odd else self.usual_kv_dtype)


@dataclass(frozen=True, kw_only=True)
class NvidiaKind(TargetKind):
    """NVIDIA: tokens are drawn on the device, and every size of step is a CUDA graph."""

    def complete(self, parts: Partition, spec: ModelSpec) -> Partition:
        return with_sample(parts, spec.vocab_size)

    def check(self, spec: ModelSpec) -> None:
        if spec.pooling is not None:
            raise UnsupportedModelError(
                f"models that make vectors or scores of texts, such as this {spec.architecture}, run on CPUs only",
                hint="build it with --target cpu",
            )
        if any(isinstance(layer.mixer, AttentionSpec) and layer.mixer.value_size < layer.mixer.head_dim for layer in spec.layers):
            raise UnsupportedModelError(
                f"attention whose values are narrower than its keys, such as that of this {spec.architecture}, is computed on CPUs only",
                hint="build it with --target cpu",
            )

    def check_routes(self, spec: ModelSpec) -> None:
        raise BuildError(
            "--capture-routes is for CPU targets: steps on NVIDIA give back chosen tokens alone",
            hint="build for a CPU: --target cpu",
        )

    def write_graphs(
        self, directory: Path, parts: Partition, segments: Mapping[str, Lowered], groups: Sequence[CacheGroup], max_context: int
    ) -> Graphs:
        return write_graphs(directory, parts, segments, groups, max_context)


def kind_of(target: AnyTarget, tuned: Tuned | None = None, *, tunable: bool = False, toolchain: Versions | None = None) -> TargetKind:
    """The kind of a target.

    tuned, tunable: what `engine tune` found out, and whether it is to find out more. toolchain: by default this machine's. Raises
    BuildError where that is not there, UsageError for tuning of another target or of one that has none.
    """
    if isinstance(target, NvidiaTarget):
        if tuned is not None and tuned.target != str(target):
            raise UsageError(f"--tuned is for {tuned.target}, and this build for {target}", hint="tune on a GPU of the target")
        found = toolchain or nvidia_versions()
        choices = {} if tuned is None else tuned.choices
        return NvidiaKind(
            backend=NvidiaBackend(target=target, versions=found, choices=choices, tunable=tunable),
            toolchain=found,
            layout="rows",
            cuts_are_segments=True,
            one_thread=False,
            kv_dtypes=("bfloat16",),
            usual_kv_dtype="bfloat16",
            references=nvidia_reference_operators,
        )
    if tuned is not None or tunable:
        raise UsageError(f"--tuned and --tunable are for NVIDIA targets, not {target}", hint="leave them out, or say --target sm90")
    found = toolchain or versions()
    return TargetKind(
        backend=CpuBackend(target=target, versions=found),
        toolchain=found,
        layout="panels",
        cuts_are_segments=False,
        one_thread=True,
        kv_dtypes=("float32", "float16", "bfloat16", "int8"),
        usual_kv_dtype="bfloat16" if "avx512_bf16" in target.extras else "float16",
        references=reference_operators,
    )
