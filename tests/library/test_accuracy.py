"""measure: statistics of gradient samples against brute force, and their standard errors."""

from __future__ import annotations

import dataclasses
import math
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from bridge import in_order, make_net, random_inputs, z_limit
from scipy import special, stats
from torch import nn

from sbnlib import (
    SBN,
    Accuracy,
    Estimate,
    accuracy,
    chain_rule,
    concrete,
    exact_gradient,
    measure,
    network_estimator,
    pathwise,
    reinforce,
    straight_through,
    zgr,
)
from sbnlib.accuracy import gradient_samples

STATISTICS = ("bias2", "variance", "mse", "cosine", "cosine_of_mean", "along", "efficiency")
Truth = dict[str, float]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(
    widths: tuple[int, ...] = (2, 2, 2), batch: int = 1, seed: int = 0, scale: float = 1.0
) -> tuple[ref.RefNet, np.ndarray, ref.RefLoss]:
    net = ref.random_net(widths, ref.RefNoise("Logistic", scale), seed)
    return net, random_inputs(batch, widths[0], seed), ref.target_loss(widths[-1], batch, seed)


def truth(
    net: ref.RefNet, inputs: np.ndarray, loss: ref.RefLoss, name: str
) -> tuple[dict[str, Truth], list[np.ndarray]]:
    """All statistics of one input's gradient, by enumerating every path (B = 1)."""
    assert len(inputs) == 1
    prob, grads = ref.path_estimates(net, inputs[0], loss, 0, name)
    exact = in_order(ref.gradient(net, inputs, loss))
    flat = [g.reshape(len(prob), -1) for g in in_order(grads)]
    rows = {**dict(zip(range(len(flat)), flat, strict=True)), "all": np.concatenate(flat, 1)}
    out = {}
    for key, g in rows.items():
        target = np.concatenate([e.ravel() for e in exact]) if key == "all" else exact[key].ravel()
        mean = prob @ g
        variance = prob @ ((g - mean) ** 2).sum(1)
        norms = np.linalg.norm(g, axis=1) * np.linalg.norm(target)
        out[key] = {
            "bias2": ((mean - target) ** 2).sum(),
            "variance": variance,
            "mse": prob @ ((g - target) ** 2).sum(1),
            "cosine": prob @ (g @ target / norms),
            "cosine_of_mean": mean @ target / np.linalg.norm(mean) / np.linalg.norm(target),
            "along": mean @ target,
            "efficiency": (mean @ target) ** 2 / (target @ target) / (prob @ (g**2).sum(1)),
            "reference_norm2": (target**2).sum(),
        }
    return out, exact


def scores(result: dict[str, Accuracy], expected: dict) -> np.ndarray:
    """z of every statistic of every parameter."""
    z = []
    for mine, theirs in zip(result.values(), expected.values(), strict=True):
        for name in STATISTICS:
            estimate = getattr(mine, name)
            z.append((estimate.value - theirs[name]) / max(estimate.se, 1e-9))
    return np.array(z)


@pytest.mark.parametrize("name", ["straight_through", "zgr", "darn"])
@pytest.mark.parametrize("widths", [(2, 2), (2, 2, 2), (1, 2, 1)])
def test_statistics_agree_with_enumeration(widths: tuple[int, ...], name: str) -> None:
    # At most 49 z-values a case and nine cases; together 1e-4 (jackknife z have heavier tails
    # than the normal: 32 groups; the limit is 5.7)
    net, inputs, loss = case(widths, seed=1)
    reference_name = "darn_mean" if name == "darn" else name
    expected, exact = truth(net, inputs, loss, reference_name)
    model = make_net(net)
    result = measure(model, torch.tensor(inputs), loss.torch, name, 40_000, generator=seeded(1))
    assert list(result) == [*(n for n, _ in model.named_parameters()), "all"]
    for mine, theirs in zip(result.values(), expected.values(), strict=True):
        assert mine.reference_norm2 == pytest.approx(theirs["reference_norm2"], rel=1e-12)
        assert mine.num_samples == 40_000
        assert mine.mse.value == pytest.approx(mine.bias2.value + mine.variance.value, rel=1e-9)
    # A statistic without spread (a constant gradient) must be right to rounding
    assert np.abs(scores(result, expected)).max() < z_limit(9 * 49, 1e-4) + 1


@pytest.mark.parametrize("name", ["straight_through", "zgr"])
def test_one_sample_is_the_gradient_of_the_mean_loss_over_the_batch(name: str) -> None:
    # Var = B^-2 sum_b Var_b and the bias of the mean gradient; 2 x 5 x 2 z-values, together 1e-4
    net, inputs, loss = case(batch=4, seed=2)
    moments = in_order(ref.moments(net, inputs, loss, name))
    exact = in_order(ref.gradient(net, inputs, loss))
    variance = [v.sum() for _, v in moments]
    bias2 = [((m - g) ** 2).sum() for (m, _), g in zip(moments, exact, strict=True)]
    result = measure(make_net(net), torch.tensor(inputs), loss.torch, name, 40_000,
                     generator=seeded(2))  # fmt: skip
    for mine, v, b in zip(result.values(), [*variance, sum(variance)], [*bias2, sum(bias2)],
                          strict=True):  # fmt: skip
        assert abs(mine.variance.value - v) < (z_limit(20, 1e-4) + 1) * mine.variance.se
        assert abs(mine.bias2.value - b) < (z_limit(20, 1e-4) + 1) * mine.bias2.se


Law = list[tuple[np.ndarray, np.ndarray]]
REPETITIONS = 200


def fed(rows: np.ndarray, target: np.ndarray, **options: Any) -> Accuracy:
    """measure, with the gradient samples handed in: ``rows`` (M, d), in this order."""
    net, given, taken = (
        SBN(nn.Linear(1, rows.shape[1], bias=False)).double(),
        torch.tensor(rows),
        [0],
    )

    def next_rows(net: SBN, inputs: torch.Tensor, loss: Callable) -> torch.Tensor:
        first = taken[0]
        taken[0] += len(inputs)
        return (net.layers[0](inputs) * given[first : taken[0], None]).sum(-1)

    return measure(net, torch.ones(1, 1).double(), lambda x: x.sum(-1), next_rows, len(rows),
                   reference={"layers.0.weight": torch.tensor(target)[:, None]},
                   **options)["all"]  # fmt: skip


