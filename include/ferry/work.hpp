/// @file work.hpp
/// Buffers, fences, timelines and jobs for C++: what work.h has, with objects that close themselves.
///
///     ferry::buffer frame(width * height * 4, ferry::in_vram(0)), copy(frame.bytes());
///     auto* pixels = frame.map<std::uint32_t>();
///     ferry::fence drawn = ferry::submit_graphics({.buffers = {ferry::writes(frame)}}, n,
///                                                 [pixels](std::size_t i) { pixels[i] = colour(i); });
///     ferry::fence copied = ferry::submit_copy({}, copy, 0, frame, 0, frame.bytes());  // waits for `drawn` by itself
///     copied.wait();
///
/// Objects are handles: moved, not copied; closed by their destructors, which never wait for a job. One object may be
/// used by any number of threads, apart from moving and destroying it. Errors are thrown as ferry::error.
#pragma once

#include <ferry/work.h>
#include <ferry/ferry.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <source_location>
#include <string>
#include <utility>
#include <vector>

namespace ferry {

/// A time that never comes.
inline constexpr std::chrono::nanoseconds forever = std::chrono::nanoseconds::max();

namespace detail {

[[nodiscard]] inline std::uint64_t timeout_of(std::chrono::nanoseconds t) {
  return t == forever ? FERRY_FOREVER : t.count() < 0 ? 0 : static_cast<std::uint64_t>(t.count());
}
template <typename T>
[[nodiscard]] T* made(T* handle, const ferry_error& e) {
  if (handle == nullptr) [[unlikely]]
    raise(e);
  return handle;
}
[[nodiscard]] inline int opened(int fd, const ferry_error& e) {
  if (fd < 0) [[unlikely]]
    raise(e);
  return fd;
}

/// A handle that closes itself.
template <typename T, auto close>
class owner {
 public:
  owner() = default;
  explicit owner(T* handle) : handle_(handle) {}
  owner(owner&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  owner& operator=(owner&& other) noexcept {
    if (this != &other) {
      close(handle_);
      handle_ = std::exchange(other.handle_, nullptr);
    }
    return *this;
  }
  owner(const owner&) = delete;
  owner& operator=(const owner&) = delete;
  ~owner() { close(handle_); }
  [[nodiscard]] T* get() const noexcept { return handle_; }

 private:
  T* handle_ = nullptr;
};

inline void close_buffer(ferry_buffer* b) { ferry_buffer_close(b, nullptr); }

}  // namespace detail

// --- buffers ----------------------------------------------------------------------------------------------------------

/// Where a buffer is while there is room.
struct home {
  int device = FERRY_IN_SYSTEM;
};
[[nodiscard]] constexpr home in_vram(unsigned device) { return {static_cast<int>(device)}; }
inline constexpr home in_system{};

/// Whether jobs wait for the buffer's earlier users by themselves.
enum class implicit_sync : bool { off, on };

/// Where a buffer is, who uses it.
using buffer_state = ferry_buffer_state;

/// Memory that applications and devices share by a descriptor. See ferry_buffer_create for sizes and life.
class buffer {
 public:
  /// Zeros. Throws error: bad_range (0 bytes, no such device), no_memory.
  explicit buffer(std::size_t bytes, home where = in_system, implicit_sync sync = implicit_sync::on) {
    ferry_error e;
    handle_ = owner(detail::made(ferry_buffer_create(bytes, where.device, flags(sync), &e), e));
  }
  /// The managed memory [p, p + bytes) itself, whole pages, which must outlive the buffer.
  /// Throws error: bad_range, not_allocated.
  [[nodiscard]] static buffer of_memory(void* p, std::size_t bytes, implicit_sync sync = implicit_sync::on) {
    ferry_error e;
    return adopt(detail::made(ferry_buffer_from_memory(p, bytes, flags(sync), &e), e));
  }
  /// The buffer behind a descriptor of export_fd(), which stays the caller's. Throws error: not_held.
  [[nodiscard]] static buffer import_fd(int fd) {
    ferry_error e;
    return adopt(detail::made(ferry_buffer_import(fd, &e), e));
  }
  /// Takes the handle over.
  [[nodiscard]] static buffer adopt(ferry_buffer* handle) { return buffer(owner(handle)); }

