"""What `benchmarks.gpu` has measured, and the JSON file that keeps it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.measure import Spread
from src_salt.outputs import write_json

SCHEMA = 1

BASELINE, SMP, SMP_DEVICE = "baseline", "smp", "smp, device batches"
"""Programs that others are compared with: the reference recipe, and the plain loops."""

T = TypeVar("T")


class ResultsError(Exception):
    """A file of results cannot be continued."""


@dataclass(frozen=True)
class Cell:
    """What is measured: a program with a network, a loss and a batch size."""

    program: str
    """A recipe of src_salt, or a plain loop of `benchmarks.smp`."""

    backbone: str
    loss: str
    batch_size: int
    dtype: str = ""
    """`float16` or `bfloat16`; empty for the program's own choice."""

    @property
    def name(self) -> str:
        """The name in messages: `fast resnet34 BCEDice 128`."""
        parts = [self.program, self.backbone, self.loss, str(self.batch_size), self.dtype]
        return " ".join(filter(None, parts))


@dataclass(frozen=True)
class Machine:
    """The device and the software, as the measuring process sees them."""

    device: str
    is_gpu: bool
    capability: tuple[int, int] | None
    """Of a GPU: (9, 0) for H100 and H200."""

    memory_bytes: int
    torch: str
    cuda: str
    cudnn: str
    driver: str
    """What nvidia-smi reports: driver, clocks, errors of the memory."""

    cpu_flags: str
    threads: int
    peer: str
    """The version of segmentation_models_pytorch, or why it is missing."""

    peer_loaders: int = 0
    """Processes that load for the plain loop."""


@dataclass(frozen=True)
class Peak:
    """The limits of the device in this run."""

    dtype: str
    flops: float
    """Operations per second of the fastest square matrix product."""

    bandwidth: float
    """Bytes per second, read and written, of a copy on the device."""


@dataclass(frozen=True)
class Rate:
    """One turn of a cell, in images per second.

    Training includes batches, augmentation, network, optimizer, loss and (not in the plain
    loops) IoU. It includes neither validation, which has its own rate, nor checkpoints.
    """

    cell: Cell
    turn: int
    dtype: str
    """The dtype that the program computed with."""

    training: float
    validation: float
    prediction: float | None
    """From bytes in memory to the validated csv; None if this turn does not predict."""

    peak_bytes: int
    """Peak memory of training and validation; on a CPU, of the whole process so far."""

    flops: int
    """Operations per image of a training step, forward and backward."""

    final_loss: float
    """Mean training loss of the turn, which must be finite."""


@dataclass(frozen=True)
class FirstStep:
    """The start of a training in a new process."""

    cell: Cell
    seconds: float
    """From creating the network and the optimizer to the end of the first step."""

    start_seconds: float
    """Before that: imports and the connection to the device."""


@dataclass(frozen=True)
class StepProfile:
    """Where the time of one training step goes. Times are in seconds per step."""

    cell: Cell
    dtype: str
    operations: int
    """Operations that PyTorch dispatches, forward, backward and optimizer."""

    wall: float
    """A step without the profiler."""

    profiled: float
    """A step with the profiler, which slows down the host."""

    kernels: int
    launches: int
    busy: float
    """While at least one kernel or copy runs on the GPU; 0 on a CPU."""

    arithmetic: float
    """In convolutions and matrix products."""

    other: float
    """In all other kernels and copies, which are limited by memory."""

    largest_gaps: tuple[float, ...]
    """The longest pauses between kernels."""

    flops: int
    """Operations of a step, forward and backward, without the optimizer."""

    slowest: tuple[tuple[str, int, float], ...]
    """Kernels (on a CPU, operations) by time: name, number and seconds."""


@dataclass(frozen=True)
class Trained:
    """A recipe on the real data; `epochs` grows while it trains."""

    recipe: str
    loss: str
    planned: int
    epochs: int
    seconds: float
    """From the first file read to the last epoch; with a score, to the end of the run."""

    val_iou: float
    """The best so far."""

    val_score: float
    """The competition's, the best so far; at the end, of the masks as they would be submitted."""

    is_complete: bool


