"""A run's state on disk: base model + records + tensors, written whole or not at all, and taken up again."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evolve.errors import CheckpointError
from evolve.lineage import Lineage
from evolve.runtime.generators import random_state, set_random_state
from evolve.surgery.optimizer_names import check_optimizers, load_optimizer_by_name, optimizer_by_name
from evolve.training import TrainState
from evolve.training.finite import check_finite_optimizer
from evolve.training.folder import (
    discard,
    put_in_place,
    remove,
    write_text,
    written_whole,
)
from evolve.training.new_budget import take_new_budget
from evolve.training.opening import (
    BEST,
    CONFIG,
    CONTENT,
    FOLDER,
    PENDING,
    RECORDS,
    STATE,
    VERSION,
    WEIGHTS,
    Checkpoint,
    fault_of,
    order_of,
    paths_of,
)
from evolve.training.restoring import fitting, replay_bounded
from evolve.training.tensors import extra_state, load_tensors, write_model, write_state

logger = logging.getLogger(__name__)

REPLAYED = "replayed"  # in the progress of a checkpoint whose model nothing has trained: it is there to be loaded


def save_checkpoint(
    run: Path,
    state: TrainState,
    lineage: Lineage,
    progress: dict[str, Any],
    keep: int | None,
    config: str | None = None,
    *,
    root: str = FOLDER,
) -> Path:
    """Writes `checkpoints/step-N`, and deletes all but the newest that are whole.

    Args:
        run: The run folder.
        state: What training moves.
        lineage: All records so far.
        progress: What else the run needs to go on, as JSON values.
        keep: Checkpoints to keep; None for all.
        config: The run's configuration.
        root: The folder of the run that it goes to.

    Returns:
        The checkpoint's folder; it appears only when all of it is on disk.

    Raises:
        NonFiniteModelError: If the model or the optimizer's state is NaN or infinite; nothing was written.
        CheckpointError: If it cannot be written.
    """
    state.finite.check(state.model, state.ema.shadow if state.ema else {})
    target = run / root / f"step-{state.step:08d}"
    if target.exists() and fault_of(target):
        discard(target)  # what is damaged gives nothing to fall back to
    saved = _state(state)
    check_finite_optimizer(saved["optimizer"])
    progress = {**progress, "budget": asdict(state.config.budget)}
    content = {"version": VERSION, **state.counts(), "finite": state.finite.state(), "progress": progress}
    with written_whole(target) as folder:
        write_text(folder / RECORDS, "".join(record.model_dump_json() + "\n" for record in lineage))
        write_text(folder / CONTENT, json.dumps(content))
        if config is not None:
            write_text(folder / CONFIG, config)
        write_model(state.model, folder / WEIGHTS)
        write_state(saved, folder / STATE)
    if keep is not None:
        _keep([path for path in paths_of(run, root) if path != target], keep - 1)
    return target


def _keep(found: Sequence[Path], keep: int) -> None:
    """Deletes all but the first that are whole."""
    if len(found) > keep:
        whole = [path for path in found if fault_of(path) is None]
        for path in set(found) - set(whole[:keep]):
            discard(path)


def settle_best(run: Path, *, kept: bool) -> None:
    """Lets the best checkpoint that waits for a verdict join the one before it, or deletes it."""
    if not (run / PENDING).is_dir():
        return
    if kept:
        (run / BEST).mkdir(exist_ok=True)
        for path in paths_of(run, PENDING):
            put_in_place(path, run / BEST / path.name)
    remove(run / PENDING)


def thin_out_best(run: Path, saved: Path | None) -> None:
    """Deletes best checkpoints but for the newest, and the newest that a run which goes on from `saved` would know.

    Args:
        run: The run folder.
        saved: The newest checkpoint; None where there is none.
    """
    found, newest = paths_of(run, BEST), (-1, False) if saved is None else order_of(saved)
    for part in ([p for p in found if order_of(p) > newest], [p for p in found if order_of(p) <= newest]):
        _keep(part, 1)


def abandon_best(run: Path, step: int) -> None:
    """Deletes best checkpoints of later steps than a run goes on from: it will not have those epochs."""
    later = [path for path in paths_of(run, BEST) if order_of(path)[0] > step]
    for path in later:
        discard(path)
    if later and not paths_of(run, BEST):
        logger.warning(
            "The best epoch up to step %d was not kept; the last one stands for it until one is better.", step
        )


def load_model(checkpoint: Checkpoint, model: nn.Module, averaged: bool = False) -> None:
    """Replays a checkpoint's records on the base model and loads the weights strictly.

    Args:
        checkpoint: As it was read.
        model: The base model, built as it was for the run.
        averaged: Take the moving average of the weights where the run kept one.

    Raises:
        CheckpointError: If records or weights do not fit the model.
        UnknownNameError: If a record's operator is not known.
    """
    with fitting(checkpoint.path):
        replay_bounded(model, checkpoint.records, checkpoint.tensors)
        load_tensors(model, checkpoint.tensors, checkpoint.saved["extra"], checkpoint.path)
        if averaged and checkpoint.saved["ema"] is not None:
            shadow = checkpoint.saved["ema"]["shadow"]
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name in shadow:
                        parameter.copy_(shadow[name])


def restore(checkpoint: Checkpoint, state: TrainState) -> dict[str, Any]:
    """Brings a fresh state over the base model to where the checkpoint was taken.

    Returns:
        What was given as `progress`.

    Raises:
        CheckpointError: If model, optimizer or another part do not fit.
    """
    saved, content = checkpoint.saved, checkpoint.content
    if REPLAYED in content.progress:
        raise CheckpointError(
            f"{checkpoint.path} holds a model that was replayed and not trained: there is no training to go on with. "
            f"Load it, evolve.load({str(checkpoint.run)!r}), and pass it to an Evolver as its model."
        )
    parts = {"lr_schedule": "scheduler", "loss scaling": "scaler", "training.ema": "ema", "training.keep_best": "best"}
    for word, name in parts.items():
        if (saved[name] is None) != (getattr(state, name) is None):
            has, lacks = ("this one has", "has none") if saved[name] is None else ("this one has none", "has one")
            raise CheckpointError(f"The run in {checkpoint.path} {lacks} ({word}), {has}. Build it as it was.")
    check_optimizers(state.optimizer, saved["optimizer"])
    was, here = saved["lr_schedule"], type(state.scheduler).__name__
    if was != here:  # the state of another schedule would be taken up without a word
        raise CheckpointError(
            f"The run in {checkpoint.path} had lr_schedule {was}, this one has {here}. Build it as it was."
        )
    load_model(checkpoint, state.model)
    with fitting(checkpoint.path):
        if state.config.channels_last:
            state.model.to(memory_format=torch.channels_last)
        load_optimizer_by_name(state.model, state.optimizer, saved["optimizer"])
        if state.scaler is not None:
            state.scaler.load_state_dict(saved["scaler"])
        if state.ema is not None:
            state.ema.load_state_dict(saved["ema"])
        if state.best is not None:
            state.best.load_state_dict(saved["best"])
        if state.new_parameters is not None and saved["new_parameters"] is not None:
            state.new_parameters.load_state_dict(saved["new_parameters"])
        state.take_counts(content.model_dump())
        take_new_budget(state, content.progress, saved["scheduler"])
        state.finite.load_state(content.finite)
        set_random_state(saved["random"])
    return content.progress


def _state(state: TrainState) -> dict[str, Any]:
    return {
        "lr_schedule": type(state.scheduler).__name__,
        "extra": extra_state(state.model),
        "optimizer": optimizer_by_name(state.model, state.optimizer),
        "scheduler": state.scheduler.state_dict() if state.scheduler else None,
        "scaler": state.scaler.state_dict() if state.scaler else None,
        "ema": state.ema.state_dict() if state.ema else None,
        "best": state.best.state_dict() if state.best else None,
        "new_parameters": state.new_parameters.state_dict() if state.new_parameters else None,
        "random": random_state(),
    }
