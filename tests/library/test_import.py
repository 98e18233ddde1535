"""`import sbnlib` needs torch and numpy only, and brings its public names only."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
import torch

import sbnlib
from sbnlib.extras import extra

EXTRAS = ["matplotlib", "ipywidgets", "sklearn", "scipy", "pooch", "lightning", "lightning_fabric",
          "triton", "joblib", "distributed", "numba", "PIL", "reinmax", "storch"]  # fmt: skip


@pytest.mark.slow
def test_import_pulls_in_no_extra() -> None:
    code = f"import sys, sbnlib; print([m for m in {EXTRAS} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_completion_of_the_package_offers_its_modules_too() -> None:
    modules = {"categories", "checks", "levels", "nn", "optim", "registry"}
    assert set(dir(sbnlib)) == {*sbnlib.__all__, *modules, "__version__"}


def test_a_star_leaves_the_modules_of_torch_alone() -> None:
    names: dict[str, object] = {}
    exec("from torch import nn, optim\nfrom sbnlib import *\n", names)
    assert names["nn"] is torch.nn
    assert names["optim"] is torch.optim
    assert names["SBN"] is sbnlib.SBN
    assert not [n for n in sbnlib.__all__ if isinstance(names[n], types.ModuleType)]


@pytest.mark.parametrize(
    ("package", "code", "brings"),
    [
        ("matplotlib", "import importlib; importlib.import_module('sbnlib.figures')", "figures"),
        ("sklearn", "from sbnlib.data import load; load('digits')", "data"),
        ("pooch", "from sbnlib import data; data._download('labels')", "data"),
        ("tqdm", "from sbnlib.experiments.protocol import Runs;"
                 "Runs(None, count=1, epochs=1, progress=False)", "experiments"),
        ("lightning_fabric", "from sbnlib.experiments import classify;"
                             "classify.launch(classify.Config('digits'))", "experiments"),
        ("lightning_fabric", "from sbnlib.experiments import weights; weights.launch()",
         "experiments"),
        ("joblib", "from sbnlib.experiments.jobs import carry_out;"
                   "carry_out([{'k': 1}], print, key={}, workers=2)", "experiments"),
        ("distributed", "from sbnlib.experiments.jobs import carry_out;"
                        "carry_out([{'k': 1}], print, key={}, scheduler='tcp://h:1')", "cluster"),
    ],
)  # fmt: skip
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, package: str, code: str, brings: str
) -> None:
    absent = [m for m in sys.modules if m.split(".")[0] == package or m == "sbnlib.figures"
              or m.startswith("sbnlib.figures.")]  # fmt: skip
    for name in absent:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    words = rf"{package} is not installed; it comes with an extra: pip install 'sbnlib\[{brings}\]'"
    with pytest.raises(ModuleNotFoundError, match=words):
        exec(code, {})


@pytest.mark.slow
def test_each_module_can_be_imported_or_names_the_extra_that_it_needs() -> None:
    code = f"""
import importlib, pkgutil, sys
for absent in {EXTRAS}:
    sys.modules[absent] = None
import sbnlib
for found in pkgutil.walk_packages(sbnlib.__path__, "sbnlib."):
    if not found.name.endswith("__main__"):
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            assert "comes with an extra: pip install 'sbnlib[" in str(error), (found.name, error)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_fault_of_our_own_is_not_an_extra() -> None:
    words = "^No module named 'sbnlib.nowhere'$"
    with pytest.raises(ModuleNotFoundError, match=words), extra("figures"):
        import sbnlib.nowhere  # noqa: F401
