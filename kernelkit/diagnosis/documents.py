"""What a diagnosis reads in bundle.json, run-manifest.json and run.json, as typed values.

A failed run may have left anything. A value of the wrong type therefore counts as absent, and never
stops a diagnosis; `runs.verify` is the strict reader of the same files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, ValidationError, WrapValidator
from pydantic_core import PydanticUseDefault

from kernelkit.config import Parameter
from kernelkit.storage import read_file


def _or_default(value: Any, validate: Any) -> Any:
    try:
        return validate(value)
    except (ValidationError, RecursionError):
        raise PydanticUseDefault from None


_Lenient = WrapValidator(_or_default)
Text = Annotated[str, _Lenient]
Names = Annotated[tuple[str, ...], _Lenient]
Texts = Annotated[dict[str, str], _Lenient]
Parameters = Annotated[dict[str, Parameter], _Lenient]


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The file's values; empty ones if it is missing or is not a JSON object."""
        try:
            return cls.parse(read_file(path).decode())
        except (OSError, ValueError):
            return cls()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The values of a JSON object; empty ones of anything else."""
        try:
            return cls.model_validate(json.loads(text))
        except (ValueError, RecursionError):
            return cls()


class TrialReport(_Report):
    """One of several trials of a sweep that a run started side by side."""

    number: Annotated[int, _Lenient] = 0
    status: Text = ""
    error: Text = ""
    traceback: Text = ""
    parameters: Parameters = {}


class RunReport(_Report):
    """run-manifest.json: what the run reported about itself."""

    digest: Text = ""
    status: Text = ""
    """"complete" or "failed"."""

    error: Text = ""
    traceback: Text = ""
    parameters: Parameters = {}
    trials: Annotated[tuple[TrialReport, ...], _Lenient] = ()

    @property
    def failed_trial(self) -> TrialReport | None:
        """The first trial that failed, if the run was several trials side by side."""
        return next((trial for trial in self.trials if trial.status == "failed"), None)


class EndReport(_Report):
    """run.json: how the run ended on Kaggle."""

    state: Text = ""
    failure: Text = ""


class SentFile(_Report):
    """A file of the bundle."""

    path: Text = ""
    sha256: Text = ""


class SentSettings(_Report):
    """The kernel's settings."""

    competition_sources: Names = ()
    dataset_sources: Names = ()
    kernel_sources: Names = ()
    model_sources: Names = ()
    enable_internet: Annotated[StrictBool, _Lenient] = False
    session_timeout_seconds: Annotated[StrictInt, _Lenient] = 0


class SentBundle(_Report):
    """bundle.json: what was sent."""

    digest: Text = ""
    slug: Text = ""
    roots: Texts = {}
    """First part of a file's path in the run → the project folder that contains it."""

    files: Annotated[tuple[SentFile, ...], _Lenient] = ()
    parameters: Parameters = {}
    kernel: Annotated[SentSettings, _Lenient] = SentSettings()

    @property
    def hashes(self) -> dict[str, str]:
        """Path → SHA-256 of each file that was sent."""
        return {file.path: file.sha256 for file in self.files if file.path}

    @property
    def sources(self) -> frozenset[str]:
        """Slugs of everything that the kernel declares as a source."""
        kernel = self.kernel
        owned = (*kernel.dataset_sources, *kernel.kernel_sources, *kernel.model_sources)
        slugs = (name.split("/")[1] if "/" in name else name for name in owned)
        return frozenset((*kernel.competition_sources, *slugs))
