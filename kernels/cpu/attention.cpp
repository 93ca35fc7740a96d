// The attention operators: QK-norm, rotation, the write of the step's keys and values into the cache,
// and softmax attention of the step's queries over it. Prefill and decode are the same code, and
// what one query row computes is fixed by its position alone (attention_tile.h). Bidirectional
// attention is the same once more, of whole sequences over a cache of the call's own; and attention to
// latents, whose keys are all that is kept: values are their first elements.

#include "attention.h"

#include <vector>

#include "attention_operator.h"

namespace engine {
namespace {

// A tensor's memory, read through the C interface once.
struct Argument {
  void* data;
  const int64_t *sizes, *strides;
  int32_t type;

  // Rows may lie apart (a slice of a wider tensor); everything inside a row is packed.
  Argument(AtenTensorHandle tensor, int64_t dims, const char* name) {
    int64_t dim;
    int32_t device;
    int64_t *size_data, *stride_data;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dim));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &device));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &size_data));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &stride_data));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &data));
    sizes = size_data, strides = stride_data;
    STD_TORCH_CHECK(device == aoti_torch_device_type_cpu(), name, " must be on the CPU");
    STD_TORCH_CHECK(dim == dims, name, " must have ", dims, " dimensions, not ", dim);
    int64_t packed = 1;
    for (int64_t i = dim - 1; i > 0; packed *= sizes[i], --i)
      STD_TORCH_CHECK(sizes[i] == 1 || strides[i] == packed, name, " must be contiguous within a row");
  }

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

Argument rows(AtenTensorHandle tensor, int64_t dims, int32_t type, const char* name) {
  const Argument argument(tensor, dims, name);
  STD_TORCH_CHECK(argument.type == type, name, " has the wrong dtype");
  return argument;
}

Argument contiguous(AtenTensorHandle tensor, int64_t dims, int32_t type, const char* name) {
  const Argument argument = rows(tensor, dims, type, name);
  int64_t packed = 1;
  for (int64_t i = 1; i < dims; ++i) packed *= argument.sizes[i];
  STD_TORCH_CHECK(argument.sizes[0] <= 1 || packed == 0 || argument.strides[0] == packed, name, " must be contiguous");
  return argument;
}

void check_heads(const AttentionShape& shape, const Argument& k, const Argument& v) {
  STD_TORCH_CHECK(shape.key_heads > 0 && shape.query_heads % shape.key_heads == 0, shape.query_heads, " query heads cannot share ",
                  shape.key_heads, " key heads");
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t expected = i == 0 ? shape.tokens : i == 1 ? shape.key_heads : shape.head_dim;
    STD_TORCH_CHECK(k.sizes[i] == expected && (i == 2 || v.sizes[i] == expected), "k and v must be [tokens, key heads, head size]");
  }
  STD_TORCH_CHECK(shape.value_dim > 0 && shape.value_dim <= shape.head_dim, "values of ", shape.value_dim, " elements are wider than keys of ",
                  shape.head_dim);
}

void check_cache(const AttentionShape& shape, const Argument& cache) {
  STD_TORCH_CHECK(cache.type == aoti_torch_dtype_float32() || cache.type == aoti_torch_dtype_float16() ||
                      cache.type == aoti_torch_dtype_bfloat16() || cache.type == aoti_torch_dtype_int8(),
                  "the cache is float32, float16, bfloat16 or int8");
  STD_TORCH_CHECK(shape.block_size > 0 && shape.block_size % kPanel == 0 && shape.block_size <= kLargestBlock, "block size ", shape.block_size,
                  " is not a multiple of ", kPanel, " up to ", kLargestBlock);
  const int64_t row = shape.head_dim + (cache.type == aoti_torch_dtype_int8() ? int64_t(sizeof(float)) : 0);
  STD_TORCH_CHECK(cache.type != aoti_torch_dtype_bfloat16() || shape.head_dim % 2 == 0, "head size ", shape.head_dim, " has no pairs of bfloat16");
  STD_TORCH_CHECK(cache.sizes[3] == row, "head size ", shape.head_dim, " does not fit the cache's rows of ", cache.sizes[3]);
}

bool in_range(const int32_t* numbers, int64_t count, int64_t end) {
  uint32_t largest = 0;  // negative ones are larger than all others
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, uint32_t(numbers[i]));
  return int64_t(largest) < end;
}