def repeated(law: Law, target: np.ndarray, num_samples: int) -> list[Accuracy]:
    """measure, 200 times over: as 200 parameters of one network, each with draws of its own.

    ``law`` has for each input the probabilities of its rows and the rows, gradients; one sample is
    the mean over the inputs of one row each.
    """
    net = SBN(*(nn.Linear(1, len(target), bias=False) for _ in range(REPETITIONS))).double()
    tables = [(torch.tensor(p), torch.tensor(rows)) for p, rows in law]

    def draws(net: SBN, inputs: torch.Tensor, loss: Callable, *, generator: torch.Generator):
        size = REPETITIONS * len(inputs)
        drawn = [rows[torch.multinomial(p, size, replacement=True, generator=generator)]
                 for p, rows in tables]  # fmt: skip
        g = (sum(drawn) / len(law)).reshape(REPETITIONS, len(inputs), 1, -1)
        outputs = torch.stack([layer(inputs) for layer in net.layers])
        return (outputs * g).sum((0, 3))

    reference = {name: torch.tensor(target)[:, None] for name, _ in net.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = measure(net, torch.ones(1, 1).double(), lambda x: x.sum(-1), draws, num_samples,
                         generator=seeded(num_samples), reference=reference)  # fmt: skip
    return list(result.values())[:-1]


def truth_of(law: Law, target: np.ndarray) -> Truth:
    """The statistics of the mean of one row an input, by enumeration; the cosine for one input."""
    means = [p @ rows for p, rows in law]
    mean, n = sum(means) / len(law), len(law)
    variance = sum(p @ ((r - m) ** 2).sum(1) for (p, r), m in zip(law, means, strict=True)) / n**2
    bias2, length = ((mean - target) ** 2).sum(), np.linalg.norm(target)
    out = {"bias2": bias2, "variance": variance, "mse": bias2 + variance}
    if n == 1:
        out["cosine"] = (
            law[0][0] @ (law[0][1] @ target / np.linalg.norm(law[0][1], axis=1)) / length
        )
    return out | {
        "cosine_of_mean": mean @ target / np.linalg.norm(mean) / length,
        "along": mean @ target,
        "efficiency": (mean @ target) ** 2 / length**2 / (mean @ mean + variance),
    }


def flat(parts: dict) -> np.ndarray:
    """(paths, P): the gradients of all parameters on every path."""
    return np.concatenate([g.reshape(len(g), -1) for g in in_order(parts)], axis=1)


def curved(name: str) -> tuple[Law, np.ndarray]:
    """One layer with a strongly curved loss, and one input: regular."""
    net, inputs, _ = case((2, 2), seed=4)
    prob, grads = ref.path_estimates(net, inputs[0], curved_loss(), 0, name)
    exact = ref.gradient(net, inputs, curved_loss())
    return [(prob, flat(grads))], np.concatenate([g.ravel() for g in in_order(exact)])


def curved_loss() -> ref.RefLoss:
    """c'x + x'Ax/2: straight-through is far off, ZGR is exact."""
    c, square = np.array([1.0, -2.0]), np.array([[3.0, 0.8], [0.8, 2.0]])
    return ref.RefLoss(
        "curved",
        lambda x, b: x @ c + 0.5 * ((x @ square) * x).sum(-1),
        lambda x, b: c + x @ square,
        lambda x: x @ torch.tensor(c) + 0.5 * ((x @ torch.tensor(square)) * x).sum(-1),
    )


def rare(name: str) -> tuple[Law, np.ndarray]:
    """XOR in a nearly deterministic network: rare paths with large gradients decide."""
    weights = np.array([[2.0, 2], [-2, -2], [2, -2]]), np.array([[2.0, 2, -2], [2, 2, 0]])
    biases = np.full(3, -2.0), np.array([0.0, 2])
    net = ref.RefNet(weights, biases, ref.RefNoise("Logistic", 0.4))
    inputs = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    t = inputs.prod(1)
    loss = ref.RefLoss(
        "xor",
        lambda x, b: np.logaddexp(0, -t[b] * x.sum(-1)),
        lambda x, b: -t[b] * special.expit(-t[b] * x.sum(-1, keepdims=True)) * np.ones_like(x),
        lambda x: torch.zeros(x.shape[:-1]),
    )
    law = [ref.path_estimates(net, v, loss, b, name) for b, v in enumerate(inputs)]
    exact = np.concatenate([g.ravel() for g in in_order(ref.gradient(net, inputs, loss))])
    return [(p, flat(grads)) for p, grads in law], exact


CASES = {
    ("curved", "straight_through", 64): curved("straight_through"),
    ("curved", "zgr", 64): curved("zgr"),
    ("curved", "zgr", 1024): curved("zgr"),
    ("rare", "zgr", 64): rare("zgr"),
    ("rare", "zgr", 1024): rare("zgr"),
}
REGULAR = [key for key in CASES if key[0] == "curved"]


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, str, int], list[Accuracy]]:
    return {key: repeated(*problem, key[-1]) for key, problem in CASES.items()}


