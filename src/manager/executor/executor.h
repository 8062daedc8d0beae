// Performs the core's actions with system calls, and takes in what answers them. One folder, split by verb:
//   executor.cpp  dispatch, completions, waves          cpu.cpp     revoke_cpu, map_cpu, CPU faults
//   commands.cpp  commands to agents and their answers  device.cpp  map_device, revoke_device, device faults
//   protect.cpp   protect_cpu, map_cpu for reading
//   copy.cpp      copy, release_chunk, discard_system   store.cpp   store, load, discard_store
//   buffer.cpp    *_buffer                              job.cpp     run_job, cancel_job, signal_fence
//   change.cpp    what the application did to its mappings
//   video.cpp     the video engine's threads
//   fork.cpp      forks come and go       fork_pages.cpp  what children still need of the application's pages
//   adopt.cpp     device faults outside the window: asking the application and the device for the pages
//   files.cpp     the application's own files, which devices map where they are
//   unit.cpp      grant_cus, revoke_cus, graphics jobs on the device process, reset_device
// Main thread only. The path of a fault allocates nothing in steady state and takes no lock but the kernel's.
// Never touches managed memory through an application's address, only through the manager's own mappings of the files.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "core/core.h"
#include "linux/copy_engine.h"
#include "manager/client.h"
#include "manager/command.h"
#include "manager/config.h"
#include "manager/executor/video.h"
#include "manager/fork.h"
#include "manager/store_client.h"
#include "wire/adopt.h"
#include "wire/files.h"

namespace ferry::manager {

/// What the executor needs from its owner.
class Household {
 public:
  [[nodiscard]] virtual Client* find_client(ClientId id) = 0;
  virtual void on_reply(core::Cookie cookie, Status status) = 0;
  /// The fence has signalled.
  virtual void on_fence(core::FenceId fence, Status status) = 0;
  /// The peer broke the protocol: end it, after this turn.
  virtual void drop_device(Client& client, DeviceId device, const char* why) = 0;
  virtual void drop_client(Client& client, const char* why) = 0;
  /// The application that asked may fork now.
  virtual void fork_ready(Client& /*client*/, std::uint64_t /*request*/) {}
  /// The request is answered by `done`.
  virtual void answer_request(Client& /*client*/, std::uint64_t /*request*/, Status /*status*/) {}
  /// Its descriptors are not watched any more.
  virtual void fork_ended(Fork& /*fork*/) {}

 protected:
  ~Household() = default;
};

/// What a job is to run, as its client sent it; unchecked but for its size. Kept from submission to signal.
struct JobPayload {
  wire::LaunchPacket packet;  ///< graphics: what each wave calls. Copy and video: arguments in `captures`
};

/// A buffer's memory. Kept until the core has forgotten the buffer.
struct BufferMemory {
  std::uint64_t count_pages = 0;
  std::uint64_t half_bytes = 0;  ///< from here on the file is VRAM; whole blocks, so that both halves may be huge
  linux::Fd file;                ///< invalid: a userptr
  linux::Mapping map;            ///< both halves, once they were needed
  bool userptr = false;
  PageSpan user_pages;
  ClientId maker = 0;
  /// CPU threads may still read the half that it was taken from them in: it is punched before a move is done.
  bool readers_left = false;
  DeviceId vram_device = no_device;        ///< whose VRAM the second half was last
  std::vector<linux::StoreHandle> stored;  ///< beneath system memory, a page each; or empty
  core::ActionId storing = 0;              ///< the move to or from there that is under way
};

class Executor final : private StoreUser {
 public:
  /// `store` may be null: there is none.
  Executor(core::Core& core, Household& household, const ManagerConfig& config, const linux::Bell& bell,
           unsigned copy_threads, std::unique_ptr<linux::Store> store);

  void set_time(std::uint64_t now_ns) { now_ns_ = now_ns; }

