"""Chapter 17, training a deep network: both sides of every formula, the notebook's own code, and
every number of its tables and sentences, computed from the files and the stored outputs.

Expected values are enumeration, quadrature and numpy; sbnlib appears only where a function of
sbnlib, or one of the notebook, is what is tested.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from functools import cache, partial
from statistics import fmean, stdev
from typing import Any

import chapters
import numpy as np
import pytest
import torch
from chapters import (
    as_in_the_book,
    axes,
    chapter,
    containing,
    drawing,
    figures,
    lean,
    lines,
    lines_of,
    numbers,
    printed,
    run,
    tagged,
    under,
)
from pins import pin
from scipy import integrate, stats

from sbnlib.experiments import measurement, ways

Array = np.ndarray
Rows = list[dict[str, Any]]
PATH = chapter(17)
says = partial(chapters.says, PATH)


def short(value: float, digits: int = 3) -> str:
    """This chapter's accuracies have three digits: 0.884"""
    return chapters.short(value, digits)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with as_in_the_book():
        yield


@cache
def notebook() -> dict[str, Any]:
    """The names of the notebook, its networks trained, as they are before the second figure."""
    return drawing(PATH, "statistics_figure").__globals__


# ------------------------------------------------------------------------------ predictions


def error_of(q: Array, right: Array) -> float:
    """Expected calibration error, bin by bin."""
    total = 0.0
    for k in range(1, 16):
        inside = [i for i, v in enumerate(q) if (k - 1) / 15 < v <= k / 15]
        total += abs(sum(float(right[i]) - q[i] for i in inside))
    return total / len(q)


@pytest.mark.slow
@pin(
    "eq-17-ece",
    r"\mathrm{ECE}=\frac1B\sum_{k=1}^{15}\,"
    r"\Bigl|\sum_{i\,:\,\lceil15q_i\rceil=k}(t_i-q_i)\Bigr| .",
)
def test_eq_17_ece() -> None:
    g = np.random.default_rng(0)
    p = g.dirichlet(np.full(10, 0.3), 400)
    labels = np.array([g.choice(10, p=row) for row in p])
    q, t = p.max(1), p.argmax(1) == labels
    formula = sum(
        abs(sum(t[i] - q[i] for i in range(400) if math.ceil(15 * q[i]) == k)) for k in range(1, 16)
    )
    assert error_of(q, t) == pytest.approx(formula / 400, rel=1e-12)
    found = ways.calibration_error(torch.tensor(p), torch.tensor(labels))
    assert found == pytest.approx(formula / 400, rel=1e-9)
    (right, loss, ece) = notebook()["three_numbers"](torch.tensor(p[:1]).expand(1000, 10))
    y = notebook()["y_test"].numpy()
    assert float(right) == np.mean(p[0].argmax() == y)
    assert float(loss) == pytest.approx(-np.log(p[0][y]).mean())
    assert ece == pytest.approx(error_of(np.full(1000, p[0].max()), p[0].argmax() == y))


#: Of four states: probabilities, and what the head gives to the right class.
LAW, PSI = np.array([0.1, 0.4, 0.3, 0.2]), np.array([0.02, 0.5, 0.9, 0.3])


@cache
def expected_loss(count: int) -> float:
    """E of the loss of an average, over all tuples of states."""
    return sum(
        float(LAW[list(which)].prod()) * -math.log(PSI[list(which)].mean())
        for which in itertools.product(range(4), repeat=count)
    )


def two_states(count: int) -> float:
    """The same of two states, 0.3 with probability 0.6 and 0.8, by the binomial law."""
    k = np.arange(count + 1)
    return float(stats.binom.pmf(k, count, 0.6) @ -np.log((0.3 * k + 0.8 * (count - k)) / count))


@pin(
    "prop-17-averaging",
    r"""
    Fix the network and one input, let $\psi>0$ be the probability that the head gives to the right
    class, a function of the random states, and let $\ell_M=-\ln\frac1M\sum_{m=1}^M\psi_m$ be the
    loss of the average of $M$ independent samples. Then {eq-17-order} and, as the states are
    finitely many, {eq-17-delta} with remainders for which $M^2r_M$ is bounded.
    """,
)
@pin(
    "eq-17-order",
    r"\mathbb E\,\ell_1\ \ge\ \mathbb E\,\ell_2\ \ge\ \dots\ \ge\ -\ln\mathbb E\,\psi ,",
)
def test_eq_17_order() -> None:
    found = [expected_loss(M) for M in range(1, 8)]
    assert found == sorted(found, reverse=True)
    assert found[-1] > -math.log(LAW @ PSI)
    more = [two_states(M) for M in range(1, 300)]
    assert np.all(np.diff(more) < 0) and more[-1] > -math.log(0.6 * 0.3 + 0.4 * 0.8)


@pin(
    "eq-17-delta",
    r"\mathbb E\,\ell_M=-\ln\mathbb E\,\psi+\frac{\mathrm{Var}\,\psi}{2M\,(\mathbb E\,\psi)^2}+r_M",
)
def test_eq_17_delta() -> None:
    """M^2 r_M stays where it is while M grows from 50 to 3200; with another factor it grows."""
    mean = 0.6 * 0.3 + 0.4 * 0.8
    var = 0.6 * 0.3**2 + 0.4 * 0.8**2 - mean**2

    def rest(M: int, factor: float = 0.5) -> float:
        return M * M * (two_states(M) + math.log(mean) - factor * var / (M * mean**2))

    found = [rest(50 * 4**k) for k in range(4)]
    assert max(found) - min(found) < 0.01 and abs(found[0]) < 1
    assert abs(rest(3200, 0.4)) > 30 * abs(rest(50, 0.4)) / 2 > 1
    assert two_states(50) == pytest.approx(
        sum(
            stats.binom.pmf(k, 50, 0.6) * -math.log((0.3 * k + 0.8 * (50 - k)) / 50)
            for k in range(51)
        )
    )


@pytest.mark.slow
def test_the_table_of_predictions() -> None:
    """The sentences under it, and its mean and signs computed again in numpy."""
    rows = {line[:12].strip(): numbers(line[12:]) for line in
            lines_of(containing(PATH, "def three_numbers"))[1:]}  # fmt: skip
    assert list(rows) == ["one sample", "ten samples", "100 samples", "mean", "sign"]
    losses = [rows[name][1] for name in ("one sample", "ten samples", "100 samples")]
    assert losses == sorted(losses, reverse=True)
    accuracies = [row[0] for row in rows.values()]
    error = math.sqrt(fmean(accuracies) * (1 - fmean(accuracies)) / 1000)
    says(f"one accuracy has a standard error of {short(error)} with 1 000 test images")
    says(f"but none is larger than {short(max(accuracies) - min(accuracies))}.")
    for mode in ("mean", "sign"):
        p = by_hand(notebook()["net"], mode)
        y = notebook()["y_test"].numpy()
        right = p.argmax(1) == y
        expected = (right.mean(), -np.log(p[np.arange(1000), y]).mean(), error_of(p.max(1), right))
        assert rows[mode] == pytest.approx(expected, abs=6e-4)


def by_hand(net: Any, mode: str, inputs: str = "x_test", layers: Any = None) -> Array:
    """Class probabilities of a network of `Linear, BatchNorm, Sign` pairs, in numpy."""
    a = notebook()[inputs].numpy()
    scale = notebook()["noise"].scale
    for k in (0, 3):
        a = a @ net[k].weight.detach().numpy().T
        norm = net[k + 1]
        a = (a - norm.running_mean.numpy()) / np.sqrt(norm.running_var.numpy() + norm.eps)
        a = a * norm.weight.detach().numpy() + norm.bias.detach().numpy()
        a = np.tanh(a / scale / 2) if mode == "mean" else np.where(a >= 0, 1.0, -1.0)
    scores = a @ net[6].weight.detach().numpy().T + net[6].bias.detach().numpy()
    scores = np.exp(scores - scores.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)


def test_the_remainder_of_the_proof() -> None:
    """A cubic of -ln at any mean, from any k on: the rest is at most d^4 / 4k^4."""
    for mean, least in itertools.product((0.1, 0.5, 0.9), (0.02, 0.1)):
        at = np.linspace(least, 1, 500)
        d = at - mean
        cubic = -math.log(mean) - d / mean + d**2 / (2 * mean**2) - d**3 / (3 * mean**3)
        assert np.all(np.abs(-np.log(at) - cubic) <= d**4 / (4 * least**4) + 1e-15)


@pytest.mark.slow
def test_the_images_of_the_chapter() -> None:
    space = notebook()
    sizes = [f"{len(v):,}".replace(",", " ") for v in
             (space["x"], space["fashion"].validation.labels, space["x_test"])]  # fmt: skip
    assert sum(int(v.replace(" ", "")) for v in sizes) == 4000
    says("The data are 4 000 images of Fashion-MNIST")
    says("{} to train with, {} to choose with and {} to test".format(*sizes))
    assert space["x"].shape[1] == 784 == 28 * 28
    says("784 of them make half a standard deviation")


class Turns(torch.nn.Module):
    """A network whose answers come in turns."""

    def __init__(self, *answers: Array) -> None:
        super().__init__()
        self.answers = itertools.cycle(answers)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.tensor(next(self.answers)).expand(len(inputs), -1)


