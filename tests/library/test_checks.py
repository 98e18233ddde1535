"""The checks of a training script: each trap that others fell into is seen, its counterpart is not.

The faults are written anew, in a few lines each; what is right beside them differs in the fault
alone. Nothing of sbnlib is in them where it is not what is asked about.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

import sbnlib
from sbnlib import checks, diagnose_unit
from sbnlib.diagnose import Finding

#: By number in the list of traps: what it is, what sees it, and under which code.
TRAPS: dict[int, tuple[str, str, str]] = {
    1: ("The noise of the forward pass is not that of the slope", "diagnose_unit", "law"),
    2: ("The slope of one coding with the states of the other", "diagnose_unit", "factor"),
    3: ("A Heaviside that returns signs", "checks.coding", "coding"),
    4: ("The identity in logit space as gradient of a sample", "diagnose_unit", "infinite"),
    5: ("A temperature off by 2", "checks.temperature", "temperature"),
    6: ("A sign of three values", "diagnose_unit", "third-state"),
    7: ("A clamp that nobody mentions", "checks.hidden_clamp", "clamp"),
    8: ("A mean taken before its parameter moves", "checks.current", "stale"),
    9: ("The number of examples multiplied in twice", "checks.scales_once", "scaled-twice"),
    11: ("A second loss that writes into the model's gradients", "checks.gradients_untouched",
         "grad-leak"),
    12: ("A loss under no_grad, whose own parameters never learn", "checks.parameters_reached",
         "unreached"),
    14: ("A bias that holds the variance too", "checks.bias_metric", "bias-metric"),
    15: ("A pooled variance without the part between the groups", "checks.pooled_variance",
         "pooled-variance"),
    20: ("Rare states from float32 uniforms", "checks.rare_state", "rare-state"),
    21: ("Running statistics that move while one measures", "checks.statistics_untouched",
         "statistics"),
}  # fmt: skip

#: The failure gallery of chapter 22, by its number.
GALLERY: dict[int, tuple[str, str, str]] = {
    1: ("The gradient is clipped, not the input", "diagnose_unit", "gradient"),
    2: ("Noise too loud for the depth", "checks.noise_level", "too-loud"),
    3: ("ZGR or ReinMax with uniform noise", "checks.heavy_factor", "heavy-factor"),
    4: ("A surrogate that overflows to NaN", "diagnose_unit", "overflow"),
    5: ("A sign inside a loss", "checks.finite_difference", "silent-zero"),
    6: ("A slope that never ends", "diagnose_unit", "infinite"),
    7: ("A ternary dead zone under weight decay", "checks.dead_zone", "dead-zone"),
    8: ("Straight-through Gumbel-softmax at a low temperature", "checks.heavy_factor",
        "heavy-factor"),
}  # fmt: skip


# ---- units ---------------------------------------------------------------------------------------


def with_slope_of(x: Tensor, m: Tensor) -> Tensor:
    return x + (m - m.detach())


def logistic(a: Tensor) -> Tensor:
    return torch.logit(torch.rand_like(a).clamp(1e-12, 1 - 1e-12))


def coin(a: Tensor, slope: Callable[[Tensor], Tensor] = lambda a: torch.tanh(a / 2)) -> Tensor:
    """Drawn from logistic noise, ±1."""
    return with_slope_of(torch.where(a >= logistic(a), 1.0, -1.0).to(a), slope(a))


def box(high: float, low: float, half: float, says: Callable[[], object] = lambda: None) -> object:
    """A sign without noise, whose slope is (high - low)/2 / half within ±half."""

    class Box(Function):
        @staticmethod
        def forward(ctx, a):
            ctx.save_for_backward(a)
            return torch.where(a >= 0, high, low).to(a)

        @staticmethod
        def backward(ctx, g):
            says()
            (a,) = ctx.saved_tensors
            return g * (a.abs() <= half).to(g) * (high - low) / 2 / half

    return Box.apply


def sloped(slope: Callable[[Tensor], Tensor], clip: bool = False) -> object:
    """A sign without noise, with any slope; or one that clips what comes in."""

    class Sloped(Function):
        @staticmethod
        def forward(ctx, a):
            ctx.save_for_backward(a)
            return torch.where(a >= 0, 1.0, -1.0).to(a)

        @staticmethod
        def backward(ctx, g):
            g = functional.hardtanh(g) if clip else g
            return g * slope(ctx.saved_tensors[0])

    return Sloped.apply


def heaviside_1(a: Tensor) -> Tensor:
    """0/1 with the slope 1 on [-1, 1], that of ±1."""
    m = functional.hardtanh(a)
    return with_slope_of((a >= 0).to(a), m)


def gumbel(tau: float) -> Callable[[Tensor], Tensor]:
    """Straight-through Gumbel-softmax of two categories, in 0/1."""

    def unit(a: Tensor) -> Tensor:
        z = a + logistic(a)
        return with_slope_of((z > 0).to(a), torch.sigmoid(z / tau))

    return unit


def logit_identity(a: Tensor) -> Tensor:
    z = a + logistic(a)
    return with_slope_of((z > 0).to(a), z)


def bits(a: Tensor) -> Tensor:
    return with_slope_of((torch.rand_like(a) < torch.sigmoid(a)).to(a), torch.sigmoid(a))


def clamped_logits(a: Tensor, most: float) -> Tensor:
    return coin(a.clamp(-most, most))


def relaxed(a: Tensor, width: float) -> Tensor:
    return torch.tanh((a - logistic(a)) / width)


def drawn(estimator: Callable[..., Tensor], noise: sbnlib.Noise) -> Callable[[Tensor], Tensor]:
    return lambda a: estimator(a, sbnlib.sample_sign(a, noise), noise)


# ---- pieces of scripts ---------------------------------------------------------------------------


class Mean:
    """The mean tanh(λ) of signs, kept by an optimizer: before its step, or after."""

    def __init__(self, late: bool) -> None:
        self.field = torch.linspace(-1, 1, 7)
        old = self.field
        self.field = old - 0.3 * torch.ones(7)
        self.mean = torch.tanh(self.field if late else old)

    def variance(self, right: bool) -> Tensor:
        mean = torch.tanh(self.field)
        return 1 - mean.square() if right else mean * (1 - mean)


def stale(late: bool) -> Finding:
    kept = Mean(late)
    return checks.current(lambda: kept.mean, lambda: torch.tanh(kept.field))


def counted(times: int) -> Finding:
    def step(n: float) -> float:
        gradient = torch.full((5,), 0.2)
        for _ in range(times):
            gradient = n * gradient
        return float((0.01 * gradient).norm())

    return checks.scales_once(step)


def leak(leaks: bool) -> Finding:
    """The squared estimate is sent back to tune the temperature of a control variate."""
    logits = nn.Parameter(torch.tensor([0.3, -0.4]))
    temperature = nn.Parameter(torch.tensor(0.5))

    def tune() -> None:
        relaxed = torch.sigmoid(logits / temperature)
        (g,) = torch.autograd.grad(relaxed.sum(), logits, create_graph=True)
        loss = g.square().sum()
        if leaks:
            loss.backward()
        else:
            (temperature.grad,) = torch.autograd.grad(loss, temperature)

    return checks.gradients_untouched(tune, [logits])


def decoder_of(forgets: bool) -> Finding:
    decoder, logits = nn.Linear(3, 1), nn.Parameter(torch.zeros(8, 3))

    def loss() -> Tensor:
        x = torch.bernoulli(torch.sigmoid(logits)).detach()
        with torch.set_grad_enabled(not forgets):
            value = decoder(x).square().sum(1)
        score = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(1)
        return (value.detach() * score + value).mean()

    return checks.parameters_reached(loss, {"logits": logits, **dict(decoder.named_parameters())})


def squared_distance(samples: Tensor, exact: Tensor, corrected: bool) -> Tensor:
    own = samples.var(dim=0).sum() / len(samples)
    return (samples.mean(dim=0) - exact).square().sum() - (own if corrected else 0)


def rare(dtype: torch.dtype) -> Finding:
    count = 2**27 if dtype is torch.float32 else 2**23  # of the right one a few are enough
    return checks.rare_state(
        lambda p, n, source: torch.rand(n, dtype=dtype, generator=source) < p, count=count
    )


def measured(frozen: bool) -> Finding:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    inputs = torch.randn(32, 4)

    def spread() -> Tensor:
        net.train(not frozen)
        return torch.stack([net(inputs) for _ in range(3)]).var(dim=0)

    return checks.statistics_untouched(net, spread)


def deep(scale: float) -> Finding:
    torch.manual_seed(0)
    noise = sbnlib.Logistic(scale)
    layers = [m for _ in range(8) for m in (nn.Linear(64, 64), nn.BatchNorm1d(64),
                                            sbnlib.nn.Sign(noise))]  # fmt: skip
    return checks.noise_level(nn.Sequential(*layers), torch.randn(256, 64))


def sign_in_loss(blind: bool) -> Finding:
    torch.manual_seed(1)
    head, inputs = nn.Linear(5, 1), torch.randn(40, 5)

    def loss() -> Tensor:
        out = head(inputs)
        return (1 - (torch.sign(out) if blind else torch.tanh(out))).square().mean() + 0 * out.sum()

    return checks.finite_difference(loss, head)


def ternary(decay: float) -> Finding:
    """Latent weights after gradient steps with decay, until they stand still."""
    source = torch.Generator().manual_seed(0)
    gradient = 0.01 * torch.randn(4000, generator=source)
    latent = torch.randn(4000, generator=source)
    for _ in range(3000):
        latent -= 0.1 * (gradient + decay * latent)
    return checks.dead_zone(latent, gradient, threshold=0.5, decay=decay)


Asked = Callable[[], Finding]


def of_unit(code: str, unit: object) -> Asked:
    """The doctor's finding of this code, or none that is wrong."""

    def ask() -> Finding:
        report = diagnose_unit(unit)
        found = [f for f in report.findings if f.wrong]
        return next((f for f in found if f.code == code), Finding(code, bool(found), str(report)))

    return ask


