"""One thread at a time may do what concerns the whole process.

The generators of Python, NumPy and torch belong to the process, and so do the settings of torch. Whatever seeds,
saves or restores them, or runs a model as part of a look or a change, holds one lock while it does. Threads that only
train never wait for it.
"""

from __future__ import annotations

import os
import threading
from contextlib import ContextDecorator
from types import TracebackType


class _Exclusive(ContextDecorator):
    """A re-entrant lock, as a context manager or a decorator.

    A process that is forked while another thread holds the lock gets a new one: the thread that would release it does
    not exist there (the workers of a DataLoader are made so).
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


exclusive = _Exclusive()
