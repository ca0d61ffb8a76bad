"""What differs between two models, as text for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evolve.report.diff import ModelDiff, Side
from evolve.report.names import sizes
from evolve.report.printable import one_line
from evolve.structure.comparing import Layer, LayerChange

_STYLES = {"added": "green", "removed": "red", "changed": "yellow"}
_SIGNS = {"added": "+", "removed": "-", "changed": "~"}


def diff_view(diff: ModelDiff, most: int | None = None) -> Group:
    """Returns costs, layers that differ, at most so many of them, and the distance of the outputs."""
    parts: list[RenderableType] = [_named("A", diff.one), _named("B", diff.two), Text(), _costs(diff), Text()]
    counts = {kind: sum(change.kind == kind for change in diff.layers) for kind in _STYLES}
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    parts.append(Text(f"Layers: {told or 'none differs'}; {diff.same} the same", style="bold"))
    if diff.layers:
        parts.append(_layers(diff.layers[:most]))
        if most is not None and len(diff.layers) > most:
            parts.append(Text(f"and {len(diff.layers) - most} more: --all", style="dim"))
    return Group(*parts, Text(), _outputs(diff))


def _costs(diff: ModelDiff) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("", "A", "B", "B - A"):
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    one, two = diff.one, diff.two
    for name, before, after in (("parameters", one.parameters, two.parameters), ("FLOPs", one.flops, two.flops)):
        table.add_row(name, _count(before), _count(after), _change(before, after))
    return table


def _named(letter: str, side: Side) -> Text:
    return Text.assemble((f"{letter}  ", "dim"), (one_line(side.name), "bold"), one_line(f"  {side.what}"))


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _change(before: int | None, after: int | None) -> str:
    if before is None or after is None:
        return "-"
    share = f" ({(after - before) / before:+.1%})" if before and after != before else ""
    return f"{_sign(before, after)}{share}"


def _sign(before: int | None, after: int | None) -> str:
    return "-" if before is None or after is None else f"{after - before:+,}" if after != before else "0"


def _layers(changes: list[LayerChange]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("", "layer", "what it is", "parameters", "FLOPs"):
        number = heading in ("parameters", "FLOPs")
        table.add_column(heading, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for change in changes:
        before, after = change.before, change.after
        params = [0 if layer is None else layer.parameters for layer in (before, after)]
        flops = [0 if layer is None else layer.flops for layer in (before, after)]
        style = _STYLES[change.kind]
        table.add_row(
            Text(_SIGNS[change.kind], style=style),
            Text(one_line(change.name) or '""', style=style),
            Text(one_line(_described(change))),
            _sign(params[0], params[1]),
            _sign(flops[0], flops[1]),
        )
    return table


def _described(change: LayerChange) -> str:
    if change.before is None or change.after is None:
        layer = change.after or change.before
        return _whole(layer) if layer else ""
    before, after = change.before, change.after
    if before.class_name != after.class_name:
        return f"{_whole(before)} → {_whole(after)}"
    grown = [
        f"{name} {_size(before, name)} → {_size(after, name)}"
        for name in dict.fromkeys([*before.shapes, *after.shapes])
        if before.shapes.get(name) != after.shapes.get(name)
    ]
    if grown:
        return f"{after.class_name}: {', '.join(grown)}"
    return f"{after.class_name}: {before.settings} → {after.settings}"


def _whole(layer: Layer) -> str:
    shapes = ", ".join(f"{name} {_size(layer, name)}" for name in layer.shapes)
    return f"{layer.class_name}: {shapes}" if shapes else f"{layer.class_name}({layer.settings})"


def _size(layer: Layer, name: str) -> str:
    return sizes(layer.shapes[name]) if name in layer.shapes else "none"


def _outputs(diff: ModelDiff) -> Text:
    if diff.max_abs_diff is None:
        return Text(one_line(f"max|Δ| of the outputs: not measured: {diff.why_not}"))
    shapes = ", ".join(sizes(shape) for shape in diff.inputs)
    return Text(f"max|Δ| of the outputs: {diff.max_abs_diff:.4g}, in eval mode on {diff.batch} ({shapes})")
