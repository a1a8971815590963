/* Preloaded into a process: writes down what it does to the files of one folder, and lets any of
 * these operations fail.
 *
 * DISK_ROOT  the folder, absolute
 * DISK_LOG   the record: for each operation that succeeded, in their order, a line of words and,
 *            after a write, the bytes:
 *
 *   C ino path          a file was made        D ino path   a folder was made
 *   W ino offset n      n bytes were written   T ino size   a file was cut or extended
 *   R old new           renamed                U path       unlinked, or a folder removed
 *   S ino               fsync or fdatasync     M text       a mark of the program itself
 *
 * disk_mark(text) adds a mark. disk_fail(first, count, error) lets the next operations fail, from
 * number `first` on (0: the next one); error 0: writes take half of their bytes. disk_refused()
 * returns how many have failed since.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_FD 4096
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static int log_fd = -1;
static const char *root;
static size_t root_length;
static ino_t watched[MAX_FD]; /* inode of each descriptor of a file in the folder, else 0 */
static long operations, refusals, fail_first = -1, fail_count, fail_error;

static void put(const void *bytes, size_t n) {
    const char *from = bytes;
    while (n > 0) {
        ssize_t done = syscall(SYS_write, log_fd, from, n);
        if (done <= 0) abort();
        from += done, n -= (size_t)done;
    }
}

static void note(const char *format, ...) {
    char line[2 * PATH_MAX + 64];
    va_list words;
    va_start(words, format);
    int n = vsnprintf(line, sizeof line, format, words);
    va_end(words);
    put(line, (size_t)n);
}

__attribute__((constructor)) static void start(void) {
    root = getenv("DISK_ROOT");
    const char *log = getenv("DISK_LOG");
    if (!root || !log) { root = NULL; return; }
    root_length = strlen(root);
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    unsetenv("LD_PRELOAD"); /* not for what this process starts */
    struct stat folder;
    if (stat(root, &folder) == 0) note("D %lu .\n", (unsigned long)folder.st_ino);
}

static const char *inside(const char *path, char *whole) {
    if (!root || !path) return NULL;
    if (path[0] != '/') {
        if (!getcwd(whole, PATH_MAX)) return NULL;
        strncat(whole, "/", PATH_MAX - strlen(whole) - 1);
        strncat(whole, path, PATH_MAX - strlen(whole) - 1);
        path = whole;
    }
    if (strncmp(path, root, root_length) || (path[root_length] && path[root_length] != '/')) return NULL;
    return path[root_length] ? path + root_length + 1 : ".";
}

static int is_memory(const char *path) { /* the index of SQLite's log is no file of the disk */
    size_t n = strlen(path);
    return n > 4 && !strcmp(path + n - 4, "-shm");
}

static int fails(void) {
    long number = operations++;
    int is_refused = fail_first >= 0 && number >= fail_first && number < fail_first + fail_count;
    refusals += is_refused;
    return is_refused;
}

void disk_mark(const char *text) {
    if (!root) return;
    pthread_mutex_lock(&lock);
    note("M %s\n", text);
    pthread_mutex_unlock(&lock);
}

void disk_fail(long first, long count, long error) {
    pthread_mutex_lock(&lock);
    operations = refusals = 0, fail_first = first, fail_count = count, fail_error = error;
    pthread_mutex_unlock(&lock);
}

long disk_refused(void) { return refusals; }

static int refused(void) {
    if (!fails()) return 0;
    errno = fail_error ? (int)fail_error : EIO;
    return 1;
}

