"""PSA: the recursion written out path by path, where it is exact, and deep ZGR beside it.

Convolutions are held against their own matrices, made here entry by entry.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from bridge import in_order, make_net, make_noise, z_limit
from rows import row_gradients, row_net, seeded, z_scores
from torch import nn

import sbnlib
from sbnlib import exact_gradient, exact_moments, network_estimator, psa
from sbnlib.estimators.psa import NUMBERS

Array = np.ndarray
noises = pytest.mark.parametrize("noise_name", ref.NOISES)
V = np.array([0.4, -0.9])


def sum_loss(n: int, seed: int = 0) -> ref.RefLoss:
    """A sum over units of functions of one unit: on states, a linear loss."""
    c, d, _ = (np.random.default_rng(seed + k).normal(size=n) for k in range(3))
    return ref.RefLoss(
        "sum over units",
        lambda x, b: (np.exp(c * x) + d * x**3).sum(-1),
        lambda x, b: c * np.exp(c * x) + 3 * d * x**2,
        lambda x: (torch.exp(torch.tensor(c) * x) + torch.tensor(d) * x**3).sum(-1),
    )


def product_loss(n: int) -> ref.RefLoss:
    """x_1 x_2 ... x_n."""
    return ref.RefLoss(
        "product",
        lambda x, b: x.prod(-1),
        lambda x, b: np.stack([np.delete(x, i, -1).prod(-1) for i in range(x.shape[-1])], -1),
        lambda x: x.prod(-1),
    )


# ---------------------------------------------------- PSA by probabilities, one flip at a time


def psa_deltas(
    net: ref.RefNet, v: Array, loss: ref.RefLoss, linear: bool = False, symmetric: bool = False
) -> list[Array]:
    """The estimate in every pre-activation on every path, one array (N, n_k) a layer.

    D_i is what flipping unit i costs. In the last layer the loss says so; below, flipping i moves
    the pre-activations above by -2 w_ji x_i and with them the probability of each state x_j as
    sampled; the drop of that probability counts with D_j. ``linear`` takes every difference to
    first order: D_i = 2 x_i dL/dx_i above, drop = f(a_j) x_j 2 w_ji x_i below. ``symmetric``
    divides D_i below the last layer by 2 P(x_i).
    """
    xs = ref.paths(net.widths)
    a = ref.pre_activations(net, v, xs)
    top = xs[-1]
    cost = np.zeros_like(top)
    for i in range(top.shape[1]):
        flipped = top.copy()
        flipped[:, i] *= -1
        cost[:, i] = loss.value(top, 0) - loss.value(flipped, 0)
    if linear:
        cost = 2 * top * loss.gradient(top, 0)
    deltas = []
    for k in reversed(range(len(xs))):
        deltas.insert(0, net.noise.pdf(a[k]) * xs[k] * cost)
        if k == 0:
            break
        below = xs[k - 1]
        lower = np.zeros_like(below)
        for i, j in itertools.product(range(below.shape[1]), range(xs[k].shape[1])):
            move = 2 * net.weights[k][j, i] * below[:, i]
            drop = net.noise.prob(xs[k][:, j], a[k][:, j])
            drop = drop - net.noise.prob(xs[k][:, j], a[k][:, j] - move)
            if linear:
                drop = net.noise.pdf(a[k][:, j]) * xs[k][:, j] * move
            lower[:, i] += drop * cost[:, j]
        p = net.noise.prob(below, a[k - 1])
        cost = lower / np.where(p > 0, 2 * p, np.inf) if symmetric else lower
    return deltas


def psa_mean(
    net: ref.RefNet, v: Array, loss: ref.RefLoss, symmetric: bool = False
) -> dict[tuple[int, str], Array]:
    """The mean of PSA by enumeration of the paths, keyed as the exact gradient."""
    xs = ref.paths(net.widths)
    prob = ref.path_probabilities(net, v, xs)
    deltas = psa_deltas(net, v, loss, symmetric=symmetric)
    below = [np.broadcast_to(v, (len(prob), len(v))), *xs[:-1]]
    out = {}
    for k, (d, x) in enumerate(zip(deltas, below, strict=True)):
        out[k, "weight"] = np.einsum("p,pi,pj->ij", prob, d, x)
        out[k, "bias"] = prob @ d
    return out


def index_of(states: list[Array]) -> Array:
    """The row of ``ref.paths`` that holds these states."""
    joint = (np.concatenate(states, 1) + 1) / 2
    return (joint @ 2.0 ** np.arange(joint.shape[1])[::-1]).astype(int)


def relative_gap(mean: dict, exact: dict, layer: int) -> float:
    pairs = [(mean[layer, kind], exact[layer, kind]) for kind in ("weight", "bias")]
    gap = sum(((m - e) ** 2).sum() for m, e in pairs)
    return float(np.sqrt(gap / sum((e**2).sum() for _, e in pairs)))


# ----------------------------------------------------------------- the library's function


@noises
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("widths", [(2, 3), (2, 3, 2), (2, 2, 3, 2), (2, 1, 2, 1, 1)])
def test_the_library_computes_the_recursion_on_every_path(
    noise_name: str, widths: tuple[int, ...], symmetric: bool
) -> None:
    net = ref.random_net(widths, ref.RefNoise(noise_name, 1.5), seed=sum(widths), gain=1.3)
    loss, rows = ref.smooth_loss(widths[-1], 1), 3000
    model, top = row_net(net, rows), []

    def recording(x: torch.Tensor) -> torch.Tensor:
        top.append(x.detach().numpy())
        return loss.torch(x)

    inputs = torch.tensor(V).expand(rows, 2)
    values = psa(model, inputs, recording, symmetric=symmetric, generator=seeded())
    states = [layer.seen.numpy() for layer in model.layers[1:]] + [top[0]]
    path = index_of(states)
    assert len(np.unique(path)) > 0.2 * 2 ** sum(widths[1:])
    np.testing.assert_allclose(values.detach().numpy(), loss.value(states[-1], 0), rtol=1e-12)
    grads, deltas = row_gradients(model, values), psa_deltas(net, V, loss, False, symmetric)
    below = [np.broadcast_to(V, (rows, 2)), *states[:-1]]
    for k in range(len(states)):
        expected = deltas[k][path]
        np.testing.assert_allclose(grads[k, "bias"], expected, rtol=1e-9, atol=1e-12)
        outer = expected[:, :, None] * below[k][:, None, :]
        np.testing.assert_allclose(grads[k, "weight"], outer, rtol=1e-9, atol=1e-12)


def test_the_paths_have_their_probabilities() -> None:
    # Chi-square of the paths drawn, false alarm 1e-6
    from scipy import stats

    net = ref.random_net((2, 2, 2), ref.RefNoise("Logistic"), seed=1)
    model, top = row_net(net, 40_000), []

    def recording(x: torch.Tensor) -> torch.Tensor:
        top.append(x.detach().numpy())
        return x.sum(-1)

    psa(model, torch.tensor(V).expand(40_000, 2), recording, generator=seeded(1))
    count = np.bincount(index_of([model.layers[1].seen.numpy(), top[0]]), minlength=16)
    prob = ref.path_probabilities(net, V, ref.paths((2, 2)))
    assert stats.chisquare(count, prob * 40_000).pvalue > 1e-6


def test_the_loss_s_own_parameters_and_batches_with_axes_in_front() -> None:
    net = ref.random_net((2, 3, 2), ref.RefNoise("Logistic"), seed=1)
    model, head = make_net(net), torch.tensor([0.3, -1.0]).double().requires_grad_()
    seen = []

    def loss(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach())
        return torch.exp(x @ head)

    inputs = torch.tensor(V).expand(5, 4, 2)
    values = psa(model, inputs, loss, generator=seeded())
    assert values.shape == (5, 4)
    values.sum().backward()
    weight = torch.exp(seen[0] @ head.detach())
    torch.testing.assert_close(head.grad, (weight[..., None] * seen[0]).sum((0, 1)))
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


def test_layers_without_bias_or_frozen_are_taken() -> None:
    model = sbnlib.SBN(nn.Linear(2, 3, bias=False), nn.Linear(3, 2))
    model.layers[1].weight.requires_grad_(False)
    psa(model, torch.ones(4, 2), lambda x: x.prod(-1), generator=seeded()).sum().backward()
    assert model.layers[0].weight.grad.abs().max() > 0 and model.layers[1].weight.grad is None


@pytest.mark.parametrize("loss", [lambda x: x, lambda x: x.sum(), lambda x: 1.0])
def test_a_loss_of_the_wrong_shape_is_refused(loss: object) -> None:
    model = sbnlib.SBN(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="loss must"):
        psa(model, torch.zeros(4, 2), loss)


# ------------------------------------------------------------------------------- convolutions


def places(conv: nn.Conv2d, height: int, width: int) -> Array:
    """Which weight leads from each input (column) to each output (row), -1 where none does."""
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    if conv.padding == "same":
        tops, lefts = divmod(dh * (kh - 1), 2), divmod(dw * (kw - 1), 2)
        (top, bottom), (left, right) = ((half, half + odd) for half, odd in (tops, lefts))
    else:
        (top, left) = (bottom, right) = (0, 0) if conv.padding == "valid" else conv.padding
    rows = (height + top + bottom - dh * (kh - 1) - 1) // sh + 1
    columns = (width + left + right - dw * (kw - 1) - 1) // sw + 1
    of_group = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    out = np.full((conv.out_channels, rows, columns, conv.in_channels, height, width), -1)
    for o, r, s in np.ndindex(out.shape[:3]):
        for c, i, j in np.ndindex(of_group[0], kh, kw):
            y, x = r * sh + i * dh - top, s * sw + j * dw - left
            if 0 <= y < height and 0 <= x < width:
                channel = o // of_group[1] * of_group[0] + c
                out[o, r, s, channel, y, x] = ((o * of_group[0] + c) * kh + i) * kw + j
    return out.reshape(conv.out_channels * rows * columns, -1)


def shared(per_entry: Array, index: Array) -> Array:
    """Gradients (..., n_out, n_in) in a matrix as gradients in the weights that it is made of."""
    out = np.zeros((*per_entry.shape[:-2], index.max() + 1))
    np.add.at(out, (..., index[index >= 0]), per_entry[..., index >= 0])
    return out


def weighted(net: sbnlib.SBN) -> list[Any]:
    return [m for m in net.layers.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def matrices(net: sbnlib.SBN, image: torch.Tensor) -> list[Array | None]:
    """For each layer its :func:`places`, None for a linear one; the shapes are read off a run."""
    found: list[Array | None] = []

    def see(layer: Any, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        found.append(None if isinstance(layer, nn.Linear) else places(layer, *inputs[0].shape[-2:]))

    hooks = [layer.register_forward_hook(see) for layer in weighted(net)]
    net(image)
    for hook in hooks:
        hook.remove()
    return found


def as_dense(net: sbnlib.SBN, indices: list[Array | None]) -> ref.RefNet:
    """The same network with each convolution as its matrix."""
    weights, biases = [], []
    for layer, index in zip(weighted(net), indices, strict=True):
        weight = layer.weight.detach().numpy()
        bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().numpy()
        if index is not None:
            weight = np.where(index >= 0, weight.ravel()[index], 0)
            bias = bias.repeat(len(index) // len(bias))
        weights.append(weight)
        biases.append(bias)
    noise = ref.RefNoise(type(net.noise).__name__, net.noise.scale)
    return ref.RefNet(tuple(weights), tuple(biases), noise)


def conv_net(*layers: nn.Module, noise: str = "Logistic", seed: int = 0) -> sbnlib.SBN:
    net = sbnlib.SBN(*layers, noise=make_noise(noise, 1.5)).double()
    draw = np.random.default_rng(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.tensor(draw.uniform(-1, 1, size=p.shape)))
    return net


def smooth(x: torch.Tensor) -> torch.Tensor:
    """A loss of states (..., n) that no two units enter alike."""
    n = x.shape[-1]
    one, two = (torch.linspace(-1, 1.3, n, dtype=x.dtype) * k for k in (0.7, -1.1))
    return torch.tanh((x * one).sum(-1) + 0.2) + torch.exp((x * two).sum(-1) / n)


def of_images(x: torch.Tensor) -> torch.Tensor:
    return smooth(x.flatten(-3))


#: Options of the second of two convolutions, on images 4 x 5 with 4 channels.
OPTIONS: list[dict[str, Any]] = [
    {},
    {"stride": (2, 1)},
    {"padding": (1, 2)},
    {"dilation": (1, 2)},
    {"groups": 2},
    {"groups": 4, "bias": False},
    {"stride": 2, "padding": 2, "dilation": 2, "groups": 2},
    {"stride": (1, 3), "padding": (0, 1), "kernel_size": (3, 2)},
    {"padding": "same", "kernel_size": (2, 3), "dilation": (3, 1)},
    {"padding": "valid", "kernel_size": 1},
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_convolution_has_the_estimate_of_its_matrix(options: dict, symmetric: bool) -> None:
    """Images in, images out: the same states from the same seed, the same gradient to 1e-12."""
    second = nn.Conv2d(4, 4, **{"kernel_size": 2} | options)
    net = conv_net(nn.Conv2d(2, 4, 2, padding=(0, 1)), second, nn.Conv2d(4, 3, (2, 1), padding=1))
    images = torch.rand(3, 2, 5, 4, generator=seeded(1), dtype=torch.float64)
    check_against_matrix(net, images, of_images, symmetric)


@pytest.mark.parametrize("noise_name", ["Uniform", "Cauchy"])
def test_shapes_may_change_around_the_weights(noise_name: str) -> None:
    """Images as rows of numbers, flattened below a linear layer or behind a convolution."""
    net = conv_net(
        nn.Sequential(nn.Unflatten(-1, (2, 3, 3)), nn.Conv2d(2, 3, 2), nn.Flatten()),
        nn.Sequential(nn.Sequential(nn.Unflatten(1, (3, 2, 2))), nn.Conv2d(3, 4, 2, padding=1)),
        nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(36, 8), nn.Unflatten(-1, (2, 2, 2))),
        nn.Conv2d(2, 2, 1),
        nn.Sequential(nn.Flatten(-3), nn.Linear(8, 2)),
        noise=noise_name,
    )
    rows = torch.rand(4, 18, generator=seeded(2), dtype=torch.float64)
    check_against_matrix(net, rows, smooth)
    flat = conv_net(nn.Sequential(nn.Unflatten(-1, (2, 3, 3)), nn.Conv2d(2, 1, 2), nn.Flatten()))
    check_against_matrix(flat, rows, smooth)
    one = conv_net(nn.Conv2d(2, 3, 2), nn.Conv2d(3, 2, 2))  # a single image, without a batch
    check_against_matrix(one, rows[0].view(2, 3, 3), of_images)


def check_against_matrix(
    net: sbnlib.SBN, inputs: torch.Tensor, loss: Any, symmetric: bool = False
) -> None:
    indices = matrices(net, inputs)
    dense = make_net(as_dense(net, indices))
    flat = inputs if inputs.dim() == 2 else inputs.flatten(-3)
    shape = net(inputs).shape

    def recording(x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-len(shape) :] == shape  # the flips in front
        return loss(x)

    for seed in range(3):
        values = psa(net, inputs, recording, symmetric=symmetric, generator=seeded(seed))
        others = psa(dense, flat, smooth, symmetric=symmetric, generator=seeded(seed))
        torch.testing.assert_close(values, others, rtol=1e-12, atol=1e-12)
        net.zero_grad()
        dense.zero_grad()
        values.sum().backward()
        others.sum().backward()
        for layer, other, index in zip(weighted(net), dense.layers, indices, strict=True):
            weight, bias = other.weight.grad.numpy(), other.bias.grad.numpy()
            if index is not None:
                weight = shared(weight, index).reshape(layer.weight.shape)
                bias = bias.reshape(layer.out_channels, -1).sum(-1)
            assert np.abs(weight).max() > 1e-3
            np.testing.assert_allclose(layer.weight.grad.numpy(), weight, rtol=1e-12, atol=1e-12)
            if layer.bias is not None:
                np.testing.assert_allclose(layer.bias.grad.numpy(), bias, rtol=1e-12, atol=1e-12)


class Watched:
    """The pre-activations of a net's layers, whose gradients are the estimates, and the states."""

    def __init__(self, net: sbnlib.SBN) -> None:
        self.pre: list[torch.Tensor] = []
        self.below: list[torch.Tensor] = []
        for layer in weighted(net):
            layer.register_forward_hook(self.see)

    def see(self, _: nn.Module, inputs: tuple[torch.Tensor, ...], a: torch.Tensor) -> None:
        a.retain_grad()
        self.pre.append(a)
        self.below.append(inputs[0].detach())

    def estimates(self, dtype: torch.dtype = torch.float64) -> list[Array]:
        return [a.grad.flatten(1).to(dtype).numpy() for a in self.pre]

    def states(self, k: int) -> Array:
        return self.below[k].flatten(1).numpy()


