"""What a person reads about a chain: its sessions, and how to go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from kernelkit.console.output import as_called, document, print_table, say
from kernelkit.console.run_views import conclude
from kernelkit.console.values import ago
from kernelkit.storage import one_line

if TYPE_CHECKING:
    from kernelkit.campaigns.chain import ChainRecord, ChainSession
    from kernelkit.runs.download import PulledRun

HEADINGS = ("session", "run", "continues", "pushed", "ended as", "last event")


def chained(record: ChainRecord, command: str) -> None:
    """The sessions of a chain, and the command that goes on with it."""
    document(record.document)
    _table(record)
    say(one_line(f"{record.name}: {record.state}, {record.word}"))
    if record.state != "complete":
        say(Text.assemble(("next:  ", "bold"), f"{as_called(command)} goes on with it"), indent=7)


def concluded_chain(pulled: PulledRun, record: ChainRecord) -> None:
    """The end of a chain: its sessions, and the verified results of the last one."""
    _table(record)
    conclude(pulled, chain=record)


def _table(record: ChainRecord) -> None:
    print_table(HEADINGS, [_cells(session) for session in record.sessions])


def _cells(session: ChainSession) -> tuple[str, ...]:
    return (
        str(session.number),
        session.name if session.version else session.slug,
        session.resumed_from or "",
        ago(session.asked) if session.asked else "",
        session.ending or "not over yet",
        session.point_text,
    )
