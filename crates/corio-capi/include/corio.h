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

#include <pthread.h>
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

/* The two as compilers for x86-64 have them: see the end. Not to be called. */
#ifdef __GNUC__
__attribute__((__cold__))
#endif
void corio_enter_by_jump(Coroutine *co);
#ifdef __GNUC__
__attribute__((__cold__))
#endif
void corio_yield_by_jump(void);

/* The running coroutine; NULL outside of any, where QEMU has one that stands for the thread. */
Coroutine *qemu_coroutine_self(void);
bool qemu_in_coroutine(void);
/* True from being entered until it next yields, also while it has itself entered another. */
bool qemu_coroutine_entered(Coroutine *co);
/* The context in which it was entered last, or else made; NULL if that was none. */
AioContext *qemu_coroutine_get_aio_context(Coroutine *co);

/* Has the pool of stacks keep so many more, or less, than it would. */
void qemu_coroutine_inc_pool_size(unsigned int additional_pool_size);
void qemu_coroutine_dec_pool_size(unsigned int additional_pool_size);

/* ----------------------------------------------------------------------- contexts */

/* A context has one home, a thread that has made it current and calls aio_poll; it is home until it
 * ends, or the context is freed. NULL: there is no descriptor left; *errp says so. */
AioContext *aio_context_new(CorioError **errp);
void aio_context_ref(AioContext *ctx);
/* The last reference frees it: nothing of it may be left, no bottom half, armed timer, job or
 * scheduled coroutine. Not in a turn of its own. */
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
 * set before. Any thread and any callback. The descriptor stays open until it is removed, and what
 * the functions are called with, if another thread than the home removes it, until the home has had
 * a turn. */
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

/* -------------------------------------------------------------------------- clocks */

typedef enum {
    QEMU_CLOCK_REALTIME = 0, /* CLOCK_MONOTONIC */
    QEMU_CLOCK_VIRTUAL = 1,
    QEMU_CLOCK_HOST = 2, /* CLOCK_REALTIME */
    QEMU_CLOCK_VIRTUAL_RT = 3
} QEMUClockType;

/* ---------------------------------------------------------- coroutines on contexts */

/* Queues a coroutine on a context, whose loop enters it. Any thread. First scheduled, first run. It
 * has yielded, or is about to; not one that waits in a function of these that is to wake it. */
void aio_co_schedule(AioContext *ctx, Coroutine *co);
/* Gets it going again in ctx: at once, if this is the home of ctx and no coroutine runs; once the
 * running one yields or ends, if one does; else as aio_co_schedule. Any thread. */
void aio_co_enter(AioContext *ctx, Coroutine *co);
/* The same, in the context in which it was entered last. */
void aio_co_wake(Coroutine *co);
/* Goes on in the home of new_ctx; at once, if this is that. */
void coroutine_fn aio_co_reschedule_self(AioContext *new_ctx);

/* --------------------------------------------------------------------------- locks */

/* A mutex for coroutines of any threads. Unlocking hands it to who has waited longest. */
typedef struct CoMutex {
    uint64_t corio_private[5];
} CoMutex;

void qemu_co_mutex_init(CoMutex *mutex);
void coroutine_fn qemu_co_mutex_lock(CoMutex *mutex);
/* By the coroutine that has locked it. */
void coroutine_fn qemu_co_mutex_unlock(CoMutex *mutex);
/* Aborts unless the running coroutine holds it. */
void coroutine_fn qemu_co_mutex_assert_locked(CoMutex *mutex);

/* Readers share, a writer is alone, all are served in the order in which they came. */
typedef struct CoRwlock {
    uint64_t corio_private[5];
} CoRwlock;

void qemu_co_rwlock_init(CoRwlock *lock);
void coroutine_fn qemu_co_rwlock_rdlock(CoRwlock *lock);
void coroutine_fn qemu_co_rwlock_wrlock(CoRwlock *lock);
/* From reading to writing. It waits its turn: somebody may have written meanwhile. */
void coroutine_fn qemu_co_rwlock_upgrade(CoRwlock *lock);
/* From writing to reading, with nobody writing in between. */
void coroutine_fn qemu_co_rwlock_downgrade(CoRwlock *lock);
void coroutine_fn qemu_co_rwlock_unlock(CoRwlock *lock);

/* -------------------------------------------------------------------------- queues */

