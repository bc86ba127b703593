"""The process that measures. `benchmarks.gpu` starts it, gives it jobs, and reads its messages.

It reads one job a line from stdin, as JSON, and writes one message a line. An error of one program,
such as full memory, does not end the others. After an error that leaves the device unusable, the
process ends, and the command starts another one.
"""

from __future__ import annotations

import gc
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.gpu.profiling import profile_step
from benchmarks.gpu.programs import LIMITED_BY_LOADER, Plan, Program, build, half_of
from benchmarks.gpu.results import (
    Cell,
    FirstStep,
    Machine,
    Measurement,
    Peak,
    Rate,
    StepProfile,
    Trained,
    to_json,
)
from benchmarks.launch import MAXRSS_UNIT
from benchmarks.smp import MissingPeer, add_packages, library, loaders_on
from benchmarks.workload import (
    SHOWN_FLAGS,
    dtype_name,
    make_images,
    now,
    peak_flops_of,
    seconds_of,
)
from src_salt.config import first_line
from src_salt.data import LabelledImages
from src_salt.device import cpu_flags, is_out_of_memory, pick_device, release_memory
from src_salt.main import run

COPY_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
COPIES = 5

PARENT_SECONDS = 0.5  # between two looks whether the command still runs

NVIDIA_SMI = (
    "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit,"
    "ecc.errors.uncorrected.volatile.total"
)


class Unusable(Exception):
    """The device cannot be used any more by this process."""


class Channel:
    """Sends messages to the command."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def send(self, kind: str, **values: Any) -> None:
        """Send one message as a line of JSON."""
        self.stream.write(json.dumps({"kind": kind, **values}) + "\n")
        self.stream.flush()

    def measurement(self, found: Measurement) -> None:
        """Send a measurement."""
        self.send("measurement", value=to_json(found))

    def failure(self, what: str, reason: str) -> None:
        """Send why something could not be measured."""
        self.send("failure", what=what, reason=reason)


@dataclass(frozen=True)
class Job:
    """What to measure until `deadline`, in the seconds of time.time()."""

    kind: str
    deadline: float
    cells: tuple[Cell, ...] = ()
    turns: int = 1
    predicts: bool = False
    recipe: str = ""
    loss: str = ""
    data: str = ""
    epochs: int = 0

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Parse a line."""
        values = json.loads(text)
        values["cells"] = tuple(Cell(**cell) for cell in values["cells"])
        return cls(**values)

    @property
    def is_over(self) -> bool:
        """Whether its time has passed."""
        return time.time() >= self.deadline


