"""The optimizer, compared with PyTorch's own and with exact singular values."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode

from src_salt.config import Experiment, Settings
from src_salt.data import LabelledImages
from src_salt.model import UNet
from src_salt.muon import Muon, orthogonalize
from src_salt.train import Trainer

from .conftest import python

RATE, DECAY = 0.01, 0.1


class _Layer(nn.Module):
    """The parameters of a convolution."""

    def __init__(self, seed: int = 0, shape: tuple[int, ...] = (10, 6, 3, 3)) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(shape, generator=draw) / 7)
        self.bias = nn.Parameter(torch.randn(len(self.weight), generator=draw))


def _gradients(seed: int, like: _Layer) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=draw) for n, p in like.named_parameters()}


def _give(layer: _Layer, gradients: dict[str, Tensor], scale: float = 1.0) -> None:
    for name, parameter in layer.named_parameters():
        parameter.grad = gradients[name] * scale


def _orthogonalized(matrices: Tensor) -> Tensor:
    result = torch.empty_like(matrices)
    orthogonalize([matrices], [result], [1.0])
    return result


@pytest.mark.parametrize("shape", [(16, 144), (1, 32), (24, 24)])
def test_singular_values_are_close_to_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    """For three matrices at once, each with another scale."""
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    matrices *= torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    turned = left.mT @ _orthogonalized(matrices) @ right.mT
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
    found = _orthogonalized(matrix[None])[0].double()
    assert (found - wanted).norm() < 1e-3 * wanted.norm()


def test_zero_gradient_changes_nothing() -> None:
    """There is no division by zero."""
    assert not _orthogonalized(torch.zeros(2, 4, 9)).any()


def test_stacks_with_equally_many_rows_are_independent() -> None:
    """They share the iteration; the result is the same as for each alone."""
    draw = torch.Generator().manual_seed(3)
    stacks = [torch.randn(n, 8, columns, generator=draw) for n, columns in ((1, 9), (3, 72))]
    results = [torch.empty_like(stack) for stack in stacks]
    orthogonalize(stacks, results, [1.0, 0.5])
    torch.testing.assert_close(results[0], _orthogonalized(stacks[0]))
    torch.testing.assert_close(results[1], 0.5 * _orthogonalized(stacks[1]))


@pytest.mark.parametrize("shape", [(10, 6, 3, 3), (32, 8, 1, 1), (96, 2, 3, 3)])
def test_convolutions_are_updated_like_pytorchs_muon(shape: tuple[int, int, int, int]) -> None:
    """PyTorch's Muon accepts only matrices, and multiplies in bfloat16: hence the tolerance."""
    layer = _Layer(shape=shape)
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


