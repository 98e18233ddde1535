"""Loss-based estimators in one layer: contract, theorems on variance, REBAR, RELAX, bad input."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise, z_limit
from rows import differences, estimates, exact_one_layer, logits, panels, seeded, z_scores
from scipy import stats
from torch import nn

from sbnlib import (
    Logistic,
    arm,
    control_variate_loss,
    disarm,
    exact_moments,
    layerwise,
    local_expectation,
    muprop,
    pathwise,
    rebar,
    registry,
    reinforce,
    relax,
    straight_through,
)
from sbnlib.estimators.relaxed import noise_given_state

Array = np.ndarray


def bump(z: torch.Tensor) -> torch.Tensor:
    """A control for RELAX that has nothing to do with the loss."""
    return torch.sin(z).sum(-1) + 0.3 * torch.tanh(z[..., 0] * z[..., -1])


LOSS_BASED = {
    "reinforce": reinforce,
    "reinforce_loo": partial(reinforce, num_samples=3, baseline="loo"),
    "reinforce_running": partial(reinforce, num_samples=3, baseline="running"),
    "local_expectation": local_expectation,
    "arm": arm,
    "disarm": disarm,
    "muprop": muprop,
    "rebar": rebar,
    "relax": partial(relax, control=bump),
}
CONTROL_VARIATES = {"muprop": muprop, "rebar": rebar, "relax": LOSS_BASED["relax"]}
every_loss_based = pytest.mark.parametrize("name", LOSS_BASED)
noises = pytest.mark.parametrize("noise_name", ref.NOISES)


def one_layer(noise_name: str, n: int = 3, seed: int = 0) -> tuple[ref.RefNoise, Array]:
    noise = ref.RefNoise(noise_name, 1.2)
    return noise, logits(noise, n, seed + len(noise_name))


# ------------------------------------------------------------------------- the contract


@every_loss_based
def test_every_name_has_an_entry_or_is_a_variant_of_one(name: str) -> None:
    functions = [getattr(e.function, "func", e.function) for e in registry.ESTIMATORS.values()]
    assert getattr(LOSS_BASED[name], "func", LOSS_BASED[name]) in functions


def test_no_loss_based_entry_is_left_out() -> None:
    here = {getattr(f, "func", f) for f in LOSS_BASED.values()}
    entries = {getattr(e.function, "func", e.function)
               for e in registry.ESTIMATORS.values() if e.kind == "loss based"}  # fmt: skip
    assert entries == here


@every_loss_based
@pytest.mark.parametrize("num_samples", [3, 4])
def test_the_value_is_the_mean_loss_of_the_first_states_drawn(name: str, num_samples: int) -> None:
    # The loss writes down what it gets; the first states are those of the value. MuProp looks at
    # the mean and REBAR at relaxed points too, which are no states and never count.
    seen = []

    def loss(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach())
        return torch.exp(x @ torch.tensor([0.3, -0.8], dtype=x.dtype))

    a = torch.tensor([[0.4, -0.3], [0.0, 1.0]]).double().requires_grad_()
    value = LOSS_BASED[name](loss, a, Logistic(), generator=seeded(), num_samples=num_samples)
    states = next(x for x in seen if x.shape == (num_samples, 2, 2) and bool((x.abs() == 1).all()))
    expected = np.exp(states.numpy() @ np.array([0.3, -0.8])).mean(0)
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-12)
    for x in seen:
        assert name in CONTROL_VARIATES or bool((x.abs() == 1).all())


@every_loss_based
def test_the_gradient_in_the_losses_own_parameters_is_the_ordinary_one(name: str) -> None:
    # value = mean_m head . phi(x_m): its gradient in the head is mean_m phi(x_m), at the states
    # of the value alone; compare with the head's gradient at the states written down
    head, seen = torch.tensor([0.7, -0.2, 0.4]).double().requires_grad_(), []

    def loss(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach())
        return torch.tanh(x) @ head + (x[..., 0] * head[1]) ** 2

    a = torch.tensor([[0.4, -0.3, 0.1]] * 5).double().requires_grad_()
    LOSS_BASED[name](loss, a, Logistic(), generator=seeded(), num_samples=4).sum().backward()
    x = next(x for x in seen if x.dim() == 3 and bool((x.abs() == 1).all())).numpy()
    expected = np.tanh(x).mean(0).sum(0)
    expected[1] += 5 * 2 * head[1].item()  # x_0^2 = 1
    np.testing.assert_allclose(head.grad.numpy(), expected, rtol=1e-12)
    assert a.grad.abs().max() > 0


@every_loss_based
def test_the_loss_may_close_over_targets_of_the_batch(name: str) -> None:
    # Row b is unbiased for the loss with target b: z-tests, together 1e-6
    noise, a = one_layer("Logistic", n=2)
    targets = ref.target_loss(2, 3, seed=1)
    leaf = torch.tensor(a).expand(40_000, 3, 2).clone().requires_grad_()
    value = LOSS_BASED[name](targets.torch, leaf, make_noise("Logistic", 1.2), generator=seeded(2))
    assert value.shape == (40_000, 3)
    (g,) = torch.autograd.grad(value.sum(), leaf)
    for b in range(3):
        exact = exact_one_layer(lambda x, b=b: targets.value(x, b), noise, a)
        assert z_scores(g[:, b].numpy(), exact).max() < z_limit(6)


@every_loss_based
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lead", [(), (4,), (2, 4), (3, 2, 4)])
def test_shapes_and_dtypes(name: str, dtype: torch.dtype, lead: tuple[int, ...]) -> None:
    a = torch.linspace(-1, 1, 3, dtype=dtype).expand(*lead, 3).clone().requires_grad_()
    loss = ref.smooth_loss(3).torch
    value = LOSS_BASED[name](loss, a, Logistic(), generator=seeded())
    assert value.shape == lead and value.dtype == dtype
    value.sum().backward()
    assert a.grad.shape == a.shape and a.grad.dtype == dtype and bool(a.grad.isfinite().all())


@every_loss_based
def test_single_precision_is_double_precision_rounded(name: str) -> None:
    # The uniforms are drawn in float64 whatever the dtype of a, so one seed is one sample
    noise, out = make_noise("Gaussian", 1.2), []
    for dtype in (torch.float32, torch.float64):
        a = torch.linspace(-1, 1, 5, dtype=dtype).expand(50, 5).clone().requires_grad_()
        value = LOSS_BASED[name](ref.smooth_loss(5).torch, a, noise, generator=seeded(3))
        (g,) = torch.autograd.grad(value.sum(), a)
        out.append((value.detach().double(), g.double()))
    torch.testing.assert_close(out[0], out[1], rtol=2e-4, atol=2e-4)


@every_loss_based
def test_the_generator_repeats_the_draw(name: str) -> None:
    noise, a = one_layer("Logistic")
    loss = ref.smooth_loss(3).torch
    first, again, other = (estimates(LOSS_BASED[name], loss, noise, a, 60, s) for s in (1, 1, 2))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@every_loss_based
def test_rows_are_independent(name: str) -> None:
    # Correlation of neighbouring rows of the batch: 3 z-tests, together 1e-6
    noise, a = one_layer("Logistic")
    _, g = estimates(LOSS_BASED[name], ref.smooth_loss(3).torch, noise, a, 40_000, 5)
    d = g - g.mean(0)
    r = (d[::2] * d[1::2]).mean(0) / d.var(0)
    assert (np.abs(r) * np.sqrt(20_000)).max() < z_limit(3)


@pytest.mark.slow
@every_loss_based
def test_more_samples_divide_the_variance(name: str) -> None:
    # Means of M=1 (or the least allowed) against M=8: variance ratio within 6 standard errors
    noise, a = one_layer("Logistic")
    few = {"reinforce_loo": 2, "reinforce_running": 2}.get(name, 1)
    function = getattr(LOSS_BASED[name], "func", LOSS_BASED[name])
    options = {
        k: v for k, v in getattr(LOSS_BASED[name], "keywords", {}).items() if k != "num_samples"
    }
    loss = ref.smooth_loss(3, 1)
    exact = exact_one_layer(lambda x: loss.value(x, 0), noise, a)
    _, one = estimates(function, loss.torch, noise, a, 30_000, 6, num_samples=few, **options)
    _, many = estimates(function, loss.torch, noise, a, 30_000, 7, num_samples=8 * few, **options)
    assert z_scores(many, exact).max() < z_limit(3)
    ratio = one.var(0).sum() / many.var(0).sum()
    if "running" in name or "loo" in name:  # more samples make a better baseline too
        assert ratio > 8 * 0.9
    else:
        assert ratio == pytest.approx(8, rel=0.15)


def test_saturated_units_give_finite_estimates() -> None:
    # float32; P of the other state below 1e-17, or exactly 0 (then only a control that does not
    # flatten out leaves noise there, of mean 0)
    for noise_name, name in itertools.product(ref.NOISES, LOSS_BASED):
        a = torch.tensor([[-40.0, 0.0, 40.0]] * 100, requires_grad=True)
        value = LOSS_BASED[name](
            ref.smooth_loss(3).torch, a, make_noise(noise_name), generator=seeded()
        )
        value.sum().backward()
        assert bool(a.grad.isfinite().all()), (noise_name, name)
        if noise_name in ref.BOUNDED and name != "relax":
            assert bool((a.grad[:, [0, 2]] == 0).all()), (noise_name, name)


def in_place(loss: Callable) -> Callable:
    """The same loss, which makes {0, 1} of its argument on the way."""

    def changing(x: torch.Tensor) -> torch.Tensor:
        x.add_(1).mul_(0.5)
        return loss(2 * x - 1)

    return changing


@every_loss_based
def test_a_loss_may_change_its_argument_in_place(name: str) -> None:
    noise, a = one_layer("Logistic")
    loss = ref.smooth_loss(3).torch
    pure, changing = (
        estimates(LOSS_BASED[name], f, noise, a, 50, 3) for f in (loss, in_place(loss))
    )
    np.testing.assert_allclose(changing[0], pure[0], rtol=1e-12)
    np.testing.assert_allclose(changing[1], pure[1], rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------- closed forms by hand


def states_of(function: Callable, noise: ref.RefNoise, a: Array, rows: int, loss: ref.RefLoss):
    """Estimates (rows, n) and every batch of states the loss was given, in order."""
    seen = []

    def recording(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach().numpy())
        return loss.torch(x)

    _, g = estimates(function, recording, noise, a, rows, 11)
    return g, seen


@noises
def test_reinforce_is_the_loss_times_the_score(noise_name: str) -> None:
    noise, a = one_layer(noise_name)
    loss = ref.smooth_loss(3)
    g, (x,) = states_of(partial(reinforce, num_samples=4), noise, a, 100, loss)
    score = x * noise.pdf(a) / noise.prob(x, a)
    expected = (loss.value(x, 0)[..., None] * score).mean(0)
    np.testing.assert_allclose(g, expected, rtol=1e-10, atol=1e-12)


@noises
def test_leave_one_out_is_the_pairwise_u_statistic(noise_name: str) -> None:
    r"""sum_{m<l} (L_m - L_l)(s_m - s_l)/(M(M-1)), on the very samples drawn."""
    noise, a = one_layer(noise_name)
    loss, m = ref.smooth_loss(3), 5
    g, (x,) = states_of(partial(reinforce, num_samples=m, baseline="loo"), noise, a, 100, loss)
    score = x * noise.pdf(a) / noise.prob(x, a)
    value = loss.value(x, 0)
    pairs = sum((value[i] - value[j])[:, None] * (score[i] - score[j])
                for i, j in itertools.combinations(range(m), 2))  # fmt: skip
    np.testing.assert_allclose(g, pairs / (m * (m - 1)), rtol=1e-9, atol=1e-12)


def test_leave_one_out_ignores_a_constant_and_plain_reinforce_does_not() -> None:
    noise, a = one_layer("Logistic")
    loss = ref.smooth_loss(3)
    for baseline, invariant in (("loo", True), (None, False), ("running", False)):
        f = partial(reinforce, num_samples=4, baseline=baseline)
        _, g = estimates(f, loss.torch, noise, a, 50, 1)
        _, shifted = estimates(f, lambda x: loss.torch(x) + 1000.0, noise, a, 50, 1)
        assert np.allclose(g, shifted, atol=1e-9) is invariant


def test_the_running_baseline_is_the_mean_of_the_samples_before() -> None:
    noise, a = one_layer("Cauchy")
    loss, m = ref.smooth_loss(3), 4
    g, (x,) = states_of(partial(reinforce, num_samples=m, baseline="running"), noise, a, 50, loss)
    score, value = x * noise.pdf(a) / noise.prob(x, a), loss.value(x, 0)
    before = np.stack([value[:i].mean(0) if i else 0 * value[0] for i in range(m)])
    np.testing.assert_allclose(g, ((value - before)[..., None] * score).mean(0), rtol=1e-9)


def test_a_tensor_baseline_is_subtracted_row_by_row() -> None:
    noise, a = one_layer("Logistic")
    loss, b = ref.smooth_loss(3), np.linspace(-1, 2, 50)
    f = partial(reinforce, num_samples=2, baseline=torch.tensor(b))
    g, (x,) = states_of(f, noise, a, 50, loss)
    score, value = x * noise.pdf(a) / noise.prob(x, a), loss.value(x, 0)
    np.testing.assert_allclose(g, ((value - b)[..., None] * score).mean(0), rtol=1e-9)


def test_a_baseline_with_a_graph_receives_no_gradient() -> None:
    b = torch.zeros(2, requires_grad=True)
    a = torch.zeros(2, 3, requires_grad=True)
    reinforce(lambda x: x.sum(-1), a, Logistic(), generator=seeded(), baseline=b).sum().backward()
    assert b.grad is None


@noises
def test_local_expectation_is_the_flip_difference(noise_name: str) -> None:
    noise, a = one_layer(noise_name)
    loss = ref.smooth_loss(3)
    g, seen = states_of(partial(local_expectation, num_samples=2), noise, a, 40, loss)
    expected = np.zeros((2, 40, 3))
    for i in range(3):
        up, down = seen[0].copy(), seen[0].copy()
        up[..., i], down[..., i] = 1, -1
        expected[..., i] = noise.pdf(a[i]) * (loss.value(up, 0) - loss.value(down, 0))
    np.testing.assert_allclose(g, expected.mean(0), rtol=1e-9, atol=1e-12)


@noises
def test_arm_and_disarm_of_a_pair(noise_name: str) -> None:
    # x = +1 iff u > F(-a), x' = +1 iff u < F(a). DisARM is a function of the pair; from ARM the
    # uniform can be read back, must lie in the cell of its pair and be uniform (KS, together 1e-6)
    noise, a = one_layer(noise_name, n=2)
    loss = ref.smooth_loss(2)
    f, low, high = noise.pdf(a), noise.cdf(-a), noise.cdf(a)
    g, (x, partner) = states_of(disarm, noise, a, 20_000, loss)
    x, partner = x[0], partner[0]
    gap = (loss.value(x, 0) - loss.value(partner, 0))[:, None]
    expected = 0.5 * gap * x * (x != partner) * f / noise.cdf(-np.abs(a))
    np.testing.assert_allclose(g, expected, rtol=1e-9, atol=1e-12)
    assert set(np.unique((x * 2 + partner)[:, 0])) == ({-1, 1, 3} if a[0] > 0 else {-3, -1, 1})

    g, (x, partner) = states_of(arm, noise, a, 20_000, loss)
    x, partner = x[0], partner[0]
    gap = loss.value(x, 0) - loss.value(partner, 0)
    moved = gap != 0
    assert np.all(g[~moved] == 0)
    u = g[moved] / (gap[moved, None] * f / (low * high)) + 0.5
    np.testing.assert_array_equal(u > low, x[moved] > 0)
    np.testing.assert_array_equal(u < high, partner[moved] > 0)
    # Given that the pair differs somewhere u is not uniform: pairs agree on [lo, hi] in both units
    for i in range(2):
        lo, hi = sorted((low[i], high[i]))
        j = 1 - i
        agree = abs(high[j] - low[j])

        def law(t: Array, lo: float = lo, hi: float = hi, agree: float = agree) -> Array:
            inside = np.clip(t, lo, hi) - lo
            return (t - agree * inside) / (1 - agree * (hi - lo))

        assert stats.kstest(u[:, i], law).pvalue > 1e-6 / 2


# ------------------------------------------------------------------ theorems on variance


def arm_by_quadrature(values: Callable, noise: ref.RefNoise, a: Array) -> tuple[Array, Array]:
    """Exact second moments of ARM and DisARM: panels between the thresholds F(-a), F(a)."""
    axes = [panels(sorted({0.0, 1.0, float(noise.cdf(v)), float(noise.cdf(-v))}), 3) for v in a]
    u = np.stack(np.meshgrid(*[v for v, _ in axes], indexing="ij"), -1).reshape(-1, len(a))
    weight = np.prod(np.meshgrid(*[w for _, w in axes], indexing="ij"), axis=0).ravel()
    low, high, f = noise.cdf(-a), noise.cdf(a), noise.pdf(a)
    x, partner = np.where(u > low, 1.0, -1.0), np.where(u < high, 1.0, -1.0)
    gap = (values(x) - values(partner))[:, None]
    by_arm = gap * (u - 0.5) * f / (low * high)
    by_disarm = 0.5 * gap * x * (x != partner) * f / noise.cdf(-np.abs(a))
    exact = exact_one_layer(values, noise, a)
    np.testing.assert_allclose(weight @ by_arm, exact, atol=1e-12)
    np.testing.assert_allclose(weight @ by_disarm, exact, atol=1e-12)
    return weight @ by_arm**2, weight @ by_disarm**2


def score_moments(values: Callable, noise: ref.RefNoise, a: Array) -> tuple[Array, Array]:
    """Exact second moments of REINFORCE and of local expectation."""
    x = ref.states(len(a))
    prob = noise.prob(x, a).prod(1)
    score = x * noise.pdf(a) / noise.prob(x, a)
    local = noise.pdf(a) * differences(values, len(a))
    return prob @ (values(x)[:, None] * score) ** 2, prob @ local**2


def random_table(n: int, seed: int) -> Callable[[Array], Array]:
    """Any function on the states at all."""
    table, powers = np.random.default_rng(seed).normal(size=2**n), 2.0 ** np.arange(n)
    return lambda x: table[((x + 1) / 2 @ powers).round().astype(int)]


@noises
def test_disarm_varies_at_most_as_much_as_arm_unit_by_unit(noise_name: str) -> None:
    for seed in range(40):
        noise, a = one_layer(noise_name, seed=seed)
        by_arm, by_disarm = arm_by_quadrature(random_table(3, seed), noise, a)
        assert (by_disarm <= by_arm * (1 + 1e-12)).all()


@noises
def test_local_expectation_varies_at_most_as_much_as_reinforce_unit_by_unit(
    noise_name: str,
) -> None:
    for seed in range(40):
        noise, a = one_layer(noise_name, seed=seed)
        plain, local = score_moments(random_table(3, seed), noise, a)
        assert (local <= plain * (1 + 1e-12)).all()


def test_arm_may_vary_more_than_reinforce() -> None:
    # Neither order holds, not even summed over the units, and both happen often
    noise, more = ref.RefNoise("Logistic"), []
    for seed in range(40):
        a, loss = logits(noise, 3, seed), ref.quadratic_loss(3, seed)
        values = lambda x, f=loss: f.value(x, 0)  # noqa: E731
        more.append(arm_by_quadrature(values, noise, a)[0].sum()
                    > score_moments(values, noise, a)[0].sum())  # fmt: skip
    assert 0 < sum(more) < 40


@noises
def test_the_variances_of_the_library_are_the_exact_ones(noise_name: str) -> None:
    # Second moments of 60 000 estimates against the sums above: z-tests, together 1e-6
    noise, a = one_layer(noise_name)
    loss = ref.smooth_loss(3, 1)
    values = lambda x: loss.value(x, 0)  # noqa: E731
    exact = dict(zip(("arm", "disarm"), arm_by_quadrature(values, noise, a), strict=True))
    exact |= dict(zip(("reinforce", "local_expectation"), score_moments(values, noise, a),
                      strict=True))  # fmt: skip
    for seed, (name, moment) in enumerate(exact.items()):
        _, g = estimates(LOSS_BASED[name], loss.torch, noise, a, 60_000, seed)
        assert z_scores(g**2, moment).max() < z_limit(12), name


def test_muprop_has_no_variance_on_linear_losses_and_little_on_nearly_linear_ones() -> None:
    noise, a = one_layer("Logistic")
    linear = ref.linear_loss(3)
    _, g = estimates(muprop, linear.torch, noise, a, 50, 0)
    exact = exact_one_layer(lambda x: linear.value(x, 0), noise, a)
    np.testing.assert_allclose(g, np.broadcast_to(exact, g.shape), rtol=1e-12)
    nearly = lambda x: linear.torch(x) + 0.05 * x[..., 0] * x[..., 1] * x[..., 2]  # noqa: E731
    _, g = estimates(muprop, nearly, noise, a, 20_000, 0)
    _, plain = estimates(reinforce, nearly, noise, a, 20_000, 0)
    assert g.var(0).sum() < 0.02 * plain.var(0).sum()


def test_muprop_by_hand() -> None:
    noise, a = one_layer("Gaussian")
    loss = ref.smooth_loss(3)
    g, seen = states_of(partial(muprop, num_samples=2), noise, a, 40, loss)
    x = next(s for s in seen if np.all(np.abs(s) == 1))
    mean = noise.cdf(a) - noise.cdf(-a)
    slope = loss.gradient(mean, 0)
    rest = loss.value(x, 0) - loss.value(mean, 0) - (x - mean) @ slope
    score = x * noise.pdf(a) / noise.prob(x, a)
    expected = (rest[..., None] * score).mean(0) + 2 * noise.pdf(a) * slope
    np.testing.assert_allclose(g, expected, rtol=1e-9)


# ---------------------------------------------------------------------- REBAR and RELAX


@pytest.mark.slow
@noises
@pytest.mark.parametrize("tau", [0.15, 0.7, 3.0])
def test_rebar_and_relax_are_unbiased_whatever_the_control_variate(
    noise_name: str, tau: float
) -> None:
    # z-tests, together 1e-6
    noise, a = one_layer(noise_name)
    loss = ref.smooth_loss(3, 2)
    exact = exact_one_layer(lambda x: loss.value(x, 0), noise, a)
    other = ref.quadratic_loss(3, 5).torch
    variants = {
        "eta = 1": rebar,
        "eta = 0.3": partial(rebar, eta=0.3),
        "eta = -1, a tensor": partial(rebar, eta=torch.tensor(-1.0).double()),
        "another surrogate": partial(rebar, surrogate=other),
        "a control": partial(relax, control=bump),
        "only a control": partial(relax, control=bump, eta=0.0),
    }
    for seed, (what, f) in enumerate(variants.items()):
        _, g = estimates(f, loss.torch, noise, a, 30_000, seed, tau=tau)
        assert z_scores(g, exact).max() < z_limit(3 * len(variants)), what


def test_muprop_is_unbiased_with_another_surrogate() -> None:
    noise, a = one_layer("Logistic")
    loss, other = ref.smooth_loss(3, 2), ref.quadratic_loss(3, 5)
    _, g = estimates(partial(muprop, surrogate=other.torch), loss.torch, noise, a, 60_000, 1)
    exact = exact_one_layer(lambda x: loss.value(x, 0), noise, a)
    assert z_scores(g, exact).max() < z_limit(3)  # false alarm 1e-6


def test_rebar_without_its_control_variate_is_reinforce() -> None:
    noise, a = one_layer("Logistic")
    g, seen = states_of(partial(rebar, eta=0.0), noise, a, 40, ref.smooth_loss(3))
    x = next(s for s in seen if np.all(np.abs(s) == 1))[0]
    score = x * noise.pdf(a) / noise.prob(x, a)
    np.testing.assert_allclose(g, ref.smooth_loss(3).value(x, 0)[:, None] * score, rtol=1e-9)


def test_rebar_takes_the_relaxed_points_and_the_states_from_one_noise() -> None:
    # z and z' lie on the side of x; z' is another draw with x kept
    noise, a = one_layer("Logistic")
    _, seen = states_of(partial(rebar, tau=0.8), noise, a, 2000, ref.smooth_loss(3))
    x = next(s for s in seen if np.all(np.abs(s) == 1))
    relaxed = [s for s in seen if not np.all(np.abs(s) == 1)]
    assert len(relaxed) == 2
    for s in relaxed:
        assert np.array_equal(np.sign(s), x)
    assert np.abs(relaxed[0] - relaxed[1]).min() > 0


def trainable() -> tuple[torch.Tensor, torch.Tensor, nn.Module]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    log_tau = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    eta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    return log_tau, eta, net


def test_training_the_control_variate_touches_nothing_else() -> None:
    head = torch.tensor([0.7, -0.2, 0.4]).double().requires_grad_()
    loss = lambda x: torch.tanh(x) @ head + x.prod(-1)  # noqa: E731
    a = torch.tensor([[0.4, -0.3, 0.1]] * 5).double().requires_grad_()
    log_tau, eta, net = trainable()
    control = lambda z: net(z)[..., 0]  # noqa: E731
    own = [log_tau, eta, *net.parameters()]
    moment = control_variate_loss(
        loss, a, Logistic(), own, generator=seeded(), tau=log_tau.exp(), eta=eta, control=control
    )
    moment.backward()
    assert a.grad is None and head.grad is None
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in own)
    assert log_tau.grad != 0 and eta.grad != 0 and any(bool((p.grad != 0).any()) for p in own[2:])
    # and the estimate leaves the control variate's parameters alone
    before = [p.grad.clone() for p in own]
    relax(loss, a, Logistic(), generator=seeded(), tau=log_tau.exp(), eta=eta,
          control=control).sum().backward()  # fmt: skip
    assert all(torch.equal(p.grad, g) for p, g in zip(own, before, strict=True))
    assert a.grad is not None and head.grad is not None


def test_what_is_trained_is_the_second_moment_of_the_estimate() -> None:
    # Value: the mean of |g|^2 of the very estimates of the same seed. Gradient: its derivative,
    # by central differences in tau and eta with the seed held.
    noise, a = one_layer("Logistic")
    loss, law = ref.smooth_loss(3).torch, make_noise("Logistic", 1.2)
    leaf = torch.tensor(a).expand(200, 3).clone().requires_grad_()

    def moment(tau: float, eta: float) -> float:
        f = partial(relax, control=bump, tau=tau, eta=eta)
        return float((estimates(f, loss, noise, a, 200, 4)[1] ** 2).sum(1).mean())

    tau = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    eta = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    value = control_variate_loss(
        loss, leaf, law, [tau, eta], generator=seeded(4), tau=tau, eta=eta, control=bump
    )
    assert value.item() == pytest.approx(moment(0.6, 0.8), rel=1e-10)
    value.backward()
    h = 1e-5
    by_tau = (moment(0.6 + h, 0.8) - moment(0.6 - h, 0.8)) / (2 * h)
    by_eta = (moment(0.6, 0.8 + h) - moment(0.6, 0.8 - h)) / (2 * h)
    assert tau.grad.item() == pytest.approx(by_tau, rel=1e-5)
    assert eta.grad.item() == pytest.approx(by_eta, rel=1e-5)


@pytest.mark.slow
def test_trained_relax_lowers_the_variance_fivefold() -> None:
    # E ((x_i + 1)/2 - 0.45)^2 summed over three units and an interaction, as in the toy problem of
    # the REBAR paper. Variances of 40 000 estimates each, so the factor, about 7 against REINFORCE
    # and 4 against REBAR as it comes, is known to a few percent.
    noise, a = ref.RefNoise("Logistic"), np.array([0.3, -0.5, 0.1])
    loss = lambda x: ((x + 1) / 2 - 0.45).square().sum(-1) + 0.3 * x.prod(-1)  # noqa: E731
    values = lambda x: (((x + 1) / 2 - 0.45) ** 2).sum(-1) + 0.3 * x.prod(-1)  # noqa: E731
    log_tau, eta, net = trainable()
    control = lambda z: net(z)[..., 0]  # noqa: E731
    own = [log_tau, eta, *net.parameters()]
    adam, generator = torch.optim.Adam(own, lr=0.02), seeded(1)
    leaf = torch.tensor(a).expand(100, 3)
    for _ in range(250):
        adam.zero_grad()
        control_variate_loss(loss, leaf, Logistic(), own, generator=generator, tau=log_tau.exp(),
                             eta=eta, control=control).backward()  # fmt: skip
        adam.step()
    with torch.no_grad():
        tau, weight = log_tau.exp().item(), eta.item()
    trained = partial(relax, control=control, tau=tau, eta=weight)
    exact = exact_one_layer(values, noise, a)
    _, g = estimates(trained, loss, noise, a, 40_000, 2)
    _, plain = estimates(reinforce, loss, noise, a, 40_000, 2)
    _, untrained = estimates(rebar, loss, noise, a, 40_000, 2)
    assert z_scores(g, exact).max() < z_limit(3)  # still unbiased; false alarm 1e-6
    assert plain.var(0).sum() > 5 * g.var(0).sum()
    assert untrained.var(0).sum() > 3 * g.var(0).sum()


# ------------------------------------------------------------- the noise that explains x


@noises
@pytest.mark.parametrize("x", [1.0, -1.0])
def test_the_noise_given_the_state_has_the_conditional_law(noise_name: str, x: float) -> None:
    # Kolmogorov-Smirnov on 20 000 draws at three logits, together 1e-6
    noise = ref.RefNoise(noise_name, 1.2)
    for a in (-0.9, 0.0, 0.7):
        u = torch.rand(20_000, generator=seeded(3), dtype=torch.float64)
        at = torch.full_like(u, a)
        z = noise_given_state(at, torch.full_like(u, x), make_noise(noise_name, 1.2), u).numpy()
        assert (z <= a).all() if x > 0 else (z >= a).all()

        def law(t: Array, a: float = a) -> Array:
            inside = noise.cdf(np.minimum(t, a)) / noise.cdf(a)
            above = (noise.cdf(np.maximum(t, a)) - noise.cdf(a)) / noise.cdf(-a)
            return inside if x > 0 else above

        assert stats.kstest(z, law).pvalue > 1e-6 / 3


@noises
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_is_on_the_right_side_of_every_logit(noise_name: str, dtype: torch.dtype) -> None:
    a = torch.linspace(-30, 30, 241, dtype=dtype)[:, None]
    u = torch.tensor([0.0, 1e-12, 2**-25, 0.1, 0.5, 0.9, 1 - 2**-25, 1 - 2**-53]).double()
    noise = make_noise(noise_name, 1.2)
    for x in (1.0, -1.0):
        possible = noise.cdf(x * a) > 0
        z = noise_given_state(a.expand(-1, 8), torch.full((241, 8), x, dtype=dtype), noise,
                              u.expand(241, 8))  # fmt: skip
        assert z.dtype == dtype and not bool(z.isnan().any())
        assert bool((x * (a - z) >= 0).all() | (~possible).all())
        assert bool((x * (a - z) >= 0)[possible.expand(-1, 8)].all())


# ---------------------------------------------------------------------------- bad input

A = torch.zeros(2, 3)


def never(x: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the loss was called before the check")


@every_loss_based
@pytest.mark.parametrize("num_samples", [0, -1, 1.5, True, None, "3"])
def test_a_bad_number_of_samples_is_refused_before_any_work(name: str, num_samples: object) -> None:
    with pytest.raises(ValueError, match="num_samples"):
        LOSS_BASED[name](never, A, Logistic(), num_samples=num_samples)


@pytest.mark.parametrize("baseline", ["loo", "running"])
def test_a_named_baseline_needs_two_samples(baseline: str) -> None:
    with pytest.raises(ValueError, match="num_samples >= 2"):
        reinforce(never, A, Logistic(), baseline=baseline)


@pytest.mark.parametrize("baseline", ["mean", "LOO", "", 0.5, 3, lambda x: x, torch.zeros(3),
                                      torch.zeros(7, 2), torch.zeros(2, 2)])  # fmt: skip
def test_an_unknown_baseline_is_refused_before_any_work(baseline: object) -> None:
    # a tensor must broadcast *to* a.shape[:-1] = (2,), not beyond it
    with pytest.raises(ValueError, match="baseline"):
        reinforce(never, A, Logistic(), num_samples=2, baseline=baseline)


@pytest.mark.parametrize("name", ["rebar", "relax"])
@pytest.mark.parametrize("tau", [0, 0.0, -1.0, float("nan"), float("inf"), "1", None,
                                 torch.tensor(-0.5), torch.tensor(0.0)])  # fmt: skip
def test_a_bad_temperature_is_refused_before_any_work(name: str, tau: object) -> None:
    with pytest.raises(ValueError, match="tau"):
        CONTROL_VARIATES[name](never, A, Logistic(), tau=tau)
    with pytest.raises(ValueError, match="tau"):
        control_variate_loss(never, A, Logistic(), [torch.zeros(1)], tau=tau)


@every_loss_based
@pytest.mark.parametrize(
    "loss",
    [lambda x: x, lambda x: x.sum(), lambda x: x.sum(-1, keepdim=True), lambda x: x.mean((-1, -2)),
     lambda x: 1.0, lambda x: None],
    ids=["states", "scalar", "kept axis", "batch mean", "float", "None"],
)  # fmt: skip
def test_a_loss_of_the_wrong_shape_is_refused(name: str, loss: Callable) -> None:
    with pytest.raises(ValueError, match="loss must"):
        LOSS_BASED[name](loss, A, Logistic())


HEAD = torch.tensor([0.3], requires_grad=True)
NOT_DIFFERENTIABLE = {
    "step": lambda x: (x.sum(-1) > 0).to(x.dtype),
    "detached": lambda x: x.detach().square().sum(-1),
    "head on a step": lambda x: HEAD * (x.sum(-1) > 0).to(x.dtype),
    "head only": lambda x: HEAD.expand(x.shape[:-1]),
}


@pytest.mark.parametrize("kind", NOT_DIFFERENTIABLE)
@pytest.mark.parametrize("name", CONTROL_VARIATES)
def test_a_loss_without_a_derivative_is_refused(name: str, kind: str) -> None:
    # With a step inside, REBAR and RELAX would be silently biased: the control variate would jump
    with pytest.raises(ValueError, match="differentiable"):
        CONTROL_VARIATES[name](NOT_DIFFERENTIABLE[kind], A, Logistic(), generator=seeded())


@pytest.mark.parametrize("name", ["rebar", "relax"])
def test_a_trainable_weight_does_not_hide_a_loss_without_a_derivative(name: str) -> None:
    eta = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(ValueError, match="differentiable"):
        CONTROL_VARIATES[name](NOT_DIFFERENTIABLE["step"], A, Logistic(), eta=eta)


@pytest.mark.parametrize("name", CONTROL_VARIATES)
def test_values_may_be_had_without_gradients(name: str) -> None:
    with torch.no_grad():
        value = CONTROL_VARIATES[name](ref.smooth_loss(3).torch, A, Logistic(), generator=seeded())
    assert not value.requires_grad and bool(value.isfinite().all())


def test_a_control_must_be_differentiable_and_have_the_shape_of_a_loss() -> None:
    loss = ref.smooth_loss(3).torch
    for control in NOT_DIFFERENTIABLE.values():
        with pytest.raises(ValueError, match="control must be differentiable"):
            relax(loss, A, Logistic(), control=control)
    with pytest.raises(ValueError, match="control must return one value an input"):
        relax(loss, A, Logistic(), control=lambda z: z)


def test_relax_takes_a_loss_without_a_derivative_with_a_surrogate_of_its_own() -> None:
    # z-test, 1e-6
    noise, a = one_layer("Logistic")
    step = NOT_DIFFERENTIABLE["step"]
    f = partial(relax, control=bump, surrogate=ref.smooth_loss(3).torch)
    _, g = estimates(f, step, noise, a, 40_000, 1)
    exact = exact_one_layer(lambda x: (x.sum(-1) > 0).astype(float), noise, a)
    assert z_scores(g, exact).max() < z_limit(3)


def black_box(x: torch.Tensor) -> torch.Tensor:
    """A loss by numpy: it must be at states, and torch sees no derivative."""
    assert bool((x.abs() == 1).all())
    x = x.numpy()
    return torch.tensor((x.sum(-1) > 0) + 0.3 * x[..., 0] * x[..., 1])


@noises
def test_black_boxes_with_a_surrogate_or_with_a_control_alone(noise_name: str) -> None:
    # z-tests, together 1e-6
    noise, a = one_layer(noise_name)
    exact = exact_one_layer(lambda x: black_box(torch.tensor(x)).numpy(), noise, a)
    surrogate = ref.smooth_loss(3).torch
    variants = {
        "muprop": partial(muprop, surrogate=surrogate),
        "rebar": partial(rebar, surrogate=surrogate),
        "relax": partial(relax, control=bump, surrogate=surrogate),
        "relax, control alone": partial(relax, control=bump, eta=0.0),
        "rebar, no control variate": partial(rebar, eta=0),
    }
    for seed, (what, f) in enumerate(variants.items()):
        _, g = estimates(f, black_box, noise, a, 20_000, seed)
        assert z_scores(g, exact).max() < z_limit(3 * len(variants)), what


def test_the_control_alone_is_relaxs_formula() -> None:
    # [L(x) - r(z')] score + r'(z) - r'(z') dz'/da, with r = 2 z and the uniforms drawn again
    noise, a = one_layer("Logistic", n=2)
    _, g = estimates(partial(relax, control=lambda z: 2 * z.sum(-1), eta=0.0), black_box,
                     noise, a, 100, 4)  # fmt: skip
    generator = seeded(4)
    u, v = (torch.rand(100, 2, generator=generator, dtype=torch.float64).numpy() for _ in range(2))
    x = np.where(u < noise.cdf(a), 1.0, -1.0)
    explained = x * noise.icdf(v * noise.prob(x, a))
    moves = 1 - v * noise.pdf(a) / noise.pdf(explained)
    values = black_box(torch.tensor(x)).numpy() - 2 * (a - explained).sum(1)
    score = x * noise.pdf(a) / noise.prob(x, a)
    np.testing.assert_allclose(g, values[:, None] * score + 2 - 2 * moves, rtol=1e-9, atol=1e-12)


def test_a_control_can_be_trained_for_a_black_box() -> None:
    # Second moments of 20 000 estimates before and after, known to a percent or two
    noise, a = ref.RefNoise("Logistic"), np.array([0.3, -0.5, 0.1])
    _, _, net = trainable()
    control = lambda z: net(z)[..., 0]  # noqa: E731
    adam, generator = torch.optim.Adam(net.parameters(), lr=0.02), seeded(1)
    for _ in range(100):
        adam.zero_grad()
        control_variate_loss(
            black_box, torch.tensor(a).expand(100, 3), Logistic(), net.parameters(),
            generator=generator, eta=0.0, control=control,
        ).backward()  # fmt: skip
        adam.step()
    _, plain = estimates(reinforce, black_box, noise, a, 20_000, 2)
    _, trained = estimates(partial(relax, control=control, eta=0.0), black_box, noise, a, 20_000, 2)
    assert (trained**2).mean() < 0.7 * (plain**2).mean()


@pytest.mark.parametrize("name", CONTROL_VARIATES)
def test_the_message_of_a_black_box_says_what_to_do(name: str) -> None:
    with pytest.raises(ValueError, match="hand in a surrogate .* eta=0.0, .* such as disarm"):
        CONTROL_VARIATES[name](NOT_DIFFERENTIABLE["step"], A, Logistic(), generator=seeded())


def test_nothing_to_train_without_a_control_and_without_eta_is_refused() -> None:
    with pytest.raises(ValueError, match="control must be a function where eta is the number 0"):
        control_variate_loss(never, A, Logistic(), [torch.zeros(1)], eta=0.0)


@pytest.mark.parametrize("name", ["rebar", "relax"])
@pytest.mark.parametrize("eta", ["1", None, float("nan"), float("inf"), [1.0]], ids=str)
def test_a_bad_weight_is_refused_before_any_work(name: str, eta: object) -> None:
    with pytest.raises(ValueError, match="eta must be a finite number or a tensor, got"):
        CONTROL_VARIATES[name](never, A, Logistic(), eta=eta)


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("name", ["rebar", "relax"])
@noises
def test_uniforms_at_the_ends_give_no_nan(
    noise_name: str, name: str, u: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In float32 the second rounds to 1, and F(40) is 1: F^-1 and its derivative are infinite there
    from sbnlib.estimators import control_variates

    ends = lambda shape, like, generator: torch.full(shape, u, dtype=torch.float64)  # noqa: E731
    monkeypatch.setattr(control_variates, "uniforms", ends)
    a = torch.tensor([[-40.0, 0.0, 40.0]], requires_grad=True)
    options = {"control": lambda z: z.sum(-1)} if name == "relax" else {}
    function = {"rebar": rebar, "relax": relax}[name]
    function(ref.smooth_loss(3).torch, a, make_noise(noise_name), **options).sum().backward()
    assert bool(a.grad.isfinite().all())


@every_loss_based
def test_a_loss_of_whole_numbers_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="floating-point"):
        LOSS_BASED[name](lambda x: x.sum(-1) > 0, A, Logistic())


@every_loss_based
def test_bad_logits_and_noises_are_refused_before_any_work(name: str) -> None:
    with pytest.raises(TypeError, match="a must"):
        LOSS_BASED[name](never, torch.zeros(2, 3, dtype=torch.long), Logistic())
    with pytest.raises(TypeError, match="noise"):
        LOSS_BASED[name](never, A, 1.0)
    with pytest.raises(ValueError, match="noise must be one of .*Cauchy.*'logistik'"):
        LOSS_BASED[name](never, A, "logistik")
    with pytest.raises(ValueError, match="finite"):
        LOSS_BASED[name](never, torch.full((2, 3), float("nan")), Logistic())
    with pytest.raises(ValueError, match="axis"):
        LOSS_BASED[name](never, torch.tensor(0.0), Logistic())


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="parameters"):
        control_variate_loss(never, A, Logistic(), [])


DRAWS = [e for e in registry.ESTIMATORS.values() if not e.state_only]


@pytest.mark.parametrize("entry", DRAWS, ids=lambda e: e.name)
def test_estimators_that_draw_have_no_exact_moments(entry: registry.Entry) -> None:
    import sbnlib

    net, inputs = sbnlib.SBN(nn.Linear(2, 3)), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="estimator"):
        exact_moments(net, inputs, never, entry.name)
    if entry.kind == "chain rule":
        for own in (entry.function, pathwise(entry.function)):
            with pytest.raises(ValueError, match="estimator"):
                exact_moments(net, inputs, never, own)


@every_loss_based
def test_the_signature_is_the_contract(name: str) -> None:
    parameters = inspect.signature(LOSS_BASED[name]).parameters
    assert list(parameters)[:3] == ["loss", "a", "noise"]
    assert {"num_samples", "generator"} <= set(parameters)
    assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters.values())[3:])
    assert callable(layerwise(LOSS_BASED[name])) and callable(straight_through)
