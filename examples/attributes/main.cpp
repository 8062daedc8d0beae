// A table that everybody reads and a grid that a device writes, steered by attributes instead of by copies: what a program
// says once about its memory, and what Ferry then does with it.
//
//   attributes [devices to use, default all]
#include <fmt/core.h>

#include <chrono>
#include <cstdlib>
#include <ferry/svm.hpp>
#include <vector>

namespace {

constexpr std::size_t cells = std::size_t{1} << 20;
constexpr std::size_t table_entries = 4096;

template <typename T>
struct Pages {
  /// Whole pages of their own: attributes are said of pages.
  explicit Pages(std::size_t count) : bytes((count * sizeof(T) + 4095) / 4096 * 4096) {
    data = static_cast<T*>(ferry_alloc_aligned(bytes, 4096, FERRY_AUTOMATIC, nullptr));
    if (data == nullptr) throw std::bad_alloc();
  }
  ~Pages() { ferry_free(data, nullptr); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  std::size_t bytes;
  T* data;
};

}  // namespace

int main(int argc, char** argv) try {
  const unsigned all = ferry::device_count();
  const unsigned devices = argc > 1 ? std::min<unsigned>(all, static_cast<unsigned>(std::atoi(argv[1]))) : all;
  const ferry::events seen({ferry::event_kind::prefetch, ferry::event_kind::fault_end, ferry::event_kind::migrate_end});

  const Pages<float> table(table_entries);
  const Pages<float> grid(cells);
  for (std::size_t i = 0; i < table_entries; ++i) table.data[i] = static_cast<float>(i % 7);
  for (std::size_t i = 0; i < cells; ++i) grid.data[i] = 1;

  // The table: whoever reads it may, nobody's kernel may change it, and one that tries is stopped with an error.
  ferry::attributes().set(ferry::svm_flag::gpu_ro).apply(table.data, table.bytes);
  // The grid: device 0 works on it, so it goes there now and stays preferred there; other devices keep off.
  ferry::attributes grid_wishes;
  grid_wishes.preferred(0).granularity(9);
  for (unsigned d = 1; d < all; ++d) grid_wishes.access(d, ferry::device_access::none);
  grid_wishes.prefetch(0).apply(grid.data, grid.bytes);

  // The same list with a line that cannot be: nothing of it happens, and the error says which line and why.
  try {
    ferry::attributes().preferred(0).prefetch(all + 7).apply(grid.data, grid.bytes);
  } catch (const ferry::error& e) {
    fmt::print("refused, as it should be: {}\n", e.what());
  }

  for (unsigned d = 0; d < devices; ++d) {
    ferry::queue q(d);
    if (d == 0) {
      q.parallel_for(cells, [g = grid.data, t = table.data](std::size_t i) { g[i] += t[i % table_entries]; }).wait();
      continue;
    }
    try {
      q.parallel_for(1, [g = grid.data](std::size_t) { g[0] = 0; }).wait();
      fmt::print("device {} wrote the grid, which it may not\n", d);
      return 1;
    } catch (const ferry::kernel_error& e) {
      fmt::print("device {} keeps off the grid: {}\n", d, e.what());
    }
  }

  const ferry::span_attributes now = ferry::attributes_of(grid.data, grid.bytes);
  fmt::print("grid: preferred device {}, access of device 0: {}\n", now.preferred.device().value_or(99),
             now.access[0] == ferry::device_access::migrate ? "yes" : "no");

  unsigned moves = 0;
  unsigned refused = 0;
  for (auto batch = seen.read(); !batch.empty(); batch = seen.read()) {
    for (const ferry::event& e : batch) {
      moves += ferry::kind_of(e) == ferry::event_kind::migrate_end ? 1 : 0;
      refused += ferry::kind_of(e) == ferry::event_kind::fault_end && e.error != FERRY_OK ? 1 : 0;
    }
  }
  fmt::print("events: {}, {} that were refused\n", moves > 0 ? "pages moved" : "nothing moved", refused);

  double sum = 0;
  for (std::size_t i = 0; i < cells; ++i) sum += grid.data[i];
  double expected = static_cast<double>(cells);
  for (std::size_t i = 0; i < cells; ++i) expected += static_cast<double>(i % table_entries % 7);
  fmt::print("sum {} {}\n", sum, sum == expected ? "is right" : "is WRONG");
  return sum == expected && refused == (devices == 0 ? 0 : devices - 1) ? 0 : 1;
} catch (const ferry::error& e) {
  fmt::print(stderr, "attributes: {}\n", e.what());
  return 1;
}
