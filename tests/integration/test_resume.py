"""A run that was stopped ends bit for bit as one that was not."""

import json
import os
import random
import shutil
import signal

import pytest
import torch
from helpers.runs import MUTATION_STEPS, STEPS, Net, digests, make, stop_after
from torch import nn

import evolve
from evolve import EvolutionConfig, Evolver, LrScheduleConfig, OptimizerConfig, TrainingConfig
from evolve.errors import CheckpointError, EvolveError
from evolve.schedules import ScheduleConfig
from evolve.training.opening import newest_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    evolver = make(tmp_path_factory.mktemp("whole") / "run")
    result = evolver.run()
    assert result.finished
    assert result.applied == 3
    return digests(evolver)


# Each side of every mutation, each side of every epoch's end, and some in between: 17 of 18 steps, three of them twice.
@pytest.mark.parametrize("steps", [*([step] for step in range(1, STEPS)), [3, 4], [4, 5], [9, 12]])
def test_stopped_and_resumed(whole, tmp_path, steps):
    evolver = make(tmp_path / "run")
    for step in steps:
        result = stop_after(evolver, step).run()
        assert (evolver.state.step, result.finished) == (step, False)
        torch.manual_seed(999)  # another process knows nothing of the first one's generators
        random.seed(999)
        evolver = make(tmp_path / "run").restore()
    assert evolver.run().finished
    assert digests(evolver) == whole
    lines = (tmp_path / "run" / "lineage.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if json.loads(line)["success"]] == MUTATION_STEPS


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("AdamW", {"lr": 1e-3}),
        ("Adagrad", {"lr": 1e-2}),
        ("RMSprop", {"lr": 1e-3}),
        ("Adam", {"lr": 1e-3, "amsgrad": True}),
    ],
)
@pytest.mark.parametrize(
    ("schedule", "interval"),
    [("CosineAnnealingLR", "step"), ("ReduceLROnPlateau", "epoch"), ("CosineAnnealingWarmRestarts", "step")],
)
def test_optimizers_and_schedules_resume(tmp_path, optimizer, options, schedule, interval):
    extra = {"T_0": 4} if schedule == "CosineAnnealingWarmRestarts" else {"patience": 0} if interval == "epoch" else {}
    settings = {
        "optimizer": OptimizerConfig(name=optimizer, options=options),
        "lr_schedule": LrScheduleConfig(name=schedule, interval=interval, options=extra),
    }
    one = make(tmp_path / "one", **settings)
    one.run()
    stop_after(make(tmp_path / "two", **settings), 10).run()
    two = make(tmp_path / "two", **settings).restore()
    two.run()
    assert digests(two) == digests(one)


def test_accumulation_resumes(tmp_path):
    training = TrainingConfig(epochs=3, device="cpu", accumulate=4, seed=3)  # windows of 4 and 2 batches
    one = make(tmp_path / "one", training=training)
    one.run()
    assert one.state.step == 6
    stop_after(make(tmp_path / "two", training=training), 3).run()
    two = make(tmp_path / "two", training=training).restore()
    two.run()
    assert digests(two) == digests(one)


def flops_of(steps):
    """FLOPs of so many steps of the net as it is at the start."""
    return 3 * 2 * (64 * 9 * 4 + 64 * 3) * 8 * steps


