// The simulated world of one run: virtual time, clients with CPU threads and waves running random programs, and the
// executor that performs the core's actions late, in any order, in parts, or not at all. Everything happens in step(),
// one event at a time, in order of time and then of scheduling.
//   world.cpp     events, phases, processes that come, stop and go
//   executor.cpp  the core's actions                  programs.cpp  threads, waves and requests
//   places.cpp    pins, discards, moves with a fence
//   attributes.cpp  what programs say about their memory
//   forks.cpp     forks, and what their children see
//   changes.cpp   unmaps, discards, protections      checks.cpp    what needs both the core and the machine
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "core/core.h"
#include "sim/memory.h"
#include "sim/sim.h"
#include "sim/swarm.h"
#include "sim/trace.h"

namespace ferry::sim {

class World final : public core::Observer {
 public:
  explicit World(const SimOptions& options);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  SimResult run();

  /// The page that the violation was about, if it was about one.
  struct Subject {
    ClientId client = 0;
    Page page = 0;
    bool known = false;
  };
  [[nodiscard]] Subject subject() const { return subject_; }
  /// Before run(): keeps the lines about one page.
  void watch(Subject subject) { trace_.watch(subject.client, subject.page); }
  [[nodiscard]] std::string watched() const { return trace_.watched(); }

 private:
  /// The run's parts. Failures, kills and stops happen in `random` only.
  enum class Phase : std::uint8_t {
    random,
    settle,  ///< no failures, no new work: everybody who waits must be served
    sweep,   ///< pages are read once more, by CPU and devices
    leave,   ///< clients free what they have, or not, and end
  };
  enum class Kind : std::uint8_t {
    agent,        ///< index: agent, stamp: its life
    manage,       ///< index: client
    post,         ///< a device fault reaches the manager; value: token
    post_cpu,     ///< a CPU fault reaches the manager; index: client, value: page << 1 | is_write
    part,         ///< index: flight, stamp: its use, value: which part
    done,         ///< index: flight, stamp: its use
    attach,       ///< index: client, stamp: its life, value: device
    device_dies,  ///< same
    device_gone,  ///< same
    client_gone,  ///< index: client, stamp: its life
    go_on,        ///< a stopped process runs again; same as attach, value == no_device: the application
    reopen,       ///< index: client
  };
  struct Event {
    std::uint64_t time_ns;
    std::uint64_t order;
    std::uint64_t value;
    std::uint32_t index;
    std::uint32_t stamp;
    Kind kind;
  };
  struct Later {
    bool operator()(const Event& a, const Event& b) const {
      return a.time_ns != b.time_ns ? a.time_ns > b.time_ns : a.order > b.order;
    }
  };

