// AMX: products of whole tiles of bytes, for targets with amx_int8.
//
// A product of 16 rows x 16 outputs x 32 k, one group of a panel, is here
//   1 tilezero, 1 tdpbssd (16 cycles, one per row, of the one unit that multiplies tiles),
//   1 tilestored (16 stores), half a tileloadd of activations and half of one of weights,
//   and 16 times load, convert, multiply by the scales, multiply, add (and two more with mins),
// against 16 * 8 vpdpbusd (64 cycles on two units) and the same float operations with VNNI. The
// tiles multiply beside the vector units, which the float operations keep for 32 to 48 cycles: they
// are what bounds the kernel, at about half of what VNNI needs in all. A scale per group of 32 forbids
// more: it leaves half of a tile's depth empty and wants every product stored.
//
// This code has been executed under emulation only (tests/support/amx_emulator.c) and never timed;
// the figures are the published ones of the instructions.
#pragma once

#include <cstdint>

#include "dot.h"

#if defined(ENGINE_AVX512) && defined(ENGINE_VNNI) && defined(__AMX_TILE__) && defined(__AMX_INT8__)
#define ENGINE_AMX

namespace engine {

constexpr int kTileRows = 16;
constexpr int kTileRowBytes = 64;
constexpr int kTiles = 8;

// The operand of ldtilecfg, palette 1 (Intel's Software Developer's Manual, volume 2).
struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t zeros[15] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int tile_rows, int tile_row_bytes) {
    rows[tile] = uint8_t(tile_rows);
    row_bytes[tile] = uint16_t(tile_row_bytes);
  }
};
static_assert(sizeof(TileShapes) == 64);

// The instructions by themselves: the compiler's own functions want the tile's number from the
// preprocessor and do not say that they read memory. Every thread has its own tiles and shapes.

// All tiles become zero.
ENGINE_INLINE void configure_tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }

// A thread whose tiles are in use is slow to switch.
ENGINE_INLINE void release_tiles() { asm volatile("tilerelease"); }

template <int Tile>
ENGINE_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}

// Rows lie `stride` bytes apart; only the tile's shape is read or written.
template <int Tile>
ENGINE_INLINE void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(Tile), "r"(from), "r"(stride) : "memory");
}
template <int Tile>
ENGINE_INLINE void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(Tile), "r"(to), "r"(stride) : "memory");
}

// Sum[m][n] += sum over k of X[m][k] * W[k / 4][4 * n + k % 4]: int8 times int8, int32 sums.
template <int Sum, int X, int W>
ENGINE_INLINE void add_tile_product() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(X), "i"(W));
}

}  // namespace engine
#endif
