/* The event loop: bottom halves, handlers, phases, waiting. */
#include <fcntl.h>
#include <sys/socket.h>

#include "test.h"

/* SPEC C3 */
_Static_assert(sizeof(MemReentrancyGuard) == 1 && offsetof(MemReentrancyGuard, engaged_in_io) == 0,
               "as in bottom_half.rs");

static AioContext *ctx;
static char order[64];

static void note(void *opaque)
{
    strcat(order, opaque);
}

static void turn_all(void)
{
    while (aio_poll(ctx, false)) {
    }
}

/* SPEC A2 */
static void the_main_context_is_current(void)
{
    CHECK(qemu_get_aio_context() == ctx && qemu_get_current_aio_context() == ctx);
    CHECK_IDLE(aio_poll(ctx, false));
    aio_context_ref(ctx);
    aio_context_unref(ctx);
    aio_notify(ctx);
    CHECK_IDLE(aio_poll(ctx, true)); /* Returns; a notification is no progress. */
}

/* SPEC B2, B7 */
static void bottom_halves_run_once_and_in_order(void)
{
    QEMUBH *a = aio_bh_new(ctx, note, (void *)"a");
    QEMUBH *b = aio_bh_new(ctx, note, (void *)"b");

    order[0] = 0;
    qemu_bh_schedule(b);
    qemu_bh_schedule(a);
    qemu_bh_schedule(b);
    aio_bh_schedule_oneshot(ctx, note, (void *)"o");
    CHECK(aio_poll(ctx, true));
    CHECK(strcmp(order, "bao") == 0);
    qemu_bh_schedule(a);
    qemu_bh_cancel(a);
    CHECK_IDLE(aio_poll(ctx, false));
    qemu_bh_schedule(a);
    CHECK(aio_bh_poll(ctx) == 1 && aio_bh_poll(ctx) == 0);
    aio_bh_call(b);
    CHECK(strcmp(order, "baoab") == 0);
    qemu_bh_schedule(a);
    qemu_bh_delete(a);
    qemu_bh_delete(b);
    CHECK_IDLE(aio_poll(ctx, false));
    CHECK(strcmp(order, "baoab") == 0);
}

/* ---- */

struct self_deleting {
    QEMUBH *bh;
    int runs;
};

static void delete_me(void *opaque)
{
    struct self_deleting *me = opaque;

    me->runs++;
    qemu_bh_schedule(me->bh);
    qemu_bh_delete(me->bh);
}

/* SPEC B5 */
static void a_bottom_half_deletes_itself(void)
{
    struct self_deleting me = {.bh = NULL, .runs = 0};

    me.bh = aio_bh_new(ctx, delete_me, &me);
    qemu_bh_schedule(me.bh);
    CHECK(aio_poll(ctx, true));
    CHECK(!aio_poll(ctx, false) && me.runs == 1);
}

/* ---- */

static QEMUBH *nested[3];

static void nests(void *opaque)
{
    strcat(order, opaque);
    qemu_bh_schedule(nested[2]);
    CHECK(aio_poll(ctx, true));
    strcat(order, ")");
}

/* SPEC B6 */
static void a_nested_poll_runs_what_the_outer_has_not(void)
{
    nested[0] = aio_bh_new(ctx, nests, (void *)"(");
    nested[1] = aio_bh_new(ctx, note, (void *)"1");
    nested[2] = aio_bh_new(ctx, note, (void *)"2");
    order[0] = 0;
    qemu_bh_schedule(nested[0]);
    qemu_bh_schedule(nested[1]);
    CHECK(aio_poll(ctx, true));
    turn_all();
    CHECK(strcmp(order, "(12)") == 0);
    for (int i = 0; i < 3; i++) {
        qemu_bh_delete(nested[i]);
    }
}

/* ---- */

static MemReentrancyGuard device;

static void sees_the_guard(void *opaque)
{
    CHECK(device.engaged_in_io);
    *(int *)opaque += 1;
}

/* SPEC B4, B9 */
static void idle_and_guarded(void)
{
    int runs = 0;
    QEMUBH *bh = aio_bh_new_guarded(ctx, sees_the_guard, &runs, &device);

    qemu_bh_schedule_idle(bh);
    while (runs == 0) {
        CHECK_IDLE(aio_poll(ctx, true)); /* Is no progress. */
    }
    qemu_bh_schedule(bh);
    CHECK(aio_poll(ctx, true) && runs == 2 && !device.engaged_in_io);
    qemu_bh_delete(bh);
}

/* ---- */

static int pair[2];
static int readable, writable, polled, begun;

static void on_read(void *opaque)
{
    char byte;

    CHECK(opaque == pair && read(pair[0], &byte, 1) == 1);
    readable++;
}

