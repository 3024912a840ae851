/* For LD_PRELOAD: the k-th change of a file below a folder fails, as if the disk had refused it.

   ANYECG_FAIL_UNDER: the folder. Either the process calls fail_at itself, or ANYECG_FAIL_AT, _ERRNO, _STAYS and _RANK
   (the MPI rank that is meant) say it. fsync below the folder is counted but not done: no power is lost here. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *under;
static long fail_number = -1, n_calls;
static int fail_error, fail_stays;

void fail_at(long number, int error, int stays) {
    under = getenv("ANYECG_FAIL_UNDER");
    fail_number = number, fail_error = error, fail_stays = stays, n_calls = 0;
}

long fail_calls(void) { return n_calls; }

static char refusal[PATH_MAX + 32];

const char *fail_what(void) { return refusal; }

__attribute__((constructor)) static void start(void) {
    const char *at = getenv("ANYECG_FAIL_AT"), *rank = getenv("ANYECG_FAIL_RANK"), *here = getenv("PMI_RANK");
    if (at && rank && here && !strcmp(rank, here))
        fail_at(atol(at), atoi(getenv("ANYECG_FAIL_ERRNO")), atoi(getenv("ANYECG_FAIL_STAYS")));
}

static int below(const char *path) {
    return under && path && !strncmp(path, under, strlen(under));
}

static int refused(const char *call, const char *path, int needs_space) {
    if (!below(path)) return 0;
    long number = __atomic_fetch_add(&n_calls, 1, __ATOMIC_SEQ_CST);
    if (fail_number < 0 || number < fail_number) return 0;
    if (number > fail_number && !(fail_stays && needs_space)) return 0;
    if (number == fail_number) snprintf(refusal, sizeof refusal, "%s %s", call, path);
    errno = fail_error;
    return 1;
}

static const char *path_of(int descriptor, char *path) {
    char link[64] = "/proc/self/fd/";
    char digits[16];
    int n = 0, at = 14;
    for (int left = descriptor; left || !n; left /= 10) digits[n++] = '0' + left % 10;
    while (n) link[at++] = digits[--n];
    ssize_t size = under ? readlink(link, path, PATH_MAX - 1) : -1;
    if (size < 0) return NULL;
    path[size] = 0;
    return path;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define BY_DESCRIPTOR(type, name, needs, wanted, given)                 \
    type name wanted {                                                  \
        char path[PATH_MAX];                                            \
        REAL(name);                                                     \
        return refused(#name, path_of(descriptor, path), needs) ? -1 : real given; \
    }
#define OPEN(name)                                                      \
    int name(const char *path, int flags, ...) {                        \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                   \
        REAL(name);                                                     \
        return refused(#name, path, flags & O_CREAT) ? -1 : real(path, flags, mode); \
    }
#define OPENAT(name)                                                    \
    int name(int folder, const char *path, int flags, ...) {            \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                   \
        REAL(name);                                                     \
        return refused(#name, path, flags & O_CREAT) ? -1 : real(folder, path, flags, mode); \
    }
#define SYNC(name)                                                      \
    int name(int descriptor) {                                          \
        char path[PATH_MAX];                                            \
        REAL(name);                                                     \
        const char *where = path_of(descriptor, path);                  \
        if (refused(#name, where, 1)) return -1;                               \
        return below(where) ? 0 : real(descriptor);                     \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
SYNC(fsync)
SYNC(fdatasync)
BY_DESCRIPTOR(ssize_t, write, 1, (int descriptor, const void *data, size_t n), (descriptor, data, n))
BY_DESCRIPTOR(ssize_t, pwrite, 1, (int descriptor, const void *data, size_t n, off_t at), (descriptor, data, n, at))
BY_DESCRIPTOR(ssize_t, pwrite64, 1, (int descriptor, const void *data, size_t n, off64_t at), (descriptor, data, n, at))
BY_DESCRIPTOR(ssize_t, writev, 1, (int descriptor, const struct iovec *data, int n), (descriptor, data, n))
BY_DESCRIPTOR(int, ftruncate, 1, (int descriptor, off_t n), (descriptor, n))
BY_DESCRIPTOR(int, ftruncate64, 1, (int descriptor, off64_t n), (descriptor, n))

int rename(const char *from, const char *to) {
    REAL(rename);
    return refused("rename", from, 1) ? -1 : real(from, to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return refused("mkdir", path, 1) ? -1 : real(path, mode);
}

int unlink(const char *path) {
    REAL(unlink);
    return refused("unlink", path, 0) ? -1 : real(path);
}

int close(int descriptor) {
    char path[PATH_MAX];
    REAL(close);
    int writes = under && (fcntl(descriptor, F_GETFL) & O_ACCMODE) != O_RDONLY;
    int fails = writes && refused("close", path_of(descriptor, path), 0), error = errno;
    int result = real(descriptor);
    if (!fails) return result;
    errno = error;
    return -1;
}
