/* Disk requests on descriptors, by each engine. */
#define _GNU_SOURCE
#include <fcntl.h>

#include "test.h"

#define BLOCK 4096
#define READERS 64

static const char *const names[] = {"auto", "io_uring", "linux_aio", "threads"};

static AioContext *ctx;
static int pending, fd = -1;
static bool direct;

static void start(CoroutineEntry *entry, void *opaque)
{
    pending++;
    qemu_coroutine_enter(qemu_coroutine_create(entry, opaque));
}

static void turn_until_done(void)
{
    while (pending > 0) {
        aio_poll(ctx, true);
    }
}

/* A file without a name; -1 if this file system has no direct I/O. */
static int open_file(int flags)
{
    char name[] = "disk-XXXXXX";
    int made = mkostemp(name, flags);

    if (made >= 0 || errno != EINVAL) {
        CHECK(made >= 0);
    }
    unlink(name);
    return made;
}

static void *block_of(char what)
{
    void *block;

    CHECK(posix_memalign(&block, BLOCK, BLOCK) == 0);
    memset(block, what, BLOCK);
    return block;
}

static bool is_all(const char *block, char what)
{
    for (int i = 0; i < BLOCK; i++) {
        if (block[i] != what) {
            return false;
        }
    }
    return true;
}

/* SPEC E1, E2, E3, E4 */
static void writes_and_reads(void *opaque)
{
    CorioEngine engine = *(CorioEngine *)opaque;
    char *a = block_of('a'), *b = block_of('b'), *c = block_of('c'), *zero = block_of(0);
    struct iovec out[] = {{a, BLOCK}, {NULL, 0}, {b, BLOCK}};
    struct iovec in[] = {{NULL, 0}, {b, BLOCK}, {a, BLOCK}, {c, BLOCK}};
    ssize_t written;

    CHECK(ftruncate(fd, 0) == 0);
    written = corio_co_pwritev(fd, out, 3, BLOCK, engine);
    if (written < 0 && written != -EINVAL) {
        printf("SKIP: %s: %s\n", names[engine], strerror((int)-written));
    } else if (engine == CORIO_ENGINE_LINUX_AIO && !direct) {
        CHECK(written == -EINVAL);
    } else {
        CHECK(written == 2 * BLOCK);
        CHECK(corio_co_fdatasync(fd, engine) == 0);
        CHECK(corio_co_preadv(fd, in, 3, BLOCK, engine) == 2 * BLOCK);
        CHECK(is_all(b, 'a') && is_all(a, 'b'));
        /* The file ends after three blocks. */
        CHECK(corio_co_preadv(fd, in, 4, 2 * BLOCK, engine) == BLOCK);
        CHECK(is_all(b, 'b')); /* What is past the end is left open. */
        CHECK(corio_co_preadv(fd, in, 4, 3 * BLOCK, engine) == 0);
        CHECK(corio_co_preadv(fd, in, 1, 0, engine) == 0);
        CHECK(corio_co_preadv(fd, NULL, 0, 0, engine) == 0);
        CHECK(corio_co_preadv(fd, in, 2, 0, engine) == BLOCK && is_all(b, 0)); /* Not written. */
        CHECK(corio_co_discard(fd, BLOCK, BLOCK, engine) == 0);
        CHECK(corio_co_discard(fd, 0, 0, engine) == 0);
        CHECK(corio_co_preadv(fd, in, 2, BLOCK, engine) == BLOCK && memcmp(b, zero, BLOCK) == 0);
        printf("ran: %s%s\n", names[engine], direct ? ", direct" : "");
    }
    free(a);
    free(b);
    free(c);
    free(zero);
    pending--;
}

static void each_engine(void)
{
    for (CorioEngine engine = CORIO_ENGINE_AUTO; engine <= CORIO_ENGINE_THREADS; engine++) {
        start(writes_and_reads, &engine);
        turn_until_done();
    }
}

static void requests_of_each_engine(void)
{
    fd = open_file(O_CLOEXEC);
    direct = false;
    each_engine();
    close(fd);
    fd = open_file(O_CLOEXEC | O_DIRECT);
    if (fd < 0) {
        printf("SKIP: no direct I/O here\n");
        return;
    }
    direct = true;
    each_engine();
    close(fd);
}

/* SPEC E4 */
static void fails(void *opaque)
{
    CorioEngine engine = *(CorioEngine *)opaque;
    char byte = 'x';
    struct iovec one = {&byte, 1}, nowhere = {NULL, 1}, many[1025] = {{0}};
    int pipe_fds[2];

    CHECK(corio_co_preadv(-1, &one, 1, 0, engine) == -EBADF);
    CHECK(corio_co_fdatasync(-1, engine) == -EBADF);
    CHECK(corio_co_preadv(fd, &one, -1, 0, engine) == -EINVAL);
    CHECK(corio_co_preadv(fd, NULL, 1, 0, engine) == -EINVAL);
    CHECK(corio_co_preadv(fd, many, 1025, 0, engine) == -EINVAL);
    CHECK(corio_co_preadv(fd, &nowhere, 1, 0, engine) == -EFAULT);
    CHECK(corio_co_preadv(fd, &one, 1, -1, engine) == -EINVAL);
    CHECK(corio_co_pwritev(fd, &one, 1, INT64_MIN, engine) == -EINVAL);
    CHECK(corio_co_pwritev(fd, &one, 1, INT64_MAX, engine) < 0);
    CHECK(corio_co_discard(fd, -1, 1, engine) == -EINVAL);
    CHECK(corio_co_discard(fd, 0, -1, engine) == -EINVAL);
    CHECK(pipe(pipe_fds) == 0);
    if (engine == CORIO_ENGINE_THREADS) { /* io_uring would wait for data. */
        CHECK(corio_co_preadv(pipe_fds[0], &one, 1, 0, engine) == -ESPIPE);
    }
    CHECK(corio_co_discard(pipe_fds[1], 0, 1, engine) < 0);
    CHECK(corio_co_pwritev(pipe_fds[0], &one, 1, 0, engine) < 0);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    CHECK(corio_co_preadv(pipe_fds[0], &one, 1, 0, engine) == -EBADF);
    pending--;
}

