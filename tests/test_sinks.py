"""Sinks by URL: what is made of one, and one clear line for every mistake in it."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fastsmtp.errors import ConfigError
from fastsmtp.sinks import make_sink
from fastsmtp.sinks.discard import Discard
from fastsmtp.sinks.mailboxes import Mailboxes, split_address
from fastsmtp.sinks.maildir import Maildir


def test_discard_takes_everything() -> None:
    async def deliver() -> object:
        sink = make_sink("discard:", hostname="mx.example")
        assert isinstance(sink, Discard)
        assert not sink.keeps
        await sink.open()
        nothing: Any = SimpleNamespace()
        assert sink.head(nothing, nothing, b"") == b""
        queue_id = sink.deliver(nothing, nothing)
        await sink.close()
        return queue_id

    assert asyncio.run(deliver()) == "discarded"


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("/var/mail", "'/var/mail' is not a sink URL; write for example maildir:./mail or discard:"),
        ("maildr:/x", "'maildr' in 'maildr:/x' is not a kind of sink; did you mean 'maildir'?"),
        ("smtp:/x", "'smtp' in 'smtp:/x' is not a kind of sink; there are: discard, maildir"),
        ("discard:x", "discard: takes no path; remove 'x'"),
        ("discard:?sync=no", "discard: has no option 'sync'; it takes none"),
        ("maildir:", "maildir: needs a path; write for example maildir:./mail"),
        ("maildir:/x?snyc=no", "maildir: has no option 'snyc'; did you mean 'sync'?"),
        ("maildir:/x?sync=maybe", "maildir: sync=maybe is neither yes nor no"),
        ("maildir:/x?trace=", "maildir: trace= is neither yes nor no"),
        (
            "maildir:/x?sync=no&sync=no",
            "option 'sync' stands twice in 'maildir:/x?sync=no&sync=no'; remove one",
        ),
        ("maildir:/x?mode=999", "maildir: mode=999 is no mode of a file; write 600, 640 or 660"),
        ("maildir:/x?mode=777", "maildir: mode=777 is no mode of a file; write 600, 640 or 660"),
        ("maildir:/x?mode=-600", "maildir: mode=-600 is no mode of a file; write 600, 640 or 660"),
        (
            "maildir://host/x",
            "'maildir://host/x' names a host; write one slash, or three, before an absolute path",
        ),
        ("maildir:/x%00y", "the path in 'maildir:/x%00y' holds a NUL; remove it"),
    ],
)
def test_a_mistake_in_a_url_gets_one_line_that_says_what_to_do(url: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_sink(url, hostname="mx.example")
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("template", "hint"),
    [
        ("/m/{user}", "unknown placeholder {user}"),
        ("/m/{lokal}", "did you mean {local}?"),
        ("/m/{local", "a brace without its partner"),
        (
            "/m/{domain}-{local}",
            "two placeholders in '{domain}-{local}' could make one name of two addresses",
        ),
        ("/m/{domain}{local}", "could make one name of two addresses"),
        ("/m/{local}~{domain}", "could make one name of two addresses"),
        ("/m/" + "x" * 250 + "{local}", "leaves no room for an address"),
    ],
)
def test_a_template_that_could_not_work_is_refused(template: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_sink(f"maildir:{template}", hostname="mx.example")
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("maildir:/var/mail", b"/var/mail"),
        ("maildir:///var/mail/", b"/var/mail"),
        ("maildir:/a%20b%3Fc", b"/a b?c"),
        ("maildir:/b%FCcher", b"/b\xfccher"),
        ("maildir:/var/mail/{domain}/{local}", b"/var/mail"),
        ("maildir:/var/{local}@{domain}/Maildir?sync=no", b"/var"),
    ],
)
def test_the_path_of_a_url(url: str, root: bytes) -> None:
    sink = make_sink(url, hostname="mx.example")
    assert isinstance(sink, Maildir)
    assert sink.keeps
    assert sink._boxes.root == root


def test_a_relative_path_is_taken_from_where_the_program_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sink = make_sink("maildir:mail", hostname="mx.example")
    monkeypatch.chdir("/")
    assert isinstance(sink, Maildir)
    assert sink._boxes.root == os.fsencode(tmp_path / "mail")


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("ann@a.example", ("ann", "a.example")),
        ("Ann@[IPv6:::1]", ("Ann", "[IPv6:::1]")),
        ("ann@[tag:a@b]", ("ann", "[tag:a@b]")),
        ('"ann"@a.example', ("ann", "a.example")),
        (r'"a\"@\\b"@a.example', (r'a"@\b', "a.example")),
        ("PostMaster", ("postmaster", "")),
        ("POSTMASTER@a.example", ("postmaster", "a.example")),
        ("jörg@bücher.example", ("jörg", "bücher.example")),
        ('"open', ('"open', "")),
    ],
)
def test_an_address_is_split_as_it_is_meant(address: str, parts: tuple[str, str]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    ("address", "folder"),
    [
        ("ann@A.Example", "a.example/ann"),
        ("Ann@a.example", "a.example/Ann"),
        ("Postmaster", "mx.example/postmaster"),
        ('"../../etc"@a.example', "a.example/%2E.%2F..%2Fetc"),
        ('".."@a.example', "a.example/%2E."),
        ('"."@..', "%2E/%2E"),
        ('""@a.example', "a.example/%~"),
        ('"a b%"@a.example', "a.example/a%20b%25"),
        ('"a\\\0b"@a.example', "a.example/a%00b"),
        ("ann@[IPv6:2001:DB8::1]", "%5Bipv6%3A2001%3Adb8%3A%3A1%5D/ann"),
        ("ann@a.example.", "a.example/ann"),
        ("jörg@BÜCHER.example", "xn--bcher-kva.example/jörg"),
        ("jo\u0308rg@bu\u0308cher.example.", "xn--bcher-kva.example/jo\u0308rg"),
        ("jörg@XN--BCHER-KVA.example", "xn--bcher-kva.example/jörg"),
        ("ann@bücher。example", "xn--bcher-kva.example/ann"),
        ("ann@ｂücher.ｅｘａｍｐｌｅ．", "xn--bcher-kva.example/ann"),  # noqa: RUF001 - what UTS 46 maps
        ("ann@straße.example", "xn--strae-oqa.example/ann"),
        ("ann@STRASSE.example", "strasse.example/ann"),
        ("ann@under_score.bücher.example", "under_score.xn--bcher-kva.example/ann"),
        ("ann@☕.example", "xn--53h.example/ann"),
        ("ann@bü\u2028cher.example.", "bü%E2%80%A8cher.example/ann"),
        ("ann@bü\udcff.Example.", "bü%FF.example/ann"),
        ("नमस्ते@a.example", "a.example/नमस्ते"),
        ("用户@例子.example", "xn--fsqu00a.example/用户"),
        ("a\udcff@a.example", "a.example/a%FF"),
        ("a\u2028b@a.example", "a.example/a%E2%80%A8b"),
        ("ann+tag=1_-@a.example", "a.example/ann+tag=1_-"),
    ],
)
def test_names_of_mailboxes_are_safe_and_readable(address: str, folder: str) -> None:
    assert Mailboxes("/m/{domain}/{local}", "MX.example").folder(address) == f"/m/{folder}".encode()


def test_over_long_names_are_shortened_and_stay_apart() -> None:
    boxes = Mailboxes("/m/{local}@{domain}", "mx.example")
    a, b = boxes.folder("ü" * 32 + "@" + "d" * 250), boxes.folder("ü" * 32 + "@" + "d" * 251)
    assert a != b
    for folder in a, b:
        assert len(folder.rpartition(b"/")[2]) <= 255
        folder.decode()


addresses = st.one_of(
    st.text(max_size=12).map(
        lambda local: '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"@d.example'
    ),
    st.tuples(
        st.text("ab.-_+%~=é", min_size=1, max_size=90), st.text("ab.-:[]é", min_size=1, max_size=255)
    ).map("@".join),
)


@pytest.mark.parametrize(
    "template", ["/m/{domain}/{local}", "/m/{local}@{domain}", "/m/x{domain}, {local}.d"]
)
@given(a=addresses, b=addresses)
def test_no_two_addresses_share_a_folder_and_none_leaves_its_place(template: str, a: str, b: str) -> None:
    boxes = Mailboxes(template, "mx.example")
    (local_a, domain_a), (local_b, domain_b) = split_address(a), split_address(b)
    assume((local_a, domain_a.removesuffix(".")) != (local_b, domain_b.removesuffix(".")))
    assert boxes.folder(a) != boxes.folder(b)
    for folder in boxes.folder(a), boxes.folder(b):
        levels = folder.split(b"/")
        assert len(levels) == template.count("/") + 1
        assert os.path.normpath(folder) == folder
        for level in levels[2:]:
            assert 0 < len(level) <= 255
            assert not level.startswith(b".")
            assert b"\0" not in level
