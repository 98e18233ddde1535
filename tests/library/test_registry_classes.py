"""Every estimator of the registry against enumeration: unbiased where it says so, else as known.

An entry that is unbiased for any loss is z-tested on losses of every kind, in one layer and in
depth. A biased one must have the bias that theory gives, not just some bias.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise, z_limit
from rows import (
    differences,
    exact_one_layer,
    expectation_one,
    logits,
    mean_slopes,
    network_estimates,
    panels,
    relaxed_gradient,
    row_net,
    sech2,
    seeded,
    z_scores,
)
from scipy import integrate

from sbnlib import network_estimator as network
from sbnlib import registry

Array = np.ndarray
ENTRIES = list(registry.ESTIMATORS.values())
UNBIASED = [e for e in ENTRIES if e.unbiased_for == "any"]
BIASED = [e for e in ENTRIES if e.unbiased_for != "any"]
NEEDS_DERIVATIVE = {"muprop", "rebar", "relax"}  # of the unbiased ones
ON_THE_LINE = {"straight_through": 1.0, "zgr": 0.0, "darn": -1.0}  # name -> s
SLOPES = {  # constant factors that know nothing of the noise
    "identity": lambda a: np.ones_like(a),
    "hardtanh": lambda a: (np.abs(a) < 1).astype(float),
}
RELAXED_SIGN = {"st_gumbel", "gumbel_rao"}
TAU = 0.5  # the temperature of the relaxed entries

ids = {"ids": lambda e: e.name}
noises = pytest.mark.parametrize("noise_name", ref.NOISES)
ROWS = 60_000


def discontinuous_loss(n: int, seed: int = 0) -> ref.RefLoss:
    """A step, a parity and a table: nothing to differentiate."""
    rng = np.random.default_rng(seed)
    c, table = rng.normal(size=n), rng.normal(size=2**n)
    powers = 2.0 ** np.arange(n)

    def value(x: Array, b: int) -> Array:
        index = ((x + 1) / 2 @ powers).round().astype(int)
        return (x @ c > 0.1) + 0.5 * np.prod(x, -1) + table[index]

    def in_torch(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor(value(x.detach().numpy(), 0), dtype=x.dtype)

    return ref.RefLoss("discontinuous", value, lambda x, b: 0 * x, in_torch)


KINDS = {**ref.LOSSES, "discontinuous": discontinuous_loss}


def kinds_for(entry: registry.Entry) -> list[str]:
    return [k for k in KINDS if k != "discontinuous" or entry.name not in NEEDS_DERIVATIVE]


def in_logits(entry: registry.Entry, noise: ref.RefNoise, a: Array, loss: ref.RefLoss, seed: int):
    """Values and estimates of the entry's network estimator on one layer with bias ``a``."""
    n = len(a)
    net = ref.RefNet((np.zeros((n, 1)),), (a,), noise)
    values, grads = network_estimates(network(entry.name), net, np.zeros(1), loss, ROWS, seed)
    return values, grads[0, "bias"]


@pytest.mark.parametrize("entry", UNBIASED, **ids)
class TestUnbiased:
    """z-tests, each with probability 1e-6 of a false alarm."""

    @pytest.mark.slow
    @noises
    def test_one_layer(self, entry: registry.Entry, noise_name: str) -> None:
        noise = ref.RefNoise(noise_name, 1.3)
        kinds, a = kinds_for(entry), logits(noise, 3, seed=len(noise_name))
        limit = z_limit(4 * len(kinds))  # three logits and the value
        for seed, kind in enumerate(kinds):
            loss = KINDS[kind](3, seed + 1)
            values, g = in_logits(entry, noise, a, loss, seed)
            prob = noise.prob(ref.states(3), a).prod(1)
            exact = exact_one_layer(lambda x, f=loss: f.value(x, 0), noise, a)
            assert z_scores(g, exact).max() < limit, kind
            assert z_scores(values, prob @ loss.value(ref.states(3), 0)) < limit, kind

    @pytest.mark.slow
    def test_in_depth(self, entry: registry.Entry) -> None:
        # PSA says in its docstring where it is exact in depth; test_path.py has those cases
        if entry.name in ("psa", "psa_symmetric"):
            pytest.skip("biased in depth")
        kinds = ["linear", "smooth"]
        if entry.name not in NEEDS_DERIVATIVE:
            kinds.append("discontinuous")
        for seed, noise_name in enumerate(("Logistic", "Triangular", "Cauchy")):
            scale = {"Triangular": 3.0}.get(noise_name, 0.7)
            net = ref.random_net((2, 3, 2), ref.RefNoise(noise_name, scale), seed=seed)
            loss, v = KINDS[kinds[seed % len(kinds)]](2, seed), np.array([0.6, -1.1])
            values, grads = network_estimates(network(entry.name), net, v, loss, ROWS, seed)
            exact = ref.gradient_one(net, v, loss, 0)
            limit = z_limit(3 * (1 + sum(e.size for e in exact.values())))
            for key, e in exact.items():
                assert z_scores(grads[key], e).max() < limit, (noise_name, key)
            assert z_scores(values, expectation_one(net, v, loss)) < limit


