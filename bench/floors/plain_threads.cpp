// The floor of a kernel: the same body on threads of one ordinary process over ordinary memory.
#include <algorithm>
#include <atomic>
#include <thread>

#include "floors/floors.h"
#include "floors/posix.h"
#include "harness.h"

namespace ferry::bench::floors {

namespace {

/// Runs `body(thread)` on all threads at once; returns nanoseconds from the first start to the last end.
template <typename Body>
double run_together(unsigned threads, const Body& body) {
  std::atomic<unsigned> ready{0};
  std::vector<std::uint64_t> begins(threads);
  std::vector<std::uint64_t> ends(threads);
  {
    std::vector<std::jthread> workers;
    for (unsigned index = 0; index < threads; ++index) {
      workers.emplace_back([&, index] {
        ready.fetch_add(1);
        Spin spin;
        while (ready.load() < threads) spin.pause();
        begins[index] = now_ns();
        body(index);
        ends[index] = now_ns();
      });
    }
  }
  return static_cast<double>(*std::max_element(ends.begin(), ends.end()) -
                             *std::min_element(begins.begin(), begins.end()));
}

}  // namespace

double plain_triad(unsigned threads, double* a, const double* b, const double* c, std::size_t count, int laps) {
  const double elapsed_ns = run_together(threads, [&](unsigned index) {
    const std::size_t begin = count * index / threads;
    const std::size_t end = count * (index + 1) / threads;
    for (int lap = 0; lap < laps; ++lap) {
      for (std::size_t i = begin; i < end; ++i) triad_element(a, b, c, 3.0 + lap, i);
    }
  });
  return static_cast<double>(count) * laps * 24 / elapsed_ns;
}

double plain_chase(unsigned threads, const std::vector<const ChaseNode*>& starts, std::size_t steps,
                   std::vector<std::uint64_t>& sums) {
  std::atomic<std::size_t> taken{0};
  sums.assign(starts.size(), 0);
  const double elapsed_ns = run_together(threads, [&](unsigned /*index*/) {
    for (std::size_t chain = taken.fetch_add(1); chain < starts.size(); chain = taken.fetch_add(1)) {
      sums[chain] = chase(starts[chain], steps);
    }
  });
  return static_cast<double>(starts.size() * steps) * 1e3 / elapsed_ns;
}

}  // namespace ferry::bench::floors
