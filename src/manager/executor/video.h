// The fixed-function video engine in software: whole operations on worker threads, one for each slot in use, so that the
// manager's main thread never touches a pixel. Jobs can be ended between two rows.
// submit, cancel and take_completions: one thread (the manager's main thread).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "base/status.h"
#include "linux/event.h"
#include "linux/lock.h"
#include "wire/work.h"

namespace ferry::manager {

/// Bytes that an operation reads and writes, relative to the buffers it names; 0: it cannot be (sizes, op).
struct VideoSpans {
  std::uint64_t source_end = 0;
  std::uint64_t target_end = 0;
};
[[nodiscard]] VideoSpans video_spans(const wire::VideoArguments& a);

struct VideoJob {
  std::uint64_t tag = 0;
  wire::VideoArguments arguments;  ///< checked by video_spans()
  std::byte* source = nullptr;     ///< first byte of the buffer
  std::byte* target = nullptr;
  std::shared_ptr<std::atomic<bool>> cancelled;
};

struct VideoCompletion {
  std::uint64_t tag = 0;
  Status status;  ///< cancelled, no_memory
};

inline constinit linux::LockClass video_lock("video jobs", linux::LockRank::leaf);

class VideoEngine {
 public:
  /// Completions ring the bell. It must outlive the engine.
  explicit VideoEngine(const linux::Bell& bell) : bell_(bell) {}
  /// Ends what runs.
  ~VideoEngine();
  VideoEngine(const VideoEngine&) = delete;
  VideoEngine& operator=(const VideoEngine&) = delete;

  void submit(VideoJob job);
  [[nodiscard]] bool has_completions() const { return completed_.load(std::memory_order_acquire) != taken_; }
  void take_completions(std::vector<VideoCompletion>& out);
  [[nodiscard]] std::size_t in_flight() const { return in_flight_; }

 private:
  void worker();

  const linux::Bell& bell_;
  linux::Mutex mutex_{video_lock};
  linux::Condition wanted_;
  std::deque<VideoJob> jobs_;                 // guarded
  std::vector<VideoJob> running_;             // guarded: to be ended by the destructor
  std::vector<VideoCompletion> completions_;  // guarded
  unsigned idle_ = 0;                         // guarded
  bool stop_ = false;                         // guarded
  std::vector<std::thread> threads_;
  std::size_t in_flight_ = 0;
  std::uint64_t taken_ = 0;
  std::atomic<std::uint64_t> completed_{0};
};

}  // namespace ferry::manager
