"""Small runs from the command line: a configuration of a few steps, and what came of it."""

import json

import torch
from typer.testing import CliRunner

from evolve.cli import app
from evolve.training.opening import open_newest


def write_config(folder, *, name="config.yaml", **changes):
    """A multi-layer perceptron on 32 made-up samples, four batches an epoch."""
    config = {
        "model": {"name": "mlp", "options": {"in_features": 16, "num_classes": 3, "hidden": [4]}},
        "data": {"name": "fake", "batch_size": 8, "options": {"samples": 32, "shape": [1, 4, 4], "num_classes": 3}},
        "optimizer": {"name": "SGD", "options": {"lr": 0.1, "momentum": 0.9}},
        "training": {"epochs": 2, "device": "cpu"},
        "output": {"dir": str(folder / "run")},
    }
    file = folder / name
    file.write_text(json.dumps({**config, **changes}))
    return file


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def succeeds(*words):
    """Runs a command; returns what it printed."""
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    return result.output


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_end(one, two):
    """Whether two runs ended with the same weights, optimizer and metrics, bit for bit."""
    a, b = open_newest(one), open_newest(two)
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    assert str(a.saved["optimizer"]) == str(b.saved["optimizer"])
    lines = [[{k: v for k, v in line.items() if k != "seconds"} for line in metrics(run)] for run in (one, two)]
    return lines[0] == lines[1]
