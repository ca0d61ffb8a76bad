"""One count of FLOPs: the same on real and on fake tensors, in each mode, whatever kernel runs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evolve
from evolve.mutation.limits import Limits
from evolve.structure.probe import FlopCounter

X = torch.randn(2, 6, 8)


class Call(nn.Module):
    """A forward that is a function of the input, a matrix and parts."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.matrix, self.parts = function, nn.Parameter(torch.randn(8, 8)), nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x, self.matrix, *self.parts)


def _heads(x, matrix):
    return (x @ matrix).view(2, 6, 2, 4).transpose(1, 2)


def _attention(x, matrix):
    q = _heads(x, matrix)
    return F.scaled_dot_product_attention(q, q, q, is_causal=True)


def _grouped_attention(x, matrix):
    q = _heads(x, matrix)
    return F.scaled_dot_product_attention(q, q[:, :1], q[:, :1], enable_gqa=True)


def _inference(x, matrix, layer):
    with torch.inference_mode():
        y = layer(x)
    return y.clone() @ matrix


PROJECTED = 2 * 12 * 8 * 8  # x @ matrix
ATTENDED = 2 * 2 * 2 * 6 * 6 * (4 + 4)  # samples, heads, queries, keys
CASES = {
    "attention": (Call(_attention), PROJECTED + ATTENDED),
    "grouped queries": (Call(_grouped_attention), PROJECTED + ATTENDED),
    "encoder layer": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        2 * 12 * (8 * 24 + 8 * 8 + 2 * 8 * 16) + ATTENDED,
    ),
    "lstm": (
        nn.LSTM(8, 5, 2, batch_first=True, bidirectional=True),
        2 * 12 * 2 * 20 * (8 + 5) + 2 * 12 * 2 * 20 * (10 + 5),
    ),
    "projected lstm": (nn.LSTM(8, 5, proj_size=3), 2 * 12 * (20 * 8 + 20 * 3 + 3 * 5)),
    "gru": (nn.GRU(8, 5), 2 * 12 * 15 * (8 + 5)),
    "rnn": (nn.RNN(8, 5), 2 * 12 * 5 * (8 + 5)),
    "einsum": (Call(lambda x, m: torch.einsum("nld,de->nle", x, m)), PROJECTED),
    "tensordot": (Call(lambda x, m: torch.tensordot(x, m, 1)), PROJECTED),
    "matrix by vector": (Call(lambda x, m: x @ m[0]), 2 * 12 * 8),
    "dot": (Call(lambda x, m: (x[0, 0] @ m[0])[None]), 2 * 8),
    "baddbmm": (Call(lambda x, m: torch.baddbmm(x, x, m.expand(2, 8, 8))), PROJECTED),
    "in place": (Call(lambda x, m: x[0].clone().addmm_(x[0], m)), PROJECTED // 2),
    "bilinear": (Call(lambda x, m, part: part(x, x), nn.Bilinear(8, 8, 3)), 2 * 12 * 8 * 8 * 3),
    "distances": (Call(lambda x, m: torch.cdist(x @ m, x)), PROJECTED + 2 * 2 * 6 * 6 * 8),
    "inference mode": (Call(_inference, nn.Linear(8, 8)), 2 * PROJECTED),
    "transform": (Call(lambda x, m: torch.fft.rfft(x @ m).abs()), PROJECTED),
    "transposed convolution": (nn.ConvTranspose1d(6, 4, 3, groups=2), 2 * 2 * 8 * 6 * 2 * 3),
}


@pytest.mark.parametrize("name", CASES)
def test_the_count_does_not_depend_on_how_the_model_runs(name):
    model, expected = CASES[name]
    found = {}
    for training in (False, True):
        for gradients in (False, True):
            model.train(training)
            with torch.set_grad_enabled(gradients), FlopCounter() as counter:
                model(X)
            found[training, gradients] = counter.total
    model.eval()
    found["fake"] = evolve.analyse(model, X).flops({}) * len(X)
    assert set(found.values()) == {expected}, found


def test_limits_and_records_use_that_count():
    model, expected = Call(_attention), (PROJECTED + ATTENDED) // 2
    result = evolve.mutate(model, "shrink_perturb", site="*", example_inputs=X)
    assert result.record.flops_before == result.record.flops_after == expected
    refused = evolve.mutate(model, "shrink_perturb", site="*", example_inputs=X, limits=Limits(flops=expected - 1))
    assert not refused
    assert f"{expected:,}" in refused.message
