"""Reading and checking the competition's files; split, datasets and data loaders.

The competition's folder contains train.csv, sample_submission.csv and the images, either in the zip
files that Kaggle mounts or unpacked:

    train.zip    images/<id>.png, masks/<id>.png   or  train/images, train/masks  or  images, masks
    test.zip     images/<id>.png                   or  test/images                or  images

A zip may contain the folders at its root or, once, further down. If both are unpacked into one
folder, train and test share `images/`, and the ids in the two csv files separate them. Nothing is
written to the folder. Every image is read and checked before training begins: 4,000 pairs and
18,000 test images take 265 MB of memory.
"""

from __future__ import annotations

import errno
import warnings
import zipfile
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

from src_salt.config import SaltError, Settings, first_line
from src_salt.device import SINGLE_PROCESS, Compute, DistributedContext
from src_salt.outputs import progress, sha256
from src_salt.transforms import (
    DRAWS,
    IMAGE_SIZE,
    Image,
    apply_to_image,
    apply_to_pair,
    augment,
    augment_batch,
    evaluation_transform,
    normalize,
    resize_to_input,
    training_transform,
)

MAX_FILE_SIZE = 10 << 20
"""In bytes. An image of 101x101 pixels takes at most 41 kB."""

SEARCH_DEPTH = 2
"""Levels below data_dir that are searched (Kaggle in 2026: input/competitions/<slug>)."""

MARKERS = ("train.csv", "sample_submission.csv")
"""Files that identify the competition's folder."""

CANNOT_START = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Error numbers of a fork without memory, processes or file handles for another process."""

SPLIT_SEED = 42
VALIDATION_SHARE = 0.2

T = TypeVar("T")

Images = npt.NDArray[np.uint8]
"""Gray images or 0/1 masks, (N, 101, 101)."""

PairLoader = DataLoader[tuple[Tensor, Tensor]]
"""Yields batches of images (B, 3, S, S) and masks (B, 1, S, S), float."""


class DataError(SaltError):
    """The competition's files are missing or broken; the message names the file."""


@dataclass(frozen=True)
class LabelledImages:
    """Training images and masks, sorted by id when they come from the competition."""

    ids: tuple[str, ...]
    images: Images
    masks: Images

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, rows: Sequence[int]) -> LabelledImages:
        """Return the given rows in the given order."""
        ids = tuple(self.ids[row] for row in rows)
        return LabelledImages(ids, self.images[list(rows)], self.masks[list(rows)])

    def fingerprint(self) -> str:
        """Return the SHA-256 of ids and pixels."""
        return sha256("\n".join(self.ids).encode(), self.images.tobytes(), self.masks.tobytes())


@dataclass(frozen=True)
class TestImages:
    """Test images in the order of sample_submission.csv."""

    __test__ = False  # for pytest: this is not a test class

    ids: tuple[str, ...]
    images: Images

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Competition:
    """The competition's data, read and checked."""

    labelled: LabelledImages
    test: TestImages
    sample_submission: Path


def load_competition(data_dir: Path) -> Competition:
    """Find the competition in or below `data_dir` and read all of it.

    Raises:
        DataError: a file is missing or broken.
    """
    root = find_competition(data_dir)
    train_ids = read_ids(root / "train.csv")
    test_ids = read_ids(root / "sample_submission.csv")
    shared = sorted(set(train_ids) & set(test_ids))
    if shared:
        raise DataError(f"{root}: {_shorten(shared)} in both train.csv and sample_submission.csv.")
    return Competition(
        labelled=_read_labelled(root, sorted(train_ids), set(test_ids)),
        test=_read_test(root, test_ids),
        sample_submission=root / "sample_submission.csv",
    )


def load_labelled(data_dir: Path) -> LabelledImages:
    """Read and check the training data only; errors as in `load_competition`."""
    root = find_competition(data_dir)
    test_ids = read_ids(root / "sample_submission.csv")
    return _read_labelled(root, sorted(read_ids(root / "train.csv")), set(test_ids))


