/** @file svm.h
 * What managed memory can be asked for beyond allocation: attributes, moves, pins, memory that the program already
 * has, events, checkpoints. The rules are told in docs/SVM.md, attribute by attribute.
 *
 * Spans are [pointer, pointer + bytes), aligned to 4096 both, and may cover several allocations; pages of them that
 * belong to none are left out, and a span with none at all fails with FERRY_NOT_ALLOCATED. Threads, errors: as ferry.h.
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

#define FERRY_LOC_SYSTEM 0xfeU
#define FERRY_LOC_UNDEFINED 0xffU

typedef enum ferry_device_access {
  FERRY_NO_ACCESS = 0,       /**< a touch of the device fails; its mappings are taken away at once */
  FERRY_ACCESS_IN_PLACE = 1, /**< the device reaches the pages where they are */
  FERRY_ACCESS = 2           /**< ... and may have them in its own memory */
} ferry_device_access;

typedef enum ferry_svm_flag {
  FERRY_SVM_HOST_ACCESS = 0x01,
  FERRY_SVM_COHERENT = 0x02,
  FERRY_SVM_HIVE_LOCAL = 0x04,
  FERRY_SVM_GPU_RO = 0x08,
  FERRY_SVM_GPU_EXEC = 0x10,
  FERRY_SVM_READ_MOSTLY = 0x20,
  FERRY_SVM_ALWAYS_MAPPED = 0x40,
  FERRY_SVM_EXT_COHERENT = 0x80
} ferry_svm_flag;

typedef enum ferry_svm_type {
  FERRY_SVM_PREFERRED_LOC = 0, /**< value: a device, FERRY_LOC_SYSTEM or FERRY_LOC_UNDEFINED */
  FERRY_SVM_PREFETCH_LOC = 1,  /**< value: a device or FERRY_LOC_SYSTEM; set: the pages go there before it returns */
  FERRY_SVM_ACCESS_OF = 2,     /**< device; value: ferry_device_access */
  FERRY_SVM_SET_FLAGS = 3,     /**< value: ferry_svm_flag bits; get: those set on every page */
  FERRY_SVM_CLR_FLAGS = 4,     /**< value: bits; get: those cleared on every page */
  FERRY_SVM_GRANULARITY = 5    /**< value: log2 of the pages that move together, 0 to 63; more than 9 acts as 9 */
} ferry_svm_type;

typedef struct ferry_svm_attribute {
  uint32_t type;   /**< ferry_svm_type */
  uint32_t device; /**< FERRY_SVM_ACCESS_OF: which */
  uint32_t value;
  uint32_t reserved; /**< 0 */
} ferry_svm_attribute;

/** Most lines of one call. */
#define FERRY_SVM_ATTRIBUTES_MAX 64

/** Sets all of `attributes`, in order, or none of them. Errors (the text says which line and value): bad_range,
 * not_allocated, not_permitted (prefetch to a device without access). */
FERRY_API ferry_code ferry_svm_set(void* pointer, size_t bytes, const ferry_svm_attribute* attributes, size_t count,
                                   ferry_error* error);
/** Fills in each line's value for the whole span, where pages differ: undefined, the weakest access, the least
 * granularity, flags set (or cleared) on every page. */
FERRY_API ferry_code ferry_svm_get(const void* pointer, size_t bytes, ferry_svm_attribute* attributes, size_t count,
                                   ferry_error* error);
/** Back to how a new allocation begins. */
FERRY_API ferry_code ferry_svm_reset(void* pointer, size_t bytes, ferry_error* error);

/** KFD's XNACK mode: 1 on, 0 off, -1 only ask. `was` (may be NULL) receives the mode before. Errors: in_use (kernels
 * run or wait), unsupported (the device has no retry faults). */
FERRY_API ferry_code ferry_svm_retry_faults(int mode, int* was, ferry_error* error);

/* --- moves ------------------------------------------------------------------------------------------------------ */

/** As ferry_prefetch, but returns at once; *fence (to be closed) signals when it is done. Jobs cannot wait for it before:
 * memory management never waits for a move. Errors: bad_range, not_allocated, no_memory. */
FERRY_API ferry_code ferry_migrate_async(const void* pointer, size_t bytes, int device, ferry_fence** fence,
                                         ferry_error* error);
/** Gives the pages memory, on `device` or (FERRY_TO_CPU) in the system, so that no touch has to wait for it. */
FERRY_API ferry_code ferry_populate(void* pointer, size_t bytes, int device, ferry_error* error);
/** Their contents are needed no more: they move nowhere, and read as before or as zeros until they are written. */
FERRY_API ferry_code ferry_discard(void* pointer, size_t bytes, ferry_error* error);

