"""Groups of an optimizer that say themselves which parameters belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn import Parameter

MATCH = "match"
"""Key of a group: globs of dotted names and kinds of parameters, any one of which is enough."""

DECAYED = "decayed"
"""Key of a group: whether it is for what weight decay is for, or for the rest; see `is_decayed`."""

KINDS = ("bias", "norm", "embedding", "vector", "matrix")


def has_rule(group: Mapping[str, Any]) -> bool:
    """Whether a group says which parameters belong to it."""
    return MATCH in group or DECAYED in group


def belongs(group: Mapping[str, Any], model: nn.Module, name: str, parameter: Parameter) -> bool:
    """Whether a parameter is of those that a group with a rule is for.

    Args:
        group: With the keys `match`, `decayed` or both.
        model: That the parameter is in.
        name: Its dotted name.
        parameter: The parameter.
    """
    if MATCH in group and not any(matches(term, model, name, parameter) for term in group[MATCH]):
        return False
    return DECAYED not in group or bool(group[DECAYED]) == is_decayed(model, name, parameter)


def matches(term: str, model: nn.Module, name: str, parameter: Parameter) -> bool:
    """Whether a parameter is of a kind, or has a name that a glob matches.

    The kinds are `bias`, `norm` (what a normalisation layer holds), `embedding` (what an embedding layer holds),
    `vector` (at most one axis) and `matrix` (two axes or more).
    """
    if term == "bias":
        return "bias" in name.rpartition(".")[2].split("_")
    if term == "norm":
        return any("norm" in cls.__name__.lower() for cls in type(_layer(model, name)).__mro__)
    if term == "embedding":
        return isinstance(_layer(model, name), nn.Embedding | nn.EmbeddingBag)
    if term in ("vector", "matrix"):
        return (parameter.dim() < 2) == (term == "vector")
    return fnmatchcase(name, term)


def is_decayed(model: nn.Module, name: str, parameter: Parameter) -> bool:
    """Whether weight decay is for a parameter: not for biases, normalisation layers and other vectors."""
    return not any(matches(kind, model, name, parameter) for kind in ("bias", "norm", "vector"))


def _layer(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])
