/* See orphan.h. The kernel sends SIGCONT when the parent dies: that also wakes a process which SIGSTOP holds, so that
 * it can drain like any other. The handler starts an alarm, and SIGALRM's default action ends the process: neither
 * needs the interpreter, which may hang in a hook or in C code that holds the GIL. */
#include "orphan.h"

#ifdef __linux__

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

static volatile pid_t bound;
static volatile pid_t expected;
static volatile unsigned int patience;
static volatile sig_atomic_t counting;

/* A shell's `fg` sends SIGCONT, too: only a new parent shows that the old one is dead. A process that a hook forks
 * (multiprocessing, ProcessPoolExecutor) inherits this handler, and has another parent from the start. */
static void look_for_parent(int number)
{
    sigset_t alarms;
    int error = errno;

    (void)number;
    if (getpid() == bound && getppid() != expected && !counting) {
        counting = 1;
        signal(SIGALRM, SIG_DFL);
        sigemptyset(&alarms);
        sigaddset(&alarms, SIGALRM);
        sigprocmask(SIG_UNBLOCK, &alarms, NULL);
        alarm(patience);
    }
    errno = error;
}

int orphan_bound(pid_t parent, unsigned int seconds)
{
    struct sigaction action = {0};

    bound = getpid();
    expected = parent;
    patience = seconds;
    action.sa_handler = look_for_parent;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGCONT, &action, NULL) < 0 || prctl(PR_SET_PDEATHSIG, SIGCONT) < 0)
        return -1;
    look_for_parent(0); /* it may have died before prctl */
    return 0;
}

#else

int orphan_bound(pid_t parent, unsigned int seconds)
{
    (void)parent;
    (void)seconds;
    return 0;
}

#endif
