"""Checks whether a push would succeed: this machine, the account and the project.

The checks change nothing. Each ends in a `CheckResult`; one that cannot be made is unknown and says
why. No result contains a secret: only names of variables and files, never their values.
"""

from __future__ import annotations

import email.utils
import importlib.metadata
import os
import platform
import shutil
import subprocess
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
from kernelkit.bundle import git
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
from kernelkit.kaggle.credentials import account_name, key_files
from kernelkit.kaggle.kernels import Kaggle, connect
from kernelkit.kaggle.local import emulator_command
from kernelkit.kaggle.types import PRODUCTION
from kernelkit.notebook.preflight import check
from kernelkit.storage import counted
from kernelkit.workflow import render_kernel

TESTED = {"kaggle": ("2.2.5", "2.2.4"), "kagglesdk": ("0.1.38", "0.1.37")}
"""The versions with which kernelkit was tested, the newest first."""

START_SECONDS = 30  # for the local Kaggle, on a busy machine
CLOCK_SECONDS = 300  # Kaggle refuses a signed address if the clock differs more
WORKING_BYTES = 20 * 10**9  # /kaggle/working, the most that a run can leave [D]
LEAST_BYTES = 1 << 30  # of free disk
LEAST_HOURS = 1.0  # of GPU quota
LONGEST_LISTING = 5  # problems in one line
SHORT_COMMIT = 10  # characters


