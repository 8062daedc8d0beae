// What applications are told about their memory: the core's events, picked by application and kind, written into a ring
// that each reader shares (wire/svm.h). Costs one look where nobody reads. The manager's main thread.
// Nothing here ever waits for a reader: what finds no room is dropped and counted.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/status.h"
#include "base/types.h"
#include "core/observer.h"
#include "linux/fd.h"
#include "linux/memory_file.h"
#include "wire/svm.h"

namespace ferry::manager {

/// What the application knows the event by; nothing for those that only traces want.
[[nodiscard]] std::optional<wire::EventType> event_type(core::EventKind kind);

class EventStreams final : public core::Observer {
 public:
  static constexpr unsigned streams_max = 16;  ///< of one application

  /// Descriptors for the reader: the ring, its end of the socket pair, and a copy of the other end, by which it makes
  /// its own readable again when it has taken the byte and not all records.
  struct Opened {
    std::uint32_t stream = 0;
    linux::Fd ring;
    linux::Fd reader;
    linux::Fd waker;
  };

  void on_event(const core::Event& event) override {
    if (!streams_.empty()) pass_on(event);
  }
  /// Wakes the readers whose rings were empty and are not any more: once a turn.
  void wake_readers() {
    if (!to_wake_.empty()) wake();
  }

  /// ERRORS: no_memory (also: it has as many as it may).
  Result<Opened> open(ClientId client, const Window& window, std::uint64_t mask);
  /// ERRORS: not_held.
  Status close(ClientId client, std::uint32_t stream);
  void forget(ClientId client);

 private:
  struct Stream {
    ClientId client = 0;
    std::uint32_t number = 0;
    std::uint64_t mask = 0;
    Window window;
    linux::Mapping map;
    linux::Fd socket;
    std::uint32_t written = 0;  ///< the truth; the shared word is only told to the reader
    std::uint64_t lost = 0;
    bool wakes = false;  ///< is in to_wake_

    [[nodiscard]] wire::EventRing& ring() const { return *reinterpret_cast<wire::EventRing*>(map.data()); }
  };

  void pass_on(const core::Event& event);
  void write(Stream& stream, wire::EventRecord& record);
  void wake();

  std::vector<Stream> streams_;
  std::vector<std::uint32_t> to_wake_;  ///< numbers
  std::uint32_t next_number_ = 1;
};

}  // namespace ferry::manager
