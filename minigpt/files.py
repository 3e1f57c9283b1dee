"""Flushing files to disk, locking them, and unused file names, so that files survive a power cut or a second process.

Some network and virtual file systems cannot flush a folder or lock a file. Work continues there, and a note, once per
process and file system, says what is not guaranteed.
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

# The errors of file systems that lack an operation; 524 is the Linux kernel's ENOTSUPP, which NFS passes on.
UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, 524}
UNSYNCED = UNSUPPORTED | {errno.EACCES, errno.EBADF}  # a folder that cannot be opened, or only for writing
_noted: set[tuple[str, int]] = set()


def fresh(path: Path) -> Path:
    """Return an unused name in the folder of `path`. A file created there follows the umask, unlike with `mkstemp`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextmanager
def syncing(path: Path) -> Iterator[None]:
    """Ignore a failing `fsync` if the file system of `path` does not support it; a note says so once."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise
        _note_once(
            "sync", path,
            f"The file system of '{path}' cannot flush to disk ({error.strerror}). A power cut may lose or damage the "
            "latest files.",
        )  # fmt: skip


def sync_file(file: IO) -> None:
    """Flush an open file to disk if its file system supports it."""
    file.flush()
    with syncing(Path(file.name)):
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Flush a closed file, or the entries of a folder, to disk if the file system supports it."""
    with syncing(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def lock(path: Path, blocking: bool = True) -> ExitStack:
    """Acquire the lock of a file, which the system releases when the process ends, however it ends.

    Args:
        path: The file, in a folder that exists.
        blocking: Whether to wait for another process that holds the lock.

    Returns:
        A context manager, also with `close()`, that releases the lock. It is empty if files cannot be locked.

    Raises:
        filelock.Timeout: Another process holds the lock, and `blocking` is false.
        MiniGPTError: The file cannot be opened.
    """
    held = ExitStack()
    try:
        path.open("ab").close()  # created with the umask, where FileLock would restrict the permissions
        file = FileLock(path, fallback_to_soft=False)  # a soft lock, which is a file, would outlive a killed process
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
            f"The file system of '{path}' cannot lock files ({reason}). Do not start a second process on this folder: "
            "the two would overwrite each other's files.",
        )  # fmt: skip
    return held


def _note_once(operation: str, path: Path, text: str) -> None:
    key = operation, os.stat(path).st_dev
    if key not in _noted:
        _noted.add(key)
        note(text)