def numbers(found: list[Accuracy], statistic: str) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors, without those that are NaN."""
    pairs = [getattr(run, statistic) for run in found]
    value, se = np.array([(e.value, e.se) for e in pairs]).T
    return value[np.isfinite(se)], se[np.isfinite(se)]


def coverage(found: list[Accuracy], statistic: str, true: float) -> tuple[int, int]:
    """How many of how many values are within two standard errors of the truth."""
    value, se = numbers(found, statistic)
    return int((np.abs(value - true) <= 2 * se + 1e-12).sum()), len(value)


def too_few(count: int, chance: float, false_alarm: float = 1e-6) -> int:
    """So many hits or more of ``count`` of ``chance`` each, but for the false alarm."""
    return int(stats.binom.ppf(false_alarm, count, chance))


@pytest.mark.slow
@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("key", REGULAR, ids=str)
def test_twice_the_error_covers_the_truth(key: tuple, statistic: str, runs: dict) -> None:
    # 95 % if all were normal, over 90 % here; at 90 % fewer than 159 of 200 are an event of 1e-6
    hits, count = coverage(runs[key], statistic, truth_of(*CASES[key])[statistic])
    assert count == REPETITIONS
    assert hits >= too_few(count, 0.9)


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [64, 1024])
def test_the_cosine_of_the_mean_is_covered_where_it_is_told(num_samples: int, runs: dict) -> None:
    # The rest is NaN: at 64 samples the noise of the mean is three and a half times its length
    # squared, at 1024 a fifth. False alarm 1e-6 each at a coverage of 90 %.
    key = ("rare", "zgr", num_samples)
    true = truth_of(*CASES[key])["cosine_of_mean"]
    hits, count = coverage(runs[key], "cosine_of_mean", true)
    assert hits >= too_few(count, 0.9)
    if num_samples == 64:
        assert 0 < count < 0.4 * REPETITIONS
        assert all(math.isnan(run.cosine_of_mean.value) == math.isnan(run.cosine_of_mean.se)
                   for run in runs[key])  # fmt: skip
    else:
        assert count == REPETITIONS


@pytest.mark.slow
@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("key", REGULAR, ids=str)
def test_standard_errors_are_calibrated(key: tuple, statistic: str, runs: dict) -> None:
    # Spread over 200 repetitions by the reported standard error: 1, with 5 % sampling error and
    # the jackknife's own bias. For an unbiased estimator bias2 is a degenerate U-statistic, where
    # the jackknife counts the quadratic part twice (Efron & Stein 1981): too large by sqrt 2; so
    # is the distance of the cosine of the mean from 1.
    values, errors = numbers(runs[key], statistic)
    degenerate = key[1] == "zgr" and statistic in ("bias2", "cosine_of_mean")
    low = 0.5 if degenerate else 0.8
    assert low < values.std(ddof=1) / np.sqrt(np.mean(errors**2)) < 1.25


@pytest.mark.slow
def test_a_squared_bias_of_zero_is_not_off_by_many_errors(runs: dict) -> None:
    # By the jackknife alone an error is short where the measured bias is: in one dimension 19 of
    # 100 values are -Var/M with an error near 0
    for m in (64, 1024):
        values, errors = numbers(runs["curved", "zgr", m], "bias2")
        assert (values / errors).min() > -2


@pytest.mark.slow
def test_bias2_of_an_unbiased_estimator_does_not_hold_the_variance_of_the_mean(
    runs: dict,
) -> None:
    # Over the repetitions the mean of bias2 is 0; ||mean - exact||^2 would give Var / 64, many
    # standard errors away. One z-test, false alarm 1e-6.
    variance = truth_of(*curved("zgr"))["variance"]
    values, _ = numbers(runs["curved", "zgr", 64], "bias2")
    se = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean()) < z_limit(1) * se
    assert variance / 64 > 2 * z_limit(1) * se
    assert values.min() < 0  # an unbiased estimate of 0 must be negative now and then


@pytest.mark.parametrize("key", REGULAR, ids=str)
def test_single_measurements_are_unbiased(key: tuple, runs: dict) -> None:
    # The mean over 200 repetitions against enumeration; 3 x 5 z-values, together 1e-6. The cosine
    # of the mean is a ratio, unbiased to a part of its error only; uncorrected it is 10 standard
    # errors off.
    expected = truth_of(*CASES[key])
    for statistic in STATISTICS:
        values, _ = numbers(runs[key], statistic)
        se = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - expected[statistic]) < z_limit(15) * se, statistic


# ------------------------------------------------------------- errors, from their definition


def by_hand(rows: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The statistics in their order, and the squared length of the mean."""
    m, mean, unit = len(rows), rows.mean(0), g / np.linalg.norm(g)
    variance = rows.var(0, ddof=1).sum()
    own = (rows @ unit).var(ddof=1)
    across = variance - own
    bias2 = ((mean - g) ** 2).sum() - variance / m
    cosine = (rows @ unit / np.linalg.norm(rows, axis=1)).mean()
    turned = mean @ unit / np.sqrt(mean @ mean - across / m)
    square = (rows**2).sum() / m  # of the length, on average over samples
    efficiency = ((mean @ unit) ** 2 - own / m) / square
    length2 = mean @ mean - variance / m
    return np.array(
        [bias2, variance, bias2 + variance, cosine, turned, mean @ g, efficiency, length2]
    )