@pytest.mark.parametrize(
    ("budget", "schedule"),
    [
        ({"steps": 16}, {"name": "at", "options": {"progress": [0.25, 0.5]}}),
        ({"flops": flops_of(80)}, {"name": "every", "options": {"progress": 0.1, "stop": 0.5}}),
        ({"flops": flops_of(80)}, {"name": "every", "options": {"steps": 5}}),
        ({"steps": 40}, {"name": "plateau", "options": {"patience": 1, "min_delta": 0.2}}),
        ({"steps": 40}, {"name": "gap", "options": {"longest": 0.3, "middle": 0}}),
        ({"steps": 100}, {"name": "gain", "options": {"promise": 0.5, "worth": 0, "cost": 1.1}}),
    ],
    ids=["steps", "flops, by progress", "flops, by steps", "plateau", "gap", "gain"],
)
def test_other_budgets_resume(tmp_path, budget, schedule):
    training = TrainingConfig(**budget, device="cpu", seed=3)
    evolution = make().evolution.model_copy(update={"schedule": ScheduleConfig(**schedule)})
    settings = {"training": training, "evolution": evolution}
    one = make(tmp_path / "one", **settings)
    assert one.run().applied > 1
    assert one.state.progress == 1
    for step in range(1, one.state.step, max(one.state.step // 5, 1)):
        folder = tmp_path / f"stopped at {step}"
        stop_after(make(folder, **settings), step).run()
        two = make(folder, **settings).restore()
        two.run()
        assert (two.state.step, two.state.flops) == (one.state.step, one.state.flops)
        assert digests(two) == digests(one)


def test_seconds_go_on_where_they_stood(tmp_path):
    training = TrainingConfig(seconds=60, device="cpu", seed=3)
    stop_after(make(tmp_path / "run", training=training), 4).run()
    resumed = make(tmp_path / "run", training=training).restore()
    stopped_at = resumed.state.seconds
    assert 0 < stopped_at < 60
    resumed.state.seconds += 60 - stopped_at - 0.05
    assert resumed.run().finished
    assert 60 <= resumed.state.seconds < 65


def test_load_gives_the_evaluated_model(tmp_path):
    evolver = make(tmp_path / "run")
    evolver.run()
    x = torch.randn(4, 1, 8, 8)
    with evolver.state.ema.applied_to(evolver.model), torch.no_grad():
        expected = evolver.model.eval()(x)
    model = evolve.load(tmp_path / "run", model=Net(), which="last")
    assert not model.training
    assert torch.equal(model(x), expected)
    with pytest.raises(CheckpointError, match=r"started in Python"):
        evolve.load(tmp_path / "run")


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    evolver = make(tmp_path / "run")
    evolver.run()
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [f.name for f in folders] == ["step-00000012", "step-00000018"]
    weights = folders[1] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert newest_checkpoint(tmp_path / "run") == folders[0]
    assert "model.safetensors has changed" in caplog.text
    whole = digests(evolver)
    resumed = make(tmp_path / "run").restore()
    assert resumed.state.step == 12
    resumed.run()
    assert digests(resumed) == whole
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(CheckpointError, match="No whole checkpoint"):
        make(tmp_path / "run").restore()


def test_a_write_that_breaks_off_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    evolver = stop_after(make(tmp_path / "run"), 6)
    evolver.run()
    before = newest_checkpoint(tmp_path / "run")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(EvolveError, match="No space"):
        evolver.run()
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path / "run") == before
    assert make(tmp_path / "run").restore().run().finished


def test_another_base_model_is_refused(tmp_path):
    make(tmp_path / "run").run()
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(EvolveError, match=r"'features'|no submodule|does not fit"):
        evolve.load(tmp_path / "run", model=other, which="last")


def test_a_run_is_not_written_over(tmp_path):
    make(tmp_path / "run").run()
    lineage = (tmp_path / "run" / "lineage.jsonl").read_bytes()
    with pytest.raises(EvolveError, match="holds a run already"):
        make(tmp_path / "run").run()
    assert (tmp_path / "run" / "lineage.jsonl").read_bytes() == lineage
    output = evolve.OutputConfig(dir=str(tmp_path / "run"), overwrite=True)
    assert make(output=output).run().finished


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(whole, tmp_path, number):
    evolver = make(tmp_path / "run")
    before_step = evolver.controller.before_step

    def interrupted():
        if evolver.state.step == 7:
            os.kill(os.getpid(), number)
        before_step()

    evolver.controller.before_step = interrupted
    before = signal.getsignal(number)
    result = evolver.run()
    assert (result.signal, evolver.state.step, result.finished) == (number, 8, False)
    assert signal.getsignal(number) is before
    resumed = make(tmp_path / "run").restore()
    resumed.run()
    assert digests(resumed) == whole


def test_tied_weights_are_saved_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(16, 16)
            self.twin = nn.Linear(16, 16)
            self.twin.weight = self.body.weight
            self.head = nn.Linear(16, 2)

        def forward(self, x):
            return self.head(torch.relu(self.twin(torch.relu(self.body(x)))))

    x, y = torch.randn(32, 16), torch.randint(2, (32,))
    model = Tied()
    Evolver(
        model, (x, y), (x, y), training=TrainingConfig(epochs=1, device="cpu"), output=tmp_path / "run", progress=False
    ).run()
    loaded = evolve.load(tmp_path / "run", model=Tied(), which="last")
    assert loaded.twin.weight is loaded.body.weight
    assert torch.equal(loaded.body.weight, model.body.weight)
    from safetensors import safe_open

    with safe_open(newest_checkpoint(tmp_path / "run") / "model.safetensors", framework="pt") as file:
        assert "twin.weight" not in file.keys()  # noqa: SIM118


OTHER = {
    "ema": ({"training": TrainingConfig(epochs=3, device="cpu", seed=3)}, "training.ema"),
    "no schedule": ({"lr_schedule": None}, "lr_schedule"),
    "schedule": (
        {"lr_schedule": LrScheduleConfig(name="StepLR", options={"step_size": 3})},
        "lr_schedule OneCycleLR, this one has StepLR",
    ),
    "optimizer": ({"optimizer": OptimizerConfig(name="AdamW")}, "optimizer SGD, this one has AdamW"),
    "policy": ({"policy": {"name": "bandit"}}, "evolution.policy: random; this one has bandit"),
    "mutations": (
        {"schedule": {"name": "every", "options": {"steps": 3}}},
        "schedule: at; this one has every",
    ),
    "nothing": ({"schedule": None}, "evolution.schedule: at; this one has None"),
}


@pytest.mark.parametrize("name", list(OTHER))
def test_a_run_that_is_built_otherwise_is_not_restored(tmp_path, name):
    changes, words = OTHER[name]
    stop_after(make(tmp_path / "run"), 8).run()
    if not set(changes) <= {"training", "lr_schedule", "optimizer"}:
        evolution = {**make().evolution.model_dump(), **changes}
        changes = {"evolution": EvolutionConfig.model_validate(evolution)}
    with pytest.raises(CheckpointError) as caught:
        make(tmp_path / "run", **changes).restore()
    assert words in str(caught.value)