static int opened(int at, const char *path, int flags, mode_t mode) {
    char whole[PATH_MAX];
    const char *name = at == AT_FDCWD || (path && path[0] == '/') ? inside(path, whole) : NULL;
    if (!name || is_memory(name)) return (int)syscall(SYS_openat, at, path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat before, after;
    int is_new = (flags & O_CREAT) && stat(path, &before) != 0;
    int cuts = (flags & O_TRUNC) && !is_new && before.st_size > 0;
    int fd = -1;
    if (!((is_new || cuts) && refused())) fd = (int)syscall(SYS_openat, at, path, flags, mode);
    if (fd >= 0 && fd < MAX_FD && fstat(fd, &after) == 0) {
        watched[fd] = after.st_ino;
        if (is_new) note("C %lu %s\n", (unsigned long)after.st_ino, name);
        else if (cuts) note("T %lu 0\n", (unsigned long)after.st_ino);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPEN(name, ...)                                                                            \
    {                                                                                              \
        mode_t mode = 0;                                                                           \
        if (flags & (O_CREAT | __O_TMPFILE)) {                                                     \
            va_list rest;                                                                          \
            va_start(rest, flags);                                                                 \
            mode = va_arg(rest, mode_t);                                                           \
            va_end(rest);                                                                          \
        }                                                                                          \
        return opened(__VA_ARGS__, path, flags, mode);                                             \
    }
int open(const char *path, int flags, ...) OPEN(open, AT_FDCWD)
int open64(const char *path, int flags, ...) OPEN(open64, AT_FDCWD)
int openat(int at, const char *path, int flags, ...) OPEN(openat, at)
int openat64(int at, const char *path, int flags, ...) OPEN(openat64, at)

int close(int fd) {
    if (fd >= 0 && fd < MAX_FD) watched[fd] = 0;
    return (int)syscall(SYS_close, fd);
}

static int is_watched(int fd) { return root && fd >= 0 && fd < MAX_FD && watched[fd]; }

static ssize_t written(int fd, const void *bytes, size_t n, off_t at) {
    pthread_mutex_lock(&lock);
    off_t offset = at;
    struct stat file;
    if (at < 0) {
        int flags = fcntl(fd, F_GETFL);
        if (flags & O_APPEND) offset = fstat(fd, &file) == 0 ? file.st_size : 0;
        else offset = lseek(fd, 0, SEEK_CUR);
    }
    ssize_t done;
    if (n > 0 && fails()) {
        if (fail_error || n < 2) { errno = fail_error ? (int)fail_error : EIO; done = -1; goto end; }
        n /= 2;
    }
    done = at < 0 ? syscall(SYS_write, fd, bytes, n) : syscall(SYS_pwrite64, fd, bytes, n, at);
    if (done > 0) {
        note("W %lu %ld %ld\n", (unsigned long)watched[fd], (long)offset, (long)done);
        put(bytes, (size_t)done);
        put("\n", 1);
    }
end:
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t write(int fd, const void *bytes, size_t n) {
    return is_watched(fd) ? written(fd, bytes, n, -1) : syscall(SYS_write, fd, bytes, n);
}
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) {
    return is_watched(fd) ? written(fd, bytes, n, at) : syscall(SYS_pwrite64, fd, bytes, n, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) { return pwrite(fd, bytes, n, at); }

static int cut(int fd, off_t size) {
    if (!is_watched(fd)) return (int)syscall(SYS_ftruncate, fd, size);
    pthread_mutex_lock(&lock);
    struct stat file;
    int done = 0;
    if (!(fstat(fd, &file) == 0 && file.st_size == size)) { /* else nothing happens */
        done = refused() ? -1 : (int)syscall(SYS_ftruncate, fd, size);
        if (done == 0) note("T %lu %ld\n", (unsigned long)watched[fd], (long)size);
    }
    pthread_mutex_unlock(&lock);
    return done;
}
int ftruncate(int fd, off_t size) { return cut(fd, size); }
int ftruncate64(int fd, off64_t size) { return cut(fd, size); }

static int synced(int fd, int data_only) {
    if (!is_watched(fd)) return (int)syscall(data_only ? SYS_fdatasync : SYS_fsync, fd);
    pthread_mutex_lock(&lock);
    int done = refused() ? -1 : 0; /* the disk itself need not be waited for */
    if (done == 0) note("S %lu\n", (unsigned long)watched[fd]);
    pthread_mutex_unlock(&lock);
    return done;
}
int fsync(int fd) { return synced(fd, 0); }
int fdatasync(int fd) { return synced(fd, 1); }

int rename(const char *old, const char *new) {
    char whole[PATH_MAX], other[PATH_MAX];
    const char *from = inside(old, whole), *to = inside(new, other);
    if (!from || !to) return (int)syscall(SYS_renameat2, AT_FDCWD, old, AT_FDCWD, new, 0);
    pthread_mutex_lock(&lock);
    int done = refused() ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, old, AT_FDCWD, new, 0);
    if (done == 0) note("R %s %s\n", from, to);
    pthread_mutex_unlock(&lock);
    return done;
}

static int removed(const char *path, int flags) {
    char whole[PATH_MAX];
    const char *name = inside(path, whole);
    if (!name || is_memory(name)) return (int)syscall(SYS_unlinkat, AT_FDCWD, path, flags);
    pthread_mutex_lock(&lock);
    struct stat file;
    int done;
    if (lstat(path, &file) != 0) { errno = ENOENT; done = -1; }
    else done = refused() ? -1 : (int)syscall(SYS_unlinkat, AT_FDCWD, path, flags);
    if (done == 0) note("U %s\n", name);
    pthread_mutex_unlock(&lock);
    return done;
}
int unlink(const char *path) { return removed(path, 0); }
int rmdir(const char *path) { return removed(path, AT_REMOVEDIR); }

int mkdir(const char *path, mode_t mode) {
    char whole[PATH_MAX];
    const char *name = inside(path, whole);
    if (!name) return (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    pthread_mutex_lock(&lock);
    struct stat made;
    int done = refused() ? -1 : (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    if (done == 0 && stat(path, &made) == 0) note("D %lu %s\n", (unsigned long)made.st_ino, name);
    pthread_mutex_unlock(&lock);
    return done;
}
