/*
 * Corio for C: coroutines, the AioContext event loop, and disk I/O on it, under the names that
 * QEMU has for them. How to build with it, and what differs from QEMU: docs/C.md.
 *
 * Conventions
 *  - What is opaque is made by a function and freed by one. What the caller allocates (CoMutex and
 *    its like) is valid when it is all zeros, holds nothing that has to be freed, and must not be
 *    moved or copied while it is used.
 *  - Misuse, and whatever else would be an assertion in QEMU, prints a line on standard error and
 *    aborts.
 *  - A function that is marked coroutine_fn is to be called inside a coroutine, and may yield.
 *  - An errp may be NULL.
 */
#ifndef CORIO_H
#define CORIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Marks what is to be called inside a coroutine. */
#ifndef coroutine_fn
#define coroutine_fn
#endif

typedef struct AioContext AioContext;
typedef struct Coroutine Coroutine;
typedef struct CorioError CorioError;
typedef struct QEMUBH QEMUBH;

/* ------------------------------------------------------------------------- errors */

/* What went wrong, as text that lives until the error is freed. */
const char *corio_error_get_message(const CorioError *error);
void corio_error_free(CorioError *error);

/* --------------------------------------------------------------------- coroutines */

typedef void coroutine_fn CoroutineEntry(void *opaque);

/* Makes a coroutine, on any thread. It runs nothing until it is entered, and is freed when its
 * function returns. One that never ends is never freed. */
Coroutine *qemu_coroutine_create(CoroutineEntry *entry, void *opaque);

/* Runs it on this thread, nested in the caller, until it yields or ends; then what it has woken. */
void qemu_coroutine_enter(Coroutine *co);
/* The same, unless it is entered already. */
void qemu_coroutine_enter_if_inactive(Coroutine *co);
/* The same, with its wakes going to ctx from now on. */
void qemu_aio_coroutine_enter(AioContext *ctx, Coroutine *co);

/* Goes back to whoever entered the running coroutine. Returns when it is entered again, perhaps on
 * another thread. */
void coroutine_fn qemu_coroutine_yield(void);

/* The running coroutine; NULL outside of any, where QEMU has one that stands for the thread. */
Coroutine *qemu_coroutine_self(void);
bool qemu_in_coroutine(void);
/* True from being entered until it next yields, also while it has itself entered another. */
bool qemu_coroutine_entered(Coroutine *co);
/* The context in which it was entered last; NULL if that was none. */
AioContext *qemu_coroutine_get_aio_context(Coroutine *co);

/* Has the pool of stacks keep so many more, or less, than it would. */
void qemu_coroutine_inc_pool_size(unsigned int additional_pool_size);
void qemu_coroutine_dec_pool_size(unsigned int additional_pool_size);

/* ----------------------------------------------------------------------- contexts */

/* A context has one home, a thread that has made it current and calls aio_poll; it is home until it
 * ends, or the context is freed. NULL: there is no descriptor left; *errp says so. */
AioContext *aio_context_new(CorioError **errp);
void aio_context_ref(AioContext *ctx);
/* The last reference frees it: nothing of it may be left, no bottom half and no armed timer. */
void aio_context_unref(AioContext *ctx);

/* Makes the main context, with this thread for its home. 0, or a negative errno. */
int qemu_init_main_loop(CorioError **errp);
/* The main context; NULL before it is made. */
AioContext *qemu_get_aio_context(void);

/* The context whose home this thread is; NULL if it is none's. */
AioContext *qemu_get_current_aio_context(void);
/* Makes this thread the home of ctx. It must not have a context yet. */
void qemu_set_current_aio_context(AioContext *ctx);

/* One turn of the loop: waits for something to do, if blocking, and does it. True: a handler, a
 * bottom half that is not idle, or a timer ran. In the home of ctx, not in a coroutine; may be called
 * by what it calls. */
bool aio_poll(AioContext *ctx, bool blocking);
/* Makes an aio_poll that blocks, or is about to, return. Any thread, and signal handlers. */
void aio_notify(AioContext *ctx);

/* The parts of a turn, for a loop that is not aio_poll. In the home of ctx. */
/* Whether something is to be done at once, without a look at the descriptors. */
bool aio_prepare(AioContext *ctx);
/* Whether aio_dispatch would find something to do. */
bool aio_pending(AioContext *ctx);
/* One turn that does not block. */
void aio_dispatch(AioContext *ctx);
/* How long a wait may last for all that is no descriptor, in nanoseconds; -1: without limit. */
int64_t aio_compute_timeout(AioContext *ctx);
/* Has a notification that has come used up, as a turn does. */
void aio_notify_accept(AioContext *ctx);

