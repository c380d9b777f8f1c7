#include "command.h"

#include <string.h>

static const struct {
    const char *word;
    enum verb verb;
} WORDS[] = {
    {"HELO", VERB_HELO}, {"EHLO", VERB_EHLO}, {"MAIL", VERB_MAIL}, {"RCPT", VERB_RCPT}, {"DATA", VERB_DATA},
    {"RSET", VERB_RSET}, {"NOOP", VERB_NOOP}, {"QUIT", VERB_QUIT}, {"VRFY", VERB_VRFY}, {"HELP", VERB_HELP},
    {"STARTTLS", VERB_STARTTLS},
    {"AUTH", VERB_AUTH}, {"EXPN", VERB_EXPN}, {"LHLO", VERB_LHLO},
    {"BDAT", VERB_KNOWN}, {"ETRN", VERB_KNOWN}, {"TURN", VERB_KNOWN},
    {"GET", VERB_FOREIGN}, {"POST", VERB_FOREIGN}, {"PUT", VERB_FOREIGN}, {"HEAD", VERB_FOREIGN},
    {"CONNECT", VERB_FOREIGN}, {"OPTIONS", VERB_FOREIGN},
    {"PROXY", VERB_FOREIGN}, /* a proxy in front that we do not expect: all replies would be one command late */
};

static enum verb find_verb(const char *p, size_t n)
{
    for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++)
        if (((uint8_t)p[0] & 0xdf) == (uint8_t)WORDS[i].word[0] && same_word(p, n, WORDS[i].word))
            return WORDS[i].verb;
    return VERB_UNKNOWN;
}

static int is_blank(char octet)
{
    return octet == ' ' || octet == '\t';
}

static size_t skip_blanks(const char *p, size_t n, size_t at)
{
    while (at < n && is_blank(p[at]))
        at++;
    return at;
}

void parse_command(const char *line, size_t n, int blanks, struct command *command)
{
    while (n > 0 && is_blank(line[n - 1]))
        n--;
    size_t length = blanks ? skip_blanks(line, n, 0) : 0;
    line += length;
    n -= length;
    length = 0;
    while (length < n && line[length] != ' ' && !(blanks && line[length] == '\t'))
        length++;
    command->verb = length ? find_verb(line, length) : VERB_UNKNOWN;
    command->word = line;
    command->word_length = length;
    while (length < n && (line[length] == ' ' || (blanks && line[length] == '\t')))
        length++;
    command->argument = line + length;
    command->length = n - length;
}

/* RFC 1870 3: up to 20 digits, which may be more than 64 bits hold. */
static int read_size(const char *value, size_t length, uint64_t *size)
{
    *size = 0;
    if (value == NULL || length > 20)
        return 0;
    for (size_t i = 0; i < length; i++) {
        unsigned digit = (unsigned)(uint8_t)value[i] - '0';
        if (digit > 9)
            return 0;
        if (*size > (UINT64_MAX - digit) / 10)
            *size = UINT64_MAX;
        else
            *size = *size * 10 + digit;
    }
    return 1;
}

static int is_body(const char *value, size_t length)
{
    return value != NULL && (same_word(value, length, "7BIT") || same_word(value, length, "8BITMIME"));
}

static unsigned bit_of(const struct parameter *parameter)
{
    const char *keyword = parameter->keyword;
    size_t length = parameter->keyword_length;
    if (same_word(keyword, length, "SIZE"))
        return PARAMETER_SIZE;
    if (same_word(keyword, length, "BODY"))
        return PARAMETER_BODY;
    return same_word(keyword, length, "SMTPUTF8") ? PARAMETER_SMTPUTF8 : 0;
}

static enum argument_result take_parameter(const struct parameter *parameter, unsigned offered,
                                           struct transaction_argument *argument)
{
    unsigned bit = bit_of(parameter);
    if (!(offered & bit))
        return ARGUMENT_PARAMETER;
    if (argument->given & bit)
        return ARGUMENT_VALUE;
    argument->given |= bit;

    switch (bit) {
    case PARAMETER_SIZE:
        return read_size(parameter->value, parameter->value_length, &argument->size) ? ARGUMENT_OK : ARGUMENT_VALUE;
    case PARAMETER_BODY:
        return is_body(parameter->value, parameter->value_length) ? ARGUMENT_OK : ARGUMENT_VALUE;
    default:
        return parameter->value == NULL ? ARGUMENT_OK : ARGUMENT_VALUE;
    }
}

