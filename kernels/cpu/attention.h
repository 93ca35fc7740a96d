// Paged attention over a cache of one element type: the write of the step's keys and values, and
// the items of the plan.
#pragma once

#include <atomic>

#include "attention_plan.h"
#include "attention_rows.h"
#include "op.h"

namespace engine {

// Where a row of each head of each token lies.
template <class Float>
struct HeadRows {
  Float* first;
  int64_t token_stride, head_stride;

  Float* at(int64_t token, int64_t head) const { return first + token * token_stride + head * head_stride; }
};

struct AttentionInputs {
  AttentionShape shape;
  HeadRows<const float> q;       // [tokens, query_heads, head_dim - tail]
  HeadRows<const float> q_tail;  // the last `tail` elements of queries, where they lie elsewhere
  int64_t tail;
  const float *k, *v;  // [tokens, key_heads, head_dim] and [tokens, key_heads, value_dim]
  int64_t k_stride, v_stride;
  const float *q_norm, *k_norm;  // [head_dim], or both null
  Rotation rotation;
  float eps;
  bool norm_after_rope;
  float scale, softcap;
  const float* sinks;    // [query_heads], or null
  const float* q_scale;  // [tokens], or null
  void *k_cache, *v_cache;
  const int32_t *cu_seqlens, *seq_lens, *block_table, *slot_mapping;
  HeadRows<float> out;  // [tokens, query_heads, value_dim]
};

template <class Element>
class PagedAttention {
 public:
  explicit PagedAttention(const AttentionInputs& in) : in_(in) {}

  void run() const {
    const int64_t covered = shape_.sequences > 0 ? in_.cu_seqlens[shape_.sequences] : 0;
    for (int64_t token = covered; token < shape_.tokens; ++token)
      for (int64_t head = 0; head < shape_.query_heads; ++head) std::fill_n(in_.out.at(token, head), shape_.value_dim, 0.0f);
    const bool decode = is_decode(covered);
    if (!decode) write_all();
    if (covered > 0) attend_all(decode);
  }

 private:
  using Factor = Multiplier<Element>;
  static constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;  // scores are exponents of 2

  // A thread's own memory.
  struct Workspace {
    Factor* queries;
    float* scores;
    Copied<Element>* values;
    float *states, *row;  // row: [head_dim]
    Element* encoded;     // [head_dim]

    Workspace(const PagedAttention& op, int64_t row_blocks) {
      static thread_local Scratch scratch;
      const AttentionShape& shape = op.shape_;
      const int64_t query_floats = ceil_div(row_blocks * kRowBlock * shape.head_dim, 16) * 16, score_floats = kRowBlock * shape.tile;
      const int64_t value_floats = op.copies_values_ ? shape.tile * shape.padded_dim : 0, row_floats = ceil_div(shape.head_dim, 16) * 16;
      const int64_t state_floats = (row_blocks + 1) * op.state_floats_;
      float* const memory = scratch.take<float>(query_floats + score_floats + value_floats + state_floats + 2 * row_floats);
      queries = reinterpret_cast<Factor*>(memory);
      scores = memory + query_floats;
      values = reinterpret_cast<Copied<Element>*>(scores + score_floats);
      states = scores + score_floats + value_floats;
      row = states + state_floats;
      encoded = reinterpret_cast<Element*>(row + row_floats);
    }
  };

  const AttentionInputs& in_;
  const AttentionShape& shape_ = in_.shape;
  Element* const k_cache_ = static_cast<Element*>(in_.k_cache);
  Element* const v_cache_ = static_cast<Element*>(in_.v_cache);
  const BlockLayout<Element> layout_{shape_.block_size, shape_.head_dim};
  const TileAttention<Element> compute_{layout_, shape_.tile, shape_.padded_dim, SoftCap(in_.softcap * kLog2E)};
  const int64_t state_floats_ = Softmax::floats(shape_.padded_dim);
  const bool copies_values_ = shape_.latent || shape_.value_dim != shape_.padded_dim;
  const RowTransform query_rows_{in_.q_norm, in_.eps, in_.norm_after_rope, in_.rotation, in_.scale * kLog2E, in_.q_scale, shape_.head_dim - in_.tail};
  const RowTransform key_rows_{in_.k_norm, in_.eps, in_.norm_after_rope, in_.rotation, 1.0f, nullptr, shape_.head_dim};

