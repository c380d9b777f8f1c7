"""What aiosmtpd 1.4.6 has in its module, as expressions and what they are; and what its constructor makes of arguments.

Knows names, values and texts. Refuses to know what a server says, which is in the rows.
"""

from __future__ import annotations

import ssl
from typing import Any

from aiosmtpd_rows import Smtp, With

EXPRESSIONS = [
    (
        "{'AuthCallbackType', 'AuthMechanismType', 'Envelope', 'LoginPassword', 'MISSING', 'SMTP', 'Session', "
        "'TLSSetupException', '__version__', 'auth_mechanism', 'sanitize', 'sanitized_log', 'syntax'} - set(__all__)",
        "set()",
    ),
    ("(BOGUS_LIMIT, CALL_LIMIT_DEFAULT, DATA_SIZE_DEFAULT)", "(5, 20, 33554432)"),
    ("(EMPTY_BARR, EMPTYBYTES)", "(bytearray(b''), b'')"),
    ("sorted(ALLOWED_BEFORE_STARTTLS)", "['EHLO', 'NOOP', 'QUIT', 'STARTTLS']"),
    (
        "[bool(VALID_AUTHMECH.match(name)) for name in ('A-Z_9', 'a', 'A B', 'A\\n', '')]",
        "[True, False, False, False, False]",
    ),
    ("(MISSING.name, bool(MISSING), MISSING is type(MISSING).MISSING)", "('MISSING', True, True)"),
    ("__ident__ == 'Python SMTP ' + __version__", "True"),
    ("(is_int(1), is_int('1'), is_int(True))", "(True, False, True)"),
    ("login_always_fail('PLAIN', b'user', b'word')", "False"),
    ("log.name", "'mail.log'"),
    ("issubclass(TLSSetupException, Exception)", "True"),
    ("LoginPassword(b'user', b'word')", "LoginPassword(login='user', password=...)"),
    ("str(LoginPassword(b'user', b'word'))", "\"LoginPassword(login='user', password=...)\""),
    ("tuple(LoginPassword(login=b'user', password=b'word'))", "(b'user', b'word')"),
    ("LoginPassword(b'user', b'word') == (b'user', b'word')", "True"),
    ("LoginPassword._fields", "('login', 'password')"),
    ("AuthResult(success=True)", "AuthResult(success=True, handled=True, message=None, auth_data=...)"),
    (
        "AuthResult(success=False, handled=False, message='535 no', auth_data='secret')",
        "AuthResult(success=False, handled=False, message='535 no', auth_data=...)",
    ),
    (
        "AuthResult(success=True) == AuthResult(success=True, handled=True, message=None, auth_data=None)",
        "True",
    ),
    ("AuthResult(True)", "TypeError: AuthResult.__init__() takes 1 positional argument but 2 were given"),
    ("AuthResult()", "TypeError: AuthResult.__init__() missing 1 required keyword-only argument: 'success'"),
    ("AuthResult(success=False, auth_data=1).auth_data", "1"),
    ("setattr(AuthResult(success=False), 'message', '1')", "None"),
    (
        "(lambda f: (f.__smtp_syntax__, f.__smtp_syntax_extended__, f.__smtp_syntax_when__))(syntax('X')(lambda: 0))",
        "('X', None, None)",
    ),
    (
        "vars(syntax('X', extended=' y', when='z')(lambda: 0))",
        "{'__smtp_syntax__': 'X', '__smtp_syntax_extended__': ' y', '__smtp_syntax_when__': 'z'}",
    ),
    ("auth_mechanism('x-y_1')(lambda: 0).__auth_mechanism_name__", "'X-Y_1'"),
    ("auth_mechanism('bad name')", "ValueError: Invalid AUTH mechanism name: BAD NAME"),
    ("auth_mechanism('\u00fc')", "ValueError: Invalid AUTH mechanism name: \u00dc"),
    ("auth_mechanism('')", "ValueError: Invalid AUTH mechanism name: "),
    ("sanitize(b'AUTH PLAIN c2VjcmV0\\r\\n')", "b'AUTH PLAIN ********\\r\\n'"),
    ("sanitize(b'auth login c2VjcmV0')", "b'auth login ********'"),
    ("sanitize(b'  AUTH X-Y  c2VjcmV0\\r\\n')", "b'  AUTH X-Y  ********\\r\\n'"),
    ("sanitize(b'AUTH PLAIN\\r\\n')", "b'AUTH PLAIN\\r\\n'"),
    ("sanitize(b'AUTH PLAIN ')", "b'AUTH PLAIN '"),
    ("sanitize(b'MAIL FROM:<a@b>')", "b'MAIL FROM:<a@b>'"),
    ("sanitize(b'')", "b''"),
    (
        "sanitized_log(lambda *a, **k: print(a, k), 'm %r %s', b'AUTH PLAIN x', 'AUTH PLAIN x', exc_info=1)",
        "None",
    ),
    ("bool(CLIENT_AUTH_B.match(b'AUTH PLAIN x'))", "True"),
    (
        "[getattr(Session('loop'), name) for name in "
        "('peer', 'ssl', 'host_name', 'extended_smtp', 'loop', 'proxy_data', 'auth_data', 'authenticated')]",
        "[None, None, None, False, 'loop', None, None, None]",
    ),
    ("Session(None).login_data", "None"),
    (
        "[getattr(Envelope(), name) for name in "
        "('mail_from', 'mail_options', 'smtp_utf8', 'content', 'original_content', 'rcpt_tos', 'rcpt_options')]",
        "[None, [], False, None, None, [], []]",
    ),
    ("Envelope().rcpt_tos is Envelope().rcpt_tos", "False"),
    ("(SMTP.command_size_limit, SMTP.line_length_limit, SMTP.local_part_limit)", "(512, 1001, 0)"),
    (
        "(SMTP.AuthLoginUsernameChallenge, SMTP.AuthLoginPasswordChallenge)",
        "('User Name\\x00', 'Password\\x00')",
    ),
    ("SMTP.smtp_MAIL.__smtp_syntax__", "'MAIL FROM: <address>'"),
    ("SMTP.smtp_MAIL.__smtp_syntax_extended__", "' [SP <mail-parameters>]'"),
    ("SMTP.smtp_STARTTLS.__smtp_syntax_when__", "'tls_context'"),
    ("hasattr(SMTP.smtp_EXPN, '__smtp_syntax__')", "False"),
    (
        "sorted(name for name in dir(SMTP) if name.startswith(('smtp_', 'auth_')))",
        "['auth_LOGIN', 'auth_PLAIN', 'smtp_AUTH', 'smtp_DATA', 'smtp_EHLO', 'smtp_EXPN', 'smtp_HELO', 'smtp_HELP', "
        "'smtp_MAIL', 'smtp_NOOP', 'smtp_QUIT', 'smtp_RCPT', 'smtp_RSET', 'smtp_STARTTLS', 'smtp_VRFY']",
    ),
    ("SMTP.__init__.__kwdefaults__['data_size_limit']", "33554432"),
    (
        "{n: v for n, v in SMTP.__init__.__kwdefaults__.items() if n not in ('data_size_limit', 'esmtp_parameters')}",
        "{'enable_SMTPUTF8': False, 'decode_data': False, 'hostname': None, 'ident': None, 'tls_context': None, "
        "'require_starttls': False, 'timeout': 300, 'auth_required': False, 'auth_require_tls': True, "
        "'auth_exclude_mechanism': None, 'auth_callback': None, 'command_call_limit': None, 'authenticator': None, "
        "'proxy_protocol_timeout': None, 'loop': None}",
    ),
]


