"""`evolve report` survives what it finds in a folder, and a terminal obeys none of it."""

import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from evolve.cli import app
from evolve.lineage import Lineage, Record
from evolve.report.printable import one_line, printable
from evolve.report.run_data import read_run
from evolve.report.terminal import run_report, sparkline

LINE = {"epoch": 1, "step": 4, "train_loss": 0.5, "val_loss": 0.6, "val_accuracy": 0.7, "params": 100}


def record(**changes):
    fields = {"operator": "widen", "site": "0", "status": "applied", "message": "Widened.", "preserves": "exact"}
    return Record(**{**fields, "params_before": 10, "params_after": 20, "success": True, **changes})


def folder(tmp_path, metrics=(LINE,), records=()):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (tmp_path / "lineage.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in records), encoding="utf-8")
    return tmp_path


def shown(path):
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    console.print(run_report(read_run(path)))
    return console.file.getvalue()


@pytest.mark.parametrize("end", ["\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1e", "\r", "\n"])
def test_a_message_may_hold_whatever_unicode_calls_an_end_of_a_line(tmp_path, end):
    written = [record(message=f"one{end}two"), record(message="three")]
    folder(tmp_path, records=written)
    assert Lineage.read(tmp_path / "lineage.jsonl") == written
    assert "three" in shown(tmp_path)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), float("-inf"), "text", None, [], True, 10**400],
    ids=lambda value: str(value)[:9],
)
@pytest.mark.parametrize("key", ["train_loss", "val_loss", "val_accuracy", "params", "epoch"])
def test_any_value_in_the_metrics(tmp_path, key, value):
    text = shown(folder(tmp_path, [LINE, {**LINE, key: value}, LINE, {**LINE, key: value}], [record()]))
    assert "1 mutations applied" in text


def test_a_curve_shows_where_there_was_no_number(tmp_path):
    text = shown(folder(tmp_path, [{**LINE, "val_loss": v} for v in (1.0, float("nan"), 2.0, float("inf"), 3.0)]))
    assert "▁?▄?█" in text or "▁?▅?█" in text
    assert "1.0000" in text


@pytest.mark.parametrize("rest", ['{"epoch": 2, "st', "{", "\xff"])
def test_half_a_line_at_the_end_is_left_out(tmp_path, rest):
    folder(tmp_path, records=[record()])
    for name in ("metrics.jsonl", "lineage.jsonl"):
        with (tmp_path / name).open("a", encoding="latin-1") as file:
            file.write(rest)
    assert "1 mutations applied" in shown(tmp_path)


def test_lines_that_are_none_are_told(tmp_path):
    folder(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("{}}\n[]\n" + json.dumps(LINE) + "\n")
    assert "2 lines of metrics.jsonl are unreadable" in shown(tmp_path)
    (tmp_path / "lineage.jsonl").write_text('{"no": 1}\n')
    told = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert told.exit_code == 1
    assert "lineage.jsonl, line 1" in told.output
    assert isinstance(told.exception, SystemExit)


STEERING = ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\x08", "\x7f", "\u202e", "\x00", "\x1b]8;;http://x\x1b\\"]


@pytest.mark.parametrize("text", STEERING)
def test_nothing_of_a_folder_steers_the_terminal(tmp_path, text):
    fields = ("operator", "site", "message", "reason")
    folder(tmp_path, records=[record(**dict.fromkeys(fields, f"a{text}b"))])
    out = shown(tmp_path)
    assert not set(text) & set(out) - set(map(chr, range(32, 127)))
    assert out.count(one_line(f"a{text}b").replace("\n", "")) >= 1


@pytest.mark.parametrize("text", STEERING)
def test_nor_does_an_error_message(tmp_path, text):
    (tmp_path / "config.yaml").write_text(json.dumps({"model": f"x{text}", "data": "digits"}))
    told = CliRunner().invoke(app, ["validate", str(tmp_path / "config.yaml")])
    assert told.exit_code == 2
    assert not set(text) & set(told.output) - set(map(chr, range(32, 127)))


def test_plain_text_stays_as_it_is():
    assert printable("max|Δ| = 0 → 16\n\tnäher") == "max|Δ| = 0 → 16\n\tnäher"


def test_curves_of_all_metrics_with_the_best_by_their_way(tmp_path):
    values = [(0.9, 3.0, 0.5), (0.4, 2.0, 0.8), (0.6, 2.5, 0.7)]
    lines = [{**LINE, "epoch": e, "val_loss": v[0], "val_mae": v[1], "val_f1": v[2]} for e, v in enumerate(values, 1)]
    folder(tmp_path, lines)
    (tmp_path / "config.yaml").write_text(
        "task: {name: regression, metrics: [mae, f1]}\ntraining: {monitor: {metric: val_f1}}\ndata: my.own:data\n"
    )
    text = CliRunner().invoke(app, ["report", str(tmp_path)]).output
    assert next(row for row in text.splitlines() if "val mae" in row).split()[-3:] == ["3.0000", "2.0000", "2.5000"]
    assert next(row for row in text.splitlines() if "val f1" in row).split()[-3:] == ["0.5000", "0.8000", "0.7000"]
    assert next(row for row in text.splitlines() if "val loss" in row).split()[-3:] == ["0.9000", "0.4000", "0.6000"]
    assert "Best val_f1 0.8000 after epoch 2." in " ".join(text.split())


