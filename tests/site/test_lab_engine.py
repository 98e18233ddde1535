"""The lab's scripts compute what the library computes, in a real browser.

A blank page loads them as a reader's page will, once as a file and once through a server. What they
are held to: sbnlib on random networks; a sum over all paths in numpy for what sbnlib has no exact
moments of, REINFORCE and bits; mpmath, scipy and torch's autograd for noises and formulas.
"""

import functools
import gzip
import itertools
import math
import random
import re

import mpmath
import numpy as np
import pytest
import reference
import torch
from places import BOOK
from visit import note_problems

import sbnlib
from sbnlib import exercises
from sbnlib.noise import NOISES
from sbnlib.registry import ESTIMATORS

pytestmark = pytest.mark.site

FOLDER = BOOK / "lab" / "scripts"
#: In the order in which one needs the other.
ENGINE = ["noise", "exact", "estimators", "formula", "net", "presets", "address", "lab"]
SIZE = 60_000  # bytes, compressed

LAWS = {name.lower(): name for name in reference.LAWS}
CHAIN_RULES = {
    "straight_through": "straight_through",
    "zgr": "zgr",
    "darn": "darn",
    "identity": "identity",
    "hardtanh": "hardtanh",
    "chain_rule": lambda s: functools.partial(sbnlib.chain_rule, s=s),
    "shrinkage": lambda omega: functools.partial(sbnlib.estimators.shrinkage, omega=omega),
}
PARAMETER = {"chain_rule": "s", "shrinkage": "omega"}


def source(name):
    return (FOLDER / f"{name}.js").read_text("utf-8")


# ------------------------------------------------------------------------------------ the page


@pytest.fixture(scope="module", params=["file", "server"])
def tab(request, browser, serve, tmp_path_factory):
    """A page with the engine and nothing else."""
    folder = tmp_path_factory.mktemp("lab")
    tags = ""
    for name in ENGINE:
        (folder / f"{name}.js").write_text(source(name), "utf-8")
        tags += f'<script defer src="{name}.js"></script>\n'
    page = f"<!doctype html><meta charset=utf-8><link rel=icon href=data:,><title>-</title>{tags}"
    (folder / "blank.html").write_text(page, "utf-8")
    with serve(folder) as address:
        address = folder.as_uri() if request.param == "file" else address
        context = browser.new_context()
        context.set_default_timeout(120_000)
        tab = context.new_page()
        note_problems(tab, address)
        tab.goto(f"{address}/blank.html", wait_until="load")
        yield tab
        context.close()


def js(tab, expression, given=None):
    """The value of an expression in `given`; where it throws, the message."""
    return tab.evaluate(
        f"given => {{ try {{ return {expression}; }} catch (error) {{ return error.message; }} }}",
        given,
    )


def compute(tab, models):
    """What the lab makes of each model, laws as lists."""
    return tab.evaluate(
        """models => models.map((model) => {
            const answer = SBN.lab.compute(model);
            return { ...answer, laws: answer.laws.map((law) => [...law]) };
        })""",
        models,
    )


def test_the_scripts_load_and_add_one_name(tab):
    assert tab.problems == []
    new = """() => {
        const frame = document.body.appendChild(document.createElement("iframe"));
        const usual = new Set(Object.getOwnPropertyNames(frame.contentWindow));
        frame.remove();
        return Object.getOwnPropertyNames(window).filter((name) => !usual.has(name));
    }"""
    assert [name for name in tab.evaluate(new) if not name.isdigit()] == ["SBN"]
    assert set(js(tab, "Object.keys(SBN)")) == {*ENGINE} - {"presets", "address"}  # these join net


def test_the_scripts_are_small():
    assert {p.stem for p in FOLDER.glob("*.js")} >= set(ENGINE)
    packed = {p.stem: len(gzip.compress(p.read_bytes())) for p in FOLDER.glob("*.js")}
    print("compressed:", packed)
    assert sum(packed.values()) < SIZE


@pytest.mark.parametrize("name", ENGINE)
def test_a_script_is_plain(name):
    """Classic, strict, and without what a page from a file, or a careful reader, forbids."""
    text = source(name)
    assert text.count('"use strict";') == 1
    forbidden = (
        r"\beval\b|\bnew Function\b|\bimport\b|\bexport\b|\bfetch\b|XMLHttp|Worker|innerHTML"
    )
    assert re.findall(forbidden, text) == []
    assert max(map(len, text.splitlines())) <= 100
    assert set(re.findall(r"SBN\.(\w+)", text)) <= set(ENGINE[: ENGINE.index(name) + 1])


# ----------------------------------------------------------------------------------- the noises


def noise_values(tab, name, scale, function, points):
    given = {"name": name, "scale": scale, "of": function, "at": points}
    found = js(tab, "given.at.map(SBN.noise.make(given.name, given.scale)[given.of])", given)
    return np.array(found, float)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("name", LAWS)
