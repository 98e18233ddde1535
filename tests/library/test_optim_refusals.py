"""What the optimizers refuse: in one sentence, before any work, with nothing changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import reference as ref
import torch
from bridge import make_noise
from discovered import OPTIMIZERS
from regression import START, UNIFORMS, loss_of, make_layer, train
from torch import Tensor, nn
from updates import CASES

from sbnlib import Gaussian, Logistic, Uniform, optim
from sbnlib.nn import BernoulliLinear
from sbnlib.optim import (
    BayesBiNN,
    BinaryConnect,
    Bop,
    MirrorDescent,
    Proximal,
    SimplexDescent,
    parq,
    proxquant,
)

#: One case of every optimizer, and of Proximal both ways.
FEW = (
    "mirror",
    "mirror adam",
    "binary connect",
    "bop",
    "bayesbinn stale",
    "proxquant",
    "parq adam",
)
few = pytest.mark.parametrize("name", FEW)


@pytest.fixture
def p() -> Tensor:
    return torch.tensor([0.5, -0.5], requires_grad=True)


def contents(optimizer: torch.optim.Optimizer) -> list[object]:
    """Everything that an optimizer may change, copied, in a form that can be compared."""
    state = optimizer.state_dict()
    parameters = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    tensors = [v for values in state["state"].values() for v in values.values()]
    plain = [v.tolist() if isinstance(v, Tensor) else v for v in [*parameters, *tensors]]
    return copy.deepcopy([plain, state["param_groups"], state.get("steps")])


@contextmanager
def refused(
    optimizer: torch.optim.Optimizer, match: str, error: type[Exception] = ValueError
) -> Iterator[None]:
    before = contents(optimizer)
    with pytest.raises(error, match=match):
        yield
    assert contents(optimizer) == before


# ------------------------------------------------------------------------------- options


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "Proximal"])  # its base has one
@pytest.mark.parametrize("lr", [-0.1, math.nan, math.inf, None, "0.1", True, torch.ones(2)])
def test_bad_rates_are_refused(p: Tensor, name: str, lr: object) -> None:
    make, match = OPTIMIZERS[name], "lr must be .*, got "
    with pytest.raises(ValueError, match=match):
        make([p], lr)
    with pytest.raises(ValueError, match=match):
        make([{"params": [p], "lr": lr}], 0.1)
    optimizer = make([p], 0.1)
    with refused(optimizer, match):
        optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)], "lr": lr})
    p.grad = torch.ones(2)
    optimizer.param_groups[0]["lr"] = lr
    with pytest.raises(ValueError, match=match):
        optimizer.step()
    assert p.tolist() == [0.5, -0.5]


BAD_OPTIONS = [
    (MirrorDescent, {"kl": -0.1}, "kl must be a finite number >= 0, got -0.1"),
    (MirrorDescent, {"kl": math.inf}, "kl must be a finite"),
    (MirrorDescent, {"kl": None}, "kl must be a finite"),
    (MirrorDescent, {"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
    (MirrorDescent, {"momentum": -0.1}, "momentum must be"),
    (MirrorDescent, {"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got 1.0"),
    (MirrorDescent, {"betas": (-0.1, 0.9)}, "betas must be"),
    (MirrorDescent, {"betas": (0.9,)}, r"betas must be two numbers .* got \(0.9,\)"),
    (MirrorDescent, {"betas": 0.9}, "betas must be two numbers .* got 0.9"),
    (MirrorDescent, {"betas": ("a", 0.9)}, "betas must be"),
    (MirrorDescent, {"betas": (0.9, 0.99), "momentum": 0.5}, "momentum must be 0 where betas"),
    (MirrorDescent, {"eps": -1.0}, "eps must be a finite number > 0, got -1.0"),
    (MirrorDescent, {"eps": math.nan}, "eps must be"),
    (MirrorDescent, {"eps": 0}, "eps must be"),
    (MirrorDescent, {"lr": 20.0, "kl": 0.1}, r"lr \* kl must be below 2, got 20 \* 0.1.*proximal"),
    (Bop, {"lr": 1.5}, r"lr must be gamma in \[0, 1\], got 1.5"),
    (Bop, {"threshold": -1e-9}, "threshold must be a finite number >= 0"),
    (Bop, {"threshold": math.nan}, "threshold must be"),
    (Bop, {"threshold": "0"}, "threshold must be"),
    (BayesBiNN, {"lr": 2.0}, r"lr must be alpha in \[0, 2\), beyond which the step diverges"),
    (BayesBiNN, {"train_set_size": math.nan}, "train_set_size must be a finite number > 0"),
    (BayesBiNN, {"train_set_size": 0}, "train_set_size must be"),
    (BayesBiNN, {"train_set_size": math.inf}, "train_set_size must be"),
    (BayesBiNN, {"prior": math.nan}, "prior must be a finite number, got nan"),
    (BayesBiNN, {"prior": None}, "prior must be"),
]


@pytest.mark.parametrize("make, options, match", BAD_OPTIONS)
def test_bad_options_are_refused_for_all_and_for_one_group(
    p: Tensor, make: Callable, options: dict, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        make([p], **({"lr": 0.1} | options))
    with pytest.raises(ValueError, match=match):
        make([{"params": [p], **options}], lr=0.1)
    optimizer = make([p], lr=0.1)
    with refused(optimizer, match):
        optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)], **options})
    optimizer.param_groups[0].update(options)
    p.grad = torch.ones(2)
    with refused(optimizer, match):
        optimizer.step()


def test_an_explicit_step_that_diverges_is_refused_and_its_cure_is_none(p: Tensor) -> None:
    """lr kl = 2 turns eta into -eta for ever, more is worse; just below it comes to rest."""
    with pytest.raises(ValueError, match="diverges; pass proximal=True or take a smaller lr"):
        MirrorDescent([p], 4.0, kl=0.5)
    for options in ({"lr": 3.9}, {"lr": 4000.0, "proximal": True}):
        q = p.detach().clone().requires_grad_()
        optimizer = MirrorDescent([q], kl=0.5, **options)
        for _ in range(300):
            q.grad = torch.zeros(2)
            optimizer.step()
        assert q.abs().max() < 1e-5


def test_a_schedule_that_raises_the_rate_too_far_is_stopped_at_the_step(p: Tensor) -> None:
    optimizer = MirrorDescent([p], 1.0, kl=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 + 3 * t)
    p.grad = torch.ones(2)
    optimizer.step()
    schedule.step()
    with refused(optimizer, r"lr \* kl must be below 2, got 4 \* 0.5"):
        optimizer.step()


def test_a_number_may_be_of_another_kind(p: Tensor) -> None:
    for lr in (1, np.float32(0.5), np.int64(1), torch.tensor(0.5)):
        MirrorDescent([p], lr, kl=np.float64(0.1), momentum=0)


STRENGTHS = [
    (proxquant, [-0.1, math.nan, math.inf, None], "strength must be a finite number >= 0, got"),
    (parq, [0.5, -1.0, math.nan, "1"], "strength must be a slope >= 1, got"),
]


@pytest.mark.parametrize("prox, strengths, match", STRENGTHS)
@pytest.mark.parametrize("lazy", [False, True])
def test_a_bad_strength_is_refused_before_a_weight_is_moved(
    p: Tensor, prox: Callable, strengths: list, match: str, lazy: bool
) -> None:
    for strength in strengths:
        eta = p.detach().clone()
        with pytest.raises(ValueError, match=match):
            prox(eta, strength)
        assert torch.equal(eta, p)
        with pytest.raises(ValueError, match=match):
            Proximal(torch.optim.SGD([p], 0.1), prox, strength, lazy=lazy)
        annealed = Proximal(
            torch.optim.SGD([p], 0.1), prox, lambda t, s=strength: s if t > 1 else 1.0, lazy=lazy
        )
        p.grad = torch.ones(2)
        annealed.step()
        with refused(annealed, match):
            annealed.step()


def test_the_base_of_a_proximal_optimizer_must_be_one(p: Tensor) -> None:
    with pytest.raises(TypeError, match="base must be an optimizer of torch, got"):
        Proximal([p], proxquant, 0.1)


# ----------------------------------------------------------------- gradients and latent weights


@few
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["gradient", "weight"])
def test_what_is_not_finite_is_refused_by_name(name: str, value: float, where: str) -> None:
    layer, other = CASES[name].layer(START), CASES[name].layer(START)
    groups = [{"params": [layer.eta]}, {"params": [CASES[name].layer(START).eta, other.eta]}]
    optimizer = CASES[name].make(groups)
    for m in (layer, other):
        loss_of(m, UNIFORMS[0]).backward()
    optimizer.step()
    with torch.no_grad():
        (other.eta.grad if where == "gradient" else other.eta)[0, 2] = value
    what = "the gradient of parameter" if where == "gradient" else "parameter"
    match = rf"^{what} 1 of group 1, shape \(1, 6\), holds NaN or infinite values"
    before = contents(optimizer)
    with pytest.raises(ValueError, match=match):
        optimizer.step()
    assert repr(contents(optimizer)) == repr(before)  # NaN != NaN


def test_large_gradients_whose_sum_overflows_are_taken(p: Tensor) -> None:
    p.grad = torch.full((2,), 3e38)
    MirrorDescent([p], 1e-38).step()
    assert p.tolist() == pytest.approx([-2.5, -3.5])


@pytest.mark.parametrize(
    ("make", "rate"),
    [
        (lambda p: MirrorDescent([p], 1e38), "1e[+]38"),
        (lambda p: BinaryConnect([p], 1e38), "1e[+]38"),
        (lambda p: BayesBiNN([p], 1e-4, train_set_size=1e42), "1e[+]38"),
    ],
)
def test_a_step_that_would_be_infinite_is_refused(make: Callable, rate: str, p: Tensor) -> None:
    p.grad, before = torch.tensor([1.0, -100.0]), p.tolist()
    with pytest.raises(ValueError, match=rf"a step of {rate} times the gradient of parameter 0"):
        make(p).step()
    assert p.tolist() == before


def test_named_parameters_are_named_in_errors() -> None:
    layer = make_layer("sample")
    optimizer = MirrorDescent(layer.named_parameters(), 0.1)
    layer.eta.grad = torch.full_like(layer.eta, math.nan)
    with pytest.raises(ValueError, match="parameter eta of group 0"):
        optimizer.step()


@pytest.mark.parametrize("noise_name", ref.BOUNDED)
def test_latent_weights_outside_a_bounded_support_are_refused_unless_lazy(noise_name: str) -> None:
    inside = torch.tensor([0.5], requires_grad=True)
    outside = torch.tensor([0.2, -1.01], requires_grad=True)

    def step(noise: object, **options: object) -> None:
        inside.grad, outside.grad = torch.ones(1), torch.ones(2)
        MirrorDescent([inside, outside], 0.1, noise=noise, **options).step()

    with pytest.raises(ValueError, match=r"parameter 1.*support \[-1, 1\] of .*lazy"):
        step(make_noise(noise_name))
    assert inside.item() == 0.5, "an earlier parameter was changed"
    step(make_noise(noise_name, 2.0))
    step(make_noise(noise_name), lazy=True)
    step(Gaussian())
    assert outside[1].item() < -1.2


def test_a_lazy_map_is_put_back_when_its_base_refuses() -> None:
    layer = make_layer("mean")
    base = MirrorDescent(layer.parameters(), 0.1)
    optimizer = Proximal(base, parq, 1.5, lazy=True)
    train(layer, optimizer, UNIFORMS[:3])
    base.param_groups[0]["lr"] = -1.0
    assert not torch.equal(layer.eta, optimizer.state[layer.eta]["latent"])
    with refused(optimizer, "lr must be"):
        optimizer.step()


# ----------------------------------------------------------------------------- half precision


def in_half(dtype: torch.dtype) -> Tensor:
    return torch.full((2,), 0.5, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@few
def test_eta_in_half_precision_is_refused(name: str, dtype: torch.dtype) -> None:
    match = f"shape .*, must be of float32 or float64, got {dtype}, .* torch.autocast"
    with pytest.raises(TypeError, match=match):
        CASES[name].make([in_half(dtype)])
    layer = CASES[name].layer(START)
    optimizer = CASES[name].make([layer.eta])
    layer.to(dtype)
    loss_of(layer, UNIFORMS[0]).backward()
    with refused(optimizer, match, TypeError):
        optimizer.step()


def test_a_layer_under_autocast_is_trained_in_single_precision() -> None:
    layer = BernoulliLinear(4, 3, forward="mean")
    before = layer.eta.detach().clone()
    optimizer = MirrorDescent(layer.parameters(), 1e-4, noise=layer.noise)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.ones(2, 4))
    out.float().sum().backward()
    optimizer.step()
    assert out.dtype == torch.bfloat16 and layer.eta.dtype == torch.float32
    torch.testing.assert_close(layer.eta.detach(), before - 4e-4, rtol=0, atol=1e-6)


# -------------------------------------------------------------------------------- the law of eta


def layer_of(noise: object) -> BernoulliLinear:
    return BernoulliLinear(2, 1, False, noise=noise)


def test_noise_is_a_noise_model_and_one_for_all_groups(p: Tensor) -> None:
    for wrong in (Logistic, 1.0):
        with pytest.raises(TypeError, match="noise"):
            MirrorDescent([p], 0.1, noise=wrong)
    with pytest.raises(ValueError, match="noise"):
        MirrorDescent([{"params": [p], "noise": Uniform()}], 0.1)


LAWS = [
    (lambda p: MirrorDescent(p, 0.1, noise="gaussian"), "gaussian"),
    (lambda p: MirrorDescent(p, 0.1, noise=Gaussian(2.0)), Gaussian(2.0)),
    (lambda p: BinaryConnect(p, 0.1), "uniform"),
    (lambda p: BayesBiNN(p, 0.1), "logistic"),
]


@pytest.mark.parametrize("make, law", LAWS)
def test_latent_weights_of_another_law_are_refused(make: Callable, law: object) -> None:
    """When the optimizer is made, when a group is added, and at a step, if the law has changed."""
    right, wrong = layer_of(law), layer_of("cauchy")
    match = (
        r"parameter 0 of group {}, shape \(1, 2\), is of Cauchy\(scale=1\), this \w+ is for "
        rf"{type(right.noise).__name__}\(scale={right.noise.scale:g}\): .* one optimizer for each"
    )
    with pytest.raises(ValueError, match=match.format(0)):
        make([wrong.eta])
    optimizer = make([right.eta])
    with refused(optimizer, match.format(1)):
        optimizer.add_param_group({"params": [wrong.eta]})
    right.eta.grad = torch.ones(1, 2)
    right.noise = wrong.noise
    with refused(optimizer, match.format(0)):
        optimizer.step()


def test_two_scales_of_one_law_are_two_laws() -> None:
    with pytest.raises(ValueError, match=r"is of Uniform\(scale=2\)"):
        BinaryConnect([layer_of(Uniform(2.0)).eta], 0.1)


def test_mirror_descent_takes_the_law_from_the_layers() -> None:
    """So a bounded law projects without having been named; parameters of no layer are logistic."""
    layer = layer_of(Uniform(0.5))
    optimizer = MirrorDescent(layer.parameters(), 1.0)
    layer.eta.grad = torch.full((1, 2), -9.0)
    optimizer.step()
    assert optimizer.noise == Uniform(0.5) and layer.eta.tolist() == [[0.5, 0.5]]
    assert copy.deepcopy(optimizer).noise == Uniform(0.5)
    assert MirrorDescent([nn.Parameter(torch.ones(1))], 1.0).noise == Logistic()
    with pytest.raises(ValueError, match="one optimizer for each noise"):
        MirrorDescent([layer.eta, layer_of("gaussian").eta], 1.0)


def test_untagged_parameters_are_taken_alone_or_under_a_named_law(p: Tensor) -> None:
    layer = layer_of("uniform")
    MirrorDescent([p, layer.eta], 0.1, noise=Uniform())
    for make in (lambda q: MirrorDescent(q, 0.1), lambda q: BinaryConnect(q, 0.1), Bop, BayesBiNN):
        make([p])


@pytest.mark.parametrize("make", [
    lambda q: MirrorDescent(q, 0.1),
    lambda q: BinaryConnect(q, 0.1),
    Bop,
    BayesBiNN,
    lambda q: Proximal(torch.optim.SGD(q, 0.1), proxquant, 0.1),
])  # fmt: skip
def test_biases_beside_latent_weights_are_refused(make: Callable) -> None:
    layer = BernoulliLinear(2, 3)
    match = r"parameter 1 of group 0, shape \(3,\), is no latent weight .*optim.split"
    with pytest.raises(ValueError, match=match):
        make(layer.parameters())


# ------------------------------------------------------------------------------------- split


class Tied(nn.Module):
    """Two layers with one eta, a third with its own, batch norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = BernoulliLinear(3, 3), BernoulliLinear(3, 3, bias=False)
        self.second.eta = self.first.eta
        self.again = self.first
        self.rest = nn.Sequential(nn.BatchNorm1d(3), BernoulliLinear(3, 2, noise="cauchy"))
        self.head = nn.Linear(2, 2)


