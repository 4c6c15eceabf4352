/* Locks, queues, sleeps, time-outs and sockets: whatever a coroutine waits for. */
#include <sys/socket.h>
#include <time.h>

#include "test.h"

/* SPEC C3 */
ASSERT_WORDS(CoMutex, 5);
ASSERT_WORDS(CoRwlock, 5);
ASSERT_WORDS(CoQueue, 3);
ASSERT_WORDS(QemuCoSleep, 1);
_Static_assert(sizeof(QemuLockable) == 24 && _Alignof(QemuLockable) == 8 &&
                   offsetof(QemuLockable, object) == 0 && offsetof(QemuLockable, lock) == 8 &&
                   offsetof(QemuLockable, unlock) == 16,
               "as in queue.rs");

#define THREADS 5
#define EACH 8
#define ROUNDS 300

static AioContext *ctx;
static char order[64];
static int pending;

static void start(CoroutineEntry *entry, const void *opaque)
{
    pending++;
    qemu_coroutine_enter(qemu_coroutine_create(entry, (void *)opaque));
}

static void ended(void)
{
    pending--;
}

static void turn_until_done(void)
{
    while (pending > 0) {
        aio_poll(ctx, true);
    }
}

/* ---- */

static CoMutex mutex; /* All zeros is free. */
static bool locked;

static void locks_and_yields(void *opaque)
{
    qemu_co_mutex_lock(&mutex);
    qemu_co_mutex_assert_locked(&mutex);
    CHECK(!locked);
    locked = true;
    strcat(order, opaque);
    qemu_coroutine_yield();
    locked = false;
    qemu_co_mutex_unlock(&mutex);
    ended();
}

/* The mutex goes to who has waited longest, who runs once the last one ends. In a thread that has
 * no context, too. */
static void *hands_the_mutex_on(void *unused)
{
    Coroutine *cos[3];
    static const char *const names[] = {"a", "b", "c"};

    order[0] = 0;
    pending = 3;
    for (int i = 0; i < 3; i++) {
        cos[i] = qemu_coroutine_create(locks_and_yields, (void *)names[i]);
        qemu_coroutine_enter(cos[i]);
    }
    CHECK(strcmp(order, "a") == 0);
    qemu_coroutine_enter(cos[0]);
    CHECK(strcmp(order, "ab") == 0 && pending == 2);
    qemu_coroutine_enter(cos[1]);
    CHECK(strcmp(order, "abc") == 0 && pending == 1);
    qemu_coroutine_enter(cos[2]);
    CHECK(pending == 0 && !locked);
    return unused;
}

/* SPEC L1 */
static void the_mutex_is_fair(void)
{
    pthread_t thread;

    qemu_co_mutex_init(&mutex);
    hands_the_mutex_on(NULL);
    CHECK(pthread_create(&thread, NULL, hands_the_mutex_on, NULL) == 0);
    pthread_join(thread, NULL);
}

/* ---- */

struct worker {
    pthread_t thread;
    AioContext *ctx;
};

static int counter, living, stop;

static void counts(void *opaque)
{
    (void)opaque;
    for (int i = 0; i < ROUNDS; i++) {
        int seen;

        qemu_co_mutex_lock(&mutex);
        seen = counter;
        if (i % 16 == 0) {
            aio_co_schedule(qemu_get_current_aio_context(), qemu_coroutine_self());
            qemu_coroutine_yield();
        }
        counter = seen + 1;
        qemu_co_mutex_unlock(&mutex);
    }
    __atomic_sub_fetch(&living, 1, __ATOMIC_RELEASE);
    aio_wait_kick();
}

static void *work(void *opaque)
{
    struct worker *me = opaque;

    qemu_set_current_aio_context(me->ctx);
    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
        aio_poll(me->ctx, true);
    }
    return NULL;
}

