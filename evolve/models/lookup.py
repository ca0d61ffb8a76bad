"""From a name in a config to the function that builds the thing.

A name is a registry name (`simple_cnn`), a torchvision model (`torchvision:resnet18`) or an import path
(`my_package.my_models:MyNet`). Nothing is ever evaluated: a path is imported and its attribute is read.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, cast

from torch import nn

from evolve.errors import EvolveError, UnknownNameError, did_you_mean
from evolve.registry import Registry

models: Registry[Callable[..., nn.Module]] = Registry("model", "evolve.models")

_TORCHVISION = "torchvision:"


def find_model(name: str) -> Callable[..., nn.Module]:
    """Returns the function or class that builds the model called `name`.

    Args:
        name: A registry name, `torchvision:<name>`, `package.module:attribute` or `package.module.attribute`.

    Raises:
        UnknownNameError: If nothing bears the name, or its module cannot be imported.
    """
    if name.startswith(_TORCHVISION):
        return _find_torchvision(name.removeprefix(_TORCHVISION))
    if is_import_path(name) and name not in models:
        return cast("Callable[..., nn.Module]", import_callable(name, models.kind))
    return models.get(name)


def build_model(name: str, /, **options: Any) -> nn.Module:
    """Builds the model called `name` with the given options.

    Raises:
        UnknownNameError: If nothing bears the name.
        EvolveError: If the options do not fit, or what was built is no `nn.Module`.
    """
    builder = find_model(name)
    check_call(builder, options, f"model '{name}'")
    model = builder(**options)
    if not isinstance(model, nn.Module):
        raise EvolveError(f"Model '{name}' built a {type(model).__name__}, not an nn.Module. Return the module itself.")
    return model


def is_import_path(name: str) -> bool:
    """True for `package.module:attribute` and `package.module.attribute`."""
    return ":" in name or "." in name


def import_callable(path: str, kind: str) -> Callable[..., Any]:
    """Imports the callable that `path` names.

    Args:
        path: `package.module:attribute` or `package.module.attribute`.
        kind: What it is called in messages, for example "model".

    Raises:
        UnknownNameError: If the module cannot be imported, lacks the attribute, or the attribute is not callable.
    """
    module_name, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if not module_name or not attribute:
        raise UnknownNameError(f"Unknown {kind} '{path}': an import path reads 'package.module:attribute'.")
    try:
        item: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise UnknownNameError(
            f"Unknown {kind} '{path}': cannot import '{module_name}' ({error}). "
            "Check the spelling, and that the module's folder is on PYTHONPATH or the package is installed."
        ) from error
    for part in attribute.split("."):
        if not hasattr(item, part):
            public = [known for known in dir(item) if not known.startswith("_")]
            raise UnknownNameError(
                f"Unknown {kind} '{path}': '{module_name}' has no '{part}'.{did_you_mean(part, public)}"
            )
        item = getattr(item, part)
    if not callable(item):
        raise UnknownNameError(
            f"'{path}' is a {type(item).__name__}, not something to call. "
            f"Name a function or a class that builds the {kind}."
        )
    return cast("Callable[..., Any]", item)


def check_call(function: Callable[..., Any], options: dict[str, Any], what: str) -> None:
    """Refuses options that `function` does not take, before anything is built.

    Raises:
        EvolveError: Naming the option and the ones that `function` knows.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # a few C-implemented callables have none; calling them is the only check
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        known = [p.name for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        stray = next((option for option in options if option not in known), "")
        raise EvolveError(
            f"The options of {what} do not fit: {error}.{did_you_mean(stray, known)} "
            f"Known: {', '.join(known) or 'none'}."
        ) from error


def _find_torchvision(name: str) -> Callable[..., nn.Module]:
    from torchvision.models import get_model_builder, list_models  # type: ignore[import-untyped]

    try:
        return cast("Callable[..., nn.Module]", get_model_builder(name))
    except ValueError as error:
        raise UnknownNameError(
            f"Unknown torchvision model '{name}'.{did_you_mean(name, list_models())} "
            "torchvision.models.list_models() lists them all."
        ) from error
