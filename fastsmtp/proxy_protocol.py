"""The header that a proxy puts before a connection, to say who the client is: PROXY protocol, version 1 and 2.

Knows the header's two forms, their limits, and the type-length-value vectors of version 2. Refuses to know sockets,
and who may send such a header: the addresses in it are as true as the peer that sent it.

The format is https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt; "section" below means a section of it.
The names and error texts are those of ``aiosmtpd.proxy_protocol``.
"""

from __future__ import annotations

import logging
import re
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar, Protocol, TypeAlias

__all__ = [
    "AF",
    "PROTO",
    "V2_CMD",
    "V2_PARSE_ADDR_FAMPRO",
    "V2_SIGNATURE",
    "V2_VALID_CMDS",
    "V2_VALID_FAMS",
    "V2_VALID_PROS",
    "AsyncReader",
    "EndpointAddress",
    "IPv4Address",
    "IPv6Address",
    "MalformedTLV",
    "ProxyData",
    "ProxyParser",
    "ProxyTLV",
    "UnknownTypeTLV",
    "get_proxy",
]

log = logging.getLogger("mail.debug")

V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

_V1_PREFIX = b"PROXY"
_V2_PREFIX = V2_SIGNATURE[: len(_V1_PREFIX)]
# The longest line that section 2.1 allows, with its CRLF.
_V1_LONGEST = 107
_V2_HEAD = struct.Struct("!BBH")
_V2_HEAD_END = len(V2_SIGNATURE) + _V2_HEAD.size

# An IPv6 zone (%eth0) names an interface of the proxy's; nothing else may follow a number either.
_ADDRESS = re.compile(rb"[0-9a-fA-F.:]+")
_PORT = re.compile(rb"0|[1-9][0-9]*")

EndpointAddress: TypeAlias = IPv4Address | IPv6Address | str | bytes


class V2_CMD(IntEnum):
    """What a header of version 2 is for.

    ``LOCAL`` is from the proxy itself, such as a health check: its addresses mean nothing (section 2.2).
    """

    LOCAL = 0
    PROXY = 1


class AF(IntEnum):
    """Address families. ``UNSPEC`` is also the UNKNOWN of version 1, which has no ``UNIX``."""

    UNSPEC = 0
    INET = 1
    INET6 = 2
    UNIX = 3


class PROTO(IntEnum):
    """Transports. ``UNSPEC`` is also the UNKNOWN of version 1, which has no ``DGRAM``."""

    UNSPEC = 0
    STREAM = 1
    DGRAM = 2


V2_VALID_CMDS = {command.value for command in V2_CMD}
V2_VALID_FAMS = {family.value for family in AF}
V2_VALID_PROS = {protocol.value for protocol in PROTO}
# The family and transport octets behind which addresses come.
V2_PARSE_ADDR_FAMPRO = {
    family << 4 | protocol
    for family in (AF.INET, AF.INET6, AF.UNIX)
    for protocol in (PROTO.STREAM, PROTO.DGRAM)
}

_INET = struct.Struct("!4s4sHH")
_INET6 = struct.Struct("!16s16sHH")
_UNIX = struct.Struct("108s108s")

_SSL = 0x20
_SSL_HEAD = struct.Struct("!BI")


class MalformedTLV(RuntimeError):
    """A vector that is shorter than it says, or than its type needs."""


class UnknownTypeTLV(KeyError):
    """A vector of a type that has no name."""


class AsyncReader(Protocol):
    """What ``get_proxy`` reads from; an ``asyncio.StreamReader`` is one. Each gives ``b""`` or less at the end."""

    async def read(self, n: int = ..., /) -> bytes: ...

    async def readexactly(self, n: int, /) -> bytes: ...

    async def readuntil(self, separator: bytes = ..., /) -> bytes: ...


