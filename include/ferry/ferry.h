/** @file ferry.h
 * The C interface of Ferry: memory that every processor of the machine reaches by the same pointer.
 *
 * A process has one session with one manager (ferryd). It opens by itself on first use, or by ferry_open(), and lives
 * until the process ends. ferry.hpp is the C++ interface; it adds no state of its own, so both may be mixed freely.
 *
 * Errors: a function that can fail returns a ferry_code (or a null pointer) and fills `error`, where the caller passed
 * one; after a call that succeeded `error` is as it was. Units: sizes are bytes unless the name says otherwise. Threads:
 * every function may be called from any thread at any time, except where it says otherwise. A child of fork() may
 * allocate and free managed memory; all other functions fail there with FERRY_UNSUPPORTED until it calls exec. Inside a
 * kernel only ferry_print*, ferry_in_device, ferry_strerror, ferry_wait_until and ferry_signal may be called.
 */
#ifndef FERRY_FERRY_H
#define FERRY_FERRY_H
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FERRY_API __attribute__((visibility("default")))

#define FERRY_VERSION_MAJOR 0
#define FERRY_VERSION_MINOR 1

/** Why a call failed. The number is stable; ferry_error.text says it for people. */
typedef enum ferry_code {
  FERRY_OK = 0,
  FERRY_BAD_RANGE = 1,     /**< size 0, overflow, or a pointer outside managed memory */
  FERRY_NOT_ALLOCATED = 2, /**< the pointer belongs to no allocation: freed before, or never allocated */
  FERRY_OVERLAP = 3,       /**< svm.h: a checkpoint's addresses are in use */
  FERRY_BAD_MESSAGE = 4,   /**< the manager sent what no manager sends */
  FERRY_BAD_VERSION = 5,   /**< manager and library are of different versions */
  FERRY_NOT_PERMITTED = 6, /**< the manager belongs to somebody else */
  FERRY_NOT_HELD = 7,      /**< work.h: no buffer, fence or timeline of this process, or none at all */
  FERRY_IN_USE = 8, /**< a point of a timeline that is taken already (work.h); pinned pages, running kernels (svm.h) */
  FERRY_WOULD_DEADLOCK = 9, /**< work.h: the waits of a job would close a circle, which the text tells */
  FERRY_NO_MEMORY = 20,     /**< a budget, a limit or the machine has no room */
  FERRY_NO_MAPPINGS = 21,   /**< the process has as many mappings as vm.max_map_count allows */
  FERRY_NO_SPACE = 22,      /**< a disk is full */
  FERRY_DEVICE_LOST = 30,   /**< the device process ended; the next launch starts a new one, memory is kept */
  FERRY_CLIENT_GONE = 31,   /**< the application that a fence or a move belongs to has ended */
  FERRY_MANAGER_LOST = 32,  /**< no manager at the socket, or it could not be started */
  FERRY_TIMED_OUT = 33,     /**< a wait or a job took longer than it was given */
  FERRY_IO_ERROR = 34,      /**< a copy, a file or the store failed */
  FERRY_KERNEL_FAULT = 40,  /**< a kernel crashed or touched memory that it may not touch */
  FERRY_KERNEL_THREW = 41,  /**< an exception left a kernel */
  FERRY_CANCELLED = 42,     /**< the launch was dropped because an earlier one of its queue failed */
  FERRY_UNSUPPORTED = 50    /**< this machine or this process cannot do it; `ferry doctor` says more */
} ferry_code;

#define FERRY_KERNEL_NAME_BYTES 96
/** Most bytes of captured variables that a launch carries. */
#define FERRY_CAPTURE_BYTES_MAX 768

/** What went wrong. Plain data, owned by the caller. */
typedef struct ferry_error {
  ferry_code code;
  int sys_errno;                        /**< errno of the system call that failed, or 0 */
  uint64_t wave;                        /**< kernel errors: the wave */
  uint64_t address;                     /**< kernel errors: the address that it touched, or 0 */
  char kernel[FERRY_KERNEL_NAME_BYTES]; /**< kernel errors: the name of the launch, else empty */
  char text[512];                       /**< what happened and what to do, NUL-terminated */
} ferry_error;

/** Short text for a code. Static storage. */
FERRY_API const char* ferry_strerror(ferry_code code);

/* --- session --------------------------------------------------------------------------------------------------- */

/** Opens the session, if it is not open. `socket`: path of a running ferryd; NULL: $FERRY_SOCKET, and where that is
 * not set a private ferryd is started, which ends with this process.
 * Errors: manager_lost, not_permitted, bad_version, unsupported, no_memory. */
