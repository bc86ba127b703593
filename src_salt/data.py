"""Finding, checking and reading the competition's files.

The competition's folder holds train.csv, sample_submission.csv and the pictures, as the zips that
Kaggle mounts or unpacked:

    train.zip    images/<id>.png, masks/<id>.png   or  train/images, train/masks  or  images, masks
    test.zip     images/<id>.png                   or  test/images                or  images

Unpacked into one folder, train and test share `images/`; the ids of the two csv files tell them
apart. Nothing is ever written there, and every picture is read and checked before training begins:
4,000 pairs and 18,000 test images are 265 MB as bytes, held in memory once.
"""

from __future__ import annotations

import hashlib
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import pandas
import torch
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src_salt.config import SaltError, Settings
from src_salt.device import ALONE, Compute, Team
from src_salt.outputs import progress
from src_salt.transforms import (
    DRAWS,
    PICTURE_SIZE,
    Picture,
    applied,
    applied_to_image,
    augmented,
    augmented_batch,
    evaluation_transform,
    fitted,
    normalised,
    training_transform,
)

SEARCH_DEPTH = 2
"""Folders below data_dir in which the competition may lie (2026: input/competitions/<slug>)."""

MARKERS = ("train.csv", "sample_submission.csv")
"""Files by which the competition's folder is known."""

SPLIT_SEED = 42
VALIDATION_SHARE = 0.2

T = TypeVar("T")

Pictures = npt.NDArray[np.uint8]
"""Gray images or 0/1 masks, (N, 101, 101)."""

Pairs = DataLoader[tuple[Tensor, Tensor]]
"""Batches of images (B, 3, S, S) and masks (B, 1, S, S), float."""


class DataError(SaltError):
    """The competition's files are missing or broken; the message names the file."""


@dataclass(frozen=True)
class LabelledImages:
    """Training pictures in the order of their ids."""

    ids: tuple[str, ...]
    images: Pictures
    masks: Pictures

    def __len__(self) -> int:
        return len(self.ids)

    def taken(self, rows: Sequence[int]) -> LabelledImages:
        """The given rows, in the given order."""
        ids = tuple(self.ids[row] for row in rows)
        return LabelledImages(ids, self.images[list(rows)], self.masks[list(rows)])

    def fingerprint(self) -> str:
        """Digest of ids and pixels: equal only if the data are."""
        digest = hashlib.sha256("\n".join(self.ids).encode())
        digest.update(self.images.tobytes())
        digest.update(self.masks.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class TestImages:
    """Test pictures in the order of sample_submission.csv."""

    __test__ = False  # pytest would take the name for a test class

    ids: tuple[str, ...]
    images: Pictures

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Competition:
    """Everything of the competition that a run needs, read and checked."""

    labelled: LabelledImages
    test: TestImages
    sample_submission: Path


def load_competition(data_dir: Path) -> Competition:
    """Find the competition at or below `data_dir` and read all of it; DataError for any fault."""
    root = find_competition(data_dir)
    train_ids = read_ids(root / "train.csv")
    test_ids = read_ids(root / "sample_submission.csv")
    shared = sorted(set(train_ids) & set(test_ids))
    if shared:
        raise DataError(f"{root}: {_listed(shared)} in train.csv and sample_submission.csv alike.")
    return Competition(
        labelled=_read_labelled(root, sorted(train_ids), set(test_ids)),
        test=_read_test(root, test_ids),
        sample_submission=root / "sample_submission.csv",
    )


def load_labelled(data_dir: Path) -> LabelledImages:
    """The training pictures alone, read and checked as `load_competition` does."""
    root = find_competition(data_dir)
    test_ids = read_ids(root / "sample_submission.csv")
    return _read_labelled(root, sorted(read_ids(root / "train.csv")), set(test_ids))


def find_competition(data_dir: Path) -> Path:
    """The one folder with the competition's csv files, at most two levels below `data_dir`."""
    if not data_dir.is_dir():
        raise DataError(f"data_dir: there is no folder {data_dir}.")
    level = [data_dir]
    for _ in range(SEARCH_DEPTH + 1):
        found = [folder for folder in level if all((folder / name).is_file() for name in MARKERS)]
        if len(found) == 1:
            return found[0]
        if found:
            places = ", ".join(map(str, found))
            raise DataError(f"data_dir: several folders hold a competition, name one: {places}.")
        level = sorted(child for folder in level for child in folder.iterdir() if child.is_dir())
    raise DataError(
        f"data_dir: no folder with {' and '.join(MARKERS)} "
        f"in {data_dir} or {SEARCH_DEPTH} levels below."
    )


def read_ids(path: Path) -> list[str]:
    """The column `id` of a csv, in its order.

    Read as text: an id like `12e4567890` is a number to a csv reader that guesses.
    """
    try:
        table = pandas.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"{path}: cannot be read as csv: {error}") from error
    if "id" not in table.columns:
        raise DataError(f"{path}: has no column 'id', only {', '.join(map(str, table.columns))}.")
    ids: list[str] = table["id"].tolist()
    if not ids or "" in ids:
        raise DataError(f"{path}: {'a row has no id' if ids else 'has no rows'}.")
    repeated = sorted(table["id"][table["id"].duplicated()].unique())
    if repeated:
        raise DataError(f"{path}: {_listed(repeated)} more than once.")
    return ids


