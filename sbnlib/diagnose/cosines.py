"""The unit in the networks of the map: does its gradient point along the exact one?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sbnlib.diagnose.examination import Examination
from sbnlib.diagnose.keeping import seeded
from sbnlib.diagnose.subject import RefusedError
from sbnlib.exact import exact_gradient
from sbnlib.network import SBN
from sbnlib.noise import Noise

if TYPE_CHECKING:
    from sbnlib.map.problem_set import Problem

__all__ = ["cosines"]

#: Groups of draws, and draws of a group, of a unit that samples; in a model, which has to be run
#: again for them, so many.
GROUPS, DRAWS, IN_MODEL = 16, 2048, 256


def cosines(found: Examination) -> dict[str, float] | None:
    """Of the mean gradient to the exact one, in the three base networks of sbn-map-1.

    The unit is used about its threshold, with pre-activations stretched so that half of its law
    lies as far out as of the problems' own noise, logistic at scale 1; the exact gradient is that
    with the law, so stretched, as the noise.

    None for what is no unit of two states with a slope, or where one draw serves many.
    """
    if found.refused or found.kind is None or len(found.states) != 2 or not found.jump:
        return None
    if found.shared:
        return None
    from sbnlib.map.problem_set import problems

    law, quartile = found.forward_law or found.slope_law, found.quartile
    stretch = quartile / math.log(3) if quartile else 1.0
    noise = None if law is None else type(law.noise)(law.noise.scale / stretch)
    try:
        return {p.about: _cosine(found, p, stretch, noise)
                for p in problems().values() if p.is_base}  # fmt: skip
    except RefusedError:
        return None


def _cosine(found: Examination, problem: Problem, stretch: float, noise: Noise | None) -> float:
    net = problem.net()
    parameters = list(net.parameters())
    size = found.subject.size  # in a model one run for a layer of so many inputs and units
    draws = DRAWS if size == 1 else max(8, min(IN_MODEL, size // 20))
    groups, draws = (GROUPS, draws) if found.sampled or found.kind != "of a" else (1, 1)
    gradients = []
    with seeded(19, found.subject.device):
        for _ in range(groups):
            value = problem.loss(_states(found, net, problem.inputs.expand(draws, -1, -1), stretch))
            grads = torch.autograd.grad(value.mean(), parameters)
            gradients.append(torch.cat([g.flatten() for g in grads]))
    own = torch.stack(gradients)
    if noise is not None:
        net = SBN(*net.layers, noise=noise)
    with torch.autocast("cpu", enabled=False):
        _, gradient = exact_gradient(net, problem.inputs, problem.loss)
    return _angle(own, torch.cat([g.flatten() for g in gradient.values()]))


def _states(found: Examination, net: SBN, x: Tensor, stretch: float) -> Tensor:
    """The states of the last layer, with the unit in the place of the network's own, as +-1."""
    subject, jump = found.subject, found.jump
    assert jump and found.ends is not None
    middle = sum(found.ends) / 2
    for layer in net.layers:
        a = found.threshold + stretch * layer(x)
        states = subject.states(a.reshape(-1).to(subject.device, subject.dtype))
        x = (states.to(a.device, a.dtype).reshape(a.shape) - middle) * (2 / jump)
    return x


def _angle(own: Tensor, exact: Tensor) -> float:
    """The cosine of the mean of samples and a vector, free of the noise that lengthens the mean."""
    mean, count = own.mean(dim=0), len(own)
    noise = float(own.var(dim=0).sum()) / count if count > 1 else 0.0
    length2 = float(mean.square().sum()) - noise
    if length2 <= 0 or not float(exact.norm()):
        return math.nan
    return max(-1.0, min(1.0, float(mean @ exact) / math.sqrt(length2) / float(exact.norm())))