static void errors_are_returned(void)
{
    CorioEngine engines[] = {CORIO_ENGINE_AUTO, CORIO_ENGINE_THREADS};

    fd = open_file(O_CLOEXEC);
    for (int i = 0; i < 2; i++) {
        start(fails, &engines[i]);
        turn_until_done();
    }
    close(fd);
}

/* ---- */

struct reader {
    char byte;
    int64_t at;
    AioContext *home;
};

static void reads_one(void *opaque)
{
    struct reader *reader = opaque;
    struct iovec one = {&reader->byte, 1};

    if (reader->home != NULL) {
        aio_co_reschedule_self(reader->home);
    }
    CHECK(corio_co_preadv(fd, &one, 1, reader->at, CORIO_ENGINE_AUTO) == 1);
    CHECK(qemu_get_current_aio_context() == (reader->home != NULL ? reader->home : ctx));
    if (reader->home != NULL) {
        aio_co_reschedule_self(ctx);
    }
    pending--;
}

/* SPEC E1: made in one section, and in two threads at a time. */
static void many_read_at_a_time(void)
{
    CorioIOThread *io = corio_iothread_new("disk", NULL);
    struct reader readers[READERS] = {{0}};
    char bytes[READERS];

    fd = open_file(O_CLOEXEC);
    for (int i = 0; i < READERS; i++) {
        bytes[i] = (char)i;
        readers[i].at = i;
        readers[i].home = i % 2 == 0 ? NULL : corio_iothread_get_aio_context(io);
    }
    CHECK(pwrite(fd, bytes, READERS, 0) == READERS);
    defer_call_begin();
    for (int i = 0; i < READERS; i++) {
        start(reads_one, &readers[i]);
    }
    defer_call_end();
    turn_until_done();
    for (int i = 0; i < READERS; i++) {
        CHECK(readers[i].byte == i);
    }
    corio_iothread_join(io);
    close(fd);
}

static void reads_once(void *opaque)
{
    struct iovec one = {opaque, 1};

    CHECK(corio_co_preadv(fd, &one, 1, 0, CORIO_ENGINE_IO_URING) == 1);
}

static void *has_no_context(void *opaque)
{
    qemu_coroutine_enter(qemu_coroutine_create(reads_once, opaque));
    return NULL;
}

/* Without a loop there is nothing to yield to: it blocks. */
static void a_thread_without_a_loop_blocks(void)
{
    pthread_t thread;
    char byte = 0;

    fd = open_file(O_CLOEXEC);
    CHECK(pwrite(fd, "y", 1, 0) == 1);
    CHECK(pthread_create(&thread, NULL, has_no_context, &byte) == 0);
    pthread_join(thread, NULL);
    CHECK(byte == 'y');
    close(fd);
}

/* ---- */

static void read_outside(void)
{
    corio_co_preadv(0, NULL, 0, 0, CORIO_ENGINE_AUTO);
}

static void write_outside(void)
{
    corio_co_pwritev(0, NULL, 0, 0, CORIO_ENGINE_AUTO);
}

static void sync_outside(void)
{
    corio_co_fdatasync(0, CORIO_ENGINE_AUTO);
}

static void discard_outside(void)
{
    corio_co_discard(0, 0, 0, CORIO_ENGINE_AUTO);
}

static void by_no_engine(void *opaque)
{
    (void)opaque;
    corio_co_fdatasync(0, 4);
}

static void no_such_engine(void)
{
    start(by_no_engine, NULL);
}

static void misuse_aborts_with_a_message(void)
{
    CHECK_DIES(read_outside, "corio_co_preadv: called outside a coroutine");
    CHECK_DIES(write_outside, "corio_co_pwritev: called outside a coroutine");
    CHECK_DIES(sync_outside, "corio_co_fdatasync: called outside a coroutine");
    CHECK_DIES(discard_outside, "corio_co_discard: called outside a coroutine");
    CHECK_DIES(no_such_engine, "corio_co_fdatasync: there is no engine 4");
}

int main(void)
{
    static const struct test tests[] = {
        TEST(requests_of_each_engine),
        TEST(errors_are_returned),
        TEST(many_read_at_a_time),
        TEST(a_thread_without_a_loop_blocks),
        TEST(misuse_aborts_with_a_message),
    };

    CHECK(qemu_init_main_loop(NULL) == 0);
    ctx = qemu_get_aio_context();
    return RUN(tests);
}
