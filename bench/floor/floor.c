/*
 * floor: an HTTP/1.1 server in one epoll loop that does as little as a server can do.
 *
 * It has two uses. As the floor of the comparison it answers pages from memory: what it costs is what the kernel and one
 * comparison of a path cost, and no proxy can be cheaper without leaving the socket API. As the origin it stands behind the
 * proxies, on the core of the load.
 *
 *   floor PORT [--keys N]     N pages are kept in memory, as a cache would; without it pages are made when asked for
 *   floor PORT --sink         accepts, reads and throws away: where a proxy can send its log
 *
 *   GET /page, /p/N           a page of 10,240 bytes; every N has a text of its own
 *   GET /json, /api/...       2,048 bytes of JSON; with POST the answer says how long the body was
 *   GET /small/N              a page of 1,024 bytes
 *   GET /size/N               N bytes
 *   GET /slow/MS/ANYTHING     the page, after MS milliseconds
 *   GET /stale/MS/AGE/NAME    the same, fresh for AGE seconds
 *   GET /count                how many of the requests above there were so far
 *
 * Not a web server: it trusts its clients.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 10240, SMALL = 1024, JSON = 2048, HEAD = 512, IN = 16384, BLOCK = 1 << 20, EVENTS = 256, MAX_FD = 1 << 17 };

struct conn {
    int fd;
    size_t have;         /* bytes in `in` */
    size_t skip;         /* bytes of a request body still to come */
    size_t head_len, head_off;
    const char *body;    /* repeats after `period` bytes */
    size_t body_len, body_off, period;
    double due;          /* when the answer may leave; 0: at once */
    bool waits;          /* for room in the socket */
    char number[24];     /* text that tells pages apart, at the beginning of the body */
    size_t number_len;
    char head[HEAD];
    char in[IN];
};

static struct conn *conns[MAX_FD];
static int delayed[MAX_FD], delayed_count;
static int epoll;
static char page[PAGE], json[JSON], block[BLOCK];
static char **kept;
static char date[40];
static long keys, count;
static bool sink;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* Text that compresses about as well as HTML does. */
static void fill(char *to, size_t size, const char *begin, const char *end) {
    static const char *words[] = {"<li class=\"product\">", "shoe ", "price ", "</li>\n", "red ", "49.90 ", "<a href=\"/deal/", "\">", "</a> ", "size ", "new "};
    unsigned seed = 1;
    size_t at = (size_t)sprintf(to, "%s", begin), last = size - strlen(end);
    while (at < last) {
        seed = seed * 1103515245 + 12345;
        const char *word = words[(seed >> 16) % 11];
        size_t len = strlen(word);
        if (len > last - at) len = last - at;
        memcpy(to + at, word, len);
        at += len;
    }
    memcpy(to + last, end, strlen(end));
}

static void make_bodies(void) {
    char *big = malloc(PAGE + 1);
    fill(big, PAGE, "<!doctype html><title>                        </title>", "</html>\n");
    memcpy(page, big, PAGE);
    size_t at = (size_t)sprintf(big, "{\"items\":[");
    for (int i = 0; at < JSON - 100; i++) at += (size_t)sprintf(big + at, "%s{\"id\":%d,\"name\":\"shoe %d\",\"price\":%d.90,\"stock\":%d}", i ? "," : "", i, i, 20 + i, i * 3);
    at += (size_t)sprintf(big + at, "],\"pad\":\"");
    while (at < JSON - 2) big[at++] = 'x';
    memcpy(big + at, "\"}", 2);
    memcpy(json, big, JSON);
    for (size_t i = 0; i < BLOCK; i++) block[i] = (char)('a' + i % 26);
    free(big);
}

static void keep_pages(void) {
    kept = malloc(sizeof *kept * (size_t)keys);
    for (long i = 0; i < keys; i++) {
        kept[i] = malloc(PAGE);
        memcpy(kept[i], page, PAGE);
        char text[24];
        int len = snprintf(text, sizeof text, "page %ld", i);
        memcpy(kept[i] + 22, text, (size_t)len);
    }
}

