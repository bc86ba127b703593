"""The benchmark of a GPU, on a CPU: cut off, out of time, continued, and its report."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import Run, _do, _options, keep, write_report
from benchmarks.gpu.report import report, summary
from benchmarks.gpu.results import (
    Cell,
    Failure,
    FirstStep,
    Machine,
    Measurement,
    PartState,
    Peak,
    Rate,
    Results,
    ResultsError,
    StepProfile,
    Trained,
    read_results,
    to_json,
    write_results,
)
from benchmarks.gpu.trace import read_trace

ROOT = Path(__file__).parent.parent

H100 = Machine(
    *("NVIDIA H100 80GB HBM3", True, (9, 0), 85_000_000_000, "2.10.0", "12.8", "91002"),
    *("driver", "avx2", 8, "0.6.0"),
)
FAST, BEST = (Cell(name, "resnet34", "BCEDice", 128) for name in ("fast", "best"))


def rate(cell: Cell, training: float, turn: int = 1, **changes: Any) -> Rate:
    found = Rate(cell, turn, "bfloat16", training, 2 * training, None, 10**9, 12_500_000_000, 0.7)
    return replace(found, **changes)


def step(cell: Cell, busy: float, arithmetic: float, other: float, **changes: Any) -> StepProfile:
    """A step of 10 ms, with times in ms."""
    found = StepProfile(
        *(cell, "bfloat16", 900, 0.010, 0.012, 700, 650),
        *(busy / 1e3, arithmetic / 1e3, other / 1e3, (0.001, 0.0005), 1_600_000_000_000),
        slowest=(("sm90_xmma_fprop", 40, 0.003),),
    )
    return replace(found, **changes)


def results(*measurements: Measurement, **changes: Any) -> Results:
    found = Results("python -m benchmarks.gpu", "2026-11-27 21:00 UTC", 480.0, machine=H100)
    for one in measurements:
        found = found.with_measurement(one)
    return replace(found, **changes)


# --- the report ---------------------------------------------------------------------------------


def rows(text: str, program: str) -> list[list[str]]:
    lines = re.findall(rf"^\| {program} .*$", text, re.MULTILINE)
    return [[entry.strip() for entry in line.strip("|").split("|")] for line in lines]


def test_rates_are_compared_with_the_goals_turn_by_turn() -> None:
    baseline, smp = (replace(FAST, program=name) for name in ("baseline", "smp"))
    turns = [
        # Turn by turn 10, 20 and 16 times the baseline's, and 3, 2 and 1 times the plain loop's.
        *(rate(FAST, 9000, 1), rate(baseline, 900, 1), rate(smp, 3000, 1)),
        *(rate(FAST, 8000, 2), rate(baseline, 400, 2), rate(smp, 4000, 2)),
        *(rate(FAST, 8800, 3), rate(baseline, 550, 3), rate(smp, 8800, 3)),
        rate(BEST, 7999, 1),
    ]
    text = summary(results(*turns))
    (fast,), (best,) = rows(text, "fast"), rows(text, "best")
    assert fast[3:] == ["8,800.0", "16.00", "2.00", "not measured", "reached"]
    # Only the turns that both have are compared.
    assert best[3:6] == ["7,999.0", "8.89", "2.67"]
    assert best[-1] == "missed: images/s, baseline"
    (alone,) = rows(summary(results(rate(FAST, 9000))), "fast")
    assert alone[-1] == "unknown: baseline, plain loop"
    slower = summary(results(*turns, machine=replace(H100, device="T4", capability=(7, 5))))
    assert "The goals are for an H100 or H200, not for this T4." in slower
    assert "not judged" in slower
    cpu = results(*turns, machine=replace(H100, device="CPU", is_gpu=False, capability=None))
    assert summary(cpu).startswith("**Not measured on a GPU.**")


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (step(FAST, 4, 3, 1), "**launches** binds: the GPU waits 60% of a step for the host"),
        # 1.6 Tflop in 8 ms are 200 Tflop/s, a quarter of the peak.
        (step(FAST, 9.5, 8, 1.5), "take 80% of a step, at 25% of the peak (launches 5%"),
        (step(FAST, 9.5, 3, 6.5), "**memory** binds: kernels that move data"),
        (step(FAST, 0, 0, 0, kernels=0), "the profiler saw no kernels"),
    ],
    ids=["launches", "arithmetic", "memory", "no kernels"],
)
def test_the_limit_of_a_step_is_named(profile: StepProfile, expected: str) -> None:
    assert expected in summary(results(Peak("bfloat16", 8e14, 3e12), profile))


def test_a_value_that_is_not_finite_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    options = Namespace(json=tmp_path / "gpu.json", markdown=tmp_path / "gpu.md")
    run = Run(results(), options, {}, None, 0.0, part="limits")
    for bandwidth in (float("nan"), 3e12):
        message = {"kind": "measurement", "value": to_json(Peak("bfloat16", 8e14, bandwidth))}
        keep(run, message)
    assert read_results(options.json).of(Peak) == [Peak("bfloat16", 8e14, 3e12)]
    (failure,) = run.results.failures
    assert "not finite" in failure.reason


def everything() -> Results:
    found = results(
        Peak("bfloat16", 8e14, 3e12),
        rate(FAST, 8000, prediction=20_000.0),
        rate(replace(FAST, dtype="float16"), 7000),
        step(FAST, 9, 5, 4),
        FirstStep(FAST, 4.2, 7.5),
        Trained("fast", "BCEDice", 20, 7, 9.5, 0.71, 0.66, False),
    )
    found = found.with_part(PartState("resnet34", "running"))
    found = found.with_part(PartState("resnet34", "stopped", 9.0, "its time was over"))
    return replace(found, failures=(Failure("resnet34", "best", "out of memory: full"),))


def test_every_measurement_survives_the_file_and_has_a_row(tmp_path: Path) -> None:
    path, found = tmp_path / "results.json", everything()
    write_results(path, found)
    assert read_results(path) == found
    assert found.with_measurement(rate(FAST, 9000)).spread(FAST, "training").values == (9000,)
    text = report(found)
    assert "the run did not come to its end" in text
    assert "did not come" not in report(replace(found, is_complete=True))
    machine = replace(H100, peer_loaders=8)
    loaders = report(replace(found, machine=machine, options={"workers": 4}))
    assert "- processes that load: baseline 4, smp 8\n" in loaders
    (first,) = re.findall(r"## First step.*?(\| fast .*?)\n", text, re.DOTALL)
    assert first.split("|")[5:7] == [" 4.20         ", " 7.50        "]
    assert "| fast   | BCEDice | 7 of 20 | 9.5     | 0.7100   | 0.6600 | cut off |" in text
    assert "| resnet34 | stopped | 9.0     | its time was over |" in text
    assert "- best (resnet34): out of memory: full" in text
    # 8,000 images of 12.5 Gflop are 100 of 800 Tflop/s.
    assert "| 12.5            | 12.5%         | 1,000   |" in text
    path.write_text('{"schema": 1}')
    with pytest.raises(ResultsError, match="cannot be read"):
        read_results(path)


def test_a_mistake_in_the_report_does_not_end_the_measurements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = replace(everything(), measurements=(replace(step(FAST, 1, 1, 1), wall=0.0),))
    assert not write_report(broken, tmp_path / "report.md")
    assert "the JSON file is complete" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_gaps_and_kinds_of_kernels_are_read_from_a_trace() -> None:
    def event(category: str, name: str, start: float, duration: float) -> dict[str, Any]:
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration}

    events = [
        {"ph": "M", "name": "process_name"},
        event("cpu_op", "aten::conv2d", 0, 500),
        event("cuda_runtime", "cudaLaunchKernel", 5, 2),
        event("cuda_runtime", "cudaLaunchKernelExC", 8, 2),
        event("cuda_driver", "cuLaunchKernel", 9, 2),
        event("cuda_runtime", "cudaMemcpyAsync", 12, 2),
        event("kernel", "sm90_xmma_fprop_implicit_gemm_bf16bf16_nhwc", 100, 50),
        event("kernel", "void at::native::vectorized_elementwise_kernel<4>", 140, 30),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 180, 10),
        event("kernel", "nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT", 220, 20),
        event("gpu_user_annotation", "step", 0, 1000),
    ]
    trace = read_trace(events)
    assert trace.launches == 3
    assert sum(kernel.is_kernel for kernel in trace.kernels) == 3
    assert trace.busy == pytest.approx(100e-6)  # 100 to 170, 180 to 190, 220 to 240
    assert trace.gaps == pytest.approx([30e-6, 10e-6])
    assert trace.arithmetic == pytest.approx(70e-6)
    assert trace.other == pytest.approx(40e-6)
    assert trace.slowest()[0][0].startswith("sm90_xmma_fprop")


def test_every_cuda_function_that_the_code_uses_exists() -> None:
    """Code for a GPU that no test runs must at least name what PyTorch has."""
    names = set()
    for folder in ("src_salt", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute):
                    names |= set(re.findall(r"^torch\.(?:cuda|backends)\..*", ast.unparse(node)))
    assert len(names) > 15
    torch = importlib.import_module("torch")
    for name in names:
        found: object = torch
        for part in name.split(".")[1:]:
            assert hasattr(found, part), name
            found = getattr(found, part)


# --- the command --------------------------------------------------------------------------------

TINY = ["--device", "cpu", "--images", "4", "--pixels", "32", "--batches", "2", "--workers", "0"]


def command(folder: Path, *options: str) -> list[str]:
    files = ["--json", str(folder / "gpu.json"), "--markdown", str(folder / "gpu.md")]
    return [sys.executable, "-m", "benchmarks.gpu", *TINY, *files, *options]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--batches", value) for value in ("x", "8,", "8,x", "0", "-8", "8,1", "inf", "")),
        *(("--minutes", value) for value in ("x", "nan", "inf", "-inf", "0", "-1")),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", f"{option}={value}"])
    with pytest.raises(SystemExit, match="2"):
        _options()
    assert f"error: argument {option}: must be " in capsys.readouterr().err


@pytest.mark.slow
def test_an_error_that_leaves_the_gpu_unusable_is_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real process, in which only the GPU's error is made up."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from benchmarks.gpu import worker\n"
        "def measure(self, job):\n"
        "    self.on_gpu = True\n"
        "    for cell in job.cells:\n"
        "        self.channel.send('begin', what=cell.name)\n"
        "        with self._recorded(cell.name):\n"
        "            if cell.program == 'fast':\n"
        "                raise RuntimeError('CUDA error: an illegal memory access')\n"
        "            raise ValueError('a mistake')\n"
        "worker.Worker.measure_rates = measure\n"
        "worker.Worker._is_broken = lambda self: 'CUDA' in str(sys.exc_info()[1])\n"
        "worker.main()\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$3"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = Namespace(
        json=tmp_path / "gpu.json", markdown=tmp_path / "gpu.md", device="cpu", peers=None
    )
    plan = {"images": 4, "pixels": 32, "workers": 0}
    with (tmp_path / "log").open("w") as log:
        empty = replace(results(), machine=None)
        run = Run(empty, options, plan, log, time.time(), part="resnet34")
        job = {"kind": "rates", "cells": [FAST, BEST], "turns": 1}
        try:
            said = _do(run, job, time.time() + 200)
        finally:
            run.stop_worker()
    assert [(one.what, one.reason) for one in run.results.failures] == [
        (FAST.name, "RuntimeError: CUDA error: an illegal memory access"),
        (BEST.name, "ValueError: a mistake"),  # in the next process, which goes on
    ]
    assert said == ""


ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def measuring_processes(folder: str) -> list[str]:
    """The processes whose command line names a temporary folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if folder in line:
                found.append(entry.name)
    return found