@pytest.mark.parametrize(("mode", "best"), [("max", "0.8000"), ("min", "0.5000")])
def test_a_metric_of_ones_own_is_read_as_the_file_declares_it(tmp_path, mode, best):
    """Its function is not imported: a run folder may be anybody's."""
    folder(tmp_path, [{**LINE, "epoch": epoch, "val_own": value} for epoch, value in enumerate((0.5, 0.8, 0.7), 1)])
    metric = f'{{name: "nowhere:own", label: own, mode: {mode}}}'
    (tmp_path / "config.yaml").write_text(
        f"task: {{name: classification, metrics: [accuracy, {metric}]}}\ntraining: {{monitor: {{metric: val_own}}}}\n"
    )
    text = CliRunner().invoke(app, ["report", str(tmp_path)]).output
    assert next(row for row in text.splitlines() if "val own" in row).split()[-3:] == ["0.5000", best, "0.7000"]
    assert f"Best val_own {best} after epoch" in " ".join(text.split())


def test_a_metric_whose_way_nobody_knows_has_no_best(tmp_path):
    folder(tmp_path, [{**LINE, "val_mystery": v} for v in (1.0, 3.0, 2.0)])
    row = next(line for line in shown(tmp_path).splitlines() if "val mystery" in line)
    assert row.split()[-2:] == ["1.0000", "2.0000"]
    assert "3.0000" not in row


def test_what_falls_by_magnitudes_is_shown_over_its_logarithm(tmp_path):
    assert sparkline([1000.0, 100.0, 10.0, 1.0], log=True) == "█▆▃▁"
    assert sparkline([1000.0, 100.0, 10.0, 1.0]) == "█▂▁▁"
    text = shown(folder(tmp_path, [{**LINE, "train_loss": v, "val_loss": w} for v, w in ((10, 3), (1, 2), (0.1, 1))]))
    assert "train loss, log  █▅▁" in text or "train loss, log  █▄▁" in text
    assert "val loss, log" not in text  # 3 to 1 is no magnitude


def test_attempts_stand_below_the_epoch_that_they_came_after(tmp_path):
    lines = [{**LINE, "epoch": epoch, "step": 10 * epoch} for epoch in range(1, 6)]
    back = {"status": "rolled_back", "success": False}
    refused = {"status": "rejected", "success": False}
    tried = [record(step=10), record(step=10, **refused), record(step=25, **refused), record(step=40, **back)]
    row = next(line for line in shown(folder(tmp_path, lines, tried)).splitlines() if line.startswith("mutations "))
    assert row.removeprefix("mutations").strip() == "▲· ▽"


def test_several_runs_are_a_table(tmp_path):
    for name, loss in (("one", 0.5), ("two", 0.25)):
        (tmp_path / name).mkdir()
        folder(tmp_path / name, [{**LINE, "val_loss": loss, "val_accuracy": 1 - loss}], [record()])
    ended = CliRunner().invoke(app, ["report", str(tmp_path)], env={"COLUMNS": "200"})
    rows = [line.split() for line in ended.output.splitlines()]
    assert [row[0].rpartition("/")[2] for row in rows[1:]] == ["one", "two"]
    assert rows[1][1:] == ["val_accuracy", "▁", "50.00%", "1", "100", "1", "0"]


def test_forecasts_are_told_beside_what_the_run_came_to(tmp_path):
    folder(tmp_path)
    facts = {"step": 60, "progress": 0.06, "operator": "stack", "steps": 20, "cost": 1.78, "slope": [0.3, 0.02]}
    facts |= {"lead": [0.1, 0.01], "needed": 0.05, "grows": True, "until": 1.0}
    facts["ends"] = [[0.61, 0.02], [0.52, 0.01], [0.7, 0.1]]
    came = {"step": 900, "progress": 1.0, "loss": 0.53, "steps": 50, "expected": [0.52, 0.01]}
    lines = [json.dumps(facts), json.dumps(came), '{"step": 6']  # killed as it wrote
    (tmp_path / "forecasts.jsonl").write_text("\n".join(lines))
    text = shown(tmp_path)
    assert "60   0.1    0.05  the end  0.61 ± 0.026  0.52 ± 0.013  stack, for 1.78 times the cost     0.53" in text
    (tmp_path / "forecasts.jsonl").write_text(json.dumps(facts | {"grows": False}) + "\n")
    assert "0.52 ± 0.013  stays" in shown(tmp_path)
    odd = [facts | {"ends": [[0.61, 0.02]]}, facts | {"operator": "[b]mine[/b]", "needed": float("inf")}]
    (tmp_path / "forecasts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in odd))
    assert "60   0.1     inf  the end  0.61 ± 0.026  0.52 ± 0.013  [b]mine[/b], for 1.78" in shown(tmp_path)
