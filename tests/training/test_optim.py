"""Optimizers by name and import path, parameter groups, and where new parameters go."""

import pytest
import torch
from helpers.runs import digests, make, stop_after
from helpers.yaml_files import GOOD, edit
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

import evolve
from evolve import Evolver, LrScheduleConfig, OptimizerConfig, load_config
from evolve.config import ConfigError
from evolve.errors import EvolveError

SPLIT = {"decay_biases_and_norms": False}
HEAD = {"groups": [{"match": "head.*", "options": {"lr": 0.5}}]}
KINDS = {"groups": [{"match": ["norm", "bias"], "options": {"lr": 0.2}}, {"match": "matrix", "options": {"lr": 0.3}}]}


class Half(torch.optim.SGD):
    """An optimizer of one's own: steps of half the length."""

    def __init__(self, params, lr=0.1, weight_decay=0.0):
        super().__init__(params, lr=lr / 2, weight_decay=weight_decay)


def half(params, lr=0.1):
    return Half(params, lr)


class Net(nn.Module):
    """Convolutions and a linear part, with norms of three kinds and an embedding."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU())
        self.places = nn.Embedding(1, 6)
        self.head = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        x = self.body(self.stem(x)).mean((2, 3))
        return self.head(x + self.places.weight[0])


def optimizer(model=None, name="SGD", options=None, **more):
    config = {"name": name, "options": options or {"lr": 0.1, "weight_decay": 0.01}, **more}
    return OptimizerConfig.model_validate(config).build(model or Net())


def by_name(model, made):
    """For each parameter the options of the group it is in; every one is in one group."""
    names = {id(p): n for n, p in model.named_parameters()}
    listed = [(names[id(p)], index) for index, group in enumerate(made.param_groups) for p in group["params"]]
    assert len(listed) == len(dict(listed)) == len(names)
    return dict(listed)


def test_biases_norms_and_other_vectors_are_taken_out_of_weight_decay():
    model = Net()
    made = optimizer(model, **SPLIT)
    spared = {n for n, index in by_name(model, made).items() if made.param_groups[index]["weight_decay"] == 0}
    weights = {"stem.0.weight", "body.0.weight", "places.weight", "head.0.weight", "head.3.weight"}
    assert spared == set(dict(model.named_parameters())) - weights
    assert [group["lr"] for group in made.param_groups] == [0.1, 0.1]


def test_a_parameter_belongs_to_the_first_group_that_takes_it():
    model = Net()
    made = optimizer(model, groups=[*HEAD["groups"], *KINDS["groups"]], **SPLIT)
    options = {n: made.param_groups[i] for n, i in by_name(model, made).items()}
    told = {n: (group["lr"], group["weight_decay"]) for n, group in options.items()}
    assert told["head.0.weight"] == (0.5, 0.01)
    assert told["head.1.weight"] == told["head.0.bias"] == (0.5, 0.0)
    assert told["stem.1.weight"] == told["stem.0.bias"] == (0.2, 0.0)
    assert told["stem.0.weight"] == told["places.weight"] == (0.3, 0.01)


def test_without_groups_the_optimizer_is_the_plain_one():
    (group,) = optimizer().param_groups
    assert set(group) == set(torch.optim.SGD([torch.zeros(1)]).param_groups[0])


@pytest.mark.parametrize("config", [SPLIT, HEAD, KINDS, {**HEAD, **SPLIT}], ids=["split", "head", "kinds", "both"])
def test_new_parameters_go_where_the_configuration_would_put_them(config):
    torch.manual_seed(0)
    model, x, y = Net(), torch.randn(4, 3, 8, 8), torch.arange(4)
    made = optimizer(model, options={"lr": 0.01, "weight_decay": 0.01, "momentum": 0.9}, **config)
    before = len(list(model.parameters()))
    for operator, site in [
        ("widen", "head.0"), ("residual", "body"), ("deepen", "head"), ("attention", "stem"), ("branch", "body"),
        ("deepen", "stem"), ("swap", "stem.1"), ("narrow", "stem.0"),
    ]:  # fmt: skip
        F.cross_entropy(model(x), y).backward()
        made.step()
        made.zero_grad()
        options = {"swap": {"to": "group_norm"}, "residual": {"init": "random"}}.get(operator, {})
        ok, message = evolve.mutate(model, operator, site=site, optimizer=made, example_inputs=x, **options)
        assert ok, message
        assert by_name(model, made) == by_name(model, optimizer(model, **config)), operator
    assert len(list(model.parameters())) > before + 10
    assert by_name(model, made) != by_name(model, optimizer(model, **{**config, "groups": [{"match": "*.weight"}]}))


def test_groups_of_a_loop_of_ones_own_may_say_what_they_take():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    first = [model[0].weight, model[4].weight]
    rest = [p for p in model.parameters() if all(p is not q for q in first)]
    made = torch.optim.AdamW([{"params": first, "match": ["matrix"]}, {"params": rest}])
    x = torch.randn(4, 6)
    ok, message = evolve.mutate(model, "residual", site="0", optimizer=made, example_inputs=x)
    assert ok, message
    names = by_name(model, made)
    new = {n: i for n, i in names.items() if n.count(".") > 1}
    assert len(new) > 1
    assert all((model.get_parameter(n).dim() > 1) == (i == 0) for n, i in new.items())


@pytest.mark.parametrize("name", ["Half", "half"])
def test_an_import_path_makes_an_optimizer(name):
    model = nn.Linear(2, 2)
    made = OptimizerConfig(name=f"{__name__}:{name}", options={"lr": 0.4}).build(model)
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    made.step()
    assert type(made) is Half
    assert torch.allclose(model.weight, before - 0.2)


def test_timm_has_optimizers_too():
    pytest.importorskip("timm")
    made = optimizer(name="timm.optim:Lion", options={"lr": 1e-3, "weight_decay": 0.1}, **SPLIT)
    assert type(made).__name__ == "Lion"
    assert [group["weight_decay"] for group in made.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("{name: no_such.package:Lion}", "optimizer.name", "cannot import 'no_such.package'"),
        ("{name: LBFGS}", "optimizer.name", "A run cannot use LBFGS"),
        ("{name: SGD, options: {lr: -1}}", "optimizer.options.lr", "'lr' is refused: Invalid learning rate: -1"),
        ("{name: SGD, options: {nesterov: true}}", "optimizer.options.nesterov", "Nesterov momentum requires"),
        ("{name: SGD, groups: [{match: head.*, options: {lrr: 1}}]}", "groups[0].options.lrr", "Did you mean 'lr'"),
        ("{name: SGD, groups: [{match: norm, options: {lr: -2}}]}", "groups[0].options.lr", "learning rate: -2"),
        ("{name: SGD, groups: [{match: []}]}", "optimizer.groups[0].match", ""),
        ("{name: SGD, groups: [{match: norm, options: {params: 1}}]}", "groups[0].options.params", "set by evolve"),
        ("{name: Rprop, decay_biases_and_norms: false}", "decay_biases_and_norms", "Rprop has no weight_decay"),
    ],
)
def test_a_fault_names_the_key(tmp_path, text, key, message):
    file = tmp_path / "run.yaml"
    file.write_text(edit("optimizer:\n  name: SGD\n  options: {lr: 0.05}\n", f"optimizer: {text}\n"))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert key in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "SparseAdam"}, r"SparseAdam takes sparse gradients alone.*those of 'stem\.0\.weight' are dense"),
        ({"name": "Muon"}, "Muon refuses its options"),
        ({"groups": [{"match": "haed.*"}]}, r"optimizer\.groups\[0\]\.match: 'haed\.\*' matches no"),
    ],
)
def test_what_does_not_fit_the_model_is_told_before_the_first_step(config, message):
    with pytest.raises(EvolveError, match=message):
        OptimizerConfig.model_validate(config).build(Net())


def test_sparse_gradients_need_an_optimizer_for_them():
    model = nn.Embedding(4, 2, sparse=True)
    assert type(OptimizerConfig(name="SparseAdam").build(model)) is torch.optim.SparseAdam
    with pytest.raises(EvolveError, match=r"Adam takes dense ones alone.* Use Adagrad, SGD"):
        OptimizerConfig(name="Adam").build(model)


def test_an_import_path_of_a_run_folder_is_followed_only_if_it_is_trusted():
    data = {"name": "no.such.module:Opt"}
    with pytest.raises(ValidationError, match="If you trust this one"):
        OptimizerConfig.model_validate(data, context={"trusted": False})
    with pytest.raises(ValidationError, match="cannot import"):
        OptimizerConfig.model_validate(data, context={"trusted": True})


def test_a_run_with_groups_that_is_stopped_ends_as_one_that_is_not(tmp_path):
    groups = [{"match": "head.*", "options": {"lr": 0.1}}, {"match": "norm", "options": {"momentum": 0.5}}]
    config = {"name": "SGD", "options": {"lr": 0.05, "weight_decay": 0.01}, "groups": groups, **SPLIT}
    changes = {
        "optimizer": OptimizerConfig.model_validate(config),
        "lr_schedule": LrScheduleConfig(name="wsd", warmup=3),
    }
    whole = make(tmp_path / "whole", **changes)
    whole.run()
    stop_after(make(tmp_path / "run", **changes), 11).run()
    again = make(tmp_path / "run", **changes).restore()
    again.run()
    assert digests(again) == digests(whole)
    model, made = again.model, again.state.optimizer
    assert len(again.lineage.applied) > 1
    assert by_name(model, made) == by_name(model, changes["optimizer"].build(model))


def test_a_run_with_groups_from_yaml(tmp_path):
    file = tmp_path / "run.yaml"
    groups = "groups: [{match: 'fc.*', options: {lr: 0.01}}]\n  decay_biases_and_norms: false"
    text = GOOD.replace("RUN", str(tmp_path / "run")).replace(
        "options: {lr: 0.05}", f"options: {{lr: 0.05}}\n  {groups}"
    )
    file.write_text(text.replace("lr_schedule: {name: OneCycleLR, interval: step, options: {max_lr: 0.1}}\n", ""))
    evolver = Evolver.from_config(load_config(file, ["training.epochs=null", "training.steps=2"]))
    assert [group["lr"] for group in evolver.state.optimizer.param_groups] == [0.01, 0.01, 0.05, 0.05]
    evolver.run()
    again = Evolver.from_config(load_config(file)).restore()
    assert [g.get("match") for g in again.state.optimizer.param_groups] == [["fc.*"], ["fc.*"], None, None]
