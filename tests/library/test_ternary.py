"""Ternary weights and mirror descent on the simplex: by sums over all 3^n weights, own code."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from bridge import z_limit
from reference import Array
from scipy import optimize
from torch import Tensor, nn
from torch.nn.utils import prune
from updates import exponentiated_gradient

from sbnlib import SBN, exact_gradient, optim, set_mode, to_plain
from sbnlib.nn import BernoulliLinear, TernaryLinear
from sbnlib.optim import SimplexDescent

RNG = np.random.default_rng(5)
N = 4
P = RNG.dirichlet([1, 1, 1], size=N)
#: Weights that have nearly settled, on each of the states.
EDGES = np.array(
    [[1e-9, 1e-7, 1 - 1e-9 - 1e-7], [0.5e-6, 1 - 1e-6, 0.5e-6], [1 - 2e-8, 1e-8, 1e-8]]
)
A = RNG.normal(size=(N, N))
B = RNG.normal(size=N)
STATES = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=N)))


def layer_of(p: Array, **options: object) -> TernaryLinear:
    layer = TernaryLinear(len(p), 1, bias=False, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.theta.copy_(torch.tensor(p).log()[None])
    return layer


def quadratic(w: Array) -> float:
    return float(w @ A @ w + B @ w)


def quadratic_of(w: Tensor) -> Tensor:
    return w @ torch.tensor(A) @ w + torch.tensor(B) @ w


def linear_of(w: Tensor) -> Tensor:
    return torch.tensor(B) @ w


def uniforms_for(p: Array, w: Array) -> Array:
    """A uniform number for which the weight is w: the middle of its interval."""
    minus, zero, plus = p.T
    middle = {1.0: plus / 2, 0.0: plus + zero / 2, -1.0: 1 - minus / 2}
    return np.array([middle[state][i] for i, state in enumerate(w)])


def expected_estimate(p: Array, loss: object, s: float) -> Array:
    """The mean of ``theta.grad`` over all 3^n weights, less its entry of the state 0."""
    mean = np.zeros_like(p)
    for w in STATES:
        layer = layer_of(p, s=s)
        drawn = layer.weight(u=torch.tensor(uniforms_for(p, w))[None])[0]
        assert np.array_equal(drawn.detach().numpy(), w)
        loss(drawn).backward()
        mean += law(p, w) * layer.theta.grad.numpy()[0]
    return mean - mean[:, 1:2]


def law(p: Array, w: Array) -> float:
    return float(np.prod([p[i, int(state) + 1] for i, state in enumerate(w)]))


def exact(p: Array, loss: object) -> Array:
    """dE L/dp_ik - dE L/dp_i0, from the definition: the other weights averaged out."""
    found = np.zeros_like(p)
    for i in range(N):
        for k in range(3):
            for w in STATES[STATES[:, i] == k - 1]:
                found[i, k] += law(p, w) / p[i, k] * loss(w)
    return found - found[:, 1:2]


# ------------------------------------------------------------------------------ the gradient


def test_at_s_0_the_gradient_is_exact_for_quadratics() -> None:
    np.testing.assert_allclose(
        expected_estimate(P, quadratic_of, 0.0), exact(P, quadratic), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("s", [1.0, 0.4, -1.0])
def test_at_other_s_a_quadratic_has_the_bias_of_the_docstring(s: float) -> None:
    bias = expected_estimate(P, quadratic_of, s) - exact(P, quadratic)
    m, curvature = P[:, 2] - P[:, 0], 2 * np.diag(A)  # L has A_ii w_i^2
    np.testing.assert_allclose(bias[:, 2], -s * curvature * (0.5 - m), rtol=0, atol=1e-13)
    np.testing.assert_allclose(bias[:, 0], -s * curvature * (0.5 + m), rtol=0, atol=1e-13)


@pytest.mark.parametrize("s", [1.0, 0.0, 0.3])
def test_a_linear_loss_is_exact_at_every_s(s: float) -> None:
    found = expected_estimate(P, linear_of, s)
    np.testing.assert_allclose(found, np.stack([-B, 0 * B, B], -1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("p", [*P, *EDGES, [0.0, 0.3, 0.7], [0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
@pytest.mark.parametrize("s", [0.0, 0.5])
def test_moments_of_the_factors_are_those_of_the_docstring(p: Array, s: float) -> None:
    """Also where one state is nearly sure, or impossible: at p_0 = 1 the factor is 1."""
    p = np.asarray(p)
    m, w = p[2] - p[0], np.array([-1.0, 0.0, 1.0])
    v = float(p @ (w - m) ** 2)
    c = np.array([factors(p, state, s) for state in w])
    drawn = p > 0
    for column, half in ((0, -0.5), (1, 0.5)):
        mean, square = p[drawn] @ c[drawn, column], p[drawn] @ c[drawn, column] ** 2
        expected = 1 + (1 - s) ** 2 * (half - m) ** 2 / v if v else 1.0
        assert mean == pytest.approx(1, abs=1e-7)
        assert square == pytest.approx(expected, rel=1e-7)


def factors(p: Array, w: float, s: float) -> Array:
    """c_- and c_+ that the layer used with this state; drawn from u in the state's interval."""
    layer = layer_of(p[None], s=s)
    u = uniforms_for(p[None], np.array([w]))
    if p[int(w) + 1] == 0:
        return np.ones(2)
    layer.weight(u=torch.tensor(u)[None]).sum().backward()
    down, zero, up = layer.theta.grad.numpy()[0, 0]
    assert zero == 0 and math.isfinite(down) and math.isfinite(up)
    return np.array([-down, up])


