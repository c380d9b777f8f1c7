"""The oracle against transcripts worked out by hand: those of the RFCs, and every dialog of the folder."""

import pytest
from dialogs import Dialog, load_all, read_replies, unescape
from oracle import Limits, Message, is_ipv4, is_ipv6, oracle

HELLO = b"EHLO bar.com\r\n"
TRANSACTION = HELLO + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
ACCEPTED = [(220, ""), (250, ""), (250, "2.1.0"), (250, "2.1.5"), (354, "")]


@pytest.mark.parametrize("dialog", load_all(), ids=str)
def test_a_dialog_goes_as_it_is_written(dialog: Dialog) -> None:
    result = oracle(dialog.wire, Limits(**dialog.settings))
    assert [code for code, _ in result.replies] == [reply.code for reply in dialog.replies]
    for (_, enhanced), expected in zip(result.replies, dialog.replies, strict=True):
        assert expected.enhanced in ("", enhanced)
    assert [(m.mail_from, m.rcpt_tos, m.content) for m in result.messages] == dialog.messages
    assert result.closed == dialog.closed


def test_rfc_5321_appendix_d_1() -> None:
    wire = (
        b"EHLO bar.com\r\nMAIL FROM:<Smith@bar.com>\r\nRCPT TO:<Jones@foo.com>\r\nRCPT TO:<Brown@foo.com>\r\n"
        b"DATA\r\nBlah blah blah...\r\n...etc. etc. etc.\r\n.\r\nQUIT\r\n"
    )
    result = oracle(wire)
    assert result.replies == [
        (220, ""),
        (250, ""),
        (250, "2.1.0"),
        (250, "2.1.5"),
        (250, "2.1.5"),
        (354, ""),
        (250, "2.0.0"),
        (221, "2.0.0"),
    ]
    content = b"Blah blah blah...\r\n..etc. etc. etc.\r\n"
    assert result.messages == [Message("Smith@bar.com", ["Jones@foo.com", "Brown@foo.com"], content)]
    assert result.closed


def test_rfc_1870_section_6_2_a_declared_size_over_the_limit() -> None:
    result = oracle(
        HELLO + b"MAIL FROM:<ned@thor.innosoft.com> SIZE=500001\r\n", Limits(max_message_size=500000)
    )
    assert result.replies[-1] == (552, "5.3.4")


def test_rfc_2920_section_4_2_data_with_no_valid_recipient() -> None:
    wire = HELLO + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<nsb+thor.innosoft.com>\r\nDATA\r\n"
    assert oracle(wire).replies[-3:] == [(250, "2.1.0"), (501, "5.1.3"), (554, "5.5.1")]


def test_the_dot_line_right_after_data_ends_an_empty_message() -> None:
    result = oracle(TRANSACTION + b".\r\n")
    assert result.replies == [*ACCEPTED, (250, "2.0.0")]
    assert result.messages == [Message("a@b.example", ["c@d.example"], b"")]


@pytest.mark.parametrize("end", [b"\n.\n", b"\r.\r", b"\n.\r\n", b"\r\n.\n", b"\r\n.\r", b"\r\n.\0\r\n"])
def test_nothing_but_crlf_dot_crlf_ends_data(end: bytes) -> None:
    result = oracle(TRANSACTION + b"text" + end + b"MAIL FROM:<evil@b.example>\r\n")
    assert result.replies == ACCEPTED
    assert result.messages == []


@pytest.mark.parametrize(
    ("mode", "content"),
    [("normalize", b"a\r\nb\r\n.c\r\n"), ("keep", b"a\nb\r\r\n.c\r\n"), ("reject", None)],
)
def test_stray_newlines_by_mode(mode: str, content: bytes | None) -> None:
    result = oracle(TRANSACTION + b"a\nb\r\r\n..c\r\n.\r\n", Limits(bare_newline=mode))
    assert [message.content for message in result.messages] == ([] if content is None else [content])
    assert result.replies[-1] == ((550, "5.5.2") if content is None else (250, "2.0.0"))


