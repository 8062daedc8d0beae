// The one heap of this process and the window it lives in; what malloc is when libferry_malloc.so is preloaded.
// Owns: reservation of the window, the address space inside it, the switch from private to managed memory, fork and
// device mode. Does not own: how memory becomes managed (the session's ManagedSpanHooks).
// Before a context opens, spans are MAP_PRIVATE | MAP_ANONYMOUS, so that a program without a device is as any other,
// fork included. May be called before constructors have run. Thread-safe.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "client/heap/heap.h"

namespace ferry::client {

struct ProcessWindow {
  std::uintptr_t base;
  std::size_t bytes;
  /// False when the address range could not be had (another mapping is there, or RLIMIT_AS is too small): then
  /// process_heap() has no memory, malloc is libc's, and no context can be opened.
  bool reserved;
};

/// The first call reads FERRY_WINDOW_BASE and FERRY_WINDOW_BYTES (hexadecimal, multiples of 2 MiB) and reserves the
/// window, PROT_NONE. Fixed from then on.
[[nodiscard]] const ProcessWindow& process_window() noexcept;

/// The heap. Constructed at the first call, never destroyed.
[[nodiscard]] Heap& process_heap() noexcept;

/// Told of an allocation of at least a page that is about to be freed, on the thread that frees it, which holds no lock
/// of the heap's: what was said about its pages must not be true of whatever has them next. Null: nothing was said.
using BeforeFree = void (*)(const void* start, std::size_t bytes) noexcept;
extern constinit std::atomic<BeforeFree> before_free;
inline void tell_before_free(Heap& heap, const void* pointer) noexcept {
  const BeforeFree told = before_free.load(std::memory_order_acquire);
  if (__builtin_expect(told == nullptr, 1)) return;
  const HeapObject object = heap.lookup(pointer);
  if (object.state == HeapObject::State::live && object.start == pointer) told(object.start, object.bytes);
}

/// Addresses of the window that no allocation will have, PROT_NONE, aligned to 2 MiB: for what is mapped there beside the
/// heap. `bytes` a multiple of 2 MiB. nullptr when the window is full, or there is none.
[[nodiscard]] void* take_window_range(std::size_t bytes) noexcept;
/// Gives back exactly what take_window_range gave; whatever is mapped there goes.
void give_window_range(void* range, std::size_t bytes) noexcept;

enum class RestoredSpan : std::uint8_t { made, taken, no_memory };
/// Managed memory, beside what the heap hands out, at just this address of the window, reading as zeros. Sizes are
/// multiples of heap_unit_bytes. taken: something is there already.
[[nodiscard]] RestoredSpan make_restored_span(void* at, std::size_t bytes) noexcept;
/// Gives back exactly what make_restored_span made.
void drop_restored_span(void* at, std::size_t bytes) noexcept;

/// How the session turns the heap's memory into managed memory. All are called with all or some of the heap's locks held and, on
/// the calling thread, with malloc served by libc and free() of heap pointers put off: a hook may use malloc, but may
/// not wait for another thread that allocates from the heap (its own threads: see NativeMallocScope).
struct ManagedSpanHooks {
  void* context = nullptr;
  /// Replaces [span, span + bytes), which other threads may be reading and writing, by managed memory with the same
  /// contents. Also called for spans that an earlier context had converted. False: the span is as it was.
  bool (*convert)(void* context, void* span, std::size_t bytes) noexcept = nullptr;
  /// [span, span + bytes) is reserved address space (PROT_NONE): makes it managed memory that reads as zero.
  bool (*acquire)(void* context, void* span, std::size_t bytes) noexcept = nullptr;
  /// The span is free: drop its contents wherever they lie. True: the heap maps PROT_NONE over it, and may use the
  /// addresses again. False: they stay taken until give_kept_span().
  bool (*release)(void* context, void* span, std::size_t bytes) noexcept = nullptr;
  /// May be null. The last before a fork and the first after it, in parent and child, also where a child forks again.
  void (*before_fork)(void* context) noexcept = nullptr;
  void (*after_fork)(void* context) noexcept = nullptr;
  /// In the child, where managed spans are not mapped (DONTFORK). True: all spans are private memory now, with the
  /// contents that they had, and the child has its heap, private again; otherwise its malloc is libc's.
  bool (*fork_child)(void* context) noexcept = nullptr;
};

/// The addresses of a span whose release hook returned false are free now. Takes the heap's locks.
void give_kept_span(void* span, std::size_t bytes) noexcept;

/// Converts every span and serves new ones through the hooks from now on. False when a convert failed: spans converted
/// before it stay converted, new spans stay as they were before the call; the caller reports and closes its context.
[[nodiscard]] bool begin_managed(const ManagedSpanHooks& hooks) noexcept;

/// The context closes: new spans are private again. Those that are managed stay what they are, and their release only
/// unmaps them.
void end_managed() noexcept;

[[nodiscard]] bool heap_is_managed() noexcept;

/// This heap is the program's malloc (see ferry_heap_serve_malloc).
[[nodiscard]] bool heap_serves_malloc() noexcept;

/// This process is a device (or any other fork child that must leave the heap alone): malloc is libc's from now on,
/// free() of a window pointer is ignored, realloc() of one fails (its size is known to the application alone).
/// Call it while there is one thread. No way back.
void heap_enter_device_mode() noexcept;

/// While one exists, the calling thread's malloc is libc's and its free() of heap pointers is put off to another
/// thread. For the session's own threads and state: what they allocate must not be managed memory, or they could
/// wait for a page that they themselves have to bring. Nests.
class NativeMallocScope {
 public:
  NativeMallocScope() noexcept;
  ~NativeMallocScope();
  NativeMallocScope(const NativeMallocScope&) = delete;
  NativeMallocScope& operator=(const NativeMallocScope&) = delete;
};

}  // namespace ferry::client

// malloc & co. as the preload exports them, and with their errno. Visible from libferry.so, so that the preload and
// the session share one heap.
#define FERRY_HEAP_EXPORT __attribute__((visibility("default")))
extern "C" {
FERRY_HEAP_EXPORT void* ferry_heap_malloc(std::size_t bytes) noexcept;
FERRY_HEAP_EXPORT void* ferry_heap_calloc(std::size_t count, std::size_t bytes) noexcept;
FERRY_HEAP_EXPORT void* ferry_heap_realloc(void* pointer, std::size_t bytes) noexcept;
/// `align` a power of two.
FERRY_HEAP_EXPORT void* ferry_heap_memalign(std::size_t align, std::size_t bytes) noexcept;
FERRY_HEAP_EXPORT void ferry_heap_free(void* pointer) noexcept;
FERRY_HEAP_EXPORT std::size_t ferry_heap_usable_size(void* pointer) noexcept;
/// This heap is the program's malloc: speed counts for more than that a use after free of a large block is noticed,
/// unless FERRY_MALLOC_CHECK is set. Called once, by the preload.
FERRY_HEAP_EXPORT void ferry_heap_serve_malloc() noexcept;
}
