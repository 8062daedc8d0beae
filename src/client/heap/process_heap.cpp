// See process_heap.h. Everything here may run inside malloc, before constructors, in a fork's child and in the device
// process; so: static storage, raw system calls, and no call that allocates while a lock is held.
#include "client/heap/process_heap.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/types.h"
#include "client/heap/window_ranges.h"

// libc's own allocator, which stays whole beside ours.
extern "C" {
void* __libc_malloc(std::size_t bytes) noexcept;
void* __libc_calloc(std::size_t count, std::size_t bytes) noexcept;
void* __libc_realloc(void* pointer, std::size_t bytes) noexcept;
void* __libc_memalign(std::size_t align, std::size_t bytes) noexcept;
void __libc_free(void* pointer) noexcept;
}

namespace ferry::client {
namespace {

// --- where spans come from -------------------------------------------------------------------------------------------

bool reserve(void* at, std::size_t bytes, int placement) noexcept {
  return ::mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | placement, -1, 0) == at;
}

/// Ranges of no memory between spans: a quarter of the mappings that Linux allows a process by default. The program needs
/// some of its own, and at the limit every mmap of it would fail.
constexpr std::size_t holes_max = 8192;

/// Addresses of the window, and memory behind them: private, or the session's. Under the heap's span lock.
class ProcessSpans final : public SpanSource {
 public:
  bool init(const ProcessWindow& window) noexcept {
    return window.reserved && ranges_.init(arena_, window.base, window.bytes);
  }

