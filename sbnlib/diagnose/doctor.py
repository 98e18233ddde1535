"""The two ways in: a unit by itself, and the units of a model."""

from __future__ import annotations

import functools
import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from sbnlib.diagnose.cosines import cosines
from sbnlib.diagnose.examination import MOST_Z, Examination, examine
from sbnlib.diagnose.findings import (
    ADVICE,
    Finding,
    coding,
    findings,
    is_off,
    number,
    why_no_noise,
)
from sbnlib.diagnose.integrals import around
from sbnlib.diagnose.keeping import Kept, mode, seeded, settled, uncompiled
from sbnlib.diagnose.report import ModelReport, UnitReport
from sbnlib.diagnose.subject import FAULTS, Function, RefusedError, Subject, raised
from sbnlib.diagnose.watching import (
    Replay,
    Unit,
    candidates,
    run_model,
    tensors,
    units,
    without_checkpoints,
)

__all__ = ["diagnose", "diagnose_unit"]

#: A slope below this share of the largest lets nothing through.
CLIPPED = 1e-3

#: The layers for which the factor of a single unit is multiplied up.
DEPTHS = (1, 3, 10)

Call = Callable[[Tensor], object]


# ---- a unit --------------------------------------------------------------------------------------


def diagnose_unit(
    unit: object,
    *,
    data: Tensor | None = None,
    name: str | None = None,
    device: torch.device | str = "cpu",
) -> UnitReport:
    r"""Say what a binarization really does: which noise, which factor, which faults.

    A unit is right, as straight-through, if it draws its states with
    :math:`P(x{=}1\mid a) = F(a)` and passes gradients on with the slope :math:`2F'(a)` (in bits
    :math:`F'(a)`). The unit is run at some thousand points, and 20 000 times at each of 25 more, 4
    of them in the tails; its slope is integrated. See :class:`UnitReport` for what is told. Nothing
    of the code is read.

    Args:
        unit: a function of a tensor of pre-activations, a subclass of ``torch.autograd.Function``,
            a module, or a class of modules that can be made without arguments. It is tried on
            tensors of one axis, then of two and four, in float64, then in float32.
        data: pre-activations ``(B, ...)`` that occur, for ``clipped``, ``dead`` and ``gain``.
        name: in the report; default the unit's own.
        device: where it runs.

    Returns:
        The report. Whatever the unit does wrong is a finding in it, not an error.

    Raises:
        TypeError: ``unit`` cannot be called, or ``data`` is no floating-point tensor with values.

    The forward pass counts as drawn from the law of the slope where no share is more than 5
    standard errors off; a right unit is taken for a wrong one about once in :math:`10^5` reports.
    The scale of a logistic noise is told apart from one 5 % wider. A factor counts from 1 % on, and
    of a slope that is random from five of its standard errors on, which count in all else too. A
    law is named where its distribution function is met within 0.003. Poles of a slope are looked
    for at its centre. Gradients of 0.001, 1 and 30 are sent in: what is cut outside of these is not
    seen. What is drawn less often than about once in 2000 passes for no draw, and states nearer
    than a ten-thousandth of the largest for one. Of channels, or entries of a row, that are
    different functions the first is asked; where they need as many as they are, ``data`` tells of
    what shape.

    Source: chapter 8; for the laws Shekhovtsov & Yanush 2021 (arXiv 2006.06880).
    """
    if not callable(unit):
        raise TypeError(f"unit must be a function, an autograd.Function or a module, got {unit!r}")
    if data is not None:
        _check_data(data)
    name, where = name or _name(unit), torch.device(device)
    with _undisturbed(where) as home:
        try:
            call, module = _call(unit)
            with Kept(module, home) as kept, mode(module, training=True):
                subject = _accepted(call, module, kept, where, data)
                report = _examined(subject, name)
                return report if data is None else _with_data(report, subject.whole(), data)
        except RefusedError as refused:
            return _refused(name, refused)


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[torch.device]:
    """What is set for all of torch is put back, sums are taken in one order, code as written.

    Gives where the caller's code makes tensors; here it is the processor.
    """
    home = torch.get_default_device()
    with ExitStack() as kept:
        if home.type != "cpu":
            kept.enter_context(torch.device("cpu"))
        for context in (warnings.catch_warnings(), settled(device), seeded(0, device),
                        uncompiled(), without_checkpoints(),
                        redirect_stdout(io.StringIO())):  # fmt: skip
            kept.enter_context(context)
        warnings.simplefilter("ignore")  # a unit that is asked at 1e7 may overflow, many times
        torch.set_num_threads(1)
        yield home


