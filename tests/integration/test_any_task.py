"""A run of each task from its YAML file, made small: mutated, stopped and resumed, its best model loaded elsewhere."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from helpers.runs import digest, digests, stop_after

import evolve
from evolve import Evolver, load_config

ROOT = Path(__file__).parents[2]
# What is smaller than in the file, what is mutated, and the metrics that the run has beside the loss.
CASES = {
    "tabular_regression": (
        ["model.options.hidden=[8]", "model.options.in_features=5", "training.patience=null"],
        ["widen@1"],
        {"rmse", "r2"},
    ),
    "multilabel": (["data.options.samples=64", "data.batch_size=16"], ["widen@1"], {"f1", "auroc"}),
    "segmentation": (
        ["data.options.samples=16", "data.options.image_size=16", "model.options.width=4"],
        ["widen@down.0.0"],
        {"iou"},
    ),
    "text_classifier": (
        ["data.options.samples=48", "data.batch_size=16", "model.options.hidden_size=16"],
        ["widen@bert.encoder.layer.0.intermediate.dense"],
        {"accuracy"},
    ),
    "language_model": (
        [
            "data.options.samples=64", "data.options.val_samples=16", "data.options.max_bytes=20000",
            "data.batch_size=16", "data.options.context=16",
            "model.options.context=16", "model.options.width=16", "model.options.heads=2",
        ],
        ["deepen@blocks"],
        {"perplexity"},
    ),
    "detection": (
        ["model={name: helpers.detector:tiny}", "data.options.samples=8", "data.options.image_size=32"],
        ["widen@roi_heads.box_head.1"],
        set(),
    ),
    "two_inputs": (["data.options.samples=64", "data.batch_size=16"], ["widen@head.0"], {"accuracy"}),
}  # fmt: skip


def table(folder):
    """A table with a number, a gap, a category and a price that goes by them."""
    generator = torch.Generator().manual_seed(0)
    area, age = torch.rand(80, 2, generator=generator).T.tolist()
    lines = ["area,age,kind,price"]
    for index, (a, b) in enumerate(zip(area, age, strict=True)):
        kind = "abc"[index % 3]
        price = 3 * a - b + "abc".index(kind)
        lines.append(f"{a:.4f},{'' if index % 9 == 4 else f'{b:.4f}'},{kind},{price:.4f}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return [f"data.options.path={folder / 'table.csv'}"]


def run_of(name, folder, tmp_path):
    smaller, mutated, _ = CASES[name]
    operators = [{"name": one.partition("@")[0], "sites": [one.partition("@")[2]]} for one in mutated]
    overrides = [
        *smaller,
        *(table(tmp_path) if name == "tabular_regression" else []),
        f"output.dir={folder}",
        "training.epochs=3",
        "training.device=cpu",
        "evolution.schedule={name: at, options: {epochs: [1]}}",
        f"evolution.operators={operators}",
        "evolution.policy={name: round_robin}",
        "evolution.probation=null",
    ]
    return Evolver.from_config(load_config(ROOT / "configs" / f"{name}.yaml", overrides))


@pytest.mark.parametrize("name", CASES)
def test_a_run(name, tmp_path, monkeypatch):
    if name == "tabular_regression":
        pytest.importorskip("pyarrow")
    if name == "text_classifier":
        pytest.importorskip("transformers")
    monkeypatch.chdir(ROOT)
    run = run_of(name, tmp_path / "whole", tmp_path)
    result = run.run()
    assert (result.finished, result.applied) == (True, 1), [record.message for record in run.lineage]
    (record,) = run.lineage
    assert record.max_abs_diff < 1e-4
    measured = {key.removeprefix("val_") for key in result.metrics if key.startswith("val_")}
    assert measured == {"loss", *CASES[name][2]}
    assert all(math.isfinite(result.metrics[f"val_{key}"]) for key in measured)

    part = run_of(name, tmp_path / "part", tmp_path)
    stop_after(part, part.state.epoch_steps + 1)
    assert not part.run().finished
    rest = run_of(name, tmp_path / "part", tmp_path).restore()
    rest.run()
    assert digests(rest) == digests(run)

    monitor = run.monitor
    values = [line[monitor.metric] for line in run.history]
    best = values.index((min if monitor.mode == "min" else max)(values)) + 1
    shutil.move(tmp_path / "whole", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    model = evolve.load(tmp_path / "elsewhere", trust=name in ("detection", "two_inputs"))
    again = evolve.load(tmp_path / "elsewhere", trust=name in ("detection", "two_inputs"), which=best)
    assert digest(model.state_dict()) == digest(again.state_dict())
    batch = next(iter(run.val_data.epoch(0)))
    with torch.no_grad():
        loss = run.state.task.evaluate(model, batch)
    assert torch.isfinite(loss[0])
