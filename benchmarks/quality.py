"""Measure what each habit is worth on the real data: `python -m benchmarks.quality`.

Every row changes one habit of the recipe `best` and is trained with the same seeds, images and
epochs as the recipe itself, so that differences are paired. Each training runs in a process of its
own, `--jobs` at a time, which share the cores; what is measured is kept in a file and not measured
again.
Habits that were not worth their place live here alone and not in src_salt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from src_salt import config, losses
from src_salt.config import Settings
from src_salt.data import LabelledImages, load_labelled, split
from src_salt.device import pick_compute
from src_salt.losses import bce_dice, lovasz_hinge
from src_salt.metrics import Cut, Masks, Probabilities, cross_cut, iou, scores
from src_salt.model import DECODER_WIDTHS, WIDTHS
from src_salt.train import Training
from src_salt.transforms import restored

Loss = losses.Loss
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe."""

    recipe: str = "best"
    experiment: str = "bcedice_symmetric"
    settings: Mapping[str, Any] = field(default_factory=dict)
    adapt: Callable[[Training], None] | None = None
    """Changes the network, the loss or the optimiser before the first step."""

    later_loss: Loss | None = None
    """Takes the loss's place in the second half of the epochs."""

    cycles: int = 1
    """Of the learning rate; what the network predicts at the end of each is averaged."""

    folds: int = 1
    """So many networks, each trained without one of the folds; their predictions are averaged."""


# --- losses -------------------------------------------------------------------------------------


def elu_hinge(logits: Tensor, targets: Tensor) -> Tensor:
    """The Lovász hinge with elu + 1 in place of relu, the competition's first place's."""
    errors, truths = losses.worst_first(logits, targets)
    return ((functional.elu(errors) + 1) * losses.jaccard_slopes(truths)).sum(dim=1).mean()


def with_bce_dice(hinge: Loss) -> Loss:
    """The sum, as `losses.bce_dice_symmetric` has it."""
    return lambda logits, targets: bce_dice(logits, targets) + hinge(logits, targets)


def _loss(loss: Loss) -> Callable[[Training], None]:
    def adapt(training: Training) -> None:
        training.loss = loss

    return adapt


# --- networks -----------------------------------------------------------------------------------


class SqueezeExcitation(nn.Module):
    """Channels weighed by what the whole picture holds, places by what they hold: scSE.

    Roy, Navab and Wachinger 2018, "Concurrent Spatial and Channel Squeeze & Excitation in Fully
    Convolutional Networks", with the sum of the two, as the competition's leaders used it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, width // 8, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width // 8, width, kernel_size=1),
            nn.Sigmoid(),
        )
        self.places = nn.Sequential(nn.Conv2d(width, 1, kernel_size=1), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """(B, width, H, W) to the same shape."""
        return features * (self.channels(features) + self.places(features))


class HypercolumnHead(nn.Module):
    """Logits from what every decoder block has to say of a place (Hariharan et al. 2015).

    The blocks are narrowed before they are enlarged, and the last doubling of the size is learned.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        for block in blocks:
            block.register_forward_hook(lambda _module, _inputs, out: self.seen.append(out))
        self.narrowed = nn.ModuleList(nn.Conv2d(width, 32, 1) for width in DECODER_WIDTHS)
        self.joined = nn.Sequential(
            nn.Conv2d(32 * len(DECODER_WIDTHS), 64, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 4, kernel_size=1),
            nn.PixelShuffle(2),
        )

    def forward(self, last: Tensor) -> Tensor:
        """The last block's features (B, 64, 64, 64) to logits (B, 1, 128, 128)."""
        columns = [
            functional.interpolate(narrow(features), last.shape[-2:], mode="bilinear")
            for narrow, features in zip(self.narrowed, self.seen, strict=True)
        ]
        self.seen.clear()
        return self.joined(torch.cat(columns, dim=1))


def _with_scse(training: Training) -> None:
    for block, width in zip(training.model.blocks, DECODER_WIDTHS, strict=True):
        block.convolutions.append(training.compute.place(SqueezeExcitation(width)))
    _renew_optimizer(training)


def _with_hypercolumns(training: Training) -> None:
    training.model.head = training.compute.place(HypercolumnHead(training.model.blocks))
    _renew_optimizer(training)


def _with_both(training: Training) -> None:
    _with_scse(training)
    _with_hypercolumns(training)


def _without_early_pool(training: Training) -> None:
    training.model.pool = nn.Identity()


def _emptiness_head(training: Training) -> None:
    """Say from the deepest features whether there is salt, as a second task."""
    deepest = training.model.stages[-1]
    head = training.compute.place(nn.Linear(_deepest_width(training), 1))
    training.model.emptiness = head
    said: list[Tensor] = []
    deepest.register_forward_hook(lambda _m, _i, out: said.__setitem__(slice(None), [out]))
    loss = training.loss

    def with_emptiness(logits: Tensor, targets: Tensor) -> Tensor:
        value = loss(logits, targets)
        if not logits.requires_grad:
            return value
        present = targets.flatten(1).any(dim=1).float()
        found = head(said[0].float().mean(dim=(2, 3)))[:, 0]
        return value + 0.3 * functional.binary_cross_entropy_with_logits(found, present)

    training.loss = with_emptiness
    _renew_optimizer(training)


