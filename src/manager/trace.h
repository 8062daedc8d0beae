// Records what the core and the devices do and writes it as a Chrome / Perfetto JSON trace. Recording is a store into a
// ring made at the start (the newest records are kept, what they overwrite is counted); it allocates only for a kernel
// name seen for the first time. Writing is for the end: it takes memory and time in proportion to the records.
// One thread. docs/CLI.md says which tracks there are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "core/observer.h"
#include "manager/series.h"

namespace ferry::manager {

class Trace final : public core::Observer {
 public:
  /// Memory is taken as records come, up to records_max * 48 bytes.
  explicit Trace(std::uint64_t start_ns, std::size_t records_max = std::size_t{1} << 19);

  void on_event(const core::Event& event) override;
  void kernel_begin(const KernelEvent& event);
  void kernel_end(const KernelEvent& event);
  void device_gone(std::uint64_t now_ns, ClientId client, DeviceId device);
  /// What a client is called in the trace (`program` may hold anything), and where its pages are. Clients that were not
  /// named have numbers, and the default window.
  void name_client(ClientId client, const std::string& program, std::uint32_t pid, Window window = {});

  /// Records overwritten because the ring was full.
  [[nodiscard]] std::uint64_t dropped() const { return taken_ > capacity_ ? taken_ - capacity_ : 0; }

  /// ERRORS: no_space, io_error (sys_errno says why).
  Status write(const std::string& path, std::uint64_t now_ns) const;
  /// The whole trace as text, for tests.
  [[nodiscard]] std::string text(std::uint64_t now_ns) const;

 private:
  enum class Kind : std::uint8_t { core, kernel_begin, kernel_end, device_gone };
  struct Record {
    std::uint64_t time_ns;
    std::uint64_t first;  ///< page, or launch number
    std::uint64_t count;  ///< pages, or the kernel's value
    std::uint32_t client;
    std::uint32_t name;  ///< kernel_begin: index into names_
    std::uint32_t queue;
    Kind kind;
    core::EventKind event;
    core::Cause cause;
    core::Place to;
    Access access;
    DeviceId device;
    DeviceId from;
    Code status;
  };
  static_assert(sizeof(Record) <= 48);
  class Writer;

  void take(const Record& record);
  template <typename Sink>
  void write_to(Sink&& sink, std::uint64_t now_ns) const;

  std::uint64_t start_ns_;
  std::size_t capacity_;
  std::uint64_t taken_ = 0;
  std::unique_ptr<Record[]> ring_;
  std::vector<std::string> names_;
  std::map<std::string, std::uint32_t, std::less<>> name_index_;
  struct Named {
    std::string name;
    Window window;
  };
  std::map<ClientId, Named> clients_;
};

}  // namespace ferry::manager
