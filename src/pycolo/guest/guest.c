/* What the guest needs and busybox lacks.
 *
 *   colo-guest echo            serve RFC 862 for ever: every byte on TCP port 7 and every datagram on UDP port 7 goes back
 *   colo-guest seed            declare the kernel's random pool ready
 *   colo-guest wait PORT...    return 0 once each TCP port of this machine accepts a connection, 5432 one of PostgreSQL
 *   colo-guest control [DISK]  run the PostgreSQL of the disk mounted at DISK, and obey on TCP port 9
 *
 * The echo is one process with one poll loop and no timers: when idle it causes no wake-up and dirties no page. A peer that
 * sends and does not read is not read either, so the memory per connection is one buffer.
 *
 * The control port takes one line per connection and answers "ok": "sync" once all that was written is on the disk,
 * "poweroff" at once, before it stops PostgreSQL, unmounts the disk, says COLO-GUEST-UNMOUNTED and switches the machine off.
 * Ended other than by that, PostgreSQL takes this process with it, so that init notices.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/random.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define POSTGRES "/usr/lib/postgresql/15/bin/postgres"
#define CLUSTER "/cluster"

enum { ECHO_PORT = 7, CONTROL_PORT = 9, DATABASE_PORT = 5432, COMMAND_S_MAX = 5, ANSWER_S_MAX = 20 };
enum { CONNECTIONS_MAX = 256, BUFFER_BYTES = 16384, DATAGRAM_BYTES_MAX = 65536, LISTENER = 0, UDP = 1, FIRST = 2, SEED_BYTES = 32 };

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

static int bound_socket(int type, int port)
{
    int on = 1;
    struct sockaddr_in address = any_address(INADDR_ANY, port);
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
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
    polled[LISTENER].fd = bound_socket(SOCK_STREAM | SOCK_NONBLOCK, ECHO_PORT);
    polled[UDP] = (struct pollfd){.fd = bound_socket(SOCK_DGRAM | SOCK_NONBLOCK, ECHO_PORT), .events = POLLIN};
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

static void limit_reads(int fd, int seconds)
{
    const struct timeval limit = {.tv_sec = seconds};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

/* PostgreSQL listens before it has recovered; only an answer 'R' (authentication) to a startup message says it is ready. */
static int database_accepts(int fd)
{
    static const char startup[] = "\0\0\0\x29\0\3\0\0user\0postgres\0database\0postgres\0"; /* ends in a second zero */
    static const char terminate[] = {'X', 0, 0, 0, 4};
    char answer = 0, rest[512];
    limit_reads(fd, ANSWER_S_MAX);
    if (send(fd, startup, sizeof startup, MSG_NOSIGNAL) < 0 || read(fd, &answer, 1) != 1 || answer != 'R')
        return 0;
    send(fd, terminate, sizeof terminate, MSG_NOSIGNAL);
    while (read(fd, rest, sizeof rest) > 0) /* to its end, or the close resets what it still sends */
        continue;
    return 1;
}

static void wait_for(int port)
{
    /* PostgreSQL starts a process for each question and writes on the console that it is not ready. */
    const struct timespec pause = {.tv_nsec = (port == DATABASE_PORT ? 200 : 20) * 1000 * 1000};
    struct sockaddr_in address = any_address(htonl(INADDR_LOOPBACK), port);
    for (;;) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0)
            die("colo-guest: socket");
        int ready = !connect(fd, (struct sockaddr *)&address, sizeof address) && (port != DATABASE_PORT || database_accepts(fd));
        close(fd);
        if (ready)
            return;
        nanosleep(&pause, NULL);
    }
}

static void database_ended(int number)
{
    (void)number;
    _exit(1);
}

