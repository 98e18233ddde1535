r"""Ground truth: expectations, gradients and moments of estimators by exact sums over states.

The law of layer k's state given the input is a vector of 2^n_k probabilities, and one layer acts on
it as a stochastic matrix T(s, s') = \prod_j F(s'_j a_j(s)). An expectation costs
2^{n_1} + \sum_k 2^{n_k + n_{k+1}} + 2^{n_K} terms an input, not 2^{n_1 + ... + n_K}.

A row of T is a Kronecker product of pairs (F(-a_j), F(a_j)). With the units of the next layer in
two halves, T(s, .) is the outer product of two vectors of 2^{m/2}, so ``pi T`` is one matrix
product and T itself need not stand in memory: 2^n x 2^{m/2} numbers do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from sbnlib.contracts import ChainRule, Loss, evaluate, linear_layers, name_of
from sbnlib.network import SBN
from sbnlib.noise import Noise
from sbnlib.registry import as_chain_rule

__all__ = ["all_states", "exact_expectation", "exact_gradient", "exact_moments"]

#: Widths above this need more memory than a laptop has (2^24 states).
MAX_WIDTH = 24

#: Numbers in one block of states: bounds the memory of the loss and of small transition matrices.
BLOCK = 1 << 22


def all_states(
    n: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """All states of n bits, shape ``(2^n, n)``: row r has +1 where the binary digit of r is 1.

    Unit 0 is the most significant digit.

    Raises:
        ValueError: n < 1 or n > 24.
    """
    if not 1 <= n <= MAX_WIDTH:
        raise ValueError(f"n must be from 1 to {MAX_WIDTH} for a sum over 2^n states, got {n}")
    index = torch.arange(2**n, device=device)
    digits = index[:, None] >> torch.arange(n - 1, -1, -1, device=device) & 1
    return (2 * digits - 1).to(dtype or torch.get_default_dtype())


def exact_expectation(net: SBN, inputs: Tensor, loss: Loss) -> Tensor:
    r""":math:`\mathbb{E} L(x_K)` for each input, by exact summation, differentiable.

    Args:
        net: fully connected network; widths up to 24, in practice the largest pair of neighbours
            decides: :math:`2^{n_k + n_{k+1}}` terms.
        inputs: ``(B, n_0)``, floating point.
        loss: states ``(..., B, n_K)`` to values ``(..., B)``; need not be differentiable.

    Returns:
        ``(B,)``, in the dtype of the network. The gradient with respect to the network's
        parameters, and to the loss's own, is exact too.

    Raises:
        ValueError: a layer is not fully connected, holds batch norm or dropout in training mode, is
            too wide, or the loss or inputs have a wrong shape.

    Source: this is the forward algorithm of hidden Markov models on the states of the layers.
    """
    law, states = _law_of_last_layer(net, _check_inputs(net, inputs))
    batch = inputs.shape[0]
    total = law.new_zeros(batch)
    block = max(1, BLOCK // (batch * states.shape[1]))
    for rows in _blocks(states.shape[0], block):
        values = _loss_at(loss, states[rows], batch)
        total = total + (law[:, rows] * values.T).sum(dim=1)
    return total


def exact_gradient(net: SBN, inputs: Tensor, loss: Loss) -> tuple[Tensor, dict[str, Tensor]]:
    r"""The exact mean loss over the batch and its gradient.

    Args: as :func:`exact_expectation`.

    Returns:
        The scalar :math:`\frac1B\sum_b \mathbb{E} L_b`, and a dict from the names of
        ``net.named_parameters()``, in that order, to gradients of the parameters' shapes;
        parameters that do not require a gradient are left out. The ``.grad`` fields are not
        touched.
    """
    parameters = trainable(net)
    value = exact_expectation(net, inputs, loss).mean()
    grads = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
    return value.detach(), dict(zip(parameters, grads, strict=True))


def exact_moments(
    net: SBN, inputs: Tensor, loss: Loss, estimator: str | ChainRule
) -> dict[str, tuple[Tensor, Tensor]]:
    r"""Exact mean and variance of a chain-rule estimator, elementwise for each parameter.

    One sample is the gradient of the mean loss with one fresh draw an input, so
    :math:`\mathrm{Var} = B^{-2}\sum_b \mathrm{Var}_b`. With :math:`g_k` the estimated derivative in
    :math:`x_k`, the moments :math:`m_k(x) = \mathbb{E}[g_k \mid x_k = x]` and
    :math:`M_k(x) = \mathbb{E}[g_k g_k^\top \mid x_k = x]` obey a backward recursion,

    .. math:: m_{k-1} = W^\top\, \mathbb{E}[c \circ m_k], \qquad
              M_{k-1} = W^\top\, \mathbb{E}[(c c^\top) \circ M_k]\, W,

    which costs :math:`2^{n_{k-1} + n_k} n_k^2` terms, not an enumeration of the paths.

    Args:
        net: layers must be ``nn.Linear``.
        inputs, loss: as :func:`exact_expectation`; the loss must be differentiable.
        estimator: a registry name or a chain-rule function of (a, x) only.

    Returns:
        name -> (mean, variance), both of the parameter's shape.

    Raises:
        ValueError: the estimator draws random numbers of its own; or as ``exact_expectation``.
    """
    chain_rule = as_chain_rule(estimator, state_only=True)
    inputs = _check_inputs(net, inputs)
    layers = _affine_layers(net)
    _check_state_only(chain_rule, net.noise, inputs)
    with torch.no_grad():
        return _Moments(net, layers, inputs, loss, chain_rule).run()


# ---------------------------------------------------------------------------------------------
# The law of a layer's state


def _law_of_last_layer(net: SBN, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """pi_K of shape (B, 2^{n_K}) and the states it weights."""
    a = net.layers[0](inputs)
    law, states = _transition(a, net.noise), _states_like(a)
    for layer in net.layers[1:]:
        law, states = _next_law(law, layer(states), net.noise)
    return law, states


def _next_law(law: Tensor, a: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """From pi over the 2^n states to pi T, with a the next pre-activation at each state."""
    states = _states_like(a)
    # T pays when it is tiny or serves many inputs; else the split form is as fast and smaller.
    few = a.shape[0] * states.shape[0] <= (BLOCK if len(law) >= 8 else BLOCK >> 10)
    if few or a.shape[1] == 1:
        return law @ _transition(a, noise), states
    pairs, half = _pairs(a, noise), a.shape[1] // 2
    high, low = _kronecker(pairs[:half]), _kronecker(pairs[half:])
    # Row by row of the batch: (2^{m/2} x 2^n) @ (2^n x 2^{m/2}).
    return torch.stack([((high * row) @ low.T).flatten() for row in law]), states


def _transition(a: Tensor, noise: Noise) -> Tensor:
    """T, the law of the states of all units given each row of a: (..., m) -> (..., 2^m)."""
    return _kronecker(_pairs(a, noise)).movedim(0, -1)


def _pairs(a: Tensor, noise: Noise) -> tuple[Tensor, ...]:
    """P(x_j = -1), P(x_j = +1) of each unit: (..., m) -> m tensors (2, ...)."""
    a = a.movedim(-1, 0)
    return noise.cdf(torch.stack([-a, a], dim=1)).unbind()


def _kronecker(pairs: Sequence[Tensor]) -> Tensor:
    """The law of all the units: m tensors (2, ...) -> (2^m, ...), in the order of ``all_states``.

    The rows of ``a`` are the last axis, and long, so that every product runs along memory.
    """
    m = len(pairs)
    if m == 1:
        return pairs[0]
    first, rest = _kronecker(pairs[: m // 2]), _kronecker(pairs[m // 2 :])
    return (first[:, None] * rest).flatten(0, 1)


def _states_like(a: Tensor) -> Tensor:
    return all_states(a.shape[-1], dtype=a.dtype, device=a.device)


def _blocks(rows: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, rows)) for i in range(0, rows, size))


def _loss_at(loss: Loss, states: Tensor, batch: int) -> Tensor:
    """The loss of each state for each input of the batch: (S, n) -> (S, B)."""
    x = states[:, None, :].expand(-1, batch, -1)
    return evaluate(loss, x)


# ---------------------------------------------------------------------------------------------
# Moments of an estimator


class _Moments:
    """The backward recursion of first and second moments, one layer at a time."""

    def __init__(
        self,
        net: SBN,
        layers: list[torch.nn.Linear],
        inputs: Tensor,
        loss: Loss,
        chain_rule: ChainRule,
    ) -> None:
        self.net, self.layers, self.inputs, self.chain_rule = net, layers, inputs, chain_rule
        self.laws, self.states = self._forward()
        self.first = self._slopes(loss)  # m_K: (B, 2^{n_K}, n_K)
        self.second = self.first[..., :, None] * self.first[..., None, :]

    def _forward(self) -> tuple[list[Tensor], list[Tensor]]:
        """The law (B, 2^{n_k}) and the states of every layer."""
        a = self.layers[0](self.inputs)
        laws, states = [_transition(a, self.net.noise)], [_states_like(a)]
        for layer in self.layers[1:]:
            law, state = _next_law(laws[-1], layer(states[-1]), self.net.noise)
            laws.append(law)
            states.append(state)
        return laws, states

    def _slopes(self, loss: Loss) -> Tensor:
        """dL/dx at every state of the last layer."""
        states, batch = self.states[-1], self.inputs.shape[0]
        with torch.enable_grad():
            x = states[:, None, :].repeat(1, batch, 1).requires_grad_()
            values = evaluate(loss, x)
            if not values.requires_grad:
                raise ValueError("loss must be differentiable in the states for exact moments")
            (slopes,) = torch.autograd.grad(values.sum(), x)
        return slopes.transpose(0, 1)

    def run(self) -> dict[str, tuple[Tensor, Tensor]]:
        out: dict[str, tuple[Tensor, Tensor]] = {}
        for k in reversed(range(len(self.layers))):
            out |= self._layer(k)
        return {name: out[name] for name in trainable(self.net)}

    def _layer(self, k: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Moments of the gradients of layer k; leaves m, M of the layer below in place."""
        layer = self.layers[k]
        if k == 0:  # the one "state" below is the input itself, one for each b
            below, law = self.inputs[:, None, :], self.inputs.new_ones(len(self.inputs), 1)
        else:
            below, law = self.states[k - 1].expand(len(self.inputs), -1, -1), self.laws[k - 1]
        d1, d2 = self._at_pre_activations(layer(below[0] if k else below), k)
        moments = self._of_parameters(k, law, below, d1, d2)
        self.first = d1 @ layer.weight
        self.second = layer.weight.T @ d2 @ layer.weight
        return moments

    def _at_pre_activations(self, a: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """E[c m | s] (B, S, n) and E[c c^T M | s] (B, S, n, n); a is (S, n), or (B, 1, n) at k=0.

        c_i depends on s and on x_i only, so it leaves the sum over the states x with x_i = +-1:
        one pass over T for each pair of signs.
        """
        plus = (self.states[k] > 0).to(a.dtype)
        masks = torch.stack([1 - plus, plus])  # [sign, state, unit]
        c = self._factors(a)  # [sign, *a.shape]
        t = _transition(a, self.net.noise)  # (S, 2^n) or (B, 1, 2^n)
        d1 = d2 = a.new_zeros(())
        n = a.shape[-1]
        for v in (0, 1):
            d1 = d1 + c[v] * (t @ (masks[v] * self.first))
            for w in (0, 1):
                both = masks[v][:, :, None] * masks[w][:, None, :] * self.second
                cc = c[v][..., :, None] * c[w][..., None, :]
                d2 = d2 + cc * (t @ both.flatten(-2)).unflatten(-1, (n, n))
        return d1, d2

    def _factors(self, a: Tensor) -> Tensor:
        """c(a, -1) and c(a, +1), read off the estimator by differentiating it."""
        return torch.stack([_factor(self.chain_rule, a, v, self.net.noise) for v in (-1.0, 1.0)])

    def _of_parameters(
        self, k: int, law: Tensor, below: Tensor, d1: Tensor, d2: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean over inputs, Var = B^-2 sum_b Var_b, for the weight d x^T and the bias d."""
        squares = d2.diagonal(dim1=-2, dim2=-1)
        weighted, weighted2 = law[..., None] * d1, law[..., None] * squares
        out = {}
        weight1 = weighted.transpose(1, 2) @ below
        weight2 = weighted2.transpose(1, 2) @ below.square()
        out[f"layers.{k}.weight"] = _pool(weight1, weight2)
        if self.layers[k].bias is not None:
            out[f"layers.{k}.bias"] = _pool(weighted.sum(dim=1), weighted2.sum(dim=1))
        return out


def _pool(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Moments for each input (B, ...) to mean and variance of the batch mean."""
    variance = (second - first.square()).clamp_min(0)  # rounding only; it cannot be negative
    return first.mean(dim=0), variance.sum(dim=0) / first.shape[0] ** 2


def _factor(chain_rule: ChainRule, a: Tensor, sign: float, noise: Noise) -> Tensor:
    with torch.enable_grad():
        leaf = a.detach().clone().requires_grad_()
        out = chain_rule(leaf, torch.full_like(a, sign), noise)
        return torch.autograd.grad(out.sum(), leaf)[0]


# ---------------------------------------------------------------------------------------------
# Checks


def _check_inputs(net: SBN, inputs: Tensor) -> Tensor:
    if not isinstance(net, SBN):
        raise TypeError(f"net must be an SBN, got {type(net).__name__}")
    _check_rowwise(net)
    if not isinstance(inputs, Tensor) or inputs.dim() != 2 or not len(inputs):
        shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"inputs must have shape (B, n_0) with B >= 1, got {shape}")
    if not inputs.is_floating_point():
        raise TypeError(f"inputs must be a floating-point tensor, got {inputs.dtype}")
    below = inputs.shape[1]
    for k, layer in enumerate(net.layers):
        linear = [m for m in layer.modules() if _is_linear(m)]
        if linear[0].in_features != below:
            what = "inputs" if k == 0 else f"layer {k - 1}"
            raise ValueError(f"layer {k} takes {linear[0].in_features} numbers, {what} has {below}")
        below = linear[-1].out_features
        if below > MAX_WIDTH:
            raise ValueError(f"layer {k} has {below} units; exact sums take at most {MAX_WIDTH}")
    return inputs


class _Linear(Protocol):
    """A fully connected layer: ``nn.Linear``, or another with its two numbers."""

    in_features: int
    out_features: int


def _is_linear(module: object) -> TypeGuard[_Linear]:
    return hasattr(module, "in_features")


def trainable(net: SBN) -> dict[str, torch.nn.Parameter]:
    """The named parameters that require a gradient, in the network's order."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def _check_rowwise(net: SBN) -> None:
    """Exact sums evaluate a layer at all states at once: a row must not depend on the others."""
    for k, layer in enumerate(net.layers):
        if not any(_is_linear(m) for m in layer.modules()):
            raise ValueError(
                f"exact sums need fully connected layers, layer {k} is {type(layer).__name__}"
            )
        for m in layer.modules():
            if hasattr(m, "eta"):
                raise ValueError(
                    f"layer {k} holds {type(m).__name__}, whose weights are random; exact sums are "
                    "over the states of units only"
                )
            unstable = isinstance(m, torch.nn.modules.batchnorm._BatchNorm | torch.nn.Dropout)
            if unstable and m.training:
                raise ValueError(
                    f"layer {k} holds {type(m).__name__} in training mode; call net.eval() first"
                )


def _affine_layers(net: SBN) -> list[torch.nn.Linear]:
    layers = linear_layers(net, "exact_moments")
    if len({id(layer.weight) for layer in layers}) < len(layers):
        raise ValueError("exact_moments needs layers with weights of their own, two share theirs")
    return layers


def _check_state_only(chain_rule: ChainRule, noise: Noise, inputs: Tensor) -> None:
    """An estimator that draws noise of its own gives another factor each time it is called."""
    p = torch.linspace(0.05, 0.95, 64, dtype=inputs.dtype, device=inputs.device)
    a, name = noise.icdf(p), name_of(chain_rule)
    with torch.random.fork_rng([a.device] if a.is_cuda else []):
        try:
            first, second = (_factor(chain_rule, a, 1.0, noise) for _ in range(2))
        except (TypeError, AttributeError) as error:
            raise ValueError(f"estimator must be a chain-rule function, got {name}") from error
    if not torch.equal(first, second):
        raise ValueError(
            f"estimator must be a function of (a, x) only; {name} draws random numbers, so its "
            "moments are not a sum over states"
        )
