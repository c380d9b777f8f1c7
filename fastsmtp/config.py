"""The configuration: every setting is declared once, here.

The TOML file, the environment, the flags of the command line, ``docs/configuration.md`` and the keywords of
a library call are all made from this declaration. Knows what a setting means, what it may be and where its
value came from. Refuses to know what is done with it: no socket is opened, no handler imported.
"""

import functools
import logging
import os
import re
import socket
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from fastsmtp import sockets
from fastsmtp.errors import ConfigError

log = logging.getLogger("fastsmtp")

PREFIX = "FASTSMTP_"

# The library reads the first as aiosmtpd reads its own; the others are read by setup.py.
_RESERVED = frozenset(
    {"FASTSMTP_CONTROLLER_TIMEOUT", "FASTSMTP_SANITIZE", "FASTSMTP_COVERAGE", "FASTSMTP_CFLAGS"}
)
# In a pod beside a Service named "fastsmtp" or "fastsmtp-...", Kubernetes sets FASTSMTP_SERVICE_HOST,
# FASTSMTP_PORT=tcp://10.0.0.1:25, FASTSMTP_PORT_25_TCP_ADDR and so on. FASTSMTP_PORT=25 is a mistake.
_SERVICE_LINK = re.compile(
    r"FASTSMTP_([A-Z0-9_]+_)?"
    r"(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)=.*|PORT=[a-z]+://.*|PORT_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?=.*)"
)

# Names that people give to settings which are called otherwise.
_MEANT = {
    "port": "listen",
    "host": "listen",
    "bind": "listen",
    "cert": "tls_certificate",
    "key": "tls_key",
}
# A FASTSMTP_* variable this close to a setting is a typing error: WORKER (0.92), TLS_CERT (0.70). Names that other
# programs use are farther away: HOME and NAME (0.67), TOKEN (0.55), DATABASE_URL (0.42).
_TYPING_ERROR = 0.68

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*(b|[kmgt]i?b)?", re.IGNORECASE)
_UNITS = {
    "b": 1,
    **{f"{letter}ib": 1 << 10 * power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
}

_MIB = 1 << 20
_INT_MAX = (1 << 31) - 1


class Form(NamedTuple):
    """How a value is written: ``metavar`` for --help, the rest in words; ``default`` only if computed."""

    metavar: str
    allowed: str
    default: str = ""


def _no_bool(value: object) -> object:
    # Python counts true as 1; "workers = true" is a mistake all the same.
    if isinstance(value, bool):
        raise PydanticCustomError("not_a_number", "not a number")
    return value


def _size(value: object) -> object:
    if not isinstance(value, str):
        return _no_bool(value)
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise PydanticCustomError("not_a_size", "not a size")
    return int(Decimal(match[1]) * _UNITS[(match[2] or "b").lower()])


def _empty_is_none(value: object) -> object:
    # TOML has no null: "" switches off, over a lower layer too.
    return None if value == "" else value


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _addresses(specs: list[str]) -> list[str]:
    for spec in specs:
        _address(spec)
    return specs


def _address(spec: str) -> sockets.Address:
    try:
        return sockets.parse(spec)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _metrics_address(spec: str | None) -> str | None:
    if spec is not None:
        address = _address(spec)
        if address.tls or address.path is not None:
            raise ValueError(f'"{spec}": the metrics page is plain HTTP over TCP; write HOST:PORT')
    return spec


def _host_name(name: str) -> str:
    # It stands in the greeting and in Received: a space or a line end in it would forge what follows.
    if re.fullmatch(r"[!-~]{1,255}", name) is None:
        raise ValueError(
            f'"{name}" cannot stand in a greeting; write a domain name of ASCII letters (xn-- for others)'
        )
    return name


@functools.cache
def _this_host() -> str:
    # May ask the DNS, hence once.
    return socket.getfqdn()


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Path("/tmp")  # a full disk; where it matters, the folder is checked with a clear message


Count = Annotated[int, BeforeValidator(_no_bool), Form("N", "a whole number")]
Size = Annotated[int, BeforeValidator(_size), Form("SIZE", 'a size such as 1048576, "1MiB" or "25MB"')]
Seconds = Annotated[
    float,
    BeforeValidator(_no_bool),
    Field(le=31_536_000, allow_inf_nan=False),
    Form("SECONDS", "a number of seconds"),
]
Switch = Annotated[bool, Form("", "true or false")]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_none), Form("FILE", "a file name")]


