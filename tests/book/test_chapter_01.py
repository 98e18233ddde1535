"""Chapter 1: both sides of every formula by independent means, and the checker's wrong answers.

Expected values come from numpy and scipy: loops over states and cells, quadrature, differences.
The functions under test are taken from the notebook itself.
"""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from bridge import z_limit
from chapters import (
    as_in_the_book,
    axes,
    chapter,
    checker,
    containing,
    curves,
    define,
    lines,
    printed,
    run,
    says_to,
    still,
    under,
)
from chapters import figures as figures_of
from pins import pin
from scipy import integrate, optimize, special, stats

import sbnlib

CHAPTER = chapter(1)
INPUTS = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
TARGETS = INPUTS.prod(axis=1)
WEIGHTS = np.array([[1.0, 1], [-1, -1]])


@pytest.fixture(autouse=True)
def book():
    with as_in_the_book():
        yield


def numpy(x):
    return x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def sign(a):
    return np.where(a >= 0, 1.0, -1.0)


def bits(n):
    return np.array(list(itertools.product((-1.0, 1.0), repeat=n)))


def softplus(t):
    return np.logaddexp(0, t)


def xor_loss(x):
    """Losses of the four inputs at their last states, x of shape (4, 2)."""
    return softplus(-TARGETS * (1 + x.sum(axis=-1)))


def phi(table, p):
    """E L of independent bits, a loop over the states."""
    states = bits(len(p))
    return sum(t * np.prod(np.where(x > 0, p, 1 - p)) for t, x in zip(table, states, strict=True))


def integral_over_threshold(function, a, density, ends=(-60, 60)):
    """E function(sign(a - Z)) by quadrature over z, split at the jump; a - z is never 0 there."""
    at = lambda z: function(float(sign(a - z))) * density(z)  # noqa: E731
    cuts = [ends[0], np.clip(a, *ends), ends[1]]
    return sum(integrate.quad(at, lo, hi)[0] for lo, hi in itertools.pairwise(cuts))


# -------------------------------------------------------------------------- signs and plateaus


@pin(
    "eq-01-net",
    r"""
    \begin{gathered} x_1=\operatorname{sign}(v_1+v_2+b_1),\\
    x_2=\operatorname{sign}(-v_1-v_2+b_2),\\ \text{score}=1+x_1+x_2 . \end{gathered}
    """,
)
def test_eq_01_net_computes_xor_exactly_for_biases_from_minus_two_to_below_zero():
    for b1, b2 in itertools.product(np.arange(-4, 4.25, 0.25), repeat=2):
        right = True
        for v1, v2 in itertools.product((-1, 1), repeat=2):
            x1, x2 = sign(v1 + v2 + b1), sign(-v1 - v2 + b2)
            right &= (1 + x1 + x2) * v1 * v2 > 0
            if (b1, b2) == (-1, -1):
                assert (x1 > 0) == (v1 == v2 == 1) and (x2 > 0) == (v1 == v2 == -1)
        assert right == (-2 <= b1 < 0 and -2 <= b2 < 0)


def test_eq_01_net_is_what_the_cells_compute():
    space = run(CHAPTER, containing(CHAPTER, "targets = inputs.prod"))
    x = bits(2)
    for v, target in zip(INPUTS, TARGETS, strict=True):
        by_hand = [1 + sign(v[0] + v[1] - 1) + sign(-v[0] - v[1] - 1)]
        assert sign(by_hand[0]) == target
    table = space["loss"](torch.tensor(x)[:, None].expand(-1, 4, -1)).numpy()
    scores = 1 + x[:, 0] + x[:, 1]
    expected = np.log(1 + np.exp(-TARGETS * scores[:, None]))
    assert table == pytest.approx(expected, abs=1e-14)
    assert space["W"].tolist() == WEIGHTS.tolist()


def test_one_line_does_not_separate_the_targets():
    """A linear program for v . w + b with the sign of y at all four points has no solution."""
    rows = -TARGETS[:, None] * np.hstack([INPUTS, np.ones((4, 1))])
    found = optimize.linprog(np.zeros(3), rows, -np.ones(4), bounds=[(None, None)] * 3)
    assert found.status == 2


def test_chapter_2_has_the_same_units_at_twice_the_weights_and_noise():
    """Weights 2, bias -2 and scale 1 there; weights 1, bias -1 and scale 1/2 here."""
    W, b = (define(chapter(2), "W", "b")[name][0].numpy()[:2] for name in "Wb")
    assert np.array_equal(W, 2 * WEIGHTS) and np.array_equal(b, [-2, -2])
    here, there = (INPUTS @ WEIGHTS.T - 1) / 0.5, INPUTS @ W.T + b
    assert np.array_equal(here, there)


@pin(
    "prop-01-plateau",
    r"""
    Take a network of layers of signs, $x_k=\operatorname{sign}(W_kx_{k-1}+b_k)$, with $x_0=v$
    the input, and any loss of the last states, summed over *finitely many* inputs. At every
    parameter where no pre-activation is zero, the total loss is constant in a neighbourhood, so
    its gradient is zero. The other parameters form a set of measure zero.
    """,
)
def test_prop_01_plateau_in_two_layers_nothing_moves_until_a_pre_activation_crosses_zero():
    rng = np.random.default_rng(0)
    for _ in range(50):
        w1, w2, b1, b2 = (rng.uniform(-1, 1, s) for s in ((3, 2), (2, 3), 3, 2))
        a1 = INPUTS @ w1.T + b1
        a2 = sign(a1) @ w2.T + b2
        # a change of every parameter by r moves a pre-activation by at most 4 r
        r = 0.9 * min(np.abs(a1).min(), np.abs(a2).min()) / 4
        here = xor_loss(sign(a2))
        for _ in range(10):
            d1, d2, e1, e2 = (rng.uniform(-r, r, s) for s in ((3, 2), (2, 3), 3, 2))
            there = sign(sign(INPUTS @ (w1 + d1).T + b1 + e1) @ (w2 + d2).T + b2 + e2)
            assert np.array_equal(xor_loss(there), here)


def test_prop_01_plateau_needs_pre_activations_that_are_not_zero():
    """At b = (-2, -1) one of them is zero, and the loss jumps however small the step."""
    loss = lambda b: xor_loss(sign(INPUTS @ WEIGHTS.T + b)).sum()  # noqa: E731
    assert (INPUTS @ WEIGHTS.T + [-2, -1]).min() < 0 == (INPUTS[3] @ WEIGHTS[0] - 2)
    for step in (1e-3, 1e-6, 1e-9):
        assert loss([-2 - step, -1]) - loss([-2 + step, -1]) > 0.9


def test_prop_01_plateau_the_gradient_through_the_signs_is_exactly_zero_in_training():
    names = "inputs targets sign states coins_loss signs_loss train errors"
    space = define(CHAPTER, *names.split())
    run(CHAPTER, containing(CHAPTER, "coins, trained, moved"), space)
    assert space["unmoved"] == 0.0 and space["moved"] > 0.01


