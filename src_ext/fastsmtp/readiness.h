/* Which of many sockets are ready: epoll as far as it is needed, and accept4, each as one function.
 *
 * Elsewhere than on Linux there is no set of sockets, and the event loop watches each of them. */
#ifndef FASTSMTP_READINESS_H
#define FASTSMTP_READINESS_H

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READY_READ = 1, READY_WRITE = 2, READY_ENDED = 4 };

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

/* The option of TCP that acknowledges what was read at once; 0 where there is none. */
#ifdef TCP_QUICKACK
enum { ACKNOWLEDGE_NOW = TCP_QUICKACK };
#else
enum { ACKNOWLEDGE_NOW = 0 };
#endif

#ifdef __linux__
#include <sys/epoll.h>
#include <sys/eventfd.h>

enum { READINESS_SETS = 1 };

typedef struct epoll_event readiness;

static inline int readiness_open(void)
{
    return epoll_create1(EPOLL_CLOEXEC);
}

static inline int readiness_call(int set, int operation, int fd, int wanted, void *owner)
{
    struct epoll_event event;
    event.events = (wanted & READY_READ ? EPOLLIN : 0) | (wanted & READY_WRITE ? EPOLLOUT : 0);
    event.data.ptr = owner;
    return epoll_ctl(set, operation, fd, &event);
}

static inline int readiness_add(int set, int fd, int wanted, void *owner)
{
    return readiness_call(set, EPOLL_CTL_ADD, fd, wanted, owner);
}

static inline int readiness_change(int set, int fd, int wanted, void *owner)
{
    return readiness_call(set, EPOLL_CTL_MOD, fd, wanted, owner);
}

static inline int readiness_remove(int set, int fd)
{
    return readiness_call(set, EPOLL_CTL_DEL, fd, 0, NULL);
}

/* A descriptor that is never ready. */
static inline int readiness_bell(void)
{
    return eventfd(0, EFD_CLOEXEC);
}

/* To read from. Of those who wait on it like that one is woken, and somebody else's set tells of it under a name. */
static inline int readiness_add_alone(int set, int fd, int name)
{
    struct epoll_event event;
    memset(&event, 0, sizeof(event));
    event.events = EPOLLIN | EPOLLEXCLUSIVE;
    event.data.fd = name;
    return epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
}

static inline int readiness_look(int set, readiness *found, int most)
{
    return epoll_wait(set, found, most, 0);
}

static inline int readiness_what(const readiness *one)
{
    return (one->events & EPOLLIN ? READY_READ : 0) | (one->events & EPOLLOUT ? READY_WRITE : 0)
        | (one->events & (EPOLLERR | EPOLLHUP) ? READY_ENDED : 0);
}

static inline void *readiness_owner(const readiness *one)
{
    return one->data.ptr;
}

static inline int accept_nonblocking(int fd, struct sockaddr *address, socklen_t *length)
{
    return accept4(fd, address, length, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

#else

enum { READINESS_SETS = 0 };

typedef struct { int unused; } readiness;

static inline int readiness_open(void) { return -1; }
static inline int readiness_add(int set, int fd, int wanted, void *owner) { return -1; }
static inline int readiness_change(int set, int fd, int wanted, void *owner) { return -1; }
static inline int readiness_remove(int set, int fd) { return -1; }
static inline int readiness_bell(void) { return -1; }
static inline int readiness_add_alone(int set, int fd, int name) { return -1; }
static inline int readiness_look(int set, readiness *found, int most) { return 0; }
static inline int readiness_what(const readiness *one) { return 0; }
static inline void *readiness_owner(const readiness *one) { return NULL; }

static inline int accept_nonblocking(int fd, struct sockaddr *address, socklen_t *length)
{
    int accepted = accept(fd, address, length);
    if (accepted >= 0) {
        fcntl(accepted, F_SETFD, FD_CLOEXEC);
        fcntl(accepted, F_SETFL, fcntl(accepted, F_GETFL) | O_NONBLOCK);
    }
    return accepted;
}

#endif
#endif
