"""The runs of a project in formats that other tools read: csv, TensorBoard, MLflow.

    csv          runs.csv, a row for each run; events.csv, a row for each event
    tensorboard  <slug>/v<version>/<experiment>/events.out.tfevents.…: scalars and parameters
    mlflow       mlflow.db: an experiment for each slug, a run for each version

An export can be repeated: what is there already stays, and what has changed is replaced.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from kernelkit.errors import ConfigError, LocalError, require_extra, silent
from kernelkit.kaggle.types import State, ignore
from kernelkit.runs import store
from kernelkit.runs.events import TimedEvent, read_events
from kernelkit.runs.history import RunDetails, show
from kernelkit.storage import (
    UnsafePathError,
    as_json,
    counted,
    digest_of_bytes,
    make_ignored_folder,
    safe_path,
    write_atomically,
)

PARAMETER_CHARACTERS = 6000  # of a value in MLflow
PARAMETERS_A_CALL, METRICS_A_CALL = 100, 1000  # MLflow's limits
RUN_TAG, CONTENT_TAG = "kernelkit.run", "kernelkit.content"
OWN_SUFFIX = ".kernelkit"
"""Ends the names of the files for TensorBoard: no other writer's file is touched."""

_STATUS = {State.COMPLETE: "FINISHED", State.ERROR: "FAILED", State.CANCEL_ACKNOWLEDGED: "KILLED"}


class ExportFormat(StrEnum):
    """Where runs can be exported to."""

    CSV = "csv"
    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"


_MODULES: Mapping[ExportFormat, tuple[str, ...]] = {
    ExportFormat.CSV: (),
    ExportFormat.TENSORBOARD: ("tensorboard",),
    ExportFormat.MLFLOW: ("mlflow", "alembic"),
}
"""What each format imports, and the extra of its name installs."""


@dataclass(frozen=True)
class Exported:
    """What an export has left."""

    to: ExportFormat
    folder: Path
    written: tuple[str, ...]
    """Runs that are new or have changed, as `slug/v3`."""

    unchanged: tuple[str, ...]
    """Runs that were there already."""


@dataclass(frozen=True)
class _Run:
    """A run with its events."""

    details: RunDetails
    slug: str
    started: float
    """Of its session, in seconds since 1970; when it was pushed, if it does not say."""

    events: Sequence[TimedEvent]

    @property
    def name(self) -> str:
        return f"{self.slug}/v{self.details.version}"

    @property
    def scalars(self) -> Iterator[tuple[str, str, int, float, float]]:
        """Each number of each event: experiment, name, step, value, and seconds since 1970.

        An epoch is the step of its numbers. Numbers of other events have the event's name before
        them, and count their steps themselves.
        """
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for one in self.events:
            event = one.event
            experiment = event.label
            counts[experiment, event.kind] += 1
            step = int(event.numbers.get("epoch", counts[experiment, event.kind]))
            for key, value in event.numbers.items():
                if key in ("epoch", "epochs"):
                    continue
                name = key if event.kind == "epoch" else f"{event.kind}/{key}"
                yield experiment, name, step, float(value), self.started + one.seconds


def export(
    root: Path,
    to: ExportFormat,
    out: Path,
    *,
    on_event: Callable[[str], None] = ignore,
) -> Exported:
    """Export all runs below `root` into the folder `out`. Only a csv lists runs before their pull.

    Raises:
        ConfigError: there are no runs, or the library of the format is not installed.
        LocalError: the folder cannot be written.
    """
    require_extra(to.value, *_MODULES[to])
    folders = [one for one in store.folders(root) if to == ExportFormat.CSV or one.is_complete()]
    if not folders:
        raise ConfigError(f"{root} has no run to export", "Pull a run first: `kernelkit pull`.")
    for folder in store.versions(root):
        if problem := folder.problem():
            on_event(f"warning: left out: {problem}")
    make_ignored_folder(out)
    write = {
        ExportFormat.CSV: _write_csv,
        ExportFormat.TENSORBOARD: _write_tensorboard,
        ExportFormat.MLFLOW: _write_mlflow,
    }[to]
    on_event(f"reading {counted(len(folders), 'run')}")
    try:
        written = write([_read(folder) for folder in folders], out)
    except OSError as error:
        raise LocalError(f"{out} cannot be written: {error.strerror or error}") from error
    names = [f"{folder.slug}/v{folder.version}" for folder in folders]
    return Exported(
        to,
        out,
        tuple(name for name in names if name in written),
        tuple(name for name in names if name not in written),
    )


