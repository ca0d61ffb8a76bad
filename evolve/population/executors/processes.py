"""`processes`: workers on this machine, each a process of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path

from pydantic import PositiveFloat, PositiveInt

from evolve.errors import EvolveError
from evolve.population.executors.base import Executor, executors
from evolve.population.jobs import Answer, Json, Setup
from evolve.population.worker import encode
from evolve.registry import TypedOptions

logger = logging.getLogger(__name__)

_LOOK = 0.5  # seconds between two looks at workers that may have ended or run out of time
_STARTS = 5  # processes in a row that ended before they were ready


@executors.register("processes")
class Processes(Executor):
    """Processes that share nothing with the search but a pipe and the folder of weights.

    One that ends, is killed, or does not answer in time costs the child it was at, and is replaced.
    """

    class Options(TypedOptions):
        """How many there are, and what each may take.

        Attributes:
            workers: Processes.
            threads: Of torch, in each.
            timeout: Seconds that one call may take, the making of a child or its training; null for no limit.
            devices: Such as [cuda:0, cuda:1], dealt out to the workers in turn; empty for what the configuration says.
        """

        workers: PositiveInt = 2
        threads: PositiveInt = 1
        timeout: PositiveFloat | None = None
        devices: tuple[str, ...] = ()

    @property
    def workers(self) -> int:
        """As many as the options say."""
        return int(self.options.workers)

    def start(self, setup: Setup, blobs: Path) -> None:
        """Begins the processes."""
        if sys.platform == "win32":
            raise EvolveError("The executor 'processes' needs Linux or macOS. Use 'in_process' or 'ray'.")
        self._setup, self._blobs = setup, blobs
        self._starts = 0
        self._lost: list[Answer] = []
        self._processes: list[_Process] = []
        self._end = weakref.finalize(self, _end_all, self._processes, os.getpid())
        for number in range(self.workers):
            self._processes.append(self._new(number))
        while not all(process.ready for process in self._processes):
            self._look(_LOOK)

    def idle(self) -> list[int]:
        """Returns the numbers of those that are at nothing."""
        lost = {answer.worker for answer in self._lost}
        return [p.number for p in self._processes if p.called_at is None and p.number not in lost]

    def call(self, worker: int, method: str, order: Json) -> None:
        """Sends an order. What is to be trained may have died with the process that made it: it is lost then."""
        process = self._processes[worker]
        if method == "make" or process.has_made:
            process.call(encode([method, order]))
        else:
            self._lost.append(Answer(worker, None, "the process that made it has ended"))

    def wait(self, timeout: float | None = None) -> list[Answer]:
        """Waits at the pipes, and looks after the processes meanwhile."""
        end = float("inf") if timeout is None else time.monotonic() + timeout
        answers, self._lost = self._lost, []
        while not answers and any(process.called_at is not None for process in self._processes):
            left = end - time.monotonic()
            answers = self._look(max(0.0, min(_LOOK, left)))
            if left <= 0:
                break
        return answers

    def close(self) -> None:
        """Kills the processes: what they have finished is kept, what they are at is of no use."""
        if hasattr(self, "_end"):
            self._end()

    def _look(self, seconds: float) -> list[Answer]:
        """Returns what came in within some seconds."""
        came = wait([process.connection for process in self._processes], seconds)
        news = [self._news(process, process.connection in came) for process in list(self._processes)]
        return [answer for answer in news if answer is not None]

    def _news(self, process: _Process, came: bool) -> Answer | None:
        """Takes what a process has sent; where it is lost, another one takes its place."""
        message = process.receive() if came else None
        if message is not None and process.ready:
            return process.answer(message)
        if message is not None:
            self._begun(process, message)
            return None
        if came or process.popen.poll() is not None:
            why = process.ending()
        elif self.options.timeout is not None and process.seconds() > self.options.timeout:
            why = f"it did not answer within {self.options.timeout:g} seconds"
        else:
            return None
        logger.warning("Worker %d is replaced: %s", process.number, why)
        process.end()
        self._starts += not process.ready
        if self._starts >= _STARTS:
            raise EvolveError(
                f"{self._starts} processes in a row ended before they were ready; the last one: {why}. "
                "Use fewer workers where memory is short; 'in_process' shows what else may be wrong."
            )
        self._processes[process.number] = self._new(process.number)
        return None if process.called_at is None else Answer(process.number, None, why, process.seconds())

    def _begun(self, process: _Process, message: Json) -> None:
        if "refused" in message:
            raise EvolveError(message["refused"])
        self._starts = 0
        process.ready = True
        if process.called_at is not None:  # the clock of a call does not count the start
            process.called_at = time.monotonic()

    def _new(self, number: int) -> _Process:
        devices = self.options.devices
        device = devices[number % len(devices)] if devices else self._setup.device
        setup = replace(self._setup, threads=self.options.threads, device=device)
        return _Process(number, setup, self._blobs)


class _Process:
    """A worker process, and the driver's end of its pipe.

    Attributes:
        ready: Whether its evaluator is made.
        has_made: Whether an individual is made in it.
        called_at: When it was called; None while it is idle.
    """

    def __init__(self, number: int, setup: Setup, blobs: Path) -> None:
        self.number = number
        self.ready = self.has_made = False
        self.called_at: float | None = None
        self.connection, end = Pipe()
        # Modules are found where the driver finds them. A session of its own keeps Ctrl-C away: that is for the driver.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from evolve.population.worker import serve; "
            f"serve({end.fileno()}, {os.getpid()})"
        )
        self.popen = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what an evaluator prints is no result of the driver's
            pass_fds=(end.fileno(),),
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(setup.threads)},
        )
        end.close()
        level = logging.getLogger().getEffectiveLevel()
        self._send(encode({"worker": number, "setup": asdict(setup), "blobs": str(blobs.absolute()), "level": level}))

    def call(self, message: bytes) -> None:
        """Sends an order."""
        self.called_at = time.monotonic()
        self.has_made = True
        self._send(message)

    def receive(self) -> Json | None:
        """Returns what it has sent; None if it has ended."""
        try:
            found: Json = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return None
        return found

    def answer(self, content: Json) -> Answer:
        """Returns what it has answered; it is idle again."""
        seconds, self.called_at = self.seconds(), None
        return Answer(self.number, content, seconds=seconds)

    def seconds(self) -> float:
        """Returns how long it has been at a call, once it was ready for it."""
        return time.monotonic() - self.called_at if self.ready and self.called_at is not None else 0.0

    def ending(self) -> str:
        """Returns how it has ended."""
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(_LOOK)  # its pipe is closed a moment before it is gone
        code = self.popen.returncode
        if code is None:
            return "it closed its pipe"
        if code >= 0:
            return f"it ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"it was killed by {name}" + (", as the system does when memory is short" if name == "SIGKILL" else "")

    def end(self) -> None:
        """Kills it and the processes that load its data, and waits until it is gone."""
        with suppress(ProcessLookupError, PermissionError):  # nobody is left, or on macOS only what was not waited for
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self.connection.close()

    def _send(self, message: bytes) -> None:
        with suppress(OSError):  # it has ended: this is found where its answer is waited for
            self.connection.send_bytes(message)


def _end_all(processes: list[_Process], owner: int) -> None:
    if os.getpid() == owner:  # not in a fork of the driver
        while processes:
            processes.pop().end()
