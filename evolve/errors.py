"""The errors evolve raises, and the wording they share.

Every message says what was asked, what was found and what to do next.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


class EvolveError(Exception):
    """Base of every error that evolve raises on purpose."""


class UnknownNameError(EvolveError):
    """A name that no registry entry, site or setting has."""


class UntrustedCodeError(UnknownNameError):
    """An import path in a run folder that was not trusted; nothing was imported."""


class DuplicateNameError(EvolveError):
    """Two items claim the same name in one registry."""


class NotApplicable(EvolveError):  # noqa: N818 - an answer that an operator gives, not a fault
    """Raised by an operator that cannot work at a site; `mutate` turns it into an answer."""


class NotYetApplicable(NotApplicable):
    """Raised where the answer may change: once the model has other sizes, or was trained further."""


class RejectedError(EvolveError):
    """A change that broke its own declaration; `mutate` turns it into an answer."""


class MutationError(EvolveError):
    """Raised by `mutate(..., strict=True)` where the answer would have been `(False, message)`."""


class MisfitError(EvolveError):
    """Model, data and configuration do not fit each other; found before the first step."""


class DataError(EvolveError):
    """Data that is missing, unreadable or not of the promised form."""


class CheckpointError(EvolveError):
    """A checkpoint that is missing, damaged or does not fit the model."""


class NonFiniteLossError(EvolveError):
    """The loss became NaN or infinite; the step was not trained on."""


class NonFiniteModelError(EvolveError):
    """A parameter, buffer, averaged weight or optimizer state is NaN or infinite; nothing was saved."""


class NoRoomError(EvolveError):
    """Something could not be written: no room, no right, a disk that fails."""


class LostRankError(EvolveError):
    """Another process of a training on several devices ended or does not answer."""


class RanksDifferError(EvolveError):
    """The processes of a training on several devices do not hold the same; no step was made since."""


def missing_package(what: str, package: str, error: ImportError) -> str:
    """Returns what to say where an optional package cannot be imported.

    Args:
        what: What needs it, as the beginning of a sentence.
        package: Its name on the package index.
        error: What importing it raised.
    """
    return f"{what} needs the package {package}, which cannot be imported ({error}). Run: pip install {package}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest known name, or an empty string."""
    names = [str(k) for k in known]
    same = [each for each in names if each.lower() == str(name).lower()]  # `adamw` is nearer to AdamW than to Adam
    close = same or difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def writable(text: str) -> str:
    """Returns a text that can be written to any file or terminal.

    Control characters, lone surrogates and line separators other than a newline are escaped; tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _UNWRITABLE and c not in "\n\t" else c for c in text)


_UNWRITABLE = {"Cc", "Cs", "Zl", "Zp"}


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def text_of(error: BaseException) -> str:
    """Returns what an error says, also where it fails to say it."""
    try:
        return writable(str(error))
    except Exception as fault:  # an error of somebody else's: its text is not worth another one
        return f"(its text cannot be shown: {type(fault).__name__})"


def described(error: BaseException) -> str:
    """Returns the class of an error and what it says."""
    return f"{type(error).__name__}: {text_of(error)}"
