"""One recipe of src_salt measured in this process; `benchmarks.training` starts it, many times.

Run as `python -m benchmarks.workload JSON`, with the fields of `Case`, it prints one line of JSON:
the fields of `Measured`.

Nothing of src_salt is changed for it: `Watched` stands in for the batches, and sees when a pass
begins and when the first step is over.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.launch import MAXRSS_UNIT
from src_salt.config import Experiment, Settings
from src_salt.data import LabelledImages, read_ids
from src_salt.device import cpu_flags
from src_salt.metrics import Cut, Probabilities
from src_salt.outputs import Outputs
from src_salt.predict import predict
from src_salt.submission import write_submission
from src_salt.synthetic import make_section
from src_salt.train import Batches, Keeper, Training

DISTINCT = 64
"""Made-up pictures that differ; more are copies, since a step takes as long for them."""

EPOCHS = 10_000
"""Announced to the schedule, which refuses to go past its end."""

SMALLEST = 40
"""Pixels of a region that a chosen cut keeps; choosing it is no part of prediction."""

WRITTEN = 1024
"""Masks written, at least, where writing is measured alone: a few are over too soon."""

PEAK_SIDES = {"cpu": (1024,), "cuda": (4096, 8192, 16384)}
PEAK_ROUNDS = 5

TELLING_FLAGS = {"avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"}
"""Abilities of a processor that decide how fast it multiplies."""


@dataclass(frozen=True)
class Case:
    """What is measured."""

    recipe: str
    backbone: str
    loss: str
    images: int | None
    """To train on and to predict, half as many to validate; None for what suits the device."""

    batch_size: int
    size: int
    workers: int
    """Processes that prepare the batches of a recipe that makes them on the CPU."""


@dataclass(frozen=True)
class Measured:
    """What was seen. Rates are images a second."""

    training: float
    validation: float
    prediction: float
    """From bytes in memory to the checked csv."""

    writing: float
    """The part of it after the network: cutting masks, run-length texts, the csv and its check."""

    loading: float
    """Training batches alone, made and not used."""

    first_step: float
    """Seconds from building `Training`, without weights to load, to the end of its first step."""

    copying: float
    """Seconds for which the next epoch waits until the weights and the state are copied."""

    keeping: float
    """Seconds until weights and checkpoint are written, begun as the copying is."""

    peak_bytes: int
    """Memory of the device; on a CPU of this process, without its workers."""

    flops: int
    """Of a training step, forward and back, for each image."""

    peak_flops: float
    """A second, of the fastest square matrix product in the same number format."""

    number_format: str
    images: int
    device: str
    flags: str
    torch: str
    threads: int


class Watched:
    """Batches that note when a pass over them begins, and when its first step ends."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.limit: int | None = None
        """Batches of a pass."""

        self.began = 0.0
        self.stepped = 0.0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.began = time.perf_counter()
        for number, batch in enumerate(islice(self.batches, self.limit)):
            yield batch
            if number == 0 and not self.stepped:  # once: it stops a GPU
                self.stepped = _now()


