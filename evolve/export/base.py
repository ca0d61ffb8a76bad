"""How the base model of an evolved one is built, as source: by the class or function that built it for the run."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from evolve.errors import EvolveError, MisfitError
from evolve.export.depth import same_depth
from evolve.export.layers import alike, base_class, kind
from evolve.export.module_file import imported_as
from evolve.export.source import Call, call, is_name, literal, quoted
from evolve.models import find_model
from evolve.runtime.generators import preserved_rng

_PLACES = ("", ".segmentation", ".detection", ".video", ".optical_flow", ".quantization")  # of torchvision.models


@dataclass(frozen=True)
class Base:
    """A base model and the source that builds it.

    Attributes:
        model: It, as built now.
        source: The call that builds it.
        imports: What the call needs: pairs of a module and a name in it, or of a module and "".
    """

    model: nn.Module
    source: Call
    imports: tuple[tuple[str, str], ...]


def base_by_name(name: str, options: Mapping[str, Any]) -> Base | None:
    """Returns the base model that a configuration or an import path names; None for a built-in one.

    Args:
        name: What `model.name` may be in a configuration.
        options: Its options.

    Raises:
        EvolveError: If there is no such model, or options cannot be written down.
    """
    builder = find_model(name)
    library, _, rest = name.partition(":")
    if library == "torchvision" and rest:
        return _torchvision(builder, options)
    if library == "timm" and rest:
        plain = {key: value for key, value in options.items() if key != "pretrained"}
        source = _called("timm.create_model", {"pretrained": False, **plain}, quoted(rest))
        return _built(builder, {**plain, "pretrained": False}, source, (("timm", ""),))
    if library == "huggingface" and rest:
        return _huggingface(builder, rest, options)
    if str(builder.__module__).startswith("evolve.models"):
        return None
    return base_by_callable(builder, options)


def base_by_callable(builder: Callable[..., Any], options: Mapping[str, Any]) -> Base | None:
    """Returns the base model that a function or class of the user's builds; None for a built-in one.

    Raises:
        MisfitError: If it cannot be imported from anywhere, or an option cannot be written down.
    """
    module, name = _where(builder)
    if module.startswith("evolve.models"):
        return None
    first, *rest = name.split(".")
    source = _called(".".join([imported_as(first), *rest]), options)
    return _built(builder, options, source, ((module, first),))


def base_by_object(model: nn.Module) -> Base | None:
    """Returns a base model like one that was passed as an object; None where no constructor is needed.

    Its class is called with what its attributes of the same names say.

    Raises:
        MisfitError: If that gives another model, or the class cannot be imported.
    """
    cls = base_class(model)
    if cls.__module__.startswith(("evolve.models", "torch.nn.modules")):
        return None
    if callable(getattr(model, "save_pretrained", None)) and hasattr(getattr(model, "config", None), "to_diff_dict"):
        return _by_config(cls, model.config)
    module, name = _where(cls)
    options: dict[str, Any] = {}
    for key, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = getattr(model, key, parameter.default)
        if literal(value) is not None and (parameter.default is parameter.empty or value != parameter.default):
            options[key] = value
    try:
        base = base_by_callable(cls, options)
    except EvolveError as error:
        raise MisfitError(_unknown(cls, str(error))) from error
    if base is not None and not _same(base.model, model):
        raise MisfitError(_unknown(cls, f"{name}({', '.join(options)}) gives another model."))
    assert base is not None, module
    return base


def as_deep_as(base: Base, evolved: nn.Module) -> Base:
    """Returns the base model of transformers with as many layers as the evolved one has, where these are more or less.

    Its config tells more than a copied block does: the kind of each layer.

    Args:
        base: How the base model is built.
        evolved: As it became.
    """
    cls, config = base_class(evolved), getattr(evolved, "config", None)
    if not hasattr(config, "to_diff_dict") or not same_depth(copy.deepcopy(base.model), evolved):
        return base
    return _by_config(cls, config)


def _unknown(cls: type, why: str) -> str:
    return (
        f"The base model was passed as an object of class {cls.__qualname__}, and calling that class anew does not "
        f"give it: {why} Say how it is built: built_by='package.module:function', its arguments in build_options."
    )


def _same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = dict(one.named_modules()), dict(other.named_modules())
    return mine.keys() == theirs.keys() and all(
        kind(theirs[name]) is kind(module) and alike(module, theirs[name]) for name, module in mine.items()
    )


def _torchvision(builder: Callable[..., Any], options: Mapping[str, Any]) -> Base:
    known = inspect.signature(builder).parameters
    plain = {key: value for key, value in options.items() if key not in ("weights", "weights_backbone", "progress")}
    if "weights_backbone" in known:
        plain["weights_backbone"] = None
    name = builder.__name__
    places = [f"torchvision.models{place}" for place in _PLACES]
    place = next(place for place in places if getattr(importlib.import_module(place), name, None) is builder)
    return _built(builder, {**plain, "weights": None}, _called(name, plain), ((place, name),))


def _huggingface(builder: Callable[..., Any], model_type: str, options: Mapping[str, Any]) -> Base:
    model = _make(builder, options)
    return _by_config(type(model), model.config)


def _by_config(cls: type[nn.Module], config: Any) -> Base:
    """A model of transformers: its class, called with its configuration."""
    kept = config.to_diff_dict()
    default = type(config)().to_dict()
    hidden = ("transformers_version", "model_type", "architectures", "dtype", "torch_dtype")
    fields = {
        key: value
        for key, value in kept.items()
        if key not in hidden and not key.startswith("_") and (key not in default or default[key] != value)
    }
    labels = fields.get("id2label")
    if labels is not None and labels == {number: f"LABEL_{number}" for number in range(len(labels))}:
        del fields["id2label"]
        fields.pop("label2id", None)
        fields["num_labels"] = len(labels)
    config_module, config_name = _public(type(config))
    module, name = _public(cls)
    source = call(imported_as(name), _called(imported_as(config_name), fields))
    rebuilt = type(config)(**fields)
    return _built(lambda: cls(rebuilt), {}, source, ((config_module, config_name), (module, name)))


def _public(cls: type) -> tuple[str, str]:
    """Where a class is imported from: its package, where that offers it."""
    package = cls.__module__.partition(".")[0]
    if getattr(importlib.import_module(package), cls.__name__, None) is cls:
        return package, cls.__name__
    return _where(cls)


def _where(builder: Any) -> tuple[str, str]:
    module, name = str(getattr(builder, "__module__", "")), str(getattr(builder, "__qualname__", ""))
    parts = [*module.split("."), *name.split(".")]
    if module == "__main__" or not all(is_name(part) for part in parts):
        where = "the script that was started" if module == "__main__" else "inside a function"
        raise MisfitError(
            f"The model is built by '{name or builder}', which is defined {where}: no other program can import it from "
            "there. Move it to a module of its own, or export the weights alone: --to safetensors."
        )
    return module, name


def _called(function: str, options: Mapping[str, Any], *first: str) -> Call:
    written = {key: literal(value) for key, value in options.items()}
    unwritable = [key for key, value in written.items() if value is None or not is_name(key)]
    if unwritable:
        raise MisfitError(
            f"The option '{unwritable[0]}' of '{function}' is no plain value and cannot be written into source. Let a "
            "function of yours build the model with it, and name that one."
        )
    return call(function, *first, keywords={key: str(value) for key, value in written.items()})


def _built(
    builder: Callable[..., Any], options: Mapping[str, Any], source: Call, imports: tuple[tuple[str, str], ...]
) -> Base:
    return Base(_make(builder, options), source, imports)


def _make(builder: Callable[..., Any], options: Mapping[str, Any]) -> nn.Module:
    with preserved_rng(), torch.device("cpu"):
        try:
            model = builder(**options)
        except Exception as error:  # the user's own may raise anything
            raise MisfitError(
                f"The base model cannot be built anew with {dict(options)}: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(model, nn.Module):
        raise MisfitError(f"What builds the model gives a {type(model).__name__}, not an nn.Module.")
    return model
