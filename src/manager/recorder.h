// The one observer that the manager gives its core: the series always, the trace if one was asked for, what
// applications read of events.
// The manager's main thread.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "core/observer.h"
#include "manager/event_streams.h"
#include "manager/series.h"
#include "manager/trace.h"
#include "wire/control.h"

namespace ferry::manager {

class Recorder final : public core::Observer {
 public:
  Recorder(std::uint64_t start_ns, bool with_trace)
      : series_(start_ns), trace_(with_trace ? std::make_unique<Trace>(start_ns) : nullptr) {}

  /// The counters of the core that this observes. Call once the core is made; it must outlive the recorder's use.
  void watch(const core::Stats& stats) { series_.watch(&stats); }

  void on_event(const core::Event& event) override {
    series_.on_event(event);
    if (trace_) trace_->on_event(event);
    streams_.on_event(event);
  }
  void kernel_begin(const KernelEvent& event) {
    series_.kernel_begin(event);
    if (trace_) trace_->kernel_begin(event);
  }
  void kernel_end(const KernelEvent& event) {
    series_.kernel_end(event);
    if (trace_) trace_->kernel_end(event);
  }
  void device_gone(std::uint64_t now_ns, ClientId client, DeviceId device) {
    series_.device_gone(now_ns, client, device);
    if (trace_) trace_->device_gone(now_ns, client, device);
  }
  void name_client(ClientId client, const std::string& program, std::uint32_t pid, Window window) {
    if (trace_) trace_->name_client(client, program, pid, window);
  }

  [[nodiscard]] EventStreams& streams() { return streams_; }
  [[nodiscard]] const Series& series() const { return series_; }
  /// Null if no trace is kept.
  [[nodiscard]] const Trace* trace() const { return trace_.get(); }

 private:
  EventStreams streams_;
  Series series_;
  std::unique_ptr<Trace> trace_;
};

/// Name of a launch's kernel, read from the queue file, which the manager does not map. Empty if it cannot be read.
/// Whatever the application wrote there comes back as printable text.
[[nodiscard]] inline std::string read_kernel_name(int queue_control_fd, std::uint32_t queue, std::uint64_t launch) {
  if (queue >= wire::max_queues) return {};
  const std::size_t at = offsetof(wire::QueueControl, queues) + queue * sizeof(wire::Queue) +
                         offsetof(wire::Queue, packets) + (launch % wire::queue_entries) * sizeof(wire::LaunchPacket) +
                         offsetof(wire::LaunchPacket, name);
  char name[wire::kernel_name_bytes];
  if (pread(queue_control_fd, name, sizeof name, static_cast<off_t>(at)) != static_cast<ssize_t>(sizeof name))
    return {};
  return clean_text(name, sizeof name);
}

}  // namespace ferry::manager
