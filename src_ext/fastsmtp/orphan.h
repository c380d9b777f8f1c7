/* A bound on the life of a process whose parent has died. */
#ifndef FASTSMTP_ORPHAN_H
#define FASTSMTP_ORPHAN_H

#include <sys/types.h>

/* Ends this process at most `seconds` after the death of `parent`, the process that forked it. Returns 0, or -1 with
 * errno set. Does nothing where the system does not report a parent's death (all but Linux). */
int orphan_bound(pid_t parent, unsigned int seconds);

#endif
