"""Chapter 7, deep straight-through: both sides of every formula, and the notebook's own code.

Expected values are sums over whole paths of a network (reference.py), in numpy: no recursion, and
nothing of sbnlib. PSA is written out here path by path from the formulas of the page.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_net
from chapters import (
    as_in_the_book,
    chapter,
    checker,
    containing,
    curves,
    define,
    drawing,
    figures,
    lines,
    naming,
    printed,
    prose,
    run,
    says_to,
    still,
    under,
)
from pins import pin
from scipy import integrate, optimize, stats
from scipy.special import expit, ndtri

import sbnlib
from sbnlib.experiments import measurement

Array = np.ndarray
Value = Callable[[Array], Array]
PATH = chapter(7)
LOGISTIC = ref.RefNoise("Logistic")
SEEDS = range(6)
seeds = pytest.mark.parametrize("seed", SEEDS)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with as_in_the_book():
        yield


# -------------------------------------------------------------------------- whole paths, in numpy


def loss_of(value: Value, slope: Value | None = None) -> ref.RefLoss:
    """A loss of states; its slope by central differences if none is given."""

    def differences(x: Array) -> Array:
        steps = 1e-5 * np.eye(x.shape[-1])
        return np.stack([(value(x + h) - value(x - h)) / 2e-5 for h in steps], -1)

    by = slope or differences
    return ref.RefLoss("given", lambda x, b: value(x), lambda x, b: by(x), None)


def quadratic(n: int, seed: int) -> tuple[Array, Array, ref.RefLoss]:
    rng = np.random.default_rng(seed)
    A, c = rng.normal(size=(n, n)), rng.normal(size=n)
    A = A + A.T
    value = lambda x: 0.5 * ((x @ A) * x).sum(-1) + x @ c  # noqa: E731
    return A, c, loss_of(value, lambda x: x @ A + c)


PAIR = loss_of(lambda x: x[..., 0] * x[..., 1], lambda x: np.stack([x[..., 1], x[..., 0]], -1))
SUM = loss_of(lambda x: x.sum(-1), np.ones_like)
CUBE = loss_of(
    lambda x: x[..., 0] * x[..., 1] * x[..., 2],
    lambda x: np.stack([x[..., 1] * x[..., 2], x[..., 0] * x[..., 2], x[..., 0] * x[..., 1]], -1),
)


def net_of(widths: tuple[int, ...], seed: int, noise: object = LOGISTIC, gain: float = 2.0):
    """Widths with the input's first, and an input of signs."""
    start = np.where(np.random.default_rng(seed + 50).normal(size=widths[0]) > 0, 1.0, -1.0)
    return ref.random_net(widths, noise, seed, gain), start


def drop(net: ref.RefNet, k: int, a: Array, x: Array, below: Array) -> Array:
    """How much the probability of each x_j falls when each bit below flips, (paths, j, i)."""
    out = np.empty((*a.shape, below.shape[-1]))
    for i in range(below.shape[-1]):
        other = below.copy()
        other[:, i] *= -1
        there = other @ net.weights[k].T + net.biases[k]
        out[..., i] = net.noise.prob(x, a) - net.noise.prob(x, there)
    return out


def psa_paths(net: ref.RefNet, start: Array, value: Value, both: bool = False):
    """Probability of every path, and per layer D and the estimate for the biases."""
    xs = ref.paths(net.widths)
    a = ref.pre_activations(net, start, xs)
    D = np.stack([value(xs[-1]) - value(xs[-1] * s) for s in 1 - 2 * np.eye(net.widths[-1])], -1)
    costs, estimates = [], []
    for k in reversed(range(len(xs))):
        if both and k < len(xs) - 1:
            D = D / (2 * net.noise.prob(xs[k], a[k]))
        costs.insert(0, D)
        estimates.insert(0, net.noise.pdf(a[k]) * xs[k] * D)
        if k:
            D = np.einsum("pji,pj->pi", drop(net, k, a[k], xs[k], xs[k - 1]), D)
    return ref.path_probabilities(net, start, xs), costs, estimates


def psa_mean(net: ref.RefNet, start: Array, loss: ref.RefLoss, both: bool = False) -> list[Array]:
    P, _, estimates = psa_paths(net, start, lambda x: loss.value(x, 0), both)
    return [P @ e for e in estimates]


def exact(net: ref.RefNet, start: Array, loss: ref.RefLoss) -> list[Array]:
    parts = (
        ref.gradient_one(net, start[None], loss, 0)
        if start.ndim > 1
        else ref.gradient_one(net, start, loss, 0)
    )
    return [parts[k, "bias"] for k in range(len(net.widths))]


def chain_mean(net: ref.RefNet, start: Array, loss: ref.RefLoss, name: str) -> list[Array]:
    P, parts = ref.path_estimates(net, start, loss, 0, name)
    return [P @ parts[k, "bias"] for k in range(len(net.widths))]


def off(m: Array, g: Array) -> float:
    return float(np.linalg.norm(m - g) / np.linalg.norm(g))


def seen(net: ref.RefNet, start: Array, value: Value, k: int) -> dict[tuple, float]:
    """L_k: the mean loss over all paths through each state of layer k (0 is the first)."""
    xs = ref.paths(net.widths)
    P, L = ref.path_probabilities(net, start, xs), value(xs[-1])
    out = {}
    for s in ref.states(net.widths[k]):
        here = (xs[k] == s).all(1)
        out[tuple(s)] = P[here] @ L[here] / P[here].sum()
    return out


def flips(table: dict[tuple, float], x: Array) -> Array:
    """Delta_i L of a function given as a table, for rows of states."""
    out = np.empty(x.shape)
    for i in range(x.shape[1]):
        up, down = x.copy(), x.copy()
        up[:, i], down[:, i] = 1, -1
        out[:, i] = [table[tuple(u)] - table[tuple(d)] for u, d in zip(up, down, strict=True)]
    return out


NAMES = (
    "states", "flipped", "upwards", "exact_given", "averaged", "xor", "v", "xor_loss", "st",
    "zgr", "slopes", "chain_given", "random_net", "relative", "difference", "carry", "costs",
    "psa_given", "all_paths", "tangent", "at_top", "logistic", "tame_net", "scored", "both_parts",
    "ENTRIES", "three_layers", "first", "pair", "cubic", "linear_case",
)  # fmt: skip


@pytest.fixture(scope="module")
def book() -> dict:
    with as_in_the_book():
        return define(PATH, *NAMES)


def torch_net(net: ref.RefNet) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        (torch.tensor(W), torch.tensor(b)) for W, b in zip(net.weights, net.biases, strict=True)
    ]


def to_numpy(net: list, noise: object = LOGISTIC) -> ref.RefNet:
    W, b = zip(*((w.numpy(), c.numpy()) for w, c in net), strict=True)
    return ref.RefNet(W, b, noise)


def in_torch(noise: ref.RefNoise) -> object:
    return getattr(sbnlib, noise.name)(noise.scale)


# ------------------------------------------------------------------------- the exact gradient


@pin(
    "eq-07-seen",
    r"""
    L_K=L,\qquad L_k(x_k)=\mathbb{E}[L\mid x_k]=\sum_{x_{k+1}}P(x_{k+1}\mid
    x_k)\,L_{k+1}(x_{k+1}).
    """,
)
@seeds
def test_eq_07_seen(seed: int) -> None:
    """The mean over all paths through a state is the sum over the states of the next layer."""
    net, start = net_of((2, 3, 2, 2), seed)
    loss = ref.smooth_loss(2, seed)
    value = lambda x: loss.value(x, 0)  # noqa: E731
    top = seen(net, start, value, 2)
    assert all(top[s] == pytest.approx(value(np.array(s)), abs=1e-12) for s in top)
    for k in (0, 1):
        above = seen(net, start, value, k + 1)
        for s, mean in seen(net, start, value, k).items():
            a = net.weights[k + 1] @ np.array(s) + net.biases[k + 1]
            total = sum(expit(np.array(x) * a).prod() * v for x, v in above.items())
            assert mean == pytest.approx(total, abs=1e-12)


@pin(
    "thm-07-deep",
    r"""
    Let the network be layered: given $x_{k-1}$, the units of layer $k$ are independent with
    $P(x_{k,i}=1\mid x_{k-1})=F(a_{k,i})$, and what is above depends on $x_k$ only. Let $W_k$
    and $b_k$ occur in layer $k$ only, and let $F$ be differentiable at every value that
    $a_{k,i}$ can take. Then {eq-07-exact}
    """,
)
@pin(
    "eq-07-exact",
    r"""
    \begin{gathered} \frac{\partial}{\partial
    b_{k,i}}\mathbb{E}L=\mathbb{E}\bigl[f(a_{k,i})\,\Delta_iL_k(x_k)\bigr],\\
    \frac{\partial}{\partial
    W_{k,ij}}\mathbb{E}L=\mathbb{E}\bigl[f(a_{k,i})\,\Delta_iL_k(x_k)\,x_{k-1,j}\bigr].
    \end{gathered}
    """,
)
@pytest.mark.parametrize("noise", [*ref.NOISES])
def test_eq_07_exact(noise: str) -> None:
    """The left sides by central differences of the sum over paths, in each bias and weight."""
    law = ref.RefNoise(noise, 3.0)
    net, start = net_of((2, 2, 2, 2), 3, law, gain=0.7)
    loss, h = ref.smooth_loss(2, 1), 1e-5
    value = lambda x: loss.value(x, 0)  # noqa: E731
    xs = ref.paths(net.widths)
    P, a = ref.path_probabilities(net, start, xs), ref.pre_activations(net, start, xs)

    def shifted(k: int, i: int, j: int | None, by: float) -> float:
        W, b = [w.copy() for w in net.weights], [c.copy() for c in net.biases]
        if j is None:
            b[k][i] += by
        else:
            W[k][i, j] += by
        return float(ref.expectation(ref.RefNet(tuple(W), tuple(b), law), start[None], loss)[0])

    for k in range(3):
        right = law.pdf(a[k]) * flips(seen(net, start, value, k), xs[k])
        below = np.broadcast_to(start, (len(P), 2)) if k == 0 else xs[k - 1]
        for i in range(2):
            left = (shifted(k, i, None, h) - shifted(k, i, None, -h)) / (2 * h)
            assert left == pytest.approx(P @ right[:, i], abs=1e-8)
            for j in range(2):
                left = (shifted(k, i, j, h) - shifted(k, i, j, -h)) / (2 * h)
                assert left == pytest.approx(P @ (right[:, i] * below[:, j]), abs=1e-8)


def test_thm_07_deep_needs_parameters_of_one_layer_only() -> None:
    """One bias in both of two layers of one unit: its derivative is the sum of two terms."""
    w, b, h = 0.9, 0.4, 1e-5

    def mean(first: float, second: float) -> float:
        return sum(expit(x * first) * (2 * expit(w * x + second) - 1) for x in (-1.0, 1.0))

    shared = (mean(b + h, b + h) - mean(b - h, b - h)) / (2 * h)
    alone = [
        (mean(b + h, b) - mean(b - h, b)) / (2 * h),
        (mean(b, b + h) - mean(b, b - h)) / (2 * h),
    ]
    theorem = expit(b) * expit(-b) * 2 * (expit(b + w) - expit(b - w))
    assert alone[0] == pytest.approx(theorem, abs=1e-9)
    assert shared == pytest.approx(sum(alone), abs=1e-9) and alone[1] > 0.1


