"""A small synthetic competition in the layout of the real one.

    python -m src_salt.synthetic DIR --train 200 --test 50

writes train.zip, test.zip, train.csv, depths.csv and sample_submission.csv. The images imitate
seismic sections: folded and faulted layers, and in 61% of them a salt body with a weak, chaotic
interior and a bright edge. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from src_salt.config import SettingsError
from src_salt.outputs import ZIP_TIME, atomic_write, write_text
from src_salt.submission import encode

SIDE = 101
EMPTY_SHARE = 0.39
"""Share of empty masks; of the real training masks, 1,562 of 4,000 are empty."""

CONSTANT_SHARE = 0.02
"""Share of images with a single gray value; of the real training images, 80 of 4,000."""

DEPTHS = (51, 960)
"""Range of the column z of the real depths.csv, in feet."""

Field = npt.NDArray[np.float64]
"""A value for each pixel, (101, 101)."""

Rng = np.random.Generator

ROWS: Field = np.indices((SIDE, SIDE))[0].astype(np.float64)
COLUMNS: Field = ROWS.T.copy()


@dataclass(frozen=True)
class Section:
    """One synthetic image with its mask."""

    section_id: str
    image: npt.NDArray[np.uint8]  # (101, 101)
    mask: npt.NDArray[np.bool_]  # (101, 101)


def write_competition(folder: Path, train: int, test: int, seed: int = 0) -> None:
    """Write the competition's five files into `folder`; SettingsError if a number is below 1."""
    for name, value in (("train", train), ("test", test)):
        if value < 1:
            raise SettingsError(f"{name}: must be at least 1, not {value}.")
    rng = np.random.default_rng(seed)
    ids = _ids(rng, train + test)
    training = _sections(rng, ids[:train])
    testing = sorted(_sections(rng, ids[train:]), key=lambda section: section.section_id)
    _write_zip(folder / "train.zip", [*_images(training), *_masks(training)])
    _write_zip(folder / "test.zip", _images(testing))
    labels = [f"{section.section_id},{encode(section.mask)}" for section in training]
    sample = [f"{section.section_id},1 1" for section in testing]
    depths = [f"{section_id},{rng.integers(*DEPTHS)}" for section_id in ids]
    _write_csv(folder / "train.csv", "id,rle_mask", labels)
    _write_csv(folder / "sample_submission.csv", "id,rle_mask", sample)
    _write_csv(folder / "depths.csv", "id,z", depths)


def _ids(rng: Rng, count: int) -> list[str]:
    """Return different ids of ten hexadecimal digits in random order."""
    ids: dict[str, None] = {}
    while len(ids) < count:
        ids[f"{rng.integers(16**10):010x}"] = None
    return list(ids)


def _sections(rng: Rng, ids: Sequence[str]) -> list[Section]:
    """Make one section per id; the number of empty masks is `EMPTY_SHARE`, rounded."""
    has_salt = np.arange(len(ids)) >= round(EMPTY_SHARE * len(ids))
    rng.shuffle(has_salt)
    return [
        Section(section_id, *make_section(rng, bool(salt)))
        for section_id, salt in zip(ids, has_salt, strict=True)
    ]


# --- one section --------------------------------------------------------------------------------


