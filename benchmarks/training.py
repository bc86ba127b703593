"""Compare the speed of the recipes on the available device: `make bench-training`.

It measures training, validation and prediction completely: batches and augmentation, optimizer,
metrics, and for prediction the csv. Each measurement runs in a new process (`benchmarks.workload`).
The recipes take turns, so a change of the machine's speed affects all of them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, Spread, last_line
from benchmarks.report import circumstances, markdown_table
from src_salt.config import BACKBONES, LOSSES, MIN_IMAGE_SIZE, OLD_LOSSES, OLD_RECIPES, RECIPES

REFERENCE = "baseline"
LOADER_SHARE = 0.1  # maximum share of a step on a CPU: the target of the issue on speed


@dataclass(frozen=True)
class Row:
    """The measurements of one recipe with one backbone and loss."""

    backbone: str
    loss: str
    recipe: str
    turns: tuple[dict[str, Any], ...]
    """The fields of `workload.Measured` for each turn; empty if it failed."""

    error: str = ""

    @property
    def labels(self) -> list[str]:
        """The first columns of a table."""
        return [self.backbone, self.loss, self.recipe]

    def spread(self, name: str) -> Spread:
        """Return the values of one field in all turns."""
        return Spread(tuple(turn[name] for turn in self.turns))


def main() -> None:
    """Measure, and print the tables."""
    options = _options()
    rows = _measure(options)
    seen = [turn for row in rows for turn in row.turns]
    if not seen:
        sys.exit(f"all measurements failed: {rows[0].error}")
    command = shlex.join(["python", "-m", "benchmarks.training", *sys.argv[1:]])
    head = circumstances([f"torch {seen[0]['torch']}"], command, _facts(rows, options))
    text = "\n".join(f"{part}\n" for part in [head, *sections(rows)])
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument(
        "--images",
        type=_number(4),
        help="images for training and prediction (default: 64, on a GPU 3,200)",
    )
    parser.add_argument("--repetitions", type=_number(1), default=3, help="measurements per case")
    parser.add_argument("--backbones", type=_names(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--losses", type=_names(LOSSES, OLD_LOSSES), default=["BCEDice", "Lovasz"])
    parser.add_argument("--recipes", type=_names(RECIPES, OLD_RECIPES), default=list(RECIPES))
    parser.add_argument("--batch-size", type=_number(2), default=32)
    parser.add_argument(
        "--size", type=_number(MIN_IMAGE_SIZE), default=128, help="input size in pixels"
    )
    parser.add_argument("--workers", type=_number(0), default=2, help="loader processes (baseline)")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="also write the tables to FILE"
    )
    return parser.parse_args()


def _number(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return int(text)

    return number


def _names(
    known: Iterable[str], old: Mapping[str, str] | None = None
) -> Callable[[str], list[str]]:
    """Return a parser of known names separated by commas; old names become current ones."""

    def names(text: str) -> list[str]:
        chosen = [(old or {}).get(name, name) for name in text.split(",")]
        unknown = sorted(set(chosen) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(
                f"unknown: {', '.join(unknown)}. Allowed: {', '.join(known)}"
            )
        return chosen

    return names


def _measure(options: argparse.Namespace) -> list[Row]:
    """Measure every recipe with every backbone and loss."""
    rows = []
    for backbone in options.backbones:
        for loss in options.losses:
            turns: dict[str, list[dict[str, Any]]] = {recipe: [] for recipe in options.recipes}
            errors: dict[str, str] = {}
            for turn in range(1, options.repetitions + 1):
                for recipe in options.recipes:
                    if recipe in errors:
                        continue
                    _report(f"{backbone} {loss}: turn {turn} of {options.repetitions}, {recipe}")
                    measured, error = _run_case(recipe, backbone, loss, options)
                    if measured is None:
                        errors[recipe], turns[recipe] = error, []
                    else:
                        turns[recipe].append(measured)
            rows += [
                Row(backbone, loss, recipe, tuple(turns[recipe]), errors.get(recipe, ""))
                for recipe in options.recipes
            ]
    return rows


def _run_case(
    recipe: str, backbone: str, loss: str, options: argparse.Namespace
) -> tuple[dict[str, Any] | None, str]:
    """Measure in a new process. Return the result, or None and the error."""
    case = {
        "recipe": recipe,
        "backbone": backbone,
        "loss": loss,
        "images": options.images,
        "batch_size": options.batch_size,
        "size": options.size,
        "workers": options.workers,
    }
    command = [sys.executable, "-m", "benchmarks.workload", json.dumps(case)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        return None, last_line(done.stderr) or f"exit status {done.returncode}"
    measured: dict[str, Any] = json.loads(last_line(done.stdout))
    return measured, ""


# --- the tables ---------------------------------------------------------------------------------


def sections(rows: list[Row]) -> list[str]:
    """Return the sections of the report, without the facts about the machine."""
    peaks = {
        dtype: max(turn["peak_flops"] for row in rows for turn in _turns_with(row, dtype))
        for dtype in sorted({turn["dtype"] for row in rows for turn in row.turns})
    }
    errors = [f"- {' '.join(row.labels)}: {row.error}" for row in rows if row.error]
    return [
        f"## Training\n\n{_training(rows, peaks)}",
        f"## Validation\n\n{_rates(rows, 'validation')}",
        f"## Prediction\n\n{_prediction(rows)}",
        *(["\n".join(["Not measured:", "", *errors])] if errors else []),
    ]


def _training(rows: list[Row], peaks: dict[str, float]) -> str:
    measured = ", ".join(f"{name} {peak / 1e12:.3g}" for name, peak in peaks.items())
    description = (
        "Peak: the fastest square matrix product in this run, not the value of a data sheet, in "
        f"Tflop/s: {measured}. Share of peak: the operations of a step that PyTorch counts, "
        "forward and backward, divided by the time of the whole step. "
        "Loader: the time to make the batches, as a share of the time to make and train on them. "
        "First step: from creating the trainer to the end of its first step, without loading "
        "weights. Save: copying and writing an epoch's weights and checkpoint, while nothing else "
        "runs. The next epoch waits for the copy, and for the write only if it is faster. "
        "Peak memory: of the device; on a CPU, of the process without the baseline's workers."
    )
    lines = []
    for row in rows:
        if not row.turns:
            continue
        dtype, flops = row.turns[0]["dtype"], row.turns[0]["flops"]
        share = row.spread("training").median * flops / peaks[dtype]
        lines.append(
            [
                *row.labels,
                dtype,
                *_rate(rows, row, "training"),
                f"{flops / 1e9:.3g}",
                f"{share:.0%}",
                f"{_loader_share(row):.1%}",
                f"{row.spread('first_step').median:.2f}",
                f"{row.spread('saving').median:.2f}",
                f"{row.spread('copying').median:.2f}",
                f"{row.spread('peak_bytes').median / 1e6:,.0f}",
            ]
        )
    head = ["Gflop per image", "share of peak", "loader", "first step s"]
    head += ["save s", "copy s", "peak MB"]
    table = markdown_table([*_HEAD[:3], "dtype", *_HEAD[3:], *head], lines)
    return f"{description}\n\n{table}{_loader_summary(rows)}"


def _loader_share(row: Row) -> float:
    shares = [turn["training"] / turn["loading"] for turn in row.turns]
    return Spread(tuple(shares)).median


def _loader_summary(rows: list[Row]) -> str:
    """Describe the loader's share of our recipes on a CPU. A GPU makes the batches itself."""
    ours = [row for row in rows if row.recipe != REFERENCE and row.turns]
    if not ours or ours[0].turns[0]["device"] != "CPU":
        return ""
    most = max(map(_loader_share, ours))
    verdict = "within" if most <= LOADER_SHARE else "**over**"
    return (
        f"\n\nFor fast and best, loading takes at most {most:.1%} of a step, {verdict} the "
        f"{LOADER_SHARE:.0%} target for a CPU."
    )


