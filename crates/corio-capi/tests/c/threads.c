/* What threads have for one another: notifiers, loops, workers, events, counters, shares. */
#define _GNU_SOURCE
#include <fcntl.h>

#include "test.h"

/* SPEC C3 */
ASSERT_WORDS(EventNotifier, 2);
ASSERT_WORDS(QemuLockCnt, 1);
ASSERT_WORDS(QemuEvent, 4);

#define VISITORS 4
#define VISITS 2000

static AioContext *ctx;
static char order[64];

static void start(CoroutineEntry *entry, void *opaque)
{
    qemu_coroutine_enter(qemu_coroutine_create(entry, opaque));
}

static void note(void *opaque)
{
    strcat(order, opaque);
}

static void nothing(void *opaque)
{
    (void)opaque;
}

/* ------------------------------------------------------------------ event notifiers */

static int notified, begun, ends;

static void on_notified(EventNotifier *e)
{
    CHECK(event_notifier_test_and_clear(e) == 1);
    notified++;
}

static bool is_set(void *opaque)
{
    (void)opaque;
    return false;
}

static void on_begin(EventNotifier *e)
{
    CHECK(event_notifier_get_fd(e) >= 0);
    begun++;
}

static void on_end(EventNotifier *e)
{
    (void)e;
    ends++;
}

