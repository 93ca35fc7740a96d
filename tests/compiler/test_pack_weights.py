"""`engine pack`: one artifact's code and another checkpoint's weights, and every way in which they do not belong together."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from random_checkpoints import write_random_checkpoint

from engine.artifacts import Manifest, SamplingDefaults, load_manifest, verify
from engine.artifacts.manifest import MANIFEST_NAME
from engine.compiler.add_weights import add_weights
from engine.compiler.build import build
from engine.compiler.model_facts import made_for, model_facts
from engine.compiler.options import BuildOptions, PackOptions
from engine.compiler.progress import Reporter
from engine.compiler.run_artifact import artifact_logits
from engine.errors import ArtifactError, BuildError, MismatchError
from engine.models.open import open_checkpoint
from engine.models.parts.attention import AttentionSpec
from engine.models.spec import LayerSpec, ModelSpec

ENGINE = Path(sys.executable).with_name("engine")
PROMPT = [5, 9, 100, 7, 3]


@pytest.fixture(scope="module")
def code(tiny_checkpoint: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's code alone, from its config.json alone."""
    directory = tmp_path_factory.mktemp("code")
    (directory / "config-only").mkdir()
    shutil.copy(tiny_checkpoint / "config.json", directory / "config-only")
    build(BuildOptions(model=str(directory / "config-only"), output=directory / "code", weights="none", store=store))
    return directory / "code"


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def without_time(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, created=0)


def test_without_any_compiler_the_result_is_what_a_build_makes(
    code: Path, tiny_checkpoint: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    """With nothing on PATH, and not even a store to look into."""
    environment = {**os.environ, "PATH": str(tmp_path / "nothing"), "HOME": str(tmp_path / "home"), "PYTHONSAFEPATH": "1"}
    assert [name for name in ("cc", "g++", "gcc", "clang", "ld", "as") if shutil.which(name, path=environment["PATH"])] == []
    command = [str(ENGINE), "pack", str(code), "--weights-from", str(tiny_checkpoint), "-o", str(tmp_path / "packed")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 compiled, 3 reused" in " ".join(done.stderr.split())
    ours, theirs = files_of(tmp_path / "packed"), files_of(tiny_artifact)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == [MANIFEST_NAME]
    assert without_time(load_manifest(tmp_path / "packed")) == without_time(load_manifest(tiny_artifact))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed"]


def test_a_fine_tune_computes_what_its_own_build_computes(code: Path, store: Path, tmp_path: Path) -> None:
    tuned = write_random_checkpoint("llama", tmp_path / "tuned", seed=23)
    (tuned / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20, "do_sample": True}))
    add_weights(PackOptions(code=code, weights_from=str(tuned), output=tmp_path / "packed", name="tuned"))
    build(BuildOptions(model=str(tuned), output=tmp_path / "built", store=store))
    verify(tmp_path / "packed", load_manifest(tmp_path / "packed"))
    assert load_manifest(tmp_path / "packed").model.name == "tuned"
    sampling = [load_manifest(tmp_path / name).sampling for name in ("packed", "built")]
    assert sampling == [SamplingDefaults(temperature=0.6, top_k=20)] * 2
    (packed,), (built,) = (artifact_logits(tmp_path / name, [PROMPT], last_only=True) for name in ("packed", "built"))
    assert packed.tolist() == built.tolist()


def test_text_that_could_not_be_served_fails_before_weights_are_packed(code: Path, tmp_path: Path) -> None:
    tuned = write_random_checkpoint("llama", tmp_path / "tuned", seed=23)
    (tuned / "chat_template.jinja").write_text("{% if %}")
    reporter = Reporter(quiet=True)
    with pytest.raises(BuildError, match="does not parse"):
        add_weights(PackOptions(code=code, weights_from=str(tuned), output=tmp_path / "packed"), reporter)
    assert reporter.summary.seconds == {}, "no stage was over"
    assert not (tmp_path / "packed").exists()


def test_a_whole_artifact_lends_its_code_too_and_may_be_replaced(tiny_artifact: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(tiny_artifact, tmp_path / "own"))
    tuned = write_random_checkpoint("llama", tmp_path / "tuned", seed=24)
    add_weights(PackOptions(code=own, weights_from=str(tuned), output=own, force=True))
    manifest = load_manifest(own)
    verify(own, manifest)
    assert manifest.model.name == "tuned"
    assert manifest.probe != load_manifest(tiny_artifact).probe


