/* Coroutines by themselves, without a context. */
#define _GNU_SOURCE
#include "test.h"

#include <alloca.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <ucontext.h>

static Coroutine *self;
static int steps;

static void two_steps(void *opaque)
{
    CHECK(qemu_in_coroutine());
    self = qemu_coroutine_self();
    *(int *)opaque += 1;
    qemu_coroutine_yield();
    *(int *)opaque += 10;
}

/* SPEC C1, C2 */
static void runs_until_it_yields_and_on(void)
{
    int sum = 0;
    Coroutine *co = qemu_coroutine_create(two_steps, &sum);

    CHECK(sum == 0 && !qemu_coroutine_entered(co));
    qemu_coroutine_enter(co);
    CHECK(sum == 1 && self == co && !qemu_coroutine_entered(co));
    CHECK(!qemu_in_coroutine() && qemu_coroutine_get_aio_context(co) == NULL);
    qemu_coroutine_enter(co);
    CHECK(sum == 11);
}

/* ---- */

static Coroutine *outer, *inner;

static void inner_body(void *opaque)
{
    (void)opaque;
    CHECK(qemu_coroutine_entered(outer) && qemu_coroutine_entered(inner));
    qemu_coroutine_enter_if_inactive(outer); /* Is active: nothing. */
    CHECK(qemu_coroutine_self() == inner);
    steps++;
}

static void outer_body(void *opaque)
{
    (void)opaque;
    inner = qemu_coroutine_create(inner_body, NULL);
    qemu_coroutine_enter_if_inactive(inner);
    CHECK(qemu_coroutine_self() == outer);
    steps++;
}

/* SPEC C1, C2 */
static void nests(void)
{
    steps = 0;
    outer = qemu_coroutine_create(outer_body, NULL);
    qemu_coroutine_enter(outer);
    CHECK(steps == 2);
}

/* ---- */

typedef void Enter(Coroutine *co);
typedef void Yield(void);

/* No call but of the two: what it computes lies below its stack pointer, or in registers. Where the
 * two are functions these must be kept, else the compiler knows that they are not. */
#define KEEPS(name, action)                                                                        \
    static __attribute__((noinline)) uint64_t name(uint64_t seed, Enter *enter, Yield *yield,      \
                                                   Coroutine *co)                                  \
    {                                                                                              \
        volatile uint64_t below[8];                                                                \
        uint64_t a = seed + 1, b = seed * 3, c = seed ^ 5, d = seed << 7, e = ~seed, f = -seed;    \
        double g = (double)seed / 3;                                                               \
        (void)enter, (void)yield, (void)co;                                                        \
        for (int i = 0; i < 8; i++) {                                                              \
            below[i] = seed + i;                                                                   \
        }                                                                                          \
        for (int i = 0; i < 8; i++) {                                                              \
            action;                                                                                \
            a += b, b ^= c, c += d, d += e, e += f, f += a, g += 1;                                \
            a += below[i];                                                                         \
        }                                                                                          \
        return a ^ b ^ c ^ d ^ e ^ f ^ (uint64_t)g;                                                \
    }

KEEPS(expected, (void)0)
KEEPS(enters, qemu_coroutine_enter(co))
KEEPS(enters_by_pointer, enter(co))
KEEPS(yields, qemu_coroutine_yield())
KEEPS(yields_by_pointer, yield())

static void keeps_what_it_has(void *opaque)
{
    (void)opaque;
    for (uint64_t seed = 1;; seed++) {
        CHECK(yields(seed, NULL, NULL, NULL) == expected(seed, NULL, NULL, NULL));
        CHECK(yields_by_pointer(seed, NULL, qemu_coroutine_yield, NULL) ==
              expected(seed, NULL, NULL, NULL));
        steps++;
    }
}

/* SPEC C1, C2: 128 bytes below its end are the function's, too. */
static void both_keep_what_they_do_not_tell_of(void)
{
    Coroutine *co = qemu_coroutine_create(keeps_what_it_has, NULL);

    steps = 0;
    for (uint64_t seed = 1000; seed < 1010; seed++) {
        CHECK(enters(seed, NULL, NULL, co) == expected(seed, NULL, NULL, NULL));
        CHECK(enters_by_pointer(seed, qemu_coroutine_enter, NULL, co) ==
              expected(seed, NULL, NULL, NULL));
    }
    CHECK(steps == 9); /* 160 entries, of which the first found no yield; 16 yields a step. */
}

/* ---- */

static int written; /* A compiler sees that no function writes it which it sees being called. */

static void writes(void *opaque)
{
    for (int *read = (int *)opaque;; qemu_coroutine_yield()) {
        *read += written;
        written = 1;
    }
}

static __attribute__((noinline)) void only_enters(Coroutine *co)
{
    qemu_coroutine_enter(co);
}

/* SPEC C1: it is known to run other functions. */
static void what_it_writes_is_seen(void)
{
    int read = 0;
    Coroutine *co = qemu_coroutine_create(writes, &read);

    for (int i = 0; i < 3; i++) {
        written = 10;
        only_enters(co);
        CHECK(written == 1);
    }
    CHECK(read == 30);
}

