"""What `narrow` ranks by, each held against numbers made by hand."""

import pytest
import torch
from torch import nn

import evolve
from evolve.operators.criteria import CRITERIA, scores
from evolve.operators.members import Members, Tensors


def net():
    """Two inputs, three hidden units, one output, without biases."""
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]))
        model[1].weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
    return model


def group(model, x):
    analysis = evolve.analyse(model, x)
    return Members(Tensors(model, analysis), analysis.group("0"))


def scored(name, model=None, batches=()):
    (found,) = scores(name, [group(model or net(), torch.zeros(1, 2))], batches)
    return found.tolist()


def test_magnitude():
    """Norms 5, 1, 10 over their mean, and 1, 2, 3 over theirs."""
    assert scored("magnitude") == pytest.approx([15 / 16 + 0.5, 3 / 16 + 1, 30 / 16 + 1.5])


def test_lamp():
    first, least, most = (value**2 for value in scored("magnitude"))
    assert scored("lamp") == pytest.approx([first / (first + most), least / (first + least + most), 1])


def test_fpgm():
    """Distances of (3, 4), (0, 1), (6, 8): 18 ** .5, 5, 85 ** .5; of 1, 2, 3: 1, 1, 2."""
    short, middle, long = 18**0.5, 5, 85**0.5
    rows = torch.tensor([short + middle, short + long, middle + long])
    columns = torch.tensor([3.0, 2.0, 3.0])
    assert scored("fpgm") == pytest.approx((rows / rows.mean() + columns / columns.mean()).tolist(), rel=1e-5)


def test_random_is_drawn_from_the_generator():
    model = net()
    torch.manual_seed(3)
    expected = torch.rand(3, dtype=torch.float64).tolist()
    torch.manual_seed(3)
    assert scored("random", model) == expected


def gradients(*rows):
    return {"0.weight": torch.tensor(rows), "1.weight": torch.tensor([[0.5, -1.0, 0.0]])}


BATCHES = [gradients([1.0, -1.0], [2.0, 2.0], [0.0, 0.0]), gradients([1.0, 1.0], [0.0, 4.0], [0.5, 0.0])]


def test_taylor_averages_the_effects_of_batches():
    """|Σ w g| of the weights that make a unit, and of that which reads it, batch by batch."""
    first = torch.tensor([1.0 + 0.5, 2.0 + 2.0, 0.0])
    second = torch.tensor([7.0 + 0.5, 4.0 + 2.0, 3.0])
    assert scored("taylor", batches=BATCHES[:1]) == pytest.approx(first.tolist())
    assert scored("taylor", batches=BATCHES) == pytest.approx(((first + second) / 2).tolist())


def test_hessian_averages_squares_of_batches():
    """Half of Σ w² g²: the curvature is the mean of the squared gradients."""
    first = torch.tensor([9.0 + 16 + 0.25, 4.0 + 4, 0.0]) / 2
    second = torch.tensor([9.0 + 16 + 0.25, 16.0 + 4, 9.0]) / 2
    assert scored("hessian", batches=BATCHES) == pytest.approx(((first + second) / 2).tolist())


def test_batches_are_those_that_were_given():
    """The unit goes that the loss of two batches together misses least, and not the one of either."""
    model, x = net(), torch.eye(2)
    seen = []

    def loss(weights):
        def of(out):
            seen.append(weights)
            return (out * torch.tensor(weights)).sum()

        return of

    pairs = [(x, loss([[1.0], [0.0]])), (x, loss([[0.0], [1.0]])), (x, loss([[9.0], [9.0]]))]
    options = {"criterion": "taylor", "remove": 1, "site": "0", "example_inputs": x, "seed": 0}
    result = evolve.mutate(model, "narrow", batches=2, loss_batches=pairs, **options)
    assert result, result.message
    assert seen == [[[1.0], [0.0]], [[0.0], [1.0]]]
    assert result.record.plan["groups"][0]["steps"][0]["source"] == [0, 2]  # 2 * (0 and 2) is less than 3 and 4
    few = evolve.mutate(model, "narrow", batches=4, loss_batches=pairs, **options)
    assert "batches: 4 were asked for, and loss_batches gave 3" in few.message
    with pytest.raises(evolve.errors.EvolveError, match="an iterator can be gone through only once"):
        evolve.mutate(model, "narrow", batches=2, loss_batches=iter(pairs), **options)


def test_a_part_that_one_batch_leaves_out_is_scored_by_the_other():
    only = [{"0.weight": torch.ones(3, 2)}, {}]
    assert scored("taylor", batches=only) == pytest.approx([3.5, 0.5, 7.0])
    (none,) = scores("hessian", [group(net(), torch.zeros(1, 2))], [{}, {}])
    assert "the loss gives no weight of '0' any" in str(none)


def test_every_criterion_says_what_it_looks_at():
    assert all((one.weights is None) != (one.gradients is None) for one in CRITERIA.values())


@pytest.mark.parametrize("name", ["magnitude", "lamp", "fpgm", "taylor", "hessian"])
def test_scores_that_are_not_finite_rank_nobody(name):
    model, x = net(), torch.randn(4, 2)
    with torch.no_grad():
        model[0].weight[1, 0] = torch.nan
    options = {"loss": lambda outputs: outputs.sum() * torch.nan}
    result = evolve.mutate(
        model, "narrow", site="*", target={"params": 0.5}, criterion=name, example_inputs=x, **options
    )
    assert result.status == "not_applicable"
    assert result.message == f"criterion: {name} scores '0' with NaN or infinity, which ranks nobody."