def make_section(rng: Rng, has_salt: bool) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Make an image and its mask, (101, 101) each."""
    if not has_salt and rng.random() < CONSTANT_SHARE / EMPTY_SHARE:
        return np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), bool)
    inside = _salt_body(rng) if has_salt else np.full((SIDE, SIDE), -99.0)
    mask = inside > 0
    sediment = _layers(rng, _depth(rng, inside))
    grain = rng.uniform(0.6, 2.2)
    salt = rng.uniform(0.12, 0.4) * _noise(rng, grain, grain * rng.uniform(1, 3))
    salt += rng.uniform(0.8, 1.6)  # slightly brighter; otherwise 200 images are too few to learn
    # Layers change to salt within a pixel or two, as in a migrated section.
    blend = 1 / (1 + np.exp(-inside / 0.8))
    signal = sediment * (1 - blend) + salt * blend
    signal += rng.uniform(0.8, 2.2) * _edge(rng, inside)
    loud = rng.random() < 0.1  # some surveys have very strong noise
    signal += (rng.uniform(0.5, 1.0) if loud else rng.uniform(0.05, 0.4)) * _noise(rng, 0.7, 0.9)
    return _to_bytes(rng, signal), mask


def _salt_body(rng: Rng) -> Field:
    """Make a salt body: signed distance to its edge in pixels, positive inside. Never empty."""
    shapes: list[Callable[[Rng], Field]] = [_dome, _flank, _pillow, _wide]
    while True:
        level = shapes[rng.choice(len(shapes), p=[0.42, 0.28, 0.14, 0.16])](rng)
        mask = (level + _noise(rng, 5, 5) * rng.uniform(0.3, 1.5) > 0).astype(np.uint8)
        if mask.sum() > 30:
            return _signed_distance(mask)


def _signed_distance(mask: npt.NDArray[np.uint8]) -> Field:
    """Return each pixel's distance to the edge of the mask in pixels, positive inside."""
    # Padding with the same values: the border of the image is not an edge of the salt.
    framed = np.pad(mask, 1, mode="edge")
    inner = cv2.distanceTransform(framed, cv2.DIST_L2, 5).astype(np.float64)
    outer = cv2.distanceTransform(1 - framed, cv2.DIST_L2, 5).astype(np.float64)
    if mask.all():  # there is no edge
        return np.full((SIDE, SIDE), 99.0)
    return (np.where(framed > 0, inner - 0.5, 0.5 - outer))[1:-1, 1:-1]


def _dome(rng: Rng) -> Field:
    """Salt below a bell-shaped line."""
    crest, width = rng.uniform(-20, 120), rng.uniform(25, 70)
    base, height = rng.uniform(60, 140), rng.uniform(5, 85)
    top = base - height * np.exp(-(((COLUMNS - crest) / width) ** 2))
    level: Field = ROWS - top - rng.uniform(-0.3, 0.3) * (COLUMNS - SIDE / 2)
    return level


def _flank(rng: Rng) -> Field:
    """Salt on one side of a steep line."""
    lean = rng.uniform(-0.5, 0.5)
    line = rng.uniform(5, 80) + lean * (ROWS - SIDE / 2) + 8 * np.sin(ROWS / rng.uniform(12, 40))
    level: Field = line - COLUMNS
    return level[:, ::-1] if rng.random() < 0.5 else level


def _pillow(rng: Rng) -> Field:
    """A tilted lens of salt between layers."""
    x, y = COLUMNS - rng.uniform(10, 90), ROWS - rng.uniform(15, 85)
    angle = rng.uniform(-0.6, 0.6)
    along = (x * np.cos(angle) + y * np.sin(angle)) / rng.uniform(20, 60)
    across = (y * np.cos(angle) - x * np.sin(angle)) / rng.uniform(8, 24)
    level: Field = 15 * (1 - np.hypot(along, across))
    return level


def _wide(rng: Rng) -> Field:
    """Salt almost everywhere, with layers above it or in one corner."""
    slope = rng.uniform(-0.7, 0.7)
    return ROWS - rng.uniform(-15, 28) - slope * (COLUMNS - SIDE / 2)


def _depth(rng: Rng, inside: Field) -> Field:
    """Return the depth of the layer at each pixel: dip, folds, drag along salt, and faults."""
    fold = rng.uniform(2, 9) * _noise(rng, rng.uniform(14, 30), rng.uniform(18, 40))
    depth: Field = ROWS + rng.normal(0, 0.28) * (COLUMNS - SIDE / 2) + fold
    depth += rng.uniform(3, 14) * np.exp(np.minimum(inside, 0) / rng.uniform(8, 20))
    for _ in range(rng.choice(3, p=[0.6, 0.3, 0.1])):
        lean = rng.uniform(-0.6, 0.6)
        beyond = lean * (ROWS - SIDE / 2) + rng.uniform(10, 90) < COLUMNS
        depth += np.where(beyond, rng.normal(0, 7), 0)
    return depth


