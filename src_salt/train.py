"""Training of one experiment: epochs, the best weights, checkpoints and the history.

The best weights are written whenever validation improves. `Trainer` holds everything that an epoch
changes, so its checkpoint is enough to resume: on a CPU the result is the same bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from src_salt.budget import Budget
from src_salt.checkpoint import (
    CheckpointError,
    State,
    copy_to_cpu,
    random_state,
    read_checkpoint,
    restore_random_state,
    to_bytes,
    write_checkpoint,
)
from src_salt.config import Experiment, SaltError, Settings, first_line
from src_salt.data import (
    DeviceBatches,
    LabelledImages,
    PairLoader,
    ShuffleSampler,
    evaluation_loader,
    is_worker_failure,
    training_loader,
)
from src_salt.device import (
    SINGLE_PROCESS,
    DistributedContext,
    is_out_of_memory,
    pick_compute,
    seed_everything,
    sync_batch_norm,
)
from src_salt.losses import LOSS_FUNCTIONS
from src_salt.metrics import THRESHOLD, competition_score, iou
from src_salt.model import UNet, load_encoder_weights
from src_salt.muon import Muon
from src_salt.outputs import (
    DISK_FULL,
    Outputs,
    emit,
    progress,
    sha256,
    sha256_of_file,
    write_bytes,
)
from src_salt.transforms import resize_to_original

OUT_OF_TIME = "out of time"
"""The beginning of the reason why an experiment ended that another run can continue."""

PLATEAU_FACTOR = 0.1
PLATEAU_PATIENCE = 5
"""Epochs without a better validation IoU before the learning rate drops to a tenth."""

WARM_UP = 0.1
"""Share of the steps in which the one-cycle schedule raises the learning rate."""

Batches = PairLoader | DeviceBatches


class TrainingError(SaltError):
    """Training failed; the message names experiment and epoch."""


class OutOfMemory(SaltError):
    """A step does not fit into memory; the message is the allocator's."""


class WorkerDied(SaltError):
    """A worker process of a data loader ended."""


@dataclass(frozen=True)
class Epoch:
    """One entry of a history. Losses and IoU are means over images at the network's input size."""

    epoch: int  # from 1
    train_loss: float
    val_loss: float
    train_iou: float  # of the augmented images, while the weights still change
    val_iou: float
    val_score: float  # the competition's, of masks at the original 101x101 pixels
    learning_rate: float  # of the first step


@dataclass(frozen=True)
class Outcome:
    """The result of training an experiment."""

    history: tuple[Epoch, ...]
    ended: str
    """Why training stopped before the last epoch; empty if it is complete."""


