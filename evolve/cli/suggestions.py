"""What somebody who typed a command line that is none probably meant: one line, with the line to type instead."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

# What people call a command who have not looked at the help.
ALIASES = {
    **dict.fromkeys(("train", "fit", "start", "launch", "main"), "run"),
    **dict.fromkeys(("continue", "restart", "go"), "resume"),
    **dict.fromkeys(("nas", "tune", "hpo", "optimize", "optimise"), "search"),
    **dict.fromkeys(("check", "lint", "verify"), "validate"),
    **dict.fromkeys(("show", "summary", "describe", "info", "model"), "inspect"),
    **dict.fromkeys(("list", "ops", "ls"), "operators"),
    **dict.fromkeys(("plot", "results", "status", "view", "log", "history"), "report"),
    **dict.fromkeys(("compare", "cmp"), "diff"),
    **dict.fromkeys(("why", "reason"), "explain"),
    **dict.fromkeys(("rewind", "undo", "checkout", "rebuild"), "replay"),
    **dict.fromkeys(("convert", "onnx", "save"), "export"),
    **dict.fromkeys(("new", "create", "scaffold", "setup"), "init"),
    **dict.fromkeys(("env", "environment", "selfcheck", "diagnose"), "doctor"),
}
# What people take for an option that is a setting.
SETTINGS = {
    "epochs": "training.epochs",
    "epoch": "training.epochs",
    "steps": "training.steps",
    "seed": "training.seed",
    "device": "training.device",
    "lr": "optimizer.options.lr",
    "learning-rate": "optimizer.options.lr",
    "optimizer": "optimizer.name",
    "batch-size": "data.batch_size",
    "batch_size": "data.batch_size",
    "data": "data.name",
    "dataset": "data.name",
    "model": "model.name",
    "output": "output.dir",
    "out": "output.dir",
    "output-dir": "output.dir",
    "overwrite": "output.overwrite",
}
_YAML = (".yaml", ".yml")


def meant(*words: str | Path) -> str:
    """Returns the question whether a command line was meant."""
    return f"Did you mean '{shlex.join(['evolve', *map(str, words)])}'?"


def unknown_command(words: Sequence[str], commands: Sequence[str]) -> str:
    """Says what to type instead of a word that is no command; `words` begin with it."""
    word, *rest = words
    path = Path(word)
    if word in ("help", "version"):
        known = rest[:1] if rest and rest[0] in commands else []
        return f"There is no command '{word}'. {meant(*known, f'--{word}')}"
    if word.endswith(_YAML) or (path.is_file() and not rest):
        return f"'{word}' is a file, and no command. {meant('search' if is_search_file(path) else 'run', word, *rest)}"
    if path.is_dir() and is_run(path):
        return f"'{word}' is a run folder, and no command. {meant('report', word)}"
    close = [ALIASES[word]] if word in ALIASES else get_close_matches(word, [*commands, *ALIASES], n=1)
    close = [ALIASES.get(name, name) for name in close if ALIASES.get(name, name) in commands]
    told = meant(close[0], *rest) if close else f"There are {', '.join(commands)}; evolve --help tells of them."
    return f"There is no command '{word}'. {told}"


def unknown_option(option: str, words: Sequence[str], options: Sequence[str], takes_settings: bool) -> str:
    """Says what to type instead of an option that a command does not have.

    Args:
        option: As it was typed, without a value.
        words: The whole command line.
        options: Those of the command.
        takes_settings: Whether the command takes settings such as `training.epochs=3`.
    """
    told = f"There is no option '{option}'."
    name = option.lstrip("-")
    setting = SETTINGS.get(name, name if "." in name else "")
    if takes_settings and setting:
        return f"{told} Settings have no dashes. {meant(*_as_setting(option, setting, words))}"
    close = get_close_matches(option, options, n=1)
    if close:
        fixed = [word.replace(option, close[0], 1) if _names(option, word) else word for word in words]
        return f"{told} {meant(*fixed)}"
    return f"{told} It has {', '.join(options)}." if options else told


def _names(option: str, word: str) -> bool:
    return word == option or word.startswith(f"{option}=")


def _as_setting(option: str, setting: str, words: Sequence[str]) -> list[str]:
    """Returns the words with an option and its value as a setting."""
    place = next((i for i, word in enumerate(words) if _names(option, word)), None)
    if place is None:
        return [*words, f"{setting}=..."]
    before, after = list(words[:place]), list(words[place + 1 :])
    _, equals, value = words[place].partition("=")
    if not equals and after and not after[0].startswith("-") and "=" not in after[0]:
        value = after.pop(0)
    rest = [*before, f"{setting}={value or '...'}", *after]
    return rest if len(before) > 1 or not after else [*before, after[0], f"{setting}={value or '...'}", *after[1:]]


def spaced_settings(settings: Sequence[str]) -> list[str] | None:
    """Returns settings that were typed with spaces around their `=` as they have to be; None where none was."""
    if len(settings) < 2 or not any(one == "=" or one[:1] == "=" or one[-1:] == "=" for one in settings):
        return None
    fixed = re.sub(r"\s*(?<=\s)=\s*|=\s+", "=", " ".join(settings)).split()
    return fixed if all("=" in one.strip("=") for one in fixed) else None


def wrong_file(path: Path, command: str) -> str | None:
    """Says what is wrong where a YAML configuration is expected; None where there may be one."""
    name = str(path)
    if path.is_dir():
        return _folder_for_file(path, command)
    if path.is_file():
        return _other_kind(path, command) if path.name.endswith(_YAML) else None
    if "=" in name:
        return f"'{name}' is a setting, and the file comes before it. {meant(command, _some_file(), name)}"
    found = _like(path)
    return None if found is None else f"There is no file '{name}'. {meant(command, found)}"


def _other_kind(path: Path, command: str) -> str | None:
    """Tells configurations of runs from those of searches; `validate` takes both."""
    if command == "run" and kind_of(path) == "search":
        return f"'{path}' describes a search. {meant('search', path)}"
    if command == "search" and kind_of(path) == "run":
        return f"'{path}' has no section `search`: it describes one run. {meant('run', path)}"
    return None


def _folder_for_file(path: Path, command: str) -> str:
    name = str(path)
    if is_run(path):
        other = {"run": "resume", "search": "resume"}.get(command)
        if other:
            return f"'{name}' is a run folder; a YAML file begins a new one. {meant(other, name)}"
        inside = next((path / file for file in ("config.yaml", "search.yaml") if (path / file).is_file()), None)
        return f"'{name}' is a run folder, and no YAML file. {meant(command, inside) if inside else ''}".rstrip()
    inside = next(iter(_files(path)), None)
    return f"'{name}' is a folder, and no YAML file. {meant(command, inside) if inside else 'Give a file.'}"


def wrong_run(path: Path, command: str) -> str | None:
    """Says what is wrong where a run folder is expected; None where there may be one."""
    name = str(path)
    if path.is_file() and name.endswith(_YAML):
        return _file_for_run(path, command)
    if path.exists():
        return None if is_run(path) else _part_or_whole(path, command)
    close = _near(path, [one for parent in (path.parent, Path("runs")) for one in _runs_in(parent)])
    return None if close is None else f"There is no folder '{name}'. {meant(command, close)}"


def _part_or_whole(path: Path, command: str) -> str | None:
    """Of something that lies in a run, or holds some."""
    run = next((one for one in path.parents[:3] if is_run(one)), None)
    if run is not None and (path.is_file() or path.relative_to(run).parts[0] in ("checkpoints", "best")):
        return f"'{path}' is a part of a run. {meant(command, run)}"
    runs = sorted(_runs_in(path), key=_changed)
    if runs and command != "report":  # which tells of runs of several seeds
        return f"'{path}' holds {len(runs)} run{'s' if len(runs) > 1 else ''} and is none. {meant(command, runs[-1])}"
    return None


def _file_for_run(path: Path, command: str) -> str:
    told = f"'{path}' is a YAML file, and no run folder."
    search = is_search_file(path)
    if command == "resume":
        return f"{told} {meant('search' if search else 'run', path, '--resume', 'auto')}"
    found = re.search(r"""^\s+dir:\s*["']?([^"'#\n]+?)["']?\s*(#.*)?$""", _text(path), re.MULTILINE)
    if found and is_run(Path(found[1])):
        return f"{told} {meant(command, found[1])}"
    return f"{told} It has not been run yet: {meant('search' if search else 'run', path)}"


def missing(name: str, command: str, given: Sequence[str], example: str) -> str:
    """Says what is missing of a command line, with one that has it.

    Args:
        name: What is missing, such as "FILE".
        command: The command.
        given: What was given after it.
        example: A whole command line.
    """
    told = f"evolve {command} needs {name}."
    runs = sorted(_runs_in(Path("runs")), key=_changed)
    if name == "FILE" and (files := [*_files(Path()), *_files(Path("configs"))]):
        return f"{told} {meant(command, files[0], *given)}"
    if name == "RUN" and runs:
        return f"{told} {meant(command, runs[-1], *given)}"
    if name == "N" and given:
        return f"{told} {meant(command, *given[:1], '0')}"
    if name == "B" and given and is_run(Path(given[0])):
        return f"{told} {meant(command, f'{given[0]}@base', given[0])}"
    return f"{told} {example}"


def is_run(path: Path) -> bool:
    """Whether a folder looks like that of a run or a search."""
    return any((path / name).exists() for name in ("lineage.jsonl", "checkpoints", "archive.sqlite"))


def is_search_file(path: Path) -> bool:
    """Whether a file has a section `search`, as a configuration of a search has."""
    return kind_of(path) == "search"


def kind_of(path: Path) -> str | None:
    """Says whether a file describes a "search" or a "run"; None where it is not plain, such as in a damaged one."""
    import yaml

    text = _text(path)
    if len(text) > _LONGEST:
        return None
    try:
        keys = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # the command itself tells of them better
        return None
    if not isinstance(keys, dict) or "model" not in keys:
        return None
    if "search" in keys:
        return "search"
    return None if get_close_matches("search", map(str, keys), n=1) else "run"


_LONGEST = 100_000  # characters of a file that is looked into


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _files(folder: Path) -> list[Path]:
    found = [path for ending in _YAML for path in folder.glob(f"*{ending}")] if folder.is_dir() else []
    return sorted(path for path in found if path.is_file())


def _some_file() -> str:
    return str(next(iter([*_files(Path()), *_files(Path("configs"))]), "config.yaml"))


def _runs_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if is_run(path)] if folder.is_dir() else []


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _like(path: Path) -> Path | None:
    """A file that may have been meant: with the other ending, in configs/, or of nearly that name."""
    for ending in _YAML:
        for other in (path.with_suffix(ending), path.parent / f"{path.name}{ending}", Path("configs") / path.name):
            if other.is_file():
                return other
    return _near(path, [file for folder in (path.parent, Path("configs")) for file in _files(folder)])


def _near(path: Path, known: Sequence[Path]) -> Path | None:
    """The path whose last part is nearly the same."""
    close = get_close_matches(path.stem, [one.stem for one in known], n=1)
    return next((one for one in known if one.stem in close), None)
