"""Listening sockets: from ``HOST:PORT`` or ``unix:PATH`` to sockets that are bound and listen.

Knows address families, port 0, leftover socket files, and why a bind fails. Refuses to know who accepts on
them: one process, several workers on the one inherited socket, or the metrics page.
"""

import errno
import os
import re
import socket
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastsmtp.errors import ConfigError

# A name that also stands for an IPv6 address must work where IPv6 is compiled out or switched off.
_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})

# With several addresses, the port that the kernel picks on the first may be taken on another.
_PORT_ZERO_TRIES = 20

_TCP = re.compile(r"(?:\[(?P<literal>[^\[\]\s]*:[^\[\]\s]*)\]|(?P<name>[^\[\]:\s]*)):(?P<port>[0-9]{1,5})")

FORMS = "HOST:PORT, [V6]:PORT or unix:PATH"


class ListenError(ConfigError):
    """A socket that this machine does not give now: a busy port, a strange address, a missing right."""


@dataclass(frozen=True)
class Address:
    """Where to listen: a UNIX socket if ``path`` is set, else TCP; host ``""`` is every address."""

    host: str
    port: int
    path: str | None
    tls: bool

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return _format_tcp(self.host or "*", self.port)


@dataclass(frozen=True)
class Listener:
    """A socket that listens, its address with the real port, and whether TLS comes before the greeting."""

    socket: "socket.socket"
    address: str
    tls: bool
    # Process, device and inode: only the process that made a socket file may remove it, and only that file.
    made: tuple[int, int, int] | None = None


class _Target(NamedTuple):
    family: int
    host: str
    port: int
    rest: tuple[int, ...]  # flow and scope of an IPv6 address


def parse(spec: str) -> Address:
    """The address that ``[tls:]HOST:PORT``, ``[tls:][V6]:PORT`` or ``[tls:]unix:PATH`` names.

    An empty host or ``*`` is every address. Raises ConfigError, which says what is wrong with ``spec``.
    """
    bare = spec.removeprefix("tls:")
    tls = bare != spec
    if bare.startswith("unix:"):
        path = bare.removeprefix("unix:")
        if not path or "\0" in path:
            raise ConfigError(f'"{spec}" names no socket file; write unix:PATH')
        return Address("", 0, path, tls)
    match = _TCP.fullmatch(bare)
    if match is None:
        if bare.count(":") > 1 and "[" not in bare:
            raise ConfigError(f'"{spec}": put an IPv6 address in brackets, such as [::1]:25')
        raise ConfigError(f'"{spec}" is not an address; write {FORMS}')
    port = int(match["port"])
    if port > 65535:
        raise ConfigError(f'"{spec}": the port must be at most 65535')
    host = match["literal"] or match["name"]
    return Address("" if host == "*" else host, port, None, tls)


def bind(specs: Sequence[str], backlog: int, *, option: str = "--listen") -> list[Listener]:
    """Listens on every address of ``specs``, or on none; non-blocking, ``backlog`` connections wait in each.

    A name with several addresses gives a listener for each, all on one port even if that is 0. A socket file
    that no server answers on is replaced. Raises ConfigError for a spec that is no address and ListenError
    for one that cannot be had; ``option`` is the flag that the message tells to change.
    """
    listeners: list[Listener] = []
    try:
        for address in [parse(spec) for spec in specs]:
            try:
                if address.path is not None:
                    listeners.append(_bind_unix(address, address.path, backlog))
                else:
                    listeners += _bind_tcp(address, backlog)
            except (OSError, UnicodeError) as error:
                why = _explain(address, error, option, listeners)
                raise ListenError(f"cannot listen on {address}: {why}") from None
    except BaseException:
        close(listeners)
        raise
    return listeners


def close(listeners: Iterable[Listener]) -> None:
    """Closes the sockets, and removes the socket files that this process made, if they are still the same.

    May be called again.
    """
    for listener in listeners:
        # Only an open socket holds its inode: of a closed one, a successor's file may have got the number.
        if listener.made is not None and listener.socket.fileno() >= 0:
            path = listener.address.removeprefix("unix:")
            try:
                if listener.made == identity(path):
                    os.unlink(path)
            except OSError:
                pass  # gone already, or no longer ours to remove
        listener.socket.close()


