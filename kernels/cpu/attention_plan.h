// Who computes what: a step's attention as items of work that threads take one after another.
#pragma once

#include "attention_tile.h"

namespace engine {

struct AttentionShape {
  int64_t tokens, sequences, table_width, query_heads, key_heads, head_dim, block_size, window, chunk;
  bool causal = true;   // else a query sees later keys as well
  bool latent = false;  // whether values are the first elements of keys, and not kept beside them
  int64_t value_dim = head_dim;
  int64_t sharing = query_heads / key_heads;  // query heads per key head
  int64_t padded_dim = ceil_div(value_dim, kPanel) * kPanel;  // floats of a row of values: whole panels
  int64_t tile = ceil_div(kTilePositions, block_size) * block_size;

  // The keys that a query sees in a sequence of `length` tokens. A window reaches as far ahead as back.
  Range visible(int64_t position, int64_t length) const {
    const int64_t window_begin = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
    const int64_t chunk_begin = chunk > 0 ? position / chunk * chunk : 0;
    const int64_t ahead = window > 0 ? std::min(length, position + window) : length;
    return {std::max(window_begin, chunk_begin), causal ? position + 1 : ahead};
  }
  // Tiles that `count` tokens see, the first of them at `position`.
  Range tiles(int64_t position, int64_t count, int64_t length) const {
    return {visible(position, length).begin / tile, ceil_div(visible(position + count - 1, length).end, tile)};
  }
  int64_t row_blocks(int64_t count) const { return ceil_div(count * sharing, kRowBlock); }
};

// Consecutive new tokens of one sequence, `token` being the first one's index in the step and
// `position` its position among `length`, with the query heads that share a key head, over some of the tiles.
struct AttentionItem {
  int64_t sequence, head, token, count, position, length;
  Range tiles;
  // Where the tiles of these rows are shared out over several items: the states of all of them,
  // [tiles, row blocks], and how many items are not done.
  float* states = nullptr;
  int32_t* left = nullptr;
};

class AttentionPlan {
 public:
  AttentionPlan(const AttentionShape& shape, const int32_t* cu_seqlens, const int32_t* seq_lens, int most_threads)
      : shape_(shape), cu_seqlens_(cu_seqlens), seq_lens_(seq_lens), most_threads_(most_threads) {
    while (tokens_ > least_tokens() && count() < kItemsPerThread * most_threads) tokens_ = std::max(tokens_ / 2, least_tokens());
    each([&](const AttentionItem& item) { cost_ += cost(item) * shape_.key_heads; });
    limit_ = most_threads == 1 ? cost_ : std::max<int64_t>(kLeastCost, ceil_div(cost_, kItemsPerThread * most_threads));
    each([&](const AttentionItem& item) {
      items_ += parts(item) * shape_.key_heads;
      if (parts(item) > 1) shared_ += shape_.key_heads, states_ += cost(item) * shape_.key_heads;
    });
  }

  int64_t items() const { return items_; }
  int64_t shared() const { return shared_; }  // rows whose tiles are shared out
  int64_t states() const { return states_; }
  int64_t multiply_adds() const { return cost_ * kRowBlock * shape_.tile * (shape_.head_dim + shape_.value_dim); }
  // Items that a thread takes at a time: several where they are small, as long as there are many.
  int64_t grain(int threads) const {
    return std::clamp<int64_t>(kGrainCost * items_ / std::max<int64_t>(1, cost_), 1, std::max<int64_t>(1, items_ / (2 * kItemsPerThread * threads)));
  }
  int64_t most_row_blocks() const { return shape_.row_blocks(tokens_); }

  // items [items()], states [states(), state_floats], left [shared()]
  void fill(AttentionItem* items, float* states, int64_t state_floats, int32_t* left) const {
    for (int64_t head = 0; head < shape_.key_heads; ++head)
      each([&](AttentionItem item) {
        item.head = head;
        const int64_t count = parts(item);
        if (count > 1) {
          item.states = states, item.left = left;
          states += cost(item) * state_floats;
          *left++ = int32_t(count);
        }
        const Range all = item.tiles;
        for (int64_t part = 0; part < count; ++part) {
          item.tiles = {all.begin + (all.end - all.begin) * part / count, all.begin + (all.end - all.begin) * (part + 1) / count};
          *items++ = item;
        }
      });
  }

 private:
  static constexpr int64_t kItemsPerThread = 4;
  static constexpr int64_t kGrainCost = 4;
  static constexpr int64_t kLeastCost = 2;  // tiles of a row block that are worth handing to another thread

  const AttentionShape& shape_;
  const int32_t *cu_seqlens_, *seq_lens_;
  int most_threads_;
  // Enough rows that a tile is worth fetching.
  int64_t tokens_ = std::max<int64_t>(1, 8 * kRowBlock / shape_.sharing);
  int64_t cost_ = 0, limit_ = 0, items_ = 0, shared_ = 0, states_ = 0;

  int64_t least_tokens() const { return std::max<int64_t>(1, kRowBlock / shape_.sharing); }
  int64_t cost(const AttentionItem& item) const { return shape_.row_blocks(item.count) * (item.tiles.end - item.tiles.begin); }
  // Tiles are shared out only where tokens cannot be.
  int64_t parts(const AttentionItem& item) const {
    const int64_t own = cost(item);
    return own > limit_ && item.count <= least_tokens() ? std::min(ceil_div(own, limit_), item.tiles.end - item.tiles.begin) : 1;
  }

  int64_t count() const {
    int64_t items = 0;
    for (int64_t s = 0; s < shape_.sequences; ++s) items += ceil_div(cu_seqlens_[s + 1] - cu_seqlens_[s], tokens_);
    return items * shape_.key_heads;
  }

  // Calls body(item) for the new tokens of every sequence, for no head and all tiles; what takes
  // longest first: late tokens of a prompt see the most keys.
  template <class Body>
  void each(const Body& body) const {
    for (int64_t s = shape_.sequences - 1; s >= 0; --s) {
      const int64_t begin = cu_seqlens_[s], count = cu_seqlens_[s + 1] - begin;
      if (count == 0) continue;
      for (int64_t at = (count - 1) / tokens_ * tokens_; at >= 0; at -= tokens_) {
        const int64_t here = std::min(tokens_, count - at), length = seq_lens_[s], position = length - count + at;
        body(AttentionItem{s, 0, begin + at, here, position, length, shape_.tiles(position, here, length)});
      }
    }
  }
};

}  // namespace engine
