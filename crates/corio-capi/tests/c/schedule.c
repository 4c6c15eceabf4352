/* Coroutines on contexts: scheduled, woken, moved; from five threads. */
#include "test.h"

#define CONTEXTS 5
#define COROUTINES 40
#define HOPS 200

static AioContext *ctx;
static char order[64];

static void note(void *opaque)
{
    strcat(order, opaque);
}

/* SPEC S1 */
static void first_scheduled_first_run(void)
{
    static char names[3][2] = {"a", "b", "c"};

    order[0] = 0;
    for (int i = 0; i < 3; i++) {
        aio_co_schedule(ctx, qemu_coroutine_create(note, names[i]));
    }
    CHECK(order[0] == 0);
    CHECK(aio_poll(ctx, true));
    CHECK(strcmp(order, "abc") == 0);
}

/* ---- */

static Coroutine *sleepers[3];

static void sleeps(void *opaque)
{
    qemu_coroutine_yield();
    strcat(order, opaque);
}

static void wakes_all(void *opaque)
{
    (void)opaque;
    for (int i = 0; i < 3; i++) {
        aio_co_wake(sleepers[i]);
    }
    strcat(order, "w");
}

/* SPEC C4, S4 */
static void the_woken_run_when_the_waker_ends(void)
{
    static char names[3][2] = {"1", "2", "3"};

    order[0] = 0;
    for (int i = 0; i < 3; i++) {
        sleepers[i] = qemu_coroutine_create(sleeps, names[i]);
        qemu_coroutine_enter(sleepers[i]);
        CHECK(qemu_coroutine_get_aio_context(sleepers[i]) == ctx);
    }
    qemu_coroutine_enter(qemu_coroutine_create(wakes_all, NULL));
    CHECK(strcmp(order, "w123") == 0);
    order[0] = 0;
    sleepers[0] = qemu_coroutine_create(sleeps, names[0]);
    qemu_coroutine_enter(sleepers[0]);
    aio_co_wake(sleepers[0]); /* Outside of coroutines: at once. */
    CHECK(strcmp(order, "1") == 0);
}

/* ---- */

static void schedules_itself(void *opaque)
{
    (void)opaque;
    strcat(order, "<");
    aio_co_schedule(ctx, qemu_coroutine_self());
    qemu_coroutine_yield();
    strcat(order, ">");
}

/* SPEC S1, S4 */
static void a_coroutine_schedules_itself(void)
{
    order[0] = 0;
    aio_co_enter(ctx, qemu_coroutine_create(schedules_itself, NULL));
    CHECK(strcmp(order, "<") == 0);
    CHECK(aio_poll(ctx, true));
    CHECK(strcmp(order, "<>") == 0);
}

/* ---- */

struct worker {
    pthread_t thread;
    AioContext *ctx;
};

static struct worker workers[CONTEXTS];
static int stop, living;

static void *work(void *opaque)
{
    struct worker *me = opaque;

    qemu_set_current_aio_context(me->ctx);
    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
        aio_poll(me->ctx, true);
    }
    return NULL;
}

