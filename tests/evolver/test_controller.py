"""The controller in loops that the Evolver knows nothing of."""

import copy
import math

import pytest
import torch
from helpers.operators import registered
from helpers.runs import digest, optimizer_digest
from torch import nn
from torch.nn import functional as F

import evolve
from evolve import EvolutionConfig, Monitor, MutationController
from evolve.errors import CheckpointError, EvolveError
from evolve.evolver.loop import Loop
from evolve.training.events import BestImproved, EpochEnded, MutationTried, VerdictGiven

STEPS = 24


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def data(seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (16 * STEPS,), generator=g)
    return torch.randn(16 * STEPS, 6, generator=g) + y.view(-1, 1), y


X, Y = data()


def config(steps=(5, 11, 17), operators=None, **changes):
    operators = operators or [
        {"name": "widen", "sites": ["0"], "options": {"factor": 1.5}},
        {"name": "deepen", "sites": ["0"]},
        {"name": "narrow", "sites": ["0"], "options": {"remove": 1}},
    ]
    schedule = {"name": "at", "options": {"steps": list(steps) or [10**6]}}  # never
    return EvolutionConfig.model_validate({"schedule": schedule, "operators": operators, **changes})


class Training:
    """A loop as somebody writes it: batches in order, one or two optimizers, accumulation, a schedule, an average."""

    def __init__(self, evolution, optimizers=1, accumulate=1, **loop):
        self.model = net()
        if optimizers == 2:
            self.optimizers = [
                torch.optim.SGD(self.model[0].parameters(), lr=0.05, momentum=0.9),
                torch.optim.AdamW([*self.model[1].parameters(), *self.model[4].parameters()], lr=0.01),
            ]
        else:
            self.optimizers = [torch.optim.AdamW(self.model.parameters(), lr=0.01)]
        self.schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.99) for o in self.optimizers]
        self.accumulate = accumulate
        given = self.optimizers if optimizers == 2 else self.optimizers[0]
        self.controller = MutationController(
            evolution,
            Loop(
                self.model,
                given,
                example_inputs=X[:8],
                loss=lambda out: F.cross_entropy(out, Y[:8]),
                also=self.schedules,
                evaluate=self.evaluate,
                **loop,
            ),
        )
        self.losses = []

    def evaluate(self, model):
        mode = model.training
        model.eval()
        with torch.no_grad():
            loss = F.cross_entropy(model(X[-64:]), Y[-64:]).item()
        model.train(mode)
        return loss

    def step(self, number):
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        parts = range(self.accumulate)
        for part in parts:
            rows = slice(16 * number + 16 * part // len(parts), 16 * number + 16 * (part + 1) // len(parts))
            loss = F.cross_entropy(self.model(X[rows]), Y[rows])
            (loss / len(parts)).backward()
        self.controller.before_step()
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        self.losses.append(loss.item())
        return loss

    def run(self, steps, begin=0):
        if begin == 0:
            torch.manual_seed(1)
        for number in range(begin, steps):
            loss = self.step(number)
            end = (number + 1) % 6 == 0
            self.controller.after_step(loss, metrics={"val_loss": self.evaluate(self.model)} if end else None)
            if self.controller.due:
                self.controller.mutate()
        return self

    def save(self, folder):
        """As a user would: weights, optimizers and records by `evolve`, the rest with torch."""
        evolve.save(folder, self.model, self.optimizers, self.controller.lineage)
        rest = {
            "controller": self.controller.state(),
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "random": torch.get_rng_state(),
        }
        torch.save(rest, folder / "rest.pt")

    def restore(self, folder):
        evolve.restore(folder, self.model, self.optimizers)
        rest = torch.load(folder / "rest.pt", weights_only=True)
        for schedule, state in zip(self.schedules, rest["schedules"], strict=True):
            schedule.load_state_dict(state)
        self.controller.load_state(rest["controller"])
        torch.set_rng_state(rest["random"])
        return self

    def end(self):
        return {
            "weights": digest(self.model.state_dict()),
            "optimizers": optimizer_digest(self.model, self.optimizers),
            "schedules": digest([s.state_dict() for s in self.schedules]),
            "log": self.controller.lineage.digest(),
            "history": self.controller.history,
            "random": digest(torch.get_rng_state()),
        }


LOOPS = {"plain": {}, "two optimizers and accumulation": {"optimizers": 2, "accumulate": 2}}


@pytest.mark.parametrize("loop", list(LOOPS))
def test_three_mutations_in_a_loop_of_ones_own(loop):
    training = Training(config(), **LOOPS[loop]).run(STEPS)
    assert [(r.operator, r.step, r.status) for r in training.controller.lineage] == [
        ("widen", 5, "applied"),
        ("deepen", 11, "applied"),
        ("narrow", 17, "applied"),
    ]
    assert training.model[0].out_features == 11
    held = [id(p) for o in training.optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, training.model.parameters()))
    assert sum(training.losses[-4:]) < sum(training.losses[:4])
    assert [line["epoch"] for line in training.controller.history] == [1, 2, 3, 4]


