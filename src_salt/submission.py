"""submission.csv: run-length encoding, decoding, and validation of the file.

A mask is encoded as `start length start length …`. Pixels are numbered from 1, down each column,
column by column from the left. Runs are sorted and do not overlap. An empty mask is an empty text.
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
from src_salt.outputs import atomic_write

Mask = npt.NDArray[np.bool_]
"""(H, W)."""

Masks = npt.NDArray[np.bool_]
"""(N, H, W)."""

HEADER = ["id", "rle_mask"]

BATCH_SIZE = 256
"""Masks that are encoded and checked at once, which is several times as fast as one by one."""

NUMBER = "[0-9]{1,9}"
PAIRS = re.compile(f"(?:{NUMBER} {NUMBER}(?: {NUMBER} {NUMBER})*)?")


class SubmissionError(SaltError):
    """A run-length text or a submission file is not valid."""


def encode(mask: Mask) -> str:
    """Return the run-length text of a mask (H, W)."""
    return encode_all(mask[None])[0]


def encode_all(masks: Masks) -> list[str]:
    """Return the run-length text of each mask (N, H, W)."""
    count, height, width = masks.shape
    # A zero at both ends of an image ends its outer runs, so none continues in the next image.
    pixels = np.zeros((count, height * width + 2), np.bool_)
    pixels[:, 1:-1] = masks.transpose(0, 2, 1).reshape(count, height * width)
    flat = pixels.ravel()
    # Changes alternate: the start of a run, then the first pixel after it, also in every image.
    rows, numbers = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), pixels.shape[1])
    numbers[::2] += 1
    numbers[1::2] -= numbers[::2] - 1
    texts = _number_texts(height * width)[numbers].tolist()
    ends = np.bincount(rows, minlength=count).cumsum().tolist()
    return [" ".join(texts[start:end]) for start, end in pairwise([0, *ends])]


@cache
def _number_texts(size: int) -> npt.NDArray[Any]:
    """Return the numbers 0 to `size` as texts; a lookup is faster than a conversion."""
    return np.array([str(number) for number in range(size + 1)], dtype=object)


def decode(rle: str, shape: tuple[int, int]) -> Mask:
    """Return the mask of a run-length text; SubmissionError if it is not valid for the shape."""
    mask: Mask = decode_all([rle], shape)[0]
    return mask


def decode_all(texts: Sequence[str], shape: tuple[int, int]) -> Masks:
    """Return the masks (N, H, W) of run-length texts; SubmissionError if one is not valid."""
    height, width = shape
    size = height * width
    edges = np.concatenate([[0], _parse_runs(texts, size).ravel(), [len(texts) * size]])
    lengths = np.diff(edges)  # of gaps and runs, alternating
    pixels: Masks = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return pixels.reshape(len(texts), width, height).transpose(0, 2, 1)


def _parse_runs(texts: Sequence[str], size: int) -> npt.NDArray[np.int64]:
    """Return runs as half-open ranges (R, 2), in one numbering from 0 over all images.

    Raises:
        SubmissionError: runs are not sorted, overlap, or leave the `size` pixels of their image.
    """
    plain = [rle if PAIRS.fullmatch(rle) else _normalize_rle(rle) for rle in texts]
    joined = " ".join(filter(None, plain))
    # np.fromstring is the fastest parser, but turns an empty text into one number.
    flat = np.fromstring(joined, np.int64, sep=" ") if joined else np.empty(0, np.int64)
    numbers = flat.reshape(-1, 2)
    images = np.repeat(np.arange(len(plain)), [(rle.count(" ") + 1) // 2 for rle in plain])
    runs: npt.NDArray[np.int64] = np.stack([numbers[:, 0] - 1, numbers.sum(axis=1) - 1], axis=1)
    wrong = (numbers == 0).any(axis=1) | (runs[:, 1] > size)
    wrong[1:] |= (images[1:] == images[:-1]) & (runs[1:, 0] < runs[:-1, 1])
    if wrong.any():
        rle = texts[images[wrong.argmax()]]
        raise SubmissionError(
            f"run-length text {rle[:40]!r} is not sorted, overlaps or leaves the {size} pixels."
        )
    runs += images[:, None] * size
    return runs


def _normalize_rle(rle: str) -> str:
    """Replace white space with single spaces; SubmissionError if it is not pairs of numbers."""
    plain = " ".join(rle.split())
    if not PAIRS.fullmatch(plain):
        raise SubmissionError(f"run-length text {rle[:40]!r} is not pairs of whole numbers.")
    return plain


def write_submission(
    path: Path, ids: Sequence[str], masks: Iterable[Mask], sample_submission: Path
) -> None:
    """Write `id,rle_mask` atomically, after a check against sample_submission.csv.

    Raises:
        SubmissionError: the file would not be valid.
    """
    with atomic_write(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            pairs = zip(ids, masks, strict=True)
            while batch := list(islice(pairs, BATCH_SIZE)):
                batch_ids, batch_masks = zip(*batch, strict=True)
                texts = _encode_checked(batch_ids, np.stack(batch_masks))
                writer.writerows(zip(batch_ids, texts, strict=True))
        check_submission(temporary, sample_submission)


def _encode_checked(ids: Sequence[str], masks: Masks) -> list[str]:
    texts = encode_all(masks)
    _, height, width = masks.shape
    same = (decode_all(texts, (height, width)) == masks).all(axis=(1, 2))
    if not same.all():
        raise SubmissionError(f"the mask of {ids[same.argmin()]} changes when it is encoded.")
    return texts


def check_submission(
    path: Path, sample_submission: Path, shape: tuple[int, int] = (101, 101)
) -> None:
    """Raise SubmissionError unless ids and order match the sample and every mask is valid."""
    header, *rows = _read_rows(path)
    if header != HEADER:
        raise SubmissionError(f"{path}: the header is {header}, not {HEADER}.")
    expected = [row[0] for row in _read_rows(sample_submission)[1:]]
    if [row[0] for row in rows] != expected:
        raise SubmissionError(f"{path}: ids or their order differ from {sample_submission}.")
    size = shape[0] * shape[1]
    try:
        _parse_runs([rle for _, rle in rows], size)
    except SubmissionError:
        for image_id, rle in rows:  # again one by one, to name the image
            try:
                _parse_runs([rle], size)
            except SubmissionError as error:
                raise SubmissionError(f"{path}: {image_id}: {error}") from error


def _read_rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [row for row in csv.reader(file) if row]
