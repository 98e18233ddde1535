r"""How good an estimator is: bias, variance, error and direction, each with a standard error.

One *gradient sample* is the gradient of the mean loss over the batch, with one fresh draw for each
input. With g the exact gradient of a parameter, \hat g a sample and M samples:

* bias2 = \|E \hat g - g\|^2, estimated by \|\bar g - g\|^2 minus Var/M: the squared error of a mean
  holds its variance too, and would never be 0 at finite M;
* variance = E\|\hat g - E\hat g\|^2; mse = bias2 + variance = E\|\hat g - g\|^2;
* cosine = E cos(\hat g, g), the mean direction of single samples;
* cosine_of_mean = cos(E \hat g, g), the direction many averaged samples point in.

Samples stream: chunks are drawn, reduced in float64 and forgotten, so that memory does not depend
on M. Standard errors are by the jackknife over 32 groups, NaN where there are too few; on average a
jackknife never understates (Efron & Stein 1981), and that of bias2 overstates, by up to a factor
1.5, where the bias is 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sbnlib.contracts import Loss, NetworkEstimator, check_count, check_values
from sbnlib.exact import exact_gradient, trainable
from sbnlib.network import SBN, batch_shape, network_estimator

__all__ = ["Accuracy", "Estimate", "gradient_samples", "measure"]

#: Groups of the jackknife.
GROUPS = 32

#: Numbers in one chunk of gradient samples.
CHUNK = 1 << 18


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error.

    Attributes:
        value: the number.
        se: its standard error, in the same units; NaN where there were too few samples.
    """

    value: float
    se: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.se:.2g}"


@dataclass(frozen=True)
class Accuracy:
    r"""How an estimator does on one parameter (or on all of them together).

    With g the exact gradient and :math:`\hat g` one gradient sample, in the units of the gradient
    squared where they are squares:

    Attributes:
        bias2: :math:`\|\mathbb{E}\hat g - g\|^2`, free of the variance of the mean that estimates
            it; it may come out below 0.
        variance: :math:`\mathbb{E}\|\hat g - \mathbb{E}\hat g\|^2`.
        mse: :math:`\mathbb{E}\|\hat g - g\|^2`, bias2 + variance.
        cosine: :math:`\mathbb{E}\cos(\hat g, g)`, the mean direction of single samples.
        cosine_of_mean: :math:`\cos(\mathbb{E}\hat g, g)`, where many averaged samples point.
        reference_norm2: :math:`\|g\|^2`, to make the above relative.
        num_samples: the number of samples behind them.
    """

    bias2: Estimate
    variance: Estimate
    mse: Estimate
    cosine: Estimate
    cosine_of_mean: Estimate
    reference_norm2: float
    num_samples: int


def measure(
    net: SBN,
    inputs: Tensor,
    loss: Loss,
    estimator: str | NetworkEstimator,
    num_samples: int,
    *,
    generator: torch.Generator | None = None,
    reference: dict[str, Tensor] | None = None,
) -> dict[str, Accuracy]:
    """Compare ``num_samples`` independent gradient samples with the exact gradient.

    Args:
        net: the network; parameters other than of ``nn.Linear`` layers are measured too, slower.
        inputs: ``(B, n_0)``.
        loss: states ``(..., B, n_K)`` to values ``(..., B)``.
        estimator: a registry name or a network estimator.
        num_samples: M >= 2.
        generator: source of randomness, on the device of ``inputs``.
        reference: gradients to compare with, by parameter name; default the exact gradient. A
            many-sample reference of a large network brings its own error, not counted here.

    Returns:
        parameter name -> Accuracy, and ``"all"`` for the whole gradient as one vector.

    Raises:
        ValueError: ``num_samples < 2``, unknown name, batch norm in training mode (its statistics
            would move), wrong shapes, or a reference with other names than the parameters'.

    Standard errors are by the jackknife over 32 groups of samples.

    Source: chapter 3; jackknife: Efron & Stein 1981.
    """
    check_count("num_samples", num_samples, least=2)
    estimator = network_estimator(estimator)
    _check_frozen(net)
    if reference is None:
        _, reference = exact_gradient(net, inputs, loss)
    _check_reference(net, reference)
    target = {name: reference[name].detach().double().flatten() for name in trainable(net)}
    groups = _Groups(target)
    for chunk in gradient_samples(net, inputs, loss, estimator, num_samples, generator=generator):
        groups.add(chunk)
    return groups.summary()