def test_matrices_with_many_rows_are_divided() -> None:
    """256 rows are updated like two matrices of 128 rows."""
    whole = _Layer(shape=(256, 32, 3, 3))
    halves = [_Layer(shape=(128, 32, 3, 3)) for _ in range(2)]
    gradients = _gradients(0, whole)
    for half, weight in zip(halves, whole.weight.detach().split(128), strict=True):
        half.weight.data.copy_(weight)
    for layers in ([whole], halves):
        optimizer = Muon([layer.weight for layer in layers], RATE, DECAY)
        parts = gradients["weight"].split(256 // len(layers))
        for layer, part in zip(layers, parts, strict=True):
            layer.weight.grad = part.clone()
        optimizer.step()
    divided = torch.cat([half.weight for half in halves])
    torch.testing.assert_close(whole.weight.detach(), divided.detach())


def test_most_weights_have_the_strides_of_their_place_in_the_buffer() -> None:
    """Otherwise PyTorch updates each of a list of tensors by itself, on a GPU too."""
    network = UNet("resnet34", normalized_decoder=True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = Muon(network.parameters(), RATE, DECAY)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert optimizer._buffers is not None
    fitting, others = optimizer._buffers.parts
    assert (len(fitting.weights), len(others.weights)) == (42, 3)
    for part, fit in ((fitting, True), (others, False)):
        for weight, place, direction in zip(part.weights, part.inputs, part.outputs, strict=True):
            assert (weight.stride() == place.stride() == direction.stride()) == fit


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


@pytest.mark.parametrize("steps_before_loading", [0, 1])
def test_saved_state_continues_bit_for_bit(steps_before_loading: int) -> None:
    """The state includes the momentum of convolutions."""
    layer = _Layer()
    optimizer = Muon(layer.parameters(), lr=RATE, weight_decay=DECAY)
    _give(layer, _gradients(0, layer))
    optimizer.step()
    other = _Layer(7)
    loaded = Muon(other.parameters(), lr=RATE, weight_decay=DECAY)
    for seed in range(steps_before_loading):
        _give(other, _gradients(5 + seed, other))
        loaded.step()
    other.load_state_dict(layer.state_dict())
    loaded.load_state_dict(deepcopy(optimizer.state_dict()))
    for each, its_optimizer in ((layer, optimizer), (other, loaded)):
        _give(each, _gradients(1, each))
        its_optimizer.step()
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)


def test_weights_without_gradient_do_not_change() -> None:
    """Also if they had one before; their momentum stays."""
    layers = nn.ModuleList([_Layer(1), _Layer(2)])
    optimizer = Muon(layers.parameters(), RATE, DECAY)
    for layer in layers:
        _give(layer, _gradients(0, layer))
    optimizer.step()
    before = layers[1].weight.detach().clone()
    momentum = optimizer.state[layers[1].weight]["momentum"].clone()
    _give(layers[0], _gradients(1, layers[0]))
    layers[1].zero_grad()
    optimizer.step()
    assert torch.equal(layers[1].weight, before)
    assert torch.equal(optimizer.state[layers[1].weight]["momentum"], momentum)


def _scaler() -> GradScaler:
    scaler = GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(torch.ones(()))
    return scaler


class _Dispatched(TorchDispatchMode):
    """Counts the operations that PyTorch starts."""

    count = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return operation(*args, **(kwargs or {}))


def test_step_of_the_recipe_starts_few_operations(
    easy_images: LabelledImages, settings: Callable[..., Settings]
) -> None:
    """With the whole ResNet-34: starting an operation costs time on every device."""
    experiment = Experiment("resnet34", "BCEDiceSymmetric")
    chosen = settings(recipe="best", batch_size=8)
    trainer = Trainer(experiment, chosen, easy_images, easy_images.subset([0, 1]))
    counts = []
    for _ in range(2):
        with _Dispatched() as dispatched:
            trainer._train_pass(trainer.batches)
        counts.append(dispatched.count)
    assert counts[1] < 1200


@pytest.mark.slow
def test_processes_share_the_work(tmp_path: Path) -> None:
    """Each orthogonalizes a part, and all have the same weights as one process alone has."""
    program = f"""
        import sys
        import torch
        from torch import distributed
        from src_salt.device import SINGLE_PROCESS, DistributedContext
        from src_salt import muon

        def train(context):
            torch.manual_seed(1)
            layers = torch.nn.ModuleList(
                [torch.nn.Conv2d(*sizes) for sizes in [(8, 16, 3), (16, 16, 3), (4, 32, 1)] * 2]
            )
            optimizer = muon.Muon(layers.parameters(), 0.01, 0.1, context=context)
            for _ in range(3):
                for parameter in layers.parameters():
                    parameter.grad = torch.randn_like(parameter)
                optimizer.step()
            return [p.detach() for p in layers.parameters()]

        rank = int(sys.argv[1])
        distributed.init_process_group(
            "gloo", init_method="file://{tmp_path}/meeting", rank=rank, world_size=2
        )
        numbers = []
        orthogonalize = muon.orthogonalize
        def counted(stacks, *others):
            numbers.extend(map(len, stacks))
            orthogonalize(stacks, *others)
        muon.orthogonalize = counted
        shared = train(DistributedContext(rank, 2))
        assert 0 < sum(numbers) < 3 * 6, numbers
        for one, other in zip(train(SINGLE_PROCESS), shared, strict=True):
            torch.testing.assert_close(one, other)
        torch.save(shared, "{tmp_path}/" + str(rank))
        distributed.destroy_process_group()
    """
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda rank: python(program, rank), ["0", "1"]))
    assert [end.returncode for end in ends] == [0, 0], ends
    assert all(map(torch.equal, *(torch.load(tmp_path / rank) for rank in ("0", "1"))))
