"""From sampling to using: the mode of a network, batch norm for it, torch's layers for export."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sbnlib
from sbnlib import SBN, Logistic, Uniform, measure, reestimate_batch_norm, set_mode, to_plain
from sbnlib.nn import BernoulliConv2d, BernoulliLinear, Sign, TernaryLinear


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        BernoulliConv2d(1, 6, 3, padding=1, bias=False, pad_value=-1),
        nn.BatchNorm2d(6),
        Sign(),
        BernoulliConv2d(6, 8, (3, 2), stride=2, padding=(1, 0), noise="uniform"),
        nn.BatchNorm2d(8),
        Sign("gaussian", "zgr"),
        nn.Flatten(),
        BernoulliLinear(8 * 4 * 4, 10),
        nn.BatchNorm1d(10),
        nn.Sequential(Sign(), nn.Linear(10, 3)),
    )


def dense_net() -> SBN:
    torch.manual_seed(1)
    layers = [
        nn.Sequential(BernoulliLinear(m, n, bias=False), nn.BatchNorm1d(n))
        for m, n in ((5, 8), (8, 6))
    ]
    return SBN(*layers, noise=Uniform(2.0))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (conv_net, (40, 1, 8, 8)),
    "dense": (dense_net, (40, 5)),
}
nets = pytest.mark.parametrize("name", NETS)


def made(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = NETS[name]
    return make(), torch.rand(shape, generator=seeded(7)) * 2 - 1


# ------------------------------------------------------------------------------- the mode


@nets
def test_evaluation_mode_samples_and_the_mode_decides(name: str) -> None:
    net, x = made(name)
    net.eval()
    assert not torch.equal(net(x), net(x))
    for mode in ("sign", "mean"):
        assert set_mode(net, mode) is net
        assert torch.equal(net(x), net(x))
    set_mode(net, "sample")
    assert not torch.equal(net(x), net(x))


def test_the_mode_of_a_network_is_that_of_a_call() -> None:
    net, x = SBN(nn.Linear(4, 5), nn.Linear(5, 3)), torch.rand(7, 4)
    for mode in ("sign", "mean"):
        expected = net(x, mode=mode)
        assert torch.equal(set_mode(copy.deepcopy(net), mode)(x), expected)
        assert torch.equal(net(x, mode=mode), expected)


@pytest.mark.slow
def test_estimators_sample_whatever_the_mode() -> None:
    net, x = SBN(nn.Linear(2, 3), nn.Linear(3, 2)), torch.rand(4, 2)

    def loss(x: Tensor) -> Tensor:
        return (x.sum(-1) - 1).square()

    for name in ("straight_through", "reinforce", "muprop", "psa", "concrete"):
        before = measure(net, x, loss, name, 64, generator=seeded())["all"]
        after = measure(set_mode(copy.deepcopy(net), "sign"), x, loss, name, 64, generator=seeded())
        assert before == after["all"]


def test_a_unit_can_be_made_in_a_mode() -> None:
    a = torch.linspace(-2, 2, 9)
    assert torch.equal(Sign(mode="sign")(a), torch.where(a >= 0, 1.0, -1.0))
    assert torch.equal(Sign(mode="mean")(a), 2 * Logistic().cdf(a) - 1)
    assert "mode='sign'" in repr(Sign(mode="sign")) and "mode" not in repr(Sign())


@pytest.mark.parametrize("mode", ["median", None, "concrete", "eval"])
def test_an_unknown_mode_is_refused(mode: Any) -> None:
    for call in (lambda: set_mode(dense_net(), mode), lambda: Sign(mode=mode)):
        with pytest.raises(ValueError, match="mode must be one of .*sample.*sign.*mean"):
            call()


def test_a_network_without_anything_random_is_refused() -> None:
    with pytest.raises(ValueError, match="hold units or random weights, Linear has none"):
        set_mode(nn.Linear(2, 2), "sign")


# ------------------------------------------------------------------------------ batch norm


@nets
def test_statistics_are_those_of_what_comes_in(name: str) -> None:
    """Every batch norm's input, seen in the finished network: mean and variance are the stored."""
    net, x = made(name)
    net.train()
    net(x)  # statistics of sampled units
    reestimate_batch_norm(set_mode(net, "sign"), x)
    seen: dict[nn.Module, Tensor] = {}
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda m, given: seen.__setitem__(m, given[0]))
    net(x)
    for norm in norms:
        columns = seen[norm].movedim(1, -1).flatten(0, -2)
        torch.testing.assert_close(norm.running_mean, columns.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, columns.var(0), rtol=1e-4, atol=1e-5)