/* A lock of any kind, to be given up while something is waited for. */
typedef struct QemuLockable {
    void *object;
    void (*lock)(void *object);
    void (*unlock)(void *object);
} QemuLockable;

/* Coroutines that wait until somebody says go on. A wake that finds nobody is lost. */
typedef struct CoQueue {
    uint64_t corio_private[3];
} CoQueue;

typedef int CoQueueWaitFlags;
#define CO_QUEUE_WAIT_FRONT 1

void qemu_co_queue_init(CoQueue *queue);
/* Gets in line, gives up lock unless that is NULL, waits to be woken, and takes lock again. */
void coroutine_fn qemu_co_queue_wait(CoQueue *queue, QemuLockable *lock);
/* The same; with CO_QUEUE_WAIT_FRONT before all that wait. */
void coroutine_fn qemu_co_queue_wait_flags(CoQueue *queue, QemuLockable *lock,
                                           CoQueueWaitFlags flags);
/* Wakes who has waited longest, as aio_co_wake does. False if nobody waits. */
bool qemu_co_queue_next(CoQueue *queue);
/* Wakes all that wait now, oldest first. */
void qemu_co_queue_restart_all(CoQueue *queue);
bool qemu_co_queue_empty(CoQueue *queue);
/* The same outside of coroutines, where the woken run at once; with lock, which the caller holds,
 * given up meanwhile, unless it is NULL. */
bool qemu_co_enter_next(CoQueue *queue, QemuLockable *lock);
void qemu_co_enter_all(CoQueue *queue, QemuLockable *lock);

#if !defined(__cplusplus)
/* In C the lock may be a CoMutex *, a pthread_mutex_t *, a QemuLockable * or NULL. */
static inline void corio_lock_co_mutex(void *mutex)
{
    qemu_co_mutex_lock((CoMutex *)mutex);
}
static inline void corio_unlock_co_mutex(void *mutex)
{
    qemu_co_mutex_unlock((CoMutex *)mutex);
}
static inline void corio_lock_pthread(void *mutex)
{
    pthread_mutex_lock((pthread_mutex_t *)mutex);
}
static inline void corio_unlock_pthread(void *mutex)
{
    pthread_mutex_unlock((pthread_mutex_t *)mutex);
}
static inline QemuLockable *corio_lockable_none(QemuLockable *room, void *nothing)
{
    (void)room;
    return (QemuLockable *)nothing;
}
static inline QemuLockable *corio_lockable_itself(QemuLockable *room, QemuLockable *lock)
{
    (void)room;
    return lock;
}
static inline QemuLockable *corio_lockable_co_mutex(QemuLockable *room, CoMutex *mutex)
{
    room->object = mutex;
    room->lock = corio_lock_co_mutex;
    room->unlock = corio_unlock_co_mutex;
    return room;
}
static inline QemuLockable *corio_lockable_pthread(QemuLockable *room, pthread_mutex_t *mutex)
{
    room->object = mutex;
    room->lock = corio_lock_pthread;
    room->unlock = corio_unlock_pthread;
    return room;
}
#define QEMU_MAKE_LOCKABLE(x)                                                                      \
    _Generic((x),                                                                                  \
        void *: corio_lockable_none,                                                               \
        QemuLockable *: corio_lockable_itself,                                                     \
        CoMutex *: corio_lockable_co_mutex,                                                        \
        pthread_mutex_t *: corio_lockable_pthread)(&(QemuLockable){NULL, NULL, NULL}, (x))
#define qemu_co_queue_wait(queue, lock) qemu_co_queue_wait((queue), QEMU_MAKE_LOCKABLE(lock))
#define qemu_co_queue_wait_flags(queue, lock, flags)                                               \
    qemu_co_queue_wait_flags((queue), QEMU_MAKE_LOCKABLE(lock), (flags))
#define qemu_co_enter_next(queue, lock) qemu_co_enter_next((queue), QEMU_MAKE_LOCKABLE(lock))
#define qemu_co_enter_all(queue, lock) qemu_co_enter_all((queue), QEMU_MAKE_LOCKABLE(lock))
#endif

/* ------------------------------------------------------------- sleeping, time-outs */

/* A place for one coroutine to sleep in. */
typedef struct QemuCoSleep {
    uint64_t corio_private[1];
} QemuCoSleep;

