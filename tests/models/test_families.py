"""Every causal family of `transformers`: either refused by name, or its logits are those of `transformers`.

`docs/models.md` says what these tests find; `pytest tests/models/test_families.py --write-models-page` writes it.
"""

import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from checkout import ROOT
from families import GENERIC, NO_REFERENCE, VARIANTS, causal_families, reference_logits, tiny_config, write_tiny_checkpoint
from family_needs import needs
from gguf_architectures import ARCHITECTURES
from gguf_twins import twins, write_twins
from loading import load_decoder
from paged_runner import PagedRunner
from reference_attention import use_reference_attention
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from engine.errors import EngineError, UnsupportedModelError
from engine.models.open import open_checkpoint

PAGE = ROOT / "docs" / "models.md"
TOKENS = torch.randint(3, GENERIC["vocab_size"], (60,), generator=torch.Generator().manual_seed(1)).tolist()
# A long piece, one that begins within a block, then token by token: more tokens than any window.
STEPS = [TOKENS[:21], TOKENS[21:40], *([token] for token in TOKENS[40:])]
ENDS = torch.tensor([len(step) for step in STEPS]).cumsum(0) - 1
REFERENCED = [name for name in (*causal_families(), *VARIANTS) if name not in NO_REFERENCE]
# The files hold what frequencies are divided by in float32; from config.json they are computed in float64.
ROUNDED_ROPE = {"apertus", "exaone", "exaone4", "exaone4-full", "hunyuan_v1_dense", "hunyuan_v1_moe", "llama4_text"}


TEXTS = (
    "",
    "## Texts to vectors and scores",
    "",
    "From Hugging Face directories, for CPUs; vectors and scores equal those of transformers and its pooling to 1e-5 in float32",
    "(`tests/models/test_text_families.py`). sentence-transformers' files say how rows are pooled (`mean`, `cls`, `lasttoken`), what",
    "layers follow, whether vectors are scaled to length 1, and which texts stand in front; an encoder without them gives the mean of its",
    "rows. Other pooling, and heads that tell labels apart, are refused by name.",
    "",
    "| `model_type` | | vectors | scores of pairs |",
    "| --- | --- | --- | --- |",
    "| `bert` | BERT, MiniLM, BGE, E5 | yes | yes |",
    "| `roberta`, `xlm-roberta` | multilingual E5, BGE-M3, BGE rerankers | yes | yes |",
    "| `modernbert` | GTE-ModernBERT, Nomic's ModernBERT embedders | yes | yes |",
    "| `gemma3_text` with `use_bidirectional_attention` | EmbeddingGemma | yes | no |",
    "| decoders of the table above | Qwen3-Embedding: of their last token | yes | yes |",
)


@dataclass(frozen=True)
class Outcome:
    """refusal: why the checkpoint is not supported, or None. error: how far our logits are from the expected ones, of which `bound` is
    what rounding can make."""

    refusal: str | None = None
    error: float = 0.0
    bound: float = 0.0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small spend longer on waking a second thread than on computing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def reference_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference_attention(monkeypatch)


def our_logits(checkpoint: Path) -> torch.Tensor:
    """Logits after each of STEPS [len(STEPS), V]."""
    runner = PagedRunner(load_decoder(open_checkpoint(str(checkpoint))))
    return torch.cat([runner.step([(0, step)]) for step in STEPS])


@functools.cache
def against_transformers(name: str) -> Outcome:
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = write_tiny_checkpoint(name, Path(directory) / "model")
        try:
            actual = our_logits(checkpoint)
        except UnsupportedModelError as error:
            return Outcome(refusal=error.message)
        expected, rounding = reference_logits(checkpoint, TOKENS)
    # Short sums sample few roundings; the logits' own scale is the floor.
    rounding = max(rounding, 1e-6 * float(expected.abs().max()))
    return Outcome(error=float((actual - expected[ENDS]).abs().max()), bound=4 * rounding)


