"""What the owner of a dataset says about it: the fields of its page, and of its files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from kernelkit.emulator.fields import RequestFields
from kernelkit.emulator.storage import read_json, write_json


@dataclass(frozen=True)
class ColumnNote:
    """What is said about a column of a table."""

    name: str
    description: str = ""
    type: str = ""


@dataclass(frozen=True)
class FileNote:
    """What is said about a file of a dataset."""

    name: str
    description: str = ""
    columns: tuple[ColumnNote, ...] = ()


@dataclass(frozen=True)
class Collaborator:
    """Who may read or change a dataset; `role` is a name of CollaboratorType [V]."""

    username: str
    role: str = ""


@dataclass(frozen=True)
class DatasetMetadata:
    """The metadata that GetDatasetMetadata shows and UpdateDatasetMetadata replaces [V]."""

    title: str
    license: str = ""
    private: bool = False
    description: str = ""
    subtitle: str = ""
    keywords: tuple[str, ...] = ()
    collaborators: tuple[Collaborator, ...] = ()
    files: tuple[FileNote, ...] = ()
    sources: str = ""
    frequency: str = ""

    @classmethod
    def of_request(cls, settings: RequestFields) -> DatasetMetadata:
        """The settings that a client sends."""
        licenses = [item.text("name") for item in settings.items("licenses")]
        return cls(
            title=settings.text("title"),
            license=", ".join(licenses),
            private=settings.flag("isPrivate", False),
            description=settings.text("description"),
            subtitle=settings.text("subtitle"),
            keywords=settings.names("keywords"),
            collaborators=tuple(
                Collaborator(item.text("username"), item.text("role"))
                for item in settings.items("collaborators")
            ),
            files=tuple(
                FileNote(
                    item.text("name"),
                    item.text("description"),
                    tuple(
                        ColumnNote(c.text("name"), c.text("description"), c.text("type"))
                        for c in item.items("columns")
                    ),
                )
                for item in settings.items("data")
            ),
            sources=settings.text("userSpecifiedSources"),
            frequency=settings.text("expectedUpdateFrequency"),
        )

    @classmethod
    def read(cls, path: Path) -> DatasetMetadata:
        """Read what `write` has written. Raises OSError, ValueError, KeyError or TypeError."""
        record = read_json(path)
        files = tuple(
            FileNote(
                item["name"],
                item["description"],
                tuple(ColumnNote(**column) for column in item["columns"]),
            )
            for item in record.pop("files")
        )
        collaborators = tuple(Collaborator(**item) for item in record.pop("collaborators"))
        keywords = tuple(record.pop("keywords"))
        return cls(**record, files=files, collaborators=collaborators, keywords=keywords)

    def write(self, path: Path) -> None:
        """Write it atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))