@pytest.mark.slow
def test_averaged_is_a_mean_of_probabilities() -> None:
    scores = np.random.default_rng(1).normal(size=(3, 10)) * 3
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    found = notebook()["averaged"](Turns(*scores), 3)
    assert found.shape == (1000, 10)
    assert found[7].numpy() == pytest.approx(p.mean(0))


def drawn_by_hand(inputs: Array, relative: float, count: int, seed: int) -> Array:
    """(count, images, 10): passes of the trained network with this noise, in numpy."""
    net, g = notebook()["net"], np.random.default_rng(seed)
    scale, below = relative * notebook()["noise"].scale, np.broadcast_to(inputs, (1, *inputs.shape))
    for k in (0, 3):
        a, norm = below @ net[k].weight.detach().numpy().T, net[k + 1]
        a = (a - norm.running_mean.numpy()) / np.sqrt(norm.running_var.numpy() + norm.eps)
        a = a * norm.weight.detach().numpy() + norm.bias.detach().numpy()
        p = 1 / (1 + np.exp(-a / scale))
        below = np.where(g.random((count, *p.shape[1:])) < p, 1.0, -1.0)
    scores = below @ net[6].weight.detach().numpy().T + net[6].bias.detach().numpy()
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def loss_by_hand(passes: Array, labels: Array, count: int) -> tuple[float, float]:
    """Mean loss of averages of so many passes, and the deviation of such a loss over draws.

    For more than ten passes by the first term of the expansion.
    """
    psi = passes[:, np.arange(len(labels)), labels]
    groups = len(psi) // count
    losses = -np.log(psi[: groups * count].reshape(groups, count, -1).mean(1))
    each = psi.var(0, ddof=1) / count / psi.mean(0) ** 2
    variance = losses.var(0, ddof=1) if count <= 10 else each
    return float(losses.mean()), math.sqrt(float(variance.sum())) / len(labels)


