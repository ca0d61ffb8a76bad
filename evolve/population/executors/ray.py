"""`ray`: workers on a cluster, or on a small one of this machine's own."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat

from evolve.errors import EvolveError, described, missing_package
from evolve.population.blobs import BlobFolder, MemoryBlobs
from evolve.population.executors.base import executors
from evolve.population.executors.pool import Pool, PoolOptions, Worker
from evolve.population.jobs import Json, Setup
from evolve.population.worker import create_evaluator, encode, end_with, refusal, respond

logger = logging.getLogger(__name__)

_NOTHING: Json = {"written": {}, "held": []}
_SENT = 16  # blobs that are held ready in the cluster's memory, as siblings come from the same parents


@executors.register("ray")
class Ray(Pool):
    """Actors. They share no folder with the search: weights travel through the cluster's object store.

    An actor gets only those that it does not have from its last children.
    """

    class Options(PoolOptions):
        """How many there are, and what each takes of the cluster.

        Attributes:
            cpus: Cores of each, also a part of one.
            gpus: GPUs of each, also a part of one.
            address: Of a cluster that runs, such as "auto" or "ray://head:10001"; null for one of the search's own, on
                this machine. A Ray that the program has initialised before is used as it is.
        """

        cpus: NonNegativeFloat = 1.0
        gpus: NonNegativeFloat = 0.0
        address: str | None = None

    def start(self, setup: Setup, blobs: Path) -> None:
        """Connects to the cluster and begins the actors."""
        try:
            import ray
        except ImportError as error:
            raise EvolveError(missing_package("The executor 'ray'", "ray", error)) from error
        device = "cuda" if self.options.gpus else setup.device
        self._setup = replace(setup, threads=max(1, int(self.options.cpus)), device=device)
        self._blobs = _Sent(BlobFolder(blobs))
        own = not ray.is_initialized()
        if own:
            self._connect()
        self._end = weakref.finalize(self, _end_all, self._workers, own)
        self._check_room()
        self._actor = ray.remote(
            num_cpus=self.options.cpus, num_gpus=self.options.gpus, max_restarts=0, max_task_retries=0
        )(_Actor)
        self._begin()

    def close(self) -> None:
        """Kills the actors, and ends the cluster if it is the search's own."""
        if hasattr(self, "_end"):
            self._end()

    def _connect(self) -> None:
        import ray

        own: Json = {}
        if self.options.address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            own = {"num_cpus": max(1, math.ceil(self.workers * self.options.cpus)), "include_dashboard": False}
        try:
            ray.init(address=self.options.address or "local", logging_level=logging.ERROR, **own)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise EvolveError(
                f"No connection to a Ray cluster at {self.options.address or 'this machine'}: {described(error)} "
                "Check the option `address`, and that the cluster runs the same versions of Ray and Python."
            ) from error

    def _check_room(self) -> None:
        import ray

        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        for name, resource in (("cpus", "CPU"), ("gpus", "GPU")):
            each = getattr(self.options, name)
            found = there.get(resource, 0.0)
            if each * self.workers > found + 1e-6:
                raise EvolveError(
                    f"{self.workers} workers with {each:g} {name} each need {each * self.workers:g}, and the cluster "
                    f"has {found:g}. Set `workers` or `{name}` lower; parts of one, such as 0.5, are allowed."
                )

    def _new(self, number: int) -> Worker:
        return _RayWorker(number, self._actor.remote(), self._setup, self._blobs)

    def _heard(self, workers: Collection[Worker], seconds: float) -> Collection[Worker]:
        import ray

        out = {each.out: each for each in workers if isinstance(each, _RayWorker) and each.out is not None}
        if not out:
            return []
        if ray.wait(list(out), timeout=seconds)[0]:
            return [out[ref] for ref in ray.wait(list(out), num_returns=len(out), timeout=0)[0]]
        return []


