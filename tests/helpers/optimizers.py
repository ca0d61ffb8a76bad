"""Optimizers as people write them, one of each kind of state, wrapper and cache."""

from collections import deque

import torch
from torch.optim import Optimizer


class ScheduleFree(Optimizer):
    """Keeps `z`, from which the average x = (y - (1 - beta) z) / beta follows (Defazio et al. 2024)."""

    def __init__(self, params, lr=0.05, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0})

    def averages(self):
        group = self.param_groups[0]
        beta = group["beta"]
        return {p: (p - (1 - beta) * self.state[p]["z"]) / beta for p in group["params"] if "z" in self.state[p]}

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                state = self.state[p]
                if "z" not in state:
                    state["z"] = p.clone()
                z, beta = state["z"], group["beta"]
                x = (p - (1 - beta) * z) / beta
                z.sub_(p.grad, alpha=group["lr"])
                x.lerp_(z, 1 / group["k"])
                p.copy_(beta * x + (1 - beta) * z)


class AttributeLookahead:
    """The first Lookahead on GitHub: no Optimizer, slow weights in a list of lists by group."""

    def __init__(self, base, k=5, alpha=0.5):
        self.base, self.k, self.alpha, self.count = base, k, alpha, 0
        self.param_groups, self.state, self.defaults = base.param_groups, base.state, base.defaults
        self.slow = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]

    def add_param_group(self, group):
        self.base.add_param_group(group)

    def zero_grad(self):
        self.base.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        self.base.step(closure)
        self.count += 1
        if self.count % self.k == 0:
            for group, slow in zip(self.param_groups, self.slow, strict=True):
                for p, q in zip(group["params"], slow, strict=True):
                    q.lerp_(p, self.alpha)
                    p.copy_(q)


class LazyLookahead(Optimizer):
    """As timm's: slow weights in the state of the optimizer inside, made when they are first needed."""

    def __init__(self, base, k=6, alpha=0.5):
        self.base, self.k, self.alpha, self.count = base, k, alpha, 0
        super().__init__(base.param_groups, base.defaults)
        self.param_groups, self.state = base.param_groups, base.state

    @torch.no_grad()
    def step(self, closure=None):
        self.base.step(closure)
        self.count += 1
        if self.count % self.k == 0:
            for group in self.param_groups:
                for p in group["params"]:
                    slow = self.state[p].setdefault("slow", p.clone())
                    slow.lerp_(p, self.alpha)
                    p.copy_(slow)


class Sam(Optimizer):
    """Foret et al. 2021: two passes by a closure; the optimizer inside does the update."""

    def __init__(self, params, base, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure):
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]).norm() + 1e-12
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["old"] = p.clone()
                    p.add_(p.grad, alpha=float(group["rho"] / norm))
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.copy_(self.state[p]["old"])
        self.base_optimizer.step()


class Soap(Optimizer):
    """A list with a matrix of gradient products for each axis, and their eigenvectors."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state, grad = self.state[p], p.grad
                if not state:
                    state["m"] = torch.zeros_like(p)
                    state["GG"] = [p.new_zeros(size, size) for size in p.shape]
                    state["Q"] = [torch.eye(size) for size in p.shape]
                state["m"].lerp_(grad, 0.1)
                step = state["m"]
                for axis, (moment, basis) in enumerate(zip(state["GG"], state["Q"], strict=True)):
                    rows = grad.movedim(axis, 0).reshape(grad.shape[axis], -1)
                    moment.lerp_(rows @ rows.T, 0.1)
                    basis.copy_(torch.linalg.qr(moment @ basis + 1e-3 * basis)[0])
                    step = torch.tensordot(basis @ basis.T, step, dims=([1], [axis])).movedim(0, axis)
                p.sub_(step, alpha=group["lr"])


class Shampoo(Optimizer):
    """A matrix of gradient products for each axis in a dictionary, and nothing that is derived from it."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.dim() < 1:
                    p.sub_(p.grad, alpha=group["lr"])
                    continue
                sums = self.state[p].setdefault("sums", {str(n): p.new_zeros(s, s) for n, s in enumerate(p.shape)})
                step = p.grad
                for axis, size in enumerate(p.shape):
                    rows = p.grad.movedim(axis, 0).reshape(size, -1)
                    sums[str(axis)].add_(rows @ rows.T)
                    values, basis = torch.linalg.eigh(sums[str(axis)])
                    root = basis @ torch.diag(values.clamp(min=1e-6) ** -0.25) @ basis.T
                    step = torch.tensordot(root, step, dims=([1], [axis])).movedim(0, axis)
                p.sub_(step, alpha=group["lr"])


class NovoGrad(Optimizer):
    """One second moment for each tensor (Ginsburg et al. 2019), and one number for the model under a string key."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        whole = self.state.setdefault("global", {"steps": 0, "norms": []})
        whole["steps"] += 1
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["v"], state["m"] = torch.zeros(()), torch.zeros_like(p)
                state["v"].lerp_(p.grad.square().sum(), 0.5)
                state["m"].mul_(0.9).add_(p.grad / (state["v"].sqrt() + 1e-8))
                p.sub_(state["m"], alpha=group["lr"])


class Queue(Optimizer):
    """The last gradients in a queue, an average of the weights under the parameter's id, and a flat moment."""

    def __init__(self, params, lr=0.02):
        super().__init__(params, {"lr": lr})
        self.averages = {id(p): p.detach().clone() for g in self.param_groups for p in g["params"]}

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["last"], state["flat"] = deque([torch.zeros_like(p)], maxlen=3), torch.zeros(p.numel())
                state["last"].append(p.grad.clone())
                state["flat"].lerp_(p.grad.reshape(-1), 0.1)
                p.sub_(sum(state["last"]) + state["flat"].view_as(p), alpha=group["lr"])
                self.averages[id(p)].lerp_(p, 0.1)


class UnitNorm(Optimizer):
    """Holds each row of a matrix to the norm it had (as Nero does): what `widen` shares out does not have it."""

    @torch.no_grad()
    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})
        for p in self.param_groups[0]["params"]:
            if p.dim() == 2:
                p.div_(p.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=self.param_groups[0]["lr"])
            if p.dim() == 2:
                p.div_(p.norm(dim=1, keepdim=True))


class Closed(Optimizer):
    """Steps what it was given when it was made, by a function that nobody can look into."""

    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr})
        own = [p for g in self.param_groups for p in g["params"]]

        def update():
            for p in own:
                p.data.sub_(p.grad, alpha=lr)

        self.update = update

    def step(self, closure=None):
        self.update()


class Muon(Optimizer):
    """Orthogonal steps of matrices; raises for anything else."""

    def __init__(self, params, lr=0.02):
        super().__init__(params, {"lr": lr, "ns_steps": 5})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.dim() != 2:
                    raise ValueError("matrices alone")
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 0.1)
                u, _, v = torch.linalg.svd(buffer, full_matrices=False)
                p.sub_(u @ v, alpha=group["lr"])