// The step's own numbers: cheap to check, and the memory they index is not.
void check_step(const AttentionShape& shape, int64_t blocks, const AttentionInputs& in) {
  STD_TORCH_CHECK(in.cu_seqlens[0] == 0 && in.cu_seqlens[shape.sequences] <= shape.tokens, "cu_seqlens does not fit the tokens");
  for (int64_t s = 0; s < shape.sequences; ++s) {
    const int64_t count = in.cu_seqlens[s + 1] - in.cu_seqlens[s], length = in.seq_lens[s];
    STD_TORCH_CHECK(count >= 0 && count <= length, "sequence ", s, " is shorter than its new tokens");
    STD_TORCH_CHECK(length <= shape.table_width * shape.block_size, "sequence ", s, " is longer than its block table");
    STD_TORCH_CHECK(count == 0 || in_range(in.block_table + s * shape.table_width, ceil_div(length, shape.block_size), blocks),
                    "a block of sequence ", s, " is outside the cache");
  }
  int32_t largest = -1;
  for (int64_t t = 0; t < shape.tokens; ++t) largest = std::max(largest, in.slot_mapping[t]);
  STD_TORCH_CHECK(largest < blocks * shape.block_size, "slot ", largest, " is outside the cache");
}

// Where in a paged cache the tokens of a step lie.
struct Paging {
  Argument cu_seqlens, seq_lens, table, slots;

  template <class Tensors>
  explicit Paging(const Tensors& in)
      : cu_seqlens(contiguous(in.cu_seqlens, 1, aoti_torch_dtype_int32(), "cu_seqlens")),
        seq_lens(contiguous(in.seq_lens, 1, aoti_torch_dtype_int32(), "seq_lens")),
        table(contiguous(in.block_table, 2, aoti_torch_dtype_int32(), "block_table")),
        slots(contiguous(in.slot_mapping, 1, aoti_torch_dtype_int32(), "slot_mapping")) {
    STD_TORCH_CHECK(cu_seqlens.sizes[0] == table.sizes[0] + 1 && seq_lens.sizes[0] == table.sizes[0], "cu_seqlens and seq_lens do not fit block_table");
  }
  // Gives them to a call over a cache of `blocks` blocks. Throws if they do not fit the tokens, or reach outside the cache.
  void put_into(AttentionInputs& in, int64_t blocks) const {
    STD_TORCH_CHECK(slots.sizes[0] == in.shape.tokens, "slot_mapping must have one element per token");
    in.cu_seqlens = cu_seqlens.as<int32_t>(), in.seq_lens = seq_lens.as<int32_t>();
    in.block_table = table.as<int32_t>(), in.slot_mapping = slots.as<int32_t>();
    check_step(in.shape, blocks, in);
  }
};

// The float32 vector of `size` elements, or null.
const float* read_vector(AtenTensorHandle tensor, int64_t size, const char* name, const char* of) {
  if (tensor == nullptr) return nullptr;
  const Argument argument = contiguous(tensor, 1, aoti_torch_dtype_float32(), name);
  STD_TORCH_CHECK(argument.sizes[0] == size, name, " has ", argument.sizes[0], " elements for ", size, " ", of);
  return argument.as<float>();
}

Rotation read_rotation(AtenTensorHandle cos_tensor, AtenTensorHandle sin_tensor, const AttentionShape& shape) {
  STD_TORCH_CHECK((cos_tensor == nullptr) == (sin_tensor == nullptr), "cos and sin go together");
  if (cos_tensor == nullptr) return {nullptr, nullptr, 0};
  const Argument cos = contiguous(cos_tensor, 2, aoti_torch_dtype_float32(), "cos"), sin = contiguous(sin_tensor, 2, aoti_torch_dtype_float32(), "sin");
  const int64_t half = cos.sizes[1];
  STD_TORCH_CHECK(cos.sizes[0] == shape.tokens && sin.sizes[0] == shape.tokens && sin.sizes[1] == half && 2 * half <= shape.head_dim,
                  "cos and sin do not fit the queries");
  return {cos.as<float>(), sin.as<float>(), half};
}

// What does not depend on where keys and values lie.
template <class Tensors>
void check_options(const Tensors& in, const AttentionOptions& options) {
  STD_TORCH_CHECK(options.window >= 0 && options.chunk >= 0, "window and chunk must not be negative");
  STD_TORCH_CHECK(options.softcap >= 0 && options.softcap < INFINITY, "the soft cap must be 0 or a positive number");
  STD_TORCH_CHECK((in.q_norm == nullptr) == (in.k_norm == nullptr), "q_norm and k_norm go together");
  STD_TORCH_CHECK(in.q_norm != nullptr || (options.eps == 0 && !options.norm_after_rope), "eps and norm_after_rope are of q_norm and k_norm");
}

