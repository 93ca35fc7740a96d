"""Random blocks of the quantized formats, as checkpoints have them."""

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from torch import Tensor

from engine.kernels.linear.blocks import FORMATS
from engine.kernels.linear.stored_blocks import BLOCK_BYTES

GGUF_TYPES = {name: gguf.GGMLQuantizationType[name.upper()] for name in FORMATS if name.upper() in gguf.GGMLQuantizationType.__members__}

OURS = ("i4_g32", "i5_g32", "i6_g32")
"""Those that no file has. A row is a block: d, m, a scale and a minimum for each 32 weights, and codes, a byte each."""


def block_shape(format: str, in_features: int) -> tuple[int, int]:
    """Blocks of a row, and bytes of a block."""
    spec = FORMATS[format]
    if spec.of_rows:
        return 1, spec.head_bytes + (32 + spec.subscales * spec.numbers) * -(-in_features // 32)
    return -(-in_features // spec.block), BLOCK_BYTES[format]


def random_blocks(format: str, rows: int, in_features: int, seed: int) -> Tensor:
    """uint8 [rows, bytes], as many blocks as hold in_features: every code and integer scale may come, d and m are of either sign."""
    generator = torch.Generator().manual_seed(seed)
    count, size = block_shape(format, in_features)
    blocks = torch.randint(0, 256, (rows, count, size), dtype=torch.uint8, generator=generator)
    if format in OURS:
        blocks[:, :, -(size - 8) // 34 * 32 :] &= (1 << FORMATS[format].bits) - 1
    return with_numbers(format, blocks, torch.randn(rows, count, FORMATS[format].numbers, generator=generator) / 8).flatten(1)


def weight_like_blocks(format: str, rows: int, in_features: int, seed: int) -> Tensor:
    """As `random_blocks`, of values about as large as a model's: a few hundredths."""
    spec = FORMATS[format]
    code = max(abs(value) for value in spec.table) if spec.table else (1 << spec.bits) - 1 - spec.zero
    scale = 448 if spec.e4m3_scales else {0: 1, 1: 255 if spec.of_rows else 63, 2: 127 if spec.bits == 6 else 32}[spec.subscales]
    raw, (count, size) = random_blocks(format, rows, in_features, seed), block_shape(format, in_features)
    numbers = torch.randn(rows, count, spec.numbers, generator=torch.Generator().manual_seed(seed))
    return with_numbers(format, raw.unflatten(1, (count, size)), numbers * 0.1 / code / scale).flatten(1)


def w8a8_rows(weight: Tensor) -> Tensor:
    """uint8 [N, bytes]: the nearest codes of [N, K], filled up to whole groups with zeros."""
    scales = weight.abs().amax(1, keepdim=True) / 127.5
    codes = torch.nn.functional.pad((weight / scales).round().clamp(-128, 127).to(torch.int8), (0, -weight.shape[1] % 32))
    return torch.cat((scales.view(torch.uint8), codes.view(torch.uint8)), dim=1)


def with_numbers(format: str, blocks: Tensor, numbers: Tensor) -> Tensor:
    """Blocks uint8 [N, B, bytes] with d (and m) [N, B, 1 or 2] of these values, or the nearest powers of two.

    Scales in e4m3 that are no number become the largest.
    """
    spec, blocks = FORMATS[format], blocks.clone()
    if spec.e4m3_scales:
        scales = blocks[:, :, 4:8]
        blocks[:, :, 4:8] = torch.where(scales & 0x7F == 0x7F, scales - 1, scales)
    if spec.number_bytes == 1:
        blocks[:, :, 0] = (numbers[:, :, 0].abs().log2().round() + 128).clamp(0, 254).to(torch.uint8)
        return blocks
    stored = (numbers.half() if spec.number_bytes == 2 else numbers.float()).view(torch.uint8)
    at_end = format in ("q2_k", "q3_k", "q6_k")
    blocks[:, :, slice(-stored.shape[2], None) if at_end else slice(stored.shape[2])] = stored
    return blocks


def published_values(format: str, raw: Tensor) -> Tensor:
    """What blocks mean, float32 [N, K], by the gguf package or by the formula of those that published the format."""
    if FORMATS[format].e4m3_scales:
        return scaled_twice(format, raw)
    if format in OURS:
        groups = (raw.shape[1] - 8) // 34
        head, scales, minima, codes = raw.split((8, groups, groups, 32 * groups), dim=1)
        d, m = head.clone(memory_format=torch.contiguous_format).view(torch.float32).split(1, dim=1)
        meant: Tensor = (d * scales)[:, :, None] * codes.unflatten(1, (groups, 32)) - (m * minima)[:, :, None]
        return meant.flatten(1)
    if format == "w8a8":
        return raw[:, :4].contiguous().view(torch.float32) * raw[:, 4:].contiguous().view(torch.int8).float()
    if format not in GGUF_TYPES:
        return scaled_from_zero_points(format, raw)
    values: np.ndarray = dequantize(raw.numpy(), GGUF_TYPES[format])
    return torch.from_numpy(values)


def scaled_twice(format: str, raw: Tensor) -> Tensor:
    """NVFP4: code * (scale * d), or code * (scale / d), with codes in e2m1 and scales in e4m3."""
    blocks = raw.unflatten(1, (-1, BLOCK_BYTES[format])).numpy()
    d, scales, codes = blocks[..., :4].copy().view(np.float32), torch.from_numpy(blocks[..., 4:8].copy()), blocks[..., 8:].reshape(-1, 16)
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)
    of_codes = values[np.stack((codes & 15, codes >> 4), axis=1)].reshape(-1, 16)
    floats = scales.view(torch.float8_e4m3fn).float().numpy()
    factors = floats / d if format == "nvfp4_div" else floats * d
    return torch.from_numpy((of_codes * factors.reshape(-1, 1)).reshape(len(raw), -1))


def scaled_from_zero_points(format: str, raw: Tensor) -> Tensor:
    """scale * (code - zero point)."""
    blocks = raw.unflatten(1, (-1, BLOCK_BYTES[format])).numpy()
    scales, zeros, codes = blocks[..., :4].copy().view(np.float32), blocks[..., 4:5].view(np.int8), blocks[..., 5:]
    if FORMATS[format].bits == 4:
        halves = codes.reshape(*codes.shape[:2], -1, 16)
        codes = np.concatenate((halves & 15, halves >> 4), axis=-1).reshape(*codes.shape[:2], -1)
    else:
        codes = codes.view(np.int8)
    values = scales * (codes.astype(np.int32) - zeros).astype(np.float32)
    return torch.from_numpy(values.reshape(len(raw), -1))
