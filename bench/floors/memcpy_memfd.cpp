// The floor of a migration: copying between two memory files that are kept and warm, and nothing else.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <stdexcept>
#include <thread>

#include "floors/floors.h"
#include "floors/posix.h"
#include "harness.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ferry::bench::floors {

namespace {

#if defined(__x86_64__)
__attribute__((target("avx512f"))) void copy_streaming_avx512(std::byte* to, const std::byte* from, std::size_t bytes) {
  for (std::size_t offset = 0; offset < bytes; offset += 256) {
    const __m512i a = _mm512_load_si512(from + offset);
    const __m512i b = _mm512_load_si512(from + offset + 64);
    const __m512i c = _mm512_load_si512(from + offset + 128);
    const __m512i d = _mm512_load_si512(from + offset + 192);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + offset), a);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + offset + 64), b);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + offset + 128), c);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + offset + 192), d);
  }
  _mm_sfence();
}

void copy_streaming_sse2(std::byte* to, const std::byte* from, std::size_t bytes) {
  for (std::size_t offset = 0; offset < bytes; offset += 64) {
    const auto* source = reinterpret_cast<const __m128i*>(from + offset);
    auto* target = reinterpret_cast<__m128i*>(to + offset);
    for (int part = 0; part < 4; ++part) _mm_stream_si128(target + part, _mm_load_si128(source + part));
  }
  _mm_sfence();
}

void copy_streaming(std::byte* to, const std::byte* from, std::size_t bytes) {
  if (__builtin_cpu_supports("avx512f") != 0) {
    copy_streaming_avx512(to, from, bytes);
  } else {
    copy_streaming_sse2(to, from, bytes);
  }
}
#else
/// This architecture's memcpy chooses such stores by itself where they pay.
void copy_streaming(std::byte* to, const std::byte* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
#endif

void copy_block(CopyKind kind, std::byte* to, const std::byte* from, std::size_t bytes) {
  if (kind == CopyKind::memcpy) {
    std::memcpy(to, from, bytes);
  } else {
    copy_streaming(to, from, bytes);
  }
}

}  // namespace

struct MemcpyMemfd::State {
  unsigned threads;
  CopyKind kind;
  std::size_t block;
  Fd source_file;
  Fd target_file;
  Mapping source;
  Mapping target;
  std::vector<std::uint32_t> order;  ///< every block once, shuffled
  std::size_t next = 0;              ///< position in `order`; goes round, so that a sample starts where the last ended
};

MemcpyMemfd::MemcpyMemfd(unsigned threads, std::size_t bytes_each, CopyKind kind, std::size_t block)
    : state_(std::make_unique<State>()) {
  if (threads == 0 || bytes_each < block || bytes_each % block != 0 || block % page_bytes != 0) {
    throw std::invalid_argument("the copy floor needs at least one thread and whole blocks");
  }
  state_->threads = threads;
  state_->kind = kind;
  state_->block = block;
  state_->source_file = warm_memfd("ferry-bench-from", bytes_each);
  state_->target_file = warm_memfd("ferry-bench-to", bytes_each);
  state_->source = Mapping(state_->source_file.get(), bytes_each);
  state_->target = Mapping(state_->target_file.get(), bytes_each);
  // A manager has its mappings filled; so has the floor.
  for (std::size_t offset = 0; offset < bytes_each; offset += page_bytes) {
    state_->target.data()[offset] = state_->source.data()[offset];
  }
  state_->order.resize(bytes_each / block);
  for (std::uint32_t index = 0; index < state_->order.size(); ++index) state_->order[index] = index;
  std::shuffle(state_->order.begin(), state_->order.end(), std::mt19937(1));
}

MemcpyMemfd::~MemcpyMemfd() = default;

double MemcpyMemfd::sample(std::size_t blocks) {
  State& state = *state_;
  std::atomic<std::size_t> taken{0};
  std::atomic<unsigned> ready{0};
  std::vector<std::uint64_t> begins(state.threads);
  std::vector<std::uint64_t> ends(state.threads);
  {
    std::vector<std::jthread> workers;
    for (unsigned index = 0; index < state.threads; ++index) {
      workers.emplace_back([&, index] {
        ready.fetch_add(1);
        Spin spin;
        while (ready.load() < state.threads) spin.pause();
        begins[index] = now_ns();
        for (std::size_t turn = taken.fetch_add(1); turn < blocks; turn = taken.fetch_add(1)) {
          const std::size_t offset = state.order[(state.next + turn) % state.order.size()] * state.block;
          copy_block(state.kind, state.target.data() + offset, state.source.data() + offset, state.block);
        }
        ends[index] = now_ns();
      });
    }
  }
  state.next = (state.next + blocks) % state.order.size();
  const std::uint64_t begin_ns = *std::min_element(begins.begin(), begins.end());
  const std::uint64_t end_ns = *std::max_element(ends.begin(), ends.end());
  return static_cast<double>(blocks * state.block) / static_cast<double>(end_ns - begin_ns);
}

}  // namespace ferry::bench::floors