@functools.cache
def gguf_against_hf(name: str) -> Outcome:
    with tempfile.TemporaryDirectory() as directory:
        checkpoint, file = write_twins(name, Path(directory) / "twins")
        try:
            actual = our_logits(file)
        except EngineError as error:
            return Outcome(refusal=error.message)
        expected = our_logits(checkpoint)
    bound = 1e-5 * float(expected.abs().max()) if name in ROUNDED_ROPE else 0.0
    return Outcome(error=float((actual - expected).abs().max()), bound=bound)


@pytest.mark.parametrize("name", REFERENCED)
def test_a_family_is_refused_or_equals_transformers(name: str) -> None:
    outcome = against_transformers(name)
    assert outcome.error <= outcome.bound


@pytest.mark.parametrize("name", twins())
def test_a_gguf_file_is_refused_or_equals_its_checkpoint(name: str) -> None:
    outcome = gguf_against_hf(name)
    assert outcome.error <= outcome.bound


@pytest.mark.parametrize("name", sorted(NO_REFERENCE))
def test_what_cannot_be_compared_is_refused(name: str, tmp_path: Path) -> None:
    tiny_config("llama", architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"model_type": "llama"', f'"model_type": "{name}"'))
    with pytest.raises(UnsupportedModelError, match=name):
        open_checkpoint(str(tmp_path), weights=False)


@pytest.mark.slow
def test_sixty_families_are_accepted() -> None:
    assert len(supported()) >= 60


@pytest.mark.slow
def test_the_page_of_models_says_what_these_tests_find(request: pytest.FixtureRequest) -> None:
    page = models_page()
    if request.config.getoption("--write-models-page"):
        PAGE.write_text(page)
    assert PAGE.read_text() == page


def supported() -> set[type]:
    """The configuration classes of what is accepted, be it a variant alone."""
    names = [name for name in REFERENCED if against_transformers(name).refusal is None]
    return {CONFIG_MAPPING[VARIANTS.get(name, (name,))[0]] for name in names}


def models_page() -> str:
    rows = [f"| `{family}` | {in_hf(family)} | {in_gguf(family)} | {remark(family)} |" for family in sorted(causal_families())]
    head = [
        "# Models",
        "",
        f"The causal language models of transformers, by `model_type`; {len(supported())} of them are supported. A test",
        "(`tests/models/test_families.py`) makes a random model of every family, a few layers with one of each kind, and writes this",
        "page. *yes*: from a Hugging Face directory, logits equal those of transformers in float32 but for rounding, in one piece, in",
        "pieces and token by token; a GGUF file of the same weights gives the same bits. *in part*: some of the family's models. *no*:",
        "refused by name; the last column says what the family needs. Of models that also take images or sound, the language model is",
        "served, for text.",
        "",
        "| `model_type` | Hugging Face | GGUF | |",
        "| --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows, *TEXTS]) + "\n"


def variants(family: str) -> list[str]:
    return [name for name, (variant_of, _) in VARIANTS.items() if variant_of == family]


def in_hf(family: str) -> str:
    if family in REFERENCED and against_transformers(family).refusal is None:
        return "yes"
    return "in part" if any(against_transformers(name).refusal is None for name in variants(family)) else "no"


def in_gguf(family: str) -> str:
    if family not in ARCHITECTURES:
        return ""
    refusal = gguf_against_hf(family).refusal
    return f"`{ARCHITECTURES[family].name}`: {'yes' if refusal is None else 'no, ' + brief(refusal)}"


def remark(family: str) -> str:
    """Of what is refused: why, or of a whole family what it has that is not there yet."""
    if in_hf(family) == "no":
        return needs(family)
    refused = [refusal for name in (family, *variants(family)) if (refusal := against_transformers(name).refusal)]
    return "; ".join(f"refused: {brief(refusal)}" for refusal in refused)


def brief(refusal: str) -> str:
    return refusal.splitlines()[0].removeprefix("config.json: ").removeprefix("model.gguf: ")
