from libc.stdint cimport uint64_t


cdef extern from "grammar.h" nogil:
    struct path:
        const char *address
        size_t length
        size_t local_length
        int non_ascii

    enum path_result:
        PATH_OK

    enum parameter_result:
        PARAMETER_OK

    struct parameter:
        const char *keyword
        const char *value
        size_t keyword_length
        size_t value_length

    parameter_result next_parameter(const char *p, size_t n, size_t *at, parameter *parameter)
    path_result parse_lenient_address(const char *p, size_t n, path *path, size_t *end)
    int valid_utf8(const char *p, size_t n)
    int same_word(const char *p, size_t n, const char *upper)


cdef extern from "command.h" nogil:
    enum verb:
        VERB_HELO
        VERB_EHLO
        VERB_MAIL
        VERB_RCPT
        VERB_DATA
        VERB_RSET
        VERB_NOOP
        VERB_QUIT
        VERB_VRFY
        VERB_HELP
        VERB_STARTTLS
        VERB_AUTH
        VERB_EXPN
        VERB_LHLO
        VERB_KNOWN
        VERB_FOREIGN
        VERB_UNKNOWN
        VERBS

    struct command:
        verb verb
        const char *word
        size_t word_length
        const char *argument
        size_t length

    void parse_command(const char *line, size_t n, int blanks, command *command)

    enum:
        PARAMETER_SIZE
        PARAMETER_BODY
        PARAMETER_SMTPUTF8

    struct transaction_argument:
        path path
        size_t parameters
        unsigned given
        uint64_t size

    enum argument_result:
        ARGUMENT_OK
        ARGUMENT_SYNTAX
        ARGUMENT_ADDRESS
        ARGUMENT_VALUE
        ARGUMENT_PARAMETER
        ARGUMENT_NON_ASCII
        ARGUMENT_BODY
        ARGUMENT_UTF8_VALUE
        ARGUMENT_UTF8_DISABLED

    argument_result parse_mail(const char *p, size_t n, unsigned offered, int strict, transaction_argument *argument)
    argument_result parse_rcpt(const char *p, size_t n, int utf8, int strict, transaction_argument *argument)
    argument_result parse_lenient_path(const char *p, size_t n, const char *keyword, size_t max_local_part,
                                       transaction_argument *argument)
    argument_result parse_lenient_parameters(const char *p, size_t n, unsigned offered, int pass_,
                                             transaction_argument *argument)