  int64_t block_offset(int64_t block, int64_t head) const { return (block * shape_.key_heads + head) * layout_.stride(); }
  // Behind the last key that any query of an item sees.
  int64_t seen_end(const AttentionItem& item) const { return shape_.visible(item.position + item.count - 1, item.length).end; }
  Softmax state(float* states, int64_t row_block) const { return Softmax::in(states + row_block * state_floats_); }

  // Whether every sequence has at most one new token, at the place that its block table says. Then
  // who computes a head can write its key and value: nobody else reads them.
  bool is_decode(int64_t covered) const {
    for (int64_t s = 0; s < shape_.sequences; ++s) {
      const int64_t token = in_.cu_seqlens[s], count = in_.cu_seqlens[s + 1] - token, size = shape_.block_size;
      if (count == 0) continue;
      const int64_t position = in_.seq_lens[s] - 1;
      if (count > 1 || in_.slot_mapping[token] != in_.block_table[s * shape_.table_width + position / size] * size + position % size) return false;
    }
    return std::all_of(in_.slot_mapping + covered, in_.slot_mapping + shape_.tokens, [](int32_t slot) { return slot < 0; });
  }

  void write(int64_t token, int64_t head, const Workspace& space) const {
    const int64_t slot = in_.slot_mapping[token], offset = slot % shape_.block_size, at = block_offset(slot / shape_.block_size, head);
    key_rows_.apply(in_.k + token * in_.k_stride + head * shape_.head_dim, token, space.row);
    layout_.write_key(k_cache_ + at, offset, space.row, space.encoded);
    if (shape_.latent) return;
    const float* const value = in_.v + token * in_.v_stride + head * shape_.value_dim;
    layout_.write_value(v_cache_ + at, offset, shape_.value_dim < shape_.head_dim ? widened(value, space.row) : value, space.encoded);
  }

  // A value in a row as wide as a key, as the cache has it.
  const float* widened(const float* value, float* row) const {
    std::copy_n(value, shape_.value_dim, row);
    std::fill(row + shape_.value_dim, row + shape_.head_dim, 0.0f);
    return row;
  }

  void write_all() const {
    const int64_t work = shape_.tokens * shape_.key_heads * shape_.head_dim * 8;
    parallel_for(shape_.tokens, 16, threads_for(work), [&](int64_t begin, int64_t end) {
      const Workspace space(*this, 0);
      for (int64_t token = begin; token < end; ++token)
        for (int64_t head = 0; head < shape_.key_heads && in_.slot_mapping[token] >= 0; ++head) write(token, head, space);
    });
  }

  void attend_all(bool decode) const {
    const AttentionPlan plan(shape_, in_.cu_seqlens, in_.seq_lens, omp_get_max_threads());
    static thread_local Scratch item_scratch, state_scratch, left_scratch;
    AttentionItem* const items = item_scratch.take<AttentionItem>(plan.items());
    plan.fill(items, state_scratch.take<float>(plan.states() * state_floats_), state_floats_, left_scratch.take<int32_t>(plan.shared()));
    const int threads = threads_for(plan.multiply_adds());
    parallel_for(plan.items(), plan.grain(threads), threads, [&](int64_t begin, int64_t end) {
      const Workspace space(*this, plan.most_row_blocks());
      for (int64_t i = begin; i < end; ++i) attend(items[i], i + 1 < end ? items[i + 1] : items[i], decode, space);
    });
  }

  // Calls body(row block, its first row, its rows).
  template <class Body>
  void each_row_block(const AttentionItem& item, const Body& body) const {
    const int64_t rows = item.count * shape_.sharing;
    for (int64_t first = 0, index = 0; first < rows; first += kRowBlock, ++index) body(index, first, std::min<int64_t>(kRowBlock, rows - first));
  }
  void clear(float* states, const AttentionItem& item) const {
    each_row_block(item, [&](int64_t block, int64_t, int64_t) { state(states, block).clear(shape_.padded_dim); });
  }

