"""Measure what each part of a recipe contributes: `python -m benchmarks.quality`.

Each row changes one part of the recipe `best`. It is trained with the same seeds, images and epochs
as the recipe itself, so differences are paired. Each training runs in its own process, `--jobs` at
a time. Results are stored in a file and not measured again.

Parts that did not help exist only here, not in src_salt.
"""

from __future__ import annotations

import argparse
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
from torchvision.ops import StochasticDepth

from src_salt import config, losses, muon, transforms
from src_salt.config import Settings
from src_salt.data import LabelledImages, load_labelled, split
from src_salt.device import pick_compute
from src_salt.losses import bce_dice, lovasz_hinge
from src_salt.metrics import (
    Masks,
    Postprocessing,
    Probabilities,
    cross_fitted_masks,
    image_scores,
    iou,
)
from src_salt.model import DECODER_WIDTHS, WIDTHS, DecoderBlock
from src_salt.outputs import sha256
from src_salt.train import Trainer
from src_salt.transforms import resize_to_original

Loss = losses.Loss
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    description: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Changed fields of the recipe."""

    recipe: str = "best"
    loss: str = "BCEDiceSymmetric"
    settings: Mapping[str, Any] = field(default_factory=dict)
    adapt: Callable[[Trainer], None] | None = None
    """Changes the network, the loss or the optimizer before the first step."""

    second_half_loss: Loss | None = None
    """Replaces the loss in the second half of the epochs."""

    cycles: int = 1
    """Cycles of the learning rate; the predictions at the end of each cycle are averaged."""

    folds: int = 1
    """Number of networks, each trained without one fold; their predictions are averaged."""


# --- losses -------------------------------------------------------------------------------------


def elu_hinge(logits: Tensor, targets: Tensor) -> Tensor:
    """The Lovász hinge with elu + 1 instead of relu, as the competition's winners used it."""
    errors, truths = losses.sort_by_error(logits, targets)
    return ((functional.elu(errors) + 1) * losses.jaccard_gradient(truths)).sum(dim=1).mean()


def with_bce_dice(hinge: Loss) -> Loss:
    """Return the sum of BCE-Dice and a hinge, as in `losses.bce_dice_symmetric`."""
    return lambda logits, targets: bce_dice(logits, targets) + hinge(logits, targets)


def _with_loss(loss: Loss) -> Callable[[Trainer], None]:
    def adapt(trainer: Trainer) -> None:
        trainer.loss = loss

    return adapt


# --- networks -----------------------------------------------------------------------------------


class SqueezeExcitation(nn.Module):
    """scSE: attention over channels and over positions.

    Roy, Navab and Wachinger 2018, "Concurrent Spatial and Channel Squeeze & Excitation in Fully
    Convolutional Networks". The two are added, as the competition's leaders did.
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
        self.positions = nn.Sequential(nn.Conv2d(width, 1, kernel_size=1), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """Weight features (B, width, H, W); the shape stays."""
        return features * (self.channels(features) + self.positions(features))


class HypercolumnHead(nn.Module):
    """Logits from the features of all decoder blocks (Hariharan et al. 2015).

    The number of channels is reduced before upsampling, and the last upsampling is learned.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.features: list[Tensor] = []
        for block in blocks:
            block.register_forward_hook(lambda _module, _inputs, out: self.features.append(out))
        self.reduce = nn.ModuleList(nn.Conv2d(width, 32, 1) for width in DECODER_WIDTHS)
        self.combine = nn.Sequential(
            nn.Conv2d(32 * len(DECODER_WIDTHS), 64, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 4, kernel_size=1),
            nn.PixelShuffle(2),
        )

    def forward(self, last: Tensor) -> Tensor:
        """Convert the last block's features (B, 64, 64, 64) to logits (B, 1, 128, 128)."""
        columns = [
            functional.interpolate(narrow(features), last.shape[-2:], mode="bilinear")
            for narrow, features in zip(self.reduce, self.features, strict=True)
        ]
        self.features.clear()
        return self.combine(torch.cat(columns, dim=1))


