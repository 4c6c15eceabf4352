/* A context as a source among others of a main loop of GLib's. */
#include "../test.h"
#include "corio-glib.h"

static AioContext *ctx;
static GMainLoop *loop;
static char order[64];

static void note(void *opaque)
{
    strcat(order, opaque);
}

static gboolean at_idle(gpointer opaque)
{
    note(opaque);
    return G_SOURCE_REMOVE;
}

static void quits(void *opaque)
{
    note(opaque);
    g_main_loop_quit(loop);
}

static void *schedules(void *opaque)
{
    aio_co_schedule(ctx, opaque);
    return NULL;
}

static int measures(void *opaque)
{
    return (int)strlen(opaque);
}

static void sleeps_and_quits(void *opaque)
{
    note(opaque);
    qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, SCALE_MS);
    CHECK(thread_pool_submit_co(measures, "four") == 4);
    quits(opaque);
}

/* SPEC G1: timers, coroutines of other threads, workers; with a source of GLib's beside. */
static void the_default_main_loop_runs_the_main_context(void)
{
    GSource *source = aio_get_g_source(ctx);
    Coroutine *co = qemu_coroutine_create(sleeps_and_quits, "c");
    pthread_t thread;

    CHECK(aio_get_g_source(ctx) == source); /* One more reference. */
    g_source_unref(source);
    CHECK(g_source_attach(source, NULL) > 0);
    g_source_unref(source);
    loop = g_main_loop_new(NULL, FALSE);
    order[0] = 0;
    g_idle_add(at_idle, "i");
    CHECK(pthread_create(&thread, NULL, schedules, co) == 0);
    g_main_loop_run(loop);
    pthread_join(thread, NULL);
    CHECK(strcmp(order, "icc") == 0 || strcmp(order, "cic") == 0 || strcmp(order, "cci") == 0);
    g_main_loop_unref(loop);
}

/* SPEC G1: aio_poll may be called besides. */
static void aio_poll_goes_on_working(void)
{
    order[0] = 0;
    aio_bh_schedule_oneshot(ctx, note, "b");
    CHECK(aio_poll(ctx, true) && strcmp(order, "b") == 0);
}

/* What was destroyed is made anew. */
static void a_source_is_destroyed(void)
{
    GSource *source = aio_get_g_source(ctx);

    g_source_destroy(source);
    g_source_unref(source);
    source = aio_get_g_source(ctx);
    CHECK(!g_source_is_destroyed(source) && g_source_get_context(source) == NULL);
    CHECK(g_source_attach(source, NULL) > 0);
    g_source_unref(source);
    order[0] = 0;
    aio_bh_schedule_oneshot(ctx, note, "b");
    while (order[0] == 0) {
        g_main_context_iteration(NULL, TRUE);
    }
}

static void off_home(void)
{
    aio_get_g_source(aio_context_new(NULL));
}

static void no_context(void)
{
    aio_get_g_source(NULL);
}

static void misuse_aborts_with_a_message(void)
{
    CHECK_DIES(off_home, "aio_get_g_source: this thread is not the home of the context");
    CHECK_DIES(no_context, "aio_get_g_source: the context is NULL");
}

int main(void)
{
    static const struct test tests[] = {
        TEST(the_default_main_loop_runs_the_main_context),
        TEST(aio_poll_goes_on_working),
        TEST(a_source_is_destroyed),
        TEST(misuse_aborts_with_a_message),
    };

    CHECK(qemu_init_main_loop(NULL) == 0);
    ctx = qemu_get_aio_context();
    return RUN(tests);
}
