// The C++ side of <ferry/svm.h>: attributes, moves, pins, adoption, events and checkpoints. docs/SVM.md has the rules.
// Functions that fail throw ferry::error, whose what() says which line and which value.
#pragma once

#include <ferry/svm.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ferry/work.hpp>
#include <optional>
#include <utility>
#include <vector>

namespace ferry {

// --- places -----------------------------------------------------------------------------------------------------------

/// Where pages can be asked to be: a device, system memory, or nowhere in particular.
class location {
 public:
  /// A device.
  constexpr location(unsigned device) : value_(device) {}  // NOLINT(google-explicit-constructor)
  [[nodiscard]] static constexpr location system() { return location(FERRY_LOC_SYSTEM); }
  /// As a value to set: take back what was said. As one that was got: the pages differ, or nobody said.
  [[nodiscard]] static constexpr location undefined() { return location(FERRY_LOC_UNDEFINED); }
  [[nodiscard]] constexpr std::uint32_t value() const { return value_; }
  /// The number of the device, if it is one.
  [[nodiscard]] constexpr std::optional<unsigned> device() const {
    if (value_ == FERRY_LOC_SYSTEM || value_ == FERRY_LOC_UNDEFINED) return std::nullopt;
    return value_;
  }
  friend constexpr bool operator==(location, location) = default;

 private:
  std::uint32_t value_;
};

/// What one device may do with pages; see ferry_device_access.
enum class device_access : std::uint32_t {
  none = FERRY_NO_ACCESS,
  in_place = FERRY_ACCESS_IN_PLACE,
  migrate = FERRY_ACCESS,
};

/// Flags of pages; see ferry_svm_flag and docs/SVM.md.
enum class svm_flag : std::uint32_t {
  none = 0,
  host_access = FERRY_SVM_HOST_ACCESS,
  coherent = FERRY_SVM_COHERENT,
  hive_local = FERRY_SVM_HIVE_LOCAL,
  gpu_ro = FERRY_SVM_GPU_RO,
  gpu_exec = FERRY_SVM_GPU_EXEC,
  read_mostly = FERRY_SVM_READ_MOSTLY,
  always_mapped = FERRY_SVM_ALWAYS_MAPPED,
  ext_coherent = FERRY_SVM_EXT_COHERENT,
};
[[nodiscard]] constexpr svm_flag operator|(svm_flag a, svm_flag b) {
  return static_cast<svm_flag>(static_cast<std::uint32_t>(a) | static_cast<std::uint32_t>(b));
}
[[nodiscard]] constexpr svm_flag operator&(svm_flag a, svm_flag b) {
  return static_cast<svm_flag>(static_cast<std::uint32_t>(a) & static_cast<std::uint32_t>(b));
}
/// All of `wanted` are in `flags`.
[[nodiscard]] constexpr bool has(svm_flag flags, svm_flag wanted) { return (flags & wanted) == wanted; }

// --- attributes -------------------------------------------------------------------------------------------------------

/// A list of attributes, built line by line and then applied to spans: all lines or none.
///
///     ferry::attributes().preferred(0).set(ferry::svm_flag::read_mostly).apply(p, bytes);
class attributes {
 public:
  /// Where device faults bring the pages.
  attributes& preferred(location where) { return add(FERRY_SVM_PREFERRED_LOC, 0, where.value()); }
  /// The pages go there before apply() returns.
  attributes& prefetch(location where) { return add(FERRY_SVM_PREFETCH_LOC, 0, where.value()); }
  attributes& access(unsigned device, device_access wanted) {
    return add(FERRY_SVM_ACCESS_OF, device, static_cast<std::uint32_t>(wanted));
  }
  attributes& set(svm_flag flags) { return add(FERRY_SVM_SET_FLAGS, 0, static_cast<std::uint32_t>(flags)); }
  attributes& clear(svm_flag flags) { return add(FERRY_SVM_CLR_FLAGS, 0, static_cast<std::uint32_t>(flags)); }
  /// log2 of the pages that move together around a fault.
  attributes& granularity(unsigned log2_pages) { return add(FERRY_SVM_GRANULARITY, 0, log2_pages); }

  /// Throws error, and nothing changed: bad_range (span, or a line: what() says which), not_allocated, not_permitted (a
  /// prefetch to a device without access).
  void apply(void* p, std::size_t bytes) const {
    ferry_error e;
    detail::check(ferry_svm_set(p, bytes, lines_.data(), lines_.size(), &e), e);
  }
  [[nodiscard]] const std::vector<ferry_svm_attribute>& lines() const { return lines_; }

