"""How long a run will take, from earlier runs of the same kernel or from a rehearsal.

A run's time is a fixed part (installing, reading, predicting) and a part for each epoch. Both are
measured in earlier runs, and the number of epochs is scaled to the parameters of the next run.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from kernelkit.config import MACHINES, KernelSettings, Parameter, gpu_tflops, is_kernel_of
from kernelkit.errors import LocalError
from kernelkit.kaggle.types import PRODUCTION
from kernelkit.notebook.manifest import BUNDLE_NAME, Manifest
from kernelkit.notebook.runtime import RunEvent
from kernelkit.runs import store
from kernelkit.runs.events import TimedEvent, read_events
from kernelkit.runs.manifest import RUN_MANIFEST_NAME, RunManifest
from kernelkit.runs.store import RunFolder
from kernelkit.storage import DocumentError, read_model

EPOCH_PARAMETERS = (
    *("epochs", "num_epochs", "n_epochs", "max_epochs", "total_epochs", "num_train_epochs"),
    *("n_estimators", "num_boost_round", "iterations", "max_steps", "num_steps"),
)
"""Parameters that say how much work a run does; its time grows with them."""

WITHOUT_EFFECT = frozenset(
    {"seed", "random_state", "random_seed", "data_dir", "output_dir", "input_dir", "resume_dir"}
    | {"max_hours", "deadline_hours"}
)
"""Parameters that do not change how long an epoch takes."""

NEWEST = 30  # runs that are read: older ones ran with other code
AVERAGED = 5  # runs with the most similar parameters
CPU = "a CPU"
CPU_TFLOPS = 0.4
"""What two cores reach in float32: the upper one of the two machines in docs/performance.md."""


class Certainty(StrEnum):
    """How much an estimate rests on."""

    MEASURED = "measured"
    """Earlier runs on the same hardware, with the same parameters except for the epochs."""

    SIMILAR = "similar"
    """Earlier runs on the same hardware with other parameters, which are named."""

    ASSUMED = "assumed"
    """Runs on other hardware, with an assumed ratio."""

    UNKNOWN = "unknown"
    """There is no data."""


@dataclass(frozen=True)
class Estimate:
    """What the next run will need, and what that rests on."""

    certainty: Certainty
    seconds: float | None = None
    """Of the whole run."""

    least: float | None = None
    most: float | None = None
    """Of the whole run by the fastest and the slowest of the earlier runs; None for one run."""

    seconds_per_epoch: float | None = None
    epochs: float | None = None
    """Of all experiments together."""

    fixed_seconds: float | None = None
    """Before, between and after the epochs."""

    runs: tuple[str, ...] = ()
    """What was measured: `slug/v3`, or the folder of a rehearsal."""

    differences: tuple[str, ...] = ()
    """Parameters with other values than in those runs."""

    assumptions: tuple[str, ...] = ()
    """One sentence each, with its origin."""


@dataclass(frozen=True)
class Wanted:
    """The run that is planned, as far as its time depends on it."""

    parameters: Mapping[str, Parameter]
    machine_shape: str
    wants_gpu: bool
    wants_tpu: bool = False

    @classmethod
    def of(cls, kernel: KernelSettings, parameters: Mapping[str, Parameter]) -> Wanted:
        """What the settings of a kernel ask for."""
        shape = kernel.machine_shape
        is_tpu = kernel.enable_tpu or "tpu" in shape.lower()
        return cls(parameters, shape, kernel.wants_gpu and not is_tpu, is_tpu)

    @property
    def machine(self) -> str:
        """For people."""
        kind = "a GPU" if self.wants_gpu else "a TPU" if self.wants_tpu else CPU
        return self.machine_shape or kind

    @property
    def gpu(self) -> str:
        """The name of its GPU; empty for a CPU, or if the shape does not say."""
        machine = MACHINES.get(self.machine_shape)
        return machine.gpu if machine else ""


@dataclass(frozen=True)
class MeasuredRun:
    """What one earlier run needed, on which hardware, with which parameters."""

    name: str
    endpoint: str
    seconds: float
    done: int
    """Epochs that it reported."""

    epochs: int
    """Those of its whole work: it may have failed before the last one."""

    seconds_per_epoch: float | None
    parameters: Mapping[str, Parameter]
    experiments: tuple[str, ...]
    gpus: tuple[str, ...]
    tpu: str
    """The machine shape of a run on a TPU, else empty."""

    @property
    def fixed_seconds(self) -> float:
        """What is not part of an epoch."""
        return max(0.0, self.seconds - self.done * (self.seconds_per_epoch or 0.0))


def estimate(
    root: Path,
    slug: str,
    wanted: Wanted,
    *,
    endpoint: str = PRODUCTION,
    rehearsals: Path | None = None,
    ratio: float | None = None,
) -> Estimate:
    """Estimate the time of a run from the runs of its kernel below `root`.

    Only runs of the Kaggle at `endpoint` can be on the same hardware. Without any, the epochs of a
    rehearsal below `rehearsals`, or of a run on other hardware, are divided by `ratio`: how many
    times faster the wanted hardware is (None: by data sheets).
    """
    measured = list(_measured(_newest(root, slug)))
    same = [run for run in measured if run.endpoint == endpoint and _same_hardware(run, wanted)]
    if same:
        return _from_runs(same, wanted, 1.0)
    rehearsed = _measured(_newest(rehearsals, slug) if rehearsals else ())
    others = [*measured, *(replace(run, name=f"rehearsal {run.name}") for run in rehearsed)]
    nearest = [run for run in others if _same_hardware(run, wanted)] or others
    chosen = _most_similar(nearest, wanted)
    if not chosen:
        return Estimate(Certainty.UNKNOWN)
    assumed, reason = _ratio(chosen[0], wanted, ratio)
    if assumed is None:
        return Estimate(Certainty.UNKNOWN, assumptions=(reason,))
    found = _from_runs(chosen, wanted, assumed)
    return replace(found, certainty=Certainty.ASSUMED, assumptions=(reason,))


def _newest(root: Path, slug: str) -> list[RunFolder]:
    """The latest runs of a kernel and of its lanes in campaigns, newest first."""
    found = [folder for folder in store.folders(root) if is_kernel_of(slug, folder.slug)]
    return sorted(found, key=lambda one: (one.read().pushed or "", one.version), reverse=True)[
        :NEWEST
    ]


def _measured(folders: Iterable[RunFolder]) -> Iterator[MeasuredRun]:
    """What the runs of these folders needed; without those that left no measurement."""
    for folder in folders:
        try:
            bundle = read_model(folder.path / BUNDLE_NAME, Manifest)
            manifest = read_model(folder.path / RUN_MANIFEST_NAME, RunManifest)
        except (DocumentError, LocalError):
            continue
        if manifest.digest != bundle.digest or not manifest.seconds:
            continue
        timed = [one for one in read_events(folder.log) if _says_how_much(one.event)]
        epochs = [one for one in timed if one.event.kind == "epoch"]
        planned = next((one.event.experiments for one in timed if one.event.experiments), ())
        parallel = max(1, len(bundle.trials))  # trials of a sweep, at the same time
        done = count = len(epochs) // parallel
        if manifest.status != "complete" or _is_part(timed):
            # Only its epochs say how much work there was.
            each = max((one.event.numbers.get("epochs", 0) for one in epochs), default=0)
            count = int(each) * max(1, len(planned))
            if not count:
                continue
        gpus = manifest.hardware.document.get("gpus")
        asked = Wanted.of(bundle.kernel, bundle.parameters)
        yield MeasuredRun(
            name=f"{folder.slug}/v{folder.version}",
            endpoint=folder.read().endpoint,
            seconds=manifest.seconds,
            done=done,
            epochs=count,
            seconds_per_epoch=_seconds_per_epoch(epochs),
            parameters=bundle.entry_parameters,
            experiments=planned,
            gpus=tuple(map(str, gpus)) if isinstance(gpus, list) else (),
            tpu=asked.machine if asked.wants_tpu else "",
        )


def _says_how_much(event: RunEvent) -> bool:
    """Whether an event shows how much work there was: a log may have millions of others."""
    return event.kind in ("epoch", "incomplete") or bool(event.experiments)


def _is_part(timed: Sequence[TimedEvent]) -> bool:
    """Whether a run was one session of a chain: it continued another, or another continues it."""
    first: dict[tuple[str | None, int | None], float] = {}
    for one in timed:
        if one.event.kind == "epoch":
            key = one.event.experiment, one.event.trial
            first.setdefault(key, one.event.numbers.get("epoch", 1))
    return any(one.event.kind == "incomplete" for one in timed) or any(
        number > 1 for number in first.values()
    )


def _seconds_per_epoch(epochs: Sequence[TimedEvent]) -> float | None:
    """The median time between two epochs of an experiment, else what the epochs report."""
    by_experiment: dict[tuple[str | None, int | None], list[float]] = defaultdict(list)
    for one in epochs:
        by_experiment[one.event.experiment, one.event.trial].append(one.seconds)
    gaps = [
        after - before
        for times in by_experiment.values()
        for before, after in itertools.pairwise(times)
        if after > before
    ]
    reported = [float(one.event.numbers.get("seconds", 0.0)) for one in epochs]
    times = gaps or [seconds for seconds in reported if seconds > 0]
    return statistics.median(times) if times else None


def _same_hardware(run: MeasuredRun, wanted: Wanted) -> bool:
    if wanted.wants_tpu or run.tpu:
        return wanted.wants_tpu and run.tpu == wanted.machine
    if not wanted.wants_gpu:
        return not run.gpus
    return bool(run.gpus) and all(wanted.gpu in gpu for gpu in run.gpus)


def _differences(run: MeasuredRun, wanted: Wanted) -> list[str]:
    """Parameters that differ, without those that are scaled and those without effect on time."""
    scaled = {_epochs_name(run, wanted), _experiments_name(run, wanted)}
    if run.seconds_per_epoch is None:  # then it is not known what part of the time grows with them
        scaled = set()
    names = (run.parameters.keys() | wanted.parameters.keys()) - scaled - WITHOUT_EFFECT
    return sorted(n for n in names if run.parameters.get(n) != wanted.parameters.get(n))


def _most_similar(runs: Sequence[MeasuredRun], wanted: Wanted) -> list[MeasuredRun]:
    """The newest runs among those with the fewest different parameters, on one hardware."""
    counted = [(len(_differences(run, wanted)), run) for run in runs]
    least = min((count for count, _ in counted), default=0)
    nearest = [run for count, run in counted if count == least]
    return [run for run in nearest if run.gpus == nearest[0].gpus][:AVERAGED]


def _epochs_name(run: MeasuredRun, wanted: Wanted) -> str:
    """The parameter that says how many epochs an experiment has; empty if there is none."""
    both = run.parameters.keys() & wanted.parameters.keys()
    numbers = (
        name
        for name in EPOCH_PARAMETERS
        if name in both and all(_is_count(one.parameters[name]) for one in (run, wanted))
    )
    return next(numbers, "")


def _experiments_name(run: MeasuredRun, wanted: Wanted) -> str:
    """The parameter that lists the experiments that the run announced; empty if there is none."""
    both = run.parameters.keys() & wanted.parameters.keys()
    lists = (
        name
        for name in sorted(both)
        if run.experiments
        and _texts(run.parameters[name]) == run.experiments
        and _texts(wanted.parameters[name])
    )
    return next(lists, "")


def _is_count(value: Parameter) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _texts(value: Parameter) -> tuple[str, ...]:
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()


def _scale(run: MeasuredRun, wanted: Wanted) -> tuple[float, float]:
    """How many times the epochs, and the experiments, of a run the wanted one has."""
    epochs = experiments = 1.0
    if name := _epochs_name(run, wanted):
        epochs = float(str(wanted.parameters[name])) / float(str(run.parameters[name]))
    if name := _experiments_name(run, wanted):
        experiments = len(_texts(wanted.parameters[name])) / len(run.experiments)
    return epochs * experiments, experiments


@dataclass(frozen=True)
class _Prediction:
    """The wanted run by one earlier run, in seconds; without epochs, all of it grows alike."""

    total: float
    each: float | None = None
    epochs: float | None = None
    fixed: float | None = None

    @classmethod
    def by(cls, run: MeasuredRun, wanted: Wanted, ratio: float) -> _Prediction:
        """Epochs are `ratio` times as fast as in the run."""
        more, experiments = _scale(run, wanted)
        if run.seconds_per_epoch is None:
            return cls(run.seconds * more / ratio)
        each, epochs = run.seconds_per_epoch / ratio, run.epochs * more
        fixed = run.fixed_seconds * max(1.0, experiments)
        return cls(fixed + epochs * each, each, epochs, fixed)


def _from_runs(runs: Sequence[MeasuredRun], wanted: Wanted, ratio: float) -> Estimate:
    """The median of the predictions by the most similar runs."""
    chosen = _most_similar(runs, wanted)
    chosen = [run for run in chosen if run.seconds_per_epoch] or chosen
    found = [_Prediction.by(run, wanted, ratio) for run in chosen]
    totals = [one.total for one in found]
    differences = _differences(chosen[0], wanted)
    return Estimate(
        certainty=Certainty.SIMILAR if differences else Certainty.MEASURED,
        seconds=statistics.median(totals),
        least=min(totals) if len(totals) > 1 else None,
        most=max(totals) if len(totals) > 1 else None,
        seconds_per_epoch=_median([one.each for one in found]),
        epochs=_median([one.epochs for one in found]),
        fixed_seconds=_median([one.fixed for one in found]),
        runs=tuple(run.name for run in chosen),
        differences=tuple(differences),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _ratio(run: MeasuredRun, wanted: Wanted, stated: float | None) -> tuple[float | None, str]:
    """How many times faster the wanted hardware is than a run's, and where that comes from."""
    here = run.tpu or (run.gpus[0] if run.gpus else CPU)
    there = wanted.gpu or wanted.machine
    if stated is not None:
        return stated, f"{there} is {stated:g} times as fast as {here}: as you said"
    if there == here:
        return 1.0, f"{there} on Kaggle is as fast as the one of that run"
    mine, its = _speed(here), _speed(there)
    if mine is None or its is None:
        return None, f"how fast {there} is compared with {here} is not known"
    tflops = f"{its:g} Tflop/s by its data sheet, {mine:g} by its own"
    if here == CPU:
        tflops = f"{its:g} Tflop/s by its data sheet, {mine:g} measured on two cores"
    return its / mine, f"{there} is {its / mine:.3g} times as fast as {here}: {tflops}"


def _speed(machine: str) -> float | None:
    """The peak of a machine in Tflop/s, in float32; None if it is not known."""
    return CPU_TFLOPS if machine == CPU else gpu_tflops(machine)