U, L = sbnlib.Uniform(), sbnlib.Logistic()

#: The wrong one and the right one of each trap.
PAIRS: dict[int, tuple[Asked, Asked]] = {
    1: (of_unit("law", partial(coin, slope=functional.hardtanh)), of_unit("law", coin)),
    2: (of_unit("factor", heaviside_1), of_unit("factor", box(1, 0, 1))),
    3: (lambda: checks.coding(box(1, -1, 1), (0, 1), at_zero=1),
        lambda: checks.coding(box(1, 0, 1), (0, 1), at_zero=1)),
    4: (of_unit("infinite", logit_identity), of_unit("infinite", bits)),
    5: (lambda: checks.temperature(partial(relaxed, width=0.5), "logistic", 0.5),
        lambda: checks.temperature(partial(relaxed, width=1.0), "logistic", 0.5)),
    6: (of_unit("third-state", lambda a: with_slope_of(a.sign(), functional.hardtanh(a))),
        of_unit("third-state", box(1, -1, 1))),
    7: (lambda: checks.hidden_clamp(partial(clamped_logits, most=10), "logistic"),
        lambda: checks.hidden_clamp(coin, "logistic")),
    8: (lambda: stale(late=False), lambda: stale(late=True)),
    9: (lambda: counted(2), lambda: counted(1)),
    11: (lambda: leak(True), lambda: leak(False)),
    12: (lambda: decoder_of(True), lambda: decoder_of(False)),
    14: (lambda: checks.bias_metric(partial(squared_distance, corrected=False)),
         lambda: checks.bias_metric(partial(squared_distance, corrected=True))),
    15: (lambda: checks.pooled_variance(lambda g: g.var(dim=1).mean()),
         lambda: checks.pooled_variance(lambda g: g.flatten().var())),
    20: (lambda: rare(torch.float32), lambda: rare(torch.float64)),
    21: (lambda: measured(False), lambda: measured(True)),
}  # fmt: skip

