"""Keys of what the store keeps: every ingredient that decides the result changes them, and nothing else does."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.artifacts import NvidiaTarget, Target
from engine.compiler import step_program
from engine.compiler.lower_cpu import CpuBackend
from engine.compiler.nvidia import lower as nvidia_lower
from engine.compiler.nvidia.lower import NvidiaBackend
from engine.compiler.step_program import Wanted
from engine.compiler.target_kind import TargetKind
from engine.compiler.toolchain import Versions
from engine.kernels import ops
from engine.models.checkpoint import Checkpoint, Generation, LoadedTensor, ParameterInfo
from engine.models.config import LayerConfig, ModelConfig, RopeConfig

VERSIONS = Versions(torch="2.13.0", compiler="g++ 12", triton="3.7.1")
CONFIG = ModelConfig(
    architecture="llama",
    hidden_size=64,
    intermediate_size=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=300,
    max_context=128,
    rms_eps=1e-5,
    rope=RopeConfig(theta=10000.0),
    layers=(LayerConfig(), LayerConfig()),
    tie_embeddings=False,
)


class Described(Checkpoint):
    """A checkpoint that only says what it would hold."""

    def __init__(self, config: ModelConfig, stored: str = "f32") -> None:
        self.name, self.config, self.generation = "any", config, Generation(bos_id=None, eos_ids=())
        self.parameters = {"embed.weight": ParameterInfo(shape=(300, 64), format=stored)}  # type: ignore[arg-type]

    def read(self, parameter: str) -> LoadedTensor:
        return LoadedTensor(format="f32", data=torch.zeros(300, 64))

    def write_tokenizer(self, directory: Path) -> None:
        raise NotImplementedError


KIND = TargetKind(
    backend=CpuBackend(target=Target(level="x86-64-v3"), versions=VERSIONS),
    toolchain=VERSIONS,
    layout="panels",
    cuts_are_segments=False,
    kv_dtypes=("float32",),
    references=dict,
)
WANTED = Wanted(checkpoint=Described(CONFIG), formats={"embed.weight": "f32"}, kv_dtype="float32", kind=KIND, disable_pass=())


def other(value: Any) -> Any:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value * 2 + 1
        case str():
            return "yarn" if value == "none" else value + "x"
        case tuple() if value and isinstance(value[0], LayerConfig):
            return (*value[:-1], LayerConfig(window=7))
        case tuple():
            return (*value, 2.0)
        case RopeConfig():
            return dataclasses.replace(value, theta=500000.0)
    raise AssertionError(value)


def forced(config: Any, field: str, value: Any) -> Any:
    """A copy with one field changed, even to what the class itself would refuse."""
    copy = object.__new__(type(config))
    for item in dataclasses.fields(config):
        object.__setattr__(copy, item.name, value if item.name == field else getattr(config, item.name))
    return copy


def configurations() -> Iterator[tuple[str, ModelConfig]]:
    for field in dataclasses.fields(ModelConfig):
        yield field.name, forced(CONFIG, field.name, other(getattr(CONFIG, field.name)))
    for field in dataclasses.fields(RopeConfig):
        yield f"rope.{field.name}", forced(CONFIG, "rope", forced(CONFIG.rope, field.name, other(getattr(CONFIG.rope, field.name))))


@pytest.mark.parametrize(("name", "config"), list(configurations()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_field_of_a_model_is_part_of_its_program(name: str, config: ModelConfig) -> None:
    assert dataclasses.replace(WANTED, checkpoint=Described(config)).key() != WANTED.key()


@pytest.mark.parametrize(
    "change",
    [
        {"formats": {"embed.weight": "q8_0"}},
        {"checkpoint": Described(CONFIG, stored="bf16")},
        {"kv_dtype": "bfloat16"},
        {"disable_pass": ("fuse_silu_mul",)},
        {"kind": dataclasses.replace(KIND, layout="rows")},
        {"kind": dataclasses.replace(KIND, cuts_are_segments=True)},
        *(
            {"kind": dataclasses.replace(KIND, toolchain=dataclasses.replace(VERSIONS, **{f.name: "9"}))}
            for f in dataclasses.fields(Versions)
        ),
    ],
    ids=str,
)
def test_everything_else_that_decides_a_program(change: dict[str, Any]) -> None:
    assert dataclasses.replace(WANTED, **change).key() != WANTED.key()


def test_the_same_is_the_same() -> None:
    assert dataclasses.replace(WANTED, checkpoint=Described(CONFIG)).key() == WANTED.key()
    assert dataclasses.replace(WANTED, disable_pass=("a", "b")).key() == dataclasses.replace(WANTED, disable_pass=["b", "a"]).key()
    renamed = Described(CONFIG)
    renamed.name = "another"
    assert dataclasses.replace(WANTED, checkpoint=renamed).key() == WANTED.key()


def test_every_source_that_makes_programs_is_part_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {source.partition("\0")[0] for source in step_program._sources()}
    assert {"passes/pipeline.py", "models/decoder.py", "compiler/partition.py", "kernels/ops.py", "kernels/nvidia/packed_rows.py"} <= names
    before, sources = WANTED.key(), step_program._sources()
    for index in range(len(sources)):
        changed = (*sources[:index], sources[index] + "#", *sources[index + 1 :])
        monkeypatch.setattr(step_program, "_sources", lambda changed=changed: changed)
        assert WANTED.key() != before


def backends() -> Iterator[Any]:
    for backend in (
        CpuBackend(target=Target(level="x86-64-v3"), versions=VERSIONS),
        NvidiaBackend(target=NvidiaTarget(capability=90), versions=VERSIONS),
    ):
        yield pytest.param(backend, id=type(backend).__name__)


@pytest.mark.parametrize("backend", list(backends()))
def test_what_a_segment_depends_on(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    key = backend.segment_key("form")
    assert backend.segment_key("form") == key
    assert backend.segment_key("form ") != key
    for field in dataclasses.fields(Versions):
        changed = dataclasses.replace(backend, versions=dataclasses.replace(VERSIONS, **{field.name: "9"}))
        assert changed.segment_key("form") != key
    target = Target(level="x86-64-v4") if isinstance(backend, CpuBackend) else NvidiaTarget(capability=100)
    assert dataclasses.replace(backend, target=target).segment_key("form") != key
    monkeypatch.setattr(ops, "SCHEMAS", (*ops.SCHEMAS, "more(Tensor x) -> Tensor"))
    assert backend.segment_key("form") != key


def test_every_kernel_is_part_of_a_launch_plan() -> None:
    recipe = "".join(source.partition("\0")[0] + "\n" for source in nvidia_lower._recipe())
    kernels = Path(ops.__file__).parent / "nvidia"
    for path in [*kernels.glob("*.py"), *Path(nvidia_lower.__file__).parent.glob("*.py")]:
        assert f"{path.name}\n" in recipe, path
