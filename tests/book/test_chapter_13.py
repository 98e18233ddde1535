"""Chapter 13: both sides of every equation, the theorems, and the checker."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from chapters import as_in_the_book, axes, chapter, curves, run, tagged
from pins import pin
from scipy import integrate, stats

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


def states(n: int) -> np.ndarray:
    return np.array(list(itertools.product([-1.0, 1.0], repeat=n)))


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
    rng = np.random.default_rng(0)
    v, y = rng.uniform(-1, 1, (5, 3)), rng.uniform(-1, 1, 5)
    loss = lambda w: ((w @ v.T - y) ** 2).mean(-1) / 2  # noqa: E731
    slope = lambda w: (w @ v.T - y) @ v / 5  # noqa: E731
    bias = slope_mean(slope, P) - difference(lambda p: mean(loss, p), P)
    assert np.allclose(bias, 2 * (v**2).mean(0) * (2 * P - 1), atol=1e-8)
    at_mean = difference(lambda p: float(loss((2 * p - 1)[None])[0]), P)
    assert np.allclose(slope_mean(slope, P), at_mean, atol=1e-8)


@pin(
    "thm-13-bias",
    r"""
    Under the assumptions of {prf:ref}`thm-13-exact`, and with $\partial_iL$ absolutely
    continuous along coordinate $i$ (a kink at $t$ adds its jump of slope times $\mu_i+t$),
    {eq-13-peano} It is zero if $L$ is multilinear in the weights. For one neuron,
    $L(w)=\frac1B\sum_b\ell_b(w^\top v_b)$ with quadratic $\ell_b$ it is {eq-13-bias} and
    $\mathbb{E}\,2\,\partial_wL(w)=\nabla_p\,L(\mu)$.
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


@pin(
    "prop-13-shared",
    r"""
    With one draw of $w$ for the batch the variance of $\frac1B\sum_bg_b(w)$ is, in each
    coordinate, {eq-13-shared} with an independent draw for each input, and
    $0\le\operatorname{Var}_{\text{shared}}\le B\operatorname{Var}_{\text{own}}$.
    """,
)
@pytest.mark.parametrize("like", [True, False])
def test_prop_13_shared_and_its_equation(like: bool) -> None:
    rng = np.random.default_rng(1)
    v = np.repeat(rng.uniform(-1, 1, (1, 3)), 4, 0) if like else rng.uniform(-1, 1, (4, 3))
    w = states(3)
    each = 2 * (w @ v.T - 1)[..., None] * v  # (8, B, n)
    prob = law(w, P)
    shared = prob @ (each.mean(1) - prob @ each.mean(1)) ** 2
    centred = each - np.einsum("s,sbi->bi", prob, each)
    cov = np.einsum("s,sbi,sci->bci", prob, centred, centred)
    assert np.allclose(shared, cov.sum((0, 1)) / 16)
    # own draws: the joint law of four independent copies, first coordinate, by convolution
    own = np.einsum("bbi->i", cov) / 16
    assert np.all(shared <= 4 * own + 1e-12)
    if like:
        assert np.allclose(shared, 4 * own)


@pin(
    "eq-13-shared",
    r"""
    \begin{gathered}
    \operatorname{Var}_{\text{shared}}=\frac1{B^2}\sum_{b,b'}\operatorname{Cov}(g_b,g_{b'}),\\
    \operatorname{Var}_{\text{own}}=\frac1{B^2}\sum_b\operatorname{Var}(g_b) \end{gathered}
    """,
)
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
    \begin{gathered} m=\mathbb{E}\,z=\sum_i\mu_iv_i,\\
    s^2=\operatorname{Var}z=\sum_i(1-\mu_i^2)\,v_i^2 . \end{gathered}
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
    \begin{gathered} P(z\ge0)\approx\Phi\Bigl(\frac ms\Bigr),\quad\text{or}\quad\Phi\Bigl(\frac
    m{\sqrt{s^2+\sigma^2}}\Bigr)\\ \text{with Gaussian noise of scale }\sigma , \end{gathered}
    """,
)
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
    return run(PAGE, *tagged(PAGE, "checker"))["check"]


def test_the_checker_accepts_the_right_answer(check: Callable[..., bool]) -> None:
    assert check(correct)


@pytest.mark.parametrize("hint", WRONG)
def test_the_checker_fails_a_wrong_answer_with_a_hint(
    check: Callable[..., bool], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not check(WRONG[hint])
    assert hint in capsys.readouterr().out


# ------------------------------------------------------------------- what the figures draw


@pytest.mark.parametrize(("rho", "p0"), [(0.8, 0.5), (0.0, 0.95)])
def test_fig_batch_figure(rho: float, p0: float) -> None:
    ((shared, own),) = curves(PAGE, "batch_figure", rho=rho, p0=p0)
    u = torch.rand(33, 6, generator=torch.Generator().manual_seed(3)).numpy()
    normal, w = stats.norm.ppf(u), states(6)
    weight = law(w, np.full(6, p0))

    def spread(estimate: np.ndarray) -> float:
        return sum(weight @ (estimate - weight @ estimate) ** 2)

    for k, size in enumerate((1, 2, 4, 8, 16, 32)):
        v = rho * normal[:1] + np.sqrt(1 - rho**2) * normal[1 : size + 1]
        each = [2 * (w @ row - 1)[:, None] * row for row in v]  # 2 dL/dw for one input
        assert shared[:, k] == pytest.approx([size, spread(sum(each) / size)], rel=1e-9)
        assert own[1, k] == pytest.approx(sum(map(spread, each)) / size**2, rel=1e-9)


@pytest.mark.parametrize(("n", "p0"), [(3, 0.95), (10, 0.6)])
def test_fig_law(n: int, p0: float) -> None:
    (ax,) = axes(PAGE, "law", n=n, p0=p0)
    (steps,), v = ax.patches, np.linspace(0.6, 1.4, n)
    v /= np.linalg.norm(v)
    values, edges, _ = steps.get_data()
    z, weight = states(n) @ v, law(states(n), np.full(n, p0))
    for height, lo, hi in zip(values, edges, edges[1:], strict=False):
        inside = weight[(z >= lo) & (z < hi)].sum()
        assert height * (hi - lo) == pytest.approx(inside, abs=1e-12)
    mean, spread = weight @ z, np.sqrt(weight @ z**2 - (weight @ z) ** 2)
    t, density = ax.lines[0].get_xydata().T
    assert density == pytest.approx(stats.norm.pdf(t, mean, spread), abs=1e-9)
