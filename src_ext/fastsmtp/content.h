/* content: message content as it comes after DATA, made into what is stored.

   Knows dot-stuffing (RFC 5321 4.5.2), line ends, and where the content ends: CRLF.CRLF and nothing else.
   Refuses to know where octets come from or go to, commands and replies.  */

#ifndef FASTSMTP_CONTENT_H
#define FASTSMTP_CONTENT_H

#include <stddef.h>
#include <stdint.h>

enum content_state {
    CONTENT_LINE_BEGIN, /* just after CRLF, where a dot counts */
    CONTENT_LINE,       /* within a line */
    CONTENT_CR,         /* CRs came and are not stored yet; LF completes the line, anything else makes them stray */
    CONTENT_DOT,        /* CRLF "." */
    CONTENT_DOT_CR,     /* CRLF "." CR */
    CONTENT_END         /* CRLF "." CRLF */
};

enum content_newlines { NEWLINES_NORMALIZE, NEWLINES_REJECT, NEWLINES_KEEP };

struct content {
    uint8_t state;
    uint8_t newlines;
    uint8_t bare_cr;       /* a CR without LF was seen */
    uint8_t bare_lf;       /* a LF without CR was seen */
    uint8_t long_line;     /* a line was longer than max_line, before the content was too big */
    uint8_t too_big;       /* more than max_size octets; what follows is not stored */
    uint8_t crs;           /* how many CRs are not stored yet */
    uint8_t header_over;   /* an empty line is stored, or so much that no header is that long */
    uint8_t last[3];       /* the last octets stored by former calls, while the header is not over */
    uint32_t max_line;     /* octets without CRLF; 0 = any */
    uint64_t line;         /* octets of the current line, kept only under max_line */
    uint64_t max_size;     /* octets as stored; 0 = any */
    uint64_t size;         /* octets as stored, counted on beyond max_size */
};

void content_begin(struct content *c, uint8_t newlines, uint64_t max_size, uint32_t max_line);

/* Takes up to n octets at src, stores what is content at dst, and says in *stored how much that was.
   Returns how many octets it took: fewer than n only at the end of the content (c->state is CONTENT_END)
   or, when dst lies before src in the same buffer, where a stray CR or LF grows by the octet that there is
   no room for. Then the caller gives the rest from elsewhere.  `room` is how many octets dst can take that
   src does not need any more: src - dst in place, 2 * n or more otherwise.

   A CR or LF that stands alone ends a line where newlines are normalized, but for a CR in the header: that becomes a
   space, since the octets behind it could make a field of their own. CRs in front of CRLF are dropped: some programs translate LF to
   CRLF twice, and each line would be followed by an empty one.

   Content that is over max_size, or of no use to the caller (dst NULL), is followed to its end all the same:
   to go back to commands early would run the rest of the message as commands (SMTP smuggling).  */
size_t content_feed(struct content *c, const uint8_t *src, size_t n, uint8_t *dst, size_t room, int in_place,
                    size_t *stored);

#endif
