"""What a person reads about runs: states, outputs, results, causes of failure, scores."""

from __future__ import annotations

import json
import time
import webbrowser
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from kernelkit.console.output import (
    CELL_CHARACTERS,
    as_called,
    document,
    mode,
    print_error,
    print_line,
    print_table,
    print_text,
    say,
    stderr,
    stdout,
    warn,
)
from kernelkit.console.values import MORE_COLUMNS, ago, metric_text, number, score_text, value_text
from kernelkit.storage import counted, human_size, one_line, printable, read_model, shortened

if TYPE_CHECKING:
    from kernelkit.campaigns.chain import ChainRecord
    from kernelkit.diagnosis.diagnose import Diagnosis, Frame
    from kernelkit.kaggle.types import Status
    from kernelkit.runs.delete import Deletion
    from kernelkit.runs.download import PulledRun
    from kernelkit.runs.export import Exported
    from kernelkit.runs.history import RunDetails, RunDifference, RunRow
    from kernelkit.runs.manifest import Verdict
    from kernelkit.runs.push import Pushed
    from kernelkit.runs.store import RunFolder
    from kernelkit.runs.submit import Submitted

RESULT_FILES = 20  # tables, and images, of a run
RESULT_LINES = 200  # of all its tables
RESULT_BYTES = 1 << 14  # of one table
OUTPUTS_SHOWN = 50  # a folder of outputs may hold thousands
UNDECLARED_NAMED = 20  # files that are not declared as outputs; --json lists all
ERROR_LINES = 8  # of an exception's message; --json has more
STARTED = time.monotonic()


def pushed(result: Pushed) -> None:
    """The result of a push."""
    follow = "pull" if result.outcome == "reused" else "watch"
    say(f"Follow it with: kernelkit {follow} v{result.folder.version}")
    document({**result.folder.read().document, "outcome": result.outcome})


def state(folder: RunFolder, now: Status) -> None:
    """The state of a run, in one line."""
    say(f"{folder.slug} v{folder.version}: {now.word}")
    document({**folder.read().document, **_state_document(now)})


def deletion_plan(deletion: Deletion) -> None:
    """What was saved, and what will be gone."""
    name = one_line(deletion.kernel)
    if deletion.saved:
        count = counted(len(deletion.saved), "file")
        say(one_line(f"saved {count} of {deletion.run.name} in {deletion.folder.path}"), to=stderr)
    else:
        say("Kaggle lists nothing of the run, so nothing was saved", to=stderr)
    if deletion.problem:
        warn(one_line(f"not everything could be saved: {deletion.problem}"))
    lost = ", ".join(deletion.lost) or "nothing, because all of it is here"
    say(
        one_line(f"deleting {name} ends its run and removes every version; lost: {lost}"), to=stderr
    )


def deleted(deletion: Deletion) -> None:
    """The end of a deletion."""
    say(one_line(f"{deletion.kernel} is deleted"))
    document(deletion.document)


def watched(folder: RunFolder, end: Status, diagnosis: Diagnosis | None) -> None:
    """How a run has ended, as a document; the reporter has shown it to people."""
    details = {"diagnosis": asdict(diagnosis)} if diagnosis else {}
    document({**folder.read().document, **_state_document(end), **details})


def _state_document(now: Status) -> dict[str, str]:
    return {"state": now.state, "state_word": now.word, "failure": now.failure}


def open_page(url: str) -> None:
    """Show a page in the browser, and print its address: there may be no browser."""
    document({"url": url})
    print_line(url)
    if not mode.as_json:
        webbrowser.open(url)


def conclude(pulled: PulledRun, chain: ChainRecord | None = None) -> None:
    """The end of a verified pull, or of a chain whose last session it is."""
    if not mode.quiet:
        outputs(pulled.verdict)
        results(pulled.folder, pulled.verdict)
    if pulled.partial:
        say("only the selected files were downloaded and verified", to=stderr)
    if pulled.verdict.incomplete:
        from kernelkit.runs.resume import how_to_resume

        say(one_line(f"note: the program says that it is incomplete. {how_to_resume(pulled)}"))
    _verified_line(pulled.folder)
    document({**pulled.document, **({"chain": chain.document} if chain else {})})


