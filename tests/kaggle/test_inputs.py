"""The folder of inputs of a rehearsal: what is missing, and what there is instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelkit.errors import ConfigError
from kernelkit.kaggle.local import require_inputs

COMPETITION = {"competition_sources": ["house-prices"]}
DATASET = {"dataset_sources": ["ann/extra-rows/3"]}
OUTPUTS = {"kernel_sources": ["ann/first-run"]}
MODEL = {"model_sources": ["google/bert/PyTorch/base/2"]}
ALL = COMPETITION | DATASET | OUTPUTS | MODEL


def make(folder: Path, *names: str) -> Path:
    """A folder with these files, and folders where a name ends with a slash."""
    for name in names:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text("data")
    folder.mkdir(exist_ok=True)
    return folder


def refusal(inputs: Path | None, sources: dict[str, list[str]]) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        require_inputs(inputs, sources)
    return raised.value


def test_each_kind_of_source_has_its_folder(tmp_path: Path) -> None:
    require_inputs(None, {"competition_sources": []})
    message = str(refusal(None, ALL))
    for name in ("house-prices", "extra-rows", "first-run", "bert/pytorch/base/2"):
        assert f"DIR/{name}" in message
    names = ("house-prices/a.csv", "extra-rows/b", "first-run/c", "bert/pytorch/base/2/d")
    require_inputs(make(tmp_path / "inputs", *names), ALL)


@pytest.mark.parametrize(
    ("sources", "names", "message"),
    [
        (COMPETITION, (), "{}/house-prices: there is no such folder\n  {} contains nothing"),
        (
            DATASET,
            ("a/", "b.csv"),
            "{}/extra-rows: there is no such folder\n  {} contains a/, b.csv",
        ),
        (COMPETITION, ("House_Prices/a",), 'Is it "House_Prices"?'),
        (OUTPUTS, ("first-runs/a",), 'Is it "first-runs"?'),
        (COMPETITION, ("house-prices",), "{}/house-prices: it is a file, not a folder"),
        (COMPETITION, ("house-prices.zip",), 'there is only "house-prices.zip": unpack it'),
        (DATASET, ("extra-rows.tar.gz",), 'there is only "extra-rows.tar.gz": unpack it'),
        (ALL, ("datasets/ann/extra-rows/a",), "but there is {}/datasets/ann/extra-rows"),
        (MODEL, ("bert/pytorch/base/1/a",), "{}/bert/pytorch/base/2: there is no such folder; "),
        (MODEL, ("bert/PyTorch/base/2/a",), 'Is it "PyTorch"?'),
        (COMPETITION, tuple(f"{n}/" for n in range(20)), "and 12 more"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, sources: dict[str, list[str]], names: tuple[str, ...], message: str
) -> None:
    inputs = make(tmp_path / "inputs", *names)
    error = refusal(inputs, sources)
    assert message.replace("{}", str(inputs)) in str(error)
    assert "--inputs DIR" in error.next_step
    assert "kaggle.com" not in f"{error}{error.next_step}"


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    inputs = make(tmp_path / "inputs")
    (inputs / "house-prices").symlink_to("moved-away")
    assert "a link to moved-away, which does not exist" in str(refusal(inputs, COMPETITION))


@pytest.mark.parametrize(
    ("names", "given", "right"),
    [
        (("house-prices/a.csv",), "house-prices", ""),
        (("competitions/house-prices/a.csv",), "", "competitions"),
        (("data/raw/house-prices/a.csv",), "", "data/raw"),
    ],
)
def test_the_right_folder_is_suggested(
    tmp_path: Path, names: tuple[str, ...], given: str, right: str
) -> None:
    inputs = make(tmp_path / "inputs", *names)
    error = refusal(inputs / given, COMPETITION)
    assert error.next_step.endswith(f" --inputs {inputs / right}")
    require_inputs(inputs / right, COMPETITION)


@pytest.mark.parametrize(
    ("names", "doubt"),
    [
        (("house-prices/",), "is empty"),
        (("house-prices/.DS_Store",), "is empty"),
        (
            ("house-prices/house-prices/a.csv",),
            "one level too deep: kernelkit rehearse --inputs",
        ),
        (("house-prices/house-prices/a.csv", "house-prices/b.csv"), ""),
        (("house-prices/train/a.csv",), ""),
    ],
)
def test_a_doubtful_folder_is_no_error(tmp_path: Path, names: tuple[str, ...], doubt: str) -> None:
    inputs = make(tmp_path / "inputs", *names)
    found = require_inputs(inputs, COMPETITION)
    assert len(found) == bool(doubt)
    assert doubt in "".join(found)
