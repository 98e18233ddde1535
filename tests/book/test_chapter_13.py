"""Chapter 13: both sides of every equation, the theorems, and the checker."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from chapters import (
    as_in_the_book,
    axes,
    chapter,
    checker,
    containing,
    curves,
    printed,
    prose,
    says_to,
    states,
    under,
)
from pins import pin
from scipy import integrate, stats

from sbnlib import SBN
from sbnlib.nn import BernoulliLinear
from sbnlib.noise import Cauchy, Gaussian, Logistic, Triangular

pytestmark = pytest.mark.usefixtures("book_settings")
PAGE = chapter(13)
Loss = Callable[[np.ndarray], np.ndarray]
P = np.array([0.7, 0.35, 0.9])


@pytest.fixture(name="book_settings")
def _book_settings() -> Iterator[None]:
    with as_in_the_book():
        yield


def law(w: np.ndarray, p: np.ndarray) -> np.ndarray:
    return np.where(w > 0, p, 1 - p).prod(-1)


def mean(loss: Loss, p: np.ndarray) -> float:
    w = states(len(p))
    return float(law(w, p) @ loss(w))


def difference(function: Callable[[np.ndarray], float], p: np.ndarray) -> np.ndarray:
    """Central differences."""
    h = 1e-6 * np.eye(len(p))
    return np.array([(function(p + e) - function(p - e)) / 2e-6 for e in h])


def slope_mean(slope: Loss, p: np.ndarray) -> np.ndarray:
    w = states(len(p))
    return 2 * law(w, p) @ slope(w)


def rough(w: np.ndarray) -> np.ndarray:
    return np.sin(2 * w[:, 0] + w[:, 1]) * np.exp(0.5 * w[:, 2]) + (w[:, 0] > w[:, 2])


@pin("eq-13-exact", r"\frac{\partial}{\partial p_i}\mathbb{E}\,L(w)=\mathbb{E}\,\Delta_iL(w).")
def test_eq_13_exact_and_thm_13_exact_by_differences() -> None:
    w = states(3)
    flips = []
    for i in range(3):
        up, down = w.copy(), w.copy()
        up[:, i], down[:, i] = 1, -1
        flips.append(law(w, P) @ (rough(up) - rough(down)))
    assert np.allclose(flips, difference(lambda p: mean(rough, p), P), atol=1e-8)
    eta = stats.norm.ppf(P)
    in_eta = difference(lambda e: mean(rough, stats.norm.cdf(e)), eta)
    assert np.allclose(stats.norm.pdf(eta) * flips, in_eta, atol=1e-8)


@pin(
    "thm-13-exact",
    r"""
    Let $w_1,\dots,w_n$ be independent with $P(w_i=1)=p_i$. For every function $L$ on
    $\{-1,1\}^n$, with $\Delta_iL(w)=L(w_i{=}1)-L(w_i{=}{-}1)$, {eq-13-exact} If $p_i=F(\eta_i)$
    with $F$ differentiable at $\eta_i$, then
    $\partial_{\eta_i}\mathbb{E}L=f(\eta_i)\,\mathbb{E}\,\Delta_iL(w)$.
    """,
)
def test_thm_13_exact_needs_independence() -> None:
    # Two weights that always agree: w1 w2 = 1 whatever p, while E Delta_1 L = 2 E w2 is not 0
    p, agreeing = 0.7, np.array([[-1.0, -1.0], [1.0, 1.0]])
    prob, up, down = np.array([1 - p, p]), agreeing.copy(), agreeing.copy()
    up[:, 0], down[:, 0] = 1, -1
    assert np.ptp(agreeing.prod(1)) == 0
    assert prob @ (up.prod(1) - down.prod(1)) == pytest.approx(2 * (2 * p - 1))
    words = prose(PAGE)
    assert "let two weights always agree, $w_1=w_2$, with $P(w_1=1)=p$" in words
    assert r"$\mathbb{E}\,\Delta_1L=2\,\mathbb{E}\,w_2=2(2p-1)$" in words


def test_thm_13_exact_needs_a_slope_of_F_for_eta_only() -> None:
    """Uniform noise at eta = 1: half a slope from the left, none from the right; one in p."""
    uniform = stats.uniform(-1, 2)
    loss = lambda w: 3.0 * (w[:, 0] > 0)  # noqa: E731
    in_eta = [(mean(loss, uniform.cdf(np.array([1 + h]))) - 3) / h for h in (-1e-3, 1e-3)]
    assert in_eta == pytest.approx([1.5, 0])
    in_p = [(mean(loss, np.array([1 - h])) - 3) / -h for h in (1e-3, 1e-4)]
    assert in_p == pytest.approx([3, 3])


@pin(
    "def-13-st",
    r"""
    {eq-13-st}
    """,
)
@pin(
    "eq-13-st",
    r"""
    \widehat{\partial_{p_i}\mathbb{E}L}=2\,\partial_{w_i}L(w),\qquad w\text{ sampled}.
    """,
)
@pytest.mark.parametrize("noise", [Logistic(), Gaussian(), Cauchy(0.5), Triangular()])
@pytest.mark.parametrize("mode", ["sample", "mean", "sign"])  # of a relaxed weight: chapter 15
def test_eq_13_st_is_what_the_layer_leaves_in_grad(noise: object, mode: str) -> None:
    layer = BernoulliLinear(3, 2, bias=False, noise=noise, forward=mode).double()
    torch.manual_seed(0)
    w = layer.weight()
    slope = torch.arange(6.0).reshape(2, 3).double()
    (w * slope).sum().backward()
    assert torch.equal(layer.eta.grad, 2 * slope)


@pin(
    "eq-13-peano",
    r"""
    \mathrm{bias}_i=\mathbb{E}\int_{-1}^{1}(\mu_i+t)\,\partial_{ii}L(w_i{=}t)\,dt .
    """,
)
def test_eq_13_peano_by_quadrature() -> None:
    v = np.array([0.8, -0.5, 1.1])
    curved = lambda w: np.log1p(np.exp(w @ v - 0.3))  # noqa: E731
    s = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    slope = lambda w: s(w @ v - 0.3)[:, None] * v  # noqa: E731
    bias = slope_mean(slope, P) - difference(lambda p: mean(curved, p), P)
    for i in range(3):
        others = np.delete(np.arange(3), i)
        total = 0.0
        for w in states(2):
            z = w @ v[others] - 0.3

            def weighted(t: float, z: float = z, i: int = i) -> float:
                at = z + t * v[i]
                return (2 * P[i] - 1 + t) * s(at) * s(-at) * v[i] ** 2

            total += law(w, P[others]) * integrate.quad(weighted, -1, 1)[0]
        assert bias[i] == pytest.approx(total, abs=1e-7)


@pin(
    "eq-13-bias",
    r"""
    \mathrm{bias}_i=2A_{ii}\,\mu_i,\qquad A_{ii}=\frac1B\sum_b\ell_b''\,v_{bi}^2 ,
    """,
)
def test_eq_13_bias_and_thm_13_bias_for_a_neuron_under_squared_error() -> None:
    # each input with a curvature of its own, one of them negative
    rng = np.random.default_rng(0)
    v, y = rng.uniform(-1, 1, (5, 3)), rng.uniform(-1, 1, 5)
    second = np.array([0.3, 2.0, -1.5, 1.0, 4.0])
    loss = lambda w: (second * (w @ v.T - y) ** 2).mean(-1) / 2  # noqa: E731
    slope = lambda w: (second * (w @ v.T - y)) @ v / 5  # noqa: E731
    bias = slope_mean(slope, P) - difference(lambda p: mean(loss, p), P)
    diagonal = [sum(second[b] * v[b, i] ** 2 for b in range(5)) / 5 for i in range(3)]
    assert np.allclose(bias, 2 * np.array(diagonal) * (2 * P - 1), atol=1e-8)
    assert np.abs(bias).min() > 0.01
    at_mean = difference(lambda p: float(loss((2 * p - 1)[None])[0]), P)
    assert np.allclose(slope_mean(slope, P), at_mean, atol=1e-8)
    gap = float(loss((2 * P - 1)[None])[0]) - mean(loss, P)  # L(mu) - E L, as the text has it
    assert gap == pytest.approx(-sum(diagonal * (1 - (2 * P - 1) ** 2)) / 2)


@pin(
    "thm-13-bias",
    r"""
    Under the assumptions of {prf:ref}`thm-13-exact`, and with $\partial_iL$ the integral of its
    derivative $\partial_{ii}L$ along coordinate $i$ (absolutely continuous; a kink at $t$, as
    of a ReLU, adds its jump of slope times $\mu_i+t$), {eq-13-peano} It is zero if $L$ is
    multilinear in the weights. For one neuron, $L(w)=\frac1B\sum_b\ell_b(w^\top v_b)$ with
    quadratic $\ell_b$ it is {eq-13-bias} and $\mathbb{E}\,2\,\partial_wL(w)=\nabla_p\,L(\mu)$.
    """,
)
def test_thm_13_bias_is_zero_for_multilinear_losses_and_not_for_tied_weights() -> None:
    deep = lambda w: w[:, 0] * (w[:, 1] - 0.5) * (w[:, 2] + 2)  # noqa: E731

    def slope(w: np.ndarray) -> np.ndarray:
        a, b, c = w.T
        return np.stack([(b - 0.5) * (c + 2), a * (c + 2), a * (b - 0.5)], 1)

    off = slope_mean(slope, P) - difference(lambda p: mean(deep, p), P)
    assert np.abs(off).max() < 1e-8
    tied = slope_mean(lambda w: np.stack([2 * w[:, 0] * w[:, 1], w[:, 0] ** 2, 0 * w[:, 0]], 1), P)
    assert tied[0] == pytest.approx(4 * (2 * P[0] - 1) * (2 * P[1] - 1))  # exact gradient: 0


@pytest.mark.parametrize("kink", [-0.6, 0.0, 0.35])
def test_thm_13_bias_counts_a_kink(kink: float) -> None:
    """2 max(0, w_1 - kink) w_2: the slope in w_1 jumps by 2 w_2 at the kink."""
    loss = lambda w: 2 * np.maximum(0, w[:, 0] - kink) * w[:, 1]  # noqa: E731

    def slope(w: np.ndarray) -> np.ndarray:
        first = 2 * (w[:, 0] > kink) * w[:, 1]
        return np.stack([first, 2 * np.maximum(0, w[:, 0] - kink), 0 * first], 1)

    bias = slope_mean(slope, P) - difference(lambda p: mean(loss, p), P)
    mu = 2 * P - 1
    assert np.allclose(bias, [2 * mu[1] * (mu[0] + kink), 0, 0], atol=1e-8)


def test_a_curved_loss_of_a_neuron_descends_no_function() -> None:
    """E 2 dL/dw for exp(w'v) of two weights: its Jacobian in p is not symmetric."""
    v = np.array([0.9, -0.4])
    field = lambda p: slope_mean(lambda w: np.exp(w @ v)[:, None] * v, p)  # noqa: E731
    h = 1e-6 * np.eye(2)
    jacobian = np.stack([(field(P[:2] + e) - field(P[:2] - e)) / 2e-6 for e in h], 1)
    assert abs(jacobian[0, 1] - jacobian[1, 0]) > 0.05


@pin(
    "prop-13-shared",
    r"""
    With one draw of $w$ for the batch the variance of $\frac1B\sum_b\hat g_b(w)$ is, in each
    coordinate, {eq-13-shared} with an independent draw for each input, and
    $0\le\operatorname{Var}_{\text{shared}}\le B\operatorname{Var}_{\text{own}}$.
    """,
)
@pytest.mark.parametrize("like", [True, False])
def test_prop_13_shared_and_its_bounds(like: bool) -> None:
    """log cosh(z - t): B times as noisy with equal inputs and targets, with other targets not."""
    rng = np.random.default_rng(1)
    v = np.repeat(rng.uniform(-1, 1, (1, 3)), 4, 0)
    y = np.ones(4) if like else np.array([1.0, -1, 1, -1])
    each = slopes_of(lambda z, t: np.tanh(z - t), v, y)
    shared, own = shared_by_states(each), own_by_states(each)
    assert np.all(shared <= 4 * own + 1e-12) and np.all(shared >= 0)
    assert np.allclose(shared, 4 * own) == like
    # under the squared error and log(1 + exp(-tz)) a target only adds a constant
    for outer in (lambda z, t: z - t, lambda z, t: -t / (1 + np.exp(t * z))):
        each = slopes_of(outer, v, y)
        assert np.allclose(shared_by_states(each), 4 * own_by_states(each))


def slopes_of(outer: Callable, v: np.ndarray, y: np.ndarray) -> np.ndarray:
    """2 dl_b/dw for each state, input and weight; `outer` is l' at the pre-activation."""
    return 2 * np.stack(
        [outer(states(3) @ a, b)[:, None] * a for a, b in zip(v, y, strict=True)], 1
    )


def shared_by_states(each: np.ndarray) -> np.ndarray:
    prob, total = law(states(3), P), each.mean(1)
    return prob @ total**2 - (prob @ total) ** 2


def own_by_states(each: np.ndarray) -> np.ndarray:
    """Every input has a state of its own: the variance of the mean over all joint states."""
    prob, size = law(states(3), P), each.shape[1]
    first = second = 0.0
    for joint in itertools.product(range(8), repeat=size):
        weight = prob[list(joint)].prod()
        value = sum(each[s, b] for b, s in enumerate(joint)) / size
        first, second = first + weight * value, second + weight * value**2
    return second - first**2


@pin(
    "eq-13-shared",
    r"""
    \begin{gathered}
    \operatorname{Var}_{\text{shared}}=\frac1{B^2}\sum_{b,b'}\operatorname{Cov}(\hat g_b,\hat
    g_{b'}),\\ \operatorname{Var}_{\text{own}}=\frac1{B^2}\sum_b\operatorname{Var}(\hat g_b)
    \end{gathered}
    """,
)
def test_eq_13_shared() -> None:
    """Both sums against the variance over all joint states."""
    rng = np.random.default_rng(1)
    each = slopes_of(lambda z, t: np.tanh(z - t), rng.uniform(-1, 1, (3, 3)), rng.uniform(-1, 1, 3))
    prob, right, own = law(states(3), P), np.zeros(3), np.zeros(3)
    for b, c in itertools.product(range(3), repeat=2):
        cov = prob @ (each[:, b] * each[:, c]) - (prob @ each[:, b]) * (prob @ each[:, c])
        right = right + cov / 9
        own = own + cov / 9 * (b == c)
    assert np.allclose(shared_by_states(each), right)
    assert np.allclose(own_by_states(each), own)
    assert np.abs(right - own).min() > 1e-3


def test_eq_13_shared_has_zero_at_its_lower_end() -> None:
    # the example of the text: v1 = (1, 1), v2 = (1, -1), p1 = 1, squared error
    v, p = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([1.0, 0.3])
    w = states(2)
    each, prob = 2 * (w @ v.T)[..., None] * v, law(w, p)
    shared = prob @ (each.mean(1) - prob @ each.mean(1)) ** 2
    own = np.einsum("s,sbi->i", prob, (each - np.einsum("s,sbi->bi", prob, each)) ** 2) / 4
    assert shared[0] == pytest.approx(0)
    assert own[0] == pytest.approx(2 * (1 - (2 * 0.3 - 1) ** 2))


@pin(
    "eq-13-moments",
    r"""
    \begin{gathered} \mu_z=\mathbb{E}\,z=\sum_i\mu_iv_i,\\
    \sigma_z^2=\operatorname{Var}z=\sum_i(1-\mu_i^2)\,v_i^2 . \end{gathered}
    """,
)
def test_eq_13_moments_by_enumeration() -> None:
    v, w = np.array([0.3, -1.2, 0.7]), states(3)
    z, prob, mu = w @ v, law(w, P), 2 * P - 1
    assert prob @ z == pytest.approx(mu @ v)
    assert prob @ (z - prob @ z) ** 2 == pytest.approx(((1 - mu**2) * v**2).sum())


@pin(
    "eq-13-clt",
    r"""
    \begin{gathered} P(z\ge0)\approx F_{\mathrm
    N}\Bigl(\frac{\mu_z}{\sigma_z}\Bigr),\quad\text{or}\quad F_{\mathrm
    N}\Bigl(\frac{\mu_z}{\sqrt{\sigma_z^2+\sigma^2}}\Bigr)\\ \text{with Gaussian noise of scale
    }\sigma , \end{gathered}
    """,
)
@pytest.mark.parametrize("sigma", [0.0, 0.4, 2.0])
def test_eq_13_clt_is_near_the_enumerated_probability(sigma: float) -> None:
    rng = np.random.default_rng(2)
    v, p = rng.uniform(0.5, 1.5, 13), rng.uniform(0.35, 0.75, 13)
    z, prob, mu = states(13) @ v, law(states(13), p), 2 * p - 1
    exact = prob @ (stats.norm.cdf(z / sigma) if sigma else (z >= 0))
    spread = np.sqrt(((1 - mu**2) * v**2).sum() + sigma**2)
    assert exact == pytest.approx(stats.norm.cdf(mu @ v / spread), abs=0.01)
    assert 0.55 < exact < 0.9  # far from one half and from one, where any formula would do


def test_eq_13_clt_gets_better_with_many_equal_weights_only() -> None:
    def worst(n: int, share: float) -> float:
        v = np.full(n, ((1 - share) / (n - 1)) ** 0.5)
        v[0] = share**0.5
        w, p = states(n), np.full(n, 0.6)
        z, prob = w @ v, law(w, p)
        s = (0.96 * (v**2).sum()) ** 0.5
        t = np.unique(np.concatenate([z - 1e-9, z + 1e-9]))
        below = np.array([prob[z <= u].sum() for u in t])
        return float(np.abs(below - stats.norm.cdf((t - 0.2 * v.sum()) / s)).max())

    assert worst(12, 1 / 12) < 0.6 * worst(3, 1 / 3)
    assert worst(12, 0.9) > 0.2


def test_the_gaussian_with_noise_is_the_law_of_the_sum() -> None:
    m, s, sigma = 0.4, 0.8, 0.5
    by_quadrature = integrate.quad(
        lambda z: stats.norm.pdf(z, m, s) * stats.norm.cdf(z / sigma), -10, 10
    )[0]
    assert by_quadrature == pytest.approx(stats.norm.cdf(m / (s**2 + sigma**2) ** 0.5))


def test_the_limit_of_a_shared_draw_under_squared_error() -> None:
    """4 sum_j (E v_i v_j)^2 (1 - mu_j^2), with four inputs that are equally likely."""
    v = np.random.default_rng(4).uniform(-1, 1, (4, 3))
    each = slopes_of(lambda z, t: z - t, v, np.array([0.2, -1, 0.5, 2]))
    second = np.einsum("bi,bj->ij", v, v) / 4
    limit = 4 * second**2 @ (1 - (2 * P - 1) ** 2)
    assert shared_by_states(each) == pytest.approx(limit)  # B to infinity: each a quarter


# ---------------------------------------------------------------------- what the cells print


def numbers(line: str) -> list[float]:
    return [float(v) for v in re.findall(r"[+-]?\d*\.\d+", line)]


def test_the_library_s_gradient_has_the_mean_of_straight_through() -> None:
    text = printed(containing(PAGE, "of_100 = ")).splitlines()
    found, error, expected = map(numbers, text)
    v, y, p = toy()
    slope = lambda w: (w @ v.T - y) @ v / 6  # noqa: E731
    assert expected == pytest.approx(slope_mean(slope, p), abs=5.1e-4)
    w = states(4)
    each = 2 * slope(w)
    sd = np.sqrt(law(w, p) @ (each - law(w, p) @ each) ** 2 / 20_000)
    assert error == pytest.approx(sd, rel=0.25)  # from 200 means: 5 % each, and three digits
    assert np.all(np.abs(np.array(found) - expected) < 4 * sd + 1e-3)


def toy() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Six inputs, targets made by signs, four probabilities: the numbers of the page."""
    u = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).numpy()
    v = 2 * u - 1
    return v, v @ [1, -1, 1, 1], np.array([0.7, 0.4, 0.5, 0.9])


def test_what_is_said_of_the_toy_problem() -> None:
    v, y, p = toy()
    exact = difference(lambda q: mean(lambda w: ((w @ v.T - y) ** 2).mean(-1) / 2, q), p)
    st = slope_mean(lambda w: (w @ v.T - y) @ v / 6, p)
    lines = printed(containing(PAGE, "by_autograd")).splitlines()
    assert numbers(lines[0]) == numbers(lines[1]) == pytest.approx(exact, abs=5.1e-5)
    assert numbers(lines[2]) == pytest.approx(st, abs=5.1e-5)
    assert st[2] == pytest.approx(exact[2])  # "in the third weight ... the same number"
    assert 0 < st[3] / exact[3] < 0.5  # "in the fourth ... less than half"


def two_layers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, exact gradient and mean of straight-through, one state after the other."""
    torch.manual_seed(1)
    net = SBN(BernoulliLinear(2, 2, bias=False), BernoulliLinear(2, 1, bias=False))
    p = np.concatenate([k.p.detach().numpy().ravel() for k in net.layers])
    v, F = np.array([1.0, -0.5]), stats.logistic.cdf

    def value(q: np.ndarray) -> float:
        total = 0.0
        for w, h in itertools.product(states(6), states(2)):
            prob = law(w, q) * F(h * (w[:4].reshape(2, 2) @ v)).prod()
            total += prob * (2 * F(h @ w[4:]) - 1)
        return total

    st = np.zeros(6)
    for w, h in itertools.product(states(6), states(2)):
        first, last = w[:4].reshape(2, 2), w[4:]
        prob = law(w, p) * F(h * (first @ v)).prod()
        top = 2 * stats.logistic.pdf(h @ last)
        low = 2 * stats.logistic.pdf(first @ v) * top * last
        st += prob * 2 * np.concatenate([np.outer(low, v).ravel(), top * h])
    return p, difference(value, p), st


def test_the_table_of_two_layers_is_exact() -> None:
    _, exact, st = two_layers()
    rows = [numbers(k) for k in printed(containing(PAGE, "st_net = ")).splitlines()[1:]]
    assert np.allclose(rows, np.stack([exact, st, st - exact], 1), atol=5.1e-5)
    assert (st - exact).round(4).tolist() == [-0.0027, 0.0003, 0.0223, -0.0037, 0.0069, 0.0019]
    share = np.abs(st / exact - 1)
    assert (round(100 * share.min()), round(100 * share.max())) == (4, 17)
    assert "between 4 and 17 percent" in prose(PAGE)
    assert np.all(np.abs(st) < np.abs(exact)) and np.all(st * exact > 0)


@pytest.mark.slow
def test_the_library_draws_what_the_table_enumerates() -> None:
    p, _, st = two_layers()
    torch.manual_seed(1)
    net = SBN(BernoulliLinear(2, 2, bias=False), BernoulliLinear(2, 1, bias=False))
    batch, g = torch.tensor([1.0, -0.5]).expand(50, 2), torch.Generator().manual_seed(0)
    found = []
    for _ in range(800):
        net.zero_grad()
        net(batch, generator=g).mean().backward()
        found.append(torch.cat([q.grad.flatten() for q in net.parameters()]).numpy())
    error = np.std(found, axis=0, ddof=1) / 800**0.5
    assert np.all(np.abs(np.mean(found, 0) - st) < 4 * error)


@pytest.mark.parametrize("column", [0, 1])
def test_the_printed_errors_of_the_gaussian(column: int) -> None:
    """The largest distance of the distribution functions, from just below and at each value."""
    rows = [k.split() for k in printed(containing(PAGE, "def clt_error")).splitlines()[1:]]
    printed_ = {int(k[0]): float(k[1 + column]) for k in rows}
    for n in (3, 9):
        share = (1 / n, 0.9)[column]
        v = np.full(n, ((1 - share) / (n - 1)) ** 0.5)
        v[0] = share**0.5
        z, prob = states(n) @ v, law(states(n), np.full(n, 0.6))
        t = np.unique(np.concatenate([z - 1e-10, z + 1e-10]))
        below = np.array([prob[z <= k].sum() for k in t])
        gauss = stats.norm.cdf(t, 0.2 * v.sum(), np.sqrt(0.96))
        assert printed_[n] == pytest.approx(np.abs(below - gauss).max(), abs=5.1e-4)
    root = np.log(printed_[15] / printed_[7]) / np.log(15 / 7)
    assert (abs(root + 0.5) < 0.12) == (column == 0)  # "falls like n^(-1/2)", "levels off"


# ------------------------------------------------------------------------------ the checker


def correct(v: torch.Tensor, y: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    a, mu = v.T @ v / len(v), 2 * p - 1
    return 4 * (a**2 @ (1 - mu**2))


WRONG = {
    "a quarter": lambda v, y, p: correct(v, y, p) / 4,
    "draw for each input": lambda v, y, p: (
        4 * ((v**2)[:, :, None] * (v**2)[:, None, :]).sum(0) @ (1 - (2 * p - 1) ** 2) / len(v) ** 2
    ),
    "are squared": lambda v, y, p: 4 * (v.T @ v / len(v)) @ (1 - (2 * p - 1) ** 2),
    "not the variance": lambda v, y, p: correct(v, y, p) * 2,
    "not 1": lambda v, y, p: 4 * ((v.T @ v / len(v)) ** 2).sum(-1),
    "standard deviation": lambda v, y, p: correct(v, y, p).sqrt(),
}


@pytest.fixture(scope="module")
def check() -> Callable[..., bool]:
    return checker(PAGE)


def test_the_checker_accepts_the_right_answer(check: Callable[..., bool]) -> None:
    assert check(correct)


@pytest.mark.parametrize("hint", WRONG)
def test_the_checker_fails_a_wrong_answer_with_a_hint(
    check: Callable[..., bool], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not check(WRONG[hint])
    assert hint in capsys.readouterr().out


@pytest.mark.parametrize("omega", [0.4, 2.0])
def test_ex_13_coding_mistakes(omega: float) -> None:
    """The factor is the flip difference of a linear loss over its slope in the weight."""
    check, slope = checker(PAGE, "check_coding"), 0.7
    assert (slope * omega - slope * -omega) / slope == pytest.approx(
        eval(check.value, {"omega": omega})
    )
    assert check("omega + omega")
    says_to(check, {"omega": "from 0", "2": "-1 and +1", "1/omega/2": "upside down",
                    "2*omega*omega": "enters once"})  # fmt: skip


def test_ex_13_predict_mistakes() -> None:
    """The letters are those whose printed differences are all exact."""
    check = checker(PAGE, "check_weights")
    text = printed(containing(PAGE, "for name, (loss, at) in cases.items()"))
    assert check([line[0] for line in text.splitlines() if line.count("exact") == 3])
    says_to(check, {"ae": "b: ", "abce": "c: ", "abde": "d: ", "ab": "e: ", "be": "about a"})


# ------------------------------------------------------------------- what the figures draw


@pytest.mark.parametrize("p0", [0.7, 0.35])
def test_fig_slope_figure(p0: float) -> None:
    """The mean loss, and 2 dL/dw at both ends; the numbers of the caption at p = 0.7."""
    affine, square = curves(PAGE, "slope_figure", p0=p0)
    for lines, value in (
        (affine, lambda w: 0.58 + 0.4 * w),
        (square, lambda w: (w + 0.4) ** 2 / 2),
    ):
        chord, *strokes, ends = lines[-4:]
        assert np.allclose(ends, [[0, 1], [value(-1), value(1)]])
        q = np.array([0.2, 0.9])
        on_chord = np.interp(q, *chord)
        assert np.allclose(on_chord, q * value(1) + (1 - q) * value(-1))
        for stroke, w in zip(strokes, (-1.0, 1.0), strict=True):
            rise = (stroke[1, 1] - stroke[1, 0]) / (stroke[0, 1] - stroke[0, 0])
            assert rise == pytest.approx(2 * (value(w + 1e-6) - value(w - 1e-6)) / 2e-6)
            assert stroke.mean(1) == pytest.approx([(w + 1) / 2, value(w)])
    parabola = square[0]
    assert parabola[1] == pytest.approx((2 * parabola[0] - 1 + 0.4) ** 2 / 2)
    slopes = [2 * (w + 0.4) for w in (-1, 1)]
    assert slopes == pytest.approx([-1.2, 2.8])
    assert 0.3 * slopes[0] + 0.7 * slopes[1] == pytest.approx(1.6)


def test_fig_draws_figure() -> None:
    """Every edge is drawn as its coin fell: solid for u < p."""
    left, *draws = axes(PAGE, "draws_figure")
    p = [bar.get_width() for bar in left.patches]
    assert p == [0.7, 0.4, 0.5, 0.9]
    coins = torch.rand(3, 4, generator=torch.Generator().manual_seed(8)).numpy()
    for ax, u in zip(draws, coins, strict=True):
        assert [k.get_linestyle() == "-" for k in ax.lines[:4]] == (u < p).tolist()
    assert len({tuple(u < p) for u in coins}) == 3  # "not the same ones each time"


@pytest.mark.parametrize(("r", "p0"), [(0.8, 0.5), (0.0, 0.95)])
def test_fig_batch_figure(r: float, p0: float) -> None:
    (ax,) = axes(PAGE, "batch_figure", r=r, p0=p0)
    lines = [np.array(k.get_xydata()).T for k in ax.lines]
    u = torch.rand(100, 33, 6, generator=torch.Generator().manual_seed(3)).numpy()
    normal, w = stats.norm.ppf(u), states(6)
    weight = law(w, np.full(6, p0))

    def spread(estimate: np.ndarray) -> float:
        return sum(weight @ (estimate - weight @ estimate) ** 2)

    for k, size in ((0, 1), (2, 4), (5, 32)):
        found = np.empty((2, 100))
        for s, row in enumerate(normal):
            v = r * row[0] + np.sqrt(1 - r**2) * row[1 : size + 1]
            each = [2 * (w @ x - 1)[:, None] * x for x in v]  # 2 dL/dw for one input, target 1
            found[:, s] = spread(sum(each) / size), sum(map(spread, each)) / size**2
        for line, band, values in zip(lines, ax.collections, found, strict=True):
            assert line[:, k] == pytest.approx([size, values.mean()], rel=1e-9)
            vertices = band.get_paths()[0].vertices
            at = vertices[np.isclose(vertices[:, 0], size), 1]
            assert [at.min(), at.max()] == pytest.approx(np.quantile(values, [0.1, 0.9]), rel=1e-9)


def test_what_is_said_of_the_batch_figure() -> None:
    """Over all input sets 192/B and 24 + 168/B at r = 0; the figure's own numbers at B = 32."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal((200_000, 2, 6))
    fourth = (v[:, 0] ** 2).sum(-1) ** 2
    cross = (v[:, 0] * v[:, 1]).sum(-1) ** 2
    error = lambda x: 5 * x.std() / len(x) ** 0.5  # noqa: E731
    for each, expected in ((fourth, 192), (cross, 24)):  # own B = 1; two inputs of one batch
        assert 4 * each.mean() == pytest.approx(expected, abs=4 * error(each))
    ((shared, own),) = curves(PAGE, "batch_figure", r=0.0, p0=0.5)
    said = under(containing(PAGE, "def batch_figure"))["answer"]
    assert "$192/B$" in said and "$24+168/B$" in said
    assert f"${own[1, -1]:.1f}$ and" in said and f"${shared[1, -1]:.1f}$" in said
    assert np.allclose(own[1] * own[0], 192, rtol=0.12)
    assert np.allclose(shared[1], 24 + 168 / shared[0], rtol=0.12)
    ((flat, falling),) = curves(PAGE, "batch_figure", r=1.0, p0=0.5)
    assert np.allclose(flat[1], flat[1, 0]) and np.allclose(falling[1] * falling[0], flat[1, 0])
    (lower,) = curves(PAGE, "batch_figure", r=1.0, p0=0.95)
    assert lower[0][1] / flat[1] == pytest.approx(1 - 0.9**2)
    assert lower[1][1] / falling[1] == pytest.approx(1 - 0.9**2)


@pytest.mark.parametrize(("n", "p0"), [(3, 0.95), (8, 0.5), (10, 0.6), (12, 0.6)])
def test_fig_sum_of_coins(n: int, p0: float) -> None:
    (ax,) = axes(PAGE, "sum_of_coins", n=n, p0=p0)
    (steps,), v = ax.patches, np.linspace(0.6, 1.4, n)
    v /= np.linalg.norm(v)
    values, edges, _ = steps.get_data()
    z, weight = states(n) @ v, law(states(n), np.full(n, p0))
    assert np.abs(z[:, None] - edges).min() > 1e-4  # no rounding decides in which bin a sum is
    for height, lo, hi in zip(values, edges, edges[1:], strict=False):
        inside = weight[(z >= lo) & (z < hi)].sum()
        assert height * (hi - lo) == pytest.approx(inside, abs=1e-12)
    mean, spread = weight @ z, np.sqrt(weight @ z**2 - (weight @ z) ** 2)
    t, density = ax.lines[0].get_xydata().T
    assert density == pytest.approx(stats.norm.pdf(t, mean, spread), abs=1e-9)


def test_what_is_said_of_the_sum_of_coins() -> None:
    said = under(containing(PAGE, "def sum_of_coins"))["answer"]
    assert f"${0.95**12:.2f}$" in said
    (ax,) = axes(PAGE, "sum_of_coins", n=12, p0=0.5)
    values, edges, _ = ax.patches[0].get_data()
    middle = (edges[1:] + edges[:-1]) / 2
    assert np.abs(values - stats.norm.pdf(middle)).max() < 0.06
