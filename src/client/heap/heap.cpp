// The heap's fast paths and thread caches. Spans, slabs and central lists: heap_spans.cpp.
// Order of locks: classes by number, caches, spans, arena. None is held while another thread is waited for.
#include "client/heap/heap.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace ferry::client {

namespace {

// Initial-exec: one load, and no call into the dynamic linker, which would call malloc.
[[gnu::tls_model("initial-exec")]] constinit thread_local void* thread_cache = nullptr;
// Set when the thread's destructors of thread-specific data run: what is allocated after that goes without a cache.
[[gnu::tls_model("initial-exec")]] constinit thread_local bool thread_exits = false;

constexpr std::size_t round_up(std::size_t value, std::size_t to) { return (value + to - 1) & ~(to - 1); }

constexpr std::size_t cache_items_total() {
  std::size_t total = 0;
  for (unsigned i = 0; i < cached_class_count; ++i) total += size_classes[i].cache_slots;
  return total;
}

}  // namespace

Heap::Heap(SpanSource& source, std::uintptr_t window_base, std::size_t window_bytes) noexcept
    : window_base_(window_base), window_bytes_(window_bytes), source_(source) {
  usable_ = window_bytes != 0 && map_.init(arena_, window_bytes >> heap_unit_shift);
  has_key_ = ::pthread_key_create(&key_, [](void* cache) { on_thread_exit(cache); }) == 0;
}

// --- allocation ------------------------------------------------------------------------------------------------------

template <bool zeroed>
void* Heap::hand_out(const CacheItem& item, std::size_t bytes) noexcept {
  const bool clean = zeroed && item.state->load(std::memory_order_relaxed) == slot_state::fresh;
  item.state->store(slot_state::live, std::memory_order_relaxed);
  if (zeroed && !clean) std::memset(item.object, 0, bytes);
  return item.object;
}

template <bool zeroed>
inline void* Heap::allocate_class(unsigned size_class, std::size_t bytes) noexcept {
  auto* cache = static_cast<ThreadCache*>(thread_cache);
  if (__builtin_expect(cache != nullptr && cache->owner == this && size_class < cached_class_count, 1)) {
    CacheBin& bin = cache->bins[size_class];
    if (__builtin_expect(bin.count != 0, 1)) {
      const CacheItem item = bin.items[bin.count - 1];
      --bin.count;
      return hand_out<zeroed>(item, bytes);
    }
  }
  return allocate_class_slow<zeroed>(size_class, bytes);
}

template <bool zeroed>
void* Heap::allocate_class_slow(unsigned size_class, std::size_t bytes) noexcept {
  if (!usable_) return nullptr;
  drain_deferred();
  ThreadCache* cache = size_class < cached_class_count ? own_cache() : nullptr;
  CacheItem one;
  if (cache == nullptr) {
    return central_take(size_class, &one, 1) == 1 ? hand_out<zeroed>(one, bytes) : nullptr;
  }
  CacheBin& bin = cache->bins[size_class];
  // Draining, or the first allocation of the thread, may have filled it.
  if (bin.count == 0 && central_take_into(bin, size_class) == 0) return nullptr;
  --bin.count;
  return hand_out<zeroed>(bin.items[bin.count], bytes);
}

template <bool zeroed>
inline void* Heap::allocate_any(std::size_t bytes, std::size_t align) noexcept {
  if (__builtin_expect(align <= 16 && bytes <= slab_bytes_max, 1)) {
    return allocate_class<zeroed>(class_of(bytes | (bytes == 0)), bytes);
  }
  if (bytes > window_bytes_ || align > window_bytes_) return nullptr;
  if (align <= heap_unit_bytes) {
    const std::size_t padded = round_up(std::max<std::size_t>(bytes, 1), std::max<std::size_t>(align, 16));
    if (padded <= slab_bytes_max) {
      unsigned size_class = class_of(padded);
      while (size_class < class_count && size_classes[size_class].bytes % align != 0) ++size_class;
      if (size_class < class_count) return allocate_class<zeroed>(size_class, bytes);
    }
  }
  return allocate_large(std::max<std::size_t>(bytes, 1), align, zeroed);
}