/* Until it is woken. */
void coroutine_fn qemu_co_sleep(QemuCoSleep *w);
/* Ends the sleep as aio_co_wake does; if nobody sleeps there, nothing. Any thread. */
void qemu_co_sleep_wake(QemuCoSleep *w);
/* For so many nanoseconds of a clock. */
void coroutine_fn qemu_co_sleep_ns(QEMUClockType type, int64_t ns);
/* The same, or until it is woken. */
void coroutine_fn qemu_co_sleep_ns_wakeable(QemuCoSleep *w, QEMUClockType type, int64_t ns);

typedef void CleanupFunc(void *opaque);

/* Runs entry in a coroutine of its own and waits until it has ended: 0; at most for timeout_ns, or
 * without limit if that is 0: -ETIMEDOUT. Then entry goes on by itself, and clean, unless that is
 * NULL, is called after it. */
int coroutine_fn qemu_co_timeout(CoroutineEntry *entry, void *opaque, uint64_t timeout_ns,
                                 CleanupFunc *clean);

/* ------------------------------------------------------------------------- sockets */

/* Yields until fd is readable, hung up or failed. Replaces what aio_set_fd_handler has set for it.
 * Several coroutines may wait, here and in those below; all go on. */
void coroutine_fn yield_until_fd_readable(int fd);

/* Receive and send so many bytes, and yield meanwhile. What they return is less at the end of what
 * the peer sends, and after an error that came later; it is a negative errno if one came first. The
 * socket may be a blocking one. */
ssize_t coroutine_fn corio_co_recv(int sockfd, void *buf, size_t bytes);
ssize_t coroutine_fn corio_co_send(int sockfd, const void *buf, size_t bytes);
/* The same from offset on in what the vectors make together. */
ssize_t coroutine_fn corio_co_recvv(int sockfd, const struct iovec *iov, unsigned int iov_cnt,
                                    size_t offset, size_t bytes);
ssize_t coroutine_fn corio_co_sendv(int sockfd, const struct iovec *iov, unsigned int iov_cnt,
                                    size_t offset, size_t bytes);

/* --------------------------------------------------------- parameters of a context */

/* How long a turn polls before it waits: at most max_ns, in steps that grow and shrink by these
 * factors; a grow of 0 is the default, 2; a shrink of 0 is to nothing at once. What is out of range
 * changes nothing, and *errp says so. Any thread, at any time, as all of these. */
void aio_context_set_poll_params(AioContext *ctx, int64_t max_ns, int64_t grow, int64_t shrink,
                                 CorioError **errp);
/* How many disk requests gather before they are submitted together: 1 to 256; 0: as many as the
 * engine likes. */
void aio_context_set_aio_params(AioContext *ctx, int64_t max_batch);
/* How many worker threads are kept, and how many there are at most: 1 to 64, and not below min. */
void aio_context_set_thread_pool_params(AioContext *ctx, int64_t min, int64_t max,
                                        CorioError **errp);

/* -------------------------------------------------------------------------- timers */

/* What a unit of a timer's time is, in nanoseconds. */
#define SCALE_MS 1000000
#define SCALE_US 1000
#define SCALE_NS 1
#define NANOSECONDS_PER_SECOND 1000000000LL

/* Kept, and without effect: there is no record and replay. */
#define QEMU_TIMER_ATTR_EXTERNAL (1 << 0)
#define QEMU_TIMER_ATTR_ALL (-1)

typedef void QEMUTimerCB(void *opaque);
/* A context is its own group of timer lists. */
typedef AioContext QEMUTimerListGroup;

/* A timer, which the caller allocates. Once it is cancelled, or its function is called, nothing
 * looks at it any more, and it may be freed. */
typedef struct QEMUTimer {
    uint64_t corio_private[6];
} QEMUTimer;

int64_t qemu_clock_get_ns(QEMUClockType type);
/* Has a clock's timers run, or not: they stay armed, and none of their functions runs when this has
 * returned. Not from one of them. */
void qemu_clock_enable(QEMUClockType type, bool enabled);

static inline int64_t qemu_clock_get_us(QEMUClockType type)
{
    return qemu_clock_get_ns(type) / SCALE_US;
}
static inline int64_t qemu_clock_get_ms(QEMUClockType type)
{
    return qemu_clock_get_ns(type) / SCALE_MS;
}

/* Makes ts a timer that runs cb in the home of a context, which must stay as long as the timer is
 * used; timer_list_group NULL: the main one. It must not be armed. */
