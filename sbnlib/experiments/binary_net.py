"""A network of binary weights in a small file, eight weights to a byte, and back.

    sha256 = save_net(path, net, head, about)     the file, of numpy's .npz
    net = load_net(path)                          a torch module that gives scores

The file holds for each layer k from 1 on ``bits{k}``, the rows of its weights as
``numpy.packbits`` packs them (1 for +1), ``shape{k}``, (outputs, inputs), and of the batch norm
behind it ``mean{k}``, ``var{k}``, ``scale{k}`` and ``shift{k}``, with one ``eps``; ``head_weight``
and ``head_bias`` of the real-valued head; ``unit`` and ``unit_scale``, the noise of the units;
``about``, a JSON text that says how the network was made; and ``sha256``, of all these. Nothing is
pickled, and the same network gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sbnlib import files
from sbnlib.data import DataError, Dataset, Split
from sbnlib.experiments.cache import Checkpoint, Row
from sbnlib.experiments.classify import settled_for
from sbnlib.experiments.training import Recipe, fit
from sbnlib.experiments.ways import BATCH, STATISTICS, TOGETHER, Way, as_used, fresh
from sbnlib.extras import extra
from sbnlib.inference import set_mode
from sbnlib.network import SBN
from sbnlib.noise import NOISES
from sbnlib.packed import runtime

__all__ = ["about_net", "load_net", "make_net", "save_net"]

Arrays = dict[str, np.ndarray]
#: Of the batch norm of a layer, and what torch calls it.
NORM = {"mean": "running_mean", "var": "running_var", "scale": "weight", "shift": "bias"}


# Making -------------------------------------------------------------------------------------------


def make_net(
    path: str | os.PathLike[str],
    way: Way,
    data: Dataset,
    lr: float,
    epochs: int,
    *,
    checkpoint: Checkpoint | None = None,
) -> Row:
    """Train binary weights once, with seed 0, and write them; a row of how they test.

    The weights are taken at their signs, and batch norm's statistics anew for them and for units at
    their signs. The row has ``name``, ``lr``, ``epochs``, ``data``, the accuracies ``validation``
    and ``test``, and the file's ``bytes`` and ``sha256``.

    Args:
        path: where.
        way: how, one with binary weights.
        data: on what.
        lr: the learning rate of the first epoch.
        epochs: length of the training.
        checkpoint: where it is kept after each epoch, and taken up again.
    """
    with extra("experiments"):
        from lightning_fabric import Fabric

    recipe = Recipe(0, epochs, BATCH, contender=f"{way.name} file")
    training = replace(fresh(way, data, lr, recipe), checkpoint=checkpoint)
    fit(Fabric(accelerator="cpu", devices=1), [training], data.train)
    head, net = training.model.head, as_used(training.model.net)
    draw = recipe.generator("cpu", "statistics")
    settled = settled_for(net, "sign", data.train.inputs[:STATISTICS], draw)
    layers: Any = settled.layers
    plain = SBN(*(nn.Sequential(own.matrix, own.norm) for own in layers), noise=way.law).eval()
    about = {"name": way.name, "lr": lr, "epochs": epochs, "seed": 0, "data": data.name}
    about |= {name: _accuracy(plain, head, getattr(data, name)) for name in ("validation", "test")}
    found = save_net(path, plain, head, about)
    return about | {"bytes": Path(path).stat().st_size, "sha256": found}


@torch.no_grad()
def _accuracy(net: SBN, head: nn.Linear, split: Split) -> float:
    scores = torch.cat([head(net(some, mode="sign")) for some in split.inputs.split(TOGETHER)])
    return (scores.argmax(-1) == split.labels).double().mean().item()


# Writing ------------------------------------------------------------------------------------------


def save_net(
    path: str | os.PathLike[str], net: SBN, head: nn.Linear, about: Mapping[str, Any]
) -> str:
    """Write the network; returns the sha256 of the file.

    Args:
        path: where.
        net: each layer a ``nn.Sequential`` of a ``nn.Linear`` of +-1 without biases and a
            ``nn.BatchNorm1d``.
        head: on its last layer.
        about: how it was made, values of JSON.

    Raises:
        ValueError: a layer is another, or holds another weight than +1 and -1; the message says
            which. Nothing has been written.
    """
    arrays = _arrays(net, head) | {"about": np.array(json.dumps(dict(about), sort_keys=True))}
    content = runtime.as_file(arrays)
    files.write_whole(path, content)
    return hashlib.sha256(content).hexdigest()


def _arrays(net: SBN, head: nn.Linear) -> Arrays:
    found: Arrays = {}
    for k, layer in enumerate(net.layers, start=1):
        linear, norm = _parts(k, layer)
        plus = linear.weight.detach().numpy() > 0
        found |= {f"bits{k}": np.packbits(plus, axis=1), f"shape{k}": np.array(plus.shape)}
        found |= {f"{name}{k}": _array(getattr(norm, own)) for name, own in NORM.items()}
        found["eps"] = np.array(norm.eps)
    found |= {"head_weight": _array(head.weight), "head_bias": _array(head.bias)}
    law = net.noise
    return found | {"unit": np.array(type(law).__name__), "unit_scale": np.array(law.scale)}


def _parts(k: int, layer: nn.Module) -> tuple[nn.Linear, nn.BatchNorm1d]:
    match list(layer.children()):
        case [nn.Linear() as linear, nn.BatchNorm1d() as norm]:
            pass
        case parts:
            names = ", ".join(type(part).__name__ for part in parts)
            raise ValueError(
                f"net must have layers of Linear and BatchNorm1d, layer {k} has {names or layer}"
            )
    if "bias" in dict(linear.named_parameters()) or not (linear.weight.abs() == 1).all():
        raise ValueError(f"net must have weights of +1 and -1 and no biases, layer {k} has others")
    return linear, norm


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().numpy()


# Reading ------------------------------------------------------------------------------------------


def load_net(path: str | os.PathLike[str]) -> nn.Sequential:
    """The network of a file: an :class:`sbnlib.SBN` in mode "sign" and its head, in evaluation.

    Inputs (N, n) to scores (N, classes), in float32. The layers are ``nn.Sequential(nn.Linear,
    nn.BatchNorm1d)`` with weights +-1, so that the SBN can be sampled, or trained further, too.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is damaged, cut off or no file of :func:`save_net`, or what it holds does not
            fit together; the message names it.
    """
    arrays = _read(path)
    count = sum(name.startswith("bits") for name in arrays)
    try:
        layers = [_layer(arrays, k) for k in range(1, count + 1)]
        law = NOISES[str(arrays["unit"]).lower()](float(arrays["unit_scale"]))
        head = _head(arrays)
        net = nn.Sequential(set_mode(SBN(*layers, noise=law), "sign"), head).eval()
        _check_chain([*(layer[0] for layer in layers), head])
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: holds no network of binary weights ({error})") from error
    return net


def about_net(path: str | os.PathLike[str]) -> dict[str, Any]:
    """How the network of a file was made. Raises as :func:`load_net`."""
    return json.loads(str(_read(path)["about"]))


def _read(path: str | os.PathLike[str]) -> Arrays:
    try:
        return runtime.read_arrays(path)
    except ValueError as error:
        raise DataError(str(error)) from error


def _layer(arrays: Arrays, k: int) -> nn.Sequential:
    outputs, inputs = map(int, arrays[f"shape{k}"])
    bits = np.unpackbits(arrays[f"bits{k}"], axis=1)
    if bits.shape != (outputs, 8 * math.ceil(inputs / 8)):
        raise ValueError(f"bits{k} has rows of {bits.shape}, must fit {(outputs, inputs)}")
    linear = nn.Linear(inputs, outputs, bias=False, dtype=torch.float32)
    _fill(linear.weight, 2 * bits[:, :inputs].astype(np.float32) - 1)
    norm = nn.BatchNorm1d(outputs, eps=float(arrays["eps"]), dtype=torch.float32)
    for name, own in NORM.items():
        _fill(getattr(norm, own), arrays[f"{name}{k}"])
    return nn.Sequential(linear, norm)


def _head(arrays: Arrays) -> nn.Linear:
    classes, features = arrays["head_weight"].shape
    head = nn.Linear(features, classes, dtype=torch.float32)
    _fill(head.weight, arrays["head_weight"])
    _fill(head.bias, arrays["head_bias"])
    return head


@torch.no_grad()
def _fill(place: Tensor, values: np.ndarray) -> None:
    if values.shape != tuple(place.shape):
        raise ValueError(f"an array of {values.shape} stands where {tuple(place.shape)} is due")
    place.copy_(torch.from_numpy(values))


def _check_chain(linears: Sequence[Any]) -> None:
    for below, above in pairwise(linears):
        if below.out_features != above.in_features:
            raise ValueError(
                f"{below.out_features} units stand below a layer of {above.in_features} inputs"
            )
