"""Settings of a run and its experiments.

Everything a user may choose is a field of `Settings`, with its default and its reason beside it.
The command line, `main.run` and the tests all build this one object, so a value that is refused is
refused in one place, before any work begins, with the field's name and what it allows.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

BACKBONES = ("resnet34", "resnet50")
LOSSES = ("bcedice", "lovasz", "bcedice_symmetric")

OPTIONAL_FOLDERS = ("weights_dir", "resume_dir")

SMALLEST_IMAGE = 32
"""The encoder halves the picture five times: below 32 pixels nothing is left of it."""


class SaltError(Exception):
    """A fault outside the program: its text says what is wrong and what to do.

    SaltError
    ├── SettingsError          a parameter is unknown or has a value that is not allowed (config)
    ├── DataError              the competition's files are missing or broken (data)
    ├── WeightsError           the ImageNet weights cannot be had (model)
    ├── TrainingError          a loss that is no number, or nothing to go on with (train)
    │   OutOfMemory, WorkerDied  met on the way and made up for, if that is possible (train)
    ├── OutputError            the disk takes no more (outputs)
    └── SubmissionError        the written file is no valid submission (submission)
    """


def first_line(error: Exception) -> str:
    """What an error of a library says, without the pages that may follow."""
    return (str(error) or type(error).__name__).splitlines()[0]


class SettingsError(SaltError, ValueError):
    """A parameter that is unknown, or a value that is not allowed."""


@dataclass(frozen=True)
class Experiment:
    """One backbone trained with one loss."""

    backbone: str
    loss: str
    fold: int | None = None
    """From 1, where there are several."""

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES or self.loss not in LOSSES:
            raise SettingsError(_unknown_experiment(self.grid_name))

    @property
    def grid_name(self) -> str:
        """As the settings name it: `resnet34_bcedice`."""
        return f"{self.backbone}_{self.loss}"

    @property
    def name(self) -> str:
        """As in file names and events: `resnet34_bcedice`, `resnet34_bcedice_fold2`."""
        return self.grid_name + ("" if self.fold is None else f"_fold{self.fold}")

    @classmethod
    def named(cls, name: str) -> Experiment:
        """The experiment of that name; SettingsError with the nearest name if there is none."""
        backbone, _, loss = name.partition("_")
        return cls(backbone, loss)


EXPERIMENTS = tuple(
    Experiment(backbone, loss) for backbone in BACKBONES for loss in ("bcedice", "lovasz")
)
"""The comparison of the project: two backbones, two losses."""


@dataclass(frozen=True)
class Recipe:
    """How an experiment is trained: everything besides its backbone, its loss and its length.

    A recipe is data: `RECIPES` holds the three that a user names, and a measurement that leaves
    one part out is `dataclasses.replace` of one of them (see docs/experiments.md).
    """

    name: str
    on_device: bool
    """Batches are made on the device from one uint8 copy of the data, in the narrowest number
    format the device computes fast; else by albumentations, one by one, in float32."""

    augmentation: str
    """`full` is the seed's; `mild` leaves out the vertical flip and the right angles."""

    fit: str
    """How 101 pixels become the network's size: `resize`, or `reflect` to mirror what lies outside
    of the picture, so that at 128 no pixel of it is computed anew."""

    normalised_decoder: bool
    """Whether the decoder's convolutions are normalised over the batch, as the encoder's are."""

    optimizer: str
    """`adam`, whose rate falls on a plateau, or `muon`, whose rate rises and falls in one cycle."""

    learning_rate: float
    weight_decay: float
    select_by: str
    """The validation value whose best epoch is kept: a field of `train.Epoch`."""

    flip_views: bool
    """Predict the mirrored image too, and average."""

    chosen_cut: bool
    """Choose threshold and smallest region on validation; else one half, and nothing left out."""


