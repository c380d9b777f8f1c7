"""The configuration: layers, where a value came from, and the line that tells what is wrong."""

import os
import socket
import tempfile
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp.config import Config, allowed, default_text, form, load
from fastsmtp.errors import ConfigError

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("FASTSMTP_"):
            monkeypatch.delenv(name)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "fastsmtp.toml"
    path.write_text('deliver = "discard:"\n')
    return path


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "mx.pem"
    trustme.CA().issue_cert("mx.example").private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


def _line(path: Path | None = None, flags: dict[str, str] | None = None, **overrides: object) -> str:
    """The message with which this is refused."""
    with pytest.raises(ConfigError) as caught:
        load(path, {"deliver": "discard:", **overrides}, flags=flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _of_line(**settings: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Config.of(**settings)
    return str(caught.value)


def test_defaults() -> None:
    config = Config.of()
    assert config.listen == ["127.0.0.1:8025"]
    assert (config.workers, config.deliver, config.handler, config.metrics) == (1, None, None, None)
    assert config.hostname == socket.getfqdn()
    assert config.spill_directory == Path(tempfile.gettempdir())
    assert (config.max_message_size, config.spill_threshold, config.memory_budget) == (
        32 * MIB,
        MIB,
        256 * MIB,
    )
    assert (config.max_recipients, config.max_command_line, config.max_line_length) == (1000, 2048, 0)
    assert (config.bare_newline, config.smtputf8, config.loop) == ("normalize", True, "uvloop")


def test_flags_win_over_environment_over_file_over_defaults(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml.write_text('deliver = "discard:"\nworkers = 2\nbacklog = 2\nmax_errors = 2\n')
    monkeypatch.setenv("FASTSMTP_WORKERS", "3")
    monkeypatch.setenv("FASTSMTP_BACKLOG", "3")
    config = load(toml, {"workers": "4"})
    assert (config.workers, config.backlog, config.max_errors, config.blocking_threads) == (4, 3, 2, 8)


def test_of_reads_neither_environment_nor_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTSMTP_WORKERS", "3")
    monkeypatch.setenv("FASTSMTP_NONSENSE", "3")
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("FASTSMTP_WORKERS=5\n")
    assert Config.of().workers == 1
    assert Config(deliver="discard:").workers == 1


def test_a_configuration_never_changes() -> None:
    config = Config.of()
    with pytest.raises(ValueError, match="frozen"):
        config.workers = 2


def test_every_setting_is_described_and_its_default_is_allowed() -> None:
    for key, field in Config.model_fields.items():
        assert field.description, key
        assert allowed(field).startswith(form(field).allowed), key
        default = default_text(field)
        if default and not form(field).default:
            assert getattr(Config.of(**{key: default}), key) == getattr(Config.of(), key), key


def test_every_setting_can_be_given_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, certificate: Path
) -> None:
    values = {
        "listen": "127.0.0.1:0, [::1]:0",
        "workers": "0",
        "deliver": "discard:",
        "handler": "a:b",
        "metrics": ":9125",
        "hostname": "mx.example",
        "max_message_size": "1MiB",
        "max_recipients": "100",
        "max_command_line": "512",
        "max_line_length": "998",
        "max_errors": "1",
        "max_junk_commands": "0",
        "addresses": "strict",
        "bare_newline": "reject",
        "smtputf8": "no",
        "spill_threshold": "0",
        "spill_directory": str(certificate.parent),
        "memory_budget": "1.5GiB",
        "min_data_rate": "0",
        "idle_timeout": "0.5",
        "transaction_timeout": "60",
        "handler_timeout": "60",
        "drain_timeout": "0",
        "worker_timeout": "0",
        "blocking_threads": "1",
        "tls_certificate": str(certificate),
        "tls_key": str(certificate),
        "require_starttls": "true",
        "tls_handshake_timeout": "1",
        "backlog": "1",
        "loop": "asyncio",
        "log_level": "WARNING",
        "log_format": "JSON",
        "log_mail": "All",
    }
    assert set(values) == set(Config.model_fields)
    for key, value in values.items():
        monkeypatch.setenv(f"FASTSMTP_{key.upper()}", value)
    config = load(None, {})
    assert config.listen == ["127.0.0.1:0", "[::1]:0"]
    assert config.memory_budget == 3 << 29
    assert (config.idle_timeout, config.smtputf8, config.require_starttls) == (0.5, False, True)
    assert (config.tls_certificate, config.log_level) == (certificate, "warning")
    assert config.model_dump() == load(None, values).model_dump()


def test_an_empty_variable_counts_as_not_set(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSMTP_WORKERS", "")
    monkeypatch.setenv("FASTSMTP_DELIVER", "")
    assert load(toml, {}).deliver == "discard:"


def test_an_empty_flag_unsets(toml: Path) -> None:
    toml.write_text('deliver = "discard:"\nmetrics = ":9125"\ntls_key = ""\n')
    config = load(toml, {"metrics": ""})
    assert config.metrics is None
    assert config.tls_key is None


# Where a value came from, what is wrong, what is allowed


def test_an_unknown_key_of_the_file_names_the_nearest(toml: Path) -> None:
    toml.write_text("worker = 2\n")
    assert _line(toml) == f'{toml}: unknown key "worker"; did you mean "workers"?'
    toml.write_text("idle-timeout = 2\n")
    assert 'did you mean "idle_timeout"?' in _line(toml)
    toml.write_text("port = 25\n")
    assert _line(toml) == f'{toml}: unknown key "port"; did you mean "listen"?'


@pytest.mark.parametrize("section", ["server", "tls", "listen", "metrics"])
def test_a_section_of_the_file_is_told_that_there_are_none(section: str, toml: Path) -> None:
    for written in (
        f"[{section}]\nworkers = 2\n",
        f"[[{section}]]\nworkers = 2\n",
        f"{section}.workers = 2\n",
    ):
        toml.write_text(written)
        assert _line(toml) == f"{toml}: [{section}]: there are no sections; write all keys at the top level"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FASTSMTP_WORKER", "FASTSMTP_WORKERS"),
        ("FASTSMTP_LISTN", "FASTSMTP_LISTEN"),
        ("FASTSMTP_LOGLEVEL", "FASTSMTP_LOG_LEVEL"),
        ("FASTSMTP_TLS_CERT", "FASTSMTP_TLS_CERTIFICATE"),
        ("FASTSMTP_MAX_MESSAGE", "FASTSMTP_MAX_MESSAGE_SIZE"),
    ],
)
def test_a_variable_that_resembles_a_setting_is_refused(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "2")
    assert _line() == f'unknown environment variable {name}; did you mean "{meant}"?'


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("FASTSMTP_HOME", "FASTSMTP_HOSTNAME"),
        ("FASTSMTP_NAME", "FASTSMTP_HOSTNAME"),
        ("FASTSMTP_PORT", "FASTSMTP_LISTEN"),  # another program's, or a mistake: both see the warning
        ("FASTSMTP_HOST", "FASTSMTP_LISTEN"),
        ("FASTSMTP_DATABASE_URL", "FASTSMTP_MIN_DATA_RATE"),
    ],
)
def test_a_variable_that_resembles_no_setting_is_ignored_with_a_warning(
    name: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "25")
    lines: list[str] = []
    assert load(None, {"deliver": "discard:"}, warn=lines.append).listen == ["127.0.0.1:8025"]
    assert lines == [
        f"the environment variable {name} is ignored, it is no setting; the nearest is {nearest}"
    ]


