"""The problems of sbn-map-1 in numpy, read from their file: nothing from sbnlib but its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import reference as ref
from reference import Array, RefLoss, RefNet, RefNoise
from scipy import special

import sbnlib

FILE = Path(sbnlib.__file__).parent / "map" / "sbn-map-1.json"
CONTENT = {row["name"]: row for row in json.loads(FILE.read_text("utf-8"))["problems"]}


def ref_net(name: str) -> RefNet:
    row = CONTENT[name]
    weights, biases = (tuple(map(np.array, row[key])) for key in ("weights", "biases"))
    return RefNet(weights, biases, RefNoise(row["law"], row["scale"]))


def inputs(name: str) -> Array:
    return np.array(CONTENT[name]["inputs"])


def ref_loss(name: str) -> RefLoss:
    """The loss and its slopes, by formulas; there is no torch form."""
    row = CONTENT[name]
    given = {key: np.array(v) for key, v in row["numbers"].items()}
    value, gradient = {"digits": _digits, "xor": _xor, "smooth": _smooth}[row["about"]](**given)
    return RefLoss(row["about"], value, gradient, None)


def _digits(head: Array, head_bias: Array, targets: Array) -> tuple:
    t = targets.astype(int)

    def value(x: Array, b: int) -> Array:
        s = x @ head.T + head_bias
        return special.logsumexp(s, axis=-1) - s[..., t[b]]

    def gradient(x: Array, b: int) -> Array:
        return special.softmax(x @ head.T + head_bias, axis=-1) @ head - head[t[b]]

    return value, gradient


def _xor(targets: Array) -> tuple:
    def value(x: Array, b: int) -> Array:
        gates = x.shape[-1] - 1
        right = sum(targets[b] * x[..., j] * x[..., j + 1] for j in range(gates))
        return (1 - right / gates) / 2

    def gradient(x: Array, b: int) -> Array:
        n = x.shape[-1]
        near = np.eye(n, k=1) + np.eye(n, k=-1)
        return -targets[b] / (2 * (n - 1)) * (x @ near)

    return value, gradient


def _smooth(c: Array, v: Array, d: Array) -> tuple:
    return (
        lambda x, b: np.tanh(x @ v.T + d) @ c,
        lambda x, b: (c / np.cosh(x @ v.T + d) ** 2) @ v,
    )


def exact_row(name: str, estimator: str, layers: str) -> dict[str, float]:
    """The quantities of the map of a chain-rule estimator, by whole paths."""
    net, v, loss = ref_net(name), inputs(name), ref_loss(name)
    exact, found = ref.gradient(net, v, loss), ref.moments(net, v, loss, estimator)
    keys = [key for key in exact if layers == "all" or key[0] == 0]
    g = np.concatenate([exact[key].ravel() for key in keys])
    mean = np.concatenate([found[key][0].ravel() for key in keys])
    variance = sum(float(found[key][1].sum()) for key in keys) / (g @ g)
    bias2 = float((mean - g) @ (mean - g)) / (g @ g)
    along, square = float(mean @ g) / (g @ g), float(mean @ mean) / (g @ g) + variance
    return {
        "bias2": bias2,
        "variance": variance,
        "mse": bias2 + variance,
        "efficiency": along**2 / square,
        "cosine": along * np.sqrt((g @ g) / (mean @ mean)),
        "along": along,
    }
