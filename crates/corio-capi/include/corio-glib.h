/* Corio for C, with GLib: what corio.h has not, as it needs GLib's types. */
#ifndef CORIO_GLIB_H
#define CORIO_GLIB_H

#include <glib.h>

#include "corio.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The context as a source, to be attached to a main context that is iterated in the home of ctx:
 * then that runs what aio_poll would, which may be called besides. With a reference for the caller,
 * as from g_source_ref. In the home of ctx; always the same, until it is destroyed. */
GSource *aio_get_g_source(AioContext *ctx);

#ifdef __cplusplus
}
#endif

#endif /* CORIO_GLIB_H */