@pytest.mark.slow
def test_a_killed_run_leaves_its_results_and_can_be_continued(tmp_path: Path) -> None:
    options = ["--parts", "limits,resnet34", "--turns", "2", "--minutes", "4"]
    path, environment = tmp_path / "gpu.json", ONE_THREAD | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command(tmp_path, *options), cwd=ROOT, env=environment, stderr=subprocess.PIPE
    ) as running:
        wait_for(lambda: path.exists() and len(read_results(path).of(Rate)) >= 2, 120)
        (folder,) = map(str, tmp_path.glob("bench-gpu-*"))
        assert measuring_processes(folder)
        running.send_signal(signal.SIGKILL)
        running.communicate()
    found = read_results(path)
    assert not found.is_complete
    assert found.machine is not None
    assert "the run did not come to its end" in (tmp_path / "gpu.md").read_text()
    assert [part.name for part in found.parts] == ["limits", "resnet34"]
    wait_for(lambda: not measuring_processes(folder) and not Path(folder).exists(), 20)

    done = subprocess.run(
        [*command(tmp_path, *options), "--resume"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("No GPU: this measures the CPU")
    assert "Not measured on a GPU" in done.stdout
    whole = read_results(path)
    assert whole.is_complete
    assert [part.state for part in whole.parts] == ["complete", "complete"]
    assert whole.of(Peak) == found.of(Peak)  # kept
    names = {one.cell.program for one in whole.of(Rate)}
    assert names == {"baseline", "fast", "best"}
    assert all(len(whole.rates(one.cell)) == 2 for one in whole.of(Rate))
    # The plain loop's library is not installed in this environment.
    assert {one.reason.partition(":")[0] for one in whole.failures} == {"MissingPeer"}
    assert (tmp_path / "gpu.md").read_text() == report(whole)
    assert not list(tmp_path.glob("bench-gpu-*"))


@pytest.mark.slow
def test_a_run_ends_within_its_time_and_says_what_it_left_out(tmp_path: Path) -> None:
    began = time.monotonic()
    done = subprocess.run(
        command(tmp_path, "--minutes", "0.3"),
        cwd=ROOT,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=100,
    )
    seconds = time.monotonic() - began
    found = read_results(tmp_path / "gpu.json")
    assert seconds < 18 + 6, done.stderr  # starting Python takes some on a busy machine
    assert done.returncode == (0 if found.of(Rate) else 1)
    assert len(found.parts) == 9
    for part in found.parts:
        assert part.state in {"complete", "stopped", "skipped"}
        assert bool(part.reason) == (part.state != "complete"), part
    (epochs,) = [part for part in found.parts if part.name == "epochs"]
    assert epochs.reason == "no --data FOLDER with the competition's data"
    assert "| epochs " in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_full_memory_is_recorded_and_the_other_measurements_go_on() -> None:
    program = """
        import sys, torch
        from benchmarks.gpu.programs import Plan
        from benchmarks.gpu.results import Cell
        from benchmarks.gpu.worker import Channel, Job, Worker
        worker = Worker(Plan(4, 32, 0), Channel(sys.stdout), 0.0)
        with worker._recorded("first") as outcome:
            torch.empty(1 << 50)
        assert outcome.failed
        with worker._recorded("second") as outcome:
            {}["mistake"]
        cells = (Cell("fast", "resnet34", "BCEDice", 2), Cell("fast", "resnet99", "BCEDice", 2),
                 Cell("best", "resnet34", "Lovasz", 2, "bfloat16"))
        worker.do(Job("rates", 1e12, cells))
        worker.do(Job("profile", 1e12, cells[:1]))
        worker.do(Job("first_step", 1e12, cells[:1]))
    """
    lines = [line.removeprefix(" " * 8) for line in program.splitlines()]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    failures = [one["reason"] for one in messages if one["kind"] == "failure"]
    assert failures[0].startswith("out of memory: ")
    assert failures[1] == "KeyError: 'mistake'"
    assert failures[2].startswith("SettingsError: ")
    assert len(failures) == 3
    found = [one["value"] for one in messages if one["kind"] == "measurement"]
    assert [one["kind"] for one in found] == ["rate", "rate", "profile", "first_step"]
    assert found[1]["dtype"] == "bfloat16"
    assert found[2]["operations"] > 500