@pytest.mark.slow
def test_the_samples_of_the_table() -> None:
    """Losses by draws of numpy; within 4.5 deviations, of both: 2 in 100 000 for the three.

    These are 0.017, 0.005 and 0.002 for 1, 10 and 100 samples: a single one is held coarsely.
    """
    said = lines_of(containing(PATH, "def three_numbers"))[1:4]
    y = notebook()["y_test"].numpy()
    p = drawn_by_hand(notebook()["x_test"].numpy(), 1, 200, 11)
    for line, count in zip(said, (1, 10, 100), strict=True):
        right, loss, _ = numbers(line[12:])
        expected, deviation = loss_by_hand(p, y, count)
        apart = deviation * math.sqrt(1 + count / 200)
        assert abs(loss - expected) < 4.5 * apart + 5e-4, count
        hits = p[: 200 // count * count].reshape(-1, count, 1000, 10).mean(1).argmax(-1) == y
        chance = hits.mean(0)
        spread = math.sqrt((chance * (1 - chance)).sum()) / 1000
        assert abs(right - chance.mean()) < 4.5 * spread + 0.005, count


@pytest.mark.slow
def test_the_noise_that_validation_chooses() -> None:
    """Each loss by draws of numpy; within 4.5 deviations of both: 4 in 100 000 for the six."""
    images = notebook()["fashion"].validation
    y, found = images.labels.numpy(), {}
    for line in lines_of(containing(PATH, "def validation_loss")):
        relative, loss = numbers(line)
        p = drawn_by_hand(images.inputs.double().numpy(), relative, 200, 12)
        expected, deviation = loss_by_hand(p, y, 100)
        assert abs(loss - expected) < 4.5 * deviation * math.sqrt(1.5) + 5e-4, relative
        found[relative] = loss
    assert list(found) == [0.5, 0.75, 1, 1.25, 1.5, 2]
    says(f"They choose {min(found, key=lambda v: found[v]):.2f}, by little, and nothing had to be")
    says(f"The cell takes the {len(y)} images to choose with.")


# ---------------------------------------------------------------------------- the first figure


@cache
def passes(relative: float) -> Array:
    """(200, 1000, 10), as the notebook draws them; the signs are those of numpy's F."""
    return drawing(PATH, "samples_figure").__globals__["drawn"](relative).numpy()


def averages(relative: float, count: int) -> Array:
    """Means over disjoint groups of passes, (groups, 1000, 10)."""
    p = passes(relative)
    return np.stack([p[k : k + count].mean(0) for k in range(0, 200 - count + 1, count)])


def loss_of(relative: float, count: int) -> float:
    y = notebook()["y_test"].numpy()
    return float(-np.log(averages(relative, count)[:, np.arange(1000), y]).mean())


def accuracy_of(relative: float, count: int) -> float:
    return float((averages(relative, count).argmax(-1) == notebook()["y_test"].numpy()).mean())


def gap_of(relative: float, count: int) -> tuple[float, float]:
    """Calibration error, and mean of right minus confidence."""
    p = averages(relative, count)
    q, t = p.max(-1).ravel(), (p.argmax(-1) == notebook()["y_test"].numpy()).ravel()
    return error_of(q, t), float((t - q).mean())


@pytest.mark.slow
@pytest.mark.parametrize(("count", "relative"), [(1, 1), (10, 0.1), (50, 2), (200, 4)])
def test_fig_samples_figure(count: int, relative: float) -> None:
    ax, low = axes(PATH, "samples_figure", count=count, relative=relative)
    p, y = averages(relative, count), notebook()["y_test"].numpy()
    q, t = p.max(-1).ravel(), (p.argmax(-1) == y).ravel()
    bins = np.ceil(15 * q)
    expected = [(q[bins == k].mean(), t[bins == k].mean()) for k in range(1, 16) if any(bins == k)]
    assert np.array(ax.collections[0].get_offsets()) == pytest.approx(np.array(expected))
    areas = np.array([np.mean(bins == k) for k in range(1, 16) if any(bins == k)])
    assert np.array(ax.collections[0].get_sizes()) == pytest.approx(10 + 600 * areas)
    assert ax.get_title(loc="left") == f"accuracy {t.mean():.3f}"
    counts = notebook_of_samples()["COUNTS"]
    points, chosen, line = lines(low)
    assert points[0].tolist() == counts and line[0].tolist() == counts
    assert points[1] == pytest.approx([loss_of(relative, M) for M in counts])
    assert chosen.T.tolist() == [[count, pytest.approx(loss_of(relative, count))]]
    psi = passes(relative)[:, np.arange(1000), y]
    mean, var = psi.mean(0), psi.var(0, ddof=1)
    expansion = [(-np.log(mean) + var / (2 * M * mean**2)).mean() for M in counts]
    assert line[1] == pytest.approx(expansion)
    assert low.get_ylim()[0] < min(points[1]) and max(*points[1], *line[1]) < low.get_ylim()[1]


def notebook_of_samples() -> dict[str, Any]:
    return drawing(PATH, "samples_figure").__globals__


@pytest.mark.slow
def test_the_passes_are_those_of_the_network() -> None:
    """At the smallest noise the mean of 200 passes is close to the signs; the means are laws'."""
    signs = by_hand(notebook_of_samples()["net"], "sign")
    assert np.mean(averages(0.1, 200)[0].argmax(1) == signs.argmax(1)) > 0.97
    space = notebook_of_samples()
    with torch.no_grad():
        a = space["net"][:2](space["x_test"]).numpy()
    g = np.random.default_rng(3)
    scale = 2 * space["noise"].scale
    top = []
    for _ in range(50):
        x = np.where(g.random(a.shape) < 1 / (1 + np.exp(-a / scale)), 1.0, -1.0)
        top.append(x)
    with torch.no_grad():
        b = space["net"][3:5](torch.tensor(np.stack(top)).flatten(0, 1)).numpy()
        x = np.where(g.random(b.shape) < 1 / (1 + np.exp(-b / scale)), 1.0, -1.0)
        p = space["net"][6](torch.tensor(x)).softmax(-1).reshape(50, 1000, 10).numpy()
    own, y = passes(2)[:, np.arange(1000), notebook()["y_test"].numpy()], notebook()["y_test"]
    other = p[:, np.arange(1000), y.numpy()]
    z = (own.mean() - other.mean()) / math.sqrt(
        own.var(0).mean() / 200 / 1000 + other.var(0).mean() / 50 / 1000
    )
    assert abs(z) < 4.5  # 7 in a million


@pytest.mark.slow
def test_fig_samples_figure_answer() -> None:
    answer = lean(under(figures(PATH)["fig-17-samples"])["answer"])
    scales = notebook_of_samples()["SCALES"]
    one = {s: gap_of(s, 1)[1] for s in scales}
    assert all(gap < 0 for gap in one.values())
    says(f"by {short(-one[0.1], 2)} at the smallest noise and by {short(-one[1], 2)} at that of")
    error = math.sqrt(0.69 * 0.31 / 1000)
    assert all(-gap < error for gap in (one[3], one[4]))
    assert [short(-one[s], 2) for s in (3, 4)] == ["0.01", "0.01"]
    says("At three and four times the noise the gap of 0.01 is within its error.")
    assert "below the diagonal, too sure, and close to it at 3 and 4" in answer
    many = {s: gap_of(s, 200) for s in scales}
    assert max(many[1.25][0], many[1.5][0]) < 0.04 and min(many[3][1], many[4][1]) > 0.15
    assert "on it at 1.25 to 1.5 and far above it at 3 and 4" in answer
    falls = [loss_of(s, 1) - loss_of(s, 100) for s in (0.1, 1, 4)]
    assert "by {:.2f} at the smallest noise, by {:.2f} at that of training and by {:.2f}".format(
        *falls
    ) in answer  # fmt: skip
    accuracy = [accuracy_of(s, 200) for s in scales]
    assert short(min(accuracy), 2) == "0.81" and short(max(accuracy), 2) == "0.83"
    says("it stays between 0.81 and 0.83 over this fortyfold range of scales")
    assert max(scales) / min(scales) == 40
    for s in (1.25, 1.5):
        assert loss_of(s, 200) < loss_of(1, 200) and many[s][0] < many[1][0]
    says("at 1.25 to 1.5 times its scale the loss and the calibration are better")
    assert accuracy_of(4, 200) > 0.8 and gap_of(4, 200)[1] > 0.3
    y = notebook()["y_test"].numpy()
    for s in scales:
        psi = passes(s)[:, np.arange(1000), y]
        mean, var = psi.mean(0), psi.var(0, ddof=1)
        for M in (10, 20, 50, 100, 200):
            line = (-np.log(mean) + var / (2 * M * mean**2)).mean()
            assert abs(line - loss_of(s, M)) < 0.004
    says("from about ten samples on it cannot be told from the points")


# ------------------------------------------------------------------------------- statistics


@pin(
    "prop-17-variance",
    r"""
    (a) Let $a=\sum_jw_jx_j+b$, where the states $x_j$ are independent given what is below them,
    with means $\mu_j$. Over the inputs and all draws $a$ has the mean of $\sum_jw_j\mu_j+b$, and
    {eq-17-variance}
    (b) Let the weights be random signs $w_j$ with means $m_j$, independent of each other and of
    the states, and drawn once for a batch, and let the layers below be given. For each draw of the
    weights take the mean and the variance of $a$ over inputs and states. Their averages over the
    draws are
    {eq-17-weights}
    """,
)
@pin(
    "eq-17-variance",
    r"\mathrm{Var}\,a=\mathrm{Var}\Bigl(\sum_jw_j\mu_j\Bigr)"
    r"+\sum_jw_j^2\;\mathbb E(1-\mu_j^2).",
)
def test_eq_17_variance() -> None:
    """Over all inputs and states of three units."""
    g = np.random.default_rng(4)
    mu, share = g.uniform(-1, 1, (5, 3)), g.dirichlet(np.ones(5))
    w, b = g.normal(size=3), 0.7
    atoms = [
        (q * np.prod((1 + np.array(x) * m) / 2), w @ x + b)
        for q, m in zip(share, mu, strict=True)
        for x in itertools.product((-1, 1), repeat=3)
    ]
    weight, a = np.array(atoms).T
    mean = weight @ a
    inner = mu @ w
    expected = share @ inner**2 - (share @ inner) ** 2 + w**2 @ (share @ (1 - mu**2))
    assert mean == pytest.approx(share @ inner + b)
    assert weight @ (a - mean) ** 2 == pytest.approx(expected, rel=1e-12)


@pin(
    "eq-17-weights",
    r"\begin{aligned} \mathbb E\,\mathbb E(a\mid w)&=\sum_jm_j\,\mathbb E\,x_j+b,\\ "
    r"\mathbb E\,\mathrm{Var}(a\mid w)&=\mathrm{Var}\Bigl(\sum_jm_jx_j\Bigr)"
    r"+\sum_j(1-m_j^2)\,\mathrm{Var}\,x_j . \end{aligned}",
)
def test_eq_17_weights() -> None:
    """Over all weights, for states that depend on each other; and where signs move the mean."""
    g = np.random.default_rng(5)
    x, share = g.normal(size=(6, 4)), g.dirichlet(np.ones(6))
    m, b = g.uniform(-1, 1, 4), 0.3
    cov = np.cov(x.T, aweights=share, ddof=0)
    means, variances = 0.0, 0.0
    for w in itertools.product((-1, 1), repeat=4):
        chance = np.prod((1 + np.array(w) * m) / 2)
        a = x @ w + b
        means += chance * (share @ a)
        variances += chance * (share @ a**2 - (share @ a) ** 2)
    assert means == pytest.approx(m @ (share @ x) + b)
    assert variances == pytest.approx(m @ cov @ m + (1 - m**2) @ np.diag(cov))
    moved = share @ (x @ np.sign(m)) - share @ (x @ m)
    assert moved == pytest.approx((np.sign(m) - m) @ (share @ x)) and abs(moved) > 0.1
    says(r"moves by $\sum_j(\operatorname{sign}m_j-m_j)\,\mathbb E\,x_j$")
    centred = x - share @ x
    assert share @ (centred @ np.sign(m)) == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
def test_the_share_of_noise_in_the_second_layer() -> None:
    space = notebook()
    net = space["net"]
    with torch.no_grad():
        a = net[:2](space["x"]).numpy()
    mu, w = np.tanh(a / space["noise"].scale / 2), net[3].weight.detach().numpy()
    noise = (w**2) @ (1 - mu**2).mean(0)
    share = (noise / (noise + (mu @ w.T).var(0))).mean()
    assert space["random_share"](net) == pytest.approx(share)
    said = lines_of(containing(PATH, "def random_share"))
    assert said[0] == f"share of the variance that is noise: {share:.3f}"
    says(f"Only {short(share, 2)} of the variance was noise.")
    says(f"$1-\\mu^2$ is {short((1 - mu**2).mean(), 2)} on average.")
    apart = (w**2) @ mu.var(0)
    assert (noise / (noise + apart)).mean() > 0.25  # if the means did not go together
    own = space["anew"](net, space["x"], "sign")
    wide = own[4].running_var / net[4].running_var
    means = space["anew"](net, space["x"], "mean")[4].running_var / net[4].running_var
    assert means.mean() < 1 < wide.mean() < 1.2
    says("a few percent too small, or too large as they are at the signs")
    for line in said[3:]:
        old, loss, new, other = numbers(line)
        assert abs(old - new) < 0.012 and abs(loss - other) < 0.01
    says("Hardly anything happens.")


@pytest.mark.slow
def test_what_anew_does() -> None:
    """Statistics of a mode are the plain means and variances in that mode, from below."""
    space = notebook()
    own = space["anew"](space["moments"][-1], space["x"], "sign")
    a = space["x"].numpy() @ np.where(own[0].eta.detach().numpy() >= 0, 1.0, -1.0).T
    assert own[1].running_mean.numpy() == pytest.approx(a.mean(0))
    assert own[1].running_var.numpy() == pytest.approx(a.var(0, ddof=1))
    assert not own.training
    before = space["moments"][-1][1].running_mean
    assert not torch.equal(before, own[1].running_mean)


def signs_by_hand(net: Any, mean: dict[int, Array], var: dict[int, Array]) -> Array:
    """Class guesses at the signs of weights and units, with these statistics."""
    a = notebook()["x_test"].numpy()
    for k in (1, 4):
        a = a @ np.where(net[k - 1].eta.detach().numpy() >= 0, 1.0, -1.0).T
        a = (a - mean[k]) / np.sqrt(var[k] + net[k].eps)
        a = a * net[k].weight.detach().numpy() + net[k].bias.detach().numpy()
        a = np.where(a >= 0, 1.0, -1.0)
    return (a @ net[6].weight.detach().numpy().T + net[6].bias.detach().numpy()).argmax(1)


@pytest.mark.slow
def test_the_table_of_statistics_taken_anew() -> None:
    space = notebook()
    net, y = space["moments"][-1], space["y_test"].numpy()
    again = space["anew"](net, space["x"], "sign")
    old, new = (
        {s: {k: getattr(n[k], f"running_{s}").numpy() for k in (1, 4)} for s in ("mean", "var")}
        for n in (net, again)
    )
    said = lines_of(containing(PATH, 'for taken in ("none"'))
    rows = {line[:24].strip(): numbers(line[24:])[0] for line in said[1:5]}
    for name, row in rows.items():
        mean, var = ((new if s in name else old)[s] for s in ("mean", "var"))
        expected = np.mean(signs_by_hand(net, mean, var) == y)
        assert row == pytest.approx(expected, abs=6e-4), name
    assert rows["mean"] - rows["none"] > 4 * 0.012 > 2 * 0.012 > rows["var"] - rows["none"]
    assert abs(rows["mean"] - rows["mean and var"]) < 0.012
    says("Now it matters, and what matters is the mean.")
    moved = [
        math.sqrt(np.mean((new["mean"][k] - old["mean"][k]) ** 2 / old["var"][k])) for k in (1, 4)
    ]
    ratios = [np.mean(new["var"][k] / old["var"][k]) for k in (1, 4)]
    assert [numbers(line) for line in said[5:]] == [
        [pytest.approx(v, abs=6e-3), pytest.approx(r, abs=6e-3)]
        for v, r in zip(moved, ratios, strict=True)
    ]
    assert 0.45 < moved[0] < 0.55 and moved[1] < 0.06
    says("784 of them make half a standard deviation")
    assert all(1.2 < r < 1.3 for r in ratios)
    says("The variance, which moves by a quarter, does little.")
    assert space["x"].mean() < -0.4
    mean = -float(space["x"].mean())
    says(f"a pixel runs from $-1$, black, to 1, and their mean is $-{short(mean, 2)}$.")
    assert space["x"].min() == -1 and space["x"].max() == 1
    assert float((space["x"].mean(0) < 0).double().mean()) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "images"), [(15, 5), (1, 2400), (8, 100)])