def test_split_gives_latent_and_real_parameters_each_once() -> None:
    net = Tied()
    net.rest[1].eta.requires_grad_(False)
    latent, real = optim.split(net)
    names = {id(p): name for name, p in net.named_parameters()}
    assert [names[id(p)] for p in latent] == ["first.eta", "rest.1.eta"]
    assert [names[id(p)] for p in real] == [
        "first.bias", "rest.0.weight", "rest.0.bias", "rest.1.bias", "head.weight", "head.bias",
    ]  # fmt: skip


def test_split_takes_any_module_and_nothing_else() -> None:
    head = nn.Linear(2, 2)
    assert optim.split(head) == ([], list(head.parameters()))
    layer = BernoulliLinear(2, 2, bias=False)
    assert optim.split(layer) == ([layer.eta], [])
    with pytest.raises(TypeError, match="net must be a module, got list"):
        optim.split([layer])


# ------------------------------------------------------------------------------- state dicts

MADE: dict[str, Callable] = {
    "MirrorDescent": lambda p: MirrorDescent(p, 0.1),
    "BinaryConnect": lambda p: BinaryConnect(p, 0.1),
    "Bop": lambda p: Bop(p, 0.1),
    "BayesBiNN": lambda p: BayesBiNN(p, 0.1),
    "Proximal": lambda p: Proximal(torch.optim.SGD(p, 0.1), proxquant, 0.1),
    "SimplexDescent": lambda p: SimplexDescent(p, 0.1),
    "Adam": lambda p: torch.optim.Adam(p, 0.1),
    "SGD": lambda p: torch.optim.SGD(p, 0.1),
}


