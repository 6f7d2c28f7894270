/* QEMU with a second monitor: `make bench` hears from it when the guest stands still. Static, so that what is preloaded
 * into QEMU is not preloaded here. Compiled with QEMU and MONITOR as strings; the monitor's
 * path ends in QEMU's process number.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **words)
{
    char **all = calloc((size_t)count + 3, sizeof *all);
    if (!all)
        return 1;
    memcpy(all, words, (size_t)count * sizeof *all);
    if (count > 2) { /* not when it is only asked for its version */
        static char where[4096];
        snprintf(where, sizeof where, "unix:%s-%d,server=on,wait=off", MONITOR, getpid());
        all[count] = "-qmp";
        all[count + 1] = where;
    }
    all[0] = QEMU;
    execvp(QEMU, all);
    return 127;
}
