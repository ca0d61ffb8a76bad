"""Whether evolve works here: what is installed, which devices there are, which plugins load, and a mutation to see."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from evolve.errors import described
from evolve.mutation.api import mutate
from evolve.operators import operators

State = Literal["ok", "missing", "broken"]
# Extras of pyproject.toml that people use: the modules that each brings, and what they are for.
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "timm": (("timm",), "models of timm by name"),
    "huggingface": (("transformers", "accelerate", "datasets"), "models, trainer and data sets of Hugging Face"),
    "lightning": (("lightning",), "mutations in Lightning's Trainer"),
    "accelerate": (("accelerate",), "mutations in loops of Accelerate"),
    "tabular": (("pyarrow",), "tables in CSV and Parquet files"),
    "tensorboard": (("tensorboard",), "the logger tensorboard"),
    "mlflow": (("mlflow",), "the logger mlflow"),
    "wandb": (("wandb",), "the logger wandb"),
    "export": (("onnx", "onnxscript", "onnxruntime"), "export to ONNX"),
    "plot": (("matplotlib",), "pictures in notebooks"),
    "ray": (("ray",), "searches on several machines"),
    "optuna": (("optuna",), "searches that Optuna leads"),
}
_LITTLE_ROOM = 2**30  # bytes


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        state: "missing" is no fault: it is needed by those alone who use it.
        text: What was found, and what to do.
    """

    name: str
    state: State
    text: str


def examine(folder: Path) -> list[Finding]:
    """Looks at everything; nothing is written, and nothing is asked of a network.

    Args:
        folder: Where runs would be written.
    """
    return [*_versions(), *_devices(), *_extras(), *_plugins(), _room(folder), *_self_checks()]


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """Returns JSON values."""
    broken = any(finding.state == "broken" for finding in findings)
    return {"version": 1, "works": not broken, "findings": [asdict(finding) for finding in findings]}


def _versions() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()}, {sys.executable}, {platform.platform()}")
    for name in ("torch", "torchvision", "pydantic", "typer", "safetensors", "torchmetrics"):
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            yield Finding(name, "broken", f"is not installed: pip install {name}")


def _devices() -> Iterator[Finding]:
    cores = os.cpu_count()
    yield Finding("cpu", "ok", f"{cores} cores, {torch.get_num_threads()} threads of torch")
    for number in range(torch.cuda.device_count()):
        yield _tried(f"cuda:{number}", partial(_cuda, number))
    if not torch.cuda.device_count():
        why = "this torch is built without it" if torch.version.cuda is None else "torch finds no device"
        yield Finding("cuda", "missing", why)
    if torch.backends.mps.is_available():
        yield Finding("mps", "ok", "Apple's GPU")


def _cuda(number: int) -> str:
    device = torch.cuda.get_device_properties(number)
    return f"{device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def _extras() -> Iterator[Finding]:
    for extra, (modules, purpose) in EXTRAS.items():
        lacking = [module for module in modules if find_spec(module) is None]
        if lacking:
            told = f"{purpose}: no {', '.join(lacking)}. To have it: pip install {' '.join(lacking)}"
            yield Finding(f"extra {extra}", "missing", told)
        else:
            found = ", ".join(f"{module} {_version(module)}".strip() for module in modules)
            yield Finding(f"extra {extra}", "ok", f"{purpose}: {found}")


def _version(module: str) -> str:
    try:
        return version(module)
    except PackageNotFoundError:  # it is part of a package of another name
        return ""


def _plugins() -> Iterator[Finding]:
    """Entry points of other packages, each loaded."""
    groups = sorted(group for group in entry_points().groups if group.startswith("evolve."))
    points = [point for group in groups for point in entry_points(group=group)]
    for point in points:
        yield _tried(f"plugin {point.name}", partial(_loaded, point))
    if not points:
        yield Finding("plugins", "ok", "no installed package offers any; a run's own are named in its configuration")


def _loaded(point: EntryPoint) -> str:
    if point.group == operators.group:
        operators.load(point)  # which also tells whether it is an operator
    else:
        point.load()
    return f"{point.group}: {point.value}"


def _room(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return Finding("disk", "broken", f"{folder} cannot be written to: run elsewhere, or set output.dir")
    little = " A checkpoint that finds no room is not written." if free < _LITTLE_ROOM else ""
    return Finding("disk", "ok", f"{free / 2**30:.1f} GiB free in {folder}.{little}")


def _self_checks() -> Iterator[Finding]:
    """A small model grows in place, on each kind of device."""
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in kinds:
        yield _tried(f"mutation on {device}", partial(_mutation, device))


def _mutation(device: str) -> str:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    inputs = torch.randn(4, 8, device=device)
    model(inputs).sum().backward()
    optimizer.step()
    for operator in ("widen", "deepen"):
        mutate(model, operator, optimizer=optimizer, example_inputs=inputs, strict=True)
    model(inputs).sum().backward()
    optimizer.step()
    return "a layer was widened and one was inserted in place; the model trains on"


def _tried(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", look())
    except Exception as error:  # whatever does not work here is what is to be told
        return Finding(name, "broken", described(error))
