"""U-Net with a torchvision ResNet as its encoder.

Shapes in the comments are for an input of 128×128. Any size from 32 works, because each decoder
block resizes its input to the size of the skip connection.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from src_salt.config import Settings
from src_salt.weights import Weights, download_weights, read_weights

WIDTHS = {"resnet34": (64, 64, 128, 256, 512), "resnet50": (64, 256, 512, 1024, 2048)}
"""Channels after the encoder's stem and after each of its four stages."""

DECODER_WIDTHS = (256, 128, 64, 64)
"""Channels of the decoder's four blocks, beginning with the deepest."""


class DecoderBlock(nn.Module):
    """Upsample to the size of the skip connection, concatenate, and apply two convolutions."""

    def __init__(self, below: int, skip: int, width: int, normalized: bool) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *_conv_block(below + skip, width, normalized), *_conv_block(width, width, normalized)
        )

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """Combine (B, below, h, w) and (B, skip, H, W) to (B, width, H, W)."""
        below = _resize_to(below, skip.shape[-2:])
        joined: Tensor = self.convolutions(torch.cat([below, skip], dim=1))
        return joined


class UNet(nn.Module):
    """Computes logits (B, 1, H, W) of images (B, 3, H, W)."""

    def __init__(
        self,
        backbone: str,
        normalized_decoder: bool = False,
        encoder_weights: Weights | None = None,
    ) -> None:
        super().__init__()
        resnet = _build_resnet(backbone, encoder_weights)
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu)
        self.pool = resnet.maxpool
        self.stages = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])
        *skips, below = WIDTHS[backbone]
        self.blocks = nn.ModuleList()
        for skip, width in zip(reversed(skips), DECODER_WIDTHS, strict=True):
            self.blocks.append(DecoderBlock(below, skip, width, normalized_decoder))
            below = width
        self.head = nn.Conv2d(below, 1, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """Convert images (B, 3, 128, 128) to logits (B, 1, 128, 128)."""
        skips = [self.stem(images)]  # (B, 64, 64, 64)
        features = self.pool(skips[0])  # (B, 64, 32, 32)
        for stage in self.stages:  # to 32×32, 16×16, 8×8 and 4×4
            features = stage(features)
            skips.append(features)
        skips.pop()  # the decoder starts with the deepest features
        for block in self.blocks:  # to 8×8, 16×16, 32×32 and 64×64
            features = block(features, skips.pop())
        return _resize_to(self.head(features), images.shape[-2:])  # (B, 1, 128, 128)


def _conv_block(inputs: int, width: int, normalized: bool) -> tuple[nn.Module, ...]:
    """Return a 3×3 convolution and ReLU, optionally with batch normalization between them."""
    if not normalized:
        return nn.Conv2d(inputs, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)
    # Batch normalization has a bias, so the convolution needs none.
    convolution = nn.Conv2d(inputs, width, kernel_size=3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)


def _resize_to(features: Tensor, size: torch.Size) -> Tensor:
    if features.shape[-2:] == size:
        return features
    return functional.interpolate(features, size, mode="bilinear", align_corners=False)


def _build_resnet(backbone: str, weights: Weights | None) -> torchvision.models.ResNet:
    resnet: torchvision.models.ResNet = torchvision.models.get_model(backbone, weights=None)
    if weights is not None:
        # Not strict, since `weights` has no classifier. Its other names are checked.
        resnet.load_state_dict(weights, strict=False)
    return resnet


def load_encoder_weights(backbone: str, settings: Settings) -> Weights | None:
    """Return ImageNet weights for the encoder, or None if `settings.pretrained` is false.

    They come from `weights_dir` if it is given, otherwise from torchvision's cache or a download.

    Raises:
        WeightsError: they are not available. A run trains from scratch only if the settings say so.
    """
    if not settings.pretrained:
        return None
    if settings.weights_dir is not None:
        return read_weights(settings.weights_dir, backbone)
    return read_weights(download_weights(backbone), backbone)


def require_encoder_weights(backbones: Iterable[str], settings: Settings) -> None:
    """Load the weights of every backbone once, so that an error appears before training."""
    for backbone in sorted(set(backbones)):
        _build_resnet(backbone, load_encoder_weights(backbone, settings))