def _listed(names: Sequence[str]) -> str:
    """The first few names and how many more: `id a, b, c and 7 more`."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


# --- where the pictures lie ---------------------------------------------------------------------


@dataclass(frozen=True)
class PictureFolder:
    """PNG files by id, in a folder or in a zip's folder, and how to read one."""

    where: str
    entries: dict[str, str]  # id -> file name
    read: Callable[[str], bytes]  # by id

    def name(self, picture_id: str) -> str:
        """The file's full name, for a message."""
        return f"{self.where}/{self.entries.get(picture_id, picture_id + '.png')}"


def _open_folder(folder: Path) -> PictureFolder:
    paths = {path.stem: path for path in sorted(folder.glob("*.png")) if path.name[0] != "."}
    entries = {picture_id: path.name for picture_id, path in paths.items()}
    return PictureFolder(str(folder), entries, lambda picture_id: paths[picture_id].read_bytes())


def _open_zip_folder(path: Path, folder: str) -> PictureFolder:
    """The PNG files of one folder at the zip's root."""
    archive = _open_zip(path)
    entries: dict[str, str] = {}
    for name in archive.namelist():
        entry = PurePosixPath(name)
        if str(entry.parent) != folder or entry.suffix != ".png" or entry.name[0] == ".":
            continue
        if entry.stem in entries:
            raise DataError(f"{path}: holds {name} twice.")
        entries[entry.stem] = entry.name
    return PictureFolder(
        f"{path}/{folder}",
        entries,
        lambda picture_id: archive.read(f"{folder}/{entries[picture_id]}"),
    )


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be opened as a zip: {error}") from error


def _locate(root: Path, side: str, kind: str) -> tuple[PictureFolder, bool]:
    """Pictures of a side (train, test) and kind (images, masks); True if the sides share them."""
    if (root / f"{side}.zip").is_file():
        return _open_zip_folder(root / f"{side}.zip", kind), False
    for folder, shared in ((root / side / kind, False), (root / kind, True)):
        if folder.is_dir():
            return _open_folder(folder), shared
    raise DataError(f"{root}: has neither {side}.zip nor a folder {side}/{kind} or {kind}.")


# --- reading and checking -----------------------------------------------------------------------


def _read_labelled(root: Path, ids: Sequence[str], test_ids: set[str]) -> LabelledImages:
    images, images_shared = _locate(root, "train", "images")
    masks, _ = _locate(root, "train", "masks")
    image_ids = set(images.entries) - (test_ids if images_shared else set())
    _require(images, sorted(set(masks.entries) - image_ids), "mask without image")
    _require(masks, sorted(image_ids - set(masks.entries)), "image without mask")
    _require(images, [i for i in ids if i not in image_ids], "id of train.csv without image")
    return LabelledImages(
        tuple(ids),
        _read_pictures(images, ids, _gray_image, "train images"),
        _read_pictures(masks, ids, _binary_mask, "train masks"),
    )


def _read_test(root: Path, ids: Sequence[str]) -> TestImages:
    images, _ = _locate(root, "test", "images")
    missing = [i for i in ids if i not in images.entries]
    _require(images, missing, "id of sample_submission.csv without image")
    return TestImages(tuple(ids), _read_pictures(images, ids, _gray_image, "test images"))


def _require(pictures: PictureFolder, missing: Sequence[str], fault: str) -> None:
    if missing:
        names = _listed([pictures.name(picture_id) for picture_id in missing])
        raise DataError(f"{fault}: there is no {names}.")


def _read_pictures(
    source: PictureFolder, ids: Sequence[str], convert: Callable[[Picture], Picture], title: str
) -> Pictures:
    """Every picture decoded, checked and converted: (N, 101, 101) of bytes."""
    pictures = np.empty((len(ids), PICTURE_SIZE, PICTURE_SIZE), np.uint8)
    for row, picture_id in enumerate(progress(ids, title)):
        try:
            pictures[row] = convert(_decode(source.read(picture_id)))
        except (ValueError, OSError, zipfile.BadZipFile, zlib.error, cv2.error) as error:
            raise DataError(f"{source.name(picture_id)}: {error}") from error
    return pictures


