"""Sizes that modules keep as Python integers (`out_channels`, `num_heads`), and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from evolve.structure.analysis import Analysis
from evolve.structure.axes.algebra import Axis
from evolve.structure.configs import config_at, fields_of, rewrite_configs
from evolve.structure.tracing.tape import Shape

Sizes = Mapping[Axis, int]


@dataclass(frozen=True)
class Setting:
    """An integer that a module keeps.

    Attributes:
        module: Dotted name of the module.
        attribute: Its attribute; a dotted name for a field of a config that it holds.
        position: Position in the attribute's tuple; None where it is a plain integer.
        value: The new value.
    """

    module: str
    attribute: str
    position: int | None
    value: int

    @property
    def field(self) -> str:
        """The attribute's name in what holds it."""
        return self.attribute.rpartition(".")[2]


def holder_of(model: nn.Module, setting: Setting) -> Any:
    """Returns what a setting stands in: a module, or a config that modules hold."""
    module = model.get_submodule(setting.module)
    path = setting.attribute.rpartition(".")[0]
    return config_at(module, path) if path else module


def read_setting(model: nn.Module, setting: Setting) -> Any:
    """Returns the present value of a setting."""
    holder = holder_of(model, setting)
    inside = isinstance(holder, nn.Module)
    value = getattr(holder, setting.field, None) if inside else fields_of(holder)[setting.field]
    return value[setting.position] if isinstance(value, (tuple, list)) and setting.position is not None else value


def change_settings(model: nn.Module, settings: list[Setting]) -> None:
    """Gives modules their new integers."""
    in_configs: dict[tuple[int, str, int | None], int] = {}
    for setting in settings:
        holder = holder_of(model, setting)
        if not isinstance(holder, nn.Module):
            in_configs[id(holder), setting.field, setting.position] = setting.value
            continue
        value: Any = setting.value
        if setting.position is not None:
            old = getattr(holder, setting.attribute)
            value = type(old)(setting.value if i == setting.position else item for i, item in enumerate(old))
        setattr(holder, setting.attribute, value)
    if in_configs:
        rewrite_configs(
            model,
            lambda config, _, path, position, old: in_configs.get((id(config), path.rpartition(".")[2], position), old),
        )


def known_settings(model: nn.Module, analysis: Analysis, sizes: Sizes) -> list[Setting]:
    """Returns the settings that are known to follow: PyTorch's own layers', and those that the recorded run read."""
    groups = _conv_groups(analysis, sizes)
    changed = changed_sources(analysis, sizes)
    found = []
    names = {id(tensor): name for name, tensor in (*model.named_buffers(), *model.named_parameters())}
    for name, module in model.named_modules():
        if not isinstance(module, _SIZED):
            continue
        shapes = {key: changed[source] for key, source in _tensors_of(module, names) if source in changed}
        if shapes:
            found += [Setting(name, *setting) for setting in _layer_sizes(module, shapes, groups.get(name))]
    found += _norms_without_tensors(model, analysis, sizes, groups)
    for tape in analysis.tapes:
        for (name, attribute, place), (value, position) in tape.settings.items():
            axis = analysis.flow.of(value)[position]
            if axis.resized(sizes) != axis.size:
                found.append(Setting(name, attribute, place, axis.resized(sizes)))
    return list(dict.fromkeys(found))


