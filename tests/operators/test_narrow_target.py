"""`narrow` to a target for the whole model: which members go, how many, and what nobody may take."""

import json

import pytest
import timm
import torch
from helpers.fingerprints import fingerprint
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import evolve
from evolve.operators.criteria import CRITERIA
from evolve.operators.ranking import Bundle, bundle, role, taken
from evolve.structure.probe import FlopCounter

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = {"input_ids": torch.arange(16).view(2, 8)}


def mlp():
    """Two hidden layers of four units whose every member has weights of one size: 1, 2, 3, 4 and 10, 20, 30, 40."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    sizes, larger = torch.tensor([3.0, 1.0, 4.0, 2.0]), torch.tensor([10.0, 40.0, 20.0, 30.0])
    with torch.no_grad():
        model[0].weight.copy_(sizes[:, None].expand(4, 4))
        model[2].weight.copy_(larger[:, None] * sizes)
        model[4].weight.copy_(larger.expand(2, 4))
    return model


def narrow(model, x=X, site="*", **options):
    return evolve.mutate(model, "narrow", site=site, example_inputs=x, seed=0, **options)


def flops(model, x):
    """What a forward pass of the batch costs, counted as it runs."""
    with torch.no_grad(), FlopCounter() as counter:
        model.eval()(**x) if isinstance(x, dict) else model(x)
    return counter.total


def params(model):
    return sum(p.numel() for p in model.parameters())


def gone(result):
    """The members that went, by group."""
    return {
        group["name"]: sorted(set(range(group["size"])) - set(group["steps"][-1]["source"]))
        for group in result.record.plan["groups"]
    }


def vit():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=10)


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_hidden_layers=2, head_dim=4, **sizes))


def test_the_smallest_of_all_groups_go():
    """Magnitudes over the mean of their group: .4, .8, 1.2, 1.6 in both; 4 and 4 of 4 leave 4 * 3 + 3 * 3 + 3 * 2."""
    model = mlp()
    result = narrow(model, target={"flops": 0.7})
    assert result, result.message
    assert gone(result) == {"0": [1], "2": [0]}
    assert result.record.plan["flops"] == 2 * (12 + 9 + 6)
    assert result.record.plan["target"] == {"of": "flops", "before": 80, "goal": 56, "after": 54}
    assert "to 0.675 of its FLOPs (54), at most 0.700 asked for" in result.message


def test_a_number_is_the_same_whenever_it_is_asked_for():
    model = mlp()
    assert narrow(model, target={"flops": 54})
    assert params(model) == 15 + 12 + 8
    again = narrow(model, target={"flops": 54})
    assert not again
    assert "54 FLOPs, no more than the target of 54" in again.message


def test_groups_whose_scores_can_be_compared_are_not_scaled():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
    )
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.1, 0.2, 0.3, 5.0]))
        model[3].weight.copy_(torch.tensor([8.0, 9.0, 10.0, 0.35]))
    result = narrow(model, IMAGES, target={"params": 0.55}, criterion="batch_norm")
    assert gone(result) == {"0": [0, 1, 2]}


def test_groups_whose_scores_cannot_be_compared_are_scaled():
    """As of a group that lies in more layers than another."""
    groups, scores = evolve.analyse(mlp(), X).changeable[:1], [torch.tensor([2.0, 8.0, 4.0, 6.0])]
    scaled, plain = (bundle(groups, scores, absolute=absolute, most=3, kind="") for absolute in (False, True))
    assert scaled.scores.tolist() == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert plain.scores.tolist() == [2.0, 4.0, 6.0, 8.0]
    assert [order.tolist() for order in scaled.orders] == [[0, 2, 3, 1]]


@pytest.mark.parametrize(
    ("build", "x"),
    [
        (lambda: evolve.build_model("simple_cnn"), IMAGES),
        (lambda: evolve.build_model("small_resnet", blocks=[2, 2, 2]), IMAGES),
        (vit, IMAGES),
        (llama, TOKENS),
    ],
    ids=["simple_cnn", "small_resnet", "vit", "llama"],
)
@pytest.mark.parametrize("what", ["flops", "params"])
def test_models_cost_what_was_asked_for(build, x, what):
    """A hidden unit, or a head at most, below the target; the count is that of a run."""
    model, count = build(), {"flops": lambda model: flops(model, x), "params": params}[what]
    before = count(model)
    result = narrow(model, x, target={what: 0.6}, ranking="isomorphic" if what == "params" else "global")
    assert result, result.message
    assert (0.55 if isinstance(x, dict) else 0.58) <= count(model) / before <= 0.6
    assert count(model) == result.record.plan["target"]["after"] * (2 if what == "flops" else 1)
    assert not result.record.plan["left_out"]


def test_replay_builds_the_same():
    model = evolve.build_model("small_resnet")
    result = narrow(model, IMAGES, target={"flops": 0.5}, criterion="random")
    record = type(result.record).model_validate_json(json.dumps(json.loads(result.record.model_dump_json())))
    again = evolve.build_model("small_resnet")
    evolve.replay(again, [record])
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_the_optimizer_comes_along():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(X).square().mean().backward()
    optimizer.step()
    kept = optimizer.state[model[2].weight]["momentum_buffer"].clone()
    result = narrow(model, target={"flops": 0.7}, optimizer=optimizer)
    rows, columns = (sorted({0, 1, 2, 3} - set(gone(result)[name])) for name in ("2", "0"))
    assert torch.equal(optimizer.state[model[2].weight]["momentum_buffer"], kept[rows][:, columns])


def test_heads_are_ranked_apart():
    """However little the weights of attention weigh, of heads the same part goes as of the others."""
    model = llama()
    analysis = evolve.analyse(model, TOKENS)
    roles = {group.name: role(analysis, group) for group in analysis.changeable}
    assert roles["model.layers.0.self_attn.q_proj"] == "blocks"
    assert {roles["model.embed_tokens"], roles["model.layers.1.mlp.gate_proj"]} == {"plain"}
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(1e-3)
    result = narrow(
        model, TOKENS, target={"params": 0.7}, criterion="hessian", loss=lambda out: out.logits.square().mean()
    )
    assert result, result.message
    heads = [len(positions) for name, positions in gone(result).items() if "self_attn" in name]
    assert sum(heads) <= 3


def test_the_width_of_heads_is_told_from_their_number():
    analysis = evolve.analyse(vit(), IMAGES)
    roles = {group.name: role(analysis, group) for group in analysis.changeable}
    assert roles["blocks.0.attn.qkv"] == "blocks"
    assert roles["blocks.0.attn.qkv:1"] == "within"
    assert roles["blocks.0.mlp.fc1"] == roles["patch_embed.proj"] == "plain"


def test_caps_are_kept():
    model = evolve.build_model("small_resnet")
    with torch.no_grad():
        model.stage3[0].conv1.weight.mul_(1e-3)  # every criterion would take all of it
    scopes = {"stage2": 0.25, "stem": 0, "stage1.*": 0.5}
    result = narrow(model, IMAGES, target={"flops": 0.6}, max_ratio=0.6, scopes=scopes, criterion="lamp")
    assert result, result.message
    left = gone(result)
    assert "stem.0" not in left
    assert all(len(left.get(name, [])) <= most for name, most in [("stage2.0.conv1", 8), ("stage2.0.conv2", 8)])
    assert len(left["stage1.0.conv1"]) <= 8
    assert len(left["stage3.0.conv1"]) <= 38
    with torch.no_grad():
        refused = narrow(model, IMAGES, target={"flops": 0.1}, max_ratio=0.2)
    assert not refused
    assert "cannot be met" in refused.message
    assert "Raise max_ratio or scopes" in refused.message


def test_sizes_are_multiples():
    model = evolve.build_model("small_resnet")
    result = narrow(model, IMAGES, target={"flops": 0.5}, multiple_of=8)
    assert result, result.message
    assert {layer.out_channels % 8 for layer in model.modules() if isinstance(layer, nn.Conv2d)} == {0}
    assert flops(model, IMAGES) <= 0.5 * flops(evolve.build_model("small_resnet"), IMAGES)


def test_steps_reach_the_target_together():
    model = evolve.build_model("simple_cnn")
    before = flops(model, IMAGES)
    for _ in range(3):
        assert narrow(model, IMAGES, target={"flops": 0.5}, steps=3)
    assert 0.48 < flops(model, IMAGES) / before <= 0.5


def test_isomorphic_ranking_takes_the_same_part_of_each_structure():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3),
        nn.ReLU(),
        nn.Conv2d(10, 20, 1),
        nn.Flatten(),
        nn.LazyLinear(30),
        nn.ReLU(),
        nn.Linear(30, 2),
    )
    x = torch.randn(2, 3, 6, 6)
    model(x)
    result = narrow(model, x, target={"params": 0.5}, ranking="isomorphic")
    parts = {
        group["name"]: 1 - len(group["steps"][0]["source"]) / group["size"] for group in result.record.plan["groups"]
    }
    assert set(parts) == {"0", "2", "4"}  # a convolution read by one, one read by a linear layer, hidden units
    assert max(parts.values()) - min(parts.values()) <= 0.1


def test_what_changes_together_goes_together():
    """The k-th to go of one group with the k-th of the other."""
    groups = evolve.analyse(mlp(), X).changeable
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    tied = Bundle(tuple(groups), (torch.arange(4), torch.arange(4)), scores, 3, "plain")
    assert taken([tied], lambda changes: 8 - sum(4 - change.size for change in changes), 5) == [2]


def test_seconds_are_measured(monkeypatch):
    """By a stand-in that takes a model's parameters for its seconds."""
    monkeypatch.setattr("evolve.operators.costs.latency", lambda model, *_, **__: {"": float(params(model))})
    model = evolve.build_model("simple_cnn")
    before = params(model)
    result = narrow(model, IMAGES, target={"seconds": 0.5})
    assert result, result.message
    assert 0.45 < params(model) / before <= 0.5
    assert "of its seconds as measured, at most 0.500 asked for" in result.message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": {"flops": 0.5}, "scopes": {"heads": 0.1}}, "the model has no module 'heads'"),
        ({"target": {"flops": 0.5}, "max_ratio": 0.0}, "cannot be met"),
        ({"target": {"flops": 0.5}, "criterion": "batch_norm"}, "needs a BatchNorm"),
        ({"target": {"flops": 0.5}, "criterion": "taylor", "batches": 2}, "pass loss_batches"),
        ({"target": {"flops": 0.5}, "site": "0"}, "name '*' as the site"),
    ],
)
def test_refusals(options, words):
    model = mlp()
    before = fingerprint(model, None)
    result = narrow(model, **options)
    assert result.status == "not_applicable"
    assert words in result.message
    assert fingerprint(model, None) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": {"flops": 0.5, "params": 0.5}}, "give one of flops, params and seconds"),
        ({"target": {"flops": 1.5}}, "option 'target.flops': give a part below 1, such as 0.5, or a whole number"),
        ({"target": {"params": 0}}, "option 'target.params': give a part below 1"),
        ({"target": {"flop": 0.5}}, "target.flop"),
        ({"target": {"seconds": 2}}, "target.seconds"),
        ({"target": {"flops": 0.5}, "factor": 0.5}, "give one of factor, remove, target and indices"),
        ({"scopes": {"0": 0.5}}, "scopes says how a target is met"),
        ({"target": {"flops": 1000}, "steps": 2}, "steps divide a target that is a part"),
        ({"target": {"flops": 0.5}, "criterion": "redundant"}, "knows no target"),
        ({"batches": 3}, "batches are for criterion: taylor and hessian"),
        ({"target": {"flops": 0.5}, "scopes": {"0": 1.5}}, "scopes.0"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(evolve.errors.EvolveError, match="Operator 'narrow'") as found:
        narrow(mlp(), **options)
    assert words in str(found.value)


@pytest.mark.parametrize("criterion", [*CRITERIA])
def test_every_criterion_leads_to_the_target(criterion):
    model = evolve.build_model("simple_cnn")
    before = flops(model, IMAGES)
    result = narrow(model, IMAGES, target={"flops": 0.7}, criterion=criterion, loss=lambda out: out.square().mean())
    assert result, result.message
    assert 0.66 < flops(model, IMAGES) / before <= 0.7
    assert evolve.sites(model, "narrow", example_inputs=IMAGES, target={"flops": 0.5}) == ["*"]