SHOWN: dict[int, tuple[Asked, Asked]] = {
    1: (of_unit("gradient", sloped(torch.ones_like, clip=True)),
        of_unit("gradient", sloped(lambda a: (a.abs() <= 1).to(a)))),
    2: (lambda: deep(1.0), lambda: deep(0.2555)),
    3: (lambda: checks.heavy_factor(drawn(sbnlib.reinmax, U)),
        lambda: checks.heavy_factor(drawn(sbnlib.reinmax, L))),
    4: (of_unit("overflow", sloped(lambda a: 4 * a.mul(2).exp() / (1 + a.mul(2).exp()) ** 2)),
        of_unit("overflow", sloped(lambda a: 4 * torch.sigmoid(2 * a) * torch.sigmoid(-2 * a)))),
    5: (lambda: sign_in_loss(True), lambda: sign_in_loss(False)),
    6: (of_unit("infinite", sloped(lambda a: 1.001 - a.tanh().square())),
        of_unit("infinite", sloped(lambda a: 1 - a.tanh().square()))),
    7: (lambda: ternary(0.1), lambda: ternary(0.001)),
    8: (lambda: checks.heavy_factor(gumbel(0.02)), lambda: checks.heavy_factor(gumbel(1.0))),
}  # fmt: skip


def case(k: int, pairs: dict[int, tuple[Asked, Asked]], names: dict[int, tuple[str, str, str]]):
    return pytest.param(*pairs[k], names[k], id=f"{k}-{names[k][2]}",
                        marks=[pytest.mark.slow] * (names[k][2] == "rare-state"))  # fmt: skip


