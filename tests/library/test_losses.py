"""The cross-entropy of a head, in the form that estimators and exact sums ask for."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sbnlib import SBN, classification_loss, exact_gradient, measure, network_estimator
from sbnlib.registry import ESTIMATORS

TARGETS = torch.tensor([2, 0, 1, 1])


def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 3, dtype=torch.float64)


def by_hand(layer: nn.Linear, x: Tensor) -> np.ndarray:
    """-log of the softmax at the target, in numpy, row by row."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    out = np.empty(tuple(x.shape[:-1]))
    for at in itertools.product(*map(range, out.shape)):
        scores = weight @ x[at].numpy() + bias
        out[at] = np.log(np.exp(scores).sum()) - scores[TARGETS[at[-1]]]
    return out


@pytest.mark.parametrize("front", [(), (5,), (2, 3), (4,)])
def test_one_value_an_input_whatever_stands_in_front(front: tuple[int, ...]) -> None:
    # (4,) in front of 4 inputs: a mix-up of the two axes has the right shape
    x = torch.rand(*front, 4, 3, dtype=torch.float64).round() * 2 - 1
    layer = head()
    values = classification_loss(layer, TARGETS)(x)
    assert values.shape == (*front, 4)
    assert np.allclose(values.detach().numpy(), by_hand(layer, x), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_any_integers_will_do(dtype: torch.dtype) -> None:
    x, layer = torch.ones(4, 3, dtype=torch.float64), head()
    values = classification_loss(layer, TARGETS.to(dtype))(x)
    assert np.allclose(values.detach().numpy(), by_hand(layer, x), rtol=1e-12)


def test_states_and_head_get_their_gradients() -> None:
    layer, x = head(), (torch.rand(4, 3, dtype=torch.float64) * 2 - 1).requires_grad_()
    loss = classification_loss(layer, TARGETS)
    assert torch.autograd.gradcheck(lambda x, w: loss(x), (x, layer.weight))
    loss(x).sum().backward()
    shares = torch.softmax(layer(x.detach()), -1) - torch.eye(3)[TARGETS]
    assert torch.allclose(layer.weight.grad, shares.T @ x.detach())


def test_it_serves_exact_sums_measurements_and_every_estimator() -> None:
    torch.manual_seed(1)
    net, inputs = SBN(nn.Linear(2, 3).double()), torch.rand(4, 2).double()
    loss = classification_loss(head(), TARGETS)
    value, _ = exact_gradient(net, inputs, loss)
    states = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=torch.float64)
    a = net.layers[0](inputs).detach()
    law = torch.sigmoid(states[:, None] * a).prod(-1)  # (8, B)
    expected = (law * torch.tensor(by_hand(head(), states[:, None].expand(-1, 4, -1)))).sum(0)
    assert torch.allclose(value, expected.mean(), rtol=1e-12)
    assert measure(net, inputs, loss, "straight_through", 2)["all"].num_samples == 2
    for name in ESTIMATORS:
        assert network_estimator(name)(net, inputs, loss).shape == (4,)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (TARGETS.float(), "targets must be a tensor of integers, got torch.float32"),
        (TARGETS > 0, "targets must be a tensor of integers, got torch.bool"),
        ([2, 0, 1, 1], "targets must be a tensor of integers, got list"),
        (TARGETS[:, None], r"targets must have shape \(B,\), one class an input, got \(4, 1\)"),
    ],
)
def test_wrong_targets_are_named_before_any_work(targets: object, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        classification_loss(head(), targets)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (torch.tensor([0, 1, 3, 0]), "targets must be classes from 0 to 2, .* got 3"),
        (torch.tensor([0, -1, 2, 0]), "targets must be classes from 0 to 2, .* got -1"),
        (TARGETS[:3], r"states must have shape .* B = 3, .* got \(4, 3\)"),
    ],
)
def test_targets_and_scores_must_fit(targets: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        classification_loss(head(), targets)(torch.ones(4, 3, dtype=torch.float64))


def test_a_head_that_loses_rows_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"head must return scores .* N = 8 here.* got shape \(24,"
    ):
        classification_loss(nn.Flatten(0), TARGETS)(torch.ones(2, 4, 3))


def test_batch_norm_in_the_head_takes_features_for_channels() -> None:
    # Three features for three inputs: the axis of the batch would pass for that of the channels
    layer, norm, y = head(), nn.BatchNorm1d(3).double().eval(), TARGETS[:3]
    norm.running_mean.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    norm.running_var.copy_(torch.tensor([0.1, 1.0, 4.0]))
    x = torch.rand(5, 3, 3, dtype=torch.float64).round() * 2 - 1
    loss = classification_loss(nn.Sequential(norm, layer), y)
    for values, row in zip(loss(x), x, strict=True):
        torch.testing.assert_close(values, loss(row))


def test_a_naive_cross_entropy_is_pointed_here() -> None:
    net, layer = SBN(nn.Linear(2, 3)), head().float()
    with pytest.raises(ValueError, match="sbnlib.classification_loss"):
        exact_gradient(
            net, torch.rand(4, 2), lambda x: nn.functional.cross_entropy(layer(x[0]), TARGETS)
        )
    with pytest.raises(ValueError, match="batch_size") as torchs_own:
        exact_gradient(
            net, torch.rand(4, 2), lambda x: nn.functional.cross_entropy(layer(x), TARGETS)
        )
    assert "sbnlib.classification_loss" in "".join(torchs_own.value.__notes__)


def test_a_loss_goes_to_another_process_and_back() -> None:
    """As a pickle: with its head and its targets, and with the same value and gradient."""
    layer, x = head(), torch.tensor([[1.0, -1, 1]], dtype=torch.float64).expand(4, 3)
    again = pickle.loads(pickle.dumps(classification_loss(layer, TARGETS)))
    assert torch.equal(again(x), classification_loss(layer, TARGETS)(x))
    with pytest.raises(ValueError, match=r"B = 4"):
        again(x[:3])


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (lambda x: (x, 1), "tuple"),
        (lambda x: None, "NoneType"),
        (lambda x: x[:, 0], r"\(4,\)"),
        (lambda x: x[:-1], r"\(3, 3\)"),
        (lambda x: x[:, :, None], r"\(4, 3, 1\)"),
        (lambda x: x.long(), "floating-point scores, got torch.int64"),
    ],
)
def test_a_head_that_gives_no_scores_is_named(wrong: Callable, got: str) -> None:
    with pytest.raises(ValueError, match=f"head must return .*{got}"):
        classification_loss(wrong, TARGETS)(torch.ones(4, 3))


@pytest.mark.parametrize(
    ("x", "got"),
    [(torch.ones(4), r"\(4,\)"), (torch.tensor(1.0), r"\(\)"), (np.ones((4, 3)), "ndarray")],
)
def test_states_that_are_none_are_named(x: object, got: str) -> None:
    with pytest.raises(ValueError, match=rf"states must have shape \(..., B, n\) .* got {got}"):
        classification_loss(head(), TARGETS)(x)


def test_a_batch_of_no_inputs_has_no_values() -> None:
    loss = classification_loss(head(), TARGETS[:0])
    assert loss(torch.ones(5, 0, 3, dtype=torch.float64)).shape == (5, 0)
