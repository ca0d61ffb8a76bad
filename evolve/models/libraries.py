"""Models of other libraries by name: `torchvision:resnet18`, `timm:vit_tiny_patch16_224`, `huggingface:bert`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, Literal, cast

from torch import nn

from evolve.errors import EvolveError, UnknownNameError, did_you_mean, missing_package

Builder = Callable[..., nn.Module]

# Arguments of timm's that name files, addresses or other configurations, which a model of a run folder must not.
_TIMM_SOURCES = ("pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
# What a Hugging Face configuration holds beside the architecture, and names that would be looked up elsewhere.
_NOT_OPTIONS = {"architectures", "model_type", "transformers_version"}
_NOT_OPTIONS |= {"backbone", "backbone_kwargs", "use_pretrained_backbone", "use_timm_backbone"}


def is_library(name: str) -> bool:
    """Whether a name is that of a model of another library."""
    return name.partition(":")[0] in _LIBRARIES and ":" in name


def find_in_library(name: str) -> Builder:
    """Returns the function that builds a model of another library; it is not called.

    Raises:
        UnknownNameError: If the library has no such model, or is not installed.
    """
    library, _, model = name.partition(":")
    return _LIBRARIES[library](model)


def usual_shape(name: str) -> tuple[int, ...] | None:
    """Returns the shape of the images that a library's model was made for, the smallest of several; None if unknown."""
    library, _, model = name.partition(":")
    if library == "torchvision":
        from torchvision.models import get_model_weights  # type: ignore[import-untyped]

        recipes = [weights.transforms for weights in get_model_weights(model)]
        sides = [getattr(recipe, "keywords", {}).get("crop_size") for recipe in recipes]
        known = [side for side in sides if isinstance(side, int)]
        return (3, min(known), min(known)) if known else None
    if library == "timm":
        recipe = _imported("timm", "timm").get_pretrained_cfg(model)
        return None if recipe is None else tuple(recipe.input_size)
    return None


def _torchvision(name: str) -> Builder:
    from torchvision.models import get_model_builder, list_models

    try:
        return cast("Builder", get_model_builder(name))
    except ValueError as error:
        raise UnknownNameError(
            f"Unknown torchvision model '{name}'.{did_you_mean(name, list_models())} "
            "torchvision.models.list_models() lists them all."
        ) from error


def _timm(name: str) -> Builder:
    timm = _imported("timm", "timm")
    if not timm.is_model(name):
        raise UnknownNameError(
            f"Unknown timm model '{name}'.{did_you_mean(name, timm.list_models())} timm.list_models() lists them all."
        )

    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        """Builds the model; whatever else timm knows of it is an option."""
        if told := [option for option in _TIMM_SOURCES if option in options]:
            raise EvolveError(f"'{told[0]}' is no option of timm:{name}. Give weights as model.weights: FILE.")
        return cast("nn.Module", timm.create_model(name, pretrained=pretrained, **options))

    return build


def _huggingface(model_type: str) -> Builder:
    transformers = _imported("transformers", "huggingface")
    configurations = transformers.CONFIG_MAPPING
    if model_type not in configurations:
        raise UnknownNameError(
            f"Unknown model type '{model_type}' of transformers.{did_you_mean(model_type, list(configurations))} It is "
            "what `model_type` says in the configuration of a checkpoint, such as bert, gpt2 or vit."
        )
    cls = configurations[model_type]
    heads = _heads_of(transformers, cls)

    def build(head: str | None = None, **options: Any) -> nn.Module:
        config = cls(**options)
        if hasattr(config, "use_pretrained_backbone"):
            config.use_pretrained_backbone = False  # nothing is downloaded
        auto = transformers.AutoModel if head is None else getattr(transformers, f"AutoModelFor{head}")
        return cast("nn.Module", auto.from_config(config))

    # What is written in a configuration is checked against this signature.
    known = [name for name in _options_of(cls) if name != "head"]
    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in known]
    head = inspect.Parameter(
        "head",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=cast("Any", Literal)[tuple(heads) or ("",)] | None,
    )
    cast("Any", build).__signature__ = inspect.Signature([head, *parameters], return_annotation=nn.Module)
    return build


def _heads_of(transformers: Any, config: Any) -> list[str]:
    """The heads that transformers has for a class of configurations: what follows `AutoModelFor`."""
    names = [name for name in dir(transformers) if name.startswith("AutoModelFor")]
    mappings = {name: getattr(getattr(transformers, name), "_model_mapping", ()) for name in names}
    return [name.removeprefix("AutoModelFor") for name, mapping in mappings.items() if config in mapping]


def _options_of(config: Any) -> list[str]:
    """What a class of configurations takes: its own settings, their other names, and how many labels there are."""
    known = {*inspect.signature(config.__init__).parameters, *config.attribute_map, "num_labels", *config().to_dict()}
    hidden = {"self", "args", "kwargs", *_NOT_OPTIONS}
    return sorted(name for name in known - hidden if not name.startswith("_"))


def _imported(package: str, prefix: str) -> Any:
    """Imports an optional package.

    Raises:
        UnknownNameError: If it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UnknownNameError(missing_package(f"A model '{prefix}:<name>'", package, error)) from error


_LIBRARIES: dict[str, Callable[[str], Builder]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "huggingface": _huggingface,
}