EVERY = [*(case(k, PAIRS, TRAPS) for k in TRAPS), *(case(k, SHOWN, GALLERY) for k in GALLERY)]


@pytest.mark.parametrize(("wrong", "right", "trap"), EVERY)
def test_a_trap_is_seen_and_what_is_right_is_not(
    wrong: Asked, right: Asked, trap: tuple[str, str, str]
) -> None:
    _, name, code = trap
    found = wrong()
    assert found.wrong, found
    assert found.code == code
    assert found.advice, "what should one do?"
    found = right()
    assert not found.wrong, found
    assert name == "diagnose_unit" or name.split(".")[1] in checks.__all__


def test_the_lists_are_whole() -> None:
    assert set(TRAPS) == set(PAIRS) == {*range(1, 10), 11, 12, 14, 15, 20, 21}
    assert set(GALLERY) == set(SHOWN) == set(range(1, 9))


# ---- more about single traps ---------------------------------------------------------------------


def test_a_print_in_the_backward_pass_is_seen_and_swallowed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = diagnose_unit(box(1, -1, 1, says=lambda: print("here")))
    assert [f.code for f in report.findings if f.wrong] == ["prints"]
    assert "backward" in str(report)
    assert capsys.readouterr().out == ""


def test_a_print_in_the_forward_pass_is_seen() -> None:
    def unit(a: Tensor) -> Tensor:
        print(a.shape)
        return coin(a)

    assert "prints in its forward pass" in str(diagnose_unit(unit))


def test_an_overflow_is_named_where_it_begins() -> None:
    """exp(2a)² leaves float32 at log(3.4e38)/4 = 22.2 of a; e/(1+e)² is NaN once e is inf, 44.4."""
    unit = sloped(lambda a: 4 * a.mul(2).exp() / (1 + a.mul(2).exp()) ** 2)
    examination = diagnose_unit(unit).examination
    assert examination is not None
    dtype, at, what = examination.overflow
    assert (dtype, what) == ("float32", "slope")
    assert 44.36 <= at <= 44.37 * 10**0.04  # the points are a 25th of a decade apart


@pytest.mark.slow
def test_straight_through_gumbel_softmax_is_no_straight_through_at_temperature_1() -> None:
    """Chapter 9: its mean slope is a convolution, not the density, so a linear loss has a bias."""
    assert "law" in diagnose_unit(gumbel(1.0)).codes


