"""Blocks are put in for real: what comes of it is what the class would have built with more of them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evolve
from evolve.care.ema import EMA
from evolve.errors import EvolveError
from evolve.surgery.parts import renamed_keys
from evolve.testing import ZOO
from evolve.training.snapshot import Snapshot

TOKENS = torch.arange(24).reshape(3, 8) % 19


def gpt(depth=2):
    torch.manual_seed(0)
    return evolve.build_model("gpt", vocab_size=19, width=16, depth=depth, heads=2, context=8)


def train(model, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten()).backward()
        optimizer.step()


def stacked(model, **options):
    result = evolve.mutate(model, "stack", example_inputs=TOKENS, strict=True, **options)
    return result.record


def test_depth_doubles_bit_for_bit_and_trains_on():
    model = gpt()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    before, last = model(TOKENS), model.blocks[1].mlp[0].weight
    moments = optimizer.state[last]["exp_avg"].clone()
    for depth in (4, 8):
        stacked(model, optimizer=optimizer)
        assert len(model.blocks) == depth
        assert torch.equal(model(TOKENS), before)
    assert model.blocks[4].mlp[0].weight is last
    assert torch.equal(optimizer.state[last]["exp_avg"], moments)
    hand_built = gpt(8)
    assert [*model.state_dict()] == [*hand_built.state_dict()]
    assert {type(m) for m in model.modules()} == {type(m) for m in hand_built.modules()}
    new = model.blocks[1].mlp[2].weight
    train(model, optimizer)
    assert new.abs().sum() > 0
    assert new in optimizer.state


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({}, [0, 0, 1, 1]),
        ({"where": "end"}, [0, 1, 0, 1]),
        ({"where": "start"}, [0, 1, 0, 1]),
        ({"to": 3}, [0, 1, 1]),
        ({"to": 3, "where": "start"}, [0, 0, 1]),
        ({"to": 5, "where": "end"}, [0, 1, 0, 1, 1]),
        ({"times": 3}, [0, 0, 0, 1, 1, 1]),
        ({"site": "blocks.0"}, [0, 0, 1]),
        ({"site": "blocks.1", "to": 3, "where": "start"}, [0, 1, 1, 1]),
    ],
)
def test_copies_stand_where_they_were_asked_for(options, order):
    model = gpt()
    for index, block in enumerate(model.blocks):
        nn.init.constant_(block.norm1.bias, index)
    own = list(model.blocks)
    stacked(model, init="copy", **options)
    assert [int(block.norm1.bias[0]) for block in model.blocks] == order
    places = [list(model.blocks).index(block) for block in own]
    behind = options.get("where") == "start"
    expected = [max if behind else min for _ in own]
    assert places == [pick(at for at, source in enumerate(order) if source == i) for i, pick in enumerate(expected)]


def test_new_parameters_join_the_groups_of_those_they_are_copies_of():
    model = gpt()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [
        {"params": list(block.named_parameters()), "lr": rate} for block, rate in zip(model.blocks, (1, 2), strict=True)
    ]
    groups = [{**g, "params": [(names[id(p)], p) for _, p in g["params"]]} for g in groups]
    rest = [(n, p) for n, p in model.named_parameters() if not n.startswith("blocks")]
    optimizer = torch.optim.SGD([*groups, {"params": rest, "lr": 3}])
    stacked(model, optimizer=optimizer)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(block.norm1.weight)] for block in model.blocks] == [1, 1, 2, 2]
    now = dict(model.named_parameters())
    for group in optimizer.param_groups:
        assert all(now[name] is p for name, p in zip(group["param_names"], group["params"], strict=True))


def test_records_of_before_and_after_rebuild_the_model_with_its_average():
    model = gpt()
    ema = EMA(model, 0.5)
    base, average = copy.deepcopy(model), copy.deepcopy(ema)
    records = [
        evolve.mutate(model, "widen", site="blocks.1.mlp.0", example_inputs=TOKENS, strict=True).record,
        evolve.mutate(model, "residual", site="blocks.1.mlp", example_inputs=TOKENS, strict=True).record,
        stacked(model, site="blocks.0", to=3),
        evolve.mutate(model, "widen", site="blocks.3.attention.qkv", example_inputs=TOKENS, strict=True).record,
    ]
    records = [type(record).model_validate_json(record.model_dump_json()) for record in records]
    marked = base.get_parameter("blocks.1.norm1.bias")
    for name in ("norm1.bias", "mlp.0.bias"):
        average.shadow[f"blocks.1.{name}"].fill_(7)
    optimizer = torch.optim.Adam(base.parameters())
    evolve.replay(base, records, optimizer, average)
    assert {k: v.shape for k, v in base.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert base.blocks[3].norm1.bias is marked
    assert bool((average.shadow["blocks.3.norm1.bias"] == 7).all())
    widened = average.shadow["blocks.3.mlp.0.bias"]
    assert len(widened) == model.blocks[3].mlp[0].out_features > 64
    assert bool((widened == 7).all())
    assert not bool((average.shadow["blocks.1.norm1.bias"] == 7).any())
    base.load_state_dict(model.state_dict())
    assert torch.equal(base(TOKENS), model(TOKENS))


def test_blocks_of_evolve_inside_are_copied_along():
    model = gpt()
    evolve.mutate(model, "residual", site="blocks.0.mlp", init="identity", example_inputs=TOKENS, strict=True)
    stacked(model, site="blocks.0", init="copy")
    first, second = model.blocks[0].mlp, model.blocks[1].mlp
    assert [*model.evolved._modules] == ["residual_0", "residual_1"]
    with torch.no_grad():
        model.evolved.residual_1.gate.fill_(3.0)
    x = torch.randn(2, 16)
    assert torch.allclose(second(x) - first(x), 2 * x, atol=1e-5)


def test_remove_takes_blocks_out_again_and_config_and_numbers_follow():
    subject = ZOO["layered"]
    model, x = subject.build().eval(), subject.inputs()
    before, keys = model(x), list(model.state_dict())
    assert evolve.mutate(model, "stack", example_inputs=x, strict=True)
    last = model.layers[2]
    assert (model.config.num_layers, last.layer_idx) == (4, 2)
    assert model.config.layer_kinds == ["near", "near", "far", "far"]
    optimizer = torch.optim.Adam([{"params": [p]} for p in model.parameters()])
    groups = {id(group["params"][0]): group for group in optimizer.param_groups}
    for site in ("layers.1", "layers.2"):
        evolve.mutate(model, "remove", site=site, preserves="exact", optimizer=optimizer, example_inputs=x, strict=True)
        assert all(groups[id(p)]["params"] == [p] for p in model.parameters())
    assert (model.config.num_layers, last.layer_idx, model.config.layer_kinds) == (2, 1, ["near", "far"])
    assert list(model.state_dict()) == keys
    assert torch.equal(model(x)["logits"], before["logits"])


def test_remove_leaves_a_stand_in_where_the_forward_calls_blocks_by_number():
    class Numbered(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))

        def forward(self, x):
            return self.layers[2](self.layers[1](self.layers[0](x)))

    model, x = Numbered(), torch.randn(2, 4)
    assert evolve.mutate(model, "remove", site="layers.1", preserves="no", example_inputs=x, strict=True)
    assert [type(layer).__name__ for layer in model.layers] == ["Sequential", "PassThrough", "Sequential"]
    refused = evolve.mutate(model, "stack", site="layers.0", init="copy", example_inputs=x)
    assert refused.status == "not_applicable"
    assert "does not run all of them" in refused.message


def test_a_snapshot_goes_back_past_blocks_that_came_and_went():
    model = gpt()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    objects = [id(parameter) for parameter in model.parameters()]
    snapshot = Snapshot(model, [optimizer])
    stacked(model, optimizer=optimizer)
    train(model, optimizer)
    there = {"optimizer": optimizer, "example_inputs": TOKENS, "strict": True}
    evolve.mutate(model, "remove", site="blocks.0", preserves="no", **there)
    train(model, optimizer)
    snapshot.restore()
    assert [id(parameter) for parameter in model.parameters()] == objects
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(objects)


def test_layers_that_differ_leave_their_container_too():
    subject = ZOO["layered"]
    model, x = subject.build().eval(), subject.inputs()
    for operator, site in {"widen": "layers.1.mlp.0", "residual": "layers.0.project"}.items():
        evolve.mutate(model, operator, site=site, example_inputs=x, strict=True)
    stays = model.layers[1]
    evolve.mutate(model, "remove", site="layers.0", preserves="no", example_inputs=x, strict=True)
    assert list(model.layers) == [stays]
    assert (stays.layer_idx, model.config.num_layers, model.config.layer_kinds) == (0, 1, ["far"])
    assert not hasattr(model, "evolved")


def test_a_name_that_another_parameter_takes_over_is_that_ones():
    assert renamed_keys({"b": 2, "a": 1}, {"b": "a"}) == {"a": 2}
    assert renamed_keys({"a": 1}, {"b": "a"}) == {}


def test_what_blocks_share_stays_shared():
    model = gpt()
    model.blocks[1].mlp[0].weight = model.blocks[0].mlp[0].weight
    model.blocks[1].table = model.blocks[0].table = [torch.zeros(1)]
    stacked(model)
    assert len({id(block.mlp[0].weight) for block in model.blocks}) == 1
    assert len({id(block.table) for block in model.blocks}) == 1
    assert len({id(block.mlp[2].weight) for block in model.blocks}) == 4


class Leaving(nn.Module):
    """Leaves what it made in an attribute, as maps of attention are kept."""

    def __init__(self):
        super().__init__()
        self.first, self.project = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        self.seen = torch.tanh(self.first(x))
        return x + self.project(self.seen)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("normed", [False, True])
def test_blocks_that_hold_what_a_forward_made_are_stacked(normed):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), Leaving(), Leaving(), nn.Linear(4, 2)), torch.randn(5, 3)
    for block in (model[1], model[2]) if normed else ():
        nn.utils.weight_norm(block.first)
    before = model(x)
    before.sum().backward()
    assert not model[1].seen.is_leaf
    assert evolve.mutate(model, "stack", example_inputs=x, strict=True)
    assert torch.equal(model(x), before)
    model(x).sum().backward()
    assert all(parameter.grad.any() for parameter in model[2].project.parameters())


def test_numbers_that_are_no_counts_of_blocks_stay():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = gpt().blocks
            self.n_layers = self.num_hidden_layers = self.block_size = self.layer_norm_groups = self.layer_dim = 2

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    model = Model()
    assert evolve.mutate(model, "stack", example_inputs=torch.randn(2, 8, 16), strict=True)
    assert len(model.blocks) == model.n_layers == model.num_hidden_layers == 4
    assert (model.block_size, model.layer_norm_groups, model.layer_dim) == (2, 2, 2)


def test_fresh_copies_are_drawn_anew_and_zero_is_declined_where_the_sum_is_normalised():
    subject = ZOO["layered"]
    model, x = subject.build(), subject.inputs()
    assert evolve.mutate(model, "stack", site="layers.1", init="fresh", example_inputs=x)
    one, two = model.layers[1].project.weight, model.layers[2].project.weight
    assert not torch.isclose(one, two).any()
    model._init_weights = lambda layer: isinstance(layer, nn.Linear) and nn.init.constant_(layer.weight, 0.5)
    assert evolve.mutate(model, "stack", site="layers.1", init="fresh", example_inputs=x)
    assert bool((model.layers[2].project.weight == 0.5).all())
    assert not bool((model.layers[1].project.weight == 0.5).any())

    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    x = torch.randn(2, 5, 8)
    refused = evolve.mutate(encoder, "stack", site="*", example_inputs=x)
    assert refused.status == "not_applicable"
    assert "post-norm" in refused.message
    assert "init: copy or fresh" in refused.message
    assert evolve.mutate(encoder, "stack", example_inputs=x, init="copy")
    assert len(encoder.layers) == encoder.num_layers == 4


def test_a_stage_of_a_resnet_grows_behind_the_block_that_halves_it():
    model = evolve.build_model("torchvision:resnet18", num_classes=3).eval()
    x = torch.randn(2, 3, 32, 32)
    before = model(x)
    assert evolve.mutate(model, "stack", site="layer2", to=3, example_inputs=x, strict=True)
    assert len(model.layer2) == 4
    assert model.layer2[0].downsample is not None
    assert torch.equal(model(x), before)
    refused = evolve.mutate(model, "stack", site="layer2.0", example_inputs=x)
    assert "maps (2, 64, 8, 8) to (2, 128, 4, 4)" in refused.message


def test_a_stage_that_is_a_block_and_a_container_is_a_container():
    model = evolve.build_model("torchvision:swin_t", num_classes=3).eval()
    x = torch.randn(1, 3, 32, 32)
    before = model(x)
    result = evolve.mutate(model, "stack", site="features.3", example_inputs=x, strict=True)
    assert "'features.3' 2 → 4" in result.message
    shifts = [block.attn.shift_size for block in model.features[3]]
    assert shifts == [[0, 0], [3, 3]] * 2  # pairs stay pairs
    assert torch.equal(model(x), before)


def test_a_block_that_runs_twice_can_start_as_the_identity():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = gpt()

        def forward(self, tokens):
            return self.inner(tokens) + self.inner(tokens.flip(1))

    model = Twice()
    before = model(TOKENS)
    stacked(model)
    assert len(model.inner.blocks) == 4
    assert torch.equal(model(TOKENS), before)


def test_wrong_requests_say_what_is_there():
    model = gpt()
    with pytest.raises(EvolveError, match="drop one"):
        stacked(model, times=2, to=4)
    for site, told in {"head": "holds no blocks", "blocks.0.mlp.0": "is none"}.items():
        assert told in evolve.mutate(model, "stack", site=site, example_inputs=TOKENS).message
    assert "There are 2 blocks already" in evolve.mutate(model, "stack", to=2, example_inputs=TOKENS).message