  /// Performs what the core wants, then posts commands and wakes who sleeps. Bounded: the core may want more afterwards.
  void run_actions();
  /// One of them, with its commands left for the next run_actions(). With id 0 nobody is told how it ended.
  void perform(const core::Action& action);
  /// Takes in finished copies, stores and loads. True if there were some.
  bool poll_copies();
  /// Takes in finished video jobs. True if there were some.
  bool poll_video();
  [[nodiscard]] bool has_completions() const {
    return engine_.has_completions() || store_.has_completions() || video_.has_completions();
  }
  [[nodiscard]] bool copying() const { return engine_.in_flight() != 0 || store_.in_flight() != 0; }
  /// Before sleeping: set, then look at has_completions() once more.
  void set_owner_sleeping(bool sleeping) {
    engine_.set_owner_sleeping(sleeping);
    store_.set_owner_sleeping(sleeping);
  }
  /// Set for good with the first graphics job.
  [[nodiscard]] bool runs_graphics() const { return runs_graphics_; }
  /// Commands or copies under way, or compute units on their way back.
  [[nodiscard]] bool expecting() const { return commands_.live() != 0 || !leaving_.empty() || copying(); }
  [[nodiscard]] const StoreClient& store_client() const { return store_; }

  /// With a budget, before anything of the span was touched: no page of it gets memory but through the core.
  /// The span is the client's already, as the core knows it.
  void steer(Client& client, PageSpan pages);

  // --- what peers say; every field is unchecked ---
  void on_wave_fault(Client& client, DeviceId device, unsigned cu, const wire::UpRecord& record);
  void on_done(Client& client, DeviceId device, unsigned cu, const wire::UpRecord& record);
  void on_units_left(Client& client, DeviceId device, const wire::UpRecord& record);
  void on_job_done(Client& client, DeviceId device, const wire::UpRecord& record);
  /// `thread`: whose touch it is, in its own numbering; 0: unknown.
  void on_cpu_fault(Client& client, std::uint64_t address, Access access, std::uint32_t thread = 0);

  // --- changes of the application's mappings (change.cpp) ---
  void protected_by_application(Client& client, PageSpan pages, bool back_to_normal);
  void mapped_over(Client& client, PageSpan pages);

  // --- files of the application (files.cpp) ---
  /// The devices named were sent the file. ERRORS, and nothing has changed: bad_range, no_mappings (more than a client may
  /// have).
  Status serve_file(Client& client, const wire::FileServe& body);
  /// No device maps a file in the span any more when the request is answered.
  void drop_files(Client& client, PageSpan pages, std::uint64_t request);

  // --- memory outside the window (adopt.cpp) ---
  void on_adopt_answer(Client& client, const wire::AdoptAnswer& body);
  /// The span has become managed, or free again: waves that wait for it are looked at once more.
  void look_at_held(Client& client, PageSpan span);

  /// Stale answers in a row: an application that says of what it does not give that it is managed would be asked for ever.
  static constexpr unsigned stale_answers_max = 16;
  /// Reads what outside_userfault has to say into Client::told: the kernel refuses to give pages while it waits to be
  /// heard. False: it cannot be read.
  static bool read_outside(Client& client);

  // --- endings ---
  /// The device process is gone, and the core does not know yet: aborts if what it could reach is not what the core had
  /// mapped for it (I-07).
  void check_dma(Client& client, DeviceId device) const;
  /// The device process is gone: answers everything that was asked of it. The core knows already.
  void device_ended(Client& client, DeviceId device);
  /// The application is gone or has let go: answers everything that was asked of its agent.
  void client_ended(Client& client);
  /// The core has let go of the client: what the store holds of it goes.
  void forget_client(Client& client);
  /// Looks for devices that owe an answer for too long. To be called about once a second while expecting().
  void check_deadlines();

