"""What a configuration asks for is held against the model and its data before the first step."""

import logging

import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from evolve import EvolutionConfig, Evolver, TrainingConfig
from evolve.cli import app
from evolve.errors import MisfitError

MODEL = {"name": "small_resnet", "options": {"num_classes": 10, "in_channels": 1, "width": 4}}
TWO_EPOCHS = {"epochs": 2, "device": "cpu"}
EVERY = {"name": "every", "options": {"epochs": 1}}


def configured(tmp_path, evolution, **sections):
    config = {
        "model": MODEL,
        "data": "digits",
        "training": {"epochs": 1, "device": "cpu"},
        "evolution": {"schedule": EVERY, **evolution},
        "output": {"dir": str(tmp_path / "run")},
        **sections,
    }
    tmp_path.mkdir(exist_ok=True)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return CliRunner().invoke(app, ["run", str(file)])


def at(operator, *sites, **options):
    return {"operators": [{"name": operator, "sites": list(sites), "options": options}]}


def fixed(operator, site):
    policy = {"name": "fixed", "options": {"steps": [{"operator": operator, "site": site}]}}
    return {"operators": [{"name": operator}], "policy": policy}


@pytest.mark.parametrize(
    ("evolution", "where", "words"),
    [
        (at("deepen", "stage9"), "operators[0].sites[0]", "no submodule 'stage9'. Did you mean 'stage"),
        (at("residual", "stage1", "stage22"), "operators[0].sites[1]", "Did you mean 'stage2'"),
        (at("deepen", "stage1.7"), "operators[0].sites[0]", "no submodule 'stage1.7'"),
        (at("deepen", "stem.0:9"), "operators[0].sites[0]", "has 3 children"),
        (at("deepen", "stem.2:1"), "operators[0].sites[0]", "asks for children"),
        (at("deepen", "stage1.0.0:1"), "operators[0].sites[0]", "only a plain Sequential"),
        (at("widen", "stem.2", factor=1.5), "operators[0].sites[0]", "units called 'stem.2'"),
        (at("widen", "stage1.0.conv1:7"), "operators[0].sites[0]", "units called 'stage1.0.conv1:7'"),
        (at("narrow", "fc", factor=0.5), "operators[0].sites[0]", "fc"),
        (at("residual", "*"), "operators[0].sites[0]", "'residual' does not apply at '*'"),
        (at("kernel", "fc"), "operators[0].sites[0]", "Name a Conv1d, Conv2d or Conv3d"),
        (at("swap", "fc"), "operators[0].sites[0]", "'swap' does not apply at 'fc'"),
        (at("shrink_perturb", "stage9"), "operators[0].sites[0]", "stage9"),
        (at("shrink_perturb", "*", layers={"stage9": 0.5}), "operators[0].sites[0]", "no submodule 'stage9'"),
        (fixed("deepen", "stage9"), "policy.options.steps[0].site", "no submodule 'stage9'"),
        (fixed("widen", "stem.2"), "policy.options.steps[0].site", "units called 'stem.2'"),
    ],
)
def test_sites_are_looked_up_in_the_model(evolution, where, words, tmp_path):
    result = configured(tmp_path, evolution)
    assert result.exit_code == 2, result.output
    assert f"evolution.{where}: " in result.stderr
    assert words in result.stderr
    assert not (tmp_path / "run").exists()


def test_all_that_does_not_fit_is_told_at_once(tmp_path):
    result = configured(tmp_path, {**at("deepen", "stage9", "stage1", "stagex"), "limits": {"params": 10}})
    assert result.stderr.count("evolution.operators[0].sites[") == 2


@pytest.mark.parametrize(
    "evolution",
    [
        at("widen", "*", factor=1.5),
        at("widen", "stem.0", factor=1.5),
        at("deepen", "stem.0:2"),
        at("shrink_perturb", "*"),
        at("narrow", "stage1.0.conv1", criterion="redundant"),  # there is something to take out once it was widened
        at("narrow", "stage1.0.conv1", remove=4),  # all of them now, not after a growth
        at("shrink_perturb", "*", keep="auto"),
        at("remove", "evolved.deepen_0"),
    ],
)
def test_sites_that_are_there_or_may_come(evolution, tmp_path):
    assert configured(tmp_path, evolution).exit_code == 0


def regression(evolution):
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    return Evolver(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
        (x, x[:, :2]),
        (x, x[:, :2]),
        training=TrainingConfig.model_validate({"epochs": 2, "device": "cpu", "loss": "mse_loss"}),
        evolution=EvolutionConfig.model_validate({"schedule": EVERY, "operators": [{"name": "deepen"}], **evolution}),
        progress=False,
    )


@pytest.mark.parametrize(
    ("evolution", "where"),
    [
        (
            {"schedule": {"name": "plateau", "options": {"metric": "val_accuracy", "mode": "max"}}},
            "schedule.options.metric",
        ),
        ({"schedule": {"name": "gap"}}, "schedule.options.metric"),
        ({"probation": {"steps": 1, "metric": "val_accuracy"}}, "probation.metric"),
    ],
)
def test_metrics_that_the_run_does_not_have(evolution, where):
    run = regression(evolution)
    with pytest.raises(MisfitError, match=rf"evolution\.{where}: .*targets are not class numbers.*train_loss|val_loss"):
        run.run()
    assert run.state.step == 0


def test_a_schedule_of_flops_needs_a_model_that_has_some():
    run = regression({"schedule": {"name": "gain"}, "limits": {"flops": 10**6}})
    run.state.flops_per_sample = 0
    with pytest.raises(MisfitError) as error:
        run.run()
    assert "evolution.schedule: 'gain' compares FLOPs" in str(error.value)
    assert "evolution.limits.flops" in str(error.value)


def test_a_limit_below_what_the_model_has_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        regression({"limits": {"params": 10}}).run()
    assert "more than evolution.limits.params (10)" in caplog.text


def test_a_run_without_a_mutation_says_so_and_why(tmp_path):
    refused = configured(
        tmp_path, {**at("deepen", "stage1"), "limits": {"params": 10}, "attempts": 1}, training=TWO_EPOCHS
    )
    assert refused.exit_code == 0
    assert "No mutation was applied: 1 was tried and refused." in refused.stdout
    assert "deepen at 'stage1': The limit of 10 parameters would be passed" in " ".join(refused.stdout.split())
    late = {"name": "at", "options": {"epochs": [9]}}
    never = configured(tmp_path / "b", {**at("deepen", "stage1"), "schedule": late}, training=TWO_EPOCHS)
    assert "No mutation was tried: the schedule 'at' was never due, or no operator had a site." in never.stdout
    plain = configured(tmp_path / "c", {"schedule": None}, training=TWO_EPOCHS)
    assert "No mutation" not in plain.stdout
    done = configured(tmp_path / "d", at("deepen", "stage1"), training=TWO_EPOCHS)
    assert "No mutation" not in done.stdout


def test_without_a_schedule_nothing_is_looked_at():
    run = regression({"schedule": None, "operators": [{"name": "deepen", "sites": ["nowhere"]}]})
    assert run.run().finished