/* Whoever built the disk owns the cluster on it; PostgreSQL serves nobody else and refuses to be root. */
static void become_database(const char *disk)
{
    struct stat cluster;
    if (chroot(disk) || chdir("/") || stat(CLUSTER, &cluster))
        die("colo-guest: no cluster on the disk");
    if (setgroups(0, NULL) || setgid(cluster.st_gid) || setuid(cluster.st_uid))
        die("colo-guest: setuid");
    clearenv();
    execl(POSTGRES, POSTGRES, "-D", CLUSTER, NULL);
    die("colo-guest: " POSTGRES);
}

static pid_t started_database(const char *disk)
{
    signal(SIGCHLD, database_ended);
    pid_t child = fork();
    if (child < 0)
        die("colo-guest: fork");
    if (child == 0) {
        signal(SIGCHLD, SIG_DFL);
        become_database(disk);
    }
    return child;
}

static void say(const char *line)
{
    printf("%s\n", line);
    fflush(stdout);
    tcdrain(STDOUT_FILENO);
}

/* Linux 6.1 can spin for ever in virtnet_poll when it shuts a card down with frames still in its rings. */
static void take_network_down(void)
{
    struct ifreq request = {.ifr_name = "eth0", .ifr_flags = 0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    while (!ioctl(fd, SIOCSIFFLAGS, &request))
        request.ifr_name[3]++;
    if (errno != ENODEV)
        perror("colo-guest: network down");
}

static void power_off(const char *disk, pid_t database)
{
    if (disk) {
        signal(SIGCHLD, SIG_DFL);
        kill(database, SIGINT); /* a "fast" shutdown: open transactions are rolled back */
        while (waitpid(database, NULL, 0) < 0 && errno == EINTR)
            continue;
        sync();
        if (umount(disk))
            die("COLO-GUEST-FAILED unmount");
        say("COLO-GUEST-UNMOUNTED");
    }
    take_network_down();
    sync();
    reboot(RB_POWER_OFF);
    die("colo-guest: power off");
}

/* Says ok and waits until the client has it and closes, within COMMAND_S_MAX: who is off sends nothing again that got lost. */
static void last_word(int fd)
{
    char closed;
    send(fd, "ok\n", 3, MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
    (void)!read(fd, &closed, 1);
}

static void obey(int fd, const char *disk, pid_t database)
{
    char command[16] = "";
    size_t length = 0;
    ssize_t got;
    while (length < sizeof command - 1 && !strchr(command, '\n')) {
        if ((got = read(fd, command + length, sizeof command - 1 - length)) <= 0)
            return;
        command[length += (size_t)got] = 0;
    }
    if (!strcmp(command, "sync\n")) {
        sync();
        send(fd, "ok\n", 3, MSG_NOSIGNAL);
    } else if (!strcmp(command, "poweroff\n")) {
        last_word(fd);
        power_off(disk, database);
    } else if (!strcmp(command, "reboot\n")) {
        last_word(fd);
        sync();
        reboot(RB_AUTOBOOT);
        die("colo-guest: reboot");
    } else if (!strcmp(command, "panic\n")) {
        last_word(fd);
        int trigger = open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC);
        (void)!write(trigger, "c", 1);
        die("colo-guest: panic");
    }
}

static void control(const char *disk)
{
    pid_t database = disk ? started_database(disk) : 0;
    int listener = bound_socket(SOCK_STREAM, CONTROL_PORT);
    if (listen(listener, CONNECTIONS_MAX))
        die("colo-guest: listen");
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        limit_reads(fd, COMMAND_S_MAX); /* a client that says nothing keeps others waiting no longer than this */
        obey(fd, disk, database);
        close(fd);
    }
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    if (!strcmp(verb, "echo"))
        serve();
    if (!strcmp(verb, "control"))
        control(argc > 2 ? argv[2] : NULL);
    if (!strcmp(verb, "seed"))
        return seed(), 0;
    if (strcmp(verb, "wait"))
        return fputs("usage: colo-guest echo | seed | wait PORT... | control [DISK]\n", stderr), 2;
    for (int i = 2; i < argc; i++)
        wait_for(atoi(argv[i]));
    return 0;
}
