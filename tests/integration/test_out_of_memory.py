"""Where memory runs out in a mutation, or in the first step after it, the run goes on as if it had not been tried."""

import sys

import pytest
import torch
from helpers.fingerprints import fingerprint
from helpers.runs import digests, make, stop_after
from torch import nn

import evolve
from evolve import EvolutionConfig, OptimizerConfig, TrainingConfig
from evolve.errors import EvolveError
from evolve.evolver.probation import ProbationConfig
from evolve.lineage import Lineage
from evolve.operators import operators
from evolve.runtime.memory import out_of_memory
from evolve.schedules import ScheduleConfig
from evolve.training import train_step

TOO_MUCH = 1 << 50  # bytes that no machine has: the allocator itself refuses


class Hungry(nn.Module):
    """Passes its input on; takes more memory than there is at a given call in training, or in eval mode."""

    def __init__(self, kind, at):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls, self.kind, self.at = 0, kind, at

    def forward(self, x):
        training = self.training and torch.is_grad_enabled() and len(x) == 8 and x.requires_grad
        self.calls += training
        if (self.at == self.calls and training) or (self.at == "probe" and not self.training):
            if self.kind == "cpu":
                torch.empty(TOO_MUCH, dtype=torch.uint8)
            raise self.kind("out of memory")
        return x * self.weight


@pytest.fixture
def hungry():
    @evolve.operator("hungry")
    def grow(model, site, context):
        if context.options.get("at") == "apply":
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        kinds = {
            "cpu": "cpu",
            "cuda": torch.OutOfMemoryError,
            "python": MemoryError,
            "other": lambda _: RuntimeError("something else"),
        }
        options = {"kind": "cpu", "at": 1, **context.options}
        parent, _, name = site.rpartition(".")
        block = nn.Sequential(model.get_submodule(site), Hungry(kinds[options["kind"]], options["at"]))
        setattr(model.get_submodule(parent), name, block)
        return True, "Grown."

    yield
    operators.unregister("hungry")


def evolution(**options):
    entry = {"name": "hungry", "sites": ["features.0"], "options": options}
    return EvolutionConfig.model_validate(
        {"schedule": {"name": "at", "options": {"steps": [4]}}, "operators": [entry], "attempts": 1, "probe": 4}
    )