@noises
@pytest.mark.parametrize("symmetric", [False, True])
def test_convolutions_compute_the_recursion_on_every_path(noise_name: str, symmetric: bool) -> None:
    net = conv_net(
        nn.Conv2d(1, 2, 2),
        nn.Conv2d(2, 2, (1, 2), groups=2, bias=False),
        nn.Sequential(nn.Flatten(), nn.Linear(2, 2)),
        noise=noise_name,
    )
    v, rows, top = np.array([0.3, -0.8, 0.5, 0.9, -0.2, 0.7]), 2000, []
    loss = ref.smooth_loss(2, 1)

    def recording(x: torch.Tensor) -> torch.Tensor:
        top.append(x.detach().numpy())
        return loss.torch(x)

    images = torch.tensor(v).view(1, 1, 2, 3).expand(rows, 1, 2, 3)
    dense, watched = as_dense(net, matrices(net, images[:1])), Watched(net)
    psa(net, images, recording, symmetric=symmetric, generator=seeded()).sum().backward()
    path = index_of([watched.states(1), watched.states(2), top[0]])
    assert len(np.unique(path)) > 0.2 * 2**8
    for found, expected in zip(
        watched.estimates(), psa_deltas(dense, v, loss, False, symmetric), strict=True
    ):
        np.testing.assert_allclose(found, expected[path], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("width", "symmetric", "exact"), [(3, False, True), (4, True, True), (4, False, False)]
)
def test_through_a_convolution_it_is_exact_where_the_theory_says(
    width: int, symmetric: bool, exact: bool
) -> None:
    """One unit above, or with both sides two. Means of 20 000 paths; false-alarm rate 1e-6.

    With two units above, which share two of the units below, PSA from one side is off by a quarter.
    """
    net = conv_net(nn.Conv2d(1, 1, 2), nn.Conv2d(1, 1, 2), seed=5)
    with torch.no_grad():
        net.layers[1].weight.mul_(4)
    v, rows = np.random.default_rng(3).uniform(-1, 1, size=3 * width), 20_000
    images = torch.tensor(v).view(1, 1, 3, width).expand(rows, 1, 3, width)
    indices = matrices(net, images[:1])
    dense, watched = as_dense(net, indices), Watched(net)
    loss = product_loss(dense.widths[-1])
    of_flat = lambda x: loss.torch(x.flatten(-3))  # noqa: E731
    psa(net, images, of_flat, symmetric=symmetric, generator=seeded(7)).sum().backward()
    expected, worst = ref.gradient_one(dense, v, loss, 0), []
    for k, (delta, index) in enumerate(zip(watched.estimates(), indices, strict=True)):
        each = shared(delta[:, :, None] * watched.states(k)[:, None, :], index)
        worst.append(z_scores(each, shared(expected[k, "weight"], index)).max())
    assert worst[1] < z_limit(8)
    assert worst[0] < z_limit(8) if exact else worst[0] > 3 * z_limit(8)


