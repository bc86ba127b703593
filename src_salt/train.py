"""One experiment: epochs, the best weights, a checkpoint after each epoch, the history.

The best weights are written whenever validation improves. What an epoch changes is all in
`Training`, so that a checkpoint of it is enough to go on, bit for bit on a CPU.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
    as_bytes,
    on_cpu,
    random_state,
    read_checkpoint,
    restore_random_state,
    write_checkpoint,
)
from src_salt.config import Experiment, SaltError, Settings, first_line
from src_salt.data import (
    DeviceBatches,
    LabelledImages,
    Pairs,
    ShuffledDraws,
    evaluation_loader,
    is_dead_worker,
    training_loader,
)
from src_salt.device import (
    ALONE,
    Team,
    is_out_of_memory,
    pick_compute,
    seed_everything,
    synchronised,
)
from src_salt.losses import LOSS_FUNCTIONS
from src_salt.metrics import THRESHOLD, competition_score, iou
from src_salt.model import UNet, load_encoder_weights
from src_salt.muon import Muon
from src_salt.outputs import NO_ROOM, Outputs, emit, progress, sha256_of, write_bytes
from src_salt.transforms import restored

PLATEAU_FACTOR = 0.1
PLATEAU_PATIENCE = 5
"""Epochs without a better validation IoU before the learning rate falls to a tenth."""

WARM_UP = 0.1
"""Share of the steps in which one-cycle's learning rate rises."""

Batches = Pairs | DeviceBatches


class TrainingError(SaltError):
    """Training broke down; the message names experiment and epoch."""


class OutOfMemory(SaltError):
    """A step does not fit into memory; the message is the allocator's."""


class WorkerDied(SaltError):
    """A process that prepares batches is gone."""


@dataclass(frozen=True)
class Epoch:
    """One line of a history. IoU is the mean over images at the network's size, as losses are."""

    epoch: int  # from 1
    train_loss: float
    val_loss: float
    train_iou: float  # of the augmented images, while the weights still move
    val_iou: float
    val_score: float  # the competition's, of the masks at their full size of 101x101
    learning_rate: float  # of the first step


@dataclass(frozen=True)
class Outcome:
    """How far an experiment came."""

    history: tuple[Epoch, ...]
    ended: str
    """Why it ended before its last epoch; empty if it is complete."""


