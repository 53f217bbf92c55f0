/* The least that a forwarder can do: receive a batch, send the batch.
 *
 * No lookup, no parsing, one destination. What a relay costs beyond this is
 * the price of knowing where a datagram belongs; what it costs less comes from
 * coalescing. The sending socket is connected, which spares the kernel a route
 * lookup per datagram: the strongest form of the simple program.
 *
 * usage: null_forwarder RECEIVE_FD CONNECTED_SEND_FD
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { BATCH = 64, DATAGRAM_BYTES = 2048 };

static unsigned char datagrams[BATCH][DATAGRAM_BYTES];
static struct iovec slices[BATCH];
static struct mmsghdr messages[BATCH];

static void send_batch(int fd, unsigned count)
{
    unsigned sent = 0;

    while (sent < count) {
        int n = sendmmsg(fd, messages + sent, count - sent, 0);

        if (n > 0)
            sent += (unsigned)n;
        else if (errno != EINTR)
            sent += 1; /* one refused datagram must not hold up the rest */
    }
}

int main(int argc, char **argv)
{
    int receive_fd, send_fd;

    if (argc != 3) {
        fprintf(stderr, "usage: null_forwarder RECEIVE_FD CONNECTED_SEND_FD\n");
        return 2;
    }
    receive_fd = atoi(argv[1]);
    send_fd = atoi(argv[2]);
    for (unsigned i = 0; i < BATCH; i++) {
        slices[i].iov_base = datagrams[i];
        messages[i].msg_hdr.msg_iov = &slices[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    for (;;) {
        int count;

        for (unsigned i = 0; i < BATCH; i++)
            slices[i].iov_len = DATAGRAM_BYTES;
        count = recvmmsg(receive_fd, messages, BATCH, MSG_WAITFORONE, NULL);
        if (count < 0) {
            if (errno == EINTR)
                continue;
            perror("recvmmsg");
            return 1;
        }
        for (int i = 0; i < count; i++)
            slices[i].iov_len = messages[i].msg_len;
        send_batch(send_fd, (unsigned)count);
    }
}
