/* Sends voice-sized datagrams from many flows at a steady total rate.
 *
 * The flows are connected UDP sockets that the harness opened and, where the
 * system under test wants it, authenticated. They send in turn, so that at any
 * rate each flow has its share. Datagrams are due on absolute deadlines; what
 * came due while the program slept goes out together, as arrivals of
 * independent clients would find a relay that had been asleep.
 *
 * usage: blast RATE_PPS SECONDS DATAGRAM_BYTES FD...
 *        RATE_PPS 0: as fast as possible
 * Prints one line of JSON: datagrams sent, send errors, seconds taken.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

enum { MAX_DATAGRAM_BYTES = 2048, RTP_HEADER_BYTES = 12, RTP_SAMPLES = 960 };
enum { NS_PER_S = 1000000000 };

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static void sleep_until(uint64_t when_ns)
{
    struct timespec t = {
        .tv_sec = (time_t)(when_ns / NS_PER_S),
        .tv_nsec = (long)(when_ns % NS_PER_S),
    };

    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* RFC 3550 section 5.1: version 2, payload type 111, one SSRC per flow. */
static void write_rtp_header(unsigned char *p, unsigned flow, uint32_t round)
{
    uint32_t timestamp = round * RTP_SAMPLES, ssrc = 0xB1A50000u + flow;

    p[0] = 0x80;
    p[1] = 111;
    p[2] = (unsigned char)(round >> 8);
    p[3] = (unsigned char)round;
    for (int i = 0; i < 4; i++) {
        p[4 + i] = (unsigned char)(timestamp >> (24 - 8 * i));
        p[8 + i] = (unsigned char)(ssrc >> (24 - 8 * i));
    }
}

int main(int argc, char **argv)
{
    static unsigned char datagram[MAX_DATAGRAM_BYTES];
    uint64_t sent = 0, errors = 0, start, end, rate;
    unsigned flows, flow = 0;
    uint32_t round = 0;
    size_t len;
    int *fds;

    if (argc < 5) {
        fprintf(stderr, "usage: blast RATE_PPS SECONDS DATAGRAM_BYTES FD...\n");
        return 2;
    }
    rate = strtoull(argv[1], NULL, 10);
    len = strtoul(argv[3], NULL, 10);
    flows = (unsigned)argc - 4;
    fds = malloc(flows * sizeof *fds);
    if (fds == NULL || len < RTP_HEADER_BYTES || len > MAX_DATAGRAM_BYTES)
        return 2;
    for (unsigned i = 0; i < flows; i++)
        fds[i] = atoi(argv[4 + i]);
    for (size_t i = RTP_HEADER_BYTES; i < len; i++)
        datagram[i] = (unsigned char)(i * 167 + 13); /* ciphertext looks random */
    prctl(PR_SET_TIMERSLACK, 1UL);
    start = now_ns();
    end = start + (uint64_t)(strtod(argv[2], NULL) * NS_PER_S);
    for (uint64_t now = start; now < end; now = now_ns()) {
        uint64_t due = rate ? (now - start) * rate / NS_PER_S + 1 : sent + errors + 64;

        while (sent + errors < due) {
            write_rtp_header(datagram, flow, round);
            if (send(fds[flow], datagram, len, 0) >= 0)
                sent++;
            else
                errors++;
            if (++flow == flows) {
                flow = 0;
                round++;
            }
        }
        if (rate)
            sleep_until(start + (due * NS_PER_S) / rate);
    }
    printf("{\"sent\": %llu, \"errors\": %llu, \"seconds\": %.6f}\n", (unsigned long long)sent,
           (unsigned long long)errors, (double)(now_ns() - start) / NS_PER_S);
    return 0;
}