def test_fig_statistics_figure(epoch: int, images: int) -> None:
    space = notebook()
    (top, low) = axes(PATH, "statistics_figure", epoch=epoch, images=images)
    grey, blue, cross = lines(top)
    assert cross.T.tolist() == [[0, 1]]
    net, y = space["moments"][epoch - 1], space["y_test"].numpy()
    own = space["anew"](net, space["x"][:images], "sign")
    for found, source in ((grey, net), (blue, own)):
        a, expected = space["x_test"].numpy(), []
        for k in (1, 4):
            a = a @ np.where(net[k - 1].eta.detach().numpy() >= 0, 1.0, -1.0).T
            norm = source[k]
            a = (a - norm.running_mean.numpy()) / np.sqrt(norm.running_var.numpy() + norm.eps)
            expected.append([a.mean(0), a.std(0, ddof=1)])
            a = a * norm.weight.detach().numpy() + norm.bias.detach().numpy()
            a = np.where(a >= 0, 1.0, -1.0)
        assert found == pytest.approx(np.concatenate(expected, 1))
    for line, source in ((lines(low)[0], net), (lines(low)[2], own)):
        mean, var = (
            {k: getattr(source[k], f"running_{s}").numpy() for k in (1, 4)} for s in ("mean", "var")
        )
        at = line[0].tolist().index(epoch)
        assert line[1][at] == pytest.approx(np.mean(signs_by_hand(net, mean, var) == y))
    assert [m.T.tolist()[0][0] for m in (lines(low)[1], lines(low)[3])] == [epoch, epoch]
    late = axes(PATH, "statistics_figure", epoch=15, images=images)[0]
    assert late.get_xlim() == (-1.6, 1.6)
    assert all(low.get_ylim()[0] < k[1].min() for k in (lines(low)[0], lines(low)[2]))


@pytest.mark.slow
def test_fig_statistics_figure_answer() -> None:
    answer = lean(under(figures(PATH)["fig-17-statistics"])["answer"])
    space = notebook()

    def accuracy(epoch: int, images: int) -> float:
        return float(space["at_signs"](epoch, images)[0])

    late = [accuracy(15, n) for n in (50, 100, 200, 500, 1000, 2400)]
    assert max(late) - min(late) < 0.012
    assert "Fifty images are enough for the accuracy, late in training" in answer
    assert accuracy(15, 5) < accuracy(15, 0) + 0.012 < late[0] - 0.02
    assert "Five are no better than the statistics of training." in answer
    damage = {e: accuracy(e, 2400) - accuracy(e, 0) for e in space["EPOCHS"]}
    first, last = damage[1], damage[15]
    assert f"it is {first:.2f} after the first epoch and {last:.2f} after the last" in answer
    steps = np.diff([damage[e] for e in space["EPOCHS"]])
    assert min(damage.values()) > 0 and min(steps) < 0 < max(steps)
    weights = [
        2 * m[0].noise.cdf(m[0].eta) - 1 for m in (space["moments"][0], space["moments"][-1])
    ]
    assert all((1 - m**2).mean() > 0.4 for m in weights)
    says("Many weights of the first layer are far from certain to the end")


# --------------------------------------------------------------------------------- a search


def expected_maximum(k: int) -> float:
    """Of k independent N(0, 1), by quadrature."""
    return float(
        integrate.quad(lambda z: z * k * stats.norm.pdf(z) * stats.norm.cdf(z) ** (k - 1), -10, 10)[
            0
        ]
    )


@pin(
    "prop-17-search",
    r"""
    Let $k\ge2$ settings have the same true accuracy $q$, and let their accuracies on the
    validation images be $q+e_1,\dots,q+e_k$, with errors for which $\mathbb E\,e^{te_i}\le
    e^{t^2s^2/2}$ for all $t>0$, as for normal ones with standard deviation $s>0$. Whatever the
    dependence between the errors, {eq-17-best} and for independent normal errors the expectation
    is $q+1.267\,s$ at $k=6$ and $q+1.948\,s$ at $k=24$. On images that had no part in the choice
    the winner has the expected accuracy $q$.
    """,
)
@pin("eq-17-best", r"\mathbb E\,\max_i\,(q+e_i)\le q+s\sqrt{2\ln k},")
def test_eq_17_best() -> None:
    for k in (2, 6, 24, 100):
        assert expected_maximum(k) < math.sqrt(2 * math.log(k))
    assert f"{expected_maximum(6):.3f} {expected_maximum(24):.3f}" == "1.267 1.948"
    # signs +-s, of which E e^(te) = cosh(ts); any joint law of three by its eight probabilities
    g = np.random.default_rng(6)
    states = np.array(list(itertools.product((-1, 1), repeat=3)))
    for _ in range(200):
        half = g.dirichlet(np.full(4, 0.3)) / 2
        law = np.concatenate([half, half[::-1]])  # symmetric: each sign is +1 half of the time
        assert law @ states == pytest.approx(np.zeros(3), abs=1e-12)
        assert law @ states.max(1) <= math.sqrt(2 * math.log(3))
    # normal errors of any correlation: the largest of them is smaller
    z = g.normal(size=(100_000, 7))
    for rho in (0.0, 0.5, 0.95):
        e = math.sqrt(rho) * z[:, :1] + math.sqrt(1 - rho) * z[:, 1:]
        assert e.max(1).mean() == pytest.approx(math.sqrt(1 - rho) * expected_maximum(6), abs=0.02)


def test_the_winner_has_the_same_accuracy_elsewhere() -> None:
    """Over all outcomes of three settings on two validation images and a further one."""
    q, chosen, elsewhere = 0.7, 0.0, 0.0
    for hits in itertools.product((0, 1), repeat=9):
        table = np.array(hits).reshape(3, 3)
        chance = np.prod(np.where(table, q, 1 - q))
        best = table[:, :2].sum(1).argmax()
        chosen += chance * table[best, :2].mean()
        elsewhere += chance * table[best, 2]
    assert elsewhere == pytest.approx(q, rel=1e-12) and chosen > q + 0.15


def test_what_a_search_does_here() -> None:
    s = math.sqrt(0.88 * 0.12 / 10_000)
    says(f"one accuracy has the standard error $s={short(s, 4)}$")
    says(
        f"look {short(expected_maximum(6) * s)} better than they are if their errors are "
        "independent"
    )
    says(f"looks better than it is, by {expected_maximum(6):.2f} standard errors if the errors are")
    says(f"$s=\\sqrt{{0.88\\cdot0.12/10\\,000}}={short(s, 5)}$")


# ------------------------------------------------------------------------------ sixteen ways


def rows_of(name: str) -> Rows:
    return measurement.read(PATH.parents[1] / "measurements" / f"{name}.json")["rows"]


def values_of(name: str, number: str, prediction: str) -> list[float]:
    return [
        row[number][prediction]
        for row in rows_of("contenders-train")
        if row["part"] == "final" and row["name"] == name
    ]


def of(name: str, prediction: str, number: str = "test") -> tuple[float, float]:
    values = values_of(name, number, prediction)
    return fmean(values), stdev(values) / math.sqrt(len(values))


def minus(one: tuple[str, str], two: tuple[str, str]) -> tuple[float, float]:
    """A difference of mean accuracies and its standard error."""
    (a, e), (b, f) = of(*one), of(*two)
    return a - b, math.hypot(e, f)


REAL = ("st-logistic", "st-gaussian", "st-uniform", "zgr-logistic", "zgr-gaussian", "zgr-uniform")


def test_the_table_of_sixteen_ways() -> None:
    _, *said = lines_of(containing(PATH, "def of(name, number, prediction)"))
    found = [row for row in rows_of("contenders-train") if row["part"] == "contender"]
    assert len(said) == len(found) == 16
    for line, way in zip(said, found, strict=True):
        name = way["name"]
        assert line.startswith(way["label"])
        rate, *accuracies = numbers(line[31:])
        final = [
            r for r in rows_of("contenders-train")
            if (r["part"], r["name"]) == ("final", name)
        ]  # fmt: skip
        assert {r["lr"] for r in final} == {rate} and len(final) == way["seeds"]
        own = [p for p in ("tanh", "sign", "one", "ten", "mean") if p in final[0]["test"]]
        assert accuracies == pytest.approx([of(name, p)[0] for p in own], abs=6e-5)
        columns = [bool(line[38 + 7 * k : 45 + 7 * k].strip()) for k in range(5)]
        assert columns == [p in own for p in ("tanh", "sign", "one", "ten", "mean")]