  // following: the item whose first tile to fetch meanwhile.
  void attend(const AttentionItem& item, const AttentionItem& following, bool writes, const Workspace& space) const {
    const Range all = shape_.tiles(item.position, item.count, item.length);
    const int64_t per_tile = shape_.row_blocks(item.count) * state_floats_;
    gather_queries(item, space);
    fetch<1>(in_.out, item, shape_.value_dim);
    fetch<0>(in_.q, following, shape_.head_dim - in_.tail);
    clear(space.states, item);
    Tile<Element> tiles[2];
    find_tile(item, item.tiles.begin, tiles[item.tiles.begin % 2]);
    for (int64_t index = item.tiles.begin; index < item.tiles.end; ++index) {
      Tile<Element>& next = tiles[(index + 1) % 2];
      if (index + 1 < item.tiles.end) find_tile(item, index + 1, next);
      else find_tile(following, following.tiles.begin, next);
      float* const states = item.states == nullptr ? space.states : item.states + (index - all.begin) * per_tile;
      if (item.states != nullptr) clear(states, item);
      if (writes && index + 1 == all.end) write(item.token, item.head, space);
      attend_tile(item, index, tiles[index % 2], next, states, space);
    }
    if (item.states != nullptr) {
      if (std::atomic_ref(*item.left).fetch_sub(1, std::memory_order_acq_rel) > 1) return;
      for (int64_t index = 0; index < all.end - all.begin; ++index)
        each_row_block(item, [&](int64_t block, int64_t, int64_t rows) {
          state(space.states, block).merge(state(item.states + index * per_tile, block), rows, shape_.padded_dim);
        });
    }
    finish(item, space);
  }

  // Query head number h of those that share the key head of an item.
  int64_t query_head(const AttentionItem& item, int64_t h) const { return item.head * shape_.sharing + h; }

  template <int ForWriting, class Float>
  void fetch(const HeadRows<Float>& rows, const AttentionItem& item, int64_t dim) const {
    for (int64_t t = item.token; t < item.token + item.count; ++t)
      for (int64_t h = 0; h < shape_.sharing; ++h)
        for (int64_t d = 0; d < dim; d += 16) __builtin_prefetch(rows.at(t, query_head(item, h)) + d, ForWriting);
  }

  // Rows of an item, by token, then head, ready to be multiplied with keys. [rows, head_dim]
  void gather_queries(const AttentionItem& item, const Workspace& space) const {
    const int64_t dim = shape_.head_dim;
    Factor* to = space.queries;
    for (int64_t t = item.token; t < item.token + item.count; ++t)
      for (int64_t h = 0; h < shape_.sharing; ++h, to += dim) {
        if constexpr (kTogether<Element> == 1) {
          gather_query(t, query_head(item, h), to);
        } else {
          gather_query(t, query_head(item, h), space.row);
          encode_multipliers(space.row, dim, to);
        }
      }
  }

  void gather_query(int64_t token, int64_t head, float* to) const {
    query_rows_.apply(in_.q.at(token, head), token, to);
    if (in_.tail == 0) return;
    const float* const from = in_.q_tail.at(token, head);
    for (int64_t d = 0; d < in_.tail; ++d) to[query_rows_.head_dim + d] = from[d] * query_rows_.factor;
  }

  void find_tile(const AttentionItem& item, int64_t index, Tile<Element>& tile) const {
    const int64_t size = shape_.block_size, first = index * shape_.tile / size, last = (seen_end(item) - 1) / size;
    const int32_t* table = in_.block_table + item.sequence * shape_.table_width;
    for (int64_t b = 0, panel = 0; b * size < shape_.tile; ++b) {
      const int64_t at = block_offset(table[std::min(first + b, last)], item.head);
      tile.blocks[b] = (shape_.latent ? k_cache_ : v_cache_) + at;
      for (int64_t p = 0; p < size; p += kPanel, ++panel) {
        tile.keys[panel] = k_cache_ + at + p * kTogether<Element>;
        tile.key_scales[panel] = layout_.scales(k_cache_ + at) + p * int64_t(sizeof(float));
        tile.value_scales[panel] = layout_.scales(shape_.latent ? k_cache_ + at : v_cache_ + at) + p * int64_t(sizeof(float));
      }
    }
  }

