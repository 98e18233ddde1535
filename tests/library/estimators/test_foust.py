"""The split uniform: what it draws, where it is exact, and by how much it is not."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise, z_limit
from rows import exact_one_layer, panels, seeded, z_scores

from sbnlib import Logistic, Uniform, foust, network_estimator, sample_sign

noises = pytest.mark.parametrize("noise_name", ref.NOISES)


def mean_of_one_unit(noise_name: str, a: float, loss: ref.RefLoss) -> float:
    """The mean over the state and v: the library's function at the nodes of a Gauss rule."""
    noise = ref.RefNoise(noise_name, 1.3)
    v, w = panels([0.0, 0.5, 1.0])
    total = 0.0
    for p, u in ((noise.cdf(a), noise.cdf(a) / 2), (noise.cdf(-a), 1 - noise.cdf(-a) / 2)):
        leaf = torch.full((len(v), 1), a, dtype=torch.float64, requires_grad=True)
        both = torch.stack([torch.full_like(leaf, float(u)), torch.tensor(v)[:, None]])
        y = foust(leaf, make_noise(noise_name, 1.3), u=both)
        (g,) = torch.autograd.grad(loss.torch(y).sum(), leaf)
        total += float(p) * float(w @ g[:, 0].numpy())
    return total


@noises
def test_exact_for_every_smooth_loss_of_one_unit(noise_name: str) -> None:
    noise, loss = ref.RefNoise(noise_name, 1.3), ref.smooth_loss(1, 2)
    for a in (-0.9, 0.35):
        exact = exact_one_layer(lambda x: loss.value(x, 0), noise, np.array([a]))[0]
        assert mean_of_one_unit(noise_name, a, loss) == pytest.approx(exact, rel=1e-8)


def test_half_the_gradient_of_a_product_of_two_units() -> None:
    # and a quarter of that of three: every other unit is shrunk by 1/2 on average; z-tests, 1e-6
    a = torch.tensor([0.7, -0.4, 0.9]).double()
    mu = torch.tanh(a / 2)
    for n in (2, 3):
        leaf = a[:n].expand(200_000, n).clone().requires_grad_()
        y = foust(leaf, Logistic(), generator=seeded(n))
        (g,) = torch.autograd.grad(y.prod(-1).sum(), leaf)
        others = torch.stack([mu[[j for j in range(n) if j != i]].prod() for i in range(n)])
        expected = others * (1 - mu[:n] ** 2) / 2 * 0.5 ** (n - 1)  # 2f = (1 - mu^2)/2
        assert z_scores(g.numpy(), expected.numpy()).max() < z_limit(n)


def test_the_value_is_the_state_times_a_uniform() -> None:
    a = torch.tensor([0.5, -1.0]).double().expand(40_000, 2)
    y = foust(a, "logistic", generator=seeded(1))
    x = sample_sign(a, Logistic(), generator=seeded(1))
    assert torch.equal(y.sign(), x)  # the state is drawn first
    assert z_scores(y.abs().numpy(), np.array([0.5, 0.5])).max() < z_limit(2)


def test_every_dtype_is_kept_and_beyond_the_support_there_is_no_gradient() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        a = torch.tensor([0.5, -1.0], dtype=dtype, requires_grad=True)
        y = foust(a, "gaussian", generator=seeded())
        assert y.dtype == dtype
        y.sum().backward()
        assert a.grad.dtype == dtype and a.grad.isfinite().all()
    a = torch.tensor([2.0, -2.0]).double().requires_grad_()
    foust(a, Uniform(), generator=seeded()).sum().backward()
    assert torch.equal(a.grad, torch.zeros(2).double())


@pytest.mark.parametrize(
    "u, error",
    [
        (torch.rand(2, 4), "u must have shape"),
        (torch.rand(3), "first axis of 2"),
        (torch.rand(3, 3), "first axis of 2"),
        (torch.rand(2), "first axis of 2"),
        (torch.ones(2, 3), r"on \[0, 1\)"),
    ],
)
def test_wrong_uniforms_are_refused(u: torch.Tensor, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        foust(torch.zeros(2 if u.shape == (2,) else 3), "logistic", u=u)


def test_it_stands_in_place_of_every_unit_of_a_network() -> None:
    from sbnlib import SBN

    net = SBN(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)).double()
    values = network_estimator("foust")(
        net, torch.ones(5, 2).double(), lambda x: x.prod(-1), generator=seeded()
    )
    assert values.shape == (5,) and values.abs().max() < 1
    values.sum().backward()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())