def test_the_protocol_is_as_the_page_has_it() -> None:
    file = measurement.read(PATH.parents[1] / "measurements" / "contenders-train.json")
    ways_ = {r["name"]: r for r in file["rows"] if r["part"] == "contender"}
    assert [w["seeds"] for w in ways_.values()] == [10] * 10 + [5] * 6
    says("Ten more runs follow for the first ten ways, and five for the rest.")
    assert all(file["checks"].values()) and len(file["checks"]) == 16
    more = []
    for name in ways_:
        search = [r["lr"] for r in file["rows"] if (r["part"], r["name"]) == ("search", name)]
        more += [name] * (len(search) - 6)
        best = max(
            (r for r in file["rows"] if (r["part"], r["name"]) == ("search", name)),
            key=lambda r: (r["validation"], -r["validation_loss"]),
        )
        assert min(search) < best["lr"] < max(search) and best["lr"] in search[:6]
    assert more == ["st-uniform", "sign-hardtanh"]
    assert values_tried("st-uniform")[6] == values_tried("sign-hardtanh")[6] == 0.00009
    says("A seventh trial, at 0.00009, was run for two ways whose best rate was the smallest, "
         "straight-through with uniform noise and the rule of binarized networks; it was not "
         "better.")  # fmt: skip
    assert {w["images"] for n, w in ways_.items() if not n.startswith("conv")} == {50_000}
    assert {w["images"] for n, w in ways_.items() if n.startswith("conv")} == {8_000}
    assert {tuple(w["hidden"]) for n, w in ways_.items()} == {(512, 512), (256,) * 8, ()}
    says("the first 8 000 images")


def values_tried(name: str) -> list[float]:
    return [r["lr"] for r in rows_of("contenders-train")
            if (r["part"], r["name"]) == ("search", name)]  # fmt: skip


def test_what_the_text_says_of_the_sixteen_ways() -> None:
    errors = {
        name: max(of(name, p)[1] for p in ("sign", "one", "ten", "mean")) for name in REAL
    } | {"twin": of("twin", "tanh")[1], "sign-hardtanh": of("sign-hardtanh", "sign")[1]}
    least = min(of(n, p)[1] for n in REAL for p in ("sign", "one", "ten", "mean"))
    binary = max(
        of(n, p)[1]
        for n in ("weights-mirror", "weights-bc")
        for p in ("sign", "one", "ten", "mean")
    )
    rest = max(
        of(r["name"], p)[1]
        for r in rows_of("contenders-train")
        if r["part"] == "contender" and r["seeds"] == 5
        for p in (("tanh",) if r["kind"] == "tanh" else ("sign", "one", "ten", "mean"))
    )
    most = short(max(errors.values()), 4)
    says(f"Standard errors over the seeds are {short(least, 4)} to {most} for the dense networks "
         f"of real weights with two layers, up to {short(binary, 4)} with binary weights, and up "
         f"to {short(rest, 4)} in the last six lines.")  # fmt: skip
    leads = [minus((f"st-{n}", "ten"), ("twin", "tanh"))
             for n in ("gaussian", "logistic", "uniform")]  # fmt: skip
    says("Ten samples are {} ± {} above the twin with Gaussian noise, {} ± {} below it with "
         "logistic noise, and {} ± {} below with uniform noise".format(
             *(short(abs(v), 4) for pair in leads for v in pair)))  # fmt: skip
    assert [v > 0 for v, _ in leads] == [True, False, False]
    twelve = [
        minus((f"st-{n}", p), ("twin", "tanh"))
        for n in ("gaussian", "logistic", "uniform") for p in ("sign", "one", "ten", "mean")
    ]  # fmt: skip
    assert max(twelve) == minus(("st-gaussian", "mean"), ("twin", "tanh"))
    value, error = (short(v, 4) for v in max(twelve))
    says(f"of the means with Gaussian noise, is {value} ± {error}, and it is the largest of twelve")
    falls = [of(n, "ten")[0] - of(n, "one")[0] for n in REAL]
    low, high = short(min(falls)), short(max(falls))
    says(f"With two layers of real weights one sample is {low} to {high} behind ten.")
    signs = [of(n, "sign")[0] - of(n, "ten")[0] for n in REAL]
    low, high = short(-min(signs)), short(max(signs))
    says(f"The signs are at most {low} behind ten and up to {high} ahead")
    low, high = sorted(
        of(n, "ten")[0] - of(n, "sign")[0] for n in ("weights-mirror", "weights-bc"))  # fmt: skip
    assert short(low) == short(high)
    conv = sorted(of(n, "ten")[0] - of(n, "sign")[0] for n in ("conv-st", "conv-psa"))
    says("With binary weights the signs are {} behind, and in the convolutions {} to {}.".format(
        short(low), *map(short, conv)))  # fmt: skip
    for row in rows_of("contenders-train"):
        if row["part"] == "contender" and row["kind"] == "sbn":
            value, error = minus((row["name"], "ten"), (row["name"], "mean"))
            assert value < error
    behind = [
        of(f"st-{n}", "ten")[0] - of(f"zgr-{n}", "ten")[0]
        for n in ("logistic", "gaussian", "uniform")
    ]
    says("is ahead by {} with logistic noise, where the two rates differ, by {} with Gaussian and "
         "by {} with uniform noise".format(*map(short, behind)))  # fmt: skip
    for kind in ("st", "zgr"):
        others = [of(f"{kind}-{n}", "ten")[0] for n in ("logistic", "gaussian")]
        assert abs(others[0] - others[1]) < 0.0016
        assert min(others) - of(f"{kind}-uniform", "ten")[0] > (0.010 if kind == "zgr" else 0.004)
    hard = of("sign-hardtanh", "sign")[0]
    gaps = [short(of(f"st-{n}", "sign")[0] - hard) for n in ("logistic", "gaussian")]
    assert abs(of("st-uniform", "sign")[0] - hard) < 0.001
    says(f"comes out at {short(hard)}, level with the signs of the network of uniform noise, whose "
         f"slope has the same form, and {gaps[0]} and {gaps[1]} below the signs")  # fmt: skip
    bits = [of(n, "sign")[0] for n in ("weights-bc", "weights-mirror")]
    says("{} with BinaryConnect and {} with mirror descent, {} and {} behind the twin".format(
        *map(short, (*bits, *(of("twin", "tanh")[0] - v for v in bits)))))  # fmt: skip
    value, error = minus(("weights-bc", "sign"), ("weights-mirror", "sign"))
    says(f"BinaryConnect is ahead by {short(value)} ± {short(error)}, a hint.")
    deep = minus(("deep-gain-1", "ten"), ("deep-scale-1", "ten"))[0]
    says(f"scale 1, the default of this library, loses {short(deep)} against the scale of gain 1.")
    behind_two = minus(("st-logistic", "ten"), ("deep-gain-1", "ten"))[0]
    says(f"Eight layers of 256 units are {short(behind_two)} behind two of 512")
    conv = minus(("conv-tanh", "tanh"), ("conv-st", "ten"))[0]
    cost = sorted(minus(("conv-tanh", "tanh"), (n, "sign"))[0] for n in ("conv-st", "conv-psa"))
    says("In this small net the binary units cost {}, and {} to {} at the signs.".format(
        short(conv), *map(short, cost)))  # fmt: skip
    for p in ("ten", "sign", "mean"):
        value, error = minus(("conv-psa", p), ("conv-st", p))
        assert abs(value) < error
    value, error = minus(("conv-psa", "one"), ("conv-st", "one"))
    says(f"in one sample PSA's network is ahead by {short(value)} ± {short(error)}, only a")
    rates = {n: values_of_rate(n) for n in REAL}
    assert rates["zgr-logistic"] == 0.003
    assert [rates[n] for n in REAL].count(0.001) >= 4
    p = of("twin", "tanh")[0]
    assert short(math.sqrt(p * (1 - p) / 10_000)) == "0.003"


def test_the_round_numbers_of_the_sixteen_ways() -> None:
    """Those that the text has with "about" or "mostly", and the settings."""
    p = of("twin", "tanh")[0]
    by_images = short(math.sqrt(p * (1 - p) / 10_000))
    says(f"every number of a table would have moved by about {by_images}")
    rates = [values_of_rate(n) for n in REAL]
    mostly = max(set(rates), key=rates.count)
    says(f"ZGR with logistic noise was given {short(values_of_rate('zgr-logistic'))}, and the "
         f"others mostly {short(mostly)}")  # fmt: skip
    found = {r["name"]: r for r in rows_of("contenders-train") if r["part"] == "contender"}
    twin = found["twin"]
    images = f"{twin['images']:,}".replace(",", " ")
    says(f"{images} training images, two layers of {twin['hidden'][0]} units with batch norm")
    assert all(len(r["rates"]) == 6 for r in found.values())
    for name, row in found.items():
        steps = np.divide(row["rates"][1:], row["rates"][:-1])
        low, high = (4, 5) if name.startswith("weights") else (3, 10 / 3)
        assert low - 1e-9 <= steps.min() and steps.max() <= high + 1e-9, name
    says("with factors of four to five")
    deep = found["deep-gain-1"]["hidden"]
    assert len(deep) == 8
    assert (deep[0], twin["hidden"]) == (256, [512, 512])
    trials = {r["lr"]: r["validation"] for r in rows_of("contenders-train")
              if (r["part"], r["name"]) == ("search", "twin")}  # fmt: skip
    low, high = trials[0.0003], trials[0.03]
    assert high == max(trials.values()) and abs(high - low - 0.003) < 0.0005
    says(f"at the rates 0.0003 and 0.03 its trials had the validation accuracies {short(low)} and "
         f"{short(high)}")  # fmt: skip