def _verified_line(folder: Path) -> None:
    print_text(Text.assemble(("verified", "bold green"), f": {printable(str(folder))}"))


def verified(folder: Path, verdict: Verdict) -> None:
    """The result of a verification without problems."""
    from kernelkit.runs.verify import VerifiedFolder

    if not mode.quiet:
        outputs(verdict)
    _verified_line(folder)
    document(VerifiedFolder(folder, verdict).document)


def diagnosed(diagnosis: Diagnosis | None) -> None:
    """The result of `diagnose`; None if the log shows no failure."""
    if diagnosis is None:
        say("found no failure here")
    else:
        explain(diagnosis)
    document(asdict(diagnosis) if diagnosis else {"cause": None})


def explain(diagnosis: Diagnosis) -> None:
    """The cause, the error, the frames with their source in one column, notes and advice."""
    say(one_line(diagnosis.cause), "bold red")
    say("\n".join(map(shortened, diagnosis.error.split("\n")[:ERROR_LINES])))
    places = [one_line(_place(frame), CELL_CHARACTERS) for frame in diagnosis.frames]
    width = max((len(place) for place in places), default=0)
    for frame, place in zip(diagnosis.frames, places, strict=True):
        own = frame.origin == "project"
        source = printable(shortened(frame.source))
        line = Text.assemble((f"  {place:{width}}", "bold" if own else "dim"), f"  {source}")
        line.rstrip()
        print_text(line)
    if diagnosis.last_lines:
        say("The run printed last:", "bold")
        say("\n".join(f"  {shortened(printed)}" for printed in diagnosis.last_lines), indent=2)
    for note in diagnosis.notes:
        say(Text.assemble(("note:  ", "bold"), one_line(note)), indent=7)
    say(Text.assemble(("next:  ", "bold"), one_line(as_called(diagnosis.next_step))), indent=7)


def _place(frame: Frame) -> str:
    if frame.origin == "library":
        return f"… {counted(frame.times, 'frame')} in {frame.place}"
    if frame.origin == "cell":
        return frame.place if frame.line is None else f"{frame.place}, line {frame.line}"
    function = f" in {frame.function}" if frame.function else ""
    times = f" ({frame.times} times)" if frame.times > 1 else ""
    return f"{frame.address}{function}{times}"


def outputs(verdict: Verdict) -> None:
    """The declared outputs with their sizes, and the files that are not declared."""
    rows = [
        (output.path, human_size(output.size), output.sha256[:12])
        for output in verdict.outputs[:OUTPUTS_SHOWN]
    ]
    print_table(("output", "size", "sha256"), rows, right=("size",))
    if len(verdict.outputs) > OUTPUTS_SHOWN:
        left = verdict.outputs[OUTPUTS_SHOWN:]
        size = human_size(sum(output.size for output in left))
        say(f"… and {counted(len(left), 'more output')}, {size}")
    if verdict.undeclared:
        more = len(verdict.undeclared) - UNDECLARED_NAMED
        shown = ", ".join(verdict.undeclared[:UNDECLARED_NAMED])
        shown += f" and {more} more" if more > 0 else ""
        say(one_line(f"not declared as outputs: {shown}"), style="dim")
    for note in verdict.notes[:UNDECLARED_NAMED]:
        say(one_line(f"note: {note}"))
    if not verdict.identity_proven:
        say(
            "note: the digest matches, and that exactly this run made the files is not proven: it "
            "has no push_id, because another client or an older kernelkit has pushed it"
        )


def results(folder: Path, verdict: Verdict) -> None:
    """The beginning of the tables that the run wrote, the paths of its images, and its duration."""
    from kernelkit.runs.manifest import RUN_MANIFEST_NAME, RunManifest

    left = RESULT_LINES
    tables, images = _files(folder, "*.md"), _files(folder, "*.png")
    for path in tables[:RESULT_FILES]:
        if verdict.is_undeclared(path.relative_to(folder)):
            say(one_line(f"not declared as an output, so not verified: {path.name}"))
        left -= _print_markdown(path, left)
    _print_more(tables, "table")
    for path in images[:RESULT_FILES]:
        doubt = " (not verified)" if verdict.is_undeclared(path.relative_to(folder)) else ""
        print_line(f"image: {path}{doubt}")
    _print_more(images, "image")
    manifest = read_model(folder / RUN_MANIFEST_NAME, RunManifest)
    total = time.monotonic() - STARTED
    say(f"the run took {number(manifest.seconds, 0)} s, this command {total:.0f} s")


