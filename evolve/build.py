"""The composition root: a configuration in, objects out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import nn
from typing_extensions import Self

from evolve.budget import UNITS
from evolve.checkpoint import load_model, newest_checkpoint
from evolve.config import (
    COMMAND_LINE,
    ConfigError,
    Fault,
    Named,
    OptionFaults,
    Place,
    Places,
    Section,
    apply_overrides,
    dump_yaml,
    load_yaml,
    signature_faults,
    validate,
)
from evolve.data import build_data, find_data
from evolve.device import seed_everything
from evolve.errors import CheckpointError, EvolveError, UnknownNameError, did_you_mean
from evolve.evolution import EvolutionConfig
from evolve.evolver import Evolver
from evolve.lineage import Lineage, Record
from evolve.models import build_model, find_model, models
from evolve.models.lookup import usual_shape
from evolve.optim import LrScheduleConfig, OptimizerConfig
from evolve.plugins import is_import_path, load_plugins
from evolve.run import OutputConfig
from evolve.training import TrainingConfig


class ModelConfig(Named):
    """A model: a built-in name, `torchvision:<name>` or an import path, with its arguments."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        _check_call(find_model, self, skip=set())
        return self


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
        _check_call(find_data, self, skip={"batch_size", "augment", "seed"})
        return self


class RunConfig(Section):
    """A whole run."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_schedule: LrScheduleConfig | None = None
    training: TrainingConfig = TrainingConfig()
    evolution: EvolutionConfig = EvolutionConfig()
    output: OutputConfig = OutputConfig()
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


def build_evolver(config: RunConfig) -> Evolver:
    """Returns the Evolver that a configuration describes.

    Raises:
        EvolveError: If a part cannot be built.
    """
    load_plugins(config.plugins)
    seed_everything(config.training.seed)
    data = build_data(
        config.data.name,
        batch_size=config.data.batch_size,
        augment=config.data.augment,
        seed=config.training.seed,
        options=config.data.options,
    )
    return Evolver(
        build_model(config.model.name, **config.model.options),
        data.train,
        data.val,
        optimizer=config.optimizer,
        lr_schedule=config.lr_schedule,
        training=config.training,
        evolution=config.evolution,
        output=config.output,
        config_text=dump_yaml(config),
    )


def load(run: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Returns the evolved model of a run folder, on the CPU and in eval mode, with the weights it was evaluated with.

    Args:
        run: The run folder.
        model: The base model, built as for the run; needed where the run did not start from a YAML file.

    Raises:
        CheckpointError: If there is no whole checkpoint or no base model to start from.
    """
    path = newest_checkpoint(Path(run))
    if model is None:
        config_file = Path(run) / "config.yaml"
        if not config_file.is_file():
            raise CheckpointError(
                f"{run} has no config.yaml to build the base model from. Pass it: load(run, model=...)."
            )
        config = load_config(config_file)
        model = build_model(config.model.name, **config.model.options)
    load_model(path, model, averaged=True)
    return model.eval()


@dataclass(frozen=True)
class Opened:
    """A model that was asked for by whatever names it.

    Attributes:
        model: The model.
        shapes: Shapes of the arguments that it is known to take, batch first; none where nothing is known.
        records: The mutations that made it of its base model, in order.
    """

    model: nn.Module
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


def open_model(target: str, options: Sequence[str] = (), device: torch.device | None = None) -> Opened:
    """Builds or loads the model that a name, a YAML file or a run folder stands for.

    Args:
        target: What `model.name` may be in a configuration, a configuration, or a run folder.
        options: Arguments of the model such as "num_classes=5"; they win over a configuration's.
        device: Where it is to live; the CPU if None.

    Raises:
        ConfigError: If the options or the configuration have faults.
        EvolveError: If there is no such model, or it cannot be built or loaded.
    """
    path = Path(target)
    if target not in models and path.is_dir():
        if options:
            raise EvolveError(
                f"'{target}' is a run folder: its config.yaml says how the model is built. Give no option."
            )
        records = Lineage.read(newest_checkpoint(path) / "lineage.jsonl")
        probed = next((record.inputs for record in records if record.inputs), [])
        applied = [record for record in records if record.status == "applied"]
        return Opened(load(path).to(device), [tuple(tensor.shape) for tensor in probed], applied)
    if target not in models and (path.is_file() or path.suffix in {".yaml", ".yml"}):
        config = load_config(path, [f"model.options.{option}" for option in options])
        return Opened(_build_on(device, config.model.name, config.model.options))
    if target not in models and path.name != target:
        raise EvolveError(f"There is no file or folder '{target}'. Looked from {Path.cwd()}.")
    arguments, _, faults = apply_overrides({}, {}, options)
    if faults:
        raise ConfigError(faults)
    if not is_import_path(target) and target not in models:
        raise UnknownNameError(
            f"Unknown model '{target}'.{did_you_mean(target, models)} Known: {', '.join(models)}. A model may also be "
            "torchvision:<name>, package.module:Class, a YAML file or a run folder."
        )
    model = _build_on(device, target, arguments)
    image = usual_shape(target)
    return Opened(model, [] if image is None else [(2, *image)])


def _build_on(device: torch.device | None, name: str, options: Mapping[str, Any]) -> nn.Module:
    """Makes the weights where they are to live, so that `meta` takes no memory; what comes from elsewhere is moved."""
    with device or nullcontext():
        return build_model(name, **options).to(device)


def _check_call(find: Callable[[str], Callable[..., Any]], config: Named, skip: set[str]) -> None:
    """Holds a section's name and options against what the name stands for."""
    try:
        function = find(config.name)
    except UnknownNameError as error:
        raise OptionFaults([(("name",), str(error))]) from error
    faults = signature_faults(function, config.options, skip=skip)
    if faults:
        raise OptionFaults([(("options", *path), message) for path, message in faults])


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
