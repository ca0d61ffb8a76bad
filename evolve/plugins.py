"""Code of the user's own, by import path: plugins, models, data, losses."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evolve.errors import EvolveError, UnknownNameError, did_you_mean


def import_object(path: str, kind: str) -> Any:
    """Returns what an import path such as "package.module:name" (or "package.module.name") stands for.

    The folder that the command runs in is looked at too, as `python` itself would.

    Args:
        path: The import path.
        kind: What is looked for, for the message.

    Raises:
        UnknownNameError: If it is no import path, the module cannot be imported or has no such name.
    """
    module_name, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if not module_name or not attribute:
        raise UnknownNameError(f"Unknown {kind} '{path}': neither a known name nor an import path 'module:name'.")
    module = import_module(module_name, kind)
    if not hasattr(module, attribute):
        hint = did_you_mean(attribute, dir(module))
        raise UnknownNameError(f"Module '{module_name}' has no '{attribute}' to use as a {kind}.{hint}")
    return getattr(module, attribute)


def import_module(name: str, kind: str) -> Any:
    """Imports a module of the user's.

    Raises:
        UnknownNameError: If that fails, with the reason.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except EvolveError:
        raise
    except Exception as error:  # a user's module may raise anything; whatever it is, the user is told
        raise UnknownNameError(
            f"Cannot import '{name}' as a {kind}: {type(error).__name__}: {error}. Looked in {Path.cwd()} and the "
            "installed packages."
        ) from error


def load_plugins(paths: Iterable[str]) -> None:
    """Imports plugin modules, which register what they offer.

    Raises:
        UnknownNameError: If one cannot be imported.
    """
    for path in paths:
        import_module(path, "plugin")
