"""The command line `kernelkit`: parses arguments, calls `workflow`, returns the exit code.

options  what commands share: `Options`, `shares`, and the arguments that several of them take
root     the program: `app`, the options before a command's name, and `main`
project  init, config, render, preflight, prove, sync
remote   push, cancel, status, watch, logs, open, pull, run, rehearse, submit
campaigns  plan, chain, collect
runs     diagnose, verify, runs
sweep    sweep
datasets  dataset
machine  doctor, emulator

Each command imports what it needs when it runs: `--help`, `--version` and shell completion then
load nothing but typer. A module of commands registers them with `app` when it is imported, which
happens below, in the order in which `--help` lists them.
"""

from kernelkit.cli import project, remote, sweep, campaigns, runs, datasets, machine  # isort: skip
from kernelkit.cli.root import app, main

__all__ = ["app", "campaigns", "datasets", "machine", "main", "project", "remote", "runs", "sweep"]
