/** @file progress.h
 * Does my driver's fence model deadlock? A driver tells this library who waits for whom: its engines, fences, jobs,
 * faults, memory and locks, as a model beside the real thing. It hears of
 *   - circles: those that wait for each other and can never go on, as sentences, the moment the last wait begins;
 *   - circles of classes: waits of the whole run that could form a circle, although this run got away with it;
 *   - broken rules of fences: a wait for memory, a fault or a user between a fence's becoming visible and its signal;
 *     a fence that is never signalled, signalled twice, or signalled without having become visible.
 * The library observes: it blocks nobody, touches no device, and needs no manager. It is libferry_progress, apart from
 * libferry; progress.hpp is the C++ interface.
 *
 * A model is what ferry_progress_create() returned; it is used until ferry_progress_destroy().
 * Errors: functions that return ferry_progress_result return a negative one and change nothing, except that after
 * FERRY_PROGRESS_NO_MEMORY the model may know a part of what it was told. Ids of removed nodes, and
 * FERRY_PROGRESS_NONE, are FERRY_PROGRESS_GONE: never somebody else's node.
 * Ownership: text passed in is copied, except `how`, which must stay valid as long as the model (a literal does).
 * Texts come out into the caller's buffer, always NUL-terminated if it has room for one byte; the returned length is
 * that of the whole text without the NUL, so a length of buffer_bytes or more means that it was cut.
 * Threads: every function may be called from any thread at any time, except ferry_progress_destroy(), after which and
 * beside which there may be no other call with that model. A call takes a lock for as long as the search in what the
 * waited-for waits for; it is no function for interrupt or signal handlers.
 */
#ifndef FERRY_PROGRESS_H
#define FERRY_PROGRESS_H
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FERRY_API __attribute__((visibility("default")))

/** A model of one driver, or of several that wait for each other. */
typedef struct ferry_progress ferry_progress;

/** One thing that waits or is waited for. */
typedef uint64_t ferry_progress_node;
#define FERRY_PROGRESS_NONE ((ferry_progress_node)0)

/** A class of such things: "render fence", "compute unit", "page fault". 0 to FERRY_PROGRESS_CLASSES_MAX - 1. */
typedef int ferry_progress_class;
#define FERRY_PROGRESS_CLASSES_MAX 64

/** For nodes whose number tells nobody anything: the class's name alone is shown. */
#define FERRY_PROGRESS_UNNUMBERED UINT64_MAX

typedef enum ferry_progress_result {
  FERRY_PROGRESS_OK = 0,
  FERRY_PROGRESS_REPORTED = 1,      /**< done, and this call led to at least one report */
  FERRY_PROGRESS_GONE = -1,         /**< no such node any more */
  FERRY_PROGRESS_BAD_ARGUMENT = -2, /**< a null pointer, an unknown class, kind or flag */
  FERRY_PROGRESS_FULL = -3,         /**< FERRY_PROGRESS_CLASSES_MAX classes are defined already */
  FERRY_PROGRESS_NO_MEMORY = -4
} ferry_progress_result;