def test_noise_is_the_librarys(tab, name, scale):
    """Far in the lower tail too, to the last digits; at and beyond the ends of a support."""
    law = reference.RefNoise(LAWS[name], scale)
    rng = np.random.default_rng(3)
    a = np.concatenate([rng.normal(size=200), -rng.uniform(1, 30, 50), [0, 1, -1, 2, -2]]) * scale
    p = np.concatenate([rng.random(100), 10 ** -rng.uniform(1, 300, 50), [0.5, 0.25]])
    for function, points in (("cdf", a), ("pdf", a), ("icdf", p)):
        expected = getattr(law, function)(points)
        got = noise_values(tab, name, scale, function, points.tolist())
        np.testing.assert_allclose(got, expected, rtol=3e-13, atol=1e-15 * (function == "icdf"))
    tails = noise_values(tab, name, scale, "tail", a.tolist())
    np.testing.assert_allclose(tails, law.cdf(-np.abs(a)), rtol=3e-13)
    width = scale * law.law.half_width
    support = js(tab, "SBN.noise.make(given[0], given[1]).support", [name, scale])
    assert support == [-width, width]


def test_normal_tail_is_right_to_the_last_digit(tab):
    """To 1e-15 of itself: scipy's erfc(t/sqrt 2)/2 loses t^2 times that to the rounding of t."""
    rng = np.random.default_rng(4)
    t = np.concatenate(
        [rng.uniform(0, 1.5, 400), rng.uniform(1.5, 6, 200), rng.uniform(6, 37, 100)]
    )
    got = js(tab, "given.map(SBN.noise.normalTail)", t.tolist())
    with mpmath.workdps(40):
        exact = [mpmath.erfc(mpmath.mpf(v) / mpmath.sqrt(2)) / 2 for v in t]
        errors = [abs(mpmath.mpf(g) / e - 1) for g, e in zip(got, exact, strict=True)]
    assert max(errors) < 1e-15


def test_what_has_no_noise_is_refused(tab):
    assert set(js(tab, "SBN.noise.NAMES")) == set(NOISES)
    for name, scale, message in (
        ("laplace", 1, f"noise must be one of {', '.join(LAWS)}, got laplace"),
        ("toString", 1, f"noise must be one of {', '.join(LAWS)}, got toString"),
        ("logistic", 0, "scale must be a number above 0, got 0"),
        ("logistic", "a", "scale must be a number above 0, got a"),
    ):
        assert js(tab, "SBN.noise.make(given[0], given[1])", [name, scale]) == message
    assert js(tab, "SBN.noise.make('FastSigmoid').label") == "FastSigmoid"
    assert js(tab, "[0, 1, -0.1, 1.1].map(SBN.noise.make('gaussian').icdf)")[:2] == [
        -math.inf,
        math.inf,
    ]


# ---------------------------------------------------------------------------- random networks


def random_loss(rng, kind, n):
    if kind == "quadratic":
        return {
            "kind": kind,
            "A": rng.normal(size=(n, n)).tolist(),
            "c": rng.normal(size=n).tolist(),
        }
    if kind == "cross_entropy":
        classes = int(rng.integers(2, 6))
        return {
            "kind": kind,
            "weight": rng.normal(size=(classes, n)).tolist(),
            "bias": rng.normal(size=classes).tolist(),
            "target": int(rng.integers(classes)),
        }
    c, (i, j) = rng.normal(size=4).round(3), rng.integers(1, n + 1, size=2)
    text = (
        f"exp({c[0]}*x1) - {abs(c[1])}*x{i}*x{j}^2 / (2 + cos(x{n})) "
        f"+ tanh({c[2]}*x{j} + x1 - x{i}^3)*sqrt(3 - x{n}) + 2^-x1*sin(pi*x{j}/4) "
        f"- abs({c[3]} - x{i})"
    )
    return {"kind": kind, "text": text}


def random_model(seed, noise, kind, estimator, *, widths=None, coding="signs", gain=1.3):
    rng = np.random.default_rng(seed)
    widths = widths or rng.integers(1, 9, size=rng.integers(2, 5)).tolist()
    layers = [
        {
            "weight": (gain * rng.normal(size=(m, n)) / n**0.5).tolist(),
            "bias": rng.normal(0, 0.3, m).tolist(),
        }
        for n, m in itertools.pairwise(widths)
    ]
    if estimator in PARAMETER:
        place = rng.uniform(-1.5, 1.5)
        estimator = {"name": estimator, PARAMETER[estimator]: place if estimator[0] == "c" else 2.0}
    if estimator == "reinforce":
        estimator = {"name": "reinforce", "baseline": [0, 0.7, "mean"][seed % 3]}
    return {
        "layers": layers,
        "input": rng.normal(size=widths[0]).tolist(),
        "noise": noise,
        "scale": float(rng.uniform(0.4, 2.5)),
        "coding": coding,
        "loss": random_loss(rng, kind, widths[-1]),
        "estimator": estimator,
    }


KINDS = ["quadratic", "cross_entropy", "formula"]
COMBINATIONS = list(itertools.product(CHAIN_RULES, LAWS, KINDS))
RANDOM = [
    random_model(seed, noise, kind, estimator)
    for seed, (estimator, noise, kind) in enumerate(2 * COMBINATIONS)
]


