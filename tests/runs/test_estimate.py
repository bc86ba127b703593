"""How long a run will take, by earlier runs; each run folder is written as a real run leaves it."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import JsonValue

from kernelkit.config import KernelSettings
from kernelkit.kaggle.types import PRODUCTION
from kernelkit.notebook.manifest import Manifest
from kernelkit.runs.estimate import Certainty, Wanted, estimate
from kernelkit.runs.events import read_events
from kernelkit.runs.manifest import RunRecord
from kernelkit.runs.store import record_push

SLUG = "my-training"
T4X2 = ["Tesla T4", "Tesla T4"]
PARAMETERS: dict[str, JsonValue] = {"epochs": 10, "experiments": ["a", "b"], "size": 64, "seed": 1}


def write_run(
    root: Path,
    version: int = 1,
    *,
    epoch: float = 30.0,
    fixed: float = 100.0,
    gpus: list[str] = T4X2,
    status: str = "complete",
    done: int = 1000,
    **parameters: JsonValue,
) -> None:
    """A run of two experiments, with `epoch` seconds between its epochs, and its log."""
    used = PARAMETERS | parameters
    names, count = used["experiments"], used["epochs"]
    assert isinstance(names, list)
    assert isinstance(count, int)
    shape = "NvidiaTeslaT4" if gpus else ""
    bundle = {"digest": "d" * 64, "outputs": [], "parameters": used, "wants_gpu": bool(gpus)}
    bundle["kernel"] = {"machine_shape": shape}
    record = RunRecord(
        owner="ann",
        slug=SLUG,
        version=version,
        url="",
        digest="d" * 64,
        endpoint=PRODUCTION,
        pushed="x",
    )
    folder = record_push(root, record, Manifest.model_validate(bundle)).path
    time = fixed
    log: list[dict[str, JsonValue]] = [{"event": "start", "experiments": names}]
    times = [0.0]
    for name in names:
        for number in range(1, count + 1):
            time += epoch
            times.append(time)
            of = {"experiment": name, "epoch": number, "epochs": count}
            log.append({"event": "epoch", **of})
    del times[done + 1 :], log[done + 1 :]
    time = times[-1] or fixed
    entries = [
        {"stream_name": "stdout", "time": when, "data": json.dumps(event) + "\n"}
        for when, event in zip(times, log, strict=True)
    ]
    (folder / f"{SLUG}.log").write_text(json.dumps(entries))
    manifest = {"digest": "d" * 64, "status": status, "outputs": [], "seconds": time}
    manifest |= {"hardware": {"gpus": gpus}, "parameters": used}
    (folder / "run-manifest.json").write_text(json.dumps(manifest))


def wanted(gpu: bool = True, **parameters: JsonValue) -> Wanted:
    return Wanted(PARAMETERS | parameters, "NvidiaTeslaT4" if gpu else "", gpu)


def test_without_a_run_nothing_is_claimed(tmp_path: Path) -> None:
    found = estimate(tmp_path, SLUG, wanted(), rehearsals=tmp_path / "none")
    assert found.certainty == Certainty.UNKNOWN
    assert found.seconds is None


def test_epochs_and_experiments_are_scaled_and_the_rest_is_not(tmp_path: Path) -> None:
    write_run(tmp_path)  # 100 s, and 2 x 10 epochs of 30 s
    found = estimate(tmp_path, SLUG, wanted(epochs=40, seed=7))
    assert found.certainty == Certainty.MEASURED
    assert (found.seconds_per_epoch, found.epochs, found.fixed_seconds) == (30, 80, 100)
    assert found.seconds == pytest.approx(100 + 80 * 30)
    assert found.runs == (f"{SLUG}/v1",)
    fewer = estimate(tmp_path, SLUG, wanted(experiments=["a"]))
    assert (fewer.seconds, fewer.certainty) == (100 + 10 * 30, Certainty.MEASURED)
    more = estimate(tmp_path, SLUG, wanted(experiments=["a", "b", "c", "d"]))
    assert more.seconds == 200 + 40 * 30  # each experiment also reads and predicts


def test_the_most_similar_runs_count(tmp_path: Path) -> None:
    write_run(tmp_path, 1, epoch=30)
    write_run(tmp_path, 2, epoch=90, size=128)
    write_run(tmp_path, 3, epoch=40)
    found = estimate(tmp_path, SLUG, wanted())
    assert found.runs == (f"{SLUG}/v3", f"{SLUG}/v1")
    assert (found.seconds_per_epoch, found.certainty) == (35, Certainty.MEASURED)
    assert (found.least, found.most) == (100 + 20 * 30, 100 + 20 * 40)
    other = estimate(tmp_path, SLUG, wanted(size=256))
    assert other.certainty == Certainty.SIMILAR
    assert other.differences == ("size",)
    larger = estimate(tmp_path, SLUG, wanted(size=128))
    assert (larger.runs, larger.seconds_per_epoch) == ((f"{SLUG}/v2",), 90)


def test_a_rehearsal_counts_with_a_ratio_whose_origin_is_stated(tmp_path: Path) -> None:
    runs, rehearsals = tmp_path / "runs", tmp_path / "rehearsal"
    write_run(rehearsals, epoch=81, gpus=[])
    found = estimate(runs, SLUG, wanted(), rehearsals=rehearsals)
    assert found.certainty == Certainty.ASSUMED
    assert found.seconds_per_epoch == pytest.approx(81 * 0.4 / 8.1)
    assert found.fixed_seconds == 100
    assert found.runs == (f"rehearsal {SLUG}/v1",)
    assert (
        "T4 is 20.2 times as fast as a CPU: 8.1 Tflop/s by its data sheet, 0.4 measured"
        in found.assumptions[0]
    )
    stated = estimate(runs, SLUG, wanted(), rehearsals=rehearsals, ratio=10)
    assert stated.seconds_per_epoch == pytest.approx(8.1)
    assert stated.assumptions == ("T4 is 10 times as fast as a CPU: as you said",)
    write_run(runs)  # a run on the GPU itself says more
    assert estimate(runs, SLUG, wanted(), rehearsals=rehearsals).certainty == Certainty.MEASURED


def test_a_cpu_run_and_another_gpu_are_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path, 1, epoch=60, gpus=[])
    assert estimate(tmp_path, SLUG, wanted(gpu=False)).certainty == Certainty.MEASURED
    write_run(tmp_path, 2, gpus=["Tesla P100-PCIE-16GB"])
    found = estimate(tmp_path, SLUG, wanted())
    assert found.certainty == Certainty.ASSUMED
    assert "8.1 Tflop/s by its data sheet, 9.3 by its own" in found.assumptions[0]
    local = estimate(tmp_path, SLUG, wanted(gpu=False), endpoint="http://127.0.0.1:8000")
    assert (local.certainty, local.seconds_per_epoch) == (Certainty.ASSUMED, 60)
    assert local.assumptions == ("a CPU on Kaggle is as fast as the one of that run",)


def test_a_tpu_is_neither_a_gpu_nor_a_cpu(tmp_path: Path) -> None:
    write_run(tmp_path, 1, gpus=[])
    kernel = KernelSettings(id=SLUG, title="My training", machine_shape="TpuV5E8", enable_gpu=True)
    tpu = Wanted.of(kernel, PARAMETERS)
    assert (tpu.wants_gpu, tpu.wants_tpu) == (False, True)
    found = estimate(tmp_path, SLUG, tpu)
    assert (found.certainty, found.seconds) == (Certainty.UNKNOWN, None)
    assert found.assumptions == ("how fast TpuV5E8 is compared with a CPU is not known",)
    assert estimate(tmp_path, SLUG, tpu, ratio=5).certainty == Certainty.ASSUMED


def test_a_failed_run_counts_by_its_epochs_or_not_at_all(tmp_path: Path) -> None:
    write_run(tmp_path, 1, status="failed", done=3)
    found = estimate(tmp_path, SLUG, wanted())
    assert (found.seconds_per_epoch, found.epochs, found.fixed_seconds) == (30, 20, 100)
    write_run(tmp_path, 2, status="failed", done=0)
    assert estimate(tmp_path, SLUG, wanted()).runs == (f"{SLUG}/v1",)


def test_the_sessions_of_a_chain_count_as_parts_of_the_work(tmp_path: Path) -> None:
    write_run(tmp_path, 1, done=5)
    log = tmp_path / SLUG / "v1" / f"{SLUG}.log"
    entries = json.loads(log.read_text())
    end = {"stream_name": "stdout", "time": 400, "data": '{"event": "incomplete"}\n'}
    log.write_text(json.dumps([*entries, end]))
    assert estimate(tmp_path, SLUG, wanted()).epochs == 20
    write_run(tmp_path, 2)
    log = tmp_path / SLUG / "v2" / f"{SLUG}.log"
    entries = json.loads(log.read_text())
    log.write_text(json.dumps([entries[0], *entries[8:]]))  # it began with the eighth epoch
    found = estimate(tmp_path, SLUG, wanted())
    assert (found.epochs, found.runs) == (20, (f"{SLUG}/v2", f"{SLUG}/v1"))


def test_without_epochs_the_whole_time_grows_and_that_is_no_measurement(tmp_path: Path) -> None:
    write_run(tmp_path, done=0)
    assert estimate(tmp_path, SLUG, wanted(seed=3)).certainty == Certainty.MEASURED
    found = estimate(tmp_path, SLUG, wanted(epochs=20))
    assert (found.certainty, found.differences) == (Certainty.SIMILAR, ("epochs",))
    assert (found.seconds, found.epochs) == (200, None)


@pytest.mark.parametrize("log", ["", "no json", "[{]", '[{"data": 3}]', "\x00"])
def test_a_damaged_log_has_no_events(log: str, tmp_path: Path) -> None:
    path = tmp_path / "some.log"
    path.write_text(log)
    assert list(read_events(path)) == []
    assert list(read_events(tmp_path / "missing")) == []


def test_the_pieces_of_a_line_are_joined_by_stream(tmp_path: Path) -> None:
    def entry(stream: str, time: float, data: str) -> Mapping[str, JsonValue]:
        return {"stream_name": stream, "time": time, "data": data}

    path = tmp_path / "some.log"
    pieces = [
        entry("stdout", 1.0, 'x\n{"event": "ep'),
        entry("stderr", 1.5, "50%\r100%\n"),
        entry("stdout", 2.0, 'och", "epoch": 1}\n10%\r{"event": "epoch", "epoch": 2}\n'),
        entry("stdout", 3.0, '{"event": "end"}'),
    ]
    path.write_text(json.dumps(pieces))
    found = [(one.seconds, one.event.kind, one.event.numbers) for one in read_events(path)]
    assert found == [(2, "epoch", {"epoch": 1}), (2, "epoch", {"epoch": 2}), (3, "end", {})]


def test_a_line_may_come_in_very_many_pieces(tmp_path: Path) -> None:
    text = '{"event": "epoch", "epoch": 1}\n' + 100_000 * "#" + '\n{"event": "end"}\n'
    path = tmp_path / "some.log"
    path.write_text(
        json.dumps([{"stream_name": "stdout", "time": 1.0, "data": one} for one in text])
    )
    began = time.process_time()
    assert [one.event.kind for one in read_events(path)] == ["epoch", "end"]
    assert time.process_time() - began < 20  # 1 s; minutes if each piece counts those before it


@pytest.mark.parametrize(
    "form",
    ["array", *(pytest.param(one, marks=pytest.mark.slow) for one in ("plain", "cut off"))],
)
def test_a_log_of_any_size_has_events(form: str, tmp_path: Path) -> None:
    """More than 64 MB, with entries and lines longer than the parts in which it is read."""
    path = tmp_path / "some.log"
    bulk, each = "é" * 3_000_000, 12
    with path.open("w", encoding="utf-8") as stream:
        stream.write("" if form == "plain" else "[")
        for number in range(each):
            text = f'[{number}] {bulk}\n{{"event": "epoch", "epoch": {number}}}\n'
            if form != "plain":
                entry = {"stream_name": "stdout", "time": number, "data": text}
                text = ("," if number else "") + json.dumps(entry, ensure_ascii=False) + "\n"
            stream.write(text)
        stream.write({"array": "]", "plain": "the end", "cut off": ',{"data": "x'}[form])
    assert path.stat().st_size > 64 << 20
    tracemalloc.start()
    try:
        found = [(one.seconds, one.event.numbers["epoch"]) for one in read_events(path)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == [(0 if form == "plain" else number, number) for number in range(each)]
    assert peak < path.stat().st_size / 2
