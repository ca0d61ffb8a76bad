"""Python source in pieces: calls that know which modules they make, laid out to fit a line."""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from evolve.errors import MisfitError

WIDTH = 100  # columns

# Where the parameters and buffers of the evolved model lie in the written one: its dotted names there.
Origins = dict[str, nn.Module]


@dataclass(frozen=True)
class Call:
    """An expression that makes a module.

    Attributes:
        function: What is called; where there are no arguments at all (None), the expression itself.
        arguments: Positional ones, then those by keyword, as (keyword, expression).
        origins: The evolved modules whose own tensors it holds, by their dotted names in what it makes.
        needs: Names of the plain classes that it uses.
        suffix: What follows the call.
    """

    function: str
    arguments: Sequence[tuple[str | None, Call | str]] | None = ()
    origins: Origins = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    suffix: str = ""

    def text(self, indent: int = 0, before: int = 0) -> str:
        """Returns the source.

        Args:
            indent: Columns by which its lines are indented; the first is not.
            before: Columns that stand before it on its first line.
        """
        if self.arguments is None:
            return self.function
        parts = [_argument(key, value, 0) for key, value in self.arguments]
        line = f"{self.function}({', '.join(parts)}){self.suffix}"
        if not parts or ("\n" not in line and indent + before + len(line) <= WIDTH):
            return line
        inner = indent + 4
        lines = [f"{' ' * inner}{_argument(key, value, inner)}," for key, value in self.arguments]
        return "\n".join([f"{self.function}(", *lines, f"{' ' * indent}){self.suffix}"])


def _argument(key: str | None, value: Call | str, indent: int) -> str:
    prefix = f"{key}=" if key else ""
    text = value if isinstance(value, str) else value.text(indent, len(prefix))
    return prefix + text


def call(
    function: str,
    *arguments: Call | str,
    origins: Mapping[str, nn.Module] | None = None,
    needs: Sequence[str] = (),
    keywords: Mapping[str, Call | str] | None = None,
) -> Call:
    """Returns a call that has the origins of nothing but `origins`, and the needs of its arguments too."""
    parts: list[tuple[str | None, Call | str]] = [(None, argument) for argument in arguments]
    parts += list((keywords or {}).items())
    inner = frozenset(name for _, part in parts if isinstance(part, Call) for name in part.needs)
    return Call(function, parts, dict(origins or {}), inner | frozenset(needs))


def below(name: str, part: Call) -> Origins:
    """Returns the origins of a part that is a child of that name."""
    return {f"{name}.{own}" if own else name: module for own, module in part.origins.items()}


def literal(value: Any) -> str | None:  # noqa: PLR0911 - one for each kind of value
    """Returns a plain value as source; None where it is none."""
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return f'float("{value}")'
    if value is None or isinstance(value, bool | int | float):
        return repr(value) if value == value else None  # noqa: PLR0124 - not a number
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, dict):
        items = [(literal(key), literal(item)) for key, item in value.items()]
        if any(key is None or item is None for key, item in items):
            return None
        return "{" + ", ".join(f"{key}: {item}" for key, item in items) + "}"
    if type(value) in (list, tuple, torch.Size):
        parts = [literal(item) for item in value]
        if any(part is None for part in parts):
            return None
        text = ", ".join(str(part) for part in parts)
        return f"[{text}]" if isinstance(value, list) else f"({text},)" if len(parts) == 1 else f"({text})"
    return None


def quoted(text: str) -> str:
    """Returns a string in double quotes, whatever is in it."""
    written = repr(text)
    if written.startswith('"'):
        return written
    inner = written[1:-1].replace("\\'", "'").replace('"', '\\"')
    return f'"{inner}"'


def is_name(name: str) -> bool:
    """Whether an attribute can be written behind a dot."""
    return name.isidentifier() and not keyword.iskeyword(name)


def access(model: nn.Module, path: str) -> str:
    """Returns the expression for a submodule by its dotted name: `model.layer1[0].conv1`."""
    text, module = "model", model
    for name in path.split(".") if path else ():
        places = list(module._modules)
        if isinstance(module, nn.Sequential | nn.ModuleList) and name.isdecimal() and places[int(name)] == name:
            text += f"[{name}]"
        elif is_name(name):
            text += f".{name}"
        else:
            text += f".get_submodule({quoted(name)})"
        module = module._modules[name]  # type: ignore[assignment]
    return text


def access_own(model: nn.Module, path: str, name: str) -> str:
    """Returns the expression for a parameter or buffer of a submodule: `model.conv1.weight`, `model.scales[0]`.

    Raises:
        MisfitError: If its name cannot be written.
    """
    here, module = access(model, path), model.get_submodule(path)
    if isinstance(module, nn.ParameterList) and name.isdecimal():
        return f"{here}[{name}]"
    if isinstance(module, nn.ParameterDict):
        return f"{here}[{quoted(name)}]"
    return attribute(here, name)


def attribute(here: str, name: str) -> str:
    """Returns the expression for an attribute of something.

    Raises:
        MisfitError: If its name cannot be written.
    """
    if not is_name(name):
        raise MisfitError(f"An attribute is called {name!r}, which cannot be written into source.")
    return f"{here}.{name}"