def _with_scse(trainer: Trainer) -> None:
    for block, width in zip(trainer.model.blocks, DECODER_WIDTHS, strict=True):
        block.convolutions.append(trainer.compute.place(SqueezeExcitation(width)))
    _rebuild_optimizer(trainer)


def _with_hypercolumns(trainer: Trainer) -> None:
    trainer.model.head = trainer.compute.place(HypercolumnHead(trainer.model.blocks))
    _rebuild_optimizer(trainer)


def _with_both(trainer: Trainer) -> None:
    _with_scse(trainer)
    _with_hypercolumns(trainer)


def _without_early_pool(trainer: Trainer) -> None:
    trainer.model.pool = nn.Identity()


def _emptiness_head(trainer: Trainer) -> None:
    """Predict from the deepest features whether there is salt, as a second task."""
    deepest = trainer.model.stages[-1]
    head = trainer.compute.place(nn.Linear(_deepest_width(trainer), 1))
    trainer.model.emptiness = head
    features: list[Tensor] = []
    deepest.register_forward_hook(lambda _m, _i, out: features.__setitem__(slice(None), [out]))
    loss = trainer.loss

    def with_emptiness(logits: Tensor, targets: Tensor) -> Tensor:
        value = loss(logits, targets)
        if not logits.requires_grad:
            return value
        present = targets.flatten(1).any(dim=1).float()
        logit = head(features[0].float().mean(dim=(2, 3)))[:, 0]
        return value + 0.3 * functional.binary_cross_entropy_with_logits(logit, present)

    trainer.loss = with_emptiness
    _rebuild_optimizer(trainer)


def _deepest_width(trainer: Trainer) -> int:
    return WIDTHS[trainer.experiment.backbone][-1]


def _adamw(trainer: Trainer) -> None:
    recipe = trainer.recipe
    trainer.optimizer = AdamW(
        trainer.model.parameters(),
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    trainer.scheduler = trainer.one_cycle(trainer.optimizer, trainer.settings.epochs)


def _rebuild_optimizer(trainer: Trainer) -> None:
    trainer.optimizer, trainer.scheduler = trainer.build_optimizer()


def _narrow(trainer: Trainer) -> None:
    skip, below = WIDTHS[trainer.experiment.backbone][0], DECODER_WIDTHS[-2]
    trainer.model.blocks[-1] = trainer.compute.place(DecoderBlock(below, skip, 32, normalized=True))
    trainer.model.head = trainer.compute.place(nn.Conv2d(32, 1, kernel_size=1))
    _rebuild_optimizer(trainer)


def _adamw_at_the_ends(trainer: Trainer) -> None:
    """Update the convolutions that read the image and make the logits like AdamW."""
    _rebuild_optimizer(trainer)
    ends = {id(trainer.model.stem[0].weight), id(trainer.model.head.weight)}
    optimizer: Any = trainer.optimizer
    optimizer._weights = [weight for weight in optimizer._weights if id(weight) not in ends]


def _with_rows(rows: int) -> Callable[[Trainer], None]:
    def adapt(_trainer: Trainer) -> None:
        muon.BLOCK_ROWS = rows

    return adapt


# --- regularization -----------------------------------------------------------------------------


def _dropout(trainer: Trainer) -> None:
    for block in trainer.model.blocks:
        block.convolutions.append(nn.Dropout2d(0.1))


def _stochastic_depth(trainer: Trainer) -> None:
    """Skip residual branches of single images, the deepest one of five (Huang et al. 2016)."""
    blocks = [block for stage in trainer.model.stages for block in stage]
    for number, block in enumerate(blocks, 1):
        name = "bn3" if hasattr(block, "bn3") else "bn2"
        depth = StochasticDepth(0.2 * number / len(blocks), "row")
        setattr(block, name, nn.Sequential(getattr(block, name), depth))
    _rebuild_optimizer(trainer)


def _strong(_trainer: Trainer) -> None:
    transforms.LIGHT, transforms.SCALE = 0.4, 0.25


def _smoothing(trainer: Trainer) -> None:
    trainer.loss = lambda logits, targets: (
        bce_dice(logits, 0.025 + 0.95 * targets) + losses.symmetric_lovasz_hinge(logits, targets)
    )


def _deep_supervision(trainer: Trainer) -> None:
    """Each decoder block but the last has a head of its own, with a third of the loss's weight."""
    blocks, loss = trainer.model.blocks, trainer.loss
    heads = nn.ModuleList(nn.Conv2d(width, 1, kernel_size=1) for width in DECODER_WIDTHS[:-1])
    trainer.model.deep_heads = trainer.compute.place(heads)
    features: dict[int, Tensor] = {}
    for number, block in enumerate(blocks[:-1]):
        block.register_forward_hook(lambda _m, _i, out, n=number: features.__setitem__(n, out))

    def with_heads(logits: Tensor, targets: Tensor) -> Tensor:
        value = loss(logits, targets)
        if logits.requires_grad:
            for number, head in enumerate(trainer.model.deep_heads):
                small = head(features[number].float())
                value = value + loss(functional.interpolate(small, logits.shape[-2:]), targets) / 3
        return value

    trainer.loss = with_heads
    _rebuild_optimizer(trainer)


class _ChangedBatches:
    """Training batches, changed by a function."""

    def __init__(self, batches: Any, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]):
        self.batches, self.change = batches, change

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.change(*batch) for batch in self.batches)


