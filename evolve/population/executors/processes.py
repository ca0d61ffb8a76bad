"""`processes`: workers on this machine, each a process of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path

from pydantic import PositiveInt

from evolve.errors import EvolveError
from evolve.population.executors.base import executors
from evolve.population.executors.pool import Pool, PoolOptions, Worker
from evolve.population.jobs import Json, Setup
from evolve.population.worker import encode

_FIRST_START = 600.0  # seconds that a start may take of which nothing is known
_START, _START_FACTOR = 30.0, 10.0  # seconds another one may, and how many times as long as the slowest one so far


@executors.register("processes")
class Processes(Pool):
    """Processes that share nothing with the search but a pipe and the folder of weights."""

    class Options(PoolOptions):
        """How many there are, and what each may take.

        Attributes:
            threads: Of torch, in each.
            devices: Such as [cuda:0, cuda:1], dealt out to the workers in turn; empty for what the configuration says.
        """

        threads: PositiveInt = 1
        devices: tuple[str, ...] = ()

    def start(self, setup: Setup, blobs: Path) -> None:
        """Begins the processes."""
        if sys.platform == "win32":
            raise EvolveError("The executor 'processes' needs Linux or macOS. Use 'in_process' or 'ray'.")
        self._setup, self._blobs = setup, blobs
        self._end = weakref.finalize(self, _end_all, self._workers, os.getpid())
        self._begin()

    def close(self) -> None:
        """Kills the processes: what they have finished is kept, what they are at is of no use."""
        if hasattr(self, "_end"):
            self._end()

    def _new(self, number: int) -> Worker:
        devices = self.options.devices
        device = devices[number % len(devices)] if devices else self._setup.device
        return _Process(number, replace(self._setup, threads=self.options.threads, device=device), self._blobs)

    def _start_limit(self) -> float:
        """Nothing has to be waited for, so all starts take about as long."""
        return max(_START, _START_FACTOR * self._slowest_start) if self._slowest_start else _FIRST_START

    def _heard(self, workers: Collection[Worker], seconds: float) -> Collection[Worker]:
        pipes = {worker.connection: worker for worker in workers if isinstance(worker, _Process)}
        return [pipes[connection] for connection in wait(list(pipes), seconds) if connection in pipes]


class _Process(Worker):
    """A process, and the driver's end of its pipe."""

    def __init__(self, number: int, setup: Setup, blobs: Path) -> None:
        super().__init__(number)
        self.connection, end = Pipe()
        # Modules are found where the driver finds them. A session of its own keeps Ctrl-C away: that is for the driver.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from evolve.population.worker import serve; "
            f"serve({end.fileno()}, {os.getpid()})"
        )
        self._popen = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what an evaluator prints is no result of the driver's
            pass_fds=(end.fileno(),),
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(setup.threads)},
        )
        end.close()
        level = logging.getLogger().getEffectiveLevel()
        self._send({"worker": number, "setup": asdict(setup), "blobs": str(blobs.absolute()), "level": level})

    def send(self, method: str, order: Json) -> None:
        """Sends an order."""
        self._send([method, order])

    def receive(self) -> Json | None:
        """Returns what lies in the pipe; None if its other end is closed."""
        try:
            found: Json = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return None
        return found

    def ended(self) -> bool:
        """Whether the process is gone, though others that it has forked may still hold its pipe."""
        return self._popen.poll() is not None

    def ending(self) -> str:
        """Returns its exit code in words."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(1.0)  # a pipe is closed a moment before its process is gone
        code = self._popen.returncode
        if code is None:
            return "it closed its pipe"
        if code >= 0:
            return f"it ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"it was killed by {name}" + (", as the system does when memory is short" if name == "SIGKILL" else "")

    def end(self) -> None:
        """Kills the process and those that load its data."""
        with suppress(ProcessLookupError, PermissionError):  # nobody is left; macOS says so in another way
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        self.connection.close()

    def _send(self, message: Json | list[object]) -> None:
        with suppress(OSError):  # it has ended: this is found where its answer is waited for
            self.connection.send_bytes(encode(message))


def _end_all(workers: list[Worker], owner: int) -> None:
    if os.getpid() == owner:  # not in a fork of the driver
        while workers:
            workers.pop().end()
