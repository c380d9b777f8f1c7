#include "content.h"

#include <string.h>

#include "scan.h"

enum {
    MOST_CRS = 8,              /* in front of a LF that are one line end */
    LONGEST_HEADER = 64 * 1024 /* octets in which the end of the header is looked for */
};

void content_begin(struct content *c, uint8_t newlines, uint64_t max_size, uint32_t max_line)
{
    memset(c, 0, sizeof *c);
    c->state = CONTENT_LINE_BEGIN;
    c->newlines = newlines;
    memcpy(c->last, "x\r\n", sizeof c->last); /* an empty first line is the end of an empty header */
    c->max_size = max_size;
    c->max_line = max_line;
}

struct out {
    uint8_t *dst;
    size_t stored;
    size_t searched; /* octets in which the end of the header is not */
};

static void store(struct content *c, struct out *out, const uint8_t *p, size_t n)
{
    c->size += n;
    if (c->max_size && c->size > c->max_size)
        c->too_big = 1;
    if (out->dst == NULL || c->too_big)
        return;
    uint8_t *to = out->dst + out->stored;
    if (to != p)
        memmove(to, p, n);
    out->stored += n;
}

/* Adds octets to the current line, of which the content's size has not heard the last `ahead`. A line that begins
   beyond max_size is not what is wrong first.  */
static void add_to_line(struct content *c, size_t octets, size_t ahead)
{
    c->line += octets;
    if (c->line > (uint64_t)c->max_line + 2 && !(c->max_size && c->size + ahead - c->line > c->max_size))
        c->long_line = 1;
}

static void end_line(struct content *c, size_t octets, size_t ahead)
{
    add_to_line(c, octets, ahead);
    c->line = 0;
}

/* Measures the lines of a run; its first octet is not the LF of a line end.  */
static void measure(struct content *c, const uint8_t *p, size_t n)
{
    const uint8_t *begin = p, *from = p, *end = p + n, *lf;
    while ((lf = memchr(from, '\n', (size_t)(end - from)))) {
        from = lf + 1;
        if (lf > p && lf[-1] == '\r') {
            end_line(c, (size_t)(from - begin), (size_t)(from - p));
            begin = from;
        }
    }
    add_to_line(c, (size_t)(end - begin), n);
}

/* Whether there is an empty line in n octets. Not memmem, which takes ten times as long.  */
static int has_empty_line(const uint8_t *p, size_t n)
{
    const uint8_t *end = p + n, *lf;
    while (n > 2 && (lf = memchr(p, '\n', (size_t)(end - p) - 2)) != NULL) {
        if (lf[1] == '\r' && lf[2] == '\n')
            return 1;
        p = lf + 1;
        n = (size_t)(end - p);
    }
    return 0;
}

/* Looks for the end of the header in what this call stored, or across its beginning.  */
static void look_for_header_end(struct content *c, struct out *out)
{
    uint8_t seam[2 * sizeof c->last];
    size_t from = 0;
    if (out->searched < sizeof c->last) {
        size_t more = out->stored < sizeof c->last ? out->stored : sizeof c->last;
        memcpy(seam, c->last, sizeof c->last);
        memcpy(seam + sizeof c->last, out->dst, more);
        c->header_over = (uint8_t)has_empty_line(seam, sizeof c->last + more);
    } else {
        from = out->searched - sizeof c->last;
    }
    c->header_over |= c->size > LONGEST_HEADER || has_empty_line(out->dst + from, out->stored - from);
    out->searched = out->stored;
}

/* Before the next call, whose beginning continues what this one stored.  */
static void remember_end(struct content *c, struct out *out)
{
    uint8_t seam[2 * sizeof c->last];
    size_t more = out->stored < sizeof c->last ? out->stored : sizeof c->last;
    look_for_header_end(c, out);
    memcpy(seam, c->last, sizeof c->last);
    memcpy(seam + sizeof c->last, out->dst + out->stored - more, more);
    memcpy(c->last, seam + more, sizeof c->last);
}