@pytest.mark.parametrize("name", ["exact_given", "psa_given", "both", "st", "zgr"])
@seeds
def test_the_recursions_of_the_notebook(book: dict, name: str, seed: int) -> None:
    """Against sums over all paths, every layer, for two noises."""
    for noise in (LOGISTIC, ref.RefNoise("Uniform", 9.0)):
        net, start = net_of((2, 3, 2, 2), seed, noise, 1.0)
        _, _, loss = quadratic(2, seed)
        rows = book["upwards"](torch_net(net), torch.tensor(start)[None], in_torch(noise))
        A, c, _ = quadratic(2, seed)

        def value(x: torch.Tensor, A: Array = A, c: Array = c) -> torch.Tensor:
            return 0.5 * ((x @ torch.tensor(A)) * x).sum(-1) + x @ torch.tensor(c)

        given = (rows, value, in_torch(noise))
        if name == "exact_given":
            tables, means = book[name](*given), exact(net, start, loss)
        elif name in ("st", "zgr"):
            tables = book["chain_given"](*given, book[name])
            means = chain_mean(net, start, loss, {"st": "straight_through"}.get(name, name))
        else:
            tables = book["psa_given"](*given, both=name == "both")
            means = psa_mean(net, start, loss, name == "both")
        for m, found in zip(means, book["averaged"](rows, tables), strict=True):
            assert np.allclose(found.numpy(), m, rtol=1e-11, atol=1e-14)


def test_the_three_ways_as_printed() -> None:
    net = to_numpy(define(PATH, "xor")["xor"])
    start = np.array([1.0, -1.0])
    loss = loss_of(
        lambda x: np.logaddexp(0, x.sum(-1)), lambda x: expit(x.sum(-1, keepdims=True)) + 0 * x
    )
    text = printed(containing(PATH, "by_theorem ="))
    numbers = [float(v) for v in re.findall(r"-?\d\.\d{6}", text)]
    assert np.allclose(numbers, np.tile(exact(net, start, loss)[0], 3), atol=6e-7)
    text = printed(containing(PATH, "first layer   last layer"))
    for name, key in (("ST", "straight_through"), ("ZGR", "zgr")):
        shown = [float(v) for v in re.search(rf"^{name} +(\S+) +(\S+)$", text, re.M).groups()]
        pairs = zip(chain_mean(net, start, loss, key), exact(net, start, loss), strict=True)
        assert shown == pytest.approx([off(m, g) for m, g in pairs], abs=6e-4)
    text = printed(containing(PATH, "32 paths "))
    numbers = np.array([float(v) for v in re.findall(r"-?\d\.\d{6}", text)]).reshape(3, 3)
    means = psa_mean(net, start, loss)
    assert np.allclose(numbers, [means[0], means[0], exact(net, start, loss)[0]], atol=6e-7)
    assert f"first layer {off(means[0], exact(net, start, loss)[0]):.3f}" in text
    assert "1e-14: True" in text and off(means[1], exact(net, start, loss)[1]) < 1e-14
    st = chain_mean(net, start, loss, "straight_through")[0]
    share = off(means[0], exact(net, start, loss)[0]) / off(st, exact(net, start, loss)[0])
    assert 0.19 < share < 0.22 and "is about a fifth of straight-through's" in prose(PATH)


# --------------------------------------------------------------------------------- recursion


@pin(
    "thm-07-recursion",
    r"""
    Let the network be layered and let the factors $c_k$ be functions of $(a_k,x_k)$. Then the
    mean and the second moment of the slope $r_k$ that arrives at a state, given that state,
    obey {eq}`eq-03-recursion`; in particular $m_k(x_k)=\mathbb{E}[r_k\mid x_k]$ obeys
    {eq-07-mean} and the mean of the estimate for $b_k$ is $\mathbb{E}[c_k\circ m_k(x_k)]$.
    """,
)
@pin(
    "eq-07-mean",
    r"""
    m_K=\nabla L,\qquad m_{k-1}(x_{k-1})=W_k^\top\,\mathbb{E}\bigl[c_k\circ
    m_k(x_k)\bigm|x_{k-1}\bigr],
    """,
)
@pytest.mark.parametrize("name", ["straight_through", "zgr", "identity", "darn_mean"])
def test_thm_07_recursion(name: str) -> None:
    """Both lines of eq-03-recursion and the mean of the estimate, by sums over whole paths."""
    net, loss = ref.random_net((2, 2, 3, 2), LOGISTIC, seed=2), ref.smooth_loss(2)
    start = np.array([0.4, -1.1])
    top = ref.slopes_given(net, loss, name, 2, start)
    assert all(np.allclose(m, loss.gradient(np.array(s), 0)) for s, (m, _) in top.items())
    for k in (1, 2):
        above = ref.slopes_given(net, loss, name, k, start)
        W, b = net.weights[k], net.biases[k]
        for s, (m, second) in ref.slopes_given(net, loss, name, k - 1, start).items():
            a = W @ np.array(s) + b
            d, dd = 0.0, 0.0
            for x, (mk, Mk) in above.items():
                c = ref.factor(name, LOGISTIC, a, np.array(x))
                p = expit(np.array(x) * a).prod()
                d, dd = d + p * c * mk, dd + p * np.outer(c, c) * Mk
            assert np.allclose(m, W.T @ d) and np.allclose(second, W.T @ dd @ W)
    P, parts = ref.path_estimates(net, start, loss, 0, name)
    xs = ref.paths(net.widths)
    a = ref.pre_activations(net, start, xs)
    for k in range(3):
        above = ref.slopes_given(net, loss, name, k, start)
        m = np.stack([above[tuple(x)][0] for x in xs[k]])
        mean = P @ (ref.factor(name, LOGISTIC, a[k], xs[k]) * m)
        assert np.allclose(mean, P @ parts[k, "bias"])


@pin(
    "eq-07-parameters",
    r"""
    \begin{gathered}
    \mathbb{E}\,\widehat{\partial_{W_{ij}}\mathbb{E}L}=\mathbb{E}\bigl[c_{k,i}\,m_{k,i}(x_k)\,x_{k-1,j}\bigr],\\
    \mathbb{E}\bigl(\widehat{\partial_{W_{ij}}\mathbb{E}L}\bigr)^2=\mathbb{E}\bigl[c_{k,i}^2\,Q_{k,ii}(x_k)\,x_{k-1,j}^2\bigr].
    \end{gathered}
    """,
)
@pytest.mark.parametrize("k", [0, 1])
def test_eq_07_parameters(k: int) -> None:
    """Both sides summed over all paths; m and Q of the state above from conditional sums."""
    net, loss, x0 = ref.random_net((2, 2, 3, 2), LOGISTIC, seed=5), ref.smooth_loss(2), np.ones(2)
    p, parts = ref.path_estimates(net, x0, loss, 0, "zgr")
    xs = ref.paths(net.widths)
    a, above = ref.pre_activations(net, x0, xs), ref.slopes_given(net, loss, "zgr", k, x0)
    below = np.broadcast_to(x0, (len(p), 2)) if k == 0 else xs[k - 1]
    c = ref.factor("zgr", LOGISTIC, a[k], xs[k])
    m = np.stack([above[tuple(x)][0] for x in xs[k]])
    Q = np.stack([np.diag(above[tuple(x)][1]) for x in xs[k]])
    first = np.einsum("p,pi,pj->ij", p, c * m, below)
    second = np.einsum("p,pi,pj->ij", p, c**2 * Q, below**2)
    rows = parts[k, "weight"]
    assert np.allclose(first, np.tensordot(p, rows, 1))
    assert np.allclose(second, np.tensordot(p, rows**2, 1))


def test_thm_07_recursion_needs_layers() -> None:
    """L = x_2 (1 + x_1): the recursion misses dL/dx_1 and its correlation with the rest."""
    w, b, x1 = 0.8, 0.3, 1.0
    a = w * x1 + b
    p, c = np.array([expit(-a), expit(a)]), 2 * expit(a) * expit(-a)
    x2 = np.array([-1.0, 1.0])
    true = w * c * (1 + x1) + x2  # chain, and the direct slope
    through_x2 = np.full(2, w * c * (1 + x1))  # what the recursion carries
    assert abs(p @ true - p @ through_x2) > 0.1
    assert abs(p @ true**2 - p @ through_x2**2) > 0.1
    text = printed(containing(PATH, "second moment {second"))
    assert f"mean          {p @ true:.4f}" in text
    assert f"second moment {p @ true**2:.4f}" in text


def test_thm_07_recursion_with_noise_of_its_own() -> None:
    """c = 2 f (1 + xi/2), xi = +-1 a unit: E c and E c^2 in the places of c_i and c_i^2 suffice."""
    a, W = np.array([0.4, -0.9]), np.array([[0.7], [-1.3]])
    A, h = np.array([[1.0, 0.6], [0.6, -0.5]]), np.array([0.3, -0.2])
    f, total, carried = expit(a) * expit(-a), 0.0, 0.0
    for x in ref.states(2):
        p, v = expit(x * a).prod(), A @ x + h
        for xi in ref.states(2):
            total += p / 4 * (W.T @ (2 * f * (1 + xi / 2) * v)) ** 2
        C = np.outer(2 * f, 2 * f)
        C[np.diag_indices(2)] = 4 * f**2 * (1 + 1 / 4)
        carried += p * W.T @ (C * np.outer(v, v)) @ W
    wrong = sum(expit(x * a).prod() * (W.T @ (2 * f * (A @ x + h))) ** 2 for x in ref.states(2))
    assert np.isclose(total[0], carried[0, 0]) and total[0] > wrong[0] * 1.05


# ------------------------------------------------------------------- a linear loss, one layer down


def slope_of_density(z: Array) -> Array:
    """f' of the logistic noise: f (1 - 2 F)."""
    return expit(z) * expit(-z) * (expit(-z) - expit(z))


@pin(
    "prop-07-linear",
    r"""
    Let $L(x_K)=c^\top x_K$, and let $f$ be absolutely continuous where the $a_j$ lie for $-1\le
    x_i\le1$. The slope that arrives in layer $K-1$ with straight-through is the gradient of
    $L_{K-1}(x)=\sum_jc_j\,[2F(a_j)-1]$, with $a_j=\sum_iw_{ji}x_i+b_j$ for all real $x$; and given
    $x_{K-2}$, the estimate for unit $i$ has the bias {eq-07-linear}
    """,
)
@pin(
    "eq-07-linear",
    r"""
    f(a_i)\;\mathbb{E}\int_{-1}^1(\mu_i+t)\,\sum_jc_j\,w_{ji}^2\;2f'\bigl(a_j(x_i{=}t)\bigr)\,dt
    .
    """,
)
@seeds
def test_eq_07_linear(seed: int) -> None:
    """The integral by quadrature, the bias by sums over all paths, in a net of three layers."""
    net, start = net_of((2, 2, 3, 2), seed)
    c = np.random.default_rng(seed).normal(size=2)
    loss = loss_of(lambda x: x @ c, lambda x: np.broadcast_to(c, x.shape))
    xs = ref.paths(net.widths)
    P, a = ref.path_probabilities(net, start, xs), ref.pre_activations(net, start, xs)
    W, b = net.weights[2], net.biases[2]
    for i in range(3):

        def right(x: Array, ai: float, i: int = i) -> float:
            mu = 2 * expit(ai) - 1

            def body(t: float) -> float:
                above = W @ np.where(np.arange(3) == i, t, x) + b
                return (mu + t) * (c * W[:, i] ** 2 * 2 * slope_of_density(above)).sum()

            return expit(ai) * expit(-ai) * integrate.quad(body, -1, 1)[0]

        known: dict[tuple, float] = {}
        for x, ai in zip(xs[1], a[1][:, i], strict=True):
            key = (*x, round(ai, 12))
            if key not in known:
                known[key] = right(x, ai)
        total = sum(
            p * known[(*x, round(ai, 12))] for p, x, ai in zip(P, xs[1], a[1][:, i], strict=True)
        )
        bias = chain_mean(net, start, loss, "straight_through")[1] - exact(net, start, loss)[1]
        assert bias[i] == pytest.approx(total, abs=1e-9)
    arriving = ref.slopes_given(net, loss, "straight_through", 1, start)
    for x, (m, second) in arriving.items():  # the gradient of sum c (2F - 1), and no variance
        mean = lambda z: c @ (2 * expit(W @ z + b) - 1)  # noqa: E731
        slope = [(mean(np.array(x) + h) - mean(np.array(x) - h)) / 2e-5 for h in 1e-5 * np.eye(3)]
        assert m == pytest.approx(slope, abs=1e-9)
        assert np.allclose(second, np.outer(m, m), atol=1e-14)