void timer_init_full(QEMUTimer *ts, QEMUTimerListGroup *timer_list_group, QEMUClockType type,
                     int scale, int attributes, QEMUTimerCB *cb, void *opaque);
void aio_timer_init(AioContext *ctx, QEMUTimer *ts, QEMUClockType type, int scale, QEMUTimerCB *cb,
                    void *opaque);
/* The same on the heap, for timer_free. */
QEMUTimer *aio_timer_new(AioContext *ctx, QEMUClockType type, int scale, QEMUTimerCB *cb,
                         void *opaque);

#define timer_init(ts, type, scale, cb, opaque)                                                    \
    timer_init_full((ts), NULL, (type), (scale), 0, (cb), (opaque))
#define timer_init_ns(ts, type, cb, opaque) timer_init((ts), (type), SCALE_NS, (cb), (opaque))
#define timer_init_us(ts, type, cb, opaque) timer_init((ts), (type), SCALE_US, (cb), (opaque))
#define timer_init_ms(ts, type, cb, opaque) timer_init((ts), (type), SCALE_MS, (cb), (opaque))

/* It is used no more; it must not be armed. */
void timer_deinit(QEMUTimer *ts);
/* Cancels and frees one of aio_timer_new, or NULL. */
void timer_free(QEMUTimer *ts);

/* Arms it, or arms it anew, for when its clock shows expire_time, in the timer's unit or in
 * nanoseconds. What has passed already is due in the next turn. Any thread; also in cb. */
void timer_mod(QEMUTimer *ts, int64_t expire_time);
void timer_mod_ns(QEMUTimer *ts, int64_t expire_time);
/* The same, unless it is armed for that time or earlier. */
void timer_mod_anticipate(QEMUTimer *ts, int64_t expire_time);
void timer_mod_anticipate_ns(QEMUTimer *ts, int64_t expire_time);
/* Cancels it. Any thread; off the home of its context cb may be running still. */
void timer_del(QEMUTimer *ts);
/* Whether it is armed. */
bool timer_pending(QEMUTimer *ts);
/* Whether it is armed, and due when its clock shows current_time, in its unit. */
bool timer_expired(QEMUTimer *ts, int64_t current_time);
/* When it is due; -1: it is not armed. */
int64_t timer_expire_time_ns(QEMUTimer *ts);

/* ----------------------------------------------------------------- event notifiers */

/* A descriptor to be notified by, which the caller allocates. All zeros: it has none. */
typedef struct EventNotifier {
    uint64_t corio_private[2];
} EventNotifier;

typedef void EventNotifierHandler(EventNotifier *e);

/* Opens an eventfd, set if active. 0, or a negative errno. */
int event_notifier_init(EventNotifier *e, int active);
/* Takes a descriptor that stays the caller's, and ought not to block. */
void event_notifier_init_fd(EventNotifier *e, int fd);
/* Closes what event_notifier_init has opened. */
void event_notifier_cleanup(EventNotifier *e);
int event_notifier_get_fd(const EventNotifier *e);
/* Makes it readable. 0, or a negative errno. Any thread, and signal handlers. */
int event_notifier_set(EventNotifier *e);
/* Makes it unreadable; 1 if it was readable, else 0. */
int event_notifier_test_and_clear(EventNotifier *e);

/* As aio_set_fd_handler, with functions that get the notifier, which stays until it is removed. */
void aio_set_event_notifier(AioContext *ctx, EventNotifier *notifier, EventNotifierHandler *io_read,
                            AioPollFn *io_poll, EventNotifierHandler *io_poll_ready);
/* What is called when a turn begins to poll for a notifier that has a handler, and when it ends. */
void aio_set_event_notifier_poll(AioContext *ctx, EventNotifier *notifier,
                                 EventNotifierHandler *io_poll_begin,
                                 EventNotifierHandler *io_poll_end);

/* --------------------------------------------------------------------- thread pool */

typedef struct ThreadPoolAio ThreadPoolAio;
typedef int ThreadPoolFunc(void *opaque);
typedef void BlockCompletionFunc(void *opaque, int ret);

/* Runs func on a worker of this thread's context, then cb, unless that is NULL, with what it has
 * returned, here. What is returned is good until cb returns, and may be ignored. In the home of a
 * context. */
ThreadPoolAio *thread_pool_submit_aio(ThreadPoolFunc *func, void *arg, BlockCompletionFunc *cb,
                                      void *opaque);