def test_a_tight_clamp_is_told_by_the_doctor_too() -> None:
    assert "kept" in diagnose_unit(partial(clamped_logits, most=3)).codes


def test_a_hardtanh_is_no_clamp_where_uniform_noise_is_meant() -> None:
    unit = box(1, -1, 1)
    assert not checks.hidden_clamp(unit, "uniform").wrong
    assert checks.hidden_clamp(unit, "logistic").wrong


def three(a: Tensor) -> Tensor:
    return with_slope_of(torch.sign(torch.sigmoid(a) - torch.rand_like(a)), torch.tanh(a / 2))


def shifted_normal(a: Tensor) -> Tensor:
    return with_slope_of(torch.sign(a + torch.randn(a.shape)), a)


def in_place(a: Tensor) -> Tensor:
    return with_slope_of(torch.sign(torch.sigmoid(a) - torch.empty_like(a).uniform_()), a)


@pytest.mark.parametrize("unit", [three, shifted_normal, in_place])
def test_a_drawn_sign_of_three_values_is_seen_at_a_tie(unit: Callable[[Tensor], Tensor]) -> None:
    assert checks.ties(unit).wrong


@pytest.mark.parametrize("unit", [coin, bits, sbnlib.nn.Sign(), drawn(sbnlib.zgr, U)])
def test_a_drawn_sign_of_two_values_has_no_tie(unit: Callable[[Tensor], Tensor]) -> None:
    assert not checks.ties(unit).wrong


def test_a_variance_by_the_formula_of_bits_is_seen_for_signs() -> None:
    kept = Mean(late=True)
    true = partial(kept.variance, True)
    assert not checks.current(true, lambda: 1 / torch.cosh(kept.field).square()).wrong
    assert checks.current(partial(kept.variance, False), true).wrong


def test_a_size_that_grows_twice_somewhere_is_seen() -> None:
    sizes = {10: 1.0, 100: 10.0, 1000: 1000.0}  # powers 1 and 2
    assert checks.scales_once(sizes.__getitem__).wrong
    assert not checks.scales_once(lambda n: 3.0).wrong  # as n^0
    assert checks.scales_once(lambda n: n**0.5).wrong


def test_weights_that_the_forward_pass_rewrites_are_seen_and_put_back() -> None:
    class Centred(nn.Linear):
        def forward(self, a: Tensor) -> Tensor:
            self.weight.data -= self.weight.data.mean(dim=1, keepdim=True)
            return super().forward(a)

    net, plain = Centred(4, 3), nn.Linear(4, 3)
    before = net.weight.detach().clone()
    finding = checks.weights_untouched(net, lambda: net(torch.ones(2, 4)))
    assert finding.wrong
    assert "weight" in finding.words
    assert torch.equal(net.weight, before)
    assert not checks.weights_untouched(plain, lambda: plain(torch.ones(2, 4))).wrong


@pytest.mark.parametrize(
    "fn",
    [
        lambda s, g: torch.tensor(0.0),  # sees no bias
        lambda s, g: squared_distance(s, g, True).clamp_min(0),  # clipped at 0
        lambda s, g: squared_distance(s, g, True) / 2,
        lambda s, g: torch.tensor(float("nan")),
    ],
)
def test_a_wrong_bias_of_another_kind_is_seen_too(fn: Callable[..., Tensor]) -> None:
    assert checks.bias_metric(fn).wrong


def test_a_parameter_without_effect_has_no_silent_zero() -> None:
    used, idle = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    finding = checks.finite_difference(lambda: used.square().sum() + 0 * idle.sum(), [used, idle])
    assert not finding.wrong, finding


def test_the_silent_zero_of_one_parameter_is_named() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    finding = checks.finite_difference(lambda: a.sum() + b.mul(7).round().sum(), {"a": a, "b": b})
    assert finding.wrong
    assert "with b," in finding.words