  void* acquire_span(std::size_t bytes, std::size_t align) noexcept override {
    const std::uintptr_t at = ranges_.take(bytes, align);
    if (at == 0) return nullptr;
    auto* span = reinterpret_cast<void*>(at);
    bool mapped = false;
    if (managed_) {
      NativeMallocScope native;
      mapped = hooks_.acquire(hooks_.context, span, bytes);
    } else {
      // Without MAP_NORESERVE: a request the machine can never meet has to fail, as it would with any malloc.
      mapped = ::mmap(span, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == span;
    }
    if (mapped) return span;
    ranges_.give(at, bytes);
    return nullptr;
  }

  RestoredSpan acquire_at(void* span, std::size_t bytes) noexcept {
    if (!managed_) return RestoredSpan::no_memory;
    const auto at = reinterpret_cast<std::uintptr_t>(span);
    if (!ranges_.take_at(at, bytes)) return RestoredSpan::taken;
    NativeMallocScope native;
    if (hooks_.acquire(hooks_.context, span, bytes)) return RestoredSpan::made;
    ranges_.give(at, bytes);
    return RestoredSpan::no_memory;
  }

  void release_span(void* span, std::size_t bytes) noexcept override {
    const int saved_errno = errno;  // free() may not change it
    if (managed_) {
      NativeMallocScope native;
      if (!hooks_.release(hooks_.context, span, bytes)) {
        errno = saved_errno;
        return;
      }
    }
    give_back(span, bytes);
    errno = saved_errno;
  }

  /// Free addresses, with nothing of the manager's behind them.
  void give_back(void* span, std::size_t bytes) noexcept {
    ranges_.give(reinterpret_cast<std::uintptr_t>(span), bytes);
    // A hole may cost two mappings. Past its limit the memory goes and the mapping stays, merged with its neighbours.
    if (ranges_.holes() > holes_max || !reserve(span, bytes, MAP_FIXED)) ::madvise(span, bytes, MADV_DONTNEED);
  }

  void* take_range(std::size_t bytes) noexcept { return reinterpret_cast<void*>(ranges_.take(bytes, block_bytes)); }
  void give_range(void* range, std::size_t bytes) noexcept {
    ranges_.give(reinterpret_cast<std::uintptr_t>(range), bytes);
  }

  void serve_managed(const ManagedSpanHooks& hooks) noexcept {
    hooks_ = hooks;
    managed_ = true;
    ever_managed_ = true;
  }
  void serve_private() noexcept { managed_ = false; }

  [[nodiscard]] const ManagedSpanHooks& hooks() const noexcept { return hooks_; }
  [[nodiscard]] bool managed() const noexcept { return managed_; }
  /// Spans that a fork's child does not have may exist.
  [[nodiscard]] bool ever_managed() const noexcept { return ever_managed_; }
  void note_managed() noexcept { ever_managed_ = true; }
  /// All spans are private again.
  void forget_managed() noexcept { managed_ = ever_managed_ = false; }

 private:
  MetadataArena arena_;
  WindowRanges ranges_;
  ManagedSpanHooks hooks_;
  bool managed_ = false;
  bool ever_managed_ = false;
};

struct Process {
  ProcessSpans spans;
  Heap heap;
  explicit Process(const ProcessWindow& window) noexcept
      : heap(spans, window.base, window.reserved ? window.bytes : 0) {}
};

// --- state, all of it constant-initialized ---------------------------------------------------------------------------

// Null before the first use, in device mode, and when there is no window: malloc is libc's then, or about to be set up.
constinit std::atomic<Heap*> active_heap{nullptr};
// Of the reserved window; 0 bytes when there is none. Not cleared in device mode.
constinit std::atomic<std::uintptr_t> active_base{0};
constinit std::atomic<std::size_t> active_bytes{0};

constinit HeapLock setup_lock;
constinit std::atomic<Process*> process{nullptr};
constinit ProcessWindow the_window{0, 0, false};
alignas(Process) constinit std::byte process_storage[sizeof(Process)]{};
constinit std::atomic<bool> fork_hooks_set{false};
constinit std::atomic<bool> serves_malloc{false};
// begin_managed, end_managed and fork, against each other. Before all locks of the heap.
constinit HeapLock switch_lock;

[[gnu::tls_model("initial-exec")]] constinit thread_local int native_depth = 0;
[[gnu::tls_model("initial-exec")]] constinit thread_local bool holds_for_fork = false;

bool in_window(const void* pointer) noexcept {
  return reinterpret_cast<std::uintptr_t>(pointer) - active_base.load(std::memory_order_relaxed) <
         active_bytes.load(std::memory_order_relaxed);
}

// --- the window ------------------------------------------------------------------------------------------------------

void complain(const char* text) noexcept {
  // Not stdio: it may allocate, and may be locked by whoever called malloc.
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, text, std::strlen(text));
}

struct Setting {
  const char* name;  ///< with its '='
  std::uintptr_t value;
};

void read_setting(const char* entry, Setting& setting) noexcept {
  const std::size_t length = std::strlen(setting.name);
  if (std::strncmp(entry, setting.name, length) != 0) return;
  const char* digits = entry + length;
  char* end = nullptr;
  const int saved_errno = errno;
  errno = 0;
  const unsigned long long value = std::strtoull(digits, &end, 16);
  if (errno == 0 && end != digits && *end == '\0' && value != 0 && value % heap_span_bytes == 0) {
    setting.value = value;
  } else {
    complain("ferry: ");
    complain(entry);
    complain(": not a multiple of 0x200000 in hexadecimal; the default is used\n");
  }
  errno = saved_errno;
}

// libc's environ is empty while the dynamic linker still works, and it is the first to call malloc.
void read_settings_from_kernel(Setting (&settings)[2]) noexcept {
  constexpr std::size_t buffer_bytes = std::size_t{4} << 20;  // above what execve accepts on the usual stack
  void* memory = ::mmap(nullptr, buffer_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return;
  auto* text = static_cast<char*>(memory);
  const int file = ::open("/proc/self/environ", O_RDONLY | O_CLOEXEC);
  if (file >= 0) {
    std::size_t filled = 0;
    while (filled < buffer_bytes - 1) {
      const ssize_t got = ::read(file, text + filled, buffer_bytes - 1 - filled);
      if (got <= 0) break;
      filled += static_cast<std::size_t>(got);
    }
    ::close(file);
    for (const char* entry = text; entry < text + filled; entry += std::strlen(entry) + 1) {
      for (Setting& setting : settings) read_setting(entry, setting);
    }
  }
  ::munmap(memory, buffer_bytes);
}

ProcessWindow make_window() noexcept {
  Setting settings[2] = {{"FERRY_WINDOW_BASE=", default_window_base}, {"FERRY_WINDOW_BYTES=", default_window_bytes}};
  if (environ != nullptr) {
    for (char** entry = environ; *entry != nullptr; ++entry) {
      for (Setting& setting : settings) read_setting(*entry, setting);
    }
  } else {
    read_settings_from_kernel(settings);
  }
  const std::uintptr_t base = settings[0].value;
  const std::size_t bytes = settings[1].value;
  const bool reserved = base + bytes > base && reserve(reinterpret_cast<void*>(base), bytes, MAP_FIXED_NOREPLACE);
  return {base, bytes, reserved};
}

// --- errors ----------------------------------------------------------------------------------------------------------

/// A bad free changes nothing, so the program goes on unless it asked to be stopped, as with MALLOC_CHECK_.
void report_bad_free(void*, FreeResult what, const void* pointer) noexcept {
  static constinit std::atomic<int> lines{0};
  constexpr int lines_max = 20;  // a loop of bad frees must not bury the program's own output
  const char* check = environ != nullptr ? ::getenv("FERRY_MALLOC_CHECK") : nullptr;
  const bool stop = check != nullptr && std::strcmp(check, "abort") == 0;
  if (stop || lines.fetch_add(1, std::memory_order_relaxed) < lines_max) {
    const char* why = what == FreeResult::double_free ? "is free already (double free)"
                                                      : "is not the start of an allocation (invalid pointer)";
    char text[160];
    std::snprintf(text, sizeof text, "ferry: free(%p): %s; ignored%s\n", pointer, why,
                  stop ? ", stopping because of FERRY_MALLOC_CHECK=abort" : "");
    complain(text);
  }
  if (stop) std::abort();
}

// --- fork ------------------------------------------------------------------------------------------------------------

// Other libraries' handlers may run between ours and the fork and may allocate: the forking thread then goes to libc,
// whose malloc takes care of itself.
void before_fork() noexcept {
  Heap* heap = active_heap.load(std::memory_order_acquire);
  if (heap == nullptr) return;
  switch_lock.lock();
  ++native_depth;
  holds_for_fork = true;
  heap->lock_all();
  const ManagedSpanHooks& hooks = process.load(std::memory_order_relaxed)->spans.hooks();
  if (hooks.before_fork != nullptr) hooks.before_fork(hooks.context);
}

void after_fork_in_parent() noexcept {
  if (!holds_for_fork) return;
  const ManagedSpanHooks& hooks = process.load(std::memory_order_relaxed)->spans.hooks();
  if (hooks.after_fork != nullptr) hooks.after_fork(hooks.context);
  process.load(std::memory_order_relaxed)->heap.unlock_all();
  holds_for_fork = false;
  --native_depth;
  switch_lock.unlock();
}

void after_fork_in_child() noexcept {
  if (!holds_for_fork) return;
  Process& self = *process.load(std::memory_order_relaxed);
  const ManagedSpanHooks& hooks = self.spans.hooks();
  const bool all_private = hooks.fork_child != nullptr && hooks.fork_child(hooks.context);
  if (self.spans.ever_managed()) {
    if (all_private) {
      self.spans.forget_managed();
    } else {
      heap_enter_device_mode();
    }
  }
  self.heap.unlock_all_in_child();
  holds_for_fork = false;
  --native_depth;
  switch_lock.unlock();
}

// --- set-up ----------------------------------------------------------------------------------------------------------

Process& set_up() noexcept {
  Process* self = process.load(std::memory_order_acquire);
  if (self == nullptr) {
    HeapLockGuard guard(setup_lock);
    self = process.load(std::memory_order_relaxed);
    if (self == nullptr) {
      the_window = make_window();
      self = new (process_storage) Process(the_window);
      const bool ready = self->spans.init(the_window);
      self->heap.set_reporter(report_bad_free, nullptr);
      if (ready) {
        active_base.store(the_window.base, std::memory_order_relaxed);
        active_bytes.store(the_window.bytes, std::memory_order_relaxed);
        active_heap.store(&self->heap, std::memory_order_release);
      }
      process.store(self, std::memory_order_release);
    }
  }
  // Not under the lock: it may allocate. As early as can be, so that our handler is the last before a fork.
  if (!fork_hooks_set.exchange(true, std::memory_order_relaxed)) {
    ::pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  }
  return *self;
}

/// The heap that serves this thread's malloc now, or nullptr for libc's.
inline Heap* serving_heap() noexcept {
  Heap* heap = active_heap.load(std::memory_order_acquire);
  if (__builtin_expect(heap != nullptr && native_depth == 0, 1)) return heap;
  if (native_depth != 0 || process.load(std::memory_order_acquire) != nullptr) return nullptr;
  set_up();
  return active_heap.load(std::memory_order_acquire);
}

inline void* or_enomem(void* pointer) noexcept {
  if (__builtin_expect(pointer == nullptr, 0)) errno = ENOMEM;
  return pointer;
}

std::size_t libc_usable_size(void* pointer) noexcept {
  using UsableSize = std::size_t (*)(void*);
  static constinit std::atomic<UsableSize> function{nullptr};
  UsableSize usable = function.load(std::memory_order_acquire);
  if (usable == nullptr) {
    // From libc itself, not the next in search order: that may be the preload again.
    void* libc = ::dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
    usable = libc == nullptr ? nullptr : reinterpret_cast<UsableSize>(::dlsym(libc, "malloc_usable_size"));
    if (usable == nullptr) return 0;
    function.store(usable, std::memory_order_release);
  }
  return usable(pointer);
}

}  // namespace

constinit std::atomic<BeforeFree> before_free{nullptr};

// --- for the session -------------------------------------------------------------------------------------------------

const ProcessWindow& process_window() noexcept {
  (void)set_up();
  return the_window;
}

Heap& process_heap() noexcept { return set_up().heap; }

void* take_window_range(std::size_t bytes) noexcept {
  Process& self = set_up();
  self.heap.lock_spans();
  void* range = self.spans.take_range(bytes);
  self.heap.unlock_spans();
  return range;
}

void give_window_range(void* range, std::size_t bytes) noexcept {
  // Before the addresses can be taken again.
  reserve(range, bytes, MAP_FIXED);
  Process& self = set_up();
  self.heap.lock_spans();
  self.spans.give_range(range, bytes);
  self.heap.unlock_spans();
}

RestoredSpan make_restored_span(void* at, std::size_t bytes) noexcept {
  Process& self = set_up();
  self.heap.lock_spans();
  const RestoredSpan made = self.spans.acquire_at(at, bytes);
  self.heap.unlock_spans();
  return made;
}

void give_kept_span(void* span, std::size_t bytes) noexcept {
  Process& self = set_up();
  self.heap.lock_spans();
  self.spans.give_back(span, bytes);
  self.heap.unlock_spans();
}

void drop_restored_span(void* at, std::size_t bytes) noexcept {
  Process& self = set_up();
  self.heap.lock_spans();
  self.spans.release_span(at, bytes);
  self.heap.unlock_spans();
}

bool begin_managed(const ManagedSpanHooks& hooks) noexcept {
  Process& self = set_up();
  if (!the_window.reserved) return false;
  HeapLockGuard guard(switch_lock);
  NativeMallocScope native;
  self.heap.release_spare_spans();
  struct Conversion {
    const ManagedSpanHooks& hooks;
    bool ok;
  } conversion{hooks, true};
  self.heap.lock_all();
  // Even if it fails: some spans are not private any more.
  self.spans.note_managed();
  self.heap.visit_spans(
      [](void* context, void* span, std::size_t bytes, SpanKind) {
        auto& work = *static_cast<Conversion*>(context);
        if (work.ok) work.ok = work.hooks.convert(work.hooks.context, span, bytes);
      },
      &conversion, true);
  if (conversion.ok) self.spans.serve_managed(hooks);
  self.heap.unlock_all();
  return conversion.ok;
}

void end_managed() noexcept {
  Process& self = set_up();
  HeapLockGuard guard(switch_lock);
  self.heap.lock_all();
  self.spans.serve_private();
  self.heap.unlock_all();
}

bool heap_is_managed() noexcept {
  Process& self = set_up();
  HeapLockGuard guard(switch_lock);
  return self.spans.managed();
}

bool heap_serves_malloc() noexcept { return serves_malloc.load(std::memory_order_relaxed); }

void heap_enter_device_mode() noexcept {
  // After set_up, or the first malloc here would set up a heap.
  (void)set_up();
  active_heap.store(nullptr, std::memory_order_release);
}

NativeMallocScope::NativeMallocScope() noexcept { ++native_depth; }
NativeMallocScope::~NativeMallocScope() { --native_depth; }

}  // namespace ferry::client

