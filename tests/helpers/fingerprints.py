"""One hash of everything that a refused or rolled back mutation must leave as it was."""

import hashlib
import pickle
import random

import numpy as np
import torch
from torch import nn


def rng_state():
    """The generators of Python, NumPy and torch, as bytes."""
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().numpy().tobytes()))


def fingerprint(model, optimizer=None):
    """SHA-256 over structure, weights, buffers, gradients, modes, optimizer groups and state, and generators."""
    digest = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}{value.stride()}{value.requires_grad}{id(value)}".encode())
            if value.device.type != "meta" and not isinstance(value, nn.parameter.UninitializedTensorMixin):
                digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())

    for name, module in model.named_modules(remove_duplicate=False):
        add((name, id(module), type(module), module.training, sorted(vars(module)), len(module._forward_hooks)))
    for tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, tensor in tensors:
            add(name)
            add(tensor) if not isinstance(tensor, nn.parameter.UninitializedTensorMixin) else add("lazy")
            add(tensor.grad)
    if optimizer is not None:
        for group in optimizer.param_groups:
            add({k: v for k, v in group.items() if k != "params"})
            add([id(p) for p in group["params"]])
        for parameter, state in optimizer.state.items():
            add(id(parameter))
            for key, value in state.items():
                add(key)
                add(value)
    digest.update(rng_state())
    return digest.hexdigest()