def _check_data(data: object) -> None:
    if not isinstance(data, Tensor) or not data.is_floating_point() or not data.numel():
        got = data.dtype if isinstance(data, Tensor) else type(data).__name__
        raise TypeError(f"data must be a floating-point tensor (B, ...) with values, got {got}")


def _name(unit: object) -> str:
    base = unit.func if isinstance(unit, functools.partial) else unit
    own = getattr(base, "__self__", None)  # of Function.apply
    if isinstance(own, type):
        return own.__name__
    return getattr(base, "__name__", None) or type(base).__name__


def _refused(name: str, refused: RefusedError) -> UnitReport:
    finding = _told(refused)
    verdict = "It could not be examined."
    return UnitReport(name, verdict=verdict, why=finding.words, findings=(finding,))


def _call(unit: Any) -> tuple[Call, torch.nn.Module | None]:
    if isinstance(unit, type) and issubclass(unit, torch.autograd.Function):
        return unit.apply, None
    if isinstance(unit, type) and issubclass(unit, torch.nn.Module):
        try:
            unit = unit()
        except FAULTS as error:
            refused = raised(error, "made without arguments it")
            advice = "Hand over a module that is made."
            raise RefusedError(refused.code, refused.words, advice) from error
    module = unit if isinstance(unit, torch.nn.Module) else None
    if module is not None:
        _check_made(module)
    return unit, module


def _check_made(module: torch.nn.Module) -> None:
    own = [*module.parameters(), *module.buffers()]
    if any(map(is_lazy, own)):
        raise RefusedError("raises", "it has no weights yet: run it once before")
    if any(t.is_meta for t in own):
        raise RefusedError("raises", 'it has no weights: they are on the device "meta"')


#: How many points a unit is tried on: odd numbers, by chance that of no parameter's entries.
TRIED = (23, 29)


def _accepted(
    call: Call, module: torch.nn.Module | None, kept: Kept, device: torch.device,
    data: Tensor | None,
) -> Function:  # fmt: skip
    """The unit with a shape and a dtype that it takes."""
    shapes: list[tuple[int, ...]] = [(), (1,), (1, 1, 1)]
    if data is not None and data.dim() > 1:
        shapes.append(tuple(data.shape[1:]))
    first: RefusedError | None = None
    for dtype in (torch.float64, torch.float32):
        for shape in shapes:
            subject = Function(call, module, shape, device, dtype, kept)
            try:
                for count in TRIED:
                    subject.run(torch.linspace(-2, 2, count, dtype=torch.float64))
                return subject
            except RefusedError as refused:
                first = first or refused
    assert first is not None
    if data is None and first.code in ("raises", "shape"):
        first.advice = "Where it needs a certain shape, data= tells of what."
    raise first


def _examined(subject: Subject, name: str, where: str = "") -> UnitReport:
    """The report of a unit; of one that cannot be examined to the end, that it cannot."""
    try:
        return _report(examine(subject), name, where)
    except Exception as error:
        stopped = raised(error, "the examination stops: sbnlib")
        refused = error if isinstance(error, RefusedError) else stopped
        return replace(_refused(name, refused), where=where)


