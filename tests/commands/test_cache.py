"""`engine cache`, and the two flags of `engine build` that tell what the store lacks."""

import shutil
from pathlib import Path

import msgspec
import pytest

from engine.artifacts import load_manifest
from engine.artifacts.store.entry import RECORD
from engine.artifacts.store.store import Store
from engine.artifacts.store.transfer import export_entries
from engine.artifacts.store.upkeep import held
from engine.cli import main
from engine.compiler.quantizer import quantizer_identity

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def exported(tiny_artifact: Path, store: Path, tmp_path: Path, capsys: Printed) -> Path:
    """A store with what the tiny artifact needs."""
    assert main(["cache", "export", str(tiny_artifact), "-o", str(tmp_path / "exported"), "--store", str(store)]) == 0
    assert capsys.readouterr().out.startswith("exported 5 entries, ")
    return tmp_path / "exported"


def build(checkpoint: Path, output: Path, *flags: str) -> int:
    return main(["build", str(checkpoint), "-o", str(output), *flags])


def test_an_exported_store_is_all_that_a_build_needs(exported: Path, tiny_checkpoint: Path, tiny_artifact: Path, tmp_path: Path) -> None:
    assert sorted(entry.kind for entry in held(Store(exported))) == ["kernels", "program", "segment", "segment", "segment"]
    assert build(tiny_checkpoint, tmp_path / "again", "--store", str(exported), "--require-warm") == 0
    first, second = load_manifest(tiny_artifact), load_manifest(tmp_path / "again")
    assert msgspec.structs.replace(first, created=0) == msgspec.structs.replace(second, created=0)


def test_where_weights_were_fitted_what_fits_them_is_exported_too(tiny_artifact: Path, own_store: Path, tmp_path: Path) -> None:
    source, manifest = Store(own_store), load_manifest(tiny_artifact)
    source.write(quantizer_identity(), {"quantizer.so": b"code"})
    fitted = msgspec.structs.replace(manifest, model=msgspec.structs.replace(manifest.model, calibration="random tokens"))
    for exported, expected in ((manifest, []), (fitted, [quantizer_identity().key])):
        records = export_entries(exported, source, Store(tmp_path / f"with-{len(expected)}"))
        assert [record.key for record in records if record.kind == "quantizer"] == expected
    assert Store(tmp_path / "with-1").find(quantizer_identity()) is not None


def test_stats_and_verify_and_prune(exported: Path, capsys: Printed) -> None:
    assert main(["cache", "stats", "--store", str(exported)]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[:2] for line in printed.splitlines()[1:7]] == [
        ["program", "1"],
        ["kernels", "1"],
        ["segment", "3"],
        ["plan", "0"],
        ["quantizer", "0"],
        ["all", "5"],
    ]
    assert str(exported) in printed
    assert main(["cache", "verify", "--store", str(exported)]) == 0
    assert capsys.readouterr().out == f"{exported}: 5 entries, all intact\n"
    code = next(exported.glob("segment/*/*.so"))
    code.write_bytes(code.read_bytes()[:-1])
    assert main(["cache", "verify", "--store", str(exported)]) == 6
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{code} is damaged")
    assert "1 of 5 entries" in captured.err
    assert "--remove" in captured.err
    assert main(["cache", "verify", "--remove", "--store", str(exported)]) == 0
    assert not code.exists()
    capsys.readouterr()
    assert main(["cache", "prune", "--store", str(exported)]) == 2
    assert "--max-size" in capsys.readouterr().err
    assert main(["cache", "prune", "--unused-for", "1", "--store", str(exported)]) == 0
    assert capsys.readouterr().out.startswith("removed 0 entries, 0 B; ")
    assert main(["cache", "prune", "--max-size", "1KiB", "--store", str(exported)]) == 0
    assert capsys.readouterr().out.startswith("removed 4 entries, ")
    assert held(Store(exported)) == []


def test_import_takes_all_or_nothing(exported: Path, tmp_path: Path, capsys: Printed) -> None:
    target = tmp_path / "imported"
    damaged = next(exported.glob("kernels/*/*.so"))
    content = damaged.read_bytes()
    damaged.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert main(["cache", "import", str(exported), "--store", str(target)]) == 6
    assert f"{damaged} is damaged" in capsys.readouterr().err
    assert held(Store(target)) == []
    damaged.write_bytes(content)
    assert main(["cache", "import", str(exported), "--store", str(target)]) == 0
    assert capsys.readouterr().out.startswith("imported 5 entries, ")
    assert main(["cache", "import", str(exported), "--store", str(target)]) == 0
    assert capsys.readouterr().out.startswith("imported 0 entries, ")
    assert main(["cache", "import", str(tmp_path / "nothing"), "--store", str(target)]) == 6
    assert "holds no entries" in capsys.readouterr().err


