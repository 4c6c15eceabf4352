/* Clocks and timers. */
#include "test.h"

/* SPEC C3 */
ASSERT_WORDS(QEMUTimer, 6);

#define MANY 1000

static AioContext *ctx;
static char order[64];

static int64_t now(void)
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

static void note(void *opaque)
{
    strcat(order, opaque);
}

static void turn_until(const char *wanted)
{
    while (strlen(order) < strlen(wanted)) {
        aio_poll(ctx, true);
    }
    CHECK(strcmp(order, wanted) == 0);
}

/* ---- */

/* SPEC T1, T2, T4 */
static void timers_run_by_deadline(void)
{
    QEMUTimer a, b, c, past;
    int64_t at = now() + SCALE_MS;

    order[0] = 0;
    timer_init_ns(&a, QEMU_CLOCK_REALTIME, note, "a");
    timer_init_us(&b, QEMU_CLOCK_REALTIME, note, "b");
    timer_init_full(&c, ctx, QEMU_CLOCK_HOST, SCALE_MS, QEMU_TIMER_ATTR_EXTERNAL, note, "c");
    aio_timer_init(ctx, &past, QEMU_CLOCK_VIRTUAL_RT, SCALE_NS, note, "p");
    CHECK(!timer_pending(&a) && timer_expire_time_ns(&a) == -1);
    CHECK(!timer_expired(&a, INT64_MAX));
    timer_mod(&a, at + 1);
    timer_mod_ns(&b, at);
    CHECK(timer_pending(&a) && timer_expire_time_ns(&a) == at + 1);
    CHECK(!timer_expired(&a, at) && timer_expired(&a, at + 1));
    CHECK(timer_expired(&b, at / SCALE_US + 1) && !timer_expired(&b, at / SCALE_US - 1));
    CHECK(aio_compute_timeout(ctx) <= SCALE_MS);
    turn_until("ba");
    CHECK(now() > at && !timer_pending(&a) && !timer_pending(&b));
    timer_mod(&c, qemu_clock_get_ms(QEMU_CLOCK_HOST) - 1);
    timer_mod_ns(&past, -5);
    CHECK(timer_expire_time_ns(&past) == 0);
    CHECK(aio_poll(ctx, false));
    turn_until("bacp");
    timer_deinit(&a);
    timer_deinit(&b);
    timer_deinit(&c);
    timer_deinit(&past);
    CHECK(!timer_pending(&a));
}

/* SPEC T2 */
static void a_timer_is_brought_forward_and_cancelled(void)
{
    QEMUTimer *timer = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_MS, note, "t");
    QEMUTimer never = {{0}};

    timer_mod(timer, 5000000);
    timer_mod_anticipate(timer, 6000000);
    CHECK(timer_expire_time_ns(timer) == 5000000LL * SCALE_MS);
    timer_mod_anticipate(timer, 4000000);
    CHECK(timer_expire_time_ns(timer) == 4000000LL * SCALE_MS);
    timer_mod_anticipate_ns(timer, 7);
    timer_mod_anticipate_ns(timer, 8);
    CHECK(timer_expire_time_ns(timer) == 7);
    timer_mod(timer, 5000000); /* Later again. */
    CHECK(timer_expire_time_ns(timer) == 5000000LL * SCALE_MS);
    timer_del(timer);
    timer_del(timer);
    CHECK(!timer_pending(timer));
    order[0] = 0;
    timer_mod_ns(timer, 0);
    timer_del(timer);
    aio_poll(ctx, false);
    CHECK(order[0] == 0);
    timer_mod_anticipate_ns(timer, 0); /* Not armed: it is. */
    turn_until("t");
    timer_mod_ns(timer, INT64_MAX);
    timer_free(timer); /* Armed as it is. */
    timer_free(NULL);
    timer_del(&never);
    CHECK(!timer_pending(&never) && timer_expire_time_ns(&never) == -1);
}

/* ---- */

static QEMUTimer periodic;
static int runs;

