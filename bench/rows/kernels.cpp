// A kernel whose data are where they should be, resident in VRAM or mapped in place, against the same body on as many
// plain threads over ordinary memory.
#include <memory>
#include <stdexcept>
#include <vector>

#include <fmt/format.h>

#include "floors/floors.h"
#include "kernels.h"
#include "machine.h"
#include "rows/rows.h"
#include "rows/session.h"

namespace ferry::bench {

namespace {

constexpr std::size_t triad_count = 8UL << 20U;  // 64 MiB an array
constexpr int triad_laps = 16;
constexpr std::size_t chase_nodes = 1UL << 20U;  // 64 MiB
constexpr std::size_t chase_chains = 192;
constexpr std::size_t chase_steps = 20'000;

Row owed(const std::string& name, const std::string& unit) {
  return {.name = name, .target = 0.95, .bound = Bound::at_least, .unit = unit};
}

void require_placed(placement where, const void* p, const char* what) {
  where == placement::system ? require_in_place(p, what) : require_in_vram(p, what);
}

Row triad(const Settings& settings, const std::string& name, placement where) {
  const Array<double> a(triad_count, where);
  const Array<double> b(triad_count, where);
  const Array<double> c(triad_count, where);
  std::vector<double> plain_a(triad_count, 0.0);
  std::vector<double> plain_b(triad_count);
  std::vector<double> plain_c(triad_count);
  a.fill(0);
  for (std::size_t i = 0; i < triad_count; ++i) {
    plain_b[i] = b[i] = static_cast<double>(i);
    plain_c[i] = c[i] = 1.0 / static_cast<double>(i + 1);
  }
  queue launches;
  const auto ferry = [&] {
    const std::uint64_t begin_ns = now_ns();
    completion last;
    for (int lap = 0; lap < triad_laps; ++lap) {
      last = launches.parallel_for(triad_count, [to = a.data(), x = b.data(), y = c.data(), scale = 3.0 + lap](
                                                    std::size_t i) { triad_element(to, x, y, scale, i); });
    }
    last.wait();
    const double elapsed_ns = static_cast<double>(now_ns() - begin_ns);
    require_placed(where, a.data(), "the triad's result");
    require_placed(where, c.data() + triad_count - 1, "the triad's input");
    return static_cast<double>(triad_count) * triad_laps * 24 / elapsed_ns;
  };
  const Pair pair = sample_in_turn(settings, name, ferry, [&] {
    return floors::plain_triad(bench_cus(), plain_a.data(), plain_b.data(), plain_c.data(), triad_count, triad_laps);
  });
  for (std::size_t i = 0; i < triad_count; ++i) {
    if (a[i] != plain_a[i])
      throw std::runtime_error(fmt::format("the triad's element {} is {} and not {}", i, a[i], plain_a[i]));
  }
  return make_row(owed(name, "GB/s"), pair.ferry, pair.floor);
}

Row chase_row(const Settings& settings, const std::string& name, placement where) {
  const Array<ChaseNode> nodes(chase_nodes, where);
  const Array<std::uint64_t> sums(chase_chains, where);
  std::vector<ChaseNode> plain_nodes(chase_nodes);
  link_chase_cycle(nodes.data(), chase_nodes, 1);
  link_chase_cycle(plain_nodes.data(), chase_nodes, 1);
  sums.fill(0);
  constexpr std::size_t apart = chase_nodes / chase_chains;
  std::vector<const ChaseNode*> starts;
  for (std::size_t chain = 0; chain < chase_chains; ++chain) starts.push_back(&plain_nodes[chain * apart]);
  queue launches;
  const auto ferry = [&] {
    const std::uint64_t begin_ns = now_ns();
    launches
        .launch(grid{.items = chase_chains, .wave = 1},
                [from = nodes.data(), to = sums.data()](item at) {
                  to[at.global()] = chase(from + at.global() * apart, chase_steps);
                })
        .wait();
    const double elapsed_ns = static_cast<double>(now_ns() - begin_ns);
    require_placed(where, nodes.data(), "the chased list");
    return static_cast<double>(chase_chains * chase_steps) * 1e3 / elapsed_ns;
  };
  std::vector<std::uint64_t> plain_sums;
  const Pair pair = sample_in_turn(settings, name, ferry,
                                   [&] { return floors::plain_chase(bench_cus(), starts, chase_steps, plain_sums); });
  for (std::size_t chain = 0; chain < chase_chains; ++chain) {
    if (sums[chain] != plain_sums[chain]) throw std::runtime_error(fmt::format("chain {} gave another sum", chain));
  }
  return make_row(owed(name, "Mlinks/s"), pair.ferry, pair.floor);
}

}  // namespace

Bench kernels() {
  Bench bench{.name = "kernels", .about = "triad and pointer chase, resident and in place, against plain threads"};
  bench.machine = Machine{.vram = "512M", .cus = bench_cus(), .granularity = "2M"};
  bench.expected = {owed("triad_resident", "GB/s"), owed("triad_in_place", "GB/s"), owed("chase_resident", "Mlinks/s"),
                    owed("chase_in_place", "Mlinks/s")};
  bench.run = [](const Settings& settings) {
    return std::vector<Row>{triad(settings, "triad_resident", placement::automatic),
                            triad(settings, "triad_in_place", placement::system),
                            chase_row(settings, "chase_resident", placement::automatic),
                            chase_row(settings, "chase_in_place", placement::system)};
  };
  return bench;
}

}  // namespace ferry::bench
