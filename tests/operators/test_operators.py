"""What each operator inserts computes what is written, and whatever one inserted another can widen, prune or remove."""

import numpy as np
import pytest
import torch
from helpers.fingerprints import fingerprint
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import evolve
from evolve.errors import EvolveError
from evolve.operators import OperatorOptions
from evolve.operators.swap import ACTIVATIONS
from evolve.testing import ZOO, variants

IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))


def cnn():
    """Channels first, with BatchNorm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 4)
    )


def tokens(width=32):
    """Features last, with LayerNorm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, 3))


def apply(model, operator, site, x, **options):
    result = evolve.mutate(model, operator, site=site, example_inputs=x, seed=7, **options)
    assert result, result.message
    return result


def awake(model):
    """Gives every parameter of the inserted blocks a value that matters; returns the model in eval mode."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.evolved.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        for key, buffer in model.evolved.named_buffers():
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model.eval()


# kernel


CONVS = {
    "plain": (lambda: nn.Conv2d(3, 4, 3, padding=1), IMAGES, (5, 5), (2, 2)),
    "valid": (lambda: nn.Conv2d(3, 4, 3, padding="valid"), IMAGES, (5, 5), (1, 1)),
    "same": (lambda: nn.Conv2d(3, 4, (3, 2), padding="same"), IMAGES, (5, 4), "same"),
    "strided": (lambda: nn.Conv2d(3, 4, 4, stride=2, padding=1), IMAGES, (6, 6), (2, 2)),
    "dilated": (lambda: nn.Conv2d(3, 6, (3, 1), padding=(2, 0), dilation=(2, 3), groups=3), IMAGES, (5, 3), (4, 3)),
    "signal": (lambda: nn.Conv1d(6, 4, 3), TOKENS.transpose(1, 2), (5,), (1,)),
    "volume": (lambda: nn.Conv3d(3, 2, 1), IMAGES[:, :, None].repeat(1, 1, 3, 1, 1), (3, 3, 3), (1, 1, 1)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CONVS)
def test_kernel_puts_zeros_around(name):
    build, x, size, padding = CONVS[name]
    torch.manual_seed(0)
    model = nn.Sequential(build())
    before, weight = model(x), model[0].weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters())
    before.square().sum().backward()
    optimizer.step()
    before, weight, average = model(x), model[0].weight.detach().clone(), optimizer.state[model[0].weight]["exp_avg"]
    assert evolve.mutate(model, "kernel", site="0", optimizer=optimizer, example_inputs=x)
    conv = model[0]
    assert (conv.kernel_size, conv.padding) == (size, padding)
    inner = (..., *[slice(1, -1)] * len(size))
    assert torch.equal(conv.weight[inner], weight)
    assert torch.equal(optimizer.state[conv.weight]["exp_avg"][inner], average)
    assert conv.weight.detach().abs().sum() == pytest.approx(float(weight.abs().sum()))
    assert optimizer.state[conv.weight]["exp_avg"].abs().sum() == pytest.approx(float(average.abs().sum()))
    assert torch.allclose(model(x), before, atol=1e-6)
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()
    assert bool((conv.weight != 0).all())  # the rim learns


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: nn.ConvTranspose2d(3, 4, 3), "is no convolution"),
        (lambda: nn.BatchNorm2d(3), "is no convolution"),
        (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), "pads by 'circular'"),
        (lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), "computed from others"),
    ],
)
def test_kernel_says_why_not(layer, words):
    model = nn.Sequential(layer())
    before = fingerprint(model)
    result = evolve.mutate(model, "kernel", site="0", example_inputs=IMAGES)
    assert result.status == "not_applicable"
    assert words in result.message
    assert fingerprint(model) == before


def test_kernel_grows_by_even_numbers():
    with pytest.raises(EvolveError, match="multiple of 2"):
        evolve.mutate(cnn(), "kernel", site="0", add=3, example_inputs=IMAGES)
    model = cnn()
    apply(model, "kernel", "0", IMAGES, add=4)
    assert (model[0].kernel_size, model[0].padding) == ((7, 7), (3, 3))


# swap


@pytest.mark.parametrize("to", ACTIVATIONS)
def test_swap_blends_activations(to):
    model = nn.Sequential(nn.Linear(6, 8), nn.Hardswish() if to != "hardswish" else nn.ReLU(), nn.Linear(8, 3))
    apply(model, "swap", "1", TOKENS, to=to)
    inside = model[0](TOKENS)
    old = F.relu(inside) if to == "hardswish" else F.hardswish(inside)
    assert torch.equal(model[1](inside), old)
    block = model.evolved.swap_0
    for gate in (0.25, 1.0):
        nn.init.constant_(block.gate, gate)
        assert torch.allclose(model[1](inside), (1 - gate) * old + gate * ACTIVATIONS[to]()(inside), atol=1e-6)


def test_swap_to_relu6_learns_where_activations_are_large():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    apply(model, "swap", "1", TOKENS, to="relu6")
    model(TOKENS).sum().backward()
    assert model.evolved.swap_0.gate.grad == 0
    model(TOKENS * 50).sum().backward()
    assert model.evolved.swap_0.gate.grad != 0


def test_swap_lets_the_old_input_be():
    model = cnn()
    before = model.eval()(IMAGES)
    apply(model, "swap", "2", IMAGES)
    assert not model[2].inplace  # the blend needs what came in
    assert torch.equal(model(IMAGES), before)
    nn.init.constant_(model.evolved.swap_0.gate, 1.0)
    normed = model[1](model[0](IMAGES))
    assert torch.allclose(model[2](normed), F.silu(normed), atol=1e-6)


@pytest.mark.parametrize(
    ("build", "x", "new"), [(cnn, IMAGES, nn.GroupNorm(1, 8)), (tokens, TOKENS, nn.RMSNorm(32))], ids=["batch", "layer"]
)
def test_swap_blends_norms(build, x, new):
    model = build().eval()
    inside = model[0](x)
    old = model[1](inside)
    apply(model, "swap", "1", x)
    nn.init.constant_(model.evolved.swap_0.gate, 0.5)
    assert torch.allclose(model[1](inside), 0.5 * old + 0.5 * new(inside), atol=1e-5)


@pytest.mark.parametrize(
    ("site", "options", "words"),
    [
        ("0", {}, "A Conv2d ('0') cannot be blended into 'auto'"),
        ("2", {"to": "group_norm"}, "activations blend into activations"),
        ("2", {"to": "relu"}, "cannot be blended into 'relu'"),
        ("1", {"to": "rms_norm"}, "BatchNorm into group_norm"),
        ("0:2", {}, "no single activation or norm"),
    ],
)
def test_swap_says_why_not(site, options, words):
    result = evolve.mutate(cnn(), "swap", site=site, example_inputs=IMAGES, **options)
    assert result.status == "not_applicable"
    assert words in result.message


def test_swap_once():
    model = cnn()
    apply(model, "swap", "2", IMAGES)
    assert not evolve.mutate(model, "swap", site="2", example_inputs=IMAGES, to="gelu")
    assert evolve.sites(model, "swap", example_inputs=IMAGES) == ["1"]
    apply(model, "remove", "evolved.swap_0", IMAGES, preserves="exact")
    assert evolve.sites(model, "swap", example_inputs=IMAGES) == ["1", "2"]


# attention


def test_squeeze_excite_weighs_channels():
    model = cnn().eval()
    result = apply(model, "attention", "0", IMAGES, ratio=0.5)
    assert (result.record.plan["kind"], result.record.plan["hidden"]) == ("squeeze_excite", 4)
    block = awake(model).evolved.attention_0
    out = F.conv2d(IMAGES, model[0].weight, model[0].bias, padding=1)
    hidden = F.silu(out.mean((2, 3)) @ block.squeeze.weight.T + block.squeeze.bias)
    weight = torch.sigmoid(hidden @ block.excite.weight.T + block.excite.bias)
    assert torch.allclose(model[0](IMAGES), out + block.gate * out * weight[:, :, None, None], atol=1e-5)


@pytest.mark.parametrize("spatial", [True, False])
def test_self_attention_is_that_of_torch(spatial):
    if spatial:
        torch.manual_seed(0)
        model, x, width = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 2, 1)), IMAGES, 32
    else:
        model, x, width = tokens(), TOKENS, 32
    bare = model[0]
    out = bare(x)
    apply(model, "attention", "0", x, kind="self")
    block = awake(model).evolved.attention_0
    assert block.heads == 2
    reference = nn.MultiheadAttention(width, 2, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([block.queries.weight, block.keys.weight, block.values.weight]))
        reference.in_proj_bias.copy_(torch.cat([block.queries.bias, torch.zeros(width), block.values.bias]))
        reference.out_proj.load_state_dict(block.project.state_dict())
        flat = out.flatten(2).transpose(1, 2) if spatial else out
        normed = block.norm(flat)
        y = reference(normed, normed, normed)[0]
        y = y.transpose(1, 2).reshape(out.shape) if spatial else y
        assert torch.allclose(model[0](x), out + block.gate * y, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "x", "site", "options", "words"),
    [
        (cnn, IMAGES, "", {}, "Behind the whole model"),
        (cnn, IMAGES, "4", {"kind": "self"}, "needs (N, L, D)"),
        (tokens, TOKENS, "0", {"kind": "squeeze_excite"}, "its last axis"),
        (tokens, TOKENS[:, :1], "0", {"kind": "self"}, "one position has nothing to attend to"),
        (cnn, IMAGES, "3", {}, "the same number of axes"),
    ],
)
def test_attention_says_why_not(build, x, site, options, words):
    result = evolve.mutate(build(), "attention", site=site, example_inputs=x, **options)
    assert result.status == "not_applicable"
    assert words in result.message


# branch


def test_a_convolutional_branch_adds_its_way():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    bare = nn.Sequential(*model[:2])
    apply(model, "branch", "0:2", IMAGES, kernel=5)
    block = awake(model).evolved.branch_0
    assert (block.conv1.kernel_size, block.conv1.stride, block.conv1.padding) == ((5, 5), (2, 2), (2, 2))
    norm = block.norm1
    way = F.conv2d(IMAGES, block.conv1.weight, stride=2, padding=2)
    way = F.batch_norm(way, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    assert torch.allclose(model(IMAGES), F.relu(bare(IMAGES) + way), atol=1e-5)


def test_a_separable_branch_is_depthwise_then_pointwise():
    model = cnn()
    apply(model, "branch", "0", IMAGES, kind="separable")
    block = model.evolved.branch_0
    assert (block.conv1.groups, block.conv1.out_channels, block.conv1.kernel_size) == (3, 3, (3, 3))
    assert (block.conv2.in_channels, block.conv2.out_channels, block.conv2.kernel_size) == (3, 8, (1, 1))
    assert isinstance(block.norm2, nn.BatchNorm2d)
    assert bool((block.norm2.weight == 0).all())


def test_an_mlp_branch_adds_its_way():
    model = tokens()
    bare = F.linear(TOKENS, model[0].weight, model[0].bias)
    apply(model, "branch", "0", TOKENS, ratio=2.0)
    block = awake(model).evolved.branch_0
    assert (block.linear1.in_features, block.linear1.out_features, block.linear2.out_features) == (6, 12, 32)
    normed = F.layer_norm(TOKENS, (6,), block.norm.weight, block.norm.bias)
    way = block.linear2(F.gelu(block.linear1(normed)))
    assert torch.allclose(model[0](TOKENS), bare + way, atol=1e-5)


@pytest.mark.parametrize("operator", ["branch", "deepen"])
def test_kinds_that_do_not_suit_say_why(operator):
    key, kinds = ("kind", ("conv", "mlp")) if operator == "branch" else ("block", ("inverted", "mlp"))
    for (build, x), kind in zip(((tokens, TOKENS), (cnn, IMAGES)), kinds, strict=True):
        result = evolve.mutate(build(), operator, site="0", example_inputs=x, **{key: kind})
        assert result.status == "not_applicable"
        assert f"kind '{kind}' does not suit '0'" in result.message
    assert "whole model" in evolve.mutate(cnn(), operator, site="", example_inputs=IMAGES).message


@pytest.mark.parametrize("operator", ["branch", "deepen"])
@pytest.mark.parametrize("kernel", [2, 4, 14])
def test_an_even_kernel_is_no_option(operator, kernel):
    model = cnn()
    with pytest.raises(EvolveError, match=f"option 'kernel': {kernel} is even.*take {kernel - 1} or {kernel + 1}"):
        evolve.mutate(model, operator, site="0", example_inputs=IMAGES, kernel=kernel)


@pytest.mark.parametrize(
    ("operator", "options", "words"),
    [
        ("deepen", {"block": "mlp", "kernel": 5}, "kernel does nothing in a block of kind 'mlp'"),
        ("deepen", {"block": "transformer", "kernel": 5}, "kernel does nothing"),
        ("branch", {"kind": "mlp", "kernel": 5}, "kernel does nothing in a branch of kind 'mlp'"),
        ("branch", {"kind": "conv", "ratio": 2.0}, "ratio does nothing"),
        ("branch", {"kind": "separable", "ratio": 2.0}, "ratio does nothing"),
        ("attention", {"kind": "self", "ratio": 0.5}, "ratio belongs to squeeze-excite"),
        ("narrow", {"criterion": "indices", "indices": [0], "multiple_of": 2}, "multiple_of does nothing"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(operator, options, words):
    with pytest.raises(EvolveError, match=words):
        evolve.mutate(cnn(), operator, site="0", example_inputs=IMAGES, **options)


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("widen", {"factor": "1.5"}),
        ("widen", {"factor": True}),
        ("widen", {"factor": float("nan")}),
        ("widen", {"factor": float("inf")}),
        ("widen", {"add": 2.0}),
        ("widen", {"add": "2"}),
        ("widen", {"add": True}),
        ("narrow", {"remove": "1"}),
        ("narrow", {"indices": [True], "criterion": "indices"}),
        ("narrow", {"indices": [-1], "criterion": "indices"}),
        ("deepen", {"ratio": "2"}),
        ("deepen", {"kernel": 3.0}),
        ("kernel", {"add": True}),
        ("kernel", {"add": 3}),
        ("dropout", {"p": False}),
        ("dropout", {"p": "0.5"}),
        ("attention", {"ratio": True}),
        ("shrink_perturb", {"keep": "0.5"}),
        ("shrink_perturb", {"keep": True}),
        ("shrink_perturb", {"layers": {"0": "0.5"}}),
    ],
)
def test_options_keep_to_their_types(operator, options):
    with pytest.raises(EvolveError, match=f"Operator '{operator}'"):
        evolve.mutate(cnn(), operator, site="0", example_inputs=IMAGES, **options)


def test_numbers_of_numpy_and_whole_numbers_for_floats_are_options():
    for options in ({"add": np.int64(2)}, {"factor": np.float32(1.5)}, {"factor": 2}):
        assert evolve.mutate(cnn(), "widen", site="0", example_inputs=IMAGES, **options), options


def test_a_list_stands_for_a_tuple_in_a_plugin():
    class Options(OperatorOptions):
        sizes: tuple[int, int] = (1, 1)

    assert Options.read({"sizes": [2, 3]}).sizes == (2, 3)
    assert Options.read(Options.read({"sizes": [2, 3]}).model_dump(mode="json")).sizes == (2, 3)


# dropout


def test_dropout_drops_in_training_and_scales():
    model = tokens()
    out = model[0](TOKENS)
    apply(model, "dropout", "0", TOKENS, p=0.25)
    model.train()
    dropped = model[0](TOKENS)
    zero = dropped == 0
    assert 0.15 < float(zero.float().mean()) < 0.35
    assert torch.allclose(dropped[~zero], out[~zero] / 0.75, atol=1e-6)
    assert torch.equal(model.eval()[0](TOKENS), out)


def test_dropout_that_is_there_gets_another_probability():
    model = ZOO["chain"].build()
    x = ZOO["chain"].inputs()
    keys = list(model.state_dict())
    assert evolve.sites(model, "dropout", example_inputs=x)[0] == "classifier.1"
    result = apply(model, "dropout", "classifier.1", x, p=0.6)
    assert "from 0.3 to 0.6" in result.message
    assert model.classifier[1].p == 0.6
    assert list(model.state_dict()) == keys
    apply(model, "dropout", "features", x, p=0.2)
    apply(model, "dropout", "evolved.dropout_0", x, p=0.0)
    assert model.evolved.dropout_0.p == 0.0
    refused = evolve.mutate(model, "dropout", site="evolved", example_inputs=x)
    assert refused.status == "not_applicable"


# deepen


@pytest.mark.parametrize(
    ("block", "shapes"),
    [
        ("basic", [(8, 8, 3, 1), (8, 8, 3, 1)]),
        ("bottleneck", [(8, 2, 1, 1), (2, 2, 3, 1), (2, 8, 1, 1)]),
        ("depthwise", [(8, 8, 3, 8), (8, 8, 1, 1)]),
        ("inverted", [(8, 32, 1, 1), (32, 32, 3, 32), (32, 8, 1, 1)]),
    ],
)
def test_deepen_builds_the_block_that_is_named(block, shapes):
    model = cnn()
    bare = model[0](IMAGES)
    apply(model, "deepen", "0", IMAGES, block=block)
    found = awake(model).evolved.deepen_0
    convs = [module for module in found.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.groups) for c in convs] == shapes
    y = bare
    for number, conv in enumerate(convs, 1):
        norm = found.get_submodule(f"norm{number}")
        y = F.conv2d(y, conv.weight, padding=conv.kernel_size[0] // 2, groups=conv.groups)
        y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        y = F.relu(y) if number < len(convs) else y
    assert torch.allclose(model[0](IMAGES), bare + y, atol=1e-4)


def test_deepen_suits_what_stands_there():
    def kind(build, site, x):
        return apply(build(), "deepen", site, x).record.plan["block"]

    assert kind(cnn, "0", IMAGES) == "basic"
    assert kind(ZOO["depthwise"].build, "depthwise", ZOO["depthwise"].inputs()) == "inverted"
    assert kind(tokens, "0", TOKENS) == "mlp"
    assert kind(ZOO["transformer"].build, "block", ZOO["transformer"].inputs()) == "transformer"
    model = ZOO["normalised"].build()
    apply(model, "deepen", "features", ZOO["normalised"].inputs())
    assert isinstance(model.evolved.deepen_0.norm1, nn.GroupNorm)  # where BatchNorm is not the custom
    flat = nn.Sequential(nn.Linear(6, 8))
    refused = evolve.mutate(flat, "deepen", site="0", block="transformer", example_inputs=torch.randn(4, 6))
    assert "more than one token" in refused.message


# remove


def test_an_identity_is_removed_without_a_trace():
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    before, structure = fingerprint(model, optimizer), repr(model)
    for operator, site in (("deepen", "0"), ("branch", "1"), ("attention", "0"), ("swap", "1"), ("residual", "0:2")):
        result = evolve.mutate(model, operator, site=site, optimizer=optimizer, example_inputs=IMAGES)
        assert result, result.message
    blocks = [name for name in evolve.sites(model, "remove", example_inputs=IMAGES) if name.startswith("evolved")]
    assert len(blocks) == 5
    for name in blocks:
        result = evolve.mutate(
            model, "remove", site=name, optimizer=optimizer, example_inputs=IMAGES, preserves="exact"
        )
        assert result, result.message
        assert result.record.max_abs_diff == 0.0
    assert not hasattr(model, "evolved")
    assert repr(model) == structure
    assert fingerprint(model, optimizer) == before


def test_what_is_no_identity_any_more_goes_only_if_told():
    model = cnn()
    apply(model, "deepen", "0", IMAGES)
    optimizer = torch.optim.Adam(model.parameters())
    awake(model)(IMAGES).sum().backward()
    optimizer.step()
    before = fingerprint(model, optimizer)
    block = set(model.evolved.parameters())
    there = {"site": "evolved.deepen_0", "optimizer": optimizer, "example_inputs": IMAGES}
    refused = evolve.mutate(model, "remove", preserves="exact", **there)
    assert refused.status == "rejected"
    assert "declares to preserve the function (exact)" in refused.message
    assert fingerprint(model, optimizer) == before
    result = evolve.mutate(model, "remove", preserves="no", **there)
    assert result.record.max_abs_diff > 0.01
    assert not block & set(optimizer.state)
    assert not block & {p for group in optimizer.param_groups for p in group["params"]}


def test_a_layer_of_the_models_own_leaves_its_place():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    apply(model, "deepen", "1", TOKENS)  # goes with the layer it stands behind
    there = {"site": "1", "optimizer": optimizer, "example_inputs": TOKENS}
    refused = evolve.mutate(model, "remove", **there)
    assert refused.status == "rejected"
    assert "allowed is 0.1" in refused.message
    result = evolve.mutate(model, "remove", preserves="no", **there)
    assert result.record.params_after == 6 * 8 + 8 + 8 * 3 + 3
    assert list(model.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert not model[1].training  # as what stood there
    assert torch.equal(model(TOKENS), model[3](F.relu(model[0](TOKENS))))
    again = evolve.mutate(model, "remove", preserves="no", **there)
    assert "has been taken out already" in again.message


def test_a_scale_near_one_is_removed_approximately():
    model = tokens()
    with torch.no_grad():
        model[1].weight.uniform_(0.98, 1.02)
        model[0].weight /= model[0].weight.norm(dim=1, keepdim=True)
    model.insert(2, nn.LayerNorm(32))  # of what is normalised already
    result = apply(model, "remove", "2", TOKENS)
    assert 0 < result.record.max_abs_diff < 0.1
    assert result.record.preserves == "approximate"


@pytest.mark.parametrize(
    ("site", "words"),
    [("0", "maps (4, 3, 6, 6) to (4, 8, 6, 6)"), ("0:2", "no single submodule"), ("", "no single submodule")],
)
def test_remove_says_why_not(site, words):
    result = evolve.mutate(cnn(), "remove", site=site, example_inputs=IMAGES, preserves="no")
    assert result.status == "not_applicable"
    assert words in result.message


def test_a_layer_that_is_kept_in_a_plain_list_stays():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layers = nn.Linear(4, 4), [nn.Linear(4, 4)]
            self.registered = nn.ModuleList(self.layers)

        def forward(self, x):
            return self.layers[0](self.first(x))

    model, x = Listed(), torch.randn(2, 4)
    result = evolve.mutate(model, "remove", site="registered.0", example_inputs=x)
    assert result.status == "not_applicable"
    assert "'registered.0' is also kept in 'layers'" in result.message
    assert len(list(model.parameters())) == 4


def test_a_part_of_a_block_stays_in_it():
    model = cnn()
    apply(model, "deepen", "0", IMAGES)
    result = evolve.mutate(model, "remove", site="evolved.deepen_0.conv1", example_inputs=IMAGES, preserves="no")
    assert "'evolved.deepen_0' can be removed whole" in result.message


# one after the other


INSERTED = [
    (operator, options, build, x, site)
    for build, x in ((cnn, IMAGES), (tokens, TOKENS))
    for operator in ("deepen", "branch", "attention", "swap", "residual", "dropout")
    for options in ([{}] if operator in {"residual", "dropout", "swap"} else variants(operator))
    for site in ("1" if operator == "swap" else "0",)
    if evolve.mutate(build(), operator, site=site, example_inputs=x, **options)
]


def name(value):
    return "-".join(value.values()) if isinstance(value, dict) else getattr(value, "__name__", None)


@pytest.mark.parametrize(("operator", "options", "build", "x", "site"), INSERTED, ids=name)
def test_whatever_was_inserted_can_be_widened_pruned_and_removed(operator, options, build, x, site):
    model = build()
    keys = set(model.state_dict())
    apply(model, operator, site, x, **options)
    before = awake(model)(x)
    inside = [s for s in evolve.sites(model, "widen", example_inputs=x) if s.startswith("evolved")]
    hidden = options in ({"block": "bottleneck"}, {"block": "transformer"})
    assert len(inside) >= (2 if hidden else 0)
    for group in [*inside, "0"]:  # the inside of the block, then the channels that it takes and gives
        size = evolve.analyse(model, x).group(group).size
        result = apply(model, "widen", group, x, factor=1.5)
        assert torch.allclose(model(x), before, atol=2e-5), group
        added = result.record.plan["groups"][0]["steps"][0]["source"][size:]
        apply(model, "narrow", group, x, criterion="redundant", remove=len(added))
        assert torch.allclose(model(x), before, atol=2e-5), group
    for group in [*inside, "0"]:
        apply(model, "narrow", group, x, factor=0.5)
    block = f"evolved.{operator}_0"
    if operator != "dropout":
        assert set(model.state_dict()) > keys
    apply(model, "remove", block, x, preserves="no")
    assert set(model.state_dict()) == keys
    assert not hasattr(model, "evolved")


def test_the_inserted_take_insertions_too():
    model = cnn()
    apply(model, "deepen", "0", IMAGES)
    before = awake(model)(IMAGES)
    apply(model, "kernel", "evolved.deepen_0.conv2", IMAGES)
    apply(model, "swap", "evolved.deepen_0.norm1", IMAGES)
    apply(model, "deepen", "evolved.deepen_0.conv1", IMAGES)
    assert torch.allclose(model(IMAGES), before, atol=1e-5)
    assert model.evolved.deepen_0.conv2.kernel_size == (5, 5)