def test_batches_are_averaged_and_targets_ignored() -> None:
    net, x = made("dense")
    batches = [(part, torch.zeros(len(part))) for part in x.split(20)]
    reestimate_batch_norm(set_mode(net, "mean"), batches)
    inside = net.layers[0][0](x)
    halves = torch.stack([part.mean(0) for part in inside.split(20)])
    torch.testing.assert_close(net.layers[0][1].running_mean, halves.mean(0))


def test_everything_else_is_left_as_it_was() -> None:
    net, x = made("conv")
    net.train()
    net[1].momentum = 0.3
    before = [p.clone() for p in net.parameters()]
    reestimate_batch_norm(set_mode(net, "sign"), x)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert all(p.grad is None for p in net.parameters())
    assert net[1].momentum == 0.3 and net[0].training and net[2].training
    assert not net[1].training and not net[4].training
    assert not net[1]._forward_pre_hooks


def test_bad_data_and_networks_are_refused_by_name() -> None:
    net, x = made("dense")
    with pytest.raises(ValueError, match="gone through again.*got list_iterator"):
        reestimate_batch_norm(net, iter([x]))
    with pytest.raises(ValueError, match="data must hold at least one batch"):
        reestimate_batch_norm(net, [])
    for plain in (SBN(nn.Linear(5, 2)), nn.BatchNorm1d(5, track_running_stats=False)):
        with pytest.raises(ValueError, match="batch norm with running statistics"):
            reestimate_batch_norm(plain, x)


# ---------------------------------------------------------------------------- torch's own


@nets
@pytest.mark.parametrize("mode", ["sign", "mean"])
def test_plain_layers_put_out_the_same(name: str, mode: str) -> None:
    net, x = made(name)
    reestimate_batch_norm(set_mode(net, mode), x)
    plain = to_plain(net)
    torch.testing.assert_close(plain(x), net(x), rtol=1e-5, atol=1e-5)
    ours = (Sign, BernoulliLinear, BernoulliConv2d, SBN)
    assert not any(isinstance(m, ours) for m in plain.modules())
    assert any(isinstance(m, Sign | SBN) for m in net.modules()), "the network itself is left alone"


def test_the_plain_net_is_in_evaluation_mode_and_the_net_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.Dropout(), Sign(mode="sign")).train()
    plain = to_plain(net)
    assert not any(m.training for m in plain.modules())
    assert all(m.training for m in net.modules())


def test_plain_weights_are_signs() -> None:
    net, x = made("conv")
    plain = to_plain(set_mode(net, "sign"))
    signs = [m.weight for m in plain.modules() if isinstance(m, nn.Conv2d)]
    signs += [m.weight for m in plain.modules() if isinstance(m, nn.Linear)][:1]
    assert len(signs) == 3 and all(set(w.unique().tolist()) == {-1.0, 1.0} for w in signs)


def test_a_network_that_still_samples_is_refused_by_name() -> None:
    net, _ = made("conv")
    set_mode(net, "sign")
    net[2].mode = "sample"
    with pytest.raises(ValueError, match="deterministic, 2 is in mode 'sample': call .*set_mode"):
        to_plain(net)


def test_a_layer_in_two_places_is_one_layer_afterwards() -> None:
    unit, layer = Sign(mode="sign"), BernoulliLinear(4, 4, forward="sign")
    net = nn.Sequential(layer, unit, layer, nn.Sequential(unit, layer))
    plain = to_plain(net)
    assert plain[0] is plain[2] is plain[3][1] and type(plain[0]) is nn.Linear
    assert plain[1] is plain[3][0]
    x = torch.rand(9, 4)
    torch.testing.assert_close(plain(x), net(x))


def test_a_layer_that_computes_something_else_is_not_replaced() -> None:
    class Tenth(BernoulliLinear):
        def forward(self, x: Tensor, **options: Any) -> Tensor:
            return super().forward(x, **options) / 10

    with pytest.raises(ValueError, match="1 has a forward of its own"):
        to_plain(nn.Sequential(nn.Linear(3, 3), Tenth(3, 4, forward="sign")))
    hooked = nn.Sequential(BernoulliLinear(3, 4, forward="sign"))
    hooked[0].register_forward_hook(lambda module, args, out: out - 100)
    with pytest.raises(ValueError, match="without forward hooks, 0 has one"):
        to_plain(hooked)