 private:
  attributes& add(ferry_svm_type type, std::uint32_t device, std::uint32_t value) {
    lines_.push_back({static_cast<std::uint32_t>(type), device, value, 0});
    return *this;
  }
  std::vector<ferry_svm_attribute> lines_;
};

/// What a whole span has: where its pages differ, undefined, the weakest access, the least granularity; flags that are
/// set (and those that are cleared) on every page.
struct span_attributes {
  location preferred = location::undefined();
  location prefetch = location::undefined();
  svm_flag set = svm_flag::none;
  svm_flag cleared = svm_flag::none;
  unsigned granularity = 0;
  std::vector<device_access> access{};  ///< by device
};

/// Throws error: bad_range, not_allocated.
[[nodiscard]] inline span_attributes attributes_of(const void* p, std::size_t bytes) {
  const unsigned devices = device_count();
  std::vector<ferry_svm_attribute> lines = {{FERRY_SVM_PREFERRED_LOC, 0, 0, 0},
                                            {FERRY_SVM_PREFETCH_LOC, 0, 0, 0},
                                            {FERRY_SVM_SET_FLAGS, 0, 0, 0},
                                            {FERRY_SVM_CLR_FLAGS, 0, 0, 0},
                                            {FERRY_SVM_GRANULARITY, 0, 0, 0}};
  for (unsigned d = 0; d < devices; ++d) lines.push_back({FERRY_SVM_ACCESS_OF, d, 0, 0});
  ferry_error e;
  detail::check(ferry_svm_get(p, bytes, lines.data(), lines.size(), &e), e);
  span_attributes out;
  out.preferred = location(lines[0].value);
  out.prefetch = location(lines[1].value);
  out.set = static_cast<svm_flag>(lines[2].value);
  out.cleared = static_cast<svm_flag>(lines[3].value);
  out.granularity = lines[4].value;
  for (unsigned d = 0; d < devices; ++d) out.access.push_back(static_cast<device_access>(lines[5 + d].value));
  return out;
}

/// Back to how a new allocation begins. Throws error: bad_range, not_allocated.
inline void reset_attributes(void* p, std::size_t bytes) {
  ferry_error e;
  detail::check(ferry_svm_reset(p, bytes, &e), e);
}

/// Whether waves of this process may fault and try again (KFD: XNACK).
[[nodiscard]] inline bool retry_faults() {
  int was = 0;
  ferry_error e;
  detail::check(ferry_svm_retry_faults(-1, &was, &e), e);
  return was != 0;
}
/// Returns how it was. Throws error: in_use (kernels run or wait), unsupported.
inline bool set_retry_faults(bool on) {
  int was = 0;
  ferry_error e;
  detail::check(ferry_svm_retry_faults(on ? 1 : 0, &was, &e), e);
  return was != 0;
}

// --- moves ------------------------------------------------------------------------------------------------------------

/// Brings pages to a device or home (to_cpu), and returns at once: the fence signals when it is done.
/// Throws error: bad_range, not_allocated.
[[nodiscard]] inline fence migrate_async(const void* p, std::size_t bytes, destination to) {
  ferry_fence* handle = nullptr;
  ferry_error e;
  detail::check(ferry_migrate_async(p, bytes, to.device, &handle, &e), e);
  return fence(handle);
}
/// Gives pages memory before they are touched. Throws error: bad_range, not_allocated, no_memory.
inline void populate(void* p, std::size_t bytes, destination to = to_cpu) {
  ferry_error e;
  detail::check(ferry_populate(p, bytes, to.device, &e), e);
}
/// Contents are needed no more: they move nowhere, and read as before or as zeros until they are written.
/// Throws error: bad_range, not_allocated, in_use (pinned).
inline void discard(void* p, std::size_t bytes) {
  ferry_error e;
  detail::check(ferry_discard(p, bytes, &e), e);
}

/// A set of pages whose migration can be forbidden and allowed together. When it goes, its pages may migrate again.
class range_group {
 public:
  range_group() {
    ferry_error e;
    handle_ = owner(detail::made(ferry_range_group_create(&e), e));
  }
  /// The pages are of this group, and of no other, from now on. Throws error: bad_range, not_allocated.
  void assign(void* p, std::size_t bytes) const { assign(handle_.get(), p, bytes); }
  /// The pages are of no group. Throws error: bad_range, not_allocated.
  static void unassign(void* p, std::size_t bytes) { assign(nullptr, p, bytes); }
  /// Forbidden: they stay where they are, and are reached there.
  void forbid_migration() const { migration(0); }
  void allow_migration() const { migration(1); }
  [[nodiscard]] ferry_range_group* handle() const { return handle_.get(); }