def test_what_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(TOO_MUCH, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    wrapped = EvolveError("The changed model does not run.")
    wrapped.__cause__ = torch.OutOfMemoryError("CUDA out of memory.")
    assert out_of_memory(wrapped)
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("at", ["apply", "probe"])
def test_in_a_mutation(hungry, at):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    before = fingerprint(model, optimizer)
    answer = evolve.mutate(model, "hungry", site="0", optimizer=optimizer, at=at)
    assert (answer.status, answer.success) == ("rolled_back", False)
    assert answer.message.startswith("Memory ran out during the mutation")
    assert "evolution.limits (params, activation_bytes)" in answer.message
    assert fingerprint(model, optimizer) == before
    with pytest.raises(evolve.errors.MutationError, match="Memory ran out"):
        evolve.mutate(model, "hungry", site="0", at=at, strict=True)


@pytest.mark.parametrize(
    ("kind", "probation"), [("cpu", None), ("cuda", None), ("python", None), ("cpu", {"steps": 3})]
)
def test_in_the_first_step_after_it(hungry, tmp_path, kind, probation):
    tested = {"probation": probation and ProbationConfig(**probation)}
    run = make(tmp_path / "run", evolution=evolution(kind=kind).model_copy(update=tested))
    plain = make(tmp_path / "plain", evolution=EvolutionConfig())
    result = run.run()
    plain.run()
    assert (result.finished, result.applied, result.refused) == (True, 0, 1)
    found, expected = digests(run), digests(plain)
    assert found.pop("log") != expected.pop("log")
    assert found == expected
    assert run.state.flops == plain.state.flops
    (record,) = Lineage.read(tmp_path / "run" / "lineage.jsonl")
    assert record == run.lineage.records[0]
    assert (record.status, record.success, record.step) == ("rolled_back", False, 4)
    assert record.message.endswith("Memory ran out in the first step after the mutation: taken back.")
    assert (record.params_after, record.flops_after) == (record.params_before, record.flops_before)
    model = evolve.load(tmp_path / "run", model=type(plain.model)())
    assert model.state_dict().keys() == plain.model.state_dict().keys()
    stop_after(make(tmp_path / "again", evolution=evolution(kind=kind)), 9).run()
    resumed = make(tmp_path / "again", evolution=evolution(kind=kind)).restore()
    resumed.run()
    assert digests(resumed) == digests(run)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("scope", ["new", "all"])
def test_in_the_middle_of_the_first_step_after_it(scaled, scope):
    """Where an optimizer makes its state, of parts that are cared for, with gradients that have been unscaled."""

    def prepared(operators):
        config = {
            "schedule": {"name": "at", "options": {"steps": [4]}} if operators else None,
            "operators": operators,
            "care": {"rewarm": {"steps": 5, "scope": scope}},
        }
        run = make(evolution=EvolutionConfig.model_validate(config), optimizer=OptimizerConfig(name="AdamW"))
        run.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if scaled else None
        return run

    def full(*arguments):
        if run.controller._records and not failed:
            failed.append(run.state.step)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    failed, plain = [], prepared([])
    run = prepared([{"name": "widen", "sites": ["features.0"], "options": {"factor": 1.5}}])
    run.state.optimizer.register_step_pre_hook(full)
    run.run()
    plain.run()
    assert failed == [4]
    assert [record.status for record in run.lineage] == ["rolled_back"]
    found, expected = digests(run), digests(plain)
    assert found.pop("log") != expected.pop("log")
    assert found == expected


@pytest.mark.parametrize("probation", [None, {"steps": 3}])
def test_where_the_run_was_to_follow_it(tmp_path, monkeypatch, probation):
    config = {
        "schedule": {"name": "at", "options": {"steps": [4]}},
        "operators": [{"name": "widen", "sites": ["features.0"], "options": {"factor": 1.5}}],
        "care": {"batchnorm": 2},
        "probation": probation,
    }
    plain = make(tmp_path / "plain", evolution=EvolutionConfig())
    plain.run()
    run = make(tmp_path / "run", evolution=EvolutionConfig.model_validate(config))
    monkeypatch.setattr(
        sys.modules["evolve.care.after"],
        "recalibrate",
        lambda *arguments: torch.empty(TOO_MUCH, dtype=torch.uint8),
    )
    assert run.run().finished
    (record,) = Lineage.read(tmp_path / "run" / "lineage.jsonl")
    assert (record.status, record.params_after, record.verdict) == ("rolled_back", record.params_before, None)
    assert record.message.endswith("Memory ran out where the run was to follow the mutation: taken back.")
    found, expected = digests(run), digests(plain)
    assert found.pop("log") != expected.pop("log")
    assert found == expected


def test_at_the_end_of_an_epoch_a_run_that_dies_is_resumed_without_it(hungry, tmp_path):
    """The checkpoint of that epoch is from before the mutation, whatever comes of that."""
    config = evolution().model_copy(update={"schedule": ScheduleConfig(name="at", options={"steps": [6]})})
    whole = make(tmp_path / "whole", evolution=config)
    whole.run()
    run = make(tmp_path / "run", evolution=config)

    def dies(*arguments):
        if run.state.step == 8:
            raise KeyboardInterrupt

    run.state.optimizer.register_step_pre_hook(dies)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert [record.status for record in run.lineage] == ["rolled_back"]
    resumed = make(tmp_path / "run", evolution=config).restore()
    assert (resumed.state.step, len(resumed.lineage)) == (6, 0)
    resumed.run()
    assert digests(resumed) == digests(whole)


def test_only_there(hungry):
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        make(evolution=evolution(at=2)).run()  # the first step went well: what runs out now was not the mutation's


def test_any_error_in_the_first_step_takes_the_mutation_back(hungry):
    run, plain = make(evolution=evolution(kind="other")), make(evolution=EvolutionConfig())
    assert run.run().finished
    plain.run()
    (record,) = run.lineage
    assert record.status == "rolled_back"
    assert record.message.endswith("RuntimeError: something else in the first step after the mutation: taken back.")
    found, expected = digests(run), digests(plain)
    assert found.pop("log") != expected.pop("log")
    assert found == expected


@pytest.mark.parametrize("operator", ["widen", "residual", "deepen"])
def test_a_snapshot_goes_back_over_a_mutation_and_many_steps(operator):
    run = stop_after(make(evolution=EvolutionConfig(), training=TrainingConfig(epochs=3, device="cpu", ema=0.9)), 5)
    run.run()
    state = run.state
    before, structure = digests(run), fingerprint(run.model, state.optimizer)
    snapshot = run.controller.loop.snapshot()
    batches = list(run.train_data.epoch(0))
    for _ in range(2):  # as often as wanted
        site = "features.0" if operator == "widen" else "features"
        answer = evolve.mutate(run.model, operator, site=site, optimizer=state.optimizer)
        assert answer, answer.message
        state.ema.follow(run.model, answer.cuts)
        for batch in batches:
            train_step(state, [batch])
        assert digests(run) != before
        snapshot.restore()
        assert digests(run) == before
        assert fingerprint(run.model, state.optimizer) == structure
        assert (state.step, state.epoch, state.batch) == (5, 0, 5)