def test_the_reference_records_the_probe_where_the_code_does_not_run(
    code: Path, tiny_checkpoint: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.compiler.stages.can_run", lambda manifest: False)
        patch.setenv("PATH", str(tmp_path / "nothing"))
        add_weights(PackOptions(code=code, weights_from=str(tiny_checkpoint), output=tmp_path / "packed"))
    probe = load_manifest(tmp_path / "packed").probe
    assert probe.recorded_on == "reference"
    golden = load_manifest(tiny_artifact).probe
    assert [prompt.top_tokens[0] for prompt in probe.prompts] == [prompt.top_tokens[0] for prompt in golden.prompts]
    artifact_logits(tmp_path / "packed", [PROMPT], last_only=True)  # replays the probe


LAYERS = "spec.layers.*."
THETA = f"{LAYERS}mixer.rope.theta"
OTHERS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "eps": (
        "llama",
        {"rms_norm_eps": 1e-6},
        ["spec.final.eps 1e-05 1e-06", f"{LAYERS}norms.before_mixer.eps 1e-05 at 0-2 1e-06 at 0-2"],
    ),
    "rope": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        [f"{THETA} 10000.0 at 0-2 500000.0 at 0-2"],
    ),
    "context": ("llama", {"max_position_embeddings": 512}, ["spec.max_context 256 512"]),
    "shape": ("llama", {"intermediate_size": 96}, [f"{LAYERS}channel.size 92 at 0-2 96 at 0-2"]),
    "layers": ("llama", {"num_hidden_layers": 2}, [f"{LAYERS}mixer.window 0 at 0-2 0 at 0-1"]),
    "tied": ("llama", {"tie_word_embeddings": True}, ["spec.head.tied false true", "stored.head.weight f32 none"]),
    "window": ("mistral", {"head_dim": 10}, ["spec.architecture llama mistral", f"{LAYERS}mixer.window 0 at 0-2 7 at 0-2"]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_model_is_refused_with_what_differs(code: Path, tmp_path: Path, name: str) -> None:
    family, overrides, rows = OTHERS[name]
    other = write_random_checkpoint(family, tmp_path / "other", **overrides)
    with pytest.raises(MismatchError, match="was made for another model than other") as caught:
        add_weights(PackOptions(code=code, weights_from=str(other), output=tmp_path / "packed"))
    table = [" ".join(line.split()) for line in str(caught.value).splitlines()]
    assert "field artifact checkpoint" in table
    assert [row for row in rows if row not in table] == []
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_other_storage_is_refused(code: Path, smollm2_gguf: Path, tmp_path: Path) -> None:
    import torch

    narrower = write_random_checkpoint("llama", tmp_path / "narrower", dtype=torch.bfloat16)
    with pytest.raises(MismatchError, match=r"stored\.layers\.\*\.mlp\.gate\.weight +f32 at 0-2 +bf16 at 0-2"):
        add_weights(PackOptions(code=code, weights_from=str(narrower), output=tmp_path / "packed"))
    with pytest.raises(MismatchError, match=r"stored\.layers\.\*\.mlp\.gate\.weight +f32 at 0-2 +q4_1 at 0-29"):
        add_weights(PackOptions(code=code, weights_from=str(smollm2_gguf), output=tmp_path / "packed"))


def test_an_artifact_that_does_not_say_what_it_was_made_for(code: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    silent = Path(shutil.copytree(code, tmp_path / "silent"))
    manifest = msgspec.structs.replace(load_manifest(silent), ingredients={})
    (silent / MANIFEST_NAME).write_bytes(manifest.encode())
    with pytest.raises(ArtifactError, match="does not say what its code was made for"):
        add_weights(PackOptions(code=silent, weights_from=str(tiny_checkpoint), output=tmp_path / "packed"))


def test_damaged_code_is_not_packed(code: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(code, tmp_path / "damaged"))
    file = damaged / load_manifest(code).segments[0].file
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match="is damaged"):
        add_weights(PackOptions(code=damaged, weights_from=str(tiny_checkpoint), output=tmp_path / "packed"))
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_a_recipe_of_another_version_is_refused(code: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    strange = Path(shutil.copytree(code, tmp_path / "strange"))
    manifest = load_manifest(strange)
    weights = {name: msgspec.structs.replace(weight, recipe=["rotate"]) for name, weight in manifest.weights.items()}
    (strange / MANIFEST_NAME).write_bytes(msgspec.structs.replace(manifest, weights=weights).encode())
    with pytest.raises(ArtifactError, match="no recipe 'rotate'"):
        add_weights(PackOptions(code=strange, weights_from=str(tiny_checkpoint), output=tmp_path / "packed"))


def test_serving_code_alone_says_how_to_add_weights(code: Path) -> None:
    done = subprocess.run([str(ENGINE), "serve", "--artifacts", str(code), "--port", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == ArtifactError.exit_code
    assert "engine pack DIR --weights-from CHECKPOINT -o NEW" in done.stderr


def test_the_manifest_says_what_the_code_was_made_for(code: Path, tiny_checkpoint: Path) -> None:
    """All of it: every field of the model, and how every parameter was stored."""
    facts = model_facts(open_checkpoint(str(tiny_checkpoint)))
    assert made_for(load_manifest(code)) == facts
    assert {name for name in facts if name.startswith("spec.")} >= {
        *(f"spec.{field.name}" for field in dataclasses.fields(ModelSpec) if field.name != "layers"),
        *(f"spec.layers.*.{field.name}" for field in dataclasses.fields(LayerSpec)),
        *(f"spec.layers.*.mixer.{field.name}" for field in dataclasses.fields(AttentionSpec)),
    }
    assert any(name.startswith("stored.layers.*.") for name in facts)
