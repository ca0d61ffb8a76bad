"""The door to everything that leaves evolve: `export_model`."""

from __future__ import annotations

import copy
import importlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_model
from torch import nn

from evolve.errors import MisfitError, UnknownNameError, did_you_mean
from evolve.export.base import Base, as_deep_as, base_by_callable, base_by_name, base_by_object
from evolve.export.comparing import inputs_for
from evolve.export.graphs import write_onnx, write_torch_export
from evolve.export.module_file import WEIGHTS
from evolve.export.python import write_python
from evolve.lineage import Record
from evolve.loading import OpenedRun, open_run
from evolve.structure.inputs import Inputs, example_of

logger = logging.getLogger(__name__)

Format = Literal["state_dict", "safetensors", "python", "torch_export", "onnx", "huggingface"]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where.
        files: Their names in it.
        epoch: Of the checkpoint; None where a model was passed.
        max_abs_diff: Largest difference between the outputs of what was written and those of the evolved model; None
            where nothing was compared.
    """

    folder: Path
    files: list[str]
    epoch: int | None
    max_abs_diff: float | None


def export_model(
    run: str | Path | nn.Module,
    *,
    to: Format,
    output: str | Path,
    which: Literal["best", "last"] | int = "best",
    model: nn.Module | None = None,
    built_by: str | Callable[..., nn.Module] | None = None,
    build_options: Mapping[str, Any] | None = None,
    example_inputs: Any = None,
    shapes: Sequence[Sequence[int]] = (),
    trust: bool = False,
) -> Exported:
    """Writes an evolved model to a folder that does without evolve; `docs/export.md` tells of each format.

    What is refused is refused before the folder is there.

    Args:
        run: What `evolve.load` takes, or a model that was mutated; that one stays as it is.
        to: "state_dict", "safetensors", "python", "torch_export", "onnx" or "huggingface".
        output: A folder that does not exist yet, or is empty.
        which: As for `evolve.load`.
        model: The base model, where the run did not start from a YAML file.
        built_by: What builds the base model: a function or class that can be imported, or its import path; needed for
            "python" where neither a configuration nor the model's own attributes tell.
        build_options: Its arguments.
        example_inputs: As for `mutate`: what the result is compared on, and what "torch_export" and "onnx" trace; else
            a batch like the one that the model was mutated on.
        shapes: Shapes of the arguments instead, batch first.
        trust: Import what the run's configuration names.

    Raises:
        CheckpointError: As `evolve.load`.
        MisfitError: If the model cannot leave this way; the message says what to do.
        UnknownNameError: If there is no such format.
    """
    if to not in get_args(Format):
        known = get_args(Format)
        raise UnknownNameError(f"Unknown format '{to}'.{did_you_mean(to, known)} Known: {', '.join(known)}.")
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MisfitError(f"'{folder}' exists already and is not an empty folder. Name another one with --output.")
    named = _named(built_by, build_options or {})
    base = named
    if isinstance(run, nn.Module):
        opened = OpenedRun(copy.deepcopy(run).cpu().eval(), 0, [], None)
    else:
        if base is None and model is not None and to in ("python", "huggingface"):
            base = base_by_object(model)  # before it is mutated
        opened = open_run(run, model, which=which, trust=trust)
    if base is None and to in ("python", "huggingface"):
        base = _told(opened, passed=isinstance(run, nn.Module))
    evolved = opened.model
    batch = example_inputs if example_inputs is not None or not shapes else _examples(evolved, shapes)
    inputs = None
    if to not in ("state_dict", "safetensors"):
        specs = next((record.inputs for record in opened.records if record.inputs and not record.root), [])
        inputs = inputs_for(evolved, batch, specs)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made:
        difference = _write(evolved, to, Path(made), base, inputs, opened.records)
        files = sorted(path.name for path in Path(made).iterdir() if path.is_file())
        folder.mkdir(exist_ok=True)
        for name in files:
            shutil.move(Path(made) / name, folder / name)
    return Exported(folder, files, None if isinstance(run, nn.Module) else opened.epoch, difference)


def _named(built_by: str | Callable[..., nn.Module] | None, options: Mapping[str, Any]) -> Base | None:
    if built_by is None:
        return None
    return base_by_name(built_by, options) if isinstance(built_by, str) else base_by_callable(built_by, options)


def _told(opened: OpenedRun, *, passed: bool) -> Base | None:
    """How the base model is built, by the configuration; a model that was passed may need no constructor."""
    if opened.base is not None:
        return base_by_name(opened.base.name, opened.base.options)
    return base_by_object(opened.model) if passed else None


def _examples(model: nn.Module, shapes: Sequence[Sequence[int]]) -> Any:
    return tuple(example_of(model, shape) for shape in shapes)


def _write(
    model: nn.Module, to: Format, folder: Path, base: Base | None, inputs: Inputs | None, records: Sequence[Record]
) -> float | None:
    if to == "state_dict":
        torch.save(model.state_dict(), folder / "model.pt")
        return None
    if to == "safetensors":
        save_model(model, str(folder / WEIGHTS))
        return None
    if to == "python":
        return write_python(model, folder, as_deep_as(base, model) if base else None, inputs).max_abs_diff
    if to == "huggingface":
        writer = importlib.import_module("evolve.export.huggingface")  # imports transformers
        difference: float | None = writer.write_huggingface(
            model, folder, records, getattr(base.model if base else model, "config", None), inputs
        )
        return difference
    if inputs is None:
        raise MisfitError(
            f"No input is known that a {type(model).__name__} runs on, and '{to}' follows a run. Give its shape, batch "
            "first: --shape 2,3,224,224, or example_inputs=... in Python."
        )
    if to == "onnx":
        return write_onnx(model, folder / "model.onnx", inputs)
    return write_torch_export(model, folder / "model.pt2", inputs)
