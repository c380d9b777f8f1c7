"""A body is the content of one message, in memory or in a spill file; it is handed on without a copy.

Knows buffers, unnamed files, and how a file gets its name only when it is whole. Refuses to know SMTP,
mailboxes and the loop: calls here may wait for a disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import itertools
import mmap
import os
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from typing_extensions import Buffer

# An O_TMPFILE gets its name through /proc, so both are needed. Elsewhere files are named from the start.
_O_TMPFILE: int = getattr(os, "O_TMPFILE", 0) if os.path.isdir("/proc/self/fd") else 0
_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS})
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_NO_KERNEL_COPY = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY}
)
_COPY_CHUNK = 1 << 20
_part_numbers = itertools.count()


def sync_file(fd: int) -> None:
    """Waits until the octets of the file are on the disk. Raises OSError."""
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync() there stops at the drive's cache
    else:
        os.fdatasync(fd)


def sync_folder(path: bytes) -> None:
    """Waits until the entries of the folder are on the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if sys.platform == "darwin":
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, *buffers: Buffer) -> None:
    """Writes all the buffers at the file's position, in one call if the kernel takes them. Raises OSError."""
    rest = [memoryview(buffer) for buffer in buffers]
    while rest:
        written = os.writev(fd, rest)
        while rest and written >= rest[0].nbytes:
            written -= rest.pop(0).nbytes
        if written:
            rest[0] = rest[0][written:]


def copy_range(source: int, offset: int, count: int, target: int) -> None:
    """Appends ``count`` octets from ``offset`` of one file to another, in the kernel where it can.

    copy_file_range shares blocks on XFS and btrfs and refuses some pairs of file systems, which sendfile
    takes. Raises OSError.
    """
    for copy in (_copy_file_range, _sendfile, _read_write):
        while count:
            try:
                done = copy(source, offset, count, target)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY or copy is _read_write:
                    raise
                break
            if done == 0:
                break
            offset += done
            count -= done
    if count:
        raise OSError(errno.EIO, f"the file ended {count} octets too early")


def _copy_file_range(source: int, offset: int, count: int, target: int) -> int:
    if not hasattr(os, "copy_file_range"):
        return 0
    return os.copy_file_range(source, target, count, offset_src=offset)


def _sendfile(source: int, offset: int, count: int, target: int) -> int:
    if sys.platform == "darwin":  # sends to sockets only
        return 0
    return os.sendfile(target, source, offset, count)


def _read_write(source: int, offset: int, count: int, target: int) -> int:
    data = os.pread(source, min(count, _COPY_CHUNK), offset)
    write_all(target, data)
    return len(data)


