"""Parts of a model as expressions: layers, containers, the built-in models' classes, and blocks at their sites."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from evolve.blocks.layers import Blend, ConvChain, LinearBlock, SelfAttention, SqueezeExcite, TransformerBlock
from evolve.blocks.pass_through import PassThrough
from evolve.blocks.shortcuts import ChannelNorm, ConvProjection, GatedIdentity, LinearProjection
from evolve.errors import MisfitError
from evolve.export.layers import base_class, layer_call
from evolve.export.source import Call, below, call, literal
from evolve.surgery.attach import BlockStore, Link

_PADS = {1: "nn.ZeroPad1d", 2: "nn.ZeroPad2d", 3: "nn.ZeroPad3d"}


Around = Literal["needed", "likely", "everywhere"]


class CannotWriteError(MisfitError):
    """A part of the model has no source that would make it."""


class Writer:
    """Turns parts of an evolved model into expressions.

    Args:
        around: Where what stands around a layer takes any arguments and answers for the layer, as others may read its
            attributes: "needed" where its forward cannot take one argument alone, "likely" where it may take more,
            "everywhere".

    Attributes:
        classes: The built-in models' classes that the source has to define, in the order of their use.
    """

    def __init__(self, around: Around) -> None:
        self.around = around
        self.classes: dict[str, type[nn.Module]] = {}

    def part(self, module: nn.Module, path: str) -> Call:
        """Returns the expression for a module and the blocks at it.

        Raises:
            CannotWriteError: If there is none.
        """
        return self.with_blocks(module, self.bare(module, path))

    def bare(self, module: nn.Module, path: str) -> Call:
        """Returns the expression for a module without the blocks at the whole of it."""
        layer = layer_call(module)
        if layer is not None:
            return layer
        cls = base_class(module)
        if cls in (nn.Sequential, nn.ModuleList):
            return self._container(module, path)
        if cls is PassThrough:
            return call("nn.Identity", origins={"": module})
        if cls is ChannelNorm:
            return call("ChannelNorm", str(module.weight.numel()), origins={"": module}, needs=["ChannelNorm"])  # type: ignore[operator]
        if cls in _BLOCKS:
            return _BLOCKS[cls](self, module, path)
        if cls.__module__.startswith("evolve.models."):
            return self._built_in(module, path)
        raise CannotWriteError(
            f"'{path}' is a {cls.__module__}.{cls.__qualname__}, and nothing tells how it was made. Say how the base "
            "model is built: built_by='package.module:function', its options in build_options."
        )

    def children(self, module: nn.Module, path: str) -> dict[str, Call]:
        """Returns the expressions for the children of a module; the store of blocks is none."""
        named = module._modules.items()
        return {
            name: self.part(child, f"{path}.{name}" if path else name)
            for name, child in named
            if child is not None and not isinstance(child, BlockStore)
        }

    def _container(self, module: nn.Module, path: str) -> Call:
        parts = list(self.children(module, path).values())
        spans = [link for link in links_of(module) if link.span is not None]
        cls = base_class(module).__name__
        if cls == "ModuleList":
            return _listed("nn.ModuleList", parts, brackets=True)
        return _listed("nn.Sequential", _flat(self.in_runs(parts, spans, path)))

    def in_runs(self, parts: list[Call], links: Sequence[Link], path: str) -> list[Call]:
        """Returns the children of a `Sequential` with the blocks at runs of them; a run becomes one child."""
        slots: list[tuple[int, int, Call]] = [(index, index + 1, part) for index, part in enumerate(parts)]
        for link in links:
            first, end = link.span or (0, 0)
            if not link.parallel:  # behind a run is behind its last child
                first = max(start for start, stop, _ in slots if stop == end) if _ends(slots, end) else -1
            inside = [slot for slot in slots if first <= slot[0] and slot[1] <= end]
            if not inside or (inside[0][0], inside[-1][1]) != (first, end):
                raise CannotWriteError(
                    f"Blocks stand at runs of children of '{path}' that overlap in part, as in 0:3 and 2:5."
                )
            run = inside[0][2] if len(inside) == 1 else _listed("nn.Sequential", [part for _, _, part in inside])
            at = slots.index(inside[0])
            slots[at : at + len(inside)] = [(first, end, self.attached(run, link, nn.Sequential()))]
        return [part for _, _, part in slots]

    def with_blocks(self, module: nn.Module, part: Call) -> Call:
        """Returns an expression with the blocks at the whole of a module."""
        for link in links_of(module):
            if link.span is None:
                part = self.attached(part, link, module)
        return part

    def attached(self, part: Call, link: Link, site: nn.Module) -> Call:
        """Returns an expression with one block behind or beside it."""
        around = self.around == "everywhere" or not takes_one(site, strictly=self.around == "likely")
        block, path = link.block, f"evolved.{link.name}"
        cls = base_class(block)
        if cls is Blend:
            new = self.part(block.new, f"{path}.new")  # type: ignore[arg-type]
            name, own = ("AroundBlend", "layer") if around else ("Blend", "old")
            origins = {**below(own, part), **below("new", new), "": block}
            blended = call(name, part, new, origins=origins, needs=[name])
            return self._with_more(_like(blended, block), block, site)
        if link.parallel:
            return self._with_more(self._beside(part, block, path, around), block, site)
        behind = self.part(block, path)
        if around:
            origins = {**below("layer", part), **below("block", behind)}
            return call("AroundThen", part, behind, origins=origins, needs=["AroundThen"])
        return _chain([*_opened(part), behind])

    def _with_more(self, part: Call, block: nn.Module, site: nn.Module) -> Call:
        """Blocks at a block beside a site get what that one got: the site's input, and what came of it so far."""
        for link in links_of(block):
            part = self.attached(part, link, site)
        return part

    def _beside(self, part: Call, block: nn.Module, path: str, around: bool) -> Call:
        """`layer(x) + branch(x)`."""
        cls, norm, dims = base_class(block), None, 0
        if cls is GatedIdentity:
            branch = _like(call("Gate", origins={"": block}, needs=["Gate"]), block)
        elif cls is LinearProjection:
            branch = self.part(block.linear, f"{path}.linear")  # type: ignore[arg-type]
        elif cls is ConvProjection:
            branch, norm = (self.part(getattr(block, n), f"{path}.{n}") for n in ("conv", "norm"))
            dims = block.conv.weight.dim() - 2  # type: ignore[union-attr, operator]
        elif cls is ConvChain:
            branch = _listed("nn.Sequential", self.chained(block, path))
            dims = block.conv1.weight.dim() - 2  # type: ignore[union-attr, operator]
        elif cls is LinearBlock:
            branch = _listed("nn.Sequential", self.chained(block, path))
        else:
            raise CannotWriteError(f"'{path}' stands beside a layer and is a {cls.__qualname__}, which has no source.")
        past = literal(list(getattr(block, "past", ())))
        shifts = past != "[]"
        name = "AroundBeside" if around else "BesidePast" if shifts else f"Beside{dims}d" if dims else "Beside"
        origins = {**below("layer", part), **below("branch", branch), **(below("norm", norm) if norm else {})}
        keywords: dict[str, Call | str] = {"norm": norm} if norm is not None else {}
        if shifts:
            keywords["past"] = str(past)
        return call(name, part, branch, origins=origins, needs=[name], keywords=keywords)

    def chained(self, block: Any, path: str) -> list[Call]:
        """Returns the layers of a block in their order."""
        children = self.children(block, path)
        if isinstance(block, LinearBlock):
            gelu = call("nn.GELU")
            return [children["norm"], children["linear1"], gelu, children["linear2"]]
        found: list[Call] = []
        for number in range(1, block.layers + 1):
            conv = getattr(block, f"conv{number}")
            pads = [0, 0] * len(conv.kernel_size)
            for axis, _ in block.past:
                pads[2 * axis + 1] = conv.kernel_size[axis] - 1
            if any(pads):
                found.append(call(_PADS[len(conv.kernel_size)], str(literal(tuple(pads[::-1])))))
            found += [children[f"conv{number}"], children[f"norm{number}"], call("nn.ReLU")]
        return found[:-1]

    def _built_in(self, module: nn.Module, path: str) -> Call:
        cls = base_class(module)
        self.classes.setdefault(cls.__name__, cls)
        children = self.children(module, path)
        settings = {name: str(literal(value)) for name, value in own_settings(module).items()}
        origins = {"": module, **{key: m for name, part in children.items() for key, m in below(name, part).items()}}
        return call(cls.__name__, origins=origins, keywords={**settings, **children})