// All but where keys and values lie, and what of them is new.
template <class Tensors>
AttentionInputs read_inputs(const Tensors& in, const AttentionOptions& options, const AttentionShape& shape, const Argument& q, const Argument& k,
                            const Argument& v, Tensor& out) {
  return {.shape = shape,
          .q = {q.as<float>(), q.strides[0], shape.head_dim},
          .k = k.as<float>(),
          .v = v.as<float>(),
          .k_stride = k.strides[0],
          .v_stride = v.strides[0],
          .q_norm = read_vector(in.q_norm, shape.head_dim, "q_norm", "elements of a head"),
          .k_norm = read_vector(in.k_norm, shape.head_dim, "k_norm", "elements of a head"),
          .rotation = read_rotation(in.cos, in.sin, shape),
          .eps = float(options.eps),
          .norm_after_rope = options.norm_after_rope,
          .scale = float(options.scale),
          .softcap = float(options.softcap),
          .sinks = read_vector(in.sinks, shape.query_heads, "sinks", "query heads"),
          .q_scale = read_vector(in.q_scale, shape.tokens, "q_scale", "tokens"),
          .out = {static_cast<float*>(out.data_ptr()), shape.query_heads * shape.value_dim, shape.value_dim}};
}

void run(const AttentionInputs& in, int32_t cache_type) {
  if (cache_type == aoti_torch_dtype_float32()) PagedAttention<float>(in).run();
  else if (cache_type == aoti_torch_dtype_float16()) PagedAttention<Half>(in).run();
  else if (cache_type == aoti_torch_dtype_bfloat16()) PagedAttention<BFloat16>(in).run();
  else PagedAttention<int8_t>(in).run();
}

// Where keys and values of whole sequences lie that nobody reads after the call. Its memory is used again by the next one.
struct OwnBlocks {
  static constexpr int64_t kSize = 32;

  int64_t count = 0, width = 0;
  std::vector<int32_t> seq_lens, table, slots;
  Scratch keys_values;

  // Throws if cu_seqlens [sequences + 1] does not fit the tokens.
  void lay_out(const int32_t* cu_seqlens, int64_t sequences, int64_t tokens) {
    STD_TORCH_CHECK(sequences >= 0 && cu_seqlens[0] == 0 && cu_seqlens[sequences] <= tokens, "cu_seqlens does not fit the tokens");
    seq_lens.resize(size_t(sequences));
    count = 0, width = 1;
    for (int64_t s = 0; s < sequences; ++s) {
      const int32_t length = seq_lens[size_t(s)] = cu_seqlens[s + 1] - cu_seqlens[s];
      STD_TORCH_CHECK(length >= 0, "sequence ", s, " has a negative length");
      width = std::max(width, ceil_div(length, kSize));
    }
    table.resize(size_t(sequences * width));
    slots.assign(size_t(tokens), -1);
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t length = seq_lens[size_t(s)];
      for (int64_t b = 0; b * kSize < length; ++b) table[size_t(s * width + b)] = int32_t(count + b);
      for (int64_t t = 0; t < length; ++t) slots[size_t(cu_seqlens[s] + t)] = int32_t(count * kSize + t);
      count += ceil_div(length, kSize);
    }
  }
};

}  // namespace

Tensor attend(const AttentionTensors& in, const AttentionOptions& options) {
  const int32_t real = aoti_torch_dtype_float32();
  const Argument q = rows(in.q, 3, real, "q"), k = rows(in.k, 3, real, "k"), v = rows(in.v, 3, real, "v");
  const Argument k_cache = contiguous(in.k_cache, 4, Argument(in.k_cache, 4, "k_cache").type, "k_cache");
  const Argument v_cache = contiguous(in.v_cache, 4, k_cache.type, "v_cache");
  const Paging paging(in);
  const AttentionShape shape{.tokens = q.sizes[0],
                             .sequences = paging.table.sizes[0],
                             .table_width = paging.table.sizes[1],
                             .query_heads = q.sizes[1],
                             .key_heads = k_cache.sizes[1],
                             .head_dim = q.sizes[2],
                             .block_size = k_cache.sizes[2],
                             .window = options.window,
                             .chunk = options.chunk,
                             .value_dim = v.sizes[2]};
  check_cache(shape, k_cache);
  for (int64_t i = 0; i < 4; ++i) STD_TORCH_CHECK(k_cache.sizes[i] == v_cache.sizes[i], "k_cache and v_cache differ in shape");
  check_heads(shape, k, v);
  check_options(in, options);
  Tensor out = empty_floats({shape.tokens, shape.query_heads, shape.value_dim});
  AttentionInputs inputs = read_inputs(in, options, shape, q, k, v, out);
  inputs.k_cache = k_cache.data, inputs.v_cache = v_cache.data;
  paging.put_into(inputs, k_cache.sizes[0]);
  run(inputs, k_cache.type);
  return out;
}

