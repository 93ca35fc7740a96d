"""The store as a directory: what is found, what is not, who waits for whom."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.artifacts.store.entry import RECORD, in_use
from engine.artifacts.store.ingredients import differences, identities, nearest, recorded
from engine.artifacts.store.keys import NOT_IN_KEY, Identity, compact, flatten, identity
from engine.artifacts.store.store import FORMAT_FILE, Store, chosen_store
from engine.artifacts.store.upkeep import damaged, held, prune
from engine.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    text: str = "a"
    inner: Inner = field(default_factory=Inner)
    layers: tuple[Inner, ...] = ()
    by_name: dict[str, str] = field(default_factory=dict)
    shown: Any = field(default=None, metadata=NOT_IN_KEY)


def made(text: str, kind: str = "segment") -> Identity:
    return identity(kind, Recipe(text=text))


def files_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_a_recipe_becomes_named_ingredients() -> None:
    recipe = Recipe(inner=Inner(names=("x", "y")), layers=(Inner(), Inner(size=2)), by_name={"b": "2", "a": "1"}, shown=object())
    assert flatten(recipe) == {
        "text": '"a"',
        "inner": '"Inner"',
        "inner.size": "1",
        "inner.names": '["x", "y"]',
        "layers.0": '"Inner"',
        "layers.0.size": "1",
        "layers.0.names": "[]",
        "layers.1": '"Inner"',
        "layers.1.size": "2",
        "layers.1.names": "[]",
        "by_name.a": '"1"',
        "by_name.b": '"2"',
    }


@pytest.mark.parametrize("value", [Path("/tmp"), object(), {1, 2}, [1], b"bytes", float("nan"), Recipe])
def test_what_cannot_be_an_ingredient_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        identity("segment", Recipe(text=value))


def test_numbers_texts_and_nothing_are_not_the_same() -> None:
    values: list[Any] = [1, "1", 1.0, True, None, "null", "true", "", (), ("1",)]
    assert len({identity("segment", Recipe(text=value)).key for value in values}) == len(values)
    assert made("a", "segment").key != made("a", "plan").key


@settings(max_examples=30)
@given(st.dictionaries(st.text(), st.text()), st.dictionaries(st.text(), st.text()))
def test_keys_differ_where_ingredients_do(one: dict[str, str], another: dict[str, str]) -> None:
    keys = [identity("segment", Recipe(by_name=by_name)).key for by_name in (one, another)]
    assert (keys[0] == keys[1]) == (one == another)


def test_ingredients_for_people_are_short() -> None:
    values = {f"layers.{index}.window": "7" if index == 2 else "0" for index in range(12)} | {"form": '"' + "x" * 99 + '"', "kind": '"cpu"'}
    short = compact(values)
    assert short["layers.*.window"] == "0 at 0-1, 3-11; 7 at 2"
    assert short["kind"] == "cpu"
    assert short["form"].startswith("sha256:")
    assert len(short["form"]) == 23


def test_recorded_ingredients_are_read_back() -> None:
    members = [made("a"), made("b"), identity("program", Recipe(text="c"))]
    found = recorded(members)
    assert found["segment"]["inner.size"] == "1"
    assert found[f"segment {members[0].key}"] == {"text": "a"}
    assert sorted(identities(found), key=lambda member: member.key) == sorted(members, key=lambda member: member.key)


def test_the_nearest_has_the_fewest_differences() -> None:
    wanted = identity("segment", Recipe(text="a", inner=Inner(size=1)))
    near, far = identity("segment", Recipe(text="b")), identity("segment", Recipe(text="b", inner=Inner(size=2)))
    assert nearest(wanted, [far, near, identity("plan", Recipe(text="a"))]) == near
    assert [(d.ingredient, d.first, d.second) for d in differences(wanted.ingredients, near.ingredients)] == [("text", "a", "b")]
    assert nearest(wanted, []) is None


def test_an_entry_is_found_until_it_is_damaged_and_then_replaced(tmp_path: Path) -> None:
    store, wanted = Store(tmp_path / "store"), made("a")
    assert store.find(wanted) is None
    store.add(wanted, {"code.so": b"code", "part.cubin": b""})
    assert store.refusal == ""
    found = store.find(wanted)
    assert found is not None
    assert found.contents == {"code.so": b"code", "part.cubin": b""}
    assert found.record.identity == wanted
    place = store.directory / "segment" / wanted.key
    assert files_in(store.directory) == sorted(
        [FORMAT_FILE, *(f"segment/{wanted.key}/{name}" for name in (RECORD, "code.so", "part.cubin"))]
    )
    for name in (RECORD, "code.so"):
        whole = (place / name).read_bytes()
        for content in (whole[:-1], b"", bytes([whole[0] ^ 1]) + whole[1:], whole + b"\n"):
            (place / name).write_bytes(content)
            assert store.find(wanted) is None
            assert len(damaged(store, remove_them=False)) == 1
            store.add(wanted, {"code.so": b"code", "part.cubin": b""})
            assert store.find(wanted) == found
    assert damaged(store, remove_them=False) == {}


def test_every_flipped_byte_of_a_record_is_seen(tmp_path: Path) -> None:
    store, wanted = Store(tmp_path / "store"), made("a")
    store.add(wanted, {"code": b"code"})
    record = store.directory / "segment" / wanted.key / RECORD
    whole = record.read_bytes()
    for index in range(len(whole)):
        record.write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        assert store.find(wanted) is None, index


def test_an_entry_in_the_place_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.add(made("a"), {"code": b"code"})
    (store.directory / "segment" / made("a").key).rename(store.directory / "segment" / made("b").key)
    assert store.find(made("b")) is None


def test_a_record_cannot_lead_out_of_its_entry(tmp_path: Path) -> None:
    store, wanted = Store(tmp_path / "store"), made("a")
    store.add(wanted, {"code": b"secret"})
    place = store.directory / "segment" / wanted.key
    (place / "code").rename(store.directory / "segment" / "code")
    (place / RECORD).write_bytes((place / RECORD).read_bytes().replace(b'"code"', b'"../code"'))
    assert store.find(wanted) is None


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.add(made("a"), {"code": b"first"})
    store.add(made("a"), {"code": b"second"})
    found = store.find(made("a"))
    assert found is not None
    assert found.contents == {"code": b"first"}


def test_one_claim_at_a_time_and_none_of_the_dead(tmp_path: Path) -> None:
    store, wanted = Store(tmp_path / "store"), made("a")
    claim = store.claim(wanted)
    assert claim is not None
    assert store.claim(wanted) is None
    assert store.claim(made("b")) is not None
    claim.release()
    code = "import sys, time, pathlib; from engine.artifacts.store.store import Store; from engine.artifacts.store.keys import Identity\n"
    code += f"claim = Store(pathlib.Path(sys.argv[1])).claim(Identity(kind='segment', key={wanted.key!r}, ingredients={{}}))\n"
    code += "print(claim is not None, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-P", "-c", code, str(store.directory)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert store.claim(wanted) is None
        process.kill()
        process.wait()
    with store.wait_for_claim(wanted):
        assert store.claim(wanted) is None
    assert [path.name for path in (store.directory / "locks").iterdir()] == [f"segment-{made('b').key}"]


def test_pruning_by_size_and_age_keeps_what_is_in_use_and_what_is_not_ours(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for index, name in enumerate("abcd"):
        store.add(made(name), {"code": bytes(1000)})
        used = time.time() - 86400 * (10 - index)
        os.utime(store.directory / "segment" / made(name).key / RECORD, (used, used))
    strangers = [store.directory / "notes.txt", store.directory / "segment" / "notes.txt", store.directory / "other" / ("0" * 32) / "file"]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (store.directory / ".adding-killed").mkdir()
    (store.directory / ".adding-killed" / "entry").mkdir()
    assert [entry.path.name for entry in held(store)] == [made(name).key for name in "abcd"]
    assert store.find(made("a")) is not None  # used now
    size = held(store)[0].bytes
    with in_use(store.directory / "segment" / made("b").key):
        done = prune(store, unused_for_days=7.5)
    assert [entry.path.name for entry in done.in_use] == [made("b").key]
    assert [entry.path.name for entry in done.removed] == [made("c").key]
    assert {entry.path.name for entry in held(store)} == {made(name).key for name in "abd"}
    assert [entry.path.name for entry in prune(store, max_bytes=2 * size).removed] == [made("b").key]
    assert prune(store, max_bytes=size).bytes_left == size
    assert store.find(made("a")) is not None
    assert prune(store, max_bytes=0).bytes_left == 0
    assert all(path.read_text() == "mine" for path in strangers)
    assert not list(store.directory.glob(".*"))


def test_a_reader_has_a_whole_entry_or_none_while_others_prune_and_add(tmp_path: Path) -> None:
    """Another process adds and removes the same entries as fast as it can."""
    code = """