def own_settings(module: nn.Module) -> dict[str, Any]:
    """Returns the plain settings that a module keeps beside its children."""
    blank = vars(nn.Module())
    kept = {name: value for name, value in vars(module).items() if name not in blank and name != "_evolve_links"}
    return {name: value for name, value in kept.items() if literal(value) is not None}


def links_of(module: nn.Module) -> Sequence[Link]:
    """Returns the blocks at work at a module."""
    links: Sequence[Link] = vars(module).get("_evolve_links", ())
    return links


def takes_one(module: nn.Module, *, strictly: bool = False) -> bool:
    """Whether the forward of a module takes one argument.

    Args:
        module: The module.
        strictly: Whether a second one that may be left out counts; not of PyTorch's layers, which are hardly given one.
    """
    cls = base_class(module)
    if cls.__module__.startswith("evolve.blocks"):
        return True  # behind a layer
    parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
    if cls.__module__.startswith("torch.nn") or not strictly:
        parameters = [parameter for parameter in parameters if parameter.default is parameter.empty]
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len(parameters) == 1 and parameters[0].kind in kinds


def _like(part: Call, block: Any) -> Call:
    """Gives what holds a gate the type of the gate."""
    dtype = block.gate.dtype
    return part if dtype == torch.float32 else replace(part, suffix=f".to({dtype})")


