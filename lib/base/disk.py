"""What a power cut must not take, and what two processes must not write at once.

Some file systems of clusters and containers have no locks, or cannot flush a folder. There a lock
is a marker file beside the lock's own, and a folder is as safe as the file system makes it.
"""

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from filelock import SoftFileLock, Timeout

LOCKS = ".locks"  # the folder of a store's locks
COMMAND = "command"  # the one that every command holds
MARKER = ".marker"  # the end of a marker's name
LACKING = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # said by file systems
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
log = logging.getLogger(__name__)
_held: set[int] = set()


class BusyError(RuntimeError):
    """What another process is at work on."""


def flush(path: Path) -> None:
    """Return when a file, or the names in a folder, are safely on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        sync(handle)
    finally:
        os.close(handle)


def sync(handle: int) -> None:
    """Flush an open file; where the file system cannot, it is written in the system's own time."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in LACKING:
            raise


def flush_all(folder: Path) -> None:
    """Flush a folder with all that is in it."""
    for path in (*folder.rglob("*"), folder):
        flush(path)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def locked(path: Path, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Hold the lock of `path`, after waiting for it; it ends with the process at the latest.

    Without `wait`, False stands for a lock that another one holds. Several may hold a `shared`
    one at once; it is for those who read, so who may not write need not have it.
    """
    with ExitStack() as stack:
        try:
            handle = stack.enter_context(_open(path))
            mine = _lock(handle, path, wait, shared)
        except OSError as error:
            if error.errno in LACKING:
                mine = shared or _mark(path, wait, stack)
            elif shared and error.errno in READ_ONLY:
                mine = True
            else:
                raise
        yield mine


def clear(folder: Path, keep: Iterable[str] = ()) -> None:
    """Remove all results of a store, but for what it holds under the names in `keep`.

    Raises BusyError, and removes nothing, while another process is at work there.
    """
    with ExitStack() as stack:
        locks = {COMMAND, *(path.name for path in (folder / LOCKS).glob("*"))}
        for name in sorted(name for name in locks if not name.endswith(MARKER)):
            if not stack.enter_context(locked(folder / LOCKS / name, wait=False)):
                raise BusyError(f"Nothing is removed: another process is at work in {folder} "
                                f"({name}). Wait for it or stop it, and run this again.")
        for path in folder.iterdir():
            if path.name not in {LOCKS, *keep}:
                remove(path)


def at_work(folder: Path) -> AbstractContextManager:
    """Let `clear` see, until the end of the block, that a command is at work in a store."""
    return locked(folder / LOCKS / COMMAND, shared=True)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(handle)
    try:
        yield handle
    finally:
        if handle in _held:
            _held.remove(handle)
            os.close(handle)


def _lock(handle: int, path: Path, wait: bool, shared: bool) -> bool:
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            return False
        log.warning("Waiting for another process that is at work on %s.", path.name)
        fcntl.flock(handle, how)
    return True


def _mark(path: Path, wait: bool, stack: ExitStack) -> bool:
    """Lock by a marker file; of a process that died on this machine it counts no more."""
    marker = SoftFileLock(f"{path}{MARKER}")
    try:
        marker.acquire(timeout=0)
    except Timeout:
        if not wait:
            return False
        log.warning("Waiting for another process that is at work on %s. If there is none: rm %s",
                    path.name, marker.lock_file)
        marker.acquire()
    stack.callback(marker.release)
    return True


def _close_inherited_locks() -> None:
    while _held:
        os.close(_held.pop())


# A forked worker that outlives its killed parent would hold the parent's lock for ever.
os.register_at_fork(after_in_child=_close_inherited_locks)
