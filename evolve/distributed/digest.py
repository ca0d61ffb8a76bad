"""Short descriptions of what a rank holds, by which ranks are held against each other."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from evolve.errors import RanksDifferError

_PACKAGE = Path(__file__).parents[1]


def of_tensors(tree: Any) -> str:
    """Returns a digest of a tree of tensors and plain values, bit for bit."""
    sha = hashlib.sha256()
    for path, leaf in tree_flatten_with_path(tree)[0]:
        sha.update("".join(map(str, path)).encode())
        sha.update(_tensor(leaf) if isinstance(leaf, Tensor) else repr(leaf).encode())
    return sha.hexdigest()[:16]


def _tensor(tensor: Tensor) -> bytes:
    """A checksum of the values: a good deal quicker than a hash, and nobody is trying to deceive."""
    host: Any = tensor.detach().to("cpu").contiguous().reshape(-1)
    if host.layout != torch.strided or host.is_quantized:
        return repr(host).encode()
    values = zlib.crc32(host.view(torch.uint8).numpy()) if host.numel() else 0
    return f"{tuple(tensor.shape)} {tensor.dtype} {values}".encode()


def of_structure(model: nn.Module) -> str:
    """Returns a digest of a model's modules: their names, classes and settings."""
    lines = [f"{name} {type(module).__qualname__} {module.extra_repr()}" for name, module in model.named_modules()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def of_model(model: nn.Module) -> dict[str, str]:
    """Returns digests of structure and values of a model."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {"structure": of_structure(model), "weights": of_tensors(tensors)}


def of_code(objects: Iterable[Any]) -> str:
    """Returns a digest of evolve's source, of the files that classes and functions come from, and of versions.

    Args:
        objects: Classes and functions; those of torch count by its version.
    """
    sha = hashlib.sha256(f"{platform.python_version()} {torch.__version__}".encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        sha.update(str(path.relative_to(_PACKAGE)).encode() + path.read_bytes())
    files = {getattr(thing, "__module__", ""): _source(thing) for thing in objects}
    for name, source in sorted(files.items()):
        if name.partition(".")[0] not in ("torch", "evolve"):
            sha.update(name.encode() + source)
    return sha.hexdigest()[:16]


def _source(thing: Any) -> bytes:
    try:
        path = inspect.getsourcefile(thing)
    except TypeError:  # made in C, or at run time
        return b""
    return Path(path).read_bytes() if path and Path(path).is_file() else b""


def of_values(values: Any) -> str:
    """Returns a digest of what JSON knows."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def compare(found: Sequence[Mapping[str, Any]], when: str, advice: str) -> None:
    """Holds what the ranks have against each other.

    Args:
        found: For each rank what it has, by name.
        when: Such as "before the first step".
        advice: What to do.

    Raises:
        RanksDifferError: If they differ: which rank from the others, and in what.
    """
    common = Counter(json.dumps(one, sort_keys=True) for one in found).most_common()
    # Where no one has the majority, rank 0 is who the others are compared with.
    most = [one for one in common if one[1] == common[0][1]]
    usual = found[0] if len(most) > 1 else json.loads(common[0][0])
    lines = []
    for rank, own in enumerate(found):
        other = [name for name in usual if own.get(name) != usual[name]]
        if other:
            told = ", ".join(_difference(name, own.get(name), usual[name]) for name in other)
            lines.append(f"Rank {rank} differs from {'rank 0' if len(found) == 2 else 'the others'} in: {told}.")
    if lines:
        raise RanksDifferError(f"The ranks are not the same {when}. {' '.join(lines)} {advice}")


def _difference(name: str, own: Any, usual: Any) -> str:
    return f"{name} ({own}, not {usual})" if isinstance(own, int | float) else name