def test_prop_07_linear_needs_a_density_without_jumps() -> None:
    """Uniform noise, one unit above saturated at one end: the integral is 0, the bias is not."""
    w, b, law = 0.8, 0.6, ref.RefNoise("Uniform")
    m = [2 * law.cdf(b + w * x) - 1 for x in (-1, 1)]
    mean = 0.5 * sum(w * 2 * law.pdf(b + w * x) for x in (-1, 1))  # of r, at mu = 0
    assert abs(2 * mean - (m[1] - m[0])) > 0.3


def normal_net(widths: tuple[int, ...], seed: int, size: float = 1.0, bias: float = 0.3):
    """The notebook's random networks again, from the same uniforms by scipy."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *s: ndtri(torch.rand(*s, generator=g).numpy())  # noqa: E731
    parts = [(size * draw(m, n) / n**0.5, bias * draw(m)) for n, m in itertools.pairwise(widths)]
    start = np.where(draw(1, widths[0]) > 0, 1.0, -1.0)[0]
    return tuple(p[0] for p in parts), tuple(p[1] for p in parts), start, draw


def ratio(found: list[Array], truth: list[Array]) -> tuple[float, float]:
    """Root of summed squares over summed squares, and the jackknife over networks in a loop."""
    b2 = np.array([((m - g) ** 2).sum() for m, g in zip(found, truth, strict=True)])
    g2 = np.array([(g**2).sum() for g in truth])
    n = len(b2)
    left = [math.sqrt(np.delete(b2, i).sum() / np.delete(g2, i).sum()) for i in range(n)]
    return math.sqrt(b2.sum() / g2.sum()), math.sqrt((n - 1) * np.var(left))


@pin("eq-07-relative", r"""\sqrt{\sum\|\mathrm{bias}\|^2\Big/\sum\|g\|^2},""")
def test_eq_07_relative() -> None:
    """What is printed for a hundred 3-3 networks and a linear loss, from sums over all paths."""
    table: dict[str, list] = {"g": [], "ST": [], "ZGR": []}
    for seed in range(100):
        W, b, start, draw = normal_net((3, 3, 3), seed)
        net, c = ref.RefNet(W, b, LOGISTIC), draw(3)
        loss = loss_of(lambda x, c=c: x @ c, lambda x, c=c: np.broadcast_to(c, x.shape))
        table["g"].append(exact(net, start, loss)[0])
        table["ST"].append(chain_mean(net, start, loss, "straight_through")[0])
        table["ZGR"].append(chain_mean(net, start, loss, "zgr")[0])
    text = printed(containing(PATH, "def linear_case"))
    for name in ("ST", "ZGR"):
        shown = re.search(rf"^Logistic .*?\b{name} (\S+) \+- (\S+)", text, re.M).groups()
        assert [float(v) for v in shown] == pytest.approx(ratio(table[name], table["g"]), abs=6e-4)
    assert re.search(r"^Uniform +ST 0.000 \+- 0.000  ZGR 0.000 \+- 0.000$", text, re.M)
    assert 0.1 < ratio(table["ST"], table["g"])[0] < 0.2
    assert "More than a tenth of the gradient is missed" in prose(PATH)


# --------------------------------------------------------------------------------------- PSA


@pin("eq-07-delta", r"""\Delta_{ij}=F(x_ja_j)-F\bigl(x_j\,(a_j-2w_{ji}x_i)\bigr).""")
@pytest.mark.parametrize("noise", ref.NOISES)
def test_eq_07_delta(noise: str) -> None:
    """How much P(x_j) falls: the law of the unit above at the state below and at its neighbour."""
    law, rng = ref.RefNoise(noise, 1.3), np.random.default_rng(1)
    W, b = rng.normal(size=(2, 3)), rng.normal(size=2)
    F = law.cdf
    for below in ref.states(3):
        a = W @ below + b
        for i, j in itertools.product(range(3), range(2)):
            other = below * np.where(np.arange(3) == i, -1, 1)
            for x in (-1.0, 1.0):
                up = [F(W[j] @ s + b[j]) for s in (below, other)]
                falls = up[0] - up[1] if x > 0 else (1 - up[0]) - (1 - up[1])
                right = F(x * a[j]) - F(x * (a[j] - 2 * W[j, i] * below[i]))
                assert right == pytest.approx(falls, abs=1e-14)


@pin(
    "eq-07-product",
    r"""
    \prod_jF_j-\prod_j(F_j-\Delta_{ij})=\sum_j\Delta_{ij}\prod_{l\ne
    j}F_l\;-\sum_{j<l}\Delta_{ij}\,\Delta_{il}\prod_{m\ne j,l}F_m+\dots
    """,
)
@pytest.mark.parametrize("units", [2, 3])
def test_eq_07_product(units: int) -> None:
    """Two terms are all for two units; for three the rest is + the product of the differences."""
    rng = np.random.default_rng(units)
    F, D = rng.uniform(size=units), rng.uniform(-0.5, 0.5, size=units)
    left = F.prod() - (F - D).prod()
    one = sum(D[j] * np.delete(F, j).prod() for j in range(units))
    two = sum(
        D[j] * D[k] * np.delete(F, [j, k]).prod()
        for j, k in itertools.combinations(range(units), 2)
    )
    rest = 0.0 if units == 2 else D.prod()
    assert left == pytest.approx(one - two + rest, abs=1e-15)
    assert abs(two) > 1e-3


@pin(
    "eq-07-sum",
    r"""
    \sum_{x_{k+1}}\Delta_{ij}\prod_{l\ne
    j}F_l\,L_{k+1}(x_{k+1})=\mathbb{E}\Bigl[\Delta_{ij}\,\bigl(L_{k+1}(x_{k+1})-L_{k+1}(x_{k+1,\downarrow
    j})\bigr)\Bigm|x_k\Bigr].
    """,
)
@seeds
def test_eq_07_sum(seed: int) -> None:
    """Both sides by enumeration of the layer above, for a table of values that means nothing."""
    rng = np.random.default_rng(seed)
    W, b, below = rng.normal(size=(3, 2)), rng.normal(size=3), np.array([1.0, -1.0])
    xs, L = ref.states(3), rng.normal(size=8)
    a = W @ below + b
    for i, j in itertools.product(range(2), range(3)):
        delta = expit(xs[:, j] * a[j]) - expit(xs[:, j] * (a[j] - 2 * W[j, i] * below[i]))
        rest = np.delete(expit(xs * a), j, 1).prod(1)
        turned = xs * np.where(np.arange(3) == j, -1, 1)
        bracket = L - np.array([L[(xs == s).all(1)][0] for s in turned])
        right = expit(xs * a).prod(1) @ (delta * bracket)
        assert delta * rest @ L == pytest.approx(right, abs=1e-14)
        both = delta * bracket  # the same for both values of x_j
        assert np.allclose(both, [both[(xs == s).all(1)][0] for s in turned])


@pin(
    "def-07-psa",
    r"""
    On one sampled path $x_1,\dots,x_K$ let $D_j=L(x_K)-L(x_{K,\downarrow j})$ in the last
    layer, and in the layers below {eq-07-psa} The PSA estimate for $b_{k,i}$ is
    $f(a_{k,i})\,x_{k,i}\,D_i$, with $D_i$ of layer $k$.
    """,
)
@pin("eq-07-psa", r"""D_i=\sum_j\Delta_{ij}\,D_j .""")
@pytest.mark.parametrize("both", [False, True])
def test_eq_07_psa(book: dict, both: bool) -> None:
    """Path by path from the formulas here, the notebook's `carry`, and the library's function."""
    net, start = net_of((2, 2, 3, 2), 4)
    loss = ref.smooth_loss(2, 3)
    _, costs, estimates = psa_paths(net, start, lambda x: loss.value(x, 0), both)
    xs = [torch.tensor(x) for x in ref.paths(net.widths)]
    flips = book["costs"](loss.torch, xs[-1])
    weigh = (both, both, False)
    found = book["carry"](
        torch_net(net), torch.tensor(start)[None], xs, flips, book["difference"], weigh,
        sbnlib.Logistic(),
    )  # fmt: skip
    for k, (mine, here) in enumerate(zip(estimates, found, strict=True)):
        assert np.allclose(mine, here.numpy(), rtol=1e-11, atol=1e-14), k
    model = make_net(net)
    for seed in range(8):
        path, below = [], torch.tensor(start)[None]
        g = torch.Generator().manual_seed(seed)
        for layer in model.layers:
            below = sbnlib.sample_sign(layer(below).detach(), model.noise, generator=g)
            path.append(below[0].numpy())
        (row,) = np.flatnonzero(
            np.all([(x.numpy() == s).all(1) for x, s in zip(xs, path, strict=True)], axis=0)
        )
        model.zero_grad()
        value = sbnlib.psa(
            model, torch.tensor(start)[None], loss.torch, symmetric=both,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        value.sum().backward()
        for k, layer in enumerate(model.layers):
            assert np.allclose(layer.bias.grad.numpy(), estimates[k][row], rtol=1e-11, atol=1e-14)


def test_psa_by_hand_and_from_the_library_as_printed() -> None:
    text = printed(containing(PATH, "by_hand = carry("))
    hand, library = (re.search(rf"^{n} +(\[.*\])$", text, re.M)[1] for n in ("hand", "sbnlib"))
    assert hand == library and "path" in text


@pin(
    "prop-07-psa-mean",
    r"""
    In a layered network let $m_{k,i}(x_k)=\mathbb{E}[D_i\mid x_k]$ for unit $i$ of layer $k$.
    Then $m_{K,j}(x_K)=L(x_K)-L(x_{K,\downarrow j})$ and {eq-07-psa-mean} in which $\Delta_{ij}$
    depends on $x_k$ and on the sign of $x_{k+1,j}$ only. The mean of the estimate for $b_{k,i}$
    is $\mathbb{E}[f(a_{k,i})\,x_{k,i}\,m_{k,i}(x_k)]$.
    """,
)
@pin(
    "eq-07-psa-mean",
    r"""
    m_{k,i}(x_k)=\sum_j\mathbb{E}\bigl[\Delta_{ij}\,m_{k+1,j}(x_{k+1})\bigm|x_k\bigr],
    """,
)
@seeds
def test_eq_07_psa_mean(seed: int) -> None:
    """Conditional means of D over all paths: one layer from the next, and the estimate's mean."""
    net, start = net_of((2, 2, 3, 2), seed)
    loss = ref.smooth_loss(2, seed)
    xs = ref.paths(net.widths)
    a = ref.pre_activations(net, start, xs)
    P, costs, estimates = psa_paths(net, start, lambda x: loss.value(x, 0))
    tables = []
    for k in range(3):
        table = {}
        for s in ref.states(net.widths[k]):
            here = (xs[k] == s).all(1)
            table[tuple(s)] = P[here] @ costs[k][here] / P[here].sum()
        tables.append(table)
    for k in (0, 1):
        W, b = net.weights[k + 1], net.biases[k + 1]
        for s, m in tables[k].items():
            above = W @ np.array(s) + b
            total = np.zeros(net.widths[k])
            for x, mx in tables[k + 1].items():
                y = np.array(x)
                moved = above[:, None] - 2 * W * np.array(s)
                delta = expit(y * above)[:, None] - expit(y[:, None] * moved)
                total += expit(y * above).prod() * (mx @ delta)
            assert m == pytest.approx(total, abs=1e-12)
    for s, m in tables[2].items():
        x = np.array(s)
        flip = [loss.value(x, 0) - loss.value(x * t, 0) for t in 1 - 2 * np.eye(2)]
        assert m == pytest.approx(flip, abs=1e-12)
    for k in range(3):
        m = np.stack([tables[k][tuple(x)] for x in xs[k]])
        assert P @ (expit(a[k]) * expit(-a[k]) * xs[k] * m) == pytest.approx(P @ estimates[k])


