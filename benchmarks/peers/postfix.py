"""Postfix, and smtp-sink, the test server that comes with it: Debian's package `postfix`.

It knows how Postfix is set up beside the system's own, which is neither read nor touched, and how its queue is read.
Mail is in a queue file, synced, before the 250: that is Postfix's way, and no setting of ours.
"""

import os
import pwd
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ..client import BenchmarkError
from ..contender import BACKLOG, MOST_CONNECTIONS, Contender, Setup, first_line
from ..process import Server
from ..source import postfix_tool

OWNER = "postfix"
QUEUES = ("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "saved", "trace")
SOCKETS = ("private", "public")
PROCESSES = (
    1000  # of a kind: Postfix has one for each connection, and more of them than this is no way to run it
)
AT_A_TIME = 200  # queue files given to one postcat
NEVER = 1_000_000_000

# Nothing looks a name up, nothing slows a client down, nothing is counted by client, and no process that has once
# been started ends: its CPU time would be lost.
MAIN = f"""\
compatibility_level = 3.6
queue_directory = {{folder}}/queue
data_directory = {{folder}}/data
myhostname = localhost
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
default_transport = discard:
local_header_rewrite_clients =
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions = {{recipients}}
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_junk_command_limit = {NEVER}
in_flow_delay = 0
message_size_limit = 0
mailbox_size_limit = 0
default_process_limit = {PROCESSES}
max_idle = 1d
max_use = {NEVER}
"""
TLS = """\
smtpd_tls_security_level = may
smtpd_tls_chain_files = {key}, {certificate}
"""
MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd{options}
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
tlsmgr unix - - n 1000? 1 tlsmgr
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
"""
RECEIVED = re.compile(rb"Received: [^\n]*\n(?:[ \t][^\n]*\n)*")


def missing_program(name: str) -> str | None:
    """Why a program of Postfix cannot be run, in one line; None if it can."""
    return None if postfix_tool(name) else f"{name} is not installed (Debian: apt install postfix)"


def postfix_version() -> str:
    postconf = postfix_tool("postconf")
    return first_line(postconf, "-d", "-h", "mail_version") if postconf else "unknown"


class SmtpSink(Contender):
    name = "smtp-sink"
    title = "Postfix's test server (C), stores nothing"
    share = 0.5
    can = frozenset({"pipelining"})

    def missing(self) -> str | None:
        return missing_program("smtp-sink")

    def version(self) -> str:
        return postfix_version()

    def command(self, setup: Setup) -> list[str]:
        program = postfix_tool("smtp-sink") or "smtp-sink"
        user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to run as root
        return [program, *user, "-m", str(MOST_CONNECTIONS), f"inet:127.0.0.1:{setup.port}", str(BACKLOG)]


class Postfix(Contender):
    """The real one. With `keep` all mail goes on hold, so that nothing is delivered and `kept` finds it."""

    name = "postfix"
    title = "Postfix: synced queue file before the 250, then held if it is to be kept, else discarded"
    share = 0.1
    can = frozenset({"tls", "starttls", "pipelining", "keep"})

    def missing(self) -> str | None:
        gap = missing_program("postconf") or missing_program("postcat")
        if gap is None and os.geteuid() != 0:
            return "Postfix's master must be started by root"
        return gap

    def version(self) -> str:
        return postfix_version()

    def command(self, setup: Setup) -> list[str]:
        if setup.login is not None:
            raise BenchmarkError("postfix has AUTH only with Cyrus SASL or Dovecot beside it")
        folder = setup.folder.resolve()
        make_folders(folder)
        tls = "" if setup.tls == "none" else TLS.format(key=setup.key, certificate=setup.certificate)
        recipients = "check_client_access static:HOLD" if setup.keep else "permit"
        (folder / "main.cf").write_text(MAIN.format(folder=folder, recipients=recipients) + tls)
        options = " -o smtpd_tls_wrappermode=yes" if setup.tls == "implicit" else ""
        (folder / "master.cf").write_text(MASTER.format(port=setup.port, options=options))
        postconf = postfix_tool("postconf") or "postconf"
        programs = first_line(postconf, "-d", "-h", "daemon_directory")
        return [f"{programs}/master", "-c", str(folder), "-d"]  # -d: it stays a child of ours

    def worker(self, server: Server) -> int:
        raise BenchmarkError("postfix has a process for each connection")

    def kept(self, setup: Setup) -> Iterator[bytes] | None:
        return held(setup.folder.resolve()) if setup.keep else None


def make_folders(folder: Path) -> None:
    """Queue and data folder, with the owners that Postfix insists on.

    BenchmarkError if it has no user, or if that user cannot come there.
    """
    try:
        owner = pwd.getpwnam(OWNER).pw_uid
    except KeyError:
        raise BenchmarkError(f"there is no user {OWNER}") from None
    folder.chmod(0o711)
    for parent in folder.parents:
        if not parent.stat().st_mode & 0o001:
            raise BenchmarkError(f"the user {OWNER} cannot pass through {parent} (chmod o+x)")
    (folder / "queue" / "pid").mkdir(parents=True)
    for path in [folder / "data", *(folder / "queue" / name for name in QUEUES + SOCKETS)]:
        path.mkdir(mode=0o700)
        os.chown(path, owner, -1)


def held(folder: Path) -> Iterator[bytes]:
    """The contents of all messages on hold, without the Received header that Postfix puts before each."""
    files = sorted(str(path) for path in (folder / "queue" / "hold").iterdir())
    postcat = postfix_tool("postcat") or "postcat"
    for begin in range(0, len(files), AT_A_TIME):
        some = files[begin : begin + AT_A_TIME]
        done = subprocess.run([postcat, "-c", str(folder), *some], capture_output=True, check=False)
        if done.returncode != 0:
            raise BenchmarkError(f"postcat: {done.stderr.decode(errors='replace').strip()}")
        shown = done.stdout
        for file in some:
            _, _, shown = shown.partition(b"*** MESSAGE CONTENTS %s ***\n" % file.encode())
            content, mark, shown = shown.partition(b"*** HEADER EXTRACTED %s ***\n" % file.encode())
            if not mark:
                raise BenchmarkError(f"postcat shows no content of {file}")
            yield RECEIVED.sub(b"", content, count=1).replace(b"\n", b"\r\n")
