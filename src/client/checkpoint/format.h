// The file of a checkpoint. Written once from front to back; read twice, the first time only to see that all of it is
// good. Everything is little-endian and bounded: docs/design/0021-checkpoint.md.
//
//   FileHeader
//   span_count   x FileSpan       parts of the window that were managed memory, rising, apart from each other
//   object_count x FileObject     allocations, rising, each inside a span
//   run_count    x FileRun        attributes of runs of pages; what is missing has defaults
//   chunks: FileChunk and its bytes; the last one has no bytes and counts the others
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace ferry::client::checkpoint {

inline constexpr char magic[8] = {'F', 'E', 'R', 'R', 'Y', 'C', 'K', 'P'};
inline constexpr std::uint32_t version = 1;
inline constexpr std::uint64_t chunk_bytes_max = std::uint64_t{1} << 20;
/// Of compressed bytes: above what any codec makes of a chunk, so that less is refused before it is read.
inline constexpr std::uint32_t stored_bytes_max = 2U << 20U;

struct FileHeader {
  char magic[8];
  std::uint32_t version;
  std::uint32_t page_bytes;
  std::uint64_t window_base;
  std::uint64_t window_bytes;
  std::uint64_t span_count;
  std::uint64_t object_count;
  std::uint64_t run_count;
  std::uint64_t tables_hash;  ///< of the three tables
  std::uint64_t header_hash;  ///< of what stands before it
};
static_assert(sizeof(FileHeader) == 72);

struct FileSpan {
  std::uint64_t address;
  std::uint64_t bytes;
};
struct FileObject {
  std::uint64_t address;
  std::uint64_t bytes;
};
struct FileRun {
  std::uint64_t address;
  std::uint64_t bytes;
  std::uint8_t preferred;
  std::uint8_t prefetch;
  std::uint8_t granularity;
  std::uint8_t flags;
  std::uint32_t access;  ///< two bits a device
};
static_assert(sizeof(FileSpan) == 16 && sizeof(FileObject) == 16 && sizeof(FileRun) == 24);

struct FileChunk {
  std::uint64_t address;       ///< 0: the last one
  std::uint32_t bytes;         ///< of memory; the last one: 0
  std::uint32_t stored_bytes;  ///< that follow; equal to `bytes`: not compressed, less: zstd
  std::uint64_t number;        ///< counts from 0
  std::uint64_t hash;          ///< of what stands before it and of the memory
};
static_assert(sizeof(FileChunk) == 32);

/// Finds damage, not malice: who can write the file can write what it wants to be restored.
class Hash {
 public:
  Hash& add(const void* data, std::size_t bytes) {
    const auto* at = static_cast<const unsigned char*>(data);
    for (; bytes >= 8; at += 8, bytes -= 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, at, 8);
      mix(word);
    }
    std::uint64_t rest = 0;
    if (bytes != 0) std::memcpy(&rest, at, bytes);  // an empty table has no address
    mix(rest ^ (std::uint64_t{bytes} << 56U));
    return *this;
  }
  [[nodiscard]] std::uint64_t value() const { return state_ ^ (state_ >> 32U); }

 private:
  void mix(std::uint64_t word) {
    state_ = (state_ ^ word) * 0x9e37'79b9'7f4a'7c15U;
    state_ ^= state_ >> 29U;
  }
  std::uint64_t state_ = 0x4645'5252'5943'4b50U;
};

}  // namespace ferry::client::checkpoint
