r"""How good an estimator is: bias, variance, error and direction, each with a standard error.

One *gradient sample* is the gradient of the mean loss over the batch, with one fresh draw for each
input. With g the exact gradient of a parameter, \hat g a sample, \bar g the mean of M samples and
s^2 their variance:

* bias2 = \|E \hat g - g\|^2, estimated by \|\bar g - g\|^2 - s^2 / M: the squared error of a mean
  holds its variance too, so that at finite M its expectation is not 0 without bias;
* variance = E\|\hat g - E\hat g\|^2; mse = bias2 + variance = E\|\hat g - g\|^2;
* cosine = E cos(\hat g, g), the mean direction of single samples;
* cosine_of_mean = cos(E \hat g, g), the direction many averaged samples point in, estimated by
  <\bar g, g> / (\|g\| sqrt(\|\bar g\|^2 - t^2 / M)), with t^2 the variance across g: noise across g
  makes the mean too long, as it makes the bias too large.

Samples stream: chunks are drawn, reduced in float64 and forgotten, so that memory does not depend
on M. Standard errors are by the jackknife over 32 groups of samples, NaN where there are too few
samples. On average the *square* of a jackknife's error is not too small, for groups of one size and
a variance that falls like 1/G or faster (Efron & Stein 1981; for cosine_of_mean only about so), and
that of bias2 overstates, by a factor 1.4 to 1.6, where the bias is 0. A single error can be short,
and with heavy tails most are: see :func:`measure`.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sbnlib.contracts import Loss, NetworkEstimator, check_count, check_values, looking_is_free
from sbnlib.exact import exact_gradient, trainable
from sbnlib.network import SBN, network_estimator

__all__ = ["Accuracy", "Estimate", "gradient_samples", "measure"]

#: Groups of the jackknife.
GROUPS = 32

#: Numbers in one chunk of gradient samples.
CHUNK = 1 << 18

#: Numbers in one chunk on a CUDA device, at most: the largest that was tried on an H100.
CUDA_CHUNK = 1 << 26

#: The share of a CUDA device's free memory that a chunk may take, at so many bytes a number. Most
#: estimators take 20 to 40 of them, those that flip every unit up to 190.
CUDA_SHARE, CUDA_BYTES = 0.25, 64

#: Below so many effective samples, and this share of all, standard errors cannot be relied on.
FEW, FEW_SHARE = 100, 1 / 8


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
        cosine: :math:`\mathbb{E}\cos(\hat g, g)`, the mean direction of single samples, with
            :math:`\cos(0, g) = 0`.
        cosine_of_mean: :math:`\cos(\mathbb{E}\hat g, g)`, where many averaged samples point, free
            of the noise across g; it may come out beyond 1 or -1. NaN where the samples do not tell
            the mean from 0: where :math:`\|\bar g\|^2 - s^2/M` is less than its standard error.
            What is told is so a selection, which at small M lies too far from 0.
        along: :math:`\langle\mathbb{E}\hat g, g\rangle`, the mean along g; divided by
            ``reference_norm2`` it is 1 at the right length.
        efficiency: :math:`\langle\mathbb{E}\hat g, g\rangle^2 / (\|g\|^2\,\mathbb{E}\|\hat g\|^2)`
            of one sample, at most 1 (chapter 3): at the best common factor of all samples the mean
            squared error is ``(1 - efficiency) * reference_norm2``. It is free of the noise of the
            mean along g, and may come out a little below 0.
        reference_norm2: :math:`\|g\|^2`, to make the above relative.
        num_samples: the number of samples behind them.
    """

    bias2: Estimate
    variance: Estimate
    mse: Estimate
    cosine: Estimate
    cosine_of_mean: Estimate
    along: Estimate
    efficiency: Estimate
    reference_norm2: float
    num_samples: int

    @property
    def effective_samples(self) -> float:
        r"""About how many of the samples carry the variance.

        With :math:`q_m = \|\hat g_m - \bar g\|^2` it is the participation ratio
        :math:`(\sum q_m)^2 / \sum q_m^2 \approx 1 / (1/M + (\mathrm{se}/\mathrm{variance})^2)`,
        computed as on the right. NaN where the standard error is, and M where there is no variance
        beyond rounding.
        """
        variance, se = self.variance.value, self.variance.se
        if variance <= 1e-12 * self.reference_norm2:
            return float(self.num_samples)
        return 1 / (1 / self.num_samples + (se / variance) ** 2)


