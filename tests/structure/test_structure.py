"""The algebra of axes, the groups and costs of models small enough to be worked out by hand, and what pins an axis."""

import functools
import gc
import weakref

import pytest
import torch
from helpers.fingerprints import fingerprint
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

import evolve
from evolve.errors import NotApplicable
from evolve.structure.axes.algebra import Axis, MismatchError, cut, factors, product, reshape, total, unify
from evolve.structure.tracing.flops import flops_if
from evolve.surgery.layout import Move, holds, layout_of, length, members, moved, positions
from evolve.testing import ZOO


def sizes(axis):
    """The make-up of an axis as nested lists of sizes."""
    return axis.resolved().size if axis.kind == "plain" else [axis.kind, *(sizes(part) for part in axis.parts)]


def test_products_and_sums_are_flat_and_leave_out_what_is_empty():
    a, b, c = Axis(2), Axis(3), Axis(4)
    assert product([a]) is a
    assert sizes(product([product([a, Axis(1), b]), c])) == ["product", 2, 3, 4]
    assert sizes(total([a, total([b, Axis(0)]), c])) == ["sum", 2, 3, 4]
    assert (product([a, b, c]).size, total([a, b, c]).size) == (24, 9)
    assert list(product([a, total([b, a])]).leaves()) == [a, b, a]


def test_one_and_the_same_axis():
    a, b, c = Axis(6), Axis(6), product([Axis(2), Axis(3)])
    a.mark("fixed", "first")
    a.mark("fixed", "second")
    b.mark("statistic", "a mean")
    unify(a, b)
    assert a.resolved() is b.resolved()
    assert a.resolved().marks == {"fixed": "first", "statistic": "a mean"}
    unify(b, c)  # a plain axis that turns out to have parts hands on what is known of it
    assert sizes(a) == ["product", 2, 3]
    assert [leaf.marks["fixed"] for leaf in a.leaves()] == ["first", "first"]
    with pytest.raises(MismatchError, match="sizes 6 and 5"):
        unify(a, Axis(5))
    with pytest.raises(MismatchError, match="sizes 5 and 6"):
        unify(Axis(5), a)


def test_products_meet_at_common_factors():
    one, other = product([Axis(2), Axis(6)]), product([Axis(4), Axis(3)])
    unify(one, other)
    assert sizes(one) == sizes(other) == ["product", 2, 2, 3]
    assert list(one.leaves()) == list(other.leaves())
    with pytest.raises(MismatchError, match="3 into 2"):
        unify(product([Axis(2), Axis(9)]), product([Axis(3), Axis(6)]))


def test_sums_meet_at_common_cuts():
    one, other = total([Axis(2), Axis(6)]), total([Axis(5), Axis(3)])
    unify(one, other)
    assert sizes(one) == sizes(other) == ["sum", 2, 3, 3]
    assert list(one.leaves()) == list(other.leaves())


def test_equal_summands_are_a_product():
    parts, whole = [Axis(4) for _ in range(3)], product([Axis(3), Axis(4)])
    unify(total(parts), whole)
    assert len({part.resolved() for part in parts}) == 1
    assert list(whole.leaves())[1] is parts[0].resolved()


def test_cuts():
    plain = Axis(10)
    first, rest = cut(plain, 4)
    assert sizes(plain) == ["sum", 4, 6]
    assert cut(plain, 4) == (first, rest)
    whole = product([Axis(4), Axis(3)])
    assert [sizes(part) for part in cut(whole, 6)] == [["product", 2, 3], ["product", 2, 3]]
    assert [part.size for part in cut(total([Axis(3), Axis(5)]), 6)] == [6, 2]
    with pytest.raises(MismatchError, match="a cut at 5 of 12"):
        cut(product([Axis(4), Axis(3)]), 5)
    with pytest.raises(MismatchError, match="a cut at 10 of 10"):
        cut(Axis(10), 10)


