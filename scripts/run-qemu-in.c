/*
 * Runs the QEMU of another Debian release out of its folder ROOT: by that release's loader, with its libraries and firmware.
 * Built statically, so that what LD_PRELOAD names is loaded into QEMU and not into this program before it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char *const ahead[] = {
        ROOT "/usr/lib64/ld-linux-x86-64.so.2", "--library-path", ROOT "/usr/lib/x86_64-linux-gnu", "--argv0", argv[0],
        ROOT "/usr/libexec/qemu-system-x86_64", "-L", ROOT "/usr/share/qemu", "-L", ROOT "/usr/share/seabios",
    };
    const int own = sizeof ahead / sizeof *ahead;
    char **all = calloc(own + argc, sizeof *all);

    if (all == NULL)
        return 1;
    memcpy(all, ahead, sizeof ahead);
    memcpy(all + own, argv + 1, (argc - 1) * sizeof *all);
    execv(all[0], all);
    perror("qemu-system-x86_64: can't be run");
    return 1;
}
