// A device fault on a system page that is mapped in place, against the same fault served by nothing but system calls.
#include <memory>
#include <stdexcept>

#include <fmt/format.h>

#include "floors/floors.h"
#include "machine.h"
#include "rows/fault_device.h"
#include "rows/rows.h"
#include "rows/session.h"

namespace ferry::bench {

namespace {

constexpr std::size_t words_per_page = 4096 / sizeof(std::uint64_t);
constexpr std::size_t pages = 4096;

Row owed(const std::string& name) { return {.name = name, .target = 1.5, .bound = Bound::at_most, .unit = "us"}; }

}  // namespace

double sample_device_fault_us(queue& launches, std::size_t wave) {
  const Array<std::uint64_t> memory(pages * words_per_page, placement::system);
  memory.fill(1);
  std::uint64_t* data = memory.data();
  const std::uint64_t faults_before = counters().device_faults;
  const std::uint64_t begin_ns = now_ns();
  launches
      .launch(
          grid{.items = pages, .wave = wave}, [data](item at) { data[at.global() * words_per_page] = at.global(); },
          "touch")
      .wait();
  const std::uint64_t elapsed_ns = now_ns() - begin_ns;
  const std::uint64_t faults = counters().device_faults - faults_before;
  for (std::size_t page = 0; page < pages; ++page) {
    if (data[page * words_per_page] != page) throw std::runtime_error(fmt::format("page {} lost its write", page));
  }
  // Faster because it faulted less often would be another measurement.
  if (faults < pages * 9 / 10) throw std::runtime_error(fmt::format("{} pages gave only {} faults", pages, faults));
  return static_cast<double>(elapsed_ns) / 1e3 / static_cast<double>(faults);
}

namespace {

Bench make(const std::string& name, const std::string& about, unsigned cus,
           std::vector<std::pair<std::string, std::size_t>> rows) {
  Bench bench{.name = name, .about = about};
  bench.machine = Machine{.vram = "64M", .cus = cus, .granularity = "4K", .speculation = 0};
  for (const auto& [row, wave] : rows) bench.expected.push_back(owed(row));
  bench.run = [cus, rows](const Settings& settings) {
    floors::FaultSigbusContinue floor(cus, pages);
    queue launches;
    std::vector<Row> result;
    for (const auto& [row, wave] : rows) {
      const Pair pair = sample_in_turn(
          settings, row, [&, wave_items = wave] { return sample_device_fault_us(launches, wave_items); },
          [&] { return floor.sample(); });
      result.push_back(make_row(owed(row), pair.ferry, pair.floor));
    }
    return result;
  };
  return bench;
}

}  // namespace

Bench fault_device_one() {
  return make("fault-1cu", "device fault on a system page mapped in place, one compute unit", 1,
              {{"device_fault_1cu", 0}, {"device_fault_1cu_one_wave", pages}});
}

Bench fault_device_all() {
  return make("fault-all", "device fault on a system page mapped in place, all compute units", bench_cus(),
              {{"device_fault_all_cus", 0}});
}

}  // namespace ferry::bench