static bool some_live(void *opaque)
{
    (void)opaque;
    return __atomic_load_n(&living, __ATOMIC_ACQUIRE) > 0;
}

/* Runs entry in coroutines of several threads, and waits for all of them. */
static void run_in_threads(CoroutineEntry *entry)
{
    static struct worker workers[THREADS];

    living = THREADS * EACH;
    stop = 0;
    for (int i = 0; i < THREADS; i++) {
        workers[i].ctx = aio_context_new(NULL);
        CHECK(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
        for (int j = 0; j < EACH; j++) {
            aio_co_schedule(workers[i].ctx, qemu_coroutine_create(entry, NULL));
        }
    }
    corio_aio_wait_while(NULL, some_live, NULL);
    __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
    for (int i = 0; i < THREADS; i++) {
        aio_notify(workers[i].ctx);
        pthread_join(workers[i].thread, NULL);
        aio_context_unref(workers[i].ctx);
    }
}

/* SPEC L1 */
static void the_mutex_excludes_between_threads(void)
{
    run_in_threads(counts);
    CHECK(counter == THREADS * EACH * ROUNDS);
}

/* ---- */

static CoRwlock rwlock;

static void reads(void *opaque)
{
    qemu_co_rwlock_rdlock(&rwlock);
    strcat(order, opaque);
    qemu_coroutine_yield();
    qemu_co_rwlock_unlock(&rwlock);
    ended();
}

static void writes(void *opaque)
{
    qemu_co_rwlock_wrlock(&rwlock);
    strcat(order, opaque);
    qemu_coroutine_yield();
    qemu_co_rwlock_downgrade(&rwlock);
    strcat(order, ".");
    qemu_co_rwlock_unlock(&rwlock);
    ended();
}

static void upgrades(void *opaque)
{
    qemu_co_rwlock_rdlock(&rwlock);
    qemu_co_rwlock_upgrade(&rwlock);
    strcat(order, opaque);
    qemu_co_rwlock_unlock(&rwlock);
    ended();
}

/* SPEC L2 */
static void no_reader_passes_a_waiting_writer(void)
{
    Coroutine *first = qemu_coroutine_create(reads, (void *)"1");
    Coroutine *writer = qemu_coroutine_create(writes, (void *)"w");
    Coroutine *second = qemu_coroutine_create(reads, (void *)"2");

    qemu_co_rwlock_init(&rwlock);
    memset(&rwlock, 0, sizeof(rwlock)); /* Which is the same. */
    order[0] = 0;
    pending = 3;
    qemu_coroutine_enter(first);
    start(upgrades, "u"); /* Has to wait for the reader. */
    qemu_coroutine_enter(writer);
    qemu_coroutine_enter(second);
    CHECK(strcmp(order, "1") == 0);
    qemu_coroutine_enter(first);
    CHECK(strcmp(order, "1uw") == 0);
    qemu_coroutine_enter(writer);
    CHECK(strcmp(order, "1uw.2") == 0);
    qemu_coroutine_enter(second);
    CHECK(pending == 0);
}

static int readers;

static void one_write(void)
{
    CHECK(__atomic_load_n(&readers, __ATOMIC_ACQUIRE) == 0);
    counter++;
}

static void reads_and_writes(void *opaque)
{
    (void)opaque;
    for (int i = 0; i < ROUNDS; i++) {
        if (i % 3 == 0) {
            qemu_co_rwlock_wrlock(&rwlock);
            one_write();
            if (i % 2 == 0) {
                qemu_co_rwlock_downgrade(&rwlock);
            }
        } else {
            qemu_co_rwlock_rdlock(&rwlock);
            __atomic_add_fetch(&readers, 1, __ATOMIC_ACQ_REL);
            if (i % 16 == 1) {
                aio_co_schedule(qemu_get_current_aio_context(), qemu_coroutine_self());
                qemu_coroutine_yield();
            }
            __atomic_sub_fetch(&readers, 1, __ATOMIC_ACQ_REL);
            if (i % 3 == 1) {
                qemu_co_rwlock_upgrade(&rwlock);
                one_write();
            }
        }
        qemu_co_rwlock_unlock(&rwlock);
    }
    __atomic_sub_fetch(&living, 1, __ATOMIC_RELEASE);
    aio_wait_kick();
}

/* SPEC L2: who has just been given the lock knows how it holds it. */
static void the_rwlock_excludes_between_threads(void)
{
    counter = 0;
    run_in_threads(reads_and_writes);
    CHECK(counter == THREADS * EACH * (ROUNDS / 3 * 2));
}

static SharedResource *units;

static void takes_and_gives(void *opaque)
{
    (void)opaque;
    for (int i = 0; i < ROUNDS; i++) {
        co_get_from_shres(units, 1 + (uint64_t)i % 2);
        co_put_to_shres(units, 1 + (uint64_t)i % 2);
    }
    __atomic_sub_fetch(&living, 1, __ATOMIC_RELEASE);
    aio_wait_kick();
}

/* SPEC L5 */
static void what_was_just_taken_may_be_given_back(void)
{
    units = shres_create(2);
    run_in_threads(takes_and_gives);
    CHECK(co_try_get_from_shres(units, 2));
    co_put_to_shres(units, 2);
    shres_destroy(units);
}

/* ---- */

static CoQueue queue;
static pthread_mutex_t plain = PTHREAD_MUTEX_INITIALIZER;
static int unlocks;

static void count_lock(void *object)
{
    *(int *)object += 1;
}

static void count_unlock(void *object)
{
    unlocks++;
    *(int *)object -= 1;
}

static void waits_in_line(void *opaque)
{
    int held = 1;
    QemuLockable lock = {&held, count_lock, count_unlock};

    qemu_co_queue_wait(&queue, &lock);
    CHECK(held == 1);
    strcat(order, opaque);
    ended();
}

static void waits_in_front(void *opaque)
{
    pthread_mutex_lock(&plain);
    qemu_co_queue_wait_flags(&queue, &plain, CO_QUEUE_WAIT_FRONT);
    strcat(order, opaque);
    pthread_mutex_unlock(&plain);
    ended();
}

static void waits_with_a_mutex(void *opaque)
{
    qemu_co_mutex_lock(&mutex);
    qemu_co_queue_wait(&queue, &mutex);
    qemu_co_mutex_assert_locked(&mutex);
    strcat(order, opaque);
    qemu_co_mutex_unlock(&mutex);
    ended();
}

static void waits_without(void *opaque)
{
    qemu_co_queue_wait(&queue, NULL);
    strcat(order, opaque);
    ended();
}

static void wakes_in_a_coroutine(void *opaque)
{
    (void)opaque;
    CHECK(qemu_co_queue_next(&queue));
    qemu_co_queue_restart_all(&queue);
    strcat(order, "|"); /* They run once this one ends. */
    ended();
}

/* SPEC L3 */
static void queues_wake_in_order(void)
{
    qemu_co_queue_init(&queue);
    CHECK(qemu_co_queue_empty(&queue) && !qemu_co_enter_next(&queue, NULL));
    order[0] = 0;
    start(waits_in_line, "1");
    start(waits_with_a_mutex, "2");
    start(waits_in_front, "0");
    start(waits_without, "3");
    CHECK(unlocks == 1 && !qemu_co_queue_empty(&queue) && order[0] == 0);
    CHECK(qemu_co_enter_next(&queue, NULL)); /* Runs at once. */
    CHECK(strcmp(order, "0") == 0);
    start(wakes_in_a_coroutine, NULL);
    CHECK(strcmp(order, "0|123") == 0 && qemu_co_queue_empty(&queue));
    start(waits_without, "4");
    start(waits_without, "5");
    pthread_mutex_lock(&plain);
    qemu_co_enter_all(&queue, &plain);
    CHECK(pthread_mutex_trylock(&plain) == EBUSY);
    pthread_mutex_unlock(&plain);
    CHECK(strcmp(order, "0|12345") == 0 && pending == 0);
    qemu_co_queue_restart_all(&queue);
    CHECK(!qemu_co_queue_next(&queue));
}

/* ---- */

static QemuCoSleep place;

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static void sleeps(void *opaque)
{
    int64_t began = now_ns();

    qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, 2000000);
    CHECK(now_ns() - began >= 2000000);
    qemu_co_sleep_ns(QEMU_CLOCK_HOST, 1);
    qemu_co_sleep_ns_wakeable(&place, QEMU_CLOCK_REALTIME, 1000);
    strcat(order, opaque);
    ended();
}

