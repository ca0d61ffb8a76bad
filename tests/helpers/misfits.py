"""Models, data and losses that do not go together, by import path; each differs from the good ones in one thing."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

N, FEATURES = 32, 6


def linear(outputs=3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, outputs))


def no_module() -> nn.Module:
    return ()


class Returns(nn.Module):
    """Returns its outputs in some other form."""

    def __init__(self, form="dict", outputs=3):
        super().__init__()
        self.inner = linear(outputs)
        self.form = form

    def forward(self, x):
        out = self.inner(x)
        if self.form == "detached":
            return out.detach()
        if self.form == "tuple in training":
            return (out, out) if self.training else out
        if self.form == "nan":
            return out * float("nan")
        return {"one": out, "two": out} if self.form == "dict" else out.flatten()


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = linear()
        self.head = nn.Linear(3, 3)
        self.inner.requires_grad_(requires_grad=False)

    def forward(self, x):
        return self.inner(x) + 0 * self.head(torch.zeros(3)).detach()


def pair(x=None, y=None):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, FEATURES, generator=g) if x is None else x
    y = torch.randint(3, (N,), generator=g) if y is None else y
    return (x, y), (x.clone(), y.clone())


class Rows(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        if isinstance(row, Exception):
            raise row
        return row


def both(data):
    return data, data


DATA = {
    "good": pair,
    "flat regression": lambda: pair(y=torch.randn(N)),
    "integer regression": lambda: pair(y=torch.arange(N).unsqueeze(1)),
    "column regression": lambda: pair(y=torch.randn(N, 1)),
    "labels too high": lambda: pair(y=torch.arange(N) % 5),
    "one label too high": lambda: pair(y=torch.where(torch.arange(N) == N - 1, 3, torch.arange(N) % 3)),
    "labels below zero": lambda: pair(y=torch.arange(N) % 3 - 1),
    "float labels": lambda: pair(y=torch.arange(N).remainder(3).float()),
    "int32 labels": lambda: pair(y=torch.arange(N, dtype=torch.int32) % 3),
    "one-hot labels": lambda: pair(y=nn.functional.one_hot(torch.arange(N) % 3)),
    "column labels": lambda: pair(y=(torch.arange(N) % 3).unsqueeze(1)),
    "soft labels": lambda: pair(y=torch.rand(N, 3).softmax(1)),
    "signs": lambda: pair(y=torch.arange(N).remainder(2).float().unsqueeze(1) * 2 - 1),
    "nan inputs": lambda: pair(x=torch.randn(N, FEATURES).index_put((torch.tensor(5),), torch.tensor(float("nan")))),
    "infinite targets": lambda: pair(y=torch.full((N, 1), float("inf"))),
    "double inputs": lambda: pair(x=torch.randn(N, FEATURES, dtype=torch.float64)),
    "integer inputs": lambda: pair(x=torch.ones(N, FEATURES, dtype=torch.long)),
    "other width": lambda: pair(x=torch.randn(N, FEATURES + 1)),
    "empty": lambda: pair(x=torch.empty(0, FEATURES), y=torch.empty(0, dtype=torch.long)),
    "empty validation": lambda: (pair()[0], (torch.empty(0, FEATURES), torch.empty(0, dtype=torch.long))),
    "unequal": lambda: pair(y=torch.arange(N - 1) % 3),
    "ragged": lambda: both(Rows([(torch.randn(3 + i % 2), 0) for i in range(N)])),
    "ragged loader": lambda: both(DataLoader(Rows([(torch.randn(3 + i % 2), 0) for i in range(N)]), 4)),
    "ragged targets": lambda: both(Rows([(torch.randn(FEATURES), torch.zeros(1 + i % 2)) for i in range(N)])),
    "no targets": lambda: both(Rows([torch.randn(FEATURES) for _ in range(N)])),
    "dicts": lambda: both(Rows([{"x": torch.randn(FEATURES), "y": 0} for _ in range(N)])),
    "None as target": lambda: both(Rows([(torch.randn(FEATURES), None) for _ in range(N)])),
    "broken sample": lambda: both(Rows([(torch.randn(FEATURES), 0), OSError("disk on fire")] * 8)),
    "text": lambda: both(Rows([("a text", 0) for _ in range(N)])),
    "a number": lambda: 3,
    "one part": lambda: (pair()[0],),
}


def data(kind):
    return DATA[kind]()


def broadcasting(outputs, targets):
    return ((outputs - targets) ** 2).mean()


def unreduced(outputs, targets):
    return (outputs - targets) ** 2


def a_float(outputs, targets):
    return float(((outputs - targets) ** 2).mean())


def squeezing(outputs, targets):
    return ((outputs.squeeze(1) - targets) ** 2).mean()


def raising(outputs, targets):
    raise KeyError("lost")
