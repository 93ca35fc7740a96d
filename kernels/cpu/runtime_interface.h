// What the runtime calls in a kernel library. Each function is listed with the types that it was
// compiled with, for runtime/native_program.py to compare before it calls: an artifact may be of
// another version than the runtime that loads it.
#pragma once

#include <string>
#include <type_traits>

namespace engine {

// One line per function, as `engine_argmax: v p i8 p i8 p`: the result first, then the arguments.
std::string& runtime_interface();

// `v` for nothing, `p` for a pointer, `i4` and `f8` for numbers and their bytes.
template <class Type>
std::string passed_as() {
  if constexpr (std::is_void_v<Type>) return "v";
  else if constexpr (std::is_pointer_v<Type>) return "p";
  else return (std::is_floating_point_v<Type> ? "f" : "i") + std::to_string(sizeof(Type));
}

struct ForRuntime {
  template <class Result, class... Arguments>
  ForRuntime(const char* name, Result (*)(Arguments...)) {
    runtime_interface() += name + (": " + passed_as<Result>()) + ((" " + passed_as<Arguments>()) + ... + "") + "\n";
  }
};

}  // namespace engine

#define ENGINE_C extern "C" __attribute__((visibility("default")))
#define ENGINE_FOR_RUNTIME(function) static const engine::ForRuntime for_runtime_##function(#function, &function)