def test_prop_01_plateau_fails_for_infinitely_many_inputs():
    def mean_error(b):
        wrong = integrate.quad(
            lambda v: float((v + b >= 0) != (v >= 0.3)) / 2, -1, 1, points=[-b, 0.3]
        )
        return wrong[0]

    assert mean_error(0.1) == pytest.approx(abs(0.1 + 0.3) / 2, abs=1e-9)
    slope = (mean_error(0.05) - mean_error(-0.05)) / 0.1
    assert slope == pytest.approx(0.5, abs=1e-9)


# --------------------------------------------------------------------------------------- one coin


@pin(
    "eq-01-unit",
    r"""
    \begin{gathered} x=\operatorname{sign}(a-Z),\qquad Z\sim F,\\ P(x=+1\mid a)=P(Z\le a)=F(a).
    \end{gathered}
    """,
)
@pytest.mark.parametrize("law", [stats.logistic, stats.norm, stats.laplace, stats.gumbel_r])
def test_eq_01_unit_probability_by_quadrature_over_the_threshold(law):
    """The last one is not symmetric: there sign(a + Z) has another distribution."""
    for a in (-1.3, 0.0, 0.8):
        plus = integral_over_threshold(lambda x: float(x == 1), a, law.pdf)
        assert plus == pytest.approx(law.cdf(a), abs=1e-8)


def test_eq_01_unit_frequencies_of_both_ways_to_flip():
    rng, m = np.random.default_rng(1), 100_000
    a = np.array([-2.0, -0.5, 0.0, 0.5, 2.0])
    p = special.expit(a)
    by_threshold = np.mean(rng.logistic(size=(m, 5)) <= a, axis=0)
    u = torch.tensor(rng.random((m, 5)))
    library = sbnlib.sample_sign(torch.tensor(a), sbnlib.Logistic(), u=u)
    for seen in (by_threshold, (library > 0).double().mean(0).numpy()):
        z = (seen - p) / np.sqrt(p * (1 - p) / m)
        assert np.abs(z).max() < z_limit(10)


@pin("eq-01-law", r"P(x\mid a)=F(xa),\qquad x\in\{-1,+1\}.")
@pytest.mark.parametrize("law", [stats.logistic, stats.norm, stats.uniform(-1, 2)])
def test_eq_01_law_holds_for_symmetric_continuous_noise(law):
    ends = np.clip(law.support(), -60, 60)
    for a, x in itertools.product((-3, -0.5, 0.25, 0.75, 2), (-1.0, 1.0)):
        mass = integral_over_threshold(lambda state, x=x: float(state == x), a, law.pdf, ends)
        assert mass == pytest.approx(law.cdf(x * a), abs=1e-8)


def test_eq_01_law_fails_without_symmetry_and_with_atoms():
    assert stats.expon.cdf(0.5) + stats.expon.cdf(-0.5) == pytest.approx(0.393, abs=5e-4)
    two_points = lambda a: (float(a >= -1) + float(a >= 1)) / 2  # noqa: E731
    assert two_points(1) + two_points(-1) == 1.5
    assert "two points   [1.  1.5 1. ]" in printed(containing(CHAPTER, "two_points ="))


# ----------------------------------------------------------------------------- the expected loss


@pin(
    "def-01-expected",
    r"""
    Let $x_1,\dots,x_n$ be units that are independent given their pre-activations $a$. The
    [expected loss](nota-expected-loss) is {eq-01-expected}
    """,
)
@pin("eq-01-expected", r"\mathbb{E}\,L(x)=\sum_{x\in\{-1,1\}^n}L(x)\,\prod_{i=1}^nF(x_ia_i).")
def test_eq_01_expected_equals_an_integral_over_the_thresholds():
    table, a = np.random.default_rng(2).normal(size=4), (0.7, -0.4)
    by_sum = sum(
        t * np.prod(special.expit(x * np.array(a))) for t, x in zip(table, bits(2), strict=True)
    )
    value = {tuple(x): t for x, t in zip(bits(2), table, strict=True)}
    inner = {
        x1: integral_over_threshold(lambda x2, x1=x1: value[x1, x2], a[1], stats.logistic.pdf)
        for x1 in (-1.0, 1.0)
    }
    by_integral = integral_over_threshold(inner.get, a[0], stats.logistic.pdf)
    assert by_sum == pytest.approx(by_integral, abs=1e-9)


def test_def_01_expected_fails_for_units_that_are_not_independent():
    """One threshold for two units: the state (+, +) has the probability F(min a), not F F."""
    both = integral_over_threshold(lambda x: float(x == 1), -0.4, stats.logistic.pdf)
    assert both == pytest.approx(special.expit(-0.4), abs=1e-9)
    assert abs(both - special.expit(0.7) * special.expit(-0.4)) > 0.1


def expected_xor(b, scale):
    total = 0.0
    for x in bits(2):
        p = special.expit(x * (INPUTS @ WEIGHTS.T + b) / scale).prod(axis=1)
        total += np.mean(p * xor_loss(np.tile(x, (4, 1))))
    return total


def test_by_hand_equals_numpy_and_library():
    book = define(CHAPTER, "inputs", "targets", "W", "loss", "sign", "states", "expected_loss")
    rng = np.random.default_rng(3)
    for scale in (0.2, 1.0, 3.0):
        b = rng.uniform(-3, 3, 2)
        ours = book["expected_loss"](torch.tensor(b), sbnlib.Logistic(scale)).item()
        layer = torch.nn.Linear(2, 2)
        layer.weight.data, layer.bias.data = torch.tensor(WEIGHTS), torch.tensor(b)
        net = sbnlib.SBN(layer, noise=sbnlib.Logistic(scale))
        library = sbnlib.exact_expectation(net, book["inputs"], book["loss"]).mean().item()
        assert ours == pytest.approx(expected_xor(b, scale), abs=1e-13)
        assert library == pytest.approx(ours, abs=1e-13)


@pin(
    "eq-01-slope",
    r"""
    \frac{\partial}{\partial a}\,\mathbb{E}\,L(x)=\frac1\sigma f\!\left(\frac
    a\sigma\right)\bigl[L(+1)-L(-1)\bigr].
    """,
)
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_eq_01_slope_by_central_differences(scale):
    up, down, h = 1.7, -0.4, 1e-5
    mean = lambda a: special.expit(a / scale) * up + special.expit(-a / scale) * down  # noqa: E731
    for a in (-1.2, 0.0, 0.9):
        formula = stats.logistic.pdf(a / scale) / scale * (up - down)
        assert (mean(a + h) - mean(a - h)) / (2 * h) == pytest.approx(formula, abs=1e-8)


