"""The Markdown report of `benchmarks.gpu`: the goals, the limits, and all tables."""

from __future__ import annotations

import dataclasses
from statistics import median

from benchmarks.gpu.results import (
    BASELINE,
    SMP,
    SMP_DEVICE,
    Cell,
    FirstStep,
    Peak,
    Rate,
    Results,
    StepProfile,
    Trained,
)
from benchmarks.measure import Spread
from benchmarks.report import markdown_table

TIMES_BASELINE = 15.0
TIMES_SMP = 1.5
IMAGES_PER_SECOND = {"resnet34": 8000.0, "resnet50": 4000.0}
"""The goals for training on an H100 or H200."""

GOAL_CAPABILITY = (9, 0)
"""Compute capability of the GPUs that the goals are for."""

UNKNOWN = "not measured"


def report(results: Results) -> str:
    """Return the whole report."""
    sections = [
        _facts(results),
        f"## Summary\n\n{summary(results)}",
        f"## Where the time of a step goes\n\n{_profiles(results)}",
        f"## Training\n\n{_training(results)}",
        f"## Validation\n\n{_rates(results, 'validation')}",
        f"## Prediction\n\n{_prediction(results)}",
        f"## First step\n\n{_first_steps(results)}",
        f"## Epochs on the real data\n\n{_trained(results)}",
        f"## The run\n\n{_parts(results)}",
    ]
    return "\n\n".join(sections) + "\n"


def _facts(results: Results) -> str:
    machine = results.machine
    facts = {
        "date": results.date,
        "command": f"`{results.command}`",
        "time": f"{results.used_seconds:.0f} of {results.budget_seconds:.0f} s",
    }
    if not results.is_complete:
        facts["state"] = "**the run did not come to its end; these are the results until then**"
    if machine is not None:
        facts["device"] = machine.device
        if machine.is_gpu:
            capability = ".".join(map(str, machine.capability or ()))
            facts["device"] += f", {machine.memory_bytes / 1e9:.0f} GB, capability {capability}"
            facts["driver"] = machine.driver
        libraries = [f"torch {machine.torch}"]
        libraries += [f"CUDA {machine.cuda}"] if machine.cuda else []
        libraries += [f"cuDNN {machine.cudnn}"] if machine.cudnn else []
        facts["libraries"] = ", ".join([*libraries, f"segmentation_models_pytorch {machine.peer}"])
        facts["CPU flags"] = machine.cpu_flags or "none of the relevant ones"
        facts["threads"] = str(machine.threads)
        own = results.options.get("workers", "unknown")
        facts["processes that load"] = f"{BASELINE} {own}, {SMP} {machine.peer_loaders}"
    hidden = ("device", "workers")
    facts |= {name: str(value) for name, value in results.options.items() if name not in hidden}
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


# --- the summary --------------------------------------------------------------------------------


def summary(results: Results) -> str:
    """Compare with the goals, and name the limit that binds."""
    machine = results.machine
    if machine is None:
        return "Nothing was measured."
    lines = []
    if not machine.is_gpu:
        lines.append("**Not measured on a GPU.** These numbers are of a CPU.")
    judged = machine.capability is not None and machine.capability >= GOAL_CAPABILITY
    if machine.is_gpu and not judged:
        lines.append(f"The goals are for an H100 or H200, not for this {machine.device}.")
    lines.append(
        f"Goals of training on an H100 or H200: {TIMES_BASELINE:g} times the baseline and "
        f"{TIMES_SMP:g} times the plain loop `{SMP}`, both at the same batch; "
        + ", ".join(f"{rate:,.0f} images/s for {name}" for name, rate in IMAGES_PER_SECOND.items())
        + "."
    )
    return "\n\n".join([" ".join(lines), _goals(results, judged), _limits(results)])


def _goals(results: Results, judged: bool) -> str:
    table = []
    for cell in _cells(results):
        if cell.program not in ("fast", "best") or cell.dtype or cell.loss != "BCEDice":
            continue
        rate = results.spread(cell, "training")
        assert rate is not None
        times = [_times(results, cell, other) for other in (BASELINE, SMP, SMP_DEVICE)]
        goal = IMAGES_PER_SECOND[cell.backbone]
        reached = [
            (rate.median, goal, "images/s"),
            (times[0], TIMES_BASELINE, "baseline"),
            (times[1], TIMES_SMP, "plain loop"),
        ]
        table.append(
            [
                *(cell.program, cell.backbone, str(cell.batch_size)),
                f"{rate.median:,.1f}",
                *(UNKNOWN if value is None else f"{value:.2f}" for value in times),
                _verdict(reached) if judged else "not judged",
            ]
        )
    if not table:
        return "No rate of `fast` or `best` with BCEDice was measured."
    ratios = [f"{name} = 1" for name in (BASELINE, SMP, SMP_DEVICE)]
    return markdown_table(["program", "network", "batch", "images/s", *ratios, "goals"], table)


