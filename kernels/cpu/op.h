// What every operator needs at its boundary: checks, outputs, scratch memory.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <initializer_list>
#include <new>
#include <optional>

#include "pool.h"
#include "team.h"

namespace engine {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGroup = 32;  // consecutive k that share a scale in the quantized formats

// Rows may lie apart (a slice of a wider tensor); everything inside a row is packed.
inline void check_rows(const Tensor& tensor, ScalarType type, int64_t dim, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.dim() == dim, name, " must have ", dim, " dimensions, not ", tensor.dim());
  int64_t packed = 1;
  for (int64_t i = dim - 1; i > 0; packed *= tensor.size(i), --i)
    STD_TORCH_CHECK(tensor.size(i) == 1 || tensor.stride(i) == packed, name, " must be contiguous within a row");
}

inline void check_contiguous(const Tensor& tensor, ScalarType type, int64_t dim, const char* name) {
  check_rows(tensor, type, dim, name);
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

inline int64_t row_stride(const Tensor& tensor) { return tensor.stride(0); }

// The elements of a vector [features] float32; null where there is none.
inline const float* vector_of(const std::optional<Tensor>& tensor, int64_t features, const char* name) {
  if (!tensor.has_value()) return nullptr;
  check_contiguous(*tensor, ScalarType::Float, 1, name);
  STD_TORCH_CHECK(tensor->size(0) == features, name, " has ", tensor->size(0), " elements for ", features, " features");
  return static_cast<const float*>(tensor->data_ptr());
}

inline float scalar_of(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == ScalarType::Float, name, " must be float32 on the CPU");
  STD_TORCH_CHECK(tensor.numel() == 1, name, " must have one element, not ", tensor.numel());
  return *static_cast<const float*>(tensor.data_ptr());
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}

// Contents are undefined.
inline Tensor empty_tensor(std::initializer_list<int64_t> sizes, int32_t dtype, int64_t element_bytes) {
  int64_t strides[4];
  int64_t packed = 1;
  for (int64_t i = int64_t(sizes.size()) - 1; i >= 0; packed *= sizes.begin()[i], --i) strides[i] = packed;
  const Pool::Buffer buffer = Pool::instance().take(size_t(packed * element_bytes));
  const auto give_back = [](void* memory, void* bytes) { Pool::instance().give({memory, reinterpret_cast<size_t>(bytes)}); };
  AtenTensorHandle handle;
  if (torch_from_blob(buffer.memory, int64_t(sizes.size()), sizes.begin(), strides, 0, dtype, aoti_torch_device_type_cpu(), -1, &handle,
                      aoti_torch_layout_strided(), nullptr, 0, give_back, reinterpret_cast<void*>(buffer.bytes)) != 0) {
    Pool::instance().give(buffer);
    STD_TORCH_CHECK(false, "no tensor for the result");
  }
  return Tensor(handle);
}
inline Tensor empty_floats(std::initializer_list<int64_t> sizes) { return empty_tensor(sizes, aoti_torch_dtype_float32(), 4); }

// Memory that outlives the call, so that a step allocates nothing once it has seen its largest
// shape. One per thread and purpose; contents are undefined.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  ~Scratch() { std::free(memory_); }

  template <class T>
  T* take(int64_t count) {
    const int64_t bytes = (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    if (bytes > capacity_) {
      std::free(memory_);
      capacity_ = 0;
      memory_ = std::aligned_alloc(64, size_t(bytes));
      if (memory_ == nullptr) throw std::bad_alloc();
      capacity_ = bytes;
    }
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  int64_t capacity_ = 0;
};

}  // namespace engine
