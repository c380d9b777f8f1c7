"""What is measured side by side: every row, declared once.

A row is one kind of load, the servers that are given it, and the bounds that fastsmtp sets itself. It knows
names, sizes and counts; it refuses to know how a client or a server is run.
"""

from dataclasses import dataclass, field
from typing import Literal

KIB, MIB = 1024, 1024 * 1024
FLOOR = "floor"


@dataclass(frozen=True)
class Load:
    """What a client sends: messages of `size` octets, over that many connections at a time."""

    size: int
    kept: bool = True  # connections are kept; else each message has one of its own
    connections: int = 20
    client: Literal["smtp-source", "bench", "segments"] = "smtp-source"
    pipeline: bool = False
    tls: Literal["none", "starttls", "implicit"] = "none"
    resume: bool = False  # TLS sessions
    login: bool = False  # AUTH PLAIN on each connection


@dataclass(frozen=True)
class Row:
    """One kind of load for some servers.

    `messages` are enough for about a second of fastsmtp's time. `goals` are bounds of the CPU per message by
    server: a multiple of the floor's where the floor is in the row, else of the best peer's. `waits` are bounds of the
    time of one message by server, in milliseconds at the median, where the client measures it.
    """

    name: str
    group: str
    title: str
    load: Load
    messages: int
    servers: tuple[str, ...]
    ours: tuple[str, ...] = ("fastsmtp",)  # those that the peers are compared with
    goals: dict[str, float] = field(default_factory=dict)
    waits: dict[str, float] = field(default_factory=dict)
    workers: int = 1
    keep: bool = False  # mail must be safe before its 250; what is kept is compared, octet by octet
    settings: tuple[str, ...] = ()  # fastsmtp's own
    same_count: bool = False  # slow servers get no fewer messages, as these share the cost of connections

    @property
    def needs(self) -> frozenset[str]:
        """What a server must be able to do, in the words of `Contender.can`."""
        needs = {
            "tls": self.load.tls == "implicit",
            "starttls": self.load.tls == "starttls",
            "auth": self.load.login,
            "pipelining": self.load.pipeline,
            "keep": self.keep,
            "workers": self.workers > 1,
        }
        return frozenset(name for name, needed in needs.items() if needed)

    @property
    def spread(self) -> bool:
        """Whether its server needs all CPUs: then nobody is kept on one."""
        return self.group == "workers"


# The slowest peers are in the rows that everyone looks at, and left out of the others for the sake of time.
FAST_PEERS = ("smtp-sink", "go-smtp", "nodemailer")
PEERS = (*FAST_PEERS, "haraka", "aiosmtpd", "bonzo")
EVERYONE = (FLOOR, *PEERS, "fastsmtp")
FASTER = (FLOOR, *FAST_PEERS, "aiosmtpd", "fastsmtp")
SECURE = ("go-smtp", "nodemailer", "haraka", "aiosmtpd", "fastsmtp")
MANY_WORKERS = ("go-smtp", "haraka", "fastsmtp")
HANDLERS = ("fastsmtp-sync", "fastsmtp-async", "fastsmtp-blocking")
TO_PEER = {"fastsmtp": 1.2}  # of TLS, where there is no floor


def to_floor(bound: float) -> dict[str, float]:
    return {"fastsmtp": bound}


def kept(size: int, connections: int = 20) -> Load:
    return Load(size, connections=connections)


def new(size: int) -> Load:
    return Load(size, kept=False)


def bench(
    *,
    size: int = 4 * KIB,
    kept: bool = True,
    connections: int = 20,
    pipeline: bool = False,
    tls: Literal["none", "starttls", "implicit"] = "none",
    resume: bool = False,
    login: bool = False,
) -> Load:
    """What smtp-source cannot do."""
    return Load(size, kept, connections, "bench", pipeline, tls, resume, login)


SIZES = (
    Row("kept-1k", "size", "1 KiB, kept connections", kept(KIB), 24_000, FASTER),
    Row("kept-4k", "size", "4 KiB, kept connections", kept(4 * KIB), 20_000, EVERYONE, goals=to_floor(1.2)),
    Row("kept-16k", "size", "16 KiB, kept connections", kept(16 * KIB), 12_000, FASTER),
    Row(
        "kept-100k",
        "size",
        "100 KiB, kept connections",
        kept(100 * KIB),
        4_000,
        EVERYONE,
        goals=to_floor(1.6),
    ),
    Row(
        "kept-1m",
        "size",
        "1 MiB in memory, kept connections",
        kept(MIB),
        600,
        EVERYONE,
        goals=to_floor(2.0),
        settings=("spill_threshold=4MiB",),
    ),
    Row(
        "kept-1m-spilled",
        "size",
        "1 MiB, spilled by fastsmtp, kept connections",
        kept(MIB),
        600,
        FASTER,
        goals=to_floor(3.5),
        settings=("spill_threshold=256KiB",),
    ),
    Row("kept-10m", "size", "10 MiB, kept connections", kept(10 * MIB, 4), 60, FASTER),
    Row(
        "kept-50m",
        "size",
        "50 MiB, kept connections",
        kept(50 * MIB, 2),
        12,
        FASTER,
        settings=("max_message_size=64MiB",),
    ),
    Row("new-1k", "size", "1 KiB, a new connection for each message", new(KIB), 10_000, FASTER),
    Row(
        "new-4k",
        "size",
        "4 KiB, a new connection for each message",
        new(4 * KIB),
        10_000,
        EVERYONE,
        goals=to_floor(1.3),
    ),
    Row("new-100k", "size", "100 KiB, a new connection for each message", new(100 * KIB), 3_000, FASTER),
)

