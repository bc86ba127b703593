"""A chain: what follows a session, by how it has ended; tests/chaos kills its commands."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kernelkit import workflow
from kernelkit.campaigns.chain import ChainRecord, read_chain, run_chain
from kernelkit.config import Config, load_config
from kernelkit.errors import (
    CapacityError,
    ConfigError,
    DeadlineError,
    LocalError,
    QuotaError,
    RefusedError,
    RunFailedError,
)
from kernelkit.kaggle.kernels import connect
from kernelkit.storage import locked
from tests.conftest import Cli
from tests.local_kaggle import LocalKaggle

RELAY = """
import json
from pathlib import Path

def run(steps, fail_at=0, resume_dir="none"):
    assert resume_dir != "none", "resume_dir is passed, also in the first session"
    earlier = Path(resume_dir) / "state.ckpt" if resume_dir else None
    done = int(earlier.read_text()) + 1 if earlier else 1
    Path("state.ckpt").write_text(str(done))
    print(json.dumps({"event": "epoch", "epoch": done, "epochs": steps}))
    if done == fail_at:
        raise ValueError("asked to fail")
    if done < steps:
        print(json.dumps({"event": "incomplete"}))
    else:
        Path("out.txt").write_text(f"{done} steps")
"""


@pytest.fixture
def relay(make_project: Callable[..., Path], emulator: LocalKaggle) -> Callable[..., Config]:
    """The project of a program that does one of `steps` in each session."""

    def load(*settings: str, source: str = RELAY, keys: str = "") -> Config:
        parameters = "[tool.kernelkit.parameters]\nsteps = 2\nfail_at = 0"
        project = make_project({"pkg/main.py": source}, keys=keys, extra=parameters)
        return load_config(project, settings=settings, endpoint=emulator.endpoint, environment={})

    return load


def run(config: Config, emulator: LocalKaggle, **options: object) -> Path:
    kaggle = connect(emulator.endpoint, emulator.environment)
    # So long a failed end may count as that of the version before.
    kaggle.timeouts = replace(kaggle.timeouts, stale=1)
    return run_chain(config, kaggle, config.project / "runs", **options).folder  # type: ignore[arg-type]


def chain_of(config: Config) -> ChainRecord:
    return read_chain(config.project / "runs", config.kernel.slug)


def endings(config: Config) -> list[tuple[int, str, str | None]]:
    return [(one.number, one.slug, one.ending) for one in chain_of(config).sessions]


def test_sessions_alternate_between_two_kernels_until_it_is_done(
    relay: Callable[..., Config], emulator: LocalKaggle, cli: Cli
) -> None:
    config = relay()
    folder = run(config, emulator)
    assert (folder / "out.txt").read_text() == "2 steps"
    assert endings(config) == [(1, "some-kernel", "incomplete"), (2, "some-kernel-b", "complete")]
    sessions = chain_of(config).sessions
    assert sessions[1].resumed_from == "some-kernel/v1"
    assert run(config, emulator) == folder  # complete: verified again, nothing is pushed
    assert len(emulator.journal("effects")) == 2

    shown = cli("chain", cwd=config.project).stdout
    assert re.search(
        r"2 +some-kernel-b/v1 +some-kernel/v1 +just now +complete +epoch 2 of 2", shown
    )
    document = json.loads(cli("chain", "--json", cwd=config.project).stdout)
    assert (document["schema"], document["state"]) == (1, "complete")


@pytest.mark.slow
def test_max_sessions_ends_it_and_the_same_command_goes_on(
    relay: Callable[..., Config], emulator: LocalKaggle, cli: Cli
) -> None:
    config = relay("fail_at=9")
    with pytest.raises(CapacityError, match="some-kernel has run 1 session ") as caught:
        run(config, emulator, max_sessions=1)
    assert "The same command continues" in caught.value.next_step
    shown = " ".join(cli("chain", cwd=config.project).stdout.split())
    command = re.search(r"next: kernelkit (run .*) goes on with it", shown)
    assert command
    cli(*shlex.split(command[1]), cwd=config.project, env=emulator.environment)
    assert [ending for *_, ending in endings(config)] == ["incomplete", "complete"]
    assert len(emulator.journal("effects")) == 2


@pytest.mark.slow
def test_an_error_of_the_program_is_not_tried_again_by_itself(
    relay: Callable[..., Config], emulator: LocalKaggle
) -> None:
    config = relay("fail_at=2")
    with pytest.raises(RunFailedError, match="asked to fail"):
        run(config, emulator)
    assert [ending for *_, ending in endings(config)] == ["incomplete", "failed"]
    source = config.project / "pkg" / "main.py"
    source.write_text(RELAY.replace("done == fail_at", "False"))  # fixed: it goes on from session 1
    folder = run(config, emulator)
    assert [ending for *_, ending in endings(config)] == ["incomplete", "failed", "complete"]
    numbers = [one.number for one in chain_of(config).sessions]
    assert numbers == [1, 2, 2]
    assert (folder / "out.txt").read_text() == "2 steps"


@pytest.mark.slow
def test_a_session_that_kaggle_ends_is_tried_again_twice(
    relay: Callable[..., Config], emulator: LocalKaggle
) -> None:
    config = relay("steps=1")
    emulator.inject("run-error,times=2,message=Your notebook was preempted.")
    run(config, emulator)
    assert [ending for *_, ending in endings(config)] == ["died", "died", "complete"]
    marks = [one.mark for one in chain_of(config).sessions]
    name = chain_of(config).name
    assert marks == [f"{name}-1", f"{name}-1-2", f"{name}-1-3"]
    emulator.inject("run-error,times=4,message=Your notebook was preempted.")
    with pytest.raises(RunFailedError, match="preempted"):
        run(config, emulator, again=True)
    assert [ending for *_, ending in endings(config)] == ["died"] * 3


def test_a_used_quota_ends_it_with_the_next_step(
    relay: Callable[..., Config], emulator: LocalKaggle
) -> None:
    config = relay("steps=1")
    emulator.inject("quota,times=1")
    with pytest.raises(QuotaError) as caught:
        run(config, emulator)
    assert caught.value.next_step.endswith("The same command continues the chain.")
    run(config, emulator)
    assert endings(config) == [(1, "some-kernel", "complete")]


@pytest.mark.slow
def test_other_parameters_begin_another_chain(
    relay: Callable[..., Config], emulator: LocalKaggle
) -> None:
    with pytest.raises(CapacityError):
        run(relay("steps=3"), emulator, max_sessions=1)
    config = relay("steps=1")
    first = chain_of(config).name
    run(config, emulator)
    assert chain_of(config).name != first
    assert (config.project / "runs" / "some-kernel" / f"{first}.json").is_file()


def test_a_newer_version_of_the_previous_kernel_is_not_mistaken_for_the_session(
    relay: Callable[..., Config], emulator: LocalKaggle
) -> None:
    config = relay()
    with pytest.raises(CapacityError):
        run(config, emulator, max_sessions=1)
    emulator.push("some-kernel", "print('something else')")
    with pytest.raises(RefusedError, match="has a newer version"):
        run(config, emulator)


@pytest.mark.slow
def test_an_entry_must_take_the_parameter(
    relay: Callable[..., Config], emulator: LocalKaggle
) -> None:
    config = relay(source="def run(steps, fail_at):\n    pass\n")
    with pytest.raises(ConfigError, match="takes no parameter 'resume_dir'"):
        run(config, emulator)
    named = relay(
        source=RELAY.replace("resume_dir", "start_from"), keys='resume_parameter = "start_from"'
    )
    run(named, emulator)


def test_one_process_at_a_time_runs_a_chain(
    relay: Callable[..., Config], emulator: LocalKaggle
) -> None:
    config = relay()
    with (
        locked(config.project / "runs" / "some-kernel", ".chain.lock"),
        pytest.raises(LocalError, match="another process runs the chain"),
    ):
        run(config, emulator)
    assert not emulator.journal("effects")


@pytest.mark.slow
def test_a_run_that_reached_its_limit_is_continued_as_printed(
    relay: Callable[..., Config], emulator: LocalKaggle, cli: Cli
) -> None:
    config = relay("steps=2", source=RELAY.replace('resume_dir="none"', "resume_dir=None"))
    emulator.inject("run-timed-out,outputs=kept,times=1")
    arguments = ("--set", "steps=2", "--endpoint", emulator.endpoint)
    environment = emulator.environment
    failed = cli("run", *arguments, cwd=config.project, env=environment, expect=6)
    assert "the run timed out" in failed.stderr
    command = re.search(r"kernelkit (run --until-done .*)", failed.stderr)
    assert command
    done = cli(*shlex.split(command[1]), cwd=config.project, env=environment)
    assert "verified: " in done.stdout
    again = cli(*shlex.split(command[1]), cwd=config.project, env=environment)
    assert "verified: " in again.stdout
    assert len(emulator.journal("effects")) == 2
    assert chain_of(config).resume == "some-kernel/v1"


@pytest.mark.slow
def test_the_output_of_a_run_can_be_continued_once(
    relay: Callable[..., Config], emulator: LocalKaggle, cli: Cli
) -> None:
    config = relay()
    kaggle = connect(emulator.endpoint, emulator.environment)
    with pytest.raises(RunFailedError, match="there is no out\\.txt yet"):
        workflow.run(
            config.model_copy(update={"parameters": {**config.parameters, "resume_dir": None}}),
            kaggle,
        )
    arguments = ("run", "--resume", "some-kernel/v1")
    cli(*arguments, cwd=config.project, env=emulator.environment)
    (folder,) = (config.project / "runs" / "some-kernel-b").glob("v*")
    assert (folder / "out.txt").read_text() == "2 steps"


STUCK = """
import json
from pathlib import Path

