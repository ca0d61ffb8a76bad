"""What `widen` and `narrow` do to weights, settings and optimizers, value for value."""

import pytest
import torch
from helpers.fingerprints import fingerprint
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import evolve
from evolve.errors import EvolveError
from evolve.testing import ZOO

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def mlp(hidden=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 12, 1, groups=4),
        nn.Flatten(),
        nn.Linear(12 * 4, 5),
    )


IMAGES = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def step(model, optimizer, x=X):
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()
    return optimizer


def widen(model, site="0", x=X, **options):
    """Widens and returns where each unit comes from and its share, of which one group was changed in one step."""
    result = evolve.mutate(model, "widen", site=site, example_inputs=x, seed=5, **options)
    assert result, result.message
    (step_,) = result.record.plan["groups"][0]["steps"]
    shares = step_["shares"]
    return torch.tensor(step_["source"]), None if shares is None else torch.tensor(shares, dtype=torch.float64)


def narrow(model, site="0", x=X, **options):
    return evolve.mutate(model, "narrow", site=site, example_inputs=x, seed=5, **options)


def test_copies_are_rows_and_their_readers_shares_that_add_up_to_one():
    model = mlp()
    made, read = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    source, shares = widen(model, add=9)
    assert source[:6].tolist() == list(range(6))  # the old ones stay where they were
    assert sorted(torch.bincount(source).tolist()) == [2, 2, 2, 3, 3, 3]
    assert torch.equal(model[0].weight, made[source])
    assert torch.allclose(model[2].weight, read[:, source] * shares.float())
    totals = torch.zeros(6, dtype=torch.float64).index_add(0, source, shares)
    assert torch.allclose(totals, torch.ones(6, dtype=torch.float64), rtol=1e-12)
    assert len(set(shares.tolist())) == 15  # no two are equal: copies part in training
    assert shares.min() > 0.1
    assert (model[0].out_features, model[2].in_features) == (15, 15)


def test_under_a_norm_the_whole_is_copied():
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    norm, before = model[1], model(X)
    source, _ = widen(model, add=1, multiple_of=4)
    assert source.tolist() == list(range(6)) * 2  # 7, as whole copies 12, which is a multiple of 4
    assert norm.normalized_shape == (12,)
    assert torch.allclose(model(X), before, atol=1e-6)
    refused = evolve.mutate(model, "widen", site="0", init="zero_out", example_inputs=X)
    assert "only whole copies keep it. Use init: split" in refused.message


def test_twins_are_equal_and_read_with_opposite_signs():
    model = mlp()
    result = evolve.mutate(model, "widen", site="0", add=3, init="twins", example_inputs=X, seed=5)
    assert result, result.message
    assert model[0].out_features == 10  # in pairs
    made, read = model[0].weight[6:], model[2].weight[:, 6:]
    assert torch.equal(made[:2], made[2:])
    assert torch.equal(read[:, :2], -read[:, 2:])
    assert bool((read != 0).all())
    model(X).square().sum().backward()
    assert bool((model[0].weight.grad[6:] != 0).any(1).all())  # both sides learn at once
    assert bool((model[2].weight.grad[:, 6:] != 0).any(0).all())


def test_zero_out_is_random_and_nobody_reads_it():
    model = mlp(64)
    old = model[0].weight.detach().clone()
    widen(model, add=64, init="zero_out")
    assert torch.equal(model[0].weight[:64], old)
    assert 0.7 < float(model[0].weight[64:].std() / old.std()) < 1.4
    assert bool((model[2].weight[:, 64:] == 0).all())