static void sleeps_till_woken(void *opaque)
{
    qemu_co_sleep(&place);
    strcat(order, opaque);
    qemu_co_sleep_ns_wakeable(&place, QEMU_CLOCK_VIRTUAL, 3600000000000ll);
    strcat(order, opaque);
    ended();
}

/* SPEC L4 */
static void sleeps_end_in_time_or_before(void)
{
    order[0] = 0;
    start(sleeps, "s");
    turn_until_done();
    start(sleeps_till_woken, "w");
    CHECK(strcmp(order, "s") == 0);
    qemu_co_sleep_wake(&place); /* Runs at once. */
    CHECK(strcmp(order, "sw") == 0);
    qemu_co_sleep_wake(&place);
    CHECK(strcmp(order, "sww") == 0 && pending == 0);
    qemu_co_sleep_wake(&place); /* Nobody is there: it is lost. */
}

/* ---- */

static int cleaned;

static void quick(void *opaque)
{
    *(int *)opaque = 1;
}

static void slow(void *opaque)
{
    qemu_co_sleep(&place);
    *(int *)opaque = 2;
}

static void clean(void *opaque)
{
    CHECK(*(int *)opaque == 2);
    cleaned++;
    ended();
}

static void takes_time(void *opaque)
{
    int done = 0;

    CHECK(qemu_co_timeout(quick, &done, 1000000000000ull, clean) == 0 && done == 1);
    done = 0;
    CHECK(qemu_co_timeout(quick, &done, 0, NULL) == 0 && done == 1);
    CHECK(qemu_co_timeout(slow, opaque, 1000000, clean) == -ETIMEDOUT && *(int *)opaque == 0);
    strcat(order, "t");
}