def _bind_tcp(address: Address, backlog: int) -> list[Listener]:
    targets = _resolve(address)
    tries = _PORT_ZERO_TRIES if address.port == 0 and len(targets) > 1 else 1
    while True:
        try:
            return _bind_all(targets, backlog, address.tls)
        except OSError as error:
            tries -= 1
            if tries == 0 or error.errno != errno.EADDRINUSE:
                raise


def _bind_all(targets: list[_Target], backlog: int, tls: bool) -> list[Listener]:
    made: list[Listener] = []
    absent: OSError | None = None
    port = 0
    try:
        for target in targets:
            try:
                sock = _listen(target, port or target.port, backlog)
            except OSError as error:
                if target.family != socket.AF_INET6 or len(targets) == 1 or error.errno not in _NO_IPV6:
                    raise
                absent = error
                continue
            host, port, *rest = sock.getsockname()
            scope = f"%{rest[1]}" if rest and rest[1] else ""
            made.append(Listener(sock, _format_tcp(f"{host}{scope}", port), tls))
        if absent is not None and not made:
            raise absent
    except OSError:
        close(made)
        raise
    return made


def _resolve(address: Address) -> list[_Target]:
    found = socket.getaddrinfo(
        address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    targets = [
        _Target(family, str(name[0]), address.port, tuple(int(part) for part in name[2:]))
        for family, _, _, _, name in found
    ]
    return list(dict.fromkeys(targets))


def _listen(target: _Target, port: int, backlog: int) -> socket.socket:
    sock = socket.socket(target.family, socket.SOCK_STREAM)
    try:
        # A restart must not wait for the old connections' TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if target.family == socket.AF_INET6:
            # [::]:25 beside 0.0.0.0:25: each family answers for itself, whatever the system's default.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((target.host, port, *target.rest))
        return _start(sock, backlog)
    except BaseException:
        sock.close()
        raise


def without_delay(sock: socket.socket) -> None:
    """Has the connections of a listening socket send each reply at once. They inherit it, so one system call does for
    all, also for those that the kernel accepts from ``listen`` on and nobody has looked at yet.
    """
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _start(sock: socket.socket, backlog: int) -> socket.socket:
    without_delay(sock)
    sock.listen(backlog)
    # Several workers may wake for one connection; those that come late must not hang in accept.
    sock.setblocking(False)
    return sock


def _bind_unix(address: Address, path: str, backlog: int) -> Listener:
    _remove_leftover(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound = False
    try:
        sock.bind(path)
        bound = True
        made = identity(path)
        _start(sock, backlog)
    except BaseException:
        sock.close()
        if bound:
            os.unlink(path)
        raise
    return Listener(sock, str(address), address.tls, made)


def identity(path: str) -> tuple[int, int, int]:
    """What ``Listener.made`` is for a socket file that this process has just made. Raises ``OSError``."""
    status = os.lstat(path)
    return os.getpid(), status.st_dev, status.st_ino


def _remove_leftover(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "the file exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A full backlog must count as an answer, not block.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except PermissionError:
            raise
        except OSError:
            pass  # whatever else it is, somebody holds it
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _format_tcp(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _explain(
    address: Address, error: OSError | UnicodeError, option: str, earlier: Sequence[Listener]
) -> str:
    """What went wrong, and what to do about it."""
    if isinstance(error, UnicodeError):
        return "that is no host name; correct it"
    if isinstance(error, socket.gaierror):
        return f"{_lower(error.strerror)}; correct the host name or give its address"
    if error.errno == errno.EADDRINUSE:
        same = [made.address for made in earlier if _collide(made, address)]
        if same:
            return f"{same[0]} has it already; name it once"
        return f"address already in use; stop the other server or choose another {option}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this machine does not have that address; choose another {option}"
    if error.errno in (errno.EACCES, errno.EPERM):
        if address.path is not None:
            return "permission denied; let this user write in its folder"
        return "permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE"
    if error.errno == errno.ENOENT:
        return "its folder does not exist; make it first"
    if error.errno == errno.EEXIST:
        return f"{error.strerror}; remove it or choose another {option}"
    # Python itself refuses a path that is too long, without a number.
    text = _lower(error.strerror) if error.strerror else str(error)
    return f"{text}; choose another {option}"


def _lower(text: str | None) -> str:
    return f"{text[:1].lower()}{text[1:]}" if text else "unknown error"


def _collide(made: Listener, address: Address) -> bool:
    if address.path is not None:
        return made.address == str(address)
    return made.made is None and made.address.rpartition(":")[2] == str(address.port)
