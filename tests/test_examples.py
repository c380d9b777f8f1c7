"""The examples run; the documents hold where a machine can tell: code compiles, links lead somewhere."""

import ast
import contextlib
import os
import re
import signal
import smtplib
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path

import pytest
from processes import await_true, interruptible

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGES = sorted(
    path for path in ROOT.glob("**/*.md") if ".venv" not in path.parts and "build" not in path.parts
)
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
DEADLINE = 20.0

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="examples/ is not beside these tests")


class Example:
    """An example that runs as a process of its own; its output is read line by line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self.host, self.port = "", 0

    def line(self, pattern: str) -> "re.Match[str]":
        """The next line of output in which ``pattern`` is found."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"{pattern!r} was not printed, but: {''.join(self.lines)}")

    def send(self, message: EmailMessage, sender: str, *recipients: str) -> dict[str, tuple[int, bytes]]:
        with smtplib.SMTP(self.host, self.port, timeout=DEADLINE) as client:
            return client.sendmail(sender, recipients, message.as_bytes(policy=SMTP))


@contextlib.contextmanager
def _run(
    name: str | Path, *arguments: str, cwd: Path, end: signal.Signals = signal.SIGTERM
) -> Iterator[Example]:
    """Runs a program on a free port, and ends it with a signal, which must leave status 0 and no traceback."""
    with interruptible():
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / name), "127.0.0.1:0", *arguments],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
    watchdog = threading.Timer(DEADLINE, process.kill)  # ends a read that would wait for ever
    watchdog.start()
    example = Example(process)
    try:
        found = example.line(r"listen\w* on (127\.0\.0\.1):(\d+)")
        example.host, example.port = found[1], int(found[2])
        yield example
        process.send_signal(end)
        rest = process.stdout.read() if process.stdout is not None else ""
        assert process.wait() == 0, "".join(example.lines) + rest
        assert "Traceback" not in "".join(example.lines) + rest
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _mail(text: str = "hello\n", attachment: str | None = None) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = "a test"
    message.set_content(text)
    if attachment is not None:
        message.add_attachment(b"MZ", maintype="application", subtype="octet-stream", filename=attachment)
    return message


def test_every_example_is_tested() -> None:
    tested = {
        "accept_some.py",
        "auth.py",
        "blocking_store.py",
        "bonzo_application.py",
        "bonzo_callback.py",
        "bonzo_hello.py",
        "bonzo_server.py",
        "controller.py",
        "embedded.py",
        "fastsmtp.toml",
        "lmtp.py",
        "print_mail.py",
    }
    assert {path.name for path in EXAMPLES.iterdir() if path.name != "__pycache__"} == tested


@pytest.mark.parametrize(
    "name",
    sorted(path.name for path in EXAMPLES.glob("*.py") if path.name not in {"auth.py", "accept_some.py"}),
)
def test_ctrl_c_ends_an_example_without_a_traceback(name: str, tmp_path: Path) -> None:
    with (
        _run(name, cwd=tmp_path, end=signal.SIGINT) as example,
        smtplib.SMTP(example.host, example.port, timeout=DEADLINE) as client,
    ):
        assert client.noop()[0] == 250  # a worker is there, and so are the handlers of signals


def test_print_mail_prints_envelope_and_message(tmp_path: Path) -> None:
    with _run("print_mail.py", cwd=tmp_path) as example:
        assert example.send(_mail(), "me@example.org", "you@example.com", "two@example.com") == {}
        example.line(r"^from me@example.org to you@example.com, two@example.com, \d+ octets$")
        example.line("^Subject: a test$")
        example.line("^hello$")


