// The bare-metal floors: what the same work costs with the system calls alone. Each is an object that is warmed once and
// then sampled at will, so that its samples can be taken in turn with Ferry's.
// Make the objects that fork (the two fault floors) before anything starts a thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"

namespace ferry::bench::floors {

/// A device that faults and a manager that answers, reduced to the system calls: `threads` threads of a child process
/// touch `pages` pages (page in cache, nothing mapped) whose userfaultfd is in SIGBUS mode; the handler posts the
/// address to its slot in shared memory and spins; this process spins over the slots and maps 4 KiB with
/// UFFDIO_CONTINUE. Nothing sleeps, nothing is decided, nothing is counted.
class FaultSigbusContinue {
 public:
  FaultSigbusContinue(unsigned threads, std::size_t pages);
  ~FaultSigbusContinue();
  /// Microseconds a fault: time from the first touch to the last, over the number of faults of all threads.
  [[nodiscard]] double sample();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// An application that faults on its CPU and a manager in another process, reduced to the system calls: one thread of a
/// child touches `pages` pages under a userfaultfd that puts it to sleep; this process spins on reads of the descriptor
/// and maps 4 KiB with UFFDIO_CONTINUE, which wakes the thread.
class FaultCpuRoundtrip {
 public:
  explicit FaultCpuRoundtrip(std::size_t pages);
  ~FaultCpuRoundtrip();
  /// Microseconds a fault.
  [[nodiscard]] double sample();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

enum class CopyKind { memcpy, non_temporal };

/// Copies between two kept memory files whose pages all exist, in 2 MiB blocks, each block used once a lap in an order
/// that no prefetcher of the CPU can follow from block to block. Cold as far as the caches are smaller than two files.
class MemcpyMemfd {
 public:
  MemcpyMemfd(unsigned threads, std::size_t bytes_each, CopyKind kind, std::size_t block = 2UL << 20U);
  ~MemcpyMemfd();
  /// Gigabytes (1e9 bytes) copied a second by all threads together, over `blocks` blocks.
  [[nodiscard]] double sample(std::size_t blocks);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The triad on plain threads over plain memory: `threads` threads, each an equal share. Returns GB/s with 24 bytes
/// counted an element (two loads, one store).
[[nodiscard]] double plain_triad(unsigned threads, double* a, const double* b, const double* c, std::size_t count,
                                 int laps);

/// Walks one chain per entry of `starts` on `threads` plain threads, which take chains from a common counter.
/// Returns million links a second.
[[nodiscard]] double plain_chase(unsigned threads, const std::vector<const ChaseNode*>& starts, std::size_t steps,
                                 std::vector<std::uint64_t>& sums);

}  // namespace ferry::bench::floors