@pytest.mark.parametrize("entry", BIASED, **ids)
class TestKnownBias:
    """The mean over the law of (x, Z) is exact here; only the drawn ones need a z-test (1e-6)."""

    @pytest.mark.slow
    @noises
    def test_one_layer(self, entry: registry.Entry, noise_name: str) -> None:
        noise = ref.RefNoise(noise_name, 1.3)
        a = logits(noise, 3, seed=len(noise_name))
        for seed, kind in enumerate(ref.LOSSES):
            loss = ref.LOSSES[kind](3, seed + 1)
            expected = known_mean(entry, noise, a, loss)
            if entry.state_only:
                np.testing.assert_allclose(enumerated_mean(entry, noise, a, loss), expected,
                                           rtol=1e-9, atol=1e-11)  # fmt: skip
            else:
                _, g = in_logits(entry, noise, a, loss, seed)
                assert z_scores(g, expected).max() < z_limit(3 * len(ref.LOSSES)), kind

    def test_the_bias_is_there(self, entry: registry.Entry) -> None:
        # Otherwise the class in the registry would be too small
        noise = ref.RefNoise("Logistic", 1.3)
        a, loss = np.array([0.7, -1.0, 0.5]), ref.smooth_loss(3, 2)
        exact = exact_one_layer(lambda x: loss.value(x, 0), noise, a)
        gap = np.linalg.norm(known_mean(entry, noise, a, loss) - exact)
        assert gap > 0.01 * np.linalg.norm(exact)


def enumerated_mean(
    entry: registry.Entry, noise: ref.RefNoise, a: Array, loss: ref.RefLoss
) -> Array:
    """Sum over the states of P(x) times the entry's own estimate."""
    x = ref.states(len(a))
    leaf = torch.tensor(a).expand(len(x), -1).clone().requires_grad_()
    out = entry.function(leaf, torch.tensor(x), make_noise(noise.name, noise.scale))
    (g,) = torch.autograd.grad(loss.torch(out).sum(), leaf)
    return noise.prob(x, a).prod(1) @ g.numpy()


def known_mean(entry: registry.Entry, noise: ref.RefNoise, a: Array, loss: ref.RefLoss) -> Array:
    """What theory says the mean is: chapters 8, 9 and 10."""
    x = ref.states(len(a))
    prob = noise.prob(x, a).prod(1)
    exact = exact_one_layer(lambda x: loss.value(x, 0), noise, a)
    slopes = loss.gradient(x, 0)
    if entry.name in ON_THE_LINE:
        return exact + peano_bias(noise, a, loss, ON_THE_LINE[entry.name])
    if entry.name in SLOPES:  # (h - 2f) E dL on top of straight-through
        excess = SLOPES[entry.name](a) - 2 * noise.pdf(a)
        return exact + peano_bias(noise, a, loss, 1.0) + excess * (prob @ slopes)
    if entry.name in RELAXED_SIGN:
        return prob @ (mean_slopes(noise, np.broadcast_to(a, x.shape), x, TAU) * slopes)
    if entry.name == "concrete":
        return relaxed_gradient(noise, a, loss, TAU)
    if entry.name == "foust":
        return split_gradient(noise, a, loss)
    return pytest.fail(f"{entry.name} is biased: give its mean here")


