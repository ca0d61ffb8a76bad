"""From a name in a configuration to the function that builds the model.

A name is a registry name (`simple_cnn`), a model of a library (`torchvision:resnet18`, `timm:...`, `huggingface:...`)
or an import path (`my_package.my_models:MyNet`). Nothing is ever evaluated: a path is imported and its attribute read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, get_args

from torch import nn

from evolve.config import KeyPath, signature_faults, signature_of
from evolve.errors import EvolveError, UnknownNameError
from evolve.models.libraries import find_in_library, is_library
from evolve.plugins import import_callable, is_import_path
from evolve.registry import Registry

models: Registry[Callable[..., nn.Module]] = Registry("model", "evolve.models")


def find_model(name: str, trusted: bool = True) -> Callable[..., nn.Module]:
    """Returns the function or class that builds the model called `name`; it is not called.

    Args:
        name: A registry name, `torchvision:<name>`, `timm:<name>`, `huggingface:<model type>`,
            `package.module:attribute` or `package.module.attribute`.
        trusted: Whether the name comes from the user; an import path that does not is refused.

    Raises:
        UnknownNameError: If the name is unknown, cannot be imported, or does not build a model.
    """
    if is_library(name):
        return find_in_library(name)
    if is_import_path(name) and name not in models:
        return _builder(name, import_callable(name, models.kind, trusted))
    return models.get(name)


def build_model(name: str, /, **options: Any) -> nn.Module:
    """Builds the model called `name` with the given options.

    Raises:
        UnknownNameError: If the name is unknown.
        EvolveError: If the options do not fit, or the result is not an `nn.Module`.
    """
    builder = find_model(name)
    if faults := signature_faults(builder, options) or size_faults(builder, options):
        raise EvolveError(f"Model '{name}': {' '.join(message for _, message in faults)}")
    try:
        model = builder(**options)
    except EvolveError:
        raise
    except Exception as error:  # a builder, the user's own too, may raise anything
        raise EvolveError(
            f"Model '{name}' cannot be built with the options {options}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise EvolveError(f"Model '{name}' built a {type(model).__name__}, not an nn.Module. Return the module itself.")
    return model


def size_faults(builder: Callable[..., nn.Module], options: Mapping[str, Any]) -> list[tuple[KeyPath, str]]:
    """Returns which widths, depths and other sizes of a built-in model are below 1, and where they stand.

    Torch builds a layer of no units with a warning, or fails somewhere inside.
    """
    if not str(builder.__module__).startswith("evolve.models."):
        return []  # what the numbers of others mean is theirs to say
    kinds = {name: parameter.annotation for name, parameter in (signature_of(builder) or {}).items()}
    faults: list[tuple[KeyPath, str]] = []
    for key, value in options.items():
        if kinds.get(key) not in (int, Sequence[int]):
            continue
        for path, number in (
            [((key, i), n) for i, n in enumerate(value)] if kinds[key] is not int else [((key,), value)]
        ):
            if number < 1:
                faults.append((path, f"'{key}' has to be at least 1; found {number}."))
    return faults


def _builder(name: str, item: Callable[..., Any]) -> Callable[..., nn.Module]:
    """Holds what an import path stands for against what it has to be, before it is called: it may do anything.

    Raises:
        UnknownNameError: If it builds no model.
    """
    if inspect.isclass(item):
        found = None if issubclass(item, nn.Module) else "a class that is not an nn.Module"
    elif inspect.isbuiltin(item):
        found = "a function that is not written in Python"
    else:
        made = _returned(item)
        found = None if made is None or issubclass(made, nn.Module) else f"a function that returns a {made.__name__}"
    if found:
        raise UnknownNameError(
            f"Model '{name}' is {found}. Name a subclass of nn.Module, or a function that returns a module."
        )
    return cast("Callable[..., nn.Module]", item)


def _returned(function: Callable[..., Any]) -> type | None:
    """The class that a function is annotated to return; None where that is not told, or may be a module."""
    try:
        made = inspect.signature(function, eval_str=True).return_annotation
    except Exception:  # an annotation may name what is imported for type checkers alone, or be any expression
        return None
    if made is None:
        return type(None)
    told = isinstance(made, type) and not get_args(made) and made not in (inspect.Signature.empty, Any, object)
    return made if told else None
