// Runs an artifact's program: a list of calls of compiled segments and operators over numbered
// slots. The loop that a step consists of, without a language in between.
//
// A C interface for runtime/native_program.py. Functions return null, or why they failed: a
// message that is valid until the thread's next call here.

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_runtime/interface.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "c_interface.h"
#include "cut_operators.h"
#include "runtime_interface.h"

namespace engine {
namespace {

thread_local std::string failure;

const char* fail(std::string message) {
  failure = std::move(message);
  return failure.c_str();
}

struct Segment {
  decltype(&AOTInductorModelContainerRunSingleThreaded) run = nullptr;
  decltype(&AOTInductorModelContainerDelete) destroy = nullptr;
  AOTInductorModelContainerHandle container = nullptr;

  const char* open(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);  // stays open: its code may be running when the process ends
    if (library == nullptr) return fail(dlerror());
    decltype(&AOTInductorModelContainerCreateWithDevice) create = nullptr;
    find(library, "AOTInductorModelContainerCreateWithDevice", create);
    find(library, "AOTInductorModelContainerRunSingleThreaded", run);
    find(library, "AOTInductorModelContainerDelete", destroy);
    if (create == nullptr || run == nullptr || destroy == nullptr) return fail(std::string(path) + " is not a compiled segment");
    if (create(&container, 1, "cpu", nullptr) != 0) return fail(std::string(path) + " could not be initialized");
    return nullptr;
  }

 private:
  template <class Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
  }
};

struct Call {
  const Segment* segment = nullptr;  // else an operator
  CutOperator run_operator = nullptr;
  std::vector<int32_t> inputs, outputs, frees;
  std::vector<double> scalars;
};

// What every run brings: a contiguous tensor of this type and number of dimensions.
struct Input {
  std::string type;
  int64_t dims;
};

struct Program {
  std::vector<AtenTensorHandle> slots;
  std::vector<Input> inputs;  // in the first slots
  std::vector<std::unique_ptr<Segment>> segments;
  std::vector<Call> calls;
  std::vector<AtenTensorHandle> arguments;  // of the call at hand
  int threads;

  Program(int64_t count, int32_t threads) : slots(size_t(count), nullptr), threads(threads) {}
  ~Program() {
    for (size_t slot = 0; slot < slots.size(); ++slot) clear(int32_t(slot));
    for (const auto& segment : segments) segment->destroy(segment->container);
  }

  void clear(int32_t slot) {
    AtenTensorHandle& handle = slots[size_t(slot)];
    if (handle != nullptr) aoti_torch_delete_tensor_object(handle);
    handle = nullptr;
  }

  bool run_call(const Call& call) {
    std::array<AtenTensorHandle, kMostOutputs> made{};
    arguments.resize(call.inputs.size());
    for (size_t i = 0; i < call.inputs.size(); ++i) arguments[i] = call.inputs[i] < 0 ? nullptr : slots[size_t(call.inputs[i])];
    if (call.segment != nullptr) {
      for (AtenTensorHandle& handle : arguments) {  // a segment takes its arguments away
        const AtenTensorHandle slot = handle;
        if (aoti_torch_new_tensor_handle(slot, &handle) != 0) return false;
      }
      if (call.segment->run(call.segment->container, arguments.data(), arguments.size(), made.data(), call.outputs.size(), nullptr, nullptr) != 0)
        return false;
    } else if (call.run_operator(arguments, call.scalars.data(), made.data()) != 0) {
      return false;
    }
    for (size_t i = 0; i < call.outputs.size(); ++i) {
      clear(call.outputs[i]);
      slots[size_t(call.outputs[i])] = made[i];
    }
    for (const int32_t slot : call.frees) clear(slot);
    return true;
  }

  static constexpr size_t kMostOutputs = 64;
};

struct DataType {
  std::string_view name;
  int32_t (*code)();
};
constexpr DataType kDataTypes[] = {{"float32", aoti_torch_dtype_float32}, {"float16", aoti_torch_dtype_float16}, {"bfloat16", aoti_torch_dtype_bfloat16},
                                   {"uint8", aoti_torch_dtype_uint8},     {"int8", aoti_torch_dtype_int8},       {"int32", aoti_torch_dtype_int32}};

// Null if there is no such type.
const DataType* data_type(std::string_view type) {
  const auto found = std::find_if(std::begin(kDataTypes), std::end(kDataTypes), [&](const DataType& known) { return known.name == type; });
  return found == std::end(kDataTypes) ? nullptr : found;
}

// A contiguous tensor over the caller's memory; null if there is no such type.
AtenTensorHandle tensor_over(void* data, std::string_view type, int64_t dims, const int64_t* sizes) {
  const DataType* found = data_type(type);
  std::vector<int64_t> strides(size_t(dims), 1);
  for (int64_t i = dims - 2; i >= 0; --i) strides[size_t(i)] = strides[size_t(i + 1)] * sizes[i + 1];
  AtenTensorHandle handle = nullptr;
  if (found == nullptr ||
      aoti_torch_create_tensor_from_blob(data, dims, sizes, strides.data(), 0, found->code(), aoti_torch_device_type_cpu(), 0, &handle) != 0)
    return nullptr;
  return handle;
}