SEED = Recipe(
    name="seed",
    on_device=False,
    augmentation="full",
    fit="resize",
    normalised_decoder=False,
    optimizer="adam",
    learning_rate=1e-4,
    weight_decay=1e-5,
    select_by="val_iou",
    flip_views=False,
    chosen_cut=False,
)
FAST = replace(SEED, name="fast", on_device=True)
BEST = Recipe(
    name="best",
    on_device=True,
    augmentation="mild",
    fit="reflect",
    normalised_decoder=True,
    optimizer="muon",
    learning_rate=3e-3,
    weight_decay=1e-2,
    select_by="val_score",
    flip_views=True,
    chosen_cut=True,
)
RECIPES = {recipe.name: recipe for recipe in (SEED, FAST, BEST)}


def _unknown_experiment(name: str) -> str:
    known = [f"{backbone}_{loss}" for backbone in BACKBONES for loss in LOSSES]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"experiments: {name!r} is not known.{hint} Allowed: {', '.join(known)}."


@dataclass(frozen=True)
class Settings:
    """What one run does. Immutable, and valid once it exists: construction raises SettingsError."""

    data_dir: Path = field(metadata={"help": "the competition's folder, or one that contains it"})
    output_dir: Path = field(metadata={"help": "where models, results and submission are written"})
    experiments: tuple[str, ...] = field(
        default=tuple(experiment.name for experiment in EXPERIMENTS),
        metadata={"help": "names, with commas or spaces between (default: the grid of four)"},
    )
    recipe: str = field(
        default="seed",
        metadata={
            "help": "seed, fast (the seed's mathematics on a fast path) or best",
            "metavar": "NAME",
        },
    )
    epochs: int = field(default=20, metadata={"help": "epochs of each experiment"})
    batch_size: int = field(default=32, metadata={"help": "images in a step, at least 2"})
    learning_rate: float | None = field(
        default=None, metadata={"help": "the first, of a cycle the highest (default: the recipe's)"}
    )
    weight_decay: float | None = field(
        default=None, metadata={"help": "of the weights (default: the recipe's)"}
    )
    image_size: int = field(
        default=128,
        metadata={"help": "side of the network's input in pixels; the pictures' is 101"},
    )
    pretrained: bool = field(
        default=True, metadata={"help": "start from torchvision's ImageNet weights"}
    )
    weights_dir: Path | None = field(
        default=None,
        metadata={"help": "folder with torchvision's files (resnet34*.pth), not to download them"},
    )
    limit_train: int | None = field(
        default=None, metadata={"help": "train on the first N images of the split only"}
    )
    limit_val: int | None = field(
        default=None, metadata={"help": "validate on the first N images of the split only"}
    )
    folds: int = field(
        default=1,
        metadata={
            "help": "1 for the 80:20 split, else so many networks for each experiment, each "
            "validated on its own part, averaged in the submission"
        },
    )
    max_hours: float | None = field(
        default=None,
        metadata={"help": "end by itself within this time, with a submission of what was reached"},
    )
    resume_dir: Path | None = field(
        default=None,
        metadata={"help": "outputs of an earlier run, to go on from (default: output_dir alone)"},
    )
    processes: int = field(
        default=1,
        metadata={"help": "that train a network together, one for each GPU, by torchrun"},
    )
    num_workers: int = field(
        default=2, metadata={"help": "processes that prepare batches; 0 prepares them in this one"}
    )
    seed: int = field(
        default=42, metadata={"help": "seed of weights, order and augmentation; not of the split"}
    )

    def __post_init__(self) -> None:
        for name in ("data_dir", "output_dir", *OPTIONAL_FOLDERS):
            object.__setattr__(self, name, _path(name, getattr(self, name)))
        object.__setattr__(self, "experiments", _experiment_names(self.experiments))
        if not isinstance(self.recipe, str) or self.recipe not in RECIPES:
            raise SettingsError(
                f"recipe: must be one of {', '.join(RECIPES)}, not {self.recipe!r}."
            )
        for name in ("learning_rate", "weight_decay", "max_hours"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _number(name, getattr(self, name)))
        if not isinstance(self.pretrained, bool):
            raise SettingsError(f"pretrained: must be true or false, not {self.pretrained!r}.")
        self._check_ranges()

    def _check_ranges(self) -> None:
        _at_least("epochs", self.epochs, 1)
        # Batch normalisation needs two images to have a variance.
        _at_least("batch_size", self.batch_size, 2)
        _at_least("image_size", self.image_size, SMALLEST_IMAGE)
        _at_least("num_workers", self.num_workers, 0)
        _at_least("folds", self.folds, 1)
        _at_least("processes", self.processes, 1)
        _at_least("seed", self.seed, 0)
        if self.limit_train is not None:
            _at_least("limit_train", self.limit_train, 2)
        if self.limit_val is not None:
            _at_least("limit_val", self.limit_val, 1)
        if self.seed >= 2**32:  # numpy's legacy generator takes 32 bits
            raise SettingsError(f"seed: must be below 2**32, not {self.seed}.")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise SettingsError(f"learning_rate: must be above 0, not {self.learning_rate}.")
        if self.max_hours is not None and self.max_hours <= 0:
            raise SettingsError(f"max_hours: must be above 0, not {self.max_hours}.")
        if self.batch_size % self.processes:
            raise SettingsError(
                f"batch_size: {self.batch_size} images cannot be shared evenly among "
                f"{self.processes} processes."
            )
        if self.weight_decay is not None and self.weight_decay < 0:
            raise SettingsError(f"weight_decay: must be 0 or above, not {self.weight_decay}.")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Settings:
        """Settings from plain values; an unknown name is refused with the nearest known one."""
        known = [entry.name for entry in fields(cls)]
        for name in parameters:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise SettingsError(
                    f"{name}: no such parameter.{hint} Allowed: {', '.join(known)}."
                )
        return cls(**parameters)

    @property
    def chosen(self) -> tuple[Experiment, ...]:
        """The experiments to run, in the order they were named, each with its folds."""
        numbers = [None] if self.folds == 1 else list(range(1, self.folds + 1))
        return tuple(
            replace(Experiment.named(name), fold=number)
            for name in self.experiments
            for number in numbers
        )

    @property
    def training(self) -> Recipe:
        """The recipe, with the learning rate and weight decay that were chosen in its place."""
        chosen = {name: getattr(self, name) for name in ("learning_rate", "weight_decay")}
        given = {name: value for name, value in chosen.items() if value is not None}
        return replace(RECIPES[self.recipe], **given)

    def decisive(self) -> dict[str, Any]:
        """What decides the result of an experiment: two runs that agree in it may share results.

        Left out: where files lie, which other experiments run, how long they may, and how many
        workers and processes help (the batches do not depend on it, but for a last one that
        cannot be shared evenly).
        """
        elsewhere = {
            "data_dir",
            "output_dir",
            "resume_dir",
            "experiments",
            "num_workers",
            "processes",
            "max_hours",
            *("recipe", "learning_rate", "weight_decay"),  # they are in what follows
        }
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in elsewhere}
        values["weights_dir"] = None if self.weights_dir is None else str(self.weights_dir)
        recipe = asdict(self.training)
        return values | {f"recipe.{name}": value for name, value in recipe.items()}


def _path(name: str, value: Any) -> Path | None:
    if isinstance(value, str) and value.strip():
        return Path(value)
    if isinstance(value, Path) or (value is None and name in OPTIONAL_FOLDERS):
        return value
    raise SettingsError(f"{name}: must be a folder's path, not {value!r}.")


def _experiment_names(value: Any) -> tuple[str, ...]:
    """Names from one comma-separated text or a list of such texts."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise SettingsError(f"experiments: must be names of experiments, not {value!r}.")
    names = tuple(part.strip() for text in texts for part in text.split(",") if part.strip())
    if not names:
        raise SettingsError("experiments: name at least one, or leave it out for the four.")
    if len(set(names)) < len(names):
        raise SettingsError(f"experiments: each may be named once, not {', '.join(names)}.")
    for name in names:
        Experiment.named(name)
    return names


def _number(name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise SettingsError(f"{name}: must be a finite number, not {value!r}.")
    return float(value)


def _at_least(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingsError(f"{name}: must be a whole number of at least {least}, not {value!r}.")
