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