def in_torch(loss):
    """The loss of states (..., n), by torch's own operations."""
    if loss["kind"] == "quadratic":
        A, c = (torch.tensor(loss[key], dtype=torch.float64) for key in ("A", "c"))
        return lambda x: 0.5 * torch.einsum("...i,ij,...j", x, A, x) + x @ c
    if loss["kind"] == "cross_entropy":
        W, b = (torch.tensor(loss[key], dtype=torch.float64) for key in ("weight", "bias"))
        return lambda x: -torch.log_softmax(x @ W.T + b, -1)[..., loss["target"]]
    return lambda x: by_python(loss["text"], {f"x{i + 1}": v for i, v in enumerate(x.unbind(-1))})


def of_a_number(function):
    return lambda v: function(torch.as_tensor(v, dtype=torch.float64))


def by_python(text, values):
    """A formula of ours as one of Python's, on tensors."""
    pi = torch.tensor(math.pi, dtype=torch.float64)
    functions = {name: of_a_number(getattr(torch, name)) for name in exercises.FUNCTIONS}
    return eval(text.strip().replace("^", "**"), {**functions, "pi": pi, **values})


@functools.cache
def by_the_library():
    """value, gradient, mean, variance of every random network, keyed as net.named_parameters."""
    return [of_library(model) for model in RANDOM]


def of_library(model):
    noise = NOISES[model["noise"]](model["scale"])
    net = sbnlib.SBN(
        *(torch.nn.Linear(len(w["weight"][0]), len(w["bias"])).double() for w in model["layers"]),
        noise=noise,
    )
    with torch.no_grad():
        for layer, given in zip(net.layers, model["layers"], strict=True):
            layer.weight.copy_(torch.tensor(given["weight"], dtype=torch.float64))
            layer.bias.copy_(torch.tensor(given["bias"], dtype=torch.float64))
    inputs = torch.tensor([model["input"]], dtype=torch.float64)
    loss, estimator = in_torch(model["loss"]), model["estimator"]
    if isinstance(estimator, dict):
        name = estimator["name"]
        estimator = CHAIN_RULES[name](estimator[PARAMETER[name]])
    value, gradient = sbnlib.exact_gradient(net, inputs, loss)
    moments = sbnlib.exact_moments(net, inputs, loss, estimator)
    return value.item(), gradient, moments


def flat(layers):
    """[{weight, bias}] with the names of net.named_parameters."""
    return {
        f"layers.{k}.{part}": np.array(layer[part])
        for k, layer in enumerate(layers)
        for part in ("weight", "bias")
    }


def assert_near(got, expected, among=None, tolerance=1e-12):
    """To 1e-12 of the largest entry of the vector, or of `among`."""
    largest = np.abs(expected if among is None else among).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * largest)


@pytest.fixture(scope="module")
def answers(tab):
    return compute(tab, RANDOM)


def test_random_networks_cover_what_there_is():
    sizes = [[len(model["input"]), *(len(k["bias"]) for k in model["layers"])] for model in RANDOM]
    assert len(RANDOM) >= 200
    assert {len(s) - 1 for s in sizes} == {1, 2, 3}
    assert {n for s in sizes for n in s} == set(range(1, 9))
    assert set(CHAIN_RULES) >= {name for name, e in ESTIMATORS.items() if e.state_only}


def test_value_and_gradient_of_random_networks(answers):
    for got, (value, gradient, _) in zip(answers, by_the_library(), strict=True):
        assert got["value"] == pytest.approx(value, rel=1e-12, abs=1e-12)
        for name, vector in flat(got["gradient"]).items():
            assert_near(vector, gradient[name].numpy())


def test_moments_of_random_networks(answers):
    """A variance is the difference of two numbers near the second moment, and as exact as those."""
    for got, (_, _, moments) in zip(answers, by_the_library(), strict=True):
        means, variances = flat(got["mean"]), flat(got["variance"])
        for name, (mean, variance) in moments.items():
            mean, variance = mean.numpy(), variance.numpy()
            assert_near(means[name], mean)
            assert_near(variances[name], variance, among=variance + mean**2)


# ------------------------------------------------------------------- a sum over all paths


def enumerate_paths(model):
    """The states of every layer on every path as values, pre-activations, and P(path)."""
    values = (0.0, 1.0) if model["coding"] == "bits" else (-1.0, 1.0)
    noise = reference.RefNoise(LAWS[model["noise"]], model["scale"])
    widths = [len(layer["bias"]) for layer in model["layers"]]
    joint = np.array(list(itertools.product(values, repeat=sum(widths))))
    xs = np.split(joint, np.cumsum(widths)[:-1], axis=1)
    below, found, prob = np.tile(model["input"], (len(joint), 1)), [], np.ones(len(joint))
    for x, layer in zip(xs, model["layers"], strict=True):
        a = below @ np.array(layer["weight"]).T + np.array(layer["bias"])
        signs = np.where(x == values[1], 1.0, -1.0)
        prob = prob * noise.prob(signs, a).prod(1)
        found.append((below, a, signs))
        below = x
    return noise, found, xs, prob


