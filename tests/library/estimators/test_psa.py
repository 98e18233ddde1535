"""PSA: the recursion written out path by path, where it is exact, and deep ZGR beside it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference as ref
import torch
from bridge import in_order, make_net
from rows import row_gradients, row_net, seeded
from torch import nn

import sbnlib
from sbnlib import exact_gradient, exact_moments, network_estimator, psa

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


def test_convolutions_are_refused_before_any_work() -> None:
    def never(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the loss was called before the check")

    conv = sbnlib.SBN(nn.Conv2d(1, 2, 3), nn.Flatten(-3))
    with pytest.raises(ValueError, match="nn.Linear.*Conv2d"):
        psa(conv, torch.zeros(1, 1, 4, 4), never)
    normed = sbnlib.SBN(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    with pytest.raises(ValueError, match="layer 1 is Sequential"):
        psa(normed, torch.zeros(1, 2), never)


@pytest.mark.parametrize("loss", [lambda x: x, lambda x: x.sum(), lambda x: 1.0])
def test_a_loss_of_the_wrong_shape_is_refused(loss: object) -> None:
    model = sbnlib.SBN(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="loss must"):
        psa(model, torch.zeros(4, 2), loss)


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
    # 3-2 with L = x_1 x_2: relative bias of the first layer between .24 and 1.25 over random nets
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
