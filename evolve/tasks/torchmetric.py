"""torchmetrics by name. It takes seconds to import, so that is done where a metric of it is asked for."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

from evolve.errors import UnknownNameError, did_you_mean

# What people call metrics whose classes have longer names.
_SHORT: dict[str, tuple[str, dict[str, Any]]] = {
    "f1": ("F1Score", {}),
    "iou": ("JaccardIndex", {}),
    "mae": ("MeanAbsoluteError", {}),
    "map": ("MeanAveragePrecision", {}),
    "mse": ("MeanSquaredError", {}),
    "r2": ("R2Score", {}),
    "rmse": ("MeanSquaredError", {"squared": False}),
}
_DUMMIES = {"task": "multiclass", "num_classes": 2, "num_labels": 2}


@cache
def _known() -> dict[str, type]:
    """Returns torchmetrics' classes by name."""
    import torchmetrics
    from torchmetrics import classification, detection, regression, text

    found: dict[str, type] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some names at its top are on their way to a package
        for module in (torchmetrics, detection, text, regression, classification):
            for name in module.__all__:
                item = getattr(module, name, None)
                if inspect.isclass(item) and issubclass(item, torchmetrics.Metric):
                    found[name] = item
    return found


def find_metric(name: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Returns torchmetrics' class of a name, and the options that a short name stands for.

    Args:
        name: The class's name, as it is or in snake case, or a short one, such as "rmse".

    Raises:
        UnknownNameError: If there is none.
    """
    full, options = _SHORT.get(name, (name, {}))
    known = _known()
    by_words = {_snake(each): each for each in known}
    if full in known or full in by_words:
        return known.get(full) or known[by_words[full]], dict(options)
    names = [*_SHORT, *known, *by_words]
    raise UnknownNameError(
        f"Unknown metric '{name}': neither one of torchmetrics nor an import path 'module:name'."
        f"{did_you_mean(name, names)} Short names: {', '.join(_SHORT)}, accuracy."
    )


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def make_metric(cls: Callable[..., Any], options: Mapping[str, Any], decided: Mapping[str, Any]) -> Any:
    """Returns a metric with its options, and with what the data decide where it takes that and nobody set it.

    Args:
        cls: torchmetrics' class.
        options: The user's.
        decided: Such as `{"task": "multiclass", "num_classes": 3}`.
    """
    parameters = inspect.signature(cls).parameters
    given = {name: value for name, value in decided.items() if name in parameters}
    if "task" not in parameters:
        given.pop("task", None)
    return cls(**{**given, **options})


def direction_of(
    cls: Callable[..., Any], options: Mapping[str, Any]
) -> tuple[Literal["min", "max"] | None, float | None]:
    """Returns which way a metric of torchmetrics is better, None where it does not say, and its upper bound."""
    try:
        made = make_metric(cls, options, _DUMMIES)
    except (TypeError, ValueError, ImportError, RuntimeError):
        made = cls  # what its class says
    better = getattr(made, "higher_is_better", None)
    mode: Literal["min", "max"] | None = None if better is None else "max" if better else "min"
    bound = getattr(made, "plot_upper_bound", None)
    return mode, bound if isinstance(bound, float) else None
