"""The binary units of a model that anybody wrote, found while it runs.

Hooks on modules see nothing of a sign inside ``forward``. Here every argument and every result of
every torch function is looked at, and so is what the model returns: a tensor with a graph and few
values is a candidate. The graph is walked down from it through elementwise steps, to the last
tensor that all ways lead through: its pre-activation. To ask the unit at other points the model is
run again with these points in the place of that tensor.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from sbnlib.diagnose.keeping import Kept, mode, settled
from sbnlib.diagnose.subject import FAULTS, RefusedError, Subject, raised

__all__ = ["Replay", "Seen", "Unit", "candidates", "run_model", "units"]

Key = tuple[int, int]

#: A candidate has at least so many entries, and at most so many values among the first of them.
LEAST, MOST_VALUES, LOOKED_AT = 8, 16, 4096

#: A unit is sought in the last so many steps before its states; recurrent networks have more.
STEPS = 200

#: Steps that mix entries, by the beginning of their names in the graph: a unit does not go on
#: beyond them.
MIXING = (
    "Addmm", "Addbmm", "Baddbmm", "Mm", "Bmm", "Mv", "Dot", "Linear", "Convolution", "Mkldnn",
    "Cudnn", "Miopen", "Thnn", "SlowConv", "NativeBatchNorm", "NativeLayerNorm", "NativeGroupNorm",
    "FusedRms", "Max", "Min", "Avg", "Adaptive", "Amax", "Amin", "Mean", "Sum", "Prod", "Std",
    "Var", "Norm", "LinalgVector", "Softmax", "LogSoftmax", "Logsumexp", "Cumsum", "Cumprod",
    "Cat", "Stack", "Index", "Gather", "Scatter", "Embedding", "Sort", "Topk", "Roll", "Flip",
    "Repeat", "Upsample", "GridSampler", "Scaled", "Einsum", "Unbind", "Split", "Fft", "Bilinear",
)  # fmt: skip

#: Steps that only arrange entries anew: what they make is the same unit once more.
ARRANGING = (
    "View", "UnsafeView", "Reshape", "Permute", "Transpose", "T", "Squeeze", "Unsqueeze", "Expand",
    "Slice", "Select", "AsStrided", "Clone", "ToCopy", "Alias", "Contiguous", "Unfold", "Movedim",
)  # fmt: skip


#: Of these, those that leave each entry in its place where the shape is the same as before.
PLAIN = ("View", "UnsafeView", "Reshape", "Expand", "Clone", "Alias", "Contiguous")
MOVING = (*MIXING, *(name for name in ARRANGING if name not in PLAIN))

#: Functions of which a replay takes the results of the first run, where these come before the unit.
HEAVY = frozenset((
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "batch_norm", "layer_norm", "group_norm", "scaled_dot_product_attention",
    "multi_head_attention_forward", "cdist",
))  # fmt: skip


@dataclass(frozen=True)
class Product:
    """What a heavy function gave in the first run.

    Attributes:
        func, shapes: the function, and what it was called with.
        out, version: its result, and how often that had been changed in place.
    """

    func: Callable[..., Any]
    shapes: tuple[torch.Size, ...]
    out: Tensor
    version: int

    def fits(self, func: Callable[..., Any], arguments: Any) -> bool:
        same = func is self.func and self.out._version == self.version
        return same and tuple(t.shape for t in tensors(arguments)) == self.shapes


@dataclass(frozen=True)
class Run:
    """What a run of a model met.

    Attributes:
        out: what the model returned.
        seen: every tensor with a graph.
        products: of heavy functions, by the number of the call.
        used: the first call with a parameter, or with a tensor that the model was given.
        overwritten: those that had many values before, and few when they were seen again.
        dropped: what dropouts left: what comes in front of them is no unit's.
    """

    out: Any
    seen: dict[Key, Seen]
    products: dict[int, Product]
    used: dict[Key, int]
    overwritten: dict[Key, Seen]
    dropped: set[Key]


@dataclass(frozen=True)
class Place:
    """Where in a run a tensor was seen first.

    Attributes:
        call: the number of the torch function; -1 for what the model returned, -2 for a parameter,
            -3 for what the model was given.
        result: whether it was a result of it, or an argument.
        index: which of the tensors among them.
    """

    call: int
    result: bool
    index: int


@dataclass(frozen=True)
class Seen:
    """A tensor of a run.

    Attributes:
        tensor, place: what, and where it was seen first.
        node: its step in the graph, kept so that its identity stays its own, and because the tensor
            itself may be changed in place later.
        number: which of the results of the step it is.
        few: whether it had two values or a few, as those of a unit.
        inside: whether it was seen without a graph about it, as in an autograd Function.
        drops: whether it is what a dropout left.
        module: the kind and the path of the module in whose forward it was seen.
        function: the name of the function in which it was seen, if another than forward.
    """

    tensor: Tensor
    place: Place
    node: Any = None
    number: int = 0
    few: bool = False
    inside: bool = False
    drops: bool = False
    module: tuple[str, str] = ("", "")
    function: str = ""

    @property
    def key(self) -> Key:
        return (id(self.tensor), -1) if self.node is None else (id(self.node), self.number)

    @property
    def edge(self) -> Tensor | GradientEdge:
        """What its gradient is asked of."""
        return self.tensor if self.node is None else GradientEdge(self.node, self.number)


@dataclass
class Unit:
    """A binary unit of a model.

    Attributes:
        states, points: what it gave and what it was given; None if the latter could not be seen.
        parameter: the name of the parameter that the points are, if they are one.
        name: of the code: an autograd Function, a function, or the module.
        nearer: what lies between, from below, and may be what it is a function of.
        edges: the elementwise steps from the states down.
        alive: whether the gradient reaches the points.
        products: of the run in which it was seen, those that do not depend on the points.
    """

    states: Seen
    points: Seen | None
    parameter: str
    name: str
    nearer: list[Seen] = field(default_factory=list)
    edges: dict[Key, list[Key]] = field(default_factory=dict)
    alive: bool = True
    products: dict[int, Product] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The line of the user's code that made the states."""
        return _line(self.states.node)

    def flowing(self, up: Tensor) -> Tensor | None:
        """What a gradient in the states becomes in the pre-activation.

        None if its graph is gone, as that of a gradient taken inside of the model is.
        """
        assert self.points is not None
        try:
            (down,) = torch.autograd.grad(
                self.states.edge, self.points.edge, up, retain_graph=True, allow_unused=True
            )
        except FAULTS:
            return None
        return torch.zeros_like(self.points.tensor) if down is None else down

    def is_made_of(self, others: list[Unit]) -> bool:
        """Whether all ways from the states down to the points lead through other units."""
        if self.points is None:
            return False
        closed = {other.states.key for other in others}
        todo = [self.states.key]
        for key in todo:
            if key == self.points.key:
                return False
            todo += [k for k in self.edges.get(key, ()) if k not in closed and k not in todo]
        return True

    def is_one_hot(self) -> bool:
        """Whether it is a choice among several, such as that of gumbel_softmax(hard=True)."""
        x = self.states.tensor.detach()
        sums = [x.sum(dim=k) for k in range(x.dim()) if x.shape[k] > 1]
        plain = bool(torch.minimum(x.abs(), (x - 1).abs()).max() < 1e-3)
        return plain and any(bool((s - 1).abs().max() < 1e-3) for s in sums)


