/* command: one command line, taken apart.

   Knows the verbs and the arguments of MAIL and RCPT, down to the meaning of each parameter. Refuses to know
   states, limits that depend on the server, and what is answered: that is the dialogue's.  */

#ifndef FASTSMTP_COMMAND_H
#define FASTSMTP_COMMAND_H

#include <stddef.h>
#include <stdint.h>

#include "grammar.h"

enum verb {
    VERB_HELO, VERB_EHLO, VERB_MAIL, VERB_RCPT, VERB_DATA, VERB_RSET, VERB_NOOP, VERB_QUIT, VERB_VRFY, VERB_HELP,
    VERB_STARTTLS, VERB_AUTH, VERB_EXPN, VERB_LHLO,
    VERB_KNOWN,   /* in some RFC, not offered here: BDAT ETRN TURN */
    VERB_FOREIGN, /* another protocol's, e.g. a browser made to post mail */
    VERB_UNKNOWN,
    VERBS
};

struct command {
    enum verb verb;
    const char *word;     /* the verb as it was sent */
    size_t word_length;
    const char *argument; /* without the space before it; trailing blanks are gone */
    size_t length;
};

/* Takes a line without its CRLF apart. With `blanks`, spaces and tabs may stand before the verb, and tabs behind it, as
   some devices send them.  */
void parse_command(const char *line, size_t n, int blanks, struct command *command);

/* What may be said of a message at MAIL; each bit may be given once.  */
enum { PARAMETER_SIZE = 1, PARAMETER_BODY = 2, PARAMETER_SMTPUTF8 = 4 };

struct transaction_argument {
    struct path path;
    size_t parameters;      /* where they begin in the argument */
    unsigned given;         /* bits of parameters */
    uint64_t size;          /* SIZE=, in octets */
};

enum argument_result {
    ARGUMENT_OK,
    ARGUMENT_SYNTAX,    /* no "FROM:<" or "TO:<", or something that is no parameter */
    ARGUMENT_ADDRESS,   /* the path is malformed or over its sizes */
    ARGUMENT_VALUE,     /* a parameter given twice, or with a value that it cannot have */
    ARGUMENT_PARAMETER, /* a parameter that nobody offered */
    ARGUMENT_NON_ASCII, /* an address that needs SMTPUTF8, which was not asked for */
    ARGUMENT_BODY,      /* lenient only: BODY with another value than it can have ... */
    ARGUMENT_UTF8_VALUE, /* ... SMTPUTF8 with any ... */
    ARGUMENT_UTF8_DISABLED /* ... and SMTPUTF8 that was not offered */
};

/* The arguments of MAIL and RCPT. `offered` are the bits of the parameters to understand; `utf8` tells RCPT that
   MAIL came with SMTPUTF8; `strict` refuses addresses that exist and that RFC 5321 does not allow.  */
enum argument_result parse_mail(const char *p, size_t n, unsigned offered, int strict,
                                struct transaction_argument *argument);
enum argument_result parse_rcpt(const char *p, size_t n, int utf8, int strict, struct transaction_argument *argument);

/* The same, as aiosmtpd has it: first the path, without brackets or domain if the client likes, then the
   parameters, of which the last of a kind counts. `keyword` is "FROM:" or "TO:". Parameters that are not
   `offered` are passed over when `pass` is set.  */
enum argument_result parse_lenient_path(const char *p, size_t n, const char *keyword, size_t max_local_part,
                                        struct transaction_argument *argument);
enum argument_result parse_lenient_parameters(const char *p, size_t n, unsigned offered, int pass,
                                              struct transaction_argument *argument);

#endif
