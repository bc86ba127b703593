"""What a person reads about this machine: the checks of the doctor, and the probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from kernelkit.console.output import (
    document,
    mode,
    say,
)
from kernelkit.storage import one_line, printable

if TYPE_CHECKING:
    from kernelkit.doctor.checks import CheckResult
    from kernelkit.doctor.probe import Report


def checked(results: Sequence[CheckResult]) -> None:
    """The doctor's report: a line for each check, and the advice below a bad one."""
    _print_checks(results)
    document([vars(result) for result in results])


def _print_checks(results: Sequence[CheckResult]) -> None:
    from kernelkit.doctor.checks import Health

    styles = {Health.GOOD: "green", Health.BAD: "bold red", Health.UNKNOWN: "yellow"}
    subjects = [one_line(result.subject, 60) for result in results]
    width = max(map(len, subjects))
    for result, subject in zip(results, subjects, strict=True):
        if mode.quiet and result.health == Health.GOOD:
            continue
        mark = (f"{result.health:8}", styles[result.health])
        message = one_line("; ".join(result.words.split("\n")))
        column = 8 + width + 2
        say(Text.assemble(mark, f"{subject:{width}}  {message}"), indent=column)
        if result.remedy:
            say(f"{'':{column}}→ {one_line(result.remedy)}", indent=column + 2)
    counts = {health: sum(one.health == health for one in results) for health in Health}
    say(", ".join(f"{count} {health}" for health, count in counts.items() if count))


def probe_plan(plan: str) -> None:
    """What the probe is going to do."""
    say(plan)


def probed(report: Report, *, suggest_image: bool) -> None:
    """What the probe found, and where it is kept."""
    _print_checks(report.findings)
    folder = printable(str(report.folder))
    say(f"good: as kernelkit assumes; bad: different. The details are in {folder}:")
    say("transcript.json and report.json contain no names or secrets and can be shared")
    if report.image and suggest_image:
        say(
            f"next:  Check imports against the image that you found: `cp {report.image} "
            'kaggle-image.json`, and set `image = "kaggle-image.json"` in [tool.kernelkit].'
        )
    findings = [vars(finding) for finding in report.findings]
    document({"folder": str(report.folder), "findings": findings})