  // --- buffers (buffer.cpp) ---
  /// ERRORS: no_memory.
  Status make_buffer(core::BufferId id, const core::BufferSpec& spec, ClientId client);
  void drop_buffer(core::BufferId id);
  [[nodiscard]] std::uint64_t buffer_pages(core::BufferId id) const;
  /// -1: it is the application's own memory.
  [[nodiscard]] int buffer_file(core::BufferId id) const;
  /// ERRORS: no_mappings, bad_range (the application has not mapped the buffer there).
  Status add_place(Client& client, core::BufferId id, PageSpan span);
  void remove_place(Client& client, Page first);
  void forget_places(Client& client, PageSpan span);
  void forget_buffer_file(Client& client, std::uint32_t slot);

  // --- jobs (job.cpp) ---
  /// What the job is to do lies inside buffers of its list, with the access that it needs.
  [[nodiscard]] bool may_run(const core::JobSpec& spec, const wire::LaunchPacket& packet) const;
  void add_payload(core::FenceId fence, const wire::LaunchPacket& packet);
  void drop_payload(core::FenceId fence);

  // --- forks (fork.cpp) ---
  [[nodiscard]] Fork* find_fork(std::uint64_t number);
  Fork& add_fork(Client& client, linux::Fd socket);
  Fork& add_grandchild(const Fork& parent, linux::Fd socket);
  [[nodiscard]] std::uint64_t taken_pages(const Fork& fork) const;
  void end_fork(Fork& fork);
  void forget_forks();
  [[nodiscard]] bool has_forks() const { return !forks_.empty(); }
  [[nodiscard]] std::size_t fork_count() const { return forks_.size(); }
  /// The core has taken all pages from the client's devices; fork_ready() follows.
  void zap_for_fork(Client& client);
  void note_gate() { ++gates_; }
  void open_gate(Client& client);
  /// Pinned pages for children that are being forked, some a call. True: more are to be copied.
  bool copy_for_forks();
  /// The forking thread has heard that it may fork.
  void fork_goes(Client& client);
  /// Gates that stand for too long are opened.
  void check_gates();
  [[nodiscard]] bool gates() const { return gates_ != 0; }
  void child_arrived(Fork& fork, linux::Userfaultfd userfault);
  /// Its socket has closed.
  void child_left(Fork& fork);
  bool on_child(Fork& fork);
  bool serve_children();
  /// Children wait for pages that could not be given at once: serve_children() is to be called soon.
  [[nodiscard]] bool children_wait() const;
  /// Before pages are given up (free, discard, unmap): false, call again, while some have to come from the store.
  bool give_children(Client& client, PageSpan pages);
  /// The application has ended: what its children need is copied, some in each turn. True: nothing of it is needed.
  bool drain_forks(Client& client);
  bool drain_hurried();

  std::uint64_t copy_to_vram_ns = 0;
  std::uint64_t copy_to_system_ns = 0;
  std::uint64_t copy_to_peer_ns = 0;

  static constexpr unsigned no_cu = ~0U;  ///< on_done: from the agent

 private:
  struct Copy {
    core::ActionId action = 0;
    core::Verb verb = core::Verb::copy;
    core::Place source = core::Place::system;
    core::Place to = core::Place::system;  ///< copy: vram only from device to device
    Client* client = nullptr;
    DeviceId device = no_device;
    PageSpan pages;
    Access fault_access = Access::read;
    bool has_token = false;
    core::FaultToken token;
    bool whole_huge = false;
    std::uint8_t* chunk_ready = nullptr;  ///< of the chunk that it prepares; or null
    core::FenceId fence = 0;              ///< run_job
    core::BufferId buffer = 0;            ///< move_buffer; `source` is the place that it leaves
    std::uint64_t bytes = 0;              ///< run_job: of this part
  };

  /// A job on the copy or video engine.
  struct RunningJob {
    core::ActionId action = 0;
    std::shared_ptr<std::atomic<bool>> cancelled;
    wire::CopyArguments copy{};
    std::byte* source = nullptr;
    std::byte* target = nullptr;
    std::uint64_t copied = 0;
  };

