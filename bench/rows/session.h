// What the rows that run on a device share: managed arrays, the manager's counters, threads that keep the application
// running. Main thread, except where it says otherwise.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <ferry/ferry.hpp>

#include "harness.h"
#include "workloads.h"

namespace ferry::bench {

/// Managed memory of `count` values, at a block's start, so that nothing else moves with it. Contents undefined.
template <typename T>
class Array {
 public:
  explicit Array(std::size_t count, placement where = placement::automatic)
      : data_(static_cast<T*>(alloc_aligned(whole_blocks(count * sizeof(T)), 2UL << 20U, where))), count_(count) {}
  [[nodiscard]] T* data() const { return data_.get(); }
  [[nodiscard]] std::size_t size() const { return count_; }
  [[nodiscard]] std::size_t bytes() const { return count_ * sizeof(T); }
  [[nodiscard]] T& operator[](std::size_t i) const { return data_.get()[i]; }
  void fill(T value) const {
    for (std::size_t i = 0; i < count_; ++i) data_.get()[i] = value;
  }
  static std::size_t whole_blocks(std::size_t bytes) { return (bytes + (2UL << 20U) - 1) & ~((2UL << 20U) - 1); }

 private:
  struct Free {
    void operator()(T* data) const { ferry::free(data); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t count_;
};

/// The manager's counters for this process, those that rows use. Bytes and counts since the session began.
struct Counters {
  std::uint64_t device_faults = 0;  ///< without those that joined another
  std::uint64_t cpu_faults = 0;     ///< the same
  std::uint64_t bytes_to_vram = 0;
  std::uint64_t bytes_to_system = 0;
  std::uint64_t in_place_maps = 0;
  std::uint64_t evictions = 0;
  std::uint64_t bytes_readdressed_in_place = 0;
};
[[nodiscard]] Counters counters();

/// Launches waves of `wave` items on one queue and waits for each launch: the launcher of bench/workloads.h.
class DeviceLauncher {
 public:
  explicit DeviceLauncher(std::size_t wave) : wave_(wave) {}
  template <typename Kernel>
  void operator()(std::size_t count, const Kernel& kernel) const {
    queue_.launch(grid{.items = count, .wave = wave_}, [kernel](item at) { kernel(DirectMemory{}, at.global()); })
        .wait();
  }

 private:
  std::size_t wave_;
  mutable queue queue_;
};

/// Threads of the application that compute while something else is measured, so that a change of its page tables has
/// to interrupt them. They end with the object.
class RunningThreads {
 public:
  explicit RunningThreads(unsigned count);

 private:
  std::vector<std::jthread> threads_;
};

/// Throws std::runtime_error if the page at `p` is not where the row says it is.
void require_in_vram(const void* p, const char* what);
void require_in_place(const void* p, const char* what);

/// Compute units that the benches give a device: every CPU but one, which is the manager's.
[[nodiscard]] unsigned bench_cus();

}  // namespace ferry::bench
