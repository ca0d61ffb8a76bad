"""Plain PyTorch source of an evolved model: written, imported, compared, and only then kept."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from evolve.errors import MisfitError, described
from evolve.export.base import Base
from evolve.export.changes import Changes
from evolve.export.comparing import largest_difference
from evolve.export.module_file import BUFFERS, WEIGHTS, ModuleFile, module_name
from evolve.export.parts import Around, Writer
from evolve.export.source import Origins, access, access_own, quoted
from evolve.runtime.generators import preserved_rng
from evolve.structure.inputs import Inputs
from evolve.structure.isolation import undisturbed
from evolve.surgery.attach import BlockStore

logger = logging.getLogger(__name__)

LARGEST = 1e-6  # of the outputs' difference, relative to the largest output where that is above 1


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        file: The source.
        max_abs_diff: Largest difference of the outputs; None where there was nothing to compare them on.
    """

    file: ModuleFile
    max_abs_diff: float | None


def write_python(evolved: nn.Module, folder: Path, base: Base | None, inputs: Inputs | None) -> Written:
    """Writes `model.py`, the weights and a README to a folder that exists.

    What stands around a layer answers for it only where the model does not run otherwise.

    Args:
        evolved: On the CPU, in eval mode.
        folder: Where to.
        base: How its base model is built; None where that needs no constructor.
        inputs: To compare on.

    Raises:
        MisfitError: If a part has no source, or the source does not compute what the model does.
    """
    ways: list[Around] = ["needed", "likely", "everywhere"] if inputs is not None else ["likely"]
    faults = []
    for around in ways:
        try:
            return _write(evolved, folder, base, inputs, around)
        except MisfitError as error:
            faults.append(error)
    raise faults[0]


def _write(evolved: nn.Module, folder: Path, base: Base | None, inputs: Inputs | None, around: Around) -> Written:
    file, origins = _file(evolved, base, around)
    twin = _imported(file, folder)
    file.statements += _ties(twin, evolved, origins)
    file.statements += _frozen(evolved, origins, twin)
    twin = _imported(file, folder) if file.statements else twin
    buffers = _carry(twin, origins)
    if buffers:
        file.buffers = [
            f"{access_own(twin, key.rpartition('.')[0], key.rpartition('.')[2])} = buffers[{quoted(key)}]"
            for key in buffers
        ]
        save_file(buffers, folder / BUFFERS)
    save_model(twin, str(folder / WEIGHTS))
    twin = _loaded(file, folder)
    difference = None if inputs is None else _checked(evolved, twin, inputs)
    (folder / "README.md").write_text(_readme(file), encoding="utf-8")
    return Written(file, difference)


def _file(evolved: nn.Module, base: Base | None, around: Around) -> tuple[ModuleFile, Origins]:
    writer = Writer(around)
    title = f"{module_name(type(evolved))} as it was evolved, in plain PyTorch."
    if base is None:
        whole = writer.part(evolved, "")
        return ModuleFile(title, whole, classes=writer.classes, needs=set(whole.needs)), whole.origins
    dtypes = {tensor.dtype for tensor in evolved.parameters() if tensor.is_floating_point()}
    statements = []
    model = base.model
    if len(dtypes) == 1 and (dtype := dtypes.pop()) != torch.float32:
        model, statements = copy.deepcopy(base.model).to(dtype), [f"model.to({dtype})"]
    changes = Changes(model, evolved, writer)
    statements += changes.statements
    return (
        ModuleFile(title, base.source, base.imports, writer.classes, set(changes.needs), statements),
        changes.origins,
    )


def _imported(file: ModuleFile, folder: Path) -> nn.Module:
    """Builds the model that the source describes."""
    return _run(file, folder, "build")


def _loaded(file: ModuleFile, folder: Path) -> nn.Module:
    return _run(file, folder, "load")


