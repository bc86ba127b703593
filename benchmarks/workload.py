"""Measures one recipe of src_salt in this process. `benchmarks.training` starts it many times.

`python -m benchmarks.workload JSON` takes the fields of `Case` and prints the fields of `Measured`
as one line of JSON.

It uses the code of src_salt without changes. `TimedBatches` wraps the batches and records when a
pass begins and when the first step ends.
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
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.launch import MAXRSS_UNIT
from src_salt.config import Experiment, Recipe, Settings
from src_salt.data import Images, LabelledImages, read_ids
from src_salt.device import Compute, cpu_flags
from src_salt.losses import Loss
from src_salt.metrics import Postprocessing, Probabilities
from src_salt.outputs import Outputs
from src_salt.predict import predict
from src_salt.submission import write_submission
from src_salt.synthetic import make_section
from src_salt.train import Batches, Checkpointer, Trainer

DISTINCT_IMAGES = 64
"""Number of different synthetic images. Further images are copies, which take as long."""

EPOCHS = 10_000
"""Length of the learning rate schedule, which cannot continue after its end."""

MIN_AREA = 40
"""Minimum area for recipes that tune it. Tuning is not part of prediction, so it is fixed here."""

MIN_WRITTEN = 1024
"""Minimum number of masks when writing is measured alone; fewer take too little time."""

PEAK_SIDES = {"cpu": (1024,), "cuda": (4096, 8192, 16384)}
PEAK_ROUNDS = 5

SHOWN_FLAGS = {"avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"}
"""CPU flags that affect the speed of matrix products."""

Predictor = Callable[[Images], Iterator[Probabilities]]
"""Yields probabilities of gray images (N, 101, 101), batch by batch."""


@dataclass(frozen=True)
class Case:
    """The recipe, network and data to measure."""

    recipe: str
    backbone: str
    loss: str
    images: int | None
    """Images for training and for prediction; half as many for validation. None: by the device."""

    batch_size: int
    size: int
    workers: int
    """Processes that prepare the batches of a recipe that makes them on the CPU."""


@dataclass(frozen=True)
class Measured:
    """The results. Rates are in images per second."""

    training: float
    validation: float
    prediction: float
    """From bytes in memory to the validated csv."""

    writing: float
    """The part after the network: masks, run-length texts, the csv and its validation."""

    loading: float
    """Making training batches, without using them."""

    first_step: float
    """Seconds from creating a `Trainer` without pretrained weights to the end of its first step."""

    copying: float
    """Seconds that the next epoch waits while weights and state are copied."""

    saving: float
    """Seconds until weights and checkpoint are written, including the copying."""

    peak_bytes: int
    """Peak memory of the device; on a CPU, of this process without its workers."""

    flops: int
    """Operations per image of a training step, forward and backward."""

    peak_flops: float
    """Operations per second of the fastest square matrix product in the same dtype."""

    dtype: str
    images: int
    device: str
    flags: str
    torch: str
    threads: int


class TimedBatches:
    """Batches that record when a pass begins and when its first step ends."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.limit: int | None = None
        """Maximum number of batches in a pass."""

        self.began = 0.0
        self.stepped = 0.0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.began = time.perf_counter()
        for number, batch in enumerate(islice(self.batches, self.limit)):
            yield batch
            if number == 0 and not self.stepped:  # only once, since it stops a GPU
                self.stepped = now()