static void start(void)
{
    stop = 0;
    for (int i = 0; i < CONTEXTS; i++) {
        workers[i].ctx = aio_context_new(NULL);
        CHECK(workers[i].ctx != NULL);
        CHECK(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
    }
}

static void finish(void)
{
    __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
    for (int i = 0; i < CONTEXTS; i++) {
        aio_notify(workers[i].ctx);
        pthread_join(workers[i].thread, NULL);
        aio_context_unref(workers[i].ctx);
    }
}

static void ends(void)
{
    __atomic_sub_fetch(&living, 1, __ATOMIC_RELEASE);
    aio_wait_kick();
}

static bool some_live(void *opaque)
{
    (void)opaque;
    return __atomic_load_n(&living, __ATOMIC_ACQUIRE) > 0;
}

static void travels(void *opaque)
{
    unsigned seed = (unsigned)(size_t)opaque;
    int steps[HOPS];

    for (int i = 0; i < HOPS; i++) {
        AioContext *to = workers[(seed = seed * 1103515245u + 12345u) / 65536 % CONTEXTS].ctx;

        steps[i] = i;
        aio_co_reschedule_self(to);
        CHECK(qemu_get_current_aio_context() == to);
        CHECK(qemu_coroutine_get_aio_context(qemu_coroutine_self()) == to);
    }
    for (int i = 0; i < HOPS; i++) {
        CHECK(steps[i] == i);
    }
    ends();
}

/* SPEC S5, C10 */
static void coroutines_travel_among_contexts(void)
{
    start();
    living = COROUTINES;
    for (size_t i = 0; i < COROUTINES; i++) {
        aio_co_schedule(workers[i % CONTEXTS].ctx, qemu_coroutine_create(travels, (void *)i));
    }
    corio_aio_wait_while(NULL, some_live, NULL);
    finish();
}

/* ---- */

static Coroutine *waiting[CONTEXTS];
static int rounds;

/* Each sleeps until another thread has taken it, as its last act before that. */
static void is_woken_by_others(void *opaque)
{
    size_t me = (size_t)opaque;

    while (__atomic_fetch_add(&rounds, 1, __ATOMIC_RELAXED) < 20000) {
        Coroutine *other;

        __atomic_store_n(&waiting[me], qemu_coroutine_self(), __ATOMIC_RELEASE);
        other = __atomic_exchange_n(&waiting[(me + 1) % CONTEXTS], NULL, __ATOMIC_ACQ_REL);
        if (other != NULL) {
            aio_co_wake(other); /* Which may not have yielded yet. */
        }
        if (__atomic_load_n(&waiting[me], __ATOMIC_ACQUIRE) == qemu_coroutine_self()) {
            /* Nobody has taken it, or somebody will: then the wake comes after the yield. */
            Coroutine *self = qemu_coroutine_self();
            if (__atomic_compare_exchange_n(&waiting[me], &self, NULL, false, __ATOMIC_ACQ_REL,
                                            __ATOMIC_ACQUIRE)) {
                aio_co_schedule(workers[me].ctx, qemu_coroutine_self());
            }
        }
        qemu_coroutine_yield();
        CHECK(qemu_get_current_aio_context() == workers[me].ctx);
    }
    ends();
}

/* SPEC S4 */
static void a_wake_may_come_before_the_yield(void)
{
    start();
    living = CONTEXTS;
    rounds = 0;
    for (size_t i = 0; i < CONTEXTS; i++) {
        Coroutine *co = qemu_coroutine_create(is_woken_by_others, (void *)i);
        aio_co_schedule(workers[i].ctx, co);
    }
    corio_aio_wait_while(NULL, some_live, NULL);
    finish();
}

/* ---- */

static void *enters_it_here(void *opaque)
{
    qemu_coroutine_enter(opaque);
    return NULL;
}

static void counts(void *opaque)
{
    for (int i = 0; i < 3; i++) {
        *(int *)opaque += 1;
        qemu_coroutine_yield();
    }
}

/* SPEC C10 */
static void any_thread_may_enter(void)
{
    int count = 0;
    Coroutine *co = qemu_coroutine_create(counts, &count);

    for (int i = 1; i <= 4; i++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, enters_it_here, co) == 0);
        pthread_join(thread, NULL);
        CHECK(count == (i < 4 ? i : 3));
    }
    count = 0;
    co = qemu_coroutine_create(counts, &count);
    qemu_aio_coroutine_enter(ctx, co);
    CHECK(qemu_coroutine_get_aio_context(co) == ctx);
    for (int i = 1; i <= 3; i++) {
        qemu_coroutine_enter(co);
    }
    CHECK(count == 3);
}

/* ---- */

static void twice(void)
{
    Coroutine *co = qemu_coroutine_create(note, (void *)"");

    aio_co_schedule(ctx, co);
    aio_co_schedule(ctx, co);
}

static void entered_while_scheduled(void)
{
    Coroutine *co = qemu_coroutine_create(note, (void *)"");

    aio_co_schedule(ctx, co);
    qemu_coroutine_enter(co);
}

static Coroutine *left_behind;

