// See metadata_arena.h.
#include "client/heap/metadata_arena.h"

#include <sys/mman.h>

#include <new>

namespace ferry::client {

namespace {
constexpr std::size_t align_bytes = 64;
}

MetadataArena::~MetadataArena() {
  for (Chunk* chunk = chunks_; chunk != nullptr;) {
    Chunk* next = chunk->next;
    ::munmap(chunk, chunk->bytes);
    chunk = next;
  }
}

std::byte* MetadataArena::new_chunk(std::size_t bytes) noexcept {
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return nullptr;
  chunks_ = new (at) Chunk{chunks_, bytes};
  mapped_ += bytes;
  return static_cast<std::byte*>(at) + align_bytes;
}

void* MetadataArena::allocate(std::size_t bytes) noexcept {
  if (bytes > SIZE_MAX / 2) return nullptr;
  bytes = (bytes + align_bytes - 1) & ~(align_bytes - 1);
  HeapLockGuard guard(lock_);
  if (bytes > left_) {
    if (bytes > chunk_bytes / 4) {
      // A chunk of its own, so that the rest of the current one is not given up.
      return new_chunk((bytes + align_bytes + 4095) & ~std::size_t{4095});
    }
    std::byte* at = new_chunk(chunk_bytes);
    if (at == nullptr) return nullptr;
    cursor_ = at;
    left_ = chunk_bytes - align_bytes;
  }
  std::byte* result = cursor_;
  cursor_ += bytes;
  left_ -= bytes;
  return result;
}

std::size_t MetadataArena::mapped_bytes() noexcept {
  HeapLockGuard guard(lock_);
  return mapped_;
}

}  // namespace ferry::client