@dataclass(frozen=True)
class Failure:
    """What could not be measured, and why."""

    part: str
    what: str
    reason: str


@dataclass(frozen=True)
class PartState:
    """How far a part came."""

    name: str
    state: str
    """`running`, `complete`, `stopped` or `skipped`."""

    seconds: float = 0.0
    reason: str = ""


Measurement = Peak | Rate | FirstStep | StepProfile | Trained
KINDS: dict[str, type[Measurement]] = {
    "peak": Peak,
    "rate": Rate,
    "first_step": FirstStep,
    "profile": StepProfile,
    "trained": Trained,
}
NAMES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True)
class Results:
    """Everything that a run has found out so far."""

    command: str
    date: str
    budget_seconds: float
    used_seconds: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    """The options that change what is measured."""

    machine: Machine | None = None
    parts: tuple[PartState, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    failures: tuple[Failure, ...] = ()
    is_complete: bool = False
    """Whether the run came to its end; if not, it was cut off or still goes on."""

    def of(self, kind: type[T]) -> list[T]:
        """Return the measurements of one kind."""
        return [one for one in self.measurements if isinstance(one, kind)]

    def rates(self, cell: Cell) -> list[Rate]:
        """Return the turns of a cell."""
        return [rate for rate in self.of(Rate) if rate.cell == cell]

    def spread(self, cell: Cell, name: str) -> Spread | None:
        """Return a field of `Rate` in all turns that have it, or None without one."""
        values = [getattr(rate, name) for rate in self.rates(cell)]
        found = tuple(value for value in values if value is not None)
        return Spread(found) if found else None

    def with_measurement(self, found: Measurement) -> Results:
        """Add a measurement. It replaces an earlier one of the same thing."""
        kept = tuple(one for one in self.measurements if _identity(one) != _identity(found))
        return replace(self, measurements=(*kept, found))

    def with_part(self, state: PartState) -> Results:
        """Add or replace the state of a part."""
        if any(part.name == state.name for part in self.parts):
            parts = tuple(state if part.name == state.name else part for part in self.parts)
        else:
            parts = (*self.parts, state)
        return replace(self, parts=parts)


def _identity(one: Measurement) -> tuple[object, ...]:
    if isinstance(one, Peak):
        return (Peak, one.dtype)
    if isinstance(one, Trained):
        return (Trained, one.recipe)
    return (type(one), one.cell, one.turn if isinstance(one, Rate) else 0)


def to_json(one: Measurement) -> dict[str, Any]:
    """Return a measurement as plain values with its kind."""
    return {"kind": NAMES[type(one)], **asdict(one)}


def from_json(values: dict[str, Any]) -> Measurement:
    """Return the measurement that `to_json` wrote; KeyError or TypeError for another value."""
    values = dict(values)
    kind = KINDS[values.pop("kind")]
    if "cell" in values:
        values["cell"] = Cell(**values["cell"])
    if kind is StepProfile:
        values["largest_gaps"] = tuple(values["largest_gaps"])
        values["slowest"] = tuple(tuple(one) for one in values["slowest"])
    return kind(**values)


def write_results(path: Path, results: Results) -> None:
    """Write the JSON file atomically; ValueError for a number that is not finite."""
    content = {
        "schema": SCHEMA,
        **asdict(results),
        "measurements": [to_json(one) for one in results.measurements],
    }
    write_json(path, content)


def read_results(path: Path) -> Results:
    """Read a file that `write_results` wrote.

    Raises:
        ResultsError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("schema") != SCHEMA:
            raise ResultsError(
                f"{path}: written by another version. Remove it, or name another file with --json."
            )
        machine = content["machine"]
        if machine is not None:
            capability = machine["capability"]
            content["machine"] = Machine(
                **machine | {"capability": None if capability is None else tuple(capability)}
            )
        content["parts"] = tuple(PartState(**part) for part in content["parts"])
        content["failures"] = tuple(Failure(**one) for one in content["failures"])
        content["measurements"] = tuple(from_json(one) for one in content["measurements"])
        return Results(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(
            f"{path}: cannot be read ({error!r}). Remove it, or name another file with --json."
        ) from error
