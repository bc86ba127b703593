"""What a run that ended before its work was done has left, and the command that continues it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from kernelkit.bundle.bundle import read_bundle
from kernelkit.config import Config, KernelSettings, load_config, setting_text
from kernelkit.errors import KernelkitError
from kernelkit.kaggle.types import PRODUCTION, State
from kernelkit.notebook.manifest import Manifest
from kernelkit.runs.download import PulledRun
from kernelkit.runs.manifest import RunFacts, RunRecord, Verdict
from kernelkit.runs.store import RunFolder
from kernelkit.storage import counted, one_line

NAMED = 10  # files in a message; --json lists all
REHEARSE_AGAIN = "kernelkit rehearse --until-done"
"""How a rehearsal continues: its own local Kaggle ends with it."""


def has_left_files(verdict: Verdict) -> bool:
    """Whether the run has left any file besides its log and its manifest."""
    return bool(verdict.outputs or verdict.checkpoints or verdict.undeclared)


def describe_files(verdict: Verdict) -> str:
    """Which files are verified and which are not, one line each, and how far the run had come."""
    if not has_left_files(verdict):
        return "It has saved no files."
    if verdict.left_no_manifest or verdict.run_status is None:
        return "It has saved files, and no manifest: they are not verified."
    lines = []
    if verified := verdict.vouched_for:
        lines.append(f"verified, as the run described {_them(verified)}: {_names(verified)}")
    if verdict.not_vouched_for:
        changed = _names(verdict.not_vouched_for)
        lines.append(f"not vouched for, because changed afterwards: {changed}")
    others = tuple(name for name in verdict.undeclared if name not in verdict.not_vouched_for)
    if others:
        lines.append(f"not vouched for, because not described: {_names(others)}")
    # A program may save less often than it reports: its files may be of an earlier point.
    when = f" by {verdict.described}" if verdict.described else ""
    point = point_text(verdict.last_event)
    event = f"; last event: {point}" if point else ""
    lines.append(f"resume point: what it had saved{when}{event}")
    return "\n".join(lines)


def how_to_resume(pulled: PulledRun) -> str:
    """The next step: the command that gives the next session the files of this run."""
    if not has_left_files(pulled.verdict):
        return (
            "Make the run shorter, or let it save its state to kaggle://working so that the next "
            "session can resume."
        )
    folder = RunFolder(pulled.folder)
    try:
        record, sent = folder.read(), folder.read_bundle()
        project = folder.root.parent
        is_local = record.endpoint != PRODUCTION
        if is_local and folder.root.name != "runs":
            return f"To continue until it is done: {REHEARSE_AGAIN}"
        config = load_config(project, profile=record.profile, endpoint=None, environment={})
        if not accepts_resume(config):
            return (
                f"To resume, {config.entry} must take a parameter for the folder of the earlier "
                f'results: add "{config.resume_parameter}" to it, or name another one with '
                "resume_parameter."
            )
    except KernelkitError:  # the project has changed, or the folder was moved
        return "The next version can read the files if kernel_sources names this kernel."
    if pulled.end.state == State.ERROR:
        return _how_to_resume_from_a_dataset(folder, config, sent, record)
    command = command_to_resume(f"{folder.slug}/v{folder.version}", config, sent, record.endpoint)
    return f"To resume from these files until it is done: {command}"


def _how_to_resume_from_a_dataset(
    folder: RunFolder, config: Config, sent: Manifest, record: RunRecord
) -> str:
    """The next step after an error, since Kaggle may offer only outputs of runs without one."""
    name = config.resume_parameter
    if name not in config.parameters:
        return (
            "Kaggle may not give the files of a failed run to the next one. To resume from them, "
            f'add {name} = "" to [tool.kernelkit.parameters], and pull again for the commands.'
        )
    slug = f"{folder.slug[:40].rstrip('-')}-v{folder.version}"
    sources = (*sent.kernel.dataset_sources, f"{record.owner}/{slug}")
    kernel = sent.kernel.model_copy(update={"dataset_sources": sources})
    common = ["--profile", config.profile] if config.profile else []
    common += endpoint_option(record.endpoint)
    place = str(folder.path.relative_to(config.project))
    push = shlex.join(["kernelkit", "dataset", "push", place, "--slug", slug, *common])
    words = ["kernelkit", "run", "--until-done", "--set", f"{name}=kaggle://input/{slug}"]
    for setting in _settings(config, sent.model_copy(update={"kernel": kernel})):
        words += ["--set", setting]
    return (
        "Kaggle may not give the files of a failed run to the next one. To resume from them until "
        f"it is done, make them a dataset: {push} && {shlex.join([*words, *common])}"
    )


def command_to_resume(run: str, config: Config, sent: Manifest, endpoint: str) -> str:
    """The command that continues a run, `slug/v3`, with the parameters that were sent.

    `config` is the project with the profile of the run, and without any other option.
    """
    words = ["kernelkit", "run", "--until-done", "--resume", run]
    words += ["--profile", config.profile] if config.profile else []
    for setting in _settings(config, sent):
        words += ["--set", setting]
    return shlex.join([*words, *endpoint_option(endpoint)])


def endpoint_option(endpoint: str) -> list[str]:
    """`--endpoint ADDRESS` as a command takes it; nothing for the real Kaggle."""
    return ["--endpoint", endpoint] if endpoint != PRODUCTION else []


def accepts_resume(config: Config) -> bool:
    """Whether the entry takes the parameter for the folder of earlier results.

    Raises:
        BundleError: the package cannot be read.
    """
    name = config.resume_parameter
    return name in config.parameters or read_bundle(config).accepts(name)


def _settings(config: Config, sent: Manifest) -> Iterator[str]:
    """The `--set` options that make of the project what was sent, besides its kernel's name."""
    for name, value in sent.parameters.items():
        if name == config.resume_parameter or config.parameters.get(name) == value:
            continue
        if name in config.parameters:
            yield setting_text(name, value)
    own = ("id", "title", "kernel_sources")
    for name in sorted(KernelSettings.model_fields.keys() - {*own}):
        before, now = getattr(config.kernel, name), getattr(sent.kernel, name)
        if before != now and now is not None:
            value = list(now) if isinstance(now, tuple) else now
            yield setting_text(f"kernel.{name}", value)


def point_text(event: RunFacts) -> str:
    """An event in some words: `epoch 3 of 20 of resnet34`; empty without one."""
    facts = event.document
    kind = facts.get("event")
    if not kind:
        return ""
    text = str(kind)
    if kind == "epoch" and "epoch" in facts:
        text += f" {facts['epoch']}" + (f" of {facts['epochs']}" if facts.get("epochs") else "")
    return one_line(text + (f" of {facts['experiment']}" if facts.get("experiment") else ""))


def _names(names: tuple[str, ...]) -> str:
    more = f" and {counted(len(names) - NAMED, 'more file')}" if len(names) > NAMED else ""
    return one_line(", ".join(names[:NAMED])) + more


def _them(names: tuple[str, ...]) -> str:
    return "it" if len(names) == 1 else "them"
