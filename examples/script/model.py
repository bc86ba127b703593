"""A small network."""

import torch
from torch import nn


def build(width: int) -> nn.Module:
    """Two layers: two inputs, one logit."""
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 1))


def rings(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (count, 2), and whether each lies in the inner ring (count, 1)."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(count, generator=generator) * 2 * torch.pi
    inner = torch.rand(count, generator=generator) < 0.5
    radius = torch.where(inner, 0.5, 1.0) + 0.1 * torch.randn(count, generator=generator)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return points, inner.float()[:, None]
