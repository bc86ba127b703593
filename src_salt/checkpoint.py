"""Checkpoints: the complete state of an experiment, so that a run can resume.

A checkpoint is written atomically after an epoch and deleted when its experiment is complete. It
stores the fingerprint of its run: the settings, the content of the data and of the pretrained
weights, and the version of this package. Only a run with the same fingerprint resumes from it.
"""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src_salt.config import OLD_RECIPES
from src_salt.outputs import atomic_write

State = dict[str, Any]

OLD_FINGERPRINT_FIELDS = {
    "recipe.normalised_decoder": "recipe.normalized_decoder",
    "recipe.flip_views": "recipe.flip_tta",
    "recipe.chosen_cut": "recipe.tune_threshold",
}
"""Fields of a fingerprint in earlier versions, and today's names."""

NEW_FIELDS = ("experiment", "encoder_weights", "code")
"""Fields that fingerprints of earlier versions do not have."""


class CheckpointError(Exception):
    """A checkpoint cannot be resumed from; the message says why."""


def write_checkpoint(path: Path, state: State, fingerprint: Mapping[str, Any]) -> None:
    """Write a state and its fingerprint atomically.

    Raises:
        OSError, RuntimeError: the file cannot be written. PyTorch raises either.
    """
    with atomic_write(path) as temporary:
        torch.save({"fingerprint": dict(fingerprint), "state": state}, temporary)


def read_checkpoint(path: Path, fingerprint: Mapping[str, Any]) -> State:
    """Read a state, with its tensors on the CPU.

    Raises:
        CheckpointError: the file is broken, or another fingerprint wrote it.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        # Earlier versions called the fingerprint `made_by`.
        stored = content["fingerprint"] if "fingerprint" in content else content["made_by"]
        earlier, state = current_fingerprint(stored), content["state"]
    except (
        *(OSError, RuntimeError, EOFError, KeyError, TypeError, AttributeError),
        pickle.UnpicklingError,
    ) as error:
        raise CheckpointError(f"the checkpoint cannot be read: {error!r}") from error
    changes = describe_changes(earlier, fingerprint)
    if changes:
        raise CheckpointError(f"the checkpoint is of another run: {changes}")
    result: State = state
    return result


def current_fingerprint(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the names of earlier versions in a stored fingerprint with today's."""
    result = {OLD_FINGERPRINT_FIELDS.get(name, name): value for name, value in stored.items()}
    recipe = result.get("recipe.name")
    if recipe in OLD_RECIPES:
        result["recipe.name"] = OLD_RECIPES[recipe]
    return result


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return `epochs was 1, is 2` for every field that differs, or an empty text.

    Fields that `before` does not know, since an earlier version wrote it, do not count. The path
    of the weights counts only if their content is not known. Code never counts: most of its changes
    do not affect a result, and training takes hours (see `changed_modules`).
    """
    left_out = {"code", *(name for name in NEW_FIELDS if name not in before)}
    if "encoder_weights" not in left_out:
        left_out.add("weights_dir")
    names = sorted((set(before) | set(now)) - left_out)
    return "; ".join(
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    )


def changed_modules(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the modules whose code differs; earlier versions did not record it."""
    code, earlier = now.get("code", {}), before.get("code")
    return [] if earlier is None else [name for name in code if earlier.get(name) != code[name]]


def random_state() -> State:
    """Return the state of every global random generator as plain values and tensors."""
    version, numbers, gauss = random.getstate()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": _numpy_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: State) -> None:
    """Set every global random generator to a state that `random_state` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _numpy_state() -> list[Any]:
    name, keys, position, has_gauss, cached = np.random.get_state()
    return [str(name), np.asarray(keys).tolist(), position, has_gauss, cached]


def copy_to_cpu(value: Any) -> Any:
    """Copy nested dictionaries and lists; tensors are copied to the CPU.

    Training may change the original while the copy is written. Tensors of a GPU go to pinned
    memory, all at once, because a GPU copies to other memory in small steps that it waits for.
    """
    copied = _copy(value)
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # the copies above have only been started
    return copied


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        pinned = value.is_cuda
        copied = torch.empty_like(value, device="cpu", pin_memory=pinned, requires_grad=False)
        return copied.copy_(value.detach(), non_blocking=pinned)
    if isinstance(value, Mapping):
        return {name: _copy(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_copy(entry) for entry in value]
    return value


def to_bytes(weights: State) -> bytes:
    """Serialize a state_dict on the CPU; equal weights give equal bytes."""
    content = io.BytesIO()  # with a file, torch.save would store the file's name in the archive
    torch.save(weights, content)
    return content.getvalue()
