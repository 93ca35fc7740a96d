"""Templates and manifests for a GPU that are almost right, loaded by the whole runtime over the stand-in for the driver.

Each is refused with an error of ours, or becomes graphs; the stand-in notices whatever the driver
would be asked wrongly, and that all is freed. Kernels do nothing here: what they do within the
memory that they are given is not the runtime's business.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import file_infos, resealed
from fake_cuda import fake_cuda_installed
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from strange_json import as_text, strange
from toy_gpu_artifact import write_toy_artifact

from engine.artifacts import load_manifest
from engine.artifacts.graph import load_template
from engine.errors import ArtifactError, EngineError
from engine.runtime.loading import load_executor

fuzzed = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
TEMPLATE = "graphs/mixed-16-4.json"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("toy") / "artifact"
    write_toy_artifact(directory)
    return directory


@pytest.fixture(scope="module")
def content(toy: Path) -> Any:
    return json.loads((toy / "manifest.json").read_bytes())


@pytest.fixture(scope="module")
def template(toy: Path) -> Any:
    return json.loads((toy / TEMPLATE).read_bytes())


def load(directory: Path, declared: Path) -> str:
    """What comes of loading. declared: the artifact whose kernels the "driver" finds in the cubins."""
    with fake_cuda_installed() as fake:
        fake.on_launch(lambda launched: None)
        try:
            manifest = load_manifest(directory)
            fake.declare(declared, manifest)
            executor = load_executor(directory, kv_memory=1 << 16, max_num_seqs=4, max_batch_tokens=16)
        except EngineError as error:
            return f"{type(error).__name__}: {error.message.split(':')[0]}"
        executor.close()  # type: ignore[attr-defined]
        return "loaded"


def test_what_is_fuzzed_gets_as_far_as_the_probe(toy: Path, content: Any, template: Any) -> None:
    """Which the kernels, that do nothing, fail."""
    write(toy, content, template)
    assert load(toy, toy) == "ArtifactError: the golden probe failed"
    write(toy, {**content, "probe": {**content["probe"], "prompts": []}}, template)
    assert load(toy, toy) == "loaded"


def write(directory: Path, content: Any, template: Any) -> None:
    """With digests that are right."""
    (directory / TEMPLATE).write_text(as_text(template))
    info = file_infos(directory)[TEMPLATE]
    content = {**content, "files": {**content["files"], TEMPLATE: {"bytes": info.bytes, "sha256": info.sha256}}}
    (directory / "manifest.json").write_text(json.dumps(resealed(content)))


@fuzzed
@given(st.data())
def test_a_strange_template(toy: Path, content: Any, template: Any, data: st.DataObject) -> None:
    write(toy, {**content, "probe": {**content["probe"], "prompts": []}}, data.draw(strange(template)))
    event(load(toy, toy))


@fuzzed
@given(st.data())
def test_strange_numbers_in_the_manifest(toy: Path, content: Any, template: Any, data: st.DataObject) -> None:
    """In those parts that only a GPU has, and in those that say how much memory is taken."""
    parts = ("kernels", "graphs", "caches", "programs", "model", "weights", "memory")
    changed = data.draw(strange({part: content[part] for part in parts}))
    write(toy, content, template)
    whole = {**content, "probe": {**content["probe"], "prompts": []}, **(changed if isinstance(changed, dict) else {})}
    try:
        whole = resealed({**whole, "files": json.loads((toy / "manifest.json").read_bytes())["files"]})
    except ValueError:
        event("not to be sealed")
    (toy / "manifest.json").write_text(as_text(whole))
    event(load(toy, toy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["nodes"][0].__setitem__(1, [0, 1, 1]), "`int` >= 1"),
        (lambda t: t["nodes"][0].__setitem__(1, [-1, -1, 1]), "`int` >= 1"),
        (lambda t: t["nodes"][0].__setitem__(1, [2**31, 1, 1]), "`int` <= 2147483647"),
        (lambda t: t["nodes"][0].__setitem__(0, -1), "`int` >= 0"),
        (lambda t: t["nodes"][0][2].__setitem__(0, [99, 0]), "names memory that is not there"),
        (lambda t: t["nodes"][0][2].__setitem__(0, [0, -1]), "`int` >= 0"),
        (lambda t: t["outputs"]["logits"]["place"].__setitem__(0, 99), "names memory that is not there"),
        (lambda t: t.update(extra=1), "unknown field"),
    ],
)
def test_a_template_that_cannot_be(tmp_path: Path, template: Any, change: Any, message: str) -> None:
    changed = json.loads(json.dumps(template))
    change(changed)
    (tmp_path / "template.json").write_text(json.dumps(changed))
    with pytest.raises(ArtifactError, match=message):
        load_template(tmp_path / "template.json")