def _report(found: Examination, name: str, where: str = "") -> UnitReport:
    """The report of an examination, without what needs data."""
    known = findings(found)
    if found.subject.dtype is torch.float32 and isinstance(found.subject, Function):
        words = "It takes float32 only; in float64, which torch's gradcheck needs, it fails."
        advice = "Let it make its numbers in the dtype of its argument."
        known += (Finding("float32", False, words, advice),)
    c = found.mismatch
    law = None if found.slope_law is None else found.slope_law.noise
    drawn = None if found.forward_law is None else found.forward_law.noise
    asked = found.refused is None
    return UnitReport(
        name=name,
        where=where,
        verdict=_verdict(found),
        findings=known,
        noise=found.noise,
        why=why_no_noise(found),
        forward=_FORWARD[bool(found.sampled)] if asked else None,
        forward_noise=drawn,
        slope_noise=law,
        scale=law.scale if law else None,
        threshold=found.threshold if asked and not found.shared else None,
        integral=found.integral,
        mismatch=c,
        even=found.even,
        nonnegative=found.nonnegative,
        sign_of_zero=found.at_zero or None,
        coding=coding(found),
        exact_pm1=not (found.off[0] or found.stray) if asked else None,
        slope=found.kind,
        line=found.line,
        depends_on_gradient=bool(found.answers) if found.kind else None,
        samples_in_eval=found.eval_sampled,
        gain=_gain(found),
        compounding=None if c is None else {k: _power(c, k) for k in DEPTHS},
        cosine=cosines(found),
        examination=found,
    )


def _power(c: float, k: int) -> float:
    return float(torch.tensor(c, dtype=torch.float64) ** k)


_FORWARD = {True: "sampled", False: "deterministic"}


def _verdict(found: Examination) -> str:
    """The whole in a sentence."""
    if found.refused is not None:
        return "It could not be examined as a binary unit."
    if found.kind is None:
        return "No gradient passes."
    c = found.mismatch
    if c is None or math.isinf(c) or not found.one_sign:
        return f"Not straight-through for any noise. {why_no_noise(found)}"
    what = "straight-through" if found.kind == "of a" else "straight-through on average"
    law = str(found.slope_law or "a law of its own")
    if found.reach != (0.0, 1.0):
        law = "the mean state, which is that of no noise"
    if found.has_levels:
        law = f"{len(found.states)} states, whose steps have together {law}"
    if c < 0:
        return f"The slope has the wrong sign: it is {number(c)} times {what} for {law}."
    slope = f"{number(c)} times {what} for {law}" if is_off(found) else f"{what} for {law}"
    if not found.sampled:
        return f"No noise in the forward pass; the slope is {slope}."
    if found.shared:
        return (
            f"One draw serves {found.shared}, so that the two passes were not compared; the "
            f"slope is {slope}."
        )
    if found.z is not None and found.z > MOST_Z:
        forward = found.forward_law or "another law"
        return f"The states are drawn from {forward}, the slope is {slope}."
    return f"{slope[0].upper()}{slope[1:]}."


def _gain(found: Examination) -> float | None:
    """E h^2 over a standard normal pre-activation, for states of distance 2."""
    if found.kind is None or found.slope is None or not found.jump:
        return None
    unit = (2 / found.jump) ** 2
    if found.kind == "of a":
        return unit * found.slope.mean_square()
    _, g = found.subject.run(_normal(2000).repeat(64), found.flow, seed=23)
    return None if g is None else unit * float((g / found.flow).square().mean())


