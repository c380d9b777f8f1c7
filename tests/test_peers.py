"""Each server of the benchmarks does what it says it can: takes mail in each way, gives it back, leaves nothing behind.

A real client talks to each that is installed. What the harness makes of them is in test_benchmarks.py.
"""

import shutil
import smtplib
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

# The benchmarks are no part of the package: they are found beside the tests, behind all that is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))
pytest.importorskip("benchmarks", reason="no benchmarks beside these tests")

import fastsmtp
from benchmarks.beside import Beside
from benchmarks.client import BenchmarkError, Client
from benchmarks.contender import Contender, Setup, last_words, make_certificate
from benchmarks.contenders import CONTENDERS, Fastsmtp, without_trace
from benchmarks.peers import install
from benchmarks.process import ROOT, Server, alive, cpu_between, free_ports, running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks are for Linux")

LOGIN = ("ann", "9Jk2-vTq7")
MESSAGES = [
    b"Subject: %d\r\nMessage-ID: <%d@b.example>\r\n\r\n.\r\n..\r\n.dot\r\n\tnumber %d\r\n\r\nend.\r\n"
    % (n, n, n)
    for n in range(5)
]


def able(*abilities: str) -> pytest.MarkDecorator:
    """The contenders that can do all of it, as parameters; without abilities all, else one `fastsmtp serve` for all."""
    some = [each for each in CONTENDERS if not isinstance(each, Fastsmtp) or each.name == "fastsmtp"]
    each = (
        [contender for contender in some if contender.can.issuperset(abilities)] if abilities else CONTENDERS
    )
    return pytest.mark.parametrize("contender", each, ids=[contender.name for contender in each])


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return make_certificate(tmp_path_factory.mktemp("pem"))


@pytest.fixture
def setup() -> Iterator[Setup]:
    port, counters = free_ports(2)
    with TemporaryDirectory() as folder:  # not below tmp_path, where only its owner may come
        yield Setup(port, Path(folder), counters=counters)


def stuffed(message: bytes) -> bytes:
    """The message as it goes over the wire, with its end."""
    return message.replace(b"\r\n.", b"\r\n..") + b".\r\n"


@contextmanager
def started(contender: Contender, setup: Setup) -> Iterator[Server]:
    """The server, which leaves no process."""
    gap = contender.missing()
    if gap:
        pytest.skip(gap)
    implicit = setup.tls == "implicit"
    command = contender.command(setup)
    with running(contender.name, command, setup.port, None, implicit_tls=implicit) as server:
        yield server
    assert alive(server.pid) == []


def send_all(client: smtplib.SMTP) -> None:
    for message in MESSAGES:
        assert client.sendmail("a@a.example", ["b@b.example"], message) == {}


def check_count(contender: Contender, server: Server, setup: Setup, sent: int = len(MESSAGES)) -> None:
    assert contender.count(server, setup) == (sent if "count" in contender.can else None)


@able()
def test_mail_is_taken_and_counted(contender: Contender, setup: Setup) -> None:
    with started(contender, setup) as server:
        with smtplib.SMTP("127.0.0.1", setup.port, timeout=10) as client:
            send_all(client)
        check_count(contender, server, setup)


def test_another_build_is_measured_beside_ours(setup: Setup, tmp_path: Path) -> None:
    ours = next(each for each in CONTENDERS if each.name == "fastsmtp")
    tree = Path(fastsmtp.__file__).parents[1]
    other = Beside(ours, tree)
    assert (other.name, other.like, other.can) == ("fastsmtp-beside", "fastsmtp", ours.can)
    with started(other, setup) as server:
        environment = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
        assert f"PYTHONPATH={tree}:{ROOT}".encode() in environment
        with smtplib.SMTP("127.0.0.1", setup.port, timeout=10) as client:
            send_all(client)
        check_count(other, server, setup)
    assert "no built package" in str(Beside(ours, tmp_path).missing())


@able("workers")
def test_two_workers_count_together(contender: Contender, setup: Setup) -> None:
    setup = replace(setup, workers=2)
    with started(contender, setup) as server:
        for _ in range(2):
            with smtplib.SMTP("127.0.0.1", setup.port, timeout=10) as client:
                send_all(client)
        check_count(contender, server, setup, 2 * len(MESSAGES))


@able("starttls")
def test_mail_is_taken_after_starttls(contender: Contender, setup: Setup, pem: tuple[Path, Path]) -> None:
    setup = replace(setup, tls="starttls", certificate=pem[0], key=pem[1])
    with started(contender, setup) as server:
        with smtplib.SMTP("127.0.0.1", setup.port, timeout=10) as client:
            client.starttls(context=ssl.create_default_context(cafile=pem[0]))
            send_all(client)
        check_count(contender, server, setup)


@able("tls")
def test_mail_is_taken_with_tls_from_the_first_octet(
    contender: Contender, setup: Setup, pem: tuple[Path, Path]
) -> None:
    setup = replace(setup, tls="implicit", certificate=pem[0], key=pem[1])
    context = ssl.create_default_context(cafile=pem[0])
    with started(contender, setup) as server:
        with smtplib.SMTP_SSL("127.0.0.1", setup.port, timeout=10, context=context) as client:
            send_all(client)
        check_count(contender, server, setup)