class _Actor:
    """What runs in the cluster. Its first call is `begin`."""

    def begin(self, number: int, setup: Json, path: list[str], level: int) -> Json:
        """Makes the evaluator. Modules are also looked for where the driver finds them, should that folder be here."""
        sys.path += [folder for folder in path if folder not in sys.path]
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
        sys.stdout = sys.stderr  # what an evaluator prints is no result of the driver's
        logging.basicConfig(level=level, format=f"worker {number}: %(message)s", stream=sys.stderr, force=True)
        os.environ["OMP_NUM_THREADS"] = str(setup["threads"])
        self._blobs = MemoryBlobs()
        try:
            self._evaluator = create_evaluator(Setup(**setup))
        except Exception as error:  # of anybody's code; the driver tells it
            return {"content": refusal(error), **_NOTHING}
        return {"content": {"ready": True}, **_NOTHING}

    def call(self, message: bytes, names: list[str], *contents: bytes) -> Json:
        """Answers an order; with it come the weights that the evaluator has written."""
        self._blobs.begin(dict(zip(names, contents, strict=True)))
        content = json.loads(respond(self._evaluator, self._blobs, message))
        return {"content": content, "written": self._blobs.written, "held": self._blobs.trim()}


class _RayWorker(Worker):
    """An actor, and what it was called for: to begin, and an order that may wait for that."""

    def __init__(self, number: int, actor: Any, setup: Setup, blobs: _Sent) -> None:
        super().__init__(number)
        self._actor, self._blobs = actor, blobs
        self._held: list[str] = []
        self._ending = ""
        level = logging.getLogger().getEffectiveLevel()
        self._calls = deque([actor.begin.remote(number, asdict(setup), sys.path, level)])

    @property
    def out(self) -> Any:
        """The reference to what it answers next; None while it is idle."""
        return self._calls[0] if self._calls else None

    def send(self, method: str, order: Json) -> None:
        """Calls the actor, with the weights that it does not have yet."""
        sent = self._blobs.references([name for name in order["weights"] if name not in self._held])
        self._calls.append(self._actor.call.remote(encode([method, order]), list(sent), *sent.values()))

    def receive(self) -> Json | None:
        """Returns what it has answered, once the weights that came with it are on the disk."""
        import ray

        try:
            reply = ray.get(self._calls.popleft())
        except ray.exceptions.RayError as error:
            self._ending = described(error).strip().partition("\n")[0]
            return None
        self._held = reply["held"]
        self._blobs.keep(reply["written"])
        content: Json = reply["content"]
        return content

    def ended(self) -> bool:
        """Nothing but a call can tell."""
        return False

    def ending(self) -> str:
        """Returns what Ray says of it."""
        return f"it was lost by Ray ({self._ending})"

    def end(self) -> None:
        """Kills the actor."""
        import ray

        ray.kill(self._actor)


class _Sent:
    """The driver's weights, as references into the cluster's memory."""

    def __init__(self, folder: BlobFolder) -> None:
        self._folder = folder
        self._references: OrderedDict[str, Any] = OrderedDict()

    def references(self, names: Iterable[str]) -> dict[str, Any]:
        """Returns those that are there by name; the log tells of others, and the evaluator will when it needs them."""
        found = {}
        for name in names:
            try:
                found[name] = self._references.get(name) or self._put(name)
            except EvolveError as error:
                logger.warning("%s", error)
                continue
            self._references[name] = found[name]
            self._references.move_to_end(name)
        while len(self._references) > _SENT:
            self._references.popitem(last=False)
        return found

    def keep(self, written: Mapping[str, bytes]) -> None:
        """Writes to the folder what an actor has made."""
        for content in written.values():
            self._folder.write(content)

    def _put(self, name: str) -> Any:
        import ray

        return ray.put(self._folder.read(name))


def _end_all(workers: list[Worker], own: bool) -> None:
    import ray

    if not ray.is_initialized():  # the program has shut it down, or ends
        return
    while workers:
        workers.pop().end()
    if own:
        ray.shutdown()