/* ------------------------------------------------------------------- bottom halves */

typedef void QEMUBHFunc(void *opaque);

/* A device that is to be told of, on standard error, if one of its bottom halves runs while it is
 * engaged. Each of them engages it while it runs. */
typedef struct MemReentrancyGuard {
    bool engaged_in_io;
} MemReentrancyGuard;

/* Makes a bottom half; its name is copied. reentrancy_guard may be NULL. Any thread. */
QEMUBH *aio_bh_new_full(AioContext *ctx, QEMUBHFunc *cb, void *opaque, const char *name,
                        MemReentrancyGuard *reentrancy_guard);
#define aio_bh_new(ctx, cb, opaque) aio_bh_new_full((ctx), (cb), (opaque), #cb, NULL)
#define aio_bh_new_guarded(ctx, cb, opaque, guard)                                                 \
    aio_bh_new_full((ctx), (cb), (opaque), #cb, (guard))

/* Has cb run once, in the next turn. Any thread; allocates, so not from a signal handler. */
void aio_bh_schedule_oneshot_full(AioContext *ctx, QEMUBHFunc *cb, void *opaque, const char *name);
#define aio_bh_schedule_oneshot(ctx, cb, opaque)                                                   \
    aio_bh_schedule_oneshot_full((ctx), (cb), (opaque), #cb)

/* Has it run once in the next turn, however often it is scheduled before that; in the order in which
 * they were scheduled. Any thread, and signal handlers. */
void qemu_bh_schedule(QEMUBH *bh);
/* The same, within 10 ms, without hurrying the loop and without counting as progress. */
void qemu_bh_schedule_idle(QEMUBH *bh);
/* Takes a schedule back. */
void qemu_bh_cancel(QEMUBH *bh);
/* It does not run any more. Any thread; also in its own function. */
void qemu_bh_delete(QEMUBH *bh);

/* Runs it here and now, scheduled or not. */
void aio_bh_call(QEMUBH *bh);
/* Runs those that are scheduled, and nothing else of a turn. 1: one of them was not idle. */
int aio_bh_poll(AioContext *ctx);

/* ------------------------------------------------------------------------ handlers */

typedef void IOHandler(void *opaque);
typedef bool AioPollFn(void *opaque);

/* Has io_read called in each turn that finds fd readable, hung up or failed, io_write in each that
 * finds it writable or failed. io_poll asks without a system call whether there is something, in
 * place of which io_poll_ready is called then. All NULL: it is watched no more. Replaces what was
 * set before. Any thread and any callback. The descriptor stays open until it is removed. */
void aio_set_fd_handler(AioContext *ctx, int fd, IOHandler *io_read, IOHandler *io_write,
                        AioPollFn *io_poll, IOHandler *io_poll_ready, void *opaque);

/* ------------------------------------------------------------------------- waiting */

/* Turns a loop until cond is false: that of ctx in its home, the main one in the main thread, which
 * alone may wait for other contexts, and does for all of them if ctx is NULL. True if it was not
 * false at once. Not in a coroutine. */
bool corio_aio_wait_while(AioContext *ctx, bool (*cond)(void *opaque), void *opaque);
/* Makes those who wait look again: to be called after what they wait for has changed. */
void aio_wait_kick(void);
/* Runs cb in a bottom half of ctx and waits until it has run. */
void aio_wait_bh_oneshot(AioContext *ctx, QEMUBHFunc *cb, void *opaque);

/* ---------------------------------------------------------- coroutines on contexts */

/* Queues a coroutine on a context, whose loop enters it. Any thread. First scheduled, first run. */
void aio_co_schedule(AioContext *ctx, Coroutine *co);
/* Gets it going again in ctx: at once, if this is the home of ctx and no coroutine runs; once the
 * running one yields or ends, if one does; else as aio_co_schedule. Any thread. */
void aio_co_enter(AioContext *ctx, Coroutine *co);
/* The same, in the context in which it was entered last. */
void aio_co_wake(Coroutine *co);
/* Goes on in the home of new_ctx; at once, if this is that. */
void coroutine_fn aio_co_reschedule_self(AioContext *new_ctx);

#ifdef __cplusplus
}
#endif

#endif /* CORIO_H */