class Counting(sbnlib.Logistic):
    """Remembers how many values of F it was asked for at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def _cdf(self, a: torch.Tensor) -> torch.Tensor:
        self.asked.append(a.numel())
        return super()._cdf(a)


def test_the_memory_of_a_convolution_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """All output channels at once, some, and one at a time: the same but for the sums' order."""
    net = conv_net(nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 10, 3, padding=1, groups=2))
    images = torch.rand(2, 2, 4, 4, generator=seeded(3), dtype=torch.float64)
    unfolded, gradients = 2 * 6 * 9 * 16, []
    assert 5 * unfolded < NUMBERS
    for numbers, channels in ((NUMBERS, 5), (3 * unfolded, 3), (1, 1)):
        monkeypatch.setattr(sys.modules["sbnlib.estimators.psa"], "NUMBERS", numbers)
        net.noise = Counting()
        psa(net, images, of_images, generator=seeded()).sum().backward()
        assert max(net.noise.asked) == channels * unfolded
        assert sum(n for n in net.noise.asked if n >= unfolded) == 5 * unfolded
        gradients.append(weighted(net)[0].weight.grad.clone())
        net.zero_grad()
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_convolutions_are_right_to_one_rounding(dtype: torch.dtype) -> None:
    """Weights of few bits: pre-activations, so states, are those of float32."""
    net = conv_net(nn.Conv2d(1, 2, (1, 3)), nn.Conv2d(2, 4, (1, 2)))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_((4 * p).round() / 4)
    images, found = torch.randint(-1, 2, (50, 1, 2, 5), generator=seeded()).float(), []
    for own in (torch.float32, dtype):
        net, watched = net.to(own), Watched(net)
        loss = lambda x: of_images(x.float())  # noqa: E731
        psa(net, images.to(own), loss, generator=seeded(1)).sum().backward()
        found.append([e.astype(float) for e in watched.estimates(torch.float32)])
    for full, half in zip(*found, strict=True):
        assert np.abs(full).max() > 0.05
        at_most = 0.5001 * torch.finfo(dtype).eps * np.abs(full) + torch.finfo(dtype).tiny
        assert (np.abs(half - full) <= at_most).all()


