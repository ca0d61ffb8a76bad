"""Libraries that only some data sets need."""

from __future__ import annotations

import importlib
from typing import Any

from evolve.errors import DataError


def needed(module: str, library: str, extra: str, data_set: str) -> Any:
    """Returns a module of a library that is installed with an extra of evolve.

    Args:
        module: Dotted name of the module.
        library: Its name on PyPI.
        extra: The extra of evolve that holds it.
        data_set: What needs it, for the message.

    Raises:
        DataError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"The data set '{data_set}' needs {library} ({error}). Install it: pip install {library}, or "
            f"pip install 'evolve-torch[{extra}]'."
        ) from error
