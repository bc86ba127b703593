"""Pretrained weights of the encoder: finds or downloads the file, and reads any usual form.

    python -m src_salt.weights DIR

downloads torchvision's ImageNet weights of every backbone into DIR, for a dataset that a run
without internet uses. A download is compared with the hash in its name. A file that is already
there is kept and read: its tensors must fit the backbone and be finite. It is not compared with a
hash, because a file that somebody has saved again has another one.

Accepted are files of `torch.save` and safetensors files, with a state_dict or with one inside a
dictionary (`state_dict`, `model`), with or without a common prefix (`module.`) and with or without
the classifier `fc`. Nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from src_salt.config import BACKBONES, SaltError, first_line
from src_salt.outputs import parse_json, sha256

SUFFIXES = {".pth", ".pt", ".bin", ".tar", ".safetensors"}

OTHER_FILES = (
    (re.compile(rb"version https://git-lfs"), "is a pointer of Git LFS. Download the file itself"),
    (re.compile(rb"\s*<"), "is a web page, not weights. Download the file again"),
    (re.compile(rb"\Z"), "is empty. Download the file again"),
)
"""How files begin that often lie in place of weights, and what they are."""

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}

BLOCKS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
"""Networks by whether their blocks have three convolutions, and by their blocks per stage."""

Weights = dict[str, Tensor]
"""Tensors by torchvision's names, without the classifier."""


class WeightsError(SaltError):
    """The requested ImageNet weights are not available."""


def read_weights(place: Path, backbone: str) -> Weights:
    """Read the weights of a backbone from a file, or from the one file in a folder that fits.

    Raises:
        WeightsError: there is no such file, or it contains something else.
    """
    path = _find_file(place, backbone)
    content = _read_file(path)
    found = _find_state_dict(content)
    if found is None:
        names = ", ".join(map(str, list(content)[:3])) if isinstance(content, Mapping) else ""
        kind = f"a dictionary with {names}" if names else f"a {type(content).__name__}"
        raise WeightsError(
            f"{path} contains no weights of a ResNet in torchvision's names, but {kind}."
        )
    return select_encoder(found, backbone, str(path))


def download_weights(backbone: str, folder: Path | None = None, progress: bool = False) -> Path:
    """Return the file with torchvision's ImageNet weights, and download it if it does not exist.

    `folder` is torchvision's cache if it is not given. The file's name contains the beginning of
    its SHA-256, with which a download is compared.

    Raises:
        WeightsError: they cannot be downloaded, or the download is damaged.
    """
    url: str = torchvision.models.get_model_weights(backbone).IMAGENET1K_V1.url
    folder = Path(torch.hub.get_dir(), "checkpoints") if folder is None else folder
    path = folder / url.rpartition("/")[2]
    if path.is_file():
        return path
    digest = path.stem.rpartition("-")[2]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest, progress)
    except (OSError, RuntimeError, HTTPException) as error:
        raise WeightsError(
            f"ImageNet weights of {backbone} cannot be downloaded ({error}). "
            f"Turn on the internet, set weights_dir to a folder that contains them ({path.name}), "
            "or set pretrained to false to train from scratch."
        ) from error
    return path


def select_encoder(weights: Mapping[str, Tensor], backbone: str, source: str) -> Weights:
    """Return the encoder's part of a ResNet's weights.

    Raises:
        WeightsError: they do not fit the backbone; the message names the `source`.
    """
    with torch.device("meta"):  # shapes only
        expected = torchvision.models.get_model(backbone, weights=None).state_dict()
    needed = {name: value.shape for name, value in expected.items() if name[:3] != "fc."}
    # Files from before 2018 do not have this counter, and no layer here uses it.
    missing = [n for n in needed if n not in weights and not n.endswith("num_batches_tracked")]
    result = {name: weights[name] for name in needed if name in weights}
    wrong = [name for name, value in result.items() if value.shape != needed[name]]
    network = _name_network(weights)
    if (missing or wrong) and network not in (backbone, ""):
        raise WeightsError(f"{source} contains weights of {network}, not of {backbone}.")
    if missing:
        raise WeightsError(
            f"{source} does not contain all weights of {backbone}: "
            f"{len(missing)} are missing, such as {missing[0]}."
        )
    if wrong:
        name = wrong[0]
        raise WeightsError(
            f"{source} does not contain torchvision's weights of {backbone}: "
            f"{name} is {tuple(result[name].shape)}, not {tuple(needed[name])}."
        )
    broken = [name for name, value in result.items() if not value.isfinite().all()]
    if broken:
        raise WeightsError(f"{source}: {broken[0]} contains numbers that are not finite.")
    return result


def weights_fingerprint(weights: Weights) -> str:
    """Return the SHA-256 of names and values, whatever file they come from."""
    used = {
        name: value.contiguous()
        for name, value in sorted(weights.items())
        if not name.endswith("num_batches_tracked")
    }
    described = [f"{name} {value.dtype} {tuple(value.shape)}" for name, value in used.items()]
    # As bytes, since NumPy has no bfloat16.
    contents = (value.view(-1).view(torch.uint8).numpy().data for value in used.values())
    return sha256("\n".join(described).encode(), *contents)


def _name_network(weights: Mapping[str, Tensor]) -> str:
    """Return the name of the ResNet with these layers, or an empty text."""
    stages = [
        len({name.split(".")[1] for name in weights if name.startswith(f"layer{number}.")})
        for number in (1, 2, 3, 4)
    ]
    return BLOCKS.get(("layer1.0.conv3.weight" in weights, tuple(stages)), "")