PIPELINED = (
    Row(
        "pipelined-4k",
        "pipelined",
        "4 KiB, kept connections, pipelined",
        bench(pipeline=True),
        24_000,
        EVERYONE,
        goals=to_floor(1.3),
    ),
    Row(
        "pipelined-new-4k",
        "pipelined",
        "4 KiB, a new connection for each message, pipelined",
        bench(kept=False, pipeline=True),
        10_000,
        FASTER,
    ),
)

TLS = (
    Row(
        "tls-new",
        "tls",
        "4 KiB, a new connection with implicit TLS for each message",
        bench(kept=False, tls="implicit"),
        1_200,
        SECURE,
        goals=TO_PEER,
    ),
    Row(
        "starttls-new",
        "tls",
        "4 KiB, a new connection with STARTTLS for each message",
        bench(kept=False, tls="starttls"),
        1_200,
        SECURE,
        goals=TO_PEER,
    ),
    Row(
        "tls-resumed",
        "tls",
        "4 KiB, a new connection with implicit TLS for each message, session resumed",
        bench(kept=False, tls="implicit", resume=True),
        1_600,
        SECURE,
        goals=TO_PEER,
    ),
    Row(
        "starttls-resumed",
        "tls",
        "4 KiB, a new connection with STARTTLS for each message, session resumed",
        bench(kept=False, tls="starttls", resume=True),
        1_600,
        SECURE,
        goals=TO_PEER,
    ),
    Row(
        "tls-kept-4k",
        "tls",
        "4 KiB, kept connections with TLS",
        bench(tls="implicit"),
        8_000,
        SECURE,
        goals=TO_PEER,
    ),
    Row(
        "tls-kept-1m",
        "tls",
        "1 MiB, kept connections with TLS",
        bench(size=MIB, tls="implicit"),
        300,
        SECURE,
        goals=TO_PEER,
    ),
)

# One message at a time: the wait of one client is the figure.
SEGMENTS = (
    Row(
        "nagle-4k",
        "segments",
        "4 KiB in small segments with Nagle's algorithm on, one kept connection",
        Load(4 * KIB, connections=1, client="segments"),
        4_000,
        EVERYONE,
        waits={"fastsmtp": 2.0},
    ),
    Row(
        "nagle-tls-4k",
        "segments",
        "4 KiB in small segments with Nagle's algorithm on, one kept connection with TLS",
        Load(4 * KIB, connections=1, client="segments", tls="implicit"),
        4_000,
        SECURE,
        waits={"fastsmtp": 2.0},
    ),
)

AUTH = (
    Row(
        "auth-new-4k",
        "auth",
        "4 KiB, a new connection with AUTH PLAIN (in clear) for each message",
        bench(kept=False, login=True),
        4_000,
        ("go-smtp", "nodemailer", "haraka", "aiosmtpd", "fastsmtp-smtp"),
        ours=("fastsmtp-smtp",),
    ),
)


def connections(count: int, messages: int) -> Row:
    title = f"4 KiB, {count:,} kept connection{'s' if count > 1 else ''} at once"
    load = kept(4 * KIB, count)
    return Row(f"connections-{count}", "connections", title, load, messages, FASTER, same_count=count > 1)


CONNECTIONS = (connections(1, 6_000), connections(500, 10_000), connections(5_000, 20_000))

SINKS = (
    Row(
        "maildir",
        "sinks",
        "4 KiB into a Maildir, written but not synced: a crash of the machine may lose accepted mail",
        bench(),
        5_000,
        ("fastsmtp-maildir-nosync",),
        ours=("fastsmtp-maildir-nosync",),
    ),
    Row(
        "durable",
        "sinks",
        "4 KiB, file and folder synced before the 250: Maildir beside Postfix's queue",
        bench(),
        3_000,
        ("postfix", "fastsmtp-maildir"),
        ours=("fastsmtp-maildir",),
        keep=True,
    ),
    Row(
        "durable-1m",
        "sinks",
        "1 MiB, file and folder synced before the 250: Maildir beside Postfix's queue",
        bench(size=MIB),
        200,
        ("postfix", "fastsmtp-maildir"),
        ours=("fastsmtp-maildir",),
        keep=True,
    ),
)

ASKED = (
    Row(
        "handlers-4k",
        "handlers",
        "4 KiB, kept connections, a handler in Python that returns at once",
        kept(4 * KIB),
        20_000,
        (FLOOR, "aiosmtpd", "bonzo", *HANDLERS, "fastsmtp-smtp", "fastsmtp-application"),
        ours=(*HANDLERS, "fastsmtp-smtp", "fastsmtp-application"),
        goals={"fastsmtp-async": 1.4},
    ),
)


def workers(count: int) -> Row:
    title = f"4 KiB, a new connection for each message, {count} worker{'s' if count > 1 else ''}"
    return Row(f"workers-{count}", "workers", title, new(4 * KIB), 10_000, MANY_WORKERS, workers=count)


WORKERS = tuple(workers(count) for count in (1, 2, 4, 8))

ROWS = (*SIZES, *PIPELINED, *SEGMENTS, *TLS, *AUTH, *CONNECTIONS, *SINKS, *ASKED, *WORKERS)
GROUPS = tuple(dict.fromkeys(row.group for row in ROWS))
