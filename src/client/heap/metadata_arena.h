// Memory for the heap's own records: private mappings outside of the window, handed out by a bump pointer and given back
// all at once. What is recycled is recycled by type by its user, so a stale pointer to a record always finds a record.
#pragma once

#include <cstddef>
#include <cstdint>

#include "client/heap/lock.h"

namespace ferry::client {

class MetadataArena {
 public:
  constexpr MetadataArena() = default;
  ~MetadataArena();
  MetadataArena(const MetadataArena&) = delete;
  MetadataArena& operator=(const MetadataArena&) = delete;

  /// Zeroed, 64-byte aligned; nullptr when the kernel has no memory.
  [[nodiscard]] void* allocate(std::size_t bytes) noexcept;
  [[nodiscard]] std::size_t mapped_bytes() noexcept;

  [[nodiscard]] HeapLock& lock() noexcept { return lock_; }

 private:
  struct Chunk {
    Chunk* next;
    std::size_t bytes;
  };
  static constexpr std::size_t chunk_bytes = std::size_t{1} << 20;

  std::byte* new_chunk(std::size_t bytes) noexcept;

  HeapLock lock_;
  Chunk* chunks_ = nullptr;
  std::byte* cursor_ = nullptr;
  std::size_t left_ = 0;
  std::size_t mapped_ = 0;
};

}  // namespace ferry::client
