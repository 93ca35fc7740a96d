"""What a manifest says in one place must fit what it says in another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import edit_manifest
from rich_artifact import write_rich_artifact

from engine.artifacts import load_manifest
from engine.errors import ArtifactError

PROGRAM: dict[str, Any] = {"inputs": [], "calls": [], "results": {}}
ROUTES = {"layers": [1], "experts": 8, "chosen": 2}
Change = Callable[[dict[str, Any]], object]


def told(content: dict[str, Any], **changes: Any) -> None:
    content["routes"] = ROUTES | changes
    content["programs"]["step"]["results"]["routes.1"] = "value:1"


def second_group(content: dict[str, Any], **changes: Any) -> None:
    group = content["caches"][0]
    content["caches"].append({**group, "name": "window", "kind": "window", "window": 16, "layers": [1], **changes})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["caches"].clear(), "the cache groups of no layer"),
        (lambda content: second_group(content, name="full"), "the cache groups 'full', 'full'"),
        (lambda content: second_group(content, name="a.b"), "the cache groups 'full', 'a.b'"),
        (lambda content: second_group(content, layers=[]), "a cache group without layers"),
        (lambda content: second_group(content, layers=[1, 1]), "a cache group without layers, or with one twice"),
        (lambda content: second_group(content, window=0), "of kind window with a window of 0"),
        (lambda content: second_group(content, kind="full"), "of kind full with a window of 16"),
        (lambda content: second_group(content, block_size=16), "cache groups of different block sizes"),
        (lambda content: content["programs"].clear(), "no program 'step' with the result 'logits'"),
        (lambda content: content["programs"]["step"]["results"].clear(), "no program 'step' with the result 'logits'"),
        (lambda content: content["programs"]["step"]["inputs"].append(content["programs"]["step"]["inputs"][0]), "with an input twice"),
        (lambda content: content["programs"]["step"]["inputs"][0].update(name="media"), "reads 'media', which no step brings"),
        (lambda content: content["programs"]["step"]["inputs"][0].update(dtype="float32"), "reads 'tokens', which no step brings"),
        (
            lambda content: content["programs"].update(
                draft={"inputs": [{"name": "x", "dtype": "f", "dims": []}], "calls": [], "results": {}}
            ),
            "'x' is 'f'",
        ),
        (lambda content: content["memory"]["activations"].update({"T*Q": 1}), "a memory plan in 'T\\*Q', which no input"),
        (
            lambda content: next(iter(content["weights"].values()))["experts"].update(chosen=5),
            "a weight of 4 experts of which 5 are chosen",
        ),
        (lambda content: content["graphs"][0]["sizes"].pop("R"), "graph 'graphs/decode-1.json' of no size R"),
        (lambda content: content.update(routes=ROUTES), "tells the experts of layers for which its program 'step' has no result"),
        (lambda content: told(content, layers=[]), "tells the experts of layers for which"),
        (lambda content: told(content, layers=[1, 1]), "tells the experts of layers for which"),
        (lambda content: told(content, chosen=9), "tells 9 of 8 experts"),
        (lambda content: told(content, experts=2**16 + 1), "Expected `int` <= 65536"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(change: Change, words: str, tmp_path: Path) -> None:
    write_rich_artifact(tmp_path)
    edit_manifest(tmp_path, change)
    with pytest.raises(ArtifactError, match=words):
        load_manifest(tmp_path)


def test_several_groups_are_read(tmp_path: Path) -> None:
    write_rich_artifact(tmp_path)
    edit_manifest(tmp_path, second_group)
    full, window = load_manifest(tmp_path).caches
    assert window.tensors == ["cache:window.1.k", "cache:window.1.v"]
    assert [full.seen(length) for length in (1, 16, 40)] == [1, 16, 40]
    assert [window.seen(length) for length in (1, 16, 40)] == [1, 16, 16]