@dataclass
class _Record(TorchFunctionMode):
    """Keeps the tensors that a run meets."""

    names: dict[int, str]
    seen: dict[Key, Seen] = field(default_factory=dict)
    products: dict[int, Product] = field(default_factory=dict)
    used: dict[Key, int] = field(default_factory=dict)
    overwritten: dict[Key, Seen] = field(default_factory=dict)
    dropped: set[Key] = field(default_factory=set)
    calls: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_look(func):
            return func(*args, **kwargs)
        call, self.calls = self.calls, self.calls + 1
        self.look((args, kwargs), call, result=False)
        out = func(*args, **kwargs)
        self.look(out, call, result=True, drops="dropout" in func.__name__)
        if func.__name__ in HEAVY and isinstance(out, Tensor):
            shapes = tuple(t.shape for t in tensors((args, kwargs)))
            self.products[call] = Product(func, shapes, out, out._version)
        return out

    def look(self, value: Any, call: int, *, result: bool, drops: bool = False) -> None:
        for index, tensor in enumerate(tensors(value)):
            key, place = key_of(tensor), Place(call, result, index)
            if key is None:
                continue
            if drops:
                self.dropped.add(key)
            known, inside = self.seen.get(key), not torch.is_grad_enabled()
            if known is None or known.inside > inside:
                self.seen[key] = self._seen(tensor, place, inside, drops)
            else:
                with torch._C.DisableTorchFunction():
                    self._look_again(known, tensor, place)

    def _seen(self, tensor: Tensor, place: Place, inside: bool, drops: bool = False) -> Seen:
        with torch._C.DisableTorchFunction():
            few = has_few_values(tensor)
            return Seen(tensor, place, tensor.grad_fn, tensor.output_nr, few, inside, drops,
                        *_code(self.names))  # fmt: skip

    def _look_again(self, known: Seen, tensor: Tensor, place: Place) -> None:
        """Sees that a tensor was overwritten, as in ``x.data = x.sign()``, which leaves no step."""
        if known.place.call < -1:
            self.used.setdefault(known.key, place.call)
        if known.few or known.key in self.overwritten or place.result:
            return
        if len(set(tensor.detach().reshape(-1)[:32].tolist())) <= MOST_VALUES:
            again = self._seen(tensor, place, known.inside)
            if again.few:
                self.overwritten[known.key] = again