static void tell_date(void) {
    static time_t last;
    time_t t = time(NULL);
    if (t == last) return;
    last = t;
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime(&t));
}

static void watch(struct conn *c, unsigned events) {
    struct epoll_event e = {.events = events, .data.fd = c->fd};
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &e);
}

static void drop(struct conn *c) {
    conns[c->fd] = NULL;
    for (int i = 0; i < delayed_count; i++)
        if (delayed[i] == c->fd) delayed[i--] = delayed[--delayed_count];
    close(c->fd);
    free(c);
}

/* Sends what there is to send. False: the connection is gone. */
static bool flush(struct conn *c) {
    while (c->head_off < c->head_len || c->body_off < c->body_len) {
        struct iovec v[8];
        int n = 0;
        size_t off = c->body_off;
        if (c->head_off < c->head_len) v[n++] = (struct iovec){c->head + c->head_off, c->head_len - c->head_off};
        while (n < 8 && off < c->body_len) {
            size_t in = off % c->period, len = c->period - in;
            const char *from = c->body + in;
            if (c->number_len && off < 22 + c->number_len) { /* the page's own text lies over the common one */
                if (off < 22) len = 22 - off;
                else from = c->number + (off - 22), len = 22 + c->number_len - off;
            }
            if (len > c->body_len - off) len = c->body_len - off;
            v[n++] = (struct iovec){(char *)from, len};
            off += len;
        }
        struct msghdr m = {.msg_iov = v, .msg_iovlen = (size_t)n};
        ssize_t sent = sendmsg(c->fd, &m, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) return drop(c), false;
            if (!c->waits) c->waits = true, watch(c, EPOLLOUT);
            return true;
        }
        size_t left = (size_t)sent, of_head = c->head_len - c->head_off;
        if (left < of_head) of_head = left;
        c->head_off += of_head;
        c->body_off += left - of_head;
    }
    if (c->waits) c->waits = false, watch(c, EPOLLIN);
    return true;
}

static const char *field(const char *head, const char *end, const char *name) {
    size_t len = strlen(name);
    for (const char *at = head; at < end; at = (const char *)memchr(at, '\n', (size_t)(end - at)) + 1)
        if (!strncasecmp(at, name, len)) return at + len;
    return NULL;
}

static void answer(struct conn *c, const char *type, const char *more, const char *body, size_t len, size_t period) {
    c->body = body, c->body_len = len, c->period = period;
    c->head_len = (size_t)snprintf(c->head, HEAD, "HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%s\r\n", date, type, len, more);
}

/* One request that is wholly here begins at `in` and its head ends at `end`. */
static void handle(struct conn *c, const char *in, const char *end) {
    const char *path = (const char *)memchr(in, ' ', (size_t)(end - in)) + 1, *html = "text/html; charset=utf-8";
    const char *fresh = "Cache-Control: public, max-age=3600\r\nX-Cache-Status: HIT\r\n";
    const char *long_body = in[0] == 'P' ? field(in, end, "content-length:") : NULL;
    c->skip = long_body ? (size_t)atol(long_body) : 0;
    c->head_off = c->body_off = 0, c->due = 0, c->number_len = 0;
    if (!strncmp(path, "/count", 6)) {
        c->number_len = 0;
        int len = snprintf(c->number, sizeof c->number, "%ld\n", count);
        answer(c, "text/plain", "Cache-Control: no-store\r\n", c->number, (size_t)len, (size_t)len);
        return;
    }
    count++;
    if (!strncmp(path, "/p/", 3)) {
        long key = atol(path + 3);
        if (key < keys) answer(c, html, fresh, kept[key], PAGE, PAGE);
        else {
            c->number_len = (size_t)snprintf(c->number, sizeof c->number, "page %ld", key);
            answer(c, html, fresh, page, PAGE, PAGE);
        }
    } else if (!strncmp(path, "/small/", 7)) answer(c, html, fresh, page + PAGE - SMALL, SMALL, SMALL);
    else if (!strncmp(path, "/page", 5)) answer(c, html, fresh, page, PAGE, PAGE);
    else if (!strncmp(path, "/size/", 6)) answer(c, "application/octet-stream", "", block, (size_t)atol(path + 6), BLOCK);
    else if (!strncmp(path, "/slow/", 6)) {
        answer(c, html, fresh, page, PAGE, PAGE);
        c->due = now() + atol(path + 6) / 1e3;
    } else if (!strncmp(path, "/stale/", 7)) {
        char *rest, more[80];
        c->due = now() + strtol(path + 7, &rest, 10) / 1e3;
        snprintf(more, sizeof more, "Cache-Control: public, max-age=%ld\r\n", atol(rest + 1));
        answer(c, html, more, page, PAGE, PAGE);
    } else {
        char more[40] = "";
        if (c->skip) snprintf(more, sizeof more, "X-Received: %zu\r\n", c->skip);
        answer(c, "application/json", more, json, JSON, JSON);
    }
}