def _decode(content: bytes) -> npt.NDArray[Any]:
    """The pixels as the file has them: masks are 16-bit, and 8 bits would still do for `> 0`."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("corrupt, it cannot be decoded as a picture")
    if pixels.shape[:2] != (PICTURE_SIZE, PICTURE_SIZE):
        height, width = pixels.shape[:2]
        raise ValueError(f"is {width}x{height} pixels, not {PICTURE_SIZE}x{PICTURE_SIZE}")
    return pixels


def _gray_image(pixels: npt.NDArray[Any]) -> Picture:
    if pixels.dtype != np.uint8:
        raise ValueError(f"has {pixels.dtype} pixels; images have 8 bits")
    return _one_channel(pixels)


def _binary_mask(pixels: npt.NDArray[Any]) -> Picture:
    return (_one_channel(pixels) > 0).astype(np.uint8)


def _one_channel(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(101, 101) of a picture whose channels are all the same."""
    if pixels.ndim == 2:
        return pixels
    if (pixels != pixels[..., :1]).any():
        raise ValueError("has channels that differ; the competition's pictures are gray")
    return pixels[..., 0]


def coverage_classes(masks: Pictures) -> npt.NDArray[np.int64]:
    """0 for an empty mask (N, 101, 101), else the tenth of the picture it covers, 1 to 10: (N,)."""
    covered = masks.mean(axis=(1, 2))
    classes: npt.NDArray[np.int64] = np.ceil(covered * 10).astype(np.int64)
    return classes


# --- split, datasets, loaders -------------------------------------------------------------------


def split(
    labelled: LabelledImages, settings: Settings, fold: int | None = None
) -> tuple[LabelledImages, LabelledImages]:
    """80% to train, 20% to validate: scikit-learn's split with seed 42 over the sorted ids.

    With a fold (from 1) that part of `settings.folds` validates, and each has about the same share
    of every coverage. The split does not move with the run's seed. The limits then take the first
    rows of each side; without folds these come in a random order.
    """
    if len(labelled) < 4:
        raise DataError(f"train.csv: {len(labelled)} images are too few to split; 4 are needed.")
    if fold is None:
        train, validation = train_test_split(
            range(len(labelled)), test_size=VALIDATION_SHARE, random_state=SPLIT_SEED
        )
    else:
        folds = StratifiedKFold(settings.folds, shuffle=True, random_state=SPLIT_SEED)
        with warnings.catch_warnings():
            # A class smaller than the number of folds is not a fault here.
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            try:
                parts = list(folds.split(labelled.images, coverage_classes(labelled.masks)))
            except ValueError as error:  # scikit-learn's words: no class has an image for each
                raise DataError(f"train.csv: too few images for the folds. {error}") from error
        train, validation = (rows.tolist() for rows in parts[fold - 1])
    return (
        labelled.taken(train[: settings.limit_train]),
        labelled.taken(validation[: settings.limit_val]),
    )


class ImageDataset(Dataset[Tensor]):
    """Images alone, at the network's size."""

    def __init__(self, images: Pictures, size: int) -> None:
        self.images = images
        self.transform = evaluation_transform(size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return applied_to_image(self.transform, self.images[index])


class EvaluationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and masks as they are, at the network's size."""

    def __init__(self, labelled: LabelledImages, size: int) -> None:
        self.labelled = labelled
        self.transform = evaluation_transform(size)

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return applied(self.transform, self.labelled.images[index], self.labelled.masks[index])


class TrainingDataset(Dataset[tuple[Tensor, Tensor]]):
    """Augmented images and masks. Its index is a pair that `ShuffledDraws` makes."""

    def __init__(self, labelled: LabelledImages, size: int) -> None:
        self.labelled = labelled
        self.transform = training_transform(size)

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = draw
        image, mask = self.labelled.images[index], self.labelled.masks[index]
        return augmented(self.transform, image, mask, seed)


class ShuffledDraws(Sampler[tuple[int, int]]):
    """Every index once an epoch, in random order, each with the seed of its augmentation.

    Drawn in the main process, so a batch is the same however many workers there are.
    """

    def __init__(self, length: int, seed: int, batch_size: int, team: Team) -> None:
        self.length, self.batch_size, self.team = length, batch_size, team
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.team.share(torch.arange(self.length), self.batch_size, fill=False))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.randperm(self.length, generator=self.generator)
        seeds = torch.randint(2**62, (self.length,), generator=self.generator)
        draws = torch.stack([order, seeds], dim=1)
        return iter(self.team.share(draws, self.batch_size, fill=False).tolist())