/** What the members of a class are, and so which rules they keep. The rules are those of dma-fence. */
#ifdef __cplusplus /* any number may come from C, and is looked at */
typedef enum ferry_progress_kind : int {
#else
typedef enum ferry_progress_kind {
#endif
  FERRY_PROGRESS_WORK = 0,        /**< threads, jobs, waves: no rule */
  FERRY_PROGRESS_FENCE = 1,       /**< owed a signal once published; waits only for fences published before */
  FERRY_PROGRESS_ENGINE = 2,      /**< held by work: compute units, engine slots, ring space */
  FERRY_PROGRESS_LOCK = 3,        /**< held by work; may be taken on the way to a signal */
  FERRY_PROGRESS_RESERVATION = 4, /**< a lock under which others wait for fences: not on the way to a signal */
  FERRY_PROGRESS_MEMORY = 5,      /**< memory that reclaim has to find: not on the way to a signal */
  FERRY_PROGRESS_FAULT = 6,       /**< a page fault: not on the way to a signal */
  FERRY_PROGRESS_USER = 7         /**< what user space ends when it likes, user fences: not on the way to a signal */
} ferry_progress_kind;

/** Flag of ferry_progress_add(): the node may go on when one of those it waits for lets it (memory: any victim will do;
 * a pool of engines: any holder that leaves). It is stuck only if all of them are. Without: it needs all. */
#define FERRY_PROGRESS_ANY 1u

/** What a report is about. */
typedef enum ferry_progress_what {
  FERRY_PROGRESS_CIRCLE = 0,          /**< a deadlock, now */
  FERRY_PROGRESS_CLASS_CIRCLE = 1,    /**< one that could happen */
  FERRY_PROGRESS_WAIT_IN_SECTION = 2, /**< a wait that is forbidden between a fence's publication and its signal */
  FERRY_PROGRESS_NEVER_SIGNALLED = 3,
  FERRY_PROGRESS_SIGNALLED_TWICE = 4,
  FERRY_PROGRESS_SIGNAL_OUTSIDE = 5 /**< signalled, but never published */
} ferry_progress_what;

/** Short text for it: "deadlock", "possible deadlock", ... Static storage. */
FERRY_API const char* ferry_progress_what_text(ferry_progress_what what);

/* --- the model ------------------------------------------------------------------------------------------------- */

/** An empty model, or NULL if there is no memory for one. */
FERRY_API ferry_progress* ferry_progress_create(void);

/** Frees it and all its nodes; nothing is reported. NULL is allowed. */
FERRY_API void ferry_progress_destroy(ferry_progress* model);

/** A new class, or a negative ferry_progress_result: bad_argument, full, no_memory. `name` is shown in front of a
 * member's number. Classes stay as long as the model. */
FERRY_API ferry_progress_class ferry_progress_define(ferry_progress* model, ferry_progress_kind kind, const char* name);

/** Waits of `from` for `to` follow an order that everyone keeps (locks by address, parents before children), so they are
 * no part of a possible deadlock. Deadlocks that do happen are told all the same. Fences are ordered with their own
 * class from the start. */
FERRY_API ferry_progress_result ferry_progress_ordered(ferry_progress* model, ferry_progress_class from,
                                                       ferry_progress_class to);

/** A new node, or FERRY_PROGRESS_NONE: no memory, or a bad argument. `number` is what people call it, it need not be
 * unique. `flags`: 0 or FERRY_PROGRESS_ANY. */
FERRY_API ferry_progress_node ferry_progress_add(ferry_progress* model, ferry_progress_class cls, uint64_t number,
                                                 unsigned flags);

/** More words for it, shown after its number: "of wave 3". NULL or empty: none. */
FERRY_API ferry_progress_result ferry_progress_describe(ferry_progress* model, ferry_progress_node node,
                                                        const char* words);

/** It ceases to exist with all its waits and all waits for it. A fence that was published and not signalled is reported
 * as never signalled. */
FERRY_API ferry_progress_result ferry_progress_remove(ferry_progress* model, ferry_progress_node node);

/* --- waits ----------------------------------------------------------------------------------------------------- */

/** From now on `from` cannot go on before `to` lets it. Say it before blocking. `how` stands between the two names in
 * sentences; NULL: "waits for". Waits are counted: as many ferry_progress_done() end it. An any-node's alternatives are
 * named safest first, or together with ferry_progress_wait_any(). */
FERRY_API ferry_progress_result ferry_progress_wait(ferry_progress* model, ferry_progress_node from,
                                                    ferry_progress_node to, const char* how);
FERRY_API ferry_progress_result ferry_progress_wait_any(ferry_progress* model, ferry_progress_node from,
                                                        const ferry_progress_node* to, size_t count, const char* how);

/** One wait is over. A wait that there is not is passed over. */
FERRY_API ferry_progress_result ferry_progress_done(ferry_progress* model, ferry_progress_node from,
                                                    ferry_progress_node to);

/** All that `from` waits for is over. */
FERRY_API ferry_progress_result ferry_progress_done_all(ferry_progress* model, ferry_progress_node from);

/** Would this wait close a circle? Length of the sentences that it would be told in; 0: no (or one of them is gone).
 * For drivers that refuse such a wait. Nothing is remembered or reported. */
FERRY_API size_t ferry_progress_would_close(ferry_progress* model, ferry_progress_node from, ferry_progress_node to,
                                            char* buffer, size_t buffer_bytes);

/** `who` holds `what` from now on (an engine, a lock): `what` waits for `who` until ferry_progress_release(). Its wait for
 * it, if it was told, is over. What `who` holds already is remembered as taken before `what`: that finds lock orders
 * that contradict each other without any contention. Said after it is really taken, and release before it is really
 * given back, so that the model never knows two holders of what has one. */
FERRY_API ferry_progress_result ferry_progress_acquire(ferry_progress* model, ferry_progress_node who,
                                                       ferry_progress_node what);
FERRY_API ferry_progress_result ferry_progress_release(ferry_progress* model, ferry_progress_node who,
                                                       ferry_progress_node what);

/* --- fences ---------------------------------------------------------------------------------------------------- */

/** The fence becomes visible: others can wait for it from now on, so it is owed a signal, and nothing that it waits for,
 * itself or through others, may be memory, a fault, a reservation lock or a user. Said before the fence is put where
 * others find it. Bad argument: its class is not FERRY_PROGRESS_FENCE. */
FERRY_API ferry_progress_result ferry_progress_publish(ferry_progress* model, ferry_progress_node fence);

/** It has signalled: all waits for it, and its own, are over. What its work holds is released by itself. */
FERRY_API ferry_progress_result ferry_progress_signal(ferry_progress* model, ferry_progress_node fence);

/** For the end of a run: reports every fence that is published and not signalled. */
FERRY_API ferry_progress_result ferry_progress_finish(ferry_progress* model);

/* --- hearing of it --------------------------------------------------------------------------------------------- */

/** Called on the thread whose call led to the report, before that call returns, with no lock held: it may call any
 * function of this file but ferry_progress_destroy(). `text` is valid until it returns. */
typedef void (*ferry_progress_callback)(void* user, ferry_progress_what what, const char* text);

/** Reports go to `callback` instead of waiting to be taken; those that wait go there at once. NULL: none any more. A
 * call that is under way on another thread may still use the callback of before. */
FERRY_API ferry_progress_result ferry_progress_set_callback(ferry_progress* model, ferry_progress_callback callback,
                                                            void* user);

/** Takes the oldest report; returns the length of its text, 0: there is none. A report that is longer than the buffer
 * stays, so that the caller can come back with a larger one. At most 1000 are kept. */
FERRY_API size_t ferry_progress_take(ferry_progress* model, ferry_progress_what* what, char* buffer,
                                     size_t buffer_bytes);

/** What `node` is stuck in or behind now, as sentences; length, 0: nothing. */
FERRY_API size_t ferry_progress_stuck(ferry_progress* model, ferry_progress_node node, char* buffer,
                                      size_t buffer_bytes);

/** Everything that is waited for now, a line a wait; length. */
FERRY_API size_t ferry_progress_waits(ferry_progress* model, char* buffer, size_t buffer_bytes);

#ifdef __cplusplus
}
#endif

#endif