@pin(
    "eq-01-bound",
    r"""
    \Bigl|\frac{\partial}{\partial a_i}\mathbb{E}L\Bigr|\le f(a_i)\,\max_x|\Delta_iL(x)| .
    """,
)
def test_eq_01_bound_holds_and_is_attained_by_one_unit():
    rng, h = np.random.default_rng(4), 1e-5

    def sides(table, a, i):
        e, x = h * np.eye(len(a))[i], bits(len(a))
        slope = phi(table, special.expit(a + e)) - phi(table, special.expit(a - e))
        flips = table[x[:, i] > 0] - table[x[:, i] < 0]
        return abs(slope / (2 * h)), stats.logistic.pdf(a[i]) * np.abs(flips).max()

    for _ in range(30):
        table, a = rng.normal(size=8), rng.normal(size=3) * 2
        for i in range(3):
            slope, bound = sides(table, a, i)
            assert slope <= bound + 1e-8
    slope, bound = sides(np.array([-1, 1.1]), np.array([0.3]), 0)
    assert slope == pytest.approx(bound, abs=1e-8)


@pin(
    "thm-01-smooth",
    r"""
    Let the units be independent given $a$, and $F$ be $k\ge1$ times continuously
    differentiable. For every function $L$ on the states, the expected loss {eq}`eq-01-expected`
    is $k$ times continuously differentiable in $a$, and with
    $\Delta_iL(x)=L(x_i{=}{+}1)-L(x_i{=}{-}1)$, the [flip difference](nota-flip), {eq-01-bound}
    """,
)
def test_thm_01_smooth_third_differences_stay_bounded():
    """A kink or a jump in any derivative up to the third would blow up as the step shrinks."""
    table = np.random.default_rng(5).normal(size=4)
    value = lambda t: phi(table, special.expit([t, 0.5 - 2 * t]))  # noqa: E731
    grid = np.linspace(-2, 2, 41)
    sizes = []
    for h in (4e-2, 2e-2, 1e-2):
        third = [
            (value(t + 1.5 * h) - 3 * value(t + h / 2) + 3 * value(t - h / 2) - value(t - 1.5 * h))
            / h**3
            for t in grid
        ]
        sizes.append(np.abs(third).max())
    assert sizes[2] == pytest.approx(sizes[1], rel=0.02)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_thm_01_smooth_gives_no_more_derivatives_than_the_noise_has():
    """Triangular noise: F has one continuous derivative, and the second one of E L jumps at 0."""
    F = stats.triang(0.5, -1, 2).cdf
    mean = lambda a: 1.7 * F(a) - 0.4 * F(-a)  # noqa: E731
    first = lambda a, h=1e-5: (mean(a + h) - mean(a - h)) / (2 * h)  # noqa: E731
    assert first(1e-4) == pytest.approx(first(-1e-4), abs=1e-3)
    second = [(first(side * 0.3) - first(side * 0.1)) / (side * 0.2) for side in (-1, 1)]
    assert second == pytest.approx([2.1, -2.1], abs=1e-4)


def test_thm_01_smooth_fails_with_one_threshold_for_two_units():
    """E x1 x2 = 1 - 2 |F(a1) - F(a2)|: by quadrature, and its one-sided slopes at a1 = a2."""

    def mean(a1, a2):
        lo, hi = min(a1, a2), max(a1, a2)
        return 1 - 2 * integrate.quad(stats.logistic.pdf, lo, hi)[0]

    f = stats.logistic.pdf(0.4)
    right = (mean(0.4 + 1e-5, 0.4) - mean(0.4, 0.4)) / 1e-5
    left = (mean(0.4, 0.4) - mean(0.4 - 1e-5, 0.4)) / 1e-5
    assert right == pytest.approx(-2 * f, rel=1e-3)
    assert left == pytest.approx(2 * f, rel=1e-3)


def test_thm_01_smooth_needs_a_smooth_law():
    mean = lambda a: 2 * stats.uniform(-1, 2).cdf(a) - 1  # noqa: E731
    assert (mean(1) - mean(1 - 1e-6)) / 1e-6 == pytest.approx(1, abs=1e-6)
    assert mean(1 + 1e-6) - mean(1) == 0


def test_samples_are_flat_at_every_number():
    book = define(CHAPTER, "inputs", "targets", "W", "loss", "sign")
    z = torch.tensor(np.random.default_rng(6).logistic(size=(4096, 1, 2)))
    b = torch.tensor([1.0, -0.3], requires_grad=True)
    a = book["inputs"] @ book["W"].T + b - z
    value = book["loss"](torch.sign(a)).mean()
    assert torch.autograd.grad(value, b)[0].tolist() == [0.0, 0.0]


def test_scale_moves_the_valley_out_of_the_interval():
    grid = np.linspace(-6, 4, 1001)
    lowest = {s: grid[np.argmin([expected_xor((t, -0.5), s) for t in grid])] for s in (0.2, 1, 1.5)}
    assert 0 > lowest[0.2] > -2 > lowest[1] > lowest[1.5]
    assert lowest[1.5] == pytest.approx(-4, abs=0.3)  # "the bottom is near -4"
    h = 1e-4
    slope = {
        s: expected_xor((4 + h, -0.5), s) - expected_xor((4 - h, -0.5), s) for s in (0.2, 0.7, 1)
    }
    assert slope[0.2] < 0 and slope[0.7] < 0 and slope[1] > 0


def test_small_noise_keeps_the_terraces():
    """Slopes below 1e-7 in the middle of the terraces at scale 0.05, as under the figure."""
    h = 1e-4
    for middle in (-3, -1, 1, 3):
        up, down = (expected_xor((middle + d, -0.5), 0.05) for d in (h, -h))
        assert abs(up - down) / (2 * h) < 1e-7


@pytest.mark.slow
def test_descent_ends_where_the_table_and_the_words_of_the_picture_say():
    """The starts and steps of the book, with the gradient by central differences."""

    def loss(b, scale):  # b: (starts, 2)
        x = bits(2)[:, None, None]
        p = special.expit(x * (INPUTS @ WEIGHTS.T + b[:, None]) / scale).prod(axis=-1)
        return (p * softplus(-TARGETS * (1 + x.sum(axis=-1)))).sum(axis=0).mean(axis=-1)

    text = printed(containing(CHAPTER, "ends in the square"))
    starts = np.array(define(CHAPTER, "starts")["starts"].tolist())
    ends = {}
    for scale in (0.05, 0.3, 2.0):
        b, steps = starts, 1e-5 * np.eye(2)
        for _ in range(2000):
            slopes = [(loss(b + h, scale) - loss(b - h, scale)) / 2e-5 for h in steps]
            b = b - np.stack(slopes, axis=-1)
        inside = np.sum(np.all((b > -2) & (b < 0), axis=1))
        assert re.search(rf"{scale:.2f} +{inside} of 7", text)
        ends[scale] = b, inside
    moved = np.abs(ends[0.05][0] - starts).max(axis=1)
    assert ends[0.05][1] == 0 and np.sum(moved < 0.1) > 3  # "most paths do not move"
    away = ends[0.3][0][[0, 1]]  # two of them leave the square behind, five are in it
    assert ends[0.3][1] == 5 and np.all(away.max(axis=1) > starts[:2].max(axis=1))
    place, inside = ends[2.0]
    best = optimize.minimize(lambda b: loss(b[None], 2.0)[0], [0, 0], options={"gtol": 1e-9}).x
    assert inside == 0 and np.abs(place - best).max() < 0.2
    wrong = np.mean((1 + sign(INPUTS @ WEIGHTS.T + best).sum(axis=1)) * TARGETS < 0)
    assert wrong == 0.5


