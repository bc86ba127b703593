"""What a diagnosis reads in bundle.json and run-manifest.json, as typed values.

A failed run may have left anything. A value of the wrong type therefore counts as absent, and never
stops a diagnosis; `runs.verify` is the strict reader of the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

Document = Mapping[str, JsonValue]
"""A JSON object of any content."""


@dataclass(frozen=True)
class RunReport:
    """run-manifest.json: what the run reported about itself."""

    digest: str = ""
    status: str = ""
    """"complete" or "failed"."""

    error: str = ""
    traceback: str = ""
    parameters: Document = field(default_factory=dict)

    @classmethod
    def of(cls, document: Document) -> RunReport:
        """Read what the document has of it."""
        names = ("digest", "status", "error", "traceback")
        texts = {name: str(document.get(name) or "") for name in names}
        return cls(**texts, parameters=_mapping(document.get("parameters")))


@dataclass(frozen=True)
class SentBundle:
    """bundle.json: what was sent."""

    digest: str = ""
    roots: Mapping[str, str] = field(default_factory=dict)
    """First part of a file's path in the run → the project folder that contains it."""

    files: Mapping[str, str] = field(default_factory=dict)
    """Path → SHA-256 of each file that was sent."""

    parameters: Document = field(default_factory=dict)
    sources: frozenset[str] = frozenset()
    """Slugs of everything that the kernel declares as a source."""

    enable_internet: bool = False
    session_timeout_seconds: int = 0

    @classmethod
    def of(cls, document: Document) -> SentBundle:
        """Read what the document has of it."""
        kernel, listed = _mapping(document.get("kernel")), document.get("files")
        files = [_mapping(file) for file in listed] if isinstance(listed, list) else []
        sources = [kernel[name] for name in kernel if name.endswith("_sources")]
        names = {str(name) for names in sources if isinstance(names, list) for name in names}
        timeout = kernel.get("session_timeout_seconds")
        return cls(
            digest=str(document.get("digest") or ""),
            roots={name: str(folder) for name, folder in _mapping(document.get("roots")).items()},
            files={str(file["path"]): str(file.get("sha256")) for file in files if "path" in file},
            parameters=_mapping(document.get("parameters")),
            sources=frozenset(name.rpartition("/")[2] for name in names),
            enable_internet=kernel.get("enable_internet") is True,
            session_timeout_seconds=timeout if isinstance(timeout, int) else 0,
        )


def _mapping(value: JsonValue) -> Document:
    return value if isinstance(value, Mapping) else {}
