"""Many clients that mean no good, in one process and one epoll set; a program, so that its work is not the probe's.

    python -m benchmarks.attackers ATTACK PORT COUNT

All octets are made beforehand, and replies are thrown away as soon as a step has the one it waits for, so that a CPU
of attackers is more than a CPU of the server can serve. The program prints "ready" once each connection has come as far
as its attack wants it, goes on until its standard input ends, ends all connections as the attack says, and prints JSON.
It attacks 127.0.0.1 only.
"""

import json
import re
import select
import socket
import ssl
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close sends RST
ADDRESSES = 200  # of 127.0.0.0/8: each has its own ports
AT_ONCE = 100  # connects that wait for their greeting
AGAIN_SECONDS = 1.0  # before a slow client whose connection was ended comes back
TICK_SECONDS = 0.02
MOST_SECONDS = 300.0
RECEIVE = 256 * 1024
NEWLINE = b"\r\n"
REFUSAL = re.compile(rb"(?:^|\r\n)([45]\d\d) ")

EHLO = b"EHLO attacker.example\r\n"
MAIL = b"MAIL FROM:<attacker@sender.example>\r\n"
RCPT = b"RCPT TO:<box@recipient.example>\r\n"
HEADER = b"Subject: attack\r\n\r\n"
LINE = b"X" * 76 + NEWLINE
END = b".\r\n"
SMALL = MAIL + RCPT + b"DATA\r\n" + HEADER + LINE + END
LONG = b"".join(
    b"RCPT TO:<%d-%s@%s.example>\r\n" % (number, b"l" * 58, b".".join([b"d" * 58] * 3))
    for number in range(1000)
)


@dataclass(frozen=True)
class Step:
    """Octets to send, and what must be in the server's answer before the next step; nothing is waited for if empty."""

    octets: bytes
    until: bytes = b""


@dataclass(frozen=True)
class Attack:
    """What each of the connections does, and what becomes of it at the end.

    `steps` come first. Then `flood` is sent without an end, or `drip` one octet a second. `end` is what happens when
    the attack is over: `finish` sends `last` and then resets.
    """

    steps: tuple[Step, ...] = ()
    flood: bytes = b""
    drip: bytes = b""
    end: Literal["close", "reset", "finish"] = "close"
    last: bytes = b""


@dataclass
class Done:
    """What the attackers did and had to bear."""

    opened: int = 0
    ended: int = 0  # connections that the server ended
    refused: Counter[str] = field(default_factory=Counter)  # by the code of the reply
    octets: int = 0
    open: int = 0  # connections when the attack was over
    seconds: float = 0.0


