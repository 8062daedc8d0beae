#include "linux/copy_engine.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <deque>

#include "base/types.h"
#include "linux/futex.h"
#include "linux/lock.h"
#include "linux/memory_file.h"
#include "linux/stream_copy.h"

namespace ferry::linux {
namespace {

constinit LockClass copy_lock("copies", LockRank::leaf);

constexpr std::uint64_t spin_min_ns = 2'000;
constexpr std::uint64_t spin_max_ns = 60'000;

bool has_hole(const CopyJob& job) {
  return job.source_fd >= 0 && !all_resident(job.source, job.bytes) &&
         next_hole(job.source_fd, job.source_offset, job.source_offset + job.bytes) < job.source_offset + job.bytes;
}

Status prepare(std::byte* address, std::size_t bytes, Prepare how, bool write, bool& huge) {
  if (how == Prepare::make_huge) {
    huge = true;
    for (std::byte* at = address; at + block_bytes <= address + bytes; at += block_bytes) {
      // The kernel collapses holes too, but not where all is a hole, and not where somebody watches for missing pages:
      // then the block is filled first.
      if (const Status s = populate(at, page_bytes, write); !s.ok()) return s;
      if (make_huge(at, block_bytes)) continue;
      if (const Status s = populate(at, block_bytes, write); !s.ok()) return s;
      if (!make_huge(at, block_bytes)) huge = false;
    }
  }
  // Collapsing leaves the entry to the next touch.
  return populate(address, bytes, write);
}

Status prepare_job(const CopyJob& job, bool& hole, bool& huge) {
  if (job.punch_fd >= 0) return punch_hole(job.punch_fd, job.source_offset, job.bytes);
  hole = has_hole(job);
  if (job.prepare_target != Prepare::nothing) {
    const bool more = job.prepare_at != nullptr;
    const Status s = prepare(more ? job.prepare_at : job.target, more ? job.prepare_bytes : job.bytes,
                             job.prepare_target, true, huge);
    if (!s.ok()) return s;
  }
  if (job.prepare_source != Prepare::nothing && !hole && job.source != nullptr) {
    const Status s = prepare(const_cast<std::byte*>(job.source), job.bytes, job.prepare_source, false, huge);
    if (!s.ok()) return s;
  }
  return {};
}

void copy_span(const CopyJob& job, bool hole, std::size_t first, std::size_t end) {
  if (job.source == nullptr) return;
  if (!hole) {
    stream_copy(job.target + first, job.source + first, end - first);
    return;
  }
  while (first < end) {
    const std::size_t data =
        next_data(job.source_fd, job.source_offset + first, job.source_offset + end) - job.source_offset;
    if (data > first) stream_zero(job.target + first, data - first);
    if (data >= end) return;
    const std::size_t next =
        next_hole(job.source_fd, job.source_offset + data, job.source_offset + end) - job.source_offset;
    // A file that changes meanwhile may claim a hole where data was said to be: read at least a page, it is always
    // readable.
    const std::size_t stop = next > data ? next : std::min(end, data + page_bytes);
    stream_copy(job.target + data, job.source + data, stop - data);
    first = stop;
  }
}

}  // namespace

struct CopyEngine::Running {
  CopyJob job;
  bool prepared = false;
  bool ended = false;
  bool hole = false;
  bool huge = false;
  Status status;
  std::size_t next = 0;  // first byte that no worker has claimed
  unsigned claims = 0;   // slices being copied, the preparation included
  std::uint64_t work_ns = 0;
};

struct CopyEngine::Shared {
  Mutex mutex{copy_lock};  // held for tens of nanoseconds a slice, never across a copy or a system call
  std::deque<Running> jobs;
  std::vector<CopyCompletion> completions;
};

CopyEngine::CopyEngine(unsigned threads, const Bell& bell) : bell_(bell), shared_(std::make_unique<Shared>()) {
  // Signals are the main thread's business.
  sigset_t all;
  sigset_t old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  for (unsigned i = 0; i < std::max(1U, threads); ++i) threads_.emplace_back([this] { worker(); });
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
}

CopyEngine::~CopyEngine() {
  stop_.store(true);
  work_word_.fetch_add(1);
  futex_wake(work_word_, 1 << 20);
  for (auto& t : threads_) t.join();
}

void CopyEngine::submit(const CopyJob& job) {
  {
    const LockGuard lock(shared_->mutex);
    shared_->jobs.emplace_back();
    shared_->jobs.back().job = job;
    shared_->jobs.back().prepared = job.prepare_target == Prepare::nothing && job.prepare_source == Prepare::nothing &&
                                    job.source_fd < 0 && job.source != nullptr;
  }
  ++in_flight_;
  work_word_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) != 0) {
    const auto slices = static_cast<int>((job.bytes + slice_bytes - 1) / slice_bytes);
    futex_wake(work_word_, std::max(1, slices));
  }
}

