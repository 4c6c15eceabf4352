/* The C side of suite `capi`, which the bench program loads: what the Rust exercises of the same
 * names do, by the C functions. */
#include <corio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define HALVES 100

static AioContext *ctx;
static uint32_t count;
static bool stopped;

static void check(bool condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "rounds: %s\n", what);
        exit(1);
    }
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void yields(void *opaque)
{
    (void)opaque;
    qemu_coroutine_yield();
    while (!stopped) {
        count++;
        qemu_coroutine_yield();
    }
}

static uint64_t enter_yield(uint32_t rounds)
{
    Coroutine *co = qemu_coroutine_create(yields, NULL);
    uint64_t began;

    stopped = false;
    qemu_coroutine_enter(co);
    began = now_ns();
    for (uint32_t i = 0; i < rounds; i++) {
        qemu_coroutine_enter(co);
    }
    began = now_ns() - began;
    stopped = true;
    qemu_coroutine_enter(co);
    return began;
}

static void counts(void *opaque)
{
    (void)opaque;
    count++;
}

static uint64_t create_run_end(uint32_t rounds)
{
    uint64_t began;

    qemu_coroutine_enter(qemu_coroutine_create(counts, NULL));
    count = 0;
    began = now_ns();
    for (uint32_t i = 0; i < rounds; i++) {
        qemu_coroutine_enter(qemu_coroutine_create(counts, NULL));
    }
    return now_ns() - began;
}

static uint64_t bh_schedule_dispatch(uint32_t rounds)
{
    QEMUBH *halves[HALVES];
    uint64_t began;

    for (int i = 0; i < HALVES; i++) {
        halves[i] = aio_bh_new(ctx, counts, NULL);
    }
    aio_poll(ctx, false);
    began = now_ns();
    for (uint32_t done = 0; done < rounds; done += HALVES) {
        for (int i = 0; i < HALVES; i++) {
            qemu_bh_schedule(halves[i]);
        }
        aio_poll(ctx, false);
    }
    began = now_ns() - began;
    for (int i = 0; i < HALVES; i++) {
        qemu_bh_delete(halves[i]);
    }
    return began;
}

static void drains(void *opaque)
{
    uint64_t value;

    check(read(*(int *)opaque, &value, sizeof(value)) == sizeof(value), "it was readable");
    count++;
}

/* Beside an idle one, as in the Rust exercise. */
static uint64_t fd_ready_1(uint32_t rounds)
{
    int fds[2];
    uint64_t began, one = 1;
    uint32_t at = 0;

    for (int i = 0; i < 2; i++) {
        fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        check(fds[i] >= 0, "no descriptor for an eventfd");
        aio_set_fd_handler(ctx, fds[i], drains, NULL, NULL, NULL, &fds[i]);
    }
    began = now_ns();
    for (uint32_t i = 0; i < rounds; i++) {
        at = (at + 7) % 2;
        check(write(fds[at], &one, sizeof(one)) == sizeof(one), "an eventfd takes a write");
        while (count == i) {
            aio_poll(ctx, true);
        }
    }
    began = now_ns() - began;
    for (int i = 0; i < 2; i++) {
        aio_set_fd_handler(ctx, fds[i], NULL, NULL, NULL, NULL, NULL);
        close(fds[i]);
    }
    return began;
}

/* Does so many rounds of an exercise; the nanoseconds that they took, or 0. */
uint64_t corio_rounds(const char *name, uint32_t rounds)
{
    static const struct {
        const char *name;
        uint64_t (*run)(uint32_t rounds);
    } exercises[] = {
        {"enter_yield", enter_yield},
        {"create_run_end", create_run_end},
        {"bh_schedule_dispatch", bh_schedule_dispatch},
        {"fd_ready_1", fd_ready_1},
    };

    if (ctx == NULL) {
        check(qemu_init_main_loop(NULL) == 0, "no main loop");
        ctx = qemu_get_aio_context();
    }
    for (size_t i = 0; i < sizeof(exercises) / sizeof(exercises[0]); i++) {
        if (strcmp(exercises[i].name, name) == 0) {
            uint64_t took;

            count = 0;
            took = exercises[i].run(rounds);
            check(count == rounds, "not as many rounds were done as asked");
            return took;
        }
    }
    return 0;
}
