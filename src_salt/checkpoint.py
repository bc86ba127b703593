"""Where an experiment stands after an epoch, on disk, so that a cut run can go on.

A checkpoint is written whole after each epoch and removed when its experiment is complete. It
belongs to the settings, pictures and version of the package that wrote it, and no others use it.
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

from src_salt.outputs import whole

State = dict[str, Any]


class CheckpointError(Exception):
    """A checkpoint that cannot be gone on from; the message says why."""


def write_checkpoint(path: Path, state: State, made_by: Mapping[str, Any]) -> None:
    """Write the state and what decided it. OSError where the disk does not take it."""
    with whole(path) as temporary:
        torch.save({"made_by": dict(made_by), "state": state}, temporary)


def read_checkpoint(path: Path, made_by: Mapping[str, Any]) -> State:
    """The state, on the CPU; CheckpointError if it is broken or was made by other settings."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        earlier, state = content["made_by"], content["state"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"the checkpoint cannot be read: {error!r}") from error
    differing = changes(earlier, made_by)
    if differing:
        raise CheckpointError(f"the checkpoint is of another run: {differing}")
    result: State = state
    return result


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`epochs was 1, is 2`, for every entry that differs."""
    names = sorted(set(before) | set(now))
    return "; ".join(
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    )


def random_state() -> State:
    """The states of every generator that training draws from, as plain values and tensors."""
    version, numbers, gauss = random.getstate()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": _numpy_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: State) -> None:
    """Set every generator as `random_state` found it."""
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


def on_cpu(value: Any) -> Any:
    """A copy of a state, in dictionaries and lists, that goes on holding what it holds now."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: on_cpu(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [on_cpu(entry) for entry in value]
    return value


def as_bytes(weights: State) -> bytes:
    """A state_dict on the CPU as a file's bytes, the same every time."""
    content = io.BytesIO()  # a file's name would be written into the archive
    torch.save(weights, content)
    return content.getvalue()