def test_statistics_that_cannot_be_taken_leave_the_momentum() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="more than 1 value"):
        reestimate_batch_norm(net, [torch.rand(4, 3), torch.rand(1, 3)])
    assert net[0].momentum == 0.1


@pytest.mark.parametrize(
    "function",
    [to_plain, lambda f: set_mode(f, "sign"), lambda f: reestimate_batch_norm(f, torch.rand(2, 2)),
     lambda f: sbnlib.summary(f, torch.rand(2, 2))],
)  # fmt: skip
def test_what_is_not_a_module_is_named(function: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="net must be a module, got function"):
        function(lambda x: x)


def test_the_public_names_are_there() -> None:
    for name in ("set_mode", "reestimate_batch_norm", "to_plain"):
        assert name in sbnlib.__all__


class Double(SBN):
    def forward(self, inputs: Tensor, **options: Any) -> Tensor:
        return 2 * super().forward(inputs, **options)


class Flipped(Sign):
    def forward(self, a: Tensor, **options: Any) -> Tensor:
        return -super().forward(a, **options)


class Halved(BernoulliConv2d):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x, **options) / 2


OURS: dict[str, Callable[[], nn.Module]] = {
    "SBN": lambda: SBN(nn.Linear(3, 2)),
    "Sign": Sign,
    "linear": lambda: BernoulliLinear(3, 2),
    "conv": lambda: BernoulliConv2d(1, 2, 3),
    "ternary": lambda: TernaryLinear(3, 2),
}


@pytest.mark.parametrize("module", [Double(nn.Linear(3, 2)), Flipped(), Halved(1, 2, 3)])
def test_a_class_that_computes_something_else_is_not_replaced(module: nn.Module) -> None:
    with pytest.raises(ValueError, match="our own layers, 1 has a forward of its own"):
        to_plain(set_mode(nn.Sequential(nn.Flatten(), module), "sign"))


@pytest.mark.parametrize("name", OURS)
def test_a_forward_put_on_a_layer_is_not_lost(name: str) -> None:
    module = set_mode(OURS[name](), "sign")
    to_plain(module)
    module.forward = lambda x: 10 * type(module).forward(module, x)
    with pytest.raises(ValueError, match="our own layers, net has a forward of its own"):
        to_plain(module)


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("name", OURS)
def test_a_hook_is_not_lost(name: str, hook: str) -> None:
    module = set_mode(OURS[name](), "sign")
    handle = getattr(module, hook)(lambda *args: None)
    with pytest.raises(ValueError, match="without forward hooks, net has one"):
        to_plain(module)
    handle.remove()
    to_plain(module)


def test_a_layer_shared_with_an_sbn_is_one_layer_afterwards() -> None:
    layer = BernoulliLinear(4, 4)
    net = set_mode(nn.Sequential(SBN(layer, layer), layer, nn.ModuleList()), "sign")
    plain = to_plain(net)
    assert plain[0][0] is plain[0][2] is plain[1] and plain[0][1] is plain[0][3]


def test_a_place_without_a_module_stays_empty() -> None:
    net = nn.Sequential(Sign(mode="sign"))
    net[0].register_module("none", None)
    net.register_module("none", None)
    assert to_plain(net)._modules["none"] is None


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused(value: float) -> None:
    net = normed()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="data must give finite statistics, .* BatchNorm1d"):
        reestimate_batch_norm(net, torch.full((5, 3), value))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize("data", [torch.ones(0, 3), [torch.rand(4, 3), torch.ones(0, 3)]])
def test_a_batch_of_nothing_is_refused(data: object) -> None:
    net = normed()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"data must hold inputs in every batch, .* \(0, 3\)"):
        reestimate_batch_norm(net, data)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_a_norm_that_has_no_size_yet_is_named() -> None:
    with pytest.raises(ValueError, match="net must have statistics, run it once"):
        reestimate_batch_norm(nn.Sequential(nn.LazyBatchNorm1d()), torch.rand(4, 3))


@pytest.mark.parametrize("data", [{"x": torch.rand(4, 3)}, "abc", 3, None])
def test_data_that_are_no_batches_are_named(data: object) -> None:
    with pytest.raises(TypeError, match=f"batches of tensors, got {type(data).__name__}"):
        reestimate_batch_norm(normed(), data)