def by_paths(model):
    """E L; for each parameter mean and variance, over all paths, of L times the score and of g."""
    noise, found, xs, prob = enumerate_paths(model)
    x = torch.tensor(xs[-1], requires_grad=True)
    L = in_torch(model["loss"])(x)
    upstream = torch.autograd.grad(L.sum(), x)[0].numpy()
    L = L.detach().numpy()
    value, scored, estimated, estimator = prob @ L, {}, {}, model["estimator"]
    name = estimator if isinstance(estimator, str) else estimator["name"]
    for k in reversed(range(len(found))):
        below, a, signs = found[k]
        score = signs * reference.factor("zgr", noise, a, signs)
        if name == "reinforce":
            baseline = value if estimator["baseline"] == "mean" else estimator["baseline"]
            d = (L - baseline)[:, None] * score
        else:
            c = factor(estimator, name, noise, a, signs)
            d = c * upstream / (2 if model["coding"] == "bits" else 1)
            upstream = d @ np.array(model["layers"][k]["weight"])
        scored |= moments_of(k, prob, L[:, None] * score, below)
        estimated |= moments_of(k, prob, d, below)
    return value, scored, estimated


def moments_of(k, prob, d, below):
    out = {}
    for part, g in (("weight", d[:, :, None] * below[:, None]), ("bias", d)):
        mean = np.tensordot(prob, g, 1)
        out[f"layers.{k}.{part}"] = mean, np.tensordot(prob, (g - mean) ** 2, 1)
    return out


def factor(estimator, name, noise, a, signs):
    if name == "hardtanh":
        return np.where(np.abs(a) < 1, 1.0, 0.0)
    place = estimator[PARAMETER[name]] if name in PARAMETER else 0.0
    return reference.factor({"darn": "darn_mean"}.get(name, name), noise, a, signs, place)


SMALL = [[2, 3], [1, 1], [3, 2, 3], [2, 1, 4], [2, 3, 2, 3], [4, 2, 2, 2]]
ENUMERATED = [
    random_model(seed, noise, KINDS[seed % 3], estimator, widths=SMALL[seed % 6], coding=coding)
    for seed, (estimator, noise, coding) in enumerate(
        [*itertools.product(["reinforce"], 3 * list(LAWS), ["signs"])]
        + [*itertools.product([*CHAIN_RULES, "reinforce"], LAWS, ["bits"])]
    )
]


def test_reinforce_and_bits_against_all_paths(tab):
    """On a path an estimate may be far larger than its mean, and the rounding is of that size."""
    for model, got in zip(ENUMERATED, compute(tab, ENUMERATED), strict=True):
        value, scored, estimated = by_paths(model)
        assert got["value"] == pytest.approx(value, rel=1e-12, abs=1e-12)
        gradient, means, variances = (flat(got[w]) for w in ("gradient", "mean", "variance"))
        for name, (mean, variance) in scored.items():
            assert_near(gradient[name], mean, among=(variance + mean**2) ** 0.5)
        for name, (mean, variance) in estimated.items():
            assert_near(means[name], mean, among=(variance + mean**2) ** 0.5)
            assert_near(variances[name], variance, among=variance + mean**2)


def test_laws_are_those_of_the_states(tab):
    models = [model for model in ENUMERATED if len(model["layers"]) > 1][::3]
    for model, got in zip(models, compute(tab, models), strict=True):
        _, _, xs, prob = enumerate_paths(model)
        for x, law in zip(xs, got["laws"], strict=True):
            upper = (x == x.max()).astype(int)
            number = upper @ 2 ** np.arange(x.shape[1])[::-1]  # unit 0 is the first digit
            expected = np.bincount(number, prob, minlength=2 ** x.shape[1])
            np.testing.assert_allclose(law, expected, rtol=1e-12, atol=1e-15)


def test_a_translated_net_has_the_same_gradient_in_bits(tab):
    """Weights on bits are twice those on signs (chapter 2); the gradients in biases agree."""
    signs = random_model(5, "logistic", "quadratic", "zgr", widths=[2, 3, 3])
    first, last = signs["layers"]
    W, b = np.array(last["weight"]), np.array(last["bias"])
    A, c = np.array(signs["loss"]["A"]), np.array(signs["loss"]["c"])
    A, one = (A + A.T) / 2, np.ones(3)
    translated = {"weight": (2 * W).tolist(), "bias": (b - W @ one).tolist()}
    loss = {"kind": "quadratic", "A": (4 * A).tolist(), "c": (2 * c - 2 * A @ one).tolist()}
    bits = signs | {"layers": [first, translated], "coding": "bits", "loss": loss}
    one, other = compute(tab, [signs, bits])
    for what in ("gradient", "mean", "variance"):
        for k in (0, 1):
            assert_near(other[what][k]["bias"], np.array(one[what][k]["bias"]))
    assert_near(other["mean"][0]["weight"], np.array(one["mean"][0]["weight"]))


def test_time_of_the_largest_network(tab):
    """Printed, not asserted."""
    for name, noise in itertools.product(("zgr", "reinforce"), ("logistic", "gaussian")):
        model = random_model(1, noise, "formula", name, widths=[8, 8, 8, 8])
        times = tab.evaluate(
            """model => Array.from({length: 40}, () => {
                const start = performance.now();
                SBN.lab.compute(model);
                return performance.now() - start;
            })""",
            model,
        )
        print(f"8-8-8, {name}, {noise}: median {np.median(times[5:]):.1f} ms")


# ------------------------------------------------------------------------------------ formulas


