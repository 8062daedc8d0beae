/** @file work.h
 * Buffers, fences, timelines and jobs: the side of Ferry that works as graphics does. The C interface; work.hpp is the
 * C++ one.
 *
 * A buffer is memory that several applications and devices share by a descriptor. A job runs on an engine of a device
 * (graphics, copy, video), says beforehand which buffers it uses, and signals a fence. Kernels (ferry.h) are the other
 * kind of work: they touch what they like, fault, and never signal a fence; they may touch mapped buffers too.
 *
 * Handles (ferry_buffer, ferry_fence, ferry_timeline) belong to the process that got them and end with their _close
 * function; all calls on one that is not closed may come from any thread at any time. A handle may not be used after
 * it was closed. Units: bytes and nanoseconds. Errors: as in ferry.h; those that a function names come beside those of
 * ferry_open (no session) and no_memory, which is also what the limits of an application give:
 * 1,024 buffers, 4,096 fences, 256 timelines, 1,024 jobs that have not ended, 1,024 exported descriptors, at a time.
 * Nothing of this file may be called inside a kernel.
 */
#ifndef FERRY_WORK_H
#define FERRY_WORK_H
#pragma once

#include <ferry/ferry.h>

#ifdef __cplusplus
extern "C" {
#endif

/* --- buffers --------------------------------------------------------------------------------------------------- */

typedef struct ferry_buffer ferry_buffer;

/** Home of a buffer that is in system memory. */
#define FERRY_IN_SYSTEM (-1)

typedef enum ferry_buffer_flags {
  /** Jobs are not put in order behind earlier users of this buffer: only the waits that they are given count. */
  FERRY_BUFFER_NO_IMPLICIT_SYNC = 1
} ferry_buffer_flags;

/** Makes a buffer of at least `bytes` (rounded up to pages), zeros, with no memory until it is used. `home`: a device,
 * in whose VRAM it is while there is room, or FERRY_IN_SYSTEM. `flags`: ferry_buffer_flags.
 * Ends with ferry_buffer_close. NULL on error: bad_range (0 bytes, no such device, more than fits), no_memory. */
FERRY_API ferry_buffer* ferry_buffer_create(size_t bytes, int home, unsigned flags, ferry_error* error);

/** A buffer that is the managed or adopted memory [pointer, pointer + bytes) itself (a "userptr"): jobs see what the pages
 * hold when they run. Both must be multiples of 4,096; jobs fail (not_allocated) once part of the memory is gone. It
 * cannot be exported. NULL on error: bad_range, not_allocated (the memory is not, or not all of it, managed). */
FERRY_API ferry_buffer* ferry_buffer_from_memory(void* pointer, size_t bytes, unsigned flags, ferry_error* error);

/** Closes the handle; with the last one of a buffer that this process has, its mapping goes too, after visible jobs of
 * this process that use it (graphics jobs that are not visible yet will not find it: wait for them first). The buffer
 * itself lives on while others hold it, while descriptors of it are open, and while jobs that were submitted need it:
 * closing a busy buffer is allowed. NULL does nothing. */
FERRY_API ferry_code ferry_buffer_close(ferry_buffer* buffer, ferry_error* error);

/** Makes the buffer reachable at one address, for CPU threads, kernels and graphics jobs of this process alike, on
 * every device. Returns the same address until the handle is closed (of ferry_buffer_from_memory: that memory's). The contents are where the last user left them: wait
 * for the fences of jobs that write it before you read. NULL on error: no_memory, no_mappings. */
FERRY_API void* ferry_buffer_map(ferry_buffer* buffer, ferry_error* error);

/** Size as rounded up to pages. */
FERRY_API size_t ferry_buffer_bytes(const ferry_buffer* buffer);

/** Number of the buffer on this machine, the same in every process. For logs and comparisons; it gives no access. */
FERRY_API uint64_t ferry_buffer_id(const ferry_buffer* buffer);

typedef struct ferry_buffer_state {
  int in_vram;      /**< 1: its bytes are in VRAM of `device` */
  int in_system;    /**< 1: in system memory */
  int stored;       /**< 1: beneath system memory; with none of the three set it has no memory yet */
  int device;       /**< -1 unless in_vram */
  int busy;         /**< 1: a job that has not ended uses it */
  int moving;       /**< 1: on its way right now */
  int stale;        /**< 1: ferry_buffer_from_memory: its pages changed since a job last looked */
  unsigned holders; /**< applications that hold it */
} ferry_buffer_state;

FERRY_API ferry_code ferry_buffer_query(ferry_buffer* buffer, ferry_buffer_state* state, ferry_error* error);

/** A new descriptor for the buffer, close-on-exec, owned by the caller. Whoever has it (through a socket, or fork and
 * exec) may import it, in any process that has a session with the same ferryd; nobody else can. It keeps the buffer
 * alive, after this process's death too. -1 on error: unsupported (of ferry_buffer_from_memory), no_memory. */
FERRY_API int ferry_buffer_export(ferry_buffer* buffer, ferry_error* error);

/** A handle for the buffer behind the descriptor, which stays the caller's. Imported twice it is the same handle, to be
 * closed as often. NULL on error: not_held (it is no buffer's descriptor, or of another ferryd). */
FERRY_API ferry_buffer* ferry_buffer_import(int fd, ferry_error* error);

/* --- fences ---------------------------------------------------------------------------------------------------- */

/** How a job ended, once it has: signalled once, for ever, with FERRY_OK or an error. */
typedef struct ferry_fence ferry_fence;

typedef enum ferry_fence_state {
  FERRY_FENCE_SUBMITTED = 0, /**< its job waits for points without a fence, for memory, or for its turn */
  FERRY_FENCE_VISIBLE = 1,   /**< it will signal in bounded time, whatever the program does */
  FERRY_FENCE_SIGNALLED = 2
} ferry_fence_state;

/** Waits until the fence has signalled, at most `timeout_ns` (0: just looks; FERRY_FOREVER). Returns how it signalled:
 * FERRY_OK, or the job's error (timed_out does not say which: ferry_fence_query does). On its own error: timed_out. */
FERRY_API ferry_code ferry_fence_wait(ferry_fence* fence, uint64_t timeout_ns, ferry_error* error);

/** Never blocks. `status` (may be NULL) receives FERRY_OK, or the error of a signalled fence: that of its job
 * (timed_out, cancelled, kernel_fault, device_lost, no_memory, ...), or of one that the job had to wait for. */
FERRY_API ferry_fence_state ferry_fence_query(ferry_fence* fence, ferry_code* status);

/** Somebody needs it `in_ns` from now: its job, and what that waits for, is put before others. A wish, not a limit. */
FERRY_API ferry_code ferry_fence_set_deadline(ferry_fence* fence, uint64_t in_ns, ferry_error* error);

/** A fence that signals when all have, with the first error, or (any != 0) with the first of them. Its parts may be
 * closed afterwards. Waits until each part is visible, at most ten seconds: timed_out then. NULL on error:
 * bad_range (none, or more than 64), timed_out. */
FERRY_API ferry_fence* ferry_fence_merge(ferry_fence* const* fences, size_t count, int any, ferry_error* error);

/** A new eventfd of this process, close-on-exec, owned by the caller, to which 1 is added when the fence signals. It
 * says nothing of how. The handle may be closed before. -1 on error. */
FERRY_API int ferry_fence_eventfd(ferry_fence* fence, ferry_error* error);

/** A new descriptor that stands for the fence, close-on-exec, owned by the caller, as a Linux sync file: poll() says
 * POLLIN when the fence has signalled, ferry_sync_fd_status() how, in any process, with or without a session; and
 * ferry_fence_import() makes it a fence again. Never read from it. -1 on error. */
FERRY_API int ferry_fence_export(ferry_fence* fence, ferry_error* error);

/** As ferry_buffer_import. A fence whose application died signals with client_gone, if its job had not ended. */
FERRY_API ferry_fence* ferry_fence_import(int fd, ferry_error* error);

/** 1: signalled, and `status` says how. 0: not yet. -1: this is no descriptor of a fence. Needs no session. */
FERRY_API int ferry_sync_fd_status(int fd, ferry_code* status);

/** NULL does nothing. The job goes on: closing is not cancelling. No thread may wait on the handle any more. */
FERRY_API void ferry_fence_close(ferry_fence* fence);

/* --- timelines ------------------------------------------------------------------------------------------------- */

/** A row of points 1, 2, 3, ...: each is signalled by a job, or from the CPU. A job may wait for a point that nobody
 * has promised yet: it is then held back, unseen, until somebody does. */
typedef struct ferry_timeline ferry_timeline;

FERRY_API ferry_timeline* ferry_timeline_create(ferry_error* error);

/** Points that nobody has promised fail when the last holder has closed. NULL does nothing. */
FERRY_API void ferry_timeline_close(ferry_timeline* timeline);

/** Signals the point from the CPU, and with it all before it that nobody has promised. Errors: in_use (this or a later point
 * was promised by a job, or is signalled already), bad_range (point 0). */
FERRY_API ferry_code ferry_timeline_signal(ferry_timeline* timeline, uint64_t point, ferry_error* error);

/** Waits until the point and all before it have signalled, at most `timeout_ns`. Errors: timed_out. */
FERRY_API ferry_code ferry_timeline_wait(ferry_timeline* timeline, uint64_t point, uint64_t timeout_ns,
                                         ferry_error* error);

/** The highest point such that it and all before it have signalled. Never blocks. */
FERRY_API uint64_t ferry_timeline_value(ferry_timeline* timeline);

/** As ferry_buffer_export and ferry_buffer_import. */
FERRY_API int ferry_timeline_export(ferry_timeline* timeline, ferry_error* error);
FERRY_API ferry_timeline* ferry_timeline_import(int fd, ferry_error* error);

/* --- jobs ------------------------------------------------------------------------------------------------------ */

typedef struct ferry_job_buffer {
  ferry_buffer* buffer;
  int write; /**< 1: the job writes it; 0: it only reads */
} ferry_job_buffer;

typedef struct ferry_job_point {
  ferry_timeline* timeline;
  uint64_t point; /**< 1 or more */
} ferry_job_point;

/** What every kind of job may be told. Zero-initialized it is a job of device 0 with the default of everything. The
 * lists are read during the call only; at most 64 entries each (63 in signal_points). */
typedef struct ferry_job_options {
  unsigned device;
  unsigned priority;               /**< 1 lowest to 4 highest; 0: the default, 2. Others run first, with ageing */
  unsigned cus_min;                /**< graphics: compute units that it needs at least; 0: 1 */
  unsigned cus_max;                /**< ... and may have at most; 0: all of the device */
  uint64_t timeout_ns;             /**< from its start: then it ends with timed_out. 0: 10 s; at most 60 s */
  const ferry_job_buffer* buffers; /**< graphics: all that it touches. Copy, video: more than its source and target */
  size_t buffer_count;
  ferry_fence* const* waits; /**< it runs when they have signalled; if one failed it fails with that error */
  size_t wait_count;
  const ferry_job_point* wait_points;
  size_t wait_point_count;
  const ferry_job_point* signal_points;
  size_t signal_point_count;
} ferry_job_options;

/** Runs `kernel` over `items` items on the graphics engine, as ferry_launch, but as a job: it may touch the mapped buffers of its
 * list and nothing else that is managed; a page fault ends it with kernel_fault. Returns at once, with the fence of the
 * job, to be closed. `options` may be NULL only where no buffers are needed.
 * NULL on error, and nothing happened: bad_range (device, priority, units, timeout, list or captures out of range, more
 * buffers than the memory's budget), not_held, in_use (a point), would_deadlock (the text tells the circle),
 * device_lost. */
FERRY_API ferry_fence* ferry_submit_graphics(const ferry_job_options* options, ferry_kernel kernel,
                                             const void* captures, size_t capture_bytes, uint64_t items,
                                             uint64_t items_per_wave, const char* name, ferry_error* error);

/** Copies bytes from one buffer to another on a copy engine. The spans may not overlap where both are the same buffer.
 * Errors: as ferry_submit_graphics; bad_range for a span that is not inside its buffer. */
FERRY_API ferry_fence* ferry_submit_copy(const ferry_job_options* options, ferry_buffer* target, uint64_t target_offset,
                                         ferry_buffer* source, uint64_t source_offset, uint64_t bytes,
                                         ferry_error* error);

typedef enum ferry_video_op {
  /** Width and height even. The source is a plane of width x height bytes Y, and at chroma_offset one of width / 2 x
   * height / 2 pairs U, V, with the same pitch. The target is 4 bytes R, G, B, A a pixel. With C = Y - 16, D = U - 128,
   * E = V - 128: R = (298 C + 409 E + 128) >> 8, G = (298 C - 100 D - 208 E + 128) >> 8, B = (298 C + 516 D + 128) >> 8,
   * each clamped to 0..255 (>> rounds down); A = 255. */
  FERRY_VIDEO_NV12_TO_RGBA = 1,
  /** Width and height even, 4 bytes a pixel. The target is width / 2 x height / 2: each byte is (a + b + c + d + 2) >> 2
   * of the four source pixels. */
  FERRY_VIDEO_HALF = 2,
  /** 4 bytes a pixel. Each byte of the target becomes (alpha s + (255 - alpha) t + 127) / 255. */
  FERRY_VIDEO_BLEND = 3
} ferry_video_op;

typedef struct ferry_video {
  ferry_video_op op;
  unsigned width;  /**< of the source, in pixels, 1 to 16,384 */
  unsigned height; /**< the same */
  unsigned alpha;  /**< blend: 0 to 255 */
  uint64_t source_offset;
  uint64_t source_pitch;  /**< bytes from one row to the next; 0: rows without a gap */
  uint64_t chroma_offset; /**< NV12: 0: right behind the plane of Y */
  uint64_t target_offset;
  uint64_t target_pitch;
} ferry_video;

/** One operation of the fixed-function video engine. Target and source must be different buffers.
 * Errors: as ferry_submit_copy. */
FERRY_API ferry_fence* ferry_submit_video(const ferry_job_options* options, const ferry_video* video,
                                          ferry_buffer* target, ferry_buffer* source, ferry_error* error);

/** Best effort: a job that has not begun never will, one that runs is asked to end. Its fence signals with cancelled
 * unless it was faster. Errors: not_held: the fence is of a job of another application, or of no job. */
FERRY_API ferry_code ferry_job_cancel(ferry_fence* fence, ferry_error* error);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* FERRY_WORK_H */