class Construction:
    """Arguments, and what comes of them: what is raised, what Python warns of, what is logged."""

    def __init__(
        self,
        *,
        handler: Any = None,
        raises: str = "",
        warns: tuple[str, ...] = (),
        logs: tuple[str, ...] = (),
        mechanisms: str = "LOGIN(builtin) PLAIN(builtin)",
        **settings: object,
    ) -> None:
        """``mechanisms`` are those that the last line of the log says there are; who fails need not log."""
        available = f"INFO Available AUTH mechanisms: {mechanisms}"
        self.handler, self.raises, self.warns = handler, raises, warns
        self.logs = () if raises else (*logs, available)
        self.settings = settings

    def __str__(self) -> str:
        settings = ", ".join(
            f"{name}={value}" for name, value in self.settings.items() if not isinstance(value, With)
        )
        return f"{type(self.handler).__name__} {settings} {self.raises}"


class Ehlo3:
    async def handle_EHLO(self, server: Any, session: Any, envelope: Any) -> None: ...


class Ehlo4:
    async def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: str) -> None: ...


class Ehlo6:
    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Any, name: str, lines: Any, more: Any
    ) -> None: ...


class Mechanisms:
    async def auth_X__Y(self, server: Any, args: list[str]) -> None: ...

    async def auth_LOGIN(self, server: Any, args: list[str]) -> None: ...