def _is_look(func: Callable[..., Any]) -> bool:
    """Whether it only asks a tensor for one of its properties."""
    return getattr(func, "__name__", "") in ("__get__", "__set__", "size", "dim", "__len__",
                                             "is_floating_point", "numel", "__repr__")  # fmt: skip


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)
    elif hasattr(value, "__dataclass_fields__"):
        yield from tensors(vars(value))


def key_of(tensor: Tensor) -> Key | None:
    """What names a tensor in the graph; None where it has none."""
    if not tensor.is_floating_point() or not tensor.requires_grad:
        return None
    if tensor.grad_fn is None:
        return id(tensor), -1
    return id(tensor.grad_fn), tensor.output_nr


_BEGUN = ", in run_model\n"
_NOT_THEIRS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<frozen")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def _code(names: dict[int, str]) -> tuple[tuple[str, str], str]:
    """The kind and path of the module in whose forward a tensor is seen, and the function in it."""
    frame: Any = sys._getframe(2)
    function = ""
    while frame is not None:
        code = frame.f_code
        theirs = not code.co_filename.startswith(_NOT_THEIRS)
        if theirs and not function and code.co_name.isidentifier():
            function = code.co_name
        its = frame.f_locals.get("self")
        if isinstance(its, torch.nn.Module) and id(its) in names:
            function = "" if function == "forward" else function
            return (type(its).__name__, names[id(its)]), function
        frame = frame.f_back
    return ("", ""), ""


