"""The score: hand-computed cases, and properties of any masks."""

import csv
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelkit.emulator.metric import (
    InvalidCsv,
    Scores,
    decode,
    image_hits,
    read_solution,
    score,
)

PIXELS = 101 * 101
THRESHOLDS = [0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95]
masks = st.sets(st.integers(1, PIXELS), max_size=40)


def bits(pixels):
    return sum(1 << (pixel - 1) for pixel in pixels)


def rle(pixels):
    """The runs of a set of pixel numbers, counted one by one."""
    runs = []
    for pixel in sorted(pixels):
        if runs and sum(runs[-1]) == pixel:
            runs[-1][1] += 1
        else:
            runs.append([pixel, 1])
    return " ".join(f"{start} {length}" for start, length in runs)


def write(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def solution(tmp_path):
    """Four images: a square of 100 pixels, an empty mask, a single pixel, an ignored one."""
    rows = [
        ("square", "1 100", "Public"),
        ("empty", "", "Private"),
        ("pixel", "1 1", "Private"),
        ("spare", "5 5", "Ignored"),
    ]
    path = write(tmp_path / "solution.csv", ["id", "rle_mask", "Usage"], rows)
    return read_solution(path)


def submit(solution, tmp_path, **changes):
    rows = {"square": "1 100", "empty": "", "pixel": "1 1", "spare": ""} | changes
    path = write(tmp_path / "submission.csv", ["id", "rle_mask"], rows.items())
    return score(solution, path)


@pytest.mark.parametrize(
    ("found", "hits"),
    [
        (100, 10),  # IoU 1
        (96, 10),  # 0.96
        (95, 9),  # exactly 0.95 is not above 0.95
        (76, 6),  # 0.76
        (60, 2),  # exactly 0.60: above 0.50 and 0.55
        (51, 1),
        (50, 0),
        (0, 0),
    ],
)
def test_an_image_scores_by_its_iou(found, hits):
    assert image_hits(decode("1 100"), decode(f"1 {found}" if found else "")) == hits


def test_an_empty_mask_scores_all_or_nothing():
    assert image_hits(0, 0) == 10
    assert image_hits(0, 1) == 0
    assert image_hits(1, 0) == 0


def test_an_empty_prediction_on_a_large_mask_scores_zero():
    """The formula with np.histogram, which many notebooks copy, gives 0.6 here."""
    truth = decode(f"1 {round(0.79 * PIXELS)}")
    assert image_hits(truth, 0) == 0
    assert image_hits(truth, decode(f"1 {PIXELS}")) == 6  # IoU 0.79


def test_pixels_count_down_the_columns_from_one():
    assert decode("1 1") == 1
    assert decode(f"{PIXELS} 1") == 1 << (PIXELS - 1)
    assert decode("1 2 4 1") == 0b1011


@pytest.mark.parametrize(
    "text",
    [
        *("1", "1 2 3", "a b", "1.0 2", "-1 2", "1 -2", "²1 1", "0 1", "1 0", "10202 1"),
        *("1 10202", "5 2 1 1", "1 3 3 1", "1 3 1 3", "9999999999 1"),
    ],
)
def test_invalid_runs_are_rejected(text):
    with pytest.raises(ValueError, match=r"run|pairs"):
        decode(text, PIXELS)


def test_public_and_private_scores_are_separate(solution, tmp_path):
    assert submit(solution, tmp_path) == Scores(1.0, 1.0)
    assert submit(solution, tmp_path, square="1 76") == Scores(0.6, 1.0)
    assert submit(solution, tmp_path, empty="1 1", pixel="2 1") == Scores(1.0, 0.0)
    assert submit(solution, tmp_path, empty="1 1") == Scores(1.0, 0.5)


def test_a_score_without_rows_is_none(tmp_path):
    rows = [("a", "1 1", "Public")]
    path = write(tmp_path / "solution.csv", ["id", "rle_mask", "Usage"], rows)
    sent = write(tmp_path / "submission.csv", ["id", "rle_mask"], [("a", "1 1")])
    assert score(read_solution(path), sent) == Scores(1.0, None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "The file is empty"),
        ("id,mask\n", "The columns must be id, rle_mask, not id, mask"),
        ("rle_mask,id\n", "The columns must be id, rle_mask, not rle_mask, id"),
        ("id,rle_mask\nsquare,,\n", "Row 2 has 3 columns but 2 are expected"),
        ("id,rle_mask\nsquare,\n", "Unable to find 3 required key values in the 'id' column"),
        ("id,rle_mask\nsquare,1 1\nsquare,\n", "1 duplicate values in the 'id' column: square"),
        ("id,rle_mask\nother,\n", "1 values in the 'id' column unknown: other"),
        ("id,rle_mask\nsquare,2 1 1 1\n", "square: the run '1 1' is not sorted or overlaps"),
        ('id,rle_mask\n"square,\n', "The file is not a csv"),
        ("id,rle_mask\n\udcff,\n", "The file is not a csv"),
    ],
)
def test_a_problem_of_a_file_is_named(solution, tmp_path, rows, message):
    path = tmp_path / "submission.csv"
    path.write_bytes(rows.encode(errors="surrogateescape"))
    with pytest.raises(InvalidCsv) as caught:
        score(solution, path)
    assert message in str(caught.value)


