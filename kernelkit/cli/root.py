"""The program itself: the options before a command's name, and `main`, which reports errors."""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import signal
import sys
import warnings
from typing import Annotated, NoReturn

import typer

import kernelkit
from kernelkit.cli.options import DECLARED, INTERRUPTED, Options, shares

app = typer.Typer(
    name="kernelkit",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def print_version(wanted: bool) -> None:
    """Print the version and exit, if `wanted`."""
    if wanted:
        as_json = "--json" in sys.argv
        version = kernelkit.__version__
        print(json.dumps({"version": version}) if as_json else f"kernelkit {version}")
        raise typer.Exit


@app.callback(help=(kernelkit.__doc__ or "").partition("\n")[0])
@shares(*DECLARED)
def root(
    options: Options,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", is_eager=True, callback=print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Keep the shared options before the name of the command."""


def main() -> NoReturn:
    """Run a command and exit with its code. Every error is reported here, and only here."""
    gc.set_threshold(100_000, 50, 100)  # most objects are syntax trees and cells, without cycles
    atexit.register(gc.freeze)  # else Python visits every object once more before it exits
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    # urllib3 and requests warn on stderr, with whole addresses; what matters is in our own errors
    logging.getLogger().addHandler(logging.NullHandler())
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that `finally` blocks run
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(
            app(standalone_mode=False, prog_name="kernelkit") or 0
        )  # the code of a typer.Exit, or None
    except BrokenPipeError:  # the reader of our output has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(INTERRUPTED)
    except (Exception, KeyboardInterrupt) as error:
        from kernelkit import console

        sys.exit(console.report(error, as_json="--json" in sys.argv))