def _print_markdown(path: Path, most: int) -> int:
    """Print the beginning of a file, up to `most` lines; returns how many were printed."""
    from rich.markdown import Markdown

    with path.open("rb") as stream:  # rich needs minutes for a table of 4 MB
        data = stream.read(RESULT_BYTES + 1)
    text = data[:RESULT_BYTES].decode(errors="replace")
    source = text.splitlines()
    safe = "\n".join(map(printable, source[:most]))
    markdown = Markdown(safe, hyperlinks=False)  # a link would hide where it leads
    rendered = stdout.render_lines(markdown, pad=False)
    for line in rendered[:most]:
        pieces = ((segment.text, segment.style or "") for segment in line)
        print_text(Text.assemble(*pieces))
    if len(data) > RESULT_BYTES or len(source) > most or len(rendered) > most:
        say(printable(f"the rest is in {path}"), style="dim")
    return min(most, len(rendered))


def _print_more(files: Sequence[Path], noun: str) -> None:
    if more := files[RESULT_FILES:]:
        say(printable(f"… and {counted(len(more), f'more {noun}')} in {more[0].parent}"))


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.rglob(pattern) if path.is_file())


def submitted(submitted: Submitted) -> None:
    """The state of a submission, and its scores."""
    record = submitted.record
    say(one_line(f"submission {record.ref} to {record.competition}: {record.status}"))
    if record.status == "complete":
        say(one_line(f"public score: {record.public_score or 'not shown'}"))
        say(one_line(f"private score: {record.private_score or 'not shown'}"))
    document(submitted.document)


def runs(rows: Sequence[RunRow], folder: Path | None = None) -> None:
    """A line for each version, the newest last, and advice about damaged folders."""
    document([row.model_dump(mode="json") for row in rows])
    if not rows:
        say(f"nothing was pushed from {folder or 'here'}")
        return
    headings = (
        *("campaign", "owner", "run", "version", "digest", "commit", "profile", "pushed", "state"),
        *("best metric", "public / private", "GPU s"),
    )
    print_table(headings, [_run_cells(row) for row in rows], right=("GPU s",))
    for row in rows:
        if row.next:
            say(one_line(f"{row.run} v{row.version}: {row.next}"), "yellow")


def _run_cells(row: RunRow) -> list[str]:
    owner, _, slug = row.run.rpartition("/")
    broken = row.state == "complete" and row.verified is False
    unverified = ", not verified" if broken else ""
    cells = (
        *(_short(row.campaign), owner, slug, f"v{row.version}", row.digest, row.commit),
        row.profile,
        *(
            ago(row.pushed),
            f"{row.state_word}{unverified}",
            metric_text(row.metric),
        ),
        score_text(row.public_score, row.private_score, row.submission),
        number(row.gpu_seconds, 0),
    )
    return [printable(str(cell or "")) for cell in cells]


def _short(campaign: str | None) -> str:
    """`sweep-3f81`: enough to tell two apart."""
    kind, _, number = (campaign or "").partition("-")
    return f"{kind}-{number[:4]}" if number else ""


