"""The folder that a run is written to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from evolve.errors import EvolveError, NonFiniteLossError, NonFiniteModelError
from evolve.evolver.description import is_description
from evolve.evolver.output import OutputConfig
from evolve.lineage import Lineage
from evolve.training import TrainState
from evolve.training.checkpoint import abandon_best, save_checkpoint, settle_best, thin_out_best
from evolve.training.environment import ENVIRONMENT
from evolve.training.folder import clear_leftovers, remove, replace_text
from evolve.training.lock import RunLock
from evolve.training.opening import BEST, CONFIG, FOLDER, PENDING, Checkpoint, newer, open_newest
from evolve.training.run_files import ARCHITECTURE, FORECASTS, METRICS

_WRITTEN = ("lineage.jsonl", METRICS, FORECASTS, ENVIRONMENT, ARCHITECTURE, CONFIG)  # beside the checkpoints


class RunFolder:
    """The folder of one run; where it has none, nothing is written.

    One process at a time writes to a folder, within `held`.

    Attributes:
        saved: The newest checkpoint that the run wrote or was restored from.

    Args:
        config: Where the run is written.
        config_text: The resolved configuration, or a description of a run that was built in Python, saved with it.
        resolved: Whether it is the former; the one of the run that is taken up is kept otherwise.
    """

    def __init__(self, config: OutputConfig, config_text: str, resolved: bool) -> None:
        self.saved: Path | None = None
        self._resolved = resolved
        self._config = config
        self._config_text = config_text

    @property
    def path(self) -> Path | None:
        """The folder, if there is one."""
        return None if self._config.dir is None else Path(self._config.dir)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs out of the folder. Errors that end the run because of NaN say what was saved before.

        Raises:
            EvolveError: On entry, if another run is writing there, or it cannot be written to.
        """
        with nullcontext() if self.path is None else RunLock(self.path):
            try:
                yield
            except (NonFiniteLossError, NonFiniteModelError) as error:
                if self.saved is None:
                    raise
                told = f"{error} The last checkpoint, {self.saved}, is from before it."  # as no such model is saved
                raise type(error)(told) from error

    def begin(self, step: int, *, testing: bool = False) -> None:
        """Makes the folder ready for a new run, or for one that goes on from `saved`.

        Args:
            step: Where the run stands.
            testing: Whether a mutation is on probation in the run that goes on: its best epoch still waits.

        Raises:
            EvolveError: If the folder holds another run, or cannot be written to.
        """
        if self.path is None:
            return
        _refuse_links(self.path)
        clear_leftovers(self.path)
        clear_leftovers(self.path / FOLDER)
        clear_leftovers(self.path / BEST)
        if not testing:
            settle_best(self.path, kept=False)
        if self.saved is None:
            self._empty(self.path)
        elif later := newer(self.path, self.saved):
            raise EvolveError(
                f"Another run has gone on in '{self.path}' meanwhile: it has {later.name}, this one stands at "
                f"{self.saved.name}. Restore it again to go on from there."
            )
        else:
            abandon_best(self.path, step)
        replace_text(self.path / CONFIG, self._config_text)

    def open_newest(self) -> Checkpoint:
        """Reads the newest checkpoint; the run goes on from there.

        Raises:
            CheckpointError: If there is none.
            EvolveError: If there is no folder.
        """
        checkpoint = open_newest(self._config.folder)
        self.saved = checkpoint.path
        if not self._resolved and checkpoint.config is not None and not is_description(checkpoint.config):
            self._config_text = checkpoint.config
        return checkpoint

    def save(self, state: TrainState, lineage: Lineage, progress: dict[str, Any]) -> Path | None:
        """Writes a checkpoint; returns it, or None where there is no folder.

        Raises:
            NonFiniteModelError: If the model is NaN or infinite, also where nothing is to be written.
            CheckpointError: If it cannot be written.
        """
        state.finite.check(state.model, state.ema.shadow if state.ema else {})
        if self.path is None:
            return None
        self.saved = save_checkpoint(self.path, state, lineage, progress, self._config.keep, self._config_text)
        thin_out_best(self.path, self.saved)
        return self.saved

    def save_best(self, state: TrainState, lineage: Lineage, progress: dict[str, Any], *, testing: bool) -> None:
        """Writes the checkpoint of the best epoch so far.

        The one before stays until the run is saved: a run that is lost before that goes on from where it was best.

        Args:
            state: What training moves.
            lineage: All records so far.
            progress: What else the run needs to go on from there.
            testing: Whether a mutation is on probation: then it waits until `settle`.

        Raises:
            CheckpointError: If it cannot be written.
        """
        if self.path is not None:
            root, keep = (PENDING, 1) if testing else (BEST, None)
            save_checkpoint(self.path, state, lineage, progress, keep, self._config_text, root=root)
            thin_out_best(self.path, self.saved)

    def settle(self, *, kept: bool) -> None:
        """At the end of a probation: what was best within it counts, or does not."""
        if self.path is not None:
            settle_best(self.path, kept=kept)

    def _empty(self, folder: Path) -> None:
        root = folder / FOLDER
        if not self._config.overwrite:
            if any_checkpoint(folder):
                raise EvolveError(
                    f"'{folder}' holds a run already. Go on with it (`evolve resume {folder}`), or write elsewhere "
                    "(output.dir=...), or over it (output.overwrite=true)."
                )
            if is_recorded(folder):
                raise EvolveError(f"'{folder}' holds a run already, {BEGIN_ANEW}")
        try:
            for path in (root, folder / BEST, *(folder / name for name in _WRITTEN)):  # all checkpoints vanish at once
                remove(path)
        except OSError as error:
            raise EvolveError(f"'{folder}' cannot be written to: {error}.") from error


# What `run` and `resume` say of a run of which there are records and no checkpoint.
BEGIN_ANEW = (
    "but no checkpoint of it: it was stopped before it saved one, or they were deleted. Start again elsewhere "
    "(output.dir=...), or over its records (output.overwrite=true)."
)


def any_checkpoint(folder: Path) -> bool:
    """Whether there is anything in the place of checkpoints, whole or damaged."""
    return (folder / FOLDER).is_dir() and any((folder / FOLDER).iterdir())


def is_recorded(folder: Path) -> bool:
    """Whether a run has written down mutations or metrics."""
    return any(path.is_file() and path.stat().st_size > 0 for path in (folder / name for name in _WRITTEN[:2]))


def _refuse_links(folder: Path) -> None:
    """What a run writes and deletes lies in its folder, also if somebody else made that.

    Raises:
        EvolveError: If a part of the folder is a link to somewhere else.
    """
    for name in (FOLDER, BEST, PENDING, *_WRITTEN, *(f"{name}.new" for name in _WRITTEN)):
        if (folder / name).is_symlink():
            raise EvolveError(f"'{folder / name}' is a link, and a run writes within its own folder alone. Remove it.")
