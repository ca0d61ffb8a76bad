"""The registered operators as a table."""

from __future__ import annotations

from rich.table import Table

from evolve.operators import operators


def operator_table() -> Table:
    """Returns one row for each operator: name, declaration, options with their defaults, what it does."""
    table = Table(title="Mutation operators", title_justify="left", show_lines=True)
    for heading in ("name", "preserves", "options", "what it does"):
        table.add_column(heading, overflow="fold")
    for name in operators:
        cls = operators.get(name)
        options = "\n".join(
            f"{key}: {_type(field.annotation)} = {field.default!r}" for key, field in cls.Options.model_fields.items()
        )
        declared = cls.preserves if isinstance(cls.preserves, str) else "depends on options"
        table.add_row(name, declared, options or "-", (cls.__doc__ or "").strip().split("\n\n")[0])
    return table


def _type(annotation: object) -> str:
    return getattr(annotation, "__name__", str(annotation)).replace("typing.", "")
