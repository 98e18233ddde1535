"""Chapter 3, how good an estimator is: both sides of every formula, and the notebook's own code.

Expected values are sums over paths (reference.py) or over all data sets of a small world, in numpy.
sbnlib appears only where the notebook's own function is compared with it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import reference as ref
import torch
from chapters import (
    as_in_the_book,
    axes,
    chapter,
    checker,
    containing,
    curves,
    define,
    drawing,
    figures,
    naming,
    printed,
    prose,
    says_to,
    still,
    under,
)
from pins import pin
from scipy import optimize
from scipy.special import expit

import sbnlib

Array = np.ndarray
PATH = chapter(3)
LOGISTIC = ref.RefNoise("Logistic")
KEYS = [(0, "weight"), (0, "bias"), (1, "weight"), (1, "bias")]
INPUTS = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
TARGETS = INPUTS.prod(1)
REFERENCE = {"ST": "straight_through", "ZGR": "zgr", "identity": "identity"}
names = pytest.mark.parametrize("name", [*REFERENCE, "score"])


def xor(scale: float = 1.0) -> ref.RefNet:
    weights = np.array([[2.0, 2], [-2, -2], [2, -2]]), np.array([[2.0, 2, -2], [2, 2, 0]])
    return ref.RefNet(
        weights, (np.full(3, -2.0), np.array([0.0, 2])), ref.RefNoise("Logistic", scale)
    )


XOR_LOSS = ref.RefLoss(
    "xor",
    lambda x, b: np.logaddexp(0, -TARGETS[b] * x.sum(-1)),
    lambda x, b: -TARGETS[b] * expit(-TARGETS[b] * x.sum(-1, keepdims=True)) * np.ones_like(x),
    lambda x: torch.nn.functional.softplus(-torch.tensor(TARGETS) * x.sum(-1)),
)


def flat(parts: dict) -> Array:
    """(paths, 17) in the order of the network's parameters."""
    return np.concatenate([parts[k].reshape(len(parts[k]), -1) for k in KEYS], 1)


def rows_of(name: str, b: int, scale: float = 1.0) -> tuple[Array, Array]:
    """Probability and gradient of every path of input b."""
    net = xor(scale)
    if name in REFERENCE:
        p, parts = ref.path_estimates(net, INPUTS[b], XOR_LOSS, b, REFERENCE[name])
        return p, flat(parts)
    xs = ref.paths(net.widths)
    a = ref.pre_activations(net, INPUTS[b], xs)
    value = XOR_LOSS.value(xs[-1], b)[:, None]
    p = [np.where(x > 0, expit(v / scale), expit(-v / scale)) for x, v in zip(xs, a, strict=True)]
    deltas = [value * x * (1 - q) / scale for x, q in zip(xs, p, strict=True)]  # L d log F(xa)/da
    below = [np.broadcast_to(INPUTS[b], (32, 2)), xs[0]]
    return np.concatenate(p, 1).prod(1), flat(ref._to_parameters(net, deltas, below))


def exact(scale: float = 1.0) -> Array:
    parts = ref.gradient(xor(scale), INPUTS, XOR_LOSS)
    return np.concatenate([parts[k].ravel() for k in KEYS])


def moments(name: str, scale: float = 1.0) -> tuple[Array, Array]:
    """Mean and variance of one gradient sample: mean over inputs, variances over 16."""
    tables = [rows_of(name, b, scale) for b in range(4)]
    means = [p @ r for p, r in tables]
    variances = [p @ (r - m) ** 2 for (p, r), m in zip(tables, means, strict=True)]
    return sum(means) / 4, sum(variances) / 16


def numbers(name: str, scale: float = 1.0) -> tuple[float, float]:
    """Squared bias and variance in units of the squared gradient."""
    g, (mean, variance) = exact(scale), moments(name, scale)
    return ((mean - g) ** 2).sum() / (g @ g), variance.sum() / (g @ g)


def cos(u: Array, v: Array) -> Array:
    return (u @ v) / (np.linalg.norm(u, axis=-1) * np.linalg.norm(v))


WORLD = np.array([[1.0, 0.0], [-1.0, 2.0], [0.5, -1.0]])
LAW = np.array([0.5, 0.2, 0.3])
G = np.array([0.4, 0.3])


def data_sets(size: int) -> Iterator[tuple[float, Array]]:
    """Every data set of `size` independent draws from the small world, with its probability."""
    for index in itertools.product(range(len(LAW)), repeat=size):
        yield LAW[list(index)].prod(), WORLD[list(index)]


def mean_over(size: int, statistic: Callable[[Array], float | Array]) -> float | Array:
    return sum(p * statistic(rows) for p, rows in data_sets(size))


def variance_over(size: int, statistic: Callable[[Array], float]) -> float:
    return mean_over(size, lambda r: statistic(r) ** 2) - mean_over(size, statistic) ** 2


MEAN = LAW @ WORLD
VARIANCE = LAW @ ((WORLD - MEAN) ** 2).sum(1)
BIAS2 = ((MEAN - G) ** 2).sum()


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with as_in_the_book():
        yield


SETUP = (
    "inputs",
    "targets",
    "xor_net",
    "loss",
    "net",
    "value",
    "exact",
    "g",
    "score_function",
    "candidates",
    "draw_samples",
    "states",
    "slope",
    "FACTOR",
    "one_path",
    "path_gradients",
    "by_enumeration",
    "transition",
    "moments_below",
    "by_recursion",
    "jackknife",
    "corrected",
    "statistics",
)


@pytest.fixture(scope="module")
def book() -> dict:
    with as_in_the_book():
        return define(PATH, *SETUP)


# ------------------------------------------------------------------------------- the race


def race(name: str, rate: float, runs: int, steps: int, seed: int) -> dict[int, Array]:
    """Expected losses of trained networks, step -> (runs,): paths drawn whole, in numpy."""
    rng = np.random.default_rng(seed)
    W1, W2 = (np.repeat(w[None], runs, 0) for w in xor().weights)
    b1, b2 = (np.repeat(b[None], runs, 0) for b in xor().biases)
    out = {}
    for t in range(1, steps + 1):
        total = [np.zeros_like(p) for p in (W1, b1, W2, b2)]
        for v, y in zip(INPUTS, TARGETS, strict=True):
            a1 = W1 @ v + b1
            x1 = np.where(rng.logistic(size=a1.shape) < a1, 1.0, -1.0)
            a2 = np.einsum("rij,rj->ri", W2, x1) + b2
            x2 = np.where(rng.logistic(size=a2.shape) < a2, 1.0, -1.0)
            score = y * x2.sum(1, keepdims=True)
            if name == "ST":
                d2 = -y * expit(-score) * 2 * expit(a2) * expit(-a2)
                d1 = np.einsum("rij,ri->rj", W2, d2) * 2 * expit(a1) * expit(-a1)
            else:
                d1, d2 = (
                    np.logaddexp(0, -score) * (np.where(x > 0, 1, 0) - expit(a))
                    for x, a in ((x1, a1), (x2, a2))
                )
            parts = d1[:, :, None] * v, d1, d2[:, :, None] * x1[:, None], d2
            for p, d in zip(total, parts, strict=True):
                p += d / 4
        for p, d in zip((W1, b1, W2, b2), total, strict=True):
            p -= rate * d
        if t in (1, 30, 100, 1000):
            nets = zip(W1, b1, W2, b2, strict=True)
            out[t] = np.array([expected(w1, c1, w2, c2) for w1, c1, w2, c2 in nets])
    return out


def expected(W1: Array, b1: Array, W2: Array, b2: Array) -> float:
    xs = ref.paths((3, 2))
    total = 0.0
    for v, y in zip(INPUTS, TARGETS, strict=True):
        p = expit(xs[0] * (W1 @ v + b1)).prod(1) * expit(xs[1] * (xs[0] @ W2.T + b2)).prod(1)
        total += p @ np.logaddexp(0, -y * xs[1].sum(1)) / 4
    return total


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rate"), [("ST", 16.0), ("score", 1.0)])
def test_fig_two_ways(name: str, rate: float) -> None:
    """Four points of each curve against runs of a second program with other draws."""
    (lines,) = curves(PATH, "two_ways")
    at, drawn = lines[0 if name == "ST" else 1]
    space = drawing(PATH, "two_ways").__globals__
    assert list(at) == space["MARKS"]
    runs = race(name, rate, 30, 1000, 1)
    _, se = space["run_of"](name)
    for t, losses in runs.items():
        k = list(at).index(t)
        ours = losses.std(ddof=1) / 30**0.5
        assert abs(drawn[k] - losses.mean()) < 4 * math.hypot(ours, se[k])