def _run(file: ModuleFile, folder: Path, function: str) -> nn.Module:
    path = folder / "model.py"
    path.write_text(file.text(), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("exported_model", path)
    assert spec is not None  # it is a file of Python
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with preserved_rng():
            spec.loader.exec_module(module)
            built: nn.Module = getattr(module, function)()
    except Exception as error:  # the constructor of somebody else's class is part of it
        logger.debug("The source that failed:\n%s", file.text())
        raise MisfitError(
            f"The source that was written does not build the model ({described(error)}). Nothing was kept. Export the "
            "weights alone: --to safetensors."
        ) from error
    return built


def _names(twin: nn.Module, origins: Origins) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Modules that hold tensors, by their names in what was written: the new one, and the one that it stands for."""
    found = {}
    for name, source in origins.items():
        if isinstance(source, BlockStore) or not (source._parameters or source._buffers):
            continue
        found[name] = (_submodule(twin, name), source)
    return found


def _submodule(twin: nn.Module, name: str) -> nn.Module:
    try:
        return twin.get_submodule(name)
    except AttributeError as error:
        raise MisfitError(f"The source that was written has no '{name}'. Nothing was kept.") from error


@torch.no_grad()
def _carry(twin: nn.Module, origins: Origins) -> dict[str, Tensor]:
    """Copies the weights; returns the buffers that no state_dict holds and that have other values."""
    known: set[int] = set()
    others = {}
    for name, (new, old) in _names(twin, origins).items():
        for kind in ("_parameters", "_buffers"):
            targets = getattr(new, kind)
            for key, value in getattr(old, kind).items():
                if value is None:
                    continue
                full, target = f"{name}.{key}" if name else key, targets.get(key)
                if target is None or (target.shape, target.dtype) != (value.shape, value.dtype):
                    found = "nothing" if target is None else f"{tuple(target.shape)} of {target.dtype}"
                    raise MisfitError(
                        f"The source that was written gives '{full}' as {found}, where the model has "
                        f"{tuple(value.shape)} of {value.dtype}. Nothing was kept."
                    )
                if kind == "_buffers" and key in old._non_persistent_buffers_set and not _equal(target, value):
                    others[full] = value.detach().clone().contiguous()
                if target.device.type != "meta":
                    target.copy_(value)
                known.add(id(target))
    left = [name for name, tensor in twin.state_dict(keep_vars=True).items() if id(tensor) not in known]
    if left:
        raise MisfitError(f"The source that was written has '{left[0]}', which the model has not. Nothing was kept.")
    return others


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _ties(twin: nn.Module, evolved: nn.Module, origins: Origins) -> list[str]:
    """Statements for parameters that go by several names."""
    places: dict[int, list[tuple[str, str]]] = {}
    for name, (_, old) in _names(twin, origins).items():
        for key, value in old._parameters.items():
            if value is not None:
                places.setdefault(id(value), []).append((name, key))
    statements = []
    for tied in places.values():
        (first, key), *others = tied
        one = twin.get_submodule(first)._parameters.get(key)
        for name, own in others:
            if twin.get_submodule(name)._parameters.get(own) is not one:
                statements.append(f"{access_own(twin, name, own)} = {access_own(twin, first, key)}")
    return statements


def _frozen(evolved: nn.Module, origins: Origins, twin: nn.Module) -> list[str]:
    """Statements for parameters that are not trained, module by module where all of one are not."""
    wanted = {}
    for name, (new, old) in _names(twin, origins).items():
        for key, value in old._parameters.items():
            if value is not None and new._parameters.get(key) is not None:
                wanted[f"{name}.{key}" if name else key] = value.requires_grad
    now = dict(twin.named_parameters(remove_duplicate=False))
    different = {name for name, trained in wanted.items() if name in now and now[name].requires_grad != trained}
    statements = []
    for name, module in twin.named_modules():
        prefix = f"{name}." if name else ""
        inside = {own for own in wanted if own.startswith(prefix)}
        if inside and inside <= different and not any(wanted[own] for own in inside):
            statements.append(f"{access(twin, name)}.requires_grad_(False)")
            different -= inside
        for key in module._parameters:
            if f"{prefix}{key}" in different:
                statements.append(f"{access_own(twin, name, key)}.requires_grad_({wanted[prefix + key]})")
                different.discard(f"{prefix}{key}")
    return statements


def _checked(evolved: nn.Module, twin: nn.Module, inputs: Inputs) -> float:
    """Compares in eval mode, and sees whether the source runs in train mode where the model does."""
    trains = _trains(evolved, inputs)
    try:
        difference, scale = largest_difference(evolved, twin, inputs)
        if trains:
            with torch.no_grad(), undisturbed(twin):
                inputs.run(twin.train())
    except Exception as error:  # somebody else's forward reads what is not there
        raise MisfitError(
            f"The source that was written does not run ({described(error)}). Nothing was kept."
        ) from error
    if not difference <= LARGEST * max(1.0, scale):
        raise MisfitError(
            f"The source that was written computes something else: max|Δ| = {difference:.3g}, allowed is {LARGEST:g} "
            f"of the largest output, {scale:.3g}. Nothing was kept."
        )
    return difference


def _trains(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a model runs on these inputs in train mode: some need targets then, BatchNorm more than one sample."""
    try:
        with torch.no_grad(), undisturbed(model):
            inputs.run(model.train())
    except Exception:  # whatever a user's forward raises
        return False
    return True


def _readme(file: ModuleFile) -> str:
    packages = {"torch", "safetensors", *(module.partition(".")[0] for module, _ in file.imports)}
    lines = []
    for package in sorted(packages):
        version = _version(package)
        own = ": code of your own. Copy it here, or name the folder that it lies in in `PYTHONPATH`"
        lines.append(f"- `{package}`" + (f" (written with {version})" if version else own))
    return (
        "# An evolved model in plain PyTorch\n\n"
        "```python\nfrom model import load\n\nmodel = load()  # in eval mode, on the CPU\n```\n\n"
        "`model.py` is the architecture, `build()` makes it with new weights; `model.safetensors` holds the weights. "
        "Needs:\n\n" + "\n".join(lines) + "\n"
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
