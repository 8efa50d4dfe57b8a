/*
 * open: requests at fixed times (an open model), and bursts.
 *
 *   open PORT PATH RATE SECONDS CONNECTIONS   RATE requests a second, evenly; each latency counts from the time at which the
 *                                             request was due, not from when a connection was free for it
 *   open PORT PATH burst CLIENTS              CLIENTS connections are opened, then all ask at once
 *
 * Prints one line of JSON: requests, bytes, seconds, bad (not 200), broken, and latencies in milliseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct conn {
    int fd;
    double due;      /* of the request under way */
    size_t have, want; /* bytes of the answer; want: 0 until its head is here */
    char head[4096];
};

static struct conn *conns;
static int *idle, idle_count, conn_count, epoll;
static struct sockaddr_in to;
static char request[2048], buffer[1 << 16];
static size_t request_len;
static double *latency;
static long answered, bytes, bad, broken;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void open_one(int i) {
    int on = 1;
    struct conn *c = &conns[i];
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to)) {
        perror("open: connect");
        exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = (unsigned)i};
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &e);
    idle[idle_count++] = i;
}

static void ask(double due) {
    struct conn *c = &conns[idle[--idle_count]];
    c->due = due, c->have = c->want = 0;
    if (send(c->fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len) broken++;
}

static void lost(int i) {
    broken++;
    answered++; /* not a latency, but nothing to wait for either */
    latency[answered - 1] = 1e9;
    close(conns[i].fd);
    open_one(i);
}

static void receive(int i) {
    struct conn *c = &conns[i];
    ssize_t got = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got <= 0) {
        if (got < 0 && errno == EAGAIN) return;
        lost(i);
        return;
    }
    if (!c->want) {
        size_t room = sizeof c->head - 1 - c->have, len = (size_t)got < room ? (size_t)got : room;
        memcpy(c->head + c->have, buffer, len);
        c->head[c->have + len] = 0;
        char *end = strstr(c->head, "\r\n\r\n"), *length = strcasestr(c->head, "\r\ncontent-length:");
        if (end && length && length < end) {
            c->want = (size_t)(end + 4 - c->head) + (size_t)atol(length + 17);
            if (strncmp(c->head + 9, "200", 3)) bad++;
        } else if (end) {
            fprintf(stderr, "open: an answer without Content-Length\n");
            exit(1);
        }
    }
    c->have += (size_t)got;
    if (c->want && c->have >= c->want) {
        latency[answered++] = now() - c->due;
        bytes += (long)c->have;
        idle[idle_count++] = i;
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(double p) {
    return answered ? latency[(long)((double)(answered - 1) * p)] * 1e3 : 0;
}

int main(int argc, char **argv) {
    if (argc < 5) return fprintf(stderr, "open PORT PATH RATE SECONDS CONNECTIONS | open PORT PATH burst CLIENTS\n"), 2;
    bool burst = !strcmp(argv[3], "burst");
    double rate = burst ? 0 : atof(argv[3]);
    long total = burst ? atol(argv[4]) : (long)(rate * atof(argv[4]));
    conn_count = burst ? (int)total : atoi(argv[5]);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    to = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    request_len = (size_t)snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\n\r\n", argv[2], argv[1]);
    conns = calloc((size_t)conn_count, sizeof *conns);
    idle = calloc((size_t)conn_count, sizeof *idle);
    latency = calloc((size_t)total + 1, sizeof *latency);
    epoll = epoll_create1(0);
    for (int i = 0; i < conn_count; i++) open_one(i);

    struct epoll_event got[256];
    double begun = now(), end = begun + (burst ? 30 : atof(argv[4]) + 10);
    long sent = 0;
    while (answered < total && now() < end) {
        double t = now(), due = begun;
        while (sent < total && idle_count && (due = burst ? begun : begun + (double)sent / rate) <= t) ask(due), sent++;
        /* Sleeping is too coarse at these rates: with requests to come the loop looks again at once. */
        int n = epoll_wait(epoll, got, 256, sent < total && !burst ? 0 : 100);
        for (int i = 0; i < n; i++) receive((int)got[i].data.u32);
    }
    double seconds = now() - begun;
    broken += total - answered;
    qsort(latency, (size_t)answered, sizeof *latency, by_value);
    printf("{\"requests\":%ld,\"bytes\":%ld,\"seconds\":%.6f,\"bad\":%ld,\"broken\":%ld,\"p50\":%.3f,\"p90\":%.3f,\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f}\n", answered, bytes, seconds, bad, broken,
           percentile(0.5), percentile(0.9), percentile(0.99), percentile(0.999), percentile(1));
}
