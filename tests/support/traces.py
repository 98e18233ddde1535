"""What looking at a module must leave as it is, and other comparisons of reports."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sbnlib.noise import Noise


def state(unit: Any) -> dict[str, Any]:
    """What a diagnosis has to leave as it is; tensors as lists, so that NaN is no matter."""
    found: dict[str, Any] = {
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": np.random.get_state()[1].tolist(),
        "python's random state": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
    }
    if isinstance(unit, nn.Module):
        for name, part in unit.named_modules():
            found[f"training flag of {name or 'the module'}"] = part.training
        for name, p in unit.named_parameters():
            its = (p.dtype, p.requires_grad, p.tolist(), p.grad if p.grad is None else
                   p.grad.tolist())  # fmt: skip
            found[f"parameter {name}"] = its
        for name, b in unit.named_buffers():
            found[f"buffer {name}"] = (b.dtype, b.tolist())
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def near_law(found: Any, wanted: Noise, loose: float) -> bool:
    same = type(found) is type(wanted)
    return same and found.scale == pytest.approx(wanted.scale, rel=loose)
