"""Artifacts that make vectors or scores of texts: as `transformers` and its pooling give them, to the bit whatever is computed beside."""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from text_checkpoints import FAMILIES, Recipe, expected_scores, expected_vectors, write_cross_encoder, write_embedder
from tiers import tiered

from engine.artifacts import load_manifest
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.compiler.verify import compare
from engine.compiler.verify_texts import TextComparison
from engine.errors import UnsupportedModelError
from engine.options.runtime import RuntimeOptions
from engine.protocol import Embed
from engine.runtime.core import EngineCore

TEXTS = [torch.randint(3, 320, (length,), generator=torch.Generator().manual_seed(length)).tolist() for length in (70, 1, 17, 33, 150, 3)]
OPTIONS = RuntimeOptions(threads=2)
DENSE = Recipe(pooling="mean", dense=(44, 30))
RECIPES = {
    "gemma3_text": DENSE,
    "modernbert": DENSE,
    **{name: Recipe(pooling=found.pooling) for name, found in FAMILIES.items() if name not in ("gemma3_text", "modernbert")},
}

# What every run of the tests builds: an encoder with windows, and a decoder. Of one with learned positions, the scores below.
_ALWAYS = ("modernbert", "qwen3")


@pytest.fixture(scope="module", params=tiered(FAMILIES, _ALWAYS))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def model(family: str, store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and its artifact."""
    directory = tmp_path_factory.mktemp(family)
    checkpoint = write_embedder(family, directory / "model", RECIPES[family], seed=5)
    build(BuildOptions(model=str(checkpoint), output=directory / "artifact", store=store))
    return checkpoint, directory / "artifact"


def loaded(artifact: Path, options: RuntimeOptions = OPTIONS) -> EngineCore:
    return EngineCore.load(artifact, options, on_phase=lambda name, seconds: None)


def vectors(core: EngineCore, requests: Sequence[Embed]) -> list[NDArray[np.float32]]:
    """What each request gets, all of them submitted at once."""
    for request in requests:
        core.submit(request)
    got = {}
    while core.has_work():
        for output in core.step().outputs:
            assert output.error is None
            got[output.id] = np.frombuffer(output.vector, "<f4")
    core.check()
    return [got[request.id] for request in requests]


def embeds(texts: Sequence[list[int]]) -> list[Embed]:
    return [Embed(f"{index}", text) for index, text in enumerate(texts)]


def test_vectors_are_those_of_transformers_and_no_work_is_left_to_one_thread(family: str, model: tuple[Path, Path]) -> None:
    checkpoint, artifact = model
    manifest = load_manifest(artifact)
    assert manifest.unfused == {}
    assert manifest.is_encoder == (not FAMILIES[family].is_causal)
    expected = expected_vectors(checkpoint, RECIPES[family], TEXTS)
    for ours, theirs in zip(vectors(loaded(artifact), embeds(TEXTS)), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-5)


def test_they_are_those_of_the_checkpoint_in_plain_pytorch(model: tuple[Path, Path]) -> None:
    checkpoint, artifact = model
    comparison = compare(artifact, str(checkpoint))
    assert isinstance(comparison, TextComparison)
    assert comparison.distance_max < 1e-6
    assert 0 < comparison.max_error < 1e-4
    comparison.check(1e-6)


@pytest.mark.parametrize("batch", tiered([1, 8, 48, 4096], [1, 48]))
def test_bits_do_not_depend_on_what_is_computed_together_nor_on_chunks(model: tuple[Path, Path], batch: int) -> None:
    alone = [vectors(loaded(model[1]), embeds([text]))[0] for text in TEXTS]
    texts = TEXTS * 3
    random.Random(batch).shuffle(texts)
    core = loaded(model[1], RuntimeOptions(max_num_seqs=min(batch, 64), max_batch_tokens=batch, threads=1))
    for text, vector in zip(texts, vectors(core, embeds(texts)), strict=True):
        assert vector.tobytes() == alone[TEXTS.index(text)].tobytes()


def test_leading_numbers_are_scaled_to_length_1_anew(model: tuple[Path, Path]) -> None:
    whole, short = vectors(loaded(model[1]), [Embed("whole", TEXTS[0]), Embed("short", TEXTS[0], dimensions=8)])
    np.testing.assert_allclose(short, whole[:8] / np.linalg.norm(whole[:8]), rtol=1e-6)
    assert math.isclose(float(np.linalg.norm(short)), 1, rel_tol=1e-6)


@pytest.mark.parametrize("family", tiered(["bert", "xlm-roberta", "modernbert", "qwen3"], ["xlm-roberta", "qwen3"]), scope="module")
def test_scores_are_those_of_transformers(family: str, store: Path, tmp_path: Path) -> None:
    checkpoint = write_cross_encoder(family, tmp_path / "model", seed=7)
    build(BuildOptions(model=str(checkpoint), output=tmp_path / "artifact", store=store))
    manifest = load_manifest(tmp_path / "artifact")
    assert manifest.unfused == {}
    assert manifest.pooled is not None
    assert (manifest.pooled.task, manifest.pooled.activation, manifest.pooled.size) == ("score", "sigmoid", 1)
    starts = [31, 0, 8, 12, 90, 2]
    requests = [Embed(f"{index}", text, pair_start=start) for index, (text, start) in enumerate(zip(TEXTS, starts, strict=True))]
    expected = [1 / (1 + math.exp(-score)) for score in expected_scores(checkpoint, list(zip(TEXTS, starts, strict=True)))]
    np.testing.assert_allclose([score[0] for score in vectors(loaded(tmp_path / "artifact"), requests)], expected, rtol=0, atol=1e-5)

    comparison = compare(tmp_path / "artifact", str(checkpoint))
    assert isinstance(comparison, TextComparison)
    assert (comparison.task, comparison.count) == ("score", 16)
    assert comparison.distance_max < 1e-5
    assert comparison.max_error < 1e-4


def test_an_nvidia_target_refuses_them_by_name(tmp_path: Path) -> None:
    checkpoint = write_embedder("bert", tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=r"run on CPUs only"):
        build(BuildOptions(model=str(checkpoint), output=tmp_path / "artifact", target="sm90"))
