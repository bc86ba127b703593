"""submission.csv: run-length encoding both ways, and the check of the file.

A mask is written as `start length start length …`: pixels are counted from 1, down each column and
then column by column from the left; runs are sorted and do not touch. An empty mask is blank.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from src_salt.config import SaltError
from src_salt.outputs import whole

Mask = npt.NDArray[np.bool_]
"""(H, W)."""

Masks = npt.NDArray[np.bool_]
"""(N, H, W)."""

HEADER = ["id", "rle_mask"]

BATCH_SIZE = 256
"""Masks that are encoded and checked together: several times as fast as one by one."""

NUMBER = "[0-9]{1,9}"
PAIRS = re.compile(f"(?:{NUMBER} {NUMBER}(?: {NUMBER} {NUMBER})*)?")


class SubmissionError(SaltError):
    """A run-length text or a submission file that the competition would not accept."""


def encode(mask: Mask) -> str:
    """The run-length text of a mask."""
    return encode_all(mask[None])[0]


def encode_all(masks: Masks) -> list[str]:
    """The run-length text of each mask."""
    count, height, width = masks.shape
    # A zero at both ends of a picture closes its outer runs, so none goes on into the next one.
    pixels = np.zeros((count, height * width + 2), np.bool_)
    pixels[:, 1:-1] = masks.transpose(0, 2, 1).reshape(count, height * width)
    flat = pixels.ravel()
    # Starts and first pixels after, in turn: every picture has as many of the one as of the other.
    rows, numbers = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), pixels.shape[1])
    numbers[::2] += 1
    numbers[1::2] -= numbers[::2] - 1
    words = _words(height * width)[numbers].tolist()
    ends = np.bincount(rows, minlength=count).cumsum().tolist()
    return [" ".join(words[start:end]) for start, end in pairwise([0, *ends])]


@cache
def _words(size: int) -> npt.NDArray[Any]:
    """Every number of a picture of that many pixels as text: to look it up is quicker."""
    return np.array([str(number) for number in range(size + 1)], dtype=object)


def decode(rle: str, shape: tuple[int, int]) -> Mask:
    """The mask of a run-length text; SubmissionError where it is not legal for that shape."""
    mask: Mask = decode_all([rle], shape)[0]
    return mask


def decode_all(texts: Sequence[str], shape: tuple[int, int]) -> Masks:
    """The mask of each run-length text; SubmissionError where one is not legal for that shape."""
    height, width = shape
    size = height * width
    edges = np.concatenate([[0], _runs(texts, size).ravel(), [len(texts) * size]])
    lengths = np.diff(edges)  # of what lies between the runs, and of the runs, in turn
    pixels: Masks = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return pixels.reshape(len(texts), width, height).transpose(0, 2, 1)


def _runs(texts: Sequence[str], size: int) -> npt.NDArray[np.int64]:
    """Runs as half-open ranges (R, 2), proven sorted, apart and each within its picture.

    Counted from 0, the pictures of `size` pixels one after another.
    """
    plain = [rle if PAIRS.fullmatch(rle) else _plain(rle) for rle in texts]
    words = " ".join(filter(None, plain))
    # The quickest reader of numbers there is, though of no words at all it makes one number.
    flat = np.fromstring(words, np.int64, sep=" ") if words else np.empty(0, np.int64)
    numbers = flat.reshape(-1, 2)
    pictures = np.repeat(np.arange(len(plain)), [(rle.count(" ") + 1) // 2 for rle in plain])
    runs: npt.NDArray[np.int64] = np.stack([numbers[:, 0] - 1, numbers.sum(axis=1) - 1], axis=1)
    wrong = (numbers == 0).any(axis=1) | (runs[:, 1] > size)
    wrong[1:] |= (pictures[1:] == pictures[:-1]) & (runs[1:, 0] < runs[:-1, 1])
    if wrong.any():
        rle = texts[pictures[wrong.argmax()]]
        raise SubmissionError(
            f"run-length text {rle[:40]!r} is not sorted, overlaps or leaves the {size} pixels."
        )
    runs += pictures[:, None] * size
    return runs


def _plain(rle: str) -> str:
    """The same with single blanks; SubmissionError where it is not pairs of numbers."""
    plain = " ".join(rle.split())
    if not PAIRS.fullmatch(plain):
        raise SubmissionError(f"run-length text {rle[:40]!r} is not pairs of whole numbers.")
    return plain


def write_submission(
    path: Path, ids: Sequence[str], masks: Iterable[Mask], sample_submission: Path
) -> None:
    """Write `id,rle_mask`, checked against sample_submission.csv before it takes its place."""
    with whole(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            pairs = zip(ids, masks, strict=True)
            while batch := list(islice(pairs, BATCH_SIZE)):
                its_ids, its_masks = zip(*batch, strict=True)
                texts = _encode_checked(its_ids, np.stack(its_masks))
                writer.writerows(zip(its_ids, texts, strict=True))
        check_submission(temporary, sample_submission)


def _encode_checked(ids: Sequence[str], masks: Masks) -> list[str]:
    texts = encode_all(masks)
    _, height, width = masks.shape
    same = (decode_all(texts, (height, width)) == masks).all(axis=(1, 2))
    if not same.all():
        raise SubmissionError(f"the mask of {ids[same.argmin()]} does not survive its encoding.")
    return texts


def check_submission(
    path: Path, sample_submission: Path, shape: tuple[int, int] = (101, 101)
) -> None:
    """SubmissionError unless ids and their order are the sample's and every mask is legal."""
    header, *rows = _rows(path)
    if header != HEADER:
        raise SubmissionError(f"{path}: the header is {header}, not {HEADER}.")
    expected = [row[0] for row in _rows(sample_submission)[1:]]
    if [row[0] for row in rows] != expected:
        raise SubmissionError(f"{path}: ids or their order are not those of {sample_submission}.")
    size = shape[0] * shape[1]
    try:
        _runs([rle for _, rle in rows], size)
    except SubmissionError:
        for image_id, rle in rows:  # once more, one by one, to name it
            try:
                _runs([rle], size)
            except SubmissionError as error:
                raise SubmissionError(f"{path}: {image_id}: {error}") from error


def _rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [row for row in csv.reader(file) if row]
