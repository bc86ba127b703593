"""Scores submissions with the metric of the competition.

Without a name, the metric is the one for masks (see `metric`). scikit-learn calculates the others,
where it has them. `module:function` names a function as Kaggle's own metric notebooks define it:
`score(solution, submission, row_id_column_name)`, with two pandas DataFrames in the same order.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kernelkit.emulator.metric import (
    USAGES,
    InvalidCsv,
    Scores,
    decode,
    examples,
    read_solution,
    read_table,
    score,
)

Scorer = Callable[[Path], Scores]
"""Scores the csv file of a submission. Raises InvalidCsv."""

Columns = list[list[str]]
"""The values of each column, in the order of the solution."""

USAGE = "usage"  # the column of the solution that says to which score a row belongs


@dataclass(frozen=True)
class Answers:
    """The solution of a competition: ids, true values, and the score that each row is part of."""

    key: str
    names: tuple[str, ...]
    """The columns that are predicted."""

    rows: dict[str, list[str]]
    usage: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Answers:
        """Read solution.csv: the columns of a submission, the id first, and `Usage`.

        Raises InvalidCsv.
        """
        header, rows = read_table(path)
        places = [number for number, name in enumerate(header) if name.lower() == USAGE]
        if len(places) != 1 or places[0] == 0 or len(header) < 3:
            columns = ", ".join(header)
            raise InvalidCsv(f"the columns must be id, values and Usage, not {columns}")
        usages = {row[0]: row.pop(places[0]) for row in rows}
        names = [name for number, name in enumerate(header[1:], 1) if number != places[0]]
        if wrong := sorted(set(usages.values()) - set(USAGES)):
            raise InvalidCsv(f"Usage is {', '.join(map(repr, wrong))}, not {', '.join(USAGES)}")
        if len(usages) < len(rows) or not rows:
            raise InvalidCsv("there are no rows, or an id occurs twice")
        return cls(header[0], tuple(names), {row[0]: row[1:] for row in rows}, usages)

    def predictions(self, path: Path) -> dict[str, list[str]]:
        """The rows of a submission by id. Raises InvalidCsv, which lists all problems."""
        header, found = read_table(path)
        if header != [self.key, *self.names]:
            wanted = ", ".join([self.key, *self.names])
            raise InvalidCsv(f"The columns must be {wanted}, not {', '.join(header)}")
        rows = {row[0]: row[1:] for row in found}
        missing = [key for key in self.rows if key not in rows]
        unknown = [key for key in rows if key not in self.rows]
        problems = []
        if missing:
            text = f"Unable to find {len(missing)} required key values in the '{self.key}' column"
            problems.append(f"{text}: {examples(missing)}")
        if unknown:
            text = f"{len(unknown)} values in the '{self.key}' column unknown"
            problems.append(f"{text}: {examples(unknown)}")
        if len(found) > len(rows):
            problems.append(f"duplicate values in the '{self.key}' column")
        if problems:
            raise InvalidCsv(". ".join(problems))
        return rows


Judge = Callable[[Answers, Sequence[str], Mapping[str, list[str]]], float]
"""Scores the rows with these ids, given all predictions by id. Raises InvalidCsv."""


def read_scorer(path: Path, metric: str = "") -> Scorer:
    """What scores the submissions of a competition, by its solution.csv.

    Raises InvalidCsv: the solution does not fit the metric, or the metric is unknown.
    """
    if not metric:
        return partial(score, read_solution(path))
    answers = Answers.read(path)
    if ":" in metric:
        return partial(_score, answers, partial(_by_function, _function(metric)))
    if metric not in METRICS:
        raise InvalidCsv(f"no metric is called {metric}: {', '.join(sorted(METRICS))}")
    return partial(_score, answers, partial(_by_name, METRICS[metric]))


def _score(answers: Answers, judge: Judge, submission: Path) -> Scores:
    """Both scores; None where no row is part of one."""
    predicted = answers.predictions(submission)

    def of(usage: str) -> float | None:
        keys = [key for key, value in answers.usage.items() if value == usage]
        return judge(answers, keys, predicted) if keys else None

    return Scores(of("Public"), of("Private"))


def _by_name(
    metric: Callable[[Columns, Columns], float],
    answers: Answers,
    keys: Sequence[str],
    predicted: Mapping[str, list[str]],
) -> float:
    truth, given = (
        [list(column) for column in zip(*(rows[key] for key in keys), strict=True)]
        for rows in (answers.rows, predicted)
    )
    try:
        return float(metric(truth, given))
    except ImportError as error:
        raise InvalidCsv(f"this metric needs scikit-learn: {error}") from None
    except ValueError as error:  # as scikit-learn says it
        raise InvalidCsv(str(error)) from None


def _by_function(
    function: Callable[..., float],
    answers: Answers,
    keys: Sequence[str],
    predicted: Mapping[str, list[str]],
) -> float:
    try:
        import pandas

        frames = []
        for rows in (answers.rows, predicted):
            table = [[key, *rows[key]] for key in keys]
            frames.append(_typed(pandas.DataFrame(table, columns=[answers.key, *answers.names])))
        return float(function(*frames, answers.key))
    except Exception as error:  # of the competition's own code, for the participant
        raise InvalidCsv(f"{type(error).__name__}: {error}") from None


def _function(name: str) -> Callable[..., float]:
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidCsv(f"--metric {name} cannot be imported: {error}") from None
    finally:
        sys.path.pop(0)


def _typed(frame: Any) -> Any:
    """A DataFrame whose columns of numbers are numeric."""
    import pandas

    for name in frame:
        with contextlib.suppress(ValueError, TypeError):  # a column of texts
            frame[name] = pandas.to_numeric(frame[name])
    return frame


# The metrics by name. Each takes the true and the predicted columns.


def _numbers(columns: Columns) -> list[list[float]]:
    """Rows of numbers. Raises ValueError."""
    return [[_number(cell) for cell in row] for row in zip(*columns, strict=True)]


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{cell!r} is not a number") from None


def _labels(columns: Columns) -> list[str]:
    """The values of the only column; 1 and 1.0 are the same."""
    (column,) = columns
    return [_label(cell.strip()) for cell in column]


def _label(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else str(number)


def _of_numbers(name: str) -> Callable[[Columns, Columns], float]:
    def metric(truth: Columns, given: Columns) -> float:
        metrics = importlib.import_module("sklearn.metrics")
        value: float = getattr(metrics, name)(_numbers(truth), _numbers(given))
        return value

    return metric


def _accuracy(truth: Columns, given: Columns) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(_labels(truth), _labels(given)))


def _f1(truth: Columns, given: Columns) -> float:
    """Of the class 1 if the classes are 0 and 1, else the mean over the classes."""
    from sklearn.metrics import f1_score

    true = _labels(truth)
    binary = set(true) <= {"0", "1"}
    kind: dict[str, str] = {"pos_label": "1"} if binary else {"average": "macro"}
    return float(f1_score(true, _labels(given), zero_division=0, **kind))


def _log_loss(truth: Columns, given: Columns) -> float:
    """Of one column with the probability of class 1, or of one column for each class."""
    from sklearn.metrics import log_loss

    true, probabilities = _numbers(truth), _numbers(given)
    if len(truth) == 1:
        (labels,), (ones,) = zip(*true, strict=True), zip(*probabilities, strict=True)
        return float(log_loss(labels, ones, labels=[0, 1]))
    classes = [row.index(max(row)) for row in true]
    rows = [[value / (sum(row) or 1.0) for value in row] for row in probabilities]
    return float(log_loss(classes, rows, labels=range(len(truth))))


def _auc(truth: Columns, given: Columns) -> float:
    """The mean over the columns."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(_numbers(truth), _numbers(given)))


def _mean_iou(truth: Columns, given: Columns) -> float:
    """The mean over images of the IoU of run-length encoded masks; two empty masks score 1."""
    (true,), (predicted,) = truth, given
    values = []
    for one, other in zip(map(decode, true), map(decode, predicted), strict=True):
        union = (one | other).bit_count()
        values.append((one & other).bit_count() / union if union else 1.0)
    return sum(values) / len(values)


LOWER_IS_BETTER = frozenset({"rmse", "rmsle", "mae", "log_loss"})
"""The metrics whose lowest value is the best; of a function of one's own the highest is [?]."""
METRICS: dict[str, Callable[[Columns, Columns], float]] = {
    "rmse": _of_numbers("root_mean_squared_error"),
    "rmsle": _of_numbers("root_mean_squared_log_error"),
    "mae": _of_numbers("mean_absolute_error"),
    "log_loss": _log_loss,
    "auc": _auc,
    "accuracy": _accuracy,
    "f1": _f1,
    "mean_iou": _mean_iou,
}
