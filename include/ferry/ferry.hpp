/// @file ferry.hpp
/// Ferry for C++: ordinary pointers, ordinary containers, on a device.
///
///     std::vector<float, ferry::allocator<float>> v(n, 1.0F);
///     ferry::parallel_for(n, [p = v.data()](std::size_t i) { p[i] *= 2; });
///
/// A kernel is a lambda or function whose captures are trivially copyable. It runs in the device, which is another
/// process with the same code at the same addresses, and follows any pointer of the program: into managed memory (which
/// ferry::alloc and ferry::allocator give), and into the ordinary heap, stacks, globals and mapped files, which are
/// adopted when a kernel touches them. Containers may be read and their elements changed in a kernel, but not grown.
/// docs/API.md lists what a kernel cannot reach.
///
/// Errors are thrown as ferry::error, and as ferry::kernel_error where a kernel failed. Everything may be called from
/// any thread. A child of fork() may allocate and free; everything else throws there until it calls exec.
#pragma once

#include <ferry/ferry.h>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace ferry {

/// Why a call failed; see ferry_code for what each one means.
enum class errc {
  bad_range = FERRY_BAD_RANGE,
  not_allocated = FERRY_NOT_ALLOCATED,
  overlap = FERRY_OVERLAP,
  bad_message = FERRY_BAD_MESSAGE,
  bad_version = FERRY_BAD_VERSION,
  not_permitted = FERRY_NOT_PERMITTED,
  not_held = FERRY_NOT_HELD,
  in_use = FERRY_IN_USE,
  would_deadlock = FERRY_WOULD_DEADLOCK,
  no_memory = FERRY_NO_MEMORY,
  no_mappings = FERRY_NO_MAPPINGS,
  no_space = FERRY_NO_SPACE,
  device_lost = FERRY_DEVICE_LOST,
  client_gone = FERRY_CLIENT_GONE,
  manager_lost = FERRY_MANAGER_LOST,
  timed_out = FERRY_TIMED_OUT,
  io_error = FERRY_IO_ERROR,
  kernel_fault = FERRY_KERNEL_FAULT,
  kernel_threw = FERRY_KERNEL_THREW,
  cancelled = FERRY_CANCELLED,
  unsupported = FERRY_UNSUPPORTED,
};

/// A call failed. what() says what happened and what to do about it.
class error : public std::runtime_error {
 public:
  explicit error(const ferry_error& e)
      : std::runtime_error(e.text), code_(static_cast<errc>(e.code)), sys_errno_(e.sys_errno) {}
  [[nodiscard]] errc code() const noexcept { return code_; }
  /// errno of the system call that failed, or 0.
  [[nodiscard]] int sys_errno() const noexcept { return sys_errno_; }

 private:
  errc code_;
  int sys_errno_;
};

/// A launch failed: its kernel crashed, threw, touched what it may not, was cancelled, or its device was lost. The
/// program, its memory and its other queues go on.
class kernel_error : public error {
 public:
  explicit kernel_error(const ferry_error& e) : error(e), kernel_(e.kernel), wave_(e.wave), address_(e.address) {}
  /// Name of the launch.
  [[nodiscard]] const std::string& kernel() const noexcept { return kernel_; }
  /// First wave that failed.
  [[nodiscard]] std::uint64_t wave() const noexcept { return wave_; }
  /// Address that it touched, or 0 where none was at fault.
  [[nodiscard]] std::uint64_t address() const noexcept { return address_; }

 private:
  std::string kernel_;
  std::uint64_t wave_;
  std::uint64_t address_;
};

namespace detail {

[[noreturn]] inline void raise(const ferry_error& e) {
  if (e.kernel[0] != '\0') throw kernel_error(e);
  throw error(e);
}
inline void check(ferry_code code, const ferry_error& e) {
  if (code != FERRY_OK) [[unlikely]]
    raise(e);
}

/// Names a launch after its place in the source, unless the caller named it.
class launch_name {
 public:
  launch_name(const char* given, const std::source_location& where) {
    if (given != nullptr) {
      std::strncpy(text_, given, sizeof text_ - 1);
      return;
    }
    const char* file = where.file_name();
    if (const char* slash = std::strrchr(file, '/')) file = slash + 1;
    const std::string name = std::string(file) + ":" + std::to_string(where.line());
    std::strncpy(text_, name.c_str(), sizeof text_ - 1);
  }
  [[nodiscard]] const char* c_str() const { return text_; }