/* SPEC L4 */
static void a_time_out_leaves_the_call_to_itself(void)
{
    int result = 0;

    order[0] = 0;
    start(takes_time, &result);
    while (order[0] == 0) {
        aio_poll(ctx, true);
    }
    CHECK(pending == 1 && cleaned == 0);
    qemu_co_sleep_wake(&place);
    CHECK(pending == 0 && cleaned == 1 && result == 2);
}

static CorioIOThread *elsewhere;
static unsigned int race_round, races_cleaned, races_lost;

static void ends_elsewhere(void *opaque)
{
    (void)opaque;
    aio_co_reschedule_self(corio_iothread_get_aio_context(elsewhere));
    for (unsigned int i = race_round % 64 * 200; i > 0; i--) {
        __asm__ volatile("");
    }
}

static void cleans_race(void *opaque)
{
    (void)opaque;
    __atomic_add_fetch(&races_cleaned, 1, __ATOMIC_RELEASE);
    aio_wait_kick();
}

static void races(void *opaque)
{
    (void)opaque;
    for (race_round = 0; race_round < 2000; race_round++) {
        int ret = qemu_co_timeout(ends_elsewhere, NULL, 1 + race_round % 128 * 500, cleans_race);

        CHECK(ret == 0 || ret == -ETIMEDOUT);
        races_lost += ret != 0;
    }
    ended();
}

