/* A service of the guest whose answers are, or are not, a function of what it was asked: `make bench-divergences`.
 *
 * TCP port 81, a thread for each connection; with the argument `fifo` all run under SCHED_FIFO. One byte asks, 16
 * hexadecimal digits answer:
 *   f  always the same                            s  a number of a generator seeded once, at the start
 *   k  a random number of the kernel              c  the clock, in seconds
 *   n  the next number of a counter that all connections share
 *   m  the clock, in nanoseconds                  o  as f, after a connection opened to the client's port 9100
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 81, BACK_PORT = 9100, BACKLOG = 128, STACK_BYTES = 65536, ANSWER_BYTES = 16 };

static atomic_uint_fast64_t counter;
static uint64_t generator;
static pthread_mutex_t generator_lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t kernel_random(void)
{
    uint64_t value;
    if (getrandom(&value, sizeof value, 0) != sizeof value)
        exit(1);
    return value;
}

static uint64_t own_random(void) /* xorshift64 */
{
    pthread_mutex_lock(&generator_lock);
    generator ^= generator << 13;
    generator ^= generator >> 7;
    generator ^= generator << 17;
    uint64_t value = generator;
    pthread_mutex_unlock(&generator_lock);
    return value;
}

static uint64_t now(int nanoseconds)
{
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return nanoseconds ? (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec : (uint64_t)time.tv_sec;
}

static uint64_t call_back(int client)
{
    struct sockaddr_in address;
    socklen_t bytes = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (!getpeername(client, (struct sockaddr *)&address, &bytes)) {
        address.sin_port = htons(BACK_PORT);
        (void)!connect(fd, (struct sockaddr *)&address, sizeof address);
    }
    close(fd);
    return 0;
}

static uint64_t answer_to(char question, int client)
{
    switch (question) {
    case 's': return own_random();
    case 'k': return kernel_random();
    case 'n': return atomic_fetch_add(&counter, 1);
    case 'c': return now(0);
    case 'm': return now(1);
    case 'o': return call_back(client);
    default: return 0;
    }
}

static void *serve(void *argument)
{
    int client = (int)(intptr_t)argument;
    char question, answer[ANSWER_BYTES + 1];
    while (read(client, &question, 1) == 1) {
        snprintf(answer, sizeof answer, "%016llx", (unsigned long long)answer_to(question, client));
        if (send(client, answer, ANSWER_BYTES, MSG_NOSIGNAL) != ANSWER_BYTES)
            break;
    }
    close(client);
    return NULL;
}

int main(int argc, char **argv)
{
    const struct sched_param priority = {.sched_priority = 10};
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    pthread_attr_t attributes;
    pthread_t thread;
    (void)argv;
    if (argc > 1 && sched_setscheduler(0, SCHED_FIFO, &priority))
        return perror("odd-answers"), 1;
    generator = kernel_random() | 1;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, BACKLOG))
        return perror("odd-answers"), 1;
    for (;;) {
        int client = accept(listener, NULL, NULL);
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (client >= 0 && pthread_create(&thread, &attributes, serve, (void *)(intptr_t)client))
            close(client);
    }
}
