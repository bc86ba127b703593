"""Records a real rehearsal of examples/tabular in a terminal, as docs/images/rehearsal.svg.

.venv/bin/python -m docs.tools.recording
"""

from __future__ import annotations

import io
import os
import pty
import re
import shutil
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "images" / "rehearsal.svg"
COLUMNS = 68
PROJECT = "/home/ada/house-prices"
"""Stands in the picture for the temporary folder of the recording."""

DATA = ["-m", "prices.data", "inputs/house-prices-demo"]
REHEARSE = ["rehearse", "--profile", "smoke", "--inputs", "inputs"]


def main() -> None:
    """Run the rehearsal and write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder).resolve() / "house-prices"
        shutil.copytree(ROOT / "examples" / "tabular", project)
        os.chdir(project)
        os.environ |= {"COLUMNS": str(COLUMNS), "LINES": "40", "TERM": "xterm-256color"}
        _in_terminal([sys.executable, *DATA])
        output = _in_terminal([sys.executable, "-m", "kernelkit", *REHEARSE])
    lines = [line.replace(str(project), PROJECT) for line in screen(output)]
    if "verified" not in lines[-1]:
        raise SystemExit("\n".join(lines))
    command = f"\x1b[1;36m$\x1b[0m kernelkit {' '.join(REHEARSE)}"
    PICTURE.write_text(picture([command, *lines]), encoding="utf-8")


def _in_terminal(command: list[str]) -> str:
    pieces: list[bytes] = []

    def read(descriptor: int) -> bytes:
        pieces.append(os.read(descriptor, 1 << 16))
        return pieces[-1]

    pty.spawn(command, read)
    return b"".join(pieces).decode()


def screen(output: str) -> list[str]:
    """What a terminal shows at the end: rich redraws its live view with "up" and "erase line"."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[[?0-9;]*[A-Za-ln-z]|\r|\n)", output):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif up := re.fullmatch(r"\x1b\[(\d*)A", part):
            row -= int(up[1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part != "\r" and not re.match(r"\x1b\[[^m]*[A-Za-ln-z]$", part):
            lines[row] += part
    while not lines[-1]:
        lines.pop()
    return lines


def picture(lines: list[str]) -> str:
    """The lines as an SVG that loads nothing: no font from another host."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for line in lines:
        console.print(Text.from_ansi(line), soft_wrap=False)
    template = re.sub(r"@font-face \{\{.*?\n    \}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    template = template.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
    return console.export_svg(title="kernelkit", code_format=template, unique_id="rehearsal")


if __name__ == "__main__":
    main()