FERRY_API ferry_code ferry_open(const char* socket, ferry_error* error);

/** Waits until every launch has ended. Memory stays valid: the session itself ends with the process. */
FERRY_API ferry_code ferry_close(ferry_error* error);

/** What the session runs on. */
typedef struct ferry_machine_info {
  uint32_t devices;
  uint32_t cus;          /**< compute units of each device */
  uint32_t waves_per_cu; /**< waves that a compute unit holds at a time */
  uint32_t manager_pid;
  uint64_t vram_bytes;        /**< budget of each device */
  uint64_t granularity_bytes; /**< memory that moves together */
  uint64_t window_base;       /**< managed addresses are [window_base, window_base + window_bytes) */
  uint64_t window_bytes;
} ferry_machine_info;

/** Opens the session if it is not open. */
FERRY_API ferry_code ferry_machine(ferry_machine_info* info, ferry_error* error);

/** 1: the devices are linked: they reach each other's memory, and pages go from one to the other without system memory in
 * between. 0: they are not, or are one device. -1: bad_range (no such device), or no session. Opens the session if it is
 * not open. */
FERRY_API int ferry_device_linked(unsigned a, unsigned b, ferry_error* error);

/** Writes the manager's statistics as JSON to `buffer`, always NUL-terminated.
 * Returns the length of the whole text (which may be more than fits), or 0 on error. */
FERRY_API size_t ferry_stats(char* buffer, size_t bytes, ferry_error* error);

/* --- memory ---------------------------------------------------------------------------------------------------- */