@pytest.mark.slow
def test_the_race_as_printed() -> None:
    """The same step is best at both ends, inside the grid; who is ahead when."""
    space = drawing(PATH, "two_ways").__globals__
    text, marks, rates = printed(containing(PATH, "best step size")), space["MARKS"], space["RATES"]
    for name in ("ST", "score"):
        losses = space["race"][name]
        assert losses.shape == (len(marks), 10, 40) and rates[0] == 0.25 and rates[-1] == 128
        for t in (30, 1000):
            after = losses[marks.index(t)].numpy()
            k = int(after.mean(1).argmin())
            assert rates[k] == {"ST": 16, "score": 1}[name]
            line = re.search(rf"^{name} +{t} steps.*loss (\S+) \+- (\S+)$", text, re.M)
            shown = [after[k].mean(), after[k].std(ddof=1) / 40**0.5]
            assert np.allclose([float(v) for v in line.groups()], shown, atol=6e-5)
    st, score = (space["run_of"](n) for n in ("ST", "score"))
    gap = (st[0] - score[0]) / np.hypot(st[1], score[1])
    assert gap[marks.index(30)] < -10 and gap[-1] > 10
    (last,) = (m for m, a, b in zip(marks, gap, gap[1:], strict=False) if m > 30 and a < 0 < b)
    assert 500 < last < 631 and "After some hundreds of steps" in prose(PATH)


def test_the_mean_square_of_the_score_function() -> None:
    bias2, variance = numbers("score")
    assert round(1 + variance) == 58 and bias2 < 1e-25
    assert "their mean square is 58 times" in prose(PATH)


def mean_field(name: str, W1: Array, b1: Array, W2: Array, b2: Array) -> list[Array]:
    """The mean of the estimate in each parameter, over all paths of all inputs."""
    xs, total = ref.paths((3, 2)), [0.0] * 4
    for v, y in zip(INPUTS, TARGETS, strict=True):
        a1, a2 = W1 @ v + b1, xs[0] @ W2.T + b2
        p = expit(xs[0] * a1).prod(1) * expit(xs[1] * a2).prod(1) / 4
        score = y * xs[1].sum(1, keepdims=True)
        if name == "ST":
            d2 = -y * expit(-score) * 2 * expit(a2) * expit(-a2)
            d1 = (d2 @ W2) * 2 * expit(a1) * expit(-a1)
        else:
            value = np.logaddexp(0, -score)
            d1, d2 = (value * ((x > 0) - expit(a)) for x, a in zip(xs, (a1, a2), strict=True))
        parts = np.outer(p @ d1, v), p @ d1, (d2 * p[:, None]).T @ xs[0], p @ d2
        total = [s + q for s, q in zip(total, parts, strict=True)]
    return total


@pytest.mark.parametrize(("name", "rate"), [("ST", 16.0), ("score", 1.0)])
def test_training_on_averages_as_printed(name: str, rate: float) -> None:
    """Descent along the exact means: what a thousand samples a step come close to."""
    net = xor()
    theta = [v.copy() for pair in zip(net.weights, net.biases, strict=True) for v in pair]
    for _ in range(1000):
        for q, d in zip(theta, mean_field(name, *theta), strict=True):
            q -= rate * d
    mean, g = (np.concatenate([d.ravel() for d in mean_field(n, *theta)]) for n in (name, "score"))
    text = printed(containing(PATH, "averaged(name, rate)\n"))
    loss, share = re.search(rf"^{name} +loss (\S+), squared bias (\S+) of", text, re.M).groups()
    assert abs(float(loss) - expected(*theta)) < 4e-4
    assert abs(float(share) - ((mean - g) ** 2).sum() / (g @ g)) < 0.02
    single = printed(containing(PATH, "best step size"))
    alone = re.search(rf"^{name} +1000 steps.*loss (\S+)", single, re.M)[1]
    assert abs(float(alone) - float(loss)) < 0.002
    assert "within 0.002 of where it ended" in prose(PATH)


@pytest.mark.slow
def test_straight_through_does_not_rest_in_the_race() -> None:
    """Its exact mean, followed without noise: what it misses tends to all, and goes on falling."""
    net = xor()
    theta = [v.copy() for pair in zip(net.weights, net.biases, strict=True) for v in pair]
    seen = {}
    for t in range(4001):
        means = mean_field("ST", *theta)
        if t in (1000, 4000):
            exact = np.concatenate([d.ravel() for d in mean_field("score", *theta)])
            mean, size = np.concatenate([d.ravel() for d in means]), np.linalg.norm(exact)
            seen[t] = expected(*theta), size, np.linalg.norm(mean) / size
        for q, d in zip(theta, means, strict=True):
            q -= 16.0 * d
    assert 1 / 75 < seen[1000][2] < 1 / 65 and seen[4000][2] < seen[1000][2] / 2
    assert seen[4000][1] < 0.8 * seen[1000][1] and seen[4000][0] < seen[1000][0] - 0.006
    assert "a seventieth of the length of the gradient" in prose(PATH)


def test_without_noise_the_score_function_could_have_taken_longer_steps() -> None:
    """At straight-through's step size, 16 times its own, and ahead of it after thirty steps."""
    after = {}
    for name in ("ST", "score"):
        net = xor()
        theta = [v.copy() for pair in zip(net.weights, net.biases, strict=True) for v in pair]
        for _ in range(30):
            for q, d in zip(theta, mean_field(name, *theta), strict=True):
                q -= 16.0 * d
        after[name] = expected(*theta)
    assert after["score"] < after["ST"] - 0.05
    assert "without noise it could have taken longer steps from the start" in prose(PATH)


# -------------------------------------------------------------------------------- four numbers


@pin(
    "def-03-numbers",
    r"""
    Let $\hat g$ be a random vector with finite second moment and $g\ne0$ a fixed vector. Then *
    the *bias* is $\mathbb{E}\hat g-g$, and $\mathrm{bias}^2$ is its squared length
    $\|\mathbb{E}\hat g-g\|^2$; * the *variance* is $\mathrm{Var}=\mathbb{E}\|\hat
    g-\mathbb{E}\hat g\|^2$, the sum of the variances of the coordinates; * the *mean squared
    error* is $\mathrm{MSE}=\mathbb{E}\|\hat g-g\|^2$; * there are two *cosines*, with
    $\cos(u,v)=\langle u,v\rangle/(\|u\|\|v\|)$ and $\cos(0,v)=0$: {eq-03-cosines}
    """,
)
@pin(
    "eq-03-cosines",
    r"""
    \begin{gathered} \text{mean cosine}=\mathbb{E}\cos(\hat g,g),\\ \text{cosine of the
    mean}=\cos(\mathbb{E}\hat g,g). \end{gathered}
    """,
)
def test_eq_03_cosines(book: dict) -> None:
    """Both, over all pairs of paths of two inputs, against the library's measurement of them."""
    (p0, r0), (p1, r1) = rows_of("ST", 0), rows_of("ST", 2)
    p, rows = np.outer(p0, p1).ravel(), (r0[:, None] + r1[None]).reshape(-1, 17) / 2
    g = (np.outer(*[np.ones(2)] * 2)[0] / 2) @ np.stack(
        [rows_of("score", b)[0] @ rows_of("score", b)[1] for b in (0, 2)]
    )
    inputs, targets = book["inputs"][[0, 2]], book["targets"][[0, 2]]
    found = sbnlib.measure(
        book["net"],
        inputs,
        lambda x: torch.nn.functional.softplus(-targets * x.sum(-1)),
        "straight_through",
        4000,
        generator=torch.Generator().manual_seed(1),
    )["all"]
    for estimate, truth in (
        (found.cosine, p @ cos(rows, g)),
        (found.cosine_of_mean, cos(p @ rows, g)),
    ):
        assert abs(estimate.value - truth) < 4.5 * estimate.se


def test_eq_03_cosines_bound_neither_way() -> None:
    g, p = np.array([3.0, 4.0]), np.array([0.99, 0.01])
    samples = np.stack([g, -300 * g])
    assert np.isclose(p @ cos(samples, g), 0.98)
    assert np.isclose(cos(p @ samples, g), -1)
    unbiased = np.stack([g + [1, 0], g - [1, 0]])
    assert cos(unbiased, g).mean() < cos(unbiased.mean(0), g) == pytest.approx(1)


@pin(
    "thm-03-decomposition",
    r"""
    For a random vector $\hat g$ with finite second moment and a fixed vector $g$,
    {eq-03-decomposition}
    """,
)
def test_thm_03_decomposition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = rng.integers(1, 9)
        p, rows, g = rng.dirichlet(np.ones(n)), rng.normal(size=(n, 3)), rng.normal(size=3)
        mse = sum(q * np.linalg.norm(r - g) ** 2 for q, r in zip(p, rows, strict=True))
        mean = p @ rows
        variance = sum(p @ (rows[:, i] - mean[i]) ** 2 for i in range(3))
        assert np.isclose(mse, np.linalg.norm(mean - g) ** 2 + variance)