static void on_write(void *opaque)
{
    CHECK(opaque == pair);
    writable++;
    aio_set_fd_handler(ctx, pair[0], on_read, NULL, NULL, NULL, pair);
}

static void removes_itself(void *opaque)
{
    (void)opaque;
    readable++;
    aio_set_fd_handler(ctx, pair[0], NULL, NULL, NULL, NULL, NULL);
}

/* SPEC H1, H2, H3 */
static void handlers_are_called_and_changed(void)
{
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    readable = writable = 0;
    aio_set_fd_handler(ctx, pair[0], on_read, on_write, NULL, NULL, pair);
    CHECK(aio_poll(ctx, true) && writable == 1 && readable == 0);
    CHECK(!aio_poll(ctx, false) && writable == 1);
    CHECK(write(pair[1], "xy", 2) == 2);
    CHECK(aio_pending(ctx));
    aio_dispatch(ctx);
    CHECK(readable == 1);
    CHECK(aio_poll(ctx, true) && readable == 2); /* Level-triggered. */
    CHECK(!aio_pending(ctx) && !aio_poll(ctx, false));
    aio_set_fd_handler(ctx, pair[0], removes_itself, NULL, NULL, NULL, NULL);
    CHECK(write(pair[1], "z", 1) == 1);
    CHECK(aio_poll(ctx, true) && readable == 3);
    CHECK(!aio_poll(ctx, false) && readable == 3);
    close(pair[0]);
    close(pair[1]);
}

static bool has_something(void *opaque)
{
    begun++;
    return *(int *)opaque != 0;
}

static void on_polled(void *opaque)
{
    *(int *)opaque = 0;
    polled++;
}

static void *hands_over_a_handler(void *opaque)
{
    aio_set_fd_handler(ctx, pair[0], on_read, NULL, NULL, NULL, opaque);
    return NULL;
}

static bool nothing_read(void *opaque)
{
    (void)opaque;
    return readable == 0;
}

/* SPEC H1 */
static void a_handler_comes_from_another_thread(void)
{
    pthread_t thread;
    int memory = 0;

    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(write(pair[1], "x", 1) == 1);
    readable = 0;
    CHECK(pthread_create(&thread, NULL, hands_over_a_handler, pair) == 0);
    corio_aio_wait_while(ctx, nothing_read, NULL);
    pthread_join(thread, NULL);
    CHECK(readable == 1);
    /* One that is polled, too, is watched by its descriptor as well. */
    aio_set_fd_handler(ctx, pair[0], on_read, NULL, has_something, on_polled, &memory);
    CHECK(!aio_poll(ctx, false) && polled == 0);
    aio_set_fd_handler(ctx, pair[0], NULL, NULL, NULL, NULL, NULL);
    close(pair[0]);
    close(pair[1]);
}

/* ---- */

/* SPEC G3 */
static void a_turn_has_phases(void)
{
    QEMUBH *bh = aio_bh_new(ctx, note, (void *)"x");

    order[0] = 0;
    aio_notify_accept(ctx);
    CHECK(!aio_prepare(ctx) && !aio_pending(ctx) && aio_compute_timeout(ctx) == -1);
    qemu_bh_schedule_idle(bh);
    CHECK(aio_compute_timeout(ctx) > 0 && aio_compute_timeout(ctx) <= 10 * 1000 * 1000);
    qemu_bh_schedule(bh);
    CHECK(aio_prepare(ctx) && aio_pending(ctx) && aio_compute_timeout(ctx) == 0);
    aio_dispatch(ctx);
    CHECK(strcmp(order, "x") == 0 && !aio_prepare(ctx));
    qemu_bh_delete(bh);
}

/* ---- */

struct worker {
    pthread_t thread;
    AioContext *ctx;
    int ready, stop, done;
};

static void *work(void *opaque)
{
    struct worker *me = opaque;

    qemu_set_current_aio_context(me->ctx);
    CHECK(qemu_get_current_aio_context() == me->ctx);
    __atomic_store_n(&me->ready, 1, __ATOMIC_RELEASE);
    aio_wait_kick();
    while (!__atomic_load_n(&me->stop, __ATOMIC_ACQUIRE)) {
        aio_poll(me->ctx, true);
    }
    return NULL;
}

static bool is_not_ready(void *opaque)
{
    return !__atomic_load_n(&((struct worker *)opaque)->ready, __ATOMIC_ACQUIRE);
}

static void done_there(void *opaque)
{
    struct worker *worker = opaque;

    CHECK(qemu_get_current_aio_context() == worker->ctx);
    worker->done++;
}

