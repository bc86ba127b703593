"""Measure src_salt on a GPU, next to a plain loop, in one run of a few minutes.

The most useful parts run first. Each has a share of the time; what it leaves goes to the
next ones. After every measurement the JSON and the Markdown file are replaced, so a run that is cut
off at any moment leaves what it has measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.gpu.report import report, summary
from benchmarks.gpu.results import (
    BASELINE,
    SMP,
    SMP_DEVICE,
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
    from_json,
    read_results,
    write_results,
)
from benchmarks.measure import ROOT
from src_salt.config import BACKBONES, LOSSES, MIN_IMAGE_SIZE
from src_salt.outputs import write_text

OURS = (BASELINE, "fast", "best")
LOSS = "BCEDice"
TRAINED_LOSSES = {BASELINE: LOSS, "fast": LOSS, "best": "BCEDiceSymmetric"}
"""Of the epochs on the real data, as in the profiles of pyproject.toml."""

MIN_BATCH = 2
"""The smallest batch of src_salt."""

MIN_SHARE = 0.25
"""A part is skipped if less than this share of its own time is left."""

GRACE = 0.05
"""Share of the whole time that a measurement may take after its part's time has passed."""

TIME_OVER = "its time was over"

UNUSABLE = "an error left the GPU unusable"

END_SECONDS = 3.0  # kept for ending the processes and writing the files

DEFAULTS = {"cuda": (3200, 128, [128, 32], 4), "cpu": (32, 64, [16, 8], 2)}
"""Images, pixels, sizes of batches, and loaders of the baseline.

On a CPU, 3,200 images of 128x128 take minutes. Four loaders are what the project file has.
"""


@dataclass(frozen=True)
class Part:
    """Measurements that belong together."""

    name: str
    share: float
    """Of the whole time, relative to the other parts."""

    jobs: tuple[dict[str, Any], ...]
    """The fields of `worker.Job`, without the deadline."""

    in_new_processes: bool = False
    needs_data: bool = False


@dataclass
class Run:
    """A run in progress: the results so far, and the process that measures."""

    results: Results
    options: argparse.Namespace
    plan: dict[str, int]
    log: Any
    """The file that receives what the processes print."""

    began: float
    worker: _Worker | None = None
    part: str = ""

    @property
    def end(self) -> float:
        """When the last measurement must have ended, in the seconds of time.time()."""
        return self.began + self.results.budget_seconds - END_SECONDS

    def update(self, results: Results) -> None:
        """Keep the results and write both files."""
        self.results = replace(results, used_seconds=round(time.time() - self.began, 1))
        write_results(self.options.json, self.results)
        write_report(self.results, self.options.markdown)

    def fail(self, what: str, reason: str) -> None:
        """Keep why something was not measured."""
        _say(f"  {what}: {reason}")
        failure = Failure(self.part, what, reason)
        self.update(replace(self.results, failures=(*self.results.failures, failure)))

    def start_worker(self) -> _Worker:
        """Return the running process, or start one."""
        if self.worker is None:
            self.worker = _Worker(self.plan, self.options, self.log)
        return self.worker

    def stop_worker(self) -> None:
        """End the process if there is one."""
        if self.worker is not None:
            self.worker.kill()
            self.worker = None


