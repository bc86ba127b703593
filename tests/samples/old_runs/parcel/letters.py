"""Reads the letters that a competition has mounted."""

from pathlib import Path


def read_letters(folder: Path) -> list[str]:
    """The letters, sorted."""
    return sorted(path.read_text().strip() for path in folder.glob("*.txt"))
