"""Keys of what the store keeps: every ingredient that decides the result changes them, and nothing else does."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT, copy_checkout
from printed_keys import keys
from tiny_specs import tiny_layer, tiny_spec

from engine.artifacts import NvidiaTarget, Target
from engine.artifacts.store.keys import Identity
from engine.compiler import lower_cpu, sources, step_program
from engine.compiler.imports import needed_by
from engine.compiler.lower_cpu import CpuBackend
from engine.compiler.nvidia import lower as lower_nvidia
from engine.compiler.nvidia.lower import NvidiaBackend
from engine.compiler.step_program import Wanted
from engine.compiler.target_kind import TargetKind
from engine.compiler.toolchain import Versions, nvidia_versions, versions
from engine.kernels import library
from engine.kernels.nvidia.emitters import MODULES
from engine.models.parts.attention import GateSpec, QKNormSpec, TemperatureSpec
from engine.models.parts.latent_attention import LatentAttentionSpec
from engine.models.parts.layer_inputs import LayerInputsSpec
from engine.models.parts.mlp import MLPSpec
from engine.models.parts.moe import BranchNorms, ExpertGroupsSpec, MoESpec, RouterSpec
from engine.models.parts.norm import NormSpec
from engine.models.parts.pooling import DenseSpec, PoolingSpec
from engine.models.parts.rope import RopeSpec
from engine.models.spec import EmbedSpec, LayerNorms, LayerSpec

VERSIONS = Versions(torch="2.13.0", compiler="g++ 12", triton="3.7.1")
# Every part that there is, so that every field of every part can be changed.
NORM = NormSpec(kind="layer", eps=1e-5, bias=True)
MIXER = tiny_layer(
    qk_norm=QKNormSpec(norm=NORM),
    value_norm=NORM,
    output_norm=NORM,
    gate=GateSpec(),
    temperature=TemperatureSpec(beta=0.1, length=8192),
    source=0,
).mixer
NORMS = LayerNorms(before_mixer=NORM, after_mixer=NORM, before_channel=NORM, after_channel=NORM)
LAYER = LayerSpec(mixer=MIXER, channel=MLPSpec(size=96, inner_norm=NORM), norms=NORMS)
MLP = MLPSpec(size=96, inner_norm=NORM)
EXPERTS = MoESpec(
    router=RouterSpec(experts=4, chosen=2, groups=ExpertGroupsSpec(count=2, kept=1), norm=NORM),
    experts=MLP,
    shared=MLP,
    norms=BranchNorms(before_experts=NORM, after_experts=NORM, before_shared=NORM, after_shared=NORM),
)
SPARSE = LayerSpec(mixer=MIXER, channel=EXPERTS, norms=NORMS)
LATENT = LayerSpec(
    mixer=LatentAttentionSpec(
        num_heads=4,
        rank=32,
        query_rank=24,
        plain_dim=16,
        value_dim=16,
        rope=RopeSpec(theta=10000.0, width=8),
        scale=0.2,
        norm=NORM,
        temperature=TemperatureSpec(beta=0.1, length=8192),
    ),
    channel=MLP,
    norms=NORMS,
)
POOLING = PoolingSpec(kind="last", dense=(DenseSpec(size=8, norm=NORM),))
INPUTS = LayerInputsSpec(size=8, activation="silu", norm=NORM, post_norm=NORM)
SPEC = tiny_spec(tiny_layer(), LAYER, SPARSE, LATENT, embed=EmbedSpec(norm=NORM), final=NORM, pooling=POOLING, layer_inputs=INPUTS)
FORM = '{"inputs":[["float32",["d0",8]]],"nodes":[["aten.relu.default",[{"v":0}],{}]],"outputs":[1]}'
CPU = CpuBackend(target=Target(level="x86-64-v3"), versions=VERSIONS)
NVIDIA = NvidiaBackend(target=NvidiaTarget(capability=90), versions=VERSIONS)
KIND = TargetKind(
    backend=CPU,
    toolchain=VERSIONS,
    layout="panels",
    cuts_are_segments=False,
    one_thread=True,
    kv_dtypes=("float32",),
    usual_kv_dtype="float32",
    references=dict,
)
WANTED = Wanted(
    spec=SPEC,
    formats={"embed.weight": "f32"},
    stored={"embed.weight": "f32"},
    kv_dtype="float32",
    kind=KIND,
    disable_pass=(),
    capture_routes=False,
    block_size=32,
    sources={"passes/pipeline.py": "sha256:1"},
)


def other(value: Any) -> Any:
    """Another value of the same kind; any where there is none."""
    match value:
        case None:
            return 1
        case bool():
            return not value
        case int() | float():
            return value * 2 + 1
        case str():
            return value + "x"
        case tuple():
            return (*value, value[-1] if value else 2.0)
    raise AssertionError(value)


def forced(part: Any, field: str, value: Any) -> Any:
    """A copy with one field changed, even to what the class itself would refuse."""
    copy = object.__new__(type(part))
    for item in dataclasses.fields(part):
        object.__setattr__(copy, item.name, value if item.name == field else getattr(part, item.name))
    return copy


def changed(part: Any, name: str = "spec") -> Iterator[tuple[str, Any]]:
    """The part with each field changed in turn, at any depth, and with each part in it left out."""
    for field in dataclasses.fields(part):
        value, within = getattr(part, field.name), f"{name}.{field.name}"
        if dataclasses.is_dataclass(value):
            yield f"{within} left out", forced(part, field.name, None)
            yield from ((deeper, forced(part, field.name, inside)) for deeper, inside in changed(value, within))
            continue
        yield within, forced(part, field.name, other(value))
        for index, item in enumerate(value if isinstance(value, tuple) else ()):
            for deeper, inside in changed(item, f"{within}.{index}"):
                yield deeper, forced(part, field.name, (*value[:index], inside, *value[index + 1 :]))


CHANGED = dict(changed(SPEC))


def parts_of(part: Any) -> Iterator[type]:
    yield type(part)
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            yield from parts_of(item) if dataclasses.is_dataclass(item) else ()


@pytest.mark.parametrize("name", CHANGED)
def test_every_field_of_a_model_is_part_of_its_program(name: str) -> None:
    assert dataclasses.replace(WANTED, spec=CHANGED[name]).identity().key != WANTED.identity().key


def test_the_changes_reach_every_part() -> None:
    from engine.models import spec
    from engine.models.parts import attention, latent_attention, layer_inputs, mlp, moe, norm, pooling, rope

    modules = (spec, attention, latent_attention, layer_inputs, mlp, moe, norm, pooling, rope)
    specs = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}
    assert set(parts_of(SPEC)) == {kind for kind in specs if kind.__module__.startswith("engine.models.")}
    assert len(CHANGED) > 100


def test_ingredients_are_named_by_where_they_stand() -> None:
    names = WANTED.identity().ingredients
    assert {"spec.max_context", "spec.layers.*.mixer.rope.theta", "spec.head.tied"} <= names.keys()


CHANGES: list[dict[str, Any]] = [
    {"spec": dataclasses.replace(SPEC, layers=(*SPEC.layers, LAYER))},
    {"formats": {"embed.weight": "q8_0"}},
    {"formats": {"embed.weight": "f32", "head.weight": "f32"}},
    {"stored": {"embed.weight": "bf16"}},
    {"kv_dtype": "bfloat16"},
    {"disable_pass": ("fuse_gate",)},
    {"capture_routes": True},
    {"block_size": 16},
    {"sources": {"passes/pipeline.py": "sha256:2"}},
    {"sources": {"passes/pipeline2.py": "sha256:1"}},
    {"kind": dataclasses.replace(KIND, layout="rows")},
    {"kind": dataclasses.replace(KIND, cuts_are_segments=True)},
    {"kind": dataclasses.replace(KIND, one_thread=False)},
    *({"kind": dataclasses.replace(KIND, toolchain=dataclasses.replace(VERSIONS, **{f.name: "9"}))} for f in dataclasses.fields(Versions)),
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_everything_else_that_decides_a_program(change: dict[str, Any]) -> None:
    assert dataclasses.replace(WANTED, **change).identity().key != WANTED.identity().key


def test_the_changes_leave_no_field_out() -> None:
    assert {field.name for field in dataclasses.fields(Wanted)} == {name for change in CHANGES for name in change}


def test_the_same_is_the_same() -> None:
    assert dataclasses.replace(WANTED, spec=dataclasses.replace(SPEC)).identity() == WANTED.identity()
    # What is compiled has keys of its own, and is not traced anew for them.
    assert dataclasses.replace(WANTED, kind=dataclasses.replace(KIND, backend=NVIDIA, kv_dtypes=())).identity() == WANTED.identity()


@pytest.mark.parametrize("backend", [CPU, NVIDIA], ids=lambda backend: type(backend).__name__)
def test_what_a_segment_depends_on(backend: Any) -> None:
    key = backend.segment(FORM).key
    assert backend.segment(FORM).key == key
    for part, another in (("float32", "float16"), ("d0", "7"), ("relu", "abs"), ("[1]", "[0]")):
        assert backend.segment(FORM.replace(part, another)).key != key
    for field in dataclasses.fields(Versions):
        changed = dataclasses.replace(backend, versions=dataclasses.replace(VERSIONS, **{field.name: "9"}))
        assert changed.segment(FORM).key != key
    target = Target(level="x86-64-v3", extras=("avx_vnni",)) if isinstance(backend, CpuBackend) else NvidiaTarget(capability=100)
    assert dataclasses.replace(backend, target=target).segment(FORM).key != key


def test_what_was_tuned_is_part_of_plans() -> None:
    key, choices = NVIDIA.segment(FORM).key, {"linear dense 8x8": [(16, "few"), (None, "many")]}
    tuned = dataclasses.replace(NVIDIA, choices=choices)
    assert tuned.segment(FORM).key != key
    assert dataclasses.replace(NVIDIA, choices=dict(choices)).segment(FORM).key == tuned.segment(FORM).key
    for changed in ({"linear dense 8x9": choices["linear dense 8x8"]}, {"linear dense 8x8": [(17, "few"), (None, "many")]}, {}):
        assert dataclasses.replace(NVIDIA, choices=changed).segment(FORM).key != tuned.segment(FORM).key
    assert dataclasses.replace(NVIDIA, tunable=True).segment(FORM).key != key


def test_what_the_kernel_library_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    key = CPU.library().key
    assert CPU.library().key == key
    assert dataclasses.replace(CPU, target=Target(level="x86-64-v3", extras=("avx_vnni",))).library().key != key
    for field in dataclasses.fields(Versions):
        assert dataclasses.replace(CPU, versions=dataclasses.replace(VERSIONS, **{field.name: "9"})).library().key != key
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-ffast-math"))
    assert CPU.library().key != key


PLANS = {"plan": FORM} | {
    f"plan with {operator}": FORM.replace("aten.relu.default", f"engine.{operator}.default")
    for operator in (
        *("linear_rows_dense", "linear_rows_q8_0", "logits_rows_fp8_block", "embedding_rows_q4_1"),
        *("rms_norm", "silu_mul", "rms_norm_quantize_fp8_channel", "attention", "sample"),
        *("route", "experts_rows_dense", "latent_attention"),
    )
}
"""A form of each emitter's module, and one without."""


