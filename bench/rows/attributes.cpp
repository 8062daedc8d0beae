// Attributes of a million spans beside those of a thousand: what a call costs, and what a span does. The core alone, as
// the manager calls it; neighbours differ, so that nothing merges; spans come in random order.
// Each call finds the caches of its CPU as the manager's other work leaves them, without the map: calls back to back
// would compare caches, which hold a thousand spans and not a million, and no two calls of the manager's are.
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include <fmt/format.h>

#include "core/core.h"
#include "rows/rows.h"

namespace ferry::bench {

namespace {

using core::Attribute;
using core::AttributeType;

constexpr ClientId client = 1;
constexpr std::uint64_t few = 1'000;
constexpr std::uint64_t many = 1'000'000;
constexpr std::uint64_t span_pages = 4;
/// Of each kind, at both sizes; the figure is the median.
constexpr std::uint64_t calls = 300;
constexpr double ratio_most = 2.0;
constexpr double span_bytes_most = 200.0;

std::uint64_t heap_bytes() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

/// Spans with attributes, over one allocation that has one page more than they at either end.
class Spans {
 public:
  explicit Spans(std::uint64_t count) : count_(count), order_(count) {
    core::Config config;
    core_ = std::make_unique<core::Core>(config);
    core_->client_open(client);
    if (!core_->alloc(1, client, {0, count * span_pages + 2}, core::Placement::automatic).ok()) {
      throw std::runtime_error("the core refused the allocation");
    }
    std::iota(order_.begin(), order_.end(), 0);
    std::shuffle(order_.begin(), order_.end(), std::mt19937_64(count));
    actions_.reserve(4);
  }

  [[nodiscard]] PageSpan span(std::uint64_t i) const { return {1 + i * span_pages, span_pages}; }
  [[nodiscard]] std::uint64_t count() const { return count_; }
  [[nodiscard]] std::uint64_t at_random(std::uint64_t call) const { return order_[call % count_]; }
  /// No default, and none that a neighbour has.
  [[nodiscard]] static std::uint32_t granularity(std::uint64_t i) { return static_cast<std::uint32_t>(i * 7 % 9); }

  void set(std::uint64_t i, std::uint32_t preferred) {
    lines_.resize(2);
    lines_[0] = {AttributeType::granularity, no_device, granularity(i)};
    lines_[1] = {AttributeType::preferred_loc, no_device, preferred};
    unsigned wrong = 0;
    if (!core_->svm_set(++now_ns_, client, span(i), lines_, core::Cookie{1}, wrong).ok()) {
      throw std::runtime_error("the core refused attributes");
    }
    core_->take_actions(actions_);
    if (actions_.size() != 1 || actions_[0].verb != core::Verb::reply) {
      throw std::runtime_error("attributes of untouched memory are no reason to do anything");
    }
  }
  void get(std::uint64_t i) {
    lines_.resize(2);
    lines_[0] = {AttributeType::granularity, no_device, 0};
    lines_[1] = {AttributeType::preferred_loc, no_device, 0};
    unsigned wrong = 0;
    if (!core_->svm_get(client, span(i), lines_, wrong).ok() || lines_[0].value != granularity(i)) {
      throw std::runtime_error("the attributes are not what was set");
    }
  }
  void look_up(std::uint64_t i, std::uint64_t page) const {
    if (core_->attributes(client, span(i).first + page).granularity != granularity(i)) {
      throw std::runtime_error("the attributes are not what was set");
    }
  }

 private:
  std::uint64_t count_;
  std::vector<std::uint64_t> order_;
  std::unique_ptr<core::Core> core_;
  std::vector<Attribute> lines_;
  std::vector<core::Action> actions_;
  std::uint64_t now_ns_ = 1;
};

/// Nanoseconds a call.
struct Costs {
  double set = 0;     ///< of a span that had none
  double change = 0;  ///< of one that had some
  double get = 0;
  double look_up = 0;
  double span_bytes = 0;
};

/// Memory of other work: reading it pushes everything else out of the caches that are the CPU's own.
class OtherWork {
 public:
  OtherWork() : words_(bytes() / sizeof(std::uint64_t), 1) {}
  [[nodiscard]] std::uint64_t read() const { return std::accumulate(words_.begin(), words_.end(), std::uint64_t{0}); }