def _with_batches(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Callable[[Trainer], None]:
    def adapt(trainer: Trainer) -> None:
        trainer.batches = _ChangedBatches(trainer.batches, change)

    return adapt


def _rectangle(size: int, least: float, most: float) -> tuple[slice, slice]:
    """Return rows and columns of a random rectangle with sides of a share of the image."""
    sides = [max(1, int(size * np.random.uniform(least, most))) for _ in range(2)]
    starts = [np.random.randint(0, size - side + 1) for side in sides]
    rows, columns = (slice(a, a + n) for a, n in zip(starts, sides, strict=True))
    return rows, columns


def _cut_mix(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of another image and its mask into half of the images (Yun et al. 2019)."""
    images, masks = images.clone(), masks.clone()
    others = images.roll(1, dims=0), masks.roll(1, dims=0)
    for row in np.flatnonzero(np.random.rand(len(images)) < 0.5):
        place = (row, ..., *_rectangle(images.shape[-1], 0.25, 0.75))
        images[place], masks[place] = others[0][place], others[1][place]
    return images, masks


def _cut_out(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Hide a rectangle of half of the images; the masks stay (DeVries and Taylor 2017)."""
    images = images.clone()
    for row in np.flatnonzero(np.random.rand(len(images)) < 0.5):
        images[(row, ..., *_rectangle(images.shape[-1], 0.2, 0.5))] = 0.0
    return images, masks


# --- the rows -----------------------------------------------------------------------------------

ROWS = {
    "best": Row("the recipe `best`"),
    "baseline": Row("the recipe `baseline`, on the fast path", recipe="fast", loss="BCEDice"),
    "batch16": Row("16 images per step", settings={"batch_size": 16}),
    "adamw": Row("AdamW at 1e-3 instead of Muon", {"learning_rate": 1e-3}, adapt=_adamw),
    "rate1": Row("a third of the learning rate", {"learning_rate": 1e-3}),
    "rate10": Row("three times the learning rate", {"learning_rate": 1e-2}),
    "full": Row("also vertical flips and right angles", {"augmentation": "full"}),
    "plain": Row("the baseline's decoder", {"normalized_decoder": False}),
    "scse": Row("scSE in every decoder block", adapt=_with_scse),
    "hypercolumns": Row("the head sees every decoder block", adapt=_with_hypercolumns),
    "scse-hypercolumns": Row("both of these", adapt=_with_both),
    "no-early-pool": Row("no max-pool after the stem: 3 times the work", adapt=_without_early_pool),
    "emptiness": Row("a second head predicts whether there is salt", adapt=_emptiness_head),
    "resized": Row("resized instead of padded by reflection", {"fit": "resize"}),
    "bcedice": Row("only BCE and Dice", loss="BCEDice"),
    "lovasz-elu": Row("only Lovász with elu + 1", adapt=_with_loss(elu_hinge)),
    "with-elu": Row(
        "BCE, Dice and Lovász with elu + 1", adapt=_with_loss(with_bce_dice(elu_hinge))
    ),
    "with-lovasz": Row(
        "BCE, Dice and Lovász for salt only", adapt=_with_loss(with_bce_dice(lovasz_hinge))
    ),
    "then-lovasz": Row(
        "BCE and Dice, in the second half Lovász with elu + 1",
        loss="BCEDice",
        second_half_loss=elu_hinge,
    ),
    "adamw-ends": Row("AdamW for the stem and the head", adapt=_adamw_at_the_ends),
    "rows-512": Row("Muon's matrices with up to 512 rows", adapt=_with_rows(512)),
    "rows-256": Row("Muon's matrices with up to 256 rows", adapt=_with_rows(256)),
    "rows-64": Row("Muon's matrices with up to 64 rows", adapt=_with_rows(64)),
    "narrow": Row("32 channels instead of 64 in the last decoder block", adapt=_narrow),
    "dropout": Row("a tenth of the decoder's channels dropped", adapt=_dropout),
    "cutout": Row("a rectangle of half of the images hidden", adapt=_with_batches(_cut_out)),
    "cutmix": Row("a rectangle of half of the images replaced", adapt=_with_batches(_cut_mix)),
    "strong": Row("twice the change of light, 2.5 times the change of scale", adapt=_strong),
    "stochastic-depth": Row("residual branches skipped, up to 20%", adapt=_stochastic_depth),
    "smoothing": Row("BCE and Dice with labels of 0.025 and 0.975", adapt=_smoothing),
    "deep-supervision": Row("each decoder block has a head and a loss", adapt=_deep_supervision),
    "cycles": Row("two cycles of the rate, averaged", cycles=2),
    "folds": Row("three networks on two thirds of the images each, averaged", folds=3),
}


# --- one training -------------------------------------------------------------------------------


def train(row: Row, settings: Settings) -> dict[str, float]:
    """Train one row, and return the scores of its last epoch's weights on validation."""
    began = time.monotonic()
    plain, flipped, truths = train_and_predict(row, settings)
    result: dict[str, float] = {"seconds": time.monotonic() - began}
    result |= _scores_of("plain", Postprocessing().apply(plain), truths)
    result |= _scores_of("flipped", Postprocessing().apply(flipped), truths)
    return result | _scores_of("tuned", cross_fitted_masks(flipped, truths), truths)


def train_and_predict(row: Row, settings: Settings) -> tuple[Probabilities, Probabilities, Masks]:
    """Train one row. Return predictions for validation without and with flips, and the truths."""
    images, validation = split(load_labelled(settings.data_dir), settings)
    predicted = [
        pair
        for part in _training_sets(images, row.folds)
        for pair in _train_network(row, settings, part, validation)
    ]
    plain, flipped = (np.mean(view, axis=0) for view in zip(*predicted, strict=True))
    return plain, flipped, validation.masks > 0


def _training_sets(images: LabelledImages, folds: int) -> list[LabelledImages]:
    """Return the training images of each network: all, or all without one fold."""
    rows = range(len(images))
    left_out = range(folds) if folds > 1 else [-1]
    return [images.subset([row for row in rows if row % folds != fold]) for fold in left_out]


def _train_network(
    row: Row, settings: Settings, images: LabelledImages, validation: LabelledImages
) -> Iterator[tuple[Probabilities, Probabilities]]:
    """Train a network, and yield its predictions after each cycle, without and with flips."""
    trainer = Trainer(settings.planned_experiments[0], settings, images, validation)
    if row.adapt is not None:
        row.adapt(trainer)
    for epochs in np.array_split(np.arange(settings.epochs), min(row.cycles, settings.epochs)):
        if row.cycles > 1:
            trainer.scheduler = trainer.one_cycle(trainer.optimizer, len(epochs))
        for epoch in epochs:
            if row.second_half_loss is not None and epoch >= settings.epochs / 2:
                trainer.loss = row.second_half_loss
            trainer.run_epoch()
        yield _predict(trainer, flip=False), _predict(trainer, flip=True)


def _scores_of(name: str, masks: Masks, truths: Masks) -> dict[str, float]:
    ious = iou(torch.from_numpy(masks), torch.from_numpy(truths))
    return {
        f"{name}_iou": ious.mean().item(),
        f"{name}_score": float(image_scores(masks, truths).mean()),
    }


@torch.inference_mode()
def _predict(trainer: Trainer, flip: bool) -> Probabilities:
    model = trainer.model.eval()
    parts = []
    for images, _ in trainer.validation:
        with trainer.compute.autocast():
            views = [model(images), *([model(images.flip(-1)).flip(-1)] if flip else [])]
        probabilities = torch.sigmoid(torch.stack(views).float()).mean(dim=0)
        parts.append(resize_to_original(probabilities, trainer.recipe.fit).cpu().numpy())
    return np.concatenate(parts)


# --- the command --------------------------------------------------------------------------------


def main() -> None:
    """Measure all missing results, and print the table."""
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
        "--results",
        type=Path,
        default=ROOT / "build" / "quality.jsonl",
        metavar="FILE",
        help="file for results, with one line per training",
    )
    parser.add_argument(
        "--one", nargs=2, metavar=("ROW", "SEED"), help="train one row in this process"
    )
    return parser.parse_args()


def _settings(name: str, seed: int, options: argparse.Namespace) -> Settings:
    row, recipe = ROWS[name], f"row {name}"
    config.RECIPES[recipe] = replace(config.RECIPES[row.recipe], name=recipe, **row.changes)
    return Settings.from_parameters(
        {
            "data_dir": options.data,
            "output_dir": ROOT / "build" / "quality",
            "experiments": f"{options.backbone}_{row.loss}",
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
    """Return what affects a result. Other code or another dtype cause a new measurement."""
    settings = _settings(name, seed, options)
    return {
        "row": name,
        "experiments": list(settings.experiments),
        "data": str(options.data),
        "dtype": str(pick_compute(settings.resolved_recipe.on_device).dtype),
        "code": _digest_of_code(),
        **settings.fingerprint_fields(),
    }


@cache
def _digest_of_code() -> str:
    paths = [*sorted((ROOT / "src_salt").glob("*.py")), Path(__file__)]
    return sha256(*(path.read_bytes() for path in paths))


def _measure(name: str, seed: int, options: argparse.Namespace) -> None:
    """Train in a new process and store the result, unless it is stored already."""
    key = _key(name, seed, options)
    if _stored(key, options) is not None:
        return
    print(f"training {name}, seed {seed}\n", end="", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.quality", *sys.argv[1:], "--one", name, str(seed)]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.jobs))}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(key | {"result": result}) + "\n")


def _stored(key: Mapping[str, Any], options: argparse.Namespace) -> dict[str, float] | None:
    if not options.results.exists():
        return None
    for line in options.results.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        result: dict[str, float] = entry.pop("result")
        if entry == key:
            return result
    return None


def _table(options: argparse.Namespace) -> str:
    """Return means over the seeds, and differences to `best` with the same seed."""
    lines = [
        f"`{shlex.join(['python', '-m', 'benchmarks.quality', *sys.argv[1:]])}`",
        "",
        "| row | change | IoU | score | IoU, paired | score, paired | with flips "
        "| and tuned threshold | time, best = 1 |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(["best", *options.rows]):
        pairs = [
            (_measured(name, seed, options), _measured("best", seed, options))
            for seed in options.seeds
        ]
        mine = {key: fmean(pair[0][key] for pair in pairs) for key in pairs[0][0]}
        gain = {key: fmean(pair[0][key] - pair[1][key] for pair in pairs) for key in mine}
        slower = mine["seconds"] / fmean(pair[1]["seconds"] for pair in pairs)
        lines.append(
            f"| {name} | {ROWS[name].description} "
            f"| {mine['plain_iou']:.3f} | {mine['plain_score']:.3f} "
            f"| {gain['plain_iou']:+.3f} | {gain['plain_score']:+.3f} "
            f"| {mine['flipped_score']:.3f} | {mine['tuned_score']:.3f} | {slower:.2f} |"
        )
    return "\n".join(lines)


def _measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    key = _key(name, seed, options)
    result = _stored(key, options)
    assert result is not None, key
    return result


if __name__ == "__main__":
    main()