@pin(
    "eq-03-decomposition",
    r"""
    \mathbb{E}\|\hat g-g\|^2=\|\mathbb{E}\hat g-g\|^2+\mathbb{E}\|\hat g-\mathbb{E}\hat g\|^2 .
    """,
)
@names
def test_eq_03_decomposition(name: str) -> None:
    """On the chapter's network, all pairs of paths of two inputs: the error is the sum."""
    (p0, r0), (p1, r1) = rows_of(name, 0), rows_of(name, 1)
    p, rows, g = np.outer(p0, p1).ravel(), (r0[:, None] + r1).reshape(-1, 17) / 2, exact()
    mean = p @ rows
    assert np.isclose(
        p @ ((rows - g) ** 2).sum(1), ((mean - g) ** 2).sum() + p @ ((rows - mean) ** 2).sum(1)
    )


def test_thm_03_decomposition_needs_a_fixed_judge() -> None:
    M = 3
    own = mean_over(M, lambda r: ((r[0] - r.mean(0)) ** 2).sum())
    assert np.isclose(own, (1 - 1 / M) * VARIANCE)
    assert own < VARIANCE < VARIANCE + BIAS2


# -------------------------------------------------------------------------------- enumeration


@pin(
    "eq-03-backprop",
    r"""
    \begin{gathered} r_K=\nabla L(x_K),\\ d_k=c_k\circ r_k,\qquad r_{k-1}=W_k^\top d_k,\\
    \widehat{\nabla_{W_k}\mathbb{E}L}=d_k\,x_{k-1}^\top,\qquad
    \widehat{\nabla_{b_k}\mathbb{E}L}=d_k . \end{gathered}
    """,
)
@pytest.mark.parametrize("name", REFERENCE)
def test_eq_03_backprop(book: dict, name: str) -> None:
    """Torch differentiates a net whose bits are x + c (a - const), path by path."""
    factor = REFERENCE[name]
    layers = [m for m in book["net"].layers]
    p, rows = book["path_gradients"](book["net"], 1, name)
    expected_p, expected = rows_of(name, 1)
    for k, xs in enumerate(zip(*map(torch.tensor, ref.paths((3, 2))), strict=True)):
        v = book["inputs"][1]
        for layer, x in zip(layers, xs, strict=True):
            a = layer(v)
            c = ref.factor(factor, LOGISTIC, a.detach().numpy(), x.numpy())
            v = x + torch.tensor(c) * (a - a.detach())
        loss = torch.nn.functional.softplus(-book["targets"][1] * v.sum())
        grads = torch.autograd.grad(loss, [q for m in layers for q in (m.weight, m.bias)])
        by_torch = torch.cat([g.flatten() for g in grads]).numpy()
        assert np.allclose(by_torch, expected[k], atol=1e-14)
    assert np.allclose(rows, expected, atol=1e-14) and np.allclose(p, expected_p, atol=1e-16)


@pin("eq-03-score", r"d_k=L(x_K)\;\frac{x_k\circ f(a_k)}{P(x_k\mid a_k)},")
@pytest.mark.parametrize("scale", [0.4, 1.0])
def test_eq_03_score(book: dict, scale: float) -> None:
    """Torch differentiates the logarithm of a path's probability; and the notebook's one_path."""
    net = book["xor_net"](scale)
    p, rows = book["path_gradients"](net, 2, "score")
    expected_p, expected = rows_of("score", 2, scale)
    assert np.allclose(rows, expected, atol=1e-14) and np.allclose(p, expected_p, atol=1e-16)
    one, two = net.layers
    for k, (x1, x2) in enumerate(zip(*map(torch.tensor, ref.paths((3, 2))), strict=True)):
        a1, a2 = one(book["inputs"][2]), two(x1)
        log_p = -(torch.nn.functional.softplus(-x1 * a1 / scale).sum()) - (
            torch.nn.functional.softplus(-x2 * a2 / scale).sum()
        )
        grads = torch.autograd.grad(log_p, list(net.parameters()))
        value = math.log1p(math.exp(-TARGETS[2] * x2.sum().item()))
        by_torch = value * torch.cat([v.flatten() for v in grads])
        assert np.allclose(by_torch, expected[k], atol=1e-14)


def test_the_factors_of_the_page() -> None:
    """The three formulas of the list, and the library's estimators of those names."""
    text = prose(PATH)
    for words in (
        "* **ST**, straight-through: $c=2f(a)$.",
        "* **[ZGR](gloss-zgr)** (zero-temperature Gumbel-Rao): $c=f(a)/P(x\\mid a)$.",
        "* **Identity**: $c=1$,",
    ):
        assert words in text
    a = torch.linspace(-3, 3, 7, requires_grad=True)
    x = torch.tensor([1.0, -1, 1, -1, -1, 1, -1])
    z, s = a.detach().numpy(), x.numpy()
    f, probability = np.exp(-z) / (1 + np.exp(-z)) ** 2, 1 / (1 + np.exp(-s * z))
    for function, c in (
        (sbnlib.straight_through, 2 * f),
        (sbnlib.zgr, f / probability),
        (sbnlib.identity, np.ones(7)),
    ):
        (found,) = torch.autograd.grad(function(a, x, sbnlib.Logistic()).sum(), a)
        assert np.allclose(found, c)


@pin(
    "prop-03-batch",
    r"""
    Let $\hat g=\frac1B\sum_{b=1}^B\hat g_b$, where $\hat g_b$ is the estimate for input $b$ and
    the draws for different inputs are independent. Then {eq-03-batch}
    """,
)
def test_prop_03_batch() -> None:
    """Two inputs by pairs of paths, no formula for the variance."""
    net, loss = ref.random_net((2, 2, 2), LOGISTIC, seed=4), ref.target_loss(2, 2, seed=1)
    rows = np.array([[0.3, -1.0], [1.2, 0.4]])
    by_pairs = ref.joint_moments(net, rows, loss, "zgr")
    for key, (mean, variance) in ref.moments(net, rows, loss, "zgr").items():
        assert np.allclose(mean, by_pairs[key][0]) and np.allclose(variance, by_pairs[key][1])


@pin(
    "eq-03-batch",
    r"""
    \mathbb{E}\,\hat g=\frac1B\sum_b\mathbb{E}\,\hat g_b,\qquad \mathrm{Var}\,\hat
    g=\frac1{B^2}\sum_b\mathrm{Var}\,\hat g_b .
    """,
)
@names
def test_eq_03_batch(book: dict, name: str) -> None:
    """The notebook's enumeration, and what it printed."""
    mean, variance = book["by_enumeration"](book["net"], name)
    assert np.allclose(mean, moments(name)[0], atol=1e-15)
    assert np.allclose(variance, moments(name)[1], atol=1e-15)
    bias2, var = numbers(name)
    shown = re.search(
        rf"^{name} +(.+)$", printed(containing(PATH, "MSE   cosine of the mean")), re.M
    )[1]
    values = [bias2, var, bias2 + var, cos(moments(name)[0], exact())]
    assert np.allclose([float(v) for v in shown.split()], values, atol=6e-4)


def test_prop_03_batch_needs_independent_draws() -> None:
    """Equal inputs on one draw: the batch has the variance of one of them."""
    p, rows = rows_of("ST", 0)
    one = p @ ((rows - p @ rows) ** 2).sum(1)
    shared = (rows + rows) / 2
    assert np.isclose(p @ ((shared - p @ shared) ** 2).sum(1), one)
    q, pairs = np.outer(p, p).ravel(), (rows[:, None] + rows).reshape(-1, 17) / 2
    assert np.isclose(q @ ((pairs - q @ pairs) ** 2).sum(1), one / 2)


def test_identity_is_worse_in_both_and_zgr_has_less_bias_but_a_worse_cosine() -> None:
    st, zgr, identity = (numbers(n) for n in REFERENCE)
    assert all(identity[k] > max(st[k], zgr[k], numbers("score")[k]) for k in (0, 1))
    assert zgr[0] < st[0] and numbers("score")[0] < 1e-25
    assert cos(moments("ST")[0], exact()) > cos(moments("ZGR")[0], exact())


# --------------------------------------------------------------------------------- recursion


