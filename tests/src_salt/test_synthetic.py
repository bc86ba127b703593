from __future__ import annotations

import csv
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from src_salt.config import SettingsError
from src_salt.submission import decode
from src_salt.synthetic import write_competition

FILES = ["depths.csv", "sample_submission.csv", "test.zip", "train.csv", "train.zip"]


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def members(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        contents = {
            name: np.frombuffer(archive.read(name), np.uint8) for name in archive.namelist()
        }
    return {name: cv2.imdecode(c, cv2.IMREAD_UNCHANGED) for name, c in contents.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_competition(folder, train=100, test=20, seed=5)
    return folder


def test_files_have_the_real_layout(made: Path) -> None:
    assert sorted(path.name for path in made.iterdir()) == FILES
    train = rows(made / "train.csv")
    sample, depths = rows(made / "sample_submission.csv"), rows(made / "depths.csv")
    assert train[0] == sample[0] == ["id", "rle_mask"]
    assert depths[0] == ["id", "z"]
    assert (len(train), len(sample), len(depths)) == (101, 21, 121)
    assert all(row[1] == "1 1" for row in sample[1:])
    ids = [row[0] for row in train[1:] + sample[1:]]
    assert sorted(ids) == sorted(row[0] for row in depths[1:])
    assert len(set(ids)) == 120
    assert all(len(i) == 10 and set(i) <= set("0123456789abcdef") for i in ids)
    assert all(50 <= int(row[1]) <= 960 for row in depths[1:])


def test_images_and_masks_are_stored_as_in_the_real_zips(made: Path) -> None:
    train, test = members(made / "train.zip"), members(made / "test.zip")
    ids = [row[0] for row in rows(made / "train.csv")[1:]]
    expected = sorted(f"{kind}/{i}.png" for kind in ("images", "masks") for i in ids)
    assert list(train) == expected
    assert list(test) == [
        f"images/{row[0]}.png" for row in rows(made / "sample_submission.csv")[1:]
    ]
    for name, pixels in {**train, **test}.items():
        if name.startswith("images"):
            assert (pixels.shape, pixels.dtype) == ((101, 101, 3), np.uint8)
            assert (pixels == pixels[..., :1]).all()
        else:
            assert pixels.shape == (101, 101)
            values, dtype = ({0}, np.uint8) if not pixels.any() else ({0, 65535}, np.uint16)
            assert pixels.dtype == dtype
            assert set(np.unique(pixels).tolist()) <= values


def test_train_csv_contains_the_masks_of_the_png_files(made: Path) -> None:
    train = members(made / "train.zip")
    for image_id, rle in rows(made / "train.csv")[1:]:
        assert np.array_equal(decode(rle, (101, 101)), train[f"masks/{image_id}.png"] > 0)


def test_statistics_are_close_to_the_real_data(made: Path) -> None:
    train = members(made / "train.zip")
    masks = np.array([train[name] > 0 for name in train if name.startswith("masks")])
    images = np.array([train[name] for name in train if name.startswith("images")], np.float64)
    coverage = masks.mean(axis=(1, 2))
    assert (coverage == 0).sum() == 39
    assert 0.17 < coverage.mean() < 0.35  # 0.25 in the real data
    assert (coverage > 0.6).sum() >= 5
    assert 100 < images.mean() < 140
    assert 20 < np.median(images.std(axis=(1, 2, 3))) < 40


def test_brightness_is_not_enough_to_find_the_salt(made: Path) -> None:
    """Salt is a little brighter, but no gray threshold is better than an empty prediction."""
    train = members(made / "train.zip")
    names = [name for name in train if name.startswith("masks")]
    masks = np.array([train[name] > 0 for name in names])
    images = np.array([train[name.replace("masks", "images")][..., 0] for name in names])
    assert images[masks].mean() > images[~masks].mean() + 10
    for level in range(0, 256, 8):
        both = ((images > level) & masks).sum(axis=(1, 2))
        either = ((images > level) | masks).sum(axis=(1, 2))
        assert np.where(either == 0, 1, both / np.maximum(either, 1)).mean() < 0.4  # empty: 0.39


def test_seed_decides_every_byte(made: Path, tmp_path: Path) -> None:
    write_competition(tmp_path / "same", train=100, test=20, seed=5)
    write_competition(tmp_path / "other", train=100, test=20, seed=6)
    for name in FILES:
        assert (tmp_path / "same" / name).read_bytes() == (made / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (made / name).read_bytes()


@pytest.mark.parametrize("numbers", [{"train": 0, "test": 1}, {"train": 1, "test": 0}])
def test_zero_images_are_rejected(numbers: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="must be at least 1, not 0"):
        write_competition(tmp_path, **numbers)


def test_command_line_writes_the_same_files_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from src_salt.synthetic import main; "
        f"main([{str(tmp_path / 'cli')!r}, '--train', '4', '--test', '2', '--seed', '9']); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    write_competition(tmp_path / "call", train=4, test=2, seed=9)
    for name in FILES:
        assert (tmp_path / "cli" / name).read_bytes() == (tmp_path / "call" / name).read_bytes()


def test_invalid_number_on_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "src_salt.synthetic", str(tmp_path / "x"), "--train", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "train: must be at least 1, not 0" in done.stderr
    assert "Traceback" not in done.stderr
