#include "grammar.h"

#include <string.h>

/* What an octet may be part of. Octets from 0x80 are UTF-8, which the line was checked to be as a whole; they
   count as atext, qtext and letters (RFC 6531 3.3).  */
enum { ATEXT = 1, LETTER_DIGIT = 2, LABEL = 4, QTEXT = 8, VALUE = 16 };

static int class_of(uint8_t octet)
{
    if (octet >= 0x80)
        return ATEXT | LETTER_DIGIT | LABEL | QTEXT | VALUE;
    if (octet < 0x20 || octet == 0x7f)
        return 0;
    if (octet == ' ')
        return QTEXT;
    int value = octet == '=' ? 0 : VALUE;
    int qtext = octet == '"' || octet == '\\' ? 0 : QTEXT;
    if ((octet >= '0' && octet <= '9') || (octet >= 'A' && octet <= 'Z') || (octet >= 'a' && octet <= 'z'))
        return ATEXT | LETTER_DIGIT | LABEL | value | qtext;
    if (octet == '-' || octet == '_') /* no host name has "_", but the domains of real mail do */
        return ATEXT | LABEL | value | qtext;
    return (strchr("!#$%&'*+/=?^`{|}~", octet) ? ATEXT : 0) | value | qtext;
}

static uint8_t classes[256];

__attribute__((constructor)) static void fill_classes(void)
{
    for (int octet = 0; octet < 256; octet++)
        classes[octet] = (uint8_t)class_of((uint8_t)octet);
}

struct reader {
    const uint8_t *p, *end;
    int lenient; /* any length, and any dot-atom as a domain */
    int liberal; /* dots anywhere in a local-part, which may be long; a dot behind the domain */
    int non_ascii;
};

static int is(const struct reader *r, char octet)
{
    return r->p < r->end && *r->p == (uint8_t)octet;
}

static size_t run(struct reader *r, int class)
{
    const uint8_t *begin = r->p;
    for (; r->p < r->end && (classes[*r->p] & class); r->p++)
        r->non_ascii |= *r->p & 0x80;
    return (size_t)(r->p - begin);
}

static int read_dot_string(struct reader *r)
{
    if (!run(r, ATEXT))
        return 0;
    while (is(r, '.')) {
        r->p++;
        if (!run(r, ATEXT))
            return 0;
    }
    return 1;
}

static int read_quoted_string(struct reader *r)
{
    r->p++;
    for (;;) {
        run(r, QTEXT);
        if (is(r, '"')) {
            r->p++;
            return 1;
        }
        if (!is(r, '\\') || r->end - r->p < 2 || r->p[1] < 0x20 || r->p[1] > 0x7e)
            return 0;
        r->p += 2;
    }
}

static int read_liberal_dot_string(struct reader *r)
{
    size_t atoms = 0, octets;
    do {
        octets = run(r, ATEXT);
        atoms += octets > 0;
        if (is(r, '.')) {
            r->p++;
            octets = 1;
        }
    } while (octets);
    return atoms > 0;
}

/* Words, quoted or not, with dots between them or none, and quoted pairs outside of quotes: what RFC 822 had, or
   what was written in its name. */
static int read_lenient_local_part(struct reader *r)
{
    const uint8_t *begin = r->p;
    for (;;) {
        if (is(r, '"')) {
            if (!read_quoted_string(r))
                return 0;
        } else if (is(r, '\\') && r->end - r->p >= 2 && r->p[1] >= 0x20 && r->p[1] <= 0x7e) {
            r->p += 2;
        } else if (is(r, '.')) {
            r->p++;
        } else if (!run(r, ATEXT)) {
            return r->p > begin;
        }
    }
}

static int read_local_part(struct reader *r)
{
    const uint8_t *begin = r->p;
    if (r->lenient)
        return read_lenient_local_part(r);
    if (is(r, '"') ? !read_quoted_string(r) : r->liberal ? !read_liberal_dot_string(r) : !read_dot_string(r))
        return 0;
    return r->liberal || r->p - begin <= MAX_LOCAL_PART;
}

static int read_domain_name(struct reader *r)
{
    const uint8_t *begin = r->p;
    if (r->lenient)
        return read_dot_string(r);
    for (;;) {
        const uint8_t *label = r->p;
        size_t length = run(r, LABEL);
        if (length == 0 || length > MAX_LABEL || *label == '-' || r->p[-1] == '-')
            return 0;
        if (!is(r, '.'))
            break;
        r->p++;
        if (r->liberal && (is(r, '>') || is(r, ' ') || is(r, '\t')))
            break; /* an absolute domain (RFC 1034 3.1) */
    }
    return r->p - begin <= MAX_DOMAIN;
}

