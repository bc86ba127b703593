"""The metrics of the local Kaggle, by hand-calculated values."""

import math
from pathlib import Path

import pytest

from kernelkit.emulator.metric import InvalidCsv
from kernelkit.emulator.scoring import METRICS, read_scorer


def scores(folder: Path, metric: str, solution: str, submission: str) -> tuple[float | None, ...]:
    """Public and private score; the files are written with commas and newlines for `;`."""
    (folder / "solution.csv").write_text(solution.replace(";", "\n"))
    (folder / "submission.csv").write_text(submission.replace(";", "\n"))
    found = read_scorer(folder / "solution.csv", metric)(folder / "submission.csv")
    return found.public, found.private


NUMBERS = "id,y,Usage;a,1,Public;b,3,Public;c,5,Private"
LABELS = "id,y,Usage;a,1,Public;b,0,Public;c,1,Public;d,1,Private"


@pytest.mark.parametrize(
    ("metric", "solution", "submission", "public", "private"),
    [
        ("rmse", NUMBERS, "id,y;c,5;b,5;a,1", math.sqrt(2), 0.0),
        ("mae", NUMBERS, "id,y;a,2;b,3;c,4.5", 0.5, 0.5),
        ("rmsle", "id,y,Usage;a,0,Public", "id,y;a,1", math.log(2), None),
        ("accuracy", LABELS, "id,y;a,1.0;b,1;c,1;d,0", 2 / 3, 0.0),
        ("accuracy", "id,y,usage;a,cat,Public;b,dog,Public", "id,y;a,cat;b,cat", 0.5, None),
        ("f1", LABELS, "id,y;a,1;b,1;c,0;d,1", 0.5, 1.0),
        ("f1", "id,y,Usage;a,x,Public;b,y,Public", "id,y;a,x;b,x", (2 / 3) / 2, None),
        ("log_loss", "id,p,Usage;a,1,Public;b,0,Public", "id,p;a,0.5;b,0.5", math.log(2), None),
        (
            "log_loss",
            "id,x,y,z,Usage;a,0,1,0,Public;b,0,0,1,Public",
            "id,x,y,z;a,1,2,1;b,0.5,0.25,0.25",
            (math.log(2) + math.log(4)) / 2,
            None,
        ),
        ("auc", "id,p,Usage;a,1,Public;b,0,Public;c,1,Public", "id,p;a,0.9;b,0.5;c,0.1", 0.5, None),
        ("mean_iou", "id,m,Usage;a,1 2,Public;b,,Public", "id,m;a,2 2;b,", (1 / 3 + 1) / 2, None),
    ],
)
def test_a_metric_has_its_value(
    tmp_path: Path,
    metric: str,
    solution: str,
    submission: str,
    public: float | None,
    private: float | None,
) -> None:
    found = scores(tmp_path, metric, solution, submission)
    assert found[0] == pytest.approx(public)
    assert found[1] == (None if private is None else pytest.approx(private))


def test_every_metric_is_tested() -> None:
    (marks,) = test_a_metric_has_its_value.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks.args[1]} == set(METRICS)


@pytest.mark.parametrize(
    ("metric", "solution", "submission", "message"),
    [
        ("rmse", NUMBERS, "id,y;a,1;b,3", "Unable to find 1 required key values"),
        ("rmse", NUMBERS, "id,y;a,1;b,3;c,5;d,1", "1 values in the 'id' column unknown"),
        ("rmse", NUMBERS, "id,y;a,1;b,3;c,5;c,6", "duplicate values"),
        ("rmse", NUMBERS, "id,z;a,1;b,3;c,5", "The columns must be id, y"),
        ("rmse", NUMBERS, "id,y;a,;b,3;c,5", "'' is not a number"),
        ("rmse", NUMBERS, "id,y;a,nan;b,3;c,5", "NaN"),
        ("rmsle", NUMBERS, "id,y;a,-5;b,3;c,5", "-"),
        ("mean_iou", "id,m,Usage;a,1 2,Public", "id,m;a,2", "not pairs"),
        ("rmse", "id,y;a,1", "id,y;a,1", "id, values and Usage"),
        ("rmse", "id,y,Usage;a,1,Secret", "id,y;a,1", "Usage is 'Secret'"),
        ("rmse", "id,y,Usage;a,1,Public;a,2,Public", "id,y;a,1", "an id occurs twice"),
        ("best", NUMBERS, "id,y;a,1", "no metric is called best: accuracy, auc"),
        ("no.such:function", NUMBERS, "id,y;a,1", "cannot be imported"),
        ("math:nothing", NUMBERS, "id,y;a,1", "cannot be imported"),
    ],
)
def test_what_cannot_be_scored_is_explained(
    tmp_path: Path, metric: str, solution: str, submission: str, message: str
) -> None:
    with pytest.raises(InvalidCsv) as caught:
        scores(tmp_path, metric, solution, submission)
    assert message in str(caught.value)


OWN = """
class ParticipantVisibleError(Exception):
    pass

def score(solution, submission, row_id_column_name):
    assert list(solution[row_id_column_name]) == list(submission[row_id_column_name])
    if (submission["y"] < 0).any():
        raise ParticipantVisibleError("below zero")
    return (solution["y"] - submission["y"]).abs().max()
"""


def test_a_function_of_the_users_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metric.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    assert scores(tmp_path, "own_metric:score", NUMBERS, "id,y;c,5;a,2;b,5") == (2.0, 0.0)
    with pytest.raises(InvalidCsv, match="ParticipantVisibleError: below zero"):
        scores(tmp_path, "own_metric:score", NUMBERS, "id,y;a,-1;b,3;c,5")