def find_competition(data_dir: Path) -> Path:
    """Return the one folder with the competition's csv files, at most two levels below.

    Raises:
        DataError: there is no such folder, or more than one.
    """
    if not data_dir.is_dir():
        raise DataError(f"data_dir: there is no folder {data_dir}.")
    level = [data_dir]
    for _ in range(SEARCH_DEPTH + 1):
        found = [folder for folder in level if all((folder / name).is_file() for name in MARKERS)]
        if len(found) == 1:
            return found[0]
        if found:
            paths = ", ".join(map(str, found))
            raise DataError(f"data_dir: several folders contain the data; choose one: {paths}.")
        level = sorted(child for folder in level for child in folder.iterdir() if child.is_dir())
    raise DataError(
        f"data_dir: no folder with {' and '.join(MARKERS)} "
        f"in {data_dir} or up to {SEARCH_DEPTH} levels below."
    )


def read_ids(path: Path) -> list[str]:
    """Return the column `id` of a csv file, in the file's order.

    Ids are read as text: type detection would turn an id such as `12e4567890` into a number.

    Raises:
        DataError: the file cannot be read, or an id is missing or appears twice.
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
        raise DataError(f"{path}: {_shorten(repeated)} appears more than once.")
    return ids


def _shorten(names: Sequence[str]) -> str:
    """Join the first three names, and count the rest: `a, b, c and 7 more`."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


# --- image folders ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageFolder:
    """The PNG files of a folder, which may be inside a zip file."""

    where: str
    entries: dict[str, str]  # id -> file name
    read: Callable[[str], bytes]  # id -> content of the file

    def name(self, image_id: str) -> str:
        """Return a file's full name for an error message."""
        return f"{self.where}/{self.entries.get(image_id, image_id + '.png')}"


def _open_folder(folder: Path) -> ImageFolder:
    paths = {
        path.stem: path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() == ".png" and path.name[0] != "."
    }
    entries = {image_id: path.name for image_id, path in paths.items()}
    return ImageFolder(str(folder), entries, lambda image_id: paths[image_id].read_bytes())


