/* Counts what a forwarder delivered.
 *
 * Plain mode counts datagrams. Hop mode reads the record count of each hop
 * datagram's header, because one of those carries many. Both totals live in
 * a mapped file, so that the harness reads them without asking.
 *
 * usage: sink plain|hop RECEIVE_FD STATS_FD
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { BATCH = 64, DATAGRAM_BYTES = 65536, HOP_HEADER_BYTES = 32 };

struct totals {
    volatile uint64_t datagrams;
    volatile uint64_t packets; /* what clients sent: records in hop mode */
    volatile uint64_t malformed;
};

static unsigned char datagrams[BATCH][DATAGRAM_BYTES];
static struct iovec slices[BATCH];
static struct mmsghdr messages[BATCH];

/* Records in a hop datagram: big-endian u16 at offset 4, after the magic
 * "EH", the version and the flags. 0 when it is no hop datagram. */
static unsigned hop_records(const unsigned char *datagram, size_t len)
{
    if (len < HOP_HEADER_BYTES || datagram[0] != 0x45 || datagram[1] != 0x48)
        return 0;
    return (unsigned)datagram[4] << 8 | datagram[5];
}

int main(int argc, char **argv)
{
    struct totals *totals;
    int hop, fd;

    if (argc != 4) {
        fprintf(stderr, "usage: sink plain|hop RECEIVE_FD STATS_FD\n");
        return 2;
    }
    hop = strcmp(argv[1], "hop") == 0;
    fd = atoi(argv[2]);
    totals = mmap(NULL, sizeof *totals, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[3]), 0);
    if (totals == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    for (unsigned i = 0; i < BATCH; i++) {
        slices[i].iov_base = datagrams[i];
        slices[i].iov_len = DATAGRAM_BYTES;
        messages[i].msg_hdr.msg_iov = &slices[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    for (;;) {
        int count = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);

        if (count < 0 && errno != EINTR) {
            perror("recvmmsg");
            return 1;
        }
        for (int i = 0; i < count; i++) {
            unsigned packets = hop ? hop_records(datagrams[i], messages[i].msg_len) : 1;

            totals->datagrams += 1;
            totals->packets += packets;
            totals->malformed += packets == 0;
        }
    }
}