 private:
  char text_[FERRY_KERNEL_NAME_BYTES] = {};
};

}  // namespace detail

// --- session ----------------------------------------------------------------------------------------------------------

/// Opens this process's session with a manager: the one at $FERRY_SOCKET, else a private one that ends with the
/// process. There is one session a process; it opens by itself on first use, so a context is needed only to open it
/// early, to name a socket, or to wait for all launches at the end of a scope. Memory outlives the context.
class context {
 public:
  /// Throws error: manager_lost, not_permitted, bad_version, unsupported.
  context() : context(nullptr) {}
  /// The manager at this socket path. Throws too if the session is open already with another one.
  explicit context(const char* socket) {
    ferry_error e;
    detail::check(ferry_open(socket, &e), e);
  }
  context(const context&) = delete;
  context& operator=(const context&) = delete;
  /// Waits until all launches have ended.
  ~context() { ferry_close(nullptr); }
};

/// What the session runs on: devices, compute units, bytes of VRAM, granularity.
using machine_info = ferry_machine_info;

[[nodiscard]] inline machine_info machine() {
  machine_info info;
  ferry_error e;
  detail::check(ferry_machine(&info, &e), e);
  return info;
}

[[nodiscard]] inline unsigned device_count() { return machine().devices; }

/// True if two devices reach each other's memory directly.
[[nodiscard]] inline bool device_linked(unsigned a, unsigned b) {
  ferry_error e;
  const int linked = ferry_device_linked(a, b, &e);
  if (linked < 0) detail::check(e.code, e);
  return linked == 1;
}

/// True inside a kernel on a device.
[[nodiscard]] inline bool in_device() noexcept { return ferry_in_device() != 0; }

/// The manager's statistics, as JSON: of all programs that share it.
[[nodiscard]] inline std::string stats() {
  ferry_error e;
  std::string text(65536, '\0');
  const std::size_t bytes = ferry_stats(text.data(), text.size(), &e);
  if (bytes == 0) detail::raise(e);
  text.resize(std::min(bytes, text.size() - 1));
  return text;
}

// --- memory -----------------------------------------------------------------------------------------------------------

/// Where an allocation wants to live.
enum class placement {
  automatic = FERRY_AUTOMATIC,  ///< moves to the processor that touches it
  system = FERRY_SYSTEM,        ///< stays in system memory; devices reach it in place
};

/// Managed memory, aligned to 16 bytes, contents undefined; give it back with ferry::free.
/// Throws error: bad_range for size 0, no_memory.
[[nodiscard]] inline void* alloc(std::size_t bytes, placement where = placement::automatic) {
  ferry_error e;
  void* p = ferry_alloc(bytes, static_cast<ferry_placement>(where), &e);
  if (p == nullptr) [[unlikely]]
    detail::raise(e);
  return p;
}

/// The same, with an alignment that is a power of two, at most 2 MiB.
[[nodiscard]] inline void* alloc_aligned(std::size_t bytes, std::size_t alignment,
                                         placement where = placement::automatic) {
  ferry_error e;
  void* p = ferry_alloc_aligned(bytes, alignment, static_cast<ferry_placement>(where), &e);
  if (p == nullptr) [[unlikely]]
    detail::raise(e);
  return p;
}

/// Gives memory of ferry::alloc back; null does nothing. Throws error: not_allocated for a double free or a pointer
/// into the middle, bad_range for memory that is not managed. The heap is unharmed by either.
inline void free(void* p) {
  ferry_error e;
  detail::check(ferry_free(p, &e), e);
}

/// For standard containers: their elements can then be used on every device. All instances are equal; one value may
/// free what another allocated. Throws error(no_memory).
template <typename T>
struct allocator {
  using value_type = T;
  using is_always_equal = std::true_type;
  using propagate_on_container_move_assignment = std::true_type;

  allocator() noexcept = default;
  template <typename U>
  allocator(const allocator<U>&) noexcept {}  // NOLINT(google-explicit-constructor): allocators convert