# ------------------------------------------------------------------------------------- tightness


@pin(
    "eq-01-round",
    r"\mathcal L(p)=p_i\,\mathcal L(p_i{=}1)+(1-p_i)\,\mathcal L(p_i{=}0).",
)
def test_eq_01_round_is_affine_in_each_probability():
    rng = np.random.default_rng(7)
    table, p = rng.normal(size=16), rng.random(4)
    for i in range(4):
        ends = [np.where(np.arange(4) == i, end, p) for end in (1.0, 0.0)]
        mix = p[i] * phi(table, ends[0]) + (1 - p[i]) * phi(table, ends[1])
        assert phi(table, p) == pytest.approx(mix, abs=1e-14)


@pin("eq-01-tight", r"\min_{p\in[0,1]^n}\mathcal L(p)=\min_{x\in\{-1,1\}^n}L(x).")
def test_eq_01_tight_on_a_grid_of_the_square():
    table = np.array([0.4, -0.3, 1.0, 0.2])
    grid = [phi(table, np.array(p)) for p in itertools.product(np.linspace(0, 1, 41), repeat=2)]
    assert min(grid) == pytest.approx(table.min(), abs=1e-15)


@pin(
    "prop-01-tight",
    r"""
    Let $L$ be any function on $\{-1,1\}^n$. 1. $\mathcal L$ is multilinear, that is, affine in
    each $p_i$: {eq-01-round} 2. Its minimum over the cube is the minimum of the loss, and a vertex
    attains it: {eq-01-tight} 3. In logits, $p=F(a)$ with $a\in\mathbb{R}^n$ and $0<F<1$
    everywhere, the infimum is the same number, and it is not attained unless $L$ is constant.
    """,
)
def test_prop_01_tight_minimum_at_a_vertex_and_nowhere_lower():
    rng = np.random.default_rng(8)
    for _ in range(20):
        table = rng.normal(size=8)
        vertices = [phi(table, (x + 1) / 2) for x in bits(3)]
        assert min(vertices) == pytest.approx(table.min(), abs=1e-15)
        assert min(phi(table, rng.random(3)) for _ in range(200)) > table.min()


def test_prop_01_tight_in_logits_an_infimum_that_is_not_attained():
    table = np.random.default_rng(9).normal(size=8)
    best = bits(3)[table.argmin()]
    gaps = [phi(table, special.expit(s * best)) - table.min() for s in (1, 5, 10, 20)]
    assert all(g > 0 for g in gaps) and gaps[-1] < 1e-7
    assert np.all(np.diff(gaps) < 0)
    bounded = stats.uniform(-1, 2)
    assert phi(table, bounded.cdf(best)) == table.min()
    assert phi(np.full(8, 0.7), special.expit(best)) == pytest.approx(0.7, abs=1e-15)


def test_fixed_weights_do_not_reach_the_vertices():
    """With noise of scale 0.5 no pair of biases comes near the best network of signs."""
    grid = np.linspace(-6, 6, 61)
    lowest = min(expected_xor(b, 0.5) for b in itertools.product(grid, repeat=2))
    assert lowest > 0.48 > softplus(-1.0) + 0.15


# -------------------------------------------------------------------- several layers, one noise


def total_of_signs(w, b):
    """J_0(W, b): the total loss of the network of signs, any depth, the score of XOR."""
    x = INPUTS
    for wk, bk in zip(w, b, strict=True):
        x = sign(x @ wk.T + bk)
    return xor_loss(x).sum()


def total_expected(w, b, cdf=special.expit):
    """J: for each input by itself, a loop over all paths of a two-layer network."""
    p = lambda x, a: np.prod(np.where(x > 0, cdf(a), 1 - cdf(a)))  # noqa: E731
    total = 0.0
    for d, v in enumerate(INPUTS):
        for x1, x2 in itertools.product(bits(len(b[0])), bits(len(b[1]))):
            path = p(x1, w[0] @ v + b[0]) * p(x2, w[1] @ x1 + b[1])
            total += path * softplus(-TARGETS[d] * (1 + x2.sum()))
    return total


def intervals(a, cdf=special.expit):
    """Cells of one threshold among the pre-activations a: an inner point and the probability."""
    edges = np.concatenate([[-np.inf], np.unique(a), [np.inf]])
    for lo, hi in itertools.pairwise(edges):
        inner = np.clip((np.clip(lo, -1e3, 1e3) + np.clip(hi, -1e3, 1e3)) / 2, lo, hi)
        yield inner, cdf(hi) - cdf(lo)


def shifts(w, b, cdf=special.expit):
    """All cells of Z of a two-layer network: (thresholds, probability)."""
    for first in itertools.product(*(intervals(a, cdf) for a in (INPUTS @ w[0].T + b[0]).T)):
        z1, p1 = np.array([z for z, _ in first]), np.prod([p for _, p in first])
        x1 = sign(INPUTS @ w[0].T + b[0] - z1)
        for second in itertools.product(*(intervals(a, cdf) for a in (x1 @ w[1].T + b[1]).T)):
            z2, p2 = np.array([z for z, _ in second]), np.prod([p for _, p in second])
            yield (z1, z2), p1 * p2


def random_network(rng, n1=2):
    return (
        [rng.uniform(-3, 3, (n1, 2)), rng.uniform(-3, 3, (2, n1))],
        [rng.uniform(-2, 2, n1), rng.uniform(-2, 2, 2)],
    )


@pin(
    "eq-01-couple",
    r"""
    \begin{aligned} J(W,b):={}&\sum_d\mathbb{E}\,\ell_d(x^{(d)})=\mathbb{E}_Z\,J_0(W,b-Z)\\
    \ge{}&\min_{b'}J_0(W,b'). \end{aligned}
    """,
)
@pytest.mark.parametrize("law", [stats.logistic, stats.gumbel_r])
def test_eq_01_couple_by_running_the_shifted_network_in_every_cell(law):
    """The second noise is not symmetric: there b + Z would give another number."""
    rng = np.random.default_rng(10)
    for _ in range(6):
        w, b = random_network(rng)
        cells = shifts(w, b, law.cdf)
        runs = [(p, total_of_signs(w, [b[0] - z[0], b[1] - z[1]])) for z, p in cells]
        assert sum(p for p, _ in runs) == pytest.approx(1, abs=1e-13)
        j = total_expected(w, b, law.cdf)
        assert sum(p * d for p, d in runs) == pytest.approx(j, abs=1e-12)
        assert j >= min(d for _, d in runs)


