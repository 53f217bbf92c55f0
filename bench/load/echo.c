/* The cheapest echo backend (docs/backend-protocol.md), so that on a small
 * machine the load leaves its CPU to the server under test.
 *
 * One thread, one epoll. START is answered with READY at 24 kHz both ways;
 * AUDIO goes back as it came; everything else is ignored. A connection that
 * does not take its echo at once loses it: the edge keeps its own queue.
 *
 * usage: echo SOCKET_PATH
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { FRAME_START = 0x01, FRAME_AUDIO = 0x10, HEADER_BYTES = 4, BUFFER_BYTES = 1 << 17 };
enum { MAX_EVENTS = 64, BACKLOG = 512 };

static const char ready[] = "\x02\x00\x00\x22{\"rate_in\":24000,\"rate_out\":24000}";
_Static_assert(sizeof ready - 1 == HEADER_BYTES + 0x22, "READY's length");

struct call {
    int fd;
    size_t used;
    unsigned char buffer[BUFFER_BYTES];
};

/* Answers every whole frame. 0, or -1 for one that the buffer cannot hold. */
static int answer_frames(struct call *call)
{
    size_t at = 0;

    while (call->used - at >= HEADER_BYTES) {
        const unsigned char *frame = call->buffer + at;
        size_t bytes = HEADER_BYTES + ((size_t)frame[1] << 16 | (size_t)frame[2] << 8 | frame[3]);

        if (bytes > BUFFER_BYTES)
            return -1;
        if (call->used - at < bytes)
            break;
        if (frame[0] == FRAME_START)
            send(call->fd, ready, sizeof ready - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        else if (frame[0] == FRAME_AUDIO)
            send(call->fd, frame, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        at += bytes;
    }
    memmove(call->buffer, call->buffer + at, call->used - at);
    call->used -= at;
    return 0;
}

static void handle_call(struct call *call)
{
    ssize_t n = recv(call->fd, call->buffer + call->used, BUFFER_BYTES - call->used, MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0) {
        call->used += (size_t)n;
        if (answer_frames(call) == 0)
            return;
    }
    close(call->fd);
    free(call);
}

static void accept_call(int epoll, int listener)
{
    struct call *call = malloc(sizeof *call);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = call};

    if (call == NULL)
        return;
    call->used = 0;
    call->fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (call->fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, call->fd, &event) != 0) {
        if (call->fd >= 0)
            close(call->fd);
        free(call);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct epoll_event events[MAX_EVENTS], event = {.events = EPOLLIN, .data.ptr = NULL};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll = epoll_create1(0);

    if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: echo SOCKET_PATH\n");
        return 2;
    }
    strcpy(address.sun_path, argv[1]);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(listener, BACKLOG) != 0 ||
        epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) != 0) {
        perror(argv[1]);
        return 1;
    }
    for (;;) {
        int count = epoll_wait(epoll, events, MAX_EVENTS, -1);

        if (count < 0 && errno != EINTR)
            return 1;
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == NULL)
                accept_call(epoll, listener);
            else
                handle_call(events[i].data.ptr);
        }
    }
}