class Trainer:
    """Everything that training an experiment changes.

    A batch goes through the network in `accumulation_steps` pieces whose gradients are added:
    more pieces need less memory. Batch normalization and the Dice loss then see each piece, not
    the whole batch.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: Settings,
        train: LabelledImages,
        validation: LabelledImages,
        accumulation_steps: int = 1,
        context: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self.experiment, self.settings = experiment, settings
        self.recipe = settings.resolved_recipe
        self.accumulation_steps, self.context = accumulation_steps, context
        self.compute = pick_compute(self.recipe.on_device, self.context)
        seed_everything(settings.seed, self.compute.device, deterministic=not self.recipe.on_device)
        with _convert_errors():
            weights = load_encoder_weights(experiment.backbone, settings)
            model = UNet(experiment.backbone, self.recipe.normalized_decoder, weights)
            self.model = self.compute.place(sync_batch_norm(model, self.context))
            self.network: nn.Module = self.model
            if self.context.world_size > 1:
                # Synchronized batch normalization keeps the buffers of all processes equal.
                self.network = DistributedDataParallel(self.model, broadcast_buffers=False)
            self.loss = LOSS_FUNCTIONS[experiment.loss]
            self.batches, self.validation = self._build_batches(train, validation)
            self.truths = torch.from_numpy(validation.masks).to(self.compute.device) > 0
            self.optimizer, self.scheduler = self.build_optimizer()
            self.scaler = self.compute.scaler()
        self.history: list[Epoch] = []
        self.seconds_per_image = 0.0
        """Of one process, in the last validation."""

    def _build_batches(
        self, train: LabelledImages, validation: LabelledImages
    ) -> tuple[Batches, Batches]:
        if not self.recipe.on_device:
            return (
                training_loader(train, self.settings, self.context),
                evaluation_loader(validation, self.settings, self.context),
            )
        shared = self.settings, self.compute, self.context
        return (
            DeviceBatches(train, *shared, augmentation=self.recipe.augmentation),
            DeviceBatches(validation, *shared),
        )

    def build_optimizer(self) -> tuple[Optimizer, ReduceLROnPlateau | OneCycleLR]:
        """Create the recipe's optimizer and schedule in their initial state."""
        parameters = self.model.parameters()
        rate, decay = self.recipe.learning_rate, self.recipe.weight_decay
        fused = True if self.recipe.on_device else None
        if self.recipe.optimizer == "adam":
            adam = Adam(parameters, lr=rate, weight_decay=decay, fused=fused)
            return adam, ReduceLROnPlateau(
                adam, mode="max", factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE
            )
        muon = Muon(parameters, lr=rate, weight_decay=decay, context=self.context)
        return muon, self.one_cycle(muon, self.settings.epochs)

    def one_cycle(self, optimizer: Optimizer, epochs: int) -> OneCycleLR:
        """Create a one-cycle schedule of the learning rate over a number of epochs."""
        # Rise and fall need at least one step each; otherwise OneCycleLR divides by zero.
        steps = max(3, epochs * len(self.batches))
        warm_up = max(WARM_UP, 2 / steps)
        rate = self.recipe.learning_rate
        return OneCycleLR(
            optimizer, max_lr=rate, total_steps=steps, pct_start=warm_up, cycle_momentum=False
        )

    @property
    def is_best(self) -> bool:
        """Whether the last epoch is the best so far."""
        return best_epoch(self.history, self.recipe.select_by) is self.history[-1]

    def run_epoch(self) -> Epoch:
        """Train on every image once, validate, and step the schedule.

        Raises:
            TrainingError: a loss is not finite.
            OutOfMemory: a step needs more memory than is available.
            WorkerDied: a worker process of the data loader ended.
        """
        with _convert_errors():
            return self._run_epoch()

    def _run_epoch(self) -> Epoch:
        number = len(self.history) + 1
        title = f"{self.experiment.name} epoch {number}"
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        train_loss, train_iou = self._train_pass(progress(self.batches, title))
        self._require_finite(train_loss, "training", number)
        started = time.monotonic()
        val_loss, val_iou, val_score = self._validation_pass(
            progress(self.validation, f"{title} validation")
        )
        seconds = time.monotonic() - started
        self.seconds_per_image = seconds * self.context.world_size / len(self.truths)
        self._require_finite(val_loss, "validation", number)
        epoch = Epoch(number, train_loss, val_loss, train_iou, val_iou, val_score, learning_rate)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(epoch.val_iou)
        self.history.append(epoch)
        return epoch

    def _train_pass(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Return mean loss and mean IoU."""
        self.network.train()
        means = _RunningMeans()
        for images, masks in batches:
            self.optimizer.zero_grad(set_to_none=True)
            # Batch normalization may not be able to compute a variance from one image.
            count = max(1, min(self.accumulation_steps, len(images) // 2))
            pieces = images.tensor_split(count), masks.tensor_split(count)
            for image_piece, mask_piece in zip(*pieces, strict=True):
                value, logits, targets = self._forward(self.network, image_piece, mask_piece)
                weight = len(image_piece) / len(images)
                self.scaler.scale(value * weight).backward()  # type: ignore[no-untyped-call]
                ious = iou(logits.detach()[:, 0] > 0, targets[:, 0] > 0)  # 0 is probability 0.5
                means.add(len(targets), value * len(targets), ious.sum())
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if isinstance(self.scheduler, OneCycleLR):
                self.scheduler.step()
        loss, mean_iou = means.read()
        return loss, mean_iou

    @torch.inference_mode()
    def _validation_pass(
        self, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> tuple[float, float, float]:
        """Return mean loss, mean IoU and mean competition score."""
        model = self.model.eval()
        means = _RunningMeans()
        for images, masks in batches:
            first, size = means.images, len(images) * self.context.world_size
            truths = self.truths[first : first + size]
            count = len(truths)  # with several processes, the last batch may repeat its last image
            value, logits, targets = self._forward(
                model, images, masks, count, self.accumulation_steps
            )
            ious = iou(logits[:, 0] > 0, targets[:, 0] > 0)
            probabilities = resize_to_original(torch.sigmoid(logits.float()), self.recipe.fit)
            scores = competition_score(probabilities > THRESHOLD, truths)
            means.add(count, value * count, ious.sum(), scores.sum())
        loss, mean_iou, score = means.read()
        return loss, mean_iou, score

    def _forward(
        self,
        network: nn.Module,
        images: Tensor,
        masks: Tensor,
        count: int | None = None,
        pieces: int = 1,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, logits and targets of a batch over all processes; `count` cuts the batch."""
        inputs = images.to(self.compute.device, non_blocking=True)
        targets = masks.to(self.compute.device, non_blocking=True)
        with self.compute.autocast():
            parts = [network(part) for part in inputs.tensor_split(min(pieces, len(inputs)))]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        logits = self.context.all_gather(logits)[:count]
        targets = self.context.all_gather(targets)[:count]
        return self.loss(logits, targets), logits, targets

    def _require_finite(self, value: float, side: str, number: int) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.experiment.name}: the {side} loss of epoch {number} is {value}. "
                "A lower learning_rate usually helps."
            )

    def state(self) -> State:
        """Return the complete state as plain values and tensors."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "order": _generator(self.batches).get_state(),
            "random": random_state(),
            "history": [asdict(epoch) for epoch in self.history],
        }

    def load_state(self, state: State) -> None:
        """Load what `state` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:  # empty if it was written without float16
            self.scaler.load_state_dict(state["scaler"])
        _generator(self.batches).set_state(state["order"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        restore_random_state(state["random"])


def train_experiment(
    experiment: Experiment,
    settings: Settings,
    train: LabelledImages,
    validation: LabelledImages,
    outputs: Outputs,
    fingerprint: Mapping[str, Any] | None = None,
    budget: Budget | None = None,
    accumulation_steps: int = 1,
    context: DistributedContext = SINGLE_PROCESS,
) -> Outcome:
    """Train one experiment and write its best weights to `outputs`.

    It seeds all random generators, so its result does not depend on what ran before it in this
    process. With a `fingerprint` it writes checkpoints, and resumes from one with the same
    fingerprint. With several processes, only the main one writes files and prints events.

    Raises:
        TrainingError: in the first epoch, the loss is not finite or the weights cannot be written;
            or the checkpoint's weights cannot be written.
        OutOfMemory: more `accumulation_steps` are needed.
        WorkerDied: a worker process of the data loader ended.
    """
    trainer = Trainer(experiment, settings, train, validation, accumulation_steps, context)
    seconds = settings.checkpoint_seconds
    with Checkpointer(outputs, experiment.name, fingerprint, seconds) as checkpointer:
        try:
            if checkpointer.resume(trainer) and context.is_main:
                emit("resume", experiment=experiment.name, epochs_done=len(trainer.history))
        except CheckpointError as error:
            if context.is_main:
                emit("retrain", experiment=experiment.name, reason=str(error))
            trainer = Trainer(experiment, settings, train, validation, accumulation_steps, context)
        try:
            ended = _train_epochs(trainer, checkpointer, budget or Budget())
        except TrainingError as error:
            ended = str(error)
        except (OutOfMemory, WorkerDied):
            # With several processes, only some may have failed, so they cannot communicate.
            if context.world_size > 1 or not (ended := checkpointer.wait(trainer)):
                raise
        ended = " ".join(filter(None, [checkpointer.wait(trainer), ended]))
    if not trainer.history:
        raise TrainingError(ended)
    return Outcome(tuple(trainer.history), ended)


def _train_epochs(trainer: Trainer, checkpointer: Checkpointer, budget: Budget) -> str:
    """Train the remaining epochs, or as many as the budget allows. Return why it stopped early."""
    context, epochs = trainer.context, trainer.settings.epochs
    first = len(trainer.history) + 1
    while len(trainer.history) < epochs:
        if not context.broadcast(budget.allows_epoch()) and trainer.history:
            return f"{OUT_OF_TIME} after epoch {len(trainer.history)}"
        started = time.monotonic()
        epoch = trainer.run_epoch()
        checkpointer.save(trainer)
        budget.record(time.monotonic() - started, trainer.seconds_per_image)
        if context.is_main:
            _report_epoch(epoch, trainer.experiment, epochs, budget.epoch_seconds)
            left = epochs - epoch.epoch
            if epoch.epoch == first and left and budget.hours is not None:
                _report_estimate(trainer.experiment, left, budget)
    return ""


def best_epoch(history: Sequence[Epoch], by: str = "val_iou") -> Epoch:
    """Return the first epoch with the highest value of the field `by`; its weights are kept."""
    best: Epoch = max(history, key=lambda epoch: float(getattr(epoch, by)))
    return best


def saved_outcome(
    experiment: Experiment,
    settings: Settings,
    outputs: Outputs,
    fingerprint: Mapping[str, Any],
    ended: str,
) -> Outcome | None:
    """Return what an experiment had reached at its last checkpoint, or None without one.

    `ended` says why it does not continue.
    """
    checkpointer = Checkpointer(outputs, experiment.name, fingerprint)
    try:
        state = checkpointer.read(settings.resolved_recipe.select_by)
    except (CheckpointError, TrainingError):
        return None
    history = [] if state is None else state["history"]
    return Outcome(tuple(Epoch(**epoch) for epoch in history), ended) if history else None


class Checkpointer:
    """Writes the best weights and the checkpoint of an experiment, and resumes from them.

    Each epoch is copied, and at most every `seconds` the last copy is written, by a background
    thread while the next epoch trains. What is not yet written when the block ends, with or without
    an error or an interrupt, is written then. So only a process that is killed loses work: what it
    has done since the last write began, up to `seconds` and one epoch.
    """

    def __init__(
        self,
        outputs: Outputs,
        experiment: str,
        fingerprint: Mapping[str, Any] | None,
        seconds: float = 0,
    ) -> None:
        self.experiment, self.fingerprint, self.seconds = experiment, fingerprint, seconds
        self.weights, self.checkpoint = outputs.weights(experiment), outputs.checkpoint(experiment)
        self.weights_digest = ""
        self.executor = ThreadPoolExecutor(1, "checkpointer")
        self.pending: Future[tuple[str, str]] | None = None
        """The write in progress; its result is a warning and an error. Main process only."""

        self.copied: State | None = None
        """The state after the last epoch, if it is not written yet. Main process only."""

        self.best: State | None = None
        """The best weights, if they are not written yet. Main process only."""

        self.began = -math.inf
        """When the last write began."""

        self.epochs = 0
        """How many epochs that write includes."""

        self.kept = 0
        """How many epochs the last successful write includes."""

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        # Do not use shutdown(wait=True), which joins the thread: after a signal, Python 3.11 takes
        # the thread for finished (https://github.com/python/cpython/issues/90882).
        failed = self.pending is not None and bool(self.pending.result()[1])
        # After a failed write, the digest would be that of weights that are not on the disk.
        if self.copied is not None and not failed:  # only after an error or an interrupt
            self._begin_write()
            assert self.pending is not None
            self.pending.result()
        self.executor.shutdown(wait=False)

    def save(self, trainer: Trainer) -> None:
        """Copy the last epoch; if it is time, start to write it after the previous write.

        Raises:
            TrainingError: the previous write failed; see `wait`.
            OutOfMemory: there is not enough memory for a copy of the state.
        """
        if trainer.context.is_main:
            with _convert_errors():
                copied = copy_to_cpu(trainer.state())
            best = copied["model"] if trainer.is_best else self.best
            # Nothing is called in between, so that no interrupt can separate the two.
            self.copied, self.best = copied, best
        if trainer.context.broadcast(time.monotonic() - self.began >= self.seconds):
            if error := self._wait(trainer):
                raise TrainingError(error)
            self._begin_write()

    def wait(self, trainer: Trainer) -> str:
        """Write what is not yet written. Return why a write failed, or an empty text.

        After a failure, the epochs of that write and later ones are removed from the history.
        """
        error = self._wait(trainer)
        if not error:
            self._begin_write()
            error = self._wait(trainer)
        return error

    def _wait(self, trainer: Trainer) -> str:
        """Wait for the write in progress; otherwise like `wait`."""
        warning, error = "", ""
        if self.pending is not None:
            warning, error = self.pending.result()
            self.pending = None
        if warning:
            emit("warning", experiment=self.experiment, message=warning)
        error = trainer.context.broadcast(error)
        self.kept, kept = trainer.context.broadcast((self.epochs, self.kept))
        if error:
            self.copied = self.best = None
            self.kept = kept
            del trainer.history[kept:]
        return error

    def _begin_write(self) -> None:
        """Start to write the last copy, unless that has been done."""
        if self.copied is not None:
            state, best = self.copied, self.best
            self.copied = self.best = None
            self.began, self.epochs = time.monotonic(), len(state["history"])
            self.pending = self.executor.submit(self._write, state, best)

    def _write(self, state: State, best: State | None) -> tuple[str, str]:
        """Write in the background thread. Return a warning and an error; never raise or emit."""
        warning, epoch = "", len(state["history"])
        try:
            content = to_bytes(best) if best is not None else None
            if content is not None:
                self.weights_digest = sha256(content)
            warning = self._write_checkpoint(state, best, epoch)
            if content is not None:
                self._write_weights(content)
        except (OSError, RuntimeError, MemoryError) as error:
            kept = " The previous weights are kept." if self.kept else ""
            return warning, self._write_error(epoch, error) + kept
        return warning, ""

    def _write_error(self, epoch: int, error: Exception) -> str:
        reason = getattr(error, "strerror", None) or first_line(error)
        return f"{self.experiment}: the weights of epoch {epoch} cannot be written ({reason})."

    def _write_weights(self, content: bytes) -> None:
        try:
            write_bytes(self.weights, content)
        except OSError as error:
            # Results are more important than the ability to resume, and a checkpoint is several
            # times as large as the weights.
            if error.errno not in DISK_FULL or not self.checkpoint.exists():
                raise
            self.checkpoint.unlink()
            write_bytes(self.weights, content)

    def _write_checkpoint(self, state: State, best: State | None, epoch: int) -> str:
        """Return a warning if the checkpoint cannot be written; the previous one then stays.

        The checkpoint comes before the weights: if a run is killed in between, the checkpoint
        contains both.
        """
        if self.fingerprint is None:
            return ""
        state = state | {"weights_sha256": self.weights_digest}
        if best is not None and best is not state["model"]:
            state["best_model"] = best
        try:
            write_checkpoint(self.checkpoint, state, self.fingerprint)
        except (OSError, RuntimeError) as error:  # torch.save turns some of one into the other
            return f"no checkpoint of epoch {epoch}: {first_line(error)}"
        return ""

    def resume(self, trainer: Trainer) -> bool:
        """Load the checkpoint if there is one. Return whether there was.

        Raises:
            CheckpointError: the checkpoint cannot be used.
            TrainingError: it can, but its weights cannot be written.
        """
        state = self.read(trainer.recipe.select_by)
        if state is None:
            return False
        try:
            trainer.load_state(state)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(str(error)) from error
        self.weights_digest = state["weights_sha256"]
        self.epochs = self.kept = len(trainer.history)
        return True

    def read(self, select_by: str) -> State | None:
        """Read the checkpoint if there is one, and write its best weights if they are missing.

        Raises:
            CheckpointError: the checkpoint cannot be used.
            TrainingError: it can, but its weights cannot be written.
        """
        if self.fingerprint is None or not self.checkpoint.exists():
            return None
        try:
            state = read_checkpoint(self.checkpoint, self.fingerprint)
            history = [Epoch(**epoch) for epoch in state["history"]]
            digest = state["weights_sha256"]
            complete = self.weights.exists() and sha256_of_file(self.weights) == digest
            is_best = best_epoch(history, select_by) is history[-1]
            best = state["model"] if is_best else state.get("best_model")
            content = None if complete or best is None else to_bytes(best)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
            raise CheckpointError(str(error)) from error
        if complete:
            return state
        if content is None:
            raise CheckpointError("the weights file does not belong to the checkpoint")
        try:
            write_bytes(self.weights, content)
        except OSError as error:
            raise TrainingError(self._write_error(len(history), error)) from error
        return state


class _RunningMeans:
    """Means over images. The sums stay on the device, since reading a number stops a GPU."""

    def __init__(self) -> None:
        self.images = 0
        self.sums: Tensor | None = None

    def add(self, images: int, *sums: Tensor) -> None:
        """Add a batch: its number of images, and its sums over them."""
        batch = torch.stack([value.detach().double() for value in sums])
        self.sums = batch if self.sums is None else self.sums + batch
        self.images += images

    def read(self) -> list[float]:
        """Return the means, in the order of the sums."""
        assert self.sums is not None, "a loader always yields at least one batch"
        means: list[float] = (self.sums / self.images).tolist()
        return means


def _generator(batches: Batches) -> torch.Generator:
    """Return the generator that decides order and augmentation."""
    if isinstance(batches, DeviceBatches):
        return batches.generator
    assert isinstance(batches.sampler, ShuffleSampler)
    return batches.sampler.generator


@contextmanager
def _convert_errors() -> Iterator[None]:
    """Turn PyTorch's errors about memory and workers into OutOfMemory and WorkerDied."""
    try:
        yield
    except (RuntimeError, OSError, EOFError, MemoryError) as error:
        # First, since a worker's own lack of memory is solved by training without workers.
        if is_worker_failure(error):
            # PyTorch's signal handler raises a second error at any place: wait for it here.
            with suppress(RuntimeError):
                time.sleep(1)
            raise WorkerDied(first_line(error)) from error
        if is_out_of_memory(error):
            raise OutOfMemory(first_line(error)) from error
        raise


def _report_epoch(epoch: Epoch, experiment: Experiment, epochs: int, seconds: float) -> None:
    values = asdict(epoch)
    values.pop("epoch")
    emit(
        "epoch",
        experiment=experiment.name,
        epoch=epoch.epoch,
        epochs=epochs,
        **values,
        seconds=round(seconds, 2),
    )


def _report_estimate(experiment: Experiment, epochs_left: int, budget: Budget) -> None:
    emit(
        "estimate",
        experiment=experiment.name,
        epochs_left=epochs_left,
        epochs_that_fit=min(budget.epochs_left(), epochs_left),
        seconds_an_epoch=round(budget.epoch_seconds, 2),
        seconds_left=round(budget.epoch_seconds * epochs_left, 2),
    )
