// One execution of a scenario: the real core, and around it a machine that is as small as can be. Bytes are versions
// (who wrote last), each page and buffer is one granule, and nothing happens by itself: enabled() lists what could
// happen next, perform() makes one of it happen. The same events in the same order lead to the same state.
//   world.cpp   events, time, digest, the end      agents.cpp   what threads and waves do
//   machine.cpp the core's actions                 rules.cpp    what is checked beside the bytes
//   svm.cpp     pins, discards, access, forks        moves.cpp  mremap
// Unlike the simulator's world it has no queue and no random numbers: who explores it chooses.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "check/scenario.h"
#include "check/verdict.h"
#include "core/core.h"

namespace ferry::check {

/// What is explored: a scenario under one policy on one machine.
struct Setup {
  const Scenario* scenario = nullptr;
  core::Policy policy = core::Policy::none;
  Hardware hardware;
  core::PlantedBug bug = core::PlantedBug::none;
};

struct Event {
  enum class Kind : std::uint8_t {
    step,    ///< index: agent
    done,    ///< index: flight; its effect (if it has not happened yet) and its answer
    effect,  ///< index: flight; the effect alone, where the scenario keeps both apart
    fail,    ///< index: flight; it fails with `code`
    notice,  ///< index: of a process that ended; the core is told
    tick,    ///< a timer fires although other events could happen
    time,    ///< nothing else can happen: time passes until something can
  } kind = Kind::step;
  std::uint32_t index = 0;
  Code code = Code::ok;
  /// Equal for the same event in whatever order the events before it came.
  std::uint64_t key = 0;
};

/// What was seen, for drawings: one line a message from one participant to another.
struct LogLine {
  std::uint32_t step = 0;  ///< number of the event, from 1; 0: before the first
  std::string from;        ///< participant; empty: a note of `to` alone
  std::string to;
  std::string text;
  enum class Kind : std::uint8_t { event, call, action, effect, note, problem } kind = Kind::event;
};
using Log = std::vector<LogLine>;

class World {
 public:
  /// `log` may be null; it must outlive the world. The set-up's scenario too.
  explicit World(const Setup& setup, Log* log = nullptr);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  /// In an order that is the same for equal states. Empty: nothing can happen any more.
  void enabled(std::vector<Event>& out) const;
  /// REQUIRES: the event came from enabled() in this very state.
  void perform(const Event& event);
  /// What people call it, such as "w0: write b", "done: copy a to device 0". Stable: replays name events so.
  [[nodiscard]] std::string name(const Event& event) const;

  /// Something is broken already: no further event may be performed.
  [[nodiscard]] const Finding& finding() const { return finding_; }
  [[nodiscard]] bool broken() const { return finding_.verdict != Verdict::clean; }
  /// Everybody has done what he had to, and nothing is under way.
  [[nodiscard]] bool finished() const;
  /// REQUIRES: enabled() is empty. Why it is stuck; or, if finished(), closes everything and says what was left over.
  [[nodiscard]] Finding conclude();
  /// Work was refused on the way here.
  [[nodiscard]] const std::string& refusal() const { return refusal_; }
  /// A fence rule was broken on the way here, and nothing has come of it yet.
  [[nodiscard]] const std::string& warning() const { return warning_; }
  /// Steps that agents have finished: whoever explores sees progress by it.
  [[nodiscard]] std::uint32_t progress() const { return progress_; }
  /// Circles of classes and the like: told, but no finding by themselves.
  [[nodiscard]] const std::vector<std::string>& remarks() const { return remarks_; }

  /// Core and machine together. Equal states have equal digests; `exact` says whether the core can tell its own.
  [[nodiscard]] std::uint64_t digest() const;
  /// The objects that an event reads or changes, for the reduction (docs/design/0013-explorer.md). 0: unknown, all.
  [[nodiscard]] std::uint64_t footprint(const Event& event) const;
  /// What a run found wrong, with who waits for whom.
  [[nodiscard]] std::string who_waits() const;

  [[nodiscard]] std::vector<std::string> participants() const;

 private:
  using Version = std::uint32_t;
  /// Versions that nobody wrote.
  static constexpr Version zeros = 0;
  static constexpr Version garbage = 0xdddd;
  static constexpr Version job_version = 0x10000;  ///< + job

  enum class Wait : std::uint8_t {
    nothing,  ///< its next step may still have a condition of its own
    fault,    ///< a wave: parked with a fault
    cpu_fault,
    reply,
  };
  struct AgentState {
    std::uint32_t pc = 0;
    Wait wait = Wait::nothing;
    bool begun = false;    ///< a wave: its demand is known to the core
    bool over = false;     ///< its client or device ended
    bool old = false;      ///< its fault came after the unmap of its page was asked for
    bool reached = false;  ///< the page of the step was faulted in: what comes is a retry
    std::uint8_t unit = no_unit;
    std::uint8_t serial = 0;  ///< of its last fault
    Status reply;
  };
  static constexpr std::uint8_t no_unit = 0xff;

