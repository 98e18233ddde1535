"""nn.Levels: what it puts out in each mode, on which scale, and what it keeps."""

from __future__ import annotations

import copy
import io
import math
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sbnlib
import sbnlib.packed
from sbnlib import SBN, Gaussian, Logistic, Triangular, Uniform, levels, set_mode, to_plain
from sbnlib.nn import Levels, Sign

T = (-0.9, 0.1, 0.6)
every = pytest.mark.parametrize("name", levels.ESTIMATORS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


A = torch.randn(7, 5, generator=seeded(), dtype=torch.float64)


@every
def test_a_sample_is_that_of_the_functions(name: str) -> None:
    unit, a = Levels(T, "gaussian", name), A.clone().requires_grad_()
    x = unit(a, generator=seeded(1))
    drawn = levels.sample_levels(A, T, Gaussian(), generator=seeded(1))
    assert torch.equal(x, drawn)
    (got,) = torch.autograd.grad(x.square().sum(), a)
    again = A.clone().requires_grad_()
    out = levels.ESTIMATORS[name](again, drawn, T, Gaussian())
    (expected,) = torch.autograd.grad(out.square().sum(), again)
    assert torch.equal(got, expected)


@every
def test_values_scale_the_states_and_the_gradient(name: str) -> None:
    """Four states from -2 to 7 are 3 apart: 3 times the factor, and times the loss's slope."""
    unit, plain = (Levels(T, "gaussian", name, values=v) for v in ((-2, 7), None))
    a, b = A.clone().requires_grad_(), A.clone().requires_grad_()
    x, k = unit(a, generator=seeded(1)), plain(b, generator=seeded(1))
    assert torch.equal(x, 3 * k - 2) and set(x.unique().tolist()) == {-2, 1, 4, 7}
    x.square().sum().backward()
    (3 * k - 2).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-13, atol=0)


