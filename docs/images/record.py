"""Runs a command and draws what it prints as an SVG that moves: each line comes when it came.

    python docs/images/record.py docs/images/quickstart.svg evolve run configs/quickstart.yaml output.dir=/tmp/shown

The picture needs no script and no font of its own, follows the reader's light or dark mode, and begins anew when it is
through. Where nothing moves (in print) it shows the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from html import escape
from pathlib import Path
from typing import NamedTuple

ROWS, COLUMNS = 26, 84
ROW, COLUMN, MARGIN = 17.0, 7.25, 14.0
PAUSE = 6.0  # seconds at the end
STYLE = """
  text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre; fill: #1f2328 }
  rect { fill: #f6f8fa }
  .prompt { fill: #0969da } .applied { fill: #1a7f37 } .refused { fill: #9a6700 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } rect { fill: #161b22 }
    .prompt { fill: #58a6ff } .applied { fill: #3fb950 } .refused { fill: #d29922 }
  }
"""


class Line(NamedTuple):
    """A line of output, and the second in which it came."""

    second: float
    text: str


def recorded(command: list[str]) -> list[Line]:
    """Runs the command; returns its lines, the command itself first.

    Raises:
        SystemExit: If it fails.
    """
    begun = time.perf_counter()
    lines = [Line(0.0, f"$ {' '.join(word for word in command if not word.startswith('output.dir='))}")]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "80"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout or ():
            lines.append(Line(time.perf_counter() - begun, line.rstrip("\n")))
    if process.returncode:
        sys.exit(f"{command[0]} ended with {process.returncode}.")
    return lines


def kinds(lines: list[Line]) -> list[str]:
    """Returns the class of each line; the lines of a mutation that follow its first have its colour."""
    found: list[str] = []
    for line in lines:
        marks = {"$": "prompt", "+": "applied", "-": "refused"}
        continued = line.text.startswith("    ") and found and found[-1] in ("applied", "refused")
        found.append(found[-1] if continued else marks.get(line.text.strip()[:1], "plain"))
    return found


def drawn(lines: list[Line]) -> str:
    """Returns the SVG."""
    lasts = lines[-1].second + PAUSE
    width, height = COLUMNS * COLUMN + 2 * MARGIN, ROWS * ROW + 2 * MARGIN

    def animated(attribute: str, values: list[str], seconds: list[float], kind: str = "animate", more: str = "") -> str:
        times = ";".join(f"{min(second / lasts, 1):.4f}" for second in seconds)
        return (
            f'<{kind} attributeName="{attribute}"{more} calcMode="discrete" dur="{lasts:.2f}s" '
            f'repeatCount="indefinite" values="{";".join(values)}" keyTimes="{times}"/>'
        )

    rows = []
    for number, (line, kind) in enumerate(zip(lines, kinds(lines), strict=True)):
        shows = animated("opacity", ["0", "1"], [0, line.second]) if line.second else ""
        place = f'x="{MARGIN}" y="{MARGIN + (number + 0.75) * ROW:.1f}"'
        rows.append(f'<text class="{kind}" {place}>{escape(line.text)}{shows}</text>')
    beyond = [(number - ROWS + 1, line.second) for number, line in enumerate(lines) if number >= ROWS]
    up = [f"0,{-rows * ROW:.1f}" for rows, _ in beyond]
    scroll = ""
    if beyond:
        seconds = [0.0, *(second for _, second in beyond)]
        scroll = animated("transform", ["0,0", *up], seconds, "animateTransform", ' type="translate"')
    title = escape(lines[0].text.removeprefix("$ "))
    last = f' transform="translate({up[-1]})"' if up else ""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
            f"<title>{title}</title><style>{STYLE}</style>",
            f'<rect width="{width:.0f}" height="{height:.0f}" rx="8"/>',
            f'<svg width="{width:.0f}" height="{height - MARGIN:.0f}"><g{last}>{scroll}',
            *rows,
            "</g></svg></svg>\n",
        ]
    )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit((__doc__ or "").strip())
    Path(sys.argv[1]).write_text(drawn(recorded(sys.argv[2:])), encoding="utf-8")