def measure(case: Case) -> Measured:
    """Train, validate and predict made-up pictures."""
    on_gpu = torch.cuda.is_available()
    # A CPU takes 64 within ten seconds; 3,200 are an epoch of the competition.
    images = case.images or (3200 if on_gpu else 64)
    train, validation = _pictures(images), _pictures(max(2, images // 2))
    experiment = Experiment(case.backbone, case.loss)
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(case, Path(folder))
        began = _now()
        training = Training(experiment, settings, train, validation)
        batches, checks = Watched(training.batches), Watched(training.validation)
        training.batches, training.validation = batches, checks  # type: ignore[assignment]
        # What is not counted: a GPU tries its convolutions, also those of the last, smaller batch.
        batches.limit = checks.limit = None if on_gpu else 1
        training.one_epoch()
        batches.limit = checks.limit = None
        training.one_epoch()
        ended = _now()
        training.batches, training.validation = batches.batches, checks.batches
        copying, keeping = _keeping(training, Path(folder))
        peak_bytes = _peak_bytes()
        predicting, writing = _prediction(training, settings, train)
        return Measured(
            training=len(train) / (checks.began - batches.began),
            validation=len(validation) / (ended - checks.began),
            prediction=1 / predicting,
            writing=1 / writing,
            loading=len(train) / _seconds(lambda: _exhaust(batches)),
            first_step=batches.stepped - began,
            copying=copying,
            keeping=keeping,
            peak_bytes=peak_bytes,
            flops=_flops(training, case.size),
            peak_flops=_peak_flops(training.compute.device, training.compute.number_format),
            number_format=_name(training.compute.number_format, on_gpu),
            images=images,
            device=torch.cuda.get_device_name() if on_gpu else "CPU",
            flags=" ".join(sorted(cpu_flags() & TELLING_FLAGS)),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
        )


def _settings(case: Case, folder: Path) -> Settings:
    return Settings(
        data_dir=folder,
        output_dir=folder,
        recipe=case.recipe,
        epochs=EPOCHS,
        batch_size=case.batch_size,
        image_size=case.size,
        pretrained=False,
        num_workers=case.workers,
    )


def _pictures(count: int) -> LabelledImages:
    """Made-up images and masks; of five, two masks are empty, as of the competition's."""
    rng = np.random.default_rng(0)
    sections = [make_section(rng, number % 5 > 1) for number in range(min(count, DISTINCT))]
    rows = np.arange(count) % len(sections)
    return LabelledImages(
        tuple(f"{number:010x}" for number in range(count)),
        np.stack([image for image, _ in sections])[rows],
        np.stack([mask for _, mask in sections]).astype(np.uint8)[rows],
    )


def _keeping(training: Training, folder: Path) -> tuple[float, float]:
    """Seconds to copy, and to copy and write, what an epoch leaves that is the best one.

    Then an epoch beside the writing, for the memory of both.
    """
    with Keeper(Outputs(folder), training.experiment.name, {}) as keeper:
        del training.history[:-1]  # an epoch alone is the best one
        began = _now()
        keeper.keep(training)
        copying = _now() - began
        keeper.settle(training)
        keeping = _now() - began
        keeper.keep(training)
        training.one_epoch()
    return copying, keeping


def _prediction(
    training: Training, settings: Settings, pictures: LabelledImages
) -> tuple[float, float]:
    """Seconds an image from bytes to the checked csv, and of that what follows the network.

    The network's answer is thrown away, and blurred true masks are cut and written in its place:
    a network that has hardly been trained answers with noise, whose texts are far longer.
    """
    recipe = settings.training
    model = training.model.eval()
    cut = Cut(smallest=SMALLEST) if recipe.chosen_cut else Cut()
    answers = np.stack([cv2.blur(mask.astype(np.float32), (5, 5)) for mask in pictures.masks])
    path = settings.output_dir / "submission.csv"

    def write(batches: Iterator[Probabilities], sample: Path) -> None:
        masks = (mask for batch in batches for mask in cut.masks(batch))
        write_submission(path, read_ids(sample), masks, sample)

    def replaced() -> Iterator[Probabilities]:
        first = 0
        for batch in predict([model], pictures.images, settings, ""):
            yield answers[first : first + len(batch)]
            first += len(batch)

    few = pictures.images[: settings.batch_size if training.compute.device.type == "cpu" else None]
    _exhaust(predict([model], few, settings, ""))  # what is not counted
    sample = _sample(settings.output_dir / "sample.csv", len(answers))
    predicting = _seconds(lambda: write(replaced(), sample)) / len(answers)
    many = answers[np.arange(max(WRITTEN, len(answers))) % len(answers)]
    sample = _sample(settings.output_dir / "many.csv", len(many))
    return predicting, _seconds(lambda: write(iter([many]), sample)) / len(many)


def _sample(path: Path, count: int) -> Path:
    """A sample_submission.csv of so many pictures."""
    path.write_text("\n".join(["id,rle_mask", *(f"{n:010x},1 1" for n in range(count)), ""]))
    return path


def _flops(training: Training, size: int) -> int:
    """Operations of a step for each image, as PyTorch counts them: convolutions, in effect.

    Of two images, which batch normalisation needs: the number grows with them.
    """
    device = training.compute.device
    images = torch.rand(2, 3, size, size, device=device)
    masks = torch.ones(2, 1, size, size, device=device)
    training.network.train()
    with FlopCounterMode(display=False) as counter:
        with training.compute.autocast():
            logits = training.network(images)
        training.loss(logits, masks).backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops()) // 2


def _peak_flops(device: torch.device, number_format: torch.dtype) -> float:
    """The most operations a second that a square matrix product reaches here and now."""
    # float32 as convolutions have it, which on newer GPUs is TF32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    best = 0.0
    for side in PEAK_SIDES[device.type]:
        square = torch.rand(side, side, device=device).to(number_format)
        torch.mm(square, square)  # not counted
        for _ in range(PEAK_ROUNDS):
            best = max(best, 2 * side**3 / _seconds(partial(torch.mm, square, square)))
    return best


def _name(number_format: torch.dtype, on_gpu: bool) -> str:
    name = str(number_format).removeprefix("torch.")
    newer = on_gpu and torch.cuda.get_device_capability() >= (8, 0)
    tf32 = newer and name == "float32" and torch.backends.cudnn.allow_tf32
    return f"{name} (TF32)" if tf32 else name


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


def _exhaust(batches: Iterator[object] | Watched) -> None:
    for _ in batches:
        pass


def _seconds(work: Callable[[], object]) -> float:
    began = _now()
    work()
    return _now() - began


def _now() -> float:
    """The clock, once a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Measure one case."""
    print(json.dumps(asdict(measure(Case(**json.loads(sys.argv[1]))))))


if __name__ == "__main__":
    main()