def test_accept_some_refuses_recipients_and_programs_and_keeps_the_rest(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    large = "x" * 70 + "\n"
    with _run("accept_some.py", str(kept), cwd=tmp_path) as example:
        refused = example.send(
            _mail(), "me@example.org", "ann@example.com", "eve@example.com", "a@b.example", "Postmaster"
        )
        assert {address: reply[0] for address, reply in refused.items()} == {
            "eve@example.com": 550,
            "a@b.example": 550,
        }
        with pytest.raises(smtplib.SMTPDataError) as caught:
            example.send(_mail(attachment="Run.EXE"), "me@example.org", "ann@example.com")
        assert caught.value.smtp_code == 554
        example.send(_mail(large * 20_000), "me@example.org", "ann@example.com")  # beyond the spill threshold
    sizes = sorted(path.stat().st_size for path in kept.iterdir())
    assert len(sizes) == 2
    assert sizes[0] < 1000
    assert sizes[1] > len(large) * 20_000


def test_blocking_store_keeps_mail_in_sqlite(tmp_path: Path) -> None:
    with _run("blocking_store.py", "mail.db", cwd=tmp_path) as example:
        for number in range(3):
            example.send(_mail(f"number {number}\n"), f"s{number}@example.org", "ann@example.com")
    with contextlib.closing(sqlite3.connect(tmp_path / "mail.db")) as database:
        rows = database.execute("SELECT mail_from, rcpt_tos, content FROM mail ORDER BY id").fetchall()
    assert [row[:2] for row in rows] == [(f"s{n}@example.org", '["ann@example.com"]') for n in range(3)]
    for number, row in enumerate(rows):
        assert row[2].endswith(b"\r\n\r\nnumber %d\r\n" % number)


def test_embedded_serves_beside_a_task(tmp_path: Path) -> None:
    with _run("embedded.py", cwd=tmp_path) as example:
        with smtplib.SMTP(example.host, example.port, timeout=DEADLINE) as client:
            client.ehlo()
            client.mail("me@example.org")
            client.rcpt("you@example.com")
            assert client.data(_mail().as_bytes(policy=SMTP)) == (250, b"2.0.0 OK: message 1")
        example.line(r"^message 1: \d+ octets from me@example.org$")


def test_controller_serves_beside_a_program_without_asyncio(tmp_path: Path) -> None:
    with _run("controller.py", cwd=tmp_path) as example:
        refused = example.send(_mail(), "me@example.org", "you@example.com", "you@example.net")
        assert refused == {"you@example.net": (550, b"5.7.1 No relaying here")}
        example.line(r"^\d+ octets from me@example.org$")


def test_bonzo_hello_prints_messages(tmp_path: Path) -> None:
    with _run("bonzo_hello.py", cwd=tmp_path) as example:
        assert example.send(_mail(), "me@example.org", "you@example.com") == {}
        example.line("^Subject: a test$")
        example.line("^hello$")


def test_bonzo_server_prints_subjects(tmp_path: Path) -> None:
    with _run("bonzo_server.py", cwd=tmp_path) as example:
        assert example.send(_mail(), "me@example.org", "you@example.com") == {}
        example.line("^a test$")


def test_bonzo_callback_prints_requests(tmp_path: Path) -> None:
    with _run("bonzo_callback.py", cwd=tmp_path) as example:
        assert example.send(_mail(), "me@example.org", "you@example.com") == {}
        example.line(r"^SMTPRequest \(remote_ip='127.0.0.1', .* mail='me@example.org', .*\) a test$")


def test_bonzo_application_has_processes_and_chooses_replies(tmp_path: Path) -> None:
    with _run("bonzo_application.py", "2", cwd=tmp_path) as example:
        refused = example.send(_mail(), "me@example.org", "you@example.com", "you@example.net")
        assert refused == {"you@example.net": (550, b"No relaying here")}
        example.line(r"^\d+ octets from me@example.org$")
        with smtplib.SMTP(example.host, example.port, timeout=DEADLINE) as client:
            client.ehlo()
            client.mail("me@example.org")
            client.rcpt("you@example.com")
            code, text = client.data(_mail().as_bytes(policy=SMTP))
            assert code == 250
            assert re.fullmatch(rb"queued as \d+-\d+", text)


def test_lmtp_replies_for_each_mailbox(tmp_path: Path) -> None:
    for name in ("ann", "bob"):
        (tmp_path / "mail" / name).mkdir(parents=True)
    content = _mail().as_bytes(policy=SMTP)
    with (
        _run("lmtp.py", "mail", cwd=tmp_path) as example,
        smtplib.LMTP(example.host, example.port, timeout=DEADLINE) as client,
    ):
        client.ehlo()
        client.mail("me@example.org")
        for name in ("ann", "eve", "bob"):
            assert client.rcpt(f"{name}@example.com")[0] == 250
        assert client.docmd("DATA")[0] == 354
        client.send(content + b".\r\n")
        assert [client.getreply()[0] for _ in range(3)] == [250, 550, 250]
    for name in ("ann", "bob"):
        (kept,) = (tmp_path / "mail" / name).iterdir()
        assert kept.read_bytes() == content


def test_auth_takes_mail_of_users_only(tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with (
        _run("auth.py", "both.pem", "both.pem", cwd=tmp_path) as example,
        smtplib.SMTP(example.host, example.port, timeout=DEADLINE) as client,
    ):
        client.ehlo()
        assert "auth" not in client.esmtp_features
        assert client.mail("ann@example.com")[0] == 530
        client.starttls(context=trusting)
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("ann", "guessed")
        assert client.mail("ann@example.com")[0] == 530
        assert client.login("ann", "9Jk2-vTq7-Lw5x-Rb3m")[0] == 235
        assert client.mail("bob@example.com")[0] == 553
        assert client.sendmail("ann@example.com", ["you@example.org"], _mail().as_bytes(policy=SMTP)) == {}
        example.line("^ann@example.com to you@example.org$")


def test_the_configuration_passes_check_config(tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    certificate = trustme.CA().issue_cert("mx.example.com")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    done = subprocess.run(
        # What lies on a real machine only is set here; flags win over the file.
        [
            *(sys.executable, "-m", "fastsmtp", "check-config", "--config", EXAMPLES / "fastsmtp.toml"),
            *("--tls-certificate", tmp_path / "both.pem", "--tls-key", tmp_path / "both.pem"),
            *("--spill-directory", tmp_path),
        ],
        env={key: value for key, value in os.environ.items() if not key.startswith("FASTSMTP_")},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert 'deliver = "maildir:/srv/mail/{domain}/{local}"' in done.stdout


def _code_blocks(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text(encoding="utf-8")
    for block in re.finditer(r"^( *)```python\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        code = re.sub(f"^{block[1]}", "", block[2], flags=re.MULTILINE)
        yield text.count("\n", 0, block.start(2)), code


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_in_the_documents_compiles(path: Path) -> None:
    for line, code in _code_blocks(path):
        compile(
            "\n" * line + code,  # so that an error tells the line of the document
            str(path),
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )


def _snippet(path: Path, mark: str) -> str:
    """The Python in a document that has ``mark`` in it, on a port that is free."""
    (code,) = (code for _, code in _code_blocks(path) if mark in code)
    return re.sub(r'"127\.0\.0\.1:\d+"', '"127.0.0.1:0"', re.sub(r"port=\d+", "port=0", code))


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_program_in_the_readme_takes_mail_and_ends_when_messages_under_way_are_finished(
    end: signal.Signals, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(_snippet(ROOT / "README.md", "fastsmtp.serve("))
    with _run(program, cwd=tmp_path, end=end) as example:
        refused = example.send(_mail(), "me@example.org", "you@example.com", "you@example.net")
        assert refused == {"you@example.net": (550, b"5.7.1 not relaying to that domain")}
        example.line(r"^me@example.org sent \d+ bytes to \['you@example.com'\]$")
        with smtplib.SMTP(example.host, example.port, timeout=DEADLINE) as client:
            client.ehlo()
            client.mail("me@example.org")
            client.rcpt("you@example.com")
            assert client.docmd("DATA")[0] == 354
            example.process.send_signal(end)
            await_true(lambda: _refuses(example), "the server accepts no more connections")
            client.send(b"Subject: late\r\n\r\ntext\r\n.\r\n")
            assert client.getreply()[0] == 250
        example.line(r"^me@example.org sent 23 bytes to \['you@example.com'\]$")


def _refuses(example: Example) -> bool:
    """Whether the server accepts no more connections."""
    try:
        socket.create_connection((example.host, example.port), timeout=DEADLINE).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_program_for_aiosmtpd_in_the_readme_takes_mail(tmp_path: Path) -> None:
    code = _snippet(ROOT / "README.md", "fastsmtp.controller")
    program = code.replace("controller.start()\n", "controller.start()\nprint(controller.port, flush=True)\n")
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        watchdog = threading.Timer(DEADLINE, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            example = Example(process)
            example.host, example.port = "127.0.0.1", int(process.stdout.readline())
            assert example.send(_mail(), "me@example.org", "you@example.com") == {}
            out, _ = process.communicate("\n", timeout=DEADLINE)
        finally:
            watchdog.cancel()
            process.kill()
    assert process.returncode == 0
    assert re.fullmatch(
        r"(Return ends it\. )?me@example\.org \['you@example\.com'\] \d+\n(Return ends it\. )?", out
    )


INSTALLED_FROM = re.compile(r"-e|-r|-q|--\S+|rich|build|'?\.(\[[\w,]+\])?'?|(\S*/)?dist/fastsmtpd-\*\.whl")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_page_has_somebody_install_a_project_of_the_same_name(path: Path) -> None:
    """The package index has another fastsmtp, and nobody keeps anybody from uploading a fastsmtpd."""
    text = path.read_text(encoding="utf-8")
    for line in re.findall(r"pip install +([^\n`)]*)", text):
        for word in line.partition(" #")[0].split():
            assert INSTALLED_FROM.fullmatch(word), f"pip install {line}"


def _anchors(path: Path) -> set[str]:
    """The fragments of a document, made of its headings as GitHub does."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_the_documents_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (fragment and file.suffix == ".md" and fragment not in _anchors(file)):
            broken.append(target)
    assert broken == []


def test_alert_rules_name_real_series() -> None:
    rules = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    series = set(re.findall(r"`(fastsmtp_\w+)`", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")))
    expressions = re.findall(r"^ *expr: (.*)$", rules, re.MULTILINE)
    assert len(expressions) >= 4
    used = {name for line in expressions for name in re.findall(r"fastsmtp_\w+", line)}
    assert used
    assert used <= series


def test_the_unit_starts_what_the_readme_installs_and_has_the_folder_of_its_socket() -> None:
    deployment = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    unit = dict(re.findall(r"^(ExecStart|RuntimeDirectory)=(.*)$", deployment, re.MULTILINE))
    environment, _, command = unit["ExecStart"].split()[0].rpartition("/bin/")
    assert command == "fastsmtp"
    assert f"python3 -m venv {environment}\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"`unix:/run/{unit['RuntimeDirectory']}/" in deployment