/* ---- */

/* As a program has that puts something in place of the library. */
struct functions {
    Enter *qemu_coroutine_enter;
    Yield *qemu_coroutine_yield;
};

static void yields_once_by_name(void *opaque)
{
    ((struct functions *)opaque)->qemu_coroutine_yield();
    steps++;
}

/* SPEC C1: the names are free elsewhere. */
static void their_names_are_no_macros(void)
{
    struct functions functions = {qemu_coroutine_enter, qemu_coroutine_yield};
    Coroutine *co = qemu_coroutine_create(yields_once_by_name, &functions);

    steps = 0;
    functions.qemu_coroutine_enter(co);
    functions.qemu_coroutine_enter(co);
    CHECK(steps == 1);
}

/* ---- */

static void *way_back;

/* Whether whoever called the function that has entered the running coroutine is found. */
static __attribute__((noinline)) bool is_traced_back(void)
{
    void *frames[64];
    int count = backtrace(frames, 64);

    for (int i = 0; i < count; i++) {
        if (frames[i] == way_back) {
            return true;
        }
    }
    return false;
}

static void looks_back(void *opaque)
{
    for (int *found = (int *)opaque;; qemu_coroutine_yield()) {
        *found += is_traced_back();
    }
}

static __attribute__((noinline)) void enters_from_here(Coroutine *co)
{
    way_back = __builtin_return_address(0);
    qemu_coroutine_enter(co);
    steps++;
}

static __attribute__((noinline)) void enters_by_pointer_from_here(Coroutine *co, Enter *enter)
{
    way_back = __builtin_return_address(0);
    enter(co);
    steps++;
}

#if defined(__x86_64__) && !defined(CORIO_SANITIZED)
#define IN_STEPS 1

static volatile bool in_steps, in_switch_alone;
static int traps, lost;

/* The library's functions in Rust save registers where no compiler is told of it. */
static bool is_of_the_switch(greg_t at)
{
    Dl_info found;

    return dladdr((void *)at, &found) != 0 && found.dli_sname != NULL &&
           strstr(found.dli_sname, "_by_jump") != NULL;
}

static void on_trap(int number, siginfo_t *info, void *opaque)
{
    ucontext_t *interrupted = (ucontext_t *)opaque;

    (void)number, (void)info;
    if (!in_steps) {
        interrupted->uc_mcontext.gregs[REG_EFL] &= ~0x100;
        return;
    }
    if (in_switch_alone && !is_of_the_switch(interrupted->uc_mcontext.gregs[REG_RIP])) {
        return;
    }
    traps++;
    lost += !is_traced_back();
}

/* From here on each instruction is followed by a trap. */
static inline void go_in_steps(void)
{
    in_steps = true;
    __asm__ __volatile__("leaq -128(%%rsp), %%rsp\n\tpushfq\n\torq $0x100, (%%rsp)\n\tpopfq\n\t"
                         "leaq 128(%%rsp), %%rsp" ::
                             : "cc", "memory");
}

static void yields_both_ways(void *opaque)
{
    for (;;) {
        volatile char *deeper = (volatile char *)alloca(1); /* A signal leaves what is aligned to 64. */

        *deeper = 0;
        qemu_coroutine_yield();
        ((Yield *)opaque)();
    }
}

static __attribute__((noinline)) void enters_in_steps(Coroutine *co, Enter *enter)
{
    way_back = __builtin_return_address(0);
    for (int i = 0; i < 4; i++) {
        go_in_steps();
        qemu_coroutine_enter(co);
        enter(co);
        in_steps = false;
    }
    steps++;
}

static void enters_another_in_steps(void *opaque)
{
    enters_in_steps((Coroutine *)opaque, qemu_coroutine_enter);
}

static void enters_to_the_end_in_steps(void *opaque)
{
    way_back = __builtin_return_address(0);
    in_switch_alone = true;
    go_in_steps();
    qemu_coroutine_enter((Coroutine *)opaque);
    in_steps = in_switch_alone = false;
    steps++;
}

/* SPEC C2: a signal may come after any instruction of a switch, and its handler look for the way
 * back. */
static void is_traced_back_after_each_instruction(void)
{
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO}, before;
    Coroutine *co = qemu_coroutine_create(yields_both_ways, (void *)qemu_coroutine_yield);

    steps = 0;
    enters_from_here(co); /* By another way, as it is new. */
    CHECK(sigaction(SIGTRAP, &action, &before) == 0);
    enters_in_steps(co, qemu_coroutine_enter);
    CHECK(traps > 8 * 20 && lost == 0 && steps == 2);
    traps = 0;
    qemu_coroutine_enter(qemu_coroutine_create(enters_another_in_steps, co)); /* From a coroutine. */
    CHECK(traps > 8 * 20 && lost == 0 && steps == 3);
    CHECK(sigaction(SIGTRAP, &before, NULL) == 0);
}

