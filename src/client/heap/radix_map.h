// From a unit of the window to a record, in two loads. Two levels rather than one flat array, so that mlockall() and
// memory limits of a program do not meet gigabytes of it. Readers need no lock; writers hold their owner's.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "client/heap/metadata_arena.h"

namespace ferry::client {

template <typename T>
class RadixMap {
 public:
  /// For units 0 .. units-1. False when there is no memory.
  [[nodiscard]] bool init(MetadataArena& arena, std::size_t units) noexcept {
    arena_ = &arena;
    roots_ = (units + leaf_units - 1) / leaf_units;
    root_ = static_cast<std::atomic<Leaf*>*>(arena.allocate(roots_ * sizeof(std::atomic<Leaf*>)));
    return root_ != nullptr;
  }

  /// `unit` is below what init was given.
  [[nodiscard]] T* get(std::size_t unit) const noexcept {
    const Leaf* leaf = root_[unit >> leaf_shift].load(std::memory_order_acquire);
    if (__builtin_expect(leaf == nullptr, 0)) return nullptr;
    return leaf->entries[unit & (leaf_units - 1)].load(std::memory_order_acquire);
  }

  /// Makes set() of these units succeed. False when there is no memory.
  [[nodiscard]] bool prepare(std::size_t first, std::size_t count) noexcept {
    for (std::size_t i = first >> leaf_shift; i <= (first + count - 1) >> leaf_shift; ++i) {
      if (root_[i].load(std::memory_order_relaxed) != nullptr) continue;
      void* leaf = arena_->allocate(sizeof(Leaf));
      if (leaf == nullptr) return false;
      root_[i].store(static_cast<Leaf*>(leaf), std::memory_order_release);
    }
    return true;
  }

  void set(std::size_t unit, T* record) noexcept {
    root_[unit >> leaf_shift]
        .load(std::memory_order_relaxed)
        ->entries[unit & (leaf_units - 1)]
        .store(record, std::memory_order_release);
  }

 private:
  static constexpr unsigned leaf_shift = 14;  // 1 GiB of the window, 128 KiB of pointers
  static constexpr std::size_t leaf_units = std::size_t{1} << leaf_shift;
  struct Leaf {
    std::atomic<T*> entries[leaf_units];
  };

  MetadataArena* arena_ = nullptr;
  std::atomic<Leaf*>* root_ = nullptr;
  std::size_t roots_ = 0;
};

}  // namespace ferry::client