static void yields_then_notes(void *opaque)
{
    qemu_coroutine_yield();
    note(opaque);
}

static void *leaves_one_behind(void *opaque)
{
    left_behind = qemu_coroutine_create(yields_then_notes, opaque);
    qemu_coroutine_enter(left_behind);
    return NULL;
}

/* SPEC S4 */
static void a_thread_may_end_before_its_coroutines(void)
{
    pthread_t thread;

    order[0] = 0;
    CHECK(pthread_create(&thread, NULL, leaves_one_behind, (void *)"left") == 0);
    pthread_join(thread, NULL);
    CHECK(qemu_coroutine_get_aio_context(left_behind) == NULL);
    aio_co_schedule(ctx, left_behind);
    aio_poll(ctx, true);
    CHECK(strcmp(order, "left") == 0);
}

static CoMutex early;

static void locks_early(void *opaque)
{
    qemu_co_mutex_lock(&early);
    qemu_coroutine_yield();
    qemu_co_mutex_unlock(&early);
    note(opaque);
}

static void *becomes_a_home(void *opaque)
{
    AioContext *home = aio_context_new(NULL);
    Coroutine *holder = qemu_coroutine_create(locks_early, (void *)"1");
    Coroutine *second = qemu_coroutine_create(locks_early, (void *)"2");

    qemu_coroutine_enter(holder);
    qemu_coroutine_enter(second); /* Waits for the first. */
    qemu_set_current_aio_context(home);
    qemu_coroutine_enter(holder);
    while (aio_poll(home, false)) {
    }
    qemu_coroutine_enter(second); /* It has got the mutex, and has yielded. */
    aio_context_unref(home);
    return opaque;
}

/* SPEC S4, L1 */
static void what_waits_may_be_older_than_the_home(void)
{
    pthread_t thread;

    order[0] = 0;
    CHECK(pthread_create(&thread, NULL, becomes_a_home, NULL) == 0);
    pthread_join(thread, NULL);
    CHECK(strcmp(order, "12") == 0);
}

static void wakes_itself(void *opaque)
{
    (void)opaque;
    aio_co_wake(qemu_coroutine_self());
}

static void woken_by_itself(void)
{
    qemu_coroutine_enter(qemu_coroutine_create(wakes_itself, NULL));
}

static void ends_scheduled(void *opaque)
{
    (void)opaque;
    aio_co_schedule(ctx, qemu_coroutine_self());
}

static void ended_while_scheduled(void)
{
    qemu_coroutine_enter(qemu_coroutine_create(ends_scheduled, NULL));
}

static void moved_from_outside(void)
{
    aio_co_reschedule_self(ctx);
}

static void scheduled_on_nothing(void)
{
    aio_co_schedule(NULL, qemu_coroutine_create(note, (void *)""));
}

static void wakes_its_parent(void *opaque)
{
    aio_co_wake(opaque);
}

static void enters_a_child(void *opaque)
{
    (void)opaque;
    qemu_coroutine_enter(qemu_coroutine_create(wakes_its_parent, qemu_coroutine_self()));
}

static void woken_while_entered(void)
{
    qemu_coroutine_enter(qemu_coroutine_create(enters_a_child, NULL));
}

static CoQueue queue;
static CoMutex mutex;
static Coroutine *waiter;

static void waits(void *opaque)
{
    (void)opaque;
    qemu_co_queue_wait(&queue, NULL);
}

static Coroutine *one_that_waits(void)
{
    Coroutine *co = qemu_coroutine_create(waits, NULL);

    qemu_coroutine_enter(co);
    return co;
}

static void entered_while_it_waits(void)
{
    qemu_coroutine_enter(one_that_waits());
}

static void scheduled_while_it_waits(void)
{
    aio_co_schedule(ctx, one_that_waits());
}

static void woken_while_it_waits(void)
{
    aio_co_wake(one_that_waits());
}

static void wakes_the_waiter(void *opaque)
{
    (void)opaque;
    CHECK(qemu_co_queue_next(&queue));
    aio_co_wake(waiter);
}

