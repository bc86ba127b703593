"""Settings of a run and its experiments.

Every choice that a user has is a field of `Settings`, with its default and its help text. The
command line, `main.run` and the tests all build this one object. An invalid value is therefore
rejected in one place, before any work begins, with the field's name and the allowed values.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

BACKBONES = ("resnet34", "resnet50")
LOSSES = ("BCEDice", "Lovasz", "BCEDiceSymmetric")

OPTIONAL_FOLDERS = ("weights_dir", "resume_dir")

PARALLEL = ("experiments", "batches")
"""What several processes divide among them: one experiment each, or the images of each batch."""

MIN_IMAGE_SIZE = 32
"""In pixels. The encoder halves the image five times, so 32 pixels become one."""

OLD_LOSSES = {"bcedice": "BCEDice", "lovasz": "Lovasz", "bcedice_symmetric": "BCEDiceSymmetric"}
OLD_RECIPES = {"seed": "baseline"}
"""Names of earlier versions, and today's. Settings, records and checkpoints may still use them."""

OLD_EXPERIMENT = re.compile(
    # The longest loss first: `bcedice` is also the beginning of another one.
    f"({'|'.join(BACKBONES)})_({'|'.join(sorted(OLD_LOSSES, key=len, reverse=True))})(?![a-z])"
)


