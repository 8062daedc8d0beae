// Attributes of a million spans beside those of a thousand: what a call costs, and what a span does. The core alone, as
// the manager calls it; neighbours differ, so that nothing merges; spans come in random order.
// Calls are made back to back on spans drawn uniformly at both sizes: each side has in the caches what its size leaves
// there, a thousand spans all of it. What a call costs that comes alone, after other work has emptied the caches, is
// measured too and told in the rows' notes.
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
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
/// Of each kind, at both sizes.
constexpr std::uint64_t calls = 1'000'000;
/// Calls but the first sets are timed in parts, each after a fifth as many that are not, in turn at both sizes. The figure
/// is that of the quickest part: what other processes do to the caches is none of the map's.
constexpr std::uint64_t part_calls = 50'000;
constexpr std::uint64_t lone_calls = 300;
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
  /// Every span once, in no order.
  [[nodiscard]] const std::vector<std::uint32_t>& order() const { return order_; }
  /// The next of them, and how often all of them came before.
  std::pair<std::uint64_t, std::uint64_t> next() {
    const std::uint64_t number = given_++;
    return {order_[number % count_], number / count_};
  }
  [[nodiscard]] std::uint64_t draw() {
    state_ ^= state_ << 13U;
    state_ ^= state_ >> 7U;
    state_ ^= state_ << 17U;
    return (state_ >> 32U) * count_ >> 32U;
  }
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
  void reset_all() {
    if (!core_->svm_reset(++now_ns_, client, {0, count_ * span_pages + 2}, core::Cookie{1}).ok()) {
      throw std::runtime_error("the core refused a reset");
    }
    core_->take_actions(actions_);
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
  std::vector<std::uint32_t> order_;
  std::uint64_t given_ = 0;
  std::uint64_t state_ = 0x9e3779b97f4a7c15U;
  std::unique_ptr<core::Core> core_;
  std::vector<Attribute> lines_;
  std::vector<core::Action> actions_;
  std::uint64_t now_ns_ = 1;
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

/// A figure of each size.
struct Both {
  double thousand = std::numeric_limits<double>::max();
  double million = std::numeric_limits<double>::max();
};

/// What a call takes, back to back with others. `call`: of Spans.
template <typename Call>
Both together(Spans& thousand, Spans& million, Call&& call) {
  const auto part = [&call](Spans& spans) {
    for (std::uint64_t n = 0; n < part_calls / 5; ++n) call(spans);
    const std::uint64_t begin_ns = now_ns();
    for (std::uint64_t n = 0; n < part_calls; ++n) call(spans);
    return static_cast<double>(now_ns() - begin_ns) / static_cast<double>(part_calls);
  };
  Both least;
  for (std::uint64_t n = 0; n < calls / part_calls; ++n) {
    least.thousand = std::min(least.thousand, part(thousand));
    least.million = std::min(least.million, part(million));
  }
  return least;
}

/// Median of calls that come alone, less what a call of nothing takes measured so.
template <typename Call>
double alone(const OtherWork& other, Spans& spans, Call&& call) {
  std::vector<double> figures;
  std::vector<double> nothing;
  std::uint64_t sum = 0;
  for (std::uint64_t n = 0; n < lone_calls; ++n) {
    sum += other.read();
    const std::uint64_t begin_ns = now_ns();
    call(spans);
    const std::uint64_t end_ns = now_ns();
    figures.push_back(static_cast<double>(end_ns - begin_ns));
    sum += other.read();
    const std::uint64_t idle_ns = now_ns();
    nothing.push_back(static_cast<double>(now_ns() - idle_ns));
  }
  if (sum == 0) throw std::runtime_error("the other work was not done");
  return median(figures) - median(nothing);
}

/// Mean of setting every span once, from none on; of as many such rounds as `calls` is of spans. All have attributes then.
double fill(Spans& spans, double& span_bytes) {
  double elapsed_ns = 0;
  for (std::uint64_t done = 0; done < calls; done += spans.count()) {
    spans.reset_all();
    const std::uint64_t before = heap_bytes();
    const std::uint64_t begin_ns = now_ns();
    for (const std::uint32_t i : spans.order()) spans.set(i, core::loc_system);
    elapsed_ns += static_cast<double>(now_ns() - begin_ns);
    span_bytes = static_cast<double>(heap_bytes() - before) / static_cast<double>(spans.count());
  }
  return elapsed_ns / static_cast<double>(calls);
}

/// Gives a span another attribute than it has, one after the other in no order.
void change(Spans& spans) {
  const auto [i, round] = spans.next();
  spans.set(i, round % 2 == 0 ? core::loc_undefined : core::loc_system);
}
void get(Spans& spans) { spans.get(spans.draw()); }
void look_up(Spans& spans) {
  const std::uint64_t i = spans.draw();
  spans.look_up(i, i % span_pages);
}

/// Nanoseconds a call.
struct Costs {
  Both set;     ///< of a span that had none
  Both change;  ///< of one that had some
  Both get;
  Both look_up;
  Both lone_change;  ///< after other work
  Both lone_get;
  Both lone_look_up;
  double span_bytes = 0;  ///< of a million
};

Costs sample() {
  Costs costs;
  const OtherWork other;
  Spans thousand(few);
  Spans million(many);
  costs.set.thousand = fill(thousand, costs.span_bytes);
  costs.set.million = fill(million, costs.span_bytes);
  costs.get = together(thousand, million, get);
  costs.look_up = together(thousand, million, look_up);
  costs.change = together(thousand, million, change);
  costs.lone_get = {alone(other, thousand, get), alone(other, million, get)};
  costs.lone_look_up = {alone(other, thousand, look_up), alone(other, million, look_up)};
  costs.lone_change = {alone(other, thousand, change), alone(other, million, change)};
  return costs;
}

Row owed(const char* name) { return {.name = name, .target = ratio_most, .bound = Bound::at_most, .unit = "ns"}; }
Row owed_bytes() { return {.name = "attributes_bytes", .target = 1.0, .bound = Bound::at_most, .unit = "bytes/span"}; }

std::vector<Row> measure(const Settings& settings) {
  std::vector<Costs> samples;
  for (int round = 0; round < settings.repeat; ++round) {
    samples.push_back(sample());
    if (settings.verbose) {
      const Costs& c = samples.back();
      fmt::print(stderr,
                 "attributes: set {:.0f} and {:.0f} ns, change {:.0f} and {:.0f} ns, get {:.1f} and {:.1f} ns, look-up "
                 "{:.1f} and {:.1f} ns\n",
                 c.set.thousand, c.set.million, c.change.thousand, c.change.million, c.get.thousand, c.get.million,
                 c.look_up.thousand, c.look_up.million);
    }
  }
  const auto middle = [&samples](auto&& figure) {
    std::vector<double> figures;
    for (const Costs& c : samples) figures.push_back(figure(c));
    return median(figures);
  };
  const auto both = [&middle](Both Costs::*which) {
    return Both{middle([which](const Costs& c) { return (c.*which).thousand; }),
                middle([which](const Costs& c) { return (c.*which).million; })};
  };
  std::vector<Row> rows;
  struct Kind {
    const char* name;
    Both Costs::*together;
    Both Costs::*alone;
  };
  for (const auto& [name, which, lone] : {Kind{"attributes_set", &Costs::set, nullptr},
                                          {"attributes_change", &Costs::change, &Costs::lone_change},
                                          {"attributes_get", &Costs::get, &Costs::lone_get},
                                          {"attributes_look_up", &Costs::look_up, &Costs::lone_look_up}}) {
    const Both costs = both(which);
    rows.push_back(make_row(owed(name), costs.million, costs.thousand));
    if (lone != nullptr) {
      const Both cold = both(lone);
      rows.back().note = fmt::format("a call that comes alone, caches emptied: {:.0f} and {:.0f} ns, {:.1f} times",
                                     cold.million, cold.thousand, cold.million / cold.thousand);
    }
  }
  rows.push_back(make_row(owed_bytes(), middle([](const Costs& c) { return c.span_bytes; }), span_bytes_most));
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
