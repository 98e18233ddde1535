"""From the objects of reference.py to those of sbnlib, and thresholds for statistical tests."""

from __future__ import annotations

import numpy as np
import torch
from discovered import NOISES
from reference import RefNet, RefNoise
from scipy import stats
from torch import nn

import sbnlib


def make_noise(name: str, scale: float = 1.0) -> sbnlib.Noise:
    """The noise of sbnlib of that name; an unknown one raises and lists the known ones."""
    return NOISES[name](scale)


def reference_of(noise: sbnlib.Noise) -> RefNoise:
    """The reference of a noise of sbnlib; one that has none raises by name."""
    return RefNoise(type(noise).__name__, noise.scale)


def make_net(net: RefNet, estimator: object = None, dtype: torch.dtype = torch.float64) -> object:
    """An SBN of nn.Linear layers with the reference net's weights, biases and noise."""
    layers = []
    for w, b in zip(net.weights, net.biases, strict=True):
        layer = nn.Linear(w.shape[1], w.shape[0], dtype=dtype)
        layer.weight.data = torch.tensor(w, dtype=dtype)
        layer.bias.data = torch.tensor(b, dtype=dtype)
        layers.append(layer)
    noise = make_noise(net.noise.name, net.noise.scale)
    return sbnlib.SBN(*layers, noise=noise, estimator=estimator or sbnlib.straight_through)


def in_order(values: dict) -> list[np.ndarray]:
    """Reference values keyed (layer, "weight" | "bias") as a list: weight 0, bias 0, weight 1, …"""
    count = 1 + max(layer for layer, _ in values)
    return [values[layer, kind] for layer in range(count) for kind in ("weight", "bias")]


def z_limit(count: int, false_alarm: float = 1e-6) -> float:
    """|z| that `count` standard normal statistics pass together with probability 1 - false_alarm.

    Bonferroni, two-sided.
    """
    return float(stats.norm.isf(false_alarm / (2 * count)))


def random_inputs(batch: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + 100).normal(size=(batch, width))


def random_logits(noise: RefNoise, count: int, seed: int = 0) -> np.ndarray:
    """Logits on both sides of 0, inside the support of a bounded noise."""
    return noise.scale * np.random.default_rng(seed + 200).uniform(-0.95, 0.95, size=count)
