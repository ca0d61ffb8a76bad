"""The regulariser before pruning: what it adds, value for value, when it ends, and that it leads to zero."""

import pytest
import torch
from helpers.runs import digests, make, stop_after
from torch import nn

import evolve
from evolve.care import GroupSparsity, SparsityConfig
from evolve.errors import EvolveError
from evolve.evolver.config import EvolutionConfig

X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


def net():
    """Three hidden units whose weights have the norms 5, 1, 10 where they are made and 12, 0, 0 where they are read."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]))
        model[2].weight.copy_(torch.tensor([[12.0, 0.0, 0.0]]))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


def test_what_is_added_to_the_gradients():
    """Importances 13, 1 and 10: factors 16 ** 0, 16 ** 1 and 16 ** (3 / 12) = 2."""
    model = net()
    GroupSparsity(SparsityConfig(strength=0.1), X).add(model, 0)
    gamma = torch.tensor([1.0, 16.0, 2.0])
    torch.testing.assert_close(model[0].weight.grad, 1 + 0.1 * gamma[:, None] * model[0].weight.detach())
    torch.testing.assert_close(model[2].weight.grad, 1 + 0.1 * gamma * model[2].weight.detach())
    assert torch.equal(model[0].bias.grad, torch.ones(3))


def test_a_weight_of_two_groups_is_shrunk_for_both_and_scales_of_batch_norm_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(8, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model[1].weight.copy_(torch.tensor([1.0, 3.0]))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    GroupSparsity(SparsityConfig(strength=1.0), torch.randn(2, 1, 2, 2)).add(model, 0)
    assert model[1].weight.grad.tolist() == [16.0, 3.0]
    assert model[1].bias.grad.tolist() == [0.0, 0.0]
    # Of the second group both members are alike, so that its factors are 1.
    assert model[2].weight.grad.flatten(1).tolist() == [[17.0, 2.0], [17.0, 2.0]]


def test_it_ends_when_the_model_was_narrowed_and_follows_changes():
    model = net()
    care = GroupSparsity(SparsityConfig(strength=0.1, until_narrowed=2), X)
    care.add(model, 1)
    assert evolve.mutate(model, "narrow", site="0", criterion="indices", indices=[0], example_inputs=X)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    care.add(model, 1)
    torch.testing.assert_close(model[0].weight.grad, torch.tensor([[0.0, 1.6], [0.6, 0.8]]))
    for parameter in model.parameters():
        parameter.grad = None
    care.add(model, 1)  # a parameter without a gradient
    care.add(model, 2)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_without_a_known_structure_is_told():
    with pytest.raises(EvolveError, match=r"care\.sparsity shrinks the groups"):
        GroupSparsity(SparsityConfig(), torch.randn(2, 5)).add(net(), 0)


def config(care):
    return EvolutionConfig.model_validate(
        {
            "schedule": {"name": "at", "options": {"steps": [12]}},
            "operators": [{"name": "narrow", "sites": ["*"], "options": {"target": {"params": 0.7}}}],
            "care": care,
        }
    )


def test_a_run_with_it_can_be_stopped(tmp_path):
    whole = make(tmp_path / "a", evolution=config({"sparsity": {"strength": 0.05}}))
    whole.run()
    assert [record.operator for record in whole.lineage.applied] == ["narrow"]
    stopped = stop_after(make(tmp_path / "b", evolution=config({"sparsity": {"strength": 0.05}})), 8)
    stopped.run()
    assert stopped.state.step == 8
    again = make(tmp_path / "b", evolution=config({"sparsity": {"strength": 0.05}})).restore()
    again.run()
    assert digests(again) == digests(whole)
    without = make(evolution=config({}))
    without.run()
    assert digests(without)["weights"] != digests(whole)["weights"]