class Health(StrEnum):
    """The result of a check, in one word."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class CheckResult:
    """One line of the report. `exit_code` is 0 unless the result is bad."""

    subject: str
    health: Health
    words: str
    remedy: str = ""
    exit_code: int = 0


class _UnknownError(Exception):
    """A check that cannot be made; the message says why."""


Check = tuple[str, Callable[[], str]]
"""A subject, and a function that returns what is good about it, or raises."""


def examine(
    project: Path,
    config: Config | ConfigError,
    endpoint: str | None,
    *,
    environment: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.time,
) -> list[CheckResult]:
    """All results, the basic ones first.

    `config` may be the error of loading it: the other checks are made all the same.
    """
    results = [_check(*one) for one in _tool_checks(endpoint, environment)]
    results += [_check(*one) for one in _project_checks(project, config, environment)]
    settings = config if isinstance(config, Config) else None
    results += [_check(*one) for one in _key_file_checks(endpoint, environment)]
    try:
        kaggle = connect(endpoint, environment, settings.kernel.owner if settings else None)
    except KernelkitError as error:
        return [*results, _bad("credentials", error), *_not_checked(settings)]
    return [*results, *_check_account(kaggle, settings, environment, clock)]


def _tool_checks(endpoint: str | None, environment: Mapping[str, str]) -> Iterator[Check]:
    yield "python", lambda: f"{platform.python_version()} on {platform.system()}"
    yield "kernelkit", lambda: kernelkit.__version__
    for name, tested in TESTED.items():
        yield name, partial(_version, name, tested)
    kind = "the real Kaggle" if endpoint is None else "a local Kaggle"
    yield "endpoint", lambda: f"{endpoint or PRODUCTION}, {kind}"
    yield "environment", lambda: _no_redirection(environment)
    yield "proxy", _proxy
    yield "local Kaggle", _local_kaggle


def _project_checks(
    project: Path, config: Config | ConfigError, environment: Mapping[str, str]
) -> Iterator[Check]:
    if isinstance(config, ConfigError):
        yield "project", lambda: _raise(config)
    else:
        yield "project", lambda: _size(config)
        yield "preflight", lambda: _no_problems(config, environment)
    yield "git", lambda: _git(project)
    yield "disk", lambda: _disk(project)
    yield "runs", lambda: _writable(project / "runs")


def _key_file_checks(endpoint: str | None, environment: Mapping[str, str]) -> Iterator[Check]:
    if endpoint is not None:
        return  # a local Kaggle does not get credentials from files
    for path in key_files(environment):
        yield "key file", partial(_private, path)


def _check_account(
    kaggle: Kaggle,
    config: Config | None,
    environment: Mapping[str, str],
    clock: Callable[[], float],
) -> Iterator[CheckResult]:
    """The checks that call Kaggle. If Kaggle does not answer one, the others are not made."""
    skews: list[float] = []
    kaggle.listen(lambda response, _: skews.extend(_skew(response, clock())))
    yield _check("credentials", partial(_account, kaggle, environment))
    checks = [("quota", partial(_quota, kaggle, config))]
    if config:
        checks.append(("kernel", partial(_kernel, kaggle, config)))
        checks += [(subject, partial(ask, kaggle, name)) for subject, ask, name in _sources(config)]
    silent = ""
    for subject, question in checks:
        if silent:
            yield CheckResult(
                subject, Health.UNKNOWN, f"not checked: Kaggle did not answer ({silent})"
            )
            continue
        result = _check(subject, question)
        silent = subject if result.exit_code == UnreachableError.exit_code else ""
        yield result
    yield _check("clock", lambda: _clock(skews))
    kaggle.listen(None)


def _sources(config: Config) -> list[tuple[str, Callable[[Kaggle, str], str], str]]:
    """For each declared source: the subject, the check, and the name to check."""
    kernel = config.kernel
    kinds: list[tuple[str, Callable[[Kaggle, str], str], tuple[str, ...]]] = [
        ("competition", _competition, kernel.competition_sources),
        ("dataset", _dataset, kernel.dataset_sources),
        ("notebook", _notebook, kernel.kernel_sources),
        ("model", _model, kernel.model_sources),
    ]
    return [(f"{kind} {name}", ask, name) for kind, ask, names in kinds for name in names]


def _not_checked(config: Config | None) -> list[CheckResult]:
    of_kernel = ["kernel", *(subject for subject, _, _ in _sources(config))] if config else []
    why = "not checked: no account"
    return [CheckResult(name, Health.UNKNOWN, why) for name in ("quota", *of_kernel, "clock")]


def _check(subject: str, question: Callable[[], str]) -> CheckResult:
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
    """The HTTP status of the response behind an error."""
    response = getattr(error.__cause__, "response", None)
    return response.status_code if isinstance(response, requests.Response) else None


def _version(distribution: str, tested: tuple[str, ...]) -> str:
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise _UnknownError(
            f"not installed as a distribution; kernelkit is tested with {tested[0]}"
        ) from None
    if version not in tested:
        raise _UnknownError(f"{version}; kernelkit is tested with {tested[0]}")
    return f"{version}, a tested version"


def _local_kaggle() -> str:
    """Whether a rehearsal can run here, and how it isolates its runs."""
    try:
        done = subprocess.run(
            emulator_command(["--check"]), capture_output=True, text=True, timeout=START_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _UnknownError(f"the local Kaggle does not start: {error}") from None
    if done.returncode:
        raise _UnknownError((done.stderr.strip().splitlines() or ["it does not start"])[-1])
    isolation, _, reason = done.stdout.strip().partition(": ")
    if isolation == "namespace":
        return "runs are in private namespaces"
    return f"runs are in ordinary folders, with an open network: {reason}"


def _no_redirection(environment: Mapping[str, str]) -> str:
    stated = environment.get("KAGGLE_API_ENVIRONMENT")
    if stated not in (None, "PROD"):
        raise ConfigError(
            f"KAGGLE_API_ENVIRONMENT is {stated}: kernelkit ignores it, and the official "
            "`kaggle` command sends TEST to the real Kaggle",
            "Unset it; to use a local Kaggle, set --endpoint.",
        )
    folder = environment.get("KAGGLE_CONFIG_DIR")
    if folder and not Path(folder).is_dir():
        raise ConfigError(
            f"KAGGLE_CONFIG_DIR names {folder}, which is not a folder",
            "Unset it, or create the folder with kaggle.json in it.",
        )
    return f"KAGGLE_CONFIG_DIR is {folder}" if folder else "does not change the client"


def _proxy() -> str:
    """The hosts only: the address of a proxy may contain a password."""
    try:
        proxies = urllib.request.getproxies().items()
        hosts = {scheme: urlsplit(url).hostname for scheme, url in proxies}
    except ValueError:
        raise ConfigError(
            "the address of a proxy is not valid", "Fix http_proxy, https_proxy or all_proxy."
        ) from None
    named = [
        f"{scheme} through {host}" for scheme, host in hosts.items() if scheme != "no" and host
    ]
    return ", ".join(named) or "none"


def _size(config: Config) -> str:
    kernel = render_kernel(config)
    return f"{', '.join(config.package)}, {kernel.size:,} B in the notebook"


def _no_problems(config: Config, environment: Mapping[str, str]) -> str:
    own = own_credentials(environment, Path.home(), config.project)
    problems = check(render_kernel(config), own)
    if problems:
        shown = [f"{problem.subject}: {problem.message.strip()}" for problem in problems]
        more = [f"and {len(shown) - LONGEST_LISTING} more"] if len(shown) > LONGEST_LISTING else []
        raise PreflightError(
            "; ".join([*shown[:LONGEST_LISTING], *more]), "Show all problems: kernelkit preflight"
        )
    return "no problems"


def _git(project: Path) -> str:
    found = git.changes(project)
    if found is None:
        raise _UnknownError("no repository with a commit: a run cannot record the commit")
    commit, changed = found[0][:SHORT_COMMIT], len(found[1])
    if changed:
        return f"{commit}, with {counted(changed, 'changed file')}"
    return f"{commit}, no changes"


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(_existing(folder)).free
    if free < LEAST_BYTES:
        raise LocalError(f"{free >> 20} MiB free", "Free some space for the outputs.")
    if free < WORKING_BYTES:
        raise _UnknownError(f"{free >> 30} GiB free; the outputs of a run can be up to 20 GB")
    return f"{free >> 30} GiB free"


def _writable(runs: Path) -> str:
    place = _existing(runs)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise LocalError(
            f"{place} cannot be written", "Runs are recorded there: change its permissions."
        )
    return f"{runs} can be written"


def _existing(path: Path) -> Path:
    return next(place for place in (path.resolve(), *path.resolve().parents) if place.exists())


def _private(path: Path) -> str:
    mode = path.stat().st_mode & 0o777
    if os.name == "posix" and mode & 0o077:
        raise CredentialsError(
            f"{path} can be read by others (mode {mode:03o})", f"chmod 600 {path}"
        )
    return f"{path}, readable only by its owner"


def _account(kaggle: Kaggle, environment: Mapping[str, str]) -> str:
    credentials = kaggle.credentials
    unused = [name for name in ("KAGGLE_USERNAME", "KAGGLE_KEY") if environment.get(name)]
    stated = account_name(environment.get("KAGGLE_USERNAME", ""), "KAGGLE_USERNAME")
    if credentials.token and stated and stated.lower() != credentials.username.lower():
        raise CredentialsError(
            f"{credentials.username} ({credentials.origin}), which overrides KAGGLE_USERNAME, "
            f"{stated}",
            "Unset the wrong one.",
        )
    also = f"; {' and '.join(unused)} not used" if credentials.token and unused else ""
    return f"{credentials.username} ({credentials.origin}){also}"


def _quota(kaggle: Kaggle, config: Config | None) -> str:
    quota = kaggle.quota()
    refresh = f", refreshed {quota.refresh:%Y-%m-%d %H:%M} UTC" if quota.refresh else ""
    reserved = f", {quota.reserved:.1f} reserved by running sessions" if quota.reserved else ""
    used = f"{quota.used:.1f} of {quota.allowed:.1f} GPU hours used{reserved}{refresh}"
    if quota.left < LEAST_HOURS and (config is None or config.kernel.wants_gpu):
        raise CapacityError(
            f"{used}: {quota.left:.1f} left", "Wait for the refresh, or run on a CPU."
        )
    return used


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
        if _code(error) == 403:  # production also returns 403 for a kernel that does not exist [A]
            raise _UnknownError(
                f"{owner}/{slug} is not accessible (403); it may not exist yet"
            ) from error
        return f"{owner}/{slug} does not exist yet: the first push creates it"
    privacy = "private" if given.is_private else "public"
    return f"{owner}/{slug} exists, at version {given.version}, {privacy}"


def _competition(kaggle: Kaggle, slug: str) -> str:
    try:
        kaggle.competition_access(slug)
    except NotFoundError as error:
        if _code(error) == 404:
            raise RefusedError(f"there is no competition {slug} (404)", "Check its slug.") from (
                error
            )
        raise RefusedError(
            f"{kaggle.credentials.username} cannot download its files ({_code(error)})",
            f"Accept its rules: https://www.kaggle.com/competitions/{slug}/rules",
        ) from error
    return "its rules are accepted"


def _dataset(kaggle: Kaggle, name: str) -> str:
    owner, slug = name.split("/")[:2]
    try:
        status = kaggle.dataset_status(owner, slug)
    except NotFoundError as error:
        raise RefusedError(str(error), "Check its name, and that it is shared with you.") from error
    if status in ("FAILED", "DELETED"):
        raise RefusedError(f"it is {status}", "Upload it again, or use another one.")
    if status != "READY":
        raise CapacityError(f"it is still being processed ({status})", "Wait until it is ready.")
    return "ready"


def _notebook(kaggle: Kaggle, name: str) -> str:
    owner, slug = name.split("/")[:2]
    return f"exists, at version {kaggle.kernel(owner, slug).version}"


def _model(kaggle: Kaggle, source: str) -> str:
    try:
        kaggle.model_access(source)
    except NotFoundError as error:
        raise RefusedError(
            str(error),
            "Check its name. Some models require a license, to be accepted on their page.",
        ) from error
    return "exists; the variation and version are not checked"


def _skew(response: requests.Response, now: float) -> list[float]:
    """Seconds by which this machine's clock is ahead of the response's Date."""
    try:
        stated = email.utils.parsedate_to_datetime(response.headers["Date"])
    except (KeyError, ValueError, TypeError):
        return []
    return [now - stated.timestamp()]


def _clock(skews: list[float]) -> str:
    if not skews:
        raise _UnknownError("no response of Kaggle had a date")
    skew = min(skews, key=abs)
    if abs(skew) > CLOCK_SECONDS:
        side = "ahead of" if skew > 0 else "behind"
        raise LocalError(
            f"this machine is {abs(skew) / 60:.0f} minutes {side} Kaggle", "Set the clock."
        )
    return f"within {max(1, round(abs(skew)))} s of Kaggle's"
