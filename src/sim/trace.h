// The record of a run: a hash over every line (two runs are equal if their hashes are), the last lines for a failure's
// report, and all lines as text for who asks. Lines are kept as numbers; text is made only where it is shown.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "core/action.h"
#include "core/observer.h"

namespace ferry::sim {

enum class Line : std::uint8_t {
  start,           ///< a: clients, b: devices, c: budget in chunks, d: granularity in pages
  phase,           ///< a: its number
  cpu_op,          ///< a: page, b: op, c: thread
  wave_op,         ///< a: page, b: op, c: wave
  segv,            ///< a: page, c: thread
  post_fault,      ///< a: page, b: access, c: token
  device_fault,    ///< handed to the core; a: page, b: access, c: token
  post_cpu_fault,  ///< a: page, b: access, c: thread
  cpu_fault,       ///< handed to the core; a: page, b: access
  resume,          ///< a: page, b: status, c: wave or thread
  alloc,           ///< a: first page, b: pages, c: status, d: 1 if in place
  free,            ///< a: first page, b: pages, c: status, d: cookie
  prefetch,        ///< device, a: first page, b: pages, c: status, d: cookie
  pin,             ///< device, a: first page, b: pages, c: status, d: cookie
  unpin,           ///< device, a: first page, b: pages
  dma,             ///< device, a: page, b: op
  discard,         ///< as pin
  populate,        ///< as pin
  migrate,         ///< as pin
  attributes,      ///< set or reset; a: first page, b: pages, c: status, d: cookie
  action,  ///< decided by the core; a: first page, b: pages, c: VRAM page / token / cookie, d: packed, see trace.cpp,
           ///< e: id
  part,    ///< performed; a: first page, b: pages, c: action id, d: verb
  done,    ///< answered; c: action id, b: status, d: verb
  core_event,  ///< what the core says it does; a: first page, b: pages, c: kind and cause, d: to and access
  open,        ///< a: client id
  attach,
  kill,  ///< device == no_device: the application
  gone,  ///< told to the core; c: cookie
  closed,
  stop,
  resume_process,
  budget,    ///< a: pages, b: room in the store
  pressure,  ///< a: pages
  retry,     ///< a: 1 on, b: status
  fork,      ///< a: cookie, b: status
  child,     ///< a: page, b: op, or 2: it ends, c: child
  change,    ///< a: first page, b: pages, c: status and cookie, d: change, e: protection
};

class Trace {
 public:
  explicit Trace(std::function<void(std::string_view)> sink) : sink_(std::move(sink)) {}

  void add(std::uint64_t time_ns, std::uint64_t step, Line line, ClientId client, DeviceId device, std::uint64_t a = 0,
           std::uint64_t b = 0, std::uint64_t c = 0, std::uint64_t d = 0, std::uint64_t e = 0);
  void add_action(std::uint64_t time_ns, std::uint64_t step, const core::Action& action);
  void add_event(std::uint64_t step, const core::Event& event);

  [[nodiscard]] std::uint64_t hash() const { return hash_; }
  /// The last lines, oldest first, each ended by a newline.
  [[nodiscard]] std::string tail() const;

  /// Keeps the last lines about one page from here on, accesses included.
  void watch(ClientId client, Page page);
  [[nodiscard]] std::string watched() const;

 private:
  struct Record {
    std::uint64_t time_ns = 0;
    std::uint64_t step = 0;
    std::uint64_t a = 0, b = 0, c = 0, d = 0, e = 0;
    ClientId client = 0;
    Line line = Line::start;
    DeviceId device = no_device;
  };
  static constexpr std::size_t kept = 40;

  class Ring {
   public:
    void add(const Record& record) { records_[count_++ % kept] = record; }
    [[nodiscard]] std::string text() const;

   private:
    std::array<Record, kept> records_{};
    std::uint64_t count_ = 0;
  };

  [[nodiscard]] static std::string text_of(const Record& record);
  [[nodiscard]] bool concerns_watched(const Record& record) const;

  std::function<void(std::string_view)> sink_;
  Ring ring_;  ///< without accesses that hit: they would fill it
  Ring watched_;
  bool watching_ = false;
  ClientId watched_client_ = 0;
  Page watched_page_ = 0;
  std::uint64_t hash_ = 0x9e3779b97f4a7c15;
};

}  // namespace ferry::sim
