"""Ctrl-C and SIGTERM as a request to stop after the current step."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from typing_extensions import Self

logger = logging.getLogger(__name__)

_RUN = (
    "the run stops when the step or mutation that it is in is done, and saves. A second one stops it at once; it can "
    "be resumed from its last checkpoint then."
)


class Interrupt:
    """Within the context, the first SIGINT or SIGTERM is noted and told; a second one acts as it always would.

    Attributes:
        signal: Number of the signal that came, or None.

    Args:
        told: What is said then.
    """

    def __init__(self, told: str = _RUN) -> None:
        self.signal: int | None = None
        self._told = told
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there Python lets handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._put_back()
        # In a thread: the signal may have come while this one was writing to the log.
        said = (signal.Signals(number).name, self._told)
        threading.Thread(target=logger.warning, args=("%s: %s", *said), daemon=True).start()

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
