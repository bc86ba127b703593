"""A pytest plugin for `prove`: records the outcome of every test, and the imported modules.

`prove` copies this file next to the tests as the module `kernelkit_pytest_plugin`; kernelkit itself
never imports it. It uses only pytest and the standard library, and runs with the Python and pytest
of the project.

Each process of a test run (pytest-xdist has several) writes one `<pid>.json` into the folder that
the environment variable KERNELKIT_OUTCOMES names. The file `running` in that folder names the test
that started last.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

RANKS = ("skipped", "xfailed", "passed", "xpassed", "failed", "error")
"""Outcomes of one test. If its phases or subtests differ, the last in this list counts."""

REPORT = 6_000
"""Characters of a report that are kept."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the recorder."""
    config.pluginmanager.register(OutcomeRecorder(config, Path(os.environ["KERNELKIT_OUTCOMES"])))


class OutcomeRecorder:
    """Collects outcomes during a session and writes them at its end."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._tests: dict[tuple[str, str], dict[str, str]] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note which test runs, for a run that never ends."""
        (self._folder / "running").write_text(nodeid, encoding="utf-8", errors="replace")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Any:
        """Note the file of a test here: a nodeid may be relative to another folder."""
        outcome = yield
        _sign(outcome.get_result(), item, call.excinfo)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Any:
        """Note the file that is collected."""
        outcome = yield
        report = outcome.get_result()
        _sign(report, collector, getattr(getattr(report, "call", None), "excinfo", None))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One phase of one test."""
        expected = hasattr(report, "wasxfail")
        if report.outcome == "failed":
            self._note(report, "failed" if report.when == "call" else "error")
        elif report.outcome == "skipped":
            self._note(report, "xfailed" if expected else "skipped")
        elif report.outcome == "passed" and report.when == "call":
            self._note(report, "xpassed" if expected else "passed")

    def pytest_collectreport(self, report: Any) -> None:
        """A module that fails to import, or skips itself."""
        if report.outcome != "passed":
            self._note(report, "error" if report.outcome == "failed" else "skipped")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Write the record, whole or not at all."""
        modules = [
            (name, file)
            for name, module in list(sys.modules.items())
            if isinstance(file := getattr(module, "__dict__", {}).get("__file__"), str)
        ]
        record = {
            "arguments": [str(argument) for argument in self._config.args],
            "rootdir": str(self._config.rootpath),
            "inifile": str(self._config.inipath) if self._config.inipath else None,
            "tests": [{"file": f, "test": t, **found} for (f, t), found in self._tests.items()],
            "modules": modules,
        }
        partial = self._folder / f"{os.getpid()}.partial"
        partial.write_text(json.dumps(record), encoding="utf-8")
        partial.replace(self._folder / f"{os.getpid()}.json")

    def _note(self, report: Any, outcome: str) -> None:
        file, _, test = report.nodeid.partition("::")
        # A worker of xdist that died has noted nothing.
        signature = {
            "file": str(self._config.rootpath / file),
            "error": "",
            "reason": _last_line(report),
            "report": _text(report) if outcome in ("failed", "error") else "",
            **getattr(report, "kernelkit_signature", {}),
        }
        key = (signature.pop("file"), test)
        known = self._tests.get(key)
        if known is None or RANKS.index(outcome) > RANKS.index(known["outcome"]):
            self._tests[key] = {"outcome": outcome, **signature}


def _sign(report: Any, node: pytest.Item | pytest.Collector, error: Any) -> None:
    """Plain values in an attribute of their own: xdist carries them from its workers."""
    signature = {"file": str(node.path)}
    if error is not None and not isinstance(error.value, pytest.Collector.CollectError):
        lines = error.exconly().strip().splitlines() or [""]
        of_syntax = issubclass(error.type, SyntaxError)
        signature |= {"error": error.type.__name__, "reason": lines[-1 if of_syntax else 0]}
    report.kernelkit_signature = signature


def _text(report: Any) -> str:
    """The end of what pytest prints about a failure, with the output of the test."""
    return "\n".join([*(text for _, text in report.sections), report.longreprtext])[-REPORT:]


def _last_line(report: Any) -> str:
    lines = [line for line in str(report.longreprtext).splitlines() if line.strip()]
    errors = [line[1:] for line in lines if line.startswith("E ")]
    return (errors or lines or [""])[-1].strip()
