/* grammar: the paths and parameters of MAIL and RCPT (RFC 5321 4.1.2, RFC 6531 3.3).

   Knows what is well-formed, and the sizes of RFC 5321 4.5.3.1. Refuses to know commands, states, replies and
   which parameters there are.  Lengths are octets; nothing is copied, answers point into the line.  */

#ifndef FASTSMTP_GRAMMAR_H
#define FASTSMTP_GRAMMAR_H

#include <stddef.h>
#include <stdint.h>

enum { MAX_LOCAL_PART = 64, MAX_DOMAIN = 255, MAX_PATH = 256, MAX_LABEL = 63, MAX_LIBERAL_PATH = 1024 };

struct path {
    const char *address; /* the mailbox, without angle brackets and source route */
    size_t length;       /* 0: the null path */
    size_t local_length; /* of its local part */
    int non_ascii;       /* it needs SMTPUTF8 */
    int domainless;      /* a local-part alone */
};

enum path_result { PATH_OK, PATH_NO_BRACKET, PATH_MALFORMED };

/* Reads a path at the beginning of p; *end is set just behind its ">". If it is not to be `strict`, dots may stand
   anywhere in a local-part (mobile carriers gave such addresses), which may have any length within a path of
   MAX_LIBERAL_PATH (bulk senders encode the recipient in it), the domain may end in a dot, and blanks may stand within
   the brackets: each can be read in one way only.  */
enum path_result parse_path(const char *p, size_t n, int strict, struct path *path, size_t *end);

/* The same for those who write it without brackets, without a domain, or at any length. */
enum path_result parse_lenient_address(const char *p, size_t n, struct path *path, size_t *end);

struct parameter {
    const char *keyword, *value; /* value NULL: there was no "=" */
    size_t keyword_length, value_length;
};

enum parameter_result { PARAMETER_NONE, PARAMETER_OK, PARAMETER_MALFORMED };

/* Reads the next parameter at *at, which stands on a space or at the end, and moves *at behind it.  */
enum parameter_result next_parameter(const char *p, size_t n, size_t *at, struct parameter *parameter);

/* Whether n octets are UTF-8 as RFC 3629 has it: no surrogates, nothing overlong. */
int valid_utf8(const char *p, size_t n);

/* Whether two words are the same but for the case of ASCII letters; `upper` is in upper case.  */
int same_word(const char *p, size_t n, const char *upper);

#endif