  struct DeviceEntry {
    enum class To : std::uint8_t { nowhere, system, vram } to = To::nowhere;
    bool writable = false;
    VramPage vram = 0;
  };
  struct PageState {
    bool allocated = false;
    bool freeing = false;
    bool cpu_mapped = false;
    bool cpu_writable = false;    ///< never without cpu_mapped
    std::uint8_t generation = 0;  ///< replaced so often on the CPU side
    std::uint8_t pins = 0;
    bool pinned_ever = false;
    bool unmapping = false;       ///< freeing, by an unmap
    std::uint8_t discarding = 0;  ///< discards asked for and not answered
    bool discarded = false;       ///< zeros will do, until somebody looks
    std::uint16_t no_access = 0;  ///< bit d: device d may not touch it
    std::uint16_t refused = 0;    ///< ... or might not once
    Version shadow = zeros;
    Version system = zeros;
    Version stored = garbage;
    std::vector<DeviceEntry> devices;
  };
  /// What a fork's child is to see of a page, until it has its own copy.
  struct ChildPage {
    Version want = zeros;
    bool pending = false;
    bool loose = false;  ///< discarded before the fork
  };
  struct Child {
    std::uint32_t client = 0;
    std::vector<ChildPage> pages;
  };
  /// A page on its way to another address. Both are as before until the core carries it, in one moment.
  struct Move {
    std::uint32_t agent = 0;
    std::uint32_t from = 0;
    std::uint32_t to = 0;
    bool carried = false;
    bool freed = false;  ///< one of both, meanwhile: it may stay
  };
  struct BufferMap {
    enum class To : std::uint8_t { nowhere, system, vram } to = To::nowhere;
    DeviceId device = no_device;
    bool writable = false;
    std::uint8_t generation = 0;  ///< userptr: of the page when it was mapped
  };
  struct BufferState {
    bool created = false;
    Version shadow = zeros;
    Version system = zeros;
    Version stored = zeros;
    std::vector<Version> vram;
    /// [client][device, or device count for the CPU]
    std::map<std::pair<std::uint32_t, DeviceId>, BufferMap> maps;
  };
  struct JobState {
    enum class State : std::uint8_t {
      none,
      submitted,
      visible,
      running,
      ended,  ///< the machine has answered, or it will never run
    } state = State::none;
    bool cancelled = false;
    bool told = false;  ///< signal_fence came
    bool ok = false;
    std::uint32_t published = 0;  ///< its place in the order of becoming visible, from 1
    std::uint64_t cu_mask = 0;
    std::vector<core::BufferInfo> where;   ///< of its buffers, when it began
    std::vector<std::uint8_t> generation;  ///< of userptr pages when it was submitted
    std::uint32_t submitter = none;
  };
  struct FenceState {
    bool visible = false;
    bool signalled = false;
    bool ok = false;
    std::uint64_t asked_ns = 0;
    std::uint64_t deadline_ns = 0;
  };
  /// A client's process on a device.
  struct Process {
    bool alive = true;
    std::uint64_t granted = 0;  ///< units
    std::uint64_t leaving = 0;  ///< units that it was asked to leave
    unsigned demand = 0;
  };
  struct Flight {
    core::Action action;
    std::uint64_t identity = 0;
    bool effective = false;  ///< its effect has happened
    Status status;
  };
  struct Notice {
    std::uint32_t client = 0;
    DeviceId device = no_device;  ///< no_device: the application
  };

  // --- world.cpp
  void set_up();
  void settle();
  void close_down();
  void create_buffer(std::uint32_t buffer);
  void mark_read_mostly(std::uint32_t page);
  void tell_notice(std::uint32_t index);
  [[nodiscard]] bool nothing_runs() const;
  [[nodiscard]] bool only_held_jobs() const;
  void drain();
  void check_charges() const;
  void pass_time();
  [[nodiscard]] bool only_time() const;
  [[nodiscard]] bool only_retries(std::uint32_t agent) const;
  void say(LogLine::Kind kind, std::string from, std::string to, std::string text);
  [[nodiscard]] std::uint64_t key_of(const Event& event) const;
  [[nodiscard]] Finding why_stuck() const;
  [[nodiscard]] bool done_with(std::uint32_t agent) const;
  [[nodiscard]] core::Config config() const;

  // --- agents.cpp
  [[nodiscard]] bool can_step(std::uint32_t agent) const;
  void step(std::uint32_t agent);
  /// The agent's step is an access to memory that is mapped for it.
  [[nodiscard]] bool would_hit(std::uint32_t agent) const;
  bool access(std::uint32_t agent, const Step& step);
  bool access_page(std::uint32_t agent, const Step& step);
  bool access_buffer(std::uint32_t agent, const Step& step);
  void fault(std::uint32_t agent, Page page, Access access);
  void submit(std::uint32_t agent, const Step& step);
  void advance(std::uint32_t agent);
  void end_of(std::uint32_t agent);
  void refuse(const std::string& what, Status status);
  [[nodiscard]] static std::string words_of(Status status);
  [[nodiscard]] std::string describe_version(Version version) const;
  void kill(std::uint32_t client, DeviceId device);
  [[nodiscard]] bool place_wave(std::uint32_t agent, std::uint8_t& unit) const;
  /// Why the agent could go on, had it been told; empty: it could not.
  [[nodiscard]] std::string missed_wakeup(std::uint32_t agent) const;