def never(x: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the loss was called before the check")


NORMED = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
CIRCULAR = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((nn.Linear(2, 3), NORMED), r"of one nn.Linear .*1 is Sequential\(Linear, BatchNorm1d\)"),
        ((nn.Conv2d(1, 2, 3), nn.Flatten(-3)), "nn.Linear or nn.Conv2d, .*layer 1 is Flatten"),
        ((nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),), r"0 is Sequential\(Linear, Linear"),
        ((nn.Conv1d(1, 2, 3),), "layer 0 is Conv1d"),
        ((nn.ConvTranspose2d(1, 2, 3),), "layer 0 is ConvTranspose2d"),
        ((sbnlib.nn.BernoulliConv2d(1, 2, 3),), "layer 0 is BernoulliConv2d"),
        ((nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)),), r"Sequential\(Conv2d, MaxPool2d"),
        ((CIRCULAR,), "padded with zeros, layer 0 has padding_mode='circular'"),
        ((nn.Conv2d(1, 2, 3), nn.Linear(2, 2)), r"one batch in all layers, of shape \(1, 2, 2\)"),
        ((nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(0)),), "one batch in all layers"),
    ],
)
def test_what_is_not_served_is_refused_before_any_work(layers: tuple, words: str) -> None:
    flat = any(isinstance(m, nn.Linear) for m in layers[0].modules())
    inputs = torch.zeros(1, 2) if flat else torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match=words):
        psa(sbnlib.SBN(*layers), inputs, never)