def _line(node: Any) -> str:
    """The line of the user's code that made a step; of a cell, which has no file, its number."""
    if node is None:  # a parameter that was overwritten
        return ""
    stack = "".join(node.metadata.get("traceback_", ())).rpartition(_BEGUN)[2]
    frames = list(_FRAME.finditer(stack))
    theirs = [f for f in frames if not f[1].startswith(_NOT_THEIRS)]
    if not theirs:
        return ""
    path, number = theirs[-1].groups()
    if path.startswith("<") or "ipykernel" in path:
        return f"line {number} of the cell" if "ipykernel" in path else f"line {number}"
    return f"{Path(path).name}:{number}"


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Activation checkpointing keeps its activations: its second pass would not be watched."""

    class Plain:
        @staticmethod
        def apply(function: Callable[..., Any], _: bool, *args: Any) -> Any:
            return function(*args)

    def at_once(*_: Any, **__: Any) -> Iterator[None]:
        yield

    stubs = {"CheckpointFunction": Plain, "_checkpoint_without_reentrant_generator": at_once}
    kept = {name: vars(checkpoint)[name] for name in stubs if name in vars(checkpoint)}
    vars(checkpoint).update({name: stubs[name] for name in kept})
    try:
        yield
    finally:
        vars(checkpoint).update(kept)


def run_model(module: torch.nn.Module, inputs: tuple[Any, ...], kept: Kept) -> Run:
    """Run the model once, and keep what it meets."""
    kept.back()
    names = {id(part): name for name, part in module.named_modules()}
    record = _Record(names)
    for parameter in module.parameters():
        record.seen[id(parameter), -1] = Seen(parameter, Place(-2, False, 0))
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with settled(device), kept.at_home():
        record.look(inputs, -3, result=False)
        with torch.autograd.set_detect_anomaly(True, check_nan=False), record:
            out = module(*inputs)
        record.look(out, -1, result=True)
    return Run(out, record.seen, record.products, record.used, record.overwritten,
               record.dropped)  # fmt: skip


# ---- which of them are units ---------------------------------------------------------------------


def candidates(module: torch.nn.Module, run: Run) -> list[Unit]:
    """What may be a unit among what a run met, in the order in which it was seen."""
    found = []
    for one in (*run.seen.values(), *run.overwritten.values()):
        own = one.node is None or _named(one.node, ARRANGING + MIXING)
        again = one.key in run.overwritten and one is run.overwritten[one.key]
        if not one.few or one.drops or own and not again:
            continue
        sources, edges = ([one.key], {one.key: []}) if own else _sources(one, run)
        points = run.seen[sources[0]] if sources else None
        if points is not None and (points.few or points.key == one.key and not again):
            continue
        nearer = [run.seen[k] for k in sources[1:] if not run.seen[k].few]
        found.append(_candidate(module, run, Unit(one, points, "", "", nearer, edges)))
    return found


def _candidate(module: torch.nn.Module, run: Run, unit: Unit) -> Unit:
    """A unit with its name, and what is known of the model before it."""
    node, points = unit.states.node, unit.points
    of_module = " ".join(filter(None, unit.states.module)) or type(module).__name__
    unit.name = _label(node) or unit.states.function or of_module
    if points is not None:
        parameters = {id(p): name for name, p in module.named_parameters()}
        unit.parameter = parameters.get(id(points.tensor), "")
        begins = run.used.get(points.key, points.place.call + points.place.result)
        unit.products = {k: v for k, v in run.products.items() if k < begins}
        unit.alive = _has_slope(unit)
    return unit


def units(found: list[Unit], out: Any) -> list[Unit]:
    """Which of the candidates stand by themselves.

    What is made of units, as twice a unit, is none. What lets nothing through is one only if it is
    a part of what comes out, and no other unit of the same points is: ``a + (x - a).detach()``
    takes its sign in a step of its own.
    """
    part = _graph(out)
    chosen: list[Unit] = []
    found = [unit for unit in found if unit.points is not None or unit.states.node in part]
    for unit in found:
        if unit.alive and not unit.is_made_of(chosen):
            chosen.append(unit)
    taken = {u.points.key for u in chosen if u.points is not None}
    for unit in found:
        apart = unit.points is None or unit.points.key not in taken
        if not unit.alive and apart and unit.states.node in part and not unit.is_made_of(chosen):
            chosen.append(unit)
    order = [id(unit) for unit in found]
    return sorted(chosen, key=lambda unit: order.index(id(unit)))


def _graph(out: Any) -> set[Any]:
    """All steps by which something was made."""
    todo = [t.grad_fn for t in tensors(out) if t.grad_fn is not None]
    done = set(todo)
    for node in todo:  # which grows
        new = {below for below, _ in node.next_functions if below is not None} - done
        done |= new
        todo += new
    return done


def has_few_values(tensor: Tensor) -> bool:
    """Whether it has two values or a few; of a fused unit, whether each of its channels has."""
    if tensor.numel() < LEAST:
        return False
    flat = tensor.detach().reshape(-1)[:LOOKED_AT]
    if _values(flat) >= 2 and len(flat.unique()) <= min(MOST_VALUES, len(flat) // 4):
        return True
    if not _is_custom(tensor.grad_fn) or tensor.dim() < 2:
        return False
    rows = tensor.detach().transpose(0, 1).flatten(1)[:8]
    return rows.shape[1] >= 8 and all(1 <= _values(row) <= 3 for row in rows)


def _values(flat: Tensor) -> int:
    """How many values there are, but for rounding; 0 if some are infinite or NaN."""
    if not bool(flat.isfinite().all()):
        return 0
    values = flat.unique().double()
    within = max(1e-4, 8 * torch.finfo(flat.dtype).eps) * float(values.abs().max())
    return 1 + int((values.diff() > within).sum())


def _is_custom(node: Any) -> bool:
    return isinstance(node, torch.autograd.function.BackwardCFunction)


def _named(node: Any, beginnings: tuple[str, ...]) -> bool:
    """Whether a step of torch's own has such a name; of a user's own nothing is known."""
    if _is_custom(node):
        return False
    return _is_among(type(node).__name__.partition("Backward")[0], beginnings)


@cache
def _is_among(name: str, beginnings: tuple[str, ...]) -> bool:
    if name in ("Maximum", "Minimum"):
        return False
    return any(name == b or b in MIXING and name.startswith(b) for b in beginnings)


def _label(node: Any) -> str:
    """The name of a user's autograd Function; of the fused sampler's, which nothing else names."""
    kind = getattr(node, "_forward_cls", type(None))
    if kind.__module__.startswith("sbnlib.kernels"):
        return "Sign"
    theirs = kind.__module__.partition(".")[0] not in ("sbnlib", "torch", "builtins")
    return str(kind.__name__) if theirs else ""


def _shape(node: Any) -> tuple[int, ...] | None:
    """The shape of what a step makes."""
    try:
        return tuple(node._input_metadata[0].shape)
    except (AttributeError, IndexError, TypeError):
        return None


def _sources(one: Seen, run: Run) -> tuple[list[Key], dict[Key, list[Key]]]:
    """The tensors seen through which all ways down lead, elementwise, from below; and the ways.

    Empty if there is none; the tensor itself where ways part at once, or where they lead to nothing
    but parameters of another shape.
    """
    for with_parameters in (True, False):
        edges = _region(one, run.dropped, with_parameters)
        every = reversed(_dominators(one.key, edges))
        found = [key for key in every if _usable(key, one, run.seen)]
        if found:
            return found, edges
    edges = _region(one, run.dropped, True)
    inner = any(not edges[key] for key in edges if key[1] >= 0)
    return ([] if inner and len(edges[one.key]) <= 1 else [one.key]), edges


def _usable(key: Key, one: Seen, seen: dict[Key, Seen]) -> bool:
    """Whether it was seen where it can be exchanged, and has an entry for each of the states."""
    it = seen.get(key)
    fits = it is not None and not it.inside and it.tensor.shape == one.tensor.shape
    return fits and key != one.key


def _region(one: Seen, dropped: set[Key], with_parameters: bool) -> dict[Key, list[Key]]:
    """The elementwise steps below a tensor: what each step's output is made of."""
    edges: dict[Key, list[Key]] = {}
    own, shape = one.key, one.tensor.shape
    todo: list[tuple[Any, Key]] = [(one.node, own)]
    for node, key in todo:  # which grows, and keeps the steps: their identities stay their own
        if key in edges:
            continue
        edges[key] = []
        leaf = hasattr(node, "variable")
        ends = leaf or _named(node, MOVING) or _shape(node) != tuple(shape)
        ends = ends or len(edges) > STEPS or key in dropped
        if ends and key != own:
            continue
        for below, number in node.next_functions:
            if below is None:
                continue
            is_leaf = hasattr(below, "variable")
            other = is_leaf and below.variable.shape != shape
            if other and not with_parameters:
                continue
            lower = (id(below.variable), -1) if is_leaf else (id(below), number)
            edges[key].append(lower)
            todo.append((below, lower))
    return edges


