// A set of pages of one block: 512 bits. All operations are O(words); runs are walked without touching cleared words.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "base/types.h"

namespace ferry {

/// Bits that are set. In place: without an instruction for it (x86-64 before v2) the library's is a call.
[[nodiscard]] constexpr unsigned count_set(std::uint64_t word) {
#ifdef __POPCNT__
  return static_cast<unsigned>(std::popcount(word));
#else
  word -= (word >> 1U) & 0x5555'5555'5555'5555U;
  word = (word & 0x3333'3333'3333'3333U) + ((word >> 2U) & 0x3333'3333'3333'3333U);
  word = (word + (word >> 4U)) & 0x0f0f'0f0f'0f0f'0f0fU;
  return static_cast<unsigned>((word * 0x0101'0101'0101'0101U) >> 56U);
#endif
}

class PageMask {
 public:
  static constexpr unsigned word_count = block_pages / 64;

  constexpr PageMask() = default;

  [[nodiscard]] static constexpr PageMask all() {
    PageMask m;
    m.words_.fill(~std::uint64_t{0});
    return m;
  }
  [[nodiscard]] static constexpr PageMask range(unsigned first, unsigned count) {
    PageMask m;
    m.set_range(first, count);
    return m;
  }

  [[nodiscard]] constexpr bool test(unsigned bit) const { return ((words_[bit / 64] >> (bit % 64)) & 1U) != 0; }
  constexpr void set(unsigned bit) { words_[bit / 64] |= std::uint64_t{1} << (bit % 64); }
  constexpr void reset(unsigned bit) { words_[bit / 64] &= ~(std::uint64_t{1} << (bit % 64)); }

  constexpr void set_range(unsigned first, unsigned count) {
    for_words(first, count, [this](unsigned w, std::uint64_t bits) { words_[w] |= bits; });
  }
  constexpr void reset_range(unsigned first, unsigned count) {
    for_words(first, count, [this](unsigned w, std::uint64_t bits) { words_[w] &= ~bits; });
  }

  [[nodiscard]] constexpr bool none() const {
    std::uint64_t any = 0;
    for (const auto w : words_) any |= w;
    return any == 0;
  }
  [[nodiscard]] constexpr bool any() const { return !none(); }
  [[nodiscard]] constexpr unsigned count() const {
    unsigned n = 0;
    for (const auto w : words_) n += count_set(w);
    return n;
  }
  [[nodiscard]] constexpr bool contains(const PageMask& o) const { return (o & ~*this).none(); }
  [[nodiscard]] constexpr bool intersects(const PageMask& o) const { return (*this & o).any(); }

  constexpr PageMask& operator|=(const PageMask& o) {
    for (unsigned i = 0; i < word_count; ++i) words_[i] |= o.words_[i];
    return *this;
  }
  constexpr PageMask& operator&=(const PageMask& o) {
    for (unsigned i = 0; i < word_count; ++i) words_[i] &= o.words_[i];
    return *this;
  }
  [[nodiscard]] friend constexpr PageMask operator|(PageMask a, const PageMask& b) { return a |= b; }
  [[nodiscard]] friend constexpr PageMask operator&(PageMask a, const PageMask& b) { return a &= b; }
  [[nodiscard]] constexpr PageMask operator~() const {
    PageMask m;
    for (unsigned i = 0; i < word_count; ++i) m.words_[i] = ~words_[i];
    return m;
  }
  constexpr PageMask& remove(const PageMask& o) {
    for (unsigned i = 0; i < word_count; ++i) words_[i] &= ~o.words_[i];
    return *this;
  }
  friend constexpr bool operator==(const PageMask&, const PageMask&) = default;

  /// First set bit at or after `from`, or block_pages.
  [[nodiscard]] constexpr unsigned find_set(unsigned from) const { return find(from, 0); }
  /// First cleared bit at or after `from`, or block_pages.
  [[nodiscard]] constexpr unsigned find_clear(unsigned from) const { return find(from, ~std::uint64_t{0}); }

  /// Calls fn(first, count) for each maximal run of set bits, in rising order.
  template <typename Fn>
  constexpr void for_each_run(Fn&& fn) const {
    for (unsigned first = find_set(0); first < block_pages;) {
      const unsigned end = find_clear(first);
      fn(first, end - first);
      first = find_set(end);
    }
  }

 private:
  template <typename Fn>
  static constexpr void for_words(unsigned first, unsigned count, Fn&& fn) {
    const unsigned end = first + count;
    for (unsigned bit = first; bit < end;) {
      const unsigned in_word = bit % 64;
      const unsigned take = (64 - in_word) < (end - bit) ? (64 - in_word) : (end - bit);
      const std::uint64_t bits = (take == 64 ? ~std::uint64_t{0} : ((std::uint64_t{1} << take) - 1)) << in_word;
      fn(bit / 64, bits);
      bit += take;
    }
  }
  [[nodiscard]] constexpr unsigned find(unsigned from, std::uint64_t flip) const {
    if (from >= block_pages) return block_pages;
    unsigned w = from / 64;
    std::uint64_t bits = (words_[w] ^ flip) & (~std::uint64_t{0} << (from % 64));
    while (bits == 0) {
      if (++w == word_count) return block_pages;
      bits = words_[w] ^ flip;
    }
    return w * 64 + static_cast<unsigned>(std::countr_zero(bits));
  }

  std::array<std::uint64_t, word_count> words_{};
};

}  // namespace ferry
