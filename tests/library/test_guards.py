"""What exact sums accept and refuse: layers, losses and sizes, by what they do when tried."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils import parametrizations

import sbnlib.exact
from sbnlib import SBN, exact_expectation, exact_gradient, exact_moments, guards
from sbnlib.exact import all_states
from sbnlib.nn import Sign

Loss = Callable[[Tensor], Tensor]


class Function(nn.Module):
    """A layer given by a function of itself and x, with the modules it uses."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)
        self.register_buffer("kept", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def after_linear(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Makes a layer of 3 inputs and 4 units: a function of the rows of an ``nn.Linear``."""
    return lambda: Function(lambda self, x: function(self.parts[0](x)), nn.Linear(3, 4))


def linear_and(*parts: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(3, 4), *parts)


def net_with(layer: nn.Module, place: int, dtype: torch.dtype = torch.float64) -> SBN:
    """A net of two layers with ``layer``, 3 inputs and 4 units, as the first or the second."""
    torch.manual_seed(0)
    layers = [layer, nn.Linear(4, 2)] if place == 0 else [nn.Linear(3, 3), layer]
    return SBN(*layers).to(dtype)


def some_inputs(batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(-1.2, 1.4, 3 * batch, dtype=dtype).reshape(batch, 3).sin()


def smooth(x: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1.5, x.shape[-1], dtype=x.dtype)
    return torch.exp(0.5 * x @ weight)


@contextmanager
def nothing_changes(module: nn.Module) -> Iterator[None]:
    """Parameters, buffers (the tensors themselves too), modes and random numbers stay."""
    kept = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    before = {name: t.detach().clone() for name, t in kept.items()}
    modes, random = [m.training for m in module.modules()], torch.get_rng_state()
    yield
    after = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in module.modules()] == modes
    for name, t in kept.items():
        assert after[name] is t, name
        assert torch.equal(t.nan_to_num(), before[name].nan_to_num()), name


def refused(layer: nn.Module, place: int, match: str, **options: Any) -> None:
    net = net_with(layer, place, **options)
    dtype = next(net.parameters()).dtype
    for function in (exact_expectation, exact_gradient):
        with nothing_changes(net), pytest.raises(ValueError, match=match) as caught:
            function(net, some_inputs(dtype=dtype), smooth)
        assert f"layer {place} (" in str(caught.value)


places = pytest.mark.parametrize("place", [0, 1])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


# ------------------------------------------------------------------------- enumeration


def enumerated(net: SBN, inputs: Tensor, loss: Loss) -> Tensor:
    """E L for each input, over all paths, each layer called with one row; logistic noise."""

    def walk(k: int, x: Tensor, b: int) -> Tensor:
        if k == len(net.layers):
            return loss(x.expand(len(inputs), -1))[b]
        a = net.layers[k](x[None].clone())[0]
        total = torch.zeros((), dtype=torch.float64)
        for state in itertools.product((-1.0, 1.0), repeat=len(a)):
            s = torch.tensor(state, dtype=torch.float64)
            total = total + torch.sigmoid(s * a).prod() * walk(k + 1, s, b)
        return total

    return torch.stack([walk(0, v, b) for b, v in enumerate(inputs)])


def same_as_enumerated(net: SBN, inputs: Tensor, loss: Loss) -> None:
    expected = enumerated(net, inputs, loss)
    slopes = torch.autograd.grad(expected.mean(), list(net.parameters()), allow_unused=True)
    with nothing_changes(net):
        value, gradient = exact_gradient(net, inputs, loss)
        values = exact_expectation(net, inputs, loss)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    assert value.item() == pytest.approx(expected.mean().item(), rel=1e-12)
    for (name, mine), slope in zip(gradient.items(), slopes, strict=True):
        theirs = torch.zeros_like(mine) if slope is None else slope
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12, msg=name)


# ------------------------------------------------------------------- layers that are refused

CHANCE = {
    "Dropout": linear_and(nn.Dropout(0.5)),
    "a dropout of 1e-5": linear_and(nn.Dropout(1e-5)),
    "AlphaDropout": linear_and(nn.AlphaDropout(0.5)),
    "Dropout1d": linear_and(nn.Dropout1d(0.5)),
    "RReLU": linear_and(nn.RReLU()),
}


@dtypes
@places
@pytest.mark.parametrize("name", CHANCE)
def test_a_layer_that_draws_random_numbers_is_refused(
    name: str, place: int, dtype: torch.dtype
) -> None:
    kind = name.split()[-1] if "1e-5" not in name else "Dropout"
    match = rf"{kind}\) draws random numbers; call net.eval\(\) first"
    refused(CHANCE[name](), place, match, dtype=dtype)


@pytest.mark.parametrize("name", CHANCE)
def test_in_evaluation_mode_such_a_layer_is_taken(name: str) -> None:
    same_as_enumerated(net_with(CHANCE[name](), 0).eval(), some_inputs(1), smooth)


@places
def test_a_layer_with_a_generator_of_its_own_is_refused(place: int) -> None:
    draws = torch.Generator()
    noisy = after_linear(lambda a: a + torch.rand(a.shape, generator=draws, dtype=a.dtype))
    refused(noisy(), place, "gives other numbers when it is called again$")


@places
def test_spectral_norm_in_training_mode_is_refused_and_put_back(place: int) -> None:
    layer = parametrizations.spectral_norm(nn.Linear(3, 4))
    nn.init.constant_(layer.parametrizations.weight[0]._v, 0.5)  # its iteration starts anew
    refused(layer, place, "_SpectralNorm.* gives other numbers .*; call net.eval")


def ghost(a: Tensor) -> Tensor:
    pairs = a.reshape(-1, 2, 4)
    return (pairs - pairs.mean(1, keepdim=True)).reshape(-1, 4)


def attention() -> nn.Module:
    part = nn.MultiheadAttention(4, 1)
    return Function(lambda self, x: part(*3 * [self.parts[0](x)])[0], nn.Linear(3, 4), part)


COUPLED = {
    "centred": after_linear(lambda a: a - a.mean(0)),
    "softmax over the rows": linear_and(nn.Softmax(0)),
    "batch norm without statistics": linear_and(nn.BatchNorm1d(4, track_running_stats=False)),
    "pairs of rows": after_linear(ghost),
    "running sums": after_linear(lambda a: a.cumsum(0)),
    "the row before": after_linear(lambda a: a.roll(1, 0)),
    "the row behind": after_linear(lambda a: a.roll(-1, 0)),
    "attention": attention,
}


@dtypes
@places
@pytest.mark.parametrize("name", COUPLED)
def test_a_layer_that_looks_at_the_other_rows_is_refused(
    name: str, place: int, dtype: torch.dtype
) -> None:
    refused(COUPLED[name](), place, r"\) depends on the other rows$", dtype=dtype)


@dtypes
@places
def test_batch_norm_in_training_mode_is_refused_with_the_cure(
    place: int, dtype: torch.dtype
) -> None:
    match = r"BatchNorm1d\) depends on the other rows; call net.eval\(\) first"
    refused(linear_and(nn.BatchNorm1d(4))(), place, match, dtype=dtype)


def test_other_rows_are_seen_at_any_width_below() -> None:
    for width in range(1, 25):
        torch.manual_seed(0)
        centred = Function(lambda self, x: self.parts[0](x) - self.parts[0](x).mean(0),
                           nn.Linear(width, 2))  # fmt: skip
        with pytest.raises(ValueError, match="layer 1 .*the other rows"):
            guards.check_layers(SBN(nn.Linear(3, width), centred).double(), some_inputs())


def test_other_rows_are_seen_for_any_number_of_inputs() -> None:
    net = net_with(COUPLED["centred"](), 0)
    for batch in (*range(2, 70), 128, 200, 1000):
        with pytest.raises(ValueError, match="layer 0 .*the other rows"):
            guards.check_layers(net, some_inputs(batch))


def table(rows: int) -> nn.Module:
    places = nn.Parameter(torch.linspace(-1, 1, 4 * rows).reshape(rows, 4))
    layer = Function(lambda self, x: self.parts[0](x) + places[: len(x)], nn.Linear(3, 4))
    layer.places = places
    return layer


@dtypes
@places
@pytest.mark.parametrize("layer", [
    lambda: table(1000), after_linear(lambda a: a * len(a)),
    after_linear(lambda a: torch.cat([a[:1] + 1, a[1:]])),
    after_linear(lambda a: torch.cat([a[:-1], a[-1:] + 1])),
], ids=["a table of positions", "the number of rows", "the first row", "the last row"])  # fmt: skip
def test_a_layer_that_looks_at_the_place_of_a_row_is_refused(
    layer: Callable[[], nn.Module], place: int, dtype: torch.dtype
) -> None:
    refused(layer(), place, r"\) depends on where a row stands, or how many$", dtype=dtype)


@places
def test_a_layer_for_a_fixed_number_of_rows_is_refused(place: int) -> None:
    refused(table(2), place, "must map rows of 3 .* with 64 rows it raised RuntimeError")


def count(self: Any, x: Tensor) -> Tensor:
    self.kept = self.kept + 1  # another tensor, not the same one changed
    return self.parts[0](x)


def count_in_place(self: Any, x: Tensor) -> Tensor:
    self.kept += 1
    return self.parts[0](x)


@places
@pytest.mark.parametrize("function", [count, count_in_place])
def test_a_layer_that_changes_its_buffers_is_refused_and_put_back(
    function: Callable, place: int
) -> None:
    refused(Function(function, nn.Linear(3, 4)), place, r"\) changes its own kept$")


def test_a_buffer_that_holds_nan_and_is_not_used_is_no_change() -> None:
    layer = Function(lambda self, x: self.parts[0](x), nn.Linear(3, 4))
    layer.kept.fill_(math.nan)
    same_as_enumerated(net_with(layer, 1), some_inputs(), smooth)


def test_a_layer_that_draws_at_one_state_only_is_noticed_in_the_sum() -> None:
    def rarely(self: Any, x: Tensor) -> Tensor:
        return self.parts[0](x) + float((x > 0).all(1).any() and torch.rand(()) < 2)

    net = SBN(nn.Linear(3, 12), Function(rarely, nn.Linear(12, 1))).double()
    with nothing_changes(net), pytest.raises(ValueError, match="must not depend on chance"):
        exact_expectation(net, some_inputs(), smooth)


def test_a_loss_that_draws_at_one_state_only_is_noticed_in_the_sum() -> None:
    def rarely(x: Tensor) -> Tensor:
        return smooth(x) + float((x < 0).all(-1).any() and torch.rand(()) < 2)

    net = SBN(nn.Linear(3, 12)).double()
    for function in (exact_expectation, exact_moments):
        extra = ("zgr",) if function is exact_moments else ()
        with nothing_changes(net), pytest.raises(ValueError, match="must not depend on chance"):
            function(net, some_inputs(), rarely, *extra)


# ------------------------------------------------------- layers that do not map rows to rows


@places
@pytest.mark.parametrize(
    "layer, match",
    [
        (nn.Linear(5, 4), r"must map rows of 3 .* raised RuntimeError: mat1 and mat2"),
        (nn.Conv2d(1, 2, 3), r"\(Conv2d\) must map rows .* raised RuntimeError"),
        (nn.RNN(3, 4), r"\(RNN\) must map rows of 3 .* made tuple"),
        (nn.Sequential(nn.Linear(3, 4), nn.Flatten(0)), r"of Linear, Flatten\) .* made \(256,\)"),
        (after_linear(lambda a: a[1:])(), r"from \(64, 3\) it made \(63, 4\)"),
        (after_linear(lambda a: a[:, None])(), r"from \(64, 3\) it made \(64, 1, 4\)"),
        (after_linear(lambda a: a.bfloat16())(), "it gives torch.bfloat16"),
        (nn.LazyLinear(4), "has no weights yet"),
    ],
    ids=["width", "Conv2d", "RNN", "flat", "a row less", "an axis more", "half precision", "lazy"],
)
def test_what_does_not_map_rows_to_rows_is_refused(
    layer: nn.Module, match: str, place: int
) -> None:
    net = SBN(*([layer, nn.Linear(4, 2)] if place == 0 else [nn.Linear(3, 3), layer]))
    for function in (exact_expectation, exact_gradient):
        with pytest.raises(ValueError, match=rf"layer {place} .*{match}"):
            function(net, some_inputs(dtype=torch.float32), smooth)


def test_a_width_that_does_not_fit_the_layer_below_is_told_as_states() -> None:
    net = SBN(nn.Linear(3, 3), nn.Linear(4, 2)).double()
    with pytest.raises(ValueError, match="layer 1 .*must map rows of 3 states to rows"):
        exact_expectation(net, some_inputs(), smooth)
    with pytest.raises(ValueError, match="layer 0 .*must map rows of 2 inputs to rows"):
        exact_expectation(net, torch.ones(1, 2).double(), smooth)


def test_images_are_refused_with_the_name_of_the_convolution() -> None:
    net = SBN(nn.Conv2d(1, 2, 3)).double()
    with pytest.raises(ValueError, match=r"inputs must have shape \(B, n_0\).*Conv2d"):
        exact_expectation(net, torch.ones(1, 1, 5, 5).double(), lambda x: x.sum((-1, -2, -3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_refused(dtype: torch.dtype) -> None:
    net, inputs = net_with(nn.Linear(3, 4), 0, torch.float32), some_inputs(dtype=torch.float32)
    for function in (exact_expectation, exact_gradient, exact_moments):
        extra = ("zgr",) if function is exact_moments else ()
        with torch.autocast("cpu", dtype), pytest.raises(ValueError, match=f"autocast.*{dtype}"):
            function(net, inputs, smooth, *extra)


@places
def test_a_layer_that_turns_autocast_on_is_refused(place: int) -> None:
    def half(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.parts[0](x)

    layer = Function(half, nn.Linear(3, 4))
    refused(layer, place, "it gives torch.bfloat16, not float32 or float64", dtype=torch.float32)


def test_a_net_in_half_precision_is_refused() -> None:
    net = net_with(nn.Linear(3, 4), 0, torch.bfloat16)
    with pytest.raises(ValueError, match="layer 0 .*torch.bfloat16, not float32"):
        exact_expectation(net, some_inputs(dtype=torch.bfloat16), smooth)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_inputs_and_parameters_that_are_not_finite_are_refused(bad: float) -> None:
    net, inputs = net_with(nn.Linear(3, 4), 0), some_inputs()
    inputs[1, 2] = bad
    with pytest.raises(ValueError, match="inputs must be finite"):
        exact_expectation(net, inputs, smooth)
    with torch.no_grad():
        net.layers[1].bias[0] = bad
    with pytest.raises(ValueError, match="layer 1 .*gives NaN or infinity, which its bias holds"):
        exact_expectation(net, some_inputs(), smooth)


def test_a_pre_activation_that_is_infinite_at_one_state_is_refused() -> None:
    def rarely(self: Any, x: Tensor) -> Tensor:
        return self.parts[0](x) / (1 - (x > 0).all(1, keepdim=True).to(x.dtype))

    net = SBN(nn.Linear(3, 12), Function(rarely, nn.Linear(12, 1))).double()
    with pytest.raises(ValueError, match="a must be finite"):
        exact_expectation(net, some_inputs(), smooth)


# ------------------------------------------------------------------ layers that are accepted


class Backwards(nn.Module):
    """Registers what runs last first."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first = nn.Linear(5, 4), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Matrix(nn.Module):
    """No ``nn.Linear`` in it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w).square() - 1


ACCEPTED: dict[str, Callable[[], nn.Module]] = {
    "GLU": lambda: nn.Sequential(nn.Linear(3, 8), nn.GLU()),
    "registered backwards": Backwards,
    "a matrix": Matrix,
    "a skip connection": lambda: Function(
        lambda self, x: self.parts[0](x) + torch.cat([x, x[:, :1]], 1), nn.Linear(3, 4)
    ),
    "bilinear": lambda: Function(lambda self, x: self.parts[0](x, x), nn.Bilinear(3, 3, 4)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.Flatten()),
    "layer norm": linear_and(nn.LayerNorm(4)),
    "group norm": linear_and(nn.GroupNorm(2, 4)),
    "in place": lambda: Function(lambda self, x: self.parts[0](x.mul_(0.7)), nn.Linear(3, 4)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(3, 4)),
}


@pytest.mark.slow
@places
@pytest.mark.parametrize("name", ACCEPTED)
def test_any_function_of_one_row_is_taken(name: str, place: int) -> None:
    for batch in (1, 2):
        inputs = some_inputs(batch)
        same_as_enumerated(net_with(ACCEPTED[name](), place), inputs, smooth)
        assert torch.equal(inputs, some_inputs(batch))


def test_a_layer_may_be_defined_at_the_inputs_only() -> None:
    # log of a state is NaN, and one_hot of -1 raises: the first layer is not tried on states
    inputs = torch.tensor([[0.0, 1.0, 2.0], [2.0, 2.0, 1.0]]).double()
    log = Function(lambda self, x: self.parts[0](torch.log(x + 0.5)), nn.Linear(3, 4))
    one_hot = Function(lambda self, x: self.parts[0](nn.functional.one_hot(x.long(), 3).to(x)
                                                     .flatten(1)), nn.Linear(9, 4))  # fmt: skip
    for layer in (log, one_hot):
        same_as_enumerated(net_with(layer, 0), inputs, smooth)


@dtypes
@pytest.mark.parametrize("width", [3, 100, 784])
def test_rounding_is_no_dependence(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = [nn.Linear(width, 300), nn.LayerNorm(300), nn.ReLU(), nn.Linear(300, 20)]
    net = SBN(nn.Sequential(*parts), nn.Linear(20, 24)).to(dtype)
    for batch in (1, 7, 100):
        outputs = guards.check_layers(net, torch.rand(batch, width, dtype=dtype))
        assert [out.shape[1] for out in outputs] == [20, 24]


def test_rounding_that_differs_with_the_number_of_rows_is_no_dependence() -> None:
    for dtype in (torch.float32, torch.float64):
        eps = torch.finfo(dtype).eps / 4
        layer = after_linear(lambda a: a * (1 + eps * len(a)))()  # noqa: B023
        guards.check_layers(net_with(layer, 1, dtype), some_inputs(dtype=dtype))


def test_a_hook_that_changes_what_a_layer_gives_belongs_to_it() -> None:
    net = net_with(nn.Linear(3, 4), 1)
    net.layers[1].register_forward_hook(lambda module, args, out: 2 * out + args[0].sum(1)[:, None])
    same_as_enumerated(net, some_inputs(), smooth)


def test_a_net_with_a_forward_of_its_own_is_refused() -> None:
    class Skip(SBN):
        def forward(self, inputs: Tensor, **options: Any) -> Tensor:
            return super().forward(inputs, **options) + inputs

    with pytest.raises(ValueError, match="net must .* Skip has its own forward"):
        exact_expectation(Skip(nn.Linear(3, 3)).double(), some_inputs(), smooth)


def test_exact_sums_stand_inside_transforms_of_torch() -> None:
    net, inputs = net_with(nn.Linear(3, 4), 0), some_inputs(3)

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, inputs: Tensor) -> Tensor:
            return exact_expectation(self.net, inputs, smooth).mean()

    mean = Mean()
    named = {name: p.detach() for name, p in mean.named_parameters()}
    slopes = torch.func.grad(lambda p: functional_call(mean, p, inputs))(named)
    _, gradient = exact_gradient(net, inputs, smooth)
    for name, g in gradient.items():
        torch.testing.assert_close(slopes[f"net.{name}"], g)
    each = vmap(lambda v: exact_expectation(net, v[None], smooth)[0])(inputs)
    torch.testing.assert_close(each, exact_expectation(net, inputs, smooth))
    both = {name: torch.stack([p, 2 * p]) for name, p in named.items()}
    stacked = vmap(lambda p: functional_call(mean, p, inputs))(both)
    assert stacked[0].item() == pytest.approx(exact_gradient(net, inputs, smooth)[0].item())
    heads = torch.eye(2).double()
    by_head = vmap(lambda h: exact_expectation(net, inputs, lambda x: x @ h))(heads)
    torch.testing.assert_close(by_head[1], exact_expectation(net, inputs, lambda x: x[..., 1]))


# ------------------------------------------------------------------------------------- losses


def head(x: Tensor) -> Tensor:
    return x @ torch.linspace(-1, 1, 3 * x.shape[-1], dtype=x.dtype).reshape(-1, 3).sin()


def cross_entropy(y: Tensor) -> Loss:
    """Closes over one class an input, y of shape (B,)."""

    def loss(x: Tensor) -> Tensor:
        logits = head(x).movedim(-1, 1 if x.dim() > 2 else -1)
        target = y.expand(x.shape[:-1])
        return nn.functional.cross_entropy(logits, target, reduction="none")

    return loss


@pytest.mark.parametrize("batch", [1, 2, 5, 70])
def test_a_loss_that_closes_over_targets_row_by_row_is_taken(batch: int) -> None:
    y = torch.arange(batch) % 3
    net, inputs = net_with(nn.Linear(3, 4), 1), some_inputs(batch)
    values = exact_expectation(net, inputs, cross_entropy(y))
    log_p = head(all_states(4, dtype=torch.float64)).log_softmax(-1)  # by hand, input by input
    for b in range(batch):
        expected = exact_expectation(net, inputs[b : b + 1], lambda x, b=b: at(x, -log_p[:, y[b]]))
        assert values[b].item() == pytest.approx(expected.item(), rel=1e-12)
    if batch == 2:
        same_as_enumerated(net, inputs, cross_entropy(y))


def at(x: Tensor, values: Tensor) -> Tensor:
    """A table of values, one for each state, at x."""
    digits = 2 ** torch.arange(x.shape[-1] - 1, -1, -1)
    return values[((x > 0) * digits).sum(-1)]


BLACK_BOXES: dict[str, Loss] = {
    "numpy": lambda x: torch.from_numpy((x.numpy().sum(-1) > 0).astype(float)),
    "a step": lambda x: (x.sum(-1) > 0).double(),
    "a table": lambda x: at(x, torch.linspace(0, 1, 16).double()),
    "works on a copy": lambda x: x.clone().mul_(0.5).sum(-1),
    "parity": lambda x: x.prod(-1),
    "constant": lambda x: torch.ones(x.shape[:-1], dtype=x.dtype),
}


@pytest.mark.parametrize("name", BLACK_BOXES)
def test_any_other_function_of_a_row_is_taken(name: str) -> None:
    net = net_with(nn.Linear(3, 4), 1)
    with torch.no_grad():
        expected = enumerated(net, some_inputs(), BLACK_BOXES[name])
        values = exact_expectation(net, some_inputs(), BLACK_BOXES[name])
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)


def test_a_loss_is_tried_with_gradients_as_it_will_be_used() -> None:
    net, inputs = net_with(nn.Linear(3, 4), 1), some_inputs()
    weight = torch.linspace(-1, 1, 4).double().requires_grad_()

    def by_numpy(x: Tensor) -> Tensor:  # raises where a gradient is wanted
        return torch.from_numpy((x @ weight).numpy())

    def penalty(x: Tensor) -> Tensor:  # raises where none is
        (slope,) = torch.autograd.grad(smooth(x).sum(), x, create_graph=True)
        return slope.square().sum(-1)

    def plain(x: Tensor) -> Tensor:  # the same, by hand
        w = torch.linspace(-1, 1.5, 4, dtype=x.dtype)
        return (0.5 * smooth(x)).square() * w.square().sum()

    with torch.no_grad():
        values = exact_expectation(net, inputs, by_numpy)
        torch.testing.assert_close(values, exact_expectation(net, inputs, lambda x: x @ weight))
        mine, theirs = (exact_moments(net, inputs, loss, "zgr") for loss in (penalty, plain))
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-10, atol=1e-12)


def over_axis(axis: int, how: str) -> Loss:
    """A loss whose values look at each other along an axis of (..., B)."""

    def loss(x: Tensor) -> Tensor:
        values = smooth(x)
        if how == "softmax":
            return values.softmax(axis)
        return values - (values.mean(axis, keepdim=True) if how == "mean" else values.roll(1, axis))

    return loss


COUPLING = {
    f"{how} over {'the batch' if axis == -1 else 'the axis in front'}": over_axis(axis, how)
    for how in ("mean", "softmax", "neighbour")
    for axis in (-1, 0)
}


@dtypes
@pytest.mark.parametrize("batch", [2, 65])
@pytest.mark.parametrize("name", COUPLING)
def test_a_loss_that_couples_rows_is_refused(name: str, batch: int, dtype: torch.dtype) -> None:
    net = net_with(nn.Linear(3, 4), 1, dtype)
    with pytest.raises(ValueError, match="loss must give each row of x a value of its own"):
        exact_expectation(net, some_inputs(batch, dtype), COUPLING[name])
    with pytest.raises(ValueError, match="loss must give each row of x a value of its own"):
        exact_moments(net, some_inputs(batch, dtype), COUPLING[name], "zgr")


@pytest.mark.parametrize("batch", [1, 2, 7, 65])
@pytest.mark.parametrize("of_row", [
    lambda x: x.sum(-1), lambda x: x.sum(-1).square(), lambda x: x.prod(-1),
], ids=["sum", "square", "parity"])  # fmt: skip
def test_a_coupling_is_seen_at_any_width(of_row: Loss, batch: int) -> None:
    for width in range(1, 25):
        like, n = torch.empty(0, width, dtype=torch.float64), -torch.ones(width)
        if of_row(n) == of_row(-n) and width == 1:
            continue  # the square of a sign is a constant: nothing to couple
        for axis in (0, -1)[: 1 + (batch > 1)]:
            loss = lambda x: of_row(x) - of_row(x).mean(axis, True)  # noqa: B023, E731
            with pytest.raises(ValueError, match="value of its own"):
                guards.check_loss(loss, batch, like)


def test_a_head_with_batch_norm_in_training_mode_is_refused_and_put_back() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x.flatten(0, -2)).unflatten(0, x.shape[:-1]).square().sum(-1)

    net, loss = net_with(nn.Linear(3, 4), 1), Head().double()
    with nothing_changes(loss), pytest.raises(ValueError, match="loss must give each row"):
        exact_expectation(net, some_inputs(), loss)
    same_as_enumerated(net, some_inputs(), loss.eval())


def test_a_loss_that_draws_is_refused_and_the_generator_put_back() -> None:
    net, draws = net_with(nn.Linear(3, 4), 1), torch.Generator()
    rarely = nn.Dropout(1e-5)
    losses = {
        "draws random numbers": [
            lambda x: smooth(x) * torch.rand(x.shape[:-1]),
            lambda x: smooth(rarely(x)),
        ],
        "gives other numbers when": [
            lambda x: smooth(x) * torch.rand(x.shape[:-1], generator=draws),
        ],
    }
    for match, cases in losses.items():
        for loss in cases:
            with nothing_changes(net), pytest.raises(ValueError, match=f"loss must .*{match}"):
                exact_gradient(net, some_inputs(), loss)


def written(x: Tensor) -> Tensor:
    x.data[..., 0] = 0.0  # which torch does not count as a change in place
    return x.sum(-1)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("loss", "pure"),
    [
        (lambda x: x.mul_(2).sum(-1), lambda x: 2 * x.sum(-1)),
        (lambda x: x.add_(1).square().sum(-1), lambda x: (x + 1).square().sum(-1)),
        (written, lambda x: x[..., 1:].sum(-1)),
    ],
    ids=["multiplied", "shifted", "written"],
)
def test_a_loss_may_change_its_copy_of_x(loss: Loss, pure: Loss, batch: int) -> None:
    net = net_with(nn.Linear(3, 4), 1)
    given = some_inputs(batch)
    assert torch.equal(exact_expectation(net, given, loss), exact_expectation(net, given, pure))
    found, expected = (exact_gradient(net, given, f)[1] for f in (loss, pure))
    assert all(torch.equal(g, expected[name]) for name, g in found.items())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_refused_wherever_it_is(bad: float) -> None:
    everywhere = lambda x: x.sum(-1) + bad  # noqa: E731
    at_one_state = lambda x: torch.where((x > 0).all(-1), bad, x.sum(-1))  # noqa: E731
    net = SBN(nn.Linear(3, 12)).double()
    for loss in (everywhere, at_one_state):
        with pytest.raises(ValueError, match=f"loss must be finite at every state, got {bad}"):
            exact_gradient(net, some_inputs(), loss)


# ------------------------------------------------------------------------------------- memory

GIB = 2**30


def give(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(guards, "free_bytes", lambda device: free)


@pytest.mark.parametrize("widths", [(20, 20), (24,), (14, 22), (23, 1)])
def test_what_does_not_fit_is_refused_before_any_work(
    widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, GIB)
    monkeypatch.setattr(sbnlib.exact, "all_states", lambda *args, **options: pytest.fail("work"))
    net = SBN(*(nn.Linear(n, m) for n, m in itertools.pairwise((3, *widths)))).double()
    names = "-".join(map(str, widths))
    for function in (exact_expectation, exact_gradient, exact_moments):
        extra = ("zgr",) if function is exact_moments else ()
        with pytest.raises(ValueError, match=f"layers of {names} units, 2 inputs, .* GiB, 1 GiB"):
            function(net, some_inputs(), smooth, *extra)


def test_twenty_units_are_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, GIB)
    net = SBN(nn.Linear(3, 20)).double()
    value, gradient = exact_gradient(net, some_inputs(1), lambda x: x.sum(-1))
    a = net.layers[0](some_inputs(1))  # E sum x_j = sum (2 sigmoid(a_j) - 1)
    expected = torch.tanh(a / 2).sum()
    (slope,) = torch.autograd.grad(expected, net.layers[0].bias)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient["layers.0.bias"], slope, rtol=1e-10, atol=1e-12)


def test_the_line_is_at_the_margin_over_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    give(monkeypatch, 1.61 * GIB)
    guards.check_memory(GIB, cpu, "a sum")
    give(monkeypatch, 1.59 * GIB)
    with pytest.raises(ValueError, match="a sum may take 1.6 GiB, 1.59 GiB are free on cpu"):
        guards.check_memory(GIB, cpu, "a sum")
    monkeypatch.setattr(guards, "free_bytes", lambda device: pytest.fail("asked"))
    guards.check_memory(1 << 25, cpu, "a small sum")


#: Peaks in MB over what the process held before, measured once (Linux, torch 2.13, one thread):
#: kind, bytes a number, B, widths, peak.
PEAKS = [
    ("gradient", 8, 1, (14, 14), 100), ("value", 8, 1, (14, 14), 64),
    ("gradient", 8, 1, (12, 16), 67), ("value", 8, 1, (12, 16), 39),
    ("gradient", 8, 1, (16, 12), 217), ("value", 8, 1, (16, 12), 143),
    ("gradient", 8, 1, (20,), 209), ("value", 8, 1, (20,), 192),
    ("gradient", 8, 8, (12, 12, 12), 63), ("value", 8, 8, (12, 12, 12), 11),
    ("gradient", 4, 1, (14, 14), 52), ("gradient", 4, 16, (14, 12), 105),
    ("gradient", 8, 1, (18, 2), 84), ("value", 8, 1, (18, 2), 61),
    ("gradient", 8, 64, (12, 10), 113), ("value", 8, 64, (12, 10), 40),
    ("gradient", 8, 1, (18, 10), 487), ("gradient", 8, 1, (14, 14, 14), 169),
    ("gradient", 8, 1, (12, 12, 12, 12, 12), 43),
    ("gradient", 8, 1, (20, 1), 243), ("gradient", 8, 1000, (5, 12), 226),
    ("moments", 8, 1, (12, 12), 193), ("moments", 8, 4, (12, 10), 132),
    ("moments", 8, 16, (10, 10), 135), ("moments", 4, 1, (14,), 70),
    ("moments", 8, 1, (14, 6), 173), ("moments", 8, 1, (6, 14), 148),
    ("moments", 8, 1, (11, 11, 11), 67), ("moments", 8, 100, (8, 8, 8), 110),
]  # fmt: skip


@pytest.mark.parametrize("kind, size, batch, widths, peak", PEAKS)
def test_the_estimate_is_near_the_peak(
    kind: str, size: int, batch: int, widths: tuple[int, ...], peak: float
) -> None:
    name = "_numbers_of_moments" if kind == "moments" else "_numbers_of_sum"
    with torch.set_grad_enabled(kind == "gradient"):
        estimate = size * getattr(sbnlib.exact, name)(list(widths), batch) / 1e6
    assert peak / guards.MARGIN <= estimate <= 2.2 * peak


def test_free_bytes_are_the_least_that_anyone_tells(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, told = torch.device("cpu"), {}
    monkeypatch.setattr(guards, "_number", lambda path, name="": told.get(str(path), math.inf))
    told["/proc/meminfo"] = 3 * GIB / 1024  # in kB
    assert guards.free_bytes(cpu) == 3 * GIB
    told |= {"/sys/fs/cgroup/memory.max": 2 * GIB, "/sys/fs/cgroup/memory.stat": 0.5 * GIB}
    assert guards.free_bytes(cpu) == 1.5 * GIB
    told["/sys/fs/cgroup/memory.max"] = 8 * GIB
    assert guards.free_bytes(cpu) == 3 * GIB
    told.clear()
    monkeypatch.setattr(guards, "_physical_bytes", lambda: 7.0)
    assert guards.free_bytes(cpu) == 7
    assert guards.free_bytes(torch.device("meta")) == math.inf


def test_on_a_gpu_what_torch_keeps_but_does_not_use_is_free_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB)
    assert guards.free_bytes(torch.device("cuda")) == 4 * GIB


def test_the_generator_of_a_gpu_is_watched_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"cuda": torch.tensor([1])}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: state[device.type].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state",
                        lambda new, device: state.update({device.type: new}))  # fmt: skip
    with guards.Watch(torch.device("cuda")) as watch:
        pass
    assert watch.drew == ""
    with guards.Watch(torch.device("cuda")) as watch:
        state["cuda"] = torch.tensor([2])
    assert watch.drew and state["cuda"].item() == 1


def test_numbers_are_read_from_the_system_s_files(tmp_path: Any) -> None:
    file = tmp_path / "stat"
    file.write_text("inactive_anon 7\nanon 4096\nMemAvailable:   123 kB\n")
    assert guards._number(file, "anon") == 4096
    assert guards._number(file, "MemAvailable:") == 123
    assert guards._number(file, "file") == math.inf
    file.write_text("max\n")
    assert guards._number(file) == math.inf
    file.write_text("512\n")
    assert guards._number(file) == 512
    assert guards._number(tmp_path / "missing") == math.inf
    assert 1 << 20 < guards.free_bytes(torch.device("cpu")) <= guards._physical_bytes()


def test_what_runs_otherwise_than_an_sbn_is_refused() -> None:
    class Triple(Sign):
        def forward(self, a: Tensor, **options: Any) -> Tensor:
            return super().forward(3 * a, **options)

    def flip(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return -out

    nets = [net_with(nn.Linear(3, 4), 1) for _ in range(3)]
    nets[0].register_forward_hook(flip)
    nets[1].sign.register_forward_hook(flip)
    nets[2].sign = Triple()
    for net, words in zip(nets, ("net has a", "net.sign has a", "is of Triple"), strict=True):
        with pytest.raises(ValueError, match=f"net must run as SBN does, .*{words}"):
            exact_expectation(net, some_inputs(), smooth)


def test_a_unit_inside_a_layer_has_no_exact_gradient() -> None:
    layer = nn.Sequential(nn.Linear(3, 4), Sign(mode="sign"), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="holds a binary unit in mode 'sign'"):
        exact_gradient(net_with(layer, 1), some_inputs(), smooth)


@pytest.mark.parametrize("name", ["net", "net.sign"])
def test_a_forward_or_a_hook_put_on_a_network_is_seen(name: str) -> None:
    def refused(words: str) -> None:
        with pytest.raises(ValueError, match=f"net must run as SBN does, {words}"):
            exact_expectation(net, torch.rand(2, 3), lambda x: x.sum(-1))

    net = SBN(nn.Linear(3, 4))
    module: nn.Module = net if name == "net" else net.sign
    for hook in (module.register_forward_hook, module.register_forward_pre_hook):
        handle = hook(lambda *args: None)
        refused(f"{name} has a forward hook")
        handle.remove()
    module.forward = lambda *args, **options: 10 * type(module).forward(module, *args, **options)
    refused(f"{'SBN' if name == 'net' else name} has its own forward")


@pytest.mark.parametrize("layers", [[nn.Linear(3, 4)], []], ids=["second", "first"])
def test_a_layer_without_units_is_named(layers: list[nn.Module]) -> None:
    empty = nn.Linear(3, 1)
    empty.forward = lambda x: x[:, :0]
    with pytest.raises(ValueError, match=rf"at least one .* layer {len(layers)} \(Linear\) has 0"):
        exact_expectation(SBN(*layers, empty), torch.rand(2, 3), lambda x: x.sum(-1))
