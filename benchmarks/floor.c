/* The floor: what a mail costs when the server does nothing but talk to the kernel.
 *
 * One process, one thread, level-triggered epoll. It speaks just enough SMTP for well-behaved clients,
 * pipelining ones (RFC 2920) among them, and stores nothing. It does not parse: a command is told by the
 * first octet of its line. Of a body only the last five octets of each read are looked at, unless the
 * client has sent several commands in one read: then commands may also follow the body in the same read,
 * and its end is looked for from behind. All replies to one read leave in one write. So it is no SMTP
 * server, only the lower bound that the servers beside it are divided by.
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

enum { RECEIVE = 256 * 1024, REPLIES = 64 * 1024, END = 5 };
enum { EVENTS = 256, DESCRIPTORS = 65536, BACKLOG = 4096 };

/* By descriptor. `tail` holds the last octets of the body so far, as the end may lie across two reads; `begun` is
 * the first octet of a command line that has not ended yet, or 0. */
static struct connection {
    char in_data;
    char pipelines;
    char begun;
    char tail[END];
} connections[DESCRIPTORS];

/* Shared by all: each read is used up, and answered, before the next one. */
static char buffer[END + RECEIVE];
static char replies[REPLIES];
static size_t replied;
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
static void flush(int fd)
{
    if (replied && send(fd, replies, replied, MSG_NOSIGNAL) != (ssize_t)replied)
        shutdown(fd, SHUT_RDWR);
    replied = 0;
}

static void reply(int fd, const char *text, size_t size)
{
    if (replied + size > REPLIES)
        flush(fd);
    memcpy(replies + replied, text, size);
    replied += size;
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
        memset(&connections[fd], 0, sizeof(connections[fd]));
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
            die("epoll_ctl");
        REPLY(fd, "220 floor ESMTP");
        flush(fd);
    }
    if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
        die("accept");
}

static void command(int fd, struct connection *connection, char first)
{
    switch (first & ~0x20) {
    case 'D':
        connection->in_data = 1;
        REPLY(fd, "354 go ahead");
        break;
    case 'E':
        REPLY(fd, "250-floor\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE");
        break;
    case 'H': /* HELO */
    case 'M':
    case 'N':
    case 'R': /* RCPT, RSET */
        REPLY(fd, "250 ok");
        break;
    case 'Q':
        REPLY(fd, "221 bye");
        break;
    default:
        REPLY(fd, "500 unknown");
    }
}

/* Where the body ends between `from`, which has END octets of it or of the DATA line before it, and `end`; NULL
 * if it goes on. Looked for from behind, as commands are short and a body may be long. */
static char *end_of_body(struct connection *connection, char *from, char *end)
{
    char *dot = end;

    if (memcmp(end - END, "\r\n.\r\n", END) == 0)
        return end;
    if (!connection->pipelines)
        return NULL;
    while ((dot = memrchr(from - END, '.', (size_t)(dot - (from - END)))) != NULL)
        if (dot - 2 >= from - END && dot + 2 < end && memcmp(dot - 2, "\r\n.\r\n", END) == 0)
            return dot + 3;
    return NULL;
}

/* Uses up a read; returns whether the client has said QUIT. */
static int use(int fd, struct connection *connection, char *at, char *end)
{
    int commands = 0;

    while (at < end) {
        if (connection->in_data) {
            char *after = end_of_body(connection, at, end);

            if (!after) {
                memcpy(connection->tail, end - END, END);
                return 0;
            }
            connection->in_data = 0;
            messages++;
            REPLY(fd, "250 ok");
            at = after;
        } else {
            char first = connection->begun ? connection->begun : *at;
            char *line_end = memchr(at, '\n', (size_t)(end - at));

            if (!line_end) { /* cut by someone: the end of a body may come with what follows it, too */
                connection->begun = first;
                connection->pipelines = 1;
                return 0;
            }
            connection->begun = 0;
            connection->pipelines |= commands++ > 0;
            command(fd, connection, first);
            at = line_end + 1;
            if (connection->in_data) /* a dot line right after DATA ends it, too */
                memcpy(connection->tail, "\0\0\0\r\n", END);
            if ((first & ~0x20) == 'Q')
                return 1;
        }
    }
    return 0;
}

static void turn(int fd)
{
    struct connection *connection = &connections[fd];
    ssize_t size = recv(fd, buffer + END, RECEIVE, 0);
    int quit;

    if (size <= 0) {
        if (size == 0 || (errno != EAGAIN && errno != EINTR))
            close(fd);
        return;
    }
    memcpy(buffer, connection->tail, END);
    quit = use(fd, connection, buffer + END, buffer + END + size);
    flush(fd);
    if (quit)
        close(fd);
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