def _verdict(reached: list[tuple[float | None, float, str]]) -> str:
    missed = [name for value, goal, name in reached if value is not None and value < goal]
    unknown = [name for value, _, name in reached if value is None]
    parts = [f"missed: {', '.join(missed)}"] if missed else []
    parts += [f"unknown: {', '.join(unknown)}"] if unknown else []
    return "; ".join(parts) or "reached"


def _times(results: Results, cell: Cell, program: str) -> float | None:
    """Return how many times as fast a cell trains as another program in the same turns."""
    others = {rate.turn: rate for rate in results.rates(dataclasses.replace(cell, program=program))}
    ratios = [
        rate.training / others[rate.turn].training
        for rate in results.rates(cell)
        if rate.turn in others
    ]
    return median(ratios) if ratios else None


def _limits(results: Results) -> str:
    profiles = results.of(StepProfile)
    if not profiles:
        return "Which limit binds is unknown, because no step was profiled."
    return "\n".join(f"- {_limit(results, one)}" for one in profiles)


def _limit(results: Results, found: StepProfile) -> str:
    """Say which limit binds a step."""
    name = f"{found.cell.program}, {found.cell.backbone}, batch {found.cell.batch_size}"
    if results.machine is not None and not results.machine.is_gpu:
        return f"{name}: {found.operations:,} operations in {_ms(found.wall)} on a CPU."
    if not found.kernels:
        return f"{name}: the profiler saw no kernels, so the limit is unknown."
    shares = {
        "launches": idle_share(found),
        "arithmetic": found.arithmetic / found.wall,
        "memory": found.other / found.wall,
    }
    binding = max(shares, key=lambda one: shares[one])
    explanation = {
        "launches": (
            f"the GPU waits {shares['launches']:.0%} of a step for the host, which starts "
            f"{found.launches:,} kernels"
        ),
        "arithmetic": (
            f"convolutions and matrix products take {shares['arithmetic']:.0%} of a step"
            f"{_of_peak(results, found)}"
        ),
        "memory": (
            f"kernels that move data (normalization, activations, upsampling, augmentation, "
            f"copies) take {shares['memory']:.0%} of a step"
        ),
    }
    rest = ", ".join(f"{other} {share:.0%}" for other, share in shares.items() if other != binding)
    return f"{name}: **{binding}** binds: {explanation[binding]} ({rest})."


def idle_share(found: StepProfile) -> float:
    """Return the share of a step in which the GPU does nothing."""
    return max(0.0, 1 - found.busy / found.wall)


def _of_peak(results: Results, found: StepProfile) -> str:
    peak = _peak(results, found.dtype)
    if peak is None or not found.arithmetic:
        return ""
    return f", at {found.flops / found.arithmetic / peak:.0%} of the peak"


def _peak(results: Results, dtype: str) -> float | None:
    # float32 is measured as `float32 (TF32)` where convolutions use TF32.
    peaks = {one.dtype: one.flops for one in results.of(Peak)}
    return peaks.get(dtype, peaks.get(f"{dtype} (TF32)"))


# --- the tables ---------------------------------------------------------------------------------


def _profiles(results: Results) -> str:
    profiles = results.of(StepProfile)
    if not profiles:
        return "No step was profiled."
    words = (
        "Times are of one step, in ms. Step: without the profiler, making the batch included. "
        "Busy: while kernels or copies run. Idle: the rest of the step. Arithmetic: convolutions "
        "and matrix products; other: all other kernels and copies. Operations: what PyTorch "
        "dispatches, forward, backward and optimizer. Longest gap: between two kernels while the "
        "profiler slows down the host."
    )
    table = []
    for one in profiles:
        on_gpu = one.kernels > 0
        device = [
            f"{one.kernels:,}",
            f"{one.launches:,}",
            f"{one.busy * 1e3:.2f}",
            f"{idle_share(one):.0%}",
            f"{one.arithmetic * 1e3:.2f}",
            f"{one.other * 1e3:.2f}",
            f"{max(one.largest_gaps, default=0) * 1e3:.2f}",
        ]
        cell = one.cell
        table.append(
            [
                *(cell.program, cell.backbone, str(cell.batch_size), one.dtype),
                f"{one.operations:,}",
                f"{one.wall * 1e3:.2f}",
                *(device if on_gpu else [""] * len(device)),
            ]
        )
    head = ["program", "network", "batch", "dtype", "operations", "step", "kernels", "launches"]
    head += ["busy", "idle", "arithmetic", "other", "longest gap"]
    parts = [words, markdown_table(head, table)]
    for one in profiles:
        lines = [
            [name.replace("|", "/"), str(count), f"{seconds * 1e3:.2f}"]
            for name, count, seconds in one.slowest
        ]
        parts.append(f"### {one.cell.name}\n\n{markdown_table(['slowest', 'number', 'ms'], lines)}")
    return "\n\n".join(parts)