def split_gradient(noise: ref.RefNoise, a: Array, loss: ref.RefLoss) -> Array:
    """f_i E Delta_i L with the other units at x_j v_j, v_j uniform: a product of Gauss rules."""
    v, w = panels([0.0, 0.5, 1.0])
    y, weight = np.concatenate([-v, v]), np.concatenate([w, w])
    out = np.zeros(len(a))
    for i in range(len(a)):
        others = [j for j in range(len(a)) if j != i]
        grid = np.meshgrid(*[y] * len(others), indexing="ij")
        law = np.meshgrid(*[weight * noise.cdf(np.sign(y) * a[j]) for j in others], indexing="ij")
        up = np.ones((len(y) ** len(others), len(a)))
        up[:, others] = np.stack(grid, -1).reshape(-1, len(others))
        down = up.copy()
        down[:, i] = -1
        out[i] = noise.pdf(a[i]) * (
            np.prod(law, 0).ravel() @ (loss.value(up, 0) - loss.value(down, 0))
        )
    return out


def peano_bias(noise: ref.RefNoise, a: Array, loss: ref.RefLoss, s: float) -> Array:
    r"""f(a_i) E int_{-1}^1 (s mu_i + t) L''_ii dt, by parts free of L'':

    int (s mu + t) L'' dt = (s mu + 1) L'(1) - (s mu - 1) L'(-1) - [L(1) - L(-1)].
    """
    x = ref.states(len(a))
    prob = noise.prob(x, a).prod(1)
    mu = noise.cdf(a) - noise.cdf(-a)
    flips = differences(lambda y: loss.value(y, 0), len(a))
    out = []
    for i in range(len(a)):
        up, down = x.copy(), x.copy()
        up[:, i], down[:, i] = 1, -1
        high, low = loss.gradient(up, 0)[:, i], loss.gradient(down, 0)[:, i]
        kernel = (s * mu[i] + 1) * high - (s * mu[i] - 1) * low - flips[:, i]
        out.append(noise.pdf(a[i]) * (prob @ kernel))
    return np.array(out)


def test_the_peano_form_is_the_integral_it_stands_for() -> None:
    noise, a, loss = ref.RefNoise("Gaussian"), np.array([0.4]), ref.smooth_loss(1, 3)
    step = 1e-4

    def curvature(t: float) -> float:
        up, down = (float(loss.gradient(np.array([t + h]), 0)[0]) for h in (step, -step))
        return (up - down) / (2 * step)

    mu = float(noise.cdf(0.4) - noise.cdf(-0.4))
    for s in (-1.0, 0.0, 1.0):
        integral = integrate.quad(lambda t, s=s: (s * mu + t) * curvature(t), -1, 1)[0]
        expected = noise.pdf(0.4) * integral
        assert peano_bias(noise, a, loss, s)[0] == pytest.approx(expected, rel=1e-6)


@noises
def test_the_product_rule_is_good_to_six_digits(noise_name: str) -> None:
    # against scipy's adaptive quadrature in one unit, where the expectation is one integral
    noise, loss = ref.RefNoise(noise_name, 1.3), ref.smooth_loss(1, 2)
    for a in (-0.9, 0.35):
        mean = relaxed_gradient(noise, np.array([a]), loss, TAU)[0]
        split = sorted({0.0, *[k * 1.3 for k in (-1.0, 1.0)], a, a - 8, a + 8, -40.0, 40.0})
        integral = sum(
            integrate.quad(
                lambda z, a=a: float(noise.pdf(z) * sech2((a - z) / (2 * TAU)) / (2 * TAU)
                                     * loss.gradient(np.tanh([(a - z) / (2 * TAU)]), 0)[0]),
                lo, hi, epsabs=1e-12,
            )[0]
            for lo, hi in zip(split[:-1], split[1:], strict=True)
        )  # fmt: skip
        assert mean == pytest.approx(integral, rel=1e-6)


# ------------------------------------------------------------------------- what it says