@pytest.mark.parametrize("loop", list(LOOPS))
@pytest.mark.parametrize("at", [3, 5, 6, 12, 20])
def test_stopped_and_restored_it_ends_bit_for_bit_as_one_that_was_not(tmp_path, loop, at):
    changes = {"care": {"rewarm": {"steps": 4}, "decay_grace": 3}}
    whole = Training(config(**changes), **LOOPS[loop]).run(STEPS)
    Training(config(**changes), **LOOPS[loop]).run(at).save(tmp_path / "saved")
    torch.manual_seed(999)
    resumed = Training(config(**changes), **LOOPS[loop]).restore(tmp_path / "saved")
    assert resumed.controller.loop.step == at
    assert resumed.run(STEPS, begin=at).end() == whole.end()


def test_the_state_is_that_of_one_schedule_and_one_policy():
    state = Training(config()).run(3).controller.state()
    other = config().model_copy(update={"policy": evolve.EvolutionConfig.model_validate({"policy": "random"}).policy})
    with pytest.raises(CheckpointError, match=r"evolution\.policy: round_robin; this one has random"):
        Training(other).controller.load_state(state)
    without = config().model_copy(update={"schedule": None})
    with pytest.raises(CheckpointError, match=r"evolution\.schedule: at; this one has None"):
        Training(without).controller.load_state(state)


@pytest.mark.parametrize("probation", [None, {"steps": 4}])
@pytest.mark.parametrize("fails", ["loss", "weights", "error"])
def test_a_mutation_whose_first_step_fails_goes_back(fails, probation):
    plain = Training(config(steps=[])).run(5)
    expected = plain.end()
    training = Training(config(steps=[5], probation=probation)).run(5)
    (record,) = training.controller.lineage
    assert record.status == "applied"
    training.step(5)
    if fails == "loss":
        back = training.controller.after_step(math.nan)
    elif fails == "weights":
        with torch.no_grad():
            training.model[4].weight[0, 0] = math.inf
        back = training.controller.after_step(1.0)
    else:
        back = training.controller.after_step(ValueError("no such thing\nsecond line"))
    assert back
    (record,) = training.controller.lineage
    assert (record.status, record.success) == ("rolled_back", False)
    if fails == "error":
        assert record.message.endswith("ValueError: no such thing in the first step after the mutation: taken back.")
    assert {**training.end(), "log": None} == {**expected, "log": None}
    random = torch.get_rng_state()
    plain.run(9, begin=5)
    torch.set_rng_state(random)
    assert training.run(9, begin=5).end()["weights"] == plain.end()["weights"]
    assert not training.controller.after_step(ValueError("there is nothing to go back to any more"))


def test_an_error_without_a_mutation_is_not_the_controllers():
    training = Training(config(steps=[5])).run(3)
    before = training.end()
    assert not training.controller.after_step(ValueError("a fault of the loop"))
    assert training.end() == before
    training.run(6, begin=3)
    assert not training.controller.after_step(ValueError("the mutation has come through its first step"))


def spoil(model, site, context):
    """Makes the model much worse."""
    with torch.no_grad():
        model[4].weight.mul_(-20)
    return True, "Turned the head round."


