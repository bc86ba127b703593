"""What a person reads about a project: its settings, its notebook, and what sync changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from kernelkit.console.output import (
    NOTE,
    as_called,
    detail,
    document,
    mode,
    print_line,
    print_table,
    print_text,
    say,
    stderr,
    stdout,
    warn,
)
from kernelkit.console.values import value_text
from kernelkit.storage import counted, one_line, printable, shortened

if TYPE_CHECKING:
    from kernelkit.bundle.image import Availability
    from kernelkit.bundle.requirements import InstallPlan, PlannedRequirement
    from kernelkit.config import ConfigValue
    from kernelkit.notebook.edits import SyncPlan
    from kernelkit.notebook.layout import SizeEntry
    from kernelkit.notebook.render import RenderedKernel
    from kernelkit.project.init import InitPlan
    from kernelkit.testing.prove import Proof

BUDGET_ROWS = 25  # files listed by `render`
LEFT_OUT_NAMED = 5  # files listed for each reason


def config_values(values: Sequence[ConfigValue]) -> None:
    """Each setting with its value, as TOML would have it, and its origin."""
    shown_values = [one for one in values if mode.verbose or one.origin != "default"]
    rows = [(one.key, value_text(one.value), one.origin) for one in shown_values]
    if not mode.as_json:
        print_table(["key", "value", "from"], rows)
        if len(shown_values) < len(values):
            detail("--verbose shows the defaults too", style="dim")
    document({one.key: {"value": one.value, "from": one.origin} for one in values})


def init_candidates(plan: InitPlan) -> None:
    """What could start the run, the most likely first."""
    if len(plan.candidates) > 1:
        rows = [
            (str(number), candidate.entry, candidate.parameters)
            for number, candidate in enumerate(plan.candidates, 1)
        ]
        print_table(["", "entry", "parameters"], rows)


def init_text(plan: InitPlan) -> None:
    """What `init` is about to write."""
    if not mode.quiet:
        stdout.print(plan.text, soft_wrap=True)


def initialized(plan: InitPlan, problems: Sequence[str]) -> None:
    """What `init` has written, what a person should check, and the next two commands."""
    if plan.exists:
        print_line(f"{plan.path} has [tool.kernelkit] already: nothing is changed")
        commands = ["kernelkit preflight"]
    else:
        print_line(f"[tool.kernelkit] is in {plan.path}")
        for note in [*plan.notes, *problems]:
            say(f"check: {note}", to=stderr, indent=7)
        data = "".join(f" (DIR contains {slug}/ with the data)" for slug in plan.inputs)
        commands = ["kernelkit rehearse --profile smoke --inputs DIR", "kernelkit run"]
        if not plan.inputs:
            commands[0] = "kernelkit rehearse --profile smoke"
        say(f"next:  {commands[0]}{data}", indent=7)
        say(f"then:  {commands[1]}", indent=7)
    document(
        {
            "project_file": str(plan.path),
            "written": not plan.exists,
            "entry": plan.entry,
            "candidates": [
                {"entry": c.entry, "parameters": [o.names[-1] for o in c.options]}
                for c in plan.candidates
            ],
            "text": plan.text,
            "notes": [*plan.notes, *problems],
            "next": commands,
        }
    )


def rendered(result: RenderedKernel) -> None:
    """What `render` wrote: the size of each file, imports, files left out, notes."""
    from kernelkit.notebook.code_dataset import CODE_FOLDER
    from kernelkit.notebook.layout import SIZE_LIMIT_BYTES

    kernel = result.kernel
    size = kernel.size
    if not mode.quiet:
        budget(kernel.budget, size)
        image_imports(result.imports)
        requirements(kernel.installs)
        left_out(kernel.bundle.left_out)
        advice(result.notes)
    if size > SIZE_LIMIT_BYTES:
        say("too large for Kaggle; for advice run: kernelkit preflight", to=stderr)
    print_line(f"{result.folder}  digest {kernel.digest[:12]}")
    if dataset := kernel.manifest.code_dataset:
        folder = result.folder / CODE_FOLDER
        command = as_called(f"kernelkit dataset push {folder} --slug {dataset}")
        detail(f"`kernelkit push` publishes the package first. By hand: {command}")
    if kernel.own_datasets and not kernel.metadata.owner:
        detail(f'The official client must know the owner, too: id = "OWNER/{kernel.slug}"')
    details = {
        "folder": str(result.folder),
        "size": size,
        "limit": SIZE_LIMIT_BYTES,
        "budget": [vars(entry) for entry in kernel.budget],
        "imports": [vars(one) for one in result.imports],
        "downloads": kernel.downloads,
        "requirements": [vars(one) for one in kernel.installs.requirements],
        "left_out": {**kernel.bundle.left_out},
        "notes": list(result.notes),
    }
    document({**details, **kernel.manifest.document})


def requirements(plan: InstallPlan, *, in_full: bool = False) -> None:
    """Each requirement, whether Kaggle's image has it, and where the run gets it from.

    What wheels need themselves is only counted, unless it is missing, replaces something, or
    `in_full` is set.
    """
    rows: list[Sequence[str | Text]] = []
    seen, counted_wheels = set[str](), set[str]()
    for one in plan.requirements:
        fine = one.is_installed and one.wheel != "" and not one.replaces
        if one.required_by and fine and not (in_full or mode.verbose):
            counted_wheels.add(one.wheel)
            continue
        if one.required_by and one.wheel in seen:
            continue
        seen.add(one.wheel)
        rows.append(_requirement_row(one))
    if rows:
        print_table(("requirement", "in the image", "the run uses"), rows)
    if more := counted_wheels - seen:
        detail(f"and {counted(len(more), 'wheel')} that these need: --verbose shows them")


def _requirement_row(one: PlannedRequirement) -> Sequence[str | Text]:
    there = one.image_version or ("unknown version" if one.in_image else "no")
    words = f"wheel {one.wheel.split('-')[1]}" if one.wheel else str(one.origin)
    if one.replaces:
        words += f", replaces {one.image_version}"
    elif one.wheel and one.reason:
        words += ", if needed"  # pip decides in the run, where the version is known
    elif one.is_missing or one.is_undecided:
        words += f": {one.reason}"
    style = "yellow" if one.replaces or one.is_missing else "" if one.is_installed else "dim"
    needed = Text(f" for {one.required_by}" if one.required_by else "", style="dim")
    return Text.assemble(one.requirement, needed), there, Text(words, style=style)


def no_problems(notes: Sequence[str], plan: InstallPlan) -> None:
    """The result of a preflight without problems; `plan` is what the run installs."""
    if not mode.quiet:
        requirements(plan)
    advice(notes)
    say("no problems")
    document(
        {
            "problems": [],
            "notes": list(notes),
            "requirements": [vars(one) for one in plan.requirements],
        }
    )


def proved(proof: Proof) -> None:
    """The result of a proof: every test has the same result twice."""
    tests = counted(len(proof.outcomes), "test")
    message = f"{tests}, the same results from the package and from the notebook ({proof.words})"
    say(Text.assemble(("proved", "bold green"), f": {message}"))
    document({**vars(proof), "numbers": proof.numbers})


def budget(entries: Sequence[SizeEntry], size: int) -> None:
    """How much of the size limit each file uses, the largest first."""
    from kernelkit.notebook.layout import SIZE_LIMIT_BYTES

    own = {"archive": "the compressed files", "notebook": "all other cells"}

    def share(sent: int) -> str:
        return f"{sent / SIZE_LIMIT_BYTES:.1%}"

    rows: list[Sequence[str | Text]] = [
        (
            Text(entry.path or own[entry.form], style="" if entry.path else "dim"),
            f"{entry.size:,}" if entry.size else "",
            f"{entry.sent:,}",
            share(entry.sent),
            entry.form if entry.path else "",
        )
        for entry in entries[:BUDGET_ROWS]
    ]
    if rest := entries[BUDGET_ROWS:]:
        sent = sum(entry.sent for entry in rest)
        total = sum(entry.size for entry in rest)
        rows.append((f"{len(rest)} smaller ones", f"{total:,}", f"{sent:,}", share(sent), ""))
    total = sum(entry.size for entry in entries if entry.path)
    rows.append((f"total, of {SIZE_LIMIT_BYTES:,}", f"{total:,}", f"{size:,}", share(size), ""))
    print_table(
        ("file", "bytes", "as sent", "share", "carried as"),
        rows,
        right=("bytes", "as sent", "share"),
        last="bold" if size <= SIZE_LIMIT_BYTES else "bold red",
    )


def image_imports(found: Sequence[Availability]) -> None:
    """The imports from elsewhere, and whether Kaggle's image has them."""
    from kernelkit.bundle.image import Presence

    rows: list[Sequence[str | Text]] = []
    for one in found:
        more = f" and {len(one.places) - 1} more" if len(one.places) > 1 else ""
        good = one.presence in (Presence.PRESENT, Presence.BY_PIP)
        there = Text(one.image_version or str(one.presence), style="" if good else "yellow")
        place = Text(f"{one.places[0]}{more}", style="dim")
        rows.append((one.module, there, one.local_version or "", place))
    if rows:
        print_table(("import", "in the image", "here", "used at"), rows)