class Worker:
    """Measures jobs."""

    def __init__(self, plan: Plan, channel: Channel, started: float) -> None:
        self.plan, self.channel, self.started = plan, channel, started
        self.device = pick_device()
        self.on_gpu = self.device.type == "cuda"
        self.images: dict[int, LabelledImages] = {}
        self.flops: dict[tuple[str, str], int] = {}
        if self.on_gpu:
            torch.zeros(1, device=self.device)
            torch.cuda.synchronize()
        self.start_seconds = time.time() - started

    def do(self, job: Job) -> None:
        """Measure a job and send the results."""
        kinds: dict[str, Callable[[Job], None]] = {
            "peak": self.measure_peaks,
            "rates": self.measure_rates,
            "first_step": self.measure_first_step,
            "profile": self.profile,
            "train": self.train,
        }
        kinds[job.kind](job)
        release_memory()

    def machine(self) -> Machine:
        """Describe device and software."""
        try:
            peer = str(library().__version__)
        except MissingPeer as error:
            peer = str(error)
        properties = torch.cuda.get_device_properties(self.device) if self.on_gpu else None
        version = torch.backends.cudnn.version
        cudnn = version() if self.on_gpu else None  # type: ignore[no-untyped-call]
        return Machine(
            device="CPU" if properties is None else properties.name,
            is_gpu=self.on_gpu,
            capability=torch.cuda.get_device_capability(self.device) if self.on_gpu else None,
            memory_bytes=0 if properties is None else properties.total_memory,
            torch=torch.__version__,
            cuda=torch.version.cuda or "" if self.on_gpu else "",
            cudnn="" if cudnn is None else str(cudnn),
            driver=_nvidia_smi() if self.on_gpu else "",
            cpu_flags=" ".join(sorted(cpu_flags() & SHOWN_FLAGS)),
            threads=torch.get_num_threads(),
            peer=peer,
            peer_loaders=loaders_on(self.device),
        )

    def measure_peaks(self, job: Job) -> None:
        """Measure matrix products of each dtype, and a copy."""
        bandwidth = self._bandwidth()
        # A CPU emulates float16, which takes minutes.
        half = [torch.bfloat16, torch.float16] if self.on_gpu else [torch.bfloat16]
        for dtype in [*half, torch.float32]:
            name = dtype_name(dtype, self.on_gpu)
            if job.is_over:
                return
            with self._recorded(f"matrix product in {name}"):
                self.channel.measurement(Peak(name, peak_flops_of(self.device, dtype), bandwidth))

    def _bandwidth(self) -> float:
        count = COPY_BYTES[self.device.type]
        source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        target.copy_(source)  # warm-up
        return max(2 * count / seconds_of(lambda: target.copy_(source)) for _ in range(COPIES))

    def measure_rates(self, job: Job) -> None:
        """Measure all cells, which take turns."""
        programs: list[tuple[Program, int]] = []
        with tempfile.TemporaryDirectory() as folder:
            for cell in job.cells:
                if job.is_over:
                    break
                self.channel.send("begin", what=cell.name)
                with self._recorded(cell.name):
                    programs.append(self._warm_program(cell, Path(folder)))
            for turn in range(1, job.turns + 1):
                for program, own_bytes in list(programs):
                    if job.is_over:
                        return
                    cell = program.cell
                    self.channel.send("begin", what=cell.name)
                    predicts = job.predicts and not (turn > 1 and cell.program in LIMITED_BY_LOADER)
                    with self._recorded(cell.name) as outcome:
                        self.channel.measurement(
                            self._turn(program, own_bytes, turn, predicts, Path(folder))
                        )
                    if outcome.failed:
                        programs.remove((program, own_bytes))

    def _warm_program(self, cell: Cell, folder: Path) -> tuple[Program, int]:
        """Create and warm up a program; also return the bytes that it keeps on the GPU."""
        before = torch.cuda.memory_allocated() if self.on_gpu else 0
        program = self._build(cell, folder)
        program.warm_up()
        after = torch.cuda.memory_allocated() if self.on_gpu else 0
        return program, after - before

    def _turn(
        self, program: Program, own_bytes: int, turn: int, predicts: bool, folder: Path
    ) -> Rate:
        others = 0
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            others = max(0, torch.cuda.memory_allocated() - own_bytes)
        found = program.turn()
        if not math.isfinite(found.loss):
            raise ValueError(f"the training loss is {found.loss}")
        if self.on_gpu:
            peak_bytes = torch.cuda.max_memory_allocated() - others
        else:
            peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT
        prediction = 1 / program.predict(folder) if predicts else None
        compute = program.compute
        return Rate(
            cell=program.cell,
            turn=turn,
            dtype=dtype_name(compute.dtype, self.on_gpu),
            training=1 / found.training,
            validation=1 / found.validation,
            prediction=prediction,
            peak_bytes=peak_bytes,
            flops=self._flops(program),
            final_loss=found.loss,
        )

    def _flops(self, program: Program) -> int:
        """Return the operations per image of a step; dtype and size of the batch do not count."""
        key = program.cell.program, program.cell.backbone
        if key not in self.flops:
            self.flops[key] = program.flops(self.plan.pixels)
        return self.flops[key]

    def measure_first_step(self, job: Job) -> None:
        """Measure how long a training takes to its first step; the process must be new."""
        (cell,) = job.cells
        self._data(self.plan.images)  # not part of it
        with tempfile.TemporaryDirectory() as folder, self._recorded(cell.name):
            began = now()
            program = self._build(cell, Path(folder))
            program.steps([next(iter(program.batches))])
            seconds = now() - began
            self.channel.measurement(FirstStep(cell, seconds, self.start_seconds))

    def profile(self, job: Job) -> None:
        """Profile a step of each cell."""
        for cell in job.cells:
            if job.is_over:
                return
            self.channel.send("begin", what=cell.name)
            with tempfile.TemporaryDirectory() as folder, self._recorded(cell.name):
                self.channel.measurement(self._profile(cell, Path(folder)))
            release_memory()

    def _profile(self, cell: Cell, folder: Path) -> StepProfile:
        program, _ = self._warm_program(cell, folder)
        return profile_step(program, self._flops(program))

    def train(self, job: Job) -> None:
        """Run src_salt on the real data, and send every epoch."""
        self.channel.send("begin", what=job.recipe)
        progress = _Progress(self.channel, job)
        with (
            tempfile.TemporaryDirectory() as folder,
            self._recorded(f"{job.epochs} epochs of {job.recipe}"),
            redirect_stdout(progress),
        ):
            run(
                data_dir=job.data,
                output_dir=folder,
                recipe=job.recipe,
                experiments=[f"resnet34_{job.loss}"],
                epochs=job.epochs,
                image_size=self.plan.pixels,
                num_workers=self.plan.workers,
                pretrained=False,
            )

    def _build(self, cell: Cell, folder: Path) -> Program:
        validation = self._data(half_of(self.plan.images, cell.batch_size))
        return build(cell, self.plan, self._data(self.plan.images), validation, folder)

    def _data(self, count: int) -> LabelledImages:
        if count not in self.images:
            self.images[count] = make_images(count)
        return self.images[count]

    @contextmanager
    def _recorded(self, what: str) -> Iterator[_Outcome]:
        """Send an error inside the block as text, and go on if the device can still be used.

        Raises:
            Unusable: it cannot.
        """
        outcome = _Outcome()
        try:
            yield outcome
        except Exception as error:  # also a mistake of ours: the other measurements go on
            outcome.failed = True
            full = is_out_of_memory(error)
            kind = "out of memory" if full else type(error).__name__
            self.channel.failure(what, f"{kind}: {first_line(error)}")
            broken = self.on_gpu and not full and self._is_broken()
            error.__traceback__ = None  # it keeps the tensors of the failed step
            error.__cause__ = error.__context__ = None
        else:
            return
        release_memory()
        if broken:
            raise Unusable(what)

    def _is_broken(self) -> bool:
        """Whether the GPU refuses further work, as after an illegal access or an ECC error."""
        try:
            torch.zeros(1, device=self.device)
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False


