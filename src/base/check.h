// Assertions that print both values and, in simulation, the seed that leads here again.
// FERRY_CHECK is always on; FERRY_DCHECK only in debug builds and in the simulator's build of a file.
#pragma once

#include <concepts>
#include <cstdint>

namespace ferry {

/// A line printed with every failed check, such as "ferry sim --seed 7 --steps 1000". The string must outlive its use
/// (nullptr clears it). Thread-local.
void set_check_context(const char* line);

/// Called, on the failing thread, after the message is printed and before abort; for tests and crash reports.
using CheckHook = void (*)(const char* message);
void set_check_hook(CheckHook hook);

/// Called in place of all that on this thread; it must not return, but may throw: the simulator turns a failed check
/// into a failed run. nullptr: off.
void set_check_catcher(CheckHook catcher);

namespace detail {
[[noreturn]] void check_failed(const char* file, int line, const char* expression);
[[noreturn]] void check_failed_values(const char* file, int line, const char* expression, long long left,
                                      long long right);

template <typename T>
constexpr long long check_value(const T& v) {
  if constexpr (requires { static_cast<long long>(v); }) {
    return static_cast<long long>(v);
  } else {
    return reinterpret_cast<long long>(v);
  }
}
}  // namespace detail
}  // namespace ferry

#define FERRY_CHECK(condition)                                       \
  do {                                                               \
    if (__builtin_expect(!(condition), 0)) {                         \
      ::ferry::detail::check_failed(__FILE__, __LINE__, #condition); \
    }                                                                \
  } while (false)

#define FERRY_CHECK_OP(left, op, right)                                                  \
  do {                                                                                   \
    const auto ferry_left = (left);                                                      \
    const auto ferry_right = (right);                                                    \
    if (__builtin_expect(!(ferry_left op ferry_right), 0)) {                             \
      ::ferry::detail::check_failed_values(__FILE__, __LINE__, #left " " #op " " #right, \
                                           ::ferry::detail::check_value(ferry_left),     \
                                           ::ferry::detail::check_value(ferry_right));   \
    }                                                                                    \
  } while (false)

#define FERRY_CHECK_EQ(left, right) FERRY_CHECK_OP(left, ==, right)
#define FERRY_CHECK_NE(left, right) FERRY_CHECK_OP(left, !=, right)
#define FERRY_CHECK_LE(left, right) FERRY_CHECK_OP(left, <=, right)
#define FERRY_CHECK_LT(left, right) FERRY_CHECK_OP(left, <, right)
#define FERRY_CHECK_GE(left, right) FERRY_CHECK_OP(left, >=, right)

#ifdef NDEBUG
#define FERRY_DCHECK(condition) \
  do {                          \
  } while (false)
#else
#define FERRY_DCHECK(condition) FERRY_CHECK(condition)
#endif
