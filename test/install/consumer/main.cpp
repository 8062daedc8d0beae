// Squares on the device, in a container that the CPU filled and then adds up.
#include <ferry/ferry.hpp>

#include <cstdio>
#include <numeric>
#include <vector>

int main() {
  try {
    constexpr std::size_t n = 100'000;
    std::vector<std::uint64_t, ferry::allocator<std::uint64_t>> v(n);
    std::iota(v.begin(), v.end(), std::uint64_t{0});
    ferry::parallel_for(n, [p = v.data()](std::size_t i) { p[i] = ferry::in_device() ? p[i] * p[i] : 0; });
    const std::uint64_t sum = std::accumulate(v.begin(), v.end(), std::uint64_t{0});
    const std::uint64_t expected = (n - 1) * n * (2 * n - 1) / 6;
    std::printf("sum of squares on the device: %llu\n", static_cast<unsigned long long>(sum));
    return sum == expected ? 0 : 1;
  } catch (const ferry::error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 2;
  }
}