def test_the_numbers_of_linear_layers_are_those_of_the_formula_in_torch() -> None:
    """Bit for bit: what is stored of linear networks stays reproducible."""
    for dtype, symmetric in itertools.product((torch.float64, torch.float32), (False, True)):
        net = conv_net(nn.Linear(3, 5), nn.Linear(5, 7), nn.Linear(7, 2)).to(dtype)
        x = torch.rand(4, 6, 3, generator=seeded(4), dtype=dtype)
        value = psa(net, x, smooth, symmetric=symmetric, generator=seeded(5))
        found = torch.autograd.grad(value.sum(), list(net.parameters()))
        draw, a, states, F = seeded(5), [], [], net.noise
        for layer in net.layers:
            a.append(layer(states[-1] if states else x))
            states.append(sbnlib.sample_sign(a[-1], F, generator=draw))
        with torch.no_grad():
            flips = states[-1] * (1 - 2 * torch.eye(2, dtype=dtype))[:, None, None]
            d, deltas = smooth(states[-1])[..., None] - smooth(flips).movedim(0, -1), []
            for k in (2, 1, 0):
                deltas.insert(0, F.pdf(a[k]) * states[k] * d)
                if k:
                    moved = a[k][..., None] - 2 * net.layers[k].weight * states[k - 1][..., None, :]
                    drop = F.cdf(states[k] * a[k])[..., None] - F.cdf(states[k][..., None] * moved)
                    d = (d[..., None, :] @ drop)[..., 0, :]
                    d = d / (2 * F.cdf(states[k - 1] * a[k - 1])) if symmetric else d
        expected = torch.autograd.grad(a, list(net.parameters()), deltas)
        assert all(torch.equal(g, e) for g, e in zip(found, expected, strict=True))


