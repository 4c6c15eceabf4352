/* Coroutines by themselves, without a context. */
#include "test.h"

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
static void misuse_aborts_with_a_message(void)
{
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
        TEST(misuse_aborts_with_a_message),
    };

    return RUN(tests);
}