#ifdef __cplusplus /* any number may come from C, and is looked at */
typedef enum ferry_placement : int {
#else
typedef enum ferry_placement {
#endif
  FERRY_AUTOMATIC = 0, /**< moves to the processor that touches it */
  FERRY_SYSTEM = 1     /**< stays in system memory; devices reach it in place */
} ferry_placement;

/** Allocates managed memory, aligned to 16 bytes, contents undefined. To be freed by ferry_free, by this process.
 * Opens the session if it is not open. Returns NULL on error: bad_range (size 0), no_memory. */
FERRY_API void* ferry_alloc(size_t bytes, ferry_placement placement, ferry_error* error);

/** The same with an alignment: a power of two, at most 2 MiB. */
FERRY_API void* ferry_alloc_aligned(size_t bytes, size_t alignment, ferry_placement placement, ferry_error* error);

/** Frees what ferry_alloc gave. NULL is allowed and does nothing. No kernel may use the memory any more: one that
 * does fails with kernel_fault. Errors: not_allocated (freed before, or not the start of an allocation), bad_range
 * (not managed memory at all); the heap is unharmed. */
FERRY_API ferry_code ferry_free(void* pointer, ferry_error* error);

#define FERRY_TO_CPU (-1)

/** Brings the pages of [pointer, pointer + bytes) to `device`, or home (FERRY_TO_CPU), and returns when they are
 * there. Best effort: pages for which there is no room stay where they are. Errors: bad_range, not_allocated. */
FERRY_API ferry_code ferry_prefetch(const void* pointer, size_t bytes, int device, ferry_error* error);

/** Where one page is. Bits of the masks: bit d is device d. */
typedef struct ferry_page_info {
  int managed;        /**< 0: not managed memory; the rest is 0 then */
  int system_current; /**< 1: system memory holds the newest contents */
  int vram_device;    /**< device whose VRAM holds the newest contents, or -1 */
  int dirty;          /**< 1: only VRAM holds the newest contents */
  int cpu_may_map;    /**< 1: the CPU reaches it without a fault that moves it */
  uint32_t device_mapped;
  uint32_t device_writable;  /**< a subset of device_mapped */
  int moving;                /**< 1: it is on its way right now */
  int contended;             /**< 1: held in system memory because CPU and device both want it */
  char cause[32];            /**< why it was last moved */
  uint64_t last_move_age_ns; /**< time since then; UINT64_MAX: never moved */
} ferry_page_info;

FERRY_API ferry_code ferry_query(const void* pointer, ferry_page_info* info, ferry_error* error);

/** The same as a sentence. Always NUL-terminated. Returns the length of the whole text, or 0 on error. */
FERRY_API size_t ferry_explain(const void* pointer, char* buffer, size_t bytes, ferry_error* error);

/* --- kernels --------------------------------------------------------------------------------------------------- */

/** A kernel: handles items [first, first + count). Runs on the device, in another process, with `captures` pointing
 * to a copy of what was passed to ferry_launch. It follows the program's own pointers: into managed memory, and into heap,
 * stacks, global variables and mapped files, which are adopted when a kernel touches them (ferry_adopt in svm.h).
 * docs/API.md says what a kernel cannot reach. */
typedef void (*ferry_kernel)(const void* captures, uint64_t first, uint64_t count);

typedef struct ferry_queue ferry_queue;

/** Launches of one queue run in order, queues beside each other. At most 16 queues a device. NULL on error.
 * Ends with ferry_queue_destroy. */
FERRY_API ferry_queue* ferry_queue_create(unsigned device, ferry_error* error);

/** Waits until the queue is idle and gives it back. No other call on the queue may be under way. */
FERRY_API void ferry_queue_destroy(ferry_queue* queue);

/** Launches `kernel` over `items` items in waves of `items_per_wave` (0: chosen so that all compute units are kept
 * busy). `captures` is copied. `name` (NULL: "kernel") names it in errors and traces. Returns at once, except when 64
 * launches of the queue are unfinished. `launch` receives the number to wait for.
 * Errors: bad_range (captures too large, a kernel that the device cannot have), device_lost, and those of ferry_open. */
FERRY_API ferry_code ferry_launch(ferry_queue* queue, ferry_kernel kernel, const void* captures, size_t capture_bytes,
                                  uint64_t items, uint64_t items_per_wave, const char* name, uint64_t* launch,
                                  ferry_error* error);

/** Waits until the launch has ended and says how. May be called again, by any number of threads. */
FERRY_API ferry_code ferry_wait(ferry_queue* queue, uint64_t launch, ferry_error* error);

/** 1: the launch has ended, well or not. Never blocks. */
FERRY_API int ferry_done(ferry_queue* queue, uint64_t launch);

/** Launches on a queue of the library's own and waits. Concurrent callers run beside each other. */
FERRY_API ferry_code ferry_run(ferry_kernel kernel, const void* captures, size_t capture_bytes, uint64_t items,
                               uint64_t items_per_wave, const char* name, ferry_error* error);

/** 1 inside a kernel on a device, 0 on the CPU. */
FERRY_API int ferry_in_device(void);

/* --- user fences ------------------------------------------------------------------------------------------------- */

/** A user fence is a word in managed memory, aligned to 8, that only grows; it is signalled to all numbers up to its
 * own. CPU threads and kernels may wait for it and signal it, in the program and in all kernels at once. Nobody but you
 * sees to it that it is ever signalled, so nothing of Ferry's ever waits for one; and a graphics job may not.
 * Memory of FERRY_SYSTEM suits best: the word then stays where CPU and devices both reach it. */

/** A time that never comes. */
#define FERRY_FOREVER UINT64_MAX

/** Waits until *word is at least `value`. In a kernel the wave gives way to other waves meanwhile; it must not wait for
 * an item of its own wave, nor for waves that find no room beside those that wait.
 * Errors: timed_out, bad_range (not aligned), not_permitted (in a graphics job). */
FERRY_API ferry_code ferry_wait_until(const uint64_t* word, uint64_t value, uint64_t timeout_ns, ferry_error* error);

/** Raises *word to `value`, unless it is more already, and wakes who waits. What was written before is seen by those.
 * Errors: bad_range (not aligned). */
FERRY_API ferry_code ferry_signal(uint64_t* word, uint64_t value, ferry_error* error);

/* --- output of kernels ----------------------------------------------------------------------------------------- */

/** Writes text to the program's standard output, from a kernel or from the CPU. A kernel's text appears at the latest
 * when somebody waits for the launch. A device that writes faster than the program reads loses text, which is counted
 * and told. */
FERRY_API void ferry_print(const char* text);

typedef enum ferry_print_kind {
  FERRY_PRINT_BOOL,
  FERRY_PRINT_CHAR,
  FERRY_PRINT_INT,
  FERRY_PRINT_UINT,
  FERRY_PRINT_DOUBLE,
  FERRY_PRINT_POINTER,
  FERRY_PRINT_TEXT
} ferry_print_kind;

/** One argument of ferry_print_format. */
typedef struct ferry_print_arg {
  ferry_print_kind kind;
  union {
    int64_t i;  /**< BOOL, CHAR, INT */
    uint64_t u; /**< UINT */
    double d;
    const void* p;
    struct {
      const char* data;
      size_t bytes;
    } text;
  } value;
} ferry_print_arg;

/** Formats in the manner of {fmt}: "{}", "{:>8.3f}", "{{". A field that does not fit its argument is printed as it is
 * written. At most 1,024 bytes appear a call; the rest is cut. Allocates nothing. */
FERRY_API void ferry_print_format(const char* format, size_t format_bytes, const ferry_print_arg* args, size_t count);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // FERRY_FERRY_H