@torch.enable_grad()
def measure(
    net: SBN,
    inputs: Tensor,
    loss: Loss,
    estimator: str | NetworkEstimator,
    num_samples: int,
    *,
    generator: torch.Generator | None = None,
    reference: Mapping[str, Tensor] | None = None,
) -> dict[str, Accuracy]:
    r"""Compare ``num_samples`` independent gradient samples with the exact gradient.

    Args:
        net: the network; parameters other than of ``nn.Linear`` layers are measured too, slower.
            Dropout in training mode is sampled as part of the estimator (with torch's own
            generator), which needs a ``reference``.
        inputs: ``(B, n_0)``, or one batch as the first layer takes it.
        loss: states ``(..., B, n_K)`` to values ``(..., B)``.
        estimator: a registry name or a network estimator.
        num_samples: M >= 2.
        generator: source of randomness, on the device of ``inputs``.
        reference: gradients to compare with, by parameter name; default the exact gradient. A
            many-sample reference of a large network brings its own error, not counted here.

    Returns:
        parameter name -> Accuracy, and ``"all"`` for the whole gradient as one vector. Parameters
        that do not require a gradient are left out.

    Raises:
        ValueError: ``num_samples < 2``, an unknown name or an estimator of another kind, batch norm
            in training mode (its statistics would move), no parameter to measure, wrong shapes, a
            reference with other names than the parameters', or samples that are not finite.
        TypeError: an argument of another type.
        RuntimeError: called under ``torch.inference_mode()``; ``torch.no_grad()`` does no harm.

    Warns:
        UserWarning: fewer than 100 samples, and less than an eighth of all, carry the variance of a
            parameter (:attr:`Accuracy.effective_samples`).

    *Errors.* Exact are ``reference_norm2`` and, without a ``reference``, what the samples are
    compared with. Let S be a number from all samples, :math:`S_{(j)}` the same without the j-th of
    G = min(32, M) consecutive groups, whose sizes differ by one at most, and :math:`S_{(\cdot)}`
    the mean of these; then

    .. math:: \mathrm{se}^2 = \tfrac{G-1}{G} \textstyle\sum_j (S_{(j)} - S_{(\cdot)})^2 .

    For ``bias2`` it is at least :math:`2\operatorname{tr}\Sigma^2/M^2`, with :math:`\Sigma` the
    covariance of a sample (estimated from the groups): what it is for an unbiased estimator. The
    error of ``cosine_of_mean`` has a floor of its own, from the covariance across g, and holds
    :math:`(G-1)^2 (S_{(\cdot)} - S)^2` besides, because a ratio has a bias of order 1/M. Two
    samples are too few for an error of ``bias2``, ``variance`` and ``mse``. In the cases tried,
    with 64 to 4096 samples, twice the error covered the truth 89 to 98 times in 100
    (``cosine_of_mean``: 85 to 98), and nearly always where ``bias2`` is 0 and both errors are up to
    1.6 times too long. Where rare states decide, ``variance``, ``mse`` and all errors are as a rule
    too small together: twice the error covered 65 to 90 times in 100, and less in one dimension,
    which the warning is for. ``bias2`` then errs either way: an estimator without bias looks biased
    by the share of g that the states carry which were not drawn. A state rarer than 1/M is as a
    rule not drawn, and nothing in the samples tells of it.

    *Costs.* One exact gradient, and for each sample one pass through the network and back to the
    pre-activations; in chunks of :math:`2^{18}` numbers on a CPU, on a CUDA device of as many as a
    quarter of the free memory holds at 64 bytes each, up to :math:`2^{26}`. Beside a chunk stand
    3 to 4 kB for each coordinate of the gradient, whatever M is. Threads may measure one network
    at once, each with a generator of its own. A seed repeats its numbers on the same device; on
    CUDA only while the free memory gives chunks of the same size. What is summed over samples is
    float64; products of a float32 network are as exact as ``torch.set_float32_matmul_precision``
    has them, whose default leaves TF32 off.

    Source: chapter 3; jackknife: Efron & Stein 1981.
    """
    check_count("num_samples", num_samples, least=2)
    estimator = network_estimator(estimator)
    inputs = _check_problem(net, inputs, loss)
    if reference is None:
        value, reference = exact_gradient(net, inputs, loss)
        if not math.isfinite(value):
            raise ValueError(f"loss must be finite at every state, its exact mean is {value:.3g}")
    chunks = gradient_samples(net, inputs, loss, estimator, num_samples, generator=generator)
    result = of_samples(chunks, _check_reference(net, reference), num_samples)
    _warn_of_few(result)
    return result