static bool some_are_unclean(void *opaque)
{
    (void)opaque;
    return __atomic_load_n(&races_cleaned, __ATOMIC_ACQUIRE) != races_lost;
}

/* SPEC L4: it is cleaned up after exactly if the caller was told that the time was up. */
static void both_sides_know_who_was_first(void)
{
    elsewhere = corio_iothread_new("elsewhere", NULL);
    CHECK(elsewhere != NULL);
    start(races, NULL);
    turn_until_done();
    corio_aio_wait_while(NULL, some_are_unclean, NULL);
    corio_iothread_join(elsewhere);
    CHECK(races_lost > 0 && races_cleaned == races_lost);
}

/* ---- */

#define BYTES (1 << 20)

static int pair[2];
static char sent[BYTES], received[BYTES];

static void sends(void *opaque)
{
    struct iovec iov[] = {{sent, 100}, {sent + 100, 0}, {sent + 100, BYTES - 100}};

    (void)opaque;
    CHECK(corio_co_send(pair[0], sent, 10) == 10);
    CHECK(corio_co_sendv(pair[0], iov, 3, 10, BYTES - 10) == BYTES - 10);
    shutdown(pair[0], SHUT_WR);
    CHECK(corio_co_send(pair[0], sent, 1) == -EPIPE);
    ended();
}

static void receives(void *opaque)
{
    struct iovec iov[] = {{received, 4096}, {received + 4096, BYTES - 4096}};

    (void)opaque;
    yield_until_fd_readable(pair[1]);
    CHECK(corio_co_recv(pair[1], received, 20) == 20);
    CHECK(corio_co_recvv(pair[1], iov, 2, 20, BYTES - 20) == BYTES - 20);
    CHECK(corio_co_recv(pair[1], received, 1) == 0); /* The end. */
    CHECK(corio_co_recv(-1, received, 1) == -EBADF);
    ended();
}

/* SPEC E6 */
static void sockets_take_whole_buffers(void)
{
    for (int i = 0; i < BYTES; i++) {
        sent[i] = (char)(i * 31 >> 3);
    }
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    start(receives, NULL);
    start(sends, NULL);
    turn_until_done();
    CHECK(memcmp(sent, received, BYTES) == 0);
    close(pair[0]);
    close(pair[1]);
}

static void sends_all(void *opaque)
{
    (void)opaque;
    CHECK(corio_co_send(pair[0], sent, BYTES) == BYTES);
    ended();
}

static void receives_all(void *opaque)
{
    (void)opaque;
    CHECK(corio_co_recv(pair[0], received, BYTES) == BYTES);
    ended();
}

static void echoes(void *opaque)
{
    static char part[4096];
    ssize_t got;

    (void)opaque;
    for (int left = BYTES; left > 0; left -= (int)got) {
        yield_until_fd_readable(pair[1]);
        got = recv(pair[1], part, sizeof(part), MSG_DONTWAIT);
        CHECK(got > 0 && corio_co_send(pair[1], part, (size_t)got) == got);
    }
    ended();
}

/* SPEC E6 */
static void a_socket_goes_both_ways_at_once(void)
{
    memset(received, 0, BYTES);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    start(receives_all, NULL);
    start(sends_all, NULL); /* More than the sockets hold: both wait for the same descriptor. */
    start(echoes, NULL);
    turn_until_done();
    CHECK(memcmp(sent, received, BYTES) == 0);
    close(pair[0]);
    close(pair[1]);
}

static void waits_for_the_pair(void *opaque)
{
    yield_until_fd_readable(pair[1]);
    strcat(order, opaque);
    ended();
}

/* SPEC E6 */
static void all_that_wait_for_a_descriptor_go_on(void)
{
    order[0] = 0;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    start(waits_for_the_pair, "1");
    start(waits_for_the_pair, "2");
    CHECK(send(pair[0], "x", 1, 0) == 1);
    turn_until_done();
    CHECK(strcmp(order, "12") == 0);
    close(pair[0]);
    close(pair[1]);
}