  /// One address for CPU, kernels and graphics jobs of this process, good while the object lives. Throws error: no_memory.
  template <typename T = void>
  [[nodiscard]] T* map() const {
    ferry_error e;
    void* p = ferry_buffer_map(handle_.get(), &e);
    if (p == nullptr) detail::raise(e);
    return static_cast<T*>(p);
  }
  [[nodiscard]] std::size_t bytes() const { return ferry_buffer_bytes(handle_.get()); }
  /// Its number on this machine, equal in all processes.
  [[nodiscard]] std::uint64_t id() const { return ferry_buffer_id(handle_.get()); }
  [[nodiscard]] buffer_state state() const {
    buffer_state s;
    ferry_error e;
    detail::check(ferry_buffer_query(handle_.get(), &s, &e), e);
    return s;
  }
  /// A descriptor that stands for the buffer and keeps it alive; the caller's to close. Throws error: unsupported.
  [[nodiscard]] int export_fd() const {
    ferry_error e;
    return detail::opened(ferry_buffer_export(handle_.get(), &e), e);
  }
  [[nodiscard]] ferry_buffer* handle() const { return handle_.get(); }

 private:
  using owner = detail::owner<ferry_buffer, &detail::close_buffer>;
  explicit buffer(owner handle) : handle_(std::move(handle)) {}
  [[nodiscard]] static unsigned flags(implicit_sync sync) {
    return sync == implicit_sync::off ? unsigned{FERRY_BUFFER_NO_IMPLICIT_SYNC} : 0U;
  }
  owner handle_;
};

// --- fences -----------------------------------------------------------------------------------------------------------

/// How a job ended, once it has.
class fence {
 public:
  /// Takes the handle over.
  explicit fence(ferry_fence* handle) : handle_(handle) {}
  /// The fence behind a descriptor of export_fd(), which stays the caller's. Throws error: not_held.
  [[nodiscard]] static fence import_fd(int fd) {
    ferry_error e;
    return fence(detail::made(ferry_fence_import(fd, &e), e));
  }

  /// Waits until it has signalled. Throws the job's error: its code says how it ended.
  void wait() const {
    ferry_error e;
    detail::check(ferry_fence_wait(handle_.get(), FERRY_FOREVER, &e), e);
  }
  /// The same with a limit. False: it has passed.
  [[nodiscard]] bool wait_for(std::chrono::nanoseconds limit) const {
    ferry_error e;
    const ferry_code code = ferry_fence_wait(handle_.get(), detail::timeout_of(limit), &e);
    if (code != FERRY_OK && !signalled()) return false;
    detail::check(code, e);
    return true;
  }
  [[nodiscard]] ferry_fence_state state() const { return ferry_fence_query(handle_.get(), nullptr); }
  [[nodiscard]] bool signalled() const { return state() == FERRY_FENCE_SIGNALLED; }
  /// The error it has signalled with; nothing: not signalled, or well.
  [[nodiscard]] std::optional<errc> failure() const {
    ferry_code code = FERRY_OK;
    ferry_fence_query(handle_.get(), &code);
    if (code == FERRY_OK) return std::nullopt;
    return static_cast<errc>(code);
  }
  /// Somebody needs it so soon: its job, and what that waits for, goes before others.
  void set_deadline(std::chrono::nanoseconds in) const {
    ferry_error e;
    detail::check(ferry_fence_set_deadline(handle_.get(), detail::timeout_of(in), &e), e);
  }
  /// Ends the job if it has not begun, asks it to end if it has. Throws error: not_held (no job of this process).
  void cancel() const {
    ferry_error e;
    detail::check(ferry_job_cancel(handle_.get(), &e), e);
  }
  /// An eventfd that gets 1 when it signals; the caller's to close.
  [[nodiscard]] int eventfd() const {
    ferry_error e;
    return detail::opened(ferry_fence_eventfd(handle_.get(), &e), e);
  }
  /// A descriptor that stands for the fence: poll() and sync_fd_status() anywhere, import_fd() in another application;
  /// the caller's to close.
  [[nodiscard]] int export_fd() const {
    ferry_error e;
    return detail::opened(ferry_fence_export(handle_.get(), &e), e);
  }
  [[nodiscard]] ferry_fence* handle() const { return handle_.get(); }

