"""Measure the seed's path beside ours, on whatever device is there: `make bench-training`.

Training, validation and prediction with everything that belongs to them: batches and augmentation,
optimiser, metrics, and for prediction the csv. Each measurement is a fresh process
(`benchmarks.workload`); the recipes take turns, so that a change of the machine meets them all.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, Spread, last_line
from benchmarks.report import circumstances, markdown_table
from src_salt.config import BACKBONES, LOSSES, RECIPES, SMALLEST_IMAGE

YARDSTICK = "seed"
LOADER_SHARE = 0.1  # of a step, at most, on a CPU: the aim of the issue on speed


@dataclass(frozen=True)
class Row:
    """One recipe on one experiment."""

    backbone: str
    loss: str
    recipe: str
    turns: tuple[dict[str, Any], ...]
    """The fields of `workload.Measured`, for each turn; empty where it failed."""

    fault: str = ""

    @property
    def labels(self) -> list[str]:
        """What was measured, as the first columns of a table."""
        return [self.backbone, self.loss, self.recipe]

    def spread(self, name: str) -> Spread:
        """One field over the turns."""
        return Spread(tuple(turn[name] for turn in self.turns))


def main() -> None:
    """Measure, and print the tables."""
    options = _options()
    rows = _measure(options)
    seen = [turn for row in rows for turn in row.turns]
    if not seen:
        sys.exit(f"nothing could be measured: {rows[0].fault}")
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
        help="to train on and to predict, half as many to validate (default: 64, on a GPU 3,200)",
    )
    parser.add_argument("--repetitions", type=_number(1), default=3, help="of each measurement")
    parser.add_argument("--backbones", type=_names(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--losses", type=_names(LOSSES), default=["bcedice", "lovasz"])
    parser.add_argument("--recipes", type=_names(RECIPES), default=list(RECIPES))
    parser.add_argument("--batch-size", type=_number(2), default=32)
    parser.add_argument("--size", type=_number(SMALLEST_IMAGE), default=128, help="in pixels")
    parser.add_argument("--workers", type=_number(0), default=2, help="of the seed's loader")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    return parser.parse_args()


def _number(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return int(text)

    return number


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Some of the known names, with commas between."""

    def names(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = sorted(set(chosen) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not of {', '.join(known)}")
        return chosen

    return names


def _measure(options: argparse.Namespace) -> list[Row]:
    """Every recipe on every experiment."""
    rows = []
    for backbone in options.backbones:
        for loss in options.losses:
            turns: dict[str, list[dict[str, Any]]] = {recipe: [] for recipe in options.recipes}
            faults: dict[str, str] = {}
            for turn in range(1, options.repetitions + 1):
                for recipe in options.recipes:
                    if recipe in faults:
                        continue
                    _say(f"{backbone} {loss}: turn {turn} of {options.repetitions}, {recipe}")
                    measured, fault = _measured(recipe, backbone, loss, options)
                    if measured is None:
                        faults[recipe], turns[recipe] = fault, []
                    else:
                        turns[recipe].append(measured)
            rows += [
                Row(backbone, loss, recipe, tuple(turns[recipe]), faults.get(recipe, ""))
                for recipe in options.recipes
            ]
    return rows


def _measured(
    recipe: str, backbone: str, loss: str, options: argparse.Namespace
) -> tuple[dict[str, Any] | None, str]:
    """What one fresh process has measured, or why it has not."""
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
    """The report, without its circumstances."""
    peaks = {
        number_format: max(turn["peak_flops"] for row in rows for turn in _of(row, number_format))
        for number_format in sorted({turn["number_format"] for row in rows for turn in row.turns})
    }
    faults = [f"- {' '.join(row.labels)}: {row.fault}" for row in rows if row.fault]
    return [
        f"## Training\n\n{_training(rows, peaks)}",
        f"## Validation\n\n{_rates(rows, 'validation')}",
        f"## Prediction\n\n{_prediction(rows)}",
        *(["\n".join(["Not measured:", "", *faults])] if faults else []),
    ]


def _training(rows: list[Row], peaks: dict[str, float]) -> str:
    measured = ", ".join(f"{name} {peak / 1e12:.3g}" for name, peak in peaks.items())
    words = (
        "Peaks, measured in this run and not taken from a data sheet: the fastest square matrix "
        f"product, in Tflop/s: {measured}. Share of the peak: what PyTorch counts as operations "
        "of a step, forward and back, for the time of a step with all that belongs to it. "
        "Loader: the time to make the batches alone, of the time to make and train on them. "
        "First step: from building the training to the end of its first step, no weights loaded. "
        "Kept: an epoch's weights and checkpoint, copied and written, with nothing beside it; the "
        "next epoch waits for the copying, and for the rest only if it is shorter. "
        "Peak memory: of the device; on a CPU of the process, without the seed's loader workers."
    )
    lines = []
    for row in rows:
        if not row.turns:
            continue
        number_format, flops = row.turns[0]["number_format"], row.turns[0]["flops"]
        share = row.spread("training").median * flops / peaks[number_format]
        lines.append(
            [
                *row.labels,
                number_format,
                *_rate(rows, row, "training"),
                f"{flops / 1e9:.3g}",
                f"{share:.0%}",
                f"{_loader_share(row):.1%}",
                f"{row.spread('first_step').median:.2f}",
                f"{row.spread('keeping').median:.2f}",
                f"{row.spread('copying').median:.2f}",
                f"{row.spread('peak_bytes').median / 1e6:,.0f}",
            ]
        )
    head = ["Gflop an image", "share of peak", "loader", "first step s"]
    head += ["kept s", "of it waited s", "peak MB"]
    table = markdown_table([*_HEAD[:3], "numbers", *_HEAD[3:], *head], lines)
    return f"{words}\n\n{table}{_loader_verdict(rows)}"


def _loader_share(row: Row) -> float:
    shares = [turn["training"] / turn["loading"] for turn in row.turns]
    return Spread(tuple(shares)).median


def _loader_verdict(rows: list[Row]) -> str:
    """Of our recipes, on a CPU: on a GPU the batches are part of its work."""
    ours = [row for row in rows if row.recipe != YARDSTICK and row.turns]
    if not ours or ours[0].turns[0]["device"] != "CPU":
        return ""
    most = max(map(_loader_share, ours))
    verdict = "within" if most <= LOADER_SHARE else "**over**"
    return (
        f"\n\nOurs loads for at most {most:.1%} of a step, {verdict} the {LOADER_SHARE:.0%} that "
        "a CPU may take."
    )


def _prediction(rows: list[Row]) -> str:
    words = (
        "From bytes in memory to the checked csv. Writing: of that the masks, the run-length "
        "texts, the csv and its check, alone. An untrained network's masks are noise, so blurred "
        "true masks are cut and written in their place. Slower: which of the two takes longer."
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
    return f"{words}\n\n{markdown_table([*_HEAD, 'writing alone', 'slower'], lines)}"


_HEAD = ["backbone", "loss", "recipe", "images a second", "least to most", f"{YARDSTICK}'s = 1"]


def _rates(rows: list[Row], name: str) -> str:
    return markdown_table(
        _HEAD, [[*row.labels, *_rate(rows, row, name)] for row in rows if row.turns]
    )


def _rate(rows: list[Row], row: Row, name: str) -> list[str]:
    """A rate: its median, its range, and how it compares with the yardstick's in the same turns."""
    rate = row.spread(name)
    return [
        f"{rate.median:,.1f}",
        f"{rate.least:,.1f} to {rate.most:,.1f}",
        _compared(rate, next((other for other in rows if _is_yardstick(other, row)), None), name),
    ]


def _is_yardstick(other: Row, row: Row) -> bool:
    return (other.backbone, other.loss, other.recipe) == (row.backbone, row.loss, YARDSTICK)


def _compared(rate: Spread, yardstick: Row | None, name: str) -> str:
    if yardstick is None or not yardstick.turns:
        return ""
    pairs = zip(rate.values, yardstick.spread(name).values, strict=True)
    ratios = Spread(tuple(ours / theirs for ours, theirs in pairs))
    return f"{ratios.median:.2f} ({ratios.least:.2f} to {ratios.most:.2f})"


def _of(row: Row, number_format: str) -> list[dict[str, Any]]:
    return [turn for turn in row.turns if turn["number_format"] == number_format]


def _facts(rows: list[Row], options: argparse.Namespace) -> dict[str, str]:
    """What the figures depend on, besides what every benchmark says."""
    first = next(turn for row in rows for turn in row.turns)
    formats = {row.recipe: row.turns[0]["number_format"] for row in rows if row.turns}
    return {
        "device": first["device"],
        "processor's abilities": first["flags"] or "none of those that matter",
        "threads": str(first["threads"]),
        "number formats": ", ".join(f"{recipe} {name}" for recipe, name in formats.items()),
        "each measurement": (
            f"{first['images']:,} made-up images of {options.size}x{options.size}, "
            f"{max(2, first['images'] // 2):,} to validate, batches of {options.batch_size}"
        ),
        "repetitions": f"{options.repetitions}, a fresh process each, the recipes in turns",
    }


def _say(words: str) -> None:
    """How far it is, beside the result: some minutes pass."""
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