/* SPEC H4 */
static void notifiers_are_set_and_cleared(void)
{
    EventNotifier e = {{0}}, of_fd;
    int pipe_fds[2];

    CHECK(event_notifier_set(&e) == -EBADF && event_notifier_test_and_clear(&e) == 0);
    event_notifier_cleanup(&e); /* Nothing. */
    CHECK(event_notifier_init(&e, 1) == 0);
    CHECK(fcntl(event_notifier_get_fd(&e), F_GETFD) == FD_CLOEXEC);
    CHECK(event_notifier_test_and_clear(&e) == 1 && event_notifier_test_and_clear(&e) == 0);
    CHECK(event_notifier_set(&e) == 0 && event_notifier_set(&e) == 0);
    CHECK(event_notifier_test_and_clear(&e) == 1 && event_notifier_test_and_clear(&e) == 0);

    event_notifier_init_fd(&of_fd, event_notifier_get_fd(&e));
    CHECK(event_notifier_set(&of_fd) == 0 && event_notifier_test_and_clear(&e) == 1);
    event_notifier_cleanup(&of_fd);
    CHECK(event_notifier_set(&of_fd) == -EBADF);
    CHECK(event_notifier_set(&e) == 0); /* It was not closed. */
    event_notifier_cleanup(&e);

    CHECK(pipe2(pipe_fds, O_NONBLOCK) == 0);
    event_notifier_init_fd(&of_fd, pipe_fds[0]);
    CHECK(event_notifier_set(&of_fd) == -EBADF); /* That end is for reading. */
    for (int i = 0; i < 100; i++) {
        CHECK(write(pipe_fds[1], "12345678", 8) == 8);
    }
    CHECK(event_notifier_test_and_clear(&of_fd) == 1);
    CHECK(event_notifier_test_and_clear(&of_fd) == 0); /* All of it was read. */
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

/* SPEC H4, P5 */
static void notifiers_have_handlers(void)
{
    EventNotifier e;

    CHECK(event_notifier_init(&e, 0) == 0);
    aio_set_event_notifier(ctx, &e, on_notified, NULL, NULL);
    CHECK(!aio_poll(ctx, false));
    event_notifier_set(&e);
    CHECK(aio_poll(ctx, true) && notified == 1 && !aio_poll(ctx, false));

    aio_set_event_notifier(ctx, &e, on_notified, is_set, on_notified);
    aio_set_event_notifier_poll(ctx, &e, on_begin, on_end);
    aio_context_set_poll_params(ctx, SCALE_MS, 0, 0, NULL);
    for (int i = 2; i < 100 && begun == 0; i++) {
        event_notifier_set(&e); /* With events it begins to be polled for. */
        while (notified < i) {
            aio_poll(ctx, true);
        }
        aio_bh_schedule_oneshot(ctx, nothing, NULL);
        aio_poll(ctx, true);
    }
    CHECK(begun == ends);
#ifdef POLL_H /* SPEC G2: GLib waits, not we. */
    CHECK(begun == 0);
#else
    CHECK(begun > 0);
#endif
    aio_context_set_poll_params(ctx, 0, 2, 0, NULL);
    aio_set_event_notifier(ctx, &e, NULL, NULL, NULL);
    while (aio_poll(ctx, false)) {
        /* New parameters are taken over by a bottom half. */
    }
    event_notifier_set(&e);
    CHECK(!aio_poll(ctx, false));
    event_notifier_cleanup(&e);
}

static void notifier_null(void)
{
    event_notifier_set(NULL);
}

static void notifier_without_fd(void)
{
    EventNotifier e = {{0}};

    event_notifier_get_fd(&e);
}

static void notifier_of_no_fd(void)
{
    EventNotifier e;

    event_notifier_init_fd(&e, -1);
}

static void notifier_not_open(void)
{
    EventNotifier e = {{0}};

    aio_set_event_notifier(ctx, &e, on_notified, NULL, NULL);
}

static void notifier_without_handler(void)
{
    EventNotifier e;

    event_notifier_init(&e, 0);
    aio_set_event_notifier_poll(ctx, &e, on_begin, on_end);
}

static void notifiers_misused(void)
{
    CHECK_DIES(notifier_null, "event_notifier_set: the event notifier is NULL");
    CHECK_DIES(notifier_without_fd,
               "event_notifier_get_fd: the event notifier was not initialised");
    CHECK_DIES(notifier_of_no_fd, "event_notifier_init_fd: -1 is no descriptor");
    CHECK_DIES(notifier_not_open, "aio_set_event_notifier: the event notifier was not initialised");
    CHECK_DIES(notifier_without_handler,
               "aio_set_event_notifier_poll: the event notifier has no handler");
}

/* ---------------------------------------------------------------------- thread pool */

static QemuEvent gate, begun_with; /* All zeros: not set. */
static int worked, results[4], completions;

static int works(void *opaque)
{
    __atomic_fetch_add(&worked, 1, __ATOMIC_SEQ_CST);
    return *(int *)opaque;
}

static int waits_at_the_gate(void *opaque)
{
    qemu_event_set(&begun_with);
    qemu_event_wait(&gate);
    return *(int *)opaque;
}

static void on_completion(void *opaque, int ret)
{
    CHECK(qemu_get_current_aio_context() == ctx && !qemu_in_coroutine());
    *(int *)opaque = ret;
    completions++;
}

/* SPEC E3 */
static void a_callback_gets_the_result(void)
{
    int seven = 7, result = 0;

    completions = 0;
    CHECK(thread_pool_submit_aio(works, &seven, on_completion, &result) != NULL);
    CHECK(completions == 0);
    while (completions == 0) {
        aio_poll(ctx, true);
    }
    CHECK(result == 7);
}

/* SPEC E3: a job without a callback ends a turn as any other. */
static void nobody_need_get_the_result(void)
{
    int one = 1;

    worked = 0;
    CHECK(thread_pool_submit_aio(works, &one, NULL, NULL) != NULL);
    CHECK(aio_poll(ctx, true));
    CHECK(worked == 1);
}

/* SPEC E3: what has not begun gets -ECANCELED, what has goes on to its end. */
static void jobs_are_cancelled(void)
{
    ThreadPoolAio *held, *behind, *other;
    int five = 5;
    CorioError *error = NULL;

    aio_context_set_thread_pool_params(ctx, 0, 1, &error);
    CHECK(error == NULL);
    completions = worked = 0;
    memset(results, 0, sizeof(results));
    qemu_event_init(&begun_with, false);
    held = thread_pool_submit_aio(waits_at_the_gate, &five, on_completion, &results[0]);
    qemu_event_wait(&begun_with); /* On a loop's thread: it blocks. */
    behind = thread_pool_submit_aio(works, &five, on_completion, &results[1]);
    other = thread_pool_submit_aio(works, &five, on_completion, &results[2]);
    corio_aio_cancel_async(behind);
    CHECK(completions == 0); /* The callback is not called from in there. */
    corio_aio_cancel(other);
    CHECK(completions >= 1 && results[2] == -ECANCELED);
    corio_aio_cancel_async(held); /* Too late. */
    qemu_event_set(&gate);
    corio_aio_cancel(held);
    CHECK(completions == 3 && results[0] == 5 && results[1] == -ECANCELED && worked == 0);
    aio_context_set_thread_pool_params(ctx, 0, 64, NULL);
}

static void submits_in_a_coroutine(void *opaque)
{
    int *nine = opaque;

    CHECK(thread_pool_submit_co(works, nine) == 9);
    *nine = 0;
}

/* SPEC E3 */
static void a_coroutine_gets_the_result(void)
{
    int nine = 9;

    start(submits_in_a_coroutine, &nine);
    while (nine != 0) {
        aio_poll(ctx, true);
    }
}

static void co_outside(void)
{
    thread_pool_submit_co(works, NULL);
}

static void *submits(void *opaque)
{
    thread_pool_submit_aio(works, opaque, on_completion, opaque);
    return NULL;
}

static void aio_without_context(void)
{
    pthread_t thread;

    pthread_create(&thread, NULL, submits, NULL);
    pthread_join(thread, NULL);
}

static void cancels_nothing(void)
{
    corio_aio_cancel_async(NULL);
}

static void cancels_in_a_coroutine(void *opaque)
{
    int result;

    corio_aio_cancel(thread_pool_submit_aio(works, opaque, on_completion, &result));
}

static void cancel_in_a_coroutine(void)
{
    int one = 1;

    start(cancels_in_a_coroutine, &one);
}

static ThreadPoolAio *own;

static void cancels_its_own(void *opaque, int ret)
{
    (void)opaque;
    (void)ret;
    corio_aio_cancel(own);
}

/* In a thread of its own: a child has the workers of its own contexts only. */
static void *cancels_in_the_callback(void *opaque)
{
    AioContext *other = aio_context_new(NULL);
    int one = 1;

    qemu_set_current_aio_context(other);
    own = thread_pool_submit_aio(works, &one, cancels_its_own, NULL);
    while (opaque == NULL) {
        aio_poll(other, true);
    }
    return opaque;
}

static void cancelled_by_its_callback(void)
{
    pthread_t thread;

    CHECK(pthread_create(&thread, NULL, cancels_in_the_callback, NULL) == 0);
    pthread_join(thread, NULL);
}

static void the_pool_misused(void)
{
    CHECK_DIES(co_outside, "thread_pool_submit_co: called outside a coroutine");
    CHECK_DIES(aio_without_context, "thread_pool_submit_aio: this thread has no context");
    CHECK_DIES(cancelled_by_its_callback, "corio_aio_cancel: called by the job's own callback, for "
                                          "whose end it would wait");
    CHECK_DIES(cancels_nothing, "corio_aio_cancel_async: the job is NULL");
    CHECK_DIES(cancel_in_a_coroutine, "corio_aio_cancel: called in a coroutine, on whose stack the "
                                      "loop would run");
}

/* ------------------------------------------------------------------- deferred calls */

static void defers_more(void *opaque)
{
    note(opaque);
    defer_call(note, "n"); /* Outside of the section by now. */
}

static void calls_wait_for_the_end(void)
{
    order[0] = 0;
    defer_call(note, "0");
    CHECK(strcmp(order, "0") == 0);
    defer_call_begin();
    defer_call(note, "1");
    defer_call_begin();
    defer_call(note, "2");
    defer_call(note, "1"); /* The same: once. */
    defer_call_end();
    defer_call(defers_more, "3");
    CHECK(strcmp(order, "0") == 0);
    defer_call_end();
    CHECK(strcmp(order, "0123n") == 0);
}

static void end_without_begin(void)
{
    defer_call_end();
}

static void defers_nothing(void)
{
    defer_call(NULL, NULL);
}

static void deferring_misused(void)
{
    CHECK_DIES(end_without_begin, "defer_call_end: there was no defer_call_begin");
    CHECK_DIES(defers_nothing, "defer_call: the function is NULL");
}

/* -------------------------------------------------------------- lockcnt, event, shres */

static QemuLockCnt lockcnt; /* All zeros is free. */
static int *shown;

static void *visits(void *unused)
{
    for (int i = 0; i < VISITS; i++) {
        qemu_lockcnt_inc(&lockcnt);
        if (__atomic_load_n(&shown, __ATOMIC_ACQUIRE) != NULL) {
            CHECK(*__atomic_load_n(&shown, __ATOMIC_ACQUIRE) == 42);
        }
        if (qemu_lockcnt_dec_and_lock(&lockcnt)) {
            /* Alone: what visitors see may be freed, and made anew. */
            free(shown);
            shown = malloc(sizeof(*shown));
            *shown = 42;
            qemu_lockcnt_unlock(&lockcnt);
        }
    }
    return unused;
}

/* SPEC L6 */
static void visitors_count_and_writers_lock(void)
{
    pthread_t threads[VISITORS];

    CHECK(qemu_lockcnt_count(&lockcnt) == 0);
    qemu_lockcnt_init(&lockcnt);
    qemu_lockcnt_inc(&lockcnt);
    qemu_lockcnt_inc(&lockcnt);
    CHECK(qemu_lockcnt_count(&lockcnt) == 2);
    CHECK(!qemu_lockcnt_dec_if_lock(&lockcnt) && qemu_lockcnt_count(&lockcnt) == 2);
    qemu_lockcnt_dec(&lockcnt);
    CHECK(qemu_lockcnt_dec_if_lock(&lockcnt) && qemu_lockcnt_count(&lockcnt) == 0);
    qemu_lockcnt_inc_and_unlock(&lockcnt);
    CHECK(qemu_lockcnt_count(&lockcnt) == 1);
    qemu_lockcnt_lock(&lockcnt); /* With a visitor about. */
    qemu_lockcnt_inc(&lockcnt);
    qemu_lockcnt_unlock(&lockcnt);
    CHECK(!qemu_lockcnt_dec_and_lock(&lockcnt));
    CHECK(qemu_lockcnt_dec_and_lock(&lockcnt));
    qemu_lockcnt_unlock(&lockcnt);
    qemu_lockcnt_destroy(&lockcnt);

    for (int i = 0; i < VISITORS; i++) {
        CHECK(pthread_create(&threads[i], NULL, visits, NULL) == 0);
    }
    for (int i = 0; i < VISITORS; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK(qemu_lockcnt_count(&lockcnt) == 0 && shown != NULL);
    free(shown);
}

static void no_visitor(void)
{
    qemu_lockcnt_dec(&lockcnt);
}

static void not_locked(void)
{
    qemu_lockcnt_unlock(&lockcnt);
}

static void not_locked_either(void)
{
    qemu_lockcnt_inc_and_unlock(&lockcnt);
}

static void destroyed_in_use(void)
{
    qemu_lockcnt_inc(&lockcnt);
    qemu_lockcnt_destroy(&lockcnt);
}

static void lockcnt_misused(void)
{
    CHECK_DIES(no_visitor, "qemu_lockcnt_dec: there is no visitor");
    CHECK_DIES(not_locked, "qemu_lockcnt_unlock: it is not locked");
    CHECK_DIES(not_locked_either, "qemu_lockcnt_inc_and_unlock: it is not locked");
    CHECK_DIES(destroyed_in_use, "qemu_lockcnt_destroy: it is in use");
}

/* ---- */

static QemuEvent there, back;
static int letter;

static void *answers(void *unused)
{
    for (int i = 1; i <= 500; i++) {
        qemu_event_wait(&there);
        qemu_event_reset(&there);
        CHECK(letter == i);
        qemu_event_set(&back);
    }
    return unused;
}

static void waits_in_a_coroutine(void *opaque)
{
    note("<");
    qemu_event_wait(opaque);
    note(">");
}

/* SPEC L5 */
static void events_are_waited_for(void)
{
    QemuEvent event;
    pthread_t thread;

    qemu_event_init(&event, true);
    qemu_event_wait(&event); /* It is set. */
    qemu_event_reset(&event);

    order[0] = 0;
    start(waits_in_a_coroutine, &event);
    start(waits_in_a_coroutine, &event);
    CHECK(strcmp(order, "<<") == 0); /* The thread is not blocked. */
    qemu_event_set(&event);
    while (strlen(order) < 4) {
        aio_poll(ctx, true);
    }
    qemu_event_destroy(&event);

    CHECK(pthread_create(&thread, NULL, answers, NULL) == 0);
    for (int i = 1; i <= 500; i++) {
        letter = i;
        qemu_event_set(&there);
        qemu_event_wait(&back);
        qemu_event_reset(&back);
    }
    pthread_join(thread, NULL);
}

static void *waits_in_a_coroutine_of_no_loop(void *opaque)
{
    start(waits_in_a_coroutine, opaque);
    return NULL;
}

/* SPEC L5: where no loop would enter it again, a coroutine blocks its thread. */
static void an_event_ends_a_wait_without_a_loop(void)
{
    QemuEvent event;
    pthread_t thread;

    order[0] = 0;
    qemu_event_init(&event, false);
    CHECK(pthread_create(&thread, NULL, waits_in_a_coroutine_of_no_loop, &event) == 0);
    while (__atomic_load_n(&order[0], __ATOMIC_ACQUIRE) != '<') {
        sched_yield();
    }
    qemu_event_set(&event);
    pthread_join(thread, NULL);
    CHECK(strcmp(order, "<>") == 0);
}

static void sets_true(void *opaque)
{
    *(bool *)opaque = true;
}

static void *sets(void *opaque)
{
    qemu_event_set(opaque);
    return NULL;
}

/* SPEC L5: whoever waited may free the event, though its setter is not back yet. */
static void an_event_may_go_once_it_was_waited_for(void)
{
    for (int i = 0; i < 300; i++) {
        QemuEvent *event = malloc(sizeof(*event));
        pthread_t thread;

        qemu_event_init(event, false);
        CHECK(pthread_create(&thread, NULL, sets, event) == 0);
        qemu_event_wait(event);
        qemu_event_destroy(event);
        memset(event, 0xff, sizeof(*event));
        free(event);
        pthread_join(thread, NULL);
    }
}

static void destroyed_event(void)
{
    start(waits_in_a_coroutine, &there);
    qemu_event_destroy(&there);
}

static void event_null(void)
{
    qemu_event_set(NULL);
}

static void events_misused(void)
{
    CHECK_DIES(destroyed_event, "qemu_event_destroy: somebody waits for it");
    CHECK_DIES(event_null, "qemu_event_set: the event is NULL");
}

/* ---- */

static SharedResource *shares;

static void takes_three(void *opaque)
{
    co_get_from_shres(shares, 3);
    note(opaque);
    qemu_coroutine_yield();
    co_put_to_shres(shares, 3);
}

static void takes_one(void *opaque)
{
    co_get_from_shres(shares, 1);
    note(opaque);
    co_put_to_shres(shares, 1);
}

/* SPEC L5: first come, first served. */
static void shares_are_taken_in_turn(void)
{
    Coroutine *first = qemu_coroutine_create(takes_three, "a");
    Coroutine *second = qemu_coroutine_create(takes_three, "b");

    order[0] = 0;
    shares = shres_create(4);
    qemu_coroutine_enter(first);
    qemu_coroutine_enter(second);
    start(takes_one, "c"); /* There is one, but b came first. */
    CHECK(strcmp(order, "a") == 0 && !co_try_get_from_shres(shares, 1));
    qemu_coroutine_enter(first);
    while (strlen(order) < 3) {
        aio_poll(ctx, true);
    }
    CHECK(strcmp(order, "abc") == 0);
    qemu_coroutine_enter(second);
    CHECK(co_try_get_from_shres(shares, 4) && !co_try_get_from_shres(shares, 1));
    co_put_to_shres(shares, 4);
    shres_destroy(shares);
    shres_destroy(NULL);
}

static void takes_too_many(void)
{
    co_try_get_from_shres(shres_create(2), 3);
}

static void takes_outside(void)
{
    co_get_from_shres(shres_create(2), 1);
}

static void gives_too_many(void)
{
    SharedResource *two = shres_create(2);

    co_try_get_from_shres(two, 1);
    co_put_to_shres(two, 2);
}

static void destroys_taken(void)
{
    SharedResource *two = shres_create(2);

    co_try_get_from_shres(two, 1);
    shres_destroy(two);
}

static void creates_too_many(void)
{
    shres_create(UINT64_MAX);
}

static void shares_misused(void)
{
    CHECK_DIES(takes_too_many, "co_try_get_from_shres: 3 of a resource of 2");
    CHECK_DIES(takes_outside, "co_get_from_shres: called outside a coroutine");
    CHECK_DIES(gives_too_many, "co_put_to_shres: 2 are given back of 1 that were taken");
    CHECK_DIES(destroys_taken, "shres_destroy: 1 were not given back");
    CHECK_DIES(creates_too_many, "a semaphore of 18446744073709551615 permits: at most "
                                 "9223372036854775807 can be counted");
}

/* --------------------------------------------------------------- threads with a loop */

struct journey {
    AioContext *to;
    pthread_t thread, main;
    bool done;
};

static void goes_there_and_back(void *opaque)
{
    struct journey *journey = opaque;

    aio_co_reschedule_self(journey->to);
    journey->thread = pthread_self();
    CHECK(qemu_get_current_aio_context() == journey->to);
    CHECK(thread_pool_submit_co(works, &(int){3}) == 3);
    aio_co_reschedule_self(ctx);
    journey->done = true;
}

/* SPEC I1, S5 */
static void a_thread_runs_a_context(void)
{
    CorioError *error = NULL;
    CorioIOThread *io = corio_iothread_new("io0", &error);
    struct journey journey = {.main = pthread_self()};
    char name[16];

    CHECK(io != NULL && error == NULL);
    journey.to = corio_iothread_get_aio_context(io);
    start(goes_there_and_back, &journey);
    while (!journey.done) {
        aio_poll(ctx, true);
    }
    CHECK(!pthread_equal(journey.thread, journey.main));
    CHECK(pthread_getname_np(journey.thread, name, sizeof(name)) == 0 && strcmp(name, "io0") == 0);
    corio_iothread_stop(io);
    corio_iothread_join(io);
    io = corio_iothread_new(NULL, NULL);
    corio_iothread_join(io); /* Stops it, too. */
}

/* SPEC I1 */
static void what_came_before_the_stop_runs(void)
{
    for (int i = 0; i < 100; i++) {
        CorioIOThread *io = corio_iothread_new("short", NULL);
        bool has_run = false;

        aio_bh_schedule_oneshot(corio_iothread_get_aio_context(io), sets_true, &has_run);
        corio_iothread_join(io);
        CHECK(has_run);
    }
}

static void joins_itself(void *opaque)
{
    corio_iothread_join(opaque);
}

static void joined_by_itself(void)
{
    CorioIOThread *io = corio_iothread_new("io0", NULL);

    aio_bh_schedule_oneshot(corio_iothread_get_aio_context(io), joins_itself, io);
    for (;;) {
        pause(); /* The loop of this thread is the parent's. */
    }
}

static void joined_with_a_bottom_half(void)
{
    CorioIOThread *io = corio_iothread_new("io0", NULL);

    aio_bh_new(corio_iothread_get_aio_context(io), nothing, NULL);
    corio_iothread_join(io);
}

static void no_thread(void)
{
    corio_iothread_get_aio_context(NULL);
}

static void stops_nothing(void)
{
    corio_iothread_stop(NULL);
}

static void threads_misused(void)
{
    CHECK_DIES(joined_by_itself, "corio_iothread_join: a thread cannot wait for its own end");
    CHECK_DIES(joined_with_a_bottom_half,
               "aio_context_unref: bottom half 'nothing' was not deleted");
    CHECK_DIES(no_thread, "corio_iothread_get_aio_context: the thread is NULL");
    CHECK_DIES(stops_nothing, "corio_iothread_stop: the thread is NULL");
}

/* SPEC I1 */
static void parameters_are_refused_with_a_message(void)
{
    CorioError *error = NULL;

    aio_context_set_poll_params(ctx, -1, 0, 0, &error);
    CHECK(error != NULL);
    CHECK(strcmp(corio_error_get_message(error),
                 "poll_max_ns is -1, which is not 0 or more") == 0);
    corio_error_free(error);
    error = NULL;
    aio_context_set_poll_params(ctx, 0, 1, 0, &error);
    CHECK(strcmp(corio_error_get_message(error), "poll_grow is 1, which is not 2 or more") == 0);
    corio_error_free(error);
    error = NULL;
    aio_context_set_thread_pool_params(ctx, 2, 1, &error);
    CHECK(error != NULL && strstr(corio_error_get_message(error), "thread_pool_min") != NULL);
    corio_error_free(error);
    aio_context_set_thread_pool_params(ctx, 2, 1, NULL);
    aio_context_set_aio_params(ctx, 8);
    aio_context_set_aio_params(ctx, 0);
}

static void batch_of_too_many(void)
{
    aio_context_set_aio_params(ctx, 257);
}

static void parameters_misused(void)
{
    CHECK_DIES(batch_of_too_many,
               "aio_context_set_aio_params: aio_max_batch is 257, which is not 0 to 256");
}

/* ------------------------------------------------------------------ what is not there */

static const char *const complaints[] = {
    "event_notifier_init: the event notifier is NULL",
    "event_notifier_init_fd: the event notifier is NULL",
    "event_notifier_cleanup: the event notifier is NULL",
    "event_notifier_get_fd: the event notifier is NULL",
    "event_notifier_test_and_clear: the event notifier is NULL",
    "aio_set_event_notifier: the event notifier is NULL",
    "thread_pool_submit_aio: the function is NULL",
    "thread_pool_submit_co: the function is NULL",
    "corio_aio_cancel: the job is NULL",
    "qemu_lockcnt_init: the lockcnt is NULL",
    "qemu_lockcnt_inc: the lockcnt is NULL",
    "qemu_lockcnt_lock: the lockcnt is NULL",
    "qemu_lockcnt_count: the lockcnt is NULL",
    "qemu_lockcnt_dec_and_lock: there is no visitor",
    "qemu_lockcnt_dec_if_lock: there is no visitor",
    "qemu_event_init: the event is NULL",
    "qemu_event_reset: the event is NULL",
    "qemu_event_wait: the event is NULL",
    "co_put_to_shres: the resource is NULL",
    "corio_iothread_join: the thread is NULL",
    "aio_context_set_poll_params: the context is NULL",
    "aio_context_set_thread_pool_params: the context is NULL",
};
static size_t complaint;

static void call_for_complaint(void)
{
    switch (complaint) {
    case 0:
        event_notifier_init(NULL, 0);
        break;
    case 1:
        event_notifier_init_fd(NULL, 0);
        break;
    case 2:
        event_notifier_cleanup(NULL);
        break;
    case 3:
        event_notifier_get_fd(NULL);
        break;
    case 4:
        event_notifier_test_and_clear(NULL);
        break;
    case 5:
        aio_set_event_notifier(ctx, NULL, on_notified, NULL, NULL);
        break;
    case 6:
        thread_pool_submit_aio(NULL, NULL, on_completion, NULL);
        break;
    case 7:
        thread_pool_submit_co(NULL, NULL);
        break;
    case 8:
        corio_aio_cancel(NULL);
        break;
    case 9:
        qemu_lockcnt_init(NULL);
        break;
    case 10:
        qemu_lockcnt_inc(NULL);
        break;
    case 11:
        qemu_lockcnt_lock(NULL);
        break;
    case 12:
        qemu_lockcnt_count(NULL);
        break;
    case 13:
        qemu_lockcnt_dec_and_lock(&lockcnt);
        break;
    case 14:
        qemu_lockcnt_dec_if_lock(&lockcnt);
        break;
    case 15:
        qemu_event_init(NULL, false);
        break;
    case 16:
        qemu_event_reset(NULL);
        break;
    case 17:
        qemu_event_wait(NULL);
        break;
    case 18:
        co_put_to_shres(NULL, 1);
        break;
    case 19:
        corio_iothread_join(NULL);
        break;
    case 20:
        aio_context_set_poll_params(NULL, 0, 0, 0, NULL);
        break;
    case 21:
        aio_context_set_thread_pool_params(NULL, 0, 1, NULL);
        break;
    }
}

static void what_is_not_there_aborts(void)
{
    for (complaint = 0; complaint < sizeof(complaints) / sizeof(complaints[0]); complaint++) {
        CHECK_DIES(call_for_complaint, complaints[complaint]);
    }
}

int main(void)
{
    static const struct test tests[] = {
        TEST(notifiers_are_set_and_cleared),
        TEST(notifiers_have_handlers),
        TEST(notifiers_misused),
        TEST(a_callback_gets_the_result),
        TEST(nobody_need_get_the_result),
        TEST(jobs_are_cancelled),
        TEST(a_coroutine_gets_the_result),
        TEST(the_pool_misused),
        TEST(calls_wait_for_the_end),
        TEST(deferring_misused),
        TEST(visitors_count_and_writers_lock),
        TEST(lockcnt_misused),
        TEST(events_are_waited_for),
        TEST(an_event_ends_a_wait_without_a_loop),
        TEST(an_event_may_go_once_it_was_waited_for),
        TEST(events_misused),
        TEST(shares_are_taken_in_turn),
        TEST(shares_misused),
        TEST(a_thread_runs_a_context),
        TEST(what_came_before_the_stop_runs),
        TEST(threads_misused),
        TEST(parameters_are_refused_with_a_message),
        TEST(parameters_misused),
        TEST(what_is_not_there_aborts),
    };

    CHECK(qemu_init_main_loop(NULL) == 0);
    ctx = qemu_get_aio_context();
    return RUN(tests);
}
