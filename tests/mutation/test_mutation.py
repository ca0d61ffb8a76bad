"""`mutate`, the front door: the residual shortcut in simple_cnn, answers, limits, records, replay, optimizers."""

import json
import re

import pytest
import torch
from helpers.fingerprints import fingerprint
from torch import nn
from torch.nn import functional as F

import evolve
from evolve.errors import EvolveError, MutationError, UnknownNameError
from evolve.lineage import Record
from evolve.operators import operators
from evolve.surgery.optimizer import Carrier
from evolve.surgery.optimizer.faults import counts_of, optimizer_faults

BEFORE, AFTER = 2_193_674, 2_194_442


def small():
    """A small CNN: features and classifier, with BatchNorm and dropout."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(32, 5))
    return nn.Sequential(features, classifier)


def train_step(model, optimizer, x=None, classes=5):
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) if x is None else x
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), torch.arange(len(x)) % classes)
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def outputs(model, x):
    """Outputs in eval and in train mode, dropout seeded, BatchNorm statistics put back."""
    kept = {key: buffer.clone() for key, buffer in model.named_buffers()}
    was, found = model.training, []
    for training in (False, True):
        model.train(training)
        torch.manual_seed(7)
        found.append(model(x))
    model.train(was)
    for key, buffer in model.named_buffers():
        if key in kept:
            buffer.copy_(kept[key])
    return found


# The shortcut over simple_cnn's features.


def test_the_shortcut_over_simple_cnn():
    torch.manual_seed(0)
    model = evolve.build_model("simple_cnn", num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    assert sum(p.numel() for p in model.parameters()) == BEFORE
    four, one = torch.randn(4, 3, 32, 32), torch.randn(1, 3, 32, 32)
    train_step(model, optimizer, four, classes=10)
    momentum = {p: optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()}
    old = set(model.parameters())
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = outputs(model, four)
    model.eval()
    before_one = model(one)
    model.train()

    answer = evolve.mutate(model, "residual", site="features", optimizer=optimizer)
    ok, message = answer

    assert ok is True
    assert "3→128" in message
    assert "stride 4" in message
    assert "+768" in message
    assert sum(p.numel() for p in model.parameters()) == AFTER
    projection = model.evolved.residual_0
    assert (projection.conv.in_channels, projection.conv.out_channels, projection.conv.stride) == (3, 128, (4, 4))
    after = outputs(model, four)
    assert [tuple(t.shape) for t in after] == [(4, 10), (4, 10)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    model.eval()
    assert model(one).shape == (1, 10)
    assert torch.equal(model(one), before_one)
    model.train()
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters() if n in weights)
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], momentum[p]) for p in old)
    record = answer.record
    assert (record.params_before, record.params_after, record.max_abs_diff) == (BEFORE, AFTER, 0.0)
    # A 1x1 convolution 3→128 on 8x8 positions, two operations per multiply-accumulate.
    assert record.flops_after - record.flops_before == 2 * 3 * 128 * 64

    fresh = {name: p.detach().clone() for name, p in model.named_parameters() if p not in old}
    assert sum(p.numel() for p in fresh.values()) == 768
    losses = [train_step(model, optimizer, four, classes=10) for _ in range(4)]
    assert losses[-1] < losses[0]
    moved = {name for name in fresh if not torch.equal(model.get_parameter(name), fresh[name])}
    # BatchNorm takes the mean away again: a bias before it has no gradient but rounding.
    assert moved >= set(fresh) - {"evolved.residual_0.conv.bias"}
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_default_site_is_features_and_needs_no_inputs():
    model = evolve.build_model("simple_cnn", num_classes=10)
    result = evolve.mutate(model, "residual")
    assert (result.success, result.record.site) == (True, "features")
    assert result.record.inputs[0].shape == [2, 3, 32, 32]


@pytest.mark.parametrize(
    ("conv", "size", "stride", "shape"),
    [
        (nn.Conv2d(3, 6, 3, stride=2, padding=1), (9, 12), (2, 2), (5, 6)),
        (nn.Conv2d(3, 6, 3, stride=(1, 3)), (8, 20), (1, 3), (6, 6)),
        (nn.Conv2d(3, 6, 5), (5, 5), (5, 5), (1, 1)),
        (nn.Conv2d(3, 6, 3, stride=2), (15, 16), (2, 2), (7, 7)),
        (nn.ConvTranspose2d(3, 6, 2, stride=2), (4, 5), (1, 1), (8, 10)),
        (nn.Conv1d(3, 6, 4, stride=4), (18,), (5,), (4,)),
        (nn.Conv3d(3, 6, 3, stride=(1, 2, 2)), (4, 9, 10), (2, 2, 3), (2, 4, 4)),
    ],
)
def test_strides_are_settled_axis_by_axis(conv, size, stride, shape):
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(6 * torch.Size(shape).numel(), 2))
    x = torch.randn(2, 3, *size)
    assert model[0](x).shape[2:] == shape
    before = outputs(model, x)
    result = evolve.mutate(model, "residual", site="0", example_inputs=x, init="random")
    assert result.success, result.message
    assert tuple(result.record.plan["stride"]) == stride
    changed = outputs(model, x)
    assert changed[0].shape == (2, 2)
    assert not torch.equal(changed[0], before[0])


def test_linear_sites_take_a_linear_projection_and_equal_shapes_a_gate():
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9))
    x = torch.randn(4, 7, 6)
    before = outputs(model, x)
    assert evolve.mutate(model, "residual", site="0", example_inputs=x).record.params_after == 63 + 90 + 63
    assert evolve.mutate(model, "residual", site="2", example_inputs=x).record.params_after == 63 + 90 + 63 + 1
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(model, x), strict=True))
    assert type(model.evolved.residual_0).__name__ == "LinearProjection"
    assert model.evolved.residual_1.gate.item() == 0.0


def test_identity_init_adds_the_input():
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU())
    x = torch.randn(3, 5)
    expected = F.relu(model[0](x) + x)
    result = evolve.mutate(model, "residual", site="0", example_inputs=x, init="identity")
    assert result.success
    assert result.record.preserves == "no"
    assert torch.equal(model(x), expected)


def test_deepen_is_exact_and_trains():
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.randn(4, 3, 8, 8)
    before = outputs(model, x)
    result = evolve.mutate(model, "deepen", site="0", optimizer=optimizer, example_inputs=x)
    assert result.success
    assert result.record.params_after - result.record.params_before == 2 * 8 * 8 * 9 + 4 * 8
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(model, x), strict=True))
    for _ in range(3):
        train_step(model, optimizer)
    assert all(float(p.grad.abs().sum()) > 0 for p in model.evolved.parameters())
    assert not torch.equal(outputs(model, x)[0], before[0])


# Answers.


@pytest.fixture
def plugin():
    """Registers function operators for one test."""
    names = []

    def register(name, function, preserves="exact"):
        names.append(name)
        evolve.operator(name, preserves=preserves)(function)

    yield register
    for name in names:
        operators.unregister(name)


def _declines(model, site, context):
    model.get_submodule(site).weight.data.zero_()
    return False, "not today"


def _breaks(model, site, context):
    model.get_submodule(site).weight.data.zero_()
    raise ZeroDivisionError("on purpose")


def _lies(model, site, context):
    model.get_submodule(site).weight.data.mul_(2)
    return True, "the same as before"


def _reshapes(model, site, context):
    model[1][3] = nn.Linear(32, 6)
    return True, "six classes"


def _unreachable(model, site, context):
    model[0].register_parameter("spare", nn.Parameter(torch.zeros(2)))
    return True, "a parameter that nothing uses"


ANSWERS = {
    "not_applicable": (_declines, "exact", "not today"),
    "failed": (_breaks, "exact", "ZeroDivisionError: on purpose"),
    "rejected": (_lies, "exact", "declares to preserve"),
    "rejected shape": (_reshapes, "exact", r"\(4, 5\).*\(4, 6\)"),
    "rejected gradient": (_unreachable, "exact", "no gradient reaches the new parameter '0.spare'"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_refusals_say_why_and_leave_no_trace(plugin, case):
    function, preserves, pattern = ANSWERS[case]
    plugin("tried", function, preserves)
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    train_step(model, optimizer)
    before = fingerprint(model, optimizer)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    result = evolve.mutate(model, "tried", site="0.0", optimizer=optimizer, example_inputs=x, seed=1)
    assert fingerprint(model, optimizer) == before
    ok, message = result
    assert (ok, bool(result), result.success) == (False, False, False)
    assert result.status == case.split()[0]
    assert message == result.message == result.record.message
    assert re.search(pattern, message)
    assert (result.record.traceback is not None) == (result.status == "failed")
    assert result.record.params_after == result.record.params_before


@pytest.mark.parametrize(
    ("case", "error"), [("not_applicable", MutationError), ("rejected", MutationError), ("failed", ZeroDivisionError)]
)
def test_strict_raises_and_leaves_no_trace(plugin, case, error):
    function, preserves, pattern = ANSWERS[case]
    plugin("tried", function, preserves)
    model = small()
    before = fingerprint(model)
    with pytest.raises(error, match=pattern.removeprefix("ZeroDivisionError: ")):
        evolve.mutate(model, "tried", site="0.0", strict=True)
    assert fingerprint(model) == before


def test_an_operator_that_declares_nothing_may_change_the_output(plugin):
    plugin("six", _reshapes, "no")
    model = small()
    result = evolve.mutate(model, "six", site="1.3")
    assert result.success, result.message
    assert result.record.max_abs_diff is None
    assert "cannot be compared" in result.message
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 6)
    assert evolve.mutate(small(), "residual", site="0", init="random").record.max_abs_diff > 1e-4


def test_wrong_names_are_told_with_the_nearest_right_one():
    model = small()
    with pytest.raises(UnknownNameError, match="residual"):
        evolve.mutate(model, "residul")
    with pytest.raises(EvolveError, match="init"):
        evolve.mutate(model, "residual", site="0", innit="zero")
    with pytest.raises(EvolveError, match="'sideways'"):
        evolve.mutate(model, "residual", site="0", init="sideways")
    named = evolve.build_model("simple_cnn", num_classes=10)
    result = evolve.mutate(named, "residual", site="featurs")
    assert result.status == "not_applicable"
    assert "'features'" in result.message


def test_a_second_shortcut_over_the_same_site_is_refused():
    model = small()
    assert evolve.mutate(model, "residual", site="0")
    before = fingerprint(model)
    result = evolve.mutate(model, "residual", site="0")
    assert result.status == "not_applicable"
    assert "already" in result.message
    assert fingerprint(model) == before
    assert evolve.mutate(model, "residual", site="0:1")


def test_sites_lists_where_an_operator_applies_and_touches_nothing():
    model = small()
    before = fingerprint(model)
    places = evolve.sites(model, "residual", example_inputs=torch.zeros(1, 3, 8, 8))
    assert places == ["0", "0.0", "0.1", "1.3"]  # the classifier flattens: a shortcut cannot span it
    assert fingerprint(model) == before
    assert all(evolve.mutate(small(), "residual", site=place) for place in places)


# Limits.


def test_limits_refuse_with_the_figure():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = fingerprint(model, optimizer)
    count = sum(p.numel() for p in model.parameters())
    x = torch.zeros(2, 3, 8, 8)
    flops = evolve.mutate(small(), "residual", site="0", example_inputs=x).record.flops_after

    def tried(**limits):
        return evolve.mutate(
            model, "residual", site="0", optimizer=optimizer, example_inputs=x, limits=evolve.Limits(**limits)
        )

    bytes_made = evolve.analyse(_with_shortcut(), x).costs[""].activation_bytes
    for limits, figure in (
        (
            {"params": count + 47},
            f"limit of {count + 47:,} parameters would be passed: the mutated model has {count + 48:,}.",
        ),
        ({"flops": flops - 1}, f"{flops:,}."),
        ({"activation_bytes": bytes_made - 1}, f"{bytes_made:,}."),
        ({"latency_ms": 1e-4}, "The limit of 0.0001 milliseconds would be passed: the mutated model has "),
    ):
        result = tried(**limits)
        assert result.status == "rejected"
        assert figure in result.message
        assert fingerprint(model, optimizer) == before
    assert tried(params=count + 48, flops=flops, activation_bytes=bytes_made, latency_ms=60_000).success


def _with_shortcut():
    model = small()
    assert evolve.mutate(model, "residual", site="0")
    return model


def test_a_limit_on_activations_is_checked_before_the_model_runs(monkeypatch):
    def never(*args):
        raise AssertionError("the changed model was run")

    monkeypatch.setattr("evolve.mutation.verify.Verification.run_again", never)
    answer = evolve.mutate(small(), "residual", limits=evolve.Limits(activation_bytes=10))
    assert answer.status == "rejected"
    assert "limit of 10 bytes of activations would be passed" in answer.message


def test_a_latency_is_measured_on_the_changed_model(monkeypatch):
    seen = []

    def measured(model, inputs, *, modules):
        seen.append((sum(p.numel() for p in model.parameters()), len(inputs.tensors[0]), modules))
        return {"": 0.0042}

    monkeypatch.setattr("evolve.mutation.limits.latency", measured)
    model = small()
    x = torch.zeros(5, 3, 8, 8)
    answer = evolve.mutate(model, "residual", example_inputs=x, limits=evolve.Limits(latency_ms=4.1))
    assert "limit of 4.1 milliseconds would be passed: the mutated model has 4.2." in answer.message
    assert evolve.mutate(model, "residual", example_inputs=x, limits=evolve.Limits(latency_ms=4.2))
    assert seen == [(answer.record.params_before + 48, 5, False)] * 2


def test_limits_that_need_a_probe_batch_say_so():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))

        def forward(self, x, y):
            return self.body(x + y)

    for limit in ("flops", "activation_bytes", "latency_ms"):
        answer = evolve.mutate(Odd(), "residual", site="body.1", limits=evolve.Limits(**{limit: 1}))
        assert answer.status == "rejected", answer.message
        assert f"The limit on {limit} cannot be checked without a probe batch" in answer.message


# Records and replay.


def test_records_rebuild_the_model_on_a_fresh_base():
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    plans = [
        ("residual", "0", {}),
        ("deepen", "0.0", {"ratio": 0.5}),
        ("residual", "0.0:2", {"init": "random"}),
        ("residual", "nowhere", {}),
        ("deepen", "1.3", {}),
    ]
    records = []
    for operator, site, options in plans:
        result = evolve.mutate(model, operator, site=site, optimizer=optimizer, seed=len(records), **options)
        records.append(Record.model_validate_json(result.record.model_dump_json()))
        train_step(model, optimizer)
    assert [r.status for r in records] == ["applied", "applied", "applied", "not_applicable", "applied"]

    rebuilt = small()
    evolve.replay(rebuilt, records)
    assert [n for n, _ in rebuilt.named_modules()] == [n for n, _ in model.named_modules()]
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(4, 3, 8, 8)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, x), outputs(rebuilt, x), strict=True))


def test_replay_draws_the_same_weights_and_leaves_the_generators_alone():
    model = small()
    record = evolve.mutate(model, "residual", site="0", init="random", seed=11).record
    rebuilt = small()
    state = torch.get_rng_state()
    evolve.replay(rebuilt, [record])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(rebuilt.evolved.residual_0.conv.weight, model.evolved.residual_0.conv.weight)


def test_replay_on_another_base_is_refused():
    record = evolve.mutate(small(), "residual", site="0").record
    with pytest.raises(EvolveError, match="does not fit this model"):
        evolve.replay(nn.Linear(2, 2), [record])
    with pytest.raises(EvolveError, match="parameters; it has"):
        evolve.replay(nn.Sequential(nn.Conv2d(3, 8, 3)), [record])


def test_the_record_says_what_happened():
    model = small()
    x = torch.zeros(4, 3, 8, 8)
    note = {"epoch": 2, "step": 30, "metrics_before": {"accuracy": 0.5}, "reason": "plateau"}
    record = evolve.mutate(model, "deepen", site="0", example_inputs=x, seed=5, note=note, ratio=2.0).record
    assert json.loads(record.model_dump_json())["options"] == {"block": "auto", "ratio": 2.0, "kernel": 3}
    assert (record.epoch, record.step, record.metrics_before, record.reason) == (2, 30, {"accuracy": 0.5}, "plateau")
    assert (record.operator, record.site, record.seed, record.status) == ("deepen", "0", 5, "applied")
    assert (record.inputs[0].shape, record.inputs[0].dtype) == ([4, 3, 8, 8], "float32")
    assert record.plan == {"block": "basic", "dims": 2, "channels": 8, "hidden": 16, "batch_norm": True}
    assert record.memory_before > 0
    assert record.memory_after > 0
    assert 0 < record.seconds < 60


# Seeds.


def test_the_seed_settles_what_is_drawn_and_the_generators_stay():
    weights = []
    for seed, noise in ((3, 0), (3, 1), (4, 0)):
        model = small()
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        assert evolve.mutate(model, "residual", site="0", init="random", seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(model.evolved.residual_0.conv.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_without_a_seed_it_comes_from_torchs_generator():
    seeds = []
    for noise in (0, 0, 1):
        model = small()
        torch.manual_seed(noise)
        seeds.append(evolve.mutate(model, "residual", site="0").record.seed)
    assert seeds[0] == seeds[1] != seeds[2]


# Optimizers.

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.5),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("operator", ["residual", "deepen"])
def test_optimizers_keep_their_state_and_train_the_new(name, operator):
    model = small()
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(2):
        train_step(model, optimizer)
    old = list(model.parameters())
    state = {p: {k: torch.as_tensor(v).clone() for k, v in optimizer.state[p].items() if v is not None} for p in old}
    result = evolve.mutate(model, operator, site="0", optimizer=optimizer)
    assert result.success, result.message
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))
    for p in old:
        assert all(torch.equal(torch.as_tensor(optimizer.state[p][k]), v) for k, v in state[p].items())
    fresh = {n: p.detach().clone() for n, p in model.evolved.named_parameters()}
    for _ in range(3):
        train_step(model, optimizer)
    moved = {n for n, p in model.evolved.named_parameters() if not torch.equal(p, fresh[n])}
    assert moved >= {n for n in fresh if n != "residual_0.conv.bias"}
    again = OPTIMIZERS[name](model.parameters())
    again.load_state_dict(optimizer.state_dict())


def test_new_parameters_join_the_group_of_their_neighbours():
    model = small()
    groups = [
        {"params": [p for p in model[0].parameters() if p.dim() > 1], "lr": 0.1, "weight_decay": 0.1},
        {"params": [p for p in model[0].parameters() if p.dim() == 1], "lr": 0.2, "weight_decay": 0.0},
        {"params": list(model[1].parameters()), "lr": 0.3},
    ]
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    assert evolve.mutate(model, "residual", site="0", optimizer=optimizer)
    assert evolve.mutate(model, "deepen", site="1.3", optimizer=optimizer)
    names = {id(p): n for n, p in model.named_parameters()}
    joined = [[n for p in g["params"] if (n := names[id(p)]).startswith("evolved")] for g in optimizer.param_groups]
    assert joined[0] == ["evolved.residual_0.conv.weight"]
    assert joined[1] == [f"evolved.residual_0.{n}" for n in ("conv.bias", "norm.weight", "norm.bias")]
    assert len(joined[2]) == 6
    train_step(model, optimizer)
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.1, 0.15]


class MatrixAndScalar(torch.optim.Optimizer):
    """As users write it: groups for matrices, which are made orthogonal, and groups for the rest, in one optimizer."""

    def __init__(self, groups):
        super().__init__(groups, {"lr": 0.01})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                step = torch.linalg.qr(p.grad)[0] if group["use_muon"] else p.grad.sign()
                p.sub_(step, alpha=group["lr"])


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.LayerNorm(8))


def test_vectors_do_not_join_a_group_that_takes_matrices_alone():
    model = perceptron()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = list(model[3].parameters())
    optimizer = MatrixAndScalar([{"params": matrices, "use_muon": True}, {"params": vectors, "use_muon": False}])
    assert evolve.mutate(model, "residual", site="2", optimizer=optimizer)
    assert evolve.mutate(model, "branch", site="0", optimizer=optimizer)
    assert {p.dim() for p in optimizer.param_groups[0]["params"]} == {2}
    assert len(optimizer.param_groups[0]["params"]) > len(matrices)
    assert {p.dim() for p in optimizer.param_groups[1]["params"]} <= {0, 1}
    assert len(optimizer.param_groups[1]["params"]) > len(vectors)
    model(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_where_matrices_alone_can_be_stepped_vectors_are_refused():
    model = perceptron()
    optimizer = torch.optim.Muon([p for p in model.parameters() if p.dim() == 2])
    model(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()
    before = fingerprint(model, optimizer)
    result = evolve.mutate(model, "residual", site="2", optimizer=optimizer)
    assert result.status == "not_applicable"
    assert "'evolved.residual_0.gate'" in result.message
    assert "Muon" in result.message
    assert "matrices" in result.message
    assert fingerprint(model, optimizer) == before


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_what_another_optimizer_may_hold_is_told():
    model = perceptron()
    muon = torch.optim.Muon([p for p in model.parameters() if p.dim() == 2])
    adam = torch.optim.AdamW(model[3].parameters())
    result = evolve.mutate(model, "widen", site="0", optimizer=adam)
    assert result
    assert "2 parameters that changed are not in this AdamW ('0.weight', '2.weight')" in result.message
    model = perceptron()
    muon = torch.optim.Muon([p for p in model.parameters() if p.dim() == 2])
    model(torch.randn(4, 6)).square().sum().backward()
    muon.step()
    result = evolve.mutate(model, "widen", site="0", optimizer=muon)
    assert result
    assert "not in this" not in result.message
    model(torch.randn(4, 6)).square().sum().backward()
    muon.step()


def test_named_parameters_keep_their_names_in_the_optimizer():
    model = small()
    optimizer = torch.optim.Adam(model.named_parameters(), lr=1e-2)
    assert evolve.mutate(model, "residual", site="0", optimizer=optimizer)
    group = optimizer.param_groups[0]
    assert [dict(model.named_parameters())[n] is p for n, p in zip(group["param_names"], group["params"], strict=True)]
    assert group["param_names"][-1] == "evolved.residual_0.norm.bias"
    assert len(group["param_names"]) == len(group["params"])


def test_frozen_parameters_stay_out_and_the_new_ones_train():
    model = small()
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    train_step(model, optimizer)
    frozen = [p.detach().clone() for p in model[0].parameters()]
    assert evolve.mutate(model, "residual", site="0", optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in model[0].parameters()}
    assert {id(p) for p in model.evolved.parameters()} <= held
    assert not any(p.requires_grad for p in model[0].parameters())
    for _ in range(2):
        train_step(model, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(model[0].parameters(), frozen, strict=True))
    assert model.evolved.residual_0.norm.weight.abs().sum().item() > 0


def test_lbfgs_begins_its_history_anew():
    model = small()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3, line_search_fn="strong_wolfe")
    x, y = torch.rand(8, 3, 8, 8), torch.randint(5, (8,))

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    result = evolve.mutate(model, "residual", site="0", optimizer=optimizer)
    assert result.success, result.message
    assert "The history of LBFGS begins anew." in result.message
    fresh = {n: p.detach().clone() for n, p in model.evolved.named_parameters()}
    before = float(closure())
    for _ in range(3):
        optimizer.step(closure)
    assert float(closure()) < before
    assert any(not torch.equal(p, fresh[n]) for n, p in model.evolved.named_parameters())


def test_moments_follow_a_parameter_that_grows(plugin):
    def widen(model, site, context):
        old = model[1][3]
        model[1][3] = wider = nn.Linear(32, 7)
        with torch.no_grad():
            wider.weight[:5], wider.bias[:5] = old.weight, old.bias
        return True, "two more classes"

    plugin("wider_layer", widen, "no")
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    train_step(model, optimizer)
    old = optimizer.state[model[1][3].weight]["exp_avg"].clone()
    assert evolve.mutate(model, "wider_layer", site="1.3", optimizer=optimizer)
    carried = optimizer.state[model[1][3].weight]["exp_avg"]
    assert carried.shape == (7, 32)
    assert torch.equal(carried[:5], old)
    assert float(carried[5:].abs().sum()) == 0
    assert len(optimizer.state) == len(list(model.parameters())) == len(optimizer.param_groups[0]["params"])
    train_step(model, optimizer, classes=7)


def test_faults_between_a_model_and_its_optimizer_are_named():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    carrier = Carrier(model, optimizer)
    counts = counts_of([optimizer])

    def faults():
        return optimizer_faults(model, [optimizer], carrier.before, counts)

    assert faults() == []
    removed = optimizer.param_groups[0]["params"].pop()
    assert faults() == ["'1.3.bias' is in the optimizer 0 times instead of once"]
    optimizer.param_groups[0]["params"] += [removed, removed]
    assert "2 times" in faults()[0]
    optimizer.param_groups[0]["params"].pop()
    model[1][3] = nn.Identity()
    assert "still holds 2 parameters" in faults()[0]
    carrier.carry(model, "1")
    assert faults() == []