def run(steps, fail_at=0, resume_dir=None):
    Path("state.ckpt").write_text("always the same")
    print(json.dumps({"event": "epoch", "epoch": 1, "epochs": steps, "seconds": 0.5}))
    return "incomplete"
"""


def test_setbacks_between_idle_sessions_do_not_count() -> None:
    def record(*sessions: tuple[str, bool]) -> ChainRecord:
        return ChainRecord.model_validate(
            {
                "schema": 1,
                "name": "chain-1",
                "slug": "some-kernel",
                "endpoint": "production",
                "owner": "me",
                "work": {"entry": "pkg.main:run", "outputs": ()},
                "started": "",
                "sessions": tuple(
                    {"number": 1, "mark": "", "slug": "", "ending": ending, "idle": is_idle}
                    for ending, is_idle in sessions
                ),
            }
        )

    idle, died, stalled = ("incomplete", True), ("died", False), ("stalled", False)
    assert record(idle, died, stalled, idle).idle_sessions == 2
    assert record(idle, ("incomplete", False), idle).idle_sessions == 1
    assert record(idle, stalled, died).setbacks == 2


STALLS = """
import time
from pathlib import Path

def run(steps, fail_at=0, resume_dir=None):
    Path("state.ckpt").write_text("always the same")
    print('{"event": "epoch", "epoch": 1}', flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_sessions_that_stall_are_tried_again_twice(
    relay: Callable[..., Config], emulator: LocalKaggle
) -> None:
    config = relay(source=STALLS, keys="stall_minutes = 0.1")
    with pytest.raises(RunFailedError, match="the run stalled"):
        run(config, emulator)
    assert [ending for *_, ending in endings(config)] == ["stalled"] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "sessions", "point"),
    [(STUCK, 3, "after epoch 1 of 2"), ("def run(**_):\n    return 'incomplete'\n", 2, "without")],
)
def test_sessions_that_come_no_further_end_the_chain(
    source: str, sessions: int, point: str, relay: Callable[..., Config], emulator: LocalKaggle
) -> None:
    config = relay(source=source)
    with pytest.raises(RunFailedError, match=f"2 sessions in a row came no further.*{point}") as e:
        run(config, emulator)
    assert "Check that pkg.main:run resumes from resume_dir" in e.value.next_step
    assert [ending for *_, ending in endings(config)] == ["incomplete"] * sessions
    with pytest.raises(RunFailedError, match="3 sessions in a row"):  # the same command tries once
        run(config, emulator)
    assert len(emulator.journal("effects")) == sessions + 1