def test_an_unknown_override_and_keyword_names_the_nearest() -> None:
    assert _line(worker=1, flags={"worker": "--set"}) == (
        '--set: unknown key "worker"; did you mean "workers"?'
    )
    assert _of_line(worker=1) == 'unknown setting "worker"; did you mean "workers"?'


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FASTSMTP_CONTROLLER_TIMEOUT", "5"),
        ("FASTSMTP_SANITIZE", "1"),
        ("FASTSMTP_SERVICE_HOST", "10.0.0.1"),
        ("FASTSMTP_SERVICE_PORT_SMTP", "25"),
        ("FASTSMTP_PORT", "tcp://10.0.0.1:25"),
        ("FASTSMTP_PORT_25_TCP_ADDR", "10.0.0.1"),
        ("FASTSMTP_LMTP_PORT", "tcp://10.0.0.1:24"),
    ],
)
def test_variables_of_others_are_left_alone(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    lines: list[str] = []
    assert load(None, {"deliver": "discard:"}, warn=lines.append).workers == 1
    assert lines == []


def test_a_bad_value_names_its_origin(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = "must be a whole number, at least 0, at most 1024"
    toml.write_text("workers = -1\n")
    assert _line(toml) == f"{toml}: workers: {rule}; it is -1"
    monkeypatch.setenv("FASTSMTP_WORKERS", "many")
    assert _line(toml) == f"FASTSMTP_WORKERS: {rule}; it is 'many'"
    assert _line(toml, workers="2.5", flags={"workers": "--workers"}) == f"--workers: {rule}; it is '2.5'"
    assert _of_line(workers=1025) == f"workers: {rule}; it is 1025"


def test_several_faults_are_counted() -> None:
    assert _of_line(workers=-1, backlog=0).endswith("it is -1 (and 1 more)")


def test_a_long_value_is_cut() -> None:
    assert len(_of_line(workers="9" * 5000)) < 200


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"workers": True}, "it is True"),
        ({"idle_timeout": True}, "must be a number of seconds, more than 0"),
        ({"max_recipients": 99}, "at least 100; it is 99"),
        ({"max_command_line": 511}, "at least 512, at most 16384; it is 511"),
        ({"idle_timeout": 0}, "more than 0"),
        ({"idle_timeout": float("nan")}, "it is nan"),
        ({"idle_timeout": "inf"}, "it is 'inf'"),
        ({"drain_timeout": -1}, "at least 0"),
        ({"bare_newline": "eat"}, 'must be "normalize", "reject" or "keep"; it is \'eat\''),
        ({"loop": "trio"}, 'must be "uvloop" or "asyncio"'),
        ({"log_level": "loud"}, 'must be "debug", "info"'),
        ({"smtputf8": "maybe"}, "must be true or false; it is 'maybe'"),
        ({"listen": []}, "listen: must be one or more addresses"),
        ({"listen": "8025"}, 'listen: "8025" is not an address'),
        ({"listen": ["127.0.0.1:25", "::1:25"]}, "put an IPv6 address in brackets"),
        ({"listen": [25]}, "listen: must be one or more addresses"),
        ({"metrics": "9125"}, 'metrics: "9125" is not an address'),
        ({"metrics": "unix:/run/m"}, "plain HTTP over TCP"),
        ({"metrics": "tls::9125"}, "plain HTTP over TCP"),
        ({"hostname": "mx\r\nexample"}, "cannot stand in a greeting"),
        ({"hostname": "mäx.example"}, "xn--"),
        ({"hostname": ""}, "cannot stand in a greeting"),
        ({"handler": object()}, "handler: must be MODULE:NAME"),
        ({"deliver": "maildir:/\udcff"}, "deliver: must be UTF-8"),
        ({"listen": ["unix:/\udcff"]}, "listen: must be UTF-8"),
        ({"spill_directory": "/\udcff"}, "spill_directory: must be UTF-8"),
        ({"spill_directory": "/nosuch"}, "spill_directory: /nosuch is no folder; make it first"),
        ({"spill_directory": "a\0b"}, "is no folder"),
        (
            {"tls_certificate": "/nosuch{x}"},
            "tls_certificate: cannot read /nosuch{x}: no such file or directory",
        ),
        ({"tls_certificate": "a\0b"}, "tls_certificate: cannot read"),
        ({"tls_certificate": "/"}, "tls_certificate: cannot read /: is a directory"),
        ({"tls_key": "/nosuch"}, "tls_key: there is no tls_certificate for this key"),
        ({"require_starttls": True}, "require_starttls: needs tls_certificate"),
        ({"listen": "127.0.0.1:25,tls::465"}, 'listen: "tls::465" needs tls_certificate'),
        ({"memory_budget": "1KiB"}, "spill_threshold (the default): must not be more than memory_budget"),
    ],
)
def test_what_is_not_allowed_says_why(settings: dict[str, object], says: str) -> None:
    assert says in _of_line(**settings)