def _dominators(own: Key, edges: dict[Key, list[Key]]) -> list[Key]:
    """What all ways from ``own`` to the bottom pass through, from above."""
    order: list[Key] = []
    todo, done = [(own, False)], set()
    while todo:  # what lies below comes first
        key, is_left = todo.pop()
        if is_left:
            order.append(key)
        elif key not in done:
            done.add(key)
            todo.append((key, True))
            todo += [(lower, False) for lower in edges.get(key, ())]
    order.reverse()
    down = {key: 1 if not edges.get(key) else 0 for key in order}
    for key in reversed(order):
        down[key] += sum(down[lower] for lower in edges.get(key, ()))
    up = dict.fromkeys(order, 0)
    up[own] = 1
    for key in order:
        for lower in edges.get(key, ()):
            up[lower] += up[key]
    return [key for key in order if up[key] * down[key] == down[own]]


def _has_slope(unit: Unit) -> bool:
    g = unit.flowing(torch.ones_like(unit.states.tensor))
    return g is not None and bool((g != 0).any())


# ---- the unit once more, at other points ---------------------------------------------------------


class _Reached(BaseException):
    """The states of the unit are there; the rest of the run is not needed."""


@dataclass
class _Swap(TorchFunctionMode):
    """A run with other points in the place of one tensor, up to where the states are."""

    points: Place | None
    states: Place
    handed: Tensor
    products: dict[int, Product]
    calls: int = 0
    first: Tensor | None = None
    reached: Tensor | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_look(func):
            return func(*args, **kwargs)
        call, self.calls = self.calls, self.calls + 1
        if self.points == Place(call, False, getattr(self.points, "index", -1)):
            assert self.points is not None
            self.first = list(tensors((args, kwargs)))[self.points.index]
        if self.first is not None:
            args, kwargs = _exchanged((args, kwargs), self.first, self.handed)
        self._reach(call, False, (args, kwargs))
        known = self.products.get(call)
        fits = known is not None and known.fits(func, (args, kwargs))
        out = known.out.clone() if known is not None and fits else func(*args, **kwargs)
        if self.points is not None and self.points.result and self.points.call == call:
            out = _exchanged(out, list(tensors(out))[self.points.index], self.handed)
        self._reach(call, True, out)
        return out

    def _reach(self, call: int, result: bool, value: Any) -> None:
        if self.states.call == call and self.states.result is result:
            self.reached = list(tensors(value))[self.states.index]
            raise _Reached


