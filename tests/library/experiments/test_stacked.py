"""Trainings that are computed as one: each ends with the numbers that it has alone.

A training by itself is the plain loop of torch; here it is the reference.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sbnlib import data, network_estimator, registry, units
from sbnlib.data import Split
from sbnlib.experiments import classify, stacked, training, weights
from sbnlib.experiments.cache import Cache, Checkpoint
from sbnlib.experiments.classify import Config
from sbnlib.experiments.training import Classifier, Recipe, TanhNet, Training, backprop, fit
from sbnlib.network import SBN
from sbnlib.nn import BernoulliLinear
from sbnlib.noise import NOISES, Generators, Logistic

BATCH, STEPS = 26, 5  # of an epoch; no size here is a multiple of what a processor does at a time
INPUTS, CLASSES = 9, 4


@pytest.fixture(scope="module")
def fabric() -> Any:
    return weights.launch()


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    with training.threads(1):
        yield


def examples(dtype: torch.dtype = torch.float64) -> Split:
    draw = torch.Generator().manual_seed(0)
    count = STEPS * BATCH + 3  # the last, smaller batch is left out
    inputs = torch.randn(count, INPUTS, generator=draw, dtype=torch.float64).to(dtype)
    return Split(inputs, torch.randint(CLASSES, (count,), generator=draw))


Start = Callable[[int, int], nn.Linear]


def plain(linear: Start, *widths: int, noise: str = "logistic") -> nn.Module:
    sizes = (INPUTS, *widths)
    return SBN(*(linear(m, n) for m, n in zip(sizes, sizes[1:], strict=False)), noise=noise)


def twin(linear: Start, *widths: int, noise: str = "") -> nn.Module:
    return TanhNet(*plain(linear, *widths).layers)


def binary(linear: Start, *widths: int, noise: str = "logistic") -> nn.Module:
    """Batch norm, and Bernoulli weights."""
    norm = nn.Sequential(linear(INPUTS, widths[0]), nn.BatchNorm1d(widths[0]))
    layer = BernoulliLinear(widths[0], widths[-1], noise="gaussian")
    return SBN(norm, nn.Sequential(layer, nn.BatchNorm1d(widths[-1])), noise=noise)


Optimizers = Callable[[list[Tensor], float], list[torch.optim.Optimizer]]


def adam(parameters: list[Tensor], lr: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(parameters, lr)]


def two(parameters: list[Tensor], lr: float) -> list[torch.optim.Optimizer]:
    """One that the stack knows, one that it does not."""
    sgd = torch.optim.SGD(parameters[1:], lr, momentum=0.9)
    return [torch.optim.Adam(parameters[:1], 0.01, betas=(0.8, 0.9)), sgd]


def sgd(parameters: list[Tensor], lr: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(parameters, lr)]


def amsgrad(parameters: list[Tensor], lr: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(parameters, lr, amsgrad=True, weight_decay=0.1)]


def train_of(
    seed: int,
    net: Callable[..., nn.Module] = plain,
    widths: Sequence[int] = (13, 7),
    estimator: Any = "straight_through",
    noise: str = "logistic",
    dtype: torch.dtype = torch.float64,
    optimizers: Optimizers = adam,
    epochs: int = 1,
    **kept: Any,
) -> Training:
    """A training with a start, an order, a noise, a gain and a learning rate of its own."""
    draw = torch.Generator().manual_seed(seed)

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return training.linear(inputs, outputs, 1.0 + seed, draw, dtype)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body, head = net(linear, *widths, noise=noise).to(dtype), linear(widths[-1], CLASSES)
    own = backprop if net is twin else network_estimator(estimator)
    model = Classifier(body, head, own)
    moved = optimizers(list(model.parameters()), 0.01 * (1 + seed))
    return Training(model, moved, Recipe(seed, epochs, BATCH), **kept)


def state(run: Training) -> dict[str, Any]:
    """All tensors and numbers that a checkpoint would hold."""
    found: dict[str, Any] = dict(run.model.state_dict())
    for k, optimizer in enumerate(run.optimizers):
        for i, own in enumerate(optimizer.state.values()):
            found |= {f"{k} {i} {name}": value for name, value in own.items()}
    return found


def assert_same(one: Training, other: Training) -> None:
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    different = [k for k, v in a.items() if not (torch.equal(v, b[k]) if isinstance(v, Tensor)
                                                else v == b[k])]  # fmt: skip
    assert not different


def assert_as_alone(fabric: Any, count: int = 3, **options: Any) -> None:
    split = examples(options.get("dtype", torch.float64))
    alone, together = ([train_of(k, **options) for k in range(count)] for _ in range(2))
    for run in alone:
        fit(fabric, [run], split)
    with used(count if options.get("estimator") not in ALONE else None):
        fit(fabric, together, split)
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)
    first, second = (run.model.head.weight for run in together[:2])
    assert not torch.equal(first, second)


ALONE = ("psa", "psa_symmetric")


@contextmanager
def used(*sizes: int | None) -> Any:
    """Stacks of these sizes, and no others, are made inside; none for None."""
    seen: list[int] = []

    def watched(models: Sequence[Classifier], *given: Any, **options: Any) -> Any:
        seen.append(len(models))
        return stacked.as_one(models, *given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "as_one", watched)
        yield
    assert set(seen) == {size for size in sizes if size}


# Bit for bit -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("optimizers", [adam, two, amsgrad])
@pytest.mark.parametrize("net, widths", [(plain, (5,)), (plain, (13, 7, 3)), (twin, (13, 7)),
                                         (binary, (11, 6))])  # fmt: skip
def test_after_many_steps_every_training_is_what_it_is_alone(
    fabric: Any, net: Any, widths: tuple, optimizers: Any
) -> None:
    assert_as_alone(fabric, net=net, widths=widths, optimizers=optimizers, epochs=5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("estimator", registry.ESTIMATORS)
def test_every_estimator_does_in_a_stack_what_it_does_alone(
    fabric: Any, estimator: str, dtype: torch.dtype
) -> None:
    # On a CPU in float32 too: every operation is the one of the training alone
    assert_as_alone(fabric, estimator=estimator, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("estimator", ["straight_through", "zgr", "concrete", "arm", "rebar"])
def test_every_noise_does_in_a_stack_what_it_does_alone(
    fabric: Any, estimator: str, noise: str
) -> None:
    # torch computes the last elements of sigmoid, logit and atan2 by another routine than the rest
    assert_as_alone(fabric, estimator=estimator, noise=noise, widths=(10, 7))


@pytest.mark.slow
def test_the_sizes_of_the_book_are_exact_too(fabric: Any) -> None:
    # batch 50 of 100 units: 5000 is no multiple of 16, 400 bytes of biases none of 64
    config = Config(epochs=1, hidden=(100, 100), batch_size=50)
    digits = classify._on_device(config, fabric, classify.load(config))

    def run(seed: int) -> Training:
        model = classify.build(config, "sbn", digits, 3.0, seed)
        return Training(model, adam(list(model.parameters()), 0.01), Recipe(seed, 1, 50))

    alone, together = ([run(seed) for seed in range(4)] for _ in range(2))
    for one in alone:
        fit(fabric, [one], digits.train)
    fit(fabric, together, digits.train)
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("method", weights.METHODS)
def test_every_method_for_binary_weights_is_exact(
    fabric: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits, seen = data.load("digits"), []
    real = training.fit

    def watched(fabric: Any, trainings: list[Training], split: Split) -> None:
        seen.append(trainings)
        real(fabric, trainings, split)

    monkeypatch.setattr(weights, "fit", watched)
    size: dict[str, Any] = {"hidden": (13, 7), "epochs": 2, "batch_size": 90}
    settings = [(weights.METHODS[method].trials[k], k) for k in (2, 7, 12)]
    rows = [weights.train(method, s, k, digits, fabric=fabric, **size) for s, k in settings]
    named = [weights._named(method, s, k) for s, k in settings]
    with used(3):
        found = weights._train(digits, fabric, named, [None] * 3, after_epoch=int, **size)
        assert list(found) == rows
    for (one,), other in zip(seen[:3], seen[3], strict=True):
        assert_same(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_experiment_has_the_same_rows_in_stacks_of_any_size(dtype: str) -> None:
    sizes: dict[str, Any] = {"hidden": (12, 7), "seeds": 3, "epochs": 2, "lr": (0.03, 0.1)}
    rows = []
    for stack, made in ((1, ()), (4, (4, 3)), (3, (3,))):
        with used(*made):
            rows.append(classify.run(Config(dtype=dtype, stack=stack, **sizes))["rows"])
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_with_batch_norm_the_rows_are_the_same_in_stacks_of_any_size(dtype: str) -> None:
    """Training, and the statistics that are taken anew for each prediction."""
    sizes: dict[str, Any] = {"hidden": (12, 7), "seeds": 3, "epochs": 2, "lr": (0.03, 0.1)}
    options: dict[str, Any] = {"norm": "batch", "noise_scale": "auto", "init_gain": (1.0, 3.0)}
    rows = []
    for stack, made in ((1, ()), (4, (4, 3)), (3, (3,))):
        with used(*made):
            rows.append(classify.run(Config(dtype=dtype, stack=stack, **sizes, **options))["rows"])
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [e.name for e in registry.ESTIMATORS.values() if e.kind in classify.ON_THE_BATCH]
)
def test_every_estimator_of_the_batch_takes_batch_norm_in_a_stack(fabric: Any, name: str) -> None:
    config = Config(hidden=(11, 6), epochs=1, estimator=name, norm="batch", noise_scale=0.4)
    digits, runs = classify.load(config), [("sbn", 0.03, 1.0, seed) for seed in range(3)]
    alone = [classify.train(config, *run, fabric=fabric, data=digits) for run in runs]
    named = [dict(zip(("model", "lr", "init_gain", "seed"), run, strict=True)) for run in runs]
    with used(3):
        found = list(classify._train(config, fabric, digits, named, [None] * 3, after_epoch=int))
    assert found == alone


# One batched product -----------------------------------------------------------------------------


BATCHED: list[dict[str, Any]] = [
    {},
    {"estimator": "reinforce_loo"},
    {"net": twin},
    {"optimizers": two},
    # Batch norm takes a bias away: its gradient is rounding, which Adam would blow up to a step
    {"net": binary, "widths": (11, 6), "optimizers": sgd},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", BATCHED)
def test_batched_products_round_otherwise_and_no_more(fabric: Any, options: dict) -> None:
    options = options | {"epochs": 4}
    exact, batched = ([train_of(k, **options) for k in range(3)] for _ in range(2))
    fit(fabric, exact, examples())
    fit(fabric, batched, examples(), exact=False)
    for one, other in zip(exact, batched, strict=True):
        for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(q, p, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_batched_products_are_one_product_for_all(fabric: Any) -> None:
    def calls(exact: bool, count: int) -> int:
        runs = [train_of(k, net=twin) for k in range(count)]
        with torch.profiler.profile() as profile:
            fit(fabric, runs, examples(), exact=exact)
        names = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
        return sum(row.count for row in profile.key_averages() if row.key in names)

    assert calls(False, 2) == calls(False, 5)
    assert calls(True, 5) * 2 == calls(True, 2) * 5


def test_in_float32_a_step_is_the_same_to_rounding(fabric: Any) -> None:
    one_step = Split(*(t[:BATCH] for t in (examples().inputs.float(), examples().labels)))
    alone, together = ([train_of(k, dtype=torch.float32) for k in range(3)] for _ in range(2))
    for run in alone:
        fit(fabric, [run], one_step)
    fit(fabric, together, one_step, exact=False)
    for one, other in zip(alone, together, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):  # of the gradient, which Adam's first step forgets
            for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
                a, b = (run.optimizers[0].state[x][name] for run, x in ((one, p), (other, q)))
                torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_in_float32_a_stack_trains_as_well_as_its_trainings_do_alone() -> None:
    # One rounding turns a sign and the run is another one: the mean over seeds is the same. A
    # difference of 4.5 standard errors of Welch's has p = 6e-4 with 13 degrees of freedom.
    config = Config(hidden=(30,), epochs=8, dtype="float32")
    fabric = classify.launch(config)
    digits = classify._on_device(config, fabric, classify.load(config))

    def accuracies(first: int, stack: bool) -> list[float]:
        runs = []
        for seed in range(first, first + 8):
            model = classify.build(config, "sbn", digits, 3.0, seed)
            recipe = Recipe(seed, config.epochs, config.batch_size)
            runs.append(Training(model, adam(list(model.parameters()), 0.03), recipe))
        for some in [runs] if stack else [[run] for run in runs]:
            fit(fabric, some, digits.train, exact=False)
        draw = torch.Generator().manual_seed(first)
        return [classify.evaluate(r.model, "sbn", digits.test, draw)[0]["ten"] for r in runs]

    alone, together = accuracies(0, False), accuracies(100, True)
    se = math.sqrt(sum(statistics.variance(v) / 8 for v in (alone, together)))
    assert abs(statistics.fmean(alone) - statistics.fmean(together)) < 4.5 * se
    assert statistics.fmean(together) > 0.9


# Random numbers ----------------------------------------------------------------------------------


def seeded(*seeds: int) -> Generators:
    return Generators([torch.Generator().manual_seed(s) for s in seeds])


DRAWS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "words": lambda a, g: units.sample_sign(a, Logistic(), generator=g),
    "several": lambda a, g: units.draw(a, Logistic(), (4, *a.shape), g),
    "uniforms": lambda a, g: units.uniforms(a.shape, a, g),
    "noise": lambda a, g: Logistic().sample(a.shape, generator=g, dtype=a.dtype),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_each_training_draws_from_its_own_generator(draw: str) -> None:
    a = torch.linspace(-2, 2, 3 * 7 * 5, dtype=torch.float64).view(3, 7, 5)
    whole = DRAWS[draw](a, seeded(4, 5, 4))
    for t, seed in enumerate((4, 5, 4)):
        alone = DRAWS[draw](a[t], torch.Generator().manual_seed(seed))
        assert torch.equal(whole.select(-3, t), alone)
    # what another one draws, and whether there is another one, changes nothing
    other = DRAWS[draw](a, seeded(9, 5, 1))
    assert torch.equal(other.select(-3, 1), whole.select(-3, 1))
    assert not torch.equal(other.select(-3, 0), whole.select(-3, 0))


def test_each_training_settles_its_own_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    # 31 bits that are always 0 tie with every probability below 2^-31; the rest decides
    monkeypatch.setattr(units, "_words", lambda shape, _: torch.zeros(shape, dtype=torch.int32))
    a = torch.full((3, 40, 5), 22.0, dtype=torch.float64)
    a[1] = 3.0  # whose 31 bits decide
    whole = units.sample_sign(a, Logistic(), generator=seeded(1, 2, 3))
    for t, seed in enumerate((1, 2, 3)):
        alone = units.sample_sign(a[t], Logistic(), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(whole[t], alone)
    assert 0 < (whole[0] < 0).double().mean() < 1 and not torch.equal(whole[0], whole[2])


@pytest.mark.parametrize("shape", [(2, 7, 5), (7, 5), (3, 4, 7, 5)])
def test_a_tensor_without_an_axis_of_trainings_is_refused(shape: tuple) -> None:
    with pytest.raises(ValueError, match=r"of 3 trainings must draw a shape \(..., 3, B, n\)"):
        units.sample_sign(torch.zeros(shape), Logistic(), generator=seeded(1, 2, 3))
    with pytest.raises(TypeError):  # nor does torch draw from it in silence
        torch.rand(3, 7, 5, generator=seeded(1, 2, 3))


# What is a stack ---------------------------------------------------------------------------------


def groups(fabric: Any, *runs: Training) -> list[int]:
    return [len(g) for g in training._stacks([training._Run(fabric, run) for run in runs])]


DIFFERENT: dict[str, dict[str, Any]] = {
    "widths": {"widths": (13, 8)}, "depth": {"widths": (13, 7, 7)}, "net": {"net": twin},
    "estimator": {"estimator": "zgr"}, "kind": {"estimator": "reinforce"},
    "noise": {"noise": "gaussian"}, "dtype": {"dtype": torch.float32},
    "optimizers": {"optimizers": two},
}  # fmt: skip


@pytest.mark.parametrize("change", DIFFERENT)
def test_what_differs_in_more_than_numbers_is_another_stack(fabric: Any, change: str) -> None:
    runs = [train_of(0), train_of(1, **DIFFERENT[change]), train_of(2), train_of(3)]
    assert groups(fabric, *runs) == [3, 1]


@pytest.mark.parametrize("one, other", [("concrete", "foust"), ("rebar", "relax")])
def test_estimators_of_one_name_are_told_apart(fabric: Any, one: str, other: str) -> None:
    runs = [train_of(k, estimator=e) for k, e in enumerate((one, other, one))]
    assert groups(fabric, *runs) == [2, 1]


@pytest.mark.parametrize("estimator", [*ALONE, lambda net, inputs, loss: loss(net(inputs))])
def test_an_estimator_that_reads_the_network_itself_is_not_stacked(
    fabric: Any, estimator: Any
) -> None:
    assert groups(fabric, *(train_of(k, estimator=estimator) for k in range(3))) == [1, 1, 1]


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_a_module_that_the_stack_does_not_know_is_trained_alone(fabric: Any) -> None:
    def scaled(linear: Start, *widths: int, noise: str) -> nn.Module:
        return SBN(nn.Sequential(linear(INPUTS, widths[-1]), Scale()), noise=noise)

    def averaged(linear: Start, *widths: int, noise: str) -> nn.Module:
        norm = nn.BatchNorm1d(widths[-1], momentum=None)
        return SBN(nn.Sequential(linear(INPUTS, widths[-1]), norm), noise=noise)

    for net in (scaled, averaged):
        assert groups(fabric, *(train_of(k, net=net) for k in range(2))) == [1, 1]


def with_module(module: Callable[[], nn.Module]) -> Callable[..., nn.Module]:
    def net(linear: Start, *widths: int, noise: str) -> nn.Module:
        return SBN(nn.Sequential(linear(INPUTS, widths[-1]), module()), noise=noise)

    return net


@pytest.mark.parametrize("module", [nn.Dropout, nn.GELU, nn.Softplus, nn.Mish, nn.Flatten,
                                    lambda: nn.Softmax(1)])  # fmt: skip
def test_a_module_that_mixes_rows_or_rounds_unevenly_is_trained_alone(
    fabric: Any, module: Any
) -> None:
    assert groups(fabric, *(train_of(k, net=with_module(module)) for k in range(2))) == [1, 1]


def test_a_module_that_takes_axes_may_say_so(fabric: Any) -> None:
    class Twice(nn.Module):
        takes_axes = True

        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    assert_as_alone(fabric, net=with_module(Twice))


HOOKS: dict[str, Callable[[Training], Any]] = {
    "of a module": lambda run: run.model.net.layers[0].register_forward_hook(lambda *_: None),
    "before a module": lambda run: run.model.head.register_forward_pre_hook(lambda *_: None),
    "of a parameter": lambda run: run.model.head.weight.register_hook(lambda g: 0 * g),
    "after a parameter": lambda run: run.model.head.bias.register_post_accumulate_grad_hook(
        lambda p: None
    ),
}


@pytest.mark.parametrize("place", HOOKS)
def test_what_has_hooks_is_trained_alone(fabric: Any, place: str) -> None:
    for hooked in (0, 2):
        runs = [train_of(k) for k in range(3)]
        HOOKS[place](runs[hooked])
        assert sorted(groups(fabric, *runs)) == [1, 2]


def test_a_fused_sampler_is_trained_alone(fabric: Any) -> None:
    def fused(linear: Start, *widths: int, noise: str) -> nn.Module:
        return SBN(linear(INPUTS, widths[-1]), noise=noise, sampler="fused")

    runs = [train_of(k, net=fused, dtype=torch.float32) for k in range(2)]
    assert groups(fabric, *runs) == [1, 1]


def clipped(parameters: list[Tensor], lr: float) -> list[torch.optim.Optimizer]:
    """Adam that clips gradients by a hook."""
    adam = torch.optim.Adam(parameters, lr)
    adam.register_step_pre_hook(lambda *_: torch.nn.utils.clip_grad_value_(parameters, 1e-3))
    return [adam]


def backwards(parameters: list[Tensor], lr: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(parameters[::-1], lr)]


def tensor_rate(parameters: list[Tensor], lr: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(parameters, torch.tensor(lr, dtype=torch.float64))]


def frozen(parameters: list[Tensor], lr: float) -> list[torch.optim.Optimizer]:
    parameters[1].requires_grad_(False)
    return [torch.optim.Adam(parameters, lr)]


@pytest.mark.parametrize("optimizers", [clipped, backwards, tensor_rate, frozen])
def test_optimizers_of_every_kind_do_what_they_do_alone(fabric: Any, optimizers: Any) -> None:
    assert_as_alone(fabric, optimizers=optimizers)


def test_optimizers_that_move_other_places_are_other_stacks(fabric: Any) -> None:
    """Of layers of one shape, where a mistake would be seen in numbers alone."""
    ways = [adam, backwards, adam, two]
    runs = [train_of(k, widths=(9, 9), optimizers=way) for k, way in enumerate(ways)]
    assert groups(fabric, *runs) == [2, 1, 1]
    stray = train_of(4, widths=(9, 9), optimizers=lambda p, lr: adam([*p, torch.zeros(3)], lr))
    assert groups(fabric, runs[0], stray, runs[2]) == [2, 1]


def test_one_model_given_twice_is_trained_twice(fabric: Any) -> None:
    run, other = train_of(0), train_of(0)
    again = Training(run.model, run.optimizers, Recipe(1, 1, BATCH))
    assert groups(fabric, run, again, train_of(1)) == [2, 1]
    fit(fabric, [run, again, train_of(1)], examples())
    for recipe in (Recipe(0, 1, BATCH), Recipe(1, 1, BATCH)):
        fit(fabric, [Training(other.model, other.optimizers, recipe)], examples())
    assert_same(run, other)


def test_a_layer_that_is_used_twice_is_trained_alone(fabric: Any) -> None:
    def looped(linear: Start, *widths: int, noise: str) -> nn.Module:
        first, again = linear(INPUTS, 7), linear(7, 7)
        return SBN(first, again, again, noise=noise)

    assert groups(fabric, *(train_of(k, net=looped) for k in range(2))) == [1, 1]


def test_the_options_of_a_module_make_another_stack(fabric: Any) -> None:
    runs = [train_of(k, net=binary) for k in range(4)]
    runs[1].model.net.layers[1][0].eps = 1e-3
    runs[3].model.net.layers[0][1].eval()
    assert groups(fabric, *runs) == [2, 1, 1]


def test_on_several_devices_each_is_trained_alone(fabric: Any) -> None:
    class Two:
        world_size, setup = 2, fabric.setup

    assert groups(Two(), train_of(0), train_of(1)) == [1, 1]


def test_a_stack_of_one_is_the_plain_loop(fabric: Any) -> None:
    with used(None):
        fit(fabric, [train_of(0), train_of(1, widths=(5,))], examples())


def test_stacks_of_different_kinds_are_trained_each_as_one(fabric: Any) -> None:
    runs, alone = ([train_of(k, widths=((5,), (6, 3))[k % 2]) for k in range(5)] for _ in range(2))
    with used(3, 2):
        fit(fabric, runs, examples())
    for run, other in zip(runs, alone, strict=True):
        fit(fabric, [other], examples())
        assert_same(run, other)


def test_a_costly_estimator_is_stacked_less() -> None:
    sizes = {
        e: classify.stack_size(Config(estimator=e, hidden=(20, 10))) for e in registry.ESTIMATORS
    }
    assert sizes["straight_through"] == Config().stack == 32
    assert sizes["disarm"] == 16 and sizes["rebar"] == 10
    assert sizes["gumbel_rao"] == 3  # ten inner draws
    assert sizes["local_expectation"] == sizes["psa"] == 1
    costly = Config(estimator="local_expectation", hidden=(20, 10))
    assert classify.stack_size(costly, "tanh") == 32


def test_large_trainings_are_stacked_less_on_a_cpu() -> None:
    """32 x 539 x 100 numbers a layer are more than 2^20, of which 19 trainings have fewer."""
    large: dict[str, Any] = {"batch_size": 539, "hidden": (100, 100)}
    assert classify.stack_size(Config(**large)) == 19 == 2**20 // (539 * 100)
    assert classify.stack_size(Config(**large, accelerator="cuda")) == 32
    assert classify.stack_size(Config(batch_size=2000, hidden=(2000,))) == 1


# What is left behind -----------------------------------------------------------------------------


def test_afterwards_every_training_has_tensors_of_its_own(fabric: Any) -> None:
    # A slice of the stack's would be saved with all of the stack
    runs = [train_of(k, net=binary, optimizers=two) for k in range(3)]
    before = [list(run.model.parameters()) for run in runs]
    fit(fabric, runs, examples())
    for run, parameters in zip(runs, before, strict=True):
        assert all(p is q for p, q in zip(run.model.parameters(), parameters, strict=True))
        assert all(p.grad is None for p in parameters)
        for value in state(run).values():
            if isinstance(value, Tensor):
                assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_also_where_a_step_fails(fabric: Any) -> None:
    runs = [train_of(k, optimizers=two) for k in range(2)]
    with torch.no_grad():
        runs[1].model.head.weight[0, 0] = math.nan
        runs[1].model.net.layers[0].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="a must be finite"):
        fit(fabric, runs, examples())
    for run in runs:
        for p in run.model.parameters():
            assert p.untyped_storage().nbytes() == p.numel() * p.element_size()


def test_also_where_the_stack_cannot_be_set_up(fabric: Any, monkeypatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(stacked, "_step", fails)
    runs = [train_of(k, optimizers=two) for k in range(3)]
    with pytest.raises(RuntimeError, match="no room"):
        fit(fabric, runs, examples())
    for p in (p for run in runs for p in run.model.parameters()):
        assert p.untyped_storage().nbytes() == p.numel() * p.element_size()


def test_tensors_that_do_not_fit_together_are_left_as_they_are() -> None:
    fit_, others = [torch.zeros(3), torch.ones(3)], [torch.zeros(3), torch.zeros(2)]
    with pytest.raises(RuntimeError, match="equal size"):
        stacked._tied([fit_, others])
    assert all(t.untyped_storage().nbytes() == 12 for t in fit_)


# One that fails ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("folder", [True, False])
def test_a_training_that_fails_does_not_stop_those_beside_it(
    fabric: Any, tmp_path: Path, folder: bool
) -> None:
    rates = (0.01, 0.1, 1e37, 0.03, 0.3, 0.001, 0.02)
    size: dict[str, Any] = {"hidden": (12, 9), "epochs": 3, "seeds": 1, "dtype": "float32"}
    digits = classify.load(Config(**size))
    config = Config(**size, lr=rates, init_gain=(1.0,))
    runs = [{"model": "sbn", "lr": lr, "init_gain": 1.0, "seed": 7} for lr in rates]
    seen = []

    def compute(some: Sequence[Any], files: Sequence[Checkpoint | None]) -> Any:
        rows = classify._train(config, fabric, digits, some, files, after_epoch=int)
        for row in rows:
            seen.append(row)
            yield row

    place = tmp_path if folder else None
    with (
        pytest.raises(ValueError, match="a must be finite") as caught,
        Cache(fabric, {}, place) as known,
    ):
        known.rows(runs, compute, stack=32)
    assert caught.value.__notes__ == ["in the run model sbn, lr 1e+37, init_gain 1.0, seed 7"]
    right = [classify.train(config, "sbn", lr, 1.0, 7, fabric=fabric, data=digits)
             for lr in rates if lr < 1]  # fmt: skip
    assert sorted(seen, key=str) == sorted(right, key=str)
    assert len(list(tmp_path.glob("*.json"))) == (7 if folder else 0)  # six rows and the key


def test_a_row_that_cannot_be_kept_is_named_and_the_others_are_kept(
    fabric: Any, tmp_path: Path
) -> None:
    def compute(some: Sequence[Any], files: Sequence[Checkpoint | None]) -> Any:
        return ({"loss": math.inf if run["seed"] == 1 else 1.0} for run in some)

    with (
        pytest.raises(ValueError, match="not JSON compliant") as caught,
        Cache(fabric, {}, tmp_path) as known,
    ):
        known.rows([{"seed": k} for k in range(4)], compute, stack=4)
    assert caught.value.__notes__ == ["in the run seed 1"]
    assert {f.name for f in tmp_path.glob("[0-9].json")} == {"0.json", "2.json", "3.json"}


def test_on_several_devices_a_failure_stops_all(fabric: Any) -> None:
    """Where devices would go apart if some of them tried again."""
    asked = []

    def compute(some: Sequence[Any], files: Sequence[Checkpoint | None]) -> Any:
        asked.append(len(some))
        raise ValueError("too much")

    class Two:
        world_size = 2

    known = Cache(fabric, {}, None)
    known.fabric = Two()
    with pytest.raises(ValueError, match="too much"):
        known.rows([{"seed": k} for k in range(4)], compute, stack=4)
    assert asked == [4]


# Killed and resumed ------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def kept(folder: Path, count: int, **options: Any) -> list[Training]:
    return [
        train_of(k, epochs=4, checkpoint=Checkpoint(folder / f"{k}.ckpt", {"run": k}), **options)
        for k in range(count)
    ]


@pytest.mark.parametrize("optimizers", [adam, two])
def test_killed_between_two_checkpoints_each_goes_on_where_it_was(
    fabric: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizers: Any
) -> None:
    whole = [train_of(k, epochs=4, optimizers=optimizers) for k in range(3)]
    fit(fabric, whole, examples())
    save, epochs = Checkpoint.save, []

    def save_and_die(self: Checkpoint, fabric: Any, state: dict[str, Any]) -> None:
        if state["epoch"] == 2 and self.path.name == "1.ckpt":
            raise Killed
        save(self, fabric, state)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "save", save_and_die)
        fit(fabric, kept(tmp_path, 3, optimizers=optimizers), examples())
    assert [torch.load(tmp_path / f"{k}.ckpt")["epoch"] for k in range(3)] == [2, 1, 1]

    own = training._train_epoch
    monkeypatch.setattr(
        training, "_train_epoch",
        lambda fabric, runs, *rest: epochs.append((rest[1], len(runs))) or own(fabric, runs, *rest),
    )  # fmt: skip
    again = kept(tmp_path, 3, optimizers=optimizers)
    fit(fabric, again, examples())
    assert epochs == [(1, 2), (2, 3), (3, 3)]
    for one, other in zip(whole, again, strict=True):
        assert_same(one, other)


def test_a_checkpoint_of_a_stack_is_that_of_the_training_alone(fabric: Any, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    alone, together = kept(tmp_path / "alone", 3), kept(tmp_path, 3)
    for run in alone:
        fit(fabric, [run], examples())
    fit(fabric, together, examples())
    for k in range(3):
        files = [folder / f"{k}.ckpt" for folder in (tmp_path / "alone", tmp_path)]
        one, other = (torch.load(file) for file in files)
        assert one["model"].keys() == other["model"].keys() and one["epoch"] == other["epoch"] == 4
        assert one["optimizer 0"]["param_groups"] == other["optimizer 0"]["param_groups"]
        sizes = [file.stat().st_size for file in files]
        assert abs(sizes[0] - sizes[1]) < 0.02 * sizes[0]


def test_trainings_of_different_lengths_stay_what_they_are_alone(fabric: Any) -> None:
    lengths, seen = (1, 4, 2, 4), [0] * 4

    def count(k: int) -> Callable[[], None]:
        def after_epoch() -> None:
            seen[k] += 1

        return after_epoch

    alone, together = (
        [train_of(k, epochs=n, after_epoch=count(k)) for k, n in enumerate(lengths)]
        for _ in range(2)
    )
    for run in alone:
        fit(fabric, [run], examples())
    with used(4, 3, 2):
        fit(fabric, together, examples())
    assert seen == [2 * n for n in lengths]
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_a_row_that_is_known_is_not_trained_in_the_stack(fabric: Any, tmp_path: Path) -> None:
    runs = [{"seed": k} for k in range(7)]
    asked: list[list[int]] = []

    def compute(some: Sequence[Any], files: Sequence[Checkpoint | None]) -> Any:
        asked.append([run["seed"] for run in some])
        for run, file in zip(some, files, strict=True):
            assert file is not None and file.path.name == f"{run['seed']}.ckpt"
            yield {"found": run["seed"]}

    with Cache(fabric, {}, tmp_path) as known:
        known.rows([runs[2], runs[5]], compute)
        rows = known.rows(runs, compute, stack=3)
    assert rows == [{"found": k} for k in range(7)]
    assert asked == [[2], [5], [0, 1, 3], [4, 6]]


def test_rows_are_kept_one_by_one_as_they_come(fabric: Any, tmp_path: Path) -> None:
    def compute(some: Sequence[Any], files: Sequence[Checkpoint | None]) -> Any:
        yield {"found": 0}
        raise Killed

    with pytest.raises(Killed), Cache(fabric, {}, tmp_path) as known:
        known.rows([{"seed": 0}, {"seed": 1}], compute, stack=2)
    assert (tmp_path / "0.json").exists() and not (tmp_path / "1.json").exists()


def test_a_batch_that_is_too_large_is_refused_before_any_step(fabric: Any) -> None:
    small = Split(*(t[: BATCH - 1] for t in (examples().inputs, examples().labels)))
    with pytest.raises(ValueError, match="batch_size must be at most the 25 training images"):
        fit(fabric, [train_of(0), train_of(1)], small)


def test_network_estimators_of_one_function_are_equal() -> None:
    assert network_estimator("zgr") == network_estimator("zgr") != network_estimator("darn")
    assert network_estimator("straight_through") == network_estimator("straight_through")
    assert network_estimator("arm") == network_estimator("arm") != network_estimator("disarm")
