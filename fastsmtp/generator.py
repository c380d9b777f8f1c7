"""One process that sends its share of a load over many connections, and takes the time.

Knows connections, TLS, when a message is due, and when it is better to stop. Refuses to know the words of SMTP, which
are compiled; other processes; and what people are shown.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import socket
import ssl
import time
from collections.abc import Callable

from fastsmtp._load import BUSY, ENDED, IDLE, SECURE, WRITE, Talk, fine_timers
from fastsmtp.load import Figures, Plan, Progress

_TICK = 250_000_000  # ns between two looks at the connections
_REPORTS = 500_000_000  # ns between two reports of what is done
_PARTING = 2_000_000_000  # ns for the server to answer QUIT
_ROUNDS = 6  # of connections that failed before they were ready, after which there is no other try
_PAUSE = 50_000_000  # ns before the second of these; each next one waits twice as long


class Connection:
    """One connection: a talk, its socket, and what is to be done when that is ready.

    ``turn(events)`` gives the talk's state, as ``Talk.turn`` does.
    """

    __slots__ = ("_generator", "fd", "opened", "sock", "talk", "turn", "writing")

    def __init__(self, generator: Generator, sock: socket.socket, talk: Talk) -> None:
        self._generator = generator
        self.sock = sock
        self.fd = sock.fileno()
        self.opened = time.monotonic_ns()
        self.talk = talk
        self.turn: Callable[[int], int] = self._connect
        self.writing = False

    def _connect(self, events: int = 0) -> int:
        plan = self._generator.plan
        if events:
            result = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        else:
            # Without blocking, a UNIX socket whose backlog is full says no instead of later.
            self.sock.settimeout(plan.timeout if plan.family == socket.AF_UNIX else 0)
            result = self.sock.connect_ex(plan.address)
            if result == errno.EINPROGRESS:
                # Over loopback it is done by now, and need not be waited for.
                result = self.sock.connect_ex(plan.address)
            if result in (errno.EINPROGRESS, errno.EALREADY):
                return WRITE
        if result not in (0, errno.EISCONN):
            return self.talk.fail(f"connect: {_lower(os.strerror(result))}")
        self.sock.setblocking(False)
        self.talk.connected()
        if plan.tls == "implicit":
            return self.secure()
        self.turn = self.talk.turn
        return BUSY

    def secure(self) -> int:
        """Begins TLS."""
        self.sock = self._generator.wrap(self.sock)
        self.turn = self._shake
        return self._shake()

    def _shake(self, events: int = 0) -> int:
        assert isinstance(self.sock, ssl.SSLSocket)
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            return BUSY
        except ssl.SSLWantWriteError:
            return WRITE
        except ssl.SSLCertVerificationError as error:
            return self.talk.fail(
                f"TLS: certificate verify failed: {_lower(error.verify_message)}", fatal=True
            )
        except OSError as error:
            return self.talk.fail(f"TLS: {explain(error)}")
        self._generator.shaken(resumed=bool(self.sock.session_reused))
        self.turn = self._turn_secured
        self.talk.secured()
        return self._turn_secured(0)

    def _turn_secured(self, events: int) -> int:
        assert isinstance(self.sock, ssl.SSLSocket)
        state = ENDED if self.talk.ended else BUSY
        try:
            if events & selectors.EVENT_READ:
                while True:
                    octets = self.sock.recv(16384)
                    if not octets:
                        return self.talk.lost("the server closed the connection")
                    state = self.talk.received(octets)
                    if not self.sock.pending():
                        break
        except ssl.SSLWantReadError:
            pass
        except OSError as error:
            return self.talk.lost(explain(error))
        return self._write() if state != ENDED else ENDED

    def _write(self) -> int:
        while (state := self.talk.sent(0)) == WRITE:
            try:
                sent = self.sock.send(self.talk.output())
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return WRITE
            except OSError as error:
                return self.talk.lost(explain(error))
            state = self.talk.sent(sent)
        return state

    def send(self, due: int) -> int:
        """Begins a message that is due at this time."""
        return self._written(self.talk.send(due))

    def quit(self) -> int:
        """Ends it politely."""
        return self._written(self.talk.quit())

    def _written(self, state: int) -> int:
        return self._write() if isinstance(self.sock, ssl.SSLSocket) else state

    def close(self) -> None:
        if isinstance(self.sock, ssl.SSLSocket):
            # A session can only be resumed if its connection was ended as TLS wants it.
            with contextlib.suppress(OSError, ValueError):
                self.sock.unwrap()
        self.sock.close()


class Generator:
    """One process's share of a plan.

    ``report`` is told twice a second what is done. ``told`` is a descriptor: once something can be read from it, no
    further message is begun and those under way are given up.
    """

    def __init__(
        self, plan: Plan, index: int, *, report: Callable[[Progress], None], told: int | None = None
    ) -> None:
        self.plan = plan
        self.load = plan.load(index)
        self._index = index
        self._report = report
        self._context = plan.context() if plan.tls != "none" else None
        self._session: ssl.SSLSession | None = None
        # First of all descriptors: select() takes none above 1023.
        self._selector = selectors.DefaultSelector()
        if told is not None:
            self._selector.register(told, selectors.EVENT_READ, None)
        self._live: set[Connection] = set()
        self._free: dict[Connection, None] = {}
        self._wanted = plan.share(plan.connections, index)
        self._figures = Figures()
        self._stop = ""
        self._interrupted = False
        # Of the messages of this phase, those that were due so far, and those that will be.
        self._arrived = self._total = 0
        self._first = self._start = 0
        self._interval = 0.0
        self._rounds = self._failed_at = self._not_before = self._next_look = 0
        self._ever_ready = False

    # --- what its owner does --------------------------------------------------------------------------------

    def prepare(self) -> str:
        """Opens the connections that are kept, and sends what is not counted.

        Returns why nothing can be measured, if so.
        """
        fine_timers()
        plan = self.plan
        if not plan.new:
            if plan.messages is not None:
                self._wanted = min(self._wanted, max(1, plan.share(plan.messages, self._index)))
            while len(self._free) < self._wanted and not self._ends:
                self._supply(time.monotonic_ns())
                self._turn(time.monotonic_ns() + _TICK)
        if (warm_up := plan.share(plan.warm_up, self._index)) and not self._ends:
            self._send(warm_up, time.monotonic_ns())
            if self.load.failures and not self._stop:
                self._stop = f"the warm-up failed: {next(iter(self.load.failures))}"
            if not self._ends:
                self.load.clear()
                self._figures = Figures()
        return self._stop

    def measure(self, start: int) -> Figures:
        """Sends what is counted, from ``start`` on, in nanoseconds of the monotonic clock."""
        plan, figures, load = self.plan, self._figures, self.load
        while (left := start - time.monotonic_ns()) > 0:
            time.sleep(left / 1e9)
        cpu = time.process_time()
        if not self._ends:
            end = start + int(plan.duration * 1e9) if plan.duration is not None and plan.rate is None else 0
            self._send(plan.counted(self._index), start, end, plan.rate)
        figures.began, figures.ended = start / 1e9, time.monotonic()
        figures.cpu.append(time.process_time() - cpu)
        figures.accepted, figures.failed = load.accepted, load.failed
        figures.failures.update(load.failures)
        figures.latency = load.latency
        figures.stopped = self._stop
        return figures

    def close(self) -> None:
        """Says QUIT where nothing is under way, and closes all connections."""
        for connection in list(self._free):
            del self._free[connection]
            self._after(connection, connection.quit())
        end = time.monotonic_ns() + _PARTING
        while self._live and not self._ends and time.monotonic_ns() < end:
            self._turn(end)
        for connection in list(self._live):
            self._forget(connection)
        self._selector.close()

    # --- what its connections do ----------------------------------------------------------------------------

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """The socket under TLS, before the handshake; it takes the descriptor over."""
        assert self._context is not None
        session = self._session if self.plan.resume else None
        return self._context.wrap_socket(
            sock, server_hostname=self.plan.name, do_handshake_on_connect=False, session=session
        )

    def shaken(self, *, resumed: bool) -> None:
        """A handshake is done."""
        if resumed:
            self._figures.resumed += 1
        else:
            self._figures.full += 1

    # --- the loop -------------------------------------------------------------------------------------------

    @property
    def _ends(self) -> bool:
        return bool(self._stop) or self._interrupted

    def _send(self, count: int, start: int, end: int = 0, rate: float | None = None) -> None:
        """Sends ``count`` messages, or as many as can be begun before ``end``, and waits for the replies."""
        plan, load = self.plan, self.load
        load.left = count
        self._start = start
        self._first = load.next
        self._arrived, self._total = 0, count
        self._interval = 1e9 / rate if rate is not None else 0.0
        self._kick(start)
        next_report = start + _REPORTS
        while not self._ends:
            now = time.monotonic_ns()
            if end and now >= end:
                end = load.left = 0
            wake = min(now + _TICK, end or now + _TICK)
            if plan.rate is not None:
                wake = min(wake, self._arrive(now))
            if not load.left and len(self._live) == len(self._free):
                break
            if load.left and (plan.rate is None or not plan.new):
                self._supply(now)
            if now >= next_report:
                next_report = now + _REPORTS
                self._report(Progress(load.accepted, load.failed, load.latency["message"]))
            self._turn(wake)

    def _kick(self, now: int) -> None:
        """Without a rate a connection that has sent a message takes the next by itself; but not the first."""
        if self.plan.rate is None:
            for connection in list(self._free)[: self.load.left]:
                self._begin(connection, now)

    def _begin(self, connection: Connection, due: int) -> None:
        del self._free[connection]
        self._after(connection, connection.send(due))

    @property
    def _waiting(self) -> int:
        """How many messages are due and not begun."""
        return self._arrived - (self.load.next - self._first) // self.plan.processes

    def _due(self, place: int) -> int:
        number = self._first + place * self.plan.processes
        return self._start + int((number - self.plan.warm_up) * self._interval)

    def _arrive(self, now: int) -> int:
        """Begins what is due where a connection is free; returns when the next message will be due."""
        before = self._waiting
        while self._arrived < self._total and self._due(self._arrived) <= now:
            self._arrived += 1
        came = self._waiting - before
        while (waiting := self._waiting) > 0:
            due = self._due(self._arrived - waiting)
            if now - due > self.plan.timeout * 1e9:
                self.load.skip()
                self.load.fail(f"no connection was free within {self.plan.timeout:g} s", 1)
            elif self._free:
                self._begin(next(iter(self._free)), due)
            elif not (self.plan.new and len(self._live) < self._wanted and self._open(now, due)):
                break
        self._figures.late += min(came, self._waiting)
        if self._arrived == self._total:
            return now + _TICK
        return self._due(self._arrived)

    def _supply(self, now: int) -> None:
        """Opens what is missing of the connections: with a message each if they do not stay open."""
        while len(self._live) < self._wanted and (self.load.left or not self.plan.new):
            if not self._open(now, now if self.plan.new else 0):
                break

    def _open(self, now: int, due: int) -> bool:
        """Opens a connection; not if others failed just now."""
        if now < self._not_before or self._ends:
            return False
        try:
            sock = socket.socket(self.plan.family, socket.SOCK_STREAM)
        except OSError as error:
            self._stop = f"cannot open {len(self._live) + 1} connections: {explain(error)}; raise ulimit -n"
            return False
        if self.plan.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(self, sock, Talk(self.load, sock.fileno(), due))
        self._live.add(connection)
        self._figures.connections += 1
        self._selector.register(connection.fd, selectors.EVENT_READ, connection)
        self._after(connection, connection.turn(0))
        return True

    def _turn(self, wake: int) -> None:
        """Waits for something to do until ``wake``, and does it."""
        now = time.monotonic_ns()
        if now >= self._next_look:
            self._next_look = now + _TICK
            self._look_for_silence()
        if self._not_before > now:
            wake = min(wake, self._not_before)
        left = wake - now
        if self.plan.rate is None:
            events = self._selector.select(max(left, 0) / 1e9)
        else:
            events = self._selector.select(0)
            if not events and left > 0:
                # epoll waits for whole milliseconds, but select() for microseconds, for epoll as for all others.
                select.select((self._selector.fileno(),), (), (), left / 1e9)
                events = self._selector.select(0)
        for key, mask in events:
            connection = key.data
            if connection is None:
                self._interrupted = True
                return
            state = connection.turn(mask)
            if state or connection.writing:
                self._after(connection, state)

    def _after(self, connection: Connection, state: int) -> None:
        if state == SECURE:
            state = connection.secure()
        if state == ENDED:
            self._forget(connection)
            return
        if state == IDLE:
            self._free[connection] = None
            self._ever_ready = True
        if connection.writing != (state == WRITE):
            connection.writing = state == WRITE
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.writing else 0)
            self._selector.modify(connection.fd, events, connection)

    def _forget(self, connection: Connection) -> None:
        self._selector.unregister(connection.fd)
        self._free.pop(connection, None)
        self._live.remove(connection)
        talk = connection.talk
        if self.plan.resume and isinstance(connection.sock, ssl.SSLSocket) and talk.ready:
            self._session = connection.sock.session
        connection.close()
        if talk.ready:
            self._ever_ready = True
        elif talk.error is not None:
            self._failed(connection, talk.error)

    def _failed(self, connection: Connection, error: str) -> None:
        """A connection ended before it could be used: others are tried more and more slowly."""
        if connection.talk.fatal or (not self._ever_ready and error.startswith(("connect: ", "TLS: "))):
            self._stop = self._stop or error
        # Those that were under way together are one try, and one that went well since makes it a new beginning.
        if connection.opened < self._failed_at:
            return
        if any(other.talk.ready and other.opened > self._failed_at for other in self._live):
            self._rounds = 0
        self._rounds += 1
        self._failed_at = time.monotonic_ns()
        self._not_before = self._failed_at + (_PAUSE << self._rounds >> 1)
        if self._rounds == _ROUNDS:
            self._stop = self._stop or f"{_ROUNDS} connections in a row failed; the last one: {error}"

    def _look_for_silence(self) -> None:
        limit = int(self.plan.timeout * 1e9)
        for connection in list(self._live):
            if connection.talk.overdue(limit):
                self._after(connection, connection.talk.lost(f"nothing within {self.plan.timeout:g} s"))


def explain(error: OSError) -> str:
    """What went wrong, in words that can follow a colon."""
    if isinstance(error, ssl.SSLError):
        return _lower((error.reason or str(error)).replace("_", " "))
    return _lower(error.strerror or str(error))


def _lower(text: str) -> str:
    return text.lower() if text.isupper() else text[:1].lower() + text[1:]