/* ---- */

static void in_coroutine(CoroutineEntry *entry)
{
    qemu_coroutine_enter(qemu_coroutine_create(entry, NULL));
}

static void init_no_mutex(void)
{
    qemu_co_mutex_init(NULL);
}

static void init_no_rwlock(void)
{
    qemu_co_rwlock_init(NULL);
}

static void init_no_queue(void)
{
    qemu_co_queue_init(NULL);
}

static void reads_and_yields(void *opaque)
{
    (void)opaque;
    qemu_co_rwlock_rdlock(&rwlock);
    qemu_coroutine_yield();
}

static void lock_outside(void)
{
    qemu_co_mutex_lock(&mutex);
}

static void lock_again(void *opaque)
{
    (void)opaque;
    qemu_co_mutex_lock(&mutex);
    qemu_co_mutex_lock(&mutex);
}

static void locked_twice(void)
{
    in_coroutine(lock_again);
}

static void unlock_alone(void *opaque)
{
    (void)opaque;
    qemu_co_mutex_unlock(&mutex);
}

static void unlocked_by_another(void)
{
    in_coroutine(unlock_alone);
}

static void assert_alone(void *opaque)
{
    (void)opaque;
    qemu_co_mutex_assert_locked(&mutex);
}

static void asserted_in_vain(void)
{
    in_coroutine(assert_alone);
}

static void lock_and_end(void *opaque)
{
    (void)opaque;
    qemu_co_mutex_lock(&mutex);
}

static void ended_with_a_lock(void)
{
    in_coroutine(lock_and_end);
}

static void unlock_nothing(void *opaque)
{
    (void)opaque;
    qemu_co_rwlock_unlock(&rwlock);
}

static void unlocked_for_nobody(void)
{
    in_coroutine(unlock_nothing);
}

static void unlocked_for_another(void)
{
    in_coroutine(reads_and_yields);
    in_coroutine(unlock_nothing);
}

static void upgrade_nothing(void *opaque)
{
    (void)opaque;
    qemu_co_rwlock_upgrade(&rwlock);
}

static void upgraded_from_nothing(void)
{
    in_coroutine(upgrade_nothing);
}

static void downgrade_a_reader(void *opaque)
{
    (void)opaque;
    qemu_co_rwlock_rdlock(&rwlock);
    qemu_co_rwlock_downgrade(&rwlock);
}

static void downgraded_from_reading(void)
{
    in_coroutine(downgrade_a_reader);
}

static void read_outside(void)
{
    qemu_co_rwlock_rdlock(&rwlock);
}

static void queue_outside(void)
{
    qemu_co_queue_wait(&queue, NULL);
}

static void next_of_nothing(void)
{
    qemu_co_queue_next(NULL);
}

static void sleep_outside(void)
{
    qemu_co_sleep(&place);
}

static void sleep_here(void *opaque)
{
    (void)opaque;
    qemu_co_sleep(&place);
}

static void two_sleep_in_one_place(void)
{
    in_coroutine(sleep_here);
    in_coroutine(sleep_here);
}

static void sleep_ns_outside(void)
{
    qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, 1);
}

static void sleep_by_no_clock(void)
{
    qemu_co_sleep_ns_wakeable(&place, (QEMUClockType)7, 1);
}

static void time_out_outside(void)
{
    qemu_co_timeout(quick, NULL, 1, NULL);
}

static void wait_for_fd_outside(void)
{
    yield_until_fd_readable(0);
}

static void receive_outside(void)
{
    corio_co_recv(0, received, 1);
}

static void send_outside(void)
{
    struct iovec iov = {sent, 1};

    corio_co_sendv(0, &iov, 1, 0, 1);
}

static void short_vectors(void *opaque)
{
    struct iovec iov = {received, 1};

    corio_co_recvv(pair[1], &iov, 1, 1, *(size_t *)opaque);
}

