"""ModelOpt's checkpoints, in FP8, NVFP4 or both.

- FP8: MODULE.weight float8_e4m3fn, MODULE.weight_scale, one number per tensor or per output channel, or one per block of 128 x 128
  ([N / 128, 1, K / 128, 1]); where activations have a static scale, MODULE.input_scale. As in fp8.py, value = scale * number.
- NVFP4: MODULE.weight uint8 [N, K / 2], two e2m1 codes in each, the lower half first; MODULE.weight_scale float8_e4m3fn [N, K / 16];
  MODULE.weight_scale_2 float32: value = code * (scale * scale_2), which nvfp4_mul keeps.

Each matrix is what its tensors show, so lists of modules (exclude_modules, quantized_layers) are not needed to read it. Scales of KV
caches, and of the activations of NVFP4, are not used.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...errors import UnsupportedModelError
from ..checkpoint import Format, LoadedTensor
from .dense import DenseStorage, Storage
from .fp8 import DTYPE, FP8Format, FP8Storage
from .json_file import read_json
from .nvfp4 import MUL, SUBGROUP, WIDENED, load_nvfp4, nvfp4_format
from .safetensors_header import StoredTensor
from .zero_points import Matrix, unpacked

FILE = "hf_quant_config.json"
ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "W4A16_NVFP4")
_MIXED = "MIXED_PRECISION"
_PARTS = ("weight", "weight_scale", "weight_scale_2", "input_scale")
_OF_CACHES = (".k_scale", ".v_scale", ".q_scale")


def quantization_settings(directory: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """What to add to a config.json that does not say how weights are quantized, where ModelOpt says it in a file of its own."""
    if values.get("quantization_config") or not (directory / FILE).exists():
        return {}
    settings = read_json(directory / FILE, hint="fetch the checkpoint again").get("quantization")
    return {"quantization_config": {"quant_method": "modelopt", **settings}} if isinstance(settings, dict) else {}


class ModelOptStorage(Storage):
    """Matrices in FP8 and NVFP4, and what is not quantized as it is."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
        _check_algorithms(config)
        rest = {name: tensor for name, tensor in tensors.items() if not name.endswith(_OF_CACHES)}
        self._matrices: dict[str, Matrix] = {}
        fp8: dict[FP8Format, dict[str, StoredTensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            module = name.removesuffix(".weight")
            if name == module or tensor.dtype not in ("U8", DTYPE):
                continue
            parts = {part: rest.pop(f"{module}.{part}") for part in _PARTS if f"{module}.{part}" in rest}
            if tensor.dtype == "U8":
                self._matrices[name] = _nvfp4(module, parts)
            else:
                fp8[_fp8_kind(parts)] |= {f"{module}.{part}": _flat(part, stored) for part, stored in parts.items()}
        storages = [DenseStorage(rest), *(FP8Storage(kind, stored) for kind, stored in fp8.items())]
        self._storages: dict[str, Storage] = {name: storage for storage in storages for name in storage.tensors}
        stored = {name: storage.tensors[name] for name, storage in self._storages.items()}
        self.tensors = stored | {n: replace(m.parts["weight"], dtype="NVFP4", shape=m.shape) for n, m in self._matrices.items()}

    def format(self, name: str) -> Format:
        matrix = self._matrices.get(name)
        return self._storages[name].format(name) if matrix is None else nvfp4_format(matrix.shape[1], MUL)

    def widened_from(self, name: str) -> str:
        return WIDENED if name in self._matrices and self.format(name) == "f32" else ""

    def load(self, name: str) -> LoadedTensor:
        matrix = self._matrices.get(name)
        if matrix is None:
            return self._storages[name].load(name)
        codes, scales = unpacked(matrix.read("weight"), 4, matrix.shape[1]), matrix.read("weight_scale").view(torch.uint8)
        try:
            return load_nvfp4(MUL, codes, scales, matrix.read("weight_scale_2"))
        except ValueError as error:
            raise matrix.damaged(str(error)) from error

    def scale_of_input(self, name: str) -> torch.Tensor | None:
        return None if name in self._matrices else self._storages[name].scale_of_input(name)


def _check_algorithms(config: Mapping[str, Any]) -> None:
    """Raises UnsupportedModelError for one that is not known."""
    layers = config.get("quantized_layers")
    named = [layer.get("quant_algo") for layer in layers.values() if isinstance(layer, dict)] if isinstance(layers, dict) else []
    for algorithm in (config.get("quant_algo"), *named):
        if algorithm and str(algorithm).upper() not in (*ALGORITHMS, _MIXED):
            raise UnsupportedModelError(
                f"weights quantized by ModelOpt's {algorithm} are not supported",
                hint=f"{', '.join(ALGORITHMS)} and mixtures of them are; or quantize the original checkpoint (`engine build --quantize`)",
            )


def _nvfp4(module: str, parts: Mapping[str, StoredTensor]) -> Matrix:
    """Raises CheckpointError for tensors that do not fit together."""
    unknown = Matrix(module=module, shape=(0, 0), bits=4, groups=1, parts=parts)
    stored = parts["weight"].shape
    if len(stored) != 2 or not stored[1] or 2 * stored[1] % SUBGROUP:
        raise unknown.damaged(f"weight is U8 {list(stored)}, no matrix of NVFP4")
    rows, columns = stored[0], 2 * stored[1]
    matrix = replace(unknown, shape=(rows, columns), groups=columns // SUBGROUP)
    matrix.check("weight_scale", (DTYPE,), (rows, matrix.groups))
    matrix.check("weight_scale_2", ("F32",), (), (1,))
    return matrix


def _fp8_kind(parts: Mapping[str, StoredTensor]) -> FP8Format:
    if "input_scale" in parts:
        return "fp8_tensor"
    scale = parts.get("weight_scale")
    return "fp8_block" if scale is not None and len(scale.shape) == 4 else "fp8_channel"


def _flat(part: str, stored: StoredTensor) -> StoredTensor:
    """Scales of blocks without the dimensions of 1 between."""
    if part != "weight_scale" or len(stored.shape) != 4:
        return stored
    return replace(stored, shape=(stored.shape[0] * stored.shape[1], stored.shape[2] * stored.shape[3]))