  [[nodiscard]] T* allocate(std::size_t n) {
    if (n > static_cast<std::size_t>(PTRDIFF_MAX) / sizeof(T)) throw std::bad_array_new_length();
    const std::size_t bytes = n == 0 ? 1 : n * sizeof(T);
    if constexpr (alignof(T) <= 16) {
      return static_cast<T*>(ferry::alloc(bytes));
    } else {
      return static_cast<T*>(ferry::alloc_aligned(bytes, alignof(T)));
    }
  }
  /// A pointer that this allocator did not give ends the program, with the reason: a destructor cannot throw.
  void deallocate(T* p, std::size_t) noexcept { ferry::free(p); }

  friend bool operator==(const allocator&, const allocator&) noexcept { return true; }
};

/// Owns an object in managed memory.
template <typename T>
struct deleter {
  void operator()(T* p) const noexcept {
    std::destroy_at(p);
    ferry::free(p);
  }
};
template <typename T>
using unique_ptr = std::unique_ptr<T, deleter<T>>;

/// Makes one object in managed memory.
template <typename T, typename... Args>
[[nodiscard]] unique_ptr<T> make_unique(Args&&... args) {
  allocator<T> a;
  T* p = a.allocate(1);
  try {
    std::construct_at(p, std::forward<Args>(args)...);
  } catch (...) {
    a.deallocate(p, 1);
    throw;
  }
  return unique_ptr<T>(p);
}

/// Where prefetch brings pages.
struct destination {
  int device = FERRY_TO_CPU;
};
[[nodiscard]] constexpr destination to_device(unsigned device) { return {static_cast<int>(device)}; }
inline constexpr destination to_cpu{};

/// Brings the pages of [p, p + bytes) there and returns when they have come. Best effort: what finds no room stays.
/// Throws error: bad_range, not_allocated.
inline void prefetch(const void* p, std::size_t bytes, destination to) {
  ferry_error e;
  detail::check(ferry_prefetch(p, bytes, to.device, &e), e);
}

/// Where one page is, who maps it, and why it was last moved.
using page_info = ferry_page_info;

[[nodiscard]] inline page_info query(const void* p) {
  page_info info;
  ferry_error e;
  detail::check(ferry_query(p, &info, &e), e);
  return info;
}

/// The same in words.
[[nodiscard]] inline std::string explain(const void* p) {
  char text[1024];
  ferry_error e;
  if (ferry_explain(p, text, sizeof text, &e) == 0) detail::raise(e);
  return text;
}

// --- kernels ----------------------------------------------------------------------------------------------------------

/// Size of a launch: `items` items in waves of `wave` items (0: chosen by Ferry).
struct grid {
  std::uint64_t items = 0;
  std::uint64_t wave = 0;
};

/// What a kernel of queue::launch is told about the item that it handles.
class item {
 public:
  item(std::uint64_t global, std::uint64_t wave, std::uint64_t local, std::uint64_t items)
      : global_(global), wave_(wave), local_(local), items_(items) {}
  /// Index in the whole grid.
  [[nodiscard]] std::uint64_t global() const { return global_; }
  /// Index of its wave.
  [[nodiscard]] std::uint64_t wave() const { return wave_; }
  /// Index within its wave.
  [[nodiscard]] std::uint64_t local() const { return local_; }
  /// Items of the whole grid.
  [[nodiscard]] std::uint64_t grid() const { return items_; }

 private:
  std::uint64_t global_, wave_, local_, items_;
};