def formula(tab, text, names, points):
    """Value and derivatives at each point, or what is said where, on a formula that is refused."""
    return tab.evaluate(
        """([text, names, points]) => {
            try {
                const read = SBN.formula.parse(text, names);
                return points.map((x) => [read.value(x), ...read.slopes(x)]);
            } catch (error) {
                return { message: error.message, position: error.position };
            }
        }""",
        [text, names, points],
    )


WRITTEN = [
    "1", "pi", "x1", "-x1^2", "2^-x1", "2^x1^x2", "x1-x2-x3", "x1/x2/x3", "x1/x2*x3", "-x1*-x2",
    "--x1", "+x1 - +x2", "x1**2", "2*x1**-2", " ( x1 + 2 )*x3 ", "1e-2*x1", ".5*x2", "3.*x2",
    "1.5E1", "abs(x1)*x2", "cos(x1)", "exp(x1 - x2)", "log(x2)", "sin(x1*x2)", "sqrt(x3)",
    "tanh(x1)", "log(exp(tanh(x1)))", "x2^x3", "x2^-1.5", "(x1)^2*((x3))", "x1^0", "0*x1",
    "x1^3/x1", "2^3^0.5",
]  # fmt: skip


def random_text(rng, depth):
    """A formula that is defined everywhere and not too steep."""
    if depth == 0:
        return rng.choice(["x1", "x2", "x3", "pi", f"{rng.uniform(0.1, 3):.3g}"])
    one, two = (random_text(rng, depth - 1) for _ in range(2))
    return rng.choice([
        f"{one}+{two}", f"{one} - ({two})", f"({one})*({two})", f"-({one})",
        f"({one})/(2+sin({two}))", f"(1 + abs({one}))^(1 + tanh({two}))", f"cos({one})",
        f"exp(-abs({one}))", f"({one})^2",
        f"log(1.5+cos({one}))", f"sqrt(2 + ({one})^2)", f"tanh({one})*{two}", f"-({one})^3/9",
    ])  # fmt: skip


def test_formulas_have_pythons_values_and_derivatives(tab):
    rng, names = random.Random(7), ["x1", "x2", "x3"]
    points = [[0.7, 1.3, 2.1], [-0.4, 0.6, 1.1], [1.0, 1.0, 1.0]]
    texts = WRITTEN + [random_text(rng, 3) for _ in range(150)]
    for text in texts:
        for at, (value, *slopes) in zip(points, formula(tab, text, names, points), strict=True):
            x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
            expected = by_python(text, dict(zip(names, x.unbind(), strict=True)))
            expected = torch.as_tensor(expected, dtype=torch.float64) + 0 * x.sum()
            gradient = torch.autograd.grad(expected, x)[0].numpy()
            if not np.isfinite(expected.item()):
                assert not math.isfinite(value), text
                continue
            np.testing.assert_allclose(value, expected.item(), 1e-12, 1e-13, err_msg=text)
            size = max(1, np.abs(gradient).max())
            np.testing.assert_allclose(slopes, gradient, 1e-12, 1e-12 * size, err_msg=text)


UNDEFINED = [
    "log(-1)",
    "log(0)",
    "1/0",
    "0/0",
    "0^-1",
    "(-1)^0.5",
    "exp(1000)",
    "sqrt(-2)",
    "10^400",
]


@pytest.mark.parametrize("text", UNDEFINED)
def test_a_formula_without_a_value_is_no_number(tab, text):
    """As in the notebooks, where an answer must not be right because it is infinite."""
    (found,) = formula(tab, text, ["x1"], [[1.0]])
    assert math.isnan(found[0])
    assert math.isnan(exercises._evaluate(text, {}))


KNOWN = "pi, abs, cos, exp, log, sin, sqrt, tanh"
OPERATOR = "expected an operator (+ - * / ^) or"
OPERAND = "expected a number, x1 to x3, or '('"


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("", 1, f"{OPERAND}; got the end"),
        ("x1 + *x2", 6, f"{OPERAND}; got '*'"),
        ("x1 +", 5, f"{OPERAND}; got the end"),
        ("2x1", 2, f"{OPERATOR} the end; got 'x1'"),
        ("x1 x2", 4, f"{OPERATOR} the end; got 'x2'"),
        ("(x1 + x2", 9, f"{OPERATOR} ')'; got the end"),
        ("x1)", 3, f"{OPERATOR} the end; got ')'"),
        ("exp(x1, x2)", 7, f"{OPERATOR} ')'; got ','"),
        ("exp x1", 5, "expected '(' after exp; got 'x1'"),
        ("x1 + x4", 6, f"'x4' is not known here: use x1 to x3, {KNOWN}"),
        ("constructor", 1, f"'constructor' is not known here: use x1 to x3, {KNOWN}"),
        ("x1 = 2", 4, f"{OPERATOR} the end; got '='"),
        ("1e999*x1", 1, "1e999 is too large for a number"),
        ("x1 + 😀", 6, f"{OPERAND}; got '😀'"),
        ("1" * 501, 501, "a formula has at most 500 characters, this one has 501"),
    ],
)
def test_a_formula_that_cannot_be_read_says_where_and_why(tab, text, position, message):
    said = formula(tab, text, ["x1", "x2", "x3"], [])
    assert said == {"message": f"at {position}: {message}", "position": position}


