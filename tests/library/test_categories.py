"""Categorical units, against sums over one-hot states that are written out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import reference as ref
import torch
from bridge import z_limit
from torch import Tensor

import sbnlib
from sbnlib import Logistic, categories

Array = np.ndarray
ESTIMATORS = {
    "straight_through": categories.straight_through,
    "darn": categories.darn,
    "zgr": categories.zgr,
}
every = pytest.mark.parametrize("name", ESTIMATORS)
counts = pytest.mark.parametrize("count", [2, 3, 4, 5, 6])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(n: int, count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(n, count))


def softmax(a: Array) -> Array:
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def jacobian(p: Array) -> Array:
    return np.diag(p) - np.outer(p, p)


def matrix(name: str, a: Tensor, x: Tensor) -> Array:
    """The matrix of one unit, a row for each entry of a: what each incoming unit vector becomes."""
    rows = []
    for g in torch.eye(a.shape[-1], dtype=a.dtype):
        leaf = a.clone().requires_grad_()
        out = ESTIMATORS[name](leaf, x)
        assert torch.equal(out, x), "the value is the state, bit for bit"
        (row,) = torch.autograd.grad(out, leaf, g)
        rows.append(row.double().numpy())
    return np.array(rows).T


# -------------------------------------------------------------------------------- matrices


@counts
@every
def test_each_matrix_is_its_formula(name: str, count: int) -> None:
    a = logits(1, count)[0]
    p = softmax(a)
    for k in range(count):
        x = np.eye(count)[k]
        outer = np.outer(x - p, x - p)
        expected = {
            "straight_through": jacobian(p),
            "darn": outer,
            "zgr": (jacobian(p) + outer) / 2,
        }[name]
        got = matrix(name, torch.tensor(a), torch.tensor(x))
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)


@counts
def test_zgr_is_reinmax_by_its_own_definition(count: int) -> None:
    """2 J((p + x)/2) - J(p)/2 (Liu et al. 2023) is the mean of straight-through and DARN."""
    assert categories.reinmax is categories.zgr
    a = logits(1, count, 3)[0]
    p = softmax(a)
    for k in range(count):
        x = np.eye(count)[k]
        reinmax = 2 * jacobian((p + x) / 2) - jacobian(p) / 2
        got = matrix("zgr", torch.tensor(a), torch.tensor(x))
        np.testing.assert_allclose(got, reinmax, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [-60.0, -30.0, -8.0, 0.3, 8.0, 30.0, 60.0])
def test_for_two_categories_it_is_the_binary_estimator_of_the_difference(
    gap: float, dtype: torch.dtype
) -> None:
    """In both tails: a loss with slope g in the second entry has g/2 in x = 2 x_2 - 1."""
    binary = {
        "straight_through": sbnlib.straight_through,
        "darn": sbnlib.darn,
        "zgr": sbnlib.zgr,
    }
    for name, k in product(binary, range(2)):
        a = torch.tensor([1.0, 1.0 + gap], dtype=dtype, requires_grad=True)
        out = ESTIMATORS[name](a, torch.eye(2, dtype=dtype)[k])
        (got,) = torch.autograd.grad(out[1], a)
        d = torch.tensor([gap], dtype=dtype, requires_grad=True)
        x = torch.tensor([2.0 * k - 1], dtype=dtype)
        (c,) = torch.autograd.grad(binary[name](d, x, Logistic()).sum(), d)
        tolerance = 10 * torch.finfo(dtype).eps * (1 + abs(gap))  # one rounding of the difference
        torch.testing.assert_close(got, torch.stack([-c[0], c[0]]) / 2, rtol=tolerance, atol=0)


def test_half_precision_is_rounded_once() -> None:
    a = torch.randn(20, 4, generator=seeded()).bfloat16()
    x = categories.sample_category(a, generator=seeded(1))
    g = torch.randn(20, 4, generator=seeded(2)).bfloat16()
    for function in ESTIMATORS.values():
        half, full = a.clone().requires_grad_(), a.double().requires_grad_()
        (c,) = torch.autograd.grad(function(half, x), half, g)
        (d,) = torch.autograd.grad(function(full, x.double()), full, g.double())
        torch.testing.assert_close(c.double(), d, rtol=2**-8, atol=1e-6)


# -------------------------------------------------------------------------------- exactness


def quadratic(n: int, count: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Array], float]]:
    """A quadratic of the one-hot vectors, in torch and in numpy."""
    rng = np.random.default_rng(7)
    m, b = rng.normal(size=(n * count, n * count)), rng.normal(size=n * count)
    m = m + m.T
    m_, b_ = torch.tensor(m), torch.tensor(b)

    def loss(x: Tensor) -> Tensor:
        flat = x.flatten(-2)
        return torch.einsum("...i,ij,...j->...", flat, m_, flat) / 2 + flat @ b_

    return loss, lambda x: float(x @ m @ x / 2 + x @ b)


def expectation(a: Array, loss: Callable[[Array], float]) -> float:
    p, (n, count) = softmax(a), a.shape
    return sum(
        np.prod([p[i, k] for i, k in enumerate(state)]) * loss(np.eye(count)[list(state)].ravel())
        for state in product(range(count), repeat=n)
    )


def mean_estimate(name: str, a: Array, loss: Callable[[Tensor], Tensor]) -> Array:
    p, (n, count) = softmax(a), a.shape
    total = np.zeros_like(a)
    for state in product(range(count), repeat=n):
        leaf = torch.tensor(a, requires_grad=True)
        x = torch.eye(count, dtype=torch.float64)[list(state)]
        (g,) = torch.autograd.grad(loss(ESTIMATORS[name](leaf, x)), leaf)
        total += np.prod([p[i, k] for i, k in enumerate(state)]) * g.numpy()
    return total


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_exact_gradient_is_the_sum_over_all_states(count: int) -> None:
    a = logits(3, count)
    loss, plain = quadratic(3, count)
    value, gradient = categories.exact_gradient(lambda x: loss(x).pow(3), torch.tensor(a))
    cubed = lambda x: plain(x) ** 3  # noqa: E731
    assert value.item() == pytest.approx(expectation(a, cubed), rel=1e-12)
    differences = ref.finite_difference(lambda at: expectation(at, cubed), a.copy())
    scale = np.abs(differences).max()
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8 * scale)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_zgr_is_exact_for_quadratics_and_the_others_are_not(count: int) -> None:
    a = logits(3, count)
    loss, _ = quadratic(3, count)
    _, exact = categories.exact_gradient(loss, torch.tensor(a))
    off = {n: np.abs(mean_estimate(n, a, loss) - exact.numpy()).max() for n in ESTIMATORS}
    assert off["zgr"] < 1e-13
    assert off["straight_through"] > 1e-2 and off["darn"] > 1e-2


@every
def test_all_are_exact_for_losses_that_are_linear_in_each_unit(name: str) -> None:
    a, w = logits(3, 3), torch.tensor(logits(3, 3, 9))
    loss = lambda x: (x * w).sum(-1).prod(-1)  # noqa: E731
    _, exact = categories.exact_gradient(loss, torch.tensor(a))
    np.testing.assert_allclose(mean_estimate(name, a, loss), exact, rtol=1e-12, atol=1e-14)


def test_sums_in_blocks_and_with_axes_in_front_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a = torch.tensor(np.random.default_rng(0).normal(size=(2, 4, 3, 4)))
    loss, _ = quadratic(3, 4)
    whole = categories.exact_gradient(loss, a)
    torch.testing.assert_close(
        tuple(t[1, 2] for t in whole), categories.exact_gradient(loss, a[1, 2])
    )
    monkeypatch.setattr(sbnlib.levels, "BLOCK", 700)
    torch.testing.assert_close(categories.exact_gradient(loss, a), whole)


# -------------------------------------------------------------------------------- sampling


def test_categories_come_as_often_as_they_should() -> None:
    """False-alarm rate 1e-6."""
    a = logits(3, 5)
    x = categories.sample_category(torch.tensor(a).expand(40_000, 3, 5), generator=seeded(1))
    assert bool((x.sum(-1) == 1).all()) and set(x.unique().tolist()) == {0, 1}
    p = softmax(a)
    z = (x.mean(0).numpy() - p) / np.sqrt(p * (1 - p) / 40_000)
    assert np.abs(z).max() < z_limit(z.size)


def test_a_category_is_where_u_falls_among_the_sums() -> None:
    a = torch.tensor(logits(1, 4)[0])
    sums = np.cumsum(softmax(a.numpy()))
    u = torch.tensor([0.0, *(s + d for s in sums[:-1] for d in (-1e-9, 1e-9)), 1 - 1e-9])
    u = u.double()
    x = categories.sample_category(a, u=u)
    assert x.argmax(-1).tolist() == [int((v >= sums[:-1]).sum()) for v in u.tolist()]
    assert x.shape == (8, 4) and x.dtype is a.dtype and not x.requires_grad


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_rare_category_comes_at_any_place(place: int) -> None:
    """Probability 1e-9, in float32: u within its share gives it, and next to it not."""
    a = torch.zeros(3)
    a[place] = math.log(2e-9)
    p = a.double().softmax(-1)
    low = p[:place].sum()
    u = torch.stack([low + 0.01 * p[place], low + 0.99 * p[place]])
    around = torch.stack([low - 0.01 * p[place], low + 1.01 * p[place]]).clamp(0, 1 - 1e-12)
    assert bool((categories.sample_category(a, u=u)[:, place] == 1).all())
    beside = (around < low) | (around >= low + p[place])
    assert bool((categories.sample_category(a, u=around)[beside, place] == 0).all())


def test_what_underflows_never_comes() -> None:
    for place in range(3):
        a = torch.zeros(3)
        a[place] = -2000.0
        u = torch.tensor([0.0, 0.5 - 1e-17, 0.5, 1 - 2.0**-53], dtype=torch.float64)
        assert bool((categories.sample_category(a, u=u)[:, place] == 0).all())


def test_a_generator_decides_everything() -> None:
    a = torch.tensor(logits(200, 4))
    before = torch.get_rng_state()
    x, y, z = (categories.sample_category(a, generator=seeded(s)) for s in (2, 2, 3))
    assert torch.equal(x, y) and not torch.equal(x, z)
    assert torch.equal(before, torch.get_rng_state())


# ------------------------------------------------------------------------- refusals, transforms


def test_bad_input_is_refused() -> None:
    a, loss = torch.zeros(2, 3), lambda x: x.sum((-1, -2))  # noqa: E731
    with pytest.raises(TypeError, match="a must be a floating-point tensor"):
        categories.sample_category(torch.zeros(2, 3, dtype=torch.int64))
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="a must be finite"):
            categories.sample_category(torch.tensor([0.0, bad]))
    for shape in ((), (3, 1)):
        with pytest.raises(ValueError, match="a must have a last axis of C >= 2 categories"):
            categories.sample_category(torch.zeros(shape))
    with pytest.raises(ValueError, match="u must have shape .*one number a unit"):
        categories.sample_category(a, u=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="u must be on"):
        categories.sample_category(a, u=torch.ones(2))
    with pytest.raises(TypeError, match="generator must be"):
        categories.sample_category(a, generator=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a must have shape \\(\\.\\.\\., n, C\\)"):
        categories.exact_gradient(loss, torch.zeros(3))
    with pytest.raises(ValueError, match="at most 2\\^20 states C\\^n .* 13 units of 3 categories"):
        categories.exact_gradient(loss, torch.zeros(13, 3))
    with pytest.raises(ValueError, match="loss must return one value"):
        categories.exact_gradient(lambda x: x.sum(-1), a)
    with pytest.raises(ValueError, match="loss must be finite"):
        categories.exact_gradient(lambda x: loss(x) / 0, a)


@every
def test_states_that_are_not_one_hot_are_refused(name: str) -> None:
    a, function = torch.zeros(2, 3), ESTIMATORS[name]
    for x in (torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 1 / 3), a - 1):
        with pytest.raises(ValueError, match="x must hold one-hot vectors"):
            function(a, x)
    with pytest.raises(ValueError, match="x must have shape"):
        function(a, torch.zeros(3))
    with pytest.raises(TypeError, match="x must hold one-hot vectors of real numbers"):
        function(a, torch.eye(3)[:2].bool())


@every
def test_it_is_not_differentiated_twice(name: str) -> None:
    a = torch.zeros(2, 3, requires_grad=True)
    x = ESTIMATORS[name](a, torch.eye(3)[:2])
    with pytest.raises(RuntimeError, match="create_graph must be False"):
        torch.autograd.grad(x[0, 0], a, create_graph=True)


@every
def test_vmap_is_the_loop_and_infinite_logits_are_decided(name: str) -> None:
    function = ESTIMATORS[name]
    a = torch.tensor(logits(5, 3))
    u = torch.rand(5, generator=seeded(), dtype=torch.float64)
    w = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)

    def total(a: Tensor, u: Tensor) -> Tensor:
        return (function(a, categories.sample_category(a, u=u)) * w).sum()

    mapped = torch.func.vmap(torch.func.grad(total))(a, u)
    leaf = a.clone().requires_grad_()
    (plain,) = torch.autograd.grad(total(leaf, u), leaf)
    torch.testing.assert_close(mapped, plain, rtol=1e-13, atol=1e-16)
    one = torch.func.grad(lambda a, x: (function(a, x) * w).sum())
    far = torch.tensor([[0.0, math.inf, 0.0]], dtype=torch.float64)
    x = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    assert torch.func.vmap(one)(far, x).tolist() == [[0, 0, 0]]


@pytest.mark.slow
def test_compiled_without_a_break_it_gives_the_same() -> None:
    def run(a: Tensor, u: Tensor) -> Tensor:
        return categories.zgr(a, categories.sample_category(a, u=u))

    a, u = torch.randn(9, 4, generator=seeded()), torch.rand(9, generator=seeded())
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    first, second = a.clone().requires_grad_(), a.clone().requires_grad_()
    g = torch.randn(9, 4, generator=seeded(1))
    out, again = run(first, u), compiled(second, u)
    assert torch.equal(out, again)
    out.backward(g)
    again.backward(g)
    torch.testing.assert_close(first.grad, second.grad)
