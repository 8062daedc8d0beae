// Jobs, slices, workers. What a slice does with its pages is in transfer.cpp.
#include "linux/store/store.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/types.h"
#include "linux/futex.h"
#include "linux/store/shared.h"

namespace ferry::linux {
namespace {

constexpr std::uint64_t spin_min_ns = 2'000;
constexpr std::uint64_t spin_max_ns = 40'000;

}  // namespace

Store::Store(const StoreConfig& config, const Bell& bell)
    : config_(config), bell_(bell), shared_(std::make_unique<Shared>()) {}

Result<std::unique_ptr<Store>> Store::make(const StoreConfig& config, const Bell& bell) {
  std::unique_ptr<Store> store(new Store(config, bell));
  if (const Status s = store->shared_->slabs.reserve_memory(config.memory_bytes); !s.ok()) return s;
  if (config.file_bytes >= page_bytes) {
    auto file = SlotFile::open(config.directory, config.file_bytes);
    if (!file) return file.status();
    store->shared_->file = std::move(file).value();
  }
  store->start(std::max(1U, config.threads));
  return store;
}

void Store::start(unsigned threads) {
  for (unsigned i = 0; i < threads; ++i) {
    workers_.push_back(std::make_unique<Worker>(config_, shared_->file.fd()));
  }
  // Signals are the main thread's business.
  sigset_t all;
  sigset_t old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  for (auto& worker : workers_) threads_.emplace_back([this, w = worker.get()] { work(*w); });
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
}

Store::~Store() {
  stop_.store(true);
  wake(1 << 20);
  for (auto& t : threads_) t.join();
}

void Store::wake(int workers) {
  work_word_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) != 0) futex_wake(work_word_, workers);
}

void Store::submit(StoreJob job) {
  const std::uint32_t count = job.count_pages;
  FERRY_CHECK(count > 0);
  if (job.kind == StoreJob::Kind::store) {
    job.handles.assign(count, 0);
  } else {
    FERRY_CHECK_EQ(job.handles.size(), count);
  }
  {
    const LockGuard lock(shared_->mutex);
    auto& queue = job.kind == StoreJob::Kind::load ? shared_->loads : shared_->stores;
    queue.emplace_back();
    queue.back().job = std::move(job);
  }
  ++in_flight_;
  wake(static_cast<int>((count + slice_pages - 1) / slice_pages));
}

void Store::take_completions(std::vector<StoreCompletion>& out) {
  const LockGuard lock(shared_->mutex);
  auto& done = shared_->completions;
  taken_ += done.size();
  in_flight_ -= done.size();
  for (StoreCompletion& c : done) out.push_back(std::move(c));
  done.clear();
}

void Store::drop(const StoreHandle* handles, std::size_t count) {
  bool work = false;
  {
    const LockGuard lock(shared_->mutex);
    for (std::size_t i = 0; i < count; ++i) shared_->drop(handles[i]);
    work = shared_->wants_background();
  }
  if (work) wake(1);
}

bool Store::take_turn(Worker& worker) {
  UniqueLock lock(shared_->mutex);
  Running* mine = nullptr;
  for (auto* queue : {&shared_->loads, &shared_->stores}) {
    for (Running& r : *queue) {
      if (!r.ended && r.next < r.job.count_pages && r.status.ok()) {
        mine = &r;
        break;
      }
    }
    if (mine != nullptr) break;
  }
  if (mine == nullptr) return false;
  ++mine->claims;
  const std::uint32_t first = mine->next;
  const bool is_load = mine->job.kind == StoreJob::Kind::load;
  const std::uint32_t most =
      is_load && shared_->is_file_page(mine->job.handles[first]) ? read_slice_pages : slice_pages;
  const std::uint32_t count = std::min(most, mine->job.count_pages - first);
  mine->next = first + count;
  lock.unlock();  // deque: `mine` stays where it is

  const std::uint64_t begin = monotonic_ns();
  const Status status = is_load ? load_slice(worker, *mine, first, count) : store_slice(worker, *mine, first, count);
  const std::uint64_t took = monotonic_ns() - begin;

  lock.lock();
  --mine->claims;
  mine->work_ns += took;
  if (mine->status.ok()) mine->status = status;
  bool completed = false;
  if (mine->claims == 0 && (mine->next >= mine->job.count_pages || !mine->status.ok())) {
    if (!mine->status.ok()) {
      ++shared_->failed;
      if (!is_load) {
        for (StoreHandle& handle : mine->job.handles) {
          shared_->drop(handle);
          handle = 0;
        }
      }
    }
    shared_->completions.push_back(
        {mine->job.tag, mine->job.kind, mine->status, mine->work_ns, std::move(mine->job.handles)});
    mine->ended = true;
    auto& queue = is_load ? shared_->loads : shared_->stores;
    while (!queue.empty() && queue.front().ended) queue.pop_front();
    completed_.fetch_add(1, std::memory_order_release);
    completed = true;
  }
  const bool more = shared_->wants_background();
  lock.unlock();
  if (completed) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (owner_sleeping_.load(std::memory_order_relaxed) != 0) bell_.ring();
  }
  if (more) wake(1);
  return true;
}

void Store::work(Worker& worker) {
  pthread_setname_np(pthread_self(), "ferryd-store");
  AdaptiveSpin spin(spin_min_ns, spin_max_ns);
  while (!stop_.load(std::memory_order_relaxed)) {
    const std::uint32_t seen = work_word_.load(std::memory_order_seq_cst);
    if (take_turn(worker)) continue;
    if (background(worker)) continue;
    if (spin.until([&] { return work_word_.load(std::memory_order_acquire) != seen; })) continue;
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    futex_wait(work_word_, seen);
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  }
}

StoreStats Store::stats() const {
  const LockGuard lock(shared_->mutex);
  const Slabs& slabs = shared_->slabs;
  StoreStats s;
  s.fill_pages = slabs.fills() + shared_->small_fills;
  s.pages = slabs.objects() + shared_->small_fills;
  s.file_pages = slabs.file_pages();
  s.memory_bytes = (slabs.used_frames() + slabs.warm_frames()) * Slabs::slab_bytes;
  s.memory_bytes_max = slabs.frames() * Slabs::slab_bytes;
  s.payload_bytes = slabs.payload_bytes();
  s.file_bytes = shared_->file.used_slots() * page_bytes;
  s.file_bytes_max = shared_->file.slot_count() * page_bytes;
  s.written_bytes = shared_->written_bytes;
  s.read_bytes = shared_->read_bytes;
  s.failed = shared_->failed;
  s.uring = workers_.front()->io.uses_uring();
  s.direct = shared_->file.direct();
  return s;
}

}  // namespace ferry::linux