@able("auth")
def test_the_login_is_accepted_and_no_other(contender: Contender, setup: Setup) -> None:
    setup = replace(setup, login=LOGIN)
    with started(contender, setup) as server:
        with smtplib.SMTP("127.0.0.1", setup.port, timeout=10) as client:
            client.ehlo()
            for client.user, client.password in (("ann", "wrong"), ("ben", LOGIN[1])):
                with pytest.raises(smtplib.SMTPAuthenticationError):
                    client.auth("PLAIN", client.auth_plain)
        with smtplib.SMTP("127.0.0.1", setup.port, timeout=10) as client:
            client.ehlo()
            client.user, client.password = LOGIN
            code, _ = client.auth("PLAIN", client.auth_plain)
            assert code == 235
            send_all(client)
        check_count(contender, server, setup)


@able("pipelining")
def test_pipelined_mail_is_taken(contender: Contender, setup: Setup) -> None:
    envelope = b"MAIL FROM:<a@a.example>\r\nRCPT TO:<b@b.example>\r\nDATA\r\n"
    with started(contender, setup) as server:
        with Client(setup.port, timeout=10) as client:
            assert "PIPELINING" in client.command("EHLO test.example", "250")
            client.socket.sendall(envelope)
            for number, message in enumerate(MESSAGES, start=1):
                for code in ("250", "250", "354"):
                    client.reply(code)
                follows = envelope if number < len(MESSAGES) else b"QUIT\r\n"
                client.socket.sendall(stuffed(message) + follows)
                client.reply("250")
            client.reply("221")
        check_count(contender, server, setup)


@pytest.mark.parametrize(
    "contender",
    [each for each in CONTENDERS if each.name in ("postfix", "fastsmtp-maildir", "fastsmtp-maildir-nosync")],
    ids=lambda contender: contender.name,
)
def test_what_is_kept_is_what_was_sent(contender: Contender, setup: Setup) -> None:
    setup = replace(setup, keep=True)
    with started(contender, setup):
        with smtplib.SMTP("127.0.0.1", setup.port, timeout=10) as client:
            send_all(client)
        kept = contender.kept(setup)
        assert kept is not None
        assert sorted(kept) == MESSAGES


@able()
def test_its_version_is_told(contender: Contender) -> None:
    gap = contender.missing()
    if gap:
        pytest.skip(gap)
    assert any(character.isdigit() for character in contender.version())


@pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed")
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_floor_takes_pipelined_octets_however_they_are_cut(setup: Setup, size: int) -> None:
    group = b"MAIL FROM:<a@a.example>\r\nRCPT TO:<b@b.example>\r\nDATA\r\n"
    floor = CONTENDERS[0]
    with started(floor, setup) as server:
        with Client(setup.port, timeout=10) as client:
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def send(octets: bytes) -> None:
                for begin in range(0, len(octets), size):
                    client.socket.sendall(octets[begin : begin + size])

            send(group)
            for number, message in enumerate(MESSAGES, start=1):
                for code in ("250", "250", "354"):
                    client.reply(code)
                send(stuffed(message) + (group if number < len(MESSAGES) else b"QUIT\r\n"))
                client.reply("250")
            client.reply("221")
        check_count(floor, server, setup)


def test_a_maildir_message_without_its_trace_lines_is_no_result() -> None:
    assert (
        without_trace(b"Return-Path: <>\r\nDelivered-To: b\r\nReceived: x\r\n\ty\r\nA: b\r\n") == b"A: b\r\n"
    )
    with pytest.raises(BenchmarkError, match="no Delivered-To: where it was due"):
        without_trace(b"Return-Path: <>\r\nReceived: x\r\n\r\n")


def test_a_process_that_came_counts_from_its_start_and_one_that_ended_spoils_the_run() -> None:
    assert cpu_between({1: 100, 2: 50}, {1: 130, 2: 50, 3: 7}) == 37
    with pytest.raises(BenchmarkError, match="1 of the server's processes ended"):
        cpu_between({1: 100, 2: 50}, {1: 130})


def test_a_tool_that_fails_is_a_gap_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert last_words(["sh", "-c", "exit 0"]) is None
    assert last_words(["sh", "-c", "echo one >&2; echo two >&2; exit 3"]) == "sh: two"
    assert last_words([str(tmp_path / "none")]) == "none: No such file or directory"
    monkeypatch.setattr(install, "PEERS", tmp_path)
    monkeypatch.setattr(install, "NODE", tmp_path / "node")
    monkeypatch.setattr(install, "GO_SMTP", tmp_path / "go-smtp")
    monkeypatch.setattr(install, "PYTHON", tmp_path / "python")
    monkeypatch.setattr(install.sys, "executable", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install, "postfix_tool", lambda name: None)
    said: list[str] = []
    assert install.install(said.append) == {
        "postfix": "not installed; it is Debian's package postfix (apt install postfix)",
        "node": "npm is not installed (Debian: apt install npm)",
        "go-smtp": "go is not installed (Debian: apt install golang)",
        "python": "none: No such file or directory",
    }
    assert said == ["peers: postfix", "peers: node", "peers: go-smtp", "peers: python"]
