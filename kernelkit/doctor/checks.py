"""Whether a push would go well: this machine, the account and the project, looked at alone.

Reads only. Every question ends in a `CheckResult`; what cannot be asked is unknown, and says why.
Nothing here tells a secret: names of variables and files, never their content.
"""

from __future__ import annotations

import email.utils
import importlib.metadata
import os
import platform
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import requests

import kernelkit
from kernelkit.bundle.bundle import read_bundle
from kernelkit.bundle.git import ask_git
from kernelkit.bundle.secrets import own_credentials
from kernelkit.config import Config
from kernelkit.errors import (
    CapacityError,
    ConfigError,
    CredentialsError,
    KernelkitError,
    LocalError,
    NotFoundError,
    PreflightError,
    RefusedError,
    UnreachableError,
)
from kernelkit.kaggle import Kaggle, connect, endpoint_of, key_files
from kernelkit.notebook.preflight import check
from kernelkit.notebook.render import render

TESTED = {"kaggle": "2.2.4", "kagglesdk": "0.1.37"}
"""The client and the SDK that kernelkit's tests run with."""

CLOCK_SECONDS = 300  # a signed address is refused by a clock that is further off
WORKING_BYTES = 20 * 10**9  # /kaggle/working, the most that a run can leave [D]
LEAST_BYTES = 1 << 30  # of free disk
LEAST_HOURS = 1.0  # of GPU quota
LONGEST_LISTING = 5  # problems or names in one line


class Health(StrEnum):
    """What a finding says."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class CheckResult:
    """One line of the report; `exit_code` is 0 unless it is bad."""

    subject: str
    health: Health
    words: str
    remedy: str = ""
    exit_code: int = 0


class _UnknownError(Exception):
    """A question that has no answer; its words say why."""


Question = tuple[str, Callable[[], str]]
"""A subject, and what tells that it is good; else it raises."""


def examine(
    project: Path,
    config: Config | ConfigError,
    endpoint: str | None,
    *,
    environment: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.time,
) -> list[CheckResult]:
    """All findings, in the order in which they matter to a newcomer.

    `config` may be the complaint about it: all the rest is told all the same.
    """
    findings = [_answer(*question) for question in _about_tools(endpoint, environment)]
    findings += [_answer(*question) for question in _about_project(project, config, environment)]
    settings = config if isinstance(config, Config) else None
    findings += [_answer(*question) for question in _about_key_files(endpoint, environment)]
    try:
        kaggle = connect(endpoint, environment, settings.kernel.owner if settings else None)
    except KernelkitError as error:
        return [*findings, _bad("credentials", error), *_unasked(settings)]
    return [*findings, *_about_account(kaggle, settings, environment, clock)]


def _about_tools(endpoint: str | None, environment: Mapping[str, str]) -> Iterator[Question]:
    yield "python", lambda: f"{platform.python_version()} on {platform.system()}"
    yield "kernelkit", lambda: kernelkit.__version__
    for name, tested in TESTED.items():
        yield name, partial(_version, name, tested)
    kind = "the real Kaggle" if endpoint is None else "a local Kaggle, for rehearsals"
    yield "endpoint", lambda: f"{endpoint_of(endpoint)}, {kind}"
    yield "environment", lambda: _no_diversion(environment)
    yield "proxy", _proxy


def _about_project(
    project: Path, config: Config | ConfigError, environment: Mapping[str, str]
) -> Iterator[Question]:
    if isinstance(config, ConfigError):
        yield "project", lambda: _raise(config)
    else:
        yield "project", lambda: _size(config)
        yield "preflight", lambda: _no_problems(config, environment)
    yield "git", lambda: _git(project)
    yield "disk", lambda: _disk(project)
    yield "runs", lambda: _writable(project / "runs")


def _about_key_files(endpoint: str | None, environment: Mapping[str, str]) -> Iterator[Question]:
    if endpoint is not None:
        return  # a local Kaggle is never shown what lies in files
    for path in key_files(environment):
        yield "key file", partial(_private, path)


def _about_account(
    kaggle: Kaggle,
    config: Config | None,
    environment: Mapping[str, str],
    clock: Callable[[], float],
) -> Iterator[CheckResult]:
    """What only Kaggle can tell. Where it does not answer once, it is not asked again."""
    skews: list[float] = []
    kaggle.listen(lambda answer, _: skews.extend(_skew(answer, clock())))
    yield _answer("credentials", partial(_account, kaggle, environment))
    questions = [("quota", partial(_quota, kaggle, config))]
    if config:
        questions.append(("kernel", partial(_kernel, kaggle, config)))
        questions += [
            (subject, partial(ask, kaggle, name)) for subject, ask, name in _sources(config)
        ]
    silent = ""
    for subject, question in questions:
        if silent:
            yield CheckResult(subject, Health.UNKNOWN, f"not asked: {silent} was not answered")
            continue
        finding = _answer(subject, question)
        silent = subject if finding.exit_code == UnreachableError.exit_code else ""
        yield finding
    yield _answer("clock", lambda: _clock(skews))
    kaggle.listen(None)


def _sources(config: Config) -> list[tuple[str, Callable[[Kaggle, str], str], str]]:
    """Of each declared source: the subject, the question, and the name to ask it for."""
    kernel = config.kernel
    kinds: list[tuple[str, Callable[[Kaggle, str], str], tuple[str, ...]]] = [
        ("competition", _competition, kernel.competition_sources),
        ("dataset", _dataset, kernel.dataset_sources),
        ("notebook", _notebook, kernel.kernel_sources),
        ("model", _model, kernel.model_sources),
    ]
    return [(f"{kind} {name}", ask, name) for kind, ask, names in kinds for name in names]


def _unasked(config: Config | None) -> list[CheckResult]:
    of_kernel = ["kernel", *(subject for subject, _, _ in _sources(config))] if config else []
    why = "not asked: no account to ask with"
    return [CheckResult(name, Health.UNKNOWN, why) for name in ("quota", *of_kernel, "clock")]


def _answer(subject: str, question: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(subject, Health.GOOD, question())
    except _UnknownError as why:
        return CheckResult(subject, Health.UNKNOWN, str(why))
    except KernelkitError as error:
        if _code(error) == 501:
            return CheckResult(subject, Health.UNKNOWN, str(error))
        return _bad(subject, error)


def _bad(subject: str, error: KernelkitError) -> CheckResult:
    return CheckResult(subject, Health.BAD, str(error), error.next_step, error.exit_code)


def _raise(error: KernelkitError) -> str:
    raise error


def _code(error: KernelkitError) -> int | None:
    """The HTTP status that a fault of a call stands for."""
    answer = getattr(error.__cause__, "response", None)
    return answer.status_code if isinstance(answer, requests.Response) else None


def _version(distribution: str, tested: str) -> str:
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise _UnknownError(f"not installed as a distribution; tested is {tested}") from None
    if version != tested:
        raise _UnknownError(f"{version}: not the tested version, which is {tested}")
    return f"{version}, the tested version"


def _no_diversion(environment: Mapping[str, str]) -> str:
    stated = environment.get("KAGGLE_API_ENVIRONMENT")
    if stated not in (None, "PROD"):
        raise ConfigError(
            f"KAGGLE_API_ENVIRONMENT is {stated}: kernelkit does not heed it, and the official "
            "`kaggle` command sends TEST to the real Kaggle",
            "Unset it; a local Kaggle is named by --endpoint.",
        )
    folder = environment.get("KAGGLE_CONFIG_DIR")
    if folder and not Path(folder).is_dir():
        raise ConfigError(
            f"KAGGLE_CONFIG_DIR names {folder}, which is no folder",
            "Unset it, or make the folder and put kaggle.json there.",
        )
    return f"KAGGLE_CONFIG_DIR is {folder}" if folder else "nothing in it diverts the client"


def _proxy() -> str:
    """Hosts alone: a proxy's address may hold a password."""
    hosts = {scheme: urlsplit(url).hostname for scheme, url in urllib.request.getproxies().items()}
    named = [f"{scheme} by {host}" for scheme, host in hosts.items() if scheme != "no" and host]
    return ", ".join(named) or "none"


