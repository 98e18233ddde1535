r"""Ground truth: expectations, gradients and moments of estimators by exact sums over states.

The law of layer k's state given the input is a vector of 2^n_k probabilities, and one layer acts on
it as a stochastic matrix T(s, s') = \prod_j F(s'_j a_j(s)). An expectation costs
2^{n_1} + \sum_k 2^{n_k + n_{k+1}} + 2^{n_K} terms an input, not 2^{n_1 + ... + n_K}.

A row of T is a Kronecker product of pairs (F(-a_j), F(a_j)). With the units of the next layer in
two halves, T(s, .) is the outer product of two vectors of 2^{m/2}, so ``pi T`` is one matrix
product and T itself need not stand in memory: 2^n x 2^{m/2} numbers do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor

from sbnlib.contracts import (
    ChainRule,
    Loss,
    check_pre_activations,
    evaluate,
    is_finite,
    linear_layers,
    looking_is_free,
    name_of,
)
from sbnlib.guards import (
    MAX_WIDTH,
    OTHER_NUMBERS,
    Watch,
    check_finite,
    check_layers,
    check_loss,
    check_memory,
    every_other,
    same,
    signs,
    uniforms,
)
from sbnlib.inference import forward_of
from sbnlib.network import SBN
from sbnlib.nn import Sign
from sbnlib.noise import Noise
from sbnlib.registry import as_chain_rule

__all__ = ["all_states", "exact_expectation", "exact_gradient", "exact_moments"]

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
    if n > 12:  # two small tables side by side: the digits as integers may exceed the result
        high, low = (all_states(m, dtype=dtype, device=device) for m in (n // 2, n - n // 2))
        shape = len(high), len(low), -1
        return torch.cat([high[:, None].expand(shape), low.expand(shape)], dim=2).flatten(0, 1)
    index = torch.arange(2**n, device=device)
    digits = index[:, None] >> torch.arange(n - 1, -1, -1, device=device) & 1
    return (2 * digits - 1).to(dtype or torch.get_default_dtype())


def exact_expectation(net: SBN, inputs: Tensor, loss: Loss) -> Tensor:
    r""":math:`\mathbb{E} L(x_K)` for each input, by exact summation, differentiable.

    Args:
        net: layers map rows (R, n) to rows (R, m), each row by itself, such as ``nn.Linear``; up to
            24 units a layer, in practice the largest pair of neighbours decides:
            :math:`2^{n_k + n_{k+1}}` terms.
        inputs: ``(B, n_0)``, floating point.
        loss: states ``(..., B, n_K)`` to values ``(..., B)``; need not be differentiable.

    Returns:
        ``(B,)``, in the dtype of the network. The gradient with respect to the network's
        parameters, and to the loss's own, is exact too.

    Raises:
        TypeError: ``net`` is not an SBN, or ``inputs`` is not a floating-point tensor.
        ValueError: ``inputs`` has another shape or is not finite; a layer does not map rows to
            rows, has random weights, NaN or more than 24 units, or a row of it depends on chance,
            on the other rows or on its place; the loss has another shape, couples rows, depends on
            chance, changes x or is not finite; autocast is on; more memory is needed than is free.

    Before the sum is begun, each layer and the loss are tried on some 64 rows. What this changes in
    buffers and in torch's random numbers is put back.

    Source: this is the forward algorithm of hidden Markov models on the states of the layers.
    """
    outputs, batch = _check_net(net, inputs), len(inputs)
    _check_memory(_numbers_of_sum, outputs, batch)
    check_loss(loss, batch, outputs[-1])
    with Watch(inputs.device) as watch:
        total = _sum_over_states(net, inputs, loss)
    watch.check_chance()
    if looking_is_free(total):
        check_finite(total)
    return total


def exact_gradient(net: SBN, inputs: Tensor, loss: Loss) -> tuple[Tensor, dict[str, Tensor]]:
    r"""The exact mean loss over the batch and its gradient.

    Args: as :func:`exact_expectation`.

    Returns:
        The scalar :math:`\frac1B\sum_b \mathbb{E} L_b`, and a dict from the names of
        ``net.named_parameters()``, in that order, to gradients of the parameters' shapes;
        parameters that do not require a gradient are left out. A parameter that is used in two
        places has one gradient, the sum over both. The ``.grad`` fields are not touched.

    Raises: as :func:`exact_expectation`.
    """
    _check_gradients_are_on("exact_gradient")
    with torch.enable_grad():
        value = exact_expectation(net, inputs, loss).mean()
    parameters = trainable(net)
    if not parameters:
        return value.detach(), {}
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
        net: layers must be plain ``nn.Linear``, with parameters of their own.
        inputs, loss: as :func:`exact_expectation`; the loss must be differentiable.
        estimator: a registry name or a chain-rule function of (a, x) only, unit by unit.

    Returns:
        name -> (mean, variance), both of the parameter's shape.

    Raises:
        ValueError: the estimator draws random numbers of its own, couples units or has no gradient
            in a; a layer is no plain ``nn.Linear`` (weight_norm), two layers share memory, or the
            loss uses a parameter of the network; or as :func:`exact_expectation`.
    """
    chain_rule = as_chain_rule(estimator, state_only=True)
    _check_gradients_are_on("exact_moments")
    if any(p.requires_grad for p in getattr(chain_rule, "parameters", tuple)()):
        raise ValueError("exact_moments needs an estimator without parameters, those of "
                         f"{name_of(chain_rule)} have an estimate too")  # fmt: skip
    outputs = _check_net(net, inputs)
    layers = _plain_layers(net)
    for out in {out.shape[1]: out for out in outputs}.values():
        _check_state_only(chain_rule, net.noise, out)
    _check_memory(_numbers_of_moments, outputs, len(inputs))
    with torch.enable_grad():
        check_loss(loss, len(inputs), outputs[-1], slopes=True)
        _check_derivative(loss, net, len(inputs), outputs[-1])
    with torch.no_grad(), Watch(inputs.device) as watch:
        moments = _Moments(net, layers, inputs, loss, chain_rule).run()
    watch.check_chance()
    return moments