@pytest.mark.parametrize("given", MADE)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_another_optimizers_state_dict_is_refused_by_name(p: Tensor, name: str, given: str) -> None:
    optimizer, other = MADE[name]([p]), MADE[given]([p.detach().clone().requires_grad_()])
    for o in (optimizer, other):
        o.param_groups[0]["params"][0].grad = torch.ones(2)
        o.step()
    if name == given:
        optimizer.load_state_dict(other.state_dict())
        return
    with refused(optimizer, f"state_dict must be one of {name},"):
        optimizer.load_state_dict(other.state_dict())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_dict_of_a_network_is_refused(p: Tensor, name: str) -> None:
    optimizer = MADE[name]([p])
    given = "got one that holds eta" if name == "Proximal" else "the groups given hold nothing"
    with refused(optimizer, f"state_dict must be one of {name},.* {given}"):
        optimizer.load_state_dict(layer_of("logistic").state_dict())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_torch_writes_into_groups_is_no_difference(p: Tensor, name: str) -> None:
    """A schedule adds keys to the groups, a copy one more; the state dict is still its own."""
    optimizer, fresh = MADE[name]([p]), MADE[name]([p])
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, 10, cycle_momentum=False)
    optimizer = copy.deepcopy(optimizer)
    optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    fresh.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] != 0.1