class Draft:
    """A file that is being written and has no name yet, so that a crash leaves nothing of it.

    Where the file system has no O_TMPFILE it bears a name beginning with a dot in ``folder``, which close()
    removes. Every method may raise OSError.
    """

    __slots__ = ("_fd", "_part")

    def __init__(self, folder: bytes, mode: int = 0o600) -> None:
        self._part: bytes | None = None
        self._fd = -1
        if _O_TMPFILE:
            try:
                self._fd = os.open(folder, _O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, mode)
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
        if self._fd < 0:
            part = os.path.join(folder, b".fastsmtp-%d-%d" % (os.getpid(), next(_part_numbers)))
            self._fd = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
            self._part = part
        if mode != 0o600:  # the operator's choice holds whatever the umask
            os.fchmod(self._fd, mode)

    def write(self, *buffers: Buffer) -> None:
        """Writes all the buffers, in one call if the kernel takes them."""
        write_all(self._fd, *buffers)

    def copy(self, source: int, offset: int, count: int) -> None:
        """Appends ``count`` octets from ``offset`` of the file ``source``."""
        copy_range(source, offset, count, self._fd)

    def start_sync(self) -> None:
        """Starts to write to the disk without waiting, so that the sync() of many drafts overlap.

        Measured on ext4, 32 files of 4 kB: 85 us each instead of 162.
        """
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Waits until the octets are on the disk."""
        sync_file(self._fd)

    def link(self, path: bytes) -> None:
        """Gives the file the name ``path``, whole and at once. FileExistsError if there is one."""
        if self._part is None:
            # Only linkat(2) follows /proc to the file, and CPython takes it only when a folder is given.
            os.link(b"/proc/self/fd/%d" % self._fd, path, src_dir_fd=self._fd, follow_symlinks=True)
            return
        fd, self._fd = self._fd, -1
        os.close(fd)  # NFS tells of a full disk only here
        try:
            os.link(self._part, path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
            os.rename(self._part, path)
            self._part = None

    def close(self) -> None:
        """Forgets the file, unless it was given a name. May be called twice."""
        fd, self._fd = self._fd, -1
        part, self._part = self._part, None
        if part is not None:
            with contextlib.suppress(OSError):
                os.unlink(part)
        if fd >= 0:
            os.close(fd)


class Body(ABC):
    """The content of one message: ``size`` octets, whatever they lie in. Made by in_memory() or in_file()."""

    __slots__ = ("size", "spilled")
    size: int
    spilled: bool

    @staticmethod
    def in_memory(data: Buffer) -> Body:
        """The octets of ``data``, which must not change any more."""
        return _MemoryBody(data)

    @staticmethod
    def in_file(fd: int, *, size: int, head: bytes = b"", unnamed: bool = False) -> Body:
        """``size`` octets of the open file ``fd``, which begins with ``head``. Owns ``fd`` from now on.

        ``unnamed`` says that it is an O_TMPFILE, which can still be linked.
        """
        return _FileBody(fd, size, head, unnamed)

    @abstractmethod
    def view(self) -> memoryview:
        """The content, read-only and without a copy; of a spilled body a map of the file."""

    @abstractmethod
    def beginning(self, count: int) -> bytes:
        """A copy of the first ``count`` octets, or of all if there are fewer. Raises OSError."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """A file of its own to read the content from, beginning at 0; it outlives close()."""

    @abstractmethod
    def draft(self, folder: bytes, head: bytes = b"", mode: int = 0o600) -> Draft:
        """A draft in ``folder`` with ``head`` and the content. It needs the body until it is closed.

        Raises OSError, with nothing left behind.
        """

    def link_to(self, path: str | bytes | os.PathLike[str], *, head: bytes = b"") -> None:
        """Creates the file ``path`` with ``head`` and the content: whole or not at all, and not synced.

        A spilled body whose file begins with just ``head`` is linked if it lies in the same file system, else
        copied by the kernel. FileExistsError if ``path`` exists; other OSErrors as they come.
        """
        target = os.fsencode(path)
        draft = self.draft(os.path.dirname(target) or b".", head)
        try:
            draft.link(target)
        finally:
            draft.close()

    @abstractmethod
    def share(self) -> Body:
        """The same content for another owner, who closes it himself. Raises OSError (no more open files)."""

    @abstractmethod
    def sync(self) -> None:
        """Waits until a spilled body's file is on the disk. Raises OSError."""

    @abstractmethod
    def close(self) -> None:
        """Frees the file; memory goes with its last user. Views and open files of it stay good."""

    def __bytes__(self) -> bytes:
        return bytes(self.view())

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _MemoryBody(Body):
    __slots__ = ("_data",)

    def __init__(self, data: Buffer) -> None:
        self._data = data
        self.size = len(data) if type(data) is bytes else memoryview(data).nbytes
        self.spilled = False

    def view(self) -> memoryview:
        return memoryview(self._data).toreadonly()

    def beginning(self, count: int) -> bytes:
        data = self._data
        return data[:count] if type(data) is bytes else bytes(memoryview(data)[:count])

    def open(self) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, io.BytesIO(bytes(self)))))  # read-only

    def draft(self, folder: bytes, head: bytes = b"", mode: int = 0o600) -> Draft:
        draft = Draft(folder, mode)
        try:
            draft.write(head, self._data)
        except BaseException:
            draft.close()
            raise
        return draft

    def share(self) -> Body:
        return self

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass  # whoever shares it may still be writing it somewhere

    def __bytes__(self) -> bytes:
        return bytes(self._data)


