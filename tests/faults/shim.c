/* Stands between a process and the system (LD_PRELOAD): counts the operations on files below one folder, and lets one
 * of them fail. All calls go straight to the system, so nothing of libc's is needed here.
 *
 * What to do is read from a file that is mapped (`struct state`, mirrored by shim.py). Processes that are started or
 * forked share it, so the numbers run through all of them, and they outlive a process that was killed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN, CREATE, READ, WRITE, FSYNC, RENAME, UNLINK, MKDIR, KINDS };
enum mode { NONE, EIO_ONCE, EIO_FOREVER, ENOSPC_ONCE, ENOSPC_FOREVER, SHORT, TORN, KILL_BEFORE, KILL_AFTER };

struct state {
    int32_t armed, kind, mode, fired;
    int64_t number; /* from 1 */
    int64_t counts[KINDS];
    char root[1024];
};

static struct state *state;
static unsigned char below[1 << 16]; /* descriptors of files below the root */

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("FAULTS_STATE");
    if (!name) return;
    int file = (int)syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC, 0);
    if (file < 0) return;
    void *mapped = (void *)syscall(SYS_mmap, 0, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (mapped != MAP_FAILED) state = mapped;
}

static int armed(void) { return state && __atomic_load_n(&state->armed, __ATOMIC_ACQUIRE); }
static int followed(int file) { return armed() && file >= 0 && file < (int)sizeof below && below[file]; }

static int is_below(int folder, const char *path) {
    char full[2 * PATH_MAX], *end = full;
    if (!armed() || !path) return 0;
    if (path[0] != '/') {
        char link[64] = "/proc/self/cwd";
        if (folder != AT_FDCWD) {
            char digits[12], *digit = digits + sizeof digits;
            *--digit = 0;
            do *--digit = (char)('0' + folder % 10); while (folder /= 10);
            strcpy(link, "/proc/self/fd/");
            strcat(link, digit);
        }
        long length = syscall(SYS_readlinkat, AT_FDCWD, link, full, PATH_MAX);
        if (length < 0) return 0;
        end += length;
        *end++ = '/';
    }
    strncpy(end, path, PATH_MAX - 1);
    end[PATH_MAX - 1] = 0;
    size_t length = strlen(state->root);
    return !strncmp(full, state->root, length) && (full[length] == '/' || !full[length]);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts an operation. Returns its mode if it is the one to fail, else NONE; sets errno for those that fail at once. */
static enum mode meet(enum kind kind) {
    int64_t number = __atomic_add_fetch(&state->counts[kind], 1, __ATOMIC_SEQ_CST);
    enum mode mode = (enum mode)state->mode;
    if (mode == NONE) return NONE;
    if (__atomic_load_n(&state->fired, __ATOMIC_SEQ_CST)) {
        int takes_space = kind == CREATE || kind == WRITE || kind == MKDIR;
        if (mode == EIO_FOREVER) return errno = EIO, mode;
        if (mode == ENOSPC_FOREVER && takes_space) return errno = ENOSPC, mode;
        /* A system that takes a part of the bytes has no room for the rest. */
        if (mode == SHORT && kind == WRITE && __atomic_exchange_n(&state->mode, NONE, __ATOMIC_SEQ_CST) == SHORT)
            return errno = ENOSPC, ENOSPC_ONCE;
        return NONE;
    }
    if ((int)kind != state->kind || number != state->number) return NONE;
    __atomic_store_n(&state->fired, 1, __ATOMIC_SEQ_CST);
    if (mode == KILL_BEFORE) die();
    if (mode == EIO_ONCE || mode == EIO_FOREVER) errno = EIO;
    if (mode == ENOSPC_ONCE || mode == ENOSPC_FOREVER) errno = ENOSPC;
    return mode;
}

static int fails(enum mode mode) { return mode >= EIO_ONCE && mode <= ENOSPC_FOREVER; }

#define AROUND(kind, call)                     \
    do {                                       \
        enum mode mode = meet(kind);           \
        if (fails(mode)) return -1;            \
        int result = (int)(call);              \
        if (mode == KILL_AFTER) die();         \
        return result;                         \
    } while (0)

static int open_at(int folder, const char *path, int flags, mode_t permissions) {
    int is_followed = is_below(folder, path);
    enum mode mode = is_followed ? meet(flags & (O_CREAT | O_WRONLY | O_RDWR) ? CREATE : OPEN) : NONE;
    if (fails(mode)) return -1;
    int file = (int)syscall(SYS_openat, folder, path, flags, permissions);
    if (mode == KILL_AFTER) die();
    if (file >= 0 && file < (int)sizeof below) below[file] = (unsigned char)is_followed;
    return file;
}

#define PERMISSIONS(flags)                                \
    mode_t permissions = 0;                               \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {              \
        va_list more;                                     \
        va_start(more, flags);                            \
        permissions = (mode_t)va_arg(more, int);          \
        va_end(more);                                     \
    }

int open(const char *path, int flags, ...) { PERMISSIONS(flags) return open_at(AT_FDCWD, path, flags, permissions); }
int open64(const char *path, int flags, ...) { PERMISSIONS(flags) return open_at(AT_FDCWD, path, flags, permissions); }
int openat(int folder, const char *path, int flags, ...) {
    PERMISSIONS(flags) return open_at(folder, path, flags, permissions);
}
int openat64(int folder, const char *path, int flags, ...) {
    PERMISSIONS(flags) return open_at(folder, path, flags, permissions);
}
int __open_2(const char *path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }
int creat(const char *path, mode_t permissions) {
    return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, permissions);
}

