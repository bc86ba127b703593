from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from src_salt import submission
from src_salt.submission import (
    BATCH_SIZE,
    SubmissionError,
    check_submission,
    decode,
    decode_all,
    encode,
    encode_all,
    write_submission,
)

MASK = np.array([[1, 0, 0], [1, 0, 1]], dtype=bool)


def encode_by_hand(mask: np.ndarray) -> str:
    """Loop over the pixels, column by column, counting from 1."""
    runs: list[list[int]] = []
    height, width = mask.shape
    for position in range(height * width):
        if mask[position % height, position // height]:
            if runs and runs[-1][0] + runs[-1][1] == position + 1:
                runs[-1][1] += 1
            else:
                runs.append([position + 1, 1])
    return " ".join(f"{start} {length}" for start, length in runs)


def test_encode_by_hand() -> None:
    # Columns: (1, 1), (0, 0), (0, 1): pixels 1, 2 and 6.
    assert encode(MASK) == "1 2 6 1"
    assert encode(np.zeros((101, 101), bool)) == ""
    assert encode(np.ones((101, 101), bool)) == "1 10201"


def test_decode_by_hand() -> None:
    assert np.array_equal(decode("1 2 6 1", (2, 3)), MASK)
    assert not decode("", (2, 3)).any()
    assert np.argwhere(decode("1 1", (101, 101))).tolist() == [[0, 0]]
    assert np.argwhere(decode("2 1", (101, 101))).tolist() == [[1, 0]]  # one down, not one right
    assert np.array_equal(decode("1 1 2 1 6 1", (2, 3)), MASK)  # adjacent runs are valid


def test_every_small_mask_equals_the_loop() -> None:
    for bits in itertools.product([False, True], repeat=6):
        mask = np.array(bits).reshape(2, 3)
        assert encode(mask) == encode_by_hand(mask)
        assert np.array_equal(decode(encode(mask), mask.shape), mask)


@given(arrays.arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24))))
def test_round_trip(mask: np.ndarray) -> None:
    assert np.array_equal(decode(encode(mask), mask.shape), mask)


@given(
    arrays.arrays(bool, st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9))),
)
def test_encoding_together_equals_one_by_one(masks: np.ndarray) -> None:
    texts = encode_all(masks)
    assert texts == [encode_by_hand(mask) for mask in masks]
    assert np.array_equal(decode_all(texts, masks.shape[1:]), masks)


def test_runs_do_not_continue_in_the_next_image() -> None:
    full, empty = np.ones((3, 2), bool), np.zeros((3, 2), bool)
    masks = np.stack([full, full, empty, empty, full, empty])
    assert encode_all(masks) == ["1 6", "1 6", "", "", "1 6", ""]
    assert np.array_equal(decode_all(encode_all(masks), (3, 2)), masks)
    assert decode_all(["", ""], (3, 2)).tolist() == [empty.tolist()] * 2
    with pytest.raises(SubmissionError, match=r"'5 3'.*leaves the 6 pixels"):
        decode_all(["1 6", "5 3", "1 6"], (3, 2))


def test_other_white_space_is_valid() -> None:
    assert np.array_equal(decode(" 1 2\t6  1 ", (2, 3)), MASK)


@pytest.mark.parametrize(
    "rle",
    [
        "1",
        "1 2 3",
        "0 1",
        "1 0",
        "6 2",
        "3 1 1 1",
        "1 3 2 1",
        "a b",
        "-1 2",
        "1.0 2",
        "9" * 30 + " 1",
    ],
)
def test_invalid_texts_are_rejected(rle: str) -> None:
    with pytest.raises(SubmissionError):
        decode(rle, (2, 3))


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample_submission.csv"
    path.write_text("id,rle_mask\nb,1 1\n12e4567890,1 1\na,1 1\n")
    return path


def test_submission_has_the_ids_of_the_sample_in_order(sample: Path, tmp_path: Path) -> None:
    full, empty = np.ones((101, 101), bool), np.zeros((101, 101), bool)
    path = tmp_path / "submission.csv"
    write_submission(path, ["b", "12e4567890", "a"], [full, empty, full], sample)
    expected = b"id,rle_mask\nb,1 10201\n12e4567890,\na,1 10201\n"
    assert path.read_bytes() == expected


def test_every_mask_of_several_batches_is_written(tmp_path: Path) -> None:
    masks = np.random.default_rng(0).random((BATCH_SIZE + 3, 101, 101)) < 0.002
    ids = [f"{number:04}" for number in range(len(masks))]
    sample, path = tmp_path / "sample.csv", tmp_path / "submission.csv"
    sample.write_text("\n".join(["id,rle_mask", *(f"{name}," for name in ids), ""]))
    write_submission(path, ids, iter(masks), sample)
    expected = [f"{name},{encode(mask)}" for name, mask in zip(ids, masks, strict=True)]
    assert path.read_text().splitlines()[1:] == expected


def test_mask_that_changes_when_encoded_is_named(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The encoder has no such error, so the test replaces it.
    monkeypatch.setattr(submission, "encode_all", lambda _masks: ["1 10201", "1 10200", ""])
    full, empty = np.ones((101, 101), bool), np.zeros((101, 101), bool)
    path = tmp_path / "out" / "submission.csv"
    with pytest.raises(SubmissionError, match="mask of 12e4567890 changes when it is encoded"):
        write_submission(path, ["b", "12e4567890", "a"], [full, full, empty], sample)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("ids", [["a", "b", "12e4567890"], ["b", "12e4567890"], ["b", "x", "a"]])
def test_other_ids_are_rejected_and_no_file_is_left(
    ids: list[str], sample: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out" / "submission.csv"
    with pytest.raises(SubmissionError, match="ids or their order"):
        write_submission(path, ids, [np.zeros((101, 101), bool)] * len(ids), sample)
    assert list(path.parent.iterdir()) == []


def test_too_few_masks_are_rejected(sample: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "submission.csv"
    with pytest.raises(ValueError, match="shorter"):
        write_submission(path, ["b", "12e4567890", "a"], [np.zeros((101, 101), bool)], sample)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,mask\nb,\n12e4567890,\na,\n", "header"),
        ("id,rle_mask\nb,\n12e4567890,5 1 2 1\na,\n", "12e4567890: run-length text"),
        ("id,rle_mask\nb,\n12e4567890,\na,10201 2\n", "a: run-length text"),
    ],
)
def test_invalid_file_is_rejected(text: str, message: str, sample: Path, tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_text(text)
    with pytest.raises(SubmissionError, match=message):
        check_submission(path, sample)
