"""The Triton kernels without a GPU: run by the interpreter, and compiled for one.

On a GPU ``python -m sbnlib.experiments.gpu`` compares and times them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import sbnlib

triton = pytest.importorskip(
    "triton", reason="triton is not installed: pip install 'sbnlib[gpu]' (Linux)"
)
pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = Path(sbnlib.__file__).parent.parent

LAWS = ("Logistic", "Uniform", "Triangular", "Gaussian", "Cauchy", "FastSigmoid")
#: SASS instructions a unit, the preamble of a program shared out. Measured with Triton 3.6 and 3.9:
#: 52 to 60 for four laws, 73 to 79 for Cauchy and Gaussian, which need a quotient and a polynomial.
#: An H100, 132 processors of 128 lanes at 1.755 GHz, issues 79 a unit while it copies 8 bytes.
MOST = dict.fromkeys(LAWS, 64.0) | {"Gaussian": 84.0, "Cauchy": 80.0}
SLOPE = 30.0


@pytest.mark.slow
def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
               str(HERE / "interpreted.py")]  # fmt: skip
    found = os.environ | {
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=found, cwd=HERE)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert re.search(r"\d\d+ passed", done.stdout), done.stdout[-2000:]


# ------------------------------------------------------------------------------- compiled


@pytest.fixture(scope="module")
def compiled():
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 is set: Triton interprets and compiles nothing")
    from sbnlib.kernels import compiled

    return compiled


def instructions(kernel: object, constants: dict[str, object], **types: str) -> list[str]:
    """The SASS of a kernel for sm_90, with aligned pointers and 16 dividing the number of units."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types |= {"counter": "i64", "count": "i32", "scale": "fp32", "inverse": "fp32"}
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    even = [n for n in names if signature[n].startswith("*") or n == "count"]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in even},
    )
    options = {"num_warps": 4, "enable_fp_fusion": True}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    line = r"^[-0-9A-F]{2}:[-0-9]:[-0-9]:[-Y]:\d+\t(?:@!?U?P[T\d]+ )?([A-Z][A-Z0-9_.]*)"
    return re.findall(line, built.asm["sass"], re.M)


def check(found: list[str], block: int, most: float, loads: int, stores: int) -> None:
    """No spills, ``loads`` and ``stores`` of 128 bits and no others, few instructions a unit."""
    memory = Counter(op for op in found if re.match(r"(LD|ST)[GLS]|STSM|LDSM", op))
    assert memory.pop("LDG.E.64", 1) == 1  # the seed
    assert memory == {"LDG.E.128": loads, "STG.E.128": stores}
    assert len(found) > block / 128 and len(found) / (block / 128) <= most


def draw(compiled: object, law: str, kind: str, out: str, each: int, unit: bool) -> list[str]:
    block = {"u8": 4096, "i8": 2048}.get(out, 1024)
    constants = {"LAW": law, "UNIT": unit, "EACH": each, "PACKED": out == "u8", "BLOCK": block}
    return instructions(compiled.draw_kernel, constants, a_pointer=f"*{kind}",
                        out_pointer=f"*{out}", seed_pointer="*i64")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("unit", [True, False], ids=["scale 1", "any scale"])
@pytest.mark.parametrize("law", LAWS)
def test_a_draw_for_sm_90(compiled, law: str, unit: bool) -> None:
    check(draw(compiled, law, "fp32", "fp32", 2, unit), 1024, MOST[law], 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "out", "each", "most", "loads", "stores"), [
    ("fp32", "fp32", 1, 44, 2, 2),
    ("bf16", "bf16", 2, 64, 1, 1),
    ("bf16", "bf16", 1, 46, 1, 1),
    ("fp32", "i8", 2, 62, 4, 1),
    ("fp32", "i8", 1, 44, 4, 1),
])  # fmt: skip
def test_other_forms_of_a_draw_for_sm_90(
    compiled, kind: str, out: str, each: int, most: float, loads: int, stores: int
) -> None:
    block = 2048 if out == "i8" else 1024
    check(draw(compiled, "Logistic", kind, out, each, True), block, most, loads, stores)


def test_packed_bits_for_sm_90(compiled) -> None:
    # A byte is put together from two lanes and leaves through shared memory: 8 units, one store
    found = draw(compiled, "Logistic", "fp32", "u8", 2, True)
    memory = Counter(op.split(".")[0] for op in found)
    assert not memory["LDL"] and not memory["STL"] and Counter(found)["LDG.E.128"] == 8
    assert len(found) / 32 <= 64


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize("law", LAWS)
def test_a_slope_for_sm_90(compiled, law: str, kind: str) -> None:
    constants = {"LAW": law, "UNIT": True, "BLOCK": 1024}
    found = instructions(compiled.slope_kernel, constants, a_pointer=f"*{kind}",
                         out_pointer=f"*{kind}", gradient_pointer=f"*{kind}")  # fmt: skip
    wide = 2 if kind == "fp32" else 1
    check(found, 1024, SLOPE, 2 * wide, wide)
