"""One process at a time in a run directory."""

import fcntl
import json
import os
import socket
from pathlib import Path

from metalearn.registry import UserError
from metalearn.train.console import say


class Lock:
    """An exclusive lock on a folder by the file `lock` in it, which names its holder while it is held.

    The kernel frees it with the process, so a lock that kill -9 left behind is taken over. Where the file
    system has no such locks, the holder's pid decides. Raises UserError naming the holder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take()
        except BaseException:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Let others in. The file stays: deleting it would let two processes lock two files of one name."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def _take(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._held(self._holder()) from None
        except OSError:
            self._trust_the_pid()
        holder = self._holder()
        if holder:
            say(f"{self._path.parent}: taking over the lock of process {holder.get('pid')}, which is gone")
        os.ftruncate(self._descriptor, 0)
        mine = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.pwrite(self._descriptor, mine.encode(), 0)

    def _trust_the_pid(self) -> None:
        holder = self._holder()
        if holder and (holder.get("host") != socket.gethostname() or _alive(holder.get("pid"))):
            raise self._held(holder)

    def _holder(self) -> dict[str, object]:
        try:
            holder = json.loads(os.pread(self._descriptor, 4096, 0))
        except ValueError:
            return {}
        return holder if isinstance(holder, dict) else {}

    def _held(self, holder: dict[str, object]) -> UserError:
        return UserError(
            f"{self._path.parent}: process {holder.get('pid', '?')} on {holder.get('host', '?')} is running "
            f"in this directory; wait for it or end it, or choose another run_dir "
            f"(if it is surely gone, delete {self._path})"
        )


def _alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
