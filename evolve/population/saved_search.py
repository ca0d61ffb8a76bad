"""The configuration of a search, as it lies in its folder, and what may change when it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evolve.config import COMMAND_LINE, ConfigError, Fault, KeyPath, Place, parse_yaml, validate
from evolve.errors import EvolveError
from evolve.evolver.run_config import plugin_faults, take_import_folder
from evolve.plugins import untrusted
from evolve.population.config import SearchConfig, part_faults, take_overrides
from evolve.population.folder import CONFIG

_MAY_CHANGE = ("again", "attempts", "best", "budget", "executor", "finish", "timeout")


def saved_search(folder: Path, overrides: Sequence[str] = (), *, trust: bool = False) -> SearchConfig:
    """Returns the configuration of the search in a folder.

    Args:
        folder: Its folder.
        overrides: Settings that change, such as "search.budget.evaluations=500".
        trust: Whether to import what it names.

    Raises:
        ConfigError: If it has faults, names code that is not trusted, or changes what may not change.
        EvolveError: If there is no such search, or it was begun in Python.
    """
    was, now = _read(folder / CONFIG, (), trust), _read(folder / CONFIG, overrides, trust)
    check_changes(was, now)
    return now.model_copy(update={"output": now.output.model_copy(update={"dir": str(folder)})})


def check_changes(was: SearchConfig, now: SearchConfig, where: str = COMMAND_LINE) -> None:
    """Refuses what would make another search of one that goes on.

    Args:
        was: The configuration that it was begun with.
        now: Another one.
        where: What has changed it.

    Raises:
        ConfigError: With all that differs.
    """
    one, other = was.model_dump(mode="json"), now.model_dump(mode="json")
    paths: list[KeyPath] = [(key,) for key in one if key not in ("search", "output") and one[key] != other[key]]
    inner = one["search"], other["search"]
    paths += [("search", key) for key in inner[0] if key not in _MAY_CHANGE and inner[0][key] != inner[1][key]]
    if paths:
        able = ", ".join(f"search.{key}" for key in _MAY_CHANGE)
        message = f"may not change in a search that goes on; {able} may. Begin a new one for the rest."
        raise ConfigError([Fault(path, Place(where), message) for path in paths])


def _read(file: Path, overrides: Sequence[str], trust: bool) -> SearchConfig:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise EvolveError(f"'{file.parent}' is no search to go on with: {error}.") from error
    raw, places, faults = parse_yaml(text, str(file))
    search = raw.get("search")
    spaced = isinstance(search, dict) and search.get("space")
    if raw.get("model") is None and not spaced and not faults:
        raise EvolveError(
            f"The search in '{file.parent}' was begun in Python, with a model or data that have no name. Go on with it "
            "there: evolve.search(..., output=..., resume=True)."
        )
    raw, places, more = take_overrides(raw, places, overrides)
    if trust:
        take_import_folder(raw, None)
        more += plugin_faults(raw, places, file)
    else:
        for index, plugin in enumerate(raw.get("plugins") or []):
            where = places.get(("plugins", index), Place(str(file)))
            more.append(Fault(("plugins", index), where, untrusted("plugin", str(plugin))))
    return validate(SearchConfig, raw, places, file, [*faults, *more, *part_faults(raw, places, file)], trusted=trust)