  enum class Pattern : std::uint8_t { scan, hot, random };
  struct Agent {
    unsigned slot = 0;
    std::uint32_t number = 0;  ///< in its client, for the trace
    bool is_wave = false;
    DeviceId device = no_device;
    std::uint32_t life = 0;  ///< raised when it is stopped for good: events of former lives are dropped
    bool alive = false;
    bool blocked = false;  ///< in a fault
    bool parked = false;   ///< has nothing to do: no event of it is queued
    bool has_op = false;
    bool stray = false;  ///< the fault under way is at an address that was not meant
    Page page = 0;
    Op op = Op::read;
    std::uint64_t token = 0;
    std::uint32_t retries = 0;
    Pattern pattern = Pattern::scan;
    PageSpan target;
    std::uint64_t cursor = 0;
    unsigned left = 0;        ///< accesses before it picks another pattern
    std::vector<Page> sweep;  ///< still to read, last first
  };
  /// One that runs: an application or a device process.
  struct Process {
    bool stopped = false;
    std::vector<Event> waiting;  ///< what happens when it runs again
  };
  enum class DeviceState : std::uint8_t { none, attached, dead, gone };
  struct ClientDevice {
    DeviceState state = DeviceState::none;
    std::uint32_t life = 0;  ///< raised with each process: actions meant for a former one find it lost
    Process process;
  };
  struct Pin {
    PageSpan span;
    DeviceId device = no_device;
  };
  enum class ClientState : std::uint8_t { closed, running, dead, leaving };
  struct Client {
    ClientId id = 0;
    ClientState state = ClientState::closed;
    std::uint32_t life = 0;
    Process process;
    std::vector<ClientDevice> devices;
    std::vector<std::uint32_t> agents;
    std::vector<PageSpan> spans;  ///< allocated now
    std::vector<PageSpan> freed;  ///< free to be allocated again, newest last
    std::vector<Page> hot;
    std::vector<Pin> pins;
    std::vector<core::Attributes> said;   ///< by page of the window
    std::vector<std::uint64_t> unmapped;  ///< by page of the window: number of its last unmap
    bool forking = false;                 ///< client_fork is not answered
    std::vector<std::uint64_t> held;      ///< tokens of device faults that wait for that
    bool groups = false;                  ///< pages were put into groups
    bool plain = true;                    ///< nothing was ever said: contention alone decides what is served in place
    bool parked = false;                  ///< no manage event is queued
  };
  /// A device fault from the wave's park to its wake.
  struct Fault {
    std::uint32_t agent = 0;
    std::uint32_t agent_life = 0;
    unsigned slot = 0;
    std::uint32_t client_life = 0;
    DeviceId device = no_device;
    Page page = 0;
    Access access = Access::read;
    std::uint32_t page_generation = 0;
    bool was_allocated = false;
    bool delivered = false;
    bool carried = false;    ///< a map_device with the token is under way
    bool forgotten = false;  ///< its device was reported gone
    bool no_retry = false;   ///< read while its client had retry faults off
    bool old = false;        ///< it was read after its page was unmapped
    std::uint64_t seen = 0;  ///< Core::changes() when the wave touched the page
    bool ended = false;      ///< its wake is decided, not yet performed
  };
  enum class RequestKind : std::uint8_t {
    free,
    prefetch,
    gone,
    pin,
    discard,
    migrate,
    attributes,
    unmap,
    zero,
    protect,
    fork,
    move
  };
  struct Request {
    RequestKind kind = RequestKind::free;
    unsigned slot = 0;
    std::uint32_t client_life = 0;
    PageSpan span;
    DeviceId device = no_device;  ///< pin
    bool replied = false;         ///< decided, not yet performed
    std::uint64_t begun = 0;      ///< discard: Memory::begin_discard()
    std::vector<PageSpan> parts;  ///< unmap, zero: of the span, what was allocated; move: the span and its target
  };
  /// An action from the core's decision to its answer (or, without id, to its effect).
  struct Flight {
    core::Action action;
    std::uint32_t stamp = 0;
    bool in_use = false;
    unsigned slot = 0;
    std::uint8_t parts_left = 0;
    std::uint32_t split = 0;  ///< pages in the first part
    std::uint32_t device_life = 0;
    Status status;
  };

  // --- world.cpp
  void on_event(const core::Event& event) override;
  void schedule(std::uint64_t delay_ns, Kind kind, std::uint32_t index, std::uint32_t stamp, std::uint64_t value = 0);
  [[nodiscard]] std::uint64_t delay();
  bool core_tick();
  bool step();
  void dispatch(const Event& event);
  void drain(const char* doing);
  void random_trouble();
  void squeeze();
  void open_client(unsigned slot);
  void kill_client(unsigned slot);
  void kill_device(unsigned slot, DeviceId device);
  void stop_process(unsigned slot, DeviceId device);
  void go_on(unsigned slot, DeviceId device);
  void device_process_ended(unsigned slot, DeviceId device);
  void forget_agent(Agent& agent);
  void client_closed(unsigned slot);
  void enter(Phase phase);
  void line(Line kind, unsigned slot, DeviceId device, std::uint64_t a = 0, std::uint64_t b = 0, std::uint64_t c = 0,
            std::uint64_t d = 0);
  void look_at(unsigned slot, Page page) const { subject_ = {clients_[slot].id, page, true}; }
  /// Bugs that are the executor's.
  [[nodiscard]] bool planted(core::PlantedBug bug) const { return options_.bug == bug; }
  [[nodiscard]] Process& process_of(unsigned slot, DeviceId device) {
    return device == no_device ? clients_[slot].process : clients_[slot].devices[device].process;
  }