class SaltError(Exception):
    """An error that the user can fix. Its message says what is wrong and what to do.

    SaltError
    ├── SettingsError    a parameter is unknown, or its value is not allowed (config)
    ├── DataError        the competition's files are missing or broken (data)
    ├── TransformError   albumentations cannot be used (transforms)
    ├── WeightsError     the ImageNet weights are not available (weights)
    ├── TrainingError    an experiment has no result (train)
    ├── OutOfMemory      a step does not fit into memory; a retry uses smaller pieces (train)
    ├── WorkerDied       a data loader's process ended; a retry works without them (train)
    ├── ProcessesDied    the processes of an experiment ended; a retry goes on (launch)
    ├── OutputError      the output folder cannot be written (outputs)
    └── SubmissionError  the submission file is not valid (submission)
    """


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; PyTorch appends pages of details."""
    return (str(error) or type(error).__name__).splitlines()[0]


class SettingsError(SaltError, ValueError):
    """A parameter is unknown, or its value is not allowed."""


@dataclass(frozen=True)
class Experiment:
    """One backbone trained with one loss."""

    backbone: str
    loss: str
    fold: int | None = None
    """Number of the cross-validation fold, from 1; None without folds."""

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES or self.loss not in LOSSES:
            raise SettingsError(_unknown_experiment(self.base_name))

    @property
    def base_name(self) -> str:
        """The name in the settings, without a fold: `resnet34_BCEDice`."""
        return f"{self.backbone}_{self.loss}"

    @property
    def name(self) -> str:
        """The name in file names and events: `resnet34_BCEDice`, `resnet34_BCEDice_fold2`."""
        return self.base_name + ("" if self.fold is None else f"_fold{self.fold}")

    @classmethod
    def from_name(cls, name: str) -> Experiment:
        """Parse a name, also an old one. SettingsError suggests the closest known name."""
        backbone, _, loss = name.partition("_")
        return cls(backbone, OLD_LOSSES.get(loss, loss))


EXPERIMENTS = tuple(
    Experiment(backbone, loss) for backbone in BACKBONES for loss in ("BCEDice", "Lovasz")
)
"""The comparison of the project: two backbones with two losses each."""


def current_experiment_name(text: str) -> str:
    """Replace old experiment names in a text, such as a file name, with today's.

    >>> current_experiment_name("best_model_resnet34_bcedice_fold2.pth")
    'best_model_resnet34_BCEDice_fold2.pth'
    """
    return OLD_EXPERIMENT.sub(lambda match: f"{match[1]}_{OLD_LOSSES[match[2]]}", text)


@dataclass(frozen=True)
class Recipe:
    """How an experiment is trained, apart from its backbone, its loss and its number of epochs.

    `RECIPES` holds the three recipes that a user can name. To measure one part of a recipe, change
    it with `dataclasses.replace` (see docs/experiments.md).
    """

    name: str
    on_device: bool
    """True: batches are made on the device from one uint8 copy of the data, in the narrowest dtype
    that the device computes fast. False: albumentations makes each sample, in float32."""

    augmentation: str
    """`full`, or `mild` without vertical flips and rotations by 90 degrees."""

    fit: str
    """How 101 pixels become the network's input: `resize`, or `reflect`, which pads the image with
    its mirror image. At 128 pixels `reflect` leaves every original pixel as it is."""

    normalized_decoder: bool
    """Whether the decoder uses batch normalization, as the encoder does."""

    optimizer: str
    """`adam` with a learning rate that drops on a plateau, or `muon` with a one-cycle schedule."""

    learning_rate: float
    weight_decay: float
    select_by: str
    """The validation metric that chooses the best epoch: a field of `train.Epoch`."""

    flip_tta: bool
    """Test-time augmentation: also predict the mirrored image, and average the two."""

    tune_threshold: bool
    """Choose threshold and minimum area on the validation images; otherwise 0.5 and no minimum."""


BASELINE = Recipe(
    name="baseline",
    on_device=False,
    augmentation="full",
    fit="resize",
    normalized_decoder=False,
    optimizer="adam",
    learning_rate=1e-4,
    weight_decay=1e-5,
    select_by="val_iou",
    flip_tta=False,
    tune_threshold=False,
)
"""The recipe of the reference notebook."""

FAST = replace(BASELINE, name="fast", on_device=True)
BEST = Recipe(
    name="best",
    on_device=True,
    augmentation="mild",
    fit="reflect",
    normalized_decoder=True,
    optimizer="muon",
    learning_rate=3e-3,
    weight_decay=1e-2,
    select_by="val_score",
    flip_tta=True,
    tune_threshold=True,
)
RECIPES = {recipe.name: recipe for recipe in (BASELINE, FAST, BEST)}


def _unknown_experiment(name: str) -> str:
    known = [f"{backbone}_{loss}" for backbone in BACKBONES for loss in LOSSES]
    return f"experiments: unknown name {name!r}.{_suggestion(name, known)}"


def _suggestion(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Allowed: {', '.join(known)}."


@dataclass(frozen=True)
class Settings:
    """The settings of one run: immutable and validated.

    Raises:
        SettingsError: a value is not allowed; the message names the field.
    """

    data_dir: Path = field(metadata={"help": "folder with the competition's data, or its parent"})
    output_dir: Path = field(metadata={"help": "folder for models, results and submission"})
    experiments: tuple[str, ...] = field(
        default=tuple(experiment.name for experiment in EXPERIMENTS),
        metadata={
            "help": "such as resnet34_BCEDice; separated by commas or spaces (default: all four)"
        },
    )
    recipe: str = field(
        default="baseline",
        metadata={
            "help": "baseline, fast (baseline with a faster data path) or best",
            "metavar": "NAME",
        },
    )
    epochs: int = field(default=20, metadata={"help": "number of epochs of each experiment"})
    batch_size: int = field(default=32, metadata={"help": "images per step, at least 2"})
    learning_rate: float | None = field(
        default=None, metadata={"help": "initial or peak learning rate (default: the recipe's)"}
    )
    weight_decay: float | None = field(
        default=None, metadata={"help": "weight decay (default: the recipe's)"}
    )
    image_size: int = field(
        default=128,
        metadata={"help": "width and height of the network's input in pixels"},
    )
    pretrained: bool = field(
        default=True, metadata={"help": "start from torchvision's ImageNet weights"}
    )
    weights_dir: Path | None = field(
        default=None,
        metadata={"help": "file or folder with torchvision's weights (default: download them)"},
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
            "help": "1 for an 80:20 split; N for N networks per experiment, each with its own "
            "validation fold, averaged in the submission"
        },
    )
    max_hours: float | None = field(
        default=None,
        metadata={"help": "stop within this time, with a submission from what was trained"},
    )
    checkpoint_seconds: float = field(
        default=60,
        metadata={"help": "least time between two checkpoints; 0 writes one after each epoch"},
    )
    resume_dir: Path | None = field(
        default=None,
        metadata={"help": "outputs of an earlier run to resume (default: output_dir only)"},
    )
    processes: int = field(
        default=1,
        metadata={"help": "processes that train at the same time, one per GPU"},
    )
    parallel: str | None = field(
        default=None,
        metadata={
            "help": "what the processes share: `experiments` trains one experiment or fold in "
            "each, `batches` one network together by torchrun (default: experiments if there are "
            "several of them and of the GPUs, and `processes` is 1; otherwise batches)",
            "metavar": "NAME",
        },
    )
    num_workers: int = field(
        default=2, metadata={"help": "processes that prepare batches; 0 uses the main process"}
    )
    seed: int = field(default=42, metadata={"help": "random seed; it does not change the split"})

    def __post_init__(self) -> None:
        for name in ("data_dir", "output_dir", *OPTIONAL_FOLDERS):
            object.__setattr__(self, name, _path(name, getattr(self, name)))
        object.__setattr__(self, "experiments", _experiment_names(self.experiments))
        if isinstance(self.recipe, str):
            object.__setattr__(self, "recipe", OLD_RECIPES.get(self.recipe, self.recipe))
        if not isinstance(self.recipe, str) or self.recipe not in RECIPES:
            raise SettingsError(
                f"recipe: must be one of {', '.join(RECIPES)}, not {self.recipe!r}."
            )
        if self.parallel not in (None, *PARALLEL):
            raise SettingsError(
                f"parallel: must be {' or '.join(PARALLEL)}, not {self.parallel!r}."
            )
        for name in ("learning_rate", "weight_decay", "max_hours", "checkpoint_seconds"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _number(name, getattr(self, name)))
        if not isinstance(self.pretrained, bool):
            raise SettingsError(f"pretrained: must be true or false, not {self.pretrained!r}.")
        self._check_ranges()

    def _check_ranges(self) -> None:
        _at_least("epochs", self.epochs, 1)
        # Batch normalization needs at least two images to compute a variance.
        _at_least("batch_size", self.batch_size, 2)
        _at_least("image_size", self.image_size, MIN_IMAGE_SIZE)
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
        if self.checkpoint_seconds < 0:
            raise SettingsError(
                f"checkpoint_seconds: must be 0 or above, not {self.checkpoint_seconds}."
            )
        if self.parallel != "experiments" and self.batch_size % self.processes:
            raise SettingsError(
                f"batch_size: {self.batch_size} images cannot be split evenly among "
                f"{self.processes} processes."
            )
        if self.weight_decay is not None and self.weight_decay < 0:
            raise SettingsError(f"weight_decay: must be 0 or above, not {self.weight_decay}.")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Settings:
        """Build settings from plain values. An error about an unknown name suggests a known one."""
        known = [entry.name for entry in fields(cls)]
        for name in parameters:
            if name not in known:
                raise SettingsError(f"{name}: no such parameter.{_suggestion(name, known)}")
        return cls(**parameters)

    @property
    def planned_experiments(self) -> tuple[Experiment, ...]:
        """The experiments of the run in order, one entry for each fold."""
        numbers = [None] if self.folds == 1 else list(range(1, self.folds + 1))
        return tuple(
            replace(Experiment.from_name(name), fold=number)
            for name in self.experiments
            for number in numbers
        )

    @property
    def resolved_recipe(self) -> Recipe:
        """The recipe with the learning rate and the weight decay of these settings, if given."""
        chosen = {name: getattr(self, name) for name in ("learning_rate", "weight_decay")}
        given = {name: value for name, value in chosen.items() if value is not None}
        return replace(RECIPES[self.recipe], **given)

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return every value that affects an experiment's result.

        Two runs with equal fields may share results. Left out: the other experiments, the time
        limit, the time between checkpoints, and the number of workers and processes. Batches do
        not depend on those, except a last batch that cannot be split evenly among the processes.
        Paths do not count either: data and weights are compared by their content (see
        `checkpoint.describe_changes`).
        """
        excluded = {
            "data_dir",
            "output_dir",
            "resume_dir",
            "experiments",
            "num_workers",
            "processes",
            "parallel",
            "max_hours",
            "checkpoint_seconds",
            *("recipe", "learning_rate", "weight_decay"),  # part of the resolved recipe below
        }
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in excluded}
        values["weights_dir"] = None if self.weights_dir is None else str(self.weights_dir)
        recipe = asdict(self.resolved_recipe)
        return values | {f"recipe.{name}": value for name, value in recipe.items()}


