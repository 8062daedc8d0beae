#include <array>
#include <cstdlib>

#include "own_library.h"

namespace ferry::test {
namespace {

std::atomic<std::uint32_t> zeroed[plain_count];
template <std::size_t... I>
constexpr std::array<std::uint32_t, sizeof...(I)> sevens(std::index_sequence<I...>) {
  return {static_cast<std::uint32_t>(I % 7)...};
}
std::array<std::uint32_t, 4000> initialised = sevens(std::make_index_sequence<4000>());
std::atomic<int> calls{0};

}  // namespace

std::atomic<std::uint32_t>& plain_zeroed(std::size_t i) { return zeroed[i]; }
std::atomic<std::uint32_t>& plain_initialised(std::size_t i) {
  return reinterpret_cast<std::atomic<std::uint32_t>&>(initialised[i % initialised.size()]);
}
long plain_parse(const char* text) {
  ++calls;
  return std::strtol(text, nullptr, 10);
}
int plain_calls() { return calls; }

}  // namespace ferry::test

extern "C" long ferry_test_parse(const char* text) { return ferry::test::plain_parse(text); }
extern "C" int ferry_test_calls() { return ferry::test::plain_calls(); }
