"""Attention over latents: the step's latents go to the cache, then queries look at all that is kept.

Legend: T tokens, S sequences, B blocks per sequence, QH heads, L elements of a latent, R of the key's part with positions.
"""

from typing import Any

import triton
import triton.language as tl

from ..cut_operators import LATENT_ATTENTION
from .context import Context, Emit
from .latent_decode import latent_decode
from .latent_mixed import latent_mixed
from .latent_tiles import Latents
from .launch import Launch, Tensor


@triton.jit
def latent_write_kernel(
    latents, cache, slot_mapping, latents_token, cache_block, WIDTH: tl.constexpr, WIDTH_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr
):
    """One token per program; a negative slot writes nothing."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    if slot >= 0:
        d = tl.arange(0, WIDTH_PADDED)
        kept = tl.load(latents + token * latents_token + d, mask=d < WIDTH)
        to = (slot // BLOCK_SIZE).to(tl.int64) * cache_block + slot % BLOCK_SIZE * WIDTH
        tl.store(cache + to + d, kept.to(cache.dtype.element_ty), mask=d < WIDTH)


def latent_write(latents: Tensor, cache: Tensor, slot_mapping: Tensor) -> Launch:
    """latents [T, L + R], normalized and rotated, to the cache [blocks, 1, block_size, L + R] at slot_mapping [T]."""
    width = int(latents.shape[1])
    assert cache.strides[2:] == (width, 1), cache
    return Launch(
        function=latent_write_kernel,
        grid=(latents.shape[0], 1, 1),
        arguments={
            "latents": latents,
            "cache": cache,
            "slot_mapping": slot_mapping,
            "latents_token": latents.strides[0],
            "cache_block": cache.strides[0],
        },
        constants={"WIDTH": width, "WIDTH_PADDED": triton.next_power_of_2(width), "BLOCK_SIZE": int(cache.shape[2])},
        num_warps=2,
    )


def latent_attention(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """The emitter.

    Arguments: q [QH, T, L], q_rope [T, QH, R], latents [T, L + R] (rows of all may lie apart), cache [blocks, 1, block_size, L + R],
    cu_seqlens [S+1], seq_lens [S], block_table [S, B], slot_mapping [T] int32, and the scale of products.
    """
    call = LATENT_ATTENTION.named(arguments)
    paged = Latents(**{name: call[name] for name in ("q", "q_rope", "cache", "seq_lens", "block_table", "scale")})
    write = latent_write(call["latents"], call["cache"], call["slot_mapping"])
    return [write, *latent_decode(paged, out, context), *latent_mixed(paged, call["cu_seqlens"], out, context)]


EMITTERS: dict[str, Emit] = {"latent_attention": latent_attention}