def test_a_folder_without_the_right_to_write_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    root = os.geteuid() == 0
    if root:
        os.setreuid(65534, 0)  # root may write everywhere; access(2) asks for the real user
    try:
        assert "this user may not write in" in _of_line(spill_directory=tmp_path)
    finally:
        if root:
            os.setreuid(0, 0)


def test_a_conflict_names_the_origin(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text('deliver = "discard:"\nrequire_starttls = true\n')
    assert _line(toml) == f"{toml}: require_starttls: needs tls_certificate; set that too"
    monkeypatch.setenv("FASTSMTP_TLS_KEY", "/nosuch")
    assert _line(toml).startswith("FASTSMTP_TLS_KEY: there is no tls_certificate")


def test_tls_settings_that_belong_together_are_taken(certificate: Path) -> None:
    config = Config.of(tls_certificate=str(certificate), require_starttls=True, listen=["tls::465", ":25"])
    assert config.tls_certificate == certificate


def test_a_command_needs_somewhere_for_the_mail_and_a_library_call_does_not() -> None:
    with pytest.raises(ConfigError, match="nothing takes the mail; set --deliver URL"):
        load(None, {})
    assert load(None, {"handler": "a:b"}).deliver is None
    assert Config.of().handler is None


def test_what_is_found_later_names_the_origin_too(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def named(config: Config) -> str:
        with pytest.raises(ConfigError) as caught, config.naming("deliver"):
            raise ConfigError("no such sink")
        return str(caught.value)

    assert named(load(toml, {})) == f"{toml}: deliver: no such sink"
    monkeypatch.setenv("FASTSMTP_DELIVER", "discard:")
    assert named(load(toml, {})) == "FASTSMTP_DELIVER: no such sink"
    flags = {"deliver": "--deliver"}
    assert named(load(toml, {"deliver": "discard:"}, flags=flags)) == "--deliver: no such sink"
    assert named(Config.of(deliver="discard:")) == "deliver: no such sink"
    assert named(Config.of()) == "deliver: no such sink"


# Files


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"workers = \n", "not valid TOML: Invalid value (at line 1, column 11)"),
        (b"a = '\xff'\n", "not valid TOML: octet 5 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_toml_says_where(content: bytes, says: str, toml: Path) -> None:
    toml.write_bytes(content)
    assert _line(toml) == f"{toml}: {says}"


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    assert (
        _line(Path("/nosuch.toml")) == "cannot read /nosuch.toml: no such file or directory; correct --config"
    )
    assert _line(tmp_path) == f"cannot read {tmp_path}: is a directory; correct --config"
    assert "cannot read" in _line(Path("a\0b"))


def test_the_file_may_be_a_pipe(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b'deliver = "discard:"\n')
    os.close(write)
    try:
        assert load(Path(f"/dev/fd/{read}"), {}).deliver == "discard:"
    finally:
        os.close(read)


# Sizes


@pytest.mark.parametrize(
    ("written", "octets"),
    [
        (1048576, 1048576),
        ("1048576", 1048576),
        ("1MiB", MIB),
        ("1 mib", MIB),
        (" 64KiB ", 65536),
        ("25MB", 25_000_000),
        ("1.5GiB", 3 << 29),
        ("0.1MB", 100_000),
        ("1TiB", 1 << 40),
        ("512B", 512),
    ],
)
def test_sizes(written: object, octets: int) -> None:
    size = Config.of(max_message_size=written).max_message_size
    assert size == octets
    assert type(size) is int


@pytest.mark.parametrize(
    "written",
    ["", "MiB", "1 MiB x", "1M", "1Mbit", "-1", "1e6", "1,5MB", "0", -1, True, None, 1.5, "٣MB", "2TiB"],
)
def test_what_is_no_size(written: object) -> None:
    assert _of_line(max_message_size=written).startswith(
        'max_message_size: must be a size such as 1048576, "1MiB" or "25MB", at least 1, at most 1TiB; it is '
    )


# The printed configuration


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(
    deliver=text.filter(bool),
    handler=text,
    size=st.integers(1, 1 << 40),
    seconds=st.floats(0, 31_536_000, exclude_min=True),
    switch=st.booleans(),
    paths=st.lists(text.filter(lambda path: path and "\0" not in path), min_size=1, max_size=3),
)
def test_the_printed_configuration_reads_back(
    tmp_path_factory: pytest.TempPathFactory,
    deliver: str,
    handler: str,
    size: int,
    seconds: float,
    switch: bool,
    paths: list[str],
) -> None:
    config = Config.of(
        deliver=deliver,
        handler=handler,
        max_message_size=size,
        idle_timeout=seconds,
        smtputf8=switch,
        listen=[f"unix:{path}" for path in paths],
    )
    path = tmp_path_factory.getbasetemp() / "printed.toml"
    path.write_text(config.as_toml(), encoding="utf-8", newline="")
    assert load(path, {}).model_dump() == config.model_dump()
