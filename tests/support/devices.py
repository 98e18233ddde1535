"""Train small networks on several CPU processes and print what came of it, as JSON.

python tests/support/devices.py DEVICES CASE [CASE ...]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from sbnlib import SBN
from sbnlib.data import Split, load
from sbnlib.experiments.models import Classifier
from sbnlib.experiments.training import Recipe, Training, fit, generator, linear
from sbnlib.network import network_estimator
from sbnlib.nn import BernoulliLinear
from sbnlib.optim import MirrorDescent

#: Cases: the estimator of the units. ``weights`` has binary ones, ``norm`` batch norm; ``stream``
#: draws by rank.
ESTIMATORS = {
    name: name for name in ("straight_through", "zgr", "reinforce", "arm", "st_gumbel", "concrete")
} | {name: "straight_through" for name in ("weights", "norm", "stream")}


def classifier(case: str) -> Classifier:
    draw = generator("cpu", "devices")
    first: nn.Module = linear(64, 8, 3.0, draw, torch.float64)
    if case == "norm":
        first = nn.Sequential(first, nn.BatchNorm1d(8, dtype=torch.float64))
    second: Any = linear(8, 8, 3.0, draw, torch.float64)
    if case == "weights":
        second = BernoulliLinear(8, 8, dtype=torch.float64)
        second.reset_parameters(draw)
    head = linear(8, 10, 1.0, draw, torch.float64)
    return Classifier(SBN(first, second), head, network_estimator(ESTIMATORS[case]))


def outcome(fabric: Fabric, case: str) -> dict[str, Any]:
    """The training loss after each epoch, and the parameters in the end."""
    train = load("digits").train
    data = Split(train.inputs[:300].double(), train.labels[:300])
    model = classifier(case)
    latent = [p for name, p in model.named_parameters() if name.endswith("eta")]
    real = [p for name, p in model.named_parameters() if not name.endswith("eta")]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(real, 0.01)]
    if latent:
        optimizers.append(MirrorDescent(latent, 0.1))
    losses: list[float] = []

    def look() -> None:
        draw = generator("cpu", "looking", epoch=len(losses))
        losses.append(model(data.inputs, data.labels, draw).mean().item())

    recipe = Recipe(0, 3, 50, draws="stream" if case == "stream" else "example")
    fit(fabric, [Training(model, optimizers, recipe, after_epoch=look)], data)
    return {"losses": losses, "parameters": [p.flatten().tolist() for p in model.parameters()]}


def main() -> None:
    fabric = Fabric(accelerator="cpu", devices=int(sys.argv[1]))
    fabric.launch()
    found: dict[str, Any] = {}
    for case in sys.argv[2:]:
        try:
            found[case] = outcome(fabric, case)
        except ValueError as error:
            found[case] = {"error": str(error)}
    if fabric.is_global_zero:
        print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