def test_factors():
    axis = Axis(12)
    assert [part.size for part in factors(axis, 3)] == [3, 4]
    assert sizes(axis) == ["product", 3, 4]
    assert [sizes(part) for part in factors(axis, 6)] == [["product", 3, 2], 2]
    assert factors(axis, 12)[0] is axis.resolved()
    parts = [Axis(4), Axis(4)]
    outer, inner = factors(total(parts), 2)
    assert "concatenated" in outer.marks["fixed"]
    assert inner.resolved() is parts[0].resolved() is parts[1].resolved()
    with pytest.raises(MismatchError, match="12 into 5"):
        factors(axis, 5)
    with pytest.raises(MismatchError, match="unequal parts"):
        factors(total([Axis(2), Axis(4)]), 3)


def test_a_statistic_over_several_parts_of_a_sum_mixes_them():
    whole = total([Axis(3), Axis(5)])
    whole.mark("statistic", "a mean")
    assert [set(leaf.marks) for leaf in whole.leaves()] == [{"mixed"}, {"mixed"}]


def test_reshape_keeps_an_axis_the_object_it_is():
    n, channels, height, width = Axis(2), Axis(8), Axis(4), Axis(4)
    flat = reshape([n, channels, height, width], [2, 128])
    assert flat[0] is n
    back = reshape(flat, [2, 8, 16])
    assert back[1] is channels
    with pytest.raises(MismatchError):
        reshape([Axis(2), Axis(9)], [3, 6])


DIVISIONS = [([2, 3, 4], [6, 4]), ([6, 4], [2, 12]), ([24], [4, 3, 2]), ([4, 6], [4, 2, 3]), ([2, 1, 12], [2, 4, 3])]


@pytest.mark.parametrize(("old", "new"), DIVISIONS)
def test_reshape_and_its_sizes_are_those_of_tensors(old, new):
    axes = [Axis(size) for size in old]
    found = reshape(axes, new)
    assert [axis.size for axis in found] == new
    for leaf in {leaf for axis in found for leaf in axis.leaves()}:  # any part twice as large
        grown = [axis.resized({leaf: 2 * leaf.size}) for axis in axes]
        assert torch.zeros(grown).reshape([axis.resized({leaf: 2 * leaf.size}) for axis in found]).numel() == 2 * 24


LAYOUTS = st.recursive(
    st.sampled_from(["a", "b", 1, 2, 3]),
    lambda parts: st.lists(parts, min_size=2, max_size=3).flatmap(
        lambda found: st.sampled_from([["*", *found], ["+", *found]])
    ),
    max_leaves=5,
)
GROUPS = {"a": 3, "b": 2}


def squared(layout):
    """Whether group a is multiplied with itself, where no position belongs to one member alone."""
    if isinstance(layout, int | str):
        return False
    twice = layout[0] == "*" and sum(holds(part, "a") for part in layout[1:]) > 1
    return twice or any(squared(part) for part in layout[1:])


def spelled(layout, start):
    """The positions of a layout, one tensor of member numbers per group (-1 outside): by building it."""
    if isinstance(layout, int | str):
        count = length(layout, GROUPS)
        return torch.arange(count) if layout == start else torch.full((count,), -1)
    parts = [spelled(part, start) for part in layout[1:]]
    if layout[0] == "+":
        return torch.cat(parts)
    found = parts[0]
    for part in parts[1:]:  # row-major
        found = torch.where(found[:, None] >= 0, found[:, None], part[None, :]).flatten()
    return found


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(LAYOUTS)
def test_members_lie_where_they_are_put(layout):
    assume(holds(layout, "a") and not squared(layout))
    owner = spelled(layout, "a")
    positions = members(layout, "a", GROUPS)
    expected = [(owner == member).nonzero().flatten().tolist() for member in range(3)]
    assert [sorted(row.tolist()) for row in positions] == expected


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(LAYOUTS)
def test_moves_give_as_many_positions_as_the_layout_then_has(layout):
    source = torch.tensor([0, 1, 2, 1, -1])
    move = moved(layout, GROUPS, lambda group: Move(source) if group == "a" else Move(torch.arange(2)))
    assert len(move.source) == length(layout, {"a": 5, "b": 2})
    kept = move.source[move.source >= 0]
    assert set(kept.tolist()) == set(range(length(layout, GROUPS)))  # all of the old ones are still there
    same = moved(layout, GROUPS, lambda group: Move(torch.arange(GROUPS[group])))
    assert torch.equal(same.source, torch.arange(length(layout, GROUPS)))


