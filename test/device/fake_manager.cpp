#include "fake_manager.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <climits>
#include <cstring>
#include <stdexcept>

#include "base/status.h"
#include "linux/socket.h"
#include "wire/message.h"

namespace ferry::device::test {
namespace {

using namespace std::chrono_literals;
constexpr auto patience = 60s;

template <typename T>
T take(Result<T> result, const char* what) {
  if (!result.ok()) throw std::runtime_error(std::string(what) + ": " + to_string(result.status().code));
  return std::move(result).value();
}

}  // namespace

FakeManager::FakeManager(const Options& options, FaultHandler on_fault) : on_fault_(std::move(on_fault)) {
  system_ = take(linux::make_memory_file("test-system", window_bytes), "system file");
  vram_ = take(linux::make_memory_file("test-vram", vram_bytes), "vram file");
  control_file_ = take(linux::make_memory_file("test-control", sizeof(wire::DeviceControl)), "control file");
  queue_file_ = take(linux::make_memory_file("test-queues", sizeof(wire::QueueControl)), "queue file");
  const auto round = [](std::size_t bytes) { return (bytes + page_bytes - 1) & ~(page_bytes - 1); };
  control_map_ = take(linux::Mapping::map(control_file_.get(), 0, round(sizeof(wire::DeviceControl))), "control");
  queue_map_ = take(linux::Mapping::map(queue_file_.get(), 0, round(sizeof(wire::QueueControl))), "queues");
  vram_map_ = take(linux::Mapping::map(vram_.get(), 0, vram_bytes), "vram");
  control_ = reinterpret_cast<wire::DeviceControl*>(control_map_.data());
  queues_ = reinterpret_cast<wire::QueueControl*>(queue_map_.data());
  for (wire::ControlHead* head : {&control_->head, &queues_->head}) {
    head->magic = wire::control_magic;
    head->version = options.control_version;
  }
  control_->cu_count = options.cus;
  control_->units.leave_while_faulting = options.leave_while_faulting ? 1 : 0;
  control_->units.wait_in_place = options.wait_in_place ? 1 : 0;
  kick_ = linux::Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));

  managed_bytes_ = options.managed_bytes;
  void* at = reinterpret_cast<void*>(default_window_base);
  void* p = mmap(at, managed_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE,
                 system_.get(), 0);
  if (p != at) throw std::runtime_error("the window's place is taken in the test process");
  managed_ = static_cast<std::byte*>(p);
  std::memset(managed_, 0, managed_bytes_);

  start_device(options);
}