/* SPEC W1, W2 */
static void the_main_thread_waits_for_others(void)
{
    struct worker worker = {.ctx = aio_context_new(NULL)};

    CHECK(worker.ctx != NULL);
    CHECK(pthread_create(&worker.thread, NULL, work, &worker) == 0);
    corio_aio_wait_while(NULL, is_not_ready, &worker);
    CHECK(!corio_aio_wait_while(worker.ctx, is_not_ready, &worker));
    aio_wait_bh_oneshot(worker.ctx, done_there, &worker);
    CHECK(worker.done == 1);
    __atomic_store_n(&worker.stop, 1, __ATOMIC_RELEASE);
    aio_notify(worker.ctx);
    pthread_join(worker.thread, NULL);
    aio_context_unref(worker.ctx);
}

/* ---- */

static void polled_by_a_stranger(void)
{
    aio_poll(aio_context_new(NULL), false);
}

static void poll_in_coroutine(void *opaque)
{
    aio_poll(opaque, false);
}

static void polled_in_a_coroutine(void)
{
    qemu_coroutine_enter(qemu_coroutine_create(poll_in_coroutine, ctx));
}

static void freed_with_a_bottom_half(void)
{
    AioContext *other = aio_context_new(NULL);

    aio_bh_new_full(other, note, NULL, "forgotten", NULL);
    aio_context_unref(other);
}

static void two_contexts_for_a_thread(void)
{
    qemu_set_current_aio_context(aio_context_new(NULL));
}

static void two_main_loops(void)
{
    qemu_init_main_loop(NULL);
}

static void no_such_descriptor(void)
{
    aio_set_fd_handler(ctx, -1, on_read, NULL, NULL, NULL, NULL);
}

static void poll_without_ready(void)
{
    aio_set_fd_handler(ctx, 0, on_read, NULL, has_something, NULL, NULL);
}

static void *waits(void *opaque)
{
    corio_aio_wait_while(ctx, is_not_ready, opaque);
    return NULL;
}

static void waiting_elsewhere(void)
{
    struct worker worker = {.ready = 0};
    pthread_t thread;

    pthread_create(&thread, NULL, waits, &worker);
    pthread_join(thread, NULL);
}

static void no_bottom_half(void)
{
    qemu_bh_schedule(NULL);
}

/* SPEC A1, A2 */
static void misuse_aborts_with_a_message(void)
{
    CHECK_DIES(polled_by_a_stranger, "aio_poll: this thread is not the home of the context");
    CHECK_DIES(polled_in_a_coroutine,
               "aio_poll: called in a coroutine, on whose stack the loop would run");
    CHECK_DIES(freed_with_a_bottom_half,
               "aio_context_unref: bottom half 'forgotten' was not deleted");
    CHECK_DIES(two_contexts_for_a_thread,
               "qemu_set_current_aio_context: this thread has a context already");
    CHECK_DIES(two_main_loops, "qemu_init_main_loop: the main loop is there already");
    CHECK_DIES(no_such_descriptor, "aio_set_fd_handler: -1 is no descriptor");
    CHECK_DIES(poll_without_ready, "aio_set_fd_handler: io_poll without io_poll_ready");
    CHECK_DIES(waiting_elsewhere, "corio_aio_wait_while: this thread is home neither of the context "
                                  "nor of the main one");
    CHECK_DIES(no_bottom_half, "qemu_bh_schedule: the bottom half is NULL");
}

/* SPEC A2 */
static void errors_have_a_message(void)
{
    CHECK(strcmp(corio_error_get_message(NULL), "") == 0);
    corio_error_free(NULL);
}

/* ---- */

static int reads_of[2], pipe_fds[2];

static void reads_old(void *opaque)
{
    char byte;

    (void)opaque;
    reads_of[0]++;
    CHECK(read(pipe_fds[0], &byte, 1) == 1);
}

static void reads_new(void *opaque)
{
    char byte;

    (void)opaque;
    reads_of[1]++;
    CHECK(read(pipe_fds[0], &byte, 1) == 1);
}

static void watch(AioContext *on, int fd, IOHandler *handler)
{
    aio_set_fd_handler(on, fd, handler, NULL, NULL, NULL, NULL);
}

/* Removes the handler, closes the pipe, and watches another of the same number. */
static void *replaces_the_pipe(void *opaque)
{
    int fd = pipe_fds[0];

    watch(ctx, fd, NULL);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    CHECK(pipe(pipe_fds) == 0 && pipe_fds[0] == fd);
    watch(ctx, fd, reads_new);
    CHECK(write(pipe_fds[1], "n", 1) == 1);
    return opaque;
}