std::vector<int32_t> numbers(const int32_t* from, int64_t count) { return {from, from + count}; }

}  // namespace
}  // namespace engine

using engine::Program;

std::string& engine::runtime_interface() {
  static std::string lines;  // not a global: others are added to it before those of this file exist
  return lines;
}

// Every function that is meant for the runtime, with its types.
ENGINE_C const char* engine_runtime_interface() { return engine::runtime_interface().c_str(); }

// threads: how many compute a step.
ENGINE_C Program* engine_program_new(int64_t slots, int32_t threads) { return new Program(slots, threads); }

ENGINE_C void engine_program_delete(Program* program) { delete program; }

// Puts a contiguous tensor over the caller's memory into a slot. type: `float32`, `uint8`, ...
ENGINE_C const char* engine_program_set(Program* program, int32_t slot, void* data, const char* type, int64_t dims, const int64_t* sizes) {
  AtenTensorHandle tensor = engine::tensor_over(data, type, dims, sizes);
  if (tensor == nullptr) return engine::fail(std::string("no tensor can be made of memory of type ") + type);
  program->clear(slot);
  program->slots[size_t(slot)] = tensor;
  return nullptr;
}

// Segments are numbered in the order of these calls.
ENGINE_C const char* engine_program_open(Program* program, const char* path) {
  auto segment = std::make_unique<engine::Segment>();
  if (const char* error = segment->open(path)) return error;
  program->segments.push_back(std::move(segment));
  return nullptr;
}

// segment: its number, or -1 for the operator `name`. input: slots, or -1 for a tensor that the call leaves out.
ENGINE_C const char* engine_program_add(Program* program, int32_t segment, const char* name, int64_t inputs, const int32_t* input, int64_t outputs,
                                        const int32_t* output, int64_t frees, const int32_t* freed, int64_t scalars, const double* scalar) {
  engine::Call call;
  if (segment >= 0) call.segment = program->segments[size_t(segment)].get();
  else if ((call.run_operator = engine::cut_operator(name)) == nullptr) return engine::fail(std::string("there is no operator ") + name);
  if (outputs > int64_t(Program::kMostOutputs)) return engine::fail("a call has more outputs than fit");
  call.inputs = engine::numbers(input, inputs);
  call.outputs = engine::numbers(output, outputs);
  call.frees = engine::numbers(freed, frees);
  call.scalars.assign(scalar, scalar + scalars);
  program->calls.push_back(std::move(call));
  return nullptr;
}

// Inputs take the first slots in the order of these calls.
ENGINE_C void engine_program_input(Program* program, const char* type, int64_t dims) { program->inputs.push_back({type, dims}); }

// One run of all calls. data: the memory of every input; sizes: those of the first input, then those
// of the second, and so on. Results stay in their slots until engine_program_take.
ENGINE_C const char* engine_program_run(Program* program, void* const* data, const int64_t* sizes) {
  omp_set_num_threads(program->threads);  // OpenMP keeps a number for every thread that calls
  for (size_t i = 0; i < program->inputs.size(); ++i) {
    const engine::Input& input = program->inputs[i];
    if (const char* error = engine_program_set(program, int32_t(i), data[i], input.type.c_str(), input.dims, sizes)) return error;
    sizes += input.dims;
  }
  for (size_t i = 0; i < program->calls.size(); ++i)
    if (!program->run_call(program->calls[i])) return engine::fail("call " + std::to_string(i) + " failed: " + engine::last_error());
  return nullptr;
}

// What a slot holds, a tensor of this type and number of dimensions, becomes the caller's, until engine_tensor_delete(*result).
ENGINE_C const char* engine_program_take(Program* program, int32_t slot, const char* type, int64_t dims, AtenTensorHandle* result, void** data,
                                         int64_t* sizes) {
  AtenTensorHandle& held = program->slots[size_t(slot)];
  const engine::DataType* wanted = engine::data_type(type);
  int64_t* found_sizes;
  int64_t found_dims;
  int32_t found_type;
  if (held == nullptr || wanted == nullptr || aoti_torch_get_data_ptr(held, data) != 0 || aoti_torch_get_sizes(held, &found_sizes) != 0 ||
      aoti_torch_get_dim(held, &found_dims) != 0 || aoti_torch_get_dtype(held, &found_type) != 0 || found_dims != dims ||
      found_type != wanted->code())
    return engine::fail("there is no result of " + std::to_string(dims) + " dimensions and type " + type);
  std::copy_n(found_sizes, dims, sizes);
  *result = std::exchange(held, nullptr);
  return nullptr;
}

ENGINE_C void engine_tensor_delete(AtenTensorHandle tensor) { aoti_torch_delete_tensor_object(tensor); }

ENGINE_FOR_RUNTIME(engine_program_new);
ENGINE_FOR_RUNTIME(engine_program_delete);
ENGINE_FOR_RUNTIME(engine_program_set);
ENGINE_FOR_RUNTIME(engine_program_open);
ENGINE_FOR_RUNTIME(engine_program_add);
ENGINE_FOR_RUNTIME(engine_program_input);
ENGINE_FOR_RUNTIME(engine_program_run);
ENGINE_FOR_RUNTIME(engine_program_take);
ENGINE_FOR_RUNTIME(engine_tensor_delete);
