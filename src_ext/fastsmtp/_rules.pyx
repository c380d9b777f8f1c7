# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What is said, allowed and asked for: a reply book, limits, and the hooks there are.

Knows names and defaults, and which of them fit together. Refuses to know when a rule applies: that is the
dialogue's.
"""

import cython

from libc.stdint cimport uint64_t

from fastsmtp._engine cimport HEADROOM
from fastsmtp.command cimport *

REPLIES_NAMES = (
    "GREETING", "HELO", "EHLO", "EHLO_TLS", "MAIL", "RCPT", "DATA", "ACCEPTED",
    "RSET", "NOOP", "QUIT", "VRFY", "HELP", "STARTTLS",
    "LINE_TOO_LONG", "BARE_NEWLINE", "BAD_SYNTAX", "BAD_OCTETS", "NOT_ASCII", "UNKNOWN",
    "NOT_IMPLEMENTED", "FOREIGN", "HELO_ARGUMENT", "NO_ARGUMENT", "VRFY_ARGUMENT", "VRFY_ADDRESS",
    "NEED_HELLO", "NESTED_MAIL", "NEED_MAIL", "NEED_RCPT", "NO_VALID_RCPT",
    "MAIL_SYNTAX", "MAIL_SYNTAX_EXTENDED", "MAIL_ADDRESS", "RCPT_SYNTAX", "RCPT_SYNTAX_EXTENDED", "RCPT_ADDRESS",
    "PARAMETER_VALUE", "BODY_VALUE", "SMTPUTF8_VALUE", "SMTPUTF8_DISABLED",
    "MAIL_PARAMETER", "RCPT_PARAMETER", "NEED_SMTPUTF8",
    "TOO_BIG_DECLARED", "TOO_BIG", "TOO_MANY_RCPT", "NO_ROOM", "NO_MEMORY",
    "CONTENT_NEWLINE", "CONTENT_LINE",
    "NEED_STARTTLS", "TLS_UNAVAILABLE", "TLS_ACTIVE", "DISTRUSTED", "STARTTLS_INJECTION",
    "NEED_AUTH", "NEED_EHLO", "AUTH_AFTER_HELO", "AUTH_NEEDS_TLS", "AUTH_DONE",
    "AUTH_NO_MECHANISM", "AUTH_ARGUMENTS", "AUTH_UNKNOWN", "AUTH_ABORTED", "AUTH_TOO_LONG",
    "TOO_MANY_ERRORS", "TOO_MANY_CALLS", "TOO_MUCH_JUNK", "MEMORY_SHORT", "SHUTDOWN", "IDLE", "TOO_SLOW",
    "HANDLER_FAILED", "HANDLER_TIMEOUT",
)
assert len(REPLIES_NAMES) == REPLY_COUNT

# A kind's name by its number, and the bit of each in a hook mask.
ASKS = ("", "CONNECT", "HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT", "VRFY", "AUTH", "COMMAND")
HOOKS = {name: 1 << kind for kind, name in enumerate(ASKS) if kind}
assert ASKS[ASK_COMMAND] == "COMMAND"
# The verbs that may be offered or not, with their bits; all others are always there.
VERB_BITS = {
    "HELO": 1 << VERB_HELO, "EHLO": 1 << VERB_EHLO, "LHLO": 1 << VERB_LHLO, "MAIL": 1 << VERB_MAIL,
    "RCPT": 1 << VERB_RCPT, "DATA": 1 << VERB_DATA, "RSET": 1 << VERB_RSET, "NOOP": 1 << VERB_NOOP,
    "QUIT": 1 << VERB_QUIT, "VRFY": 1 << VERB_VRFY, "EXPN": 1 << VERB_EXPN, "HELP": 1 << VERB_HELP,
    "STARTTLS": 1 << VERB_STARTTLS, "AUTH": 1 << VERB_AUTH,
}
NEWLINES = ("normalize", "reject", "keep")
MAIL_LOGS = ("off", "refusals", "all")

cdef unsigned PLAIN_VERBS = sum(
    bit for name, bit in VERB_BITS.items() if name not in ("LHLO", "EXPN", "STARTTLS", "AUTH"))


@cython.final
cdef class Book:
    """A reply book: what each reply of the dialogue reads, as octets with their CRLF.

    ``texts`` has a ``bytes`` for each of ``REPLIES_NAMES``; ``{verb}`` in it stands for the command, ``{argument}``
    for what came with it. Raises ``ValueError`` for one that is missing, unknown, or not a reply.
    """

    def __init__(self, texts not None):
        if set(texts) != set(REPLIES_NAMES):
            raise ValueError(f"replies missing or unknown: {sorted(set(texts) ^ set(REPLIES_NAMES))}")
        self.texts = tuple(bytes(texts[name]) for name in REPLIES_NAMES)
        for position, text in enumerate(self.texts):
            if not (text[:3].isdigit() and text.endswith(b"\r\n")):
                raise ValueError(f"{REPLIES_NAMES[position]} is no reply: {text!r}")
            self.codes[<int>position] = int(text[:3])
            self.filled_in[<int>position] = b"{" in text

    cdef bytes text(self, int reply):
        return <bytes>self.texts[reply]

    def __getitem__(self, str name):
        """The octets of the reply called ``name``."""
        return self.texts[REPLIES_NAMES.index(name)]


@cython.final
cdef class Rules:
    """What holds for a dialogue. Sizes are in octets, times in seconds; 0 is no limit.

    ``hooks`` is a sum of ``HOOKS``: what the dialogue asks for; anything else it answers by itself. ``verbs`` is a
    sum of ``VERB_BITS``, by default those of a plain server. ``lenient`` takes what RFC 5321 does not allow and
    aiosmtpd does: lines that end with LF, paths without brackets or domain, any order of checks that it has.
    ``whole`` (a sum of ``VERB_BITS``) and ``own_verbs`` are the commands that Python does as a whole;
    ``makes_facts``, that it makes sessions and envelopes; ``traced``, that it is shown each command line;
    ``log_mail`` (one of ``MAIL_LOGS``), which replies ``log_reply`` is called for.
    ``call_limits`` tells how often a command may come, by its name or ``"*"``; ``max_commands`` how long it may be,
    by its name, where that is not ``max_command``. ``max_junk_commands`` is how many commands may come in a row
    without a message that is accepted, ``min_data_rate`` how many octets of content a second, on average after a
    grace. ``addresses="strict"`` refuses addresses that RFC 5321 does not allow and that exist.
    """

    def __init__(self, *, Book book not None, unsigned hooks=0, unsigned verbs=PLAIN_VERBS,
                 bint lenient=False, bint lmtp=False, str bare_newline="normalize", bint smtputf8=True,
                 bint eight_bit=True, bint starttls=False, bint require_starttls=False,
                 bint require_auth=False, bint auth_in_clear=False, mechanisms=frozenset(),
                 bint pass_parameters=False, unsigned whole=0, own_verbs=frozenset(),
                 bint makes_facts=False, bint traced=False,
                 str log_mail="off",
                 uint64_t max_message_size=32 << 20, unsigned max_recipients=1000,
                 unsigned max_command_line=2048, unsigned max_command=0, max_commands=None,
                 unsigned max_line_length=0, unsigned max_local_part=0, unsigned max_errors=20,
                 unsigned max_junk_commands=0, uint64_t min_data_rate=0, str addresses="lenient",
                 call_limits=None, double idle_timeout=300, double transaction_timeout=3600,
                 double handler_timeout=300):
        if max_command_line > HEADROOM:
            raise ValueError(f"max_command_line is at most {HEADROOM}")
        self.book = book
        self.hooks = hooks
        self.verbs = verbs | 1 << VERB_UNKNOWN
        if starttls or lenient:
            self.verbs |= 1 << VERB_STARTTLS
        if not lenient:
            self.verbs |= 1 << VERB_KNOWN | 1 << VERB_FOREIGN
        self.unoffered = VERB_UNKNOWN if lenient else VERB_KNOWN
        self.lenient = lenient
        self.lmtp = lmtp
        self.newlines = NEWLINES.index(bare_newline)
        self.smtputf8 = smtputf8
        self.eight_bit = eight_bit
        self.starttls = starttls
        self.require_starttls = require_starttls
        self.require_auth = require_auth
        self.auth_in_clear = auth_in_clear
        self.mechanisms = frozenset(mechanisms)
        self.pass_parameters = pass_parameters
        self.whole = whole
        self.own_verbs = frozenset(own_verbs)
        self.makes_facts = makes_facts
        self.traced = traced
        self.log_mail = MAIL_LOGS.index(log_mail)
        self.max_message_size = max_message_size
        self.max_recipients = max_recipients
        self.max_command_line = max_command_line
        self.max_command = max_command
        self.max_commands = max_commands
        self.max_line_length = max_line_length
        self.max_local_part = max_local_part
        self.max_errors = max_errors
        self.max_junk_commands = max_junk_commands
        self.min_data_rate = min_data_rate
        self.strict_addresses = ("lenient", "strict").index(addresses)
        self.call_limits = call_limits
        self.idle_timeout = idle_timeout
        self.transaction_timeout = transaction_timeout
        self.handler_timeout = handler_timeout