Tensor attend_latent(const LatentTensors& in, double scale) {
  const int32_t real = aoti_torch_dtype_float32();
  const Argument q = contiguous(in.q, 3, real, "q"), tail = rows(in.q_rope, 3, real, "q_rope"), latents = rows(in.latents, 2, real, "latents");
  const Argument cache = contiguous(in.cache, 4, Argument(in.cache, 4, "cache").type, "cache");
  const Paging paging(in);
  const int64_t heads = q.sizes[0], tokens = q.sizes[1], rank = q.sizes[2];
  const AttentionShape shape{.tokens = tokens,
                             .sequences = paging.table.sizes[0],
                             .table_width = paging.table.sizes[1],
                             .query_heads = heads,
                             .key_heads = 1,
                             .head_dim = rank + tail.sizes[2],
                             .block_size = cache.sizes[2],
                             .window = 0,
                             .chunk = 0,
                             .latent = true,
                             .value_dim = rank};
  check_cache(shape, cache);
  STD_TORCH_CHECK(cache.type != aoti_torch_dtype_bfloat16() || rank % 2 == 0, "a rank of ", rank, " has no pairs of bfloat16");
  STD_TORCH_CHECK(heads > 0 && cache.sizes[1] == 1, "one latent serves all heads, and there must be a head");
  STD_TORCH_CHECK(tail.sizes[0] == tokens && tail.sizes[1] == heads, "q_rope must be [tokens, heads, rotated elements]");
  STD_TORCH_CHECK(latents.sizes[0] == tokens && latents.sizes[1] == shape.head_dim, "latents must be [tokens, rank + rotated elements]");
  Tensor out = empty_floats({heads, tokens, rank});
  AttentionInputs inputs{.shape = shape,
                         .q = {q.as<float>(), rank, tokens * rank},
                         .q_tail = {tail.as<float>(), tail.strides[0], tail.sizes[2]},
                         .tail = tail.sizes[2],
                         .k = latents.as<float>(),
                         .k_stride = latents.strides[0],
                         .scale = float(scale),
                         .k_cache = cache.data,
                         .out = {static_cast<float*>(out.data_ptr()), rank, tokens * rank}};
  paging.put_into(inputs, cache.sizes[0]);
  run(inputs, cache.type);
  return out;
}

Tensor attend_bidirectional(const BidirectionalTensors& in, const AttentionOptions& options) {
  const int32_t real = aoti_torch_dtype_float32();
  const Argument q = rows(in.q, 3, real, "q"), k = rows(in.k, 3, real, "k"), v = rows(in.v, 3, real, "v");
  const Argument starts = contiguous(in.cu_seqlens, 1, aoti_torch_dtype_int32(), "cu_seqlens");
  STD_TORCH_CHECK(options.chunk == 0, "there are no chunks where later keys are seen");
  check_options(in, options);
  const int64_t tokens = q.sizes[0];
  static thread_local OwnBlocks blocks;
  blocks.lay_out(starts.as<int32_t>(), starts.sizes[0] - 1, tokens);
  const AttentionShape shape{.tokens = tokens,
                             .sequences = starts.sizes[0] - 1,
                             .table_width = blocks.width,
                             .query_heads = q.sizes[1],
                             .key_heads = k.sizes[1],
                             .head_dim = q.sizes[2],
                             .block_size = OwnBlocks::kSize,
                             .window = options.window,
                             .chunk = 0,
                             .causal = false,
                             .value_dim = v.sizes[2]};
  check_heads(shape, k, v);
  Tensor out = empty_floats({tokens, shape.query_heads, shape.value_dim});
  AttentionInputs inputs = read_inputs(in, options, shape, q, k, v, out);
  const int64_t floats = blocks.count * shape.key_heads * OwnBlocks::kSize * shape.head_dim;
  float* const memory = blocks.keys_values.take<float>(2 * floats);
  inputs.k_cache = memory, inputs.v_cache = memory + floats;
  inputs.cu_seqlens = starts.as<int32_t>(), inputs.seq_lens = blocks.seq_lens.data();
  inputs.block_table = blocks.table.data(), inputs.slot_mapping = blocks.slots.data();
  run(inputs, real);
  return out;
}

}  // namespace engine