/* SPEC C2: also where one that ends has just given control back. */
static void is_traced_back_from_where_one_has_ended(void)
{
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO}, before;
    Coroutine *first, *second;
    int sum = 0;

    traps = steps = 0;
    CHECK(sigaction(SIGTRAP, &action, &before) == 0);
    qemu_coroutine_enter(first = qemu_coroutine_create(two_steps, &sum));
    enters_to_the_end_in_steps(first);
    CHECK(traps > 20 && lost == 0 && sum == 11);
    qemu_coroutine_enter(second = qemu_coroutine_create(two_steps, &sum));
    qemu_coroutine_enter(qemu_coroutine_create(enters_to_the_end_in_steps, second));
    CHECK(traps > 2 * 20 && lost == 0 && sum == 22 && steps == 2);
    CHECK(sigaction(SIGTRAP, &before, NULL) == 0);
}

#endif

/* SPEC C2: the frames of who has entered it lie behind its own. */
static void is_traced_back_to_who_entered_it(void)
{
    int found = 0;
    Coroutine *co = qemu_coroutine_create(looks_back, &found);

    steps = 0;
    enters_from_here(co);
    CHECK(found == 1);
    enters_from_here(co);
    CHECK(found == 2);
    enters_by_pointer_from_here(co, qemu_coroutine_enter);
    CHECK(found == 3 && steps == 3);
}

/* ---- */

static void yields_until_told(void *opaque)
{
    while (!*(bool *)opaque) {
        qemu_coroutine_yield();
    }
}

static void *has_contexts_in_turn(void *opaque)
{
    bool told = false;
    Coroutine *co = qemu_coroutine_create(yields_until_told, &told);
    AioContext *ctx = aio_context_new(NULL), *other = aio_context_new(NULL);

    CHECK(ctx != NULL && other != NULL);
    for (int i = 0; i < 2; i++) {
        qemu_coroutine_enter(co);
        CHECK(qemu_coroutine_get_aio_context(co) == NULL);
    }
    qemu_set_current_aio_context(ctx);
    for (int i = 0; i < 2; i++) {
        qemu_coroutine_enter(co);
        CHECK(qemu_coroutine_get_aio_context(co) == ctx);
        qemu_coroutine_enter(co);
        qemu_aio_coroutine_enter(other, co);
        CHECK(qemu_coroutine_get_aio_context(co) == other);
    }
    told = true;
    qemu_coroutine_enter(co);
    aio_context_unref(other);
    aio_context_unref(ctx);
    return opaque;
}

/* SPEC A1: also where it has been entered a moment ago. */
static void is_of_the_context_that_enters_it(void)
{
    pthread_t thread;

    CHECK(pthread_create(&thread, NULL, has_contexts_in_turn, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

/* ---- */

static void enters_itself(void *opaque)
{
    (void)opaque;
    qemu_coroutine_enter(qemu_coroutine_self());
}

static void recursively(void)
{
    qemu_coroutine_enter(qemu_coroutine_create(enters_itself, NULL));
}

static void of_nobody(void)
{
    qemu_coroutine_enter(NULL);
}

static void ends_at_once(void *opaque)
{
    (void)opaque;
}

static void a_dead_one(void)
{
    Coroutine *co = qemu_coroutine_create(ends_at_once, NULL);

    qemu_coroutine_enter(co);
    qemu_coroutine_enter(co);
}

/* SPEC C3 */
static void counts(void *opaque)
{
    ++*(int *)opaque;
}

/* The pool is told how many there will be; that changes nothing but how many stacks it keeps. */
static void the_pool_grows_and_shrinks(void)
{
    int ended = 0;
    Coroutine *all[64];
    qemu_coroutine_inc_pool_size(64);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 64; i++) {
            all[i] = qemu_coroutine_create(counts, &ended);
        }
        for (int i = 0; i < 64; i++) {
            qemu_coroutine_enter(all[i]);
        }
    }
    CHECK(ended == 3 * 64);
    qemu_coroutine_dec_pool_size(64);
}

static void the_pool_shrinks_below_nothing(void)
{
    qemu_coroutine_dec_pool_size(1000000);
}

static void misuse_aborts_with_a_message(void)
{
    CHECK_DIES(the_pool_shrinks_below_nothing,
               "qemu_coroutine_dec_pool_size: number of pooled stacks is 1000000, which is not what the "
               "limit was raised by, or less");
    CHECK_DIES(recursively, "Co-routine re-entered recursively");
    CHECK_DIES(qemu_coroutine_yield, "Co-routine is yielding to no one");
    CHECK_DIES(of_nobody, "qemu_coroutine_enter: the coroutine is NULL");
    CHECK_DIES(a_dead_one, "qemu_coroutine_enter: the coroutine has ended");
}

int main(void)
{
    static const struct test tests[] = {
        TEST(runs_until_it_yields_and_on),
        TEST(nests),
        TEST(both_keep_what_they_do_not_tell_of),
        TEST(what_it_writes_is_seen),
        TEST(their_names_are_no_macros),
        TEST(is_traced_back_to_who_entered_it),
#if IN_STEPS
        TEST(is_traced_back_after_each_instruction),
        TEST(is_traced_back_from_where_one_has_ended),
#endif
        TEST(is_of_the_context_that_enters_it),
        TEST(the_pool_grows_and_shrinks),
        TEST(misuse_aborts_with_a_message),
    };

    return RUN(tests);
}
