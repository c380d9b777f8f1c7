"""``maildir:PATH`` delivers into Maildir folders (https://cr.yp.to/proto/maildir.html).

Knows the order that makes a message safe: write it, sync it, link it into new/, sync new/; and that all its
mailboxes get it or none. Refuses to know the dialogue, and what mail readers do in cur/.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self

from fastsmtp.body import Body, Draft, sync_folder
from fastsmtp.errors import ConfigError, SMTPError
from fastsmtp.logs import safe_id
from fastsmtp.sinks.base import Sink
from fastsmtp.sinks.commit import FolderSync, Lane
from fastsmtp.sinks.mailboxes import Mailboxes
from fastsmtp.sinks.trace import BEGINNING, Trace, delivered_to, return_path, separator

if TYPE_CHECKING:
    from fastsmtp._envelope import Envelope, Session

log = logging.getLogger(__name__)

_YES_NO = {"yes": True, "no": False}
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_GONE = frozenset({errno.ENOENT, errno.ESTALE})

# One thread commits all ordinary messages. Four do it at the same rate for twice the CPU, as their batches are
# a quarter as long (measured, 4 kB, 100 in flight: 46 us a message with one thread, 88 with four).
_BATCH = 256
# Messages for many mailboxes, or for one that is not known to be there, have a thread of their own: one for 1,000 new
# mailboxes makes 4,000 folders. After a slice of its copies those that wait have their turn.
_FEW_COPIES = 4
_SLICE = 16
_MAILBOXES_BATCH = 64
# Large ones have threads of their own, one message each, so that nobody waits for their copying.
_LARGE = 256 * 1024
_LARGE_THREADS = 4
_OPEN_DRAFTS = 64  # of a batch

# Without syncs a small delivery is work of the page cache, 25 us; to hand it to a thread costs as much again.
# Where it turns out to take longer (NFS, a disk that cannot follow, one that hangs) the thread does it, until it has
# been quick again for a while: a disk that hangs now and then stops the loop once.
_AT_ONCE = 64 * 1024
_SLOW = 0.002
_SLOW_FOR = 10.0

_REMEMBERED_MAILBOXES = 65536


class _Copy:
    """The message for one mailbox."""

    __slots__ = ("draft", "folder", "head", "linked", "made")

    def __init__(self, folder: bytes, head: bytes) -> None:
        self.folder = folder
        self.head = head
        self.draft: Draft | None = None
        self.linked: bytes | None = None
        self.made: list[bytes] = []  # folders whose new entries this copy needs


class _Delivery:
    __slots__ = (
        "body",
        "copies",
        "error",
        "future",
        "placed",
        "queue_id",
        "received",
        "recipients",
        "return_path",
        "separator",
    )

    def __init__(self, body: Body, queue_id: str, recipients: list[str]) -> None:
        self.body = body
        self.queue_id = queue_id
        self.recipients = recipients
        self.return_path = self.received = b""
        self.separator: bytes | None = None  # not known yet
        self.copies: list[_Copy] | None = None  # likewise
        self.placed = 0  # copies that are done
        self.error: SMTPError | None = None
        self.future: asyncio.Future[str] | None = None

    @property
    def ended(self) -> bool:
        if self.error is not None:
            return not self.linked
        return self.copies is not None and self.placed >= len(self.copies)

    @property
    def linked(self) -> list[_Copy]:
        """The copies that are in their mailboxes."""
        return [copy for copy in self.copies or () if copy.linked is not None]


class Maildir(Sink):
    """Delivers into the mailbox of a path, or with {local} and {domain} in it into one for each recipient.

    ``sync``: whether a message is on the disk before it is safe; ``trace``: whether trace lines go in front
    of it; ``mode``: the permissions of its file (folders get x where that has r).
    """

    options = ("sync", "trace", "mode")

    def __init__(
        self, path: str, *, hostname: str, sync: bool = True, trace: bool = True, mode: int = 0o600
    ) -> None:
        self._boxes = Mailboxes(path, hostname)
        self._sync = sync
        self._trace = Trace(hostname) if trace else None
        self._mode = mode
        self._folder_mode = 0o700 | mode | (mode & 0o444) >> 2
        self._name_end = b"." + _name_part(hostname)
        self._folder_sync = FolderSync()
        self._known: set[bytes] = set()  # mailboxes that are there, with their parents synced
        self._done: deque[_Delivery] = deque()
        self._lanes: tuple[Lane[_Delivery], ...] = ()  # for ordinary messages, for mailboxes, for large ones
        self._waking = False
        self._quick = True  # deliveries without syncs are quick
        self._slow_until = 0.0
        self._mounts: set[bytes] = set()  # mount points: the root's, and those seen beneath it
        self._device = 0  # of the root

    @classmethod
    def of(cls, path: str, options: Mapping[str, str], hostname: str) -> Self:
        if not path:
            raise ConfigError("maildir: needs a path; write for example maildir:./mail")
        mode = options.get("mode", "600")
        try:
            bits = int(mode, 8)
        except ValueError:
            bits = -1
        if bits & ~0o666 or bits & 0o600 != 0o600:
            raise ConfigError(f"maildir: mode={mode} is no mode of a file; write 600, 640 or 660")
        return cls(
            path,
            hostname=hostname,
            sync=_yes_no(options, "sync"),
            trace=_yes_no(options, "trace"),
            mode=bits,
        )

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._prepare)
        self._lanes = (
            Lane("maildir", self._commit if self._sync else self._commit_and_look, threads=1, batch=_BATCH),
            Lane("maildir-mailboxes", self._commit, threads=1, batch=_MAILBOXES_BATCH),
            Lane("maildir-large", self._commit, threads=_LARGE_THREADS, batch=1),
        )

    async def close(self) -> None:
        for lane in self._lanes:
            await asyncio.to_thread(lane.close)
        self._lanes = ()
        self._finish()

    def head(self, session: Session, envelope: Envelope, beginning: bytes) -> bytes:
        if self._trace is None or self._for_many(envelope.rcpt_tos):
            return b""  # of many copies it does not count that one is linked
        recipients = next(iter(self._by_folder(envelope.rcpt_tos).values()), [])
        received = self._trace.received(session, envelope, safe_id(envelope.id))
        # It is used again octet by octet: only so can the spill file be linked as it is.
        envelope.received_field = received
        first = return_path(envelope.mail_from or "<>")
        return first + delivered_to(recipients) + received + separator(beginning)

    def deliver(self, session: Session, envelope: Envelope) -> str | asyncio.Future[str]:
        body = envelope.body
        assert body is not None, "a message without a body"
        delivery = self._delivery(session, envelope, body)
        lane = 1
        if not self._for_many(delivery.recipients):
            copies = self._divide(delivery)
            if not self._boxes.per_recipient or all(copy.folder in self._known for copy in copies):
                lane = 0
        if body.spilled or body.size >= _LARGE:
            lane = 2
        if lane == 0 and not self._sync and self._try_at_once(delivery):
            if delivery.error is not None:
                raise delivery.error
            return delivery.queue_id
        try:
            delivery.body = body.share()
        except OSError as error:
            log.error("%s: 1 message(s) deferred: %s", self._boxes.template, error)
            raise _reply(error) from None
        delivery.future = self._loop.create_future()
        self._lanes[lane].put(delivery)
        return delivery.future

    def _for_many(self, recipients: list[str]) -> bool:
        return self._boxes.per_recipient and len(recipients) > _FEW_COPIES

    def _by_folder(self, recipients: list[str]) -> dict[bytes, list[str]]:
        if not self._boxes.per_recipient:
            return {self._boxes.root: recipients}
        folders: dict[bytes, list[str]] = {}
        for recipient in recipients:
            folders.setdefault(self._boxes.folder(recipient), []).append(recipient)
        return folders

    def _divide(self, delivery: _Delivery) -> list[_Copy]:
        """Makes the copies of a delivery."""
        delivery.copies = [
            _Copy(folder, b"")
            if self._trace is None
            else _Copy(folder, delivery.return_path + delivered_to(recipients) + delivery.received)
            for folder, recipients in self._by_folder(delivery.recipients).items()
        ]
        return delivery.copies

    # On the loop

    def _delivery(self, session: Session, envelope: Envelope, body: Body) -> _Delivery:
        delivery = _Delivery(body, safe_id(envelope.id), list(envelope.rcpt_tos))
        if self._trace is None:
            delivery.separator = b""
            return delivery
        received: bytes | None = getattr(envelope, "received_field", None)
        delivery.received = received or self._trace.received(session, envelope, delivery.queue_id)
        delivery.return_path = return_path(envelope.mail_from or "<>")
        return delivery

    def _try_at_once(self, delivery: _Delivery) -> bool:
        if not self._quick or delivery.body.size > _AT_ONCE:
            return False
        began = time.monotonic()
        self._deliver_all([delivery])
        self._look(began, 1)
        return True

    def _look(self, began: float, messages: int) -> None:
        """Whether deliveries are quick, after some that took since ``began``."""
        now = time.monotonic()
        if now - began > _SLOW * messages:
            self._quick = False
            self._slow_until = now + _SLOW_FOR
        elif now >= self._slow_until:
            self._quick = True

    def _finish(self) -> None:
        self._waking = False  # before the queue is emptied: who comes later wakes the loop again
        while self._done:
            delivery = self._done.popleft()
            future = delivery.future
            if future is None or future.done():
                continue
            if delivery.error is None:
                future.set_result(delivery.queue_id)
            else:
                future.set_exception(delivery.error)

    # On a lane's thread

    def _commit_and_look(self, batch: list[_Delivery]) -> list[_Delivery]:
        began = time.monotonic()
        unfinished = self._commit(batch)
        self._look(began, len(batch))
        return unfinished

    def _commit(self, batch: list[_Delivery]) -> list[_Delivery]:
        for delivery in batch:
            if delivery.error is None and delivery.future is not None and delivery.future.cancelled():
                delivery.error = SMTPError(451, "4.3.0", "Nobody waits for it any more")
        self._deliver_all(batch)
        unfinished = [delivery for delivery in batch if not delivery.ended]
        ended = [delivery for delivery in batch if delivery not in unfinished] if unfinished else batch
        for delivery in ended:
            delivery.body.close()
        self._done.extend(ended)
        if ended and not self._waking:
            self._waking = True
            with contextlib.suppress(RuntimeError):  # the loop was closed over us: nobody waits any more
                self._loop.call_soon_threadsafe(self._finish)
        return unfinished

    def _deliver_all(self, batch: list[_Delivery]) -> None:
        """Delivers a slice of each or sets its error. Syncs overlap; each folder is synced once for the whole batch."""
        failures: Counter[str] = Counter()
        share = max(_FEW_COPIES, _SLICE // max(len(batch), 1))
        work = []
        for delivery in batch:
            if delivery.error is not None:
                continue
            try:
                copies = self._divide(delivery) if delivery.copies is None else delivery.copies
            except Exception as error:
                self._fail(delivery, error, failures)
                continue
            work += [(delivery, copy) for copy in copies[delivery.placed : delivery.placed + share]]
            delivery.placed += share
        for i in range(0, len(work), _OPEN_DRAFTS):
            self._place(work[i : i + _OPEN_DRAFTS], failures)
        if self._sync:
            self._sync_folders(work, failures)
        for delivery in batch:
            if delivery.error is not None:
                self._undo(delivery)
        for delivery, copy in work:
            if copy.made and delivery.error is None:
                self._remember(copy.folder)
        for failure, count in failures.items():
            log.error("%s: %d message(s) deferred: %s", self._boxes.template, count, failure)

    def _place(self, work: list[tuple[_Delivery, _Copy]], failures: Counter[str]) -> None:
        try:
            self._find_root()
        except OSError as error:
            for delivery, _ in work:
                if delivery.error is None:
                    self._fail(delivery, error, failures)
            return
        try:
            self._each(self._write, work, failures)
            if self._sync:
                if len(work) > 1:
                    self._each(_start_sync, work, failures)
                self._each(_sync, work, failures)
            self._each(self._link, work, failures)
        finally:
            for _, copy in work:
                if copy.draft is not None:
                    with contextlib.suppress(OSError):
                        copy.draft.close()
                    copy.draft = None

    def _each(
        self,
        step: Callable[[_Delivery, _Copy], None],
        work: list[tuple[_Delivery, _Copy]],
        failures: Counter[str],
    ) -> None:
        for delivery, copy in work:
            if delivery.error is None:
                try:
                    step(delivery, copy)
                except Exception as error:
                    self._known.discard(copy.folder)
                    self._fail(delivery, error, failures)

    def _fail(self, delivery: _Delivery, error: Exception, failures: Counter[str]) -> None:
        # A new error without a traceback: that would keep the whole batch alive in its frames.
        delivery.error = _reply(error)
        if not isinstance(error, OSError):
            log.error("%s: cannot deliver", self._boxes.template, exc_info=error)
        failures[str(error)] += 1

    def _write(self, delivery: _Delivery, copy: _Copy) -> None:
        if delivery.separator is None:
            delivery.separator = separator(delivery.body.beginning(BEGINNING))
        head = copy.head + delivery.separator
        if self._boxes.per_recipient and copy.folder not in self._known:
            copy.made = self._make(copy.folder)
        try:
            copy.draft = delivery.body.draft(copy.folder + b"/tmp", head, self._mode)
        except FileNotFoundError:
            if not self._boxes.per_recipient:
                raise
            copy.made = self._make(copy.folder)  # its owner left, mail still comes
            copy.draft = delivery.body.draft(copy.folder + b"/tmp", head, self._mode)

    def _link(self, delivery: _Delivery, copy: _Copy) -> None:
        assert copy.draft is not None
        # Dovecot numbers new messages by the digits in front, as many others make them.
        name = b"%b/new/%d.%b" % (copy.folder, time.time(), delivery.queue_id.encode())
        path = name + self._name_end
        for number in itertools.count(2):
            try:
                copy.draft.link(path)
            except FileExistsError:  # the same envelope was delivered before
                path = b"%b_%d%b" % (name, number, self._name_end)
            else:
                copy.linked = path
                return

    def _sync_folders(self, work: list[tuple[_Delivery, _Copy]], failures: Counter[str]) -> None:
        needed = [
            (delivery, copy, folder)
            for delivery, copy in work
            if delivery.error is None
            for folder in (copy.folder + b"/new", *copy.made)
        ]
        failed: dict[bytes, OSError] = {}
        for folder in dict.fromkeys(folder for _, _, folder in needed):
            try:
                self._folder_sync.sync(folder)
            except OSError as error:
                failed[folder] = error
        for delivery, copy, folder in needed:
            if delivery.error is None and folder in failed:
                self._known.discard(copy.folder)
                self._fail(delivery, failed[folder], failures)

    def _undo(self, delivery: _Delivery) -> None:
        """Takes the message out of mailboxes again, a slice of them."""
        for copy in delivery.linked[:_SLICE]:
            assert copy.linked is not None
            with contextlib.suppress(OSError):  # a reader may have taken it already
                os.unlink(copy.linked)
                if self._sync:
                    sync_folder(os.path.dirname(copy.linked))
            copy.linked = None

    # Folders

    def _prepare(self) -> None:
        """Makes what there is of folders without a recipient, and tries whether they can be written."""
        root = mount = self._boxes.root
        try:
            missing, made = [], []
            folder = root
            while not os.path.isdir(folder):
                missing.append(folder)
                folder = os.path.dirname(folder)
            for folder in reversed(missing):
                self._make_folder(folder)
            while not os.path.ismount(mount):
                mount = os.path.dirname(mount)
            self._mounts = {mount}
            self._device = os.stat(root).st_dev
            if self._boxes.per_recipient:
                trial = root
            else:
                made = self._make(root)
                trial = root + b"/tmp"
                if not os.access(root + b"/new", os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), root + b"/new")
            if self._sync:
                for folder in [*made, *map(os.path.dirname, missing)]:
                    sync_folder(folder)
            Draft(trial, self._mode).close()
        except OSError as error:
            where = os.fsdecode(error.filename) if error.filename else self._boxes.template
            raise ConfigError(
                f"maildir {self._boxes.template}: {where}: {error.strerror}; "
                "make it a folder that the user of this process may write"
            ) from None

    def _make(self, mailbox: bytes) -> list[bytes]:
        """Makes a mailbox and what lies between the root and it. Returns the folders that are to be synced for it, even
        if all were there: another thread or worker may have made them just now. Raises OSError.

        Not the root: if it has gone, a file system may be unmounted, and mail must not go beneath its mount
        point. Nor anything beneath a mount point that was seen and is none now.
        """
        self._check_mount(mailbox)
        folders = [self._boxes.root]
        device = self._device
        for level in mailbox.removeprefix(self._boxes.root).strip(b"/").split(b"/"):
            if level:
                folder = os.path.join(folders[-1], level)
                folders.append(folder)
                self._make_folder(folder)
                device, parent = os.stat(folder).st_dev, device
                if device != parent:
                    self._mounts.add(folder)
        for name in (b"tmp", b"new", b"cur"):
            self._make_folder(os.path.join(mailbox, name))
        folders.reverse()
        return folders

    def _find_root(self) -> None:
        """Raises OSError if the root is not there, or the file system that it was on."""
        device = os.stat(self._boxes.root).st_dev
        if device != self._device:
            self._check_mount(self._boxes.root)
            self._device = device

    def _check_mount(self, folder: bytes) -> None:
        """Raises OSError if a file system that ``folder`` was on is not mounted any more."""
        for mount in list(self._mounts):
            if (folder + b"/").startswith(mount.rstrip(b"/") + b"/") and not os.path.ismount(mount):
                raise OSError(errno.ENOENT, "no file system is mounted there any more", mount)

    def _remember(self, mailbox: bytes) -> None:
        if len(self._known) >= _REMEMBERED_MAILBOXES:
            self._known.clear()
        self._known.add(mailbox)

    def _make_folder(self, path: bytes) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, self._folder_mode)
            if self._folder_mode != 0o700:
                os.chmod(path, self._folder_mode)


def _start_sync(delivery: _Delivery, copy: _Copy) -> None:
    assert copy.draft is not None
    copy.draft.start_sync()


def _sync(delivery: _Delivery, copy: _Copy) -> None:
    assert copy.draft is not None
    copy.draft.sync()


def _reply(error: Exception) -> SMTPError:
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return SMTPError(452, "4.3.1", "Insufficient system storage")
    if isinstance(error, OSError) and error.errno in _GONE:
        return SMTPError(452, "4.3.1", "Mailbox not available now")
    return SMTPError(451, "4.3.0", "Cannot deliver now")


def _yes_no(options: Mapping[str, str], name: str) -> bool:
    value = options.get(name, "yes")
    if value not in _YES_NO:
        raise ConfigError(f"maildir: {name}={value} is neither yes nor no")
    return _YES_NO[value]


def _name_part(hostname: str) -> bytes:
    """A host's name within a file's. What means something there is \\ooo, as the Maildir page says."""
    octets = hostname.encode("utf-8", "surrogateescape")[:150]
    return b"".join(b"\\%03o" % o if o <= 0x20 or o in b"/:,\\\x7f" else bytes([o]) for o in octets)