def test_eq_01_couple_by_a_fine_integral():
    """One layer: E J_0(b - Z) as an integral in both thresholds on a fine grid."""
    w, b = WEIGHTS, np.array([-0.3, -0.8])
    u = (np.arange(120) + 0.5) / 120
    z = special.logit(u)
    shifted = [
        xor_loss(sign(INPUTS @ w.T + b - np.array(pair))).sum() for pair in itertools.product(z, z)
    ]
    assert np.mean(shifted) == pytest.approx(4 * expected_xor(b, 1.0), abs=0.02)


@pin("eq-01-deep", r"\inf_{W,b}J(W,b)=\min_{W,b}J_0(W,b).")
def test_eq_01_deep_no_random_network_of_coins_is_below_the_best_network_of_signs():
    """2-2 with the score of XOR: the best network of signs has total loss 4 log(1 + 1/e)."""
    rng = np.random.default_rng(15)
    draws = [(rng.uniform(-9, 9, (2, 2)), rng.uniform(-9, 9, 2)) for _ in range(3000)]
    signs = min(total_of_signs([w], [b]) for w, b in draws)
    assert signs == pytest.approx(4 * softplus(-1.0), abs=1e-12)
    for w, b in draws:
        p = special.expit(bits(2)[:, None] * (INPUTS @ w.T + b)).prod(axis=-1)
        losses = np.stack([xor_loss(np.tile(x, (4, 1))) for x in bits(2)])
        assert (p * losses).sum() > signs


def test_eq_01_deep_scaled_weights_approach_from_above():
    gaps = []
    for sigma in (1, 0.2, 0.05):
        w, b = WEIGHTS / sigma, np.array([-1.0, -1.0]) / sigma
        p = special.expit(bits(2)[:, None] * (INPUTS @ w.T + b)).prod(axis=-1)
        losses = np.stack([xor_loss(np.tile(x, (4, 1))) for x in bits(2)])
        gaps.append((p * losses).sum() - 4 * softplus(-1.0))
    assert gaps[0] > gaps[1] > gaps[2] > 0 and gaps[2] < 1e-7


@pin(
    "thm-01-couple",
    r"""
    Let $\ell_d$ be any function of the last states, one for each of finitely many inputs, and
    let $J_0(W,b)=\sum_d\ell_d(x^{\mathrm{sign}}_d(W,b))$ be the total loss without noise. The
    total expected loss of the stochastic network is an average of total losses of networks of
    signs with shifted thresholds, {eq-01-couple} If moreover weights and biases range over all real
    numbers, {eq-01-deep}
    """,
)
def test_thm_01_couple_scaling_up_reaches_the_network_of_signs():
    rng = np.random.default_rng(11)
    for _ in range(5):
        w, b = random_network(rng)
        d = total_of_signs(w, b)
        near = total_expected([300 * k for k in w], [300 * k for k in b])
        a1 = INPUTS @ w[0].T + b[0]
        margin = min(np.abs(a1).min(), np.abs(sign(a1) @ w[1].T + b[1]).min())
        assert abs(near - d) <= 4 * 4 * 3.1 * np.exp(-300 * margin) + 1e-9


def test_thm_01_couple_zero_pre_activations_are_moved_without_changing_a_state():
    zero, shifted = np.zeros(2), np.full(2, 1e-3)
    assert np.any(INPUTS @ WEIGHTS.T + zero == 0)
    assert np.array_equal(sign(INPUTS @ WEIGHTS.T + zero), sign(INPUTS @ WEIGHTS.T + shifted))


def test_thm_01_couple_fails_without_free_biases():
    w = np.linspace(-4, 4, 801)
    j = special.expit(-w) + special.expit(2 * w)
    assert j.min() == pytest.approx(0.8499, abs=5e-5)
    v, y = np.array([1.0, 2.0]), np.array([1.0, -1.0])
    assert all(np.sum(sign(k * v) != y) == 1 for k in w)
    assert np.array_equal(sign(-v + 1.5), y)


def test_shifted_layers_of_the_notebook_agree_with_the_loop():
    shifted = define(CHAPTER, "sign", "thresholds", "shifted")["shifted"]
    rng = np.random.default_rng(12)
    w, b = random_network(rng, n1=3)
    a = torch.tensor(INPUTS @ w[0].T + b[0])
    x, p = shifted(a, sbnlib.Logistic())
    assert x.shape == (125, 4, 3) and p.sum().item() == pytest.approx(1, abs=1e-14)
    for i, column in enumerate(a.T.numpy()):
        for value, probability in intervals(column):
            pattern = torch.tensor(sign(column - value))
            same = (x[:, :, i] == pattern).all(dim=1)
            assert p[same].sum().item() == pytest.approx(probability, abs=1e-14)


@pytest.mark.slow
def test_both_sides_of_the_notebook_agree_with_the_loops():
    names = "inputs targets loss sign states noise thresholds shifted"
    space = define(CHAPTER, *names.split())
    run(CHAPTER, containing(CHAPTER, "def both_sides"), space)
    w, b = random_network(np.random.default_rng(16), n1=3)
    given = [torch.tensor(k) for k in (w[0], b[0], w[1], b[1])]
    J, mean, best = space["both_sides"](*given).tolist()
    runs = [(p, total_of_signs(w, [b[0] - z[0], b[1] - z[1]])) for z, p in shifts(w, b)]
    assert pytest.approx(total_expected(w, b), abs=1e-12) == J
    assert mean == pytest.approx(sum(p * j for p, j in runs), abs=1e-12)
    assert best == pytest.approx(min(j for _, j in runs), abs=1e-12)


# ------------------------------------------------------------------------- many-sample training


def many(m, p, w, q=0.6):
    """C_M by a loop over all 2^M tuples of samples."""
    total = 0.0
    for x in bits(m):
        weight = np.prod(np.where(x > 0, p, 1 - p))
        for t, share in ((1, q), (-1, 1 - q)):
            total -= share * weight * np.log(np.mean(special.expit(w * x * t) ** 2))
    return total


@pin("eq-01-many", r"C_M=\mathbb{E}\Bigl[-\log\frac1M\sum_{m=1}^Mp(y\mid x^{(m)})\Bigr].")
def test_eq_01_many_binomial_sum_equals_the_loop_over_samples():
    C = define(CHAPTER, "q", "C")["C"]
    for m, p, w in itertools.product((1, 2, 3, 6), (0.2, 0.7), (0.4, 2.0)):
        value = C(m, torch.tensor(p), torch.tensor(w)).item()
        assert value == pytest.approx(many(m, p, w), abs=1e-12)


def test_eq_01_many_one_sample_is_a_straight_line_and_more_are_not():
    line = [many(1, p, 1.3) for p in (0.2, 0.5, 0.8)]
    assert line[1] == pytest.approx((line[0] + line[2]) / 2, abs=1e-14)
    curve = [many(2, p, 1.3) for p in (0.0, 0.6, 1.0)]
    assert curve[1] < min(curve[0], curve[2])


