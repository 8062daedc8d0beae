// A scenario: a small machine, who runs on it, and what is expected under each policy. Read from a text that users
// write (docs/CHECK.md); checked here, so that whatever runs it may rely on every index and name.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/types.h"
#include "check/verdict.h"
#include "core/action.h"
#include "core/config.h"

namespace ferry::check {

inline constexpr std::uint32_t none = 0xffff'ffff;

/// What one line under an agent does. Names are indices into the scenario's lists.
struct Step {
  enum class Kind : std::uint8_t {
    read,    ///< page or buffer
    write,   ///< page or buffer
    signal,  ///< a word (user fence)
    await,   ///< a word
    spin,    ///< a wave: runs on for ever, without a fault
    lock,
    unlock,
    submit,
    wait_fence,
    array,  ///< makes a fence of others
    deadline,
    cancel,
    create,  ///< a buffer
    close,
    alloc,  ///< a page
    free,
    prefetch,    ///< a page, to a device or home
    invalidate,  ///< a page: its memory was replaced on the CPU side
    advance,     ///< a timeline's point, from the CPU
    kill,        ///< a client, or its device process
    pressure,
    budget,
    unmap,  ///< a page, as munmap does
    pin,    ///< a page, in system memory or on a device
    unpin,
    access,   ///< a page: what a device may do with it (number)
    discard,  ///< a page: its contents may be dropped
    migrate,  ///< a page, to a device or home, with a fence
    fork,
    move,  ///< a page, to the address of `to_page`, as mremap does
  } kind = Kind::read;
  std::uint32_t page = none;  ///< or
  std::uint32_t to_page = none;
  std::uint32_t buffer = none;  ///< of read, write: one of both is set
  std::uint32_t word = none;
  std::uint32_t lock = none;
  std::uint32_t fence = none;  ///< submit, wait_fence, array, deadline, cancel
  std::uint32_t job = none;    ///< submit
  std::uint32_t client = none;
  std::uint32_t timeline = none;
  DeviceId device = no_device;
  std::uint64_t number = 0;  ///< deadline: ns from now; advance: point; pressure, budget: pages
  bool any = false;
  std::vector<std::uint32_t> fences;
  std::string text;  ///< as written
};

struct PointName {
  std::uint32_t timeline = 0;
  std::uint64_t point = 0;
};

struct JobDef {
  std::uint32_t fence = 0;
  core::Engine engine = core::Engine::copy;
  DeviceId device = 0;
  unsigned priority = 1;
  unsigned cus_min = 1;
  unsigned cus_max = 1;
  std::uint64_t timeout_ns = 10'000'000'000;
  bool hangs = false;  ///< ends only when cancelled
  bool fails = false;  ///< ends with an error
  bool async = false;  ///< the thread does not wait until the fence is visible
  std::vector<std::uint32_t> reads;
  std::vector<std::uint32_t> writes;
  std::vector<std::uint32_t> waits;
  std::vector<PointName> wait_points;
  std::vector<PointName> signal_points;
};

struct Agent {
  std::string name;
  bool is_wave = false;
  bool may_hang = false;  ///< nobody is wronged if it never ends: it has itself to blame
  std::uint32_t client = 0;
  DeviceId device = no_device;  ///< of waves
  std::vector<Step> steps;
};

struct PageDef {
  std::string name;
  std::uint32_t client = 0;
  bool stays_home = false;   ///< Placement::system
  bool later = false;        ///< allocated by a step
  bool read_mostly = false;  ///< svm_read_mostly, as soon as it is allocated
};

struct BufferDef {
  std::string name;
  std::vector<std::uint32_t> clients;  ///< the first makes it, the others open it
  std::uint64_t pages = 1;
  DeviceId home = no_device;
  bool implicit_sync = true;
  std::uint32_t user_page = none;  ///< userptr
  bool later = false;              ///< created by a step
  bool mapped = false;             ///< some agent reads or writes it by address
};

struct TimelineDef {
  std::string name;
  std::vector<std::uint32_t> clients;
};

struct DeviceDef {
  core::DeviceModel model;
  std::optional<core::Policy> policy;  ///< fixed; else the one that is being checked
  bool fixed_units = false;
  bool fixed_preempts = false;
  bool fixed_retry = false;
};

/// One point of the sweep over hardware.
struct Hardware {
  unsigned units = 0;  ///< 0: as the scenario says
  std::optional<bool> preempts;
  std::optional<bool> retry;

  [[nodiscard]] std::string text() const;
  friend bool operator==(const Hardware&, const Hardware&) = default;
};

struct Expectation {
  std::vector<core::Policy> policies;  ///< empty: all
  std::optional<unsigned> units;
  bool or_more = false;  ///< so many units, or more
  std::optional<bool> preempts;
  std::optional<bool> retry;
  std::vector<Verdict> verdicts;
};

struct Scenario {
  std::string name;
  std::string title;
  std::vector<std::string> claims;      ///< of the argument, that it confirms or refutes
  std::vector<core::PlantedBug> shows;  ///< planted bugs that it is there to find
  std::string text;                     ///< all of it, for replays

  std::vector<DeviceDef> devices;
  std::vector<unsigned> sweep_units;
  std::vector<bool> sweep_preempts;
  std::vector<bool> sweep_retry;
  std::uint64_t vram_granules = 0;
  std::uint64_t system_pages = 0;
  std::uint64_t store_pages = 0;
  /// Times that a timer may fire while other events could happen, in one execution.
  unsigned early_ticks = 0;
  /// Actions that may fail in one execution, and which.
  unsigned failures = 0;
  std::vector<core::Verb> failing;
  /// Under these policies memory is never given over the budget; none: that is not looked at.
  std::vector<core::Policy> strict;
  /// An action's effect and its answer are two events.
  bool apart = false;
  /// Random runs instead of exhaustive search, unless the command line says otherwise.
  bool large = false;

  std::vector<std::string> clients;
  std::vector<PageDef> pages;
  std::vector<BufferDef> buffers;
  std::vector<TimelineDef> timelines;
  std::vector<std::string> fences;
  std::vector<JobDef> jobs;
  std::vector<std::string> words;
  std::vector<std::string> locks;
  std::vector<Agent> agents;
  std::vector<Expectation> expectations;

  /// The points of the sweep. `all`: every combination that the scenario leaves open, with one to three units.
  [[nodiscard]] std::vector<Hardware> sweep(bool all) const;
  /// What the last expectation that fits says; empty: none does.
  [[nodiscard]] std::vector<Verdict> expected(core::Policy policy, const Hardware& hardware) const;
  [[nodiscard]] core::DeviceModel model(DeviceId device, core::Policy policy, const Hardware& hardware) const;
};

/// Either a scenario, or where and why the text is none ("shared.scn:12: no page is called 'a'").
struct Parsed {
  std::optional<Scenario> scenario;
  std::string error;
};
[[nodiscard]] Parsed parse_scenario(std::string_view text, std::string_view name);

[[nodiscard]] std::optional<core::Policy> parse_policy(std::string_view word);
[[nodiscard]] std::optional<core::PlantedBug> parse_bug(std::string_view word);
/// "units=2,preempts=no,retry=yes", any part left out. Empty optional: not of that form.
[[nodiscard]] std::optional<Hardware> parse_hardware(std::string_view text);

}  // namespace ferry::check
