"""Where in a user's code something happened."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

_PACKAGES = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]))


def line_of(error: BaseException) -> str:
    """Returns file, line and code of the innermost frame of a user's that an error came through, for a message.

    Returns:
        Such as ` (model.py, line 12: y = x.view(-1, 2, self.width))`; "" where there is none.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_PACKAGES)]
    if not own or not own[-1].line:
        return ""
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})"
