"""Everything that a person reads: messages, tables, the live view, errors; and `--json`.

output         how it is printed: modes, `--json`, safe texts, tables, and `report` for errors
safety         texts without credentials and without the secret parts of addresses
values         times, numbers, metrics and scores as words
live           the live view of a run and its log: `watching`, `following`
project_views  results of commands about a project: init, config, render, preflight, prove, sync
run_views      results of commands about runs: push, status, watch, pull, verify, diagnose, runs,
               submit
chain_views  results of commands about a chain
campaign_views  results of commands about several runs: plan, collect
dataset_views  results of commands about datasets
sweep_views    results of commands about sweeps, and the live table of one
machine_views  results of commands about this machine: doctor

Only this package prints. With `--json` it prints one document to stdout and nothing else. With
`--quiet` it prints the result of a command and errors. The commands call the names below.
"""

from kernelkit.console.campaign_views import (
    collected,
    planned,
)
from kernelkit.console.chain_views import chained, concluded_chain
from kernelkit.console.dataset_views import (
    published,
    wheels_ready,
)
from kernelkit.console.live import (
    Reporter,
    following,
    log,
    watching,
)
from kernelkit.console.machine_views import (
    checked,
    probe_plan,
    probed,
)
from kernelkit.console.output import (
    SafeConsole,
    as_called,
    configure,
    document,
    report,
    say,
    shown,
    stderr,
    stdout,
)
from kernelkit.console.project_views import (
    advice,
    budget,
    config_values,
    diffs,
    image_imports,
    init_candidates,
    init_text,
    initialized,
    left_out,
    no_problems,
    proved,
    rendered,
    requirements,
    synced,
)
from kernelkit.console.run_views import (
    conclude,
    deleted,
    deletion_plan,
    diagnosed,
    difference,
    explain,
    exported,
    has_failed,
    open_page,
    outputs,
    pushed,
    require_no_failure,
    results,
    run,
    runs,
    state,
    submitted,
    verified,
    watched,
)
from kernelkit.console.sweep_views import (
    SweepReporter,
    best_of_sweep,
    sweep_note,
    sweep_reported,
    sweeping,
    swept,
)
from kernelkit.console.values import (
    ago,
)

__all__ = [
    "Reporter",
    "SafeConsole",
    "SweepReporter",
    "advice",
    "ago",
    "as_called",
    "best_of_sweep",
    "budget",
    "chained",
    "checked",
    "collected",
    "conclude",
    "concluded_chain",
    "config_values",
    "configure",
    "deleted",
    "deletion_plan",
    "diagnosed",
    "difference",
    "diffs",
    "document",
    "explain",
    "exported",
    "following",
    "has_failed",
    "image_imports",
    "init_candidates",
    "init_text",
    "initialized",
    "left_out",
    "log",
    "no_problems",
    "open_page",
    "outputs",
    "planned",
    "probe_plan",
    "probed",
    "proved",
    "published",
    "pushed",
    "rendered",
    "report",
    "require_no_failure",
    "requirements",
    "results",
    "run",
    "runs",
    "say",
    "shown",
    "state",
    "stderr",
    "stdout",
    "submitted",
    "sweep_note",
    "sweep_reported",
    "sweeping",
    "swept",
    "synced",
    "verified",
    "watched",
    "watching",
    "wheels_ready",
]