 private:
  detail::owner<ferry_fence, &ferry_fence_close> handle_;
};

/// How the fence behind a descriptor of fence::export_fd stands: nothing yet, or the code it signalled with (FERRY_OK:
/// well). Throws error(bad_range) if it is none.
[[nodiscard]] inline std::optional<ferry_code> sync_fd_status(int fd) {
  ferry_code code = FERRY_OK;
  const int known = ferry_sync_fd_status(fd, &code);
  if (known < 0) {
    ferry_error e{};
    e.code = FERRY_BAD_RANGE;
    std::strncpy(e.text, "the descriptor stands for no fence", sizeof e.text - 1);
    throw error(e);
  }
  if (known == 0) return std::nullopt;
  return code;
}

namespace detail {
[[nodiscard]] inline fence merge(const std::vector<const fence*>& parts, bool any) {
  std::vector<ferry_fence*> handles;
  handles.reserve(parts.size());
  for (const fence* f : parts) handles.push_back(f->handle());
  ferry_error e;
  return fence(made(ferry_fence_merge(handles.data(), handles.size(), any ? 1 : 0, &e), e));
}
}  // namespace detail

/// A fence for when all of them have signalled, with the first error. Throws error: bad_range, timed_out.
[[nodiscard]] inline fence merge_all(const std::vector<const fence*>& parts) { return detail::merge(parts, false); }
/// A fence for when the first of them has signalled.
[[nodiscard]] inline fence merge_any(const std::vector<const fence*>& parts) { return detail::merge(parts, true); }

// --- timelines --------------------------------------------------------------------------------------------------------

class timeline;

/// One point of a timeline, as jobs name it. The timeline must live until the job is submitted.
struct timeline_point {
  const ferry::timeline* line = nullptr;
  std::uint64_t point = 0;
};

/// A row of points, signalled by jobs and from the CPU; jobs may wait for points that nobody has promised yet.
class timeline {
 public:
  timeline() {
    ferry_error e;
    handle_ = owner(detail::made(ferry_timeline_create(&e), e));
  }
  explicit timeline(ferry_timeline* handle) : handle_(handle) {}
  [[nodiscard]] static timeline import_fd(int fd) {
    ferry_error e;
    return timeline(detail::made(ferry_timeline_import(fd, &e), e));
  }
  /// Throws error: in_use (promised or signalled already, or a later one is), bad_range (0).
  void signal(std::uint64_t point) const {
    ferry_error e;
    detail::check(ferry_timeline_signal(handle_.get(), point, &e), e);
  }
  void wait(std::uint64_t point) const {
    ferry_error e;
    detail::check(ferry_timeline_wait(handle_.get(), point, FERRY_FOREVER, &e), e);
  }
  /// False: the limit has passed.
  [[nodiscard]] bool wait_for(std::uint64_t point, std::chrono::nanoseconds limit) const {
    return ferry_timeline_wait(handle_.get(), point, detail::timeout_of(limit), nullptr) == FERRY_OK;
  }
  /// The highest point such that it and all before it have signalled.
  [[nodiscard]] std::uint64_t value() const { return ferry_timeline_value(handle_.get()); }
  [[nodiscard]] timeline_point at(std::uint64_t point) const { return {this, point}; }
  [[nodiscard]] int export_fd() const {
    ferry_error e;
    return detail::opened(ferry_timeline_export(handle_.get(), &e), e);
  }
  [[nodiscard]] ferry_timeline* handle() const { return handle_.get(); }