typedef struct ferry_range_group ferry_range_group;
/** A set of pages whose migration can be forbidden and allowed together, as in nvidia-uvm. NULL on error. */
FERRY_API ferry_range_group* ferry_range_group_create(ferry_error* error);
FERRY_API void ferry_range_group_destroy(ferry_range_group* group);
/** `group` NULL: none. */
FERRY_API ferry_code ferry_range_group_assign(ferry_range_group* group, void* pointer, size_t bytes,
                                              ferry_error* error);
FERRY_API ferry_code ferry_range_group_migration(ferry_range_group* group, int allowed, ferry_error* error);

/* --- pins ------------------------------------------------------------------------------------------------------- */

/** The pages go to `device` (FERRY_TO_CPU: the system) and stay there until ferry_unpin as often, for DMA that no page
 * table stops. Errors: no_memory (the limit of pinned pages, or no room), bad_range, not_allocated. */
FERRY_API ferry_code ferry_pin(const void* pointer, size_t bytes, int device, ferry_error* error);
FERRY_API ferry_code ferry_unpin(const void* pointer, size_t bytes, ferry_error* error);

/* --- memory that the program already has ------------------------------------------------------------------------ */

/** Makes [pointer, pointer + bytes), rounded out to pages, usable on devices at the same address: heap, anonymous
 * mappings, globals, stacks, files. Other threads may use it meanwhile; no write is lost. A device that touches such
 * memory does the same by itself. Errors: unsupported (the text says why that memory cannot be had), bad_range. */
FERRY_API ferry_code ferry_adopt(void* pointer, size_t bytes, ferry_error* error);
/** Gives it back: private memory of the process again, with its newest contents. */
FERRY_API ferry_code ferry_release(void* pointer, size_t bytes, ferry_error* error);

/* --- events ----------------------------------------------------------------------------------------------------- */

typedef enum ferry_event_kind {
  FERRY_EVENT_FAULT_START = 0,
  FERRY_EVENT_FAULT_END = 1,
  FERRY_EVENT_MIGRATE_START = 2,
  FERRY_EVENT_MIGRATE_END = 3,
  FERRY_EVENT_QUEUE_EVICTION = 4, /**< compute of a device was stopped: units taken, memory taken away */
  FERRY_EVENT_QUEUE_RESTORE = 5,
  FERRY_EVENT_UNMAP = 6, /**< from a device */
  FERRY_EVENT_PREFETCH = 7,
  FERRY_EVENT_THRASH = 8,
  FERRY_EVENT_LOST = 9 /**< `count` events were dropped because nobody read */
} ferry_event_kind;

typedef struct ferry_event {
  uint64_t time_ns; /**< CLOCK_MONOTONIC */
  uint32_t kind;    /**< ferry_event_kind */
  uint32_t trigger; /**< what made it happen: a number for ferry_event_trigger_text() */
  const void* pointer;
  uint64_t bytes;
  int32_t from;   /**< moves: what pages leave, a device or FERRY_TO_CPU; else the processor that it is about */
  int32_t to;     /**< moves, prefetches: where they go; else as from */
  uint32_t write; /**< faults: 1 it wanted to write */
  uint32_t error; /**< ends: a ferry_code */
  uint64_t count;
} ferry_event;

typedef struct ferry_events ferry_events;
/** Events of this process from now on; `mask` has bit 1 << kind for each kind wanted, FERRY_EVENT_LOST is told unasked.
 * Ends with ferry_events_close. NULL on error: bad_range (no kind, or one that is none), no_memory (16 streams). A reader
 * that does not read holds nobody up: about 4,000 events are kept, what comes after is dropped and counted. */
FERRY_API ferry_events* ferry_events_open(uint64_t mask, ferry_error* error);
FERRY_API void ferry_events_close(ferry_events* events);
/** A descriptor that polls readable while there is something to read. It stays the library's. */
FERRY_API int ferry_events_fd(ferry_events* events);
/** Takes up to `count` events, at most 64 a call. Returns how many: 0 if none came within timeout_ns. Threads may read
 * one stream side by side; each event goes to one of them. */
FERRY_API size_t ferry_events_read(ferry_events* events, ferry_event* into, size_t count, uint64_t timeout_ns);
FERRY_API const char* ferry_event_kind_text(uint32_t kind);
FERRY_API const char* ferry_event_trigger_text(uint32_t trigger);

/* --- checkpoint ------------------------------------------------------------------------------------------------- */

/** Writes all managed memory, wherever it is, and its attributes to `fd`. No kernel may run, and no other thread may
 * write managed memory meanwhile. */
FERRY_API ferry_code ferry_checkpoint_save(int fd, ferry_error* error);
/** In a process that has no managed memory yet: allocations, contents and attributes as they were, at the same addresses.
 * Errors: bad_message (no checkpoint, or a damaged one: nothing was restored), overlap, no_memory. */
FERRY_API ferry_code ferry_checkpoint_restore(int fd, ferry_error* error);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // FERRY_SVM_H
