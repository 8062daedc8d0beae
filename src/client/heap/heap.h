// The managed heap: a thread-scalable size-class allocator whose metadata lie wholly outside of the memory it manages.
// Owns: which slot, slab and span is allocated; thread caches; central lists. Does not own: where spans come from (a
// SpanSource), what malloc has to look like (process_heap.h, preload/). Reads and writes no managed byte except to zero
// recycled memory (allocate_zeroed) and to copy in reallocate: the pages may lie in VRAM, and touching one moves it.
// Uses no C++ heap: it serves as malloc. All of it may be called from any thread unless stated otherwise.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "client/heap/lock.h"
#include "client/heap/metadata_arena.h"
#include "client/heap/radix_map.h"
#include "client/heap/size_classes.h"
#include "client/heap/slab.h"

namespace ferry::client {

/// Where a heap gets its memory from. Called with the heap's span lock held, hence one call at a time; must not
/// allocate from or free into the heap that calls.
class SpanSource {
 public:
  /// Zeroed, accessible memory inside the heap's window, or nullptr. `bytes` is a multiple of heap_unit_bytes (of
  /// heap_span_bytes for slabs), `align` a power of two >= heap_unit_bytes.
  virtual void* acquire_span(std::size_t bytes, std::size_t align) noexcept = 0;
  /// Takes back exactly what acquire_span gave.
  virtual void release_span(void* span, std::size_t bytes) noexcept = 0;

 protected:
  ~SpanSource() = default;
};

enum class FreeResult : std::uint8_t {
  freed,
  double_free,      ///< was allocated once and is free now
  invalid_pointer,  ///< inside the window, but no allocation starts there
  foreign,          ///< outside the window: not this heap's business
};

/// Told of every free, realloc or usable_size of a pointer that is not allocated. The heap is unharmed and stays usable;
/// the reporter may not call into it. May come from any thread.
using HeapReporter = void (*)(void* context, FreeResult what, const void* pointer);

enum class SpanKind : std::uint8_t { slabs, large };

/// What lies at an address.
struct HeapObject {
  enum class State : std::uint8_t {
    outside,  ///< not in the window
    unused,   ///< in the window, in no span
    free,     ///< in a slot or span part that is not allocated now
    live,
  };
  State state = State::outside;
  const void* start = nullptr;  ///< of the slot or large allocation; nullptr when there is none
  std::size_t bytes = 0;        ///< usable bytes from start
};

struct HeapStats {
  std::uint64_t span_bytes = 0;  ///< held from the SpanSource, large ones included
  std::uint64_t large_bytes = 0;
  std::uint64_t large_count = 0;
  std::uint64_t slab_bytes = 0;      ///< parts of spans that slabs occupy
  std::uint64_t live_objects = 0;    ///< allocated now; counted at the call, so only exact while nobody allocates
  std::uint64_t live_bytes = 0;      ///< in whole slots
  std::uint64_t metadata_bytes = 0;  ///< address space of the metadata
  std::uint64_t bad_frees = 0;
  std::uint64_t deferred_lost = 0;  ///< free_later() calls that found no room: leaked
};

class Heap {
 public:
  /// `window_base` and `window_bytes` are multiples of heap_span_bytes; every span of `source` lies inside.
  Heap(SpanSource& source, std::uintptr_t window_base, std::size_t window_bytes) noexcept;
  /// Gives all spans back. No other thread that has used the heap may still run.
  ~Heap();
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  /// Uninitialized memory of at least max(bytes, 1) bytes, aligned to `align` (a power of two; at least 16 is always
  /// given). nullptr when the source has none or the sizes overflow; errno is not set.
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t align = 16) noexcept;
  /// The same, reading as zero. Memory fresh from the source is not written.
  [[nodiscard]] void* allocate_zeroed(std::size_t bytes, std::size_t align = 16) noexcept;
  /// Nothing happens for nullptr (freed). Anything else but `freed` was reported and changed nothing.
  FreeResult free(void* pointer) noexcept;
  /// For threads that may not wait for the heap's locks now: remembers `pointer` (inside the window); any thread that
  /// next refills its cache frees it. Async-signal-safe.
  void free_later(void* pointer) noexcept;
  /// Grows or shrinks, moving when it must; the old block stays as it is when nullptr is returned. nullptr as pointer:
  /// allocates. A pointer that is not allocated is reported and nullptr returned.
  [[nodiscard]] void* reallocate(void* pointer, std::size_t bytes) noexcept;
  /// 0 for what is not allocated (not reported).
  [[nodiscard]] std::size_t usable_size(const void* pointer) const noexcept;
  /// Whether `pointer` lies in the window, allocated or not.
  [[nodiscard]] bool owns(const void* pointer) const noexcept {
    return reinterpret_cast<std::uintptr_t>(pointer) - window_base_ < window_bytes_;
  }
  /// What lies at `address`, which may point into the middle. Takes a lock; for messages, not for speed.
  [[nodiscard]] HeapObject lookup(const void* address) noexcept;

