#include "command.h"

#include <string.h>

static const struct {
    const char *word;
    enum verb verb;
} WORDS[] = {
    {"HELO", VERB_HELO}, {"EHLO", VERB_EHLO}, {"MAIL", VERB_MAIL}, {"RCPT", VERB_RCPT}, {"DATA", VERB_DATA},
    {"RSET", VERB_RSET}, {"NOOP", VERB_NOOP}, {"QUIT", VERB_QUIT}, {"VRFY", VERB_VRFY}, {"HELP", VERB_HELP},
    {"STARTTLS", VERB_STARTTLS},
    {"AUTH", VERB_KNOWN}, {"BDAT", VERB_KNOWN}, {"EXPN", VERB_KNOWN}, {"LHLO", VERB_KNOWN}, {"ETRN", VERB_KNOWN},
    {"TURN", VERB_KNOWN},
    {"GET", VERB_FOREIGN}, {"POST", VERB_FOREIGN}, {"PUT", VERB_FOREIGN}, {"HEAD", VERB_FOREIGN},
    {"CONNECT", VERB_FOREIGN}, {"OPTIONS", VERB_FOREIGN},
};

static enum verb find_verb(const char *p, size_t n)
{
    for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++)
        if (((uint8_t)p[0] & 0xdf) == (uint8_t)WORDS[i].word[0] && same_word(p, n, WORDS[i].word))
            return WORDS[i].verb;
    return VERB_UNKNOWN;
}

void parse_command(const char *line, size_t n, struct command *command)
{
    while (n > 0 && (line[n - 1] == ' ' || line[n - 1] == '\t'))
        n--;
    const char *space = memchr(line, ' ', n);
    size_t length = space ? (size_t)(space - line) : n;
    command->verb = length ? find_verb(line, length) : VERB_UNKNOWN;
    while (length < n && line[length] == ' ')
        length++;
    command->argument = line + length;
    command->length = n - length;
}

static enum argument_result take_parameter(const struct parameter *parameter, unsigned offered,
                                           struct transaction_argument *argument)
{
    const char *keyword = parameter->keyword, *value = parameter->value;
    size_t length = parameter->value_length;
    unsigned bit;
    if (same_word(keyword, parameter->keyword_length, "SIZE"))
        bit = PARAMETER_SIZE;
    else if (same_word(keyword, parameter->keyword_length, "BODY"))
        bit = PARAMETER_BODY;
    else if (same_word(keyword, parameter->keyword_length, "SMTPUTF8"))
        bit = PARAMETER_SMTPUTF8;
    else
        return ARGUMENT_PARAMETER;
    if (!(offered & bit))
        return ARGUMENT_PARAMETER;
    if (argument->given & bit)
        return ARGUMENT_VALUE;
    argument->given |= bit;

    switch (bit) {
    case PARAMETER_SIZE: /* RFC 1870 3: up to 20 digits, which may be more than 64 bits hold */
        if (value == NULL || length > 20)
            return ARGUMENT_VALUE;
        for (size_t i = 0; i < length; i++) {
            unsigned digit = (unsigned)(uint8_t)value[i] - '0';
            if (digit > 9)
                return ARGUMENT_VALUE;
            if (argument->size > (UINT64_MAX - digit) / 10)
                argument->size = UINT64_MAX;
            else
                argument->size = argument->size * 10 + digit;
        }
        return ARGUMENT_OK;
    case PARAMETER_BODY:
        if (value == NULL || !(same_word(value, length, "7BIT") || same_word(value, length, "8BITMIME")))
            return ARGUMENT_VALUE;
        return ARGUMENT_OK;
    default:
        return value == NULL ? ARGUMENT_OK : ARGUMENT_VALUE;
    }
}

/* Who may be named: at MAIL the null path, at RCPT the postmaster of no domain in particular (RFC 5321 4.5.1).  */
static int names_nobody(const struct path *path, int recipient)
{
    if (!recipient)
        return path->domainless;
    return path->length == 0 || (path->domainless && !same_word(path->address, path->length, "POSTMASTER"));
}

static enum argument_result parse_argument(const char *p, size_t n, int recipient, unsigned offered,
                                           struct transaction_argument *argument)
{
    const char *keyword = recipient ? "TO:" : "FROM:";
    memset(argument, 0, sizeof *argument);
    size_t at = strlen(keyword);
    if (n < at || !same_word(p, at, keyword))
        return ARGUMENT_SYNTAX;
    while (at < n && p[at] == ' ') /* not in the grammar, but in mail */
        at++;
    size_t end;
    switch (parse_path(p + at, n - at, &argument->path, &end)) {
    case PATH_NO_BRACKET:
        return ARGUMENT_SYNTAX;
    case PATH_MALFORMED:
        return ARGUMENT_ADDRESS;
    default:
        break;
    }
    if (names_nobody(&argument->path, recipient))
        return ARGUMENT_ADDRESS;
    at += end;
    argument->parameters = at;

    for (;;) {
        struct parameter parameter;
        switch (next_parameter(p, n, &at, &parameter)) {
        case PARAMETER_NONE:
            return ARGUMENT_OK;
        case PARAMETER_MALFORMED:
            return ARGUMENT_SYNTAX;
        default:
            break;
        }
        enum argument_result result = take_parameter(&parameter, offered, argument);
        if (result != ARGUMENT_OK)
            return result;
    }
}

enum argument_result parse_mail(const char *p, size_t n, unsigned offered, struct transaction_argument *argument)
{
    enum argument_result result = parse_argument(p, n, 0, offered, argument);
    if (result == ARGUMENT_OK && argument->path.non_ascii && !(argument->given & PARAMETER_SMTPUTF8))
        return ARGUMENT_NON_ASCII;
    return result;
}

enum argument_result parse_rcpt(const char *p, size_t n, int utf8, struct transaction_argument *argument)
{
    enum argument_result result = parse_argument(p, n, 1, 0, argument);
    if (result == ARGUMENT_OK && argument->path.non_ascii && !utf8)
        return ARGUMENT_NON_ASCII;
    return result;
}
