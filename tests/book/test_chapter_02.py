"""Chapter 2, Stochastic binary networks: every labelled equation and theorem, by independent means.

Expected values come from numpy and scipy here: enumeration of paths, quadrature, finite
differences, Monte Carlo with a stated false-alarm rate. What the chapter defines by hand is taken
out of its notebook.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from math import comb, log

import numpy as np
import pytest
import torch
from bridge import z_limit
from chapters import (
    BOOK,
    as_in_the_book,
    axes,
    cells,
    chapter,
    checker,
    containing,
    curves,
    define,
    drawing,
    printed,
    says_to,
    under,
)
from pins import pin
from torch import nn

import sbnlib
from sbnlib.exact import all_states
from sbnlib.experiments import exact_cost, measurement
from sbnlib.noise import Logistic, Uniform

PAGE = chapter(2)
STORED = BOOK / "measurements" / "exact-cost.json"

Layers = list[tuple[np.ndarray, np.ndarray]]


@pytest.fixture(autouse=True)
def _book():
    with as_in_the_book():
        yield


# ------------------------------------------------------------------- the model, once more


def cdf(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(a)))


def uniform_cdf(a: np.ndarray) -> np.ndarray:
    return np.clip((1 + np.asarray(a)) / 2, 0, 1)


def patterns(n: int) -> np.ndarray:
    return np.array(list(itertools.product((-1.0, 1.0), repeat=n)))


def layers(*sizes: int, seed: int = 0, scale: float = 2.0) -> Layers:
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(sizes)
    return [(scale * rng.uniform(-1, 1, (n, m)), rng.uniform(-1, 1, n)) for m, n in pairs]


def paths(net: Layers, x0: np.ndarray, F: Callable = cdf) -> tuple[list[np.ndarray], np.ndarray]:
    """All joint states, layer by layer, and their probabilities, one path at a time."""
    widths = [len(b) for _, b in net]
    splits = np.cumsum(widths)[:-1]
    rows, p = patterns(sum(widths)), []
    for row in rows:
        below, product = x0, 1.0
        for (w, b), x in zip(net, np.split(row, splits), strict=True):
            for i, bit in enumerate(x):
                plus = F(w[i] @ below + b[i])
                product *= plus if bit > 0 else 1 - plus
            below = x
        p.append(product)
    return np.split(rows, splits, axis=1), np.array(p)


def passes(net: Layers, x0: np.ndarray, rng: np.random.Generator, M: int) -> list[np.ndarray]:
    """The states of all layers in M passes, from thresholds."""
    x, drawn = np.broadcast_to(x0, (M, len(x0))), []
    for w, b in net:
        x = np.where(x @ w.T + b - rng.logistic(size=(M, len(b))) >= 0, 1.0, -1.0)
        drawn.append(x)
    return drawn


def in_torch(net: Layers) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [torch.tensor(w) for w, _ in net], [torch.tensor(b) for _, b in net]


def as_sbn(net: Layers, noise: object = None) -> sbnlib.SBN:
    made = [nn.Linear(w.shape[1], w.shape[0]) for w, _ in net]
    for layer, (w, b) in zip(made, net, strict=True):
        layer.weight.data, layer.bias.data = torch.tensor(w), torch.tensor(b)
    return sbnlib.SBN(*made, noise=noise or Logistic())


def rough(x: np.ndarray) -> np.ndarray:
    """A loss without structure."""
    return np.sin(3 * x[..., 0] + x[..., -1]) + np.exp(x).prod(-1)


def rough_torch(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(3 * x[..., 0] + x[..., -1]) + x.exp().prod(-1)


def total(widths: Sequence[int]) -> int:
    """The layer-by-layer count, by making the lists of terms."""
    count = sum(1 for _ in itertools.product((0, 1), repeat=widths[0]))
    for m, n in itertools.pairwise(widths):
        count += 2**m * 2**n
    return count + 2 ** widths[-1]


@pytest.fixture(scope="module")
def by_hand() -> dict[str, object]:
    names = ("noise", "F", "W", "b", "inputs", "targets", "score", "loss", "probability", "sample")
    names += ("states", "transition", "forward", "forward_bits", "by_layers", "by_enumeration")
    with as_in_the_book():
        return define(PAGE, *names)


def xor(by_hand: dict) -> Layers:
    """The weights of the chapter."""
    return [(w.numpy(), b.numpy()) for w, b in zip(by_hand["W"], by_hand["b"], strict=True)]


# ------------------------------------------------------------------------------ the law


def test_the_layers_are_signs_of_pre_activation_minus_threshold() -> None:
    """Thresholds in words: x = sign(a - Z), with Z drawn here, is what the network puts out."""
    net, rng = as_sbn(layers(2, 3, 2)), np.random.default_rng(0)
    u = [torch.tensor(rng.uniform(size=(5, n))) for n in (3, 2)]
    x = rng.normal(size=(5, 2))
    out = net(torch.tensor(x), u=u).detach().numpy()
    for (w, b), uniforms in zip(layers(2, 3, 2), u, strict=True):
        z = np.log(uniforms.numpy() / (1 - uniforms.numpy()))  # the logistic quantile
        x = np.where(x @ w.T + b - z >= 0, 1.0, -1.0)
    assert np.array_equal(out, x)


@pin(
    "eq-02-law",
    r"""
    \begin{gathered} p(x_1,\dots,x_K\mid
    x_0)=\prod_{k=1}^{K}\;\prod_{i=1}^{n_k}F\bigl(x_{k,i}\,a_{k,i}\bigr),\\ a_k=W_kx_{k-1}+b_k .
    \end{gathered}
    """,
)
def test_eq_02_law(by_hand: dict) -> None:
    net = xor(by_hand)
    for x0 in by_hand["inputs"]:
        states, p = paths(net, x0.numpy())
        found = by_hand["probability"](x0, [torch.tensor(s) for s in states])
        assert np.allclose(found.numpy(), p, rtol=1e-12)
        assert abs(p.sum() - 1) < 1e-12


@pin(
    "thm-02-law",
    r"""
    Let all thresholds be independent with one continuous distribution function $F$, symmetric
    about zero. Then {eq-02-law}
    """,
)
def test_thm_02_law_by_sampling_thresholds() -> None:
    """Frequencies of all 32 paths of the thresholded network; false alarm 1e-6."""
    net, M = layers(2, 3, 2, seed=1), 200_000
    drawn = passes(net, np.array([0.3, -0.7]), np.random.default_rng(0), M)
    index = (np.concatenate(drawn, axis=1) > 0) @ (1 << np.arange(4, -1, -1))
    _, p = paths(net, np.array([0.3, -0.7]))
    z = (np.bincount(index, minlength=32) - M * p) / np.sqrt(M * p * (1 - p))
    assert np.abs(z).max() < z_limit(32)


def test_thm_02_law_needs_independent_layers() -> None:
    z, w = np.random.default_rng(0).logistic(size=100_000), 0.5
    x1 = np.where(-z >= 0, 1.0, -1.0)
    x2 = np.where(w * x1 - z >= 0, 1.0, -1.0)
    assert (x2[x1 > 0] == 1).all() and cdf(w) < 0.7
    assert "1.000 +- 0.000" in printed(containing(PAGE, "two thresholds"))


def test_thm_02_law_needs_independent_units() -> None:
    z, a = np.random.default_rng(0).logistic(size=1000), 0.4
    assert ((a - z >= 0) == (a - z >= 0)).all() and 2 * cdf(a) * cdf(-a) > 0.4


def test_thm_02_law_needs_continuity() -> None:
    """Z = +-1 with probability one half each, at a = 1."""
    z = np.array([-1.0, 1.0])
    assert np.mean(1.0 - z < 0) == 0.0 and np.mean(z <= -1.0) == 0.5


def test_sampling_by_hand_is_the_librarys(by_hand: dict) -> None:
    net = as_sbn(xor(by_hand))
    x0 = by_hand["inputs"].expand(100, 4, 2)
    mine = by_hand["sample"](x0, torch.Generator().manual_seed(1))
    stream = torch.Generator().manual_seed(1)
    u = [torch.rand(100, 4, n, generator=stream) for n in (3, 2)]
    assert torch.equal(mine, net(x0, u=u))


def test_states_by_hand_are_the_librarys(by_hand: dict) -> None:
    for n in (1, 2, 5):
        assert torch.equal(by_hand["states"](n), all_states(n, dtype=torch.float64))
        assert np.array_equal(by_hand["states"](n).numpy(), patterns(n))


# --------------------------------------------------------------------------- expectations


@pin(
    "eq-02-expectation",
    r"""
    \mathbb{E}\,L(x_K)=\sum_{x_1}\cdots\sum_{x_K}p(x_1,\dots,x_K\mid x_0)\,L(x_K),
    """,
)
def test_eq_02_expectation() -> None:
    """The mean over thresholds drawn here, the sum over states, and the library."""
    net, x0 = layers(2, 3, 2, 2, seed=2), np.array([[0.3, -0.7], [1.0, 0.2]])
    found = sbnlib.exact_expectation(as_sbn(net), torch.tensor(x0), rough_torch)
    rng, M = np.random.default_rng(0), 200_000
    for value, row in zip(found.detach().numpy(), x0, strict=True):
        states, p = paths(net, row)
        expected = p @ rough(states[-1])
        assert np.isclose(value, expected, rtol=1e-12)
        losses = rough(passes(net, row, rng, M)[-1])
        assert abs(losses.mean() - expected) < z_limit(2) * losses.std() / M**0.5


@pin(
    "eq-02-covariance",
    r"""
    \begin{gathered} \operatorname{Cov}(x_{k,i},x_{k,j}\mid
    x_0)=\operatorname{Cov}\bigl(\mu_{k,i},\,\mu_{k,j}\mid x_0\bigr),\\
    \mu_{k,i}=2F(a_{k,i})-1,\quad i\ne j . \end{gathered}
    """,
)
def test_eq_02_covariance() -> None:
    """Both sides by enumeration, for layers 1, 2 and 3."""
    net, x0 = layers(2, 3, 3, 2, seed=3), np.array([0.3, -0.7])
    states, p = paths(net, x0)
    below = [np.broadcast_to(x0, (len(p), 2)), *states]
    for k, (w, b) in enumerate(net):
        mu = 2 * cdf(below[k] @ w.T + b) - 1
        left, right = (_covariance(p, v[:, 0], v[:, 1]) for v in (states[k], mu))
        assert abs(left - right) < 1e-14
        assert abs(left) < 1e-14 if k == 0 else abs(left) > 1e-3


def _covariance(p: np.ndarray, u: np.ndarray, v: np.ndarray) -> float:
    return float(p @ (u * v) - (p @ u) * (p @ v))


@pin(
    "eq-02-kronecker",
    r"""
    \begin{gathered} T_k(x,x')=\prod_{i=1}^{n_k}F\bigl(x'_i\,a_i(x)\bigr),\\
    T_k(x,\cdot)=\bigotimes_{i=1}^{n_k}\bigl(F(-a_i(x)),\;F(a_i(x))\bigr), \end{gathered}
    """,
)
def test_eq_02_kronecker(by_hand: dict) -> None:
    a = np.random.default_rng(0).uniform(-3, 3, size=(5, 3))
    table = by_hand["transition"](torch.tensor(a)).numpy()
    for row, logits in zip(table, a, strict=True):
        kron = np.ones(1)
        for v in logits:
            kron = np.kron(kron, [1 - cdf(v), cdf(v)])
        assert np.allclose(row, kron, rtol=1e-13)
        product = [np.prod(cdf(s * logits)) for s in patterns(3)]
        assert np.allclose(row, product, rtol=1e-13)
    assert np.allclose(table.sum(axis=1), 1)


@pin(
    "eq-02-forward",
    r"""
    \begin{gathered} \pi_k=\pi_{k-1}T_k\quad(k=2,\dots,K),\\
    \mathbb{E}\,L(x_K)=\sum_{x}\pi_K(x)\,L(x). \end{gathered}
    """,
)
@pytest.mark.parametrize("sizes", [(2, 3), (2, 3, 2), (1, 2, 3, 2)])
def test_eq_02_forward(by_hand: dict, sizes: tuple[int, ...]) -> None:
    net, x0 = layers(*sizes, seed=4), np.random.default_rng(5).normal(size=(3, sizes[0]))
    pi = by_hand["forward"](torch.tensor(x0), *in_torch(net)).numpy()
    for row, x in zip(pi, x0, strict=True):
        states, p = paths(net, x)
        marginal = [p[(states[-1] == s).all(axis=1)].sum() for s in patterns(sizes[-1])]
        assert np.allclose(row, marginal, rtol=1e-12)
        assert np.isclose(row @ rough(patterns(sizes[-1])), p @ rough(states[-1]), rtol=1e-12)


def test_thm_02_forward_needs_layers() -> None:
    """With a connection from x_1 to x_3 equal laws of x_2 lead to two laws of x_3."""
    w, c = 2.0, 1.0  # x_3 looks at x_1 and x_2; both are fair coins
    equal = {(1, 1): 0.5, (-1, -1): 0.5}
    independent = dict.fromkeys(itertools.product((-1, 1), repeat=2), 0.25)
    on = [sum(p * cdf(w * (a + b) + c) for (a, b), p in v.items()) for v in (equal, independent)]
    assert abs(on[0] - on[1]) > 0.05


@pin(
    "thm-02-forward",
    r"""
    For a network with the distribution {eq}`eq-02-law`, $\pi_1(x)=\prod_iF(x_ia_{1,i})$ and
    {eq-02-forward} For one input this forms
    $2^{n_1}+\sum_{k=1}^{K-1}2^{n_k+n_{k+1}}+2^{n_K}$ terms: entries of $\pi_1$, entries of the
    matrices, and values of the loss. The sum {eq}`eq-02-expectation` has $2^{n_1+\dots+n_K}$.
    """,
)
def test_thm_02_forward_counts_its_terms(by_hand: dict) -> None:
    """The count is that of the numbers which the recursion forms."""
    formed: list[int] = []

    def counting(a: torch.Tensor) -> torch.Tensor:
        table = by_hand["transition"](a)
        formed.append(table.numel())
        return table

    space = dict(by_hand, transition=counting)
    exec(_source_of("forward"), space)
    for widths in ([3, 2], [2, 3, 1], [2, 1, 3, 2]):
        formed.clear()
        pi = space["forward"](torch.zeros(1, 2), *in_torch(layers(2, *widths)))
        assert sum(formed) + pi.numel() == total(widths) == by_hand["by_layers"](widths)
        assert by_hand["by_enumeration"](widths) == len(patterns(sum(widths)))
        assert exact_cost.terms(widths)["layers"] == total(widths)


def _source_of(name: str) -> str:
    """The definition of a function in the notebook."""
    source = containing(PAGE, f"def {name}(").source
    start = source.index(f"def {name}(")
    lines = source[start:].split("\n")
    end = next((i for i, line in enumerate(lines[1:], 1) if line and line[0] != " "), len(lines))
    return "\n".join(lines[:end])


@pin(
    "thm-02-gain",
    r"""
    Let all $n_k\ge1$. The layer-by-layer count of {prf:ref}`thm-02-forward` is smaller than
    $2^{n_1+\dots+n_K}$ if and only if there are at least three stochastic layers, except for *
    $K=3$ with $n_1=n_3=1$, or with $\{n_1,n_3\}=\{1,2\}$ and $n_2=1$; * $K=4$ with one unit in
    each layer, where the two counts are equal.
    """,
)
def test_thm_02_gain() -> None:
    """All nets of one to five layers of at most seven units."""
    for K in range(1, 6):
        for n in itertools.product(range(1, 8), repeat=K):
            gain = total(n) < 2 ** sum(n)
            assert gain == (K >= 3 and not _excepted(n)), n
    assert total([1] * 4) == 2**4


def _excepted(n: tuple[int, ...]) -> bool:
    if len(n) == 3:
        ends = {n[0], n[2]}
        return ends == {1} or (ends == {1, 2} and n[1] == 1)
    return n == (1, 1, 1, 1)


@pin(
    "eq-02-backward",
    r"""
    \begin{gathered} V_{k-1}=T_k\,V_k,\\ V_k(x)=\mathbb{E}\bigl[L(x_K)\mid x_k=x\bigr],\\
    \mathbb{E}\,L(x_K)=\pi_k\,V_k , \end{gathered}
    """,
)
def test_eq_02_backward(by_hand: dict) -> None:
    """V_k is a conditional mean, by enumeration, and a derivative, by finite differences."""
    net, x0 = layers(2, 3, 2, 2, seed=6), np.array([0.3, -0.7])
    transition = by_hand["transition"]
    tables = [
        np.array([transition(torch.tensor(w @ s + b)).numpy() for s in patterns(w.shape[1])])
        for w, b in net[1:]
    ]
    states, p = paths(net, x0)
    v, loss = [rough(patterns(2))], rough(states[-1])
    for table in reversed(tables):
        v.insert(0, table @ v[0])
    for k, vk in enumerate(v):
        for x, value in zip(patterns(len(net[k][1])), vk, strict=True):
            here = (states[k] == x).all(axis=1)
            assert np.isclose(p[here] @ loss[here] / p[here].sum(), value, rtol=1e-12)
        pi = np.array([p[(states[k] == s).all(axis=1)].sum() for s in patterns(len(net[k][1]))])
        assert np.isclose(pi @ vk, p @ loss, rtol=1e-12)
    pi = np.array([p[(states[0] == s).all(axis=1)].sum() for s in patterns(3)])
    T, h = tables[0].copy(), 1e-6
    T[2, 1] += h
    change = (pi @ T @ v[1] - pi @ tables[0] @ v[1]) / h
    assert np.isclose(change, pi[2] * v[1][1], atol=1e-8)


@pin(
    "eq-02-split",
    r"""
    \begin{gathered} (\pi T)(i,j)=\sum_x\pi(x)\,H(x,i)\,G(x,j),\\ \text{as a table:}\quad
    H^\top\operatorname{diag}(\pi)\,G . \end{gathered}
    """,
)
def test_eq_02_split() -> None:
    rng = np.random.default_rng(0)
    a, pi = rng.uniform(-3, 3, size=(8, 5)), rng.uniform(size=8)
    rows = [[np.prod(cdf(s * v)) for s in patterns(5)] for v in a]
    H = np.array([[np.prod(cdf(s * v[:2])) for s in patterns(2)] for v in a])
    G = np.array([[np.prod(cdf(s * v[2:])) for s in patterns(3)] for v in a])
    assert np.allclose(H.T @ np.diag(pi) @ G, (pi @ np.array(rows)).reshape(4, 8), rtol=1e-13)


def test_exact_gradient_is_the_slope_of_the_enumeration() -> None:
    net, x0, h = layers(2, 2, 2, seed=7), np.array([0.4, -1.1]), 1e-5
    _, grads = sbnlib.exact_gradient(as_sbn(net), torch.tensor(x0[None]), rough_torch)
    for k, (i, j) in ((0, (1, 0)), (1, (0, 1))):
        values = []
        for step in (h, -h):
            moved = [(w.copy(), b) for w, b in net]
            moved[k][0][i, j] += step
            states, p = paths(moved, x0)
            values.append(p @ rough(states[-1]))
        slope = (values[0] - values[1]) / (2 * h)
        assert np.isclose(grads[f"layers.{k}.weight"][i, j].item(), slope, atol=1e-8)


# ------------------------------------------------------------------------ measured times


def test_the_three_ways_agree() -> None:
    for widths in ([3], [3, 3], [2, 2, 2]):
        net, x0, loss = exact_cost.problem(widths)
        plain = [(la.weight.detach().numpy(), la.bias.detach().numpy()) for la in net.layers]
        states, p = paths(plain, x0[0].numpy())
        truth = p @ loss(torch.tensor(states[-1])).numpy()
        for way in exact_cost.WAYS.values():
            assert np.isclose(way(net, x0, loss).item(), truth, rtol=1e-12)


def test_enumeration_in_blocks_is_the_same() -> None:
    given = exact_cost.problem([2, 3])
    whole, parts = (exact_cost.enumeration(*given, block=n) for n in (32, 5))
    assert torch.allclose(whole, parts, rtol=1e-14)


def test_command_writes_a_measurement(tmp_path, capsys) -> None:
    out = tmp_path / "x.json"
    assert exact_cost.main(["--most", "64", "--out", str(out)]) == 0
    found = measurement.read(out)
    assert found["checks"] == {"same numbers": True} and found["rows"]
    assert all(r["terms"] <= 64 and r["seconds"] > 0 for r in found["rows"])
    assert found["command"].endswith("--most 64")
    with pytest.raises(SystemExit):
        exact_cost.main(["--most", "2"])
    assert "must be an integer >= 16" in capsys.readouterr().err


def test_stored_times_bear_out_what_the_text_says() -> None:
    stored = measurement.read(STORED)
    assert stored["checks"]["same numbers"]
    at = {(r["way"], r["layers"], r["width"]): r for r in stored["rows"]}
    for (way, K, n), row in at.items():
        assert row["terms"] == (2 ** (K * n) if way == "enumeration" else total([n] * K))
    seconds = {key: row["seconds"] for key, row in at.items()}
    assert seconds["enumeration", 5, 4] > 100 * seconds["library", 5, 4]
    assert seconds["layers", 3, 10] > 2 * seconds["library", 3, 10]
    assert seconds["enumeration", 4, 2] < seconds["library", 4, 2]
    assert seconds["enumeration", 2, 10] > 10 * seconds["layers", 2, 10]
    assert json.loads(STORED.read_text())["command"] in printed(containing(PAGE, "exact-cost"))


# --------------------------------------------------------------------------- signs or bits


def bits_of(net: Layers) -> Layers:
    return [net[0], *((2 * w, b - w.sum(axis=1)) for w, b in net[1:])]


def law_with_bits(net: Layers, x0: np.ndarray, F: Callable = cdf) -> np.ndarray:
    """As ``paths``, but every layer hands on 0 and 1."""
    widths = [len(b) for _, b in net]
    p = []
    for row in patterns(sum(widths)):
        below, product = x0, 1.0
        for (w, b), x in zip(net, np.split(row, np.cumsum(widths)[:-1]), strict=True):
            plus = F(w @ below + b)
            product *= np.where(x > 0, plus, 1 - plus).prod()
            below = (x + 1) / 2
        p.append(product)
    return np.array(p)


@pin(
    "eq-02-coding",
    r"""
    \begin{gathered} W_k(2\chi_{k-1}-\mathbf 1)+b_k=W_k'\,\chi_{k-1}+b_k',\\
    W_k'=2W_k,\qquad b_k'=b_k-W_k\mathbf 1 . \end{gathered}
    """,
)
def test_eq_02_coding(by_hand: dict) -> None:
    net, x0 = layers(2, 3, 2, 2, seed=8), np.array([0.3, -0.7])
    _, p = paths(net, x0)
    assert np.allclose(law_with_bits(bits_of(net), x0), p, rtol=1e-12)
    pi = by_hand["forward_bits"](torch.tensor(x0[None]), *in_torch(bits_of(net)))
    direct = by_hand["forward"](torch.tensor(x0[None]), *in_torch(net))
    assert torch.allclose(pi, direct, rtol=1e-12)


@pin(
    "thm-02-coding",
    r"""
    A network with signs and one with bits have the same noise and the same first layer. If
    {eq}`eq-02-coding` holds for $k=2,\dots,K$, then their states correspond,
    $\chi_k=(x_k+\mathbf 1)/2$, for every draw of the thresholds; in particular their
    distributions are the same. If $F$ is strictly increasing on $\mathbb{R}$ the converse is
    true as well: equal distributions at one input imply {eq}`eq-02-coding`.
    """,
)
def test_thm_02_coding_same_thresholds_same_states() -> None:
    net, rng = layers(2, 4, 3, seed=9), np.random.default_rng(1)
    x = y = rng.normal(size=(1000, 2))
    for k, ((w, b), (w_, b_)) in enumerate(zip(net, bits_of(net), strict=True)):
        z = rng.logistic(size=(1000, len(b)))
        x, y = np.sign(x @ w.T + b - z), np.heaviside(y @ w_.T + b_ - z, 1)
        assert np.array_equal(x, 2 * y - 1), k


def test_thm_02_coding_converse() -> None:
    """Any other weights give another law; with bounded noise they need not."""
    net, x0 = layers(2, 2, 2, seed=10), np.array([0.3, -0.7])
    p = law_with_bits(bits_of(net), x0)
    for i, j in itertools.product(range(2), repeat=2):
        other = bits_of(net)
        other[1][0][i, j] += 0.1
        assert np.abs(law_with_bits(other, x0) - p).max() > 1e-4
        shifted = bits_of(net)
        shifted[1][1][i] += 0.1
        assert np.abs(law_with_bits(shifted, x0) - p).max() > 1e-4
    saturated = [net[0], (np.ones((2, 2)), np.full(2, 3.0))]
    doubled = [net[0], (2 * np.ones((2, 2)), np.full(2, 6.0))]
    laws = [law_with_bits(v, np.zeros(2), uniform_cdf) for v in (saturated, doubled)]
    assert np.array_equal(*laws)


@pin(
    "eq-02-coding-gradient",
    r"""
    \begin{gathered} \frac{\partial\,\mathbb{E}L}{\partial
    W_k}=2\,\frac{\partial\,\mathbb{E}L}{\partial W_k'}-\frac{\partial\,\mathbb{E}L}{\partial
    b_k'}\,\mathbf 1^\top,\\ \frac{\partial\,\mathbb{E}L}{\partial
    b_k}=\frac{\partial\,\mathbb{E}L}{\partial b_k'} . \end{gathered}
    """,
)
def test_eq_02_coding_gradient() -> None:
    """Both gradients by central differences of the two enumerations."""
    net, x0, h = layers(2, 2, 2, seed=11), np.array([0.3, -0.7]), 1e-5
    loss = rough(paths(net, x0)[0][-1])

    def slopes(net: Layers, law: Callable) -> tuple[np.ndarray, np.ndarray]:
        w, b = net[1]
        found = []
        for part in (w, b):
            grad = np.zeros_like(part)
            for index in np.ndindex(part.shape):
                values = []
                for step in (h, -h):
                    part[index] += step
                    values.append(law(net, x0) @ loss)
                    part[index] -= step
                grad[index] = (values[0] - values[1]) / (2 * h)
            found.append(grad)
        return found[0], found[1]

    G, g = slopes(net, lambda n, x: paths(n, x)[1])
    G_, g_ = slopes(bits_of(net), law_with_bits)
    assert np.allclose(G, 2 * G_ - np.outer(g_, np.ones(2)), atol=1e-8)
    assert np.allclose(g, g_, atol=1e-8)
    assert np.abs(G - 2 * G_).max() > 1e-3  # the second term is needed


def test_ex_02_coding_step() -> None:
    """A step in bits, in the coordinates of signs, by moving both."""
    rng, lr, n = np.random.default_rng(0), 0.7, 3
    W, G_ = rng.normal(size=(2, 2, n))
    b, h = rng.normal(size=(2, 2))
    W_, b_ = 2 * W - lr * G_, b - W.sum(1) - lr * h
    new_W, new_b = W_ / 2, b_ + W_.sum(1) / 2
    G = 2 * G_ - np.outer(h, np.ones(n))
    assert np.allclose(new_W, W - lr / 4 * (G + np.outer(h, np.ones(n))))
    assert np.allclose(new_b, b - lr * h - lr / 4 * (G.sum(1) + n * h))


# ----------------------------------------------------------------------------- predictions


def mean_field(net: Layers, x0: np.ndarray, F: Callable = cdf) -> np.ndarray:
    for w, b in net:
        x0 = 2 * F(w @ x0 + b) - 1
    return x0


def mean(net: Layers, x0: np.ndarray, F: Callable = cdf) -> np.ndarray:
    states, p = paths(net, x0, F)
    return p @ states[-1]


@pin("eq-02-mean-field", r"m_0=x_0,\qquad m_k=2F(W_km_{k-1}+b_k)-1 .")
def test_eq_02_mean_field() -> None:
    net, x0 = layers(2, 3, 2, 2, seed=12), np.array([0.3, -0.7])
    found = as_sbn(net)(torch.tensor(x0[None]), mode="mean").detach().numpy()[0]
    assert np.allclose(found, mean_field(net, x0), rtol=1e-13)
    tanh = x0
    for w, b in net:
        tanh = np.tanh((w @ tanh + b) / 2)
    assert np.allclose(found, tanh, rtol=1e-12)


@pin(
    "thm-02-mean-field",
    r"""
    Let $m_k$ be given by {eq}`eq-02-mean-field`, in a network with the distribution
    {eq}`eq-02-law`. 1. $m_1=\mathbb{E}[x_1\mid x_0]$. With one stochastic layer,
    $\mathbb{E}\,\psi(x_1)=\psi(m_1)$ for every multilinear $\psi$, in particular for a linear
    head. 2. At any depth, if the noise is uniform on $[-\sigma,\sigma]$, no unit leaves
    $|a|\le\sigma$ in any state that occurs, and $\psi$ is affine, then
    $\mathbb{E}\,\psi(x_K)=\psi(m_K)$.
    """,
)
def test_thm_02_mean_field_one_layer() -> None:
    """Exact for products of different bits, not for squares."""
    net, x0 = layers(2, 4, seed=13), np.array([0.3, -0.7])
    (x,), p = paths(net, x0)
    m = mean_field(net, x0)
    for subset in ([0], [1, 3], [0, 1, 2, 3]):
        assert np.isclose(p @ x[:, subset].prod(axis=1), m[subset].prod(), rtol=1e-12)
    assert np.isclose(p @ x[:, 0] ** 2, 1) and m[0] ** 2 < 0.99


@pytest.mark.parametrize("sigma", [1.0, 2.5])
def test_thm_02_mean_field_uniform_noise(sigma: float) -> None:
    """Three layers that never saturate; a product of two units is off by their covariance."""
    net, x0 = layers(2, 3, 3, 2, seed=14, scale=0.25), np.array([0.3, -0.7])
    net = [(sigma * w, sigma * b / 8) for w, b in net]
    assert all(np.abs(w).sum(1).max() + np.abs(b).max() < sigma for w, b in net)
    F = lambda a: uniform_cdf(np.asarray(a) / sigma)  # noqa: E731
    states, p = paths(net, x0, F)
    m = mean_field(net, x0, F)
    assert np.allclose(p @ states[-1], m, atol=1e-14)
    product = p @ states[-1].prod(axis=1) - m.prod()
    assert np.isclose(product, _covariance(p, *states[-1].T)) and abs(product) > 1e-4
    found = sbnlib.exact_expectation(
        as_sbn(net, Uniform(sigma)), torch.tensor(x0[None]), rough_torch
    )
    assert np.isclose(found.item(), p @ rough(states[-1]))


def test_thm_02_mean_field_fails_for_logistic_noise() -> None:
    net, x0 = layers(2, 3, 3, 2, seed=14, scale=0.25), np.array([0.3, -0.7])
    assert np.abs(mean(net, x0) - mean_field(net, x0)).max() > 1e-5


@pin(
    "eq-02-two-units",
    r"""
    \begin{gathered} \mathbb{E}\,x_2=p\,\mu(b+w)+(1-p)\,\mu(b-w),\\
    m_2=\mu\bigl(b+(2p-1)\,w\bigr), \end{gathered}
    """,
)
@pytest.mark.parametrize(("p", "w", "b"), [(0.5, 2.0, 0.3), (0.1, -4.0, 1.0), (0.9, 8.0, 4.0)])
def test_eq_02_two_units(p: float, w: float, b: float) -> None:
    net = [(np.zeros((1, 1)), np.array([log(p / (1 - p))])), (np.array([[w]]), np.array([b]))]
    mu = lambda a: np.tanh(a / 2)  # noqa: E731
    assert np.isclose(mean(net, np.zeros(1))[0], p * mu(b + w) + (1 - p) * mu(b - w), rtol=1e-12)
    assert np.isclose(mean_field(net, np.zeros(1))[0], mu(b + (2 * p - 1) * w), rtol=1e-12)


def test_ex_02_mean_field_comes_close_to_two() -> None:
    p, c = 1e-4, 12.0
    w = c / p
    b = (1 - 2 * p) * w + c
    mu = lambda a: np.tanh(a / 2)  # noqa: E731
    assert mu(b + (2 * p - 1) * w) - (p * mu(b + w) + (1 - p) * mu(b - w)) > 1.999
    assert b - w < 0  # the deterministic pass is right


@pin(
    "eq-02-jensen",
    r"""
    \begin{aligned} &\bigl|\,\mathbb{E}\,x_{2,i}-m_{2,i}\bigr|\\
    &\qquad\le\;\sup|f'|\;\sum_jW_{2,ij}^2\,(1-m_{1,j}^2). \end{aligned}
    """,
)
def test_eq_02_jensen() -> None:
    slope = 1 / (6 * 3**0.5)
    a = np.linspace(-6, 6, 10_001)
    f = cdf(a) * cdf(-a)
    assert np.isclose(np.abs(np.gradient(f, a)).max(), slope, rtol=1e-4)
    for seed in range(40):
        net, x0 = layers(2, 3, 2, seed=seed, scale=3.0), np.array([0.3, -0.7])
        w, m1 = net[1][0], mean_field(net[:1], x0)
        bound = slope * (w**2) @ (1 - m1**2)
        assert (np.abs(mean(net, x0) - mean_field(net, x0)) <= bound + 1e-14).all()
    # with small weights about the steepest point of f the bound is reached
    steepest = a[np.abs(np.gradient(f, a)).argmax()]
    net = [(np.zeros((1, 1)), np.zeros(1)), (np.array([[0.05]]), np.array([steepest]))]
    error = np.abs(mean(net, np.zeros(1)) - mean_field(net, np.zeros(1)))
    assert 0.99 < error[0] / (slope * 0.05**2) <= 1


@pin(
    "thm-02-jensen",
    r"""
    If $f$ is differentiable with a bounded derivative, then for $K=2$ {eq-02-jensen}
    """,
)
def test_thm_02_jensen_leading_term() -> None:
    """For small weights the error is f'(a) times the sum, to relative order of the weights."""
    (first, (w, b)), x0 = layers(2, 3, 2, seed=15), np.array([0.3, -0.7])
    m1 = mean_field([first], x0)
    for scale in (1e-1, 1e-2):
        net = [first, (scale * w, b)]
        a = scale * w @ m1 + b
        slope = cdf(a) * cdf(-a) * (1 - 2 * cdf(a))
        leading = slope * ((scale * w) ** 2 @ (1 - m1**2))
        error = mean(net, x0) - mean_field(net, x0)
        assert np.allclose(error, leading, rtol=5 * scale)


def test_thm_02_jensen_needs_a_bounded_slope_of_f() -> None:
    """Uniform noise, a fair coin below, a = 1 + w x: the error is w/2."""
    for w in (0.1, 0.01):
        net = [(np.zeros((1, 1)), np.zeros(1)), (np.array([[w]]), np.ones(1))]
        gap = mean_field(net, np.zeros(1), uniform_cdf) - mean(net, np.zeros(1), uniform_cdf)
        assert np.isclose(gap[0], w / 2)


@pin(
    "eq-02-ensemble",
    r"""
    \begin{gathered} \mathbb{E}\,q_M=q,\\
    \operatorname{Var}q_M=\frac{\operatorname{Var}\psi(x_K)}{M}\le\frac{q(1-q)}{M}\le\frac1{4M} .
    \end{gathered}
    """,
)
def test_eq_02_ensemble() -> None:
    """Mean and variance of averages over all M-tuples of states; the bounds."""
    net, x0, M = layers(2, 2, 2, seed=16), np.array([0.3, -0.7]), 3
    states, p = paths(net, x0)
    g = cdf(states[-1].sum(axis=1))
    marginal = [p[(states[-1] == s).all(axis=1)].sum() for s in patterns(2)]
    values = [cdf(s.sum()) for s in patterns(2)]
    tuples = list(itertools.product(range(4), repeat=M))
    law = np.array([np.prod([marginal[i] for i in t]) for t in tuples])
    average = np.array([np.mean([values[i] for i in t]) for t in tuples])
    q = p @ g
    assert np.isclose(law @ average, q)
    variance = law @ (average - q) ** 2
    assert np.isclose(variance, (p @ g**2 - q**2) / M)
    assert variance <= q * (1 - q) / M <= 1 / (4 * M)


def test_ex_02_ensemble_log_loss_falls() -> None:
    """By tuples for small M, then by the chapter's own sum; it approaches -log q from above."""
    log_loss = define(PAGE, "log_loss")["log_loss"]
    pi = np.array([0.2, 0.1, 0.3, 0.4])
    g = cdf(np.array([-2.0, 0.0, 0.0, 2.0]))
    for M in (1, 2, 3):
        tuples = list(itertools.product(range(4), repeat=M))
        direct = sum(np.prod(pi[list(t)]) * -log(g[list(t)].mean()) for t in tuples)
        assert np.isclose(log_loss(M, torch.tensor(pi), 1.0), direct)
    row = [log_loss(M, torch.tensor(pi), 1.0) for M in range(1, 12)]
    assert np.all(np.diff(row) < 0) and row[-1] > -log(pi @ g)


def test_ex_02_ensemble_error_rate_may_rise() -> None:
    """One unit, P(right) = 0.4: the majority of M votes is right ever more seldom."""
    right = [
        sum(comb(M, k) * 0.4**k * 0.6 ** (M - k) for k in range(M // 2 + 1, M + 1))
        for M in (1, 11, 101)
    ]
    assert right[0] > right[1] > right[2] and right[2] < 0.03


def test_neither_cheap_prediction_dominates() -> None:
    one = [(np.zeros((1, 1)), np.array([-0.5])), (np.array([[10.0]]), np.array([5.0]))]
    assert mean(one, np.zeros(1)) < 0 < mean_field(one, np.zeros(1)) and -10 + 5 < 0
    eleven = [(np.zeros((11, 1)), np.full(11, 0.2)), (np.ones((1, 11)), np.array([-4.0]))]
    p = cdf(0.2)
    exact = sum(
        comb(11, k) * p**k * (1 - p) ** (11 - k) * np.tanh((2 * k - 15) / 2) for k in range(12)
    )
    assert exact < 0 and mean_field(eleven, np.zeros(1)) < 0 < 11 - 4
    out = printed(containing(PAGE, "eleven units below"))
    assert f"{exact:.3f}" in out and f"{mean(one, np.zeros(1))[0]:.3f}" in out


def test_mean_field_is_wrong_about_an_input_of_xor(by_hand: dict) -> None:
    net = [(w / 2, b / 2) for w, b in xor(by_hand)]
    states, p = paths(net, np.array([-1.0, 1.0]))
    exact = p @ cdf(states[-1].sum(axis=1))
    field = cdf(mean_field(net, np.array([-1.0, 1.0])).sum())
    assert exact < 0.5 < field
    assert f"{exact:.3f}, mean-field {field:.3f}" in printed(containing(PAGE, "noisy = sbnlib"))


def test_low_noise_limit() -> None:
    """All predictions agree where no pre-activation of the deterministic path is zero."""
    net, x0 = layers(2, 3, 2, seed=17), np.array([0.3, -0.7])
    flat = x0
    for w, b in net:
        assert np.abs(w @ flat + b).min() > 0.05
        flat = np.where(w @ flat + b >= 0, 1.0, -1.0)
    cold = [(w / 1e-3, b / 1e-3) for w, b in net]
    with np.errstate(over="ignore"):
        assert np.allclose(mean(cold, x0), flat) and np.allclose(mean_field(cold, x0), flat)


# ------------------------------------------------------------------------------- exercises


def test_ex_02_independence(by_hand: dict) -> None:
    net = xor(by_hand)
    (x1, x2), p = paths(net, np.array([-1.0, 1.0]))
    seen = p * (x2 == 1).all(axis=1)
    away = _covariance(seen / seen.sum(), x1[:, 0], x1[:, 1])
    out = printed(containing(PAGE, "seen_1"))
    assert away < -0.1 and f"(d) covariance {away:.4f}" in out
    assert f"(b) covariance {_covariance(p, *x2.T):.4f}" in out


def test_ex_02_cost() -> None:
    assert total([12, 2, 12]) == 40960 and round(total([12, 12, 2]) / total([12, 2, 12])) == 410
    B, n = 1000, 10
    ratio = (B * 2 * 4**n + B * 2**n) / (2 * 4**n + B * 2**n)
    assert 660 < ratio < 700


def prior(x0, last, W, b):
    return _law_of_first(x0, W, b)


def likelihood(x0, last, W, b):
    v = _seen(last, W, b)
    return v / v.sum()


def joint(x0, last, W, b):
    return _law_of_first(x0, W, b) * _seen(last, W, b)


def right(x0, last, W, b):
    p = joint(x0, last, W, b)
    return p / p.sum()


def reversed_order(x0, last, W, b):
    return right(x0, last, W, b).flip(0)


def best_path(x0, last, W, b):
    """The largest term in place of the sum over the layers between."""
    p = _law_of_first(x0, W, b) * _seen(last, W, b, np.max)
    return p / p.sum()


def _law_of_first(x0, W, b):
    x = torch.tensor(patterns(len(b[0])))
    return torch.sigmoid(x * (W[0] @ x0 + b[0])).prod(-1)


def _seen(last, W, b, combine=np.sum):
    """P(last | x_1) for every x_1, by enumeration of what lies between."""
    net = [(w.numpy(), c.numpy()) for w, c in zip(W[1:], b[1:], strict=True)]
    found = []
    for x in patterns(len(b[0])):
        states, p = paths(net, x)
        found.append(combine(p[(states[-1] == last.numpy()).all(axis=1)]))
    return torch.tensor(found)


WRONG = {
    prior: "before x_K was seen",
    likelihood: "beforehand is missing",
    joint: "divide by",
    reversed_order: "wrong order",
    best_path: "not the distribution of x_1",
}


def test_the_checker_accepts_a_right_answer(capsys) -> None:
    assert checker(PAGE)(right)
    assert "right on three random networks" in capsys.readouterr().out


@pytest.mark.parametrize("answer", WRONG, ids=lambda f: f.__name__)
def test_the_checker_rejects_a_wrong_answer(answer: Callable, capsys) -> None:
    assert not checker(PAGE)(answer)
    assert WRONG[answer] in capsys.readouterr().out


def test_ex_02_independence_mistakes() -> None:
    """The letters are those of covariances that vanish, by the printed lines."""
    check = checker(PAGE, "check_pairs")
    text = printed(containing(PAGE, "def given(event)"))
    zero = re.findall(r"\((\w)\) covariance 0\.0000", text)
    assert "(e) P(x2 | x1, x0) is the same for all inputs: True" in text
    assert check([*zero, "e"])
    says_to(check, {"abce": "b: ", "ae": "c: ", "acde": "d: ", "ac": "e: "})


def test_ex_02_cost_mistakes() -> None:
    """What is counted instead: walks, tables between layers, the layer in the middle."""

    def terms(a: int, b: int, c: int) -> int:
        return (1 + 2**b) * (2**a + 2**c)

    def tables(a: int, b: int, c: int) -> int:
        return 2 ** (a + b) + 2 ** (b + c)

    check, one, other = checker(PAGE, "check_terms"), (12, 12, 2), (12, 2, 12)
    assert check(terms(*one) / terms(*other)) and check(410)
    says_to(check, {
        2 ** sum(one) / 2 ** sum(other): "walks",
        tables(*one) / tables(*other): "tables",
        2**12 / 2**2: "in the middle",
        terms(*other) / terms(*one): "upside down",
    })  # fmt: skip


def test_the_chapter_is_executed_to_the_end() -> None:
    assert all(c.execution_count for c in cells(PAGE))


# ------------------------------------------------------------------- what the figures draw


def scaled(net: Layers, sigma: float) -> Layers:
    return [(w / sigma, c / sigma) for w, c in net]


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_fig_bars(by_hand: dict, sigma: float) -> None:
    (ax,) = axes(PAGE, "bars", sigma=sigma)
    heights = np.array([bar.get_height() for bar in ax.patches]).reshape(4, 4)
    for x0, row in zip(patterns(2), heights, strict=True):
        (_, x2), p = paths(scaled(xor(by_hand), sigma), x0)
        law = [p[(x2 == votes).all(axis=1)].sum() for votes in patterns(2)]
        assert row == pytest.approx(law, abs=1e-12)


@pytest.mark.parametrize("n", [1, 4])
def test_fig_cost(n: int) -> None:
    (every, layered), measured = curves(PAGE, "cost", n=n)
    assert every[0].tolist() == list(range(1, 9))
    assert every[1] == pytest.approx([2.0 ** (n * k) for k in range(1, 9)])
    assert layered[1] == pytest.approx([2 * 2.0**n + (k - 1) * 4.0**n for k in range(1, 9)])
    rows = measurement.read(STORED)["rows"]
    for way, line in zip(("enumeration", "layers", "library"), measured, strict=True):
        stored = [(r["layers"], r["seconds"]) for r in rows if (r["way"], r["width"]) == (way, n)]
        assert sorted(stored) == sorted(zip(*line, strict=True))


def test_the_caption_says_what_was_timed() -> None:
    timed = {(r["way"], r["layers"], r["width"]) for r in measurement.read(STORED)["rows"]}
    for k, n in itertools.product(range(1, 9), range(1, 12)):
        terms = {"enumeration": 2 ** (k * n), "layers": 2 * 2**n + (k - 1) * 4**n}
        for way, number in terms.items():
            due = k <= 6 and max(terms.values()) >= 16 and number <= 2**22
            assert ((way, k, n) in timed) == due, (way, k, n)


@pytest.mark.parametrize("w", [1.0, 20.0])
def test_fig_copying(w: float) -> None:
    (lines,) = curves(PAGE, "copying", w=w)
    (a, mean), (_, field), (_, step) = lines[1:]
    for j in range(0, 81, 8):
        states, p = paths([(np.zeros((1, 1)), a[j : j + 1]), (np.array([[w]]), np.array([w / 2]))],
                          np.zeros(1))  # fmt: skip
        assert mean[j] == pytest.approx(p @ states[1][:, 0], abs=1e-12)
        below = 2 * cdf(a[j]) - 1
        assert field[j] == pytest.approx(2 * cdf(w / 2 + w * below) - 1, abs=1e-12)
    assert step.tolist() == [-1, -1, 1]  # w/2 + w sign(a) has the sign of a


@pytest.mark.parametrize(("sigma", "m"), [(0.5, 8), (2.0, 64)])
def test_fig_segment(by_hand: dict, sigma: float, m: int) -> None:
    (lines,) = curves(PAGE, "segment", sigma=sigma, M=m)
    (ax,) = axes(PAGE, "segment", sigma=sigma, M=m)
    edge = ax.collections[0].get_paths()[0].vertices
    (fine, flat), (t, mean), (_, field), (_, dots) = lines
    steps = (fine[1:] + fine[:-1])[np.diff(flat) != 0] / 2
    assert steps == pytest.approx([0], abs=1e-12), "the next, at t = 2, is the end of the line"
    assert np.abs(dots - mean).max() < 5 * 0.5 / m**0.5  # Hoeffding: 41 dots, 1e-3 in all
    for j in range(0, 41, 4):
        x, y = np.array([t[j], -1.0]), np.array([fine[19 * j], -1.0])
        (_, x2), p = paths(scaled(xor(by_hand), sigma), x)
        psi = cdf(x2.sum(axis=1))
        assert mean[j] == pytest.approx(p @ psi, abs=1e-12)
        width = 2 * ((p @ psi**2 - (p @ psi) ** 2) / m) ** 0.5
        band = edge[np.isclose(edge[:, 0], t[j]), 1]
        assert band.min() == pytest.approx(max(p @ psi - width, 0), abs=1e-9)
        assert band.max() == pytest.approx(min(p @ psi + width, 1), abs=1e-9)
        for w, c in xor(by_hand):
            x, y = 2 * cdf((w @ x + c) / sigma) - 1, np.where(w @ y + c >= 0, 1.0, -1.0)
        assert field[j] == pytest.approx(cdf(x.sum()), abs=1e-12)
        assert flat[19 * j] == pytest.approx(cdf(y.sum()), abs=1e-12)


def test_only_a_gpu_draws_more_than_is_stored() -> None:
    space = drawing(PAGE, "segment").__globals__
    assert space["where"].type == "cpu" and space["counts"][-1] == 512 == len(space["uniforms"])


@pytest.mark.parametrize("M", [3, 1000])
def test_fig_walks(by_hand: dict, M: int) -> None:
    """Widths are shares of the passes, from thresholds in the place of probabilities."""
    u = torch.rand(1000, 5, generator=torch.Generator().manual_seed(1)).numpy()[:M]
    (w1, b1), (w2, b2) = xor(by_hand)
    z = np.log(u / (1 - u))
    x1 = np.where(w1 @ [-1, 1] + b1 - z[:, :3] >= 0, 1, -1)
    x2 = np.where(x1 @ w2.T + b2 - z[:, 3:] >= 0, 1, -1)
    (ax,) = axes(PAGE, "walks", M=M)
    drawn = {tuple(np.round(k.get_xydata().ravel(), 6)): k for k in ax.lines}
    assert len(drawn) == 8 + 32
    for i, hidden in enumerate(patterns(3)):
        here = (x1 == hidden).all(axis=1)
        first = drawn[0, 3.5, 1, i]
        assert first.get_linewidth() / 18 == pytest.approx(here.mean(), abs=1e-12)
        for j, votes in enumerate(patterns(2)):
            step = drawn[1, i, 2, round(1 + 5 / 3 * j, 6)]
            share = (here & (x2 == votes).all(axis=1)).mean()
            assert step.get_linewidth() / 18 == pytest.approx(share, abs=1e-12)
            assert (step.get_color() == first.get_color()) == (j < 3)


def test_fig_walks_answer(by_hand: dict) -> None:
    """How many walks a hundred and a thousand passes take; the likeliest and the rarest."""
    taken = {}
    for M in (100, 1000):
        (ax,) = axes(PAGE, "walks", M=M)
        taken[M] = sum(k.get_linewidth() > 0 for k in ax.lines[1:] if k.get_xydata()[0, 0] == 1)
    _, p = paths(xor(by_hand), np.array([-1.0, 1.0]))
    assert taken == {100: 9, 1000: 13}
    assert round(p.max(), 1) == 0.6 and p.argmax() == 0 and 0.9e-8 < p.min() < 1.1e-8
    assert round((0.5 * 0.5 / 1000) ** 0.5, 3) == 0.016
    answer = under(containing(PAGE, "def walks"))["answer"]
    assert "9 of the 32 walks and a thousand 13" in answer and "most 0.016" in answer


def test_fig_trellis() -> None:
    """A line for each step: the tree has an end for each walk, the trellis the counted terms."""
    tree, merged = curves(PAGE, "trellis")
    ends = {tuple(np.round(line[:, 1], 6)) for line in tree if line[0, 1] == 3}
    assert len(tree) == 4 + 16 + 64 and len(ends) == 64 == len(patterns(6))
    assert len({line.tobytes() for line in merged}) == len(merged) == total([2, 2, 2]) == 40


@pytest.mark.parametrize("i", [1, 2])
def test_fig_five(by_hand: dict, i: int) -> None:
    first, *panels = axes(PAGE, "five", i=i)
    net, x0, heads = xor(by_hand), patterns(2)[i], cdf(patterns(2).sum(axis=1))
    (_, x2), p = paths(net, x0)
    marginal = np.array([p[(x2 == s).all(axis=1)].sum() for s in patterns(2)])
    flat, field = x0, mean_field(net, x0)
    for w, c in net:
        flat = np.where(w @ flat + c >= 0, 1.0, -1.0)

    title = [ax.get_title(loc="center").split(": ") for ax in panels]
    at = {
        t[0]: np.asarray(ax.collections[0].get_offsets())
        for t, ax in zip(title, panels, strict=True)
    }
    weight = {
        t[0]: ax.collections[0].get_sizes() / 420 for t, ax in zip(title, panels, strict=True)
    }
    share, (one,) = weight["20 samples"], at["one sample"]
    assert np.array_equal(at["exact mean"], patterns(2))
    assert np.array_equal(at["20 samples"], patterns(2))
    assert np.allclose(weight["exact mean"], marginal)
    assert np.allclose(share * 20, np.round(share * 20)) and np.isclose(share.sum(), 1)
    assert (np.abs(share - marginal) < 4 * np.sqrt(marginal * (1 - marginal) / 20) + 0.05).all()
    assert (one == patterns(2)).all(axis=1).any()
    assert np.allclose(at["mean-field"], field, atol=1e-12)
    assert np.array_equal(at["deterministic"], [flat])

    predicted = [marginal @ heads, cdf(one.sum()), share @ heads, cdf(field.sum()), cdf(flat.sum())]
    assert [t[1] for t in title] == [f"{v:.2f}" for v in predicted]
    assert [t.get_text() for t in first.texts] == [f"{v:.2f}" for v in heads]
    assert [tuple(map(float, t.get_position())) for t in first.texts] == [*map(tuple, patterns(2))]


@pytest.mark.slow
@pytest.mark.parametrize("i", [1, 3])
def test_fig_matrix(by_hand: dict, i: int) -> None:
    sizes = [ax.collections[0].get_sizes() / 300 for ax in axes(PAGE, "matrix", i=i)]
    (x1, x2), p = paths(xor(by_hand), patterns(2)[i])
    first = np.array([p[(x1 == s).all(axis=1)].sum() for s in patterns(3)])
    joint = np.array([[p[(x1 == s).all(axis=1) & (x2 == v).all(axis=1)].sum()
                       for v in patterns(2)] for s in patterns(3)])  # fmt: skip
    assert np.allclose(sizes[0], first) and np.allclose(sizes[2], joint.sum(axis=0))
    assert np.allclose(sizes[1].reshape(8, 4), joint / first[:, None])
    if i == 1:  # the caption
        assert sizes[2].argmax() == 0
        one_on = [k for k, s in enumerate(patterns(3)) if (s[:2] == 1).sum() == 1]
        assert joint[one_on, 3].sum() > joint[:, 3].sum() / 2


# ----------------------------------------------------------------------- numbers of the prose


def test_the_hidden_units_are_those_of_chapter_1(by_hand: dict) -> None:
    """Weights 2 and bias -2 at scale 1, weights 1 and bias -1 at scale 1/2."""
    w, b = xor(by_hand)[0]
    for k, sign in enumerate((1, -1)):
        for v in patterns(2):
            assert cdf(w[k] @ v + b[k]) == cdf((sign * v.sum() - 1) / 0.5)


def right_scores(by_hand: dict) -> list[float]:
    found = []
    for x0 in patterns(2):
        (_, x2), p = paths(xor(by_hand), x0)
        found.append(p[x0.prod() * x2.sum(axis=1) > 0].sum())
    return found


def test_passes_are_undecided_or_wrong_three_or_four_times_in_ten(by_hand: dict) -> None:
    found = right_scores(by_hand)
    assert [round(min(found), 2), round(max(found), 2)] == [0.61, 0.69]
    assert all(round(10 * (1 - r)) in (3, 4) for r in found)
    out = printed(containing(PAGE, "100 000 samples"))
    assert all(f"{r:.4f}" in out for r in found)


def test_twelve_passes_for_each_input() -> None:
    rows = printed(containing(PAGE, "range(12)")).splitlines()
    scores = [[int(v) for v in row.split("target")[1].split()] for row in rows]
    assert sum(y * v > 0 for y, *row in scores for v in row) == 32
    assert all(len(set(row)) > 1 for _, *row in scores) and len(sum(scores, [])) == 4 + 48


def test_shares_of_right_scores_come_with_their_error(by_hand: dict) -> None:
    out = printed(containing(PAGE, "share of right scores"))
    share, error, exact = (np.array(line.split("[")[1].rstrip("]").split(), float)
                           for line in out.splitlines()[1:])  # fmt: skip
    r = np.array(right_scores(by_hand))
    assert np.allclose(exact, r, atol=5.1e-4)
    assert np.allclose(error, np.sqrt(share * (1 - share) / 1000), atol=5.1e-4)
    assert (np.abs(share - r) < 4.5 * error).all()


def test_the_intended_walk_is_taken_six_times_in_ten(by_hand: dict) -> None:
    states, p = paths(xor(by_hand), np.ones(2))
    meant = (np.concatenate(states, axis=1) == [1, -1, -1, 1, 1]).all(axis=1)
    assert f"{p[meant][0]:.3f}" in printed(containing(PAGE, "intended walk")) and len(p) == 32
    assert round(10 * p[meant][0]) == 6


def test_the_votes_agree_more_often_than_independent_ones(by_hand: dict) -> None:
    for x0 in patterns(2):
        (_, x2), p = paths(xor(by_hand), x0)
        assert _covariance(p, *x2.T) > 0.1


def test_the_gain_is_roughly_what_the_text_says() -> None:
    for K, n in ((3, 8), (4, 8), (6, 7)):
        assert 2 ** (K * n) / total([n] * K) / (2 ** ((K - 2) * n) / (K - 1)) == pytest.approx(
            1, abs=0.02
        )
    assert 2**9 * (2**4 + 2**4) == 16384 and 2 ** (9 + 8) == 131072
    assert 0.9e12 < 2**40 < 1.2e12 and total([12, 12]) < 2e7


def test_table_of_predictions(by_hand: dict) -> None:
    """What the text reads off the printed rows."""
    lines = printed(containing(PAGE, '"their error"')).splitlines()[1:]
    row = {line[:14].strip(): np.array(line[14:].split(), float) for line in lines}
    y = row["target is +1"]
    for k, x0 in enumerate(patterns(2)):
        (_, x2), p = paths(xor(by_hand), x0)
        psi = cdf(x2.sum(axis=1))
        assert row["exact mean"][k] == pytest.approx(p @ psi, abs=5.1e-4)
        spread = (p @ psi**2 - (p @ psi) ** 2) ** 0.5 / 10
        assert row["their error"][k] == pytest.approx(spread, rel=0.25)
        field = cdf(mean_field(xor(by_hand), x0).sum())
        assert row["mean-field"][k] == pytest.approx(field, abs=5.1e-4)
    for name in ("exact mean", "100 samples", "mean-field", "deterministic"):
        assert ((row[name] > 0.5) == y).all(), name
    assert ((row["one sample"] > 0.5) != y).sum() == 1
    gap = np.abs(row["100 samples"] - row["exact mean"])
    assert (gap < 2.1 * row["their error"]).all()
    surer = np.abs(row["mean-field"] - 0.5) - np.abs(row["exact mean"] - 0.5)
    assert (surer > 2 * 0.02).all()
    assert np.allclose(np.abs(row["deterministic"] - 0.5), cdf(2) - 0.5, atol=5.1e-4)


def test_mean_field_is_overconfident_here_and_not_everywhere(by_hand: dict) -> None:
    for x0 in patterns(2):
        exact, field = mean(xor(by_hand), x0), mean_field(xor(by_hand), x0)
        m1 = mean_field(xor(by_hand)[:1], x0)
        bound = (xor(by_hand)[1][0] ** 2) @ (1 - m1**2) / (6 * 3**0.5)
        assert (np.abs(field) > np.abs(exact)).all() and (np.abs(field - exact) < bound).all()
    net = [(np.zeros((1, 1)), np.array([-2.0])), (np.array([[4.0]]), np.array([2.0]))]
    exact, field = mean(net, np.zeros(1))[0], mean_field(net, np.zeros(1))[0]
    assert (round(exact, 2), round(field, 2)) == (-0.55, -0.48)


def test_a_mean_of_almost_minus_one_where_mean_field_says_almost_one() -> None:
    last = printed(containing(PAGE, "def two_units")).splitlines()[-1].split()
    assert float(last[-2]) < -0.99 and float(last[-1]) > 0.99


def test_a_copied_network_is_worse_than_one_that_says_nothing() -> None:
    losses = [float(line.split()[-1]) for line in
              printed(containing(PAGE, "forgot to translate")).splitlines()[1:]]  # fmt: skip
    assert losses[0] == losses[1] and losses[2] > log(2)