 private:
  static std::size_t bytes() {
    const long cache = ::sysconf(_SC_LEVEL2_CACHE_SIZE);
    return 2 * std::max<std::size_t>(std::size_t{1} << 20, cache > 0 ? static_cast<std::size_t>(cache) : 0);
  }
  std::vector<std::uint64_t> words_;
};

/// Median of so many calls, less what a call of nothing takes measured so.
template <typename Call>
double timed(const OtherWork& other, const Spans& spans, std::uint64_t first, Call&& call) {
  std::vector<double> figures;
  std::vector<double> nothing;
  std::uint64_t sum = 0;
  for (std::uint64_t n = 0; n < calls; ++n) {
    sum += other.read();
    const std::uint64_t i = spans.at_random(first + n);
    const std::uint64_t begin_ns = now_ns();
    call(i);
    const std::uint64_t end_ns = now_ns();
    figures.push_back(static_cast<double>(end_ns - begin_ns));
    sum += other.read();
    const std::uint64_t idle_ns = now_ns();
    nothing.push_back(static_cast<double>(now_ns() - idle_ns));
  }
  if (sum == 0) throw std::runtime_error("the other work was not done");
  return median(figures) - median(nothing);
}

Costs sample(std::uint64_t count) {
  Costs costs;
  const OtherWork other;
  const auto spans = std::make_unique<Spans>(count);
  const std::uint64_t before = heap_bytes();
  std::uint64_t filled = 0;
  for (; filled < count - calls; ++filled) spans->set(spans->at_random(filled), core::loc_system);
  costs.set = timed(other, *spans, filled, [&](std::uint64_t i) { spans->set(i, core::loc_system); });
  costs.span_bytes = static_cast<double>(heap_bytes() - before) / static_cast<double>(count);
  // Calls of one kind are on spans of their own.
  costs.change = timed(other, *spans, 0, [&](std::uint64_t i) { spans->set(i, core::loc_undefined); });
  costs.get = timed(other, *spans, calls, [&](std::uint64_t i) { spans->get(i); });
  costs.look_up = timed(other, *spans, 2 * calls, [&](std::uint64_t i) { spans->look_up(i, i % span_pages); });
  return costs;
}

Row owed(const char* name) { return {.name = name, .target = ratio_most, .bound = Bound::at_most, .unit = "ns"}; }
Row owed_bytes() { return {.name = "attributes_bytes", .target = 1.0, .bound = Bound::at_most, .unit = "bytes/span"}; }

std::vector<Row> measure(const Settings& settings) {
  std::vector<Costs> thousand;
  std::vector<Costs> million;
  for (int round = 0; round < settings.repeat; ++round) {
    thousand.push_back(sample(few));
    million.push_back(sample(many));
    if (settings.verbose) {
      fmt::print(stderr,
                 "attributes: change {:.0f} and {:.0f} ns, get {:.0f} and {:.0f} ns, look-up {:.0f} and {:.0f} ns\n",
                 thousand.back().change, million.back().change, thousand.back().get, million.back().get,
                 thousand.back().look_up, million.back().look_up);
    }
  }
  const auto middle = [](const std::vector<Costs>& all, double Costs::*which) {
    std::vector<double> figures;
    for (const Costs& c : all) figures.push_back(c.*which);
    return median(figures);
  };
  std::vector<Row> rows;
  for (const auto& [name, which] : {std::pair{"attributes_set", &Costs::set},
                                    {"attributes_change", &Costs::change},
                                    {"attributes_get", &Costs::get},
                                    {"attributes_look_up", &Costs::look_up}}) {
    rows.push_back(make_row(owed(name), middle(million, which), middle(thousand, which)));
  }
  rows.push_back(make_row(owed_bytes(), middle(million, &Costs::span_bytes), span_bytes_most));
  rows.back().note = "the heap's growth, all of it";
  return rows;
}

}  // namespace

Bench attributes() {
  return {.name = "attributes",
          .about = "attributes of a million spans beside those of a thousand: a call, and memory",
          .run = measure,
          .expected = {owed("attributes_set"), owed("attributes_change"), owed("attributes_get"),
                       owed("attributes_look_up"), owed_bytes()}};
}

}  // namespace ferry::bench