def test_layouts_name_groups_and_count_the_rest():
    a, b = Axis(3), Axis(2)
    axis = total([product([Axis(4), a]), Axis(5), b])
    assert layout_of(axis, {a: "a"}) == ["+", ["*", 4, "a"], 7]  # what stays is one run
    assert layout_of(b, {a: "a"}) == 2


def test_positions_of_all_axes_are_the_members_of_each():
    a, b = Axis(3), Axis(2)
    axis = total([product([Axis(4), a]), Axis(5), b, product([b, Axis(2), a])])
    found, names = positions(axis), {a: "a", b: "b"}
    for leaf, name in names.items():
        wanted = members(layout_of(axis, names), name, {"a": 3, "b": 2})
        assert torch.equal(found[leaf], wanted)


def slots(group):
    return [(slot.name, slot.axis, slot.reads) for slot in group.slots]


def changeable(name):
    analysis = evolve.analyse(ZOO[name].build(), ZOO[name].inputs())
    return {group.name: group for group in analysis.changeable}


def test_groups_of_a_chain():
    found = changeable("chain")
    assert {name: group.size for name, group in found.items()} == {"features.0": 8, "features.4": 12}
    assert slots(found["features.0"]) == [
        ("features.0.weight", 0, False),
        ("features.0.bias", 0, False),
        ("features.1.weight", 0, False),
        ("features.1.bias", 0, False),
        ("features.4.weight", 1, True),
        ("features.1.running_mean", 0, False),
        ("features.1.running_var", 0, False),
    ]
    assert slots(found["features.4"])[-1] == ("classifier.2.weight", 1, True)  # 48 inputs: 12 channels of 2 x 2
    weight = evolve.analyse(model := ZOO["chain"].build(), torch.zeros(4, 3, 8, 8)).flow.sources["classifier.2.weight"]
    assert sizes(weight[1]) == ["product", 12, 2, 2]
    assert model.training


def test_a_residual_path_ties_both_ends_and_reads_with_the_layer_between():
    (group,) = changeable("residual").values()
    assert (group.name, group.size) == ("stem", 8)
    assert ("body.0.weight", 0, False) in slots(group)
    assert ("body.0.weight", 1, True) in slots(group)
    assert [slot.name for slot in group.readers] == ["body.0.weight", "head.weight"]


def test_concatenation_and_split_keep_the_parts_apart():
    found = changeable("concatenated")
    assert {name: group.size for name, group in found.items() if "mix" not in name} == {"left": 6, "right": 4}
    assert [slot.name for slot in found["left"].readers] == ["mix.weight"]
    norm = evolve.analyse(ZOO["concatenated"].build(), torch.zeros(4, 3, 8, 8)).flow.sources["norm.weight"][0]
    assert sizes(norm) == ["sum", 6, 3, 4]


def test_a_depthwise_convolution_goes_along_and_a_grouped_one_counts_groups():
    found = changeable("depthwise")
    assert found["expand"].size == 16
    assert ("depthwise.weight", 0, False) in slots(found["expand"])
    assert ("squeeze.weight", 1, True) in slots(found["expand"])
    assert (found["stem"].size, found["stem:1"].size, found["grouped"].size) == (4, 2, 3)  # groups, in, out of each
    assert ("grouped.weight", 1, True) in slots(found["stem:1"])


