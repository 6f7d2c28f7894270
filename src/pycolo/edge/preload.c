/*
 * Loaded into QEMU by LD_PRELOAD. Before main() runs, it makes a userfaultfd for QEMU's own address space, which no other process can do,
 * and hands it to pycolo over the socket whose number is in COLO_UFFD_FD; pycolo then registers and protects the guest's RAM from outside.
 *
 * One message is sent: struct handover, and the descriptor by SCM_RIGHTS when `status` is HANDOVER_OK. Besides, QEMU has no
 * malloc_trim: each load of a device state frees some MiB, which its RCU thread gives back to the kernel by that (util/rcu.c) and the next
 * load has to fault in again, page by page.
 * Needs Linux 6.7 at run time; builds with older headers, whose missing constants are defined here (include/uapi/linux/userfaultfd.h).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

#define SOCKET_VARIABLE "COLO_UFFD_FD"

enum { HANDOVER_OK = 0, HANDOVER_NO_USERFAULTFD = 1, HANDOVER_NO_WP_ASYNC = 2 };

struct handover {
    uint8_t status;
    uint8_t unused[3];
    int32_t error; /* errno when status is not HANDOVER_OK */
};

static int open_userfaultfd(struct handover *result)
{
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                    UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC,
    };
    int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

    if (uffd < 0) {
        *result = (struct handover){.status = HANDOVER_NO_USERFAULTFD, .error = errno};
        return -1;
    }
    if (ioctl(uffd, UFFDIO_API, &api) != 0) {
        *result = (struct handover){.status = HANDOVER_NO_WP_ASYNC, .error = errno};
        close(uffd);
        return -1;
    }
    *result = (struct handover){.status = HANDOVER_OK};
    return uffd;
}

static ssize_t send_handover(int channel, struct handover *result, int uffd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {.bytes = {0}};
    struct iovec body = {.iov_base = result, .iov_len = sizeof *result};
    struct msghdr message = {.msg_iov = &body, .msg_iovlen = 1};

    if (uffd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(rights), &uffd, sizeof(int));
    }
    return sendmsg(channel, &message, MSG_NOSIGNAL);
}

/* In the place of the C library's, which would return the holes of the heap to the kernel. */
int malloc_trim(size_t pad)
{
    (void)pad;
    return 0;
}

__attribute__((constructor)) static void hand_over_userfaultfd(void)
{
    const char *number = getenv(SOCKET_VARIABLE);
    struct handover result;

    if (number == NULL)
        return;
    int channel = atoi(number);
    unsetenv(SOCKET_VARIABLE);
    unsetenv("LD_PRELOAD");
    /* A written huge page that the kernel unmaps leaves a hole that PAGEMAP_SCAN reports as clean: map guest RAM by small pages only. */
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    int uffd = open_userfaultfd(&result);
    ssize_t sent = send_handover(channel, &result, uffd);
    /* The owner died before the parent death signal was armed: nobody would ever end this QEMU. */
    if (sent < 0 && errno == EPIPE)
        _exit(1);
    if (uffd >= 0)
        close(uffd);
    close(channel);
}