static void woken_twice(void)
{
    waiter = one_that_waits();
    qemu_coroutine_enter(qemu_coroutine_create(wakes_the_waiter, NULL));
}

static void waits_scheduled(void *opaque)
{
    aio_co_schedule(ctx, qemu_coroutine_self());
    waits(opaque);
}

static void waits_while_scheduled(void)
{
    qemu_coroutine_enter(qemu_coroutine_create(waits_scheduled, NULL));
}

static void scheduled_when_it_has_ended(void)
{
    Coroutine *co = qemu_coroutine_create(note, (void *)"");

    qemu_coroutine_enter(co);
    aio_co_schedule(ctx, co);
}

static void locks(void *opaque)
{
    (void)opaque;
    qemu_co_mutex_lock(&mutex);
    qemu_coroutine_yield();
    qemu_co_mutex_unlock(&mutex);
}

static void *enters_one_that_locks(void *opaque)
{
    qemu_coroutine_enter(qemu_coroutine_create(locks, opaque));
    return opaque;
}

static void woken_where_no_loop_is(void)
{
    Coroutine *holder = qemu_coroutine_create(locks, NULL);
    pthread_t thread;

    qemu_coroutine_enter(holder);
    CHECK(pthread_create(&thread, NULL, enters_one_that_locks, NULL) == 0);
    pthread_join(thread, NULL);
    qemu_coroutine_enter(holder);
}

#define WAITS                                                                                      \
    ": Co-routine waits for a lock, a queue, a sleep or a request already, which alone may wake it"

/* SPEC C3, S3: what waits for something is not for others to wake. */
static void misuse_of_those_that_wait(void)
{
    CHECK_DIES(entered_while_it_waits, "qemu_coroutine_enter" WAITS);
    CHECK_DIES(scheduled_while_it_waits, "aio_co_schedule" WAITS);
    CHECK_DIES(woken_while_it_waits, "aio_co_wake" WAITS);
    CHECK_DIES(woken_twice, "aio_co_wake: Co-routine was already scheduled in 'aio_co_schedule'");
    CHECK_DIES(waits_while_scheduled, "Co-routine was already scheduled in 'aio_co_schedule': it "
                                      "must yield before it waits for anything else");
    CHECK_DIES(scheduled_when_it_has_ended, "aio_co_schedule: the coroutine has ended");
    CHECK_DIES(woken_where_no_loop_is,
               "a coroutine that waits in a thread without a context was woken from elsewhere, and "
               "there is no loop that would enter it: have it wait in the home of a context");
}

/* SPEC C3, S3 */
static void misuse_aborts_with_a_message(void)
{
    CHECK_DIES(twice,
               "aio_co_schedule: Co-routine was already scheduled in 'aio_co_schedule'");
    CHECK_DIES(entered_while_scheduled,
               "qemu_coroutine_enter: Co-routine was already scheduled in 'aio_co_schedule'");
    CHECK_DIES(woken_by_itself, "aio_co_wake: a coroutine wakes itself");
    CHECK_DIES(ended_while_scheduled,
               "Co-routine ended while it was scheduled: it must yield before it ends");
    CHECK_DIES(moved_from_outside, "aio_co_reschedule_self: called outside a coroutine");
    CHECK_DIES(scheduled_on_nothing, "aio_co_schedule: the context is NULL");
    CHECK_DIES(woken_while_entered, "Co-routine re-entered recursively");
}

int main(void)
{
    static const struct test tests[] = {
        TEST(first_scheduled_first_run),
        TEST(the_woken_run_when_the_waker_ends),
        TEST(a_coroutine_schedules_itself),
        TEST(coroutines_travel_among_contexts),
        TEST(a_wake_may_come_before_the_yield),
        TEST(any_thread_may_enter),
        TEST(a_thread_may_end_before_its_coroutines),
        TEST(what_waits_may_be_older_than_the_home),
        TEST(misuse_aborts_with_a_message),
        TEST(misuse_of_those_that_wait),
    };

    CHECK(qemu_init_main_loop(NULL) == 0);
    ctx = qemu_get_aio_context();
    return RUN(tests);
}
