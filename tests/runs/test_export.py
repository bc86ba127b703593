"""Exported runs, read back with csv, pandas, TensorBoard's reader and MLflow's client."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import JsonValue
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from kernelkit.errors import ConfigError
from kernelkit.kaggle.types import PRODUCTION
from kernelkit.notebook.manifest import Manifest
from kernelkit.runs.export import ExportFormat, export
from kernelkit.runs.manifest import RunEnd, RunRecord
from kernelkit.runs.store import RunFolder, record_end, record_push
from tests.conftest import Cli

OLD_RUNS = Path(__file__).parents[1] / "samples" / "old_runs" / "kept"
"""Folders of real runs, as kernelkit 0.1.0 has left them."""

STARTED = 1_764_000_000.0  # 2025-11-24T16:00:00Z


def write_run(
    root: Path, version: int = 1, *, state: str = "complete", pulled: bool = True, **more: JsonValue
) -> RunFolder:
    """A run of two experiments with three epochs each, as a pull leaves it."""
    parameters: dict[str, JsonValue] = {"rate": 0.1, "names": ["a", "b"], "flag": True} | more
    bundle = {"digest": "d" * 64, "outputs": [], "parameters": parameters}
    record = RunRecord(
        owner="ann", slug="my-training", version=version, url="u", digest="d" * 64,
        endpoint=PRODUCTION, pushed="2025-11-24T15:59:00+00:00",
    )  # fmt: skip
    folder = record_push(root, record, Manifest.model_validate(bundle))
    entries = []
    for time, (name, epoch) in enumerate((n, e) for n in ("a/1", "b") for e in (1, 2, 3)):
        event = {"event": "epoch", "experiment": name, "epoch": epoch, "val_iou": epoch / 4}
        entries.append({"stream_name": "stdout", "time": time, "data": json.dumps(event) + "\n"})
    result = {"event": "result", "score": 0.5}
    entries.append({"stream_name": "stdout", "time": 9.5, "data": json.dumps(result) + "\n"})
    folder.log.write_text(json.dumps(entries))
    manifest = {"digest": "d" * 64, "status": "complete", "outputs": [], "seconds": 10.0}
    manifest |= {"started": "2025-11-24T16:00:00Z", "parameters": parameters}
    (folder.path / "run-manifest.json").write_text(json.dumps(manifest))
    if pulled:
        record_end(folder, RunEnd(state=state, verified=state == "complete"))
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_csv_has_a_row_for_each_run_and_each_event(tmp_path: Path) -> None:
    root, out = tmp_path / "runs", tmp_path / "out"
    write_run(root)
    write_run(root, 2, state="error", text='=1+1, "quoted"\nline', tables={"k": [1]})
    write_run(root, 3, pulled=False)
    done = export(root, ExportFormat.CSV, out)
    assert done.written == ("my-training/v1", "my-training/v2", "my-training/v3")
    runs = rows(out / "runs.csv")
    assert [(row["run"], row["version"], row["state"]) for row in runs] == [
        ("ann/my-training", "1", "complete"),
        ("ann/my-training", "2", "failed"),
        ("ann/my-training", "3", "not pulled"),
    ]
    assert (runs[0]["metric"], runs[0]["value"], runs[0]["epoch"]) == ("val_iou", "0.75", "3")
    assert runs[0]["seconds"] == "10.0"
    assert (runs[0]["parameters.rate"], runs[0]["parameters.names"]) == ("0.1", '["a", "b"]')
    assert runs[0]["parameters.text"] == ""
    assert runs[1]["parameters.text"] == '=1+1, "quoted"\nline'
    assert json.loads(runs[1]["parameters.tables"]) == {"k": [1]}
    events = pd.read_csv(out / "events.csv")
    assert list(events.columns) == [
        *("run", "version", "event", "experiment", "trial", "time", "epoch", "score", "val_iou")
    ]
    assert len(events) == 2 * 7
    best = events[events.version == 1].groupby("experiment").val_iou.max()
    assert best.to_dict() == {"a/1": 0.75, "b": 0.75}
    assert events[events.event == "result"].score.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("to", ["csv", "tensorboard"])
def test_a_second_export_changes_nothing_and_a_third_only_what_is_new(
    to: ExportFormat, tmp_path: Path
) -> None:
    root, out = tmp_path / "runs", tmp_path / "out"
    write_run(root)
    assert export(root, ExportFormat(to), out).written == ("my-training/v1",)
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*.*")}
    again = export(root, ExportFormat(to), out)
    assert (again.written, again.unchanged) == ((), ("my-training/v1",))
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*.*")} == files
    write_run(root, 2)
    assert "my-training/v2" in export(root, ExportFormat(to), out).written


def scalars(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_tensorboard_reads_scalars_and_parameters(tmp_path: Path) -> None:
    root, out = tmp_path / "runs", tmp_path / "board"
    write_run(root)
    write_run(root, 2, pulled=False)
    assert export(root, ExportFormat.TENSORBOARD, out).written == ("my-training/v1",)
    run = out / "my-training" / "v1"
    for name in ("a-1", "b"):
        found = scalars(run / name)
        assert found.Tags()["scalars"] == ["val_iou"]
        points = [(point.step, point.value) for point in found.Scalars("val_iou")]
        assert points == [(1, 0.25), (2, 0.5), (3, 0.75)]
    times = [point.wall_time for point in scalars(run / "b").Scalars("val_iou")]
    assert times == [STARTED + 3, STARTED + 4, STARTED + 5]
    own = scalars(run)
    assert [(point.step, point.value) for point in own.Scalars("result/score")] == [(1, 0.5)]
    content = own.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    data = plugin_data_pb2.HParamsPluginData.FromString(content)
    values = data.session_start_info.hparams
    assert values["rate"].number_value == 0.1
    assert values["flag"].bool_value is True
    assert values["names"].string_value == '["a", "b"]'
    stale = run / "gone" / "events.out.tfevents.1.kernelkit"
    foreign = run / "events.out.tfevents.1.other"
    for path in (stale, foreign):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert export(root, ExportFormat.TENSORBOARD, out).written == ("my-training/v1",)
    assert (stale.exists(), foreign.exists()) == (False, True)


def test_runs_of_an_older_kernelkit_are_exported(tmp_path: Path) -> None:
    done = export(OLD_RUNS, ExportFormat.TENSORBOARD, tmp_path)
    assert done.written == ("plain-parcel/v1", "plain-parcel/v2")
    found = scalars(tmp_path / "plain-parcel" / "v1" / "counting")
    assert [point.value for point in found.Scalars("val_iou")] == [0.5, 1.0]


def mlflow_runs(out: Path) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("my-training")
        assert experiment
        return [client, list(client.search_runs([experiment.experiment_id]))]


@pytest.mark.slow
def test_mlflow_reads_runs_with_parameters_metrics_and_states(tmp_path: Path) -> None:
    root, out = tmp_path / "runs", tmp_path / "out"
    write_run(root)
    write_run(root, 2, state="error", long="x" * 10_000, **{f"p{n}": n for n in range(150)})
    assert len(export(root, ExportFormat.MLFLOW, out).written) == 2
    assert export(root, ExportFormat.MLFLOW, out).unchanged == ("my-training/v1", "my-training/v2")
    client, runs = mlflow_runs(out)
    by_name: Mapping[str, Any] = {run.info.run_name: run for run in runs}
    assert len(runs) == 2
    first, second = by_name["v1"], by_name["v2"]
    assert (first.info.status, second.info.status) == ("FINISHED", "FAILED")
    assert first.info.start_time == STARTED * 1000
    assert first.info.end_time == (STARTED + 10) * 1000
    assert first.data.params == {"rate": "0.1", "names": '["a", "b"]', "flag": "true"}
    assert first.data.tags["digest"] == "d" * 64
    assert len(second.data.params) == 154
    history = client.get_metric_history(first.info.run_id, "b/val_iou")
    assert [(point.step, point.value) for point in history] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert first.data.metrics["result/score"] == 0.5
    log = root / "my-training" / "v2" / "my-training.log"
    log.write_text(log.read_text().replace("0.75", "0.8"))
    assert export(root, ExportFormat.MLFLOW, out).written == ("my-training/v2",)
    assert len(mlflow_runs(out)[1]) == 2
    assert not (tmp_path / "mlruns").exists()


def test_a_run_with_a_damaged_record_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", 1)
    damaged = write_run(tmp_path / "runs", 2)
    (damaged.path / "push.json").write_text("{")
    said: list[str] = []
    done = export(tmp_path / "runs", ExportFormat.CSV, tmp_path / "out", on_event=said.append)
    assert done.written == ("my-training/v1",)
    assert any(line.startswith("warning: left out: ") and "v2" in line for line in said)


def test_nothing_to_export_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path, pulled=False)
    with pytest.raises(ConfigError, match="no run to export"):
        export(tmp_path, ExportFormat.TENSORBOARD, tmp_path / "out")


def test_the_command_names_the_folder_and_how_to_look_at_it(tmp_path: Path, cli: Cli) -> None:
    write_run(tmp_path / "runs")
    shown = cli("runs", "export", "--to", "tensorboard", cwd=tmp_path).stdout
    assert "1 run written, 0 unchanged" in shown
    assert "tensorboard --logdir" in shown
    out = tmp_path / "here"
    done = cli("runs", "export", "--to", "csv", "--out", out, "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == {
        "to": "csv",
        "folder": str(out),
        "written": ["my-training/v1"],
        "unchanged": [],
    }
    assert "Choose one of csv" in cli("runs", "export", "--to", "x", cwd=tmp_path, expect=2).stderr
