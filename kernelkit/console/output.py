"""How everything is printed: plain or as `--json`, safe, wrapped, in tables; and every error.

Prose wraps between words; paths and commands stay whole, so that they can be copied. Everything
passes through `shown`: no control character and no credential gets to the terminal, and no text
fills it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from kernelkit.bundle.secrets import machine_secrets
from kernelkit.console.safety import without_secrets, without_signatures
from kernelkit.errors import KernelkitError, limit_of_machine
from kernelkit.storage import LINE_CHARACTERS, lines_printable, one_line, printable, shortened

ERROR_MESSAGE_LINES = 200  # of kernelkit's own errors, such as all problems of a preflight
TRACEBACK_LINES = 1000  # of a bug
INTERRUPTED = 130
CELL_CHARACTERS = 400  # of a table's cell
NAME_CHARACTERS = 10  # of a cell that is cut because the terminal is narrow
WIDE = 200  # columns of a table that goes to a file or another program
NOTE = ("note: ", "bold yellow")  # its label and style


EXPENDABLE = ("owner", "digest", "sha256", "commit", "here")
"""Columns that a table drops, in this order, before a narrow terminal cuts names."""


class SafeConsole(Console):
    """A console whose text is `shown`, whoever made it; only rich moves the cursor."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of anything printed, with safe texts."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(shown(segment.text), segment.style)


stdout = SafeConsole()
stderr = SafeConsole(stderr=True)


@dataclass
class Mode:
    """What the shared options ask for, and what must not be printed."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    secrets: Sequence[str] | None = None
    """Pieces of this machine's credentials; None until something is printed."""


mode = Mode()


