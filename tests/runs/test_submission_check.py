"""A submission file is compared with the sample: each problem names its row and its id."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelkit.errors import ConfigError
from kernelkit.runs.submission_check import SubmissionCheck, check

PIXELS = 101 * 101
SAMPLE = "id,rle_mask\na,1 1\nb,1 1\nc,1 1\nd,1 1\n"
GOOD = "id,rle_mask\na,\nb,1 1\nc,1 5 6 7\nd,10201 1\n"


@pytest.fixture
def compare(tmp_path: Path):
    """`compare(submission)` or `compare(submission, sample)`, as text or bytes."""

    def run(submission: str | bytes, sample: str | bytes = SAMPLE) -> SubmissionCheck:
        for name, content in (("submission.csv", submission), ("sample.csv", sample)):
            content = content.encode() if isinstance(content, str) else content
            (tmp_path / name).write_bytes(content)
        return check(tmp_path / "submission.csv", tmp_path / "sample.csv", PIXELS)

    return run


def test_a_valid_submission_passes(compare) -> None:
    assert compare(GOOD) == SubmissionCheck(problems=(), notes=(), rows=4)
    assert compare(GOOD.replace("\n", "\r\n")) == SubmissionCheck(problems=(), notes=(), rows=4)
    assert compare(GOOD, b"\xef\xbb\xbf" + SAMPLE.encode()).problems == ()


LONG = " ".join(f"{pixel} 1" for pixel in range(1, 60_000, 2))


@pytest.mark.parametrize(
    ("submission", "sample"),
    [
        (f"id,m\na,{LONG}\nb,\n", "id,m\na,1 1\nb,1 1\n"),
        ("id,m\na,1 1\nb,1 1\n", f"id,m\na,{LONG}\nb,1 1\n"),
        (f'id,m\r\n{"a" * 200_000},"{LONG}"\r\n', f"id,m\n{'a' * 200_000},1 1\n"),
        (f"id,text\na,{'word ' * 40_000}\n", "id,text\na,word\n"),
        ('id,m\n"a\nx",1 1\n', 'id,m\r\n"a\nx",1 1\r\n'),
        ("id,m\ra,1 1\r", "id,m\na,1 1\n"),
    ],
)
def test_long_cells_and_any_line_ends_are_valid(tmp_path: Path, submission, sample) -> None:
    (tmp_path / "submission.csv").write_bytes(submission.encode())
    (tmp_path / "sample.csv").write_bytes(sample.encode())
    found = check(tmp_path / "submission.csv", tmp_path / "sample.csv")
    assert found.problems == found.notes == ()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (GOOD.encode("utf-16"), "row 1: not UTF-8 text"),
        (b"\x1f\x8b\x08\xff", "row 1: not UTF-8 text"),
        (GOOD.replace("b,", "b\0,").encode(), "row 3 (id 'b\\x00'): not UTF-8 text"),
        (GOOD.replace("b,", "\xe9,").encode("latin-1"), "row 3 (id '\\udce9'): not UTF-8 text"),
        (("id," + "r" * 300_000 + "\n").encode(), "row 1: the columns are ['id', 'rrr"),
        ((",".join("abc" * 99_999) + "\n").encode(), "… and 299,977 more]"),
        (('id,rle_mask\n"a,1 1\n' + "x\n" * 99_999).encode(), "not a readable csv (unexpected end"),
    ],
)
def test_unreadable_text_is_a_short_problem(compare, content: bytes, problem: str) -> None:
    problems = compare(content).problems
    assert any(problem in found for found in problems), problems
    assert all(len(found) < 1500 for found in problems)


@pytest.mark.parametrize(
    ("before", "after", "problem_text"),
    [
        ("id,rle_mask", "id,mask", "row 1: the columns are ['id', 'mask'], the sample's are"),
        ("id,rle_mask", "rle_mask,id", "row 1: the columns are ['rle_mask', 'id']"),
        ("id,rle_mask\n", "", "row 1: the columns are ['a', '']"),
        ("b,1 1\n", "", "id 'b' is missing (row 3 of the sample)"),
        ("b,1 1\n", "b,1 1\nb,1 1\n", "row 4 (id 'b'): the id is already in row 3"),
        ("b,1 1\n", "b,1 1\nx,1 1\n", "row 4 (id 'x'): the sample has no such id"),
        ("b,1 1", "B,1 1", "row 3 (id 'B'): the sample has no such id"),
        ("b,1 1", "b", "row 3 (id 'b'): 1 cells, not 2"),
        ("b,1 1", "b,1 1,2", "row 3 (id 'b'): 3 cells, not 2"),
        ("b,1 1", "b,1", "row 3 (id 'b'): rle_mask: 1 numbers are not pairs"),
        ("b,1 1", "b,1 x", "row 3 (id 'b'): rle_mask: '1 x' is not whole numbers"),
        ("b,1 1", "b,nan", "row 3 (id 'b'): rle_mask: 'nan' is not whole numbers"),
        ("b,1 1", "b,1.0 1", "'1.0 1' is not whole numbers"),
        ("b,1 1", "b,-1 1", "'-1 1' is not whole numbers"),
        ("b,1 1", "b,² 1", "'² 1' is not whole numbers"),
        ("b,1 1", "b,0 1", "the run '0 1' has a zero"),
        ("b,1 1", "b,1 0", "the run '1 0' has a zero"),
        ("b,1 1", "b,5 2 1 2", "the run '1 2' is not sorted, or overlaps"),
        ("b,1 1", "b,1 5 5 2", "the run '5 2' is not sorted, or overlaps"),
        ("b,1 1", "b,10201 2", "the run '10201 2' ends outside the 10,201 pixels"),
        ("b,1 1", "b,99999999999999 1", "is not whole numbers"),
        ("b,1 1", 'b,"1 1', "row 3 or below: not a readable csv"),
        ("b,1 1", 'b,"1" 1', "row 3 or below: not a readable csv"),
        ("b,1 1", f"b,{'1 1 ' * 40_000}", "row 3 (id 'b'): rle_mask: the run '1 1' is not sorted"),
    ],
)
def test_a_problem_names_its_row(compare, before: str, after: str, problem_text: str) -> None:
    assert GOOD.count(before) == 1
    problems = compare(GOOD.replace(before, after)).problems
    assert any(problem_text in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("content", "problem_text"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf" + GOOD.encode(), "begins with a byte-order mark"),
        (GOOD.encode("utf-16"), "row 1: not UTF-8"),
        (GOOD.replace("c,", "ç,").encode("latin-1"), "row 4 (id '\\udce7'): not UTF-8 text"),
        (GOOD.encode().replace(b"1 5", b"1\x005"), "row 4 (id 'c'): not UTF-8 text"),
        (b"\n\n", "row 1: [] is not the header"),
    ],
)
def test_bytes_that_are_not_text_are_reported(compare, content: bytes, problem_text: str) -> None:
    assert any(problem_text in problem for problem in compare(content).problems), compare(content)


def test_row_order_and_empty_rows_are_only_notes(compare) -> None:
    found = compare("id,rle_mask\na,\nc,\nb,\nd,\n\n")
    assert found.problems == ()
    assert found.notes == (
        "row 3 (id 'c'): from here on the order differs from the sample's",
        "row 6 is empty",
    )


def test_a_few_problems_of_each_kind_are_listed_and_the_rest_counted(compare) -> None:
    ids = [f"i{number}" for number in range(50)]
    sample = "id,rle_mask\n" + "".join(f"{name},\n" for name in ids)
    found = compare("id,rle_mask\n" + "".join(f"{name},0 0\n" for name in ids[:20]), sample)
    assert found.rows == 20
    assert [problem for problem in found.problems if "…" in problem] == [
        "… and 17 more bad values of rle_mask",
        "… and 27 more missing ids",
    ]
    assert len(found.problems) == 8


@pytest.mark.parametrize(
    ("value", "problem_text"),
    [
        *(("nan", "is not a value"), ("", "is not a value"), ("inf", "is not a value")),
        *(("yes", "is not a number"), ("1e999", "is not a number"), ("1_0", "is not a number")),
    ],
)
def test_text_in_a_number_column_is_a_problem(compare, value: str, problem_text: str) -> None:
    sample = "id,p,word\n1,0.5,x\n2,0,y\n"
    assert compare("id,p,word\n1,.25,a\n2,1e-9,b\n", sample).problems == ()
    assert problem_text in compare(f"id,p,word\n1,0.5,a\n2,{value},b\n", sample).problems[0]
    if problem_text == "is not a number":
        assert compare(f"id,p,word\n1,1,{value}\n2,1,b\n", sample).problems == ()


@pytest.mark.parametrize(
    "sample", ["", "id\n", "id,p\n", "id,p\n1,1\n1,1\n", 'id,p\n1,"', "id,p\n1\n"]
)
def test_an_unusable_sample_is_an_error(compare, sample: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compare(GOOD, sample)
    assert "--sample FILE" in caught.value.next_step


def test_the_real_size_is_checked_within_a_second(compare) -> None:
    rng = random.Random(0)
    ids = [f"{rng.getrandbits(40):010x}" for _ in range(18_000)]
    runs = " ".join(f"{start} 5" for start in range(1, 1000, 10))
    table = "id,rle_mask\n" + "".join(f"{name},{runs}\n" for name in ids)
    sample = "id,rle_mask\n" + "".join(f"{name},1 1\n" for name in ids)
    started = time.process_time()
    assert compare(table, sample) == SubmissionCheck(problems=(), notes=(), rows=18_000)
    assert time.process_time() - started < 5  # s on a busy machine; 0.5 on an idle one


@given(
    st.binary(max_size=300)
    | st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_file_is_checked_without_a_crash(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    (folder / "sample.csv").write_text(SAMPLE)
    for head in (b"", b"id,rle_mask\n"):
        (folder / "submission.csv").write_bytes(head + content)
        assert check(folder / "submission.csv", folder / "sample.csv", PIXELS).problems


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=6))
def test_runs_are_valid_if_no_pixel_is_named_twice(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int]]
) -> None:
    """Compares with sets of pixels, an independent implementation."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "sample.csv").write_text("id,rle_mask\na,1 1\n")
    text = " ".join(f"{start} {length}" for start, length in runs)
    (folder / "submission.csv").write_text(f"id,rle_mask\na,{text}\n")
    pixels = [pixel for start, length in runs for pixel in range(start, start + length)]
    empty = any(length == 0 for _, length in runs)
    legal = pixels == sorted(set(pixels)) and not empty and all(1 <= p <= 50 for p in pixels)
    found = check(folder / "submission.csv", folder / "sample.csv", 50)
    assert (found.problems == ()) == legal