def test_exporting_what_the_store_no_longer_has(exported: Path, tiny_artifact: Path, tmp_path: Path, capsys: Printed) -> None:
    (gone,) = exported.glob("kernels/*")
    shutil.rmtree(gone)
    assert main(["cache", "export", str(tiny_artifact), "-o", str(tmp_path / "out"), "--store", str(exported)]) == 6
    assert f"lacks 1 of the 5 entries of this artifact: kernels {gone.name}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_explain_names_the_ingredients_that_differ(tiny_artifact: Path, tmp_path: Path, capsys: Printed) -> None:
    manifest = load_manifest(tiny_artifact)
    assert main(["cache", "explain", str(tiny_artifact), str(tiny_artifact)]) == 0
    assert capsys.readouterr().out == "the same keys: one compiles nothing after the other\n"
    changed = {name.replace("kernels ", "kernels f"): dict(own) for name, own in manifest.ingredients.items()}
    changed["kernels"] |= {"toolchain.compiler": "g++ 99", "sources.kernels/cpu/dot.h": "sha256:0123456789abcdef", "new": "1"}
    del changed["kernels"]["toolchain.libc"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_bytes(msgspec.structs.replace(manifest, ingredients=changed).encode())
    assert main(["cache", "explain", str(tiny_artifact), str(tmp_path / "other")]) == 0
    head, *differences = capsys.readouterr().out.splitlines()
    key, own = next((name.removeprefix("kernels "), own) for name, own in manifest.ingredients.items() if name.startswith("kernels "))
    assert own == {}
    assert head == f"kernels {key} in {tiny_artifact} -> f{key} in {tmp_path / 'other'}"
    old = manifest.ingredients["kernels"]
    assert differences == [
        "  new: (none) -> 1",
        f"  sources.kernels/cpu/dot.h: {old['sources.kernels/cpu/dot.h']} -> sha256:0123456789abcdef",
        f"  toolchain.compiler: {old['toolchain.compiler']} -> g++ 99",
        f"  toolchain.libc: {old['toolchain.libc']} -> (none)",
    ]
    assert main(["cache", "explain", str(tmp_path / "other"), str(tiny_artifact)]) == 0
    assert "  new: 1 -> (none)" in capsys.readouterr().out.splitlines()


def test_a_cold_build_that_must_be_warm_says_why(
    exported: Path, tiny_checkpoint: Path, tiny_artifact: Path, tmp_path: Path, capsys: Printed
) -> None:
    flags = ["--store", str(exported), "--require-warm"]
    assert build(tiny_checkpoint, tmp_path / "out", *flags, "--disable-pass", "fuse_gate", "--kv-dtype", "int8") == 5
    said = capsys.readouterr().err
    assert 'disable_pass: ["fuse_gate"] here, [] there' in said
    assert "kv_dtype: int8 here, float32 there" in said
    assert not (tmp_path / "out").exists()
    segment = load_manifest(tiny_artifact).segments[0].key
    shutil.rmtree(exported / "segment" / segment)
    before = sorted(exported.rglob("*"))
    assert build(tiny_checkpoint, tmp_path / "out", *flags) == 5
    said = capsys.readouterr().err
    assert "1 of 5 things are not in the store" in said
    assert f"segment {segment}" in said
    assert "form.nodes: sha256:" in said
    assert "toolchain" not in said
    assert sorted(exported.rglob("*")) == before
    assert build(tiny_checkpoint, tmp_path / "out", "--store", str(tmp_path / "empty"), "--require-warm") == 5
    assert "the store has no other program" in capsys.readouterr().err
    assert not (tmp_path / "empty").exists()
    assert build(tiny_checkpoint, tmp_path / "out", *flags, "--debug-dump", str(tmp_path / "dump")) == 2


def test_a_dry_run_tells_what_would_be_done_and_does_nothing(
    exported: Path, tiny_checkpoint: Path, tiny_artifact: Path, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    gone = load_manifest(tiny_artifact).segments[0].key
    shutil.rmtree(exported / "segment" / gone)
    before = sorted(path for path in exported.rglob("*") if path.name != RECORD)
    assert build(tiny_checkpoint, tmp_path / "out", "--store", str(exported), "--dry-run") == 0
    printed = capsys.readouterr().out
    actions = [line.split()[:2] for line in printed.splitlines()[1:7]]
    assert sorted(actions) == sorted(
        [["reuse", "program"], ["reuse", "kernels"], ["compile", "segment"], *[["reuse", "segment"]] * 2, ["pack", "weights"]]
    )
    assert f"segment {gone}: nearest in the store is segment" in printed
    assert "1 of 5 to be made" in printed
    assert not (tmp_path / "out").exists()
    assert sorted(path for path in exported.rglob("*") if path.name != RECORD) == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert build(tiny_checkpoint, tmp_path / "out", "--store", str(exported), "--dry-run") == 2
    assert "exists and is not an artifact" in capsys.readouterr().err


def test_a_dry_run_without_the_program_knows_the_same(
    exported: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It traces what it needs of the model, and keeps nothing of it."""
    monkeypatch.setenv("COLUMNS", "200")
    printed = {}
    for name, store in (("warm", exported), ("cold", tmp_path / "empty")):
        assert build(tiny_checkpoint, tmp_path / "out", "--store", str(store), "--dry-run") == 0
        printed[name] = capsys.readouterr().out.splitlines()
    assert "; traced 2 of 3 layers, the others being like them, in " in printed["cold"][-1]
    assert "5 of 5 to be made" in printed["cold"][-1]
    things = {
        name: sorted(line.split()[1] + key for line in lines for key in line.split() if len(key) == 16) for name, lines in printed.items()
    }
    assert things["cold"] == things["warm"]
    assert len(things["cold"]) == 5
    packed = {name: next(line.split() for line in lines if line.startswith("pack")) for name, lines in printed.items()}
    assert packed["cold"] == packed["warm"]
    assert not (tmp_path / "empty").exists()
