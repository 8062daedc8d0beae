// One page in, fewer bytes out: zstd, lz4, or nothing; checksums; pages that repeat one word. A PageCodec belongs to
// one thread; the free functions are for any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace ferry::linux {

enum class Codec : std::uint8_t {
  none,  ///< pages go to the file as they are
  lz4,
  zstd,
};

[[nodiscard]] const char* to_string(Codec codec);

class PageCodec {
 public:
  /// `level` is zstd's, 1 to 19; lz4 has none.
  PageCodec(Codec codec, int level);
  ~PageCodec();
  PageCodec(const PageCodec&) = delete;
  PageCodec& operator=(const PageCodec&) = delete;

  /// Bytes written to `out`, or 0: not possible in `out_bytes`. The page must not change meanwhile.
  std::size_t compress(const std::byte* page, std::byte* out, std::size_t out_bytes);
  /// False: these bytes are no page. Writes at most a page, whatever the bytes are.
  [[nodiscard]] bool decompress(const std::byte* in, std::size_t in_bytes, std::byte* page);

 private:
  struct Contexts;
  Codec codec_;
  int level_;
  std::unique_ptr<Contexts> contexts_;
};

[[nodiscard]] std::uint64_t page_checksum(const std::byte* page);
/// True: the page is one 64-bit word over and over.
[[nodiscard]] bool same_filled(const std::byte* page, std::uint64_t& word);
void fill_page(std::byte* page, std::uint64_t word);

}  // namespace ferry::linux
