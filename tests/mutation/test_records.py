"""Nothing is applied without a record: arguments are checked before it, what an operator says before it is kept."""

import math
import re
import signal
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fingerprints import fingerprint
from torch import nn

import evolve
from evolve.errors import EvolveError, NotApplicable, writable
from evolve.lineage import Lineage, Record
from evolve.mutation.plain import json_value
from evolve.operators import Change, MutationOperator, operators
from evolve.operators.base import OperatorOptions

X = torch.linspace(-1, 1, 24).reshape(4, 6)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def read_back(record, folder):
    path = folder / "lineage.jsonl"
    path.write_text(record.model_dump_json() + "\n", encoding="utf-8")
    (found,) = Lineage.read(path)
    return found


@pytest.fixture
def registered():
    """Registers an operator under the name "odd"; it is forgotten afterwards."""

    def register(plan=dict, apply=lambda plan: None, preserves_="no", message="done", text=str):
        class Odd(MutationOperator):
            preserves = preserves_

            class Options(OperatorOptions):
                value: Any = 0

            def sites(self, model, probe):
                return ["0"]

            def plan(self, model, site, probe):
                return plan()

            def apply(self, model, site, plan):
                with torch.no_grad():
                    model[0].weight.mul_(2)
                apply(plan)
                return Change(message)

        operators.register("odd")(Odd)

    yield register
    if "odd" in operators.names():
        operators.unregister("odd")


