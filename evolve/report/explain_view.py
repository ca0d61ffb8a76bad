"""The explanation of a mutation as text for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evolve.lineage import Record, Weighed
from evolve.report.explain import Explanation, Point
from evolve.report.printable import one_line

_MOST = 12  # of what was not chosen; --json has them all


def explanation_view(why: Explanation) -> Group:
    """Returns what was recorded: when and why, what else was considered, what was hoped for and what came of it."""
    record = why.record
    title = Text.assemble(
        (one_line(f"{record.index}: {record.operator} at '{record.site}'"), "bold"),
        "  ",
        (record.status.replace("_", " "), "green" if record.success else "yellow"),
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows: list[tuple[str, RenderableType]] = [
        ("trigger", Text(_trigger(record))),
        ("chosen by", Text(_chosen(record))),
        ("considered", _considered(record)),
        *([("refused before it", _attempts(why.refused_before))] if why.refused_before else []),
        *([("tried after it", _attempts(why.tried_next))] if why.tried_next else []),
        ("expected", Text(_expected(record))),
        ("realised", Text(_realised(why))),
        ("cost", Text(_cost(record))),
        ("function", Text(_function(record))),
        *([("options", Text(one_line(json.dumps(record.options))))] if record.options else []),
    ]
    for name, what in rows:
        table.add_row(name, what)
    return Group(title, Text(one_line(record.message)), Text(), table)


def _trigger(record: Record) -> str:
    when = "" if record.step is None else f", after epoch {record.epoch or 0}, step {record.step:,}"
    return one_line((record.reason or "not recorded") + when)


def _chosen(record: Record) -> str:
    choice = record.choice
    if choice is None:
        return "not recorded"
    if not choice.by:
        return one_line(f"{choice.policy}, which weighed nothing")
    return one_line(f"{choice.policy}, by {choice.by}: {_weighed(choice.chosen)}")


def _weighed(one: Weighed) -> str:
    value = "none" if one.value is None else f"{one.value:.4g}"
    return f"{value} ({one.note})" if one.note else value


def _considered(record: Record) -> RenderableType:
    """What was weighed and not chosen, with its values."""
    choice = record.choice
    if choice is None:
        return Text("not recorded")
    of = "" if choice.candidates is None else f"{choice.candidates:,} candidates (an operator at a site)"
    if not choice.others:
        return Text(f"{of}; no other was weighed" if of else "no other was weighed")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for column in ("right", "left", "left"):
        table.add_column(justify="right" if column == "right" else "left", overflow="fold")
    for other in choice.others[:_MOST]:
        value = "none" if other.value is None else f"{other.value:.4g}"
        where = other.operator if other.site is None else f"{other.operator} at '{other.site}'"
        table.add_row(value, one_line(where or "the model as it is"), Text(one_line(other.note), style="dim"))
    count = len(choice.others)
    told = f"{count} other{'s' if count > 1 else ''} weighed{f', of {of}' if of else ''}"
    more = [Text(f"and {count - _MOST} more; --json has them all", style="dim")] if count > _MOST else []
    return Group(Text(told), table, *more)


def _attempts(records: Iterable[Record]) -> RenderableType:
    lines = (f"{r.index}: {r.operator} at '{r.site}', {r.status.replace('_', ' ')}: {r.message}" for r in records)
    return Text("\n".join(map(one_line, lines)))


def _expected(record: Record) -> str:
    """What was promised before: by the policy's value, and without the mutation by the trend."""
    told, choice, verdict = [], record.choice, record.verdict
    if choice is not None and choice.by and choice.chosen.value is not None:
        told.append(f"{choice.by} of {choice.chosen.value:.4g}")
    if verdict is not None and verdict.promised is not None and verdict.bound is not None:
        trend = f"by the trend of {verdict.points} evaluations" if verdict.points else "as it was before"
        told.append(
            f"without the mutation {verdict.metric} {verdict.promised:.4g} {trend}, to stay {verdict.bound:.4g}"
        )
    return one_line("; ".join(told)) or "nothing was recorded"


def _realised(why: Explanation) -> str:
    record, verdict = why.record, why.record.verdict
    told = []
    if verdict is not None:
        found, before = (_number(value) for value in (verdict.found, verdict.before))
        end = "kept" if verdict.kept else "taken back"
        told.append(f"{verdict.metric} {before} → {found} in {verdict.steps} steps on probation: {end}")
    elif not record.success:
        told.append("nothing: it is not part of the model")
    if why.before is not None and why.after is not None:
        others = f", with {', '.join(map(str, why.between))} applied in between" if why.between else ""
        told.append(f"{why.metric} {_at(why.before)} → {_at(why.after)}{others}")
    elif record.success and verdict is None:
        told.append("not recorded" if record.step is None else "not recorded: no epoch has ended since")
    return one_line("\n".join(told).replace("\n", "; "))


def _at(point: Point) -> str:
    return f"{_number(point.value)} (epoch {'?' if point.epoch is None else point.epoch})"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _cost(record: Record) -> str:
    told = [_grown("parameters", record.params_before, record.params_after)]
    if record.flops_before is not None and record.flops_after is not None:
        told.append(_grown("FLOPs a sample", record.flops_before, record.flops_after))
    weighing = f", and {record.choice.seconds:.3g} s to choose it" if record.choice else ""
    return "; ".join([*told, f"{record.seconds:.3g} s to make it{weighing}"])


def _grown(what: str, before: int, after: int) -> str:
    if before == after:
        return f"{what} stay {before:,}"
    share = f" ({(after - before) / before:+.1%})" if before else ""
    return f"{what} {before:,} → {after:,}{share}"


def _function(record: Record) -> str:
    declared = {"exact": "declared exact", "approximate": "declared nearly kept"}.get(record.preserves, "changes it")
    if record.max_abs_diff is None:
        return f"{declared}; max|Δ| not recorded"
    on = ", ".join("x".join(map(str, tensor.shape)) for tensor in record.inputs or ())
    return f"{declared}; max|Δ| of the outputs {record.max_abs_diff:.3g}{f' on a probe batch of {on}' if on else ''}"