def training_loader(labelled: LabelledImages, settings: Settings, team: Team = ALONE) -> Pairs:
    """Shuffled and augmented batches, the same in every run with the same seed."""
    dataset = TrainingDataset(labelled, settings.image_size)
    # A last batch of a single image has no variance for batch normalisation to divide by.
    lonely = len(dataset) % settings.batch_size == 1
    draws = ShuffledDraws(len(dataset), settings.seed, settings.batch_size, team)
    return _loader(dataset, settings, team, sampler=draws, drop_last=lonely)


def evaluation_loader(labelled: LabelledImages, settings: Settings, team: Team = ALONE) -> Pairs:
    """Batches in the order of the rows, unaugmented."""
    dataset = EvaluationDataset(labelled, settings.image_size)
    rows = team.share(torch.arange(len(dataset)), settings.batch_size, fill=True)
    return _loader(dataset, settings, team, sampler=rows.tolist())


def image_loader(images: Pictures, settings: Settings) -> DataLoader[Tensor]:
    """Batches of images (B, 3, S, S) in the order of the rows, made in this process.

    To resize and normalise takes far less than the network does, and a worker that dies would take
    a trained run's submission along.
    """
    alone = replace(settings, num_workers=0)
    return _loader(ImageDataset(images, settings.image_size), alone, ALONE)


def _loader(dataset: Dataset[T], settings: Settings, team: Team, **options: Any) -> DataLoader[T]:
    return DataLoader(
        dataset,
        batch_size=settings.batch_size // team.size,
        num_workers=settings.num_workers,
        persistent_workers=settings.num_workers > 0,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        # Its own generator, so that making batches takes nothing from the global random state.
        generator=torch.Generator().manual_seed(settings.seed),
        **options,
    )


def is_dead_worker(error: Exception) -> bool:
    """Whether a process of a loader is gone: noticed by PyTorch, or met while it hands over."""
    return isinstance(error, ConnectionError | EOFError) or "DataLoader worker" in str(error)


def _start_worker(_worker_id: int) -> None:
    """Workers are the parallelism: OpenCV's own threads inside each would only compete."""
    cv2.setNumThreads(0)


# --- batches on the device ----------------------------------------------------------------------


class DeviceBatches:
    """Batches of images (B, 3, S, S) and masks (B, 1, S, S) from bytes that lie on the device.

    The data set is brought to the network's size and copied there once: 4,000 pairs of 128x128
    take 131 MB. An epoch's order and random numbers are drawn together on the CPU, so they do not
    depend on the device, and nothing within the epoch waits for it.
    """

    def __init__(
        self,
        labelled: LabelledImages,
        settings: Settings,
        compute: Compute,
        team: Team,
        augmentation: str | None = None,
    ) -> None:
        size, fit = settings.image_size, settings.training.fit
        images = fitted(labelled.images, size, fit)
        masks = fitted(labelled.masks, size, fit, nearest=True)
        self.images = torch.from_numpy(images).to(compute.device)
        self.masks = torch.from_numpy(masks).to(compute.device)
        self.batch_size, self.team = settings.batch_size, team
        self.augmentation = augmentation
        self.generator = torch.Generator().manual_seed(settings.seed)

    def __len__(self) -> int:
        return -(-self._count() // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.augmentation is None:
            for rows in self._shares(torch.arange(self._count()), fill=True):
                yield self._batch(self.images[rows].float(), self.masks[rows].float())
            return
        order = torch.randperm(len(self.images), generator=self.generator)[: self._count()]
        draws = torch.rand((len(self.images), DRAWS), generator=self.generator)
        draws = draws.to(self.images.device)
        for rows in self._shares(order, fill=False):
            both = augmented_batch(
                self.images[rows], self.masks[rows], draws[rows], self.augmentation
            )
            yield self._batch(both[:, 0], both[:, 1])

    def _shares(self, rows: Tensor, fill: bool) -> Sequence[Tensor]:
        """This process's rows of each batch, on the device."""
        mine = self.team.share(rows, self.batch_size, fill).to(self.images.device)
        return torch.split(mine, self.batch_size // self.team.size)

    def _batch(self, pixels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        inputs = normalised(pixels).contiguous(memory_format=torch.channels_last)
        return inputs, masks[:, None]

    def _count(self) -> int:
        """Images of an epoch; a lonely last one has no variance to be normalised by."""
        lonely = self.augmentation is not None and len(self.images) % self.batch_size == 1
        return len(self.images) - lonely
