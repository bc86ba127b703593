"""Reasons not to push, all of which an error shows at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from kernelkit.errors import PreflightError


@dataclass(frozen=True)
class Problem:
    """One reason not to push."""

    subject: str
    """The key or file that has the problem."""

    message: str
    remedy: str


@dataclass(frozen=True)
class ProblemList:
    """All problems, for the details of an error."""

    problems: tuple[Problem, ...]

    @property
    def document(self) -> dict[str, list[dict[str, str]]]:
        """All of it for a script."""
        return {"problems": [asdict(problem) for problem in self.problems]}


def require_no_problems(problems: Sequence[Problem]) -> None:
    """Check that a kernel has no problems.

    Raises:
        PreflightError: with every problem.
    """
    if problems:
        raise refusal(problems)


def refusal(problems: Sequence[Problem]) -> PreflightError:
    """The error that shows all problems."""
    lines = [_as_line(problem) for problem in problems]
    step = "Nothing was sent. After the fix, check again: kernelkit preflight"
    return PreflightError("\n".join(lines), step, ProblemList(tuple(problems)))


def _as_line(problem: Problem) -> str:
    end = "" if problem.message.endswith("\n") else " " if problem.message[-1:] == "?" else ". "
    return f"{problem.subject}: {problem.message}{end}{problem.remedy}"
