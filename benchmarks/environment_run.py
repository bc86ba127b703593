"""Trains with src_salt in the environment that runs this file: see `benchmarks.environments`.

    python environment_run.py DATA OUT RECIPE…

It writes OUT/result.json and imports nothing of kernelkit, which that environment does not have.
A deprecation that Python attributes to a module of src_salt ends the training with an error. Those
of other modules are collected.
"""

import contextlib
import csv
import hashlib
import importlib.metadata
import json
import platform
import re
import sys
import time
import traceback
import warnings
from pathlib import Path

DEPRECATIONS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)

PACKAGES = ("torch", "numpy", "pandas", "albumentations", "albumentationsx", "opencv-python")

SMALL = {
    "experiments": "resnet34_BCEDice",
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 5e-4,
    "image_size": 64,
    "limit_train": 16,
    "pretrained": False,
    "num_workers": 1,
}
"""Four steps with each recipe. Muon takes most of the time, several CPU seconds."""


def main() -> None:
    """Train with each recipe, and write what came of it."""
    data, out, *recipes = sys.argv[1:]
    noted: dict[str, None] = {}
    for category in DEPRECATIONS:
        warnings.filterwarnings("default", category=category)
        warnings.filterwarnings("error", category=category, module=r"src_salt(\.|$)")
    warnings.showwarning = lambda message, category, filename, *_: noted.setdefault(
        f"{_module(filename)}: {category.__name__}: {_shorten(message)}"
    )
    trainings = [train(Path(data), Path(out) / recipe, recipe) for recipe in recipes]
    versions = {name: version for name in PACKAGES if (version := _version(name))}
    result = {
        "versions": {"python": platform.python_version(), **versions},
        "trainings": trainings,
        "warnings": sorted(noted),
    }
    (Path(out) / "result.json").write_text(json.dumps(result), encoding="utf-8")


def train(data: Path, out: Path, recipe: str) -> dict[str, object]:
    """Train and check the submission; the fields of `environments.Training`."""
    began = time.perf_counter()
    found: dict[str, object] = {}
    error = ""
    try:
        from src_salt.main import run
        from src_salt.submission import check_submission

        with contextlib.redirect_stdout(sys.stderr):
            summary = run(data, out, recipe=recipe, **SMALL)
        check_submission(out / summary["submission"], data / "sample_submission.csv")
        found = {
            "val_iou": summary["best_val_iou"],
            "masks": _count_masks(out / summary["submission"]),
            "submission": hashlib.sha256((out / summary["submission"]).read_bytes()).hexdigest(),
            "weights": _fingerprint(out / summary["experiments"][0]["weights"]),
        }
    except Exception as failure:
        traceback.print_exc()
        error = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
    return {
        "recipe": recipe,
        "seconds": time.perf_counter() - began,
        "error": error,
        **found,
    }


def _fingerprint(path: Path) -> str:
    """SHA-256 of names and values of a state_dict: files of equal values may differ."""
    import torch

    from src_salt.weights import weights_fingerprint

    return weights_fingerprint(torch.load(path, map_location="cpu", weights_only=True))


def _count_masks(path: Path) -> int:
    """Count the masks of a submission that are not empty."""
    with path.open(encoding="utf-8", newline="") as file:
        return sum(bool(row["rle_mask"]) for row in csv.DictReader(file))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _module(filename: str) -> str:
    """The path of a module without the folder of the environment."""
    return re.sub(r".*/(?:site-packages|lib/python[\d.]+)/", "", filename)


def _shorten(message: Warning) -> str:
    """The first line, without the number of the process."""
    return re.sub(r" \(pid=\d+\)", "", str(message).splitlines()[0])


if __name__ == "__main__":
    main()