void* Heap::allocate(std::size_t bytes, std::size_t align) noexcept { return allocate_any<false>(bytes, align); }

void* Heap::allocate_zeroed(std::size_t bytes, std::size_t align) noexcept { return allocate_any<true>(bytes, align); }

// --- free ------------------------------------------------------------------------------------------------------------

FreeResult Heap::free(void* pointer) noexcept {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  const std::uintptr_t offset = address - window_base_;
  if (__builtin_expect(offset >= window_bytes_ || !usable_, 0)) {
    return pointer == nullptr ? FreeResult::freed : report(FreeResult::foreign, pointer);
  }
  PageRecord* record = map_.get(offset >> heap_unit_shift);
  if (__builtin_expect(record == nullptr, 0)) return report(FreeResult::invalid_pointer, pointer);
  if (__builtin_expect(record->kind != PageRecord::Kind::slab, 0)) {
    if (record->kind == PageRecord::Kind::retired) return report(FreeResult::double_free, pointer);
    return free_large(static_cast<LargeSpan*>(record), address);
  }
  auto* slab = static_cast<Slab*>(record);
  const std::uint32_t slot = slab->slot_of(address);
  if (__builtin_expect(slot >= slab->slots || slab->base + std::uintptr_t{slot} * slab->slot_bytes != address, 0)) {
    return report(FreeResult::invalid_pointer, pointer);
  }
  const CacheItem item{static_cast<std::byte*>(pointer), slab->states + slot};
  const std::uint8_t before = item.state->exchange(slot_state::used, std::memory_order_relaxed);
  if (__builtin_expect(before != slot_state::live, 0)) return report(FreeResult::double_free, pointer);

  const unsigned size_class = slab->size_class;
  auto* cache = static_cast<ThreadCache*>(thread_cache);
  if (__builtin_expect(cache == nullptr || cache->owner != this || size_class >= cached_class_count, 0)) {
    cache = size_class < cached_class_count ? own_cache() : nullptr;
    if (cache == nullptr) {
      central_give(size_class, &item, 1);
      return FreeResult::freed;
    }
  }
  CacheBin& bin = cache->bins[size_class];
  if (__builtin_expect(bin.count == bin.capacity, 0)) flush_bin(bin, size_class, bin.capacity / 2);
  bin.items[bin.count] = item;
  // A fork may happen between any two stores, and the child goes through this cache: the item first.
  std::atomic_signal_fence(std::memory_order_release);
  ++bin.count;
  return FreeResult::freed;
}

FreeResult Heap::report(FreeResult what, const void* pointer) noexcept {
  bad_frees_.fetch_add(1, std::memory_order_relaxed);
  if (HeapReporter reporter = reporter_.load(std::memory_order_acquire)) {
    reporter(reporter_context_.load(std::memory_order_relaxed), what, pointer);
  }
  return what;
}

void Heap::set_reporter(HeapReporter reporter, void* context) noexcept {
  reporter_.store(nullptr, std::memory_order_release);
  reporter_context_.store(context, std::memory_order_relaxed);
  reporter_.store(reporter, std::memory_order_release);
}

void Heap::free_later(void* pointer) noexcept {
  if (pointer == nullptr) return;
  const std::size_t start = (reinterpret_cast<std::uintptr_t>(pointer) >> 4) % deferred_slots;
  for (std::size_t i = 0; i < deferred_slots; ++i) {
    void* expected = nullptr;
    if (deferred_[(start + i) % deferred_slots].compare_exchange_strong(expected, pointer, std::memory_order_release)) {
      deferred_count_.fetch_add(1, std::memory_order_release);
      return;
    }
  }
  deferred_lost_.fetch_add(1, std::memory_order_relaxed);
}