def _norms_without_tensors(
    model: nn.Module, analysis: Analysis, sizes: Sizes, groups: Mapping[str, int]
) -> Iterator[Setting]:
    """Yields the sizes that norms without scales keep, by what came in."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for call in (call for tape in analysis.tapes for call in tape.calls):
        module = modules[call.module]
        if not isinstance(module, _NORMS) or module.state_dict() or not call.inputs:
            continue
        axes = analysis.flow.of(call.inputs[0])
        new = [axis.resized(sizes) for axis in axes]
        if len(new) < 2 or new == [axis.size for axis in axes]:
            continue
        match module:
            case nn.LayerNorm() | nn.RMSNorm():
                for position, size in enumerate(new[-len(module.normalized_shape) :]):
                    yield Setting(call.module, "normalized_shape", position, size)
            case nn.GroupNorm():
                yield Setting(call.module, "num_channels", None, new[1])
                yield Setting(call.module, "num_groups", None, groups.get(call.module, module.num_groups))
            case _:
                yield Setting(call.module, "num_features", None, new[1])


_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
_SIZED = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, *_NORMS)


def _tensors_of(module: nn.Module, names: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    """Yields the tensors that tell a layer's sizes, and their names in the model; tied ones have another layer's."""
    for key, places in _LAYER_TENSORS.items():
        found = next((tensor for place in places if (tensor := _tensor_at(module, place)) is not None), None)
        if found is not None and id(found) in names:
            yield key, names[id(found)]


def _tensor_at(module: nn.Module, place: str) -> Tensor | None:
    """Returns the parameter or buffer that a module has under a dotted name; None where it has none."""
    *path, name = place.split(".")
    for step in path:
        child = module._modules.get(step)
        if child is None:
            return None
        module = child
    parameter = module._parameters.get(name)
    return module._buffers.get(name) if parameter is None else parameter


# Where a layer keeps the tensors that tell its sizes; a weight may be computed from one of the same shape.
_LAYER_TENSORS = {
    "weight": (
        *("weight", "parametrizations.weight.original", "parametrizations.weight.original1"),
        *("weight_orig", "weight_v"),
    ),
    "running_mean": ("running_mean",),
    "out_proj.weight": ("out_proj.weight",),
    "k_proj_weight": ("k_proj_weight",),
    "v_proj_weight": ("v_proj_weight",),
}


def changed_sources(analysis: Analysis, sizes: Sizes) -> dict[str, Shape]:
    """Returns the new shapes of the parameters and buffers that change."""
    found = {}
    for name, axes in analysis.flow.sources.items():
        shape = tuple(axis.resized(sizes) for axis in axes)
        if any(new != axis.size for new, axis in zip(shape, axes, strict=True)):
            found[name] = shape
    return found


def _conv_groups(analysis: Analysis, sizes: Sizes) -> dict[str, int]:
    found = {}
    for tape in analysis.tapes:
        for op in tape.ops:
            literal = analysis.flow.literals.get(id(op))
            if literal is not None:
                found[tape.modules_of(op)[0]] = literal[1].resized(sizes)
    return found


def _layer_sizes(  # noqa: PLR0911 - one for each kind of layer
    module: nn.Module, shapes: Mapping[str, Shape], groups: int | None
) -> list[tuple[str, int | None, int]]:
    """Returns attribute, position and value of the sizes of one of PyTorch's layers."""
    first = next(iter(shapes.values()))
    match module:
        case nn.Linear():
            return [("out_features", None, first[0]), ("in_features", None, first[1])]
        case nn.modules.conv._ConvNd():
            count = groups or module.groups
            sizes = (first[1] * count, first[0]) if module.transposed else (first[0], first[1] * count)
            return [("out_channels", None, sizes[0]), ("in_channels", None, sizes[1]), ("groups", None, count)]
        case nn.modules.batchnorm._NormBase():
            return [("num_features", None, first[0])]
        case nn.GroupNorm():
            return [("num_channels", None, first[0]), ("num_groups", None, groups or module.num_groups)]
        case nn.LayerNorm() | nn.RMSNorm():
            return [("normalized_shape", position, size) for position, size in enumerate(first)]
        case nn.Embedding() | nn.EmbeddingBag():
            return [("embedding_dim", None, first[1])]
        case nn.MultiheadAttention() if "out_proj.weight" in shapes:
            width = shapes["out_proj.weight"][0]
            sides = {"kdim": shapes.get("k_proj_weight"), "vdim": shapes.get("v_proj_weight")}
            return [("embed_dim", None, width), *((k, None, v[1] if v else width) for k, v in sides.items())]
    return []
