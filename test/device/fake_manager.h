// A device process with a manager of a few lines on the other side: serves its faults from a thread of the test.
// Make one a test, before any other thread: the device is forked from the test process.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/types.h"
#include "device/device.h"
#include "linux/fd.h"
#include "linux/futex.h"
#include "linux/memory_file.h"
#include "linux/userfaultfd.h"
#include "wire/control.h"
#include "wire/ring.h"

namespace ferry::device::test {

inline constexpr std::uint64_t window_bytes = std::uint64_t{1} << 30;
inline constexpr std::uint64_t vram_bytes = std::uint64_t{64} << 20;

class FakeManager {
 public:
  struct Options {
    unsigned cus = 1;
    unsigned waves_per_cu = 16;
    std::uint64_t managed_bytes = std::uint64_t{16} << 20;
    std::uint32_t control_version = wire::wire_version;
    std::uint64_t granted_units = ~std::uint64_t{0};
    bool leave_while_faulting = true;
    bool wait_in_place = false;
  };
  /// Called on the serving thread for each fault; answers now or later through resume() and the like.
  using FaultHandler = std::function<void(FakeManager&, unsigned cu, const wire::UpRecord&)>;

  explicit FakeManager(const Options& options, FaultHandler on_fault = give_page);
  FakeManager() : FakeManager(Options{}) {}
  /// Ends the device and checks that it ended by itself.
  ~FakeManager();
  FakeManager(const FakeManager&) = delete;
  FakeManager& operator=(const FakeManager&) = delete;

  // --- memory ---

  /// Managed memory, mapped in the test process at the same address as in the device; every page exists.
  [[nodiscard]] std::byte* managed() const { return managed_; }
  template <typename T>
  [[nodiscard]] T* managed_array(std::uint64_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(managed_ + offset_bytes);
  }
  /// The VRAM file, mapped somewhere.
  [[nodiscard]] std::byte* vram() const { return vram_map_.data(); }

  // --- launches (any thread of the test; one at a time a queue) ---

  template <typename Captures>
  std::uint64_t launch(unsigned queue, wire::KernelEntry entry, const Captures& captures, std::uint64_t items,
                       std::uint64_t items_per_wave, const char* name = "test_kernel") {
    static_assert(sizeof captures <= wire::capture_bytes_max);
    return submit(queue, entry, &captures, sizeof captures, items, items_per_wave, name);
  }
  /// Fails the test if it does not end within a minute.
  wire::LaunchResult wait(unsigned queue, std::uint64_t launch);
  template <typename Captures>
  wire::LaunchResult run(wire::KernelEntry entry, const Captures& captures, std::uint64_t items,
                         std::uint64_t items_per_wave, const char* name = "test_kernel") {
    return wait(0, launch(0, entry, captures, items, items_per_wave, name));
  }
  [[nodiscard]] wire::QueueControl& queues() { return *queues_; }

  // --- the manager's part, on the serving thread ---

  static void give_page(FakeManager& manager, unsigned cu, const wire::UpRecord& fault);
  void continue_page(std::uint64_t address);
  /// False: the page is not armed.
  bool try_continue_page(std::uint64_t address);
  void resume(unsigned cu, const wire::UpRecord& fault, std::uint32_t status = 0);
  void resume_map(unsigned cu, const wire::UpRecord& fault, wire::DownRecord extent);
  void send(unsigned cu, const wire::DownRecord& record);
  /// Posts to several ports at once: wakes come last.
  void set_eager_wake(bool on) { eager_wake_ = on; }

  // --- from the test's thread ---

  /// Sends commands to the device's agent at once and returns the errno of each.
  std::vector<int> command(std::vector<wire::DownRecord> commands);
  int command(const wire::DownRecord& one) { return command(std::vector{one})[0]; }
  void quit();
  /// Closes the manager's end of the device's socket.
  void hang_up();
  void hang_up_owner() { owner_.reset(); }
  /// Waits for the device process; its wait status.
  int join_device();
  /// Runs fn on the serving thread between two polls, and waits for it.
  void on_serving_thread(std::function<void()> fn);

  [[nodiscard]] std::uint64_t faults() const { return faults_.load(); }
  /// errno of resume_map's done, by action.
  [[nodiscard]] int map_error(std::uint64_t action);
  [[nodiscard]] std::vector<wire::UpRecord> trace();
  [[nodiscard]] pid_t pid() const { return pid_; }

  // --- compute units and graphics jobs, from the test's thread ---

  void grant_units(std::uint64_t units);
  void take_units(std::uint64_t units);
  /// Fails the test if they are not left within a minute.
  void wait_left(std::uint64_t units);
  [[nodiscard]] std::uint64_t units_left();
  /// How often the device said that its demand had changed.
  [[nodiscard]] std::uint64_t demands() const { return demands_.load(); }
  [[nodiscard]] wire::UnitControl& units() { return control_->units; }
  template <typename Captures>
  void start_job(std::uint64_t units, wire::KernelEntry entry, const Captures& captures, std::uint64_t items,
                 std::uint64_t items_per_wave) {
    begin_job(units, entry, &captures, sizeof captures, items, items_per_wave);
  }
  void cancel_job(std::uint64_t units);
  wire::LaunchResult wait_job(std::uint64_t units);

 private:
  void begin_job(std::uint64_t units, wire::KernelEntry entry, const void* captures, std::size_t bytes,
                 std::uint64_t items, std::uint64_t items_per_wave);
  std::uint64_t submit(unsigned queue, wire::KernelEntry entry, const void* captures, std::size_t bytes,
                       std::uint64_t items, std::uint64_t items_per_wave, const char* name);
  void start_device(const Options& options);
  void serve(const std::stop_token& stop);
  void ring();
  void on_record(unsigned cu, const wire::UpRecord& record);

  FaultHandler on_fault_;
  linux::Fd system_, vram_, control_file_, queue_file_, kick_;
  linux::Fd socket_, owner_;
  linux::Mapping control_map_, queue_map_, vram_map_;
  linux::Userfaultfd userfaultfd_;
  wire::DeviceControl* control_ = nullptr;
  wire::QueueControl* queues_ = nullptr;
  std::byte* managed_ = nullptr;
  std::uint64_t managed_bytes_ = 0;
  std::vector<wire::ManagerPort> cus_;
  wire::ManagerPort agent_;
  bool eager_wake_ = true;
  pid_t pid_ = -1;
  std::uint64_t next_action_ = 1;
  std::atomic<std::uint64_t> faults_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::function<void()>> jobs_;
  std::map<std::uint64_t, int> done_;
  std::vector<wire::UpRecord> trace_;
  std::uint64_t units_left_ = 0;
  std::uint64_t jobs_done_ = 0;
  std::atomic<std::uint64_t> demands_{0};
  std::jthread server_;
};

/// The code of a result, with its text for the test's output.
[[nodiscard]] std::string describe(const wire::LaunchResult& result);

}  // namespace ferry::device::test