def left_out(found: Mapping[str, str]) -> None:
    """The files that the notebook does not carry, by reason; caches are not worth a line."""
    reasons: dict[str, list[str]] = {}
    for path, reason in found.items():
        if reason != "a cache":
            reasons.setdefault(reason, []).append(path)
    for reason, paths in reasons.items():
        count = len(paths) if mode.verbose else LEFT_OUT_NAMED
        more = f" and {len(paths) - count} more" if len(paths) > count else ""
        say(one_line(f"left out ({reason}): {', '.join(paths[:count])}{more}"), style="dim")


def advice(notes: Sequence[str]) -> None:
    """Notes and warnings that do not prevent a push."""
    from kernelkit.notebook.preflight import WARNING

    for line in notes:
        label, style = (WARNING, "bold red") if line.startswith(WARNING) else NOTE
        text = one_line(line.removeprefix(WARNING))
        say(Text.assemble((label, style), text), indent=len(label))


def diffs(plan: SyncPlan) -> None:
    """The changes of a sync as unified diffs."""
    styles = {"+": "green", "-": "red", "@": "cyan", "\\": "dim"}
    for change in () if mode.quiet else plan.changes:
        for n, line in enumerate(change.diff.rstrip("\n").split("\n")):
            style = "bold" if n < 2 else styles.get(line[:1], "")
            print_text(Text(printable(shortened(line)), style=style))


