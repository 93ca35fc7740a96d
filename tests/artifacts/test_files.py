"""Names that a manifest may not list, and things that may not lie where it lists a file."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import edit_manifest
from opened_files import opened_files
from rich_artifact import write_rich_artifact

from engine.artifacts import check_code, check_text, check_weights, load_manifest, verify
from engine.errors import ArtifactError

Content = dict[str, Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("original") / "artifact"
    write_rich_artifact(directory)
    return directory


@pytest.fixture
def artifact(original: Path, tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"segment code")  # as the artifact has it: its size and digest are right
    return Path(shutil.copytree(original, tmp_path / "artifact"))


NAMES = [
    *(
        "/etc/passwd",
        "//etc/passwd",
        "../outside/secret",
        "segments/../../outside/secret",
        "segments/..",
        "..",
        ".",
        "",
        "./segments/abc.so",
    ),
    *("segments//abc.so", "segments/", "/", "segments/./abc.so", "~/secret", "-rf", ".hidden", "segments/.hidden"),
    *("a\\b", "..\\outside\\secret", "C:/secret", "C:secret", "a\0b", "a\nb", "a b", "a\x1b[2Jb", "\x7f"),
    *("segments/\u2024\u2024/x", "\uff0e\uff0e/secret", "segments\u2215abc.so", "\u202eos.cba", "se\u0301gment", "\u0430bc.so"),
    *("a" * 300, "/".join("abcdefghij"), "x:stream"),
]
USED = [("library", "/etc/passwd"), ("segment", "../outside/secret"), ("weight", "a\\b"), ("kernel", "a\0b"), ("graph", "segments/../x")]


@pytest.mark.parametrize(("where", "name"), [*(("files", name) for name in NAMES), *USED])
def test_a_name_that_is_not_that_of_a_file_in_the_artifact(artifact: Path, where: str, name: str) -> None:
    def change(content: Content) -> None:
        content["files"][name] = {"bytes": 12, "sha256": "0" * 64}
        match where:
            case "library":
                content["kernel_library"] = name
            case "segment" | "kernel" | "graph":
                content[f"{where}s"][0]["file"] = name
            case "weight":
                next(iter(content["weights"].values()))["file"] = name

    edit_manifest(artifact, change)
    with opened_files() as opened, pytest.raises(ArtifactError, match="names a file outside the artifact"):
        load_manifest(artifact)
    assert [path for path in opened if path.startswith(str(artifact.parent))] == [str(artifact / "manifest.json")]


@pytest.mark.parametrize(
    "name", ["Segments/abc.so", "segments/ABC.so", "SEGMENTS/other.so", "Manifest.json", "manifest.json", "manifest.sig"]
)
def test_names_that_are_one_to_some_file_systems(artifact: Path, name: str) -> None:
    edit_manifest(artifact, lambda content: content["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    with pytest.raises(ArtifactError, match="one file to some systems"):
        load_manifest(artifact)


def test_a_file_that_is_a_folder_too(artifact: Path) -> None:
    edit_manifest(artifact, lambda content: content["files"].update({"segments/abc.so/x": {"bytes": 1, "sha256": "0" * 64}}))
    with pytest.raises(ArtifactError, match="as a file a folder"):
        load_manifest(artifact)


def test_a_file_that_is_listed_twice(artifact: Path) -> None:
    text = (artifact / "manifest.json").read_text()
    once = '"segments/abc.so": {'
    assert text.count(once) == 1
    (artifact / "manifest.json").write_text(text.replace(once, f'"segments/abc.so": {{"bytes": 0, "sha256": "{"0" * 64}"}}, {once}'))
    with pytest.raises(ArtifactError, match=r"it has 'segments/abc\.so' twice"):
        load_manifest(artifact)


def link_out(path: Path) -> None:
    path.symlink_to(path.parent.parent.parent / "outside" / "secret")


def dangling_link(path: Path) -> None:
    path.symlink_to(path.parent.parent.parent / "outside" / "nothing")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


THINGS: list[tuple[Callable[[Path], object], str]] = [
    (link_out, "is a link that leads out of the artifact"),
    (dangling_link, "is a link that leads out of the artifact"),
    (link_to_itself, "cannot be read"),
    (lambda path: path.symlink_to("/dev/zero"), "is a link that leads out of the artifact"),
    (Path.mkdir, "is not a regular file"),
    (os.mkfifo, "is not a regular file"),
    (lambda path: None, "is missing"),
]


@pytest.mark.parametrize(("make", "message"), THINGS)
@pytest.mark.parametrize("name", ["segments/abc.so", "weights/0.safetensors", "tokenizer/text.json"])
def test_something_else_in_place_of_a_file(artifact: Path, name: str, make: Callable[[Path], object], message: str) -> None:
    """It is not opened: a FIFO would wait for ever, and what lies outside is nobody's business."""
    manifest = load_manifest(artifact)
    (artifact / name).unlink()
    make(artifact / name)
    with opened_files() as opened:
        for check in (verify, check_code, check_text, *([check_weights] if name.startswith("weights") else [])):
            with pytest.raises(ArtifactError, match=rf"{name} {message}"):
                check(artifact, manifest)
    assert make is Path.mkdir or str(artifact / name) not in opened  # a folder is listed
    assert str(artifact.parent / "outside" / "secret") not in opened


