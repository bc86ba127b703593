"""The optimizer, compared with PyTorch's own and with exact singular values."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from src_salt.muon import Muon, orthogonalize

RATE, DECAY = 0.01, 0.1


class _Layer(nn.Module):
    """The parameters of a convolution."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(10, 6, 3, 3, generator=draw) / 7)
        self.bias = nn.Parameter(torch.randn(10, generator=draw))


def _gradients(seed: int, like: _Layer) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=draw) for n, p in like.named_parameters()}


def _give(layer: _Layer, gradients: dict[str, Tensor], scale: float = 1.0) -> None:
    for name, parameter in layer.named_parameters():
        parameter.grad = gradients[name] * scale


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (1, 32), (24, 24)])
def test_singular_values_are_close_to_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    """For three matrices at once, each with another scale."""
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    matrices *= torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    turned = left.mT @ orthogonalize(matrices) @ right.mT
    found = turned.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(turned, torch.diag_embed(found), atol=1e-3, rtol=0)
    large = values > 0.05 * values[:, :1]
    assert 0.6 < found[large].min() <= found[large].max() < 1.25


@pytest.mark.parametrize("rank", [256, 8])
def test_orthogonalize_equals_the_published_iteration(rank: int) -> None:
    """Jordan's X ← aX + b(XXᵀ)X + c(XXᵀ)²X, computed directly in float64."""
    draw = torch.Generator().manual_seed(2)
    matrix = torch.randn(256, rank, generator=draw) @ torch.randn(rank, 2304, generator=draw)
    wanted = matrix.double() / matrix.double().norm()
    for _ in range(5):
        square = wanted @ wanted.T
        wanted = 3.4445 * wanted - 4.7750 * square @ wanted + 2.0315 * square @ square @ wanted
    found = orthogonalize(matrix[None])[0].double()
    assert (found - wanted).norm() < 1e-3 * wanted.norm()


def test_zero_gradient_changes_nothing() -> None:
    """There is no division by zero."""
    assert not orthogonalize(torch.zeros(2, 4, 9)).any()


def test_convolutions_are_updated_like_pytorchs_muon() -> None:
    """PyTorch's Muon accepts only matrices, and multiplies in bfloat16: hence the tolerance."""
    layer = _Layer()
    matrix = nn.Parameter(layer.weight.detach().flatten(1).clone())
    ours = Muon(layer.parameters(), lr=RATE, weight_decay=DECAY)
    theirs = torch.optim.Muon([matrix], lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        before = layer.weight.detach().flatten(1).clone()
        gradients = _gradients(step, layer)
        _give(layer, gradients)
        matrix.grad = gradients["weight"].flatten(1)
        ours.step()
        theirs.step()  # type: ignore[no-untyped-call]
        moved = (layer.weight.detach().flatten(1) - before).norm()
        apart = (layer.weight.detach().flatten(1) - matrix.detach()).norm()
        assert apart < 0.03 * (step + 1) * moved


def test_other_parameters_are_updated_like_adamw() -> None:
    """Biases and normalization, exactly."""
    layer, other = _Layer(), _Layer()
    ours = Muon(layer.parameters(), lr=RATE, weight_decay=DECAY)
    theirs = torch.optim.AdamW(
        [other.bias], lr=RATE, betas=(0.9, 0.99), weight_decay=DECAY, fused=True
    )
    for step in range(3):
        gradients = _gradients(step, layer)
        _give(layer, gradients)
        _give(other, gradients)
        ours.step()
        theirs.step()
    assert torch.equal(layer.bias, other.bias)


def test_layers_of_equal_shape_are_independent() -> None:
    """They are orthogonalized in one product; the result is the same as for one layer alone."""
    layers = _Layer(1), _Layer(2)
    alone = _Layer(2)
    together = Muon(
        [p for layer in layers for p in layer.parameters()], lr=RATE, weight_decay=DECAY
    )
    single = Muon(alone.parameters(), lr=RATE, weight_decay=DECAY)
    for number, layer in enumerate(layers):
        _give(layer, _gradients(number, layer))
    _give(alone, _gradients(1, alone))
    together.step()
    single.step()
    torch.testing.assert_close(layers[1].weight, alone.weight)


def test_memory_format_makes_no_difference() -> None:
    """The fast path uses channels_last."""
    layer = _Layer()
    other = _Layer()
    laid_out = other.weight.detach().contiguous(memory_format=torch.channels_last)
    other.weight = nn.Parameter(laid_out)
    for each in (layer, other):
        optimizer = Muon(each.parameters(), lr=RATE, weight_decay=DECAY)
        _give(each, _gradients(0, each))
        optimizer.step()
    torch.testing.assert_close(layer.weight, other.weight)


@pytest.mark.parametrize("unscaled", [False, True])
def test_scaled_gradients_give_the_same_update(unscaled: bool) -> None:
    """With float16 on a T4, the scaler lets a fused optimizer divide by the scale.

    If gradients are clipped, the scaler has divided them before.
    """
    layer, other = _Layer(), _Layer()
    scaled = Muon(layer.parameters(), lr=RATE, weight_decay=DECAY)
    plain = Muon(other.parameters(), lr=RATE, weight_decay=DECAY)
    scaler = _scaler()
    for step in range(3):
        gradients = _gradients(step, layer)
        _give(layer, gradients, scaler.get_scale())
        _give(other, gradients)
        if unscaled:
            scaler.unscale_(scaled)
        scaler.step(scaled)
        scaler.update()
        plain.step()
    torch.testing.assert_close(layer.weight, other.weight)
    torch.testing.assert_close(layer.bias, other.bias)


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("overflow", [float("inf"), float("nan")])
def test_overflow_skips_the_step(overflow: float, unscaled: bool) -> None:
    """Weights and momentum do not change, also if gradients are clipped."""
    layer = _Layer()
    optimizer = Muon(layer.parameters(), lr=RATE, weight_decay=DECAY)
    scaler = _scaler()
    _give(layer, _gradients(0, layer), scaler.get_scale())
    scaler.step(optimizer)
    scaler.update()
    before = [p.detach().clone() for p in layer.parameters()]
    momentum = optimizer.state[layer.weight]["momentum"].clone()
    broken = _gradients(1, layer)
    broken["weight"][0, 0, 0, 0] = overflow
    _give(layer, broken, scaler.get_scale())
    if unscaled:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert all(map(torch.equal, before, layer.parameters()))
    assert torch.equal(momentum, optimizer.state[layer.weight]["momentum"])
    assert scaler.get_scale() == 2.0**9


def test_saved_state_continues_bit_for_bit() -> None:
    """The state includes the momentum of convolutions."""
    layer = _Layer()
    optimizer = Muon(layer.parameters(), lr=RATE, weight_decay=DECAY)
    _give(layer, _gradients(0, layer))
    optimizer.step()
    other = _Layer(7)
    other.load_state_dict(layer.state_dict())
    resize_to_original = Muon(other.parameters(), lr=RATE, weight_decay=DECAY)
    resize_to_original.load_state_dict(deepcopy(optimizer.state_dict()))
    for each, its_optimizer in ((layer, optimizer), (other, resize_to_original)):
        _give(each, _gradients(1, each))
        its_optimizer.step()
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)


def _scaler() -> GradScaler:
    scaler = GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(torch.ones(()))
    return scaler
