// Worker threads that prepare and copy spans of this process's memory. Jobs are given and completions taken by one
// thread (the manager's main thread); big jobs are cut into slices, so that a single block keeps all workers busy.
// Does not know whose memory it is: source and target stay mapped until the completion was taken.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "base/status.h"
#include "linux/event.h"

namespace ferry::linux {

/// What a worker does to the target before the first byte is copied.
enum class Prepare : std::uint8_t {
  nothing,
  populate,   ///< give it memory and page-table entries; lack of memory fails the job instead of raising a signal
  make_huge,  ///< also try for huge pages, in each whole aligned 2 MiB
};

struct CopyJob {
  std::byte* target = nullptr;
  const std::byte* source = nullptr;  ///< null: only prepare
  std::size_t bytes = 0;
  std::uint64_t tag = 0;  ///< comes back in the completion
  Prepare prepare_target = Prepare::nothing;
  Prepare prepare_source = Prepare::nothing;  ///< only where the source has pages: holes are not filled
  /// What prepare_target is about, if it is more than the target; null: the target.
  std::byte* prepare_at = nullptr;
  std::size_t prepare_bytes = 0;
  int source_fd = -1;  ///< >= 0: holes of this file at source_offset are written as zeros, not read
  std::uint64_t source_offset = 0;
  int punch_fd = -1;  ///< >= 0: nothing is copied; `bytes` of this file at source_offset are freed
};

struct CopyCompletion {
  std::uint64_t tag = 0;
  Status status;
  bool source_had_hole = false;
  bool made_huge = false;     ///< whatever was to be made huge is
  std::uint64_t work_ns = 0;  ///< summed over the workers
};

class CopyEngine {
 public:
  /// `bell` is rung on a completion while the owner sleeps (see set_owner_sleeping). It must outlive the engine.
  CopyEngine(unsigned threads, const Bell& bell);
  /// Finishes what has started, drops the rest.
  ~CopyEngine();
  CopyEngine(const CopyEngine&) = delete;
  CopyEngine& operator=(const CopyEngine&) = delete;

  void submit(const CopyJob& job);
  /// Cheap: one load.
  [[nodiscard]] bool has_completions() const { return completed_.load(std::memory_order_acquire) != taken_; }
  /// Appends to `out`.
  void take_completions(std::vector<CopyCompletion>& out);
  [[nodiscard]] std::size_t in_flight() const { return in_flight_; }
  /// Before sleeping: set, then look at has_completions() once more.
  void set_owner_sleeping(bool sleeping) {
    owner_sleeping_.store(sleeping ? 1 : 0, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  [[nodiscard]] unsigned thread_count() const { return static_cast<unsigned>(threads_.size()); }

  /// The work of one job on the calling thread, for jobs that are too small to hand over.
  static CopyCompletion run_here(const CopyJob& job);

  static constexpr std::size_t slice_bytes = 128 * 1024;

 private:
  struct Running;
  void worker();
  bool take_turn();

  const Bell& bell_;
  std::atomic<std::uint32_t> owner_sleeping_{0};
  std::atomic<std::uint32_t> work_word_{0};  ///< bumped when there may be work; workers sleep on it
  std::atomic<std::uint32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> completed_{0};
  std::uint64_t taken_ = 0;
  std::size_t in_flight_ = 0;

  struct Shared;
  std::unique_ptr<Shared> shared_;
  std::vector<std::thread> threads_;
};

}  // namespace ferry::linux