def test_noise_too_quiet_for_the_depth_and_a_gain_that_is_infinite() -> None:
    assert deep(0.02).code == "too-quiet"
    net = nn.Sequential(nn.Linear(64, 64), sbnlib.nn.Sign("uniform", "zgr"))
    finding = checks.noise_level(net, torch.randn(64, 64))
    assert (finding.code, finding.wrong) == ("infinite-gain", True)


def test_noise_is_measured_against_the_pre_activations() -> None:
    """Twice the noise beside twice the weights is the same network."""

    def level(factor: float) -> str:
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(16, 16), sbnlib.nn.Sign(sbnlib.Logistic(0.3 * factor)))
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(factor)
        return checks.noise_level(net, torch.randn(128, 16)).words

    assert level(1.0) == level(4.0)


def test_a_unit_of_a_network_samples_at_test_until_its_mode_is_set() -> None:
    net = nn.Sequential(nn.Linear(6, 20), sbnlib.nn.Sign(), nn.Dropout(0.5), nn.Linear(20, 2))
    assert checks.deterministic(net, torch.randn(9, 6)).code == "samples-at-test"
    assert checks.deterministic(net, torch.randn(9, 6)).wrong
    sbnlib.set_mode(net, "sign")
    assert not checks.deterministic(net, torch.randn(9, 6)).wrong


def test_latent_weights_in_a_checkpoint_are_seen() -> None:
    layer = sbnlib.nn.BernoulliLinear(5, 4)
    assert checks.binary_weights(layer.state_dict(), ["eta"]).wrong
    plain = sbnlib.to_plain(sbnlib.set_mode(nn.Sequential(layer), "sign"))
    assert not checks.binary_weights(plain.state_dict(), ["0.weight"]).wrong
    scaled = torch.tensor([[0.5, -0.5, 0.5], [2.0, 2.0, -2.0], [0.0, 3.0, 3.0]])
    assert not checks.binary_weights({"w": scaled}, "w").wrong
    assert checks.binary_weights({"w": torch.tensor([[-1.0, 2.0]])}, ["w"]).wrong
    assert checks.binary_weights({"w": torch.tensor([[-1.0, 0.0, 1.0]])}, ["w"]).wrong


def test_latent_weights_beyond_their_bound_are_seen() -> None:
    weight = nn.Parameter(torch.tensor([0.2, -1.0, 1.0]))
    assert not checks.clamped([weight]).wrong
    with torch.no_grad():
        weight[0] = -1.01
    finding = checks.clamped({"layer.weight": weight})
    assert finding.wrong
    assert "layer.weight" in finding.words


@pytest.mark.parametrize(
    ("size", "options", "wrong"),
    [(1.0, {}, False), (1.0, {"decay": 1e-4}, False), (1e9, {"decay": 1e-4}, True),
     (1e9, {}, False), (1e-9, {}, True), (1e-9, {"eps": 1e-12}, False)],
)  # fmt: skip
def test_gradients_of_a_size_that_makes_constants_meaningless(
    size: float, options: dict[str, float], wrong: bool
) -> None:
    weight = nn.Parameter(torch.ones(10))
    weight.grad = torch.full((10,), size)
    assert checks.gradient_scale([weight], **options).wrong is wrong


def test_the_zone_is_dead_where_the_fixed_point_lies_in_it() -> None:
    """The steps of SGD with decay, run to their end, against |g| <= λΔ."""
    gradient = torch.linspace(-1, 1, 201)
    latent = torch.zeros(201)
    for _ in range(2000):
        latent = latent - 0.1 * (gradient + 0.5 * latent)
    held = float((latent.abs() < 0.8).double().mean())
    finding = checks.dead_zone(torch.zeros(201), gradient, threshold=0.8, decay=0.5, most=0)
    # the two weights with |g| = λΔ come arbitrarily near to the edge from inside
    assert f"{100 * held:.3g} %" in finding.words
    assert not checks.dead_zone(torch.zeros(201), gradient, threshold=0.8, decay=0.0).wrong


