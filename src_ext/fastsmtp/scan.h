/* scan: where is the next octet of message content that is not plain?

   Knows octets. Refuses to know states, messages and what an event means.

   Every kernel looks at pairs (p[i-1], p[i]) for i >= 1 and returns the first i that is an event, or n.
   The caller has dealt with p[0].  */

#ifndef FASTSMTP_SCAN_H
#define FASTSMTP_SCAN_H

#include <stddef.h>
#include <stdint.h>

/* An event is a LF without its CR, a CR without its LF, or a "." after a LF.  */
extern size_t (*scan_strict)(const uint8_t *p, size_t n);

/* An event is a "." after a LF: for content whose stray CR and LF are kept.  */
extern size_t (*scan_dots)(const uint8_t *p, size_t n);

/* The scalar twins, which the tests hold the fast kernels against.  */
size_t scan_strict_scalar(const uint8_t *p, size_t n);
size_t scan_dots_scalar(const uint8_t *p, size_t n);

/* Chooses the kernels for this processor; returns the name of the choice.  */
const char *scan_init(void);

#endif
