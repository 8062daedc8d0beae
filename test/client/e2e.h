// What the end-to-end tests share. The session is the process's own, with a private manager.
#pragma once

#include <cstdint>
#include <ferry/ferry.hpp>
#include <functional>
#include <map>
#include <unordered_map>
#include <vector>

/// A kernel that crashes on purpose is stopped by a sanitizer before the device can report it.
#if defined(__SANITIZE_ADDRESS__)
#define FERRY_SKIP_CRASHES() GTEST_SKIP() << "the sanitizer reports these kernels itself, and ends the device"
#else
#define FERRY_SKIP_CRASHES() static_cast<void>(0)
#endif

namespace ferry::test {

template <typename T>
using Vector = std::vector<T, ferry::allocator<T>>;
template <typename K, typename V>
using Map = std::map<K, V, std::less<K>, ferry::allocator<std::pair<const K, V>>>;
template <typename K, typename V>
using HashMap = std::unordered_map<K, V, std::hash<K>, std::equal_to<K>, ferry::allocator<std::pair<const K, V>>>;

/// Elements of type T in `percent` of the device's memory.
template <typename T>
std::size_t elements_of_vram(unsigned percent) {
  return ferry::machine().vram_bytes / 100 * percent / sizeof(T);
}

/// Runs `body` and returns the error that it throws.
template <typename Body>
ferry::kernel_error kernel_error_of(Body&& body) {
  try {
    body();
  } catch (const ferry::kernel_error& e) {
    return e;
  }
  ferry_error none{};
  none.kernel[0] = '-';
  return ferry::kernel_error(none);
}

/// Runs `body` and returns the code of the error that it throws; 0 if none.
template <typename Body>
int code_of(Body&& body) {
  try {
    body();
  } catch (const ferry::error& e) {
    return static_cast<int>(e.code());
  }
  return 0;
}

}  // namespace ferry::test
