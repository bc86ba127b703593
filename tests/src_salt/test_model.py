from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src_salt.config import Settings
from src_salt.model import UNet, load_encoder_weights, require_encoder_weights
from src_salt.weights import WeightsError

MakeSettings = Callable[..., Settings]


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("backbone", ["resnet34", "resnet50"])
@pytest.mark.slow
def test_logits_have_the_size_of_the_input(backbone: str, normalized: bool) -> None:
    model = UNet(backbone, normalized).eval()
    for size in ((32, 32), (101, 101), (33, 70)):
        with torch.inference_mode():
            assert model(torch.zeros(1, 3, *size)).shape == (1, 1, *size)


@pytest.mark.parametrize("normalized", [False, True])
def test_every_parameter_has_a_gradient(normalized: bool) -> None:
    model = UNet("resnet34", normalized)
    norms = [part for part in model.blocks.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert len(norms) == (8 if normalized else 0)
    model(torch.rand(2, 3, 64, 64)).square().sum().backward()
    without = [name for name, value in model.named_parameters() if value.grad is None]
    assert without == []


def test_every_skip_connection_reaches_the_output() -> None:
    model = UNet("resnet34").eval()
    images = torch.rand(1, 3, 32, 32)
    outputs = []
    for block in [None, *model.blocks]:
        hook = block.register_forward_pre_hook(silence_skip) if block is not None else None
        with torch.inference_mode():
            outputs.append(model(images))
        if hook is not None:
            hook.remove()
    assert all(not torch.allclose(outputs[0], other) for other in outputs[1:])


def silence_skip(_block: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple:
    below, skip = inputs
    return below, torch.zeros_like(skip)


def test_no_weights_without_pretraining(settings: MakeSettings) -> None:
    assert load_encoder_weights("resnet34", settings(pretrained=False)) is None


def test_failed_download_says_what_to_do(
    settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # an empty cache
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # and no server
    with pytest.raises(WeightsError) as error:
        require_encoder_weights(["resnet34"], settings(pretrained=True))
    for advice in ("resnet34", "internet", "weights_dir", "pretrained to false"):
        assert advice in str(error.value)