 private:
  using owner = detail::owner<ferry_timeline, &ferry_timeline_close>;
  owner handle_;
};

// --- jobs -------------------------------------------------------------------------------------------------------------

/// One buffer of a job's list, and what the job does to it.
struct buffer_use {
  const ferry::buffer* target = nullptr;
  bool write = false;
};
[[nodiscard]] inline buffer_use reads(const buffer& b) { return {&b, false}; }
[[nodiscard]] inline buffer_use writes(const buffer& b) { return {&b, true}; }

/// Engine time goes to higher ones first, with ageing.
enum class priority : unsigned { lowest = 1, normal = 2, high = 3, highest = 4 };

/// What a job may be told; see ferry_job_options.
struct job_options {
  unsigned device = 0;
  ferry::priority priority = ferry::priority::normal;
  unsigned cus_min = 1;                 ///< graphics
  unsigned cus_max = 0;                 ///< graphics; 0: all of the device
  std::chrono::nanoseconds timeout{0};  ///< from its start; 0: ten seconds
  std::vector<buffer_use> buffers{};
  std::vector<const fence*> waits{};
  std::vector<timeline_point> wait_points{};
  std::vector<timeline_point> signal_points{};
};

namespace detail {

class c_options {
 public:
  explicit c_options(const job_options& o) {
    for (const buffer_use& b : o.buffers) buffers_.push_back({b.target->handle(), b.write ? 1 : 0});
    for (const fence* f : o.waits) waits_.push_back(f->handle());
    for (const timeline_point& p : o.wait_points) wait_points_.push_back({p.line->handle(), p.point});
    for (const timeline_point& p : o.signal_points) signal_points_.push_back({p.line->handle(), p.point});
    c_.device = o.device;
    c_.priority = static_cast<unsigned>(o.priority);
    c_.cus_min = o.cus_min;
    c_.cus_max = o.cus_max;
    c_.timeout_ns = timeout_of(o.timeout);
    c_.buffers = buffers_.data();
    c_.buffer_count = buffers_.size();
    c_.waits = waits_.data();
    c_.wait_count = waits_.size();
    c_.wait_points = wait_points_.data();
    c_.wait_point_count = wait_points_.size();
    c_.signal_points = signal_points_.data();
    c_.signal_point_count = signal_points_.size();
  }
  [[nodiscard]] const ferry_job_options* get() const { return &c_; }

 private:
  ferry_job_options c_{};
  std::vector<ferry_job_buffer> buffers_;
  std::vector<ferry_fence*> waits_;
  std::vector<ferry_job_point> wait_points_;
  std::vector<ferry_job_point> signal_points_;
};

}  // namespace detail

/// Runs f(i) for every i in [0, n) on the graphics engine, as a job that signals the fence. f may touch the mapped
/// buffers of the list and nothing else that is managed. Returns at once.
/// Throws error: bad_range, not_held, in_use, would_deadlock (what() tells the circle), device_lost, no_memory.
template <item_kernel F>
[[nodiscard]] fence submit_graphics(const job_options& options, std::size_t n, F f, const char* name = nullptr,
                                    std::source_location where = std::source_location::current()) {
  detail::check_kernel<F>();
  ferry_error e;
  return fence(detail::made(ferry_submit_graphics(detail::c_options(options).get(), &detail::run_items<F>, &f, sizeof f,
                                                  n, 0, detail::launch_name(name, where).c_str(), &e),
                            e));
}

/// Copies bytes between buffers on a copy engine. Both are in the job's list without being told.
[[nodiscard]] inline fence submit_copy(const job_options& options, const buffer& target, std::uint64_t target_offset,
                                       const buffer& source, std::uint64_t source_offset, std::uint64_t bytes) {
  ferry_error e;
  return fence(detail::made(ferry_submit_copy(detail::c_options(options).get(), target.handle(), target_offset,
                                              source.handle(), source_offset, bytes, &e),
                            e));
}

/// What the video engine does; ferry_video_op defines each to the bit.
enum class video_op {
  nv12_to_rgba = FERRY_VIDEO_NV12_TO_RGBA,
  half = FERRY_VIDEO_HALF,
  blend = FERRY_VIDEO_BLEND,
};

/// One operation. Sizes are the source's, in pixels; offsets and pitches are bytes, a pitch of 0 is rows without a gap.
struct video {
  video_op op = video_op::half;
  unsigned width = 0;
  unsigned height = 0;
  unsigned alpha = 255;  ///< blend
  std::uint64_t source_offset = 0;
  std::uint64_t source_pitch = 0;
  std::uint64_t chroma_offset = 0;  ///< nv12; 0: right behind the plane of Y
  std::uint64_t target_offset = 0;
  std::uint64_t target_pitch = 0;
};

/// Runs one operation on the video engine. Both buffers are in the job's list without being told.
[[nodiscard]] inline fence submit_video(const job_options& options, const video& v, const buffer& target,
                                        const buffer& source) {
  const ferry_video c{static_cast<ferry_video_op>(v.op),
                      v.width,
                      v.height,
                      v.alpha,
                      v.source_offset,
                      v.source_pitch,
                      v.chroma_offset,
                      v.target_offset,
                      v.target_pitch};
  ferry_error e;
  return fence(
      detail::made(ferry_submit_video(detail::c_options(options).get(), &c, target.handle(), source.handle(), &e), e));
}

}  // namespace ferry
