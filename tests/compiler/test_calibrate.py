"""The importance of input channels: what the model computes, whatever computes it, and repeated by `engine pack`."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import write_tiny_checkpoint
from random_checkpoints import write_random_checkpoint
from text_checkpoints import Recipe, write_embedder

from engine.artifacts import load_manifest
from engine.cli import main
from engine.compiler.add_weights import add_weights
from engine.compiler.build import build
from engine.compiler.calibrate import RANDOM, TOKENS, Calibration, importance, mean_squares, read_calibration, repeated_calibration, rounded
from engine.compiler.options import BuildOptions, PackOptions
from engine.compiler.tokens_of_text import whole_texts_tokenizer
from engine.errors import UsageError
from engine.models.checkpoint import Checkpoint
from engine.models.open import open_checkpoint

TEXT = "The ferry was late again, so we walked along the harbour and counted the boats. " * 40


def measured(checkpoint: Checkpoint, calibration: Calibration) -> dict[str, torch.Tensor]:
    return importance(checkpoint, mean_squares(checkpoint, calibration, lambda: None))


def inputs_in_transformers(directory: Path, sequences: list[list[int]]) -> dict[str, torch.Tensor]:
    """The mean square of every linear's input, by the checkpoint's names, over all sequences; the largest is 1."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    sums: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def add(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            sums[name] = sums.get(name, 0) + args[0].square().flatten(0, -2).sum(0)

        return add

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(hook(f"{name}.weight"))
    with torch.no_grad():
        for tokens in sequences:
            model(torch.tensor([tokens]))
    return {name: total / total.max() for name, total in sums.items()}


@pytest.mark.parametrize("calibration", [Calibration(), Calibration(text=TEXT)], ids=["random", "text"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_they_are_the_mean_squares_of_what_transformers_multiplies(family: str, calibration: Calibration, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_random_checkpoint(family, tmp_path / "model", num_hidden_layers=2)))
    check_against_transformers(checkpoint, tmp_path / "model", calibration)


def test_layers_with_inputs_of_their_own_are_calibrated(tmp_path: Path) -> None:
    """Which come of a second table with a row for each token."""
    checkpoint = open_checkpoint(str(write_tiny_checkpoint("gemma4-layer-inputs", tmp_path / "model")))
    check_against_transformers(checkpoint, tmp_path / "model", Calibration())


def check_against_transformers(checkpoint: Checkpoint, directory: Path, calibration: Calibration) -> None:
    expected = inputs_in_transformers(directory, calibration.sequences(checkpoint))
    found = measured(checkpoint, calibration)
    matrices = {name for name, info in checkpoint.parameters.items() if len(info.shape) == 2} - {"layer_inputs.embed.weight"}
    assert found.keys() == (matrices if checkpoint.spec.head.tied else matrices - {"embed.weight"})
    for name, values in found.items():
        (tensor,) = checkpoint.tensors_of(name)
        theirs = expected["lm_head.weight" if name == "embed.weight" else tensor]
        # Four bits of a number, and a power of two in front of all of them.
        ratios = values / theirs
        assert ratios.max() / ratios.min() < (1 + 2.0**-4) ** 2
        assert 0.5 <= values.max() <= 1


def test_an_encoder_is_calibrated_too(tmp_path: Path) -> None:
    model = write_embedder("bert", tmp_path / "model", Recipe(pooling="mean"), seed=5)
    checkpoint = open_checkpoint(str(model))
    found = measured(checkpoint, Calibration())
    layers = {name for name, info in checkpoint.parameters.items() if len(info.shape) == 2 and not name.startswith("embed")}
    assert found.keys() == layers
    assert all(bool((values > 0).all()) for values in found.values())


def test_machines_that_add_in_another_order_give_the_same_numbers() -> None:
    squares = torch.rand(4096, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 1e-3
    assert torch.equal(rounded(squares), rounded(squares * (1 + 1e-12)))
    assert set((rounded(squares).double().frexp().mantissa * 16).tolist()) <= set(range(8, 17))


def test_random_tokens_are_the_same_each_time_and_as_many_as_fit(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    sequences = Calibration().sequences(checkpoint)
    assert sequences == Calibration().sequences(checkpoint)
    assert sum(map(len, sequences)) == TOKENS
    checkpoint.spec = dataclasses.replace(checkpoint.spec, max_context=100)
    assert {len(tokens) for tokens in Calibration().sequences(checkpoint)} == {100}


def test_a_long_text_counts_from_its_beginning_to_its_end(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    text = " ".join(str(number) for number in range(20000))
    ids = whole_texts_tokenizer(checkpoint).encode(text).ids
    sequences = Calibration(text=text).sequences(checkpoint)
    assert sum(map(len, sequences)) == TOKENS
    assert sequences[0] == ids[: len(sequences[0])]
    (last,) = (start for start in range(0, len(ids), 256) if ids[start : start + 256] == sequences[-1])
    assert last > 0.8 * len(ids)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read"), (b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe", "not UTF-8")]
)
def test_a_file_that_holds_no_text_is_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=said) as raised:
        read_calibration(file)
    assert raised.value.hint


@pytest.mark.parametrize("quantize", ["none", "int8", "fp8"])
def test_what_depends_on_no_text_takes_none(quantize: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "model", "-o", "out", "--quantize", quantize, "--calibrate", "text"]) == 2
    assert f"--calibrate is for --quantize int6, int5 and int4, not {quantize}" in capsys.readouterr().err


def test_what_a_manifest_records_is_repeated_or_refused(tmp_path: Path) -> None:
    file, other = tmp_path / "text", tmp_path / "other"
    file.write_text(TEXT)
    other.write_text("another")
    recorded = f"text sha256:{hashlib.sha256(TEXT.encode()).hexdigest()}"
    assert repeated_calibration(recorded, file) == Calibration(text=TEXT)
    assert repeated_calibration(RANDOM, None) == Calibration()
    assert repeated_calibration("", None) is None
    for recorded_before, given in ((recorded, None), (recorded, other), (RANDOM, file), ("", file)):
        with pytest.raises(UsageError) as raised:
            repeated_calibration(recorded_before, given)
        assert raised.value.hint


def test_packing_repeats_what_the_build_did(store: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """With random tokens and with a text, to the byte; a text changes the weights."""
    file = tmp_path / "text"
    file.write_text(TEXT)
    digests = []
    for text in (None, file):
        name = "random" if text is None else "text"
        options: dict[str, Any] = {"model": str(tiny_checkpoint), "quantize": "int4", "calibrate": text, "store": store}
        for output in ("built", "again"):
            build(BuildOptions(**options, output=tmp_path / f"{name}-{output}"))
        built, again = (load_manifest(tmp_path / f"{name}-{output}") for output in ("built", "again"))
        assert built.digest == again.digest
        assert built.model.calibration == Calibration(text=TEXT if text else "").name
        add_weights(
            PackOptions(
                code=tmp_path / f"{name}-built", weights_from=str(tiny_checkpoint), calibrate=text, output=tmp_path / f"{name}-packed"
            )
        )
        assert load_manifest(tmp_path / f"{name}-packed").digest == built.digest
        digests.append(built.digest)
    assert digests[0] != digests[1]
