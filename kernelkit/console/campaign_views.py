"""What a person reads about several runs: plans, and what was collected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from kernelkit.console.output import document, print_error, print_table, say, stderr
from kernelkit.storage import counted, one_line

if TYPE_CHECKING:
    from kernelkit.campaigns.collect import CollectedRun, CollectResult
    from kernelkit.campaigns.plan import Plan
    from kernelkit.kaggle.types import Quota

LABEL_CHARACTERS = 12  # of the longest label of a plan
DIFFERENCES_NAMED = 8  # parameters; --json lists all


def planned(plan: Plan) -> None:
    """What the next run, chain or sweep will need, and whether the quota has it."""
    document(plan.report().model_dump(mode="json"))
    say(one_line(f"{plan.kernel} on {plan.wanted.machine}"), style="bold")
    for label, text in _plan_lines(plan):
        say(Text(f"{label:{LABEL_CHARACTERS}}  {one_line(text)}"), indent=LABEL_CHARACTERS + 2)
    style = {True: "green", False: "bold red", None: "yellow"}[plan.fits]
    say(Text(_verdict(plan), style))


def collected(found: CollectResult) -> None:
    """Each run with its state and folder; what is wrong, and what to do next."""
    document(
        {
            "account": found.account,
            "runs": [run.report().model_dump() for run in found.runs],
            "exit_code": found.exit_code,
        }
    )
    rows = [(run.name, run.state, _proof(run), _relative(run.folder)) for run in found.runs]
    print_table(("run", "state", "verified", "folder"), rows)
    for run in found.runs:
        if run.exit_code and not run.goes_on:
            print_error(f"{one_line(run.name)}: {run.error}", run.next_step)
    if going_on := [run.name for run in found.runs if run.goes_on]:
        names = one_line(", ".join(going_on))
        say(f"not ended: {names}. To wait for the end: kernelkit collect --wait", to=stderr)


def _proof(run: CollectedRun) -> str:
    return "yes" if run.verified else "continued" if run.continued else ""


def _relative(folder: Path | None) -> str:
    """A folder as it is named from here, where it is below."""
    if folder is None:
        return ""
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def _plan_lines(plan: Plan) -> list[tuple[str, str]]:
    """The lines of a plan: a label, and what there is to say."""
    found = plan.estimate
    lines = [("basis", _basis(plan))]
    lines += [("assumed", assumption) for assumption in plan.assumptions]
    if found.seconds_per_epoch is not None:
        count = f"{found.epochs:,.0f} epochs" if found.epochs else "epochs"
        lines.append(("epochs", f"{_seconds(found.seconds_per_epoch)} each, {count}"))
    if plan.hours is not None:
        spread = ""
        if found.least is not None and found.most is not None:
            spread = f" ({_hours(found.least / 3600)} to {_hours(found.most / 3600)})"
        fixed = found.fixed_seconds
        outside = f", {_seconds(fixed)} of it outside the epochs" if fixed else ""
        what = "one trial" if plan.sweep else "one run"
        lines.append((what, f"{_hours(plan.hours)}{spread}{outside}"))
    if plan.sweep:
        sweep = plan.sweep
        beside = f", {sweep.per_session} trials in each" if sweep.per_session > 1 else ""
        lines.append(
            (
                "sweep",
                f"{counted(sweep.trials, 'trial')} in {counted(sweep.pushes, 'session')}{beside}, "
                f"{sweep.sessions} at once: {_hours(plan.wall_hours)} until the end",
            )
        )
    limit = f"one ends after {_hours(plan.session_hours)}: {plan.session_origin}"
    count = "unknown" if plan.sessions is None else f"{plan.sessions}"
    chain = ""
    if (plan.sessions or 1) > 1 and not plan.sweep:
        chain = ": a chain, `kernelkit run --until-done`"
    lines.append(("sessions", f"{count}{chain} ({limit})"))
    if plan.wanted.wants_gpu:
        lines.append(("GPU hours", _hours(plan.billed_hours)))
        lines.append(("GPU quota", _quota_text(plan.quota, plan.quota_problem)))
    if plan.wanted.wants_gpu and plan.reserve:
        lines.append(("reserve", f"{_hours(plan.reserve)} stay unused (gpu_reserve_hours)"))
    return lines


def _basis(plan: Plan) -> str:
    """How sure the plan is, and by which runs."""
    found = plan.estimate
    if not found.runs:
        return "unknown: no earlier run of this kernel, and no rehearsal, was measured"
    named = ", ".join(found.runs)
    if found.differences:
        more = len(found.differences) - DIFFERENCES_NAMED
        shown = [*found.differences[:DIFFERENCES_NAMED], *([f"{more} more"] if more > 0 else [])]
        return f"{found.certainty}: {named}, with other values of {', '.join(shown)}"
    return f"{found.certainty}: {named}, with the same parameters"


def _verdict(plan: Plan) -> str:
    """Whether the quota has the hours."""
    if plan.is_cut_short:
        return (
            f"it does not fit: a trial needs {_hours(plan.hours)}, and a session ends after "
            f"{_hours(plan.session_hours)}"
        )
    if plan.wanted.wants_tpu:
        return "unknown whether it fits: kernelkit does not read the quota of TPUs"
    if not plan.wanted.wants_gpu:
        return "it fits: a CPU run bills no GPU hours"
    if plan.billed_hours is None:
        return "unknown whether it fits: push a short run first, or rehearse with more epochs"
    if plan.usable_hours is None:
        return "unknown whether it fits: the quota is unknown"
    if plan.fits is None:
        return (
            "unknown whether it fits: the run was measured with other parameters; rehearse with "
            "those of this run and few epochs"
        )
    needs = f"it needs {_hours(plan.billed_hours)}, and {_hours(plan.usable_hours)} may be used"
    if plan.fits:
        probably = "probably " if plan.estimate.certainty != "measured" else ""
        return f"it {probably}fits: {needs}"
    when = (
        f"; from {plan.enough_from:%Y-%m-%d %H:%M} UTC on there is more" if plan.enough_from else ""
    )
    return f"it does not fit: {needs}{when}"


def _quota_text(quota: Quota | None, problem: str) -> str:
    if quota is None or not quota.allowed:
        return f"unknown: {problem or 'Kaggle does not say'}"
    reserved = f", {_hours(quota.reserved)} reserved by running sessions" if quota.reserved else ""
    refresh = f", refreshed {quota.refresh:%a %Y-%m-%d %H:%M} UTC" if quota.refresh else ""
    return f"{_hours(quota.left)} left of {quota.allowed:g} h{reserved}{refresh}"


def _hours(hours: float | None) -> str:
    """Hours for people; minutes or seconds where they are few."""
    if hours is None:
        return "unknown"
    if hours < 1:
        return f"{hours * 60:.0f} min" if hours * 60 >= 2 else _seconds(hours * 3600)
    return f"{hours:.1f}".removesuffix(".0") + " h"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
