// A CPU fault on a page that lies, changed, in VRAM, against the bare round trip of a CPU fault.
#include <stdexcept>

#include <fmt/format.h>

#include "floors/floors.h"
#include "machine.h"
#include "rows/rows.h"
#include "rows/session.h"

namespace ferry::bench {

namespace {

constexpr std::size_t words_per_page = 4096 / sizeof(std::uint64_t);
constexpr std::size_t pages = 1024;
constexpr const char* row_name = "cpu_fault_vram_4k";

Row owed() { return {.name = row_name, .target = 1.5, .bound = Bound::at_most, .unit = "us"}; }

double sample_ferry(queue& launches) {
  const Array<std::uint64_t> memory(pages * words_per_page);
  memory.fill(1);
  std::uint64_t* data = memory.data();
  launches
      .launch(grid{.items = pages, .wave = 16},
              [data](item at) { data[at.global() * words_per_page] = at.global() + 7; })
      .wait();
  require_in_vram(data, "a page that the device wrote");
  require_in_vram(data + (pages - 1) * words_per_page, "a page that the device wrote");
  const std::uint64_t faults_before = counters().cpu_faults;
  const std::uint64_t begin_ns = now_ns();
  std::uint64_t wrong = 0;
  for (std::size_t page = 0; page < pages; ++page) wrong += data[page * words_per_page] != page + 7 ? 1 : 0;
  const std::uint64_t elapsed_ns = now_ns() - begin_ns;
  const std::uint64_t faults = counters().cpu_faults - faults_before;
  if (wrong != 0) throw std::runtime_error(fmt::format("{} pages came back without the device's write", wrong));
  if (faults < pages * 9 / 10) throw std::runtime_error(fmt::format("{} pages gave only {} faults", pages, faults));
  return static_cast<double>(elapsed_ns) / 1e3 / static_cast<double>(faults);
}

}  // namespace

Bench fault_cpu() {
  Bench bench{.name = "fault-cpu", .about = "CPU fault on a 4 KiB page in VRAM"};
  bench.machine = Machine{.vram = "64M", .cus = 1, .granularity = "4K", .speculation = 0};
  bench.expected = {owed()};
  bench.run = [](const Settings& settings) {
    floors::FaultCpuRoundtrip floor(pages);
    floors::MemcpyMemfd copy(1, settings.copy_bytes, floors::CopyKind::memcpy, 4096);
    queue launches;
    std::vector<double> copies;
    const Pair pair = sample_in_turn(
        settings, row_name, [&] { return sample_ferry(launches); },
        [&] {
          copies.push_back(4096 / copy.sample(4096) / 1e3);
          return floor.sample();
        });
    const double copy_us = median(copies);
    Row row = make_row(owed(), pair.ferry, pair.floor);
    row.ratio = (pair.ferry - copy_us) / pair.floor;
    row.note = fmt::format("ratio = (ferry - {:.2f} us for the cold copy of 4 KiB) / floor", copy_us);
    return std::vector<Row>{row};
  };
  return bench;
}

}  // namespace ferry::bench