import pathlib, sys
from engine.artifacts.store.keys import Identity
from engine.artifacts.store.store import Store
from engine.artifacts.store.upkeep import prune
store = Store(pathlib.Path(sys.argv[1]))
while True:
    store.add(Identity(kind="segment", key=sys.argv[2], ingredients={}), {name: bytes(100_000) for name in "abc"})
    prune(store, max_bytes=0)
"""
    store, wanted = Store(tmp_path / "store"), made("a")
    with subprocess.Popen([sys.executable, "-P", "-c", code, str(store.directory), wanted.key]) as process:
        seen = {"whole": 0, "absent": 0}
        while min(seen.values()) < 5:
            found = store.find(wanted)
            seen["absent" if found is None else "whole"] += 1
            assert found is None or [len(content) for content in found.contents.values()] == [100_000] * 3
            assert process.poll() is None
        process.kill()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({FORMAT_FILE: '{"format": 2}'}, "another version of Engine: store.json says {'format': 2}, this version has format 1"),
        ({FORMAT_FILE: '{"form'}, "store.json is damaged"),
        ({"0123.so": "code", "0123.so.sha256": "digest"}, "it holds other files, and no store.json"),
        ({"thesis.txt": "the only copy"}, "it holds other files, and no store.json"),
    ],
)
def test_what_is_not_a_store_of_this_format_is_refused_and_left_alone(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError) as caught:
        Store(tmp_path)
    assert message in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert "--store" in (caught.value.hint or "")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(UsageError, match="Not a directory"):
            Store(path)


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ENGINE_STORE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert chosen_store(None) == Path("/cache/engine/store-1")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert chosen_store(None) == Path("/home/me/.cache/engine/store-1")
    monkeypatch.setenv("ENGINE_STORE", str(tmp_path))
    assert chosen_store(None) == tmp_path
    assert chosen_store(Path("given")) == Path("given")
    monkeypatch.setenv("ENGINE_STORE", "store")
    with pytest.raises(UsageError, match="ENGINE_STORE is 'store', which is not an absolute path"):
        chosen_store(None)


def test_a_record_is_what_it_was_made_of(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.add(made("a"), {"code": b"code"})
    record = msgspec.json.decode((store.directory / "segment" / made("a").key / RECORD).read_bytes())
    assert record["ingredients"]["text"] == "a"
    assert str(tmp_path) not in str(record)
