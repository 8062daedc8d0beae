#include "linux/store/codec.h"

#include <lz4.h>
#include <xxhash.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/types.h"

namespace ferry::linux {

const char* to_string(Codec codec) {
  switch (codec) {
    case Codec::none: return "none";
    case Codec::lz4: return "lz4";
    case Codec::zstd: return "zstd";
  }
  return "?";
}

struct PageCodec::Contexts {
  ZSTD_CCtx* compress = nullptr;
  ZSTD_DCtx* decompress = nullptr;
  std::unique_ptr<char[]> lz4;
  ~Contexts() {
    ZSTD_freeCCtx(compress);
    ZSTD_freeDCtx(decompress);
  }
};

PageCodec::PageCodec(Codec codec, int level) : codec_(codec), level_(level), contexts_(std::make_unique<Contexts>()) {
  if (codec_ == Codec::zstd) {
    contexts_->compress = ZSTD_createCCtx();
    contexts_->decompress = ZSTD_createDCtx();
    FERRY_CHECK(contexts_->compress != nullptr && contexts_->decompress != nullptr);
    ZSTD_CCtx* const c = contexts_->compress;
    ZSTD_CCtx_setParameter(c, ZSTD_c_compressionLevel, level_);
    // Who stores a page knows its size and checks it itself.
    ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, 0);
    ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 0);
  } else if (codec_ == Codec::lz4) {
    contexts_->lz4 = std::make_unique<char[]>(static_cast<std::size_t>(LZ4_sizeofState()));
  }
}

PageCodec::~PageCodec() = default;

std::size_t PageCodec::compress(const std::byte* page, std::byte* out, std::size_t out_bytes) {
  switch (codec_) {
    case Codec::none: return 0;
    case Codec::zstd: {
      const std::size_t n = ZSTD_compress2(contexts_->compress, out, out_bytes, page, page_bytes);
      return ZSTD_isError(n) != 0 ? 0 : n;
    }
    case Codec::lz4: {
      const int n =
          LZ4_compress_fast_extState(contexts_->lz4.get(), reinterpret_cast<const char*>(page),
                                     reinterpret_cast<char*>(out), page_bytes, static_cast<int>(out_bytes), level_);
      return n > 0 ? static_cast<std::size_t>(n) : 0;
    }
  }
  return 0;
}

bool PageCodec::decompress(const std::byte* in, std::size_t in_bytes, std::byte* page) {
  switch (codec_) {
    case Codec::none: return false;
    case Codec::zstd: return ZSTD_decompressDCtx(contexts_->decompress, page, page_bytes, in, in_bytes) == page_bytes;
    case Codec::lz4:
      return LZ4_decompress_safe(reinterpret_cast<const char*>(in), reinterpret_cast<char*>(page),
                                 static_cast<int>(in_bytes), page_bytes) == static_cast<int>(page_bytes);
  }
  return false;
}

std::uint64_t page_checksum(const std::byte* page) { return XXH3_64bits(page, page_bytes); }

bool same_filled(const std::byte* page, std::uint64_t& word) {
  std::memcpy(&word, page, sizeof word);
  // Most pages differ within the first words: memcmp of the page with itself, one word on, stops there.
  return std::memcmp(page, page + sizeof word, page_bytes - sizeof word) == 0;
}

void fill_page(std::byte* page, std::uint64_t word) {
  auto* const words = reinterpret_cast<std::uint64_t*>(page);
  std::fill(words, words + page_bytes / sizeof word, word);
}

}  // namespace ferry::linux