# ------------------------------------------------------------------------- where it is exact


@noises
@pytest.mark.parametrize("widths", [(2, 4), (2, 3, 2), (2, 2, 3, 2)])
def test_exact_in_the_last_layer(noise_name: str, widths: tuple[int, ...]) -> None:
    net = ref.random_net(widths, ref.RefNoise(noise_name), seed=2)
    loss = ref.smooth_loss(widths[-1], 3)
    mean, exact = psa_mean(net, V, loss), ref.gradient_one(net, V, loss, 0)
    assert relative_gap(mean, exact, len(widths) - 2) < 1e-12


@noises
@pytest.mark.parametrize("widths", [(2, 3, 1), (2, 3, 1, 1), (2, 2, 1, 1, 1)])
def test_exact_when_every_layer_above_has_one_unit(
    noise_name: str, widths: tuple[int, ...]
) -> None:
    scale = 4.0 if noise_name in ref.BOUNDED else 1.4  # no unit saturated at every state
    net = ref.random_net(widths, ref.RefNoise(noise_name, scale), seed=3)
    loss = ref.smooth_loss(1, 3)
    mean, exact = psa_mean(net, V, loss), ref.gradient_one(net, V, loss, 0)
    for layer in range(len(widths) - 1):
        assert relative_gap(mean, exact, layer) < 1e-11


@noises
@pytest.mark.parametrize("widths", [(2, 3, 3), (2, 2, 3, 3)])
def test_exact_in_the_next_to_last_layer_for_sums_over_units(
    noise_name: str, widths: tuple[int, ...]
) -> None:
    net = ref.random_net(widths, ref.RefNoise(noise_name, 1.4), seed=4)
    loss, top = sum_loss(3, 1), len(widths) - 2
    mean, exact = psa_mean(net, V, loss), ref.gradient_one(net, V, loss, 0)
    assert relative_gap(mean, exact, top) < 1e-12 and relative_gap(mean, exact, top - 1) < 1e-12
    if top > 1:  # one layer further down it is not
        assert relative_gap(mean, exact, top - 2) > 1e-3
    smooth = ref.smooth_loss(3, 1)  # and neither is it there for a loss that is no sum
    mean, exact = psa_mean(net, V, smooth), ref.gradient_one(net, V, smooth, 0)
    assert relative_gap(mean, exact, top - 1) > 1e-3