void Heap::drain_deferred() noexcept {
  if (__builtin_expect(deferred_count_.load(std::memory_order_acquire) == 0, 1)) return;
  for (std::atomic<void*>& slot : deferred_) {
    if (slot.load(std::memory_order_relaxed) == nullptr) continue;
    void* pointer = slot.exchange(nullptr, std::memory_order_acquire);
    if (pointer == nullptr) continue;
    deferred_count_.fetch_sub(1, std::memory_order_relaxed);
    (void)free(pointer);
  }
}

// --- sizes -----------------------------------------------------------------------------------------------------------

std::size_t Heap::usable_size(const void* pointer) const noexcept {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  if (address - window_base_ >= window_bytes_ || !usable_) return 0;
  const PageRecord* record = map_.get((address - window_base_) >> heap_unit_shift);
  if (record == nullptr) return 0;
  if (record->kind == PageRecord::Kind::slab) {
    const auto* slab = static_cast<const Slab*>(record);
    const std::uint32_t slot = slab->slot_of(address);
    if (slot >= slab->slots || slab->base + std::uintptr_t{slot} * slab->slot_bytes != address) return 0;
    return slab->states[slot].load(std::memory_order_relaxed) == slot_state::live ? slab->slot_bytes : 0;
  }
  if (record->kind == PageRecord::Kind::large && record->base == address) {
    return static_cast<const LargeSpan*>(record)->bytes;
  }
  return 0;
}

void* Heap::reallocate(void* pointer, std::size_t bytes) noexcept {
  if (pointer == nullptr) return allocate(bytes);
  const std::size_t usable = usable_size(pointer);
  if (usable == 0) {
    const HeapObject there = lookup(pointer);
    (void)report(there.state == HeapObject::State::outside ? FreeResult::foreign
                 : there.state == HeapObject::State::free  ? FreeResult::double_free
                                                           : FreeResult::invalid_pointer,
                 pointer);
    return nullptr;
  }
  // Moves when less than half would be in use, so that shrinking gives memory back.
  if (bytes <= usable && (bytes >= usable / 2 || usable <= 64)) return pointer;
  void* moved = nullptr;
  if (bytes > usable && usable > slab_bytes_max) {
    // Room for a quarter more: memory that is never touched costs nothing, and growing in small steps would otherwise
    // copy everything at each.
    const std::size_t roomy = usable + usable / 4;
    if (roomy > bytes) moved = allocate(roomy);
  }
  if (moved == nullptr) moved = allocate(bytes);
  if (moved == nullptr) return nullptr;
  std::memcpy(moved, pointer, std::min(bytes, usable));
  (void)free(pointer);
  return moved;
}

// --- thread caches ---------------------------------------------------------------------------------------------------

Heap::ThreadCache* Heap::own_cache() noexcept {
  auto* cache = static_cast<ThreadCache*>(thread_cache);
  if (cache != nullptr) return cache->owner == this ? cache : nullptr;
  return thread_exits || !has_key_ || !usable_ ? nullptr : new_cache();
}

Heap::ThreadCache* Heap::new_cache() noexcept {
  ThreadCache* cache = nullptr;
  {
    HeapLockGuard guard(cache_lock_);
    cache = free_caches_;
    if (cache != nullptr) {
      free_caches_ = cache->next;
    } else {
      constexpr std::size_t head_bytes = round_up(sizeof(ThreadCache), alignof(CacheItem));
      void* memory = arena_.allocate(head_bytes + cache_items_total() * sizeof(CacheItem));
      if (memory == nullptr) return nullptr;
      cache = new (memory) ThreadCache{};
      cache->owner = this;
      auto* items = reinterpret_cast<CacheItem*>(static_cast<std::byte*>(memory) + head_bytes);
      for (unsigned i = 0; i < cached_class_count; ++i) {
        cache->bins[i] = CacheBin{items, 0, size_classes[i].cache_slots};
        items += size_classes[i].cache_slots;
      }
    }
    cache->prev = nullptr;
    cache->next = live_caches_;
    if (live_caches_ != nullptr) live_caches_->prev = cache;
    live_caches_ = cache;
  }
  // Before pthread_setspecific: that may allocate and come here again.
  thread_cache = cache;
  if (::pthread_setspecific(key_, cache) != 0) {
    thread_cache = nullptr;
    thread_exits = true;
    retire_cache(cache);
    return nullptr;
  }
  return cache;
}

