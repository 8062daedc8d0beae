// Allocations that a checkpoint brought back at the addresses that they had. They are not the heap's: its slabs are cut
// for its own; a span here goes when the last allocation in it is freed. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ferry::client {

struct RestoredMemory {
  struct Part {
    std::uint64_t address;
    std::uint64_t bytes;
  };
  std::vector<Part> spans;    ///< rising, apart from each other
  std::vector<Part> objects;  ///< rising, each inside a span, none in two
};

/// From now on these are allocations. The caller is in a NativeMallocScope. May throw std::bad_alloc: nothing is kept.
void add_restored(const RestoredMemory& memory);
/// Frees an allocation that was restored. False: there is none that starts there.
[[nodiscard]] bool free_restored(void* pointer) noexcept;
/// Around a fork, whose child has these allocations too: nobody changes them in between. The heap's locks may be held.
void lock_restored() noexcept;
void unlock_restored() noexcept;
/// REQUIRES: lock_restored(), in this process or in the one that it was forked from.
void visit_restored_spans(void (*span)(void* context, void* start, std::size_t bytes), void* context) noexcept;
/// Those that live, and their spans. The visitors may not call into this.
void visit_restored(void (*object)(void* context, const void* start, std::size_t bytes),
                    void (*span)(void* context, void* start, std::size_t bytes), void* context);

}  // namespace ferry::client