def run(details: RunDetails) -> None:
    """Everything known about one run."""
    document(details.document)
    say(printable(f"{details.run} v{details.version}"), style="bold")
    for name in (
        "folder",
        "url",
        "digest",
        "code_dataset",
        "commit",
        "profile",
        "pushed",
        "pulled",
        "state",
    ):
        if value := getattr(details, name):
            dirty = " (and uncommitted changes)" if name == "commit" and details.dirty else ""
            if name == "state":
                value = details.state_word
            elif name in ("pushed", "pulled"):
                value = f"{value} ({ago(value)})"
            print_line(f"  {name}: {value}{dirty}")
    for name in ("failure", "verified", "identity_proven", "seconds", "gpu_seconds"):
        if (value := getattr(details, name)) is not None and value != "":
            print_line(f"  {name}: {value}")
    if metric := details.metric:
        where = f"{metric.experiment or 'the run'}, epoch {metric.epoch}"
        direction = "lower" if metric.goal == "minimize" else "higher"
        print_line(f"  best: {metric_text(metric)} ({where}; {direction} is better)")
        others = [f"{name} {number(value)}" for name, value in metric.numbers.items()]
        if others:
            print_line(f"        with {', '.join(others[:MORE_COLUMNS])}")
    for title in ("parameters", "kernel", "hardware", "versions"):
        values = getattr(details, title).document
        if values:
            say(title, style="bold")
        for name, value in values.items():
            if value not in ("", [], None):
                print_line(f"  {name} = {json.dumps(value, ensure_ascii=False)}")
    if details.outputs:
        say("outputs", style="bold")
    for output in details.outputs[:OUTPUTS_SHOWN]:
        print_line(f"  {output.path}  {human_size(output.size)}")
    if len(details.outputs) > OUTPUTS_SHOWN:
        say(f"  … and {counted(len(details.outputs) - OUTPUTS_SHOWN, 'more output')}")
    if details.submissions:
        say("submissions", style="bold")
    for one in details.submissions:
        score = score_text(one.public_score, one.private_score, one.status)
        line = f"  {one.ref} to {one.competition}, {one.submitted}: {score} {one.error or ''}"
        print_line(line.rstrip())
    for problem in details.problems:
        warn(problem)


def exported(result: Exported) -> None:
    """Where the exported runs are, and the command that shows them."""
    new, kept = len(result.written), len(result.unchanged)
    say(f"{counted(new, 'run')} written, {kept:,} unchanged: {result.folder}")
    commands = {
        "tensorboard": f"tensorboard --logdir {result.folder}",
        "mlflow": f"mlflow ui --backend-store-uri sqlite:///{result.folder.resolve()}/mlflow.db",
    }
    if command := commands.get(result.to):
        say(f"Look at them with: {command}")
    document({**asdict(result), "folder": str(result.folder)})


def difference(found: RunDifference) -> None:
    """How two runs differ."""
    document(found.model_dump(mode="json"))
    say(printable(f"{found.before} → {found.after}"), style="bold")
    say("the same kernel" if found.same else "different kernels")
    for title in ("parameters", "kernel", "settings", "versions", "results"):
        pairs = getattr(found, title)
        if pairs:
            say(title, style="bold")
        for name, (a, b) in pairs.items():
            print_line(f"  {name}: {value_text(a)} → {value_text(b)}")
    if found.code.any:
        say("code", style="bold")
    for kind in ("added", "removed", "changed"):
        for path in getattr(found.code, kind):
            print_line(f"  {kind} {path}")
    a, b = found.commits
    if found.code.any and a and b and a != b and not (a + b).count("+"):
        say(f"line by line: git diff {a} {b}", style="dim")
    for problem in found.problems:
        warn(problem)


def has_failed(end: Status) -> bool:
    """Whether a run has ended, and not successfully."""
    return end.failed


def require_no_failure(end: Status, diagnosis: Diagnosis | None = None) -> None:
    """Report why a run failed and exit with 6; do nothing if it did not fail."""
    if not has_failed(end):
        return
    if end.word == "cancelled":
        print_error("the run was cancelled", "To run it again: kernelkit push")
    elif end.word == "timed out":
        print_error(
            f"the run timed out: {one_line(end.failure)}",
            "Download what it has saved, and see how to resume: kernelkit pull",
        )
    elif diagnosis is None:
        print_error(
            f"the run failed: {one_line(end.failure) or 'Kaggle gives no reason'}",
            "Download its log: kernelkit pull",
        )
    else:
        print_error(
            f"the run failed: {diagnosis.headline}\n{diagnosis.summary}",
            f"{diagnosis.next_step} Download its log: kernelkit pull",
        )
    raise typer.Exit(6)
