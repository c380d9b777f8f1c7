"""The PROXY header: every form and every error, in whatever pieces it comes, and that nothing behind it is taken."""

import asyncio
import copy
import logging
import pickle
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastsmtp.proxy_protocol import (
    AF,
    PROTO,
    V2_CMD,
    V2_PARSE_ADDR_FAMPRO,
    V2_SIGNATURE,
    MalformedTLV,
    ProxyData,
    ProxyParser,
    ProxyTLV,
    UnknownTypeTLV,
    get_proxy,
)

BEHIND = b"EHLO c.example\r\n\n\n"
INET = bytes([192, 0, 2, 1, 198, 51, 100, 2]) + (50000).to_bytes(2) + (25).to_bytes(2)
INET6 = IPv6Address("2001:db8::1").packed + IPv6Address("2001:db8::2").packed + INET[8:]
UNIX = b"/from".ljust(108, b"\0") + b"/to".ljust(108, b"\0")


def v2(tail: bytes = b"", *, family: int = 0, protocol: int = 0, command: int = 1, version: int = 2) -> bytes:
    """A header of version 2."""
    head = bytes([version << 4 | command, family << 4 | protocol]) + len(tail).to_bytes(2)
    return V2_SIGNATURE + head + tail


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2) + value


def parse(octets: bytes, step: int = 0) -> tuple[ProxyData | None, int]:
    """What a parser makes of octets fed whole or in pieces of ``step``, and how many it took."""
    parser = ProxyParser()
    taken = 0
    for at in range(0, len(octets), step or max(1, len(octets))):
        piece = octets[at : at + (step or len(octets))]
        wanted = parser.wanted
        count = parser.feed(piece)
        assert count >= min(wanted, len(piece))
        taken += count
        if parser.data is not None:
            assert parser.wanted == 0
            assert parser.feed(b"more") == 0
            break
        assert count == len(piece)
    if parser.data is not None:
        assert len(parser.data.whole_raw) == taken
    return parser.data, taken


def valid(octets: bytes) -> ProxyData:
    """The data of a header that must be valid and must be taken whole and alone."""
    data, taken = parse(octets + BEHIND)
    assert data is not None
    assert (data.error, taken, bytes(data.whole_raw)) == ("", len(octets), octets)
    assert data
    assert data.valid
    return data


# --- version 1 ----------------------------------------------------------------------------------------------