# ------------------------------------------------------------------------- where PSA is exact


@pin(
    "prop-07-last",
    r"""
    Under the assumptions of {prf:ref}`thm-07-deep`, PSA is unbiased in the last layer, for
    every loss.
    """,
)
@pytest.mark.parametrize("noise", ref.NOISES)
def test_prop_07_last(noise: str) -> None:
    law = ref.RefNoise(noise, 2.0)
    net, start = net_of((2, 2, 3), 5, law, 1.0)
    loss = ref.smooth_loss(3, 1)
    m, g = psa_mean(net, start, loss), exact(net, start, loss)
    assert off(m[1], g[1]) < 1e-13 and off(m[0], g[0]) > 1e-4


@pin(
    "prop-07-narrow",
    r"""
    If every layer above layer $k$ has one unit, PSA is unbiased in layer $k$, for every loss
    and every symmetric noise that {prf:ref}`thm-07-deep` admits.
    """,
)
@pytest.mark.parametrize("noise", ref.NOISES)
def test_prop_07_narrow(noise: str) -> None:
    law = ref.RefNoise(noise, 2.0)
    net, start = net_of((2, 3, 1, 1, 1), 6, law, 1.0)
    loss = loss_of(lambda x: np.exp(x[..., 0]))
    for m, g in zip(psa_mean(net, start, loss), exact(net, start, loss), strict=True):
        assert off(m, g) < 1e-12
    P, costs, _ = psa_paths(net, start, lambda x: loss.value(x, 0))
    table = seen(net, start, lambda x: loss.value(x, 0), 0)  # without chance: the true cost
    x = ref.paths(net.widths)[0]
    assert np.allclose(costs[0], x * flips(table, x), atol=1e-12)
    biases = []
    for seed in range(8):  # one layer of two units
        wide, start = net_of((2, 3, 2, 1), seed, law)
        m, g = psa_mean(wide, start, loss), exact(wide, start, loss)
        biases.append(np.linalg.norm(m[0] - g[0]))
    assert max(biases) > 1e-4


@pin(
    "prop-07-additive",
    r"""
    If $L(x_K)=\sum_jL^{(j)}(x_{K,j})$ is a sum of functions of single units, PSA is unbiased in
    layer $K-1$, under the assumptions of {prf:ref}`thm-07-deep`.
    """,
)
@pytest.mark.parametrize("noise", ref.NOISES)
def test_prop_07_additive(noise: str) -> None:
    law = ref.RefNoise(noise, 2.0)
    net, start = net_of((2, 2, 3, 3), 7, law, 1.5)
    loss = loss_of(lambda x: np.exp(x[..., 0]) + np.sin(2 * x[..., 1]) + x[..., 2] ** 3)
    m, g = psa_mean(net, start, loss), exact(net, start, loss)
    assert off(m[2], g[2]) < 1e-13 and off(m[1], g[1]) < 1e-12
    assert off(m[0], g[0]) > 1e-5  # not the next-to-last
    net, start = net_of((2, 3, 2), 8, law, 1.5)
    assert off(psa_mean(net, start, PAIR)[0], exact(net, start, PAIR)[0]) > 0.01  # not additive


@pin(
    "prop-07-pairs",
    r"""
    Write $L$ as a sum of products of different bits, and let no product have more than two. In
    layer $K-1$, given $x_{K-2}$, the bias of PSA for unit $i$ is {eq-07-pairs} where
    $\Delta_j\Delta_lL$ is the flip difference in $j$ of that in $l$, a constant, and
    $x_j\Delta_{ij}$ does not depend on $x_j$.
    """,
)
@pin(
    "eq-07-pairs",
    r"""
    f(a_i)\;\mu_i\;\mathbb{E}\sum_{j<l}\,(x_j\Delta_{ij})\,(x_l\Delta_{il})\;\Delta_j\Delta_lL ,
    """,
)
@seeds
def test_eq_07_pairs(seed: int) -> None:
    """Three units above and a quadratic loss in a net of three layers, given the first layer."""
    net, start = net_of((2, 2, 3, 3), seed)
    A, _, loss = quadratic(3, seed)
    xs = ref.paths(net.widths)
    P, a = ref.path_probabilities(net, start, xs), ref.pre_activations(net, start, xs)
    W, b = net.weights[2], net.biases[2]
    m, g = psa_mean(net, start, loss), exact(net, start, loss)
    for i in range(3):
        total = 0.0
        mu = 2 * expit(a[1][:, i]) - 1
        for p, x, y, ai, mui in zip(P, xs[1], xs[2], a[1][:, i], mu, strict=True):
            above = W @ x + b
            delta = expit(y * above) - expit(y * (above - 2 * W[:, i] * x[i]))
            pairs = sum(
                y[j] * delta[j] * y[k] * delta[k] * 4 * A[j, k]  # Delta_j Delta_k L = 4 A_jk
                for j, k in itertools.combinations(range(3), 2)
            )
            total += p * expit(ai) * expit(-ai) * mui * pairs
        assert (m[1] - g[1])[i] == pytest.approx(total, abs=1e-12)
    assert off(m[1], g[1]) > 1e-3


def test_prop_07_pairs_needs_no_products_of_three() -> None:
    """x_1 x_2 x_3 at mu = 0: the formula would give no bias."""
    W = (np.zeros((3, 2)), np.random.default_rng(1).normal(size=(3, 3)) * 1.2)
    net = ref.RefNet(W, (np.zeros(3), np.full(3, 0.4)), LOGISTIC)
    start = np.ones(2)
    assert off(psa_mean(net, start, CUBE)[0], exact(net, start, CUBE)[0]) > 0.01
    assert off(psa_mean(net, start, SUM)[0], exact(net, start, SUM)[0]) < 1e-13


def test_the_tables_of_cases_as_printed() -> None:
    rough = loss_of(lambda x: np.exp(x.sum(-1) / 2))
    cases = {
        "3-1-1": ((3, 3, 1, 1), rough, True), "3-2-1": ((3, 3, 2, 1), rough, False),
        "3-3 ": ((3, 3, 3), SUM, True), "3-3-3": ((3, 3, 3, 3), SUM, False),
        "3-2 ": ((3, 3, 2), PAIR, False),
    }  # fmt: skip
    text = "\n".join(printed(containing(PATH, f'show("{title}')) for title in cases)
    for title, (widths, loss, exact_there) in cases.items():
        row = re.search(rf"^{title}.*$", text, re.M)[0].split()[-5:]
        assert (row == ["0"] * 5) == exact_there and (exact_there or "0" not in row)
        for seed, shown in enumerate(row):
            W, b, start, _ = normal_net(widths, seed, 2.0)
            net = ref.RefNet(W, b, LOGISTIC)
            found = off(psa_mean(net, start, loss)[0], exact(net, start, loss)[0])
            assert found < 1e-11 if shown == "0" else abs(float(shown) - found) < 6e-4


@pin(
    "prop-07-linearized",
    r"""
    In {prf:ref}`def-07-psa` replace {eq-07-tangent} Then $D_i=2x_ir_i$ in every layer, with the
    slopes $r$ of straight-through on the same path, and the estimate $f(a_i)\,x_iD_i$ is that
    of straight-through, $2f(a_i)\,r_i$.
    """,
)
@pin(
    "eq-07-tangent",
    r"""
    D_j\;\text{of the last layer by}\;2x_j\,\partial_jL(x_K),\qquad
    \Delta_{ij}\;\text{by}\;2f(a_j)\,x_jw_{ji}x_i .
    """,
)
@pytest.mark.parametrize("noise", ref.NOISES)
@pytest.mark.parametrize("name", ["straight_through", "zgr"])
def test_prop_07_linearized(noise: str, name: str) -> None:
    """Path by path, in each layer; with the weight 1/2P in all layers it is ZGR."""
    law = ref.RefNoise(noise, 3.0)
    net, start = net_of((2, 2, 3, 2), 9, law, 0.8)
    loss = ref.smooth_loss(2, 2)
    xs = ref.paths(net.widths)
    a = ref.pre_activations(net, start, xs)
    D = 2 * xs[-1] * loss.gradient(xs[-1], 0)
    _, parts = ref.path_estimates(net, start, loss, 0, name)
    slope = loss.gradient(xs[-1], 0)
    for k in reversed(range(3)):
        if name == "zgr":
            D = D / (2 * law.prob(xs[k], a[k]))
        else:
            assert np.allclose(D, 2 * xs[k] * slope, rtol=1e-11, atol=1e-14)
        estimate = law.pdf(a[k]) * xs[k] * D
        assert np.allclose(estimate, parts[k, "bias"], rtol=1e-11, atol=1e-14)
        if k:
            below, W = xs[k - 1], net.weights[k]
            tangent = 2 * (law.pdf(a[k]) * xs[k])[:, :, None] * W * below[:, None]
            D = np.einsum("pji,pj->pi", tangent, D)
            slope = (2 * law.pdf(a[k]) * slope) @ W


def test_the_tangent_is_the_first_order_of_the_difference() -> None:
    """Delta_ij over its tangent tends to 1 as the weight goes to 0."""
    a, x, s = 0.7, -1.0, 1.0
    for w, near in ((0.1, 0.1), (1e-4, 1e-4)):
        delta = expit(x * a) - expit(x * (a - 2 * w * s))
        assert abs(delta / (2 * expit(a) * expit(-a) * x * w * s) - 1) < near


def test_prop_07_linearized_needs_the_last_difference_too() -> None:
    """Tangents in the layers, the difference at the top: straight-through of another extension."""
    net, start = net_of((2, 3, 1), 10)
    c, d = 0.6, 0.9
    loss = loss_of(lambda x: c * x[..., 0] + d * (x[..., 0] ** 2 - 1), lambda x: c + 2 * d * x)
    bare = loss_of(lambda x: c * x[..., 0], lambda x: c + 0 * x)
    xs = ref.paths(net.widths)
    a = ref.pre_activations(net, start, xs)
    D = (loss.value(xs[-1], 0) - loss.value(-xs[-1], 0))[:, None]
    D = np.einsum(
        "pji,pj->pi",
        2 * (LOGISTIC.pdf(a[1]) * xs[1])[:, :, None] * net.weights[1] * xs[0][:, None], D,
    )  # fmt: skip
    mixed = LOGISTIC.pdf(a[0]) * xs[0] * D
    for extension, same in ((bare, True), (loss, False)):
        _, parts = ref.path_estimates(net, start, extension, 0, "straight_through")
        assert np.allclose(mixed, parts[0, "bias"]) is same


def test_straight_through_as_psa_with_tangents_as_printed() -> None:
    assert printed(containing(PATH, "linearized = carry(")).rstrip().endswith("True")


# --------------------------------------------------------------------------- uniform noise