def _size(config: Config) -> str:
    kernel = render(read_bundle(config), config)
    return f"{', '.join(config.package)}, {len(kernel.payload):,} B as it is sent"


def _no_problems(config: Config, environment: Mapping[str, str]) -> str:
    own = own_credentials(environment, Path.home(), config.project)
    problems = check(render(read_bundle(config), config), own)
    if problems:
        shown = [f"{problem.subject}: {problem.message.strip()}" for problem in problems]
        more = [f"and {len(shown) - LONGEST_LISTING} more"] if len(shown) > LONGEST_LISTING else []
        raise PreflightError(
            "; ".join([*shown[:LONGEST_LISTING], *more]), "All of it: kernelkit preflight"
        )
    return "no problems"


def _git(project: Path) -> str:
    commit = ask_git(project, "rev-parse", "--short", "HEAD")
    changes = ask_git(project, "status", "--porcelain", "--", ".")
    if commit is None or changes is None:
        raise _UnknownError("no repository with a commit: a run cannot name the code's commit")
    if changes:
        count = len(changes.splitlines())
        return f"{commit}, with {count} path{'s' if count > 1 else ''} changed since"
    return f"{commit}, nothing changed since"


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(_existing(folder)).free
    if free < LEAST_BYTES:
        raise LocalError(f"{free >> 20} MiB free", "Make room for the outputs.")
    if free < WORKING_BYTES:
        raise _UnknownError(f"{free >> 30} GiB free, and a run may leave up to 20 GB")
    return f"{free >> 30} GiB free"


def _writable(runs: Path) -> str:
    place = _existing(runs)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise LocalError(f"{place} cannot be written", "Runs are recorded there: mend its mode.")
    return f"{runs} can be written"