@pytest.mark.parametrize(("operator", "kept"), [("spoil", False), ("deepen", True)])
def test_probation_in_a_loop_of_ones_own(operator, kept):
    events = []
    site = [] if operator == "spoil" else ["0"]
    entry = {"name": operator, **({"sites": site} if site else {"sites": ["4"]})}
    training = Training(config(steps=[6], operators=[entry], probation={"steps": 3}))
    training.controller.events.callbacks.append(events.append)
    before = Training(config(steps=[])).run(6).end()
    training.run(6)
    assert training.controller.testing
    training.run(9, begin=6)
    (verdict,) = [event.verdict for event in events if isinstance(event, VerdictGiven)]
    assert verdict.kept is kept
    assert not training.controller.testing
    if not kept:
        assert {**training.end(), "log": None} == {**before, "log": None}
    tried = [event.record.status for event in events if isinstance(event, MutationTried)]
    assert tried == ["applied", "applied" if kept else "rolled_back"]


def test_events_of_a_loop_of_ones_own():
    events = []
    training = Training(config(steps=[5]))
    training.controller.events.callbacks.append(events.append)
    training.run(12)
    kinds = [type(event) for event in events]
    assert kinds == [MutationTried, EpochEnded, BestImproved, EpochEnded, BestImproved]
    assert events[0].run is training.controller
    assert events[2].previous is None
    assert events[4].previous == events[2].value > events[4].value


def test_a_callback_may_stop_the_training():
    training = Training(config(steps=[5, 6]))
    training.controller.events.callbacks.append(lambda event: event.run.stop())
    training.run(8)
    assert training.controller.stopped
    assert len(training.controller.lineage) == 1  # what fell due afterwards was not made


@pytest.mark.parametrize(
    ("changes", "loop", "words"),
    [
        ({"care": {"batchnorm": 2}}, {}, "care.batchnorm reads training batches"),
        ({"repay": 2.0}, {}, "evolution.repay needs a budget"),
        ({"schedule": {"name": "every", "options": {"progress": 0.2}}}, {}, "steps=..."),
        ({"probation": {"steps": 3}}, {"evaluate": None}, "Give the Loop `evaluate=`"),
    ],
)
def test_what_a_loop_cannot_do_is_told_before_a_step(changes, loop, words):
    model = net()
    with pytest.raises(EvolveError) as caught:
        MutationController(
            EvolutionConfig.model_validate({**config().model_dump(), **changes}),
            Loop(model, torch.optim.SGD(model.parameters(), lr=0.1), example_inputs=X[:4], **loop),
        )
    assert words in str(caught.value)


class Taught(Loop):
    """A loop that can train copies of its model."""

    def train(self, steps, stopping):
        for step in range(steps):
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            F.cross_entropy(self.model(X[16 * step : 16 * step + 16]), Y[16 * step : 16 * step + 16]).backward()
            for optimizer in self.optimizers:
                optimizer.step()
        return True


def test_children_need_a_loop_that_trains_them():
    climbing = config(steps=[]).model_copy(
        update={
            "policy": EvolutionConfig.model_validate(
                {
                    "policy": {"name": "hill_climb", "options": {"children": 2, "steps": 3}},
                    "operators": [{"name": "deepen"}],
                }
            ).policy
        }
    )
    training = Training(climbing)
    with pytest.raises(EvolveError, match="write its method `train`"):
        training.controller.mutate()
    model = net()
    loop = Taught(
        model, torch.optim.AdamW(model.parameters(), lr=0.02), example_inputs=X[:8], evaluate=training.evaluate
    )
    controller = MutationController(climbing, loop)
    before = copy.deepcopy(model.state_dict())
    records = controller.mutate()
    assert records
    if records[-1].success:
        assert records[-1].choice.policy == "hill_climb"
    else:
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_gradient_policy_scores_on_the_probe_batch():
    training = Training(
        config(steps=[3], operators=[{"name": "widen", "options": {"add": 2}}], policy={"name": "gradient"})
    ).run(5)
    (record,) = training.controller.lineage
    assert (record.status, record.choice.policy) == ("applied", "gradient")
    assert record.choice.chosen.value is not None


def test_a_compiled_model_is_taken_by_what_is_underneath():
    model = net()
    compiled = torch.compile(model, backend="eager")
    loop = Loop(compiled, torch.optim.SGD(model.parameters(), lr=0.1), example_inputs=X[:4])
    assert loop.model is model


