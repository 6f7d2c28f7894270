/* Lets stock QEMU 7.2 to 10.2 do COLO under TCG: LD_PRELOAD on both QEMUs, for benchmarks only.
 *
 * QEMU's checkpoint waits on a condition with a mutex that its thread does not own; the wait takes the mutex and nobody
 * gives it back. Here such a wait lasts at most 1 ms and gives back what it took.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { WAIT_NS = 1000 * 1000, SECOND_NS = 1000 * 1000 * 1000, FLAGS = 3 };

static int (*real_wait)(pthread_cond_t *, pthread_mutex_t *);
static int (*real_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static __thread int thread_id;

__attribute__((constructor)) static void find_real_ones(void)
{
    real_wait = dlvsym(RTLD_NEXT, "pthread_cond_wait", "GLIBC_2.3.2");
    real_timedwait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
}

int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
{
    struct timespec until;
    if (!thread_id)
        thread_id = (int)syscall(SYS_gettid);
    if (mutex->__data.__owner == thread_id || (mutex->__data.__kind & FLAGS)) /* recursive ones and their like are not it */
        return real_wait(condition, mutex);
    pthread_mutex_lock(mutex);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += WAIT_NS;
    if (until.tv_nsec >= SECOND_NS) {
        until.tv_sec++;
        until.tv_nsec -= SECOND_NS;
    }
    real_timedwait(condition, mutex, &until);
    pthread_mutex_unlock(mutex);
    return 0;
}