def test_a_line_of_exactly_the_limit_is_taken_and_one_octet_more_is_not() -> None:
    limits = Limits(max_command_line=512)
    assert oracle(b"NOOP ".ljust(510, b"x") + b"\r\n", limits).replies == [(220, ""), (250, "2.0.0")]
    assert oracle(b"NOOP ".ljust(511, b"x") + b"\r\n", limits).replies == [(220, ""), (500, "5.5.2")]
    assert oracle(b"NOOP ".ljust(511, b"x"), limits).replies == [(220, "")]


def test_each_bare_newline_is_answered_at_once_and_no_command_is_done_on_its_line() -> None:
    assert oracle(b"NOOP\n").replies == [(220, ""), (500, "5.5.2")]
    assert oracle(b"NOOP\nNOOP\nNOOP").replies == [(220, ""), (500, "5.5.2"), (500, "5.5.2")]
    assert oracle(b"NOOP\nNOOP\r\nNOOP\r\n").replies == [(220, ""), (500, "5.5.2"), (250, "2.0.0")]


@pytest.mark.parametrize("good", [b"0.0.0.0", b"255.255.255.255", b"192.0.2.001"])
def test_an_ipv4_literal_that_is_one(good: bytes) -> None:
    assert is_ipv4(good)


@pytest.mark.parametrize(
    "bad", [b"", b"1.2.3", b"1.2.3.4.5", b"256.0.0.1", b"1.2.3.", b"1.2.3.-4", b"0001.0.0.0"]
)
def test_an_ipv4_literal_that_is_none(bad: bytes) -> None:
    assert not is_ipv4(bad)


@pytest.mark.parametrize(
    "good",
    [
        b"::",
        b"::1",
        b"1::",
        b"1:2:3:4:5:6:7:8",
        b"1:2:3::4:5:6",
        b"1:2:3:4:5:6:1.2.3.4",
        b"::1.2.3.4",
        b"1::2:1.2.3.4",
    ],
)
def test_an_ipv6_literal_that_is_one(good: bytes) -> None:
    assert is_ipv6(good)


NO_IPV6 = """
: ::: 1 1:2:3:4:5:6:7 1:2:3:4:5:6:7:8:9 1::2::3 12345:: g:: :1:: 1::1: 1:2:3:4:5:6:7:: 1.2.3.4 :1.2.3.4
1:2:3:4:5:6:7:1.2.3.4 1:2:3:4:5::1.2.3.4 ::1.2.3.4:1 ::1.2.3.256 ::%1
"""


@pytest.mark.parametrize("bad", ["", *NO_IPV6.split()])
def test_an_ipv6_literal_that_is_none(bad: str) -> None:
    assert not is_ipv6(bad.encode())


def test_the_notation_of_octets_in_dialogs() -> None:
    assert unescape(r"a\r\n\t\0\\n\xff\{xy*2}\{\r*3}é") == b"a\r\n\t\0\\n\xffxyxy\r\r\r\xc3\xa9"


def test_replies_are_read_as_codes_and_lines() -> None:
    replies, rest = read_replies(
        b"250-mx.example\r\n250 SIZE 1\r\n250 2.1.0 OK\r\n354 go\r\n250-2.0.0 a\r\n25"
    )
    assert [(reply.code, reply.enhanced, len(reply.lines)) for reply in replies] == [
        (250, "", 2),
        (250, "2.1.0", 1),
        (354, "", 1),
    ]
    assert rest == b"250-2.0.0 a\r\n25"


@pytest.mark.parametrize(
    "bad", [b"hello\r\n", b"250 5.1.0 OK\r\n", b"250-2.0.0 a\r\n250 b\r\n", b"250-a\r\n251 b\r\n"]
)
def test_what_is_not_a_reply_is_not_read_as_one(bad: bytes) -> None:
    with pytest.raises(ValueError, match="reply"):
        read_replies(bad)