def test_eq_01_many_a_coin_beats_every_network_of_signs():
    entropy = stats.entropy([0.6, 0.4])
    w = np.linspace(-5, 5, 1001)
    signs = min(many(1, p, k) for p in (0.0, 1.0) for k in w)
    assert signs == pytest.approx(2 * entropy, abs=1e-4)
    assert many(3, 0.6, 1.73) == pytest.approx(1.263, abs=5e-4) and many(3, 0.6, 1.73) < signs
    in_the_limit = -0.6 * np.log(0.6) - 0.4 * np.log(0.4)

    def exact(k: float) -> float:
        terms = ((1, 0.6), (-1, 0.4))
        return -sum(
            s * np.log(0.6 * special.expit(k * t) ** 2 + 0.4 * special.expit(-k * t) ** 2)
            for t, s in terms
        )

    assert entropy < exact(8.0) and exact(20.0) == pytest.approx(in_the_limit, abs=1e-6)


def test_eq_01_many_two_samples_do_not_help_yet_in_the_example():
    values = [many(2, p, w) for p in np.linspace(0, 1, 41) for w in np.linspace(0, 4, 81)]
    assert min(values) == pytest.approx(2 * stats.entropy([0.6, 0.4]), abs=1e-4)


# ---------------------------------------------------------------------------- training, exercises


def test_exact_gradient_learns_where_backpropagation_has_no_slope():
    text = printed(containing(CHAPTER, "starts without error"))
    assert "in W, b              20 of 20" in text
    assert "0.000 in W, b               7 of 20" in text


def test_the_head_alone_can_succeed_for_seven_of_the_twenty_starts():
    """Whether the targets are separable in the untrained units, by a linear program."""
    g = torch.Generator().manual_seed(0)
    w, b = (2 * torch.rand(s, generator=g) - 1 for s in ((20, 3, 2), (20, 1, 3)))
    x = sign(INPUTS @ w.transpose(1, 2).numpy() + b.numpy())
    count = 0
    for states in x:
        rows = -TARGETS[:, None] * np.hstack([states, np.ones((4, 1))])
        found = optimize.linprog(np.zeros(4), rows, -np.ones(4), bounds=[(None, None)] * 4)
        count += found.status == 0
    assert count == 7


def test_exercise_scale_best_ratio():
    u = np.linspace(0.01, 5, 500_000)
    for law, best in ((stats.logistic, 1.543), (stats.norm, 1.0), (stats.cauchy, 1.0)):
        assert u[np.argmax(u * law.pdf(u))] == pytest.approx(best, abs=1e-3)


def test_exercise_time_solves_the_flow():
    a = integrate.solve_ivp(
        lambda t, a: 2.5 * stats.logistic.pdf(a), (0, 1e4), [0.0], rtol=1e-10, atol=1e-10
    ).y[0, -1]
    assert np.exp(a) + 2 * a - np.exp(-a) == pytest.approx(2.5e4, rel=1e-6)
    assert 1e4 * 2.5 * special.expit(-a) == pytest.approx(1, abs=2e-3)


def test_exercise_vertices_no_interior_minimum_and_half_of_the_vertices():
    table = np.random.default_rng(13).normal(size=8)
    h, p = 1e-3, np.array([0.3, 0.6, 0.5])
    e = h * np.eye(3)
    laplace = sum(phi(table, p + d) + phi(table, p - d) - 2 * phi(table, p) for d in e)
    assert abs(laplace) < 1e-14
    states = bits(5)
    value = states.prod(1) + 0.5 * states @ 0.5 ** np.arange(1, 6)
    below = [
        all(
            value[k] < value[np.flatnonzero((states == s * (1 - 2 * np.eye(5)[i])).all(1))[0]]
            for i in range(5)
        )
        for k, s in enumerate(states)
    ]
    assert sum(below) == 16
    assert np.sum(value[below] == value.min()) == 1


def test_ex_01_time_answer_and_mistakes():
    """The flow with uniform noise by small steps: when it is at the end of the support."""
    check = checker(CHAPTER, "check_time")
    for delta in (0.5, 3.0):
        arrival = integrate.quad(lambda a, d=delta: 1 / (d * stats.uniform(-1, 2).pdf(a)), 0, 1)[0]
        assert arrival == pytest.approx(2 / delta)
    assert check("2 / delta") and check("4*delta^-1 / 2")
    says_to(check, {"1/delta": "1/2", "delta/2": "speed", "4/delta": "middle", "2": "logistic"})


@pytest.mark.parametrize("name", "abcdef")
def test_ex_01_many_where_the_minimum_is(name):
    """Over random losses: at an end always, or not always."""
    p, rng, inside = np.linspace(0, 1, 201), np.random.default_rng(1), 0
    for _ in range(200):
        low, high = rng.uniform(-2, 2, size=(2, 2))
        one, two = (lo + (hi - lo) * p for lo, hi in zip(low, high, strict=True))
        value = {
            "a": one + two,
            "b": one - 3 * two,
            "c": 2 * (1 - (2 * p - 1)) ** 2 + (-1 - (2 * p - 1)) ** 2,
            "d": np.maximum(one, two),
            "e": one + p * (1 - p) * (high[0] - low[0]) ** 2,
            "f": -np.log((1 - p) * np.exp(-low[0]) + p * np.exp(-high[0])),
        }[name]
        inside += value.min() < min(value[0], value[-1]) - 1e-9
    assert (inside == 0) == (name in checker(CHAPTER, "check_tight").value)


def test_ex_01_many_mistakes():
    check = checker(CHAPTER, "check_tight")
    assert check("a, b, e, f")
    says_to(check, {"abcef": "c: ", "abdef": "d: ", "abf": "e: ", "abe": "f: ", "bef": "about a"})


def best_of_all(table, p):
    return define(CHAPTER, "states")["states"](len(p))[table.argmin()]


def more_probable(table, p):
    return torch.where(p >= 0.5, 1.0, -1.0)


def uphill(table, p):
    return define(CHAPTER, "round_down", "states")["round_down"](-table, p)


def zeros_and_ones(table, p):
    return (define(CHAPTER, "round_down")["round_down"](table, p) + 1) / 2


def a_sample(table, p):
    return 2.0 * (torch.rand(len(p), generator=torch.Generator().manual_seed(0)) < p) - 1


def backwards(table, p):
    """The units numbered from the last to the first: the right way through another table."""
    turned = table.reshape([2] * len(p)).permute(*reversed(range(len(p)))).flatten()
    return define(CHAPTER, "round_down")["round_down"](turned, p.flip(0)).flip(0)


def turned(table, p):
    return define(CHAPTER, "round_down")["round_down"](table, p).flip(0)


WRONG = {
    backwards: "begin with the first",
    turned: "reversed order",
    more_probable: "more probable sign",
    best_of_all: "best of all states",
    uphill: "rounds up",
    zeros_and_ones: "not a state",
    a_sample: "not the state of the recipe; case 1 of 30: [",
}


