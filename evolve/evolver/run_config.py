"""A whole run as a configuration: the sections, and how a YAML file becomes one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, ValidationInfo, model_validator
from torch import nn
from typing_extensions import Self

from evolve.budget import UNITS
from evolve.config import (
    COMMAND_LINE,
    Fault,
    KeyPath,
    Named,
    OptionFaults,
    Place,
    Places,
    Section,
    apply_overrides,
    is_trusted,
    load_yaml,
    signature_faults,
    validate,
)
from evolve.data import Data, Sampler, build_data, find_collate, find_data, no_augmentation, takes
from evolve.errors import EvolveError, UnknownNameError
from evolve.evolver.config import EvolutionConfig
from evolve.evolver.output import OutputConfig
from evolve.evolver.watched import metric_faults
from evolve.models import build_model, find_model, load_weights, size_faults
from evolve.plugins import import_callable, import_from, load_plugins, names_module_in, untrusted
from evolve.tasks import TaskConfig
from evolve.training import TrainingConfig
from evolve.training.events import Callback
from evolve.training.loggers import NO_FOLDER, LoggerConfig
from evolve.training.lr_schedule import LrScheduleConfig
from evolve.training.monitor import MONITOR, find_monitor
from evolve.training.optim import OptimizerConfig

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=Section)


class ModelConfig(Named):
    """A model: a built-in name, `torchvision:<name>`, `timm:<name>`, `huggingface:<type>` or an import path.

    Attributes:
        weights: A file with the weights to begin with, `.safetensors` or of `torch.save`; null draws them.
    """

    weights: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> Self:
        builder = _check_call(partial(find_model, trusted=is_trusted(info)), self, skip=set())
        if faults := size_faults(builder, self.options):
            raise OptionFaults([(("options", *path), message) for path, message in faults])
        return self

    def build(self) -> nn.Module:
        """Returns the model, with its initial weights."""
        model = build_model(self.name, **self.options)
        if self.weights is not None:
            load_weights(model, self.weights)
        return model


class DataConfig(Named):
    """A data set: a built-in name or an import path, with its arguments.

    Attributes:
        batch_size: Samples of one batch.
        augment: Random crops and flips of the training images, as is usual for CIFAR.
        workers: Processes that read ahead, for data that is read as it is needed.
        sampler: How the training samples of an epoch are drawn: "shuffle", "sequential" or "balanced" (with
            replacement, so that each class comes equally often); None leaves it to the data set, which shuffles.
        collate: Import path of a function that makes a batch of a list of samples.
    """

    batch_size: Annotated[int, Field(ge=1)] = 64
    augment: bool = False
    workers: Annotated[int, Field(ge=0)] = 0
    sampler: Sampler | None = None
    collate: str | None = None

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> Self:
        given = {"batch_size", "augment", "seed", "workers", "collate_fn"}
        source = _check_call(partial(find_data, trusted=is_trusted(info)), self, skip=given)
        if self.augment and not takes(source, "augment"):
            raise OptionFaults([(("augment",), no_augmentation(self.name))])
        if self.collate is not None:
            try:
                find_collate(self.collate, is_trusted(info))
            except UnknownNameError as error:
                raise OptionFaults([(("collate",), str(error))]) from error
        return self

    def build(self, seed: int) -> Data:
        """Returns the data; the seed is that of their order."""
        return build_data(
            self.name,
            batch_size=self.batch_size,
            augment=self.augment,
            seed=seed,
            workers=self.workers,
            sampler=self.sampler,
            collate=self.collate,
            options=self.options,
        )


class CallbackConfig(Named):
    """Something that listens to the events of a run: an import path, with arguments.

    A class is called with its options and makes the callback; a function is the callback itself and takes none.
    """

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> Self:
        if not is_trusted(info):
            raise OptionFaults([(("name",), untrusted("callback", self.name))])
        try:
            target = import_callable(self.name, "callback")
        except UnknownNameError as error:
            raise OptionFaults([(("name",), str(error))]) from error
        if isinstance(target, type):
            if faults := signature_faults(target, self.options):
                raise OptionFaults([(("options", *path), message) for path, message in faults])
        elif self.options:
            raise OptionFaults([(("options",), f"the callback '{self.name}' is a function, so it takes no options.")])
        return self

    def build(self) -> Callback:
        """Returns the callback.

        Raises:
            EvolveError: If there is none of this name, or it refuses its options.
        """
        target = import_callable(self.name, "callback")
        if not isinstance(target, type):
            return target
        try:
            callback = target(**self.options)
        except TypeError as error:
            raise EvolveError(f"The callback '{self.name}' cannot be made with {self.options}: {error}") from error
        if not callable(callback):
            raise EvolveError(f"The callback '{self.name}' has no `__call__(event)`, so it cannot listen.")
        return cast("Callback", callback)


class RunConfig(Section):
    """A whole run.

    Attributes:
        import_from: The folder in which the modules that it names are looked up, before the working directory and after
            the installed packages; null for the folder of the file, which is written down where one of them lies there.
    """

    model: ModelConfig
    data: DataConfig
    task: TaskConfig = TaskConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_schedule: LrScheduleConfig | None = None
    training: TrainingConfig = TrainingConfig()
    evolution: EvolutionConfig = EvolutionConfig()
    output: OutputConfig = OutputConfig()
    callbacks: list[CallbackConfig] = Field(default_factory=list)
    loggers: list[LoggerConfig] = Field(default_factory=list)
    plugins: list[str] = Field(default_factory=list)
    import_from: str | None = None

    @model_validator(mode="after")
    def _loggers_have_a_folder(self) -> Self:
        homeless = [index for index, one in enumerate(self.loggers) if self.output.dir is None and one.wants_folder]
        if homeless:
            raise OptionFaults([(("loggers", index, "options", "dir"), f"it {NO_FOLDER}") for index in homeless])
        return self

    @model_validator(mode="after")
    def _loss_has_a_place(self) -> Self:
        if self.training.loss is not None and not self.task.takes_loss():
            message = f"the task '{self.task.name}' computes its loss by itself: leave this out, or use another task."
            raise OptionFaults([(("training", "loss"), message)])
        return self

    @model_validator(mode="after")
    def _what_is_looked_at_is_measured(self) -> Self:
        metrics = self.task.measured()
        try:
            monitor = find_monitor(self.training.monitor, metrics)
        except EvolveError as error:
            raise OptionFaults([(("training", "monitor", "metric"), str(error).removeprefix(MONITOR))]) from error
        if any(metric.several for metric in metrics):  # their names are known when they are computed
            return self
        names = ["loss", *(metric.label for metric in metrics)]
        if faults := list(metric_faults(self.evolution, names, monitor)):
            raise OptionFaults([(("evolution", *path), message) for path, message in faults])
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a YAML file; imports its plugins first, so that they can be named in it. What it names is trusted.

    Args:
        path: The file.
        overrides: Such as "training.epochs=3"; they win over the file. A budget takes the place of the file's also
            where it is another one, such as "training.flops=1e12".

    Raises:
        ConfigError: With all faults of file and overrides.
    """
    raw, places, faults = load_yaml(path)
    raw, places, more = apply_overrides(raw, places, overrides)
    let_budget_win(raw, places)
    take_import_folder(raw, Path(path).parent)
    if "search" in raw:
        message = "this file describes a search: use `evolve search`, or leave this section out."
        more = [*more, Fault(("search",), places.get(("search",), Place(str(path))), message)]
    return validate(RunConfig, raw, places, path, [*faults, *more, *plugin_faults(raw, places, path)])