class ProxyTLV(dict[str, Any]):
    """The vectors of a header by the names of their types; a type without a name is ``xNN``, in hexadecimal.

    A name is also an attribute, ``None`` where there is no such vector. ``tlv_loc`` has for each name the offset of
    its type in the octets it was read from. An SSL vector (section 2.2.5) gives ``SSL_CLIENT`` and ``SSL_VERIFY`` as
    numbers, the vectors within it under their own names, and ``SSL``: whether those were well formed.
    """

    __slots__ = ("tlv_loc",)

    PP2_TYPENAME: ClassVar[dict[int, str]] = {
        0x01: "ALPN",
        0x02: "AUTHORITY",
        0x03: "CRC32C",
        0x04: "NOOP",
        0x05: "UNIQUE_ID",
        0x20: "SSL",
        0x21: "SSL_VERSION",
        0x22: "SSL_CN",
        0x23: "SSL_CIPHER",
        0x24: "SSL_SIG_ALG",
        0x25: "SSL_KEY_ALG",
        0x30: "NETNS",
    }

    def __init__(self, *args: Any, _tlv_loc: dict[str, int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tlv_loc = _tlv_loc

    def __getattr__(self, item: str) -> Any:
        # What copy and pickle look for must be absent, not None.
        if item.startswith("__"):
            raise AttributeError(item)
        return self.get(item)

    def same_attribs(self, _raises: bool = False, **kwargs: Any) -> bool:
        """Whether the vectors named are there with these values. With ``_raises``, KeyError or ValueError if not."""
        return _same(self, kwargs, _raises)

    @classmethod
    def parse(
        cls, data: bytes | bytearray | memoryview, partial_ok: bool = True, strict: bool = False
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """The vectors in ``data``, and the offset of each.

        From a malformed vector on nothing is read; without ``partial_ok`` it raises ``MalformedTLV``. With
        ``strict``, a type without a name raises ``UnknownTypeTLV``.
        """
        octets = bytes(data)
        found: dict[str, Any] = {}
        places: dict[str, int] = {}

        def collect(at: int, stop: int, in_ssl: bool) -> None:
            while at < stop:
                kind = octets[at]
                body = at + 3
                end = body + int.from_bytes(octets[at + 1 : body])
                is_ssl = kind == _SSL
                # One level of SSL has a meaning; a hostile header holds 8000 in each other.
                if max(body, end) > stop or (is_ssl and (in_ssl or end < body + _SSL_HEAD.size)):
                    raise MalformedTLV(f"TLV 0x{kind:02X} is malformed!")
                name = cls.PP2_TYPENAME.get(kind)
                if name is None:
                    name = f"x{kind:02X}"
                    if strict:
                        raise UnknownTypeTLV(name)
                places[name] = at
                if is_ssl:
                    found["SSL_CLIENT"], found["SSL_VERIFY"] = _SSL_HEAD.unpack_from(octets, body)
                    found["SSL"] = False
                    collect(body + _SSL_HEAD.size, end, True)
                    found["SSL"] = True
                else:
                    found[name] = octets[body:end]
                at = end

        try:
            collect(0, len(octets), False)
        except MalformedTLV:
            if not partial_ok:
                raise
        return found, places

    @classmethod
    def from_raw(cls, raw: bytes | bytearray | memoryview, strict: bool = False) -> ProxyTLV | None:
        """The vectors in ``raw``, ``None`` if it is empty.

        Raises ``MalformedTLV``, and with ``strict`` also ``UnknownTypeTLV``.
        """
        if len(raw) == 0:
            return None
        found, places = cls.parse(raw, partial_ok=False, strict=strict)
        return cls(found, _tlv_loc=places)

    @classmethod
    def name_to_num(cls, name: str) -> int | None:
        """The number of the type with this name."""
        return next((number for number, known in cls.PP2_TYPENAME.items() if known == name), None)


@dataclass(slots=True, kw_only=True)
class ProxyData:
    """What a header said. It is true if the header was valid.

    ``version`` is ``None`` if the header is of no known one. Addresses are ``ipaddress`` objects, or for ``AF.UNIX``
    the 108 octets of each path. ``rest`` has what follows UNKNOWN (version 1), or the octets behind the addresses
    (version 2), which are vectors if the proxy is sane; ``tlv_start`` is where those begin in ``whole_raw``, the
    header as it came. The checksum in a CRC32C vector is not verified. ``error`` says what is wrong, if anything is.
    """

    version: int | None
    command: V2_CMD | None = field(default=None, init=False)
    family: AF | None = field(default=None, init=False)
    protocol: PROTO | None = field(default=None, init=False)
    src_addr: EndpointAddress | None = field(default=None, init=False)
    dst_addr: EndpointAddress | None = field(default=None, init=False)
    src_port: int | None = field(default=None, init=False)
    dst_port: int | None = field(default=None, init=False)
    rest: bytes | bytearray = field(default=b"", init=False)
    whole_raw: bytearray = field(default_factory=bytearray, init=False, repr=False)
    tlv_start: int | None = field(default=None, init=False)
    error: str = field(default="", init=False)
    _tlv: ProxyTLV | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def valid(self) -> bool:
        """Whether the header was read to its end and nothing is wrong with it."""
        return not (self.error or self.version is None or self.protocol is None)

    @property
    def tlv(self) -> ProxyTLV | None:
        """The vectors in ``rest``, read at the first look; ``None`` if there are none or any is malformed."""
        if self._tlv is None and self.version == 2:
            try:
                self._tlv = ProxyTLV.from_raw(self.rest)
            except MalformedTLV:
                return None
        return self._tlv

    def with_error(self, error_msg: str, log_prefix: bool = True) -> ProxyData:
        """This data with an error, which is logged as a warning, behind ``PROXY error:`` if ``log_prefix``."""
        log.warning("PROXY error: %s" if log_prefix else "%s", error_msg)
        self.error = error_msg
        return self

    def same_attribs(self, _raises: bool = False, **kwargs: Any) -> bool:
        """Whether the attributes named have these values. With ``_raises``, KeyError or ValueError if not."""
        actual = {name: getattr(self, name) for name in kwargs if hasattr(self, name)}
        return _same(actual, kwargs, _raises)

    def __bool__(self) -> bool:
        return self.valid


def _same(actual: Mapping[str, Any], expected: Mapping[str, Any], raises: bool) -> bool:
    for name, value in expected.items():
        if name not in actual:
            if raises:
                raise KeyError(f"notfound:{name}")
            return False
        if actual[name] != value:
            if raises:
                raise ValueError(f"mismatch:{name} actual={actual[name]!r} expect={value!r}")
            return False
    return True


class ProxyParser:
    """Reads one header from octets in whatever pieces they come. It never raises for what they are.

    ``data`` is ``None`` until the header has come whole or is known to be wrong; then it is valid or has an
    ``error``. It keeps at most 107 octets of a line and 65551 of a header of version 2.
    """

    __slots__ = ("_goal", "_part", "_raw", "_result", "data")

    def __init__(self) -> None:
        self.data: ProxyData | None = None
        self._result = ProxyData(version=None)
        self._raw = self._result.whole_raw
        # What is being waited for, and the length of the header when it is there, or for a line at most.
        self._part = "prefix"
        self._goal = len(_V1_PREFIX)

    @property
    def wanted(self) -> int:
        """So many octets are sure to belong to the header: who cannot give any back may read this many.

        0 when ``data`` is there. A line of version 1 may end with any octet, so there it is 1; who can peek shows
        ``feed`` more.
        """
        if self.data is not None:
            return 0
        return 1 if self._part == "line" else self._goal - len(self._raw)

    def feed(self, octets: bytes | bytearray | memoryview) -> int:
        """Takes what belongs to the header, and returns how many octets that was: never one behind the header."""
        taken = 0
        while self.data is None and taken < len(octets):
            piece = bytes(octets[taken : taken + self._goal - len(self._raw)])
            if self._part == "line":
                end = piece.find(b"\n") + 1
                if end:
                    piece = piece[:end]
                    self._goal = len(self._raw) + end
            self._raw += piece
            taken += len(piece)
            if len(self._raw) == self._goal:
                self._advance()
        return taken

    def feed_eof(self) -> None:
        """No more octets come: if the header is not whole, that is its error."""
        if self.data is not None:
            return
        if self._part == "line":
            self.data = self._result.with_error("PROXYv1 malformed")
            return
        part = "signature" if self._part == "prefix" else self._part
        text = f"PROXY exception: Connection lost while waiting for {part}"
        self.data = self._result.with_error(text, log_prefix=False)

    def _advance(self) -> None:
        result = self._result
        match self._part:
            case "prefix":
                if self._raw == _V1_PREFIX:
                    result.version = 1
                    self._part, self._goal = "line", _V1_LONGEST
                elif self._raw == _V2_PREFIX:
                    result.version = 2
                    self._part, self._goal = "signature", len(V2_SIGNATURE)
                else:
                    self.data = result.with_error("PROXY unrecognized signature")
            case "line":
                self.data = _read_line(result, bytes(self._raw))
            case "signature":
                if self._raw == V2_SIGNATURE:
                    self._part, self._goal = "header", _V2_HEAD_END
                else:
                    self.data = result.with_error("PROXYv2 wrong signature")
            case "header":
                length = _read_head(result, self._raw)
                if result.error:
                    self.data = result
                elif length:
                    self._part, self._goal = "tail part", _V2_HEAD_END + length
                else:
                    self.data = _read_tail(result, b"")
            case _:
                self.data = _read_tail(result, bytes(self._raw[_V2_HEAD_END:]))


def _read_line(data: ProxyData, line: bytes) -> ProxyData:
    """Section 2.1."""
    if not line.endswith(b"\n"):
        return data.with_error("PROXYv1 header too long")
    if not line.endswith(b"\r\n"):
        return data.with_error("PROXYv1 malformed")
    # Exactly one space parts two fields: with two, there is an empty field between them.
    signature, *fields = line[:-2].split(b" ")
    if signature != _V1_PREFIX:
        return data.with_error("PROXYv1 wrong signature")
    kind = fields[0] if fields else b""
    if kind == b"UNKNOWN":
        data.family = AF.UNSPEC
        data.protocol = PROTO.UNSPEC
        data.rest = line[len(b"PROXY UNKNOWN") : -2]
        return data
    family = {b"4": AF.INET, b"6": AF.INET6}.get(kind[-1:])
    if family is None:
        return data.with_error("PROXYv1 unrecognized family")
    data.family = family
    if kind[:-1] != b"TCP":
        return data.with_error("PROXYv1 unrecognized protocol")
    data.protocol = PROTO.STREAM
    source, destination, source_port, destination_port, *more = *fields[1:], *[b""] * (5 - len(fields))
    try:
        addresses = _address(source), _address(destination)
    except (ValueError, OSError):
        return data.with_error("PROXYv1 address malformed")
    version = 4 if family is AF.INET else 6
    if any(address.version != version for address in addresses):
        return data.with_error(f"PROXYv1 address not IPv{version}")
    data.src_addr, data.dst_addr = addresses
    if not (_PORT.fullmatch(source_port) and _PORT.fullmatch(destination_port)):
        return data.with_error("PROXYv1 port malformed")
    data.src_port = int(source_port)
    data.dst_port = int(destination_port)
    if data.src_port > 65535:
        return data.with_error("PROXYv1 src port out of bounds")
    if data.dst_port > 65535:
        return data.with_error("PROXYv1 dst port out of bounds")
    if more:
        return data.with_error("PROXYv1 unrecognized extraneous data")
    return data


def _address(text: bytes) -> IPv4Address | IPv6Address:
    if not _ADDRESS.fullmatch(text):
        raise ValueError(text)
    name = text.decode("ascii")
    # ipaddress takes five times as long to read text as the C library does.
    if ":" in name:
        return IPv6Address(socket.inet_pton(socket.AF_INET6, name))
    return IPv4Address(socket.inet_pton(socket.AF_INET, name))


def _read_head(data: ProxyData, raw: bytearray) -> int:
    """Section 2.2: the four octets behind the signature; returns how many follow."""
    version_command, family_protocol, length = _V2_HEAD.unpack_from(raw, len(V2_SIGNATURE))
    command, family, protocol = version_command & 0x0F, family_protocol >> 4, family_protocol & 0x0F
    if version_command >> 4 != 2:
        data.with_error("PROXYv2 illegal version")
    elif command not in V2_VALID_CMDS:
        data.with_error("PROXYv2 unsupported command")
    elif family not in V2_VALID_FAMS:
        data.with_error("PROXYv2 unsupported family")
    elif protocol not in V2_VALID_PROS:
        data.with_error("PROXYv2 unsupported protocol")
    else:
        data.command, data.family, data.protocol = V2_CMD(command), AF(family), PROTO(protocol)
    return int(length)


def _read_tail(data: ProxyData, tail: bytes) -> ProxyData:
    """Section 2.2: addresses, and what lies behind them."""
    if data.family is AF.UNSPEC or data.protocol is PROTO.UNSPEC:
        data.rest = tail
        return data
    layout = _INET if data.family is AF.INET else _INET6 if data.family is AF.INET6 else _UNIX
    if len(tail) < layout.size:
        return data.with_error("PROXYv2 truncated address")
    if data.family is AF.UNIX:
        data.src_addr, data.dst_addr = layout.unpack_from(tail)
    else:
        source, destination, data.src_port, data.dst_port = layout.unpack_from(tail)
        kind = IPv4Address if data.family is AF.INET else IPv6Address
        data.src_addr, data.dst_addr = kind(source), kind(destination)
    data.rest = tail[layout.size :]
    if data.rest:
        data.tlv_start = _V2_HEAD_END + layout.size
    return data


async def get_proxy(reader_func: AsyncReader) -> ProxyData:
    """Reads a header, and not one octet more. What goes wrong, also in reading, is the ``error`` of the result."""
    parser = ProxyParser()
    try:
        while parser.data is None:
            # A line octet by octet would be right too, and four times as slow.
            waiting = reader_func.readuntil() if parser._part == "line" else reader_func.read(parser.wanted)
            octets = await waiting
            if not octets:
                parser.feed_eof()
            parser.feed(octets)
    except Exception as error:
        return ProxyData(version=None).with_error(f"PROXY exception: {error}", log_prefix=False)
    return parser.data