def renamed_values(parameters: Mapping[str, Any]) -> list[str]:
    """Describe each old name among valid parameters: `recipe: 'seed' is now called 'baseline'`."""
    notes = []
    recipe = parameters.get("recipe")
    if recipe in OLD_RECIPES:
        notes.append(f"recipe: {recipe!r} is now called {OLD_RECIPES[recipe]!r}.")
    for name in _split_names(parameters.get("experiments", ())):
        current = Experiment.from_name(name).base_name
        if current != name:
            notes.append(f"experiments: {name!r} is now called {current!r}.")
    return notes


def _path(name: str, value: Any) -> Path | None:
    if isinstance(value, str) and value.strip():
        return Path(value)
    if isinstance(value, Path) or (value is None and name in OPTIONAL_FOLDERS):
        return value
    if value == "" and name in OPTIONAL_FOLDERS:
        return None  # TOML has no null
    raise SettingsError(f"{name}: must be the path of a folder, not {value!r}.")


def _experiment_names(value: Any) -> tuple[str, ...]:
    """Validate names given as one comma-separated text or as a list of such texts."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise SettingsError(f"experiments: must be names of experiments, not {value!r}.")
    names = tuple(Experiment.from_name(name).base_name for name in _split_names(texts))
    if not names:
        raise SettingsError("experiments: name at least one, or omit it to run all four.")
    if len(set(names)) < len(names):
        raise SettingsError(f"experiments: name each one only once, not {', '.join(names)}.")
    return names


def _split_names(value: str | Sequence[str]) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def _number(name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise SettingsError(f"{name}: must be a finite number, not {value!r}.")
    return float(value)


def _at_least(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingsError(f"{name}: must be a whole number of at least {least}, not {value!r}.")