def test_a_device_in_place_of_a_file(artifact: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root makes devices")
    manifest = load_manifest(artifact)
    (artifact / "segments" / "abc.so").unlink()
    try:
        os.mknod(artifact / "segments" / "abc.so", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("root may not make devices here")
    with pytest.raises(ArtifactError, match=r"abc\.so is not a regular file"):
        check_code(artifact, manifest)


@pytest.mark.parametrize(("make", "message"), THINGS[:-1])
def test_something_else_in_place_of_the_manifest(artifact: Path, make: Callable[[Path], object], message: str) -> None:
    path = artifact / "manifest.json"
    path.rename(artifact.parent / "outside" / "manifest.json")
    if make is link_out:
        path.symlink_to(artifact.parent / "outside" / "manifest.json")
    else:
        make(path)
    with pytest.raises(ArtifactError, match=message):
        load_manifest(artifact)


def test_a_folder_that_leads_out(artifact: Path) -> None:
    manifest = load_manifest(artifact)
    (artifact / "segments").rename(artifact.parent / "outside" / "segments")
    (artifact / "segments").symlink_to(artifact.parent / "outside" / "segments")
    with pytest.raises(ArtifactError, match=r"segments/abc\.so is a link that leads out"):
        check_code(artifact, manifest)


def test_links_that_stay_inside_are_as_good_as_files_but_are_told(artifact: Path) -> None:
    manifest = load_manifest(artifact)
    (artifact / "segments" / "abc.so").rename(artifact / "code")
    (artifact / "segments" / "abc.so").symlink_to("../code")
    check_code(artifact, manifest)
    with pytest.raises(ArtifactError, match=r"code is not listed in the manifest"):
        verify(artifact, manifest)


def test_an_artifact_behind_a_link_is_an_artifact(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(artifact)
    verify(tmp_path / "latest", load_manifest(tmp_path / "latest"))


def test_a_file_beside_the_tokenizer_is_not_read_unless_it_is_listed(artifact: Path) -> None:
    """The tokenizer's folder is read by its names, and not by the manifest's."""
    (artifact / "tokenizer" / "chat_template.jinja").unlink()
    edit_manifest(artifact, lambda content: content["files"].pop("tokenizer/chat_template.jinja"))
    manifest = load_manifest(artifact)
    check_text(artifact, manifest)
    (artifact / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ArtifactError, match=r"chat_template\.jinja is not listed"):
        check_text(artifact, manifest)


def test_a_changed_chat_template_is_noticed_before_it_is_read(artifact: Path) -> None:
    manifest = load_manifest(artifact)
    path = artifact / "tokenizer" / "chat_template.jinja"
    path.write_text(path.read_text().replace("user", "uzer"))
    with pytest.raises(ArtifactError, match=r"chat_template\.jinja is damaged"):
        check_text(artifact, manifest)


@pytest.mark.parametrize(
    "change",
    [
        lambda probe: probe.update(tokens=[]),
        lambda probe: probe.update(tokens=[10**9]),
        lambda probe: probe.update(top_tokens=[10**9, 1]),
        lambda probe: probe.update(top_tokens=[1]),
        lambda probe: probe.update(top_tokens=[], top_logits=[]),
        lambda probe: probe.update(tokens=[1] * 1000),
    ],
)
def test_a_probe_that_the_model_cannot_compute(artifact: Path, change: Callable[[Content], None]) -> None:
    edit_manifest(artifact, lambda content: change(content["probe"]["prompts"][0]))
    with pytest.raises(ArtifactError, match="a probe that this model cannot compute"):
        load_manifest(artifact)


def test_a_manifest_that_was_written_by_hand_is_read(artifact: Path) -> None:
    """What counts is what it says: neither spaces nor the order of its fields."""
    content = json.loads((artifact / "manifest.json").read_bytes())
    (artifact / "manifest.json").write_text(json.dumps(dict(reversed(content.items())), indent=7))
    assert load_manifest(artifact).digest == content["digest"]