class _Worker:
    """The process of `benchmarks.gpu.worker`."""

    def __init__(self, plan: dict[str, int], options: argparse.Namespace, log: Any) -> None:
        # SIGKILL leaves files behind, such as checkpoints of hundreds of megabytes.
        self.folder = tempfile.mkdtemp(prefix="bench-gpu-")
        given = {
            **{"plan": plan, "peers": str(options.peers or "")},
            **{"folder": self.folder, "started": time.time()},
        }
        environment = os.environ | {"TMPDIR": self.folder}
        if options.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.worker", json.dumps(given)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # so that its own workers can be ended with it
        )
        self.messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.messages.put(json.loads(line))
        self.messages.put(None)

    def receive(self, until: float) -> dict[str, Any] | None:
        """Return the next message, or None if the process has ended.

        Raises:
            queue.Empty: there is none until then.
        """
        return self.messages.get(timeout=max(0.01, until - time.time()))

    def send(self, job: dict[str, Any]) -> None:
        """Give it a job; BrokenPipeError if it has ended."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it and the processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def main() -> None:
    """Measure, and write both files."""
    began = time.time()
    options = _options()
    signal.signal(signal.SIGTERM, _interrupt)
    if options.report:
        sys.exit(0 if write_report(_read_or_exit(options.json), options.markdown) else 1)
    device = _device(options.device)
    images, pixels, sizes, workers = DEFAULTS[device]
    plan = {
        "images": options.images or images,
        "pixels": options.pixels or pixels,
        "workers": workers if options.workers is None else options.workers,
    }
    sizes = options.batches or sizes
    fixed = plan | {"batches": sizes, "turns": options.turns, "epochs": options.epochs}
    results = Results(
        command=shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        budget_seconds=options.minutes * 60,
        options=fixed | {"device": device},
    )
    if options.resume and options.json.exists():
        results = _resumed(results, _read_or_exit(options.json))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    with options.json.with_suffix(".log").open("a", encoding="utf-8") as log:
        run = Run(results, options, plan, log, began)
        run.update(results)
        try:
            _measure(run, parts(sizes, device, options))
        finally:
            run.stop_worker()
    print(summary(run.results))
    _say(f"\n{options.markdown} and {options.json} have everything.")
    if not run.results.of(Rate):
        sys.exit("error: no rate was measured; the reasons are above.")


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=_positive, default=8.0, help="end within this time")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    parser.add_argument("--images", type=_number(4), help="of an epoch (3,200; on a CPU 32)")
    parser.add_argument("--pixels", type=_number(MIN_IMAGE_SIZE), help="128; on a CPU 64")
    parser.add_argument("--batches", type=_sizes, help="sizes of batches (128,32; on a CPU 16,8)")
    parser.add_argument("--turns", type=_number(1), default=3, help="measurements of a rate")
    parser.add_argument("--epochs", type=_number(1), default=20, help="on the real data")
    parser.add_argument(
        "--workers", type=_number(0), help="loaders of the baseline (4; on a CPU 2)"
    )
    parser.add_argument("--data", type=Path, help="the competition's folder or its parent")
    parser.add_argument("--peers", type=Path, help="Python that has segmentation_models_pytorch")
    parser.add_argument("--parts", help="only these, separated by commas (default: all)")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "bench-gpu.json")
    parser.add_argument("--markdown", type=Path, default=ROOT / "build" / "bench-gpu.md")
    parser.add_argument("--resume", action="store_true", help="continue the run of the JSON file")
    parser.add_argument("--report", action="store_true", help="only write the Markdown file again")
    return parser.parse_args()


def _positive(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:  # not so for nan
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < MIN_BATCH:
        raise argparse.ArgumentTypeError(
            f"must be whole numbers of at least {MIN_BATCH}, separated by commas, not {text}"
        )
    return sizes


def _number(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return int(text)

    return number


def _device(chosen: str) -> str:
    """Return `cuda` or `cpu`, and say so first if there is no GPU."""
    # A process of its own: this one needs no PyTorch.
    program = "import torch; print(torch.cuda.is_available())"
    has_gpu = chosen != "cpu" and (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True
        ).stdout.strip()
        == "True"
    )
    if chosen == "cuda" and not has_gpu:
        sys.exit("error: PyTorch finds no GPU.\nnext:  --device cpu measures this CPU")
    if not has_gpu:
        _say("No GPU: this measures the CPU, with small sizes. It says nothing about a GPU.")
    return "cuda" if has_gpu else "cpu"


def _read_or_exit(path: Path) -> Results:
    try:
        return read_results(path)
    except ResultsError as error:
        sys.exit(f"error: {error}")


def _resumed(results: Results, earlier: Results) -> Results:
    """Return the results to continue with."""
    if earlier.options != results.options:
        sys.exit(
            f"error: the earlier run has other options: {earlier.options}, not {results.options}\n"
            "next:  use the same ones, or measure everything without --resume"
        )
    complete = tuple(part for part in earlier.parts if part.state == "complete")
    return replace(
        results, machine=earlier.machine, parts=complete, measurements=earlier.measurements
    )


# --- the parts ----------------------------------------------------------------------------------


def parts(sizes: list[int], device: str, options: argparse.Namespace) -> list[Part]:
    """Return the parts of a run, the most useful first."""
    dtypes = ("bfloat16", "float16") if device == "cuda" else ("bfloat16",)  # a CPU emulates it
    large = sizes[0]

    def rates(backbone: str, programs: tuple[str, ...], size: int, loss: str = LOSS) -> Any:
        cells = [Cell(program, backbone, loss, size) for program in programs]
        return {"kind": "rates", "cells": cells, "turns": options.turns}

    def train(recipe: str) -> dict[str, Any]:
        loss = TRAINED_LOSSES[recipe]
        data = str(Path(options.data).resolve()) if options.data else ""
        return {
            **{"kind": "train", "recipe": recipe, "loss": loss},
            **{"data": data, "epochs": options.epochs},
        }

    everything = (*OURS, SMP, SMP_DEVICE)
    profiled = [
        Cell(program, backbone, LOSS, size)
        for backbone, chosen in ((BACKBONES[0], sizes), (BACKBONES[1], sizes[:1]))
        for size in chosen
        for program in ("fast", "best", SMP_DEVICE)
    ]
    halves = [
        Cell(program, BACKBONES[0], LOSS, large, dtype)
        for program in ("fast", "best", SMP_DEVICE)
        for dtype in dtypes
    ]
    others = [loss for loss in LOSSES if loss != LOSS]
    networks = {
        backbone: tuple(rates(backbone, everything, size) | {"predicts": True} for size in sizes)
        for backbone in BACKBONES
    }
    planned = [
        Part("limits", 0.04, ({"kind": "peak"},)),
        Part("resnet34", 0.20, networks["resnet34"]),
        Part("profiles", 0.10, ({"kind": "profile", "cells": profiled},)),
        Part("resnet50", 0.16, networks["resnet50"]),
        Part("epochs", 0.14, (train("fast"), train("best")), needs_data=True),
        Part("precisions", 0.07, ({"kind": "rates", "cells": halves, "turns": options.turns},)),
        Part(
            "first-steps",
            0.07,
            tuple(
                {"kind": "first_step", "cells": [Cell(program, BACKBONES[0], LOSS, sizes[-1])]}
                for program in ("fast", "best", SMP_DEVICE, BASELINE)
            ),
            in_new_processes=True,
        ),
        Part(
            "losses",
            0.10,
            tuple(
                rates(backbone, OURS[::-1], size, loss) | {"turns": 1}
                for backbone in BACKBONES
                for loss in others
                for size in sizes
            ),
        ),
        Part("baseline-epochs", 0.12, (train(BASELINE),), needs_data=True),
    ]
    if not options.parts:
        return planned
    chosen = options.parts.split(",")
    unknown = sorted(set(chosen) - {part.name for part in planned})
    if unknown:
        names = ", ".join(part.name for part in planned)
        sys.exit(f"error: --parts: unknown: {', '.join(unknown)}. Allowed: {names}")
    return [part for part in planned if part.name in chosen]


def _measure(run: Run, planned: list[Part]) -> None:
    """Measure all parts that there is time for."""
    whole = sum(part.share for part in planned)
    budget = run.end - run.began
    deadlines = [
        run.began + budget * used / whole for used in accumulate(part.share for part in planned)
    ]
    for part, deadline in zip(planned, deadlines, strict=True):
        run.part = part.name
        if any(done.name == part.name for done in run.results.parts):
            continue  # of the run that this one continues
        reason = _reason_to_skip(part, deadline, part.share / whole * budget, run)
        if reason:
            _say(f"{part.name}: skipped: {reason}")
            run.update(run.results.with_part(PartState(part.name, "skipped", reason=reason)))
            continue
        _say(f"{part.name}: until {deadline - run.began:.0f} of {run.results.budget_seconds:.0f} s")
        began = time.time()
        run.update(run.results.with_part(PartState(part.name, "running")))
        state, reason = "complete", ""
        for job in part.jobs:
            missing = _missing(run.results, job)
            if missing is None:
                continue
            if time.time() >= deadline:
                state, reason = "stopped", TIME_OVER
                break
            if part.in_new_processes:
                run.stop_worker()
            if reason := _do(run, missing, deadline):
                state = "stopped"
        state_now = PartState(part.name, state, round(time.time() - began, 1), reason)
        run.update(run.results.with_part(state_now))
    run.update(replace(run.results, is_complete=True))


def _reason_to_skip(part: Part, deadline: float, own: float, run: Run) -> str:
    if part.needs_data and not run.options.data:
        return "no --data FOLDER with the competition's data"
    left = deadline - time.time()
    if left < own * MIN_SHARE:
        return (
            f"{max(0.0, run.end - time.time()):.0f} of {run.results.budget_seconds:.0f} s were "
            f"left; this part has {own:.0f} s"
        )
    return ""


def _missing(results: Results, job: dict[str, Any]) -> dict[str, Any] | None:
    """Return the job without what an earlier run has measured; None if nothing is left."""
    if job["kind"] == "peak":
        return None if results.of(Peak) else job
    if job["kind"] == "train":
        done = [one for one in results.of(Trained) if one.recipe == job["recipe"]]
        return None if done and done[0].is_complete else job
    cells = job["cells"]
    if job["kind"] == "rates":
        # All or none: the programs are compared turn by turn.
        complete = all(len(results.rates(cell)) >= job["turns"] for cell in cells)
        return None if complete else job
    profiles, first = results.of(StepProfile), results.of(FirstStep)
    measured = {one.cell for one in (profiles if job["kind"] == "profile" else first)}
    left = [cell for cell in cells if cell not in measured]
    return job | {"cells": left} if left else None


def _do(run: Run, job: dict[str, Any], deadline: float) -> str:
    """Let the process do a job. Return why not all of it was done.

    A process that ends is replaced, and the job goes on without the program that ended it.
    """
    cells: list[Cell] = list(job.get("cells", []))
    hard = min(deadline + GRACE * run.results.budget_seconds, run.end)
    while time.time() < deadline:
        plain = job | {"cells": [asdict(cell) for cell in cells], "deadline": deadline}
        ended, current = _exchange(run, plain, hard)
        if not ended:
            return "" if time.time() < deadline else TIME_OVER
        run.stop_worker()
        if ended != UNUSABLE:  # its error is listed already
            run.fail(current or job["kind"], ended)
        left = [cell for cell in cells if cell.name != current]
        if len(left) == len(cells):
            return ended
        # What was measured before it stays; the others are measured again without it.
        cells = left
        if not cells:
            return ended
    return TIME_OVER


def _exchange(run: Run, job: dict[str, Any], hard: float) -> tuple[str, str]:
    """Send a job and keep the results until it is done.

    Return why the process ended or had to be ended, and what it was measuring; two empty texts if
    it is ready for the next job.
    """
    current = ""
    worker = run.start_worker()
    try:
        worker.send(job)
        while True:
            message = worker.receive(hard)
            if message is None:
                status = worker.process.wait()
                return f"the process ended with status {status}; see the log", current
            if message["kind"] == "end":
                return "", ""
            if message["kind"] == "unusable":
                return UNUSABLE, current
            if message["kind"] == "begin":
                current = message["what"]
            keep(run, message)
    except queue.Empty:
        return f"it was ended, because {TIME_OVER}", current
    except BrokenPipeError:
        status = worker.process.wait()
        return f"the process ended with status {status}; see the log", current


def keep(run: Run, message: dict[str, Any]) -> None:
    """Keep what a message says."""
    if message["kind"] == "machine":
        values = message["value"]
        capability = values["capability"]
        machine = Machine(
            **values | {"capability": None if capability is None else tuple(capability)}
        )
        known = run.results.machine
        if known is None:
            run.update(replace(run.results, machine=machine))
        elif (known.device, known.torch) != (machine.device, machine.torch):
            run.stop_worker()
            sys.exit(
                f"error: the earlier run measured {known.device} with torch {known.torch}, not "
                f"{machine.device} with torch {machine.torch}\n"
                "next:  measure everything again without --resume"
            )
    elif message["kind"] == "measurement":
        try:
            json.dumps(message, allow_nan=False)
        except ValueError:
            run.fail(message["value"]["kind"], f"a value is not finite: {message['value']}")
            return
        found = from_json(message["value"])
        _say(f"  {_short(found)}")
        run.update(run.results.with_measurement(found))
    elif message["kind"] == "failure":
        run.fail(message["what"], message["reason"])


def _short(found: Measurement) -> str:
    if isinstance(found, Rate):
        return f"{found.cell.name}, turn {found.turn}: {found.training:,.1f} images/s"
    if isinstance(found, StepProfile):
        return f"{found.cell.name}: a step of {found.wall * 1e3:.1f} ms"
    if isinstance(found, FirstStep):
        return f"{found.cell.name}: first step after {found.seconds:.1f} s"
    if isinstance(found, Trained):
        reached = "complete" if found.is_complete else f"epoch {found.epochs}"
        return f"{found.recipe}: {reached}, score {found.val_score:.3f}"
    return f"{found.dtype}: {found.flops / 1e12:.3g} Tflop/s"


def write_report(results: Results, path: Path) -> bool:
    """Write the Markdown file. A mistake in a table must not end the measurements."""
    try:
        write_text(path, report(results))
    except Exception:
        traceback.print_exc()
        _say(f"{path} was not written; the JSON file is complete.")
        return False
    return True


def _say(message: str) -> None:
    """Print progress on stderr, since the measurements take minutes."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
