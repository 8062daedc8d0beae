#include "client/checkpoint/restored.h"

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "client/heap/process_heap.h"

namespace ferry::client {
namespace {

struct Span {
  std::uint64_t bytes = 0;
  std::uint64_t live = 0;
};

struct Object {
  std::uint64_t bytes = 0;
  std::uint64_t span = 0;
};

struct Restored {
  /// Taken under the heap's locks when the program forks, so nothing of the heap is called while it is held.
  std::mutex mutex;
  std::map<std::uint64_t, Span> spans;
  std::map<std::uint64_t, Object> objects;
};

/// Null until something is restored. Never destroyed: destructors of the program may free.
constinit std::atomic<Restored*> all_restored{nullptr};
constinit Restored* locked_for_fork = nullptr;

Restored& make_all() {
  Restored* all = all_restored.load(std::memory_order_acquire);
  if (all != nullptr) return *all;
  auto made = std::make_unique<Restored>();
  if (all_restored.compare_exchange_strong(all, made.get(), std::memory_order_acq_rel)) all = made.release();
  return *all;
}

}  // namespace

void add_restored(const RestoredMemory& memory) {
  Restored& all = make_all();
  std::map<std::uint64_t, Span> spans;
  std::map<std::uint64_t, Object> objects;
  auto span = memory.spans.begin();
  for (const RestoredMemory::Part& object : memory.objects) {
    while (object.address >= span->address + span->bytes) ++span;
    spans[span->address].bytes = span->bytes;
    ++spans[span->address].live;
    objects[object.address] = {object.bytes, span->address};
  }
  const std::lock_guard lock(all.mutex);
  all.spans.merge(spans);
  all.objects.merge(objects);
}

bool free_restored(void* pointer) noexcept {
  Restored* const all = all_restored.load(std::memory_order_acquire);
  if (all == nullptr) return false;
  const NativeMallocScope native;
  std::pair<std::uint64_t, std::uint64_t> gone{};
  {
    const std::lock_guard lock(all->mutex);
    const auto object = all->objects.find(reinterpret_cast<std::uint64_t>(pointer));
    if (object == all->objects.end()) return false;
    const auto span = all->spans.find(object->second.span);
    all->objects.erase(object);
    if (--span->second.live == 0) {
      gone = {span->first, span->second.bytes};
      all->spans.erase(span);
    }
  }
  if (gone.second != 0) drop_restored_span(reinterpret_cast<void*>(gone.first), gone.second);
  return true;
}

void lock_restored() noexcept {
  locked_for_fork = all_restored.load(std::memory_order_acquire);
  if (locked_for_fork != nullptr) locked_for_fork->mutex.lock();
}

void unlock_restored() noexcept {
  if (Restored* const all = std::exchange(locked_for_fork, nullptr)) all->mutex.unlock();
}

void visit_restored_spans(void (*span)(void*, void*, std::size_t), void* context) noexcept {
  if (locked_for_fork == nullptr) return;
  for (const auto& [address, s] : locked_for_fork->spans) span(context, reinterpret_cast<void*>(address), s.bytes);
}

void visit_restored(void (*object)(void*, const void*, std::size_t), void (*span)(void*, void*, std::size_t),
                    void* context) {
  Restored* const all = all_restored.load(std::memory_order_acquire);
  if (all == nullptr) return;
  const std::lock_guard lock(all->mutex);
  for (const auto& [address, o] : all->objects) object(context, reinterpret_cast<const void*>(address), o.bytes);
  for (const auto& [address, s] : all->spans) span(context, reinterpret_cast<void*>(address), s.bytes);
}

}  // namespace ferry::client