/* What `count` CRs become that no LF follows, or one of many; 0 if there is no room for it.  */
static int store_stray(struct content *c, struct out *out, size_t count, size_t room)
{
    static const uint8_t LINES[] = "\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n", SPACES[] = "        ", CRS[] = "\r\r\r\r\r\r\r\r";
    const uint8_t *octets = CRS;
    size_t n = count;
    c->bare_cr = 1;
    if (c->newlines == NEWLINES_NORMALIZE) {
        if (!c->header_over && out->dst != NULL)
            look_for_header_end(c, out);
        octets = c->header_over ? LINES : SPACES;
        n = c->header_over ? 2 * count : count;
    }
    if (out->stored + n > room)
        return 0;
    store(c, out, octets, n);
    if (c->max_line && octets == LINES)
        end_line(c, 2, 0);
    else
        c->line += n;
    return 1;
}

size_t content_feed(struct content *c, const uint8_t *src, size_t n, uint8_t *dst, size_t room, int in_place,
                    size_t *stored)
{
    static const uint8_t CRLF[2] = {'\r', '\n'}, CRLF_CRS[] = "\r\r\r\r\r\r\r\r\n";
    struct out out = {dst, 0, 0};
    size_t i = 0;

    while (i < n && c->state != CONTENT_END) {
        uint8_t octet = src[i];
        switch (c->state) {
        case CONTENT_LINE_BEGIN:
            if (octet == '.') {
                c->state = CONTENT_DOT;
                i++;
                continue;
            }
            break;

        case CONTENT_CR:
            if (octet == '\r') {
                if (c->crs == MOST_CRS) {
                    if (!store_stray(c, &out, 1, in_place ? room + i : SIZE_MAX))
                        goto done;
                } else {
                    c->crs++;
                }
                i++;
                continue;
            }
            if (octet == '\n') {
                size_t crs = c->newlines == NEWLINES_NORMALIZE ? 1 : c->crs;
                if (in_place && out.stored + crs + 1 > room + i + 1)
                    goto done;
                c->bare_cr |= c->crs > 1;
                store(c, &out, CRLF_CRS + MOST_CRS - crs, crs + 1);
                if (c->max_line)
                    end_line(c, crs + 1, 0);
                c->state = CONTENT_LINE_BEGIN;
                i++;
                continue;
            }
            if (!store_stray(c, &out, c->crs, in_place ? room + i : SIZE_MAX))
                goto done;
            c->state = CONTENT_LINE;
            break;

        case CONTENT_DOT:
            if (octet == '\r') {
                c->state = CONTENT_DOT_CR;
                i++;
                continue;
            }
            c->state = CONTENT_LINE; /* the dot was stuffed: it is gone */
            break;

        case CONTENT_DOT_CR:
            if (octet == '\n') {
                c->state = CONTENT_END;
                i++;
                continue;
            }
            c->state = CONTENT_CR;
            c->crs = 1;
            continue;

        default:
            break;
        }

        if (octet == '\n') { /* CONTENT_LINE_BEGIN or CONTENT_LINE: no CR before it */
            c->bare_lf = 1;
            if (c->newlines == NEWLINES_NORMALIZE) {
                if (in_place && out.stored + 2 > room + i + 1)
                    goto done;
                store(c, &out, CRLF, 2);
                if (c->max_line)
                    end_line(c, 2, 0);
            } else {
                store(c, &out, src + i, 1);
                c->line++;
            }
            c->state = CONTENT_LINE;
            i++;
            continue;
        }

        /* A run without an event. What comes before it is dealt with, so only pairs within it count.  */
        size_t run;
        if (c->newlines == NEWLINES_KEEP) {
            run = scan_dots(src + i, n - i);
            while (run < n - i && (run < 2 || src[i + run - 2] != '\r')) /* ". after a lone LF" is plain */
                run += scan_dots(src + i + run, n - i - run);
        } else {
            run = scan_strict(src + i, n - i);
        }
        uint8_t last = src[i + run - 1];
        size_t kept = run - (last == '\r');
        if (c->max_line && kept)
            measure(c, src + i, kept);
        if (last == '\r') {
            c->state = CONTENT_CR;
            c->crs = 1;
        } else if (last == '\n' && (run < 2 || src[i + run - 2] == '\r')) {
            c->state = CONTENT_LINE_BEGIN;
        } else {
            c->state = CONTENT_LINE;
        }
        store(c, &out, src + i, kept); /* in place this moves what was looked at: it comes last */
        i += run;
    }
done:
    if (!c->header_over && c->state != CONTENT_END && dst != NULL && c->newlines == NEWLINES_NORMALIZE)
        remember_end(c, &out);
    *stored = out.stored;
    return i;
}