def configure(*, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
    """Obey `--json`, `--quiet` and `--verbose` from now on."""
    mode.as_json, mode.quiet, mode.verbose = as_json, quiet, verbose
    mode.secrets = None
    stdout.quiet = stderr.quiet = as_json


def document(content: object) -> None:
    """Print the document of `--json`, if it is asked for."""
    if mode.as_json:
        text = json.dumps(content, indent=1, default=str)
        sys.stdout.write(without_credentials(text) + "\n")


def shown(text: str) -> str:
    """A text as it may be printed: without control characters and credentials."""
    return _hidden(lines_printable(text))


def _hidden(text: str) -> str:
    """A text of kernelkit without credentials, and without what makes an address secret."""
    return without_signatures(without_credentials(text))


def without_credentials(text: str) -> str:
    """Data of a run without this machine's credentials; its addresses stay as they are."""
    if mode.secrets is None:
        mode.secrets = machine_secrets()
    return without_secrets(text, mode.secrets)


def safe(text: Text) -> Text:
    """A styled text as it may be printed."""
    if shown(text.plain) == text.plain:
        return text
    pieces = ((shown(one.text), one.style or "") for one in text.render(stdout))
    return Text.assemble(*pieces, style=text.style)


def report(error: BaseException, *, as_json: bool) -> int:
    """Report why a command failed; returns the exit code.

    An exception that is not a `KernelkitError`, an interrupt or a wrong command line is a bug of
    kernelkit: its traceback is printed.
    """
    configure(as_json=as_json)
    error = limit_of_machine(error) or error
    details: Mapping[str, object] = {}
    show: Callable[[], None] | None = getattr(error, "show", None)  # click's UsageError
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        code, message, next_step = INTERRUPTED, "interrupted", ""
        stderr.print("interrupted")
    elif isinstance(error, KernelkitError):
        code, message, next_step = error.exit_code, str(error), error.next_step
        details = error.details.document if error.details else {}
        print_error(message, next_step)
    elif show is not None:
        code, message, next_step = 2, error.format_message(), _usage_advice(error)  # type: ignore[attr-defined]
        if type(error).__name__ == "NoArgsIsHelpError":  # no command: its message is the help
            if not as_json:
                show()
        else:
            print_error(message, next_step)
    else:
        code, next_step = 1, "Report this bug of kernelkit, with the traceback."
        message = f"{type(error).__name__}: {error}"
        text = "".join(traceback.format_exception(error))
        details = {"traceback": _hidden(text)}
        if not as_json:
            sys.stderr.write(shown("\n".join(beginning(text, TRACEBACK_LINES))))
        print_error("this is a bug of kernelkit", "Please report it, with the traceback.")
    message, next_step = _hidden(message), _hidden(next_step)
    document({"error": message, "next": next_step, **details, "exit_code": code})
    return code


_COMMAND = re.compile(
    r"(?:(?<=`)|(?<=: )|(?<=:  )|(?<=&& )|^)kernelkit (?P<name>[a-z]+)"
    r"(?P<words>(?: (?:-{1,2}[a-z][\w-]*(?:[= ](?!-)[\w./:@-]*\w)?|[\w.:/@-]*[\dA-Z/][\w/-]*))*)",
    re.MULTILINE,
)
"""A command in advice, with what follows it that is an option, a run or a path."""


def as_called(text: str) -> str:
    """A text whose commands begin as the user called this one.

    That is `.venv/bin/kernelkit push`, `python -m kernelkit push` or, if a Makefile says that it
    has such targets, `make push`.
    """
    if "kernelkit " not in text:
        return text
    return _COMMAND.sub(_called, text)


def _called(command: re.Match[str]) -> str:
    name, words = command["name"], command["words"].split()
    if name not in os.environ.get("KERNELKIT_MAKE", "").split():
        return f"{_program()}{command[0].removeprefix('kernelkit')}"
    profile = ""
    if "--profile" in words[:-1]:
        at = words.index("--profile")
        profile = f" PROFILE={words[at + 1]}"
        del words[at : at + 2]
    arguments = " ".join(words)
    quote = '"' if len(words) > 1 else ""
    return f"make {name}{profile}" + (f" ARGS={quote}{arguments}{quote}" if words else "")


def _program() -> str:
    """What starts this program: its name, if the shell finds it by that."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py" and " -m kernelkit " in f"{' '.join(sys.orig_argv)} ":
        return f"{_from_here(Path(sys.orig_argv[0]))} -m kernelkit"
    if path.name != "kernelkit" or len(path.parts) == 1:
        return "kernelkit"
    found = shutil.which("kernelkit")
    return "kernelkit" if found and path.samefile(found) else _from_here(path)


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _usage_advice(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    return f"Show the usage: `{context.command_path if context else 'kernelkit'} --help`"


def print_error(message: str, next_step: str = "") -> None:
    """Print to stderr what is wrong, and what to do next."""
    text = "\n".join(beginning(message, ERROR_MESSAGE_LINES))
    say(Text.assemble(("error: ", "bold red"), text), to=stderr, indent=7)
    if next_step:
        advice = one_line(as_called(next_step))
        say(Text.assemble(("next:  ", "bold"), advice), to=stderr, indent=7)


def beginning(text: str, most: int) -> list[str]:
    """The first lines of a text, each cut where it is too long, and how many more there are."""
    lines = text.split("\n")
    more = [f"… and {len(lines) - most:,} more lines"] if len(lines) > most else []
    return [*map(shortened, lines[:most]), *more]


def say(
    message: str | Text,
    style: str = "",
    *,
    to: Console | None = None,
    indent: int = 0,
) -> None:
    """Print prose: on a terminal it wraps between words, and paths and commands stay whole.

    Commands in a plain text begin as the user called this one.
    `indent` is the number of spaces before the second and all further lines.
    """
    console = to or stdout
    text = safe(Text(as_called(message), style) if isinstance(message, str) else message)
    if console.is_terminal:
        text = _wrapped(text, console.width, indent)
    console.print(text, soft_wrap=True)


_WORD = re.compile(
    r"(?:`[^`\n]+`"
    r"|(?<=: )(?:(?:\S+ -m )?\S*kernelkit|make|git|cp|chmod) [^\n]+$"
    r"|\S)+[^\S\n]*|\s",
    re.MULTILINE,
)
"""What stays on one line: a word, or a command in backticks or at the end of a line."""


def _wrapped(text: Text, width: int, indent: int) -> Text:
    column, offsets = 0, []
    for word in _WORD.finditer(text.plain):
        if word[0] == "\n":
            column = 0
        elif column and column + cell_len(word[0].rstrip()) > width:
            offsets.append(word.start())
            column = indent + cell_len(word[0])
        else:
            column += cell_len(word[0])
    *lines, last = text.divide(offsets)
    for line in lines:
        line.rstrip()
    return Text("\n" + " " * indent).join([*lines, last])


def detail(message: str | Text, style: str = "") -> None:
    """Prose that `--quiet` leaves out."""
    if not mode.quiet:
        say(message, style)


def warn(message: str) -> None:
    """Print something that a person should look at, though the command succeeds."""
    say(printable(f"warning: {message}"), style="yellow")


def print_line(line: str) -> None:
    """Print a line that is data: it is not wrapped between words."""
    print_text(Text(printable(shortened(line))))


def print_text(line: Text) -> None:
    """Print a styled line that is data: it is not wrapped between words."""
    stdout.print(safe(line), soft_wrap=True)


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    right: Sequence[str] = (),
    last: str = "",
) -> None:
    """Print a table, without empty columns; a narrow terminal loses EXPENDABLE ones first.

    If it is still too wide, the longest names are cut. `--verbose` drops and cuts nothing. `right`
    names the columns of numbers, `last` is the style of the last row.
    """
    columns = {
        name: [_cell(row[n]) for row in rows]
        for n, name in enumerate(headings)
        if any(str(row[n]) for row in rows)
    }
    if not stdout.is_terminal:  # else rich takes 80 columns
        stdout.width = WIDE
    if not mode.verbose:
        for name in EXPENDABLE:
            if _excess(columns) > 0:
                columns.pop(name, None)
        if stdout.is_terminal:
            _cut_names(columns)
    table = Table(box=None, pad_edge=False)
    for name in columns:
        justify = "right" if name in right else "left"
        numeric = name in right  # numbers stay whole
        table.add_column(name, justify=justify, overflow="fold", no_wrap=numeric)  # type: ignore[arg-type]
    for n in range(len(rows)):
        cells = (column[n] for column in columns.values())
        table.add_row(*cells, style=last if n == len(rows) - 1 else "")
    stdout.print(table)


def _cell(cell: str | Text) -> Text:
    text = cell if isinstance(cell, Text) else Text(cell)
    most = LINE_CHARACTERS if mode.verbose else CELL_CHARACTERS
    return safe(Text(one_line(text.plain, most), text.style))


def _width(name: str, cells: Sequence[Text]) -> int:
    return max(cell_len(text) for text in (name, *(cell.plain for cell in cells)))


def _excess(columns: Mapping[str, Sequence[Text]]) -> int:
    """By how much a table is wider than the terminal."""
    widths = [_width(name, cells) for name, cells in columns.items()]
    return sum(widths) + 2 * (len(widths) - 1) - stdout.width  # two spaces between columns


def _cut_names(columns: dict[str, list[Text]]) -> None:
    """Cut the longest cells in the middle until the table fits; both ends of a name stay."""
    widths = {name: _width(name, cells) for name, cells in columns.items()}
    for _ in range(_excess(columns)):
        widest = max(widths, key=lambda name: widths[name])
        widths[widest] = max(widths[widest] - 1, NAME_CHARACTERS)
    for name, cells in columns.items():
        columns[name] = [_cut(cell, widths[name]) for cell in cells]


def _cut(cell: Text, width: int) -> Text:
    if cell_len(cell.plain) <= width:
        return cell
    begin = cell.copy()
    begin.truncate(width - width // 2 - 1)
    end = next(cell[n:] for n in range(len(cell)) if cell_len(cell.plain[n:]) <= width // 2)
    return Text.assemble(begin, "…", end)