@pytest.mark.slow
@pytest.mark.parametrize("answer", WRONG, ids=lambda f: f.__name__)
def test_ex_01_round_checker_fails_wrong_answers(answer, capsys):
    assert not checker(CHAPTER)(answer)
    assert WRONG[answer] in capsys.readouterr().out


def test_ex_01_round_checker_fails_who_forgets_the_signs_already_set_wrong(capsys):
    def forgetful(table, p):
        out = []
        for i in range(len(p)):
            ends = [p.numpy().copy(), p.numpy().copy()]
            ends[0][i], ends[1][i] = 1.0, 0.0
            out.append(1.0 if phi(table.numpy(), ends[0]) <= phi(table.numpy(), ends[1]) else -1.0)
        return torch.tensor(out)

    assert not checker(CHAPTER)(forgetful)
    assert "already set" in capsys.readouterr().out


def test_ex_01_round_solution_is_no_worse_than_the_mean():
    space = define(CHAPTER, "states", "round_down")
    assert checker(CHAPTER)(space["round_down"])
    rng = np.random.default_rng(14)
    for _ in range(50):
        table, p = rng.normal(size=32), rng.random(5)
        x = space["round_down"](torch.tensor(table), torch.tensor(p))
        index = np.flatnonzero((bits(5) == x.numpy()).all(axis=1))[0]
        assert table[index] <= phi(table, p) + 1e-14


# ------------------------------------------------------------------- what the figures draw


def words_on(ax):
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize(("a", "scale"), [(0.5, 0.5), (-1.0, 1.0)])
def test_fig_unit(a, scale):
    (curve, line), *_ = curves(CHAPTER, "unit", a=a, scale=scale)
    law = stats.logistic(scale=scale)
    assert curve[1] == pytest.approx(law.pdf(curve[0]), abs=1e-12)
    assert set(line[0]) == {a}
    (ax,) = axes(CHAPTER, "unit", a=a, scale=scale)
    (shaded,) = (c.get_paths()[0].vertices for c in ax.collections)
    assert shaded[:, 0].max() == pytest.approx(a)
    words = " ".join(words_on(ax))
    plus = integral_over_threshold(lambda x: float(x == 1), a, law.pdf)
    assert f"probability {plus:.2f}" in words and f"probability {1 - plus:.2f}" in words


def says_equal(v, scale):
    """P(score > 0) at the input v, a loop over the states; without noise 0 or 1."""
    a = np.array([v[0] + v[1] - 1, -v[0] - v[1] - 1])
    if not scale:
        return float(1 + sign(a).sum() > 0)
    p = [np.prod(special.expit(x * a / scale)) for x in bits(2)]
    return sum(q for q, x in zip(p, bits(2), strict=True) if 1 + x.sum() > 0)


@pytest.mark.parametrize("scale", [0, 0.5, 1.5])
def test_fig_xor_plane(scale):
    plane, right = axes(CHAPTER, "xor_plane", scale=scale)
    lines = {line.get_label(): line.get_xydata().T for line in right.lines}
    for k in range(3, 321, 20):
        s = lines["equal"][0, k]
        for name, a in (("both +", s - 1), ("both −", -s - 1)):
            p = special.expit(a / scale) if scale else float(a >= 0)
            assert lines[name][1, k] == pytest.approx(p, abs=1e-12)
        assert lines["equal"][1, k] == pytest.approx(says_equal((s, 0), scale), abs=1e-12)
    points = {(t.get_position()[0], round(t.get_position()[1] - 0.22)): t for t in plane.texts}
    for v in INPUTS:
        assert points[tuple(v)].get_text() == f"{says_equal(v, scale):.2f}"
    for dashed, b in zip(plane.lines[:2], (1, -1), strict=True):  # a_1 = 0, a_2 = 0
        assert dashed.get_xydata().sum(axis=1) == pytest.approx(b)


@pytest.mark.parametrize("scale", [0.2, 0.7, 1.5])
def test_fig_xor_plane_is_coloured_in_steps_of_a_tenth(scale):
    """How many green or violet areas lie over a place tells its tenth, from one half on."""
    from matplotlib.colors import to_rgb

    plane, _ = axes(CHAPTER, "xor_plane", scale=scale)
    for s in np.linspace(-3.7, 3.7, 38):
        v = np.array([s / 2 + 0.01, s / 2 - 0.01])
        over = [p for p in plane.patches if p.get_path().contains_point(v)]
        green = sum(to_rgb(p.get_facecolor()) == (0.0, 0.62, 0.55) for p in over)
        p = says_equal(v, scale)
        levels = np.arange(1, 10) / 10
        if np.abs(levels - p).min() > 0.05 / scale * 0.1:  # not at the edge of an area
            assert green == np.sum(p >= levels[4:]) and len(over) - green == np.sum(p < levels[:5])


def test_what_the_plane_shows_is_so():
    said = under(figures_of(CHAPTER)["fig-01-plane"])["answer"]
    assert f"probability {says_equal((1, 1), 0.5):.2f}" in said
    assert f"{says_equal((1, -1), 0.5):.2f} where it should not" in said
    assert f"probability {special.expit(1 / 0.5):.2f}." in said  # of one unit at (1, -1)
    slider = [0, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5]
    assert [s for s in slider if says_equal((1, -1), s) > 0.5] == [1.5, 2, 3, 5]
    assert all(says_equal((1, 1), s) > 0.5 for s in slider)
    for s in slider[1:]:  # the open points suffer first
        assert 1 - says_equal((1, 1), s) < says_equal((1, -1), s)
    assert says_equal((1, -1), 1e9) == pytest.approx(0.75) == says_equal((1, 1), 1e9)


def test_fig_cuts():
    (ax,) = axes(CHAPTER, "cuts", b=-1.0, scale=0.5)
    law = stats.logistic(scale=0.5)
    z, density = ax.lines[0].get_xydata().T
    assert density == pytest.approx(law.pdf(z) / law.pdf(0), abs=1e-12)
    assert [line.get_xdata()[0] for line in ax.lines[1:]] == [-3, -1, 1]
    words = words_on(ax)
    middles = [-4, -2, 0, 2]
    for i, v in enumerate(((1, 1), (1, -1), (-1, 1), (-1, -1))):
        states = words[5 * i + 1 : 5 * i + 5]
        assert states == ["+" if v[0] + v[1] - 1 - m >= 0 else "−" for m in middles]
    edges = [-np.inf, -3, -1, 1, np.inf]
    shares = np.diff([law.cdf(e) for e in edges])
    assert words[20:24] == [f"{p:.3f}" for p in shares]