def _layers(rng: Rng, depth: Field) -> Field:
    """Return reflections of random layers at these depths, with a standard deviation near 1."""
    thickness = np.exp(rng.uniform(np.log(1.1), np.log(4.5)))  # of the wavelet, in pixels
    series = rng.standard_t(4, 400)  # many weak reflectors and a few strong ones
    trace = np.convolve(series, _ricker(np.arange(-20, 21) / thickness), mode="same")
    reflections = np.interp(depth + 150, np.arange(400), trace / trace.std())
    uneven: Field = reflections * (1 + 0.4 * _noise(rng, 12, 20))
    return uneven


def _ricker(reach: Field) -> Field:
    """The Ricker wavelet, the usual model of a seismic pulse: a peak between two troughs."""
    pulse: Field = (1 - reach**2) * np.exp(-(reach**2) / 2)
    return pulse


def _edge(rng: Rng, inside: Field) -> Field:
    """Return the bright reflection along the salt's edge, with varying brightness."""
    width = rng.uniform(1.2, 3)
    edge: Field = _ricker((inside + width / 2) / width) * (0.8 + 0.5 * _noise(rng, 15, 15))
    return edge


def _noise(rng: Rng, rows: float, columns: float) -> Field:
    """Return Gaussian noise with mean 0 and standard deviation 1, smooth over rows and columns.

    Smooth noise is made on a coarser grid and enlarged, since a wide blur is slow.
    """
    step = max(1, int(min(rows, columns) / 3))
    margin = int(2 * max(rows, columns) / step) + 1  # removed below, with its border effects
    size = -(-SIDE // step) + 2 * margin
    grains = rng.standard_normal((size, size)).astype(np.float32)
    coarse = cv2.GaussianBlur(grains, (0, 0), columns / step, sigmaY=rows / step)
    coarse = coarse[margin:-margin, margin:-margin]
    fine = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    noise: Field = (fine - fine.mean()).astype(np.float64) / fine.std()
    return noise


def _to_bytes(rng: Rng, signal: Field) -> npt.NDArray[np.uint8]:
    """Convert to gray values with the brightness and contrast of the real images."""
    contrast = rng.uniform(14, 34)
    bright = 118 + rng.normal(0, 12)
    gray: Field = bright + contrast * (signal - signal.mean() / 2)
    return gray.clip(0, 255).astype(np.uint8)


# --- files --------------------------------------------------------------------------------------


def _images(sections: Iterable[Section]) -> Iterable[tuple[str, bytes]]:
    """Yield names and PNG files: gray in three channels, as in the real zip files."""
    for section in sections:
        image = np.repeat(section.image[..., None], 3, axis=-1)
        yield f"images/{section.section_id}.png", _png(image)


def _masks(sections: Iterable[Section]) -> Iterable[tuple[str, bytes]]:
    """Yield names and PNG files: 16 bits, 0 or 65535; empty masks 8 bits, as in the real data."""
    for section in sections:
        empty = not section.mask.any()
        image = section.mask.astype(np.uint8) if empty else section.mask * np.uint16(65535)
        yield f"masks/{section.section_id}.png", _png(image)


def _png(image: npt.NDArray[Any]) -> bytes:
    _, content = cv2.imencode(".png", image)
    return content.tobytes()


def _write_zip(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in sorted(members):
            archive.writestr(zipfile.ZipInfo(name, ZIP_TIME), content)


def _write_csv(path: Path, header: str, rows: Iterable[str]) -> None:
    write_text(path, "\n".join([header, *rows, ""]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of this module; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m src_salt.synthetic", description="Write a synthetic salt competition."
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--train", type=int, default=200, metavar="N", help="training pairs")
    parser.add_argument("--test", type=int, default=50, metavar="N", help="test images")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    chosen = parser.parse_args(arguments)
    try:
        write_competition(chosen.folder, chosen.train, chosen.test, chosen.seed)
    except SettingsError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