def _normal(count: int) -> Tensor:
    """Points at the middle of equal shares of a standard normal law."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)


def _with_data(report: UnitReport, subject: Subject, data: Tensor) -> UnitReport:
    found = report.examination
    if found is None or found.kind is None:
        return report
    _, g = subject.run(data.detach().reshape(-1), found.flow, seed=29)
    return report if g is None else _on_data(report, (g / found.flow).reshape(data.shape))


def _on_data(report: UnitReport, g: Tensor) -> UnitReport:
    """What the slopes at the data tell."""
    found = report.examination
    assert found is not None and found.slope is not None
    size = g.detach().double().cpu().abs().reshape(len(g), -1)
    closed = size < CLIPPED * _peak(found)
    clipped, dead = float(closed.double().mean()), float(closed.all(dim=0).double().mean())
    distance = None if found.channels else found.jump
    gain = float(size.square().mean()) * (2 / distance) ** 2 if distance else None
    more = []
    if clipped > 0.5:
        more.append(Finding("clipped", False, f"{100 * clipped:.3g} % of the pre-activations lie "
                            "where the slope is below a thousandth of its largest.",
                            "Scale the pre-activations, or widen the slope."))  # fmt: skip
    if dead > 0 and len(size) > 1:
        more.append(Finding("dead", False, f"{100 * dead:.3g} % of the units lie there on all "
                            f"{len(size)} rows."))  # fmt: skip
    return replace(report, clipped=clipped, dead=dead, gain=gain,
                   findings=(*report.findings, *more))  # fmt: skip


def _peak(found: Examination) -> float:
    """The largest slope; towards a pole, that at a distance of a thousandth."""
    assert found.slope is not None
    h, off = found.slope.h.abs(), (found.slope.a - found.slope.centre).abs()
    return float(h[off > 1e-3].max() if found.slope.has_pole() else h.max())


# ---- a model -------------------------------------------------------------------------------------

LIMITS = (
    "what is inside of TorchScript, of torch.func's transforms, or of another thread;",
    "signs taken under no_grad or of integers, which leave no graph;",
    "units of more than 16 values, of fewer than 8 entries, or whose values differ from entry to "
    "entry, and choices of one among several;",
    "what one autograd Function hands to the next;",
    "that two pre-activations are one, where it is computed twice, for the state and the slope.",
)


def diagnose(
    module: torch.nn.Module,
    inputs: Tensor | tuple[Any, ...],
    loss: Callable[[Any], Tensor] | None = None,
) -> ModelReport:
    """Find the binary units of a model and say what each of them does, as :func:`diagnose_unit`.

    The model is run on the inputs, in the mode that it is in; units are found by their values,
    wherever they stand: a bare ``Bin.apply`` inside ``forward``, a ``detach`` trick, a module, a
    weight. To ask a unit elsewhere, the model is run again with other points in the place of its
    pre-activation.

    Args:
        module: any torch module.
        inputs: what it is called with: a tensor, or a tuple of arguments.
        loss: a function of what the module returns, whose mean is the loss; needed for ``passed``.

    Returns:
        The report. ``clipped``, ``dead`` and ``gain`` are those on the inputs, ``compounding`` is
        the product of the factors from a unit to the loss. Parameters, buffers, gradients, modes
        and random generators are left as they were.

    Raises:
        TypeError: ``module`` is no module, or ``loss`` cannot be called.

    *Limits.* What is inside of TorchScript is not seen, nor are signs taken under ``no_grad``; what
    ``torch.compile`` made runs as it was written. A model that takes another way at each run is not
    asked again. To one question a model is run again 256 times at the most, so that units of small
    layers are drawn less than 20 000 times; layers before a unit are not computed again, and a unit
    that answers as one before, to the last bit, is not examined again. A weight is asked as a
    whole, some sixty times. Attributes of a module, and lists, dicts and sets among
    them, are put back too; what is changed inside of other objects stays so.

    Source: chapter 8.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch module, got {module!r}")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function of the module's result, got {loss!r}")
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    if not any(p.requires_grad for p in module.parameters()):  # else nothing has a graph
        arguments = tuple(_with_graph(value) for value in arguments)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    try:
        _check_made(module)
    except RefusedError as refused:
        return ModelReport((), (_told(refused),), LIMITS)
    with _undisturbed(device) as home, Kept(module, home) as kept:
        return _diagnose(module, arguments, loss, kept)