def of_samples(
    chunks: Iterable[Mapping[str, Tensor]], target: Mapping[str, Tensor], num_samples: int
) -> dict[str, Accuracy]:
    """The accuracy of gradient samples that come in chunks, name -> ``(S, ...)``.

    Args:
        chunks: ``num_samples`` samples in all.
        target: what they are compared with, in the same order: name -> a float64 vector.
        num_samples: M >= 2.

    Returns:
        name -> Accuracy, and ``"all"``, as :func:`measure`.
    """
    groups = _Groups(dict(target), int(num_samples))
    for chunk in chunks:
        groups.add(chunk)
    return groups.summary()


def _warn_of_few(result: dict[str, Accuracy]) -> None:
    """Say where few effective samples carry the numbers, of the parameter that has the fewest."""
    m = result["all"].num_samples
    found = {name: accuracy.effective_samples for name, accuracy in result.items()}
    few = {name: n for name, n in found.items() if n < min(FEW, FEW_SHARE * m)}
    if few:
        name = min(few, key=few.__getitem__)
        warnings.warn(
            f"about {few[name]:.1f} of {m} samples carry the variance of {name}: rare states "
            "decide, and its variance and all errors may be far too small; take more samples",
            stacklevel=4,
        )


@torch.enable_grad()
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
    sample. Networks with other parameters or with layers that do not take axes in front of the
    batch as further draws, and estimators that reach parameters by another way than the layers,
    are run one sample at a time. What a CUDA device has no memory for is tried again at half the
    size. Arguments and errors are those of :func:`measure`.
    """
    check_count("num_samples", num_samples)
    estimator = network_estimator(estimator)
    inputs = _check_problem(net, inputs, loss)
    draw, start, total = _samples_in_one_pass, 0, int(num_samples)
    step, full = _chunks(net, inputs, total)
    while start < total:
        count = min(step, total - start)
        try:
            chunk = draw(net, inputs, loss, estimator, count, generator, check=start == 0)
        except torch.OutOfMemoryError:
            if count == 1:
                raise
            step = full = count // 2
            continue
        if chunk is None:
            draw, full = _samples_one_by_one, step
            continue
        yield chunk
        start, step = start + count, full


def _chunks(net: SBN, inputs: Tensor, num_samples: int) -> tuple[int, int]:
    """Samples in the first chunk, on which the way of drawing is decided, and in the others."""
    numbers = sum(p.numel() for p in trainable(net).values()) + inputs.numel()
    first = max(1, CHUNK // numbers)
    if inputs.device.type != "cuda":
        return (min(first, math.ceil(num_samples / GROUPS)),) * 2
    linear = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
    states = len(inputs) * sum(m.out_features for m in linear)
    return first, max(first, _cuda_chunk(inputs.device) // (numbers + states))


def _cuda_chunk(device: torch.device) -> int:
    """Numbers in a chunk: what a share of the free memory holds, of which torch's cache is a part.

    A power of two, so that a seed gives the same draws while other programs take a little memory.
    """
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(CUDA_CHUNK, 1 << int(math.log2(max(1, CUDA_SHARE * free / CUDA_BYTES))))


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
    if check and not _takes_stacks(net, inputs):
        return None
    values, calls = _record(net, inputs, loss, estimator, count, generator)
    if not calls or check and any(out.shape[-3:-1] != values.shape for _, _, out in calls):
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
    """Values (S, B), and (name, input, output) of each call of a Linear layer in this thread."""
    calls: Calls = []
    thread = threading.get_ident()

    def hook(name: str) -> Callable[..., None]:
        def record(_: torch.nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            if out.requires_grad and threading.get_ident() == thread:
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
    return _check_estimate(values, (count, len(inputs))), calls


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
    """Whether the samples' sum is the gradient torch computes by itself, a finite one."""
    total = torch.autograd.grad(
        values.sum() / values.shape[1], list(parameters.values()), materialize_grads=True
    )
    scales = [float(g.abs().max()) for g in total]
    return all(map(math.isfinite, scales)) and all(
        torch.allclose(samples[name].sum(dim=0), g, rtol=1e-3, atol=1e-4 * scale)
        for name, g, scale in zip(parameters, total, scales, strict=True)
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
        mean = _check_estimate(values, inputs.shape[:1]).mean()
        rows.append(torch.autograd.grad(mean, parameters, materialize_grads=True))
    return {name: torch.stack(g) for name, g in zip(names, zip(*rows, strict=True), strict=True)}


def _owners(net: SBN) -> list[torch.nn.Module]:
    """The modules that hold parameters of their own."""
    return [m for m in net.modules() if any(True for _ in m.parameters(recurse=False))]


def _takes_stacks(net: SBN, inputs: Tensor) -> bool:
    """Whether each layer takes axes in front of the batch as further draws; batch norm does not."""
    if all(isinstance(layer, torch.nn.Linear) for layer in net.layers):
        return True
    x = inputs
    with torch.no_grad(), torch.random.fork_rng([x.device] if x.is_cuda else []):
        for layer in net.layers:
            a = layer(x)
            try:
                stacked = layer(torch.stack([x.flip(0) + 1, x]))
            except RuntimeError:  # it reads the axes otherwise, and they do not fit
                return False
            if stacked.shape != (2, *a.shape) or not torch.allclose(stacked[1], a, 1e-4, 1e-5):
                return False
            x = net.sign(a, mode="sign")
    return True


class _Groups:
    """Streaming sums of samples, kept apart for each group of the jackknife.

    Behind the coordinates of a sample stand, for each parameter and for all, its component along
    the target and its cosine with it. Group j of G holds the samples from j M/G on.
    """

    def __init__(self, target: dict[str, Tensor], num_samples: int) -> None:
        self.names = [*target, "all"]
        self.target = torch.cat(list(target.values()))
        self.sizes = [len(g) for g in target.values()]
        self.widths = [len(self.target), len(self.names), len(self.names)]
        # A sum over the coordinates of each parameter, and of all, is a product with this (P, K+1).
        blocks = [torch.ones_like(g)[:, None] for g in target.values()]
        whole = torch.ones_like(self.target)[:, None]
        self.member = torch.cat([torch.block_diag(*blocks), whole], dim=1)
        self.norms2 = self.target.square() @ self.member
        self.unit = self.target[:, None] * self.member / _positive(self.norms2).sqrt()
        number = min(GROUPS, num_samples)
        self.starts = [j * num_samples // number for j in range(number)]
        self.groups: list[_Sums] = []
        self.added = 0

    def add(self, chunk: Mapping[str, Tensor]) -> None:
        samples, directions = self._columns(chunk)
        start, end = self.added, self.added + len(samples)
        cuts = [start, *(s for s in self.starts if start < s < end), end]
        for lo, hi in itertools.pairwise(cuts):
            part = slice(lo - start, hi - start)
            sums = _Sums.of(samples[part], directions[part])
            self._add_to(bisect_right(self.starts, lo) - 1, sums)
        self.added = end

    def _columns(self, chunk: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(S, P) coordinates; (S, 2(K+1)) components along the target, and cosines."""
        samples = torch.cat(
            [g.detach().reshape(len(g), -1) for g in chunk.values()], dim=1
        ).double()
        along = samples @ self.unit
        cosines = along / _positive(samples.square() @ self.member).sqrt()
        return samples, torch.cat([along, cosines], dim=1)

    def _add_to(self, group: int, sums: _Sums) -> None:
        if looking_is_free(sums.mean):
            self._check_finite(sums)
        if group == len(self.groups):
            self.groups.append(sums)
        else:
            self.groups[group] = self.groups[group].merged(sums)

    def _check_finite(self, sums: _Sums) -> None:
        wrong = ~sums.mean[: len(self.target)].isfinite()
        if wrong.any():
            at = int((wrong.double() @ self.member).nonzero()[0])
            raise ValueError(
                f"gradient samples of {self.names[at]} hold NaN or infinite numbers; estimator and "
                "loss must give finite ones"
            )

    def summary(self) -> dict[str, Accuracy]:
        total = functools.reduce(_Sums.merged, self.groups)
        self._check_finite(total)
        value, se = self._with_errors(_stack(self.groups), total)
        norms2, m, out = self.norms2.tolist(), int(total.count), {}
        for at, name in enumerate(self.names):
            estimates = map(Estimate, value[at].tolist(), se[at].tolist())
            bias2, variance, mse, cosine, of_mean, along, efficiency, _ = estimates
            out[name] = Accuracy(
                bias2, variance, mse, cosine, of_mean, along, efficiency, norms2[at], m
            )
        return out

    def _with_errors(self, groups: _Sums, total: _Sums) -> tuple[Tensor, Tensor]:
        """Statistics (K+1, 8) of all samples, and their errors by leaving out a group at a time."""
        value = self._statistics(_stack([total]))[0]
        left_out = self._statistics(_leave_one_out(groups, total))
        n, centre = len(left_out), left_out.mean(dim=0)
        se = ((left_out - centre).square().sum(dim=0) * (n - 1) / n).sqrt()
        # A squared length near 0 errs by its second order, and so does what is made of it.
        whole, across, along = self._second_order(groups, total)
        least = torch.zeros_like(se)
        least[:, 0] = least[:, 7] = whole
        least[:, 4] = value[:, 4].abs() * across / (2 * _positive(value[:, 7]))
        least[:, 6] = along / _positive(value[:, 7] + value[:, 1])
        se = torch.maximum(se, least)
        # The cosine of the mean is a ratio: its error holds its bias, as the jackknife sees it.
        se[:, 4] = torch.hypot(se[:, 4], (n - 1) * (centre - value)[:, 4])
        told = se[:, 4].isfinite() & (value[:, 7] > se[:, 7]) | (value[:, 1] == 0)
        value[~told, 4] = se[~told, 4] = math.nan
        return value, se

    def _second_order(self, groups: _Sums, total: _Sums) -> list[Tensor]:
        r"""Standard errors of \|\bar g\|^2 - s^2/M for a mean of 0: whole, across g, along g.

        (K+1,) each: the square is 2 tr(C^2) with C the covariance of \bar g, and the product of the
        deviations of two of n groups has the variance n^2 tr(C^2).
        """
        samples, along, _ = (groups.mean - total.mean).split(self.widths, dim=1)
        products = torch.stack([d @ d.T for d in samples.split(self.sizes, dim=1)])
        whole = torch.cat([products, products.sum(dim=0, keepdim=True)])
        beside = along.T[:, :, None] * along.T[:, None, :]
        n = len(samples)
        i, j = torch.triu_indices(n, n, 1, device=whole.device)
        factor = math.sqrt(2 / (n * (n - 1)))
        parts = whole, whole - beside, beside
        return [factor * p[:, i, j].std(dim=1, correction=0) for p in parts]

    def _statistics(self, sums: _Sums) -> Tensor:
        """(R, K+1, 8) of R records, each parameter and all.

        bias2, variance, mse, cosine, cosine_of_mean, along, efficiency, and the squared length of
        the mean.
        """
        mean, along, cosine = sums.mean.split(self.widths, dim=-1)
        scatter, scatter_along, _ = sums.scatter.split(self.widths, dim=-1)
        count = sums.count[:, None]
        variance, variance_along = scatter @ self.member / (count - 1), scatter_along / (count - 1)
        bias2 = (mean - self.target).square() @ self.member - variance / count
        length2 = mean.square() @ self.member - variance / count
        turned2 = length2 + variance_along / count  # free of the noise across the target only
        cosine_of_mean = along / turned2.where(turned2 != 0, 1).sqrt()
        along2 = along.square() - variance_along / count
        efficiency = along2 / _positive(length2 + variance)
        inner = along * self.norms2.sqrt()
        return torch.stack([bias2, variance, bias2 + variance, cosine, cosine_of_mean, inner,
                            efficiency, length2], dim=-1)  # fmt: skip


def _positive(squares: Tensor) -> Tensor:
    """Squares to divide by: where they are not > 0 the quotient is 0."""
    return squares.where(squares > 0, torch.inf)


@dataclass(frozen=True)
class _Sums:
    """Sums of one record of samples; with a first axis R, of R records.

    The number of samples, and for each column their mean and the summed squared distance from it.
    Two records merge exactly (Chan, Golub & LeVeque), the term between their means included.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def of(*columns: Tensor) -> _Sums:
        """The record of columns (S, ...) side by side, which are overwritten."""
        means = [c.mean(dim=0) for c in columns]
        scatters = [c.sub_(m).square_().sum(dim=0) for c, m in zip(columns, means, strict=True)]
        return _Sums(means[0].new_tensor(len(columns[0])), torch.cat(means), torch.cat(scatters))

    def merged(self, other: _Sums) -> _Sums:
        count = self.count + other.count
        delta = other.mean - self.mean
        between = delta.square() * (self.count * other.count / count)
        mean = self.mean + delta * (other.count / count)
        return _Sums(count, mean, self.scatter + other.scatter + between)


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
    return _Sums(count, total.mean + mean, scatter)


# ---- checks --------------------------------------------------------------------------------------


def _check_problem(net: SBN, inputs: Tensor, loss: Loss) -> Tensor:
    """The checks before any work; returns ``inputs`` without a history."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError("measuring needs gradients, which torch.inference_mode() does not allow")
    if not isinstance(net, SBN):
        raise TypeError(f"net must be an SBN, got {type(net).__name__}")
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        what = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(f"inputs must be a floating-point tensor, got {what}")
    rows = isinstance(net.layers[0], torch.nn.Linear)  # others know how many axes an input has
    if inputs.dim() < 2 or rows and inputs.dim() > 2 or not len(inputs):
        raise ValueError(
            f"inputs must be one batch, shape (B, n_0) with B >= 1, got {tuple(inputs.shape)}"
        )
    if not callable(loss):
        raise TypeError(f"loss must be a function of the states, got {type(loss).__name__}")
    if not trainable(net):
        raise ValueError("net has no parameter that requires a gradient: nothing to measure")
    _check_frozen(net)
    return inputs.clone() if inputs.is_inference() else inputs.detach()


def _check_frozen(net: SBN) -> None:
    norms = torch.nn.modules.batchnorm
    for name, m in net.named_modules():
        if not isinstance(m, norms._NormBase) or not m.training:
            continue
        if isinstance(m, norms._BatchNorm) or m.track_running_stats:
            raise ValueError(
                f"net.{name} is a {type(m).__name__} in training mode; call net.eval() first, or "
                "measuring would move its running statistics"
            )


def _check_reference(net: SBN, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reference as float64 vectors beside the parameters, in the network's order."""
    if not isinstance(reference, Mapping):
        raise TypeError(f"reference must be a dict of gradients, got {type(reference).__name__}")
    for name, g in reference.items():
        if not isinstance(g, Tensor) or not g.is_floating_point():
            what = g.dtype if isinstance(g, Tensor) else type(g).__name__
            raise TypeError(f"reference must hold floating-point tensors, got {what} at {name!r}")
        if looking_is_free(g) and not g.isfinite().all():
            raise ValueError(f"reference must be finite, got NaN or infinite numbers at {name!r}")
    shapes = {name: tuple(p.shape) for name, p in trainable(net).items()}
    given = {name: tuple(g.shape) for name, g in reference.items()}
    if shapes != given:
        raise ValueError(f"reference must hold gradients of shapes {shapes}, got {given}")
    return {
        name: reference[name].detach().to(p.device, torch.float64).flatten()
        for name, p in trainable(net).items()
    }


def _check_estimate(values: object, shape: Sequence[int]) -> Tensor:
    """What an estimator returned: a finite loss for each input, with a gradient."""
    values = check_values(values, shape, name="estimator")
    if looking_is_free(values) and not values.isfinite().all():
        raise ValueError("loss must be finite at every state, got NaN or infinite values")
    if not values.requires_grad:
        raise ValueError(
            "estimator returned values without a gradient in net's parameters; a chain-rule "
            "estimator needs a loss that can be differentiated"
        )
    return values
