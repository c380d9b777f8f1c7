"""The command line: flags from the declaration, one line for every failure, exit statuses."""

import importlib.metadata
import itertools
import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import trustme

from fastsmtp import cli
from fastsmtp._version import __version__
from fastsmtp.config import Config

DOCS = Path(__file__).parent.parent / "docs" / "configuration.md"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("FASTSMTP_"):
            monkeypatch.delenv(name)


def _run(*arguments: str, cwd: Path | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "fastsmtp", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that is refused with status 2."""
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("fastsmtp: ")
    assert printed.err.endswith("\n")
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("fastsmtp: ").removesuffix("\n")


def test_version_imports_neither_loop_nor_metrics() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fastsmtp", "--version"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == f"fastsmtp {__version__}\n"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "fastsmtp.cli" in imported
    assert not imported & {"uvloop", "prometheus_client", "fastsmtp.service"}


@pytest.mark.parametrize("name", ["fastsmtp", "fastsmtpd"])
def test_the_installed_command_is_this_one(name: str) -> None:
    command = Path(sys.executable).with_name(name)
    if not command.exists():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == f"fastsmtp {__version__}\n"


def test_the_distribution_is_called_fastsmtpd() -> None:
    """An SMTP server of somebody else is called fastsmtp on the package index."""
    try:
        found = importlib.metadata.distribution("fastsmtpd")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed in this environment")
    assert found.version == __version__
    assert {script.name for script in found.entry_points} == {"fastsmtp", "fastsmtpd"}


def test_every_setting_has_a_flag_in_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    for key in Config.model_fields:
        assert f"--{key.replace('_', '-')}" in shown
    assert "--no-smtputf8" in shown
    assert "--config FILE" in shown
    assert "--set KEY=VALUE" in shown


def test_the_docs_are_made_from_the_declaration_of_today() -> None:
    if not DOCS.exists():
        pytest.skip("docs/ is not beside these tests")
    assert DOCS.read_text(encoding="utf-8") == cli.documentation(), (
        "run: fastsmtp config-docs > docs/configuration.md"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "missing command (see fastsmtp --help)"),
        (["serv"], "no such command 'serv'"),
        (["serve", "--listne", ":25"], "no such option '--listne'"),
        (["serve", "--workers"], "option '--workers' requires an argument"),
        (["serve", "extra"], "got unexpected extra argument (extra) (see fastsmtp serve --help)"),
        (["serve", "--set", "workers"], '--set: "workers" is not KEY=VALUE'),
        (["serve", "--set", "worker=2"], '--set: unknown key "worker"; did you mean "workers"?'),
        (["serve", "--set", "workers=x"], "--set workers: must be a whole number"),
        (
            ["serve", "--set", "workers=2", "--set", "workers=3"],
            "workers is given twice, by --set workers and",
        ),
        (
            ["serve", "--workers", "2", "--set", "workers=3"],
            "workers is given twice, by --workers and by --set",
        ),
        (
            ["serve", "--workers", "-1"],
            "--workers: must be a whole number, at least 0, at most 1024; it is '-1'",
        ),
        (["serve", "--idle-timeout", "soon"], "--idle-timeout: must be a number of seconds"),
        (["serve", "--listen", "::1:25"], '--listen: "::1:25": put an IPv6 address in brackets'),
        (
            ["serve", "--require-starttls", "--deliver", "discard:"],
            "--require-starttls: needs tls_certificate",
        ),
        (["serve", "--config", "/nosuch.toml"], "cannot read /nosuch.toml: no such file or directory"),
        (["serve"], "nothing takes the mail; set --deliver URL"),
        (["check-config"], "nothing takes the mail; set --deliver URL"),
        (["serve", "--hostname", "a\n\x1b[31mb"], r'--hostname: "a\n\x1b[31mb" cannot stand in a greeting'),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in _refused(capsys, *arguments)


def test_a_bad_variable_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTSMTP_WORKER", "2")
    assert _refused(capsys, "serve", "--deliver", "discard:") == (
        'unknown environment variable FASTSMTP_WORKER; did you mean "FASTSMTP_WORKERS"?'
    )


def test_a_variable_of_somebody_else_is_one_line_and_status_0() -> None:
    done = _run("check-config", "--deliver", "discard:", FASTSMTP_HOME="/home/mail")
    assert done.returncode == 0
    assert done.stderr == (
        "fastsmtp: warning: the environment variable FASTSMTP_HOME is ignored, it is no setting; "
        "the nearest is FASTSMTP_HOSTNAME\n"
    )


def test_what_is_wrong_with_the_sink_names_flag_variable_or_file(tmp_path: Path) -> None:
    says = "maildir: sync=maybe is neither yes nor no"
    url = "maildir:/x?sync=maybe"
    file = tmp_path / "fastsmtp.toml"
    file.write_text(f'deliver = "{url}"\n')
    for done, origin in (
        (_run("check-config", "--deliver", url), "--deliver"),
        (_run("check-config", FASTSMTP_DELIVER=url), "FASTSMTP_DELIVER"),
        (_run("check-config", "--config", str(file)), f"{file}: deliver"),
        (_run("check-config", "--set", f"deliver={url}"), "--set deliver"),
    ):
        assert (done.returncode, done.stderr) == (2, f"fastsmtp: {origin}: {says}\n")


def test_a_mailbox_that_cannot_be_made_names_flag_variable_or_file(tmp_path: Path) -> None:
    """Found by a worker."""
    (tmp_path / "file").write_text("")
    done = _run("serve", "--listen", "127.0.0.1:0", cwd=tmp_path, FASTSMTP_DELIVER="maildir:file/mail")
    assert done.returncode > 0
    assert done.stderr == (
        f"fastsmtp: FASTSMTP_DELIVER: maildir {tmp_path}/file/mail: {tmp_path}/file/mail: Not a directory; "
        "make it a folder that the user of this process may write\n"
    )


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        ("./h.py:Handler", "write the module's name, h:Handler"),
        ("h.py:Handler", "write the module's name, h:Handler"),
        ("./h:Handler", "write the module's name, h:Handler"),
        ("mail/h.py:Handler", "write the module's name, mail.h:Handler"),
        ("/srv/h.py:Handler", "write the module's name, h:Handler, and start in /srv"),
        ("../h.py:Handler", "write the module's name, h:Handler, and start in .."),
    ],
)
def test_a_handler_that_is_named_by_its_file(handler: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "h.py").write_text(
        "class Handler:\n    def handle_DATA(self, *_):\n        return '250 OK'\n"
    )
    done = _run("check-config", "--handler", handler, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f'fastsmtp: --handler: "{handler}" names a file; {says}\n')


def test_a_handler_in_a_package_that_is_called_py(tmp_path: Path) -> None:
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "py.py").write_text(
        "class H:\n    def handle_DATA(self, *_):\n        return '250 OK'\n"
    )
    assert _run("check-config", "--handler", "h.py:H", cwd=tmp_path).returncode == 0


def test_what_is_wrong_with_certificate_and_key(tmp_path: Path) -> None:
    def pem(name: str, *content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join(content))
        return path

    authority = trustme.CA()
    one, other = authority.issue_cert("mx.example"), authority.issue_cert("mx.example")
    chain = pem("chain.pem", *(blob.bytes() for blob in one.cert_chain_pems))
    key = pem("key.pem", one.private_key_pem.bytes())
    wrong = pem("wrong.pem", other.private_key_pem.bytes())
    broken = pem(
        "broken.pem", b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", key.read_bytes()
    )
    locked = tmp_path / "locked.pem"
    encrypt = ("openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked)
    subprocess.run(encrypt, check=True, timeout=30)
    for files, says in (
        ((chain,), f"--tls-certificate: {chain} has no private key; set tls_key"),
        ((chain, chain), f"--tls-key: {chain} has no private key; name the PEM file that has it"),
        (
            (chain, wrong),
            f"--tls-key: the private key in {wrong} is not that of the certificate in {chain}",
        ),
        (
            (chain, locked),
            f"--tls-key: the private key in {locked} is encrypted; write it without a password",
        ),
        (
            (key,),
            f"--tls-certificate: {key} has no certificate; name a PEM file with the whole chain",
        ),
        ((broken,), f"--tls-certificate: cannot use {broken} with the private key in {broken}: "),
    ):
        flags = dict(zip(("--tls-certificate", "--tls-key"), map(str, files), strict=False))
        done = _run("check-config", "--deliver", "discard:", *itertools.chain(*flags.items()))
        assert done.returncode == 2
        assert done.stderr.startswith(f"fastsmtp: {says}")
        assert done.stderr.count("\n") == 1
        assert says.endswith(": ") or done.stderr == f"fastsmtp: {says}\n"


def test_a_real_process_prints_no_traceback() -> None:
    done = _run("serve", "--config", "/nosuch.toml")
    assert done.returncode == 2
    assert done.stderr == "fastsmtp: cannot read /nosuch.toml: no such file or directory; correct --config\n"


def test_octets_that_are_not_utf8_are_one_line() -> None:
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"fastsmtp", b"serve", b"--deliver", b"maildir:/\xff"],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == b"fastsmtp: --deliver: must be UTF-8; it is 'maildir:/\\udcff'\n"


def test_check_config_prints_what_is_in_effect(tmp_path: Path) -> None:
    file = tmp_path / "fastsmtp.toml"
    file.write_text("workers = 2\nbacklog = 7\nrequire_starttls = false\n")
    done = _run(
        *("check-config", "--config", str(file), "--deliver", "discard:", "--workers", "3", "--no-smtputf8"),
        *("--listen", "127.0.0.1:2525", "--listen", "[::1]:2525,:26", "--set", "max_message_size=25MB"),
        FASTSMTP_MAX_ERRORS="5",
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed = tomllib.loads(done.stdout)
    assert printed["workers"] == 3
    assert printed["backlog"] == 7
    assert printed["max_errors"] == 5
    assert printed["smtputf8"] is False
    assert printed["listen"] == ["127.0.0.1:2525", "[::1]:2525", ":26"]
    assert printed["max_message_size"] == 25_000_000
    assert set(Config.model_fields) - set(printed) == {"handler", "metrics", "tls_certificate", "tls_key"}


def test_check_config_finds_the_handler_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "ingest.py").write_text(
        "class Handler:\n"
        "    async def handle_DATA(self, server, session, envelope):\n"
        "        return '250 OK'\n"
        "handler = Handler()\n"
    )
    command = Path(sys.executable).with_name("fastsmtp")
    start = [str(command)] if command.exists() else [sys.executable, "-m", "fastsmtp"]
    done = subprocess.run(
        [*start, "check-config", "--handler", "ingest:handler"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert 'handler = "ingest:handler"' in done.stdout


@pytest.mark.parametrize("command", ["check-config", "serve"])
@pytest.mark.parametrize(
    ("setting", "names"),
    [
        (["--handler", "broken:handler"], "broken"),
        (["--handler", "nosuch:handler"], "nosuch"),
        (["--handler", "json:nosuch"], "nosuch"),
        (["--deliver", "maildri:/tmp"], "maildir"),
        (["--deliver", "discard:", "--tls-certificate", "broken.py"], "broken.py"),
    ],
)
def test_what_cannot_work_is_found_at_once(
    command: str, setting: list[str], names: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("import nosuch_dependency\n")
    done = _run(command, "--listen", "127.0.0.1:0", *setting, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("fastsmtp: ")
    assert done.stderr.count("\n") == 1
    assert names in done.stderr


def test_a_busy_port_is_one_line_and_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = _run("serve", "--listen", address, "--deliver", "discard:")
    assert done.returncode == 1
    assert done.stderr == (
        f"fastsmtp: cannot listen on {address}: address already in use; "
        "stop the other server or choose another --listen\n"
    )
