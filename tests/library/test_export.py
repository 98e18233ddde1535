"""An exported network computes what it did: torch.export, ONNX, and the road of the README."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT
from test_inference import made, nets, seeded
from torch import Tensor, nn

from sbnlib import SBN, packed, reestimate_batch_norm, set_mode, to_plain
from sbnlib.inference import PlainSign

pytestmark = pytest.mark.slow

#: A unit whose pre-activation is smaller may come out with the other sign in another program, which
#: adds up the same products in another order.
MARGIN = 1e-5


def trained(name: str) -> tuple[nn.Module, Tensor]:
    """A network as it would be used, and 200 inputs."""
    net, x = made(name)
    x = torch.rand(200, *x.shape[1:], generator=seeded(3)) * 2 - 1
    return to_plain(reestimate_batch_norm(set_mode(net, "sign"), x)), x


def decided(plain: nn.Module, x: Tensor) -> Tensor:
    """The inputs on which no unit is within :data:`MARGIN` of its threshold."""
    far = torch.ones(len(x), dtype=torch.bool)

    def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        far.logical_and_((args[0].abs() > MARGIN).flatten(1).all(1))

    units = [m for m in plain.modules() if isinstance(m, PlainSign)]
    hooks = [m.register_forward_pre_hook(look) for m in units]
    plain(x)
    for hook in hooks:
        hook.remove()
    return far


def run_onnx(file: Path) -> tuple[Callable[[Tensor], np.ndarray], list[str]]:
    """What onnxruntime makes of a file, and the operations in it."""
    onnx = pytest.importorskip("onnx")
    session = pytest.importorskip("onnxruntime").InferenceSession(file)
    (given,) = session.get_inputs()
    operations = [node.op_type for node in onnx.load(file).graph.node]
    return lambda x: session.run(None, {given.name: x.numpy()})[0], operations


@nets
def test_torch_export_keeps_every_bit(name: str) -> None:
    plain, x = trained(name)
    program = torch.export.export(plain, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    assert torch.equal(program.module()(x), plain(x))
    assert torch.equal(program.module()(x[:7]), plain(x[:7]))
    assert program.graph_signature.user_outputs
    kinds = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [k for k in kinds if re.search("rand|sigmoid|exp|addcmul", k)], "an estimator's"


@nets
def test_onnx_puts_out_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    plain, x = trained(name)
    file = tmp_path / "net.onnx"
    torch.onnx.export(plain, (x,), file, dynamo=True, verbose=False, dynamic_shapes=({0: "batch"},))
    run, operations = run_onnx(file)
    far = decided(plain, x)
    assert far.float().mean() > 0.9
    assert np.allclose(run(x[far]), plain(x[far]).detach(), rtol=1e-5, atol=MARGIN)
    assert run(x[:3]).shape == plain(x[:3]).shape
    units = {"conv": 3, "dense": 2}[name]
    assert operations.count("GreaterOrEqual") == operations.count("Where") == units
    assert set(operations) <= {"GreaterOrEqual", "Where", "Conv", "Gemm", "MatMul", "Add", "Mul",
                               "Sub", "Pad", "Reshape"}  # fmt: skip


def test_a_network_itself_exports_in_its_mode() -> None:
    net, x = set_mode(SBN(nn.Linear(3, 4), nn.Linear(4, 2)), "sign"), torch.rand(9, 3)
    program = torch.export.export(net, (x,))
    assert torch.equal(program.module()(x), net(x))


def test_the_road_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, set the mode, re-estimate, export: as printed, in thirty lines."""
    pytest.importorskip("onnxscript")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    (road,) = [block for block in blocks if "onnx" in block]
    assert len([line for line in road.splitlines() if line.strip()]) <= 30
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(road, names)
    test, plain = names["digits"].test, names["plain"]
    images = test.inputs.reshape(-1, 1, 8, 8)
    scores = plain(images).detach()
    assert (scores.argmax(-1) == test.labels).float().mean() > 0.9
    weights = [m.weight for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weights) == 3 and all((w.abs() == 1).all() for w in weights)
    run, _ = run_onnx(tmp_path / "digits.onnx")
    far = decided(plain, images)
    assert far.float().mean() > 0.9
    assert np.allclose(run(images[far]), scores[far], rtol=1e-4, atol=1e-4)
    bits = packed.load(tmp_path / "digits.npz")(images[far].numpy())
    assert np.allclose(bits, scores[far], rtol=1e-4, atol=1e-4)


def test_every_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S):
        if "onnx" not in block:
            exec(block, {})