def _training(results: Results) -> str:
    peaks = results.of(Peak)
    words = []
    if peaks:
        values = ", ".join(f"{one.dtype} {one.flops / 1e12:.3g}" for one in peaks)
        words.append(
            f"Peak: the fastest square matrix product in this run, in Tflop/s: {values}. A copy on "
            f"the device moves {peaks[0].bandwidth / 1e9:,.0f} GB/s, read and written. Share of "
            "peak: the operations of a step, forward and backward, divided by its whole time."
        )
    words.append(
        "Medians; the programs take turns in one process. A rate includes batches, augmentation, "
        "network, optimizer, loss and (not in the plain loops) IoU, but neither validation nor "
        "checkpoints. Peak memory: of the device; on a CPU, of the whole process."
    )
    table = []
    for cell in _cells(results):
        rates = results.rates(cell)
        rate = results.spread(cell, "training")
        assert rate is not None
        peak = _peak(results, rates[0].dtype)
        share = "" if peak is None else f"{rate.median * rates[0].flops / peak:.1%}"
        table.append(
            [
                *_labels(cell),
                rates[0].dtype,
                *_values(rate),
                _compared(_times(results, cell, BASELINE)),
                _compared(_times(results, cell, SMP)),
                f"{rates[0].flops / 1e9:.3g}",
                share,
                f"{max(one.peak_bytes for one in rates) / 1e6:,.0f}",
            ]
        )
    head = [*_HEAD, "dtype", "images/s", "range", "turns", f"{BASELINE} = 1", f"{SMP} = 1"]
    head += ["Gflop per image", "share of peak", "peak MB"]
    return f"{' '.join(words)}\n\n{_table(head, table)}"


_HEAD = ["program", "network", "loss", "batch"]


def _labels(cell: Cell) -> list[str]:
    return [cell.program, cell.backbone, cell.loss, str(cell.batch_size)]


def _values(rate: Spread) -> list[str]:
    span = f"{rate.least:,.1f} to {rate.most:,.1f}"
    return [f"{rate.median:,.1f}", span, str(len(rate.values))]


def _compared(times: float | None) -> str:
    return "" if times is None else f"{times:.2f}"


def _rates(results: Results, name: str) -> str:
    table = []
    for cell in _cells(results):
        rate = results.spread(cell, name)
        if rate is not None:
            table.append([*_labels(cell), results.rates(cell)[0].dtype, *_values(rate)])
    return _table([*_HEAD, "dtype", "images/s", "range", "turns"], table)


def _prediction(results: Results) -> str:
    words = (
        "From bytes in memory to the validated csv. It does not depend on the loss. The masks of "
        "an untrained network are noise, so blurred true masks replace them."
    )
    return f"{words}\n\n{_rates(results, 'prediction')}"


def _first_steps(results: Results) -> str:
    words = (
        "In a new process. First step: from creating network and optimizer, without pretrained "
        "weights, to the end of the first step. Before it: imports and the connection to the "
        "device."
    )
    table = [
        [*_labels(one.cell), f"{one.seconds:.2f}", f"{one.start_seconds:.2f}"]
        for one in results.of(FirstStep)
    ]
    return f"{words}\n\n{_table([*_HEAD, 'first step s', 'before it s'], table)}"


def _trained(results: Results) -> str:
    words = (
        "ResNet-34 from scratch on the competition's data, 80% for training. The score of a "
        "complete run is that of the validation masks as they would be submitted; of an incomplete "
        "one, the best of an epoch."
    )
    table = [
        [
            *(one.recipe, one.loss, f"{one.epochs} of {one.planned}", f"{one.seconds:.1f}"),
            *(f"{one.val_iou:.4f}", f"{one.val_score:.4f}"),
            "complete" if one.is_complete else "cut off",
        ]
        for one in results.of(Trained)
    ]
    head = ["recipe", "loss", "epochs", "seconds", "best IoU", "score", "state"]
    return f"{words}\n\n{_table(head, table)}"


def _parts(results: Results) -> str:
    lines = [[part.name, part.state, f"{part.seconds:.1f}", part.reason] for part in results.parts]
    failures = [f"- {one.what} ({one.part}): {one.reason}" for one in results.failures]
    parts = [_table(["part", "state", "seconds", "reason"], lines)]
    if failures:
        parts.append("\n".join(["Failed:", "", *failures]))
    return "\n\n".join(parts)


def _cells(results: Results) -> list[Cell]:
    """Return the cells that have a rate, those that were measured first at the beginning."""
    return list(dict.fromkeys(rate.cell for rate in results.of(Rate)))


def _table(head: list[str], lines: list[list[str]]) -> str:
    return markdown_table(head, lines) if lines else "Not measured."


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"