def measure(case: Case) -> Measured:
    """Train, validate and predict synthetic images."""
    on_gpu = torch.cuda.is_available()
    # A CPU needs ten seconds for 64; an epoch of the competition has 3,200.
    images = case.images or (3200 if on_gpu else 64)
    train, validation = make_images(images), make_images(max(2, images // 2))
    experiment = Experiment(case.backbone, case.loss)
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(case, Path(folder))
        began = now()
        trainer = Trainer(experiment, settings, train, validation)
        batches, checks = TimedBatches(trainer.batches), TimedBatches(trainer.validation)
        trainer.batches, trainer.validation = batches, checks  # type: ignore[assignment]
        # Warm-up: a GPU benchmarks its convolutions, also for the smaller last batch.
        batches.limit = checks.limit = None if on_gpu else 1
        trainer.run_epoch()
        batches.limit = checks.limit = None
        trainer.run_epoch()
        ended = now()
        trainer.batches, trainer.validation = batches.batches, checks.batches
        copying, saving = _time_checkpoint(trainer, Path(folder))
        peak_bytes = peak_bytes_of()
        warm = len(train) if on_gpu else case.batch_size
        recipe = settings.resolved_recipe
        predicting, writing = time_prediction(
            predictor(trainer, settings), postprocessing_of(recipe), Path(folder), train, warm
        )
        return Measured(
            training=len(train) / (checks.began - batches.began),
            validation=len(validation) / (ended - checks.began),
            prediction=1 / predicting,
            writing=1 / writing,
            loading=len(train) / seconds_of(lambda: consume(batches)),
            first_step=batches.stepped - began,
            copying=copying,
            saving=saving,
            peak_bytes=peak_bytes,
            flops=flops_of(trainer.network, trainer.loss, trainer.compute, case.size),
            peak_flops=peak_flops_of(trainer.compute.device, trainer.compute.dtype),
            dtype=dtype_name(trainer.compute.dtype, on_gpu),
            images=images,
            device=torch.cuda.get_device_name() if on_gpu else "CPU",
            flags=" ".join(sorted(cpu_flags() & SHOWN_FLAGS)),
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


def make_images(count: int) -> LabelledImages:
    """Make synthetic images and masks; two of five masks are empty, as in the competition."""
    rng = np.random.default_rng(0)
    sections = [make_section(rng, number % 5 > 1) for number in range(min(count, DISTINCT_IMAGES))]
    rows = np.arange(count) % len(sections)
    return LabelledImages(
        tuple(f"{number:010x}" for number in range(count)),
        np.stack([image for image, _ in sections])[rows],
        np.stack([mask for _, mask in sections]).astype(np.uint8)[rows],
    )


def _time_checkpoint(trainer: Trainer, folder: Path) -> tuple[float, float]:
    """Return the seconds to copy the state of a best epoch, and to copy and write it.

    Then train an epoch during a write, so that the peak memory includes both.
    """
    with Checkpointer(Outputs(folder), trainer.experiment.name, {}) as checkpointer:
        del trainer.history[:-1]  # a single epoch is the best one
        began = now()
        checkpointer.save(trainer)
        copying = now() - began
        checkpointer.wait(trainer)
        saving = now() - began
        checkpointer.save(trainer)
        trainer.run_epoch()
    return copying, saving


def time_prediction(
    network: Predictor,
    postprocessing: Postprocessing,
    folder: Path,
    data: LabelledImages,
    warm: int,
) -> tuple[float, float]:
    """Return seconds per image from bytes to the validated csv, and of the part after the network.

    The first `warm` images are also predicted before. The network's predictions are replaced with
    blurred true masks. An almost untrained network predicts noise, whose run-length texts are much
    longer.
    """
    answers = np.stack([cv2.blur(mask.astype(np.float32), (5, 5)) for mask in data.masks])
    path = folder / "submission.csv"

    def write(batches: Iterator[Probabilities], sample: Path) -> None:
        masks = (mask for batch in batches for mask in postprocessing.apply(batch))
        write_submission(path, read_ids(sample), masks, sample)

    def replaced() -> Iterator[Probabilities]:
        first = 0
        for batch in network(data.images):
            yield answers[first : first + len(batch)]
            first += len(batch)

    consume(network(data.images[:warm]))
    sample = _write_sample(folder / "sample.csv", len(answers))
    predicting = seconds_of(lambda: write(replaced(), sample)) / len(answers)
    many = answers[np.arange(max(MIN_WRITTEN, len(answers))) % len(answers)]
    sample = _write_sample(folder / "many.csv", len(many))
    return predicting, seconds_of(lambda: write(iter([many]), sample)) / len(many)


def predictor(trainer: Trainer, settings: Settings) -> Predictor:
    """Return what predicts with a trainer's network."""
    model = trainer.model.eval()
    return lambda images: predict([model], images, settings, "")


def postprocessing_of(recipe: Recipe) -> Postprocessing:
    """Return the post-processing of a recipe."""
    return Postprocessing(min_area=MIN_AREA) if recipe.tune_threshold else Postprocessing()


def _write_sample(path: Path, count: int) -> Path:
    """Write a sample_submission.csv for a number of images."""
    path.write_text("\n".join(["id,rle_mask", *(f"{n:010x},1 1" for n in range(count)), ""]))
    return path


def flops_of(network: nn.Module, loss: Loss, compute: Compute, size: int) -> int:
    """Return the operations per image of a step as PyTorch counts them, mostly of convolutions.

    Batch normalization needs two images, so the count of two is halved.
    """
    images = torch.rand(2, 3, size, size, device=compute.device)
    masks = torch.ones(2, 1, size, size, device=compute.device)
    network.train()
    with FlopCounterMode(display=False) as counter:
        with compute.autocast():
            logits = network(images)
        loss(logits.float(), masks).backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops()) // 2


def peak_flops_of(device: torch.device, dtype: torch.dtype) -> float:
    """Return the highest number of operations per second of a square matrix product."""
    before = torch.backends.cuda.matmul.allow_tf32
    # Convolutions in float32 use TF32 on newer GPUs.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    best = 0.0
    for side in PEAK_SIDES[device.type]:
        square = torch.rand(side, side, device=device).to(dtype)
        torch.mm(square, square)  # warm-up
        for _ in range(PEAK_ROUNDS):
            best = max(best, 2 * side**3 / seconds_of(partial(torch.mm, square, square)))
    torch.backends.cuda.matmul.allow_tf32 = before
    return best


def dtype_name(dtype: torch.dtype, on_gpu: bool) -> str:
    """Return the name of a dtype, and whether a GPU rounds its convolutions to TF32."""
    name = str(dtype).removeprefix("torch.")
    newer = on_gpu and torch.cuda.get_device_capability() >= (8, 0)
    tf32 = newer and name == "float32" and torch.backends.cudnn.allow_tf32
    return f"{name} (TF32)" if tf32 else name


def peak_bytes_of() -> int:
    """Return the peak memory of the device; on a CPU, of this process without its workers."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


def consume(batches: Iterator[object] | TimedBatches) -> None:
    """Make all batches, without using them."""
    for _ in batches:
        pass


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long some work takes, until a GPU has finished it."""
    began = now()
    work()
    return now() - began


def now() -> float:
    """Return the time after a GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Measure one case."""
    print(json.dumps(asdict(measure(Case(**json.loads(sys.argv[1]))))))


if __name__ == "__main__":
    main()
