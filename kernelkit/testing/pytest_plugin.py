"""The test side of `prove`: a pytest plugin that notes what came of every test, and from where.

This file travels to the tests as the module `kernelkit_pytest_plugin`; nothing here imports it. It
needs pytest and the standard library only, and runs with the Python and pytest of the project.

Each process of a test run (pytest-xdist has several) leaves one `<pid>.json` in the folder that the
environment variable KERNELKIT_WITNESS names. `running` beside it names the test begun last.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

RANKS = ("skipped", "xfailed", "passed", "xpassed", "failed", "error")
"""Outcomes of one test; of several (its phases, its subtests) the last in this order counts."""


def pytest_configure(config: pytest.Config) -> None:
    """Listen from now on."""
    config.pluginmanager.register(OutcomeRecorder(config, Path(os.environ["KERNELKIT_WITNESS"])))


class OutcomeRecorder:
    """Collects outcomes during a session and writes them at its end."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._tests: dict[tuple[str, str], dict[str, str]] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """For the words about a run that never ended."""
        (self._folder / "running").write_text(nodeid, encoding="utf-8", errors="replace")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Any:
        """Only here the file of a test is certain: a nodeid may be relative to another folder."""
        outcome = yield
        _sign(outcome.get_result(), item, call.excinfo)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Any:
        """A file that cannot be collected stands for all the tests in it."""
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
        """A module that fails, or skips itself."""
        if report.outcome != "passed":
            self._note(report, "error" if report.outcome == "failed" else "skipped")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Write everything down, whole or not at all."""
        modules = [
            (name, file)
            for name, module in list(sys.modules.items())
            if isinstance(file := getattr(module, "__dict__", {}).get("__file__"), str)
        ]
        account = {
            "arguments": [str(argument) for argument in self._config.args],
            "rootdir": str(self._config.rootpath),
            "inifile": str(self._config.inipath) if self._config.inipath else None,
            "tests": [{"file": f, "test": t, **told} for (f, t), told in self._tests.items()],
            "modules": modules,
        }
        partial = self._folder / f"{os.getpid()}.partial"
        partial.write_text(json.dumps(account), encoding="utf-8")
        partial.replace(self._folder / f"{os.getpid()}.json")

    def _note(self, report: Any, outcome: str) -> None:
        file, _, test = report.nodeid.partition("::")
        # A worker of xdist that died has signed nothing.
        signature = {
            "file": str(self._config.rootpath / file),
            "error": "",
            "reason": _last_words(report),
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


def _last_words(report: Any) -> str:
    lines = [line for line in str(report.longreprtext).splitlines() if line.strip()]
    told = [line[1:] for line in lines if line.startswith("E ")]
    return (told or lines or [""])[-1].strip()