class Training:
    """Everything of an experiment that changes while it is trained.

    `parts` is the number of pieces in which a batch goes through the network: as many need less
    memory, and their gradients are added up. Batch normalisation then sees the pieces, and Dice is
    taken over each of them.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: Settings,
        train: LabelledImages,
        validation: LabelledImages,
        parts: int = 1,
        team: Team = ALONE,
    ) -> None:
        self.experiment, self.settings, self.recipe = experiment, settings, settings.training
        self.parts, self.team = parts, team
        self.compute = pick_compute(self.recipe.on_device, self.team)
        seed_everything(settings.seed, self.compute.device, exact=not self.recipe.on_device)
        with _faults_of_the_machine():
            weights = load_encoder_weights(experiment.backbone, settings)
            model = UNet(experiment.backbone, self.recipe.normalised_decoder, weights)
            self.model = self.compute.place(synchronised(model, self.team))
            self.network: nn.Module = self.model
            if self.team.size > 1:
                self.network = DistributedDataParallel(self.model)
            self.loss = LOSS_FUNCTIONS[experiment.loss]
            self.batches, self.validation = self._batches(train, validation)
            self.truths = torch.from_numpy(validation.masks).to(self.compute.device) > 0
            self.optimizer, self.scheduler = self.new_optimizer()
            self.scaler = self.compute.scaler()
        self.history: list[Epoch] = []
        self.seconds_per_image = 0.0
        """Of one process, in the last validation."""

    def _batches(
        self, train: LabelledImages, validation: LabelledImages
    ) -> tuple[Batches, Batches]:
        if not self.recipe.on_device:
            return (
                training_loader(train, self.settings, self.team),
                evaluation_loader(validation, self.settings, self.team),
            )
        shared = self.settings, self.compute, self.team
        return (
            DeviceBatches(train, *shared, augmentation=self.recipe.augmentation),
            DeviceBatches(validation, *shared),
        )

    def new_optimizer(self) -> tuple[Optimizer, ReduceLROnPlateau | OneCycleLR]:
        """The recipe's optimiser and schedule, at their beginning."""
        parameters = self.model.parameters()
        rate, decay = self.recipe.learning_rate, self.recipe.weight_decay
        fused = True if self.recipe.on_device else None
        if self.recipe.optimizer == "adam":
            adam = Adam(parameters, lr=rate, weight_decay=decay, fused=fused)
            return adam, ReduceLROnPlateau(
                adam, mode="max", factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE
            )
        muon = Muon(parameters, lr=rate, weight_decay=decay)
        return muon, self.cycle(muon, self.settings.epochs)

    def cycle(self, optimizer: Optimizer, epochs: int) -> OneCycleLR:
        """The learning rate's rise and fall over so many epochs."""
        # Each takes a step at least, without which its formula divides by zero.
        steps = max(3, epochs * len(self.batches))
        warm_up = max(WARM_UP, 2 / steps)
        rate = self.recipe.learning_rate
        return OneCycleLR(
            optimizer, max_lr=rate, total_steps=steps, pct_start=warm_up, cycle_momentum=False
        )

    @property
    def improved(self) -> bool:
        """Whether the last epoch is the best so far."""
        return best_epoch(self.history, self.recipe.select_by) is self.history[-1]

    def one_epoch(self) -> Epoch:
        """Train on every image once, validate, and step the schedule.

        Raises:
            TrainingError: a loss is no longer a number.
            OutOfMemory: a step needs more memory than there is.
            WorkerDied: a process that prepares batches was ended.
        """
        with _faults_of_the_machine():
            return self._epoch()

    def _epoch(self) -> Epoch:
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
        self.seconds_per_image = seconds * self.team.size / len(self.truths)
        self._require_finite(val_loss, "validation", number)
        epoch = Epoch(number, train_loss, val_loss, train_iou, val_iou, val_score, learning_rate)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(epoch.val_iou)
        self.history.append(epoch)
        return epoch

    def _train_pass(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        self.network.train()
        means = _Means()
        for images, masks in batches:
            self.optimizer.zero_grad(set_to_none=True)
            # A piece of one image alone may have no variance to be normalised by.
            parts = max(1, min(self.parts, len(images) // 2))
            pieces = images.tensor_split(parts), masks.tensor_split(parts)
            for piece, its_masks in zip(*pieces, strict=True):
                value, logits, targets = self._forward(self.network, piece, its_masks)
                share = len(piece) / len(images)
                self.scaler.scale(value * share).backward()  # type: ignore[no-untyped-call]
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
        model = self.model.eval()
        means = _Means()
        for images, masks in batches:
            truths = self.truths[means.images : means.images + len(images) * self.team.size]
            count = len(truths)  # the last batch of a team is filled up
            value, logits, targets = self._forward(model, images, masks, count, self.parts)
            ious = iou(logits[:, 0] > 0, targets[:, 0] > 0)
            full = restored(torch.sigmoid(logits.float()), self.recipe.fit) > THRESHOLD
            scores = competition_score(full, truths)
            means.add(count, value * count, ious.sum(), scores.sum())
        loss, mean_iou, score = means.read()
        return loss, mean_iou, score

    def _forward(
        self,
        network: nn.Module,
        images: Tensor,
        masks: Tensor,
        count: int | None = None,
        parts: int = 1,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, logits and targets of a batch, over the whole team."""
        inputs = images.to(self.compute.device, non_blocking=True)
        targets = masks.to(self.compute.device, non_blocking=True)
        with self.compute.autocast():
            pieces = [network(piece) for piece in inputs.tensor_split(min(parts, len(inputs)))]
        logits = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        logits, targets = self.team.gathered(logits)[:count], self.team.gathered(targets)[:count]
        return self.loss(logits, targets), logits, targets

    def _require_finite(self, value: float, side: str, number: int) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.experiment.name}: the {side} loss of epoch {number} is {value}. "
                "A lower learning_rate usually helps."
            )

    def state(self) -> State:
        """All of it as plain values and tensors."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "order": _generator(self.batches).get_state(),
            "random": random_state(),
            "history": [asdict(epoch) for epoch in self.history],
        }

    def restore(self, state: State) -> None:
        """Become what `state` was read from."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:  # else written where float16 was not used
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
    made_by: Mapping[str, Any] | None = None,
    budget: Budget | None = None,
    parts: int = 1,
    team: Team = ALONE,
) -> Outcome:
    """Train one experiment and keep its best weights in `outputs`.

    It seeds itself, so its result does not depend on what ran before it in this process. It goes
    on from a checkpoint that `made_by`, what decides the result, has left. One process of a team
    writes and speaks.

    Raises:
        TrainingError: a loss is no number, or weights cannot be written, and no epoch came before;
            or those of the checkpoint cannot be written.
        OutOfMemory: more `parts` are needed.
        WorkerDied: a process that prepares batches was ended.
    """
    training = Training(experiment, settings, train, validation, parts, team)
    with Keeper(outputs, experiment.name, made_by) as keeper:
        try:
            if keeper.go_on(training) and team.leads:
                emit("resume", experiment=experiment.name, epochs_done=len(training.history))
        except CheckpointError as error:
            if team.leads:
                emit("retrain", experiment=experiment.name, reason=str(error))
            training = Training(experiment, settings, train, validation, parts, team)
        try:
            ended = _train_epochs(training, keeper, budget or Budget())
        except TrainingError as error:
            ended = str(error)
        except (OutOfMemory, WorkerDied):
            # A team may not agree on anything any more: only some of it may have met this.
            if team.size > 1 or not (ended := keeper.settle(training)):
                raise
        ended = " ".join(filter(None, [keeper.settle(training), ended]))
    if not training.history:
        raise TrainingError(ended)
    return Outcome(tuple(training.history), ended)


def _train_epochs(training: Training, keeper: Keeper, budget: Budget) -> str:
    """All that are left, or as many as there is time for: then it says so, else nothing."""
    team, epochs = training.team, training.settings.epochs
    first = len(training.history) + 1
    while len(training.history) < epochs:
        if not team.agreed(budget.allows_an_epoch()) and training.history:
            return f"out of time after epoch {len(training.history)}"
        started = time.monotonic()
        epoch = training.one_epoch()
        keeper.keep(training)
        budget.epoch_seconds = time.monotonic() - started
        budget.image_seconds = training.seconds_per_image
        if team.leads:
            _announce(epoch, training.experiment, epochs, budget.epoch_seconds)
            left = epochs - epoch.epoch
            if epoch.epoch == first and left and budget.hours is not None:
                _announce_estimate(training.experiment, left, budget)
    return ""


def best_epoch(history: Sequence[Epoch], by: str = "val_iou") -> Epoch:
    """The first epoch with the highest validation value: the one whose weights are kept."""
    best: Epoch = max(history, key=lambda epoch: float(getattr(epoch, by)))
    return best


class Keeper:
    """Writes the best weights and the checkpoint of an experiment, and takes them up again.

    It writes beside the next epoch, so that no epoch waits for a disk that is quicker than itself.
    Left by an error or an interrupt, it still finishes what it has begun to write.
    """

    def __init__(
        self, outputs: Outputs, experiment: str, made_by: Mapping[str, Any] | None
    ) -> None:
        self.experiment, self.made_by = experiment, made_by
        self.weights, self.checkpoint = outputs.weights(experiment), outputs.checkpoint(experiment)
        self.digest = ""
        self.writer = ThreadPoolExecutor(1, "keeper")
        self.writing: Future[tuple[str, str]] | None = None
        """A warning and a fault, once it is done; only the leader of a team writes."""

        self.epoch = 0
        """The last that was given to be written."""

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        # Not by shutdown, which joins the thread: a signal then makes Python 3.11 take it for over,
        # and leave without it (https://github.com/python/cpython/issues/90882).
        if self.writing is not None:
            wait([self.writing])
        self.writer.shutdown(wait=False)

    def keep(self, training: Training) -> None:
        """Begin to write what the last epoch left, once the one before it is written.

        Raises:
            TrainingError: the one before cannot be written; see `settle`.
            OutOfMemory: there is no room for the copy that is written.
        """
        fault = self.settle(training)
        if fault:
            raise TrainingError(fault)
        self.epoch = len(training.history)
        if training.team.leads:
            with _faults_of_the_machine():
                state = on_cpu(training.state())
            self.writing = self.writer.submit(self._write, state, training.improved, self.epoch)

    def settle(self, training: Training) -> str:
        """Wait for what is being written, and say why it cannot be, if so.

        The history is then without that epoch, and without one that was trained meanwhile.
        """
        warning, fault = "", ""
        if self.writing is not None:
            warning, fault = self.writing.result()
            self.writing = None
        if warning:
            emit("warning", experiment=self.experiment, message=warning)
        fault = training.team.agreed(fault)
        if fault:
            del training.history[self.epoch - 1 :]
        return fault

    def _write(self, state: State, improved: bool, epoch: int) -> tuple[str, str]:
        """Warning and fault. In a thread of its own, so it neither speaks nor raises."""
        warning = ""
        try:
            content = as_bytes(state["model"]) if improved else None
            if content is not None:
                self.digest = hashlib.sha256(content).hexdigest()
            warning = self._write_checkpoint(state, epoch)
            if content is not None:
                self._write_weights(content)
        except (OSError, RuntimeError, MemoryError) as error:
            kept = " Those before are kept." if epoch > 1 else ""
            return warning, self._unwritten(epoch, error) + kept
        return warning, ""

    def _unwritten(self, epoch: int, error: Exception) -> str:
        why = getattr(error, "strerror", None) or first_line(error)
        return f"{self.experiment}: the weights of epoch {epoch} cannot be written ({why})."

    def _write_weights(self, content: bytes) -> None:
        try:
            write_bytes(self.weights, content)
        except OSError as error:
            # Results before the means to go on: a checkpoint is several times as large.
            if error.errno not in NO_ROOM or not self.checkpoint.exists():
                raise
            self.checkpoint.unlink()
            write_bytes(self.weights, content)

    def _write_checkpoint(self, state: State, epoch: int) -> str:
        """A warning if it cannot be written: then the one before stays.

        Before the weights: where a run is cut between the two, it holds both.
        """
        if self.made_by is None:
            return ""
        try:
            write_checkpoint(self.checkpoint, state | {"weights_sha256": self.digest}, self.made_by)
        except (OSError, RuntimeError) as error:  # torch's writer turns one into the other
            return f"no checkpoint of epoch {epoch}: {first_line(error)}"
        return ""

    def go_on(self, training: Training) -> bool:
        """Whether there was a checkpoint to go on from.

        Raises:
            CheckpointError: it is of no use.
            TrainingError: it is, but the weights that belong to it cannot be written.
        """
        if self.made_by is None or not self.checkpoint.exists():
            return False
        try:
            state = read_checkpoint(self.checkpoint, self.made_by)
            training.restore(state)
            self.digest = state["weights_sha256"]
            complete = self.weights.exists() and sha256_of(self.weights) == self.digest
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(str(error)) from error
        if complete:
            return True
        if not training.improved:
            raise CheckpointError("the weights beside the checkpoint are not its own")
        try:
            write_bytes(self.weights, as_bytes(on_cpu(training.model.state_dict())))
        except OSError as error:
            raise TrainingError(self._unwritten(len(training.history), error)) from error
        return True


class _Means:
    """Means over images, summed on the device: reading a number there would stop the GPU."""

    def __init__(self) -> None:
        self.images = 0
        self.sums: Tensor | None = None

    def add(self, images: int, *sums: Tensor) -> None:
        """Count in one batch by its sums over images."""
        batch = torch.stack([value.detach().double() for value in sums])
        self.sums = batch if self.sums is None else self.sums + batch
        self.images += images

    def read(self) -> list[float]:
        """The means, in the order of the sums."""
        assert self.sums is not None, "a loader always gives at least one batch"
        means: list[float] = (self.sums / self.images).tolist()
        return means


def _generator(batches: Batches) -> torch.Generator:
    """The one that decides order and augmentation."""
    if isinstance(batches, DeviceBatches):
        return batches.generator
    assert isinstance(batches.sampler, ShuffledDraws)
    return batches.sampler.generator


@contextmanager
def _faults_of_the_machine() -> Iterator[None]:
    """Tell those that can be made up for from all other errors of PyTorch."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(first_line(error)) from error
        if is_dead_worker(error):
            # PyTorch also raises from a signal, wherever this process then is: let it be here.
            with suppress(RuntimeError):
                time.sleep(1)
            raise WorkerDied(first_line(error)) from error
        raise


def _announce(epoch: Epoch, experiment: Experiment, epochs: int, seconds: float) -> None:
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


def _announce_estimate(experiment: Experiment, epochs_left: int, budget: Budget) -> None:
    emit(
        "estimate",
        experiment=experiment.name,
        epochs_left=epochs_left,
        epochs_that_fit=min(budget.epochs_left(), epochs_left),
        seconds_an_epoch=round(budget.epoch_seconds, 2),
        seconds_left=round(budget.epoch_seconds * epochs_left, 2),
    )