 private:
  using owner = detail::owner<ferry_range_group, &ferry_range_group_destroy>;
  static void assign(ferry_range_group* group, void* p, std::size_t bytes) {
    ferry_error e;
    detail::check(ferry_range_group_assign(group, p, bytes, &e), e);
  }
  void migration(int allowed) const {
    ferry_error e;
    detail::check(ferry_range_group_migration(handle_.get(), allowed, &e), e);
  }
  owner handle_;
};

// --- copies -----------------------------------------------------------------------------------------------------------

/// Memories that hold the newest bytes of the page of `p`: bit d, VRAM of device d; FERRY_COPY_SYSTEM. 0: not managed.
[[nodiscard]] inline std::uint32_t copies_of(const void* p) {
  std::uint32_t copies = 0;
  ferry_error e;
  detail::check(ferry_query_copies(p, &copies, &e), e);
  return copies;
}

// --- pins -------------------------------------------------------------------------------------------------------------

/// Pages that stay where they are while the object lives, for DMA that no page table stops.
class pin {
 public:
  /// Brings them `to` there first. Throws error: no_memory (the limit of pins, or no room), bad_range, not_allocated.
  pin(const void* p, std::size_t bytes, destination to = to_cpu) : p_(p), bytes_(bytes) {
    ferry_error e;
    detail::check(ferry_pin(p, bytes, to.device, &e), e);
  }
  pin(pin&& other) noexcept : p_(std::exchange(other.p_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  pin& operator=(pin&& other) noexcept {
    if (this != &other) {
      release();
      p_ = std::exchange(other.p_, nullptr);
      bytes_ = std::exchange(other.bytes_, 0);
    }
    return *this;
  }
  pin(const pin&) = delete;
  pin& operator=(const pin&) = delete;
  ~pin() { release(); }
  /// Before the object goes.
  void release() noexcept {
    if (p_ != nullptr) ferry_unpin(p_, bytes_, nullptr);
    p_ = nullptr;
  }

 private:
  const void* p_;
  std::size_t bytes_;
};

// --- memory that the program already has ------------------------------------------------------------------------------

/// Makes memory of the program usable on devices at the same address, as a kernel that touches it does: heap, anonymous
/// mappings, globals, stacks, mapped files. Throws error: unsupported (what() says why it cannot be had), bad_range.
inline void adopt(void* p, std::size_t bytes) {
  ferry_error e;
  detail::check(ferry_adopt(p, bytes, &e), e);
}
/// Makes it private memory of the process again, with its newest contents. Throws error: in_use (pinned), bad_range.
inline void release(void* p, std::size_t bytes) {
  ferry_error e;
  detail::check(ferry_release(p, bytes, &e), e);
}

// --- checkpoints ------------------------------------------------------------------------------------------------------

/// Writes all managed memory and its attributes to a file. No kernel may run, and nobody may write managed memory
/// meanwhile. Throws error: no_space, io_error, in_use.
inline void save_checkpoint(int fd) {
  ferry_error e;
  detail::check(ferry_checkpoint_save(fd, &e), e);
}
/// In a process that has no managed memory yet: the same allocations at the same addresses. Throws error: bad_message (no
/// checkpoint, or a damaged one; nothing was restored), overlap, no_memory.
inline void restore_checkpoint(int fd) {
  ferry_error e;
  detail::check(ferry_checkpoint_restore(fd, &e), e);
}

// --- events -----------------------------------------------------------------------------------------------------------

/// See ferry_event_kind.
enum class event_kind : std::uint32_t {
  fault_start = FERRY_EVENT_FAULT_START,
  fault_end = FERRY_EVENT_FAULT_END,
  migrate_start = FERRY_EVENT_MIGRATE_START,
  migrate_end = FERRY_EVENT_MIGRATE_END,
  queue_eviction = FERRY_EVENT_QUEUE_EVICTION,
  queue_restore = FERRY_EVENT_QUEUE_RESTORE,
  unmap = FERRY_EVENT_UNMAP,
  prefetch = FERRY_EVENT_PREFETCH,
  thrash = FERRY_EVENT_THRASH,
  lost = FERRY_EVENT_LOST,
};

using event = ferry_event;
[[nodiscard]] inline event_kind kind_of(const event& e) { return static_cast<event_kind>(e.kind); }
[[nodiscard]] inline const char* to_string(event_kind kind) {
  return ferry_event_kind_text(static_cast<std::uint32_t>(kind));
}
[[nodiscard]] inline const char* trigger_of(const event& e) { return ferry_event_trigger_text(e.trigger); }

/// What happens to this process's memory, from the object's making on.
class events {
 public:
  /// Only these kinds; none named: all. Throws error: no_memory (16 streams a process).
  explicit events(std::initializer_list<event_kind> kinds = {}) {
    std::uint64_t mask = kinds.size() == 0 ? (std::uint64_t{1} << (FERRY_EVENT_LOST + 1)) - 1 : 0;
    for (const event_kind kind : kinds) mask |= std::uint64_t{1} << static_cast<unsigned>(kind);
    ferry_error e;
    handle_ = owner(detail::made(ferry_events_open(mask, &e), e));
  }
  /// What has happened since the last call, or, if that is nothing, what happens first within the limit.
  [[nodiscard]] std::vector<event> read(std::chrono::nanoseconds limit = std::chrono::nanoseconds(0)) const {
    std::vector<event> out(64);
    out.resize(ferry_events_read(handle_.get(), out.data(), out.size(), detail::timeout_of(limit)));
    return out;
  }
  /// Polls readable while there is something to read. The object's.
  [[nodiscard]] int fd() const { return ferry_events_fd(handle_.get()); }
  [[nodiscard]] ferry_events* handle() const { return handle_.get(); }

 private:
  using owner = detail::owner<ferry_events, &ferry_events_close>;
  owner handle_;
};

}  // namespace ferry