def _check_call(find: Callable[[str], Callable[..., Any]], config: Named, skip: set[str]) -> Callable[..., Any]:
    """Checks a section's name and options against what the name stands for, and returns that."""
    try:
        function = find(config.name)
    except UnknownNameError as error:
        raise OptionFaults([(("name",), str(error))]) from error
    faults = signature_faults(function, config.options, skip=skip)
    if faults:
        raise OptionFaults([(("options", *path), message) for path, message in faults])
    return function


def let_budget_win(
    raw: Mapping[str, Any], places: Places, where: KeyPath = ("training",), units: Collection[str] = UNITS
) -> None:
    """Takes the file's budget out where the command line gives one.

    Args:
        raw: The configuration.
        places: Where its values were written.
        where: The section that has the budget.
        units: Keys of that section, of which one is given.
    """
    section: Any = raw
    for key in where:
        section = section.get(key) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        return  # the section's own check reports it
    told = [unit for unit in units if places.get((*where, unit)) == Place(COMMAND_LINE)]
    for unit in units:
        if told and unit not in told:
            section.pop(unit, None)


def take_import_folder(raw: dict[str, Any], beside: Path | None) -> None:
    """Lets modules be imported from where a configuration says, or from beside its file where one of them lies there.

    Args:
        raw: The configuration, which is trusted; the folder is written to it.
        beside: The folder of the file; None for a run folder, whose own modules are never imported.
    """
    folder = raw.get("import_from")
    if isinstance(folder, str):
        raw["import_from"] = str((beside / folder if beside else Path(folder)).resolve())
    elif folder is None and beside is not None and names_module_in(raw, beside):
        raw["import_from"] = str(beside.resolve())
    if isinstance(raw.get("import_from"), str):
        import_from(Path(raw["import_from"]))


def plugin_faults(raw: Mapping[str, Any], places: Places, path: str | Path) -> list[Fault]:
    """Imports the plugins that a configuration lists; returns those that cannot be imported, with the reason."""
    listed = raw.get("plugins")
    faults: list[Fault] = []
    for index, plugin in enumerate(listed if isinstance(listed, list) else []):
        if not isinstance(plugin, str):
            continue  # the section's own check reports it
        try:
            load_plugins([plugin])
        except EvolveError as error:
            where = places.get(("plugins", index)) or places.get(("plugins",), Place(str(path)))
            faults.append(Fault(("plugins", index), where, str(error)))
    return faults
