// What the examples share: sizes, times, and how a result is told.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <thread>
#include <vector>

#include <ferry/ferry.hpp>

namespace example {

inline constexpr double mib = 1024.0 * 1024.0;

/// Bytes of data an example holds: twice the device's memory, or what the user asked for.
inline std::uint64_t data_bytes(std::uint64_t asked_mib) {
  return asked_mib != 0 ? asked_mib << 20U : 2 * ferry::machine().vram_bytes;
}

class Timer {
 public:
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

inline void describe(std::string_view what, std::uint64_t bytes) {
  const auto machine = ferry::machine();
  fmt::print("{}: {:.1f} MiB of managed data, {:.0f} % of the device's {:.0f} MiB; {} compute units\n", what,
             static_cast<double>(bytes) / mib,
             100.0 * static_cast<double>(bytes) / static_cast<double>(machine.vram_bytes),
             static_cast<double>(machine.vram_bytes) / mib, machine.cus);
}

/// Says whether the device's result is the CPU's; the value is the program's exit status.
inline int verdict(std::string_view what, std::uint64_t wrong, std::uint64_t of) {
  if (wrong == 0) {
    fmt::print("{}: verified against the CPU ({} values)\n", what, of);
    return EXIT_SUCCESS;
  }
  fmt::print("{}: WRONG: {} of {} values differ from the CPU's\n", what, wrong, of);
  return EXIT_FAILURE;
}

/// Runs fn(first, last) on `threads` threads over [0, n).
template <typename Fn>
void on_cpu(std::uint64_t n, Fn fn, unsigned threads = std::max(1U, std::thread::hardware_concurrency())) {
  std::vector<std::thread> pool;
  for (unsigned t = 0; t < threads; ++t) {
    pool.emplace_back([=] { fn(n * t / threads, n * (t + 1) / threads); });
  }
  for (auto& thread : pool) {
    thread.join();
  }
}

}  // namespace example
