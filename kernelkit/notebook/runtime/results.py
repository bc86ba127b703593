"""Shows the results of a run in the notebook."""

from __future__ import annotations

from pathlib import Path

MAX_RESULTS = 20  # tables and images shown in the notebook
MAX_IMAGE_BYTES = 1_000_000  # a larger one would bloat the executed notebook


def show_results(working_dir: Path) -> None:
    """Show each table (Markdown) and image (PNG) in the working folder."""
    from IPython.display import Image, Markdown, display

    found = [path for path in sorted(working_dir.rglob("*")) if path.is_file()]
    results = [path for path in found if path.suffix in (".md", ".png")]
    for path in results[:MAX_RESULTS]:
        if path.suffix == ".md":
            display(Markdown(path.read_text(encoding="utf-8", errors="replace")))
        elif path.stat().st_size <= MAX_IMAGE_BYTES:
            display(Image(path.read_bytes()))
    if len(results) > MAX_RESULTS:
        print(f"… and {len(results) - MAX_RESULTS} more tables and images")