@pin(
    "eq-03-recursion",
    r"""
    \begin{gathered} m_{k-1}=W_k^\top\,\mathbb{E}\bigl[c_k\circ m_k\bigm|x_{k-1}\bigr],\\
    Q_{k-1}=W_k^\top\,\mathbb{E}\bigl[(c_kc_k^\top)\circ Q_k\bigm|x_{k-1}\bigr]\,W_k .
    \end{gathered}
    """,
)
@pytest.mark.parametrize("name", ["straight_through", "zgr", "identity", "darn_mean"])
def test_eq_03_recursion(name: str) -> None:
    net, loss = ref.random_net((2, 2, 3, 2), LOGISTIC, seed=2), ref.smooth_loss(2)
    x0 = np.array([0.4, -1.1])
    for k in (1, 2):
        above = ref.slopes_given(net, loss, name, k, x0)
        W, b = net.weights[k], net.biases[k]
        for s, (m, M) in ref.slopes_given(net, loss, name, k - 1, x0).items():
            a = W @ np.array(s) + b
            d, D = 0.0, 0.0
            for x, (mk, Mk) in above.items():
                c = ref.factor(name, LOGISTIC, a, np.array(x))
                p = expit(np.array(x) * a).prod()
                d, D = d + p * c * mk, D + p * np.outer(c, c) * Mk
            assert np.allclose(m, W.T @ d) and np.allclose(M, W.T @ D @ W)


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.2])
@pytest.mark.parametrize("name", REFERENCE)
def test_the_recursion_of_the_notebook(book: dict, name: str, scale: float) -> None:
    """The notebook's recursion is the enumeration of paths, and the library's."""
    net = book["xor_net"](scale)
    mean, variance = book["by_recursion"](net, name)
    assert np.allclose(mean, moments(name, scale)[0], atol=1e-15)
    assert np.allclose(variance, moments(name, scale)[1], rtol=1e-10, atol=1e-15)
    library = sbnlib.exact_moments(net, book["inputs"], book["loss"], REFERENCE[name])
    pairs = [torch.stack([v.flatten() for v in pair]) for pair in library.values()]
    assert torch.allclose(torch.stack([mean, variance]), torch.cat(pairs, 1), atol=1e-15)


def test_score_function_is_unbiased_and_its_code_is_the_formula(book: dict) -> None:
    assert np.allclose(moments("score")[0], exact(), atol=1e-15)
    samples = book["draw_samples"](book["net"], book["score_function"], 20_000, 5).numpy()
    mean, variance = moments("score")
    assert (abs(samples.mean(0) - mean) < 5 * np.sqrt(variance / 20_000)).all()
    assert np.allclose(samples.var(0), variance, rtol=0.15)


# ---------------------------------------------------------------------------------- sampling


def debiased(rows: Array, g: Array = G) -> float:
    M, mean = len(rows), rows.mean(0)
    return ((mean - g) ** 2).sum() - ((rows - mean) ** 2).sum() / (M - 1) / M


@pin("eq-03-trap", r"\mathbb{E}\|\bar g-g\|^2=\mathrm{bias}^2+\frac{\mathrm{Var}}M,")
@pytest.mark.parametrize("M", [1, 2, 5])
def test_eq_03_trap(M: int) -> None:
    naive = mean_over(M, lambda r: ((r.mean(0) - G) ** 2).sum())
    assert np.isclose(naive, BIAS2 + VARIANCE / M)


@pin(
    "eq-03-debiased",
    r"""
    \begin{aligned} \widehat{\mathrm{bias}^2}&=\|\bar g-g\|^2-\frac{\widehat{\mathrm{Var}}}M\\
    &=\frac1{M(M-1)}\sum_{m\ne m'}\langle\hat g_m-g,\;\hat g_{m'}-g\rangle \end{aligned}
    """,
)
@pytest.mark.parametrize("M", [2, 3, 5])
def test_eq_03_debiased(M: int) -> None:
    for _, rows in data_sets(M):
        u = rows - G
        pairs = sum(u[i] @ u[j] for i in range(M) for j in range(M) if i != j) / (M * (M - 1))
        assert np.isclose(debiased(rows), pairs)


@pin(
    "prop-03-trap",
    r"""
    Let $\bar g$ be the mean of $M\ge2$ independent samples of $\hat g$, and let
    $\widehat{\mathrm{Var}}=\frac1{M-1}\sum_m\|\hat g_m-\bar g\|^2$. Then {eq-03-trap} and
    {eq-03-debiased} is unbiased: $\mathbb{E}\,\widehat{\mathrm{bias}^2}=\mathrm{bias}^2$.
    """,
)
def test_prop_03_trap() -> None:
    """The debiased number is right on average; cut off at zero it is not."""
    assert np.isclose(mean_over(3, debiased), BIAS2)
    assert min(debiased(r) for _, r in data_sets(3)) < 0
    assert mean_over(3, lambda r: max(0.0, debiased(r))) > BIAS2 + 0.1


@pin("eq-03-pooled", r"\sum_m\|\hat g_m-\bar g\|^2=\sum_jq_j+\sum_jn_j\,\|\bar g_j-\bar g\|^2 .")
def test_eq_03_pooled() -> None:
    rng = np.random.default_rng(3)
    groups = [rng.normal(size=(n, 2)) + rng.normal(size=2) for n in (3, 1, 7)]
    everything = np.concatenate(groups)
    centre = everything.mean(0)
    within = sum(((r - r.mean(0)) ** 2).sum() for r in groups)
    between = sum(len(r) * ((r.mean(0) - centre) ** 2).sum() for r in groups)
    assert np.isclose(((everything - centre) ** 2).sum(), within + between)


@names
def test_eq_03_pooled_as_printed(name: str) -> None:
    """One random input a step: over (input, path) at once."""
    tables, norm2 = [rows_of(name, b) for b in range(4)], exact() @ exact()
    p = np.concatenate([q / 4 for q, _ in tables])
    rows = np.concatenate([r for _, r in tables])
    total = p @ ((rows - p @ rows) ** 2).sum(1) / norm2
    within = sum(q @ ((r - q @ r) ** 2).sum(1) for q, r in tables) / 4 / norm2
    line = re.search(rf"^{name} +(.+)$", printed(containing(PATH, "between     total")), re.M)[1]
    assert np.allclose([float(v) for v in line.split()], [within, total - within, total], atol=6e-3)


def jackknife(statistic: Callable[[Array], float], groups: Array) -> float:
    """se^2, from its definition; groups (G, m, d)."""
    n = len(groups)
    left = [statistic(np.concatenate(np.delete(groups, j, 0))) for j in range(n)]
    return (n - 1) / n * sum((s - np.mean(left)) ** 2 for s in left)


@pin("eq-03-jackknife", r"\mathrm{se}^2=\frac{G-1}G\sum_{j=1}^G\bigl(S_{(j)}-S_{(\cdot)}\bigr)^2 .")
def test_eq_03_jackknife(book: dict) -> None:
    """For an average the usual formula; and the notebook's function."""
    rows = np.random.default_rng(1).normal(size=(24, 2))
    groups = rows.reshape(6, 4, 2)
    means = groups.mean(1)[:, 0]
    usual = ((means - means.mean()) ** 2).sum() / 6 / 5
    assert np.isclose(jackknife(lambda r: r[:, 0].mean(), groups), usual)
    hand = book["jackknife"](lambda r: r.var(dim=0).sum(), torch.tensor(rows), 6)
    assert np.isclose(hand**2, jackknife(lambda r: r.var(0, ddof=1).sum(), groups))