OTHER_PROFILE = """
[tool.kernelkit.profiles.other.parameters]
fail_at = 9
"""


@pytest.mark.slow
def test_a_chain_that_was_started_elsewhere_is_seen_before_a_push(
    relay: Callable[..., Config], emulator: LocalKaggle, cli: Cli
) -> None:
    config = relay(keys=OTHER_PROFILE)
    work = ("--profile", "other", "--set", "steps=3", "--endpoint", emulator.endpoint)
    arguments = ("run", "--until-done", *work)
    environment = {**emulator.environment}
    environment.pop("KERNELKIT_ENDPOINT", None)

    def refused() -> str:
        """The command that the chain's own command prints, as it is."""
        done = cli(*arguments, cwd=config.project, env=environment, expect=2)
        command = re.search(r"kernelkit ((?:run|pull) .*)$", done.stderr.rstrip())
        assert command, done.stderr
        return f"{done.stderr.splitlines()[0]}\n{command[1]}"

    limited = (*arguments, "--max-sessions", "2")
    cli(*limited, cwd=config.project, env=environment, expect=5)
    runs = config.project / "runs"
    runs.rename(config.project.parent / "the other machine")
    message, command = refused().split("\n")
    assert message.endswith("started elsewhere: some-kernel-b/v1, which ended incomplete")
    assert len(emulator.journal("effects")) == 2
    done = cli(*shlex.split(command), cwd=config.project, env=environment)
    assert "verified" in done.stdout
    assert endings(config) == [(1, "some-kernel", "complete")]
    chain = chain_of(config)
    assert chain.profile == "other"
    assert chain.work.parameters.document == {"steps": 3, "fail_at": 9}
    assert len(emulator.journal("effects")) == 3
    shutil.rmtree(runs)
    message, command = refused().split("\n")
    assert message.endswith("some-kernel/v2, which is complete")
    cli(*shlex.split(command), cwd=config.project, env=environment)
    assert (runs / "some-kernel" / "v2" / "out.txt").read_text() == "3 steps"
    run(relay("steps=1"), emulator)  # other work
    assert len(emulator.journal("effects")) == 4


