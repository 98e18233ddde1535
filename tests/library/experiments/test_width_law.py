"""Laws of width and depth: the networks, their exact sums, the samples, the fits, the command.

The sums are held against the enumeration of whole paths of tests/support/reference, which shares no
code with them; the samples against the sums.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import reference as ref
import torch

from sbnlib import exact_moments, network_estimator
from sbnlib.accuracy import gradient_samples
from sbnlib.experiments import random_nets, width_law
from sbnlib.experiments.random_nets import BIASED, VARYING, exact, fit, problem, ratio, sampled

Array = np.ndarray
NETS = [(1, 3), (2, 2), (2, 3), (3, 2), (2, 4), (4, 2)]
on_nets = pytest.mark.parametrize("layers, width", NETS)


def as_reference(p: random_nets.Problem) -> tuple[ref.RefNet, Array, ref.RefLoss]:
    weights = tuple(w.numpy() for w in p.weights)
    biases = tuple(np.zeros(p.width) for _ in weights)
    net = ref.RefNet(weights, biases, ref.RefNoise("Logistic"))
    r, unit = p.signs.numpy(), 2 / math.sqrt(p.width)
    loss = ref.RefLoss(
        "softplus of a score",
        lambda x, b: np.log1p(np.exp(unit * (x @ r))),
        lambda x, b: (unit * r) / (1 + np.exp(-unit * (x @ r)))[..., None],
        lambda x: torch.log1p(torch.exp(unit * (x @ torch.tensor(r)))),
    )
    return net, p.start.numpy(), loss


def on_paths(p: random_nets.Problem) -> tuple[Array, dict[str, Array], Array]:
    """Probabilities of all paths, estimates of the first layer on them, and the exact gradient."""
    net, v, loss = as_reference(p)
    xs = ref.paths(net.widths)
    prob, a = ref.path_probabilities(net, v, xs), ref.pre_activations(net, v, xs)
    noise, value = net.noise, loss.value(xs[-1], 0)
    exact_ = ref.gradient_one(net, v, loss, 0)[0, "bias"]
    score = xs[0] * noise.pdf(a[0]) / noise.prob(xs[0], a[0])
    estimates = {
        name: ref.path_estimates(net, v, loss, 0, name)[1][0, "bias"]
        for name in ("straight_through", "zgr")
    }
    estimates["reinforce"] = value[:, None] * score
    estimates["reinforce_mean"] = (value - prob @ value)[:, None] * score
    return prob, estimates, exact_


@on_nets
def test_biases_and_variances_are_those_of_enumerated_paths(layers: int, width: int) -> None:
    p = problem(layers, width, 3)
    prob, estimates, g = on_paths(p)
    bias, variance = exact(p, "bias"), exact(p, "variance")
    assert bias.gradient2 == variance.gradient2 == pytest.approx((g**2).sum(), rel=1e-10)
    for name in ("straight_through", "zgr"):
        expected = ((prob @ estimates[name] - g) ** 2).sum()
        assert bias.values[name] == pytest.approx(expected, rel=1e-8, abs=1e-18)
    for name in ("reinforce", "reinforce_mean", "straight_through"):
        mean = prob @ estimates[name]
        expected = (prob @ (estimates[name] - mean) ** 2).sum()
        assert variance.values[name] == pytest.approx(expected, rel=1e-9)


@on_nets
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_bias_of_psa_is_that_of_its_recursion_on_every_path(
    layers: int, width: int, symmetric: bool
) -> None:
    p = problem(layers, width, 5)
    net, v, loss = as_reference(p)
    xs = ref.paths(net.widths)
    prob, a, noise = ref.path_probabilities(net, v, xs), ref.pre_activations(net, v, xs), net.noise
    cost = np.stack([loss.value(xs[-1], 0) - loss.value(xs[-1] * flip, 0)
                     for flip in 1 - 2 * np.eye(width)], -1)  # fmt: skip
    for k in range(layers - 1, 0, -1):
        lower = np.zeros_like(xs[k - 1])
        for i in range(width):
            moved = a[k] - 2 * net.weights[k][:, i] * xs[k - 1][:, i, None]
            drop = noise.prob(xs[k], a[k]) - noise.prob(xs[k], moved)
            lower[:, i] = (drop * cost).sum(-1)
        cost = lower / (2 * noise.prob(xs[k - 1], a[k - 1])) if symmetric else lower
    g = ref.gradient_one(net, v, loss, 0)[0, "bias"]
    mean = prob @ (noise.pdf(a[0]) * xs[0] * cost)
    name = "psa_symmetric" if symmetric else "psa"
    found = exact(p, "bias").values[name]
    assert found == pytest.approx(((mean - g) ** 2).sum(), rel=1e-7, abs=1e-20)


@on_nets
def test_the_library_says_the_same(layers: int, width: int) -> None:
    p = problem(layers, width, 3)
    inputs, bias, variance = p.start[None], exact(p, "bias"), exact(p, "variance")
    from sbnlib import exact_gradient

    g = exact_gradient(p.net(), inputs, p.loss)[1]["layers.0.bias"]
    assert bias.gradient2 == pytest.approx(float(g.square().sum()), rel=1e-9)
    for name in ("straight_through", "zgr"):
        mean, v = exact_moments(p.net(), inputs, p.loss, name)["layers.0.bias"]
        expected = float((mean - g).square().sum())
        assert bias.values[name] == pytest.approx(expected, rel=1e-8, abs=1e-18)
        if name in variance.values:
            assert variance.values[name] == pytest.approx(float(v.sum()), rel=1e-9)


def test_local_expectation_varies_as_the_library_s_does() -> None:
    p, count = problem(2, 3, 1), 20_000
    chunks = gradient_samples(p.net(), p.start[None], p.loss, network_estimator(
        "local_expectation"), count, generator=torch.Generator().manual_seed(0))  # fmt: skip
    samples = torch.cat([c["layers.0.bias"] for c in chunks])
    variance = exact(p, "variance").values["local_expectation"]
    spread = (samples - samples.mean(0)).square().sum(-1)
    assert float(spread.mean()) == pytest.approx(variance, abs=5 * float(spread.std()) / count**0.5)


@pytest.mark.slow
@pytest.mark.parametrize("layers, width", [(2, 4), (2, 6), (3, 4), (4, 4)])
@pytest.mark.parametrize("quantity", ["bias", "variance"])
def test_samples_give_what_the_sums_give(layers: int, width: int, quantity: str) -> None:
    # The mean of independent estimates must be within five standard errors. From few samples each:
    # then the noise that a squared length would hold is four errors or more
    p = problem(layers, width, 2)
    truth = exact(p, quantity)
    runs = [
        sampled(p, quantity, 40, width, torch.Generator().manual_seed(seed)) for seed in range(300)
    ]
    for name in ("gradient2", *truth.values):
        at = (lambda r: r.gradient2) if name == "gradient2" else (lambda r, n=name: r.values[n])
        found = np.array([at(r) for r in runs])
        se = found.std(ddof=1) / math.sqrt(len(found))
        assert abs(found.mean() - at(truth)) < 5 * se + 1e-15, name
        assert se < 0.1 * max(abs(at(truth)), truth.gradient2), name


@pytest.mark.parametrize("n", [2, 6, 12])
def test_means_over_the_score_are_those_over_all_states(n: int) -> None:
    # to rounding, in the default float32 too
    p, a = problem(1, n, 0), torch.linspace(-2, 1.5, n, dtype=torch.float64)
    x = ref.states(n)
    prob = ref.RefNoise("Logistic").prob(x, a.numpy()).prod(1)
    score = 2 / math.sqrt(n) * (x @ p.signs.numpy())
    law = random_nets._Score(p, a)
    expected = prob @ np.log1p(np.exp(score))
    assert float(law.mean(torch.nn.functional.softplus)) == pytest.approx(expected, rel=1e-13)
    flips = [
        prob @ (x[:, j] * (np.log1p(np.exp(score)) - np.log1p(np.exp(score - 4 / math.sqrt(n)
                * x[:, j] * p.signs[j].item()))))
        for j in range(n)
    ]  # fmt: skip
    np.testing.assert_allclose(law.arriving(True, False).numpy(), flips, rtol=1e-11)


def test_only_the_first_units_are_looked_at() -> None:
    p = problem(2, 6, 0)
    whole, part = (
        [sampled(p, "variance", 300, units, torch.Generator().manual_seed(s)) for s in range(10)]
        for units in (6, 2)
    )
    net, v, loss = as_reference(p)
    g = ref.gradient_one(net, v, loss, 0)[0, "bias"]
    for runs, expected in ((whole, (g**2).sum()), (part, (g[:2] ** 2).sum())):
        found = np.array([r.gradient2 for r in runs])
        assert abs(found.mean() - expected) < 5 * found.std(ddof=1) / 10**0.5


def test_a_problem_is_the_same_every_time_and_no_two_are_alike() -> None:
    one, again, other = problem(2, 3, 0), problem(2, 3, 0), problem(2, 3, 1)
    assert torch.equal(one.weights[0], again.weights[0])
    assert not torch.equal(one.weights[0], other.weights[0])
    big = problem(3, 400, 0)
    assert float(big.weights[1].var()) * 400 == pytest.approx(4, rel=0.02)
    assert set(big.start.tolist()) == set(big.signs.tolist()) == {-1.0, 1.0}


# ------------------------------------------------------------------------------ many networks


def test_a_ratio_has_the_error_of_a_ratio() -> None:
    # Coverage: of 2000 ratios of sums of 50 pairs, about 68 % are within one error of the truth
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        below = rng.gamma(3, size=50)
        above = 0.5 * below * rng.gamma(4, 1 / 4, size=50)
        value, se = ratio(list(above), list(below))
        inside += abs(value - 0.5) < se
    assert 0.62 < inside / 2000 < 0.72
    assert ratio([1.0, 2.0], [2.0, 4.0]) == (0.5, 0.0)


@pytest.mark.slow
def test_a_fit_finds_the_power_and_its_error() -> None:
    rng, widths = np.random.default_rng(1), np.array([4, 6, 8, 12, 16, 32])
    for power in (1.0, 0.5):
        pulls, chi2 = [], []
        for _ in range(400):
            y = (0.3 * widths**-0.8) ** (1 / power)
            se = 0.05 * y
            found = fit(list(zip(widths, y + se * rng.normal(size=6), se, strict=True)), power)
            pulls.append((found["exponent"] + 0.8) / found["se"])
            chi2.append(found["chi2"])
        assert abs(np.mean(pulls)) < 0.2 and 0.9 < np.std(pulls) < 1.1
        assert found["dof"] == 4 and 3.5 < np.mean(chi2) < 4.5


def test_a_square_below_zero_counts_in_a_fit() -> None:
    points = [(4, 0.04, 0.001), (8, 0.01, 0.001), (16, 0.0025, 0.001), (32, -0.0004, 0.001)]
    kept, lost = fit(points, 0.5), fit(points[:3], 0.5)
    assert kept["dof"] == 2 and lost["dof"] == 1
    assert kept["exponent"] == pytest.approx(-1, abs=0.05)
    assert kept["exponent"] < lost["exponent"]  # it pulls down
    assert fit([(4, 0.0, 0.0), (8, 0.0, 0.0)]) is None and fit(points[:1]) is None


# ------------------------------------------------------------------------------- the command

SMALL = [
    "--nets", "3", "--layers", "1", "2", "--widths", "2", "4", "5", "--sampled-layers", "2",
    "--sampled-widths", "4", "8", "--samples", "40", "--units", "2",
]  # fmt: skip


@pytest.mark.parametrize("of", ["bias", "variance"])
def test_the_command_writes_what_it_measured(of: str, tmp_path, capsys) -> None:
    out = tmp_path / "law.json"
    assert width_law.main(["--of", of, *SMALL, "--out", str(out)]) == 0
    found, law = json.loads(out.read_text()), width_law.LAWS[of]
    assert found["kind"] == law.kind and found["seeds"] == [0, 1, 2]
    assert found["command"] == f"python -m sbnlib.experiments.width_law --of {of} " + " ".join(
        SMALL
    )
    points = [r for r in found["rows"] if r["part"] == "width"]
    assert len(points) == (2 * 3 + 2) * 4
    assert {r["estimator"] for r in points} == set(BIASED if of == "bias" else VARYING)
    for row in points:
        if row["method"] == "exact":
            each = [exact(problem(row["layers"], row["width"], k), of) for k in range(3)]
            up = sum(x.values[row["estimator"]] for x in each)
            value = up / sum(x.gradient2 for x in each)
            value = value if of == "variance" else math.sqrt(max(0, value))
            assert row[law.field] == pytest.approx(value, rel=1e-9, abs=1e-12)
        if of == "bias":
            value, se = row["square"], row["square_se"]
            root = math.sqrt(max(0, value))  # whose error is that of the square over its slope
            assert row["relative_bias"] == pytest.approx(root, abs=1e-12)
            expected = se / (2 * root) if value > se else math.sqrt(se)
            assert row["se"] == pytest.approx(expected)
    fits = [r for r in found["rows"] if r["part"] == "fit"]
    assert {(r["layers"], r["least"], r["most"]) for r in fits} <= {(1, 4, 5), (2, 4, 8)}
    assert {r["layers"] for r in fits} >= {2}  # with three networks some points are all noise
    keys = (law.field, "se", 1.0) if of == "variance" else ("square", "square_se", 0.5)
    for row in fits:  # an exact point goes before a sampled one
        at = {r["width"]: r for method in ("samples", "exact") for r in points
              if (r["estimator"], r["layers"], r["method"])
              == (row["estimator"], row["layers"], method) and r["width"] >= 4}  # fmt: skip
        again = fit([(n, at[n][keys[0]], at[n][keys[1]]) for n in sorted(at)], keys[2])
        assert {k: row[k] for k in again} == pytest.approx(again, rel=1e-9, abs=1e-20)
    assert "2 x  8" in capsys.readouterr().out


def test_the_command_of_the_default_grid_is_the_law_alone() -> None:
    for of in width_law.LAWS:
        command = width_law._command(width_law.Grid(of=of))
        assert command == f"python -m sbnlib.experiments.width_law --of {of}"


def test_methods_that_disagree_fail_the_check() -> None:
    row = {"part": "width", "estimator": "zgr", "layers": 2, "width": 8, "se": 0.01}
    other = row | {"method": "samples"}
    row |= {"method": "exact", "relative_bias": 0.2}
    law = width_law.LAWS["bias"]
    for value, agrees in ((0.21, True), (0.15, True), (0.27, False), (0.14, False)):
        checks = width_law._checks(law, [row, other | {"relative_bias": value}])
        assert list(checks.values()) == [agrees]


def test_psa_is_exact_in_the_last_layer_and_the_row_says_zero() -> None:
    rows = width_law.run(width_law.Grid(nets=2, layers=(1,), widths=(2, 4), sampled_widths=(2,)))
    exact_ones = [r for r in rows["rows"] if r["layers"] == 1 and "psa" in r["estimator"]]
    assert exact_ones and all(
        (r["part"], r["relative_bias"], r["se"]) == ("width", 0.0, 0.0) for r in exact_ones
    )


@pytest.mark.parametrize(
    "options, words",
    [
        (["--nets", "0"], "nets must be an integer >= 2, got 0"),
        (["--nets", "1"], "nets must be"),
        (["--samples", "1"], "samples must be an integer >= 2, got 1"),
        (["--units", "0"], "units must be"),
        (["--widths", "4", "14"], "widths must be at most 12"),
        (["--widths", "0"], "widths must be"),
        (["--widths", "4", "4"], "each once"),
        (["--sampled-widths", "16", "25"], "sampled-widths must be even"),
        (["--sampled-layers", "1"], "sampled_layers must be"),
        (["--layers", "-1"], "layers must be"),
        (["--of", "time"], "invalid choice"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(
    options: list[str], words: str, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(width_law, "problem", None)  # work would fail
    with pytest.raises(SystemExit) as stopped:
        width_law.main(options)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_refused_before_any_work(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        width_law.main(["--out", str(tmp_path)])
    assert stopped.value.code == 2 and "it is no file" in capsys.readouterr().err
