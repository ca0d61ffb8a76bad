"""The folder of a run on several devices: rank 0 alone writes to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from evolve.distributed.world import World
from evolve.evolver.output import OutputConfig
from evolve.evolver.run_folder import RunFolder
from evolve.lineage import Lineage
from evolve.training import TrainState


def run_folder(world: World, config: OutputConfig, config_text: str, resolved: bool) -> RunFolder:
    """Returns the folder that a run is written to; see `RunFolder`."""
    if world.size == 1:
        return RunFolder(config, config_text, resolved)
    return SharedFolder(world, config, config_text, resolved)


class SharedFolder(RunFolder):
    """A run folder in which rank 0 writes, and holds the lock, for all; what it raises all raise.

    Every rank reads the checkpoint that a run goes on from by itself.

    Args:
        world: The ranks.
        config: As for `RunFolder`; likewise `config_text` and `resolved`.
    """

    def __init__(self, world: World, config: OutputConfig, config_text: str, resolved: bool) -> None:
        super().__init__(config, config_text, resolved)
        self._world = world

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs out of the folder."""
        with ExitStack() as stack:
            self._world.first_does(lambda: stack.enter_context(RunFolder.held(self)))
            yield

    def begin(self, step: int, *, testing: bool = False) -> None:
        """Makes the folder ready."""
        self._world.first_does(lambda: RunFolder.begin(self, step, testing=testing))

    def save(self, state: TrainState, lineage: Lineage, progress: dict[str, Any]) -> Path | None:
        """Writes a checkpoint; returns it, or None where there is no folder."""
        saved = self._world.first_does(lambda: _text(RunFolder.save(self, state, lineage, progress)))
        self.saved = Path(saved) if saved else self.saved
        return Path(saved) if saved else None

    def save_best(self, state: TrainState, lineage: Lineage, progress: dict[str, Any], *, testing: bool) -> None:
        """Writes the checkpoint of the best epoch so far."""
        self._world.first_does(lambda: RunFolder.save_best(self, state, lineage, progress, testing=testing))

    def settle(self, *, kept: bool) -> None:
        """At the end of a probation: what was best within it counts, or does not."""
        self._world.first_does(lambda: RunFolder.settle(self, kept=kept))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