def test_all_problems_are_named_at_once(solution, tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text("id,rle_mask\nsquare,1\nsquare,\nother,\n")
    with pytest.raises(InvalidCsv) as caught:
        score(solution, path)
    for message in ("duplicate", "not legal", "Unable to find", "unknown"):
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (["id", "target", "Usage"], ("a", "1", "Public"), "no metric is known"),
        (["id", "rle_mask", "Usage"], ("a", "1", "Public"), "not pairs of whole numbers"),
        (["id", "rle_mask", "Usage"], ("a", "1 1", "public"), "Usage is 'public'"),
    ],
)
def test_an_invalid_solution_is_rejected(tmp_path, header, row, message):
    with pytest.raises(InvalidCsv, match=message):
        read_solution(write(tmp_path / "solution.csv", header, [row]))


@given(masks)
def test_decoding_returns_the_encoded_pixels(pixels):
    assert decode(rle(pixels)) == bits(pixels)


@given(masks, masks)
def test_the_score_equals_a_count_with_sets(truth, prediction):
    either = len(truth | prediction)
    if not truth:
        expected = 0 if prediction else 10
    else:
        iou = len(truth & prediction) / either
        expected = sum(iou - threshold > 1e-9 for threshold in THRESHOLDS)
    assert image_hits(bits(truth), bits(prediction)) == expected
    assert image_hits(bits(truth), bits(truth)) == 10


@given(st.lists(st.tuples(masks, masks), min_size=1, max_size=6), st.randoms())
def test_the_order_of_the_rows_does_not_matter(tmp_path_factory, images, shuffler):
    folder = tmp_path_factory.mktemp("order")
    known = [(str(i), rle(truth), "Public") for i, (truth, _) in enumerate(images)]
    sent = [(str(i), rle(guess)) for i, (_, guess) in enumerate(images)]
    solution = read_solution(write(folder / "solution.csv", ["id", "rle_mask", "Usage"], known))
    straight = score(solution, write(folder / "a.csv", ["id", "rle_mask"], sent))
    shuffler.shuffle(sent)
    assert score(solution, write(folder / "b.csv", ["id", "rle_mask"], sent)) == straight


@pytest.mark.slow
def test_eighteen_thousand_rows_take_seconds(tmp_path):
    """As many rows as the TGS Salt challenge has, with 40 runs each."""
    chance = random.Random(0)
    text = [rle({p + chance.randrange(200) for p in range(1, 10001, 250)}) for _ in range(50)]
    sent = [(f"{i:x}", text[i % 50]) for i in range(18000)]
    known = [(*row, "Private") for row in sent]
    started = time.process_time()
    solution = read_solution(write(tmp_path / "s.csv", ["id", "rle_mask", "Usage"], known))
    scores = score(solution, write(tmp_path / "a.csv", ["id", "rle_mask"], sent))
    assert scores == Scores(None, 1.0)
    assert time.process_time() - started < 10


def test_runs_must_stay_inside_images_of_known_size(tmp_path):
    rows = [("small", "1 1", "Public", 4), ("large", "1 1", "Public", 9)]
    path = write(tmp_path / "solution.csv", ["id", "rle_mask", "Usage", "pixels"], rows)
    solution = read_solution(path)
    sent = write(tmp_path / "a.csv", ["id", "rle_mask"], [("small", "4 1"), ("large", "9 1")])
    assert score(solution, sent) == Scores(0.0, None)
    sent = write(tmp_path / "b.csv", ["id", "rle_mask"], [("small", "5 1"), ("large", "9 1")])
    with pytest.raises(InvalidCsv, match="small: the run '5 1' leaves the 4 pixels"):
        score(solution, sent)
    write(path, ["id", "rle_mask", "Usage", "pixels"], [("small", "1 1", "Public", "many")])
    with pytest.raises(InvalidCsv, match=r"pixels: .*'many'"):
        read_solution(path)


def test_a_cell_of_any_length_is_read(solution, tmp_path):
    """The csv module's own limit is 131,072 characters."""
    assert submit(solution, tmp_path, spare=" " * 200_000) == submit(solution, tmp_path)
    with pytest.raises(InvalidCsv, match=r"run|sorted|overlap"):
        submit(solution, tmp_path, square="1 1 " * 60_000)
