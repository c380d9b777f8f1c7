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
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self

from fastsmtp.body import Body, Draft, sync_folder
from fastsmtp.errors import ConfigError, SMTPError
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

# One thread commits all small messages. Four do it at the same rate for twice the CPU, as their batches are
# a quarter as long (measured, 4 kB, 100 in flight: 46 us a message with one thread, 88 with four).
_BATCH = 256
# Large ones have threads of their own, one message each, so that nobody waits for their copying.
_LARGE = 256 * 1024
_LARGE_THREADS = 4
_DRAFTS_AT_ONCE = 64  # open files of a batch

# Without syncs a small delivery is work of the page cache, 25 us; to hand it to a thread costs as much again.
# Where it turns out to take longer (NFS, a disk that cannot follow) the threads do it for a while.
_AT_ONCE = 64 * 1024
_AT_ONCE_COPIES = 4
_SLOW = 0.002
_SLOW_FOR = 10.0

_REMEMBERED_MAILBOXES = 65536

# A program may give an envelope an id of its own, which must not end a line or lead out of a folder.
_NOT_ID = re.compile(r"[^A-Za-z0-9._-]")
_MAX_ID = 64


class _Copy:
    """The message for one mailbox."""

    __slots__ = ("draft", "folder", "head", "linked")

    def __init__(self, folder: bytes, head: bytes) -> None:
        self.folder = folder
        self.head = head
        self.draft: Draft | None = None
        self.linked: bytes | None = None


