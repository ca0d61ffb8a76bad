"""Mutated models of transformers in a folder: weights and config as transformers writes them, and evolve's records.

transformers has words for layers of different sizes (`per_layer_config`), but as of version 5 only a few models read
them; most refuse a config that has them. So the folder names the base model's config and the mutations.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from evolve.errors import CheckpointError, EvolveError, missing_package
from evolve.integrations.folder import read_file, write_records
from evolve.lineage import Record
from evolve.mutation.bounded import BoundedBuild, OversizedError
from evolve.mutation.replaying import replay
from evolve.training.restoring import fitting, replay_bounded

try:
    import transformers
    from transformers import PretrainedConfig, PreTrainedModel
except ImportError as error:
    raise EvolveError(missing_package(f"'{__name__}'", "transformers", error)) from error

# How large a base model may be: so many times what it was made into, and that so many times while it is being built,
# with masks that are thrown away; a small model may have a large mask.
_SHRUNK, _WORK, _SMALL = 64, 8, 2**24
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def save_pretrained(
    model: PreTrainedModel,
    folder: str | Path,
    records: Iterable[Record],
    *,
    base_config: PretrainedConfig | None = None,
) -> None:
    """Saves a mutated model for `from_pretrained` of this module.

    Whether the records lead from the base model to this one is tried before anything is written; that takes the memory
    of one more model on the host.

    Args:
        model: As it stands.
        folder: As for `model.save_pretrained`.
        records: Of every mutation since the base model.
        base_config: The config that the base model was built from; a copy made before the first mutation. The model's
            own if None, which is the same unless a mutation changed a number in it.

    Raises:
        EvolveError: If the records do not lead to this model.
    """
    records, config = list(records), copy.deepcopy(base_config if base_config is not None else model.config)
    try:
        twin = type(model)(config)
        replay(twin, records)
        problem = _differences(_shapes(twin), _shapes(model))
    except EvolveError as error:
        problem = str(error)
    if problem:
        raise EvolveError(
            f"Base config and records do not lead to this {type(model).__name__}: {problem} Pass the record of every "
            "mutation, and base_config=..., a copy of the config from before the first one."
        )
    model.save_pretrained(folder)
    write_records(folder, records, **base_of(type(model), config))


def from_pretrained(folder: str | Path, model_class: type[PreTrainedModel] | None = None) -> PreTrainedModel:
    """Loads a mutated model: builds the base model from its config, replays the records, loads the weights.

    Args:
        folder: Written by `save_pretrained`, or a checkpoint of a Trainer with an `EvolveCallback`.
        model_class: For models that are not classes of transformers.

    Returns:
        The model, in eval mode. Its records: `evolve.integrations.folder.read_records(folder)`.

    Raises:
        CheckpointError: If the folder is damaged, or its parts do not fit each other.
        EvolveError: If its records do not fit the base model.
        UnknownNameError: If a mutation was made by an operator that is not known: import its plugin first.
    """
    records, content = read_file(folder)
    found = model_class or getattr(transformers, str(content.get("class")), None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)) or found.config_class is None:
        raise CheckpointError(
            f"'{folder}' is of a {content.get('class')!r}, which transformers does not have. Pass model_class=..."
        )
    if not isinstance(content.get("base_config"), dict):
        raise CheckpointError(f"'{folder}' does not say which config its base model has.")
    tensors = _weights(Path(folder))
    with fitting(Path(folder)):
        model = _base(found, found.config_class.from_dict(content["base_config"]), records, tensors)
        replay_bounded(model, records, tensors)
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        model.tie_weights()
    if unexpected or (missing := sorted(set(missing) - _tied(model, tensors))):
        raise CheckpointError(f"The weights in '{folder}' do not fit: missing {missing}, unexpected {unexpected}.")
    floating = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), None)
    if floating is not None:
        nn.Module.to(model, floating)
    nn.Module.eval(model)
    return model


def _base(
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    records: Iterable[Record],
    tensors: Mapping[str, Tensor],
) -> PreTrainedModel:
    """Builds a base model, if it can be the one that the saved weights come of: a config may be anybody's.

    Raises:
        CheckpointError: If it is far larger; asked before memory is taken.
    """
    held = sum(tensor.numel() for tensor in tensors.values())
    grown = sum(record.params_after - record.params_before for record in records if record.status == "applied")
    most = _WORK * min(max(held - grown, held), _SHRUNK * held) + _SMALL
    try:
        with BoundedBuild(most):
            return model_class(config)
    except OversizedError as error:
        raise CheckpointError(
            f"The base config declares a model of more than {most:,} elements, and {held:,} were saved of the mutated "
            "one: it belongs to another model, or was damaged. Nothing of that size was built."
        ) from error


def base_of(model_class: type[PreTrainedModel], config: PretrainedConfig) -> dict[str, Any]:
    """Returns what is written of a base model."""
    return {"class": model_class.__name__, "base_config": json.loads(config.to_json_string(use_diff=False))}


def _weights(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors of a folder, which may be in several files."""
    try:
        names = {_WEIGHTS}
        if (folder / _INDEX).is_file():
            names = set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        if outside := [name for name in names if Path(name).name != name]:
            raise CheckpointError(f"'{folder / _INDEX}' names a file of another folder: {outside[0]!r}.")
        return {key: tensor for name in sorted(names) for key, tensor in load_file(folder / name).items()}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"The weights in '{folder}' are missing or damaged: {error}") from error


def _tied(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> set[str]:
    """Names of tensors that are the same as one that was loaded."""
    state = model.state_dict(keep_vars=True)
    loaded = {id(tensor) for name, tensor in state.items() if name in tensors}
    return {name for name, tensor in state.items() if id(tensor) in loaded}


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _differences(built: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """Says what is first that differs; "" where nothing does."""
    for name in sorted({*built, *found}):
        if built.get(name) != found.get(name):
            return f"'{name}' would have shape {built.get(name)}, the model has {found.get(name)}."
    return ""
