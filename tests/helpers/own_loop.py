"""A training loop of somebody's own: a model that is mutated as a whole and in a part, saved and gone on with."""

import hashlib
import sys

import torch
from torch import nn

import evolve
from evolve.care.ema import EMA


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
        self.drop = nn.Dropout(0.2)
        self.head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.body(x))))


def parts(kind):
    """A model, its optimizers and its average, as they are before the first mutation."""
    torch.manual_seed(0)
    model = Net()
    if kind == "two":
        optimizer = [
            torch.optim.SGD(model.body.parameters(), lr=0.05, momentum=0.9),
            torch.optim.AdamW(model.head.parameters(), lr=1e-2),
        ]
    else:
        decayed = [p for p in model.parameters() if p.dim() > 1]
        plain = [p for p in model.parameters() if p.dim() == 1]
        optimizer = torch.optim.Adam([{"params": plain}, {"params": decayed, "weight_decay": 0.1}], lr=1e-2)
    return model, optimizer, EMA(model, 0.9)


def train(model, optimizer, ema, steps, start):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 6, generator=generator)
        loss = nn.functional.cross_entropy(model.train()(x), x[:, :3].argmax(1))
        for one in optimizer if isinstance(optimizer, list) else [optimizer]:
            one.zero_grad()
        loss.backward()
        for one in optimizer if isinstance(optimizer, list) else [optimizer]:
            one.step()
        ema.update(model)


def first_half(kind):
    model, optimizer, ema = parts(kind)
    torch.manual_seed(1)
    train(model, optimizer, ema, 5, 0)
    records = []

    def mutate(module, prefix, operator, site, inputs, **options):
        result = evolve.mutate(
            module, operator, site=site, optimizer=optimizer, example_inputs=inputs, strict=True, seed=3, **options
        )
        records.append(result.record)
        ema.follow(model, [type(cut)(**{**vars(cut), "name": prefix + cut.name}) for cut in result.cuts])

    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(9))
    mutate(model, "", "deepen", "head.0", x)
    train(model, optimizer, ema, 3, 5)
    mutate(model.body, "body.", "widen", "0", x, factor=1.5)
    train(model, optimizer, ema, 3, 8)
    mutate(model.head, "head.", "residual", "0", torch.randn(4, 8, generator=torch.Generator().manual_seed(8)))
    mutate(model, "", "widen", "body.0", x, factor=2.0)
    train(model, optimizer, ema, 3, 11)
    return model, optimizer, ema, records


def second_half(model, optimizer, ema):
    train(model, optimizer, ema, 6, 14)
    sha = hashlib.sha256()
    for tensor in (*model.state_dict().values(), *ema.shadow.values()):
        sha.update(tensor.detach().numpy().tobytes())
    return sha.hexdigest()


if __name__ == "__main__":  # another process: restores, goes on, and says how it ended
    folder, kind = sys.argv[1:]
    model, optimizer, ema = parts(kind)
    records = evolve.restore(folder, model, optimizer, ema=ema)
    print(second_half(model, optimizer, ema), [record.root for record in records])
