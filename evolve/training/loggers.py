"""Loggers: callbacks that carry a run's metrics and mutations to somewhere else, by name."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from pydantic import ValidationInfo, model_validator
from typing_extensions import Self

from evolve.config import KeyPath, Named, OptionFaults, is_trusted, signature_faults, signature_of
from evolve.errors import EvolveError, UnknownNameError, did_you_mean, missing_package
from evolve.lineage import Record
from evolve.plugins import import_callable, is_import_path, untrusted
from evolve.registry import Registered, Registry
from evolve.training.events import (
    Callback,
    EpochEnded,
    Event,
    MutationTried,
    RunBegun,
    RunFinished,
    StepMade,
    VerdictGiven,
)
from evolve.training.refused import refused_options

loggers: Registry[type[Logger]] = Registry("logger", "evolve.loggers")

# Where evolve's own are; imported when they are asked for.
_HOMES = {
    "csv": "evolve.training.csv_logger",
    "mlflow": "evolve.integrations.mlflow",
    "tensorboard": "evolve.integrations.tensorboard",
    "wandb": "evolve.integrations.wandb",
}


class Logger(Registered, ABC):
    """A callback that carries a run's numbers and mutations to somewhere else.

    It opens nothing before the run begins. A run that goes back over some steps, after a mutation that failed its
    probation or after a crash, tells of these again.

    Attributes:
        packages: What has to be installed.
        outward: Options that lead out of the run folder; in one that is not trusted they are refused.

    Args:
        loss_every: Optimizer steps between two losses that are logged; 0 for none.

    Raises:
        EvolveError: If `loss_every` is below 0.
    """

    packages: ClassVar[tuple[str, ...]] = ()
    outward: ClassVar[frozenset[str]] = frozenset({"dir"})

    def __init__(self, loss_every: int = 10) -> None:
        if loss_every < 0:
            raise EvolveError(f"loss_every counts optimizer steps and is 0 or more; found {loss_every}")
        self.loss_every = loss_every

    def __call__(self, event: Event) -> None:
        """Logs what an event tells."""
        if isinstance(event, RunBegun):
            self.begin(event)
        elif isinstance(event, StepMade):
            if self.loss_every and event.step % self.loss_every == 0:
                self.numbers({"step_loss": event.loss}, event.step)
        elif isinstance(event, EpochEnded):
            self.numbers(numbers_of(event.metrics), int(event.metrics["step"]))
        elif isinstance(event, MutationTried):
            self.mutation(event.record, len(event.run.lineage.applied))
        elif isinstance(event, VerdictGiven):
            for record in event.records:
                self.mutation(record, len(event.run.lineage.applied))
        elif isinstance(event, RunFinished):
            self.end(event)

    @abstractmethod
    def begin(self, event: RunBegun) -> None:
        """The run begins, or goes on."""

    @abstractmethod
    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """There are new numbers: of a step or of an epoch."""

    @abstractmethod
    def mutation(self, record: Record, applied: int) -> None:
        """A mutation was tried, or its record has changed.

        Args:
            record: As it is now.
            applied: Mutations that are in the model now.
        """

    @abstractmethod
    def end(self, event: RunFinished) -> None:
        """The run is over, or was stopped."""


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a line of metrics, all but the step."""
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float) and key != "step"}
    return {key: float(value) for key, value in numbers.items()}


def told(record: Record) -> str:
    """Returns a mutation in one line."""
    verdict = f" {record.verdict}" if record.verdict is not None else ""
    return f"{record.status.replace('_', ' ')}: {record.operator} at '{record.site}': {record.message}{verdict}"


def find_logger(name: str, trusted: bool = True) -> Callable[..., Any]:
    """Returns the class of a logger.

    Args:
        name: A registered name, or an import path to a class whose objects are called with each event.
        trusted: Whether the name comes from the user; an import path that does not is refused.

    Raises:
        UnknownNameError: If there is none, or a package that it needs cannot be imported.
    """
    if is_import_path(name):
        cls = import_callable(name, "logger", trusted)
    else:
        if name in _HOMES:
            importlib.import_module(_HOMES[name])
        known = sorted({*loggers.names(), *_HOMES})
        if name not in known:
            raise UnknownNameError(f"Unknown logger '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}.")
        cls = loggers.get(name)
    for package in getattr(cls, "packages", ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UnknownNameError(missing_package(f"The logger '{name}'", package, error)) from error
    return cls


class LoggerConfig(Named):
    """What a run is logged to: `csv`, `tensorboard`, `mlflow`, `wandb` or an import path, with its arguments."""

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> Self:
        trusted = is_trusted(info)
        try:
            cls = find_logger(self.name, trusted)
        except UnknownNameError as error:
            raise OptionFaults([(("name",), str(error))]) from error
        outward = [] if trusted else sorted(getattr(cls, "outward", frozenset()) & self.options.keys())
        faults: list[tuple[KeyPath, str]] = [((o,), untrusted("place", str(self.options[o]))) for o in outward]
        beside = {"dir": "."} if "dir" in (signature_of(cls) or {}) else {}  # where the options name no folder
        faults += signature_faults(cls, {**beside, **self.options})
        if not faults and self.name in _HOMES:  # making one of these opens nothing
            faults += refused_options(lambda options: cls(**{**beside, **options}), self.options)
        if faults:
            raise OptionFaults([(("options", *path), message) for path, message in faults])
        return self

    @property
    def wants_folder(self) -> bool:
        """Whether it writes to a folder that its options do not name."""
        return "dir" in (signature_of(find_logger(self.name)) or {}) and "dir" not in self.options

    def build(self, run: Path | None) -> Callback:
        """Returns the logger.

        Args:
            run: The run folder, in which it has a folder of its own where its options name none.

        Raises:
            EvolveError: If it has no folder, that is a link, or it refuses its options.
        """
        options = dict(self.options)
        if self.wants_folder:
            if run is None:
                raise EvolveError(f"The logger '{self.name}' {NO_FOLDER}")
            folder = run / self.name.rpartition(":")[2].rpartition(".")[2]
            if folder.is_symlink():
                raise EvolveError(f"'{folder}' is a link, and a run writes within its own folder alone. Remove it.")
            options["dir"] = str(folder)
        try:
            logger = find_logger(self.name)(**options)
        except TypeError as error:
            raise EvolveError(f"The logger '{self.name}' cannot be made with {options}: {error}") from error
        if not callable(logger):
            raise EvolveError(f"The logger '{self.name}' has no `__call__(event)`, so it cannot listen.")
        return cast("Callback", logger)


NO_FOLDER = "writes to the run folder, and there is none. Set output.dir, or the logger's option dir."