// --- malloc & co. ----------------------------------------------------------------------------------------------------

using namespace ferry::client;

void* ferry_heap_malloc(std::size_t bytes) noexcept {
  if (Heap* heap = serving_heap()) return or_enomem(heap->allocate(bytes));
  return __libc_malloc(bytes);
}

void* ferry_heap_calloc(std::size_t count, std::size_t bytes) noexcept {
  std::size_t total = 0;
  if (__builtin_mul_overflow(count, bytes, &total)) {
    errno = ENOMEM;
    return nullptr;
  }
  if (Heap* heap = serving_heap()) return or_enomem(heap->allocate_zeroed(total));
  return __libc_calloc(1, total);
}

void* ferry_heap_memalign(std::size_t align, std::size_t bytes) noexcept {
  if (Heap* heap = serving_heap()) return or_enomem(heap->allocate(bytes, align));
  return __libc_memalign(align, bytes);
}

void ferry_heap_free(void* pointer) noexcept {
  if (__builtin_expect(!in_window(pointer), 0)) {
    __libc_free(pointer);  // made before us, by a NativeMallocScope, or nullptr
    return;
  }
  Heap* heap = active_heap.load(std::memory_order_acquire);
  if (__builtin_expect(heap == nullptr, 0)) return;  // device mode: the application's to free
  if (__builtin_expect(native_depth != 0, 0)) {
    heap->free_later(pointer);
    return;
  }
  tell_before_free(*heap, pointer);
  (void)heap->free(pointer);
}