def test_the_share_of_rare_draws_is_that_of_the_law() -> None:
    """c is 0 or 10, the latter once in 1000 draws: of 16384 pairs some 33 hold all the chance.

    (c - c')²/2 = 50 where one of the two is 10, and (c² + c'²)/2 is the same there: the share is 1
    up to pairs of two tens, one in a thousand of these.
    """

    def unit(a: Tensor) -> Tensor:
        return with_slope_of(a.sign(), 10 * a * (torch.rand_like(a) < 1e-3))

    finding = checks.heavy_factor(unit)
    assert finding.wrong
    # each of about one pair of tens among the 64 blocks costs 0.1 %: ten of them once in 10⁷
    assert float(finding.words.split(" is ")[1].split(" %")[0]) > 99


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_right_units_have_no_heavy_factor_whatever_the_seed(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks.trials, "SEED", seed)
    for estimator, noise in ((sbnlib.straight_through, U), (sbnlib.zgr, L), (sbnlib.darn, L)):
        assert not checks.heavy_factor(drawn(estimator, noise)).wrong


# ---- nothing is left behind ----------------------------------------------------------------------


def state_of_all(net: nn.Module) -> list[object]:
    first = next(net.parameters())
    return [[t.tolist() for t in net.state_dict().values()], first.grad,
            [m.training for m in net.modules()], torch.get_rng_state().tolist(),
            random.getstate(), numpy.random.get_state()[1].tolist(), torch.is_grad_enabled(),
            [len(m._forward_pre_hooks) for m in net.modules()]]  # fmt: skip


def harm(net: nn.Module) -> bool:
    """Moves everything that can be moved."""
    net.train()
    net(torch.randn(16, 6)).square().mean().backward()
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    random.random()
    numpy.random.rand()
    return True


@pytest.mark.parametrize(
    "ask",
    [
        lambda net, fn: checks.gradients_untouched(fn, net),
        lambda net, fn: checks.parameters_reached(lambda: fn() and net(torch.ones(9, 6)), net),
        lambda net, fn: checks.statistics_untouched(net, fn),
        lambda net, fn: checks.weights_untouched(net, fn),
        lambda net, fn: checks.deterministic(net, torch.randn(9, 6)),
        lambda net, fn: checks.noise_level(net, torch.randn(9, 6)),
        lambda net, fn: checks.finite_difference(lambda: net(torch.ones(9, 6)).square(), net),
    ],
)
def test_a_check_leaves_everything_as_it_was(ask: Callable[..., Finding]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), sbnlib.nn.Sign(), nn.Linear(20, 2))
    net[1].eval()
    before = state_of_all(net)
    with torch.random.fork_rng():  # the inputs above are drawn
        ask(net, lambda: harm(net))
    assert state_of_all(net) == before


def test_a_check_gives_the_same_answer_again() -> None:
    torch.manual_seed(5)
    first = checks.heavy_factor(gumbel(0.3))
    assert checks.heavy_factor(gumbel(0.3)) == first


def test_a_unit_that_is_a_module_is_left_as_it_was() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, a: Tensor) -> Tensor:
            self.calls += 1
            return coin(a)

    unit = Counting()
    for check in (checks.coding, checks.ties, checks.heavy_factor):
        check(unit)
    checks.hidden_clamp(unit, "logistic")
    assert unit.calls == 0


# ---- bad input -----------------------------------------------------------------------------------