def values_of_rate(name: str) -> float:
    (rate,) = {
        r["lr"] for r in rows_of("contenders-train") if (r["part"], r["name"]) == ("final", name)
    }
    return float(rate)


def test_the_opening_has_numbers_of_the_table() -> None:
    twin = short(of("twin", "tanh")[0])
    noises = [short(of(f"st-{n}", "ten")[0]) for n in ("logistic", "gaussian", "uniform")]
    says(f"A network with two layers of 512 tanh units classifies {twin} of its test images right.")
    says("it is {} or {} with two noises, if ten passes are averaged, and {} with a third".format(
        *noises))  # fmt: skip


def test_the_table_of_losses_and_calibration() -> None:
    cell = containing(PATH, 'for number in ("nll", "ece")')
    _, head, *said, last = lines_of(cell)
    ends = [[m.end() for m in re.finditer(r"\S+", line)][-6:] for line in (head, said[0])]
    assert ends[0] == ends[1]  # a head stands over its column
    names = ("st-logistic", "st-gaussian", "sign-hardtanh", "weights-mirror", "weights-bc")
    for line, name in zip(said, names, strict=True):
        own = [p for p in ("sign", "ten", "mean") if values_of_has(name, p)]
        expected = [of(name, p, number)[0] for number in ("nll", "ece") for p in own]
        assert numbers(line[30:]) == pytest.approx(expected, abs=6e-4)
    twin = [of("twin", "tanh", number)[0] for number in ("nll", "ece")]
    assert last == "twin: loss {:.3f}, ECE {:.3f}".format(*twin)
    for name in ("st-logistic", "st-gaussian"):
        ece = {p: of(name, p, "ece")[0] for p in ("sign", "ten", "mean")}
        assert min(ece, key=lambda p: ece[p]) == "ten" and 2.9 < twin[1] / ece["ten"] < 4
        assert max(ece, key=lambda p: ece[p]) == "sign"
    says("better than the twin by a factor of three")
    worst = [of(n, "sign", "ece")[0] for n in names if n != "sign-hardtanh"]
    own = short(of("sign-hardtanh", "sign", "ece")[0])
    says(f"at {short(min(worst))} to {short(max(worst))}; the rule of binarized networks, which "
         f"was trained with its signs, has {own}.")  # fmt: skip


def values_of_has(name: str, prediction: str) -> bool:
    (first, *_) = (
        r for r in rows_of("contenders-train") if (r["part"], r["name"]) == ("final", name)
    )
    return prediction in first["test"]


# ------------------------------------------------------------------------------- long runs


LONG = ("classify-fashion-mnist-h100-2026-11-27", "classify-fashion-mnist-again")


def long(name: str) -> tuple[dict[str, list[float]], dict[str, float]]:
    final = [r for r in rows_of(name) if r["part"] == "final"]
    accuracy = {
        p: [r["test"][p] for r in final if p in r["test"]]
        for p in ("sign", "one", "ten", "mean", "tanh")
    }
    loss = {
        m: fmean(r["validation_loss"] for r in final if r["model"] == m) for m in ("sbn", "tanh")
    }
    return accuracy, loss


def test_the_table_of_long_runs() -> None:
    head, *said = lines_of(containing(PATH, "classify-fashion-mnist-again"))
    heads, last = ([m.end() for m in re.finditer(r"[\w.]+", line)][-8:] for line in (head, said[2]))
    assert heads[:5] + heads[6:] == last[1:]  # a head stands over its column
    for k, name in enumerate(LONG):
        accuracy, loss = long(name)
        line, errors = said[2 * k : 2 * k + 2]
        count, *found = numbers(line[15:])
        assert count == len(accuracy["ten"]) == len(accuracy["tanh"]) == (5, 10)[k]
        expected = [*map(fmean, accuracy.values()), *loss.values()]
        assert found == pytest.approx(expected, abs=6e-4)
        assert found[:5] == pytest.approx(expected[:5], abs=6e-5)
        assert numbers(errors.replace("+-", "")) == pytest.approx(
            [stdev(v) / math.sqrt(len(v)) for v in accuracy.values()], abs=6e-5
        )
    old, new = (measurement.read(PATH.parents[1] / "measurements" / f"{n}.json") for n in LONG)
    for words in ("--epochs 30", "--batch-size 500", "--hidden 512 512"):
        assert words in old["command"] and words in new["command"]
    assert {(r["lr"], r["init_gain"]) for r in new["rows"] if r["part"] == "final"} == {
        (r["lr"], r["init_gain"]) for r in old["rows"] if r["part"] == "final"
    }
    search = [r for r in old["rows"] if r["part"] == "search"]
    assert len(search) == 24
    twins = sorted((r["validation"]["tanh"], r["validation_loss"]) for r in search
                   if r["model"] == "tanh")  # fmt: skip
    (second, loss) = min(twins[-3:], key=lambda pair: pair[1])
    (best, its) = twins[-1]
    says(f"another setting of the twin had the validation accuracy {short(second, 4)} in place of "
         f"{short(best, 4)}, which is within the error, and the loss {short(loss, 2)} in place of "
         f"{short(its, 2)}.")  # fmt: skip
    says("the twin ends at {}, where ten samples have {}".format(
        *(short(long(LONG[1])[1][m], 2) for m in ("tanh", "sbn"))))  # fmt: skip
    says("each side with the best of twelve pairs of a learning rate and a factor")


def test_the_leads_of_the_long_runs_are_those_of_the_runs() -> None:
    """From the single runs, by Welch."""
    leads = []
    for name in LONG:
        accuracy, loss = long(name)
        ten, tanh = accuracy["ten"], accuracy["tanh"]
        apart = math.sqrt(stdev(ten) ** 2 / len(ten) + stdev(tanh) ** 2 / len(tanh))
        leads += [short(fmean(ten) - fmean(tanh), 4), short(apart, 4)]
        assert fmean(accuracy["mean"]) > fmean(ten) and loss["tanh"] > loss["sbn"] + 0.08
    old, new = ("{} ± {}".format(*leads[k : k + 2]) for k in (0, 2))
    says(f"it was {old}, and with fresh ones it is {new}, at the same setting")
    says("There ten samples were ahead of the twin, and the means further ahead.")


# ------------------------------------------------------------------------------- directions


@pin(
    "eq-17-length",
    r"\mathbb E\,\|\bar g\|^2=\|\mathbb E\,\hat g\|^2"
    r"+\tfrac1M\operatorname{tr}\mathrm{Cov}\,\hat g ,",
)
def test_eq_17_length() -> None:
    """Over all tuples of three samples of a law on four vectors."""
    g = np.random.default_rng(8)
    vectors, law = g.normal(size=(4, 5)), g.dirichlet(np.ones(4))
    mean = law @ vectors
    trace = law @ (vectors**2).sum(1) - mean @ mean
    found = sum(
        law[list(which)].prod() * (vectors[list(which)].mean(0) ** 2).sum()
        for which in itertools.product(range(4), repeat=3)
    )
    assert found == pytest.approx(mean @ mean + trace / 3, rel=1e-12)


@pin(
    "prop-17-length",
    r"""
    Let $\bar g_1,\dots,\bar g_G$, $G\ge2$, be independent means of samples $\hat g$ of one
    estimator, and $\bar g_1',\dots,\bar g_G'$ such means of samples $\hat g'$ of another one,
    independent of the first. Then {eq-17-products}
    """,
)
@pin(
    "eq-17-products",
    r"""
    \begin{aligned} \mathbb E\,\frac1{G(G-1)}\sum_{i\ne j}\langle\bar g_i,\bar
    g_j\rangle&=\|\mathbb E\,\hat g\|^2,\\ \mathbb E\,\frac1{G^2}\sum_{i,j}\langle\bar g_i,\bar
    g_j'\rangle&=\langle\mathbb E\,\hat g,\mathbb E\,\hat g'\rangle . \end{aligned}
    """,
)
def test_eq_17_products() -> None:
    """Over all pairs of means, G = 2, of two laws on three vectors."""
    g = np.random.default_rng(9)
    v, w = g.normal(size=(2, 3, 4))
    p, q = g.dirichlet(np.ones(3), 2)
    length = product = naive = 0.0
    for i, j in itertools.product(range(3), repeat=2):
        length += p[i] * p[j] * (v[i] @ v[j] + v[j] @ v[i]) / 2
        naive += p[i] * p[j] * (v[[i, j]].mean(0) ** 2).sum()
        for k, m in itertools.product(range(3), repeat=2):
            pairs = sum(v[a] @ w[b] for a in (i, j) for b in (k, m))
            product += p[i] * p[j] * q[k] * q[m] * pairs / 4
    assert length == pytest.approx((p @ v) @ (p @ v)) and naive > length + 0.1
    assert product == pytest.approx((p @ v) @ (q @ w))


def cosine(number: str, estimator: str, epoch: int, layer: str) -> float:
    (row,) = (
        r for r in rows_of("contenders-gradients")
        if (r["part"], r["estimator"], r["epoch"], r["layer"])
        == ("gradients", estimator, epoch, layer)
    )  # fmt: skip
    return float(row[number])