def _read(folder: store.RunFolder) -> _Run:
    details = show(folder)
    started = details.started or details.pushed
    try:
        seconds = datetime.fromisoformat(started).timestamp()
    except ValueError:
        seconds = datetime.fromisoformat(details.pushed).timestamp()
    events = list(read_events(folder.log)) if folder.is_complete() else []
    return _Run(details, folder.slug, seconds, events)


# csv


def _write_csv(runs: Sequence[_Run], out: Path) -> set[str]:
    """Both tables; returns the runs in them if one of the files has changed."""
    parameters = sorted({name for run in runs for name in run.details.parameters.document})
    rows = [_run_row(run, parameters) for run in runs]
    numbers = sorted({name for run in runs for one in run.events for name in one.event.numbers})
    first = [name for name in ("epoch", "epochs") if name in numbers]
    numbers = [*first, *(name for name in numbers if name not in first)]
    events = [_event_row(run, one, numbers) for run in runs for one in run.events]
    heading = ["run", "version", "event", "experiment", "trial", "time", *numbers]
    changed = [
        _replace(out / "runs.csv", _table(list(rows[0]), [list(row.values()) for row in rows])),
        _replace(out / "events.csv", _table(heading, events)),
    ]
    return {run.name for run in runs} if any(changed) else set()


def _run_row(run: _Run, parameters: Sequence[str]) -> Mapping[str, object]:
    details = run.details
    metric = details.metric
    used = details.parameters.document
    gpus = details.hardware.document.get("gpus")
    return {
        "run": details.run,
        "version": details.version,
        "digest": details.digest,
        "commit": details.commit,
        "profile": details.profile,
        "pushed": details.pushed,
        "state": details.state_word,
        "verified": details.verified,
        "metric": metric and metric.name,
        "value": metric and metric.value,
        "goal": metric and metric.goal,
        "experiment": metric and metric.experiment,
        "epoch": metric and metric.epoch,
        "seconds": details.seconds,
        "gpu_seconds": details.gpu_seconds,
        "gpus": ", ".join(map(str, gpus)) if isinstance(gpus, list) else None,
        "public_score": details.public_score,
        "private_score": details.private_score,
        **{f"parameters.{name}": _cell(used.get(name)) for name in parameters},
    }


def _event_row(run: _Run, one: TimedEvent, numbers: Sequence[str]) -> list[object]:
    event, details = one.event, run.details
    what = [details.run, details.version, event.kind, event.experiment, event.trial, one.seconds]
    return [*what, *(event.numbers.get(name) for name in numbers)]


def _cell(value: JsonValue) -> JsonValue:
    """A value as a cell: a text is plain, a list or a table is JSON."""
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def _table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(rows)
    return stream.getvalue().encode(errors="backslashreplace")


def _replace(path: Path, content: bytes) -> bool:
    """Write a file, unless it has this content already; whether it was written."""
    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return True


# TensorBoard


def _write_tensorboard(runs: Sequence[_Run], out: Path) -> set[str]:
    """A file for each experiment of each run; returns the runs of which a file has changed."""
    written = set()
    for run in runs:
        folder = out / run.slug / f"v{run.details.version}"
        files = _tensorboard_files(run, folder)
        changed = [_replace(path, content) for path, content in files.items()]
        stale = [path for path in folder.rglob(f"*{OWN_SUFFIX}") if path not in files]
        for path in stale:
            path.unlink()
        if any(changed) or stale:
            written.add(run.name)
    return written


