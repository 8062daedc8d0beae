// ferryd without its command line: one main thread that polls peers, feeds the core, has its actions performed, and
// sleeps when nobody wants anything. Split by what it does:
//   manager.cpp    the loop            requests.cpp   messages of connections
//   lifecycle.cpp  hello, devices, endings             fork_requests.cpp, work_requests.cpp, job_requests.cpp, tokens.cpp
// Everything here runs on the thread that calls run(), but request_stop().
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/core.h"
#include "linux/closer.h"
#include "linux/event.h"
#include "linux/pressure.h"
#include "linux/socket.h"
#include "manager/client.h"
#include "manager/config.h"
#include "manager/executor/executor.h"
#include "manager/listener.h"
#include "manager/recorder.h"
#include "manager/stats_json.h"
#include "manager/watermark.h"
#include "manager/work_table.h"

namespace ferry::manager {

class Manager final : private Household {
 public:
  /// ERRORS: those of Listener; bad_message (a descriptor that was named is not what it should be), no_memory.
  static Result<std::unique_ptr<Manager>> make(const ManagerConfig& config);
  ~Manager();

  /// Serves until asked to stop, or (private) until the application has gone. Then writes the files that were asked
  /// for. ERRORS: no_space, io_error: a file could not be written (the log says which).
  Status run();

  /// From a signal handler or another thread.
  void request_stop() const { stop_.ring(); }

 private:
  /// What an epoll event is about.
  enum class Source : std::uint8_t {
    stop,
    copies,
    listener,
    connection,
    kick,
    application,
    userfault,
    device,
    device_socket,
    token,
    stall,
    cgroup,
    fork,        ///< a child's socket; with its number
    fork_memory  ///< a child's userfaultfd
  };

  /// Who waits for the answer behind a cookie.
  struct Request {
    enum class Kind : std::uint8_t {
      none,
      answer,     ///< the application, to its question `number`
      gone,       ///< the application can be forgotten
      unmap,      ///< as answer, after the buffer's address `page` was given up
      job,        ///< whoever looks at fence `number`
      svm,        ///< as answer
      fork,       ///< the application may be taken its memory, for fork `number`
      unmapped,   ///< Client::unmapped that begins at `page`: forgotten
      go_home,    ///< `releasing` that begins at `page`: its attributes are gone
      come_home,  ///< `releasing` that begins at `page`: it is home, as far as that went
      nobody
    } kind = Kind::none;
    ClientId client = 0;
    std::uint64_t number = 0;
    Page page = 0;

    /// Counts in ClientWork::asked.
    [[nodiscard]] bool is_asked() const {
      return kind == Kind::answer || kind == Kind::unmap || kind == Kind::svm || kind == Kind::go_home ||
             kind == Kind::come_home;
    }
  };

  explicit Manager(const ManagerConfig& config);
  Status start();

  // manager.cpp
  bool turn();
  [[nodiscard]] bool something_ready() const;
  bool poll_peers();
  bool poll_client(Client& client);
  bool poll_device(Client& client, DeviceId device);
  bool poll_userfault(Client& client);
  void poll_events(int timeout_ms);
  void sleep();
  void doze_idle(std::uint64_t now_ns);
  bool doze(Client& client, std::uint64_t now_ns);
  void end_dropped();
  void advise();
  void share_units(DeviceId device);
  void tell_demand(Client& client, DeviceId device);
  void tick();
  void relieve();
  void watch(int fd, Source source, const Client* client, DeviceId device, std::uint32_t events);
  void watch_number(int fd, Source source, std::uint64_t number, std::uint32_t events);
  void unwatch(int fd);
  void listen_again();
  void finish_files(Status& status);

  // requests.cpp
  void on_connection(Client& client);
  void on_received(Client& client, linux::Receive received);
  void on_message(Client& client);
  bool on_administration(Client& client);
  void on_request(Client& client);
  void count_converted(Client& client, PageSpan pages);
  // file_requests.cpp
  bool on_files(Client& client);
  // change_requests.cpp
  bool on_change(Client& client);
  void tell_changes(Client& client);
  void protect_new(Client& client, PageSpan pages, std::uint64_t request);
  [[nodiscard]] bool children_have(Client& client, const wire::Change& body);
  void make_change(Client& client, const wire::Change& body, std::uint64_t request);
  static void remove_span(Client& client, PageSpan pages);
  void add_span(Client& client, PageSpan pages, bool has_contents, bool converts);
  void hold_answer(Client& client, std::uint64_t request, Status status);
  void answer_held();
  void answer(Client& client, std::uint64_t request, Status status);
  void refuse(Client& client, Code code, const char* text);
  void send_residency(Client& to, std::uint64_t request, const Client& about, Page page);
  [[nodiscard]] core::Cookie make_cookie(Request::Kind kind, ClientId client, std::uint64_t number, Page page = 0);
  void forget_cookie(core::Cookie cookie);
  void misunderstood(Client& client);
  bool too_much(Client& client);
  static bool splits_too_many(const Client& client, PageSpan pages);
  void sweep_descriptors();