def _open_zip_folder(path: Path, kind: str) -> ImageFolder:
    """Open the folder `images` or `masks` (`kind`) of a zip file."""
    archive = _open_zip(path)
    folders: dict[PurePosixPath, dict[str, zipfile.ZipInfo]] = {}
    for info in archive.infolist():
        # Some programs write `./images/a.png` or `images\\a.png`.
        entry = PurePosixPath(info.filename.replace("\\", "/"))
        hidden = "__MACOSX" in entry.parts or ".." in entry.parts or entry.name[:1] == "."
        if hidden or entry.suffix.lower() != ".png" or entry.parent.name != kind:
            continue
        members = folders.setdefault(entry.parent, {})
        if entry.stem in members:
            raise DataError(f"{path}: contains {entry} twice.")
        members[entry.stem] = info
    if not folders:
        found = _shorten(archive.namelist()) or "nothing"
        raise DataError(f"{path}: contains no folder {kind} with PNG files, only {found}.")
    folder, *others = sorted(folders, key=lambda found: len(found.parts))
    if others and len(others[0].parts) == len(folder.parts):
        found = _shorten(sorted(map(str, folders)))
        raise DataError(f"{path}: contains several folders {kind}: {found}. Keep one.")
    members = folders[folder]
    return ImageFolder(
        f"{path}/{folder}",
        {image_id: PurePosixPath(info.filename).name for image_id, info in members.items()},
        lambda image_id: _read_member(archive, members[image_id]),
    )


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a damaged file makes zipfile raise almost any exception
        try:
            with path.open("rb") as file:
                start = f" It begins with {file.read(24)!r}."
        except OSError:
            start = ""
        raise DataError(
            f"{path}: cannot be opened as a zip: {first_line(error)}.{start} Download it again."
        ) from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Read a member of a zip file; ValueError says why that is not possible."""
    if info.flag_bits & 1:
        raise ValueError("is encrypted. Pack the zip without a password")
    try:
        with archive.open(info) as member:
            content = member.read(MAX_FILE_SIZE + 1)
    except NotImplementedError as error:
        raise ValueError(
            f"is compressed by a method (number {info.compress_type}) that Python cannot read. "
            "Pack the zip with the usual method, deflate"
        ) from error
    except Exception as error:  # each compression method has exceptions of its own
        raise ValueError(f"is damaged in the zip ({first_line(error)})") from error
    if len(content) > MAX_FILE_SIZE:
        raise ValueError(f"has more than {MAX_FILE_SIZE >> 20} MB")
    return content


def _find_images(root: Path, side: str, kind: str) -> tuple[ImageFolder, bool]:
    """Find images or masks (`kind`) of train or test (`side`).

    Also return whether train and test share the folder.
    """
    packed = root / f"{side}.zip"
    if packed.is_file():
        return _open_zip_folder(packed, kind), False
    unpacked = ((packed / kind, False), (root / side / kind, False), (root / kind, True))
    for folder, shared in unpacked:
        if folder.is_dir():
            return _open_folder(folder), shared
    raise DataError(f"{root}: contains neither {side}.zip nor a folder {side}/{kind} or {kind}.")


# --- reading and checking -----------------------------------------------------------------------


def _read_labelled(root: Path, ids: Sequence[str], test_ids: set[str]) -> LabelledImages:
    images, images_shared = _find_images(root, "train", "images")
    masks, _ = _find_images(root, "train", "masks")
    image_ids = set(images.entries) - (test_ids if images_shared else set())
    _require(images, sorted(set(masks.entries) - image_ids), "mask without image")
    _require(masks, sorted(image_ids - set(masks.entries)), "image without mask")
    _require(images, [i for i in ids if i not in image_ids], "id of train.csv without image")
    return LabelledImages(
        tuple(ids),
        _read_images(images, ids, _to_gray_image, "train images"),
        _read_images(masks, ids, _to_binary_mask, "train masks"),
    )


def _read_test(root: Path, ids: Sequence[str]) -> TestImages:
    images, _ = _find_images(root, "test", "images")
    missing = [i for i in ids if i not in images.entries]
    _require(images, missing, "id of sample_submission.csv without image")
    return TestImages(tuple(ids), _read_images(images, ids, _to_gray_image, "test images"))


def _require(folder: ImageFolder, missing: Sequence[str], problem: str) -> None:
    if missing:
        names = _shorten([folder.name(image_id) for image_id in missing])
        raise DataError(f"{problem}: there is no {names}.")


def _read_images(
    source: ImageFolder, ids: Sequence[str], convert: Callable[[Image], Image], title: str
) -> Images:
    """Read, check and convert the images of these ids, (N, 101, 101) bytes."""
    images = np.empty((len(ids), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for row, image_id in enumerate(progress(ids, title)):
        try:
            images[row] = convert(_decode(source.read(image_id)))
        except (ValueError, OSError, cv2.error) as error:
            raise DataError(f"{source.name(image_id)}: {first_line(error)}.") from error
    return images


def _decode(content: bytes) -> npt.NDArray[Any]:
    """Decode a PNG file without converting its pixels; the competition's masks have 16 bits."""
    if not content:
        raise ValueError("is empty")
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("is corrupt and cannot be decoded as an image")
    if pixels.shape[:2] != (IMAGE_SIZE, IMAGE_SIZE):
        height, width = pixels.shape[:2]
        raise ValueError(f"is {width}x{height} pixels, not {IMAGE_SIZE}x{IMAGE_SIZE}")
    return pixels


def _to_gray_image(pixels: npt.NDArray[Any]) -> Image:
    if pixels.dtype != np.uint8:
        raise ValueError(f"has {pixels.dtype} pixels, but images have 8 bits")
    return _to_one_channel(pixels)


def _to_binary_mask(pixels: npt.NDArray[Any]) -> Image:
    return (_to_one_channel(pixels) > 0).astype(np.uint8)


