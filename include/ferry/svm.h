/** @file svm.h
 * Shared virtual memory beyond allocation: attributes, moves, pins, memory that the program already has, events and
 * checkpoints. docs/SVM.md has the rules, attribute by attribute.
 *
 * Spans: [pointer, pointer + bytes). Both numbers are multiples of 4096. A span may cover several allocations; pages in
 * it that belong to none are skipped, and a span without a single managed page fails with FERRY_NOT_ALLOCATED.
 *
 * Errors: a function that can fail returns a ferry_code (or a null pointer) and fills `error`, which may be NULL.
 * Besides the codes named at each function, those of ferry_open() are possible: most functions open the session if it
 * is not open. In a child of fork() every function of this header fails with FERRY_UNSUPPORTED.
 *
 * Threads: every function may be called from any thread at any time, except from a kernel.
 *
 * Devices are numbered from 0; FERRY_TO_CPU (-1) means system memory.
 */
#ifndef FERRY_SVM_H
#define FERRY_SVM_H
#pragma once

#include <ferry/ferry.h>
#include <ferry/work.h>

#ifdef __cplusplus
extern "C" {
#endif

/* --- attributes ------------------------------------------------------------------------------------------------- */

/** As a location: system memory. */
#define FERRY_LOC_SYSTEM 0xfeU
/** As a location to set: none in particular. As one that was read: the pages differ, or none was set. */
#define FERRY_LOC_UNDEFINED 0xffU

/** What one device may do with pages. */
typedef enum ferry_device_access {
  FERRY_NO_ACCESS = 0,       /**< a kernel that touches them fails; existing mappings are taken away at once */
  FERRY_ACCESS_IN_PLACE = 1, /**< the device reaches the pages where they are, and never makes them move */
  FERRY_ACCESS = 2           /**< the device may have the pages in its own memory (default) */
} ferry_device_access;

/** Flags of pages. A new allocation has FERRY_SVM_HOST_ACCESS and FERRY_SVM_COHERENT. */
typedef enum ferry_svm_flag {
  FERRY_SVM_HOST_ACCESS = 0x01,   /**< set: a CPU touch brings pages home from VRAM; cleared: it raises SIGBUS */
  FERRY_SVM_COHERENT = 0x02,      /**< set: contended pages are reached in place by all; cleared: they travel */
  FERRY_SVM_HIVE_LOCAL = 0x04,    /**< set: pages in VRAM are reached there by linked devices, not moved to them */
  FERRY_SVM_GPU_RO = 0x08,        /**< set: a device that writes fails its kernel */
  FERRY_SVM_GPU_EXEC = 0x10,      /**< set: kernels may call code in these pages */
  FERRY_SVM_READ_MOSTLY = 0x20,   /**< set: every processor that reads gets a copy, until somebody writes */
  FERRY_SVM_ALWAYS_MAPPED = 0x40, /**< set: devices with access have the pages mapped without a fault */
  FERRY_SVM_EXT_COHERENT = 0x80   /**< set: the pages are never in VRAM */
} ferry_svm_flag;

/** What one line of a list sets or reads. */
typedef enum ferry_svm_type {
  FERRY_SVM_PREFERRED_LOC = 0, /**< value: a device, FERRY_LOC_SYSTEM or FERRY_LOC_UNDEFINED */
  FERRY_SVM_PREFETCH_LOC = 1,  /**< value: a device or FERRY_LOC_SYSTEM; set: the pages are there on return */
  FERRY_SVM_ACCESS_OF = 2,     /**< value: ferry_device_access of `device` */
  FERRY_SVM_SET_FLAGS = 3,     /**< value: ferry_svm_flag bits; get: those set on every page */
  FERRY_SVM_CLR_FLAGS = 4,     /**< value: bits; get: those cleared on every page */
  FERRY_SVM_GRANULARITY = 5    /**< value: log2 of the pages that move together, 0 to 63; more than 9 acts as 9 */
} ferry_svm_type;

/** One line of a list of attributes. */
typedef struct ferry_svm_attribute {
  uint32_t type;     /**< ferry_svm_type */
  uint32_t device;   /**< FERRY_SVM_ACCESS_OF: which device; ignored otherwise */
  uint32_t value;    /**< what is set, or what was read */
  uint32_t reserved; /**< must be 0 */
} ferry_svm_attribute;

/** The most lines that one call takes. */
#define FERRY_SVM_ATTRIBUTES_MAX 64

/** Sets all of `attributes`, in order, or (on any error) none of them. The list is only read. What the list asks for at
 * once has happened when the call returns: access that was withdrawn is gone, a prefetch is done.
 * Errors (the text names the line, counted from 0, and the value): bad_range, not_allocated, not_permitted (a prefetch
 * to a device without access). */
FERRY_API ferry_code ferry_svm_set(void* pointer, size_t bytes, const ferry_svm_attribute* attributes, size_t count,
                                   ferry_error* error);
/** Fills in `value` of each line for the whole span. Where pages differ: FERRY_LOC_UNDEFINED, the weakest access, the
 * smallest granularity, the flags that are set (or cleared) on every page. Errors: bad_range, not_allocated. */
FERRY_API ferry_code ferry_svm_get(const void* pointer, size_t bytes, ferry_svm_attribute* attributes, size_t count,
                                   ferry_error* error);
/** Restores the attributes of a new allocation. Errors: bad_range, not_allocated. */
FERRY_API ferry_code ferry_svm_reset(void* pointer, size_t bytes, ferry_error* error);

/** Retry faults of this process (KFD: XNACK): `mode` 1 switches them on, 0 off, -1 only asks. `was` (may be NULL)
 * receives the mode before. Errors: in_use (kernels run or wait), unsupported (the devices have no retry faults). */
FERRY_API ferry_code ferry_svm_retry_faults(int mode, int* was, ferry_error* error);

/* --- moves ------------------------------------------------------------------------------------------------------ */

/** Like ferry_prefetch, but returns at once; *fence signals when everything has moved. The caller closes the fence with
 * ferry_fence_close. Threads and other processes may wait for it; a job cannot before it has signalled, because memory
 * management never waits for a move. Errors: bad_range, not_allocated, no_memory. */
FERRY_API ferry_code ferry_migrate_async(const void* pointer, size_t bytes, int device, ferry_fence** fence,
                                         ferry_error* error);
/** Gives the pages memory on `device`, or in the system (FERRY_TO_CPU), so that no touch has to wait for it. Contents
 * stay. Errors: bad_range, not_allocated, no_memory. */
FERRY_API ferry_code ferry_populate(void* pointer, size_t bytes, int device, ferry_error* error);
/** Says that the contents are no longer needed: they are not copied anywhere, and until they are written the pages read
 * as before or as zeros. Errors: bad_range, not_allocated, in_use (pinned pages). */
FERRY_API ferry_code ferry_discard(void* pointer, size_t bytes, ferry_error* error);

/** A set of pages whose migration is forbidden and allowed together, as in nvidia-uvm. */
typedef struct ferry_range_group ferry_range_group;
/** Makes an empty group whose pages may migrate. The caller ends it with ferry_range_group_destroy. NULL on error:
 * no_memory (too many groups). */
FERRY_API ferry_range_group* ferry_range_group_create(ferry_error* error);
/** Ends the group; its pages belong to none then, and may migrate. NULL is allowed and does nothing. No other call on
 * the group may be under way. */
FERRY_API void ferry_range_group_destroy(ferry_range_group* group);
/** Puts the pages into `group`, and takes them out of the one that they were in; NULL: into none.
 * Errors: bad_range, not_allocated. */
FERRY_API ferry_code ferry_range_group_assign(ferry_range_group* group, void* pointer, size_t bytes,
                                              ferry_error* error);
/** `allowed` 0: the pages stay where they are, and are reached there. 1: they may migrate. Errors: not_held (NULL). */
FERRY_API ferry_code ferry_range_group_migration(ferry_range_group* group, int allowed, ferry_error* error);

/* --- copies ----------------------------------------------------------------------------------------------------- */

/** Of the masks of ferry_query_copies: system memory. */
#define FERRY_COPY_SYSTEM 0x80000000U

/** Which memories hold the newest bytes of the page at this moment: bit d, VRAM of device d; FERRY_COPY_SYSTEM. More than
 * one where nobody has written the page since it was copied (FERRY_SVM_READ_MOSTLY, and pages that only went to a device).
 * 0: not managed memory, or the store alone holds it. Errors: those of ferry_open. Any thread. */
FERRY_API ferry_code ferry_query_copies(const void* pointer, uint32_t* copies, ferry_error* error);

/* --- pins ------------------------------------------------------------------------------------------------------- */

/** Brings the pages to `device`, or to system memory (FERRY_TO_CPU), and keeps them there until they have been unpinned
 * as often as they were pinned: for DMA that no page table stops. All pages are pinned or none. Meanwhile a touch that
 * cannot be served where they are fails: a kernel's with in_use, that of a CPU thread at a page in VRAM with SIGBUS (before
 * Linux 6.6 it ends the program). Pinned pages that are freed or unmapped are out of everybody's reach at once,
 * and their memory goes with the last unpin, which names them as before. Errors: no_memory (the limit of pinned pages, or no room), bad_range, not_allocated. */
FERRY_API ferry_code ferry_pin(const void* pointer, size_t bytes, int device, ferry_error* error);
/** Takes one pin off each page of the span. Errors: not_held (some page is not pinned: nothing changed), bad_range. */
FERRY_API ferry_code ferry_unpin(const void* pointer, size_t bytes, ferry_error* error);

/* --- memory that the program already has ------------------------------------------------------------------------ */

/** Makes [pointer, pointer + bytes), rounded out to whole pages, usable on devices at the same address: heap, anonymous
 * mappings, globals, stacks, mapped files. Other threads may use it meanwhile; no write is lost. A kernel that touches
 * such memory does the same by itself. Doing it again is harmless. Errors: unsupported (the text says which address
 * cannot be had, and why), bad_range. */
FERRY_API ferry_code ferry_adopt(void* pointer, size_t bytes, ferry_error* error);
/** Undoes ferry_adopt: the memory is private to the process again, with its newest contents. Memory in the span that
 * was never adopted is left alone. Errors: in_use (pinned pages), bad_range. */
FERRY_API ferry_code ferry_release(void* pointer, size_t bytes, ferry_error* error);

/* --- events ----------------------------------------------------------------------------------------------------- */

/** What happened. */
typedef enum ferry_event_kind {
  FERRY_EVENT_FAULT_START = 0,    /**< a device or CPU thread touched pages that are not mapped for it */
  FERRY_EVENT_FAULT_END = 1,      /**< the fault was served, or failed (`error`) */
  FERRY_EVENT_MIGRATE_START = 2,  /**< pages begin to move */
  FERRY_EVENT_MIGRATE_END = 3,    /**< they have moved, or have not (`error`) */
  FERRY_EVENT_QUEUE_EVICTION = 4, /**< the kernels of a device lost all their compute units */
  FERRY_EVENT_QUEUE_RESTORE = 5,  /**< they have some again */
  FERRY_EVENT_UNMAP = 6,          /**< a mapping was taken from a device */
  FERRY_EVENT_PREFETCH = 7,       /**< the program asked for pages to be moved */
  FERRY_EVENT_THRASH = 8,         /**< contended pages are held in system memory from now on */
  FERRY_EVENT_LOST = 9            /**< `count` events were dropped here because nobody read */
} ferry_event_kind;

/** One event. Plain data, owned by the caller. */
typedef struct ferry_event {
  uint64_t time_ns;    /**< CLOCK_MONOTONIC */
  uint32_t kind;       /**< ferry_event_kind */
  uint32_t trigger;    /**< what made it happen: a number for ferry_event_trigger_text() */
  const void* pointer; /**< the first byte concerned */
  uint64_t bytes;
  int32_t from;   /**< moves: what pages leave, a device or FERRY_TO_CPU; else the processor that it is about */
  int32_t to;     /**< moves, prefetches: where they go; else as from */
  uint32_t write; /**< faults: 1 it wanted to write */
  uint32_t error; /**< ends: a ferry_code */
  uint64_t count; /**< FERRY_EVENT_LOST: events dropped; else 0 */
} ferry_event;

/** A stream of events. */
typedef struct ferry_events ferry_events;
/** Opens a stream of this process's events, from now on. `mask` has bit 1 << kind for each kind wanted; FERRY_EVENT_LOST
 * comes unasked. The caller ends it with ferry_events_close. A reader that does not read holds nobody up: about 4,000
 * events are kept, later ones are dropped and counted. NULL on error: bad_range (no kind, or an unknown one), no_memory
 * (a process may have 16 streams). */
FERRY_API ferry_events* ferry_events_open(uint64_t mask, ferry_error* error);
/** Ends the stream, and closes its descriptor. NULL is allowed and does nothing. No other call on it may be under way. */
FERRY_API void ferry_events_close(ferry_events* events);
/** A descriptor that polls readable while there is something to read. The stream owns it: neither read nor close it. */
FERRY_API int ferry_events_fd(ferry_events* events);
/** Takes up to `count` events, at most 64 a call, waiting up to `timeout_ns` (0: not at all; FERRY_FOREVER) for the first
 * one. Returns how many, 0 if none came. Several threads may read one stream; each event goes to one of them. */
FERRY_API size_t ferry_events_read(ferry_events* events, ferry_event* into, size_t count, uint64_t timeout_ns);
/** Text for an event's kind. Static storage; never NULL. */
FERRY_API const char* ferry_event_kind_text(uint32_t kind);
/** Text for an event's trigger. Static storage; never NULL. */
FERRY_API const char* ferry_event_trigger_text(uint32_t trigger);

/* --- checkpoint ------------------------------------------------------------------------------------------------- */

/** Writes all managed memory, wherever its pages are, and its attributes to `fd`, from the descriptor's current offset
 * on. The descriptor stays the caller's. While it runs no kernel may run, and no thread may write managed memory.
 * Errors: no_space, io_error (the text says which), in_use (kernels run or wait), no_memory. */
FERRY_API ferry_code ferry_checkpoint_save(int fd, ferry_error* error);
/** Makes the allocations of a checkpoint again, at the same addresses and with the same contents and attributes; each is
 * freed by ferry_free. Reads from the descriptor's current offset. To be called in a process that has no managed memory
 * yet. Errors: bad_message (no checkpoint, or a damaged one: nothing was restored), overlap (managed memory is there
 * already), no_memory, unsupported (a pipe or socket: the file is read twice). */
FERRY_API ferry_code ferry_checkpoint_restore(int fd, ferry_error* error);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // FERRY_SVM_H