def _with_graph(value: Any) -> Any:
    """A tensor of floating-point numbers as one that requires a gradient."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.requires_grad:
        return value
    return value.detach().clone().requires_grad_()


def _diagnose(
    module: torch.nn.Module, inputs: tuple[Any, ...], loss: Callable[[Any], Tensor] | None,
    kept: Kept,
) -> ModelReport:  # fmt: skip
    try:
        run = run_model(module, inputs, kept)
    except FAULTS as error:
        return ModelReport((), (_told(raised(error, "the model")),), LIMITS)
    out, every = run.out, candidates(module, run)
    others = _in_eval(module, inputs, every, kept)
    found, reports = units(every, out), dict[int, UnitReport]()
    rounds = _Rounds(module, inputs, kept)
    while new := [u for u in found if id(u) not in reports]:
        for unit in new:
            reports[id(unit)] = rounds.report(unit, others.get(id(unit)))
        every = [u for u in every if id(u) not in reports or not _is_none(u, reports[id(u)])]
        found = units(every, out)  # what stands on a false one comes to light
    more: list[Finding] = []
    if not any(t.requires_grad for t in tensors(out)):
        more.append(Finding("no-gradient", True, "What the model returns has no graph."))
    if not found:
        words = "No tensor with a graph has few values: no unit was seen."
        more.append(Finding("no-units", False, words))
        return ModelReport((), tuple(more), LIMITS)
    told = [reports[id(unit)] for unit in found]
    told = [replace(report, name=f"{k}. {report.name}") for k, report in enumerate(told, 1)]
    told = _compounded(told, found)
    if loss is not None and not more:
        told, missing = _passed(told, found, out, loss)
        more += missing
    return ModelReport(tuple(told), tuple(more), LIMITS)


def _is_none(unit: Unit, report: UnitReport) -> bool:
    """Whether a candidate is no binary unit, but had few values on these inputs.

    A ReLU may give a few, or a dropped-out constant; a gate is constant where only its argument is
    asked; a choice among several is one unit of many entries.
    """
    if {"not-quantized", "constant"} & report.codes:
        return True
    return bool({"not-elementwise", "raises", "unseen"} & report.codes) and unit.is_one_hot()


def _told(refused: RefusedError) -> Finding:
    words = f"{refused.words[:1].upper()}{refused.words[1:]}."
    return Finding(refused.code, True, words, refused.advice or ADVICE.get(refused.code, ""))


def _in_eval(
    module: torch.nn.Module, inputs: tuple[Any, ...], every: list[Unit], kept: Kept
) -> dict[int, Unit]:
    """Those that can be told in a run in evaluation mode, there."""
    try:
        with mode(module, training=False):
            others = candidates(module, run_model(module, inputs, kept))
    except FAULTS:
        return {}
    here, there = ([(u.name, u.where) for u in them] for them in (every, others))
    found = {}
    for k, label in enumerate(here):
        if here.count(label) == there.count(label):
            at = [n for n, other in enumerate(there) if other == label]
            found[id(every[k])] = others[at[here[:k].count(label)]]
    return found


@dataclass
class _Rounds:
    """The examinations of a model's units, one after another.

    Attributes:
        module, inputs, kept: the model, what it is run on, and what is put back for each run.
        known: what is plain enough to be told at once when it comes again, by name and place.
    """

    module: torch.nn.Module
    inputs: tuple[Any, ...]
    kept: Kept
    known: dict[tuple[str, str], list[_Known]] = field(default_factory=dict)

    def report(self, unit: Unit, in_eval: Unit | None) -> UnitReport:
        """What is said of a unit, with what its slope is at the model's own pre-activations."""
        name = unit.name + (f" of {unit.parameter}" if unit.parameter else "")
        if unit.points is None:
            words = "The tensor that it is a function of was not seen: it was not examined."
            return UnitReport(name, unit.where, "It could not be examined.", why=words,
                              findings=(Finding("unseen", False, words),))  # fmt: skip
        report = self._examined(unit, in_eval, name)
        for points in unit.nearer if _is_amiss(report) else ():
            nearer = replace(unit, points=points, parameter="")
            other = self._examined(nearer, None, name)
            if not _is_amiss(other):
                unit, report = nearer, other
                break
        found = report.examination
        if found is None or found.kind is None or found.slope is None:
            return report
        g = unit.flowing(torch.full_like(unit.states.tensor, found.flow))
        if g is None:
            return report
        report = _on_data(report, (g.reshape(1, -1) if unit.parameter else g) / found.flow)
        return replace(report, dead=None, cosine=None) if unit.parameter else report

    def _examined(self, unit: Unit, in_eval: Unit | None, name: str) -> UnitReport:
        subject = Replay(self.module, self.inputs, unit, in_eval, self.kept)
        known = self.known.setdefault((unit.name, unit.where), [])
        for twin in known:
            if twin.is_like(subject):
                assert twin.report.examination is not None
                found = replace(twin.report.examination, subject=subject)
                return replace(twin.report, name=name, examination=found)
        report = _examined(subject, name, unit.where)
        if report.forward == "deterministic" and report.slope == "of a":
            with suppress(RefusedError):
                known.append(_Known.of(report))
        return report