@noises
@pytest.mark.parametrize("widths", [(2, 3, 2), (2, 3, 1), (2, 2, 3, 2)])
def test_symmetrized_it_is_exact_below_two_units_too(
    noise_name: str, widths: tuple[int, ...]
) -> None:
    scale = 4.0 if noise_name in ref.BOUNDED else 1.4
    net = ref.random_net(widths, ref.RefNoise(noise_name, scale), seed=3)
    loss, top = ref.smooth_loss(widths[-1], 3), len(widths) - 2
    mean, exact = psa_mean(net, V, loss, symmetric=True), ref.gradient_one(net, V, loss, 0)
    assert relative_gap(mean, exact, top) < 1e-12 and relative_gap(mean, exact, top - 1) < 1e-11
    if top > 1:  # one layer further down it is not, but for unsaturated uniform noise
        assert (relative_gap(mean, exact, top - 2) > 1e-5) == (noise_name != "Uniform")


@noises
@pytest.mark.parametrize("widths", [(2, 3, 2, 2), (2, 3, 1, 2, 1)])
def test_symmetrized_it_is_exact_at_every_depth_below_layers_of_two(
    noise_name: str, widths: tuple[int, ...]
) -> None:
    scale = 4.0 if noise_name in ref.BOUNDED else 1.4
    net, loss = (
        ref.random_net(widths, ref.RefNoise(noise_name, scale), seed=3),
        ref.smooth_loss(widths[-1], 3),
    )
    mean, exact = psa_mean(net, V, loss, symmetric=True), ref.gradient_one(net, V, loss, 0)
    for layer in range(len(widths) - 1):
        assert relative_gap(mean, exact, layer) < 1e-10


def test_symmetrized_it_is_less_biased_and_varies_more() -> None:
    # Both summed over 20 nets 2-3-3 with one loss, in the first layer's biases
    loss, total = ref.smooth_loss(3, 1), np.zeros((2, 2))
    for seed in range(20):
        net = ref.random_net((2, 3, 3), ref.RefNoise("Logistic"), seed=seed, gain=2.0)
        exact = ref.gradient_one(net, V, loss, 0)[0, "bias"]
        prob = ref.path_probabilities(net, V, ref.paths(net.widths))
        for k, symmetric in enumerate((False, True)):
            d = psa_deltas(net, V, loss, symmetric=symmetric)[0]
            mean = prob @ d
            total[k] += ((mean - exact) ** 2).sum(), (prob @ (d - mean) ** 2).sum()
    assert total[1, 0] < 0.1 * total[0, 0] and total[1, 1] > 1.1 * total[0, 1]


def test_biased_below_two_units_by_the_amount_the_book_says() -> None:
    # 3-2 with L = x_1 x_2: relative bias of the first layer between 0.24 and 1.25 over random nets
    gaps = []
    for seed in range(12):
        net = ref.random_net((2, 3, 2), ref.RefNoise("Logistic"), seed=seed, gain=2.0)
        loss = product_loss(2)
        mean, exact = psa_mean(net, V, loss), ref.gradient_one(net, V, loss, 0)
        gaps.append(relative_gap(mean, exact, 0))
    assert min(gaps) > 0.01
    assert 0.24 < np.median(gaps) < 1.25


def test_less_biased_than_straight_through_on_average() -> None:
    # Root of summed squared bias over root of summed squared gradient, 20 nets 2-3-3-2
    loss, total = ref.smooth_loss(2, 1), np.zeros(3)
    for seed in range(20):
        net = ref.random_net((2, 3, 3, 2), ref.RefNoise("Logistic"), seed=seed, gain=2.0)
        exact = ref.gradient_one(net, V, loss, 0)
        by_st = ref.moments(net, V[None], loss, "straight_through")
        by_psa = psa_mean(net, V, loss)
        for key, g in exact.items():
            gaps = by_st[key][0] - g, by_psa[key] - g, g
            total += [float((v**2).sum()) for v in gaps]
    assert total[1] < 0.5 * total[0]


# ------------------------------------------------------------- straight-through as its limit


@noises
@pytest.mark.parametrize("widths", [(2, 3), (2, 3, 2), (2, 2, 2, 2)])
def test_with_every_difference_linearized_it_is_straight_through(
    noise_name: str, widths: tuple[int, ...]
) -> None:
    net = ref.random_net(widths, ref.RefNoise(noise_name), seed=5)
    loss = ref.smooth_loss(widths[-1], 2)
    linearized = psa_deltas(net, V, loss, linear=True)
    _, by_st = ref.path_estimates(net, V, loss, 0, "straight_through")
    for k, delta in enumerate(linearized):
        np.testing.assert_allclose(delta, by_st[k, "bias"], rtol=1e-10, atol=1e-14)