class _Delivery:
    __slots__ = ("body", "copies", "error", "future", "queue_id", "separator")

    def __init__(self, body: Body, queue_id: str, copies: list[_Copy], separator: bytes | None) -> None:
        self.body = body
        self.queue_id = queue_id
        self.copies = copies
        self.separator = separator  # None: not known yet
        self.error: SMTPError | None = None
        self.future: asyncio.Future[str] | None = None


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
        self._making = threading.Lock()
        self._done: deque[_Delivery] = deque()
        self._lanes: tuple[Lane[_Delivery], ...] = ()  # for small messages, for large ones
        self._waking = False
        self._not_at_once_before = 0.0

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
            Lane("maildir", self._commit, threads=1, batch=_BATCH),
            Lane("maildir-large", self._commit, threads=_LARGE_THREADS, batch=1),
        )

    async def close(self) -> None:
        for lane in self._lanes:
            await asyncio.to_thread(lane.close)
        self._lanes = ()
        self._finish()

    def head(self, session: Session, envelope: Envelope, beginning: bytes) -> bytes:
        if self._trace is None:
            return b""
        recipients = next(iter(self._by_folder(envelope).values()), [])
        received = self._trace.received(session, envelope, _queue_id(envelope))
        # It is used again octet by octet: only so can the spill file be linked as it is.
        envelope.received_field = received
        first = return_path(envelope.mail_from or "<>")
        return first + delivered_to(recipients) + received + separator(beginning)

    def deliver(self, session: Session, envelope: Envelope) -> str | asyncio.Future[str]:
        body = envelope.body
        assert body is not None, "a message without a body"
        delivery = self._delivery(session, envelope, body)
        if not self._sync and self._try_at_once(delivery):
            if delivery.error is not None:
                raise delivery.error
            return delivery.queue_id
        try:
            delivery.body = body.share()
        except OSError as error:
            log.error("%s: 1 message(s) deferred: %s", self._boxes.template, error)
            raise _reply(error) from None
        delivery.future = self._loop.create_future()
        self._lanes[body.spilled or body.size >= _LARGE].put(delivery)
        return delivery.future

    # On the loop

    def _by_folder(self, envelope: Envelope) -> dict[bytes, list[str]]:
        if not self._boxes.per_recipient:
            return {self._boxes.root: envelope.rcpt_tos}
        folders: dict[bytes, list[str]] = {}
        for recipient in envelope.rcpt_tos:
            folders.setdefault(self._boxes.folder(recipient), []).append(recipient)
        return folders

    def _delivery(self, session: Session, envelope: Envelope, body: Body) -> _Delivery:
        queue_id = _queue_id(envelope)
        folders = self._by_folder(envelope)
        if self._trace is None:
            return _Delivery(body, queue_id, [_Copy(folder, b"") for folder in folders], b"")
        received: bytes | None = getattr(envelope, "received_field", None)
        if received is None:
            received = self._trace.received(session, envelope, queue_id)
        first = return_path(envelope.mail_from or "<>")
        copies = [
            _Copy(folder, first + delivered_to(recipients) + received)
            for folder, recipients in folders.items()
        ]
        return _Delivery(body, queue_id, copies, None)

    def _try_at_once(self, delivery: _Delivery) -> bool:
        body = delivery.body
        if body.spilled or body.size > _AT_ONCE or len(delivery.copies) > _AT_ONCE_COPIES:
            return False
        begin = time.monotonic()
        if begin < self._not_at_once_before:
            return False
        self._deliver_all([delivery])
        end = time.monotonic()
        if end - begin > _SLOW:
            self._not_at_once_before = end + _SLOW_FOR
        return True

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

    def _commit(self, batch: list[_Delivery]) -> None:
        self._deliver_all([d for d in batch if d.future is not None and not d.future.cancelled()])
        for delivery in batch:
            delivery.body.close()
        self._done.extend(batch)
        if not self._waking:
            self._waking = True
            with contextlib.suppress(RuntimeError):  # the loop was closed over us: nobody waits any more
                self._loop.call_soon_threadsafe(self._finish)

    def _deliver_all(self, batch: list[_Delivery]) -> None:
        """Delivers each or sets its error. Syncs overlap; each folder is synced once for the whole batch."""
        failures: Counter[str] = Counter()
        work = [(delivery, copy) for delivery in batch for copy in delivery.copies]
        for i in range(0, len(work), _DRAFTS_AT_ONCE):
            self._place(work[i : i + _DRAFTS_AT_ONCE], failures)
        self._undo_failed(batch)
        if self._sync:
            self._sync_folders(work, failures)
            self._undo_failed(batch)
        for failure, count in failures.items():
            log.error("%s: %d message(s) deferred: %s", self._boxes.template, count, failure)

    def _place(self, work: list[tuple[_Delivery, _Copy]], failures: Counter[str]) -> None:
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
                    self._fail(delivery, copy, error, failures)

    def _fail(self, delivery: _Delivery, copy: _Copy, error: Exception, failures: Counter[str]) -> None:
        # A new error without a traceback: that would keep the whole batch alive in its frames.
        delivery.error = _reply(error)
        self._known.discard(copy.folder)
        if not isinstance(error, OSError):
            log.error("%s: cannot deliver", self._boxes.template, exc_info=error)
        failures[str(error)] += 1

    def _write(self, delivery: _Delivery, copy: _Copy) -> None:
        if delivery.separator is None:
            delivery.separator = separator(delivery.body.beginning(BEGINNING))
        head = copy.head + delivery.separator
        if self._boxes.per_recipient and copy.folder not in self._known:
            self._make(copy.folder)
        try:
            copy.draft = delivery.body.draft(copy.folder + b"/tmp", head, self._mode)
        except FileNotFoundError:
            if not self._boxes.per_recipient:
                raise
            self._make(copy.folder)  # its owner left, mail still comes
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
        failed: dict[bytes, OSError] = {}
        for folder in dict.fromkeys(copy.folder for delivery, copy in work if delivery.error is None):
            try:
                self._folder_sync.sync(folder + b"/new")
            except OSError as error:
                failed[folder] = error
        for delivery, copy in work:
            if delivery.error is None and copy.folder in failed:
                self._fail(delivery, copy, failed[copy.folder], failures)

    def _undo_failed(self, batch: list[_Delivery]) -> None:
        for delivery in batch:
            if delivery.error is None:
                continue
            for copy in delivery.copies:
                if copy.linked is None:
                    continue
                with contextlib.suppress(OSError):  # a reader may have taken it already
                    os.unlink(copy.linked)
                    if self._sync:
                        sync_folder(os.path.dirname(copy.linked))
                copy.linked = None

    # Folders

    def _prepare(self) -> None:
        """Makes what there is of folders without a recipient, and tries whether they can be written."""
        root = self._boxes.root
        try:
            missing = []
            folder = root
            while not os.path.isdir(folder):
                missing.append(folder)
                folder = os.path.dirname(folder)
            for folder in reversed(missing):
                self._make_folder(folder)
            if self._boxes.per_recipient:
                trial = root
            else:
                self._make(root)
                trial = root + b"/tmp"
                if not os.access(root + b"/new", os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), root + b"/new")
            if self._sync:
                for folder in missing:
                    sync_folder(os.path.dirname(folder))
            Draft(trial, self._mode).close()
        except OSError as error:
            where = os.fsdecode(error.filename) if error.filename else self._boxes.template
            raise ConfigError(
                f"maildir {self._boxes.template}: {where}: {error.strerror}; "
                "make it a folder that the user of this process may write"
            ) from None

    def _make(self, mailbox: bytes) -> None:
        """Makes a mailbox and what lies between the root and it. Raises OSError.

        Not the root: if it has gone, a file system may be unmounted, and mail must not go beneath its mount
        point.
        """
        with self._making:
            folders = [self._boxes.root]
            for level in mailbox.removeprefix(self._boxes.root).strip(b"/").split(b"/"):
                if level:
                    folders.append(os.path.join(folders[-1], level))
                    self._make_folder(folders[-1])
            for name in (b"tmp", b"new", b"cur"):
                self._make_folder(os.path.join(mailbox, name))
            if self._sync:  # even if they were there: another worker may have made them just now
                for folder in reversed(folders):
                    sync_folder(folder)
            if len(self._known) >= _REMEMBERED_MAILBOXES:
                self._known.clear()
            self._known.add(mailbox)

    def _make_folder(self, path: bytes) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, self._folder_mode)
            if self._folder_mode != 0o700:
                os.chmod(path, self._folder_mode)


def _queue_id(envelope: Envelope) -> str:
    return _NOT_ID.sub("_", str(envelope.id))[:_MAX_ID] or "_"


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
