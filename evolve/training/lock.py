"""One process at a time writes to a run folder."""

from __future__ import annotations

import logging
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from evolve.errors import EvolveError

logger = logging.getLogger(__name__)

FILE = ".lock"

if sys.platform == "win32":
    import msvcrt

    def _acquire(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # far behind the text, which others could not read otherwise
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _release(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _acquire(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _release(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing it is not enough: workers of a DataLoader share it


def is_held(folder: Path) -> bool:
    """Whether a process writes to a run folder; false where that cannot be told."""
    try:
        descriptor = os.open(folder / FILE, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        _acquire(descriptor)
        _release(descriptor)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


class RunLock:
    """Holds a run folder, as a context. The system lets go of it when the process ends, however it ends.

    Args:
        folder: The run folder; it is made if it is not there.

    Raises:
        EvolveError: On entry, if another run holds it, naming its process and machine.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(self._folder / FILE, flags, 0o666)
        except OSError as error:
            raise EvolveError(f"The run folder '{self._folder}' cannot be written to: {error}.") from error
        try:
            _acquire(descriptor)
        except (BlockingIOError, PermissionError) as error:
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise EvolveError(
                f"'{self._folder}' is in use by another run ({holder or 'unknown process'}). Wait until it ends, "
                "stop it, or write elsewhere (output.dir=...)."
            ) from error
        except OSError as error:  # a file system that knows no locks
            logger.warning("'%s' cannot be locked (%s): see to it that no other run writes there.", self._folder, error)
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            with suppress(OSError):  # of a file system that knows no locks, told on entry
                _release(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