@pin(
    "prop-07-zgr",
    r"""
    Let $x_i$ be independent units with $0<F(a_i)<1$ and $F$ differentiable at $a_i$, and let
    $L$ be a polynomial of degree at most two in $x_i$ for fixed other units. Then {eq-07-zgr}
    """,
)
@pin(
    "eq-07-zgr",
    r"""
    \mathbb{E}\Bigl[\frac{f(a_i)}{P(x_i\mid
    a_i)}\,\partial_iL(x)\Bigr]=f(a_i)\,\mathbb{E}\,\Delta_iL(x).
    """,
)
@pytest.mark.parametrize("noise", ref.NOISES)
def test_eq_07_zgr(noise: str) -> None:
    """Both sides by enumeration, for a product of quadratics of three bits."""
    law, loss = ref.RefNoise(noise), ref.coordinatewise_quadratic_loss(3, 2)
    a, x = np.array([0.5, -0.8, 0.2]), ref.states(3)
    P = law.prob(x, a).prod(1)
    left = P @ (law.pdf(a) / law.prob(x, a) * loss.gradient(x, 0))
    table = {tuple(s): float(v) for s, v in zip(x, loss.value(x, 0), strict=True)}
    assert left == pytest.approx(law.pdf(a) * (P @ flips(table, x)), abs=1e-13)


def test_prop_07_zgr_needs_at_most_squares() -> None:
    """x^3: 6 f where 2 f is due."""
    f, P = LOGISTIC.pdf(0.4), LOGISTIC.prob(np.array([-1.0, 1.0]), 0.4)
    assert P @ (f / P * 3) == pytest.approx(6 * f)
    assert f * (1 - -1) == pytest.approx(2 * f)
    assert "the left side is $6f$, and the right side $2f$" in prose(PATH)


def tame(seed: int, widths: tuple[int, ...], slack: float = 1.01) -> tuple[ref.RefNet, Array]:
    """Every ||w_j||_1 + |b_j| is below the scale of the uniform noise, the largest just below."""
    net, start = net_of(widths, seed, gain=1.0)
    norm = max(
        (np.abs(W).sum(1) + np.abs(b)).max() for W, b in zip(net.weights, net.biases, strict=True)
    )
    return ref.RefNet(net.weights, net.biases, ref.RefNoise("Uniform", slack * norm)), start


@pin(
    "thm-07-uniform",
    r"""
    Let the network be layered, with noise that is uniform on $[-\sigma,\sigma]$ and with no
    saturated unit: $|a_{1,i}|<\sigma$ in the first layer, and $\|w_j\|_1+|b_j|<\sigma$ for
    every unit of the others. Let $L$ be a polynomial of degree at most two, with second
    derivatives $A_K=A$. Then deep ZGR is unbiased for the weights and biases of every layer.
    Moreover, $L_k$ is on the states a polynomial of degree at most two whose gradient is the
    mean slope $m_k$ of ZGR, and whose second derivatives are {eq-07-quadratic}
    """,
)
@pin(
    "eq-07-quadratic",
    r"""
    A_{k-1}=\frac1{\sigma^2}\,W_k^\top\,(A_k-\operatorname{diag}A_k)\,W_k .
    """,
)
@pytest.mark.parametrize("widths", [(2, 3, 3), (2, 3, 2, 3), (2, 2, 2, 2, 2)])
@seeds
def test_thm_07_uniform(widths: tuple[int, ...], seed: int) -> None:
    """Every weight and bias, and the second derivatives of the losses that the layers see."""
    net, start = tame(seed, widths)
    A, _, loss = quadratic(widths[-1], seed)
    P, parts = ref.path_estimates(net, start, loss, 0, "zgr")
    truth = ref.gradient_one(net, start, loss, 0)
    for key, g in truth.items():
        assert np.tensordot(P, parts[key], 1) == pytest.approx(g, abs=1e-12)
    for k in reversed(range(1, len(net.widths))):
        W, scale = net.weights[k], net.noise.scale
        A = W.T @ (A - np.diag(np.diag(A))) @ W / scale**2
        table = seen(net, start, lambda x: loss.value(x, 0), k - 1)
        arriving = ref.slopes_given(net, loss, "zgr", k - 1, start)
        x = ref.states(net.widths[k - 1])
        slope = np.stack([arriving[tuple(s)][0] for s in x])
        o = slope - x @ A  # the linear part: the same at each state
        assert np.allclose(o, o[0], atol=1e-12)
        here = 0.5 * ((x @ A) * x).sum(1) + x @ o[0]
        there = np.array([table[tuple(s)] for s in x])
        assert np.allclose(here - here[0], there - there[0], atol=1e-12)


@pytest.mark.parametrize("dropped", ["uniform", "unsaturated", "degree two"])
def test_thm_07_uniform_needs(dropped: str) -> None:
    net, start = tame(3, (2, 3, 3))
    _, _, loss = quadratic(3, 3)
    if dropped == "uniform":
        net = ref.RefNet(net.weights, net.biases, ref.RefNoise("Triangular", net.noise.scale))
    if dropped == "unsaturated":
        net = ref.RefNet(net.weights, net.biases, ref.RefNoise("Uniform", net.noise.scale / 2))
    if dropped == "degree two":
        loss = CUBE
    means, truth = chain_mean(net, start, loss, "zgr"), exact(net, start, loss)
    assert off(means[0], truth[0]) > 1e-3
    if dropped == "degree two":
        assert off(means[1], truth[1]) < 1e-12  # in one layer products are exact


def test_thm_07_uniform_in_the_first_layer() -> None:
    """Beyond the edge gradient and estimate are zero; on the edge there is no gradient."""
    net, start = tame(4, (2, 2, 2))
    _, _, loss = quadratic(2, 4)
    W, (b1, b2), scale = net.weights, net.biases, net.noise.scale

    def at(a: float) -> ref.RefNet:
        shifted = b1.copy()
        shifted[0] = a - W[0][0] @ start
        return ref.RefNet(W, (shifted, b2), net.noise)

    def mean(a: float) -> float:
        return float(ref.expectation(at(a), start[None], loss)[0])

    assert mean(1.2 * scale) == pytest.approx(mean(1.3 * scale), abs=1e-14)
    assert chain_mean(at(1.2 * scale), start, loss, "zgr")[0][0] == 0
    h = 1e-6 * scale
    left, right = (mean(scale) - mean(scale - h)) / h, (mean(scale + h) - mean(scale)) / h
    assert abs(left) > 1e-3 and abs(right) < 1e-9


@pin(
    "prop-07-diagonal",
    r"""
    Under the assumptions of {prf:ref}`thm-07-uniform` the mean slope of straight-through is the
    gradient of the mean-field loss above layer $k$, in which each unit puts out its mean; its
    second derivatives obey {eq}`eq-07-quadratic` without the subtraction. PSA is
    straight-through applied to $L-\frac12\sum_iA_{ii}x_i^2$, that is, with the subtraction in
    the last layer only. Both are unbiased in all layers for linear $L$.
    """,
)
@pytest.mark.parametrize("widths", [(2, 3, 3), (2, 3, 2, 3), (2, 2, 2, 2, 2)])
@seeds
def test_prop_07_diagonal(widths: tuple[int, ...], seed: int) -> None:
    """Both means are gradients of a mean-field loss; without A all are exact."""
    net, start = tame(seed, widths)
    A, c, loss = quadratic(widths[-1], seed)
    bare = A - np.diag(np.diag(A))

    def mean_field(b: Array, k: int, x: Array, matrix: Array) -> float:
        """The loss at the means passed up from the bias b of layer k and the state x below it."""
        z = (net.weights[k] @ x + b) / net.noise.scale
        for W, d in zip(net.weights[k + 1 :], net.biases[k + 1 :], strict=True):
            z = (W @ z + d) / net.noise.scale
        return 0.5 * z @ matrix @ z + c @ z

    xs = ref.paths(net.widths)
    P = ref.path_probabilities(net, start, xs)
    means = {
        "ST": (chain_mean(net, start, loss, "straight_through"), A),
        "PSA": (psa_mean(net, start, loss), bare),
    }
    for k in range(len(net.widths)):
        below = np.broadcast_to(start, (len(P), len(start))) if k == 0 else xs[k - 1]
        for mean, matrix in means.values():
            total = sum(
                P[(below == s).all(1)].sum() * ref.finite_difference(
                    lambda b, s=s, k=k, m=matrix: mean_field(b, k, s, m), net.biases[k]
                )
                for s in np.unique(below, axis=0)
            )  # fmt: skip
            assert mean[k] == pytest.approx(total, abs=1e-9)
    assert off(means["ST"][0][0], exact(net, start, loss)[0]) > 1e-3
    assert off(means["PSA"][0][0], exact(net, start, loss)[0]) > 1e-5
    line = loss_of(lambda x: x @ c, lambda x: np.broadcast_to(c, x.shape))
    for name in ("straight_through", "zgr"):
        for m, g in zip(chain_mean(net, start, line, name), exact(net, start, line), strict=True):
            assert off(m, g) < 1e-11
    for m, g in zip(psa_mean(net, start, line), exact(net, start, line), strict=True):
        assert off(m, g) < 1e-11


def tame_again(seed: int, depth: int, scale: float, law: str = "Uniform"):
    """The notebook's scaled networks and quadratic losses, from the same uniforms."""
    W, b, start, draw = normal_net((3,) * (depth + 1), seed)
    A, c = draw(3, 3), draw(3)
    size = [(np.abs(w).sum(1) + np.abs(d)).max() for w, d in zip(W, b, strict=True)]
    net = ref.RefNet(
        tuple(w / s for w, s in zip(W, size, strict=True)),
        tuple(d / s for d, s in zip(b, size, strict=True)),
        ref.RefNoise(law, scale),
    )
    S = A + A.T
    return net, start, loss_of(lambda x: 0.5 * ((x @ S) * x).sum(-1) + x @ c, lambda x: x @ S + c)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "scale", "law", "loss"),
    [
        (0, 1.01, "Uniform", None), (1, 1.01, "Uniform", SUM), (2, 1.01, "Uniform", CUBE),
        (3, 0.5, "Uniform", None), (4, 0.5, "Logistic", None),
    ],
)  # fmt: skip
def test_the_table_of_dropped_assumptions(row: int, scale: float, law: str, loss: object) -> None:
    """A hundred networks of 512 paths each."""
    found: dict[str, list] = {"g": [], "ST": [], "ZGR": [], "PSA": []}
    for seed in range(100):
        net, start, own = tame_again(seed, 3, scale, law)
        of = loss or own
        found["g"].append(exact(net, start, of)[0])
        found["ST"].append(chain_mean(net, start, of, "straight_through")[0])
        found["ZGR"].append(chain_mean(net, start, of, "zgr")[0])
        found["PSA"].append(psa_mean(net, start, of)[0])
    text = printed(containing(PATH, "def three_layers")).splitlines()[1 + row]
    shown = re.findall(r"(?<!\S)(0(?!\.)|\d\.\d{3} \+- \d\.\d{3})", text[25:])
    assert len(shown) == 3
    for name, words in zip(("ST", "ZGR", "PSA"), shown, strict=True):
        value, se = ratio(found[name], found["g"])
        if words == "0":
            assert value < 1e-11
        else:
            assert [float(v) for v in words.split(" +- ")] == pytest.approx([value, se], abs=6e-4)


def test_an_unsaturated_network_loses_its_gradient() -> None:
    """||w_j||_1 is about 0.8 sqrt(n), and the mean square slope shrinks by 1/sigma^2 a layer."""
    rng = np.random.default_rng(0)
    for n in (64, 256):
        W = rng.normal(size=(400, n)) / n**0.5
        assert np.abs(W).sum(1).mean() / n**0.5 == pytest.approx(0.798, abs=0.01)
        r, scale = rng.normal(size=(n,)), 0.9 * n**0.5
        W = rng.normal(size=(200, n, n)) / n**0.5
        below = np.einsum("sji,j->si", W, r / scale)
        assert (below**2).sum(1).mean() / (r @ r) == pytest.approx(1 / scale**2, rel=0.05)
    assert "about $0.8\\sqrt n$" in prose(PATH) and "is then $1/\\sigma^2$ times" in prose(PATH)