@dataclass
class _Outcome:
    failed: bool = False


class _Progress:
    """The stdout of a run: turns its events into messages."""

    def __init__(self, channel: Channel, job: Job) -> None:
        self.channel, self.job = channel, job
        self.began = time.perf_counter()
        self.found = Trained(job.recipe, job.loss, job.epochs, 0, 0.0, 0.0, 0.0, False)

    def write(self, text: str) -> int:
        """Read the events of complete lines; `emit` writes one line at once."""
        for line in text.splitlines():
            if line.startswith('{"event": '):
                self._read(json.loads(line))
        return len(text)

    def flush(self) -> None:
        """Do nothing: `write` has sent everything."""

    def _read(self, event: dict[str, Any]) -> None:
        seconds = time.perf_counter() - self.began
        if event["event"] == "epoch":
            self.found = replace(
                self.found,
                epochs=event["epoch"],
                seconds=seconds,
                val_iou=max(self.found.val_iou, event["val_iou"]),
                val_score=max(self.found.val_score, event["val_score"]),
            )
        elif event["event"] == "done":
            self.found = replace(
                self.found,
                seconds=seconds,
                val_iou=event["best_val_iou"],
                val_score=event["best_val_score"],
                is_complete=self.found.epochs == self.job.epochs,
            )
        else:
            return
        self.channel.measurement(self.found)


def _nvidia_smi() -> str:
    """Return one line of facts about the GPU, or why there is none."""
    command = ["nvidia-smi", f"--query-gpu={NVIDIA_SMI}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi: {error}"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "nvidia-smi: no output"


def _end_with_parent(folder: str) -> None:
    """End this process soon after the command that started it, and remove its temporary files."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def main() -> None:
    """Measure the jobs of stdin."""
    options = json.loads(sys.argv[1])
    _end_with_parent(options["folder"])
    channel = Channel(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # libraries may print; messages have the original stdout for themselves
    if options["peers"]:
        add_packages(Path(options["peers"]))
    worker = Worker(Plan(**options["plan"]), channel, options["started"])
    channel.send("machine", value=asdict(worker.machine()))
    for line in sys.stdin:
        try:
            worker.do(Job.from_json(line))
        except Unusable:
            # The command goes on with the rest of the job in another process.
            channel.send("unusable")
            os._exit(1)  # cleaning up would ask the device
        gc.collect()
        channel.send("end")


if __name__ == "__main__":
    main()