def errors_by_hand(rows: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The errors of all but the last, with 32 groups of sizes equal to one."""
    n = min(32, len(rows))
    groups = np.split(rows, [j * len(rows) // n for j in range(1, n)])
    assert {len(x) for x in groups} <= {len(rows) // n, -(-len(rows) // n)}
    left = np.array([by_hand(np.concatenate(groups[:j] + groups[j + 1 :]), g) for j in range(n)])
    se = np.sqrt((n - 1) / n * ((left - left.mean(0)) ** 2).sum(0))
    value, unit = by_hand(rows, g), g / np.linalg.norm(g)
    d = np.array([x.mean(0) for x in groups]) - rows.mean(0)
    gram, along = d @ d.T, np.outer(d @ unit, d @ unit)
    upper = np.triu_indices(n, 1)
    whole, across, beside = (
        np.sqrt(2 / n / (n - 1)) * k[upper].std() for k in (gram, gram - along, along)
    )
    se[0] = max(se[0], whole)
    se[4] = max(se[4], abs(value[4]) * across / 2 / value[7])
    se[4] = np.hypot(se[4], (n - 1) * (left.mean(0)[4] - value[4]))
    se[6] = max(se[6], beside / (value[7] + value[1]))
    return se[:7]


@pytest.mark.parametrize("num_samples", [5, 31, 32, 33, 63, 65, 100, 999, 4096])
@pytest.mark.parametrize("bias", [0.0, 2.0])
def test_values_and_errors_are_the_formulas(num_samples: int, bias: float) -> None:
    rng = np.random.default_rng(num_samples)
    g = np.array([3.0, -1.0, 2.0])
    rows = g + bias + rng.normal(size=(num_samples, 3)) @ rng.normal(size=(3, 3))
    found = fed(rows, g)
    value, se = by_hand(rows, g)[:7], errors_by_hand(rows, g)
    for statistic, v, e in zip(STATISTICS, value, se, strict=True):
        assert getattr(found, statistic).value == pytest.approx(v, rel=1e-9, abs=1e-12), statistic
        assert getattr(found, statistic).se == pytest.approx(e, rel=1e-7, abs=1e-12), statistic


def test_groups_are_cut_alike_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(200, 2)) + 1
    runs = []
    for step in (1, 6, 7, 33, 100, 200):
        monkeypatch.setattr(accuracy, "_chunks", lambda net, inputs, m, step=step: (step, step))
        runs.append(dataclasses.astuple(fed(rows, np.ones(2))))
    for run in runs:
        for one, other in zip(run[:7], runs[-1][:7], strict=True):
            assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.slow
def test_a_mean_that_noise_hides_has_no_direction() -> None:
    # Mean 0: its squared length is by chance more than one error above 0 in one of ten; 200 draws,
    # more than 50 an event of 1e-6
    p, rows = np.full(8, 1 / 8), np.random.default_rng(1).normal(size=(8, 5))
    found = repeated([(p, rows - rows.mean(0))], np.ones(5), 64)
    assert len(numbers(found, "cosine_of_mean")[0]) < 50


@pytest.mark.parametrize(
    "sample, cosine", [([0.0, 0.0], 0.0), ([0.0, 2.0], 0.6), ([3.0, 3.0], 0.99)]
)
def test_samples_without_noise_have_the_direction_they_have(sample: list, cosine: float) -> None:
    # cos(0, g) = 0; else a constant's own, (0, 2) and (3, 3) against (4, 3)
    found = fed(np.tile(sample, (64, 1)), np.array([4.0, 3.0]))
    for estimate in (found.cosine, found.cosine_of_mean):
        assert estimate.value == pytest.approx(cosine, abs=1e-3)
        assert estimate.se == pytest.approx(0, abs=1e-7)


# ---------------------------------------------------------------- where few samples decide


@pytest.mark.parametrize("spread", [0.0, 0.3, 0.8])
def test_effective_samples_are_the_participation_ratio(spread: float) -> None:
    # (sum q)^2 / sum q^2 from its definition, at spread 0 all; 32 groups know a variance to 25 %
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(6400, 4))
    rows *= np.exp(spread * rng.normal(size=(6400, 1))) / np.linalg.norm(
        rows, axis=1, keepdims=True
    )
    q = ((rows - rows.mean(0)) ** 2).sum(1)
    found = fed(rows, np.ones(4)).effective_samples
    assert 0.6 < found / (q.sum() ** 2 / (q**2).sum()) < 1.7


def test_effective_samples_without_variance_are_all() -> None:
    assert fed(np.ones((50, 2)), np.ones(2)).effective_samples == 50
    rounding = 1 + 1e-13 * np.random.default_rng(0).normal(size=(50, 2)) ** 9
    assert fed(rounding, np.ones(2)).effective_samples == 50


@pytest.mark.parametrize("num_samples", [64, 1024])
def test_rare_paths_show_in_the_effective_samples(num_samples: int, runs: dict) -> None:
    # There the variance is covered 60 to 80 times in 100; in the regular cases nothing is said
    key = ("rare", "zgr", num_samples)
    hits, count = coverage(runs[key], "variance", truth_of(*CASES[key])["variance"])
    assert hits < 0.9 * count
    few = [run.effective_samples < min(100, num_samples / 8) for run in runs[key]]
    assert np.mean(few) > 0.9
    for regular in REGULAR:
        assert all(run.effective_samples > min(100, regular[-1] / 8) for run in runs[regular])


def test_few_effective_samples_are_warned_of_by_name_and_number() -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 2))
    rows[17] = 1000
    with pytest.warns(
        UserWarning, match=r"about 1\.0 of 1000 samples .* of layers\.0\.weight"
    ) as seen:
        fed(rows, np.ones(2))
    assert len(seen) == 1
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fed(rows[18:], np.ones(2))
        fed(rows[:5], np.ones(2))


@pytest.mark.filterwarnings("ignore:about")  # few different values: it says so
@pytest.mark.parametrize("count", [100, 5000])
def test_variance_over_chunks_holds_the_term_between_them(count: int) -> None:
    # Every call of the estimator returns another constant gradient: no variance within a chunk,
    # all of it between chunks. The pooled variance without that term would be 0.
    net = SBN(nn.Linear(1, 1, bias=False)).double()
    calls: list[int] = []

    def drifting(net: SBN, inputs: torch.Tensor, loss: Callable, *, generator=None):
        calls.append(inputs.shape[0] if inputs.dim() == 3 else 1)
        return len(calls) * net.layers[0](inputs)[..., 0]

    reference = {"layers.0.weight": torch.zeros(1, 1).double()}
    result = measure(net, torch.ones(1, 1).double(), lambda x: x[..., 0], drifting, count,
                     reference=reference)  # fmt: skip
    drawn = np.repeat(np.arange(1.0, len(calls) + 1), calls)
    assert len(drawn) == count
    assert len(calls) > 1
    assert result["all"].variance.value == pytest.approx(drawn.var(ddof=1), rel=1e-9)


@pytest.mark.parametrize("num_samples", [40, 4000])
def test_the_cosine_of_the_mean_of_one_number_is_its_sign(num_samples: int) -> None:
    # Slopes 1.4 and 0.6: every sample is positive, none is equal to the exact gradient
    net = SBN(nn.Linear(1, 1, bias=False)).double()
    nn.init.constant_(net.layers[0].weight, 1.3)
    loss = lambda x: (x + 0.2 * x**2)[..., 0]  # noqa: E731
    inputs = torch.ones(1, 1).double()
    result = measure(net, inputs, loss, "darn", num_samples, generator=seeded())["all"]
    assert result.cosine_of_mean.value == pytest.approx(1.0, abs=1e-9)


def test_more_samples_make_smaller_errors() -> None:
    net, inputs, loss = case((2, 2))
    model, given = make_net(net), torch.tensor(inputs)
    few, many = (
        measure(model, given, loss.torch, "zgr", m, generator=seeded())["all"]
        for m in (1000, 100_000)
    )
    assert 5 < few.variance.se / many.variance.se < 20


@pytest.mark.parametrize("num_samples", [2, 3, 5, 31, 32, 33, 65])
def test_few_samples_are_enough_to_return_an_answer(num_samples: int) -> None:
    net, inputs, loss = case((1, 2, 1))
    result = measure(make_net(net), torch.tensor(inputs), loss.torch, "zgr", num_samples,
                     generator=seeded())  # fmt: skip
    assert result["all"].num_samples == num_samples
    for statistic in set(STATISTICS) - {
        "cosine_of_mean"
    }:  # so few may not tell where the mean points
        assert np.isfinite(getattr(result["all"], statistic).value)


def test_the_bias_of_an_estimator_worked_out_by_hand() -> None:
    # One unit, L = x^2/2 + 0.4 x: exact f 0.8, straight-through 2 f (mu + 0.4), bias 2 f mu
    a = 0.6
    noise = ref.RefNoise("Logistic")
    f, mu = float(noise.pdf(a)), float(2 * noise.cdf(a) - 1)
    net = SBN(nn.Linear(1, 1)).double()
    nn.init.constant_(net.layers[0].bias, a)
    result = measure(net, torch.zeros(1, 1).double(), lambda x: (x**2 / 2 + 0.4 * x)[..., 0],
                     "straight_through", 50_000, generator=seeded())["layers.0.bias"]  # fmt: skip
    assert result.reference_norm2 == pytest.approx((0.8 * f) ** 2)
    # Two z-values, false alarm 1e-4
    assert abs(result.bias2.value - (2 * f * mu) ** 2) < (z_limit(2, 1e-4) + 1) * result.bias2.se
    variance = 4 * f * f * (1 - mu * mu)
    assert abs(result.variance.value - variance) < (z_limit(2, 1e-4) + 1) * result.variance.se


# --------------------------------------------------------------- what it takes and leaves


def test_the_same_seed_gives_the_same_statistics() -> None:
    net, inputs, loss = case()
    model, given = make_net(net), torch.tensor(inputs)
    one, two, other = (
        measure(model, given, loss.torch, "zgr", 500, generator=seeded(s)) for s in (1, 1, 2)
    )
    assert one == two
    assert one != other


def test_results_are_frozen_numbers() -> None:
    net, inputs, loss = case()
    result = measure(make_net(net), torch.tensor(inputs), loss.torch, "zgr", 50)["all"]
    assert isinstance(result, Accuracy) and isinstance(result.bias2, Estimate)
    assert isinstance(result.bias2.value, float) and isinstance(result.bias2.se, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.bias2 = None


def test_a_reference_may_be_given_in_any_order() -> None:
    net, inputs, loss = case()
    model, given = make_net(net), torch.tensor(inputs)
    _, exact = exact_gradient(model, given, loss.torch)
    runs = [
        measure(model, given, loss.torch, "zgr", 1000, generator=seeded(), reference=reference)
        for reference in (None, exact, dict(reversed(exact.items())))
    ]
    for name in runs[0]:
        assert runs[0][name] == runs[1][name]
        for statistic in STATISTICS:
            expected = getattr(runs[0][name], statistic).value
            assert getattr(runs[2][name], statistic).value == pytest.approx(expected, rel=1e-9)


def test_bias_is_measured_from_the_reference_given() -> None:
    net, inputs, loss = case((2, 2))
    model, given = make_net(net), torch.tensor(inputs)
    zero = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    result = measure(model, given, loss.torch, "zgr", 20_000, generator=seeded(), reference=zero)
    mean = in_order(ref.moments(net, inputs, loss, "zgr"))
    size = sum((m**2).sum() for m, _ in mean)
    # One z-value, false alarm 1e-4
    assert abs(result["all"].bias2.value - size) < (z_limit(1, 1e-4) + 1) * result["all"].bias2.se


def test_a_reference_that_does_not_fit_is_refused() -> None:
    net, inputs, loss = case()
    model, given = make_net(net), torch.tensor(inputs)
    _, exact = exact_gradient(model, given, loss.torch)
    missing = dict(list(exact.items())[1:])
    wrong = exact | {"layers.0.bias": torch.zeros(7)}
    for reference in (missing, wrong, exact | {"other": torch.zeros(1)}):
        with pytest.raises(ValueError, match="reference"):
            measure(model, given, loss.torch, "zgr", 10, reference=reference)


@pytest.mark.parametrize("num_samples", [1, 0, -5, 2.5, 10.0, True, "10", None])
def test_fewer_than_two_samples_are_refused(num_samples: object) -> None:
    net, inputs, loss = case()
    with pytest.raises(ValueError, match="num_samples must be an integer >= 2"):
        measure(make_net(net), torch.tensor(inputs), loss.torch, "zgr", num_samples)


@pytest.mark.parametrize("integer", [np.int8, np.int64])
def test_integers_of_numpy_are_integers(integer: type) -> None:
    net, inputs, loss = case((2, 2))
    one, other = (
        measure(make_net(net), torch.tensor(inputs), loss.torch, "zgr", m, generator=seeded())
        for m in (100, integer(100))
    )
    assert repr(one) == repr(other)


def never(x: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the loss was evaluated")


def test_an_unknown_name_lists_the_known_ones_before_any_work() -> None:
    net, inputs, _ = case()
    with pytest.raises(ValueError, match="straight_through.*zgr"):
        measure(make_net(net), torch.tensor(inputs), never, "reinforce_typo", 10)


def test_a_loss_of_the_wrong_shape_is_refused() -> None:
    net, inputs, _ = case(batch=3)
    _, exact = exact_gradient(make_net(net), torch.tensor(inputs), lambda x: x.sum(-1))
    for reference in (None, exact):
        with pytest.raises(ValueError, match="loss"):
            measure(make_net(net), torch.tensor(inputs), lambda x: x.sum(), "zgr", 10,
                    reference=reference)  # fmt: skip


@pytest.mark.parametrize(
    "function, words",
    [
        (zgr, r"zgr\(a, x, noise.*; use pathwise\(zgr\)"),
        (
            partial(chain_rule, s=0.0),
            r"chain_rule\(a, x, noise.*; use pathwise\(partial\(chain_rule, ...\)\)",
        ),
        (reinforce, r"reinforce\(loss, a, noise.*; use layerwise\(reinforce\)"),
        (concrete, r"concrete\(a, noise.*; give a relaxation by its name"),
        (lambda a, x, noise: x, r"<lambda>\(a, x, noise\); use pathwise"),
        (lambda net, inputs: inputs, r"<lambda>\(net, inputs\)$"),
        (lambda net, inputs, loss, scale: inputs, r"<lambda>\(net, inputs, loss, scale\)$"),
    ],
)
def test_a_function_of_another_kind_is_refused_with_the_cure(function: Any, words: str) -> None:
    net, inputs, _ = case()
    with pytest.raises(ValueError, match="must be a network estimator .*, got " + words):
        measure(make_net(net), torch.tensor(inputs), never, function, 10)
    with pytest.raises(ValueError, match=words):
        network_estimator(function)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"net": nn.Linear(2, 2)}, TypeError, "net must be an SBN, got Linear"),
        ({"inputs": [[1.0, 2.0]]}, TypeError, "inputs must be a floating-point tensor, got list"),
        ({"inputs": torch.ones(1, 2).long()}, TypeError, "inputs must be .*, got torch.int64"),
        ({"inputs": torch.ones(2)}, ValueError, r"inputs must be one batch.*, got \(2,\)"),
        ({"inputs": torch.ones(3, 1, 2)}, ValueError, r"inputs must be one batch.*\(3, 1, 2\)"),
        ({"inputs": torch.ones(0, 2)}, ValueError, r"inputs must be one batch.*\(0, 2\)"),
        ({"loss": 3.0}, TypeError, "loss must be a function of the states, got float"),
        ({"estimator": 3}, TypeError, "estimator must be a registry name or a function, got 3"),
        ({"reference": [1.0]}, TypeError, "reference must be a dict of gradients, got list"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("reference", [None, {}])
def test_a_wrong_argument_is_named_before_any_work(
    change: dict, error: type, words: str, reference: dict | None
) -> None:
    net, inputs, _ = case()
    right = {"net": make_net(net), "inputs": torch.tensor(inputs), "loss": never, "num_samples": 9}
    with pytest.raises(error, match=words):
        measure(**(right | {"estimator": "zgr", "reference": reference} | change))


@pytest.mark.parametrize(
    "wrong, error, words",
    [
        (torch.full((2,), math.nan), ValueError, "reference must be finite, .* at 'layers.0.bias'"),
        (torch.full((2,), math.inf), ValueError, "reference must be finite, .* at 'layers.0.bias'"),
        (torch.ones(2).long(), TypeError, "got torch.int64 at 'layers.0.bias'"),
        ([0.0, 0.0], TypeError, "reference must hold .* got list at 'layers.0.bias'"),
    ],
)
def test_a_reference_is_finite_numbers(wrong: Any, error: type, words: str) -> None:
    net, inputs, loss = case()
    model, given = make_net(net), torch.tensor(inputs)
    _, exact = exact_gradient(model, given, loss.torch)
    with pytest.raises(error, match=words):
        measure(model, given, never, "zgr", 9, reference=exact | {"layers.0.bias": wrong})


def test_a_reference_in_another_precision_is_taken() -> None:
    net, inputs, loss = case((2, 2))
    model, given = make_net(net), torch.tensor(inputs)
    half = {name: torch.ones_like(p).half() for name, p in model.named_parameters()}
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    one, other = (
        measure(model, given, loss.torch, "zgr", 100, generator=seeded(), reference=reference)
        for reference in (half, ones)
    )
    assert repr(one) == repr(other)


def test_a_network_without_a_free_parameter_is_refused() -> None:
    net, inputs, _ = case()
    frozen = make_net(net).requires_grad_(False)
    for reference in (None, {}):
        with pytest.raises(ValueError, match="net has no parameter that requires a gradient"):
            measure(frozen, torch.tensor(inputs), never, "zgr", 10, reference=reference)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("estimator", ["zgr", "reinforce"])
def test_a_loss_that_is_not_finite_is_named(value: float, estimator: str) -> None:
    net, inputs, loss = case((2, 2))
    model, given = make_net(net), torch.tensor(inputs)
    zero = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def sometimes(x: torch.Tensor) -> torch.Tensor:
        return loss.torch(x) * torch.where(x[..., 0] > 0, value, 1.0)

    for reference in (None, zero):
        with pytest.raises(ValueError, match="loss must be finite"):
            measure(model, given, sometimes, estimator, 500, reference=reference)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("free", [True, False])  # where looking costs, it is seen at the end
def test_gradients_that_are_not_finite_are_named_by_their_parameter(
    number: float, free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, inputs, loss = case((2, 2, 2))

    def broken(net: SBN, inputs: torch.Tensor, loss: Callable, *, generator=None) -> torch.Tensor:
        a = net.layers[1](net.sign(net.layers[0](inputs), estimator=zgr, generator=generator))
        a.register_hook(lambda d: d * number)
        return loss(net.sign(a, estimator=zgr, generator=generator))

    model = make_net(net)
    model.layers[0].requires_grad_(False)
    monkeypatch.setattr(accuracy, "looking_is_free", lambda a: free)
    with pytest.raises(ValueError, match="samples of layers.1.weight hold NaN or infinite"):
        measure(model, torch.tensor(inputs), loss.torch, broken, 50, generator=seeded())


def test_a_loss_without_a_derivative_is_named() -> None:
    net, inputs, _ = case((2, 2))

    def black_box(x: torch.Tensor) -> torch.Tensor:
        return x.detach().sum(-1)

    with pytest.raises(ValueError, match="values without a gradient.*loss that can be diff"):
        measure(make_net(net), torch.tensor(inputs), black_box, "zgr", 10)
    found = measure(make_net(net), torch.tensor(inputs), black_box, "reinforce", 50)
    assert found["all"].variance.value > 0


def test_an_estimator_of_the_wrong_shape_is_named() -> None:
    net, inputs, loss = case((2, 2))

    def mean(net: SBN, inputs: torch.Tensor, loss: Callable, *, generator=None) -> torch.Tensor:
        return loss(net(inputs, generator=generator)).mean()

    with pytest.raises(ValueError, match="estimator must return one value an input"):
        measure(make_net(net), torch.tensor(inputs), loss.torch, mean, 10)


# --------------------------------------------------------------- where it is called from


def test_without_gradients_outside_it_has_its_own() -> None:
    net, inputs, loss = case()
    model, given = make_net(net), torch.tensor(inputs)
    expected = measure(model, given, loss.torch, "zgr", 500, generator=seeded())
    with torch.no_grad():
        assert repr(measure(model, given, loss.torch, "zgr", 500, generator=seeded())) == repr(
            expected
        )
        for chunk in gradient_samples(model, given, loss.torch, "zgr", 100):
            assert not torch.is_grad_enabled()
            assert chunk["layers.0.bias"].abs().sum() > 0


def test_inference_mode_is_refused_and_its_tensors_are_taken() -> None:
    net, inputs, loss = case()
    model = make_net(net)
    with torch.inference_mode():
        given = torch.tensor(inputs)
        with pytest.raises(RuntimeError, match="inference_mode"):
            measure(model, given, never, "zgr", 10)
    expected = measure(model, torch.tensor(inputs), loss.torch, "zgr", 50, generator=seeded())
    assert repr(measure(model, given, loss.torch, "zgr", 50, generator=seeded())) == repr(expected)


def test_inputs_with_a_history_are_constants() -> None:
    net, inputs, loss = case()
    model, leaf = make_net(net), torch.tensor(inputs).requires_grad_()
    expected = measure(model, leaf.detach(), loss.torch, "zgr", 50, generator=seeded())
    assert repr(measure(model, leaf * 1, loss.torch, "zgr", 50, generator=seeded())) == repr(
        expected
    )
    assert leaf.grad is None


def test_two_threads_measure_one_network() -> None:
    # Both are inside a forward pass whenever either evaluates its loss; each must see its own calls
    net, inputs, loss = case((2, 3, 2))
    model, given = make_net(net), torch.tensor(inputs)
    _, reference = exact_gradient(model, given, loss.torch)
    sizes = {1: 320, 2: 640}  # 32 chunks each
    serial = {m: repr(measure(model, given, loss.torch, "zgr", m, generator=seeded(seed),
                              reference=reference)) for seed, m in sizes.items()}  # fmt: skip
    together, found = threading.Barrier(2, timeout=20), {}

    def in_step(x: torch.Tensor) -> torch.Tensor:
        together.wait()
        return loss.torch(x)

    def run(seed: int, m: int) -> None:
        found[m] = repr(measure(model, given, in_step, "zgr", m, generator=seeded(seed),
                                reference=reference))  # fmt: skip

    threads = [threading.Thread(target=run, args=item) for item in sizes.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == serial


# --------------------------------------------------------------------- sizes of chunks


GIB = 1 << 30


@pytest.mark.parametrize(
    "free, cached, numbers",
    [
        (79 * GIB, 0, 1 << 26),  # an H100: the most that was tried
        (40 * GIB, 39 * GIB, 1 << 26),
        (16 * GIB, 0, 1 << 26),  # a quarter of it is 64 bytes for each of 2^26
        (15 * GIB, 0, 1 << 25),
        (7 * GIB, 8 * GIB, 1 << 25),  # what torch keeps is free too
        (1 * GIB, 0, 1 << 22),
        (0, 0, 1),
    ],
)
def test_a_chunk_on_a_device_is_a_share_of_its_free_memory(
    free: int, cached: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: cached + GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB)
    device = torch.device("cuda")
    assert accuracy._cuda_chunk(device) == numbers
    assert numbers * 64 <= max(64, (free + cached) / 4)

    class OnDevice:
        """Inputs (5, 2) on the device, as far as a chunk's size asks."""

        def __init__(self) -> None:
            self.device = device

        def numel(self) -> int:
            return 10

        def __len__(self) -> int:
            return 5

    # One sample: 3 x 2 + 3 + 2 x 3 + 2 = 17 coordinates, 10 inputs, 5 x (3 + 2) states
    net = SBN(nn.Linear(2, 3), nn.Linear(3, 2))
    first = 2**18 // 27
    assert accuracy._chunks(net, OnDevice(), 1000) == (first, max(first, numbers // 52))


def test_a_chunk_on_a_cpu_is_what_it_was() -> None:
    net, inputs = SBN(nn.Linear(2, 3), nn.Linear(3, 2)), torch.ones(5, 2)
    assert accuracy._chunks(net, inputs, 10**9) == (2**18 // 27,) * 2
    assert accuracy._chunks(net, inputs, 1000) == (32, 32)
    assert accuracy._chunks(SBN(nn.Linear(1000, 1000)), torch.ones(1, 1000), 1000) == (1, 1)


def test_the_first_chunk_decides_how_the_others_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    net, inputs, loss = case((2, 2))
    monkeypatch.setattr(accuracy, "_chunks", lambda net, inputs, m: (3, 40))
    for model, sizes in (
        (make_net(net), [3, 40, 40, 17]),
        (SBN(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))).double(), [3] * 33 + [1]),
    ):
        chunks = gradient_samples(model, torch.tensor(inputs), loss.torch, "zgr", 100)
        assert [len(c[next(iter(c))]) for c in chunks] == sizes


def test_a_chunk_that_does_not_fit_is_halved() -> None:
    net, inputs, loss = case((2, 2))
    sizes: list[int] = []

    def narrow(net: SBN, inputs: torch.Tensor, loss: Callable, *, generator=None) -> torch.Tensor:
        sizes.append(len(inputs))
        if len(inputs) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(net(inputs, generator=generator))

    found = measure(make_net(net), torch.tensor(inputs), loss.torch, narrow, 1000)
    assert sizes[:4] == [32, 16, 8, 8]
    assert sum(size for size in sizes if size <= 10) == found["all"].num_samples == 1000

    def none(net: SBN, inputs: torch.Tensor, loss: Callable, *, generator=None) -> torch.Tensor:
        assert len(inputs) > 0
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        measure(make_net(net), torch.tensor(inputs), loss.torch, none, 1000)


# ------------------------------------------------------------------------ other estimators


def test_estimators_of_one_s_own_are_taken() -> None:
    net, inputs, loss = case((2, 2), seed=6)
    model, given = make_net(net), torch.tensor(inputs)

    def mine(net: SBN, inputs: torch.Tensor, loss: Callable, *, generator=None) -> torch.Tensor:
        return loss(net(inputs, estimator=zgr, generator=generator))

    named = measure(model, given, loss.torch, "zgr", 300, generator=seeded())
    assert measure(model, given, loss.torch, mine, 300, generator=seeded()) == named
    assert measure(model, given, loss.torch, pathwise(zgr), 300, generator=seeded()) == named
    on_line = pathwise(partial(chain_rule, s=0.0))
    assert measure(model, given, loss.torch, on_line, 300, generator=seeded()) == named


def test_a_score_function_estimator_of_one_s_own_is_unbiased() -> None:
    # REINFORCE written by hand: one z-value, false alarm 1e-6
    net, inputs, loss = case((2, 2), batch=2, seed=7)

    def reinforce(net: SBN, inputs: torch.Tensor, loss: Callable, *, generator=None):
        a = net.layers[0](inputs)
        with torch.no_grad():
            x = net.sign(a, generator=generator)
            value = loss(x)
        score = torch.nn.functional.logsigmoid(x * a).sum(-1)
        return value + value * (score - score.detach())

    result = measure(make_net(net), torch.tensor(inputs), loss.torch, reinforce, 40_000,
                     generator=seeded())["all"]  # fmt: skip
    assert abs(result.bias2.value) < (z_limit(1) + 1) * result.bias2.se
    assert result.cosine_of_mean.value > 0.99


def test_an_estimator_that_never_touches_a_layer_gives_it_the_gradient_zero() -> None:
    net, inputs, loss = case((2, 2, 2))

    def last_only(net: SBN, inputs: torch.Tensor, loss: Callable, *, generator=None):
        with torch.no_grad():
            x = net.sign(net.layers[0](inputs), generator=generator)
        return loss(net.sign(net.layers[1](x), generator=generator))

    result = measure(make_net(net), torch.tensor(inputs), loss.torch, last_only, 100,
                     generator=seeded())  # fmt: skip
    first = result["layers.0.weight"]
    assert first.variance.value == 0
    assert first.bias2.value == pytest.approx(first.reference_norm2)
    assert result["layers.1.weight"].variance.value > 0


@pytest.mark.slow
def test_weights_used_without_a_module_call_are_not_lost() -> None:
    # Straight-through by F.linear, half of it: the statistics must not change silently.
    # Fifteen z-values at most, together 1e-4.
    net, inputs, loss = case((2, 2, 2))

    def functional(net: SBN, inputs: torch.Tensor, loss: Callable, *, generator=None):
        x = net.sign(net.layers[0](inputs), estimator=straight_through, generator=generator)
        a = nn.functional.linear(x, net.layers[1].weight, net.layers[1].bias)
        return loss(net.sign(a, estimator=straight_through, generator=generator))

    result = measure(make_net(net), torch.tensor(inputs), loss.torch, functional, 1000,
                     generator=seeded())  # fmt: skip
    expected, _ = truth(net, inputs, loss, "straight_through")
    for mine, theirs in zip(result.values(), expected.values(), strict=True):
        for statistic in ("bias2", "variance", "mse"):
            estimate = getattr(mine, statistic)
            gap = abs(estimate.value - theirs[statistic])
            assert gap < (z_limit(15, 1e-4) + 1) * estimate.se


def test_measuring_leaves_the_network_and_its_gradients_alone() -> None:
    net, inputs, loss = case()
    model = make_net(net)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    measure(model, torch.tensor(inputs), loss.torch, "zgr", 100, generator=seeded())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_batch_norm_is_refused_in_training_mode_and_stands_still_in_evaluation() -> None:
    norm = nn.BatchNorm1d(2).double()
    net = SBN(nn.Sequential(nn.Linear(2, 2).double(), norm), nn.Linear(2, 1).double())
    inputs = torch.tensor(random_inputs(3, 2))
    before = norm.running_mean.clone()
    tracking = nn.Sequential(nn.Linear(2, 2), nn.InstanceNorm1d(2, track_running_stats=True))
    with pytest.raises(ValueError, match=r"layers.0.1 is a InstanceNorm1d in training mode"):
        measure(SBN(tracking), inputs.float(), never, "zgr", 10)
    with pytest.raises(ValueError, match="BatchNorm1d"):
        measure(net, inputs, lambda x: x[..., 0], "zgr", 10)
    result = measure(net.eval(), inputs, lambda x: x[..., 0], "zgr", 200, generator=seeded())
    assert torch.equal(norm.running_mean, before)
    assert {"layers.0.1.weight", "layers.0.1.bias", "all"} <= set(result)


@pytest.mark.parametrize("batch", [2, 3])
def test_layers_that_take_no_axes_in_front_are_run_one_sample_at_a_time(batch: int) -> None:
    # Batch norm takes three axes as (N, C, L); with as many inputs as units nothing is said.
    # Last layer, linear loss: straight-through is exact, so every number has a known value.
    norm = nn.BatchNorm1d(3, affine=False)
    norm.running_mean[:], norm.running_var[:] = torch.tensor([[1.0, -2, 0.5], [0.3, 2, 1]])
    layer = nn.Sequential(nn.Linear(2, 3), norm)
    net, inputs = SBN(layer).double().eval(), torch.tensor(random_inputs(batch, 2))
    loss = lambda x: x @ torch.tensor([1.0, -2.0, 0.5]).double()  # noqa: E731
    a = layer(inputs)
    slope = (
        2 * ref.RefNoise("Logistic").pdf(a.detach().numpy()) * np.array([1.0, -2.0, 0.5]) / batch
    )
    exact = torch.autograd.grad((a * torch.tensor(slope)).sum(), list(net.parameters()))
    reference = dict(zip([n for n, _ in net.named_parameters()], exact, strict=True))
    for given in (None, reference):
        found = measure(net, inputs, loss, "straight_through", 20, reference=given)["all"]
        assert found.reference_norm2 == pytest.approx(sum(float((g**2).sum()) for g in exact))
        assert abs(found.bias2.value) < 1e-25
        assert found.variance.value < 1e-25


def test_dropout_in_training_mode_is_part_of_the_estimator() -> None:
    # The input 1 is dropped or doubled: the gradient of the loss 2 F(w x) - 1 = E x is 0 or that of
    # a doubled input, so the variance is the square of half of that
    net = SBN(nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1, bias=False))).double()
    nn.init.constant_(net.layers[0][1].weight, 0.3)
    inputs = torch.ones(1, 1).double()
    with pytest.raises(ValueError, match="Dropout"):
        measure(net, inputs, lambda x: x[..., 0], "straight_through", 10)
    slope = 4 * float(ref.RefNoise("Logistic").pdf(0.6))
    torch.manual_seed(0)
    reference = {"layers.0.1.weight": torch.full((1, 1), slope / 2).double()}
    found = measure(net, inputs, lambda x: x[..., 0], "straight_through", 600,
                    reference=reference)["all"]  # fmt: skip
    # Two z-values, false alarm 1e-4
    assert abs(found.bias2.value) < (z_limit(2, 1e-4) + 1) * found.bias2.se
    assert found.variance.value == pytest.approx(slope**2 / 4, rel=0.05)