  // Joins one tile to the states of the item's row blocks.
  void attend_tile(const AttentionItem& item, int64_t index, const Tile<Element>& tile, const Tile<Element>& next, float* states,
                   const Workspace& space) const {
    constexpr int kPart = kTogether<Element>;
    if (!copies_values_) {
      each_row_block(item, [&](int64_t block, int64_t first, int64_t rows) {
        const Tile<Element>& fetched = block == 0 ? next : tile;
        const Values<Element> values{tile.blocks, fetched.blocks, shape_.head_dim * kPart, kPanel * kPart};
        attend_rows(item, index, tile, fetched, values, first, rows, state(states, block), space);
      });
    } else {
      const CopiedValues<Element> copies{space.values, shape_.tile};
      const Copied<Element>* blocks[kPanelsPerTile];
      copy_values(tile, std::min(shape_.tile, seen_end(item) - index * shape_.tile), copies);
      for (int64_t b = 0; b * shape_.block_size < shape_.tile; ++b) blocks[b] = copies.block(b * shape_.block_size);
      const Values<Copied<Element>> values{blocks, blocks, copies.kStride, copies.panel_stride()};
      each_row_block(item, [&](int64_t block, int64_t first, int64_t rows) {
        attend_rows(item, index, tile, block == 0 ? next : tile, values, first, rows, state(states, block), space);
      });
    }
  }

  // Values of the blocks with the tile's first `count` positions. Those of latents are the beginning of keys.
  void copy_values(const Tile<Element>& tile, int64_t count, const CopiedValues<Element>& to) const {
    for (int64_t b = 0, position = 0; position < count; ++b, position += shape_.block_size) {
      if (shape_.latent) layout_.copy_keys(tile.blocks[b], shape_.value_dim, to, position);
      else layout_.copy_values(tile.blocks[b], shape_.value_dim, to, position);
    }
  }

  template <class Value>
  void attend_rows(const AttentionItem& item, int64_t index, const Tile<Element>& tile, const Tile<Element>& next, const Values<Value>& values,
                   int64_t first, int64_t rows, const Softmax& running, const Workspace& space) const {
    const Factor* queries = space.queries + first * shape_.head_dim;
    const Range whole{index * shape_.tile, (index + 1) * shape_.tile};
    int64_t position = item.position + first / shape_.sharing, head = first % shape_.sharing;
    const int64_t last = item.position + (first + rows - 1) / shape_.sharing;
    if (shape_.visible(last, item.length).begin <= whole.begin && shape_.visible(position, item.length).end >= whole.end)
      return compute_.attend_whole(tile, next, values, queries, rows, space.scores, running);
    Range seen[kRowBlock];
    for (int64_t r = 0; r < rows; ++r) {
      const Range own = intersect(shape_.visible(position, item.length), whole);
      seen[r] = {own.begin - whole.begin, own.end - whole.begin};
      if (++head == shape_.sharing) head = 0, ++position;
    }
    const Softmax scratch = state(space.states, shape_.row_blocks(item.count));
    compute_.attend_seen(tile, next, values, queries, rows, seen, space.scores, scratch, running);
  }

  // Of a query head's sink, relative to m, the largest score of a row.
  float sink_weight(int64_t query_head, float m) const {
    return in_.sinks == nullptr ? 0.0f : exp_clamped(splat(in_.sinks[query_head] - m * kLn2))[0];
  }

  void finish(const AttentionItem& item, const Workspace& space) const {
    each_row_block(item, [&](int64_t block, int64_t first, int64_t rows) {
      const Softmax softmax = state(space.states, block);
      const float* from = softmax.acc;
      for (int64_t row = first; row < first + rows; ++row, from += Softmax::width(shape_.padded_dim)) {
        const int64_t head = row % shape_.sharing;
        float* __restrict to = in_.out.at(item.token + row / shape_.sharing, query_head(item, head));
        const float inverse = 1.0f / (reduce_add(load(from + shape_.padded_dim)) + sink_weight(query_head(item, head), softmax.m[row - first]));
        for (int64_t d = 0; d < shape_.value_dim; ++d) to[d] = from[d] * inverse;
      }
    });
  }
};

}  // namespace engine