def _tensorboard_files(run: _Run, folder: Path) -> Mapping[Path, bytes]:
    """The content of each file: the parameters in the run's folder, scalars by experiment."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import summary_v2

    used = run.details.parameters.document
    parameters = {
        name: value if isinstance(value, bool | int | float | str) else _text(value)
        for name, value in used.items()
    }
    summary = summary_v2.hparams_pb(parameters, trial_id=run.name, start_time_secs=run.started)
    records: dict[Path, list[tuple[float, int, Any]]] = {folder: [(run.started, 0, summary)]}
    for experiment, name, step, value, when in run.scalars:
        place = folder / _folder_name(experiment) if experiment else folder
        scalar = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        records.setdefault(place, []).append((when, step, scalar))
    name = f"events.out.tfevents.{run.started:.0f}{OWN_SUFFIX}"
    return {place / name: _tensorboard_bytes(run, found) for place, found in records.items()}


def _tensorboard_bytes(run: _Run, records: Sequence[tuple[float, int, Any]]) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    writer = RecordWriter(stream)
    events = [Event(wall_time=run.started, file_version="brain.Event:2")]
    events += [Event(wall_time=when, step=step, summary=one) for when, step, one in records]
    for event in events:
        writer.write(event.SerializeToString(deterministic=True))
    return stream.getvalue()


def _folder_name(experiment: str) -> str:
    """An experiment's name as one folder; a hash where it cannot be one."""
    name = experiment.replace("/", "-")
    try:
        safe_path(name)
    except UnsafePathError:
        return digest_of_bytes(experiment.encode(errors="backslashreplace"))[:12]
    return name


# MLflow


def _write_mlflow(runs: Sequence[_Run], out: Path) -> set[str]:
    """A run for each version; returns those that are new or have changed."""
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):  # it would report to its makers
        os.environ[name] = "true"
    with silent(logging.INFO):  # MLflow and its database library say much about a new database
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{out.resolve() / 'mlflow.db'}")
        return {run.name for run in runs if _log_run(client, run, out.resolve() / "artifacts")}


def _log_run(client: Any, run: _Run, artifacts: Path) -> bool:
    """Log a run, unless it is there with the same content; whether it was logged."""
    found = client.get_experiment_by_name(run.slug)
    experiment = (
        found.experiment_id
        if found
        else client.create_experiment(run.slug, artifact_location=(artifacts / run.slug).as_uri())
    )
    content = _content(run)
    there = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run.name}'")
    if any(one.data.tags.get(CONTENT_TAG) == content for one in there):
        return False
    for one in there:  # it was exported before it had its last events or its score
        client.delete_run(one.info.run_id)
    details = run.details
    tags = {"state": details.state_word, "digest": details.digest, "commit": details.commit}
    tags |= {"verified": _text(details.verified), "profile": details.profile, "url": details.url}
    tags |= {"public_score": details.public_score, "private_score": details.private_score}
    started = int(run.started * 1000)
    created = client.create_run(
        experiment,
        start_time=started,
        run_name=f"v{details.version}",
        tags={RUN_TAG: run.name, **{name: tag for name, tag in tags.items() if tag}},
    )
    run_id = created.info.run_id
    _log_values(client, run, run_id)
    client.set_tag(run_id, CONTENT_TAG, content)  # last: without it, the next export repeats all
    status = next((word for state, word in _STATUS.items() if state == details.state), "FINISHED")
    client.set_terminated(run_id, status, end_time=started + int((details.seconds or 0) * 1000))
    return True


def _log_values(client: Any, run: _Run, run_id: str) -> None:
    """Parameters, and every number of the events; with their experiment if there are several."""
    from mlflow.entities import Metric, Param

    parameters = [
        Param(_mlflow_name(name), _text(value)[:PARAMETER_CHARACTERS])
        for name, value in run.details.parameters.document.items()
    ]
    several = len({experiment for experiment, *_ in run.scalars}) > 1
    metrics = [
        Metric(
            _mlflow_name(f"{experiment}/{name}" if several and experiment else name),
            value,
            int(when * 1000),
            step,
        )
        for experiment, name, step, value, when in run.scalars
    ]
    for start in range(0, len(parameters), PARAMETERS_A_CALL):
        client.log_batch(run_id, params=parameters[start : start + PARAMETERS_A_CALL])
    for start in range(0, len(metrics), METRICS_A_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_A_CALL])


def _content(run: _Run) -> str:
    """A hash of everything that is exported of a run."""
    events = [
        [one.seconds, one.event.kind, one.event.label, dict(one.event.numbers)]
        for one in run.events
    ]
    details = {name: one for name, one in run.details.document.items() if name != "folder"}
    return digest_of_bytes(as_json([details, events]).encode(errors="backslashreplace"))


def _mlflow_name(name: str) -> str:
    return re.sub(r"[^\w .:/-]", "_", name, flags=re.ASCII) or "_"


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