@pytest.mark.parametrize("at", [None, 7, 13])
def test_a_loop_under_accelerate(tmp_path, at):
    accelerate = pytest.importorskip("accelerate")

    def loop(evolution):
        accelerator = accelerate.Accelerator(cpu=True)
        model = net()
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
        controller = MutationController(evolution, Loop(model, optimizer, example_inputs=X[:8]))
        return accelerator, model, optimizer, controller

    def run(parts, steps, begin=0):
        accelerator, model, optimizer, controller = parts
        if begin == 0:
            torch.manual_seed(1)
        for number in range(begin, steps):
            rows = slice(16 * number, 16 * number + 16)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X[rows]), Y[rows])
            accelerator.backward(loss)
            controller.before_step()
            optimizer.step()
            controller.after_step(loss)
            if controller.due:
                controller.mutate()
        return parts

    care = {"care": {"rewarm": {"steps": 4}}}
    parts = loop(config(**care))
    if at is None:
        run(parts, STEPS)
        assert [record.status for record in parts[3].lineage] == ["applied"] * 3
        held = [id(p) for group in parts[2].param_groups for p in group["params"]]
        assert sorted(held) == sorted(map(id, parts[1].parameters()))
        return
    whole = run(loop(config(**care)), STEPS)
    _, model, optimizer, controller = run(parts, at)
    evolve.save(tmp_path / "saved", model, optimizer, controller.lineage)
    torch.save({"controller": controller.state(), "random": torch.get_rng_state()}, tmp_path / "rest.pt")
    resumed = loop(config(**care))
    evolve.restore(tmp_path / "saved", resumed[1], resumed[2])
    rest = torch.load(tmp_path / "rest.pt", weights_only=True)
    resumed[3].load_state(rest["controller"])
    torch.set_rng_state(rest["random"])
    run(resumed, STEPS, begin=at)
    assert digest(resumed[1].state_dict()) == digest(whole[1].state_dict())
    assert optimizer_digest(resumed[1], resumed[2]) == optimizer_digest(whole[1], whole[2])
    assert resumed[3].lineage.digest() == whole[3].lineage.digest()


def test_two_mutations_before_a_step_go_back_together():
    expected = Training(config(steps=[])).run(5).end()
    training = Training(config(steps=[])).run(5)
    training.controller.mutate()
    training.controller.mutate()
    assert [record.status for record in training.controller.lineage] == ["applied", "applied"]
    assert training.controller.after_step(ValueError("no"))
    assert [record.status for record in training.controller.lineage] == ["rolled_back", "rolled_back"]
    assert {**training.end(), "log": None} == {**expected, "log": None}


def test_while_one_is_on_probation_none_is_made_and_nothing_is_saved():
    training = Training(config(steps=[5], probation={"steps": 4})).run(6)
    for call in (training.controller.mutate, training.controller.state):
        with pytest.raises(EvolveError, match="on probation"):
            call()
    training.run(9, begin=6)
    assert training.controller.lineage.records[0].verdict is not None
    training.controller.state()


def test_a_state_needs_the_model_that_its_records_lead_to():
    state = Training(config()).run(12).controller.state()
    fresh = Training(config())
    before = fresh.controller.state()
    with pytest.raises(CheckpointError, match=r"Restore the model first"):
        fresh.controller.load_state(state)
    for damaged in ({}, None, {**state, "records": ["x"]}, {k: v for k, v in state.items() if k != "loop"}):
        with pytest.raises(CheckpointError):
            fresh.controller.load_state(damaged)
    assert {**fresh.controller.state(), "new_parameters": 0} == {**before, "new_parameters": 0}


def test_what_callbacks_remember_is_in_the_state():
    class Counter:
        count = 0

        def __call__(self, event):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    training = Training(config(steps=[]))
    training.controller.events.callbacks.append(Counter())
    training.run(7)
    other = Training(config(steps=[]))
    other.controller.events.callbacks.append(Counter())
    other.controller.load_state(training.controller.state())
    assert other.controller.events.callbacks[0].count == training.controller.events.callbacks[0].count > 0


@pytest.mark.parametrize("metrics", [{"val_loss": None}, {"val_loss": "x"}, [1], 0.3, {"val_loss": torch.ones(2)}])
def test_metrics_that_are_no_numbers_leave_no_trace(metrics):
    training = Training(config(steps=[])).run(3)
    with pytest.raises(EvolveError, match="metric"):
        training.controller.after_step(0.1, metrics)
    assert (training.controller.loop.step, training.controller.history) == (3, [])
    training.controller.after_step(torch.tensor(0.1), {"val_loss": torch.tensor(0.5)})
    assert training.controller.history[0]["val_loss"] == 0.5


