// paged_attention: writes the step's keys and values into the cache, then computes softmax
// attention of the step's queries over it. Prefill and decode are the same code.
//
// Inside one block of the cache, keys lie transposed, [D, block_size], and values plainly,
// [block_size, D]. So both products (queries x keys, weights x values) have their lanes on
// outputs and sum in order, and a stale or NaN key never touches its neighbours' scores.
//
// What one query row computes is fixed by its position alone. Keys are taken in tiles of about
// 64 positions and spans of about 512, both aligned to absolute positions: online softmax over
// the tiles of a span, each span from scratch, then the spans merged in order. Batch, chunking
// and threads only decide who computes which rows and spans.

#include <algorithm>
#include <vector>

#include "exp.h"
#include "gemm.h"
#include "c_interface.h"

namespace engine {
namespace {

constexpr int64_t kTilePositions = 64;
constexpr int64_t kSpanPositions = 512;
constexpr int64_t kTileRows = 32;  // query rows (tokens x heads sharing a key) that share a pass over the keys

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Range {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
  bool operator==(const Range&) const = default;
};
Range intersect(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

struct Shape {
  int64_t tokens, sequences, table_width, query_heads, key_heads, head_dim, block_size, window;
  float scale;

  int64_t sharing() const { return query_heads / key_heads; }
  int64_t padded_dim() const { return ceil_div(head_dim, kPanel) * kPanel; }
  int64_t tile() const { return std::max<int64_t>(1, kTilePositions / block_size) * block_size; }
  int64_t span() const { return std::max<int64_t>(1, kSpanPositions / tile()) * tile(); }
  int64_t tokens_per_task() const { return std::max<int64_t>(1, kTileRows / sharing()); }
  int64_t rows_per_task() const { return tokens_per_task() * sharing(); }
  int64_t block_elements() const { return block_size * head_dim; }
};

// Consecutive new tokens of one sequence, indexed in the step; `position` is the first one's.
struct Queries {
  int64_t sequence, token, count, position;
};

// Running softmax of some rows: e^(score - maximum) summed, and the values so weighted.
struct Softmax {
  float* maximum;   // [rows]
  float* sum;       // [rows]
  float* weighted;  // [rows, padded_dim]

  static int64_t floats(int64_t rows, const Shape& shape) { return rows * (shape.padded_dim() + 2); }
  static Softmax in(float* memory, int64_t rows) { return {memory, memory + rows, memory + 2 * rows}; }
  void clear(int64_t rows, int64_t dim) const {
    std::fill_n(maximum, rows, -INFINITY);
    std::fill_n(sum, rows, 0.0f);
    std::fill_n(weighted, rows * dim, 0.0f);
  }
};

void scale_row(float* row, int64_t count, float factor) {
  for (int64_t i = 0; i < count; i += kLanes) store(row + i, load(row + i) * factor);
}

template <class Cache>
struct Attention {
  Shape shape;
  const float *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;
  Cache *k_cache, *v_cache;
  const int32_t *query_start, *seq_lens, *block_table, *slots;
  float* out;

  void write(int64_t token) const {
    if (slots[token] < 0) return;
    const int64_t block = slots[token] / shape.block_size, offset = slots[token] % shape.block_size;
    for (int64_t head = 0; head < shape.key_heads; ++head) {
      const int64_t at = (block * shape.key_heads + head) * shape.block_elements();
      const float* key = k + token * k_stride + head * shape.head_dim;
      const float* value = v + token * v_stride + head * shape.head_dim;
      for (int64_t d = 0; d < shape.head_dim; ++d) store_as(k_cache + at + d * shape.block_size + offset, key[d]);
      for (int64_t d = 0; d < shape.head_dim; ++d) store_as(v_cache + at + offset * shape.head_dim + d, value[d]);
    }
  }

  Range visible(int64_t position) const {
    return {shape.window > 0 ? std::max<int64_t>(0, position - shape.window + 1) : 0, position + 1};
  }
  Range visible(const Queries& queries) const {
    return {visible(queries.position).begin, visible(queries.position + queries.count - 1).end};
  }
  int64_t rows(const Queries& queries) const { return queries.count * shape.sharing(); }

  int64_t block_at(const Queries& queries, int64_t head, int64_t position) const {
    const int64_t block = block_table[queries.sequence * shape.table_width + position / shape.block_size];
    return (block * shape.key_heads + head) * shape.block_elements();
  }

  // Scaled queries of a task, rows ordered by token, then head. [rows, head_dim]
  void gather_queries(const Queries& queries, int64_t head, float* to) const {
    const int64_t width = shape.sharing() * shape.head_dim;
    for (int64_t t = 0; t < queries.count; ++t) {
      const float* from = q + (queries.token + t) * q_stride + head * width;
      for (int64_t i = 0; i < width; ++i) to[t * width + i] = from[i] * shape.scale;
    }
  }

  void score_tile(const Queries& queries, int64_t head, Range keys, const float* scaled, float* scores) const {
    const int64_t tile = shape.tile(), begin = keys.begin / tile * tile;
    std::fill_n(scores, rows(queries) * tile, 0.0f);
    for (int64_t position = keys.begin / shape.block_size * shape.block_size; position < keys.end; position += shape.block_size) {
      const Product<Cache> product{.a = scaled,
                                   .a_stride = shape.head_dim,
                                   .w = k_cache + block_at(queries, head, position),
                                   .w_stride = shape.block_size,
                                   .panel_stride = kPanel,
                                   .depth = shape.head_dim,
                                   .c = scores + (position - begin),
                                   .c_stride = tile};
      product.run(rows(queries), shape.block_size / kPanel);
    }
  }

  // Turns one row's scores into weights and rescales what the row has so far.
  void weigh_row(float* scores, Range keys, int64_t row, const Softmax& state) const {
    const int64_t width = ceil_div(keys.end, kLanes) * kLanes;
    std::fill(scores, scores + keys.begin, -INFINITY);
    std::fill(scores + keys.end, scores + width, -INFINITY);
    Vf largest = splat(state.maximum[row]);
    for (int64_t i = 0; i < width; i += kLanes) largest = max(largest, load(scores + i));
    const float maximum = reduce_max(largest);
    Vf sum{};
    for (int64_t i = 0; i < width; i += kLanes) {
      const Vf weight = exp_nonpositive(load(scores + i) - maximum);
      store(scores + i, weight);
      sum += weight;
    }
    const float correction = exp_nonpositive(state.maximum[row] - maximum);
    state.maximum[row] = maximum;
    state.sum[row] = state.sum[row] * correction + reduce_add(sum);
    if (correction != 1.0f) scale_row(state.weighted + row * shape.padded_dim(), shape.padded_dim(), correction);
  }

  // Adds weights x values for rows that see the same keys of the tile; others would bring in
  // zero times values that may be NaN.
  void add_values(const Queries& queries, int64_t head, Range keys, int64_t tile_begin, int64_t row, int64_t count, const float* weights,
                  float* value_scratch, const Softmax& state) const {
    const int64_t dim = shape.padded_dim();
    for (int64_t position = keys.begin; position < keys.end;) {
      const int64_t offset = position % shape.block_size;
      const int64_t depth = std::min(shape.block_size - offset, keys.end - position);
      const Cache* values = v_cache + block_at(queries, head, position) + offset * shape.head_dim;
      const float* a = weights + row * shape.tile() + (position - tile_begin);
      float* c = state.weighted + row * dim;
      if (dim == shape.head_dim) {
        Product<Cache>{a, shape.tile(), values, dim, kPanel, depth, c, dim}.run(count, dim / kPanel);
      } else {
        for (int64_t j = 0; j < depth; ++j)
          for (int64_t d = 0; d < dim; ++d) value_scratch[j * dim + d] = d < shape.head_dim ? to_float(values[j * shape.head_dim + d]) : 0.0f;
        Product<float>{a, shape.tile(), value_scratch, dim, kPanel, depth, c, dim}.run(count, dim / kPanel);
      }
      position += depth;
    }
  }

  // Softmax of the rows over the keys of one span, from scratch. Rows that see none of it are
  // left cleared.
  void attend_span(const Queries& queries, int64_t head, int64_t span, const float* scaled, float* scores, float* value_scratch,
                   const Softmax& state) const {
    const int64_t tile = shape.tile(), sharing = shape.sharing();
    state.clear(rows(queries), shape.padded_dim());
    const Range keys = intersect(visible(queries), {span * shape.span(), (span + 1) * shape.span()});
    for (int64_t begin = keys.begin / tile * tile; begin < keys.end; begin += tile) {
      const Range in_tile{begin, begin + tile};
      score_tile(queries, head, intersect(keys, in_tile), scaled, scores);
      auto seen = [&](int64_t t) { return intersect(visible(queries.position + t), in_tile); };
      for (int64_t first = 0, last; first < queries.count; first = last) {
        const Range range = seen(first);
        for (last = first + 1; last < queries.count && seen(last) == range;) ++last;
        if (range.empty()) continue;
        for (int64_t row = first * sharing; row < last * sharing; ++row)
          weigh_row(scores + row * tile, {range.begin - begin, range.end - begin}, row, state);
        add_values(queries, head, range, begin, first * sharing, (last - first) * sharing, scores, value_scratch, state);
      }
    }
  }

  // Joins one span's result to those before it.
  void merge(int64_t rows, const Softmax& span, const Softmax& total) const {
    const int64_t dim = shape.padded_dim();
    for (int64_t row = 0; row < rows; ++row) {
      if (span.maximum[row] == -INFINITY && span.sum[row] == 0.0f) continue;
      const float maximum = std::max(total.maximum[row], span.maximum[row]);
      const float old_part = exp_nonpositive(total.maximum[row] - maximum), new_part = exp_nonpositive(span.maximum[row] - maximum);
      total.maximum[row] = maximum;
      total.sum[row] = total.sum[row] * old_part + span.sum[row] * new_part;
      float* to = total.weighted + row * dim;
      const float* from = span.weighted + row * dim;
      for (int64_t d = 0; d < dim; d += kLanes) store(to + d, load(to + d) * old_part + load(from + d) * new_part);
    }
  }

  void finish(const Queries& queries, int64_t head, const Softmax& total) const {
    const int64_t sharing = shape.sharing();
    for (int64_t row = 0; row < rows(queries); ++row) {
      float* to = out + ((queries.token + row / sharing) * shape.query_heads + head * sharing + row % sharing) * shape.head_dim;
      const float* from = total.weighted + row * shape.padded_dim();
      const float inverse = 1.0f / total.sum[row];
      for (int64_t d = 0; d < shape.head_dim; ++d) to[d] = from[d] * inverse;
    }
  }

  Range spans(const Queries& queries) const {
    const Range keys = visible(queries);
    return {keys.begin / shape.span(), ceil_div(keys.end, shape.span())};
  }

  std::vector<Queries> split_queries() const {
    std::vector<Queries> tasks;
    for (int64_t s = 0; s < shape.sequences; ++s)
      for (int64_t token = query_start[s]; token < query_start[s + 1]; token += shape.tokens_per_task())
        tasks.push_back({s, token, std::min<int64_t>(shape.tokens_per_task(), query_start[s + 1] - token),
                         seq_lens[s] - query_start[s + 1] + token});
    return tasks;
  }

  // One (queries, head) pair, and which spans of it an item computes into which memory.
  struct Item {
    Queries queries;
    int64_t head;
    Range spans;
    float* partial;
  };

  void run() const {
    const std::vector<Queries> tasks = split_queries();
    const int threads = threads_for(shape.tokens * shape.query_heads * shape.head_dim * 64);
    const int64_t rows_max = shape.rows_per_task(), state_floats = Softmax::floats(rows_max, shape);
    const bool split = int64_t(tasks.size()) * shape.key_heads < 4 * threads && threads > 1;

    std::vector<Item> items;
    int64_t partials = 0;
    for (const Queries& queries : tasks)
      for (int64_t head = 0; head < shape.key_heads; ++head) {
        const Range all = spans(queries);
        if (!split) items.push_back({queries, head, all, nullptr});
        else
          for (int64_t span = all.begin; span < all.end; ++span, ++partials) items.push_back({queries, head, {span, span + 1}, nullptr});
      }
    static thread_local Scratch partial_scratch;
    if (split) {
      float* memory = partial_scratch.take<float>(partials * state_floats);
      for (int64_t i = 0; i < partials; ++i) items[size_t(i)].partial = memory + i * state_floats;
    }
    const int64_t count = int64_t(items.size());
    const int64_t covered = shape.sequences > 0 ? query_start[shape.sequences] : 0;
    const int64_t row_floats = shape.query_heads * shape.head_dim;
    std::fill(out + covered * row_floats, out + shape.tokens * row_floats, 0.0f);

    parallel_for(shape.tokens, 16, threads_for(shape.tokens * shape.key_heads * shape.head_dim), [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) write(token);
    });

    parallel_for(count, 1, threads, [&](int64_t begin, int64_t end) {
      const Workspace space(shape, rows_max);
      for (int64_t i = begin; i < end; ++i) attend_item(items[size_t(count - 1 - i)], space);  // late queries of a prompt see the most keys: longest first
    });

    if (split)
      parallel_for(count, 1, threads, [&](int64_t begin, int64_t end) {
        const Workspace space(shape, rows_max);
        for (int64_t i = begin; i < end; ++i) merge_item(items, i, space);
      });
  }

  // A thread's own memory for the work on one item.
  struct Workspace {
    float *scaled, *scores, *values;
    Softmax span, total;

    Workspace(const Shape& shape, int64_t rows_max) {
      static thread_local Scratch scratch;
      const int64_t tile = shape.tile(), dim = shape.padded_dim(), state_floats = Softmax::floats(rows_max, shape);
      scaled = scratch.take<float>(rows_max * (shape.head_dim + tile) + shape.block_size * dim + 2 * state_floats);
      scores = scaled + rows_max * shape.head_dim;
      values = scores + rows_max * tile;
      span = Softmax::in(values + shape.block_size * dim, rows_max);
      total = Softmax::in(values + shape.block_size * dim + state_floats, rows_max);
    }
  };

  void attend_item(const Item& item, const Workspace& space) const {
    gather_queries(item.queries, item.head, space.scaled);
    if (item.partial != nullptr) {
      const Softmax state = Softmax::in(item.partial, shape.rows_per_task());
      return attend_span(item.queries, item.head, item.spans.begin, space.scaled, space.scores, space.values, state);
    }
    space.total.clear(rows(item.queries), shape.padded_dim());
    for (int64_t span = item.spans.begin; span < item.spans.end; ++span) {
      attend_span(item.queries, item.head, span, space.scaled, space.scores, space.values, space.span);
      merge(rows(item.queries), space.span, space.total);
    }
    finish(item.queries, item.head, space.total);
  }

  // Merges the spans of one (queries, head) pair, in order, where `index` is the first of them.
  void merge_item(const std::vector<Item>& items, int64_t index, const Workspace& space) const {
    const Item& first = items[size_t(index)];
    const Range all = spans(first.queries);
    if (first.spans.begin != all.begin) return;
    space.total.clear(rows(first.queries), shape.padded_dim());
    for (int64_t span = 0; span < all.end - all.begin; ++span)
      merge(rows(first.queries), Softmax::in(items[size_t(index + span)].partial, shape.rows_per_task()), space.total);
    finish(first.queries, first.head, space.total);
  }
};

template <class Cache>
void run(const Shape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache,
         const Tensor& query_start, const Tensor& seq_lens, const Tensor& block_table, const Tensor& slots, const Tensor& out) {
  Attention<Cache>{.shape = shape,
                   .q = data<float>(q),
                   .k = data<float>(k),
                   .v = data<float>(v),
                   .q_stride = row_stride(q),
                   .k_stride = row_stride(k),
                   .v_stride = row_stride(v),
                   .k_cache = static_cast<Cache*>(k_cache.data_ptr()),
                   .v_cache = static_cast<Cache*>(v_cache.data_ptr()),
                   .query_start = data<int32_t>(query_start),
                   .seq_lens = data<int32_t>(seq_lens),
                   .block_table = data<int32_t>(block_table),
                   .slots = data<int32_t>(slots),
                   .out = static_cast<float*>(out.data_ptr())}
      .run();
}

void check_shapes(const Shape& shape, const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache, const Tensor& query_start,
                  const Tensor& seq_lens, const Tensor& slots) {
  STD_TORCH_CHECK(shape.key_heads > 0 && shape.query_heads % shape.key_heads == 0, shape.query_heads, " query heads cannot share ",
                  shape.key_heads, " key heads");
  STD_TORCH_CHECK(shape.block_size > 0 && shape.block_size % kPanel == 0 && shape.block_size <= kSpanPositions, "block size ", shape.block_size,
                  " is not a multiple of ", kPanel, " up to ", kSpanPositions);
  STD_TORCH_CHECK(k_cache.size(3) == shape.head_dim, "head size ", shape.head_dim, " does not fit the cache's ", k_cache.size(3));
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t expected = i == 0 ? shape.tokens : i == 1 ? shape.key_heads : shape.head_dim;
    STD_TORCH_CHECK(k.size(i) == expected && v.size(i) == expected, "k and v must be [tokens, key heads, head size]");
  }
  for (int64_t i = 0; i < 4; ++i) STD_TORCH_CHECK(k_cache.size(i) == v_cache.size(i), "k_cache and v_cache differ in shape");
  STD_TORCH_CHECK(query_start.size(0) == shape.sequences + 1 && seq_lens.size(0) == shape.sequences, "query_start and seq_lens do not fit block_table");
  STD_TORCH_CHECK(slots.size(0) == shape.tokens, "slots must have one element per token");
  STD_TORCH_CHECK(shape.window >= 0, "window must not be negative");
}

// The step's own numbers: cheap to check, and the memory they index is not.
void check_step(const Shape& shape, int64_t blocks, const Tensor& query_start, const Tensor& seq_lens, const Tensor& block_table,
                const Tensor& slots) {
  const int32_t *start = data<int32_t>(query_start), *length = data<int32_t>(seq_lens), *slot = data<int32_t>(slots);
  const int32_t* table = data<int32_t>(block_table);
  STD_TORCH_CHECK(start[0] == 0 && start[shape.sequences] <= shape.tokens, "query_start does not fit the tokens");
  for (int64_t s = 0; s < shape.sequences; ++s) {
    STD_TORCH_CHECK(start[s] <= start[s + 1] && start[s + 1] - start[s] <= length[s], "sequence ", s, " is shorter than its new tokens");
    STD_TORCH_CHECK(length[s] <= shape.table_width * shape.block_size, "sequence ", s, " is longer than its block table");
    const int64_t used = start[s] < start[s + 1] ? ceil_div(length[s], shape.block_size) : 0;
    for (int64_t b = 0; b < used; ++b) {
      const int32_t block = table[s * shape.table_width + b];
      STD_TORCH_CHECK(block >= 0 && block < blocks, "block ", block, " of sequence ", s, " is outside the cache");
    }
  }
  for (int64_t t = 0; t < shape.tokens; ++t) STD_TORCH_CHECK(slot[t] < blocks * shape.block_size, "slot ", slot[t], " is outside the cache");
}

Tensor paged_attention(Tensor q, Tensor k, Tensor v, Tensor k_cache, Tensor v_cache, Tensor query_start, Tensor seq_lens, Tensor block_table,
                       Tensor slots, double scale, int64_t window) {
  check_rows(q, ScalarType::Float, 3, "q");
  check_rows(k, ScalarType::Float, 3, "k");
  check_rows(v, ScalarType::Float, 3, "v");
  const ScalarType cache_type = k_cache.scalar_type();
  check_contiguous(k_cache, cache_type, 4, "k_cache");
  check_contiguous(v_cache, cache_type, 4, "v_cache");
  check_contiguous(query_start, ScalarType::Int, 1, "query_start");
  check_contiguous(seq_lens, ScalarType::Int, 1, "seq_lens");
  check_contiguous(block_table, ScalarType::Int, 2, "block_table");
  check_contiguous(slots, ScalarType::Int, 1, "slots");
  const Shape shape{.tokens = q.size(0),
                    .sequences = block_table.size(0),
                    .table_width = block_table.size(1),
                    .query_heads = q.size(1),
                    .key_heads = k_cache.size(1),
                    .head_dim = q.size(2),
                    .block_size = k_cache.size(2),
                    .window = window,
                    .scale = float(scale)};
  check_shapes(shape, k, v, k_cache, v_cache, query_start, seq_lens, slots);
  check_step(shape, k_cache.size(0), query_start, seq_lens, block_table, slots);
  Tensor out = empty_floats({shape.tokens, shape.query_heads, shape.head_dim});
  if (cache_type == ScalarType::Float)
    run<float>(shape, q, k, v, k_cache, v_cache, query_start, seq_lens, block_table, slots, out);
  else if (cache_type == ScalarType::BFloat16)
    run<BFloat16>(shape, q, k, v, k_cache, v_cache, query_start, seq_lens, block_table, slots, out);
  else
    STD_TORCH_CHECK(false, "the cache is float32 or bfloat16");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) { m.impl("paged_attention", TORCH_BOX(&paged_attention)); }

}  // namespace engine

ENGINE_EXPORT aoti_torch_cpu_paged_attention(AtenTensorHandle q, AtenTensorHandle k, AtenTensorHandle v, AtenTensorHandle k_cache,
                                             AtenTensorHandle v_cache, AtenTensorHandle query_start, AtenTensorHandle seq_lens,
                                             AtenTensorHandle block_table, AtenTensorHandle slots, double scale, int64_t window,
                                             AtenTensorHandle* result) {
  using engine::borrow;
  return engine::return_to_c(result, [&] {
    return engine::paged_attention(borrow(q), borrow(k), borrow(v), borrow(k_cache), borrow(v_cache), borrow(query_start), borrow(seq_lens),
                                   borrow(block_table), borrow(slots), scale, window);
  });
}