# ---------------------------------------------------------------------------------------------
# The law of a layer's state


def _sum_over_states(net: SBN, inputs: Tensor, loss: Loss) -> Tensor:
    """E L for each input."""
    (law, states), batch = _law_of_last_layer(net, inputs), len(inputs)
    total = law.new_zeros(batch)
    for rows in _blocks(len(states), max(1, BLOCK // (batch * states.shape[1]))):
        values = _loss_at(loss, states[rows], batch)
        total = total + (law[:, rows] * values.T).sum(dim=1)
    return total


def _law_of_last_layer(net: SBN, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """pi_K of shape (B, 2^{n_K}) and the states it weights."""
    a = net.layers[0](inputs.clone())  # it may work in place
    law, states = _transition(a, net.noise), _states_like(a)
    for layer in net.layers[1:]:
        law, states = _next_law(law, layer(states), net.noise)
    return law, states


def _next_law(law: Tensor, a: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """From pi over the 2^n states to pi T, with a the next pre-activation at each state."""
    states = _states_like(a)
    if _is_small(len(law), len(a), a.shape[1]):
        return law @ _transition(a, noise), states
    pairs, half = _pairs(a, noise), a.shape[1] // 2
    high, low = _kronecker(pairs[:half]), _kronecker(pairs[half:])
    # Row by row of the batch: (2^{m/2} x 2^n) @ (2^n x 2^{m/2}).
    return torch.stack([((high * row) @ low.T).flatten() for row in law]), states


def _is_small(batch: int, rows: int, units: int) -> bool:
    """T pays when it is tiny or serves many inputs; else the split form is as fast and smaller."""
    return units == 1 or rows << units <= (BLOCK if batch >= 8 else BLOCK >> 10)


def _transition(a: Tensor, noise: Noise) -> Tensor:
    """T, the law of the states of all units given each row of a: (..., m) -> (..., 2^m)."""
    return _kronecker(_pairs(a, noise)).movedim(0, -1)


def _pairs(a: Tensor, noise: Noise) -> tuple[Tensor, ...]:
    """P(x_j = -1), P(x_j = +1) of each unit: (..., m) -> m tensors (2, ...)."""
    check_pre_activations(a)
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
            (slopes,) = torch.autograd.grad(evaluate(loss, x).sum(), x)
        return slopes.transpose(0, 1)

    def run(self) -> dict[str, tuple[Tensor, Tensor]]:
        out: dict[str, tuple[Tensor, Tensor]] = {}
        for k in reversed(range(len(self.layers))):
            out |= self._layer(k)
        for name, p in trainable(self.net).items():
            out.setdefault(name, (torch.zeros_like(p), torch.zeros_like(p)))  # of no layer
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
        """c(a, -1) and c(a, +1), read off the estimator by differentiating it.

        0 where P(x) is: a state that never occurs is never asked for its factor, which may be 0/0.
        """
        found = []
        for v in (-1, 1):
            x = torch.full_like(a, v)
            c = factor(self.chain_rule, a, x, self.net.noise)
            found.append(c.where(self.net.noise.cdf(x * a) > 0, 0))
        return torch.stack(found)

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


def factor(
    chain_rule: ChainRule, a: Tensor, x: Tensor, noise: Noise, units: Tensor | None = None
) -> Tensor:
    """c(a, x): the derivative in a of the sum over all units, or those where ``units`` is True."""
    with torch.enable_grad():
        leaf = a.detach().clone().requires_grad_()
        out = chain_rule(leaf, x, noise)
        if out.shape != x.shape:
            shapes = f"{tuple(x.shape)}, {name_of(chain_rule)} gave {tuple(out.shape)}"
            raise ValueError(f"estimator must return a tensor of the states' shape {shapes}")
        if not out.requires_grad:
            raise ValueError(f"estimator must have a gradient in a, {name_of(chain_rule)} has none")
        return torch.autograd.grad((out if units is None else out * units).sum(), leaf)[0]


# ---------------------------------------------------------------------------------------------
# Checks


def _check_net(net: SBN, inputs: Tensor) -> list[Tensor]:
    """What is asked of a network and its inputs; returns what its layers gave when tried."""
    if not isinstance(net, SBN):
        raise TypeError(f"net must be an SBN, got {type(net).__name__}")
    if forward_of(net) is not SBN.forward:
        raise ValueError(f"net must run as SBN does, {type(net).__name__} has its own forward")
    for name, module in (("net", net), ("net.sign", net.sign)):
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"net must run as SBN does, {name} has a forward hook")
    if type(net.sign) is not Sign:
        raise ValueError(f"net must run as SBN does, net.sign is of {type(net.sign).__name__}")
    if forward_of(net.sign) is not Sign.forward:
        raise ValueError("net must run as SBN does, net.sign has its own forward")
    first = type(net.layers[0]).__name__
    if not isinstance(inputs, Tensor) or inputs.dim() != 2 or not len(inputs):
        shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError("exact sums need fully connected layers: inputs must have shape (B, n_0) "
                         f"with B >= 1, got {shape} for layer 0 ({first})")  # fmt: skip
    if not inputs.is_floating_point():
        raise TypeError(f"inputs must be a floating-point tensor, got {inputs.dtype}")
    if looking_is_free(inputs) and not is_finite(inputs):
        raise ValueError("inputs must be finite, got NaN or infinity")
    return check_layers(net, inputs)


def _check_memory(
    numbers: Callable[[list[int], int], float], outputs: list[Tensor], batch: int
) -> None:
    widths, like = [out.shape[1] for out in outputs], outputs[-1]
    what = f"an exact sum over layers of {'-'.join(map(str, widths))} units, {batch} inputs,"
    check_memory(numbers(widths, batch) * like.element_size(), like.device, what)


# The factors were fitted to measured peaks, which are 0.45 to 1.4 times the estimate.


def _numbers_of_sum(widths: list[int], batch: int) -> float:
    """How many numbers a sum holds at once, with what a backward pass needs where it will come."""
    graph = torch.is_grad_enabled()
    tables = [
        6 * rows * units
        + (
            (3 if graph else 1.25) * (rows << units)
            if _is_small(batch, rows, units)
            else (5.1 + 1.15 * batch if graph else 4) * (rows << (units + 1) // 2)
        )
        for rows, units in ((1 << n, m) for n, m in pairwise(widths))
    ]
    laws = sum((n + 4 * batch) << n for n in widths)
    at_once = sum(tables) if graph else max(tables, default=0)
    return laws + at_once + min(BLOCK, batch * widths[-1] << widths[-1])


def _numbers_of_moments(widths: list[int], batch: int) -> float:
    """How many numbers the largest layer of the moments holds: T, and second moments of pairs."""
    rows = (batch, *(1 << n for n in widths))
    return max(
        1.6 * (r << n) + 8 * batch * n**2 * (1 << n) for r, n in zip(rows, widths, strict=False)
    )


def _check_gradients_are_on(name: str) -> None:
    if torch.is_inference_mode_enabled():
        raise ValueError(
            f"{name} must be called outside torch.inference_mode, which has no gradients"
        )


def trainable(net: SBN) -> dict[str, torch.nn.Parameter]:
    """The named parameters that require a gradient, in the network's order."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def _check_derivative(loss: Loss, net: SBN, batch: int, like: Tensor) -> None:
    """The loss must depend on x by differentiable operations, and on x alone."""
    x = signs(1, batch, like.shape[1], like=like).requires_grad_()
    total, parameters = evaluate(loss, x).sum(), trainable(net)
    wanted = [x, *parameters.values()]
    slopes = total.requires_grad and torch.autograd.grad(total, wanted, allow_unused=True)
    if not slopes or slopes[0] is None:
        raise ValueError("loss must be differentiable in the states for exact moments")
    for name, slope in zip(parameters, slopes[1:], strict=True):
        if slope is not None:
            raise ValueError(
                f"loss must not use the network's own {name} in exact_moments: its gradient would "
                "be another part of the estimate"
            )


def _plain_layers(net: SBN) -> list[torch.nn.Linear]:
    """The layers, each W x + b with a weight and a bias that nothing else uses."""
    layers = linear_layers(net, "exact_moments")
    for k, layer in enumerate(layers):
        names = {name for name, _ in layer.named_parameters()}
        own = {"weight"} if layer.bias is None else {"weight", "bias"}
        x = signs(4, layer.in_features, like=layer.weight)
        plain = torch.nn.functional.linear(x, layer.weight, layer.bias)
        if names != own or not same(layer(x), plain):
            raise ValueError(
                "exact_moments needs layers W x + b with W and b their parameters (no weight_norm "
                f"or other parametrization), layer {k} is {type(layer).__name__} of {sorted(names)}"
            )
    _check_nothing_is_shared(net)
    return layers


def _check_nothing_is_shared(net: SBN) -> None:
    """Two parameters, or a parameter and a buffer, must not lie on the same memory."""
    parameters = net.layers.named_parameters("layers", remove_duplicate=False)
    named = chain(parameters, net.layers.named_buffers("layers"))
    spans = sorted((*_span(t), name) for name, t in named if t.numel())
    for (_, end, one), (start, _, other) in pairwise(spans):
        if start < end:
            raise ValueError(f"exact_moments needs parameters that are not shared, {one} and "
                             f"{other} are on the same memory")  # fmt: skip


def _span(t: Tensor) -> tuple[int, int]:
    """The addresses of the first byte of a tensor and of that behind its last."""
    reach = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (reach + 1) * t.element_size()


def _check_state_only(chain_rule: ChainRule, noise: Noise, like: Tensor) -> None:
    """The factor of a unit must be a function of that unit's own a and x."""
    a = noise.icdf(0.05 + 0.9 * uniforms(2, 8, like.shape[1]).to(like.device, like.dtype))
    check_state_only(chain_rule, noise, a, "its moments are not a sum over states")


def check_state_only(chain_rule: ChainRule, noise: Noise, points: Tensor, otherwise: str) -> None:
    """The factor of a unit must be a function of that unit's own a and x.

    Args:
        points: two lots of pre-activations at which it is tried, shape (2, rows, units).
        otherwise: what follows of an estimator that depends on chance.
    """
    (a, other_a), name = points, name_of(chain_rule)
    x, other_x = signs(*points.shape, like=points)
    odd = every_other(*a.shape, device=a.device)
    with Watch(a.device) as watch:
        try:
            c, again = (factor(chain_rule, a, x, noise) for _ in range(2))
        except (TypeError, AttributeError) as error:
            raise ValueError(f"estimator must be a chain-rule function, got {name}") from error
        one, two = (
            factor(chain_rule, torch.where(m, other_a, a), torch.where(m, other_x, x), noise)
            for m in (odd, ~odd)
        )
        part = factor(chain_rule, a, x, noise, odd)
    if watch.drew or not same(again, c):
        raise ValueError(
            f"estimator must be a function of (a, x) only, {name} {watch.drew or OTHER_NUMBERS}: "
            f"{otherwise}"
        )
    if not same(torch.where(odd, two, one), c) or not same(part, c * odd):
        raise ValueError(
            f"estimator must treat each unit by itself, {name} gives a unit another factor when "
            "another unit or row is changed"
        )