@pytest.mark.parametrize("m", [1, 4])
def test_fig_staircase(m):
    (mean, stairs), *_ = curves(CHAPTER, "staircase", M=m)
    u = torch.rand(512, 2, generator=torch.Generator().manual_seed(51)).numpy()[:m]
    z = 0.5 * special.logit(u)
    for k in range(0, 961, 37):
        b = mean[0][k]
        assert mean[1][k] == pytest.approx(expected_xor((b, b), 0.5), abs=1e-12)
        sampled = [xor_loss(sign(INPUTS @ WEIGHTS.T + b - pair)).mean() for pair in z]
        assert stairs[1][k] == pytest.approx(np.mean(sampled), abs=1e-12)
    steps = np.flatnonzero(np.diff(stairs[1]))
    assert len(steps) == 6 if m == 1 else 6 < len(steps) <= 6 * m


@pytest.mark.parametrize(("scale", "b2"), [(0.3, -0.5), (1.5, 1.5)])
def test_fig_terraces(scale, b2):
    (flat, smooth), (slope,) = curves(CHAPTER, "terraces", scale=scale, b2=b2)
    for k in range(0, 121, 7):
        b, h = np.array([flat[0][k], b2]), np.array([1e-5, 0])
        assert flat[1][k] == pytest.approx(xor_loss(sign(INPUTS @ WEIGHTS.T + b)).mean())
        assert smooth[1][k] == pytest.approx(expected_xor(b, scale), abs=1e-12)
        quotient = (expected_xor(b + h, scale) - expected_xor(b - h, scale)) / 2e-5
        assert 10 ** slope[1][k] == pytest.approx(abs(quotient), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("w", [0.4, 3.0])
def test_fig_many(w):
    (lines,) = curves(CHAPTER, "many", w=w)
    assert len(lines) == 10  # four curves with a disc each, two levels
    hit, miss = special.expit(w) ** 2, special.expit(-w) ** 2
    for m, (p, value), disc in zip((1, 2, 5, 50), lines[:8:2], lines[1:8:2], strict=True):
        k = np.arange(m + 1)
        up, down = (k * hit + (m - k) * miss) / m, (k * miss + (m - k) * hit) / m
        for j in range(0, 61, 6):
            law = stats.binom.pmf(k, m, p[j])
            assert value[j] == pytest.approx(-law @ (0.6 * np.log(up) + 0.4 * np.log(down)))
            if m < 6:
                assert value[j] == pytest.approx(many(m, p[j], w), abs=1e-12)
        assert disc[1, 0] == value.min()
    levels = [line[1][0] for line in lines[8:]]
    assert levels == pytest.approx([2 * stats.entropy([0.6, 0.4]), stats.entropy([0.6, 0.4])])


def test_fig_many_has_no_minimum_to_mark_where_all_is_flat():
    (lines,) = curves(CHAPTER, "many", w=0)
    assert len(lines) == 6
    assert all(np.ptp(line[1]) < 1e-12 for line in lines)


# ------------------------------------------------------------------- figures without sliders


def logistic_slope(mean, a, h=1e-5):
    """The gradient of a function of logits by central differences."""
    return np.array([(mean(a + h * e) - mean(a - h * e)) / (2 * h) for e in np.eye(len(a))])


@pytest.mark.slow
@pytest.mark.parametrize(("k", "start"), [(0, (-2.0, -2.0)), (7, (-0.6, 2.0))])
def test_fig_vertices_left_descends_the_expected_loss_in_logits(k, start):
    left, _ = still(CHAPTER, "fig-01-vertices")
    x = bits(2)
    table = -x[:, 0] * x[:, 1] + 0.2 * x.sum(1)
    a, path = np.array(start), []
    for _ in range(400):
        path.append(special.expit(a))
        a = a - 0.5 * logistic_slope(lambda b: special.expit(x * b).prod(1) @ table, a)
    np.testing.assert_allclose(lines(left)[3 * k], np.array(path).T, atol=1e-6)


@pytest.mark.slow
def test_fig_vertices_right_is_the_gap_in_time():
    _, right = still(CHAPTER, "fig-01-vertices")
    gap, line = lines(right)[:2]
    draws = torch.Generator().manual_seed(8)
    table = torch.rand(8, generator=draws, dtype=torch.float64).numpy()
    x, a, seen = bits(3), np.zeros(3), {}
    for step in range(1, 1001):
        p = special.expit(x * a)
        seen[5.0 * step] = p.prod(1) @ table - table.min()
        others = np.stack([np.delete(p, i, 1).prod(1) for i in range(3)], 1)
        a = a - 5 * special.expit(a) * special.expit(-a) * ((x * others).T @ table)
    for t, value in gap.T[gap[0] <= 5000]:
        assert value == pytest.approx(seen[t], rel=1e-9)
    np.testing.assert_allclose(line[1], 3 / line[0])


@pytest.mark.slow
def test_fig_paths_descends_the_expected_loss_in_the_biases():
    """Two of its starts, at two of its noise scales, with the gradient by differences."""
    for panel, scale, k, start in ((1, 0.3, 0, (3.0, 3.5)), (2, 2.0, 3, (-3.4, -3.0))):
        axis = still(CHAPTER, "fig-01-paths")[panel]

        def mean(b, scale=scale):
            x = bits(2)[:, None]
            P = special.expit(x * (INPUTS @ WEIGHTS.T + b) / scale).prod(-1)
            score = 1 + x.sum(-1)
            return (P * np.logaddexp(0, -TARGETS * score)).sum(0).mean()

        b, path = np.array(start), []
        for _ in range(500):
            path.append(b)
            b = b - logistic_slope(mean, b)
        drawn = lines(axis)[3 * k][:, :50]
        np.testing.assert_allclose(drawn, np.array(path[::10]).T, atol=1e-4)


def test_fig_training_is_descent_of_both_networks():
    """The first and the last of its starts, for a hundred steps, with gradients by differences."""
    draws = torch.Generator().manual_seed(0)
    shapes = ((20, 3, 2), (20, 1, 3), (20, 3), (20, 1))
    drawn = [torch.rand(s, generator=draws, dtype=torch.float64).numpy() * 2 - 1 for s in shapes]

    def coins(q):
        W, b, w, c = q[:6].reshape(3, 2), q[6:9], q[9:12], q[12]
        x = bits(3)
        P = special.expit(x[:, None] * (INPUTS @ W.T + b)).prod(-1)
        return (P * np.logaddexp(0, -TARGETS * (x @ w + c)[:, None])).sum(0).mean()

    def signs(q):
        W, b, w, c = q[:6].reshape(3, 2), q[6:9], q[9:12], q[12]
        return np.logaddexp(0, -TARGETS * (np.sign(INPUTS @ W.T + b) @ w + c)).mean()

    for axis, mean, moving in zip(
        still(CHAPTER, "fig-01-training"), (coins, signs), (slice(0, 13), slice(9, 13)), strict=True
    ):
        for k in (0, 19):
            q, seen = np.concatenate([p[k].ravel() for p in drawn]), []
            for _ in range(100):
                seen.append(mean(q))
                slope = logistic_slope(mean, q)
                q = q.copy()
                q[moving] -= 2.0 * slope[moving]
            np.testing.assert_allclose(lines(axis)[k][1][:20], seen[::5], rtol=1e-4)