void Heap::on_thread_exit(void* cache) noexcept {
  auto* exiting = static_cast<ThreadCache*>(cache);
  if (thread_cache == cache) thread_cache = nullptr;
  thread_exits = true;
  exiting->owner->retire_cache(exiting);
}

void Heap::detach_thread_cache(ThreadCache* cache) noexcept {
  if (thread_cache == cache) thread_cache = nullptr;
}

void Heap::flush_bin(CacheBin& bin, unsigned size_class, std::uint32_t count) noexcept {
  // The oldest: the newest are warm in this processor's cache.
  central_give(size_class, bin.items, count, &bin);
}

void Heap::retire_cache(ThreadCache* cache) noexcept {
  for (unsigned i = 0; i < cached_class_count; ++i) {
    if (cache->bins[i].count != 0) flush_bin(cache->bins[i], i, cache->bins[i].count);
  }
  HeapLockGuard guard(cache_lock_);
  if (cache->prev != nullptr) {
    cache->prev->next = cache->next;
  } else if (live_caches_ == cache) {
    live_caches_ = cache->next;
  }
  if (cache->next != nullptr) cache->next->prev = cache->prev;
  cache->next = free_caches_;
  cache->prev = nullptr;
  free_caches_ = cache;
}

void Heap::flush_thread_cache() noexcept {
  auto* cache = static_cast<ThreadCache*>(thread_cache);
  if (cache == nullptr || cache->owner != this) return;
  for (unsigned i = 0; i < cached_class_count; ++i) {
    if (cache->bins[i].count != 0) flush_bin(cache->bins[i], i, cache->bins[i].count);
  }
}

void Heap::adopt_orphans() noexcept {
  ThreadCache* orphan = orphans_.exchange(nullptr, std::memory_order_acquire);
  while (orphan != nullptr) {
    ThreadCache* next = orphan->next;
    orphan->next = nullptr;
    retire_cache(orphan);
    orphan = next;
  }
}

// --- all locks -------------------------------------------------------------------------------------------------------

void Heap::lock_all() noexcept {
  for (Central& central : classes_) central.lock.lock();
  cache_lock_.lock();
  span_lock_.lock();
  arena_.lock().lock();
}

void Heap::unlock_all() noexcept {
  arena_.lock().unlock();
  span_lock_.unlock();
  cache_lock_.unlock();
  for (unsigned i = class_count; i-- > 0;) classes_[i].lock.unlock();
}

void Heap::unlock_all_in_child() noexcept {
  // Each of these threads stood between two of its stores, and what its bins count was in nobody else's hands: their
  // slots are taken back when a class next needs a slab, so that a fork followed by exec pays nothing for them.
  auto* own = static_cast<ThreadCache*>(thread_cache);
  ThreadCache* orphans = orphans_.load(std::memory_order_relaxed);
  for (ThreadCache* cache = live_caches_; cache != nullptr;) {
    ThreadCache* next = cache->next;
    cache->prev = nullptr;
    if (cache != own) {
      cache->next = orphans;
      orphans = cache;
    }
    cache = next;
  }
  live_caches_ = nullptr;
  if (own != nullptr && own->owner == this) {
    own->next = nullptr;
    live_caches_ = own;
  }
  orphans_.store(orphans, std::memory_order_relaxed);
  unlock_all();
}

}  // namespace ferry::client