def identities() -> dict[str, Identity]:
    wanted = dataclasses.replace(WANTED, sources=sources.sources(*step_program.SOURCES))
    return {"program": wanted.identity(), "segment": CPU.segment(FORM), "kernels": CPU.library()} | {
        kind: NVIDIA.segment(form) for kind, form in PLANS.items()
    }


SOURCES = {
    "program": step_program.SOURCES,
    "segment": lower_cpu.SEGMENT_SOURCES,
    "kernels": (*lower_cpu.LIBRARY_SOURCES, *(f"kernels/cpu/{path.name}" for path in library.source_files())),
    **{kind: lower_nvidia.plan_sources(form) for kind, form in PLANS.items()},
}


def test_every_source_is_part_of_the_keys_of_what_it_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in turn gets one byte more, in a copy: passes, kernels (C++ included), emitters, buckets."""
    package = tmp_path / "engine"
    copy_checkout(package, but="tests")
    monkeypatch.setattr(sources, "PACKAGE", package)
    before = identities()
    changed_by: dict[str, set[str]] = {kind: set() for kind in before}
    for name in sources.source_names([file for files in SOURCES.values() for file in files], package):
        content = (package / name).read_bytes()
        (package / name).write_bytes(content + b"\n")
        sources._digests.cache_clear()
        changed_by |= {kind: changed_by[kind] | {name} for kind, found in identities().items() if found.key != before[kind].key}
        (package / name).write_bytes(content)
    sources._digests.cache_clear()
    assert identities() == before
    assert changed_by == {kind: set(sources.source_names(files, package)) for kind, files in SOURCES.items()}
    assert {"passes/pipeline.py", "models/decoder.py", "kernels/ops.py", "kernels/nvidia/packed_rows.py"} <= changed_by["program"]
    assert {"compiler/nvidia/plan.py", "compiler/nvidia/guard.cpp", "kernels/nvidia/emitters.py"} <= changed_by["plan"]
    assert (
        changed_by["plan with linear_rows_dense"] - changed_by["plan"]
        == {f"kernels/nvidia/{name}.py" for name in ("context", "choices", "linear", "linear_cuts", "linear_launches")} - changed_by["plan"]
    )
    assert {"kernels/cpu/attention.h", "kernels/cpu/linear_quantized.h"} <= changed_by["kernels"]


@pytest.mark.parametrize("module", sorted(set(MODULES.values())))
def test_an_emitter_is_part_of_the_plans_that_it_makes_and_of_no_others(module: str) -> None:
    for kind, form in PLANS.items():
        operator = kind.removeprefix("plan with ")
        needed = operator in MODULES and needed_by(f"kernels/nvidia/{MODULES[operator]}.py")
        assert (f"kernels/nvidia/{module}.py" in lower_nvidia.plan_sources(form)) == bool(
            needed and f"kernels/nvidia/{module}.py" in needed
        )
    assert module in {MODULES[kind.removeprefix("plan with ")] for kind in PLANS if kind != "plan"}


def test_a_new_kernel_file_is_part_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(library.source_files())
    shutil.copytree(library._SOURCES, tmp_path / "cpu")
    (tmp_path / "cpu" / "another.h").touch()
    monkeypatch.setattr(library, "_SOURCES", tmp_path / "cpu")
    assert {path.name for path in library.source_files()} == {path.name for path in before} | {"another.h"}


# What these say or keep reaches a program only as an ingredient, or not at all.
NOT_OF_PROGRAMS = {
    "artifacts/store/claim.py": "the store",
    "artifacts/files.py": "integrity of artifacts",
    "artifacts/json_file.py": "what is compiled later",
    "artifacts/store/keys.py": "the store",
    "artifacts/launch_plan.py": "what is compiled later",
    "artifacts/locked_directory.py": "the store",
    "artifacts/numbers.py": "what an artifact's files may say",
    "artifacts/nvidia_target.py": "the kind of target, an ingredient",
    "artifacts/printable.py": "integrity of artifacts",
    "artifacts/step_arrays.py": "steps of the probe",
    "artifacts/store/store.py": "the store",
    "artifacts/store/entry.py": "the store",
    "artifacts/target.py": "the kind of target, an ingredient",
    "artifacts/targets.py": "the kind of target, an ingredient",
    "artifacts/tuning.py": "what is compiled later",
    "artifacts/verify.py": "the release of torch, an ingredient",
    "compiler/backend.py": "what is compiled later",
    "compiler/compile_cpu.py": "what is compiled later",
    "compiler/debug_dump.py": "shows",
    "compiler/environment.py": "what is compiled later",
    "compiler/imports.py": "which digests, ingredients",
    "compiler/interpret.py": "references, for the probe",
    "compiler/lower.py": "what is compiled later",
    "compiler/lower_cpu.py": "what is compiled later",
    "compiler/progress.py": "shows",
    "compiler/quantizer.py": "makes weights, later",
    "compiler/recipes.py": "makes weights, later",
    "compiler/sources.py": "digests, ingredients",
    "compiler/toolchain.py": "versions, ingredients",
    "version.py": "the version of Engine, for the manifest",
}


@pytest.mark.parametrize(
    ("root", "kind", "without"),
    [
        ("compiler/step_program.py", "program", set(NOT_OF_PROGRAMS)),
        ("compiler/compile_cpu.py", "segment", set()),
        ("kernels/library.py", "kernels", set()),
        ("compiler/nvidia/compile_form.py", "plan", set()),
    ],
)
def test_the_sources_of_a_key_are_all_that_its_maker_imports(root: str, kind: str, without: set[str]) -> None:
    listed = set(sources.source_names(SOURCES[kind]))
    assert needed_by(root) - listed == without
    assert [name for name in listed if not (ROOT / name).is_file()] == []


def test_keys_are_the_same_in_another_place(tmp_path: Path) -> None:
    """Another checkout, home, directory, host, user, locale, time zone, order of hashing, and variables that compilers read."""
    package = tmp_path / "elsewhere" / "engine"
    copy_checkout(package, but="tests")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300, "max_position_embeddings": 64}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(package.parent),
        "HOME": str(tmp_path),
        "USER": "another",
        "LOGNAME": "another",
    }
    environment |= {
        "HOSTNAME": "elsewhere",
        "LC_ALL": "C",
        "LANG": "tr_TR.UTF-8",
        "TZ": "Asia/Tokyo",
        "PYTHONHASHSEED": "7",
        "CXX": "clang++",
    }
    environment |= {
        "TORCHINDUCTOR_USE_FAST_MATH": "1",
        "TRITON_DEFAULT_FP_FUSION": "0",
        "OMP_NUM_THREADS": "3",
        "XDG_CACHE_HOME": "/nowhere",
    }
    command = [sys.executable, "-P", str(ROOT / "tests" / "support" / "printed_keys.py"), str(tmp_path / "model")]
    if subprocess.run(["unshare", "--uts", "hostname", "elsewhere"], capture_output=True, check=False).returncode == 0:
        command = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh", *command]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == keys(tmp_path / "model")


@pytest.mark.parametrize("find", [versions, nvidia_versions])
def test_versions_are_versions(find: Any) -> None:
    """No path, name or time of a machine is among the ingredients."""
    values = dataclasses.asdict(find())
    assert all("/" not in value for value in values.values()), values
    assert values["torch"]
    assert values["torch_commit"]
    assert values["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
