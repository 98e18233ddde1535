"""Improvements: the contenders, the search of a rate, exact errors, the gauge, latent grids."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bridge import z_limit
from torch import nn

import sbnlib
from sbnlib import SBN, Logistic
from sbnlib.experiments import improvements, measurement
from sbnlib.experiments.improvements import CONTENDERS, EVALUATIONS, OnGrid
from sbnlib.experiments.training import threads


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net_of(*widths: int, seed: int = 0) -> SBN:
    torch.manual_seed(seed)
    return SBN(*(nn.Linear(m, n) for m, n in itertools.pairwise(widths))).double()


# The contenders ----------------------------------------------------------------------------------


def test_the_parts_and_their_jobs_are_those_that_the_docstring_names() -> None:
    words = improvements.__doc__ or ""
    assert all(f"``{part}``" in words for part in improvements.PARTS)
    counts = {part: len(list(jobs())) for part, (jobs, _) in improvements.PARTS.items()}
    assert counts == {"widths": 76, "optimal-s": 6, "gauge": 5, "latent": 9}
    assert set(EVALUATIONS) == set(CONTENDERS)


def test_the_evaluations_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """States that reach the loss, for an image: those of a network of two layers of three units."""
    net, given = net_of(4, 3, 3), torch.randn(5, 4, generator=seeded()).double()
    for name, estimator in CONTENDERS.items():
        seen = []

        def loss(x: torch.Tensor, seen: list[int] = seen) -> torch.Tensor:
            seen.append(x.numel() // x.shape[-1])
            return (x.square() + x).sum(-1)

        estimator(net, given, loss, generator=seeded()).sum().backward()
        if name != "exact":  # 2^3 states, for each input or for all of them
            assert sum(seen) == 5 * EVALUATIONS[name](2, 3), name


def test_the_mean_of_several_samples_is_that_of_a_stack_of_inputs() -> None:
    net, given = net_of(4, 3, 3), torch.randn(5, 4, generator=seeded()).double()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (x.square() + x).sum(-1)

    ten = CONTENDERS["straight_through_10"](net, given, loss, generator=seeded(1))
    assert ten.shape == (5,)
    plain = sbnlib.network_estimator("straight_through")
    many = plain(net, given.expand(10, 5, 4), loss, generator=seeded(1))
    assert torch.equal(ten, many.mean(0))


def test_the_exact_contender_has_the_exact_gradient() -> None:
    net, given = net_of(4, 3, 2), torch.randn(5, 4, generator=seeded()).double()
    head = nn.Linear(2, 3).double()
    loss = sbnlib.classification_loss(head, torch.tensor([0, 1, 2, 1, 0]))
    _, wanted = sbnlib.exact_gradient(net, given, loss)
    CONTENDERS["exact"](net, given, loss).mean().backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name])


def test_the_exact_diagonal_leaves_values_alone_and_takes_the_curvature_out_of_slopes() -> None:
    head, labels = nn.Linear(3, 4).double(), torch.tensor([0, 3])
    plain, fixed = (
        make(head, labels)
        for make in (sbnlib.classification_loss, improvements.with_exact_diagonal)
    )
    x = torch.tensor([[1.0, -1, 1], [-1, -1, 1]]).double().requires_grad_()
    torch.testing.assert_close(plain(x), fixed(x))
    (slope,) = torch.autograd.grad(plain(x).sum(), x)
    (found,) = torch.autograd.grad(fixed(x).sum(), x)
    curvature = [
        torch.autograd.functional.hessian(
            lambda v, k=k: plain(torch.stack([v, v]))[k], x[k].detach()
        ).diagonal()
        for k in range(2)
    ]
    torch.testing.assert_close(found, slope - torch.stack(curvature) * x)
    of_head = [torch.autograd.grad(f(x).sum(), head.weight)[0] for f in (plain, fixed)]
    torch.testing.assert_close(*of_head)


def test_two_contenders_share_no_random_number_and_a_seed_repeats_itself() -> None:
    own = {"part": "widths", "depth": 2, "width": 4, "lr": 0.1, "seed": 0}

    def first(name: str) -> torch.Tensor:
        model = improvements._training(estimator=name, **own).model
        return model.net.layers[0][0].weight

    assert torch.equal(first("zgr"), first("zgr"))
    assert not torch.equal(first("zgr"), first("psa"))
    model = improvements._training(estimator="gauge_head", **own).model
    x, y = improvements._digits().train.inputs[:2], improvements._digits().train.labels[:2]
    slopes = []
    for kind in (type(model), sbnlib.experiments.models.Classifier):
        kind.forward(model, x, y, seeded()).sum().backward()
        slopes.append(model.net.layers[1][0].weight.grad.clone())
        model.zero_grad()
    assert not torch.equal(*slopes)


# The search --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0.03, [0.01, 0.03, 0.1]),
        (0.1, [0.01, 0.03, 0.1, 0.33]),
        (0.01, [0.0033, 0.01, 0.03, 0.1]),
        (100.0, [0.01, 0.03, 0.1, 0.33, 1.1, 3.7]),
    ],
)
def test_a_search_goes_on_while_the_best_is_at_an_end(best: float, tried: list[float]) -> None:
    rate, found = improvements.searched((0.01, 0.03, 0.1), lambda lr: math.log(lr / best) ** 2)
    assert sorted(found) == pytest.approx(tried)
    assert rate == min(tried, key=lambda lr: abs(math.log(lr / best)))


def test_a_loss_that_is_no_number_is_the_worst() -> None:
    losses = {0.01: 3.0, 0.03: 2.0, 0.1: math.nan}
    assert improvements.searched(tuple(losses), losses.__getitem__)[0] == 0.03


# Errors by weight --------------------------------------------------------------------------------


def test_the_share_of_the_curvature_is_that_of_a_quadratic() -> None:
    """One layer: sum (1 - mu^2)^2 A_ii^2 over sum (1 - mu^2)^2 E slope^2, by enumeration."""
    rng = np.random.default_rng(3)
    square = rng.normal(size=(3, 3))
    square = square + square.T
    net, given = net_of(2, 3, seed=1), torch.tensor([[0.5, -1.0]]).double()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x @ torch.tensor(square) * x).sum(-1) + x[..., 0]

    a = net.layers[0](given)[0].detach().numpy()
    p = 1 / (1 + np.exp(-a))
    x = np.array(list(itertools.product([-1.0, 1.0], repeat=3)))
    chance = np.where(x > 0, p, 1 - p).prod(1)
    slopes = x @ square + np.array([1.0, 0, 0])
    h = 4 * p * (1 - p)
    expected = (h**2 * np.diag(square) ** 2).sum() / (h**2 * (chance @ slopes**2)).sum()
    found = improvements.curvature_share(net, given, loss, 200_000, seeded(4))
    assert found == pytest.approx(expected, rel=0.03)  # 6 standard errors


def test_errors_by_weight_are_those_of_exact_moments() -> None:
    case = improvements._Case(2, 3, 0)
    assert case.inputs.shape == (3, 4) and set(case.inputs.unique().tolist()) == {-1, 1}
    assert len({tuple(row) for row in case.inputs.tolist()}) == 3
    for weight, name in ((0.0, "straight_through"), (math.inf, "zgr")):
        found = sbnlib.exact_moments(case.net, case.inputs, case.loss, name)
        _, exact = sbnlib.exact_gradient(case.net, case.inputs, case.loss)
        bias2 = sum(float((m - exact[k]).square().sum()) for k, (m, _) in found.items())
        variance = sum(float(v.sum()) for _, v in found.values())
        assert case.error(weight) == pytest.approx((bias2, variance), rel=1e-9)


def test_the_rows_of_optimal_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(improvements, "NETS", 3)
    monkeypatch.setattr(improvements, "DRAWS", 64)
    rows = improvements.optimal_s({"depth": 2, "inputs": 2})
    at = {(r["samples"], r["estimator"]): r for r in rows}
    assert len(at) == 4 * 5
    for m in (1, 10, 100, 1000):
        assert at[m, "zgr"]["omega"] is None and at[m, "straight_through"]["omega"] == 0
        least = min(r["error"] for r in rows if r["samples"] == m and r["estimator"] in (
            "straight_through", "zgr"))  # fmt: skip
        assert at[m, "best"]["error"] <= least * (1 + 1e-12)
    share = at[10, "estimated"]["omega"] / 9
    assert at[1, "estimated"]["omega"] == 0 and at[10, "batch"]["omega"] == pytest.approx(
        19 * share
    )


# The gauge ---------------------------------------------------------------------------------------


def test_the_table_of_the_last_layer_is_an_enumeration() -> None:
    """Bias and variance of each, by plain sums over states and probes of two units."""
    torch.manual_seed(5)
    head, labels = nn.Linear(2, 3).double(), torch.tensor([1])
    with torch.no_grad():
        head.weight.mul_(3)
    a, law = torch.tensor([[0.7, -1.3]]).double(), Logistic()
    loss = sbnlib.classification_loss(head, labels)
    states = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2))).double()
    f, mu = law.pdf(a)[0], 2 * law.cdf(a)[0] - 1
    estimates: dict[str, list[tuple[float, torch.Tensor]]] = {}
    exact = torch.zeros(2).double()
    for x in states:
        chance = float(law.cdf(x * a).prod())
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(leaf[None]).sum(), leaf)
        hessian = torch.autograd.functional.hessian(lambda v: loss(v[None]).sum(), x)
        flips = [loss((x * (1 - 2 * e))[None]).item() for e in torch.eye(2).double()]
        flip = f * x * (loss(x[None]).item() - torch.tensor(flips, dtype=a.dtype))
        exact += chance * flip
        each = {"straight_through": 2 * f * g, "zgr": f / law.cdf(x * a)[0] * g,
                "gauge_exact": 2 * f * (g - hessian.diagonal() * x),
                "local_expectation": flip}  # fmt: skip
        each["known"] = 2 * f * (g - hessian.diagonal() * mu)
        for name, value in each.items():
            estimates.setdefault(name, []).append((chance, value))
        for z in states:
            d = z * (hessian @ z)
            for name, at in (("gauge_1_sample", x), ("gauge_1_mean", mu)):
                estimates.setdefault(name, []).append((chance / 4, 2 * f * (g - d * at)))
    found = improvements._Table(a, law, head.requires_grad_(False), labels).rows()
    size = float(exact.square().sum())
    for name, values in estimates.items():
        if name not in found:
            continue
        mean = sum(chance * value for chance, value in values)
        second = sum(chance * value.square() for chance, value in values)
        bias2 = float((mean - exact).square().sum()) / size
        variance = float((second - mean.square()).sum()) / size
        assert found[name]["bias2"] == pytest.approx(bias2, rel=1e-9, abs=1e-14), name
        assert found[name]["variance"] == pytest.approx(variance, rel=1e-9, abs=1e-14), name
    known = estimates["known"]  # ten probes have a tenth of what one adds to this
    mean = sum(chance * value for chance, value in known)
    second = sum(chance * value.square() for chance, value in known)
    none = float((second - mean.square()).sum()) / size
    one, ten = (found[f"gauge_{m}_mean"]["variance"] for m in (1, 10))
    assert ten - none == pytest.approx((one - none) / 10)


# Latent grids ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("rounding", ["random", "nearest"])
def test_latent_weights_stay_on_their_grid(bits: int, rounding: str) -> None:
    eta = nn.Parameter(2 * torch.rand(500, generator=seeded()).double() - 1)
    rule = OnGrid([eta], 0.3, bits=bits, rounding=rounding, generator=seeded(1))
    grid = torch.linspace(-1, 1, 2**bits).double()
    for _ in range(3):
        eta.grad = torch.randn(500, generator=seeded(2)).double()
        rule.step()
        assert torch.isclose(eta[:, None], grid, atol=1e-12).any(1).all()


def test_random_rounding_keeps_the_mean_and_the_other_takes_the_nearest() -> None:
    """False alarm 1e-6."""
    start = torch.tensor([-1.0, -0.4, 0.1, 0.95, 1.0]).double()
    count, lr = 20_000, 0.5
    eta = nn.Parameter(torch.zeros(count, 5).double())
    rule = OnGrid([eta], lr, bits=3, rounding="random", generator=seeded(3))
    with torch.no_grad():
        eta.copy_(start)
    eta.grad = torch.tensor([0.2, -0.3, 0.4, -1.0, 0.5]).double().expand(count, 5)
    rule.step()
    wanted = (start - lr / 2 * eta.grad[0]).clamp(-1, 1)
    error = eta.std(0).clamp_min(1e-9) / count**0.5
    assert ((eta.mean(0) - wanted) / error).abs().max() < z_limit(5)
    near = nn.Parameter(start.clone())
    rule = OnGrid([near], lr, bits=3, rounding="nearest", generator=seeded(3))
    grid = torch.linspace(-1, 1, 8).double()
    assert torch.allclose(near, grid[(start[:, None] - grid).abs().argmin(1)])


def test_without_rounding_it_is_stochastic_binary_connect() -> None:
    start = 2 * torch.rand(50, generator=seeded()).double() - 1
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    rules = (
        OnGrid([ours], 0.7, bits=0, rounding="none", generator=seeded()),
        sbnlib.optim.BinaryConnect([theirs], 0.7),
    )
    for seed in range(3):
        for p, rule in zip((ours, theirs), rules, strict=True):
            p.grad = torch.randn(50, generator=seeded(seed)).double()
            rule.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    assert bool((ours.abs() == 1).any())


# The command -------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every part with little to do; where it writes."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "EPOCHS": 1, "SEEDS": 2, "SEARCHED": 1, "BEYOND": 0, "PASSES": 2, "WIDTHS": (3,),
        "DEEPER_WIDTHS": (3,), "DEEPER": ("zgr", "psa"), "NETS": 3, "DRAWS": 16,
        "LOOKED_AT": (0, 1), "GAUGE_SEEDS": 2, "IMAGES": 4, "BITS": (1, 3), "HIDDEN": (6, 5),
        "LATENT_EPOCHS": 1, "LATENT_RATES": (10.0, 100.0),
    }.items():  # fmt: skip
        monkeypatch.setattr(improvements, name, value)
    return tmp_path / "x.json"


@pytest.mark.slow
@pytest.mark.parametrize("part", improvements.PARTS)
def test_the_command_writes_the_rows_of_a_part(part: str, tiny: Path, capsys: Any) -> None:
    assert improvements.main(["--part", part, "--out", str(tiny)]) == 0
    found = measurement.read(tiny)
    assert found["kind"] == "improvements" and {row["part"] for row in found["rows"]} == {part}
    assert found["command"] == f"python -m sbnlib.experiments.improvements --part {part}"
    said = capsys.readouterr().out
    if part == "widths":
        names = [(r["estimator"], r["depth"]) for r in found["rows"]]
        assert names == [(name, 2) for name in CONTENDERS] + [("zgr", 4), ("psa", 4)]
        for row in found["rows"]:
            assert len(row["loss"]) == len(row["test_loss"]) == len(row["ten"]) == 2
            assert row["lr"] == min(row["searched"], key=lambda pair: pair[1])[0]
            assert all(0 <= v <= 1 for v in row["ten"])
    if part == "latent":
        kinds = [(r["rounding"], r["bits"]) for r in found["rows"]]
        assert kinds == [("none", 0), ("random", 1), ("random", 3), ("nearest", 1), ("nearest", 3)]
        ones = [r["at_ends"] for r in found["rows"] if r["bits"] == 1]
        assert ones == [1, 1]
        for row in found["rows"]:
            assert row["lr"] == max(row["searched"], key=lambda pair: pair[1])[0]
    assert "written to" in said


def test_the_expected_loss_is_that_of_samples() -> None:
    """Against the exact expectation, to 4.9 standard errors of the passes (false alarm 1e-6)."""
    own = {"part": "widths", "depth": 2, "width": 4, "lr": 0.1, "seed": 0}
    with threads(1):
        training = improvements._training(estimator="zgr", **own)
        split = improvements._digits().validation
        model, passes = training.model.double(), 400
        inputs = split.inputs.double()
        loss = sbnlib.classification_loss(model.head, split.labels)
        with torch.no_grad():
            exact = float(sbnlib.exact_expectation(model.net, inputs, loss).mean())
        wide = type(split)(inputs, split.labels)
        logs = improvements._losses(training, wide, passes)
        each = -logs[:, torch.arange(len(split)), split.labels].mean(1)
    assert abs(each.mean() - exact) < 4.9 * each.std() / passes**0.5