static int is_digit(char octet)
{
    return octet >= '0' && octet <= '9';
}

static int is_hex(char octet)
{
    return is_digit(octet) || (octet >= 'a' && octet <= 'f') || (octet >= 'A' && octet <= 'F');
}

/* The readers of RFC 5321 4.1.3, not inet_pton: what is a well-formed address must not depend on the C library. */
static int is_ipv4(const char *p, const char *end)
{
    for (int numbers = 1;; numbers++) {
        int value = 0, digits = 0;
        for (; p < end && is_digit(*p); p++, digits++)
            if (digits < 3)
                value = value * 10 + *p - '0';
        if (digits < 1 || digits > 3 || value > 255)
            return 0;
        if (numbers == 4)
            return p == end;
        if (p == end || *p++ != '.')
            return 0;
    }
}

static int is_ipv6(const char *p, const char *end)
{
    int groups = 0, compressed = 0;
    if (end - p >= 2 && p[0] == ':' && p[1] == ':') {
        compressed = 1;
        p += 2;
    }
    while (p < end || !compressed || groups == 0) {
        const char *group = p;
        if (p == end)
            return compressed; /* "::" alone */
        while (p < end && is_hex(*p))
            p++;
        if (p < end && *p == '.') {
            if (!is_ipv4(group, end))
                return 0;
            groups += 2;
            break;
        }
        if (p == group || p - group > 4)
            return 0;
        groups++;
        if (p == end)
            break;
        if (*p++ != ':' || p == end)
            return 0;
        if (*p == ':') {
            if (compressed)
                return 0;
            compressed = 1;
            p++;
        }
    }
    return compressed ? groups <= 6 : groups == 8; /* "::" stands for two groups or more */
}

static int is_dtext(const char *p, const char *end)
{
    for (; p < end; p++)
        if (*p < 33 || *p > 126 || *p == '[' || *p == '\\')
            return 0;
    return 1;
}

/* A tag that is an Ldh-str, then dcontent. */
static int is_tagged(const char *p, const char *colon, const char *end)
{
    if (colon == p || colon[-1] == '-' || colon + 1 == end)
        return 0;
    for (; p < colon; p++)
        if ((uint8_t)*p >= 0x80 || *p == '_' || !(classes[(uint8_t)*p] & LABEL))
            return 0;
    return is_dtext(colon + 1, end);
}

static int read_address_literal(struct reader *r)
{
    const char *p = (const char *)r->p + 1;
    const char *end = memchr(p, ']', (size_t)(r->end - r->p - 1));
    if (end == NULL || end + 2 - p > MAX_DOMAIN)
        return 0;
    r->p = (const uint8_t *)end + 1;
    const char *colon = memchr(p, ':', (size_t)(end - p));
    if (r->lenient)
        return is_dtext(p, end);
    if (colon == NULL)
        return is_ipv4(p, end);
    if (same_word(p, (size_t)(colon - p), "IPV6"))
        return is_ipv6(colon + 1, end);
    return is_tagged(p, colon, end);
}

/* "@a,@b:" before a mailbox: to be accepted and ignored (RFC 5321 4.1.1.3, appendix C).  */
static int read_source_route(struct reader *r)
{
    for (;;) {
        if (!is(r, '@'))
            return 0;
        r->p++;
        if (!read_domain_name(r))
            return 0;
        if (is(r, ':')) {
            r->p++;
            return 1;
        }
        if (!is(r, ','))
            return 0;
        r->p++;
    }
}

/* What is within the brackets of a path. */
static int read_path(struct reader *r, struct path *path)
{
    int route = is(r, '@');
    if (route && !read_source_route(r))
        return 0;
    const uint8_t *address = r->p;
    if (!read_local_part(r))
        return 0;
    path->local_length = (size_t)(r->p - address);
    if (is(r, '@')) {
        r->p++;
        if (!(is(r, '[') ? read_address_literal(r) : read_domain_name(r)))
            return 0;
    } else if (route) {
        return 0;
    } else {
        path->domainless = 1;
    }
    path->address = (const char *)address;
    path->length = (size_t)(r->p - address);
    path->non_ascii = r->non_ascii != 0;
    return 1;
}

static void skip_blanks(struct reader *r)
{
    while (r->liberal && (is(r, ' ') || is(r, '\t')))
        r->p++;
}