/* Takes it back, if no worker has begun with it: func is not called, and cb gets -ECANCELED. */
void corio_aio_cancel_async(ThreadPoolAio *aio);
/* The same, and turns the loop until cb has returned. Where corio_aio_wait_while may be called, but
 * not in cb. */
void corio_aio_cancel(ThreadPoolAio *aio);
/* Runs func on a worker, and returns what it has returned. */
int coroutine_fn thread_pool_submit_co(ThreadPoolFunc *func, void *arg);

/* ------------------------------------------------------------------ deferred calls */

/* Calls fn(opaque) at the end of this thread's section; at once outside of any. The same call is
 * made once. */
void defer_call(void (*fn)(void *opaque), void *opaque);
/* A section, to which what is inside of it belongs, and in which a coroutine must not yield. Disk
 * requests that coroutines make in it are submitted together at its end. */
void defer_call_begin(void);
void defer_call_end(void);

/* ----------------------------------------------------------- lockcnt, event, shres */

/* A counter of visitors and a lock. While it is locked with no visitor, none comes in. */
typedef struct QemuLockCnt {
    uint64_t corio_private[1];
} QemuLockCnt;

void qemu_lockcnt_init(QemuLockCnt *lockcnt);
/* It must be unlocked, without visitors. */
void qemu_lockcnt_destroy(QemuLockCnt *lockcnt);
/* Comes in; waits while it is locked and there is no other visitor. */
void qemu_lockcnt_inc(QemuLockCnt *lockcnt);
/* Leaves. */
void qemu_lockcnt_dec(QemuLockCnt *lockcnt);
/* Leaves; true if it was the last visitor, and it is locked now. */
bool qemu_lockcnt_dec_and_lock(QemuLockCnt *lockcnt);
/* The same, but stays if there are others. */
bool qemu_lockcnt_dec_if_lock(QemuLockCnt *lockcnt);
void qemu_lockcnt_lock(QemuLockCnt *lockcnt);
void qemu_lockcnt_unlock(QemuLockCnt *lockcnt);
/* Unlocks it and comes in, with nobody in between. */
void qemu_lockcnt_inc_and_unlock(QemuLockCnt *lockcnt);
unsigned int qemu_lockcnt_count(QemuLockCnt *lockcnt);

/* An event: set or not. All zeros: not. */
typedef struct QemuEvent {
    uint64_t corio_private[4];
} QemuEvent;

void qemu_event_init(QemuEvent *ev, bool init);
void qemu_event_set(QemuEvent *ev);
void qemu_event_reset(QemuEvent *ev);
/* Waits until it is set: a coroutine of a context yields, all else blocks. */
void qemu_event_wait(QemuEvent *ev);
/* Nobody may wait for it; who has set it may be on the way back. */
void qemu_event_destroy(QemuEvent *ev);

/* A number of units, which coroutines of any threads take and give back; first come, first served.
 */
typedef struct SharedResource SharedResource;

SharedResource *shres_create(uint64_t total);
/* All of them must have been given back. */
void shres_destroy(SharedResource *s);
/* Takes n; waits until there are so many, and all who came before are served. */
void coroutine_fn co_get_from_shres(SharedResource *s, uint64_t n);
/* The same without waiting: false if it would have to. */
bool co_try_get_from_shres(SharedResource *s, uint64_t n);
void co_put_to_shres(SharedResource *s, uint64_t n);

/* ------------------------------------------------------------- threads with a loop */

typedef struct CorioIOThread CorioIOThread;

/* Starts a thread that runs a context of its own, its signals blocked. NULL: *errp says why not. */
CorioIOThread *corio_iothread_new(const char *name, CorioError **errp);
/* Its context, which is there until it is joined, unless referred to. */
AioContext *corio_iothread_get_aio_context(CorioIOThread *iothread);
/* Has it end after a turn that runs what was scheduled before. Any thread. */
void corio_iothread_stop(CorioIOThread *iothread);
/* Stops it, waits for its end, and frees it. Not in the thread itself. */
void corio_iothread_join(CorioIOThread *iothread);

/* --------------------------------------------------------------------------- disks */

/* What carries a request. */
typedef enum CorioEngine {
    CORIO_ENGINE_AUTO = 0,      /* The best that works. */
    CORIO_ENGINE_IO_URING = 1,  /* io_uring; a negative errno where it is refused. */
    CORIO_ENGINE_LINUX_AIO = 2, /* io_submit(2); -EINVAL if the file is not open with O_DIRECT. */
    CORIO_ENGINE_THREADS = 3    /* A worker that makes the system call. */
} CorioEngine;

