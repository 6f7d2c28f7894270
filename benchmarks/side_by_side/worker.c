/* What the guest of `make bench` has besides nginx, Redis and PostgreSQL: TCP port 5201, a process for each connection.
 *
 * The first line of a connection says what it is for:
 *   sink             takes bytes until the client ends
 *   source           gives bytes until the client ends
 *   dirty N          answers "ok"; from then on N MiB of memory are written each second, page after page of a region
 *   compute N        answers with a checksum once N rounds of what a compiler does are done: trees, strings, sorting
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 5201, BACKLOG = 64, LINE_BYTES = 64, BUFFER_BYTES = 65536 };
enum { PAGE_BYTES = 4096, REGION_PAGES = 96 << 8, TICK_MS = 10, NODES = 6000, NAME_BYTES = 24 };
#define BACKLOG_S 0.2 /* what was not written in time is made up for so long */

static volatile uint32_t *rate_mib; /* shared with the process that dirties */

static void dirty_for_ever(void)
{
    uint64_t *region = mmap(NULL, (size_t)REGION_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t value = 88172645463325252u;
    size_t page = 0;
    double owed_pages = 0, before_s = 0;
    struct timespec tick = {0, TICK_MS * 1000000}, now;
    if (region == MAP_FAILED)
        exit(1);
    for (;;) {
        while (!*rate_mib)
            nanosleep(&(struct timespec){0, 100000000}, NULL);
        nanosleep(&tick, NULL);
        clock_gettime(CLOCK_MONOTONIC, &now);
        double now_s = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec, passed_s = now_s - before_s;
        before_s = now_s;
        owed_pages += *rate_mib * 256.0 * (passed_s < BACKLOG_S ? passed_s : BACKLOG_S);
        for (; owed_pages >= 1; owed_pages--, page = (page + 1) % REGION_PAGES) {
            uint64_t *word = region + page * (PAGE_BYTES / 8);
            for (int i = 0; i < PAGE_BYTES / 8; i++) { /* xorshift64: nothing that could be compressed */
                value ^= value << 13;
                value ^= value >> 7;
                value ^= value << 17;
                word[i] = value;
            }
        }
    }
}

struct node {
    struct node *left, *right;
    char name[NAME_BYTES];
};

static int by_name(const void *a, const void *b)
{
    return strcmp((*(struct node *const *)a)->name, (*(struct node *const *)b)->name);
}

static uint64_t compute(uint32_t rounds)
{
    uint64_t sum = 0, value = 362436069u;
    while (rounds--) {
        struct node **all = calloc(NODES, sizeof *all), *root = NULL;
        for (int i = 0; i < NODES; i++) {
            struct node *node = all[i] = calloc(1, sizeof *node), **at = &root;
            value = value * 6364136223846793005u + 1442695040888963407u;
            snprintf(node->name, sizeof node->name, "symbol_%llx", (unsigned long long)(value >> 24));
            while (*at)
                at = strcmp(node->name, (*at)->name) < 0 ? &(*at)->left : &(*at)->right;
            *at = node;
        }
        qsort(all, NODES, sizeof *all, by_name);
        for (int i = 0; i < NODES; i++) {
            for (const char *c = all[i]->name; *c; c++)
                sum = (sum ^ (unsigned char)*c) * 1099511628211u;
            free(all[i]);
        }
        free(all);
    }
    return sum;
}

static void serve(int client)
{
    static char buffer[BUFFER_BYTES];
    char line[LINE_BYTES] = "";
    unsigned number = 0;
    for (size_t had = 0; had < sizeof line - 1 && !strchr(line, '\n'); had++)
        if (read(client, line + had, 1) != 1)
            return;
    if (!strcmp(line, "sink\n")) {
        while (read(client, buffer, sizeof buffer) > 0)
            ;
    } else if (!strcmp(line, "source\n")) {
        for (size_t i = 0; i < sizeof buffer; i++)
            buffer[i] = (char)(i * 131 >> 3);
        while (write(client, buffer, sizeof buffer) > 0)
            ;
    } else if (sscanf(line, "dirty %u", &number) == 1) {
        *rate_mib = number;
        dprintf(client, "ok\n");
    } else if (sscanf(line, "compute %u", &number) == 1) {
        dprintf(client, "%016llx\n", (unsigned long long)compute(number));
    }
}

int main(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    rate_mib = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (rate_mib == MAP_FAILED || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, BACKLOG))
        return 1;
    signal(SIGCHLD, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    if (!fork())
        dirty_for_ever();
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client >= 0 && !fork()) {
            serve(client);
            _exit(0);
        }
        close(client);
    }
}