static void arms_itself(void *opaque)
{
    (void)opaque;
    CHECK(!timer_pending(&periodic));
    if (++runs < 3) {
        timer_mod_ns(&periodic, 0);
        CHECK(timer_pending(&periodic));
    }
}

static void frees_itself(void *opaque)
{
    QEMUTimer **timer = opaque;

    timer_free(*timer);
    *timer = NULL;
}

static void polls(void *opaque)
{
    note(opaque);
    while (runs < 3) {
        aio_poll(ctx, true);
    }
    note("]");
}

/* SPEC T3, T4 */
static void callbacks_arm_and_free_their_own_timer(void)
{
    QEMUTimer *own = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, frees_itself, &own);
    QEMUTimer outer;

    runs = 0;
    timer_init_ns(&periodic, QEMU_CLOCK_REALTIME, arms_itself, NULL);
    timer_mod_ns(&periodic, 0);
    for (int turn = 1; turn <= 3; turn++) {
        CHECK(aio_poll(ctx, false) && runs == turn); /* What it arms waits for the next turn. */
    }
    CHECK(!timer_pending(&periodic));
    timer_mod_ns(own, 0);
    CHECK(aio_poll(ctx, false) && own == NULL);

    order[0] = 0;
    runs = 0;
    timer_init_ns(&outer, QEMU_CLOCK_REALTIME, polls, "[");
    timer_mod_ns(&outer, 0);
    timer_mod_ns(&periodic, 1);
    turn_until("[]"); /* Nested. */
    CHECK(runs == 3);
}

/* SPEC T1, T5 */
static void a_disabled_clock_runs_nothing(void)
{
    QEMUTimer timer;
    int64_t before = qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL);

    CHECK(qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL) >= before);
    CHECK(qemu_clock_get_us(QEMU_CLOCK_HOST) > 1500000000LL * 1000000);
    order[0] = 0;
    timer_init(&timer, QEMU_CLOCK_VIRTUAL, SCALE_NS, note, "v");
    qemu_clock_enable(QEMU_CLOCK_VIRTUAL, false);
    timer_mod(&timer, 0);
    aio_poll(ctx, false);
    CHECK(order[0] == 0 && timer_pending(&timer));
    qemu_clock_enable(QEMU_CLOCK_VIRTUAL, true);
    turn_until("v");
}

/* ---- */

static int ran;

static void counts(void *opaque)
{
    (void)opaque;
    __atomic_fetch_add(&ran, 1, __ATOMIC_RELAXED);
}

static void nothing(void *opaque)
{
    (void)opaque;
}

/* SPEC T2: the memory of a timer is its owner's once it is cancelled, whatever the loop does. */
static void timers_of_another_thread(void)
{
    CorioIOThread *io = corio_iothread_new("timers", NULL);
    AioContext *other = corio_iothread_get_aio_context(io);
    QEMUTimer kept;

    ran = 0;
    aio_timer_init(other, &kept, QEMU_CLOCK_REALTIME, SCALE_NS, counts, NULL);
    for (int i = 0; i < MANY; i++) {
        QEMUTimer *timer = aio_timer_new(other, QEMU_CLOCK_REALTIME, SCALE_NS, counts, NULL);

        timer_mod(timer, 0);
        timer_mod(&kept, 0);
        timer_mod_anticipate(timer, 0);
        timer_free(timer);
    }
    while (timer_pending(&kept)) {
        sched_yield();
    }
    aio_wait_bh_oneshot(other, nothing, NULL);
    CHECK(__atomic_load_n(&ran, __ATOMIC_RELAXED) > 0);
    corio_iothread_join(io);
}

/* ---- */

static void no_timer(void)
{
    timer_mod(NULL, 1);
}

static void not_initialised(void)
{
    QEMUTimer timer = {{0}};

    timer_mod_ns(&timer, 1);
}

static void deinit_while_armed(void)
{
    QEMUTimer timer;

    timer_init_ns(&timer, QEMU_CLOCK_REALTIME, note, "");
    timer_mod_ns(&timer, INT64_MAX);
    timer_deinit(&timer);
}

