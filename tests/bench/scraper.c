/* Scrapes as Prometheus does, from several connections at once, each again and again.
 *
 *     scraper PORT CONNECTIONS SECONDS
 *
 * Every connection is kept (as Prometheus does), every page is asked for as OpenMetrics and with
 * gzip, and read to its end. It prints "REQUESTS FAILED P50_US P99_US BYTES", of all connections;
 * BYTES is the length of the last page. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#define MOST_REQUESTS 200000

static const char request[] =
    "GET /metrics HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Prometheus/2.42.0\r\n"
    "Accept: application/openmetrics-text; version=1.0.0; charset=utf-8,text/plain;q=0.5\r\n"
    "Accept-Encoding: gzip\r\nX-Prometheus-Scrape-Timeout-Seconds: 10\r\n\r\n";

static int port;
static double seconds;

struct scraper {
    pthread_t id;
    uint32_t *microseconds;
    size_t requests, failed;
    long bytes;
};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static int dial(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* The length of the page, or -1 where it is none. */
static long ask(int fd) {
    char head[65536], *end = NULL, *length;
    long have = 0, size, got;
    if (write(fd, request, sizeof request - 1) != sizeof request - 1)
        return -1;
    while (!end) {
        got = read(fd, head + have, sizeof head - 1 - (size_t)have);
        if (got <= 0)
            return -1;
        have += got;
        head[have] = 0;
        end = strstr(head, "\r\n\r\n");
    }
    length = strcasestr(head, "\r\nContent-Length:");
    if (strncmp(head, "HTTP/1.1 200", 12) || !length || length > end)
        return -1;
    size = atol(length + 17);
    for (long left = size - (have - (end + 4 - head)); left > 0; left -= got) {
        char body[65536];
        got = read(fd, body, sizeof body);
        if (got <= 0)
            return -1;
    }
    return size;
}

static void *scrape(void *argument) {
    struct scraper *s = argument;
    double end = now() + seconds, begin;
    int fd = dial();
    while ((begin = now()) < end && s->requests < MOST_REQUESTS) {
        long bytes = fd < 0 ? -1 : ask(fd);
        if (bytes < 0) {
            s->failed++;
            if (fd >= 0)
                close(fd);
            usleep(10000);
            fd = dial();
            continue;
        }
        s->bytes = bytes;
        s->microseconds[s->requests++] = (uint32_t)((now() - begin) * 1e6);
    }
    if (fd >= 0)
        close(fd);
    return NULL;
}

static int compare(const void *a, const void *b) {
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

int main(int count, char **arguments) {
    int connections = count == 4 ? atoi(arguments[2]) : 0;
    if (connections < 1 || connections > 64) {
        fprintf(stderr, "scraper PORT CONNECTIONS SECONDS\n");
        return 2;
    }
    port = atoi(arguments[1]);
    seconds = atof(arguments[3]);
    struct scraper scrapers[64] = {0};
    size_t requests = 0, failed = 0, place = 0;
    for (int i = 0; i < connections; i++) {
        scrapers[i].microseconds = calloc(MOST_REQUESTS, sizeof(uint32_t));
        if (!scrapers[i].microseconds ||
            pthread_create(&scrapers[i].id, NULL, scrape, &scrapers[i]))
            return 1;
    }
    for (int i = 0; i < connections; i++) {
        pthread_join(scrapers[i].id, NULL);
        requests += scrapers[i].requests;
        failed += scrapers[i].failed;
    }
    uint32_t *all = calloc(requests + 1, sizeof *all);
    for (int i = 0; i < connections; i++)
        for (size_t j = 0; j < scrapers[i].requests; j++)
            all[place++] = scrapers[i].microseconds[j];
    qsort(all, requests, sizeof *all, compare);
    printf("%zu %zu %u %u %ld\n", requests, failed, requests ? all[requests / 2] : 0,
           requests ? all[requests * 99 / 100] : 0, scrapers[0].bytes);
    return 0;
}
