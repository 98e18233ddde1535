r"""How good an estimator is: bias, variance, error and direction, each with a standard error.

One *gradient sample* is the gradient of the mean loss over the batch, with one fresh draw for each
input. With g the exact gradient of a parameter, \hat g a sample and M samples:

* bias2 = \|E \hat g - g\|^2, estimated by \|\bar g - g\|^2 minus Var/M: the squared error of a mean
  holds its variance too, and would never be 0 at finite M;
* variance = E\|\hat g - E\hat g\|^2; mse = bias2 + variance = E\|\hat g - g\|^2;
* cosine = E cos(\hat g, g), the mean direction of single samples;
* cosine_of_mean = cos(E \hat g, g), the direction many averaged samples point in.

Samples stream: chunks are drawn, reduced in float64 and forgotten, so that memory does not depend
on M. Standard errors are by the jackknife over groups of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sbnlib import registry
from sbnlib.exact import exact_gradient
from sbnlib.network import SBN, Loss, NetworkEstimator, batch_shape, check_values

__all__ = ["Accuracy", "Estimate", "gradient_samples", "measure"]

#: Groups of the jackknife.
GROUPS = 32

#: Numbers in one chunk of gradient samples.
CHUNK = 1 << 21


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    value: float
    se: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.se:.2g}"


@dataclass(frozen=True)
class Accuracy:
    """How an estimator does on one parameter (or on all of them together).

    Attributes:
        bias2, variance, mse: squared Euclidean norms, in the units of the gradient squared.
        cosine, cosine_of_mean: see the module's first lines.
        reference_norm2: \\|g\\|^2 of the exact gradient, to make the above relative.
        num_samples: M.
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
        generator: source of randomness.
        reference: gradients to compare with, by parameter name; default the exact gradient. A
            many-sample reference of a large network brings its own error, not counted here.

    Returns:
        parameter name -> Accuracy, and ``"all"`` for the whole gradient as one vector.

    Raises:
        ValueError: ``num_samples < 2``, unknown name, batch norm in training mode (its statistics
            would move), wrong shapes, or a reference with other names than the parameters'.

    Source: chapter 3; the bias of the squared error as in referee notes on \\|mean - exact\\|^2.
    """
    if not isinstance(num_samples, int) or num_samples < 2:
        raise ValueError(f"num_samples must be an integer >= 2, got {num_samples!r}")
    estimator = registry.network_estimator(estimator)
    _check_frozen(net)
    if reference is None:
        _, reference = exact_gradient(net, inputs, loss)
    _check_reference(net, reference)
    target = {name: reference[name].detach().double().flatten() for name in reference}
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
    sample. Networks with other parameters are run one sample at a time.
    """
    estimator = registry.network_estimator(estimator)
    one_pass = _parameters_are_linear(net)
    size = sum(p.numel() for p in net.parameters()) + inputs.numel()
    limit = max(1, CHUNK // size) if one_pass else 1
    step = min(limit, math.ceil(num_samples / GROUPS))
    draw = _samples_in_one_pass if one_pass else _samples_one_by_one
    for start in range(0, num_samples, step):
        count = min(step, num_samples - start)
        yield draw(net, inputs, loss, estimator, count, generator)


def _samples_in_one_pass(
    net: SBN,
    inputs: Tensor,
    loss: Loss,
    estimator: NetworkEstimator,
    count: int,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    batch = inputs.shape[0]
    expanded = inputs.expand(count, *inputs.shape)
    with _Recorder(net) as recorder:
        values = estimator(net, expanded, loss, generator=generator)
    check_values(values, (count, batch))
    outputs = [out for _, _, out in recorder.calls]
    slopes = torch.autograd.grad(values.sum() / batch, outputs, materialize_grads=True)
    samples: dict[str, Tensor] = {}
    for (name, x, _), d in zip(recorder.calls, slopes, strict=True):
        _accumulate(samples, f"{name}.weight", _outer(d, x, count))
        _accumulate(samples, f"{name}.bias", d.reshape(-1, count, *d.shape[-2:]).sum(dim=(0, 2)))
    return {name: samples[name] for name, _ in net.named_parameters()}


def _outer(d: Tensor, x: Tensor, count: int) -> Tensor:
    """sum d x^T over the batch and over axes in front of the samples: (S, m, n)."""
    d = d.reshape(-1, count, *d.shape[-2:]).transpose(0, 1).flatten(1, 2)
    x = x.expand(*x.shape[:-3], count, *x.shape[-2:])
    x = x.reshape(-1, count, *x.shape[-2:]).transpose(0, 1).flatten(1, 2)
    return d.transpose(1, 2) @ x


def _accumulate(samples: dict[str, Tensor], name: str, value: Tensor) -> None:
    samples[name] = samples[name] + value if name in samples else value


def _samples_one_by_one(
    net: SBN,
    inputs: Tensor,
    loss: Loss,
    estimator: NetworkEstimator,
    count: int,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    names, parameters = zip(*net.named_parameters(), strict=True)
    rows = []
    for _ in range(count):
        values = estimator(net, inputs, loss, generator=generator)
        mean = check_values(values, batch_shape(net, inputs)).mean()
        rows.append(torch.autograd.grad(mean, parameters, materialize_grads=True))
    return {name: torch.stack(g) for name, g in zip(names, zip(*rows, strict=True), strict=True)}


class _Recorder:
    """Records (name, input, output) of each call of a Linear layer of the network."""

    def __init__(self, net: SBN) -> None:
        self.calls: list[tuple[str, Tensor, Tensor]] = []
        self._net = net

    def __enter__(self) -> _Recorder:
        self._handles = [
            m.register_forward_hook(self._hook(name))
            for name, m in self._net.named_modules()
            if isinstance(m, torch.nn.Linear)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def record(_: torch.nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            if out.requires_grad:
                self.calls.append((name, args[0].detach(), out))

        return record


def _parameters_are_linear(net: SBN) -> bool:
    linear = (m for m in net.modules() if isinstance(m, torch.nn.Linear))
    known = {id(p) for m in linear for p in m.parameters(recurse=False)}
    return all(id(p) in known for p in net.parameters())


class _Groups:
    """Streaming sums of samples, kept apart for each group of the jackknife.

    For each group and parameter: the number of samples, their mean, the summed squared distance
    from that mean, and the summed cosine. Two such records merge exactly (Chan, Golub & LeVeque),
    the term between their means included.
    """

    def __init__(self, target: dict[str, Tensor]) -> None:
        self.target = target | {"all": torch.cat(list(target.values()))}
        self.groups: list[dict[str, _Sums]] = []
        self.added = 0

    def add(self, chunk: dict[str, Tensor]) -> None:
        rows = {name: g.detach().flatten(1).double() for name, g in chunk.items()}
        rows["all"] = torch.cat([rows[name] for name in chunk], dim=1)
        sums = {name: _Sums.of(rows[name], target) for name, target in self.target.items()}
        if self.added < GROUPS:
            self.groups.append(sums)
        else:
            old = self.groups[self.added % GROUPS]
            self.groups[self.added % GROUPS] = {k: old[k].merged(sums[k]) for k in sums}
        self.added += 1

    def summary(self) -> dict[str, Accuracy]:
        return {
            name: _jackknife([group[name] for group in self.groups], target)
            for name, target in self.target.items()
        }


@dataclass(frozen=True)
class _Sums:
    count: int
    mean: Tensor
    scatter: float
    cosines: float

    @staticmethod
    def of(rows: Tensor, target: Tensor) -> _Sums:
        mean = rows.mean(dim=0)
        norms = torch.linalg.vector_norm(rows, dim=1) * torch.linalg.vector_norm(target)
        cosines = (rows @ target) / norms.where(norms > 0, torch.ones_like(norms))
        scatter = (rows - mean).square().sum()
        return _Sums(len(rows), mean, float(scatter), float(cosines.sum()))

    def merged(self, other: _Sums) -> _Sums:
        count = self.count + other.count
        delta = other.mean - self.mean
        between = float(delta.square().sum()) * self.count * other.count / count
        return _Sums(
            count,
            self.mean + delta * (other.count / count),
            self.scatter + other.scatter + between,
            self.cosines + other.cosines,
        )


def _statistics(sums: _Sums, target: Tensor) -> list[float]:
    """bias2, variance, mse, cosine, cosine_of_mean of one record."""
    variance = sums.scatter / (sums.count - 1)
    bias2 = float((sums.mean - target).square().sum()) - variance / sums.count
    norm2 = max(float(sums.mean.square().sum()) - variance / sums.count, 0.0)
    scale = math.sqrt(norm2) * float(torch.linalg.vector_norm(target))
    cosine_of_mean = float(sums.mean @ target) / scale if scale > 0 else 0.0
    return [bias2, variance, bias2 + variance, sums.cosines / sums.count, cosine_of_mean]


def _jackknife(groups: list[_Sums], target: Tensor) -> Accuracy:
    """Statistics of all samples; standard errors by leaving out one group at a time."""
    total = _merge(groups)
    full = _statistics(total, target)
    left_out = [
        _statistics(_merge(groups[:i] + groups[i + 1 :]), target) for i in range(len(groups))
    ]
    columns = torch.tensor(left_out, dtype=torch.float64)
    spread = (columns - columns.mean(dim=0)).square().sum(dim=0)
    se = (spread * (len(groups) - 1) / len(groups)).sqrt().tolist()
    estimates = [Estimate(value, error) for value, error in zip(full, se, strict=True)]
    return Accuracy(*estimates, float(target.square().sum()), total.count)


def _merge(groups: list[_Sums]) -> _Sums:
    total = groups[0]
    for group in groups[1:]:
        total = total.merged(group)
    return total


def _check_frozen(net: SBN) -> None:
    for name, m in net.named_modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.training:
            raise ValueError(
                f"net.{name} is a {type(m).__name__} in training mode; call net.eval() first, or "
                "measuring would move its running statistics"
            )


def _check_reference(net: SBN, reference: dict[str, Tensor]) -> None:
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    given = {name: tuple(g.shape) for name, g in reference.items()}
    if shapes != given:
        raise ValueError(f"reference must hold gradients of shapes {shapes}, got {given}")