static void used_after_deinit(void)
{
    QEMUTimer timer;

    timer_init_ns(&timer, QEMU_CLOCK_REALTIME, note, "");
    timer_deinit(&timer);
    timer_mod_anticipate(&timer, 1);
}

static void context_with_a_timer(void)
{
    AioContext *other = aio_context_new(NULL);

    timer_mod(aio_timer_new(other, QEMU_CLOCK_REALTIME, SCALE_NS, note, ""), INT64_MAX);
    aio_context_unref(other);
}

static void no_such_clock(void)
{
    qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL_RT + 1);
}

static void no_such_scale(void)
{
    aio_timer_new(ctx, QEMU_CLOCK_REALTIME, 0, note, "");
}

static void no_function(void)
{
    QEMUTimer timer;

    aio_timer_init(ctx, &timer, QEMU_CLOCK_REALTIME, SCALE_NS, NULL, NULL);
}

static void no_context(void)
{
    aio_timer_new(NULL, QEMU_CLOCK_REALTIME, SCALE_NS, note, "");
}

static void disables(void *opaque)
{
    (void)opaque;
    qemu_clock_enable(QEMU_CLOCK_HOST, false);
}

static void disables_its_clock(void)
{
    timer_mod(aio_timer_new(ctx, QEMU_CLOCK_HOST, SCALE_NS, disables, NULL), 0);
    aio_poll(ctx, true);
}

static void deletes_nothing(void)
{
    timer_del(NULL);
}

static void asks_nothing(void)
{
    timer_pending(NULL);
}

static void expired_nothing(void)
{
    timer_expired(NULL, 0);
}

static void anticipates_nothing(void)
{
    timer_mod_anticipate_ns(NULL, 0);
}

static void asks_when(void)
{
    timer_expire_time_ns(NULL);
}

/* SPEC T5, A2 */
static void misuse_aborts_with_a_message(void)
{
    CHECK_DIES(no_timer, "timer_mod: the timer is NULL");
    CHECK_DIES(not_initialised, "timer_mod_ns: the timer was not initialised");
    CHECK_DIES(deinit_while_armed, "timer_deinit: the timer is armed");
    CHECK_DIES(used_after_deinit, "timer_mod_anticipate: the timer was not initialised");
    CHECK_DIES(context_with_a_timer, "aio_context_unref: a timer is armed");
    CHECK_DIES(no_such_clock, "qemu_clock_get_ns: there is no clock 4");
    CHECK_DIES(no_such_scale,
               "aio_timer_new: a scale of 0 nanoseconds, which is not 1 to 1000000000");
    CHECK_DIES(no_function, "aio_timer_init: the function is NULL");
    CHECK_DIES(no_context, "aio_timer_new: the context is NULL");
    CHECK_DIES(disables_its_clock, "the clock Host was disabled in a callback of one of its own "
                                   "timers, which would wait for itself: do it in a bottom half, "
                                   "or from another thread");
    CHECK_DIES(deletes_nothing, "timer_del: the timer is NULL");
    CHECK_DIES(asks_nothing, "timer_pending: the timer is NULL");
    CHECK_DIES(anticipates_nothing, "timer_mod_anticipate_ns: the timer is NULL");
    CHECK_DIES(asks_when, "timer_expire_time_ns: the timer is NULL");
    CHECK_DIES(expired_nothing, "timer_expired: the timer is NULL");
}

static void before_the_main_loop(void)
{
    QEMUTimer timer;

    timer_init_ns(&timer, QEMU_CLOCK_REALTIME, note, "");
}

int main(void)
{
    static const struct test tests[] = {
        TEST(timers_run_by_deadline),
        TEST(a_timer_is_brought_forward_and_cancelled),
        TEST(callbacks_arm_and_free_their_own_timer),
        TEST(a_disabled_clock_runs_nothing),
        TEST(timers_of_another_thread),
        TEST(misuse_aborts_with_a_message),
    };

    CHECK_DIES(before_the_main_loop, "timer_init_full: there is no main context yet");
    CHECK(qemu_init_main_loop(NULL) == 0);
    ctx = qemu_get_aio_context();
    return RUN(tests);
}