WRONG = {
    "unknown key": ({"note": {"seed": 1}}, "'seed'.*Known keys: epoch, step, metrics_before, reason, choice"),
    "misspelt key": ({"note": {"epochs": 1}}, "Did you mean 'epoch'"),
    "key of the record": ({"note": {"status": "applied"}}, "'status'"),
    "value of a note": ({"note": {"step": "many"}}, "'step'.*'many'"),
    "metrics": ({"note": {"metrics_before": {"val_loss": torch.ones(2)}}}, "metrics_before.val_loss"),
    "note is a list": ({"note": [("epoch", 1)]}, "a mapping"),
    "seed is a float": ({"seed": 1.5}, "seed: expected an int"),
    "seed is a bool": ({"seed": True}, "seed: expected an int"),
    "seed is too large": ({"seed": 2**64}, "from -2\\*\\*63 to 2\\*\\*64 - 1"),
    "seed is a string": ({"seed": "1"}, "seed: expected an int"),
    "limits are a dict": ({"limits": {"params": 5}}, "expected evolve.Limits\\(params="),
    "site is a number": ({"site": 0}, "site: expected a dotted name"),
    "strict is a string": ({"strict": "yes"}, "strict: expected True or False"),
    "loss is a tensor": ({"loss": torch.ones(())}, "loss: expected a function.*a Tensor"),
    "option": ({"factr": 2}, "no option 'factr'"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_arguments_are_checked_before_anything_is_touched(arguments, message):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = fingerprint(model, optimizer)
    with pytest.raises(EvolveError, match=message):
        evolve.mutate(model, "widen", **{"site": "0", "optimizer": optimizer, "example_inputs": X, **arguments})
    assert fingerprint(model, optimizer) == before


def test_what_is_no_model_is_refused():
    with pytest.raises(EvolveError, match=r"model: expected an nn\.Module\. Found a function"):
        evolve.mutate(lambda x: x, "widen")


@pytest.mark.parametrize("seed", [-(2**63), 0, 2**64 - 1])
def test_every_seed_that_torch_takes_is_taken(seed, tmp_path):
    record = evolve.mutate(net(), "widen", site="0", example_inputs=X, seed=seed).record
    assert read_back(record, tmp_path) == record
    assert record.seed == seed
    evolve.replay(net(), [record])


class Sub(dict):
    pass


def cyclic():
    plan = {"own": []}
    plan["own"].append(plan)
    return plan


PLANS = {
    "tensor": (lambda: {"a": {"b": [torch.ones(2)]}}, "plan\\['a'\\]\\['b'\\]\\[0\\] is a torch.Tensor"),
    "nan": (lambda: {"a": math.nan}, "plan\\['a'\\] is nan"),
    "infinite": (lambda: {"a": [1, -math.inf]}, "plan\\['a'\\]\\[1\\] is -inf"),
    "numpy": (lambda: {"a": np.int64(3)}, "is a numpy.int64"),
    "set": (lambda: {"a": {1, 2}}, "is a builtins.set"),
    "bytes": (lambda: {"a": b"x"}, "is a builtins.bytes"),
    "keys": (lambda: {"a": {1: 2}}, "has the key 1"),
    "cyclic": (cyclic, "or holds itself"),
    "surrogate": (lambda: {"a": "\ud800"}, "lone surrogate"),
    "surrogate key": (lambda: {"\udcff": 1}, "lone surrogate"),
    "module": (lambda: {"a": nn.Linear(1, 1)}, "is a torch.nn.modules.linear.Linear"),
    "list": (lambda: [1, 2], "is a list; a plan is a dictionary"),
    "none": (lambda: None, "is a NoneType"),
    "flops": (lambda: {"flops": "many"}, "cannot be recorded|many"),
}


@pytest.mark.parametrize(("plan", "message"), PLANS.values(), ids=PLANS)
def test_a_plan_that_cannot_be_recorded_is_not_applied(registered, tmp_path, plan, message):
    registered(plan)
    model = net()
    before = fingerprint(model)
    answer = evolve.mutate(model, "odd", site="0", example_inputs=X)
    assert not answer
    assert fingerprint(model) == before
    assert re.search(message, answer.message), answer.message
    assert read_back(answer.record, tmp_path) == answer.record


def test_a_plan_is_applied_as_a_replay_will_read_it(registered):
    seen = []
    registered(lambda: Sub(shape=torch.Size([1, 2]), steps=(3, (4,))), seen.append)
    model = net()
    record = evolve.mutate(model, "odd", site="0", example_inputs=X).record
    assert record.success
    again = Record.model_validate_json(record.model_dump_json())
    evolve.replay(net(), [again])
    assert seen == [{"shape": [1, 2], "steps": [3, [4]]}] * 2
    assert all(type(plan) is dict for plan in seen)


class Silent(Exception):  # noqa: N818
    def __str__(self):
        raise ValueError("not telling")

    __repr__ = __str__


class SilentRefusal(Silent, NotApplicable):
    pass


ERRORS = {
    "str raises": (Silent, "failed", "Silent: (its text cannot be shown: ValueError)"),
    "str of a refusal raises": (SilentRefusal, "not_applicable", "(its text cannot be shown: ValueError)"),
    "surrogate": (lambda: RuntimeError("a \ud800 b"), "failed", "RuntimeError: a \\ud800 b"),
    "nul": (lambda: NotApplicable("a \0 b"), "not_applicable", "a \\x00 b"),
    "escape": (lambda: RuntimeError("\x1b[31mred"), "failed", "RuntimeError: \\x1b[31mred"),
    "separators": (lambda: RuntimeError("a\u2028b\x85c"), "failed", "RuntimeError: a\\u2028b\\x85c"),
    "exit": (lambda: SystemExit(3), "failed", "The operator 'odd' raised SystemExit(3), which ends a process."),
    "exit with words": (lambda: SystemExit("bye"), "failed", "The operator 'odd' raised SystemExit, which ends"),
}


@pytest.mark.parametrize(("error", "status", "message"), ERRORS.values(), ids=ERRORS)
def test_an_error_of_any_kind_is_recorded(registered, tmp_path, error, status, message):
    def fail(plan):
        raise error()

    registered(apply=fail)
    model = net()
    before = fingerprint(model)
    answer = evolve.mutate(model, "odd", site="0", example_inputs=X)
    assert answer.status == status
    assert answer.message.startswith(message)
    assert fingerprint(model) == before
    assert read_back(answer.record, tmp_path) == answer.record
    assert len(repr(answer)) <= 200


@pytest.mark.parametrize("message", ["a \ud800 b", "a \0 b", "tab\tand\nline", "é 漢 🙂 \u00a0"])
def test_a_message_of_any_kind_is_recorded(registered, tmp_path, message):
    registered(message=message)
    record = evolve.mutate(net(), "odd", site="0", example_inputs=X).record
    assert record.success
    assert record.message.startswith(writable(message))
    assert read_back(record, tmp_path) == record


@pytest.mark.parametrize("value", [math.nan, "\ud800", torch.ones(1), {1, 2}.__iter__()], ids=type)
def test_options_that_cannot_be_recorded_are_refused_beforehand(registered, value):
    registered()
    model = net()
    before = fingerprint(model)
    with pytest.raises(EvolveError, match=r"Operator 'odd'|The options of 'odd' cannot be recorded"):
        evolve.mutate(model, "odd", site="0", example_inputs=X, value=value)
    assert fingerprint(model) == before


def test_a_declaration_that_nobody_knows_is_refused_beforehand(registered):
    registered(preserves_="mostly")
    with pytest.raises(EvolveError, match=r"preserves = 'mostly'\. Allowed: 'exact', 'approximate', 'no'"):
        evolve.mutate(net(), "odd", site="0", example_inputs=X)


def test_a_replay_and_a_look_do_not_end_the_process_either(registered):
    registered()
    record = evolve.mutate(net(), "odd", site="0", example_inputs=X).record
    operators.unregister("odd")

    def leave(*_):
        raise SystemExit(3)

    registered(apply=leave)
    model = net()
    before = fingerprint(model)
    with pytest.raises(EvolveError, match="raised SystemExit\\(3\\)"):
        evolve.replay(model, [record])
    assert fingerprint(model) == before
    operators.get("odd").sites = leave
    with pytest.raises(EvolveError, match="raised SystemExit\\(3\\)"):
        evolve.sites(model, "odd", example_inputs=X)


def test_a_signal_handler_that_exits_is_heeded(registered):
    def handler(number, frame):
        raise SystemExit(5)

    registered(apply=lambda plan: signal.raise_signal(signal.SIGTERM))
    before_handler = signal.signal(signal.SIGTERM, handler)
    model = net()
    before = fingerprint(model)
    try:
        with pytest.raises(SystemExit):
            evolve.mutate(model, "odd", site="0", example_inputs=X)
    finally:
        signal.signal(signal.SIGTERM, before_handler)
    assert fingerprint(model) == before


def test_the_answer_is_short_to_look_at():
    wide = nn.Sequential(nn.Linear(6, 2048), nn.ReLU(), nn.Linear(2048, 3))
    answer = evolve.mutate(wide, "widen", site="0", example_inputs=X)
    assert answer
    assert len(repr(answer)) <= 200
    assert "widen at '0' applied: Widened '0' from 2048 to 4096" in repr(answer)
    refused = evolve.mutate(wide, "widen", site="x" * 500, example_inputs=X)
    assert not refused
    assert len(repr(refused)) <= 200
    assert len(repr(refused.record)) <= 200


def test_json_values_are_told_by_their_place():
    assert json_value({"a": (1, 2.5, None, True, "x")}, "it") == {"a": [1, 2.5, None, True, "x"]}
    with pytest.raises(ValueError, match=r"it\['a'\]\[1\] is a builtins\.complex"):
        json_value({"a": [0, 1j]}, "it")