def _deepest_width(training: Training) -> int:
    return WIDTHS[training.experiment.backbone][-1]


def _adamw(training: Training) -> None:
    recipe = training.recipe
    training.optimizer = AdamW(
        training.model.parameters(),
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    training.scheduler = training.cycle(training.optimizer, training.settings.epochs)


def _renew_optimizer(training: Training) -> None:
    training.optimizer, training.scheduler = training.new_optimizer()


# --- the rows -----------------------------------------------------------------------------------

ROWS = {
    "best": Row("the recipe `best`"),
    "seed": Row("the seed's recipe", recipe="fast", experiment="bcedice"),
    "batch16": Row("16 images a step", settings={"batch_size": 16}),
    "adamw": Row("AdamW at 1e-3 in Muon's place", {"learning_rate": 1e-3}, adapt=_adamw),
    "rate1": Row("a third of the learning rate", {"learning_rate": 1e-3}),
    "rate10": Row("three times the learning rate", {"learning_rate": 1e-2}),
    "full": Row("vertical flips and right angles too", {"augmentation": "full"}),
    "plain": Row("the seed's decoder", {"normalised_decoder": False}),
    "scse": Row("scSE in every decoder block", adapt=_with_scse),
    "hypercolumns": Row("the head sees every decoder block", adapt=_with_hypercolumns),
    "scse-hypercolumns": Row("both of these", adapt=_with_both),
    "no-early-pool": Row("no max-pool after the stem: 3 times the work", adapt=_without_early_pool),
    "emptiness": Row("a second head says whether there is salt", adapt=_emptiness_head),
    "resized": Row("resized, where `best` pads by reflection", {"fit": "resize"}),
    "bcedice": Row("BCE and Dice alone", experiment="bcedice"),
    "lovasz-elu": Row("Lovász with elu + 1 alone", adapt=_loss(elu_hinge)),
    "with-elu": Row("BCE, Dice and Lovász with elu + 1", adapt=_loss(with_bce_dice(elu_hinge))),
    "with-lovasz": Row(
        "BCE, Dice and Lovász of salt alone", adapt=_loss(with_bce_dice(lovasz_hinge))
    ),
    "then-lovasz": Row(
        "BCE and Dice, in the second half Lovász with elu + 1",
        experiment="bcedice",
        later_loss=elu_hinge,
    ),
    "cycles": Row("two cycles of the rate, the two ends averaged", cycles=2),
    "folds": Row("three networks of two thirds of the images each, averaged", folds=3),
}


# --- one training -------------------------------------------------------------------------------


def train(row: Row, settings: Settings) -> dict[str, float]:
    """Train one row, and score the weights of its last epoch on the validation images."""
    began = time.monotonic()
    plain, flipped, truths = predictions(row, settings)
    found: dict[str, float] = {"seconds": time.monotonic() - began}
    found |= _values("plain", Cut().masks(plain), truths)
    found |= _values("flipped", Cut().masks(flipped), truths)
    return found | _values("cut", cross_cut(flipped, truths), truths)


def predictions(row: Row, settings: Settings) -> tuple[Probabilities, Probabilities, Masks]:
    """Train one row; what it says of the validation images, without and with flips; the truths."""
    images, validation = split(load_labelled(settings.data_dir), settings)
    predicted = [
        pair
        for part in _parts(images, row.folds)
        for pair in _predictions(row, settings, part, validation)
    ]
    plain, flipped = (np.mean(view, axis=0) for view in zip(*predicted, strict=True))
    return plain, flipped, validation.masks > 0


def _parts(images: LabelledImages, folds: int) -> list[LabelledImages]:
    """The images of which each network is trained: all, or without one of the folds."""
    rows = range(len(images))
    left_out = range(folds) if folds > 1 else [-1]
    return [images.taken([row for row in rows if row % folds != fold]) for fold in left_out]


def _predictions(
    row: Row, settings: Settings, images: LabelledImages, validation: LabelledImages
) -> Iterator[tuple[Probabilities, Probabilities]]:
    """Train a network; what it predicts at the end of each cycle, without and with flips."""
    training = Training(settings.chosen[0], settings, images, validation)
    if row.adapt is not None:
        row.adapt(training)
    for epochs in np.array_split(np.arange(settings.epochs), min(row.cycles, settings.epochs)):
        if row.cycles > 1:
            training.scheduler = training.cycle(training.optimizer, len(epochs))
        for epoch in epochs:
            if row.later_loss is not None and epoch >= settings.epochs / 2:
                training.loss = row.later_loss
            training.one_epoch()
        yield _predicted(training, flip=False), _predicted(training, flip=True)


def _values(name: str, masks: Masks, truths: Masks) -> dict[str, float]:
    ious = iou(torch.from_numpy(masks), torch.from_numpy(truths))
    return {f"{name}_iou": ious.mean().item(), f"{name}_score": float(scores(masks, truths).mean())}


@torch.inference_mode()
def _predicted(training: Training, flip: bool) -> Probabilities:
    model = training.model.eval()
    parts = []
    for images, _ in training.validation:
        with training.compute.autocast():
            views = [model(images), *([model(images.flip(-1)).flip(-1)] if flip else [])]
        probabilities = torch.sigmoid(torch.stack(views).float()).mean(dim=0)
        parts.append(restored(probabilities, training.recipe.fit).cpu().numpy())
    return np.concatenate(parts)


# --- the command --------------------------------------------------------------------------------


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    options = _options()
    if options.one:
        name, seed = options.one
        print(json.dumps(train(ROWS[name], _settings(name, int(seed), options))))
        return
    names = dict.fromkeys(["best", *options.rows])
    wanted = [(name, seed) for seed in options.seeds for name in names]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda pair: _measure(*pair, options), wanted))
    print(_table(options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the competition's folder")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--backbone", choices=config.BACKBONES, default="resnet34")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--limit-train", type=int, default=700)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time")
    parser.add_argument(
        "--kept",
        type=Path,
        default=ROOT / "build" / "quality.jsonl",
        metavar="FILE",
        help="what was measured: a line for each training",
    )
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help="train it here, and say")
    return parser.parse_args()


def _settings(name: str, seed: int, options: argparse.Namespace) -> Settings:
    row, recipe = ROWS[name], f"row {name}"
    config.RECIPES[recipe] = replace(config.RECIPES[row.recipe], name=recipe, **row.changes)
    return Settings.from_parameters(
        {
            "data_dir": options.data,
            "output_dir": ROOT / "build" / "quality",
            "experiments": f"{options.backbone}_{row.experiment}",
            "recipe": recipe,
            "pretrained": False,
            "num_workers": 0,
            "seed": seed,
            "epochs": options.epochs,
            "image_size": options.image_size,
            "limit_train": options.limit_train,
            **row.settings,
        }
    )


def _key(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What decides a result: with other code or in another number format it is measured anew."""
    settings = _settings(name, seed, options)
    return {
        "row": name,
        "experiments": list(settings.experiments),
        "data": str(options.data),
        "number_format": str(pick_compute(settings.training.on_device).number_format),
        "code": _digest_of_code(),
        **settings.decisive(),
    }


@cache
def _digest_of_code() -> str:
    digest = hashlib.sha256()
    for path in [*sorted((ROOT / "src_salt").glob("*.py")), Path(__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _measure(name: str, seed: int, options: argparse.Namespace) -> None:
    """Train in a process of its own, unless it was; add a line to what is kept."""
    key = _key(name, seed, options)
    if _kept(key, options) is not None:
        return
    print(f"training {name}, seed {seed}\n", end="", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.quality", *sys.argv[1:], "--one", name, str(seed)]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.jobs))}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    options.kept.parent.mkdir(parents=True, exist_ok=True)
    with options.kept.open("a", encoding="utf-8") as file:
        file.write(json.dumps(key | {"found": found}) + "\n")


def _kept(key: Mapping[str, Any], options: argparse.Namespace) -> dict[str, float] | None:
    if not options.kept.exists():
        return None
    for line in options.kept.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        found: dict[str, float] = entry.pop("found")
        if entry == key:
            return found
    return None


def _table(options: argparse.Namespace) -> str:
    """Means over the seeds, and the difference to `best` with the same seed."""
    lines = [
        f"`{shlex.join(['python', '-m', 'benchmarks.quality', *sys.argv[1:]])}`",
        "",
        "| row | what is changed | IoU | score | IoU, paired | score, paired | with flips "
        "| and the cut | time, best = 1 |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(["best", *options.rows]):
        pairs = [
            (_found(name, seed, options), _found("best", seed, options)) for seed in options.seeds
        ]
        mine = {key: fmean(pair[0][key] for pair in pairs) for key in pairs[0][0]}
        gain = {key: fmean(pair[0][key] - pair[1][key] for pair in pairs) for key in mine}
        slower = mine["seconds"] / fmean(pair[1]["seconds"] for pair in pairs)
        lines.append(
            f"| {name} | {ROWS[name].what} | {mine['plain_iou']:.3f} | {mine['plain_score']:.3f} "
            f"| {gain['plain_iou']:+.3f} | {gain['plain_score']:+.3f} "
            f"| {mine['flipped_score']:.3f} | {mine['cut_score']:.3f} | {slower:.2f} |"
        )
    return "\n".join(lines)


def _found(name: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    key = _key(name, seed, options)
    found = _kept(key, options)
    assert found is not None, key
    return found


if __name__ == "__main__":
    main()
