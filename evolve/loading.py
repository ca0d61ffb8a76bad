"""Models out of what stands for them: a run folder, a configuration, a name."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from evolve.config import ConfigError, apply_overrides, load_yaml
from evolve.errors import CheckpointError, EvolveError, UnknownNameError, did_you_mean
from evolve.evolver.run_config import ModelConfig, load_config
from evolve.evolver.saved_config import saved_model_config, saved_probe
from evolve.lineage import Record
from evolve.models import build_model, models
from evolve.models.libraries import usual_shape
from evolve.plugins import is_import_path
from evolve.population.config import load_search
from evolve.population.folder import INDEX, MODELS, is_search
from evolve.runtime.generators import preserved_rng
from evolve.training.checkpoint import load_model
from evolve.training.opening import Checkpoint, is_checkpoint, open_best, open_checkpoint, open_epoch, open_newest

logger = logging.getLogger(__name__)

WHICH = ("best", "last", "base")


def load(
    run: str | Path,
    model: nn.Module | None = None,
    *,
    which: Literal["best", "last"] | int = "best",
    trust: bool = False,
) -> nn.Module:
    """Returns the evolved model of a run folder, on the CPU and in eval mode, with the weights it was evaluated with.

    No code that the folder names is run unless you trust it: it may be anybody's. Data and loss are not looked at.

    Args:
        run: The run folder, or the folder of a search: the first of the best that it found is meant then.
        model: The base model, built as for the run; needed where the run did not start from a YAML file.
        which: The epoch that did best by the run's monitor, the last checkpoint, or the end of an epoch by its number
            where its checkpoint was kept. The log says which one it was.
        trust: Import what the run's configuration names: the model by import path, and plugins.

    Raises:
        CheckpointError: If there is no whole checkpoint, none of that epoch, or no base model to start from.
        ConfigError: If the configuration cannot be used, or names code to import that is not trusted.
        UnknownNameError: If a mutation was made by an operator that is not known.
    """
    return open_run(run, model, which=which, trust=trust).model


@dataclass(frozen=True)
class OpenedRun:
    """The evolved model of a run, and what it came from.

    Attributes:
        model: On the CPU and in eval mode.
        epoch: Of its checkpoint.
        records: The mutations that made it of its base model, in order.
        base: How a configuration says that the base model is built; None where it was passed.
    """

    model: nn.Module
    epoch: int
    records: list[Record]
    base: ModelConfig | None


def open_run(
    run: str | Path,
    model: nn.Module | None = None,
    *,
    which: Literal["best", "last"] | int = "best",
    trust: bool = False,
) -> OpenedRun:
    """Loads the evolved model of a run folder, as `load` does, and tells what it came from."""
    checkpoint = _chosen(of_search(Path(run)), which)
    content = checkpoint.content
    logger.info("Loaded %s: epoch %d, step %d (which=%r).", checkpoint.path, content.epoch, content.step, which)
    base = saved_model_config(checkpoint, trust=trust) if model is None else None
    applied = [record for record in checkpoint.records if record.status == "applied"]
    return OpenedRun(_load(checkpoint, model, trust), content.epoch, applied, base)


def of_search(folder: Path) -> Path:
    """Returns the run folder of the first of the best where a folder is that of a search."""
    index = folder / MODELS / INDEX
    if index.is_file():
        best = json.loads(index.read_text(encoding="utf-8"))
        if best and all(isinstance(each, int) for each in best):
            logger.info("The best of the search in %s is individual %d.", folder, best[0])
            return folder / MODELS / str(best[0])
    elif is_search(folder):
        raise CheckpointError(f"The search in '{folder}' has found nothing yet. Go on with it: evolve resume {folder}")
    return folder


def _chosen(run: Path, which: str | int) -> Checkpoint:
    if isinstance(which, int) and not isinstance(which, bool):
        return open_epoch(run, which)
    if which not in ("best", "last"):
        raise EvolveError(f"which: expected 'best', 'last' or the number of an epoch. Found {which!r}.")
    best = open_best(run) if which == "best" else None
    return best or open_newest(run)  # a run that was stopped in its first epoch has no best yet


def _load(checkpoint: Checkpoint, model: nn.Module | None, trust: bool) -> nn.Module:
    if model is None:
        config = saved_model_config(checkpoint, trust=trust)
        with preserved_rng():  # its weights are drawn, and replaced at once
            model = build_model(config.name, **config.options)
    load_model(checkpoint, model, averaged=True)
    return model.eval()


@dataclass(frozen=True)
class Opened:
    """A model that was asked for by whatever names it.

    Attributes:
        model: The model.
        shapes: Shapes of the arguments that it is known to take, batch first; none where nothing is known.
        records: The mutations that made it of its base model, in order.
        what: Which one it is, of a run: "epoch 3, step 120".
        checkpoint: Of a run, what it was read from.
        drawn: Whether its weights were drawn just now, and are not those of a run.
    """

    model: nn.Module
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    what: str = "as built, not trained"
    checkpoint: Checkpoint | None = None
    drawn: bool = True


def open_model(
    target: str,
    options: Sequence[str] = (),
    device: torch.device | None = None,
    *,
    trust: bool = False,
    which: str | int = "last",
) -> Opened:
    """Builds or loads the model that a name, a YAML file, a run or a checkpoint stands for.

    Args:
        target: What `model.name` may be in a configuration, a configuration, a run folder, `RUN@best`, `RUN@last`,
            `RUN@3` (the end of an epoch), `RUN@base` (before all mutations), or the folder of a checkpoint.
        options: Arguments of the model such as "num_classes=5"; they win over a configuration's.
        device: Where it is to live; the CPU if None.
        trust: Import what the configuration of a run folder names.
        which: The checkpoint of a run where `target` names none.

    Raises:
        ConfigError: If the options or the configuration have faults.
        EvolveError: If there is no such model, or it cannot be built or loaded.
    """
    path = Path(target)
    if target not in models and (saved := _saved(target, which)):
        if options:
            raise EvolveError(
                f"'{target}' is a run folder: its config.yaml says how the model is built. Give no option."
            )
        return _open_saved(*saved, device, trust)
    if target not in models and (path.is_file() or path.suffix in {".yaml", ".yml"}):
        config = _model_of_file(path, [f"model.options.{option}" for option in options])
        return Opened(_build_on(device, config.name, config.options))
    if target not in models and path.name != target:
        raise EvolveError(f"There is no file or folder '{target}'. Looked from {Path.cwd()}.")
    arguments, _, faults = apply_overrides({}, {}, options)
    if faults:
        raise ConfigError(faults)
    if not is_import_path(target) and target not in models:
        raise UnknownNameError(
            f"Unknown model '{target}'.{did_you_mean(target, models)} Known: {', '.join(models)}. A model may also be "
            "torchvision:<name>, timm:<name>, huggingface:<type>, package.module:Class, a YAML file or a run folder."
        )
    model = _build_on(device, target, arguments)
    image = usual_shape(target)
    return Opened(model, [] if image is None else [(2, *image)])


def _saved(target: str, which: str | int) -> tuple[Checkpoint, str | int] | None:
    """Reads the checkpoint that a text names, and says which one it asked for; None where it names no folder."""
    path = Path(target)
    if path.is_dir() and is_checkpoint(path):
        return open_checkpoint(path), path.name
    run, at, asked = target.rpartition("@")
    if not path.is_dir() and at and Path(run).is_dir():
        if not asked.isdecimal() and asked not in WHICH:
            raise EvolveError(
                f"'{target}': after the @ comes best, last, base (before all mutations) or the number of an epoch, "
                f"such as {run}@best or {run}@3."
            )
        path, which = Path(run), int(asked) if asked.isdecimal() else asked
    if not path.is_dir():
        return None
    run_folder = of_search(path)
    return (open_newest(run_folder) if which == "base" else _chosen(run_folder, which)), which


def _open_saved(checkpoint: Checkpoint, which: str | int, device: torch.device | None, trust: bool) -> Opened:
    """Loads the model of a checkpoint, or builds its base model."""
    probed = next((record.inputs for record in checkpoint.records if record.inputs), [])
    shapes = [tuple(tensor.shape) for tensor in probed]
    if which == "base":
        config = saved_model_config(checkpoint, trust=trust)
        model = _build_on(device, config.name, config.options)
        return Opened(model, shapes, [], "before all mutations, not trained", checkpoint)
    content = checkpoint.content
    applied = [record for record in checkpoint.records if record.status == "applied"]
    named, count = f"{which}: " if which in ("best", "last") else "", len(applied)
    what = f"{named}epoch {content.epoch}, step {content.step:,}, {count} mutation{'' if count == 1 else 's'}"
    return Opened(_load(checkpoint, None, trust).to(device), shapes, applied, what, checkpoint, drawn=False)


def probe_batch(opened: Opened, *, trust: bool = False) -> tuple[Any, str]:
    """Returns a batch that a model takes and where it comes from: the probe batch of its run where its data is there.

    Otherwise it is noise in the recorded shapes; (None, "") where nothing is known.
    """
    if opened.checkpoint is not None:
        try:
            return saved_probe(opened.checkpoint, opened.model, trust=trust), "the run's probe batch"
        except (EvolveError, OSError) as error:
            reason = " ".join(str(error).split())
            logger.warning("The run's probe batch cannot be had, noise takes its place: %s", reason)
    if not opened.shapes:
        return None, ""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in opened.shapes], "noise"


def _model_of_file(path: Path, overrides: Sequence[str]) -> ModelConfig:
    """Returns the model of a run, or the first model of a search, that a YAML file describes."""
    raw, _, _ = load_yaml(path)
    if "search" not in raw:
        return load_config(path, overrides).model
    model = load_search(path, overrides).model
    if model is None:
        raise EvolveError(f"'{path}' describes a search in a space of its own (search.space), and names no model.")
    return model


def _build_on(device: torch.device | None, name: str, options: Mapping[str, Any]) -> nn.Module:
    """Makes the weights where they are to live, so that `meta` takes no memory; what comes from elsewhere is moved."""
    with device or nullcontext():
        return build_model(name, **options).to(device)