def test_random_does_not_promise():
    model = mlp()
    before = model(X)
    result = evolve.mutate(model, "widen", site="0", init="random", example_inputs=X)
    assert result.record.preserves == "no"
    assert (model(X) - before).abs().max() > 0.01


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, 12), ({"factor": 1.5}, 9), ({"factor": 1.01}, 7), ({"add": 5}, 11), ({"add": 1, "multiple_of": 8}, 8)],
)
def test_sizes_of_widen(options, size):
    model = mlp()
    widen(model, **options)
    assert model[0].out_features == size


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, 3), ({"factor": 0.75}, 4), ({"factor": 0.01}, 1), ({"remove": 5}, 1), ({"remove": 3, "multiple_of": 4}, 4)],
)
def test_sizes_of_narrow(options, size):
    model = mlp()
    assert narrow(model, **options)
    assert model[0].out_features == model[2].in_features == size


@pytest.mark.parametrize(
    ("operator", "options", "words"),
    [
        ("narrow", {"remove": 6}, "6 cannot be taken out of the 6 of '0': one has to stay"),
        ("narrow", {"remove": 1, "multiple_of": 4, "factor": None}, "cannot become 8"),
        ("narrow", {"criterion": "indices", "indices": [6]}, "there is no position 6"),
        ("narrow", {"criterion": "indices", "indices": [0, 1, 2, 3, 4, 5]}, "one has to stay"),
        ("narrow", {"criterion": "batch_norm"}, "needs a BatchNorm"),
        ("narrow", {"criterion": "redundant", "remove": 2}, "has no position without which the function is the same"),
        ("narrow", {"criterion": "taylor"}, "loss"),
        ("widen", {"init": "gradmax"}, "loss"),
    ],
)
def test_refusals_say_why_and_touch_nothing(operator, options, words):
    model = mlp()
    optimizer = step(model, torch.optim.Adam(model.parameters()))
    before = fingerprint(model, optimizer)
    result = evolve.mutate(model, operator, site="0", optimizer=optimizer, example_inputs=X, **options)
    assert result.status == "not_applicable"
    assert words in result.message
    assert fingerprint(model, optimizer) == before


@pytest.mark.parametrize(
    ("operator", "options", "words"),
    [
        ("widen", {"factor": 2.0, "add": 1}, "give factor or add, not both"),
        ("widen", {"factor": 1.0}, "factor"),
        ("widen", {"wider": 2}, "there is no option 'wider'"),
        ("narrow", {"factor": 0.5, "remove": 1}, "give one of factor, remove, target and indices"),
        ("narrow", {"criterion": "indices"}, "go together"),
        ("narrow", {"indices": [1]}, "go together"),
    ],
)
def test_wrong_options_are_errors(operator, options, words):
    with pytest.raises(EvolveError, match=words):
        evolve.mutate(mlp(), operator, site="0", example_inputs=X, **options)