def gradient_samples(
    net: SBN,
    inputs: Tensor,
    loss: Loss,
    estimator: str | NetworkEstimator,
    num_samples: int,
    *,
    generator: torch.Generator | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Independent gradient samples in chunks: parameter name -> ``(S, *parameter.shape)``.

    Estimates attach at the pre-activations, so a whole chunk is one backward pass: a Linear
    layer's gradient is sum_b d_b x_b^T / B, with d the derivative in its output, kept for each
    sample. Networks with other parameters, and estimators that reach parameters by another way
    than the layers, are run one sample at a time.
    """
    estimator = network_estimator(estimator)
    parameters = trainable(net)
    size = sum(p.numel() for p in parameters.values()) + inputs.numel()
    step = min(max(1, CHUNK // size), math.ceil(num_samples / GROUPS))
    draw, start = _samples_in_one_pass, 0
    while start < num_samples:
        count = min(step, num_samples - start)
        chunk = draw(net, inputs, loss, estimator, count, generator, check=start == 0)
        if chunk is None:
            draw = _samples_one_by_one
            continue
        yield chunk
        start += count


def _samples_in_one_pass(
    net: SBN,
    inputs: Tensor,
    loss: Loss,
    estimator: NetworkEstimator,
    count: int,
    generator: torch.Generator | None,
    check: bool,
) -> dict[str, Tensor] | None:
    """One backward pass to the outputs of the Linear layers.

    None if ``check`` finds that the recorded calls do not account for the whole gradient.
    """
    if not all(isinstance(m, torch.nn.Linear) for m in _owners(net)):
        return None
    values, calls = _record(net, inputs, loss, estimator, count, generator)
    if not calls:
        return None
    samples = _combine(values, calls, retain_graph=check)
    parameters = trainable(net)
    for name in parameters.keys() - samples.keys():  # a layer the estimator never touched
        samples[name] = values.new_zeros(count, *parameters[name].shape)
    if check and not _add_up(samples, values, parameters):
        return None
    return {name: samples[name] for name in parameters}


Calls = list[tuple[str, Tensor, Tensor]]


def _record(
    net: SBN,
    inputs: Tensor,
    loss: Loss,
    estimator: NetworkEstimator,
    count: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Calls]:
    """Values (S, B), and (name, input, output) of each call of a Linear layer."""
    calls: Calls = []

    def hook(name: str) -> Callable[..., None]:
        def record(_: torch.nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            if out.requires_grad:
                calls.append((name, args[0].detach(), out))

        return record

    modules = [(n, m) for n, m in net.named_modules() if isinstance(m, torch.nn.Linear)]
    handles = [m.register_forward_hook(hook(name)) for name, m in modules]
    try:
        expanded = inputs.expand(count, *inputs.shape)
        values = estimator(net, expanded, loss, generator=generator)
    finally:
        for handle in handles:
            handle.remove()
    return check_values(values, (count, inputs.shape[0])), calls


def _combine(values: Tensor, calls: Calls, retain_graph: bool) -> dict[str, Tensor]:
    """The gradient samples the recorded calls account for."""
    count, batch = values.shape
    outputs = [out for _, _, out in calls]
    slopes = torch.autograd.grad(
        values.sum() / batch, outputs, materialize_grads=True, retain_graph=retain_graph
    )
    samples: dict[str, Tensor] = {}
    for (name, x, _), d in zip(calls, slopes, strict=True):
        _accumulate(samples, f"{name}.weight", _outer(d, x, count))
        _accumulate(samples, f"{name}.bias", d.reshape(-1, count, *d.shape[-2:]).sum(dim=(0, 2)))
    return samples


def _add_up(
    samples: dict[str, Tensor], values: Tensor, parameters: dict[str, torch.nn.Parameter]
) -> bool:
    """Whether the samples' sum is the gradient torch computes by itself."""
    total = torch.autograd.grad(
        values.sum() / values.shape[1], list(parameters.values()), materialize_grads=True
    )
    return all(
        torch.allclose(samples[name].sum(dim=0), g, rtol=1e-3, atol=1e-4 * float(g.abs().max()))
        for name, g in zip(parameters, total, strict=True)
    )


def _outer(d: Tensor, x: Tensor, count: int) -> Tensor:
    """sum d x^T over the batch and over axes in front of the samples: (S, m, n)."""
    d = d.reshape(-1, count, *d.shape[-2:]).transpose(0, 1).flatten(1, 2)
    x = x.expand(*x.shape[:-3], count, *x.shape[-2:])
    x = x.reshape(-1, count, *x.shape[-2:]).transpose(0, 1).flatten(1, 2)
    return d.mT * x if d.shape[1] == 1 else d.mT @ x  # batched products of depth 1 are slow


def _accumulate(samples: dict[str, Tensor], name: str, value: Tensor) -> None:
    samples[name] = samples[name] + value if name in samples else value


def _samples_one_by_one(
    net: SBN,
    inputs: Tensor,
    loss: Loss,
    estimator: NetworkEstimator,
    count: int,
    generator: torch.Generator | None,
    check: bool,  # one sample at a time, torch's own gradient needs none
) -> dict[str, Tensor]:
    names, parameters = zip(*trainable(net).items(), strict=True)
    rows = []
    for _ in range(count):
        values = estimator(net, inputs, loss, generator=generator)
        mean = check_values(values, batch_shape(net, inputs)).mean()
        rows.append(torch.autograd.grad(mean, parameters, materialize_grads=True))
    return {name: torch.stack(g) for name, g in zip(names, zip(*rows, strict=True), strict=True)}


def _owners(net: SBN) -> list[torch.nn.Module]:
    """The modules that hold parameters of their own."""
    return [m for m in net.modules() if any(True for _ in m.parameters(recurse=False))]


class _Groups:
    """Streaming sums of samples, kept apart for each group of the jackknife."""

    def __init__(self, target: dict[str, Tensor]) -> None:
        self.names = [*target, "all"]
        self.target = torch.cat(list(target.values()))
        # A sum over the coordinates of each parameter, and of all, is a product with this (P, K+1).
        blocks = [torch.ones_like(g)[:, None] for g in target.values()]
        whole = torch.ones_like(self.target)[:, None]
        self.member = torch.cat([torch.block_diag(*blocks), whole], dim=1)
        self.groups: list[_Sums] = []
        self.added = 0

    def add(self, chunk: dict[str, Tensor]) -> None:
        rows = torch.cat([g.detach().flatten(1) for g in chunk.values()], dim=1).double()
        sums = _Sums.of(rows, self.target, self.member)
        if self.added < GROUPS:
            self.groups.append(sums)
        else:
            at = self.added % GROUPS
            self.groups[at] = self.groups[at].merged(sums)
        self.added += 1

    def summary(self) -> dict[str, Accuracy]:
        """Statistics of all samples, and standard errors by leaving out one group at a time."""
        total, n = functools.reduce(_Sums.merged, self.groups), len(self.groups)
        full = _statistics(_stack([total]), self.target, self.member)[0]
        rest = _leave_one_out(_stack(self.groups), total)
        left_out = _statistics(rest, self.target, self.member)
        centre = left_out.mean(dim=0)
        se = ((left_out - centre).square().sum(dim=0) * (n - 1) / n).sqrt()
        # Noise in the mean turns it away: correct for it.
        full[:, -1] += (n - 1) * (full[:, -1] - centre[:, -1])
        norms2 = (self.target.square() @ self.member).tolist()
        out = {}
        for name, values, errors, norm2 in zip(self.names, full, se, norms2, strict=True):
            bias2, variance, mse, cosine, along = map(Estimate, values.tolist(), errors.tolist())
            out[name] = Accuracy(bias2, variance, mse, cosine, along, norm2, int(total.count))
        return out


@dataclass(frozen=True)
class _Sums:
    """Sums of one record of samples; with a first axis R, of R records.

    The number of samples, for each coordinate their mean and the summed squared distance from it,
    and for each parameter the summed cosine. Two records merge exactly (Chan, Golub & LeVeque), the
    term between their means included.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor
    cosines: Tensor

    @staticmethod
    def of(rows: Tensor, target: Tensor, member: Tensor) -> _Sums:
        """The record of samples (S, P), which are overwritten."""
        mean = rows.mean(dim=0)
        norms2 = (rows.square() @ member) * (target.square() @ member)
        cosines = rows @ (target[:, None] * member) / norms2.where(norms2 > 0, torch.inf).sqrt()
        count = rows.new_tensor(len(rows))
        return _Sums(count, mean, rows.sub_(mean).square_().sum(dim=0), cosines.sum(dim=0))

    def merged(self, other: _Sums) -> _Sums:
        count = self.count + other.count
        delta = other.mean - self.mean
        return _Sums(
            count,
            self.mean + delta * (other.count / count),
            self.scatter + other.scatter + delta.square() * (self.count * other.count / count),
            self.cosines + other.cosines,
        )


def _statistics(sums: _Sums, target: Tensor, member: Tensor) -> Tensor:
    """(R, K+1, 5): bias2, variance, mse, cosine, cosine_of_mean of each parameter and of all."""
    count = sums.count[:, None]
    variance = sums.scatter @ member / (count - 1)
    bias2 = (sums.mean - target).square() @ member - variance / count
    norms2 = (sums.mean.square() @ member) * (target.square() @ member)
    along = (sums.mean * target) @ member / norms2.where(norms2 > 0, torch.inf).sqrt()
    return torch.stack([bias2, variance, bias2 + variance, sums.cosines / count, along], dim=-1)


def _stack(records: list[_Sums]) -> _Sums:
    """R records as one with a first axis R."""
    columns = zip(*(vars(r).values() for r in records), strict=True)
    return _Sums(*(torch.stack(c) for c in columns))


def _leave_one_out(groups: _Sums, total: _Sums) -> _Sums:
    """The merge of all groups but one, for each; sums are about the overall mean."""
    count, size = total.count - groups.count, groups.count[:, None]
    shift = groups.mean - total.mean
    mean = -shift * (size / count[:, None])
    about = groups.scatter + size * shift.square()
    scatter = total.scatter - about - count[:, None] * mean.square()
    return _Sums(count, total.mean + mean, scatter, total.cosines - groups.cosines)


def _check_frozen(net: SBN) -> None:
    for name, m in net.named_modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.training:
            raise ValueError(
                f"net.{name} is a {type(m).__name__} in training mode; call net.eval() first, or "
                "measuring would move its running statistics"
            )


def _check_reference(net: SBN, reference: dict[str, Tensor]) -> None:
    shapes = {name: tuple(p.shape) for name, p in trainable(net).items()}
    given = {name: tuple(g.shape) for name, g in reference.items()}
    if shapes != given:
        raise ValueError(f"reference must hold gradients of shapes {shapes}, got {given}")
