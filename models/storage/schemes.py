"""Which published scheme stores the weights of a checkpoint, by its config.json: one file beside this for each."""

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import UnsupportedModelError
from .awq import AWQStorage
from .compressed_tensors import FOUR_BIT_FLOATS, WHOLE_NUMBERS, CompressedTensorsStorage
from .dense import DenseStorage, Storage
from .fp8 import FP8Storage, fp8_format
from .gptq import GPTQStorage
from .modelopt import ModelOptStorage
from .mxfp4_experts import MXFP4ExpertsStorage
from .safetensors_header import StoredTensor

KEYS = ("quantization_config", "compression_config")
"""Settings of config.json that say how weights are quantized."""
Opener = Callable[[Mapping[str, StoredTensor]], Storage]

_INSTEAD = {
    "bitsandbytes": "its 4-bit codes are an index of 16 floats: quantize the original checkpoint instead (`engine build --quantize int4`)",
    "torchao": "its tensors lie in a format of torch's own: quantize the original checkpoint instead (`engine build --quantize int8`)",
    "marlin": "its weights are shuffled for one kernel: give the GPTQ checkpoint that it was made of",
    "bitblas": "its weights are shuffled for one kernel: give the GPTQ checkpoint that it was made of",
    "sparse-24-bitmask": "sparse weights are not supported: give the dense checkpoint",
    "marlin-24": "sparse weights are not supported: give the dense checkpoint",
}


def opener_of(config: Mapping[str, Any]) -> Opener | None:
    """What opens the tensors of a checkpoint with this config.json; None where nothing here reads them.

    Raises UnsupportedModelError for a scheme of which we know what to give instead.
    """
    settings = next((config[key] for key in KEYS if config.get(key)), None)
    if settings is None:
        return DenseStorage
    if (fp8 := fp8_format(config)) is not None:
        return lambda tensors: FP8Storage(fp8, tensors)
    if not isinstance(settings, dict):
        return None
    scheme, format = str(settings.get("quant_method", "")).lower(), str(settings.get("format", ""))
    for name in (scheme, format, str(settings.get("checkpoint_format", ""))):
        if instead := _INSTEAD.get(name.replace("_", "-")):
            raise UnsupportedModelError(f"config.json: weights quantized by {name} are not supported", hint=instead)
    if scheme == "auto-round":  # which writes the layouts of others
        scheme = str(settings.get("packing_format", "auto_round:auto_gptq")).rpartition("_")[2]
    if scheme in ("gptq", "awq"):
        storage = GPTQStorage if scheme == "gptq" else AWQStorage
        return lambda tensors: storage(settings, tensors)
    if scheme == "mxfp4":
        return MXFP4ExpertsStorage
    if scheme.startswith("modelopt"):
        return lambda tensors: ModelOptStorage(settings, tensors)
    if scheme == "compressed-tensors" and format in (*WHOLE_NUMBERS, *FOUR_BIT_FLOATS):
        return lambda tensors: CompressedTensorsStorage(settings, tensors)
    return None
