"""measure: statistics of gradient samples against brute force, and their standard errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import reference as ref
import torch
from bridge import in_order, make_net, random_inputs, z_limit
from torch import nn

from sbnlib import (
    SBN,
    Accuracy,
    Estimate,
    chain_rule,
    exact_gradient,
    measure,
    pathwise,
    straight_through,
    zgr,
)

STATISTICS = ("bias2", "variance", "mse", "cosine", "cosine_of_mean")
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
    # At most 35 z-values a case and nine cases; together 1e-4 (jackknife z have heavier tails
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
    assert np.abs(scores(result, expected)).max() < z_limit(9 * 35, 1e-4) + 1


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


Repeated = dict[str, list[Accuracy]]
REPETITIONS = 200


@pytest.fixture(scope="module")
def repeated() -> Repeated:
    """measure, 200 times with 64 samples, on one layer with a strongly curved loss."""
    net, inputs, _ = case((2, 2), seed=4)
    model, given = make_net(net), torch.tensor(inputs)
    loss = curved_loss().torch
    _, reference = exact_gradient(model, given, loss)
    return {
        name: [
            measure(model, given, loss, name, 64, generator=seeded(s), reference=reference)["all"]
            for s in range(REPETITIONS)
        ]
        for name in ("straight_through", "zgr")
    }


def curved_loss() -> ref.RefLoss:
    """c'x + x'Ax/2: straight-through is far off, ZGR is exact."""
    c, square = np.array([1.0, -2.0]), np.array([[3.0, 0.8], [0.8, 2.0]])
    return ref.RefLoss(
        "curved",
        lambda x, b: x @ c + 0.5 * ((x @ square) * x).sum(-1),
        lambda x, b: c + x @ square,
        lambda x: x @ torch.tensor(c) + 0.5 * ((x @ torch.tensor(square)) * x).sum(-1),
    )


def test_bias2_of_an_unbiased_estimator_does_not_hold_the_variance_of_the_mean(
    repeated: Repeated,
) -> None:
    # Over the repetitions the mean of bias2 is 0; ||mean - exact||^2 would give Var / 64, many
    # standard errors away. One z-test, false alarm 1e-6.
    net, inputs, _ = case((2, 2), seed=4)
    variance = sum(v.sum() for _, v in in_order(ref.moments(net, inputs, curved_loss(), "zgr")))
    values = np.array([run.bias2.value for run in repeated["zgr"]])
    se = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean()) < z_limit(1) * se
    assert variance / 64 > 2 * z_limit(1) * se
    assert values.min() < 0  # an unbiased estimate of 0 must be negative now and then


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


@pytest.mark.parametrize("statistic", ["bias2", "variance", "mse", "cosine"])
@pytest.mark.parametrize("name", ["straight_through", "zgr"])
def test_standard_errors_are_calibrated(name: str, statistic: str, repeated: Repeated) -> None:
    # Spread over 200 repetitions by the reported standard error: 1, with 5 % sampling error and
    # the jackknife's own bias. For an unbiased estimator bias2 is a degenerate U-statistic, where
    # the jackknife counts the quadratic part twice (Efron & Stein 1981): too large by sqrt 2.
    values = np.array([getattr(run, statistic).value for run in repeated[name]])
    reported = np.sqrt(np.mean([getattr(run, statistic).se ** 2 for run in repeated[name]]))
    low = 0.55 if (name, statistic) == ("zgr", "bias2") else 0.8
    assert low < values.std(ddof=1) / reported < 1.25


@pytest.mark.parametrize("name", ["straight_through", "zgr"])
def test_single_measurements_are_unbiased(name: str, repeated: Repeated) -> None:
    # The mean over 200 repetitions against enumeration; 2 x 5 z-values, together 1e-6. The cosine
    # of the mean is a ratio, unbiased up to 1/M^2 only; uncorrected it is 10 standard errors off.
    net, inputs, _ = case((2, 2), seed=4)
    expected = truth(net, inputs, curved_loss(), name)[0]["all"]
    for statistic in STATISTICS:
        values = np.array([getattr(run, statistic).value for run in repeated[name]])
        se = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - expected[statistic]) < z_limit(10) * se, statistic


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
    for statistic in STATISTICS:
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
        measure(model, given, loss.torch, "zgr", 200, generator=seeded(), reference=reference)
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


@pytest.mark.parametrize("num_samples", [1, 0, -5, 2.5, "10", None])
def test_fewer_than_two_samples_are_refused(num_samples: object) -> None:
    net, inputs, loss = case()
    with pytest.raises((ValueError, TypeError), match="num_samples"):
        measure(make_net(net), torch.tensor(inputs), loss.torch, "zgr", num_samples)


def test_an_unknown_name_lists_the_known_ones_before_any_work() -> None:
    net, inputs, loss = case()

    def never(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the loss was evaluated")

    with pytest.raises(ValueError, match="straight_through.*zgr"):
        measure(make_net(net), torch.tensor(inputs), never, "reinforce_typo", 10)


def test_a_loss_of_the_wrong_shape_is_refused() -> None:
    net, inputs, _ = case(batch=3)
    _, exact = exact_gradient(make_net(net), torch.tensor(inputs), lambda x: x.sum(-1))
    for reference in (None, exact):
        with pytest.raises(ValueError, match="loss"):
            measure(make_net(net), torch.tensor(inputs), lambda x: x.sum(), "zgr", 10,
                    reference=reference)  # fmt: skip


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


def test_weights_used_without_a_module_call_are_not_lost() -> None:
    # Straight-through by F.linear, half of it: the statistics must not change silently.
    # Fifteen z-values at most, together 1e-4.
    net, inputs, loss = case((2, 2, 2))

    def functional(net: SBN, inputs: torch.Tensor, loss: Callable, *, generator=None):
        x = net.sign(net.layers[0](inputs), estimator=straight_through, generator=generator)
        a = nn.functional.linear(x, net.layers[1].weight, net.layers[1].bias)
        return loss(net.sign(a, estimator=straight_through, generator=generator))

    result = measure(make_net(net), torch.tensor(inputs), loss.torch, functional, 1500,
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
    with pytest.raises(ValueError, match="BatchNorm1d"):
        measure(net, inputs, lambda x: x[..., 0], "zgr", 10)
    result = measure(net.eval(), inputs, lambda x: x[..., 0], "zgr", 200, generator=seeded())
    assert torch.equal(norm.running_mean, before)
    assert {"layers.0.1.weight", "layers.0.1.bias", "all"} <= set(result)


def test_parameters_outside_linear_layers_are_measured_too() -> None:
    # Last layer, linear loss: every parameter's straight-through gradient is the exact one
    net = SBN(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))).double().eval()
    loss = lambda x: x @ torch.tensor([1.0, -2.0, 0.5]).double()  # noqa: E731
    inputs = torch.tensor(random_inputs(2, 2))
    result = measure(net, inputs, loss, "straight_through", 20, generator=seeded())
    for name, accuracy in result.items():
        assert abs(accuracy.bias2.value) < 1e-25, name
        assert accuracy.variance.value < 1e-25, name


def test_frozen_layers_are_left_out_or_zero() -> None:
    net, inputs, loss = case((2, 2, 2))
    model, free = make_net(net), make_net(net)
    model.layers[0].requires_grad_(False)
    mine, all_ = (
        measure(m, torch.tensor(inputs), loss.torch, "zgr", 200, generator=seeded())
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