STATISTICS = {
    "mean": lambda r: r[:, 0].mean(),
    "variance": lambda r: r.var(0, ddof=1).sum(),
    "bias2": debiased,
    "naive": lambda r: ((r.mean(0) - G) ** 2).sum(),
    "maximum": lambda r: r.max(),
    "cosine of the mean": lambda r: cos(r.mean(0) + 5, G),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_thm_03_jackknife_inequality(name: str) -> None:
    """All data sets of five draws, each its own group."""
    statistic, size = STATISTICS[name], 5
    spread = mean_over(size, lambda r: jackknife(statistic, r[:, None]) * size / (size - 1))
    one_less = variance_over(size - 1, statistic)
    assert spread >= one_less - 1e-12
    assert (abs(spread - one_less) < 1e-12) == (name == "mean")


@pin(
    "thm-03-jackknife",
    r"""
    Let $S$ be a function of independent, identically distributed groups that does not depend on
    their order, with finite variance. Then $$
    \mathbb{E}\sum_{j=1}^G\bigl(S_{(j)}-S_{(\cdot)}\bigr)^2\;\ge\;\mathrm{Var}\,S_{(1)} . $$ Hence
    $\mathbb{E}\,\mathrm{se}^2\ge\mathrm{Var}\,S$ for every $S$ whose variance falls at least as
    fast as $1/G$, that is $\mathrm{Var}\,S\le\frac{G-1}G\mathrm{Var}\,S_{(1)}$.
    """,
)
@pytest.mark.parametrize("name", ["mean", "variance", "bias2"])
def test_thm_03_jackknife(name: str) -> None:
    """Averages over pairs: the squared bar is on average not below the variance of S itself."""
    statistic, size = STATISTICS[name], 5
    bar = mean_over(size, lambda r: jackknife(statistic, r[:, None]))
    assert bar >= variance_over(size, statistic) - 1e-12


def test_thm_03_jackknife_needs_independent_groups() -> None:
    """Every group the same two draws: the bar is zero, the spread is not."""
    copies = [np.stack([rows] * 4) for _, rows in data_sets(2)]
    assert max(jackknife(STATISTICS["mean"], c) for c in copies) < 1e-25
    assert variance_over(2, STATISTICS["mean"]) > 0.1


@pin(
    "eq-03-pairs",
    r"\mathrm{Var}\,S=\frac{4\,\mathrm{Var}\,\psi_1}M+\frac{2\,\mathrm{Var}\,\psi_2}{M(M-1)} .",
)
@pytest.mark.parametrize("name", ["variance", "bias2"])
def test_eq_03_pairs(name: str) -> None:
    u = WORLD - G
    kernel = u @ u.T if name == "bias2" else 0.5 * ((u[:, None] - u) ** 2).sum(-1)
    const = LAW @ kernel @ LAW
    h = kernel @ LAW - const
    r = kernel - const - h[:, None] - h
    s1, s2 = LAW @ h**2, LAW @ r**2 @ LAW
    values = [4 * s1 / n + 2 * s2 / (n * (n - 1)) for n in (2, 3, 5)]
    assert np.allclose(values, [variance_over(n, STATISTICS[name]) for n in (2, 3, 5)])
    assert np.all(np.diff([n * v for n, v in zip((2, 3, 5), values, strict=True)]) <= 1e-12)
    if name == "bias2":
        assert np.allclose(h, (u - LAW @ u) @ (LAW @ u))


def test_calibration_as_printed() -> None:
    """Bars of straight-through are right; two of the unbiased estimator's are too long."""
    text = printed(containing(PATH, "spread of 200 runs"))
    ratios = {
        n: [float(v) for v in re.search(rf"^{n} +(.+)$", text, re.M)[1].split()]
        for n in ("ST", "score")
    }
    assert all(abs(v - 1) < 0.15 for v in ratios["ST"])
    assert all(0.6 < ratios["score"][k] < 0.85 for k in (0, 3))
    assert all(abs(ratios["score"][k] - 1) < 0.15 for k in (1, 2))
    assert f"the table shows {ratios['score'][0]:.2f}," in prose(PATH)


def test_by_hand_is_the_library(book: dict) -> None:
    """Values and bars of all four; the fourth bar holds the bias that the jackknife sees."""
    rows, corrected = book["draw_samples"](book["net"], "zgr", 1024, 3), book["corrected"]
    value, se = corrected(rows), book["jackknife"](corrected, rows)
    rest = [corrected(torch.cat([rows[:j], rows[j + 32 :]]))[3] for j in range(0, 1024, 32)]
    se[3] = math.hypot(se[3], 31 * (np.mean(rest) - value[3]))
    found = sbnlib.measure(
        book["net"],
        book["inputs"],
        book["loss"],
        "zgr",
        1024,
        generator=torch.Generator().manual_seed(3),
    )["all"]
    for k, e in enumerate((found.bias2, found.variance, found.cosine, found.cosine_of_mean)):
        assert np.isclose(e.value, value[k], rtol=1e-8)
        assert np.isclose(e.se, se[k], rtol=1e-8)
    assert printed(containing(PATH, "equal to ours")).count("equal to ours: True") == 4


def test_the_corrected_cosine_takes_out_the_noise_across() -> None:
    """What is under the root, less the square along g, is on average the squared length across."""
    cosine = cos(MEAN, G)

    def corrected(rows: Array) -> float:
        along = rows @ G / np.linalg.norm(G)
        across2 = rows.var(0, ddof=1).sum() - along.var(ddof=1)
        return (rows.mean(0) ** 2).sum() - across2 / len(rows) - along.mean() ** 2

    across = (MEAN**2).sum() * (1 - cosine**2)
    assert np.isclose(mean_over(5, corrected), across)
    plain = mean_over(5, lambda r: (r.mean(0) ** 2).sum() - (r.mean(0) @ G) ** 2 / (G @ G))
    assert plain > across + 0.05


def test_the_last_table_is_within_its_errors() -> None:
    text = printed(containing(PATH, "distance from the exact values"))
    head, *body = text.split("errors\n")[1].splitlines()
    assert head.split(maxsplit=2) == ["bias^2", "variance", "cosine of mean"]
    for line in body:  # each number ends under its head
        ends = [m.end() for m in re.finditer(r"-?\d\.\d", line)]
        assert ends == [head.index(k) + len(k) for k in ("bias^2", "variance", "cosine of mean")]
    z = [float(v) for line in body for v in line.split()[1:]]
    assert len(z) == 12 and f"the farthest is {max(map(abs, z))} standard errors" in prose(PATH)
    assert round(100 * (1 - math.erf(2 / math.sqrt(2)) ** 12)) == 43


@names
def test_the_mean_cosine_of_the_last_table(name: str) -> None:
    """Against paths drawn whole, in numpy: the estimate of all layers from one draw."""
    rng, draws, total = np.random.default_rng(4), 200_000, 0.0
    for b in range(4):
        p, rows = rows_of(name, b)
        total = total + rows[rng.choice(len(p), draws, p=p / p.sum())] / 4
    length, g = np.linalg.norm(total, axis=1), exact()
    values = np.divide(total @ g, length * np.linalg.norm(g), out=0 * length, where=length > 0)
    text = printed(containing(PATH, "measured[name] = sbnlib.measure"))
    value, se = re.findall(r"(-?[\d.]+) \+- ([\d.]+)", re.search(rf"^{name} .*$", text, re.M)[0])[2]
    assert abs(float(value) - values.mean()) < 4 * math.hypot(float(se), values.std() / draws**0.5)


# --------------------------------------------------------------------------------- averaging


@pytest.mark.parametrize("B", [1, 2, 4])
def test_prop_03_crossing_average(B: int) -> None:
    assert np.isclose(mean_over(B, lambda r: ((r.mean(0) - G) ** 2).sum()), BIAS2 + VARIANCE / B)


@pin(
    "eq-03-crossing",
    r"""
    B^*=\frac{\mathrm{Var}_2-\mathrm{Var}_1}{\mathrm{bias}_1^2-\mathrm{bias}_2^2}.
    """,
)
def test_eq_03_crossing() -> None:
    """The two errors meet at B*, found by a root finder; the notebook printed it."""
    text = printed(containing(PATH, "def B_star"))
    for one, two in (("ST", "ZGR"), ("ST", "score"), ("ZGR", "score")):
        (b1, v1), (b2, v2) = numbers(one), numbers(two)
        root = optimize.brentq(lambda B, d=b1 - b2, w=v1 - v2: d + w / B, 1, 1e5)
        assert np.isclose(root, (v2 - v1) / (b1 - b2))
        assert re.search(rf"{one} +is better than {two} +below B\* = {root:.0f}\n", text)


@pin(
    "prop-03-crossing",
    r"""
    The average of $B$ independent gradient samples has the error
    $\mathrm{MSE}(B)=\mathrm{bias}^2+\mathrm{Var}/B$. Let estimator 1 have the larger squared bias
    and estimator 2 the larger variance. Then estimator 1 has the smaller error exactly for
    $B<B^*$, with {eq-03-crossing}
    """,
)
def test_prop_03_crossing() -> None:
    rng = np.random.default_rng(2)
    for b1, b2, v1, v2 in rng.uniform(0, 3, (50, 4)):
        star = (v2 - v1) / (b1 - b2)
        for B in (1, 3, 10):
            better = b1 + v1 / B < b2 + v2 / B
            if b1 > b2 and v2 > v1:
                assert better == (star > B)
            elif b1 > b2:  # worse in both: never
                assert not better


def test_the_crossings_of_the_caption() -> None:
    for scale, star in ((0.4, 433), (0.8, 105), (2.2, 824)):
        (b1, v1), (b2, v2) = numbers("ST", scale), numbers("score", scale)
        assert math.ceil((v2 - v1) / (b1 - b2)) == star  # the first whole number past the crossing
        assert str(star) in containing(PATH, "def crossing").source
    assert numbers("ST", 0.4)[0] > numbers("ST", 0.4)[1]


# ---------------------------------------------------------------------------------- training


def J(a: Array | float) -> Array:
    """One bit, L = x^2/2 + 0.4 x, logistic noise."""
    return 0.5 + 0.4 * (2 * expit(a) - 1)


def slope(a: float) -> float:
    return 0.8 * expit(a) * expit(-a)


def one_bit(a: float) -> tuple[Array, Array]:
    """Law and values of straight-through."""
    x = np.array([-1.0, 1.0])
    return expit(x * a), 2 * expit(a) * expit(-a) * (x + 0.4)


BETA = 0.8 / (6 * np.sqrt(3))  # the largest slope of the logistic density is 1 / (6 sqrt 3)


@pin(
    "eq-03-descent",
    r"""
    \begin{gathered} \mathbb{E}\,J(\theta')\;\le\;J(\theta)-\varepsilon\,\langle\mathbb{E}\hat
    g,g\rangle+\frac{\beta\varepsilon^2}2\,\mathbb{E}\|\hat g\|^2,\\ \mathbb{E}\|\hat
    g\|^2=\|\mathbb{E}\hat g\|^2+\mathrm{Var}. \end{gathered}
    """,
)
@pytest.mark.parametrize("a", [-3.0, -1.2, -0.5, 0.0, 1.0, 3.0])
def test_eq_03_descent(a: float) -> None:
    p, ghat = one_bit(a)
    for step in (0.01, 0.3, 2.0, 10.0):
        after = p @ J(a - step * ghat)
        linear, square = J(a) - step * (p @ ghat) * slope(a), p @ ghat**2
        assert linear - BETA * step**2 / 2 * square <= after <= linear + BETA * step**2 / 2 * square
        assert np.isclose(square, (p @ ghat) ** 2 + p @ (ghat - p @ ghat) ** 2)


@pin(
    "thm-03-descent",
    r"""
    Let $\nabla J$ be Lipschitz with constant $\beta$. Then {eq-03-descent} If
    $\langle\mathbb{E}\hat g,g\rangle>0$, every step with $0<\varepsilon<2\langle\mathbb{E}\hat
    g,g\rangle/(\beta\,\mathbb{E}\|\hat g\|^2)$ lowers $J$ on average. If $\langle\mathbb{E}\hat
    g,g\rangle<0$, every small enough step raises it on average. If $\langle\mathbb{E}\hat
    g,g\rangle>0$, the best step guarantees a decrease of $\frac{1}{2\beta}\|g\|^2$ times
    {eq-03-efficiency}
    """,
)
def test_thm_03_descent() -> None:
    """Steps in the stated interval lower J; where the sign is wrong, small ones raise it."""
    for a in np.linspace(-4, 4, 33):
        p, ghat = one_bit(a)
        product = (p @ ghat) * slope(a)
        if product > 1e-6:
            limit = 2 * product / (BETA * (p @ ghat**2))
            assert all(p @ J(a - t * limit * ghat) < J(a) for t in (0.01, 0.5, 0.99))
        elif product < -1e-6:
            assert p @ J(a - 1e-3 * ghat) > J(a)


def test_thm_03_descent_needs_a_lipschitz_gradient() -> None:
    """Uniform noise, L = x: J(a) = a between -1 and 1, flat outside."""
    noise = ref.RefNoise("Uniform")

    def flat_outside(a: float) -> float:
        return float(2 * noise.cdf(np.array(a)) - 1)

    assert np.isclose(flat_outside(-0.9) - flat_outside(-1.4), 0.1)


@pin(
    "eq-03-efficiency",
    r"""
    \mathrm{eff}=\frac{\langle\mathbb{E}\hat g,g\rangle^2}{\|g\|^2\;\mathbb{E}\|\hat
    g\|^2}\;\le\;1 .
    """,
)
def test_eq_03_efficiency() -> None:
    """The best point of the parabola, by a minimizer; printed numbers; both limits."""
    text = printed(containing(PATH, "efficiency       B = 1"))
    g = exact()
    for name in (*REFERENCE, "score"):
        mean, variance = moments(name)
        shown = []
        for B in (1, 32, 1000, np.inf):
            square, dot = mean @ mean + variance.sum() / B, mean @ g
            best = optimize.minimize_scalar(lambda t, q=square, d=dot: -t * d + t * t / 2 * q)
            rho = -best.fun / (g @ g / 2)
            assert rho <= 1 + 1e-12 and np.isclose(rho, dot**2 / (g @ g) / square)
            shown.append(rho)
        assert np.isclose(shown[-1], cos(mean, g) ** 2)
        line = re.search(rf"^{name} +(.+)$", text, re.M)[1]
        assert np.allclose([float(v) for v in line.split()], shown, atol=6e-4)


def test_the_unbiased_estimator_catches_up_at_about_seven_hundred() -> None:
    def rho(name: str, B: float) -> float:
        (mean, variance), g = moments(name), exact()
        return (mean @ g) ** 2 / (g @ g) / (mean @ mean + variance.sum() / B)

    assert 650 < optimize.brentq(lambda B: rho("ST", B) - rho("score", B), 10, 1e4) < 750
    assert all(rho("ST", B) > rho("ZGR", B) for B in (1, 10, 100, 1e4, 1e9))


@pin(
    "thm-03-floor",
    r"""
    Let $\nabla J$ be Lipschitz with constant $\beta$, $J\ge J_*$, and run $T$ steps with
    $0<\varepsilon\le1/\beta$. Let $\delta^2$ and $\overline{\mathrm{Var}}$ bound
    $\mathrm{bias}^2$ and $\mathrm{Var}$ at every point reached. Then {eq-03-floor}
    """,
)
def test_thm_03_floor() -> None:
    """Eight steps of straight-through on one bit, all 256 sequences of draws."""
    grid = np.linspace(-15, 15, 3001)
    laws = [one_bit(a) for a in grid]
    delta2 = max((p @ q - slope(a)) ** 2 for a, (p, q) in zip(grid, laws, strict=True))
    V = max(p @ (q - p @ q) ** 2 for p, q in laws)
    for start, step in ((1.0, 1.0), (-3.0, 5.0), (0.0, 1 / BETA)):
        walks, total = [(1.0, start)], 0.0
        for _ in range(8):
            total += sum(w * slope(a) ** 2 for w, a in walks)
            walks = [
                (w * p, a - step * q) for w, a in walks for p, q in zip(*one_bit(a), strict=True)
            ]
        assert total / 8 <= floor(J(start) - 0.1, step, 8, delta2, V, BETA)


def floor(gap: float, step: float, T: int, delta2: float, V: float, beta: float) -> float:
    """The right side of the theorem."""
    return 2 * gap / (step * T) + delta2 + beta * step * V


def test_thm_03_floor_has_no_term_to_spare() -> None:
    """Each term alone is attained: exact descent, a walk at rest, noise round a minimum."""
    beta, theta, T = 2.0, 1.3, 10**6
    first = floor(beta * theta**2 / 2, 1 / beta, 1, 0, 0, beta)  # one step leads to the minimum
    assert np.isclose((beta * theta) ** 2, first)
    a = np.log(0.3 / 0.7)  # the mean of straight-through is zero, its bias is -g
    rest = floor(J(a) - 0.1, 1.0, T, slope(a) ** 2, 0, BETA)
    assert slope(a) ** 2 <= rest and np.isclose(slope(a) ** 2, rest, rtol=1e-3)
    # exact gradient of beta theta^2 / 2 plus noise of variance V, a full step 1/beta
    V, spread, total = 0.7, 0.0, 0.0
    for _ in range(1000):
        total += beta**2 * spread
        spread = V / beta**2
    noise = floor(0, 1 / beta, 1000, 0, V, beta)
    assert total / 1000 <= noise and np.isclose(total / 1000, noise, rtol=2e-3)


@pin(
    "eq-03-floor",
    r"""
    \begin{aligned} &\frac1T\sum_{t<T}\mathbb{E}\|\nabla J(\theta_t)\|^2\\
    &\qquad\le\;\frac{2\,(J(\theta_0)-J_*)}{\varepsilon
    T}+\delta^2+\beta\varepsilon\,\overline{\mathrm{Var}} . \end{aligned}
    """,
)
def test_eq_03_floor() -> None:
    """Attained: resting at mu = -b, g^2 is the squared bias for ever; too long a step diverges."""
    a = np.log(0.3 / 0.7)  # F(a) = 0.3, mu = -0.4
    p, ghat = one_bit(a)
    assert abs(p @ ghat) < 1e-15
    assert np.isclose(slope(a) ** 2, (p @ ghat - slope(a)) ** 2) and slope(a) > 0.1
    theta, beta = 1.0, 2.0
    for _ in range(50):
        theta -= 1.1 * 2 / beta * beta * theta  # the exact gradient of beta theta^2 / 2
    assert abs(theta) > 100


def test_thm_03_floor_is_not_necessary() -> None:
    """g/2 and 10 g train though their bias is large; a bias that stays is what is left."""
    text = printed(containing(PATH, "squared gradient at the end"))
    ends = {}
    for name, slope_of, start in (
        ("g / 2", lambda g: g / 2, 0.25),
        ("10 g", lambda g: 10 * g, 81.0),
        ("g + 0.3", lambda g: g + 0.3, 0.09),
    ):
        assert np.isclose((slope_of(1.0) - 1.0) ** 2, start)
        # theta' = (1 - 0.05 k) theta - 0.05 c in closed form
        k, c = slope_of(1.0) - slope_of(0.0), slope_of(0.0)
        ends[name] = ((1 + c / k) * (1 - 0.05 * k) ** 400 - c / k) ** 2
        shown = re.search(rf"^{re.escape(name)} +(\S+) +(\S+)$", text, re.M).groups()
        assert shown == (f"{start:.2f}", f"{ends[name]:.2f}")
    assert ends["g / 2"] < 1e-7 and ends["10 g"] < 1e-7 and np.isclose(ends["g + 0.3"], 0.09)


def test_thm_03_floor_with_a_bias_that_shrinks() -> None:
    """bias^2 <= q |g|^2 + delta^2: the floor is (delta^2 + beta eps V) / (1 - q)."""
    floor = r"the floor becomes $(\delta^2+\beta\varepsilon\,\overline{\mathrm{Var}})/(1-q)$"
    assert floor in prose(PATH)
    rng, beta = np.random.default_rng(5), 2.0
    for _ in range(100):
        gamma, delta, V, step = *rng.uniform(0, [0.95, 1, 3]), rng.uniform(0.05, 1 / beta)
        theta, spread, total, sign = rng.normal(), 0.0, 0.0, rng.choice([-1, 1])
        start, T = beta * theta**2 / 2, int(rng.integers(1, 200))
        # bias = sqrt(gamma) sign g, or the constant delta: each within the bound
        k, c = ((1 + sign * np.sqrt(gamma)), 0.0) if rng.random() < 0.5 else (1.0, sign * delta)
        for _ in range(T):  # mean and variance of theta, exactly
            total += beta**2 * (theta**2 + spread)
            theta, spread = (
                theta - step * (k * beta * theta + c),
                (1 - step * k * beta) ** 2 * spread,
            )
            spread += step**2 * V
        bound = (2 * start / (step * T) + delta**2 + beta * step * V) / (1 - gamma)
        assert total / T <= bound + 1e-12


@pin(
    "eq-03-rest",
    r"""
    \begin{gathered} \mathbb{E}\,\hat g=2f(a)\,\mathbb{E}[x+b]=2f(a)\,(\mu+b),\\ \mathbb{E}\hat
    g-g=2f(a)\,\mu, \end{gathered}
    """,
)
@pytest.mark.parametrize("a", [-2.0, -0.3, 1.5])
def test_eq_03_rest(a: float) -> None:
    p, ghat = one_bit(a)
    mu, f = np.tanh(a / 2), expit(a) * expit(-a)
    gradient = ref.finite_difference(lambda v: float(J(v[0])), np.array([a]))[0]
    assert np.isclose(p @ ghat, 2 * f * (mu + 0.4))
    assert np.isclose(p @ ghat - gradient, 2 * f * mu, atol=1e-8)
    assert (np.sign(p @ ghat) != np.sign(gradient)) == (mu < -0.4)


# --------------------------------------------------------------------------------- exercises


def test_ex_03_budget_and_shrink() -> None:
    kappa, (b1, v1), (b2, v2) = 3.0, numbers("ST"), numbers("ZGR")
    root = optimize.brentq(lambda C: b1 + v1 / C - b2 - v2 / (C / kappa), 1, 1e5)
    assert np.isclose(root, (kappa * v2 - v1) / (b1 - b2))
    _, v = numbers("score")
    best = optimize.minimize_scalar(lambda t: (1 - t) ** 2 + t * t * v)
    assert np.isclose(best.x, 1 / (1 + v)) and np.isclose(best.fun, v / (1 + v))
    assert f"t = {best.x:.4f}, error {v:.1f} becomes {best.fun:.3f}" in printed(
        containing(PATH, "zero has error 1")
    )


def test_ex_03_budget_mistakes() -> None:
    """At the bound both estimators have one error; the price belongs to the second alone."""
    check = checker(PATH, "check_budget")
    k, V1, V2, b1, b2 = 3.0, 1.0, 5.0, 2.0, 0.25
    same = optimize.brentq(lambda C: b1 + V1 / C - (b2 + V2 / (C / k)), 1e-3, 1e3)
    assert same == pytest.approx(eval(check.value))
    assert check("-(V1 - V2*k)/(b1 - b2)")
    says_to(check, {
        "(V2 - V1)/(b1 - b2)": "price is missing",
        "(V2/k - V1)/(b1 - b2)": "multiplied by its price",
        "(V2*k - V1*k)/(b1 - b2)": "only the samples of estimator 2",
        "(k*V2 - V1)/(b2 - b1)": "the sign",
        "(k*V2 - V1)/(b1*b1 - b2*b2)": "squares already",
    })  # fmt: skip


def test_ex_03_shrink_mistakes() -> None:
    check = checker(PATH, "check_shrink")
    for V in (0.5, 20.0):
        best = optimize.minimize_scalar(lambda t, V=V: (1 - t) ** 2 + t**2 * V).x
        assert best == pytest.approx(eval(check.value), abs=1e-7)
        error = (1 - best) ** 2 + best**2 * V
        assert error == pytest.approx(V / (1 + V))  # the first mistake is this number
    assert check("(1 + V)^-1")
    says_to(check, {"V/(1 + V)": "the error", "1/V": "the bias counts", "1 - V": "first order",
                    "1/(1 + V^0.5)": "standard deviation"})  # fmt: skip


def test_ex_03_loss_by_hand_is_the_enumeration() -> None:
    lines = printed(containing(PATH, "recursive = ")).splitlines()
    assert lines[0].split("[")[1] == lines[1].split("[")[1]
    p, rows = rows_of("score", 0)
    expected = (p @ (rows - p @ rows) ** 2)[6:9]
    assert np.allclose(
        [float(v) for v in lines[1].split("[")[1].strip("]").split()], expected, atol=1e-6
    )


def test_ex_03_jackknife_ratio() -> None:
    """Pairs of signs, 3 groups of 2: the exact ratio, whose limit for large groups is stated."""
    groups, m = 3, 2
    N, n = groups * m, (groups - 1) * m

    def average(u: Array) -> float:
        return (u.sum() ** 2 - len(u)) / (len(u) * (len(u) - 1))

    bars = [jackknife(lambda r: average(r.ravel()), u.reshape(groups, m, 1)) for u in ref.states(N)]
    true = np.mean([average(u) ** 2 for u in ref.states(N)])

    def ratio(groups: int, m: int) -> float:
        N, n = groups * m, (groups - 1) * m
        return (groups - 1) ** 2 / groups * m * (2 * n - m - 1) * N * (N - 1) / (n * (n - 1)) ** 2

    assert np.isclose(np.mean(bars) / true, ratio(groups, m)) and n == 4
    assert np.isclose(ratio(32, 10**6), 32 * 61 / 31**2, rtol=1e-5)
    assert np.isclose(np.sqrt(ratio(32, 10**6)), 1.43, atol=0.01)


def test_ex_03_uphill_rule() -> None:
    rng = np.random.default_rng(0)
    g = rng.normal(size=5)
    for _ in range(200):
        bias = rng.normal(size=5)
        bias *= rng.uniform(0, 0.999) * np.linalg.norm(g) / np.linalg.norm(bias)
        assert (g + bias) @ g > 0
    assert -0.01 * g @ g < 0 < 10 * g @ g


# ------------------------------------------------------------------------------- the checker


@pytest.fixture
def space() -> dict:
    """The notebook's checker and its solution, run as they stand."""
    out = define(PATH)
    for tag in ("checker", "solution"):
        exec(compile(naming(PATH, tag).source, tag, "exec"), out)
    return out


def right(s: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """The pairwise form: all products of two different rows on either side."""

    def pairs(u: torch.Tensor) -> torch.Tensor:
        return ((u.sum(0) ** 2).sum() - (u**2).sum()) / (len(u) * (len(u) - 1))

    return pairs(s) + pairs(r) - 2 * s.mean(0) @ r.mean(0)


def naive(s: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    return ((s.mean(0) - r.mean(0)) ** 2).sum()


def population(u: torch.Tensor) -> torch.Tensor:
    return ((u - u.mean(0)) ** 2).mean(0).sum() / len(u)


WRONG = {
    "naive": (naive, "variance of both means"),
    "reference taken as exact": (lambda s, r: right(s, r) + r.var(0).sum() / len(r), "reference"),
    "only the reference": (lambda s, r: right(s, r) + s.var(0).sum() / len(s), "estimator's mean"),
    "no M - 1": (lambda s, r: naive(s, r) - population(s) - population(r), "M - 1"),
    "not divided by M": (lambda s, r: naive(s, r) - s.var(0).sum() - r.var(0).sum(), "Var/M"),
    "cut off": (lambda s, r: right(s, r).clamp_min(0), "negative answers"),
    "not squared": (lambda s, r: right(s, r).abs().sqrt(), "square root"),
    "a vector": (lambda s, r: s.mean(0) - r.mean(0), "one number"),
    "zero": (lambda s, r: 0.0, "the average over all data sets is off"),
}


def test_the_checker_accepts_what_is_right(space: dict, capsys: pytest.CaptureFixture) -> None:
    assert space["ok"] is True
    assert space["check"](right) is True
    assert space["check"](lambda s, r: float(right(s, r))) is True
    assert space["check"](lambda s, r: right(s.float(), r.float())) is True
    assert "right" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_the_checker_names_what_is_wrong(
    space: dict, name: str, capsys: pytest.CaptureFixture
) -> None:
    answer, hint = WRONG[name]
    capsys.readouterr()
    assert space["check"](answer) is False
    assert hint in capsys.readouterr().out


# --------------------------------------------------------------------------------- the prose


def test_what_the_page_says_of_the_frames(book: dict) -> None:
    """How many of the 17 bars miss, and the eight equal samples, at the settings in the answer."""
    text = under(figures(PATH)["fig-03-closing-in"])["answer"]
    assert "At 4096 samples four miss with $\\sigma=1$, and eight with $\\sigma=0.4$." in text
    missed = {}
    for scale in (0.4, 1.0):
        net = book["xor_net"](scale)
        rows = book["draw_samples"](net, book["candidates"]["ST"], 4096, 10).numpy()
        off = abs(rows.mean(0) - moments("ST", scale)[0])
        missed[scale] = int((off > rows.std(0, ddof=1) / 64).sum())
        if scale == 0.4:
            assert np.ptp(rows[:8], axis=0).max() < 1e-15
    assert missed == {0.4: 8, 1.0: 4}


def test_the_shares_of_the_data() -> None:
    share = {}
    for name in (*REFERENCE, "score"):
        tables = [rows_of(name, b) for b in range(4)]
        means = np.stack([p @ r for p, r in tables])
        between = ((means - means.mean(0)) ** 2).sum() / 4
        within = sum(p @ ((r - p @ r) ** 2).sum(1) for p, r in tables) / 4
        share[name] = between / (between + within)
    assert 0.04 < share["score"] < 0.06 and share["ST"] > 1 / 3 and share["identity"] > 1 / 2


# ------------------------------------------------------------------- what the figures draw


@pytest.mark.parametrize(("m", "scale"), [(64, 1.0), (4096, 0.4)])
def test_fig_closing_in(m: int, scale: float) -> None:
    g, (mean, variance) = exact(scale), moments("ST", scale)
    left, right = curves(PATH, "closing_in", M=m, scale=scale)
    for lines, truth in ((left, mean / np.sqrt(g @ g)), (right, np.log10(variance / (g @ g)))):
        dashes = lines[0][1].reshape(17, 3)  # from, to, a gap
        assert dashes[:, 0] == pytest.approx(truth, abs=1e-9)
        assert dashes[:, 1] == pytest.approx(truth, abs=1e-9)
    rows = drawing(PATH, "closing_in").__globals__["runs"][scale][3][:m].numpy()
    se = rows.std(0, ddof=1) / np.sqrt(m)
    bars = left[1][1].reshape(17, 3)
    assert left[2][1] == pytest.approx(rows.mean(0))
    assert bars[:, 1] - bars[:, 0] == pytest.approx(2 * se, abs=1e-12)
    if scale == 1:
        assert right[2][1] == pytest.approx(np.log10(rows.var(0, ddof=1)))


def test_fig_closing_in_with_more_samples_than_are_stored() -> None:
    """What a GPU draws for each frame, here on the CPU."""
    space = drawing(PATH, "closing_in").__globals__
    m, scale = 40_000, 1.0
    mean, variance, fourth = (v.numpy() for v in space["of_samples"](scale, m))
    g, (truth, spread) = exact(scale), moments("ST", scale)
    length = np.sqrt(g @ g)
    se = np.sqrt(spread / m) / length
    assert np.abs(mean - truth / length).max() < 5 * se.max()
    assert (np.abs(mean - truth / length) < 5 * se + 1e-12).all()
    error = np.sqrt((fourth - variance**2).clip(0) / m)
    assert (np.abs(variance - spread / length**2) < 5 * error + 1e-12).all()
    # the fourth moment, from those that are stored
    rows = space["runs"][scale][3].numpy()
    stored = ((rows - rows.mean(0)) ** 4).mean(0)
    assert fourth == pytest.approx(stored, rel=0.25, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("B", "scale"), [(8, 1.0), (4000, 0.4)])
def test_fig_crossing(B: int, scale: float) -> None:
    left, right = curves(PATH, "crossing", B=B, scale=scale)
    for row, name in enumerate(("ST", "ZGR", "identity", "score")):
        bias2, variance = numbers(name, scale)
        x, y = left[1 + 2 * row]
        assert 10**y == pytest.approx(bias2 + variance / 2**x, rel=1e-9)
        point = left[2 + 2 * row]
        assert point[:, 0] == pytest.approx([np.log2(B), np.log10(bias2 + variance / B)])
        line = next(k for k in right if k.shape[1] == 2 and k[1][0] == -row)
        assert line[0] == pytest.approx(np.log10([max(bias2, 1e-3), variance / B]))


@pytest.mark.slow
@pytest.mark.parametrize(("panel", "name"), [(0, "ST"), (1, "ZGR"), (2, "score")])
def test_fig_pieces(panel: int, name: str) -> None:
    """The mark is the exact mean: along g, and its full distance from g."""
    lines = curves(PATH, "pieces")[panel]
    g, (mean, _) = exact(), moments(name)
    dots, mark, same = lines
    assert dots.shape == (2, 150) and np.array_equal(mark, same)
    along = mean @ g / (g @ g)
    across = np.linalg.norm(mean - along * g) / np.linalg.norm(g)
    assert mark.ravel() == pytest.approx([along, across], abs=1e-9)
    assert np.hypot(*(mark.ravel() - [1, 0])) == pytest.approx(np.sqrt(numbers(name)[0]), abs=1e-9)
    space = drawing(PATH, "pieces").__globals__
    rows = space["draw_samples"](space["net"], space["candidates"][name], 150, 1).numpy()
    assert dots[0] == pytest.approx(rows @ g / (g @ g), abs=1e-9)
    outside = ((abs(dots[0] - 0.5) > 1.3) | (abs(dots[1]) > 1.3)).mean()
    low, high = {"ST": (0, 0), "ZGR": (0.15, 0.18), "score": (0.34, 0.4)}[name]
    assert low <= outside <= high
    words = "A sixth of the dots of ZGR and more than a third of those of the score function"
    assert words in under(figures(PATH)["fig-03-pieces"])["caption"]


@pytest.mark.slow
@pytest.mark.parametrize(("M", "scale", "outside"), [(8, 1.0, 0), (8, 2.2, 4), (4096, 2.2, 0)])
def test_the_caption_of_the_moments_counts_the_dots_outside(
    M: int, scale: float, outside: int
) -> None:
    for ax, count in zip(axes(PATH, "closing_in", M=M, scale=scale), (outside, 0), strict=True):
        (low, high), y = ax.get_ylim(), ax.lines[-1].get_ydata()
        assert sum((y < low) | (y > high)) == count


@pytest.mark.slow
@pytest.mark.parametrize(("panel", "name"), [(0, "ST"), (1, "score")])
def test_fig_trap(panel: int, name: str) -> None:
    """Both lines exactly; the discs are the triangles less Var/M and scatter round the truth."""
    level, curve, naive, debiased = curves(PATH, "trap")[panel]
    bias2, variance = numbers(name)
    assert level[1] == pytest.approx(bias2, abs=1e-12)
    assert curve[1] == pytest.approx(bias2 + variance / curve[0])
    assert (naive[1] > debiased[1]).all()
    assert naive[1] - debiased[1] == pytest.approx(variance / curve[0], rel=0.35)
    assert (debiased[1] > bias2).any() and (debiased[1] < bias2).any()
    assert variance / 1024 > 0.1 * numbers("ST")[0] or name == "ST"
    low, high = still(PATH, "fig-03-trap")[panel].get_ylim()
    assert all(low < y < high for y in (*naive[1], *debiased[1]))


@pytest.mark.parametrize("b", [0.4, 0.7])
def test_fig_resting(b: float) -> None:
    (lines,) = curves(PATH, "resting", b=b)
    zero, gradient, field, disc = lines
    mu = gradient[0]
    density = (1 - mu**2) / 4  # of the logistic noise, F (1 - F)
    assert gradient[1] == pytest.approx(2 * density * b)
    x = np.array([-1.0, 1.0])[:, None]
    assert field[1] == pytest.approx(((1 + x * mu) / 2 * 2 * density * (x + b)).sum(0))
    assert disc.ravel() == pytest.approx([-b, 0])


def test_what_the_page_says_of_the_table() -> None:
    (b_st, v_st), (b_zgr, v_zgr) = numbers("ST"), numbers("ZGR")
    assert 0.45 < b_zgr / b_st < 0.55 and 6.5 < v_zgr / v_st < 7.5
    g, rho, ratio = exact(), {}, {}
    for name in ("ST", "ZGR", "score"):
        mean, variance = moments(name)
        ratio[name] = variance.sum() / (mean @ mean)
        rho[name] = (mean @ g) ** 2 / (g @ g) / (mean @ mean + variance.sum())
    assert round(ratio["ST"], 1) == 8.4 and round(ratio["ZGR"], 1) == 19.6
    assert 5.5 < rho["ST"] / rho["score"] < 6.5
