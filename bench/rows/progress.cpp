// What forward progress costs: the wait graph and its checks beside the fault that they watch, and the graph alone.
#include <time.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

#include <fmt/format.h>

#include "core/core.h"
#include "graph/graph.h"
#include "rows/fault_device.h"
#include "rows/rows.h"
#include "rows/session.h"

namespace ferry::bench {

namespace {

constexpr ClientId client = 1;
constexpr DeviceId device = 0;
constexpr unsigned units = 4;
constexpr core::FenceId frame = 1;
constexpr double cost_target = 0.05;
constexpr double required_rounds_per_s = 10e6;

Row owed_cost(const std::string& name) {
  return {.name = name, .target = cost_target, .bound = Bound::at_most, .unit = "us"};
}
Row owed_rate(const std::string& name) {
  return {.name = name, .target = 1.0, .bound = Bound::at_least, .unit = "M/s"};
}

/// CPU time of this thread: what is compared here is computing, and the machine may have other work.
std::uint64_t thread_ns() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(time.tv_nsec);
}

/// A core whose device faults, 32 at a time, and a machine that answers everything at once. Compute holds the units and
/// cannot leave them while it faults, and a fence is visible all the while: every edge and every check that a fault can
/// need. budget: half of what is touched, so that faults wait for memory that reclaim must find.
class FaultingCore {
 public:
  FaultingCore(bool wait_graph, bool budget) : budget_(budget), core_(config(wait_graph, budget)) {
    core_.client_open(client);
    core_.device_attach(client, device);
    core_.compute_demand(now_, client, device, units);
    settle();
    core::JobSpec job;
    job.fence = frame;
    job.engine = core::Engine::copy;
    job.device = device;
    expect(core_.job_submit(now_, client, job, core::Cookie{1}), "a job");
    settle();
    if (!core_.fence_info(frame).visible) throw std::runtime_error("the job's fence is not visible");
  }

  /// Nanoseconds a fault, over pages that nobody has touched.
  double pass() {
    expect(core_.alloc(now_, client, {.first = 0, .count_pages = pages}, core::Placement::system), "an allocation");
    settle();
    answered_ = 0;
    const std::uint64_t begin_ns = thread_ns();
    for (std::uint64_t page = 0; page < pages; page += outstanding) {
      now_ += 1'000'000;
      for (std::uint64_t turn = 0; turn < outstanding; ++turn) {
        core_.device_fault(now_, client, device, page + turn, Access::write, core::FaultToken{++token_},
                           static_cast<unsigned>(turn % units));
      }
      settle();
    }
    const std::uint64_t elapsed_ns = thread_ns() - begin_ns;
    if (answered_ != pages)
      throw std::runtime_error(fmt::format("{} waves faulted, {} were answered", pages, answered_));
    if (budget_ && core_.stats().pages_to_store == 0) throw std::runtime_error("nothing had to leave system memory");
    expect(core_.free(now_, client, {.first = 0, .count_pages = pages}, core::Cookie{2}), "to free");
    settle();
    return static_cast<double>(elapsed_ns) / static_cast<double>(pages);
  }

 private:
  static constexpr std::uint64_t pages = 16 * block_pages;
  static constexpr std::uint64_t outstanding = 32;

  static core::Config config(bool wait_graph, bool budget) {
    core::Config config;
    config.granularity_pages = 1;
    config.speculation_granules = 0;
    config.wait_graph = wait_graph;
    config.models = {{.cu_count = units, .preempts_while_faulting = false, .policy = core::Policy::none}};
    if (budget) {
      config.system_pages = pages / 2;
      config.store_pages = pages;
    }
    return config;
  }
  static void expect(Status status, const char* what) {
    if (!status.ok()) throw std::runtime_error(fmt::format("the core refused {}: {}", what, to_string(status.code)));
  }
  void settle() {
    while (core_.has_actions()) {
      core_.take_actions(actions_);
      for (const core::Action& action : actions_) {
        if (action.verb == core::Verb::wake_wave || action.has_token) ++answered_;
        // The job is never answered: its fence stays visible.
        if (action.id != 0 && action.verb != core::Verb::run_job) core_.action_done(now_, action.id, Status{});
      }
    }
  }

