"""Files of pretrained weights: which are accepted, and what the others are refused with."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from src_salt.config import Settings
from src_salt.model import UNet, load_encoder_weights, require_encoder_weights
from src_salt.weights import WeightsError, main, read_weights, weights_fingerprint

MakeSettings = Callable[..., Settings]
SAFETENSORS_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(5)
    found: State = torchvision.models.resnet34().state_dict()
    return found


@pytest.fixture(scope="module")
def fingerprint(state: State) -> str:
    return weights_fingerprint({name: state[name] for name in state if name[:3] != "fc."})


def save_safetensors(state: State, path: Path) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    content = bytearray()
    for name, value in state.items():
        raw = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        offsets = [len(content), len(content) + len(raw)]
        kind = SAFETENSORS_NAMES[value.dtype]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": offsets}
        content += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


# --- which files are accepted -------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state,
        lambda state: OrderedDict((f"module.{name}", value) for name, value in state.items()),
        lambda state: {f"encoder.model.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": state, "epoch": 3, "arch": "resnet34"},
        lambda state: {"epoch": 3, "model": {f"module.{n}": v for n, v in state.items()}},
        lambda state: {n: v for n, v in state.items() if n[:3] != "fc."},
        lambda state: {n: v for n, v in state.items() if "num_batches_tracked" not in n},
        lambda state: state | {"fc.weight": torch.zeros(10, 512), "extra": torch.zeros(1)},
    ],
)
def test_usual_forms_of_a_state_dict_are_accepted(
    change: Callable[[State], Any], state: State, fingerprint: str, tmp_path: Path
) -> None:
    torch.save(change(state), tmp_path / "resnet34.pth")
    assert weights_fingerprint(read_weights(tmp_path, "resnet34")) == fingerprint


def test_file_of_an_old_pytorch_is_accepted(state: State, fingerprint: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "resnet34.pth", _use_new_zipfile_serialization=False)
    assert weights_fingerprint(read_weights(tmp_path, "resnet34")) == fingerprint


@pytest.mark.parametrize(
    ("dtype", "suffix"), [(torch.bfloat16, ".safetensors"), (torch.float16, ".pth")]
)
def test_half_precision_weights_become_parameters_in_float32(
    dtype: torch.dtype, suffix: str, state: State, tmp_path: Path
) -> None:
    half = {n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}
    path = tmp_path / f"resnet34{suffix}"
    if suffix == ".safetensors":
        save_safetensors(half, path)
    else:
        torch.save(half, path)
    model = UNet("resnet34", encoder_weights=read_weights(path, "resnet34"))
    weight = model.stages[3][2].conv2.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, half["layer4.2.conv2.weight"].float())


@pytest.mark.parametrize(
    "name",
    [
        "resnet34-b627a593.pth",
        "ResNet-34.pt",
        "resnet34.pth.tar",
        "only-file.bin",
        "resnet34.safetensors",
        "pytorch/default/1/resnet34.pth",
        "resnet34/pytorch/default/1/model.pt",
        "resnet_34/transformers/v1/2/pytorch_model.bin",
    ],
)
@pytest.mark.parametrize("given", ["folder", "file"])
@pytest.mark.slow
def test_usual_names_and_places_are_accepted(
    name: str, given: str, state: State, fingerprint: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_safetensors(state, path)
    else:
        torch.save(state, path)
    (tmp_path / "resnet50").mkdir()
    (tmp_path / "resnet50" / "model.txt").touch()
    found = read_weights(tmp_path if given == "folder" else path, "resnet34")
    assert weights_fingerprint(found) == fingerprint


def test_weights_are_loaded_into_the_encoder(
    state: State, settings: MakeSettings, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "resnet34.pth")
    chosen = settings(pretrained=True, weights_dir=str(tmp_path))
    model = UNet("resnet34", encoder_weights=load_encoder_weights("resnet34", chosen))
    assert torch.equal(model.stem[0].weight, state["conv1.weight"])
    assert torch.equal(model.stages[3][2].conv2.weight, state["layer4.2.conv2.weight"])
    with pytest.raises(WeightsError, match=r"contains 0 files resnet50\*\.pth"):
        require_encoder_weights(["resnet34", "resnet50"], chosen)


def test_fingerprint_depends_on_every_value(state: State, fingerprint: str) -> None:
    used = {name: value for name, value in state.items() if name[:3] != "fc."}
    assert weights_fingerprint(dict(reversed(used.items()))) == fingerprint
    last = used["layer4.2.bn2.bias"].clone()
    last[-1] += 1e-6
    assert weights_fingerprint(used | {"layer4.2.bn2.bias": last}) != fingerprint
    assert weights_fingerprint({n: v.bfloat16() for n, v in used.items()}) != fingerprint


# --- downloads ----------------------------------------------------------------------------------


@dataclass
class Server:
    """A server on this machine in place of PyTorch's, with the same file names."""

    folder: Path
    names: list[str]
    """What was downloaded."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    found = Server(tmp_path / "served", [])
    found.folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            found.names.append(self.path.rpartition("/")[2])
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    serve = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(found.folder)))
    threading.Thread(target=serve.serve_forever, daemon=True).start()
    for backbone in ("resnet34", "resnet50"):
        torch.manual_seed(5)
        content = io.BytesIO()
        torch.save(getattr(torchvision.models, backbone)().state_dict(), content)
        name = f"{backbone}-{hashlib.sha256(content.getvalue()).hexdigest()[:8]}.pth"
        (found.folder / name).write_bytes(content.getvalue())
        entry = torchvision.models.get_model_weights(backbone).IMAGENET1K_V1
        url = f"http://127.0.0.1:{serve.server_port}/{name}"
        monkeypatch.setattr(entry, "_value_", replace(entry.value, url=url))
    yield found
    serve.shutdown()
    serve.server_close()


@pytest.mark.slow
def test_weights_are_downloaded_once_and_compared_with_the_hash_in_their_name(
    server: Server, state: State, settings: MakeSettings, tmp_path: Path
) -> None:
    chosen = settings(pretrained=True)
    for _ in range(2):  # the second time from torchvision's cache
        found = load_encoder_weights("resnet34", chosen)
        assert found is not None
        assert torch.equal(found["conv1.weight"], state["conv1.weight"])
    assert len(server.names) == 1
    (cached,) = (tmp_path / "cache").rglob("resnet34-*.pth")
    cached.write_bytes(cached.read_bytes()[:-5000])  # such as by a full disk
    with pytest.raises(WeightsError, match=r"resnet34-\w+\.pth is damaged"):
        load_encoder_weights("resnet34", chosen)
    cached.unlink()
    (served,) = server.folder.glob("resnet34-*")
    served.write_bytes(served.read_bytes()[:-5000])
    with pytest.raises(
        WeightsError, match=r"invalid hash value.*Turn on the internet, set weights"
    ):
        load_encoder_weights("resnet34", chosen)
    assert not cached.exists()


@pytest.mark.slow
def test_command_downloads_what_a_folder_lacks(
    server: Server, state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save(state, folder / "resnet34.pth")
    (served,) = server.folder.glob("resnet50-*")
    (folder / f"{served.name}.1f0e.partial").write_bytes(b"a download that was killed")
    assert main([str(folder)]) == 0
    assert [name[:9] for name in server.names] == ["resnet50-"]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"resnet34: {folder / 'resnet34.pth'}",
        f"resnet50: {folder / server.names[0]}",
    ]
    assert {path.name for path in folder.iterdir()} == {"resnet34.pth", served.name}
    assert main([str(folder)]) == 0
    assert len(server.names) == 1
    for file in server.folder.iterdir():
        file.unlink()
    assert main([str(tmp_path / "empty")]) == 2
    error = capsys.readouterr().err
    assert "weights of resnet34 cannot be downloaded (HTTP Error 404" in error
    assert f"on another machine, copy it to {tmp_path / 'empty'}, and run this again." in error
    (folder / "resnet34.pth").write_bytes(b"junk" * 99)
    assert main([str(folder)]) == 2
    assert "resnet34.pth is damaged or no file of torch.save" in capsys.readouterr().err


# --- which are refused --------------------------------------------------------------------------


class Anything:
    """An object that a file would have to execute code for."""


def without(state: State, name: str) -> State:
    return {key: value for key, value in state.items() if key != name}


def cut(path: Path, state: State) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-5000])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path, _: path.write_bytes(b"junk" * 99), "is damaged or no file of torch.save"),
        (lambda path, _: path.write_bytes(b"\x80\x02junk"), "is damaged or no file of torch.save"),
        (lambda path, _: path.write_bytes(b""), "is empty"),
        (lambda path, _: path.write_text("\n<!DOCTYPE html><html>"), "is a web page"),
        (
            lambda path, _: path.write_text("version https://git-lfs.github.com/spec/v1\noid"),
            "is a pointer of Git LFS",
        ),
        (cut, "is damaged or no file of torch.save"),
        (lambda path, _: torch.save(torch.nn.Conv2d(1, 1, 1), path), "Python objects, such as a"),
        (lambda path, _: torch.save({"a": Anything()}, path), "Python objects, such as a"),
        (
            lambda path, _: torch.jit.save(torch.jit.script(torch.nn.ReLU()), path),
            "is a TorchScript program",
        ),
        (lambda path, _: torch.save([1, 2], path), "contains no weights .* but a list"),
        (lambda path, _: torch.save({}, path), "contains no weights .* but a dict"),
        (
            lambda path, _: torch.save(torchvision.models.squeezenet1_1().state_dict(), path),
            r"contains no weights .* with features\.0\.weight",
        ),
        (
            lambda path, _: torch.save(torchvision.models.resnet18().state_dict(), path),
            "contains weights of resnet18, not of resnet34",
        ),
        (
            lambda path, _: torch.save(torchvision.models.resnet50().state_dict(), path),
            "contains weights of resnet50, not of resnet34",
        ),
        (
            lambda path, state: torch.save(without(state, "layer4.2.conv2.weight"), path),
            r"does not contain all weights of resnet34: 1 are missing, such as layer4\.2\.conv2",
        ),
        (
            lambda path, state: torch.save(
                state | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, path
            ),
            r"conv1\.weight is \(64, 1, 7, 7\), not \(64, 3, 7, 7\)",
        ),
        (
            lambda path, state: torch.save(
                state | {"bn1.bias": torch.full((64,), torch.nan)}, path
            ),
            "bn1.bias contains numbers that are not finite",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.")
def test_other_files_are_refused_with_words_that_help(
    write: Callable[[Path, State], object], message: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "resnet34.pth"
    write(path, state)
    with pytest.raises(WeightsError, match=message) as error:
        read_weights(tmp_path, "resnet34")
    assert str(error.value).startswith(str(path))
    shown = [error.value, error.value.__cause__]
    if not error.value.__suppress_context__:
        shown.append(error.value.__context__)
    assert "weights_only" not in " ".join(map(str, shown))  # PyTorch's advice is to disable it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 no safetensors", "is not a safetensors file"),
        (b"<html>", "is a web page"),
        ((50).to_bytes(8, "little") + b"{}", "is damaged"),
        ((2).to_bytes(8, "little") + b"{}", "contains no weights"),
        ((9).to_bytes(8, "little") + b'{"a": {}}', "is damaged"),
    ],
)
def test_broken_safetensors_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "resnet34.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path, "resnet34")


def test_absent_or_ambiguous_folder_shows_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with pytest.raises(WeightsError, match=r"there is no folder \S+/not/here. \S+ contains here\."):
        read_weights(tmp_path / "not" / "here", "resnet34")
    with pytest.raises(WeightsError, match=r"contains 0 files .* contains nothing"):
        read_weights(tmp_path / "here", "resnet34")
    for name in ("1/resnet34.pth", "2/resnet34.pt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=r"contains 2 files .*1/resnet34\.pth, .*2/resnet34\.pt"):
        read_weights(tmp_path, "resnet34")


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "resnet34.pth").symlink_to("/proc/self/mem")  # reading its first byte fails
    with pytest.raises(WeightsError, match=r"resnet34\.pth cannot be read"):
        read_weights(tmp_path, "resnet34")