EPOCHS = (0, 1, 2, 5)
AT = tuple(itertools.product("12", EPOCHS))


def test_the_table_of_directions() -> None:
    _, _, *said = lines_of(containing(PATH, "def cosine_of"))
    labels = {"straight_through": "ST", "zgr": "ZGR", "st_gumbel": "ST-Gumbel",
              "concrete": "Concrete"}  # fmt: skip
    expected = [
        (f"{words:5s}{label}", [cosine(number, name, e, layer) for layer, e in AT])
        for number, words in (("many", "mean"), ("one", "one"))
        for name, label in labels.items()
    ]
    deviation = {
        (r["layer"], r["epoch"]): r["deviation"]
        for r in rows_of("contenders-gradients")
        if r["part"] == "candidate" and r["estimator"] == "muprop"
    }
    unbiased = [1 / math.sqrt(1 + deviation[at] ** 2) for at in AT]
    for line, (head, values) in zip(said, [*expected, ("one  MuProp", unbiased)], strict=True):
        assert line.startswith(head)
        assert numbers(line[14:]) == pytest.approx(values, abs=6e-4)
    for e in EPOCHS:
        assert f"{cosine('many', 'straight_through', e, '2'):.3f}" == "1.000"
        off = abs(cosine("many", "straight_through", e, "1") - 1)
        assert off < 0.0024 and off < 2 * cosine("many_se", "straight_through", e, "1")
    first = [cosine("many", "straight_through", e, "1") for e in EPOCHS]
    worst = max(cosine("many_se", "straight_through", e, "1") for e in EPOCHS)
    says("in the second layer with a cosine of 1.000 at every one of the four moments")
    says(f"in the first with {short(min(first))} to {max(first):.3f} and standard errors of up to "
         f"{short(worst)}.")  # fmt: skip
    low, high = short(min(unbiased[:4]), 2), short(max(unbiased[:4]), 2)
    says(f"One sample of MuProp has a cosine of {low} to {high} to")
    relaxed = [1 - cosine("many", n, e, k) for n in ("st_gumbel", "concrete") for k, e in AT]
    says(f"is seen at this width, too, and costs them up to {short(max(relaxed), 2)}")
    for name, words in (
        ("zgr", "one sample of ZGR has a cosine of {} to {}"),
        ("straight_through", "one of straight-through {} to {}"),
    ):
        one = [cosine("one", name, e, k) for k, e in AT]
        says(words.format(short(min(one), 2), short(max(one), 2)))
    assert min(unbiased) > 0.04 and max(unbiased[:4]) < 0.08
    worth = [
        deviation[at] ** 2 / (cosine("one", "straight_through", at[1], at[0]) ** -2 - 1)
        for at in AT
    ]
    assert min(worth[:4]) > 900 and max(worth[:4]) < 3100
    assert min(worth[4:]) > 14 and max(worth[4:]) < 21
    says("takes one to three thousand of them in the first layer, and 15 to 20 in the second")
    reference = [r for r in rows_of("contenders-gradients") if r["part"] == "reference"]
    assert {(r["estimator"], r["samples"]) for r in reference} == {("muprop", 8000)}
    cheap = {}
    for r in rows_of("contenders-gradients"):
        if r["part"] == "candidate" and r["layer"] == "all" and r["evaluations"] < 10:
            cheap.setdefault(r["epoch"], {})[r["estimator"]] = r["deviation"]
    for found in cheap.values():
        assert len(found) == 5 and min(found, key=lambda n: found[n]) == "muprop"


def test_the_law_of_chapter_7_at_512_units() -> None:
    law = containing(chapter(7), "C/n + D/n^2")
    (line,) = (v for v in printed(law).splitlines() if v.startswith("2 layers ST") and "12.2" in v)
    C, D = (numbers(line)[k] for k in (-5, -3))
    says(f"squared relative bias ${C:.3f}/n+{D:.3f}/n^2$")
    bias = math.sqrt(C / 512 + D / 512**2)
    says(f"at $n=512$ it gives a relative bias of {short(bias)}, whose cosine is "
         f"{short(math.sqrt(1 - bias**2), 4)}")  # fmt: skip


# ----------------------------------------------------------------------------- a small net


def small(number: str, estimator: str, epoch: int, layer: str) -> list[float]:
    return [
        r[number]
        for r in rows_of("contenders-exact")
        if (r["estimator"], r["epoch"], r["layer"]) == (estimator, epoch, layer)
    ]


def test_what_is_printed_fits_the_page() -> None:
    for cell in chapters.cells(PATH):
        most = 72 if "solution" in chapters.tags(cell) else 76
        assert all(len(line) <= most for line in printed(cell).splitlines()), cell.source


def test_the_table_of_the_small_network() -> None:
    _, _, *said = lines_of(containing(PATH, "def over_seeds"))
    names = ("straight_through", "zgr", "st_gumbel", "concrete", "psa", "arm", "reinforce_loo")
    parts = (("bias2", "all"), ("variance", "all"), ("cosine", "1"), ("cosine", "2"))
    assert len(said) == len(names)
    for line, name in zip(said, names, strict=True):
        expected = [
            fmean(small(number, name, e, layer)) for number, layer in parts for e in (0, 20, 40)
        ]
        assert numbers(line[9:]) == pytest.approx(expected, abs=6e-3)
    angles = [
        math.degrees(math.acos(c))
        for e in (20, 40)
        for c in small("cosine", "straight_through", e, "1")
    ]
    low, high = min(angles), max(angles)
    says(f"makes angles of {low:.0f} to {high:.0f} degrees with the gradient in the first layer")
    cosines = {(e, k): v for e in (20, 40)
               for k, v in enumerate(small("cosine", "straight_through", e, "2"))}  # fmt: skip
    worst = min(cosines, key=lambda at: cosines[at])
    says(f"with a cosine of −{short(-cosines[worst], 2)}, where that layer's part")
    part, whole = (small("length", "straight_through", worst[0], k)[worst[1]] for k in ("2", "all"))
    assert part < 0.05 * whole
    every = [v for e in (0, 20, 40) for v in small("cosine", "zgr", e, "2")]
    says(f"with cosines of {short(min(every), 2)} and more, and no better in the first.")
    every = [v for e in (0, 20, 40) for k in "12" for v in small("cosine", "psa", e, k)]
    says(f"PSA has cosines of {short(min(every), 2)} and more in both layers")
    for e in (0, 20, 40):
        assert all(np.array(small("variance", "psa", e, "all"))
                   < np.array(small("variance", "straight_through", e, "all")))  # fmt: skip
    away = [
        fmean(small("cosine", "zgr", e, "1")) - fmean(small("cosine", "straight_through", e, "1"))
        for e in (20, 40)
    ]
    assert max(map(abs, away)) < 0.05


def test_cosines_of_the_formula_can_exceed_one() -> None:
    found = [r["many"] for r in rows_of("contenders-gradients") if r["part"] == "gradients"]
    assert 1 < max(found) < 1.01
    says("It can come out above 1.")


def test_over_seeds_is_a_mean_of_three() -> None:
    for name, epoch in itertools.product(("straight_through", "psa", "arm"), (0, 20, 40)):
        assert len(small("variance", name, epoch, "all")) == 3
    says("The table has the means over three seeds")


# -------------------------------------------------------------------------------- exercises


def checker(name: str) -> Any:
    (cell,) = (c for c in tagged(PATH, "checker") if f"{name} = " in c.source)
    return run(PATH, cell)[name]


@pytest.mark.parametrize(
    "name", ["check_undecided", "check_dark", "check_advantage", "check_cosine", "check_q"]
)
def test_the_checkers_know_their_wrong_answers(name: str, capsys: pytest.CaptureFixture) -> None:
    check = checker(name)
    assert len(check.wrong) >= 3
    for answer, words in check.wrong:
        capsys.readouterr()
        assert not check(answer)
        assert words in lean(capsys.readouterr().out)
    assert check(check.value)


@pytest.mark.slow
def test_ex_17_recipe() -> None:
    (cell,) = (c for c in tagged(PATH, "solution") if "undecided" in c.source)
    before, after, normed, constant = (numbers(line) for line in lines_of(cell)[:4])
    assert checker("check_undecided")(after[0])
    assert before[0] == pytest.approx(0.38, abs=0.01)
    says("Before training it is 0.38.")
    assert after[1] < 0.1 and min(normed[:2]) > 0.25 and normed[2] > after[2] + 0.03
    says(f"get {short(after[2], 2)} of the test images right, in place of {short(normed[2], 2)}.")
    says(f"their loss is {short(constant[3], 2)} in place of {short(normed[3], 2)}.")
    net = notebook()["net"]
    with torch.no_grad():
        a = net[:2](notebook()["x"]).numpy()
    share = (1 - np.tanh(a / notebook()["noise"].scale / 2) ** 2).mean()
    assert normed[0] == pytest.approx(share, abs=6e-4)


def test_ex_17_statistics() -> None:
    (cell,) = (c for c in tagged(PATH, "solution") if "centred" in c.source)
    own, anew = (numbers(line)[-1] for line in lines_of(cell) if line.startswith("statistics"))
    assert checker("check_dark")(own) and abs(own - anew) < 0.012
    none = numbers(lines_of(containing(PATH, 'for taken in ("none"'))[1])[0]
    assert own > none + 0.03


