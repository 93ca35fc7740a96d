// Quantized linears whose weights have bands of several formats, one after another:
//   linear_mixed   of one matrix
//   experts_mixed  of many, one for each expert, whose rows lie together. Of each band come the weights of all experts, then the next band
#include <string_view>
#include <vector>

#include "block_formats.h"
#include "c_interface.h"
#include "linear_bands.h"
#include "moe.h"

namespace engine {

#define ENGINE_DECLARE(kernel, Format) extern const BandFormat band_##kernel;
ENGINE_FORMATS(ENGINE_DECLARE)

namespace {

const BandFormat& format_of(std::string_view name) {
#define ENGINE_COMPARE(kernel, Format) \
  if (name == #kernel) return band_##kernel;
  ENGINE_FORMATS(ENGINE_COMPARE)
  STD_TORCH_CHECK(false, "no band can have the format ", std::string(name));
}

struct Described {
  const BandFormat* format;
  int64_t out_features;
};

// What linear/bands.py writes: FORMAT:OUT_FEATURES of each, with + between them.
std::vector<Described> described(std::string_view bands) {
  std::vector<Described> found;
  for (size_t at = 0; at <= bands.size();) {
    const std::string_view band = bands.substr(at, bands.find('+', at) - at);
    const size_t colon = band.find(':');
    STD_TORCH_CHECK(colon != band.npos, "bands are FORMAT:OUT_FEATURES, not ", std::string(band));
    int64_t out_features = 0;
    for (const char digit : band.substr(colon + 1)) {
      STD_TORCH_CHECK(digit >= '0' && digit <= '9' && out_features < 1 << 30, "no number of outputs: ", std::string(band));
      out_features = 10 * out_features + (digit - '0');
    }
    STD_TORCH_CHECK(out_features > 0, "a band without outputs: ", std::string(band));
    found.push_back({&format_of(band.substr(0, colon)), out_features});
    at += band.size() + 1;
  }
  return found;
}

Tensor linear_mixed(Tensor x, Tensor w, std::optional<Tensor> bias, std::optional<Tensor> residual, std::string_view text, double multiplier) {
  check_activations(x);
  check_contiguous(w, ScalarType::Byte, 1, "w");
  const int64_t rows = x.size(0), groups = x.size(1);
  const std::vector<Described> all = described(text);
  int64_t out_features = 0;
  for (const Described& band : all) out_features += band.out_features;
  const Epilogue epilogue(bias, multiplier, residual, rows, out_features);
  Tensor out = empty_floats({rows, out_features});
  std::vector<Band> bands;
  bands.reserve(all.size());
  int64_t column = 0, bytes = 0;
  for (const auto [format, columns] : all) {
    STD_TORCH_CHECK(groups % format->groups == 0, "w is not packed for ", groups, " groups");
    bands.push_back({format, data<ActivationGroup>(x), data<uint8_t>(w) + bytes, epilogue.from(column),
                     static_cast<float*>(out.data_ptr()) + column, rows, columns, groups, out_features});
    column += columns;
    bytes += bands.back().bytes();
  }
  STD_TORCH_CHECK(w.size(0) == bytes, "w has ", w.size(0), " bytes, not ", bytes);
  compute_linear(bands);
  return out;
}

Tensor experts_mixed(Tensor x, Tensor w, std::optional<Tensor> bias, Tensor order, std::string_view text, int64_t experts) {
  check_activations(x);
  check_contiguous(w, ScalarType::Byte, w.dim(), "w");  // bands are bytes, and a weight of one format has its shape
  const int64_t rows = x.size(0), groups = x.size(1);
  const int32_t* begin = begins_of(order, experts, rows);
  const std::vector<Described> all = described(text);
  int64_t out_features = 0;
  for (const Described& band : all) out_features += band.out_features;
  const Epilogue epilogue(bias, 1.0, std::nullopt, rows, experts * out_features);
  Tensor out = empty_floats({rows, out_features});
  std::vector<Band> bands;
  bands.reserve(all.size() * size_t(std::min(experts, rows)));
  int64_t column = 0, bytes = 0;
  for (const auto [format, columns] : all) {
    STD_TORCH_CHECK(groups % format->groups == 0, "w is not packed for ", groups, " groups");
    STD_TORCH_CHECK(columns % kPanel == 0, "experts must have whole panels, not ", columns, " outputs");
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t count = begin[e + 1] - begin[e];
      const Band band{format, data<ActivationGroup>(x) + begin[e] * groups, data<uint8_t>(w) + bytes, epilogue.from(column * experts + e * columns),
                      static_cast<float*>(out.data_ptr()) + begin[e] * out_features + column, count, columns, groups, out_features};
      bytes += band.bytes();
      if (count > 0) bands.push_back(band);
    }
    column += columns;
  }
  STD_TORCH_CHECK(w.numel() == bytes, "w has ", w.numel(), " bytes, not ", bytes);
  compute_bands(bands, nullptr);
  return out;
}

Tensor experts_mixed_of_string(Tensor x, Tensor w, std::optional<Tensor> bias, Tensor order, std::string bands, int64_t experts) {
  return experts_mixed(x, w, bias, order, bands, experts);
}

Tensor linear_mixed_of_string(Tensor x, Tensor w, std::optional<Tensor> bias, std::optional<Tensor> residual, std::string bands, double multiplier) {
  return linear_mixed(x, w, bias, residual, bands, multiplier);
}

}  // namespace
}  // namespace engine

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) {
  m.impl("linear_mixed", TORCH_BOX(&engine::linear_mixed_of_string));
  m.impl("experts_mixed", TORCH_BOX(&engine::experts_mixed_of_string));
}
ENGINE_EXPORT aoti_torch_cpu_linear_mixed(AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias, AtenTensorHandle* residual,
                                          const char* bands, double multiplier, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] {
    return engine::linear_mixed(engine::borrow(x), engine::borrow(w), engine::borrow_optional(bias), engine::borrow_optional(residual), bands,
                                multiplier);
  });
}
ENGINE_EXPORT aoti_torch_cpu_experts_mixed(AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias, AtenTensorHandle order, const char* bands,
                                           int64_t experts, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] {
    return engine::experts_mixed(engine::borrow(x), engine::borrow(w), engine::borrow_optional(bias), engine::borrow(order), bands, experts);
  });
}
