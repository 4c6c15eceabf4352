/* Has the programs of the directory above turn their contexts by main loops of GLib's: this is what
 * they are compiled with in place of aio_poll. */
#ifndef POLL_H
#define POLL_H

#define _GNU_SOURCE

#include "corio-glib.h"

/* This thread's main context, with the thread's AioContext for its only source. */
static inline GMainContext *main_context_of_thread(AioContext *ctx)
{
    static __thread GMainContext *main_context;
    static __thread AioContext *of;

    if (of != ctx) {
        GSource *source = aio_get_g_source(ctx);

        if (main_context != NULL) {
            g_main_context_unref(main_context);
        }
        main_context = g_main_context_new();
        g_source_attach(source, main_context);
        g_source_unref(source);
        of = ctx;
    }
    return main_context;
}

/* What g_main_context_iteration does, with a look at the context before it is dispatched: that it
 * was woken for nothing, GLib does not tell. */
static inline bool poll_by_glib(AioContext *ctx, bool blocking)
{
    GMainContext *main_context;
    GPollFD fds[4];
    gint priority, timeout, count;
    bool progress;

    if (ctx != qemu_get_current_aio_context() || qemu_in_coroutine()) {
        return aio_poll(ctx, blocking); /* Which is misuse. */
    }
    main_context = main_context_of_thread(ctx);
    g_main_context_acquire(main_context);
    g_main_context_prepare(main_context, &priority);
    count = g_main_context_query(main_context, priority, &timeout, fds, 4);
    g_poll(fds, (guint)count, blocking ? timeout : 0);
    g_main_context_check(main_context, priority, fds, count);
    progress = aio_pending(ctx);
    g_main_context_dispatch(main_context);
    g_main_context_release(main_context);
    return progress;
}

#define aio_poll poll_by_glib

#endif
