"""What `--quantize` weighs errors with: the mean square of every input channel of every matrix, when the model runs on some tokens.

They are random, or those of a text. The model is the module that is traced, run eagerly as in reference.py, one layer in memory at a time.
It runs in float64, and what it gives is rounded to a few bits, so that machines whose products add in another order give the same numbers.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..artifacts.step_arrays import step_arrays, whole_prompts
from ..errors import UsageError
from ..kernels.attention.latent import causal_expanded_attention
from ..kernels.attention.reference import causal_attention
from ..models.checkpoint import Checkpoint
from ..models.decoder import Decoder, constants
from ..models.step import Step
from ..models.stored_values import values_of
from .reference import block_sizes, load_layers_when_run, read
from .tokens_of_text import whole_texts_tokenizer

TOKENS, LENGTH = 2048, 256
"""Tokens of a calibration, and of each sequence of them."""
RANDOM = "random tokens"
_TEXT = "text sha256:"
_SEED = 20
_OF_TOKENS = frozenset({"embed.weight", "layer_inputs.embed.weight"})
"""Tables with a row for each token."""
_BITS = 4
"""Of a mean square: numbers that differ by a rounding are then equal, but for one in a thousand million."""
_LEAST = 2.0**-20
"""Of the largest mean square: channels that are never used count a little, too."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the model runs on. text: empty for random tokens."""

    text: str = ""

    @property
    def name(self) -> str:
        """As a manifest has it."""
        return _TEXT + hashlib.sha256(self.text.encode()).hexdigest() if self.text else RANDOM

    def sequences(self, checkpoint: Checkpoint) -> list[list[int]]:
        """Token ids. Raises what writing the checkpoint's tokenizer raises, for a text."""
        length = min(LENGTH, checkpoint.spec.max_context)
        if not self.text:
            generator = torch.Generator().manual_seed(_SEED)
            return torch.randint(checkpoint.spec.vocab_size, (TOKENS // length, length), generator=generator).tolist()
        ids = whole_texts_tokenizer(checkpoint).encode(self.text).ids
        parts = [ids[start : start + length] for start in range(0, len(ids), length)]
        count = min(len(parts), TOKENS // length)
        return [parts[index * len(parts) // count] for index in range(count)]


def read_calibration(file: Path | None) -> Calibration:
    """The text in `file`, or random tokens. Raises UsageError for a file that holds no text."""
    if file is None:
        return Calibration()
    hint = "give a file of a few thousand words in UTF-8, or leave --calibrate out: random tokens then stand for a text"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--calibrate {file} cannot be read: {error.strerror}", hint=hint) from None
    except UnicodeDecodeError:
        raise UsageError(f"--calibrate {file} is not UTF-8 text", hint=hint) from None
    if not text.strip():
        raise UsageError(f"--calibrate {file} is empty", hint=hint)
    return Calibration(text=text)


def repeated_calibration(recorded: str, file: Path | None) -> Calibration | None:
    """The calibration that a manifest records, None for none. Raises UsageError unless `file` has the text that it was, if it was one."""
    if not recorded.startswith(_TEXT):
        if file is not None:
            raise UsageError("--calibrate is for code that was calibrated with a text, and this was not", hint="leave it out")
        return Calibration() if recorded == RANDOM else None
    given = read_calibration(file)
    if given.name != recorded:
        what = f"{file} is another" if file is not None else "it is missing"
        raise UsageError(
            f"this code was calibrated with a text (SHA-256 {recorded.removeprefix(_TEXT)}), and {what}",
            hint="give that very file with --calibrate, or build the checkpoint",
        )
    return given


@torch.no_grad()
def mean_squares(checkpoint: Checkpoint, calibration: Calibration, on_layer: Callable[[], None]) -> dict[str, Tensor]:
    """Of the inputs of every matrix that the model multiplies with, by parameter: [K] float32, 1 or a little less for the largest.

    on_layer is called after each layer.
    """
    sequences = calibration.sequences(checkpoint)
    used = sorted({token for tokens in sequences for token in tokens})
    model = _decoder(checkpoint, used)
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(_measured(found, f"{name}.weight"))
    for layer in model.layers:
        layer.register_forward_hook(lambda module, args, result: on_layer())
    places = {token: place for place, token in enumerate(used)}
    sizes = block_sizes(checkpoint.spec)
    pieces = whole_prompts([[places[token] for token in tokens] for tokens in sequences], sizes)
    if checkpoint.spec.pooling is None:
        pieces = [piece._replace(wanted=range(len(piece.tokens))) for piece in pieces]
    model(Step.of({name: torch.from_numpy(array) for name, array in step_arrays(pieces, sizes).items()}), [None] * len(model.layers))
    return found


def _decoder(checkpoint: Checkpoint, tokens: list[int]) -> Decoder:
    """In float64, with the embeddings of these tokens alone, and with a head that gives what it is given."""
    spec = checkpoint.spec
    with torch.device("meta"):
        model = Decoder(spec).eval()
    inside = ("layers.", "head.", *_OF_TOKENS)
    outside = [name for name, info in checkpoint.parameters.items() if not (name.startswith(inside) or info.is_order)]
    weights = {name: read(checkpoint, name).double() for name in outside}
    for name in _OF_TOKENS & checkpoint.parameters.keys():
        stored = checkpoint.read(name)
        rows = values_of(stored.format, stored.data[tokens], stored.order).double()
        model.get_submodule(name.removesuffix(".weight")).weight = nn.Parameter(rows, requires_grad=False)
    constant = {name: value.double() for name, value in constants(spec).items()}
    model.load_state_dict(weights | constant, assign=True, strict=False)
    if spec.pooling is None:
        model.head = _Head()
    load_layers_when_run(checkpoint, model, torch.float64, attention=causal_attention, latent=causal_expanded_attention)
    return model


class _Head(nn.Linear):
    """Stands for the product with the vocabulary, which nobody needs."""

    def __init__(self) -> None:
        super().__init__(1, 1, bias=False, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        return x


def _measured(found: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any], None]:
    def measure(module: nn.Module, args: Any) -> None:
        found[name] = rounded(args[0].square().mean(0))

    return measure


def rounded(squares: Tensor) -> Tensor:
    """Mean squares [K] float64 -> float32, of _BITS bits each, by a power of two as large as makes the largest 1 or less."""
    whole, exponent = torch.frexp(squares.clamp(min=squares.max() * _LEAST))
    coarse = (whole * 2.0**_BITS).round() / 2.0**_BITS
    return torch.ldexp(coarse, exponent - exponent.max()).float()


def importance(checkpoint: Checkpoint, squares: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names of parameters: a head that is the embedding again counts as that."""
    head = {"embed.weight": squares["head.weight"]} if checkpoint.spec.head.tied and "head.weight" in squares else {}
    return {name: values for name, values in squares.items() if name in checkpoint.parameters} | head