@pytest.mark.slow
def test_a_chain_that_still_runs_elsewhere_is_waited_for(
    relay: Callable[..., Config], emulator: LocalKaggle
) -> None:
    slow = RELAY.replace("    if done == fail_at", "    import time; time.sleep(60)\n    if 0")
    config = relay("steps=1", source=slow)
    with pytest.raises(DeadlineError):
        run(config, emulator, deadline=3.0)
    shutil.rmtree(config.project / "runs")
    with pytest.raises(ConfigError, match="Kaggle runs session 1") as caught:
        run(config, emulator)
    at = f"--endpoint {emulator.endpoint}"
    assert f"`kernelkit watch some-kernel/v1 {at}`" in caught.value.next_step
    assert caught.value.next_step.endswith(
        f"kernelkit run --until-done --resume some-kernel/v1 --set steps=1 {at}"
    )
    assert len(emulator.journal("effects")) == 1


@pytest.mark.slow
def test_the_end_of_a_chain_is_told_once_and_by_the_process_that_saw_it(
    relay: Callable[..., Config], emulator: LocalKaggle
) -> None:
    config, told = relay("steps=1"), list[str]()
    for _ in range(2):  # the second one only verifies it
        run(config, emulator, on_end=lambda chain: told.append(chain.word))
    path = config.project / "runs" / "some-kernel" / "chain.json"
    path.write_text("{")
    with pytest.raises(LocalError, match=r"chain\.json"):
        run(config, emulator, on_end=lambda chain: told.append(chain.word))
    assert told == ["session 1: complete"]


@pytest.mark.slow
def test_files_of_a_stalled_run_are_resumed_as_printed(
    make_project: Callable[..., Path], cli: Cli, local_kaggle: str
) -> None:
    """A run that stalled ends with an error, after which Kaggle may not offer its files."""
    source = """
import json
import time
from pathlib import Path

def run(output_dir, resume_dir=""):
    done = int((Path(resume_dir) / "out.txt").read_text()) if resume_dir else 0
    for step in range(done + 1, 4):
        (Path(output_dir) / "out.txt").write_text(str(step))
        print(json.dumps({"event": "step", "step": step}), flush=True)
        if step == 2 and not done:
            time.sleep(600)
"""
    project = make_project(
        {"pkg/main.py": source},
        keys="stall_minutes = 0.1",
        extra="[tool.kernelkit.parameters]\noutput_dir = 'kaggle://working'\nresume_dir = ''",
    )
    failed = cli("run", "--endpoint", local_kaggle, cwd=project, expect=6).stderr
    assert "error: the run stalled" in failed
    assert "verified, as the run described it: out.txt" in failed
    commands = " ".join(failed.split()).partition("make them a dataset: ")[2]
    push, run = (shlex.split(command)[1:] for command in commands.split(" && "))
    assert (push[:2], run[:2]) == (["dataset", "push"], ["run", "--until-done"])
    cli(*push, cwd=project)
    cli(*run, cwd=project)
    assert (project / "runs" / "some-kernel" / "v2" / "out.txt").read_text() == "3"
