"""The fused sampler under torch.func and torch.compile, and under both at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

import sbnlib
from sbnlib import SBN, Logistic, kernels
from sbnlib.kernels import sampler
from sbnlib.nn import Sign

ZEROS = torch.zeros(2, 64)
UNIT, UNIT_ZGR = Sign(sampler="fused"), Sign(estimator="zgr", sampler="fused")


def seeded(a: torch.Tensor) -> torch.Tensor:
    return kernels.sample(a, "logistic", seed=3)


DRAWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sample": seeded,
    "packed": lambda a: kernels.sample(a, "logistic", seed=3, out="packed"),
    "straight_through": lambda a: kernels.straight_through(a, "logistic", seed=3),
    "Sign": UNIT,
    "Sign, zgr": UNIT_ZGR,
}
draws = pytest.mark.parametrize("name", DRAWS)
backends = pytest.mark.parametrize("backend", ["aot_eager", "inductor"])


def compiled(function: Callable, backend: str) -> Callable:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


# ------------------------------------------------------------------------------------ vmap


@draws
def test_rows_of_a_vmap_differ(name: str) -> None:
    draw = DRAWS[name]
    batched = vmap(draw, randomness="different")(ZEROS)
    closed_over = vmap(lambda _: draw(ZEROS[0]), randomness="different")(torch.arange(2))
    nested = vmap(vmap(draw, randomness="different"), randomness="different")(
        ZEROS.expand(2, 2, 64)
    )
    for x in (batched, closed_over, nested[0], nested[:, 0]):
        assert bool((x[0] != x[1]).any())


def test_rows_of_a_vmap_are_one_draw() -> None:
    a = torch.linspace(-1, 1, 60).view(3, 20)
    assert torch.equal(vmap(seeded, randomness="different")(a), seeded(a))
    assert torch.equal(vmap(seeded, in_dims=1, randomness="different")(a), seeded(a.T.contiguous()))


@draws
def test_a_vmap_that_did_not_say_that_rows_may_differ_is_refused(name: str) -> None:
    draw = DRAWS[name]
    with pytest.raises(
        RuntimeError,
        match="randomness must be 'different' in a vmap, got 'same'"
        "|randomness must be 'different' in a vmap over",
    ):
        vmap(draw, randomness="same")(ZEROS)
    for call in (lambda: vmap(draw)(ZEROS), lambda: vmap(lambda _: draw(ZEROS[0]))(ZEROS)):
        with pytest.raises(RuntimeError, match="randomness"):
            call()


def test_a_seed_for_each_row_is_refused() -> None:
    with pytest.raises(ValueError, match="seed must be one for all rows of a vmap"):
        vmap(lambda s: kernels.sample(ZEROS[0], "logistic", seed=s), randomness="different")(
            torch.arange(2)
        )


def test_a_tensor_to_be_filled_is_refused_under_torch_func() -> None:
    out = torch.zeros(64)
    with pytest.raises(ValueError, match="out must not be a tensor under torch.func"):
        vmap(lambda a: kernels.sample(a, "logistic", seed=1, out=out), randomness="different")(
            ZEROS
        )


# ------------------------------------------------------------------------ vmap(grad), compile


def loss(draw: Callable, w: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    x = draw(w * inputs)
    return (x * torch.arange(1.0, 6)).sum() + x[0] * x[1]


W, INPUTS = torch.linspace(-1, 1, 5), torch.linspace(-2, 2, 35).view(7, 5)


def per_sample(draw: Callable) -> Callable:
    return vmap(grad(lambda w, v: loss(draw, w, v)), in_dims=(None, 0), randomness="different")


def test_per_sample_gradients_are_those_of_a_loop() -> None:
    # One draw of all rows, then each row's own gradient by the plain road
    def straight(a: torch.Tensor) -> torch.Tensor:
        return kernels.straight_through(a, "logistic", seed=3)

    found = per_sample(straight)(W, INPUTS)
    x = kernels.sample(W * INPUTS, "logistic", seed=3)
    for row, states, inputs in zip(found, x, INPUTS, strict=True):
        w = W.clone().requires_grad_()
        attached = sbnlib.straight_through(w * inputs, states, "logistic")
        (expected,) = torch.autograd.grad(loss(lambda _, y=attached: y, w, inputs), w)
        assert torch.allclose(row, expected)


@pytest.mark.slow
@backends
@pytest.mark.parametrize("name", ["straight_through", "Sign", "Sign, zgr"])
def test_per_sample_gradients_compile_whole(name: str, backend: str) -> None:
    eager = per_sample(DRAWS[name])
    fast = compiled(eager, backend)
    found = fast(W, INPUTS)
    assert found.shape == (7, 5)
    if name == "straight_through":
        assert torch.allclose(found, eager(W, INPUTS))
    else:  # other states each time, so the law: 2f is even, the factor of zgr is not
        slope = 2 * sbnlib.Logistic().pdf(W * INPUTS) * INPUTS
        ratio = (found / slope)[:, 2:][slope[:, 2:].abs() > 0]
        assert bool(torch.isfinite(ratio).all()) and bool((ratio > 0).all())


@pytest.mark.slow
@backends
def test_compiled_states_and_gradients_are_those_of_eager_code(backend: str) -> None:
    def run(a: torch.Tensor, seed: int, offset: int) -> torch.Tensor:
        return kernels.straight_through(a, "gaussian", seed=seed, offset=offset)

    fast, a, weights = compiled(run, backend), torch.linspace(-3, 3, 33), torch.arange(33)
    for seed, offset in ((1, 0), (2, 4), (2**40, 2**34)):
        results = []
        for function in (run, fast):
            leaf = a.clone().requires_grad_()
            x = function(leaf, seed, offset)
            results.append((x.detach(), *torch.autograd.grad((x * weights).sum(), leaf)))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])


@pytest.mark.slow
def test_compiled_code_has_nothing_but_the_two_operations() -> None:
    # Forward reads a and writes x; backward reads both and writes one. The brackets of the
    # differentiable form on top would have made the forward read and write once more.
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> Callable:
        graphs.append(graph)
        return graph.forward

    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    backend = aot_autograd(
        fw_compiler=lambda g, e: make_boxed_func(keep(g, e)),
        bw_compiler=lambda g, e: make_boxed_func(keep(g, e)),
    )
    torch._dynamo.reset()
    fast = torch.compile(lambda a, s: kernels.straight_through(a, "logistic", seed=s),
                         fullgraph=True, backend=backend)  # fmt: skip
    a = torch.zeros(8, requires_grad=True)
    fast(a, torch.tensor(3)).sum().backward()
    called = [[n.target for n in g.graph.nodes if n.op == "call_function"] for g in graphs]
    assert called == [[torch.ops.sbnlib.draw.default], [torch.ops.sbnlib.slope.default]]


@pytest.mark.slow
def test_a_network_compiles_once_and_draws_anew() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    net = SBN(torch.nn.Linear(4, 6), torch.nn.Linear(6, 30), sampler="fused")
    fast = torch.compile(net, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one, two = (fast(torch.zeros(5, 4)) for _ in range(2))
    assert bool((one.abs() == 1).all()) and not torch.equal(one, two)
    one.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not [w for w in caught if "sbnlib" in str(w.message) or "sbnlib" in w.filename]


# ------------------------------------------------------------------------------- the two ops


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.uint8], ids=str)
def test_the_operations_are_what_torch_asks_of_one(dtype: torch.dtype) -> None:
    a, law = torch.linspace(-1, 1, 20).view(4, 5), ("logistic", 1.0)
    torch.library.opcheck(sampler.draw, (a, torch.tensor(3), 0, *law, 64, "reference", dtype))
    torch.library.opcheck(sampler.slope, (a, a.clone(), *law, "reference"))


def test_a_seed_of_each_row_is_refused_within_a_gradient_too() -> None:
    def f(row: Tensor, seed: Tensor) -> Tensor:
        return kernels.straight_through(row, Logistic(), seed=seed).sum()

    with pytest.raises(ValueError, match="one for all rows of a vmap"):
        vmap(grad(f), randomness="different")(torch.zeros(2, 8), torch.tensor([1, 2]))


def test_no_rows_are_no_states() -> None:
    unit = Sign(sampler="fused")
    assert vmap(unit, randomness="different")(torch.zeros(0, 3)).shape == (0, 3)