class Config(BaseSettings):
    """All settings of a server, checked and never changed. Make it with ``load`` or with ``Config.of``."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, validate_default=True
    )

    listen: Annotated[
        list[str],
        NoDecode,
        BeforeValidator(_split),
        AfterValidator(_addresses),
        Form("ADDRESS", f"one or more addresses, each {sockets.FORMS}"),
    ] = Field(
        default=["127.0.0.1:8025"],
        min_length=1,
        description="Where to accept mail. No host, or `*`, is every address of the machine; "
        "port 0 takes a free one; `tls:` before an address speaks TLS from the first byte (port 465). "
        "Commas separate several; the flag may also be repeated.",
    )
    workers: Count = Field(
        default=1, ge=0, le=1024, description="Worker processes on the shared sockets. 0 is one per CPU."
    )
    deliver: Annotated[
        str | None, BeforeValidator(_empty_is_none), Form("URL", "a URL such as maildir:PATH or discard:")
    ] = Field(
        default=None,
        description="Where mail goes: the URL of a sink. At least one of `deliver` and `handler` is needed.",
    )
    handler: Annotated[str | None, BeforeValidator(_empty_is_none), Form("MODULE:NAME", "MODULE:NAME")] = (
        Field(
            default=None,
            description="The Python object whose `handle_*` methods are asked. "
            "The command line also finds modules in the current folder.",
        )
    )
    metrics: Annotated[
        str | None,
        BeforeValidator(_empty_is_none),
        AfterValidator(_metrics_address),
        Form("HOST:PORT", "HOST:PORT or [V6]:PORT"),
    ] = Field(
        default=None,
        description="Where `/metrics` and `/healthz` are served over HTTP. Not set, there is no such page.",
    )
    hostname: Annotated[
        str, AfterValidator(_host_name), Form("NAME", "a domain name", "the full name of the machine")
    ] = Field(
        default_factory=_this_host, description="The name in the greeting, in EHLO replies and in `Received`."
    )

    max_message_size: Size = Field(
        default=32 * _MIB,
        ge=1,
        le=1 << 40,
        description="The largest message, announced as SIZE (RFC 1870); a larger one is refused with 552.",
    )
    max_recipients: Count = Field(
        default=1000,
        ge=100,
        le=_INT_MAX,
        description="Recipients of one message; the next is asked to wait with 452. "
        "RFC 5321, section 4.5.3.1.8, demands 100.",
    )
    max_command_line: Count = Field(
        default=2048,
        ge=512,
        le=16384,
        description="Octets of one command line with its CRLF. RFC 5321, section 4.5.3.1.4, demands 512.",
    )
    max_line_length: Count = Field(
        default=0,
        ge=0,
        le=_INT_MAX,
        description="Octets of one line of the message. 0 takes any length, as real mail has them; "
        "998 is the standard's limit (RFC 5322, section 2.1.1).",
    )
    max_errors: Count = Field(
        default=20,
        ge=1,
        le=_INT_MAX,
        description="Bad commands of one connection before it is closed with 421; an accepted message sets the count "
        "back. A malformed recipient counts as a tenth of a bad command.",
    )
    max_junk_commands: Count = Field(
        default=100,
        ge=0,
        le=_INT_MAX,
        description="How many of the commands NOOP, RSET, VRFY, HELP, EHLO, HELO and MAIL one connection may send "
        "without an accepted message; then it is closed with 421. An accepted message sets the count back; a "
        "refused recipient does not count. Raise it for clients whose messages are often refused. 0 is no limit.",
    )
    addresses: Annotated[
        Literal["lenient", "strict"],
        BeforeValidator(_lower),
        Form("lenient|strict", '"lenient" or "strict"'),
    ] = Field(
        default="lenient",
        description="Which forms of addresses are accepted; whether one exists is not looked up. `lenient` accepts "
        "what real mail uses beyond the standard and what has one meaning only: dots anywhere in a local-part, a "
        "local-part of more than 64 octets, a dot behind the domain, paths of up to 1,024 octets, blanks within the "
        "angle brackets. `strict` refuses these with 501 (RFC 5321, section 4.1.2).",
    )
    bare_newline: Annotated[
        Literal["normalize", "reject", "keep"],
        Form("normalize|reject|keep", '"normalize", "reject" or "keep"'),
    ] = Field(
        default="normalize",
        description="What becomes of a CR or LF that stands alone in a message: it is stored as CRLF, the "
        "message is refused at its true end, or it stays. In any case only CRLF.CRLF ends a message.",
    )
    smtputf8: Switch = Field(
        default=True, description="Offer SMTPUTF8 (RFC 6531): addresses and headers beyond ASCII."
    )

    spill_threshold: Size = Field(
        default=_MIB,
        ge=0,
        le=1 << 40,
        description="A message that grows beyond this goes on in a temporary file.",
    )
    spill_directory: Annotated[
        Path, Form("DIRECTORY", "a folder", "the folder for temporary files (`TMPDIR`, else `/tmp`)")
    ] = Field(
        default_factory=_temporary_folder,
        description="The folder of these temporary files. On the file system of the mailboxes, a large "
        "message is linked there and not copied.",
    )
    memory_budget: Size = Field(
        default=256 * _MIB,
        ge=1,
        le=1 << 40,
        description="Memory, per worker, for messages, recipients and commands that wait. Beyond it the messages that "
        "come most slowly go to temporary files; while handlers hold it all, clients are asked with 452 to come again.",
    )

    min_data_rate: Size = Field(
        default=100,
        ge=0,
        le=1 << 30,
        description="After its first minute the content of a message must have brought so many octets for each second "
        "beyond that minute; a slower connection is closed with 421. 0 is no limit.",
    )
    idle_timeout: Seconds = Field(
        default=300.0,
        gt=0,
        description="How long a client may be silent. RFC 5321, section 4.5.3.2.7, demands five minutes.",
    )
    transaction_timeout: Seconds = Field(
        default=3600.0,
        gt=0,
        description="How long one message may take from MAIL to its end, however steadily bytes come.",
    )
    handler_timeout: Seconds = Field(
        default=300.0,
        gt=0,
        description="How long a handler or a sink may take for one answer; then it is 451.",
    )
    drain_timeout: Seconds = Field(
        default=30.0,
        ge=0,
        description="How long connections may finish their messages after SIGTERM, before they are closed.",
    )
    worker_timeout: Seconds = Field(
        default=60.0,
        ge=0,
        description="How long the event loop of a worker may stand still, in a hook that does not return for "
        "example, before the worker is killed and replaced. The log names it and has its Python stacks. "
        "0 is for ever, as a debugger needs it.",
    )
    blocking_threads: Count = Field(
        default=8, ge=1, le=1024, description="Threads, per worker, for hooks marked `@fastsmtp.blocking`."
    )

    tls_certificate: OptionalPath = Field(
        default=None,
        description="PEM file with the certificate chain, and the key unless `tls_key` names it. "
        "With it, STARTTLS is offered.",
    )
    tls_key: OptionalPath = Field(default=None, description="PEM file with the private key.")
    require_starttls: Switch = Field(
        default=False, description="Refuse mail with 530 until the client has given STARTTLS."
    )
    tls_handshake_timeout: Seconds = Field(
        default=30.0, gt=0, description="How long a TLS handshake may take."
    )

    backlog: Count = Field(
        default=1024,
        ge=1,
        le=65535,
        description="Connections that wait in each listening socket; the system may allow fewer "
        "(`net.core.somaxconn` on Linux).",
    )
    loop: Annotated[Literal["uvloop", "asyncio"], Form("uvloop|asyncio", '"uvloop" or "asyncio"')] = Field(
        default="uvloop", description="The event loop of the workers."
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        BeforeValidator(_lower),
        Form("LEVEL", '"debug", "info", "warning", "error" or "critical"'),
    ] = Field(default="info", description="The least severe log lines to print.")
    log_format: Annotated[
        Literal["text", "json"], BeforeValidator(_lower), Form("text|json", '"text" or "json"')
    ] = Field(default="text", description="How log lines are written: as text, or one JSON object a line.")
    log_mail: Annotated[
        Literal["off", "refusals", "all"],
        BeforeValidator(_lower),
        Form("off|refusals|all", '"off", "refusals" or "all"'),
    ] = Field(
        default="refusals",
        description="Which mail is logged, at level info: nothing, each reply that refuses something, or each message "
        "that was taken as well.",
    )

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, **settings: object) -> Self:
        """A configuration of these settings and defaults; neither environment nor files are read.

        Raises ConfigError for an unknown keyword and for a value that is not allowed. Unlike ``load`` it does
        not ask for ``deliver`` or ``handler``, as a library call may bring its handler as an object.
        """
        for key in settings:
            if key not in cls.model_fields:
                raise ConfigError(f'unknown setting "{key}"; did you mean "{_nearest(key)}"?')
        return cls._checked({key: _Setting(value, key) for key, value in settings.items()})

    @classmethod
    def _checked(cls, settings: Mapping[str, "_Setting"]) -> Self:
        values: dict[str, Any] = {key: setting.value for key, setting in settings.items()}
        for value, origin in settings.values():
            # Octets of the command line that are not UTF-8 come as surrogates, which nothing could print.
            parts = value if isinstance(value, list | tuple) else [value]
            if any(re.search("[\ud800-\udfff]", str(part)) for part in parts):
                raise ConfigError(f"{origin}: must be UTF-8; it is {value!a}")
        try:
            config = cls(**values)
        except ValidationError as error:
            details = error.errors(include_url=False)
            more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
            raise ConfigError(_explain(details[0], settings) + more) from None
        config._origins.update({key: setting.origin for key, setting in settings.items()})
        return config

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is handed over; ``load`` reads the environment, as it knows where a value came from."""
        return (init_settings,)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.tls_certificate is None:
            if self.tls_key is not None:
                raise _conflict("tls_key", "there is no tls_certificate for this key; set that too")
            if self.require_starttls:
                raise _conflict("require_starttls", "needs tls_certificate; set that too")
            for spec in self.listen:
                if sockets.parse(spec).tls:
                    raise _conflict("listen", f'"{spec}" needs tls_certificate; set that too')
        if self.spill_threshold > self.memory_budget:
            raise _conflict("spill_threshold", "must not be more than memory_budget; lower it or raise that")
        for key in ("tls_certificate", "tls_key"):
            path = getattr(self, key)
            if path is not None:
                try:
                    path.open("rb").close()
                except (OSError, ValueError) as error:
                    raise _conflict(key, f"cannot read {path}: {_reason(error)}") from None
        if not self.spill_directory.is_dir():
            raise _conflict("spill_directory", f"{self.spill_directory} is no folder; make it first")
        if not os.access(self.spill_directory, os.W_OK | os.X_OK):
            raise _conflict("spill_directory", f"this user may not write in {self.spill_directory}")
        return self

    @contextmanager
    def naming(self, key: str) -> Iterator[None]:
        """Puts where ``key`` was set in front of a ``ConfigError``: its file, variable, flag or keyword."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError(f"{self._origins.get(key, key)}: {error}") from error.__cause__

    def as_toml(self) -> str:
        """These settings, with every default spelled out, as a TOML file that ``load`` takes back."""
        values = [(key, getattr(self, key)) for key in type(self).model_fields]
        return "".join(
            f"# {key} is not set\n" if value is None else f"{key} = {_toml(value)}\n" for key, value in values
        )


class _Setting(NamedTuple):
    value: object
    origin: str  # how messages call it: "/etc/fastsmtp.toml: workers", "FASTSMTP_WORKERS", "--workers"


def load(
    path: Path | None,
    overrides: Mapping[str, object],
    *,
    flags: Mapping[str, str] | None = None,
    warn: Callable[[str], object] = log.warning,
) -> Config:
    """The configuration of a command: ``overrides`` over FASTSMTP_* variables over the file over defaults.

    ``path`` is a TOML file; ``flags`` has the name of each override in messages ("--workers"); ``warn`` gets one line
    for each FASTSMTP_* variable that is ignored. Raises ConfigError with one line: which setting, where it came from,
    what is wrong and what is allowed.
    """
    settings = {**_from_file(path), **_from_environment(warn)}
    for key, value in overrides.items():
        origin = (flags or {}).get(key, key)
        if key not in Config.model_fields:
            raise ConfigError(f'{origin}: unknown key "{key}"; did you mean "{_nearest(key)}"?')
        settings[key] = _Setting(value, origin)
    config = Config._checked(settings)
    if config.deliver is None and config.handler is None:
        raise ConfigError(
            "nothing takes the mail; set --deliver URL (such as maildir:./mail) or --handler MODULE:NAME"
        )
    return config


def form(field: FieldInfo) -> Form:
    """How values of this setting are written."""
    return next(item for item in field.metadata if isinstance(item, Form))


def flag_names(key: str, field: FieldInfo) -> list[str]:
    """``--idle-timeout``; of a switch also its negation, ``--no-smtputf8``."""
    name = key.replace("_", "-")
    return [f"--{name}", f"--no-{name}"] if field.annotation is bool else [f"--{name}"]


def is_list(field: FieldInfo) -> bool:
    """Whether the setting has several values: a flag that is repeated."""
    return isinstance(field.default, list)


def allowed(field: FieldInfo) -> str:
    """What this setting may be, in words with its bounds."""
    written = form(field)
    words = [written.allowed]
    for bound in field.metadata:
        match bound:
            case Ge(ge=number):
                words.append(f"at least {_plain(number, written)}")
            case Gt(gt=number):
                words.append(f"more than {_plain(number, written)}")
            case Le(le=number) if number != _INT_MAX:
                words.append(f"at most {_plain(number, written)}")
    return ", ".join(words)


def default_text(field: FieldInfo) -> str:
    """The default as one would write it; "" if the setting is not set by default."""
    written = form(field)
    if written.default:
        return written.default
    value = field.default
    if value is None:
        return ""
    if is_list(field):
        return ",".join(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return _plain(value, written)


def _from_file(path: Path | None) -> dict[str, _Setting]:
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: octet {error.start} is not UTF-8") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {_reason(error)}; correct --config") from None
    for key, value in found.items():
        # [key] gives a table, [[key]] a list of tables.
        if isinstance(value[0] if isinstance(value, list) and value else value, dict):
            raise ConfigError(f"{path}: [{key}]: there are no sections; write all keys at the top level")
        if key not in Config.model_fields:
            raise ConfigError(f'{path}: unknown key "{key}"; did you mean "{_nearest(key)}"?')
    return {key: _Setting(value, f"{path}: {key}") for key, value in found.items()}


def _from_environment(warn: Callable[[str], object]) -> dict[str, _Setting]:
    for name, value in os.environ.items():
        if not name.upper().startswith(PREFIX) or name in _RESERVED:
            continue
        if _SERVICE_LINK.fullmatch(f"{name}={value}"):
            continue
        key = name[len(PREFIX) :].lower()
        if key not in Config.model_fields:
            near = f"{PREFIX}{_nearest(key).upper()}"
            if get_close_matches(key, Config.model_fields, n=1, cutoff=_TYPING_ERROR):
                raise ConfigError(f'unknown environment variable {name}; did you mean "{near}"?')
            warn(f"the environment variable {name} is ignored, it is no setting; the nearest is {near}")
    return {
        key: _Setting(value, f"{PREFIX}{key.upper()}") for key, value in EnvSettingsSource(Config)().items()
    }


def _nearest(key: str) -> str:
    words = [*Config.model_fields, *_MEANT]
    near = get_close_matches(key.lower().replace("-", "_"), words, n=1, cutoff=0.0)[0]
    return _MEANT.get(near, near)


def _conflict(key: str, text: str) -> PydanticCustomError:
    # The text is data: pydantic would fill in braces that stand in a file name.
    return PydanticCustomError("conflict", "{text}", {"key": key, "text": text})


def _explain(detail: ErrorDetails, settings: Mapping[str, _Setting]) -> str:
    context = detail.get("ctx", {})
    key = str(context["key"] if detail["type"] == "conflict" else detail["loc"][0])
    origin = settings[key].origin if key in settings else f"{key} (the default)"
    if detail["type"] == "conflict":
        return f"{origin}: {context['text']}"
    if detail["type"] == "value_error":
        return f"{origin}: {context['error']}"
    value = repr(detail["input"])
    if len(value) > 60:
        value = f"{value[:57]}..."
    return f"{origin}: must be {allowed(Config.model_fields[key])}; it is {value}"


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"{text[:1].lower()}{text[1:]}"


def _plain(value: object, written: Form) -> str:
    if written.metavar == "SIZE" and isinstance(value, int):
        for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
            if value and value % size == 0:
                return f"{value // size}{unit}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case list():
            return f"[{', '.join(_toml(item) for item in value)}]"
    escaped = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in str(value))
    return f'"{"".join(escaped)}"'
