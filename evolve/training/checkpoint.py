"""A run's state on disk: base model + records + tensors, written whole or not at all, loaded without pickle."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from evolve.errors import CheckpointError
from evolve.lineage import Lineage, Record
from evolve.mutation.replaying import replay
from evolve.runtime.generators import random_state, set_random_state
from evolve.surgery.optimizer_names import load_optimizer_by_name, optimizer_by_name
from evolve.training import TrainState

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
_VERSION = 2


def save_checkpoint(run: Path, state: TrainState, lineage: Lineage, progress: dict[str, Any], keep: int) -> Path:
    """Writes `checkpoints/step-N` and removes all but the newest `keep`.

    Args:
        run: The run folder.
        state: What training moves.
        lineage: All records so far.
        progress: What else the run needs to go on, as JSON values.
        keep: Checkpoints to keep.

    Returns:
        The checkpoint's folder; it appears only when all of it is on disk.
    """
    root = run / FOLDER
    partial = root / f".step-{state.step:08d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _save_model(state.model, partial / "model.safetensors")
    torch.save(_tensors(state), partial / "state.pt")
    (partial / "lineage.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in lineage), encoding="utf-8")
    content = {
        "version": _VERSION,
        **state.counts(),
        "ema": state.ema is not None,
        "progress": progress,
    }
    (partial / "checkpoint.json").write_text(json.dumps(content), encoding="utf-8")
    digests = {file.name: _sha256(file) for file in sorted(partial.iterdir())}
    (partial / "manifest.json").write_text(json.dumps(digests, indent=1), encoding="utf-8")
    for path in (*partial.iterdir(), partial):
        _flush(path)
    target = root / f"step-{state.step:08d}"
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    _flush(root)
    for old in sorted(root.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def newest_checkpoint(run: Path) -> Path:
    """Returns the newest checkpoint that is whole; a damaged one is passed over with a warning.

    Raises:
        CheckpointError: If there is none.
    """
    for path in sorted((run / FOLDER).glob("step-*"), reverse=True):
        fault = _damage(path)
        if fault is None:
            return path
        logger.warning("Checkpoint %s is damaged (%s); trying the one before it.", path, fault)
    raise CheckpointError(f"No whole checkpoint in {run / FOLDER}. Is '{run}' a run folder with a finished epoch?")


def load_model(path: Path, model: nn.Module, averaged: bool = False) -> list[Record]:
    """Replays a checkpoint's records on the base model and loads the weights strictly.

    Args:
        path: A checkpoint's folder.
        model: The base model, built as it was for the run.
        averaged: Take the moving average of the weights where the run kept one.

    Returns:
        The records.

    Raises:
        CheckpointError: If the weights do not fit the model.
    """
    records = Lineage.read(path / "lineage.jsonl")
    replay(model, records)
    _load_model(model, path)
    if averaged and _content(path)["ema"]:
        shadow = torch.load(path / "state.pt", map_location="cpu", weights_only=True)["ema"]["shadow"]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in shadow:
                    parameter.copy_(shadow[name])
    return records


def restore(path: Path, state: TrainState) -> tuple[list[Record], dict[str, Any]]:
    """Brings a fresh state over the base model to where the checkpoint was taken.

    Returns:
        The records, and what was given as `progress`.

    Raises:
        CheckpointError: If model or optimizer do not fit.
    """
    records = load_model(path, state.model)
    if state.config.channels_last:
        state.model.to(memory_format=torch.channels_last)
    saved = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    load_optimizer_by_name(state.model, state.optimizer, saved["optimizer"])
    if state.scheduler is not None:
        state.scheduler.load_state_dict(saved["scheduler"])
    if state.scaler is not None:
        state.scaler.load_state_dict(saved["scaler"])
    if state.ema is not None:
        state.ema.shadow = {name: value.to(state.device) for name, value in saved["ema"]["shadow"].items()}
        state.ema.updates = saved["ema"]["updates"]
    if state.new_parameters is not None:
        state.new_parameters.load_state_dict(saved["new_parameters"])
    content = _content(path)
    state.take_counts(content)
    set_random_state(saved["random"])
    progress: dict[str, Any] = content["progress"]
    return records, progress


def _tensors(state: TrainState) -> dict[str, Any]:
    return {
        "optimizer": optimizer_by_name(state.model, state.optimizer),
        "scheduler": state.scheduler.state_dict() if state.scheduler else None,
        "scaler": state.scaler.state_dict() if state.scaler else None,
        "ema": {"shadow": state.ema.shadow, "updates": state.ema.updates} if state.ema else None,
        "new_parameters": state.new_parameters.state_dict() if state.new_parameters else None,
        "random": random_state(),
    }


def _save_model(model: nn.Module, path: Path) -> None:
    """Tied tensors are written once; the file's metadata says which names share them."""
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"'{name}' in the model's state is a {type(tensor).__name__}; only tensors are saved."
            )
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            unique[name] = tensor.detach().cpu().contiguous().clone()
    save_file(unique, path, metadata={"aliases": json.dumps(aliases)})


def _load_model(model: nn.Module, path: Path) -> None:
    file = path / "model.safetensors"
    try:
        tensors = load_file(file)
        with safe_open(file, framework="pt") as opened:
            aliases = json.loads(opened.metadata()["aliases"])
        tensors.update({name: tensors[source] for name, source in aliases.items()})
        model.load_state_dict(tensors, strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{file} does not fit the model after replaying its records: {error} Is the base model the run's?"
        ) from error


def _content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
    if content["version"] != _VERSION:
        raise CheckpointError(f"{path} has version {content['version']}; this evolve reads version {_VERSION}.")
    return content


def _damage(path: Path) -> str | None:
    manifest = path / "manifest.json"
    if not manifest.is_file():
        return "no manifest.json"
    try:
        digests = json.loads(manifest.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return f"manifest.json is unreadable: {error}"
    for name, digest in digests.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _sha256(path / name) != digest:
            return f"{name} has changed"
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