  /// Calls visit(context, span, bytes, kind) for every span held. The visitor may not call into the heap. With
  /// `locked` the caller holds all locks (lock_all).
  using SpanVisitor = void (*)(void* context, void* span, std::size_t bytes, SpanKind kind);
  void visit_spans(SpanVisitor visit, void* context, bool locked = false) noexcept;

  /// Calls visit(context, start, bytes) for every allocation, in no order. Takes a lock; the visitor may not call into the
  /// heap. Exact while nobody allocates or frees.
  using ObjectVisitor = void (*)(void* context, const void* start, std::size_t bytes);
  void visit_objects(ObjectVisitor visit, void* context) noexcept;

  void set_reporter(HeapReporter reporter, void* context) noexcept;
  [[nodiscard]] HeapStats stats() noexcept;

  /// Gives the calling thread's cached slots back to the central lists.
  void flush_thread_cache() noexcept;
  /// Gives spans that nothing is allocated in back to the source (a few, and the cache of large ones, are kept
  /// otherwise).
  void release_spare_spans() noexcept;
  /// Freed large allocations that are kept mapped for the next of their size, in bytes over all; 0, the default, gives
  /// each back at once, so that a use after free meets no memory.
  void set_large_cache(std::size_t bytes) noexcept;

  /// Every lock, in order: from here to unlock_all no thread but this one changes the heap, apart from what its own
  /// cache lets it do. For fork (before: lock_all; parent: unlock_all; child: unlock_all_in_child) and for conversion.
  void lock_all() noexcept;
  void unlock_all() noexcept;
  /// Only the lock under which the source is called, for others who take addresses from it.
  void lock_spans() noexcept { span_lock_.lock(); }
  void unlock_spans() noexcept { span_lock_.unlock(); }
  /// Also takes note that the other threads, and so the owners of their caches, do not exist here.
  void unlock_all_in_child() noexcept;

 private:
  struct CacheItem {
    std::byte* object;
    std::atomic<std::uint8_t>* state;
  };
  struct CacheBin {
    CacheItem* items;
    std::uint32_t count;
    std::uint32_t capacity;
  };
  struct ThreadCache {
    Heap* owner;
    ThreadCache* next;
    ThreadCache* prev;
    CacheBin bins[cached_class_count];
  };
  struct alignas(64) Central {
    HeapLock lock;
    Slab* partial = nullptr;   ///< slabs with a free slot
    Slab* recycled = nullptr;  ///< records of retired slabs; type-stable, because a bad free may still look at one
    std::uint32_t empty_slabs = 0;
  };

