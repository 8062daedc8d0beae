#include "linux/stream_copy.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ferry::linux {
namespace {

using CopyFn = void (*)(std::byte*, const std::byte*, std::size_t);
using ZeroFn = void (*)(std::byte*, std::size_t);

void copy_plain(std::byte* target, const std::byte* source, std::size_t bytes) { std::memcpy(target, source, bytes); }
void zero_plain(std::byte* target, std::size_t bytes) { std::memset(target, 0, bytes); }

#if defined(__x86_64__)
// All variants take whole multiples of 256 bytes at a 64-byte aligned target.
__attribute__((target("avx512f"))) void copy_avx512(std::byte* target, const std::byte* source, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 256) {
    const __m512i a = _mm512_loadu_si512(source + i);
    const __m512i b = _mm512_loadu_si512(source + i + 64);
    const __m512i c = _mm512_loadu_si512(source + i + 128);
    const __m512i d = _mm512_loadu_si512(source + i + 192);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target + i), a);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target + i + 64), b);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target + i + 128), c);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target + i + 192), d);
  }
  _mm_sfence();
}
__attribute__((target("avx512f"))) void zero_avx512(std::byte* target, std::size_t bytes) {
  const __m512i z = _mm512_setzero_si512();
  for (std::size_t i = 0; i < bytes; i += 64) _mm512_stream_si512(reinterpret_cast<__m512i*>(target + i), z);
  _mm_sfence();
}

__attribute__((target("avx2"))) void copy_avx2(std::byte* target, const std::byte* source, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 128) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i + 32));
    const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i + 64));
    const __m256i d = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i + 96));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i), a);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i + 32), b);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i + 64), c);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i + 96), d);
  }
  _mm_sfence();
}
__attribute__((target("avx2"))) void zero_avx2(std::byte* target, std::size_t bytes) {
  const __m256i z = _mm256_setzero_si256();
  for (std::size_t i = 0; i < bytes; i += 32) _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i), z);
  _mm_sfence();
}

void copy_sse2(std::byte* target, const std::byte* source, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 64) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i + 16));
    const __m128i c = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i + 32));
    const __m128i d = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i + 48));
    _mm_stream_si128(reinterpret_cast<__m128i*>(target + i), a);
    _mm_stream_si128(reinterpret_cast<__m128i*>(target + i + 16), b);
    _mm_stream_si128(reinterpret_cast<__m128i*>(target + i + 32), c);
    _mm_stream_si128(reinterpret_cast<__m128i*>(target + i + 48), d);
  }
  _mm_sfence();
}
void zero_sse2(std::byte* target, std::size_t bytes) {
  const __m128i z = _mm_setzero_si128();
  for (std::size_t i = 0; i < bytes; i += 16) _mm_stream_si128(reinterpret_cast<__m128i*>(target + i), z);
  _mm_sfence();
}
#endif

struct Variant {
  const char* name;
  bool (*runs_here)();
  CopyFn copy;
  ZeroFn zero;
};

constexpr Variant variants[] = {
#if defined(__x86_64__)
    {"avx512", [] { return __builtin_cpu_supports("avx512f") != 0; }, copy_avx512, zero_avx512},
    {"avx2", [] { return __builtin_cpu_supports("avx2") != 0; }, copy_avx2, zero_avx2},
    {"sse2", [] { return true; }, copy_sse2, zero_sse2},
#endif
    {"plain", [] { return true; }, copy_plain, zero_plain},
};

const Variant& chosen() {
  static const Variant& best = []() -> const Variant& {
    for (const auto& v : variants) {
      if (v.runs_here()) return v;
    }
    __builtin_unreachable();
  }();
  return best;
}

constexpr std::size_t step = 256;

std::size_t bytes_to_alignment(const void* target, std::size_t bytes) {
  const std::size_t off = reinterpret_cast<std::uintptr_t>(target) % 64;
  const std::size_t head = off == 0 ? 0 : 64 - off;
  return head < bytes ? head : bytes;
}

void copy_with(const Variant& v, std::byte* to, const std::byte* from, std::size_t bytes) {
  const std::size_t head = bytes_to_alignment(to, bytes);
  std::memcpy(to, from, head);
  const std::size_t body = (bytes - head) / step * step;
  if (body != 0) v.copy(to + head, from + head, body);
  std::memcpy(to + head + body, from + head + body, bytes - head - body);
}

}  // namespace

void stream_copy(void* target, const void* source, std::size_t bytes) {
  copy_with(chosen(), static_cast<std::byte*>(target), static_cast<const std::byte*>(source), bytes);
}

void stream_zero(void* target, std::size_t bytes) {
  auto* to = static_cast<std::byte*>(target);
  const std::size_t head = bytes_to_alignment(to, bytes);
  std::memset(to, 0, head);
  const std::size_t body = (bytes - head) / step * step;
  if (body != 0) chosen().zero(to + head, body);
  std::memset(to + head + body, 0, bytes - head - body);
}

const char* stream_copy_kind() { return chosen().name; }

namespace detail {
bool stream_copy_with(const char* kind, void* target, const void* source, std::size_t bytes) {
  for (const auto& v : variants) {
    if (std::strcmp(v.name, kind) != 0) continue;
    if (!v.runs_here()) return false;
    copy_with(v, static_cast<std::byte*>(target), static_cast<const std::byte*>(source), bytes);
    return true;
  }
  return false;
}
}  // namespace detail

}  // namespace ferry::linux