class Lion(torch.optim.Optimizer):
    """One that evolve does not know, with state of the parameter's shape under a name that it does."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-3})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("exp_avg", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                state["steps_taken"] = state.get("steps_taken", 0) + 1
                p.sub_(group["lr"] * state["exp_avg"].sign())


OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, 0.01, momentum=0.9), {"momentum_buffer": 1}),
    "adam": (
        lambda p: torch.optim.Adam(p, amsgrad=True),
        {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    ),
    "adamw": (torch.optim.AdamW, {"exp_avg": 1, "exp_avg_sq": 2}),
    "nadam": (torch.optim.NAdam, {"exp_avg": 1, "exp_avg_sq": 2}),
    "adamax": (torch.optim.Adamax, {"exp_avg": 1, "exp_inf": 1}),
    "adagrad": (torch.optim.Adagrad, {"sum": 2}),
    "rmsprop": (
        lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
        {"square_avg": 2, "grad_avg": 1, "momentum_buffer": 0},  # of steps that are normalised already
    ),
    "rprop": (torch.optim.Rprop, {"prev": 1, "step_size": 0}),
    "lion": (Lion, {"exp_avg": 1}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_averages_of_copies_follow_the_chain_rule(name):
    make, powers = OPTIMIZERS[name]
    model = mlp()
    optimizer = step(model, make(model.parameters()))
    made, read = model[0].weight, model[2].weight
    old = {p: {k: v.clone() if torch.is_tensor(v) else v for k, v in optimizer.state[p].items()} for p in (made, read)}
    result = evolve.mutate(model, "widen", site="0", add=4, optimizer=optimizer, example_inputs=X, seed=5)
    assert result, result.message
    (plan,) = result.record.plan["groups"][0]["steps"]
    source, shares = torch.tensor(plan["source"]), torch.tensor(plan["shares"])
    for key, power in powers.items():
        expected = old[made][key][source] * shares[:, None] ** power
        assert torch.allclose(optimizer.state[made][key], expected, rtol=1e-5), key
        assert torch.allclose(optimizer.state[read][key], old[read][key][:, source], rtol=1e-5), key
    for p in (made, read):
        kept = {k: v for k, v in old[p].items() if k not in powers}
        assert {k: v for k, v in optimizer.state[p].items() if k not in powers} == kept  # counts of steps
        assert optimizer.state[p].keys() == old[p].keys()
    step(model, optimizer)


@pytest.mark.parametrize("init", ["twins", "zero_out", "random"])
def test_averages_of_random_units_start_at_zero(init):
    model = mlp()
    optimizer = step(model, torch.optim.Adam(model.parameters()))
    old = optimizer.state[model[0].weight]["exp_avg_sq"].clone()
    assert evolve.mutate(model, "widen", site="0", add=2, init=init, optimizer=optimizer, example_inputs=X)
    state = optimizer.state[model[0].weight]
    assert torch.equal(state["exp_avg_sq"][:6], old)
    assert bool((state["exp_avg_sq"][6:] == 0).all())
    assert bool((state["exp_avg"][6:] == 0).all())
    assert state["step"] == 1


def test_factored_state_is_cut_along_the_axes_it_belongs_to():
    model = mlp()
    optimizer = step(model, torch.optim.Adafactor(model.parameters()))
    made, read = model[0].weight, model[2].weight
    old = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for p in (made, read)}
    source, shares = widen(model, optimizer=optimizer, add=4)
    shares = shares.float()[:, None]
    assert torch.allclose(optimizer.state[made]["row_var"], old[made]["row_var"][source] * shares**2)
    assert torch.equal(optimizer.state[made]["col_var"], old[made]["col_var"])
    assert torch.equal(optimizer.state[read]["col_var"], old[read]["col_var"][:, source])
    assert torch.equal(optimizer.state[read]["row_var"], old[read]["row_var"])
    step(model, optimizer)


def test_parameters_stay_the_objects_they_are_in_their_groups():
    model = mlp()
    groups = [
        {"params": [("0.weight", model[0].weight), ("2.weight", model[2].weight)], "weight_decay": 0.1, "lr": 0.02},
        {"params": [("0.bias", model[0].bias), ("2.bias", model[2].bias)], "mine": "kept"},
    ]
    optimizer = step(model, torch.optim.SGD(groups, lr=0.1, momentum=0.9))
    before = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    for operator in ("widen", "narrow", "widen"):
        assert evolve.mutate(model, operator, site="0", optimizer=optimizer, example_inputs=X)
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == before
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["0.weight", "2.weight"],
        ["0.bias", "2.bias"],
    ]
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["mine"]) == (0.02, "kept")
    assert set(optimizer.state) == set(model.parameters())
    step(model, optimizer)


def test_accumulated_gradients_are_those_of_the_wide_model():
    """What the narrow model has accumulated becomes what the widened one would have."""
    x, y = X.double(), torch.randn(8, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model = nn.Sequential(*mlp(), nn.Linear(3, 2)).double()
    (model(x) - y).square().mean().backward()
    result = evolve.mutate(model, "widen", site="0", add=5, example_inputs=x, seed=5)
    assert "Gradients of 3 parameters were cut along." in result.message
    carried = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (model(x) - y).square().mean().backward()
    for mine, parameter in zip(carried, model.parameters(), strict=True):
        assert torch.allclose(mine, parameter.grad, rtol=1e-10, atol=1e-14)


def test_accumulated_gradients_are_those_of_the_narrow_model():
    model = nn.Sequential(*mlp(), nn.Linear(3, 2))
    model(X).square().sum().backward()
    old = [p.grad.clone() for p in model.parameters()]
    result = narrow(model, criterion="indices", indices=[1, 4])
    assert result, result.message
    kept = [0, 2, 3, 5]
    assert torch.equal(model[0].weight.grad, old[0][kept])
    assert torch.equal(model[0].bias.grad, old[1][kept])
    assert torch.equal(model[2].weight.grad, old[2][:, kept])
    assert torch.equal(model[3].weight.grad, old[4])


def test_hooks_and_frozen_flags_stay():
    model, seen = mlp(), []
    model[0].bias.requires_grad_(False)
    model[0].register_forward_hook(lambda module, args, out: seen.append(("forward", tuple(out.shape))))
    model[2].weight.register_hook(lambda grad: seen.append(("gradient", tuple(grad.shape))))
    optimizer = step(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1))
    seen.clear()
    assert evolve.mutate(model, "widen", site="0", add=3, optimizer=optimizer, example_inputs=X)
    assert not model[0].bias.requires_grad
    seen.clear()
    step(model, optimizer)
    assert seen == [("forward", (8, 9)), ("gradient", (3, 9))]


def test_buffers_go_along():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))
    model(IMAGES)  # statistics that differ
    mean, var = model[1].running_mean.clone(), model[1].running_var.clone()
    source, _ = widen(model, x=IMAGES, add=2)
    assert torch.equal(model[1].running_mean, mean[source])
    assert torch.equal(model[1].running_var, var[source])
    assert model[1].num_batches_tracked == 1


def test_integers_go_along():
    model = cnn()
    sites = evolve.sites(model, "widen", example_inputs=IMAGES)
    for site in sites:
        assert evolve.mutate(model, "widen", site=site, example_inputs=IMAGES), site
    conv, norm, depthwise, grouped, linear = (model[i] for i in (0, 1, 3, 4, 6))
    assert conv.out_channels == norm.num_features == depthwise.in_channels == depthwise.groups == conv.weight.shape[0]
    assert depthwise.out_channels == grouped.in_channels == depthwise.weight.shape[0]
    assert grouped.in_channels == grouped.groups * grouped.weight.shape[1]
    assert (grouped.out_channels, linear.in_features) == (grouped.weight.shape[0], linear.weight.shape[1])
    assert f"groups={depthwise.groups}" in repr(model)
    again = ZOO["fused_attention"].build()
    x = ZOO["fused_attention"].inputs()
    assert evolve.mutate(again, "widen", site="patch", example_inputs=x)  # whole copies of the heads
    assert (again.heads, again.qkv.out_features, again.norm1.normalized_shape) == (4, 48, (16,))


def test_heads_of_multihead_attention():
    torch.manual_seed(0)
    model, inputs = ZOO["cross_attention"].build().eval(), ZOO["cross_attention"].inputs()
    before = model(*inputs)["out"]
    result = evolve.mutate(model, "widen", site="read", example_inputs=inputs)
    assert result, result.message
    assert (model.attention.num_heads, model.attention.embed_dim, model.attention.head_dim) == (4, 16, 4)
    assert torch.allclose(model(*inputs)["out"], before, atol=1e-5)


def test_memory_formats_and_dtypes_stay():
    model = cnn().to(memory_format=torch.channels_last).double()
    x = IMAGES.double().to(memory_format=torch.channels_last)
    widen(model, x=x)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_tied_weights_change_once_or_are_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.up, self.down = nn.Embedding(7, 6), nn.Linear(6, 10), nn.Linear(10, 6)
            self.head = nn.Linear(6, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            x = self.embed(tokens)
            return self.head(x + self.down(F.relu(self.up(x))))

    model, tokens = Tied(), torch.arange(6).view(2, 3)
    width = next(group.name for group in evolve.analyse(model, tokens).groups if group.size == 6)
    refused = evolve.mutate(model, "widen", site=width, example_inputs=tokens)
    assert "tied weights" in refused.message
    assert model.head.weight is model.embed.weight
    before = model(tokens)
    assert evolve.mutate(model, "widen", site="up", example_inputs=tokens)
    assert torch.allclose(model(tokens), before, atol=1e-6)
    assert narrow(model, width, tokens, remove=2)  # promises nothing, so it may cut what is read and written
    assert model.head.weight is model.embed.weight
    assert model.head.weight.shape == (7, 4)
    assert model.head.in_features == model.embed.embedding_dim == 4


def test_a_layer_by_two_names_changes_once():
    model, x = ZOO["shared"].build(), ZOO["shared"].inputs()
    before = model(x)
    assert evolve.mutate(model, "widen", site="*", example_inputs=x)
    assert model.again is model.out
    assert model.first.out_features == model.out.in_features == model.block[0].in_features == 16
    assert torch.allclose(model(x), before, atol=1e-5)


def _weight_norm():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))


def _spectral_norm():
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))


def _old_weight_norm():
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))


def _orthogonal():
    return nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("build", [_weight_norm, _spectral_norm, _old_weight_norm, _orthogonal])
@pytest.mark.parametrize("operator", ["widen", "narrow"])
def test_weights_that_are_computed_from_others_are_handled_or_refused(operator, build):
    model = build().eval()
    groups = evolve.analyse(model, X).groups
    site = next(group.name for group in groups if group.size == 6 and group.readers)
    optimizer = step(model, torch.optim.Adam(model.parameters()))
    before, untouched = model(X), fingerprint(model, optimizer)
    result = evolve.mutate(model, operator, site=site, optimizer=optimizer, example_inputs=X)
    if result:
        assert operator == "narrow" or torch.allclose(model(X), before, atol=1e-5)
        step(model, optimizer)
        assert model[0].out_features == model[2].in_features == model[0].weight.shape[0] != 6
    else:
        assert result.status in {"not_applicable", "rejected"}
        assert len(result.message) > 20
        assert fingerprint(model, optimizer) == untouched


def test_weight_norm_is_widened_exactly():
    model = _weight_norm()
    before = model(X)
    site = next(site for site in evolve.sites(model, "widen", example_inputs=X))
    result = evolve.mutate(model, "widen", site=site, example_inputs=X)
    assert result, result.message
    assert model[0].weight.shape == (12, 4)
    assert torch.allclose(model(X), before, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)])
def test_gradmax_beside_weights_that_a_hook_computes(norm):
    model = nn.Sequential(norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 3))
    optimizer = step(model, torch.optim.Adam(model.parameters()))
    before = model(X)
    loss = lambda out: out.square().sum()  # noqa: E731
    result = evolve.mutate(
        model, "widen", site="0", init="gradmax", optimizer=optimizer, example_inputs=X, loss=loss, seed=0
    )
    assert result.success, result.message
    assert torch.allclose(model(X), before, atol=1e-6)
    step(model, optimizer)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_that_an_old_spectral_norm_computes_is_widened():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.utils.spectral_norm(nn.Linear(6, 3)))
    result = evolve.mutate(model, "widen", site="0", init="random", example_inputs=X, seed=0)
    assert result.success, result.message
    assert model[2].in_features == model[2].weight_orig.shape[1] == model[2].weight_v.shape[0] == 12


def test_an_orthogonal_weight_says_why_it_stays():
    result = evolve.mutate(_orthogonal(), "widen", site="0.parametrizations.weight.0", example_inputs=X)
    assert "a parametrization computes a weight from it" in result.message
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), parametrizations.orthogonal(nn.Linear(6, 6)))
    result = evolve.mutate(model, "widen", site="0", example_inputs=X)
    assert "a parametrization computes a weight by aten.linalg_matrix_exp, which has no rule" in result.message


def test_magnitude_takes_the_smallest_of_makers_and_readers():
    model = mlp()
    with torch.no_grad():
        model[0].weight[4] *= 0.01
        model[2].weight[:, 4] *= 0.01
        model[0].weight[1] *= 0.05
        model[2].weight[:, 1] *= 0.05
    kept = model[0].weight[[0, 2, 3, 5]].detach().clone()
    assert narrow(model, remove=2)
    assert torch.equal(model[0].weight, kept)


def test_batch_norm_takes_the_smallest_scales():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -0.1, 2.0, 0.2, -3.0, 0.5]))
    weight = model[4].weight.detach().clone().view(2, 6, 4)
    assert narrow(model, x=IMAGES, criterion="batch_norm", remove=2)
    assert model[1].weight.tolist() == [1.0, 2.0, -3.0, 0.5]
    assert torch.equal(model[4].weight, weight[:, [0, 2, 4, 5]].flatten(1))


def test_indices_go_and_their_optimizer_state_with_them():
    model = mlp()
    optimizer = step(model, torch.optim.Adam(model.parameters()))
    made, read = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    average = optimizer.state[model[0].weight]["exp_avg"].clone()
    square = optimizer.state[model[2].weight]["exp_avg_sq"].clone()
    options = {"criterion": "indices", "indices": [5, 0]}
    assert evolve.mutate(model, "narrow", site="0", optimizer=optimizer, example_inputs=X, **options)
    kept = [1, 2, 3, 4]
    assert torch.equal(model[0].weight, made[kept])
    assert torch.equal(model[2].weight, read[:, kept])
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], average[kept])
    assert torch.equal(optimizer.state[model[2].weight]["exp_avg_sq"], square[:, kept])


def test_what_is_read_from_a_copy_is_added_to_its_original():
    model = mlp()
    with torch.no_grad():
        model[0].weight[5], model[0].bias[5] = model[0].weight[2], model[0].bias[2]
        model[2].weight[:, 3] = 0  # nobody reads it
    before, read = model(X), model[2].weight.detach().clone()
    result = narrow(model, criterion="redundant")
    assert result, result.message
    assert model[0].out_features == 4
    assert torch.allclose(model[2].weight[:, 2], read[:, 2] + read[:, 5])
    assert torch.allclose(model(X), before, atol=1e-6)
    assert "merging 1 copies" in result.message


def test_all_groups_at_once_are_those_one_by_one():
    model = cnn()
    before = model(IMAGES)
    result = evolve.mutate(model, "widen", site="*", example_inputs=IMAGES)
    assert result, result.message
    names = {group["name"] for group in result.record.plan["groups"]}
    assert names == set(evolve.sites(cnn(), "widen", example_inputs=IMAGES))
    assert torch.allclose(model(IMAGES), before, atol=1e-5)
    assert narrow(model, "*", IMAGES)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in cnn().state_dict().items()}


def test_what_meets_at_a_width_of_one_grows_together():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))
    assert narrow(model, factor=0.5)
    for operator, site in (("deepen", "1"), ("residual", "0:2")):
        assert evolve.mutate(model, operator, site=site, example_inputs=X)
    nn.init.normal_(model.evolved.deepen_0.linear2.weight)
    nn.init.normal_(model.evolved.residual_0.linear.weight)
    before = model(X)
    result = evolve.mutate(model, "widen", site="0", example_inputs=X)
    assert result, result.message
    assert model[0].out_features == model.evolved.deepen_0.linear1.in_features == 2
    torch.testing.assert_close(model(X), before)
