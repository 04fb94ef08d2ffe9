/* Setuid root: is root's for so many milliseconds, hears no SIGTERM meanwhile, then becomes the caller's command. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    uid_t user = getuid();
    if (argc < 3 || setresuid(0, 0, 0) != 0) return 125;
    signal(SIGTERM, SIG_IGN);
    usleep(1000 * atoi(argv[1]));
    signal(SIGTERM, SIG_DFL);
    if (setresuid(user, user, user) != 0) return 126;
    execvp(argv[2], argv + 2);
    return 127;
}