/* Who may be named: at MAIL the null path, at RCPT the postmaster of no domain in particular (RFC 5321 4.5.1).  */
static int names_nobody(const struct path *path, int recipient)
{
    if (!recipient)
        return path->domainless;
    return path->length == 0 || (path->domainless && !same_word(path->address, path->length, "POSTMASTER"));
}

static enum argument_result parse_argument(const char *p, size_t n, int recipient, unsigned offered, int strict,
                                           struct transaction_argument *argument)
{
    const char *keyword = recipient ? "TO" : "FROM";
    memset(argument, 0, sizeof *argument);
    size_t at = strlen(keyword);
    if (n < at || !same_word(p, at, keyword))
        return ARGUMENT_SYNTAX;
    /* Blanks around the colon are not in the grammar, but in mail. */
    at = skip_blanks(p, n, at);
    if (at == n || p[at] != ':')
        return ARGUMENT_SYNTAX;
    at = skip_blanks(p, n, at + 1);
    size_t end;
    switch (parse_path(p + at, n - at, strict, &argument->path, &end)) {
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

enum argument_result parse_mail(const char *p, size_t n, unsigned offered, int strict,
                                struct transaction_argument *argument)
{
    enum argument_result result = parse_argument(p, n, 0, offered, strict, argument);
    if (result == ARGUMENT_OK && argument->path.non_ascii && !(argument->given & PARAMETER_SMTPUTF8))
        return ARGUMENT_NON_ASCII;
    return result;
}

enum argument_result parse_rcpt(const char *p, size_t n, int utf8, int strict, struct transaction_argument *argument)
{
    enum argument_result result = parse_argument(p, n, 1, 0, strict, argument);
    if (result == ARGUMENT_OK && argument->path.non_ascii && !utf8)
        return ARGUMENT_NON_ASCII;
    return result;
}

enum argument_result parse_lenient_path(const char *p, size_t n, const char *keyword, size_t max_local_part,
                                        struct transaction_argument *argument)
{
    memset(argument, 0, sizeof *argument);
    size_t at = strlen(keyword), end;
    if (n < at || !same_word(p, at, keyword))
        return ARGUMENT_SYNTAX;
    while (at < n && (p[at] == ' ' || p[at] == '\t'))
        at++;
    if (at == n)
        return ARGUMENT_SYNTAX;
    if (parse_lenient_address(p + at, n - at, &argument->path, &end) != PATH_OK)
        return ARGUMENT_ADDRESS;
    if (max_local_part && argument->path.local_length > max_local_part)
        return ARGUMENT_ADDRESS;
    argument->parameters = at + end;
    return ARGUMENT_OK;
}

enum argument_result parse_lenient_parameters(const char *p, size_t n, unsigned offered, int pass,
                                              struct transaction_argument *argument)
{
    struct parameter parameter, last[3];
    int unknown = 0, result;
    size_t at = argument->parameters;
    while ((result = next_parameter(p, n, &at, &parameter)) == PARAMETER_OK) {
        if (!pass)
            for (size_t i = 0; i < parameter.keyword_length; i++)
                if (parameter.keyword[i] == '-')
                    return ARGUMENT_SYNTAX;
        unsigned bit = bit_of(&parameter);
        if (bit != PARAMETER_SMTPUTF8 && !(offered & bit)) {
            unknown = 1;
            continue;
        }
        argument->given |= bit;
        last[bit >> 1] = parameter; /* the bits are 1, 2 and 4 */
    }
    if (result == PARAMETER_MALFORMED)
        return ARGUMENT_SYNTAX;
    if (argument->given & PARAMETER_BODY && !is_body(last[1].value, last[1].value_length))
        return ARGUMENT_BODY;
    if (argument->given & PARAMETER_SMTPUTF8 && last[2].value != NULL)
        return ARGUMENT_UTF8_VALUE;
    if (argument->given & ~offered & PARAMETER_SMTPUTF8)
        return ARGUMENT_UTF8_DISABLED;
    if (argument->given & PARAMETER_SIZE && !read_size(last[0].value, last[0].value_length, &argument->size))
        return ARGUMENT_SYNTAX;
    return unknown && !pass ? ARGUMENT_PARAMETER : ARGUMENT_OK;
}