/* SPEC H1, H5 */
static void a_number_is_another_files_at_once(void)
{
    pthread_t thread;

    CHECK(pipe(pipe_fds) == 0 && write(pipe_fds[1], "o", 1) == 1);
    watch(ctx, pipe_fds[0], reads_old);
    while (reads_of[0] == 0) {
        aio_poll(ctx, true);
    }
    CHECK(pthread_create(&thread, NULL, replaces_the_pipe, NULL) == 0);
    pthread_join(thread, NULL);
    while (reads_of[1] == 0) {
        aio_poll(ctx, true);
    }
    CHECK(reads_of[0] == 1);
    watch(ctx, pipe_fds[0], NULL);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

static void *removes_and_closes(void *opaque)
{
    watch(ctx, pipe_fds[0], NULL);
    close(pipe_fds[0]);
    return opaque;
}

static void sets_true(void *opaque)
{
    *(bool *)opaque = true;
}

/* SPEC H5: the file stays, by a duplicate of its descriptor, and readable. Nobody watches it. */
static void a_duplicate_keeps_no_handler(void)
{
    pthread_t thread;
    QEMUTimer timer;
    bool is_over = false;
    int turns = 0, duplicate;

    CHECK(pipe(pipe_fds) == 0 && (duplicate = dup(pipe_fds[0])) >= 0);
    watch(ctx, pipe_fds[0], reads_old);
    turn_all();
    CHECK(pthread_create(&thread, NULL, removes_and_closes, NULL) == 0);
    pthread_join(thread, NULL);
    CHECK(write(pipe_fds[1], "d", 1) == 1);
    aio_timer_init(ctx, &timer, QEMU_CLOCK_REALTIME, SCALE_MS, sets_true, &is_over);
    timer_mod(&timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 20);
    while (!is_over) {
        aio_poll(ctx, true);
        turns++;
    }
    CHECK(reads_of[0] == 1 && turns < 10);
    close(duplicate);
    close(pipe_fds[1]);
}

/* ---- */

static void freed_before_a_oneshot(void)
{
    AioContext *other = aio_context_new(NULL);

    aio_bh_schedule_oneshot(other, note, (void *)"");
    aio_context_unref(other);
}

static void freed_with_a_coroutine(void)
{
    AioContext *other = aio_context_new(NULL);

    aio_co_schedule(other, qemu_coroutine_create(note, (void *)""));
    aio_context_unref(other);
}

static void frees(void *opaque)
{
    aio_context_unref(opaque);
}

static void *turns_one_that_frees_itself(void *opaque)
{
    AioContext *other = aio_context_new(NULL);

    qemu_set_current_aio_context(other);
    aio_bh_schedule_oneshot(other, frees, other);
    aio_poll(other, true);
    return opaque;
}

static void freed_in_its_turn(void)
{
    pthread_t thread;

    pthread_create(&thread, NULL, turns_one_that_frees_itself, NULL);
    pthread_join(thread, NULL);
}

static int gives_nothing(void *opaque)
{
    (void)opaque;
    return 0;
}

static void *submits_and_frees(void *opaque)
{
    AioContext *other = aio_context_new(NULL);

    qemu_set_current_aio_context(other);
    thread_pool_submit_aio(gives_nothing, NULL, NULL, NULL);
    aio_context_unref(other);
    return opaque;
}

static void freed_with_a_job(void)
{
    pthread_t thread;

    pthread_create(&thread, NULL, submits_and_frees, NULL);
    pthread_join(thread, NULL);
}

/* SPEC A2 */
static void what_is_pending_is_not_forgotten(void)
{
    CHECK_DIES(freed_before_a_oneshot, "aio_context_unref: bottom half 'note' has not run");
    CHECK_DIES(freed_with_a_coroutine, "aio_context_unref: a coroutine is scheduled");
    CHECK_DIES(freed_with_a_job,
               "aio_context_unref: 1 jobs of its thread pool have not completed");
#ifndef POLL_H
    CHECK_DIES(freed_in_its_turn,
               "aio_context_unref: the context is freed in a turn of its own");
#else
    (void)freed_in_its_turn; /* The turn is GLib's. */
#endif
}

int main(void)
{
    static const struct test tests[] = {
        TEST(the_main_context_is_current),
        TEST(bottom_halves_run_once_and_in_order),
        TEST(a_bottom_half_deletes_itself),
        TEST(a_nested_poll_runs_what_the_outer_has_not),
        TEST(idle_and_guarded),
        TEST(handlers_are_called_and_changed),
        TEST(a_handler_comes_from_another_thread),
        TEST(a_number_is_another_files_at_once),
        TEST(a_duplicate_keeps_no_handler),
        TEST(a_turn_has_phases),
        TEST(the_main_thread_waits_for_others),
        TEST(misuse_aborts_with_a_message),
        TEST(what_is_pending_is_not_forgotten),
        TEST(errors_have_a_message),
    };

    CHECK(qemu_get_aio_context() == NULL && qemu_get_current_aio_context() == NULL);
    CHECK(qemu_init_main_loop(NULL) == 0);
    ctx = qemu_get_aio_context();
    return RUN(tests);
}