@pytest.mark.parametrize("entry", ENTRIES, **ids)
class TestEntry:
    def test_kind_and_function_agree(self, entry: registry.Entry) -> None:
        first = {
            "chain rule": ["a", "x", "noise"],
            "loss based": ["loss", "a", "noise"],
            "relaxation": ["a", "noise"],
            "network": ["net", "inputs", "loss"],
        }
        names = list(inspect.signature(entry.function).parameters)
        assert entry.kind in registry.KINDS
        assert names[: len(first[entry.kind])] == first[entry.kind]
        assert entry.kind == "chain rule" or not entry.state_only
        if entry.kind == "network":
            assert network(entry.name) is entry.function

    def test_evaluations_is_the_number_of_states_the_loss_sees(self, entry: registry.Entry) -> None:
        n, rows, seen = 4, 5, []
        loss = ref.smooth_loss(n)

        def counting(x: torch.Tensor) -> torch.Tensor:
            seen.append(x[..., 0].numel())
            return loss.torch(x)

        model = row_net(ref.random_net((1, n), ref.RefNoise("Logistic")), rows)
        network(entry.name)(model, torch.zeros(rows, 1).double(), counting, generator=seeded())
        assert sum(seen) == rows * entry.cost(n)

    def test_extra_leading_axes_and_both_precisions(self, entry: registry.Entry) -> None:
        net, loss = ref.random_net((2, 3, 2), ref.RefNoise("Logistic"), seed=3), ref.smooth_loss(2)
        for dtype in (torch.float32, torch.float64):
            model = row_net(net, 4, dtype)
            inputs = torch.tensor([0.7, -0.4], dtype=dtype).expand(6, 4, 2)
            values = network(entry.name)(model, inputs, loss.torch, generator=seeded(1))
            assert values.shape == (6, 4) and values.dtype == dtype
            values.sum().backward()
            for layer in model.layers:
                assert layer.weight.grad.dtype == dtype and layer.weight.grad.isfinite().all()
                assert layer.weight.grad.abs().max() > 0

    def test_the_generator_decides_everything(self, entry: registry.Entry) -> None:
        net, loss = ref.random_net((2, 3, 2), ref.RefNoise("Logistic"), seed=3), ref.smooth_loss(2)
        v = np.array([0.3, -0.4])

        def run(seed: int) -> tuple[Array, dict]:
            torch.manual_seed(torch.seed() % 2**31)  # the global stream must not matter
            return network_estimates(network(entry.name), net, v, loss, 50, seed)

        (value, grads), (again, same), (_, other) = run(1), run(1), run(2)
        assert np.array_equal(value, again)
        assert all(np.array_equal(grads[k], same[k]) for k in grads)
        assert any(not np.array_equal(grads[k], other[k]) for k in grads)

    def test_values_are_the_loss_at_states(self, entry: registry.Entry) -> None:
        if entry.kind == "relaxation":
            pytest.skip("its value is the loss of the relaxed network")
        net, loss = ref.random_net((2, 2), ref.RefNoise("Logistic"), seed=3), ref.smooth_loss(2)
        values, _ = network_estimates(network(entry.name), net, np.zeros(2), loss, 200, 1)
        at_states = loss.value(ref.states(2), 0)
        pairs = (at_states[:, None] + at_states) / 2  # leave-one-out: the mean of two samples
        assert all(np.abs(pairs - v).min() < 1e-12 for v in values)


def test_pathwise_means_in_depth_are_chains_of_mean_slopes() -> None:
    # Given a path the Z are independent, so each factor may be replaced by its mean: z, 1e-6
    net = ref.random_net((2, 2, 2), ref.RefNoise("Logistic", 0.8), seed=4)
    v, loss, xs = np.array([0.5, -0.7]), ref.smooth_loss(2, 1), ref.paths((2, 2))
    a, prob = ref.pre_activations(net, v, xs), ref.path_probabilities(net, v, xs)
    upstream, expected = loss.gradient(xs[-1], 0), {}
    for k in (1, 0):
        delta = mean_slopes(net.noise, a[k], xs[k], TAU) * upstream
        expected[k] = prob @ delta
        upstream = delta @ net.weights[k]
    for name in sorted(RELAXED_SIGN):
        _, grads = network_estimates(network(name), net, v, loss, ROWS, 3)
        for k in (0, 1):
            assert z_scores(grads[k, "bias"], expected[k]).max() < z_limit(8)