namespace detail {

template <typename F>
constexpr void check_kernel() {
  static_assert(std::is_trivially_copyable_v<F>,
                "a kernel's captures must be trivially copyable: capture pointers (v.data()) and numbers by value, not "
                "containers, strings or smart pointers");
  static_assert(sizeof(F) <= FERRY_CAPTURE_BYTES_MAX,
                "a kernel may capture at most 768 bytes: put more into managed memory and capture a pointer to it");
  static_assert(alignof(F) <= 16, "a kernel's captures may be aligned to at most 16 bytes");
}

/// The captures are copied to the stack so that the compiler knows that no store of the loop changes them: without
/// that it reloads every pointer for every item and does not vectorise.
template <typename F>
void run_items(const void* captures, std::uint64_t first, std::uint64_t count) {
  F f = *static_cast<const F*>(captures);
  for (std::uint64_t i = first, end = first + count; i != end; ++i) f(static_cast<std::size_t>(i));
}

template <typename F>
struct grid_captures {
  F f;
  std::uint64_t items;
  std::uint64_t wave;
};

template <typename F>
void run_grid(const void* captures, std::uint64_t first, std::uint64_t count) {
  auto k = *static_cast<const grid_captures<F>*>(captures);
  std::uint64_t wave = first / k.wave;
  std::uint64_t local = first % k.wave;
  for (std::uint64_t i = first, end = first + count; i != end; ++i) {
    k.f(item(i, wave, local, k.items));
    if (++local == k.wave) {
      local = 0;
      ++wave;
    }
  }
}

[[nodiscard]] inline std::uint64_t default_wave(std::uint64_t items) {
  const std::uint64_t waves = std::uint64_t{machine().cus} * 16;
  return std::clamp<std::uint64_t>((items + waves - 1) / waves, 1, 65536);
}

}  // namespace detail

/// Ferry runs the item function once for each index.
template <typename F>
concept item_kernel = std::invocable<F&, std::size_t>;
template <typename F>
concept grid_kernel = std::invocable<F&, item>;

/// Names one launch. A value: copy it, drop it, wait for it any number of times. Must not be used after its queue is
/// destroyed.
class completion {
 public:
  completion() = default;
  completion(ferry_queue* queue, std::uint64_t launch) : queue_(queue), launch_(launch) {}

  /// Waits until the launch has ended. Throws kernel_error if it failed.
  void wait() const {
    if (queue_ == nullptr) return;
    ferry_error e;
    detail::check(ferry_wait(queue_, launch_, &e), e);
  }
  /// True once it has ended, well or not.
  [[nodiscard]] bool done() const { return queue_ == nullptr || ferry_done(queue_, launch_) != 0; }

 private:
  ferry_queue* queue_ = nullptr;
  std::uint64_t launch_ = 0;
};

/// Launches of one queue run in the order in which they were made; queues run beside each other. After a failed launch
/// those behind it are cancelled; a launch made after the failure was seen runs again.
class queue {
 public:
  /// Throws error: bad_range for a device that is not there, no_memory after 16 queues of a device.
  explicit queue(unsigned device = 0) {
    ferry_error e;
    queue_ = ferry_queue_create(device, &e);
    if (queue_ == nullptr) detail::raise(e);
  }
  queue(queue&& other) noexcept : queue_(std::exchange(other.queue_, nullptr)) {}
  queue& operator=(queue&& other) noexcept {
    std::swap(queue_, other.queue_);
    return *this;
  }
  queue(const queue&) = delete;
  queue& operator=(const queue&) = delete;
  /// Waits until the queue is idle; errors that nobody waited for are dropped.
  ~queue() {
    if (queue_ != nullptr) ferry_queue_destroy(queue_);
  }

  /// Runs f(i) for every i in [0, n).
  template <item_kernel F>
  completion parallel_for(std::size_t n, F f, const char* name = nullptr,
                          std::source_location where = std::source_location::current()) {
    detail::check_kernel<F>();
    return submit(&detail::run_items<F>, &f, sizeof f, n, 0, detail::launch_name(name, where));
  }

  /// Runs f(item) for every item of the grid.
  template <grid_kernel F>
  completion launch(grid g, F f, const char* name = nullptr,
                    std::source_location where = std::source_location::current()) {
    if (g.wave == 0) g.wave = detail::default_wave(g.items);
    const detail::grid_captures<F> k{f, g.items, g.wave};
    detail::check_kernel<detail::grid_captures<F>>();
    return submit(&detail::run_grid<F>, &k, sizeof k, g.items, g.wave, detail::launch_name(name, where));
  }

  [[nodiscard]] ferry_queue* handle() const { return queue_; }

 private:
  completion submit(ferry_kernel kernel, const void* captures, std::size_t bytes, std::uint64_t items,
                    std::uint64_t wave, const detail::launch_name& name) {
    ferry_error e;
    std::uint64_t launch = 0;
    detail::check(ferry_launch(queue_, kernel, captures, bytes, items, wave, name.c_str(), &launch, &e), e);
    return {queue_, launch};
  }

