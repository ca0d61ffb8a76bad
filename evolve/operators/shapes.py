"""What stands at a site: its layout, its channels, its stride, from the probe or from the site's own layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from evolve.blocks.shortcuts import floats_near
from evolve.errors import NotApplicable
from evolve.structure.probe import Probe
from evolve.structure.sites import Site

Layout = Literal["channels_first", "features_last"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class SiteShape:
    """A site as operators see it.

    Attributes:
        layout: Where the channels are: axis 1 of (N, C, ...) or the last axis of (N, ..., F).
        dims: Spatial dimensions of a channels-first site, else 0.
        inputs: Channels or features that come in.
        outputs: Channels or features that go out.
        stride: Per spatial axis, of a channels-first site.
        same: Whether the output has the shape of the input.
        pooled: Whether the stride alone does not give the output's size, and pooling has to.
    """

    layout: Layout
    dims: int
    inputs: int
    outputs: int
    stride: tuple[int, ...]
    same: bool
    pooled: bool = False


def site_shape(site: Site, probe: Probe) -> SiteShape:
    """Returns what the probe saw at the site or, where it never ran, what the site's layers say.

    Raises:
        NotApplicable: If neither says enough, or no projection leads from the input's to the output's shape.
    """
    shapes = probe.shapes(site)
    if shapes is None:
        return _from_layers(site)
    taken, given = shapes
    if len(taken) != len(given):
        raise NotApplicable(
            f"'{site.name}' maps {taken} to {given}: a shortcut needs the same number of axes on both sides. "
            "Choose a site that ends before the tensor is flattened."
        )
    if len(taken) < 2 or 0 in (*taken, *given):
        raise NotApplicable(f"'{site.name}' maps {taken} to {given}: there is no channel axis or it is empty.")
    if probe.calls[site.ends[0]][0].counts:
        raise NotApplicable(f"'{site.name}' takes integers, which no block can compute with. Choose a site behind it.")
    layout = _layout(site, taken)
    if layout == "features_last":
        if taken[:-1] != given[:-1]:
            raise NotApplicable(f"'{site.name}' maps {taken} to {given}: all axes but the last have to agree.")
        return SiteShape(layout, 0, taken[-1], given[-1], (), taken == given)
    strides = tuple(safe_stride(i, o) for i, o in zip(taken[2:], given[2:], strict=True))
    reached = tuple((i - 1) // s + 1 for i, s in zip(taken[2:], strides, strict=True))
    return SiteShape(layout, len(taken) - 2, taken[1], given[1], strides, taken == given, reached != given[2:])


def dtype_of_flow(model: nn.Module, site: Site, probe: Probe, *, behind: bool) -> dict[str, str]:
    """Returns the floating-point type in which a block at a site has to compute, as a part of a plan.

    Models keep islands of another precision, such as a LayerNorm with float32 weights in a bfloat16 model: there the
    tensors that flow are of another type than the site's own.

    Args:
        model: The model.
        site: The site.
        probe: What was seen there.
        behind: Whether the block takes the site's output, or its input.

    Returns:
        `{"dtype": name}`; nothing where the site's own tensors tell, or nothing is known.
    """
    calls = probe.calls.get(site.ends[1 if behind else 0])
    flows = (calls[0].output_dtype if behind else calls[0].input_dtype) if calls else None
    own = floats_near(site.layers, model)
    return {} if flows is None or not own or flows == own[0].dtype else {"dtype": str(flows).removeprefix("torch.")}


def safe_stride(size_in: int, size_out: int) -> int:
    """Returns the stride, at least 1, with which a 1x1 convolution comes closest to `size_out` from above.

    A 1x1 convolution gives floor((in - 1) / stride) + 1: the rounded-up ratio where that hits the size, else the
    rounded-down one, and pooling does the rest. An output larger than the input gets 1.
    """
    exact = math.ceil(size_in / size_out)
    return exact if (size_in - 1) // exact + 1 == size_out else max(1, size_in // size_out)


def _layout(site: Site, taken: tuple[int, ...]) -> Layout:
    """(N, L, D) and (N, H, W, C) look like images; the site's own layers tell which axis they work on."""
    axes = len(taken)
    if axes == 2:
        return "features_last"
    kinds = site.layers
    if any(isinstance(layer, (*_CONVS, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)) for layer in kinds):
        return "channels_first"
    if any(isinstance(layer, nn.Linear | nn.LayerNorm | nn.MultiheadAttention | nn.Embedding) for layer in kinds):
        widths = {layer.in_features for layer in kinds if isinstance(layer, nn.Linear)}
        widths |= {layer.normalized_shape[-1] for layer in kinds if isinstance(layer, nn.LayerNorm)}
        turned = axes > 3 and taken[1] in widths and taken[-1] not in widths  # they see the channels moved to the end
        return "channels_first" if turned else "features_last"
    return "channels_first" if 3 < axes < 6 else "features_last"


def _from_layers(site: Site) -> SiteShape:
    convs = [layer for layer in site.layers if isinstance(layer, _CONVS)]
    linears = [layer for layer in site.layers if isinstance(layer, nn.Linear)]
    if convs and not linears and len({layer.weight.dim() for layer in convs}) == 1:
        dims = convs[0].weight.dim() - 2
        strides = tuple(math.prod(axis) for axis in zip(*_strides(site.layers, dims), strict=True))
        first, last = convs[0].in_channels, convs[-1].out_channels
        return SiteShape("channels_first", dims, first, last, strides, first == last and set(strides) == {1})
    if linears and not convs:
        first, last = linears[0].in_features, linears[-1].out_features
        return SiteShape("features_last", 0, first, last, (), first == last)
    raise NotApplicable(
        f"'{site.name}' was not reached by the probe batch and its layers do not say which shapes it maps "
        f"({len(convs)} convolutions, {len(linears)} linear layers). Pass example_inputs that reach it."
    )


def _strides(layers: Iterable[nn.Module], dims: int) -> list[tuple[int, ...]]:
    pools = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)
    found: list[tuple[int, ...]] = [(1,) * dims]
    for layer in layers:
        if isinstance(layer, (*_CONVS, *pools)):
            stride: Any = layer.stride
            found.append(tuple(stride) if isinstance(stride, tuple) else (stride,) * dims)
    return found
