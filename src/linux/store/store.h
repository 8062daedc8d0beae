// The third tier: pages beneath system memory. Compressed in memory of its own, then in a file, without a copy in the
// page cache. Jobs are given and completions taken by one thread (the manager's main thread), which never compresses
// and never waits for a disk; worker threads do. Loads go before stores, stores before what is done in the background.
// Does not know whose pages they are. What it holds dies with it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "linux/event.h"
#include "linux/store/block_io.h"
#include "linux/store/codec.h"

namespace ferry::linux {

/// One stored page. 0: none. Belongs to whoever got it, until drop().
using StoreHandle = std::uint64_t;

struct StoreConfig {
  Codec codec = Codec::zstd;
  int level = 1;
  std::uint64_t memory_bytes = 0;  ///< for compressed pages; less than 1 MiB is none
  std::uint64_t file_bytes = 0;    ///< most that the file may take; 0: no file
  std::string directory;           ///< where the file without a name lies
  IoKind io = IoKind::automatic;
  unsigned threads = 1;
  IoFault fault;  ///< tests only
};

struct StoreJob {
  enum class Kind : std::uint8_t { store, load } kind = Kind::store;
  /// Page aligned, mapped until the completion was taken. store: read (may change meanwhile: some state of each page is
  /// stored). load: written, and given memory first.
  std::byte* memory = nullptr;
  std::uint32_t count_pages = 0;
  std::uint64_t tag = 0;  ///< comes back in the completion
  /// store: >= 0: holes of this file at source_offset are stored as zeros, and not filled by reading them.
  int source_fd = -1;
  std::uint64_t source_offset = 0;
  /// load: one for each page, not dropped before the completion. store: filled; any contents and capacity.
  std::vector<StoreHandle> handles;
};

/// ERRORS of a store (then nothing of it is kept): no_space (the memory is full and so is the file, or the disk),
/// io_error. Of a load (the target's contents are anything): io_error (the disk, or what it gave is not what was
/// stored), no_memory (none for the target).
struct StoreCompletion {
  std::uint64_t tag = 0;
  StoreJob::Kind kind = StoreJob::Kind::store;
  Status status;
  std::uint64_t work_ns = 0;  ///< summed over the workers
  std::vector<StoreHandle> handles;
};

struct StoreStats {
  std::uint64_t pages = 0;         ///< held now
  std::uint64_t fill_pages = 0;    ///< of those, pages that repeat one word
  std::uint64_t file_pages = 0;    ///< of those, pages that lie in the file as they are
  std::uint64_t memory_bytes = 0;  ///< taken by compressed pages
  std::uint64_t memory_bytes_max = 0;
  std::uint64_t payload_bytes = 0;  ///< compressed pages alone, in memory or in the file
  std::uint64_t file_bytes = 0;     ///< taken in the file
  std::uint64_t file_bytes_max = 0;
  std::uint64_t written_bytes = 0;  ///< to the file, so far
  std::uint64_t read_bytes = 0;
  std::uint64_t failed = 0;  ///< jobs and moves in the background that ended with an error
  bool uring = false;
  bool direct = false;
};

class Store {
 public:
  /// `bell` is rung on a completion while the owner sleeps; it must outlive the store.
  /// ERRORS: io_error (the file cannot be made in that directory, with errno), no_memory.
  static Result<std::unique_ptr<Store>> make(const StoreConfig& config, const Bell& bell);
  /// Ends what has begun, drops the rest.
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  void submit(StoreJob job);
  [[nodiscard]] bool has_completions() const { return completed_.load(std::memory_order_acquire) != taken_; }
  /// Appends to `out`.
  void take_completions(std::vector<StoreCompletion>& out);
  [[nodiscard]] std::size_t in_flight() const { return in_flight_; }
  /// Before sleeping: set, then look at has_completions() once more.
  void set_owner_sleeping(bool sleeping) {
    owner_sleeping_.store(sleeping ? 1 : 0, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  /// Forgets pages; handles of 0 are passed over. REQUIRES: no load of them is under way.
  void drop(const StoreHandle* handles, std::size_t count);
  void drop(StoreHandle handle) { drop(&handle, 1); }

  [[nodiscard]] StoreStats stats() const;
  /// Waits until nothing is done in the background, then aborts where something does not add up. For tests.
  void verify();
  /// Tests: breaks a byte of a stored page. False: the page has none of its own.
  bool corrupt(StoreHandle handle);

 private:
  struct Shared;
  struct Worker;
  struct Running;
  struct Plan;
  struct Raw;

  Store(const StoreConfig& config, const Bell& bell);
  void start(unsigned threads);
  void work(Worker& worker);
  bool take_turn(Worker& worker);
  Status store_slice(Worker& worker, Running& job, std::uint32_t first, std::uint32_t count);
  Status load_slice(Worker& worker, Running& job, std::uint32_t first, std::uint32_t count);
  void begin_pages(Worker& worker);
  Status end_pages(Worker& worker, StoreHandle* handles, Status status);
  static void order_reads(Worker& worker, std::vector<Plan>& plans);
  std::size_t begin_reads(Worker& worker, std::size_t first);
  bool background(Worker& worker);
  Status move_out(Worker& worker);
  void wake(int workers);

  const StoreConfig config_;
  const Bell& bell_;
  std::atomic<std::uint32_t> owner_sleeping_{0};
  std::atomic<std::uint32_t> work_word_{0};  ///< bumped when there may be work; workers sleep on it
  std::atomic<std::uint32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> completed_{0};
  std::uint64_t taken_ = 0;
  std::size_t in_flight_ = 0;

  std::unique_ptr<Shared> shared_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<std::thread> threads_;
};

}  // namespace ferry::linux