def test_proximal_takes_the_states_of_its_own_kind_only(p: Tensor) -> None:
    def made(base: type, lazy: bool) -> Proximal:
        optimizer = Proximal(base([p], 0.1), parq, 1.5, lazy=lazy)
        p.grad = torch.ones_like(p)
        optimizer.step()
        return optimizer

    adam = made(torch.optim.Adam, False).state_dict()
    with pytest.raises(ValueError, match="one of Proximal over SGD, whose groups hold .*betas"):
        made(torch.optim.SGD, False).load_state_dict(adam)
    lazy = made(torch.optim.SGD, True).state_dict()
    with pytest.raises(ValueError, match="of an eager Proximal, got one of a lazy one"):
        made(torch.optim.SGD, False).load_state_dict(lazy)
    made(torch.optim.SGD, True).load_state_dict(lazy)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_of_another_number_of_groups_is_torchs_to_refuse(p: Tensor, name: str) -> None:
    optimizer, more = MADE[name]([p]), MADE[name]([torch.ones(2, requires_grad=True)])
    more.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    with refused(optimizer, "different number of parameter groups"):
        optimizer.load_state_dict(more.state_dict())


@pytest.mark.parametrize("lr", [float("nan"), float("inf")])
@pytest.mark.parametrize("lazy", [True, False])
def test_a_rate_that_spoils_a_proximal_step_is_refused_before_it(
    p: Tensor, lazy: bool, lr: float
) -> None:
    optimizer = Proximal(torch.optim.SGD([p], 0.1), parq, 1.5, lazy=lazy)
    p.grad = torch.ones(2)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = lr
    with refused(optimizer, f"lr must be a finite number, got {lr}"):
        optimizer.step()
