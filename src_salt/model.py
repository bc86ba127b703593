"""U-Net over a torchvision ResNet.

Shapes in the comments are for an input of 128×128; any size of 32 and more works, because each
decoder block brings its input to the size of the skip connection it joins.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from src_salt.config import SaltError, Settings, first_line

WIDTHS = {"resnet34": (64, 64, 128, 256, 512), "resnet50": (64, 256, 512, 1024, 2048)}
"""Channels after the stem and after each of the four stages."""

DECODER_WIDTHS = (256, 128, 64, 64)
"""Channels of the decoder's four blocks, from the deepest."""

Weights = dict[str, Any]


class WeightsError(SaltError):
    """The ImageNet weights that were asked for cannot be had."""


class DecoderBlock(nn.Module):
    """Enlarge to the skip connection's size, join it, and convolve twice."""

    def __init__(self, below: int, skip: int, width: int, normalised: bool) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *_convolution(below + skip, width, normalised), *_convolution(width, width, normalised)
        )

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """(B, below, h, w) and (B, skip, H, W) to (B, width, H, W)."""
        below = _resized(below, skip.shape[-2:])
        joined: Tensor = self.convolutions(torch.cat([below, skip], dim=1))
        return joined


class UNet(nn.Module):
    """Logits (B, 1, H, W) for images (B, 3, H, W)."""

    def __init__(
        self,
        backbone: str,
        normalised_decoder: bool = False,
        encoder_weights: Weights | None = None,
    ) -> None:
        super().__init__()
        resnet = _resnet(backbone, encoder_weights)
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu)
        self.pool = resnet.maxpool
        self.stages = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])
        *skips, below = WIDTHS[backbone]
        self.blocks = nn.ModuleList()
        for skip, width in zip(reversed(skips), DECODER_WIDTHS, strict=True):
            self.blocks.append(DecoderBlock(below, skip, width, normalised_decoder))
            below = width
        self.head = nn.Conv2d(below, 1, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, 128, 128) to logits (B, 1, 128, 128)."""
        skips = [self.stem(images)]  # (B, 64, 64, 64)
        features = self.pool(skips[0])  # (B, 64, 32, 32)
        for stage in self.stages:  # to 32×32, 16×16, 8×8 and 4×4
            features = stage(features)
            skips.append(features)
        skips.pop()  # the deepest features are what the decoder starts from
        for block in self.blocks:  # to 8×8, 16×16, 32×32 and 64×64
            features = block(features, skips.pop())
        return _resized(self.head(features), images.shape[-2:])  # (B, 1, 128, 128)


def _convolution(inputs: int, width: int, normalised: bool) -> tuple[nn.Module, ...]:
    """3×3, and ReLU; the normalisation between has a bias of its own."""
    if not normalised:
        return nn.Conv2d(inputs, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)
    convolution = nn.Conv2d(inputs, width, kernel_size=3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)


def _resized(features: Tensor, size: torch.Size) -> Tensor:
    if features.shape[-2:] == size:
        return features
    return functional.interpolate(features, size, mode="bilinear", align_corners=False)


def _resnet(backbone: str, weights: Weights | None) -> torchvision.models.ResNet:
    resnet: torchvision.models.ResNet = torchvision.models.get_model(backbone, weights=None)
    if weights is not None:
        resnet.load_state_dict(weights)  # strict: weights of another network raise
    return resnet


def load_encoder_weights(backbone: str, settings: Settings) -> Weights | None:
    """ImageNet weights for the encoder, None where the settings ask for none.

    From `weights_dir` if it is given, else from torchvision (its cache, else a download).
    WeightsError where they cannot be had: a run never starts from scratch without being told to.
    """
    if not settings.pretrained:
        return None
    if settings.weights_dir is not None:
        return _read_weights(_weights_file(settings.weights_dir, backbone), backbone)
    try:
        enum = torchvision.models.get_model_weights(backbone)
        weights: Weights = enum.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"ImageNet weights of {backbone} cannot be downloaded ({error}). "
            "Turn the internet on, name a folder that holds them as weights_dir, "
            "or set pretrained to false to train from scratch."
        ) from error
    return weights


def require_encoder_weights(backbones: Iterable[str], settings: Settings) -> None:
    """Load the weights of every backbone once, so that a lack shows before any training."""
    for backbone in sorted(set(backbones)):
        _resnet(backbone, load_encoder_weights(backbone, settings))


def _weights_file(folder: Path, backbone: str) -> Path:
    found = sorted(path for path in folder.glob(f"{backbone}*") if path.suffix in {".pth", ".pt"})
    if len(found) == 1:
        return found[0]
    raise WeightsError(
        f"weights_dir: {folder} holds {len(found)} files {backbone}*.pth; "
        "one with torchvision's weights is needed."
    )


def _read_weights(path: Path, backbone: str) -> Weights:
    """The file's state_dict, proven to be one of that backbone."""
    try:
        weights: Weights = torch.load(path, map_location="cpu", weights_only=True)
        _resnet(backbone, weights)
    except Exception as error:  # whatever a broken file makes torch raise, the answer is the same
        raise WeightsError(
            f"{path} holds no torchvision weights of {backbone}: {first_line(error)}"
        ) from error
    return weights