def _prediction(rows: list[Row]) -> str:
    description = (
        "From bytes in memory to the validated csv. Writing alone: making masks and run-length "
        "texts, writing the csv and validating it. The masks of an untrained network are noise, "
        "so blurred true masks replace them. Slower: which of network and writing takes longer."
    )
    lines = []
    for row in rows:
        if not row.turns:
            continue
        writing, whole = row.spread("writing").median, row.spread("prediction").median
        slower = "writing" if 2 / writing > 1 / whole else "network"
        lines.append(
            [*row.labels, *_rate(rows, row, "prediction"), f"{writing:,.0f}", slower],
        )
    return f"{description}\n\n{markdown_table([*_HEAD, 'writing alone', 'slower'], lines)}"


_HEAD = ["backbone", "loss", "recipe", "images per second", "range", f"{REFERENCE} = 1"]


def _rates(rows: list[Row], name: str) -> str:
    return markdown_table(
        _HEAD, [[*row.labels, *_rate(rows, row, name)] for row in rows if row.turns]
    )


def _rate(rows: list[Row], row: Row, name: str) -> list[str]:
    """Return a rate's median and range, and its ratio to the reference in the same turns."""
    rate = row.spread(name)
    return [
        f"{rate.median:,.1f}",
        f"{rate.least:,.1f} to {rate.most:,.1f}",
        _compared(rate, next((other for other in rows if _is_reference(other, row)), None), name),
    ]


def _is_reference(other: Row, row: Row) -> bool:
    return (other.backbone, other.loss, other.recipe) == (row.backbone, row.loss, REFERENCE)


def _compared(rate: Spread, reference: Row | None, name: str) -> str:
    if reference is None or not reference.turns:
        return ""
    pairs = zip(rate.values, reference.spread(name).values, strict=True)
    ratios = Spread(tuple(ours / theirs for ours, theirs in pairs))
    return f"{ratios.median:.2f} ({ratios.least:.2f} to {ratios.most:.2f})"


def _turns_with(row: Row, dtype: str) -> list[dict[str, Any]]:
    return [turn for turn in row.turns if turn["dtype"] == dtype]


def _facts(rows: list[Row], options: argparse.Namespace) -> dict[str, str]:
    """Return the facts about the machine and the measurement for the report."""
    first = next(turn for row in rows for turn in row.turns)
    dtypes = {row.recipe: row.turns[0]["dtype"] for row in rows if row.turns}
    return {
        "device": first["device"],
        "CPU flags": first["flags"] or "none of the relevant ones",
        "threads": str(first["threads"]),
        "dtypes": ", ".join(f"{recipe} {name}" for recipe, name in dtypes.items()),
        "each measurement": (
            f"{first['images']:,} synthetic images of {options.size}x{options.size}, "
            f"{max(2, first['images'] // 2):,} for validation, batches of {options.batch_size}"
        ),
        "repetitions": f"{options.repetitions}, each in a new process; the recipes take turns",
    }


def _report(message: str) -> None:
    """Print progress on stderr, since the measurements take minutes."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
