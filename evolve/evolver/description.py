"""The config.yaml of a run that was built in Python: everything that can be named, and a note of what cannot."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from torch.utils.data import DataLoader

from evolve.config import parse_yaml
from evolve.config.dialect import dump_values
from evolve.tasks import TaskConfig
from evolve.training.optim import OptimizerConfig

NOTE = "built_in_python"  # the first key of such a file, and of no other

_SAYABLE = ("optimizer", "lr_schedule", "task")


def describe_run(run: Any, given: Mapping[str, Any]) -> str:
    """Returns the text of a config.yaml.

    Args:
        run: The Evolver.
        given: Its other arguments by name: sections, names or objects.
    """
    samples = {"train_data": run.train_data.samples, "val_data": run.val_data.samples}
    monitor = run.training.monitor.model_copy(update={"mode": run.monitor.mode})  # which the task's metrics said
    training = run.training.model_copy(update={"monitor": monitor})
    sections = {"training": training, "evolution": run.evolution, "output": run.output}
    named = {key: section for key in _SAYABLE if (section := _section(key, given[key])) is not None}
    note: dict[str, Any] = {}
    for key, value in given.items():
        if key not in named and value is not None and value != []:
            notes = [_note(one) for one in value] if key == "callbacks" else _note(value)
            note[key] = {**notes, "samples": samples[key]} if isinstance(notes, dict) and key in samples else notes
    values = {key: part.model_dump(mode="json", fallback=repr) for key, part in {**named, **sections}.items()}
    return dump_values({NOTE: note, **values})


def is_description(text: str) -> bool:
    """Whether a config.yaml is of a run that was built in Python, and nobody has completed it."""
    return text.startswith(f"{NOTE}:")


def lacking(text: str) -> list[str]:
    """Returns what a description could not name, each part with its class and where that came from."""
    note = parse_yaml(text, "config.yaml")[0].get(NOTE)
    parts = []
    for key, value in note.items() if isinstance(note, dict) else ():
        for one in value if isinstance(value, list) else [value]:
            told = one if isinstance(one, dict) else {}
            file = f" in {told['file']}" if told.get("file") else ""
            count = f", {told['samples']} samples" if told.get("samples") is not None else ""
            inner = told["dataset"].get("class") if isinstance(told.get("dataset"), dict) else None
            parts.append(f"{key}: {told.get('class', '?')}{f' of {inner}' if inner else ''}{file}{count}")
    return parts


def _section(key: str, value: Any) -> BaseModel | None:
    """The section that an argument is or stands for; None where it cannot be named."""
    if key == "task" and (value is None or isinstance(value, str)):
        return TaskConfig(name=value) if value else TaskConfig()
    if key == "optimizer" and value is None:
        return OptimizerConfig()
    return value if isinstance(value, BaseModel) else None


def _note(value: Any) -> dict[str, Any]:
    """Says what an object is and where it comes from."""
    subject = value if inspect.isclass(value) or inspect.isroutine(value) else type(value)
    module = str(subject.__module__ or "builtins")  # a method of a built-in object has none
    note: dict[str, Any] = {"class": f"{module}:{subject.__qualname__}"}
    if module.partition(".")[0] not in ("evolve", "torch", "builtins") and (file := _file(subject)):
        note["file"] = file
    return {**note, "dataset": _note(value.dataset)} if isinstance(value, DataLoader) else note


def _file(subject: Any) -> str | None:
    try:
        return inspect.getsourcefile(subject)
    except (TypeError, OSError):  # written in C, or typed into an interpreter
        return None