  // adopt_requests.cpp
  bool on_adoption(Client& client);
  void release(Client& client, PageSpan pages);
  void released(Client& client, PageSpan pages, std::uint32_t flags);
  bool poll_outside(Client& client);
  void unmapped(Client& client, PageSpan gone);
  void unmapped_done(Client& client, const Request& request);
  void begin_adoption(Client& client, PageSpan pages, std::uint32_t flags);
  void settle_unmaps(Client& client);
  void note_unmapping(Client& client);
  bool free_unmapped(Client& client, PageSpan span);
  void unpinned(Client& client, PageSpan pages);
  void allocate_adopted(Client& client, PageSpan pages, std::uint32_t flags);
  void go_home(Client& client, PageSpan pages, std::uint64_t request);
  void going_home(Client& client, const Request& request);
  void came_home(Client& client, const Request& request);

  [[nodiscard]] StatsDocument document() const;

  void tell_circles();

  // work_requests.cpp
  bool on_work(Client& client);
  void answer_work(Client& client, const wire::WorkAnswer& body, int fd = -1);
  void refuse_work(Client& client, Status status, const std::string& text = {});
  void answer_buffer(Client& client, core::BufferId id);
  void answer_fence(Client& client, core::FenceId id);
  void answer_timeline(Client& client, core::TimelineId id);
  void buffer_create(Client& client);
  void buffer_close(Client& client, const wire::ObjectRef& ref);
  void buffer_map(Client& client, const wire::ObjectRef& ref);
  void buffer_unmap(Client& client, const wire::ObjectRef& ref);
  void buffer_query(Client& client, const wire::ObjectRef& ref);
  void drop_buffer_hold(core::BufferId id, std::uint32_t count = 1);
  void drop_left_buffers();
  bool give_fence(Client& client, core::FenceId id);
  static void show_fence(Client& client, std::uint32_t slot, const FenceEntry& entry);
  void show_fence_to_all(core::FenceId id, const FenceEntry& entry);
  Status fence_close(Client& client, core::FenceId id);
  void drop_fence_hold(core::FenceId id, std::uint32_t count = 1);
  void fence_hold(Client& client, core::FenceId id);
  void fence_deadline(Client& client, const wire::ObjectRef& ref);
  void fence_merge(Client& client);
  void forget_new_fence(core::FenceId id);
  [[nodiscard]] static std::string too_many_fences();
  bool give_timeline(Client& client, core::TimelineId id);
  void timeline_create(Client& client);
  void timeline_close(Client& client, core::TimelineId id);
  void timeline_signal(Client& client, const wire::ObjectRef& ref);
  void show_timelines();

  // svm_requests.cpp
  bool on_svm(Client& client);
  void on_svm_span(Client& client, wire::MessageType type);
  void svm_list(Client& client, bool set);
  void retry_faults(Client& client);
  void attributes_run(Client& client);
  void migrate_async(Client& client, PageSpan pages, DeviceId device);
  void on_group(Client& client, wire::MessageType type);
  void events_open(Client& client);
  void answer_svm(Client& client, const wire::SvmAnswer& body, std::span<const int> fds = {});
  void refuse_svm(Client& client, Status status, const std::string& text = {});
  void end_letting(Client& client, Status status);
  void end_svm(Client& client, core::Cookie cookie, Status status, const std::string& text = {});
  [[nodiscard]] bool svm_span(Client& client, PageSpan pages);

  // job_requests.cpp
  bool resolve_waits(Client& client, const wire::JobSubmit& job, core::JobSpec& spec,
                     std::vector<core::TimelineId>& opened, Status& failed);
  void job_submit(Client& client);
  void job_failed_already(Client& client, core::FenceId id, Status failed);
  void job_to_core(Client& client, core::JobSpec& spec, const wire::LaunchPacket& packet);
  void job_visible(core::FenceId id, Status status);
  void close_gate(Client& client, FenceEntry& entry);
  void job_cancel(Client& client, core::FenceId id);