/* Takes requests out of the buffer as long as answers leave at once. */
static void serve(struct conn *c) {
    size_t at = 0;
    while (at < c->have) {
        if (c->skip) {
            size_t len = c->have - at < c->skip ? c->have - at : c->skip;
            at += len, c->skip -= len;
            if (c->skip || c->due) break;
            if (!flush(c)) return;
            if (c->waits) break;
            continue;
        }
        char *end = memmem(c->in + at, c->have - at, "\r\n\r\n", 4);
        if (!end) break;
        handle(c, c->in + at, end + 2);
        at = (size_t)(end - c->in) + 4;
        if (c->due) {
            delayed[delayed_count++] = c->fd;
            break;
        }
        if (!c->skip && !flush(c)) return;
        if (c->waits) break;
    }
    memmove(c->in, c->in + at, c->have - at);
    c->have -= at;
}

static void readable(struct conn *c) {
    ssize_t got = recv(c->fd, c->in + c->have, IN - c->have, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN) drop(c);
        return;
    }
    if (sink) return;
    c->have += (size_t)got;
    if (!c->due && !c->waits) serve(c);
}

static int release_delayed(void) {
    double t = now(), next = 0;
    for (int i = 0; i < delayed_count; i++) {
        struct conn *c = conns[delayed[i]];
        if (c->due <= t) {
            delayed[i--] = delayed[--delayed_count];
            c->due = 0;
            if (flush(c) && !c->waits) serve(c);
        } else if (!next || c->due < next) next = c->due;
    }
    return next ? (int)((next - t) * 1000) + 1 : -1;
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&to, sizeof to) || listen(fd, 16384)) {
        perror("floor: listen");
        exit(1);
    }
    return fd;
}

int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "floor PORT [--keys N] [--sink]\n"), 2;
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "--sink")) sink = true;
        else if (!strcmp(argv[i], "--keys") && i + 1 < argc) keys = atol(argv[++i]);
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    make_bodies();
    keep_pages();
    int door = listen_on(atoi(argv[1]));
    epoll = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = door}, got[EVENTS];
    epoll_ctl(epoll, EPOLL_CTL_ADD, door, &e);
    for (;;) {
        int wait = delayed_count ? release_delayed() : -1;
        int n = epoll_wait(epoll, got, EVENTS, wait);
        tell_date();
        for (int i = 0; i < n; i++) {
            if (got[i].data.fd == door) {
                int fd, on = 1;
                while ((fd = accept4(door, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (fd >= MAX_FD) { close(fd); continue; }
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                    conns[fd] = calloc(1, sizeof(struct conn));
                    conns[fd]->fd = fd;
                    struct epoll_event one = {.events = EPOLLIN, .data.fd = fd};
                    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &one);
                }
                continue;
            }
            struct conn *c = conns[got[i].data.fd];
            if (!c) continue;
            if (got[i].events & EPOLLOUT) {
                if (flush(c) && !c->waits && !c->due) serve(c);
            } else readable(c);
        }
    }
}