  void done(core::ActionId id, Status status) {
    if (id != 0) core_.action_done(now_ns_, id, status);
  }
  void flush();
  void wake_all();

  // commands.cpp
  std::uint32_t make_command(Client& client, DeviceId device, CommandKind kind, PageSpan pages, core::ActionId action);
  bool grow_open(Client& client, DeviceId device, CommandKind kind, const core::Action& action);
  void leave_open(Client& client, DeviceId device, std::uint32_t index);
  void close_open(Client& client, DeviceId device);
  void send(std::uint32_t index);
  void finish(std::uint32_t index, Status status);
  [[nodiscard]] static Agent& agent_of(Client& client, DeviceId device);
  void note_agent(Client& client, DeviceId device);

  // cpu.cpp
  void revoke_cpu(Client& client, const core::Action& action);
  void map_cpu(Client& client, const core::Action& action);
  void arm(Client& client, BlockIndex index, BlockState& block);
  bool arm_run(Client& client, BlockIndex index, BlockState& block, unsigned first, unsigned count);
  void arm_allocations(Client& client, BlockIndex index);
  bool arm_mappings(Client& client, BlockIndex index);
  static void note_armed(Client& client, PageSpan pages);
  void disarm(Client& client, BlockIndex index, BlockState& block, const PageMask& pages);
  Status give_cpu(Client& client, PageSpan pages);
  void give_around(Client& client, BlockState& block, Page page);
  void lose_cpu(Client& client, PageSpan pages, Status status);
  void let_cpu(Client& client, PageSpan pages);
  Status give_span(const linux::Userfaultfd& userfault, Client& client, PageSpan pages, bool wake,
                   linux::MapRights rights = linux::MapRights::read_write);
  Status fill(Client& client, PageSpan pages);

  // protect.cpp
  void protect_cpu(Client& client, const core::Action& action);
  Status give_cpu_reading(Client& client, PageSpan pages);
  void allow_cpu_writes(Client& client, BlockIndex index, BlockState& block, const PageMask& pages);
  static void forget_guard(BlockState& block, const PageMask& pages);
  void guard(Client& client, BlockIndex index, BlockState& block, const PageMask& pages);
  void guard_run(Client& client, BlockIndex index, BlockState& block, unsigned first, unsigned count);
  bool protect_run(Client& client, BlockIndex index, unsigned first, unsigned count);

  // fork.cpp
  void watch_for_fork(Client& client, PageSpan pages);
  void fork_zapped(Client& client);
  void begin_copying(Client& client);
  std::uint64_t copy_pinned(Client& client, Fork& fork, BlockIndex index);
  void frozen(Client& client);
  void device_left_gate(Client& client, DeviceId device);
  bool gate_holds(Client& client, const core::Action& action);
  bool gate_is_stuck(Client& client);
  void leave_origin(Fork& fork);
  void stop_watching(Client& client);
  void finish_if_complete(Fork& fork);
  void let_go(Fork& fork);
  void give_child(Fork& fork, BlockIndex index, PageMask pages, const std::byte* bytes);
  void give_taken(Fork& fork);
  const std::byte* newest_bytes(Client& origin, Page page, bool& hole);
  void give_block(Fork& fork, BlockIndex index, const PageMask& wanted);
  void give_children_before(Client& client, const core::Action& action);
  void give_file_pages(Fork& fork, Client& client, BlockIndex index, const PageMask& pages);
  void drain(Fork& fork);
  bool read_child(Fork& fork);
  bool child_touched(Fork& fork, std::uint64_t address);
  void child_moved(Fork& fork, const Fork::Move& move);
  static void child_dropped(Fork& fork, std::uint64_t start, std::uint64_t end);
  void lose_children(Client& client, PageSpan pages);
  void lose_child(Fork& fork, Page page);