def test_parameters_outside_linear_layers_are_measured_too() -> None:
    # Last layer, linear loss: every parameter's straight-through gradient is the exact one
    net = SBN(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))).double().eval()
    loss = lambda x: x @ torch.tensor([1.0, -2.0, 0.5]).double()  # noqa: E731
    inputs = torch.tensor(random_inputs(2, 2))
    result = measure(net, inputs, loss, "straight_through", 20, generator=seeded())
    for name, found in result.items():
        assert abs(found.bias2.value) < 1e-25, name
        assert found.variance.value < 1e-25, name


def test_frozen_layers_are_left_out_or_zero() -> None:
    net, inputs, loss = case((2, 2, 2))
    model, free = make_net(net), make_net(net)
    model.layers[0].requires_grad_(False)
    mine, all_ = (
        measure(m, torch.tensor(inputs), loss.torch, "zgr", 1000, generator=seeded())
        for m in (model, free)
    )
    for statistic in STATISTICS:
        one, other = (getattr(m["layers.1.weight"], statistic) for m in (mine, all_))
        assert one.value == pytest.approx(other.value, rel=1e-9)
        assert one.se == pytest.approx(other.se, rel=1e-9)
    assert mine.get("layers.0.weight") is None or mine["layers.0.weight"].mse.value == 0


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    # No tensor that the loss sees holds all the samples; 2 x 10^6 of them take seconds
    net, inputs, loss = case((1, 2, 1), seed=8)
    sizes: list[int] = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        sizes.append(x.numel())
        return loss.torch(x)

    model, given = make_net(net), torch.tensor(inputs)
    _, reference = exact_gradient(model, given, loss.torch)
    result = measure(model, given, watched, "straight_through", 2_000_000, generator=seeded(),
                     reference=reference)["all"]  # fmt: skip
    assert 2_000_000 <= sum(sizes) < 2_100_000
    assert max(sizes) <= 2**18
    expected, _ = truth(net, inputs, loss, "straight_through")
    # Five z-values, false alarm 1e-4
    for statistic in STATISTICS:
        estimate = getattr(result, statistic)
        gap = abs(estimate.value - expected["all"][statistic])
        assert gap < (z_limit(5, 1e-4) + 1) * estimate.se


def test_a_parameter_that_is_one_number_is_measured() -> None:
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 3)
            self.factor = nn.Parameter(torch.tensor(1.5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * super().forward(x)

    net = SBN(Scaled())
    found = measure(net, torch.rand(2, 2), lambda x: x.sum(-1), "straight_through", 64)
    assert abs(found["layers.0.factor"].bias2.value) < 1
    assert found["layers.0.factor"].reference_norm2 >= 0
