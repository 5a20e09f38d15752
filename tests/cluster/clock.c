/* Clocks that a test sets: loaded before libc into a node (LD_PRELOAD), whose Rust reads all of its
 * clocks by these calls.
 *
 * QUORATE_TEST_CLOCK names a file of three numbers of 64 bits: by how many milliseconds the wall
 * clock, CLOCK_MONOTONIC and CLOCK_BOOTTIME are ahead. What is written there counts from then on. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t none[3];
static const volatile int64_t *ahead = none;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("QUORATE_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) abort();
    void *page = mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) abort();
    ahead = page;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    int64_t ms = 0;
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) ms = ahead[0];
    if (clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE) ms = ahead[1];
    if (clock == CLOCK_BOOTTIME) ms = ahead[2];
    if (failed || !ms) return failed;
    int64_t second = 1000000000;
    int64_t total = now->tv_sec * second + now->tv_nsec + ms * 1000000;
    now->tv_sec = total / second;
    now->tv_nsec = total % second;
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec time;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    if (now) *now = time.tv_sec;
    return time.tv_sec;
}