def test_what_stands_between_decides_which_copies_are_exact():
    assert changeable("normalised")["features.0"].statistic == "a group norm over it"
    assert changeable("layer_normed")["stem"].statistic == "a norm over it"
    assert changeable("transformer")["block.linear1"].statistic == ""
    tied = changeable("transformer")["block.self_attn"]
    assert tied.mixed == "'embed.weight' is both read from and written with along it (tied weights)"
    heads = changeable("grouped_queries")
    assert (heads["q"].size, heads["q:1"].size) == (2, 2)  # groups of keys and values; queries of each
    assert [slot.name for slot in heads["q:1"].slots] == ["q.weight", "q.bias", "o.weight"]


@pytest.mark.parametrize(
    ("name", "group", "reason"),
    [
        ("chain", "features.0:3", "an axis of the model's input"),
        ("chain", "classifier.2", "an axis of the model's output"),
        ("chain", "features.0:1", "a spatial size"),
        ("transformer", "embed", "its positions are told apart by index"),
        ("recurrent", "rnn", "a recurrent layer"),
    ],
)
def test_pins_say_why(name, group, reason):
    analysis = evolve.analyse(ZOO[name].build(), ZOO[name].inputs())
    with pytest.raises(NotApplicable, match=f"'{group}' cannot change: {reason}"):
        analysis.group(group)


def test_a_layer_that_passes_channels_on_goes_by_the_group_that_it_passes():
    """A depthwise convolution has an axis of its own that is pinned; who names the layer means its channels."""
    analysis = evolve.analyse(ZOO["depthwise"].build(), ZOO["depthwise"].inputs())
    assert analysis.group("depthwise").name == "expand"


def test_an_unknown_group_names_the_closest():
    analysis = evolve.analyse(ZOO["chain"].build(), ZOO["chain"].inputs())
    with pytest.raises(NotApplicable, match=r"called 'featurs.0'.*features"):
        analysis.group("featurs.0")


@torch.library.custom_op("somebodys::upside_down", mutates_args=())
def upside_down(x: torch.Tensor) -> torch.Tensor:
    """An operation that nobody has a rule for."""
    return x.flip(-1)


@upside_down.register_fake
def _(x):
    return torch.empty_like(x)


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.three(F.relu(self.two(upside_down(self.one(x)))))


def test_an_operation_without_a_rule_pins_what_it_touches_and_nothing_else():
    analysis = evolve.analyse(Unknown(), torch.zeros(3, 4))
    assert analysis.flow.unknown == {"somebodys.upside_down"}
    assert [group.name for group in analysis.changeable] == ["two"]
    with pytest.raises(NotApplicable, match=r"there is no rule for somebodys\.upside_down"):
        analysis.group("one")


def test_control_flow_that_looks_at_values_is_recorded_on_real_tensors():
    def real(name):
        return [tape.real for tape in evolve.analyse(ZOO[name].build(), ZOO[name].inputs()).tapes]

    assert real("control_flow") == [True, True]
    assert real("chain") == [False]


