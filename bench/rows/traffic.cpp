// Bytes moved when the data are twice the VRAM, against Belady's MIN on the accesses of the same kernels.
#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#include <fmt/format.h>

#include "belady.h"
#include "machine.h"
#include "rows/rows.h"
#include "rows/session.h"
#include "workloads.h"

namespace ferry::bench {

namespace {

constexpr std::size_t granule_bytes = 2UL << 20U;
constexpr unsigned scale = 20;
constexpr unsigned edge_factor = 16;
constexpr std::size_t vertices = 1UL << scale;
constexpr std::size_t edges = 2UL * edge_factor * vertices;
constexpr int page_rank_iterations = 5;
constexpr std::size_t grid_width = 2048;
constexpr std::size_t grid_height = 4096;
constexpr int stencil_iterations = 6;
// Small waves, taken in order: those that run at a time touch neighbouring memory.
constexpr std::size_t vertices_per_wave = 256;
constexpr std::size_t rows_per_wave = 4;

constexpr std::size_t offsets_bytes = (vertices + 1) * 8;
constexpr std::size_t targets_bytes = edges * 4;

/// Half of the arrays' blocks, as an argument of --vram.
std::string half_of(std::initializer_list<std::size_t> arrays) {
  std::size_t bytes = 0;
  for (const std::size_t array : arrays) bytes += Array<char>::whole_blocks(array);
  return fmt::format("{}M", (bytes / 2 / granule_bytes * granule_bytes) >> 20U);
}

Row owed(const std::string& name) { return {.name = name, .target = 1.5, .bound = Bound::at_most, .unit = "MiB"}; }

double mebibytes(std::uint64_t bytes) { return static_cast<double>(bytes) / (1 << 20U); }

/// What a workload needs to be run twice over the same managed memory: once on the device, where the manager counts
/// what moves, and once on this thread, where a recorder notes what is touched. The second run is also the check of
/// the first.
struct Workload {
  std::size_t wave;
  std::function<void()> reset;  ///< back to the input, by the CPU
  std::function<void(const DeviceLauncher&)> on_device;
  std::function<void(const RecordingLauncher&)> recorded;
  std::function<void()> keep_result;  ///< copies the device's result into ordinary memory
  std::function<bool()> same_result;  ///< compares it with the recorded run's
};

std::vector<Row> measure(const Settings& settings, const std::string& name, const Workload& workload) {
  std::vector<double> samples;
  Counters last;
  const DeviceLauncher device(workload.wave);
  // The traffic hardly changes from run to run, but which waves run beside each other does.
  for (int round = 0; round < std::min(settings.repeat, 5); ++round) {
    workload.reset();
    const Counters before = counters();
    workload.on_device(device);
    const Counters after = counters();
    last = {.bytes_to_vram = after.bytes_to_vram - before.bytes_to_vram,
            .bytes_to_system = after.bytes_to_system - before.bytes_to_system,
            .in_place_maps = after.in_place_maps - before.in_place_maps,
            .evictions = after.evictions - before.evictions};
    samples.push_back(mebibytes(last.bytes_to_vram + last.bytes_to_system));
    if (settings.verbose) {
      fmt::print(stderr, "{}: {:.1f} MiB in, {:.1f} MiB out, {} evictions, {} in-place maps\n", name,
                 mebibytes(last.bytes_to_vram), mebibytes(last.bytes_to_system), last.evictions, last.in_place_maps);
    }
  }
  workload.keep_result();
  workload.reset();
  AccessRecorder recorder(granule_bytes);
  workload.recorded(RecordingLauncher(recorder, workload.wave));
  if (!workload.same_result()) throw std::runtime_error(name + ": the device's result is not the CPU's");
  const std::size_t capacity = machine().vram_bytes / granule_bytes;
  const MinResult least = belady_min(recorder.accesses(), capacity);
  Row row = make_row(owed(name), median(samples), mebibytes(least.moved() * granule_bytes));
  row.note = fmt::format(
      "{} granules of 2 MiB in VRAM for {}; least: {} loads and {} write-backs; first run {:.0f} MiB; in-place maps: "
      "{}",
      capacity, recorder.granules(), least.loads, least.write_backs, samples.front(), last.in_place_maps);
  return {row};
}

struct ManagedGraph {
  ManagedGraph() : offsets(vertices + 1), targets(edges) {
    make_kronecker(scale, edge_factor, 1, offsets.data(), targets.data());
  }
  [[nodiscard]] GraphView view() const { return {offsets.data(), targets.data(), vertices}; }
  [[nodiscard]] std::uint32_t busiest() const {
    std::uint32_t best = 0;
    for (std::uint32_t v = 0; v < vertices; ++v) {
      if (offsets[v + 1] - offsets[v] > offsets[best + 1] - offsets[best]) best = v;
    }
    return best;
  }
  Array<std::uint64_t> offsets;
  Array<std::uint32_t> targets;
};

std::vector<Row> run_bfs(const Settings& settings) {
  const ManagedGraph graph;
  const Array<std::int32_t> levels(vertices);
  // One word that both sides touch after every level: it stays where both reach it, and is no granule of the search.
  const Array<std::uint32_t> changed(1, placement::system);
  const std::uint32_t source = graph.busiest();
  std::vector<std::int32_t> kept;
  const auto run = [&](const auto& launch) {
    breadth_first_search(launch, graph.view(), source, levels.data(), changed.data());
  };
  return measure(settings, "traffic_bfs",
                 {.wave = vertices_per_wave,
                  .reset = [&] { levels.fill(unreached); },
                  .on_device = run,
                  .recorded = run,
                  .keep_result = [&] { kept.assign(levels.data(), levels.data() + vertices); },
                  .same_result = [&] { return std::equal(kept.begin(), kept.end(), levels.data()); }});
}

std::vector<Row> run_page_rank(const Settings& settings) {
  const ManagedGraph graph;
  const Array<double> rank(vertices);
  const Array<double> share(vertices);
  std::vector<double> kept;
  const auto run = [&](const auto& launch) {
    page_rank(launch, graph.view(), rank.data(), share.data(), page_rank_iterations);
  };
  return measure(settings, "traffic_pagerank",
                 {.wave = vertices_per_wave,
                  .reset =
                      [&] {
                        rank.fill(1.0 / static_cast<double>(vertices));
                        share.fill(0);
                      },
                  .on_device = run,
                  .recorded = run,
                  .keep_result = [&] { kept.assign(rank.data(), rank.data() + vertices); },
                  .same_result =
                      [&] {
                        // Each sum is made by one item in one order, on either side; only contraction may differ.
                        for (std::size_t v = 0; v < vertices; ++v) {
                          if (std::abs(kept[v] - rank[v]) > 1e-12 * rank[v]) return false;
                        }
                        return true;
                      }});
}

std::vector<Row> run_stencil(const Settings& settings) {
  const Array<double> a(grid_width * grid_height);
  const Array<double> b(grid_width * grid_height);
  std::vector<double> kept;
  const auto run = [&](const auto& launch) {
    stencil(launch, a.data(), b.data(), grid_width, grid_height, stencil_iterations);
  };
  return measure(settings, "traffic_stencil",
                 {.wave = rows_per_wave,
                  .reset =
                      [&] {
                        for (std::size_t i = 0; i < a.size(); ++i) a[i] = b[i] = static_cast<double>(i % 1009);
                      },
                  .on_device = run,
                  .recorded = run,
                  .keep_result = [&] { kept.assign(a.data(), a.data() + a.size()); },
                  .same_result =
                      [&] {
                        for (std::size_t i = 0; i < a.size(); ++i) {
                          if (std::abs(kept[i] - a[i]) > 1e-12 * std::abs(a[i])) return false;
                        }
                        return true;
                      }});
}

Bench make(const std::string& name, const std::string& what, const std::string& row, const std::string& vram,
           std::vector<Row> (*run)(const Settings&)) {
  Bench bench{.name = name, .about = "bytes moved at 200 % of VRAM: " + what};
  bench.machine = Machine{.vram = vram, .cus = bench_cus(), .granularity = "2M"};
  bench.machine->leave = "never";  // as for MIN: what is touched in place is not copied, and would not be counted
  bench.expected = {owed(row)};
  bench.run = run;
  return bench;
}

}  // namespace

Bench traffic_bfs() {
  return make("bfs", "breadth-first search", "traffic_bfs", half_of({offsets_bytes, targets_bytes, vertices * 4}),
              run_bfs);
}

Bench traffic_page_rank() {
  return make("pagerank", "PageRank", "traffic_pagerank",
              half_of({offsets_bytes, targets_bytes, vertices * 8, vertices * 8}), run_page_rank);
}

Bench traffic_stencil() {
  constexpr std::size_t grid_bytes = grid_width * grid_height * 8;
  return make("stencil", "2-D stencil", "traffic_stencil", half_of({grid_bytes, grid_bytes}), run_stencil);
}

}  // namespace ferry::bench