# --- finding the file ---------------------------------------------------------------------------


def _find_file(place: Path, backbone: str) -> Path:
    """Return `place` if it is a file, otherwise the backbone's file in or below that folder.

    Kaggle mounts a model several levels down: `resnet34/pytorch/default/1/model.pth`.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        above = next((parent for parent in place.parents if parent.is_dir()), Path())
        raise WeightsError(f"weights_dir: there is no folder {place}. {_list_content(above)}")
    files = [path for path in sorted(place.rglob("*")) if _has_suffix(path)]
    files = [path for path in files if path.is_file() and path.name[0] != "."]
    named = [path for path in files if _plain(path.name).startswith(backbone)]
    if not named:
        parents = {path: _plain(str(path.relative_to(place).parent)) for path in files}
        named = [path for path in files if backbone in parents[path]]
    if not named and len(files) == 1 and not re.search("resnet[0-9]", _plain(files[0].name)):
        named = files
    if len(named) == 1:
        return named[0]
    content = f"Found: {', '.join(map(str, named[:5]))}." if named else _list_content(place)
    raise WeightsError(
        f"weights_dir: {place} contains {len(named)} files {backbone}*.pth. "
        f"Provide exactly one, with torchvision's weights. {content}"
    )


def _has_suffix(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _list_content(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{folder} contains {', '.join(names[:8]) or 'nothing'}{more}."


# --- reading the file ---------------------------------------------------------------------------


def _read_file(path: Path) -> object:
    """Return the content of a file without executing anything in it."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from error
    is_safetensors = path.suffix.lower() == ".safetensors"
    if is_safetensors and start[8:9] == b"{":
        return _read_safetensors(path)
    for pattern, description in OTHER_FILES:
        if pattern.match(start):
            raise WeightsError(f"{path} {description}.")
    if is_safetensors:
        raise WeightsError(f"{path} is not a safetensors file. It begins with {start[:12]!r}.")
    reason = f"is damaged or no file of torch.save. It begins with {start[:12]!r}"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # A broken file makes torch.load raise almost any exception. PyTorch's own messages advise to
    # execute the file, so they must not appear, not even as the cause.
    except pickle.UnpicklingError as error:
        if re.search("Unsupported (global|class|operand)|GLOBAL", str(error)):
            reason = (
                "contains Python objects, such as a whole model, and they are not executed here. "
                "Save `model.state_dict()` instead"
            )
    except Exception as error:
        if "TorchScript" in str(error):
            reason = "is a TorchScript program. Save `model.state_dict()` instead"
    raise WeightsError(f"{path} {reason}.")


def _read_safetensors(path: Path) -> Weights:
    """Read a safetensors file: the length of a JSON header, the header, and the tensors' bytes."""
    content = bytearray(path.read_bytes())
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        if start > len(content):
            raise ValueError("the file is cut off")
        header = parse_json(bytes(content[8:start]))
        result = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, shape = SAFETENSORS_DTYPES[entry["dtype"]], entry["shape"]
            first, last = (start + offset for offset in entry["data_offsets"])
            flat = torch.frombuffer(memoryview(content)[first:last], dtype=torch.uint8)
            result[name] = flat.clone().view(dtype).reshape(shape)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise WeightsError(
            f"{path} is damaged ({first_line(error)}). Download it again."
        ) from error
    return result


def _find_state_dict(content: object) -> Weights | None:
    """Return the tensors of a ResNet, without a common prefix, from a nested dictionary."""
    if not isinstance(content, Mapping):
        return None
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for prefix in _prefixes(tensors):
        return {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
    for value in content.values():
        found = _find_state_dict(value)
        if found is not None:
            return found
    return None


def _prefixes(tensors: Weights) -> Iterator[str]:
    """Yield what comes before the names of a ResNet's first layers."""
    for name in tensors:
        prefix = name.removesuffix("conv1.weight")
        if prefix != name and f"{prefix}layer1.0.conv1.weight" in tensors:
            yield prefix


# --- the command --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Download what a folder lacks, read all of it, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m src_salt.weights",
        description="Download torchvision's ImageNet weights of every backbone.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to put the files")
    folder: Path = parser.parse_args(arguments).folder
    try:
        for backbone in BACKBONES:
            path = _find_or_download(folder, backbone)
            read_weights(path, backbone)
            print(f"{backbone}: {path}", flush=True)
    except SaltError as error:
        print(f"python -m src_salt.weights: error: {error}", file=sys.stderr)
        return 2
    return 0


def _find_or_download(folder: Path, backbone: str) -> Path:
    files = [path.relative_to(folder) for path in folder.rglob("*") if _has_suffix(path)]
    if any(_plain(str(path)).startswith(backbone) for path in files):
        return _find_file(folder, backbone)  # whatever its exact name is
    try:
        path = download_weights(backbone, folder, progress=sys.stderr.isatty())
    except WeightsError as error:
        reason = str(error.__cause__).partition("\n")[0]
        url = torchvision.models.get_model_weights(backbone).IMAGENET1K_V1.url
        raise WeightsError(
            f"ImageNet weights of {backbone} cannot be downloaded ({reason}). Download {url} on "
            f"another machine, copy it to {folder}, and run this again."
        ) from error
    for left in folder.glob(f"{path.name}.*.partial"):  # of downloads that were killed
        left.unlink()
    return path


if __name__ == "__main__":
    sys.exit(main())