  ferry_queue* queue_ = nullptr;
};

/// Runs f(i) for every i in [0, n) on device 0 and waits. Calls of several threads run beside each other.
/// Throws kernel_error, and error where the session could not be opened.
template <item_kernel F>
void parallel_for(std::size_t n, F f, const char* name = nullptr,
                  std::source_location where = std::source_location::current()) {
  detail::check_kernel<F>();
  ferry_error e;
  detail::check(ferry_run(&detail::run_items<F>, &f, sizeof f, n, 0, detail::launch_name(name, where).c_str(), &e), e);
}

// --- user fences ------------------------------------------------------------------------------------------------------

/// Waits until `word`, which is in managed memory and only grows, is at least `value`. For CPU threads and kernels; see
/// ferry_wait_until. Throws error: bad_range, and in a graphics job not_permitted.
inline void wait_until(const std::uint64_t& word, std::uint64_t value) {
  ferry_error e;
  detail::check(ferry_wait_until(&word, value, FERRY_FOREVER, &e), e);
}

/// The same for so long at most. False: the time is over.
template <typename Rep, typename Period>
[[nodiscard]] bool wait_until(const std::uint64_t& word, std::uint64_t value,
                              std::chrono::duration<Rep, Period> timeout) {
  ferry_error e;
  const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(timeout).count();
  const ferry_code code = ferry_wait_until(&word, value, ns < 0 ? 0 : static_cast<std::uint64_t>(ns), &e);
  if (code == FERRY_TIMED_OUT) return false;
  detail::check(code, e);
  return true;
}

/// Raises `word` to `value`, and wakes who waits. For CPU threads and kernels. Throws error: bad_range.
inline void signal(std::uint64_t& word, std::uint64_t value) {
  ferry_error e;
  detail::check(ferry_signal(&word, value, &e), e);
}

// --- output -----------------------------------------------------------------------------------------------------------

namespace detail {

template <typename T>
[[nodiscard]] ferry_print_arg print_arg(const T& v) {
  ferry_print_arg a;
  using V = std::remove_cv_t<T>;
  if constexpr (std::is_same_v<V, bool>) {
    a.kind = FERRY_PRINT_BOOL;
    a.value.i = v ? 1 : 0;
  } else if constexpr (std::is_same_v<V, char>) {
    a.kind = FERRY_PRINT_CHAR;
    a.value.i = v;
  } else if constexpr (std::is_floating_point_v<V>) {
    a.kind = FERRY_PRINT_DOUBLE;
    a.value.d = static_cast<double>(v);
  } else if constexpr (std::is_enum_v<V>) {
    return print_arg(static_cast<std::underlying_type_t<V>>(v));
  } else if constexpr (std::is_integral_v<V> && std::is_signed_v<V>) {
    a.kind = FERRY_PRINT_INT;
    a.value.i = v;
  } else if constexpr (std::is_integral_v<V>) {
    a.kind = FERRY_PRINT_UINT;
    a.value.u = v;
  } else if constexpr (std::is_convertible_v<const V&, std::string_view> && !std::is_null_pointer_v<V>) {
    const std::string_view text = v;
    a.kind = FERRY_PRINT_TEXT;
    a.value.text.data = text.data();
    a.value.text.bytes = text.size();
  } else {
    static_assert(std::is_pointer_v<V> || std::is_null_pointer_v<V>,
                  "ferry::print takes numbers, characters, text and pointers");
    a.kind = FERRY_PRINT_POINTER;
    a.value.p = static_cast<const void*>(v);
  }
  return a;
}

}  // namespace detail

/// Writes formatted text to the program's standard output, from a kernel or from the CPU, in the manner of {fmt}:
/// ferry::print("{} of {:.1f}\n", i, x). At most 1,024 bytes a call.
template <typename... Args>
void print(std::string_view format, const Args&... args) {
  const ferry_print_arg list[sizeof...(Args) + 1] = {detail::print_arg(args)..., ferry_print_arg{}};
  ferry_print_format(format.data(), format.size(), list, sizeof...(Args));
}

}  // namespace ferry