enum path_result parse_path(const char *p, size_t n, int strict, struct path *path, size_t *end)
{
    struct reader r = {(const uint8_t *)p, (const uint8_t *)p + n, 0, !strict, 0};
    memset(path, 0, sizeof *path);
    if (!is(&r, '<'))
        return PATH_NO_BRACKET;
    r.p++;
    skip_blanks(&r);
    if (!is(&r, '>')) {
        if (!read_path(&r, path))
            return PATH_MALFORMED;
        skip_blanks(&r);
        if (!is(&r, '>'))
            return PATH_MALFORMED;
    }
    *end = (size_t)(r.p + 1 - (const uint8_t *)p);
    return *end <= (strict ? MAX_PATH : MAX_LIBERAL_PATH) ? PATH_OK : PATH_MALFORMED;
}

enum path_result parse_lenient_address(const char *p, size_t n, struct path *path, size_t *end)
{
    struct reader r = {(const uint8_t *)p, (const uint8_t *)p + n, 1, 0, 0};
    memset(path, 0, sizeof *path);
    if (is(&r, '<')) {
        r.p++;
        if (!is(&r, '>') && !(read_path(&r, path) && is(&r, '>')))
            return PATH_MALFORMED;
        r.p++;
    } else if (is(&r, '@') || !read_path(&r, path)) {
        return PATH_MALFORMED;
    }
    *end = (size_t)(r.p - (const uint8_t *)p);
    return *end == n || p[*end] == ' ' || p[*end] == '\t' ? PATH_OK : PATH_MALFORMED;
}

enum parameter_result next_parameter(const char *p, size_t n, size_t *at, struct parameter *parameter)
{
    size_t i = *at;
    if (i < n && p[i] != ' ' && p[i] != '\t')
        return PARAMETER_MALFORMED;
    while (i < n && (p[i] == ' ' || p[i] == '\t'))
        i++;
    if (i == n) {
        *at = i;
        return PARAMETER_NONE;
    }
    struct reader r = {(const uint8_t *)p + i, (const uint8_t *)p + n, 0, 0, 0};
    parameter->keyword = p + i;
    if (!(classes[*r.p] & LETTER_DIGIT) || *r.p >= 0x80)
        return PARAMETER_MALFORMED;
    while (r.p < r.end && *r.p < 0x80 && *r.p != '_' && (classes[*r.p] & LABEL))
        r.p++;
    parameter->keyword_length = (size_t)((const char *)r.p - parameter->keyword);
    parameter->value = NULL;
    parameter->value_length = 0;
    if (is(&r, '=')) {
        r.p++;
        parameter->value = (const char *)r.p;
        parameter->value_length = run(&r, VALUE);
        if (parameter->value_length == 0)
            return PARAMETER_MALFORMED;
    }
    *at = (size_t)((const char *)r.p - p);
    return *at == n || p[*at] == ' ' || p[*at] == '\t' ? PARAMETER_OK : PARAMETER_MALFORMED;
}

int valid_utf8(const char *text, size_t n)
{
    const uint8_t *p = (const uint8_t *)text, *end = p + n;
    while (p < end) {
        if (*p < 0x80) {
            p++;
            continue;
        }
        /* RFC 3629 section 4: the second octet's range depends on the first.  */
        uint8_t first = *p, low = 0x80, high = 0xbf;
        int more;
        if (first >= 0xc2 && first <= 0xdf) {
            more = 1;
        } else if (first >= 0xe0 && first <= 0xef) {
            more = 2;
            if (first == 0xe0)
                low = 0xa0;
            else if (first == 0xed)
                high = 0x9f;
        } else if (first >= 0xf0 && first <= 0xf4) {
            more = 3;
            if (first == 0xf0)
                low = 0x90;
            else if (first == 0xf4)
                high = 0x8f;
        } else {
            return 0;
        }
        if (end - p <= more || p[1] < low || p[1] > high)
            return 0;
        for (int k = 2; k <= more; k++)
            if ((p[k] & 0xc0) != 0x80)
                return 0;
        p += more + 1;
    }
    return 1;
}

int same_word(const char *p, size_t n, const char *upper)
{
    for (size_t i = 0; i < n; i++) {
        char octet = p[i];
        if (octet >= 'a' && octet <= 'z')
            octet = (char)(octet - 'a' + 'A');
        if (upper[i] == 0 || octet != upper[i])
            return 0;
    }
    return upper[n] == 0;
}
