"""Files that must survive a power cut or a second process: flushing to disk, locks, and new names beside a file.

Some network and virtual file systems cannot flush a folder or lock a file. The work goes on there, and one note per
process and file system says what is no longer promised.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from minigpt.errors import MiniGPTError, note

# How a file system says that it lacks an operation; 524 is the Linux kernel's own ENOTSUPP, which NFS lets through.
UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, 524}
UNSYNCED = UNSUPPORTED | {errno.EACCES, errno.EBADF}  # a folder that cannot be opened, or only for writing
_noted: set[tuple[str, int]] = set()


def fresh(path: Path) -> Path:
    """Return an unused name beside `path`. A file or folder made there obeys the umask, unlike one from `mkstemp`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextmanager
def syncing(path: Path) -> Iterator[None]:
    """Accept that an `fsync` inside fails where the file system of `path` has none; a note says so once."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise
        _note_once(
            "sync", path,
            f"The file system of '{path}' cannot flush to disk ({error.strerror}): a power cut may lose or damage what "
            "was written last.",
        )  # fmt: skip


def sync_file(file: IO) -> None:
    """Flush an open file to disk, where its file system can."""
    file.flush()
    with syncing(Path(file.name)):
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Flush a closed file, or the entries of a folder, to disk, where the file system can."""
    with syncing(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def lock(path: Path, blocking: bool = True) -> ExitStack:
    """Take the lock of a file, which the system releases when the process ends, however it ends.

    Args:
        path: The file, in a folder that exists.
        blocking: Wait for a process that holds it.

    Returns:
        A context, also with `close()`, that releases the lock; it holds nothing where files cannot be locked.

    Raises:
        filelock.Timeout: Another process holds it, and `blocking` is false.
        MiniGPTError: The file cannot be opened.
    """
    held = ExitStack()
    try:
        path.open("ab").close()  # by umask, which FileLock would narrow
        file = FileLock(path, fallback_to_soft=False)  # the mere presence of a file would outlive a killed process
        file.acquire(blocking=blocking)
        held.callback(file.release)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or "not implemented"
        if getattr(error, "errno", errno.ENOSYS) not in UNSUPPORTED:
            raise MiniGPTError(
                f"The lock file '{path}' cannot be used ({reason}). Make it writable, or pass a different folder."
            ) from error
        _note_once(
            "lock", path,
            f"The file system of '{path}' cannot lock files ({reason}): do not start a second process on this folder, "
            "since nothing would keep the two apart.",
        )  # fmt: skip
    return held


def _note_once(operation: str, path: Path, text: str) -> None:
    key = operation, os.stat(path).st_dev
    if key not in _noted:
        _noted.add(key)
        note(text)