@dataclass(frozen=True)
class _Known:
    """A unit that draws nothing, and what it answers.

    Attributes:
        report: of its examination.
        points, states, slopes: questions and answers.
    """

    report: UnitReport
    points: Tensor
    states: Tensor
    slopes: Tensor | None

    @staticmethod
    def of(report: UnitReport) -> _Known:
        found = report.examination
        assert found is not None
        a = around(*sorted({0.0, found.threshold}), per_decade=6, linear=60)
        a = torch.cat([a, a.new_tensor([0.0, -0.0, found.threshold])])  # a third state, if any
        return _Known(report, a, *found.subject.run(a, found.flow))

    def is_like(self, subject: Subject) -> bool:
        """Whether another unit answers the same, to the last bit."""
        found = self.report.examination
        if found is None or found.channels or subject.dtype is not found.subject.dtype:
            return False
        try:
            x, g = subject.run(self.points, found.flow)
        except RefusedError:
            return False
        if g is None or self.slopes is None or not torch.equal(x, self.states):
            return False
        return torch.equal(g.nan_to_num(), self.slopes.nan_to_num())


def _is_amiss(report: UnitReport) -> bool:
    """Whether it may be because of the tensor that was taken for its pre-activation."""
    return bool({"not-elementwise", "channels"} & report.codes)


def _compounded(reports: list[UnitReport], found: list[Unit]) -> list[UnitReport]:
    """Each with the product of the factors from it to the loss, along the longest chain."""
    above: dict[int, tuple[int, float]] = {}  # how many units there are, and their product
    reached = _reached(found)
    for k in reversed(range(len(found))):
        own = reports[k].mismatch
        higher = [j for j in range(k + 1, len(found)) if k in reached[j]]
        depth, product = max((above[j] for j in higher), default=(0, 1.0), key=lambda p: p[0])
        above[k] = depth + 1, math.nan if own is None else own * product
    return [
        replace(report, compounding=None if math.isnan(above[k][1]) else above[k][1])
        for k, report in enumerate(reports)
    ]


def _reached(found: list[Unit]) -> list[set[int]]:
    """For each unit those next below: the graph leads from its pre-activation to their states."""
    numbers = {unit.states.node: k for k, unit in enumerate(found)}
    every: list[set[int]] = []
    for unit in found:
        todo = [] if unit.points is None else [unit.points.node]
        done, reached = set(todo), set[int]()
        while todo:
            node = todo.pop()
            if node not in numbers:
                below = {n for n, _ in getattr(node, "next_functions", ())} - done - {None}
                done |= below
                todo += below
            else:
                reached.add(numbers[node])
        every.append(reached)
    return every


def _passed(
    reports: list[UnitReport], found: list[Unit], out: Any, loss: Callable[[Any], Tensor]
) -> tuple[list[UnitReport], list[Finding]]:
    """What the loss's gradient becomes on its way through each unit."""
    try:
        value = loss(out).mean()
    except FAULTS as error:
        return reports, [_told(raised(error, "the loss"))]
    if not value.requires_grad:
        return reports, [Finding("no-gradient", True, "The loss has no graph.")]
    try:
        ups = torch.autograd.grad(
            value,
            [u.states.edge for u in found],  # type: ignore[arg-type]  # takes both
            retain_graph=True,
            allow_unused=True,
        )
    except FAULTS as error:
        return reports, [_told(raised(error, "the backward pass of the loss"))]
    return [
        replace(r, passed=_share(u, up)) for r, u, up in zip(reports, found, ups, strict=True)
    ], []


def _share(unit: Unit, up: Tensor | None) -> float | None:
    """What the unit multiplies the mean square of a gradient by."""
    if unit.points is None or up is None or not bool(up.any()):
        return None
    down = unit.flowing(up)
    return None if down is None else float(down.square().mean() / up.square().mean())
