"""U-Net over a torchvision ResNet.

Shapes in the comments are for an input of 128×128; any size of 32 and more works, because each
decoder block brings its input to the size of the skip connection it joins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

ATTENDED_WIDTHS = (256, 128, 64, 32)
HYPERCOLUMN_WIDTH = 32
"""Channels that each block of the attended decoder adds to the hypercolumn."""

SQUEEZE = 8
"""Channels of a block to channels of its squeezed description."""

Weights = dict[str, Any]


class WeightsError(SaltError):
    """The ImageNet weights that were asked for cannot be had."""


class DecoderBlock(nn.Module):
    """Upsample to the skip connection's size, join it, and convolve twice."""

    def __init__(self, below: int, skip: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(below + skip, width, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """(B, below, h, w) and (B, skip, H, W) to (B, width, H, W)."""
        below = _resized(below, skip.shape[-2:])
        joined: Tensor = self.convolutions(torch.cat([below, skip], dim=1))
        return joined


class SqueezeExcitation(nn.Module):
    """Channels weighed by what the whole picture holds, places by what they hold: scSE.

    Roy, Navab and Wachinger 2018, "Concurrent Spatial and Channel Squeeze & Excitation in Fully
    Convolutional Networks", with the sum of the two, as the competition's leaders used it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, width // SQUEEZE, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width // SQUEEZE, width, kernel_size=1),
            nn.Sigmoid(),
        )
        self.places = nn.Sequential(nn.Conv2d(width, 1, kernel_size=1), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """(B, width, H, W) to the same shape."""
        weighed: Tensor = features * (self.channels(features) + self.places(features))
        return weighed


class AttendedBlock(nn.Module):
    """A decoder block with normalised convolutions and scSE at its end."""

    def __init__(self, below: int, skip: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *_normalised(below + skip, width), *_normalised(width, width), SqueezeExcitation(width)
        )

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """(B, below, h, w) and (B, skip, H, W) to (B, width, H, W)."""
        below = _resized(below, skip.shape[-2:])
        joined: Tensor = self.convolutions(torch.cat([below, skip], dim=1))
        return joined


class PlainHead(nn.Conv2d):
    """Logits from the last block alone, at half the picture's size."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1, kernel_size=1)

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """The blocks' features, the last (B, 64, 64, 64), to logits (B, 1, 64, 64)."""
        logits: Tensor = super().forward(blocks[-1])
        return logits


class HypercolumnHead(nn.Module):
    """Logits from what every decoder block has to say of a place (Hariharan et al. 2015).

    The blocks are narrowed before they are enlarged, since a convolution over all 480 channels at
    full width would cost as much as the rest of the decoder.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.narrowed = nn.ModuleList(
            nn.Conv2d(width, HYPERCOLUMN_WIDTH, kernel_size=1) for width in widths
        )
        self.joined = nn.Sequential(*_normalised(HYPERCOLUMN_WIDTH * len(widths), 64))
        # Four logits for each place, laid out two by two: the last doubling is learned.
        self.logits = nn.Sequential(nn.Conv2d(64, 4, kernel_size=1), nn.PixelShuffle(2))

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:
        """The blocks' features, the last (B, 32, 64, 64), to logits (B, 1, 128, 128)."""
        size = blocks[-1].shape[-2:]
        columns = [
            _resized(narrow(features), size)
            for narrow, features in zip(self.narrowed, blocks, strict=True)
        ]
        logits: Tensor = self.logits(self.joined(torch.cat(columns, dim=1)))
        return logits


class UNet(nn.Module):
    """Logits (B, 1, H, W) for images (B, 3, H, W).

    `decoder` is a recipe's: `plain` is the seed's, `attended` has normalisation, scSE and a head
    over hypercolumns.
    """

    def __init__(
        self, backbone: str, decoder: str = "plain", encoder_weights: Weights | None = None
    ) -> None:
        super().__init__()
        resnet = _resnet(backbone, encoder_weights)
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu)
        self.pool = resnet.maxpool
        self.stages = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])
        attended = decoder == "attended"
        widths = ATTENDED_WIDTHS if attended else DECODER_WIDTHS
        *skips, below = WIDTHS[backbone]
        self.blocks = nn.ModuleList()
        for skip, width in zip(reversed(skips), widths, strict=True):
            block = AttendedBlock if attended else DecoderBlock
            self.blocks.append(block(below, skip, width))
            below = width
        self.head = HypercolumnHead(widths) if attended else PlainHead(below)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, 128, 128) to logits (B, 1, 128, 128)."""
        skips = [self.stem(images)]  # (B, 64, 64, 64)
        features = self.pool(skips[0])  # (B, 64, 32, 32)
        for stage in self.stages:  # to 32×32, 16×16, 8×8 and 4×4
            features = stage(features)
            skips.append(features)
        skips.pop()  # the deepest features are what the decoder starts from
        decoded = []
        for block in self.blocks:  # to 8×8, 16×16, 32×32 and 64×64
            features = block(features, skips.pop())
            decoded.append(features)
        return _resized(self.head(decoded), images.shape[-2:])  # (B, 1, 128, 128)


def _normalised(inputs: int, width: int) -> tuple[nn.Module, ...]:
    """A 3×3 convolution, batch normalisation and ReLU."""
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