/* Reads into all buffers in turn, up to 1024. How many bytes were read, less than asked for only at
 * the end of the file; or a negative errno. fd is a file or a block device. */
ssize_t coroutine_fn corio_co_preadv(int fd, const struct iovec *iov, int iovcnt, int64_t offset,
                                     CorioEngine engine);
/* Writes all of them. How many bytes, or a negative errno. */
ssize_t coroutine_fn corio_co_pwritev(int fd, const struct iovec *iov, int iovcnt, int64_t offset,
                                      CorioEngine engine);
/* Waits until what was written before is on the medium. 0, or a negative errno. */
int coroutine_fn corio_co_fdatasync(int fd, CorioEngine engine);
/* Gives a range back, which reads as zeroes then; on a device perhaps as before. */
int coroutine_fn corio_co_discard(int fd, int64_t offset, int64_t bytes, CorioEngine engine);

/* ----------------------------------------------------------- entering and yielding */

/* A call would have the coroutine's return predicted from what the thread has called since, and each
 * function that yields save registers that its caller may not use. So where the compiler can be told
 * what is lost, a call of the two is a jump there and another one back. They are functions all the
 * same: a pointer to one is as good, and so is what was compiled with CORIO_BY_CALL defined, which
 * needs no assembly. rbx, rbp and the stack, 128 bytes below its end included, are kept.
 *
 * GCC can be told of AVX-512's registers only where the whole file is compiled for it: where a single
 * function is that enters or yields (by an attribute or a pragma), the file needs CORIO_BY_CALL. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||                         \
    __has_feature(memory_sanitizer)
#define CORIO_SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CORIO_SANITIZED
#endif

/* Nor where the compiler has fewer registers, which it may not name then, or more than these. */
#if !defined(__SSE2__) || !defined(__MMX__) || defined(_SOFT_FLOAT) || defined(__APX_F__) ||       \
    defined(__EGPR__)
#define CORIO_OTHER_REGISTERS
#endif

#if defined(__x86_64__) && defined(__LP64__) && defined(__GNUC__) && !defined(CORIO_SANITIZED) &&  \
    !defined(CORIO_OTHER_REGISTERS) && !defined(CORIO_BY_CALL)

#if defined(__AVX512F__) || defined(__clang__)
#define CORIO_LOST_VECTORS                                                                         \
    , "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25",    \
        "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k0", "k1", "k2", "k3", "k4", "k5",  \
        "k6", "k7"
#else
#define CORIO_LOST_VECTORS
#endif
#define CORIO_LOST                                                                                 \
    "rax", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0",      \
        "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",  \
        "xmm12", "xmm13", "xmm14", "xmm15", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)",     \
        "st(6)", "st(7)", "mm0", "mm1", "mm2", "mm3", "mm4", "mm5", "mm6", "mm7", "cc",            \
        "memory" CORIO_LOST_VECTORS

/* In AT&T's notation, or Intel's. */
#define CORIO_JUMP(to)                                                                             \
    "{leaq 2f(%%rip), %%r9|lea r9, 2f[rip]}\n\t"                                                   \
    "{jmpq *" to "@GOTPCREL(%%rip)|jmp QWORD PTR " to "@GOTPCREL[rip]}\n"                          \
    "2:"
/* Put in place of calls; all else means the function in the library. The jump never goes to the label.
 * But without the call that is there GCC would take it for granted that none of the file's functions is
 * called meanwhile, and that its static variables stay as they are. */
#define CORIO_IN_PLACE inline __attribute__((__gnu_inline__, __always_inline__))

extern CORIO_IN_PLACE void qemu_coroutine_enter(Coroutine *co)
{
    __asm__ goto(CORIO_JUMP("corio_enter_by_jump") : : "D"(co) : CORIO_LOST : elsewhere);
    return;
elsewhere:
    corio_enter_by_jump(co);
}

extern CORIO_IN_PLACE void coroutine_fn qemu_coroutine_yield(void)
{
    __asm__ goto(CORIO_JUMP("corio_yield_by_jump") : : : "rdi", CORIO_LOST : elsewhere);
    return;
elsewhere:
    corio_yield_by_jump();
}
#endif

#ifdef __cplusplus
}
#endif

#endif /* CORIO_H */
