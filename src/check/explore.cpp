// Depth first through all states. The core cannot be copied, so a state that was left is reached again by performing its
// events from the start; states are known by their digests, so that each is expanded once.
#include "check/explore.h"

#include <algorithm>
#include <memory>
#include <set>

#include "base/check.h"
#include "check/graph_of_states.h"
#include "check/hash.h"

namespace ferry::check {
namespace {

void throw_crash(const char* message) {
  std::string text = message;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  throw Violation{{Verdict::crash, text}};
}

class Search {
 public:
  Search(const Setup& setup, const Limits& limits) : setup_(setup), limits_(limits) {}

  Exploration run() {
    restart();
    enter();
    while (!stack_.empty()) {
      if (graph_.size() > limits_.states) break;
      next();
    }
    out_.exhaustive = stack_.empty();
    judge();
    return std::move(out_);
  }

 private:
  struct Frame {
    std::uint32_t state = 0;
    std::uint32_t next = 0;
    std::vector<Event> events;  ///< in the order of the state's transitions
    std::uint32_t taken = 0;    ///< the one that led on to the frame above
  };

  void restart() {
    world_ = std::make_unique<World>(setup_);
    ++out_.executions;
  }

  void perform(const Event& event) {
    world_->perform(event);
    ++out_.events;
  }

  /// The world has come to a state: its number. A new one is expanded.
  std::uint32_t enter() {
    for (const std::string& remark : world_->remarks()) {
      if (remarks_.size() < 16 && remarks_.insert(remark).second) out_.remarks.push_back(remark);
    }
    const std::uint64_t digest =
        world_->broken() ? Hash().add(world_->finding().text).add(std::uint64_t{0xbad}).value() : world_->digest();
    bool is_new = false;
    const std::uint32_t state = graph_.state(digest, is_new);
    if (!is_new) {
      live_ = false;
      return state;
    }
    if (!world_->warning().empty() && !world_->broken()) note(state, {Verdict::broken_rule, world_->warning()});
    Frame frame;
    frame.state = state;
    world_->enabled(frame.events);
    if (frame.events.empty()) {
      note(state, world_->conclude());
      live_ = false;
      return state;
    }
    auto& out = graph_[state].out;
    out.resize(frame.events.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i].key = frame.events[i].key;
      out[i].footprint = world_->footprint(frame.events[i]);
      out[i].optional = frame.events[i].kind == Event::Kind::tick || frame.events[i].kind == Event::Kind::fail;
    }
    stack_.push_back(std::move(frame));
    live_ = true;
    return state;
  }

  void note(std::uint32_t state, Finding finding) {
    const std::uint32_t known = graph_[state].finding;
    if (finding.verdict == Verdict::clean || (known != none && findings_[known].verdict >= finding.verdict)) return;
    graph_[state].finding = static_cast<std::uint32_t>(findings_.size());
    findings_.push_back(std::move(finding));
  }

  void next() {
    Frame& frame = stack_.back();
    if (frame.next == frame.events.size()) {
      stack_.pop_back();
      live_ = false;
      return;
    }
    const std::uint32_t i = frame.next++;
    const std::uint32_t from = frame.state;
    ++out_.transitions;
    const std::uint32_t concluded = conclude(from, i);
    if (concluded != none) {
      ++out_.concluded;
      graph_[from].out[i].to = concluded;
      if (!limits_.distrust_reduction) return;
    }
    if (!live_) {
      restart();
      for (std::size_t f = 0; f + 1 < stack_.size(); ++f) perform(stack_[f].events[stack_[f].taken]);
    }
    frame.taken = i;
    const std::uint32_t before = world_->progress();
    perform(frame.events[i]);
    const bool progress = world_->progress() != before;
    const std::uint32_t to = enter();  // `frame` may be gone
    FERRY_CHECK(concluded == none || concluded == to);
    graph_[from].out[i].to = to;
    graph_[from].out[i].progress = progress;
  }

  /// The reduction. The state was reached from another by b. Where a could have happened there too, and has nothing to do
  /// with b, a then b leads where b then a does; and that is known already. none: nothing is known.
  std::uint32_t conclude(std::uint32_t state, std::uint32_t i) {
    if (stack_.size() < 2) return none;
    const Frame& parent = stack_[stack_.size() - 2];
    const Transition& b = graph_[parent.state].out[parent.taken];
    const std::uint64_t a = graph_[state].out[i].key;
    for (std::uint32_t k = 0; k < parent.taken; ++k) {
      const Transition& first = graph_[parent.state].out[k];
      if (first.key != a || first.to == none || (first.footprint & b.footprint) != 0) continue;
      for (const Transition& second : graph_[first.to].out) {
        if (second.key != b.key || second.to == none) continue;
        graph_[state].out[i].progress = first.progress;
        return second.to;
      }
    }
    return none;
  }

  void judge() {
    out_.states = graph_.size();
    std::uint32_t entry = none;
    const std::vector<std::uint64_t> cycle = graph_.fair_cycle(entry);
    Verdict worst = cycle.empty() ? Verdict::clean : Verdict::livelock;
    for (const Finding& finding : findings_) worst = std::max(worst, finding.verdict);
    if (worst == Verdict::clean) return;
    if (worst == Verdict::livelock) {
      out_.finding = {worst,
                      "these events can repeat for ever, each that could always happen does, and nobody gets a "
                      "step further"};
      out_.schedule = graph_.way_to(entry);
      out_.cycle_from = out_.schedule.size();
      out_.schedule.insert(out_.schedule.end(), cycle.begin(), cycle.end());
      return;
    }
    const std::uint32_t state = graph_.nearest(findings_, worst);
    out_.finding = findings_[graph_[state].finding];
    out_.schedule = graph_.way_to(state);
  }

  const Setup setup_;
  const Limits limits_;
  StateGraph graph_;
  std::vector<Finding> findings_;
  std::vector<Frame> stack_;
  std::unique_ptr<World> world_;
  bool live_ = false;  ///< the world is in the state of the last frame
  std::set<std::string> remarks_;
  Exploration out_;
};

}  // namespace

CrashCatcher::CrashCatcher() { set_check_catcher(throw_crash); }
CrashCatcher::~CrashCatcher() { set_check_catcher(nullptr); }

Exploration explore(const Setup& setup, const Limits& limits) {
  const CrashCatcher catcher;
  return Search(setup, limits).run();
}

}  // namespace ferry::check
