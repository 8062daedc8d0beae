// Central lists, slabs, spans and large allocations of the heap, and looking at them. See heap.cpp for locks.
#include <algorithm>
#include <bit>
#include <cstring>
#include <new>

#include "client/heap/heap.h"

namespace ferry::client {

namespace {

constexpr std::uint32_t all_units = ~std::uint32_t{0};
static_assert(span_units == 32, "the masks of a span have a bit a unit");
/// Spans without a slab that are kept, so that one slab coming and going does not map and unmap 2 MiB each time.
constexpr std::uint32_t spare_spans_kept = 2;

/// Units where a free run of 2^order, aligned to its length, may begin.
constexpr std::uint32_t run_starts(std::uint32_t free_units, unsigned order) {
  for (unsigned i = 0; i < order; ++i) free_units &= free_units >> (1U << i);
  constexpr std::uint32_t aligned[span_orders] = {0xffffffff, 0x55555555, 0x11111111, 0x01010101, 0x00010001, 1};
  return free_units & aligned[order];
}

constexpr std::uint32_t run_mask(unsigned first, unsigned order) {
  const unsigned length = 1U << order;
  return (length == 32 ? all_units : (std::uint32_t{1} << length) - 1) << first;
}

/// span_orders when nothing is free.
constexpr unsigned largest_order(std::uint32_t free_units) {
  for (unsigned order = span_orders; order-- > 0;) {
    if (run_starts(free_units, order) != 0) return order;
  }
  return span_orders;
}

}  // namespace

Heap::~Heap() {
  flush_thread_cache();
  if (has_key_) {
    if (auto* cache = static_cast<ThreadCache*>(::pthread_getspecific(key_))) {
      (void)::pthread_setspecific(key_, nullptr);
      detach_thread_cache(cache);
    }
    (void)::pthread_key_delete(key_);
  }
  for (SlabSpan* span = all_slab_spans_; span != nullptr; span = span->all_next) {
    source_.release_span(reinterpret_cast<void*>(span->base), heap_span_bytes);
  }
  shrink_large_cache(0);
  for (LargeSpan* large = all_large_; large != nullptr; large = large->next) {
    source_.release_span(reinterpret_cast<void*>(large->base), large->bytes);
  }
}

// --- central lists ---------------------------------------------------------------------------------------------------

std::size_t Heap::take_from_partial(Central& central, unsigned size_class, CacheItem* out, std::size_t want) noexcept {
  const SizeClass& shape = size_classes[size_class];
  std::size_t got = 0;
  while (got < want && central.partial != nullptr) {
    Slab* slab = central.partial;
    if (slab->free_slots == shape.slots) --central.empty_slabs;
    std::uint64_t* bits = slab->free_bits();
    std::uint32_t word = slab->first_word;
    while (got < want && slab->free_slots != 0) {
      while (bits[word] == 0) ++word;
      const std::uint32_t slot = word * 64 + static_cast<std::uint32_t>(std::countr_zero(bits[word]));
      bits[word] &= bits[word] - 1;
      --slab->free_slots;
      out[got++] =
          CacheItem{reinterpret_cast<std::byte*>(slab->base + std::uintptr_t{slot} * shape.bytes), slab->states + slot};
    }
    slab->first_word = word;
    if (slab->free_slots == 0) {
      central.partial = slab->next;
      if (slab->next != nullptr) slab->next->prev = nullptr;
      slab->next = nullptr;
    }
  }
  return got;
}

bool Heap::add_slab(Central& central, unsigned size_class) noexcept {
  if (orphans_.load(std::memory_order_relaxed) != nullptr) {
    adopt_orphans();
    HeapLockGuard guard(central.lock);
    if (central.partial != nullptr) return true;
  }
  Slab* slab = make_slab(size_class);
  if (slab == nullptr) return false;
  HeapLockGuard guard(central.lock);
  slab->next = central.partial;
  if (slab->next != nullptr) slab->next->prev = slab;
  central.partial = slab;
  ++central.empty_slabs;
  return true;
}

std::size_t Heap::central_take(unsigned size_class, CacheItem* out, std::size_t want) noexcept {
  Central& central = classes_[size_class];
  do {
    HeapLockGuard guard(central.lock);
    if (const std::size_t got = take_from_partial(central, size_class, out, want)) return got;
  } while (add_slab(central, size_class));
  return 0;
}

std::size_t Heap::central_take_into(CacheBin& bin, unsigned size_class) noexcept {
  Central& central = classes_[size_class];
  do {
    HeapLockGuard guard(central.lock);
    const std::size_t got = take_from_partial(central, size_class, bin.items, (bin.capacity + 1) / 2);
    if (got == 0) continue;
    // The last is handed out first: lowest addresses first, as a program that fills memory in order expects.
    std::reverse(bin.items, bin.items + got);
    bin.count = static_cast<std::uint32_t>(got);
    return got;
  } while (add_slab(central, size_class));
  return 0;
}

void Heap::central_give(unsigned size_class, const CacheItem* items, std::size_t count, CacheBin* bin) noexcept {
  Central& central = classes_[size_class];
  Slab* to_retire = nullptr;
  {
    HeapLockGuard guard(central.lock);
    for (std::size_t i = 0; i < count; ++i) {
      const auto address = reinterpret_cast<std::uintptr_t>(items[i].object);
      auto* slab = static_cast<Slab*>(map_.get((address - window_base_) >> heap_unit_shift));
      const std::uint32_t slot = slab->slot_of(address);
      const std::uint32_t word = slot / 64;
      slab->free_bits()[word] |= std::uint64_t{1} << (slot % 64);
      slab->first_word = std::min(slab->first_word, word);
      if (slab->free_slots++ == 0) {
        slab->prev = nullptr;
        slab->next = central.partial;
        if (slab->next != nullptr) slab->next->prev = slab;
        central.partial = slab;
      }
      if (slab->free_slots == slab->slots && ++central.empty_slabs > 1) {
        --central.empty_slabs;
        if (slab->prev != nullptr) {
          slab->prev->next = slab->next;
        } else {
          central.partial = slab->next;
        }
        if (slab->next != nullptr) slab->next->prev = slab->prev;
        slab->next = to_retire;
        to_retire = slab;
      }
    }
    if (bin != nullptr) {
      std::memmove(bin->items, bin->items + count, (bin->count - count) * sizeof(CacheItem));
      bin->count -= static_cast<std::uint32_t>(count);
    }
  }
  while (to_retire != nullptr) {
    Slab* next = to_retire->next;
    retire_slab(to_retire);
    to_retire = next;
  }
}

// --- slabs and their spans -------------------------------------------------------------------------------------------

void Heap::list_span(SlabSpan* span) noexcept {
  const unsigned order = largest_order(span->free_units);
  span->order = static_cast<std::uint8_t>(order);
  if (order == span_orders) return;
  span->prev = nullptr;
  span->next = spans_by_order_[order];
  if (span->next != nullptr) span->next->prev = span;
  spans_by_order_[order] = span;
}

void Heap::unlist_span(SlabSpan* span) noexcept {
  if (span->order == span_orders) return;
  if (span->prev != nullptr) {
    span->prev->next = span->next;
  } else {
    spans_by_order_[span->order] = span->next;
  }
  if (span->next != nullptr) span->next->prev = span->prev;
}

SlabSpan* Heap::span_with_run(unsigned order) noexcept {
  for (unsigned i = order; i < span_orders; ++i) {
    if (SlabSpan* span = spans_by_order_[i]) {
      unlist_span(span);
      if (span->free_units == all_units) --spare_spans_;
      return span;
    }
  }
  SlabSpan* span = recycled_spans_;
  if (span != nullptr) {
    recycled_spans_ = span->next;
  } else {
    void* memory = arena_.allocate(sizeof(SlabSpan));
    if (memory == nullptr) return nullptr;
    span = new (memory) SlabSpan{};
  }
  void* at = acquire_from_source(heap_span_bytes, heap_span_bytes);
  const std::size_t unit = (reinterpret_cast<std::uintptr_t>(at) - window_base_) >> heap_unit_shift;
  if (at == nullptr || !map_.prepare(unit, span_units)) {
    if (at != nullptr) source_.release_span(at, heap_span_bytes);
    span->next = recycled_spans_;
    recycled_spans_ = span;
    return nullptr;
  }
  *span = SlabSpan{
      reinterpret_cast<std::uintptr_t>(at), all_units, 0, span_orders, nullptr, nullptr, all_slab_spans_, nullptr};
  if (all_slab_spans_ != nullptr) all_slab_spans_->all_prev = span;
  all_slab_spans_ = span;
  span_bytes_ += heap_span_bytes;
  return span;
}

Slab* Heap::make_slab(unsigned size_class) noexcept {
  const SizeClass& shape = size_classes[size_class];
  Central& central = classes_[size_class];
  Slab* slab = nullptr;
  {
    HeapLockGuard guard(central.lock);
    slab = central.recycled;
    if (slab != nullptr) central.recycled = slab->next;
  }
  if (slab == nullptr) {
    void* memory = arena_.allocate(Slab::record_bytes(shape.slots));
    if (memory == nullptr) return nullptr;
    slab = new (memory) Slab{};
    slab->kind = PageRecord::Kind::slab;
    slab->size_class = static_cast<std::uint8_t>(size_class);
    slab->slots = shape.slots;
    slab->slot_bytes = shape.bytes;
    slab->reciprocal = shape.reciprocal;
    slab->states = reinterpret_cast<std::atomic<std::uint8_t>*>(slab->free_bits() + Slab::words(shape.slots));
  }
  {
    HeapLockGuard guard(span_lock_);
    SlabSpan* span = span_with_run(shape.order);
    if (span != nullptr) {
      const auto first = static_cast<unsigned>(std::countr_zero(run_starts(span->free_units, shape.order)));
      const std::uint32_t run = run_mask(first, shape.order);
      const bool dirty = (span->dirty_units & run) != 0;
      span->free_units &= ~run;
      span->dirty_units |= run;
      list_span(span);
      slab_bytes_ += heap_unit_bytes << shape.order;

      slab->base = span->base + first * heap_unit_bytes;
      slab->span = span;
      slab->next = slab->prev = nullptr;
      slab->free_slots = shape.slots;
      slab->first_word = 0;
      std::uint64_t* bits = slab->free_bits();
      std::memset(bits, 0xff, shape.slots / 64 * sizeof(std::uint64_t));
      if (shape.slots % 64 != 0) bits[shape.slots / 64] = (std::uint64_t{1} << (shape.slots % 64)) - 1;
      std::memset(static_cast<void*>(slab->states), dirty ? slot_state::used : slot_state::fresh, shape.slots);
      const std::size_t unit = (slab->base - window_base_) >> heap_unit_shift;
      for (std::size_t i = 0; i < std::size_t{1} << shape.order; ++i) map_.set(unit + i, slab);
      return slab;
    }
  }
  HeapLockGuard guard(central.lock);
  slab->next = central.recycled;
  central.recycled = slab;
  return nullptr;
}

void Heap::retire_slab(Slab* slab) noexcept {
  const SizeClass& shape = size_classes[slab->size_class];
  {
    HeapLockGuard guard(span_lock_);
    SlabSpan* span = slab->span;
    const auto first = static_cast<unsigned>((slab->base - span->base) >> heap_unit_shift);
    const std::size_t unit = (slab->base - window_base_) >> heap_unit_shift;
    for (std::size_t i = 0; i < std::size_t{1} << shape.order; ++i) map_.set(unit + i, &retired_record_);
    unlist_span(span);
    span->free_units |= run_mask(first, shape.order);
    slab_bytes_ -= heap_unit_bytes << shape.order;
    if (span->free_units == all_units && spare_spans_ >= spare_spans_kept) {
      release_span(span);
    } else {
      if (span->free_units == all_units) ++spare_spans_;
      list_span(span);
    }
  }
  Central& central = classes_[slab->size_class];
  HeapLockGuard guard(central.lock);
  slab->next = central.recycled;
  central.recycled = slab;
}

void Heap::release_span(SlabSpan* span) noexcept {
  if (span->all_prev != nullptr) {
    span->all_prev->all_next = span->all_next;
  } else {
    all_slab_spans_ = span->all_next;
  }
  if (span->all_next != nullptr) span->all_next->all_prev = span->all_prev;
  span_bytes_ -= heap_span_bytes;
  source_.release_span(reinterpret_cast<void*>(span->base), heap_span_bytes);
  span->next = recycled_spans_;
  recycled_spans_ = span;
}

void Heap::release_spares_locked() noexcept {
  shrink_large_cache(0);
  SlabSpan* span = spans_by_order_[span_orders - 1];
  while (span != nullptr) {
    SlabSpan* next = span->next;
    unlist_span(span);
    --spare_spans_;
    release_span(span);
    span = next;
  }
}

void Heap::release_spare_spans() noexcept {
  HeapLockGuard guard(span_lock_);
  release_spares_locked();
}

void* Heap::acquire_from_source(std::size_t bytes, std::size_t align) noexcept {
  void* at = source_.acquire_span(bytes, align);
  if (at != nullptr || (cached_bytes_ == 0 && spare_spans_ == 0)) return at;
  // What is kept for speed must not be what makes an allocation fail.
  release_spares_locked();
  return source_.acquire_span(bytes, align);
}

// --- large allocations -----------------------------------------------------------------------------------------------

void* Heap::allocate_large(std::size_t bytes, std::size_t align, bool zeroed) noexcept {
  if (!usable_) return nullptr;
  drain_deferred();
  const std::size_t span_bytes = (bytes + heap_unit_bytes - 1) & ~(heap_unit_bytes - 1);
  // Whole blocks of the manager where it fills any: neighbours then do not share one.
  align = std::max(align, span_bytes >= heap_span_bytes ? heap_span_bytes : heap_unit_bytes);
  LargeSpan* large = nullptr;
  bool clean = false;
  {
    HeapLockGuard guard(span_lock_);
    large = take_cached_large(span_bytes, align);
    if (large == nullptr) {
      large = acquire_large(span_bytes, align);
      if (large == nullptr) return nullptr;
      clean = true;
    }
    large->state.store(slot_state::live, std::memory_order_relaxed);
    large->prev = nullptr;
    large->next = all_large_;
    if (all_large_ != nullptr) all_large_->prev = large;
    all_large_ = large;
    ++large_count_;
    large_bytes_ += large->bytes;
    map_.set((large->base - window_base_) >> heap_unit_shift, large);
  }
  auto* at = reinterpret_cast<void*>(large->base);
  if (zeroed && !clean) std::memset(at, 0, bytes);
  return at;
}

LargeSpan* Heap::acquire_large(std::size_t bytes, std::size_t align) noexcept {
  LargeSpan* large = recycled_large_;
  if (large != nullptr) {
    recycled_large_ = large->next;
  } else {
    void* memory = arena_.allocate(sizeof(LargeSpan));
    if (memory == nullptr) return nullptr;
    large = new (memory) LargeSpan{};
    large->kind = PageRecord::Kind::large;
  }
  void* at = acquire_from_source(bytes, align);
  const auto base = reinterpret_cast<std::uintptr_t>(at);
  if (at == nullptr || !map_.prepare((base - window_base_) >> heap_unit_shift, 1)) {
    if (at != nullptr) source_.release_span(at, bytes);
    large->next = recycled_large_;
    recycled_large_ = large;
    return nullptr;
  }
  large->base = base;
  large->bytes = bytes;
  span_bytes_ += bytes;
  return large;
}

LargeSpan* Heap::take_cached_large(std::size_t bytes, std::size_t align) noexcept {
  // The newest first: its pages are the warmest. At most an eighth is wasted.
  for (LargeSpan* large = newest_cached_; large != nullptr; large = large->next) {
    if (large->bytes < bytes || large->bytes > bytes + bytes / 8 || (large->base & (align - 1)) != 0) continue;
    (large->prev != nullptr ? large->prev->next : newest_cached_) = large->next;
    (large->next != nullptr ? large->next->prev : oldest_cached_) = large->prev;
    cached_bytes_ -= large->bytes;
    return large;
  }
  return nullptr;
}

void Heap::cache_or_release(LargeSpan* large) noexcept {
  // One that fills more than half of the cache would only drive out what is worth more.
  if (large->bytes > cached_bytes_max_ / 2) {
    span_bytes_ -= large->bytes;
    source_.release_span(reinterpret_cast<void*>(large->base), large->bytes);
    large->next = recycled_large_;
    recycled_large_ = large;
    return;
  }
  large->prev = nullptr;
  large->next = newest_cached_;
  (newest_cached_ != nullptr ? newest_cached_->prev : oldest_cached_) = large;
  newest_cached_ = large;
  cached_bytes_ += large->bytes;
  shrink_large_cache(cached_bytes_max_);
}

void Heap::shrink_large_cache(std::size_t to_bytes) noexcept {
  while (cached_bytes_ > to_bytes) {
    LargeSpan* large = oldest_cached_;
    oldest_cached_ = large->prev;
    (oldest_cached_ != nullptr ? oldest_cached_->next : newest_cached_) = nullptr;
    cached_bytes_ -= large->bytes;
    span_bytes_ -= large->bytes;
    source_.release_span(reinterpret_cast<void*>(large->base), large->bytes);
    large->next = recycled_large_;
    recycled_large_ = large;
  }
}

void Heap::set_large_cache(std::size_t bytes) noexcept {
  HeapLockGuard guard(span_lock_);
  cached_bytes_max_ = bytes;
  shrink_large_cache(bytes);
}

FreeResult Heap::free_large(LargeSpan* large, std::uintptr_t address) noexcept {
  const auto* pointer = reinterpret_cast<const void*>(address);
  if (large->base != address) return report(FreeResult::invalid_pointer, pointer);
  if (large->state.exchange(slot_state::used, std::memory_order_relaxed) != slot_state::live) {
    return report(FreeResult::double_free, pointer);
  }
  HeapLockGuard guard(span_lock_);
  map_.set((address - window_base_) >> heap_unit_shift, &retired_record_);
  (large->prev != nullptr ? large->prev->next : all_large_) = large->next;
  if (large->next != nullptr) large->next->prev = large->prev;
  --large_count_;
  large_bytes_ -= large->bytes;
  cache_or_release(large);
  return FreeResult::freed;
}

// --- looking ---------------------------------------------------------------------------------------------------------

HeapObject Heap::lookup(const void* address) noexcept {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  if (!owns(address) || !usable_) return {};
  HeapLockGuard guard(span_lock_);
  for (const LargeSpan* large = all_large_; large != nullptr; large = large->next) {
    if (at - large->base < large->bytes) {
      return {HeapObject::State::live, reinterpret_cast<const void*>(large->base), large->bytes};
    }
  }
  for (const LargeSpan* large = newest_cached_; large != nullptr; large = large->next) {
    if (at - large->base < large->bytes) {
      return {HeapObject::State::free, reinterpret_cast<const void*>(large->base), large->bytes};
    }
  }
  const PageRecord* record = map_.get((at - window_base_) >> heap_unit_shift);
  if (record == nullptr) return {HeapObject::State::unused, nullptr, 0};
  if (record->kind != PageRecord::Kind::slab) return {HeapObject::State::free, nullptr, 0};
  const auto* slab = static_cast<const Slab*>(record);
  const std::uint32_t slot = slab->slot_of(at);
  if (slot >= slab->slots) return {HeapObject::State::unused, nullptr, 0};
  const bool live = slab->states[slot].load(std::memory_order_relaxed) == slot_state::live;
  return {live ? HeapObject::State::live : HeapObject::State::free,
          reinterpret_cast<const void*>(slab->base + std::uintptr_t{slot} * slab->slot_bytes), slab->slot_bytes};
}

void Heap::visit_spans(SpanVisitor visit, void* context, bool locked) noexcept {
  if (!locked) span_lock_.lock();
  for (SlabSpan* span = all_slab_spans_; span != nullptr; span = span->all_next) {
    visit(context, reinterpret_cast<void*>(span->base), heap_span_bytes, SpanKind::slabs);
  }
  for (LargeSpan* large = all_large_; large != nullptr; large = large->next) {
    visit(context, reinterpret_cast<void*>(large->base), large->bytes, SpanKind::large);
  }
  for (LargeSpan* large = newest_cached_; large != nullptr; large = large->next) {
    visit(context, reinterpret_cast<void*>(large->base), large->bytes, SpanKind::large);
  }
  if (!locked) span_lock_.unlock();
}

void Heap::visit_objects(ObjectVisitor visit, void* context) noexcept {
  drain_deferred();
  HeapLockGuard guard(span_lock_);
  for (SlabSpan* span = all_slab_spans_; span != nullptr; span = span->all_next) {
    for (std::uintptr_t unit = span->base; unit < span->base + heap_span_bytes; unit += heap_unit_bytes) {
      const PageRecord* record = map_.get((unit - window_base_) >> heap_unit_shift);
      if (record == nullptr || record->kind != PageRecord::Kind::slab || record->base != unit) continue;
      const auto* slab = static_cast<const Slab*>(record);
      for (std::uint32_t slot = 0; slot < slab->slots; ++slot) {
        if (slab->states[slot].load(std::memory_order_relaxed) != slot_state::live) continue;
        visit(context, reinterpret_cast<const void*>(slab->base + std::uintptr_t{slot} * slab->slot_bytes),
              slab->slot_bytes);
      }
    }
  }
  for (LargeSpan* large = all_large_; large != nullptr; large = large->next) {
    visit(context, reinterpret_cast<const void*>(large->base), large->bytes);
  }
}

HeapStats Heap::stats() noexcept {
  HeapStats stats;
  stats.metadata_bytes = arena_.mapped_bytes();
  stats.bad_frees = bad_frees_.load(std::memory_order_relaxed);
  stats.deferred_lost = deferred_lost_.load(std::memory_order_relaxed);
  HeapLockGuard guard(span_lock_);
  stats.span_bytes = span_bytes_;
  stats.large_bytes = large_bytes_;
  stats.large_count = large_count_;
  stats.slab_bytes = slab_bytes_;
  stats.live_objects = large_count_;
  stats.live_bytes = large_bytes_;
  for (const SlabSpan* span = all_slab_spans_; span != nullptr; span = span->all_next) {
    for (unsigned unit = 0; unit < span_units; ++unit) {
      const std::uintptr_t at = span->base + unit * heap_unit_bytes;
      const PageRecord* record = map_.get((at - window_base_) >> heap_unit_shift);
      if (record == nullptr || record->kind != PageRecord::Kind::slab || record->base != at) continue;
      const auto* slab = static_cast<const Slab*>(record);
      for (std::uint32_t slot = 0; slot < slab->slots; ++slot) {
        if (slab->states[slot].load(std::memory_order_relaxed) != slot_state::live) continue;
        ++stats.live_objects;
        stats.live_bytes += slab->slot_bytes;
      }
    }
  }
  return stats;
}

}  // namespace ferry::client