@pytest.mark.parametrize("values", [(-1.0, 1.0), (0.1, 0.7), (-1e-3, 3.0), (5, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_of_the_scale_are_exact_and_states_can_be_handed_in_again(
    values: tuple[float, float], dtype: torch.dtype
) -> None:
    unit = Levels(tuple(range(6)), values=values)
    a = torch.arange(-0.5, 6, dtype=dtype)
    x = unit(a, mode="sign")
    assert x[0] == torch.tensor(values[0], dtype=dtype)
    assert x[-1] == torch.tensor(values[1], dtype=dtype)
    assert torch.equal(unit(a.flip(0), x=x), x)
    mean = unit(torch.tensor([-1e3, 1e3], dtype=dtype), mode="mean")
    assert torch.equal(mean, x[[0, -1]])


def test_ternary_states_are_minus_one_zero_and_one() -> None:
    unit = Levels((-0.5, 0.5), Uniform(0.5), values=(-1, 1))
    x = unit(torch.linspace(-2, 2, 101), generator=seeded())
    assert x.unique().tolist() == [-1, 0, 1]


def test_one_threshold_at_0_on_the_scale_of_signs_is_the_binary_unit() -> None:
    pairs = {"straight_through": "straight_through", "half": "zgr", "trapezoid": "zgr"}
    u = torch.rand(A.shape, generator=seeded(2), dtype=torch.float64)
    for mode, (mine, binary) in [(m, p) for m in ("sample", "sign", "mean") for p in pairs.items()]:
        given: dict[str, Any] = {"u": u} if mode == "sample" else {}
        a, b = A.clone().requires_grad_(), A.clone().requires_grad_()
        x = Levels((0,), estimator=mine, values=(-1, 1))(a, mode=mode, **given)
        y = Sign(estimator=binary)(b, mode=mode, **given)
        torch.testing.assert_close(x, y, rtol=1e-14, atol=1e-15)
        (x**3).sum().backward()
        (y**3).sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-15)


def test_the_modes() -> None:
    unit, a = Levels(T, Triangular(0.8), values=(0, 1)), A.clone().requires_grad_()
    sign, mean = unit(a, mode="sign"), unit(a, mode="mean")
    assert torch.equal(sign, (A[..., None] >= torch.tensor(T)).sum(-1).double() / 3)
    torch.testing.assert_close(mean, levels.mean(A, T, Triangular(0.8)) / 3)
    (by_estimator,) = torch.autograd.grad(sign.sum(), a)
    (ordinary,) = torch.autograd.grad(mean.sum(), a)
    torch.testing.assert_close(by_estimator, ordinary)  # straight-through: the slope of the mean
    assert torch.equal(set_mode(unit, "mean")(A), mean)
    assert torch.equal(unit.train()(A), unit.eval()(A))


def test_an_estimator_can_be_given_in_the_call_and_assigned() -> None:
    unit = Levels(T)
    assert unit.estimator is levels.straight_through
    x = torch.full_like(A, 2.0)

    def gradient(**options: Any) -> Tensor:
        a = A.clone().requires_grad_()
        unit(a, x=x, **options).sum().backward()
        assert a.grad is not None
        return a.grad

    first, other = gradient(), gradient(estimator="half")
    assert not torch.equal(first, other)
    unit.estimator = "half"  # type: ignore[assignment]
    assert unit.estimator is levels.half and torch.equal(gradient(), other)
    unit.estimator = partial(levels.chain_rule, s=1.0)
    torch.testing.assert_close(gradient(), first)


class Learned(nn.Module):
    """An estimator with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(0.3))

    def forward(self, a: Tensor, x: Tensor, thresholds: levels.Thresholds, noise: Any) -> Tensor:
        return levels.chain_rule(a, x, thresholds, noise, s=self.s.detach())


def test_an_estimator_that_is_a_module_brings_its_parameters_along() -> None:
    unit = Levels(T, estimator=Learned())
    assert [name for name, _ in unit.named_parameters()] == ["_estimator.s"]
    unit(A.clone().requires_grad_()).sum().backward()
    unit.estimator = "half"  # type: ignore[assignment]
    assert not list(unit.parameters())


def test_it_is_copied_and_saved_with_all_that_it_is() -> None:
    unit = Levels(T, Triangular(0.7), levels.half, mode="sign", values=(-1, 1))
    buffer = io.BytesIO()
    torch.save(unit, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(unit),
        pickle.loads(pickle.dumps(unit)),
        torch.load(buffer, weights_only=False),
    ):
        assert repr(other) == repr(unit) and torch.equal(other(A), unit(A))
    assert repr(unit) == (
        "Levels((-0.9, 0.1, 0.6), Triangular(scale=0.7), half, mode='sign', values=(-1, 1))"
    )
    assert repr(Levels([0, 2])) == "Levels((0, 2), Logistic(scale=1), straight_through)"
    assert not unit.state_dict() and not list(unit.parameters())


def test_half_precision_keeps_its_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        a = A.to(dtype).requires_grad_()
        for mode in ("sample", "sign", "mean"):
            x = Levels(T, values=(-1, 1))(a, mode=mode)
            (g,) = torch.autograd.grad(x.sum(), a)
            assert x.dtype is dtype and g.dtype is dtype and bool(g.isfinite().all())


@pytest.mark.slow
def test_vmap_and_compile() -> None:
    unit = Levels(T, "gaussian", "trapezoid", values=(-1, 1))
    u = torch.rand(A.shape, generator=seeded(3), dtype=torch.float64)
    plain = unit(A, u=u)
    assert torch.equal(torch.func.vmap(lambda a, u: unit(a, u=u))(A, u), plain)
    compiled = torch.compile(lambda a, u: unit(a, u=u), backend="eager", fullgraph=True)
    assert torch.equal(compiled(A, u), plain)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"thresholds": (1, 0)}, ValueError, "thresholds must be finite, strictly increasing"),
        ({"thresholds": ()}, ValueError, "thresholds must be"),
        ({"noise": "normal"}, ValueError, "noise must be one of"),
        ({"noise": 3}, TypeError, "noise must be a noise model"),
        ({"estimator": "zgr"}, ValueError, "estimator must be one of .*trapezoid"),
        ({"estimator": sbnlib.zgr}, ValueError, r"got zgr \(a, x, noise\)"),
        ({"estimator": None}, TypeError, "estimator must be a function"),
        ({"mode": "median"}, ValueError, "mode must be one of"),
        ({"values": (1, 1)}, ValueError, "values must be two finite numbers low < high"),
        ({"values": (1, -1)}, ValueError, "values must be"),
        ({"values": (0, math.inf)}, ValueError, "values must be"),
        ({"values": (0, math.nan)}, ValueError, "values must be"),
        ({"values": 3}, ValueError, "values must be"),
        ({"values": (0, 1, 2)}, ValueError, "values must be"),
    ],
)
def test_bad_options_are_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Levels(**{"thresholds": T, **options})


def test_bad_calls_are_refused() -> None:
    unit = Levels(T, values=(-1, 1))
    for x in (torch.full((2,), 0.5), torch.full((2,), 2.0), torch.full((2,), math.nan)):
        with pytest.raises(ValueError, match="x must hold the 4 states from -1 to 1, got"):
            unit(torch.zeros(2), x=x)
    with pytest.raises(TypeError, match="x must hold states, real numbers"):
        unit(torch.zeros(2), x=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="x must have shape"):
        unit(torch.zeros(2), x=torch.ones(3))
    with pytest.raises(ValueError, match="x must be None in mode='mean'"):
        unit(torch.zeros(2), x=torch.ones(2), mode="mean")
    with pytest.raises(ValueError, match="u must be None in mode='sign'"):
        unit(torch.zeros(2), u=torch.zeros(2), mode="sign")
    with pytest.raises(ValueError, match="mode must be one of"):
        unit(torch.zeros(2), mode="concrete")
    for mode in ("sample", "sign", "mean"):
        with pytest.raises(ValueError, match="a must be finite"):
            unit(torch.tensor([math.nan]), mode=mode)
        with pytest.raises(TypeError, match="a must be a floating-point tensor"):
            unit(torch.tensor([1]), mode=mode)
    with pytest.raises(ValueError, match="thresholds must be"):
        unit.thresholds = (1.0, 1.0)
    with pytest.raises(ValueError, match="values must be"):
        unit.values = (1.0, 1.0)


# ------------------------------------------------------------------------ in a network


def net_of(mode: str = "sample") -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), Levels(T, Logistic(0.5), mode=mode, values=(-1, 1)),
        nn.Linear(6, 4), Sign(mode=mode), nn.Linear(4, 3),
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["sign", "mean"])
def test_the_plain_net_puts_out_the_same(mode: str) -> None:
    net, x = net_of(), torch.rand(40, 5, generator=seeded())
    sbnlib.reestimate_batch_norm(set_mode(net, mode), x)
    plain = to_plain(net)
    torch.testing.assert_close(plain(x), net(x), rtol=1e-6, atol=1e-6)
    assert not any(isinstance(m, Levels | Sign) for m in plain.modules())
    assert isinstance(net[2], Levels), "the network itself is left alone"
    exported = torch.export.export(plain, (x,)).module()
    torch.testing.assert_close(exported(x), plain(x))


def test_statistics_are_taken_in_the_networks_mode() -> None:
    """Behind the units: E x of what they put out in this mode."""
    net = nn.Sequential(Levels(T, values=(-1, 1)), nn.BatchNorm1d(5))
    x = A.float()
    for mode in ("sign", "mean"):
        sbnlib.reestimate_batch_norm(set_mode(net, mode), x)
        torch.testing.assert_close(net[1].running_mean, net[0](x).mean(0))


def test_a_plain_net_that_would_sample_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="deterministic, 2 is in mode 'sample'"):
        to_plain(net_of())
    net = net_of("sign")
    net[2].forward = lambda a: a
    with pytest.raises(ValueError, match="our own layers, 2 has a forward of its own"):
        to_plain(net)


def test_a_summary_counts_bits_of_state() -> None:
    """Six units of four levels take two bits each, and four of two levels one."""
    x = torch.rand(3, 5)
    found = sbnlib.summary(net_of(), x)
    assert {c.name: c.units for c in found.layers if c.units} == {"2": 12, "4": 4}
    assert sbnlib.summary(to_plain(net_of("sign")), x).total.units == 16
    for mean in (net_of("mean"), to_plain(net_of("mean"))):
        assert sbnlib.summary(mean, x).total.units == 0
    assert sbnlib.summary(nn.Sequential(Levels(range(4))), x).total.units == 15


def test_what_is_for_binary_states_refuses_more_levels() -> None:
    with pytest.raises(ValueError, match="layers must hold no nn.Levels"):
        SBN(nn.Sequential(nn.Linear(3, 4), Levels(T)), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="2 .PlainLevels.* cannot be packed"):
        sbnlib.packed.convert(net_of())


# -------------------------------------------------------------------------- the doctor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "noise", "values"),
    [
        ("straight_through", "logistic", None),
        ("straight_through", "uniform", (-1, 1)),
        ("least_variance", "triangular", (-1, 1)),
        ("trapezoid", "logistic", (-1, 1)),
        ("half", "triangular", None),
    ],
)
def test_the_doctor_finds_nothing_wrong(
    name: str, noise: str, values: tuple[float, float] | None
) -> None:
    report = sbnlib.diagnose_unit(Levels(T, noise, name, values=values))
    assert [f.code for f in report.findings if f.wrong] == []
    assert "levels" in report.codes and "uneven" not in report.codes


@pytest.mark.slow
def test_the_doctor_finds_the_unit_in_a_model() -> None:
    net, x = net_of(), torch.rand(32, 5, generator=seeded())
    report = sbnlib.diagnose(net, x, lambda out: out.square().sum(-1))
    assert [u.name for u in report.units if "levels" in u.codes] == ["1. Levels 2"]
    assert not [f.code for u in report.units for f in u.findings if f.wrong]
