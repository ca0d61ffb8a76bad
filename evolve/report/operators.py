"""The registered operators, their declarations and options, as text for the terminal."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable

from pydantic.fields import FieldInfo
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from evolve.config.types import type_words
from evolve.operators import MutationOperator, operators


def operator_list(names: Iterable[str] = ()) -> Group:
    """Returns for each operator its name, its declaration, what it does, and its options with types and defaults.

    Args:
        names: Of those to tell of; all if there are none.

    Raises:
        UnknownNameError: If there is no operator of a name.
    """
    parts: list[RenderableType] = []
    for name in [*names] or operators:
        cls = operators.get(name)
        declared = cls.preserves if isinstance(cls.preserves, str) else "depends on its options"
        parts.append(Text.assemble((name, "bold"), (f"  function preserved: {declared}", "dim")))
        parts.append(Padding(Text(_summary(cls)), (0, 0, 0, 2)))
        parts += [Padding(_options(cls), (0, 0, 0, 2)), Text()]
    return Group(*parts)


def _summary(cls: type[MutationOperator]) -> str:
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


def _options(cls: type[MutationOperator]) -> RenderableType:
    fields = cls.Options.model_fields
    if not fields:
        free = cls.Options.model_config.get("extra") == "allow"
        return Text("options: any; the operator checks them itself" if free else "no options", style="dim")
    told = _descriptions(cls.Options)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(ratio=1)
    for key, field in fields.items():
        words = type_words(field.annotation, field.metadata)
        text = Text.assemble(
            words, (f", default {_default(field)}" if not field.is_required() else ", required", "dim")
        )
        table.add_row(key, Text("\n").join([text, Text(told[key], style="dim")]) if key in told else text)
    return table


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _descriptions(options: type) -> dict[str, str]:
    """Returns what the docstring of options says of each, in its section `Attributes:`."""
    _, _, section = inspect.cleandoc(options.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