@pytest.mark.parametrize("correction", [0, 1])
def test_an_unbiased_variance_is_not_kept_by_copies(correction):
    class Spread(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.first(x)
            return self.last(x / x.std(-1, correction=correction, keepdim=True))

    model, x = Spread(), torch.randn(2, 4)
    group = evolve.analyse(model, x).group("first")
    assert bool(group.mixed) == (correction == 1)
    assert bool(group.statistic) == (correction == 0)
    result = evolve.mutate(model, "widen", site="first", example_inputs=x)
    assert result.status == ("applied" if correction == 0 else "not_applicable")


def test_a_shuffle_of_channels_leaves_them_free():
    class Shuffle(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.side, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            kept, changed = self.first(x).chunk(2, 1)
            x = torch.cat([kept, self.side(changed)], 1)
            n, channels, height, width = x.shape
            x = x.view(n, 2, channels // 2, height, width).transpose(1, 2)
            return self.last(x.reshape(n, channels, height, width))

    model, x = Shuffle(), torch.randn(2, 3, 5, 5)
    before = model(x)
    assert evolve.analyse(model, x).group("first").size == 4
    assert evolve.mutate(model, "widen", site="first", example_inputs=x)
    assert (model.first.out_channels, model.side.in_channels, model.last.in_channels) == (16, 8, 16)
    assert torch.allclose(model(x), before, atol=1e-5)


def test_costs_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    costs = evolve.analyse(model, torch.zeros(2, 3, 4, 4)).costs
    conv, linear = 2 * 27 * 8 * 16, 2 * 128 * 5  # 2 for a multiplication and an addition
    assert costs["0"].parameters == 27 * 8 + 8
    assert (costs["0"].flops, costs["3"].flops, costs[""].flops) == (conv, linear, conv + linear)
    assert costs["0"].activation_bytes == costs["1"].activation_bytes == 4 * 8 * 16
    assert costs["2"].activation_bytes == 0  # a view
    assert costs[""].activation_bytes == 4 * (2 * 8 * 16 + 5)
    assert costs[""].parameters == 224 + 128 * 5 + 5


def test_a_module_called_twice_costs_twice_and_has_its_parameters_once():
    costs = evolve.analyse(ZOO["shared"].build(), ZOO["shared"].inputs()).costs
    assert costs["block.0"].flops == 2 * (2 * 8 * 10)
    assert costs["block.0"].parameters == 8 * 10 + 10
    assert costs[""].parameters == sum(p.numel() for p in ZOO["shared"].build().parameters())


def test_a_model_without_memory():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(100_000, 50_000), nn.GELU(), nn.Linear(50_000, 100_000))
    analysis = evolve.analyse(model, torch.empty(1, 100_000, device="meta"))
    assert [(group.name, group.size) for group in analysis.changeable] == [("0", 50_000)]
    assert analysis.costs[""].flops == 2 * 2 * 100_000 * 50_000
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


@pytest.mark.parametrize("name", ZOO)
def test_it_reads_and_leaves_no_trace(name):
    model, inputs = ZOO[name].build(), ZOO[name].inputs()
    before = fingerprint(model)
    evolve.analyse(model, inputs)
    assert fingerprint(model) == before


def test_it_is_kept_until_something_changes():
    model, x = ZOO["chain"].build(), torch.zeros(4, 3, 8, 8)
    first = evolve.analyse(model, x)
    assert evolve.analyse(model, x) is first
    assert evolve.analyse(model, torch.ones(4, 3, 8, 8)) is first  # only shapes matter

    def stale():
        nonlocal first
        known, first = first, evolve.analyse(model, x)
        return first is not known

    x = torch.zeros(2, 3, 8, 8)
    assert stale()
    assert evolve.mutate(model, "widen", site="features.0", example_inputs=x)
    assert stale()
    assert first.group("features.0").size == 16
    assert evolve.mutate(model, "deepen", site="features.4", example_inputs=x)
    assert stale()
    model.features[4] = nn.Conv2d(16, 12, 3)
    assert stale()
    assert not stale()


def test_a_shared_layer_in_another_place_is_a_change():
    layer, other = nn.Linear(8, 8), nn.Linear(8, 8)
    model, x = nn.Sequential(layer), torch.zeros(2, 8)
    assert evolve.analyse(model, x).costs[""].flops == 2 * 64
    model.append(layer)
    assert evolve.analyse(model, x).costs[""].flops == 2 * 2 * 64
    model.append(other)
    assert evolve.analyse(model, x).costs["2"].flops == 2 * 64
    model[1] = other
    assert evolve.analyse(model, x).costs["1"].flops == 2 * 2 * 64


def test_a_model_that_does_not_run_is_told():
    with pytest.raises(NotApplicable, match=r"fails on inputs of shape \(4, 2, 8, 8\)"):
        evolve.analyse(ZOO["chain"].build(), torch.zeros(4, 2, 8, 8))
    with pytest.raises(NotApplicable, match="pass example_inputs"):
        evolve.analyse(nn.Module())
    lazy = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(NotApplicable, match=r"'2.weight' is lazy .* Run the model once first"):
        evolve.analyse(lazy)
    assert nn.parameter.is_lazy(lazy[2].weight)


def test_it_does_not_keep_a_model_alive():
    model = ZOO["chain"].build()
    evolve.analyse(model, torch.zeros(4, 3, 8, 8))
    known = weakref.ref(model)
    del model
    gc.collect()
    assert known() is None


class Asks(nn.Module):
    """A chain whose forward reads one thing more."""

    def __init__(self, reads=lambda model, x: x):
        super().__init__()
        self.reads, self.width = reads, 6
        self.one, self.norm, self.two = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = torch.relu(self.norm(self.one(x)))
        return self.two(self.reads(self, x)).flatten(1)


@pytest.mark.parametrize(
    ("reads", "asks_size", "asks_mode"),
    [
        (lambda model, x: x, False, False),
        (lambda model, x: torch.cat([x, x], 1)[:, :6], True, False),
        (lambda model, x: x.view(len(x), -1, *x.shape[2:]), True, False),
        (lambda model, x: x if x.shape[1] == 6 else x * 0, True, False),
        (lambda model, x: x if model.width > 5 else x * 0, True, False),
        (lambda model, x: x + x if model.training else x, False, True),
        (lambda model, x: nn.functional.dropout(x, 0.5, model.training), False, True),
    ],
)
def test_what_a_forward_reads_is_noted(reads, asks_size, asks_mode):
    analysis = evolve.analyse(Asks(reads), torch.randn(4, 3, 5, 5))
    assert (analysis.asks_size, analysis.asks_mode) == (asks_size, asks_mode)
    assert [tape.training for tape in analysis.tapes] == ([False, True] if asks_mode else [False])


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_attention_differs_in_its_modes_by_dropout_alone(rate):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.attention = nn.Linear(3, 8), nn.MultiheadAttention(8, 2, dropout=rate, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            x = self.embed(x)
            return self.head(x + self.attention(x, x, x)[0])

    model, x = Attends(), torch.randn(2, 5, 3)
    analysis = evolve.analyse(model, x)
    assert [tape.training for tape in analysis.tapes] == [False]
    assert analysis.drops == (rate > 0)
    expected = model.eval()(x)
    result = evolve.mutate(model, "widen", site="*", example_inputs=x)
    assert result.success, result.message
    torch.testing.assert_close(model.eval()(x), expected)
    assert model.attention.num_heads == 4


def test_modes_and_integers_are_plain_again_after_an_analysis():
    model = Asks()
    evolve.analyse(model, torch.randn(4, 3, 5, 5))
    assert all(type(module.training) is bool for module in model.modules())
    assert type(model.width) is int


def test_a_size_that_a_forward_compares_is_not_taken_for_free_of_sizes():
    model, inputs = Asks(lambda model, x: x if model.one.out_channels == 6 else x * 0), torch.randn(4, 3, 5, 5)
    assert evolve.analyse(model, inputs).asks_size
    ok, message = evolve.mutate(model, "widen", site="one", example_inputs=inputs)
    assert not ok
    assert "the output changed" in message


@pytest.mark.parametrize("name", ["chain", "residual", "concatenated", "depthwise", "grouped_queries", "transformer"])
def test_flops_for_other_sizes_are_those_of_the_changed_model(name):
    model, inputs = ZOO[name].build(), ZOO[name].inputs()
    analysis = evolve.analyse(model, inputs)
    result = evolve.mutate(model, "narrow", site="*", factor=0.5, example_inputs=inputs, seed=0)
    assert result, result.message
    assert result.record.flops_before == analysis.flops({}) == analysis.costs[""].flops
    assert result.record.flops_after == evolve.analyse(model, inputs).flops({}) < result.record.flops_before


class OutOfPlace(nn.Module):
    """Multiplies into a tensor that had no elements when it was made."""

    def __init__(self):
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.side = nn.Parameter(torch.randn(8, 6))

    def forward(self, x):
        with torch.no_grad():
            product = x.new_empty(0)
            torch.mm(x, self.side, out=product)
            z = product @ self.side.t()
        return self.last(self.hidden(self.first(x) + z).relu())


def test_flops_are_those_of_the_sizes_when_an_operation_runs():
    model, x = OutOfPlace(), torch.randn(4, 8)
    result = evolve.mutate(model, "widen", site="hidden", add=2, example_inputs=x, seed=0)
    assert result, result.message
    assert result.record.flops_before == 2 * (8 * 8 + 2 * 8 * 6 + 8 * 6 + 6 * 3)
    assert result.record.flops_after == 2 * (8 * 8 + 2 * 8 * 6 + 8 * 8 + 8 * 3)


@torch.library.custom_op("somebodys::joined", mutates_args=())
def joined(xs: list[torch.Tensor], weight: torch.Tensor) -> list[torch.Tensor]:
    return [torch.cat(xs, 1) @ weight]


joined.register_fake(lambda xs, weight: [torch.cat(xs, 1) @ weight])


@torch.library.custom_op("somebodys::product", mutates_args=())
def product_of(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight


product_of.register_fake(lambda x, weight: x @ weight)


@functools.cache
def formulas():
    """Files formulas in both ways that torch knows, once."""

    @register_flop_formula(torch.ops.somebodys.joined)
    def of_shapes(xs, weight, out_shape=None):
        return 2 * out_shape[0][0] * sum(x[1] for x in xs) * weight[1]

    @register_flop_formula(torch.ops.somebodys.product, get_raw=True)
    @torch.no_grad()  # a decorator of its own
    def of_tensors(x, weight, out_val=None):
        return 2 * x.shape[0] * x.shape[1] * weight.shape[1]


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(8, 16), nn.Linear(4, 12), nn.Linear(12, 3)
        self.one, self.other = nn.Parameter(torch.randn(32, 16)), nn.Parameter(torch.randn(16, 4))

    def forward(self, x):
        x = self.first(x)
        x = torch.ops.somebodys.joined([x, x.relu()], self.one)[0]
        return self.last(self.hidden(torch.ops.somebodys.product(x, self.other)).relu())


def test_formulas_of_a_users_operations_get_what_they_want():
    formulas()
    model, x = Custom(), torch.randn(2, 8)
    flops = 2 * (8 * 16 + 32 * 16 + 16 * 4 + 4 * 12 + 12 * 3)
    analysis = evolve.analyse(model, x)
    assert analysis.costs[""].flops == analysis.flops({}) == flops
    result = evolve.mutate(model, "widen", site="hidden", add=2, example_inputs=x)
    assert result.record.flops_after == flops + 2 * (4 * 2 + 2 * 3), result.message
    kinds = {op.name: op for op in analysis.tapes[0].ops}
    shapes = {(2, 16): (2, 20), (32, 16): (40, 16), (16, 4): (20, 4)}
    for name, expected in (("joined", 2 * 2 * 40 * 16), ("product", 2 * 2 * 20 * 4)):
        op = kinds[f"somebodys.{name}"]
        assert flops_if(op, lambda value: shapes.get(value.shape, value.shape)) == expected


class MaxNorm(nn.Conv2d):
    """Holds its filters to a norm in every forward, by other data (EEGNet's layers are such)."""

    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.3)
        return super().forward(x)


def test_a_forward_may_give_its_parameters_other_data():
    model, x = nn.Sequential(MaxNorm(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), torch.randn(2, 3, 8, 8)
    weight = model[0].weight
    before, place = weight.detach().clone(), weight.data_ptr()
    analysis = evolve.analyse(model, x)
    assert (weight.device.type, weight.data_ptr()) == ("cpu", place)
    assert torch.equal(weight, before)
    assert [group.name for group in analysis.changeable] == ["0"]
    assert "renorm over it" in next(g for g in analysis.groups if g.size == 3).mixed
    outputs = model(x)
    assert evolve.mutate(model, "widen", site="0", example_inputs=x)
    assert evolve.mutate(model, "residual", site="0", example_inputs=x)
    torch.testing.assert_close(model(x), outputs)
    assert model[0].weight is weight