def _exchanged(value: Any, old: Tensor, new: Tensor) -> Any:
    """The value with one tensor in it exchanged."""
    if value is old:
        return new
    if isinstance(value, dict):
        return {key: _exchanged(part, old, new) for key, part in value.items()}
    if isinstance(value, list):
        return [_exchanged(part, old, new) for part in value]
    if isinstance(value, tuple):
        parts = [_exchanged(part, old, new) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


#: To one question the model is run again so many times at the most.
RUNS = 256


@dataclass
class Replay(Subject):
    """A unit of a model, asked by running the model again.

    Attributes:
        module, inputs: the model and what it is run on.
        unit: which.
        other: the same unit in a run in evaluation mode, where functions are called in another
            order; None if it is not there.
        positions: the entries of the pre-activation that are asked; None for all.
    """

    module: torch.nn.Module
    inputs: tuple[Any, ...]
    unit: Unit
    other: Unit | None = None
    kept: Kept = field(default_factory=lambda: Kept(None))
    positions: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.unit.points is not None
        points = self.unit.points.tensor
        self.shape, self.device, self.dtype = points.shape, points.device, points.dtype
        self.size, self.most = points.numel(), RUNS * points.numel()

    def states(self, a: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(a, (0, -len(a) % self.size))
        return torch.cat([self._once(part) for part in padded.split(self.size)])[: len(a)]

    def _once(self, a: Tensor) -> Tensor:
        if self.positions is None:
            handed = self._handed(a.reshape(self.shape))
        else:
            handed = a.new_zeros(self.shape.numel()).index_put((self.positions,), a)
            handed = self._handed(handed.reshape(self.shape))
        before = handed.detach().reshape(-1).clone()
        x = self._check(before, handed, self._run(handed)).reshape(-1)
        # A ReLU in place before a unit is no fault of the unit; that the states replace it is
        mine = torch.equal(handed.detach().reshape(-1), x.detach())
        self.changes_input = self.changes_input and mine
        return x if self.positions is None else x[self.positions]

    def _run(self, handed: Tensor) -> Tensor:
        points, states = self.unit.points, self.unit.states.place
        assert points is not None
        self.kept.back()
        place = None if self.unit.parameter else points.place
        swap, inputs = _Swap(place, states, handed, self.unit.products), self.inputs
        if points.place.call == -3:
            inputs = _exchanged(inputs, points.tensor, handed)
        try:
            with settled(self.device), self.kept.at_home(), swap:
                if self.unit.parameter:
                    own = {self.unit.parameter: handed}
                    out = torch.func.functional_call(self.module, own, inputs)
                else:
                    out = self.module(*inputs)
            if states.call == -1:
                return list(tensors(out))[states.index]
        except _Reached:
            pass
        except FAULTS as error:  # maybe only because it was cut off
            if swap.reached is None:
                raise raised(error, "run again, the model") from error
        if swap.reached is None:
            raise RefusedError("raises", "run again, the model takes another way")
        return swap.reached

    def run(
        self, a: Tensor, flow: Tensor | float = 1.0, *, seed: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        x, g = super().run(a, flow, seed=seed)
        if g is None and self.unit.alive:
            raise RefusedError("raises", "run again, the model does not take other points for it")
        return x, g

    @property
    def has_mode(self) -> bool:
        return True

    @contextmanager
    def in_eval(self) -> Iterator[None]:
        if self.other is None:
            raise RefusedError("raises", "in evaluation mode the unit was not found")
        self.unit, self.other = self.other, self.unit
        try:
            with mode(self.module, training=False):
                yield
        finally:
            self.unit, self.other = self.other, self.unit

    def as_batch(self) -> tuple[Subject, int]:
        is_batch = self.positions is None and not self.unit.parameter and len(self.shape) > 1
        return self, self.shape[0] if is_batch else 0

    def narrow(self) -> None:
        """To the first channel (axis 1, or 0 of a weight), then to the first entry of each row."""
        index = torch.arange(self.shape.numel()).reshape(self.shape)
        self._keep_first(index, 1 if len(self.shape) > 1 and not self.unit.parameter else 0)
        if self.size < LEAST:
            super().narrow()
        self.most = RUNS * self.size