void FakeManager::start_device(const Options& options) {
  auto [manager_end, device_end] = take(linux::make_socket_pair(), "sockets");
  auto [owner_end, device_owner_end] = take(linux::make_socket_pair(), "sockets");
  pid_ = fork();
  if (pid_ < 0) throw std::runtime_error("fork");
  if (pid_ == 0) {
    manager_end.reset();
    owner_end.reset();
    DeviceStart start;
    start.window_base = default_window_base;
    start.window_bytes = window_bytes;
    start.system_fd = system_.get();
    start.vram_fd = vram_.get();
    start.control_fd = control_file_.get();
    start.queue_fd = queue_file_.get();
    start.kick_fd = kick_.get();
    start.manager_socket = device_end.get();
    start.owner_socket = device_owner_end.get();
    start.cu_count = options.cus;
    start.waves_per_cu = options.waves_per_cu;
    run_device(start);
  }
  socket_ = std::move(manager_end);
  owner_ = std::move(owner_end);
  device_end.reset();
  device_owner_end.reset();

  auto in = std::make_unique<linux::Incoming>();
  if (linux::receive_message(socket_.get(), *in, 60'000) != linux::Receive::message) return;  // it could not start
  wire::DeviceHello hello{};
  if (in->type() != wire::MessageType::device_hello || !in->body(hello) || in->fd_count != 1) {
    throw std::runtime_error("the device's greeting is not one");
  }
  EXPECT_EQ(hello.pid, static_cast<std::uint32_t>(pid_));
  userfaultfd_ =
      take(linux::Userfaultfd::adopt(std::move(in->fds[0]), linux::Userfaultfd::Tells::touches), "userfaultfd");
  for (unsigned i = 0; i < options.cus; ++i) cus_.emplace_back(control_->cus[i]);
  agent_ = wire::ManagerPort(control_->agent);
  wire::DownRecord grant{};
  grant.kind = static_cast<std::uint32_t>(wire::DownKind::grant_units);
  grant.units = options.granted_units;
  if (grant.units != 0) {
    EXPECT_TRUE(agent_.post(grant));
    agent_.wake([](std::atomic<std::uint32_t>& word) { linux::futex_wake(word, 1); });
  }
  server_ = std::jthread([this](const std::stop_token& stop) { serve(stop); });
}

FakeManager::~FakeManager() {
  if (pid_ > 0) {
    hang_up();
    const int status = join_device();
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "the device ended with wait status " << status;
  }
  if (server_.joinable()) {
    server_.request_stop();
    server_.join();
  }
  munmap(managed_, managed_bytes_);
}

std::uint64_t FakeManager::submit(unsigned number, wire::KernelEntry entry, const void* captures, std::size_t bytes,
                                  std::uint64_t items, std::uint64_t items_per_wave, const char* name) {
  wire::Queue& queue = queues_->queues[number];
  const std::uint64_t launch = queue.submitted.load();
  EXPECT_LT(launch - queue.completed.load(), wire::queue_entries) << "the test overfills its queue";
  wire::LaunchPacket& packet = queue.packets[launch % wire::queue_entries];
  packet = {};
  packet.entry = reinterpret_cast<std::uint64_t>(entry);
  packet.items = items;
  packet.items_per_wave = items_per_wave;
  packet.capture_bytes = static_cast<std::uint32_t>(bytes);
  std::strncpy(packet.name, name, sizeof packet.name - 1);
  std::memcpy(packet.captures, captures, std::min(bytes, sizeof packet.captures));
  queue.submitted.store(launch + 1);
  queue.submit_futex.fetch_add(1);
  queues_->doorbell.fetch_add(1);
  if (queues_->device_sleepers.load() != 0) linux::futex_wake(queues_->doorbell, INT_MAX);
  return launch;
}

wire::LaunchResult FakeManager::wait(unsigned number, std::uint64_t launch) {
  wire::Queue& queue = queues_->queues[number];
  const auto give_up = std::chrono::steady_clock::now() + patience;
  while (queue.completed.load() <= launch) {
    queue.app_sleeping.fetch_add(1);
    const std::uint32_t seen = queue.complete_futex.load();
    if (queue.completed.load() <= launch) linux::futex_wait(queue.complete_futex, seen, 1'000'000'000);
    queue.app_sleeping.fetch_sub(1);
    if (std::chrono::steady_clock::now() > give_up) {
      ADD_FAILURE() << "launch " << launch << " of queue " << number << " did not end; " << queue.waves_done.load()
                    << " waves and " << faults() << " faults were done";
      return {};
    }
  }
  return queue.results[launch % wire::queue_entries];
}

void FakeManager::give_page(FakeManager& manager, unsigned cu, const wire::UpRecord& fault) {
  if (fault.access == wire::fault_exec) {
    manager.resume(cu, fault, static_cast<std::uint32_t>(Code::kernel_fault));
    return;
  }
  manager.continue_page(fault.address);
  manager.resume(cu, fault);
}

bool FakeManager::try_continue_page(std::uint64_t address) {
  const std::uint64_t page = address & ~(page_bytes - 1);
  std::uint64_t done = 0;
  linux::Fault result = linux::Fault::again;
  while (result == linux::Fault::again) result = userfaultfd_.map_present(page, page_bytes, false, done);
  return result == linux::Fault::ok || result == linux::Fault::exists;
}

void FakeManager::continue_page(std::uint64_t address) {
  EXPECT_TRUE(try_continue_page(address)) << "page " << std::hex << address << " is not armed";
}

void FakeManager::send(unsigned cu, const wire::DownRecord& record) {
  EXPECT_TRUE(cus_[cu].post(record));
  if (eager_wake_) cus_[cu].wake([](std::atomic<std::uint32_t>& word) { linux::futex_wake(word, 1); });
}

void FakeManager::resume(unsigned cu, const wire::UpRecord& fault, std::uint32_t status) {
  wire::DownRecord answer{};
  answer.kind = static_cast<std::uint32_t>(wire::DownKind::resume);
  answer.slot = fault.slot;
  answer.generation = fault.generation;
  answer.status = status;
  send(cu, answer);
}

void FakeManager::resume_map(unsigned cu, const wire::UpRecord& fault, wire::DownRecord extent) {
  extent.kind = static_cast<std::uint32_t>(wire::DownKind::resume_map);
  extent.slot = fault.slot;
  extent.generation = fault.generation;
  send(cu, extent);
}

void FakeManager::serve(const std::stop_token& stop) {
  linux::AdaptiveSpin spin(20'000, 200'000);
  const auto ready = [this] {
    for (const auto& cu : cus_) {
      if (cu.ready()) return true;
    }
    return agent_.ready();
  };
  while (!stop.stop_requested()) {
    for (unsigned i = 0; i < cus_.size(); ++i) {
      EXPECT_TRUE(cus_[i].poll(64, [&](const wire::UpRecord& record) { on_record(i, record); }));
    }
    EXPECT_TRUE(agent_.poll(64, [&](const wire::UpRecord& record) { on_record(~0U, record); }));
    std::vector<std::function<void()>> jobs;
    {
      const std::lock_guard lock(mutex_);
      jobs.swap(jobs_);
    }
    for (const auto& job : jobs) job();
    if (!jobs.empty() || spin.until(ready)) continue;
    wire::announce_manager_sleep(control_->head);
    if (!ready()) {
      pollfd p{kick_.get(), POLLIN, 0};
      // The bound is for stop requests, which do not kick.
      if (poll(&p, 1, 20) == 1) {
        std::uint64_t rings = 0;
        EXPECT_EQ(read(kick_.get(), &rings, sizeof rings), static_cast<ssize_t>(sizeof rings));
      }
    }
    wire::end_manager_sleep(control_->head);
  }
}

void FakeManager::on_record(unsigned cu, const wire::UpRecord& record) {
  switch (static_cast<wire::UpKind>(record.kind)) {
    case wire::UpKind::fault:
      faults_.fetch_add(1);
      on_fault_(*this, cu, record);
      return;
    case wire::UpKind::done: {
      const std::lock_guard lock(mutex_);
      EXPECT_TRUE(done_.emplace(record.action, record.error).second) << "action " << record.action << " ended twice";
      changed_.notify_all();
      return;
    }
    case wire::UpKind::kernel_begin:
    case wire::UpKind::kernel_end: {
      const std::lock_guard lock(mutex_);
      trace_.push_back(record);
      changed_.notify_all();
      return;
    }
    case wire::UpKind::demand: demands_.fetch_add(1); return;
    case wire::UpKind::units_left:
    case wire::UpKind::job_done: {
      const std::lock_guard lock(mutex_);
      EXPECT_EQ(record.value & units_left_, 0U) << "a unit was left twice";
      if (record.kind == static_cast<std::uint32_t>(wire::UpKind::units_left)) units_left_ |= record.value;
      if (record.kind == static_cast<std::uint32_t>(wire::UpKind::job_done))
        jobs_done_ |= std::uint64_t{1} << record.slot;
      changed_.notify_all();
      return;
    }
  }
  ADD_FAILURE() << "record of unknown kind " << record.kind;
}

std::vector<int> FakeManager::command(std::vector<wire::DownRecord> commands) {
  std::vector<std::uint64_t> actions;
  std::unique_lock lock(mutex_);
  for (auto& c : commands) actions.push_back(c.action = 1'000'000 + next_action_++);
  jobs_.emplace_back([this, commands] {
    for (const auto& c : commands) EXPECT_TRUE(agent_.post(c));
    agent_.wake([](std::atomic<std::uint32_t>& word) { linux::futex_wake(word, 1); });
  });
  ring();
  std::vector<int> errors;
  for (const std::uint64_t action : actions) {
    if (!changed_.wait_for(lock, patience, [&] { return done_.contains(action); })) {
      ADD_FAILURE() << "the agent did not answer";
      return std::vector<int>(commands.size(), -1);
    }
    errors.push_back(done_[action]);
  }
  return errors;
}

int FakeManager::map_error(std::uint64_t action) {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_for(lock, patience, [&] { return done_.contains(action); })) {
    ADD_FAILURE() << "no answer to action " << action;
    return -1;
  }
  return done_[action];
}

void FakeManager::on_serving_thread(std::function<void()> fn) {
  bool ran = false;
  std::unique_lock lock(mutex_);
  jobs_.emplace_back([this, &fn, &ran] {
    fn();
    const std::lock_guard inner(mutex_);
    ran = true;
    changed_.notify_all();
  });
  ring();
  changed_.wait(lock, [&] { return ran; });
}

void FakeManager::quit() {
  const std::lock_guard lock(mutex_);
  jobs_.emplace_back([this] {
    wire::DownRecord record{};
    record.kind = static_cast<std::uint32_t>(wire::DownKind::quit);
    EXPECT_TRUE(agent_.post(record));
    agent_.wake([](std::atomic<std::uint32_t>& word) { linux::futex_wake(word, 1); });
  });
}

void FakeManager::ring() {
  const std::uint64_t one = 1;
  EXPECT_EQ(write(kick_.get(), &one, sizeof one), static_cast<ssize_t>(sizeof one));
}

void FakeManager::hang_up() { socket_.reset(); }

int FakeManager::join_device() {
  int status = 0;
  const auto give_up = std::chrono::steady_clock::now() + patience;
  while (waitpid(pid_, &status, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() > give_up) {
      ADD_FAILURE() << "the device process does not end";
      kill(pid_, SIGKILL);
      waitpid(pid_, &status, 0);
      break;
    }
    std::this_thread::yield();
  }
  pid_ = -1;
  return status;
}

void FakeManager::grant_units(std::uint64_t units) {
  {
    const std::lock_guard lock(mutex_);
    units_left_ &= ~units;
  }
  wire::DownRecord record{};
  record.kind = static_cast<std::uint32_t>(wire::DownKind::grant_units);
  record.units = units;
  EXPECT_EQ(command(record), 0);
}

void FakeManager::take_units(std::uint64_t units) {
  wire::DownRecord record{};
  record.kind = static_cast<std::uint32_t>(wire::DownKind::take_units);
  record.units = units;
  EXPECT_EQ(command(record), 0);
}

void FakeManager::wait_left(std::uint64_t units) {
  std::unique_lock lock(mutex_);
  EXPECT_TRUE(changed_.wait_for(lock, patience, [&] { return (units_left_ & units) == units; }))
      << "units " << std::hex << (units & ~units_left_) << " are not left";
}

std::uint64_t FakeManager::units_left() {
  const std::lock_guard lock(mutex_);
  return units_left_;
}

void FakeManager::begin_job(std::uint64_t units, wire::KernelEntry entry, const void* captures, std::size_t bytes,
                            std::uint64_t items, std::uint64_t items_per_wave) {
  const auto slot = static_cast<unsigned>(std::countr_zero(units));
  wire::LaunchPacket& packet = control_->jobs[slot].packet;
  packet = {};
  packet.entry = reinterpret_cast<std::uint64_t>(entry);
  packet.items = items;
  packet.items_per_wave = items_per_wave;
  packet.capture_bytes = static_cast<std::uint32_t>(bytes);
  std::strncpy(packet.name, "test_job", sizeof packet.name - 1);
  std::memcpy(packet.captures, captures, std::min(bytes, sizeof packet.captures));
  {
    const std::lock_guard lock(mutex_);
    jobs_done_ &= ~(std::uint64_t{1} << slot);
  }
  wire::DownRecord record{};
  record.kind = static_cast<std::uint32_t>(wire::DownKind::run_job);
  record.slot = static_cast<std::uint16_t>(slot);
  record.units = units;
  EXPECT_EQ(command(record), 0);
}

void FakeManager::cancel_job(std::uint64_t units) {
  wire::DownRecord record{};
  record.kind = static_cast<std::uint32_t>(wire::DownKind::cancel_job);
  record.slot = static_cast<std::uint16_t>(std::countr_zero(units));
  EXPECT_EQ(command(record), 0);
}

wire::LaunchResult FakeManager::wait_job(std::uint64_t units) {
  const auto slot = static_cast<unsigned>(std::countr_zero(units));
  std::unique_lock lock(mutex_);
  EXPECT_TRUE(changed_.wait_for(lock, patience, [&] { return (jobs_done_ >> slot & 1) != 0; }))
      << "the job in slot " << slot << " does not end";
  return control_->jobs[slot].result;
}

std::vector<wire::UpRecord> FakeManager::trace() {
  const std::lock_guard lock(mutex_);
  return trace_;
}

std::string describe(const wire::LaunchResult& result) {
  return std::string(to_string(static_cast<Code>(result.code))) + ": " + result.text;
}

}  // namespace ferry::device::test