void CopyEngine::take_completions(std::vector<CopyCompletion>& out) {
  const LockGuard lock(shared_->mutex);
  out.insert(out.end(), shared_->completions.begin(), shared_->completions.end());
  taken_ += shared_->completions.size();
  in_flight_ -= shared_->completions.size();
  shared_->completions.clear();
}

bool CopyEngine::take_turn() {
  UniqueLock lock(shared_->mutex);
  Running* mine = nullptr;
  for (auto& r : shared_->jobs) {
    // A job in preparation has a claim and next == 0: its slices cannot be had yet.
    if (!r.ended && (r.prepared ? (r.next < r.job.bytes && r.status.ok()) : r.claims == 0)) {
      mine = &r;
      break;
    }
  }
  if (mine == nullptr) return false;
  ++mine->claims;
  const bool preparing = !mine->prepared;
  std::size_t first = 0;
  std::size_t end = 0;
  if (!preparing) {
    first = mine->next;
    end = std::min(mine->job.bytes, first + slice_bytes);
    mine->next = end;
  }
  lock.unlock();  // deque: `mine` stays where it is while others are added at the back or removed at the front

  const std::uint64_t begin = monotonic_ns();
  bool hole = false;
  bool huge = false;
  Status status;
  if (preparing) {
    status = prepare_job(mine->job, hole, huge);
  } else {
    copy_span(mine->job, mine->hole, first, end);
  }
  const std::uint64_t took = monotonic_ns() - begin;

  lock.lock();
  --mine->claims;
  mine->work_ns += took;
  if (preparing) {
    mine->prepared = true;
    mine->hole = hole;
    mine->huge = huge;
    mine->status = status;
    if (mine->job.source == nullptr) mine->next = mine->job.bytes;
  }
  const bool ended = mine->claims == 0 && (mine->next >= mine->job.bytes || !mine->status.ok());
  bool completed = false;
  if (ended) {
    shared_->completions.push_back({mine->job.tag, mine->status, mine->hole, mine->huge, mine->work_ns});
    mine->ended = true;
    while (!shared_->jobs.empty() && shared_->jobs.front().ended) shared_->jobs.pop_front();
    completed_.fetch_add(1, std::memory_order_release);
    completed = true;
  }
  lock.unlock();
  if (completed) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (owner_sleeping_.load(std::memory_order_relaxed) != 0) bell_.ring();
  } else if (preparing) {
    // The slices can be had from now on.
    work_word_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) != 0) futex_wake(work_word_, static_cast<int>(threads_.size()));
  }
  return true;
}

void CopyEngine::worker() {
  pthread_setname_np(pthread_self(), "ferryd-copy");
  AdaptiveSpin spin(spin_min_ns, spin_max_ns);
  while (!stop_.load(std::memory_order_relaxed)) {
    const std::uint32_t seen = work_word_.load(std::memory_order_seq_cst);
    if (take_turn()) continue;
    if (spin.until([&] { return work_word_.load(std::memory_order_acquire) != seen; })) continue;
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    futex_wait(work_word_, seen);
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  }
}

CopyCompletion CopyEngine::run_here(const CopyJob& job) {
  const std::uint64_t begin = monotonic_ns();
  CopyCompletion c;
  c.tag = job.tag;
  c.status = prepare_job(job, c.source_had_hole, c.made_huge);
  if (c.status.ok()) copy_span(job, c.source_had_hole, 0, job.bytes);
  c.work_ns = monotonic_ns() - begin;
  return c;
}

}  // namespace ferry::linux