  bool budget_;
  core::Core core_;
  std::vector<core::Action> actions_;
  std::uint64_t now_ = 1;
  std::uint64_t token_ = 0;
  std::uint64_t answered_ = 0;
};

/// The graph's share of a fault, in microseconds, beside the time of a real one.
Row measure_cost(const std::string& name, const Settings& settings, bool budget) {
  constexpr int passes = 8;  // a sample of the core takes a hundredth of one of a device
  queue launches;
  FaultingCore with(true, budget);
  FaultingCore without(false, budget);
  std::vector<double> on;
  std::vector<double> off;
  std::vector<double> share;
  std::vector<double> fault;
  for (int round = -1; round < settings.repeat; ++round) {
    const double real = sample_device_fault_us(launches, 0);
    if (round >= 0) fault.push_back(real);
    for (int i = 0; i < passes; ++i) {
      const double watched = with.pass();
      const double plain = without.pass();
      if (settings.verbose) fmt::print(stderr, "{}: {:.1f} ns, without {:.1f} ns\n", name, watched, plain);
      if (round < 0) continue;
      on.push_back(watched);
      off.push_back(plain);
      share.push_back(watched - plain);
    }
    if (settings.verbose) fmt::print(stderr, "{}: fault {:.2f} us\n", name, real);
  }
  Row row = make_row(owed_cost(name), median(share) / 1e3, median(fault));
  row.note =
      fmt::format("the core decides a fault in {:.0f} ns, without the graph in {:.0f} ns", median(on), median(off));
  return row;
}

/// Million a second: a fault appears, is known to hold a unit, waits for memory, is repaired, and goes. A fence that
/// somebody else waits for is visible.
double graph_rounds_per_us() {
  constexpr std::uint64_t rounds = 2'000'000;
  graph::Graph graph;
  const auto fault = graph.define("fault", graph::Graph::InSection::forbidden);
  const auto memory = graph.define("memory", graph::Graph::InSection::forbidden);
  const auto fence = graph.define("fence");
  const auto unit = graph.define("compute unit");
  graph.resource(unit);
  const graph::NodeId held = graph.add(unit, 0);
  const graph::NodeId wanted = graph.add(memory, graph::unnumbered, graph::Needs::any);
  const graph::NodeId visible = graph.add(fence, 1);
  graph.begin_section(visible);
  if (!graph.wait(wanted, visible).empty()) throw std::runtime_error("a circle where there is none");
  std::uint64_t circles = 0;
  const std::uint64_t begin_ns = thread_ns();
  for (std::uint64_t round = 0; round < rounds; ++round) {
    const graph::NodeId node = graph.add(fault, round);
    graph.describe(node, "of client % on compute unit %", client, 0);
    circles += graph.wait(held, node, "is held by").size();
    circles += graph.wait(node, wanted).size();
    graph.done(node, wanted);
    graph.remove(node);
  }
  const std::uint64_t elapsed_ns = thread_ns() - begin_ns;
  if (circles != 0 || graph.node_count() != 3 || graph.has_reports()) {
    throw std::runtime_error("the graph is not what it was: " + graph.dump());
  }
  return static_cast<double>(rounds) * 1e3 / static_cast<double>(elapsed_ns);
}

Row measure_rate(const std::string& name, const Settings& settings) {
  std::vector<double> samples;
  for (int round = 0; round < settings.repeat; ++round) {
    samples.push_back(graph_rounds_per_us());
    if (settings.verbose) fmt::print(stderr, "{}: {:.2f} M/s\n", name, samples.back());
  }
  Row row = make_row(owed_rate(name), median(samples), required_rounds_per_s / 1e6);
  row.note = fmt::format("{:.0f} ns for six calls", 1e3 / median(samples));
  return row;
}

}  // namespace

Bench progress() {
  Bench bench{.name = "progress", .about = "the wait graph: its share of a device fault, and alone"};
  bench.machine = Machine{.vram = "64M", .cus = bench_cus(), .granularity = "4K", .speculation = 0};
  bench.expected = {owed_cost("progress_fault"), owed_rate("progress_graph")};
  bench.run = [](const Settings& settings) {
    return std::vector<Row>{measure_cost("progress_fault", settings, false), measure_rate("progress_graph", settings)};
  };
  return bench;
}

Bench progress_reclaim() {
  Bench bench{.name = "progress-reclaim", .about = "the same share of faults that need memory reclaimed"};
  bench.machine = Machine{.vram = "64M", .cus = bench_cus(), .granularity = "4K", .speculation = 0, .system = "8M"};
  bench.expected = {owed_cost("progress_fault_reclaim")};
  bench.run = [](const Settings& settings) {
    return std::vector<Row>{measure_cost("progress_fault_reclaim", settings, true)};
  };
  return bench;
}

}  // namespace ferry::bench