def test_a_formula_takes_the_names_of_its_caller(tab):
    """The same reader judges answers to exercises."""
    names = ["f", "mu", "η"]
    assert formula(tab, "2*f*(1 - mu^2) + η", names, [[0.2, 0.5, 1.0]])[0][0] == pytest.approx(1.3)
    said = formula(tab, "2*x1", names, [])
    assert said["message"] == f"at 3: 'x1' is not known here: use f, mu, η, {KNOWN}"
    assert formula(tab, "", [], [])["message"] == "at 1: expected a number, or '('; got the end"
    assert js(tab, "SBN.formula.FUNCTIONS") == list(exercises.FUNCTIONS)


def test_deep_nesting_is_read(tab):
    text = "(" * 249 + "x1" + ")" * 249
    assert formula(tab, text, ["x1"], [[3.0]]) == [[3.0, 1.0]]
    assert formula(tab, "-" * 499 + "1", [], [[]]) == [[-1.0]]


# --------------------------------------------------------------------- models and addresses


def presets(tab):
    return js(tab, "SBN.net.PRESETS")


def test_presets_are_networks_of_the_chapters(tab):
    found = presets(tab)
    assert len(found) >= 12
    assert len({p["name"] for p in found}) == len(found)
    chapters = {int(p.name[:2]) for p in BOOK.glob("*/[0-9][0-9]-*.ipynb")}
    assert {p["chapter"] for p in found} <= chapters
    assert {2, 4, 5, 6, 7, 8, 10} <= {p["chapter"] for p in found}
    for p in found:
        assert js(tab, "SBN.net.check(given)", p["model"]) == []
        assert p["says"].endswith(".")
    assert all(
        math.isfinite(answer["value"]) for answer in compute(tab, [p["model"] for p in found])
    )


def test_presets_show_what_they_say(tab):
    model = {p["name"]: p["model"] for p in presets(tab)}

    def bias(given, k=-1, estimator=None):
        given = given | ({"estimator": estimator} if estimator else {})
        (got,) = compute(tab, [given])
        g, m = np.array(got["gradient"][k]["bias"]), np.array(got["mean"][k]["bias"])
        return np.abs(m - g).max() / np.abs(g).max()

    def variance(given, **changes):
        return np.array(compute(tab, [given | changes])[0]["variance"][-1]["bias"])

    constant = model["A constant in the loss"]
    mean = {"name": "reinforce", "baseline": "mean"}
    assert (variance(constant, estimator=mean) < 0.02 * variance(constant)).all()
    assert bias(model["A product of bits"]) < 1e-12
    (square,) = compute(tab, [model["A square is a constant"]])
    assert square["gradient"][0]["bias"][0] == pytest.approx(0, abs=1e-15)
    assert square["mean"][0]["bias"][0] > 0.3
    bowl, a = model["A bowl over two units"], np.array([1.5, -0.8])
    (got,) = compute(tab, [bowl])
    f, mu = np.exp(-a) / (1 + np.exp(-a)) ** 2, np.tanh(a / 2)
    gap = np.array(got["mean"][0]["bias"]) - got["gradient"][0]["bias"]
    np.testing.assert_allclose(gap, 2 * f * np.diag(bowl["loss"]["A"]) * mu, rtol=1e-12)
    deep = model["Three layers, a linear loss"]
    assert bias(deep) < 1e-12 < 0.01 < bias(deep, 0)
    tame = model["Uniform noise, nothing saturated"]
    assert max(bias(tame, k) for k in range(3)) < 1e-12
    assert bias(tame | {"scale": 0.5}, 0) > 0.01
    assert bias(model["The wrong slope"]) > 0.5
    assert bias(model["The wrong slope"], estimator="straight_through") < 1e-12
    decided = model["A decided unit"]
    assert variance(decided)[0] > 10 * variance(decided, estimator="straight_through")[0]
    line = model["Along the line"]
    at = [line | {"estimator": {"name": "chain_rule", "s": s}} for s in (-1, 0, 1)]
    assert bias(at[1]) < 1e-12 < 0.5 < min(bias(at[0]), bias(at[2]))
    assert variance(at[2]).sum() < variance(at[1]).sum() < variance(at[0]).sum()
    one, other = compute(tab, [model["XOR by two votes"], model["The same in bits"]])
    assert one["value"] == pytest.approx(other["value"], rel=1e-14)
    assert one["laws"] == other["laws"]
    cube = model["A cube, as good as linear"]
    for s in (-1, 0, 0.5, 1):
        (got,) = compute(tab, [cube | {"estimator": {"name": "chain_rule", "s": s}}])
        assert got["mean"][0]["bias"][0] == pytest.approx(3 * got["gradient"][0]["bias"][0])


MODEL = random_model(
    9, "triangular", "cross_entropy", "chain_rule", widths=[3, 2, 4], coding="bits"
)
SCORED = random_model(12, "cauchy", "formula", "reinforce", widths=[8, 8, 8, 8])


