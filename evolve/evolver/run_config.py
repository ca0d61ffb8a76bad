"""A whole run as a configuration: the sections, and how a YAML file becomes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field, model_validator
from torch import nn
from typing_extensions import Self

from evolve.budget import UNITS
from evolve.config import (
    COMMAND_LINE,
    Fault,
    Named,
    OptionFaults,
    Place,
    Places,
    Section,
    apply_overrides,
    load_yaml,
    signature_faults,
    validate,
)
from evolve.data import Data, build_data, find_data, no_augmentation, takes
from evolve.errors import EvolveError, UnknownNameError
from evolve.evolver.config import EvolutionConfig
from evolve.evolver.output import OutputConfig
from evolve.models import build_model, find_model
from evolve.plugins import import_callable, load_plugins
from evolve.training import TrainingConfig
from evolve.training.events import Callback
from evolve.training.optim import LrScheduleConfig, OptimizerConfig


class ModelConfig(Named):
    """A model: a built-in name, `torchvision:<name>` or an import path, with its arguments."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        _check_call(find_model, self, skip=set())
        return self

    def build(self) -> nn.Module:
        """Returns the model."""
        return build_model(self.name, **self.options)


class DataConfig(Named):
    """A data set: a built-in name or an import path, with its arguments.

    Attributes:
        batch_size: Samples of one batch.
        augment: Random crops and flips of the training images, as is usual for CIFAR.
    """

    batch_size: Annotated[int, Field(ge=1)] = 64
    augment: bool = False

    @model_validator(mode="after")
    def _known(self) -> Self:
        source = _check_call(find_data, self, skip={"batch_size", "augment", "seed"})
        if self.augment and not takes(source, "augment"):
            raise OptionFaults([(("augment",), no_augmentation(self.name))])
        return self

    def build(self, seed: int) -> Data:
        """Returns the data; the seed is that of their order."""
        return build_data(self.name, batch_size=self.batch_size, augment=self.augment, seed=seed, options=self.options)


class CallbackConfig(Named):
    """Something that listens to the events of a run: an import path, with arguments.

    A class is called with its options and makes the callback; a function is the callback itself and takes none.
    """

    def build(self) -> Callback:
        """Returns the callback.

        Raises:
            EvolveError: If there is none of this name, or it refuses its options.
        """
        target = import_callable(self.name, "callback")
        if not isinstance(target, type):
            if self.options:
                raise EvolveError(f"The callback '{self.name}' is a function, so it takes no options.")
            return target
        try:
            callback = target(**self.options)
        except TypeError as error:
            raise EvolveError(f"The callback '{self.name}' cannot be made with {self.options}: {error}") from error
        if not callable(callback):
            raise EvolveError(f"The callback '{self.name}' has no `__call__(event)`, so it cannot listen.")
        return cast("Callback", callback)


class RunConfig(Section):
    """A whole run."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_schedule: LrScheduleConfig | None = None
    training: TrainingConfig = TrainingConfig()
    evolution: EvolutionConfig = EvolutionConfig()
    output: OutputConfig = OutputConfig()
    callbacks: list[CallbackConfig] = Field(default_factory=list)
    plugins: list[str] = Field(default_factory=list)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a YAML file; imports its plugins first, so that they can be named in it.

    Args:
        path: The file.
        overrides: Such as "training.epochs=3"; they win over the file. A budget takes the place of the file's also
            where it is another one, such as "training.flops=1e12".

    Raises:
        ConfigError: With all faults of file and overrides.
    """
    raw, places, faults = load_yaml(path)
    raw, places, more = apply_overrides(raw, places, overrides)
    _let_budget_win(raw, places)
    return validate(RunConfig, raw, places, path, [*faults, *more, *_load_plugins(raw, places, path)])


def _check_call(find: Callable[[str], Callable[..., Any]], config: Named, skip: set[str]) -> Callable[..., Any]:
    """Holds a section's name and options against what the name stands for, and returns that."""
    try:
        function = find(config.name)
    except UnknownNameError as error:
        raise OptionFaults([(("name",), str(error))]) from error
    faults = signature_faults(function, config.options, skip=skip)
    if faults:
        raise OptionFaults([(("options", *path), message) for path, message in faults])
    return function


def _let_budget_win(raw: Mapping[str, Any], places: Places) -> None:
    """Takes the file's budget out where the command line gives one."""
    training = raw.get("training")
    if not isinstance(training, dict):
        return  # the section's own check tells of it
    told = [unit for unit in UNITS if places.get(("training", unit)) == Place(COMMAND_LINE)]
    for unit in UNITS:
        if told and unit not in told:
            training.pop(unit, None)


def _load_plugins(raw: Mapping[str, Any], places: Places, path: str | Path) -> list[Fault]:
    listed = raw.get("plugins")
    faults: list[Fault] = []
    for index, plugin in enumerate(listed if isinstance(listed, list) else []):
        if not isinstance(plugin, str):
            continue  # the section's own check tells of it
        try:
            load_plugins([plugin])
        except EvolveError as error:
            where = places.get(("plugins", index), Place(str(path)))
            faults.append(Fault(("plugins", index), where, str(error)))
    return faults