  // --- svm.cpp
  bool svm_step(std::uint32_t agent, const Step& step);
  bool wait_for_reply(std::uint32_t agent, Status status);
  void svm_replied(std::uint32_t agent, Status status);
  void check_svm(const core::Action& action) const;
  void fail_cpu(PageSpan pages, std::uint32_t client);
  [[nodiscard]] static bool reads_right(PageState& page, Version word, bool settle);
  void fork_now(std::uint32_t client);
  void give_children(std::uint32_t page, Version word);
  void keep_for_children(std::uint32_t page);
  [[nodiscard]] std::uint64_t svm_digest() const;

  // --- moves.cpp
  bool move_step(std::uint32_t agent, const Step& step);
  void note_move(const core::Action& action);
  void carry(Move& move);
  void note_freed(std::uint32_t page);
  void move_replied(std::uint32_t agent, Status status);

  // --- machine.cpp
  void take_actions();
  void issue(const core::Action& action);
  [[nodiscard]] bool can_end(const Flight& flight) const;
  [[nodiscard]] bool is_lost(const core::Action& action, Status& status) const;
  void effect(Flight& flight);
  void fail_effect(Flight& flight, Code code);
  void effect_page(const core::Action& action);
  void effect_buffer(const core::Action& action);
  void answer(std::uint32_t flight, Status status);
  void wake_wave(const core::Action& action);
  /// `readers`: those who want to write wait on.
  void wake_cpu(PageSpan pages, std::uint32_t client, bool readers = false);
  void reply(const core::Action& action);
  void begin_job(const core::Action& action);
  void end_job(std::uint32_t job, Status status);
  void signal(const core::Action& action);
  [[nodiscard]] std::string words(const core::Action& action) const;
  [[nodiscard]] std::uint64_t identity_of(const core::Action& action) const;
  [[nodiscard]] std::string place_of(const core::Action& action) const;
  [[nodiscard]] std::string named(const std::string& text) const;
  [[nodiscard]] std::uint32_t page_at(std::uint32_t client, Page page) const;
  [[nodiscard]] std::uint32_t buffer_at(std::uint32_t client, Page page) const;
  [[nodiscard]] Version& vram_word(std::uint32_t client, DeviceId device, VramPage page);
  [[nodiscard]] Version& buffer_word(std::uint32_t buffer, core::Place where, DeviceId device);

  // --- rules.cpp
  [[noreturn]] void violate(Verdict verdict, const std::string& text) const;
  void check_units(DeviceId device) const;
  void check_move(const core::Action& action) const;
  void check_job_order(std::uint32_t job) const;
  void check_reports();
  void check_visible(std::uint32_t job) const;
  void check_job_buffer(std::uint32_t job, std::uint32_t buffer, const core::BufferInfo& info, std::size_t place);
  [[nodiscard]] std::uint32_t busy_with(std::uint32_t buffer) const;
  [[nodiscard]] std::string fence_name(std::uint32_t fence) const { return "fence " + scenario_.fences[fence]; }

  const Setup setup_;
  const Scenario& scenario_;
  Log* log_;
  std::uint32_t events_ = 0;
  std::vector<core::DeviceModel> models_;
  std::unique_ptr<core::Core> core_;
  std::uint64_t now_ns_ = 1'000'000'000;
  std::vector<core::Action> taken_;

  std::vector<AgentState> agents_;
  std::vector<PageState> pages_;
  std::vector<BufferState> buffers_;
  std::vector<JobState> jobs_;
  std::vector<FenceState> fences_;
  std::vector<bool> words_;
  std::vector<std::uint32_t> locks_;  ///< agent that holds it, or none
  std::vector<bool> client_alive_;
  std::vector<bool> forking_;  ///< by client: its fork is not answered; its waves' new faults are held back
  std::vector<Child> children_;
  std::vector<Move> moves_;                 ///< not answered
  std::vector<std::uint64_t> unmaps_seen_;  ///< by client: Core::changes() as its devices know it
  std::map<std::pair<std::uint32_t, DeviceId>, Process> processes_;
  std::map<std::uint64_t, Version> vram_;  ///< by client, device, VRAM granule; missing: garbage
  std::vector<Flight> flights_;
  std::vector<Notice> notices_;
  std::uint32_t published_ = 0;
  unsigned early_left_ = 0;
  unsigned failures_left_ = 0;
  bool failed_before_ = false;  ///< something was made to fail, or was killed: errors may follow
  std::uint32_t progress_ = 0;
  std::string refusal_;
  std::vector<std::string> remarks_;
  std::string warning_;
  Finding finding_;
  bool closing_ = false;
  bool time_is_idle_ = false;  ///< time passed, and nothing came of it
};

}  // namespace ferry::check
