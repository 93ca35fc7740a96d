"""What `engine build` is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError

QUANTIZE = ("none", "int8", "int4", "fp8", "fp8-block")
WEIGHTS = ("all", "none")
KV_DTYPES = ("auto", "float32", "bfloat16", "int8")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build. model: a Hugging Face directory, a GGUF file or a hub id. output: the artifact's place.

    quantize: none | int8 | int4, on NVIDIA also fp8 | fp8-block. kv_dtype: float32 | bfloat16 | int8, or auto: bfloat16 but for
    weights in float32, whose keys and values are float32 too. weights: all, or none to leave them out
    (then the model may be a directory with a config.json alone). max_context: at most what the
    model was made for (its default). disable_pass: names of graph rewrites to leave out. jobs:
    compiler processes (default: one per core). store: the cache of what is compiled (default:
    $ENGINE_STORE, else one per user). require_warm: fail where something would have to be compiled.
    debug_dump: a directory for graphs and generated code. force: replace an artifact at `output`.
    """

    model: str
    output: Path
    target: str = "cpu"
    quantize: str = "none"
    kv_dtype: str = "auto"
    weights: str = "all"
    max_context: int | None = None
    name: str | None = None
    disable_pass: Sequence[str] = ()
    jobs: int | None = None
    store: Path | None = None
    require_warm: bool = False
    debug_dump: Path | None = None
    force: bool = False
    tuned: Path | None = None
    tunable: bool = False

    def __post_init__(self) -> None:
        for name, known in (("quantize", QUANTIZE), ("kv_dtype", KV_DTYPES), ("weights", WEIGHTS)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}", hint=f"it is one of {', '.join(known)}")
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"jobs is {self.jobs}, but must be at least 1")
        if self.require_warm and self.debug_dump is not None:
            raise UsageError("a debug dump is written while compiling, which require_warm forbids", hint="give one of the two")