# ------------------------------------------------------------------------------ from both sides


@pin(
    "prop-07-both",
    r"""
    Let $0<F(a)<1$ in the layers below the last, and in these layers replace $D_i$ by
    {eq-07-both} Write the losses $L_{k+1},\dots,L_K$ that the layers above layer $k$ see as
    sums of products of different bits. If there are only products of one or two bits in them,
    the estimate is unbiased in layer $k$, under the assumptions of {prf:ref}`thm-07-deep`. It
    is also unbiased for every loss if no layer above layer $k$ has more than two units; for
    losses of degree at most two in layer $K-1$, and in all layers under the assumptions of
    {prf:ref}`thm-07-uniform`. Its linearization {eq}`eq-07-tangent`, with the weight $1/2P$ in
    the last layer as well (where then $0<F(a)<1$ too), is ZGR.
    """,
)
@pin("eq-07-both", r"""\frac{1}{2P(x_i\mid a_i)}\sum_j\Delta_{ij}D_j .""")
@seeds
def test_prop_07_both(seed: int) -> None:
    """The three cases that the statement names, and what fails just outside each of them."""
    loss = ref.smooth_loss(2, seed)
    net, start = net_of((2, 3, 2, 2), seed)  # two units above each layer, any loss
    for m, g in zip(psa_mean(net, start, loss, True), exact(net, start, loss), strict=True):
        assert off(m, g) < 1e-11
    net, start = net_of((2, 2, 3, 3), seed)  # degree two, the last two layers
    _, _, square = quadratic(3, seed)
    m, g = psa_mean(net, start, square, True), exact(net, start, square)
    assert max(off(m[k], g[k]) for k in (1, 2)) < 1e-11 and off(m[0], g[0]) > 1e-8
    m, g = psa_mean(net, start, CUBE, True), exact(net, start, CUBE)
    assert off(m[2], g[2]) < 1e-11 and off(m[1], g[1]) > 1e-6
    net, start = tame(seed, (2, 3, 2, 3))  # uniform noise
    for m, g in zip(psa_mean(net, start, square, True), exact(net, start, square), strict=True):
        assert off(m, g) < 1e-11


def test_prop_07_both_needs_the_weight_below_the_last_layer_in_each() -> None:
    """Weights in the layer itself only, not in the one above it: biased with two units above."""
    net, start = net_of((2, 3, 2, 2), 1)
    loss = ref.smooth_loss(2, 1)
    xs = ref.paths(net.widths)
    a, P = ref.pre_activations(net, start, xs), ref.path_probabilities(net, start, xs)
    _, costs, _ = psa_paths(net, start, lambda x: loss.value(x, 0))
    half = LOGISTIC.pdf(a[0]) * xs[0] * costs[0] / (2 * LOGISTIC.prob(xs[0], a[0]))
    assert off(P @ half, exact(net, start, loss)[0]) > 1e-4


def scored_again(widths: tuple[int, ...], seed: int):
    W, b, start, draw = normal_net(widths, seed, 2.0, 0.0)
    r = np.where(draw(widths[-1]) > 0, 1.0, -1.0)
    u = 2 / widths[-1] ** 0.5
    loss = loss_of(
        lambda x: np.logaddexp(0, u * (x @ r)), lambda x: expit(u * (x @ r))[..., None] * u * r
    )
    return ref.RefNet(W, b, LOGISTIC), start, loss


def four_rules(widths: tuple[int, ...]) -> tuple[Array, Array, list[Array]]:
    """Squared bias and variance of the four rules over the gradients' squares, a hundred nets."""
    g2, b2, var, each = 0.0, np.zeros(4), np.zeros(4), []
    for seed in range(100):
        net, start, loss = scored_again(widths, seed)
        g = exact(net, start, loss)[0]
        value = lambda x, loss=loss: loss.value(x, 0)  # noqa: E731
        rules = [ref.path_estimates(net, start, loss, 0, n) for n in ("straight_through", "zgr")]
        rules = [(P, parts[0, "bias"]) for P, parts in rules]
        rules += [psa_paths(net, start, value, both)[::2] for both in (False, True)]
        rules = [(P, e if isinstance(e, np.ndarray) else e[0]) for P, e in rules]
        means = [P @ e for P, e in rules]
        b2 += [((m - g) ** 2).sum() for m in means]
        v = np.array([(P @ (e - m) ** 2).sum() for (P, e), m in zip(rules, means, strict=True)])
        var, g2 = var + v, g2 + g @ g
        each.append(v)
    return b2 / g2, var / g2, each


TABLE = {"3-2": (3, 3, 2), "3-3": (3, 3, 3), "2-3-2": (3, 2, 3, 2)}


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[Array, Array, list[Array]]]:
    with as_in_the_book():
        return {title: four_rules(widths) for title, widths in TABLE.items()}


@pytest.mark.parametrize("title", TABLE)
def test_the_table_of_both_parts(title: str, measured: dict) -> None:
    square, variance, _ = measured[title]
    text = printed(containing(PATH, "better than PSA from B"))
    for j, name in enumerate(("ST", "ZGR", "PSA", "PSA, both")):
        line = re.search(rf"^{title} +{name} +(\d\.\d+) +(\d+\.\d+)(?: +(\d+))?$", text, re.M)
        assert float(line[1]) == pytest.approx(square[j], abs=6e-5)
        assert float(line[2]) == pytest.approx(variance[j], abs=6e-3)
        if name == "PSA, both":
            B = (variance[3] - variance[2]) / (square[2] - square[3])
            assert int(line[3]) == math.ceil(B)


def test_what_the_words_say_of_both_parts(measured: dict) -> None:
    words = prose(PATH)
    more = {t: v[3] / v[2] for t, (_, v, _) in measured.items()}
    assert round(more["3-2"], 1) == 2.6 and round(more["3-3"], 1) == 2.3
    assert round(more["2-3-2"]) == 36
    assert "2.6 and 2.3 times PSA's" in words and "36 times" in words
    assert measured["3-2"][0][3] < 1e-20 and measured["3-3"][0][3] < 1e-20
    square = measured["2-3-2"][0]
    assert 10 < square[2] / square[3] < 12 and "to about a tenth of PSA" in words
    share = np.array([v[3] for v in measured["2-3-2"][2]])
    assert 0.4 < share.max() / share.sum() < 0.5 and "nearly half of it" in words
    for square, _, _ in measured.values():
        assert square[3] < square[2] < square[1] < square[0]


def test_the_score_s_loss_has_no_product_of_three() -> None:
    """log(1 + e^s) - s/2 is even in s, and so in all signs together."""
    x = ref.states(3)
    value = np.logaddexp(0, 2 / 3**0.5 * x.sum(1))
    assert abs(value @ x.prod(1)) < 1e-12 and abs(value @ (x[:, 0] * x[:, 1])) > 0.1
    assert "$\\tfrac12s$ plus an even function of $s$" in prose(PATH)


# ------------------------------------------------------------------------------- exercises


@pytest.fixture(params=["check", "check_saturated"])
def space(request: pytest.FixtureRequest) -> dict:
    """The notebook's checkers and their solutions, run as they stand."""
    before = run(PATH, naming(PATH, "checker", request.param))
    solution = naming(PATH, "solution", request.param)
    return run(PATH, solution, define(PATH, *NAMES) | before)


def test_the_checkers_accept_their_solutions(space: dict) -> None:
    assert space["ok"] is True