@pytest.mark.parametrize("outcome", [None, torch.ones(2), KeyboardInterrupt(), "0.1"])
def test_a_loss_that_is_no_number_is_told(outcome):
    training = Training(config(steps=[3])).run(3)
    with pytest.raises(EvolveError, match="a single number"):
        training.controller.after_step(outcome)
    assert training.controller.loop.step == 3


def test_a_callback_that_fails_silences_no_other():
    heard = []

    def broken(event):
        raise KeyError("lost")

    training = Training(config(steps=[]))
    training.controller.events.callbacks += [broken, heard.append]
    with pytest.raises(EvolveError, match="broken failed on MutationTried"):
        training.controller.mutate()
    assert [event.record.status for event in heard] == ["applied"]


WRONG = {
    "no optimizer": ({"optimizer": []}, "holds a parameter"),
    "another model's": ({"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)}, "holds a parameter"),
    "loss": ({"loss": 3}, "Loop\\(loss"),
    "evaluate": ({"evaluate": 3}, "Loop\\(evaluate"),
    "steps": ({"steps": -1}, "whole number from 1"),
    "no steps": ({"steps": 0}, "whole number from 1"),
    "seed": ({"seed": "a"}, "Loop\\(seed"),
    "also": ({"also": [3]}, "Loop\\(also"),
    "ema": ({"ema": 3}, "Loop\\(ema"),
    "model": ({"model": "m"}, "Loop\\(model"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_arguments_of_a_loop_are_told_at_once(name):
    changes, words = WRONG[name]
    model = net()
    arguments = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "example_inputs": X[:4]}
    with pytest.raises(EvolveError, match=words):
        Loop(**{**arguments, **changes})


@pytest.mark.parametrize("wrong", ["config", "loop", "callback"])
def test_arguments_of_the_controller_are_told_at_once(wrong):
    model = net()
    loop = Loop(model, torch.optim.SGD(model.parameters(), lr=0.1), example_inputs=X[:4])
    with pytest.raises(EvolveError, match="found"):
        MutationController(
            {} if wrong == "config" else config(),
            model if wrong == "loop" else loop,
            callbacks=[3] if wrong == "callback" else (),
        )


PLUGINS = {
    spoil: ("spoil", "no"),
}


@pytest.fixture(autouse=True, scope="module")
def _plugins():
    yield from registered(PLUGINS)


def test_a_loop_may_be_judged_by_a_metric_that_rises():
    """Probation and history look at the monitor; what is best is the highest."""
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    values = iter([0.5, 0.6, 0.9, 0.2, 0.2, 0.7])
    loop = Loop(
        model, optimizer, example_inputs=X[:8], evaluate=lambda model: {"loss": 1.0, "f1": next(values)},
        monitor=Monitor("val_f1", "max", 1.0),
    )  # fmt: skip
    config = EvolutionConfig.model_validate(
        {"schedule": {"name": "at", "options": {"steps": [2]}}, "operators": ["residual"], "probation": {"steps": 2}}
    )
    told = []
    controller = MutationController(config, loop, callbacks=told.append)
    for step in range(6):
        metrics = {"val_loss": 1.0, "val_f1": [0.5, 0.6, 0.4, 0.9, 0.3, 0.3][step]}
        controller.before_step()
        optimizer.step()
        controller.after_step(1.0, metrics=metrics)
        if controller.due:
            controller.mutate()
    bests = [(event.metric, event.value) for event in told if isinstance(event, BestImproved)]
    assert bests[:2] == [("val_f1", 0.5), ("val_f1", 0.6)]
    (verdict,) = [event.verdict for event in told if isinstance(event, VerdictGiven)]
    assert (verdict.metric, verdict.before, verdict.found) == ("val_f1", 0.5, 0.6)
    assert verdict.kept


def test_a_metric_that_the_loop_does_not_give_is_told():
    model = net()
    loop = Loop(
        model, torch.optim.SGD(model.parameters(), lr=0.1), example_inputs=X[:8], evaluate=lambda model: 1.0,
        monitor=Monitor("val_f1", "max"),
    )  # fmt: skip
    with pytest.raises(EvolveError, match=r"`evaluate` gives val_loss; val_f1 is asked for"):
        loop.held_out()