def _ends(slots: Sequence[tuple[int, int, Call]], end: int) -> bool:
    return any(stop == end for _, stop, _ in slots)


@dataclass(frozen=True)
class _Chain(Call):
    """A `Sequential` that stands for one layer: inside another one its parts can stand by themselves."""

    parts: Sequence[Call] = ()


def _flat(parts: Sequence[Call]) -> list[Call]:
    return [inner for part in parts for inner in (part.parts if isinstance(part, _Chain) else [part])]


def _opened(part: Call) -> list[Call]:
    """The children of a `Sequential` that is written here, or the part itself."""
    if part.function != "nn.Sequential" or part.arguments is None:
        return [part]
    values = [value for _, value in part.arguments]
    inside = [
        {k.partition(".")[2]: m for k, m in part.origins.items() if k.partition(".")[0] == str(i)}
        for i in range(len(values))
    ]
    return [replace(value, origins=own) for value, own in zip(values, inside, strict=True) if isinstance(value, Call)]


def _chain(parts: Sequence[Call]) -> Call:
    flat = _flat(parts)
    listed = _listed("nn.Sequential", flat)
    return _Chain(listed.function, listed.arguments, listed.origins, listed.needs, parts=flat)


def _listed(function: str, parts: Sequence[Call], *, brackets: bool = False) -> Call:
    origins = {key: module for index, part in enumerate(parts) for key, module in below(str(index), part).items()}
    if brackets:
        inner = Call("", [(None, part) for part in parts])
        return call(function, _Bracketed.of(inner, parts), origins=origins)
    return call(function, *parts, origins=origins)


class _Bracketed(Call):
    """A list of expressions."""

    @classmethod
    def of(cls, inner: Call, parts: Sequence[Call]) -> Call:
        return cls("", inner.arguments, {}, frozenset(name for part in parts for name in part.needs))

    def text(self, indent: int = 0, before: int = 0) -> str:
        """Returns the source, in brackets."""
        written = super().text(indent, before)
        return f"[{written[1:-1]}]"


def _residual(writer: Writer, block: nn.Module, path: str) -> Call:
    parts = writer.chained(block, path)
    inner = _listed("nn.Sequential", parts)
    return call("Residual", *parts, origins=below("layers", inner), needs=["Residual"])


def _transformer(writer: Writer, block: nn.Module, path: str) -> Call:
    return _chain(list(writer.children(block, path).values()))


def _attention(writer: Writer, block: Any, path: str) -> Call:
    children = writer.children(block, path)
    names = ("norm", "queries", "keys", "values", "project")
    origins = {"": block, **{key: m for name in names for key, m in below(name, children[name]).items()}}
    keywords: dict[str, Call | str] = {name: children[name] for name in names}
    name = "ImageAttention" if block.channels_first else "TokenAttention"
    if block.past and block.channels_first:
        name, keywords["past"] = "PastAttention", str(literal(list(block.past)))
    elif block.past:
        keywords["causal"] = "True"
    return _like(call(name, str(block.heads), origins=origins, needs=[name], keywords=keywords), block)


def _squeeze_excite(writer: Writer, block: Any, path: str) -> Call:
    children = writer.children(block, path)
    name = "PastSqueezeExcite" if block.past else "SqueezeExcite"
    origins = {"": block, **below("squeeze", children["squeeze"]), **below("excite", children["excite"])}
    more: dict[str, Call | str] = {"past": str(literal(list(block.past)))} if block.past else {}
    return _like(
        call(name, children["squeeze"], children["excite"], origins=origins, needs=[name], keywords=more), block
    )


_BLOCKS: dict[type[nn.Module], Callable[[Writer, nn.Module, str], Call]] = {
    ConvChain: _residual,
    LinearBlock: _residual,
    TransformerBlock: _transformer,
    SelfAttention: _attention,
    SqueezeExcite: _squeeze_excite,
}
