"""Code of the user's own, by import path: plugins, models, data, losses."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from evolve.errors import EvolveError, UnknownNameError, UntrustedCodeError, did_you_mean

_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[\w.]+)?")


def is_import_path(name: str) -> bool:
    """True for `package.module:attribute` and `package.module.attribute`."""
    return ":" in name or "." in name


def untrusted(kind: str, path: str) -> str:
    """Returns what to say of an import path in a run folder that nobody said to trust."""
    return (
        f"The {kind} '{path}' is code to be imported, and a run folder may be anybody's. If you trust this one, "
        "say so: trust=True, or --trust on the command line."
    )


def import_callable(path: str, kind: str, trusted: bool = True) -> Callable[..., Any]:
    """Returns the function or class that an import path stands for.

    Args:
        path: `package.module:attribute` or `package.module.attribute`.
        kind: What is looked for, for the message.
        trusted: Whether the path comes from the user; one that is found in a run folder may be anybody's.

    Raises:
        UntrustedCodeError: If it is not trusted; nothing is imported then.
        UnknownNameError: If it is no import path, the module cannot be imported, or has no such function or class; or
            it is part of Python itself, which has none to offer and many that do harm (`os:system`).
    """
    module_name, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if not module_name or not attribute:
        raise UnknownNameError(f"Unknown {kind} '{path}': neither a known name nor an import path 'module:name'.")
    if not trusted:
        raise UntrustedCodeError(untrusted(kind, path))
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise UnknownNameError(f"'{path}' is part of Python itself and makes no {kind}. Name a function of your own.")
    item: Any = import_module(module_name, kind)
    for part in attribute.split("."):
        if not hasattr(item, part):
            public = [known for known in dir(item) if not known.startswith("_")]
            raise UnknownNameError(
                f"Unknown {kind} '{path}': '{module_name}' has no '{part}'.{did_you_mean(part, public)}"
            )
        item = getattr(item, part)
    if not callable(item):
        raise UnknownNameError(
            f"'{path}' is a {type(item).__name__}, which cannot be called. Name a function or a class for the {kind}."
        )
    origin = inspect.unwrap(item.func if isinstance(item, partial) else item)
    if str(getattr(origin, "__module__", "")).partition(".")[0] in sys.stdlib_module_names:
        raise UnknownNameError(f"'{path}' is part of Python itself and makes no {kind}. Name a function of your own.")
    return cast("Callable[..., Any]", item)


def import_from(folder: Path) -> None:
    """Lets modules be imported from a folder too, where no installed package has that name; it wins over the working
    directory, but for one that Python itself was told to look in first."""
    if str(folder) not in sys.path:
        here = str(Path.cwd())
        place = sys.path.index(here) if here in sys.path[1:] else len(sys.path)
        sys.path.insert(place or len(sys.path), str(folder))


def names_module_in(values: Any, folder: Path) -> bool:
    """Whether a text somewhere in nested values is an import path, or a plugin, of a module that lies in a folder."""
    if isinstance(values, Mapping):
        return any(names_module_in(value, folder) for value in values.values())
    if isinstance(values, list):
        return any(names_module_in(value, folder) for value in values)
    if not isinstance(values, str) or not _IMPORT_PATH.fullmatch(values):
        return False
    module, colon, _ = values.partition(":")
    names = [module] if colon else [module, module.rpartition(".")[0]]  # a plugin, or `module.attribute`
    paths = [folder.joinpath(*name.split(".")) for name in names if name]
    return any(path.with_suffix(".py").is_file() or (path / "__init__.py").is_file() for path in paths)


def import_module(name: str, kind: str) -> ModuleType:
    """Imports a module, from the folder that the command runs in too, where no installed package has that name.

    Raises:
        UnknownNameError: If that fails, with the reason.
    """
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except EvolveError:
        raise
    except Exception as error:  # a user's module may raise anything; whatever it is, it is reported
        near = did_you_mean(name, (path.stem for path in Path.cwd().glob("*.py")) if _absent(error, name) else ())
        raise UnknownNameError(
            f"Unknown {kind}: cannot import '{name}' ({type(error).__name__}: {error}).{near} Looked in {Path.cwd()}, "
            "the folder of the configuration and the installed packages."
        ) from error


def _absent(error: Exception, name: str) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name == name


def load_plugins(paths: Iterable[str]) -> None:
    """Imports plugin modules, which register what they offer.

    Raises:
        UnknownNameError: If one cannot be imported.
    """
    for path in paths:
        import_module(path, "plugin")
