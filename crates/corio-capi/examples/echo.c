/* An echo server, and beside it a reader of a disk, on one thread: echo FILE */
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
#include <corio.h>

static void coroutine_fn echo(void *opaque)
{
    int fd = (int)(intptr_t)opaque;
    char buf[4096]; /* On the coroutine's own stack. */
    ssize_t got;
    do {
        yield_until_fd_readable(fd);
        got = recv(fd, buf, sizeof(buf), 0);
    } while (got > 0 && corio_co_send(fd, buf, (size_t)got) == got);
    close(fd);
}

static void coroutine_fn serve(void *listener)
{
    for (;;) {
        yield_until_fd_readable(*(int *)listener);
        int fd = accept(*(int *)listener, NULL, NULL);
        if (fd >= 0) {
            qemu_coroutine_enter(qemu_coroutine_create(echo, (void *)(intptr_t)fd));
        }
    }
}

static void coroutine_fn read_disk(void *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    char buf[65536];
    struct iovec iov = {buf, sizeof(buf)};
    ssize_t got, size = 0;
    while ((got = corio_co_preadv(fd, &iov, 1, size, CORIO_ENGINE_AUTO)) > 0) {
        size += got; /* The loop went on meanwhile. */
    }
    dprintf(STDOUT_FILENO, "%s: %zd bytes, %s\n", (char *)path, size, got < 0 ? "failed" : "read");
    close(fd);
}

int main(int argc, char **argv)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof(at);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (argc != 2 || bind(listener, (struct sockaddr *)&at, size) || listen(listener, 64) ||
        getsockname(listener, (struct sockaddr *)&at, &size) || qemu_init_main_loop(NULL)) {
        return 1;
    }
    dprintf(STDOUT_FILENO, "port %d\n", ntohs(at.sin_port));
    qemu_coroutine_enter(qemu_coroutine_create(serve, &listener));
    qemu_coroutine_enter(qemu_coroutine_create(read_disk, argv[1]));
    while (true) {
        aio_poll(qemu_get_aio_context(), true);
    }
}
