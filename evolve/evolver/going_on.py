"""Evolvers that take up the run of a folder: `evolve resume`, and `evolve run --resume auto`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evolve.config import ConfigError, Fault, Place
from evolve.errors import CheckpointError
from evolve.evolver.changes import Change
from evolve.evolver.evolver import Evolver
from evolve.evolver.run_config import RunConfig
from evolve.evolver.run_folder import BEGIN_ANEW, any_checkpoint, is_recorded
from evolve.evolver.saved_config import check_changes, first_config, saved_config
from evolve.training.opening import CONFIG, open_newest


@dataclass(frozen=True)
class Start:
    """An Evolver about to run.

    Attributes:
        evolver: It is restored where it goes on.
        goes_on: Whether it does; else it begins from the beginning.
        changed: What its configuration changes in the run that it takes up.
    """

    evolver: Evolver
    goes_on: bool
    changed: Sequence[Change] = ()


def take_up(folder: Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Start:
    """Returns the Evolver of a run that was stopped, or is to be trained longer.

    Args:
        folder: The run folder.
        overrides: Settings that change, such as "training.epochs=100".
        trust: Whether to import what its configuration names.

    Raises:
        CheckpointError: If there is nothing to go on from.
        ConfigError: If the configuration has faults, or changes what may not change.
    """
    if any_checkpoint(folder) or not (folder / CONFIG).is_file():
        checkpoint = open_newest(folder)
        config = _moved(saved_config(checkpoint, overrides, trust=trust), folder)
        changed = check_changes(checkpoint, config, folder / CONFIG, overrides)
        return Start(Evolver.from_config(config).restore(), True, changed)
    if is_recorded(folder):
        raise CheckpointError(f"'{folder}' holds a run, {BEGIN_ANEW}")
    return Start(Evolver.from_config(_moved(first_config(folder, overrides, trust=trust), folder)), False)


def begin(config: RunConfig) -> Start:
    """Returns the Evolver of a configuration; `run` refuses a folder that holds a run."""
    return Start(Evolver.from_config(config), False)


def begin_or_go_on(config: RunConfig, file: str | Path, overrides: Sequence[str] = ()) -> Start:
    """Returns the Evolver of a configuration; it goes on with the run in `output.dir` where that has a checkpoint.

    `output.overwrite` then means records of a run that was stopped before its first one.

    Args:
        config: From the file.
        file: What to call it in messages.
        overrides: What the command line said.

    Raises:
        CheckpointError: If what lies in the folder cannot be gone on from.
        ConfigError: If there is no folder, or the configuration changes what may not change in that run.
    """
    if config.output.dir is None:
        message = "is null, and a run that is to go on has to lie somewhere. Set it, or leave out --resume auto."
        raise ConfigError([Fault(("output", "dir"), Place(str(file)), message)])
    folder = Path(config.output.dir)
    if not any_checkpoint(folder):
        return begin(config)
    checkpoint = open_newest(folder)
    changed = check_changes(checkpoint, config, file, overrides)
    return Start(Evolver.from_config(config).restore(), True, changed)


def _moved(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration of a run that lies in a folder, wherever it was written."""
    return config.model_copy(update={"output": config.output.model_copy(update={"dir": str(folder)})})