  // tokens.cpp
  ClientId exports_client();
  void export_token(Client& client, const wire::ObjectRef& ref);
  bool watch_token(int fd, std::uint64_t number);
  void undo_export(const Token& token);
  static void tell_token(const Token& token, const FenceEntry& entry);
  void drop_token(std::uint64_t number);
  void import_token(Client& client);
  void import_buffer(Client& client, core::BufferId id);
  void forget_work(Client& client);

  // fork_requests.cpp
  void watch_fork(const Fork& fork);
  void fork_begin(Client& client);
  void fork_frozen(Client& client, std::uint64_t number, Status status);
  void fork_end(Client& client);
  void close_forks(Client& client);
  void on_fork(std::uint64_t number);
  void on_fork_message(Fork& fork, linux::Receive received);
  bool serve_forks();
  void free_span(Client& client, PageSpan pages, std::uint64_t request);

  // lifecycle.cpp
  Client* add_connection(linux::Fd socket);
  void hello(Client& client);
  void attach_device(Client& client);
  void on_device_socket(Client& client, DeviceId device);
  void on_device_hello(Client& client, DeviceId device, linux::Receive received);
  void device_control(Client& client);
  Status make_control(DevicePeer& peer, unsigned device);
  void device_process_ended(Client& client, DeviceId device);
  void end_device(Client& client, DeviceId device);
  void close_client(Client& client, const char* why);
  void finish_close(Client& client);
  void forget(Client& client);

  // Household
  Client* find_client(ClientId id) override;
  void on_reply(core::Cookie cookie, Status status) override;
  void on_fence(core::FenceId fence, Status status) override;
  void drop_device(Client& client, DeviceId device, const char* why) override;
  void drop_client(Client& client, const char* why) override;
  void fork_ready(Client& client, std::uint64_t request) override;
  void answer_request(Client& client, std::uint64_t request, Status status) override;
  void fork_ended(Fork& fork) override;

  ManagerConfig config_;
  linux::Bell stop_;
  linux::Bell copies_bell_;
  linux::Fd epoll_;
  std::optional<linux::Closer> closer_;  ///< of what peers sent
  Listener listener_;
  std::unique_ptr<Recorder> recorder_;
  std::unique_ptr<core::Core> core_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<linux::Incoming> incoming_;

  std::unordered_map<std::uint64_t, std::unique_ptr<Client>> connections_;  ///< by serial
  std::vector<Client*> clients_;                                            ///< greeted ones
  Client* last_found_ = nullptr;
  std::vector<ClientId> holding_;  ///< with Client::held_answers
  std::uint64_t next_serial_ = 1;
  ClientId next_client_ = 1;
  WorkTable work_;
  std::unique_ptr<wire::JobSubmit> submission_ = std::make_unique<wire::JobSubmit>();  ///< the one being looked at
  std::vector<Request> requests_;
  std::vector<std::uint32_t> free_requests_;

  struct Dropped {
    std::uint64_t serial;
    DeviceId device;  ///< no_device: the whole client
    const char* why;
  };
  std::vector<Dropped> dropped_;
  std::vector<std::uint64_t> forgotten_;  ///< connections to destroy at the end of the turn

  /// Frees of pages that a child needs and only the store has.
  struct LateFree {
    ClientId client;
    PageSpan pages;
    std::uint64_t request;
    bool is_change = false;  ///< not a free: `change`
    wire::Change change{};
  };
  std::vector<LateFree> late_frees_;
  bool closes_wait_ = false;       ///< some closing client has had forks whose pages were not all given
  bool stop_after_forks_ = false;  ///< private, and the application has gone

  std::uint64_t now_ns_ = 0;
  Watermark watermark_;
  linux::Pressure pressure_;
  std::uint64_t pressure_events_ = 0;
  std::uint64_t pressure_pages_ = 0;
  std::uint64_t last_userfault_poll_ns_ = 0;
  std::uint64_t last_event_poll_ns_ = 0;
  std::uint64_t last_tick_ns_ = 0;
  std::uint64_t last_progress_ns_ = 0;
  std::uint64_t last_yield_ns_ = 0;
  std::uint64_t circles_told_ = 0;  ///< Stats::circles when the last ones were told
  bool graphics_known_ = false;
  bool stopping_ = false;
  bool listener_waits_ = false;        ///< for descriptors
  std::uint64_t shutdown_serial_ = 0;  ///< the connection that asked, 0: none
  std::uint64_t shutdown_request_ = 0;
  TimeSplit time_;
};

}  // namespace ferry::manager
