"""What `engine build` and `engine pack` are asked for. No imports beyond the standard library: the command line reads this before torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..options.option import check_choices, option, positional, required, same_as
from ..options.store import StoreOptions
from ..options.values import COUNT, DIRECTORY, FILE, OUTPUT

_FORCE = "replace an artifact that is already at DIR"
_NAME = "the model's name in the artifact and in the API (default: the checkpoint's)"


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build, from what, and where to. Raises UsageError for values that cannot work."""

    model: str = positional("a Hugging Face directory, a GGUF file or a name on the hub", metavar="MODEL")
    output: Path = required("where the artifact goes", **OUTPUT)
    target: str = option(
        "cpu",
        "cpu: the best for this machine. cpu-x86-64-v3 (AVX2) or cpu-x86-64-v4 (AVX-512): one artifact for a fleet, "
        "built anywhere, without what only some of its machines have. sm90: NVIDIA H100, H200, GH200, built anywhere with Triton "
        "(pip install 'engine-llm[nvidia]')",
        metavar="T",
    )
    quantize: str = option(
        "none",
        "int8 halves the memory and time per token of 16-bit weights and costs next to no accuracy, int6 and int5 are between, int4 halves "
        "both again and costs most (see engine verify --against). On NVIDIA also fp8, which "
        "multiplies FP8 weights (a scale per output; fp8-block: per 128 x 128) "
        "with activations rounded to FP8 as they come: half the memory, twice the arithmetic. none keeps the checkpoint's weights; "
        "what has no more bits than asked for, as most matrices of a Q4_K_M file, stays as it is",
        choices=("none", "int8", "int6", "int5", "int4", "fp8", "fp8-block"),
    )
    calibrate: Path | None = option(
        None,
        "with --quantize int6, int5 or int4: a text on which the model finds out which inputs of its matrices matter most, so that their "
        "weights are rounded best (default: 2,048 random tokens, which does nearly as well and needs no data)",
        **FILE,
    )
    kv_dtype: str = option(
        "auto",
        "on CPU: against float32, float16 and bfloat16 fit twice the tokens into the KV cache, int8, with a scale for each token and "
        "head, almost four times. Their divergence from float32, in nats: float16 0.000001 (SmolLM2 135M) and 0.00001 (Qwen2.5 0.5B, "
        "whose keys are large), bfloat16 0.00009 and 0.0004, int8 0.0016 and 0.039. auto is float32 or float16 if the weights are, else "
        "what is multiplied fastest: bfloat16 on targets with +avx512_bf16, float16 on others; on NVIDIA always bfloat16",
        choices=("auto", "float32", "float16", "bfloat16", "int8"),
    )
    weights: str = option(
        "all",
        "none leaves the weights out: the code of an architecture alone, for which a directory with a config.json is enough. "
        "It can be inspected and benchmarked; to serve it, engine pack adds the weights of any such checkpoint",
        choices=("all", "none"),
    )
    max_context: int | None = option(
        None, "longest prompt plus answer, in tokens; at most the model's own limit (default: that limit)", **COUNT
    )
    ignore_config: Sequence[str] = option(
        (),
        "accept a setting of the model's configuration that is not known: only if it changes nothing that the model computes; "
        "may be given more than once",
        metavar="NAME",
    )
    name: str | None = option(None, _NAME)
    disable_pass: Sequence[str] = option(
        (),
        "leave out one graph rewrite, to see what it gives; may be given more than once (`engine inspect` lists those that ran)",
        metavar="NAME",
    )
    capture_routes: bool = option(
        False,
        "of a model with experts: make those that each token chose a result, which requests can ask for (return_routed_experts) and "
        "`engine inspect --routes` shows; changes no other bit (CPU targets)",
    )
    tuned: Path | None = option(
        None, "choose among kernels by what `engine tune` measured on a GPU, instead of by first guesses (NVIDIA targets)", **FILE
    )
    tunable: bool = option(
        False, "keep all candidates of every kernel in the artifact, for `engine tune`; more to compile and a few MB more (NVIDIA targets)"
    )
    jobs: int | None = option(None, "compiling processes; each takes up to 1 GB (default: by cores)", **COUNT)
    store: Path | None = same_as(StoreOptions, "store")
    require_warm: bool = option(
        False,
        "fail, and say which ingredient of which key differs, where something would have to be compiled: for CI, where a slow "
        "build is a broken cache",
    )
    debug_dump: Path | None = option(None, "write graphs before and after each pass, and the generated code", **DIRECTORY)
    force: bool = option(False, _FORCE)

    def __post_init__(self) -> None:
        check_choices(self)
        if self.calibrate is not None and not self.is_calibrated:
            raise UsageError(
                f"--calibrate is for --quantize int6, int5 and int4, not {self.quantize}",
                hint="leave it out: nothing here depends on a text",
            )
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"jobs is {self.jobs}, but must be at least 1", hint="leave it out for one per core")
        if self.require_warm and self.debug_dump is not None:
            raise UsageError("a debug dump is written while compiling, which require_warm forbids", hint="give one of the two")

    @property
    def is_calibrated(self) -> bool:
        """Whether weights are quantized by the importance of their input channels."""
        return self.quantize in ("int6", "int5", "int4")


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Whose code, whose weights, and where the new artifact goes."""

    code: Path = positional("an artifact, with weights or without (engine build --weights none)", type=Path, metavar="CODE")
    weights_from: str = required("a Hugging Face directory, a GGUF file or a name on the hub", metavar="CHECKPOINT")
    calibrate: Path | None = option(None, "the text that the code was calibrated with, if it was with one", **FILE)
    ignore_config: Sequence[str] = same_as(BuildOptions, "ignore_config")
    output: Path = required("where the new artifact goes", **OUTPUT)
    name: str | None = option(None, _NAME)
    force: bool = option(False, _FORCE)
