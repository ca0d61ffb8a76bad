"""Typed, frozen, strict configuration: YAML in, every fault of a file reported at once. Knows no torch."""

from __future__ import annotations

from evolve.config.dialect import dump_yaml
from evolve.config.faults import ConfigError, Fault, KeyPath, OptionFaults, Place
from evolve.config.loader import Places, load_yaml, parse_yaml
from evolve.config.overrides import COMMAND_LINE, apply_overrides
from evolve.config.section import Named, Section, is_trusted, signature_faults, signature_of
from evolve.config.validation import explain, validate

__all__ = [
    "COMMAND_LINE",
    "ConfigError",
    "Fault",
    "KeyPath",
    "Named",
    "OptionFaults",
    "Place",
    "Places",
    "Section",
    "apply_overrides",
    "dump_yaml",
    "explain",
    "is_trusted",
    "load_yaml",
    "parse_yaml",
    "signature_faults",
    "signature_of",
    "validate",
]