def _context(verify_mode: ssl.VerifyMode, check_hostname: bool) -> With:
    def make(smtp: Smtp) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = verify_mode
        context.check_hostname = check_hostname
        return context

    return With(make)


NOT_INT = "TypeError: command_call_limit must be int or Dict[str, int]"
NOT_ALL_INT = "TypeError: All command_call_limit values must be int"
NOT_POSITIVE = "ValueError: proxy_protocol_timeout must be > 0"
VERIFY = (
    "WARNING tls_context.verify_mode not in {CERT_NONE, CERT_OPTIONAL}; "
    "this might cause client connection problems"
)
CHECK = "WARNING tls_context.check_hostname == True; this might cause client connection problems"
OLD_EHLO = (
    "Use the 5-argument handle_EHLO() hook instead of the 4-argument handle_EHLO() hook; "
    "support for the 4-argument handle_EHLO() hook will be removed in version 2.0"
)

CONSTRUCTIONS = [
    Construction(),
    Construction(data_size_limit=None),
    Construction(data_size_limit=0),
    Construction(data_size_limit="1", raises="AssertionError: "),
    Construction(data_size_limit=1.5, raises="AssertionError: "),
    Construction(proxy_protocol_timeout=0, raises=NOT_POSITIVE),
    Construction(proxy_protocol_timeout=-1, raises=NOT_POSITIVE),
    Construction(proxy_protocol_timeout=2.9, logs=("WARNING proxy_protocol_timeout < 3.0",)),
    Construction(proxy_protocol_timeout=3),
    Construction(command_call_limit=5),
    Construction(command_call_limit={"NOOP": 1, "*": 2}),
    Construction(command_call_limit="5", raises=NOT_INT),
    Construction(command_call_limit=1.5, raises=NOT_INT),
    Construction(command_call_limit=[], raises=NOT_INT),
    Construction(command_call_limit={"NOOP": "1"}, raises=NOT_ALL_INT),
    Construction(auth_required=True),
    Construction(
        auth_required=True,
        auth_require_tls=False,
        warns=("Requiring AUTH while not requiring TLS can lead to security vulnerabilities!",),
        logs=("WARNING auth_required == True but auth_require_tls == False",),
    ),
    Construction(auth_exclude_mechanism=["LOGIN"], mechanisms="PLAIN(builtin)"),
    Construction(auth_exclude_mechanism={"LOGIN", "PLAIN", "X"}, mechanisms=""),
    Construction(handler=Mechanisms(), mechanisms="LOGIN PLAIN(builtin) X-Y"),
    Construction(tls_context=_context(ssl.CERT_REQUIRED, check_hostname=True), logs=(VERIFY,)),
    Construction(tls_context=_context(ssl.CERT_REQUIRED, check_hostname=False), logs=(VERIFY,)),
    Construction(tls_context=_context(ssl.CERT_OPTIONAL, check_hostname=True), logs=(CHECK,)),
    Construction(tls_context=_context(ssl.CERT_OPTIONAL, check_hostname=False)),
    Construction(tls_context=_context(ssl.CERT_NONE, check_hostname=False)),
    Construction(handler=Ehlo4(), warns=(OLD_EHLO,)),
    Construction(handler=Ehlo3(), raises="RuntimeError: Unsupported EHLO Hook"),
    Construction(handler=Ehlo6(), raises="RuntimeError: Unsupported EHLO Hook"),
    Construction(
        nonsense=1, raises="TypeError: SMTP.__init__() got an unexpected keyword argument 'nonsense'"
    ),
]