class _FileBody(Body):
    __slots__ = ("_fd", "_head", "_map", "_unnamed")

    def __init__(self, fd: int, size: int, head: bytes, unnamed: bool) -> None:
        self._fd = fd
        self._head = head
        self._unnamed = unnamed
        self._map: mmap.mmap | None = None
        self.size = size
        self.spilled = True

    def view(self) -> memoryview:
        if not self.size:
            return memoryview(b"")
        start = len(self._head)
        if self._map is None:
            self._map = mmap.mmap(self._fd, start + self.size, prot=mmap.PROT_READ)
        return memoryview(self._map)[start:]

    def beginning(self, count: int) -> bytes:
        return os.pread(self._fd, min(count, self.size), len(self._head))

    def open(self) -> BinaryIO:
        fd = fcntl.fcntl(self._fd, fcntl.F_DUPFD_CLOEXEC, 0)
        return cast(BinaryIO, io.BufferedReader(_Window(fd, len(self._head), self.size), _COPY_CHUNK // 8))

    def draft(self, folder: bytes, head: bytes = b"", mode: int = 0o600) -> Draft:
        if self._unnamed and head == self._head and os.fstat(self._fd).st_dev == os.stat(folder).st_dev:
            return _SpillDraft(self, self._fd, folder, mode)
        return self.copied_draft(folder, head, mode)

    def copied_draft(self, folder: bytes, head: bytes, mode: int) -> Draft:
        draft = Draft(folder, mode)
        try:
            draft.write(head)
            draft.copy(self._fd, len(self._head), self.size)
        except BaseException:
            draft.close()
            raise
        return draft

    def share(self) -> Body:
        fd = fcntl.fcntl(self._fd, fcntl.F_DUPFD_CLOEXEC, 0)
        return _FileBody(fd, self.size, self._head, self._unnamed)

    @property
    def head(self) -> bytes:
        return self._head

    def sync(self) -> None:
        sync_file(self._fd)

    def close(self) -> None:
        self._map = None
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # A forgotten body would hold disk space that no tool can show.
        self.close()


class _SpillDraft(Draft):
    """The spill file itself, to be linked. One file may so come to lie in several mailboxes."""

    __slots__ = ("_body", "_copy", "_folder", "_mode", "_synced")

    def __init__(self, body: _FileBody, fd: int, folder: bytes, mode: int) -> None:
        self._fd = fd
        self._part = None
        self._body = body
        self._folder = folder
        self._mode = mode
        self._synced = False
        self._copy: Draft | None = None
        if mode != 0o600:
            os.fchmod(fd, mode)

    def sync(self) -> None:
        self._synced = True
        super().sync()

    def link(self, path: bytes) -> None:
        if self._copy is None:
            try:
                return super().link(path)
            except OSError as error:
                if error.errno != errno.EXDEV:  # a bind mount: the same device, and yet another place
                    raise
            self._copy = self._body.copied_draft(self._folder, self._body.head, self._mode)
            if self._synced:
                self._copy.sync()
        return self._copy.link(path)

    def close(self) -> None:
        self._fd = -1  # the body's
        if self._copy is not None:
            self._copy.close()


class _Window(io.RawIOBase):
    """``size`` octets of a file from ``start`` on, with a position of its own."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd = fd
        self._start = start
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        raise io.UnsupportedOperation("the file holds more than the content")

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        if not view:
            return 0
        count = os.preadv(self._fd, [view], self._start + self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"position {base + offset} lies before the content")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        super().close()


class Spill:
    """A file in ``directory`` for content too large for memory. It has no name, so a crash leaves nothing.

    It begins with ``head``: what a sink wants in front of the content, so that it can link the file as it is.
    Raises OSError.
    """

    __slots__ = ("_fd", "_head", "_unnamed", "size")

    def __init__(self, directory: Path, head: bytes = b"") -> None:
        self._fd = -1
        self._head = head
        self._unnamed = False
        self.size = 0  # octets of content
        if _O_TMPFILE:
            try:
                self._fd = os.open(directory, _O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
                self._unnamed = True
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
        if self._fd < 0:
            import tempfile  # only here: with what it imports it takes 1.4 MB of each worker

            self._fd, name = tempfile.mkstemp(prefix=".fastsmtp-", dir=directory)
            os.unlink(name)
        try:
            if head:
                write_all(self._fd, head)
        except BaseException:
            self.close()
            raise

    def write(self, data: memoryview) -> None:
        """Appends all of ``data``. Raises OSError; then the spill is of no use any more but to close()."""
        write_all(self._fd, data)
        self.size += data.nbytes

    def body(self) -> Body:
        """The body that was written. It owns the file from now on."""
        fd, self._fd = self._fd, -1
        return Body.in_file(fd, size=self.size, head=self._head, unnamed=self._unnamed)

    def close(self) -> None:
        """Forgets what was written, unless body() took it. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()
