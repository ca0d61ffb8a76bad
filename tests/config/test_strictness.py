"""A value of another type, or one that would do nothing, is a fault of the file: nothing is guessed."""

import pytest
import torch
import yaml
from helpers.yaml_files import GOOD

from evolve.config import ConfigError, apply_overrides, parse_yaml, signature_faults, validate
from evolve.config.types import type_words
from evolve.evolver.run_config import RunConfig

OPERATOR = "evolution.operators.0"


def load(*overrides):
    raw, places, faults = parse_yaml(GOOD, "f")
    raw, places, more = apply_overrides(raw, places, overrides)
    return validate(RunConfig, raw, places, "f", [*faults, *more])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evolution.limits.params=true", "whole number"),
        ('evolution.limits.params="5"', "whole number"),
        ("evolution.limits.params=5.5", "whole number"),
        ("evolution.limits.latency_ms=true", "number"),
        ("evolution.limits.latency_ms=.inf", "finite"),
        ("evolution.repay=.inf", "finite"),
        ("evolution.attempts=true", "whole number"),
        ("evolution.probation={steps: true}", "whole number"),
        ("evolution.care.decay_grace=true", "whole number"),
        ("evolution.care.rewarm={steps: 3, start: .nan}", "finite"),
        ("evolution.care.shrink={keep: '0.5'}", "shrink"),
        ("training.grad_clip=.inf", "finite"),
        ("training.grad_clip=true", "number"),
        ("training.ema=.nan", "number"),
        ("training.seed=1.0", "whole number"),
        ("training.compile=1", "true or false"),
        ("training.compile='yes'", "true or false"),
        ("data.augment=1", "true or false"),
        ("data.batch_size=true", "whole number"),
        ("evolution.schedule.options.epochs=true", "whole number"),
        ("evolution.schedule.options.epochs='2'", "whole number"),
        ("evolution.schedule={name: every, options: {steps: 2.0}}", "whole number"),
        ("evolution.schedule={name: every, options: {progress: '0.5'}}", "number"),
        ("evolution.schedule={name: every, options: {epochs: 2, start: true}}", "number"),
        ("evolution.schedule={name: every, options: {epochs: 2, start: 5, stop: 3}}", "before start"),
        ("evolution.schedule={name: every, options: {progress: 0.1, start: 2}}", "at most 1"),
        ("evolution.schedule={name: every, options: {epochs: 2, stop: .inf}}", "finite"),
        ("evolution.schedule={name: at, options: {epochs: []}}", "at least 1"),
        ("evolution.schedule={name: at, options: {epochs: [1, true]}}", "whole number"),
        ("evolution.schedule={name: at, options: {epochs: ['1']}}", "whole number"),
        ("evolution.schedule={name: plateau, options: {min_delta: .nan}}", "number"),
        ("evolution.schedule={name: plateau, options: {patience: true}}", "whole number"),
        ("evolution.schedule={name: plateau, options: {metric: val_accuarcy}}", "Did you mean 'val_accuracy'"),
        (
            "evolution.schedule={name: plateau, options: {metric: val_accuracy, mode: min}}",
            "rises as a model gets better",
        ),
        ("evolution.schedule={name: plateau, options: {metric: val_loss, mode: max}}", "falls as a model gets better"),
        ("evolution.schedule={name: gain, options: {window: true}}", "whole number"),
        ("evolution.schedule={name: gap, options: {middle: .inf}}", "finite"),
        ("evolution.schedule={name: gap, options: {metric: val_loss}}", "one of"),
        ("evolution.policy={name: bandit, options: {metric: val_los}}", "Did you mean 'val_loss'"),
        ("evolution.policy={name: bandit, options: {regions: '3'}}", "whole number"),
        ("evolution.policy={name: random, options: {seed: true}}", "whole number"),
        ("evolution.policy={name: fixed, options: {steps: []}}", "at least 1"),
        ("evolution.policy={name: fixed, options: {steps: [{operator: residuel}]}}", "Did you mean 'residual'"),
        ("evolution.policy={name: gradient, options: {batches: 2.0}}", "whole number"),
        (OPERATOR + "={name: deepen, options: {kernel: 4}}", "4 is even"),
        (OPERATOR + "={name: branch, options: {kernel: 4}}", "4 is even"),
        (OPERATOR + "={name: kernel, options: {add: 3}}", "multiple of 2"),
        (OPERATOR + "={name: widen, options: {factor: '1.5'}}", "number"),
        (OPERATOR + "={name: widen, options: {factor: .inf}}", "finite"),
        (OPERATOR + "={name: widen, options: {factor: true}}", "number"),
        (OPERATOR + "={name: widen, options: {facter: 2}}", "Did you mean 'factor'"),
        (OPERATOR + "={name: deepen, options: {block: mlp, kernel: 5}}", "does nothing"),
        (OPERATOR + "={name: narrow, options: {indices: [0], criterion: indices, multiple_of: 4}}", "does nothing"),
        ("optimizer.options.lr='0.1'", "expected number"),
        ("optimizer.options.lr=true", "expected number"),
        ("optimizer.options.lr=.nan", "finite"),
        ("optimizer.options.weight_decay=.inf", "finite"),
        ("optimizer.options.nesterov=1", "expected true or false"),
        ("optimizer={name: Adam, options: {betas: [0.9]}}", "betas"),
        ("optimizer={name: Adam, options: {betas: ['0.9', 0.99]}}", "betas"),
        ("lr_schedule.options.max_lr='0.1'", "expected"),
        ("lr_schedule.options.max_lr=.inf", "finite"),
        ("lr_schedule={name: StepLR, options: {step_size: '3'}}", "expected whole number"),
        ("model.options.num_classes='10'", "expected whole number"),
        ("model.options.num_classes=true", "expected whole number"),
        ("model.options.blocks=[1, '1']", "expected list of whole numbers"),
        ("model={name: torchvision:resnet18, options: {progress: 1}}", "expected true or false"),
        ("data.options.val_fraction='0.2'", "expected number"),
        ("output.keep=true", "whole number"),
        ("plugins=[3]", "text"),
    ],
)
def test_values_keep_to_their_types(override, words):
    with pytest.raises(ConfigError) as error:
        load(override)
    assert words in str(error.value)
    assert f": {override.partition('=')[0].replace('.0', '[0]')}" in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "evolution.limits.latency_ms=3",
        OPERATOR + "={name: widen, options: {factor: 2}}",
        OPERATOR + "={name: shrink_perturb, options: {keep: auto}}",
        "optimizer.options.lr=1",
        "optimizer.options.lr=1e-3",
        "optimizer={name: Adam, options: {betas: [0.9, 0.99], lr: 1e-3}}",
        "lr_schedule={name: MultiStepLR, options: {milestones: [1, 2]}}",
        "lr_schedule={name: OneCycleLR, options: {max_lr: [0.1]}}",
        "model={name: torchvision:resnet18, options: {weights: null, num_classes: 10}}",
        "evolution.schedule={name: plateau, options: {metric: val_accuracy, mode: max}}",
        "evolution.schedule={name: plateau, options: {metric: params}}",
    ],
)
def test_what_is_right_stays_right(override):
    load(override)