  // device.cpp
  void map_device(Client& client, const core::Action& action);
  void map_in_place(Client& client, BlockState& block, const core::Action& action);
  [[nodiscard]] static wire::DownRecord extent_record(const core::Action& action, DeviceId& owner);
  void send_extent(Client& client, DevicePeer& peer, const core::Action& action);
  void revoke_device(Client& client, const core::Action& action);
  void give_device(Client& client, DeviceId device, PageSpan pages, core::ActionId action, bool has_token,
                   core::FaultToken token);
  [[nodiscard]] bool may_call(Client& client, DeviceId device, Page page) const;
  static void out_of_reach(Client& client, DeviceId device, PageSpan pages);
  static void open_dma(DevicePeer& peer, DeviceBlock& block, const PageMask& pages);
  static void close_dma(DevicePeer& peer, DeviceBlock& block, const PageMask& pages);
  void armed_again(Client& client, DeviceId device, PageSpan pages);
  void disarmed(Client& client, DeviceId device, PageSpan pages);
  // files.cpp
  bool hold_for_file(Client& client, const HeldWave& wave);
  [[nodiscard]] static bool file_serves(const Client& client, const HeldWave& wave);
  [[nodiscard]] static PageSpan free_around(const Client& client, DeviceId device, PageSpan span, Page page);
  void file_mapped(std::uint32_t command, const wire::UpRecord& record);
  void refuse_file(Client& client, DeviceId device, Page page, int error);
  void revoke_file(Client& client, FileSpan& span);
  void file_gone(Client& client, std::uint64_t epoch);
  void forget_files(Client& client, DeviceId device);
  void answer_drops(Client& client);
  // adopt.cpp
  bool hold_outside(Client& client, const HeldWave& wave);
  void hold(Client& client, const HeldWave& wave);
  void ask_next(Client& client);
  void admit(Client& client, DeviceId device, Page page, const core::Action* action);
  bool map_outside(Client& client, const core::Action& action);
  void next_run(Client& client, std::uint32_t index);
  void revoke_runs(Client& client, DeviceId device, CommandKind kind, const core::Action& action);
  void admit_done(Client& client, std::uint32_t index, Status status);
  void wave_to_core(Client& client, const HeldWave& wave);
  void refuse_wave(Client& client, const HeldWave& wave, wire::Refusal why);

  WaveSlot* slot_of(DevicePeer& peer, core::FaultToken token, unsigned& cu, unsigned& slot);
  void resume(Client& client, DeviceId device, core::FaultToken token, Status status);
  void resume_slot(Client& client, DeviceId device, unsigned cu, unsigned slot, Status status,
                   wire::Refusal refusal = wire::Refusal::none);

  // copy.cpp
  void copy(Client& client, const core::Action& action);
  void copy_to_peer(Client& client, const core::Action& action);
  void copy_system(Client& client, const core::Action& action);
  static std::uint8_t* prepare_chunk(DevicePeer& peer, VramPage page, linux::CopyJob& job);
  void release_chunk(Client& client, const core::Action& action);
  void discard_system(Client& client, const core::Action& action);
  std::uint64_t make_copy(const core::Action& action, Client& client);
  std::uint32_t take_copy();
  void copy_done(const linux::CopyCompletion& completion);

  // store.cpp
  void store(Client& client, const core::Action& action);
  void load(Client& client, const core::Action& action);
  void discard_store(Client& client, const core::Action& action);
  void stored(std::uint64_t tag, Status status, std::span<const linux::StoreHandle> handles) override;
  void loaded(std::uint64_t tag, Status status) override;

  // buffer.cpp; the client may be gone: null
  void move_buffer(const core::Action& action);
  void map_buffer(Client* client, const core::Action& action);
  void revoke_buffer(Client* client, const core::Action& action);
  void release_buffer(const core::Action& action);
  void buffer_moved(const Copy& copy, Status status);
  bool stop_writes(Client& client, Page first, BufferPlace& place);
  void move_stored(BufferMemory& buffer, const core::Action& action);
  /// Told of buffers' pages; the tag is the buffer.
  class BufferStore final : public StoreUser {
   public:
    explicit BufferStore(Executor& executor) : executor_(executor) {}
    void stored(std::uint64_t tag, Status status, std::span<const linux::StoreHandle> handles) override;
    void loaded(std::uint64_t tag, Status status) override;