def test_ex_17_search() -> None:
    s = math.sqrt(0.88 * 0.12 / 10_000)
    six, many = expected_maximum(6) * s, expected_maximum(24) * s
    check = checker("check_advantage")
    assert check(many - six)
    bound = s * (math.sqrt(2 * math.log(24)) - math.sqrt(2 * math.log(6)))
    for wrong in (six, many, bound, 0.0, (many - six) / s / 1000):
        assert not check(wrong)
    (cell,) = (c for c in tagged(PATH, "solution") if "check_advantage" in c.source)
    assert numbers(lines_of(cell)[0])[0::2][:1] == [pytest.approx(six, abs=3e-5)]


@pytest.mark.slow
def test_ex_17_cosine() -> None:
    g = np.random.default_rng(2)
    v, w = g.normal(size=(2, 9, 50)) + 1

    def right(v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        def square(a: torch.Tensor) -> torch.Tensor:
            return torch.stack([
                a[i] @ a[j] for i in range(len(a)) for j in range(len(a)) if i != j
            ]).mean()  # fmt: skip

        inner = torch.stack([a @ b for a in v for b in w]).mean()
        return inner / (square(v) * square(w)) ** 0.5

    assert checker("check_cosine")(right)
    (given,) = (c for c in tagged(PATH, "checker") if "check_cosine" in c.source)
    (solution,) = (c for c in tagged(PATH, "solution") if "length2" in c.source)
    solved = run(PATH, solution, run(PATH, given))
    found = solved["cosine"](torch.tensor(v), torch.tensor(w))
    assert float(found) == pytest.approx(float(right(torch.tensor(v), torch.tensor(w))))


def test_ex_17_worse() -> None:
    """By the law of votes and of averages: at q below 0.9756 the average of many is wrong."""
    limit = 0.4 / 0.41
    assert checker("check_q")(limit)
    for q, wrong in ((limit - 0.003, True), (limit + 0.003, False)):
        k = np.arange(200_001)
        mean = (0.51 * k + 0.10 * (200_000 - k)) / 200_000
        chance = stats.binom.pmf(k, 200_000, q)[mean < 0.5].sum()
        assert (chance > 0.99) == wrong and (chance < 0.01) != wrong
    one = -limit * math.log(0.51) - (1 - limit) * math.log(0.1)
    says(f"{short(one)} against {short(math.log(2))}")
    assert limit * 0.51 + (1 - limit) * 0.1 == pytest.approx(0.5)


def test_undecided_of_the_solution() -> None:
    """Of a network of two layers, by numpy, given the exact means of the first layer's states."""
    space = chapters.define(PATH, "undecided")
    g = np.random.default_rng(7)
    w, b, x = g.normal(size=(5, 3)), g.normal(size=5), g.normal(size=(40, 3))
    noise = space["sbnlib"].Logistic(0.7)
    below, above = torch.nn.Linear(3, 5), torch.nn.Linear(5, 4)
    with torch.no_grad():
        below.weight.copy_(torch.tensor(w))
        below.bias.copy_(torch.tensor(b))
    net = torch.nn.Sequential(below, space["Sign"](noise), above, space["Sign"](noise))
    space |= {"noise": noise, "x": torch.tensor(x)}
    torch.manual_seed(3)
    found = space["undecided"](net)
    assert found[0] == pytest.approx((1 - np.tanh((x @ w.T + b) / 1.4) ** 2).mean())
    v, c = above.weight.detach().numpy(), above.bias.detach().numpy()
    mu = np.tanh((x @ w.T + b) / 1.4)
    states = np.array(list(itertools.product((-1, 1), repeat=5)))
    chances = ((1 + states[:, None] * mu) / 2).prod(-1)  # of (states, inputs)
    of_state = (1 - np.tanh((states @ v.T + c) / 1.4) ** 2).mean(1)
    means = [space["undecided"](net)[1] for _ in range(400)]
    error = stdev(means) / math.sqrt(400)
    assert abs(fmean(means) - of_state @ chances.mean(1)) < 4.5 * error  # 7 in a million


@pytest.mark.slow
def test_the_share_before_training() -> None:
    """E(1 - tanh^2(a / 2s)) of a ~ N(0, 1) by quadrature, at the scale of gain 1.

    Of 24 networks by numpy a layer's share has the deviations 0.011 and 0.008; 4.5 of them.
    """
    s = notebook()["noise"].scale
    share = integrate.quad(lambda a: stats.norm.pdf(a) / np.cosh(a / s / 2) ** 2, -10, 10)[0]
    squares = (notebook()["x"].numpy() ** 2).sum(1)
    by_image = np.sqrt(squares / squares.mean())  # deviations of a in the first layer
    z, weight = np.polynomial.hermite_e.hermegauss(60)
    first = (weight / weight.sum()) @ (1 / np.cosh(np.outer(z, by_image) / s / 2) ** 2).mean(1)
    (cell,) = (c for c in tagged(PATH, "solution") if "undecided" in c.source)
    own = numbers(lines_of(cell)[0])[:2]
    assert abs(own[0] - first) < 4.5 * 0.011 and abs(own[1] - share) < 4.5 * 0.008
    says(f"Before training it is {short(own[0], 2)}.")


def named(name: str, answer: float, capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    assert not checker(name)(answer)
    return lean(capsys.readouterr().out)


def test_mistakes_with_ex_17_recipe_are_named(capsys: pytest.CaptureFixture) -> None:
    """Each wrong answer as it comes out of the stored outputs or of arithmetic, not as listed."""
    (cell,) = (c for c in tagged(PATH, "solution") if "undecided" in c.source)
    before, after, normed = (numbers(line) for line in lines_of(cell)[:3])
    for answer, words in (
        (before[0], "before training"),
        (normed[0], "with batch norm"),
        (after[1], "the second layer"),
        (1 - after[0], "the mean of mu^2"),
    ):
        assert words in named("check_undecided", answer, capsys)


def test_mistakes_with_the_other_numbers_are_named(capsys: pytest.CaptureFixture) -> None:
    none = numbers(lines_of(containing(PATH, 'for taken in ("none"'))[1])[0]
    (cell,) = (c for c in tagged(PATH, "solution") if "centred" in c.source)
    dark = numbers(lines_of(cell)[0])[-1]
    assert "without centring" in named("check_dark", none, capsys)
    assert "the share of errors" in named("check_dark", 1 - dark, capsys)
    s = math.sqrt(0.88 * 0.12 / 10_000)
    six, many = expected_maximum(6), expected_maximum(24)
    for answer, words in (
        (six * s, "six trials look"),
        (many * s, "24 trials look"),
        (s * (math.sqrt(2 * math.log(24)) - math.sqrt(2 * math.log(6))), "the two bounds"),
        ((many - six) / 1000, "and not of 0.001"),
        (0.0, "the true difference"),
    ):
        assert words in named("check_advantage", answer, capsys)
    assert "not of votes" in named("check_q", 0.5, capsys)
    assert "q 0.51 + (1 - q) 0.10" in named("check_q", 0.5 / 0.51, capsys)


@pytest.mark.slow
def test_the_solutions_print_their_numbers() -> None:
    s = math.sqrt(0.88 * 0.12 / 10_000)
    six, many = expected_maximum(6) * s, expected_maximum(24) * s
    (cell,) = (c for c in tagged(PATH, "solution") if "check_advantage" in c.source)
    # a maximum deviates by less than s, so 200 000 of them by 0.0000073: 4.5 of these
    found = [float(v) for v in re.findall(r"0\.\d{5}", lines_of(cell)[0])]
    assert found == pytest.approx([six, many, many - six], abs=4e-5)
    (cell,) = (c for c in tagged(PATH, "solution") if "check_q" in c.source)
    q = 0.4 / 0.41
    one = -q * math.log(0.51) - (1 - q) * math.log(0.1)
    assert lines_of(cell)[0] == f"q = {q:.4f}, loss {one:.3f}, averaged {math.log(2):.3f}"
    (given,) = (c for c in tagged(PATH, "checker") if "check_cosine" in c.source)
    noisy = run(PATH, given)["_noisy"]
    found = []
    for count in (12, 4000):
        v, w = (a.numpy() for a in noisy(count, 2))
        off = ~np.eye(count, dtype=bool)
        lengths = [(a @ a.T)[off].mean() for a in (v, w)]
        found.append(float((v @ w.T).mean()) / math.sqrt(lengths[0] * lengths[1]))
    v, w = (a.numpy().mean(0) for a in noisy(12, 2))
    naive = v @ w / math.sqrt((v @ v) * (w @ w))
    (cell,) = (c for c in tagged(PATH, "solution") if "length2" in c.source)
    assert lines_of(cell)[0] == (
        f"by the products {found[0]:.3f}, of the averages {naive:.3f}, of more rows {found[1]:.3f}"
    )
    base, off = torch.randn(2, 400, generator=torch.Generator().manual_seed(2)).numpy()
    true = base @ (base + off / 2) / np.linalg.norm(base) / np.linalg.norm(base + off / 2)
    assert found[1] == pytest.approx(true, abs=0.002)
    assert naive < found[0] - 0.1