def hello_of_tls() -> bytes:
    """The ClientHello of a TLS handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    handshake = context.wrap_bio(ssl.MemoryBIO(), outgoing)
    try:
        handshake.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake needs a server")


GREETED = Step(b"", b"220 ")
IN_DATA = Step(EHLO + MAIL + RCPT + b"DATA\r\n", b"\r\n354")
KILOBYTES_60 = HEADER + LINE * (60_000 // len(LINE))
MEGABYTES_30 = HEADER + LINE * (30_000_000 // len(LINE))


def content(octets: bytes, end: Literal["reset", "finish"] = "reset") -> Attack:
    return Attack((GREETED, IN_DATA, Step(octets)), end=end, last=NEWLINE + END)


ATTACKS: dict[str, Attack] = {
    "noops": Attack((GREETED, Step(EHLO, b"250 ")), flood=b"NOOP\r\n" * 11_000),
    "messages": Attack((GREETED, Step(EHLO, b"250 ")), flood=SMALL * 300),
    "recipients": Attack((GREETED, Step(EHLO + MAIL, b"250 ")), flood=RCPT * 2_000),
    "envelopes": Attack(
        (GREETED, Step(EHLO, b"250 ")), flood=MAIL + RCPT * 1_000 + b"DATA\r\n" + HEADER + LINE + END
    ),
    "greeting": Attack((GREETED,)),
    "command": Attack((GREETED, Step(EHLO, b"250 "), Step(b"MAIL FR"))),
    "drip": Attack((GREETED, IN_DATA), drip=HEADER + LINE * 10),
    "handshake": Attack(
        (GREETED, Step(EHLO, b"250 "), Step(b"STARTTLS\r\n", b"220 "), Step(hello_of_tls(), b"\x16"))
    ),
    "octet": content(b"S"),
    "60k": content(KILOBYTES_60),
    "60k-ended": content(KILOBYTES_60, "finish"),
    "30m": content(MEGABYTES_30),
    "30m-ended": content(MEGABYTES_30, "finish"),
    "long-recipients": Attack((GREETED, Step(EHLO + MAIL + LONG + b"HELP\r\n", b"\r\n214"))),
}


class Connection:
    def __init__(self, number: int, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.bind((f"127.0.0.{2 + number % ADDRESSES}", 0))
        self.socket.connect_ex(("127.0.0.1", port))
        self.step = 0
        self.sent = 0  # octets of the step, of the flood or of the drip
        self.answer = b""
        self.settled = False  # it has come as far as it can

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.socket.close()


class Crowd:
    """All connections of one attack."""

    def __init__(self, attack: Attack, port: int, count: int, done: Done) -> None:
        self._attack = attack
        self._port = port
        self._count = count
        self._done = done
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._later: deque[float] = deque(-1.0 for _ in range(count))  # when the missing ones are due
        self._settled = 0
        self._dripped = 0
        self._buffer = bytearray(RECEIVE)

    def run(self, over: int, ready: Callable[[], None]) -> None:
        """Until the descriptor `over` can be read."""
        self._epoll.register(over, select.EPOLLIN)
        started, told = time.monotonic(), False
        next_tick = started
        while (now := time.monotonic()) - started < MOST_SECONDS:
            for descriptor, events in self._epoll.poll(max(0.0, next_tick - now)):
                if descriptor == over:
                    self._done.seconds = time.monotonic() - started
                    return
                self._serve(self._connections[descriptor], events)
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + TICK_SECONDS
                self._tick()
            if not told and self._settled >= self._count:
                told = True
                ready()
        self._done.seconds = MOST_SECONDS

    def finish(self) -> None:
        connections = list(self._connections.values())
        self._done.open = len(connections)
        if self._attack.end == "finish":
            for each in connections:
                with suppress(OSError):  # the server may have ended it
                    if each.step == len(self._attack.steps):
                        each.socket.send(self._attack.last)
        for each in connections:
            if self._attack.end == "close":
                each.close()
            else:
                each.reset()

    def _tick(self) -> None:
        now = time.monotonic()
        waiting = sum(each.step == 0 for each in self._connections.values()) if self._later else 0
        while self._later and self._later[0] <= now and waiting < AT_ONCE:
            self._later.popleft()
            waiting += 1
            self._open()
        if self._attack.drip:
            ripe = list(self._connections.values())
            share = max(1, round(len(ripe) * TICK_SECONDS)) if ripe else 0
            for offset in range(share):
                self._drip(ripe[(self._dripped + offset) % len(ripe)])
            self._dripped += share

    def _open(self) -> None:
        connection = Connection(self._done.opened, self._port)
        self._done.opened += 1
        self._connections[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket.fileno(), select.EPOLLIN)

    def _drip(self, each: Connection) -> None:
        if each.step < len(self._attack.steps) or each.socket.fileno() < 0:
            return
        at = each.sent % len(self._attack.drip)
        try:
            self._done.octets += each.socket.send(self._attack.drip[at : at + 1])
            each.sent += 1
        except OSError:
            self._lost(each)

    def _serve(self, each: Connection, events: int) -> None:
        try:
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                count = each.socket.recv_into(self._buffer)
                if not count:
                    self._lost(each)
                    return
                if each.step < len(self._attack.steps):
                    self._answered(each, bytes(self._buffer[:count]))
            if events & select.EPOLLOUT:
                self._send(each)
        except BlockingIOError:
            pass
        except OSError:
            self._lost(each)

    def _lost(self, each: Connection) -> None:
        """The server has ended it: another one takes its place, at once if it only sends."""
        self._done.ended += 1
        self._settle(each)
        del self._connections[each.socket.fileno()]
        each.close()
        self._later.append(time.monotonic() + (0.0 if self._attack.flood else AGAIN_SECONDS))

    def _settle(self, each: Connection) -> None:
        if not each.settled:
            each.settled = True
            self._settled += 1

    def _answered(self, each: Connection, octets: bytes) -> None:
        step = self._attack.steps[each.step]
        each.answer += octets
        if step.until and step.until in each.answer:
            self._next(each)
        elif not each.settled and (refusal := REFUSAL.search(each.answer)):
            self._done.refused[refusal[1].decode()] += 1
            self._settle(each)

    def _next(self, each: Connection) -> None:
        each.step += 1
        each.sent, each.answer = 0, b""
        if each.step == len(self._attack.steps):
            self._settle(each)
            if not self._attack.flood:
                return
        # What is to be sent now is sent as soon as the socket takes it.
        self._epoll.modify(each.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _send(self, each: Connection) -> None:
        flooding = each.step == len(self._attack.steps)
        octets = self._attack.flood if flooding else self._attack.steps[each.step].octets
        sent = each.socket.send(memoryview(octets)[each.sent :])
        self._done.octets += sent
        each.sent += sent
        if each.sent < len(octets):
            return
        if flooding:
            each.sent = 0
            return
        self._epoll.modify(each.socket.fileno(), select.EPOLLIN)
        if not self._attack.steps[each.step].until:
            self._next(each)


def main(name: str, port: int, count: int) -> None:
    done = Done()
    crowd = Crowd(ATTACKS[name], port, count, done)
    crowd.run(sys.stdin.fileno(), lambda: print("ready", flush=True))
    crowd.finish()
    print(json.dumps(vars(done)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *(int(word) for word in sys.argv[2:4]))