LINES = {
    b"TCP4 192.0.2.1 198.51.100.2 50000 25": (AF.INET, "192.0.2.1", "198.51.100.2", 50000, 25),
    b"TCP4 0.0.0.0 255.255.255.255 0 65535": (AF.INET, "0.0.0.0", "255.255.255.255", 0, 65535),
    b"TCP6 2001:db8::1 ::1 1 2": (AF.INET6, "2001:db8::1", "::1", 1, 2),
    b"TCP6 ::ffff:192.0.2.1 2001:DB8:0:0:0:0:0:2 1 2": (
        AF.INET6, "::ffff:192.0.2.1", "2001:db8::2", 1, 2,
    ),
    b" ".join([b"TCP6", *[b"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] * 2, b"65535 65535"]): (
        AF.INET6, *["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] * 2, 65535, 65535,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), LINES.items(), ids=range(len(LINES)))
def test_a_line_gives_addresses_and_ports(line: bytes, expected: tuple[Any, ...]) -> None:
    data = valid(b"PROXY " + line + b"\r\n")
    family, source, destination, source_port, destination_port = expected
    assert data.same_attribs(
        _raises=True,
        version=1,
        command=None,
        family=family,
        protocol=PROTO.STREAM,
        src_addr=ip_address(source),
        dst_addr=ip_address(destination),
        src_port=source_port,
        dst_port=destination_port,
        rest=b"",
        tlv_start=None,
        tlv=None,
    )


@pytest.mark.parametrize("rest", [b"", b" ", b" whatever  it says", b" " + b"r" * 91, b" \0\5\1\0\0\0\0"])
def test_an_unknown_client_is_valid_and_the_rest_is_kept(rest: bytes) -> None:
    data = valid(b"PROXY UNKNOWN" + rest + b"\r\n")
    assert data.same_attribs(_raises=True, version=1, family=AF.UNSPEC, protocol=PROTO.UNSPEC, rest=rest)
    assert (data.src_addr, data.src_port, data.tlv) == (None, None, None)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"EHLO c.example\r\n", "PROXY unrecognized signature"),
        (b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "PROXY unrecognized signature"),
        (b"PROXY UNKNOWN " + b"r" * 92 + b"\r\n", "PROXYv1 header too long"),
        (b"PROXY" + b" " * 1000, "PROXYv1 header too long"),
        (b"PROXY UNKNOWN\n", "PROXYv1 malformed"),
        (b"PROXY\n", "PROXYv1 malformed"),
        (b"PROXY1 TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "PROXYv1 wrong signature"),
        (b"PROXY\tTCP4 192.0.2.1 192.0.2.2 1 2\r\n", "PROXYv1 wrong signature"),
        (b"PROXY\r\n", "PROXYv1 unrecognized family"),
        (b"PROXY \r\n", "PROXYv1 unrecognized family"),
        (b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "PROXYv1 unrecognized family"),
        (b"PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n", "PROXYv1 unrecognized family"),
        (b"PROXY TCP 192.0.2.1 192.0.2.2 1 2\r\n", "PROXYv1 unrecognized family"),
        (b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", "PROXYv1 unrecognized protocol"),
        (b"PROXY TCPX4 192.0.2.1 192.0.2.2 1 2\r\n", "PROXYv1 unrecognized protocol"),
        (b"PROXY TCP64 192.0.2.1 192.0.2.2 1 2\r\n", "PROXYv1 unrecognized protocol"),
        (b"PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n", "PROXYv1 unrecognized protocol"),
        (b"PROXY TCP4\r\n", "PROXYv1 address malformed"),
        (b"PROXY TCP4 192.0.2.1\r\n", "PROXYv1 address malformed"),
        (b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n", "PROXYv1 address malformed"),
        (b"PROXY TCP4 192.0.2.1  192.0.2.2 1 2\r\n", "PROXYv1 address malformed"),
        (b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n", "PROXYv1 address malformed"),
        (b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n", "PROXYv1 address malformed"),
        (b"PROXY TCP4 192.0.2 192.0.2.2 1 2\r\n", "PROXYv1 address malformed"),
        (b"PROXY TCP4 192.0.2.a 192.0.2.2 1 2\r\n", "PROXYv1 address malformed"),
        (b"PROXY TCP6 ::1 ::g 1 2\r\n", "PROXYv1 address malformed"),
        (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "PROXYv1 address malformed"),
        (b"PROXY TCP6 1::2::3 ::1 1 2\r\n", "PROXYv1 address malformed"),
        (b"PROXY TCP4 192.0.2.1\0 192.0.2.2 1 2\r\n", "PROXYv1 address malformed"),
        (b"PROXY TCP4 \xb2.0.2.1 192.0.2.2 1 2\r\n", "PROXYv1 address malformed"),
        (b"PROXY TCP4 ::1 192.0.2.2 1 2\r\n", "PROXYv1 address not IPv4"),
        (b"PROXY TCP4 192.0.2.1 ::1 1 2\r\n", "PROXYv1 address not IPv4"),
        (b"PROXY TCP6 192.0.2.1 ::1 1 2\r\n", "PROXYv1 address not IPv6"),
        (b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n", "PROXYv1 address not IPv6"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2\r\n", "PROXYv1 port malformed"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", "PROXYv1 port malformed"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n", "PROXYv1 port malformed"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1  2\r\n", "PROXYv1 port malformed"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1_0 2\r\n", "PROXYv1 port malformed"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\r\n", "PROXYv1 port malformed"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 +2\r\n", "PROXYv1 port malformed"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 x\r\n", "PROXYv1 port malformed"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n", "PROXYv1 src port out of bounds"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 " + b"9" * 60 + b"\r\n", "PROXYv1 dst port out of bounds"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n", "PROXYv1 unrecognized extraneous data"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3 4\r\n", "PROXYv1 unrecognized extraneous data"),
    ],
)
def test_a_wrong_line_is_refused(line: bytes, error: str, caplog: pytest.LogCaptureFixture) -> None:
    data, taken = parse(line + BEHIND)
    assert data is not None
    assert not data
    assert (data.error, data.version) == (error, None if error == "PROXY unrecognized signature" else 1)
    assert taken == (5 if data.version is None else min(len(line), 107))
    assert caplog.record_tuples == [("mail.debug", logging.WARNING, f"PROXY error: {error}")]


address_like = st.text("0123456789abcdefF:.", max_size=40) | st.ip_addresses().map(str)


@given(address_like | st.builds("::".join, st.lists(address_like, max_size=3)))
@example("1:2:3:4:5:6:7::")
@example("::1.2.3.4")
@example("1:2:3:4:5:6:7:8::")
@example("::00001")
@example("1.2.3.04")
def test_an_address_is_what_ipaddress_says(text: str) -> None:
    try:
        expected: object = ip_address(text)
    except ValueError:
        expected = None
    data, _ = parse(f"PROXY TCP6 {text} ::1 1 2\r\n".encode())
    assert data is not None
    if len(data.whole_raw) == 107:
        return
    if isinstance(expected, IPv4Address):
        assert data.error == "PROXYv1 address not IPv6"
    else:
        assert data.error == ("" if expected else "PROXYv1 address malformed")
        assert data.src_addr == expected


# --- version 2 ----------------------------------------------------------------------------------------------

FAMILIES: dict[AF, tuple[bytes, object, object, int | None, int | None]] = {
    AF.INET: (INET, IPv4Address("192.0.2.1"), IPv4Address("198.51.100.2"), 50000, 25),
    AF.INET6: (INET6, IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2"), 50000, 25),
    AF.UNIX: (UNIX, UNIX[:108], UNIX[108:], None, None),
}


@pytest.mark.parametrize("command", V2_CMD)
@pytest.mark.parametrize("protocol", [PROTO.STREAM, PROTO.DGRAM])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rest", [b"", b"no vector", tlv(4, b"x" * 300)], ids=["", "junk", "vector"])
def test_a_header_gives_addresses(family: AF, protocol: PROTO, command: V2_CMD, rest: bytes) -> None:
    addresses, source, destination, source_port, destination_port = FAMILIES[family]
    data = valid(v2(addresses + rest, family=family, protocol=protocol, command=command))
    assert data.same_attribs(
        _raises=True,
        version=2,
        command=command,
        family=family,
        protocol=protocol,
        src_addr=source,
        dst_addr=destination,
        src_port=source_port,
        dst_port=destination_port,
        rest=rest,
        tlv_start=16 + len(addresses) if rest else None,
        tlv={"NOOP": b"x" * 300} if rest.startswith(b"\4") else None,
    )
    assert isinstance(data.command, V2_CMD)
    if data.tlv is not None and data.tlv_start is not None:
        assert data.whole_raw[data.tlv_start + data.tlv.tlv_loc["NOOP"]] == 4


@pytest.mark.parametrize("family", AF)
@pytest.mark.parametrize("protocol", PROTO)
@pytest.mark.parametrize("tail", [b"", b"whatever"])
def test_without_family_or_transport_there_are_no_addresses(family: AF, protocol: PROTO, tail: bytes) -> None:
    if family << 4 | protocol in V2_PARSE_ADDR_FAMPRO:
        data, _ = parse(v2(tail, family=family, protocol=protocol))
        assert data is not None
        assert data.error == "PROXYv2 truncated address"
        return
    data = valid(v2(tail, family=family, protocol=protocol))
    assert data.same_attribs(
        _raises=True, family=family, protocol=protocol, rest=tail, src_addr=None, dst_port=None
    )


def test_the_longest_header_is_taken() -> None:
    assert len(valid(v2(INET + tlv(4, b"x" * 65520), family=1, protocol=1)).whole_raw) == 16 + 65535


@pytest.mark.parametrize(
    ("header", "error", "taken"),
    [
        (V2_SIGNATURE[:5] + b"\r\nQUIP\n" + bytes(30), "PROXYv2 wrong signature", 12),
        (v2(INET, version=1, family=1, protocol=1), "PROXYv2 illegal version", 16),
        (v2(INET, version=3, family=1, protocol=1), "PROXYv2 illegal version", 16),
        (v2(INET, command=2, family=1, protocol=1), "PROXYv2 unsupported command", 16),
        (v2(INET, family=4, protocol=1), "PROXYv2 unsupported family", 16),
        (v2(INET, family=1, protocol=3), "PROXYv2 unsupported protocol", 16),
        (v2(family=1, protocol=1), "PROXYv2 truncated address", 16),
        (v2(INET[:-1], family=1, protocol=1), "PROXYv2 truncated address", 27),
        (v2(INET, family=2, protocol=1), "PROXYv2 truncated address", 28),
        (v2(INET6[:-1], family=2, protocol=2), "PROXYv2 truncated address", 51),
        (v2(UNIX[:-1], family=3, protocol=1), "PROXYv2 truncated address", 231),
    ],
)
def test_a_wrong_header_is_refused(
    header: bytes, error: str, taken: int, caplog: pytest.LogCaptureFixture
) -> None:
    data, count = parse(header + BEHIND)
    assert data is not None
    assert not data
    assert (data.error, data.version, count) == (error, 2, taken)
    assert caplog.record_tuples == [("mail.debug", logging.WARNING, f"PROXY error: {error}")]


# --- in pieces, and hostile ---------------------------------------------------------------------------------

lines = st.builds(
    lambda fields, end: b" ".join([b"PROXY", *fields]) + end,
    st.lists(
        st.sampled_from(
            (b"TCP4", b"TCP6", b"UNKNOWN", b"192.0.2.1", b"::1", b"25", b"65536", b"", b"x" * 60, b"\r")
        ),
        max_size=7,
    ),
    st.sampled_from((b"\r\n", b"\n", b"\r", b"")),
)
vectors = st.recursive(
    st.builds(tlv, st.integers(0, 255), st.binary(max_size=9)) | st.binary(max_size=9),
    lambda inner: st.builds(lambda head, value: tlv(0x20, head + value), st.binary(max_size=5), inner),
)
headers = st.builds(
    v2,
    st.builds(bytes.__add__, st.sampled_from((b"", INET, INET6, UNIX)), vectors),
    family=st.integers(0, 4),
    protocol=st.integers(0, 3),
    command=st.integers(0, 2),
)
spoilt = st.builds(
    lambda octets, at, octet: octets[:at] + octet + octets[at + 1 :],
    lines | headers,
    st.integers(0, 60),
    st.binary(max_size=1),
)
wire = st.builds(
    bytes.__add__, lines | headers | spoilt | st.binary(max_size=60), st.just(BEHIND) | st.just(b"")
)


@settings(max_examples=500, deadline=None)
@given(wire, st.integers(1, 9))
def test_any_octets_in_any_pieces(octets: bytes, step: int) -> None:
    data, taken = parse(octets)
    for other, count in (parse(octets, 1), parse(octets, step)):
        assert (other, count) == (data, taken)
    if data is None:
        assert taken == len(octets)
    else:
        assert bytes(data.whole_raw) == octets[:taken]
        assert data.valid == (not data.error)
        assert data.tlv is None or data.tlv


@given(wire)
def test_who_reads_only_what_is_wanted_reads_only_the_header(octets: bytes) -> None:
    parser = ProxyParser()
    at = 0
    while parser.data is None and at < len(octets):
        wanted = octets[at : at + parser.wanted]
        assert parser.feed(wanted) == len(wanted)
        at += len(wanted)
    assert (parser.data, at) == parse(octets)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_octets_may_lie_in_any_buffer(kind: type[Any]) -> None:
    for header in (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", v2(INET, family=1, protocol=1)):
        parser = ProxyParser()
        buffer = kind(header + BEHIND)
        assert parser.feed(buffer) == len(header)
        assert parser.data
        assert parser.data == parse(header)[0]


def test_a_header_in_single_octets_is_no_more_work_than_its_octets(caplog: pytest.LogCaptureFixture) -> None:
    header = v2(bytes(65535))
    parser = ProxyParser()
    for at in range(len(header)):
        assert parser.wanted >= 1
        assert parser.feed(header[at : at + 1]) == 1
    assert parser.data
    endless = ProxyParser()
    assert sum(endless.feed(octet) for octet in [b"P", b"R", b"O", b"X", b"Y", *[b" "] * 1000]) == 107
    assert endless.data is not None
    assert endless.data.error == "PROXYv1 header too long"
    assert len(caplog.records) == 1


CUTS = [
    (b"", "PROXY exception: Connection lost while waiting for signature"),
    (b"PROX", "PROXY exception: Connection lost while waiting for signature"),
    (b"PROXY", "PROXYv1 malformed"),
    (b"PROXY TCP4 192.0.2.1", "PROXYv1 malformed"),
    (V2_SIGNATURE[:5], "PROXY exception: Connection lost while waiting for signature"),
    (V2_SIGNATURE[:11], "PROXY exception: Connection lost while waiting for signature"),
    (V2_SIGNATURE, "PROXY exception: Connection lost while waiting for header"),
    (v2(INET, family=1, protocol=1)[:15], "PROXY exception: Connection lost while waiting for header"),
    (v2(INET, family=1, protocol=1)[:16], "PROXY exception: Connection lost while waiting for tail part"),
    (v2(INET, family=1, protocol=1)[:-1], "PROXY exception: Connection lost while waiting for tail part"),
]


@pytest.mark.parametrize(("octets", "error"), CUTS)
def test_an_end_within_the_header_is_its_error(
    octets: bytes, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    parser = ProxyParser()
    assert parser.feed(octets) == len(octets)
    assert parser.data is None
    parser.feed_eof()
    data = parser.data
    assert data is not None
    assert (data.error, bytes(data.whole_raw), bool(data)) == (error, octets, False)
    text = error if error.startswith("PROXY exception") else f"PROXY error: {error}"
    assert caplog.record_tuples == [("mail.debug", logging.WARNING, text)]
    parser.feed_eof()
    assert parser.data is data


def test_an_end_behind_the_header_is_none_of_it() -> None:
    parser = ProxyParser()
    parser.feed(v2())
    parser.feed_eof()
    assert parser.data


# --- vectors ------------------------------------------------------------------------------------------------

NAMES = {
    0x01: "ALPN", 0x02: "AUTHORITY", 0x03: "CRC32C", 0x04: "NOOP", 0x05: "UNIQUE_ID", 0x20: "SSL",
    0x21: "SSL_VERSION", 0x22: "SSL_CN", 0x23: "SSL_CIPHER", 0x24: "SSL_SIG_ALG", 0x25: "SSL_KEY_ALG",
    0x30: "NETNS",
}  # fmt: skip
SSL_HEAD = b"\x01\x00\x00\x01\x00"


@pytest.mark.parametrize("number", range(256))
def test_each_type_by_its_name(number: int) -> None:
    name = NAMES.get(number)
    octets = tlv(0x04, b"") + tlv(number, SSL_HEAD if number == 0x20 else b"value")
    found, places = ProxyTLV.parse(octets)
    vectors = ProxyTLV.from_raw(octets)
    assert vectors is not None
    assert (vectors, vectors.tlv_loc) == (found, places)
    shown = name or f"x{number:02X}"
    assert places[shown] == 3
    if name is None:
        assert vectors[shown] == b"value"
        with pytest.raises(UnknownTypeTLV, match=shown):
            ProxyTLV.parse(octets, strict=True)
        with pytest.raises(UnknownTypeTLV, match=shown):
            ProxyTLV.from_raw(octets, strict=True)
    else:
        assert ProxyTLV.name_to_num(name) == number
        assert getattr(vectors, name) == (True if name == "SSL" else b"value")
        assert ProxyTLV.parse(octets, strict=True) == (found, places)


def test_what_has_no_name_has_no_number() -> None:
    assert ProxyTLV.name_to_num("xFF") is None
    assert set(ProxyTLV.PP2_TYPENAME) == set(NAMES)


def test_ssl_holds_vectors_of_its_own() -> None:
    inner = tlv(0x21, b"TLSv1.3") + tlv(0x22, b"client.example") + tlv(0x23, b"") + tlv(0x99, b"later")
    octets = tlv(0x05, b"id") + tlv(0x20, SSL_HEAD + inner) + tlv(0x30, b"blue")
    vectors = ProxyTLV.from_raw(octets)
    assert vectors == {
        "UNIQUE_ID": b"id",
        "SSL": True,
        "SSL_CLIENT": 1,
        "SSL_VERIFY": 256,
        "SSL_VERSION": b"TLSv1.3",
        "SSL_CN": b"client.example",
        "SSL_CIPHER": b"",
        "x99": b"later",
        "NETNS": b"blue",
    }
    assert vectors is not None
    kinds = {name: octets[at] for name, at in vectors.tlv_loc.items()}
    assert kinds == {
        "UNIQUE_ID": 5, "SSL": 0x20, "SSL_VERSION": 0x21, "SSL_CN": 0x22, "SSL_CIPHER": 0x23, "x99": 0x99,
        "NETNS": 0x30,
    }  # fmt: skip


MALFORMED = {
    "length cut": (b"\x04", 0x04, {}),
    "length cut in two": (b"\x04\x00", 0x04, {}),
    "value cut": (tlv(1, b"h2") + tlv(2, b"name")[:-1], 0x02, {"ALPN": b"h2"}),
    "SSL too short": (tlv(1, b"h2") + tlv(0x20, SSL_HEAD[:4]), 0x20, {"ALPN": b"h2"}),
    "SSL empty": (tlv(0x20, b""), 0x20, {}),
    "in SSL": (
        tlv(0x20, SSL_HEAD + tlv(0x21, b"v") + tlv(0x22, b"name")[:-1]) + tlv(0x30, b"blue"),
        0x22,
        {"SSL": False, "SSL_CLIENT": 1, "SSL_VERIFY": 256, "SSL_VERSION": b"v"},
    ),
    "SSL in SSL": (
        tlv(0x20, SSL_HEAD + tlv(0x20, SSL_HEAD)),
        0x20,
        {"SSL": False, "SSL_CLIENT": 1, "SSL_VERIFY": 256},
    ),
}


@pytest.mark.parametrize(("octets", "number", "before"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_vector_ends_the_reading(octets: bytes, number: int, before: dict[str, object]) -> None:
    assert ProxyTLV.parse(octets)[0] == before
    for read in (lambda: ProxyTLV.parse(octets, partial_ok=False), lambda: ProxyTLV.from_raw(octets)):
        with pytest.raises(MalformedTLV, match=f"TLV 0x{number:02X} is malformed!"):
            read()
    data = valid(v2(INET + octets, family=1, protocol=1))
    assert data.tlv is None
    assert data.rest == octets


def test_ssl_within_ssl_without_end_is_no_deep_recursion() -> None:
    octets = b""
    while len(octets) < 65000:
        octets = tlv(0x20, SSL_HEAD + octets)
    assert valid(v2(INET + octets, family=1, protocol=1)).tlv is None


def test_no_octets_are_no_vectors() -> None:
    assert ProxyTLV.from_raw(b"") is None
    assert ProxyTLV.parse(b"") == ({}, {})


@given(st.binary(max_size=80) | vectors)
def test_any_octets_as_vectors(octets: bytes) -> None:
    found, places = ProxyTLV.parse(octets)
    assert ProxyTLV.parse(memoryview(octets)) == ProxyTLV.parse(bytearray(octets)) == (found, places)
    for name, at in places.items():
        assert octets[at] == (ProxyTLV.name_to_num(name) or int(name[1:], 16))


def test_vectors_are_a_dict_with_attributes() -> None:
    one = ProxyTLV.from_raw(tlv(1, b"h2") + tlv(2, b"name"))
    other = ProxyTLV.from_raw(tlv(2, b"name") + tlv(1, b"h2"))
    assert one is not None
    assert one == other == {"ALPN": b"h2", "AUTHORITY": b"name"}
    assert (one.ALPN, one.NETNS) == (b"h2", None)
    assert one.same_attribs(ALPN=b"h2", AUTHORITY=b"name")
    assert not one.same_attribs(ALPN=b"h3")
    assert not one.same_attribs(NETNS=None)
    with pytest.raises(ValueError, match=r"mismatch:ALPN actual=b'h2' expect=b'h3'"):
        one.same_attribs(_raises=True, ALPN=b"h3")
    with pytest.raises(KeyError, match="notfound:NETNS"):
        one.same_attribs(_raises=True, NETNS=None)
    for twin in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert (twin, twin.tlv_loc) == (one, one.tlv_loc)


# --- the data -----------------------------------------------------------------------------------------------


def test_data_are_true_when_they_are_valid() -> None:
    data = ProxyData(version=None)
    data.protocol = PROTO.STREAM
    assert not data
    data.version = 1
    assert data
    data.error = "wrong"
    assert not data
    assert not ProxyData(version=2)
    assert data.same_attribs(version=1, error="wrong")
    assert not data.same_attribs(version=2)
    assert not data.same_attribs(strange=None)
    with pytest.raises(ValueError, match="mismatch:version actual=1 expect=2"):
        data.same_attribs(_raises=True, version=2)
    with pytest.raises(KeyError, match="notfound:strange"):
        data.same_attribs(_raises=True, strange=None)
    assert repr(data).startswith("ProxyData(version=1, command=None, family=None, protocol=<PROTO.STREAM: 1>")
    with pytest.raises(AttributeError):
        data.strange = 1  # type: ignore[attr-defined]


def test_a_look_at_the_vectors_changes_nothing_else() -> None:
    one, other = (valid(v2(INET + tlv(1, b"h2"), family=1, protocol=1)) for _ in range(2))
    assert one.tlv is one.tlv == {"ALPN": b"h2"}
    assert one == other


@pytest.mark.parametrize(("prefix", "text"), [(True, "PROXY error: why"), (False, "why")])
def test_an_error_is_logged(prefix: bool, text: str, caplog: pytest.LogCaptureFixture) -> None:
    data = ProxyData(version=2)
    assert data.with_error("why", prefix) is data
    assert data.error == "why"
    assert caplog.record_tuples == [("mail.debug", logging.WARNING, text)]


# --- get_proxy ----------------------------------------------------------------------------------------------


class SlowReader:
    """A reader whose octets come one by one."""

    def __init__(self, octets: bytes) -> None:
        self.octets = octets

    async def read(self, count: int = -1, /) -> bytes:
        return self._take(1)

    async def readexactly(self, count: int, /) -> bytes:
        return self._take(count)

    async def readuntil(self, separator: bytes = b"\n", /) -> bytes:
        return self._take(self.octets.find(separator) + 1 or len(self.octets))

    def _take(self, count: int) -> bytes:
        taken, self.octets = self.octets[:count], self.octets[count:]
        return taken


HEADERS = [
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", ""),
    (b"PROXY UNKNOWN\r\n", ""),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n", "PROXYv1 unrecognized extraneous data"),
    (v2(), ""),
    (v2(INET6 + b"rest", family=2, protocol=1), ""),
    (v2(INET, family=2, protocol=1), "PROXYv2 truncated address"),
]


@pytest.mark.parametrize(("header", "error"), HEADERS)
def test_get_proxy_reads_just_the_header(header: bytes, error: str) -> None:
    async def read() -> None:
        stream = asyncio.StreamReader()
        stream.feed_data(header + BEHIND)
        stream.feed_eof()
        slow = SlowReader(header + BEHIND)
        data = await get_proxy(stream)
        assert data == await get_proxy(slow) == parse(header)[0]
        assert data.error == error
        assert await stream.read() == slow.octets == BEHIND

    asyncio.run(read())


@pytest.mark.parametrize(("octets", "error"), CUTS)
def test_get_proxy_tells_of_an_end(octets: bytes, error: str) -> None:
    async def read() -> None:
        assert (await get_proxy(SlowReader(octets))).error == error
        stream = asyncio.StreamReader()
        stream.feed_data(octets)
        stream.feed_eof()
        data = await get_proxy(stream)
        assert not data
        assert data.error.startswith("PROXY exception: ")

    asyncio.run(read())


def test_get_proxy_tells_of_a_failed_read(caplog: pytest.LogCaptureFixture) -> None:
    async def read() -> ProxyData:
        stream = asyncio.StreamReader()
        stream.set_exception(ConnectionResetError("gone"))
        return await get_proxy(stream)

    assert asyncio.run(read()).error == "PROXY exception: gone"
    assert caplog.record_tuples == [("mail.debug", logging.WARNING, "PROXY exception: gone")]


def test_get_proxy_can_be_cancelled() -> None:
    async def read() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(get_proxy(asyncio.StreamReader()), 0.001)

    asyncio.run(read())