@pytest.mark.parametrize("settled", range(3))
def test_single_precision_loses_nothing_where_a_state_is_nearly_sure(settled: int) -> None:
    p = np.full(3, 1e-6)
    p[settled] = 1 - 2e-6
    for w in (-1.0, 0.0, 1.0):
        u = torch.tensor(uniforms_for(p[None], np.array([w])))[None]
        found = []
        for dtype in (torch.float64, torch.float32):
            layer = layer_of(p[None], s=0.0).to(dtype)
            layer.weight(u=u).sum().backward()
            found.append(layer.theta.grad.double())
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_in_mean_it_is_the_gradient_of_the_loss_at_the_mean() -> None:
    layer = layer_of(P, forward="mean")
    quadratic_of(layer.weight()[0]).backward()
    m = P[:, 2] - P[:, 0]
    slope = (A + A.T) @ m + B
    np.testing.assert_allclose(
        layer.theta.grad.numpy()[0], np.stack([-slope, 0 * slope, slope], -1), rtol=0, atol=1e-13
    )


def test_in_sign_it_is_straight_through_at_the_rounded_weight() -> None:
    layer = layer_of(P, forward="sign", s=0.0)
    w = layer.weight()[0]
    quadratic_of(w).backward()
    assert np.array_equal(w.detach().numpy(), P.argmax(-1) - 1.0)
    slope = (A + A.T) @ (P.argmax(-1) - 1.0) + B
    np.testing.assert_allclose(layer.theta.grad.numpy()[0, :, 2], slope, rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------ the states


def test_draws_have_their_probabilities() -> None:
    """A z-test of each state's count, false alarm 1e-6 in all."""
    count = 200_000
    layer = TernaryLinear(count, len(P), bias=False)
    with torch.no_grad():
        layer.theta.copy_(torch.tensor(P).log()[:, None].expand(-1, count, -1))
    drawn = layer.ternary("sample", generator=torch.Generator().manual_seed(3))
    for k in range(3):
        share = (drawn == k - 1).double().mean(-1).numpy()
        z = (share - P[:, k]) / np.sqrt(P[:, k] * (1 - P[:, k]) / count)
        assert np.abs(z).max() < z_limit(3 * len(P))


def test_rare_states_on_both_sides_are_drawn_where_the_uniforms_say() -> None:
    tiny = 2.0**-40
    layer = layer_of(np.array([[tiny, 1 - 2 * tiny, tiny]]))
    for u, state in ((0.0, 1), (tiny * 0.99, 1), (tiny * 1.01, 0), (0.5, 0),
                     (1 - tiny * 1.01, 0), (1 - tiny * 0.99, -1)):  # fmt: skip
        assert layer.weight(u=torch.tensor([[u]], dtype=torch.float64)).item() == state, u


def test_equal_probabilities_round_to_0_and_then_to_plus_1() -> None:
    layer = layer_of(np.array([[1, 1, 1], [1, 0.5, 1], [2, 2, 1], [1, 2, 2], [3, 1, 2.0]]))
    assert layer.ternary().tolist() == [[0, 1, 0, 0, -1]]


def test_a_fresh_layer_is_undecided() -> None:
    p = TernaryLinear(50, 40).p
    assert p.shape == (40, 50, 3)
    torch.testing.assert_close(p[..., 1], torch.full((40, 50), 1 / 3))
    assert p[..., [0, 2]].min() > 1 / 6 - 1e-6 and p[..., [0, 2]].max() < 1 / 2 + 1e-6
    assert p[..., 2].std() > 0.08  # uniform: 0.096


def test_modes_and_names() -> None:
    layer = TernaryLinear(3, 2)
    assert list(dict(layer.named_parameters())) == ["theta", "bias"]
    assert list(layer.state_dict()) == ["theta", "bias"]
    assert repr(layer) == (
        "TernaryLinear(in_features=3, out_features=2, bias=True, s=0, forward='sample')"
    )
    x = torch.rand(5, 3)
    set_mode(layer, "sign")
    torch.testing.assert_close(layer(x), x @ layer.ternary().T)
    layer.bias.data.add_(1)
    torch.testing.assert_close(layer(x, mode="mean"), x @ (layer.p[..., 2] - layer.p[..., 0]).T + 1)


def test_plain_layers_hold_the_states() -> None:
    net = nn.Sequential(TernaryLinear(6, 5), nn.Tanh(), TernaryLinear(5, 2, bias=False))
    with pytest.raises(ValueError, match="net must be deterministic, 0 is in mode 'sample'"):
        to_plain(net)
    plain, x = to_plain(set_mode(net, "sign")), torch.rand(7, 6)
    torch.testing.assert_close(plain(x), net(x))
    assert type(plain[0]) is nn.Linear
    assert set(plain[0].weight.unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_a_generator_decides_the_draw_and_an_sbn_passes_it_on() -> None:
    net = SBN(TernaryLinear(5, 4))
    x = torch.rand(3, 5)
    twice = [net(x, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    before = torch.get_rng_state()
    assert torch.equal(*twice) and torch.equal(before, torch.get_rng_state())
    layer = TernaryLinear(5, 4)
    draws = {
        layer.ternary("sample", generator=torch.Generator().manual_seed(k)).sum() for k in (1, 2)
    }
    assert len(draws) == 2


@pytest.mark.slow
def test_half_precision_and_compile() -> None:
    layer = TernaryLinear(3, 2)
    out = layer.bfloat16()(torch.ones(1, 3, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    layer = TernaryLinear(3, 2).double()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    u, x = torch.rand(2, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64)
    torch.testing.assert_close(compiled(x, u=u), layer(x, u=u))


# ------------------------------------------------------------------------- mirror descent


def step_of(p: Array, g: Array, lr: float, kl: float = 0.0) -> Array:
    theta = torch.tensor(np.log(p) + 3.0).requires_grad_()
    theta.grad = torch.tensor(g)
    SimplexDescent([theta], lr, kl=kl).step()
    probabilities = theta.detach().exp().numpy()
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-14)  # theta is normalized
    return probabilities


@pytest.mark.parametrize("kl", [0.0, 0.7])
@pytest.mark.parametrize("shift", [0.0, 10.0])
@pytest.mark.parametrize("states", [2, 3, 5])
def test_a_step_is_exponentiated_gradient(kl: float, shift: float, states: int) -> None:
    p, g = RNG.dirichlet([1.0] * states, size=(2, 3)), RNG.normal(size=(2, 3, states))
    expected = exponentiated_gradient(p, g, 0.3, kl)
    np.testing.assert_allclose(step_of(p, g + shift, 0.3, kl), expected, rtol=1e-12)


def test_a_step_is_the_argmin_of_the_linear_model_plus_the_divergence() -> None:
    p, g, lr = P[0], np.array([0.4, -0.3, 0.9]), 0.8

    def objective(z: Array) -> float:
        q = np.exp(z - z.max())
        q /= q.sum()
        return float(g @ q + q @ np.log(q / p) / lr)

    found = optimize.minimize(objective, np.zeros(3), method="BFGS", options={"gtol": 1e-10}).x
    q = np.exp(found - found.max())
    np.testing.assert_allclose(step_of(p, g, lr), q / q.sum(), atol=1e-6)


def descend(p: Array, s: float, lr: float, steps: int, kl: float = 0.0) -> list[Array]:
    """L = w^2 of one weight; the gradient is summed over the three states."""
    theta = torch.tensor(np.log(p)).requires_grad_()
    optimizer, path = SimplexDescent([theta], lr, kl=kl), [p]
    for _ in range(steps):
        mean = np.zeros(3)
        for k, w in enumerate((-1.0, 0.0, 1.0)):
            layer = layer_of(path[-1][None], s=s)
            u = uniforms_for(path[-1][None], np.array([w]))
            layer.weight(u=torch.tensor(u)[None]).square().sum().backward()
            mean += path[-1][k] * layer.theta.grad.numpy()[0, 0]
        theta.grad = torch.tensor(mean)
        optimizer.step()
        path.append(theta.detach().exp().numpy())
    return path


@pytest.mark.slow
def test_straight_through_conserves_the_ratio_so_that_p0_is_not_learnt() -> None:
    """log(p_+ p_-/p_0^2) moves only by rounding; from m = 0, L = w^2 leaves p_0 at 1/3."""
    path = descend(np.array([0.2, 0.3, 0.5]), 1.0, 0.1, 300)
    kept = [math.log(p[2] * p[0] / p[1] ** 2) for p in path]
    np.testing.assert_allclose(kept, kept[0], rtol=0, atol=300 * 1e-14)
    assert abs(path[-1][2] - path[-1][0]) < 1e-3
    assert path[-1][1] == pytest.approx(1 / (1 + 2 * math.exp(kept[0] / 2)), abs=1e-6)
    third = descend(np.full(3, 1 / 3), 1.0, 0.1, 50)
    np.testing.assert_allclose(third[-1], 1 / 3, rtol=0, atol=1e-14)


def test_the_exact_gradient_brings_p0_to_1() -> None:
    """L = w^2 is p_+ + p_-: each step multiplies both by e^{-lr} before the sum is made 1."""
    path = descend(np.array([0.2, 0.3, 0.5]), 0.0, 0.1, 100)
    share = 0.7 * math.exp(-10)
    assert path[-1][1] == pytest.approx(0.3 / (0.3 + share), abs=1e-12)
    assert path[-1][2] / path[-1][0] == pytest.approx(2.5, rel=1e-10)


@pytest.mark.slow
def test_kl_pulls_to_the_uniform_law_and_balances_the_loss() -> None:
    """Without a gradient log p shrinks by 1 - lr kl a step; with L = w^2, p is at a Gibbs law."""
    p = np.array([0.1, 0.2, 0.7])
    pulled = step_of(p, np.zeros(3), 0.5, 0.4)
    np.testing.assert_allclose(np.diff(np.log(pulled)), 0.8 * np.diff(np.log(p)), rtol=1e-12)
    path = descend(p, 0.0, 0.2, 300, kl=0.5)
    gibbs = np.exp(-np.array([1.0, 0.0, 1.0]) / 0.5)
    np.testing.assert_allclose(path[-1], gibbs / gibbs.sum(), atol=1e-12)


def test_a_run_from_a_checkpoint_or_a_copy_is_the_same_run() -> None:
    layer = layer_of(P)
    optimizer = SimplexDescent(layer.parameters(), 0.1, kl=0.1)
    draws = torch.rand(6, 1, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def go(layer: TernaryLinear, optimizer: torch.optim.Optimizer, draws: Tensor) -> Tensor:
        for u in draws:
            optimizer.zero_grad()
            quadratic_of(layer.weight(u=u)[0]).backward()
            optimizer.step()
        return layer.theta.detach().clone()

    go(layer, optimizer, draws[:3])
    twins = [copy.deepcopy((layer, optimizer)), pickle.loads(pickle.dumps((layer, optimizer)))]
    file = io.BytesIO()
    torch.save([layer.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = layer_of(P)
    other = SimplexDescent(fresh.parameters(), 1.0)
    fresh.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    expected = go(layer, optimizer, draws[3:])
    for twin in [*twins, (fresh, other)]:
        assert torch.equal(go(*twin, draws[3:]), expected)
        assert twin[0].theta.simplex is True


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("s", [math.nan, math.inf, None, "0", True])
def test_a_bad_s_is_refused(s: object) -> None:
    with pytest.raises(ValueError, match="s must be a finite number, got"):
        TernaryLinear(2, 2, s=s)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="forward must be one of .*, got 'concrete'"):
        TernaryLinear(2, 2, forward="concrete")
    with pytest.raises(TypeError, match="dtype must be a floating-point one, got torch.int64"):
        TernaryLinear(2, 2, dtype=torch.int64)
    with pytest.raises(TypeError, match="bias must be True or False, got 0.5; s= is given by name"):
        TernaryLinear(2, 2, 0.5)
    layer = TernaryLinear(2, 2)
    with pytest.raises(ValueError, match="mode must be one of"):
        layer.weight("concrete")
    with pytest.raises(ValueError, match="how must be 'sign' or 'sample', got 'mean'"):
        layer.ternary("mean")
    with pytest.raises(ValueError, match="u must be None in mode='sign'"):
        layer.weight("sign", u=torch.rand(2, 2))
    with pytest.raises(ValueError, match="u must"):
        layer.weight(u=torch.rand(3, 2))
    with pytest.raises(TypeError, match="forward must stay a function"):
        layer.forward = "sign"
    with pytest.raises(RuntimeError, match="Missing key.*theta"):
        layer.load_state_dict(BernoulliLinear(2, 2).state_dict())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_theta_off_the_simplex_is_refused(bad: float) -> None:
    layer = layer_of(P)
    layer.theta.data[0, 1, 2] = bad
    with pytest.raises(ValueError, match="theta must be a point of the simplex"):
        layer(torch.ones(1, N, dtype=torch.float64))
    layer.theta.data[0, 1] = -math.inf
    with pytest.raises(ValueError, match="theta must be a point of the simplex"):
        layer.p  # noqa: B018


def test_a_point_on_the_edge_computes_and_is_not_stepped() -> None:
    layer = layer_of(np.array([[0.0, 0.4, 0.6], [1.0, 0.0, 0.0], *P[:2]]))
    w = layer.weight(generator=torch.Generator().manual_seed(0))[0]
    quadratic_of(w).backward()
    assert w[1] == -1 and set(w.tolist()) <= {-1, 0, 1}
    assert bool(layer.theta.grad.isfinite().all())
    before = layer.theta.detach().clone()
    with pytest.raises(ValueError, match=r"parameter 0 of group 0, shape .*holds NaN or infinite"):
        SimplexDescent(layer.parameters(), 0.1).step()
    assert torch.equal(layer.theta, before)


def test_a_probability_that_rounds_to_0_comes_back() -> None:
    theta = torch.tensor([[0.0, 0.0, 0.0]], requires_grad=True)
    optimizer = SimplexDescent([theta], 1.0)
    for sign in (1, -1):
        theta.grad = torch.tensor([[500.0 * sign, 0.0, 0.0]])
        optimizer.step()
        assert (theta.softmax(-1)[0, 0] == 0) == (sign > 0)
    torch.testing.assert_close(theta.softmax(-1), torch.full((1, 3), 1 / 3))


def test_what_the_optimizer_refuses() -> None:
    layer = TernaryLinear(3, 2)
    with pytest.raises(ValueError, match=r"lr \* kl must be below 2, got 4 \* 0.5"):
        SimplexDescent([layer.theta], 4.0, kl=0.5)
    with pytest.raises(ValueError, match="kl must be a finite number >= 0, got -1"):
        SimplexDescent([layer.theta], 4.0, kl=-1)
    for shape in ((), (3, 1)):
        with pytest.raises(ValueError, match="must have a last axis of at least two log-prob"):
            SimplexDescent([torch.zeros(shape, requires_grad=True)], 0.1)
    with pytest.raises(ValueError, match="holds latent weights of a Bernoulli layer"):
        SimplexDescent([BernoulliLinear(3, 2).eta], 0.1)
    with pytest.raises(TypeError, match="must be of float32 or float64.*keep theta in float32"):
        SimplexDescent([TernaryLinear(3, 2).half().theta], 0.1)


OTHERS = {
    "MirrorDescent": lambda p: optim.MirrorDescent(p, 0.1),
    "MirrorDescent of a law": lambda p: optim.MirrorDescent(p, 0.1, noise="uniform"),
    "BinaryConnect": lambda p: optim.BinaryConnect(p, 0.1),
    "Bop": optim.Bop,
    "BayesBiNN": optim.BayesBiNN,
    "Proximal": lambda p: optim.Proximal(torch.optim.SGD(p, 0.1), optim.parq, 1.5),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("way", ["as it is", "copied", "converted", "loaded"])
def test_the_other_optimizers_refuse_ternary_weights_by_name(name: str, way: str) -> None:
    layer = TernaryLinear(3, 2)
    if way == "copied":
        layer = copy.deepcopy(layer)
    if way == "converted":
        layer = layer.double()
    if way == "loaded":
        layer.load_state_dict(TernaryLinear(3, 2).state_dict(), assign=True)
    with pytest.raises(ValueError, match="log-probabilities of ternary weights: use SimplexDesc"):
        OTHERS[name]([layer.theta])


def test_split_knows_both_kinds_of_latent_weights() -> None:
    net = nn.Sequential(TernaryLinear(3, 4), nn.BatchNorm1d(4), BernoulliLinear(4, 2, bias=False))
    latent, real = optim.split(net)
    assert [id(p) for p in latent] == [id(net[0].theta), id(net[2].eta)]
    assert [id(p) for p in real] == [id(p) for p in (net[0].bias, *net[1].parameters())]


def test_exact_sums_refuse_ternary_weights_by_name() -> None:
    net = SBN(nn.Linear(2, 2), TernaryLinear(2, 2))
    with pytest.raises(ValueError, match=r"layer 1 \(TernaryLinear\) holds TernaryLinear, whose "):
        exact_gradient(net, torch.rand(1, 2), lambda x: x.sum(-1))


def test_a_second_derivative_is_refused() -> None:
    layer = layer_of(P)
    loss = quadratic_of(layer.weight()[0])
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss, layer.theta, create_graph=True)


def test_a_pruned_theta_is_refused() -> None:
    layer = TernaryLinear(3, 2)
    prune.random_unstructured(layer, "theta", 0.5)
    with pytest.raises(RuntimeError, match="theta must be a parameter of the layer, got one that"):
        layer(torch.ones(1, 3))


# ---------------------------------------------------- ordered thresholds: the zone around 0


def ternary_step(eta: Array, width: float) -> Array:
    """Deterministic thresholds at +-width."""
    return np.where(eta > width, 1.0, np.where(eta < -width, -1.0, 0.0))


def test_thresholds_at_both_sides_of_0_are_an_absolute_value_in_dual_averaging() -> None:
    """w(eta) = argmin <G, w> + delta abs(w) on [-1, 1] with G = -eta, over every step of a run."""
    rng, delta = np.random.default_rng(2), 0.4
    eta, grid = np.zeros(50), np.linspace(-1, 1, 4001)
    for _ in range(400):
        w = ternary_step(eta, delta)
        values = -eta[:, None] * grid + delta * np.abs(grid)
        assert np.array_equal(grid[values.argmin(-1)], w)
        eta -= 0.01 * (2 * (w - 0.3) + rng.normal(size=50))


@pytest.mark.parametrize("half, kink", [(0.5, 0.0), (0.4, 0.1), (0.2, 0.3)])
def test_noise_that_is_too_narrow_leaves_a_kink_in_the_mirror_map(half: float, kink: float) -> None:
    """Thresholds +-1/2, uniform noise of this half-width: the mean is 0 on [-kink, kink].

    Its Phi, the integral of the inverse of m by Legendre's transform, is smooth plus kink abs(m).
    """
    eta = np.linspace(-1.5, 1.5, 300_001)
    up, down = ((eta - t + half) / (2 * half) for t in (0.5, -0.5))
    m = np.clip(up, 0, 1) + np.clip(down, 0, 1) - 1
    zero = eta[m == 0]
    width = zero.max() if len(zero) else 0.0
    assert width == pytest.approx(kink, abs=2e-5)
    primitive = np.concatenate([[0], np.cumsum((m[1:] + m[:-1]) / 2 * np.diff(eta))])
    primitive -= primitive[len(eta) // 2]  # the conjugate of Phi, 0 at eta = 0

    def phi(at: float) -> float:
        return float((at * eta - primitive).max())

    h = 1e-3
    right, left = (phi(h) - phi(0)) / h, (phi(0) - phi(-h)) / h
    smooth = half * h  # the quadratic part, 2 half m^2 / 2, adds half h to the quotient
    assert right == pytest.approx(kink + smooth, abs=1e-4)
    assert left == pytest.approx(-kink - smooth, abs=1e-4)
