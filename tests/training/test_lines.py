"""What a run shows fits a terminal of 80 columns, and breaks between words."""

import pytest
from rich.console import Console

from evolve.budget import Budget
from evolve.lineage import Record
from evolve.report.operators import operator_list
from evolve.training.lines import compact, epoch_lines, mutation_lines, run_time, wrapped

METRICS = {
    "epoch": 3, "step": 9, "train_loss": 0.7811, "train_accuracy": 0.7726, "val_loss": 0.1397, "val_accuracy": 0.9499,
    "lr": 0.049, "seconds": 0.43, "flops": 10, "progress": 0.2, "params": 77754,
}  # fmt: skip


def test_an_epoch_is_one_line():
    expected = "epoch  3/15  train 0.7811 77.3%  val 0.1397 95.0%  lr 0.049  77.8k params  0.4s"
    assert epoch_lines(METRICS, Budget("epochs", 15)) == [expected]
    assert len(expected) <= 80
    regression = {key: value for key, value in METRICS.items() if "accuracy" not in key}
    part = "epoch   3  20.0%  train 0.7811  val 0.1397  lr 0.049  77.8k params  0.4s"
    assert epoch_lines(regression, Budget("flops", 1e9)) == [part]


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 5.5e-4, "train_accuracy": 1.0, "val_accuracy": 1.0},
        {"params": 123_456_789_012, "seconds": 123456.7},
        {"train_loss": 1e30, "val_loss": -1e30},
        {"train_loss": float("nan"), "val_loss": float("inf")},
        {"epoch": 123456},
        {f"val_{name}": 0.123456789 for name in ("f1", "precision", "recall", "top5", "mean_average_precision_at_50")},
        {"val_" + "very_long_name_of_a_metric_" * 8: 1.0},
    ],
)
@pytest.mark.parametrize("budget", [Budget("epochs", 123456), Budget("seconds", 1e6), Budget("flops", 1e18)])
@pytest.mark.parametrize("width", [40, 80])
def test_epoch_lines_fit_whatever_the_numbers(changes, budget, width):
    lines = epoch_lines({**METRICS, **changes}, budget, width)
    assert all(len(line) <= width for line in lines)
    assert all(line.startswith("    ") for line in lines[1:])
    text = " ".join(" ".join(lines).split())
    assert "params" in text
    assert f"{METRICS['seconds'] if 'seconds' not in changes else changes['seconds']:.1f}s" in text


def record(site="features.4", message="Inserted a block.", status="applied"):
    return Record(
        time="2026-01-01", operator="widen", site=site, seed=0, status=status, success=status == "applied",
        message=message, preserves="exact", params_before=1, params_after=2, seconds=0.1,
    )  # fmt: skip


def test_mutations_break_between_words_and_are_indented():
    words = "Widened '0' from 16 to 32 (+2,000 parameters), and everything that reads it, in four layers of the model."
    assert mutation_lines(record(message=words)) == [
        "  + widen at 'features.4': Widened '0' from 16 to 32 (+2,000 parameters), and",
        "    everything that reads it, in four layers of the model.",
    ]
    assert mutation_lines(record(status="not_applicable", message="No."))[0].startswith(
        "  - widen at 'features.4': not"
    )


@pytest.mark.parametrize("site", ["encoder.layers." * 20 + "linear1", "x" * 300, "a b " * 50, ""])
@pytest.mark.parametrize("message", ["", "word " * 100, "y" * 500, "line\nbreak\tand tab", "a/long/path" * 30])
def test_mutation_lines_fit_whatever_the_names(site, message):
    lines = mutation_lines(record(site, message))
    assert all(len(line) <= 80 for line in lines)
    assert "".join("".join(lines).split()) == "".join(f"+ widen at '{site}': {message}".split())


def test_a_long_name_breaks_behind_a_separator():
    lines = wrapped("at encoder.layers.0.self_attention.projection.weight today", 30)
    assert lines == ["at", "encoder.layers.0.self_", "attention.projection.weight", "today"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (77754, "77.8k"), (999_999, "1M"), (2.5e9, "2.5G")]
)
def test_compact_numbers(count, text):
    assert compact(count) == text


def test_one_operator_in_words():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(operator_list(["deepen", "swap"]))
    names = [line.split()[0] for line in console.export_text().splitlines() if "function preserved" in line]
    assert names == ["deepen", "swap"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_operators_in_plain_words(width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(operator_list())
    text = console.export_text()
    for word in ("Literal", "Union", "Undefined", "Annotated", "typing", "None |", "FieldInfo", "NoneType"):
        assert word not in text
    flat = " ".join(text.split())
    for words in ("zero | identity | random, default zero", "number > 1, ≤ 64 | null, default null",
                  "odd whole number ≥ 1, ≤ 15, default 3", "list of whole numbers ≥ 0 | null",
                  "mapping of text to numbers ≥ 0, ≤ 1, default {}"):  # fmt: skip
        assert words in flat
    assert all(len(line) <= width for line in text.splitlines())
    known = set(flat.split())
    for line in text.splitlines():
        assert set(line.split()) <= known


def test_the_time_left_is_told_where_there_is_room():
    metrics = {key: value for key, value in METRICS.items() if "accuracy" not in key}
    line = "epoch  3/15  train 0.7811  val 0.1397  lr 0.049  77.8k params  0.4s"
    assert epoch_lines(metrics, Budget("epochs", 15), left=754) == [f"{line}  12m34s left"]
    assert epoch_lines(metrics, Budget("epochs", 15), left=None) == [line]
    assert epoch_lines({**metrics, "progress": 1.0}, Budget("epochs", 15), left=0.0) == [line]
    assert epoch_lines(METRICS, Budget("epochs", 15), left=754) == epoch_lines(METRICS, Budget("epochs", 15))
    for width in (66, 67, 78, 79, 80):
        assert all(len(text) <= width for text in epoch_lines(metrics, Budget("epochs", 15), width, left=754))
    assert run_time(61.2, 3600) == "run 1m01s, 1h00m left"
    assert run_time(5, None) == "run 5s"