W = torch.ones(3)


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (lambda: checks.gradients_untouched(3, [W]), TypeError, "fn must be a function"),
        (lambda: checks.gradients_untouched(print, W), TypeError, "params must be a module"),
        (lambda: checks.gradients_untouched(print, []), TypeError, "params must .* at least one"),
        (lambda: checks.parameters_reached(lambda: 3, [W]), TypeError, "loss must return"),
        (lambda: checks.finite_difference(lambda: W.sum(), [W], step=0), ValueError, "step must"),
        (lambda: checks.statistics_untouched(W, print), TypeError, "net must be a module"),
        (lambda: checks.weights_untouched(nn.Linear(1, 1), 3), TypeError, "fn must be a function"),
        (lambda: checks.deterministic(3, W), TypeError, "net must be a module"),
        (lambda: checks.bias_metric(lambda s, g: s), TypeError, "fn must return a number"),
        (lambda: checks.bias_metric(lambda s, g: 0, repeats=1), ValueError, "repeats must"),
        (lambda: checks.pooled_variance(lambda g: g.var(1)), TypeError, "fn must return a number"),
        (lambda: checks.rare_state(print, p=0.1), ValueError, "p must be a probability"),
        (lambda: checks.rare_state(lambda p, n, g: W), TypeError, "sampler must return"),
        (lambda: checks.rare_state(lambda p, n, g: torch.zeros(n)), ValueError, "must draw with"),
        (lambda: checks.rare_state(print, count=0), ValueError, "count must be an integer"),
        (lambda: checks.coding(3), TypeError, "unit must be a function"),
        (lambda: checks.coding(coin, (1, 1)), ValueError, "states must be at least two"),
        (lambda: checks.coding(coin, at_zero=0), ValueError, "at_zero must be one of"),
        (lambda: checks.ties(None), TypeError, "unit must be a function"),
        (lambda: checks.hidden_clamp(coin, "pink"), ValueError, "pink"),
        (lambda: checks.hidden_clamp(lambda a: a.detach(), "logistic"), TypeError, "must pass"),
        (lambda: checks.temperature(coin, "logistic", 0), ValueError, "tau must"),
        (lambda: checks.temperature(lambda a: a + 2, "logistic", 1), ValueError, "unit must give"),
        (lambda: checks.heavy_factor(coin, most=2), ValueError, "most must be a number"),
        (lambda: checks.heavy_factor(coin, [1.0]), TypeError, "data must be a floating-point"),
        (lambda: checks.noise_level(nn.Linear(2, 2), torch.ones(1, 2)), ValueError,
         "net must run units of sbnlib.nn.Sign on the inputs, got none; in the place of a unit"),
        (lambda: checks.noise_level(sbnlib.nn.Sign(), torch.zeros(2)), ValueError, "net must have"),
        (lambda: checks.noise_level(sbnlib.nn.Sign(), W, least=1), ValueError, "least must be"),
        (lambda: checks.scales_once(lambda n: 0.0), ValueError, "step must return finite sizes"),
        (lambda: checks.current(lambda: W, lambda: W[:2]), ValueError, "read must return"),
        (lambda: checks.current(lambda: 3, lambda: W), TypeError, "read must return"),
        (lambda: checks.dead_zone(W, W[:2], threshold=1, decay=1), ValueError, "gradient must"),
        (lambda: checks.dead_zone(W, W, threshold=0, decay=1), ValueError, "threshold must be"),
        (lambda: checks.dead_zone(W, W, threshold=1, decay=-1), ValueError, "decay must be"),
        (lambda: checks.dead_zone([1], W, threshold=1, decay=1), TypeError, "latent must be"),
        (lambda: checks.clamped([W], 0), ValueError, "bound must be"),
        (lambda: checks.binary_weights(3, ["w"]), TypeError, "state must be"),
        (lambda: checks.binary_weights({"w": W}, ["v"]), ValueError, "names must be .* got v"),
        (lambda: checks.binary_weights({"w": W}, []), ValueError, "names must be .* got none"),
        (lambda: checks.gradient_scale([W]), ValueError, "params must have gradients"),
        (lambda: checks.gradient_scale([W], eps=0), ValueError, "eps must be"),
    ],
)  # fmt: skip
def test_bad_input_is_named(ask: Asked, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ask()


def test_a_loss_that_is_another_one_each_time_is_refused() -> None:
    weight, own = nn.Parameter(torch.ones(2)), random.Random(0)
    with pytest.raises(ValueError, match="loss must be a function of the parameters"):
        checks.finite_difference(lambda: weight.sum() * own.random(), [weight])


def test_the_module_comes_with_the_package() -> None:
    assert sbnlib.checks is checks
    assert "checks" not in sbnlib.__all__
    assert "checks" in dir(sbnlib)
    assert dir(checks) == sorted(checks.__all__)
