/* The floor: what a mail costs when the server does nothing but talk to the kernel.
 *
 * One process, one thread, level-triggered epoll. It speaks just enough SMTP for Postfix's smtp-source and
 * for the probes of this harness, and stores nothing. It does not parse: a read outside DATA is taken as one
 * whole command and told by its first byte; inside DATA only the last five bytes are looked at. So it is no
 * SMTP server, only the lower bound that the servers beside it are divided by.
 *
 *     floor PORT      serves on 127.0.0.1:PORT; SIGTERM prints "messages N" and ends it
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { RECEIVE = 256 * 1024, EVENTS = 256, DESCRIPTORS = 65536, BACKLOG = 4096, END = 5 };

/* By descriptor. `tail` holds the last bytes of the body so far, as the end may lie across two reads. */
static struct connection {
    char in_data;
    char tail[END];
} connections[DESCRIPTORS];

static char buffer[END + RECEIVE]; /* shared by all: each read is used up before the next one */
static unsigned long messages;
static volatile sig_atomic_t stopping;

static void stop(int number)
{
    (void)number;
    stopping = 1;
}

static void die(const char *what)
{
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* Replies are far smaller than an empty send buffer; one that does not fit is the end of that client: its
 * next read gives 0, and only reads close. */
static void reply(int fd, const char *text, size_t size)
{
    if (send(fd, text, size, MSG_NOSIGNAL) != (ssize_t)size)
        shutdown(fd, SHUT_RDWR);
}
#define REPLY(fd, text) reply(fd, text "\r\n", sizeof(text "\r\n") - 1)

static void accept_all(int listener, int epoll)
{
    int fd;

    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

        if (fd >= DESCRIPTORS) {
            close(fd);
            continue;
        }
        connections[fd].in_data = 0;
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
            die("epoll_ctl");
        REPLY(fd, "220 floor ESMTP");
    }
    if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
        die("accept");
}

static void command(int fd, struct connection *connection, char first)
{
    switch (first & ~0x20) {
    case 'D':
        connection->in_data = 1;
        memcpy(connection->tail, "\0\0\0\r\n", END); /* a dot line right after DATA ends it, too */
        REPLY(fd, "354 go ahead");
        break;
    case 'E': /* EHLO */
    case 'H': /* HELO */
    case 'M':
    case 'N':
    case 'R': /* RCPT, RSET */
        REPLY(fd, "250 ok");
        break;
    case 'Q':
        REPLY(fd, "221 bye");
        close(fd);
        break;
    default:
        REPLY(fd, "500 unknown");
    }
}

static void turn(int fd)
{
    struct connection *connection = &connections[fd];
    ssize_t size = recv(fd, buffer + END, RECEIVE, 0);

    if (size <= 0) {
        if (size == 0 || (errno != EAGAIN && errno != EINTR))
            close(fd);
    } else if (!connection->in_data) {
        command(fd, connection, buffer[END]);
    } else {
        memcpy(buffer, connection->tail, END);
        if (memcmp(buffer + size, "\r\n.\r\n", END) == 0) {
            connection->in_data = 0;
            messages++;
            REPLY(fd, "250 ok");
        } else {
            memcpy(connection->tail, buffer + size, END);
        }
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sigaction action = {.sa_handler = stop};
    struct epoll_event event = {.events = EPOLLIN}, events[EVENTS];
    int listener, epoll, one = 1;
    sigset_t blocked, open;

    if (argc != 2) {
        fprintf(stderr, "usage: floor PORT\n");
        return 2;
    }
    sigemptyset(&blocked); /* open only inside epoll_pwait, so that no signal is missed */
    sigaddset(&blocked, SIGTERM);
    sigprocmask(SIG_BLOCK, &blocked, &open);
    sigaction(SIGTERM, &action, NULL);

    address.sin_port = htons((unsigned short)atoi(argv[1]));
    if ((listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) < 0)
        die("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(listener, BACKLOG) < 0)
        die("bind");
    event.data.fd = listener;
    if ((epoll = epoll_create1(EPOLL_CLOEXEC)) < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll");

    while (!stopping) {
        int ready = epoll_pwait(epoll, events, EVENTS, -1, &open);

        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd == listener)
                accept_all(listener, epoll);
            else
                turn(events[i].data.fd);
        }
    }
    printf("messages %lu\n", messages);
    return 0;
}