def synced(plan: SyncPlan, dry_run: bool) -> None:
    """What a sync wrote, and what a person has to copy by hand."""
    added = sum(change.added for change in plan.changes)
    counts = f"{counted(len(plan.changes) - added, 'file')} changed, {added} added"
    end = "nothing was written" if dry_run else "review with `git diff`"
    say(Text.assemble((counts, "bold"), f"; {end}") if plan.changes else "no file has changed")
    for change in plan.changes:
        if change.conflict:
            warn(f"{change.name}: the notebook overwrites a change on disk")
        if change.syntax_error:
            warn(change.syntax_error)
    for path in plan.gone:
        say(printable(f"{path}: its cell is gone; the file stays"))
    for p in plan.parameters:
        if p.after is None:
            what = f"{p.name} is no longer set: remove it from"
        elif p.before is None:
            what = f"{p.name} = {p.after} is new: add it to"
        else:
            what = f"{p.name} = {p.before} → {p.after}: change it in"
        say(printable(f"parameters: {what} {p.section}"))
    if plan.left:
        say("cells that have no place in the package:")
    for cell in plan.left:
        line = Text(printable(f"  cell {cell.cell}: {cell.first_line}"))
        say(line.append(f"  ({cell.reason})", "dim"))
    for note in plan.notes:
        say(printable(f"note: {note}"), style="dim")
    document({**plan.document, "written": not dry_run})
