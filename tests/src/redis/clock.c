/* Redis' clock for tests: as many seconds ahead of the machine's as the file says that CLOCK_AHEAD_FILE names.
 *
 * libfaketime does this for most programs, but not beside jemalloc, which asks for the time before libfaketime is ready. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    char text[32] = {0};
    int done = (int)syscall(SYS_gettimeofday, now, zone);
    int file = open(getenv("CLOCK_AHEAD_FILE"), O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        if (read(file, text, sizeof text - 1) > 0)
            now->tv_sec += atoll(text);
        close(file);
    }
    return done;
}