  // --- programs.cpp
  void make_agents(unsigned slot);
  void run_agent(std::uint32_t index);
  bool pick_access(Agent& agent);
  void pick_pattern(Agent& agent);
  void post_fault(std::uint32_t index, Page page, Access access);
  void deliver_fault(std::uint64_t token);
  void deliver_cpu_fault(unsigned slot, Page page, Access access);
  void wake_agent(std::uint32_t index, Status status);
  /// `readers`: those who want to write wait on.
  /// Calls fn(page) for those of the pages that are the window's.
  template <typename Fn>
  void for_window(PageSpan pages, Fn&& fn) {
    for (Page p = std::max(pages.first, memory_.window().first); p < std::min(pages.end(), memory_.window().end());
         ++p) {
      fn(p);
    }
  }
  void wake_cpu_waiters(unsigned slot, PageSpan span, Status status, bool readers = false);
  void start_agent(std::uint32_t index, std::uint64_t delay_ns);
  void manage(unsigned slot);
  void do_alloc(unsigned slot);
  void do_free(unsigned slot);
  void free_span(unsigned slot, PageSpan span);
  void do_prefetch(unsigned slot);
  void do_bad_request(unsigned slot);
  // changes.cpp
  void do_unmap(unsigned slot);
  void do_zero(unsigned slot);
  void do_protect(unsigned slot);
  void change_replied(const Request& request, Status status);
  // moves.cpp
  void do_move(unsigned slot);
  [[nodiscard]] bool may_move(unsigned slot, PageSpan span) const;
  void moved(const Request& request, Status status);
  [[nodiscard]] PageSpan part_of_move(unsigned slot);
  [[nodiscard]] bool under_move(unsigned slot, PageSpan span) const;
  /// The application may free it: allocated, or on its way to or from another address.
  [[nodiscard]] bool may_free(unsigned slot, Page page) const {
    return memory_.state(slot, page) == AllocState::allocated || memory_.moving(slot, page);
  }
  [[nodiscard]] bool leave_alone(unsigned slot, PageSpan span);
  [[nodiscard]] std::vector<PageSpan> allocated_in(unsigned slot, PageSpan span, bool moving = false) const;
  void call_the_dead(unsigned slot);
  [[nodiscard]] PageSpan random_span(unsigned slot);
  [[nodiscard]] bool span_has(unsigned slot, PageSpan span, AllocState state) const;
  [[nodiscard]] bool span_exists(unsigned slot, PageSpan span) const;
  void drop_span(unsigned slot, PageSpan span);
  void start_sweep();
  void ask_prefetch(unsigned slot, PageSpan span, DeviceId device);
  std::uint64_t new_cookie(RequestKind kind, unsigned slot, PageSpan span);

  // --- places.cpp
  void ask_places(unsigned slot);
  void do_pin(unsigned slot);
  void do_unpin(unsigned slot, bool all);
  void do_dma(unsigned slot);
  void do_discard(unsigned slot);
  void do_populate(unsigned slot);
  void do_migrate(unsigned slot);
  void pinned(const Request& request);
  void check_signal(const core::Action& action);
  void check_pin_reply(const Request& request, const core::Action& action) const;
  [[nodiscard]] bool may_be_pinned(unsigned slot, PageSpan span) const;
  [[nodiscard]] PageSpan part_of_allocation(unsigned slot);
  [[nodiscard]] bool linked(DeviceId a, DeviceId b) const {
    const auto& hives = swarm_.core.hives;
    return a != b && a < hives.size() && b < hives.size() && hives[a] != 0 && hives[a] == hives[b];
  }

