"""Makes the optimizers of torch, timm, pytorch_optimizer, schedulefree and torchao, with the arguments they need."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytorch_optimizer
import schedulefree
import timm.optim
import torch
import torchao.optim
from torch import nn

Make = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class Subject:
    """One optimizer of the benchmark.

    Attributes:
        name: Library and name.
        make: Builds what is passed to `mutate` (an optimizer or a list) over a model.
        closure: Whether `step` takes one.
        graph: Whether the backward pass keeps its graph, for optimizers that look at curvature.
        still: Whether it can be stepped at learning rate zero: some divide by it.
    """

    name: str
    make: Make
    closure: bool = False
    graph: bool = False
    still: bool = True


def subjects() -> list[Subject]:
    """Returns all of them."""
    return [*_torch(), *_pairs(), *_timm(), *_pytorch_optimizer(), *_wrappers(), *_schedulefree(), *_torchao()]


def _plain(cls: type, **options: Any) -> Make:
    return lambda model: cls(model.parameters(), **options)


def _torch() -> Iterator[Subject]:
    options: dict[str, dict[str, Any]] = {
        "SGD": {"lr": 0.05, "momentum": 0.9},
        "ASGD": {"lr": 0.05, "t0": 1, "lambd": 0.0},
        "RMSprop": {"lr": 1e-3, "momentum": 0.5, "centered": True},
        "Adam": {"amsgrad": True},
        "Adadelta": {"lr": 1.0},
    }
    for name in ("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop"):
        yield Subject(f"torch {name}", _plain(getattr(torch.optim, name), **options.get(name, {})))
    yield Subject("torch Rprop", _plain(torch.optim.Rprop))
    yield Subject("torch SGD", _plain(torch.optim.SGD, **options["SGD"]))
    yield Subject("torch LBFGS", _plain(torch.optim.LBFGS, max_iter=5, line_search_fn="strong_wolfe"), closure=True)


def _split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Returns hidden matrices, and the rest: vectors, convolutions, the head."""
    head = model[-1].weight  # type: ignore[index]
    matrices = [p for p in model.parameters() if p.dim() == 2 and p is not head]
    known = set(map(id, matrices))
    return matrices, [p for p in model.parameters() if id(p) not in known]


def _flagged(cls: type, model: nn.Module, flag: str = "use_muon", **options: Any) -> Any:
    matrices, rest = _split(model)
    return cls([{"params": matrices, flag: True}, {"params": rest, flag: False}], **options)


def _pairs() -> Iterator[Subject]:
    def muon_and_adamw(model: nn.Module) -> list[Any]:
        matrices, rest = _split(model)
        return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest)]

    yield Subject("torch Muon + AdamW", muon_and_adamw)


def _timm() -> Iterator[Subject]:
    apex_or_cuda = ("bnb", "fused")
    names = set(timm.optim.list_optimizers())
    for name in sorted(names):
        variant = (name[0] == "c" and name[1:] in names) or (name[-1] in "cw" and name[:-1] in names - {"adam"})
        if name.startswith(apex_or_cuda) or variant:
            continue  # cautious and decoupled variants keep the same state
        second = "hessian" in name
        make = partial(timm.optim.create_optimizer_v2, opt=name, lr=1e-3, momentum=0.9)
        yield Subject(f"timm {name}", make, graph=second)
    lookahead = partial(timm.optim.create_optimizer_v2, opt="lookahead_adamw", lr=1e-3)
    yield Subject("timm lookahead adamw", lookahead)


def _pytorch_optimizer() -> Iterator[Subject]:
    load = pytorch_optimizer.load_optimizer
    flagged = {"adago", "adamuon", "muon", "muonclip", "normuon"}
    over_model = {"adammini"}
    matrices_alone = {"spectralsphere"}
    # They step inside the backward pass, or in a process group: no `step` that anybody calls.
    left_out = {"lomo", "adalomo", "demo", "distributedmuon"}
    options: dict[str, dict[str, Any]] = {
        "bsam": {"num_data": 64},
        "ranger21": {"num_iterations": 200},
        "asgd": {"lr": 1e-2},
        "dadaptadagrad": {"lr": 1.0},
        "sara": {},
    }
    for name in sorted(pytorch_optimizer.get_supported_optimizers()):
        if name in left_out:
            continue
        cls, chosen = load(name), options.get(name, {})
        closure = name in {"alig", "bsam", "lbfgs"}
        graph = name in {"adahessian", "sophiah"}
        make: Make = _plain(cls, **chosen)
        if name in flagged:
            make = partial(_flagged, cls, **chosen)
        elif name in over_model:
            make = cls
        elif name in matrices_alone:
            make = partial(_beside_adamw, cls)
        still = name not in {"asgd", "gravity"}
        yield Subject(f"pytorch_optimizer {name}", make, closure=closure, graph=graph, still=still)


def _beside_adamw(cls: type, model: nn.Module) -> list[Any]:
    matrices, rest = _split(model)
    return [cls(matrices), torch.optim.AdamW(rest)]


def _over_sgd(cls: type, model: nn.Module, **options: Any) -> Any:
    return cls(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), **options)


def _over_adamw(cls: type, model: nn.Module) -> Any:
    return cls(torch.optim.AdamW(model.parameters()))


def _sharp(cls: type, model: nn.Module) -> Any:
    return cls(model.parameters(), torch.optim.AdamW)


def _wrappers() -> Iterator[Subject]:
    po = pytorch_optimizer
    for pullback in ("none", "reset", "pullback"):
        make = partial(_over_sgd, po.Lookahead, pullback_momentum=pullback)
        yield Subject(f"pytorch_optimizer Lookahead {pullback} (SGD)", make)
    for cls in (po.SAM, po.LookSAM, po.FriendlySAM):
        yield Subject(f"pytorch_optimizer {cls.__name__} (AdamW)", partial(_sharp, cls), closure=True)
    wsam = "pytorch_optimizer WSAM (AdamW)"
    yield Subject(wsam, lambda m: po.WSAM(m, m.parameters(), torch.optim.AdamW), closure=True)
    for cls in (po.OrthoGrad, po.TRAC, po.PCGrad, po.Magma):
        yield Subject(f"pytorch_optimizer {cls.__name__} (AdamW)", partial(_over_adamw, cls))
    yield Subject("pytorch_optimizer ScheduleFreeWrapper (SGD)", partial(_over_sgd, po.ScheduleFreeWrapper))
    yield Subject("pytorch_optimizer Lookahead (Lookahead)", lambda m: po.Lookahead(_over_adamw(po.Lookahead, m)))


def _schedulefree() -> Iterator[Subject]:
    for name, cls in sorted(vars(schedulefree).items()):
        if not inspect.isclass(cls):
            continue
        make = partial(_over_sgd, cls) if "Wrapper" in name else _plain(cls)
        yield Subject(f"schedulefree {name}", make, closure="Closure" in name)


def _torchao() -> Iterator[Subject]:
    for name in ("Adam8bit", "AdamW8bit", "Adam4bit", "AdamW4bit"):
        yield Subject(f"torchao {name}", _plain(getattr(torchao.optim, name)))
