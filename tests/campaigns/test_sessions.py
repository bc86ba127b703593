"""A campaign's session is pushed exactly once, and found again by its mark."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kernelkit.campaigns.sessions import Session, new_campaign, pull_session, push_session
from kernelkit.config import load_config
from kernelkit.errors import AnswerLostError, ConfigError
from kernelkit.kaggle.kernels import connect
from kernelkit.runs.push import Outcome
from tests.local_kaggle import LocalKaggle


@pytest.fixture
def session(plain: Path, emulator: LocalKaggle) -> Session:
    settings = ["kernel.id=some-push", "kernel.title=Some Push"]
    config = load_config(plain, settings=settings, endpoint=emulator.endpoint, environment={})
    return Session(config, f"{new_campaign('chain')}-1")


@pytest.mark.slow
def test_sessions_of_one_digest_are_told_apart(
    session: Session, emulator: LocalKaggle, plain: Path
) -> None:
    kaggle, root = connect(emulator.endpoint, emulator.environment), plain / "runs"
    first = push_session(session, kaggle, root)
    assert first.outcome == Outcome.PUSHED
    assert first.folder.read().session == session.mark
    assert first.folder.read_bundle().session == session.mark
    again = push_session(session, kaggle, root)
    assert (again.outcome, again.folder) == (Outcome.REATTACHED, first.folder)
    pulled = pull_session(kaggle, first.folder)
    assert pulled.verdict.verified
    assert push_session(session, kaggle, root).outcome == Outcome.REUSED

    second = push_session(replace(session, mark=f"{session.mark}-2"), kaggle, root)
    assert (second.outcome, second.folder.version) == (Outcome.PUSHED, 2)
    assert second.folder.read().digest == first.folder.read().digest

    shutil.rmtree(root)  # another machine: the mark in the notebook is enough
    found = push_session(session, kaggle, root)
    assert (found.outcome, found.folder.version) == (Outcome.ADOPTED, 1)
    assert found.folder.read().push_id == first.folder.read().push_id
    assert len(emulator.journal("effects")) == 2


def test_a_version_that_kaggle_does_not_show_yet_is_waited_for(
    session: Session, emulator: LocalKaggle, plain: Path
) -> None:
    kaggle, root = connect(emulator.endpoint, emulator.environment), plain / "runs"
    kaggle.timeouts = replace(kaggle.timeouts, grace=2, first_pause=0.05, longest_pause=0.1)
    asked = time.monotonic()
    emulator.inject("lost-after", "server-error,call=GetKernel,at=3,times=0,code=503")
    kaggle.timeouts = replace(kaggle.timeouts, retry=0.1)
    with pytest.raises(AnswerLostError):
        push_session(session, kaggle, root)
    emulator.remove_faults()
    found = push_session(session, kaggle, root, asked=time.monotonic() - asked)
    assert found.outcome == Outcome.ADOPTED
    assert len(emulator.journal("effects")) == 1

    other = replace(session, mark=f"{session.mark}-2")
    started, messages = time.monotonic(), list[str]()
    new = push_session(
        other, kaggle, root, asked=1.5, on_event=lambda event: messages.append(str(event))
    )
    assert new.outcome == Outcome.PUSHED
    assert time.monotonic() - started > 0.5
    assert any("may have been pushed 2 s ago" in line for line in messages)


def test_a_session_needs_the_manifest_in_the_notebook(
    session: Session, emulator: LocalKaggle, plain: Path
) -> None:
    kaggle = connect(emulator.endpoint, emulator.environment)
    templates = plain / "templates"
    shutil.copytree(Path(__file__).parents[2] / "templates", templates)
    for path in templates.iterdir():
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("BUNDLE = ", "BUNDLE = dict() or "), encoding="utf-8")
    config = session.config.model_copy(update={"templates": templates})
    with pytest.raises(ConfigError, match="hide the manifest"):
        push_session(Session(config, session.mark), kaggle, plain / "runs")
    assert not emulator.journal("effects")
