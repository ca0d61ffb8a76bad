"""An inspection as text for the terminal: what the model costs, what can change, what cannot, and why."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from evolve.report.facts import GroupFacts, Inspection, OperatorFacts, PlaceFacts
from evolve.report.names import compact, pattern, short, shown, sizes
from evolve.report.printable import one_line
from evolve.report.tree import module_tree

_WIDENING = {
    "any_copy": ("any copy", "green"),
    "whole_copies": ("whole copies", "yellow"),
    "none": ("not exactly", "red"),
}
_ROOT = '""'  # the model itself, as a site
_LEGEND = "exactly wider: by copies of any of them, only by whole copies of all of them, or not by copies"
_TERMS = 8  # terms that stand for sites before "and ... more"; --json has them all
_ENDS = 4  # likewise for the modules at either end of a group


def inspection_view(facts: Inspection, depth: int | None = None) -> Group:
    """Returns everything, shortened where there is much; the tree down to `depth`."""
    parts = [*_head(facts), module_tree(facts, depth)]
    parts += [Text(), *_can(facts), Text(), *_cannot(facts), Text(), *_operators(facts)]
    return Group(*parts, *(_lineage(facts) if facts.mutations else ()))


def sites_view(facts: Inspection) -> Group:
    """Returns every site of the operators that were looked at."""
    parts: list[RenderableType] = _head(facts)
    groups = {group.name: group for group in facts.groups}
    classes = {module.name: module.class_name for module in facts.modules}
    for operator in facts.operators:
        parts.append(_title(f"{operator.name}: {_count(len(operator.sites), 'site')}", _declared(operator)))
        if operator.objection:
            parts.append(Text(operator.objection, style="yellow"))
        table = _table("site", "what is there")
        for site in operator.sites:
            what = classes.get(site, "")
            if operator.name in ("widen", "narrow") and site in groups:
                what = _size(groups[site])
            table.add_row(Text(site or _ROOT, style="bold"), what)
        if operator.sites:
            parts.append(table)
    return Group(*parts)


def _head(facts: Inspection) -> list[RenderableType]:
    root = facts.modules[0]
    batch = facts.inputs[0][0] if facts.inputs and facts.inputs[0] else 1
    shapes = ", ".join(sizes(shape) for shape in facts.inputs)
    costs = (
        f"{short(root.parameters)} parameters, {short(root.flops)} FLOPs and {short(root.activation_bytes, 'B')} of "
        f"activations for one sample. Run on {shapes} in {facts.dtype} on {facts.device}."
    )
    if root.latency_ms is not None:
        costs += f" A forward pass of {batch} took {root.latency_ms:.3g} ms (median, eval mode)."
    return [Text.assemble((facts.model, "bold"), f"  {root.class_name}"), Text(costs), Text()]


def _can(facts: Inspection) -> list[RenderableType]:
    if not facts.groups:
        return [_title("What can change: no group of channels, units or heads")]
    title = f"What can change: {_count(len(facts.groups), 'group')} of channels, units or heads"
    table = _table("size", "exactly wider by", "group, made by → read by")
    alike: dict[tuple[object, ...], list[GroupFacts]] = {}
    for group in facts.groups:
        kept = sorted((pattern(place.name), place.axis, place.reads) for place in group.places)
        key = (pattern(group.name), group.size, group.inner, group.widening, group.reason, *kept)
        alike.setdefault(key, []).append(group)
    for found in alike.values():
        first = found[0]
        words, style = _WIDENING[first.widening]
        names = ", ".join(compact(group.name or _ROOT for group in found))
        cell = Text.assemble((names, "bold"), (f" ({first.reason})" if first.reason else "", style))
        cell.append("\n" + _kept([place for group in found for place in group.places]), style="dim")
        table.add_row(_size(first), Text(words, style=style), cell)
    return [_title(title), Text(_LEGEND, style="dim"), table]


def _size(group: GroupFacts) -> str:
    return f"{group.size} ({group.inner} each)" if group.inner > 1 else str(group.size)


def _kept(places: Sequence[PlaceFacts]) -> str:
    makers = [_owner(place) for place in places if not place.reads]
    readers = [_owner(place) for place in places if place.reads]
    return " → ".join(shown(list(dict.fromkeys(names)), _ENDS) or "nobody" for names in (makers, readers))


def _owner(place: PlaceFacts) -> str:
    return place.name.rpartition(".")[0] or place.name


def _cannot(facts: Inspection) -> list[RenderableType]:
    reasons: dict[str, list[str]] = {}
    for pin in facts.pins:
        place = pin.places[0]
        whole = pin.size == place.length
        reasons.setdefault(pin.reason, []).append(
            f"{place.name}[{place.axis}]" if whole else f"{place.name}[{place.axis}] in part"
        )
    if facts.unreached:
        reasons["this input does not reach it"] = facts.unreached
    count = len(facts.pins) + len(facts.unreached)
    table = _table("", "why, axes of")
    for reason, places in sorted(reasons.items(), key=lambda item: -len(item[1])):
        cell = Text.assemble((reason, "yellow"), (f"\n{shown(places, _TERMS)}", "dim"))
        table.add_row(str(len(places)), cell)
    return [_title(f"What cannot: {count} pinned"), *([table] if count else [])]


def _operators(facts: Inspection) -> list[RenderableType]:
    table = _table("operator", "function", "sites", "where")
    alike: dict[tuple[str, ...], list[OperatorFacts]] = {}
    for operator in facts.operators:
        alike.setdefault((operator.preserves, operator.objection, *operator.sites), []).append(operator)
    for found in alike.values():
        first = found[0]
        names = Text(", ".join(operator.name for operator in found), style="bold")
        where = Text(shown([site or _ROOT for site in first.sites], _TERMS))
        if first.objection:
            where = Text(first.objection, style="yellow")
        table.add_row(names, _declared(first), str(len(first.sites)), where)
    return [_title("Where operators apply", "with their default options"), table]


def _declared(operator: OperatorFacts) -> str:
    return {"exact": "kept", "approximate": "nearly kept", "no": "changed"}.get(operator.preserves, operator.preserves)


def _lineage(facts: Inspection) -> list[RenderableType]:
    base = facts.mutations[0]["params_before"]
    count = _count(len(facts.mutations), "mutation")
    title = f"What was done: {count}, {base:,} → {facts.modules[0].parameters:,} parameters"
    lines = [
        Text.assemble(
            (one_line(f"{record['operator']} at '{record['site']}'"), "bold"), one_line(f": {record['message']}")
        )
        for record in facts.mutations
    ]
    return [Text(), _title(title), *(Padding(line, (0, 0, 0, 2)) for line in lines)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _title(text: str, more: str = "") -> Text:
    return Text.assemble((text, "bold underline"), f"  {more}" if more else "")


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        number = heading in ("size", "sites", "")
        table.add_column(heading, justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table