def test_with_small_weights_above_and_a_linear_loss_it_tends_to_straight_through() -> None:
    # Same seed, same path. The gap in the first layer is of second order in the weights above,
    # where the gradient is of first: halving them halves the relative gap
    loss, gaps = ref.linear_loss(2, 3), []
    for scale in (0.02, 0.01, 0.005):
        net = ref.random_net((2, 3, 2), ref.RefNoise("Logistic"), seed=6)
        net = ref.RefNet((net.weights[0], scale * net.weights[1]), net.biases, net.noise)
        both = []
        for name in ("psa", "straight_through"):
            model = row_net(net, 200)
            values = network_estimator(name)(
                model, torch.tensor(V).expand(200, 2), loss.torch, generator=seeded(2)
            )
            both.append(row_gradients(model, values)[0, "bias"])
        gaps.append(np.linalg.norm(both[0] - both[1]) / np.linalg.norm(both[1]))
    assert gaps[0] < 0.02
    assert gaps[1] / gaps[0] == pytest.approx(0.5, abs=0.02)
    assert gaps[2] / gaps[1] == pytest.approx(0.5, abs=0.02)


# ------------------------------------------------------------------------------- deep ZGR


def unsaturated_net(widths: tuple[int, ...], seed: int, name: str = "Uniform") -> ref.RefNet:
    """|a| < 1 at every state: the rows of |W| and |b| add up to 0.9. Inputs are in [-1, 1]."""
    rng = np.random.default_rng(seed)
    weights, biases = [], []
    for n, m in itertools.pairwise(widths):
        w = rng.normal(size=(m, n + 1))
        w *= 0.9 / np.abs(w).sum(1, keepdims=True)
        weights.append(w[:, :n])
        biases.append(w[:, n])
    return ref.RefNet(tuple(weights), tuple(biases), ref.RefNoise(name))


def gap_of_means(net: ref.RefNet, loss: ref.RefLoss, name: str) -> float:
    """|mean - exact|/|exact| over all parameters; the mean is the library's exact one."""
    exact = in_order(ref.gradient(net, V[None], loss))
    moments = exact_moments(make_net(net), torch.tensor(V[None]), loss.torch, name).values()
    gap = sum(((mean.numpy() - e) ** 2).sum() for (mean, _), e in zip(moments, exact, strict=True))
    return float(np.sqrt(gap / sum((e**2).sum() for e in exact)))


@pytest.mark.parametrize("widths", [(2, 3, 3), (2, 3, 2, 3), (2, 2, 2, 2, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_deep_zgr_is_exact_for_uniform_noise_and_quadratic_losses(
    widths: tuple[int, ...], seed: int
) -> None:
    net = unsaturated_net(widths, seed)
    quadratic = ref.quadratic_loss(widths[-1], seed)
    assert gap_of_means(net, quadratic, "zgr") < 1e-12
    assert gap_of_means(net, quadratic, "straight_through") > 1e-2
    exact = ref.gradient_one(net, V, quadratic, 0)
    assert relative_gap(psa_mean(net, V, quadratic), exact, 0) > 1e-3
    # the exact gradient of the library is the enumerated one, so both sides are the same thing
    _, ours = exact_gradient(make_net(net), torch.tensor(V[None]), quadratic.torch)
    for g, e in zip(ours.values(), in_order(exact), strict=True):
        np.testing.assert_allclose(g.numpy(), e, rtol=1e-10, atol=1e-14)


def test_deep_zgr_needs_each_assumption() -> None:
    quadratic, cubic = ref.quadratic_loss(3, 1), product_loss(3)
    assert gap_of_means(unsaturated_net((2, 3, 3), 1), cubic, "zgr") > 1e-3  # quadratic loss
    logistic = unsaturated_net((2, 3, 3), 1, "Logistic")
    assert gap_of_means(logistic, quadratic, "zgr") > 1e-4  # uniform noise
    net = unsaturated_net((2, 3, 3), 1)
    saturated = ref.RefNet(tuple(2.5 * w for w in net.weights), net.biases, net.noise)
    assert gap_of_means(saturated, quadratic, "zgr") > 1e-3  # no saturated unit
    assert gap_of_means(unsaturated_net((2, 3), 1), cubic, "zgr") < 1e-12  # in one layer it holds


def test_straight_through_is_exact_there_for_linear_losses_only() -> None:
    # With uniform noise the mean network is affine: ST is exact at any depth for a linear loss
    for widths in ((2, 3, 3), (2, 2, 2, 2, 2)):
        net = unsaturated_net(widths, 4)
        assert gap_of_means(net, ref.linear_loss(widths[-1], 2), "straight_through") < 1e-12
        assert gap_of_means(net, ref.quadratic_loss(widths[-1], 2), "straight_through") > 1e-2