int close(int file) {
    if (file >= 0 && file < (int)sizeof below) below[file] = 0;
    return (int)syscall(SYS_close, file);
}

/* `real` makes the call with at most that many bytes. */
#define MOVED(kind, file, bytes, real)                                 \
    do {                                                               \
        size_t most = (bytes);                                         \
        enum mode mode = followed(file) ? meet(kind) : NONE;           \
        if (fails(mode)) return -1;                                    \
        if ((mode == SHORT || mode == TORN) && most > 1) most /= 2;    \
        ssize_t moved = (ssize_t)(real);                               \
        if (mode == TORN || mode == KILL_AFTER) die();                 \
        return moved;                                                  \
    } while (0)

ssize_t write(int file, const void *data, size_t size) {
    MOVED(WRITE, file, size, syscall(SYS_write, file, data, most));
}
ssize_t pwrite(int file, const void *data, size_t size, off_t place) {
    MOVED(WRITE, file, size, syscall(SYS_pwrite64, file, data, most, place));
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t place) {
    MOVED(WRITE, file, size, syscall(SYS_pwrite64, file, data, most, place));
}
ssize_t writev(int file, const struct iovec *parts, int count) {
    MOVED(WRITE, file, (size_t)count, syscall(SYS_writev, file, parts, (int)most));
}
ssize_t sendfile(int to, int from, off_t *place, size_t size) {
    MOVED(WRITE, to, size, syscall(SYS_sendfile, to, from, place, most));
}
ssize_t sendfile64(int to, int from, off64_t *place, size_t size) {
    MOVED(WRITE, to, size, syscall(SYS_sendfile, to, from, place, most));
}
ssize_t copy_file_range(int from, off64_t *start, int to, off64_t *place, size_t size, unsigned int flags) {
    MOVED(WRITE, to, size, syscall(SYS_copy_file_range, from, start, to, place, most, flags));
}
ssize_t read(int file, void *data, size_t size) { MOVED(READ, file, size, syscall(SYS_read, file, data, most)); }
ssize_t pread(int file, void *data, size_t size, off_t place) {
    MOVED(READ, file, size, syscall(SYS_pread64, file, data, most, place));
}
ssize_t pread64(int file, void *data, size_t size, off64_t place) {
    MOVED(READ, file, size, syscall(SYS_pread64, file, data, most, place));
}
ssize_t readv(int file, const struct iovec *parts, int count) {
    MOVED(READ, file, (size_t)count, syscall(SYS_readv, file, parts, (int)most));
}

static void *map(void *at, size_t size, int protection, int flags, int file, off64_t place) {
    enum mode mode = !(flags & MAP_ANONYMOUS) && followed(file) ? meet(READ) : NONE;
    if (fails(mode)) return MAP_FAILED;
    void *mapped = (void *)syscall(SYS_mmap, at, size, protection, flags, file, place);
    if (mode == KILL_AFTER || mode == TORN) die();
    return mapped;
}
void *mmap(void *at, size_t size, int protection, int flags, int file, off_t place) {
    return map(at, size, protection, flags, file, place);
}
void *mmap64(void *at, size_t size, int protection, int flags, int file, off64_t place) {
    return map(at, size, protection, flags, file, place);
}

/* Not done where it is followed: nothing here cuts the power. */
int fsync(int file) {
    if (!followed(file)) return (int)syscall(SYS_fsync, file);
    AROUND(FSYNC, 0);
}
int fdatasync(int file) {
    if (!followed(file)) return (int)syscall(SYS_fdatasync, file);
    AROUND(FSYNC, 0);
}

static int rename_at(int from_folder, const char *from, int to_folder, const char *to, unsigned int flags) {
    if (!is_below(from_folder, from) && !is_below(to_folder, to))
        return (int)syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
    AROUND(RENAME, syscall(SYS_renameat2, from_folder, from, to_folder, to, flags));
}
int rename(const char *from, const char *to) { return rename_at(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    return rename_at(from_folder, from, to_folder, to, 0);
}
int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned int flags) {
    return rename_at(from_folder, from, to_folder, to, flags);
}

int unlinkat(int folder, const char *path, int flags) {
    if (!is_below(folder, path)) return (int)syscall(SYS_unlinkat, folder, path, flags);
    AROUND(UNLINK, syscall(SYS_unlinkat, folder, path, flags));
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int folder, const char *path, mode_t permissions) {
    if (!is_below(folder, path)) return (int)syscall(SYS_mkdirat, folder, path, permissions);
    AROUND(MKDIR, syscall(SYS_mkdirat, folder, path, permissions));
}
int mkdir(const char *path, mode_t permissions) { return mkdirat(AT_FDCWD, path, permissions); }
