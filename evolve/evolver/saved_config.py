"""The configuration of a run that was stopped, as it lies in the run folder: data that may be anybody's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from evolve.config import (
    COMMAND_LINE,
    ConfigError,
    Fault,
    Place,
    Section,
    apply_overrides,
    dump_yaml,
    parse_yaml,
    validate,
)
from evolve.config.faults import key_text
from evolve.errors import CheckpointError
from evolve.evolver.changes import Change, changes
from evolve.evolver.config import EvolutionConfig
from evolve.evolver.description import NOTE, is_description, lacking
from evolve.evolver.run_config import (
    DataConfig,
    ModelConfig,
    RunConfig,
    let_budget_win,
    plugin_faults,
    take_import_folder,
)
from evolve.plugins import untrusted
from evolve.tasks import TaskConfig, build_task
from evolve.training import TrainingConfig
from evolve.training.opening import CONFIG, Checkpoint

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=Section)


def saved_config(checkpoint: Checkpoint, overrides: Sequence[str] = (), *, trust: bool) -> RunConfig:
    """Returns the configuration of a run that was stopped; what was edited in it meanwhile counts, and overrides win.

    What may change is up to `check_changes`.

    Args:
        checkpoint: Of the run.
        overrides: Such as "training.epochs=100".
        trust: Whether to import what it names: model, data and loss by import path, plugins.

    Raises:
        CheckpointError: If the run was started in Python.
        ConfigError: With all faults, among them what would have to be trusted.
    """
    text, file = _text(checkpoint), checkpoint.run / CONFIG
    found = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if _is_damage(found, text):
        logger.warning(
            "%s is damaged; the copy in %s takes its place. If you edited it, say it on the command "
            "line instead, such as training.epochs=5.",
            file,
            checkpoint.path,
        )
    elif found != text:
        logger.warning("%s was changed since the last checkpoint; the run goes on with it as it is now.", file)
        text = found
    return _parsed(RunConfig, text, file, trust, overrides)


def check_changes(
    checkpoint: Checkpoint, config: RunConfig, file: str | Path, overrides: Sequence[str] = ()
) -> list[Change]:
    """Returns what a configuration changes in a run that goes on with it; where that lies does not count.

    Args:
        checkpoint: Of the run.
        config: How it is to go on.
        file: Where the configuration comes from.
        overrides: What the command line said.

    Raises:
        CheckpointError: If the run was started in Python.
        ConfigError: With everything that may not change.
    """
    text = _text(checkpoint)
    if is_description(text):
        raise CheckpointError(_lacks(text, checkpoint.run / CONFIG))
    found = [change for change in changes(text, dump_yaml(config)) if change.path != ("output", "dir")]
    told = tuple(override.partition("=")[0].strip() for override in overrides)
    faults = [
        Fault(change.path, Place(COMMAND_LINE if key_text(change.path).startswith(told) else str(file)), change.fault)
        for change in found
        if change.fault
    ]
    if faults:
        raise ConfigError(faults)
    return found


def first_config(run: Path, overrides: Sequence[str] = (), *, trust: bool) -> RunConfig:
    """As `saved_config`, of a run that was stopped before its first checkpoint; anything may change."""
    text = (run / CONFIG).read_text(encoding="utf-8", errors="replace")
    return _parsed(RunConfig, text, run / CONFIG, trust, overrides)


def saved_model_config(checkpoint: Checkpoint, *, trust: bool) -> ModelConfig:
    """Returns how a run built its base model, and imports its plugins if they are trusted. Nothing else is looked at.

    Raises:
        CheckpointError: If the run was started in Python.
        ConfigError: With all faults, among them an import path that would have to be trusted.
    """
    return _parsed(_BaseModelConfig, _text(checkpoint), checkpoint.run / CONFIG, trust).model


def saved_probe(checkpoint: Checkpoint, model: nn.Module, *, trust: bool) -> Any:
    """Returns the batch on which a run planned and verified its mutations, from the data of the run.

    Args:
        checkpoint: Of the run.
        model: Its model: the task says which part of a batch it takes.
        trust: Whether to import what data and task are by import path.

    Raises:
        CheckpointError: If the run was started in Python.
        ConfigError: If the configuration has faults.
        EvolveError: If the data cannot be read.
    """
    text, file = _text(checkpoint), checkpoint.run / CONFIG
    config = _parsed(_ProbeConfig, text, file, trust)
    raw, _, _ = parse_yaml(text, str(file))
    seed = _number(raw, "training", "seed", TrainingConfig().seed)
    task, _ = build_task(config.task)
    return task.arguments(model, config.data.build(seed).train.examples(_number(raw, "evolution", "probe", _PROBE)))


_PROBE = EvolutionConfig().probe


def _number(raw: Mapping[str, Any], section: str, key: str, otherwise: int) -> int:
    values = raw.get(section)
    found = values.get(key) if isinstance(values, Mapping) else None
    return found if isinstance(found, int) and found > 0 else otherwise


class _ProbeConfig(Section):
    """The parts of a run that its probe batch comes from."""

    data: DataConfig
    task: TaskConfig = TaskConfig()


class _BaseModelConfig(Section):
    """The part of a run that its base model is built from."""

    model: ModelConfig


def _text(checkpoint: Checkpoint) -> str:
    """The configuration as a checkpoint holds it, with a digest."""
    if checkpoint.config is None:
        raise CheckpointError(
            f"{checkpoint.run} has no config.yaml to build the base model from: the run was started in Python. Pass "
            "the model, `evolve.load(run, model=...)`, or build its Evolver again and call `.restore().run()`."
        )
    return checkpoint.config


def _is_damage(found: str, written: str) -> bool:
    """Tells a file that a disk has spoilt (cut off in a line, or one bit turned) from one that somebody has edited."""
    if len(found) < len(written):
        return written.startswith(found) and not found.endswith("\n")
    other = [(a, b) for a, b in zip(found, written, strict=False) if a != b]
    if len(found) != len(written) or len(other) != 1:
        return False
    (here, there), *_ = other
    return here == "\ufffd" or (ord(here) ^ ord(there)).bit_count() == 1  # no text, or another letter


def _parsed(cls: type[S], text: str, file: Path, trust: bool, overrides: Sequence[str] = ()) -> S:
    raw, places, faults = parse_yaml(text, str(file))
    raw, places, more = apply_overrides(raw, places, overrides)
    faults += more
    let_budget_win(raw, places)
    if NOTE in raw and "model" not in raw:
        raise CheckpointError(_lacks(text, file))
    needed = {key: value for key, value in raw.items() if key in cls.model_fields}
    if trust:
        take_import_folder(raw, None)
        found = plugin_faults(raw, places, file)
        if "plugins" in cls.model_fields:
            faults += found
        for fault in found if "plugins" not in cls.model_fields else ():
            logger.warning("%s", fault)  # the model may do without it; else what it lacks is told
    elif "plugins" in cls.model_fields:
        for index, plugin in enumerate(raw.get("plugins") or []):
            where = places.get(("plugins", index), Place(str(file)))
            faults.append(Fault(("plugins", index), where, untrusted("plugin", str(plugin))))
    return validate(cls, needed, places, file, faults, trusted=trust)


def _lacks(text: str, file: Path) -> str:
    parts = "".join(f"\n  {part}" for part in lacking(text))
    return (
        f"The run in '{file.parent}' was started in Python, from objects that {CONFIG} cannot name:{parts}\nTo load "
        f"its model, pass the base model: evolve.load({str(file.parent)!r}, model=...). To go on with it, build its "
        "Evolver again and call `.restore().run()`."
    )