def own(batch_size=3):
    raise NotImplementedError


def test_a_data_set_without_augmentation_cannot_be_augmented():
    with pytest.raises(
        ConfigError, match=r"data\.augment: .*'config.test_strictness:own'|has no augmentation"
    ) as error:
        load(f"data={{name: '{__name__}:own', augment: true}}")
    for name in ("cifar10", "digits", "fake", "image_folder"):
        assert name in str(error.value)
    assert "'mnist" not in str(error.value)
    load(f"data={{name: '{__name__}:own', augment: false}}")
    load("data.augment=true")


def test_signatures_are_checked_only_as_far_as_yaml_can_say():
    def function(a: int, b: torch.Tensor, c: "torch.Tensor | float", d=None, e: "Missing" = 3, f: float = None):  # noqa: F821, RUF013
        return a, b, c, d, e, f

    assert not signature_faults(function, {"a": 1, "b": [1], "c": 2, "d": "x", "e": "y", "f": None})
    assert not signature_faults(function, {"a": torch.tensor(1), "b": 1, "c": 1.0})

    def typed(a: int, b: torch.Tensor, c: torch.Tensor | float):
        return a, b, c

    assert [path for path, _ in signature_faults(typed, {"a": "1", "b": "x", "c": "2"})] == [("a",), ("c",)]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "whole number"),
        (float | None, "number | null"),
        (list[str], "list of text"),
        (tuple[float, float], "list of numbers"),
        (dict[str, float], "mapping of text to numbers"),
        (bool, "true or false"),
    ],
)
def test_annotations_in_words(annotation, words):
    assert type_words(annotation) == words


def test_a_good_file_reads_back():
    config = load()
    assert yaml.safe_load(GOOD)["optimizer"]["options"]["lr"] == config.optimizer.options["lr"]