@pytest.mark.parametrize("model", [MODEL, SCORED], ids=["bits", "largest"])
def test_an_address_keeps_thousandths(tab, model):
    text = js(tab, "SBN.net.encode(given)", model)
    assert re.fullmatch(r"[\w-]+", text, re.A)
    assert len(text) < 1500
    kept = js(tab, "SBN.net.decode(given)", text)
    assert kept["note"] == ""
    assert numbers(kept["model"]) == [round(v, 3) for v in numbers(model)]
    assert outline(kept["model"]) == outline(model)
    again = js(tab, "SBN.net.encode(SBN.net.decode('#' + given).model)", text)
    assert again == text
    assert js(tab, "SBN.net.rounded(given)", model) == kept["model"]


def numbers(model):
    """All numbers in it but counts, in a fixed order."""
    if isinstance(model, dict):
        return [v for key in sorted(model) for v in numbers(model[key])]
    if isinstance(model, list):
        return [v for part in model for v in numbers(part)]
    return [model] if isinstance(model, int | float) else []


def outline(model):
    """It without its numbers."""
    if isinstance(model, dict):
        return {key: outline(value) for key, value in model.items()}
    if isinstance(model, list):
        return [outline(part) for part in model]
    return model if isinstance(model, str) else None


def test_presets_survive_their_address(tab):
    for p in presets(tab):
        assert js(tab, "SBN.net.decode(SBN.net.encode(given))", p["model"]) == {
            "model": p["model"],
            "note": "",
        }


def test_a_cut_or_altered_address_gives_a_fresh_network_and_a_note(tab):
    text = js(tab, "SBN.net.encode(given)", MODEL)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    rng = random.Random(2)
    altered = [text[:i] for i in range(len(text))]
    altered += [text[i:] for i in range(1, len(text))]
    altered += [
        text[:i] + other + text[i + 1 :]
        for i in range(len(text))
        for other in [*rng.sample(letters, 8), "%", "é", ""]
        if other != text[i]
    ]
    altered += [
        text + "A",
        text + "&x=1",
        text[::-1],
        "undefined",
        "1",
        "1A",
        "é" * 20,
        "1" + "_" * 99,
    ]
    wrong = js(
        tab,
        """given.filter((text) => {
            const { model, note } = SBN.net.decode(text);
            return !note || JSON.stringify(model) !== JSON.stringify(SBN.net.PRESETS[0].model);
        })""",
        altered,
    )
    assert wrong == []
    one = "SBN.net.decode('').model"
    assert js(tab, f"{one} === {one} || {one}.layers === SBN.net.PRESETS[0].model.layers") is False


def test_a_forged_address_is_checked_too(tab):
    """Right by its last characters, and no model: nothing but the fresh network comes of it."""
    forge = """(() => {
        const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        const sign = (body) => {
            let hash = 0x811c9dc5;
            for (const c of body) hash = Math.imul(hash ^ c.charCodeAt(0), 0x01000193);
            return body + [0, 1, 2, 3, 4, 5].map((k) => digits[(hash >>> (6 * k)) & 63]).join("");
        };
        const right = SBN.net.encode(SBN.net.fresh()).slice(0, -6);
        const changed = Array.from(right, (_, i) => right.slice(0, i) + "f" + right.slice(i + 1));
        const bodies = ["1", "1E", "1_______A", "1AA", right.slice(0, 20), right + "A", ...changed];
        const models = bodies.map((body) => SBN.net.decode(sign(body)).model);
        return [sign(right) === SBN.net.encode(SBN.net.fresh()),
                ...models.map((model) => SBN.net.check(model).length === 0)];
    })()"""
    assert set(js(tab, forge)) == {True}


