/* What the test programs share: checks, and children that are to die. */
#ifndef TEST_H
#define TEST_H

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "corio.h"

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s: failed: %s\n", __FILE__, __LINE__, __func__, #condition);  \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

/* What C allocates is as many words of 64 bits, from its first byte on; layout.rs asserts the same. */
#define ASSERT_WORDS(type, words)                                                                  \
    _Static_assert(sizeof(type) == 8 * (words) && _Alignof(type) == 8 &&                           \
                       offsetof(type, corio_private) == 0 &&                                       \
                       sizeof(((type *)NULL)->corio_private) == sizeof(type),                      \
                   "the library says otherwise")

/* A turn without progress. GLib's loop (glib/poll.h) is woken for nothing, too, and cannot tell. */
#ifdef POLL_H
#define CHECK_IDLE(turn) ((void)(turn))
#else
#define CHECK_IDLE(turn) CHECK(!(turn))
#endif

struct test {
    const char *name;
    void (*run)(void);
};

#define TEST(name) {#name, name}

/* Runs f in a child, which must abort after it has said `corio: ` and the message. */
static inline void check_dies(void (*f)(void), const char *message, const char *file, int line)
{
    int pipe_fds[2], status;
    char said[1024], wanted[1024];
    size_t length = 0;
    ssize_t got;
    pid_t child;

    if (pipe(pipe_fds) != 0 || (child = fork()) < 0) {
        perror("a child");
        _exit(1);
    }
    if (child == 0) {
        dup2(pipe_fds[1], STDERR_FILENO);
        close(pipe_fds[0]);
        alarm(20);
        f();
        _exit(0);
    }
    close(pipe_fds[1]);
    while (length < sizeof(said) - 1 &&
           (got = read(pipe_fds[0], said + length, sizeof(said) - 1 - length)) > 0) {
        length += (size_t)got;
    }
    said[length] = 0;
    close(pipe_fds[0]);
    waitpid(child, &status, 0);
    snprintf(wanted, sizeof(wanted), "corio: %s\n", message);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || strcmp(said, wanted) != 0) {
        fprintf(stderr, "%s:%d: status %#x, wanted SIGABRT and\n  %sgot\n  %s\n", file, line, status,
                wanted, said);
        _exit(1);
    }
}

#define CHECK_DIES(f, message) check_dies(f, message, __FILE__, __LINE__)

static inline int run_tests(const struct test *tests, size_t count)
{
    alarm(120);
    for (size_t i = 0; i < count; i++) {
        tests[i].run();
        printf("passed: %s\n", tests[i].name);
        fflush(stdout);
    }
    return 0;
}

#define RUN(tests) run_tests(tests, sizeof(tests) / sizeof((tests)[0]))

#endif
