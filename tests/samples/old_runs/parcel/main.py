"""Counts letters, reports each epoch, leaves a table, an archive and a report."""

import json
import time
import zipfile
from pathlib import Path

from parcel import letters


def run(data_dir, output_dir, epochs, word, fail=False, seconds=0.0):
    """Do it; `fail` makes the last step break, `seconds` makes each epoch slow."""
    found = letters.read_letters(Path(data_dir))
    for epoch in range(1, epochs + 1):
        time.sleep(seconds)
        event = {"event": "epoch", "experiment": "counting", "epoch": epoch, "epochs": epochs}
        print(json.dumps({**event, "val_iou": epoch / epochs, "seconds": seconds}), flush=True)
    if fail:
        raise RuntimeError("asked to fail")
    output = Path(output_dir)
    rows = [f"{letter},1 {len(letter)}" for letter in found]
    (output / "table.csv").write_text("\n".join(["id,rle_mask", *rows]) + "\n")
    with zipfile.ZipFile(output / "letters.zip", "w") as archive:
        archive.writestr("word.txt", word)
    (output / "results").mkdir(exist_ok=True)
    (output / "results" / "counts.md").write_text(f"| letters |\n|---|\n| {len(found)} |\n")
    return {"letters": len(found)}