void* ferry_heap_realloc(void* pointer, std::size_t bytes) noexcept {
  if (pointer == nullptr) return ferry_heap_malloc(bytes);
  if (!in_window(pointer)) return __libc_realloc(pointer, bytes);
  if (bytes == 0) {
    ferry_heap_free(pointer);  // what glibc does, and programs rely on
    return nullptr;
  }
  Heap* heap = active_heap.load(std::memory_order_acquire);
  if (heap == nullptr) return or_enomem(nullptr);
  if (__builtin_expect(native_depth == 0, 1)) return or_enomem(heap->reallocate(pointer, bytes));
  const std::size_t usable = heap->usable_size(pointer);
  if (bytes <= usable) return pointer;
  void* moved = __libc_malloc(bytes);
  if (moved == nullptr) return nullptr;
  std::memcpy(moved, pointer, usable);
  heap->free_later(pointer);
  return moved;
}

std::size_t ferry_heap_usable_size(void* pointer) noexcept {
  if (pointer == nullptr) return 0;
  if (!in_window(pointer)) return libc_usable_size(pointer);
  Heap* heap = active_heap.load(std::memory_order_acquire);
  return heap == nullptr ? 0 : heap->usable_size(pointer);
}

void ferry_heap_serve_malloc() noexcept {
  serves_malloc.store(true, std::memory_order_relaxed);
  // libc keeps blocks of up to 32 MiB, too, once a program has freed one.
  constexpr std::size_t cache_bytes = std::size_t{64} << 20;
  if (::getenv("FERRY_MALLOC_CHECK") == nullptr) process_heap().set_large_cache(cache_bytes);
}