def linear_bias(a: torch.Tensor, W: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """The right answer by sums over all paths, in numpy."""
    a, W, b, c = (t.numpy() for t in (a, W, b, c))
    net = ref.RefNet((np.diag(a), W), (np.zeros(3), b), LOGISTIC)
    loss = loss_of(lambda x: x @ c, lambda x: np.broadcast_to(c, x.shape))
    start = np.ones(3)
    bias = chain_mean(net, start, loss, "straight_through")[0] - exact(net, start, loss)[0]
    return torch.tensor(bias)


WRONG = {
    "the other sign": (lambda *v: -linear_bias(*v), "the sign"),
    "zeros": (lambda a, W, b, c: 0 * a, "not the bias"),
    "no factor": (
        lambda a, *v: linear_bias(a, *v) / (torch.sigmoid(a) * torch.sigmoid(-a)), "density"
    ),
    "summed": (lambda *v: linear_bias(*v).sum(), "shape ()"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_checker_names_what_is_wrong(name: str, capsys: pytest.CaptureFixture) -> None:
    check = checker(PATH)
    answer, hint = WRONG[name]
    assert check(linear_bias) is True
    capsys.readouterr()
    assert check(answer) is False and hint in capsys.readouterr().out


def test_ex_07_saturate_by_hand() -> None:
    law = ref.RefNoise("Uniform")
    net = ref.RefNet((np.zeros((1, 1)), np.array([[0.8]])), (np.zeros(1), np.array([0.6])), law)
    loss = loss_of(lambda x: x[..., 0], lambda x: 1 + 0 * x)
    m, g = chain_mean(net, np.ones(1), loss, "zgr")[0], exact(net, np.ones(1), loss)[0]
    assert g == pytest.approx([0.6]) and m == pytest.approx([0.4])
    assert (m - g) / g == pytest.approx([-1 / 3])


def test_ex_07_exact_as_printed() -> None:
    uniform, bit = ref.RefNoise("Uniform", 20.0), loss_of(lambda x: np.exp(x[..., 0]))
    cases = {
        "a": ((3, 3, 1, 1), bit, LOGISTIC, False), "b": ((3, 3, 2, 2), SUM, LOGISTIC, False),
        "c": ((3, 3, 2, 2), SUM, uniform, False), "d": ((3, 3, 2), PAIR, LOGISTIC, False),
        "e": ((3, 3, 3), CUBE, LOGISTIC, True), "f": ((3, 3, 2, 2), PAIR, LOGISTIC, True),
    }  # fmt: skip
    text = dict(k.split(" ", 1) for k in printed(containing(PATH, "def silent")).splitlines())
    for name, (widths, loss, law, both) in cases.items():
        W, b, start, _ = normal_net(widths, 1, 2.0)
        if name == "d":
            W, b = (0 * W[0], *W[1:]), (0 * b[0], *b[1:])
        net = ref.RefNet(W, b, law)
        found = off(psa_mean(net, start, loss, both)[0], exact(net, start, loss)[0])
        assert text[name] == ("exact" if found < 1e-11 else f"{found:.3f}"), name


def test_ex_07_exact_mistakes() -> None:
    """The letters are those that are printed as exact."""
    check, text = checker(PATH, "check_exact"), printed(containing(PATH, "def silent"))
    assert check(re.findall(r"^(\w) exact$", text, re.M))
    says_to(check, {"cdf": "a: ", "abcdf": "b: ", "adf": "c: ", "acf": "d: ", "acdef": "e: ",
                    "acd": "f: "})  # fmt: skip


def test_ex_07_additive() -> None:
    """Exact in every layer, and without variance given the state of the layer."""
    net, start = tame(2, (2, 3, 2, 3))
    c = np.array([0.4, -1.0, 0.7])
    P, costs, estimates = psa_paths(net, start, lambda x: x @ c)
    loss = loss_of(lambda x: x @ c, lambda x: np.broadcast_to(c, x.shape))
    for k, (e, g) in enumerate(zip(estimates, exact(net, start, loss), strict=True)):
        assert off(P @ e, g) < 1e-11
        x = ref.paths(net.widths)[k]
        assert np.allclose(x * costs[k], (x * costs[k])[0], atol=1e-12)
    rough = ref.RefNet(net.weights, net.biases, ref.RefNoise("Uniform", net.noise.scale / 2.5))
    _, costs, _ = psa_paths(rough, start, lambda x: x @ c)
    x = ref.paths(net.widths)[0]
    assert np.ptp(x * costs[0], axis=0).max() > 1e-3


def test_ex_07_budget_as_printed(measured: dict) -> None:
    square, spread, _ = measured["2-3-2"]
    text = printed(containing(PATH, "B_star = "))
    assert f"B* = {(spread[3] - spread[2]) / (square[2] - square[3]):.0f}" in text
    for B in (1, 1000):
        error = dict(zip(("ST", "ZGR", "PSA", "PSA, both"), square + spread / B, strict=True))
        line = re.search(rf"^B = +{B}: (.*)$", text, re.M)[1]
        shown = re.findall(r"(ST|ZGR|PSA, both|PSA) (\d+\.\d{3})", line)
        assert [n for n, _ in shown] == sorted(error, key=error.get)
        assert all(float(v) == pytest.approx(error[n], abs=6e-4) for n, v in shown)


# ------------------------------------------------------------------------- what the figures draw


@pytest.mark.parametrize(("w", "b"), [(1.5, 0.5), (5.0, -2.5)])
def test_fig_flip(w: float, b: float) -> None:
    left, right = curves(PATH, "flip", w=w, b=b)
    for (at, law), x in zip(left, (-1, 1), strict=True):
        a = np.array([w * x + b, -w / 2 * x + 0.5])
        assert law == pytest.approx([expit(s * a).prod() for s in ref.states(2)], abs=1e-12)
        assert at == pytest.approx(np.arange(4) + 0.09 * x)
    mean = lambda t: 2 * expit(b + w * np.asarray(t)) - 1  # noqa: E731
    assert right[0][1] == pytest.approx(mean(right[0][0]), abs=1e-12)
    assert right[1].T.tolist() == [pytest.approx([t, mean(t)]) for t in (-1, 1)]
    for tangent, x in ((right[2], -1.0), (right[4], 1.0)):
        rise = np.diff(tangent[1]) / np.diff(tangent[0])
        assert rise == pytest.approx((mean(x + 1e-5) - mean(x - 1e-5)) / 2e-5, abs=1e-8)
        assert tangent.mean(1) == pytest.approx([x, mean(x)])


def test_what_fig_flip_answers() -> None:
    slope = lambda a, w: 2 * w * expit(a) * expit(-a)  # noqa: E731
    chord = lambda w, b: expit(b + w) - expit(b - w)  # noqa: E731
    assert slope(5, 5) < 0.07 and chord(5, 0) > 0.98
    assert round(slope(0, 2.5) / chord(2.5, 2.5), 1) == 2.5
    assert slope(0.5, 0.5) / chord(0.5, 0) == pytest.approx(0.96, abs=0.005)
    assert "two and a half times as steep" in under(figures(PATH)["fig-07-flip"])["answer"]
    axis = drawing(PATH, "flip").__globals__["FOUR"]
    assert axis == ["− −", "− +", "+ −", "+ +"]


EXPONENTIAL = loss_of(
    lambda x: np.exp(x @ np.linspace(0.9, 0.3, x.shape[-1])),
    lambda x: (
        np.linspace(0.9, 0.3, x.shape[-1])
        * np.exp(x @ np.linspace(0.9, 0.3, x.shape[-1]))[..., None]
    ),
)
SQUARES = loss_of(  # at most quadratic in each coordinate, no degree
    lambda x: x[..., 0] ** 2 * x[..., 1] + x[..., 0] * x[..., 1],
    lambda x: np.stack([2 * x[..., 0] * x[..., 1] + x[..., 1], x[..., 0] ** 2 + x[..., 0]], -1),
)
SUM_OF_EXP = loss_of(lambda x: np.exp(x).sum(-1), np.exp)
OF_A_WORD = {
    "any": EXPONENTIAL, "additive": SUM_OF_EXP, "linear": SUM, "multilinear": PAIR,
    "coordinatewise quadratic": SQUARES, "degree 2": PAIR,
}  # fmt: skip
#: widths above the input, noise, layers of which the row speaks, a loss that a blank cell fails
OF_A_ROW = {
    "last layer": ((3, 3, 2), LOGISTIC, [1], EXPONENTIAL),
    "next-to-last layer": ((3, 3, 2), LOGISTIC, [0], SUM),
    "at most one unit in each layer above": ((3, 3, 1, 1), LOGISTIC, [0], EXPONENTIAL),
    "at most two units in each layer above": ((3, 3, 2, 2), LOGISTIC, [0], EXPONENTIAL),
    "every layer, uniform noise, no unit saturated": ((3, 3, 3, 2), None, [0, 1, 2], EXPONENTIAL),
}


def test_every_cell_of_the_table_of_exactness() -> None:
    text = prose(PATH).replace("&nbsp;", " ")  # in a cell that would be broken else
    lines = re.findall(r"^\| .+ \|$", text[text.index("| exact in |") :], re.M)[:7]
    table = [[c.strip() for c in line.strip("|").split("|")] for line in lines if "---" not in line]
    assert table[0] == ["exact in", "ST", "ZGR", "PSA", "PSA, both"]
    assert [row[0] for row in table[1:]] == list(OF_A_ROW)
    for row, *cells in table[1:]:
        widths, noise, layers, hard = OF_A_ROW[row]
        net, start = net_of(widths, 4) if noise else tame(4, widths)
        for j, cell in enumerate(cells):
            loss = OF_A_WORD[cell] if cell else hard
            if j < 2:
                means = chain_mean(net, start, loss, ("straight_through", "zgr")[j])
            else:
                means = psa_mean(net, start, loss, both=j == 3)
            worst = max(off(means[k], exact(net, start, loss)[k]) for k in layers)
            assert worst < 1e-11 if cell else worst > 1e-3, (row, table[0][j + 1], worst)


@pytest.mark.parametrize("panel", [0, 1])
def test_fig_corner(panel: int) -> None:
    """The strips and the two rectangles; in the area of the strips the corner counts 2 or 0."""
    F, moved = expit([0.8, 0.3]), expit([0.8 - 1.0, 0.3 - 1.4])
    here = (F, moved)[panel]
    drawn = lines(still(PATH, "fig-07-corner")[panel])
    boxes = [[drawn[k][0].min(), drawn[k][0].max(), drawn[k][1].min(), drawn[k][1].max()]
             for k in (0, 1)]  # fmt: skip
    assert boxes[0] == pytest.approx([moved[0], F[0], 0, here[1]])
    assert boxes[1] == pytest.approx([0, here[0], moved[1], F[1]])
    assert drawn[2].T.tolist() == [pytest.approx(p) for p in ([0, F[1]], F, [F[0], 0])]
    assert drawn[3].T.tolist() == [pytest.approx(p) for p in ([0, moved[1]], moved, [moved[0], 0])]
    area = sum((x1 - x0) * (y1 - y0) for x0, x1, y0, y1 in boxes)
    corner = (F - moved).prod()
    assert area - (F.prod() - moved.prod()) == pytest.approx((1, -1)[panel] * corner)
    caption = under(figures(PATH)["fig-07-corner"])["caption"]
    assert f"$F_1={F[0]:.2f}$ and $F_2={F[1]:.2f}$" in caption


def few_layers(K: int, scale: float) -> tuple[list[float], list[float]]:
    """Relative bias of the first layer and lengths by layer: the last K of the ten layers."""
    found: dict[str, list] = {"g": [], "ST": [], "ZGR": [], "PSA": []}
    squares = np.zeros(K)
    for seed in range(8):
        net, start, loss = tame_again(seed, 10, scale)
        net = ref.RefNet(net.weights[-K:], net.biases[-K:], net.noise)
        g = exact(net, start, loss)
        squares += [(v**2).sum() for v in g]
        found["g"].append(g[0])
        found["ST"].append(chain_mean(net, start, loss, "straight_through")[0])
        found["ZGR"].append(chain_mean(net, start, loss, "zgr")[0])
        found["PSA"].append(psa_mean(net, start, loss)[0])
    return (
        [ratio(found[n], found["g"])[0] for n in ("ST", "ZGR", "PSA")],
        list(np.sqrt(squares / squares[-1])),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("K", "scale"), [(1, 0.65), (3, 0.65), (3, 1.05)])
def test_fig_depth_and_noise(K: int, scale: float) -> None:
    """At two scales and two depths, by sums over all paths; zero is drawn at 1e-4."""
    left, right = curves(PATH, "depth_and_noise", K=K, scale=scale)
    bias, length = few_layers(K, scale)
    for (at, y), expected in zip(left[:3], bias, strict=True):
        (k,) = np.flatnonzero(np.isclose(at, scale))
        assert 10 ** y[k] == pytest.approx(max(expected, 1e-4), rel=1e-9)
    assert left[3][0] == pytest.approx([scale, scale])
    assert right[0][0].tolist() == list(range(1, K + 1))
    assert 10 ** right[0][1] == pytest.approx(length, rel=1e-9)


@pytest.mark.slow
def test_what_fig_depth_answers() -> None:
    table = drawing(PATH, "depth_and_noise").__globals__["by_depth"]
    scales = sorted(table)
    assert len(scales) == 10 and 1.0 not in scales
    for scale in scales:
        st, zgr, psa = table[scale][0]
        assert (max(zgr) < 1e-10) == (scale > 1) and zgr[0] < 1e-12 and psa[0] < 1e-12
        assert st.min() > 0.01 and psa[1:].min() > 0.01
    assert min(v[2] for v in table[0.95][0]) > 0.1
    ends = table[1.05][1][9]
    assert ends[0] / ends[-1] < 1e-3 and table[0.35][1][9][0] > 50 * ends[0]
    for j in (0, 1):
        assert 0.9 < table[0.35][0][j][9] < 1.1
    answer = under(figures(PATH)["fig-07-depth"])["answer"]
    assert "less than a thousandth" in " ".join(answer.split())


# ----------------------------------------------------------------------------- the law of width


STORED: Path = PATH.parents[1] / "measurements" / "width-law.json"
ORDER = {"ST": "straight_through", "ZGR": "zgr", "PSA": "psa", "PSA, both": "psa_symmetric"}


@pytest.fixture(scope="module")
def law() -> list[dict]:
    return measurement.read(STORED)["rows"]


def of(law: list[dict], name: str, layers: int) -> Array:
    """Width, relative bias and error of an estimator: (3, points)."""
    rows = [
        r for r in law
        if r["part"] == "width" and (r["estimator"], r["layers"]) == (ORDER[name], layers)
    ]  # fmt: skip
    return np.array([[r["width"], r["relative_bias"], r["se"]] for r in rows]).T


@pytest.mark.parametrize("panel", [0, 1])
def test_fig_width(law: list[dict], panel: int) -> None:
    """fig-07-width: the stored points with their errors, and the dashed orders through n = 10."""
    (axis, layers) = still(PATH, "fig-07-width")[panel], (2, 3)[panel]
    bars = {c.get_label(): c for c in axis.containers}
    dashed = [k for k in axis.lines if k.get_linestyle() == "--"]
    for name in ORDER:
        points = of(law, name, layers)
        points = points[:, points[1] > 1e-9]
        at, y = bars[name].lines[0].get_data()
        assert np.allclose([at, y], points[:2])
        (segments,) = (c.get_segments() for c in bars[name].lines[2])
        for (low, high), (_, value, se) in zip(segments, points.T, strict=True):
            reach = min(se, 0.9 * value)
            assert [low[1], high[1]] == pytest.approx([value - reach, value + reach])
    for line, name, order in zip(dashed, ("ST", "ZGR", "PSA"), (-0.5, -1.0, -0.5), strict=True):
        n, y = line.get_data()
        points = of(law, name, layers)
        anchor = points[1][points[0] == 10][0]
        assert np.allclose(y, anchor * (n / 10) ** order)


def weighted_fit(law: list[dict], name: str, layers: int) -> tuple[float, float, float, int]:
    """Exponent, its error, chi2 and degrees of freedom: squares fitted by scipy, by one a width."""
    rows = [
        r for r in law
        if r["part"] == "width" and (r["estimator"], r["layers"]) == (ORDER[name], layers)
    ]  # fmt: skip
    widths = sorted({r["width"] for r in rows if r["width"] >= 4})
    best = [
        min((r for r in rows if r["width"] == n), key=lambda r: r["method"] != "exact")
        for n in widths
    ]
    n, y, se = (np.array([r[k] for r in best], float) for k in ("width", "square", "square_se"))
    model = lambda n, c, b: np.exp(c) * n**b  # noqa: E731
    start = [float(np.log(y[0])) + np.log(n[0]), -1.0]
    beta, covariance = optimize.curve_fit(model, n, y, start, se, absolute_sigma=True)
    rest = (y - model(n, *beta)) / se
    return beta[1] / 2, covariance[1, 1] ** 0.5 / 2, float(rest @ rest), len(n) - 2


def fits(law: list[dict]) -> dict[tuple[str, int], tuple[float, float, float, int]]:
    fitted = {(r["estimator"], r["layers"]) for r in law if r["part"] == "fit"}
    pairs = [(n, K) for n in ORDER for K in range(1, 6) if (ORDER[n], K) in fitted]
    return {pair: weighted_fit(law, *pair) for pair in pairs}


def test_the_heads_of_chi2_stand_over_their_columns() -> None:
    head, *rows = (
        printed(containing(PATH, "relative bias ~ n^exponent")).split("\n\n")[0].splitlines()
    )
    assert len(rows) == 18 and {r.index(" / ") for r in rows} == {head.index(" / ")}
    _, head, *rows = printed(containing(PATH, "def squares")).splitlines()
    assert len(rows) == 6 and head.endswith("chi2") and {len(r) for r in rows} == {len(head)}


def test_the_fits_as_printed(law: list[dict]) -> None:
    text, found = printed(containing(PATH, "relative bias ~ n^exponent")), fits(law)
    pattern = (
        r"^(\d) layers?  +(.{11})n = (\d+)-(\d+) +(-?\d\.\d\d) \+- (\d\.\d\d) +(\d+\.\d) / (\d+)$"
    )
    shown = {(m[1].strip(), int(m[0])): m[4:] for m in re.findall(pattern, text, re.M)}
    assert set(shown) == set(found)
    for key, (exponent, se, chi2, dof) in found.items():
        numbers = [float(v) for v in shown[key]]
        assert numbers[:2] == pytest.approx([exponent, se], abs=6e-3)
        assert numbers[2] == pytest.approx(chi2, abs=0.06) and numbers[3] == dof
    for K in range(1, 6):
        line = re.search(rf"^{K} layers?  +(\d\.\d{{3}} \+-.*)$", text, re.M)[1]
        values = [[float(v) for v in k.split(" +- ")] for k in re.findall(r"\S+ \+- \S+", line)]
        for name, value in zip(ORDER, values, strict=True):
            points = of(law, name, K)
            assert value == pytest.approx(points[1:, points[0] == 10][:, 0], abs=6e-4)


def squares(law: list[dict], name: str, layers: int, least: int) -> Array:
    """Widths, squared biases and their errors: the exact row where there is one."""
    found: dict[int, tuple] = {}
    for r in sorted((r for r in law if r["part"] == "width"), key=lambda r: r["method"]):
        if (r["estimator"], r["layers"]) == (ORDER[name], layers) and r["width"] >= least:
            found.setdefault(r["width"], (r["width"], r["square"], r["square_se"]))
    return np.array([found[n] for n in sorted(found)]).T


def widest(law: list[dict], name: str, layers: int) -> tuple[float, float]:
    """Power of the bias over widths 16 to 64, by scipy."""
    n, y, se = squares(law, name, layers, 16)
    start = np.polyfit(np.log(n), np.log(np.abs(y)), 1)
    best, cov = optimize.curve_fit(
        lambda m, level, b: np.exp(level) * m**b, n, y, p0=start[::-1], sigma=se,
        absolute_sigma=True,
    )  # fmt: skip
    return best[1] / 2, cov[1, 1] ** 0.5 / 2


def two_orders(law: list[dict], name: str, layers: int) -> tuple[Array, Array, float, int]:
    """C and D of bias^2 = C/n + D/n^2, their errors, chi-squared and its degrees of freedom."""
    n, y, se = squares(law, name, layers, 4)
    best, cov = optimize.curve_fit(
        lambda m, C, D: C / m + D / m**2, n, y, sigma=se, absolute_sigma=True
    )
    chi2 = (((y - best[0] / n - best[1] / n**2) / se) ** 2).sum()
    return best, np.sqrt(np.diag(cov)), chi2, len(n) - 2


def test_the_two_orders_as_printed(law: list[dict]) -> None:
    text = printed(containing(PATH, "n = 16-64"))
    for K, name in itertools.product((2, 3), ("ST", "ZGR", "PSA")):
        line = re.search(rf"^{K} layers {name} +(.*)$", text, re.M)[1]
        shown = [float(v) for v in re.findall(r"-?\d+\.\d+", line)]
        (C, D), (c, d), chi2, dof = two_orders(law, name, K)
        assert dof == 10
        assert shown[:2] == pytest.approx(widest(law, name, K), abs=6e-3)
        assert shown[2:6] == pytest.approx([C, c, D, d], abs=6e-4)
        assert shown[6] == pytest.approx(chi2, abs=0.06)


def test_the_point_that_is_repeated(law: list[dict]) -> None:
    text = printed(containing(PATH, "def again"))
    for name in ORDER:
        numbers = re.search(rf"^{name} +(\S+) \+- (\S+) +(\S+) \+- (\S+)$", text, re.M).groups()
        here, stored = np.array(numbers, float).reshape(2, 2)
        points = of(law, name, 2)
        assert stored == pytest.approx(points[1:, points[0] == 4][:, 0], abs=6e-5)
        assert here[0] == pytest.approx(stored[0], abs=2e-4)
        assert here[1] == pytest.approx(stored[1], rel=0.2)


def test_the_measurement_is_as_told(law: list[dict]) -> None:
    rows = [r for r in law if r["part"] == "width"]
    assert {r["nets"] for r in rows} == {400}
    for r in rows:
        assert r["method"] == "exact" or r["layers"] in (2, 3)
        assert r["width"] <= 10 or r["method"] == "samples"
    assert "Up to $n=10$ the biases are exact for each of 400 networks" in prose(PATH)
    both = [r for r in rows if r["estimator"] == "psa_symmetric" and r["method"] == "samples"]
    lost = {(r["layers"], r["width"]) for r in both if r["square"] <= 0}
    assert {p for p in lost if p[1] > 10} == {(3, 32), (3, 64)}  # not drawn, the caption says


def test_what_the_words_say_of_the_law(law: list[dict]) -> None:
    words, fitted = prose(PATH), fits(law)

    def shown(pair: tuple[float, ...]) -> str:
        return f"${pair[0]:.2f}\\pm{pair[1]:.2f}$"

    st, zgr, psa = (lambda K, n=n: shown(fitted[n, K]) for n in ("ST", "ZGR", "PSA"))
    assert f"ZGR's exponent is {zgr(2)} and PSA's {psa(2)}" in words
    assert f"With three layers ZGR's is {zgr(3)}. PSA's is {psa(3)} from width 4 on" in words
    assert f"and {shown(widest(law, 'PSA', 3))} over the five widths from 16 to 64" in words
    wide = [widest(law, "ST", K) for K in (2, 3)]
    assert f"the exponents are {shown(wide[0])}, within two" in words and shown(wide[1]) in words
    assert abs(wide[0][0] + 0.5) < 2.1 * wide[0][1]
    for name, order in (("ZGR", -1.0), ("PSA", -0.5)):  # one power each with two layers
        exponent, se, chi2, dof = fitted[name, 2]
        assert stats.chi2.sf(chi2, dof) > 0.05 and abs(exponent - order) < 2 * se
    assert fitted["PSA", 3][0] + 0.5 < -3 * fitted["PSA", 3][1]
    slope, error = widest(law, "PSA", 3)
    assert abs(slope + 0.5) < error
    assert f"two and three layers are {st(2)} and {st(3)} in place of" in words
    chi2 = [fitted["ST", K][2] for K in (2, 3)]
    assert f"chi-squared values of {chi2[0]:.0f} and {chi2[1]:.0f} on 10 degrees" in words
    for K in (2, 3):
        exponent, se, chi2, dof = fitted["ST", K]
        assert dof == 10 and stats.chi2.sf(chi2, dof) < 0.01 and abs(exponent + 0.5) > 5 * se
    both = [two_orders(law, "ST", K) for K in (2, 3)]
    assert f"with chi-squared values of {both[0][2]:.0f} and {both[1][2]:.0f}." in words
    assert all(stats.chi2.sf(chi2, dof) > 0.2 for _, _, chi2, dof in both)
    assert "with two layers $D$ is smaller than ZGR's, by four standard errors if" in words
    (_, own), (_, own_se) = both[0][:2]
    (_, other), (_, other_se) = two_orders(law, "ZGR", 2)[:2]
    assert (other - own) / np.hypot(own_se, other_se) == pytest.approx(4, abs=0.5)
    ratios = [best[1] / best[0] for best, *_ in both]
    assert f"which is {ratios[0]:.0f} with two layers and {ratios[1]:.0f} with three" in words
    for K in (2, 3):
        _, _, chi2, dof = fitted["PSA, both", K]
        assert stats.chi2.sf(chi2, dof) < 0.02
    assert f"ZGR's exponents are {zgr(4)} and {zgr(5)}" in words
    for K in (4, 5):
        assert fitted["ZGR", K][0] + 1 > 3 * fitted["ZGR", K][1]

    def ahead(K: int, width: int) -> float:
        """By how many standard errors ZGR's bias is below PSA's."""
        (n, z, e), (_, p, o) = of(law, "ZGR", K), of(law, "PSA", K)
        k = np.flatnonzero(n == width)[0]
        return (p[k] - z[k]) / np.hypot(e[k], o[k])

    assert ahead(2, 16) < 0 < ahead(2, 24) and min(ahead(2, n) for n in (32, 48, 64)) > 3.5
    assert ahead(2, 24) == pytest.approx(2, abs=0.3) and ahead(2, 32) == pytest.approx(4, abs=0.5)
    assert max(ahead(3, n) for n in (4, 8, 10, 16, 24, 32, 48)) < 0 and abs(ahead(3, 64)) < 1
    assert (
        "smaller than PSA's from width 24 on, by two standard errors there and by four at 32"
        in words
    )
    at = {(name, K): of(law, name, K)[1][of(law, name, K)[0] == 10][0]
          for name in ORDER for K in range(2, 6)}  # fmt: skip
    grow = [at[name, 5] / at[name, 2] for name in ("ST", "ZGR")]
    assert f"grow by factors of {grow[0]:.1f} and {grow[1]:.1f}" in words
    assert (
        f"it is {at['PSA', 2]:.3f} and {at['PSA', 5]:.3f}" in words and at["PSA", 5] < at["PSA", 2]
    )
    factors = [at["PSA", K] / at["PSA, both", K] for K in range(2, 6)]
    assert factors.index(max(factors)) == 0 and factors.index(min(factors)) == 3
    assert f"from {min(factors):.1f} with five layers to {max(factors):.0f} with two." in words
    rows = [r for r in law if r["part"] == "width" and r["method"] == "exact" and r["layers"] > 1]
    for K, n in {(r["layers"], r["width"]) for r in rows}:
        own = {r["estimator"]: r["relative_bias"] for r in rows
               if (r["layers"], r["width"]) == (K, n)}  # fmt: skip
        assert min(own, key=own.get) == "psa_symmetric"