def _existing(path: Path) -> Path:
    return next(place for place in (path.resolve(), *path.resolve().parents) if place.exists())


def _private(path: Path) -> str:
    mode = path.stat().st_mode & 0o777
    if os.name == "posix" and mode & 0o077:
        raise CredentialsError(
            f"{path} can be read by others (mode {mode:03o})", f"chmod 600 {path}"
        )
    return f"{path}, for its owner alone"


def _account(kaggle: Kaggle, environment: Mapping[str, str]) -> str:
    credentials = kaggle.credentials
    beside = [name for name in ("KAGGLE_USERNAME", "KAGGLE_KEY") if environment.get(name)]
    stated = environment.get("KAGGLE_USERNAME", credentials.username)
    if credentials.token and stated.lower() != credentials.username.lower():
        raise CredentialsError(
            f"{credentials.username} ({credentials.origin}), which wins over KAGGLE_USERNAME, "
            f"{stated}",
            "Unset the one that is not meant.",
        )
    also = f"; {' and '.join(beside)} not used" if credentials.token and beside else ""
    return f"{credentials.username} ({credentials.origin}){also}"


def _quota(kaggle: Kaggle, config: Config | None) -> str:
    quota = kaggle.quota()
    refresh = f", refreshed {quota.refresh:%Y-%m-%d %H:%M} UTC" if quota.refresh else ""
    words = f"{quota.used:.1f} of {quota.allowed:.1f} GPU hours used{refresh}"
    if quota.left < LEAST_HOURS and (config is None or config.kernel.wants_gpu):
        raise CapacityError(
            f"{words}: {quota.left:.1f} left", "Wait for the refresh, or run on a CPU."
        )
    return words


def _kernel(kaggle: Kaggle, config: Config) -> str:
    slug, user = config.kernel.slug, kaggle.credentials.username
    owner = config.kernel.owner or user
    if owner.lower() != user.lower():
        raise RefusedError(
            f"{owner}/{slug} belongs to {owner}, and the account is {user}",
            "Leave the owner out of id, or use the owner's credentials.",
        )
    try:
        given = kaggle.kernel(owner, slug)
    except NotFoundError as error:
        if _code(error) == 403:  # production answers so for what is not there, too [A]
            raise _UnknownError(f"{owner}/{slug} is not shown (403): not there yet?") from error
        return f"{owner}/{slug} is not there yet: the first push makes it"
    privacy = "private" if given.is_private else "public"
    return f"{owner}/{slug} is there, at version {given.version}, {privacy}"


def _competition(kaggle: Kaggle, slug: str) -> str:
    try:
        kaggle.competition_access(slug)
    except NotFoundError as error:
        if _code(error) == 404:
            raise RefusedError(f"there is no competition {slug} (404)", "Is its slug right?") from (
                error
            )
        raise RefusedError(
            f"its files are not given to {kaggle.credentials.username} ({_code(error)})",
            f"Accept its rules: https://www.kaggle.com/competitions/{slug}/rules",
        ) from error
    return "its files are given: the rules are accepted"


def _dataset(kaggle: Kaggle, name: str) -> str:
    owner, slug = name.split("/")[:2]
    try:
        status = kaggle.dataset_status(owner, slug)
    except NotFoundError as error:
        raise RefusedError(str(error), "Is its name right, and is it shared with you?") from error
    if status in ("FAILED", "DELETED"):
        raise RefusedError(f"it is {status}", "Upload it anew, or name another one.")
    if status != "READY":
        raise CapacityError(f"it is still being processed ({status})", "Wait until it is ready.")
    return "ready"


def _notebook(kaggle: Kaggle, name: str) -> str:
    owner, slug = name.split("/")[:2]
    return f"there, at version {kaggle.kernel(owner, slug).version}"


def _model(kaggle: Kaggle, source: str) -> str:
    try:
        kaggle.model_access(source)
    except NotFoundError as error:
        raise RefusedError(
            str(error), "Is its name right? Some ask on their page to accept a licence."
        ) from error
    return "its page is given; the variation and version are not asked for"


def _skew(answer: requests.Response, now: float) -> list[float]:
    """Seconds by which this machine's clock is ahead of the answer's Date."""
    try:
        stated = email.utils.parsedate_to_datetime(answer.headers["Date"])
    except (KeyError, ValueError, TypeError):
        return []
    return [now - stated.timestamp()]


def _clock(skews: list[float]) -> str:
    if not skews:
        raise _UnknownError("no answer of Kaggle's told its time")
    skew = min(skews, key=abs)
    if abs(skew) > CLOCK_SECONDS:
        side = "ahead of" if skew > 0 else "behind"
        raise LocalError(
            f"this machine is {abs(skew) / 60:.0f} minutes {side} Kaggle", "Set the clock."
        )
    return f"within {max(1, round(abs(skew)))} s of Kaggle's"
