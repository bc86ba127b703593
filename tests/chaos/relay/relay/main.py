"""Work that is done over several sessions, and a measurement for trials of a sweep."""

import hashlib
import json
import shutil
from pathlib import Path


def run(output_dir, steps, per_session, resume_dir=None):
    """Do `per_session` of `steps`, continuing from the results of the session before."""
    output = Path(output_dir)
    if resume_dir is not None:
        shutil.copy(Path(resume_dir) / "steps.csv", output / "steps.csv")
    else:
        (output / "steps.csv").write_text("step,value\n")
    rows = (output / "steps.csv").read_text().splitlines()
    for step in range(len(rows), min(steps, len(rows) + per_session - 1) + 1):
        rows.append(f"{step},{hashlib.sha256(rows[-1].encode()).hexdigest()}")
        (output / "steps.csv").write_text("\n".join(rows) + "\n")
        event = {"event": "epoch", "epoch": step, "epochs": steps, "seconds": 0.1}
        print(json.dumps(event), flush=True)
    if len(rows) <= steps:
        print(json.dumps({"event": "incomplete"}), flush=True)


def measure(output_dir, rate, recipe, epochs, bad):
    """Report a score for each epoch; the recipe `bad` fails."""
    if recipe == bad:
        raise RuntimeError("asked to fail")
    for epoch in range(1, epochs + 1):
        event = {"event": "epoch", "epoch": epoch, "epochs": epochs, "seconds": 0.1}
        print(json.dumps({**event, "score": score(rate, recipe, epoch)}), flush=True)
    (Path(output_dir) / "result.csv").write_text(f"rate,recipe\n{rate},{recipe}\n")


def score(rate, recipe, epoch):
    """Higher for a higher rate, for the recipe `best`, and with each epoch."""
    return round(rate + 0.05 * (recipe == "best") + 0.01 * epoch, 6)