  template <bool zeroed>
  void* allocate_any(std::size_t bytes, std::size_t align) noexcept;
  template <bool zeroed>
  void* allocate_class(unsigned size_class, std::size_t bytes) noexcept;
  template <bool zeroed>
  void* allocate_class_slow(unsigned size_class, std::size_t bytes) noexcept;
  template <bool zeroed>
  static void* hand_out(const CacheItem& item, std::size_t bytes) noexcept;
  void* allocate_large(std::size_t bytes, std::size_t align, bool zeroed) noexcept;
  LargeSpan* take_cached_large(std::size_t bytes, std::size_t align) noexcept;
  LargeSpan* acquire_large(std::size_t bytes, std::size_t align) noexcept;
  void* acquire_from_source(std::size_t bytes, std::size_t align) noexcept;
  void cache_or_release(LargeSpan* large) noexcept;
  void shrink_large_cache(std::size_t to_bytes) noexcept;
  FreeResult free_large(LargeSpan* large, std::uintptr_t address) noexcept;
  FreeResult report(FreeResult what, const void* pointer) noexcept;
  void flush_bin(CacheBin& bin, unsigned size_class, std::uint32_t count) noexcept;
  void drain_deferred() noexcept;

  // Thread caches (heap.cpp).
  static void on_thread_exit(void* cache) noexcept;
  static void detach_thread_cache(ThreadCache* cache) noexcept;
  ThreadCache* own_cache() noexcept;
  ThreadCache* new_cache() noexcept;
  void retire_cache(ThreadCache* cache) noexcept;
  void adopt_orphans() noexcept;

  // Central lists and spans (heap_spans.cpp).
  std::size_t central_take(unsigned size_class, CacheItem* out, std::size_t want) noexcept;
  std::size_t central_take_into(CacheBin& bin, unsigned size_class) noexcept;
  /// With `bin`, the items are its oldest and are taken out of it.
  void central_give(unsigned size_class, const CacheItem* items, std::size_t count, CacheBin* bin = nullptr) noexcept;
  std::size_t take_from_partial(Central& central, unsigned size_class, CacheItem* out, std::size_t want) noexcept;
  bool add_slab(Central& central, unsigned size_class) noexcept;
  Slab* make_slab(unsigned size_class) noexcept;
  void retire_slab(Slab* slab) noexcept;
  SlabSpan* span_with_run(unsigned order) noexcept;
  void list_span(SlabSpan* span) noexcept;
  void unlist_span(SlabSpan* span) noexcept;
  void release_span(SlabSpan* span) noexcept;
  void release_spares_locked() noexcept;

  const std::uintptr_t window_base_;
  const std::size_t window_bytes_;
  SpanSource& source_;
  MetadataArena arena_;
  RadixMap<PageRecord> map_;
  PageRecord retired_record_;
  std::atomic<HeapReporter> reporter_{nullptr};
  std::atomic<void*> reporter_context_{nullptr};
  std::atomic<std::uint64_t> bad_frees_{0};
  bool usable_ = false;
  bool has_key_ = false;
  pthread_key_t key_ = 0;

  Central classes_[class_count];

  HeapLock cache_lock_;
  ThreadCache* live_caches_ = nullptr;
  ThreadCache* free_caches_ = nullptr;
  std::atomic<ThreadCache*> orphans_{nullptr};  ///< caches of threads that a fork left behind

  HeapLock span_lock_;
  SlabSpan* spans_by_order_[span_orders] = {};  ///< by the largest run of free units
  SlabSpan* all_slab_spans_ = nullptr;
  LargeSpan* all_large_ = nullptr;
  LargeSpan* newest_cached_ = nullptr;
  LargeSpan* oldest_cached_ = nullptr;
  std::size_t cached_bytes_ = 0;
  std::size_t cached_bytes_max_ = 0;
  SlabSpan* recycled_spans_ = nullptr;
  LargeSpan* recycled_large_ = nullptr;
  std::uint32_t spare_spans_ = 0;
  std::uint64_t span_bytes_ = 0;
  std::uint64_t large_bytes_ = 0;
  std::uint64_t large_count_ = 0;
  std::uint64_t slab_bytes_ = 0;

  static constexpr std::size_t deferred_slots = 1024;
  std::atomic<std::uint32_t> deferred_count_{0};
  std::atomic<std::uint64_t> deferred_lost_{0};
  std::atomic<void*> deferred_[deferred_slots] = {};
};

}  // namespace ferry::client
