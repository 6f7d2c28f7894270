/* What the guest needs and busybox lacks.
 *
 *   colo-guest echo          serve RFC 862 for ever: every byte on TCP port 7 and every datagram on UDP port 7 goes back
 *   colo-guest seed          declare the kernel's random pool ready
 *   colo-guest wait PORT...  return 0 once each TCP port of this machine accepts a connection
 *
 * The echo is one process with one poll loop and no timers: when idle it causes no wake-up and dirties no page. A peer that
 * sends and does not read is not read either, so the memory per connection is one buffer.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ECHO_PORT = 7, CONNECTIONS_MAX = 256, BUFFER_BYTES = 16384, DATAGRAM_BYTES_MAX = 65536, LISTENER = 0, UDP = 1, FIRST = 2, SEED_BYTES = 32 };

struct connection {
    size_t start, end; /* the bytes buffer[start..end) have been read and not yet written */
    char buffer[BUFFER_BYTES];
};

static struct pollfd polled[FIRST + CONNECTIONS_MAX];
static struct connection connections[CONNECTIONS_MAX];
static int connection_count;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static struct sockaddr_in any_address(in_addr_t address, int port)
{
    struct sockaddr_in result = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    result.sin_addr.s_addr = address;
    return result;
}

static int bound_socket(int type)
{
    int on = 1;
    struct sockaddr_in address = any_address(INADDR_ANY, ECHO_PORT);
    int fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("colo-guest: socket");
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) || bind(fd, (struct sockaddr *)&address, sizeof address))
        die("colo-guest: bind");
    return fd;
}

static void accept_one(void)
{
    int on = 1;
    int fd = accept4(polled[LISTENER].fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return; /* the client went away again, or memory is short: the next poll tells */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    polled[FIRST + connection_count] = (struct pollfd){.fd = fd, .events = POLLIN};
    connections[connection_count].start = connections[connection_count].end = 0;
    connection_count++;
}

static void drop(int index)
{
    close(polled[FIRST + index].fd);
    connection_count--;
    polled[FIRST + index] = polled[FIRST + connection_count];
    if (index != connection_count)
        connections[index] = connections[connection_count];
}

/* Returns 0 when the connection is over. */
static int transfer(int index)
{
    struct connection *c = &connections[index];
    int fd = polled[FIRST + index].fd;
    if (c->start == c->end) {
        ssize_t got = read(fd, c->buffer, BUFFER_BYTES);
        if (got <= 0)
            return got < 0 && (errno == EAGAIN || errno == EINTR);
        c->start = 0;
        c->end = (size_t)got;
    }
    ssize_t put = send(fd, c->buffer + c->start, c->end - c->start, MSG_NOSIGNAL);
    if (put < 0 && errno != EAGAIN && errno != EINTR)
        return 0;
    if (put > 0)
        c->start += (size_t)put;
    polled[FIRST + index].events = c->start == c->end ? POLLIN : POLLOUT;
    return 1;
}

static void echo_datagram(void)
{
    static char datagram[DATAGRAM_BYTES_MAX];
    struct sockaddr_in from;
    socklen_t from_bytes = sizeof from;
    ssize_t got = recvfrom(polled[UDP].fd, datagram, sizeof datagram, 0, (struct sockaddr *)&from, &from_bytes);
    if (got >= 0)
        (void)!sendto(polled[UDP].fd, datagram, (size_t)got, 0, (struct sockaddr *)&from, from_bytes);
}

static void serve(void)
{
    polled[LISTENER].fd = bound_socket(SOCK_STREAM);
    polled[UDP] = (struct pollfd){.fd = bound_socket(SOCK_DGRAM), .events = POLLIN};
    if (listen(polled[LISTENER].fd, CONNECTIONS_MAX))
        die("colo-guest: listen");
    for (;;) {
        polled[LISTENER].events = connection_count < CONNECTIONS_MAX ? POLLIN : 0;
        if (poll(polled, (nfds_t)(FIRST + connection_count), -1) < 0 && errno != EINTR)
            die("colo-guest: poll");
        for (int i = connection_count - 1; i >= 0; i--) /* downwards, since drop() moves the last one into the gap */
            if (polled[FIRST + i].revents && !transfer(i))
                drop(i);
        if (polled[UDP].revents)
            echo_datagram();
        if (polled[LISTENER].revents && connection_count < CONNECTIONS_MAX)
            accept_one();
    }
}

/* Without RDRAND the first reader of random numbers waits over a second for jitter; this guest keeps no secrets. */
static void seed(void)
{
    struct {
        struct rand_pool_info info;
        char bytes[SEED_BYTES];
    } pool = {.info = {.entropy_count = 8 * SEED_BYTES, .buf_size = SEED_BYTES}};
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || getrandom(pool.bytes, SEED_BYTES, GRND_INSECURE) != SEED_BYTES || ioctl(fd, RNDADDENTROPY, &pool))
        die("colo-guest: seed");
    close(fd);
}

static void wait_for(int port)
{
    const struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
    struct sockaddr_in address = any_address(htonl(INADDR_LOOPBACK), port);
    for (;;) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0)
            die("colo-guest: socket");
        int connected = !connect(fd, (struct sockaddr *)&address, sizeof address);
        close(fd);
        if (connected)
            return;
        nanosleep(&pause, NULL);
    }
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    if (!strcmp(verb, "echo"))
        serve();
    if (!strcmp(verb, "seed"))
        return seed(), 0;
    if (strcmp(verb, "wait"))
        return fputs("usage: colo-guest echo | seed | wait PORT...\n", stderr), 2;
    for (int i = 2; i < argc; i++)
        wait_for(atoi(argv[i]));
    return 0;
}
