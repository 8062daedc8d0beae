// How a run went over time, in bounded memory: samples of the levels and counters, a table of kernels, and the time
// that kernels and migrations took. Fed by the core's events (constant time, no allocation) and by the devices' kernel
// records (may allocate), on the manager's main thread.
// Does not draw: manager/report.h does.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/observer.h"
#include "manager/stats_json.h"

namespace ferry::manager {

/// A kernel starts or ends. Told by a device, so any field may be nonsense.
struct KernelEvent {
  std::uint64_t now_ns = 0;   ///< the manager's own clock when the record was read
  std::uint64_t time_ns = 0;  ///< as the device says
  ClientId client = 0;
  DeviceId device = no_device;
  std::uint32_t queue = 0;
  std::uint64_t launch = 0;
  std::uint64_t value = 0;  ///< begin: waves of the grid; end: ferry::Code, 0 if well
  std::string_view name;    ///< begin: may be empty; end: unused
};

struct Sample {
  std::uint64_t time_ns = 0;
  std::uint64_t vram_pages = 0;       ///< in use on all devices, the most since the sample before
  std::uint64_t allocated_pages = 0;  ///< managed memory of all clients
  std::uint64_t system_pages = 0;     ///< counted against the budget; 0 without one
  std::uint64_t stored_pages = 0;     ///< in the store
  // Counters since the start.
  std::uint64_t device_faults = 0;
  std::uint64_t cpu_faults = 0;
  std::uint64_t pages_to_vram = 0;
  std::uint64_t pages_to_system = 0;
  std::uint64_t evictions = 0;
  std::uint64_t pages_to_store = 0;
  std::uint64_t pages_from_store = 0;
};

class Series final : public core::Observer {
 public:
  /// `samples_max` is even; when that many are taken, every two become one and time between samples doubles.
  explicit Series(std::uint64_t start_ns, unsigned samples_max = 2048, std::uint64_t interval_ns = 1'000'000);

  /// Where the counters are read when a sample is taken; must outlive the series. Without it they stay 0.
  void watch(const core::Stats* stats) { stats_ = stats; }

  void on_event(const core::Event& event) override;
  void kernel_begin(const KernelEvent& event);
  void kernel_end(const KernelEvent& event);
  /// Its kernels run no more.
  void device_gone(std::uint64_t now_ns, ClientId client, DeviceId device);

  [[nodiscard]] std::uint64_t start_ns() const { return start_ns_; }
  /// What was sampled, and the state as of now_ns as its last element.
  [[nodiscard]] std::vector<Sample> samples(std::uint64_t now_ns) const;
  [[nodiscard]] const std::vector<KernelRow>& kernels() const { return rows_; }
  /// Writes wall_ns, kernels_ns and moving_ns; leaves the rest of `split` as it is.
  void times(std::uint64_t now_ns, TimeSplit& split) const;

  static constexpr unsigned kernel_names_max = 256;  ///< what comes later is counted as "(others)"

 private:
  /// Time during which a count is not zero.
  struct Busy {
    std::uint64_t since_ns = 0;
    std::uint64_t total_ns = 0;
    std::uint64_t running = 0;
    void enter(std::uint64_t now_ns);
    void leave(std::uint64_t now_ns);
    [[nodiscard]] std::uint64_t total(std::uint64_t now_ns) const;
  };
  struct Open {
    ClientId client;
    DeviceId device;
    std::uint32_t queue;
    std::uint64_t launch;
    std::uint64_t begin_ns;
    std::uint64_t faults_before;
    std::size_t row;
  };

  void advance(std::uint64_t now_ns);
  void read_counters(Sample& sample) const;
  void push(const Sample& sample);
  std::size_t row_of(std::string_view name);
  void close(std::size_t open, std::uint64_t now_ns, bool failed);
  [[nodiscard]] std::uint64_t credible(const KernelEvent& event) const;

  std::uint64_t start_ns_;
  std::uint64_t interval_ns_;
  std::uint64_t next_ns_;
  std::size_t samples_max_;
  const core::Stats* stats_ = nullptr;
  std::vector<Sample> samples_;
  Sample now_;
  std::uint64_t vram_level_ = 0;
  std::array<std::uint64_t, max_devices> vram_of_{};
  std::array<std::uint64_t, max_devices> faults_of_{};
  Busy kernels_busy_;
  Busy moving_busy_;
  std::vector<KernelRow> rows_;
  std::vector<Open> open_;
  std::vector<KernelEvent> early_ends_;  ///< ends whose begin has not been heard of
};

}  // namespace ferry::manager