def _to_one_channel(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return one channel (101, 101) of an image with equal channels."""
    if pixels.ndim == 2:
        return pixels
    if (pixels != pixels[..., :1]).any():
        raise ValueError("has channels that differ, but the competition's images are gray")
    return pixels[..., 0]


def coverage_classes(masks: Images) -> npt.NDArray[np.int64]:
    """Classify masks (N, 101, 101) by coverage: 0 if empty, otherwise the tenth, 1 to 10: (N,)."""
    covered = masks.mean(axis=(1, 2))
    classes: npt.NDArray[np.int64] = np.ceil(covered * 10).astype(np.int64)
    return classes


# --- split, datasets, loaders -------------------------------------------------------------------


def split(
    labelled: LabelledImages, settings: Settings, fold: int | None = None
) -> tuple[LabelledImages, LabelledImages]:
    """Split into training and validation images, independent of the run's seed.

    Without a fold, scikit-learn splits the sorted ids 80:20 with seed 42, in random order. With a
    fold (from 1), that part of `settings.folds` is for validation, stratified by coverage. Then
    `limit_train` and `limit_val` keep the first rows of each part.

    Raises:
        DataError: there are too few images.
    """
    if len(labelled) < 4:
        raise DataError(f"train.csv: {len(labelled)} images are too few to split. Provide 4.")
    if fold is None:
        train, validation = train_test_split(
            range(len(labelled)), test_size=VALIDATION_SHARE, random_state=SPLIT_SEED
        )
    else:
        folds = StratifiedKFold(settings.folds, shuffle=True, random_state=SPLIT_SEED)
        with warnings.catch_warnings():
            # A class with fewer images than folds is allowed.
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            try:
                parts = list(folds.split(labelled.images, coverage_classes(labelled.masks)))
            except ValueError as error:  # no class has enough images; scikit-learn explains it
                raise DataError(f"train.csv: too few images for the folds. {error}") from error
        train, validation = (rows.tolist() for rows in parts[fold - 1])
    return (
        labelled.subset(train[: settings.limit_train]),
        labelled.subset(validation[: settings.limit_val]),
    )


class ImageDataset(Dataset[Tensor]):
    """Images without masks, at the network's input size."""

    def __init__(self, images: Images, size: int) -> None:
        self.images = images
        self.transform = evaluation_transform(size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return apply_to_image(self.transform, self.images[index])


class EvaluationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and masks without augmentation, at the network's input size."""

    def __init__(self, labelled: LabelledImages, size: int) -> None:
        self.labelled = labelled
        self.transform = evaluation_transform(size)

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return apply_to_pair(
            self.transform, self.labelled.images[index], self.labelled.masks[index]
        )


class TrainingDataset(Dataset[tuple[Tensor, Tensor]]):
    """Augmented images and masks. The index is a pair (row, seed) from `ShuffleSampler`."""

    def __init__(self, labelled: LabelledImages, size: int) -> None:
        self.labelled = labelled
        self.transform = training_transform(size)

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = draw
        image, mask = self.labelled.images[index], self.labelled.masks[index]
        return augment(self.transform, image, mask, seed)


class ShuffleSampler(Sampler[tuple[int, int]]):
    """Yields every row once per epoch in random order, each with a seed for its augmentation.

    The main process draws the seeds, so batches do not depend on the number of workers.
    """

    def __init__(
        self, length: int, seed: int, batch_size: int, context: DistributedContext
    ) -> None:
        self.length, self.batch_size, self.context = length, batch_size, context
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.context.shard(torch.arange(self.length), self.batch_size, fill=False))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.randperm(self.length, generator=self.generator)
        seeds = torch.randint(2**62, (self.length,), generator=self.generator)
        draws = torch.stack([order, seeds], dim=1)
        return iter(self.context.shard(draws, self.batch_size, fill=False).tolist())


def training_loader(
    labelled: LabelledImages, settings: Settings, context: DistributedContext = SINGLE_PROCESS
) -> PairLoader:
    """Return shuffled and augmented batches; equal seeds give equal batches."""
    dataset = TrainingDataset(labelled, settings.image_size)
    # Batch normalization may not be able to compute a variance from a last batch of one image.
    single = len(dataset) % settings.batch_size == 1
    draws = ShuffleSampler(len(dataset), settings.seed, settings.batch_size, context)
    return _loader(dataset, settings, context, sampler=draws, drop_last=single)


def evaluation_loader(
    labelled: LabelledImages, settings: Settings, context: DistributedContext = SINGLE_PROCESS
) -> PairLoader:
    """Return batches without augmentation, in the order of the rows."""
    dataset = EvaluationDataset(labelled, settings.image_size)
    rows = context.shard(torch.arange(len(dataset)), settings.batch_size, fill=True)
    return _loader(dataset, settings, context, sampler=rows.tolist())


def image_loader(images: Images, settings: Settings) -> DataLoader[Tensor]:
    """Return batches of images (B, 3, S, S) in order, without worker processes.

    Resizing and normalizing takes far less time than the network, and without workers none can die
    between training and the submission.
    """
    without_workers = replace(settings, num_workers=0)
    return _loader(ImageDataset(images, settings.image_size), without_workers, SINGLE_PROCESS)


def _loader(
    dataset: Dataset[T], settings: Settings, context: DistributedContext, **options: Any
) -> DataLoader[T]:
    return DataLoader(
        dataset,
        batch_size=settings.batch_size // context.world_size,
        num_workers=settings.num_workers,
        persistent_workers=settings.num_workers > 0,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        # Its own generator, so that making batches does not change the global random state.
        generator=torch.Generator().manual_seed(settings.seed),
        **options,
    )


def is_worker_failure(error: Exception) -> bool:
    """Whether a worker process of a data loader ended or cannot be started.

    A broken connection is also a sign of it.
    """
    if isinstance(error, OSError) and error.errno in CANNOT_START:
        return True
    return isinstance(error, ConnectionError | EOFError) or "DataLoader worker" in str(error)


def _start_worker(_worker_id: int) -> None:
    """Turn off OpenCV's threads: the workers already use all cores."""
    cv2.setNumThreads(0)


# --- batches on the device ----------------------------------------------------------------------


class DeviceBatches:
    """Batches of images (B, 3, S, S) and masks (B, 1, S, S), made on the device.

    The data set is resized and copied to the device once, as bytes: 4,000 pairs of 128x128 take
    131 MB. Order and random numbers of an epoch are drawn on the CPU at its start, so they do not
    depend on the device, and the epoch does not wait for further copies.
    """

    def __init__(
        self,
        labelled: LabelledImages,
        settings: Settings,
        compute: Compute,
        context: DistributedContext,
        augmentation: str | None = None,
    ) -> None:
        size, fit = settings.image_size, settings.resolved_recipe.fit
        images = resize_to_input(labelled.images, size, fit)
        masks = resize_to_input(labelled.masks, size, fit, nearest=True)
        self.images = torch.from_numpy(images).to(compute.device)
        self.masks = torch.from_numpy(masks).to(compute.device)
        self.batch_size, self.context = settings.batch_size, context
        self.augmentation = augmentation
        self.generator = torch.Generator().manual_seed(settings.seed)

    def __len__(self) -> int:
        return -(-self._count() // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.augmentation is None:
            for rows in self._shards(torch.arange(self._count()), fill=True):
                yield self._batch(self.images[rows].float(), self.masks[rows].float())
            return
        order = torch.randperm(len(self.images), generator=self.generator)[: self._count()]
        draws = torch.rand((len(self.images), DRAWS), generator=self.generator)
        draws = draws.to(self.images.device)
        for rows in self._shards(order, fill=False):
            both = augment_batch(
                self.images[rows], self.masks[rows], draws[rows], self.augmentation
            )
            yield self._batch(both[:, 0], both[:, 1])

    def _shards(self, rows: Tensor, fill: bool) -> Sequence[Tensor]:
        """Return this process's rows of each batch, on the device."""
        shard = self.context.shard(rows, self.batch_size, fill).to(self.images.device)
        return torch.split(shard, self.batch_size // self.context.world_size)

    def _batch(self, pixels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        inputs = normalize(pixels).contiguous(memory_format=torch.channels_last)
        return inputs, masks[:, None]

    def _count(self) -> int:
        """Return the images per epoch. Training leaves out a last batch of one image.

        Batch normalization may not be able to compute a variance from it.
        """
        single = self.augmentation is not None and len(self.images) % self.batch_size == 1
        return len(self.images) - single