UNIT = {"weight": [[1.0]], "bias": [0.0]}
WHY = (
    "the sums run over all 2^n states of a layer of n units and over the transitions between "
    "neighbours, 2^16 for 8 and 8"
)
ONE = {
    "layers": [UNIT],
    "input": [1.0],
    "noise": "logistic",
    "scale": 1.0,
    "coding": "signs",
    "loss": {"kind": "formula", "text": "x1"},
    "estimator": "zgr",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 4 * [UNIT]}, f"layers must be an array of 1 to 3, got 4: {WHY}"),
        ({"layers": []}, f"layers must be an array of 1 to 3, got 0: {WHY}"),
        ({"layers": None}, f"layers must be an array of 1 to 3, got null: {WHY}"),
        (
            {"layers": [{"weight": 9 * [[1]], "bias": 9 * [0]}]},
            f"layers[0].weight must be an array of 1 to 8 rows, got 9: {WHY}",
        ),
        (
            {"layers": [{"weight": [9 * [1]], "bias": [0]}]},
            "layers[0].weight[0] must be 1 to 8 numbers, an input each, got 9",
        ),
        (
            {"layers": [UNIT, {"weight": [[1, 2]], "bias": [0]}]},
            "layers[1].weight[0] must be an array of 1 numbers, got 2",
        ),
        (
            {"layers": [{"weight": [[1]], "bias": []}]},
            "layers[0].bias must be an array of 1 numbers, got 0",
        ),
        (
            {"layers": [{"weight": [["1"]], "bias": [0]}]},
            'layers[0].weight[0][0] must be a number from -1000 to 1000, got "1"',
        ),
        (
            {"layers": [7]},
            f"layers[0].weight must be an array of 1 to 8 rows, got undefined: {WHY}",
        ),
        ({"input": [1, 2]}, "input must be an array of 1 numbers, got 2"),
        ({"input": [1001]}, "input[0] must be a number from -1000 to 1000, got 1001"),
        ({"noise": "Laplace"}, f'noise must be one of {", ".join(LAWS)}, got "Laplace"'),
        ({"scale": 0}, "scale must be a number from 0.001 to 1000, got 0"),
        ({"coding": "0/1"}, 'coding must be one of signs, bits, got "0/1"'),
        ({"loss": None}, "loss.kind must be one of quadratic, cross_entropy, formula, got null"),
        (
            {"loss": {"kind": "quadratic", "A": [[1]], "c": [1, 2]}},
            "loss.c must be an array of 1 numbers, got 2",
        ),
        (
            {"loss": {"kind": "cross_entropy", "weight": [[1]], "bias": [0], "target": 0}},
            "loss.weight must be 2 to 10 rows, a class each, got 1",
        ),
        (
            {"loss": {"kind": "cross_entropy", "weight": [[1], [2]], "bias": [0, 0], "target": 2}},
            "loss.target must be a class from 0 to 1, got 2",
        ),
        ({"loss": {"kind": "formula", "text": 3}}, "loss.text must be a formula in x1, got 3"),
        (
            {"loss": {"kind": "formula", "text": "x1 + x2"}},
            f"loss.text, at 6: 'x2' is not known here: use x1, {KNOWN}",
        ),
        (
            {"loss": {"kind": "formula", "text": "log(x1)"}},
            "loss must be finite at every state, got NaN at (-1)",
        ),
        (
            {"loss": {"kind": "formula", "text": "sqrt(1 + x1)"}},
            "loss must have a finite slope in x1 for ZGR at every state, got Infinity at (-1)",
        ),
        (
            {"estimator": "arm"},
            "estimator must be one of straight_through, zgr, darn, chain_rule, shrinkage, "
            'identity, hardtanh, reinforce, got "arm"',
        ),
        (
            {"estimator": "chain_rule"},
            "estimator.s must be a number from -1000 to 1000, got undefined",
        ),
        (
            {"estimator": {"name": "shrinkage", "omega": -1}},
            "estimator.omega must be a number from 0 to 1000, got -1",
        ),
        (
            {"estimator": {"name": "reinforce", "baseline": "median"}},
            'estimator.baseline must be a number from -1000 to 1000 or "mean", got "median"',
        ),
    ],
)
def test_a_model_that_cannot_be_computed_says_which_argument(tab, change, message):
    assert js(tab, "SBN.lab.compute(given).value", ONE | change) == message


def test_a_model_need_not_say_scale_and_coding(tab):
    short = {key: value for key, value in ONE.items() if key not in ("scale", "coding")}
    assert compute(tab, [short]) == compute(tab, [ONE])
    assert js(tab, "SBN.net.rounded(given)", short) == ONE
    assert js(tab, "SBN.net.check(given)", 3) == ["model must be an object, got 3"]
    scored = {
        "loss": {"kind": "formula", "text": "sqrt(1 + x1)"},
        "estimator": {"name": "reinforce"},
    }
    scored["estimator"]["baseline"] = 0  # which asks for no slope
    assert compute(tab, [ONE | scored])[0]["value"] == pytest.approx(
        math.sqrt(2) / (1 + math.exp(-1))
    )


def test_a_unit_is_saturated_if_it_is_in_every_state_below(tab):
    layer = {"weight": [[1.0, 0.0], [0.2, 0.1], [3.0, 0.5], [0.5, 0.5]], "bias": [0, 0, 0, 5]}
    model = ONE | {
        "layers": [{"weight": [[0.5], [2.0]], "bias": [0, 0]}, layer],
        "noise": "uniform",
    }
    found = js(tab, "SBN.net.saturated(given)", model)
    names = ["unit 2 of layer 1", "unit 1 of layer 2", "unit 3 of layer 2", "unit 4 of layer 2"]
    assert [unit["name"] for unit in found] == names
    assert found[0] == {"layer": 0, "unit": 1, "name": names[0]}
    wide = js(tab, "SBN.net.saturated(given)", model | {"scale": 3})
    assert [unit["name"] for unit in wide] == ["unit 4 of layer 2"]
    assert js(tab, "SBN.net.saturated(given)", model | {"noise": "gaussian"}) == []
    bits = js(tab, "SBN.net.saturated(given)", model | {"coding": "bits"})
    assert [unit["name"] for unit in bits] == ["unit 2 of layer 1", "unit 4 of layer 2"]


def test_estimators_are_those_of_the_registry(tab):
    found = js(tab, "Object.values(SBN.estimators.ESTIMATORS).map((e) => ({...e, factor: null}))")
    named = [e for e in found if e["name"] in ESTIMATORS]
    assert {e["name"] for e in named} == {
        *(name for name, entry in ESTIMATORS.items() if entry.state_only),
        "reinforce",
    }
    for e in named:
        entry = ESTIMATORS[e["name"]]
        assert [e[key] for key in ("label", "kind", "chapter", "colour")] == [
            entry.label,
            entry.kind,
            entry.chapter,
            entry.colour,
        ]