   private:
    Executor& executor_;
  };
  std::uint64_t make_buffer_copy(const core::Action& action);
  [[nodiscard]] std::byte* buffer_half(BufferMemory& buffer, core::Place place);
  void on_buffer_touch(Client& client, Page page, Page first, BufferPlace& place, Access access);
  void buffer_mapped(Client& client, PageSpan pages);
  static bool send_peer_file(Client& client, const Command& command);
  bool send_buffer_file(Client& client, DeviceId device, const Command& command);

  // job.cpp
  void run_job(Client* client, const core::Action& action);
  void cancel_job(Client* client, const core::Action& action);
  void signal_fence(const core::Action& action);
  [[nodiscard]] std::byte* buffer_now(core::BufferId id);
  void copy_part(core::FenceId fence, RunningJob& running);
  void copy_part_done(const Copy& copy, Status status);
  void end_job(core::FenceId fence, Status status);

  // unit.cpp
  void grant_units(Client& client, const core::Action& action);
  void revoke_units(Client& client, const core::Action& action);
  /// Runs a graphics job on the client's device process; answers the action when it ended.
  void run_graphics(Client& client, const core::Action& action, const JobPayload& payload);
  void cancel_graphics(Client& client, const core::Action& action);
  void reset_device(Client& client, const core::Action& action);
  void units_ended(Client& client, DeviceId device);
  void check_units(bool slept);

  /// Compute units that a device was asked to leave.
  struct Leaving {
    Client* client = nullptr;
    DeviceId device = no_device;
    core::ActionId action = 0;
    std::uint64_t units = 0;
    std::uint64_t since_ns = 0;  ///< it could have left them
  };
  struct GraphicsRun {
    Client* client = nullptr;
    DeviceId device = no_device;
    core::ActionId action = 0;
    core::FenceId fence = 0;
    unsigned slot = 0;
  };

  core::Core& core_;
  Household& household_;
  const ManagerConfig& config_;
  // Before the engines, whose threads use it until they have ended.
  std::map<core::BufferId, BufferMemory> buffers_;
  BufferStore buffer_store_{*this};
  std::unordered_map<core::FenceId, std::unique_ptr<JobPayload>> payloads_;
  std::map<core::FenceId, RunningJob> running_;
  linux::CopyEngine engine_;
  StoreClient store_;
  VideoEngine video_;
  std::uint64_t now_ns_ = 0;
  std::uint64_t last_deadline_check_ns_ = 0;
  std::uint64_t pieces_max_ = 0;

  CommandPool commands_;
  std::vector<core::Action> actions_;
  std::vector<Copy> copies_;
  std::vector<std::uint32_t> free_copies_;
  std::vector<linux::CopyCompletion> completions_;
  struct Posted {
    Client* client;
    DeviceId device;
    unsigned cu;  ///< no_cu: the agent
  };
  std::vector<Posted> posted_;  ///< ports with commands that nobody was woken for
  struct OpenCommand {
    Client* client;
    DeviceId device;
  };
  std::vector<OpenCommand> open_;
  std::vector<Leaving> leaving_;
  std::vector<GraphicsRun> graphics_;
  bool runs_graphics_ = false;
  struct ForkTouch {
    std::uint64_t fork;
    std::uint64_t address;
  };
  std::vector<std::unique_ptr<Fork>> forks_;
  std::vector<ForkTouch> fork_touches_;  ///< not served yet
  std::uint64_t next_fork_ = 1;
  unsigned gates_ = 0;  ///< at most so many stand
};

}  // namespace ferry::manager
