"""The arguments of an Evolver, made of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evolve.config import dump_yaml
from evolve.distributed.joining import join_ranks
from evolve.evolver.run_config import RunConfig, load_config
from evolve.plugins import load_plugins
from evolve.runtime.generators import seed_everything
from evolve.training.events import Callback
from evolve.training.loggers import Logger


def arguments_of(config: RunConfig | str | Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Builds what a YAML file, or a loaded configuration, describes.

    Raises:
        ConfigError: With all faults of the file.
        EvolveError: If a part cannot be built.
    """
    if not isinstance(config, RunConfig):
        config = load_config(config, overrides)
    load_plugins(config.plugins)
    seed = config.training.seed
    seed_everything(seed)
    world, parts = join_ranks(config.training.device), (config.data, config.model)
    data, model = world.in_turns(lambda: (parts[0].build(seed), parts[1].build()))
    folder = Path(config.output.dir) if config.output.dir else None
    return {
        "model": model,
        "train_data": data.train,
        "val_data": data.val,
        "optimizer": config.optimizer,
        "lr_schedule": config.lr_schedule,
        "training": config.training,
        "task": config.task,
        "evolution": config.evolution,
        "output": config.output,
        "callbacks": [
            *(callback.build() for callback in config.callbacks),
            *(one.build(folder) for one in config.loggers),
        ],
        "config_text": dump_yaml(config),
    }


def heard_by(callbacks: Sequence[Callback], first: bool) -> list[Callback]:
    """Returns the callbacks that are told of a run on this device: of several devices, loggers only on the first."""
    return [callback for callback in callbacks if first or not isinstance(callback, Logger)]
