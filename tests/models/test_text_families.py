"""Models that make vectors or scores of texts: as the plain module computes them, they are those of `transformers` and its pooling."""

from pathlib import Path
from typing import Any

import pytest
import torch
from loading import load_decoder
from reference_attention import use_reference_attention
from text_checkpoints import FAMILIES, Recipe, expected_scores, expected_vectors, write_cross_encoder, write_embedder
from torch.nn import functional as F

from engine.artifacts.step_arrays import Piece, step_arrays
from engine.errors import CheckpointError, UnsupportedModelError
from engine.models.cache_groups import cache_groups
from engine.models.open import open_checkpoint
from engine.models.step import Step

TEXTS = [torch.randint(3, 320, (length,), generator=torch.Generator().manual_seed(length)).tolist() for length in (40, 1, 17, 3)]
BLOCK_SIZE = 16
RECIPES = {
    "mean": Recipe(pooling="mean"),
    "cls": Recipe(pooling="cls", normalize=False),
    "lasttoken": Recipe(pooling="lasttoken", normalize=False),
    "dense": Recipe(pooling="mean", dense=(44, 30)),
}


@pytest.fixture(autouse=True)
def reference_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference_attention(monkeypatch)


@torch.no_grad()
def ours(checkpoint: Path, texts: list[list[int]], pair_starts: list[int] | None = None) -> torch.Tensor:
    """What the model gives for each of the texts, computed together."""
    opened = open_checkpoint(str(checkpoint))
    model, spec = load_decoder(opened), opened.spec
    sizes = {group.name: BLOCK_SIZE for group in cache_groups(spec)}
    blocks, pieces, caches = 0, [], []
    for tokens, pair_start in zip(texts, pair_starts or [0] * len(texts), strict=True):
        held = range(blocks, blocks := blocks - (-len(tokens) // BLOCK_SIZE))
        assert spec.pooling is not None
        wanted = [0] if spec.pooling.kind == "cls" else None
        pieces.append(Piece(tokens, 0, dict.fromkeys(sizes, held), wanted, pair_start))
    for layer in spec.layers:
        shape = (blocks, layer.mixer.num_kv_heads, BLOCK_SIZE, layer.mixer.head_dim)
        caches.append((torch.full(shape, torch.nan), torch.full(shape, torch.nan)) if layer.mixer.causal else None)
    step = Step.of({name: torch.from_numpy(array) for name, array in step_arrays(pieces, sizes).items()})
    rows: torch.Tensor = model(step, caches)
    return F.normalize(rows) if opened.pooled is not None and opened.pooled.normalize else rows


@pytest.mark.parametrize(
    ("family", "recipe"),
    [(family, name) for family, found in FAMILIES.items() for name in RECIPES if not found.is_causal or name == "lasttoken"],
)
def test_vectors_are_those_of_transformers(family: str, recipe: str, tmp_path: Path) -> None:
    checkpoint = write_embedder(family, tmp_path / "model", RECIPES[recipe])
    torch.testing.assert_close(
        ours(checkpoint, TEXTS), torch.stack(expected_vectors(checkpoint, RECIPES[recipe], TEXTS)), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "modernbert", "qwen3"])
def test_scores_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    overrides: dict[str, Any] = {"classifier_pooling": "mean"} if family == "modernbert" else {}
    checkpoint = write_cross_encoder(family, tmp_path / "model", **overrides)
    starts = [7, 0, 9, 2]
    expected = expected_scores(checkpoint, list(zip(TEXTS, starts, strict=True)))
    torch.testing.assert_close(ours(checkpoint, TEXTS, starts)[:, 0], torch.tensor(expected), rtol=0, atol=1e-5)


def test_without_its_files_an_encoder_gives_the_mean_of_its_rows(tmp_path: Path) -> None:
    recipe = Recipe(pooling="mean", normalize=False)
    checkpoint = write_embedder("bert", tmp_path / "model", recipe)
    (checkpoint / "modules.json").unlink()
    torch.testing.assert_close(ours(checkpoint, TEXTS), torch.stack(expected_vectors(checkpoint, recipe, TEXTS)), rtol=0, atol=1e-5)


def test_what_sentence_transformers_writes_is_read(tmp_path: Path) -> None:
    recipe = Recipe(pooling="mean", prompts={"query": "find: ", "document": ""}, default_prompt="query", max_length=48)
    opened = open_checkpoint(str(write_embedder("bert", tmp_path / "model", recipe)))
    assert opened.pooled is not None
    assert (opened.pooled.task, opened.pooled.normalize) == ("embed", True)
    assert (opened.pooled.prompts, opened.pooled.default_prompt) == (recipe.prompts, "query")
    assert opened.spec.max_context == 48


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("modules.json", "models.Normalize", "models.LayerNorm", "LayerNorm"),
        ("1_Pooling/config.json", '"pooling_mode_max_tokens": false', '"pooling_mode_max_tokens": true', "max_tokens"),
        ("1_Pooling/config.json", '"pooling_mode_cls_token": false', '"pooling_mode_cls_token": true', r"cls_token and .*mean_tokens"),
        ("config.json", '"BertModel"', '"BertForTokenClassification"', "BertForTokenClassification"),
        ("config.json", '"BertModel"', '"BertLMHeadModel"', "BertLMHeadModel"),
        ("config.json", '"hidden_act": "gelu"', '"hidden_act": "gelu", "position_embedding_type": "relative_key"', "relative_key"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(file: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    checkpoint = write_embedder("bert", tmp_path / "model")
    change(checkpoint / file, old, new)
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(str(checkpoint))


def test_a_decoder_that_pools_more_than_its_last_token_is_refused(tmp_path: Path) -> None:
    checkpoint = write_embedder("qwen3", tmp_path / "model", Recipe(pooling="mean"))
    with pytest.raises(CheckpointError, match="last token"):
        open_checkpoint(str(checkpoint))


@pytest.mark.parametrize("file", ["1_Pooling/config.json", "2_Dense/model.safetensors"])
def test_a_folder_that_is_missing_is_named(file: str, tmp_path: Path) -> None:
    checkpoint = write_embedder("bert", tmp_path / "model", RECIPES["dense"])
    (checkpoint / file).unlink()
    with pytest.raises(CheckpointError, match=file.partition("/")[0]):
        open_checkpoint(str(checkpoint))


def test_more_than_one_label_is_refused(tmp_path: Path) -> None:
    checkpoint = write_cross_encoder("bert", tmp_path / "model")
    change(checkpoint / "config.json", '"0": "LABEL_0"', '"0": "no", "1": "yes"')
    with pytest.raises(UnsupportedModelError, match="2 labels"):
        open_checkpoint(str(checkpoint))