  // --- forks.cpp
  void do_fork(unsigned slot);
  void forked(const Request& request, Status status);
  void keep_for_children(unsigned slot, PageSpan span);
  void do_child(unsigned slot);
  void leave_children(unsigned slot);

  // --- attributes.cpp
  void ask_attributes(unsigned slot);
  void do_set(unsigned slot, PageSpan span);
  void set_lines(unsigned slot, PageSpan span, std::vector<core::Attribute> changes);
  void reset_attributes(unsigned slot, PageSpan span);
  void forget_attributes(unsigned slot);
  void check_get(unsigned slot, PageSpan span);
  [[nodiscard]] const core::Attributes& said(unsigned slot, Page page) const {
    return clients_[slot].said[page - memory_.window().first];
  }
  [[nodiscard]] bool may_reach(unsigned slot, Page page, DeviceId device, bool write) const;
  void check_mapping(const core::Action& action) const;
  void check_attributes_reply(const Request& request) const;
  [[nodiscard]] bool keeps_from_cpu(unsigned slot, Page page, const core::Residency& place) const;
  void check_refused(const core::Action& action) const;
  void do_retry(unsigned slot);
  void check_said(unsigned slot, Page page) const;

  // --- executor.cpp
  void take_actions();
  void issue(const core::Action& action);
  void check_conflicts(const core::Action& action) const;
  void check_wake(const core::Action& action);
  void check_reply(const core::Action& action);
  void check_told(const core::Action& action) const;
  void perform_part(std::uint32_t index, unsigned part);
  [[nodiscard]] Status inject_failure(const core::Action& action);
  void fail_pages(Flight& flight, PageSpan pages);
  void perform_pages(Flight& flight, PageSpan pages);
  void finish_flight(std::uint32_t index);
  void answer(std::uint32_t index);
  void end_fault(std::uint64_t token, Status status);
  void perform_reply(const core::Action& action);
  [[nodiscard]] unsigned slot_of(const core::Action& action) const;

  // --- checks.cpp
  void periodic_check();
  void check_view(bool quiet) const;
  void check_stuck(const char* doing) const;
  void check_settled() const;
  void check_empty() const;
  void check_effects();
  void check_counts() const;
  void check_budget() const;
  void check_held() const;
  void client_counts(ClientId id);
  void check_migration(const core::Event& event);
  void check_copy(const core::Action& copy);
  [[nodiscard]] std::string who_waits() const;
  [[nodiscard]] std::string circle() const;

  SimOptions options_;
  Random random_;
  Swarm swarm_;
  Memory memory_;
  Trace trace_;
  std::string command_;
  std::unique_ptr<core::Core> core_;
  Phase phase_ = Phase::random;
  std::uint64_t now_ns_ = 1;
  std::uint64_t steps_ = 0;
  std::uint64_t order_ = 0;
  std::vector<Event> queue_;  ///< heap by Later
  std::vector<Client> clients_;
  std::vector<Agent> agents_;
  std::map<std::uint64_t, Fault> faults_;
  std::map<std::uint64_t, Request> requests_;
  std::vector<Flight> flights_;
  std::vector<std::uint32_t> flight_holes_;
  std::vector<core::Action> taken_;
  std::uint64_t next_token_ = 0;
  std::uint64_t next_cookie_ = 0;
  ClientId next_client_id_ = 1;
  SimStats stats_;
  /// A granule between migrate_begin and migrate_end.
  struct Migration {
    core::Place to = core::Place::system;
    std::uint64_t copies = 0;
  };
  std::map<std::pair<ClientId, Page>, Migration> moving_;
  std::uint64_t budget_ = 0;  ///< of system memory, the largest that was set
  core::Stats seen_;          ///< what the core's statistics must say (I-20); the fields that can be told from outside
  core::Stats clients_sum_;   ///< the core's statistics of the clients that are closed, added up
  mutable Subject subject_;   ///< what the checks look at now
};

}  // namespace ferry::sim