static void more_than_the_vectors(void)
{
    size_t bytes = 1;

    qemu_coroutine_enter(qemu_coroutine_create(short_vectors, &bytes));
}

/* SPEC C3, L1, L2, L3, L4 */
static void misuse_aborts_with_a_message(void)
{
    CHECK_DIES(lock_outside, "qemu_co_mutex_lock: called outside a coroutine");
    CHECK_DIES(locked_twice, "qemu_co_mutex_lock: the coroutine holds the mutex already");
    CHECK_DIES(unlocked_by_another,
               "qemu_co_mutex_unlock: the coroutine does not hold the mutex");
    CHECK_DIES(asserted_in_vain,
               "qemu_co_mutex_assert_locked: the coroutine does not hold the mutex");
    CHECK_DIES(ended_with_a_lock, "Co-routine ended while it holds 1 lock(s)");
    CHECK_DIES(unlocked_for_nobody, "qemu_co_rwlock_unlock: nobody holds the lock");
    CHECK_DIES(unlocked_for_another,
               "qemu_co_rwlock_unlock: the coroutine does not hold the lock");
    CHECK_DIES(init_no_mutex, "qemu_co_mutex_init: the lock is NULL");
    CHECK_DIES(init_no_rwlock, "qemu_co_rwlock_init: the lock is NULL");
    CHECK_DIES(init_no_queue, "qemu_co_queue_init: the queue is NULL");
    CHECK_DIES(upgraded_from_nothing,
               "qemu_co_rwlock_upgrade: the lock is not held for reading");
    CHECK_DIES(downgraded_from_reading,
               "qemu_co_rwlock_downgrade: the lock is not held for writing");
    CHECK_DIES(read_outside, "qemu_co_rwlock_rdlock: called outside a coroutine");
    CHECK_DIES(queue_outside, "qemu_co_queue_wait: called outside a coroutine");
    CHECK_DIES(next_of_nothing, "qemu_co_queue_next: the queue is NULL");
    CHECK_DIES(sleep_outside, "qemu_co_sleep: called outside a coroutine");
    CHECK_DIES(two_sleep_in_one_place, "qemu_co_sleep: another coroutine sleeps there");
    CHECK_DIES(sleep_ns_outside, "qemu_co_sleep_ns: called outside a coroutine");
    CHECK_DIES(sleep_by_no_clock, "qemu_co_sleep_ns_wakeable: there is no clock 7");
    CHECK_DIES(time_out_outside, "qemu_co_timeout: called outside a coroutine");
    CHECK_DIES(wait_for_fd_outside, "yield_until_fd_readable: called outside a coroutine");
    CHECK_DIES(receive_outside, "corio_co_recv: called outside a coroutine");
    CHECK_DIES(send_outside, "corio_co_sendv: called outside a coroutine");
    CHECK_DIES(more_than_the_vectors,
               "corio_co_recvv: the vectors are shorter than the bytes that are asked for");
}

int main(void)
{
    static const struct test tests[] = {
        TEST(the_mutex_is_fair),
        TEST(the_mutex_excludes_between_threads),
        TEST(no_reader_passes_a_waiting_writer),
        TEST(the_rwlock_excludes_between_threads),
        TEST(what_was_just_taken_may_be_given_back),
        TEST(queues_wake_in_order),
        TEST(sleeps_end_in_time_or_before),
        TEST(a_time_out_leaves_the_call_to_itself),
        TEST(both_sides_know_who_was_first),
        TEST(sockets_take_whole_buffers),
        TEST(a_socket_goes_both_ways_at_once),
        TEST(all_that_wait_for_a_descriptor_go_on),
        TEST(misuse_aborts_with_a_message),
    };

    CHECK(qemu_init_main_loop(NULL) == 0);
    ctx = qemu_get_aio_context();
    return RUN(tests);
}
